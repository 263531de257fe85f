//! One protected disk while the agent runs: the real disk, its locks and maps, its tracker, and what is remembered of it.
//!
//! Everything that the guest's threads, the replicator and the control socket share is here; each lock is held for
//! microseconds, but for range locks, which are held over I/O of the local disk. Order of locks: range, activity map,
//! tracker, state.

mod error;
mod told;

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use super::activity::{ActivityMap, MapError, REGION_BYTES};
use super::chunk_set::ChunkSet;
use super::clock::AgentClock;
use super::dirty::Floor;
use super::queue::{Content, Next, Outgoing};
use super::range_lock::RangeLock;
use super::state::{DiskState, StateDir, StateError, kept_label};
use super::tracker::{BarrierAt, CopyNext, EpochStart, Mode, Tracker};
use crate::config::show_size;
use crate::fault::chain_text;
use crate::flow::{Budget, BudgetGuard, watch};
use crate::keys::{RandomError, random};
use crate::limits::{CHUNK_BYTES, RECORD_PAYLOAD_BYTES_MAX};
use crate::mutants::{self, Mutant};
use crate::nbd::Export;
use crate::signed::Head;
use crate::types::{DiskId, Epoch, Id128, Seq};
use crate::wire::ForkReason;

pub use error::DiskError;

/// How long a record may wait for more writes. Well below any RPO, and enough to gather what a queue depth of 32 sends.
const LINGER: Duration = Duration::from_millis(3);
/// A disk without writes makes a barrier this often: proof of life, without a record per interval of a thousand idle disks.
const IDLE_BARRIER_INTERVAL: Duration = Duration::from_secs(60);
/// Chunks of one copy read: one record's payload.
pub const COPY_CHUNKS: u64 = RECORD_PAYLOAD_BYTES_MAX as u64 / CHUNK_BYTES;
/// Regions looked at under one hold of the tracker's lock while clearing.
const CLEAR_REGIONS: u64 = 256;

static ZEROES: [u8; CHUNK_BYTES as usize] = [0; CHUNK_BYTES as usize];

/// How a disk goes on when a gateway is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plan {
    /// Continue the epoch that a clean stop left, or that a lost connection interrupted.
    Resume,
    /// Begin a new epoch.
    Fork(ForkReason),
    /// Another epoch took over: do not replicate.
    Fenced(Epoch),
}

/// What the operator asked for a disk at start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Overrides {
    /// Compare the whole disk, whatever the state says.
    pub resync: bool,
    /// Go on although another epoch took over.
    pub take_over: bool,
}

/// What a disk tells about its connection.
#[derive(Clone, Debug, Default)]
pub struct Condition {
    /// The gateway that carries it at present.
    pub gateway: Option<String>,
    /// What went wrong last, in words.
    pub last_error: Option<String>,
}

/// A disk's surroundings, given by the agent.
#[derive(Clone)]
pub struct Shared {
    /// Labels.
    pub clock: Arc<AgentClock>,
    /// Memory for records of all disks.
    pub budget: Budget,
    /// Where state is kept.
    pub dir: Arc<StateDir>,
}

/// A protected disk.
pub struct Disk {
    /// Its name.
    pub id: DiskId,
    /// The real disk.
    pub source: Arc<dyn Export>,
    /// Where the real disk is.
    pub path: PathBuf,
    /// See [`ActivityMap`].
    pub activity: ActivityMap,
    /// See [`RangeLock`].
    pub ranges: RangeLock,
    /// Clock, memory, state directory.
    pub shared: Shared,
    tracker: Mutex<Tracker>,
    state: Mutex<DiskState>,
    /// What the state file holds; locked while it is written, so that writes have one order.
    stored: Mutex<DiskState>,
    plan: Mutex<Plan>,
    condition: Mutex<Condition>,
    /// The label in the state file, in microseconds; see [`kept_label`].
    kept_label: AtomicU64,
    /// Wakes whoever is to write a later one, before the gateway has vaulted a record above it.
    pub label_due: Notify,
    /// The nonce of the fork that is being asked for: kept until it is answered, so that a gateway that has opened the
    /// epoch, and whose answer was lost, knows the second question as the first.
    fork_nonce: Mutex<Option<Id128>>,
    /// What this run was told to be vaulted of earlier epochs.
    told_before: Mutex<Option<Head>>,
    /// A flush of the agent's own failed, and the guest does not know yet: the system tells such a failure once only.
    /// Locked over the agent's flush, so that a flush of the guest beside it cannot pass as good.
    lost_flush: Mutex<bool>,
    /// Wakes the sender.
    pub to_send: Notify,
    /// Wakes the copier.
    pub to_copy: Notify,
    /// Changes whenever acks, mode or span changed.
    pub progress: watch::Sender<u64>,
}

