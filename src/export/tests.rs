//! A point over a vault that is slow, counts, fails and is damaged: read, written over, copied, stopped and gone on with.

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult,
};
use parking_lot::Mutex;

use super::*;
use crate::fault::Fault;
use crate::flow::DrainTrigger;
use crate::nbd::ZeroFlags;
use crate::restore::source;
use crate::restore::target::partial_of;
use crate::restore::tests::{ModelDisk, TestVault};
use crate::types::{BarrierKind, Extent, ExtentKind, PointId, RecordKind};
use crate::vault::reader::Want;

const DISK_BYTES: u64 = 4 << 20;

/// A store whose every answer takes a while, and that counts.
struct LateStore {
    inner: InMemory,
    pause: Mutex<Duration>,
    /// Reads of batches.
    gets: AtomicUsize,
    /// Every request.
    requests: AtomicUsize,
    /// What is refused for good.
    refused: Mutex<HashSet<String>>,
}

impl LateStore {
    fn new() -> Arc<Self> {
        let (gets, requests) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Self { inner: InMemory::new(), pause: Mutex::default(), gets, requests, refused: Mutex::default() })
    }

    async fn request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let pause = *self.pause.lock();
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
}

impl fmt::Debug for LateStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LateStore")
    }
}

impl fmt::Display for LateStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LateStore")
    }
}

#[async_trait]
impl ObjectStore for LateStore {
    async fn put_opts(
        &self,
        location: &ObjectPath,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.inner.put_opts(location, payload, options).await
    }

    async fn get_opts(&self, location: &ObjectPath, options: GetOptions) -> object_store::Result<GetResult> {
        if location.as_ref().starts_with("b/") {
            self.gets.fetch_add(1, Ordering::Relaxed);
        }
        self.request().await;
        if self.refused.lock().contains(location.as_ref()) {
            let source = "Server returned non-2xx status code: 403 Told".into();
            return Err(object_store::Error::PermissionDenied { path: location.to_string(), source });
        }
        self.inner.get_opts(location, options).await
    }

    async fn put_multipart_opts(
        &self,
        _: &ObjectPath,
        _: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        unreachable!("objects are written by single PUTs")
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<ObjectPath>>,
    ) -> BoxStream<'static, object_store::Result<ObjectPath>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let (pause, listed) = (*self.pause.lock(), self.inner.list(prefix));
        let late = async move {
            tokio::time::sleep(pause).await;
            listed
        };
        stream::once(late).flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> object_store::Result<ListResult> {
        self.request().await;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, _: &ObjectPath, _: &ObjectPath, _: CopyOptions) -> object_store::Result<()> {
        unreachable!("objects are never copied")
    }
}

/// A disk with a first copy, live writes, zeroes, and holes.
fn busy_disk() -> ModelDisk {
    let mut disk = ModelDisk::new(DISK_BYTES);
    let content = |at: u64, length: u64| (0..length).map(|byte| (at * 3 + byte * 7) as u8 | 1).collect::<Vec<u8>>();
    disk.barrier(BarrierKind::SyncBegin, "");
    for chunk in 0..24 {
        disk.write(chunk << 17, content(chunk, 90_000));
    }
    disk.barrier(BarrierKind::SyncEnd, "");
    for at in 0..40 {
        disk.write(at * 4096 * 7 + 1000, content(at, 9000));
    }
    let zero = Extent { offset_bytes: 300_000, length_bytes: 200_000, kind: ExtentKind::Zero };
    disk.push(RecordKind::Write, vec![zero], Vec::new());
    disk.barrier(BarrierKind::App, "before");
    disk.write(0, content(3, 70_000));
    disk.write(DISK_BYTES - 5000, content(8, 5000));
    disk.barrier(BarrierKind::Crash, "");
    disk
}

struct World {
    folder: tempfile::TempDir,
    store: Arc<LateStore>,
    vault: TestVault,
    disk: ModelDisk,
    trigger: DrainTrigger,
    limits: OriginLimits,
}

impl World {
    async fn new(disk: ModelDisk, step: u64, per_batch: usize) -> Self {
        let store = LateStore::new();
        let mut vault = TestVault::new(Arc::clone(&store) as _).await;
        vault.fill(&[&disk], step, per_batch).await;
        let (trigger, _) = DrainTrigger::new();
        let limits = OriginLimits { memory_bytes: 32 << 20, jobs: 4, patience: Duration::from_secs(60) };
        Self { folder: tempfile::tempdir().unwrap(), store, vault, disk, trigger, limits }
    }

