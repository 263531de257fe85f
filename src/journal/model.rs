//! The values that the journal takes and gives: configuration, entries, what replay found, space, commits.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::disk::BackendChoice;
use super::disk::preflight::Preflight;
use crate::flow::Watermark;
use crate::limits;
use crate::types::{Chain, DiskId, Epoch, Micros, PointId, RecordHead, Seq};

/// Share of the capacity above which the journal asks for less: credit shrinks.
pub const HIGH_WATER_PERCENT_DEFAULT: u8 = 80;
/// Share of the capacity below which it is at ease again.
pub const LOW_WATER_PERCENT_DEFAULT: u8 = 60;
/// Memory for recent commits: a feeder that keeps up never reads the disk.
pub const CACHE_BYTES_DEFAULT: u64 = 64 << 20;

/// How a journal is laid out and bounded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalConfig {
    /// Its directory; made if absent.
    pub dir: PathBuf,
    /// Shards: directories, each with a thread of its own.
    pub shards: u16,
    /// Bytes that all segments together may take.
    pub capacity_bytes: u64,
    /// Bytes of one segment, the unit of release.
    pub segment_bytes: u64,
    /// See [`HIGH_WATER_PERCENT_DEFAULT`].
    pub high_water_percent: u8,
    /// See [`LOW_WATER_PERCENT_DEFAULT`].
    pub low_water_percent: u8,
    /// Memory for recent commits, all shards together.
    pub cache_bytes: u64,
    /// How the disk is driven.
    pub backend: BackendChoice,
}

impl JournalConfig {
    /// A journal of `capacity_bytes` in `dir` with everything else at its default.
    #[must_use]
    pub fn new(dir: PathBuf, capacity_bytes: u64) -> Self {
        Self {
            dir,
            shards: 2,
            capacity_bytes,
            segment_bytes: limits::SEGMENT_BYTES_DEFAULT,
            high_water_percent: HIGH_WATER_PERCENT_DEFAULT,
            low_water_percent: LOW_WATER_PERCENT_DEFAULT,
            cache_bytes: CACHE_BYTES_DEFAULT,
            backend: BackendChoice::Auto,
        }
    }
}

/// A record on its way into the journal.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// The disk it belongs to.
    pub disk: &'a DiskId,
    /// Its decoded head.
    pub head: &'a RecordHead,
    /// CRC-32C of the whole record, as the wire carried and checked it.
    pub body_crc: u32,
    /// When the gateway received it.
    pub received: Micros,
    /// The whole record, in pieces.
    pub chunks: &'a [Bytes],
    /// Raised to the record's seq once it is journaled.
    pub journaled: &'a Arc<Watermark>,
}

/// What the journal held when it was opened.
#[derive(Debug, Clone)]
pub struct ReplayReport {
    /// Per disk and epoch: what is vaulted and what is still here.
    pub runs: BTreeMap<(DiskId, Epoch), RunState>,
    /// Bytes that could not be used, torn tails included.
    pub damage: Vec<Damage>,
    /// Commits read.
    pub commits: u64,
    /// Bytes of these commits.
    pub bytes: u64,
    /// How the disk is driven, and why.
    pub backend: Preflight,
}

/// What the journal knows of one disk's epoch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunState {
    /// The last record known to be vaulted, with its chain.
    pub vaulted_mark: Option<(Seq, Chain)>,
    /// Records still here and not covered by the mark: sorted, contiguous ones merged.
    pub journaled: Vec<RunRange>,
}

/// Records without a gap, each following the chain of the one before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunRange {
    /// First record.
    pub first: Seq,
    /// Last record.
    pub last: Seq,
    /// Chain of the last record.
    pub chain_last: Chain,
    /// Label time of the last record.
    pub label_last: Micros,
}

/// What is wrong with a piece of the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DamageKind {
    /// The last write before a crash, not wholly on disk. Ordinary: it was never acked.
    TornTail,
    /// A commit whose header or table is unreadable, with valid commits after it.
    Commit,
    /// A record that does not match its CRC.
    Record,
    /// A record whose seq or chain contradicts another one.
    Conflict,
}

/// A damaged piece of the journal: reported and skipped, the rest goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Kind.
    pub kind: DamageKind,
    /// The segment file.
    pub file: PathBuf,
    /// First damaged byte in the file.
    pub offset_bytes: u64,
    /// Damaged bytes.
    pub length_bytes: u64,
    /// The records concerned, as far as they are known.
    pub records: Vec<(DiskId, PointId)>,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            DamageKind::TornTail => "torn tail",
            DamageKind::Commit => "damaged commit",
            DamageKind::Record => "damaged record",
            DamageKind::Conflict => "conflicting record",
        };
        let (offset, length) = (self.offset_bytes, self.length_bytes);
        write!(f, "{what} in {} at byte {offset}, {length} bytes", self.file.display())?;
        match self.records.as_slice() {
            [] => Ok(()),
            [(disk, point), rest @ ..] => {
                write!(f, ": disk {disk} {point}")?;
                if rest.is_empty() { Ok(()) } else { write!(f, " and {} more", rest.len()) }
            }
        }
    }
}

/// How full the journal is, as a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// At ease.
    Low,
    /// Above the high-water mark and not yet below the low-water mark again: senders should slow down.
    High,
    /// A shard waits for space: appends to it wait too.
    Full,
}

/// How full the journal is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes that hold records which are not released.
    pub used_bytes: u64,
    /// Bytes that the configuration allows.
    pub capacity_bytes: u64,
    /// The same as a word.
    pub level: Level,
}

/// Where a commit stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitAt {
    /// The segment's sequence number within its shard.
    pub segment: u64,
    /// Offset in the segment file.
    pub offset_bytes: u64,
    /// The commit's number within its shard.
    pub number: u64,
}

/// One group commit read back: the records that one write and one sync made durable.
#[derive(Debug, Clone)]
pub struct Commit {
    /// The shard it was read from.
    pub shard: u16,
    /// Where it stands.
    pub at: CommitAt,
    /// Whether records may be kept: if so, the journal counts their memory until they are dropped. Otherwise whoever
    /// wants to keep a record copies it.
    pub may_keep: bool,
    pub(super) bytes: Bytes,
    /// Its records that are not vaulted yet, in the order in which they came.
    pub entries: Vec<CommitEntry>,
}

/// One record of a [`Commit`].
#[derive(Debug, Clone)]
pub struct CommitEntry {
    /// The disk it belongs to.
    pub disk: DiskId,
    /// Its decoded head.
    pub head: RecordHead,
    /// When the gateway received it.
    pub received: Micros,
    /// CRC-32C over its bytes, if nobody has compared it since they were written: whoever uses them does, while they are
    /// in the processor's cache. What was read from the disk is checked already.
    pub unchecked_crc: Option<u32>,
    pub(super) range: Range<usize>,
}

impl Commit {
    /// The bytes of record `index`; see [`CommitEntry::unchecked_crc`].
    ///
    /// # Panics
    /// If `index` is not below `entries.len()`.
    #[must_use]
    pub fn record(&self, index: usize) -> Bytes {
        self.bytes.slice(self.entries[index].range.clone())
    }
}
