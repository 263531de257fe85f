//! Two keys, before, between and after; and what a thief has of the older one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use object_store::path::Path;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::*;
use crate::fault::Fault;
use crate::flow::{Clock, Pace, SystemClock};
use crate::keys::Recipient;
use crate::limits;
use crate::restore::fetch::FetchLimits;
use crate::restore::source;
use crate::restore::tests::{ModelDisk, TestVault};
use crate::restore::verify::sample::Quota;
use crate::restore::verify::{Level, Report, VerifyOptions, verify};
use crate::types::{Epoch, PointId, Seq};
use crate::vault::epochs::CreateEpochError;
use crate::vault::index::lane::LaneIndexBuilder;
use crate::vault::lane::Lane;
use crate::vault::objects::{self, ControlObject, EpochObject, LaneEndObject, LetGoRun, ManifestObject, RouteObject};
use crate::vault::reader::Want;
use crate::vault::store::VaultStore;
use crate::vault::testing::{Fate, FaultStore, batch};
use crate::vault::uploader::{UploadEvent, UploadStop, Uploader, UploaderConfig};

fn now() -> Micros {
    SystemClock::new().wall()
}

/// A vault with one disk, whose records come in groups of four, each a batch.
struct World {
    store: Arc<FaultStore>,
    made: TestVault,
    disk: ModelDisk,
}

impl World {
    async fn new() -> Self {
        let store = FaultStore::new();
        let made = TestVault::new(Arc::clone(&store) as _).await;
        let mut world = Self { store, made, disk: ModelDisk::new(1 << 20) };
        let disk = world.disk.clone();
        world.made.fill(&[&disk], 4, 1).await;
        world.write().await;
        world
    }

    fn vault(&self) -> &Vault {
        &self.made.vault
    }

    fn place(&self) -> VaultStore {
        self.store.place()
    }

    /// Four more records in a batch of the open lane.
    async fn write(&mut self) -> Path {
        let head = self.disk.head();
        let first = head.seq.0 + 1;
        for seq in first..first + 4 {
            self.disk.write((seq % 200) * 4096, vec![seq as u8; 3000]);
        }
        let message = self.disk.message(head.epoch, first, first + 3);
        self.made.put_batch(&[(&self.disk, message)]).await
    }

    /// What a gateway with this key does: opens the vault, goes on in a lane of its own, and writes.
    async fn go_on_with(&mut self, key: &CatalogKey) -> KeyId {
        self.made.vault = Vault::open(self.place(), key.clone()).await.unwrap();
        self.made.turn().await;
        self.write().await;
        self.made.lane.catalog_key().kid()
    }

    async fn stage(&self) -> CatalogKey {
        stage(self.vault(), &self.made.identity).await.unwrap().0
    }

    async fn activate(&self, key: &CatalogKey) -> Lists {
        let vault = Vault::open(self.place(), key.clone()).await.unwrap();
        activate(&vault, &self.made.identity).await.unwrap()
    }

    /// Lets time pass for the store.
    fn wait(&self, time: Duration) {
        self.store.ahead_micros().fetch_add(time.as_micros() as i64, Ordering::Relaxed);
    }

    /// Everything is there and right, for whoever reads it by `vault`.
    async fn check(&mut self, vault: Vault, identity: &Identity) {
        let (before, owner) = (self.made.vault.clone(), self.made.identity.clone());
        (self.made.vault, self.made.identity) = (vault.read_as(identity), identity.clone());
        for seq in [4, 6, self.disk.head().seq.0] {
            let point = PointId { epoch: self.disk.epoch(), seq: Seq(seq) };
            let image = self.made.image(&self.disk, point).await;
            assert!(image == Some(self.disk.image_at(point)), "{point} is wrong or cannot be read");
        }
        let report = self.verify().await;
        assert_eq!((report.outcome, report.damage.len()), ("ok", 0), "{:?}", report.damage);
        (self.made.vault, self.made.identity) = (before, owner);
    }

