//! Folding: what the indexes of an ended lane say of each disk, written once more as an object of that disk, so that whoever reads one disk
//! reads no other's rows, however old the vault and whoever shares it.
//!
//! ```text
//!  lane indexes ─► rows, disk by disk ─► d/<disk>/f/<lane>/<part> ─► note: folded through this disk ─┐
//!       ▲                                                                                            │
//!       └──────────── once more, for the disks that memory had no room for ◄─────────────────────────┘
//! ```
//!
//! - Only a lane is folded to which nothing comes any more: it has its end, or a seal that is old enough.
//! - Only a whole one: every batch that is there stands in a lane index, what is there no more was let go, and none is missing that was
//!   once confirmed. So a folded index leaves out nothing that the lane's own indexes say.
//! - It changes nothing else: lane indexes stay, batches go as if there were none. The keeper itself never judges by one.
//!
//! Memory: the packed rows of as many disks as fit [`Limits::pass_bytes`], in the order of their names; the others wait for the next pass
//! over the lane. Beside them one lane index, and a digest per batch of the lane.
//!
//! Crash: objects are created only if absent, and what stands there is compared. Notes only save work: without them a run does it again.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::config::Work;
use super::cover::Cover;
use super::judge::{self, Verdict};
use super::marks::Present;
use super::report::{Budget, Report};
use crate::fault::chain_text;
use crate::flow::Drain;
use crate::types::{DiskId, Id128};
use crate::vault::index::folded::{FOLDED_BYTES_TARGET, FoldedBounds, FoldedBuilder, FoldedPlace, SealedFolded};
use crate::vault::index::lane::{Entry, HEADER_BYTES, LANE_INDEX_BYTES_MAX, LaneIndex};
use crate::vault::index::{BatchIndex, IndexPlace};
use crate::vault::lane::ListedLane;
use crate::vault::objects::{FoldObject, LaneEndObject};
use crate::vault::{Found, Vault, VaultError, names};

/// Memory for the rows of one pass: a day's of some thousand disks that each write once a minute or two.
const PASS_BYTES_MAX: usize = 256 << 20;
/// Objects that are written between two looks at the budget and at whether the run is to stop.
const PUT_GROUP: usize = 64;
/// Objects that are written at the same time.
const PUTS_AT_ONCE: usize = 16;

/// How much is held and written at once.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Memory for the rows of one pass.
    pub pass_bytes: usize,
    /// Size at which a part is closed.
    pub part_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { pass_bytes: PASS_BYTES_MAX, part_bytes: FOLDED_BYTES_TARGET }
    }
}

/// What is known of lanes that were folded, or begun to be.
#[derive(Debug, Default)]
pub(super) struct Notes {
    whole: BTreeSet<Id128>,
    newest: BTreeMap<Id128, u64>,
}

impl Notes {
    pub(super) async fn list(vault: &Vault) -> Result<Self, VaultError> {
        let mut notes = Self::default();
        for path in vault.store().list(Some(&names::folds())).await?.iter().map(|listed| &listed.path) {
            let Some(lane) = names::lane_of_fold(path) else { continue };
            if *path == names::fold_whole(lane) {
                notes.whole.insert(lane);
            } else if let Some(n) = names::number(path).filter(|&n| names::fold(lane, n) == *path) {
                let newest = notes.newest.entry(lane).or_default();
                *newest = n.max(*newest);
            }
        }
        Ok(notes)
    }

    /// Whether a lane is folded as a whole.
    pub(super) fn is_whole(&self, lane: Id128) -> bool {
        self.whole.contains(&lane)
    }

    /// Number of the newest note on a lane; zero if there is none.
    pub(super) fn newest(&self, lane: Id128) -> u64 {
        self.newest.get(&lane).copied().unwrap_or(0)
    }
}

/// Folds one lane that has ended, by whatever number of requests and bytes it takes. Without a verdict: disks that a route leads to and no
/// row get no folded index.
///
/// # Errors
/// [`VaultError`] if the store fails.
pub async fn lane(vault: &Vault, listed: &ListedLane, limits: Limits, stop: &Drain) -> Result<Report, VaultError> {
    let (mut budget, mut report) = (Budget::new(u64::MAX, u64::MAX), Report::default());
    let note = Notes::list(vault).await?.newest(listed.lane);
    let (verdict, work) = (&Verdict::default(), &Work { bytes: u64::MAX, ..Work::default() });
    let (budget, told) = (&mut budget, &mut report);
    Folding { vault, listed, verdict, work, stop, budget, report: told, note, limits }.run().await?;
    Ok(report)
}

