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

/// When each of pieces of `piece_bytes` goes through, that are all there from the start.
fn times(rate: u64, piece_bytes: u64, pieces: usize) -> Vec<Duration> {
    let (mut bucket, mut now) = (Bucket::default(), Duration::ZERO);
    bucket.settle(now, rate);
    (0..pieces)
        .map(|_| {
            now += bucket.opens_in().unwrap_or_default();
            bucket.settle(now, rate);
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
    bucket.settle(now, rate);
    for _ in 0..5000 {
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        // Idle now and then, for up to four seconds.
        now += at(if chance >> 60 == 0 { (chance >> 40) % 4000 } else { 0 });
        bucket.settle(now, rate);
        now += bucket.opens_in().unwrap_or_default();
        bucket.settle(now, rate);
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
    bucket.settle(at(3_600_000), MIB);
    bucket.charge(MIB);
    assert_eq!(bucket.opens_in(), Some(at(1000)), "an hour without a limit is no credit");
    bucket.settle(at(3_600_000), FREE);
    assert_eq!(bucket.opens_in(), None);
    bucket.settle(at(3_600_000), MIB);
    assert_eq!(bucket.opens_in(), None, "the old debt is gone");
}

#[test]
fn a_change_of_the_rate_counts_from_that_moment_on() {
    let mut bucket = Bucket::default();
    bucket.settle(at(0), MIB);
    bucket.charge(10 * MIB);
    bucket.settle(at(4000), MIB);
    assert_eq!(bucket.opens_in(), Some(at(6000)));
    bucket.settle(at(4000), 6 * MIB);
    assert_eq!(bucket.opens_in(), Some(at(1000)), "six are owed");
    bucket.settle(at(4500), 6 * MIB);
    bucket.settle(at(4500), MIB);
    assert_eq!(bucket.opens_in(), Some(at(3000)));
}

#[test]
fn a_clock_that_stands_or_goes_back_pays_nothing() {
    let mut bucket = Bucket::default();
    bucket.settle(at(1000), MIB);
    bucket.charge(MIB);
    bucket.settle(at(500), MIB);
    assert_eq!(bucket.opens_in(), Some(at(1000)));
    bucket.settle(at(1500), MIB);
    assert_eq!(bucket.opens_in(), Some(at(500)));
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_seen_and_learns_at_once_that_the_limit_changed() {
    let rate = Rate::new(paused());
    assert!(rate.set(Some(MIB)) && !rate.set(Some(MIB)));
    let pace = Pace::new(vec![Limiter::new(&rate)]);
    let mut hold = pace.hold();
    assert_eq!((hold.look(5), rate.held_bytes()), (None, 0));
    pace.charge(60 * MIB);
    let waits = hold.look(3 * MIB).expect("shut");
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
    assert!(hold.look(3 * MIB).is_some_and(|wait| wait <= Duration::from_secs(1)));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((hold.look(3 * MIB), rate.held_bytes()), (None, 0));
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
    let pace = || Pace::new(vec![Arc::clone(&together), Limiter::new(&disk)]);
    let (one, other) = (pace(), pace());
    assert_eq!((one.window(64 * MIB), one.window(MIB)), (RECORD_BYTES_MAX as u64, MIB));
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
    assert!(hold.look(7).is_some());
    assert_eq!((all.held_bytes(), disk.held_bytes()), (7, 0));
    drop(hold);
    assert_eq!(all.held_bytes(), 0);
    assert_eq!(Pace::default().opens_in(), None);
}
