//! The words of the system as types: disks, epochs, sequence numbers, label times, extents, and the record.
//!
//! A record is encoded once, by the agent, and travels as the same bytes through the wire, the journal and the
//! sealed messages of the vault. No hop re-encodes it, so every hop can check it. The layout (all integers little
//! endian) is format `TGR` version 1 of `docs/FORMAT.md`:
//!
//! ```text
//!   0  magic "TGR" + version byte      48  group id, 16 bytes (barriers; zero otherwise)
//!   4  kind: write, copy, barrier      64  digest: BLAKE3(extent table ‖ payload), 32 bytes
//!   5  barrier kind, 0 if none         96  chain:  BLAKE3(chain before ‖ bytes 0..96), 32 bytes
//!   6  flags, zero                    128  extent table: 16 bytes per extent
//!   8  extent count      u32                 offset u64 · length u32 · kind u32 (0 data, 1 zero)
//!  12  payload bytes     u32           …  payload: the data extents' bytes in table order;
//!  16  epoch             u64              of a barrier: its name in UTF-8
//!  24  seq               u64
//!  32  label time        u64, microseconds since 1970-01-01 UTC
//!  40  clock uncertainty u32, microseconds
//!  44  reserved, zero
//! ```
//!
//! A barrier that its agent signed is version 2: it has its [`crate::signed`] block where others have extents.
//!
//! Extents apply in table order: where two overlap, the later one wins.

use std::fmt;
use std::str::FromStr;

use crate::limits;

/// The name of a protected disk, unique within a vault: 1 to 63 of `a-z 0-9 . _ -`, first one alphanumeric.
///
/// It is part of object names, so it must be safe in a path, a URL and a metric label.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DiskId(std::sync::Arc<str>);

/// Why a string is no [`DiskId`] (or agent or gateway name: the rule is the same).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not a valid name: use 1 to 63 characters of a-z 0-9 . _ - and start with a letter or digit")]
pub struct InvalidNameError {
    /// The refused name, cut to 80 characters.
    pub name: String,
}

/// Checks a name by the rule of [`DiskId`].
///
/// # Errors
/// [`InvalidNameError`] names the refused text.
pub fn check_name(name: &str) -> Result<(), InvalidNameError> {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = name.as_bytes();
    let valid = (1..=limits::NAME_BYTES_MAX).contains(&bytes.len())
        && good(bytes[0])
        && bytes.iter().all(|&b| good(b) || matches!(b, b'.' | b'_' | b'-'));
    if valid { Ok(()) } else { Err(InvalidNameError { name: name.chars().take(80).collect() }) }
}

impl DiskId {
    /// Checks and takes a disk name.
    ///
    /// # Errors
    /// [`InvalidNameError`] if the name breaks the rule.
    pub fn new(name: &str) -> Result<Self, InvalidNameError> {
        check_name(name)?;
        Ok(Self(name.into()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "disk:{}", self.0)
    }
}

impl FromStr for DiskId {
    type Err = InvalidNameError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::new(s)
    }
}

impl serde::Serialize for DiskId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for DiskId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Self::new(&text).map_err(serde::de::Error::custom)
    }
}

/// Number of an epoch of one disk; the first is 1.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

/// Number of a record within its epoch, dense from 1. Zero stands for "before the first record".
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Seq(pub u64);

impl Seq {
    /// Before the first record of an epoch.
    pub const NONE: Self = Self(0);

    /// The number that follows.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A place in a disk's history: every record of `epoch` up to and including `seq`, on the lineage that leads there.
///
/// As text `e<epoch>-s<seq>`, the id by which users name a recovery point.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PointId {
    /// Epoch of the last record included.
    pub epoch: Epoch,
    /// Seq of the last record included.
    pub seq: Seq,
}

impl fmt::Display for PointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "e{}-s{}", self.epoch, self.seq)
    }
}

