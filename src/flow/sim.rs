//! Simulation of a whole system on one thread: chance comes from a seed, blocking work runs in place. Time is the
//! runtime's, which a simulation pauses, and the clocks that it hands in.
//!
//! Compiled for tests and under the feature `sim` only: a daemon whose keys come from a seed must not exist.

use std::cell::RefCell;
use std::marker::PhantomData;

use crate::vault::rng::Rng;

thread_local! {
    static CHANCE: RefCell<Option<Rng>> = const { RefCell::new(None) };
}

/// This thread simulates as long as this lives.
#[derive(Debug)]
#[must_use]
pub struct Guard {
    before: Option<Rng>,
    // Bound to its thread.
    _here: PhantomData<*const ()>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        CHANCE.with_borrow_mut(|chance| *chance = self.before.take());
    }
}

/// From now on this thread draws everything random from `seed`, and does blocking work in place.
pub fn enter(seed: u64) -> Guard {
    let before = CHANCE.with_borrow_mut(|chance| chance.replace(Rng::seeded(seed)));
    Guard { before, _here: PhantomData }
}

/// Whether this thread simulates.
#[must_use]
pub fn active() -> bool {
    CHANCE.with_borrow(Option::is_some)
}

/// The next number of this thread's chance; zero outside a simulation.
#[must_use]
pub fn draw() -> u64 {
    CHANCE.with_borrow_mut(|chance| chance.as_mut().map_or(0, Rng::next_u64))
}

/// Fills `bytes` from this thread's chance; false outside a simulation.
pub(super) fn fill(bytes: &mut [u8]) -> bool {
    if !active() {
        return false;
    }
    for part in bytes.chunks_mut(8) {
        let drawn = draw().to_le_bytes();
        part.copy_from_slice(&drawn[..part.len()]);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::random;

    #[test]
    fn a_seed_gives_the_same_keys_again_and_leaves_no_trace() {
        let drawn = |seed| {
            let _guard = enter(seed);
            (random::<20>().expect("random"), Rng::from_entropy().next_u64())
        };
        assert_eq!(drawn(7), drawn(7));
        assert_ne!(drawn(7), drawn(8));
        assert!(!active());
        assert_ne!(random::<20>().expect("random"), random::<20>().expect("random"));
    }

    #[tokio::test]
    async fn blocking_work_runs_in_place_inside_a_simulation_only() {
        let here = std::thread::current().id();
        let there = || std::thread::current().id();
        assert_ne!(crate::flow::blocking(there).await.expect("done"), here);
        let _guard = enter(1);
        assert_eq!(crate::flow::blocking(there).await.expect("done"), here);
    }
}