/// The map, how the disk goes on, and why, as found at the start.
fn assess(
    state: &DiskState,
    lost: bool,
    modified_nanos: Option<u64>,
    path: &Path,
    overrides: Overrides,
) -> Result<(ActivityMap, Plan), MapError> {
    let disk = state.disk.clone();
    let create = || ActivityMap::create(path, &disk, state.size_bytes);
    let fork = match (lost, state.epoch) {
        (true, _) => ForkReason::UncleanStart,
        (false, None) => ForkReason::NewDisk,
        (false, Some(_)) => ForkReason::UncleanStart,
    };
    if overrides.resync {
        tracing::info!(%disk, "whole disk is compared, as asked for");
        return Ok((create()?, Plan::Fork(ForkReason::Operator)));
    }
    if state.clean && state.modified_nanos != modified_nanos {
        tracing::warn!(%disk, "disk was modified while the agent was stopped: whole disk is compared");
        return Ok((create()?, Plan::Fork(ForkReason::DiskChanged)));
    }
    if state.epoch.is_none() {
        return Ok((create()?, Plan::Fork(fork)));
    }
    let map = match ActivityMap::open(path, &disk, state.size_bytes) {
        Ok((map, damaged_blocks)) => {
            if damaged_blocks > 0 {
                tracing::warn!(%disk, damaged_blocks, "activity map is damaged in part: those regions are compared");
            }
            map
        }
        Err(error) => {
            tracing::warn!(%disk, error = chain_text(&error), "activity map is lost: whole disk is compared");
            return Ok((create()?, Plan::Fork(fork)));
        }
    };
    let resume = state.clean && map.active_regions() == 0;
    Ok((map, if resume { Plan::Resume } else { Plan::Fork(fork) }))
}

fn modified_nanos(path: &Path) -> Option<u64> {
    let metadata = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
    let since = metadata.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    u64::try_from(since.as_nanos()).ok()
}

impl Disk {
    /// Opens a disk's state and map, and finds out how it goes on. Everything that may differ from the vault is marked.
    ///
    /// # Errors
    /// [`DiskError`] names the disk and the next step.
    pub fn open(
        source: Arc<dyn Export>,
        path: &Path,
        queue_bytes: u64,
        shared: Shared,
        overrides: Overrides,
    ) -> Result<Self, DiskError> {
        let size_bytes = source.size_bytes();
        let id = DiskId::new(source.name()).map_err(|_| StateError::Missing { path: path.to_owned() })?;
        let (mut state, lost) = match shared.dir.load(&id) {
            Ok(state) => (state, false),
            Err(StateError::Missing { .. }) => (DiskState::new(id.clone(), size_bytes), false),
            Err(error @ StateError::Damaged { .. }) => {
                tracing::error!(disk = %id, error = chain_text(&error), "state is lost: whole disk is compared");
                (DiskState::new(id.clone(), size_bytes), true)
            }
            Err(error) => return Err(error.into()),
        };
        if state.size_bytes != size_bytes {
            let (disk, path, known) = (id, path.to_owned(), state.size_bytes);
            return Err(DiskError::Size { disk, path, known, found: size_bytes });
        }
        let (activity, mut plan) = assess(&state, lost, modified_nanos(path), &shared.dir.map_path(&id), overrides)?;
        match state.fenced {
            Some(newest) if overrides.take_over => {
                tracing::warn!(disk = %id, %newest, "disk is taken over, as asked for");
                state.fenced = None;
                plan = Plan::Fork(ForkReason::Operator);
            }
            Some(newest) => plan = Plan::Fenced(newest),
            None => {}
        }
        // From here on a crash is an unclean stop.
        state.clean = false;
        shared.dir.store(&state)?;
        let tracker = Mutex::new(Tracker::new(size_bytes, queue_bytes));
        let disk = Self {
            id,
            source,
            path: path.to_owned(),
            activity,
            ranges: RangeLock::default(),
            tracker,
            stored: Mutex::new(state.clone()),
            kept_label: AtomicU64::new(state.label.0),
            label_due: Notify::new(),
            state: Mutex::new(state),
            plan: Mutex::new(plan),
            condition: Mutex::default(),
            fork_nonce: Mutex::default(),
            told_before: Mutex::default(),
            lost_flush: Mutex::default(),
            to_send: Notify::new(),
            to_copy: Notify::new(),
            progress: watch::Sender::new(0),
            shared,
        };
        disk.mark_active();
        let dirty_bytes = disk.tracker().dirty().must_send().len() * CHUNK_BYTES;
        tracing::info!(disk = %disk.id, size = show_size(size_bytes), ?plan, to_compare = show_size(dirty_bytes), "disk opened");
        Ok(disk)
    }

