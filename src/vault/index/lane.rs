//! The lane index: the sealed indexes of many consecutive batches of one lane in one object, so that a recovery after
//! months reads few objects.
//!
//! ```text
//!  header 64                              then per batch: entry head 32 · sealed index, byte for byte as in the batch
//!    0 magic "TGX" + version byte           0 batch number u64
//!    4 batches u32                          8 total bytes of the batch object u64
//!    8 vault id 16                         16 stored bytes u32
//!   24 lane id 16                          20 plain bytes u32
//!   40 first batch number u64              24 codec u8 · zero 3
//!   48 total bytes of the object u64       28 CRC-32C of bytes 0..28 and of the sealed index
//!   56 zero 4
//!   60 CRC-32C of bytes 0..60
//! ```
//!
//! The indexes are carried as they were sealed, still bound to the name and number of their batch. So a gateway keeps
//! 1,024 small sealed indexes in memory instead of a million rows, never opens them again, and a lane index can leave
//! out nothing unnoticed: batches are dense from the first number, and each proves itself.

use std::ops::RangeInclusive;

use bytes::{Bytes, BytesMut};

use super::SealedIndex;
use crate::limits;
use crate::pipeline::codec::Codec;
use crate::types::Id128;
use crate::vault::batch::{BatchError, check_part, crc32c, id_at, le_u32, le_u64};

/// First four bytes of a lane index: format name and version.
pub const LANE_INDEX_MAGIC: [u8; 4] = *b"TGX\x01";
/// Size at which a lane index is closed before it covers all its batches: it is built and read in memory.
pub const LANE_INDEX_BYTES_TARGET: usize = 64 << 20;
/// Largest lane index that is read: it is closed when it passes its target by the last index.
pub const LANE_INDEX_BYTES_MAX: u64 = (LANE_INDEX_BYTES_TARGET + super::INDEX_PLAIN_BYTES_MAX) as u64;

/// Bytes in front of the entries: enough for [`LaneIndex::numbers`].
pub const HEADER_BYTES: usize = 64;
const ENTRY_HEAD_BYTES: usize = 32;
const PART: &str = "lane index";
const ENTRY: &str = "lane index entry";

/// A lane index while it grows.
#[derive(Debug)]
pub struct LaneIndexBuilder {
    vault: Id128,
    lane: Id128,
    first: u64,
    entries: Vec<Entry>,
    bytes: usize,
}

/// One batch of a lane index.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Number of the batch.
    pub n: u64,
    /// Bytes of the whole batch object.
    pub total_bytes: u64,
    /// Its index, as it stands in the batch.
    pub index: SealedIndex,
}

impl LaneIndexBuilder {
    /// Starts with batch `first` of a lane.
    #[must_use]
    pub fn new(vault: Id128, lane: Id128, first: u64) -> Self {
        Self { vault, lane, first, entries: Vec::new(), bytes: HEADER_BYTES }
    }

    /// The number of the batch that comes next.
    #[must_use]
    pub fn next_n(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// The number of the first batch.
    #[must_use]
    pub fn first(&self) -> u64 {
        self.first
    }

    /// Whether it is time to [`LaneIndexBuilder::finish`].
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.entries.len() as u64 >= limits::LANE_INDEX_BATCHES || self.bytes >= LANE_INDEX_BYTES_TARGET
    }

    /// Whether it covers nothing yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds the next batch. `false`, and nothing is added, if `n` is not [`LaneIndexBuilder::next_n`].
    #[must_use]
    pub fn push(&mut self, n: u64, total_bytes: u64, index: SealedIndex) -> bool {
        if n != self.next_n() {
            return false;
        }
        self.bytes += ENTRY_HEAD_BYTES + index.bytes.len();
        self.entries.push(Entry { n, total_bytes, index });
        true
    }