/// A text that is no point id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a point id: expected e<epoch>-s<seq>, for example e1-s4711")]
pub struct InvalidPointError {
    /// The refused text.
    pub text: String,
}

impl FromStr for PointId {
    type Err = InvalidPointError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (epoch, seq) = s.strip_prefix('e')?.split_once("-s")?;
            Some(Self { epoch: Epoch(epoch.parse().ok()?), seq: Seq(seq.parse().ok()?) })
        };
        // A point has one name: no signs, no leading zeros.
        let point = parse().filter(|point: &Self| point.to_string() == s);
        point.ok_or_else(|| InvalidPointError { text: s.to_owned() })
    }
}

/// A label time or any other wall-clock time: microseconds since 1970-01-01 UTC. Never used for order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Micros(pub u64);

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_microsecond(self.0.min(i64::MAX as u64) as i64) {
            Ok(time) => write!(f, "{time:.6}"),
            Err(_) => write!(f, "{}us", self.0),
        }
    }
}

/// Digest of a record's extent table and payload, or of a certificate.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

/// Hash over the whole history of a disk up to one record; equal chains mean equal histories.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Chain(pub [u8; 32]);

macro_rules! hex_text {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = String::deserialize(d)?;
                parse_hex(&text).map(Self).ok_or_else(|| serde::de::Error::custom("expected hexadecimal digits"))
            }
        }
    };
}
pub(crate) use hex_text;

/// Reads exactly `2 N` hexadecimal digits.
#[must_use]
pub fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut out = [0; N];
    // Not left to the parser of numbers, which takes a sign.
    if text.len() != 2 * N || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}

/// A 128-bit random id, shown as 32 hexadecimal digits: vaults, lanes, groups, journals.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Id128(pub [u8; 16]);

impl Id128 {
    /// All zero: "none".
    pub const NONE: Self = Self([0; 16]);
}

impl FromStr for Id128 {
    type Err = InvalidIdError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        parse_hex(s).map(Self).ok_or(InvalidIdError)
    }
}

/// A text that is no [`Id128`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected 32 hexadecimal digits")]
pub struct InvalidIdError;

hex_text!(Digest);
hex_text!(Chain);
hex_text!(Id128);

impl Chain {
    /// The chain before the first record of a disk's first epoch.
    pub const GENESIS: Self = Self([0; 32]);

    /// The chain with which `epoch` starts when it forks where `self` ends.
    #[must_use]
    pub fn fork(self, epoch: Epoch) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("tidegate 1 epoch fork");
        hasher.update(&self.0).update(&epoch.0.to_le_bytes());
        Self(hasher.finalize().into())
    }
}

/// What the bytes of an extent are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExtentKind {
    /// Bytes that stand in the record's payload.
    Data,
    /// All zero (written zeroes, trimmed, or found zero): no payload.
    Zero,
}

/// A byte range of a disk that a record sets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// First byte.
    pub offset_bytes: u64,
    /// Length in bytes, never zero.
    pub length_bytes: u32,
    /// Data or zero.
    pub kind: ExtentKind,
}

impl Extent {
    /// First byte after the range.
    #[must_use]
    pub const fn end_bytes(&self) -> u64 {
        self.offset_bytes + self.length_bytes as u64
    }

    /// Bytes that the extent takes in the payload.
    #[must_use]
    pub const fn payload_bytes(&self) -> u32 {
        match self.kind {
            ExtentKind::Data => self.length_bytes,
            ExtentKind::Zero => 0,
        }
    }
}

/// What a recovery point promises, or which end of a sync span it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum BarrierKind {
    /// As after a power cut at that moment.
    Crash = 1,
    /// File systems were frozen.
    Fs = 2,
    /// Applications were quiesced.
    App = 3,
    /// Copying starts: until the matching end no record is a recovery point.
    SyncBegin = 4,
    /// Copying ended: the image is whole again.
    SyncEnd = 5,
}

