//! The splitter over a disk in memory: order, durability of the activity map, failures.

use std::sync::atomic::Ordering;

use super::*;
use crate::agent::activity::{ActivityMap, REGION_BYTES};
use crate::agent::tests::support::{Dice, MemSource, Replica, open};
use crate::agent::tracker::Mode;
use crate::types::DiskId;

const DISK_BYTES: usize = 16 << 20;

fn protected(source: MemSource) -> (tempfile::TempDir, Arc<MemSource>, Arc<Disk>, Splitter, Replica) {
    let folder = tempfile::tempdir().expect("folder");
    let source = Arc::new(source);
    let disk = open(&source, folder.path());
    let mut replica = Replica::begin(&disk);
    replica.settle(&disk);
    let splitter = Splitter::new(Arc::clone(&disk));
    (folder, source, disk, splitter, replica)
}

#[test]
fn concurrent_overlapping_writes_make_the_same_image_on_both_sides() {
    let (_folder, source, disk, splitter, mut replica) = protected(MemSource::new("d1", DISK_BYTES));
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let splitter = &splitter;
            scope.spawn(move || {
                let mut dice = Dice(thread);
                for round in 0..400 {
                    // A small part of the disk, so that nearly all overlap.
                    let offset = dice.roll(64) * 512;
                    let length = (1 + dice.roll(16)) * 512;
                    match dice.roll(8) {
                        0 => splitter.zero(offset, length, ZeroFlags::default()).expect("zero"),
                        1 => splitter.trim(offset, length, false).expect("trim"),
                        _ => {
                            let value = (round * 4 + thread) as u8;
                            splitter.write(offset, vec![value; length as usize].into(), false).expect("write");
                        }
                    }
                }
            });
        }
    });
    replica.take(&disk);
    assert!(replica.image == *source.bytes.lock(), "images differ");
}

#[test]
fn copying_beside_live_writes_makes_the_same_image() {
    let folder = tempfile::tempdir().expect("folder");
    let source = Arc::new(MemSource::new("d1", DISK_BYTES));
    let mut dice = Dice(7);
    source.bytes.lock().iter_mut().step_by(100).for_each(|byte| *byte = dice.roll(256) as u8);
    let disk = open(&source, folder.path());
    let mut replica = Replica::begin(&disk);
    let splitter = Splitter::new(Arc::clone(&disk));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut dice = Dice(8);
            for _ in 0..500 {
                let offset = dice.roll(DISK_BYTES as u64 / 512 - 64) * 512;
                let length = (1 + dice.roll(64)) * 512;
                splitter.write(offset, vec![dice.roll(256) as u8; length as usize].into(), false).expect("write");
            }
        });
        replica.settle(&disk);
    });
    replica.settle(&disk);
    assert!(replica.image == *source.bytes.lock(), "images differ");
}

#[test]
fn the_region_is_durably_active_before_a_write_reaches_the_disk() {
    let (folder, source, disk, splitter, _replica) = protected(MemSource::new("d1", DISK_BYTES));
    disk.settle().expect("settled");
    assert_eq!(disk.activity.active_regions(), 0, "all is vaulted");
    let path = folder.path().join("d1.map");
    *source.before_write.lock() = Some(Box::new(move |offset| {
        let name = DiskId::new("d1").expect("name");
        let (map, _) = ActivityMap::open(&path, &name, DISK_BYTES as u64).expect("map");
        let region = offset / REGION_BYTES;
        assert_eq!(map.next_active(region, 1), Some(region..region + 1), "not in the file");
    }));
    for region in [2, 0, 3, 2] {
        splitter.write(region * REGION_BYTES, vec![1; 512].into(), false).expect("write");
    }
}

#[test]
fn regions_stay_active_until_everything_in_them_is_vaulted_and_the_floor_is_remembered() {
    let (_folder, _source, disk, splitter, mut replica) = protected(MemSource::new("d1", DISK_BYTES));
    disk.settle().expect("settled");
    splitter.write(0, vec![1; 512].into(), false).expect("write");
    splitter.write(3 * REGION_BYTES, vec![1; 512].into(), false).expect("write");
    disk.settle().expect("settled");
    assert_eq!(disk.activity.active_regions(), 2, "nothing was sent");
    replica.take(&disk);
    splitter.write(0, vec![2; 512].into(), false).expect("write");
    disk.settle().expect("settled");
    assert_eq!(disk.activity.next_active(0, 9), Some(0..1), "region 3 is vaulted");
    let remembered = disk.shared.dir.load(&disk.id).expect("state");
    assert_eq!(remembered.floor_seq, replica.last);
}

