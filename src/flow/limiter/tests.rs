use super::*;
use crate::types::Micros;

const MIB: u64 = 1 << 20;

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Time of a paused runtime.
struct Paused(tokio::time::Instant);

impl Clock for Paused {
    fn wall(&self) -> Micros {
        Micros(0)
    }

    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }
}

fn paused() -> Arc<dyn Clock> {
    Arc::new(Paused(tokio::time::Instant::now()))
}

/// Time that stands still.
struct Still;

impl Clock for Still {
    fn wall(&self) -> Micros {
        Micros(0)
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}

/// When each of pieces of `piece_bytes` goes through, that are all there from the start.
fn times(rate: u64, piece_bytes: u64, pieces: usize) -> Vec<Duration> {
    let (mut bucket, mut now) = (Bucket::default(), Duration::ZERO);
    bucket.settle(now, rate, 0);
    (0..pieces)
        .map(|_| {
            now += bucket.opens_in().unwrap_or_default();
            bucket.settle(now, rate, 0);
            assert_eq!(bucket.opens_in(), None, "it opens when it said");
            bucket.charge(piece_bytes);
            now
        })
        .collect()
}

#[test]
fn the_average_is_held_to_the_byte_whatever_the_pieces() {
    for (rate, piece_bytes) in [(MIB, 100), (MIB, 16 * MIB), (7, 3), (50 * MIB, 4096), (u64::MAX >> 20, MIB)] {
        let pieces = 1000;
        let took = times(rate, piece_bytes, pieces).pop().expect("pieces");
        let wanted = (pieces as f64 - 1.0) * piece_bytes as f64 / rate as f64;
        // Each wait is rounded up to a nanosecond, and what that saves is kept.
        assert!((took.as_secs_f64() - wanted).abs() < 1e-6 + wanted * 1e-9, "{rate} {piece_bytes}: {took:?}");
    }
}

#[test]
fn no_span_of_time_sees_more_than_the_rate_a_burst_and_one_piece() {
    let (rate, piece_bytes) = (10 * MIB, MIB);
    let (mut bucket, mut now, mut through) = (Bucket::default(), Duration::ZERO, Vec::new());
    let mut chance = 7_u64;
    bucket.settle(now, rate, 0);
    for _ in 0..5000 {
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        // Idle now and then, for up to four seconds.
        now += at(if chance >> 60 == 0 { (chance >> 40) % 4000 } else { 0 });
        bucket.settle(now, rate, 0);
        now += bucket.opens_in().unwrap_or_default();
        bucket.settle(now, rate, 0);
        bucket.charge(piece_bytes);
        through.push(now);
    }
    for (first, begin) in through.iter().enumerate() {
        for (last, end) in through.iter().enumerate().skip(first).take(200) {
            let bytes = ((last - first + 1) as u64 * piece_bytes) as f64;
            let allowed = rate as f64 * (*end - *begin + BURST).as_secs_f64() + piece_bytes as f64;
            assert!(bytes <= allowed + 1.0, "{first} to {last}: {bytes} of {allowed}");
        }
    }
}

#[test]
fn a_limit_that_begins_has_nothing_saved_up_and_one_that_ends_leaves_no_debt() {
    let mut bucket = Bucket::default();
    bucket.settle(at(3_600_000), MIB, 0);
    bucket.charge(MIB);
    assert_eq!(bucket.opens_in(), Some(at(1000)), "an hour without a limit is no credit");
    bucket.settle(at(3_600_000), FREE, 0);
    assert_eq!(bucket.opens_in(), None);
    bucket.settle(at(3_600_000), MIB, 0);
    assert_eq!(bucket.opens_in(), None, "the old debt is gone");
}

#[test]
fn a_change_of_the_rate_counts_from_that_moment_on() {
    let mut bucket = Bucket::default();
    bucket.settle(at(0), MIB, 0);
    bucket.charge(10 * MIB);
    bucket.settle(at(4000), MIB, 0);
    assert_eq!(bucket.opens_in(), Some(at(6000)));
    bucket.settle(at(4000), 6 * MIB, 0);
    assert_eq!(bucket.opens_in(), Some(at(1000)), "six are owed");
    bucket.settle(at(4500), 6 * MIB, 0);
    bucket.settle(at(4500), MIB, 0);
    assert_eq!(bucket.opens_in(), Some(at(3000)));
}

#[test]
fn a_clock_that_stands_or_goes_back_pays_nothing() {
    let mut bucket = Bucket::default();
    bucket.settle(at(1000), MIB, 0);
    bucket.charge(MIB);
    bucket.settle(at(500), MIB, 0);
    assert_eq!(bucket.opens_in(), Some(at(1000)));
    bucket.settle(at(1500), MIB, 0);
    assert_eq!(bucket.opens_in(), Some(at(500)));
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_seen_and_learns_at_once_that_the_limit_changed() {
    let rate = Rate::new(paused());
    assert!(rate.set(Some(MIB)) && !rate.set(Some(MIB)));
    let pace = Pace::new(vec![Limiter::new(&rate)]);
    let mut hold = pace.hold();
    assert_eq!((hold.look(5, 5), rate.held_bytes()), (None, 0));
    pace.charge(60 * MIB);
    hold.went(60 * MIB);
    let waits = hold.look(3 * MIB, MIB).expect("shut");
    assert!(waits > Duration::from_secs(59), "{waits:?}");
    assert_eq!((rate.held_bytes(), rate.holds()), (3 * MIB, true));
    let began = tokio::time::Instant::now();
    let sets = Arc::clone(&rate);
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(2)).await;
        sets.set(Some(58 * MIB));
    });
    hold.opens(Some(waits)).await;
    assert_eq!(began.elapsed(), Duration::from_secs(2));
    assert!(hold.look(3 * MIB, MIB).is_some_and(|wait| wait <= Duration::from_secs(1)));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((hold.look(3 * MIB, MIB), rate.held_bytes()), (None, 0));
    assert!(rate.holds(), "a moment ago");
    tokio::time::sleep(HOLDS_FOR).await;
    assert!(!rate.holds());
}

