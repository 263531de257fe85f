//! From the vault's indexes to a verdict: which batches hold something that is needed. Reads, never writes.
//!
//! Disks are judged in groups, so that memory is the rows of one group and two marks per batch. A disk of which not
//! everything can be read, or whose history is damaged, is held back: all that it has counts as needed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::config::Policies;
use super::marks::{LaneVerdict, Present};
use super::needs;
use super::policy::{self, Reason};
use crate::fault::{self, Classify, Fault};
use crate::restore::history::{History, Presence};
use crate::restore::points;
use crate::restore::source;
use crate::types::{DiskId, Id128, Micros, PointId};
use crate::vault::objects::{EpochObject, PinObject};
use crate::vault::reader::{Catalog, Finding, Problem, Want};
use crate::vault::store::Listed;
use crate::vault::{Vault, VaultError, names};

/// A pin holds nothing longer than this after it appeared, whatever it says: its maker's clock may be wrong.
pub const PIN_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// How far the clocks of a pin's maker and of the store may be apart.
const PIN_SLACK: Duration = Duration::from_secs(600);
/// Most pins that are read: as many restores at once are more than anybody runs.
const PINS_MAX: usize = 10_000;

/// A pin and when it ends, by the store's clock.
#[derive(Clone, Debug)]
pub struct Pin {
    /// What it says.
    pub object: PinObject,
    /// When it ends, in microseconds since 1970.
    pub ends_micros: i64,
}

/// The pins of a vault. One that is not believed is told, and pins nothing.
///
/// # Errors
/// A failed request.
pub async fn pins(vault: &Vault, notes: &mut Vec<String>) -> Result<Vec<Pin>, VaultError> {
    let mut pins = Vec::new();
    let listed = vault.store().list(Some(&names::pins())).await?;
    if listed.len() > PINS_MAX {
        notes.push(format!("of {} pins only the newest {PINS_MAX} are heeded", listed.len()));
    }
    let mut listed = listed;
    listed.sort_unstable_by_key(|listed| std::cmp::Reverse(listed.modified_micros));
    for one in listed.into_iter().take(PINS_MAX) {
        match vault.get_object::<PinObject>(&one.path).await {
            Ok(Some(object)) if names::pin(object.pin) == one.path => {
                let until = i64::try_from(object.until_micros.0).unwrap_or(i64::MAX);
                let ends_micros = until
                    .saturating_add(PIN_SLACK.as_micros() as i64)
                    .min(one.modified_micros.saturating_add(PIN_MAX.as_micros() as i64));
                pins.push(Pin { object, ends_micros });
            }
            Ok(None) => {}
            Ok(Some(_)) => notes.push(format!("{} says another id than its name, and pins nothing", one.path)),
            Err(error) if error.fault() != Fault::Retry => notes.push(fault::chain_text(&error)),
            Err(error) => return Err(error),
        }
    }
    Ok(pins)
}

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
    /// Why nothing of the disk goes.
    pub held_back: Option<String>,
}

/// The verdict over a vault.
#[derive(Debug, Default)]
pub struct Verdict {
    /// By disk.
    pub disks: Vec<DiskVerdict>,
    /// Disks that were judged; a batch that holds another one stays.
    pub judged: BTreeSet<DiskId>,
    /// Bytes of the messages that are needed.
    pub needed_bytes: u64,
    lanes: BTreeMap<Id128, LaneVerdict>,
}

impl Verdict {
    /// What was judged of a lane.
    #[must_use]
    pub fn lane(&self, lane: Id128) -> Option<&LaneVerdict> {
        self.lanes.get(&lane)
    }
}

/// By what is judged.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// The policies.
    pub policies: &'a Policies,
    /// The pins.
    pub pins: &'a [Pin],
    /// The time, by the store's clock where that is known.
    pub now_micros: i64,
    /// What appeared later is younger than the fork window. Taken before anything was listed.
    pub old_micros: i64,
    /// Disks that are judged together.
    pub disks_at_once: usize,
}

