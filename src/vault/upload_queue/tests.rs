use super::*;
use crate::vault::rng::Rng;
use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn queue(window_start: u32) -> UploadQueue {
    UploadQueue::new(QueueLimits { window_start, ..QueueLimits::default() }, Rng::seeded(7))
}

fn start_all(queue: &mut UploadQueue, now: Duration) -> Vec<u64> {
    let mut started = Vec::new();
    loop {
        let could = queue.could_start(now);
        let next = queue.next(now);
        assert_eq!(could, matches!(next, Next::Start(_)), "at {now:?}: {next:?}");
        let Next::Start(n) = next else { return started };
        started.push(n);
    }
}

#[test]
fn the_oldest_batches_start_first_and_no_more_than_the_window() {
    let mut queue = queue(2);
    for n in [3, 1, 2] {
        queue.push(n, ms(0));
    }
    assert_eq!(start_all(&mut queue, ms(0)), [1, 2]);
    queue.report(2, ms(10), Verdict::Done { bytes: 10 });
    assert_eq!(start_all(&mut queue, ms(10)), [3]);
}

#[test]
fn batches_are_held_up_by_a_full_window_and_not_by_a_store_that_is_away() {
    let mut queue = queue(2);
    (1..=2).for_each(|n| queue.push(n, ms(0)));
    assert_eq!(start_all(&mut queue, ms(0)), [1, 2]);
    assert!(!queue.is_held_up(ms(0)), "the window is full, but nothing waits");
    queue.push(3, ms(1));
    assert!(queue.is_held_up(ms(1)));
    queue.report(1, ms(5), Verdict::Done { bytes: 10 });
    assert_eq!(start_all(&mut queue, ms(5)), [3]);
    assert!(!queue.is_held_up(ms(5)));
    for n in [2, 3] {
        queue.report(n, ms(6), Verdict::Passing);
    }
    assert!(!queue.is_held_up(ms(6)), "both wait after a failure");
    assert_eq!(start_all(&mut queue, ms(60_000)), [2, 3]);
    queue.push(4, ms(60_000));
    assert!(queue.is_held_up(ms(60_000)));
    assert_eq!(queue.report(2, ms(60_001), Verdict::Lasting), Turn::Parked);
    assert!(!queue.is_held_up(ms(120_000)), "only a probe may run");
}

#[test]
fn a_window_full_of_successes_adds_one() {
    let mut queue = queue(4);
    (1..=100).for_each(|n| queue.push(n, ms(0)));
    let mut now = ms(0);
    let mut running = start_all(&mut queue, now);
    for _ in 0..5 {
        now += ms(10);
        let n = running.remove(0);
        queue.report(n, now, Verdict::Done { bytes: 1000 });
        running.extend(start_all(&mut queue, now));
    }
    assert_eq!(queue.window(), 5);
}

#[test]
fn overload_halves_once_per_round_and_never_below_one() {
    let mut queue = queue(8);
    (1..=8).for_each(|n| queue.push(n, ms(0)));
    assert_eq!(start_all(&mut queue, ms(0)).len(), 8);
    for n in 1..=8 {
        queue.report(n, ms(n), Verdict::Overload);
    }
    assert_eq!(queue.window(), 4, "eight answers of one round are one sign of overload");
    let mut now = ms(1);
    for _ in 0..200 {
        now += ms(100);
        for n in start_all(&mut queue, now) {
            queue.report(n, now, Verdict::Overload);
        }
    }
    assert_eq!(queue.window(), 1);
    assert_eq!(queue.len(), 8);
}

#[test]
fn pauses_double_up_to_the_longest_and_are_jittered() {
    let mut queue = queue(1);
    queue.push(1, ms(0));
    let mut now = ms(0);
    let mut pauses = Vec::new();
    for _ in 0..10 {
        assert_eq!(queue.next(now), Next::Start(1));
        queue.report(1, now, Verdict::Passing);
        let Next::At(at) = queue.next(now) else { panic!("a pause") };
        pauses.push(at - now);
        now = at;
    }
    assert!(pauses[0] >= ms(100) && pauses[0] <= ms(200), "{pauses:?}");
    assert!(pauses[3] >= ms(800) && pauses[3] <= ms(1600), "{pauses:?}");
    assert!(pauses.iter().all(|&pause| pause <= Duration::from_secs(10)));
    assert!(pauses[9] >= Duration::from_secs(5));
}

