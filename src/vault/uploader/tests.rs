use std::sync::atomic::{AtomicU64, Ordering};

use object_store::path::Path;
use parking_lot::Mutex;

use super::*;
use crate::flow::{Limiter, Rate, SystemClock};
use crate::vault::objects::{LaneEndObject, LaneSealObject, RouteObject};
use crate::vault::testing::{Fate, FaultStore, batch, disk, vault_in};

/// Everything about times is short: what is tested is order and completeness.
fn config() -> UploaderConfig {
    let queue = QueueLimits {
        window_start: 4,
        window_max: 8,
        pause_min: Duration::from_millis(1),
        pause_max: Duration::from_millis(5),
        probe_every: Duration::from_millis(10),
    };
    UploaderConfig { queue, request_timeout: Duration::from_millis(300), ..UploaderConfig::default() }
}

struct Setup {
    store: Arc<FaultStore>,
    vault: Vault,
    lane: Lane,
    uploader: Uploader,
    events: mpsc::Receiver<UploadEvent>,
}

async fn setup(config: UploaderConfig) -> Setup {
    setup_with(config, Arc::new(SystemClock::new()), &Pace::default()).await
}

async fn setup_with(config: UploaderConfig, clock: Arc<dyn Clock>, pace: &Pace) -> Setup {
    let store = FaultStore::new();
    let (vault, ..) = vault_in(store.place()).await;
    let lane = Lane::open(&vault, "gw-1", &*clock).await.expect("opened");
    let (sender, events) = mpsc::channel(4);
    let uploader = Uploader::start(vault.clone(), &lane, config, pace, clock, &Handle::current(), sender);
    Setup { store, vault, lane, uploader, events }
}

/// Collects events until the channel closes.
fn collect(mut events: mpsc::Receiver<UploadEvent>) -> JoinHandle<Vec<UploadEvent>> {
    tokio::spawn(async move {
        let mut all = Vec::new();
        while let Some(event) = events.recv().await {
            all.push(event);
        }
        all
    })
}

fn numbers(events: &[UploadEvent]) -> Vec<u64> {
    let vaulted = events.iter().filter_map(|event| match event {
        UploadEvent::Vaulted(vaulted) => Some(vaulted.n),
        _ => None,
    });
    vaulted.collect()
}

/// Submits `count` batches of one disk and finishes.
async fn upload(setup: Setup, count: u64) -> (FinishedUpload, Vec<UploadEvent>) {
    let Setup { store, vault, lane, uploader, events } = setup;
    let events = collect(events);
    let one = disk("d1");
    for n in 1..=count {
        let confirmed = uploader.confirmed_through().get();
        assert!(confirmed < n, "a batch is confirmed before it was submitted");
        let object = batch(&vault, lane.id(), n, confirmed, &[(&one, n, n)], 2000);
        uploader.submit(object).await.expect("taken");
    }
    let last = uploader.finish().await.expect("finished");
    (FinishedUpload { store, vault, lane, last }, events.await.expect("collected"))
}

struct FinishedUpload {
    store: Arc<FaultStore>,
    vault: Vault,
    lane: Lane,
    last: u64,
}

impl FinishedUpload {
    async fn stored(&self) -> usize {
        self.vault.store().list(Some(&names::batches(self.lane.id()))).await.expect("listed").len()
    }
}

fn is_batch(path: &Path) -> bool {
    path.as_ref().starts_with("b/")
}

#[tokio::test]
async fn only_a_store_that_is_slow_holds_batches_up() {
    let quick = setup(config()).await;
    let held_up = Arc::clone(quick.uploader.held_up());
    upload(quick, 3).await;
    assert_eq!(held_up.total(), Duration::ZERO, "three batches fit the window of four");
    let slow = setup(config()).await;
    let held_up = Arc::clone(slow.uploader.held_up());
    slow.store.plan(|operation, path| match operation {
        "put" if is_batch(path) => Fate::Slow(Duration::from_millis(40)),
        _ => Fate::Good,
    });
    upload(slow, 24).await;
    assert!(held_up.total() > Duration::from_millis(60), "{held_up:?}");
}

/// Time of a paused runtime.
struct Paused(tokio::time::Instant);

