//! Memory that is used again: the large buffers of messages and batches.
//!
//! Fresh large allocations cost page faults, as much as the encryption of what they hold. Idle buffers are few and
//! counted; what is in use is bounded by those who use it.

use std::sync::Arc;

use bytes::Bytes;
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

    /// Makes shared bytes of a buffer; it comes back when the last of them is dropped.
    #[must_use]
    pub fn share(self: &Arc<Self>, buffer: Vec<u8>) -> Bytes {
        Bytes::from_owner(Shared { buffer, pool: Arc::clone(self) })
    }
}

struct Shared {
    buffer: Vec<u8>,
    pool: Arc<BufferPool>,
}

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_buffer_comes_back_when_its_last_bytes_are_dropped() {
        let pool = BufferPool::new(1024, 1);
        let mut buffer = pool.take();
        buffer.extend_from_slice(b"body");
        let memory = buffer.as_ptr();
        let bytes = pool.share(buffer);
        let part = bytes.slice(1..3);
        drop(bytes);
        let other = pool.take();
        assert_ne!(other.as_ptr(), memory, "still in use");
        assert_eq!(&part[..], b"od");
        drop(part);
        let again = pool.take();
        assert_eq!(again.as_ptr(), memory);
        assert!(again.is_empty());
    }

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
