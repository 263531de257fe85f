//! What this gateway knows of each disk: how far its runs are appended, journaled and vaulted. Pure bookkeeping.
//!
//! - A *run* is the records of one epoch of one disk that passed through this gateway.
//! - `appended ≥ journaled ≥ vaulted`, each contiguous from the run's base.
//! - The base is what is known to be vaulted already: a mark in the journal, or the floor that the agent names. As
//!   long as it is unknown, batches may complete but nothing counts as vaulted, for a hole could be below them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::habit::Habit;
use crate::flow::{Pace, Watermark, watch};
use crate::mutants::{self, Mutant};
use crate::types::{Chain, Digest, DiskId, Epoch, Seq};

/// A place in a run, with the chain there if it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Last record included.
    pub seq: Seq,
    /// Chain after it.
    pub chain: Option<Chain>,
}

/// A range of records that is complete at some level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First record.
    pub first: Seq,
    /// Last record.
    pub last: Seq,
    /// Chain after the last one.
    pub chain_last: Chain,
}

/// Joins spans that complete in any order to one contiguous prefix above a base.
#[derive(Debug, Default)]
pub struct Prefix {
    reached: Option<Mark>,
    /// Spans above a hole, by first record. Bounded by what is in flight: each is one message of an upload, or one
    /// range found in the journal.
    waiting: BTreeMap<u64, Span>,
}

impl Prefix {
    /// How far the prefix reaches, if its base is known.
    #[must_use]
    pub fn reached(&self) -> Option<Mark> {
        self.reached
    }

    /// Learns that everything up to `base` is complete. Returns the new end if the prefix grew.
    pub fn set_base(&mut self, base: Mark) -> Option<Mark> {
        match self.reached {
            Some(reached) if reached.seq > base.seq || (reached.seq == base.seq && reached.chain.is_some()) => None,
            _ => {
                self.reached = Some(base);
                self.join();
                self.reached
            }
        }
    }

    /// Learns that `span` is complete. Returns the new end if the prefix grew.
    pub fn complete(&mut self, span: Span) -> Option<Mark> {
        if let Some(reached) = self.reached
            && self.waiting.is_empty()
            && span.first == reached.seq.next()
            && span.last > reached.seq
        {
            // What comes in order waits for nothing, and a tree that was never used takes no memory.
            self.reached = Some(Mark { seq: span.last, chain: Some(span.chain_last) });
            return self.reached;
        }
        let known = self.waiting.get(&span.first.0);
        if known.is_none_or(|known| known.last < span.last) {
            self.waiting.insert(span.first.0, span);
        }
        let before = self.reached;
        self.join();
        if self.reached == before { None } else { self.reached }
    }

    fn join(&mut self) {
        let Some(mut reached) = self.reached else { return };
        while let Some(entry) = self.waiting.first_entry() {
            let span = *entry.get();
            if span.first > reached.seq.next() && !mutants::on(Mutant::AckPastHole) {
                break;
            }
            entry.remove();
            if span.last > reached.seq {
                reached = Mark { seq: span.last, chain: Some(span.chain_last) };
            }
        }
        self.reached = Some(reached);
    }
}

/// Records of one epoch of one disk that passed through this gateway.
#[derive(Debug)]
pub struct Run {
    /// The epoch.
    pub epoch: Epoch,
    /// Last record durable on this gateway's disk.
    pub journaled: Arc<Watermark>,
    /// Last record durable in the vault, with all before it.
    pub vaulted: Arc<Watermark>,
    levels: Mutex<Levels>,
    broken: AtomicBool,
}

#[derive(Debug, Default)]
struct Levels {
    /// Handed to the journal.
    appended: Prefix,
    /// Found in the journal at start: durable before this process began. Live records reach `journaled` through the
    /// journal's own watermark instead.
    found: Prefix,
    vaulted: Prefix,
}