/// The work on one lane, which must have ended.
pub(super) struct Folding<'a> {
    pub(super) vault: &'a Vault,
    pub(super) listed: &'a ListedLane,
    pub(super) verdict: &'a Verdict,
    pub(super) work: &'a Work,
    pub(super) stop: &'a Drain,
    pub(super) budget: &'a mut Budget,
    pub(super) report: &'a mut Report,
    /// Number of the newest note.
    pub(super) note: u64,
    pub(super) limits: Limits,
}

/// A lane index as its header tells it.
struct Indexed {
    k: u64,
    size_bytes: u64,
    first: u64,
    last: u64,
}

/// What a whole lane is folded from.
struct Whole {
    indexes: Vec<Indexed>,
    /// The highest number of a batch.
    last: u64,
    /// The end's word on what was confirmed.
    confirmed: u64,
    /// The first number below it that no batch has.
    hole: Option<u64>,
}

/// How a pass over a lane ended.
enum Passed {
    /// Before its end.
    Stopped,
    /// With every disk up to this one, and more left.
    Through(DiskId),
    /// With every disk.
    All,
}

/// One disk's rows as they are gathered.
#[derive(Default)]
struct Gathered {
    open: FoldedBuilder,
    /// Parts that were written, and the last batch that they speak for.
    parts: u32,
    through: u64,
}

