//! The batch object: header, sealed messages, sealed index, trailer.
//!
//! ```text
//!  header 64                            trailer 64
//!    0 magic "TGB" + version byte         0 magic "TGT" + version byte
//!    4 zero u32                           4 codec of the index u8 · zero 3
//!    8 vault id 16                        8 index offset u64
//!   24 lane id 16                        16 index stored bytes u32
//!   40 batch number u64                  20 index plain bytes u32
//!   48 zero 12                           24 total bytes of the object u64
//!   60 CRC-32C of bytes 0..60            32 lane id 16
//!                                        48 batch number u64
//!                                        56 messages u32
//!                                        60 CRC-32C of bytes 0..60
//! ```
//!
//! The trailer stands at the end, so one ranged read of the last 64 KiB finds it and nearly always the whole index; the
//! size that the store lists must equal the one that the trailer states, so a cut or grown object is noticed before
//! anything is believed. The CRCs find accidents; what defends against malice is the sealing of index and messages, which
//! binds vault, object name, lane and number.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use object_store::PutPayload;

use super::index::{BatchIndex, DiskPart, IndexError, IndexPlace, IndexWriteError, MessageMeta, SealedIndex};
use super::objects::TooLate;
use crate::fault::{Classify, Fault};
use crate::keys::CatalogKey;
use crate::pipeline::codec::Codec;
use crate::types::{DiskId, Id128};

/// First four bytes of a batch: format name and version.
pub const BATCH_MAGIC: [u8; 4] = *b"TGB\x01";
/// First four bytes of a batch's trailer.
pub const TRAILER_MAGIC: [u8; 4] = *b"TGT\x01";
/// Size of the header; the first message starts here.
pub const HEADER_BYTES: usize = 64;
/// Size of the trailer.
pub const TRAILER_BYTES: usize = 64;
/// What to read first of a batch: the trailer, and the index of all but the busiest batches.
pub const TAIL_BYTES: u64 = 64 << 10;

/// Why an object is no whole batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Fewer bytes than the part needs.
    #[error("{have_bytes} bytes are too few for a {part} of {need_bytes}")]
    Short {
        /// Header or trailer.
        part: &'static str,
        /// Bytes present.
        have_bytes: u64,
        /// Bytes needed.
        need_bytes: u64,
    },
    /// Another format or version.
    #[error("no {part} of version 1: starts with {found:02x?}")]
    Magic {
        /// Header or trailer.
        part: &'static str,
        /// The first four bytes.
        found: [u8; 4],
    },
    /// Damaged.
    #[error("the {part} does not match its checksum")]
    Checksum {
        /// Header or trailer.
        part: &'static str,
    },
    /// The object was cut or has grown.
    #[error("the object has {found_bytes} bytes, its trailer says {stated_bytes}")]
    Size {
        /// Bytes that the store says.
        found_bytes: u64,
        /// Bytes that the trailer says.
        stated_bytes: u64,
    },
    /// A field out of its range.
    #[error("{part} field {field} is out of range")]
    Field {
        /// Header or trailer.
        part: &'static str,
        /// Which one.
        field: &'static str,
    },
    /// It is another batch than its name says.
    #[error("this is batch {n} of lane {lane}, which is not what its name says")]
    Place {
        /// The lane it names.
        lane: Id128,
        /// The number it names.
        n: u64,
    },
    /// The index is damaged.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The index was sealed with an older catalog key, after that key's time.
    #[error(transparent)]
    TooLate(#[from] TooLate),
}

impl Classify for BatchError {
    fn fault(&self) -> Fault {
        match self {
            Self::Index(error) => error.fault(),
            _ => Fault::Corrupt,
        }
    }
}

pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

pub(super) fn le_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(super) fn le_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from(le_u32(bytes, at)) | u64::from(le_u32(bytes, at + 4)) << 32
}

pub(super) fn id_at(bytes: &[u8], at: usize) -> Id128 {
    let mut id = [0; 16];
    id.copy_from_slice(&bytes[at..at + 16]);
    Id128(id)
}

