//! The shard's books, pure: which segments hold what, how far each disk is vaulted, what may be released.
//!
//! - A segment waits for a run (disk and epoch) as long as the run's mark is below the last record it holds of it.
//! - A closed segment that waits for nothing is *releasing*; it is released (given back for use) only after the marks
//!   that justify this are durable themselves. Else a crash would lose both the records and the knowledge that they
//!   are vaulted, and the agent would have to fork.
//! - A segment whose last commit was given up (its sync failed, or it was torn) is *cut*: its end is written into every
//!   later segment, as long as the file keeps its name. What stands behind the end never counts again.
//! - Each segment starts with a list of the others that are held and where they end, and a release is noted before it
//!   happens: replay can tell a segment that was lost from one that was released.
//! - Every mark is written again into each new segment, so marks outlive the segment in which they stood first.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;

use super::format::RowKind;
use super::model::CommitAt;
use crate::mutants::{self, Mutant};
use crate::types::{Chain, DiskId, Epoch, Micros, Seq};

/// A segment that nothing needs any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Freed {
    /// The number it had.
    pub segment: u64,
    /// Its file.
    pub path: PathBuf,
    /// The file's length.
    pub file_bytes: u64,
    /// Bytes of its commits.
    pub held_bytes: u64,
    /// Records in them.
    pub records: u64,
    /// Whether the file may be used again; one on which a write failed may not.
    pub reusable: bool,
}

#[derive(Debug)]
struct Segment {
    path: PathBuf,
    file_bytes: u64,
    end_bytes: u64,
    records: u64,
    numbers: Option<(u64, u64)>,
    waits_for: usize,
    closed: bool,
    poisoned: bool,
}

#[derive(Debug, Default)]
struct Run {
    mark: Option<(Seq, Chain)>,
    forgotten: bool,
    dirty: bool,
    /// (segment, last seq there), in order; covered ones are gone.
    places: VecDeque<(u64, Seq)>,
    times: Times,
}

/// When what is not vaulted of a run came. Of a long backlog only some times are kept, evenly: what is told is then too old by
/// a thirtieth of it at most, and never too young.
#[derive(Debug, Default)]
struct Times {
    /// The last seq of some commits in a row, and when the first record of these was received. In order.
    kept: VecDeque<(Seq, Micros)>,
    /// Commits that the newest of them stands for, and how many it may.
    in_last: u32,
    stride: u32,
}

/// Times kept for a run; an even number.
const TIMES_MAX: usize = 64;

impl Times {
    fn push(&mut self, last: Seq, received: Micros) {
        if let Some(newest) = self.kept.back_mut().filter(|_| self.in_last < self.stride) {
            newest.0 = last;
            self.in_last += 1;
            return;
        }
        if self.kept.len() == TIMES_MAX {
            let pairs = self.kept.make_contiguous().chunks(2);
            self.kept = pairs.map(|pair| (pair[pair.len() - 1].0, pair[0].1)).collect();
            self.stride = self.stride.saturating_mul(2);
        } else if self.kept.len() < TIMES_MAX / 4 {
            self.stride = (self.stride / 2).max(1);
        }
        self.kept.push_back((last, received));
        self.in_last = 1;
    }

    fn drop_while(&mut self, is_covered: impl Fn(Seq) -> bool) {
        while self.kept.front().is_some_and(|&(last, _)| is_covered(last)) {
            self.kept.pop_front();
        }
    }
}

/// What came with a commit.
#[derive(Debug, Clone, Copy)]
pub struct Came {
    /// Records in it.
    pub records: u64,
    /// When the first of them was received.
    pub first: Micros,
}

/// What a reader needs to know of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentView {
    /// Its number.
    pub segment: u64,
    /// Its file.
    pub path: PathBuf,
    /// End of what is durable in it.
    pub end_bytes: u64,
    /// Number of its last commit.
    pub last_number: u64,
    /// Whether some run still waits to be vaulted from it.
    pub wanted: bool,
}

/// A mark that is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The disk.
    pub disk: DiskId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Last vaulted record.
    pub seq: Seq,
    /// Its chain; none says that the epoch is given up.
    pub chain: Option<Chain>,
}

