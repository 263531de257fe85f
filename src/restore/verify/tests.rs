//! Whatever is done to any object of a vault, verification finds it, names it, and goes on.

use object_store::ObjectStoreExt;
use object_store::path::Path;

use super::*;
use crate::restore::tests::{ModelDisk, TestVault};
use crate::types::{BarrierKind, Epoch, Seq};

fn disk(name: &str, salt: u8) -> ModelDisk {
    let mut disk = ModelDisk::named(name, 1 << 20);
    disk.barrier(BarrierKind::SyncBegin, "");
    for at in 0..12_u64 {
        disk.write(at * 40_000, (0..3000).map(|byte| (byte * 13 + at) as u8 ^ salt).collect());
    }
    disk.barrier(BarrierKind::SyncEnd, "");
    disk.barrier(BarrierKind::App, "named");
    let head = disk.head();
    disk.fork(head.seq);
    disk.barrier(BarrierKind::SyncBegin, "");
    disk.barrier(BarrierKind::SyncEnd, "");
    for at in 0..4_u64 {
        disk.write(at * 9000, vec![salt; 5000]);
    }
    disk.barrier(BarrierKind::Crash, "");
    disk
}

/// Two disks in a lane that was ended, its first batches under a lane index.
async fn filled() -> TestVault {
    let mut vault = TestVault::in_memory().await;
    vault.fill(&[&disk("sda", 3), &disk("sdb", 77)], 4, 3).await;
    vault.put_lane_index(1, 2).await;
    vault.end().await;
    vault
}

fn options(level: Level) -> VerifyOptions {
    let limits = FetchLimits { memory_bytes: 1 << 20, jobs: 4, workers: 2 };
    VerifyOptions { level, sample: Quota::All, draw: None, disk: None, limits }
}

async fn check(vault: &TestVault, level: Level) -> Result<Report, VerifyError> {
    verify(&vault.vault, Some(&vault.identity), &options(level), Arc::default()).await
}

async fn objects(vault: &TestVault) -> Vec<Path> {
    vault.vault.store().list(None).await.unwrap().into_iter().map(|listed| listed.path).collect()
}

/// Does something to one object, verifies, and undoes it.
async fn after(vault: &TestVault, path: &Path, change: impl FnOnce(Vec<u8>) -> Option<Vec<u8>>) -> Report {
    let mut kept = Vec::new();
    let change = |bytes: Vec<u8>| {
        kept.clone_from(&bytes);
        change(bytes)
    };
    vault.tamper(path, change).await;
    let report = check(vault, Level::Data).await.unwrap();
    vault.vault.store().inner().put(path, kept.into()).await.unwrap();
    report
}

fn names_it(report: &Report, path: &Path) -> bool {
    report.damage.iter().any(|damage| damage.object.as_deref() == Some(path.as_ref()))
}

#[tokio::test]
async fn a_sound_vault_is_sound_at_every_level() {
    let vault = filled().await;
    for level in [Level::List, Level::Index, Level::Data] {
        let report = check(&vault, level).await.unwrap();
        assert_eq!((report.outcome, report.damage.len(), report.late.len()), ("ok", 0, 0), "{report:?}");
        assert!(report.notes.is_empty());
    }
    let report = check(&vault, Level::Data).await.unwrap();
    assert_eq!(report.messages_checked, report.messages);
    assert_eq!(report.disks.len(), 2);
    assert_eq!(report.disks[0].points, 4);
    let sample = VerifyOptions { sample: Quota::Share(0.3), ..options(Level::Data) };
    let report = verify(&vault.vault, Some(&vault.identity), &sample, Arc::default()).await.unwrap();
    assert!(report.messages_checked < report.messages);
}