/// Checks size, magic and checksum of a fixed 64-byte part.
pub(super) fn check_part(bytes: &[u8], magic: [u8; 4], part: &'static str) -> Result<(), BatchError> {
    if bytes.len() < 64 {
        return Err(BatchError::Short { part, have_bytes: bytes.len() as u64, need_bytes: 64 });
    }
    if bytes[..4] != magic {
        return Err(BatchError::Magic { part, found: [bytes[0], bytes[1], bytes[2], bytes[3]] });
    }
    if crc32c(&bytes[..60]) != le_u32(bytes, 60) {
        return Err(BatchError::Checksum { part });
    }
    Ok(())
}

/// The first 64 bytes: whose batch this is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchHeader {
    /// The vault.
    pub vault: Id128,
    /// The lane.
    pub lane: Id128,
    /// Number in the lane, from 1.
    pub n: u64,
}

impl BatchHeader {
    /// Encodes it.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..4].copy_from_slice(&BATCH_MAGIC);
        out[8..24].copy_from_slice(&self.vault.0);
        out[24..40].copy_from_slice(&self.lane.0);
        out[40..48].copy_from_slice(&self.n.to_le_bytes());
        let crc = crc32c(&out[..60]);
        out[60..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads and checks the header at the start of `bytes`.
    ///
    /// # Errors
    /// [`BatchError`] says what is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, BatchError> {
        check_part(bytes, BATCH_MAGIC, "header")?;
        let header = Self { vault: id_at(bytes, 8), lane: id_at(bytes, 24), n: le_u64(bytes, 40) };
        if bytes[4..8] != [0; 4] || bytes[48..60] != [0; 12] {
            return Err(BatchError::Field { part: "header", field: "reserved" });
        }
        if header.n == 0 {
            return Err(BatchError::Field { part: "header", field: "batch number" });
        }
        Ok(header)
    }
}

/// The last 64 bytes: where the index is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchTrailer {
    /// The lane.
    pub lane: Id128,
    /// Number in the lane.
    pub n: u64,
    /// Where the sealed index starts: the end of the messages.
    pub index_offset_bytes: u64,
    /// Bytes of the sealed index.
    pub index_stored_bytes: u32,
    /// Bytes of its plaintext.
    pub index_plain_bytes: u32,
    /// How it is packed.
    pub index_codec: Codec,
    /// Bytes of the whole object.
    pub total_bytes: u64,
    /// Messages in the batch.
    pub messages: u32,
}

