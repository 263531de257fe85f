//! A restore equals the model, goes on after an interruption, and refuses what is damaged without harming the rest.

use std::os::unix::fs::MetadataExt;

use object_store::path::Path as ObjectPath;

use super::*;
use crate::keys::Identity;
use crate::restore::source;
use crate::restore::target::partial_of;
use crate::restore::tests::{ModelDisk, TestVault};
use crate::types::{BarrierKind, Epoch, Extent, ExtentKind, PointId, RecordKind, Seq};
use crate::vault::reader::Want;

const DISK_BYTES: u64 = 2 << 20;

/// A disk with a first copy, live writes, a fork and a resync.
fn busy_disk(name: &str, salt: u8) -> ModelDisk {
    let mut disk = ModelDisk::named(name, DISK_BYTES);
    let content = |at: u64, length: u64| (0..length).map(|byte| (at + byte * 7) as u8 ^ salt | 1).collect::<Vec<u8>>();
    disk.barrier(BarrierKind::SyncBegin, "");
    for chunk in 0..8 {
        disk.write(chunk << 17, content(chunk, 50_000));
    }
    disk.barrier(BarrierKind::SyncEnd, "");
    for at in 0..40 {
        disk.write(at * 4096 * 5 + 1000, content(at, 9000));
    }
    let zero = Extent { offset_bytes: 300_000, length_bytes: 200_000, kind: ExtentKind::Zero };
    disk.push(RecordKind::Write, vec![zero], Vec::new());
    disk.barrier(BarrierKind::App, "before");
    disk.write(0, content(3, 70_000));
    let head = disk.head();
    disk.fork(Seq(head.seq.0 - 1));
    disk.barrier(BarrierKind::SyncBegin, "");
    disk.write(4096, content(9, 30_000));
    disk.barrier(BarrierKind::SyncEnd, "");
    disk.write(1 << 20, content(11, 100));
    disk.barrier(BarrierKind::Crash, "");
    disk
}

fn small() -> RestoreOptions {
    let limits = FetchLimits { memory_bytes: 1 << 20, jobs: 3, workers: 2 };
    RestoreOptions { limits, ..RestoreOptions::default() }
}

async fn restore_to(
    vault: &TestVault,
    disk: &ModelDisk,
    point: PointId,
    path: &Path,
) -> Result<Restored, RestoreError> {
    restore_as(vault, disk, point, path, small()).await
}

async fn restore_as(
    vault: &TestVault,
    disk: &ModelDisk,
    point: PointId,
    path: &Path,
    options: RestoreOptions,
) -> Result<Restored, RestoreError> {
    let (source, history) = vault.open(&disk.id).await;
    let plan = Plan::build(&history, point).expect("inside the history");
    restore(&source, &disk.id, history, &plan, path, &options, Arc::default()).await
}

#[tokio::test]
async fn a_restored_image_equals_the_model_at_every_point() {
    let folder = tempfile::tempdir().unwrap();
    let disk = busy_disk("sda", 0);
    let mut vault = TestVault::in_memory().await;
    vault.fill(&[&disk, &busy_disk("sdb", 5)], 4, 3).await;
    let points = ["e1-s10", "e1-s33", "e1-s52", "e2-s2", "e2-s3", "e2-s5"];
    for point in points.map(|point| point.parse::<PointId>().unwrap()) {
        let path = folder.path().join(point.to_string());
        let restored = restore_to(&vault, &disk, point, &path).await.unwrap();
        assert!(std::fs::read(&path).unwrap() == disk.image_at(point), "{point}");
        assert_eq!(restored.disk_bytes, DISK_BYTES);
        assert!(!partial_of(&path).exists());
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), points.len(), "nothing else is left behind");
}

#[tokio::test]
async fn what_was_never_written_or_is_zero_stays_a_hole() {
    let folder = tempfile::tempdir().unwrap();
    let mut disk = ModelDisk::named("sda", 256 << 20);
    disk.write(0, vec![7; 4096]);
    disk.write(128 << 20, vec![0; 1 << 20]);
    disk.barrier(BarrierKind::SyncEnd, "");
    let mut vault = TestVault::in_memory().await;
    vault.fill(&[&disk], 2, 2).await;
    let path = folder.path().join("image");
    restore_to(&vault, &disk, disk.head(), &path).await.unwrap();
    let meta = std::fs::metadata(&path).unwrap();
    assert_eq!(meta.len(), 256 << 20);
    assert!(meta.blocks() * 512 <= 64 << 10, "{} bytes are allocated", meta.blocks() * 512);
}

