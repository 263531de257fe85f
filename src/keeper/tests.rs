//! The keeper against a model: kept points stay right whatever happens to it, the rest goes, and what is in use stays.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use object_store::ObjectStore;
use proptest::prelude::*;

use super::config::{Policies, Work};
use super::policy::{self, Policy, Term};
use super::run::{self, Report};
use super::*;
use crate::flow::{Clock, SystemClock};
use crate::restore::history::{History, Presence};
use crate::restore::open::{MessagePlace, Scratch};
use crate::restore::plan::Plan;
use crate::restore::tests::{self as model, ModelDisk, TestVault};
use crate::restore::verify::{Level, VerifyOptions, verify};
use crate::restore::{fetch, head, points, source};
use crate::types::{BarrierKind, DiskId, Epoch, Id128, Micros, PointId, Seq};
use crate::vault::objects::PinObject;
use crate::vault::reader::Want;
use crate::vault::testing::{Fate, FaultStore};
use crate::vault::{VaultError, names};

const NONE: Term = Term::NONE;

/// Keeps app points, and nothing else but the newest: labels of the model lie in the future, so that age counts for nothing.
fn app_points() -> Policy {
    Policy {
        every: NONE,
        minutes: NONE,
        hours: NONE,
        days: NONE,
        months: NONE,
        app: Term::Forever,
        named: NONE,
        hold: false,
        holds: Vec::new(),
    }
}

/// No grace at all: each run goes one step further.
fn work() -> Work {
    let none = Duration::ZERO;
    Work {
        every: none,
        delete_after: none,
        seal_after: none,
        seal_grace: none,
        claim_stale: none,
        fork_window: none,
        disks_at_once: 1,
        ..Work::default()
    }
}

struct Site {
    store: Arc<FaultStore>,
    vault: TestVault,
    disks: Vec<ModelDisk>,
    policies: Policies,
    work: Work,
}

impl Site {
    /// The disks' records in messages of `step` records, batches of `per_batch` messages and lanes of `per_lane` batches; every second
    /// lane was ended in order, with its lane index.
    async fn new(disks: Vec<ModelDisk>, step: u64, per_batch: usize, per_lane: usize) -> Self {
        let store = FaultStore::new();
        Self::over(Arc::clone(&store) as _, store, disks, step, per_batch, per_lane).await
    }

    /// The same over any store.
    async fn over(
        place: Arc<dyn ObjectStore>,
        store: Arc<FaultStore>,
        disks: Vec<ModelDisk>,
        step: u64,
        per_batch: usize,
        per_lane: usize,
    ) -> Self {
        let mut vault = TestVault::new(place).await;
        let mut messages = Vec::new();
        for disk in &disks {
            for epoch in &disk.epochs {
                vault.vault.create_epoch(epoch).await.unwrap();
            }
            let object = crate::vault::objects::DiskObject {
                disk: disk.id.clone(),
                size_bytes: disk.disk_bytes,
                agent: "a1".into(),
                created_micros: Micros(1),
            };
            vault.vault.create_disk(&object).await.unwrap();
            messages.extend(disk.rows(step).into_iter().map(|row| (disk, row.message)));
        }
        messages.sort_by_key(|(disk, message)| (message.epoch, message.first, disk.id.clone()));
        for (lane, lane_messages) in messages.chunks(per_batch * per_lane).enumerate() {
            if lane > 0 {
                vault.turn().await;
            }
            for batch in lane_messages.chunks(per_batch) {
                vault.put_batch(batch).await;
            }
            if lane % 2 == 0 {
                vault.put_lane_index(1, vault.next_batch - 1).await;
                vault.end().await;
            }
        }
        let policies = Policies { default: app_points(), disks: BTreeMap::new() };
        Self { store, vault, disks, policies, work: work() }
    }

    async fn once(&self) -> Result<Report, VaultError> {
        run::once(&self.vault.vault, &self.work, &self.policies, Arc::new(SystemClock::new())).await
    }

