//! From the vault's indexes to a verdict: which batches hold something that is needed. Reads, never writes.
//!
//! Disks are judged in groups, so that memory is the rows of one group and a few marks per batch. A disk of which not
//! everything can be read, or whose history is damaged, is held back: all that it has counts as needed. Where disks have points of
//! one barrier, they are judged twice: what one of them keeps of such a point, the others keep too.

use std::collections::{BTreeMap, BTreeSet};

use super::config::Policies;
use super::error::KeeperError;
use super::marks::{LaneVerdict, Present};
use super::needs::{self, Appeared};
use super::outlook::Going;
use super::pins::Pins;
use super::places::{self, Role, Standing, Worth};
use super::policy::{self, Reason};
use super::proof::{Spare, Spares};
use super::report::Progress;
use super::shredded;
use super::sparse::{Holdings, Use};
use crate::fault::{self, Classify, Fault};
use crate::restore::history::{History, Presence, Row};
use crate::restore::points::{self, Point};
use crate::restore::source;
use crate::types::{DiskId, Id128, Micros, PointId};
use crate::vault::lane::ListedLane;
use crate::vault::objects::EpochObject;
use crate::vault::reader::{Catalog, CatalogBatch, Finding, Want};
use crate::vault::store::Listed;
use crate::vault::{Vault, names};

/// Most points of groups that are remembered by their ids while disks are judged: some 50 MiB. With more, every point of a group is kept.
const GROUP_POINTS_MAX: usize = 1 << 20;
/// Names of unknown disks that are told: more say nothing more.
const UNKNOWN_MAX: usize = 10;

/// What was judged of one disk.
#[derive(Clone, Debug, serde::Serialize)]
pub struct DiskVerdict {
    /// The disk.
    pub disk: DiskId,
    /// Points that are offered now.
    pub points: u64,
    /// Points that are kept.
    pub kept: u64,
    /// How many for which reason.
    pub reasons: BTreeMap<Reason, u64>,
    /// The oldest that is kept, and its time.
    pub oldest_kept: Option<(String, String)>,
    /// Pins that hold.
    pub pins: u64,
    /// Whether a legal hold keeps everything of it.
    pub hold: bool,
    /// Whether everything of it is kept for a pin, of a point that a fork has cut off since.
    pub pinned_whole: bool,
    /// Why nothing of the disk goes.
    pub held_back: Option<String>,
    /// Whether it was shredded, and nothing opens any of it any more.
    pub shredded: bool,
    /// Points that will be offered no more, in a plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub going: Option<Going>,
}

/// The verdict over a vault.
#[derive(Debug, Default)]
pub struct Verdict {
    /// By disk, in the order of their names.
    pub disks: Vec<DiskVerdict>,
    /// Bytes of the messages that are needed.
    pub needed_bytes: u64,
    lanes: BTreeMap<Id128, LaneVerdict>,
    /// What is needed and stands elsewhere too.
    pub(super) spares: Spares,
    /// What batches hold that may be emptied.
    pub(super) holdings: Holdings,
}

impl Verdict {
    /// What was judged of a lane.
    #[must_use]
    pub fn lane(&self, lane: Id128) -> Option<&LaneVerdict> {
        self.lanes.get(&lane)
    }

    /// Whether a disk was judged by what a lane holds of it, and is not held back: a batch of the lane that holds another one stays.
    #[must_use]
    pub fn judged(&self, lane: Id128, disk: &DiskId) -> bool {
        let place = self.disks.binary_search_by(|judged| judged.disk.cmp(disk));
        let lane = self.lanes.get(&lane);
        place.is_ok_and(|place| lane.is_some_and(|lane| lane.judged.contains(place as u64)))
    }
}

/// By what is judged.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// The policies.
    pub policies: &'a Policies,
    /// The pins.
    pub pins: &'a Pins,
    /// The time, by the store's clock where that is known.
    pub now_micros: i64,
    /// What appeared later is younger than the fork window. Taken before anything was listed.
    pub old_micros: i64,
    /// What was copied later is not known to every reader.
    pub ripe_micros: i64,
    /// Disks that are judged together.
    pub disks_at_once: usize,
    /// Below so many hundredths a batch is sparse; zero if nobody asks.
    pub sparse: u64,
}

