//! The bytes of a commit (`TGJC` version 1 of `docs/FORMAT.md`): pure encoding and checking.
//!
//! ```text
//!  0        128                     t (multiple of 8)          commit_bytes (multiple of 4096)
//!  ├ header ┼ bodies, back to back ─┼ table: one row per body ─┼ zero ┤
//! ```
//!
//! The table stands behind the bodies, so that sessions copy records to their final place before anybody knows how
//! many will share the commit. Header and table have a CRC-32C each; every body has its own in its row (of a record
//! it is the one that the wire carried), so one bad body costs one record.

use std::ops::Range;

use bytes::Bytes;

use super::disk::AlignedBuf;
use crate::limits::{BLOCK_BYTES, COMMIT_BYTES_MAX};
use crate::mutants::{self, Mutant};
use crate::types::{Chain, DiskId, Epoch, Id128, Micros, PointId, Seq};

/// Format name.
const MAGIC: [u8; 4] = *b"TGJC";
/// Format version.
pub const VERSION: u16 = 1;
/// Size of the header; the first body follows.
pub const HEADER_BYTES: usize = 128;
/// Where the header's own CRC stands.
const HEADER_CRC_AT: usize = HEADER_BYTES - 4;
/// Size of a row without the disk's name.
const ROW_BYTES: usize = 40;

/// CRC-32C.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// Whose journal and which segment a commit belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The journal.
    pub journal: Id128,
    /// The shard.
    pub shard: u16,
    /// The segment's number; a segment that is used again has a new one.
    pub segment: u64,
}

/// The fixed part of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Where it belongs.
    pub owner: Owner,
    /// Its place in the file.
    pub offset_bytes: u64,
    /// Its number in the shard, dense.
    pub number: u64,
    /// Bytes of all bodies.
    pub body_bytes: u32,
    /// Bytes of the table.
    pub table_bytes: u32,
    /// Rows of the table.
    pub rows: u32,
    /// Bytes of the whole commit.
    pub commit_bytes: u32,
    table_crc: u32,
}

/// What a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowKind {
    /// A record.
    Record,
    /// "This disk's records up to seq are vaulted": 32 bytes of chain.
    Vaulted,
    /// "What is here of this epoch was given up": no bytes.
    Forgotten,
    /// "That segment ends there, whatever stands behind": no disk, no bytes; the segment stands in place of the epoch,
    /// its end in place of the seq.
    Cut,
    /// "That segment is held up to there": as [`Self::Cut`].
    Held,
    /// "That segment is held no more": as [`Self::Cut`], without an end.
    Released,
}

impl RowKind {
    /// Whether the row speaks of a segment, not of a disk.
    #[must_use]
    pub const fn is_of_segment(self) -> bool {
        matches!(self, Self::Cut | Self::Held | Self::Released)
    }

    const fn byte(self) -> u8 {
        match self {
            Self::Record => 1,
            Self::Vaulted => 2,
            Self::Forgotten => 3,
            Self::Cut => 4,
            Self::Held => 5,
            Self::Released => 6,
        }
    }
}

/// One row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// What the body is.
    pub kind: RowKind,
    /// Its CRC-32C.
    pub crc: u32,
    /// Its place in the commit.
    pub body: Range<usize>,
    /// Epoch of the record or mark.
    pub epoch: Epoch,
    /// Seq of the record or mark.
    pub seq: Seq,
    /// When a record was received.
    pub received: Micros,
    /// The disk's name.
    pub disk: Range<usize>,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

impl Header {
    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[0..4].copy_from_slice(&MAGIC);
        out[4..6].copy_from_slice(&VERSION.to_le_bytes());
        out[6..8].copy_from_slice(&self.owner.shard.to_le_bytes());
        out[8..24].copy_from_slice(&self.owner.journal.0);
        out[24..32].copy_from_slice(&self.owner.segment.to_le_bytes());
        out[32..40].copy_from_slice(&self.offset_bytes.to_le_bytes());
        out[40..48].copy_from_slice(&self.number.to_le_bytes());
        out[48..52].copy_from_slice(&self.body_bytes.to_le_bytes());
        out[52..56].copy_from_slice(&self.table_bytes.to_le_bytes());
        out[56..60].copy_from_slice(&self.rows.to_le_bytes());
        out[60..64].copy_from_slice(&self.commit_bytes.to_le_bytes());
        out[64..68].copy_from_slice(&self.table_crc.to_le_bytes());
        let crc = crc32c(&out[..HEADER_CRC_AT]);
        out[HEADER_CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the header at the start of `bytes`, if there is one of this version that contradicts nothing.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < HEADER_BYTES
            || bytes[0..4] != MAGIC
            || bytes[4..6] != VERSION.to_le_bytes()
            || u32_at(bytes, HEADER_CRC_AT) != crc32c(&bytes[..HEADER_CRC_AT])
        {
            return None;
        }
        let mut journal = Id128::NONE;
        journal.0.copy_from_slice(&bytes[8..24]);
        let shard = u16::from_le_bytes([bytes[6], bytes[7]]);
        let header = Self {
            owner: Owner { journal, shard, segment: u64_at(bytes, 24) },
            offset_bytes: u64_at(bytes, 32),
            number: u64_at(bytes, 40),
            body_bytes: u32_at(bytes, 48),
            table_bytes: u32_at(bytes, 52),
            rows: u32_at(bytes, 56),
            commit_bytes: u32_at(bytes, 60),
            table_crc: u32_at(bytes, 64),
        };
        header.fits().then_some(header)
    }

