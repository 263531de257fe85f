//! Messages that are moved out of sparse batches: whatever happens on the way, what is kept is right, and in the end less is stored.

use object_store::path::Path;

use super::*;
use crate::keeper::config::Work;
use crate::keeper::report::Report;
use crate::restore::source;
use crate::restore::write::{RestoreError, RestoreOptions, restore};
use crate::restore::{damage::Damage, plan::Plan, verify};
use crate::vault::batch::{BatchBuilder, BatchHeader};
use crate::vault::index::{MessageMeta, Origin};
use crate::vault::lane::Lane;
use crate::vault::objects::LaneEndObject;
use crate::vault::reader::{Catalog, CatalogBatch, Finding, Problem, Want};
use crate::vault::rng::Rng;

const HOUR: Duration = Duration::from_secs(3600);
const SLOTS: u64 = 12;

/// Bytes that do not pack, as most data that is worth keeping.
pub(super) fn noise(chance: &mut Rng, count: usize) -> Vec<u8> {
    (0..count).map(|_| chance.below(256) as u8).collect()
}

/// Two disks that share every batch and are written at random, with an app point now and then.
fn scattered(rounds: u64) -> Vec<ModelDisk> {
    let mut chance = Rng::seeded(23);
    let mut disks: Vec<ModelDisk> = ["sda", "sdb"].map(|name| ModelDisk::named(name, SLOTS << 12)).into();
    for round in 0..rounds {
        for disk in &mut disks {
            for _ in 0..3 {
                disk.write(chance.below(SLOTS) << 12, noise(&mut chance, 700));
            }
            let kind = match round {
                0 => BarrierKind::SyncEnd,
                _ if round % 13 == 5 => BarrierKind::App,
                _ => BarrierKind::Crash,
            };
            disk.barrier(kind, "");
        }
    }
    disks
}

/// The two disks' messages, four records each, in batches of six, under a keeper that moves.
pub(super) async fn scattered_site() -> Site {
    let mut site = Site::new(scattered(60), 4, 6, 4).await;
    site.work = Work { moves: true, sparse: 75, ..site.work };
    site
}

async fn bytes(site: &Site) -> u64 {
    let listed = site.vault.vault.store().list(Some(&names::all_batches())).await.unwrap();
    listed.iter().map(|one| one.size_bytes).sum()
}

/// What stays without any moving.
async fn still() -> u64 {
    let mut site = scattered_site().await;
    site.work.moves = false;
    site.settle().await;
    bytes(&site).await
}

async fn verified(site: &Site) -> verify::Report {
    let limits = fetch::FetchLimits { memory_bytes: 1 << 20, jobs: 2, workers: 1 };
    let options = VerifyOptions { level: Level::Data, sample: Quota::All, draw: None, disk: None, limits };
    verify(&site.vault.vault, Some(&site.vault.identity), &options, Arc::default()).await.unwrap()
}

/// How many copies of moved messages can be read.
async fn copies(site: &Site) -> usize {
    let catalog = source::load(&site.vault.vault, &Want::default()).await.unwrap();
    let batches = catalog.batches.iter().filter(|batch| batch.present);
    let messages = batches.flat_map(|batch| &batch.index.disks).flat_map(|part| &part.messages);
    messages.filter(|message| message.origin.is_some()).count()
}

