//! The agent's clock as labels need it: the machine's, corrected by what the gateway's clock was found to say.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::time::Duration;

use super::queue::Stamp;
use crate::flow::Clock;
use crate::types::Micros;
use crate::wire::ClockOffset;

/// A clock with a correction that the connection keeps fresh. The last correction is kept while there is no gateway.
pub struct AgentClock {
    clock: Arc<dyn Clock>,
    offset_micros: AtomicI64,
    uncertainty_micros: AtomicU32,
}

impl AgentClock {
    /// A clock with no correction yet.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, offset_micros: AtomicI64::new(0), uncertainty_micros: AtomicU32::new(u32::MAX) }
    }

    /// The clock below.
    #[must_use]
    pub fn machine(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock)
    }

    /// Takes a measurement. The two parts are read apart from each other; a label between them is as good as either.
    pub fn correct(&self, measured: ClockOffset) {
        self.offset_micros.store(measured.offset_micros, Ordering::Relaxed);
        self.uncertainty_micros.store(measured.uncertainty_micros, Ordering::Relaxed);
    }

    /// Now.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        let wall = self.clock.wall().0;
        Stamp {
            label: Micros(wall.saturating_add_signed(self.offset_micros.load(Ordering::Relaxed))),
            uncertainty_micros: self.uncertainty_micros.load(Ordering::Relaxed),
            at: self.clock.monotonic(),
        }
    }

    /// Time since some fixed moment of this process.
    #[must_use]
    pub fn monotonic(&self) -> Duration {
        self.clock.monotonic()
    }
}
