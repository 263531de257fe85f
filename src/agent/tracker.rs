//! What happens to a write after it reached the disk: recorded in order, or marked as "must be sent".
//!
//! Pure: the record queue and the dirty map under one set of rules. States of a disk:
//!
//! ```text
//!            start_epoch / resume                     overflow
//!  Detached ─────────────────────► Recording ─────────────────────► Overflowed
//!   marks only                     records, in order                 marks only
//!      ▲ ▲                             │   ▲                             │ │
//!      │ └──────── abandon ────────────┘   └── recover: queue drained ───┘ │
//!      └────────────────────────────── abandon ────────────────────────────┘
//! ```
//!
//! Invariants, with "span" for the time between a sync-begin barrier and its sync-end:
//!
//! - Every write is in the queue, in a generation of the dirty map, or marked: nothing is forgotten.
//! - While recording, something marked means that a span is open. So outside a span the image that the records make is
//!   the disk, and a barrier may be offered as a recovery point; inside a span no barrier but its end is made.
//! - Nothing is recorded while writes are only marked, so the records before an overflow are a whole prefix.

use std::ops::Range;
use std::time::Duration;

use super::chunk_set::{ChunkSet, chunks_of};
use super::dirty::{DirtyMap, Floor};
use super::queue::{Content, Next, Outgoing, RecordQueue, Stamp};
use crate::flow::BudgetGuard;
use crate::limits::CHUNK_BYTES;
use crate::mutants::{self, Mutant};
use crate::types::{BarrierKind, Chain, Epoch, Extent, ExtentKind, Id128, Micros, RecordKind, Seq};

/// Whether writes become records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// No epoch is open: writes are marked.
    Detached,
    /// Writes become records.
    Recording,
    /// The queue was full: writes are marked until it has drained.
    Overflowed,
}

/// What became of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tracked {
    /// It is in a record.
    Recorded,
    /// It is marked as "must be sent".
    Marked,
}

/// A barrier that was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BarrierAt {
    /// Its epoch.
    pub epoch: Epoch,
    /// Its number.
    pub seq: Seq,
    /// Its label time.
    pub label: Micros,
}

/// Where a resumed or forked epoch goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EpochStart {
    /// The epoch.
    pub epoch: Epoch,
    /// Number of the first record to make.
    pub next_seq: Seq,
    /// Chain before it.
    pub chain: Chain,
    /// Whether the image that it starts from is all zero: the first epoch of a disk.
    pub from_zero: bool,
}

/// The records and marks of one disk.
#[derive(Debug)]
pub struct Tracker {
    size_bytes: u64,
    queue_bytes_max: u64,
    mode: Mode,
    span: bool,
    dirty: DirtyMap,
    queue: RecordQueue,
    /// In an epoch that started from zero: the chunks that may have been written since. All others are zero at the other
    /// end, so their zeroes need not be sent.
    written: Option<ChunkSet>,
    /// Memory promised to copies that are being read.
    reserved_bytes: u64,
    vaulted: Seq,
    journaled: Seq,
    last_barrier: Option<(Seq, Duration)>,
    overflows: u64,
    /// Since when the newest point in the vault is older than a write, because of a span: until its sync-end is vaulted.
    exposed: Option<Exposed>,
}

#[derive(Clone, Copy, Debug)]
struct Exposed {
    since: Duration,
    /// The sync-end barrier, once it is made.
    end: Option<Seq>,
}

impl Tracker {
    /// A disk of `size_bytes` with no epoch and nothing marked, whose queue may hold `queue_bytes_max`.
    #[must_use]
    pub fn new(size_bytes: u64, queue_bytes_max: u64) -> Self {
        Self {
            size_bytes,
            queue_bytes_max,
            mode: Mode::Detached,
            span: false,
            dirty: DirtyMap::new(size_bytes),
            queue: RecordQueue::new(Epoch(0), Seq(1), Chain::GENESIS, Micros(0)),
            written: None,
            reserved_bytes: 0,
            vaulted: Seq::NONE,
            journaled: Seq::NONE,
            last_barrier: None,
            overflows: 0,
            exposed: None,
        }
    }

    /// The state.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether a sync span is open.
    #[must_use]
    pub const fn in_span(&self) -> bool {
        self.span
    }

