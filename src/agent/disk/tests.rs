//! What is remembered of a disk, and what becomes of failures of its own files.

use std::cell::Cell;

use super::*;
use crate::agent::activity::MapFile;
use crate::agent::splitter::Splitter;
use crate::agent::tests::support::{MemSource, Replica, open, shared};
use crate::flow::SystemClock;
use crate::types::{BarrierKind, Chain, Micros};
use crate::wire::ClockOffset;

const DISK_BYTES: usize = 16 << 20;

fn protected() -> (tempfile::TempDir, Arc<Disk>, Replica) {
    let folder = tempfile::tempdir().expect("folder");
    let disk = open(&Arc::new(MemSource::new("d1", DISK_BYTES)), folder.path());
    let mut replica = Replica::begin(&disk);
    replica.settle(&disk);
    (folder, disk, replica)
}

#[test]
fn a_floor_that_came_while_the_state_was_written_stays() {
    let (_folder, disk, replica) = protected();
    let replica = Cell::new(Some(replica));
    let newest = Cell::new(Seq::NONE);
    disk.persist(|_| {
        if let Some(mut replica) = replica.take() {
            Splitter::new(Arc::clone(&disk)).write(0, vec![1; 512].into(), false).expect("write");
            replica.take(&disk);
            disk.abandon(ForkReason::GatewayLost);
            newest.set(replica.last);
        }
    })
    .expect("stored");
    let (_, floor) = disk.floor().expect("an epoch");
    assert_eq!(floor.seq, newest.get(), "the vault has it, and the next fork must not go back behind it");
    disk.persist(|_| {}).expect("stored");
    assert_eq!(disk.shared.dir.load(&disk.id).expect("state").floor_seq, newest.get());
}

#[test]
fn a_fork_is_asked_for_under_one_nonce_until_it_is_given_up() {
    let (_folder, disk, _replica) = protected();
    disk.abandon(ForkReason::GatewayLost);
    let first = disk.nonce().expect("random");
    assert_eq!(disk.nonce().expect("random"), first);
    disk.abandon(ForkReason::GatewayLost);
    assert_ne!(disk.nonce().expect("random"), first);
}

struct Broken;

impl MapFile for Broken {
    fn write_at(&self, _offset: u64, _bytes: &[u8]) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EIO))
    }

    fn sync(&self) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EIO))
    }

    fn discard(&self) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EIO))
    }
}

#[test]
fn the_whole_disk_is_marked_even_if_that_cannot_be_remembered() {
    let (_folder, mut disk, mut replica) = protected();
    let regions = ChunkSet::new(DISK_BYTES as u64 / REGION_BYTES);
    Arc::get_mut(&mut disk).expect("not shared").activity = ActivityMap::new(Box::new(Broken), regions);
    let whole = 0..(DISK_BYTES as u64 / CHUNK_BYTES) as u32;
    disk.mark_touched(&[whole]).expect_err("a crash would forget it");
    assert_eq!(disk.tracker().dirty().must_send().len(), DISK_BYTES as u64 / CHUNK_BYTES);
    replica.settle(&disk);
}

#[test]
fn labels_do_not_go_back_over_an_unclean_start() {
    let (folder, disk, _replica) = protected();
    let late = Micros(disk.shared.clock.stamp().label.0 + 3_600_000_000);
    disk.persist(|state| state.label = late).expect("stored");
    drop(disk);
    let disk = open(&Arc::new(MemSource::new("d1", DISK_BYTES)), folder.path());
    assert_eq!(disk.plan(), Plan::Fork(ForkReason::UncleanStart));
    let epoch = Epoch(2);
    let start = EpochStart { epoch, next_seq: Seq(9), chain: Chain::GENESIS.fork(epoch), from_zero: false };
    disk.start_epoch(start, Id128([2; 16])).expect("epoch");
    assert!(disk.tracker().queue().label() >= late, "the clock was an hour ahead before");
    let Next::Record(record) = disk.next_record() else { panic!("a sync-begin") };
    assert!(record.head.label >= late);
}

