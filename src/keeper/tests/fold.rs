//! Folding against the lanes' own indexes: both ways of reading say the same, whatever happens to the keeper or to what it wrote.

use object_store::path::Path;

use super::*;
use crate::keeper::fold;
use crate::restore::history::Row;
use crate::restore::source;
use crate::types::DiskId;
use crate::vault::index::folded::{FoldedBounds, FoldedBuilder, FoldedPlace};
use crate::vault::reader::{Catalog, Want};

/// What a reader of one disk learns: rows with their objects, and what is wrong.
async fn read(site: &Site, disk: &ModelDisk, want: &Want) -> (Vec<(Path, bool, Presence, String)>, Vec<String>) {
    let vault = &site.vault.vault;
    let catalog: Catalog = source::load(vault, want).await.unwrap();
    let history = source::history(&catalog, &disk.id, &vault.epochs(&disk.id).await.unwrap());
    let row = |row: &Row| {
        let batch = &catalog.batches[row.object as usize];
        (batch.object.clone(), row.confirmed, row.presence, format!("{:?} {}", row.message, batch.size_bytes))
    };
    let findings = catalog.findings.iter().map(ToString::to_string).collect();
    (history.rows.iter().map(row).collect(), findings)
}

/// Both ways of reading every disk say the same.
async fn check_same(site: &Site) {
    for disk in &site.disks {
        let (own, folded) =
            (read(site, disk, &Want::disk(&disk.id)).await, read(site, disk, &Want::folded(&disk.id)).await);
        assert_eq!(own, folded, "disk {}", disk.id);
    }
}

/// Folded indexes that stand in the vault, and lanes that are noted as folded.
async fn folded(site: &Site) -> (Vec<Path>, usize) {
    let store = site.vault.vault.store();
    let mut parts = Vec::new();
    for disk in &site.disks {
        let listed = store.list(Some(&names::disk_folder(&disk.id))).await.unwrap();
        parts
            .extend(listed.into_iter().map(|one| one.path).filter(|path| names::folded_part(&disk.id, path).is_some()));
    }
    let notes = store.list(Some(&names::folds())).await.unwrap();
    (parts, notes.iter().filter(|note| note.path.as_ref().ends_with("/whole")).count())
}

async fn folding_site() -> Site {
    let mut site = busy_site().await;
    site.work.fold = true;
    site
}

async fn lanes(site: &Site) -> usize {
    site.vault.vault.lanes().await.unwrap().len()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn folded_indexes_say_what_the_lanes_say_whatever_the_histories_and_the_policy(
        one in model::steps(), two in model::steps(), step in 1..4_u64, per_batch in 1..4_usize, per_lane in 1..8_usize,
        everything in any::<bool>(),
    ) {
        block_on(async {
            let mut disks = vec![model::model(&one), model::model(&two)];
            disks[1].id = DiskId::new("sdb").unwrap();
            for epoch in &mut disks[1].epochs {
                epoch.disk = DiskId::new("sdb").unwrap();
            }
            let mut site = Site::new(disks, step, per_batch, per_lane).await;
            site.work.fold = true;
            if everything {
                site.policies.default = Policy { hold: true, ..app_points() };
            }
            let kept = site.kept_of_all().await;
            for _ in 0..6 {
                site.once().await.unwrap();
                check_same(&site).await;
            }
            site.settle().await;
            check_same(&site).await;
            site.check(&kept).await;
            assert_eq!(folded(&site).await.1, lanes(&site).await, "every lane is folded");
        });
    }
}

#[tokio::test(start_paused = true)]
async fn a_keeper_that_dies_at_any_step_of_folding_leaves_what_is_read_and_another_goes_on() {
    let mut steps = 0;
    for step in 0.. {
        let mut died = false;
        for after in [false, true] {
            let mut site = folding_site().await;
            site.policies.default.hold = true;
            at_step(&site.store, step, move |first| if first && after { Fate::AnswerLost } else { Fate::Status(403) });
            for _ in 0..4 {
                died = site.once().await.is_err();
                if died {
                    break;
                }
            }
            site.store.plan(|_, _| Fate::Good);
            check_same(&site).await;
            let again = [site.once().await.unwrap(), site.once().await.unwrap(), site.once().await.unwrap()];
            assert!(again.iter().all(|report| report.notes.is_empty()), "after step {step}: {again:?}");
            check_same(&site).await;
            assert_eq!(folded(&site).await.1, lanes(&site).await, "after step {step}");
        }
        if !died {
            steps = step;
            break;
        }
    }
    assert!(steps > 20, "only {steps} steps were there to die at");
}

