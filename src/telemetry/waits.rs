//! Every wait of the backpressure chain, under the name of the guard that is waited for: how many wait now, how often
//! somebody began to, and for how many seconds in all.
//!
//! ```text
//!  agent                     gateway
//!  queue_memory ◄── credit ◄── record_memory ◄── journal_room ◄── journal_segment     sessions and journal
//!                          ◄── journal_full                           ▲
//!                                    pipeline_memory ◄── upload_place ◄── upload_window   the way to the vault
//!                                                    ◄── upload_memory ◄── upload_pause
//! ```
//!
//! - Seconds are those of all waiters together, and of waits that are not over yet too: a wait of an hour shows from its
//!   first second.
//! - Only who really waits comes here, which costs a switch of tasks anyway. Where nothing waits, nothing is recorded.
//! - The sums are the process's own, as the metrics of a process are. Nothing is ever decided by them.

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{names, text};

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// Disks whose next record has no credit because the journal is full.
    JournalFull,
    /// Disks whose next record has no credit because the sessions' memory is given out.
    RecordMemory,
    /// Records that do not fit into the open commit.
    JournalRoom,
    /// Shards of the journal that need another segment.
    JournalSegment,
    /// The feeder, while the pipeline holds as much as it may.
    PipelineMemory,
    /// Finished batches, while as many as may be are on their way to the store.
    UploadPlace,
    /// Finished batches, while those on their way hold as much memory as they may.
    UploadMemory,
    /// Batches that could be uploaded, while as many uploads run as the store bears.
    UploadWindow,
    /// Batches that failed and wait for their next try.
    UploadPause,
    /// Batches that could be uploaded, and disks whose next record has no credit, while a limit of bandwidth holds them back.
    Bandwidth,
    /// Disks of an agent that have a record and no credit for it.
    Credit,
}

impl Guard {
    /// Those that a gateway has, in the order of the way of the bytes.
    pub const GATEWAY: [Self; 10] = [
        Self::RecordMemory,
        Self::JournalFull,
        Self::JournalRoom,
        Self::JournalSegment,
        Self::PipelineMemory,
        Self::UploadPlace,
        Self::UploadMemory,
        Self::UploadWindow,
        Self::UploadPause,
        Self::Bandwidth,
    ];
    /// Those that an agent has.
    pub const AGENT: [Self; 1] = [Self::Credit];
    const COUNT: usize = Self::GATEWAY.len() + Self::AGENT.len();

    /// Its name in the label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::JournalFull => "journal_full",
            Self::RecordMemory => "record_memory",
            Self::JournalRoom => "journal_room",
            Self::JournalSegment => "journal_segment",
            Self::PipelineMemory => "pipeline_memory",
            Self::UploadPlace => "upload_place",
            Self::UploadMemory => "upload_memory",
            Self::UploadWindow => "upload_window",
            Self::UploadPause => "upload_pause",
            Self::Bandwidth => "bandwidth",
            Self::Credit => "credit",
        }
    }

    /// Waits for this from now until the result is dropped.
    #[must_use]
    pub fn wait(self) -> Waiters {
        let mut waiters = Waiters::none(self);
        waiters.set(1);
        waiters
    }
}

#[derive(Debug, Clone, Copy)]
struct Sum {
    waiting: u64,
    begun: u64,
    seconds: f64,
    changed: Option<Instant>,
}

impl Sum {
    const NONE: Self = Self { waiting: 0, begun: 0, seconds: 0.0, changed: None };

    fn turn(&mut self, now: Instant) {
        let since = self.changed.replace(now).map_or(0.0, |then| now.saturating_duration_since(then).as_secs_f64());
        self.seconds += since * self.waiting as f64;
    }

    fn change(&mut self, from: u64, to: u64, now: Instant) {
        self.turn(now);
        self.waiting = (self.waiting + to).saturating_sub(from);
        self.begun += to.saturating_sub(from);
    }
}

static SUMS: Mutex<[Sum; Guard::COUNT]> = Mutex::new([Sum::NONE; Guard::COUNT]);

/// Those of one place that wait for one guard. Dropped, none of them does any more.
#[derive(Debug)]
pub struct Waiters {
    guard: Guard,
    count: u64,
}

impl Waiters {
    /// Nobody yet.
    #[must_use]
    pub const fn none(guard: Guard) -> Self {
        Self { guard, count: 0 }
    }

    /// So many wait from now on.
    pub fn set(&mut self, count: u64) {
        if count != self.count {
            SUMS.lock()[self.guard as usize].change(self.count, count, Instant::now());
            self.count = count;
        }
    }

    /// The same, of a guard that is named anew with each look.
    pub fn set_for(&mut self, guard: Option<Guard>) {
        if let Some(other) = guard.filter(|other| *other != self.guard) {
            self.set(0);
            self.guard = other;
        }
        self.set(u64::from(guard.is_some()));
    }
}

impl Drop for Waiters {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// The figures of `guards` now, as Prometheus reads them.
#[must_use]
pub fn lines(guards: &[Guard]) -> String {
    let now = Instant::now();
    let sums: Vec<(String, Sum)> = {
        let mut sums = SUMS.lock();
        let mut look = |guard: Guard| {
            let sum = &mut sums[guard as usize];
            sum.turn(now);
            (text::labels(&[("guard", guard.as_str())]), *sum)
        };
        guards.iter().map(|guard| look(*guard)).collect()
    };
    let mut out = String::new();
    let mut add = |name: &str, of: fn(&Sum) -> f64| {
        text::family(&mut out, name, sums.iter().map(|(label, sum)| (label.clone(), of(sum))));
    };
    add(names::WAITING, |sum| sum.waiting as f64);
    add(names::WAITS, |sum| sum.begun as f64);
    add(names::WAIT_SECONDS, |sum| sum.seconds);
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn seconds_count_for_every_waiter_and_before_the_wait_is_over() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut sum = Sum::NONE;
        sum.change(0, 1, at(0));
        sum.turn(at(5));
        assert_eq!((sum.waiting, sum.begun, sum.seconds), (1, 1, 5.0), "it still waits");
        sum.change(1, 3, at(6));
        sum.change(3, 0, at(10));
        sum.turn(at(99));
        assert_eq!((sum.waiting, sum.begun, sum.seconds), (0, 3, 6.0 + 12.0));
    }

    #[test]
    fn every_guard_has_a_place_and_lines_of_its_own() {
        let all: Vec<Guard> = Guard::GATEWAY.into_iter().chain(Guard::AGENT).collect();
        let mut places: Vec<usize> = all.iter().map(|guard| *guard as usize).collect();
        places.sort_unstable();
        assert_eq!(places, (0..Guard::COUNT).collect::<Vec<_>>());
        let mut waiters = Waiters::none(Guard::Credit);
        waiters.set_for(Some(Guard::Credit));
        assert!(lines(&Guard::AGENT).contains("tidegate_waiting{guard=\"credit\"} 1\n"), "{}", lines(&Guard::AGENT));
        waiters.set_for(None);
        let page = lines(&all);
        assert!(page.contains("tidegate_waiting{guard=\"credit\"} 0\n"), "{page}");
        assert_eq!(page.matches("tidegate_wait_seconds_total{guard=").count(), Guard::COUNT, "{page}");
    }
}