    /// The dirty map, to look at.
    #[must_use]
    pub const fn dirty(&self) -> &DirtyMap {
        &self.dirty
    }

    /// The queue, to look at.
    #[must_use]
    pub const fn queue(&self) -> &RecordQueue {
        &self.queue
    }

    /// Newest record known to be journaled in this epoch.
    #[must_use]
    pub const fn journaled_seq(&self) -> Seq {
        self.journaled
    }

    /// Newest record known to be vaulted in this epoch.
    #[must_use]
    pub const fn vaulted_seq(&self) -> Seq {
        self.vaulted
    }

    /// How often the queue was full.
    #[must_use]
    pub const fn overflows(&self) -> u64 {
        self.overflows
    }

    /// When the oldest write was made that no recovery point in the vault has.
    #[must_use]
    pub fn oldest_exposed(&self) -> Option<Duration> {
        [self.exposed.map(|exposed| exposed.since), self.dirty.oldest()].into_iter().flatten().min()
    }

    /// Tracks a write that has reached the disk. `claim` takes memory from the agent's budget; it is asked only if the
    /// write fits this disk's queue. Never waits.
    pub fn write(
        &mut self,
        offset_bytes: u64,
        content: Content,
        claim: impl FnOnce(u64) -> Option<BudgetGuard>,
        stamp: Stamp,
    ) -> Tracked {
        let cost_bytes = content.cost_bytes();
        if self.mode == Mode::Recording {
            let fits = self.queue.bytes() + self.reserved_bytes + cost_bytes <= self.queue_bytes_max;
            if let Some(guard) = fits.then(|| claim(cost_bytes)).flatten() {
                self.append(RecordKind::Write, offset_bytes, content, Some(guard), stamp);
                return Tracked::Recorded;
            }
            self.mode = Mode::Overflowed;
            self.overflows += 1;
        }
        if !mutants::on(Mutant::OverflowForgotten) {
            self.dirty.mark(offset_bytes, content.length_bytes(), stamp.at);
        }
        Tracked::Marked
    }

    fn append(
        &mut self,
        kind: RecordKind,
        offset_bytes: u64,
        content: Content,
        guard: Option<BudgetGuard>,
        stamp: Stamp,
    ) {
        let Self { queue, dirty, written, .. } = self;
        queue.append(kind, offset_bytes, content, guard, stamp, |seq, extent: Extent| {
            dirty.recorded(seq, &[extent], stamp.at);
            if let Some(written) = written.as_mut().filter(|_| extent.kind == ExtentKind::Data) {
                written.insert(chunks_of(extent.offset_bytes, u64::from(extent.length_bytes), CHUNK_BYTES));
            }
        });
    }

    /// Marks a range whose content on the disk is not what the records say: a write that failed, a first start.
    pub fn mark(&mut self, offset_bytes: u64, length_bytes: u64, stamp: Stamp) {
        self.dirty.mark(offset_bytes, length_bytes, stamp.at);
        self.open_span(stamp);
    }

    fn open_span(&mut self, stamp: Stamp) {
        if self.mode == Mode::Recording && !self.span && !self.dirty.must_send().is_empty() {
            self.begin_span(stamp);
        }
    }

    fn begin_span(&mut self, stamp: Stamp) {
        self.span = true;
        let since = self.oldest_exposed().unwrap_or(stamp.at);
        self.exposed = Some(Exposed { since, end: None });
        self.push_barrier(BarrierKind::SyncBegin, Id128::NONE, "", stamp);
    }

    fn push_barrier(&mut self, kind: BarrierKind, group: Id128, name: &str, stamp: Stamp) -> BarrierAt {
        let (seq, label) = self.queue.barrier(RecordKind::Barrier(kind), group, name, stamp);
        self.dirty.recorded(seq, &[], stamp.at);
        self.last_barrier = Some((seq, stamp.at));
        BarrierAt { epoch: self.queue.epoch(), seq, label }
    }

    /// Whether the present state can be a recovery point, and the queue has room for it.
    #[must_use]
    pub fn offers_points(&self) -> bool {
        let room = self.queue.bytes() + self.reserved_bytes < self.queue_bytes_max;
        self.mode == Mode::Recording && (!self.span || mutants::on(Mutant::PointsInsideSpan)) && room
    }

