//! What a reading of the code found before anything may delete: each harm as a test, in the order of decision 12.

use super::*;
use crate::flow::Clock;
use crate::keeper::config::Policies;
use crate::keeper::error::KeeperError;
use crate::keeper::outlook::When;
use crate::keeper::policy::{Held, Reason};
use crate::restore::history::Row;
use crate::restore::source;
use crate::vault::index::IndexPlace;
use crate::vault::index::lane::{LaneIndex, LaneIndexBuilder};
use crate::vault::objects::{LetGoRun, ManifestObject};
use crate::vault::reader::Want;

const HOUR: Duration = Duration::from_secs(3600);

/// A site that works by the hours of life, with everything in it half a day old.
async fn slow_site() -> Site {
    let mut site = busy_site().await;
    site.work.delete_after = 6 * HOUR;
    site.work.seal_grace = Duration::from_secs(600);
    site.wait(12 * HOUR);
    site
}

/// Runs until something is marked, and returns the kept points of before.
async fn marked(site: &Site) -> Vec<BTreeSet<PointId>> {
    let kept = site.kept_of_all().await;
    assert!(site.once().await.unwrap().lanes_sealed > 0);
    site.wait(Duration::from_secs(900));
    assert!(site.once().await.unwrap().newly_marked.batches > 0);
    kept
}

async fn all_points(site: &Site, disk: usize) -> BTreeSet<PointId> {
    points::list(&site.history(&site.disks[disk]).await).iter().map(|point| point.id).collect()
}

// 1. What is marked stands in the vault, and counts when the policy changes.

#[tokio::test(start_paused = true)]
async fn a_longer_policy_after_the_mark_saves_every_point_that_stands_there() {
    let mut site = slow_site().await;
    let all = [all_points(&site, 0).await, all_points(&site, 1).await];
    marked(&site).await;
    site.policies.default = Policy { every: Term::Forever, ..app_points() };
    for _ in 0..4 {
        site.wait(8 * HOUR);
        site.once().await.unwrap();
    }
    let kept = site.kept_of_all().await;
    assert_eq!(kept, all);
    site.check(&kept).await;
}

