//! How many bytes per second may go where: limits from the configuration and its calendar, or set by hand for a while.
//!
//! ```text
//!  configuration, calendar ─┐                       ┌─► upload:  the uploader starts no further batch
//!                           ├─► what is in force ───┼─► receive: one disk after the other gets credit
//!  by hand, for a while ────┘   (again each second) └─► disk:    this disk gets no credit
//! ```
//!
//! - A limit turns into backpressure and nothing else: batches that may not start stand in the upload queue, whose bounds hold
//!   up the feeder, so the journal fills and credit shrinks; a disk without credit is like one whose gateway has no room. No
//!   buffer grows, nothing is dropped, and no guest waits.
//! - Under the limit of all, disks take turns, and who sends little goes first: those that send much do not keep the others
//!   from their recovery points. Turns are the disks', not the agents': a recovery point is a disk's, and a machine with many
//!   disks is whole only with all of them. A disk has its turns and its limit on whatever streams it comes.
//! - What is in force counts at once, also for those who wait already.
//! - What was set by hand outlives a reload of the configuration and ends by itself, so nobody has to remember it.
//! - The calendar is looked at each second by the wall clock, so a clock that is set right is followed; what was set by hand
//!   is counted by the monotonic one.
//!
//! Not counted: requests' heads, indexes of lanes and other small objects beside batches, what readers fetch. At a drain the
//! limits stay.

pub mod calendar;
pub mod door;
pub mod settings;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::Notify;

use self::calendar::{Calendar, Setting, Settings, What};
use crate::config::show_rate;
use crate::flow::{Clock, Drain, Limiter, Pace, Rate};
use crate::telemetry::names;
use crate::types::Micros;

/// How often the calendar is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// A limit that somebody set for a while.
#[derive(Debug, Clone, Copy)]
struct ByHand {
    setting: Setting,
    /// Monotonic time at which it ends.
    ends: Duration,
}

#[derive(Debug, Default)]
struct State {
    calendar: Calendar,
    by_hand: [Option<ByHand>; 3],
}

/// One limit, as `/v1/bandwidth` and `/v1/status` have it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LimitView {
    /// `upload`, `receive` or `disk`.
    pub limit: &'static str,
    /// What is in force; none without a limit.
    pub bytes_per_second: Option<u64>,
    /// Who says so: `config`, `calendar` or `hand`.
    pub by: &'static str,
    /// When something else will be in force, as far as that is known.
    pub until: Option<String>,
    /// Bytes that wait because of it now; for `receive` and `disk` those that agents asked for.
    pub held_bytes: u64,
    /// Whether it is what holds things up.
    pub holds: bool,
    /// The same for people.
    pub words: String,
}

/// What is in force of one limit.
struct InForce {
    setting: Setting,
    by: &'static str,
    /// When what was set by hand ends.
    until: Option<Micros>,
}

impl State {
    fn in_force(&self, what: What, wall: Micros, monotonic: Duration) -> InForce {
        if let Some(ByHand { setting, ends }) = self.by_hand[what as usize] {
            let left = ends.saturating_sub(monotonic);
            return InForce { setting, by: "hand", until: Some(Micros(wall.0 + left.as_micros() as u64)) };
        }
        let (setting, by_calendar) = self.calendar.at(what, wall);
        InForce { setting, by: if by_calendar { "calendar" } else { "config" }, until: None }
    }

    /// When that ends, as far as it is known: the search goes through all edges of the calendar, so only who shows it asks.
    fn until(&self, in_force: &InForce, what: What, wall: Micros) -> Option<Micros> {
        in_force.until.or_else(|| self.calendar.until(what, wall))
    }
}

/// The limits of a gateway.
#[derive(Debug)]
pub struct Bandwidth {
    clock: DebugClock,
    rates: [Arc<Rate>; 3],
    upload: Arc<Limiter>,
    receive: Arc<Limiter>,
    state: Mutex<State>,
    news: Notify,
}

/// A clock says nothing of itself.
struct DebugClock(Arc<dyn Clock>);

impl std::fmt::Debug for DebugClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

