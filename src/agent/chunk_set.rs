//! A set of chunk numbers of one disk: sparse where the disk is quiet, one word per block where all of it is in.
//!
//! Pure. A disk of 64 TiB has a thousand million chunks of 64 KiB; a plain bitmap of it takes 128 MiB, and an agent keeps
//! several. Chunks are grouped in blocks of 4,096; a block with no member takes nothing, a full one a map entry.

use std::collections::BTreeMap;
use std::ops::Range;

const BLOCK_CHUNKS: u64 = 4096;
const BLOCK_WORDS: usize = (BLOCK_CHUNKS / 64) as usize;

/// A set of numbers below a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkSet {
    blocks: BTreeMap<u64, Block>,
    limit: u64,
    len: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Block {
    Full,
    Part { words: Box<[u64; BLOCK_WORDS]>, len: u64 },
}

/// The chunks of `chunk_bytes` that the byte range touches.
#[must_use]
pub fn chunks_of(offset_bytes: u64, length_bytes: u64, chunk_bytes: u64) -> Range<u64> {
    if length_bytes == 0 {
        return 0..0;
    }
    offset_bytes / chunk_bytes..(offset_bytes + length_bytes).div_ceil(chunk_bytes)
}

/// Bits `range` (within one word) as a mask.
const fn mask(from: u64, to: u64) -> u64 {
    let high = if to == 64 { u64::MAX } else { (1 << to) - 1 };
    high & !((1 << from) - 1)
}

/// The words of a block that `range` (relative to the block) touches, each with its mask.
fn words(range: Range<u64>) -> impl Iterator<Item = (usize, u64)> {
    (range.start / 64..range.end.div_ceil(64)).map(move |word| {
        let base = word * 64;
        (word as usize, mask(range.start.max(base) - base, range.end.min(base + 64) - base))
    })
}

impl ChunkSet {
    /// An empty set of numbers below `limit`.
    #[must_use]
    pub const fn new(limit: u64) -> Self {
        Self { blocks: BTreeMap::new(), limit, len: 0 }
    }

    /// The set of all numbers below `limit`.
    #[must_use]
    pub fn full(limit: u64) -> Self {
        let mut set = Self::new(limit);
        set.insert(0..limit);
        set
    }

    /// Members.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no member.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// First number that can be no member.
    #[must_use]
    pub const fn limit(&self) -> u64 {
        self.limit
    }

    fn block_len(&self, block: u64) -> u64 {
        BLOCK_CHUNKS.min(self.limit - block * BLOCK_CHUNKS)
    }

    /// The blocks that `range` touches, each with the part of the range relative to it.
    fn parts(&self, range: &Range<u64>) -> impl Iterator<Item = (u64, Range<u64>)> + use<> {
        let (start, end) = (range.start, range.end.min(self.limit));
        let blocks = if start < end { start / BLOCK_CHUNKS..end.div_ceil(BLOCK_CHUNKS) } else { 0..0 };
        blocks.map(move |block| {
            let base = block * BLOCK_CHUNKS;
            (block, start.max(base) - base..end.min(base + BLOCK_CHUNKS) - base)
        })
    }

    /// Puts `range` in; what lies beyond the limit is ignored.
    pub fn insert(&mut self, range: Range<u64>) {
        for (block, part) in self.parts(&range) {
            let block_len = self.block_len(block);
            let entry =
                self.blocks.entry(block).or_insert_with(|| Block::Part { words: Box::new([0; BLOCK_WORDS]), len: 0 });
            let Block::Part { words: bits, len } = entry else { continue };
            for (word, mask) in words(part) {
                let added = u64::from((mask & !bits[word]).count_ones());
                bits[word] |= mask;
                *len += added;
                self.len += added;
            }
            if *len == block_len {
                *entry = Block::Full;
            }
        }
    }

    /// Takes `range` out.
    pub fn remove(&mut self, range: Range<u64>) {
        for (block, part) in self.parts(&range) {
            let block_len = self.block_len(block);
            let Some(entry) = self.blocks.get_mut(&block) else { continue };
            if *entry == Block::Full {
                let mut bits = Box::new([0; BLOCK_WORDS]);
                for (word, mask) in words(0..block_len) {
                    bits[word] = mask;
                }
                *entry = Block::Part { words: bits, len: block_len };
            }
            let Block::Part { words: bits, len } = entry else { continue };
            for (word, mask) in words(part) {
                let gone = u64::from((mask & bits[word]).count_ones());
                bits[word] &= !mask;
                *len -= gone;
                self.len -= gone;
            }
            if *len == 0 {
                self.blocks.remove(&block);
            }
        }
    }

    /// Takes everything out.
    pub fn clear(&mut self) {
        self.blocks.clear();
        self.len = 0;
    }

    /// Puts every member of `other` in.
    pub fn absorb(&mut self, other: &Self) {
        for (&block, entry) in &other.blocks {
            let base = block * BLOCK_CHUNKS;
            match entry {
                Block::Full => self.insert(base..base + other.block_len(block)),
                Block::Part { .. } => {
                    let mut from = base;
                    while let Some(run) = other.next_run(from, u64::MAX).filter(|run| run.start < base + BLOCK_CHUNKS) {
                        from = run.end.min(base + BLOCK_CHUNKS);
                        self.insert(run.start..from);
                    }
                }
            }
        }
    }

