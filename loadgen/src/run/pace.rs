//! When writes are due. Pure.
//!
//! Writes of an open loop come when they come, however slow the other side is, as those of a guest do. A latency counts
//! from the moment at which a write was due and not from when it could be sent at last: otherwise a gateway that stalls
//! would be asked less often while it stalls, and look quick.

use std::time::Duration;

/// The schedule of one disk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Zero for a closed loop: the next write is due when the one before was taken.
    pub bytes_per_second: f64,
    /// For so long the rate grows from nothing to the whole, evenly.
    pub ramp: Duration,
    /// Writes come in the first part of each period only, and so much faster.
    pub burst: Option<(Duration, Duration)>,
    /// Before the first write, so that disks do not all write in the same moment.
    pub phase: Duration,
}

impl Pace {
    /// When the write is due before which `bytes` were written; `None` for a closed loop.
    #[must_use]
    pub fn due(&self, bytes: u64) -> Option<Duration> {
        if self.bytes_per_second <= 0.0 {
            return None;
        }
        let even = bytes as f64 / self.bytes_per_second;
        let ramp = self.ramp.as_secs_f64();
        // While it grows, t seconds carry rate × t² ÷ (2 × ramp).
        let seconds = if even < ramp / 2.0 { (2.0 * ramp * even).sqrt() } else { even + ramp / 2.0 };
        Some(self.phase + self.bursts(Duration::from_secs_f64(seconds)))
    }

    fn bursts(&self, even: Duration) -> Duration {
        let Some((on, period)) = self.burst else { return even };
        let share = on.as_secs_f64() / period.as_secs_f64();
        let active = even.as_secs_f64() * share;
        let rounds = (active / on.as_secs_f64()).floor();
        Duration::from_secs_f64(rounds * period.as_secs_f64() + (active - rounds * on.as_secs_f64()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVEN: Pace = Pace { bytes_per_second: 100.0, ramp: Duration::ZERO, burst: None, phase: Duration::ZERO };

    fn seconds(pace: &Pace, bytes: u64) -> f64 {
        pace.due(bytes).expect("an open loop").as_secs_f64()
    }

    #[test]
    fn a_rate_is_kept_and_a_ramp_costs_half_of_itself() {
        assert!((seconds(&EVEN, 1000) - 10.0).abs() < 1e-9);
        let ramp = Pace { ramp: Duration::from_secs(10), ..EVEN };
        assert!((seconds(&ramp, 500) - 10.0).abs() < 1e-6, "at its end half of the rate was written");
        assert!((seconds(&ramp, 125) - 5.0).abs() < 1e-6);
        assert!((seconds(&ramp, 1500) - 20.0).abs() < 1e-6);
        assert_eq!(Pace { bytes_per_second: 0.0, ..EVEN }.due(1), None);
    }

    #[test]
    fn bursts_keep_the_mean_rate_and_the_quiet() {
        let burst = Pace { burst: Some((Duration::from_secs(1), Duration::from_secs(10))), ..EVEN };
        for bytes in 0..5000 {
            let at = seconds(&burst, bytes);
            assert!(at % 10.0 < 1.0 + 1e-6, "{bytes} at {at}");
            assert!((at - seconds(&EVEN, bytes)).abs() < 10.0, "{bytes} at {at}");
        }
        let late = Pace { phase: Duration::from_secs(3), ..EVEN };
        assert!((seconds(&late, 0) - 3.0).abs() < 1e-9);
    }
}