    async fn verify(&self) -> Report {
        let limits = FetchLimits { memory_bytes: 1 << 20, jobs: 4, workers: 2 };
        let options = VerifyOptions { level: Level::Data, sample: Quota::All, draw: None, disk: None, limits };
        verify(self.vault(), Some(&self.made.identity), &options, Arc::default()).await.unwrap()
    }
}

async fn stage(vault: &Vault, by: &Identity) -> Result<(CatalogKey, Lists), VaultError> {
    vault.stage_catalog_key(by, &vault.lists().await?, now()).await
}

async fn activate(vault: &Vault, by: &Identity) -> Result<Lists, VaultError> {
    vault.activate_catalog_key(by, &vault.lists().await?, now()).await
}

async fn change(vault: &Vault, by: &Identity, to: &[&Identity]) -> Lists {
    let recipients: Vec<Recipient> = to.iter().map(|one| one.recipient()).collect();
    vault.change_recipients(by, &vault.lists().await.unwrap(), &recipients, now()).await.unwrap()
}

#[tokio::test]
async fn lanes_from_before_between_and_after_are_read_by_the_new_key_and_by_the_identity() {
    let mut world = World::new().await;
    let (first, identity) = (world.vault().catalog_key().unwrap().clone(), world.made.identity.clone());
    world.made.put_lane_index(1, 1).await;
    world.made.end().await;
    let second = world.stage().await;
    assert_eq!(world.vault().lists().await.unwrap().staged().map(|staged| staged.kid), Some(second.kid()));
    // Between the two steps, who has the new file writes under the present key, and so does who has the old one.
    assert_eq!(world.go_on_with(&first).await, first.kid());
    assert_eq!(world.go_on_with(&second).await, first.kid());
    let lists = world.activate(&second).await;
    let activated = lists.activated().unwrap();
    assert_eq!((activated.older, lists.staged()), (first.kid(), None));
    assert_eq!(world.go_on_with(&second).await, second.kid());
    let by_key = || Vault::open(world.place(), second.clone());
    let by_identity = || Vault::open_with_identity(world.place(), &identity);
    let (one, two) = (by_key().await.unwrap(), by_identity().await.unwrap());
    world.check(one, &identity).await;
    world.check(two, &identity).await;

    // Who has the old key alone is told what to do, and writes nothing.
    let refused = Vault::open(world.place(), first.clone()).await.unwrap_err();
    assert!(matches!(refused, VaultError::CatalogKeyReplaced { .. }) && refused.fault() == Fault::Reject, "{refused}");
    assert!(refused.to_string().contains("tidegate vault catalog-key"), "{refused}");
    let stranger = Vault::open(world.place(), CatalogKey::from_secret([9; 32])).await.unwrap_err();
    assert!(matches!(stranger, VaultError::OtherCatalogKey { .. }), "{stranger}");

    // And once more: who has the newest has all.
    let third = world.stage().await;
    world.activate(&third).await;
    assert_eq!(world.go_on_with(&third).await, third.kid());
    world.wait(Duration::from_secs(30 * 86_400));
    let (one, two) =
        (Vault::open(world.place(), third).await.unwrap(), Vault::open_with_identity(world.place(), &identity).await);
    world.check(one, &identity).await;
    world.check(two.unwrap(), &identity).await;
    assert!(matches!(Vault::open(world.place(), second).await, Err(VaultError::CatalogKeyReplaced { .. })));
}

