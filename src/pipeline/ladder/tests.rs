use super::*;

/// Seconds that LZ4 takes for a MiB, as measured for `RUNGS`.
const LZ4_SECONDS_PER_MIB: f64 = 0.0015;
/// How much smaller each rung makes files.
const RATIOS: [f64; 7] = [1.77, 2.16, 2.25, 2.32, 2.37, 2.40, 2.42];
const TICK: Duration = Duration::from_millis(20);

/// A gateway as a flow of bytes: backlog, threads, a bounded queue of packed bytes, and an uplink.
struct World {
    ladder: Ladder,
    now: Duration,
    held_up: Duration,
    /// MiB a second that agents send, and that the uplink carries.
    ingest: f64,
    uplink: f64,
    /// Share of the processors that others take.
    others: f64,
    backlog: f64,
    queued: f64,
    vaulted: f64,
    changes: Vec<(u64, Packing)>,
}

const THREADS: f64 = 2.0;
/// What the uploader takes before the pipeline waits, and what its window holds, in MiB.
const QUEUE_MIB: f64 = 128.0;
const WINDOW_MIB: f64 = 32.0;

impl World {
    fn new(ingest: f64, uplink: f64) -> Self {
        let (now, held_up) = (Duration::ZERO, Duration::ZERO);
        let ladder = Ladder::new(THREADS as usize);
        let (backlog, queued, vaulted, others) = (0.0, 0.0, 0.0, 0.0);
        Self { ladder, now, held_up, ingest, uplink, others, backlog, queued, vaulted, changes: Vec::new() }
    }

    fn run(&mut self, seconds: u64) -> &mut Self {
        let end = self.now + Duration::from_secs(seconds);
        while self.now < end {
            self.tick();
        }
        self
    }

    fn tick(&mut self) {
        let dt = TICK.as_secs_f64();
        self.now += TICK;
        self.backlog += self.ingest * dt;
        let (rung, ratio) = (self.ladder.rung, RATIOS[self.ladder.rung]);
        let seconds_per_mib = LZ4_SECONDS_PER_MIB * RUNGS[rung].1 / (1.0 - self.others);
        let packed = (THREADS * dt / seconds_per_mib).min(self.backlog).min((QUEUE_MIB - self.queued) * ratio).max(0.0);
        self.backlog -= packed;
        self.queued += packed / ratio;
        let uploaded = self.queued.min(self.uplink * dt);
        self.queued -= uploaded;
        self.vaulted += uploaded * ratio;
        if self.queued > WINDOW_MIB && self.uplink > 0.0 {
            self.held_up += TICK;
        }
        self.ladder.worked(Duration::from_secs_f64(packed * seconds_per_mib));
        // The threads look when they take a message.
        if packed > 0.0
            && let Some(step) = self.ladder.look(self.now, self.held_up)
        {
            self.changes.push((self.now.as_secs(), step.packing));
        }
    }

    fn packing(&self) -> Packing {
        self.ladder.packing()
    }
}

#[test]
fn a_fast_store_gets_lz4_whether_there_is_little_to_do_or_more_than_the_threads_bear() {
    for ingest in [1.0, 200.0, 5000.0] {
        let mut world = World::new(ingest, 2000.0);
        world.run(600);
        assert_eq!((world.packing(), world.changes.len()), (Packing::Lz4, 0), "{ingest} MiB/s");
    }
}

#[test]
fn a_slow_uplink_with_idle_threads_gets_the_dearest_codec_step_by_step_and_keeps_it() {
    let mut world = World::new(40.0, 10.0);
    world.run(120);
    let packings: Vec<Packing> = world.changes.iter().map(|(_, packing)| *packing).collect();
    assert_eq!(packings, [1, 2, 3, 5, 6, 9].map(Packing::Zstd));
    world.run(3600);
    assert_eq!(world.changes.len(), 6, "{:?}", world.changes);
}

