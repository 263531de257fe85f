//! What a run, or a plan, found and did; what it may use; how far it is.

use std::sync::atomic::{AtomicU64, Ordering};

use super::judge::DiskVerdict;
use super::marks::Present;

/// Notes that are kept: more say nothing more.
const NOTES_MAX: usize = 1000;

/// What a run, or a plan, found and did.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Report {
    /// Every disk.
    pub disks: Vec<DiskVerdict>,
    /// Batches that the vault holds, and their bytes.
    pub stored: Count,
    /// Bytes of the messages that are needed.
    pub needed_bytes: u64,
    /// Batches that are not needed, or of which what is needed was copied, and not yet marked.
    pub unneeded: Count,
    /// Batches that are marked, and not deleted.
    pub marked: Count,
    /// Lanes that were sealed.
    pub lanes_sealed: u64,
    /// Lanes that have something to let go and are in use, or were in use too short a time ago.
    pub lanes_in_use: u64,
    /// Lanes that have something to let go and were sealed a moment ago: ten minutes later it can be marked.
    pub lanes_waiting: u64,
    /// Lanes that another keeper works on.
    pub lanes_elsewhere: u64,
    /// Lanes that stay as they are because something of them cannot be read.
    pub lanes_unread: u64,
    /// Lane indexes that were written.
    pub indexes_written: u64,
    /// Lanes that were folded as a whole.
    pub lanes_folded: u64,
    /// Folded indexes that were written, or found as this run would have written them.
    pub folded_written: u64,
    /// Batches that were marked in this run.
    pub newly_marked: Count,
    /// Marks that were taken back.
    pub taken_back: u64,
    /// Batches that were deleted in this run.
    pub deleted: Count,
    /// Batches of which so little is needed that they are worth emptying.
    pub sparse: Count,
    /// Bytes of the messages in them that are not needed.
    pub moving_saves_bytes: u64,
    /// Batches that were written in this run with what was moved.
    pub moved: Count,
    /// Batches that this was moved out of: they go when the copies are old enough.
    pub emptied_batches: u64,
    /// Whether the budget ended the run before its work was done.
    pub budget_spent: bool,
    /// Whether the run was asked to stop before its work was done.
    pub stopped: bool,
    /// What is worth knowing.
    pub notes: Vec<String>,
}

impl Report {
    pub(super) fn note(&mut self, note: String) {
        if self.notes.len() < NOTES_MAX {
            tracing::warn!("{note}");
            self.notes.push(note);
        }
    }

    /// Whether a run that began now would find something to do that this one had to leave.
    #[must_use]
    pub fn goes_on(&self) -> bool {
        self.budget_spent || self.stopped || self.lanes_elsewhere > 0 || self.lanes_waiting > 0 || self.lanes_sealed > 0
    }

    /// Whether something is damaged, so that retention stands still there.
    #[must_use]
    pub fn is_held_back(&self) -> bool {
        self.lanes_unread > 0 || self.disks.iter().any(|disk| disk.held_back.is_some())
    }
}

/// Some batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Count {
    /// How many.
    pub batches: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Count {
    pub(super) fn add(&mut self, batches: &[Present]) {
        self.batches += batches.len() as u64;
        self.bytes += batches.iter().map(|batch| batch.size_bytes).sum::<u64>();
    }
}

/// What a run may still use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    requests: u64,
    bytes: u64,
    pub(super) spent: bool,
}

impl Budget {
    pub(super) fn new(requests: u64, bytes: u64) -> Self {
        Self { requests, bytes, spent: false }
    }

    /// Requests beside those that look whether they may still be sent.
    pub(super) fn requests_left(&self, looks: u64) -> usize {
        usize::try_from(self.requests.saturating_sub(looks)).unwrap_or(usize::MAX)
    }

    /// Whether so much may be used; it is used then.
    pub(super) fn take(&mut self, requests: u64, bytes: u64) -> bool {
        if self.requests < requests || self.bytes < bytes {
            self.spent = true;
            return false;
        }
        self.requests -= requests;
        self.bytes -= bytes;
        true
    }
}

/// How far a run is.
#[derive(Debug, Default)]
pub struct Progress {
    disks: AtomicU64,
    disks_judged: AtomicU64,
    lanes: AtomicU64,
    lanes_done: AtomicU64,
    deleted: AtomicU64,
}

impl Progress {
    /// Disks are judged from now on, `disks` of them; once more where there are groups.
    pub(super) fn judging(&self, disks: usize) {
        self.disks.fetch_add(disks as u64, Ordering::Relaxed);
    }

    pub(super) fn judged(&self, disks: usize) {
        self.disks_judged.fetch_add(disks as u64, Ordering::Relaxed);
    }

    /// Lanes are gone through from now on.
    pub(super) fn working(&self, lanes: usize) {
        self.lanes.fetch_add(lanes as u64, Ordering::Relaxed);
    }

    pub(super) fn lane_done(&self) {
        self.lanes_done.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn deleted(&self, batches: u64) {
        self.deleted.fetch_add(batches, Ordering::Relaxed);
    }
}

impl std::fmt::Display for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (disks, judged) = (get(&self.disks), get(&self.disks_judged));
        let (lanes, done) = (get(&self.lanes), get(&self.lanes_done));
        write!(
            f,
            "{judged} of {disks} disks judged, {done} of {lanes} lanes done, {} batches deleted",
            get(&self.deleted)
        )
    }
}
