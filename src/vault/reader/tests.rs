use std::sync::Arc;

use object_store::ObjectStoreExt;
use object_store::memory::InMemory;

use super::*;
use crate::flow::SystemClock;
use crate::vault::index::lane::LaneIndexBuilder;
use crate::vault::lane::Lane;
use crate::vault::names;
use crate::vault::store::VaultStore;
use crate::vault::testing::{batch, disk, vault_in};

struct Setup {
    raw: Arc<InMemory>,
    vault: Vault,
    lane: Lane,
}

async fn setup() -> Setup {
    let raw = Arc::new(InMemory::new());
    let (vault, ..) = vault_in(VaultStore::new(Arc::clone(&raw) as _, "memory://reader")).await;
    let lane = Lane::open(&vault, "gw-1", &SystemClock::new()).await.expect("opened");
    Setup { raw, vault, lane }
}

impl Setup {
    /// Stores batches `first..=last`, each with two records of d1 and one of d2, confirming everything before.
    async fn store(&self, numbers: std::ops::RangeInclusive<u64>, lane_index: Option<u64>) {
        let (one, two) = (disk("d1"), disk("d2"));
        let mut index = LaneIndexBuilder::new(self.vault.id(), self.lane.id(), *numbers.start());
        for n in numbers {
            let object = batch(&self.vault, self.lane.id(), n, n - 1, &[(&one, 2 * n - 1, 2 * n), (&two, n, n)], 500);
            assert!(index.push(n, object.body.content_length() as u64, object.sealed_index.clone()));
            self.raw.put(&names::batch(self.lane.id(), n), object.body).await.expect("memory");
        }
        for disk in [&one, &two] {
            self.vault.create_route(disk, self.lane.id()).await.expect("memory");
        }
        if let Some(k) = lane_index {
            self.raw.put(&names::lane_index(self.lane.id(), k), index.finish().into()).await.expect("memory");
        }
    }

    async fn load(&self, want: &Want) -> Catalog {
        Catalog::load(&self.vault, want).await.expect("loaded")
    }

    async fn change(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = self.raw.get(path).await.expect("there").bytes().await.expect("read").to_vec();
        change(&mut bytes);
        self.raw.put(path, bytes.into()).await.expect("memory");
    }

    fn batch(&self, n: u64) -> Path {
        names::batch(self.lane.id(), n)
    }
}

fn numbers(catalog: &Catalog) -> Vec<u64> {
    catalog.batches.iter().map(|batch| batch.index.n).collect()
}

#[tokio::test]
async fn lane_indexes_and_tails_together_give_every_batch_once() {
    let setup = setup().await;
    setup.store(1..=20, Some(1)).await;
    setup.store(21..=25, None).await;
    let catalog = setup.load(&Want::default()).await;
    assert_eq!(catalog.findings, []);
    assert_eq!(numbers(&catalog), (1..=25).collect::<Vec<_>>());
    let lane = &catalog.lanes[0];
    assert_eq!((lane.batches, lane.confirmed_through, lane.end), (25, 24, None));
    assert!(catalog.lane(setup.lane.id()).is_some());
    assert!(catalog.batches.iter().all(|batch| batch.present && batch.index.disks.len() == 2));
}

#[tokio::test]
async fn only_the_wanted_disks_rows_and_lanes_are_kept() {
    let setup = setup().await;
    setup.store(1..=5, Some(1)).await;
    setup.store(6..=6, None).await;
    Lane::open(&setup.vault, "gw-2", &SystemClock::new()).await.expect("another lane");
    let catalog = setup.load(&Want::disk(&disk("d2"))).await;
    assert_eq!(catalog.lanes.len(), 1);
    assert_eq!(numbers(&catalog), [1, 2, 3, 4, 5, 6]);
    assert!(
        catalog.batches.iter().all(|batch| batch.index.disks.len() == 1 && batch.index.disks[0].disk == disk("d2"))
    );
    assert_eq!(setup.load(&Want::disk(&disk("d9"))).await.batches, []);
}

#[tokio::test]
async fn a_deleted_batch_is_proven_missing_by_what_was_confirmed_or_by_the_end() {
    let setup = setup().await;
    setup.store(1..=10, None).await;
    setup.raw.delete(&setup.batch(4)).await.expect("deleted");
    let catalog = setup.load(&Want::default()).await;
    assert_eq!(catalog.findings, [Finding::new(&setup.batch(4), Problem::Missing)]);
    // The last one is not confirmed by any other: without an end, its absence is what a crash leaves.
    setup.raw.delete(&setup.batch(10)).await.expect("deleted");
    assert_eq!(setup.load(&Want::default()).await.findings.len(), 1);
    setup.lane.end(&setup.vault, 10).await.expect("ended");
    let findings = setup.load(&Want::default()).await.findings;
    assert_eq!(findings.last(), Some(&Finding::new(&setup.batch(10), Problem::Missing)));
}