#[tokio::test(start_paused = true)]
async fn the_smallest_of_several_limits_counts_and_each_disk_has_a_bucket_of_its_own() {
    let (all, disk) = (Rate::new(paused()), Rate::new(paused()));
    all.set(Some(10 * MIB));
    disk.set(Some(2 * MIB));
    let together = Limiter::new(&all);
    let pace = || Pace::new(vec![Limiter::new(&disk), Arc::clone(&together)]);
    let (one, other) = (pace(), pace());
    assert_eq!((one.window(64 * MIB), one.window(MIB / 4)), (MIB / 2, MIB / 4));
    disk.set(Some(100 * MIB));
    all.set(Some(40 * MIB));
    assert_eq!(one.window(64 * MIB), 10 * MIB, "a quarter of a second of the smallest");
    all.set(Some(10 * MIB));
    disk.set(Some(2 * MIB));
    one.charge(2 * MIB);
    assert_eq!(one.opens_in(), Some(Duration::from_secs(1)));
    assert_eq!(other.opens_in(), Some(Duration::from_millis(200)), "only the limit of all");
    disk.set(None);
    assert_eq!(one.opens_in(), Some(Duration::from_millis(200)));
    let mut hold = one.hold();
    assert!(hold.look(7, 7).is_some());
    assert_eq!((all.held_bytes(), disk.held_bytes()), (7, 0));
    drop(hold);
    assert_eq!(all.held_bytes(), 0);
    assert_eq!((Pace::default().opens_in(), Pace::default().window(MIB)), (None, MIB));
}