#[test]
fn the_climb_ends_where_the_next_rung_would_make_the_threads_more_than_half_busy() {
    // 120 MiB/s at level 3 are a fifth of two threads, at level 5 they would be half.
    let mut world = World::new(500.0, 60.0);
    world.run(600);
    assert_eq!(world.packing(), Packing::Zstd(3));
    let (vaulted, changes) = (world.vaulted, world.changes.len());
    world.run(600);
    assert_eq!(world.changes.len(), changes, "it stays: {:?}", world.changes);
    let rate = (world.vaulted - vaulted) / 600.0;
    assert!((rate - 60.0 * 2.32).abs() < 1.0, "the uplink stays full: {rate} MiB/s");
}

#[test]
fn saturated_processors_bring_it_down_again_as_far_as_they_must() {
    let mut world = World::new(40.0, 10.0);
    world.run(120);
    assert_eq!(world.packing(), Packing::Zstd(9));
    // Others take nine tenths of the machine, and more is to be carried.
    (world.others, world.uplink) = (0.9, 60.0);
    world.run(10);
    assert!(world.packing() != Packing::Zstd(9));
    world.run(110);
    assert!(matches!(world.packing(), Packing::Lz4 | Packing::Zstd(1)), "{:?}", world.changes);
    let changes = world.changes.len();
    world.run(3600);
    assert!(world.changes.len() - changes <= 16, "an hour brings few changes: {:?}", &world.changes[changes..]);
}

#[test]
fn a_backlog_is_emptied_as_fast_as_threads_and_uplink_can() {
    // Two hours of a slow line, in front of a fast one: LZ4 is soonest done.
    let mut world = World::new(20.0, 500.0);
    world.backlog = 100_000.0;
    world.run(60);
    assert_eq!(world.packing(), Packing::Lz4);
    // In front of a slow one: the dearest that keeps up. LZ4 alone would carry 531 MiB in a minute.
    let mut world = World::new(0.0, 5.0);
    world.backlog = 100_000.0;
    world.run(60);
    let vaulted = world.vaulted;
    world.run(60);
    assert!(world.vaulted - vaulted > 60.0 * 5.0 * 2.3, "{}", world.vaulted - vaulted);
    assert!(matches!(world.packing(), Packing::Zstd(6 | 9)));
}

#[test]
fn when_the_uplink_has_room_again_less_is_packed_slowly() {
    let mut world = World::new(40.0, 10.0);
    world.run(120);
    (world.uplink, world.backlog) = (1000.0, 0.0);
    world.run(25);
    assert_eq!(world.packing(), Packing::Zstd(9), "not at once");
    world.run(300);
    assert_eq!(world.packing(), Packing::Lz4);
}

#[test]
fn a_load_between_two_rungs_does_not_swing() {
    // 17 MiB/s are too much for LZ4 over this line and less than the others carry.
    let mut world = World::new(20.0, 10.0);
    world.run(3600);
    let changes = world.changes.len();
    world.run(3600);
    assert!(world.changes.len() - changes <= 14, "{:?}", &world.changes[changes..]);
    assert!(world.backlog < 100.0, "it keeps up: {} MiB behind", world.backlog);
}

#[test]
fn while_the_store_is_away_nothing_is_decided() {
    let mut world = World::new(40.0, 10.0);
    world.run(120);
    let changes = world.changes.len();
    world.uplink = 0.0;
    world.run(1800);
    world.uplink = 10.0;
    world.run(60);
    assert_eq!(world.changes.len(), changes, "{:?}", world.changes);
}

#[test]
fn a_burst_of_two_seconds_is_no_slow_uplink() {
    let mut world = World::new(0.0, 60.0);
    for _ in 0..20 {
        world.backlog += 300.0;
        world.run(30);
    }
    assert_eq!(world.changes, []);
}

#[test]
fn rungs_cost_more_than_the_ones_below() {
    assert!(RUNGS.windows(2).all(|pair| pair[0].1 < pair[1].1));
    assert!(RATIOS.windows(2).all(|pair| pair[0] < pair[1]));
}