/// Points of groups that some disk keeps, by the id of their barrier.
#[derive(Debug, Default)]
struct GroupPoints {
    ids: BTreeSet<Id128>,
    /// There are too many to remember.
    all: bool,
}

impl GroupPoints {
    fn insert(&mut self, id: Id128) {
        self.ids.insert(id);
        if self.ids.len() > GROUP_POINTS_MAX {
            self.ids.clear();
            self.all = true;
        }
    }

    fn contains(&self, id: Id128) -> bool {
        self.all || self.ids.contains(&id)
    }

    fn is_empty(&self) -> bool {
        !self.all && self.ids.is_empty()
    }
}

/// Judges every disk of the vault.
///
/// # Errors
/// [`KeeperError`] if the store fails, the catalog key is not at hand, or a policy is of no disk. Damage holds disks back.
pub async fn judge(vault: &Vault, terms: &Terms<'_>, progress: &Progress) -> Result<Verdict, KeeperError> {
    let disks = vault.disks().await?;
    if let Some(unknown) = unknown(&disks, terms.policies) {
        return Err(unknown);
    }
    let kept = match pass(vault, terms, &disks, &GroupPoints::default(), progress).await? {
        (verdict, kept) if kept.is_empty() => return Ok(verdict),
        // The first verdict makes room for the second.
        (_, kept) => kept,
    };
    Ok(pass(vault, terms, &disks, &kept, progress).await?.0)
}

/// A slip in a name would give its disk the policy of all others.
fn unknown(disks: &[DiskId], policies: &Policies) -> Option<KeeperError> {
    let unknown = policies.disks.keys().filter(|disk| !disks.contains(disk));
    let names: Vec<&str> = unknown.map(DiskId::as_str).take(UNKNOWN_MAX).collect();
    (!names.is_empty()).then(|| KeeperError::UnknownDisk { names: names.join(", ") })
}

/// Judges every disk, where `elsewhere` is what others keep; returns also which points of groups the disks keep by themselves.
async fn pass(
    vault: &Vault,
    terms: &Terms<'_>,
    disks: &[DiskId],
    elsewhere: &GroupPoints,
    progress: &Progress,
) -> Result<(Verdict, GroupPoints), KeeperError> {
    let verdict = Verdict { holdings: Holdings::new(terms.sparse), ..Verdict::default() };
    let mut pass = Pass { vault, terms, elsewhere, kept: GroupPoints::default(), verdict };
    progress.judging(disks.len());
    for group in disks.chunks(terms.disks_at_once.max(1)) {
        let want = Want { disks: Some(group.iter().cloned().collect()), ..Want::default() };
        let catalog = source::load(vault, &want).await?;
        for lane in &catalog.lanes {
            pass.verdict.lanes.entry(lane.lane).or_default().here |= lane.batches > 0;
        }
        for batch in &catalog.batches {
            pass.verdict.lanes.entry(batch.index.lane).or_default().seen.insert(batch.index.n);
        }
        for disk in group {
            pass.one(&catalog, disk).await?;
        }
        progress.judged(group.len());
    }
    Ok((pass.verdict, pass.kept))
}

/// One disk as it is judged.
pub(super) struct Judged {
    pub(super) epochs: Vec<EpochObject>,
    pub(super) history: History,
    held_back: Option<String>,
    /// The lanes in which its key was destroyed.
    destroyed: BTreeSet<Id128>,
    /// Whether all of it was sealed in these.
    shredded: bool,
    /// Lanes of which everything that they hold of the disk was looked at.
    lanes: BTreeSet<Id128>,
}

