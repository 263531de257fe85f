//! The pure core: which record goes into which message, which message into which batch, and when each closes.
//!
//! No clock, no I/O, no threads: the caller says what time it is, and is handed [`Step`]s to carry out in order.
//!
//! The seal of a message binds the batch's name, so a message belongs to a batch before its sealed size is known. The
//! size of a batch is therefore estimated: what is sealed counts as it is, what is not by the ratio seen lately. The
//! caller reports sizes by [`Batcher::note_sealed`] as they become known; late reports make batches a little larger or
//! smaller, nothing else.
//!
//! Invariants
//! - A message holds consecutive records of one disk and epoch: another epoch or a gap in seq closes it.
//! - The messages of a disk leave in the order in which its records came; a batch's [`Step::Close`] follows all of them.
//! - A batch closes when its estimated size, its plaintext, its records or its index rows reach their limit, or when its
//!   first record is [`BatcherLimits::age`] old, whichever is first. A batch with nothing in it does not exist.
//! - Memory: the plaintext of open messages is below [`BATCH_PLAIN_BYTES_MAX`], whatever the number of disks. Records of
//!   busy disks are kept where they are, as far as their owner allows it: their messages close soon. What a quiet disk
//!   writes is copied, because it would hold its whole surroundings until the batch closes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::buffers::BufferPool;
use super::content::{Content, Input};
use crate::limits;
use crate::types::{Chain, DiskId, Epoch, Id128, Micros, RecordError, RecordHead, RecordView, Seq};
use crate::vault::index::{BATCH_RECORDS_MAX, INDEX_PLAIN_BYTES_MAX, RecordMeta};

/// Plaintext at which a batch closes whatever its sealed size: bounds the open messages of many disks, and what one
/// batch holds of the journal.
pub const BATCH_PLAIN_BYTES_MAX: usize = 64 << 20;
/// A disk whose last message was at least this large gets a pooled full-size buffer for the next.
const LARGE_MESSAGE_BYTES: usize = limits::MESSAGE_BYTES_TARGET / 4;
/// Capacity of open full-size buffers: beyond it, further disks start with a small one.
const OPEN_CAPACITY_BYTES_MAX: usize = 2 * BATCH_PLAIN_BYTES_MAX;
/// Disks whose chain is remembered; forgetting one costs a hint in the index.
const CHAINS_MAX: usize = 1 << 16;

/// Bytes that rows take at most: see the encoding of the index.
const MESSAGE_ROW_BYTES_MAX: usize = 160;
const RECORD_ROW_BYTES_MAX: usize = 40;
const EXTENT_ROW_BYTES_MAX: usize = 12;

const _: () = assert!(BATCH_PLAIN_BYTES_MAX > limits::BATCH_BYTES_TARGET, "or no batch would reach its size");
const _: () = assert!(MESSAGE_ROW_BYTES_MAX + limits::NAME_BYTES_MAX < 4 * limits::RECORD_EXTENTS_MAX);

/// When batches close.
#[derive(Clone, Copy, Debug)]
pub struct BatcherLimits {
    /// Plaintext at which a message closes.
    pub message_bytes: usize,
    /// Estimated sealed size at which a batch closes.
    pub batch_bytes: usize,
    /// Age of its first record at which a batch closes.
    pub age: Duration,
}

impl Default for BatcherLimits {
    fn default() -> Self {
        Self {
            message_bytes: limits::MESSAGE_BYTES_TARGET,
            batch_bytes: limits::BATCH_BYTES_TARGET,
            age: Duration::from_millis(limits::BATCH_AGE_MS_DEFAULT),
        }
    }
}

/// A message that is complete but not sealed.
#[derive(Debug)]
pub struct OpenMessage {
    /// The disk.
    pub disk: DiskId,
    /// The epoch of all records.
    pub epoch: Epoch,
    /// Seq of the first record.
    pub first: Seq,
    /// Seq of the last record.
    pub last: Seq,
    /// Chain before the first record, if the record before it was seen.
    pub chain_before: Option<Chain>,
    /// Chain after the last record.
    pub chain_last: Chain,
    /// When the first record was received.
    pub received_first: Micros,
    /// When the last record was received.
    pub received_last: Micros,
    /// The index rows.
    pub records: Vec<RecordMeta>,
    /// The records.
    pub content: Content,
    /// Their bytes.
    pub plain_bytes: usize,
}

/// Why a batch was closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CloseReason {
    /// It reached its size, or one of the other limits.
    Bytes,
    /// Its first record reached its age.
    Age,
    /// The caller asked: end of the lane or of the process.
    Asked,
}

impl CloseReason {
    /// As a metric label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Age => "age",
            Self::Asked => "asked",
        }
    }
}

/// What the caller has to do next.
#[derive(Debug)]
pub enum Step {
    /// Seal this message for the batch that closes next.
    Message(OpenMessage),
    /// The batch is complete.
    Close(CloseReason),
}