    /// Whether any of `range` is a member.
    #[must_use]
    pub fn any(&self, range: Range<u64>) -> bool {
        self.parts(&range).any(|(block, part)| match self.blocks.get(&block) {
            None => false,
            Some(Block::Full) => true,
            Some(Block::Part { words: bits, .. }) => words(part).any(|(word, mask)| bits[word] & mask != 0),
        })
    }

    /// Whether all of `range` are members.
    #[must_use]
    pub fn all(&self, range: Range<u64>) -> bool {
        range.end <= self.limit
            && self.parts(&range).all(|(block, part)| match self.blocks.get(&block) {
                None => false,
                Some(Block::Full) => true,
                Some(Block::Part { words: bits, .. }) => words(part).all(|(word, mask)| bits[word] & mask == mask),
            })
    }

    /// Whether `number` is a member.
    #[must_use]
    pub fn contains(&self, number: u64) -> bool {
        self.all(number..number + 1)
    }

    /// The first run of members at or after `from`, cut to `max` numbers.
    #[must_use]
    pub fn next_run(&self, from: u64, max: u64) -> Option<Range<u64>> {
        let start = self.next_member(from)?;
        let mut end = start;
        let stop = start.saturating_add(max).min(self.limit);
        while end < stop {
            let (block, at) = (end / BLOCK_CHUNKS, end % BLOCK_CHUNKS);
            let base = block * BLOCK_CHUNKS;
            match self.blocks.get(&block) {
                None => break,
                Some(Block::Full) => end = base + self.block_len(block),
                Some(Block::Part { words: bits, .. }) => {
                    let absent = !bits[(at / 64) as usize] >> (at % 64);
                    if absent == 0 {
                        end += 64 - at % 64;
                    } else {
                        let ones = u64::from(absent.trailing_zeros());
                        end += ones;
                        if at % 64 + ones < 64 {
                            break;
                        }
                    }
                }
            }
        }
        Some(start..end.min(stop))
    }

    fn next_member(&self, from: u64) -> Option<u64> {
        let first_block = from / BLOCK_CHUNKS;
        for (&block, entry) in self.blocks.range(first_block..) {
            let base = block * BLOCK_CHUNKS;
            let at = from.saturating_sub(base);
            match entry {
                Block::Full if at < self.block_len(block) => return Some(base + at),
                Block::Full => {}
                Block::Part { words: bits, .. } => {
                    for word in (at / 64) as usize..BLOCK_WORDS {
                        let low = if word as u64 == at / 64 { at % 64 } else { 0 };
                        let found = bits[word] >> low;
                        if found != 0 {
                            return Some(base + word as u64 * 64 + low + u64::from(found.trailing_zeros()));
                        }
                    }
                }
            }
        }
        None
    }

    /// All members as runs, in order.
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let run = self.next_run(from, u64::MAX)?;
            from = run.end;
            Some(run)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn byte_ranges_touch_the_chunks_they_lie_in() {
        assert_eq!(chunks_of(0, 1, 64), 0..1);
        assert_eq!(chunks_of(63, 2, 64), 0..2);
        assert_eq!(chunks_of(64, 64, 64), 1..2);
        assert!(chunks_of(100, 0, 64).is_empty());
    }

    #[test]
    fn a_full_set_costs_an_entry_per_block() {
        let set = ChunkSet::full(1_000_000);
        assert_eq!(set.len(), 1_000_000);
        assert!(set.blocks.values().all(|block| *block == Block::Full));
        assert_eq!(set.next_run(5, u64::MAX), Some(5..1_000_000));
    }

    proptest! {
        #[test]
        fn it_behaves_like_an_ordered_set(ops in prop::collection::vec((0_u8..3, 0_u64..10_000, 0_u64..9_000), 1..40)) {
            let limit = 9_500;
            let mut set = ChunkSet::new(limit);
            let mut model = BTreeSet::new();
            let mut other = ChunkSet::new(limit);
            let mut other_model = BTreeSet::new();
            for (op, start, length) in ops {
                let range = start..start + length;
                let clipped = start.min(limit)..range.end.min(limit);
                match op {
                    0 => { set.insert(range.clone()); model.extend(clipped.clone()); }
                    1 => { set.remove(range.clone()); model.retain(|n| !range.contains(n)); }
                    _ => { other.insert(range.clone()); other_model.extend(clipped.clone()); }
                }
                prop_assert_eq!(set.len(), model.len() as u64);
                prop_assert_eq!(set.any(range.clone()), model.range(clipped.start..clipped.end.max(clipped.start)).next().is_some());
                prop_assert_eq!(set.next_run(start, u64::MAX).map(|run| run.start), model.range(start..).next().copied());
            }
            let runs: Vec<u64> = set.runs().flatten().collect();
            prop_assert_eq!(&runs, &model.iter().copied().collect::<Vec<_>>());
            set.absorb(&other);
            model.extend(other_model);
            prop_assert_eq!(set.runs().flatten().collect::<Vec<_>>(), model.into_iter().collect::<Vec<_>>());
        }
    }
}
