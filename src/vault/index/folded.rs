//! The folded index: what the batches of one lane say of one disk, so that whoever reads the disk reads no other's rows.
//!
//! ```text
//!  header 64                                  then per section: head 16 · sealed bytes
//!    0 magic "TGF" + version byte               0 stored bytes u32
//!    4 sections u32                             4 plain bytes u32
//!    8 vault id 16                              8 codec u8 · zero 3
//!   24 lane id 16                              12 CRC-32C of bytes 0..12 and of the sealed bytes
//!   40 part u32, from 1
//!   44 last part u8: 0 or 1 · zero 3
//!   48 total bytes of the object u64
//!   56 zero 4
//!   60 CRC-32C of bytes 0..60
//!
//!  section 0: first batch u64 · last batch u64 · confirmed through u64
//!  others:    per batch: total bytes of the batch object u64 · bytes u32 · its index, of this disk alone
//! ```
//!
//! The rows stand in the very encoding of a batch's index, so whatever that can say a folded index says too. A part speaks for every batch
//! from its first to its last: one that it does not name holds nothing of the disk. The parts of a lane follow each other without a gap,
//! from batch 1 on, and the last says that it is. Each section is sealed for vault, object, lane, part, and its place among the others.
//!
//! It is a copy. Whoever cannot read one reads the lane's own indexes.

use bytes::{Bytes, BytesMut};

use super::{BatchIndex, INDEX_PLAIN_BYTES_MAX, IndexError, IndexWriteError};
use crate::keys::CatalogKey;
use crate::keys::seal::{SEAL_HEAD_BYTES, SEAL_OVERHEAD_BYTES, SealOnce, unseal};
use crate::pipeline::codec::{Codec, Packer, Packing, unpack};
use crate::types::{DiskId, Id128};
use crate::vault::batch::{BatchError, check_part, crc32c, id_at, le_u32, le_u64};

/// First four bytes of a folded index: format name and version.
pub const FOLDED_MAGIC: [u8; 4] = *b"TGF\x01";
/// Size at which a part is closed: it is built and read in memory.
pub const FOLDED_BYTES_TARGET: usize = 32 << 20;
/// Largest part that is read: it is closed when it passes its target by the last index.
pub const FOLDED_BYTES_MAX: u64 = (FOLDED_BYTES_TARGET + 2 * INDEX_PLAIN_BYTES_MAX) as u64;

/// Rows that are packed together: enough for the codec to find what repeats.
const SECTION_BYTES_TARGET: usize = 64 << 10;
/// Largest plaintext of a section: it is closed when it passes its target by the last index.
const SECTION_BYTES_MAX: usize = SECTION_BYTES_TARGET + INDEX_PLAIN_BYTES_MAX + ENTRY_HEAD_BYTES;
/// Most sections of a part: full ones fill it, and the first one tells its bounds.
const SECTIONS_MAX: usize = 2 + FOLDED_BYTES_TARGET / SEAL_OVERHEAD_BYTES;
const HEADER_BYTES: usize = 64;
const SECTION_HEAD_BYTES: usize = 16;
const ENTRY_HEAD_BYTES: usize = 12;
const BOUNDS_BYTES: usize = 24;
const LABEL: &[u8] = b"tidegate 1 folded index";
const PART: &str = "folded index";

/// What a folded index is bound to.
#[derive(Clone, Copy, Debug)]
pub struct FoldedPlace<'a> {
    /// The vault.
    pub vault: Id128,
    /// Name of the object within the vault.
    pub object: &'a str,
    /// The lane.
    pub lane: Id128,
    /// Number of the part, from 1.
    pub part: u32,
}

/// For which batches a part speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FoldedBounds {
    /// First batch.
    pub first: u64,
    /// Last batch; one less than the first if the lane has none.
    pub last: u64,
    /// Every batch of the lane up to this number was confirmed by the store.
    pub confirmed_through: u64,
    /// Whether no further part follows.
    pub is_last: bool,
}

/// A section before it is sealed: room for the seal's head, then the packed rows.
#[derive(Debug)]
struct Packed {
    bytes: Vec<u8>,
    codec: Codec,
    plain_bytes: u32,
}

