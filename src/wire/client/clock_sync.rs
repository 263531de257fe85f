//! The offset between the gateway's clock and this machine's, from pings. Pure: times come in as arguments.
//!
//! A ping measures where the gateway's wall clock stands against this machine's *monotonic* clock, so a wall clock that
//! is set or jumps here changes the answer at once and correctly. The truth lies within half the round trip; of the
//! recent samples the one with the smallest error counts, where a sample's error grows with its age because two clocks
//! drift apart.

use std::collections::VecDeque;
use std::time::Duration;

use crate::types::Micros;

/// How far the gateway's wall clock is ahead of this machine's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockOffset {
    /// Gateway's time minus this machine's, in microseconds.
    pub offset_micros: i64,
    /// How far that may be off, in microseconds: half the round trip of the best sample, and drift since.
    pub uncertainty_micros: u32,
}

/// Samples kept: enough that one quiet moment of the network is among them.
const SAMPLES_MAX: usize = 16;
/// Two clocks of ordinary machines drift apart by at most this much per second.
const DRIFT_MICROS_PER_SECOND: u64 = 100;

#[derive(Debug, Clone, Copy)]
struct Sample {
    /// Gateway's wall clock minus this machine's monotonic clock.
    ahead_micros: i64,
    error_micros: u64,
    taken: Duration,
}

impl Sample {
    fn error_at(&self, now: Duration) -> u64 {
        let age = now.saturating_sub(self.taken);
        self.error_micros + (age.as_micros() as u64).saturating_mul(DRIFT_MICROS_PER_SECOND) / 1_000_000
    }
}

/// Recent samples.
#[derive(Debug, Default)]
pub(super) struct ClockSync {
    samples: VecDeque<Sample>,
}

impl ClockSync {
    /// Takes the answer to a ping: sent at `asked` and answered at `answered` of this machine's monotonic clock; the
    /// gateway read it at `received` and wrote the answer at `sent` of its wall clock.
    pub(super) fn take(&mut self, asked: Duration, answered: Duration, received: Micros, sent: Micros) {
        let round_trip = answered.saturating_sub(asked).as_micros() as u64;
        let held = sent.0.saturating_sub(received.0).min(round_trip);
        let middle = asked.as_micros() as i64 + (round_trip / 2) as i64;
        // Halved before added: times near the end of u64 come only from a broken gateway, and must not overflow.
        let gateway = received.0 / 2 + sent.0 / 2;
        let ahead_micros = i64::try_from(gateway).unwrap_or(i64::MAX).saturating_sub(middle);
        let error_micros = (round_trip - held) / 2 + 1;
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample { ahead_micros, error_micros, taken: answered });
    }

    /// The offset at this moment of the two local clocks; with no sample yet, zero with unbounded uncertainty.
    pub(super) fn offset(&self, wall: Micros, monotonic: Duration) -> ClockOffset {
        let best = self.samples.iter().min_by_key(|sample| sample.error_at(monotonic));
        best.map_or(ClockOffset { offset_micros: 0, uncertainty_micros: u32::MAX }, |best| ClockOffset {
            offset_micros: best
                .ahead_micros
                .saturating_add(monotonic.as_micros() as i64)
                .saturating_sub(i64::try_from(wall.0).unwrap_or(i64::MAX)),
            uncertainty_micros: u32::try_from(best.error_at(monotonic)).unwrap_or(u32::MAX),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_truth_lies_within_the_uncertainty_however_lopsided_the_path() {
        // The gateway's clock is ahead by exactly 5 s of a local wall clock that equals the monotonic one.
        for (there, back) in [(0, 40), (40, 0), (20, 20), (1, 3)] {
            let mut sync = ClockSync::default();
            let at_gateway = Micros(ms(5_000 + 100 + there).as_micros() as u64);
            sync.take(ms(100), ms(100 + there + back), at_gateway, at_gateway);
            let now = ms(100 + there + back);
            let offset = sync.offset(Micros(now.as_micros() as u64), now);
            let error = (offset.offset_micros - 5_000_000).unsigned_abs();
            assert!(error <= u64::from(offset.uncertainty_micros), "{there}/{back}: off by {error}, {offset:?}");
        }
    }

    #[test]
    fn the_shortest_round_trip_counts_until_it_is_too_old() {
        let mut sync = ClockSync::default();
        sync.take(ms(0), ms(2), Micros(1_001_000), Micros(1_001_000));
        sync.take(ms(10), ms(50), Micros(1_011_000), Micros(1_011_000));
        assert!(sync.offset(Micros(50_000), ms(50)).uncertainty_micros < 1_100);
        // After half an hour the short sample has drifted by more than the long one's error.
        let later = ms(1_800_000);
        sync.take(later, later + ms(40), Micros(1_801_020_000), Micros(1_801_020_000));
        let offset = sync.offset(Micros(1_800_040_000), later + ms(40));
        assert_eq!((offset.offset_micros, offset.uncertainty_micros), (1_000_000, 20_001));
    }

    #[test]
    fn a_jump_of_the_local_wall_clock_moves_the_offset_at_once() {
        let mut sync = ClockSync::default();
        sync.take(ms(0), ms(2), Micros(9_001_000), Micros(9_001_000));
        assert_eq!(sync.offset(Micros(10_000), ms(10)).offset_micros, 9_000_000);
        assert_eq!(sync.offset(Micros(3_610_010_000), ms(10)).offset_micros, 9_000_000 - 3_610_000_000);
    }

    #[test]
    fn a_gateway_that_answers_nonsense_breaks_nothing() {
        let mut sync = ClockSync::default();
        for (received, sent) in [(u64::MAX, 0), (0, u64::MAX), (u64::MAX, u64::MAX)] {
            sync.take(ms(5), ms(1), Micros(received), Micros(sent));
            let _ = sync.offset(Micros(u64::MAX), ms(1));
        }
        assert_eq!(ClockSync::default().offset(Micros(1), ms(1)).uncertainty_micros, u32::MAX);
    }
}