#[tokio::test]
async fn a_process_that_has_the_old_key_alone_stops_by_itself_when_another_is_activated() {
    let world = World::new().await;
    let old = world.vault().clone();
    let epoch = world.disk.epochs[0].clone();
    let second = world.stage().await;
    let new = Vault::open(world.place(), second.clone()).await.unwrap();
    Lane::open(&old, "gw-1", &SystemClock::new()).await.expect("nothing has changed for anybody");
    world.activate(&second).await;
    // By its next look it knows; and what it cannot authenticate makes it look.
    let lane = Lane::open(&new, "gw-2", &SystemClock::new()).await.unwrap();
    let told = old.get_object::<LaneObject>(&names::lane(lane.id())).await.unwrap_err();
    assert!(matches!(told, VaultError::CatalogKeyReplaced { .. }), "{told}");
    let told = Lane::open(&old, "gw-1", &SystemClock::new()).await.unwrap_err();
    assert!(matches!(told, VaultError::CatalogKeyReplaced { .. }), "{told}");
    let next = EpochObject { epoch: Epoch(2), previous: Some(Epoch(1)), fork_seq: Seq(1), ..epoch };
    let told = old.create_epoch(&next).await.unwrap_err();
    assert!(matches!(told, CreateEpochError::Vault(VaultError::CatalogKeyReplaced { .. })), "{told}");
    assert!(!new.epoch_exists(&next.disk, Epoch(2)).await.unwrap(), "nothing was written");
}

#[tokio::test]
async fn recipients_who_come_and_go_between_the_steps_have_the_staged_key_too() {
    let mut world = World::new().await;
    let (one, two, three) = (world.made.identity.clone(), Identity::generate(), Identity::generate());
    let (second, staged) = stage(world.vault(), &one).await.unwrap();
    let lists = change(world.vault(), &one, &[&one, &two]).await;
    assert_eq!((lists.staged(), lists.present().n), (staged.staged(), 2), "it is carried on");
    // Asked again by whoever, the same key is staged, and no other list is written.
    let by_two = Vault::open_with_identity(world.place(), &two).await.unwrap();
    let (again, lists) = stage(&by_two, &two).await.unwrap();
    assert_eq!((again.kid(), lists.present().n), (second.kid(), 2));
    let behind = by_two.wraps(&lists).await.unwrap().behind;
    for lane in &behind {
        world.vault().rewrap(&one, &lists, lane, now()).await.unwrap();
    }
    change(&by_two, &two, &[&two]).await;
    let lists = activate(&by_two, &two).await.unwrap();
    assert_eq!(lists.activated().unwrap().older, world.vault().head().catalog_kid);
    let by_two = Vault::open_with_identity(world.place(), &two).await.unwrap();
    assert_eq!(by_two.key_to_write().await.unwrap().kid(), second.kid());
    world.go_on_with(&second).await;
    world.check(by_two.clone(), &two).await;
    // Somebody who comes after that has all older keys by the chain.
    let lists = change(&by_two, &two, &[&two, &three]).await;
    let behind = by_two.wraps(&lists).await.unwrap().behind;
    for lane in &behind {
        by_two.rewrap(&two, &lists, lane, now()).await.unwrap();
    }
    let by_three = Vault::open_with_identity(world.place(), &three).await.unwrap();
    world.check(by_three, &three).await;
    // Nothing more is staged.
    assert!(matches!(activate(&by_two, &two).await, Err(VaultError::NothingStaged { .. })));
}

#[tokio::test]
async fn only_a_present_recipient_stages_or_activates_and_nothing_is_activated_that_was_not_staged() {
    let world = World::new().await;
    let (one, stranger) = (&world.made.identity, Identity::generate());
    assert!(matches!(activate(world.vault(), one).await, Err(VaultError::NothingStaged { .. })));
    assert!(matches!(stage(world.vault(), &stranger).await, Err(VaultError::Unwrap { .. })));
    world.stage().await;
    assert!(matches!(activate(world.vault(), &stranger).await, Err(VaultError::Unwrap { .. })));
    assert_eq!(world.vault().lists().await.unwrap().activated(), None);
}

