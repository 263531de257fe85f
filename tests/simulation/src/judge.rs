//! The judge: from the store alone, with the product's own way back, against the models.
//!
//! - Verification of an undamaged store finds no damage.
//! - Every record that was acked as vaulted, and every point that was promised, is in the usable history of the newest
//!   lineage; unless another owner of the disk took over before the ack came.
//! - The image at every point looked at is the one that its owner's changes make: no mixture, nothing of a fenced epoch
//!   past its fork.
//! - Points that a machine's disks were promised together are one moment of them.
//! - The newest image is the owner's disk.
//! - Labels never go back within one owner's points.
//! - A flipped bit anywhere in the store is reported, and never returned.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use tidegate::restore::fetch::FetchLimits;
use tidegate::restore::history::History as Records;
use tidegate::restore::plan::Plan;
use tidegate::restore::points::{self, Ask, ChooseError, Point};
use tidegate::restore::progress::Progress;
use tidegate::restore::source::{self, Source};
use tidegate::restore::verify::sample::Quota;
use tidegate::restore::verify::{Level, Report, VerifyOptions, verify};
use tidegate::restore::write::{RestoreOptions, restore};
use tidegate::types::{DiskId, Epoch, PointId, Seq};
use tidegate::vault::reader::Want;
use tidegate::vault::store::VaultStore;
use tidegate::vault::{Vault, names};

use crate::agent::AgentMachine;
use crate::dice::Dice;
use crate::disk::SECTOR;
use crate::model::History;
use crate::store::Blobs;
use crate::world::World;
use crate::{Failed, event};

/// Images restored of each disk, besides the newest and the promised ones.
const POINTS_LOOKED_AT: u64 = 5;
/// Bits flipped, one at a time.
const FLIPS: u64 = 4;
/// Between the look for an epoch's end and its fork another owner's records may be vaulted: a clone's fork may cut off
/// what its original was told so long before. That is as long as one write of a control object may take.
const FORK_WINDOW: u64 = 90_000_000;

/// What a run amounted to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Images restored and compared.
    pub images: u64,
    /// Changes that guests made.
    pub changes: u64,
    /// Bits flipped and found.
    pub flips: u64,
    /// Epochs opened.
    pub epochs: u64,
}

/// The judge of one run.
pub struct Judge<'a> {
    world: &'a World,
    dice: Dice,
    /// What was counted.
    pub counts: Counts,
    /// What was found wrong.
    pub failures: Vec<String>,
}

const LIMITS: FetchLimits = FetchLimits { memory_bytes: 16 << 20, jobs: 4, workers: 1 };

fn store(blobs: &Blobs) -> VaultStore {
    VaultStore::new(Arc::new(blobs.plain()), "sim")
}

fn options() -> VerifyOptions {
    VerifyOptions { level: Level::Data, sample: Quota::All, draw: None, disk: None, limits: LIMITS }
}

impl<'a> Judge<'a> {
    /// A judge of a run that is over.
    #[must_use]
    pub fn new(world: &'a World, seed: u64) -> Self {
        Self { world, dice: Dice::new(seed ^ 0x6a75_6467_6521), counts: Counts::default(), failures: Vec::new() }
    }

    /// Judges everything.
    ///
    /// # Errors
    /// If the judging itself fails; what is found wrong is in [`Judge::failures`].
    pub async fn judge(&mut self) -> Result<(), Failed> {
        let vault = Vault::open_with_identity(store(&self.world.blobs), &self.world.identity).await?;
        let contested = self.contested();
        let report = verify(&vault, Some(&self.world.identity), &options(), Arc::default()).await?;
        event!("verify: {} with {} messages", report.outcome, report.messages_checked);
        if report.outcome != "ok" && !contested {
            self.failures.push(format!("verify finds damage in an undamaged store: {:?}", damage(&report)));
        }
        for disk in self.disks() {
            self.disk(&vault, &disk).await?;
        }
        self.groups();
        if self.failures.is_empty() && !contested && self.dice.one_in(3) {
            self.flips().await?;
        }
        Ok(())
    }

    fn disks(&self) -> Vec<DiskId> {
        let mut disks: Vec<DiskId> =
            self.world.agents.iter().flat_map(|agent| agent.disks.iter().map(|one| one.id.clone())).collect();
        disks.sort();
        disks.dedup();
        disks
    }