impl BatchTrailer {
    /// Encodes it.
    #[must_use]
    pub fn encode(&self) -> [u8; TRAILER_BYTES] {
        let mut out = [0; TRAILER_BYTES];
        out[..4].copy_from_slice(&TRAILER_MAGIC);
        out[4] = self.index_codec as u8;
        out[8..16].copy_from_slice(&self.index_offset_bytes.to_le_bytes());
        out[16..20].copy_from_slice(&self.index_stored_bytes.to_le_bytes());
        out[20..24].copy_from_slice(&self.index_plain_bytes.to_le_bytes());
        out[24..32].copy_from_slice(&self.total_bytes.to_le_bytes());
        out[32..48].copy_from_slice(&self.lane.0);
        out[48..56].copy_from_slice(&self.n.to_le_bytes());
        out[56..60].copy_from_slice(&self.messages.to_le_bytes());
        let crc = crc32c(&out[..60]);
        out[60..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads and checks the trailer at the end of `tail`, the last bytes of an object of `total_bytes`.
    ///
    /// # Errors
    /// [`BatchError`] says what is wrong; [`BatchError::Size`] if the object was cut or has grown.
    pub fn decode(total_bytes: u64, tail: &[u8]) -> Result<Self, BatchError> {
        const PART: &str = "trailer";
        let least_bytes = (HEADER_BYTES + TRAILER_BYTES) as u64;
        let bytes = &tail[tail.len().saturating_sub(TRAILER_BYTES)..];
        if total_bytes < least_bytes {
            return Err(BatchError::Short { part: "batch", have_bytes: total_bytes, need_bytes: least_bytes });
        }
        check_part(bytes, TRAILER_MAGIC, PART)?;
        let field = |field| BatchError::Field { part: PART, field };
        let trailer = Self {
            lane: id_at(bytes, 32),
            n: le_u64(bytes, 48),
            index_offset_bytes: le_u64(bytes, 8),
            index_stored_bytes: le_u32(bytes, 16),
            index_plain_bytes: le_u32(bytes, 20),
            index_codec: Codec::from_byte(bytes[4]).ok_or(field("index codec"))?,
            total_bytes: le_u64(bytes, 24),
            messages: le_u32(bytes, 56),
        };
        if trailer.total_bytes != total_bytes {
            return Err(BatchError::Size { found_bytes: total_bytes, stated_bytes: trailer.total_bytes });
        }
        if bytes[5..8] != [0; 3] {
            return Err(field("reserved"));
        }
        if trailer.n == 0 {
            return Err(field("batch number"));
        }
        let index_end = trailer.index_offset_bytes.checked_add(u64::from(trailer.index_stored_bytes));
        let starts_after_header = trailer.index_offset_bytes >= HEADER_BYTES as u64;
        if !starts_after_header || index_end != Some(total_bytes - TRAILER_BYTES as u64) {
            return Err(field("index range"));
        }
        Ok(trailer)
    }

    /// The sealed index's range of the object.
    #[must_use]
    pub fn index_range(&self) -> Range<u64> {
        self.index_offset_bytes..self.index_offset_bytes + u64::from(self.index_stored_bytes)
    }
}

/// What the last bytes of a batch gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tail {
    /// The whole index was among them.
    Whole {
        /// The trailer.
        trailer: BatchTrailer,
        /// The index, still sealed.
        index: SealedIndex,
    },
    /// The index starts earlier: read `range` of the object, which includes the trailer, and parse again.
    More {
        /// The trailer.
        trailer: BatchTrailer,
        /// What to read.
        range: Range<u64>,
    },
}

/// What to read of a batch of `total_bytes` before [`parse_tail`].
#[must_use]
pub fn tail_range(total_bytes: u64) -> Range<u64> {
    total_bytes.saturating_sub(TAIL_BYTES)..total_bytes
}

/// Finds the index in `tail`, the last bytes (any number) of a batch object of `total_bytes`.
///
/// # Errors
/// [`BatchError`] if the object is no whole batch.
pub fn parse_tail(total_bytes: u64, tail: &Bytes) -> Result<Tail, BatchError> {
    let trailer = BatchTrailer::decode(total_bytes, tail)?;
    let from_end = total_bytes - trailer.index_offset_bytes;
    if from_end > tail.len() as u64 {
        return Ok(Tail::More { trailer, range: trailer.index_offset_bytes..total_bytes });
    }
    let start = tail.len() - from_end as usize;
    let bytes = tail.slice(start..start + trailer.index_stored_bytes as usize);
    let index = SealedIndex { bytes, codec: trailer.index_codec, plain_bytes: trailer.index_plain_bytes };
    Ok(Tail::Whole { trailer, index })
}

/// Opens the index that [`parse_tail`] found, and checks all that trailer and index say of each other and of `place`.
///
/// # Errors
/// [`BatchError`] if the batch is not what its name says, or the index is damaged.
pub fn open_index(
    key: &CatalogKey,
    place: &IndexPlace<'_>,
    trailer: &BatchTrailer,
    index: &SealedIndex,
) -> Result<BatchIndex, BatchError> {
    if trailer.lane != place.lane || trailer.n != place.n {
        return Err(BatchError::Place { lane: trailer.lane, n: trailer.n });
    }
    let index = BatchIndex::open(key, place, index)?;
    index.check_layout(HEADER_BYTES as u64, trailer.index_offset_bytes)?;
    let messages: usize = index.disks.iter().map(|part| part.messages.len()).sum();
    if messages != trailer.messages as usize {
        return Err(BatchError::Field { part: "trailer", field: "messages" });
    }
    Ok(index)
}

/// A batch while it grows: sealed messages are appended in any mixture of disks.
#[derive(Debug)]
pub struct BatchBuilder {
    header: BatchHeader,
    body: Body,
    parts: BTreeMap<DiskId, Vec<MessageMeta>>,
    messages: u32,
}

/// A finished batch.
#[derive(Debug)]
pub struct FinishedBatch {
    /// The whole object, in pieces.
    pub body: PutPayload,
    /// Its index.
    pub index: BatchIndex,
    /// The index as it stands in the object.
    pub sealed_index: SealedIndex,
}

impl BatchBuilder {
    /// Starts a batch.
    #[must_use]
    pub fn new(header: BatchHeader) -> Self {
        let mut body = Body::default();
        body.copy(&header.encode());
        Self { header, body, parts: BTreeMap::new(), messages: 0 }
    }