/// Judges every disk of the vault.
///
/// # Errors
/// [`VaultError`] if the store fails or the catalog key is not at hand. Damage holds disks back.
pub async fn judge(vault: &Vault, terms: &Terms<'_>) -> Result<Verdict, VaultError> {
    let mut verdict = Verdict::default();
    for group in vault.disks().await?.chunks(terms.disks_at_once.max(1)) {
        let want = Want { disks: Some(group.iter().cloned().collect()), newest: None };
        let catalog = source::load(vault, &want).await?;
        for batch in &catalog.batches {
            verdict.lanes.entry(batch.index.lane).or_default().seen.insert(batch.index.n);
        }
        for disk in group {
            one(vault, terms, &catalog, disk, &mut verdict).await?;
        }
    }
    Ok(verdict)
}

async fn one(
    vault: &Vault,
    terms: &Terms<'_>,
    catalog: &Catalog,
    disk: &DiskId,
    verdict: &mut Verdict,
) -> Result<(), VaultError> {
    // After the batches, so that an epoch of which they hold records is surely listed.
    let (epochs, unreadable) = match vault.epochs(disk).await {
        Ok(epochs) => (epochs, None),
        Err(error) if error.fault() == Fault::Retry => return Err(error),
        Err(error) => (Vec::new(), Some(fault::chain_text(&error))),
    };
    let lanes: BTreeSet<Id128> = vault.routes(disk).await?.into_iter().collect();
    let history = source::history(catalog, disk, &epochs);
    let held_back = unreadable.or_else(|| held_back(catalog, &lanes, &epochs, &history));
    let (told, kept) = keep(terms, disk, &history, held_back);
    let young = |object: u32| catalog.batches[object as usize].modified_micros > terms.old_micros;
    let needed = match told.held_back {
        Some(_) => vec![true; history.rows.len()],
        None => needs::needed(&history, &kept, young),
    };
    for (row, _) in history.rows.iter().zip(needed).filter(|(_, needed)| *needed) {
        let index = &catalog.batches[row.object as usize].index;
        if row.presence == Presence::Here {
            verdict.needed_bytes += u64::from(row.message.stored_bytes);
        }
        verdict.lanes.entry(index.lane).or_default().needed.insert(index.n);
    }
    verdict.judged.insert(disk.clone());
    verdict.disks.push(told);
    Ok(())
}

/// What is kept of a disk, and the places that stand for it.
fn keep(
    terms: &Terms<'_>,
    disk: &DiskId,
    history: &History,
    held_back: Option<String>,
) -> (DiskVerdict, BTreeSet<PointId>) {
    let points = points::list(history);
    let now = Micros(u64::try_from(terms.now_micros).unwrap_or(0));
    let reasons = policy::keep(&points, terms.policies.of(disk), now);
    let mut told = DiskVerdict {
        disk: disk.clone(),
        points: points.len() as u64,
        kept: 0,
        reasons: BTreeMap::new(),
        oldest_kept: None,
        pins: 0,
        held_back,
    };
    let mut kept = BTreeSet::new();
    for (point, reason) in points.iter().zip(reasons) {
        let Some(reason) = reason else { continue };
        kept.insert(point.id);
        told.kept += 1;
        *told.reasons.entry(reason).or_default() += 1;
        told.oldest_kept.get_or_insert_with(|| (point.id.to_string(), point.label.to_string()));
    }
    for pin in terms.pins.iter().filter(|pin| pin.object.disk == *disk && pin.ends_micros > terms.now_micros) {
        kept.insert(PointId { epoch: pin.object.epoch, seq: pin.object.seq });
        told.pins += 1;
    }
    (told, kept)
}

/// Why nothing of a disk may go, if there is a reason.
fn held_back(catalog: &Catalog, lanes: &BTreeSet<Id128>, epochs: &[EpochObject], history: &History) -> Option<String> {
    let concerns = |finding: &&Finding| {
        finding.problem != Problem::Foreign && lane_of(&finding.object).is_none_or(|lane| lanes.contains(&lane))
    };
    if let Some(finding) = catalog.findings.iter().find(concerns) {
        return Some(finding.to_string());
    }
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

/// Listed batches of a lane by number, without what is none.
#[must_use]
pub fn present(lane: Id128, listed: &[Listed]) -> Vec<Present> {
    let batch = |one: &Listed| {
        let n = names::number(&one.path).filter(|&n| n > 0 && names::batch(lane, n) == one.path)?;
        Some(Present { n, size_bytes: one.size_bytes, modified_micros: one.modified_micros })
    };
    listed.iter().filter_map(batch).collect()
}
