//! Memory for sealed messages until the store has them.
//!
//! Sealed messages are of any size, are made by one thread and let go by another a second later: taken one by one from the
//! allocator, they leave its arenas with holes, and the process grows for half an hour. So they are put one behind the other
//! into slabs of one size, and a slab is used again when the last message in it is gone.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::BytesMut;
use parking_lot::Mutex;

use crate::keys::seal::SEAL_OVERHEAD_BYTES;
use crate::limits;

/// Four messages of the initial copy where nothing packs, each the largest record. What the last message leaves is an eighth
/// at most of what others make.
const SLAB_BYTES: usize = 4 * (limits::RECORD_BYTES_MAX + SEAL_OVERHEAD_BYTES);

/// Slabs whose messages are still on their way, the oldest first.
#[derive(Debug)]
pub(super) struct Slabs {
    full: Mutex<VecDeque<BytesMut>>,
    kept_max: usize,
}

impl Slabs {
    /// Keeps slabs for use again as far as they hold `bytes_max`: the memory of those who wait for the store. What is beyond goes
    /// back to the allocator with its last message.
    pub(super) fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { full: Mutex::default(), kept_max: (bytes_max / SLAB_BYTES).max(1) })
    }

    /// A slab without messages: the oldest one of which nobody holds any, otherwise a new one.
    fn exchange(&self, full: BytesMut) -> BytesMut {
        let mut slabs = self.full.lock();
        if full.capacity() > 0 {
            slabs.push_back(full);
        }
        // Mostly the first; behind one whose upload is tried again for long others may be free.
        let free = slabs.iter_mut().position(|slab| slab.try_reclaim(SLAB_BYTES));
        if let Some(free) = free.and_then(|at| slabs.remove(at)) {
            return free;
        }
        if slabs.len() > self.kept_max {
            slabs.pop_front();
        }
        drop(slabs);
        BytesMut::with_capacity(SLAB_BYTES)
    }
}

/// One thread's open slab.
#[derive(Debug)]
pub(super) struct Shelf {
    slabs: Arc<Slabs>,
    open: BytesMut,
}

impl Shelf {
    pub(super) fn new(slabs: &Arc<Slabs>) -> Self {
        Self { slabs: Arc::clone(slabs), open: BytesMut::new() }
    }

    /// Empty memory for a message of so many bytes, which is used again when nobody holds the message. What is larger than a
    /// slab has memory of its own.
    pub(super) fn room(&mut self, bytes: usize) -> BytesMut {
        if bytes > SLAB_BYTES {
            return BytesMut::with_capacity(bytes);
        }
        if self.open.capacity() < bytes {
            self.open = self.slabs.exchange(std::mem::take(&mut self.open));
        }
        let rest = self.open.split_off(bytes);
        std::mem::replace(&mut self.open, rest)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    impl Shelf {
        fn keep(&mut self, message: &[u8]) -> Bytes {
            let mut room = self.room(message.len());
            let start = room.as_ptr();
            room.extend_from_slice(message);
            assert_eq!(room.as_ptr(), start, "the room was too small");
            room.freeze()
        }
    }

    #[test]
    fn a_slab_is_used_again_when_its_last_message_is_gone_and_not_before() {
        let mut shelf = Shelf::new(&Slabs::new(8 * SLAB_BYTES));
        // A message less than what would fill it to the last byte: such a slab leaves no handle.
        let half = vec![1; SLAB_BYTES / 2];
        let mut pair = || [shelf.keep(&half), shelf.keep(&half[1..])];
        let first = pair();
        let start = first[0].as_ptr();
        let second = pair();
        assert_ne!(second[0].as_ptr(), start, "all of the first slab is held");
        let [one, other] = first;
        drop(one);
        let third = pair();
        assert_ne!(third[0].as_ptr(), start, "a part of the first slab is held");
        assert_eq!(other, half[1..]);
        drop(other);
        assert_eq!(pair()[0].as_ptr(), start);
        assert_eq!((&second[0][..], &third[1][..]), (&half[..], &half[1..]));
    }

    #[test]
    fn a_slab_that_is_held_for_long_stands_in_no_others_way() {
        let slabs = Slabs::new(8 * SLAB_BYTES);
        let mut shelf = Shelf::new(&slabs);
        let message = vec![1; SLAB_BYTES - 1];
        let held = shelf.keep(&message);
        for _ in 0..20 {
            drop(shelf.keep(&message));
        }
        assert_eq!(slabs.full.lock().len(), 1, "the one that is held");
        drop(held);
    }

    #[test]
    fn no_more_slabs_are_kept_than_the_limit_and_each_message_stays_what_it_was() {
        let slabs = Slabs::new(3 * SLAB_BYTES);
        let mut shelf = Shelf::new(&slabs);
        let held: Vec<Bytes> = (0..9).map(|n| shelf.keep(&vec![n; SLAB_BYTES - 1])).collect();
        assert_eq!(slabs.full.lock().len(), 3);
        assert!(held.iter().enumerate().all(|(n, message)| message.iter().all(|byte| usize::from(*byte) == n)));
        assert_eq!(shelf.keep(&vec![7; SLAB_BYTES + 1]).len(), SLAB_BYTES + 1);
    }

    #[test]
    fn records_of_the_initial_copy_fill_a_slab_also_where_nothing_packs() {
        let slabs = Slabs::new(8 * SLAB_BYTES);
        let mut shelf = Shelf::new(&slabs);
        let message = vec![1; limits::RECORD_BYTES_MAX + SEAL_OVERHEAD_BYTES];
        let four: Vec<Bytes> = (0..4).map(|_| shelf.keep(&message)).collect();
        assert!(four.windows(2).all(|pair| pair[1].as_ptr() as usize == pair[0].as_ptr() as usize + message.len()));
    }
}