    async fn usual() -> Self {
        Self::new(busy_disk(), 4, 3).await
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn image(&self) -> Vec<u8> {
        self.disk.image_at(self.disk.head())
    }

    async fn try_open(&self, point: PointId, places: &Places) -> Result<Arc<PointDisk>, ExportError> {
        let (source, history) = self.vault.open(&self.disk.id).await;
        let plan = Plan::build(&history, point).expect("inside the history");
        let exported = Exported { source, disk: self.disk.id.clone(), history, plan };
        open(exported, places, self.limits, Handle::current(), self.trigger.drain()).map(Arc::new)
    }

    async fn open(&self, places: &Places) -> Arc<PointDisk> {
        self.try_open(self.disk.head(), places).await.unwrap()
    }

    fn gets(&self) -> usize {
        self.store.gets.load(Ordering::Relaxed)
    }
}

/// As the server calls an export: on a thread that may block.
async fn on_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

fn read(disk: &PointDisk, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0xee; length];
    disk.read(offset, &mut bytes)?;
    Ok(bytes)
}

async fn all_of(disk: &Arc<PointDisk>) -> Vec<u8> {
    let disk = Arc::clone(disk);
    on_thread(move || {
        let pieces = (0..DISK_BYTES).step_by(100_000).map(|at| {
            let length = (DISK_BYTES - at).min(100_000) as usize;
            read(&disk, at, length).unwrap()
        });
        pieces.collect::<Vec<_>>().concat()
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_reads_what_a_restore_gives_at_every_point_and_every_place() {
    let world = World::usual().await;
    for point in ["e1-s20", "e1-s26", "e1-s60", "e1-s67", "e1-s71"] {
        let point: PointId = point.parse().unwrap();
        let image = world.disk.image_at(point);
        let disk = world.try_open(point, &Places::default()).await.unwrap();
        assert!(all_of(&disk).await == image, "{point}");
        let small = Arc::clone(&disk);
        on_thread(move || {
            for number in 0..400_u64 {
                let offset = number * 7_919_777 % DISK_BYTES;
                let length = (1 + number * 331 % 9000).min(DISK_BYTES - offset) as usize;
                let read = read(&small, offset, length).unwrap();
                assert!(read == image[offset as usize..][..length], "{length} bytes at {offset}");
            }
        })
        .await;
        assert!(disk.read_only());
        assert!(disk.write(0, Bytes::from_static(b"x"), false).is_err());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_many_want_is_brought_once() {
    let world = World::usual().await;
    *world.store.pause.lock() = Duration::from_millis(50);
    let disk = world.open(&Places::default()).await;
    let before = world.gets();
    let reads = (0..12).map(|_| {
        let disk = Arc::clone(&disk);
        tokio::task::spawn_blocking(move || read(&disk, 80_000, 4096).unwrap())
    });
    let expected = world.image()[80_000..84_096].to_vec();
    for read in futures_util::future::join_all(reads).await {
        assert!(read.unwrap() == expected);
    }
    let wanted = disk.origin().map().messages_in(80_000..84_096, usize::MAX).len();
    assert!(world.gets() - before <= wanted, "{} reads for {wanted} messages", world.gets() - before);
    assert_eq!(disk.origin().figures().messages.load(Ordering::Relaxed), wanted as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_of_reads_finds_what_was_read_ahead() {
    // A disk that was copied from front to end, as the first copy does it: messages lie side by side.
    let mut disk = ModelDisk::new(DISK_BYTES);
    disk.barrier(BarrierKind::SyncBegin, "");
    for at in 0..DISK_BYTES >> 15 {
        disk.write(at << 15, vec![at as u8 | 1; 1 << 15]);
    }
    disk.barrier(BarrierKind::SyncEnd, "");
    let world = World::new(disk, 2, 64).await;
    let disk = world.open(&Places::default()).await;
    let before = world.gets();
    assert!(all_of(&disk).await == world.image());
    let (messages, gets) = (disk.origin().map().messages(), world.gets() - before);
    assert!(messages > 60, "{messages}");
    assert!(gets * 3 < messages, "{gets} reads brought {messages} messages");
    assert_eq!(disk.origin().figures().messages.load(Ordering::Relaxed), messages as u64, "each was brought once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_damaged_or_refused_fails_alone_and_is_named() {
    let world = World::usual().await;
    let (source, history) = world.vault.open(&world.disk.id).await;
    let plan = Plan::build(&history, world.disk.head()).unwrap();
    let places: Vec<(ObjectPath, u64, u64)> = [0, plan.reads.len() - 1]
        .map(|at| {
            let (message, object) = (&plan.reads[at].messages[0], plan.reads[at].object);
            let place = history.rows[message.row].message.offset_bytes;
            (source.path(object).clone(), place, message.owned[0].offset_bytes)
        })
        .into();
    let [(flipped, place, first_at), (refused, _, second_at)] = &places[..] else { unreachable!() };
    assert_ne!(flipped, refused);
    let place = *place as usize;
    world
        .vault
        .tamper(flipped, |mut bytes| {
            bytes[place + 40] ^= 4;
            Some(bytes)
        })
        .await;
    // After the indexes were read, which stand in the same objects.
    let disk = world.open(&Places::default()).await;
    world.store.refused.lock().insert(refused.to_string());
    for (object, at) in [(flipped.to_string(), *first_at), (refused.to_string(), *second_at)] {
        let disk = Arc::clone(&disk);
        let error = on_thread(move || read(&disk, at, 512).unwrap_err()).await;
        let text = chain_text(&error);
        assert!(text.contains(&object), "{text}");
    }
    assert_eq!(disk.origin().figures().failed.load(Ordering::Relaxed), 2);
    // All else is read, and what was only refused comes back with the right to it.
    world.store.refused.lock().clear();
    let (image, at) = (world.image(), *second_at);
    let sound = plan.reads.iter().filter(|read| source.path(read.object) != flipped).flat_map(|read| &read.messages);
    let places: Vec<u64> = sound.flat_map(|message| &message.owned).map(|owned| owned.offset_bytes).collect();
    assert!(places.contains(&at));
    on_thread(move || {
        for at in places {
            assert!(read(&disk, at, 1).unwrap() == image[at as usize..][..1], "{at}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_memory_let_go_is_found_on_the_local_disk() {
    let mut world = World::usual().await;
    world.limits.memory_bytes = 1000;
    let folder = world.path("cache");
    std::fs::create_dir(&folder).unwrap();
    let disk = world.open(&Places { cache: Some(folder.clone()), cache_bytes: 64 << 20, ..Places::default() }).await;
    assert!(all_of(&disk).await == world.image());
    let after = world.gets();
    assert!(all_of(&disk).await == world.image());
    assert_eq!(world.gets(), after, "the second time nothing comes from the vault");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0, "the cache has no name");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_guests_writes_stay_in_the_overlay_and_outlive_a_restart() {
    let world = World::usual().await;
    let overlay = world.path("overlay");
    let places = Places { overlay: Some(overlay.clone()), ..Places::default() };
    let mut model = world.image();
    let objects = world.vault.vault.store().list(None).await.unwrap();
    for round in 0..3_u64 {
        let disk = world.open(&places).await;
        assert!(all_of(&disk).await == model, "round {round}");
        let (shared, mut changed) = (Arc::clone(&disk), model.clone());
        model = on_thread(move || {
            for number in 0..40_u64 {
                let offset = (number * 1_299_709 + round * 77_777) % DISK_BYTES;
                let length = (1 + number * 997 % 12_000).min(DISK_BYTES - offset);
                let range = offset as usize..(offset + length) as usize;
                if number % 5 == 4 {
                    shared.zero(offset, length, ZeroFlags::default()).unwrap();
                    changed[range].fill(0);
                } else {
                    let data = vec![(number + round) as u8; length as usize];
                    shared.write(offset, data.clone().into(), number % 7 == 0).unwrap();
                    changed[range].copy_from_slice(&data);
                }
            }
            shared.trim(2 << 20, 8192, false).unwrap();
            changed[2 << 20..(2 << 20) + 8192].fill(0);
            changed
        })
        .await;
        assert!(all_of(&disk).await == model);
        let shared = Arc::clone(&disk);
        let status = on_thread(move || shared.block_status(0, DISK_BYTES).unwrap()).await;
        let mut at = 0;
        for extent in &status {
            let part = &model[at as usize..(at + extent.length) as usize];
            assert!(!extent.zero || part.iter().all(|byte| *byte == 0), "{extent:?} at {at}");
            at += extent.length;
        }
        assert_eq!(at, DISK_BYTES);
        on_thread(move || disk.close().unwrap()).await;
    }
    assert_eq!(world.vault.vault.store().list(None).await.unwrap(), objects, "the vault is as it was");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_takes_over_with_the_guests_writes_while_the_guest_works() {
    let world = World::usual().await;
    *world.store.pause.lock() = Duration::from_millis(2);
    let (overlay, target) = (world.path("overlay"), world.path("disk.img"));
    let places = Places { overlay: Some(overlay.clone()), copy: Some(target.clone()), ..Places::default() };
    let disk = world.open(&places).await;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    // Each thread has a part of the disk for itself, so that it knows what it must read.
    let threads: Vec<_> = (0..3_u64)
        .map(|thread| {
            let (disk, stop, part) = (Arc::clone(&disk), Arc::clone(&stop), DISK_BYTES / 3 / 4096 * 4096);
            let from = (thread * part) as usize;
            let mut mine = world.image()[from..from + part as usize].to_vec();
            tokio::task::spawn_blocking(move || {
                let mut number = thread;
                while !stop.load(Ordering::Relaxed) {
                    number += 1;
                    let at = (number * 1_299_709 % part) as usize;
                    let length = (1 + number * 997 % 9000).min(part - at as u64) as usize;
                    let offset = (from + at) as u64;
                    assert!(read(&disk, offset, length).unwrap() == mine[at..at + length], "{length} at {offset}");
                    if number % 11 == 0 {
                        disk.zero(offset, length as u64, ZeroFlags::default()).unwrap();
                        mine[at..at + length].fill(0);
                    } else {
                        let data = vec![number as u8; length];
                        disk.write(offset, data.clone().into(), number % 13 == 0).unwrap();
                        mine[at..at + length].copy_from_slice(&data);
                    }
                }
                (from, mine)
            })
        })
        .collect();
    let copy = Arc::clone(disk.copy().unwrap());
    let limits = FetchLimits { memory_bytes: 8 << 20, jobs: 2, workers: 2 };
    copy.fill(&limits, world.trigger.drain()).await.unwrap();
    assert!(!target.exists(), "it has its name only when it is whole");
    let (over, drain) = (Arc::clone(&disk), world.trigger.drain());
    on_thread(move || over.go_over(&drain).unwrap()).await;
    assert!(disk.is_whole() && target.exists() && !overlay.exists() && !partial_of(&target).exists());
    tokio::time::sleep(Duration::from_millis(30)).await;
    stop.store(true, Ordering::Relaxed);
    let mut model = world.image();
    for thread in threads {
        let (from, mine) = thread.await.unwrap();
        model[from..from + mine.len()].copy_from_slice(&mine);
    }
    assert!(all_of(&disk).await == model);
    assert!(std::fs::read(&target).unwrap() == model);
    drop((disk, copy));
    let again = world.try_open(world.disk.head(), &places).await.err().unwrap();
    assert!(matches!(again, ExportError::Copy(CopyError::There { .. })), "{again}");
    assert_eq!(std::fs::read_dir(world.folder.path()).unwrap().count(), 1, "the image and nothing else");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_goes_on_where_it_was_stopped_also_while_writes_are_moved_in() {
    let world = World::usual().await;
    let (overlay, target, other) = (world.path("overlay"), world.path("disk.img"), world.path("other.img"));
    let places = Places { overlay: Some(overlay.clone()), copy: Some(target.clone()), ..Places::default() };
    let mut model = world.image();
    let disk = world.open(&places).await;
    let shared = Arc::clone(&disk);
    on_thread(move || shared.write(10_000, vec![7; 50_000].into(), true).unwrap()).await;
    model[10_000..60_000].fill(7);
    let copy = Arc::clone(disk.copy().unwrap());
    let limits = FetchLimits { memory_bytes: 8 << 20, jobs: 2, workers: 2 };
    copy.fill(&limits, world.trigger.drain()).await.unwrap();
    drop((disk, copy));
    // Killed when all was copied. The next one brings nothing, and is killed while it moves the writes in.
    let disk = world.open(&places).await;
    let gets = world.gets();
    assert!((0..disk.origin().map().messages() as u32).all(|number| disk.copy().unwrap().has(number)));
    disk.copy().unwrap().fill(&limits, world.trigger.drain()).await.unwrap();
    assert_eq!(world.gets(), gets);
    let shared = Arc::clone(&disk);
    // What is written now goes into the copy alone, also where the point has zeroes.
    on_thread(move || {
        shared.move_some().unwrap();
        shared.write(400_000, vec![9; 5000].into(), true).unwrap();
    })
    .await;
    model[400_000..405_000].fill(9);
    drop(disk);
    let none = Places { overlay: Some(overlay.clone()), ..Places::default() };
    let refused = world.try_open(world.disk.head(), &none).await.err().unwrap();
    assert!(matches!(refused, ExportError::Copy(CopyError::Moved { .. })), "{refused}");
    let elsewhere = Places { overlay: Some(overlay.clone()), copy: Some(other.clone()), ..Places::default() };
    let refused = world.try_open(world.disk.head(), &elsewhere).await.err().unwrap();
    assert!(matches!(refused, ExportError::Copy(CopyError::OtherCopy { .. })), "{refused}");
    let disk = world.open(&places).await;
    assert!(all_of(&disk).await == model);
    let (over, drain) = (Arc::clone(&disk), world.trigger.drain());
    on_thread(move || over.go_over(&drain).unwrap()).await;
    assert!(all_of(&disk).await == model);
    assert!(std::fs::read(&target).unwrap() == model);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_over_the_whole_disk_and_the_move_of_scattered_blocks_do_not_wait_for_each_other_for_ever() {
    let world = World::usual().await;
    let (overlay, target) = (world.path("overlay"), world.path("disk.img"));
    let places = Places { overlay: Some(overlay.clone()), copy: Some(target.clone()), ..Places::default() };
    let disk = world.open(&places).await;
    let limits = FetchLimits { memory_bytes: 8 << 20, jobs: 2, workers: 2 };
    disk.copy().unwrap().fill(&limits, world.trigger.drain()).await.unwrap();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (writer, stopped) = (Arc::clone(&disk), Arc::clone(&stop));
    let writing = tokio::task::spawn_blocking(move || {
        let mut round = 0_u8;
        while !stopped.load(Ordering::Relaxed) {
            round = round.wrapping_add(1);
            // Scattered blocks, and then all of the disk at once.
            for at in (0..DISK_BYTES).step_by(40_960) {
                writer.write(at, vec![round; 512].into(), false).unwrap();
            }
            writer.zero(0, DISK_BYTES, ZeroFlags::default()).unwrap();
        }
        writer.write(5000, vec![7; 9000].into(), true).unwrap();
    });
    let (over, drain) = (Arc::clone(&disk), world.trigger.drain());
    let moving = tokio::task::spawn_blocking(move || {
        // Many moves, for the chance to meet.
        for _ in 0..20 {
            over.move_some().unwrap();
            std::thread::sleep(Duration::from_millis(2));
        }
        over.go_over(&drain).unwrap();
    });
    tokio::time::timeout(Duration::from_secs(120), moving).await.expect("somebody waits for ever").unwrap();
    stop.store(true, Ordering::Relaxed);
    tokio::time::timeout(Duration::from_secs(120), writing).await.expect("somebody waits for ever").unwrap();
    let mut expected = vec![0; DISK_BYTES as usize];
    expected[5000..14_000].fill(7);
    assert!(all_of(&disk).await == expected);
    assert!(std::fs::read(&target).unwrap() == expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_whose_sync_failed_is_neither_noted_nor_read_any_more() {
    let world = World::usual().await;
    let (overlay, target) = (world.path("overlay"), world.path("disk.img"));
    let places = Places { overlay: Some(overlay), copy: Some(target.clone()), ..Places::default() };
    let limits = FetchLimits { memory_bytes: 8 << 20, jobs: 2, workers: 2 };
    let disk = world.open(&places).await;
    let copy = Arc::clone(disk.copy().unwrap());
    copy.fail_sync.store(true, Ordering::Relaxed);
    let failed = copy.fill(&limits, world.trigger.drain()).await.unwrap_err();
    assert!(matches!(failed, CopyError::Io { .. }), "{failed}");
    copy.note_all().unwrap_err();
    assert!(!copy.has(0), "what was written may not be there");
    assert!(all_of(&disk).await == world.image(), "the vault has it");
    drop((disk, copy));
    let disk = world.open(&places).await;
    let copy = Arc::clone(disk.copy().unwrap());
    assert!(!copy.has(0), "nothing was noted");
    copy.fill(&limits, world.trigger.drain()).await.unwrap();
    // While the guest's writes are in the copy alone, its I/O fails rather than to promise what is gone.
    let shared = Arc::clone(&disk);
    on_thread(move || {
        shared.move_some().unwrap();
        shared.write(0, vec![1; 4096].into(), false).unwrap();
        shared.copy().unwrap().fail_sync.store(true, Ordering::Relaxed);
        shared.flush().unwrap_err();
        shared.flush().unwrap_err();
        assert!(read(&shared, 0, 4096).is_err());
    })
    .await;
    assert!(!target.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_a_damaged_disk_stays_unfinished_and_the_rest_is_served() {
    let world = World::usual().await;
    let (source, history) = world.vault.open(&world.disk.id).await;
    let plan = Plan::build(&history, world.disk.head()).unwrap();
    let victim = source.path(plan.reads[1].object).clone();
    world.vault.tamper(&victim, |_| None).await;
    let target = world.path("disk.img");
    // The listing shows what is missing, so the catalog of before is used.
    let exported = Exported { source, disk: world.disk.id.clone(), history, plan };
    let places = Places { copy: Some(target.clone()), ..Places::default() };
    let disk = open(exported, &places, world.limits, Handle::current(), world.trigger.drain()).unwrap();
    let limits = FetchLimits { memory_bytes: 8 << 20, jobs: 2, workers: 2 };
    let error = disk.copy().unwrap().fill(&limits, world.trigger.drain()).await.unwrap_err();
    let CopyError::Damaged { count, found } = &error else { panic!("{error}") };
    assert_eq!((*count, error.fault()), (found.len(), Fault::Corrupt));
    let again = disk.copy().unwrap().fill(&limits, world.trigger.drain()).await.unwrap_err();
    assert!(matches!(again, CopyError::Damaged { count: same, .. } if same == *count), "{again}");
    assert!(found.iter().all(|damage| damage.object.as_deref() == Some(victim.as_ref())));
    assert!(!target.exists() && partial_of(&target).exists());
    let gets = world.gets();
    let (image, map) = (world.image(), disk.origin().map());
    let sound = (0..map.messages() as u32).find(|number| disk.copy().unwrap().has(*number)).unwrap();
    let at = map.message(sound).owned[0].offset_bytes;
    on_thread(move || assert!(read(&disk, at, 1).unwrap() == image[at as usize..][..1])).await;
    assert_eq!(world.gets(), gets, "what is there is read there");
}

/// What a recovery waits for, in round trips, before the guest has its first byte: with requests of 10 ms each.
#[tokio::test(start_paused = true)]
async fn the_first_byte_is_there_after_few_requests_and_fewer_round_trips() {
    let world = World::new(busy_disk(), 4, 3).await;
    let pause = Duration::from_millis(10);
    *world.store.pause.lock() = pause;
    let before = world.store.requests.load(Ordering::Relaxed);
    let started = tokio::time::Instant::now();
    let vault = &world.vault;
    let catalog = source::load(&vault.vault, &Want::disk(&world.disk.id)).await.unwrap();
    let history = source::history(&catalog, &world.disk.id, &vault.vault.epochs(&world.disk.id).await.unwrap());
    let (source, _) = Source::open(&vault.vault, &vault.identity, &catalog).unwrap();
    let plan = Plan::build(&history, world.disk.head()).unwrap();
    let exported = Exported { source, disk: world.disk.id.clone(), history: Arc::new(history), plan };
    let disk = open(exported, &Places::default(), world.limits, Handle::current(), world.trigger.drain()).unwrap();
    disk.origin().bring_first().await;
    let requests = world.store.requests.load(Ordering::Relaxed) - before;
    let depth = (started.elapsed().as_micros() / pause.as_micros()) as usize;
    println!("{requests} requests, {depth} after one another");
    assert!(requests <= 40, "{requests}");
    assert!(depth <= 12, "{depth}");
}