    /// Whether the bytes look like the start of a header of `owner` at `offset_bytes`, damaged or not: what a torn
    /// write leaves, in contrast to whatever stood there before.
    #[must_use]
    pub fn was_begun(bytes: &[u8], owner: &Owner, offset_bytes: u64) -> bool {
        bytes.len() >= HEADER_BYTES
            && bytes[0..4] == MAGIC
            && bytes[8..24] == owner.journal.0
            && u64_at(bytes, 24) == owner.segment
            && u64_at(bytes, 32) == offset_bytes
    }

    fn fits(&self) -> bool {
        let commit_bytes = self.commit_bytes as usize;
        // Numbers are dense from 1: the ends of their range are no journal's, and have no neighbours to count to.
        (1..u64::MAX).contains(&self.number)
            && commit_bytes <= COMMIT_BYTES_MAX
            && commit_bytes.is_multiple_of(BLOCK_BYTES)
            && (self.body_bytes as usize) < commit_bytes
            && (self.table_bytes as usize) < commit_bytes
            && self.table().end <= commit_bytes
            && self.rows as usize <= self.table_bytes as usize / ROW_BYTES
    }

    /// Where the table stands in the commit.
    #[must_use]
    pub fn table(&self) -> Range<usize> {
        let start = (HEADER_BYTES + self.body_bytes as usize).next_multiple_of(8);
        start..start + self.table_bytes as usize
    }

    /// Reads the table of the whole `commit`; `None` if it is not what was written.
    #[must_use]
    pub fn rows(&self, commit: &[u8]) -> Option<Vec<Row>> {
        let table = self.table();
        if crc32c(commit.get(table.clone())?) != self.table_crc {
            return None;
        }
        let bodies_end = HEADER_BYTES + self.body_bytes as usize;
        let mut rows = Vec::with_capacity(self.rows as usize);
        let mut at = table.start;
        for _ in 0..self.rows {
            let row = commit.get(at..table.end).filter(|row| row.len() >= ROW_BYTES)?;
            let kind = match row[0] {
                1 => RowKind::Record,
                2 => RowKind::Vaulted,
                3 => RowKind::Forgotten,
                4 => RowKind::Cut,
                5 => RowKind::Held,
                6 => RowKind::Released,
                _ => return None,
            };
            let name_bytes = usize::from(row[1]);
            let body_start = u32_at(row, 8) as usize;
            let body = body_start..body_start.checked_add(u32_at(row, 12) as usize)?;
            let disk = at + ROW_BYTES..at + ROW_BYTES + name_bytes;
            if body.start < HEADER_BYTES || body.end > bodies_end || disk.end > table.end {
                return None;
            }
            at += (ROW_BYTES + name_bytes).next_multiple_of(8);
            let (epoch, seq) = (Epoch(u64_at(row, 16)), Seq(u64_at(row, 24)));
            rows.push(Row { kind, crc: u32_at(row, 4), body, epoch, seq, received: Micros(u64_at(row, 32)), disk });
        }
        Some(rows)
    }
}

impl Row {
    /// The record's or mark's place in its disk.
    #[must_use]
    pub const fn point(&self) -> PointId {
        PointId { epoch: self.epoch, seq: self.seq }
    }

    /// Whether the body in `commit` is what was written.
    #[must_use]
    pub fn is_whole(&self, commit: &[u8]) -> bool {
        mutants::on(Mutant::JournalCrcUnchecked) || crc32c(&commit[self.body.clone()]) == self.crc
    }

    /// The disk's name in `commit`.
    #[must_use]
    pub fn disk_name<'a>(&self, commit: &'a [u8]) -> Option<&'a str> {
        std::str::from_utf8(&commit[self.disk.clone()]).ok()
    }

    /// The chain of a mark.
    #[must_use]
    pub fn chain(&self, commit: &[u8]) -> Option<Chain> {
        commit[self.body.clone()].try_into().ok().map(Chain)
    }
}

/// A commit while it is filled.
#[derive(Debug)]
pub struct CommitBuilder {
    buf: AlignedBuf,
    body_end: usize,
    table: Vec<u8>,
    rows: u32,
}

fn row_bytes(disk: &str) -> usize {
    (ROW_BYTES + disk.len()).next_multiple_of(8)
}

impl CommitBuilder {
    /// An empty commit in `buf`, whose content does not matter.
    #[must_use]
    pub fn new(buf: AlignedBuf) -> Self {
        Self { buf, body_end: HEADER_BYTES, table: Vec::new(), rows: 0 }
    }