#[tokio::test(start_paused = true)]
async fn what_is_needed_is_moved_out_of_sparse_batches_and_everything_kept_is_as_it_was() {
    let (site, still) = (scattered_site().await, still().await);
    let kept = site.kept_of_all().await;
    let before = site.plan(site.clock.wall()).await;
    assert!(before.sparse.batches > 0 && before.moving_saves_bytes > 0, "{before:?}");
    let objects = site.vault.vault.store().list(None).await.unwrap().len();
    site.plan(site.clock.wall()).await;
    assert_eq!(site.vault.vault.store().list(None).await.unwrap().len(), objects, "a plan moves nothing");
    let mut reports: Vec<Report> = Vec::new();
    for _ in 0..8 {
        reports.push(site.once().await.unwrap());
        site.check(&kept).await;
    }
    site.settle().await;
    site.check(&kept).await;
    assert!(reports.iter().any(|report| report.moved.batches > 0 && report.emptied_batches > 0), "{reports:?}");
    let moved = bytes(&site).await;
    assert!(moved < still, "{moved} bytes stay, without moving {still}");
    let after = site.plan(site.clock.wall()).await;
    assert_eq!(after.needed_bytes, before.needed_bytes, "a message counts once, wherever it stands");
    let messages: u64 = after.stored.bytes;
    println!("{messages} bytes stored for {} needed; without moving {still}", after.needed_bytes);
    let report = verified(&site).await;
    assert_eq!((report.outcome, report.late.len()), ("ok", 0), "{:?}", report.damage);
    assert!(copies(&site).await > 0);
}

#[tokio::test(start_paused = true)]
async fn without_being_asked_a_keeper_moves_nothing_and_tells_what_it_would_save() {
    let mut site = scattered_site().await;
    site.work.moves = false;
    assert!(site.plan(site.clock.wall()).await.moving_saves_bytes > 0);
    site.settle().await;
    assert_eq!(copies(&site).await, 0);
}

/// The keeper dies at every step that changes the vault, once before it and once after it, and another one goes on.
#[tokio::test(start_paused = true)]
async fn a_keeper_that_dies_at_any_step_of_a_move_leaves_every_kept_point_right_and_another_goes_on() {
    let still = still().await;
    let (mut steps, mut unended) = (0, 0);
    for step in 0.. {
        let mut died = false;
        for after in [false, true] {
            let site = scattered_site().await;
            let kept = site.kept_of_all().await;
            at_step(&site.store, step, move |first| if first && after { Fate::AnswerLost } else { Fate::Status(403) });
            for _ in 0..5 {
                died = site.once().await.is_err();
                if died {
                    break;
                }
            }
            site.store.plan(|_, _| Fate::Good);
            site.check_images(&kept).await;
            let lanes = site.vault.vault.lanes().await.unwrap();
            for lane in lanes.iter().filter(|lane| !lane.ended) {
                unended += usize::from(site.vault.vault.lane(lane.lane).await.unwrap().moved);
            }
            site.settle().await;
            site.check(&kept).await;
            let moved = bytes(&site).await;
            assert!(moved < still, "after step {step}: {moved} bytes stay, without moving {still}");
        }
        if !died {
            steps = step;
            break;
        }
    }
    assert!(steps > 40 && unended > 5, "{steps} steps, {unended} lanes without an end");
}

#[tokio::test(start_paused = true)]
async fn several_keepers_that_move_at_once_delete_nothing_that_is_needed() {
    for claim_stale in [Duration::ZERO, Duration::from_secs(600)] {
        let (mut site, still) = (scattered_site().await, still().await);
        site.work.claim_stale = claim_stale;
        let kept = site.kept_of_all().await;
        for _ in 0..6 {
            let (a, b) = tokio::join!(site.once(), site.once());
            assert!((a.is_ok() && b.is_ok()) || claim_stale.is_zero(), "{a:?} {b:?}");
            site.check_images(&kept).await;
        }
        site.settle().await;
        site.check(&kept).await;
        assert!(bytes(&site).await < still);
    }
}

