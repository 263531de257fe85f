//! Locks byte ranges of a disk, so that overlapping writes reach the disk and the record queue in the same order.
//!
//! First come, first served among those that overlap: a claim waits for every older claim that overlaps it, held or
//! still waiting, so a large one is not starved by a stream of small ones. Claims that do not overlap never wait.

use std::collections::VecDeque;
use std::ops::Range;

use parking_lot::{Condvar, Mutex};

#[derive(Debug, Default)]
struct Claims {
    next_ticket: u64,
    /// Oldest first: (ticket, range).
    list: VecDeque<(u64, Range<u64>)>,
}

/// The claims of one disk. Their number is bounded by the threads that write, and by what each claims at once.
#[derive(Debug, Default)]
pub struct RangeLock {
    claims: Mutex<Claims>,
    released: Condvar,
}

/// A range held; given back when dropped.
#[derive(Debug)]
pub struct RangeGuard<'a> {
    lock: &'a RangeLock,
    ticket: u64,
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

impl RangeLock {
    /// Waits until nothing older overlaps `length_bytes` from `offset_bytes`, and holds them. Blocks the thread, for as
    /// long as local disk I/O takes.
    pub fn lock(&self, offset_bytes: u64, length_bytes: u64) -> RangeGuard<'_> {
        self.lock_all(&[Range { start: offset_bytes, end: offset_bytes.saturating_add(length_bytes) }])
    }

    /// The same for several ranges at once. Claimed one after the other, a younger claim over two of them would wait for the
    /// first and hold up the second, for ever.
    pub fn lock_all(&self, ranges: &[Range<u64>]) -> RangeGuard<'_> {
        let mut claims = self.claims.lock();
        let ticket = claims.next_ticket;
        claims.next_ticket += 1;
        claims.list.extend(ranges.iter().map(|range| (ticket, range.clone())));
        let held_up = |claims: &Claims| {
            let mut older = claims.list.iter().take_while(|(older, _)| *older < ticket);
            older.any(|(_, older)| ranges.iter().any(|range| overlap(older, range)))
        };
        while held_up(&claims) {
            self.released.wait(&mut claims);
        }
        RangeGuard { lock: self, ticket }
    }

    /// Whether somebody holds or waits for a part of the range.
    #[must_use]
    pub fn busy(&self, range: &Range<u64>) -> bool {
        self.claims.lock().list.iter().any(|(_, claim)| overlap(claim, range))
    }
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        let mut claims = self.lock.claims.lock();
        claims.list.retain(|(ticket, _)| *ticket != self.ticket);
        let waiting = !claims.list.is_empty();
        drop(claims);
        if waiting {
            self.lock.released.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn ranges_that_do_not_overlap_do_not_wait() {
        let lock = RangeLock::default();
        let _first = lock.lock(0, 100);
        let _second = lock.lock(100, 100);
        assert!(lock.busy(&(199..300)));
        assert!(!lock.busy(&(200..300)));
    }

    #[test]
    fn overlapping_holders_exclude_each_other() {
        let lock = Arc::new(RangeLock::default());
        let cells: Arc<Vec<AtomicU64>> = Arc::new((0..8).map(|_| AtomicU64::new(0)).collect());
        let threads: Vec<_> = (0..4_u64)
            .map(|thread| {
                let (lock, cells) = (Arc::clone(&lock), Arc::clone(&cells));
                std::thread::spawn(move || {
                    for round in 0..200 {
                        let start = (thread + round) % 5;
                        let _guard = lock.lock(start, 4);
                        for cell in &cells[start as usize..start as usize + 4] {
                            assert_eq!(cell.swap(thread + 1, Ordering::SeqCst), 0, "two holders of one cell");
                        }
                        std::thread::yield_now();
                        for cell in &cells[start as usize..start as usize + 4] {
                            cell.store(0, Ordering::SeqCst);
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("no overlap");
        }
    }

    #[test]
    fn several_ranges_are_claimed_at_once_and_given_back_together() {
        let lock = Arc::new(RangeLock::default());
        let both = lock.lock_all(&[0..10, 100..110]);
        assert!(lock.busy(&(5..6)) && lock.busy(&(105..106)) && !lock.busy(&(10..100)));
        let over = Arc::clone(&lock);
        // Over both: it waits for them, and nobody who holds one waits for it.
        let thread = std::thread::spawn(move || drop(over.lock(0, 200)));
        drop(lock.lock(300, 1));
        drop(both);
        thread.join().expect("it came through");
        assert!(!lock.busy(&(0..1000)));
    }

    #[test]
    fn an_older_waiter_is_served_before_a_younger_one() {
        let lock = Arc::new(RangeLock::default());
        let order = Arc::new(Mutex::new(Vec::new()));
        let first = lock.lock(0, 10);
        let spawn = |name: &'static str, offset, length| {
            let (lock, order) = (Arc::clone(&lock), Arc::clone(&order));
            let waiting = lock.claims.lock().list.len() + 1;
            let thread = std::thread::spawn({
                let lock = Arc::clone(&lock);
                move || {
                    let _guard = lock.lock(offset, length);
                    order.lock().push(name);
                }
            });
            while lock.claims.lock().list.len() < waiting {
                std::thread::yield_now();
            }
            thread
        };
        // The large one waits for `first`, the small one for the large one though it does not overlap `first`.
        let large = spawn("large", 5, 100);
        let small = spawn("small", 50, 1);
        drop(first);
        large.join().expect("large");
        small.join().expect("small");
        assert_eq!(*order.lock(), ["large", "small"]);
    }
}
