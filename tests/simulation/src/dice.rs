//! The seed's numbers. Every part of a run has dice of its own, so that one more throw here changes nothing there.

use tidegate::vault::rng::Rng;

/// A repeatable sequence, thrown in the ways that a run needs.
#[derive(Debug, Clone)]
pub struct Dice(Rng);

impl Dice {
    /// The sequence of a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(Rng::seeded(seed))
    }

    /// Dice of their own for a part of the run.
    #[must_use]
    pub fn branch(&mut self) -> Self {
        Self::new(self.roll() ^ 0x5851_f42d_4c95_7f2d)
    }

    /// The next number.
    pub const fn roll(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number below `bound`; zero if the bound is zero.
    pub const fn below(&mut self, bound: u64) -> u64 {
        self.0.below(bound)
    }

    /// A number from `least` to `most`, both included.
    pub const fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most - least + 1)
    }

    /// True once in `times` throws on the average.
    pub const fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// True in `share` of a thousand throws.
    pub const fn permille(&mut self, share: u32) -> bool {
        self.below(1000) < share as u64
    }

    /// One of `choices`, which must not be empty.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len() as u64) as usize]
    }

    /// Puts `items` into a random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.below(at as u64 + 1) as usize);
        }
    }
}