/// By the hours of life: a copy counts when it is as old as `delete_after`, and then what it stands for has been marked for as long.
#[tokio::test(start_paused = true)]
async fn a_copy_ripens_before_anything_rests_on_it_and_a_reader_of_before_finds_what_it_knows() {
    let mut site = scattered_site().await;
    (site.work.delete_after, site.work.seal_grace) = (6 * HOUR, Duration::from_secs(600));
    site.wait(12 * HOUR);
    let kept = site.kept_of_all().await;
    let (mut moved_at, mut deleted_at, mut now) = (None, None, 0);
    while deleted_at.is_none() && now < 60 {
        let before = site.batches().await;
        let (known, history) = site.vault.open(&site.disks[0].id).await;
        let report = site.once().await.unwrap();
        if moved_at.is_none() && report.moved.batches > 0 {
            moved_at = Some(now);
        }
        // The first batch of which something was needed when the copies appeared.
        let gone: BTreeSet<_> = before.difference(&site.batches().await).copied().collect();
        let needed_then = history.rows.iter().any(|row| {
            let path = known.path(row.object).as_ref();
            let at = source::batch_of(path).unwrap();
            let again = known.elsewhere(row.object, &site.disks[0].id, &row.message).next().is_some();
            gone.contains(&at) && row.message.origin.is_none() && again
        });
        if needed_then {
            deleted_at = Some(now);
        }
        site.check_images(&kept).await;
        site.wait(HOUR);
        now += 1;
    }
    let (moved_at, deleted_at) = (moved_at.expect("moved"), deleted_at.expect("deleted"));
    assert!((7..=10).contains(&(deleted_at - moved_at)), "moved at {moved_at} h, deleted at {deleted_at} h");
    site.check(&kept).await;
}

/// By the hours of life, up to the run that marks what was copied an hour before.
async fn ripening_site() -> Site {
    let mut site = scattered_site().await;
    (site.work.delete_after, site.work.seal_grace) = (6 * HOUR, Duration::from_secs(600));
    site.wait(12 * HOUR);
    while copies(&site).await == 0 {
        site.once().await.unwrap();
        site.wait(HOUR);
    }
    assert!(site.once().await.unwrap().newly_marked.batches > 0);
    site
}

/// The batches by which a reader who comes now gets a disk's newest image.
async fn planned(site: &Site, disk: &ModelDisk) -> BTreeSet<(Id128, u64)> {
    let catalog = source::load(&site.vault.vault, &Want::disk(&disk.id)).await.unwrap();
    let history = source::history(&catalog, &disk.id, &disk.epochs);
    let plan = Plan::build(&history, disk.head()).unwrap();
    let indexes = plan.reads.iter().map(|read| &catalog.batches[read.object as usize].index);
    indexes.map(|index| (index.lane, index.n)).collect()
}

#[tokio::test(start_paused = true)]
async fn what_was_marked_while_its_copies_ripen_stays_if_a_pin_comes_or_the_copies_are_lost() {
    let site = ripening_site().await;
    let kept = site.kept_of_all().await;
    let planned = planned(&site, &site.disks[0]).await;
    let pin = pin(&site.disks[0], site.disks[0].head(), u64::MAX / 4);
    site.vault.vault.put_object(&names::pin(pin.pin), &pin).await.unwrap();
    assert!(site.once().await.unwrap().taken_back > 0);
    for _ in 0..20 {
        site.wait(HOUR);
        site.once().await.unwrap();
        assert!(planned.is_subset(&site.batches().await), "somebody reads by them");
    }
    site.vault.vault.store().delete(&names::pin(pin.pin)).await.unwrap();
    for _ in 0..20 {
        site.wait(HOUR);
        site.once().await.unwrap();
    }
    assert!(!planned.is_subset(&site.batches().await), "without the pin they go");
    site.check(&kept).await;

    let site = ripening_site().await;
    let kept = site.kept_of_all().await;
    for (lane, n) in site.batches().await {
        if site.vault.vault.lane(lane).await.unwrap().moved {
            site.vault.tamper(&names::batch(lane, n), |_| None).await;
        }
    }
    assert!(site.once().await.unwrap().taken_back > 0);
    for _ in 0..20 {
        site.check_images(&kept).await;
        site.wait(HOUR);
        site.once().await.unwrap();
    }
    site.check_images(&kept).await;
}