/// Whoever has the catalog key can write a manifest that says of every batch that it was let go long ago.
async fn forge(site: &Site, n: u64, policies: Id128) {
    for lane in site.vault.vault.lanes().await.unwrap() {
        let let_go = vec![LetGoRun { first: 1, last: 1 << 40, marked_micros: 1 }];
        let (made_micros, run, newest_micros) = (1, Id128([66; 16]), i64::MAX);
        let forged = ManifestObject { lane: lane.lane, n, made_micros, run, policies, newest_micros, let_go };
        site.vault.vault.put_object(&names::manifest(lane.lane, n), &forged).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_forged_manifest_deletes_nothing_before_its_time_and_nothing_that_is_needed_ever() {
    let site = slow_site().await;
    let kept = site.kept_of_all().await;
    let (needed, before) = (site.needed(&kept).await, site.batches().await);
    assert!(site.once().await.unwrap().lanes_sealed > 0);
    site.wait(HOUR);
    forge(&site, 1, site.policies.digest(&site.work)).await;
    site.wait(5 * HOUR);
    for _ in 0..3 {
        let report = site.once().await.unwrap();
        assert_eq!(report.deleted.batches, 0, "what it says of its own age counts for nothing: {report:?}");
    }
    assert_eq!(site.batches().await, before);
    site.check(&kept).await;
    for _ in 0..4 {
        site.wait(7 * HOUR);
        site.once().await.unwrap();
        site.check(&kept).await;
    }
    assert_eq!(site.batches().await, needed);
}

#[tokio::test(start_paused = true)]
async fn a_mark_that_was_taken_back_begins_anew() {
    let site = slow_site().await;
    let kept = marked(&site).await;
    let before = site.batches().await;
    site.wait(4 * HOUR);
    // A pin that comes and goes, under one policy.
    let point = unkept(&site, &kept).await;
    let pin = pin(&site.disks[0], point, u64::MAX / 4);
    site.vault.vault.put_object(&names::pin(pin.pin), &pin).await.unwrap();
    let taken_back = site.once().await.unwrap().taken_back;
    assert!(taken_back > 0);
    site.vault.vault.store().delete(&names::pin(pin.pin)).await.unwrap();
    site.wait(HOUR);
    assert_eq!(site.once().await.unwrap().newly_marked.batches, taken_back);
    site.wait(2 * HOUR);
    site.once().await.unwrap();
    let needed = site.needed(&kept).await;
    assert_eq!(
        site.batches().await.len() as u64,
        needed.len() as u64 + taken_back,
        "seven hours after the first mark, two after the second"
    );
    assert!(site.batches().await.len() < before.len(), "what was marked all the time is gone");
    site.wait(5 * HOUR);
    site.once().await.unwrap();
    assert_eq!(site.batches().await, needed);
}

// 2. What stands in no lane index, or holds a disk that was not judged by this lane, stays.

#[tokio::test(start_paused = true)]
async fn a_disk_whose_routes_are_lost_loses_nothing() {
    let site = busy_site().await;
    let kept = site.kept_of_all().await;
    let other = site.disks[1].id.clone();
    let holds_other = {
        let catalog = source::load(&site.vault.vault, &Want::disk(&other)).await.unwrap();
        let all = catalog.batches.iter().map(|batch| (batch.index.lane, batch.index.n));
        all.collect::<BTreeSet<_>>()
    };
    for route in site.vault.vault.store().list(Some(&names::routes(&other))).await.unwrap() {
        site.vault.vault.store().delete(&route.path).await.unwrap();
    }
    for _ in 0..6 {
        site.once().await.unwrap();
    }
    let left = site.batches().await;
    assert!(holds_other.is_subset(&left), "{:?} are gone", holds_other.difference(&left).collect::<Vec<_>>());
    site.check_images(&kept[..1]).await;
}

#[tokio::test(start_paused = true)]
async fn lane_indexes_that_are_gone_after_the_mark_are_written_again_before_anything_is_deleted() {
    let site = slow_site().await;
    let kept = marked(&site).await;
    let store = site.vault.vault.store().clone();
    for lane in site.vault.vault.lanes().await.unwrap() {
        for index in store.list(Some(&names::lane_indexes(lane.lane))).await.unwrap() {
            store.delete(&index.path).await.unwrap();
        }
    }
    site.wait(7 * HOUR);
    let report = site.once().await.unwrap();
    assert!(report.deleted.batches > 0 && report.indexes_written > 0, "{report:?}");
    site.check(&kept).await;
}

#[tokio::test(start_paused = true)]
async fn a_lane_index_that_the_store_does_not_give_back_covers_nothing() {
    let site = busy_site().await;
    let before = site.batches().await;
    site.store.plan(|operation, path| match operation {
        // It says that it stored them, and has nothing.
        "get" if path.as_ref().starts_with("x/") => Fate::Status(404),
        _ => Fate::Good,
    });
    for _ in 0..5 {
        // Some fail, because an index that is listed and not there is no vault's; none deletes.
        let _ = site.once().await;
    }
    assert_eq!(site.batches().await, before);
}

/// Whoever has the catalog key can write a lane index that says of a batch what it likes.
#[tokio::test(start_paused = true)]
async fn a_lane_index_that_says_otherwise_than_the_batch_itself_covers_nothing() {
    let site = busy_site().await;
    let vault = &site.vault.vault;
    let lanes = vault.lanes().await.unwrap();
    let lane = lanes.iter().find(|lane| lane.registered && !lane.ended).unwrap().lane;
    let catalog = source::load(vault, &Want::default()).await.unwrap();
    let batches: Vec<_> = catalog.batches.into_iter().filter(|batch| batch.index.lane == lane).collect();
    let mut builder = LaneIndexBuilder::new(vault.id(), lane, batches[0].index.n);
    for batch in &batches {
        let mut index = batch.index.clone();
        let records =
            index.disks.iter_mut().flat_map(|part| &mut part.messages).flat_map(|message| &mut message.records);
        records.for_each(|record| record.extents.clear());
        let object = names::batch_name(lane, index.n);
        let place = IndexPlace { vault: vault.id(), object: &object, lane, n: index.n };
        let sealed = index.seal(vault.catalog_key().unwrap(), &place).unwrap();
        assert!(builder.push(index.n, batch.size_bytes, sealed));
    }
    vault.put_bytes(&names::lane_index(lane, 1), builder.finish()).await.unwrap();
    for _ in 0..5 {
        site.once().await.unwrap();
    }
    let left = site.batches().await;
    assert!(batches.iter().all(|batch| left.contains(&(lane, batch.index.n))), "deleted by the word of a lane index");
}

// 3. Late batches count for nobody.

#[tokio::test(start_paused = true)]
async fn a_batch_that_came_after_the_seal_comes_into_no_lane_index() {
    let mut site = slow_site().await;
    // The last lane has no end, as of a gateway that sleeps.
    site.vault.turn().await;
    let disk = busy("sdc", 32);
    site.vault.fill(&[&disk], 3, 1).await;
    site.disks.push(disk);
    site.wait(12 * HOUR);
    assert!(site.once().await.unwrap().lanes_sealed > 0);
    site.wait(Duration::from_secs(120));
    let late = site.vault.next_batch;
    let last = site.disks[2].rows(3).pop().unwrap().message;
    site.vault.put_batch(&[(&site.disks[2], last)]).await;
    let kept = site.kept_of_all().await;
    for _ in 0..4 {
        site.wait(7 * HOUR);
        site.once().await.unwrap();
        site.check(&kept).await;
    }
    let lane = site.vault.lane.id();
    let mut indexed = BTreeSet::new();
    for one in site.vault.vault.store().list(Some(&names::lane_indexes(lane))).await.unwrap() {
        let object = site.vault.vault.store().get(&one.path, 1 << 20).await.unwrap().unwrap();
        indexed.extend(LaneIndex::parse(&object).unwrap().entries.iter().map(|entry| entry.n));
    }
    assert!(!indexed.is_empty() && !indexed.contains(&late), "{late} is in {indexed:?}");
    assert!(site.batches().await.contains(&(lane, late)), "it stays, and counts for nobody");
}

// 4. Two keepers with two policies delete nothing that one of them keeps.

#[tokio::test(start_paused = true)]
async fn keepers_of_two_policies_delete_nothing_until_they_agree() {
    let site = slow_site().await;
    let kept = site.kept_of_all().await;
    let (needed, before) = (site.needed(&kept).await, site.batches().await);
    // Of the second disk it keeps less, and of the first as much.
    let mut other = site.policies.clone();
    other.disks.insert(site.disks[1].id.clone(), Policy { app: NONE, ..app_points() });
    for _ in 0..8 {
        for policies in [&site.policies, &other] {
            site.wait(4 * HOUR);
            assert_eq!(site.once_by(policies).await.unwrap().deleted.batches, 0);
        }
    }
    assert_eq!(site.batches().await, before);
    for _ in 0..4 {
        site.wait(7 * HOUR);
        site.once().await.unwrap();
    }
    site.check(&kept).await;
    assert_eq!(site.batches().await, needed);
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_is_changed_while_a_run_is_under_way_ends_its_deletions() {
    let site = slow_site().await;
    let kept = marked(&site).await;
    let before = site.batches().await;
    site.wait(7 * HOUR);
    let claims = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&claims);
    site.store.plan(move |operation, path| {
        if operation == "put" && path.as_ref().starts_with("m/c/") {
            counted.fetch_add(1, Ordering::Relaxed);
        }
        Fate::Good
    });
    let report = site.once_while(&|| claims.load(Ordering::Relaxed) >= 2).await.unwrap();
    assert!(report.notes.iter().any(|note| note.contains("policies were changed")), "{report:?}");
    assert_eq!(site.batches().await, before);
    site.check(&kept).await;
}

// 5. A slip in a name is an error. (That a policy which nobody wrote keeps everything is a test of the configuration.)

#[tokio::test(start_paused = true)]
async fn a_policy_of_a_disk_that_no_vault_has_ends_the_run_before_anything_is_written() {
    let mut site = busy_site().await;
    let slip = DiskId::new("sad").unwrap();
    site.policies.disks.insert(slip, Policy { hold: true, ..app_points() });
    let error = site.once().await.unwrap_err();
    assert!(matches!(error, KeeperError::UnknownDisk { .. }) && error.to_string().contains("sad"), "{error}");
    assert!(site.vault.vault.lanes().await.unwrap().iter().all(|lane| lane.sealed.is_none()));
    let error = run_plan(&site).await.unwrap_err();
    assert!(error.to_string().contains("sad"), "{error}");
}

async fn run_plan(site: &Site) -> Result<crate::keeper::report::Report, KeeperError> {
    let progress = crate::keeper::report::Progress::default();
    crate::keeper::run::plan(&site.vault.vault, &site.work, &site.policies, site.clock.wall(), &progress).await
}

#[tokio::test(start_paused = true)]
async fn without_a_policy_nothing_goes() {
    let mut site = busy_site().await;
    let before = site.batches().await;
    site.policies = Policies { default: Policy::everything(), ..Policies::default() };
    for _ in 0..5 {
        let report = site.once().await.unwrap();
        assert_eq!((report.newly_marked.batches, report.lanes_sealed), (0, 0));
    }
    assert_eq!(site.batches().await, before);
}

// 6. A hold keeps the writes between points, forks and spans too.

#[tokio::test(start_paused = true)]
async fn a_hold_of_a_disk_keeps_also_what_a_fork_cut_off_and_what_lies_between_points() {
    let mut site = busy_site().await;
    let held = site.disks[0].id.clone();
    let of_held = |site: &Site| {
        let (vault, held) = (site.vault.vault.clone(), held.clone());
        async move {
            let catalog = source::load(&vault, &Want::disk(&held)).await.unwrap();
            let there = catalog.batches.iter().filter(|batch| batch.present);
            there.map(|batch| (batch.index.lane, batch.index.n)).collect::<BTreeSet<_>>()
        }
    };
    let before = of_held(&site).await;
    site.policies.disks.insert(held.clone(), Policy { hold: true, ..app_points() });
    site.settle().await;
    assert_eq!(of_held(&site).await, before);
    // Every seq outside the spans, not only barriers, is as it was.
    for (epoch, records) in &site.disks[0].records {
        for seq in 1..=records.len() as u64 {
            let place = PointId { epoch: *epoch, seq: Seq(seq) };
            if let Some(image) = site.image(&site.disks[0], place).await {
                assert!(image == site.disks[0].image_at(place), "{place}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_held_span_keeps_every_state_in_it_and_holds_of_all_count_beside_a_disks_own() {
    let mut site = busy_site().await;
    let label = |site: &Site, at: usize| site.disks[0].records[&Epoch(1)][at].head.label;
    // Two spans between barriers: one of all disks, one of the first.
    let (of_all, own) = (
        Held { from: label(&site, 14), until: label(&site, 16) },
        Held { from: label(&site, 24), until: label(&site, 25) },
    );
    let held: Vec<PointId> =
        [13, 14, 15, 16, 23, 24, 25].map(|at| PointId { epoch: Epoch(1), seq: Seq(at + 1) }).into();
    site.policies.default.holds = vec![of_all];
    site.policies.disks.insert(site.disks[0].id.clone(), Policy { holds: vec![of_all, own], ..app_points() });
    let kept = site.kept_of_all().await;
    site.settle().await;
    site.check(&kept).await;
    for place in held {
        let image = site.image(&site.disks[0], place).await;
        assert!(image == Some(site.disks[0].image_at(place)), "{place} of a held span");
    }
    assert!(site.batches().await.len() < busy_site().await.batches().await.len(), "the rest goes");
}

#[tokio::test(start_paused = true)]
async fn a_held_span_keeps_what_a_fork_has_cut_off_in_it() {
    let mut site = busy_site().await;
    let tail = site.disks[0].records[&Epoch(1)].last().unwrap();
    let (label, last) = (tail.head.label, tail.head.seq);
    let span = Held { from: label, until: label };
    site.policies.disks.insert(site.disks[0].id.clone(), Policy { holds: vec![span], ..app_points() });
    site.settle().await;
    let history = site.history(&site.disks[0]).await;
    assert!(history.span_of(Epoch(1)).unwrap().through < last, "a fork has cut it off");
    let held = |row: &&Row| row.message.epoch == Epoch(1) && (row.message.first..=row.message.last).contains(&last);
    let held: Vec<_> = history.rows.iter().filter(held).map(|row| row.presence).collect();
    assert_eq!(held, [Presence::Here]);
}

// 7. Sleep is the gateway's: see `vault::uploader` and `gateway` for their tests. 8. Clocks.

#[tokio::test(start_paused = true)]
async fn labels_of_a_clock_that_was_behind_make_nothing_old() {
    let mut disk = ModelDisk::named("sda", 8 << 10);
    disk.barrier(BarrierKind::SyncEnd, "");
    for round in 0..40_u64 {
        disk.wait(1);
        disk.write(round % 2 * 4096, vec![round as u8 | 1; 4096]);
        disk.barrier(BarrierKind::Crash, "");
    }
    // Vaulted now by the store's clock, and labelled years ago.
    let store = FaultStore::new();
    store.ahead_micros().store(10 * 365 * 86_400_000_000, Ordering::Relaxed);
    // Barriers have batches of their own, which go, as no image needs them: from then on the manifest tells how young they are.
    let mut site = Site::over(Arc::clone(&store) as _, store, vec![disk], 1, 1, 90).await;
    site.policies.default = Policy { every: Term::For(48 * HOUR), app: NONE, ..app_points() };
    site.work.fork_window = HOUR;
    let all = all_points(&site, 0).await;
    assert_eq!(all.len(), 41);
    let before = site.batches().await.len();
    for _ in 0..5 {
        site.wait(8 * HOUR);
        site.once().await.unwrap();
    }
    assert!(site.batches().await.len() < before - 30, "those of barriers are gone");
    site.check(&[all]).await;
    // Days later they are old by any clock.
    for _ in 0..8 {
        site.wait(24 * HOUR);
        site.once().await.unwrap();
    }
    let left = all_points(&site, 0).await;
    assert!(left.len() < 4, "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn a_store_whose_clock_leaps_ends_the_run_before_anything_is_deleted() {
    let site = slow_site().await;
    let kept = marked(&site).await;
    let before = site.batches().await;
    // The store alone is two days ahead: by its clock every mark is old.
    let (real, clock) = (site.clock.wall(), site.store.ahead_micros().load(Ordering::Relaxed));
    for ahead_micros in [2 * 86_400_000_000_i64, -2 * 86_400_000_000] {
        site.store.ahead_micros().store(clock + ahead_micros, Ordering::Relaxed);
        let error = site.once_with(&site.policies, &honest(real)).await.unwrap_err();
        assert!(matches!(error, KeeperError::ClocksApart { .. }), "{error}");
    }
    assert_eq!(site.batches().await, before);
    // It leaps while the run is under way, between the run's claim and that of a lane.
    site.store.ahead_micros().store(clock, Ordering::Relaxed);
    site.wait(7 * HOUR);
    let ahead = Arc::clone(site.store.ahead_micros());
    let mut claims = 0;
    site.store.plan(move |operation, path| {
        if operation == "put" && path.as_ref().starts_with("m/c/") {
            claims += 1;
            if claims == 2 {
                ahead.fetch_add(86_400_000_000, Ordering::Relaxed);
            }
        }
        Fate::Good
    });
    let now = Micros(real.0 + 7 * 3_600_000_000);
    let error = site.once_with(&site.policies, &honest(now)).await.unwrap_err();
    assert!(matches!(error, KeeperError::ClocksApart { .. }), "{error}");
    assert_eq!(site.batches().await, before);
    site.store.plan(|_, _| Fate::Good);
    site.check(&kept).await;
}

/// A clock that stands, whatever the store's does.
struct Honest(Micros);

fn honest(now: Micros) -> Arc<dyn Clock> {
    Arc::new(Honest(now))
}

impl Clock for Honest {
    fn wall(&self) -> Micros {
        self.0
    }

    fn monotonic(&self) -> Duration {
        Duration::from_secs(1)
    }
}

// 9. Pins of clocks that are behind, and pins that cannot be read.

#[tokio::test(start_paused = true)]
async fn a_pin_of_a_machine_whose_clock_is_behind_holds_for_its_time() {
    let site = slow_site().await;
    let mut kept = marked(&site).await;
    let point = unkept(&site, &kept).await;
    // It ends half a day before it appears.
    let behind = Micros(site.clock.wall().0 - 12 * 3_600_000_000);
    let pin = pin(&site.disks[0], point, behind.0);
    site.vault.vault.put_object(&names::pin(pin.pin), &pin).await.unwrap();
    kept[0].insert(point);
    site.wait(8 * HOUR);
    site.once().await.unwrap();
    site.check(&kept).await;
    assert!(site.image(&site.disks[0], point).await == Some(site.disks[0].image_at(point)));
}

#[tokio::test(start_paused = true)]
async fn a_pin_that_cannot_be_read_holds_everything_for_a_week_and_no_longer() {
    let site = slow_site().await;
    let kept = marked(&site).await;
    let (needed, before) = (site.needed(&kept).await, site.batches().await);
    site.store.inner_put(&names::pin(Id128([8; 16])), "{\"format\":\"tidegate-pin\",\"version\":9}\n").await;
    for _ in 0..6 {
        site.wait(24 * HOUR);
        let report = site.once().await.unwrap();
        assert_eq!(report.deleted.batches, 0, "{report:?}");
        assert!(report.disks.iter().all(|disk| disk.held_back.as_ref().is_some_and(|why| why.contains("pin"))));
    }
    assert_eq!(site.batches().await, before);
    for _ in 0..6 {
        site.wait(24 * HOUR);
        site.once().await.unwrap();
    }
    site.check(&kept).await;
    assert_eq!(site.batches().await, needed);
    assert!(!site.vault.vault.store().exists(&names::pin(Id128([8; 16]))).await.unwrap(), "it is tidied away");
}

#[tokio::test(start_paused = true)]
async fn a_pin_of_a_point_that_a_fork_cut_off_holds_its_disk() {
    let site = busy_site().await;
    let last = PointId { epoch: Epoch(1), seq: Seq(site.disks[0].records[&Epoch(1)].len() as u64) };
    let history = site.history(&site.disks[0]).await;
    assert!(history.span_of(Epoch(1)).unwrap().through < last.seq, "a fork has cut it off");
    let pin = pin(&site.disks[0], last, u64::MAX / 4);
    site.vault.vault.put_object(&names::pin(pin.pin), &pin).await.unwrap();
    for _ in 0..5 {
        site.once().await.unwrap();
    }
    let history = site.history(&site.disks[0]).await;
    assert!(history.rows.iter().all(|row| row.presence == Presence::Here), "whoever reads it needs some of that");
}

#[tokio::test(start_paused = true)]
async fn a_pin_that_appears_while_a_run_is_under_way_ends_its_deletions() {
    let site = slow_site().await;
    let mut kept = marked(&site).await;
    let point = unkept(&site, &kept).await;
    let pin = pin(&site.disks[0], point, u64::MAX / 4);
    let key = site.vault.vault.catalog_key().unwrap();
    let bytes = crate::vault::objects::encode(key, &names::pin(pin.pin), &pin).unwrap();
    let text: &'static str = String::from_utf8(bytes).unwrap().leak();
    site.wait(7 * HOUR);
    // With the claim of the first lane, long after the run has read the pins.
    let (inner, path) = (Arc::clone(&site.store), names::pin(pin.pin));
    let mut claims = 0;
    site.store.plan(move |operation, at| {
        claims += usize::from(operation == "put" && at.as_ref().starts_with("m/c/"));
        if claims == 2 {
            let put = futures_util::FutureExt::now_or_never(inner.inner_put(&path, text));
            assert!(put.is_some(), "memory waits for nothing");
        }
        Fate::Good
    });
    let report = site.once().await.unwrap();
    assert_eq!(report.deleted.batches, 0, "{report:?}");
    site.store.plan(|_, _| Fate::Good);
    kept[0].insert(point);
    assert!(site.image(&site.disks[0], point).await == Some(site.disks[0].image_at(point)));
    site.wait(HOUR);
    site.once().await.unwrap();
    site.check(&kept).await;
}

// 10. Points of a group are thinned together.

async fn groups(site: &Site, disk: usize) -> BTreeSet<Id128> {
    points::list(&site.history(&site.disks[disk]).await).iter().filter_map(|point| point.group).collect()
}

#[tokio::test(start_paused = true)]
async fn what_one_disk_keeps_of_a_groups_point_the_others_keep_too() {
    let group = |round: u64| Id128([round as u8 + 1; 16]);
    let mut disks: Vec<ModelDisk> = ["sda", "sdb"].map(|name| ModelDisk::named(name, 8 << 10)).into();
    // The second disk's clock is a quarter of an hour ahead, so that its hours begin elsewhere; and it has points of its own.
    disks[1].wait(900);
    for disk in &mut disks {
        disk.barrier(BarrierKind::SyncEnd, "");
    }
    for round in 0..60_u64 {
        for (number, disk) in disks.iter_mut().enumerate() {
            disk.wait(1200);
            disk.write(round % 2 * 4096, vec![round as u8 | 1; 4096]);
            if number == 1 {
                disk.barrier(BarrierKind::Crash, "");
                disk.write(round % 2 * 4096, vec![round as u8 | 2; 4096]);
            }
            disk.group_barrier(BarrierKind::Crash, group(round));
        }
    }
    let now = disks[0].records[&Epoch(1)].last().unwrap().head.label;
    let mut site = Site::later(disks, 1, 1, 1000).await;
    site.policies.default = Policy { hours: Term::Forever, app: NONE, ..app_points() };
    let plan = site.plan(now).await;
    assert!(plan.disks.iter().any(|disk| disk.reasons.contains_key(&Reason::Group)), "{:?}", plan.disks);
    let kept_alone = site.kept_of_all().await;
    let hourly: BTreeSet<Id128> = {
        let of = points::list(&site.history(&site.disks[0]).await);
        of.iter().filter(|point| kept_alone[0].contains(&point.id)).filter_map(|point| point.group).collect()
    };
    site.settle().await;
    for disk in 0..2 {
        assert!(
            hourly.is_subset(&groups(&site, disk).await),
            "disk {disk} lost points of groups that the first one keeps"
        );
    }
    assert!(groups(&site, 0).await.len() < 50, "and the rest is thinned");
    site.check(&kept_alone).await;
}

// 11. A plan tells which points go and when, and a manifest that cannot be read is its lane's matter.

#[tokio::test(start_paused = true)]
async fn a_plan_tells_exactly_which_points_go_and_when() {
    let site = slow_site().await;
    let all = [all_points(&site, 0).await, all_points(&site, 1).await];
    let going = |report: &crate::keeper::report::Report, when: When| {
        let of = |disk: &crate::keeper::judge::DiskVerdict| {
            let going = disk.going.as_ref().unwrap();
            assert_eq!(going.count, going.points.len() as u64);
            let going = going.points.iter().filter(|point| point.when == when);
            going.map(|point| point.id.parse::<PointId>().unwrap()).collect::<BTreeSet<_>>()
        };
        report.disks.iter().map(of).collect::<Vec<_>>()
    };
    let before = site.plan(site.clock.wall()).await;
    let foretold = going(&before, When::Unmarked);
    assert!(foretold.iter().any(|points| !points.is_empty()));
    marked(&site).await;
    assert_eq!(going(&site.plan(site.clock.wall()).await, When::Marked), foretold);
    site.wait(7 * HOUR);
    let due = site.plan(site.clock.wall()).await;
    assert_eq!(going(&due, When::NextRun), foretold);
    assert!(site.once().await.unwrap().deleted.batches > 0);
    for (disk, (all, foretold)) in all.iter().zip(&foretold).enumerate() {
        let left: BTreeSet<PointId> = all.difference(foretold).copied().collect();
        assert_eq!(all_points(&site, disk).await, left);
    }
}

#[tokio::test(start_paused = true)]
async fn a_manifest_that_cannot_be_read_is_told_and_other_lanes_go_on() {
    let mut site = Site::new(vec![busy("sda", 0)], 3, 2, 100).await;
    let bad = site.vault.lane.id();
    let other = busy("sdb", 64);
    site.vault.turn().await;
    site.vault.fill(&[&other], 3, 1).await;
    site.vault.end().await;
    site.disks.push(other);
    site.work.delete_after = 6 * HOUR;
    site.wait(12 * HOUR);
    let kept = site.kept_of_all().await;
    assert_eq!(site.once().await.unwrap().lanes_sealed, 2);
    assert!(site.once().await.unwrap().newly_marked.batches > 0);
    site.store.inner_put(&names::manifest(bad, 900), "{}\n").await;
    let before = site.batches().await;
    site.wait(7 * HOUR);
    let report = site.once().await.unwrap();
    assert!(report.lanes_unread == 1 && report.is_held_back() && report.deleted.batches > 0, "{report:?}");
    assert!(report.notes.iter().any(|note| note.contains(&bad.to_string())), "{:?}", report.notes);
    let after = site.batches().await;
    let of_bad = |batches: &BTreeSet<(Id128, u64)>| batches.iter().filter(|(lane, _)| *lane == bad).count();
    assert_eq!(of_bad(&after), of_bad(&before));
    site.check_images(&kept).await;
}