#[tokio::test]
async fn damage_stops_the_image_of_its_disk_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, other) = (busy_disk("sda", 0), busy_disk("sdb", 5));
    let mut vault = TestVault::in_memory().await;
    vault.fill(&[&disk, &other], 4, 5).await;
    let (source, history) = vault.open(&disk.id).await;
    let plan = Plan::build(&history, disk.head()).unwrap();
    let victim = &history.rows[plan.reads[1].messages[0].row];
    let object = source.path(victim.object).clone();
    let at = victim.message.offset_bytes as usize + 40;
    let flip = |mut bytes: Vec<u8>| {
        bytes[at] ^= 4;
        Some(bytes)
    };
    vault.tamper(&object, flip).await;
    let path = folder.path().join("image");
    let error = restore_to(&vault, &disk, disk.head(), &path).await.unwrap_err();
    let RestoreError::Damaged { count: 1, found, .. } = &error else { panic!("{error:?}") };
    assert_eq!(error.fault(), Fault::Corrupt);
    assert_eq!(found[0].object.as_deref(), Some(object.as_ref()));
    assert_eq!(found[0].records.as_ref().unwrap().first, victim.message.first);
    assert!(!path.exists() && partial_of(&path).exists());
    let path = folder.path().join("other");
    restore_to(&vault, &other, other.head(), &path).await.unwrap();
    assert!(std::fs::read(&path).unwrap() == other.image_at(other.head()));
}

#[tokio::test]
async fn a_restore_goes_on_where_it_was_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let disk = busy_disk("sda", 0);
    let mut vault = TestVault::in_memory().await;
    vault.fill(&[&disk], 1, 1).await;
    let path = folder.path().join("image");
    let (source, history) = vault.open(&disk.id).await;
    let plan = Plan::build(&history, disk.head()).unwrap();
    // The first run misses one object; everything else becomes durable.
    let object = source.path(plan.reads[3].object).clone();
    let mut kept = Vec::new();
    vault
        .tamper(&object, |bytes| {
            kept = bytes;
            None
        })
        .await;
    let options = small();
    let run = || restore(&source, &disk.id, Arc::clone(&history), &plan, &path, &options, Arc::default());
    assert_eq!(run().await.unwrap_err().fault(), Fault::Corrupt);
    // Another point of the same disk must not mix with what is there.
    let other = Plan::build(&history, PointId { epoch: Epoch(2), seq: Seq(3) }).unwrap();
    let refused = restore(&source, &disk.id, Arc::clone(&history), &other, &path, &small(), Arc::default()).await;
    assert!(matches!(refused, Err(RestoreError::Resume(ResumeError::OtherPlan { .. }))), "{refused:?}");
    object_store::ObjectStoreExt::put(vault.vault.store().inner(), &object, kept.into()).await.unwrap();
    let restored = run().await.unwrap();
    assert_eq!(restored.resumed_messages + 1, restored.messages);
    assert!(std::fs::read(&path).unwrap() == disk.image_at(disk.head()));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no resume file is left");
}

/// A disk in a vault that lacks one object at first, so that a restore of it is interrupted.
struct Interrupted {
    folder: tempfile::TempDir,
    disk: ModelDisk,
    vault: TestVault,
    source: Source,
    history: Arc<History>,
    object: ObjectPath,
    kept: Vec<u8>,
}

