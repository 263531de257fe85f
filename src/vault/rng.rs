//! A small generator for jitter and, in tests, for everything that must be repeatable. Never for secrets.

/// `SplitMix64`: a counter through a mixing function.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// A repeatable sequence.
    #[must_use]
    pub const fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    /// A sequence of its own for this process and moment, so that many gateways do not beat in time.
    #[must_use]
    pub fn from_entropy() -> Self {
        let mut seed = [0; 8];
        // Without entropy the jitter is the same everywhere, which is bearable.
        let _ = crate::flow::fill_random(&mut seed);
        Self(u64::from_le_bytes(seed))
    }

    /// The next number.
    pub const fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; zero if the bound is zero.
    pub const fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next_u64() % bound }
    }
}