/// Reads what the catalog does not hold of a disk, and puts it in order.
pub(super) async fn open(vault: &Vault, catalog: &Catalog, disk: &DiskId) -> Result<Judged, KeeperError> {
    // After the batches, so that an epoch of which they hold records is surely listed.
    let (epochs, unreadable) = match vault.epochs(disk).await {
        Ok(epochs) => (epochs, None),
        Err(error) if error.fault() == Fault::Retry => return Err(error.into()),
        Err(error) => (Vec::new(), Some(fault::chain_text(&error))),
    };
    let routes: BTreeSet<Id128> = vault.routes(disk).await?.into_iter().collect();
    let history = source::history(catalog, disk, &epochs);
    let (destroyed, unreadable) = match shredded::destroyed(vault, catalog, disk, &history).await {
        Ok(destroyed) => (destroyed, unreadable),
        Err(error) if error.fault() == Fault::Retry => return Err(error.into()),
        Err(error) => (BTreeSet::new(), Some(fault::chain_text(&error))),
    };
    let shredded = !destroyed.is_empty() && shredded::holds_all(&destroyed, catalog, &history);
    // Whether its history is whole is nobody's question any more where nothing of it opens.
    let held_back = unreadable.or_else(|| held_back(catalog, &routes, &epochs, (!shredded).then_some(&history)));
    let lanes = catalog.lanes.iter().map(|lane| lane.lane).filter(|lane| routes.contains(lane)).collect();
    Ok(Judged { epochs, history, held_back, destroyed, shredded, lanes })
}

struct Pass<'a> {
    vault: &'a Vault,
    terms: &'a Terms<'a>,
    elsewhere: &'a GroupPoints,
    kept: GroupPoints,
    verdict: Verdict,
}