#[tokio::test]
async fn a_deleted_batch_that_a_lane_index_covers_keeps_its_rows_and_is_reported() {
    let setup = setup().await;
    setup.store(1..=3, Some(1)).await;
    setup.store(4..=4, None).await;
    setup.raw.delete(&setup.batch(2)).await.expect("deleted");
    let catalog = setup.load(&Want::default()).await;
    assert_eq!(catalog.findings, [Finding::new(&setup.batch(2), Problem::Missing)]);
    assert!(!catalog.batches[1].present, "what is lost is known record by record");
    assert_eq!(numbers(&catalog), [1, 2, 3, 4]);
}

/// No later batch says that it was confirmed; that it stands in a lane index does.
#[tokio::test]
async fn the_last_batch_of_a_lane_index_is_reported_when_it_is_gone() {
    let setup = setup().await;
    setup.store(1..=3, Some(1)).await;
    setup.raw.delete(&setup.batch(3)).await.expect("deleted");
    let catalog = setup.load(&Want::default()).await;
    assert_eq!(catalog.findings, [Finding::new(&setup.batch(3), Problem::Missing)]);
}

#[tokio::test]
async fn a_damaged_batch_is_named_and_the_others_are_still_found() {
    let setup = setup().await;
    setup.store(1..=6, None).await;
    setup.change(&setup.batch(1), |bytes| bytes.truncate(bytes.len() - 1)).await;
    setup.change(&setup.batch(2), |bytes| bytes.clear()).await;
    setup.change(&setup.batch(3), |bytes| *bytes.iter_mut().rev().nth(100).expect("long") ^= 1).await;
    let swapped = setup.raw.get(&setup.batch(6)).await.expect("there").bytes().await.expect("read");
    setup.raw.put(&setup.batch(5), swapped.into()).await.expect("memory");
    let catalog = setup.load(&Want::default()).await;
    assert_eq!(numbers(&catalog), [4, 6]);
    let named: Vec<&str> = catalog.findings.iter().map(|finding| finding.object.as_str()).collect();
    let expected: Vec<String> = [1, 2, 3, 5].iter().map(|&n| setup.batch(n).to_string()).collect();
    assert_eq!(named, expected, "{:?}", catalog.findings);
}

#[tokio::test]
async fn a_damaged_lane_index_costs_time_and_no_batch() {
    let setup = setup().await;
    setup.store(1..=5, Some(1)).await;
    let path = names::lane_index(setup.lane.id(), 1);
    setup.change(&path, |bytes| bytes[200] ^= 0x40).await;
    let catalog = setup.load(&Want::default()).await;
    assert_eq!(numbers(&catalog), [1, 2, 3, 4, 5]);
    assert_eq!(catalog.findings.len(), 1);
    assert_eq!(catalog.findings[0].object, path.to_string());
}

#[tokio::test]
async fn a_batch_of_another_size_than_its_lane_index_states_is_reported() {
    let setup = setup().await;
    setup.store(1..=3, Some(1)).await;
    setup.change(&setup.batch(2), |bytes| bytes.truncate(100)).await;
    let findings = setup.load(&Want::default()).await.findings;
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(findings[0].object, setup.batch(2).to_string());
}

#[tokio::test]
async fn forged_missing_and_foreign_objects_are_named() {
    let setup = setup().await;
    setup.store(1..=2, None).await;
    setup.change(&names::lane(setup.lane.id()), |bytes| bytes[40] ^= 1).await;
    let foreign = names::batches(setup.lane.id()).join("2");
    setup.raw.put(&foreign, "x".into()).await.expect("memory");
    let catalog = setup.load(&Want::default()).await;
    assert_eq!(numbers(&catalog), [1, 2]);
    assert_eq!(catalog.findings.len(), 2, "{:?}", catalog.findings);
    assert!(catalog.lane(setup.lane.id()).is_none());
    setup.raw.delete(&names::lane(setup.lane.id())).await.expect("deleted");
    for want in [Want::disk(&disk("d1")), Want::default()] {
        let findings = setup.load(&want).await.findings;
        assert!(findings.iter().any(|finding| finding.problem == Problem::LaneKeyMissing), "{findings:?}");
    }
}

#[tokio::test]
async fn an_index_longer_than_the_tail_is_read_whole() {
    let setup = setup().await;
    let disks: Vec<DiskId> =
        (0..3000).map(|i| disk(&format!("disk-{i:05}-with-a-name-that-does-not-pack-{}", i * 7919))).collect();
    let parts: Vec<(&DiskId, u64, u64)> = disks.iter().zip(1_u64..).map(|(disk, i)| (disk, i * i, i * i + 3)).collect();
    let object = batch(&setup.vault, setup.lane.id(), 1, 0, &parts, 64);
    assert!(object.sealed_index.bytes.len() as u64 > crate::vault::batch::TAIL_BYTES);
    setup.raw.put(&setup.batch(1), object.body).await.expect("memory");
    let catalog = setup.load(&Want::default()).await;
    assert_eq!(catalog.findings, []);
    assert_eq!(catalog.batches[0].index.disks.len(), 3000);
}

#[tokio::test]
async fn without_the_catalog_key_the_error_says_what_to_give() {
    let setup = setup().await;
    let keyless = Vault::open_without_key(setup.vault.store().clone()).await.expect("opened");
    let error = Catalog::load(&keyless, &Want::default()).await.expect_err("no key");
    assert!(error.to_string().contains("--catalog-key"), "{error}");
}
