//! A line that carries so many bytes per second and no more, whoever sends.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// When the line is free again.
#[derive(Debug, Default)]
pub struct Line {
    free_at: Mutex<Option<Instant>>,
}

impl Line {
    /// Waits until `bytes` had their turn at `per_second` bytes; zero for a line without a bound.
    pub async fn take_turn(&self, bytes: usize, per_second: u64) {
        if per_second == 0 {
            return;
        }
        let until = {
            let mut free_at = self.free_at.lock();
            let now = Instant::now();
            let start = free_at.map_or(now, |at| at.max(now));
            *free_at.insert(start + Duration::from_secs_f64(bytes as f64 / per_second as f64))
        };
        tokio::time::sleep_until(until).await;
    }
}