impl Interrupted {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let disk = busy_disk("sda", 0);
        let mut vault = TestVault::in_memory().await;
        vault.fill(&[&disk], 1, 1).await;
        let (source, history) = vault.open(&disk.id).await;
        let plan = Plan::build(&history, disk.head()).unwrap();
        let object = source.path(plan.reads[3].object).clone();
        let mut kept = Vec::new();
        vault
            .tamper(&object, |bytes| {
                kept = bytes;
                None
            })
            .await;
        let this = Self { folder, disk, vault, source, history, object, kept };
        assert_eq!(this.run(this.disk.head(), false).await.unwrap_err().fault(), Fault::Corrupt);
        this
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("image")
    }

    async fn mend(&self) {
        let bytes = self.kept.clone().into();
        object_store::ObjectStoreExt::put(self.vault.vault.store().inner(), &self.object, bytes).await.unwrap();
    }

    async fn run(&self, point: PointId, force: bool) -> Result<Restored, RestoreError> {
        self.run_as(point, RestoreOptions { force, ..small() }).await
    }

    async fn run_as(&self, point: PointId, options: RestoreOptions) -> Result<Restored, RestoreError> {
        let plan = Plan::build(&self.history, point).unwrap();
        let history = Arc::clone(&self.history);
        restore(&self.source, &self.disk.id, history, &plan, &self.path(), &options, Arc::default()).await
    }

    fn compare(&self) {
        assert!(std::fs::read(self.path()).unwrap() == self.disk.image_at(self.disk.head()));
        assert_eq!(std::fs::read_dir(self.folder.path()).unwrap().count(), 1, "no resume file is left");
    }
}

#[tokio::test]
async fn a_partial_file_that_was_deleted_is_not_gone_on_with() {
    let world = Interrupted::new().await;
    std::fs::remove_file(partial_of(&world.path())).unwrap();
    world.mend().await;
    let restored = world.run(world.disk.head(), false).await.unwrap();
    assert_eq!(restored.resumed_messages, 0);
    world.compare();
}

#[tokio::test]
async fn a_partial_file_that_was_replaced_is_not_gone_on_with() {
    let world = Interrupted::new().await;
    let other = world.folder.path().join("other");
    std::fs::File::create(&other).unwrap().set_len(DISK_BYTES).unwrap();
    std::fs::rename(&other, partial_of(&world.path())).unwrap();
    world.mend().await;
    let restored = world.run(world.disk.head(), false).await.unwrap();
    assert_eq!(restored.resumed_messages, 0);
    world.compare();
}

#[tokio::test]
async fn a_note_left_beside_a_finished_image_does_not_make_an_empty_one() {
    let world = Interrupted::new().await;
    world.mend().await;
    let path = crate::restore::resume::path_of(&world.path());
    // As if it was killed after the image got its name.
    let note = std::fs::read(&path).unwrap();
    world.run(world.disk.head(), false).await.unwrap();
    std::fs::write(&path, note).unwrap();
    let refused = world.run(world.disk.head(), false).await;
    assert!(matches!(refused, Err(RestoreError::Target(TargetError::NotEmpty { .. }))), "{refused:?}");
    let restored = world.run(world.disk.head(), true).await.unwrap();
    assert_eq!(restored.resumed_messages, 0);
    world.compare();
}

#[tokio::test]
async fn another_plan_that_is_forced_leaves_nothing_to_go_on_with() {
    let world = Interrupted::new().await;
    let other = PointId { epoch: Epoch(1), seq: Seq(10) };
    let _ = world.run(other, true).await;
    world.mend().await;
    let restored = world.run(world.disk.head(), true).await.unwrap();
    assert_eq!(restored.resumed_messages, 0);
    world.compare();
}

#[tokio::test]
async fn a_run_dropped_in_the_middle_leaves_no_image_and_can_be_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let disk = busy_disk("sda", 0);
    let mut vault = TestVault::in_memory().await;
    vault.fill(&[&disk], 1, 1).await;
    let path = folder.path().join("image");
    let (source, history) = vault.open(&disk.id).await;
    let plan = Plan::build(&history, disk.head()).unwrap();
    let options = small();
    let run = || restore(&source, &disk.id, Arc::clone(&history), &plan, &path, &options, Arc::default());
    {
        let mut run = std::pin::pin!(run());
        // Polled a few times, then dropped with reads in flight.
        for _ in 0..5 {
            let _ = futures_util::poll!(run.as_mut());
            tokio::task::yield_now().await;
        }
    }
    assert!(!path.exists());
    loop {
        match run().await {
            // The dropped run's last worker may still hold the resume file.
            Err(RestoreError::Resume(ResumeError::Busy { .. })) => tokio::task::yield_now().await,
            done => break done.map(|_| ()).unwrap(),
        }
    }
    assert!(std::fs::read(&path).unwrap() == disk.image_at(disk.head()));
}

