use std::sync::Arc;

use object_store::ObjectStoreExt;
use object_store::memory::InMemory;

use super::testing::{Fate, FaultStore, disk, vault_in};
use super::*;
use crate::flow::SystemClock;
use crate::keys::LaneKeys;
use crate::types::{Chain, Seq};
use crate::vault::epochs::CreateEpochError;
use crate::vault::lane::Lane;

fn epoch(number: u64, nonce: u8) -> EpochObject {
    EpochObject {
        disk: disk("d1"),
        epoch: Epoch(number),
        previous: (number > 1).then_some(Epoch(number - 1)),
        fork_seq: Seq(5),
        chain_at_fork: Chain([2; 32]),
        size_bytes: 1 << 20,
        agent: "a1".into(),
        nonce: Id128([nonce; 16]),
        reason: "first".into(),
        gateway: "gw-1".into(),
        created_micros: Micros(1),
    }
}

#[tokio::test]
async fn a_vault_is_made_opened_by_key_and_by_identity_alone() {
    let store = FaultStore::new().place();
    let (made, key, identity) = vault_in(store.clone()).await;
    let by_key = Vault::open(store.clone(), key.clone()).await.expect("by key");
    assert_eq!(by_key.head(), made.head());
    let by_identity = Vault::open_with_identity(store.clone(), &identity).await.expect("by identity");
    assert_eq!(by_identity.catalog_key().map(CatalogKey::kid), Some(key.kid()));
    assert_eq!(Vault::open_without_key(store).await.expect("to list").id(), made.id());
}

#[tokio::test]
async fn wrong_keys_and_wrong_places_are_told_apart() {
    let store = FaultStore::new().place();
    let (vault, ..) = vault_in(store.clone()).await;
    let other = Vault::open(store.clone(), CatalogKey::generate().expect("random")).await.expect_err("other key");
    assert!(matches!(other, VaultError::OtherCatalogKey { .. }), "{other}");
    let stranger = Vault::open_with_identity(store.clone(), &Identity::generate()).await.expect_err("stranger");
    assert!(matches!(stranger, VaultError::Unwrap { .. }) && stranger.fault() == Fault::Reject, "{stranger}");
    let empty = Vault::open_without_key(FaultStore::new().place()).await.expect_err("empty");
    assert!(empty.to_string().contains("vault init"), "{empty}");
    let options = InitOptions { recipients: vault.first_recipients().to_vec(), now: Micros(1) };
    let again = Vault::init(store, &options).await.expect_err("there is one");
    assert!(matches!(again, VaultError::Exists { id, .. } if id == vault.id()), "{again}");
}

#[tokio::test]
async fn init_refuses_a_place_with_anything_in_it_and_a_vault_that_nobody_could_restore() {
    let store = FaultStore::new();
    let none = Vault::init(store.place(), &InitOptions { recipients: Vec::new(), now: Micros(1) }).await;
    assert!(matches!(none, Err(VaultError::NoRecipient)));
    assert_eq!(store.place().any(None).await.expect("listed"), None, "nothing was written");
    store.inner_put(&Path::from("holiday/photo.jpg"), "x").await;
    let options = InitOptions { recipients: vec![Identity::generate().recipient()], now: Micros(1) };
    let error = Vault::init(store.place(), &options).await.expect_err("not empty");
    assert!(error.to_string().contains("holiday/photo.jpg"), "{error}");
}

#[tokio::test]
async fn a_vault_object_that_was_altered_does_not_open() {
    let raw = Arc::new(InMemory::new());
    let store = VaultStore::new(Arc::clone(&raw) as _, "memory://altered");
    let (_, key, _) = vault_in(store.clone()).await;
    let bytes = raw.get(&names::vault()).await.expect("there").bytes().await.expect("read");
    let text = String::from_utf8(bytes.to_vec()).expect("text");
    let forged = text.replace("1800000000000000", "1800000000000001");
    raw.put(&names::vault(), forged.into()).await.expect("memory");
    let error = Vault::open(store, key).await.expect_err("forged");
    assert_eq!(error.fault(), Fault::Corrupt, "{error}");
}

#[tokio::test]
async fn of_many_who_create_an_epoch_exactly_one_wins_and_may_repeat_it() {
    let (vault, ..) = vault_in(FaultStore::new().place()).await;
    let mut racers = tokio::task::JoinSet::new();
    for nonce in 1..=8 {
        let vault = vault.clone();
        racers.spawn(async move { (nonce, vault.create_epoch(&epoch(1, nonce)).await) });
    }
    let results = racers.join_all().await;
    let winners: Vec<u8> = results.iter().filter(|(_, result)| result.is_ok()).map(|(nonce, _)| *nonce).collect();
    let &[winner] = winners.as_slice() else { panic!("{winners:?} won") };
    for (_, result) in results.iter().filter(|(nonce, _)| *nonce != winner) {
        let Err(CreateEpochError::Exists { existing }) = result else { panic!("{result:?}") };
        assert_eq!(existing.nonce, Id128([winner; 16]));
    }
    vault.create_epoch(&epoch(1, winner)).await.expect("the same again");
    assert!(vault.epoch_exists(&disk("d1"), Epoch(1)).await.expect("asked"));
    assert!(!vault.epoch_exists(&disk("d1"), Epoch(2)).await.expect("asked"));
}

