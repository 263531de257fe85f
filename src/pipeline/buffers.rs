//! Memory that is used again: the large buffers of messages.
//!
//! Fresh large allocations cost page faults, as much as the encryption of what they hold. Idle buffers are few and
//! counted; what is in use is bounded by those who use it.

use std::sync::Arc;

use parking_lot::Mutex;

/// Idle buffers of one size class.
#[derive(Debug)]
pub struct BufferPool {
    idle: Mutex<Vec<Vec<u8>>>,
    capacity_bytes: usize,
    idle_max: usize,
}

impl BufferPool {
    /// Buffers of `capacity_bytes`, of which up to `idle_max` are kept.
    #[must_use]
    pub fn new(capacity_bytes: usize, idle_max: usize) -> Arc<Self> {
        Arc::new(Self { idle: Mutex::new(Vec::new()), capacity_bytes, idle_max })
    }

    /// The size of its buffers.
    #[must_use]
    pub fn capacity_bytes(&self) -> usize {
        self.capacity_bytes
    }

    /// An empty buffer of at least the capacity.
    #[must_use]
    pub fn take(&self) -> Vec<u8> {
        let idle = self.idle.lock().pop();
        idle.unwrap_or_else(|| Vec::with_capacity(self.capacity_bytes))
    }

    /// Gives a buffer back. One of another size, or one too many, is freed.
    pub fn give_back(&self, mut buffer: Vec<u8>) {
        if buffer.capacity() < self.capacity_bytes || buffer.capacity() > 2 * self.capacity_bytes {
            return;
        }
        buffer.clear();
        let mut idle = self.idle.lock();
        if idle.len() < self.idle_max {
            idle.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_limit_stays_idle_and_other_sizes_are_freed() {
        let pool = BufferPool::new(1024, 1);
        let (first, second) = (pool.take(), pool.take());
        pool.give_back(Vec::with_capacity(10));
        pool.give_back(first);
        pool.give_back(second);
        assert_eq!(pool.idle.lock().len(), 1);
    }
}
