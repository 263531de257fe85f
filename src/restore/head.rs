//! Where a disk's newest epoch ends in the vault, for a gateway that goes on with it.
//!
//! The whole of a disk's indexes is more than a fail-over should read: thousands of disks move at once, and months of
//! indexes are gigabytes. What the agent knows to be vaulted, its floor, lies seconds behind the end. So the newest
//! batches of the newest lanes are read first, and more until nothing above the floor can hide in what was left unread.
//!
//! That is known lane by lane. A disk's records stand in a lane in the order of epoch and seq, so what lies below the
//! part that was read is older than the oldest message of the disk in that part. A lane that says nothing of the disk
//! there, and goes on below, proves nothing: the disk may have been busy in it until it moved away.

use std::collections::BTreeMap;

use super::history::Conflict;
use super::source;
use super::touched::{self, Runs};
use crate::types::{Chain, DiskId, Epoch, Seq};
use crate::vault::index::{MessageMeta, RecordMeta};
use crate::vault::reader::{Catalog, Newest, Want};
use crate::vault::{Vault, VaultError};

/// What is read before everything is: the usual loss shows in the first, a vault that was away for a while in the second.
const STEPS: [Newest; 2] = [Newest { lanes: 16, batches: 32 }, Newest { lanes: 64, batches: 1024 }];

/// The end of an epoch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Head {
    /// Its newest record with everything before it in the vault, and the chain after it; `None` if there is none.
    pub at: Option<(Seq, Chain)>,
    /// Accounts of the same records that differ; nothing from the first of them on is believed.
    pub conflicts: Vec<Conflict>,
    /// Whether nothing may go on from the floor: its chain is not the one that the vault has there, as far as that can be
    /// seen, or the epoch has two accounts of a record.
    pub contradicts_floor: bool,
    /// The chunks that the records above the floor set, up to the end; `None` without a floor.
    pub touched: Option<Runs>,
}

/// The end of `epoch` of `disk`, after which no epoch has records. `floor` is a record of it that is known to be vaulted,
/// with the chain after it; nothing below it is looked at.
///
/// # Errors
/// [`VaultError`] if the store fails.
pub async fn head(vault: &Vault, disk: &DiskId, epoch: Epoch, floor: Option<(Seq, Chain)>) -> Result<Head, VaultError> {
    if let Some(floor) = floor {
        for newest in STEPS {
            let want = Want { newest: Some(newest), ..Want::disk(disk) };
            let catalog = source::load(vault, &want).await?;
            let messages = messages(&catalog, disk, epoch);
            if hides_nothing(&catalog, disk, epoch, floor.0)
                && let Some(end) = above(&messages, floor)
            {
                let at = Some(end).filter(|(seq, _)| *seq > Seq::NONE);
                return Ok(Head { at, touched: Some(between(&messages, floor.0, end.0)), ..Head::default() });
            }
        }
    }
    whole(vault, disk, epoch, floor).await
}

/// The same from everything that the vault holds of the disk.
async fn whole(vault: &Vault, disk: &DiskId, epoch: Epoch, floor: Option<(Seq, Chain)>) -> Result<Head, VaultError> {
    let catalog = source::load(vault, &Want::disk(disk)).await?;
    let epochs = vault.epochs(disk).await?;
    let history = source::history(&catalog, disk, &epochs);
    let at =
        history.head_with_chain().filter(|(point, _)| point.epoch == epoch).map(|(point, chain)| (point.seq, chain));
    let messages = messages(&catalog, disk, epoch);
    let mut claims = messages.iter().copied().flat_map(ends);
    // What goes on from a place above the difference, in this epoch or by a fork, has no known base and can never be
    // restored; a gateway's own mark may lie there as well as the agent's.
    let disputed = history.conflicts.iter().any(|conflict| conflict.epoch == epoch);
    let contradicts_floor =
        floor.is_some_and(|(floor, chain)| disputed || claims.any(|(seq, claimed)| seq == floor && claimed != chain));
    let end = at.map_or(Seq::NONE, |(seq, _)| seq);
    let touched = floor.map(|(floor, _)| between(&messages, floor, end));
    Ok(Head { at, conflicts: history.conflicts, contradicts_floor, touched })
}

