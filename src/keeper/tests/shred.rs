//! Shredding one disk: nothing opens it any more, others are whole, a crash leaves no half-way, and a keeper needs nothing of it.

use super::moving::scattered_site;
use super::*;
use crate::flow::{Clock, SystemClock};
use crate::keeper::shred::{Older, ShredError, Shredded, Wish, shred};
use crate::keys::{DiskSecret, LaneKey, MessageKey};
use crate::pipeline::message::{self, MessageContext};
use crate::restore::pin;
use crate::restore::source::{self, Source};
use crate::vault::objects::ShredObject;
use crate::vault::reader::Want;

const HOUR: u64 = 3600 * 1_000_000;

/// Of a disk, when no lane is in use any more.
fn wish(disk: &DiskId) -> Wish {
    let now = Micros(SystemClock::new().wall().0 + 30 * HOUR);
    Wish { disk: disk.clone(), reason: "end of contract".into(), leave_older: false, now }
}

async fn shred_now(site: &Site, disk: &DiskId) -> Result<Shredded, ShredError> {
    shred(&site.vault.vault, &wish(disk)).await
}

/// How many routes of a disk there are, and how many of them have a key.
async fn routes(site: &Site, disk: &DiskId) -> (usize, usize) {
    let vault = &site.vault.vault;
    let (lanes, mut keyed) = (vault.routes(disk).await.unwrap(), 0);
    for lane in &lanes {
        keyed += usize::from(vault.route(disk, *lane).await.unwrap().unwrap().sealed_key.is_some());
    }
    (lanes.len(), keyed)
}

/// Everything that somebody could try who has the identity and all that stands in the vault: the keys of a lane in every way in which
/// messages were ever sealed, and the secrets of all disks in it whose keys are there.
async fn all_keys(site: &Site, lane: Id128, disks: &[DiskId]) -> Vec<MessageKey> {
    let (vault, identity) = (&site.vault.vault, &site.vault.identity);
    let key = vault.open_lane_key(&vault.lane(lane).await.unwrap(), identity).unwrap();
    let mut keys: Vec<MessageKey> =
        vec![LaneKey::from_secret(*key.expose()).into(), DiskSecret::from_secret(*key.expose()).into()];
    for disk in disks {
        let route = vault.route(disk, lane).await.unwrap();
        let Some(sealed) = route.and_then(|route| route.sealed_key) else { continue };
        keys.push(DiskSecret::new(&key, &sealed.open(&key, vault.id(), disk, lane).unwrap()).into());
    }
    keys
}

/// How many messages of a disk stand there, and how many of them somebody opens who tries everything.
async fn opened(site: &Site, disk: &DiskId) -> (usize, usize) {
    let vault = &site.vault.vault;
    let (catalog, disks) = (source::load(vault, &Want::default()).await.unwrap(), vault.disks().await.unwrap());
    let (mut there, mut open) = (0, 0);
    for batch in catalog.batches.iter().filter(|batch| batch.present) {
        let bytes = vault.store().get(&batch.object, 1 << 30).await.unwrap().unwrap();
        for message in batch.index.disks.iter().filter(|part| part.disk == *disk).flat_map(|part| &part.messages) {
            let (lane, n) = batch.index.sealed_in(message);
            let object = names::batch_name(lane, n);
            let context = MessageContext {
                vault: vault.id(),
                object: &object,
                disk,
                epoch: message.epoch,
                first: message.first,
                last: message.last,
                codec: message.codec,
                plain_bytes: message.plain_bytes,
            };
            let start = message.offset_bytes as usize;
            let sealed = &bytes[start..start + message.stored_bytes as usize];
            let keys = all_keys(site, lane, &disks).await;
            there += 1;
            let opens = |key: &MessageKey| message::open(key, &context, sealed, &mut Vec::new()).is_ok();
            open += usize::from(keys.iter().any(opens));
        }
    }
    (there, open)
}