/// The books of one shard.
#[derive(Debug, Default)]
pub struct Ledger {
    segments: BTreeMap<u64, Segment>,
    runs: BTreeMap<DiskId, BTreeMap<Epoch, Run>>,
    dirty: VecDeque<(DiskId, Epoch)>,
    releasing: Vec<Freed>,
    /// How many of `releasing` the commit under way will justify.
    justified: usize,
    /// Ends of cut segments.
    cuts: BTreeMap<u64, u64>,
    /// What is to be written about segments: kind, segment, end.
    notes: VecDeque<(RowKind, u64, u64)>,
    /// Segments were released before their notes were written.
    notes_late: bool,
}

impl Run {
    fn covers(&self, seq: Seq) -> bool {
        self.forgotten || self.mark.is_some_and(|(mark, _)| seq <= mark)
    }
}

impl Ledger {
    /// Takes a prepared segment into use; the one before is closed, and every mark is due again.
    pub fn activate(&mut self, segment: u64, path: PathBuf, file_bytes: u64) {
        self.close_all();
        self.prune();
        self.add_segment(segment, path, file_bytes);
        self.note_all(segment);
        self.dirty.clear();
        for (disk, epochs) in &mut self.runs {
            for (epoch, run) in epochs {
                run.dirty = run.mark.is_some() || run.forgotten;
                if run.dirty {
                    self.dirty.push_back((disk.clone(), *epoch));
                }
            }
        }
    }

    /// Enters a segment without closing any: replay.
    pub fn add_segment(&mut self, segment: u64, path: PathBuf, file_bytes: u64) {
        let fresh = Segment {
            path,
            file_bytes,
            end_bytes: 0,
            records: 0,
            numbers: None,
            waits_for: 0,
            closed: false,
            poisoned: false,
        };
        self.segments.insert(segment, fresh);
    }

    /// Closes all segments: nothing more is written to them.
    pub fn close_all(&mut self) {
        for segment in self.segments.values_mut() {
            segment.closed = true;
        }
        self.sweep();
    }

    /// Closes a segment on which a write or sync failed; its file is never used again.
    pub fn poison(&mut self, segment: u64) {
        if let Some(held) = self.segments.get_mut(&segment) {
            held.poisoned = true;
            held.closed = true;
            self.cuts.insert(segment, held.end_bytes);
        }
        self.sweep();
    }

    /// Cuts a segment at `end_bytes`: replay.
    pub fn cut(&mut self, segment: u64, end_bytes: u64) {
        self.cuts.insert(segment, end_bytes);
    }

    /// Everything about segments is due again: what a new segment starts with.
    fn note_all(&mut self, active: u64) {
        let cuts = self.cuts.iter().map(|(segment, end_bytes)| (RowKind::Cut, *segment, *end_bytes));
        let held = self.segments.iter().filter(|(segment, held)| **segment != active && held.numbers.is_some());
        let held = held.map(|(segment, held)| (RowKind::Held, *segment, held.end_bytes));
        // A commit that is written for the second time may still say that these are held.
        let releasing = self.releasing.iter().map(|freed| (RowKind::Released, freed.segment, 0));
        self.notes = cuts.chain(held).chain(releasing).collect();
    }

    /// Hands what is due about segments to `put` until it refuses one.
    pub fn write_notes(&mut self, mut put: impl FnMut(RowKind, u64, u64) -> bool) {
        while let Some((kind, segment, end_bytes)) = self.notes.front().copied()
            && put(kind, segment, end_bytes)
        {
            self.notes.pop_front();
        }
        self.notes_late &= !self.notes.is_empty();
    }