/// Killed after any of its requests, and with its answer lost, a step leaves a vault that opens; asked again, it ends.
#[tokio::test]
async fn a_step_that_was_cut_off_anywhere_is_finished_by_asking_again() {
    for (cut, lost) in [(0, false), (0, true), (1, false), (1, true), (2, false)] {
        let mut world = World::new().await;
        let identity = world.made.identity.clone();
        let mut puts = 0;
        world.store.plan(move |operation, _| {
            puts += usize::from(operation == "put");
            match operation {
                "put" if lost && puts == cut + 1 => Fate::AnswerLost,
                "put" if puts > cut => Fate::Status(403),
                _ => Fate::Good,
            }
        });
        let both = async {
            let (key, _) = stage(world.vault(), &identity).await?;
            activate(&Vault::open(world.place(), key).await?, &identity).await
        };
        let _ = both.await;
        world.store.plan(|_, _| Fate::Good);
        let vault = Vault::open_with_identity(world.place(), &identity).await.unwrap();
        if vault.lists().await.unwrap().activated().is_none() {
            let (key, lists) = stage(&vault, &identity).await.unwrap();
            assert_eq!((lists.staged().map(|staged| staged.list), lists.refused.len()), (Some(1), 0));
            world.activate(&key).await;
        }
        let vault = Vault::open_with_identity(world.place(), &identity).await.unwrap();
        let lists = vault.lists().await.unwrap();
        assert_eq!((lists.present().n, lists.activated().map(|activated| activated.list)), (2, Some(2)));
        let key = vault.key_to_write().await.unwrap();
        world.go_on_with(&key).await;
        world.check(vault, &identity).await;
    }
}

#[tokio::test]
async fn of_two_who_take_a_step_at_the_same_moment_one_is_told() {
    let world = World::new().await;
    let one = &world.made.identity;
    let (vault, other) = (world.vault(), Vault::open_with_identity(world.place(), one).await.unwrap());
    let (a, b) = tokio::join!(stage(vault, one), stage(&other, one));
    assert_eq!(usize::from(a.is_ok()) + usize::from(b.is_ok()), 1, "{a:?} {b:?}");
    let told = a.err().or(b.err()).unwrap();
    assert!(matches!(told, VaultError::ListTaken { n: 1 }) && told.is_unwritten(), "{told}");
    // A change of recipients that was decided on before is as late.
    let basis = vault.lists().await.unwrap();
    activate(vault, one).await.unwrap();
    let late = other.change_recipients(one, &basis, &[one.recipient()], now()).await.unwrap_err();
    assert!(matches!(late, VaultError::ListTaken { n: 2 }), "{late}");
}

/// Clock of a machine that its hypervisor held: its wall clock was set right since, and nothing else knows.
struct Held(AtomicU64);

impl Clock for Held {
    fn wall(&self) -> Micros {
        Micros(now().0 + self.0.load(Ordering::Relaxed) * 1_000_000)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_secs(1000)
    }
}

#[tokio::test]
async fn a_machine_that_was_held_for_an_hour_relies_on_no_look_from_before() {
    let world = World::new().await;
    let second = world.stage().await;
    let clock = Arc::new(Held(AtomicU64::new(0)));
    let vault = Vault::open(world.place(), second.clone()).await.unwrap();
    vault.set_clock(Arc::clone(&clock) as _);
    let first = vault.key_to_write().await.unwrap().kid();
    world.activate(&second).await;
    assert!(vault.is_present(first).await.unwrap(), "what appears until now counts");
    clock.0.store(limits::CATALOG_KEY_GRACE_SECONDS, Ordering::Relaxed);
    assert!(!vault.is_present(first).await.unwrap());
    assert_eq!(vault.key_to_write().await.unwrap().kid(), second.kid());
}

#[tokio::test]
async fn one_wrong_answer_of_a_store_hides_no_list() {
    let world = World::new().await;
    let second = world.stage().await;
    let vault = Vault::open(world.place(), second.clone()).await.unwrap();
    let (mut lists, began) = vault.judged.lock().begin();
    let next = lists.next_n;
    lists.judge(&vault, next, 0, b"<html>come back later</html>").unwrap();
    lists.next_n = next + 1;
    assert_eq!(lists.refused.len(), 1);
    vault.judged.lock().take(&vault, &lists, began);
    world.activate(&second).await;
    let found = vault.lists().await.unwrap();
    assert_eq!((found.present().n, found.refused.len()), (next, 0));
    assert_eq!(vault.key_to_write().await.unwrap().kid(), second.kid());
}