    /// Makes a recovery point, or none if the present state is no point (not recording, or inside a span) or the queue is
    /// full.
    pub fn barrier(&mut self, kind: BarrierKind, group: Id128, name: &str, stamp: Stamp) -> Option<BarrierAt> {
        self.offers_points().then(|| self.push_barrier(kind, group, name, stamp))
    }

    /// Makes the barrier of the interval. A disk with no record since its last barrier makes one per `idle_interval` only.
    pub fn periodic_barrier(&mut self, idle_interval: Duration, stamp: Stamp) -> Option<BarrierAt> {
        let idle = self
            .last_barrier
            .is_some_and(|(seq, at)| seq == self.queue.last_seq() && stamp.at.saturating_sub(at) < idle_interval);
        if idle { None } else { self.barrier(BarrierKind::Crash, Id128::NONE, "", stamp) }
    }

    /// Gives up the epoch: its records are dropped and everything not vaulted must be sent anew.
    pub fn abandon(&mut self, now: Duration) {
        self.mode = Mode::Detached;
        self.span = false;
        self.written = None;
        self.last_barrier = None;
        self.dirty.merge_all(now);
        self.queue = RecordQueue::new(Epoch(0), Seq(1), Chain::GENESIS, self.queue.label());
    }

    /// Starts a new epoch; whatever must be sent is announced by a sync-begin barrier at once. No record gets a label
    /// before `label`.
    pub fn start_epoch(&mut self, start: EpochStart, label: Micros, stamp: Stamp) {
        self.abandon(stamp.at);
        let before = Seq(start.next_seq.0 - 1);
        self.dirty.start_epoch(Floor { seq: before, chain: start.chain }, stamp.at);
        self.queue = RecordQueue::new(start.epoch, start.next_seq, start.chain, label.max(self.queue.label()));
        self.written = start.from_zero.then(|| ChunkSet::new(self.dirty.must_send().limit()));
        self.journaled = before;
        self.vaulted = before;
        self.mode = Mode::Recording;
        // A span also with nothing to send: the first point of an epoch is then always its sync-end.
        self.begin_span(stamp);
    }

    /// Goes on with an epoch that was cleanly left with everything vaulted; there is nothing to send but what was marked
    /// since.
    pub fn continue_epoch(&mut self, start: EpochStart, label: Micros, stamp: Stamp) {
        let floor = Floor { seq: Seq(start.next_seq.0 - 1), chain: start.chain };
        self.dirty.start_epoch(floor, stamp.at);
        self.queue = RecordQueue::new(start.epoch, start.next_seq, start.chain, label.max(self.queue.label()));
        self.journaled = floor.seq;
        self.vaulted = floor.seq;
        self.mode = Mode::Recording;
        self.open_span(stamp);
    }

    /// After a reconnect the gateway asks for `next_seq`. False if that was freed already: then the epoch must fork.
    pub fn resume(&mut self, next_seq: Seq) -> bool {
        if next_seq < self.queue.first_held() || next_seq > self.queue.last_seq().next() {
            return false;
        }
        self.queue.rewind(Seq(next_seq.0 - 1));
        true
    }

    /// After an overflow: records again as soon as the queue has drained. Returns whether it does now.
    pub fn recover(&mut self, stamp: Stamp) -> bool {
        let drained = self.queue.all_sent() && self.queue.bytes() <= self.queue_bytes_max / 2;
        if self.mode != Mode::Overflowed || !drained {
            return false;
        }
        self.mode = Mode::Recording;
        self.open_span(stamp);
        true
    }

    /// The next chunks to copy at or after `from`, if a span is open and there is room for them beside live writes.
    /// The room is kept until [`Tracker::copied`] or [`Tracker::copy_failed`] is called with the same chunks.
    pub fn next_copy(&mut self, from: u64, chunks_max: u64) -> CopyNext {
        if self.mode != Mode::Recording || !self.span {
            return CopyNext::Wait;
        }
        let Some(chunks) = self.dirty.must_send().next_run(from, chunks_max) else { return CopyNext::End };
        let reserve_bytes = self.copy_cost_bytes(&chunks);
        // Copies may take half of the queue: the other half is for the guest.
        let held_bytes = self.queue.bytes() + self.reserved_bytes;
        if held_bytes > 0 && held_bytes + reserve_bytes > self.queue_bytes_max / 2 {
            return CopyNext::Wait;
        }
        self.reserved_bytes += reserve_bytes;
        CopyNext::Chunks(chunks)
    }