#[tokio::test]
async fn damage_outside_a_sample_is_found_within_the_round_and_by_every_run_until_it_is_mended() {
    let vault = filled().await;
    let path = names::batch(vault.lane.id(), 3);
    // The first message of the batch.
    let flip = |mut bytes: Vec<u8>| {
        bytes[100] ^= 1;
        Some(bytes)
    };
    for seed in 0..8 {
        let mut state =
            state::State { draw: Draw::new([seed; 32]), ..state::State::new(vault.vault.id(), Micros(1)).unwrap() };
        let options = |state: &state::State| VerifyOptions {
            sample: Quota::Messages(2),
            draw: Some(state.draw.clone()),
            ..options(Level::Data)
        };
        let run = async |state: &mut state::State| {
            let report = verify(&vault.vault, Some(&vault.identity), &options(state), Arc::default()).await.unwrap();
            let sampled = report.sampled.clone().unwrap();
            state.advance(&sampled, Micros(2));
            (report, sampled)
        };
        vault.tamper(&path, flip).await;
        let (mut report, mut sampled) = run(&mut state).await;
        let runs_at_most = 1 + sampled.runs_left;
        let mut runs = 1;
        while report.damage.is_empty() {
            assert!(runs < runs_at_most, "seed {seed}: not found within the round");
            (report, _) = run(&mut state).await;
            runs += 1;
        }
        let disk = report.disks.iter().find(|disk| disk.damage > 0).unwrap();
        assert!(report.damage.iter().any(|damage| damage.is_of(&disk.disk)));
        // Whatever the samples are after that, it stays known.
        for _ in 0..4 {
            (report, sampled) = run(&mut state).await;
            assert_eq!((report.outcome, sampled.damaged.len()), ("damaged", 1), "seed {seed}");
        }
        vault.tamper(&path, flip).await;
        (report, _) = run(&mut state).await;
        assert_eq!((report.outcome, state.draw.again.len()), ("ok", 0));
    }
}

#[tokio::test]
async fn a_round_opens_each_message_once() {
    let vault = filled().await;
    let all = check(&vault, Level::Data).await.unwrap().messages;
    for quota in [Quota::Share(0.1), Quota::Bytes(1), Quota::Messages(3)] {
        let (mut draw, mut opened, mut runs) = (Draw::new([3; 32]), 0, 0);
        let options = |draw: &Draw| VerifyOptions { sample: quota, draw: Some(draw.clone()), ..options(Level::Data) };
        loop {
            let report = verify(&vault.vault, Some(&vault.identity), &options(&draw), Arc::default()).await.unwrap();
            opened += report.messages_checked;
            let of_disks: u64 = report.disks.iter().map(|disk| disk.messages_checked).sum();
            assert_eq!(of_disks, report.messages_checked);
            runs += 1;
            match report.sampled.unwrap().next {
                Some(next) => draw.from = next,
                None => break,
            }
        }
        assert!(runs > 1 && opened == all, "{quota:?}: {opened} of {all} in {runs} runs");
    }
}

#[tokio::test]
async fn a_flipped_bit_anywhere_is_found_and_named() {
    let vault = filled().await;
    for path in objects(&vault).await {
        let length = vault.vault.store().inner().head(&path).await.unwrap().size;
        if path.as_ref() == "vault" {
            // It is checked when the vault is opened, which every reader does first.
            continue;
        }
        let step = (length / 23).max(1) | 1;
        for at in (0..length).step_by(step as usize) {
            let flip = |mut bytes: Vec<u8>| {
                bytes[at as usize] ^= 1 << (at % 8);
                Some(bytes)
            };
            let report = after(&vault, &path, flip).await;
            assert!(names_it(&report, &path), "byte {at} of {path}: {:#?}", report.damage);
        }
    }
    assert_eq!(check(&vault, Level::Data).await.unwrap().outcome, "ok", "all was put back");
}

#[tokio::test]
async fn a_truncated_or_emptied_object_is_found_and_named() {
    let vault = filled().await;
    for path in objects(&vault).await.iter().filter(|path| path.as_ref() != "vault") {
        for keep in [0, 1, 2] {
            let cut = |mut bytes: Vec<u8>| {
                bytes.truncate((bytes.len() - 1) * keep / 2);
                Some(bytes)
            };
            let report = after(&vault, path, cut).await;
            assert!(names_it(&report, path), "{keep}/2 of {path}: {:#?}", report.damage);
        }
    }
}

#[tokio::test]
async fn a_deleted_object_is_found_unless_nothing_depends_on_it() {
    let vault = filled().await;
    for path in objects(&vault).await {
        let name = path.as_ref();
        // A lane's end says only that it is whole, and a lane index only saves time.
        if name == "vault" || name.ends_with(".end") || name.starts_with("x/") {
            continue;
        }
        let report = after(&vault, &path, |_| None).await;
        assert!(names_it(&report, &path), "{path}: {:#?}", report.damage);
    }
}

#[tokio::test]
async fn swapped_objects_are_found_and_both_named() {
    let vault = filled().await;
    let all = objects(&vault).await;
    let kinds = ["b/", "d/", "lanes/"];
    for kind in kinds {
        let of_kind: Vec<&Path> = all.iter().filter(|path| path.as_ref().starts_with(kind)).collect();
        for pair in of_kind.windows(2) {
            let store = vault.vault.store().inner();
            let get = async |path: &Path| store.get(path).await.unwrap().bytes().await.unwrap();
            let (first, second) = (get(pair[0]).await, get(pair[1]).await);
            store.put(pair[0], second.clone().into()).await.unwrap();
            store.put(pair[1], first.clone().into()).await.unwrap();
            let report = check(&vault, Level::Data).await.unwrap();
            assert!(names_it(&report, pair[0]) && names_it(&report, pair[1]), "{pair:?}: {:#?}", report.damage);
            store.put(pair[0], first.into()).await.unwrap();
            store.put(pair[1], second.into()).await.unwrap();
        }
    }
}