#[test]
fn a_lasting_failure_parks_and_a_successful_probe_resumes_everything() {
    let mut queue = queue(4);
    (1..=6).for_each(|n| queue.push(n, ms(0)));
    assert_eq!(start_all(&mut queue, ms(0)), [1, 2, 3, 4]);
    assert_eq!(queue.report(2, ms(5), Verdict::Lasting), Turn::Parked);
    assert_eq!(queue.report(1, ms(6), Verdict::Lasting), Turn::None);
    queue.report(3, ms(6), Verdict::Passing);
    queue.report(4, ms(6), Verdict::Lasting);
    assert!(queue.is_parked());
    let Next::At(at) = queue.next(ms(7)) else { panic!("a probe later") };
    assert!(at > ms(2000));
    assert_eq!(start_all(&mut queue, at), [1], "one probe at a time");
    assert_eq!(queue.report(1, at + ms(1), Verdict::Lasting), Turn::None);
    let Next::At(again) = queue.next(at + ms(1)) else { panic!("another probe later") };
    assert_eq!(start_all(&mut queue, again), [1]);
    assert_eq!(queue.report(1, again + ms(9), Verdict::Done { bytes: 5 }), Turn::Resumed);
    assert_eq!(start_all(&mut queue, again + ms(9)), [2, 3, 4, 5], "the others do not wait for their pauses");
}

#[test]
fn a_saturated_line_holds_the_window_and_a_long_one_lets_it_grow() {
    // Every upload shares one line: with w in flight each takes w times as long. Or each takes the same time.
    let run = |shared: bool| {
        let mut queue = queue(2);
        let mut now = ms(0);
        let mut in_flight: Vec<(Duration, u64)> = Vec::new();
        for n in 1..=600 {
            queue.push(n, now);
            while let Next::Start(n) = queue.next(now) {
                let load = if shared { in_flight.len() as u64 + 1 } else { 1 };
                in_flight.push((now + ms(100 * load), n));
            }
            if in_flight.len() >= queue.window() as usize {
                in_flight.sort_unstable();
                let (at, n) = in_flight.remove(0);
                now = now.max(at);
                queue.report(n, now, Verdict::Done { bytes: 16 << 20 });
            }
        }
        queue.window()
    };
    let (shared, long) = (run(true), run(false));
    assert!((2..=9).contains(&shared), "a shared line needs few uploads at once, got {shared}");
    assert!(long >= 24, "a long line needs many, got {long}");
}

/// A store that carries `capacity` uploads at once, each in 100 ms, and answers further ones with 503 after 10 ms. Runs for
/// `seconds` with always something to upload; returns how much of the capacity was used in the second half, which share
/// of the requests was refused there, and the largest window there.
fn on_a_store(
    queue: &mut UploadQueue,
    next_n: &mut u64,
    from: Duration,
    seconds: u64,
    capacity: usize,
) -> (f64, f64, u32) {
    let (half, end) = (from + ms(seconds * 500), from + ms(seconds * 1000));
    let mut now = from;
    // When each ends, how, and what.
    let mut running: Vec<(Duration, u64, bool)> = Vec::new();
    let (mut done, mut refused, mut window_max) = (0_u64, 0_u64, 0);
    while now < end {
        while queue.len() < 100 {
            queue.push(*next_n, now);
            *next_n += 1;
        }
        let wake = loop {
            match queue.next(now) {
                Next::Start(n) => {
                    let carried = running.iter().filter(|(.., carried)| *carried).count();
                    let carried = carried < capacity;
                    running.push((now + if carried { ms(100) } else { ms(10) }, n, carried));
                }
                Next::At(at) => break at,
                Next::Idle => break Duration::MAX,
            }
        };
        let first = (0..running.len()).min_by_key(|&at| running[at].0);
        match first.filter(|&at| running[at].0 <= wake) {
            None => now = wake,
            Some(at) => {
                let (ended, n, carried) = running.swap_remove(at);
                now = ended;
                if now >= half {
                    (done, refused) = (done + u64::from(carried), refused + u64::from(!carried));
                    window_max = window_max.max(queue.window());
                }
                let verdict = if carried { Verdict::Done { bytes: 4 << 20 } } else { Verdict::Overload };
                queue.report(n, now, verdict);
            }
        }
    }
    for (_, n, _) in running {
        queue.report(n, now, Verdict::Passing);
    }
    let possible = capacity as f64 * seconds as f64 * 5.0;
    (done as f64 / possible, refused as f64 / (done + refused) as f64, window_max)
}