/// Clock whose time somebody sets.
struct Hands(AtomicU64);

impl Clock for Hands {
    fn wall(&self) -> Micros {
        now()
    }

    fn monotonic(&self) -> Duration {
        Duration::from_secs(self.0.load(Ordering::Relaxed))
    }
}

#[tokio::test]
async fn a_lane_whose_key_was_replaced_half_an_hour_ago_acks_nothing_and_one_whose_key_stands_goes_on() {
    let world = World::new().await;
    let second = world.stage().await;
    let clock = Arc::new(Hands(AtomicU64::new(1000)));
    let vault = Vault::open(world.place(), world.vault().catalog_key().unwrap().clone()).await.unwrap();
    vault.set_clock(Arc::clone(&clock) as _);
    let lane = Lane::open(&vault, "gw-1", &SystemClock::new()).await.unwrap();
    let (sender, mut events) = mpsc::channel(4);
    let time: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let (config, pace) = (UploaderConfig::default(), Pace::default());
    let uploader = Uploader::start(vault.clone(), &lane, config, &pace, time, &Handle::current(), sender);
    let mut vaulted = async |n: u64| {
        let object = batch(&vault, lane.id(), n, 0, &[(&world.disk.id, n, n)], 500);
        let taken = uploader.submit(object).await;
        match events.recv().await {
            Some(UploadEvent::Vaulted(vaulted)) => taken.is_ok() && vaulted.n == n,
            _ => false,
        }
    };
    let half_hour = limits::LISTS_AGE_SECONDS_ACK_MAX;
    assert!(vaulted(1).await);
    // Nothing was replaced: it looks again, and goes on.
    clock.0.fetch_add(10 * half_hour, Ordering::Relaxed);
    assert!(vaulted(2).await);
    world.activate(&second).await;
    clock.0.fetch_add(half_hour - 1, Ordering::Relaxed);
    assert!(vaulted(3).await, "what appears until now counts");
    clock.0.fetch_add(1, Ordering::Relaxed);
    assert!(!vaulted(4).await, "what appears now may be too late");
    let stop = uploader.finish().await.unwrap_err();
    assert!(matches!(*stop, UploadStop::CatalogKeyReplaced { .. }), "{stop}");
}

#[tokio::test]
async fn what_was_written_by_an_old_look_is_looked_at_again_before_it_is_relied_on() {
    let world = World::new().await;
    let second = world.stage().await;
    let clock = Arc::new(Hands(AtomicU64::new(1000)));
    let old = Vault::open(world.place(), world.vault().catalog_key().unwrap().clone()).await.unwrap();
    old.set_clock(Arc::clone(&clock) as _);
    old.lists().await.unwrap();
    world.activate(&second).await;
    world.wait(Duration::from_secs(2 * limits::CATALOG_KEY_GRACE_SECONDS));
    // The machine falls asleep in the middle of its write, and wakes up long after.
    let asleep = Arc::clone(&clock);
    world.store.plan(move |operation, _| {
        if operation == "put" {
            asleep.0.fetch_add(3 * limits::CATALOG_KEY_GRACE_SECONDS, Ordering::Relaxed);
        }
        Fate::Good
    });
    let next =
        EpochObject { epoch: Epoch(2), previous: Some(Epoch(1)), fork_seq: Seq(1), ..world.disk.epochs[0].clone() };
    let told = old.create_epoch(&next).await.unwrap_err();
    assert!(matches!(told, CreateEpochError::Spent { .. }), "{told}");
    world.store.plan(|_, _| Fate::Good);
    let new = Vault::open(world.place(), second).await.unwrap();
    assert_eq!(new.epochs(&world.disk.id).await.unwrap().len(), 1);
    assert_eq!(new.newest_epoch(&world.disk.id).await.unwrap().map(|epoch| epoch.epoch), Some(Epoch(1)));
    let told = new.create_epoch(&next).await.unwrap_err();
    assert!(matches!(told, CreateEpochError::Spent { .. }), "the next gateway takes another number: {told}");
    new.create_epoch(&EpochObject { epoch: Epoch(3), ..next }).await.expect("which is free");
    assert_eq!(new.newest_epoch(&world.disk.id).await.unwrap().map(|epoch| epoch.epoch), Some(Epoch(3)));
}