/// The chunks that the records above `floor` set, up to `end`.
fn between(messages: &[&MessageMeta], floor: Seq, end: Seq) -> Runs {
    let records = messages.iter().flat_map(|message| &message.records);
    let inside = records.filter(|record| floor < record.seq && record.seq <= end);
    touched::chunks(inside.flat_map(|record| &record.extents))
}

/// The chains that a message states: before its first record, if it knows that, and after its last.
fn ends(message: &MessageMeta) -> impl Iterator<Item = (Seq, Chain)> {
    let before = message.chain_before.map(|chain| (Seq(message.first.0 - 1), chain));
    before.into_iter().chain([(message.last, message.chain_last)])
}

fn messages<'a>(catalog: &'a Catalog, disk: &DiskId, epoch: Epoch) -> Vec<&'a MessageMeta> {
    let parts = catalog.batches.iter().flat_map(|batch| &batch.index.disks).filter(|part| part.disk == *disk);
    parts.flat_map(|part| &part.messages).filter(|message| message.epoch == epoch).collect()
}

/// Whether what was left unread holds no record of `epoch` above `floor`. What a keeper moved is told by the lane that it came from too.
fn hides_nothing(catalog: &Catalog, disk: &DiskId, epoch: Epoch, floor: Seq) -> bool {
    let whole = catalog.lanes_left_out == 0 && catalog.findings.iter().all(|finding| finding.problem.is_beside());
    whole
        && catalog.lanes.iter().filter(|lane| lane.cut && !lane.is_moved()).all(|lane| {
            let batches = catalog.batches.iter().filter(|batch| batch.index.lane == lane.lane);
            let mut parts = batches.flat_map(|batch| &batch.index.disks).filter(|part| part.disk == *disk);
            parts
                .any(|part| part.messages.iter().any(|message| (message.epoch, message.first) <= (epoch, floor.next())))
        })
}