impl Bandwidth {
    /// What `calendar` says, in force from now on.
    #[must_use]
    pub fn new(calendar: Calendar, clock: &Arc<dyn Clock>) -> Arc<Self> {
        let rates = What::ALL.map(|_| Rate::new(Arc::clone(clock)));
        let (upload, receive) =
            (Limiter::new(&rates[What::Upload as usize]), Limiter::new(&rates[What::Receive as usize]));
        let state = Mutex::new(State { calendar, by_hand: [None; 3] });
        let clock = DebugClock(Arc::clone(clock));
        let bandwidth = Arc::new(Self { clock, rates, upload, receive, state, news: Notify::new() });
        bandwidth.apply();
        bandwidth
    }

    /// What uploads keep to.
    #[must_use]
    pub fn upload(&self) -> Pace {
        Pace::new(vec![Arc::clone(&self.upload)])
    }

    /// What one more disk keeps to: a limit of its own, and that of all.
    #[must_use]
    pub fn disk(&self) -> Pace {
        Pace::new(vec![Limiter::new(&self.rates[What::Disk as usize]), Arc::clone(&self.receive)])
    }

    /// Another plan, in force from now on.
    pub fn plan(&self, calendar: Calendar) {
        self.change(|state| state.calendar = calendar);
    }

    /// Sets limits by hand for `time`; those that are unsaid stay as they are.
    pub fn set(&self, settings: Settings, time: Duration) {
        let ends = self.clock.0.monotonic().saturating_add(time);
        self.change(|state| {
            for (by_hand, setting) in state.by_hand.iter_mut().zip(settings) {
                if setting != Setting::Unsaid {
                    *by_hand = Some(ByHand { setting, ends });
                }
            }
        });
    }