    /// The tracker, locked.
    pub fn tracker(&self) -> MutexGuard<'_, Tracker> {
        self.tracker.lock()
    }

    /// A copy of the remembered state.
    pub fn state(&self) -> DiskState {
        self.state.lock().clone()
    }

    /// How the disk goes on.
    pub fn plan(&self) -> Plan {
        *self.plan.lock()
    }

    /// What it tells about its connection.
    pub fn condition(&self) -> Condition {
        self.condition.lock().clone()
    }

    /// Changes what it tells about its connection.
    pub fn note(&self, change: impl FnOnce(&mut Condition)) {
        change(&mut self.condition.lock());
        self.wake();
    }

    fn wake(&self) {
        self.progress.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Marks every active region as "must be sent".
    fn mark_active(&self) {
        let stamp = self.shared.clock.stamp();
        let mut from = 0;
        while let Some(run) = self.activity.next_active(from, u64::MAX) {
            from = run.end;
            self.tracker().mark(run.start * REGION_BYTES, (run.end - run.start) * REGION_BYTES, stamp);
        }
    }

    /// Marks runs of chunks whose content has nothing to do with what the state says. Returns how many chunks were not
    /// marked before. Blocks.
    ///
    /// # Errors
    /// If a crash would forget the marks; for this run they are made in any case.
    pub fn mark_touched(&self, runs: &[Range<u32>]) -> io::Result<u64> {
        let stamp = self.shared.clock.stamp();
        let before = self.tracker().dirty().must_send().len();
        let bytes_of = |run: &Range<u32>| self.tracker().byte_range(&(run.start.into()..run.end.into()));
        let bytes: Vec<(u64, u64)> = runs.iter().map(bytes_of).collect();
        bytes.iter().for_each(|&(offset, length)| self.tracker().mark(offset, length, stamp));
        let added = self.tracker().dirty().must_send().len().saturating_sub(before);
        // After the marks: a region without one could be cleared again at once.
        self.activity.ensure_all(&bytes).map(|()| added)
    }

    /// A change has reached the real disk. The caller holds the range.
    pub fn changed(&self, offset_bytes: u64, content: Content) {
        let stamp = self.shared.clock.stamp();
        let mut tracker = self.tracker();
        let before = tracker.mode();
        tracker.write(offset_bytes, content, |bytes| self.shared.budget.try_claim(bytes), stamp);
        let after = tracker.mode();
        drop(tracker);
        if before != after {
            tracing::warn!(disk = %self.id, "queue is full: changes are marked until it has drained, then copied");
            self.wake();
        }
        self.to_send.notify_one();
    }

    /// A change failed half-way: what the real disk holds there must be read back.
    pub fn uncertain(&self, offset_bytes: u64, length_bytes: u64) {
        self.tracker().mark(offset_bytes, length_bytes, self.shared.clock.stamp());
        self.to_send.notify_one();
        self.to_copy.notify_one();
    }

    /// The real disk lost a flush: writes since the last good one may be gone. They all lie in active regions, because a
    /// region is cleared only after a good flush. The caller holds no range.
    pub fn flush_failed(&self) {
        tracing::error!(disk = %self.id, path = %self.path.display(), "flush of the disk failed: active regions are compared");
        // A copy that has read already would take the mark for its own and remove it.
        let held = self.ranges.lock(0, self.source.size_bytes());
        self.mark_active();
        drop(held);
        self.to_send.notify_one();
        self.to_copy.notify_one();
    }

    /// The outcome of the guest's flush, or of a change that was to be durable at once. The caller holds no range.
    ///
    /// # Errors
    /// If it failed, or if a flush of the agent's own did since the last call.
    pub fn guest_flushed(&self, outcome: io::Result<()>) -> io::Result<()> {
        if outcome.is_err() {
            self.flush_failed();
        }
        let lost = std::mem::take(&mut *self.lost_flush.lock());
        if lost { outcome.and(Err(io::Error::from_raw_os_error(libc::EIO))) } else { outcome }
    }

    /// The agent's own flush. Returns whether it was good.
    fn own_flush(&self) -> bool {
        let mut lost = self.lost_flush.lock();
        let good = self.source.flush().is_ok();
        *lost |= !good;
        drop(lost);
        if !good {
            self.flush_failed();
        }
        good
    }

    /// What to send next.
    pub fn next_record(&self) -> Next {
        let next = self.tracker().next(LINGER, self.shared.clock.stamp());
        if let Next::Record(record) = &next
            && record.head.label.0 > self.kept_label.load(Ordering::Relaxed)
        {
            self.label_due.notify_one();
        }
        next
    }

    /// Keeps a record's digest and chain.
    pub fn sealed(&self, record: &Outgoing) {
        self.tracker().sealed(record);
    }

    /// Takes an ack.
    pub fn acked(&self, epoch: Epoch, journaled: Seq, vaulted: Seq) {
        self.tracker().acked(epoch, journaled, vaulted);
        self.recover();
        self.to_copy.notify_one();
        self.wake();
    }

    /// After an overflow: goes on recording if the queue has drained.
    pub fn recover(&self) {
        if self.tracker().recover(self.shared.clock.stamp()) {
            tracing::info!(disk = %self.id, "queue has drained: copying what was marked");
            self.to_send.notify_one();
            self.to_copy.notify_one();
            self.wake();
        }
    }

    /// Makes the barrier of the interval, if one is due.
    pub fn periodic_barrier(&self) -> Option<BarrierAt> {
        let made = self.tracker().periodic_barrier(IDLE_BARRIER_INTERVAL, self.shared.clock.stamp());
        self.to_send.notify_one();
        made
    }

    /// Chunks to copy and the memory for them.
    pub fn next_copy(&self, from: u64) -> (CopyNext, Option<BudgetGuard>) {
        // A little more than the payload: rows and structures.
        let Some(guard) = self.shared.budget.try_claim(RECORD_PAYLOAD_BYTES_MAX as u64 + (64 << 10)) else {
            return (CopyNext::Wait, None);
        };
        (self.tracker().next_copy(from, COPY_CHUNKS), Some(guard))
    }

    /// Reads chunks from the real disk and queues them. Blocks.
    ///
    /// # Errors
    /// If they cannot be read; they stay marked.
    pub fn copy(&self, chunks: Range<u64>, guard: Option<BudgetGuard>) -> io::Result<()> {
        let (offset_bytes, length_bytes) = self.tracker().byte_range(&chunks);
        let _held = (!mutants::on(Mutant::CopyUnlocked)).then(|| self.ranges.lock(offset_bytes, length_bytes));
        let pieces = match self.read_pieces(offset_bytes, length_bytes) {
            Ok(pieces) => pieces,
            Err(error) => {
                self.tracker().copy_failed(&chunks);
                return Err(error);
            }
        };
        self.tracker().copied(chunks, pieces, guard, self.shared.clock.stamp());
        self.to_send.notify_one();
        Ok(())
    }

    /// Gives back the room of chunks that will not be read; they stay marked.
    pub fn copy_dropped(&self, chunks: &Range<u64>) {
        self.tracker().copy_failed(chunks);
        self.to_copy.notify_one();
    }

    fn read_pieces(&self, offset_bytes: u64, length_bytes: u64) -> io::Result<Vec<(u64, Content)>> {
        let status = self.source.block_status(offset_bytes, length_bytes).unwrap_or_default();
        // A hole needs no reading; only the whole range, because mixed ones are as quick to read.
        if matches!(status.as_slice(), [only] if only.zero && only.length >= length_bytes) {
            return Ok(vec![(offset_bytes, Content::Zero(length_bytes))]);
        }
        let mut buffer = vec![0; length_bytes as usize];
        self.source.read(offset_bytes, &mut buffer)?;
        let buffer = Bytes::from(buffer);
        let mut pieces: Vec<(u64, Content)> = Vec::new();
        let mut at = 0;
        while at < buffer.len() {
            let zero = is_zero_chunk(&buffer[at..]);
            let mut end = (at + CHUNK_BYTES as usize).min(buffer.len());
            while end < buffer.len() && is_zero_chunk(&buffer[end..]) == zero {
                end = (end + CHUNK_BYTES as usize).min(buffer.len());
            }
            let content = if zero { Content::Zero((end - at) as u64) } else { Content::Data(buffer.slice(at..end)) };
            pieces.push((offset_bytes + at as u64, content));
            at = end;
        }
        Ok(pieces)
    }

    /// Closes the sync span if nothing is left to copy.
    pub fn finish_span(&self) -> Option<BarrierAt> {
        let end = self.tracker().finish_span(self.shared.clock.stamp());
        if let Some(end) = end {
            tracing::info!(disk = %self.id, epoch = %end.epoch, seq = %end.seq, "copy is complete");
            self.to_send.notify_one();
            self.wake();
        }
        end
    }
}