#[tokio::test]
async fn lanes_from_before_disks_had_keys_restore_as_ever_beside_those_with_keys() {
    let (disk, other) = (busy_disk("sda", 0), busy_disk("sdb", 9));
    let mut vault = TestVault::in_memory().await;
    vault.grow_older().await;
    vault.fill(&[&disk], 8, 2).await;
    vault.end().await;
    let older = vault.lane.id();
    vault.grow_up().await;
    vault.fill(&[&other], 8, 2).await;
    // The last message of the old disk once more, in a lane with keys: of copies one is read.
    vault.put_batch(&[(&disk, disk.message(Epoch(1), 1, 4))]).await;
    let route = |disk: &ModelDisk, lane| {
        let (vault, disk) = (vault.vault.clone(), disk.id.clone());
        async move { vault.route(&disk, lane).await.unwrap().unwrap().sealed_key.is_some() }
    };
    assert!(!route(&disk, older).await && route(&disk, vault.lane.id()).await && route(&other, vault.lane.id()).await);
    let folder = tempfile::tempdir().unwrap();
    for disk in [&disk, &other] {
        let path = folder.path().join(disk.id.as_str());
        restore_to(&vault, disk, disk.head(), &path).await.unwrap();
        assert!(std::fs::read(&path).unwrap() == disk.image_at(disk.head()));
    }
}

#[tokio::test]
async fn whoever_became_a_recipient_later_opens_the_keys_of_disks_with_the_lanes() {
    let disk = busy_disk("sda", 0);
    let mut vault = TestVault::in_memory().await;
    vault.fill(&[&disk], 8, 2).await;
    let (first, later) = (vault.identity.clone(), Identity::generate());
    let (basis, both) = (vault.vault.lists().await.unwrap(), [first.recipient(), later.recipient()]);
    let lists = vault.vault.change_recipients(&first, &basis, &both, crate::types::Micros(2)).await.unwrap();
    for behind in vault.vault.wraps(&lists).await.unwrap().behind {
        vault.vault.rewrap(&first, &lists, &behind, crate::types::Micros(3)).await.unwrap();
    }
    vault.vault = crate::vault::Vault::open_with_identity(vault.vault.store().clone(), &later).await.unwrap();
    vault.identity = later;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sda.img");
    restore_to(&vault, &disk, disk.head(), &path).await.unwrap();
    assert!(std::fs::read(&path).unwrap() == disk.image_at(disk.head()));
}