/// How far messages go on from the floor. `None` if they do not say it for sure: none reaches down to the floor, there
/// is a hole above it, or two of them differ. Where no record is known to be vaulted, none may be there.
fn above(messages: &[&MessageMeta], floor: (Seq, Chain)) -> Option<(Seq, Chain)> {
    let mut chains: BTreeMap<Seq, Chain> = BTreeMap::from([floor]);
    let mut records: BTreeMap<Seq, &RecordMeta> = BTreeMap::new();
    for message in messages {
        for record in &message.records {
            if *records.entry(record.seq).or_insert(record) != record {
                return None;
            }
        }
        for (seq, chain) in ends(message) {
            if *chains.entry(seq).or_insert(chain) != chain {
                return None;
            }
        }
    }
    let mut sorted: Vec<&MessageMeta> = messages.to_vec();
    sorted.sort_unstable_by_key(|message| (message.first, message.last));
    let reaches_down = match sorted.first() {
        Some(lowest) => lowest.first <= floor.0.next(),
        None => floor.0 == Seq::NONE,
    };
    let mut end = floor;
    for message in sorted {
        if message.first > end.0.next() {
            return None;
        }
        if message.last > end.0 {
            end = (message.last, message.chain_last);
        }
    }
    reaches_down.then_some(end)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::flow::SystemClock;
    use crate::restore::tests::{ModelDisk, TestVault};
    use crate::types::{Extent, ExtentKind, Micros, PointId, RecordKind};
    use crate::vault::lane::Lane;
    use crate::vault::names;
    use crate::vault::objects::LaneSealObject;

    fn disk_of(records: u64) -> ModelDisk {
        let mut disk = ModelDisk::new(1 << 20);
        for number in 0..records {
            disk.write((number % 64) * 4096, vec![number as u8; 512]);
        }
        disk
    }

    fn at(disk: &ModelDisk, seq: u64) -> (Seq, Chain) {
        (Seq(seq), disk.chain_at(PointId { epoch: Epoch(1), seq: Seq(seq) }))
    }

    #[test]
    fn messages_go_on_from_the_floor_only_without_hole_and_contradiction() {
        let disk = disk_of(40);
        let message = |first, last| disk.message(Epoch(1), first, last);
        let (a, b, c) = (message(5, 10), message(11, 20), message(31, 40));
        let mut other = message(11, 20);
        other.chain_last = Chain([9; 32]);
        let floor = at(&disk, 8);
        assert_eq!(above(&[&b, &a], floor), Some(at(&disk, 20)));
        assert_eq!(above(&[&a, &b, &c], floor), None, "a hole");
        assert_eq!(above(&[&b, &c], floor), None, "nothing reaches down to the floor");
        assert_eq!(above(&[], floor), None);
        assert_eq!(above(&[&a, &b, &other], floor), None, "two accounts");
        assert_eq!(above(&[&a], (Seq(10), Chain([1; 32]))), None, "another history than the agent's");
        assert_eq!(above(&[&a], at(&disk, 10)), Some(at(&disk, 10)));
    }

    #[tokio::test]
    async fn the_head_is_the_same_however_little_of_the_vault_is_read() {
        let disk = disk_of(120);
        let mut vault = TestVault::in_memory().await;
        // One message a batch: more batches than the first step reads.
        vault.fill(&[&disk], 2, 1).await;
        for floor in [None, Some(at(&disk, 0)), Some(at(&disk, 10)), Some(at(&disk, 110)), Some(at(&disk, 120))] {
            let found = head(&vault.vault, &disk.id, Epoch(1), floor).await.unwrap();
            let above =
                |floor: Seq| disk.records[&Epoch(1)].iter().skip(floor.0 as usize).flat_map(|record| &record.extents);
            let touched = floor.map(|(seq, _)| touched::chunks(above(seq)));
            assert_eq!(found, Head { at: Some(at(&disk, 120)), touched, ..Head::default() }, "{floor:?}");
        }
        let wrong = Some((Seq(110), Chain([7; 32])));
        let found = head(&vault.vault, &disk.id, Epoch(1), wrong).await.unwrap();
        assert_eq!(found.at, Some(at(&disk, 120)), "what the agent says wrongly changes nothing");
        assert!(found.contradicts_floor);
    }

    /// The vault's lane is left as it is, and another one begun.
    async fn next_lane(vault: &mut TestVault, gateway: &str) {
        vault.lane = Lane::open(&vault.vault, gateway, &SystemClock::new()).await.unwrap();
        vault.next_batch = 1;
    }

    #[tokio::test]
    async fn a_batch_that_came_into_a_lane_long_after_its_seal_counts_for_nobody() {
        let (disk, folder) = (disk_of(60), tempfile::tempdir().unwrap());
        let store = object_store::local::LocalFileSystem::new_with_prefix(folder.path()).unwrap();
        let mut vault = TestVault::new(Arc::new(store)).await;
        vault.vault.create_epoch(&disk.epochs[0]).await.unwrap();
        vault.put_route(&disk.id).await;
        let seal = LaneSealObject { lane: vault.lane.id(), sealed_micros: Micros(1), reason: "kept".into() };
        vault.vault.put_object(&names::lane_seal(vault.lane.id()), &seal).await.unwrap();
        let sealed = std::fs::metadata(folder.path().join(names::lane_seal(vault.lane.id()).as_ref())).unwrap();
        for (last, after) in [(20, 0), (40, 20), (60, 40)] {
            let path = vault.put_batch(&[(&disk, disk.message(Epoch(1), last - 19, last))]).await;
            let file = std::fs::File::options().write(true).open(folder.path().join(path.as_ref())).unwrap();
            file.set_modified(sealed.modified().unwrap() + Duration::from_secs(after)).unwrap();
        }
        for floor in [None, Some(at(&disk, 10))] {
            let found = head(&vault.vault, &disk.id, Epoch(1), floor).await.unwrap();
            assert_eq!(found.at, Some(at(&disk, 40)), "{floor:?}: the last batch may be gone tomorrow");
        }
    }

    #[tokio::test]
    async fn an_old_message_in_an_idle_lane_proves_nothing_for_a_lane_that_goes_on_below_what_was_read() {
        let (disk, mut foreign) = (disk_of(60), ModelDisk::named("sdb", 1 << 20));
        for number in 0..40 {
            foreign.write(number * 4096, vec![1; 512]);
        }
        let mut vault = TestVault::in_memory().await;
        vault.vault.create_epoch(&disk.epochs[0]).await.unwrap();
        // Carried by g1 up to 20, then by g2 up to the end; then g2 carried others for a while.
        vault.put_batch(&[(&disk, disk.message(Epoch(1), 1, 20))]).await;
        next_lane(&mut vault, "g2").await;
        vault.put_batch(&[(&disk, disk.message(Epoch(1), 21, 60))]).await;
        for number in 1..=40 {
            vault.put_batch(&[(&foreign, foreign.message(Epoch(1), number, number))]).await;
        }
        let found = head(&vault.vault, &disk.id, Epoch(1), Some(at(&disk, 30))).await.unwrap();
        assert_eq!(found.at, Some(at(&disk, 60)), "31 to 60 are vaulted");
    }

    #[tokio::test]
    async fn lanes_that_were_left_out_may_hold_more() {
        let disk = disk_of(60);
        let mut vault = TestVault::in_memory().await;
        vault.vault.create_epoch(&disk.epochs[0]).await.unwrap();
        vault.put_batch(&[(&disk, disk.message(Epoch(1), 21, 60))]).await;
        vault.end().await;
        for number in 0..=STEPS[0].lanes {
            next_lane(&mut vault, &format!("g{number}")).await;
            vault.put_batch(&[(&disk, disk.message(Epoch(1), 1, 20))]).await;
            vault.end().await;
        }
        let found = head(&vault.vault, &disk.id, Epoch(1), Some(at(&disk, 20))).await.unwrap();
        assert_eq!(found.at, Some(at(&disk, 60)));
    }

    #[tokio::test]
    async fn a_few_batches_are_enough_where_each_lane_shows_that_it_holds_no_more() {
        let disk = disk_of(120);
        let mut vault = TestVault::in_memory().await;
        vault.fill(&[&disk], 2, 1).await;
        let want = Want { newest: Some(STEPS[0]), ..Want::disk(&disk.id) };
        let catalog = source::load(&vault.vault, &want).await.unwrap();
        assert!(catalog.lanes[0].cut);
        assert!(hides_nothing(&catalog, &disk.id, Epoch(1), Seq(110)));
        assert!(hides_nothing(&catalog, &disk.id, Epoch(2), Seq(0)), "an older epoch lies below all of a newer one");
        assert!(!hides_nothing(&catalog, &disk.id, Epoch(1), Seq(10)));
    }

    #[tokio::test]
    async fn two_accounts_of_a_record_are_told_and_nothing_from_there_on_is_believed() {
        let disk = disk_of(30);
        let mut clone = disk_of(20);
        let zero = Extent { offset_bytes: 0, length_bytes: 512, kind: ExtentKind::Zero };
        clone.push(RecordKind::Write, vec![zero], vec![]);
        let mut vault = TestVault::in_memory().await;
        vault.vault.create_epoch(&disk.epochs[0]).await.unwrap();
        for (first, last) in [(1, 10), (11, 20), (21, 30)] {
            vault.put_batch(&[(&disk, disk.message(Epoch(1), first, last))]).await;
        }
        vault.put_batch(&[(&clone, clone.message(Epoch(1), 21, 21))]).await;
        vault.end().await;
        for floor in [15, 20, 21, 25, 30] {
            let found = head(&vault.vault, &disk.id, Epoch(1), Some(at(&disk, floor))).await.unwrap();
            assert_eq!((found.at, found.contradicts_floor), (Some(at(&disk, 20)), true), "{floor}");
            assert_eq!(found.conflicts.len(), 1, "{:?}", found.conflicts);
        }
    }
}
