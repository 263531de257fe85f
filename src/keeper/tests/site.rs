//! A vault with model disks, and what becomes of it under a keeper.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use object_store::ObjectStore;

use crate::flow::{Clock, Drain, DrainTrigger, SystemClock};
use crate::keeper::config::{Policies, Work};
use crate::keeper::error::KeeperError;
use crate::keeper::needs::{self, Appeared};
use crate::keeper::policy::{self, Policy, Term};
use crate::keeper::report::{Progress, Report};
use crate::keeper::run::{self, Keeper};
use crate::restore::history::{History, Row};
use crate::restore::tests::{ModelDisk, TestVault};
use crate::restore::{points, source};
use crate::types::{BarrierKind, Id128, Micros, PointId, Seq};
use crate::vault::names;
use crate::vault::reader::Want;
use crate::vault::testing::FaultStore;

pub(super) const NONE: Term = Term::NONE;

/// Keeps app points, and nothing else but the newest: labels of the model lie in the future, so that age counts for nothing.
pub(super) fn app_points() -> Policy {
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
pub(super) fn work() -> Work {
    let none = Duration::ZERO;
    Work {
        every: none,
        delete_after: none,
        seal_after: none,
        seal_grace: none,
        claim_stale: none,
        fork_window: none,
        disks_at_once: 1,
        fold: false,
        ..Work::default()
    }
}

pub(super) struct Site {
    pub(super) store: Arc<FaultStore>,
    pub(super) vault: TestVault,
    pub(super) disks: Vec<ModelDisk>,
    pub(super) policies: Policies,
    pub(super) work: Work,
    pub(super) clock: Arc<dyn Clock>,
    _trigger: DrainTrigger,
    stop: Drain,
}

/// This machine's clocks, ahead by as much as a store's.
pub(super) struct Ahead(SystemClock, Arc<AtomicI64>);

impl Ahead {
    pub(super) fn with(store: &FaultStore) -> Arc<dyn Clock> {
        Arc::new(Self(SystemClock::new(), Arc::clone(store.ahead_micros())))
    }
}

impl Clock for Ahead {
    fn wall(&self) -> Micros {
        Micros(self.0.wall().0.saturating_add_signed(self.1.load(Ordering::Relaxed)))
    }

    fn monotonic(&self) -> Duration {
        // From far enough on that it may be set back.
        let since = Duration::from_secs(1 << 40) + self.0.monotonic();
        let ahead_micros = self.1.load(Ordering::Relaxed);
        let by = Duration::from_micros(ahead_micros.unsigned_abs());
        if ahead_micros < 0 { since - by } else { since + by }
    }
}

impl Site {
    /// The disks' records in messages of `step` records, batches of `per_batch` messages and lanes of `per_lane` batches; every second
    /// lane was ended in order, with its lane index.
    pub(super) async fn new(disks: Vec<ModelDisk>, step: u64, per_batch: usize, per_lane: usize) -> Self {
        let store = FaultStore::new();
        Self::over(Arc::clone(&store) as _, store, disks, step, per_batch, per_lane).await
    }

    /// The same, vaulted a year after the disks' labels begin.
    pub(super) async fn later(disks: Vec<ModelDisk>, step: u64, per_batch: usize, per_lane: usize) -> Self {
        let store = FaultStore::new();
        let year_micros = 365 * 86_400_000_000;
        let now_micros = SystemClock::new().wall().0 as i64;
        store.ahead_micros().store(1_800_000_000_000_000 + year_micros - now_micros, Ordering::Relaxed);
        Self::over(Arc::clone(&store) as _, store, disks, step, per_batch, per_lane).await
    }

    /// The same over any store.
    pub(super) async fn over(
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
        let clock = Ahead::with(&store);
        let (trigger, stop) = DrainTrigger::new();
        Self { store, vault, disks, policies, work: work(), clock, _trigger: trigger, stop }
    }

    /// One run of a keeper.
    pub(super) async fn once(&self) -> Result<Report, KeeperError> {
        self.once_by(&self.policies).await
    }

    /// One run of a keeper with a policy of its own.
    pub(super) async fn once_by(&self, policies: &Policies) -> Result<Report, KeeperError> {
        self.once_with(policies, &self.clock).await
    }

    /// One run of a keeper on a machine with clocks of its own.
    pub(super) async fn once_with(&self, policies: &Policies, clock: &Arc<dyn Clock>) -> Result<Report, KeeperError> {
        self.run(policies, clock, &self.stop, &|| Some(policies.digest(&self.work))).await
    }

    async fn run(
        &self,
        policies: &Policies,
        clock: &Arc<dyn Clock>,
        stop: &Drain,
        policies_now: &(dyn Fn() -> Option<Id128> + Sync),
    ) -> Result<Report, KeeperError> {
        let (vault, work, progress) = (&self.vault.vault, &self.work, &Progress::default());
        Keeper { vault, work, policies, clock, policies_now, stop, progress }.once().await
    }

    /// One run of a keeper whose policies are changed under its hands: `changed` tells when.
    pub(super) async fn once_while(&self, changed: &(dyn Fn() -> bool + Sync)) -> Result<Report, KeeperError> {
        let digest = self.policies.digest(&self.work);
        self.run(&self.policies, &self.clock, &self.stop, &|| (!changed()).then_some(digest)).await
    }

    /// One run of a keeper that may be asked to stop.
    pub(super) async fn once_until(&self, stop: &Drain) -> Result<Report, KeeperError> {
        self.run(&self.policies, &self.clock, stop, &|| Some(self.policies.digest(&self.work))).await
    }

    pub(super) async fn plan(&self, now: Micros) -> Report {
        let (vault, work, policies) = (&self.vault.vault, &self.work, &self.policies);
        run::plan(vault, work, policies, now, &Progress::default()).await.unwrap()
    }

    /// Lets time pass for the store and this machine.
    pub(super) fn wait(&self, time: Duration) {
        self.store.ahead_micros().fetch_add(time.as_micros() as i64, Ordering::Relaxed);
    }

    /// Sets the clocks of the store and this machine.
    pub(super) fn set_time(&self, now: Micros) {
        let ahead_micros = now.0 as i64 - SystemClock::new().wall().0 as i64;
        self.store.ahead_micros().store(ahead_micros, Ordering::Relaxed);
    }

    pub(super) async fn history(&self, disk: &ModelDisk) -> History {
        let (_, history) = self.vault.open(&disk.id).await;
        Arc::into_inner(history).unwrap()
    }

    /// The points that the policy keeps, if age counts for nothing.
    pub(super) async fn kept(&self, disk: &ModelDisk) -> BTreeSet<PointId> {
        let points = points::list(&self.history(disk).await);
        let reasons = policy::keep(&points, |_| Micros(0), self.policies.of(&disk.id), Micros(0));
        points.iter().zip(reasons).filter_map(|(point, reason)| reason.map(|_| point.id)).collect()
    }

    pub(super) async fn kept_of_all(&self) -> Vec<BTreeSet<PointId>> {
        let mut kept = Vec::new();
        for disk in &self.disks {
            kept.push(self.kept(disk).await);
        }
        kept
    }

    /// The image at a point by what the vault gives; none if something is missing.
    pub(super) async fn image(&self, disk: &ModelDisk, point: PointId) -> Option<Vec<u8>> {
        self.vault.image(disk, point).await
    }

    /// Kept points are offered, everything that is offered is right, and nothing looks damaged.
    pub(super) async fn check(&self, kept: &[BTreeSet<PointId>]) {
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

    /// Images at these points are there and right, whatever else is.
    pub(super) async fn check_images(&self, points: &[BTreeSet<PointId>]) {
        for (disk, points) in self.disks.iter().zip(points) {
            for point in points {
                let image = self.image(disk, *point).await;
                assert!(image == Some(disk.image_at(*point)), "{point} of {} is wrong or cannot be read", disk.id);
            }
        }
    }

    pub(super) async fn batches(&self) -> BTreeSet<(Id128, u64)> {
        let listed = self.vault.vault.store().list(Some(&names::all_batches())).await.unwrap();
        listed.iter().filter_map(|one| Some((names::lane_of_batch(&one.path)?, names::number(&one.path)?))).collect()
    }

    /// The batches that hold something needed, by the definition.
    pub(super) async fn needed(&self, kept: &[BTreeSet<PointId>]) -> BTreeSet<(Id128, u64)> {
        let mut out = BTreeSet::new();
        for (disk, kept) in self.disks.iter().zip(kept) {
            let catalog = source::load(&self.vault.vault, &Want::disk(&disk.id)).await.unwrap();
            let history = source::history(&catalog, &disk.id, &self.vault.vault.epochs(&disk.id).await.unwrap());
            for (row, needed) in history.rows.iter().zip(self.needed_rows(&history, disk, kept)) {
                let index = &catalog.batches[row.object as usize].index;
                out.extend(needed.then_some((index.lane, index.n)));
            }
        }
        out
    }

    fn needed_rows(&self, history: &History, disk: &ModelDisk, kept: &BTreeSet<PointId>) -> Vec<bool> {
        let old = |_: &Row| Appeared { young: false, put_by: Micros(0) };
        needs::needed(history, kept, &self.policies.of(&disk.id).holds, old)
    }

    /// Runs until nothing changes any more.
    pub(super) async fn settle(&self) {
        self.settle_each(Duration::ZERO).await;
    }

    /// The same with time between the runs.
    pub(super) async fn settle_each(&self, between: Duration) {
        for _ in 0..20 {
            self.wait(between);
            let report = self.once().await.unwrap();
            let done = [report.lanes_sealed, report.newly_marked.batches, report.deleted.batches, report.taken_back];
            if done == [0; 4] && report.moved.batches == 0 && report.marked.batches == 0 && !report.budget_spent {
                return;
            }
        }
        panic!("the keeper comes to no end");
    }
}

/// A disk that is written over and over, with a fork, a sync and app points.
pub(super) fn busy(name: &str, salt: u8) -> ModelDisk {
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

pub(super) async fn busy_site() -> Site {
    Site::new(vec![busy("sda", 0), busy("sdb", 64)], 3, 2, 8).await
}

pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(future)
}
