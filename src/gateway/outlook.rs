//! Where the journal is heading: when it is full, or when its backlog is gone, if things go on as they did of late. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use crate::journal::Space;

/// How far back "of late" reaches: longer than a burst, shorter than an operator's patience.
const WINDOW: Duration = Duration::from_secs(120);
/// Nothing is said about the future before so much of the past is known.
const PAST_MIN: Duration = Duration::from_secs(10);
/// A journal that changes by less than this per second stands still: segments come and go in steps.
const STILL_BYTES_PER_SECOND: f64 = 64.0 * 1024.0;
/// Samples kept: at one in five seconds they cover the window.
const SAMPLES_MAX: usize = 32;

/// Fill levels of late.
#[derive(Debug, Default)]
pub struct Outlook {
    samples: VecDeque<(Duration, u64)>,
}

/// What is to be expected.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Heading {
    /// How much the journal grew per second of late; negative while it drains.
    pub growth_bytes_per_second: f64,
    /// Seconds until it is full; none if it does not grow.
    pub full_seconds: Option<f64>,
    /// Seconds until its backlog is gone; none if it does not shrink.
    pub drained_seconds: Option<f64>,
}

impl Outlook {
    /// Takes how full the journal is at `now`.
    pub fn take(&mut self, now: Duration, used_bytes: u64) {
        while self.samples.front().is_some_and(|(at, _)| now.saturating_sub(*at) > WINDOW) {
            self.samples.pop_front();
        }
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back((now, used_bytes));
    }

    /// Where it is heading from `space`; none before enough is known.
    #[must_use]
    pub fn heading(&self, space: Space) -> Option<Heading> {
        let (first, last) = (self.samples.front()?, self.samples.back()?);
        let past = last.0.saturating_sub(first.0);
        if past < PAST_MIN {
            return None;
        }
        let growth_bytes_per_second = (last.1 as f64 - first.1 as f64) / past.as_secs_f64();
        let room_bytes = space.capacity_bytes.saturating_sub(space.used_bytes) as f64;
        let full_seconds =
            (growth_bytes_per_second > STILL_BYTES_PER_SECOND).then(|| room_bytes / growth_bytes_per_second);
        let drained_seconds = (growth_bytes_per_second < -STILL_BYTES_PER_SECOND)
            .then(|| space.used_bytes as f64 / -growth_bytes_per_second);
        Some(Heading { growth_bytes_per_second, full_seconds, drained_seconds })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Level;

    const MIB: u64 = 1 << 20;

    fn heading(levels: &[(u64, u64)]) -> Option<Heading> {
        let mut outlook = Outlook::default();
        for (second, used_mib) in levels {
            outlook.take(Duration::from_secs(*second), used_mib * MIB);
        }
        let used_bytes = levels.last().map_or(0, |(_, used_mib)| used_mib * MIB);
        outlook.heading(Space { used_bytes, capacity_bytes: 1000 * MIB, level: Level::Low })
    }

    #[test]
    fn a_growing_journal_will_be_full_and_a_shrinking_one_empty() {
        let full = heading(&[(0, 100), (5, 150), (10, 200)]).expect("known");
        assert_eq!((full.full_seconds, full.drained_seconds), (Some(80.0), None));
        let drained = heading(&[(0, 400), (20, 200)]).expect("known");
        assert_eq!((drained.full_seconds, drained.drained_seconds), (None, Some(20.0)));
    }

    #[test]
    fn a_journal_that_stands_still_has_no_end_and_little_is_said_of_a_short_past() {
        let still = heading(&[(0, 100), (60, 101)]).expect("known");
        assert_eq!((still.full_seconds, still.drained_seconds), (None, None));
        assert_eq!(heading(&[(0, 100), (9, 900)]), None);
        assert_eq!(heading(&[]), None);
    }

    #[test]
    fn what_was_long_ago_does_not_count() {
        let levels: Vec<(u64, u64)> = (0..100).map(|step| (step * 5, if step < 50 { step } else { 50 })).collect();
        let still = heading(&levels).expect("known");
        assert_eq!(still.growth_bytes_per_second, 0.0);
    }
}
