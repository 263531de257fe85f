//! The only place that asks the machine for the time, so that simulations can bring their own.

use std::time::{Duration, Instant, SystemTime};

use crate::types::Micros;

/// A source of time.
pub trait Clock: Send + Sync + 'static {
    /// Wall-clock time. May jump.
    fn wall(&self) -> Micros;
    /// Time since some fixed moment of this process. Never goes back.
    fn monotonic(&self) -> Duration;
    /// The same, the time included in which the machine slept: whoever measures by it what others may have done meanwhile is not
    /// fooled by a sleep. A clock of a machine that never sleeps has one for both.
    fn boot(&self) -> Duration {
        self.monotonic()
    }
}

/// The machine's own clocks.
#[derive(Debug, Clone)]
pub struct SystemClock {
    started: Instant,
}

impl SystemClock {
    /// Starts the monotonic clock at zero.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the machine's clock")]
    pub fn new() -> Self {
        Self { started: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the machine's clock")]
    fn wall(&self) -> Micros {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Micros(since.as_micros() as u64)
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }

    fn boot(&self) -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_that_counts_sleep_runs_with_the_other_while_nobody_sleeps() {
        let clock = SystemClock::new();
        let (boot, monotonic) = (clock.boot(), clock.monotonic());
        std::thread::sleep(Duration::from_millis(20));
        let (boot, monotonic) = (clock.boot() - boot, clock.monotonic() - monotonic);
        assert!(boot >= Duration::from_millis(20) && monotonic >= Duration::from_millis(20), "{boot:?} {monotonic:?}");
    }
}