#[tokio::test(start_paused = true)]
async fn a_shredded_disk_is_opened_by_nothing_and_the_other_in_its_batches_is_whole() {
    let mut site = busy_site().await;
    let (one, other) = (site.disks[0].id.clone(), site.disks[1].id.clone());
    let (there, open) = opened(&site, &one).await;
    assert!(there > 0 && open == there, "{open} of {there}");
    let (count, keyed) = routes(&site, &one).await;
    assert!(count > 2 && keyed == count);
    let done = shred_now(&site, &one).await.unwrap();
    assert_eq!((done.destroyed, done.routes), (count as u64, count as u64));
    assert_eq!(
        (done.older, done.word.lanes.len(), done.word.reason.as_str()),
        (Older::default(), count, "end of contract")
    );
    assert_eq!(routes(&site, &one).await, (count, 0));
    assert_eq!(opened(&site, &one).await, (there, 0), "lane keys, and all else that stands there, open nothing of it");
    let (there, open) = opened(&site, &other).await;
    assert!(there > 0 && open == there, "{open} of {there} of the other disk");
    // What a restore would say, if it were not refused before.
    let catalog = source::load(&site.vault.vault, &Want::disk(&one)).await.unwrap();
    let (source, _) = Source::open(&site.vault.vault, &site.vault.identity, &catalog).unwrap();
    let message = &catalog.batches[0].index.disks[0].messages[0];
    source.make_ready(0, &one, message).await.unwrap();
    let why = source.sealed(0, &one, message).key.unwrap_err();
    assert!(why.contains(&format!("d/{one}/r/")) && why.contains("destroyed"), "{why}");
    site.disks.remove(0);
    let kept = site.kept_of_all().await;
    assert!(!kept[0].is_empty());
    site.check(&kept).await;
    // Asked again there is nothing to do, and nothing is said otherwise.
    let again = shred_now(&site, &one).await.unwrap();
    assert_eq!((again.destroyed, &again.word), (0, &done.word));
}

#[tokio::test(start_paused = true)]
async fn a_word_that_nobody_with_the_catalog_key_wrote_holds_up_neither_readers_nor_who_shreds() {
    let site = busy_site().await;
    let (vault, disk) = (&site.vault.vault, site.disks[0].id.clone());
    vault
        .put_bytes(&names::shred(&disk), b"{\"format\":\"tidegate-shred\",\"version\":1}\n".to_vec().into())
        .await
        .unwrap();
    assert_eq!(vault.shred(&disk).await.unwrap(), None);
    let kept = site.kept_of_all().await;
    site.settle().await;
    site.check(&kept).await;
    let done = shred_now(&site, &disk).await.unwrap();
    assert!(done.destroyed > 0);
    assert_eq!(vault.shred(&disk).await.unwrap().unwrap(), done.word);
    assert_eq!(routes(&site, &disk).await.1, 0);
}

#[tokio::test(start_paused = true)]
async fn what_a_keeper_has_moved_of_a_shredded_disk_is_opened_by_nothing_either() {
    let mut site = scattered_site().await;
    site.settle().await;
    let (one, other) = (site.disks[0].id.clone(), site.disks[1].id.clone());
    let catalog = source::load(&site.vault.vault, &Want::disk(&one)).await.unwrap();
    let messages = catalog.batches.iter().flat_map(|batch| &batch.index.disks).flat_map(|part| &part.messages);
    assert!(messages.filter(|message| message.origin.is_some()).count() > 0);
    let (there, open) = opened(&site, &one).await;
    assert!(there > 0 && open == there, "{open} of {there}");
    shred_now(&site, &one).await.unwrap();
    assert_eq!(opened(&site, &one).await, (there, 0));
    let (there, open) = opened(&site, &other).await;
    assert!(there > 0 && open == there);
    site.disks.remove(0);
    let kept = site.kept_of_all().await;
    site.settle().await;
    site.check(&kept).await;
}