impl Packed {
    fn new(plain: &[u8]) -> Self {
        let mut bytes = Vec::new();
        let codec = Packer::default().pack(Packing::Lz4, plain, SEAL_HEAD_BYTES, &mut bytes);
        if codec == Codec::Raw {
            bytes = SealOnce::room();
            bytes.extend_from_slice(plain);
        }
        bytes.shrink_to_fit();
        Self { bytes, codec, plain_bytes: plain.len() as u32 }
    }
}

/// A part while it grows.
#[derive(Debug, Default)]
pub struct FoldedBuilder {
    packed: Vec<Packed>,
    open: Vec<u8>,
    packed_bytes: usize,
}

impl FoldedBuilder {
    /// Adds what a batch of `total_bytes` says of the disk: an encoded index that holds this disk alone.
    pub fn push(&mut self, total_bytes: u64, index: &[u8]) {
        self.open.extend_from_slice(&total_bytes.to_le_bytes());
        self.open.extend_from_slice(&(index.len() as u32).to_le_bytes());
        self.open.extend_from_slice(index);
        if self.open.len() >= SECTION_BYTES_TARGET {
            self.close();
        }
    }

    fn close(&mut self) {
        let packed = Packed::new(&std::mem::take(&mut self.open));
        self.packed_bytes += SECTION_HEAD_BYTES + packed.bytes.len() + SEAL_OVERHEAD_BYTES;
        self.packed.push(packed);
    }

    /// Memory that it takes.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.packed_bytes + self.open.capacity()
    }

    /// Bytes that it takes at most when it is stored. At [`FOLDED_BYTES_TARGET`] it is time to [`FoldedBuilder::finish`].
    #[must_use]
    pub fn stored_bytes(&self) -> usize {
        self.packed_bytes + self.open.len()
    }

    /// The whole object.
    ///
    /// # Errors
    /// [`IndexWriteError`] if the random generator fails.
    pub fn finish(
        mut self,
        key: &CatalogKey,
        place: &FoldedPlace<'_>,
        bounds: FoldedBounds,
    ) -> Result<Bytes, IndexWriteError> {
        if !self.open.is_empty() {
            self.close();
        }
        let told = [bounds.first, bounds.last, bounds.confirmed_through].map(u64::to_le_bytes).concat();
        let sections: Vec<Packed> = std::iter::once(Packed::new(&told)).chain(self.packed).collect();
        let frame = Frame { sections: sections.len() as u32, is_last: bounds.is_last };
        let mut out = BytesMut::from(&[0; HEADER_BYTES][..]);
        for (number, Packed { mut bytes, codec, plain_bytes }) in sections.into_iter().enumerate() {
            let secret = key.index_secret();
            let once = frame.with_context(place, number as u32, codec, plain_bytes, |context| {
                SealOnce::new(&secret, LABEL, context)
            })?;
            once.seal(&mut bytes)?;
            let mut head = [0; SECTION_HEAD_BYTES];
            head[..4].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
            head[4..8].copy_from_slice(&plain_bytes.to_le_bytes());
            head[8] = codec as u8;
            let crc = section_crc(&head[..12], &bytes);
            head[12..].copy_from_slice(&crc.to_le_bytes());
            out.extend_from_slice(&head);
            out.extend_from_slice(&bytes);
        }
        let total_bytes = out.len() as u64;
        out[..HEADER_BYTES].copy_from_slice(&frame.header(place, total_bytes));
        Ok(out.freeze())
    }
}

fn section_crc(head: &[u8], sealed: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(head);
    digest.update(sealed);
    digest.finalize() as u32
}

/// What the header says of the whole, and every section is sealed for.
#[derive(Clone, Copy)]
struct Frame {
    sections: u32,
    is_last: bool,
}