#[tokio::test]
async fn damaged_data_is_named_with_disk_records_and_times() {
    let vault = filled().await;
    let path = names::batch(vault.lane.id(), 3);
    let flip = |mut bytes: Vec<u8>| {
        bytes[100] ^= 1;
        Some(bytes)
    };
    let report = after(&vault, &path, flip).await;
    let damage = report.damage.iter().find(|damage| damage.records.is_some()).unwrap();
    let records = damage.records.as_ref().unwrap();
    assert!(records.disk.as_str().starts_with("sd") && records.first <= records.last);
    assert!(records.labels.iter().all(Option::is_some));
    assert!(damage.bytes.as_ref().unwrap().contains(&100));
    let json = serde_json::to_value(damage).unwrap();
    assert_eq!(json["disk"], records.disk.as_str());
    assert_eq!(json["object"], path.as_ref());
}

#[tokio::test]
async fn a_deleted_batch_names_the_records_that_are_lost_with_it() {
    let vault = filled().await;
    // Nothing follows the last one: only the lane's end knows of it.
    let last = names::batch(vault.lane.id(), 4);
    let report = after(&vault, &last, |_| None).await;
    let damage = report.damage.iter().find(|damage| damage.object.as_deref() == Some(last.as_ref())).unwrap();
    assert!(damage.what.contains("sda, sdb") && damage.what.contains("after 20"), "{damage}");
    let report = after(&vault, &names::batch(vault.lane.id(), 3), |_| None).await;
    let lost: Vec<_> = report.damage.iter().filter_map(|damage| damage.records.as_ref()).collect();
    assert!(!lost.is_empty(), "{:#?}", report.damage);
    assert!(report.late.is_empty());
}

#[tokio::test]
async fn what_is_not_vaulted_yet_is_told_apart_from_damage() {
    let mut vault = TestVault::in_memory().await;
    let sda = disk("sda", 3);
    vault.fill(&[&sda], 4, 1).await;
    // The gateway has uploaded the batch after the next: nothing claims that the one between was ever confirmed.
    let mut more = sda.clone();
    for _ in 0..8 {
        more.write(0, vec![1; 512]);
    }
    let first = sda.head().seq.0 + 5;
    vault.next_batch += 1;
    let message = more.message(Epoch(2), first, first + 3);
    vault.put_batch_confirmed(&[(&more, message)], vault.next_batch - 2).await;
    let report = check(&vault, Level::Data).await.unwrap();
    assert_eq!((report.outcome, report.damage.len()), ("ok", 0), "{:#?}", report.damage);
    assert_eq!(report.late.len(), 2, "the batch, and the records that it must hold: {:?}", report.late);
    assert_eq!(report.disks[0].newest_record, Some(sda.head().to_string()));
    assert_eq!(Seq(first - 5), sda.head().seq);
}

#[tokio::test]
async fn with_a_key_the_names_and_one_index_prove_a_deleted_batch() {
    let mut vault = TestVault::in_memory().await;
    vault.fill(&[&disk("sda", 3)], 2, 1).await;
    let path = names::batch(vault.lane.id(), 4);
    vault.tamper(&path, |_| None).await;
    let report = check(&vault, Level::List).await.unwrap();
    assert!(names_it(&report, &path) && report.late.is_empty(), "{report:?}");
    let blind = Vault::open_without_key(vault.vault.store().clone()).await.unwrap();
    let report = verify(&blind, None, &options(Level::List), Arc::default()).await.unwrap();
    assert_eq!((report.outcome, report.late.len()), ("ok", 1), "names alone do not tell");
}

#[tokio::test]
async fn without_keys_the_names_are_still_checked() {
    let vault = filled().await;
    let blind = Vault::open_without_key(vault.vault.store().clone()).await.unwrap();
    let report = verify(&blind, None, &options(Level::List), Arc::default()).await.unwrap();
    assert_eq!((report.outcome, report.authenticated), ("ok", false));
    vault.tamper(&names::batch(vault.lane.id(), 2), |_| None).await;
    let report = verify(&blind, None, &options(Level::List), Arc::default()).await.unwrap();
    assert_eq!(report.outcome, "damaged");
    let deeper = verify(&blind, None, &options(Level::Index), Arc::default()).await;
    assert!(deeper.is_err());
}