    /// Whether nothing was put in.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Bytes it would have if sealed now with `more_body` bytes and `more_table` bytes besides.
    fn bytes_with(&self, more_body: usize, more_table: usize) -> usize {
        ((self.body_end + more_body).next_multiple_of(8) + self.table.len() + more_table).next_multiple_of(BLOCK_BYTES)
    }

    /// Bytes it would have if sealed now.
    #[must_use]
    pub fn commit_bytes(&self) -> usize {
        self.bytes_with(0, 0)
    }

    /// Whether a body of `bytes` for `disk` fits while `reserve_bytes` stay free.
    #[must_use]
    pub fn fits(&self, disk: &DiskId, bytes: usize, reserve_bytes: usize) -> bool {
        self.bytes_with(bytes, row_bytes(disk.as_str())) + reserve_bytes <= self.buf.len()
    }

    fn push_row(&mut self, row: &Row, disk: &str) {
        let start = self.table.len();
        self.table.extend_from_slice(&[row.kind.byte(), disk.len() as u8, 0, 0]);
        self.table.extend_from_slice(&row.crc.to_le_bytes());
        self.table.extend_from_slice(&(row.body.start as u32).to_le_bytes());
        self.table.extend_from_slice(&(row.body.len() as u32).to_le_bytes());
        self.table.extend_from_slice(&row.epoch.0.to_le_bytes());
        self.table.extend_from_slice(&row.seq.0.to_le_bytes());
        self.table.extend_from_slice(&row.received.0.to_le_bytes());
        self.table.extend_from_slice(disk.as_bytes());
        self.table.resize(start + row_bytes(disk), 0);
        self.rows += 1;
    }

    /// Copies a record in: the one copy between the wire's chunks and the disk. The caller checked that it fits.
    pub fn push_record(&mut self, disk: &DiskId, at: (Epoch, Seq), received: Micros, crc: u32, chunks: &[Bytes]) {
        let start = self.body_end;
        for chunk in chunks {
            let end = self.body_end + chunk.len();
            self.buf[self.body_end..end].copy_from_slice(chunk);
            self.body_end = end;
        }
        let body = start..self.body_end;
        let row = Row { kind: RowKind::Record, crc, body, epoch: at.0, seq: at.1, received, disk: 0..0 };
        self.push_row(&row, disk.as_str());
    }

    /// Puts a vaulted mark in, or with no chain a forgotten one. The caller checked that it fits.
    pub fn push_mark(&mut self, disk: &DiskId, at: (Epoch, Seq), chain: Option<Chain>) {
        let (kind, bytes) = match &chain {
            Some(chain) => (RowKind::Vaulted, chain.0.as_slice()),
            None => (RowKind::Forgotten, [].as_slice()),
        };
        let body = self.body_end..self.body_end + bytes.len();
        self.buf[body.clone()].copy_from_slice(bytes);
        self.body_end = body.end;
        let crc = crc32c(bytes);
        let row = Row { kind, crc, body, epoch: at.0, seq: at.1, received: Micros(0), disk: 0..0 };
        self.push_row(&row, disk.as_str());
    }

    /// Puts in a note of a segment if it fits while `reserve_bytes` stay free.
    pub fn push_note(&mut self, kind: RowKind, segment: u64, end_bytes: u64, reserve_bytes: usize) -> bool {
        let fits = self.bytes_with(0, ROW_BYTES) + reserve_bytes <= self.buf.len();
        if fits {
            let (epoch, seq, body) = (Epoch(segment), Seq(end_bytes), self.body_end..self.body_end);
            let row = Row { kind, crc: crc32c(&[]), body, epoch, seq, received: Micros(0), disk: 0..0 };
            self.push_row(&row, "");
        }
        fits
    }

    /// Writes header, table and padding for this place. May be done again for another place.
    pub fn seal(&mut self, owner: Owner, offset_bytes: u64, number: u64) -> usize {
        let commit_bytes = self.commit_bytes();
        let header = Header {
            owner,
            offset_bytes,
            number,
            body_bytes: (self.body_end - HEADER_BYTES) as u32,
            table_bytes: self.table.len() as u32,
            rows: self.rows,
            commit_bytes: commit_bytes as u32,
            table_crc: crc32c(&self.table),
        };
        let table = header.table();
        self.buf[self.body_end..table.start].fill(0);
        self.buf[table.clone()].copy_from_slice(&self.table);
        self.buf[table.end..commit_bytes].fill(0);
        self.buf[..HEADER_BYTES].copy_from_slice(&header.encode());
        commit_bytes
    }

    /// Lends the buffer out for a write; [`Self::put_back`] is the way home.
    pub fn lend(&mut self) -> AlignedBuf {
        std::mem::replace(&mut self.buf, AlignedBuf::none())
    }

    /// Takes the lent buffer back.
    pub fn put_back(&mut self, buf: AlignedBuf) {
        self.buf = buf;
    }
}

#[cfg(test)]
mod tests;