/// Whether the first chunk of `bytes` is all zero.
fn is_zero_chunk(bytes: &[u8]) -> bool {
    let length = bytes.len().min(ZEROES.len());
    bytes[..length] == ZEROES[..length]
}

/// Epochs, and what is remembered of them.
impl Disk {
    /// Takes over what the tracker knows, for the next store.
    fn refresh(&self) -> DiskState {
        let tracker = self.tracker();
        let mut state = self.state.lock();
        if tracker.mode() != Mode::Detached {
            let floor = tracker.dirty().floor();
            state.epoch = Some(tracker.queue().epoch());
            (state.floor_seq, state.floor_chain) = (floor.seq, floor.chain);
            state.label = state.label.max(tracker.queue().label());
            state.synced = !tracker.in_span() && tracker.dirty().must_send().is_empty();
        }
        state.clone()
    }

    /// The nonce to name to a gateway: that of the epoch, or of the fork that is asked for.
    ///
    /// # Errors
    /// If the system gives no random bytes.
    pub fn nonce(&self) -> Result<Id128, RandomError> {
        if !matches!(self.plan(), Plan::Fork(_)) {
            return Ok(self.state.lock().nonce);
        }
        let mut asked = self.fork_nonce.lock();
        let nonce = match *asked {
            Some(nonce) => nonce,
            None => Id128(random()?),
        };
        *asked = Some(nonce);
        Ok(nonce)
    }