/// The batch that is being filled. Sizes are of the present batch only.
#[derive(Debug, Default)]
struct Fill {
    /// Batches closed so far; tells late reports from present ones.
    ordinal: u64,
    since: Option<Duration>,
    plain_bytes: usize,
    sealed_plain_bytes: usize,
    sealed_bytes: usize,
    rows_bytes: usize,
    records: usize,
}

/// See the module's head.
#[derive(Debug)]
pub struct Batcher {
    limits: BatcherLimits,
    buffers: Arc<BufferPool>,
    fill: Fill,
    open: BTreeMap<DiskId, OpenMessage>,
    open_capacity_bytes: usize,
    chains: HashMap<DiskId, DiskTail>,
    /// Sealed per plain, lately.
    ratio: f64,
}

#[derive(Debug)]
struct DiskTail {
    epoch: Epoch,
    seq: Seq,
    chain: Chain,
    last_message_bytes: usize,
}

impl Batcher {
    /// An empty batcher that takes full-size buffers from `buffers`.
    #[must_use]
    pub fn new(limits: BatcherLimits, buffers: Arc<BufferPool>) -> Self {
        Self {
            limits,
            buffers,
            fill: Fill::default(),
            open: BTreeMap::new(),
            open_capacity_bytes: 0,
            chains: HashMap::new(),
            // Nothing known yet: as if nothing could be packed, which errs towards small batches.
            ratio: 1.0,
        }
    }

    /// Takes one record. Steps that follow from it are appended to `steps`.
    ///
    /// # Errors
    /// [`RecordError`] if `record` is not one whole record; nothing is taken then. A record that is kept is compared with
    /// its checksum only when its message is sealed.
    pub fn push(
        &mut self,
        now: Duration,
        disk: &DiskId,
        record: Input,
        received: Micros,
        steps: &mut Vec<Step>,
    ) -> Result<(), RecordError> {
        let (view, rest) = RecordView::split(&record.bytes)?;
        if !rest.is_empty() {
            return Err(RecordError::Field { field: "length" });
        }
        let extents = view.head.decode_extents(view.table, limits::DISK_BYTES_MAX)?;
        let row = RecordMeta::new(&view.head, extents, view.barrier_name().map(str::to_owned));
        let row_bytes = row_bytes_max(&row);
        if self.fill.records >= BATCH_RECORDS_MAX
            || self.fill.rows_bytes + row_bytes > INDEX_PLAIN_BYTES_MAX - ROWS_SPARE
        {
            self.close(CloseReason::Bytes, steps);
        }
        let follows = self.open.get(disk).is_none_or(|open| is_next(open.epoch, open.last, &view.head));
        if !follows {
            self.close_message(disk, steps);
        }
        let keeps = record.may_keep && self.keeps(disk);
        if !keeps {
            record.check(&view.head)?;
        }
        let head = view.head;
        self.append(now, disk, &head, (record, keeps), row, received);
        self.fill.rows_bytes += row_bytes;
        if self.open.get(disk).is_some_and(|open| open.plain_bytes >= self.limits.message_bytes) {
            self.close_message(disk, steps);
        }
        if self.estimated_bytes() >= self.limits.batch_bytes || self.fill.plain_bytes >= BATCH_PLAIN_BYTES_MAX {
            self.close(CloseReason::Bytes, steps);
        }
        Ok(())
    }

    fn append(
        &mut self,
        now: Duration,
        disk: &DiskId,
        head: &RecordHead,
        (record, keeps): (Input, bool),
        row: RecordMeta,
        received: Micros,
    ) {
        self.fill.since.get_or_insert(now);
        self.fill.plain_bytes += record.bytes.len();
        self.fill.records += 1;
        let tail = self.chains.get(disk);
        if !self.open.contains_key(disk) {
            let chain_before = tail.filter(|tail| is_next(tail.epoch, tail.seq, head)).map(|tail| tail.chain);
            let content = match keeps {
                true => Content::kept(),
                false => Content::Copied(self.take_buffer(tail.map_or(0, |tail| tail.last_message_bytes))),
            };
            self.open_capacity_bytes += content.capacity_bytes();
            self.fill.rows_bytes += MESSAGE_ROW_BYTES_MAX + limits::NAME_BYTES_MAX;
            self.open.insert(
                disk.clone(),
                OpenMessage {
                    disk: disk.clone(),
                    epoch: head.epoch,
                    first: head.seq,
                    last: head.seq,
                    chain_before,
                    chain_last: head.chain,
                    received_first: received,
                    received_last: received,
                    records: Vec::new(),
                    content,
                    plain_bytes: 0,
                },
            );
        }
        let Some(open) = self.open.get_mut(disk) else { return };
        let capacity_before = open.content.capacity_bytes();
        open.plain_bytes += record.bytes.len();
        open.content.push(record, keeps);
        self.open_capacity_bytes += open.content.capacity_bytes() - capacity_before;
        open.last = head.seq;
        open.chain_last = head.chain;
        open.received_last = received;
        open.records.push(row);
    }