#[tokio::test]
async fn a_key_of_a_disk_that_does_not_open_is_damage_that_names_its_route() {
    let disk = busy_disk("sda", 0);
    let mut vault = TestVault::in_memory().await;
    vault.fill(&[&disk], 8, 2).await;
    let (route, lane) = (crate::vault::names::route(&disk.id, vault.lane.id()), vault.lane.id());
    // Authentic, and of another lane key: as who has the catalog key could write it where nothing stood.
    let other = crate::keys::LaneKeys::new(vault.vault.id(), lane, crate::keys::LaneKey::from_secret([5; 32]));
    vault.vault.store().delete(&route).await.unwrap();
    vault.vault.create_keyed_route(&disk.id, lane, other.sealed(&disk.id).unwrap()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let refused = restore_to(&vault, &disk, disk.head(), &folder.path().join("sda.img")).await.unwrap_err();
    let RestoreError::Damaged { found, .. } = &refused else { panic!("{refused}") };
    assert!(!found.is_empty() && found.iter().all(|damage| damage.what.contains(route.as_ref())), "{found:?}");
}

#[tokio::test]
async fn an_identity_of_another_vault_opens_nothing() {
    let disk = busy_disk("sda", 0);
    let mut vault = TestVault::in_memory().await;
    vault.fill(&[&disk], 8, 2).await;
    let catalog = source::load(&vault.vault, &Want::disk(&disk.id)).await.unwrap();
    let error = Source::open(&vault.vault, &Identity::generate(), &catalog).unwrap_err();
    assert_eq!(error.fault(), Fault::Reject, "{error}");
}

#[tokio::test]
async fn a_lost_last_batch_is_known_to_hide_newer_records_of_its_lane_only() {
    let (disk, other) = (busy_disk("sda", 0), busy_disk("sdb", 5));
    let mut vault = TestVault::in_memory().await;
    vault.fill(&[&other], 60, 60).await;
    let lane = crate::vault::lane::Lane::open(&vault.vault, "g1", &crate::flow::SystemClock::new()).await.unwrap();
    (vault.lane, vault.next_batch) = (lane, 1);
    vault.fill(&[&disk], 4, 3).await;
    vault.end().await;
    let last = crate::vault::names::batch(vault.lane.id(), vault.next_batch - 1);
    let lost = async |disk: &ModelDisk| {
        let catalog = source::load(&vault.vault, &Want::disk(&disk.id)).await.unwrap();
        let history = source::history(&catalog, &disk.id, &vault.vault.epochs(&disk.id).await.unwrap());
        source::lost_tail(&catalog, &history)
    };
    assert_eq!(lost(&disk).await, None);
    vault.tamper(&last, |_| None).await;
    assert!(lost(&disk).await.unwrap().contains(last.as_ref()));
    assert_eq!(lost(&other).await, None);
}

#[tokio::test]
async fn an_image_in_every_form_holds_the_disk_and_goes_on_after_an_interruption() {
    for format in Format::ALL {
        let world = Interrupted::new().await;
        let options = RestoreOptions { format, verify: true, ..small() };
        let head = world.disk.head();
        // What was interrupted was a raw file.
        let first = world.run_as(head, options).await;
        assert_eq!(first.unwrap_err().fault(), Fault::Corrupt, "{format}");
        assert!(!world.path().exists() && partial_of(&world.path()).exists());
        world.mend().await;
        let restored = world.run_as(head, options).await.unwrap();
        assert_eq!(restored.resumed_messages + 1, restored.messages, "{format}");
        let disk = crate::restore::format::tests::read(format, std::fs::read(world.path()).unwrap());
        assert_eq!(disk.len() as u64, restored.virtual_bytes);
        assert!(disk == world.disk.image_at(head), "{format}");
        assert_eq!(std::fs::read_dir(world.folder.path()).unwrap().count(), 1, "{format}: nothing else is left");
    }
}

#[tokio::test]
async fn an_image_is_brought_to_another_point_by_the_blocks_that_differ() {
    let folder = tempfile::tempdir().unwrap();
    let disk = busy_disk("sda", 0);
    let mut vault = TestVault::in_memory().await;
    vault.fill(&[&disk], 4, 3).await;
    let path = folder.path().join("image");
    let onto = RestoreOptions { onto: true, verify: true, ..small() };
    let missing = restore_as(&vault, &disk, disk.head(), &path, onto).await;
    assert!(matches!(missing, Err(RestoreError::Target(TargetError::Missing { .. }))), "{missing:?}");
    restore_to(&vault, &disk, "e1-s10".parse().unwrap(), &path).await.unwrap();
    let inode = std::fs::metadata(&path).unwrap().ino();
    for point in ["e2-s5", "e1-s33", "e1-s10", "e2-s5"].map(|point| point.parse::<PointId>().unwrap()) {
        let before = std::fs::read(&path).unwrap();
        let restored = restore_as(&vault, &disk, point, &path, onto).await.unwrap();
        let (found, wanted) = (std::fs::read(&path).unwrap(), disk.image_at(point));
        assert!(found == wanted, "{point}");
        let differing = before.iter().zip(&wanted).filter(|(a, b)| a != b).count() as u64;
        let written = DISK_BYTES - restored.same_bytes;
        assert!(differing <= written && written < DISK_BYTES / 2, "{differing} differ, {written} were written");
        assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode, "the same file");
        let again = restore_as(&vault, &disk, point, &path, onto).await.unwrap();
        assert_eq!(again.same_bytes, DISK_BYTES, "nothing is left to write");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left behind");
}

#[tokio::test]
async fn an_image_that_is_half_way_to_another_point_has_no_name_until_it_is_there() {
    let world = Interrupted::new().await;
    let onto = RestoreOptions { onto: true, ..small() };
    let (path, head) = (world.path(), world.disk.head());
    let other = PointId { epoch: Epoch(1), seq: Seq(10) };
    // What the raw run left is in the way of an image that has its name.
    std::fs::write(&path, world.disk.image_at(other)).unwrap();
    let refused = world.run_as(head, onto).await;
    assert!(matches!(refused, Err(RestoreError::Target(TargetError::InTheWay { .. }))), "{refused:?}");
    std::fs::remove_file(partial_of(&path)).unwrap();
    assert_eq!(world.run_as(head, onto).await.unwrap_err().fault(), Fault::Corrupt);
    assert!(!path.exists() && partial_of(&path).exists());
    // A run that takes unwritten ranges for holes must not go on with it.
    let note = std::fs::read_to_string(crate::restore::resume::path_of(&path)).unwrap();
    assert!(note.lines().next().unwrap().contains(" onto-file-"), "{note}");
    world.mend().await;
    let restored = world.run_as(head, onto).await.unwrap();
    assert_eq!(restored.resumed_messages + 1, restored.messages);
    world.compare();
}

#[tokio::test]
async fn a_note_left_beside_an_image_that_was_used_since_is_not_believed() {
    let world = Interrupted::new().await;
    world.mend().await;
    let onto = RestoreOptions { onto: true, ..small() };
    let (path, head) = (world.path(), world.disk.head());
    world.run(head, false).await.unwrap();
    // As if it was killed after the image got its name again; then a guest ran on it.
    let (source, history) = (&world.source, Arc::clone(&world.history));
    let plan = Plan::build(&history, head).unwrap();
    let (whole, _) = write(source, &world.disk.id, history, &plan, &path, &onto, Arc::default()).await.unwrap();
    assert!(!path.exists());
    whole.target.finish().unwrap();
    drop(whole.note);
    let mut used = std::fs::read(&path).unwrap();
    used[8192..8192 + 4096].fill(0x77);
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &used, 0).unwrap();
    let restored = world.run_as(head, onto).await.unwrap();
    assert_eq!((restored.resumed_messages, DISK_BYTES - restored.same_bytes), (0, 4096));
    world.compare();
}