    /// Enters a durable commit with the last seq of each run in it.
    pub fn committed<'a>(
        &mut self,
        at: CommitAt,
        commit_bytes: u64,
        came: Came,
        lasts: impl IntoIterator<Item = (&'a DiskId, Epoch, Seq)>,
    ) {
        let Some(segment) = self.segments.get_mut(&at.segment) else { return };
        segment.end_bytes = at.offset_bytes + commit_bytes;
        let first = segment.numbers.map_or(at.number, |(first, _)| first);
        segment.numbers = Some((first, at.number));
        segment.records += came.records;
        for (disk, epoch, seq) in lasts {
            let run = run_mut(&mut self.runs, disk, epoch);
            if run.covers(seq) {
                continue;
            }
            run.times.push(seq, came.first);
            match run.places.back_mut() {
                Some((place, last)) if *place == at.segment => *last = seq.max(*last),
                _ => {
                    run.places.push_back((at.segment, seq));
                    segment.waits_for += 1;
                }
            }
        }
    }

    /// Notes that a run is vaulted up to `seq`.
    pub fn vaulted(&mut self, disk: &DiskId, epoch: Epoch, seq: Seq, chain: Chain) {
        let run = run_mut(&mut self.runs, disk, epoch);
        if run.mark.is_some_and(|(mark, _)| seq <= mark) {
            return;
        }
        run.mark = Some((seq, chain));
        self.settle(disk, epoch);
    }

    /// Gives up what is here of a run.
    pub fn forget(&mut self, disk: &DiskId, epoch: Epoch) {
        let run = run_mut(&mut self.runs, disk, epoch);
        if !run.forgotten {
            run.forgotten = true;
            self.settle(disk, epoch);
        }
    }

    fn settle(&mut self, disk: &DiskId, epoch: Epoch) {
        let run = run_mut(&mut self.runs, disk, epoch);
        if !run.dirty {
            run.dirty = true;
            self.dirty.push_back((disk.clone(), epoch));
        }
        let (forgotten, mark) = (run.forgotten, run.mark);
        run.times.drop_while(|seq| forgotten || mark.is_some_and(|(mark, _)| seq <= mark));
        let mut done = false;
        while let Some(&(place, last)) = run.places.front()
            && run.covers(last)
        {
            run.places.pop_front();
            if let Some(segment) = self.segments.get_mut(&place) {
                segment.waits_for -= 1;
                done |= segment.waits_for == 0 && segment.closed;
            }
        }
        if done {
            self.sweep();
        }
    }

    fn sweep(&mut self) {
        let needless = |s: &Segment| s.waits_for == 0 || mutants::on(Mutant::ReleasedBeforeVaulted);
        let gone: Vec<u64> =
            self.segments.iter().filter(|(_, s)| s.closed && needless(s)).map(|(number, _)| *number).collect();
        for number in gone {
            let Some(segment) = self.segments.remove(&number) else { continue };
            self.notes.push_back((RowKind::Released, number, 0));
            self.releasing.push(Freed {
                segment: number,
                path: segment.path,
                file_bytes: segment.file_bytes,
                held_bytes: segment.end_bytes,
                records: segment.records,
                reusable: !segment.poisoned,
            });
        }
    }

    /// Forgets runs that only history needs: nothing of them is here, and a later epoch of the disk is known.
    fn prune(&mut self) {
        for epochs in self.runs.values_mut() {
            if let Some(newest) = epochs.keys().next_back().copied() {
                epochs.retain(|epoch, run| *epoch == newest || !run.places.is_empty());
            }
        }
    }

    /// Hands the due marks to `put` until it refuses one.
    pub fn write_marks(&mut self, mut put: impl FnMut(&Mark) -> bool) {
        while let Some((disk, epoch)) = self.dirty.pop_front() {
            let Some(run) = self.runs.get_mut(&disk).and_then(|epochs| epochs.get_mut(&epoch)) else { continue };
            run.dirty = false;
            let vaulted = run.mark.map(|(seq, chain)| Mark { disk: disk.clone(), epoch, seq, chain: Some(chain) });
            let forgotten = run.forgotten.then(|| Mark { disk: disk.clone(), epoch, seq: Seq::NONE, chain: None });
            if !vaulted.iter().chain(&forgotten).all(&mut put) {
                run.dirty = true;
                self.dirty.push_front((disk, epoch));
                return;
            }
        }
        if self.notes.is_empty() {
            self.justified = self.releasing.len();
        }
    }