#[test]
fn the_window_finds_what_a_store_bears_and_follows_it_up_and_down() {
    let mut queue = queue(2);
    let (mut n, mut now) = (1, ms(0));
    for capacity in [8, 2, 20, 1, 12] {
        let (used, refused, window) = on_a_store(&mut queue, &mut n, now, 60, capacity);
        now += ms(60_000);
        println!("capacity {capacity}: {used:.2} used, {refused:.2} refused, window up to {window}");
        assert!(used > 0.8, "a store for {capacity} uploads was used to {used:.2}");
        assert!(refused < 0.12, "a store for {capacity} uploads refused {refused:.2}");
        assert!(window as usize <= capacity + 2, "a store for {capacity} uploads got a window of {window}");
    }
}

proptest! {
    /// Whatever the store answers: nothing is lost or run twice at once, the window keeps its bounds, a parked queue
    /// runs one probe, and once the store is well everything is done.
    #[test]
    fn every_batch_is_done_once_whatever_the_store_answers(
        seed in any::<u64>(),
        verdicts in proptest::collection::vec(0_u8..6, 0..400),
        batches in 1_u64..40,
        window_max in 1_u32..10,
    ) {
        let limits = QueueLimits { window_start: 2, window_max, ..QueueLimits::default() };
        let mut queue = UploadQueue::new(limits, Rng::seeded(seed));
        let mut rng = Rng::seeded(seed ^ 1);
        (1..=batches).for_each(|n| queue.push(n, ms(0)));
        let mut now = ms(0);
        let mut running: Vec<u64> = Vec::new();
        let mut done = std::collections::BTreeSet::new();
        let mut verdicts = verdicts.into_iter();
        for _ in 0..20_000 {
            let parked = queue.is_parked();
            let at = loop {
                match queue.next(now) {
                    Next::Start(n) => {
                        prop_assert!(!running.contains(&n) && !done.contains(&n));
                        running.push(n);
                        prop_assert!(!parked || running.len() == 1, "one probe at a time");
                    }
                    Next::At(at) => {
                        prop_assert!(at > now);
                        break Some(at);
                    }
                    Next::Idle => break None,
                }
            };
            prop_assert!(running.len() <= window_max as usize);
            prop_assert!((1..=window_max).contains(&queue.window()));
            prop_assert_eq!(queue.len() + done.len(), batches as usize);
            if running.is_empty() {
                match at {
                    Some(at) => now = at,
                    None => break,
                }
                continue;
            }
            now += ms(rng.below(50));
            let n = running.swap_remove(rng.below(running.len() as u64) as usize);
            let verdict = match verdicts.next() {
                Some(0) => Verdict::Overload,
                Some(1) => Verdict::Passing,
                Some(2) => Verdict::Lasting,
                _ => Verdict::Done { bytes: rng.below(20 << 20) },
            };
            if matches!(verdict, Verdict::Done { .. }) {
                prop_assert!(done.insert(n));
            }
            queue.report(n, now, verdict);
        }
        prop_assert_eq!(done.len(), batches as usize);
        prop_assert!(queue.is_empty() && !queue.is_parked());
    }
}