impl Clock for Paused {
    fn wall(&self) -> Micros {
        Micros(1_800_000_000_000_000 + self.monotonic().as_micros() as u64)
    }

    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_bandwidth_holds_batches_back_in_order_counts_at_once_and_shows_as_the_bottleneck() {
    let clock: Arc<dyn Clock> = Arc::new(Paused(tokio::time::Instant::now()));
    let rate = Rate::new(Arc::clone(&clock));
    let setup = setup_with(config(), Arc::clone(&clock), &Pace::new(vec![Limiter::new(&rate)])).await;
    let one = disk("d1");
    let object = |n: u64| batch(&setup.vault, setup.lane.id(), n, 0, &[(&one, n, n)], 2000);
    let bytes = object(1).body.content_length() as u64;
    // A batch in four seconds; later a batch in one.
    rate.set(Some(bytes / 4));
    for n in 1..=12 {
        setup.uploader.submit(object(n)).await.expect("taken");
    }
    let held_up = Arc::clone(setup.uploader.held_up());
    let (stored, began) = (Arc::new(Mutex::new(Vec::new())), clock.monotonic());
    let (seen, time) = (Arc::clone(&stored), Arc::clone(&clock));
    let mut events = setup.events;
    let seeing = tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            if let UploadEvent::Vaulted(vaulted) = event {
                seen.lock().push((vaulted.n, (time.monotonic() - began).as_secs()));
            }
        }
    });
    tokio::time::sleep(Duration::from_secs(18)).await;
    assert_eq!(*stored.lock(), [(1, 0), (2, 4), (3, 8), (4, 12), (5, 16)]);
    assert!(rate.holds() && rate.held_bytes() >= 6 * bytes, "{rate:?} {}", rate.held_bytes());
    assert!(held_up.total() >= Duration::from_secs(16), "{held_up:?}");
    // Two seconds of a debt of four are paid; the other half takes half a second from now on.
    rate.set(Some(bytes));
    tokio::time::sleep(Duration::from_millis(3600)).await;
    assert_eq!(stored.lock()[5..], [(6, 18), (7, 19), (8, 20), (9, 21)]);
    rate.set(None);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(stored.lock().len(), 12, "without a limit all go at once");
    assert_eq!(rate.held_bytes(), 0);
    setup.uploader.finish().await.expect("finished");
    seeing.await.expect("no panic");
}

#[tokio::test]
async fn a_batch_whose_routes_are_not_there_yet_is_not_claimed_as_confirmed() {
    let Setup { store, vault, lane, uploader, events } = setup(config()).await;
    let events = collect(events);
    let one = disk("d1");
    store.plan(
        |operation, path| {
            if operation == "put" && path.as_ref().contains("/r/") { Fate::Status(503) } else { Fate::Good }
        },
    );
    uploader.submit(batch(&vault, lane.id(), 1, 0, &[(&one, 1, 1)], 2000)).await.expect("taken");
    while !vault.store().exists(&names::batch(lane.id(), 1)).await.expect("asked") {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(uploader.confirmed_through().get(), 0, "a crash now leaves a batch that no route leads to");
    store.plan(|_, _| Fate::Good);
    assert_eq!(uploader.confirmed_through().beyond(0).await, 1);
    uploader.finish().await.expect("finished");
    assert_eq!(numbers(&events.await.expect("collected")), [1]);
}

#[tokio::test]
async fn batches_upload_side_by_side_and_are_acked_in_order() {
    let setup = setup(config()).await;
    let mut rng = Rng::seeded(3);
    setup.store.plan(
        move |_, path| {
            if is_batch(path) { Fate::Slow(Duration::from_millis(rng.below(10))) } else { Fate::Good }
        },
    );
    let (done, events) = upload(setup, 60).await;
    assert_eq!(numbers(&events), (1..=60).collect::<Vec<_>>());
    assert_eq!(done.last, 60);
    assert!(done.store.puts_at_once_max() > 2, "{} at once", done.store.puts_at_once_max());
    let end: LaneEndObject =
        done.vault.get_object(&names::lane_end(done.lane.id())).await.expect("read").expect("an end");
    assert_eq!(end.last_batch, 60);
    assert!(done.vault.store().exists(&names::lane_index(done.lane.id(), 1)).await.expect("asked"));
}

#[tokio::test]
async fn faults_of_every_kind_lose_and_repeat_nothing() {
    for seed in 0..8 {
        let setup = setup(config()).await;
        let mut rng = Rng::seeded(seed);
        setup.store.plan(move |_, path| {
            if !is_batch(path) {
                return Fate::Good;
            }
            match rng.below(12) {
                0 => Fate::Status(503),
                1 => Fate::Status(500),
                2 => Fate::AnswerLost,
                3 => Fate::Status(409),
                4 => Fate::Status(403),
                5 => Fate::Slow(Duration::from_millis(3)),
                _ => Fate::Good,
            }
        });
        let (done, events) = upload(setup, 40).await;
        assert_eq!(numbers(&events), (1..=40).collect::<Vec<_>>(), "seed {seed}");
        assert_eq!(done.stored().await, 40, "seed {seed}");
    }
}

#[tokio::test]
async fn a_request_that_never_ends_is_given_up_and_recognised() {
    let setup = setup(config()).await;
    let hung = AtomicU64::new(0);
    setup.store.plan(move |operation, path| {
        let hang = operation == "put" && is_batch(path) && hung.fetch_add(1, Ordering::Relaxed) < 2;
        if hang { Fate::Hang } else { Fate::Good }
    });
    let (done, events) = upload(setup, 5).await;
    assert_eq!(numbers(&events), [1, 2, 3, 4, 5]);
    assert_eq!(done.stored().await, 5);
}

#[tokio::test]
async fn a_refused_credential_parks_raises_an_alarm_and_resumes_by_itself() {
    let setup = setup(config()).await;
    let refused = Arc::new(AtomicU64::new(12));
    let left = Arc::clone(&refused);
    setup.store.plan(move |operation, path| {
        let refuse = operation == "put" && is_batch(path);
        let before = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| refuse.then(|| n.checked_sub(1))?);
        if before.is_ok() { Fate::Status(403) } else { Fate::Good }
    });
    let (done, events) = upload(setup, 10).await;
    assert_eq!(refused.load(Ordering::Relaxed), 0);
    assert_eq!(numbers(&events), (1..=10).collect::<Vec<_>>());
    assert_eq!(done.stored().await, 10);
    let parked = events.iter().find_map(|event| match event {
        UploadEvent::Parked(text) => Some(text.as_str()),
        _ => None,
    });
    assert!(parked.is_some_and(|text| text.contains("permissions")), "{parked:?}");
    assert!(events.iter().any(|event| matches!(event, UploadEvent::Resumed)));
}