impl Frame {
    fn header(self, place: &FoldedPlace<'_>, total_bytes: u64) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..4].copy_from_slice(&FOLDED_MAGIC);
        out[4..8].copy_from_slice(&self.sections.to_le_bytes());
        out[8..24].copy_from_slice(&place.vault.0);
        out[24..40].copy_from_slice(&place.lane.0);
        out[40..44].copy_from_slice(&place.part.to_le_bytes());
        out[44] = u8::from(self.is_last);
        out[48..56].copy_from_slice(&total_bytes.to_le_bytes());
        let crc = crc32c(&out[..60]);
        out[60..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The context of a section; every part has a fixed width or its length in front.
    fn with_context<T>(
        self,
        place: &FoldedPlace<'_>,
        number: u32,
        codec: Codec,
        plain_bytes: u32,
        use_it: impl FnOnce(&[&[u8]]) -> T,
    ) -> T {
        let name_bytes = (place.object.len() as u32).to_le_bytes();
        let context: [&[u8]; 10] = [
            &place.vault.0,
            &name_bytes,
            place.object.as_bytes(),
            &place.lane.0,
            &place.part.to_le_bytes(),
            &[u8::from(self.is_last)],
            &self.sections.to_le_bytes(),
            &number.to_le_bytes(),
            &[codec as u8],
            &plain_bytes.to_le_bytes(),
        ];
        use_it(&context)
    }
}

/// A sealed section as it stands in the object.
struct Section {
    bytes: Bytes,
    codec: Codec,
    plain_bytes: u32,
}

/// A part as it is stored, still sealed.
pub struct SealedFolded {
    frame: Frame,
    sections: Vec<Section>,
}

impl SealedFolded {
    /// Reads a whole object that must be the part of `place`.
    ///
    /// # Errors
    /// [`BatchError`] if it is cut, damaged, of another format or of another place.
    pub fn parse(place: &FoldedPlace<'_>, object: &Bytes) -> Result<Self, BatchError> {
        check_part(object, FOLDED_MAGIC, PART)?;
        let field = |field| BatchError::Field { part: PART, field };
        let (vault, lane, part) = (id_at(object, 8), id_at(object, 24), le_u32(object, 40));
        if (vault, lane, part) != (place.vault, place.lane, place.part) {
            return Err(BatchError::Place { lane, n: u64::from(part) });
        }
        let stated_bytes = le_u64(object, 48);
        if stated_bytes != object.len() as u64 {
            return Err(BatchError::Size { found_bytes: object.len() as u64, stated_bytes });
        }
        if object[44] > 1 || object[45..48] != [0; 3] || object[56..60] != [0; 4] {
            return Err(field("last part"));
        }
        let count = le_u32(object, 4) as usize;
        if count == 0 || count > SECTIONS_MAX || count * SECTION_HEAD_BYTES > object.len() {
            return Err(field("sections"));
        }
        let frame = Frame { sections: count as u32, is_last: object[44] == 1 };
        let mut rest = object.slice(HEADER_BYTES..);
        let mut sections = Vec::with_capacity(count);
        for _ in 0..count {
            sections.push(take_section(&mut rest)?);
        }
        if rest.is_empty() { Ok(Self { frame, sections }) } else { Err(field("total bytes")) }
    }

    /// The same object again: there is one way to write it.
    #[must_use]
    pub fn encode(&self, place: &FoldedPlace<'_>) -> Bytes {
        let mut out = BytesMut::from(&[0; HEADER_BYTES][..]);
        for section in &self.sections {
            let mut head = [0; SECTION_HEAD_BYTES];
            head[..4].copy_from_slice(&(section.bytes.len() as u32).to_le_bytes());
            head[4..8].copy_from_slice(&section.plain_bytes.to_le_bytes());
            head[8] = section.codec as u8;
            let crc = section_crc(&head[..12], &section.bytes);
            head[12..].copy_from_slice(&crc.to_le_bytes());
            out.extend_from_slice(&head);
            out.extend_from_slice(&section.bytes);
        }
        let total_bytes = out.len() as u64;
        out[..HEADER_BYTES].copy_from_slice(&self.frame.header(place, total_bytes));
        out.freeze()
    }

    fn open_section(&self, key: &CatalogKey, place: &FoldedPlace<'_>, number: usize) -> Result<Vec<u8>, BatchError> {
        let section = &self.sections[number];
        if section.plain_bytes as usize > SECTION_BYTES_MAX {
            return Err(IndexError::TooLarge { plain_bytes: u64::from(section.plain_bytes) }.into());
        }
        let secret = key.index_secret();
        let mut bytes = section.bytes.to_vec();
        let packed = self.frame.with_context(place, number as u32, section.codec, section.plain_bytes, |context| {
            unseal(&secret, LABEL, context, &mut bytes)
        });
        let packed = packed.map_err(|source| IndexError::Unseal { object: place.object.to_owned(), source })?;
        let mut plain = Vec::new();
        unpack(section.codec, packed, section.plain_bytes as usize, &mut plain).map_err(IndexError::from)?;
        Ok(plain)
    }

    /// Opens and decodes it.
    ///
    /// # Errors
    /// [`BatchError`] says whether it does not open (wrong key, moved, altered), breaks the format, or speaks of another disk.
    pub fn open(&self, key: &CatalogKey, place: &FoldedPlace<'_>, disk: &DiskId) -> Result<FoldedIndex, BatchError> {
        let sections = (0..self.sections.len()).map(|number| self.open_section(key, place, number));
        FoldedIndex::decode(place.lane, disk, self.frame.is_last, sections)
    }
}

fn take_section(rest: &mut Bytes) -> Result<Section, BatchError> {
    let short =
        |have: usize, need: usize| BatchError::Short { part: PART, have_bytes: have as u64, need_bytes: need as u64 };
    if rest.len() < SECTION_HEAD_BYTES {
        return Err(short(rest.len(), SECTION_HEAD_BYTES));
    }
    let head = rest.split_to(SECTION_HEAD_BYTES);
    let stored_bytes = le_u32(&head, 0) as usize;
    if rest.len() < stored_bytes {
        return Err(short(rest.len(), stored_bytes));
    }
    let bytes = rest.split_to(stored_bytes);
    if section_crc(&head[..12], &bytes) != le_u32(&head, 12) {
        return Err(BatchError::Checksum { part: PART });
    }
    let codec = Codec::from_byte(head[8]).filter(|_| head[9..12] == [0; 3]);
    let codec = codec.ok_or(BatchError::Field { part: PART, field: "codec" })?;
    Ok(Section { bytes, codec, plain_bytes: le_u32(&head, 4) })
}

fn take_batch(rest: &mut &[u8]) -> Result<FoldedBatch, BatchError> {
    let short = BatchError::Field { part: PART, field: "batch" };
    let Some((head, after)) = rest.split_at_checked(ENTRY_HEAD_BYTES) else { return Err(short) };
    let Some((index, after)) = after.split_at_checked(le_u32(head, 8) as usize) else { return Err(short) };
    *rest = after;
    Ok(FoldedBatch { total_bytes: le_u64(head, 0), index: BatchIndex::decode(index)? })
}

/// What one batch says of the disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FoldedBatch {
    /// Bytes of the whole batch object.
    pub total_bytes: u64,
    /// Its index, of this disk alone.
    pub index: BatchIndex,
}

/// A part as it was read and opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FoldedIndex {
    /// For which batches it speaks.
    pub bounds: FoldedBounds,
    /// Those that hold something of the disk, ascending.
    pub batches: Vec<FoldedBatch>,
}