impl BarrierKind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Crash,
            2 => Self::Fs,
            3 => Self::App,
            4 => Self::SyncBegin,
            5 => Self::SyncEnd,
            _ => return None,
        })
    }

    /// The word used in output and options.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::Fs => "fs",
            Self::App => "app",
            Self::SyncBegin => "sync-begin",
            Self::SyncEnd => "sync-end",
        }
    }
}

/// What a record is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RecordKind {
    /// Writes of the guest.
    Write,
    /// Content read from the disk by an initial copy or a resync.
    Copy,
    /// A barrier; its payload is its name, its extent table is empty.
    Barrier(BarrierKind),
}

/// The fixed part of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordHead {
    /// Write, copy or barrier.
    pub kind: RecordKind,
    /// Extents in the table.
    pub extent_count: u32,
    /// Bytes after the table.
    pub payload_bytes: u32,
    /// The epoch it belongs to.
    pub epoch: Epoch,
    /// Its place in the epoch.
    pub seq: Seq,
    /// Label time; never less than that of the record before.
    pub label: Micros,
    /// How far the agent's corrected clock may have been off.
    pub clock_uncertainty_micros: u32,
    /// Group of a barrier, or [`Id128::NONE`].
    pub group: Id128,
    /// Digest of extent table and payload.
    pub digest: Digest,
    /// Chain up to and including this record.
    pub chain: Chain,
}

/// Why bytes are no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Fewer bytes than the head, table or payload need.
    #[error("record is cut short: {have_bytes} bytes, {need_bytes} needed")]
    Short {
        /// Bytes present.
        have_bytes: usize,
        /// Bytes needed.
        need_bytes: usize,
    },
    /// Another format or version.
    #[error("not a record of version 1 or 2: starts with {found:02x?}")]
    Magic {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// A field out of its range.
    #[error("record field {field} is out of range")]
    Field {
        /// Which one.
        field: &'static str,
    },
    /// It is not what its CRC-32C was made over.
    #[error("record e{epoch}-s{seq} does not match its CRC-32C")]
    Checksum {
        /// Its epoch.
        epoch: Epoch,
        /// Its number.
        seq: Seq,
    },
    /// Table and payload are not what the digest was made over.
    #[error("record e{epoch}-s{seq} does not match its digest")]
    Digest {
        /// Its epoch.
        epoch: Epoch,
        /// Its number.
        seq: Seq,
    },
}

/// First four bytes of a record: format name and version.
pub const RECORD_MAGIC: [u8; 4] = *b"TGR\x01";
/// The same of a barrier that its agent signed.
pub const SIGNED_RECORD_MAGIC: [u8; 4] = *b"TGR\x02";
/// Size of the fixed part.
pub const RECORD_HEAD_BYTES: usize = 128;
/// Size of one row of the extent table.
pub const EXTENT_BYTES: usize = 16;

fn le_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn le_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from(le_u32(bytes, at)) | u64::from(le_u32(bytes, at + 4)) << 32
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

impl RecordHead {
    /// Bytes of the whole record: head, extent table, payload.
    #[must_use]
    pub const fn record_bytes(&self) -> usize {
        RECORD_HEAD_BYTES + self.extent_count as usize * EXTENT_BYTES + self.payload_bytes as usize
    }

    /// Bytes of the extent table.
    #[must_use]
    pub const fn table_bytes(&self) -> usize {
        self.extent_count as usize * EXTENT_BYTES
    }

    /// Whether it is a barrier with its agent's signature, which stands where others have extents.
    #[must_use]
    pub const fn is_signed(&self) -> bool {
        matches!(self.kind, RecordKind::Barrier(_)) && self.extent_count > 0
    }

    /// The point after this record.
    #[must_use]
    pub const fn point(&self) -> PointId {
        PointId { epoch: self.epoch, seq: self.seq }
    }

