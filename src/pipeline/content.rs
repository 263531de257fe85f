//! What a message is made of until it is sealed: records that are kept where they came, or copies of them.
//!
//! A kept record that is a message by itself is packed from where it lies. Several are put together by the thread that packs
//! them, one message at a time in memory that is still warm from the one before, and compared with their checksums there. So
//! a byte of a busy disk is read from main memory once between journal and seal.

use bytes::Bytes;

use crate::types::{RecordError, RecordHead};
use crate::wire::frame::crc32c;

/// A record as it comes into the pipeline.
#[derive(Clone, Debug)]
pub struct Input {
    /// Its bytes.
    pub bytes: Bytes,
    /// The CRC-32C that they must have, if nobody has compared it yet.
    pub unchecked_crc: Option<u32>,
    /// Whether `bytes` may be kept until they are sealed; otherwise they are copied.
    pub may_keep: bool,
}

impl Input {
    /// Compares the bytes with their checksum.
    pub(super) fn check(&self, head: &RecordHead) -> Result<(), RecordError> {
        match self.unchecked_crc {
            Some(crc) if crc32c([&self.bytes[..]]) != crc => {
                Err(RecordError::Checksum { epoch: head.epoch, seq: head.seq })
            }
            _ => Ok(()),
        }
    }
}

/// A record that is kept.
#[derive(Debug)]
pub struct Piece {
    bytes: Bytes,
    unchecked_crc: Option<u32>,
}

impl Piece {
    /// Whether `bytes`, which are the record's or a copy of them, are what its checksum says.
    fn is_whole(&self, bytes: &[u8]) -> bool {
        self.unchecked_crc.is_none_or(|crc| crc32c([bytes]) == crc)
    }
}

/// Records that may be packed.
pub(super) enum Plain<'b> {
    /// A record where the journal keeps it.
    Lent(Bytes),
    /// In the buffer of whoever packs.
    Gathered(&'b [u8]),
    /// In a buffer of their own.
    Copied(Vec<u8>),
}

impl std::ops::Deref for Plain<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Lent(record) => record,
            Self::Gathered(records) => records,
            Self::Copied(records) => records,
        }
    }
}

/// The records of a message.
#[derive(Debug)]
pub enum Content {
    /// As they came; those that could not be kept are copies of their own.
    Kept {
        /// The records.
        pieces: Vec<Piece>,
        /// Bytes of those that are copies.
        copied_bytes: usize,
    },
    /// The records, one behind the other.
    Copied(Vec<u8>),
}

impl Content {
    /// No record yet, and those that come are kept.
    pub(super) const fn kept() -> Self {
        Self::Kept { pieces: Vec::new(), copied_bytes: 0 }
    }

    /// Whether records that come may be kept.
    pub(super) const fn is_kept(&self) -> bool {
        matches!(self, Self::Kept { .. })
    }

    /// Memory of its own.
    pub(super) fn capacity_bytes(&self) -> usize {
        match self {
            Self::Kept { copied_bytes, .. } => *copied_bytes,
            Self::Copied(buffer) => buffer.capacity(),
        }
    }

    /// Adds a record, which was checked unless it is kept.
    pub(super) fn push(&mut self, record: Input, keeps: bool) {
        let Input { bytes, unchecked_crc, .. } = record;
        match self {
            Self::Kept { pieces, .. } if keeps => pieces.push(Piece { bytes, unchecked_crc }),
            Self::Kept { pieces, copied_bytes } => {
                *copied_bytes += bytes.len();
                pieces.push(Piece { bytes: Bytes::copy_from_slice(&bytes), unchecked_crc: None });
            }
            Self::Copied(buffer) => buffer.extend_from_slice(&bytes),
        }
    }

    /// The records, one behind the other and each what its checksum says: where they lie if they lie so, otherwise put
    /// together in `buffer`, and the memory where they came is free. `Err` is the number of the first one that is not what its
    /// checksum says.
    pub(super) fn checked(self, buffer: &mut Vec<u8>) -> Result<Plain<'_>, usize> {
        let pieces = match self {
            // Compared when they were copied.
            Self::Copied(records) => return Ok(Plain::Copied(records)),
            Self::Kept { pieces, .. } => pieces,
        };
        if let [alone] = &pieces[..] {
            return alone.is_whole(&alone.bytes).then(|| Plain::Lent(alone.bytes.clone())).ok_or(0);
        }
        buffer.clear();
        for (number, piece) in pieces.iter().enumerate() {
            let start = buffer.len();
            buffer.extend_from_slice(&piece.bytes);
            // Of the copy, which is what will be packed, and warm.
            if !piece.is_whole(&buffer[start..]) {
                return Err(number);
            }
        }
        Ok(Plain::Gathered(buffer))
    }

    /// The records, one behind the other.
    #[cfg(test)]
    pub(super) fn to_vec(&self) -> Vec<u8> {
        match self {
            Self::Kept { pieces, .. } => pieces.iter().flat_map(|piece| piece.bytes.to_vec()).collect(),
            Self::Copied(buffer) => buffer.clone(),
        }
    }
}
