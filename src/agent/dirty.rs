//! What of a disk the vault does not have yet: the chunks that must still be sent, and those sent but not yet vaulted.
//!
//! Pure: no I/O, no clock. Two parts:
//!
//! - *must send*: chunks that no record carries. They are read from the disk and sent as copies in a sync span.
//! - *generations*: chunks carried by records that are not vaulted yet, in groups by sequence number. A generation goes
//!   when its last record is vaulted, and leaves the *floor* behind: the newest (seq, chain) known to be in the vault.
//!
//! A fork throws the sequence away, so there [`DirtyMap::merge_all`] turns every generation into *must send*. The number
//! of generations is bounded: when there are too many, neighbours merge, which makes the floor coarser and nothing wrong.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use super::chunk_set::{ChunkSet, chunks_of};
use crate::limits::CHUNK_BYTES;
use crate::types::{Chain, Extent, Seq};

/// Most generations kept. Each costs a few hundred bytes plus the chunks in it; halved when reached.
const GENERATIONS_MAX: usize = 128;
/// A generation takes records for this long at least: the resolution of floor and RPO in the usual case.
const GENERATION_AGE: Duration = Duration::from_millis(500);

/// The newest record known to be vaulted whose chain is known too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Floor {
    /// Its number; [`Seq::NONE`] if none of the epoch.
    pub seq: Seq,
    /// The chain after it.
    pub chain: Chain,
}

#[derive(Debug)]
struct Generation {
    last: Seq,
    /// Chain after `last`; unknown until the sender has sealed that record.
    chain: Option<Chain>,
    chunks: ChunkSet,
    /// When the oldest write in it was made.
    oldest: Duration,
    opened: Duration,
}

/// Everything of one disk that is not vaulted.
#[derive(Debug)]
pub struct DirtyMap {
    must_send: ChunkSet,
    dirty_since: Option<Duration>,
    generations: VecDeque<Generation>,
    floor: Floor,
}

impl DirtyMap {
    /// A map of a disk of `size_bytes` with nothing in it.
    #[must_use]
    pub fn new(size_bytes: u64) -> Self {
        Self {
            must_send: ChunkSet::new(size_bytes.div_ceil(CHUNK_BYTES)),
            dirty_since: None,
            generations: VecDeque::new(),
            floor: Floor { seq: Seq::NONE, chain: Chain::GENESIS },
        }
    }

    /// Marks a byte range as "must be sent". `at` is the time of the write that made it so.
    pub fn mark(&mut self, offset_bytes: u64, length_bytes: u64, at: Duration) {
        self.mark_chunks(chunks_of(offset_bytes, length_bytes, CHUNK_BYTES), at);
    }

    /// Marks chunks as "must be sent".
    pub fn mark_chunks(&mut self, chunks: Range<u64>, at: Duration) {
        self.must_send.insert(chunks);
        self.dirty_since.get_or_insert(at);
    }

    /// Notes that a record or the copy of a zero-based disk carries these chunks now.
    pub fn sent(&mut self, chunks: Range<u64>) {
        self.must_send.remove(chunks);
        if self.must_send.is_empty() {
            self.dirty_since = None;
        }
    }

    /// The chunks that must be sent.
    #[must_use]
    pub const fn must_send(&self) -> &ChunkSet {
        &self.must_send
    }

    /// Notes that record `seq` carries `extents`, the oldest of which was written `at`. Called with rising `seq`, more
    /// than once for a record that grows.
    pub fn recorded(&mut self, seq: Seq, extents: &[Extent], at: Duration) {
        let limit = self.must_send.limit();
        let grow = self.generations.back().is_some_and(|open| {
            // A record that grew into a new generation would be counted vaulted with the old one.
            open.last == seq || at.saturating_sub(open.opened) < GENERATION_AGE
        });
        if !grow {
            if self.generations.len() >= GENERATIONS_MAX {
                self.merge_neighbours();
            }
            self.generations.push_back(Generation {
                last: seq,
                chain: None,
                chunks: ChunkSet::new(limit),
                oldest: at,
                opened: at,
            });
        }
        if let Some(open) = self.generations.back_mut() {
            if open.last != seq {
                open.last = seq;
                open.chain = None;
            }
            for extent in extents {
                open.chunks.insert(chunks_of(extent.offset_bytes, u64::from(extent.length_bytes), CHUNK_BYTES));
            }
        }
    }

    fn merge_neighbours(&mut self) {
        let mut merged = VecDeque::with_capacity(GENERATIONS_MAX);
        let mut rest = std::mem::take(&mut self.generations).into_iter();
        while let Some(mut older) = rest.next() {
            if let Some(newer) = rest.next() {
                older.chunks.absorb(&newer.chunks);
                older.last = newer.last;
                older.chain = newer.chain;
            }
            merged.push_back(older);
        }
        self.generations = merged;
    }

    /// Notes the chain after record `seq`.
    pub fn sealed(&mut self, seq: Seq, chain: Chain) {
        // Sealing follows appending closely: the generation is near the end.
        if let Some(generation) = self.generations.iter_mut().rev().find(|generation| generation.last == seq) {
            generation.chain = Some(chain);
        }
    }