    async fn history(&self, disk: &ModelDisk) -> History {
        let (_, history) = self.vault.open(&disk.id).await;
        Arc::into_inner(history).unwrap()
    }

    /// The points that the policy keeps.
    async fn kept(&self, disk: &ModelDisk) -> BTreeSet<PointId> {
        let points = points::list(&self.history(disk).await);
        let reasons = policy::keep(&points, self.policies.of(&disk.id), Micros(0));
        points.iter().zip(reasons).filter_map(|(point, reason)| reason.map(|_| point.id)).collect()
    }

    async fn kept_of_all(&self) -> Vec<BTreeSet<PointId>> {
        let mut kept = Vec::new();
        for disk in &self.disks {
            kept.push(self.kept(disk).await);
        }
        kept
    }

    /// The image at a point by what the vault gives; none if something is missing.
    async fn image(&self, disk: &ModelDisk, point: PointId) -> Option<Vec<u8>> {
        let (source, history) = self.vault.open(&disk.id).await;
        let plan = Plan::build(&history, point)?;
        let mut image = vec![0; plan.disk_bytes as usize];
        let mut scratch = Scratch::default();
        for read in &plan.reads {
            let path = source.path(read.object);
            let range = read.offset_bytes..read.offset_bytes + read.length_bytes;
            let bytes = self.vault.vault.store().get_range(path, range).await.ok()?;
            for message in &read.messages {
                let meta = &history.rows[message.row].message;
                let start = (meta.offset_bytes - read.offset_bytes) as usize;
                let place = MessagePlace {
                    vault: self.vault.vault.id(),
                    object: path.as_ref(),
                    key: source.key(read.object).unwrap(),
                    disk: &disk.id,
                    disk_bytes: plan.disk_bytes,
                };
                let opened = scratch.open(&place, meta, &bytes[start..start + meta.stored_bytes as usize]).unwrap();
                for owned in &message.owned {
                    let data = opened.extent(owned.seq, owned.extent).unwrap();
                    let skip = owned.skip_bytes as usize;
                    let at = owned.offset_bytes as usize;
                    let length = owned.length_bytes as usize;
                    image[at..at + length].copy_from_slice(&data[skip..skip + length]);
                }
            }
        }
        Some(image)
    }

    /// Kept points are offered, everything that is offered is right, and nothing looks damaged.
    async fn check(&self, kept: &[BTreeSet<PointId>]) {
        for (disk, kept) in self.disks.iter().zip(kept) {
            let catalog = source::load(&self.vault.vault, &Want::disk(&disk.id)).await.unwrap();
            assert!(catalog.findings.is_empty(), "{:?}", catalog.findings);
            let offered: BTreeSet<PointId> =
                points::list(&self.history(disk).await).iter().map(|point| point.id).collect();
            assert!(kept.is_subset(&offered), "{kept:?} of {} are kept, {offered:?} are offered", disk.id);
            for point in offered {
                let image = self.image(disk, point).await;
                assert!(image == Some(disk.image_at(point)), "{point} of {} is wrong or cannot be read", disk.id);
            }
        }
    }

    async fn batches(&self) -> BTreeSet<(Id128, u64)> {
        let listed = self.vault.vault.store().list(Some(&names::all_batches())).await.unwrap();
        listed.iter().filter_map(|one| Some((names::lane_of_batch(&one.path)?, names::number(&one.path)?))).collect()
    }

    /// The batches that hold something needed, by the definition.
    async fn needed(&self, kept: &[BTreeSet<PointId>]) -> BTreeSet<(Id128, u64)> {
        let mut out = BTreeSet::new();
        for (disk, kept) in self.disks.iter().zip(kept) {
            let catalog = source::load(&self.vault.vault, &Want::disk(&disk.id)).await.unwrap();
            let history = source::history(&catalog, &disk.id, &self.vault.vault.epochs(&disk.id).await.unwrap());
            for (row, needed) in history.rows.iter().zip(needs::needed(&history, kept, |_| false)) {
                let index = &catalog.batches[row.object as usize].index;
                out.extend(needed.then_some((index.lane, index.n)));
            }
        }
        out
    }

