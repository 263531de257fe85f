//! Proving that a vault could be restored from, in three depths, without writing anything.
//!
//! | level | needs | finds |
//! |---|---|---|
//! | list | nothing (with a key also MACs) | missing and foreign names, holes in lanes and epochs, unreadable control objects |
//! | index | catalog key or identity | indexes that do not authenticate or differ, wrong lengths, holes and contradictions in histories |
//! | data | identity | every message, or a sample: seal, digests, chain, rows, signatures; headers of batches |
//!
//! A sample opens a share of the messages, another one each time ([`sample`]), and looks at headers and indexes of their batches;
//! names, control objects and lane indexes are looked at whole each time.
//!
//! Damage never stops the run. Records that are missing without proof that they were ever vaulted are *late*: a gateway
//! is still uploading, or died before it was acknowledged. They are told apart from what is lost.

mod data;
mod folded;
mod list;
pub mod sample;
mod signed;
pub mod state;
mod tails;

use std::collections::BTreeSet;
use std::sync::Arc;

use super::damage::{Damage, RecordRange};
use super::fetch::{FetchError, FetchLimits};
use super::history::{Gap, History};
use super::points;
use super::progress::Progress;
use super::source::{self, Source};
use crate::fault::{self, Classify, Fault};
use crate::keys::{Identity, RandomError};
use crate::types::{DiskId, Id128, Micros, PointId};
use crate::vault::objects::EpochObject;
use crate::vault::reader::{Catalog, CatalogBatch, Problem, Want};
use crate::vault::{Vault, VaultError, names};
use sample::{Draw, Quota};
pub use signed::{SignedReport, Witness};

/// How deep to look.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Names and control objects.
    List,
    /// And all indexes.
    Index,
    /// And the messages.
    Data,
}

/// What to do.
#[derive(Clone, Debug)]
pub struct VerifyOptions {
    /// How deep.
    pub level: Level,
    /// How many of the messages to open.
    pub sample: Quota,
    /// Where a sample begins; without, it is drawn anew.
    pub draw: Option<Draw>,
    /// Only this disk's histories and messages; control objects are checked for all.
    pub disk: Option<DiskId>,
    /// Memory and parallelism.
    pub limits: FetchLimits,
}

/// Why a verification could not be carried out. Damage is no such thing.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The store or a key.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// Reading messages.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// No random numbers to sample by.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// The level needs a key that is not at hand.
    #[error("level data needs the recovery identity: give --identity FILE or TIDEGATE_IDENTITY")]
    IdentityNeeded,
}

impl Classify for VerifyError {
    fn fault(&self) -> Fault {
        match self {
            Self::Vault(error) => error.fault(),
            Self::Fetch(error) => error.fault(),
            Self::Random(error) => error.fault(),
            Self::IdentityNeeded => Fault::Reject,
        }
    }
}

/// What was found of one disk.
#[derive(Clone, Debug, serde::Serialize)]
pub struct DiskReport {
    /// The disk.
    pub disk: DiskId,
    /// Its size.
    pub size_bytes: u64,
    /// Recovery points.
    pub points: u64,
    /// The newest one.
    pub newest_point: Option<String>,
    /// Its label time.
    pub newest_time: Option<String>,
    /// The newest usable record.
    pub newest_record: Option<String>,
    /// Messages that its indexes name.
    pub messages: u64,
    /// Those of them that this run opened.
    pub messages_checked: u64,
    /// When it was shredded, if it was.
    pub shredded: Option<String>,
    /// Findings that are damage of this disk alone. What a damaged batch held may be anybody's.
    pub damage: u64,
    /// Who signed its barriers; none above level data.
    pub signed: Option<SignedReport>,
}

/// What a sample has opened.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Sampled {
    /// Messages opened in this round of samples: those that stand before its place on the ring.
    pub seen_messages: u64,
    /// Messages in all.
    pub messages: u64,
    /// Runs like this one until the round has opened everything.
    pub runs_left: u64,
    /// Where the next run begins; none at the round's end.
    #[serde(skip)]
    pub next: Option<u64>,
    /// Places of messages that are damaged.
    #[serde(skip)]
    pub damaged: BTreeSet<u64>,
}