impl Run {
    /// A run of which nothing is known yet.
    #[must_use]
    pub fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            journaled: Arc::default(),
            vaulted: Arc::default(),
            levels: Mutex::default(),
            broken: AtomicBool::new(false),
        }
    }

    /// A run that starts with its epoch: nothing lies below.
    #[must_use]
    pub fn fresh(epoch: Epoch, chain: Chain) -> Self {
        let run = Self::new(epoch);
        run.set_base(Mark { seq: Seq::NONE, chain: Some(chain) });
        run
    }

    fn break_off(&self) {
        self.broken.store(true, Ordering::Release);
    }

    /// Whether it was broken off.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Whether everything that was handed to the journal is known to be vaulted.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let levels = self.levels.lock();
        let (appended, vaulted) = (&levels.appended, &levels.vaulted);
        appended.waiting.is_empty() && appended.reached.map(|mark| mark.seq) == vaulted.reached.map(|mark| mark.seq)
    }

    /// Whether records were handed to the journal that join nothing below them, as far as that is known.
    #[must_use]
    pub fn has_gap(&self) -> bool {
        !self.levels.lock().appended.waiting.is_empty()
    }

    /// Learns what is vaulted from elsewhere: a journal mark, the agent's floor, or the vault.
    pub fn set_base(&self, base: Mark) {
        let mut levels = self.levels.lock();
        levels.vaulted.set_base(base);
        levels.found.set_base(base);
        levels.appended.set_base(base);
        if let (Some(vaulted), Some(found)) = (levels.vaulted.reached(), levels.found.reached()) {
            self.vaulted.advance(vaulted.seq.0);
            self.journaled.advance(found.seq.0.max(vaulted.seq.0));
        }
    }

    /// Learns of records found in the journal at start.
    pub fn found_in_journal(&self, span: Span) {
        let mut levels = self.levels.lock();
        levels.appended.complete(span);
        if let Some(found) = levels.found.complete(span) {
            self.journaled.advance(found.seq.0);
        }
    }

    /// Joins the agent's floor to what was found in the journal. Returns where the agent may go on.
    pub fn resume_from(&self, floor: Mark) -> Mark {
        self.set_base(floor);
        self.levels.lock().appended.reached().unwrap_or(floor)
    }

    /// Learns that one more record was handed to the journal.
    pub fn appended(&self, seq: Seq, chain: Chain) {
        self.levels.lock().appended.complete(Span { first: seq, last: seq, chain_last: chain });
    }

    /// Last record handed to the journal, contiguous from the base.
    #[must_use]
    pub fn appended_mark(&self) -> Option<Mark> {
        self.levels.lock().appended.reached()
    }

    /// How far the run is vaulted.
    #[must_use]
    pub fn vaulted_mark(&self) -> Option<Mark> {
        self.levels.lock().vaulted.reached()
    }

    /// Whether records handed to the journal are not vaulted yet, as far as that can be known.
    #[must_use]
    pub fn behind(&self) -> bool {
        if self.is_broken() {
            return false;
        }
        let levels = self.levels.lock();
        matches!((levels.appended.reached(), levels.vaulted.reached()), (Some(appended), Some(vaulted)) if appended.seq > vaulted.seq)
    }

    /// Learns that a span is durable in the vault. Returns the new contiguous end if it grew.
    pub fn span_vaulted(&self, span: Span) -> Option<Mark> {
        let grown = self.levels.lock().vaulted.complete(span)?;
        self.vaulted.advance(grown.seq.0);
        Some(grown)
    }
}

/// The session that carries a disk at present, as the sessions after it see it.
#[derive(Debug, Clone)]
pub struct Session {
    /// Set to the newest epoch when another one took over.
    pub fenced: watch::Sender<Option<Epoch>>,
    /// Set to the reason when the epoch cannot go on here.
    pub must_fork: watch::Sender<Option<String>>,
    /// Set when another stream of the same epoch took the disk.
    pub superseded: Arc<AtomicBool>,
}

impl Session {
    /// A session that carries its disk.
    #[must_use]
    pub fn new() -> Self {
        Self { fenced: watch::channel(None).0, must_fork: watch::channel(None).0, superseded: Arc::default() }
    }
}

impl Default for Session {
    fn default() -> Self {
        Self::new()
    }
}

/// One disk at this gateway.
#[derive(Debug)]
pub struct DiskSlot {
    /// The disk.
    pub disk: DiskId,
    /// Held while a stream of the disk is being opened: opens of one disk happen one at a time.
    pub opening: tokio::sync::Mutex<()>,
    /// How small its writes become and how fast they come, and since when not as ever.
    pub habit: Mutex<Habit>,
    /// Limits of bandwidth that it keeps to on whatever stream it comes, from its first one on.
    pub pace: OnceLock<Pace>,
    /// The agent's certificate that is known to be kept in the vault.
    pub certificate: Mutex<Option<Digest>>,
    state: Mutex<SlotState>,
}

#[derive(Debug, Default)]
struct SlotState {
    runs: BTreeMap<Epoch, Arc<Run>>,
    session: Option<Session>,
}

impl DiskSlot {
    /// A disk of which nothing is known.
    #[must_use]
    pub fn new(disk: DiskId) -> Self {
        let (opening, pace) = (tokio::sync::Mutex::new(()), OnceLock::new());
        let (habit, certificate, state) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { disk, opening, habit, pace, certificate, state }
    }

    /// The run of `epoch`, if records of it passed here.
    #[must_use]
    pub fn run(&self, epoch: Epoch) -> Option<Arc<Run>> {
        self.state.lock().runs.get(&epoch).cloned()
    }

    /// The run of `epoch`, made if it is not there.
    pub fn run_or_new(&self, epoch: Epoch) -> Arc<Run> {
        Arc::clone(self.state.lock().runs.entry(epoch).or_insert_with(|| Arc::new(Run::new(epoch))))
    }

    /// Adds a run that starts with its epoch, fences the session of an older one, and drops the older runs: returns
    /// their epochs.
    pub fn start_epoch(&self, run: Arc<Run>) -> Vec<Epoch> {
        let mut state = self.state.lock();
        let newer = state.runs.split_off(&run.epoch);
        let older = std::mem::replace(&mut state.runs, newer);
        if let Some(session) = state.session.take() {
            session.fenced.send_replace(Some(run.epoch));
        }
        state.runs.insert(run.epoch, run);
        older.into_keys().collect()
    }