/// What somebody writes who has everything that a gateway of long ago had.
struct Forged {
    lane: Id128,
    paths: Vec<Path>,
}

async fn put<T: ControlObject>(world: &World, key: &CatalogKey, path: Path, content: &T) -> Path {
    let bytes = objects::encode(key, &path, content).unwrap();
    world.place().put_new(&path, bytes.into(), Duration::from_secs(5)).await.unwrap();
    path
}

/// `sealed` is a lane with a seal, `open` one that goes on, of which `next` is the next batch.
async fn forge(world: &World, old: &Vault, sealed: Id128, (open, next): (Id128, u64)) -> Forged {
    let (key, disk) = (old.catalog_key().unwrap(), &world.disk.id);
    let lane = Id128([0x66; 16]);
    let wrapped_key = keys::wrap(&[Identity::generate().recipient()], &[6; 32]).unwrap();
    let registration = LaneObject {
        lane,
        gateway: "gw-1".into(),
        created_micros: now(),
        catalog_kid: key.kid(),
        wrapped_key,
        list: None,
        moved: false,
        disk_keys: true,
    };
    // It cuts off all but the first records.
    let epoch = EpochObject {
        epoch: Epoch(2),
        previous: Some(Epoch(1)),
        fork_seq: Seq(2),
        nonce: Id128([6; 16]),
        ..world.disk.epochs[0].clone()
    };
    let let_go = vec![LetGoRun { first: 1, last: 1, marked_micros: 0 }];
    let (run, policies) = (Id128([1; 16]), Id128([2; 16]));
    let manifest = ManifestObject { lane: sealed, n: 1, made_micros: 1, run, policies, newest_micros: 1, let_go };
    let mut paths = vec![
        put(world, key, names::lane(lane), &registration).await,
        put(world, key, names::epoch(disk, Epoch(2)), &epoch).await,
        put(world, key, names::route(disk, lane), &RouteObject { disk: disk.clone(), lane, sealed_key: None }).await,
        put(world, key, names::manifest(sealed, 1), &manifest).await,
        put(world, key, names::lane_end(open), &LaneEndObject { lane: open, last_batch: 99 }).await,
    ];
    // Batches whose rows say something else of the disk: in a lane of the thief's own, in one that goes on, and by a lane index of that.
    let mut index = LaneIndexBuilder::new(old.id(), open, next);
    for (of, n) in [(lane, 1), (open, next)] {
        let object = batch(old, of, n, 0, &[(disk, 5, 60)], 500);
        let path = names::batch(of, n);
        if of == open {
            assert!(index.push(n, object.body.content_length() as u64, object.sealed_index.clone()));
        }
        world.place().put_new(&path, object.body, Duration::from_secs(5)).await.unwrap();
        paths.push(path);
    }
    let path = names::lane_index(open, 7);
    world.place().put_new(&path, index.finish().into(), Duration::from_secs(5)).await.unwrap();
    paths.push(path);
    Forged { lane, paths }
}

/// A vault under its second key, with a sealed lane under the first and an open one under each, and what has the first key alone.
async fn rotated() -> (World, Vault, Id128, (Id128, u64)) {
    let mut world = World::new().await;
    let (old, sealed) = (world.vault().clone(), world.made.lane.id());
    world.made.end().await;
    world.vault().seal_lane(sealed, now(), "test").await.unwrap();
    let second = world.stage().await;
    world.go_on_with(&second).await;
    world.activate(&second).await;
    world.go_on_with(&second).await;
    let open = (world.made.lane.id(), world.made.next_batch);
    (world, old, sealed, open)
}