    /// The whole object.
    #[must_use]
    pub fn finish(self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.bytes);
        out.extend_from_slice(&LANE_INDEX_MAGIC);
        out.extend_from_slice(&(self.entries.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.vault.0);
        out.extend_from_slice(&self.lane.0);
        out.extend_from_slice(&self.first.to_le_bytes());
        out.extend_from_slice(&(self.bytes as u64).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        let crc = crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        for entry in &self.entries {
            let start = out.len();
            out.extend_from_slice(&entry.n.to_le_bytes());
            out.extend_from_slice(&entry.total_bytes.to_le_bytes());
            out.extend_from_slice(&(entry.index.bytes.len() as u32).to_le_bytes());
            out.extend_from_slice(&entry.index.plain_bytes.to_le_bytes());
            out.extend_from_slice(&[entry.index.codec as u8, 0, 0, 0]);
            let crc = entry_crc(&out[start..], &entry.index.bytes);
            out.extend_from_slice(&crc.to_le_bytes());
            out.extend_from_slice(&entry.index.bytes);
        }
        out.freeze()
    }
}

fn entry_crc(head: &[u8], sealed: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(head);
    digest.update(sealed);
    digest.finalize() as u32
}

/// A lane index as read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LaneIndex {
    /// The vault.
    pub vault: Id128,
    /// The lane.
    pub lane: Id128,
    /// Number of its first batch.
    pub first: u64,
    /// Its batches, dense from `first`; open each by [`super::BatchIndex::open`] with the place of its batch.
    pub entries: Vec<Entry>,
}

impl LaneIndex {
    /// The numbers of the batches that a lane index covers, by its first [`HEADER_BYTES`] alone.
    ///
    /// # Errors
    /// [`BatchError`] if they are damaged or of another format.
    pub fn numbers(head: &[u8]) -> Result<RangeInclusive<u64>, BatchError> {
        check_part(head, LANE_INDEX_MAGIC, PART)?;
        let (count, first) = (u64::from(le_u32(head, 4)), le_u64(head, 40));
        let field = |field| BatchError::Field { part: PART, field };
        let end = first.checked_add(count).filter(|_| first > 0).ok_or(field("first batch"))?;
        if count == 0 || count > limits::LANE_INDEX_BATCHES { Err(field("batches")) } else { Ok(first..=end - 1) }
    }

    /// Reads a whole object. The entries share its memory and are still sealed.
    ///
    /// # Errors
    /// [`BatchError`] if it is cut, damaged or of another format.
    pub fn parse(object: &Bytes) -> Result<Self, BatchError> {
        check_part(object, LANE_INDEX_MAGIC, PART)?;
        let (vault, lane) = (id_at(object, 8), id_at(object, 24));
        let field = |field| BatchError::Field { part: PART, field };
        let stated_bytes = le_u64(object, 48);
        if stated_bytes != object.len() as u64 {
            return Err(BatchError::Size { found_bytes: object.len() as u64, stated_bytes });
        }
        if object[56..60] != [0; 4] {
            return Err(field("first batch"));
        }
        let numbers = Self::numbers(object)?;
        let first = *numbers.start();
        let mut rest = object.slice(HEADER_BYTES..);
        let mut entries = Vec::with_capacity((numbers.end() - first + 1) as usize);
        for n in numbers {
            entries.push(take_entry(&mut rest, n)?);
        }
        if rest.is_empty() { Ok(Self { vault, lane, first, entries }) } else { Err(field("total bytes")) }
    }
}

fn take_entry(rest: &mut Bytes, n: u64) -> Result<Entry, BatchError> {
    let short =
        |have: usize, need: usize| BatchError::Short { part: ENTRY, have_bytes: have as u64, need_bytes: need as u64 };
    if rest.len() < ENTRY_HEAD_BYTES {
        return Err(short(rest.len(), ENTRY_HEAD_BYTES));
    }
    let head = rest.split_to(ENTRY_HEAD_BYTES);
    let stored_bytes = le_u32(&head, 16) as usize;
    if rest.len() < stored_bytes {
        return Err(short(rest.len(), stored_bytes));
    }
    let bytes = rest.split_to(stored_bytes);
    if entry_crc(&head[..28], &bytes) != le_u32(&head, 28) {
        return Err(BatchError::Checksum { part: ENTRY });
    }
    let field = |field| BatchError::Field { part: ENTRY, field };
    if le_u64(&head, 0) != n {
        return Err(field("batch number"));
    }
    let codec = Codec::from_byte(head[24]).filter(|_| head[25..28] == [0; 3]).ok_or(field("codec"))?;
    let index = SealedIndex { bytes, codec, plain_bytes: le_u32(&head, 20) };
    Ok(Entry { n, total_bytes: le_u64(&head, 8), index })
}