/// What was found.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Report {
    /// The vault.
    pub vault: Id128,
    /// How deep it was looked.
    pub level: Level,
    /// `ok` or `damaged`.
    pub outcome: &'static str,
    /// Objects listed.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Whether MACs were checked: a catalog key was at hand.
    pub authenticated: bool,
    /// Lanes.
    pub lanes: u64,
    /// Batches.
    pub batches: u64,
    /// Messages that the indexes name.
    pub messages: u64,
    /// Messages that were opened and checked.
    pub messages_checked: u64,
    /// Messages of shredded disks: nothing opens them, and they are stepped over.
    pub messages_shredded: u64,
    /// What was opened, if not everything was asked for.
    pub sampled: Option<Sampled>,
    /// The disks; empty at level list.
    pub disks: Vec<DiskReport>,
    /// What is damaged or lost.
    pub damage: Vec<Damage>,
    /// What is not vaulted yet, as far as anybody can tell.
    pub late: Vec<String>,
    /// What is worth knowing but harms nothing.
    pub notes: Vec<String>,
}

impl Report {
    fn new(vault: &Vault, level: Level) -> Self {
        Self {
            vault: vault.id(),
            level,
            outcome: "ok",
            objects: 0,
            bytes: 0,
            authenticated: vault.catalog_key().is_some(),
            lanes: 0,
            batches: 0,
            messages: 0,
            messages_checked: 0,
            messages_shredded: 0,
            sampled: None,
            disks: Vec::new(),
            damage: Vec::new(),
            late: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Adds damage, unless the same was found by another way already.
    fn damaged(&mut self, damage: Damage) {
        let known = |old: &Damage| old.object == damage.object && old.records == damage.records;
        let named = damage.object.is_some();
        if !(named && self.damage.iter().any(known)) {
            self.damage.push(damage);
        }
    }

    /// Adds damage in the place of what a shallower look had to say of the same object.
    fn replace(&mut self, damage: Damage) {
        self.damage.retain(|old| old.object != damage.object || old.records.is_some());
        self.damage.push(damage);
    }
}

/// Verifies a vault to the level asked for.
///
/// # Errors
/// [`VerifyError`] if it could not be carried out. What is damaged stands in the report.
pub async fn verify(
    vault: &Vault,
    identity: Option<&Identity>,
    options: &VerifyOptions,
    progress: Arc<Progress>,
) -> Result<Report, VerifyError> {
    verify_with(vault, identity, options, &Witness::default(), progress).await
}

/// As [`verify`], with what the operator knows and nobody who writes to the vault can change.
///
/// # Errors
/// As [`verify`].
pub async fn verify_with(
    vault: &Vault,
    identity: Option<&Identity>,
    options: &VerifyOptions,
    witness: &Witness,
    progress: Arc<Progress>,
) -> Result<Report, VerifyError> {
    let mut report = Report::new(vault, options.level);
    let listing = list::check(vault, identity, &mut report).await?;
    if options.level >= Level::Index {
        let disks: Vec<DiskId> = match &options.disk {
            Some(disk) => vec![disk.clone()],
            None => listing.disks.keys().cloned().collect(),
        };
        // All lanes, also those that no route leads to, so that a lost route is found.
        let want = options.disk.as_ref().map_or_else(Want::default, Want::disk);
        let catalog = source::load(vault, &want).await?;
        take_findings(&catalog, &listing, &mut report);
        check_routes(vault, &listing, &catalog, &mut report).await?;
        folded::check(vault, &listing, &catalog, &disks, &mut report).await?;
        let book = Arc::new(signed::Book::new(vault.id(), &listing, witness));
        let (mut histories, mut lines) = (Vec::new(), Vec::new());
        for disk in disks {
            let epochs = epochs_again(vault, &disk, &listing, &catalog).await?;
            let history = source::history(&catalog, &disk, &epochs);
            take_history(&disk, &history, &catalog, &mut report);
            lines.push((disk.clone(), signed::Line::of(&history)));
            if listing.shredded(&disk).is_some() {
                step_over(&disk, &listing, &history, (&catalog, &*book), &mut report);
            } else {
                histories.push((disk, history));
            }
        }
        let select = || data::select(&catalog, histories, (options, &book), &mut report);
        let selection = (options.level >= Level::Data).then(select);
        let selection = selection.transpose()?;
        let looked_at = selection.as_ref().and_then(|selection| selection.batches(&catalog));
        tails::check(vault, &listing, &catalog, looked_at.as_ref(), &mut report).await?;
        let mut looked = None;
        if let Some(selection) = selection {
            let identity = identity.ok_or(VerifyError::IdentityNeeded)?;
            let (source, damage) = Source::open(vault, identity, &catalog)?;
            damage.into_iter().for_each(|damage| report.damaged(damage));
            // What this identity cannot open is not damaged, and not verified either.
            source.can_open_all()?;
            looked = Some(data::check(source, &catalog, selection, options, &book, (progress, &mut report)).await?);
        }
        book.judge(vault, &lines, options, &mut report).await?;
        if let Some(looked) = looked {
            looked.tell(options, &mut report);
        }
    }
    for disk in &mut report.disks {
        disk.damage = report.damage.iter().filter(|damage| damage.is_of(&disk.disk)).count() as u64;
    }
    if !report.damage.is_empty() {
        report.outcome = "damaged";
    }
    // What a deeper level proved to be lost is not merely late.
    let lost: Vec<&String> = report.damage.iter().filter_map(|damage| damage.object.as_ref()).collect();
    report.late.retain(|late| !lost.iter().any(|object| late.starts_with(object.as_str())));
    Ok(report)
}

/// What nothing opens any more is not damaged, and not looked at either.
fn step_over(
    disk: &DiskId,
    listing: &list::Listing,
    history: &History,
    (catalog, book): (&Catalog, &signed::Book),
    report: &mut Report,
) {
    book.not_read(disk);
    let there = history.rows.iter().filter(|row| catalog.batches[row.object as usize].present).count();
    report.messages_shredded += there as u64;
    if let Some(told) = report.disks.iter_mut().find(|told| told.disk == *disk) {
        told.shredded = listing.shredded(disk).map(|word| word.made_micros.to_string());
    }
}

/// Every lane that carried a disk must be found from the disk, or a restore would not look there.
async fn check_routes(
    vault: &Vault,
    listing: &list::Listing,
    catalog: &Catalog,
    report: &mut Report,
) -> Result<(), VaultError> {
    let confirmed = |batch: &&CatalogBatch| {
        catalog.read_lane(batch.index.lane).is_some_and(|lane| batch.index.n <= lane.confirmed_through)
    };
    let carried: BTreeSet<(&DiskId, Id128)> = catalog
        .batches
        .iter()
        .filter(confirmed)
        .flat_map(|batch| batch.index.disks.iter().map(|part| (&part.disk, batch.index.lane)))
        .collect();
    for (disk, lane) in carried {
        let path = names::route(disk, lane);
        // A shredded disk is not restored, and its routes may be on their way to lose their keys.
        if listing.shredded(disk).is_some() {
            continue;
        }
        // Looked for again by name: the listing is older than the catalog.
        if !listing.routed(disk, lane) && !vault.store().exists(&path).await.map_err(VaultError::from)? {
            report.damaged(Damage::object(path, "is missing: a restore would not look into this lane"));
        }
    }
    Ok(())
}

/// The epochs of a disk: those of the listing, unless one was opened since.
async fn epochs_again(
    vault: &Vault,
    disk: &DiskId,
    listing: &list::Listing,
    catalog: &Catalog,
) -> Result<Vec<EpochObject>, VaultError> {
    let mut epochs = listing.disks.get(disk).map(|disk| disk.epochs.clone()).unwrap_or_default();
    let parts = catalog.batches.iter().flat_map(|batch| &batch.index.disks).filter(|part| part.disk == *disk);
    let newest = parts.flat_map(|part| &part.messages).map(|message| message.epoch).max();
    while let Some(next) =
        epochs.last().map(|epoch| crate::types::Epoch(epoch.epoch.0 + 1)).filter(|next| Some(*next) <= newest)
    {
        match vault.get_object::<EpochObject>(&names::epoch(disk, next)).await {
            Ok(Some(epoch)) => epochs.push(epoch),
            // Missing or damaged: the listing or the history says so.
            Ok(None) => break,
            Err(error) if error.fault() == Fault::Corrupt => break,
            Err(error) => return Err(error),
        }
    }
    Ok(epochs)
}

fn take_findings(catalog: &Catalog, listing: &list::Listing, report: &mut Report) {
    for finding in catalog.findings.iter().filter(|finding| finding.problem != Problem::Foreign) {
        let around =
            around(catalog, listing, &finding.object).filter(|_| !finding.problem.is_beside()).unwrap_or_default();
        report.replace(Damage::object(finding.object.clone(), format!("{}{around}", finding.problem)));
    }
}

/// What a batch that cannot be read may have held: the disks of its lane, and the times of the batches beside it.
fn around(catalog: &Catalog, listing: &list::Listing, object: &str) -> Option<String> {
    let (lane, n) = source::batch_of(object)?;
    let disks = listing.carried_by(lane).join(", ");
    let at = catalog.batches.partition_point(|batch| (batch.index.lane, batch.index.n) < (lane, n));
    let messages = |at: usize| {
        let batch = catalog.batches.get(at).filter(|batch| batch.index.lane == lane && batch.index.n != n);
        batch.into_iter().flat_map(|batch| &batch.index.disks).flat_map(|part| &part.messages)
    };
    let before = at.checked_sub(1).and_then(|at| messages(at).map(|message| message.received_last).max());
    let after = messages(at).map(|message| message.received_first).min();
    let times = match (before, after) {
        (Some(before), Some(after)) => format!(" received between {before} and {after}"),
        (Some(before), None) => format!(" received after {before}"),
        (None, Some(after)) => format!(" received before {after}"),
        (None, None) => String::new(),
    };
    Some(format!("; it may hold records of disk {disks}{times}"))
}

fn take_history(disk: &DiskId, history: &History, catalog: &Catalog, report: &mut Report) {
    let points = points::list(history);
    let newest = points.last();
    let messages = history.rows.len() as u64;
    report.messages += messages;
    for gap in &history.gaps {
        let what = "these records are missing";
        if gap.lost {
            report.damage.push(Damage::records(gap_range(disk, gap), format!("{what} and were vaulted once")));
        } else {
            report
                .late
                .push(format!("{}: {what}, and nothing proves that they were ever vaulted", gap_range(disk, gap)));
        }
    }
    for conflict in &history.conflicts {
        let objects: Vec<String> = conflict
            .rows
            .iter()
            .flatten()
            .map(|row| catalog.batches[history.rows[*row].object as usize].object.to_string())
            .collect();
        let what = format!(
            "two accounts of e{}-s{} differ; nothing above s{} is believed",
            conflict.epoch, conflict.seq, conflict.cut
        );
        let labels = [None, None];
        let records = RecordRange {
            disk: disk.clone(),
            epoch: conflict.epoch,
            first: conflict.cut.next(),
            last: conflict.seq,
            labels,
        };
        report.damage.push(Damage { object: Some(objects.join(" and ")), ..Damage::records(records, what) });
    }
    for fault in &history.faults {
        let object = names::epoch(disk, fault.epoch());
        report.damaged(Damage::object(object, fault.to_string()));
    }
    report.disks.push(DiskReport {
        disk: disk.clone(),
        size_bytes: history.disk_bytes(),
        points: points.len() as u64,
        newest_point: newest.map(|point| point.id.to_string()),
        newest_time: newest.map(|point| point.label.to_string()),
        newest_record: history.head().map(|head: PointId| head.to_string()),
        messages,
        messages_checked: 0,
        shredded: None,
        damage: 0,
        signed: None,
    });
}

fn gap_range(disk: &DiskId, gap: &Gap) -> RecordRange {
    let labels: [Option<Micros>; 2] = [gap.label_before, gap.label_after];
    RecordRange { disk: disk.clone(), epoch: gap.epoch, first: gap.first, last: gap.last, labels }
}

/// The words for an error that is damage, or the error again if it is not.
fn damage_words(error: VaultError) -> Result<String, VaultError> {
    match error.fault() {
        Fault::Corrupt => Ok(fault::chain_text(&error)),
        _ if matches!(error, VaultError::Object(_)) => Ok(fault::chain_text(&error)),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests;