/// Waits for its turn.
async fn turn(hold: &mut Hold, bytes: u64) {
    while let Some(wait) = hold.look(bytes, bytes) {
        hold.opens(Some(wait)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn at_an_opening_one_goes_and_those_who_take_much_take_turns() {
    const ALL: usize = 50;
    let clock = paused();
    let rate = Rate::new(Arc::clone(&clock));
    rate.set(Some(10 * MIB));
    let (together, went) = (Limiter::new(&rate), Arc::new(Mutex::new(Vec::new())));
    let tasks: Vec<_> = (0..ALL)
        .map(|id| {
            let (pace, clock, went) = (Pace::new(vec![Arc::clone(&together)]), Arc::clone(&clock), Arc::clone(&went));
            tokio::spawn(async move {
                let mut hold = pace.hold();
                for _ in 0..10 {
                    turn(&mut hold, MIB).await;
                    pace.charge(MIB);
                    went.lock().push((clock.monotonic(), id));
                    hold.went(MIB);
                    // They come again at different times, and long before their next turn.
                    tokio::time::sleep(at(id as u64 % 7)).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    let went = went.lock();
    for (first, (begin, _)) in went.iter().enumerate() {
        for (last, (end, _)) in went.iter().enumerate().skip(first).take(60) {
            let allowed = 10.0 * (*end - *begin + BURST).as_secs_f64() + 1.0;
            assert!((last - first + 1) as f64 <= allowed + 0.01, "{first} to {last}: {begin:?} {end:?}");
        }
    }
    // All of the rate is used, whoever takes it.
    let took = went.last().expect("some").0.as_secs_f64();
    assert!((0.98..1.02).contains(&(took * 10.0 / (ALL * 10) as f64)), "{took} s");
    for round in went.chunks(ALL) {
        let mut ids: Vec<_> = round.iter().map(|(_, id)| *id).collect();
        ids.sort_unstable();
        assert!(ids.iter().copied().eq(0..ALL), "each in its turn: {ids:?}");
    }
    assert_eq!((rate.held_bytes(), together.waiting.load(Ordering::Relaxed)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn who_takes_little_goes_before_those_who_take_much_and_who_cannot_go_keeps_nobody() {
    let rate = Rate::new(paused());
    rate.set(Some(MIB));
    let together = Limiter::new(&rate);
    let pace = || Pace::new(vec![Arc::clone(&together)]);
    let went = Arc::new(AtomicU64::new(0));
    let heavy: Vec<_> = (0..30)
        .map(|_| {
            let (pace, went) = (pace(), Arc::clone(&went));
            tokio::spawn(async move {
                let mut hold = pace.hold();
                loop {
                    turn(&mut hold, MIB).await;
                    pace.charge(MIB);
                    went.fetch_add(1, Ordering::SeqCst);
                    hold.went(MIB);
                }
            })
        })
        .collect();
    let pace = pace();
    let mut light = pace.hold();
    for _ in 0..20 {
        tokio::time::sleep(at(2900)).await;
        let before = went.load(Ordering::SeqCst);
        turn(&mut light, 1000).await;
        pace.charge(1000);
        light.went(1000);
        assert!(went.load(Ordering::SeqCst) - before <= 1, "others went first");
    }
    // In front, and gone; let through, and kept by something else.
    let (mut gone, mut kept) = (pace.hold(), pace.hold());
    assert!(gone.look(1, 1).is_some());
    drop(gone);
    turn(&mut kept, 1).await;
    kept.step_aside();
    let before = went.load(Ordering::SeqCst);
    // Not at the very moment of an opening.
    tokio::time::sleep(at(10_400)).await;
    assert!(went.load(Ordering::SeqCst) >= before + 9, "the line stands still");
    assert!(kept.look(1, MIB).is_some(), "what let it through was for others");
    let before = went.load(Ordering::SeqCst);
    turn(&mut kept, MIB).await;
    assert_eq!(went.load(Ordering::SeqCst), before, "it has its place again, in front of those who came since");
    heavy.iter().for_each(tokio::task::JoinHandle::abort);
    rate.set(None);
    assert_eq!(kept.look(1, 1), None);
}

#[tokio::test(start_paused = true)]
async fn those_whom_something_else_kept_go_one_after_the_other_and_not_all_at_once() {
    const ALL: u64 = 40;
    let clock = paused();
    let rate = Rate::new(Arc::clone(&clock));
    rate.set(Some(MIB));
    let (together, went) = (Limiter::new(&rate), Arc::new(Mutex::new(Vec::new())));
    let kept = Arc::new(tokio::sync::Semaphore::new(0));
    let tasks: Vec<_> = (0..ALL)
        .map(|_| {
            let pace = Pace::new(vec![Arc::clone(&together)]);
            let (clock, went, kept) = (Arc::clone(&clock), Arc::clone(&went), Arc::clone(&kept));
            tokio::spawn(async move {
                let mut hold = pace.hold();
                turn(&mut hold, MIB).await;
                hold.step_aside();
                let _free = kept.acquire().await;
                turn(&mut hold, MIB).await;
                pace.charge(MIB);
                went.lock().push(clock.monotonic());
                hold.went(MIB);
            })
        })
        .collect();
    tokio::time::sleep(at(60_000)).await;
    kept.add_permits(ALL as usize);
    for task in tasks {
        task.await.expect("no panic");
    }
    let went = went.lock();
    for (first, begin) in went.iter().enumerate() {
        for (last, end) in went.iter().enumerate().skip(first) {
            let allowed = (*end - *begin + BURST).as_secs_f64() + 1.0;
            assert!((last - first + 1) as f64 <= allowed + 0.01, "{first} to {last}: {begin:?} {end:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_comes_anew_each_time_or_by_several_ways_has_no_more_turns_than_who_stays() {
    let clock = paused();
    let rate = Rate::new(Arc::clone(&clock));
    rate.set(Some(10 * MIB));
    let together = Limiter::new(&rate);
    let went: Vec<_> = (0..4).map(|_| Arc::new(AtomicU64::new(0))).collect();
    let mut tasks = Vec::new();
    for (id, went) in went.iter().enumerate() {
        let pace = Pace::new(vec![Arc::clone(&together)]);
        // The first comes anew each time, the second by three ways, the others stay.
        for _ in 0..if id == 1 { 3 } else { 1 } {
            let (pace, went) = (pace.clone(), Arc::clone(went));
            tasks.push(tokio::spawn(async move {
                let mut hold = pace.hold();
                loop {
                    turn(&mut hold, MIB).await;
                    pace.charge(MIB);
                    went.fetch_add(1, Ordering::SeqCst);
                    hold.went(MIB);
                    if id == 0 {
                        hold = pace.hold();
                    }
                }
            }));
        }
    }
    tokio::time::sleep(Duration::from_secs(100)).await;
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    let went: Vec<u64> = went.iter().map(|went| went.load(Ordering::SeqCst)).collect();
    assert!(went.iter().all(|went| (245..=256).contains(went)), "{went:?}");
}

#[test]
fn what_was_charged_to_no_limit_or_to_one_that_has_ended_is_not_paid_back() {
    let (disk, all) = (Rate::new(Arc::new(Still)), Rate::new(Arc::new(Still)));
    let limiters = [Limiter::new(&disk), Limiter::new(&all)];
    let pace = Pace::new(limiters.to_vec());
    let owed = |limiter: usize| limiters[limiter].opens_in().map_or(0, |wait| wait.as_millis());
    disk.set(Some(MIB));
    let (toll, other) = (Toll::new(pace.clone()), Toll::new(pace));
    assert_eq!(toll.ahead(2 * MIB), 2 * MIB);
    // The limit of all begins, and has nothing to do with that.
    all.set(Some(MIB));
    other.ahead(3 * MIB);
    assert_eq!((owed(0), owed(1)), (5000, 3000));
    toll.back(0);
    assert_eq!((owed(0), owed(1)), (3000, 3000), "the limit of all was not charged with it");
    // It goes on in the same stream: each limit gets back what it was charged with.
    toll.ahead(MIB);
    assert_eq!((owed(0), owed(1)), (4000, 4000));
    // A limit ends and begins: it knows of nothing before.
    disk.set(None);
    disk.set(Some(MIB));
    assert_eq!((owed(0), owed(1)), (0, 4000));
    other.ahead(4 * MIB);
    assert_eq!((owed(0), owed(1)), (1000, 5000));
    drop(toll);
    assert_eq!((owed(0), owed(1)), (1000, 4000), "of a limit before this one");
    drop(other);
    assert_eq!((owed(0), owed(1)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn credit_is_paid_for_once_when_it_is_granted_and_what_is_not_used_is_paid_back() {
    let rate = Rate::new(paused());
    let pace = Pace::new(vec![Limiter::new(&rate)]);
    let kib = |count: u64| count << 10;
    let owed = || pace.opens_in().map_or(0, |wait| (wait.as_secs_f64() * 1024.0).round() as u64);
    rate.set(Some(MIB));
    let toll = Toll::new(pace.clone());
    assert_eq!((toll.ahead(kib(16)), owed()), (kib(16), 16), "the first too");
    toll.used(kib(4));
    assert_eq!(owed(), 16);
    assert_eq!((toll.ahead(kib(100)), owed()), (kib(84), 100));
    toll.used(kib(60));
    assert_eq!((toll.ahead(kib(100)), owed()), (0, 100), "each byte once");
    toll.back(kib(70));
    assert_eq!(owed(), 70);
    toll.used(kib(90));
    assert_eq!(owed(), 90, "what was on its way all the same");
    toll.ahead(kib(200));
    drop(toll);
    assert_eq!(owed(), 90, "what came");
    // Credit of a time without a limit is paid for as it comes.
    let rate = Rate::new(paused());
    let pace = Pace::new(vec![Limiter::new(&rate)]);
    let toll = Toll::new(pace.clone());
    toll.ahead(kib(16));
    toll.ahead(kib(4096));
    toll.used(kib(1000));
    rate.set(Some(MIB));
    toll.used(kib(1200));
    assert_eq!(pace.opens_in(), Some(Duration::from_secs(200) / 1024));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_used_is_no_turn_either() {
    let rate = Rate::new(paused());
    rate.set(Some(MIB));
    let together = Limiter::new(&rate);
    let (one, other) = (Pace::new(vec![Arc::clone(&together)]), Pace::new(vec![Arc::clone(&together)]));
    let (toll, mut hold) = (Toll::new(one.clone()), one.hold());
    turn(&mut hold, MIB).await;
    hold.went(toll.ahead(10 * MIB));
    toll.used(1000);
    toll.back(1000);
    other.charge(MIB);
    let mut before = other.hold();
    assert!(before.look(0, 2000).is_some());
    // Who is first in the line is told how long the bucket is shut.
    let wait = hold.look(0, 500).expect("shut");
    assert!(wait < Duration::from_secs(2), "it counts with what it used, and is done first: {wait:?}");
}