    /// Runs until nothing changes any more.
    async fn settle(&self) {
        for _ in 0..20 {
            let report = self.once().await.unwrap();
            let done = [report.lanes_sealed, report.newly_marked.batches, report.deleted.batches, report.taken_back];
            if done == [0; 4] && report.marked.batches == 0 && !report.budget_spent {
                return;
            }
        }
        panic!("the keeper comes to no end");
    }
}

/// A disk that is written over and over, with a fork, a sync and app points.
fn busy(name: &str, salt: u8) -> ModelDisk {
    let mut disk = ModelDisk::named(name, 64 << 10);
    disk.barrier(BarrierKind::SyncBegin, "");
    for at in 0..8_u64 {
        disk.write(at * 8192, vec![salt ^ at as u8 | 1; 8192]);
    }
    disk.barrier(BarrierKind::SyncEnd, "");
    for round in 0..8_u64 {
        for at in 0..6_u64 {
            disk.write(at * 8192, vec![salt ^ (round * 16 + at) as u8 | 1; 3000]);
        }
        disk.barrier(BarrierKind::Crash, "");
        if round % 3 == 1 {
            disk.barrier(BarrierKind::App, "");
        }
        if round == 3 {
            let head = disk.head();
            disk.fork(Seq(head.seq.0 - 2));
            disk.barrier(BarrierKind::SyncBegin, "");
            disk.write(0, vec![salt; 5000]);
            disk.barrier(BarrierKind::SyncEnd, "");
        }
    }
    disk
}

async fn busy_site() -> Site {
    Site::new(vec![busy("sda", 0), busy("sdb", 64)], 3, 2, 8).await
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn kept_points_are_right_and_nothing_else_stays_whatever_the_histories(
        one in model::steps(), two in model::steps(), step in 1..4_u64, per_batch in 1..4_usize, per_lane in 1..8_usize,
    ) {
        block_on(async {
            let mut disks = vec![model::model(&one), model::model(&two)];
            disks[1].id = DiskId::new("sdb").unwrap();
            for epoch in &mut disks[1].epochs {
                epoch.disk = DiskId::new("sdb").unwrap();
            }
            let site = Site::new(disks, step, per_batch, per_lane).await;
            let (kept, before) = (site.kept_of_all().await, site.batches().await);
            let needed = site.needed(&kept).await;
            for _ in 0..3 {
                site.once().await.unwrap();
                site.check(&kept).await;
            }
            site.settle().await;
            site.check(&kept).await;
            assert!(needed.is_subset(&before));
            assert_eq!(site.batches().await, needed);
        });
    }
}

/// Carries out `refuse` at the step of this number, counted over all that changes the vault, and what it says after it.
fn at_step(store: &FaultStore, step: usize, refuse: impl Fn(bool) -> Fate + Send + 'static) -> Arc<AtomicUsize> {
    let done = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&done);
    store.plan(move |operation, _| match operation {
        "get" => Fate::Good,
        _ => match count.fetch_add(1, Ordering::Relaxed) {
            before if before < step => Fate::Good,
            now => refuse(now == step),
        },
    });
    done
}

