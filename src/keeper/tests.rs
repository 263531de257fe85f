//! The keeper against a model: kept points stay right whatever happens to it, the rest goes, and what is in use stays.

mod fold;
mod harm;
mod moving;
mod replay;
mod rotation;
mod shred;
mod site;
mod week;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proptest::prelude::*;

use self::site::{NONE, Site, app_points, block_on, busy, busy_site};
use super::policy::{Policy, Term};
use crate::flow::DrainTrigger;
use crate::restore::history::Presence;
use crate::restore::tests::{self as model, ModelDisk};
use crate::restore::verify::sample::Quota;
use crate::restore::verify::{Level, VerifyOptions, verify};
use crate::restore::{fetch, head, points};
use crate::types::{BarrierKind, DiskId, Epoch, Id128, Micros, PointId, Seq};
use crate::vault::names;
use crate::vault::objects::PinObject;
use crate::vault::testing::{Fate, FaultStore};

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
    die_at_any_step(Duration::ZERO).await;
}

/// The same by the hours of life: between two runs marks ripen.
#[tokio::test(start_paused = true)]
async fn a_keeper_that_dies_at_any_step_while_marks_ripen_leaves_every_kept_point_right() {
    die_at_any_step(Duration::from_secs(7 * 3600)).await;
}

async fn die_at_any_step(between: Duration) {
    let mut steps = 0;
    for step in 0.. {
        let mut died = false;
        for after in [false, true] {
            let mut site = busy_site().await;
            if !between.is_zero() {
                site.work.delete_after = between - Duration::from_secs(3600);
                site.wait(2 * between);
            }
            let kept = site.kept_of_all().await;
            let needed = site.needed(&kept).await;
            at_step(&site.store, step, move |first| if first && after { Fate::AnswerLost } else { Fate::Status(403) });
            for _ in 0..5 {
                died = site.once().await.is_err();
                if died {
                    break;
                }
                site.wait(between);
            }
            site.store.plan(|_, _| Fate::Good);
            site.check(&kept).await;
            site.settle_each(between).await;
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

/// A keeper is asked to stop at every third step, ends after it with nothing of its own left behind, and another one goes on.
#[tokio::test(start_paused = true)]
async fn a_keeper_that_is_asked_to_stop_ends_after_its_step_and_another_goes_on() {
    let mut stopped = 0;
    for step in (0..60).step_by(3) {
        let site = busy_site().await;
        let kept = site.kept_of_all().await;
        let needed = site.needed(&kept).await;
        let (trigger, stop) = DrainTrigger::new();
        let asked = trigger.clone();
        let steps = at_step(&site.store, step, move |_| {
            asked.start();
            Fate::Good
        });
        for _ in 0..4 {
            if site.once_until(&stop).await.unwrap().stopped {
                stopped += usize::from(steps.load(Ordering::Relaxed) < step + 40);
                break;
            }
        }
        site.store.plan(|_, _| Fate::Good);
        let claims = site.vault.vault.store().list(Some(&names::claims())).await.unwrap();
        assert!(claims.is_empty(), "{claims:?}");
        site.check(&kept).await;
        site.settle().await;
        site.check(&kept).await;
        assert_eq!(site.batches().await, needed, "after step {step}");
        drop(trigger);
    }
    assert!(stopped > 10, "{stopped} were stopped under way");
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
    let plan = site.plan(site.clock.wall()).await;
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
    site.wait(crate::restore::pin::PIN_FOR + Duration::from_secs(60));
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
    let kept = site.kept_of_all().await;
    assert_eq!(kept[0], all, "whatever a manifest says of it, it stands there");
    assert!(site.once().await.unwrap().taken_back > 0);
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
    site.check_images(&[BTreeSet::new(), kept[1].clone()]).await;
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
    assert!(report.lanes_waiting > 0 && report.lanes_in_use > 0 && report.newly_marked.batches == 0, "{report:?}");
    assert_eq!(site.batches().await, before);
    let lanes = site.vault.vault.lanes().await.unwrap();
    assert!(lanes.iter().all(|lane| lane.sealed.is_none() || lane.ended), "a lane in use was sealed");
}

#[tokio::test(start_paused = true)]
async fn a_small_budget_only_takes_more_runs() {
    let mut site = busy_site().await;
    site.work.requests = 32;
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
    site.check_images(&kept).await;
    for disk in &site.disks {
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
    let options = VerifyOptions { level: Level::Data, sample: Quota::All, draw: None, disk: None, limits };
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
    let mut site = Site::later(vec![disk], 2, 1, 60).await;
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
    let plan = site.plan(now).await;
    let stays = plan.stored.bytes - plan.unneeded.bytes;
    let live: u64 =
        site.disks.iter().map(|disk| disk.image_at(disk.head()).iter().filter(|byte| **byte > 0).count() as u64).sum();
    println!("stored {} stays {stays} needed {} live {live}", plan.stored.bytes, plan.needed_bytes);
    assert!(stays < plan.stored.bytes / 3, "{stays} of {} bytes stay", plan.stored.bytes);
}