    /// Forgets runs of epochs before `epoch`, which another gateway began: returns their epochs. A session that still
    /// carries one of them is fenced.
    pub fn retire_below(&self, epoch: Epoch) -> Vec<Epoch> {
        let mut state = self.state.lock();
        let newer = state.runs.split_off(&epoch);
        let older = std::mem::replace(&mut state.runs, newer);
        if !older.is_empty()
            && let Some(session) = &state.session
        {
            session.fenced.send_replace(Some(epoch));
        }
        older.into_keys().collect()
    }

    /// Records of `epoch` are unusable here: its run cannot go on, the agent is told to fork.
    pub fn break_off(&self, epoch: Epoch, reason: &str) {
        let state = self.state.lock();
        let Some(run) = state.runs.get(&epoch) else { return };
        run.break_off();
        if let Some(session) = &state.session {
            session.must_fork.send_replace(Some(reason.to_owned()));
        }
    }

    /// Takes the disk for a new session; the one before, if any, is told to stop.
    pub fn take_over(&self, session: Session) {
        if let Some(before) = self.state.lock().session.replace(session) {
            before.superseded.store(true, Ordering::Release);
        }
    }

    /// Stops the session of this disk, if there is one, before its epoch is forked: it appends nothing more.
    pub fn stop_session(&self) {
        if let Some(session) = &self.state.lock().session {
            session.superseded.store(true, Ordering::Release);
        }
    }

    /// All runs, oldest first.
    #[must_use]
    pub fn runs(&self) -> Vec<Arc<Run>> {
        self.state.lock().runs.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(first: u64, last: u64) -> Span {
        Span { first: Seq(first), last: Seq(last), chain_last: Chain([last as u8; 32]) }
    }

    fn mark(seq: u64) -> Mark {
        Mark { seq: Seq(seq), chain: Some(Chain([seq as u8; 32])) }
    }

    #[test]
    fn spans_completed_out_of_order_count_only_when_contiguous() {
        let mut prefix = Prefix::default();
        assert_eq!(prefix.complete(span(4, 6)), None, "no base yet");
        assert_eq!(prefix.set_base(mark(0)), Some(mark(0)));
        assert_eq!(prefix.complete(span(9, 9)), None, "hole at 7");
        assert_eq!(prefix.complete(span(1, 3)), Some(mark(6)));
        assert_eq!(prefix.complete(span(5, 8)), Some(mark(9)), "overlaps are harmless");
        assert_eq!(prefix.complete(span(2, 3)), None);
    }

    #[test]
    fn a_run_counts_nothing_as_vaulted_before_its_base_is_known() {
        let run = Run::new(Epoch(1));
        run.found_in_journal(span(11, 20));
        assert_eq!(run.span_vaulted(span(11, 20)), None);
        assert_eq!((run.journaled.get(), run.vaulted.get()), (0, 0));
        assert_eq!(run.resume_from(mark(10)), mark(20));
        assert_eq!((run.journaled.get(), run.vaulted.get()), (20, 20));
    }

    #[test]
    fn appended_records_are_not_journaled_by_a_resume() {
        let run = Run::fresh(Epoch(1), Chain::GENESIS);
        run.appended(Seq(1), Chain([1; 32]));
        assert_eq!(run.resume_from(mark(0)), mark(1));
        assert_eq!(run.journaled.get(), 0);
    }

    #[test]
    fn a_hole_in_the_journal_stops_the_resume_below_it() {
        let run = Run::new(Epoch(1));
        run.found_in_journal(span(11, 15));
        run.found_in_journal(span(18, 20));
        assert_eq!(run.resume_from(mark(10)), mark(15));
    }

    #[test]
    fn a_second_session_stops_the_first_and_a_new_epoch_fences_it() {
        let slot = DiskSlot::new(DiskId::new("d").expect("name"));
        let (first, second) = (Session::new(), Session::new());
        slot.take_over(first.clone());
        slot.take_over(second.clone());
        assert!(first.superseded.load(Ordering::Acquire) && !second.superseded.load(Ordering::Acquire));
        slot.start_epoch(Arc::new(Run::fresh(Epoch(2), Chain::GENESIS)));
        assert_eq!(*second.fenced.borrow(), Some(Epoch(2)));
    }

    #[test]
    fn a_new_epoch_retires_the_older_runs() {
        let slot = DiskSlot::new(DiskId::new("d").expect("name"));
        slot.run_or_new(Epoch(1));
        slot.run_or_new(Epoch(2));
        let retired = slot.start_epoch(Arc::new(Run::fresh(Epoch(3), Chain::GENESIS)));
        assert_eq!(retired, [Epoch(1), Epoch(2)]);
        assert!(slot.run(Epoch(1)).is_none() && slot.run(Epoch(3)).is_some());
    }
}