impl Pass<'_> {
    async fn one(&mut self, catalog: &Catalog, disk: &DiskId) -> Result<(), KeeperError> {
        let Judged { history, held_back, destroyed, shredded, lanes, .. } = open(self.vault, catalog, disk).await?;
        let held_back = held_back.or_else(|| self.terms.pins.holds_all.clone());
        let policy = self.terms.policies.of(disk);
        let (told, kept) = self.keep(catalog, disk, &history, (held_back, shredded));
        let appeared = |row: &Row| {
            let batch = &catalog.batches[row.object as usize];
            let appeared_micros = put_by_micros(row, batch).min(batch.modified_micros);
            Appeared { young: appeared_micros > self.terms.old_micros, put_by: micros(put_by_micros(row, batch)) }
        };
        let mut needed = if told.held_back.is_some() || told.hold || told.pinned_whole {
            vec![true; history.rows.len()]
        } else {
            needs::needed(&history, &kept, &policy.holds, appeared)
        };
        // Whatever is held stays as it stands, to be read or not: that is what a hold asks for. So does what somebody reads who has the keys still.
        let free = told.held_back.is_none() && !told.hold && policy.holds.is_empty() && told.pins == 0;
        if free {
            shredded::let_go(&destroyed, catalog, &history, &mut needed);
        }
        // Somebody reads by what stood there when the pin was made; and what is held, or in doubt, stays in each of its places.
        let fixed = told.held_back.is_some() || told.hold || told.pins > 0;
        let roles = if fixed {
            vec![Role::Taken; history.rows.len()]
        } else {
            places::roles(&history.rows, |row| standing(catalog, row, &lanes, self.terms.ripe_micros))
        };
        self.note(catalog, &history, &roles, needed, fixed);
        let verdict = &mut self.verdict;
        let place = verdict.disks.len() as u64;
        for lane in lanes.into_iter().filter(|_| told.held_back.is_none()) {
            verdict.lanes.entry(lane).or_default().judged.insert(place);
        }
        verdict.disks.push(told);
        Ok(())
    }

    /// Takes over which rows are needed, each message in one of its places, and which of these a copy stands for soon.
    fn note(&mut self, catalog: &Catalog, history: &History, roles: &[Role], mut needed: Vec<bool>, fixed: bool) {
        // Of each row the copy that ripens; and whether it stands in a third place, which would count again if this one were marked.
        let (mut copies, mut has_spare) = (vec![None; needed.len()], vec![false; needed.len()]);
        for (index, role) in roles.iter().enumerate() {
            if let Role::Ripens(of) | Role::Spare { of, .. } = *role {
                needed[of] = needed[of] || needed[index];
            }
            match *role {
                Role::Taken => {}
                Role::Ripens(of) => copies[of] = Some(index),
                Role::Spare { of, .. } => has_spare[of] = true,
            }
        }
        let verdict = &mut self.verdict;
        for (index, (row, role)) in history.rows.iter().zip(roles).enumerate() {
            let batch = &catalog.batches[row.object as usize];
            let place = (batch.index.lane, batch.index.n);
            let needed = match *role {
                Role::Taken => needed[index],
                Role::Ripens(of) => needed[of],
                Role::Spare { of, proof } => {
                    needed[of] && proof && !verdict.spares.add(place, spare(catalog, row, &history.rows[of]))
                }
            };
            let here = row.presence == Presence::Here;
            if needed {
                let lane = verdict.lanes.entry(place.0).or_default();
                lane.needed.insert(place.1);
                let copy = copies[index].filter(|_| here && !has_spare[index]).map(|copy| &history.rows[copy]);
                if copy.is_none_or(|copy| !verdict.spares.add(place, spare(catalog, row, copy))) {
                    lane.alone.insert(place.1);
                }
            }
            if needed && here && *role == Role::Taken {
                verdict.needed_bytes += u64::from(row.message.stored_bytes);
            }
            if here && self.terms.sparse > 0 && may_be_emptied(catalog, batch, self.terms.old_micros) {
                let what_for = match (needed, *role) {
                    (false, _) => Use::Dead,
                    (true, Role::Taken) if fixed => Use::Stuck,
                    (true, Role::Taken) if copies[index].is_some() => Use::Copied,
                    (true, Role::Taken) => Use::Needed,
                    (true, _) => Use::Stuck,
                };
                verdict.holdings.note(batch, &row.message, what_for);
            }
        }
    }

    /// What is kept of a disk, and the places that stand for it.
    fn keep(
        &mut self,
        catalog: &Catalog,
        disk: &DiskId,
        history: &History,
        (held_back, shredded): (Option<String>, bool),
    ) -> (DiskVerdict, BTreeSet<PointId>) {
        let points = points::list(history);
        let now = micros(self.terms.now_micros);
        let policy = self.terms.policies.of(disk);
        let put_by = put_by(catalog, history, &points);
        let reasons = policy::keep(&points, |at| put_by[at], policy, now);
        let mut told = DiskVerdict {
            disk: disk.clone(),
            points: points.len() as u64,
            kept: 0,
            reasons: BTreeMap::new(),
            oldest_kept: None,
            pins: 0,
            hold: policy.hold,
            pinned_whole: false,
            held_back,
            shredded,
            going: None,
        };
        let mut kept = BTreeSet::new();
        for (point, reason) in points.iter().zip(reasons) {
            // A legal hold is of one disk, and no reason to keep others for ever.
            // Nor is a point that nobody can read any more.
            let counts = reason.filter(|reason| *reason != Reason::Hold && !shredded);
            if let (Some(_), Some(group)) = (counts, point.group) {
                self.kept.insert(group);
            }
            let elsewhere = point.group.filter(|group| self.elsewhere.contains(*group)).map(|_| Reason::Group);
            let Some(reason) = reason.or(elsewhere) else { continue };
            kept.insert(point.id);
            told.kept += 1;
            *told.reasons.entry(reason).or_default() += 1;
            told.oldest_kept.get_or_insert_with(|| (point.id.to_string(), point.label.to_string()));
        }
        for pin in self.terms.pins.of(disk, self.terms.now_micros) {
            kept.insert(PointId { epoch: pin.epoch, seq: pin.seq });
            told.pins += 1;
            // Somebody reads what a fork has cut off since: where that ends only its plan knows.
            told.pinned_whole |= history.span_of(pin.epoch).is_none_or(|span| pin.seq > span.through);
        }
        (told, kept)
    }
}

/// Whether moving what a batch holds may let it go: it is old, unmarked, and its lane gets no more.
fn may_be_emptied(catalog: &Catalog, batch: &CatalogBatch, old_micros: i64) -> bool {
    let is_over = catalog.read_lane(batch.index.lane).is_some_and(|lane| lane.end.is_some() || lane.sealed);
    is_over && !batch.let_go && batch.modified_micros <= old_micros
}