#[tokio::test]
async fn an_image_of_another_size_is_changed_only_when_forced() {
    let folder = tempfile::tempdir().unwrap();
    let disk = busy_disk("sda", 0);
    let mut vault = TestVault::in_memory().await;
    vault.fill(&[&disk], 4, 3).await;
    let path = folder.path().join("image");
    std::fs::write(&path, vec![9; DISK_BYTES as usize + 4096]).unwrap();
    let onto = RestoreOptions { onto: true, ..small() };
    let refused = restore_as(&vault, &disk, disk.head(), &path, onto).await;
    assert!(matches!(refused, Err(RestoreError::Target(TargetError::OtherSize { .. }))), "{refused:?}");
    assert!(path.exists());
    restore_as(&vault, &disk, disk.head(), &path, RestoreOptions { force: true, ..onto }).await.unwrap();
    assert!(std::fs::read(&path).unwrap() == disk.image_at(disk.head()));
}

#[tokio::test]
async fn images_that_belong_together_get_their_names_together() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, other) = (busy_disk("sda", 0), busy_disk("sdb", 5));
    let mut vault = TestVault::in_memory().await;
    vault.fill(&[&disk, &other], 4, 3).await;
    let write_one = async |disk: &ModelDisk| {
        let (source, history) = vault.open(&disk.id).await;
        let plan = Plan::build(&history, disk.head()).unwrap();
        let path = folder.path().join(disk.id.as_str());
        write(&source, &disk.id, history, &plan, &path, &small(), Arc::default()).await.unwrap()
    };
    drop(write_one(&disk).await);
    assert!(!folder.path().join("sda").exists(), "a run that was stopped before the end of the last");
    let (whole, restored) = write_one(&disk).await;
    assert_eq!((restored.read_bytes, restored.resumed_messages), (0, restored.messages), "it goes on there");
    let both = [whole, write_one(&other).await.0];
    assert!(!folder.path().join("sda").exists());
    both.into_iter().for_each(|whole| whole.finish().unwrap());
    for disk in [&disk, &other] {
        assert!(std::fs::read(folder.path().join(disk.id.as_str())).unwrap() == disk.image_at(disk.head()));
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}