impl Folding<'_> {
    pub(super) async fn run(&mut self) -> Result<(), VaultError> {
        let lane = self.listed.lane;
        let Some(whole) = self.whole().await? else { return Ok(()) };
        let bytes: u64 = whole.indexes.iter().map(|index| index.size_bytes).sum();
        if bytes > self.work.bytes {
            let budget = self.work.bytes;
            self.report.note(format!(
                "lane {lane} is not folded: its indexes have {bytes} bytes, and a run may read {budget}: raise `bytes` of [keeper]"
            ));
            return Ok(());
        }
        let mut after = self.progress().await?;
        loop {
            // Begun only if it can come to its end: what was gathered is lost with the run.
            if !self.budget.take(whole.indexes.len() as u64, bytes) {
                return Ok(());
            }
            match self.pass(&whole, after.as_ref()).await? {
                Passed::Stopped => return Ok(()),
                Passed::Through(disk) => after = Some(disk),
                Passed::All => {
                    let note = FoldObject { lane, through: None };
                    self.vault.put_object(&names::fold_whole(lane), &note).await?;
                    self.report.lanes_folded += 1;
                    return Ok(());
                }
            }
        }
    }

    /// The disk up to which the lane is folded.
    async fn progress(&self) -> Result<Option<DiskId>, VaultError> {
        if self.note == 0 {
            return Ok(None);
        }
        match self.vault.get_object::<FoldObject>(&names::fold(self.listed.lane, self.note)).await {
            Ok(found) => Ok(found.and_then(|note| note.through)),
            // It only saves work.
            Err(VaultError::Object(error)) => {
                tracing::debug!(%error, "the lane is folded from its first disk on");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn note(&mut self, disk: &DiskId) -> Result<(), VaultError> {
        let (lane, through) = (self.listed.lane, Some(disk.clone()));
        self.note += 1;
        match self.vault.put_object(&names::fold(lane, self.note), &FoldObject { lane, through }).await {
            // Of another keeper: what it says is as true.
            Ok(_) | Err(VaultError::Taken { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The lane as it is folded; none if it is not whole, or the budget does not reach.
    async fn whole(&mut self) -> Result<Option<Whole>, VaultError> {
        let lane = self.listed.lane;
        let end = if self.listed.ended {
            self.vault.get_object::<LaneEndObject>(&names::lane_end(lane)).await?.map(|end| end.last_batch)
        } else {
            None
        };
        let manifest = if self.listed.sealed.is_some() { self.vault.manifest(lane).await? } else { None };
        let batches = self.vault.store().list(Some(&names::batches(lane))).await?;
        let present = judge::present(self.listed, &batches);
        let Some(indexes) = self.covered(&present).await? else { return Ok(None) };
        let numbers: BTreeSet<u64> = present.iter().map(|batch| batch.n).collect();
        let mut next = 1;
        let mut hole = None;
        for index in &indexes {
            if index.first > next {
                hole = hole.or(Some(next));
            }
            for n in index.first.max(next)..=index.last {
                let let_go = || manifest.as_ref().is_some_and(|manifest| manifest.run_of(n).is_some());
                if !numbers.contains(&n) && !let_go() {
                    tracing::debug!(%lane, n, "a lane that lacks a batch is not folded");
                    return Ok(None);
                }
            }
            next = next.max(index.last.saturating_add(1));
        }
        let last = next - 1;
        if end.is_some_and(|end| end != last) {
            tracing::debug!(%lane, last, "a lane that does not end where its end says is not folded");
            return Ok(None);
        }
        if let (Some(hole), Some(newest)) = (hole, indexes.last())
            && self.confirmed_by(newest).await?.is_none_or(|confirmed| hole <= confirmed)
        {
            tracing::debug!(%lane, hole, "a lane that lacks a batch is not folded");
            return Ok(None);
        }
        Ok(Some(Whole { indexes, last, confirmed: end.unwrap_or(0), hole }))
    }

    /// What the last batch of a lane index says was confirmed; none if it cannot be read.
    async fn confirmed_by(&mut self, index: &Indexed) -> Result<Option<u64>, VaultError> {
        if !self.budget.take(1, index.size_bytes) {
            return Ok(None);
        }
        let lane = self.listed.lane;
        let path = names::lane_index(lane, index.k);
        let found = self.vault.store().get_timed(&path, LANE_INDEX_BYTES_MAX).await?;
        let Some((object, appeared_micros)) = found else { return Ok(None) };
        let Some(entry) = LaneIndex::parse(&object).ok().and_then(|mut index| index.entries.pop()) else {
            return Ok(None);
        };
        let rows = self.open(&entry, Found { object: path.as_ref(), appeared_micros });
        Ok(rows.map(|rows| rows.confirmed_through))
    }

    /// The lane indexes, which cover every batch that is there: what a gateway did not come to is written.
    async fn covered(&mut self, present: &[Present]) -> Result<Option<Vec<Indexed>>, VaultError> {
        for first_look in [true, false] {
            let Some(indexes) = self.lane_indexes().await? else { return Ok(None) };
            let at = |n: u64| indexes.iter().any(|index| (index.first..=index.last).contains(&n));
            let uncovered: BTreeSet<u64> = present.iter().map(|batch| batch.n).filter(|&n| !at(n)).collect();
            if uncovered.is_empty() {
                return Ok(Some(indexes));
            }
            if first_look {
                let mut cover = Cover::new(self.vault, self.listed.lane, self.verdict, uncovered);
                cover.read(self.budget).await?;
                cover.complete(present, self.budget, self.report).await?;
            }
        }
        Ok(None)
    }

    /// The lane indexes by their headers, in the order of their batches; none if the budget does not reach, or one is damaged.
    async fn lane_indexes(&mut self) -> Result<Option<Vec<Indexed>>, VaultError> {
        let lane = self.listed.lane;
        let listed = self.vault.store().list(Some(&names::lane_indexes(lane))).await?;
        let mut indexes = Vec::with_capacity(listed.len());
        for one in listed {
            let Some(k) = names::number(&one.path).filter(|&k| k > 0 && names::lane_index(lane, k) == one.path) else {
                continue;
            };
            if one.size_bytes < HEADER_BYTES as u64 || !self.budget.take(1, HEADER_BYTES as u64) {
                return Ok(None);
            }
            let head = self.vault.store().get_range(&one.path, 0..HEADER_BYTES as u64).await?;
            let Ok(numbers) = LaneIndex::numbers(&head) else { return Ok(None) };
            let (first, last) = numbers.into_inner();
            indexes.push(Indexed { k, size_bytes: one.size_bytes, first, last });
        }
        indexes.sort_unstable_by_key(|index| (index.first, index.k));
        Ok(Some(indexes))
    }

    /// Reads the whole lane once, and writes the folded indexes of as many disks after `after` as memory has room for.
    async fn pass(&mut self, whole: &Whole, after: Option<&DiskId>) -> Result<Passed, VaultError> {
        let mut pass = Pass::new(after, self.routed(after), whole.confirmed);
        for index in &whole.indexes {
            if self.stop.started() {
                return Ok(Passed::Stopped);
            }
            let path = names::lane_index(self.listed.lane, index.k);
            let found = self.vault.store().get_timed(&path, LANE_INDEX_BYTES_MAX).await?;
            let parsed = found.as_ref().map(|(object, at)| (LaneIndex::parse(object), *at));
            let Some((Ok(parsed), appeared_micros)) = parsed else {
                self.report.note(format!("lane {} is not folded: {path} is damaged", self.listed.lane));
                return Ok(Passed::Stopped);
            };
            for entry in &parsed.entries {
                let found = Found { object: path.as_ref(), appeared_micros };
                let Some(rows) = self.rows(&mut pass, entry, found) else {
                    self.report.note(format!("lane {} is not folded: what {path} says is damaged", self.listed.lane));
                    return Ok(Passed::Stopped);
                };
                self.gather(&mut pass, entry, rows).await?;
            }
        }
        if whole.hole.is_some_and(|hole| hole <= pass.confirmed) {
            tracing::debug!(lane = %self.listed.lane, "a lane that lacks a batch is not folded");
            return Ok(Passed::Stopped);
        }
        self.write(pass, whole.last).await
    }

    /// Disks that a route leads to this lane from: also of one that has nothing in it a reader wants to know that.
    fn routed(&self, after: Option<&DiskId>) -> BTreeMap<DiskId, Gathered> {
        let disks = self.verdict.disks.iter().map(|judged| &judged.disk);
        let routed = disks.filter(|disk| after.is_none_or(|after| *disk > after));
        let routed = routed.filter(|disk| self.verdict.judged(self.listed.lane, disk));
        routed.map(|disk| (disk.clone(), Gathered::default())).collect()
    }

    /// The rows of a batch, without any if they were read before; none if they do not open, or two lane indexes differ.
    fn rows(&self, pass: &mut Pass, entry: &Entry, found: Found<'_>) -> Option<BatchIndex> {
        let mut rows = self.open(entry, found).filter(|rows| pass.agrees(entry.n, rows))?;
        pass.confirmed = pass.confirmed.max(rows.confirmed_through);
        if entry.n <= pass.last {
            rows.disks.clear();
        }
        pass.last = entry.n.max(pass.last);
        Some(rows)
    }

    /// Opens what a lane index has of a batch.
    fn open(&self, entry: &Entry, found: Found<'_>) -> Option<BatchIndex> {
        let (lane, n) = (self.listed.lane, entry.n);
        let object = names::batch_name(lane, n);
        let place = IndexPlace { vault: self.vault.id(), object: &object, lane, n };
        self.vault.open_index(&place, &entry.index, found).ok()
    }

    /// Takes the rows of a batch. A disk with so many that a part is full has it written at once.
    async fn gather(&mut self, pass: &mut Pass, entry: &Entry, mut rows: BatchIndex) -> Result<(), VaultError> {
        for part in std::mem::take(&mut rows.disks) {
            let disk = part.disk.clone();
            if !pass.wants(&disk) {
                continue;
            }
            let one = BatchIndex { disks: vec![part], ..rows.clone() };
            let gathered = pass.disks.entry(disk.clone()).or_default();
            let before = gathered.open.held_bytes();
            gathered.open.push(entry.total_bytes, &one.encode());
            // Less than before where rows were packed.
            pass.held_bytes = pass.held_bytes + gathered.open.held_bytes() - before;
            if gathered.open.stored_bytes() >= self.limits.part_bytes {
                pass.held_bytes -= gathered.open.held_bytes();
                let full = std::mem::take(&mut gathered.open);
                let bounds = gathered.next(entry.n, pass.confirmed, false);
                let number = gathered.parts;
                let taken = self.put(&disk, number, full, bounds).await?;
                taken.into_iter().for_each(|taken| self.report.note(taken));
                self.report.folded_written += 1;
                // One for many that were read: whether the budget reached is looked at later.
                let _ = self.budget.take(1, 0);
            }
            pass.bound(self.limits.pass_bytes);
        }
        Ok(())
    }

    /// Writes what was gathered, in the order of the disks' names, as far as the budget goes.
    async fn write(&mut self, pass: Pass, last: u64) -> Result<Passed, VaultError> {
        let Pass { disks, beyond, confirmed, .. } = pass;
        let mut rest = disks.into_iter();
        let mut through = None;
        while rest.len() > 0 {
            // One request is left for the note.
            let room = self.budget.requests_left(1).min(PUT_GROUP).min(rest.len());
            if self.stop.started() || room == 0 || !self.budget.take(room as u64, 0) {
                self.budget.spent |= room == 0;
                if let Some(disk) = &through {
                    self.note(disk).await?;
                }
                return Ok(Passed::Stopped);
            }
            let group: Vec<(DiskId, Gathered)> = rest.by_ref().take(room).collect();
            through = group.last().map(|(disk, _)| disk.clone());
            let this = &*self;
            let puts = group.into_iter().map(|(disk, mut gathered)| async move {
                let bounds = gathered.next(last, confirmed, true);
                this.put(&disk, gathered.parts, gathered.open, bounds).await
            });
            let taken: Vec<Option<String>> = stream::iter(puts).buffer_unordered(PUTS_AT_ONCE).try_collect().await?;
            self.report.folded_written += taken.len() as u64;
            taken.into_iter().flatten().for_each(|taken| self.report.note(taken));
        }
        match (beyond, through) {
            (None, _) => Ok(Passed::All),
            (Some(_), Some(through)) => {
                self.note(&through).await?;
                Ok(Passed::Through(through))
            }
            // Not even one disk fits, which the bound on parts excludes.
            (Some(_), None) => Ok(Passed::Stopped),
        }
    }

    /// Writes one part; tells if something else stands there.
    async fn put(
        &self,
        disk: &DiskId,
        part: u32,
        open: FoldedBuilder,
        bounds: FoldedBounds,
    ) -> Result<Option<String>, VaultError> {
        let (lane, key) = (self.listed.lane, self.vault.key_to_write().await?);
        let path = names::folded(disk, lane, part);
        let place = FoldedPlace { vault: self.vault.id(), object: path.as_ref(), lane, part };
        let object = match open.finish(&key, &place, bounds) {
            Ok(object) => object,
            Err(error) => return Ok(Some(format!("{path} is not written: {}", chain_text(&error)))),
        };
        match self.vault.put_bytes(&path, object.clone()).await {
            Ok(_) => Ok(None),
            // Sealed by another run, or by this one before its answer was lost: what it says is the same.
            Err(VaultError::Taken { .. }) => {
                let ours = SealedFolded::parse(&place, &object).and_then(|sealed| sealed.open(&key, &place, disk));
                let same = match self.vault.folded(disk, lane, part).await {
                    Ok(found) => found.is_some() && ours.ok() == found,
                    Err(VaultError::Object(_)) => false,
                    Err(error) => return Err(error),
                };
                Ok((!same).then(|| format!("{path} says something else than the indexes of its lane: delete it")))
            }
            Err(error) => Err(error),
        }
    }
}

impl Gathered {
    /// The bounds of the next part, up to batch `last`.
    fn next(&mut self, last: u64, confirmed_through: u64, is_last: bool) -> FoldedBounds {
        let bounds = FoldedBounds { first: self.through + 1, last, confirmed_through, is_last };
        self.parts += 1;
        self.through = last;
        bounds
    }
}

/// A pass under way.
struct Pass {
    after: Option<DiskId>,
    disks: BTreeMap<DiskId, Gathered>,
    /// Memory of their rows.
    held_bytes: usize,
    /// From this disk on they wait for the next pass.
    beyond: Option<DiskId>,
    /// Last batch that was read.
    last: u64,
    confirmed: u64,
    /// Digests of the batches' indexes, to tell two that differ.
    digests: BTreeMap<u64, [u8; 16]>,
}

impl Pass {
    fn new(after: Option<&DiskId>, disks: BTreeMap<DiskId, Gathered>, confirmed: u64) -> Self {
        let (after, digests) = (after.cloned(), BTreeMap::new());
        Self { after, disks, held_bytes: 0, beyond: None, last: 0, confirmed, digests }
    }

    fn wants(&self, disk: &DiskId) -> bool {
        self.after.as_ref().is_none_or(|after| disk > after) && self.beyond.as_ref().is_none_or(|beyond| disk < beyond)
    }

    /// Whether a batch's index says the same wherever it stands.
    fn agrees(&mut self, n: u64, rows: &BatchIndex) -> bool {
        let hash = blake3::hash(&rows.encode());
        let mut digest = [0; 16];
        digest.copy_from_slice(&hash.as_bytes()[..16]);
        *self.digests.entry(n).or_insert(digest) == digest
    }

    /// Lets the last disks wait while there is no room for all. One always stays, and its full parts are written as they come.
    fn bound(&mut self, bytes_max: usize) {
        while self.held_bytes > bytes_max && self.disks.len() > 1 {
            let Some((disk, gathered)) = self.disks.pop_last() else { return };
            self.held_bytes -= gathered.open.held_bytes();
            self.beyond = Some(disk);
        }
    }
}