#[tokio::test(start_paused = true)]
async fn what_is_folded_once_is_not_read_again_and_the_lanes_own_indexes_are_not_read_for_a_disk() {
    let site = folding_site().await;
    site.settle().await;
    let (parts, whole) = folded(&site).await;
    assert_eq!(whole, lanes(&site).await);
    assert!(parts.len() >= whole, "each lane has at least one disk: {parts:?}");
    let report = site.once().await.unwrap();
    assert_eq!((report.lanes_folded, report.folded_written), (0, 0));
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    site.store.plan(move |_, path| {
        count.fetch_add(usize::from(path.as_ref().starts_with("x/")), Ordering::Relaxed);
        Fate::Good
    });
    for disk in &site.disks {
        read(&site, disk, &Want::folded(&disk.id)).await;
    }
    assert_eq!(asked.load(Ordering::Relaxed), 0);
    read(&site, &site.disks[0], &Want::disk(&site.disks[0].id)).await;
    assert!(asked.load(Ordering::Relaxed) > 0, "the count would have told");
}

#[tokio::test(start_paused = true)]
async fn a_folded_index_that_is_damaged_or_gone_or_of_another_place_only_costs_time() {
    let site = folding_site().await;
    site.settle().await;
    let (parts, _) = folded(&site).await;
    let other = site.vault.vault.store().get(&parts[parts.len() - 1], 1 << 20).await.unwrap().unwrap();
    for (at, path) in parts.iter().enumerate().take(parts.len() - 1) {
        match at % 4 {
            0 => {
                site.vault
                    .tamper(path, |mut bytes| {
                        let at = bytes.len() / 2;
                        bytes[at] ^= 1;
                        Some(bytes)
                    })
                    .await
            }
            1 => site.vault.tamper(path, |_| None).await,
            2 => site.vault.tamper(path, |bytes| Some(bytes[..bytes.len() - 1].to_vec())).await,
            _ => site.vault.tamper(path, |_| Some(other.to_vec())).await,
        }
        check_same(&site).await;
    }
}