    /// The marks handed out last are durable: what they justify is released.
    pub fn marks_durable(&mut self) -> Vec<Freed> {
        let justified = std::mem::take(&mut self.justified);
        let justified = if mutants::on(Mutant::ReleasedBeforeMarks) { self.releasing.len() } else { justified };
        self.releasing.drain(..justified).collect()
    }

    /// Gives up waiting for the marks: see the writer, which does this only where they have no room.
    pub fn release_unmarked(&mut self) -> Vec<Freed> {
        self.justified = 0;
        self.notes_late = true;
        std::mem::take(&mut self.releasing)
    }

    /// After replay: nothing is written to the segments found, and their marks stand on the disk already.
    pub fn replayed(&mut self) {
        self.close_all();
        self.dirty.clear();
        for run in self.runs.values_mut().flat_map(BTreeMap::values_mut) {
            run.dirty = false;
        }
    }

    /// Whether nothing waits to be vaulted.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.segments.is_empty()
    }

    /// The marks of all runs.
    pub fn marks(&self) -> impl Iterator<Item = (&DiskId, Epoch, Option<(Seq, Chain)>)> {
        let runs =
            self.runs.iter().flat_map(|(disk, epochs)| epochs.iter().map(move |(epoch, run)| (disk, *epoch, run)));
        runs.filter(|(_, _, run)| !run.forgotten).map(|(disk, epoch, run)| (disk, epoch, run.mark))
    }

    /// Runs that were given up.
    pub fn forgotten(&self) -> impl Iterator<Item = (&DiskId, Epoch)> {
        let runs =
            self.runs.iter().flat_map(|(disk, epochs)| epochs.iter().map(move |(epoch, run)| (disk, *epoch, run)));
        runs.filter(|(_, _, run)| run.forgotten).map(|(disk, epoch, _)| (disk, epoch))
    }

    /// Whether a commit of marks alone is called for: segments wait for nothing else, or went before their notes.
    #[must_use]
    pub fn has_releasing(&self) -> bool {
        !self.releasing.is_empty() || self.notes_late
    }

    /// Whether marks wait to be written.
    #[must_use]
    pub fn has_due_marks(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Whether a record is vaulted or given up.
    #[must_use]
    pub fn covers(&self, disk: &DiskId, epoch: Epoch, seq: Seq) -> bool {
        self.runs.get(disk).and_then(|epochs| epochs.get(&epoch)).is_some_and(|run| run.covers(seq))
    }

    /// The first segment from `segment` on that has a commit of at least `number`.
    #[must_use]
    pub fn find(&self, segment: u64, number: u64) -> Option<SegmentView> {
        self.segments.range(segment..).find_map(|(&segment, held)| {
            let (_, last_number) = held.numbers.filter(|(_, last)| *last >= number)?;
            let (path, end_bytes, wanted) = (held.path.clone(), held.end_bytes, held.waits_for > 0);
            Some(SegmentView { segment, path, end_bytes, last_number, wanted })
        })
    }

    /// Whether a segment is still held.
    #[must_use]
    pub fn holds(&self, segment: u64) -> bool {
        self.segments.contains_key(&segment)
    }

    /// When the oldest record was received that is not vaulted, at the latest.
    #[must_use]
    pub fn oldest(&self) -> Option<Micros> {
        let runs = self.runs.values().flat_map(BTreeMap::values);
        runs.filter_map(|run| run.times.kept.front()).map(|(_, received)| *received).min()
    }

    /// Bytes that are not free: closed segments whole, the open one as far as it is written.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        let held = self.segments.values().map(|s| if s.closed { s.file_bytes } else { s.end_bytes });
        held.sum::<u64>() + self.releasing.iter().map(|freed| freed.file_bytes).sum::<u64>()
    }
}

fn run_mut<'a>(runs: &'a mut BTreeMap<DiskId, BTreeMap<Epoch, Run>>, disk: &DiskId, epoch: Epoch) -> &'a mut Run {
    if !runs.contains_key(disk) {
        runs.insert(disk.clone(), BTreeMap::new());
    }
    match runs.get_mut(disk) {
        Some(epochs) => epochs.entry(epoch).or_default(),
        None => unreachable!("it was just put in"),
    }
}

#[cfg(test)]
mod tests;