    /// Writes the state file, if `change` or the tracker's progress make a difference. Blocks.
    fn persist(&self, change: impl Fn(&mut DiskState)) -> Result<(), StateError> {
        let mut stored = self.stored.lock();
        let mut next = self.refresh();
        // While there is no epoch no labels are given, and before the first gateway the clock may be far off.
        if self.tracker().mode() != Mode::Detached {
            next.label = kept_label(next.label, stored.label, self.shared.clock.stamp().label);
        }
        change(&mut next);
        if next != *stored {
            self.shared.dir.store(&next)?;
            self.kept_label.store(next.label.0, Ordering::Relaxed);
            stored.clone_from(&next);
        }
        // Not `next`: an epoch given up while the file was written has left a newer floor here.
        change(&mut self.state.lock());
        Ok(())
    }

    /// Gives up the present epoch, or the fork that was asked for, and plans to fork.
    pub fn abandon(&self, reason: ForkReason) {
        self.refresh();
        self.tracker().abandon(self.shared.clock.monotonic());
        *self.plan.lock() = Plan::Fork(reason);
        // A gateway that refuses a fork as one that was answered long ago refuses its nonce for ever.
        *self.fork_nonce.lock() = None;
        self.wake();
    }

    /// Remembers that another epoch took over. Blocks.
    ///
    /// # Errors
    /// If that cannot be written.
    pub fn fence(&self, newest: Epoch) -> Result<(), StateError> {
        self.refresh();
        self.tracker().abandon(self.shared.clock.monotonic());
        *self.plan.lock() = Plan::Fenced(newest);
        self.wake();
        self.persist(|state| state.fenced = Some(newest))
    }