    /// Whether two owners made records of one epoch: copies of an agent that had stopped in order.
    fn contested(&self) -> bool {
        self.disks().iter().any(|disk| {
            let histories = self.world.histories(disk);
            let epochs =
                histories.iter().flat_map(|history| history.borrow().acked.keys().copied().collect::<Vec<_>>());
            let mut epochs: Vec<Epoch> = epochs.collect();
            epochs.sort_unstable();
            epochs.dedup();
            epochs.iter().any(|epoch| histories.iter().filter(|history| history.borrow().owns(*epoch)).count() > 1)
        })
    }

    async fn disk(&mut self, vault: &Vault, disk: &DiskId) -> Result<(), Failed> {
        let histories = self.world.histories(disk);
        let catalog = source::load(vault, &Want::disk(disk)).await?;
        let epochs = vault.epochs(disk).await?;
        let records = Arc::new(source::history(&catalog, disk, &epochs));
        let points = points::list(&records);
        self.counts.epochs += epochs.len() as u64;
        self.counts.changes += histories.iter().map(|history| history.borrow().changes.len() as u64).sum::<u64>();
        event!(
            "disk {disk}: {} epochs, {} points, newest {:?}",
            epochs.len(),
            points.len(),
            points.last().map(|p| p.id)
        );
        for history in &histories {
            self.acks(disk, &records, &points, history, &histories);
        }
        self.labels(disk, &points, &histories);
        let (source, lost_keys) = Source::open(vault, &self.world.identity, &catalog)?;
        if !lost_keys.is_empty() {
            self.failures.push(format!("lane keys are lost: {lost_keys:?}"));
        }
        for point in self.choose(&records, &points, &histories) {
            let Some(image) = self.image(&source, disk, &records, point).await? else { continue };
            self.compare(disk, point, &image, &histories);
        }
        self.newest(&source, disk, &records, &points).await
    }

    /// INV1: what was acked as vaulted is in the recovery.
    fn acks(
        &mut self,
        disk: &DiskId,
        records: &Records,
        points: &[Point],
        history: &Rc<RefCell<History>>,
        all: &[Rc<RefCell<History>>],
    ) {
        let mine = history.borrow();
        for (epoch, acked) in mine.acked.iter().filter(|(_, acked)| acked.vaulted > 0) {
            let through = records.span_of(*epoch).map_or(0, |span| span.through.0);
            if acked.vaulted > through && !self.superseded(disk, *epoch, acked.vaulted_at, &mine, all) {
                self.failures.push(format!(
                    "disk {disk}: {} was told that e{epoch}-s{} is vaulted, the recovery has it up to s{through}",
                    mine.owner, acked.vaulted
                ));
            }
        }
        for (point, told_at) in &mine.promised {
            let offered = points.iter().any(|offered| offered.id == *point);
            if !offered && !self.superseded(disk, point.epoch, *told_at, &mine, all) {
                self.failures
                    .push(format!("disk {disk}: point {point} was promised to {} and is not there", mine.owner));
            }
        }
    }

    /// INV7: that the images at the points are those of the models is seen disk by disk.
    fn groups(&mut self) {
        for group in self.world.groups.borrow().iter().filter(|group| !group.is_one_moment()) {
            let points: Vec<String> =
                group.members.iter().map(|(history, point)| format!("{} {point}", history.borrow().owner)).collect();
            self.failures.push(format!("a point of several disks is no moment of them: {}", points.join(", ")));
        }
    }

    /// Whether another owner had opened a later epoch when an ack came, or contests this one.
    fn superseded(
        &self,
        disk: &DiskId,
        epoch: Epoch,
        told_at: u64,
        mine: &History,
        all: &[Rc<RefCell<History>>],
    ) -> bool {
        let next = Epoch(epoch.0 + 1);
        let forked = self.world.blobs.born(names::epoch(disk, next).as_ref());
        let by_another = !mine.owns(next) && forked.is_some_and(|forked| forked <= told_at + FORK_WINDOW);
        by_another || all.iter().filter(|history| history.borrow().owns(epoch)).count() > 1
    }

    fn labels(&mut self, disk: &DiskId, points: &[Point], histories: &[Rc<RefCell<History>>]) {
        let owner = |point: &Point| histories.iter().position(|history| history.borrow().owns(point.id.epoch));
        for pair in points.windows(2) {
            if pair[1].label < pair[0].label && owner(&pair[0]) == owner(&pair[1]) {
                let text = format!("disk {disk}: label of {} is before that of {}", pair[1].id, pair[0].id);
                self.failures.push(text);
            }
        }
    }