impl FoldedIndex {
    /// Decodes the plaintext of the sections, in order: bounds first, then rows.
    ///
    /// # Errors
    /// [`BatchError`] names the field, or is that of a section.
    pub fn decode(
        lane: Id128,
        disk: &DiskId,
        is_last: bool,
        mut sections: impl Iterator<Item = Result<Vec<u8>, BatchError>>,
    ) -> Result<Self, BatchError> {
        let field = |field| BatchError::Field { part: PART, field };
        let told = sections.next().transpose()?.filter(|told| told.len() == BOUNDS_BYTES).ok_or(field("bounds"))?;
        let [first, last, confirmed_through] = [0, 8, 16].map(|at| le_u64(&told, at));
        if first == 0 || first - 1 > last {
            return Err(field("bounds"));
        }
        let mut batches: Vec<FoldedBatch> = Vec::new();
        for plain in sections {
            let plain = plain?;
            let mut rest = plain.as_slice();
            while !rest.is_empty() {
                let batch = take_batch(&mut rest)?;
                let one = &batch.index;
                let before = batches.last().map_or(first - 1, |before| before.index.n);
                if one.lane != lane || one.n <= before || one.n > last {
                    return Err(IndexError::Place { lane: one.lane, n: one.n }.into());
                }
                if one.disks.len() != 1 || one.disks[0].disk != *disk {
                    return Err(field("disk"));
                }
                batches.push(batch);
            }
        }
        Ok(Self { bounds: FoldedBounds { first, last, confirmed_through, is_last }, batches })
    }

    /// Whether these parts, in order, speak for a lane from its first batch to its last.
    #[must_use]
    pub fn are_whole(parts: &[Self]) -> bool {
        let mut next = 1;
        for (at, part) in parts.iter().enumerate() {
            if part.bounds.first != next || part.bounds.is_last != (at + 1 == parts.len()) {
                return false;
            }
            next = part.bounds.last.saturating_add(1);
        }
        !parts.is_empty()
    }
}