    /// Starts an epoch that the gateway has opened: remembered durably before its first record can go out. Blocks.
    ///
    /// # Errors
    /// If it cannot be remembered; nothing was started then.
    pub fn start_epoch(&self, start: EpochStart, nonce: Id128) -> Result<(), StateError> {
        self.keep_told(start.epoch);
        // The old epoch was given up: what the tracker knows of it is in the state already.
        let begin = |state: &mut DiskState| {
            state.epoch = Some(start.epoch);
            (state.floor_seq, state.floor_chain) = (Seq(start.next_seq.0 - 1), start.chain);
            state.nonce = nonce;
            state.synced = false;
        };
        if mutants::on(Mutant::EpochNotPersisted) {
            begin(&mut self.state.lock())
        } else {
            self.persist(begin)?
        }
        let label = self.state.lock().label;
        self.tracker().start_epoch(start, label, self.shared.clock.stamp());
        *self.plan.lock() = Plan::Resume;
        *self.fork_nonce.lock() = None;
        self.to_send.notify_one();
        self.to_copy.notify_one();
        self.wake();
        Ok(())
    }

    /// Goes on with the epoch that a clean stop left behind.
    pub fn continue_epoch(&self, start: EpochStart) {
        let label = self.state.lock().label;
        self.tracker().continue_epoch(start, label, self.shared.clock.stamp());
        self.to_send.notify_one();
        self.to_copy.notify_one();
        self.wake();
    }

    /// The floor to name to a gateway: that of the present epoch, or of the last one.
    pub fn floor(&self) -> Option<(Epoch, Floor)> {
        self.refresh().floor()
    }

    /// Persists the state, with a label that is ahead of those given. Blocks.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn remember(&self) -> Result<(), StateError> {
        self.persist(|_| {})
    }

    /// Persists the floor and then clears the activity map where everything is vaulted. Blocks; called every few seconds.
    ///
    /// # Errors
    /// If the state cannot be written or the disk cannot be flushed; nothing was cleared then.
    pub fn settle(&self) -> Result<(), StateError> {
        self.activity.watch();
        let candidates = self.clear_candidates();
        if !candidates.is_empty() && !self.own_flush() {
            return Ok(());
        }
        if mutants::on(Mutant::MapClearedFirst) {
            self.activity.clear(&candidates);
        }
        // Now, not before: the floor must cover everything that made a region a candidate.
        self.persist(|_| {})?;
        self.activity.clear(&candidates);
        Ok(())
    }

    /// Active regions with nothing in flight and nothing that is not vaulted.
    fn clear_candidates(&self) -> ChunkSet {
        let mut candidates = ChunkSet::new(self.source.size_bytes().div_ceil(REGION_BYTES));
        let mut from = 0;
        while let Some(run) = self.activity.next_active(from, CLEAR_REGIONS) {
            from = run.end;
            let quiet = run.filter(|region| {
                // In flight first: what is tracked only after this look was asked for after `watch`.
                !self.ranges.busy(&(region * REGION_BYTES..(region + 1) * REGION_BYTES))
            });
            let quiet: Vec<u64> = quiet.collect();
            let tracker = self.tracker();
            for region in quiet {
                let chunks = region * (REGION_BYTES / CHUNK_BYTES)..(region + 1) * (REGION_BYTES / CHUNK_BYTES);
                if !tracker.dirty().holds(&chunks) {
                    candidates.insert(region..region + 1);
                }
            }
        }
        candidates
    }

    /// Whether everything is vaulted and the epoch can be resumed.
    pub fn all_vaulted(&self) -> bool {
        let tracker = self.tracker();
        tracker.mode() == Mode::Recording && !tracker.in_span() && tracker.dirty().all_vaulted()
    }

    /// Writes the state of an orderly stop: clean if everything is vaulted. The guest is gone. Blocks.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn close(&self) -> Result<bool, StateError> {
        self.settle()?;
        let clean = mutants::on(Mutant::CleanWhileDirty) || self.all_vaulted() && self.activity.active_regions() == 0;
        if clean {
            let (modified_nanos, newest) = (modified_nanos(&self.path), self.state.lock().label);
            self.persist(|state| {
                (state.clean, state.modified_nanos, state.label) = (true, modified_nanos, newest);
            })?;
        }
        Ok(clean)
    }
}

#[cfg(test)]
mod tests;

const _: () = assert!(REGION_BYTES.is_multiple_of(CHUNK_BYTES), "a region holds whole chunks");
