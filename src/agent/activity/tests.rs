//! The activity map over a file that loses what was not synced.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;

const DISK_BYTES: u64 = 40 << 30;

fn disk() -> DiskId {
    DiskId::new("d1").expect("name")
}

/// A file in memory. A crash keeps what was synced and any of the writes since.
#[derive(Default)]
struct SimFile {
    synced: Mutex<Vec<u8>>,
    written: Mutex<Vec<(u64, Vec<u8>)>>,
    syncs: AtomicU64,
    broken: AtomicBool,
    stuck: AtomicBool,
}

struct Handle(Arc<SimFile>);

impl MapFile for Handle {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.written.lock().push((offset, bytes.to_vec()));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        if self.0.broken.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.0.syncs.fetch_add(1, Ordering::SeqCst);
        let mut synced = self.0.synced.lock();
        for (offset, bytes) in self.0.written.lock().drain(..) {
            apply(&mut synced, offset, &bytes);
        }
        Ok(())
    }

    fn discard(&self) -> io::Result<()> {
        if self.0.stuck.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(libc::EROFS));
        }
        self.0.synced.lock().clear();
        Ok(())
    }
}

fn apply(file: &mut [u8], offset: u64, bytes: &[u8]) {
    file[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
}

impl SimFile {
    fn empty_map() -> (Arc<Self>, ActivityMap) {
        let set = ChunkSet::new(regions_of_disk(DISK_BYTES));
        let file = Arc::new(Self::default());
        *file.synced.lock() = encode_file(&disk(), DISK_BYTES, &set);
        (Arc::clone(&file), ActivityMap::new(Box::new(Handle(file)), set))
    }

    /// The map after a crash that kept every unsynced write whose bit in `kept` is set.
    fn after_crash(&self, kept: u64) -> ChunkSet {
        let mut file = self.synced.lock().clone();
        for (number, (offset, bytes)) in self.written.lock().iter().enumerate() {
            if kept >> (number % 64) & 1 == 1 {
                apply(&mut file, *offset, bytes);
            }
        }
        decode_file(&file, &disk(), DISK_BYTES).expect("header").0
    }
}

#[test]
fn a_region_is_durable_before_ensure_returns_and_is_synced_once() {
    let (file, map) = SimFile::empty_map();
    map.ensure(10 * REGION_BYTES - 1, 2).expect("ensure");
    assert_eq!(file.after_crash(0).runs().flatten().collect::<Vec<_>>(), [9, 10]);
    let syncs = file.syncs.load(Ordering::SeqCst);
    map.ensure(9 * REGION_BYTES, REGION_BYTES).expect("ensure");
    assert_eq!(file.syncs.load(Ordering::SeqCst), syncs, "active already");
}

#[test]
fn forward_writes_take_their_neighbours_along() {
    let (file, map) = SimFile::empty_map();
    for step in 0..160 {
        map.ensure(step * REGION_BYTES, 4096).expect("ensure");
    }
    let syncs = file.syncs.load(Ordering::SeqCst);
    assert!(syncs <= 2 + 160 / PREFETCH_REGIONS, "{syncs} syncs for 160 regions");
}

#[test]
fn whatever_a_crash_keeps_no_touched_region_is_lost() {
    for kept in [0, u64::MAX, 0x5555_5555_5555_5555, 0xaaaa_aaaa_aaaa_aaaa] {
        let (file, map) = SimFile::empty_map();
        let mut must = BTreeSet::new();
        for step in 0..300_u64 {
            let region = step * 7919 % regions_of_disk(DISK_BYTES);
            map.ensure(region * REGION_BYTES, 512).expect("ensure");
            must.insert(region);
            if step % 40 == 39 {
                map.watch();
                let touched = *must.iter().next().expect("one");
                map.ensure(touched * REGION_BYTES, 512).expect("ensure");
                let mut candidates = ChunkSet::new(regions_of_disk(DISK_BYTES));
                must.iter().take(20).for_each(|&region| candidates.insert(region..region + 1));
                map.clear(&candidates);
                must.retain(|&region| region == touched || !candidates.contains(region));
            }
            let after = file.after_crash(kept);
            assert!(must.iter().all(|&region| after.contains(region)), "step {step}, kept {kept:x}");
        }
    }
}

#[test]
fn concurrent_writers_share_syncs_and_all_are_durable() {
    let (file, map) = SimFile::empty_map();
    let map = Arc::new(map);
    let threads: Vec<_> = (0..8_u64)
        .map(|thread| {
            let (map, file) = (Arc::clone(&map), Arc::clone(&file));
            std::thread::spawn(move || {
                for step in 0..100 {
                    let region = (step * 8 + thread) * 11 % regions_of_disk(DISK_BYTES);
                    map.ensure(region * REGION_BYTES, 4096).expect("ensure");
                    if step % 10 == 0 {
                        assert!(file.after_crash(0).contains(region));
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().expect("thread"));
}

#[test]
fn a_map_that_cannot_be_synced_is_removed_and_writes_go_on() {
    let (file, map) = SimFile::empty_map();
    file.broken.store(true, Ordering::SeqCst);
    map.ensure(0, 1).expect("the map is gone, the guest goes on");
    map.ensure(99 * REGION_BYTES, 1).expect("all counts as active");
    assert!(file.synced.lock().is_empty(), "removed");
    assert_eq!(map.active_regions(), regions_of_disk(DISK_BYTES));
}

#[test]
fn a_wrong_map_that_cannot_be_removed_fails_writes_until_it_can() {
    let (file, map) = SimFile::empty_map();
    file.broken.store(true, Ordering::SeqCst);
    file.stuck.store(true, Ordering::SeqCst);
    map.ensure(0, 1).expect_err("a stale map would survive");
    file.stuck.store(false, Ordering::SeqCst);
    map.ensure(0, 1).expect("removed now");
}

#[test]
fn damaged_blocks_count_as_active_and_a_damaged_header_as_no_map() {
    let mut set = ChunkSet::new(regions_of_disk(DISK_BYTES));
    set.insert(5000..5001);
    let good = encode_file(&disk(), DISK_BYTES, &set);
    assert_eq!(decode_file(&good, &disk(), DISK_BYTES).expect("good"), (set, 0));
    let mut bytes = good.clone();
    bytes[BLOCK_BYTES + 17] ^= 1;
    let (set, damaged) = decode_file(&bytes, &disk(), DISK_BYTES).expect("header is good");
    assert_eq!((damaged, set.all(0..BLOCK_REGIONS), set.len()), (1, true, BLOCK_REGIONS + 1));
    let (set, damaged) = decode_file(&good[..BLOCK_BYTES * 2], &disk(), DISK_BYTES).expect("cut after one block");
    assert!(damaged > 0 && set.contains(5000));
    bytes[9] ^= 1;
    decode_file(&bytes, &disk(), DISK_BYTES).expect_err("header");
    decode_file(&good, &disk(), DISK_BYTES + 512).expect_err("another size");
}

#[test]
fn a_map_file_is_created_opened_and_missed_by_name() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("d1.map");
    assert!(matches!(ActivityMap::open(&path, &disk(), DISK_BYTES), Err(MapError::Missing { .. })));
    let map = ActivityMap::create(&path, &disk(), DISK_BYTES).expect("create");
    map.watch();
    let mut all = ChunkSet::full(regions_of_disk(DISK_BYTES));
    all.remove(7..8);
    map.clear(&all);
    let (map, damaged) = ActivityMap::open(&path, &disk(), DISK_BYTES).expect("open");
    assert_eq!((map.next_active(0, 9), map.active_regions(), damaged), (Some(7..8), 1, 0));
}

#[test]
fn the_fixture_of_version_1_is_still_read() {
    let bytes = include_bytes!("../../../tests/fixtures/agent/v1.map");
    let mut set = ChunkSet::new(regions_of_disk(DISK_BYTES));
    set.insert(1..3);
    set.insert(4095..4100);
    assert_eq!(decode_file(bytes, &disk(), DISK_BYTES).expect("version 1"), (set.clone(), 0));
    assert_eq!(encode_file(&disk(), DISK_BYTES, &set), bytes, "a changed encoding needs a new version");
}
