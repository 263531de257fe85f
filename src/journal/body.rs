//! The memory of commits: who may keep it, and how much of it at once.
//!
//! A commit that was just written is still in memory when the pipeline wants it. Instead of copying its records at once,
//! the pipeline may keep them where they are until they are packed, by then on another thread. What is kept counts
//! against a bound, and beyond it records are copied: so the memory of commits stays bounded however long somebody keeps
//! one small record of a large commit.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use super::disk::AlignedBuf;

/// Bytes of one or more commits.
#[derive(Debug)]
pub struct CommitBody {
    pub buf: AlignedBuf,
    /// Set once somebody may keep records of it.
    pin: OnceLock<Pin>,
}

impl CommitBody {
    pub const fn new(buf: AlignedBuf) -> Self {
        Self { buf, pin: OnceLock::new() }
    }

    /// Lets records of it be kept, if it fits into `pinned`, which it then counts in for as long as it lives.
    pub fn pin(&self, pinned: &Arc<PinnedBytes>) -> bool {
        if self.pin.get().is_none() {
            let Some(pin) = pinned.take(self.buf.held_bytes()) else { return false };
            // Only one reader has a body; whoever came first has counted it.
            let _ = self.pin.set(pin);
        }
        true
    }
}

/// Memory of commits whose records are kept by others: a part of the cache that its eviction cannot free.
#[derive(Debug)]
pub struct PinnedBytes {
    now: AtomicUsize,
    max: usize,
}

impl PinnedBytes {
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { now: AtomicUsize::new(0), max })
    }

    fn take(self: &Arc<Self>, bytes: usize) -> Option<Pin> {
        let add = |now: usize| (now + bytes <= self.max).then_some(now + bytes);
        self.now.fetch_update(Ordering::AcqRel, Ordering::Acquire, add).ok()?;
        Some(Pin { pinned: Arc::clone(self), bytes })
    }
}

#[derive(Debug)]
struct Pin {
    pinned: Arc<PinnedBytes>,
    bytes: usize,
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.pinned.now.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// A body as the owner of [`bytes::Bytes`].
pub struct Owner(pub Arc<CommitBody>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0.buf
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_counts_once_until_it_is_dropped_and_no_more_than_the_bound_is_kept() {
        // Of each body, with the block that alignment costs.
        let pinned = PinnedBytes::new(5 * 4096);
        let body = |blocks: usize| Arc::new(CommitBody::new(AlignedBuf::zeroed(blocks * 4096)));
        let (large, small) = (body(2), body(1));
        assert!(large.pin(&pinned) && large.pin(&pinned), "counted once");
        assert!(small.pin(&pinned));
        assert!(!body(1).pin(&pinned), "beyond the bound");
        let record = bytes::Bytes::from_owner(Owner(Arc::clone(&large))).slice(10..20);
        drop(large);
        assert!(!body(1).pin(&pinned), "a record of it is still kept");
        drop(record);
        assert!(body(2).pin(&pinned));
    }
}