/// What the place of a row is worth. A copy in a lane to which the disk has no route (`lanes`) is known by another disk's route alone: a restore of
/// this one never looks there.
fn standing(catalog: &Catalog, row: &Row, lanes: &BTreeSet<Id128>, ripe_micros: i64) -> Standing {
    let batch = &catalog.batches[row.object as usize];
    let at = (batch.index.lane, batch.index.n);
    let lane = catalog.read_lane(at.0);
    let whole = lane.is_some_and(|lane| lane.is_moved() && lane.end.is_some_and(|end| at.1 <= end));
    let worth = match row.message.origin {
        None => Worth::First,
        Some(_) if !whole || batch.let_go || !lanes.contains(&at.0) => Worth::Loose,
        Some(_) if batch.modified_micros > ripe_micros => Worth::Young,
        Some(_) => Worth::Ripe,
    };
    Standing { batch: at, appeared_micros: batch.modified_micros, worth }
}

/// A message that stands elsewhere too.
fn spare(catalog: &Catalog, row: &Row, copy: &Row) -> Spare {
    let index = &catalog.batches[copy.object as usize].index;
    let (offset_bytes, stored_bytes) = (row.message.offset_bytes, row.message.stored_bytes);
    Spare { offset_bytes, stored_bytes, batch: (index.lane, index.n), at_bytes: copy.message.offset_bytes }
}

/// By when a message was in the vault, by the store's clock: a move makes nothing younger.
fn put_by_micros(row: &Row, batch: &CatalogBatch) -> i64 {
    let first = row.message.origin.map(|origin| i64::try_from(origin.put_by.0).unwrap_or(i64::MAX));
    first.map_or(batch.put_by_micros, |first| first.min(batch.put_by_micros))
}

/// A time by the store's clock; zero for one before 1970.
pub(super) fn micros(of_store: i64) -> Micros {
    Micros(u64::try_from(of_store).unwrap_or(0))
}

/// When each point was in the vault at the latest, by the store's clock; zero where nobody knows.
fn put_by(catalog: &Catalog, history: &History, points: &[Point]) -> Vec<Micros> {
    let mut out = Vec::with_capacity(points.len());
    // Both are in the order of the history.
    for (epoch, pick) in history.picks() {
        let row = &history.rows[pick.row];
        let at = micros(put_by_micros(row, &catalog.batches[row.object as usize]));
        let here = |point: &&Point| point.id.epoch == epoch && (pick.first..=pick.last).contains(&point.id.seq);
        let count = points[out.len()..].iter().take_while(here).count();
        out.extend(std::iter::repeat_n(at, count));
    }
    out.resize(points.len(), Micros(0));
    out
}

/// Why nothing of a disk may go, if there is a reason. Without a history only what stands in the vault can be one.
fn held_back(
    catalog: &Catalog,
    lanes: &BTreeSet<Id128>,
    epochs: &[EpochObject],
    history: Option<&History>,
) -> Option<String> {
    let concerns = |finding: &&Finding| {
        !finding.problem.is_beside() && lane_of(&finding.object).is_none_or(|lane| lanes.contains(&lane))
    };
    if let Some(finding) = catalog.findings.iter().find(concerns) {
        return Some(finding.to_string());
    }
    let history = history?;
    if epochs.is_empty() && !history.rows.is_empty() {
        return Some("it has records and no epoch".to_owned());
    }
    if let Some(fault) = history.faults.first() {
        return Some(fault.to_string());
    }
    if let Some(conflict) = history.conflicts.first() {
        let place = PointId { epoch: conflict.epoch, seq: conflict.seq };
        return Some(format!("two accounts of {place} differ"));
    }
    let gap = history.gaps.iter().find(|gap| gap.lost)?;
    Some(format!("records e{0}-s{1} to e{0}-s{2} are lost", gap.epoch, gap.first, gap.last))
}

/// The lane that an object's name tells.
fn lane_of(object: &str) -> Option<Id128> {
    object.split(['/', '.']).find_map(|part| part.parse().ok())
}

/// Listed batches of a lane by number, without what is none, and without those that came too late to count for anybody.
#[must_use]
pub fn present(lane: &ListedLane, listed: &[Listed]) -> Vec<Present> {
    let batch = |one: &Listed| {
        let n = names::number(&one.path).filter(|&n| n > 0 && names::batch(lane.lane, n) == one.path)?;
        Some(Present { n, size_bytes: one.size_bytes, modified_micros: one.modified_micros })
    };
    listed.iter().filter(|one| !lane.is_late(one.modified_micros)).filter_map(batch).collect()
}