#[tokio::test]
async fn an_epoch_whose_answer_was_lost_is_still_ours() {
    let store = FaultStore::new();
    let (vault, ..) = vault_in(store.place()).await;
    let mut lost = false;
    store.plan(
        move |operation, _| {
            if operation == "put" && !std::mem::replace(&mut lost, true) { Fate::AnswerLost } else { Fate::Good }
        },
    );
    assert_eq!(vault.create_epoch(&epoch(1, 1)).await.expect("ours"), Created::Before);
    assert_eq!(vault.epochs(&disk("d1")).await.expect("listed"), [epoch(1, 1)]);
}

#[tokio::test]
async fn epochs_disks_routes_and_lanes_are_listed_in_order() {
    let (vault, _, identity) = vault_in(FaultStore::new().place()).await;
    for number in [2, 1, 10] {
        vault.create_epoch(&epoch(number, 1)).await.expect("created");
    }
    let found: Vec<u64> = vault.epochs(&disk("d1")).await.expect("listed").iter().map(|one| one.epoch.0).collect();
    assert_eq!(found, [1, 2, 10]);
    assert_eq!(vault.newest_epoch(&disk("d1")).await.expect("read"), Some(epoch(10, 1)));
    assert_eq!(vault.newest_epoch(&disk("d0")).await.expect("read"), None);
    let lane = Lane::open(&vault, "gw-1", &SystemClock::new()).await.expect("opened");
    vault.create_route(&disk("d0"), lane.id()).await.expect("created");
    vault.create_route(&disk("d0"), lane.id()).await.expect("the same again");
    assert_eq!(vault.disks().await.expect("listed"), [disk("d0"), disk("d1")]);
    assert_eq!(vault.routes(&disk("d0")).await.expect("listed"), [lane.id()]);
    let key = lane.keys().sealed(&disk("d1")).expect("random");
    vault.create_keyed_route(&disk("d1"), lane.id(), key).await.expect("created");
    vault.create_keyed_route(&disk("d1"), lane.id(), key).await.expect("the same again");
    let other = LaneKeys::new(vault.id(), lane.id(), lane.key().clone()).sealed(&disk("d1")).expect("random");
    let second = vault.create_keyed_route(&disk("d1"), lane.id(), other).await;
    assert!(matches!(second, Err(VaultError::Taken { .. })), "a disk has one key in a lane: {second:?}");
    let read = vault.route(&disk("d1"), lane.id()).await.expect("read").expect("there");
    assert_eq!(read.sealed_key, Some(key));
    lane.end(&vault, 0).await.expect("ended");
    let listed = vault.lanes().await.expect("listed");
    assert_eq!((listed.len(), listed[0].lane, listed[0].ended, listed[0].sealed), (1, lane.id(), true, None));
    let object = vault.lane(lane.id()).await.expect("read");
    let key = vault.open_lane_key(&object, &identity).expect("unwrapped");
    assert_eq!(key.expose(), lane.key().expose());
}

#[tokio::test]
async fn a_disks_first_description_stands() {
    let (vault, ..) = vault_in(FaultStore::new().place()).await;
    let describe =
        |size_bytes| DiskObject { disk: disk("d1"), size_bytes, agent: "a1".into(), created_micros: Micros(1) };
    vault.create_disk(&describe(1)).await.expect("created");
    vault.create_disk(&describe(2)).await.expect("no failure");
    assert_eq!(vault.disk(&disk("d1")).await.expect("read").map(|one| one.size_bytes), Some(1));
    assert_eq!(vault.disk(&disk("d2")).await.expect("read"), None);
}

#[tokio::test]
async fn a_directory_vault_keeps_its_objects_and_reads_ranges() {
    let folder = tempfile::tempdir().expect("temp dir");
    let url = format!("file://{}/vault", folder.path().display());
    let store = url::create_store(&url).await.expect("created");
    let (vault, key, _) = vault_in(store).await;
    vault.create_epoch(&epoch(1, 1)).await.expect("created");
    let again = Vault::open(url::open_store(&url).expect("there"), key).await.expect("opened");
    assert_eq!(again.epochs(&disk("d1")).await.expect("listed"), [epoch(1, 1)]);
    let range = again.store().get_range(&names::vault(), 2..8).await.expect("read");
    assert_eq!(&range[..], b"format");
    let short = again.store().get_range(&names::vault(), 2..1 << 20).await.expect_err("past the end");
    assert_eq!(short.fault(), Fault::Corrupt, "{short}");
    std::fs::remove_dir_all(folder.path().join("vault")).expect("removed");
    let gone = again.disk(&disk("d1")).await.expect_err("the directory is gone");
    assert!(gone.to_string().contains("no container or directory"), "{gone}");
}

#[tokio::test]
async fn an_object_far_too_large_for_its_name_is_not_read() {
    let store = FaultStore::new();
    let (vault, ..) = vault_in(store.place()).await;
    let path = names::disk(&disk("d1"));
    let huge = vec![b' '; limits::CONTROL_OBJECT_BYTES_MAX as usize + 1];
    store.place().put_new(&path, huge.into(), Duration::from_secs(5)).await.expect("stored");
    let error = vault.disk(&disk("d1")).await.expect_err("too large");
    assert!(matches!(error, VaultError::Get(GetError::TooLarge { .. })), "{error}");
}