#[test]
fn a_write_that_fails_half_way_is_read_back() {
    let (_folder, source, disk, splitter, mut replica) = protected(MemSource::new("d1", DISK_BYTES));
    source.fail_write.store(true, Ordering::SeqCst);
    splitter.write(4096, vec![9; 4096].into(), false).expect_err("the guest is told");
    assert!(disk.tracker().in_span());
    assert_eq!(disk.periodic_barrier(), None, "no point until it is read back");
    replica.settle(&disk);
    assert_eq!(replica.image[4096], 9, "the half that was written");
    assert!(replica.image == *source.bytes.lock(), "images differ");
}

#[test]
fn a_failed_flush_compares_what_was_active() {
    let (_folder, source, disk, splitter, mut replica) = protected(MemSource::new("d1", DISK_BYTES));
    disk.settle().expect("settled");
    splitter.write(0, vec![1; 512].into(), false).expect("write");
    replica.take(&disk);
    source.fail_flush.store(true, Ordering::SeqCst);
    splitter.flush().expect_err("the guest is told");
    // The write was in a cache and is gone.
    source.bytes.lock()[..512].fill(0);
    disk.settle().expect("nothing is cleared without a flush");
    assert_eq!(disk.activity.active_regions(), 1);
    source.fail_flush.store(false, Ordering::SeqCst);
    replica.settle(&disk);
    assert!(replica.image == *source.bytes.lock(), "images differ");
}

#[test]
fn the_guest_is_told_of_a_flush_that_failed_for_the_agent() {
    let (_folder, source, disk, splitter, mut replica) = protected(MemSource::new("d1", DISK_BYTES));
    for fua in [false, true] {
        splitter.write(0, vec![1; 512].into(), false).expect("write");
        replica.take(&disk);
        source.fail_flush.store(true, Ordering::SeqCst);
        disk.settle().expect("nothing is cleared");
        // The system tells it once.
        source.fail_flush.store(false, Ordering::SeqCst);
        let durable = || if fua { splitter.write(4096, vec![2; 512].into(), true) } else { splitter.flush() };
        durable().expect_err("what was written before may be lost");
        durable().expect("told once");
        assert!(disk.tracker().dirty().must_send().contains(0), "it is read back");
        replica.settle(&disk);
        assert!(replica.image == *source.bytes.lock(), "images differ");
    }
}

#[test]
fn a_write_through_that_cannot_flush_compares_all_that_was_active() {
    let (_folder, source, disk, splitter, mut replica) = protected(MemSource::new("d1", DISK_BYTES));
    disk.settle().expect("settled");
    splitter.write(0, vec![1; 512].into(), false).expect("write");
    replica.take(&disk);
    source.fail_flush.store(true, Ordering::SeqCst);
    splitter.write(3 * REGION_BYTES, vec![1; 512].into(), true).expect_err("the guest is told");
    // The older write was in the same cache.
    source.bytes.lock()[..512].fill(0);
    source.fail_flush.store(false, Ordering::SeqCst);
    replica.settle(&disk);
    assert!(replica.image == *source.bytes.lock(), "images differ");
}

#[test]
fn a_zeroing_that_is_not_supported_half_way_is_read_back() {
    let (_folder, source, disk, splitter, mut replica) = protected(MemSource::new("d1", DISK_BYTES));
    splitter.write(0, vec![5; 8192].into(), false).expect("write");
    source.fail_zero.store(true, Ordering::SeqCst);
    splitter.zero(0, 8192, ZeroFlags::default()).expect_err("the guest is told");
    replica.settle(&disk);
    assert_eq!(replica.image[..8192], [[0; 4096], [5; 4096]].concat());
    assert!(replica.image == *source.bytes.lock(), "images differ");
}

#[test]
fn trim_changes_nothing_where_zeroing_is_not_cheap() {
    let (_folder, source, disk, splitter, mut replica) =
        protected(MemSource { slow_zero: true, ..MemSource::new("d1", DISK_BYTES) });
    splitter.write(0, vec![5; 8192].into(), false).expect("write");
    splitter.trim(0, 4096, false).expect("advice");
    replica.take(&disk);
    assert_eq!(source.bytes.lock()[..8192], [5; 8192]);
    assert!(replica.image == *source.bytes.lock(), "images differ");
}

#[test]
fn writes_go_on_without_a_gateway_in_bounded_memory() {
    let (_folder, source, disk, splitter, mut replica) = protected(MemSource::new("d1", DISK_BYTES));
    let mut dice = Dice(3);
    for _ in 0..2000 {
        let offset = dice.roll(DISK_BYTES as u64 / 65536 - 1) * 65536;
        splitter.write(offset, vec![dice.roll(256) as u8; 65536].into(), false).expect("write");
    }
    assert_eq!(disk.tracker().mode(), Mode::Overflowed);
    assert!(disk.tracker().queue().bytes() <= 64 << 20);
    replica.settle(&disk);
    assert!(replica.image == *source.bytes.lock(), "images differ");
}
