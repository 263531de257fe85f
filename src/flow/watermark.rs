//! A number that only grows, set by one side and awaited by the other: how far a record stream has come.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// A monotone counter with waiters. Many advances between two looks cost one wake-up.
#[derive(Debug, Default)]
pub struct Watermark {
    value: AtomicU64,
    changed: Notify,
}

impl Watermark {
    /// Starts at `value`.
    #[must_use]
    pub fn new(value: u64) -> Self {
        Self { value: AtomicU64::new(value), changed: Notify::new() }
    }

    /// The present value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.value.load(Ordering::Acquire)
    }

    /// Raises the value to at least `value` and wakes the waiters if that changed it.
    pub fn advance(&self, value: u64) {
        if self.value.fetch_max(value, Ordering::AcqRel) < value {
            self.changed.notify_waiters();
        }
    }

    /// Waits until the value exceeds `seen`, and returns it.
    pub async fn beyond(&self, seen: u64) -> u64 {
        loop {
            let notified = self.changed.notified();
            tokio::pin!(notified);
            // Registered before the look, or an advance in between would be missed.
            notified.as_mut().enable();
            let value = self.get();
            if value > seen {
                return value;
            }
            notified.await;
        }
    }
}