    /// Which points to look at: some offered ones, the promised ones, and a record between points.
    fn choose(&mut self, records: &Records, points: &[Point], histories: &[Rc<RefCell<History>>]) -> Vec<PointId> {
        let mut chosen = Vec::new();
        for _ in 0..POINTS_LOOKED_AT.min(points.len() as u64) {
            chosen.push(self.dice.pick(points).id);
        }
        for history in histories {
            chosen.extend(history.borrow().promised.iter().map(|(point, _)| *point).take(2));
        }
        for _ in 0..3 {
            let Some(head) = records.head() else { break };
            let epoch = Epoch(self.dice.between(1, head.epoch.0));
            let Some(span) = records.span_of(epoch) else { continue };
            chosen.push(PointId { epoch, seq: Seq(self.dice.below(span.through.0 + 1)) });
        }
        chosen.retain(|id| match points::choose(records, points, &Ask::Id(*id)) {
            Ok(_) => true,
            Err(ChooseError::InSync { .. } | ChooseError::Unknown { .. }) => false,
            Err(_) => false,
        });
        chosen.sort_unstable();
        chosen.dedup();
        chosen
    }

    async fn image(
        &mut self,
        source: &Source,
        disk: &DiskId,
        records: &Arc<Records>,
        point: PointId,
    ) -> Result<Option<Vec<u8>>, Failed> {
        let path = self.world.dir.path().join("image");
        match image(source, disk, records, point, &path).await {
            Ok(image) => {
                self.counts.images += 1;
                Ok(Some(image))
            }
            Err(error) => {
                self.failures.push(format!("disk {disk}: point {point} cannot be restored: {error}"));
                Ok(None)
            }
        }
    }

    /// INV2: the image is the model at that very place.
    fn compare(&mut self, disk: &DiskId, point: PointId, image: &[u8], histories: &[Rc<RefCell<History>>]) {
        let owners: Vec<_> = histories.iter().filter(|history| history.borrow().owns(point.epoch)).collect();
        if owners.is_empty() {
            self.failures.push(format!("disk {disk}: nobody made records of the epoch of {point}"));
            return;
        }
        let mut told = String::new();
        for owner in owners {
            let owner = owner.borrow();
            let count = owner.changes_at(point);
            let model = owner.image(count);
            match first_difference(&model, image) {
                None => return,
                // A change of more than one record may be cut between them, at a place that is no barrier.
                Some(_) if cut_change(&owner, count, &model, image) => return,
                Some(at) => told += &explain(&owner, count, at, image),
            }
        }
        self.failures.push(format!("disk {disk}: the image at {point} is no state that existed: {told}"));
    }

    /// The newest point is the living owner's disk as it is.
    async fn newest(
        &mut self,
        source: &Source,
        disk: &DiskId,
        records: &Arc<Records>,
        points: &[Point],
    ) -> Result<(), Failed> {
        let living = |agent: &&AgentMachine| !agent.retired;
        let owned = |agent: &'a AgentMachine| agent.disks.iter().find(|one| one.id == *disk);
        let Some(one) = self.world.agents.iter().filter(living).find_map(owned) else { return Ok(()) };
        let Some(newest) = points.last() else {
            self.failures.push(format!("disk {disk} has no recovery point at all"));
            return Ok(());
        };
        let Some(image) = self.image(source, disk, records, newest.id).await? else { return Ok(()) };
        let content = one.disk.content();
        if let Some(at) = first_difference(&content, &image) {
            let owner = one.history.borrow();
            let text = explain(&owner, owner.changes.len(), at, &image);
            self.failures.push(format!("disk {disk}: the newest image, {}, is not the disk: {text}", newest.id));
        }
        Ok(())
    }

