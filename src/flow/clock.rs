//! The only place that asks the machine for the time, so that simulations can bring their own.

use std::time::{Duration, Instant, SystemTime};

use crate::types::Micros;

/// A source of time.
pub trait Clock: Send + Sync + 'static {
    /// Wall-clock time. May jump.
    fn wall(&self) -> Micros;
    /// Time since some fixed moment of this process. Never goes back.
    fn monotonic(&self) -> Duration;
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
}