    /// Encodes the head; `chain` is written as it stands (see [`RecordHead::sealed_after`]).
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_HEAD_BYTES] {
        let mut out = [0; RECORD_HEAD_BYTES];
        let (kind, barrier) = match self.kind {
            RecordKind::Write => (0, 0),
            RecordKind::Copy => (1, 0),
            RecordKind::Barrier(barrier) => (2, barrier as u8),
        };
        out[0..4].copy_from_slice(if self.is_signed() { &SIGNED_RECORD_MAGIC } else { &RECORD_MAGIC });
        out[4] = kind;
        out[5] = barrier;
        out[8..12].copy_from_slice(&self.extent_count.to_le_bytes());
        out[12..16].copy_from_slice(&self.payload_bytes.to_le_bytes());
        out[16..24].copy_from_slice(&self.epoch.0.to_le_bytes());
        out[24..32].copy_from_slice(&self.seq.0.to_le_bytes());
        out[32..40].copy_from_slice(&self.label.0.to_le_bytes());
        out[40..44].copy_from_slice(&self.clock_uncertainty_micros.to_le_bytes());
        out[48..64].copy_from_slice(&self.group.0);
        out[64..96].copy_from_slice(&self.digest.0);
        out[96..128].copy_from_slice(&self.chain.0);
        out
    }

    /// The chain that this head must carry after `before`.
    #[must_use]
    pub fn chain_after(&self, before: Chain) -> Chain {
        let head = self.encode();
        let mut hasher = blake3::Hasher::new();
        hasher.update(&before.0).update(&head[..96]);
        Chain(hasher.finalize().into())
    }

    /// Sets the chain to follow `before`.
    #[must_use]
    pub fn sealed_after(mut self, before: Chain) -> Self {
        self.chain = self.chain_after(before);
        self
    }

    /// Reads and checks the head at the start of `bytes`; table and payload need not be there yet.
    ///
    /// # Errors
    /// [`RecordError`] if the bytes are too few, of another format, or a field breaks its limit.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.len() < RECORD_HEAD_BYTES {
            return Err(RecordError::Short { have_bytes: bytes.len(), need_bytes: RECORD_HEAD_BYTES });
        }
        let signed = bytes[0..4] == SIGNED_RECORD_MAGIC;
        if bytes[0..4] != RECORD_MAGIC && !signed {
            return Err(RecordError::Magic { found: array(bytes, 0) });
        }
        let field = |field| RecordError::Field { field };
        let kind = match (bytes[4], bytes[5]) {
            (0, 0) => RecordKind::Write,
            (1, 0) => RecordKind::Copy,
            (2, barrier) => RecordKind::Barrier(BarrierKind::from_byte(barrier).ok_or(field("barrier kind"))?),
            _ => return Err(field("kind")),
        };
        let head = Self {
            kind,
            extent_count: le_u32(bytes, 8),
            payload_bytes: le_u32(bytes, 12),
            epoch: Epoch(le_u64(bytes, 16)),
            seq: Seq(le_u64(bytes, 24)),
            label: Micros(le_u64(bytes, 32)),
            clock_uncertainty_micros: le_u32(bytes, 40),
            group: Id128(array(bytes, 48)),
            digest: Digest(array(bytes, 64)),
            chain: Chain(array(bytes, 96)),
        };
        let barrier = matches!(kind, RecordKind::Barrier(_));
        if bytes[6..8] != [0; 2] || bytes[44..48] != [0; 4] {
            return Err(field("reserved"));
        }
        let rows_max = if signed { limits::SIGNATURE_ROWS_MAX } else { limits::RECORD_EXTENTS_MAX };
        // Only a barrier is signed, and in version 1 it has no rows.
        if head.extent_count as usize > rows_max || head.is_signed() != signed {
            return Err(field("extent count"));
        }
        let payload_max = if barrier { limits::POINT_NAME_BYTES_MAX } else { limits::RECORD_PAYLOAD_BYTES_MAX };
        if head.payload_bytes as usize > payload_max {
            return Err(field("payload bytes"));
        }
        if head.epoch.0 == 0 || head.seq.0 == 0 || head.seq.0 == u64::MAX {
            return Err(field(if head.epoch.0 == 0 { "epoch" } else { "seq" }));
        }
        Ok(head)
    }

    /// Reads the extent table that follows the head, and checks it against the head and a disk of `disk_bytes`. A signed
    /// barrier has none: its signature is another's to read.
    ///
    /// # Errors
    /// [`RecordError`] if the table is short, an extent is empty or leaves the disk, or the data extents do not add
    /// up to the payload.
    pub fn decode_extents(&self, table: &[u8], disk_bytes: u64) -> Result<Vec<Extent>, RecordError> {
        if table.len() < self.table_bytes() {
            return Err(RecordError::Short { have_bytes: table.len(), need_bytes: self.table_bytes() });
        }
        if self.is_signed() {
            return Ok(Vec::new());
        }
        let mut extents = Vec::with_capacity(self.extent_count as usize);
        let mut payload_bytes = 0_u64;
        for row in table[..self.table_bytes()].chunks_exact(EXTENT_BYTES) {
            let kind = match le_u32(row, 12) {
                0 => ExtentKind::Data,
                1 => ExtentKind::Zero,
                _ => return Err(RecordError::Field { field: "extent kind" }),
            };
            let extent = Extent { offset_bytes: le_u64(row, 0), length_bytes: le_u32(row, 8), kind };
            let inside = extent
                .offset_bytes
                .checked_add(u64::from(extent.length_bytes))
                .is_some_and(|end_bytes| end_bytes <= disk_bytes);
            if extent.length_bytes == 0 || !inside {
                return Err(RecordError::Field { field: "extent range" });
            }
            payload_bytes += u64::from(extent.payload_bytes());
            extents.push(extent);
        }
        let barrier = matches!(self.kind, RecordKind::Barrier(_));
        if !barrier && payload_bytes != u64::from(self.payload_bytes) {
            return Err(RecordError::Field { field: "payload bytes" });
        }
        Ok(extents)
    }
}