    /// INV5: every flipped bit is reported, and none is returned.
    async fn flips(&mut self) -> Result<(), Failed> {
        // An announcement of an epoch is an empty object: its name says all.
        let names: Vec<_> = self.world.blobs.names().into_iter().filter(|(_, size)| *size > 0).collect();
        for _ in 0..FLIPS {
            let (name, size) = self.dice.pick(&names).clone();
            // Wrapped keys have other lengths in every run, which must change no other throw and no event.
            let (place, bit) = (self.dice.below(1 << 20), self.dice.below(8));
            let at = (place as usize * size) >> 20;
            let blobs = self.world.blobs.copy();
            blobs.alter(&name, |bytes| bytes[at] ^= 1 << bit);
            let what = format!("bit {bit} of byte {at} of {size} in {name}");
            // Keys, and so the digest that is a certificate's name, are others in every run.
            let told = name.to_string();
            let told = told.split_once("/c/").filter(|_| told.starts_with("d/")).map_or(&*told, |(disk, _)| disk);
            event!("flips bit {bit} at {place} of 2^20 of {told}");
            let Ok(vault) = Vault::open_with_identity(store(&blobs), &self.world.identity).await else {
                self.counts.flips += 1;
                continue;
            };
            match verify(&vault, Some(&self.world.identity), &options(), Arc::new(Progress::default())).await {
                Ok(report) if report.outcome == "ok" => self.failures.push(format!("verify does not see {what}")),
                Ok(_) | Err(_) => self.counts.flips += 1,
            }
            for disk in self.disks() {
                self.restore_flipped(&vault, &disk, &what).await;
            }
        }
        Ok(())
    }

    /// Whatever can be restored from a damaged store is right.
    async fn restore_flipped(&mut self, vault: &Vault, disk: &DiskId, what: &str) {
        let Ok(catalog) = source::load(vault, &Want::disk(disk)).await else { return };
        let Ok(epochs) = vault.epochs(disk).await else { return };
        let records = Arc::new(source::history(&catalog, disk, &epochs));
        let points = points::list(&records);
        let Ok((source, _)) = Source::open(vault, &self.world.identity, &catalog) else { return };
        let Some(newest) = points.last() else { return };
        let path = self.world.dir.path().join("flipped");
        if let Ok(image) = image(&source, disk, &records, newest.id, &path).await {
            let before = self.failures.len();
            self.compare(disk, newest.id, &image, &self.world.histories(disk));
            if self.failures.len() > before {
                self.failures.push(format!("this was after {what} was flipped"));
            }
        }
    }
}

fn damage(report: &Report) -> Vec<String> {
    report.damage.iter().take(5).map(ToString::to_string).collect()
}

async fn image(
    source: &Source,
    disk: &DiskId,
    records: &Arc<Records>,
    point: PointId,
    path: &Path,
) -> Result<Vec<u8>, Failed> {
    let plan = Plan::build(records, point).ok_or("there is no plan for it")?;
    let options = RestoreOptions { force: true, limits: LIMITS, ..RestoreOptions::default() };
    restore(source, disk, Arc::clone(records), &plan, path, &options, Arc::default()).await?;
    let image = std::fs::read(path)?;
    std::fs::remove_file(path)?;
    Ok(image)
}

fn first_difference(left: &[u8], right: &[u8]) -> Option<usize> {
    if left == right {
        return None;
    }
    let differ = left.iter().zip(right).position(|(left, right)| left != right);
    Some(differ.unwrap_or(left.len().min(right.len())))
}

/// Whether the image is the model with a part of the next change, as when a record ends inside it.
fn cut_change(owner: &History, count: usize, model: &[u8], image: &[u8]) -> bool {
    let Some(next) = owner.changes.get(count) else { return false };
    let mut after = model.to_vec();
    next.apply(&mut after);
    let sectors = image.chunks(SECTOR).zip(model.chunks(SECTOR)).zip(after.chunks(SECTOR));
    image.len() == model.len() && sectors.into_iter().all(|((found, before), after)| found == before || found == after)
}

/// What is known of the place at which an image differs.
fn explain(owner: &History, count: usize, at: usize, image: &[u8]) -> String {
    let touches = |change: &crate::model::Change| {
        (change.offset..change.offset + change.length).contains(&(at as u64 / SECTOR as u64 * SECTOR as u64))
    };
    let last = owner.changes[..count].iter().rposition(touches);
    let later = owner.changes[count..].iter().position(touches).map(|later| later + count);
    let mut matching = None;
    let sector = at / SECTOR * SECTOR..(at / SECTOR + 1) * SECTOR;
    let mut state = owner.base.clone();
    for (number, change) in owner.changes.iter().enumerate() {
        if state[sector.clone()] == image[sector.clone()] {
            matching = Some(number);
        }
        change.apply(&mut state);
    }
    format!(
        "{} differs at byte {at} after {count} of {} changes (last change there {last:?}, next {later:?}; the sector is \
         as after {matching:?} changes) ",
        owner.owner,
        owner.changes.len()
    )
}
