//! How dear the packing may be at present: the pure core of `codec = "auto"`. No clock, no threads.
//!
//! Two shares of the time since the last look decide:
//!
//! - **held up**: batches waited for a place in the upload window. The uplink is the bottleneck, and each byte that
//!   packing saves is a byte sooner in the vault.
//! - **busy**: the pipeline's threads worked, by the wall clock. So what other threads and processes take of the
//!   processors counts too: it makes the same work last longer.
//!
//! ```text
//!   held up for 3 looks, and the next rung would keep the threads at most half busy   ──►  one rung up
//!   threads busy, and the uplink waits for them                                       ──►  one rung down
//!   nothing was held up for half a minute                                             ──►  one rung down
//! ```
//!
//! Between the thresholds it stays where it is. A rung that had to be left soon after it was climbed is left alone for
//! ten seconds, and for twice as long after each further time; likewise the half minute doubles where the uplink was
//! held up again as soon as less was packed. So a load that fits between two rungs costs a change in ten minutes.
//!
//! A backlog is no case of its own: with a fast store the threads are busy and the cheapest codec empties it soonest, with
//! a slow one the dearest that keeps up does. While the store is away nothing is packed, and so nothing is decided.

use std::time::Duration;

use super::codec::Packing;

/// A kind of packing, and what it costs a thread in terms of LZ4. Only the proportions matter; measured on files of a
/// Linux system. Levels left out save less than a percent over the one before.
const RUNGS: [(Packing, f64); 7] = [
    (Packing::Lz4, 1.0),
    (Packing::Zstd(1), 1.5),
    (Packing::Zstd(2), 1.8),
    (Packing::Zstd(3), 2.2),
    (Packing::Zstd(5), 5.0),
    (Packing::Zstd(6), 6.4),
    (Packing::Zstd(9), 10.0),
];

/// Shares are taken over this time at least: many messages on any line worth the name.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The uplink is the bottleneck from this share on, and is not up to the other.
const HELD_UP_MIN: f64 = 0.5;
const CALM_MAX: f64 = 0.05;
/// Looks in a row before a climb: a burst of a second is no slow line.
const CLIMB_LOOKS: u32 = 3;
/// How busy the next rung may make the threads: receiving and journaling need processors as well.
const CLIMB_BUSY_MAX: f64 = 0.5;
/// How busy the threads may be while the uplink waits for them, and in any case.
const BUSY_MAX: f64 = 0.75;
const BUSY_MAX_HELD_UP: f64 = 0.9;
/// First wait after a climb that failed, and first calm before packing less; both double up to the longest.
const CLIMB_PAUSE_MIN: Duration = Duration::from_secs(10);
const CALM_MIN: Duration = Duration::from_secs(30);
const WAIT_MAX: Duration = Duration::from_secs(600);

/// See the module's head. Times are those of one monotonic clock.
#[derive(Debug)]
pub struct Ladder {
    threads: f64,
    rung: usize,
    looked_at: Option<Duration>,
    held_up_before: Duration,
    worked: Duration,
    held_up_looks: u32,
    climbed_at: Duration,
    climb_not_before: Duration,
    climb_pause: Duration,
    calm: Duration,
    calm_needed: Duration,
    calm_left_at: Option<Duration>,
}

/// What one look saw and did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// How to pack from now on.
    pub packing: Packing,
    /// Share of the time in which batches were held up by the uplink.
    pub held_up: f64,
    /// Share of the threads' time in which they worked.
    pub busy: f64,
}

impl Ladder {
    /// The lowest rung, for a pipeline of so many threads.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        Self {
            threads: threads.max(1) as f64,
            rung: 0,
            looked_at: None,
            held_up_before: Duration::ZERO,
            worked: Duration::ZERO,
            held_up_looks: 0,
            climbed_at: Duration::ZERO,
            climb_not_before: Duration::ZERO,
            climb_pause: CLIMB_PAUSE_MIN,
            calm: Duration::ZERO,
            calm_needed: CALM_MIN,
            calm_left_at: None,
        }
    }

    /// How to pack at present.
    #[must_use]
    pub fn packing(&self) -> Packing {
        RUNGS[self.rung].0
    }

    /// A thread worked for so long.
    pub fn worked(&mut self, took: Duration) {
        self.worked += took;
    }

    /// Decides, at most once a second. `held_up` is the sum of the time in which batches were held up by the uplink.
    /// Returns what was seen if the packing changed.
    pub fn look(&mut self, now: Duration, held_up: Duration) -> Option<Step> {
        let Some(looked_at) = self.looked_at else {
            (self.looked_at, self.held_up_before, self.worked) = (Some(now), held_up, Duration::ZERO);
            return None;
        };
        let passed = now.saturating_sub(looked_at);
        if passed < LOOK_EVERY {
            return None;
        }
        let share = |part: Duration, whole: f64| (part.as_secs_f64() / whole).min(1.0);
        let step = Step {
            packing: self.packing(),
            held_up: share(held_up.saturating_sub(self.held_up_before), passed.as_secs_f64()),
            busy: share(self.worked, passed.as_secs_f64() * self.threads),
        };
        (self.looked_at, self.held_up_before, self.worked) = (Some(now), held_up, Duration::ZERO);
        let before = self.rung;
        self.decide(now, passed, &step);
        (self.rung != before).then(|| Step { packing: self.packing(), ..step })
    }

    fn decide(&mut self, now: Duration, passed: Duration, seen: &Step) {
        self.held_up_looks = if seen.held_up >= HELD_UP_MIN { self.held_up_looks + 1 } else { 0 };
        // A long time without a message says little more than a short one.
        self.calm = if seen.held_up <= CALM_MAX { self.calm + passed.min(2 * LOOK_EVERY) } else { Duration::ZERO };
        let too_busy = seen.busy >= if seen.held_up >= HELD_UP_MIN { BUSY_MAX_HELD_UP } else { BUSY_MAX };
        if too_busy && self.rung > 0 {
            self.fall_back(now);
        } else if self.held_up_looks >= CLIMB_LOOKS && now >= self.climb_not_before {
            self.climb(now, seen.busy);
        } else if self.calm >= self.calm_needed && self.rung > 0 {
            self.rung -= 1;
            self.calm = Duration::ZERO;
            self.calm_left_at = Some(now);
        }
    }

    fn fall_back(&mut self, now: Duration) {
        let soon = now.saturating_sub(self.climbed_at) < 2 * self.climb_pause;
        self.climb_pause = if soon { (2 * self.climb_pause).min(WAIT_MAX) } else { CLIMB_PAUSE_MIN };
        self.climb_not_before = now + self.climb_pause;
        self.rung -= 1;
        self.held_up_looks = 0;
    }

    fn climb(&mut self, now: Duration, busy: f64) {
        let Some((_, next_cost)) = RUNGS.get(self.rung + 1) else { return };
        if busy * next_cost / RUNGS[self.rung].1 > CLIMB_BUSY_MAX {
            return;
        }
        if let Some(left_at) = self.calm_left_at.take() {
            let soon = now.saturating_sub(left_at) < 2 * self.calm_needed;
            self.calm_needed = if soon { (2 * self.calm_needed).min(WAIT_MAX) } else { CALM_MIN };
        }
        self.rung += 1;
        self.climbed_at = now;
        self.held_up_looks = 0;
    }
}

#[cfg(test)]
mod tests;
