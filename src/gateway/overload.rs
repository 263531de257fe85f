//! When this gateway asks agents to go elsewhere, and how many.
//!
//! Overload is a hint, never a refusal: an agent that has nowhere else to go stays, and is served as well as can be. One
//! agent is asked at a time, so that what it takes along shows before the next is asked.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::disks::Disks;
use super::live::Live;
use crate::flow::{Clock, Drain};
use crate::journal::{Journal, Level};
use crate::telemetry::names;

/// A journal that is full for so long has no passing peak: uploads do not keep up.
const FULL_FOR: Duration = Duration::from_secs(30);
/// Between two agents that are asked. What one takes along shows within a few seconds.
const ASK_EVERY: Duration = Duration::from_secs(2);

/// Whether a gateway has more than it can carry. Pure.
#[derive(Debug)]
struct Load {
    full_since: Option<Duration>,
}

impl Load {
    const fn new() -> Self {
        Self { full_since: None }
    }

    fn too_much(&mut self, level: Level, (streams, streams_target): (u64, u64), now: Duration) -> bool {
        self.full_since = if level == Level::Full { self.full_since.or(Some(now)) } else { None };
        let full = self.full_since.is_some_and(|since| now.saturating_sub(since) >= FULL_FOR);
        full || streams > streams_target
    }
}

/// Gives out turns to leave.
#[derive(Debug)]
pub struct Overload {
    turns: Semaphore,
}

impl Overload {
    /// One that asks nobody.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self { turns: Semaphore::new(0) })
    }

    /// Returns when one agent, the caller's, had better leave. The agents that came first are asked first.
    pub async fn turn(&self) {
        match self.turns.acquire().await {
            Ok(permit) => permit.forget(),
            Err(_) => std::future::pending().await,
        }
    }

    /// Looks at the load and gives out turns, until `drain`.
    pub async fn run(
        self: Arc<Self>,
        live: Arc<Live>,
        journal: Journal,
        disks: Arc<Disks>,
        clock: Arc<dyn Clock>,
        mut drain: Drain,
    ) {
        let mut load = Load::new();
        let level = journal.space_changed();
        let gauge = metrics::gauge!(names::OVERLOADED);
        let mut told = false;
        loop {
            let now = clock.monotonic();
            let too_much = load.too_much(*level.borrow(), (disks.streams_open(), live.streams_target()), now);
            gauge.set(f64::from(u8::from(too_much)));
            if told != too_much {
                tracing::warn!(too_much, streams = disks.streams_open(), "load of this gateway");
                told = too_much;
            }
            if !too_much {
                // One that nobody took was meant for another time.
                self.turns.forget_permits(1);
            } else if self.turns.available_permits() == 0 {
                self.turns.add_permits(1);
            }
            tokio::select! {
                biased;
                () = drain.wait() => return,
                () = tokio::time::sleep(ASK_EVERY) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_journal_counts_only_when_it_stays_full() {
        let (mut load, seconds, few) = (Load::new(), Duration::from_secs, (3, 10));
        assert!(!load.too_much(Level::Full, few, seconds(0)));
        assert!(!load.too_much(Level::Full, few, seconds(29)));
        assert!(!load.too_much(Level::High, few, seconds(30)));
        assert!(!load.too_much(Level::Full, few, seconds(31)));
        assert!(load.too_much(Level::Full, few, seconds(61)));
        assert!(load.too_much(Level::Low, (11, 10), seconds(62)) && !load.too_much(Level::Low, (10, 10), seconds(63)));
    }

    #[tokio::test]
    async fn a_turn_is_for_one_agent() {
        let overload = Overload::new();
        overload.turns.add_permits(1);
        overload.turn().await;
        assert_eq!(overload.turns.available_permits(), 0);
        assert!(tokio::time::timeout(Duration::from_millis(20), overload.turn()).await.is_err());
    }
}
