//! The whole chain of backpressure: the blob store is away under full load, uploads stop, the journal fills to its
//! high-water mark, credit shrinks, the agent marks its dirty map, and the guest notices nothing; the store comes back and
//! everything is caught up with. Write latencies with and without the outage are measured in the same run.
//!
//! The short form runs with all tests; `tests/outage` runs the long one. `TIDEGATE_OUTAGE_SECONDS` says how long.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use hdrhistogram::Histogram;
use loadgen::blob::{BlobFaults, BlobProxy};
use tidegate::cli::quickstart::child::{metric, wait_until};
use tidegate::cli::quickstart::load::Load;
use tidegate::flow::{Clock as _, SystemClock};

use crate::common::azurite::Azurite;
use crate::common::{Scene, Setting, empty, turn_alone};
use crate::memory::{BASE_BYTES, peak_bytes};

const MEMORY: u64 = 128 << 20;
/// Writes of all sizes, held and freed in any order for minutes, leave the agent's allocator with holes.
const AGENT_HOLES: u64 = 32 << 20;
const AGENT_MEMORY: u64 = 64 << 20;
const CAPACITY: u64 = 512 << 20;
const DISK_BYTES: u64 = 256 << 20;
/// More than the store of the tests takes from a debug build, so that every stage is at its limit now and then.
const MIB_PER_SECOND: u64 = 24;
/// From this length on the ratio of the latencies is a figure and not only noise.
const LONG: Duration = Duration::from_secs(300);
const RATIO_MAX: f64 = 1.2;

/// What the guest saw in one phase.
struct Phase {
    writes: Histogram<u64>,
    written_bytes: u64,
    /// Least that was written in one second.
    least_bytes: u64,
    took: Duration,
}

impl Phase {
    fn p(&self, quantile: f64) -> f64 {
        self.writes.value_at_quantile(quantile) as f64 / 1000.0
    }

    fn and(mut self, other: &Self) -> Self {
        self.writes.add(&other.writes).unwrap();
        self.written_bytes += other.written_bytes;
        self.least_bytes = self.least_bytes.min(other.least_bytes);
        self.took += other.took;
        self
    }

    fn print(&self, name: &str) {
        println!(
            "{name:<10} {:>5} s {:>7} writes {:>6} MiB  p50 {:.2} ms  p99 {:.2} ms  p99.9 {:.2} ms  longest {:.2} ms",
            self.took.as_secs(),
            self.writes.len(),
            self.written_bytes >> 20,
            self.p(0.5),
            self.p(0.99),
            self.p(0.999),
            self.writes.max() as f64 / 1000.0
        );
    }
}

/// Watches the load for a while; calls `look` every second.
fn phase(scene: &mut Scene, load: &Load, length: Duration, mut look: impl FnMut(&mut Scene)) -> Phase {
    let clock = SystemClock::new();
    let before = load.done();
    let mut least_bytes = u64::MAX;
    let mut last = before.written_bytes;
    while clock.monotonic() < length {
        wait_until(Duration::from_secs(1), || false);
        let now = load.done().written_bytes;
        least_bytes = least_bytes.min(now - last);
        last = now;
        scene.assert_alive();
        look(scene);
    }
    let after = load.done();
    let mut writes = after.write_micros;
    writes.subtract(&before.write_micros).unwrap();
    let written_bytes = after.written_bytes - before.written_bytes;
    Phase { writes, written_bytes, least_bytes, took: clock.monotonic() }
}

/// What the chain showed while the store was away.
#[derive(Default)]
struct Seen {
    journal_bytes_max: f64,
    dirty_bytes_max: u64,
    overflowed: bool,
}

impl Seen {
    fn look(&mut self, scene: &Scene) {
        let page = scene.site.admin("/metrics").unwrap_or_default();
        self.journal_bytes_max = self.journal_bytes_max.max(metric(&page, "tidegate_journal_used_bytes"));
        if let Some(status) = scene.site.status("disk1") {
            self.dirty_bytes_max = self.dirty_bytes_max.max(status.dirty_bytes);
            self.overflowed |= status.state == "overflowed";
        }
    }
}