/// Whoever shreds dies at every step that changes the vault, once before it and once after it, and asks again.
#[tokio::test(start_paused = true)]
async fn a_shredding_that_dies_at_any_step_is_finished_by_the_next() {
    let mut steps = 0;
    for step in 0.. {
        let mut died = false;
        for after in [false, true] {
            let site = busy_site().await;
            let disk = site.disks[0].id.clone();
            let (count, _) = routes(&site, &disk).await;
            at_step(&site.store, step, move |first| if first && after { Fate::AnswerLost } else { Fate::Status(403) });
            died = shred_now(&site, &disk).await.is_err();
            site.store.plan(|_, _| Fate::Good);
            let done = shred_now(&site, &disk).await.unwrap();
            assert_eq!((done.routes, routes(&site, &disk).await), (count as u64, (count, 0)), "after step {step}");
            assert!(done.word.lanes.len() == count && opened(&site, &disk).await.1 == 0, "after step {step}");
            let (there, open) = opened(&site, &site.disks[1].id).await;
            assert_eq!(open, there, "after step {step}");
        }
        if !died {
            break;
        }
        steps = step;
    }
    assert!(steps > 3, "{steps}");
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_is_pinned_or_may_be_written_is_not_shredded() {
    let site = busy_site().await;
    let (vault, disk) = (&site.vault.vault, site.disks[0].id.clone());
    let (count, _) = routes(&site, &disk).await;
    let untouched = async || {
        assert!(vault.shred(&disk).await.unwrap().is_none());
        assert_eq!(routes(&site, &disk).await, (count, count));
    };
    // Every second lane has no end.
    let early = Wish { now: SystemClock::new().wall(), ..wish(&disk) };
    let refused = shred(vault, &early).await.unwrap_err();
    assert!(matches!(&refused, ShredError::InUse { gateway, .. } if gateway == "g1"), "{refused}");
    untouched().await;
    let unknown = shred_now(&site, &DiskId::new("nobody").unwrap()).await.unwrap_err();
    assert!(matches!(unknown, ShredError::NoDisk { .. }), "{unknown}");
    let now = Micros(wish(&disk).now.0);
    let point = *site.kept(&site.disks[0]).await.first().unwrap();
    pin::pin_always(vault, &disk, point, now, Duration::from_secs(3600), "a restore").await.unwrap();
    let refused = shred_now(&site, &disk).await.unwrap_err();
    assert!(matches!(&refused, ShredError::Pinned { reason, .. } if reason == "a restore"), "{refused}");
    assert!(refused.to_string().contains("m/p/"), "{refused}");
    untouched().await;
    // The other disk's pin is no reason.
    shred_now(&site, &site.disks[1].id).await.unwrap();
    untouched().await;
}

/// A gateway that had the disk open when it was shredded has written on.
#[tokio::test(start_paused = true)]
async fn what_comes_after_the_word_is_told_while_its_lane_is_in_use_and_destroyed_then() {
    let mut site = busy_site().await;
    let disk = site.disks[0].clone();
    let first = shred_now(&site, &disk.id).await.unwrap();
    site.vault.turn().await;
    site.vault.put_batch(&[(&disk, disk.message(Epoch(1), 1, 3))]).await;
    let early = Wish { now: SystemClock::new().wall(), ..wish(&disk.id) };
    let refused = shred(&site.vault.vault, &early).await.unwrap_err();
    assert!(matches!(refused, ShredError::InUse { left: 1, .. }), "{refused}");
    assert_eq!(routes(&site, &disk.id).await.1, 1);
    let then = shred_now(&site, &disk.id).await.unwrap();
    assert_eq!((then.destroyed, then.word.made_micros), (1, first.word.made_micros));
    assert_eq!((then.word.lanes, routes(&site, &disk.id).await.1), (vec![site.vault.lane.id()], 0));
    assert_eq!(opened(&site, &disk.id).await.1, 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_older_than_keys_of_disks_is_told_and_left_only_if_that_is_asked_for() {
    let mut site = busy_site().await;
    let disk = site.disks[0].clone();
    site.vault.grow_older().await;
    site.vault
        .put_batch(&[(&disk, disk.message(Epoch(1), 1, 3)), (&site.disks[1], site.disks[1].message(Epoch(1), 1, 3))])
        .await;
    let before = routes(&site, &disk.id).await;
    let refused = shred_now(&site, &disk.id).await.unwrap_err();
    assert!(matches!(&refused, ShredError::Older { older: Older { lanes: 1, batches: 1, .. }, .. }), "{refused}");
    assert!(refused.to_string().contains("--leave-older"), "{refused}");
    assert_eq!((routes(&site, &disk.id).await, before.0 - before.1), (before, 1));
    let done = shred(&site.vault.vault, &Wish { leave_older: true, ..wish(&disk.id) }).await.unwrap();
    assert!(done.older.lanes == 1 && done.older.batches == 1 && done.older.bytes > 0, "{done:?}");
    assert_eq!(routes(&site, &disk.id).await, (before.0, 0));
    assert_eq!(opened(&site, &disk.id).await.1, 1, "what was sealed with the lane's key alone opens as before");
}

/// Disks that share no batch: what goes is seen.
async fn apart() -> Site {
    Site::new(vec![busy("sda", 0), busy("sdb", 64)], 3, 1, 8).await
}

/// Batches that hold something of a disk.
async fn of_disk(site: &Site, disk: &DiskId) -> usize {
    let catalog = source::load(&site.vault.vault, &Want::disk(disk)).await.unwrap();
    catalog.batches.iter().filter(|batch| batch.present).count()
}

#[tokio::test(start_paused = true)]
async fn a_keeper_lets_all_batches_of_a_shredded_disk_go_and_keeps_every_index() {
    let mut site = apart().await;
    let (disk, other) = (site.disks[0].id.clone(), site.disks.remove(1));
    site.disks = vec![other];
    let kept = site.kept_of_all().await;
    shred_now(&site, &disk).await.unwrap();
    let rows = source::load(&site.vault.vault, &Want::disk(&disk)).await.unwrap().batches.len();
    site.settle().await;
    site.check(&kept).await;
    assert_eq!(of_disk(&site, &disk).await, 0);
    let catalog = source::load(&site.vault.vault, &Want::disk(&disk)).await.unwrap();
    assert_eq!((catalog.batches.len(), catalog.findings.len()), (rows, 0));
    let report = site.once().await.unwrap();
    assert!(report.disks.iter().any(|told| told.disk == disk && told.shredded && told.held_back.is_none()));
}

/// The word alone takes the catalog key and the right to create, which every gateway has: nothing goes for it.
#[tokio::test(start_paused = true)]
async fn a_forged_word_lets_nothing_go() {
    let site = apart().await;
    let (kept, disk) = (site.kept_of_all().await, site.disks[0].id.clone());
    let needed = site.needed(&kept).await;
    let lanes = site.vault.vault.routes(&disk).await.unwrap();
    let word = ShredObject { disk: disk.clone(), made_micros: Micros(1), lanes, reason: "a thief's".into() };
    site.vault.vault.put_object(&names::shred(&disk), &word).await.unwrap();
    site.settle().await;
    assert_eq!(site.batches().await, needed);
    site.check(&kept).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_legal_hold_or_a_pin_keeps_of_a_shredded_disk_stays_as_it_stands() {
    let mut site = apart().await;
    let disk = site.disks[0].id.clone();
    let before = of_disk(&site, &disk).await;
    shred_now(&site, &disk).await.unwrap();
    site.policies.disks.insert(disk.clone(), Policy { hold: true, ..app_points() });
    site.settle().await;
    assert_eq!(of_disk(&site, &disk).await, before, "a hold asks for the bytes, whether or not anybody can read them");
    site.policies.disks.clear();
    site.settle().await;
    assert_eq!(of_disk(&site, &disk).await, 0);
}

#[tokio::test]
async fn verify_steps_over_a_shredded_disk_and_names_a_key_that_is_gone_without_a_word() {
    let site = busy_site().await;
    let (vault, disk) = (&site.vault.vault, site.disks[0].id.clone());
    let look = async || {
        let limits = fetch::FetchLimits { memory_bytes: 1 << 20, jobs: 2, workers: 1 };
        let options = VerifyOptions { level: Level::Data, sample: Quota::All, draw: None, disk: None, limits };
        verify(vault, Some(&site.vault.identity), &options, Arc::default()).await.unwrap()
    };
    let whole = look().await;
    assert_eq!((whole.outcome, whole.messages_shredded, whole.messages_checked), ("ok", 0, whole.messages));
    shred_now(&site, &disk).await.unwrap();
    let report = look().await;
    assert_eq!((report.outcome, report.damage.len()), ("ok", 0), "{:?}", report.damage);
    assert!(report.messages_shredded > 0 && report.messages_checked + report.messages_shredded == report.messages);
    assert!(report.notes.iter().any(|note| note.contains("sda was shredded") && note.contains("d/sda/shred")));
    assert!(report.disks.iter().all(|told| told.shredded.is_some() == (told.disk == disk)));
    // Without the word it is a loss, of which each route is named.
    vault.store().delete(&names::shred(&disk)).await.unwrap();
    let report = look().await;
    let lane = vault.routes(&disk).await.unwrap()[0];
    let route = names::route(&disk, lane);
    assert!(report.damage.iter().any(|damage| damage.object.as_deref() == Some(route.as_ref())), "{:?}", report.damage);
    assert!(report.damage.iter().all(|damage| damage.is_of(&disk)), "{:?}", report.damage);
}