    fn copy_cost_bytes(&self, chunks: &Range<u64>) -> u64 {
        let (_, length_bytes) = self.byte_range(chunks);
        length_bytes + (chunks.end - chunks.start + 2) * 1024
    }

    /// First byte and length of `chunks`; the last chunk of a disk may be short.
    #[must_use]
    pub fn byte_range(&self, chunks: &Range<u64>) -> (u64, u64) {
        let start_bytes = chunks.start * CHUNK_BYTES;
        (start_bytes, (chunks.end * CHUNK_BYTES).min(self.size_bytes).saturating_sub(start_bytes))
    }

    /// Takes the content of chunks just read from the disk. No write may touch them between the reading and this call.
    pub fn copied(
        &mut self,
        chunks: Range<u64>,
        pieces: Vec<(u64, Content)>,
        guard: Option<BudgetGuard>,
        stamp: Stamp,
    ) -> Tracked {
        self.reserved_bytes -= self.copy_cost_bytes(&chunks).min(self.reserved_bytes);
        if self.mode != Mode::Recording || !self.span {
            return Tracked::Marked;
        }
        let mut guard = guard;
        for (offset_bytes, content) in pieces {
            let range = chunks_of(offset_bytes, content.length_bytes(), CHUNK_BYTES);
            let zero = matches!(content, Content::Zero(_));
            if !(zero && self.written.as_ref().is_some_and(|written| !written.any(range))) {
                self.append(RecordKind::Copy, offset_bytes, content, guard.take(), stamp);
            }
        }
        self.dirty.sent(chunks);
        Tracked::Recorded
    }

    /// The chunks could not be read; they stay marked.
    pub fn copy_failed(&mut self, chunks: &Range<u64>) {
        self.reserved_bytes -= self.copy_cost_bytes(chunks).min(self.reserved_bytes);
    }

    /// Closes the span if nothing is left to copy. Returns the sync-end barrier, which is a recovery point.
    pub fn finish_span(&mut self, stamp: Stamp) -> Option<BarrierAt> {
        if self.mode != Mode::Recording || !self.span || !self.dirty.must_send().is_empty() {
            return None;
        }
        self.span = false;
        let end = self.push_barrier(BarrierKind::SyncEnd, Id128::NONE, "", stamp);
        if let Some(exposed) = &mut self.exposed {
            exposed.end = Some(end.seq);
        }
        Some(end)
    }

    /// What to send next.
    pub fn next(&mut self, linger: Duration, stamp: Stamp) -> Next {
        if self.mode == Mode::Detached { Next::Empty } else { self.queue.next(linger, stamp) }
    }

    /// Keeps a record's digest and chain. Ignored if the record is of an epoch given up meanwhile.
    pub fn sealed(&mut self, record: &Outgoing) {
        if record.head.epoch == self.queue.epoch() {
            self.queue.sealed(record);
            self.dirty.sealed(record.head.seq, record.head.chain);
        }
    }

    /// Takes an ack. Returns whether the floor moved.
    pub fn acked(&mut self, epoch: Epoch, journaled: Seq, vaulted: Seq) -> bool {
        if epoch != self.queue.epoch() {
            return false;
        }
        // An ack beyond the newest record would be the other side's mistake; it must not free anything.
        let last = self.queue.last_seq();
        self.vaulted = self.vaulted.max(vaulted.min(last));
        self.journaled = self.journaled.max(journaled.min(last)).max(self.vaulted);
        self.queue.journaled(self.journaled);
        if self.exposed.and_then(|exposed| exposed.end).is_some_and(|end| end <= self.vaulted) {
            self.exposed = None;
        }
        self.dirty.vaulted(if mutants::on(Mutant::SettledAtJournaled) { self.journaled } else { self.vaulted })
    }
}

/// What the copier finds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CopyNext {
    /// Read these.
    Chunks(Range<u64>),
    /// None at or after the place asked for.
    End,
    /// Not now: no span, or no room.
    Wait,
}

#[cfg(test)]
mod tests;