fn setting(vault: String) -> Setting {
    Setting {
        vault: Some(vault),
        gateway: vec![
            ("", format!("memory = \"{} MiB\"", MEMORY >> 20)),
            ("journal", format!("capacity = \"{} MiB\"", CAPACITY >> 20)),
            ("journal", "segment = \"16 MiB\"".into()),
        ],
        agent: vec![("", format!("memory = \"{} MiB\"", AGENT_MEMORY >> 20))],
    }
}

#[test]
fn an_outage_under_full_load_is_taken_by_journal_and_dirty_map_and_caught_up_with() {
    let _turn = turn_alone();
    let seconds = std::env::var("TIDEGATE_OUTAGE_SECONDS").unwrap_or_else(|_| "40".to_owned());
    let outage = Duration::from_secs(seconds.parse().expect("TIDEGATE_OUTAGE_SECONDS is a number"));
    let azurite = Azurite::start();
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let proxy = BlobProxy::start(any, azurite.address(), BlobFaults::default(), 19).unwrap();
    let mut scene = Scene::new(setting(azurite.vault_url_at(proxy.address(), "outage")), &["disk1"], empty(DISK_BYTES));
    let load = scene.load("disk1", 71, MIB_PER_SECOND);
    scene.wait_copied("disk1");

    let calm_for = (outage / 4).max(Duration::from_secs(5));
    let calm = phase(&mut scene, &load, calm_for, |_| ());
    scene.keep("disk1", "before", Some(&load));
    proxy.set(BlobFaults { away: true, ..BlobFaults::default() });
    let mut seen = Seen::default();
    let storm = phase(&mut scene, &load, outage, |scene| seen.look(scene));
    proxy.set(BlobFaults::default());

    let clock = SystemClock::new();
    scene.wait_copied("disk1");
    let caught_up = clock.monotonic();
    // Before and after, so that a machine that becomes busier or idler meanwhile changes both sides of the ratio.
    let calm = calm.and(&phase(&mut scene, &load, calm_for, |_| ()));
    scene.keep("disk1", "after", Some(&load));
    let interruptions = load.done().interruptions;
    drop(load);
    scene.wait_vaulted();
    let gateway = peak_bytes(scene.gateway.as_ref().unwrap().id());
    let agent = peak_bytes(scene.agent.as_ref().unwrap().id());
    calm.print("store here");
    storm.print("store away");
    let ratio = storm.p(0.99) / calm.p(0.99);
    println!("p99 with the store away / here: {ratio:.2}");
    println!(
        "journal at most {} of {} MiB, dirty map at most {} MiB, caught up {} s after the store came back",
        seen.journal_bytes_max as u64 >> 20,
        CAPACITY >> 20,
        seen.dirty_bytes_max >> 20,
        caught_up.as_secs()
    );
    println!(
        "peak memory: gateway {} MiB of {}, agent {} MiB of {}",
        gateway >> 20,
        (MEMORY + BASE_BYTES) >> 20,
        agent >> 20,
        (AGENT_MEMORY + BASE_BYTES + AGENT_HOLES) >> 20
    );

    assert_eq!(interruptions, 0, "the guest noticed");
    assert!(storm.least_bytes > 0, "the guest stood still for a second");
    assert!(seen.journal_bytes_max > 0.7 * CAPACITY as f64, "the journal did not fill: nothing was proven");
    assert!(seen.overflowed && seen.dirty_bytes_max > 0, "the dirty map was not needed: nothing was proven");
    assert!(gateway <= MEMORY + BASE_BYTES, "the gateway used {} MiB", gateway >> 20);
    assert!(agent <= AGENT_MEMORY + BASE_BYTES + AGENT_HOLES, "the agent used {} MiB", agent >> 20);
    if outage >= LONG {
        assert!(ratio <= RATIO_MAX, "writes took {ratio:.2} times as long while the store was away");
    }
    scene.stop();
    scene.assert_all_restore();
}