    /// Ends what was set by hand.
    pub fn reset(&self) {
        self.change(|state| state.by_hand = [None; 3]);
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock());
        self.apply();
        self.news.notify_one();
    }

    /// Puts into force what the plan and the clock say. Whether anything is to be watched from now on.
    fn apply(&self) -> bool {
        let (wall, monotonic) = (self.clock.0.wall(), self.clock.0.monotonic());
        let mut state = self.state.lock();
        for by_hand in &mut state.by_hand {
            *by_hand = by_hand.filter(|by_hand| monotonic < by_hand.ends);
        }
        for what in What::ALL {
            let in_force = state.in_force(what, wall, monotonic);
            let (rate, limit) = (&self.rates[what as usize], in_force.setting.limit());
            if rate.set(limit) {
                let shown = limit.map_or_else(|| "none".to_owned(), show_rate);
                tracing::info!(limit = what.as_str(), rate = shown, by = in_force.by, "bandwidth limit in force");
            }
            let labels = [("limit", what.as_str())];
            metrics::gauge!(names::BANDWIDTH_LIMIT, &labels).set(limit.map_or(f64::INFINITY, |limit| limit as f64));
            metrics::gauge!(names::BANDWIDTH_HELD_BYTES, &labels).set(rate.held_bytes() as f64);
        }
        let by_hand = state.by_hand.iter().any(Option::is_some);
        by_hand || !state.calendar.entries.is_empty() || self.rates.iter().any(|rate| rate.get().is_some())
    }

    /// Keeps in force what the plan says, until `drain`; what is in force then stays.
    pub async fn run(self: Arc<Self>, mut drain: Drain) {
        loop {
            let watched = self.apply();
            let look = async {
                match watched {
                    true => tokio::time::sleep(LOOK).await,
                    false => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = drain.wait() => return,
                () = self.news.notified() => {}
                () = look => {}
            }
        }
    }

    /// All limits.
    #[must_use]
    pub fn view(&self) -> Vec<LimitView> {
        let (wall, monotonic) = (self.clock.0.wall(), self.clock.0.monotonic());
        let state = self.state.lock();
        What::ALL.map(|what| self.view_of(&state, what, wall, monotonic)).into()
    }

    fn view_of(&self, state: &State, what: What, wall: Micros, monotonic: Duration) -> LimitView {
        let in_force = state.in_force(what, wall, monotonic);
        let until = state.until(&in_force, what, wall);
        let InForce { setting, by, .. } = in_force;
        let (rate, limit) = (&self.rates[what as usize], setting.limit());
        let mut words = match limit {
            Some(limit) => format!("{} held to {}", what.words(), show_rate(limit)),
            None => format!("{} not limited", what.words()),
        };
        match by {
            "hand" => words += " by hand",
            "calendar" => words += " by the calendar",
            _ => {}
        }
        if let Some(until) = until {
            words += &format!(" until {}", state.calendar.shown(until, wall));
        }
        LimitView {
            limit: what.as_str(),
            bytes_per_second: limit,
            by,
            until: until.map(|until| until.to_string()),
            held_bytes: rate.held_bytes(),
            holds: rate.holds(),
            words,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::calendar::Entry;
    use super::*;

    const MIB: u64 = 1 << 20;
    /// Friday, 2026-11-27, 17:59:30 UTC.
    const FRIDAY: u64 = 1_795_802_370;

    struct Hand(AtomicU64);

    impl Clock for Hand {
        fn wall(&self) -> Micros {
            Micros((FRIDAY + self.0.load(Ordering::SeqCst)) * 1_000_000)
        }

        fn monotonic(&self) -> Duration {
            Duration::from_secs(self.0.load(Ordering::SeqCst))
        }
    }

    fn upload(setting: Setting) -> Settings {
        [setting, Setting::Unsaid, Setting::Unsaid]
    }

    fn bandwidth() -> (Arc<Hand>, Arc<Bandwidth>) {
        let hand = Arc::new(Hand(AtomicU64::new(0)));
        let settings = upload(Setting::BytesPerSecond(50 * MIB));
        let entries = vec![Entry { days: 0b001_1111, from: 8 * 60, to: 18 * 60, settings }];
        let calendar = Calendar { base: upload(Setting::BytesPerSecond(200 * MIB)), entries, ..Calendar::default() };
        let bandwidth = Bandwidth::new(calendar, &(Arc::clone(&hand) as Arc<dyn Clock>));
        (hand, bandwidth)
    }

    #[test]
    fn the_calendar_is_followed_and_what_is_set_by_hand_ends_by_itself() {
        let (hand, bandwidth) = bandwidth();
        let in_force = || {
            bandwidth.apply();
            let view = bandwidth.view();
            (bandwidth.rates[0].get().map(|rate| rate / MIB), view[0].words.clone())
        };
        assert_eq!(in_force(), (Some(50), "uploads held to 50 MiB/s by the calendar until 18:00 UTC".into()));
        hand.0.store(30, Ordering::SeqCst);
        let weekend = "uploads held to 200 MiB/s until 2026-11-30 08:00 UTC";
        assert_eq!(in_force(), (Some(200), weekend.into()));
        bandwidth.set(upload(Setting::BytesPerSecond(MIB)), Duration::from_secs(3600));
        assert_eq!(bandwidth.rates[0].get(), Some(MIB), "at once");
        assert_eq!(in_force().1, "uploads held to 1 MiB/s by hand until 19:00 UTC");
        bandwidth.plan(Calendar::default());
        assert_eq!(in_force().0, Some(1), "a reload leaves it");
        hand.0.store(30 + 3600, Ordering::SeqCst);
        assert_eq!(in_force(), (None, "uploads not limited".into()));
        bandwidth.set(upload(Setting::BytesPerSecond(MIB)), Duration::from_secs(3600));
        bandwidth.reset();
        assert_eq!(in_force().0, None);
    }

    #[test]
    fn what_waits_is_told_and_a_limit_that_holds_nothing_is_no_bottleneck() {
        let (_hand, bandwidth) = bandwidth();
        assert!(bandwidth.view().iter().all(|view| !view.holds));
        let pace = bandwidth.upload();
        pace.charge(100 * MIB);
        let mut hold = pace.hold();
        assert!(hold.look(16 * MIB, 0).is_some());
        let view = bandwidth.view();
        assert_eq!((view[0].holds, view[0].held_bytes), (true, 16 * MIB));
        assert!(!view[1].holds && !view[2].holds);
        bandwidth.set([Setting::Free; 3], Duration::from_secs(60));
        assert_eq!(hold.look(16 * MIB, 0), None, "also for those who wait already");
        let view = bandwidth.view();
        assert_eq!((view[0].bytes_per_second, view[0].by, view[0].holds), (None, "hand", false));
    }
}