#[tokio::test]
async fn what_a_leaked_key_makes_after_its_time_counts_for_nobody_and_is_told_by_name() {
    let (mut world, old, sealed, open) = rotated().await;
    let identity = world.made.identity.clone();
    world.wait(Duration::from_secs(limits::CATALOG_KEY_GRACE_SECONDS + 60));
    let forged = forge(&world, &old, sealed, open).await;
    world.made.vault = Vault::open_with_identity(world.place(), &identity).await.unwrap().read_as(&identity);
    for seq in [3, 6, world.disk.head().seq.0] {
        let point = PointId { epoch: Epoch(1), seq: Seq(seq) };
        let image = world.made.image(&world.disk, point).await;
        assert!(image == Some(world.disk.image_at(point)), "{point} is wrong or cannot be read");
    }
    let vault = world.vault();
    assert_eq!(vault.epochs(&world.disk.id).await.unwrap(), world.disk.epochs);
    assert_eq!(vault.manifest(sealed).await.unwrap(), None);
    assert!(vault.lane(forged.lane).await.unwrap_err().is_too_late());
    let catalog = source::load(vault, &Want::disk(&world.disk.id)).await.unwrap();
    let history = source::history(&catalog, &world.disk.id, &world.disk.epochs);
    assert_eq!(source::lost_tail(&catalog, &history), None, "nobody is told that the newest records are lost");
    assert_eq!(history.head(), Some(world.disk.head()));
    let report = world.verify().await;
    for path in &forged.paths {
        let told = report.damage.iter().find(|damage| damage.object.as_deref() == Some(path.as_ref()));
        let told = told.unwrap_or_else(|| panic!("{path} is not told: {:?}", report.damage)).to_string();
        assert!(told.contains(&old.head().catalog_kid.to_string()), "{told}");
    }
    assert_eq!(report.damage.len(), forged.paths.len(), "{:?}", report.damage);
}

#[tokio::test]
async fn what_the_old_key_made_in_time_counts() {
    let (mut world, old, sealed, open) = rotated().await;
    let identity = world.made.identity.clone();
    world.wait(Duration::from_secs(limits::CATALOG_KEY_GRACE_SECONDS - 60));
    let made = forge(&world, &old, sealed, open).await;
    // Nor does it matter how much later that is read.
    world.wait(Duration::from_secs(86_400));
    world.made.vault = Vault::open_with_identity(world.place(), &identity).await.unwrap();
    let vault = world.vault();
    assert_eq!(vault.newest_epoch(&world.disk.id).await.unwrap().map(|epoch| epoch.epoch), Some(Epoch(2)));
    assert!(vault.manifest(sealed).await.unwrap().is_some());
    assert_eq!(vault.lane(made.lane).await.unwrap().catalog_kid, old.head().catalog_kid);
    let catalog = source::load(vault, &Want::default()).await.unwrap();
    let too_late = catalog.findings.iter().filter(|finding| finding.problem.is_beside());
    assert_eq!(too_late.count(), 0, "{:?}", catalog.findings);
    assert!(catalog.batches.iter().any(|batch| batch.object == names::batch(made.lane, 1)));
}