#[test]
fn labels_given_after_the_last_settling_are_not_gone_back_behind_when_the_clock_is() {
    let (folder, disk, _replica) = protected();
    disk.settle().expect("settled");
    let given = disk.tracker().barrier(BarrierKind::Crash, Id128::NONE, "", disk.shared.clock.stamp()).expect("made");
    drop(disk);
    let (source, folder) = (Arc::new(MemSource::new("d1", DISK_BYTES)), folder.path());
    let clock = AgentClock::new(Arc::new(SystemClock::new()));
    clock.correct(ClockOffset { offset_micros: -9_000_000, uncertainty_micros: 1 });
    let shared = Shared { clock: Arc::new(clock), ..shared(folder) };
    let disk = Disk::open(source, &folder.join("d1.img"), 1 << 20, shared, Overrides::default()).expect("opened");
    let epoch = Epoch(2);
    let start = EpochStart { epoch, next_seq: Seq(9), chain: Chain::GENESIS.fork(epoch), from_zero: false };
    disk.start_epoch(start, Id128([2; 16])).expect("epoch");
    assert!(disk.tracker().queue().label() >= given.label, "{} after {}", disk.tracker().queue().label(), given.label);
}

#[test]
fn a_label_above_the_kept_one_is_due_at_once_and_a_clean_stop_keeps_the_newest() {
    let (_folder, disk, mut replica) = protected();
    let kept = || disk.shared.dir.load(&disk.id).expect("state").label;
    disk.settle().expect("settled");
    let newest = disk.tracker().queue().label();
    assert!(kept() > newest, "a crash would forget the labels that follow");
    disk.persist(|state| state.label = newest).expect("stored");
    disk.shared.clock.correct(ClockOffset { offset_micros: 60_000_000, uncertainty_micros: 1 });
    Splitter::new(Arc::clone(&disk)).write(0, vec![1; 512].into(), false).expect("write");
    replica.take(&disk);
    assert!(
        futures_util::FutureExt::now_or_never(disk.label_due.notified()).is_some(),
        "its label is above the kept one"
    );
    disk.remember().expect("stored");
    let newest = disk.tracker().queue().label();
    assert!(kept() > newest);
    replica.settle(&disk);
    assert!(disk.close().expect("closed"));
    assert_eq!(kept(), disk.tracker().queue().label());
}

#[test]
fn the_map_stays_as_it_is_until_the_floor_is_durable() {
    let (folder, disk, mut replica) = protected();
    Splitter::new(Arc::clone(&disk)).write(0, vec![1; 512].into(), false).expect("write");
    replica.take(&disk);
    std::fs::remove_dir_all(folder.path()).expect("removed");
    disk.settle().expect_err("the state cannot be written");
    assert_ne!(disk.activity.active_regions(), 0, "a crash now would not know what the old floor lacks");
}

#[test]
fn an_epoch_is_remembered_before_its_first_record_goes_out() {
    let folder = tempfile::tempdir().expect("folder");
    let disk = open(&Arc::new(MemSource::new("d1", DISK_BYTES)), folder.path());
    Replica::begin(&disk);
    let state = disk.shared.dir.load(&disk.id).expect("state");
    assert_eq!((state.epoch, state.nonce), (Some(Epoch(1)), Id128([1; 16])));
}

#[test]
fn a_stop_with_something_on_its_way_is_not_clean() {
    let (_folder, disk, _replica) = protected();
    Splitter::new(Arc::clone(&disk)).write(0, vec![1; 512].into(), false).expect("write");
    assert!(!disk.close().expect("closed"), "a write is not vaulted");
    assert!(!disk.shared.dir.load(&disk.id).expect("state").clean);
}

#[test]
fn a_copy_waits_for_a_write_of_its_range() {
    let (_folder, disk, _replica) = protected();
    disk.uncertain(0, 512);
    let (CopyNext::Chunks(chunks), guard) = disk.next_copy(0) else { panic!("there is something to copy") };
    let held = disk.ranges.lock(0, 512);
    std::thread::scope(|scope| {
        let copy = scope.spawn(|| disk.copy(chunks, guard));
        // Long enough for a copy that does not wait.
        for _ in 0..50 {
            assert!(!copy.is_finished(), "what it read may be older than the write whose record is ahead of it");
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(held);
        copy.join().expect("joined").expect("copied");
    });
}