/// Encodes an extent table.
pub fn encode_extents(extents: &[Extent], out: &mut Vec<u8>) {
    for extent in extents {
        out.extend_from_slice(&extent.offset_bytes.to_le_bytes());
        out.extend_from_slice(&extent.length_bytes.to_le_bytes());
        let kind = match extent.kind {
            ExtentKind::Data => 0_u32,
            ExtentKind::Zero => 1,
        };
        out.extend_from_slice(&kind.to_le_bytes());
    }
}

/// The digest of a record with this table and these payload pieces.
#[must_use]
pub fn record_digest<'a>(table: &[u8], payload: impl IntoIterator<Item = &'a [u8]>) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(table);
    for piece in payload {
        hasher.update(piece);
    }
    Digest(hasher.finalize().into())
}

/// A whole record in one buffer, checked on the way in.
#[derive(Clone, Copy, Debug)]
pub struct RecordView<'a> {
    /// The fixed part.
    pub head: RecordHead,
    /// The extent table's bytes.
    pub table: &'a [u8],
    /// The payload's bytes.
    pub payload: &'a [u8],
}

impl<'a> RecordView<'a> {
    /// Splits the record at the start of `bytes`; the rest is returned beside it. The digest is not checked.
    ///
    /// # Errors
    /// [`RecordError`] if head, table or payload are not whole or break a limit.
    pub fn split(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), RecordError> {
        let head = RecordHead::decode(bytes)?;
        let need_bytes = head.record_bytes();
        if bytes.len() < need_bytes {
            return Err(RecordError::Short { have_bytes: bytes.len(), need_bytes });
        }
        let (record, rest) = bytes.split_at(need_bytes);
        let (table, payload) = record[RECORD_HEAD_BYTES..].split_at(head.table_bytes());
        Ok((Self { head, table, payload }, rest))
    }