    /// Bytes so far, without index and trailer.
    #[must_use]
    pub fn body_bytes(&self) -> usize {
        self.body.bytes
    }

    /// Messages so far.
    #[must_use]
    pub fn messages(&self) -> u32 {
        self.messages
    }

    /// Appends a sealed message. Offset and stored size of `meta` are set here.
    pub fn push(&mut self, disk: &DiskId, mut meta: MessageMeta, sealed: Bytes) {
        meta.offset_bytes = self.body.bytes as u64;
        meta.stored_bytes = sealed.len() as u32;
        self.body.push(sealed);
        self.messages += 1;
        match self.parts.get_mut(disk) {
            Some(messages) => messages.push(meta),
            None => {
                self.parts.insert(disk.clone(), vec![meta]);
            }
        }
    }

    /// Writes index and trailer. `object` is the name under which the batch will be stored.
    ///
    /// # Errors
    /// [`IndexWriteError`] if the index is too large or cannot be sealed.
    pub fn finish(
        mut self,
        key: &CatalogKey,
        object: &str,
        confirmed_through: u64,
    ) -> Result<FinishedBatch, IndexWriteError> {
        let BatchHeader { vault, lane, n } = self.header;
        let disks = self.parts.into_iter().map(|(disk, messages)| DiskPart { disk, messages }).collect();
        let index = BatchIndex { lane, n, confirmed_through, disks };
        let sealed_index = index.seal(key, &IndexPlace { vault, object, lane, n })?;
        let index_offset_bytes = self.body.bytes as u64;
        self.body.push(sealed_index.bytes.clone());
        let trailer = BatchTrailer {
            lane,
            n,
            index_offset_bytes,
            index_stored_bytes: sealed_index.bytes.len() as u32,
            index_plain_bytes: sealed_index.plain_bytes,
            index_codec: sealed_index.codec,
            total_bytes: (self.body.bytes + TRAILER_BYTES) as u64,
            messages: self.messages,
        };
        self.body.copy(&trailer.encode());
        Ok(FinishedBatch { body: self.body.finish(), index, sealed_index })
    }
}

/// Pieces from this size on go out as they are; smaller ones are copied together, because each costs a client and a kernel
/// about as much as copying it.
const PIECE_BYTES_MIN: usize = 32 << 10;

/// The bytes of an object while they come together.
#[derive(Debug, Default)]
struct Body {
    pieces: Vec<Bytes>,
    /// Small pieces since the last large one.
    small: Vec<u8>,
    bytes: usize,
}

impl Body {
    fn push(&mut self, piece: Bytes) {
        if piece.len() < PIECE_BYTES_MIN {
            return self.copy(&piece);
        }
        self.bytes += piece.len();
        self.end_small();
        self.pieces.push(piece);
    }

    fn copy(&mut self, piece: &[u8]) {
        self.bytes += piece.len();
        self.small.extend_from_slice(piece);
    }

    fn end_small(&mut self) {
        if !self.small.is_empty() {
            self.pieces.push(std::mem::take(&mut self.small).into());
        }
    }

    fn finish(mut self) -> PutPayload {
        self.end_small();
        self.pieces.into_iter().collect()
    }
}

#[cfg(test)]
mod tests;