    /// Notes that every record up to `seq` is vaulted. Returns whether the floor moved.
    pub fn vaulted(&mut self, seq: Seq) -> bool {
        let before = self.floor;
        while let Some(generation) = self.generations.front()
            && generation.last <= seq
            && let Some(chain) = generation.chain
        {
            self.floor = Floor { seq: generation.last, chain };
            self.generations.pop_front();
        }
        self.floor != before
    }

    /// The floor in the present epoch.
    #[must_use]
    pub const fn floor(&self) -> Floor {
        self.floor
    }

    /// Starts an epoch: the floor is the place of the fork. Whatever was not vaulted must be sent anew.
    pub fn start_epoch(&mut self, floor: Floor, now: Duration) {
        self.merge_all(now);
        self.floor = floor;
    }

    /// Turns everything not vaulted into "must be sent".
    pub fn merge_all(&mut self, now: Duration) {
        for generation in std::mem::take(&mut self.generations) {
            let since = self.dirty_since.unwrap_or(now).min(generation.oldest);
            self.must_send.absorb(&generation.chunks);
            if !generation.chunks.is_empty() {
                self.dirty_since = Some(since);
            }
        }
    }

    /// Whether every record noted is vaulted and nothing must be sent.
    #[must_use]
    pub fn all_vaulted(&self) -> bool {
        self.generations.is_empty() && self.must_send.is_empty()
    }

    /// Whether some chunk of `chunks` is not vaulted.
    #[must_use]
    pub fn holds(&self, chunks: &Range<u64>) -> bool {
        self.must_send.any(chunks.clone()) || self.generations.iter().any(|held| held.chunks.any(chunks.clone()))
    }

    /// When the oldest write that is not vaulted was made.
    #[must_use]
    pub fn oldest(&self) -> Option<Duration> {
        // A generation of barriers alone holds no write back.
        let recorded = self.generations.iter().find(|held| !held.chunks.is_empty()).map(|held| held.oldest);
        [self.dirty_since, recorded].into_iter().flatten().min()
    }

    /// Bytes that are sent but not vaulted, in whole chunks; chunks written twice may count twice.
    #[must_use]
    pub fn unvaulted_bytes(&self) -> u64 {
        self.generations.iter().map(|held| held.chunks.len() * CHUNK_BYTES).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ExtentKind;

    fn extent(chunk: u64) -> [Extent; 1] {
        [Extent { offset_bytes: chunk * CHUNK_BYTES, length_bytes: 512, kind: ExtentKind::Data }]
    }

    fn chain(seq: u64) -> Chain {
        Chain([seq as u8; 32])
    }

    #[test]
    fn the_floor_follows_the_generations_that_are_wholly_vaulted() {
        let mut map = DirtyMap::new(1 << 30);
        for seq in 1..=10 {
            map.recorded(Seq(seq), &extent(seq), Duration::from_secs(seq));
            map.sealed(Seq(seq), chain(seq));
        }
        assert!(map.vaulted(Seq(4)));
        assert_eq!(map.floor(), Floor { seq: Seq(4), chain: chain(4) });
        assert!(!map.holds(&(4..5)) && map.holds(&(5..6)));
        assert_eq!(map.oldest(), Some(Duration::from_secs(5)));
        assert!(map.vaulted(Seq(10)));
        assert!(map.all_vaulted());
        assert_eq!(map.oldest(), None);
    }

    #[test]
    fn a_generation_that_grew_is_not_dropped_for_its_older_records() {
        let mut map = DirtyMap::new(1 << 30);
        map.recorded(Seq(1), &extent(1), Duration::ZERO);
        map.sealed(Seq(1), chain(1));
        map.recorded(Seq(2), &extent(2), Duration::ZERO);
        assert!(!map.vaulted(Seq(1)));
        assert!(map.holds(&(1..2)), "chunk 1 waits for its generation");
        map.sealed(Seq(2), chain(2));
        assert!(map.vaulted(Seq(2)));
        assert_eq!(map.floor().seq, Seq(2));
    }

    #[test]
    fn generations_stay_bounded_and_lose_nothing() {
        let mut map = DirtyMap::new(1 << 30);
        for seq in 1..=1000 {
            map.recorded(Seq(seq), &extent(seq), Duration::from_secs(seq));
            map.sealed(Seq(seq), chain(seq));
        }
        assert!(map.generations.len() <= GENERATIONS_MAX);
        assert!((1..=1000).all(|chunk| map.holds(&(chunk..chunk + 1))));
        map.vaulted(Seq(900));
        let floor = map.floor().seq.0;
        assert!(floor > 0 && floor <= 900);
        assert_eq!(map.floor().chain, chain(floor));
        assert!((floor + 1..=1000).all(|chunk| map.holds(&(chunk..chunk + 1))));
        map.merge_all(Duration::ZERO);
        assert!(map.must_send().all(901..1001));
    }
}