    /// Recomputes the digest.
    ///
    /// # Errors
    /// [`RecordError::Digest`] if table or payload were altered.
    pub fn check_digest(&self) -> Result<(), RecordError> {
        if record_digest(self.table, [self.payload]) == self.head.digest {
            Ok(())
        } else {
            Err(RecordError::Digest { epoch: self.head.epoch, seq: self.head.seq })
        }
    }

    /// The name of a barrier, if it has one.
    #[must_use]
    pub fn barrier_name(&self) -> Option<&'a str> {
        match self.head.kind {
            RecordKind::Barrier(_) if !self.payload.is_empty() => std::str::from_utf8(self.payload).ok(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (RecordHead, Vec<u8>, Vec<u8>) {
        let extents = [
            Extent { offset_bytes: 4096, length_bytes: 8, kind: ExtentKind::Data },
            Extent { offset_bytes: 0, length_bytes: 512, kind: ExtentKind::Zero },
        ];
        let mut table = Vec::new();
        encode_extents(&extents, &mut table);
        let payload = b"tidegate".to_vec();
        let head = RecordHead {
            kind: RecordKind::Write,
            extent_count: 2,
            payload_bytes: 8,
            epoch: Epoch(3),
            seq: Seq(7),
            label: Micros(1_800_000_000_000_000),
            clock_uncertainty_micros: 250,
            group: Id128::NONE,
            digest: record_digest(&table, [payload.as_slice()]),
            chain: Chain::GENESIS,
        }
        .sealed_after(Chain::GENESIS);
        (head, table, payload)
    }

    #[test]
    fn a_record_survives_encode_and_split() {
        let (head, table, payload) = sample();
        let bytes = [&head.encode()[..], &table, &payload, b"rest"].concat();
        let (view, rest) = RecordView::split(&bytes).expect("whole record");
        assert_eq!(view.head, head);
        assert_eq!(rest, b"rest");
        view.check_digest().expect("digest holds");
        let extents = view.head.decode_extents(view.table, 8192).expect("extents fit");
        assert_eq!(extents.len(), 2);
        assert_eq!(extents[1].kind, ExtentKind::Zero);
    }

    #[test]
    fn every_flipped_bit_is_noticed_by_digest_chain_or_decoder() {
        let (head, table, payload) = sample();
        let good = [&head.encode()[..], &table, &payload].concat();
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let noticed = match RecordView::split(&bytes) {
                Err(_) => true,
                Ok((view, _)) => {
                    view.check_digest().is_err() || view.head.chain_after(Chain::GENESIS) != view.head.chain
                }
            };
            assert!(noticed, "bit {bit} went unnoticed");
        }
    }

    #[test]
    fn extents_outside_the_disk_are_refused() {
        let (head, table, _) = sample();
        assert_eq!(head.decode_extents(&table, 4100), Err(RecordError::Field { field: "extent range" }));
    }

    #[test]
    fn point_ids_are_read_back_from_their_text() {
        let point = PointId { epoch: Epoch(2), seq: Seq(19) };
        assert_eq!(point.to_string().parse(), Ok(point));
        for text in ["e2s19", "e+2-s19", "e2-s+19", "e02-s19", "e2-s019", "e2-s19 "] {
            assert!(text.parse::<PointId>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_id_is_made_of_digits_only() {
        assert_eq!(parse_hex::<2>("0aFf"), Some([10, 255]));
        for text in ["+a+b", "-a0b", "0aF", "0aFff", "0ag0", "0a 0"] {
            assert_eq!(parse_hex::<2>(text), None, "{text}");
        }
    }

    #[test]
    fn names_that_could_leave_their_folder_are_refused() {
        for name in ["", "..", "a/b", "A", "-x", "a b", &"x".repeat(64)] {
            assert!(DiskId::new(name).is_err(), "{name:?}");
        }
        assert!(DiskId::new("web-1.sda_2").is_ok());
    }
}