/// The keeper dies at every step that changes the vault, once before it and once after it, and another one goes on.
#[tokio::test(start_paused = true)]
async fn a_keeper_that_dies_at_any_step_leaves_every_kept_point_right_and_another_goes_on() {
    let mut steps = 0;
    for step in 0.. {
        let mut died = false;
        for after in [false, true] {
            let site = busy_site().await;
            let kept = site.kept_of_all().await;
            let needed = site.needed(&kept).await;
            at_step(&site.store, step, move |first| if first && after { Fate::AnswerLost } else { Fate::Status(403) });
            for _ in 0..5 {
                died = site.once().await.is_err();
                if died {
                    break;
                }
            }
            site.store.plan(|_, _| Fate::Good);
            site.check(&kept).await;
            site.settle().await;
            site.check(&kept).await;
            assert_eq!(site.batches().await, needed, "after step {step}");
        }
        if !died {
            steps = step;
            break;
        }
    }
    assert!(steps > 30, "only {steps} steps were there to die at");
}

#[tokio::test(start_paused = true)]
async fn answers_that_are_lost_and_a_busy_store_change_nothing() {
    let site = busy_site().await;
    let kept = site.kept_of_all().await;
    let needed = site.needed(&kept).await;
    let mut number = 0;
    site.store.plan(move |operation, _| {
        number += 1;
        match (operation, number % 5) {
            ("get", 0) | (_, 1) => Fate::Status(503),
            ("put" | "delete", 3) => Fate::AnswerLost,
            _ => Fate::Good,
        }
    });
    site.settle().await;
    site.store.plan(|_, _| Fate::Good);
    site.check(&kept).await;
    assert_eq!(site.batches().await, needed);
}