#[tokio::test]
async fn a_disks_route_is_there_before_its_first_ack_and_is_written_once() {
    let Setup { store, vault, lane, uploader, mut events } = setup(config()).await;
    let routes = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&routes);
    let failed = AtomicU64::new(0);
    store.plan(move |operation, path| {
        if operation == "put" && path.as_ref().contains("/r/") {
            seen.lock().push(path.to_string());
            // The first tries fail, one of them after the route was stored.
            match failed.fetch_add(1, Ordering::Relaxed) {
                0 => return Fate::Status(503),
                1 => return Fate::AnswerLost,
                _ => {}
            }
        }
        Fate::Good
    });
    let (one, two) = (disk("d1"), disk("d2"));
    for n in 1..=3 {
        let object = batch(&vault, lane.id(), n, 0, &[(&one, n, n), (&two, 10 * n, 10 * n)], 100);
        uploader.submit(object).await.expect("taken");
        let Some(UploadEvent::Vaulted(vaulted)) = events.recv().await else { panic!("vaulted") };
        assert_eq!(vaulted.parts.len(), 2);
        assert_eq!(vaulted.parts[1].last, Seq(10 * n));
        for disk in [&one, &two] {
            let path = names::route(disk, lane.id());
            let route: RouteObject = vault.get_object(&path).await.expect("read").expect("the route stands");
            assert_eq!(&route.disk, disk);
            // Whatever opens the lane opens by it what the pipeline seals.
            assert_eq!(route.sealed_key, Some(lane.keys().sealed(disk).expect("random")));
        }
    }
    let count = routes.lock().len();
    assert!((2..=4).contains(&count), "{count} writes of two routes, two of which failed");
    uploader.finish().await.expect("finished");
}

#[tokio::test]
async fn a_sealed_lane_acks_nothing_more_and_refuses_batches() {
    let Setup { store: _store, vault, lane, uploader, events } =
        setup(UploaderConfig { seal_check_every: Duration::ZERO, ..config() }).await;
    let events = collect(events);
    let one = disk("d1");
    let seal = LaneSealObject { lane: lane.id(), sealed_micros: Micros(1), reason: "retention".into() };
    vault.put_object(&names::lane_seal(lane.id()), &seal).await.expect("sealed");
    let mut refused = None;
    for n in 1..=1000 {
        if let Err(error) = uploader.submit(batch(&vault, lane.id(), n, 0, &[(&one, n, n)], 100)).await {
            refused = Some(error);
            break;
        }
    }
    assert!(matches!(refused, Some(SubmitError::Stopped(_))), "{refused:?}");
    let stop = uploader.finish().await.expect_err("stopped");
    assert!(matches!(*stop, UploadStop::Sealed { .. }), "{stop}");
    let events = events.await.expect("collected");
    assert_eq!(numbers(&events), Vec::<u64>::new());
    assert!(matches!(events.last(), Some(UploadEvent::Stopped(_))));
    assert!(!vault.store().exists(&names::lane_end(lane.id())).await.expect("asked"));
}