#[tokio::test(start_paused = true)]
async fn a_restore_whose_batches_go_under_its_hands_reads_on_where_the_messages_stand_now() {
    let site = scattered_site().await;
    let disk = &site.disks[0];
    while copies(&site).await == 0 {
        site.once().await.unwrap();
    }
    let point = disk.head();
    let (source, history) = site.vault.open(&disk.id).await;
    let plan = Plan::build(&history, point).unwrap();
    let planned: BTreeSet<_> = plan.reads.iter().map(|read| source.path(read.object).clone()).collect();
    for _ in 0..3 {
        site.once().await.unwrap();
    }
    let mut gone = 0;
    for path in &planned {
        gone += usize::from(!site.vault.vault.store().exists(path).await.unwrap());
    }
    assert!(gone > 0, "nothing of what was planned is gone");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.img");
    let options = RestoreOptions::default();
    restore(&source, &disk.id, history, &plan, &path, &options, Arc::default()).await.unwrap();
    assert!(std::fs::read(&path).unwrap() == disk.image_at(point));
}

/// What a batch holds may rot while the copies of it ripen.
#[tokio::test(start_paused = true)]
async fn a_message_that_does_not_open_where_it_was_planned_is_read_where_else_it_stands() {
    let site = ripening_site().await;
    let disk = &site.disks[0];
    let (source, history) = site.vault.open(&disk.id).await;
    let plan = Plan::build(&history, disk.head()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.img");
    let options = RestoreOptions { force: true, ..RestoreOptions::default() };
    let restored = || restore(&source, &disk.id, Arc::clone(&history), &plan, &path, &options, Arc::default());
    let alter = async |path: &Path, at: u64| {
        let flip = |mut bytes: Vec<u8>| {
            bytes[at as usize] ^= 1;
            Some(bytes)
        };
        site.vault.tamper(path, flip).await;
    };
    let in_the_middle = |offset_bytes: u64, message: &MessageMeta| offset_bytes + u64::from(message.stored_bytes) / 2;
    let (mut altered, mut copies) = (Vec::new(), BTreeSet::new());
    for read in &plan.reads {
        for row in read.messages.iter().map(|message| message.row) {
            let message = &history.rows[row].message;
            let places: Vec<_> = source.elsewhere(read.object, &disk.id, message).collect();
            if places.is_empty() {
                continue;
            }
            alter(source.path(read.object), in_the_middle(message.offset_bytes, message)).await;
            copies.extend(places.into_iter().map(|(path, at)| (path.clone(), in_the_middle(at, message))));
            altered.push(message.first);
        }
    }
    assert!(!altered.is_empty(), "nothing that is planned stands elsewhere");
    restored().await.unwrap();
    assert!(std::fs::read(&path).unwrap() == disk.image_at(disk.head()));
    // Where the copies are no better, each message is told once, by the place that was planned.
    for (path, at) in &copies {
        alter(path, *at).await;
    }
    let error = restored().await.unwrap_err();
    let RestoreError::Damaged { count, found, .. } = &error else { panic!("{error:?}") };
    let told: BTreeSet<_> = found.iter().filter_map(|one| Some(one.records.as_ref()?.first)).collect();
    assert_eq!((*count, told), (altered.len(), altered.into_iter().collect()), "{found:?}");
}

#[tokio::test(start_paused = true)]
async fn whoever_has_pinned_a_disk_finds_each_message_where_it_was_and_a_held_disk_is_not_moved() {
    let mut site = scattered_site().await;
    while copies(&site).await == 0 {
        site.once().await.unwrap();
    }
    let before = site.batches().await;
    let pin = pin(&site.disks[0], site.disks[0].head(), u64::MAX / 4);
    site.vault.vault.put_object(&names::pin(pin.pin), &pin).await.unwrap();
    let planned = planned(&site, &site.disks[0]).await;
    for _ in 0..4 {
        site.once().await.unwrap();
    }
    let after = site.batches().await;
    assert!(planned.is_subset(&after), "{:?} are gone", planned.difference(&after).collect::<Vec<_>>());
    site.vault.vault.store().delete(&names::pin(pin.pin)).await.unwrap();
    site.settle().await;
    assert!(before.difference(&site.batches().await).any(|one| planned.contains(one)), "without the pin they go");

    site = scattered_site().await;
    let held = Policy { hold: true, ..app_points() };
    site.policies.disks.insert(site.disks[0].id.clone(), held);
    let before = site.batches().await;
    site.settle().await;
    assert_eq!((site.batches().await, copies(&site).await), (before, 0), "each batch has something of the held disk");
}

/// Whoever has the catalog key can write a lane of moved messages that holds nothing of what it names.
#[tokio::test(start_paused = true)]
async fn a_forged_copy_lets_nothing_go_and_hides_nothing() {
    forged_copy(Duration::ZERO).await;
    // Also while it ripens.
    forged_copy(6 * HOUR).await;
}

async fn forged_copy(delete_after: Duration) {
    let mut site = scattered_site().await;
    (site.work.moves, site.work.delete_after) = (false, delete_after);
    let kept = site.kept_of_all().await;
    let vault = &site.vault.vault;
    let catalog = source::load(vault, &Want::default()).await.unwrap();
    let (lane, _) = Lane::register_moved(vault, Micros(1)).await.unwrap();
    for disk in &site.disks {
        vault.create_route(&disk.id, lane).await.unwrap();
    }
    let mut builder = BatchBuilder::new(BatchHeader { vault: vault.id(), lane, n: 1 });
    for batch in &catalog.batches {
        let messages =
            batch.index.disks.iter().flat_map(|part| part.messages.iter().map(|message| (&part.disk, message)));
        for (disk, message) in messages {
            let origin = Some(Origin { lane: batch.index.lane, n: batch.index.n, put_by: Micros(1) });
            let junk = vec![7; message.stored_bytes as usize];
            builder.push(disk, MessageMeta { origin, ..message.clone() }, junk.into());
        }
    }
    let path = names::batch(lane, 1);
    let forged = builder.finish(vault.catalog_key().unwrap(), path.as_ref(), 0).unwrap();
    vault.put_bytes(&path, forged.body.into()).await.unwrap();
    vault.put_object(&names::lane_end(lane), &LaneEndObject { lane, last_batch: 1 }).await.unwrap();
    let mut notes = 0;
    for run in 0..20 {
        notes += site.once().await.unwrap().notes.iter().filter(|note| note.contains("other bytes")).count();
        site.check_images(&kept).await;
        assert!(run < 4 || notes > 0, "nobody looked");
        site.wait(delete_after / 6);
    }
    let report = verified(&site).await;
    let of_lane = |one: &Damage| one.object.as_ref().is_some_and(|object| object.contains(&lane.to_string()));
    assert!(!report.damage.is_empty() && report.damage.iter().all(of_lane), "{:?}", report.damage);
}

/// Another disk's route leads there, so the keeper sees the copies; a restore of this disk does not.
#[tokio::test(start_paused = true)]
async fn copies_in_a_lane_to_which_the_disk_has_no_route_stand_for_nothing() {
    let site = scattered_site().await;
    let vault = &site.vault.vault;
    let kept = site.kept_of_all().await;
    while copies(&site).await == 0 {
        site.wait(site.work.delete_after);
        site.once().await.unwrap();
    }
    let disk = &site.disks[0].id;
    for lane in vault.routes(disk).await.unwrap() {
        if vault.lane(lane).await.unwrap().moved {
            vault.store().delete(&names::route(disk, lane)).await.unwrap();
        }
    }
    for _ in 0..20 {
        site.wait(site.work.delete_after / 2);
        site.once().await.unwrap();
        site.check_images(&kept).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_moved_is_lost_by_name_if_the_lane_in_which_it_was_sealed_has_no_key_any_more() {
    let site = scattered_site().await;
    site.settle().await;
    let disk = &site.disks[0].id;
    let load = || async { source::load(&site.vault.vault, &Want::disk(disk)).await.unwrap() };
    let catalog = load().await;
    let messages = catalog.batches.iter().filter(|batch| batch.present).flat_map(|batch| &batch.index.disks);
    let origin = messages.flat_map(|part| &part.messages).find_map(|message| message.origin).unwrap();
    let loaded = load().await;
    let (source, _) = source::Source::open(&site.vault.vault, &site.vault.identity, &loaded).unwrap();
    let place = |catalog: &Catalog| {
        let has = |batch: &CatalogBatch| {
            let mut messages = batch.index.disks.iter().flat_map(|part| &part.messages);
            messages.find(|message| message.origin == Some(origin)).cloned()
        };
        let mut batches = catalog.batches.iter().enumerate().filter(|(_, batch)| batch.present);
        batches.find_map(|(object, batch)| Some((object as u32, has(batch)?))).unwrap()
    };
    let (object, message) = place(&loaded);
    source.make_ready(object, disk, &message).await.unwrap();
    let sealed = source.sealed(object, disk, &message);
    assert!(sealed.key.is_ok() && sealed.object == names::batch_name(origin.lane, origin.n));
    // The disk's key stands in its route to that lane, and nowhere else. The lane's key is found without it.
    site.vault.vault.store().delete(&names::route(disk, origin.lane)).await.unwrap();
    let loaded = load().await;
    assert!(loaded.findings.is_empty() && loaded.origins.iter().any(|object| object.lane == origin.lane));
    let (source, _) = source::Source::open(&site.vault.vault, &site.vault.identity, &loaded).unwrap();
    let (object, message) = place(&loaded);
    source.make_ready(object, disk, &message).await.unwrap();
    let lost = source.sealed(object, disk, &message).key.unwrap_err();
    assert!(lost.contains(names::route(disk, origin.lane).as_ref()), "{lost}");
    site.vault.vault.store().delete(&names::lane(origin.lane)).await.unwrap();
    let loaded = load().await;
    let lost = |finding: &&Finding| finding.problem == Problem::LaneKeyMissing;
    let named: Vec<_> = loaded.findings.iter().filter(lost).map(|finding| finding.object.clone()).collect();
    assert_eq!(named, [names::lane(origin.lane).to_string()]);
    let report = verified(&site).await;
    assert!(
        report.damage.iter().any(|one| one.what.contains("key of the lane in which it was sealed")),
        "{:?}",
        report.damage
    );
}

#[tokio::test(start_paused = true)]
async fn heads_are_those_before_a_move_and_what_is_moved_grows_no_younger() {
    let mut site = Site::later(scattered(60), 4, 6, 4).await;
    site.work = Work { moves: true, sparse: 75, ..site.work };
    let disk = site.disks[0].clone();
    let heads = |site: &Site| {
        let (vault, disk) = (site.vault.vault.clone(), disk.clone());
        async move {
            let mut out = Vec::new();
            for seq in [0, 5, 100] {
                let floor = Some((Seq(seq), disk.chain_at(PointId { epoch: Epoch(1), seq: Seq(seq) })));
                out.push(head::head(&vault, &disk.id, Epoch(1), floor).await.unwrap());
            }
            out.push(head::head(&vault, &disk.id, Epoch(1), None).await.unwrap());
            out
        }
    };
    let before = heads(&site).await;
    site.wait(24 * HOUR);
    site.settle().await;
    assert!(copies(&site).await > 0);
    assert_eq!(heads(&site).await, before);
    // What was vaulted is two days old then, and the copies of it are one.
    site.wait(24 * HOUR);
    site.policies.default = Policy { every: Term::For(60 * HOUR), app: NONE, ..app_points() };
    let plan = site.plan(site.clock.wall()).await;
    let (kept, points) = (plan.disks[0].kept, plan.disks[0].points);
    assert_eq!(kept, points, "all are younger than that");
    site.policies.default = Policy { every: Term::For(30 * HOUR), app: NONE, ..app_points() };
    let plan = site.plan(site.clock.wall()).await;
    assert_eq!(plan.disks[0].kept, 1, "the newest alone: {:?}", plan.disks[0]);
}