#[tokio::test(start_paused = true)]
async fn only_lanes_to_which_nothing_comes_are_folded() {
    let mut site = folding_site().await;
    site.policies.default.hold = true;
    site.work.seal_after = Duration::from_secs(26 * 3600);
    site.work.seal_grace = Duration::from_secs(600);
    let all = site.vault.vault.lanes().await.unwrap();
    let ended = all.iter().filter(|lane| lane.ended).count();
    assert!(ended < all.len());
    for _ in 0..3 {
        site.once().await.unwrap();
    }
    assert_eq!(folded(&site).await.1, ended, "the others may still be in use");
    assert!(site.vault.vault.lanes().await.unwrap().iter().all(|lane| lane.sealed.is_none()));
    site.wait(Duration::from_secs(27 * 3600));
    assert_eq!(site.once().await.unwrap().lanes_sealed as usize, all.len() - ended);
    site.once().await.unwrap();
    assert_eq!(folded(&site).await.1, ended, "a gateway may not have seen the seal yet");
    site.wait(Duration::from_secs(601));
    site.once().await.unwrap();
    assert_eq!(folded(&site).await.1, all.len());
    check_same(&site).await;
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_lacks_a_batch_is_not_folded() {
    let mut site = folding_site().await;
    site.policies.default.hold = true;
    let (lane, n) = *site.batches().await.first().unwrap();
    site.vault.vault.store().delete(&names::batch(lane, n)).await.unwrap();
    for _ in 0..3 {
        site.once().await.unwrap();
    }
    assert_eq!(folded(&site).await.1, lanes(&site).await - 1);
    assert!(folded(&site).await.0.iter().all(|path| !path.as_ref().contains(&lane.to_string())));
    check_same(&site).await;
}

#[tokio::test(start_paused = true)]
async fn a_small_budget_and_little_memory_only_take_more_runs_and_passes() {
    let disks: Vec<_> = (0..9).map(|at| busy(&format!("sd{at}"), at * 16)).collect();
    let mut site = Site::new(disks, 3, 9, 64).await;
    site.work.fold = true;
    site.policies.default.hold = true;
    site.work.requests = 18;
    let (mut runs, mut written) = (0, 0);
    while folded(&site).await.1 < lanes(&site).await {
        written += site.once().await.unwrap().folded_written;
        check_same(&site).await;
        runs += 1;
        assert!(runs < 100, "no end");
    }
    let (parts, _) = folded(&site).await;
    assert!(runs > 2, "{runs} runs");
    assert_eq!(written, parts.len() as u64, "nothing is written twice");
    // The same with no memory for more than one disk at a time, and every batch a part of its own.
    for path in parts {
        site.vault.vault.store().delete(&path).await.unwrap();
    }
    for note in site.vault.vault.store().list(Some(&names::folds())).await.unwrap() {
        site.vault.vault.store().delete(&note.path).await.unwrap();
    }
    let (_trigger, stop) = DrainTrigger::new();
    for listed in site.vault.vault.lanes().await.unwrap() {
        let limits = fold::Limits { pass_bytes: 1, part_bytes: 1 };
        let report = fold::lane(&site.vault.vault, &listed, limits, &stop).await.unwrap();
        assert_eq!((report.lanes_folded, report.notes.len()), (1, 0), "{:?}", report.notes);
    }
    assert!(folded(&site).await.0.len() > 9 * 20, "each disk has many parts");
    check_same(&site).await;
}

/// Replaces a folded index by one that leaves out a batch, as only somebody with the catalog key can write it.
async fn forge(site: &Site, disk: &ModelDisk, path: &Path) {
    let vault = &site.vault.vault;
    let (lane, part) = names::folded_part(&disk.id, path).unwrap();
    let folded = vault.folded(&disk.id, lane, part).await.unwrap().unwrap();
    let mut builder = FoldedBuilder::default();
    for batch in &folded.batches[1..] {
        builder.push(batch.total_bytes, &batch.index.encode());
    }
    let place = FoldedPlace { vault: vault.id(), object: path.as_ref(), lane, part };
    let forged = builder.finish(vault.catalog_key().unwrap(), &place, folded.bounds).unwrap();
    site.vault.tamper(path, |_| Some(forged.to_vec())).await;
}

#[tokio::test(start_paused = true)]
async fn verify_tells_a_folded_index_that_says_something_else_than_its_lane() {
    let mut site = folding_site().await;
    site.policies.default.hold = true;
    site.settle().await;
    let limits = fetch::FetchLimits { memory_bytes: 1 << 20, jobs: 2, workers: 1 };
    let options = VerifyOptions { level: Level::Index, sample: Quota::All, draw: None, disk: None, limits };
    let report = verify(&site.vault.vault, None, &options, Arc::default()).await.unwrap();
    assert_eq!((report.outcome, &report.notes[..]), ("ok", &[][..]), "{:?}", report.damage);
    let disk = &site.disks[0];
    let (parts, _) = folded(&site).await;
    let path = parts.iter().find(|path| names::folded_part(&disk.id, path).is_some()).unwrap();
    forge(&site, disk, path).await;
    let report = verify(&site.vault.vault, None, &options, Arc::default()).await.unwrap();
    assert_eq!(report.damage.len(), 1, "{:?}", report.damage);
    assert_eq!(report.damage[0].object.as_deref(), Some(path.as_ref()));
    site.vault
        .tamper(path, |mut bytes| {
            bytes[70] ^= 1;
            Some(bytes)
        })
        .await;
    let report = verify(&site.vault.vault, None, &options, Arc::default()).await.unwrap();
    assert!(report.damage[0].what.contains("own indexes instead"), "{:?}", report.damage);
}

#[tokio::test(start_paused = true)]
async fn rows_of_more_than_a_part_make_several_and_none_may_lack() {
    let site = folding_site().await;
    site.settle().await;
    let disk = &site.disks[0];
    let (parts, _) = folded(&site).await;
    let path = parts.iter().find(|path| names::folded_part(&disk.id, path).is_some()).unwrap();
    let vault = &site.vault.vault;
    let (lane, _) = names::folded_part(&disk.id, path).unwrap();
    let whole = vault.folded(&disk.id, lane, 1).await.unwrap().unwrap();
    let (key, at) = (vault.catalog_key().unwrap(), whole.batches.len() / 2);
    let through = whole.batches[at].index.n - 1;
    site.vault.tamper(path, |_| None).await;
    for (part, batches, first, last) in
        [(2, &whole.batches[at..], through + 1, whole.bounds.last), (1, &whole.batches[..at], 1, through)]
    {
        check_same(&site).await;
        let mut builder = FoldedBuilder::default();
        batches.iter().for_each(|batch| builder.push(batch.total_bytes, &batch.index.encode()));
        let object = names::folded(&disk.id, lane, part);
        let place = FoldedPlace { vault: vault.id(), object: object.as_ref(), lane, part };
        let bounds = FoldedBounds { first, last, is_last: part == 2, ..whole.bounds };
        let bytes = builder.finish(key, &place, bounds).unwrap();
        vault.put_bytes(&object, bytes).await.unwrap();
    }
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    site.store.plan(move |_, path| {
        count.fetch_add(usize::from(path.as_ref().starts_with("x/")), Ordering::Relaxed);
        Fate::Good
    });
    read(&site, disk, &Want::folded(&disk.id)).await;
    assert_eq!(asked.load(Ordering::Relaxed), 0, "both parts were taken");
    site.store.plan(|_, _| Fate::Good);
    check_same(&site).await;
}