/// Who has a key of the past signs nothing with it, and a list cannot bring a key back, drop the staged one, or skip the stage.
#[tokio::test]
async fn lists_count_only_if_they_keep_the_key_or_activate_the_staged_one() {
    let world = World::new().await;
    let one = &world.made.identity;
    let (first, stray) = (world.vault().catalog_key().unwrap().clone(), CatalogKey::from_secret([5; 32]));
    let recipients = [one.recipient()];
    let next = |older: &CatalogKey, newer: &CatalogKey| NextCatalogKey {
        kid: newer.kid(),
        wrapped_key: keys::wrap(&recipients, newer.expose()).unwrap(),
        sealed_older_key: SealedOlderKey::new(world.vault().id(), older, newer).unwrap(),
    };
    let put = |key: &CatalogKey, next: Option<NextCatalogKey>| {
        let (key, vault, recipients) = (key.clone(), world.vault(), &recipients);
        async move {
            let basis = vault.lists().await.unwrap();
            let _ = vault.put_list(one, &basis, (recipients, key, next), now()).await;
            let lists = vault.lists().await.unwrap();
            (lists.present().n, lists.refused.last().map(|refused| refused.reason.clone()).unwrap_or_default())
        }
    };
    let (counts, why) = put(&stray, None).await;
    assert!(counts == 0 && why.contains("is for catalog key"), "{why}");
    let (counts, why) = put(&first, Some(next(&first, &first))).await;
    assert!(counts == 0 && why.contains("is or was the present one"), "{why}");
    let second = world.stage().await;
    let (counts, why) = put(&first, None).await;
    assert!(counts == 3 && why.contains("drops the staged"), "{counts} {why}");
    let (counts, why) = put(&second, Some(next(&second, &stray))).await;
    assert!(counts == 3 && why.contains("makes another the present one"), "{counts} {why}");
    let lists = activate(world.vault(), one).await.unwrap();
    assert_eq!((lists.present().n, lists.present().catalog_kid), (6, second.kid()));
}

/// A copy of a vault has times of its own, in whatever order it was made: nothing is lost by it, and the next rotation tells them apart again.
#[tokio::test]
async fn a_copy_of_a_vault_loses_nothing_that_an_older_key_made() {
    let (mut world, old, sealed, open) = rotated().await;
    let identity = world.made.identity.clone();
    let copy = FaultStore::new();
    let mut names: Vec<Path> = world.place().list(None).await.unwrap().into_iter().map(|one| one.path).collect();
    // The lists come first, and all else hours later.
    names.sort_by_key(|path| !path.as_ref().starts_with("recipients/"));
    copy.ahead_micros().store(7 * 86_400_000_000, Ordering::Relaxed);
    for path in names {
        let bytes = world.place().get(&path, 1 << 30).await.unwrap().unwrap();
        copy.place().put_new(&path, bytes.into(), Duration::from_secs(5)).await.unwrap();
        copy.ahead_micros().fetch_add(3_600_000_000, Ordering::Relaxed);
    }
    world.store = copy;
    let vault = Vault::open_with_identity(world.place(), &identity).await.unwrap();
    let activated = vault.lists().await.unwrap().activated().unwrap();
    assert_eq!(activated.counts_until, None);
    assert!(activated.to_string().contains("once more"), "{activated}");
    world.check(vault.clone(), &identity).await;
    // Once more, by a clock that goes with the store's.
    let there = || Micros(now().0.saturating_add_signed(world.store.ahead_micros().load(Ordering::Relaxed)));
    let (third, lists) = vault.stage_catalog_key(&identity, &vault.lists().await.unwrap(), there()).await.unwrap();
    let lists = vault.activate_catalog_key(&identity, &lists, there()).await.unwrap();
    assert!(lists.activated().unwrap().counts_until.is_some());
    world.check(Vault::open(world.place(), third).await.unwrap(), &identity).await;
    world.wait(Duration::from_secs(2 * limits::CATALOG_KEY_GRACE_SECONDS));
    let forged = forge(&world, &old, sealed, open).await;
    world.made.vault = Vault::open_with_identity(world.place(), &identity).await.unwrap();
    assert!(world.vault().lane(forged.lane).await.unwrap_err().is_too_late());
    let told: Vec<_> = world.verify().await.damage.into_iter().filter_map(|damage| damage.object).collect();
    assert!(forged.paths.iter().all(|path| told.iter().any(|told| told == path.as_ref())), "{told:?}");
}
