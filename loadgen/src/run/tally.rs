//! Latencies and bytes of all disks together, cheap to add to from many threads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::book::Level;

/// Parts that threads spread over, so that they seldom wait for each other.
const PARTS: usize = 8;
/// Longest latency that is told apart: an hour.
const MICROS_MAX: u64 = 3_600_000_000;
/// Significant digits of a latency.
const DIGITS: u8 = 3;

/// Percentiles of latencies, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// How many were measured.
    pub count: u64,
    /// Half of them were not longer.
    pub p50: f64,
    /// 99 of 100 were not longer.
    pub p99: f64,
    /// 999 of 1,000 were not longer.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

impl Latency {
    /// Of a histogram of microseconds.
    pub(crate) fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e6;
        let max = histogram.max() as f64 / 1e6;
        Self { count: histogram.len(), p50: at(0.5), p99: at(0.99), p999: at(0.999), max }
    }
}

/// Latencies of both levels.
#[derive(Clone, Debug)]
pub struct Latencies {
    journaled: Histogram<u64>,
    vaulted: Histogram<u64>,
}

impl Default for Latencies {
    fn default() -> Self {
        let new = || match Histogram::new_with_bounds(1, MICROS_MAX, DIGITS) {
            Ok(histogram) => histogram,
            Err(_) => unreachable!("these bounds and digits are among those that are allowed"),
        };
        Self { journaled: new(), vaulted: new() }
    }
}

impl Latencies {
    fn record(&mut self, level: Level, latency: Duration) {
        let histogram = match level {
            Level::Journaled => &mut self.journaled,
            Level::Vaulted => &mut self.vaulted,
        };
        histogram.saturating_record((latency.as_micros() as u64).clamp(1, MICROS_MAX));
    }

    /// Adds what `other` holds.
    pub fn add(&mut self, other: &Self) {
        // Both have the same bounds.
        let _ = (self.journaled.add(&other.journaled), self.vaulted.add(&other.vaulted));
    }

    /// From when a record was due until it was journaled.
    #[must_use]
    pub fn journaled(&self) -> Latency {
        Latency::of(&self.journaled)
    }

    /// From when a record was due until it was vaulted.
    #[must_use]
    pub fn vaulted(&self) -> Latency {
        Latency::of(&self.vaulted)
    }
}

/// The sum over all disks.
#[derive(Debug, Default)]
pub struct Tally {
    parts: [Mutex<Latencies>; PARTS],
    /// Payload handed to connections.
    pub sent_bytes: AtomicU64,
    /// Records handed to connections.
    pub sent_records: AtomicU64,
    /// Payload acked as journaled.
    pub journaled_bytes: AtomicU64,
    /// Payload acked as vaulted.
    pub vaulted_bytes: AtomicU64,
    /// Records acked as vaulted.
    pub vaulted_records: AtomicU64,
    /// By how much this program itself was late at most, in microseconds.
    pub late_micros_max: AtomicU64,
    /// Records acked as journaled.
    pub journaled_records: AtomicU64,
}

impl Tally {
    /// A part to add to, for the disk of this number.
    pub fn part(&self, disk: usize) -> Adding<'_> {
        Adding { tally: self, part: self.parts[disk % PARTS].lock() }
    }

    /// What was measured since the last call.
    #[must_use]
    pub fn take(&self) -> Latencies {
        let mut all = Latencies::default();
        for part in &self.parts {
            let mut part = part.lock();
            all.add(&part);
            part.journaled.reset();
            part.vaulted.reset();
        }
        all
    }
}

/// A part that is being added to.
pub struct Adding<'a> {
    tally: &'a Tally,
    part: parking_lot::MutexGuard<'a, Latencies>,
}

impl Adding<'_> {
    /// A record reached `level` so long after it was due.
    pub fn add(&mut self, level: Level, latency: Duration, payload_bytes: u32) {
        self.part.record(level, latency);
        let (bytes, records) = match level {
            Level::Journaled => (&self.tally.journaled_bytes, &self.tally.journaled_records),
            Level::Vaulted => (&self.tally.vaulted_bytes, &self.tally.vaulted_records),
        };
        bytes.fetch_add(u64::from(payload_bytes), Ordering::Relaxed);
        records.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_of_all_parts_come_together_and_are_taken_once() {
        let tally = Tally::default();
        for disk in 0..1000 {
            tally.part(disk).add(Level::Journaled, Duration::from_millis(disk as u64 + 1), 7);
        }
        let taken = tally.take().journaled();
        assert_eq!(taken.count, 1000);
        assert!((taken.p99 - 0.99).abs() < 0.01 && (taken.max - 1.0).abs() < 0.01, "{taken:?}");
        assert_eq!(tally.journaled_bytes.load(Ordering::Relaxed), 7000);
        assert_eq!(tally.take().journaled().count, 0);
    }
}