    /// Whether the disk's next record is to be kept: its message holds kept ones, or it begins and will soon be full.
    fn keeps(&self, disk: &DiskId) -> bool {
        match self.open.get(disk) {
            Some(open) => open.content.is_kept(),
            None => self.chains.get(disk).is_some_and(|tail| tail.last_message_bytes >= LARGE_MESSAGE_BYTES),
        }
    }

    /// A full-size buffer for a busy disk; a small one, which grows, for the many quiet ones.
    fn take_buffer(&self, expected_bytes: usize) -> Vec<u8> {
        let room_left = self.open_capacity_bytes + self.buffers.capacity_bytes() <= OPEN_CAPACITY_BYTES_MAX;
        if expected_bytes >= LARGE_MESSAGE_BYTES && room_left { self.buffers.take() } else { Vec::new() }
    }

    fn close_message(&mut self, disk: &DiskId, steps: &mut Vec<Step>) {
        if let Some(open) = self.open.remove(disk) {
            self.leave(open, steps);
        }
    }

    fn leave(&mut self, open: OpenMessage, steps: &mut Vec<Step>) {
        self.open_capacity_bytes -= open.content.capacity_bytes();
        if self.chains.len() >= CHAINS_MAX && !self.chains.contains_key(&open.disk) {
            self.chains.clear();
        }
        let tail = DiskTail {
            epoch: open.epoch,
            seq: open.last,
            chain: open.chain_last,
            last_message_bytes: open.plain_bytes,
        };
        self.chains.insert(open.disk.clone(), tail);
        steps.push(Step::Message(open));
    }

    /// Closes the batch if its age demands it.
    pub fn poll(&mut self, now: Duration, steps: &mut Vec<Step>) {
        if self.due().is_some_and(|due| now >= due) {
            self.close(CloseReason::Age, steps);
        }
    }

    /// When [`Batcher::poll`] will have something to do, if nothing else happens.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        self.fill.since.map(|since| since + self.limits.age)
    }

    /// Closes the batch now, if it has anything.
    pub fn flush(&mut self, steps: &mut Vec<Step>) {
        self.close(CloseReason::Asked, steps);
    }

    fn close(&mut self, reason: CloseReason, steps: &mut Vec<Step>) {
        if self.fill.records == 0 {
            return;
        }
        for open in std::mem::take(&mut self.open).into_values() {
            self.leave(open, steps);
        }
        steps.push(Step::Close(reason));
        self.fill = Fill { ordinal: self.fill.ordinal + 1, ..Fill::default() };
    }

    /// Which batch is being filled: counts from 0 with every [`Step::Close`].
    #[must_use]
    pub fn ordinal(&self) -> u64 {
        self.fill.ordinal
    }

    /// Reports that a message of batch `ordinal` was sealed.
    pub fn note_sealed(&mut self, ordinal: u64, plain_bytes: usize, sealed_bytes: usize) {
        if ordinal == self.fill.ordinal {
            self.fill.sealed_plain_bytes += plain_bytes;
            self.fill.sealed_bytes += sealed_bytes;
        }
        // Weighted so that about 4 MiB decide: enough to be calm, little enough to follow a change of content.
        let weight = (plain_bytes as f64 / (4 << 20) as f64).min(1.0);
        let ratio = sealed_bytes as f64 / plain_bytes.max(1) as f64;
        self.ratio += (ratio.min(1.0) - self.ratio) * weight;
    }

    /// The sealed size that the present batch would have if it closed now.
    #[must_use]
    pub fn estimated_bytes(&self) -> usize {
        let unsealed_bytes = self.fill.plain_bytes.saturating_sub(self.fill.sealed_plain_bytes);
        // Rows are bounded from above and packed later; half is near enough.
        self.fill.sealed_bytes + (unsealed_bytes as f64 * self.ratio) as usize + self.fill.rows_bytes / 2
    }

    /// Plaintext bytes in open messages.
    #[must_use]
    pub fn open_bytes(&self) -> usize {
        self.open.values().map(|open| open.plain_bytes).sum()
    }
}

/// Kept free in the index's limit for the fixed head and one more row of the largest kind.
const ROWS_SPARE: usize = 1 << 20;

const _: () = assert!(EXTENT_ROW_BYTES_MAX * limits::RECORD_EXTENTS_MAX + 1024 < ROWS_SPARE, "one record's rows fit");

fn row_bytes_max(row: &RecordMeta) -> usize {
    let group_bytes = if row.group == Id128::NONE { 0 } else { 16 };
    let name_bytes = row.name.as_ref().map_or(0, |name| name.len() + 1);
    RECORD_ROW_BYTES_MAX + group_bytes + name_bytes + row.extents.len() * EXTENT_ROW_BYTES_MAX
}

fn is_next(epoch: Epoch, last: Seq, head: &RecordHead) -> bool {
    epoch == head.epoch && last.next() == head.seq
}

#[cfg(test)]
mod tests;