/// A machine that slept: its clock of work stood still meanwhile.
struct Sleeper(Paused, AtomicU64);

impl Clock for Sleeper {
    fn wall(&self) -> Micros {
        Micros(1_800_000_000_000_000 + self.boot().as_micros() as u64)
    }

    fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }

    fn boot(&self) -> Duration {
        self.0.monotonic() + Duration::from_secs(self.1.load(Ordering::Relaxed))
    }
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_slept_looks_for_the_seal_again_before_it_acks() {
    let clock = Arc::new(Sleeper(Paused(tokio::time::Instant::now()), AtomicU64::new(0)));
    let Setup { store: _store, vault, lane, uploader, mut events } =
        setup_with(config(), Arc::clone(&clock) as _, &Pace::default()).await;
    let one = disk("d1");
    uploader.submit(batch(&vault, lane.id(), 1, 0, &[(&one, 1, 1)], 100)).await.expect("taken");
    let first = events.recv().await.expect("an event");
    assert!(matches!(first, UploadEvent::Vaulted(_)), "{first:?}");
    // Asleep for twenty minutes: the keeper seals the lane, waits for its grace, and marks.
    clock.1.store(1200, Ordering::Relaxed);
    let seal = LaneSealObject { lane: lane.id(), sealed_micros: Micros(1), reason: "retention".into() };
    vault.put_object(&names::lane_seal(lane.id()), &seal).await.expect("sealed");
    // Whether it is taken is all the same: it must not be acked.
    let _ = uploader.submit(batch(&vault, lane.id(), 2, 1, &[(&one, 2, 2)], 100)).await;
    let second = events.recv().await.expect("an event");
    assert!(matches!(second, UploadEvent::Stopped(_)), "acked by a look from before the sleep: {second:?}");
    let stop = uploader.finish().await.expect_err("stopped");
    assert!(matches!(*stop, UploadStop::Sealed { .. }), "{stop}");
}

#[tokio::test]
async fn another_object_under_a_batchs_name_stops_the_lane() {
    let setup = setup(config()).await;
    let Setup { store, vault, lane, uploader, events } = setup;
    let events = collect(events);
    store.inner_put(&names::batch(lane.id(), 2), "not ours").await;
    let one = disk("d1");
    for n in 1..=3 {
        // Whether the later ones are still taken depends on the moment.
        let _ = uploader.submit(batch(&vault, lane.id(), n, 0, &[(&one, n, n)], 100)).await;
    }
    let stop = uploader.finish().await.expect_err("stopped");
    assert!(matches!(*stop, UploadStop::Taken { .. }), "{stop}");
    let acked = numbers(&events.await.expect("collected"));
    assert!(acked.iter().all(|&n| n < 2), "{acked:?}");
}

#[tokio::test]
async fn bodies_held_stay_within_the_byte_budget_while_the_store_is_away() {
    let limits = UploaderConfig { queue_bytes_max: 64 << 10, queue_batches_max: 1000, ..config() };
    let Setup { store, vault, lane, uploader, events } = setup(limits).await;
    let events = collect(events);
    let away = Arc::new(AtomicU64::new(1));
    let is_away = Arc::clone(&away);
    store.plan(
        move |_, path| {
            if is_batch(path) && is_away.load(Ordering::Relaxed) == 1 { Fate::Status(503) } else { Fate::Good }
        },
    );
    let (uploader, one) = (Arc::new(uploader), disk("d1"));
    let submitted = Arc::new(AtomicU64::new(0));
    let feeder = tokio::spawn({
        let (uploader, submitted, vault, lane) =
            (Arc::clone(&uploader), Arc::clone(&submitted), vault.clone(), lane.id());
        async move {
            for n in 1..=40 {
                uploader.submit(batch(&vault, lane, n, 0, &[(&one, n, n)], 8 << 10)).await.expect("taken");
                submitted.store(n, Ordering::Relaxed);
            }
        }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let held = submitted.load(Ordering::Relaxed);
    assert!((1..=8).contains(&held), "{held} batches of 8 KiB are held by a budget of 64 KiB");
    away.store(0, Ordering::Relaxed);
    feeder.await.expect("all taken");
    let uploader = Arc::into_inner(uploader).expect("the feeder is done");
    assert_eq!(uploader.finish().await.expect("finished"), 40);
    assert_eq!(numbers(&events.await.expect("collected")).len(), 40);
}