#[tokio::test(start_paused = true)]
async fn several_keepers_at_once_delete_nothing_that_is_needed() {
    for claim_stale in [Duration::ZERO, Duration::from_secs(600)] {
        let mut site = busy_site().await;
        site.work.claim_stale = claim_stale;
        let kept = site.kept_of_all().await;
        let needed = site.needed(&kept).await;
        for _ in 0..6 {
            let (a, b, c) = tokio::join!(site.once(), site.once(), site.once());
            // Claims that are stale at once are deleted under each other's hands.
            let fine = [&a, &b, &c].iter().all(|one| one.is_ok());
            assert!(fine || claim_stale.is_zero(), "{a:?} {b:?} {c:?}");
            site.check(&kept).await;
        }
        site.settle().await;
        assert_eq!(site.batches().await, needed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_plan_tells_what_goes_and_changes_nothing() {
    let site = busy_site().await;
    let kept = site.kept_of_all().await;
    let (before, needed) = (site.batches().await, site.needed(&kept).await);
    let objects = site.vault.vault.store().list(None).await.unwrap();
    let plan = run::plan(&site.vault.vault, &site.work, &site.policies, SystemClock::new().wall()).await.unwrap();
    assert_eq!(site.vault.vault.store().list(None).await.unwrap(), objects);
    assert_eq!(plan.stored.batches, before.len() as u64);
    assert_eq!(plan.unneeded.batches, (before.len() - needed.len()) as u64);
    assert!(plan.unneeded.bytes > 0 && plan.needed_bytes > 0 && plan.needed_bytes < plan.stored.bytes);
    assert_eq!(
        plan.disks.iter().map(|disk| disk.kept).sum::<u64>(),
        kept.iter().map(|kept| kept.len() as u64).sum::<u64>()
    );
}

fn pin(disk: &ModelDisk, point: PointId, until: u64) -> PinObject {
    PinObject {
        pin: Id128([9; 16]),
        disk: disk.id.clone(),
        epoch: point.epoch,
        seq: point.seq,
        until_micros: Micros(until),
        reason: "test".into(),
    }
}

/// A point of the first disk whose image needs something that no kept point needs.
async fn unkept(site: &Site, kept: &[BTreeSet<PointId>]) -> PointId {
    let disk = &site.disks[0];
    let needed = site.needed(kept).await;
    for point in points::list(&site.history(disk).await) {
        let mut more = kept.to_vec();
        more[0].insert(point.id);
        if site.needed(&more).await.len() > needed.len() + 1 {
            return point.id;
        }
    }
    panic!("every point is kept");
}

#[tokio::test(start_paused = true)]
async fn what_is_pinned_stays_until_the_pin_ends_also_if_it_was_marked_before() {
    for marked_before in [false, true] {
        let site = busy_site().await;
        let mut kept = site.kept_of_all().await;
        let point = unkept(&site, &kept).await;
        let image = site.disks[0].image_at(point);
        if marked_before {
            site.once().await.unwrap();
            assert!(site.once().await.unwrap().newly_marked.batches > 0);
            let offered = points::list(&site.history(&site.disks[0]).await);
            assert!(offered.iter().any(|one| one.id == point), "a mark alone hides what stands in the vault");
        }
        let pin = pin(&site.disks[0], point, u64::MAX / 4);
        site.vault.vault.put_object(&names::pin(pin.pin), &pin).await.unwrap();
        if marked_before {
            assert!(site.once().await.unwrap().taken_back > 0);
        }
        site.settle().await;
        assert!(site.image(&site.disks[0], point).await == Some(image), "a pinned image is gone");
        kept[0].insert(point);
        site.check(&kept).await;
        site.vault.vault.store().delete(&names::pin(pin.pin)).await.unwrap();
        kept[0].remove(&point);
        site.settle().await;
        site.check(&kept).await;
        assert_eq!(site.batches().await, site.needed(&kept).await);
        assert_eq!(site.image(&site.disks[0], point).await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_pin_that_has_ended_pins_nothing_and_goes() {
    let site = busy_site().await;
    let kept = site.kept_of_all().await;
    let needed = site.needed(&kept).await;
    let pin = pin(&site.disks[0], unkept(&site, &kept).await, 1);
    site.vault.vault.put_object(&names::pin(pin.pin), &pin).await.unwrap();
    site.settle().await;
    assert_eq!(site.batches().await, needed);
    assert!(!site.vault.vault.store().exists(&names::pin(pin.pin)).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_hold_keeps_everything_of_its_disk_and_a_longer_policy_takes_marks_back() {
    let mut site = busy_site().await;
    let all: BTreeSet<PointId> =
        points::list(&site.history(&site.disks[0]).await).iter().map(|point| point.id).collect();
    site.once().await.unwrap();
    assert!(site.once().await.unwrap().newly_marked.batches > 0);
    site.policies.disks.insert(site.disks[0].id.clone(), Policy { hold: true, ..app_points() });
    // Marked points are offered no more, so a hold that comes late keeps what is still offered; a pin would name the others.
    let kept = site.kept_of_all().await;
    site.settle().await;
    site.check(&kept).await;

    let mut site = busy_site().await;
    site.policies.disks.insert(site.disks[0].id.clone(), Policy { hold: true, ..app_points() });
    let kept = site.kept_of_all().await;
    assert_eq!(kept[0], all);
    site.settle().await;
    site.check(&kept).await;
}

#[tokio::test(start_paused = true)]
async fn a_damaged_disk_lets_nothing_go_and_another_does() {
    let mut site = Site::new(vec![busy("sda", 0)], 3, 2, 100).await;
    let other = busy("sdb", 64);
    site.vault.turn().await;
    site.vault.fill(&[&other], 3, 1).await;
    site.vault.end().await;
    site.disks.push(other);
    let (kept, before) = (site.kept_of_all().await, site.batches().await);
    let lane = *before.iter().map(|(lane, _)| lane).find(|lane| **lane != site.vault.lane.id()).unwrap();
    site.vault.tamper(&names::batch(lane, 3), |_| None).await;
    for _ in 0..5 {
        site.once().await.unwrap();
    }
    let report = site.once().await.unwrap();
    let held: Vec<bool> = report.disks.iter().map(|disk| disk.held_back.is_some()).collect();
    assert_eq!(held, [true, false], "{report:?}");
    let after = site.batches().await;
    let of_damaged = |batches: &BTreeSet<(Id128, u64)>| batches.iter().filter(|(one, _)| *one == lane).count();
    assert_eq!(of_damaged(&after), of_damaged(&before) - 1);
    assert!(after.len() < before.len() - 1, "nothing of the other disk went");
    for point in &kept[1] {
        assert!(site.image(&site.disks[1], *point).await == Some(site.disks[1].image_at(*point)));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_younger_than_the_fork_window_stays() {
    let mut site = busy_site().await;
    site.work.fork_window = Duration::from_secs(3600);
    let before = site.batches().await;
    for _ in 0..4 {
        assert_eq!(site.once().await.unwrap().newly_marked.batches, 0);
    }
    assert_eq!(site.batches().await, before);
}

#[tokio::test(start_paused = true)]
async fn lanes_in_use_and_lanes_sealed_a_moment_ago_are_left_alone() {
    let mut site = busy_site().await;
    site.work.seal_after = Duration::from_secs(365 * 86_400);
    site.work.seal_grace = Duration::from_secs(600);
    let before = site.batches().await;
    for _ in 0..4 {
        site.once().await.unwrap();
    }
    let report = site.once().await.unwrap();
    assert!(report.lanes_waiting > 0 && report.newly_marked.batches == 0, "{report:?}");
    assert_eq!(site.batches().await, before);
    let lanes = site.vault.vault.lanes().await.unwrap();
    assert!(lanes.iter().all(|lane| lane.sealed.is_none() || lane.ended), "a lane in use was sealed");
}

#[tokio::test(start_paused = true)]
async fn a_small_budget_only_takes_more_runs() {
    let mut site = busy_site().await;
    site.work.requests = 16;
    let kept = site.kept_of_all().await;
    let needed = site.needed(&kept).await;
    let mut runs = 0;
    while site.batches().await != needed {
        site.once().await.unwrap();
        site.check(&kept).await;
        runs += 1;
        assert!(runs < 100, "no end");
    }
    assert!(runs > 3, "{runs} runs");
}

#[tokio::test(start_paused = true)]
async fn without_any_manifest_kept_points_are_restored_all_the_same() {
    let site = busy_site().await;
    let kept = site.kept_of_all().await;
    site.settle().await;
    let store = site.vault.vault.store();
    for lane in site.vault.vault.lanes().await.unwrap() {
        for manifest in store.list(Some(&names::manifests(lane.lane))).await.unwrap() {
            store.delete(&manifest.path).await.unwrap();
        }
    }
    for (disk, kept) in site.disks.iter().zip(&kept) {
        for point in kept {
            assert!(site.image(disk, *point).await == Some(disk.image_at(*point)));
        }
        assert!(site.history(disk).await.rows.iter().any(|row| row.presence == Presence::Missing));
    }
}

#[tokio::test(start_paused = true)]
async fn a_thinned_vault_verifies_and_its_heads_are_those_before() {
    let site = busy_site().await;
    let disk = &site.disks[0];
    let heads = |site: &Site| {
        let vault = site.vault.vault.clone();
        let (id, epoch) = (disk.id.clone(), disk.epoch());
        let floors: Vec<_> =
            [0, 5, 12].map(|seq| Some((Seq(seq), disk.chain_at(PointId { epoch, seq: Seq(seq) })))).into();
        async move {
            let mut out = Vec::new();
            for floor in floors.into_iter().chain([None]) {
                out.push(head::head(&vault, &id, epoch, floor).await.unwrap());
            }
            out
        }
    };
    let before = heads(&site).await;
    site.settle().await;
    assert_eq!(heads(&site).await, before);
    let limits = fetch::FetchLimits { memory_bytes: 1 << 20, jobs: 2, workers: 1 };
    let options = VerifyOptions { level: Level::Data, sample: 1.0, disk: None, limits };
    let report = verify(&site.vault.vault, Some(&site.vault.identity), &options, Arc::default()).await.unwrap();
    assert_eq!(report.outcome, "ok", "{:?}", report.damage);
    assert!(report.late.is_empty(), "{:?}", report.late);
}

#[tokio::test]
async fn a_vault_in_a_directory_is_thinned_too() {
    let folder = tempfile::tempdir().unwrap();
    let place = Arc::new(object_store::local::LocalFileSystem::new_with_prefix(folder.path()).unwrap());
    let site = Site::over(place, FaultStore::new(), vec![busy("sda", 0), busy("sdb", 64)], 3, 2, 9).await;
    let kept = site.kept_of_all().await;
    let needed = site.needed(&kept).await;
    assert!(needed.len() < site.batches().await.len());
    site.settle().await;
    site.check(&kept).await;
    assert_eq!(site.batches().await, needed);
}

#[tokio::test(start_paused = true)]
async fn a_week_of_points_is_thinned_to_the_policy_and_each_is_right() {
    let mut disk = ModelDisk::named("sda", 8 << 10);
    disk.barrier(BarrierKind::SyncEnd, "");
    for round in 0..7 * 24_u64 {
        disk.wait(3600);
        disk.write(round % 2 * 4096, vec![round as u8 | 1; 4096]);
        disk.barrier(BarrierKind::Crash, if round % 50 == 0 { "named" } else { "" });
    }
    let mut site = Site::new(vec![disk], 2, 1, 60).await;
    site.policies.default = Policy { days: Term::Forever, named: Term::Forever, ..app_points() };
    let kept = site.kept_of_all().await;
    assert!((7..20).contains(&kept[0].len()), "{kept:?}");
    let before = site.batches().await.len();
    site.settle().await;
    site.check(&kept).await;
    let after = site.batches().await.len();
    assert!(after < before / 2, "{after} of {before} batches stay");
    let gone = points::list(&site.history(&site.disks[0]).await).len();
    assert!(gone < 30, "{gone} points are offered");
    let asked = points::Ask::Id(PointId { epoch: Epoch(1), seq: Seq(101) });
    let history = site.history(&site.disks[0]).await;
    let refused = points::choose(&history, &points::list(&history), &asked);
    assert!(matches!(refused, Err(points::ChooseError::LetGo { .. })), "{refused:?}");
}

/// What whole batches cost: four disks share each batch and write at random, the worst case, for a week of which one hour is kept.
#[tokio::test(start_paused = true)]
async fn a_week_of_random_writes_under_an_hour_of_barriers_keeps_little_more_than_batches_that_hold_live_data() {
    const ROUNDS: u64 = 7 * 24 * 2;
    const SLOTS: u64 = 64;
    let mut chance = crate::vault::rng::Rng::seeded(7);
    let mut disks: Vec<ModelDisk> = ["sda", "sdb", "sdc", "sdd"].map(|name| ModelDisk::named(name, SLOTS << 12)).into();
    for round in 0..ROUNDS {
        for disk in &mut disks {
            disk.wait(1800);
            for _ in 0..4 {
                disk.write(chance.below(SLOTS) << 12, vec![round as u8 | 1; 4096]);
            }
            disk.barrier(if round == 0 { BarrierKind::SyncEnd } else { BarrierKind::Crash }, "");
        }
    }
    let now = disks[0].records[&Epoch(1)].last().unwrap().head.label;
    let mut site = Site::new(disks, 5, 4, 100).await;
    site.policies.default = Policy { every: Term::For(Duration::from_secs(3600)), app: NONE, ..app_points() };
    let plan = run::plan(&site.vault.vault, &site.work, &site.policies, now).await.unwrap();
    let stays = plan.stored.bytes - plan.unneeded.bytes;
    let live: u64 =
        site.disks.iter().map(|disk| disk.image_at(disk.head()).iter().filter(|byte| **byte > 0).count() as u64).sum();
    println!("stored {} stays {stays} needed {} live {live}", plan.stored.bytes, plan.needed_bytes);
    assert!(stays < plan.stored.bytes / 3, "{stays} of {} bytes stay", plan.stored.bytes);
}
