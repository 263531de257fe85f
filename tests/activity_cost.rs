//! What the activity map costs a guest: the same writes through the splitter with the map as it is and with one that forgets,
//! turn by turn in one run, so that the ratio holds also on a machine that does other things.
//!
//! `TIDEGATE_ACTIVITY_ROUNDS=3 TIDEGATE_ACTIVITY_ROUND_MS=5000 cargo test --test activity_cost -- --nocapture` prints the figures of
//! docs/decisions/0009: the median of the ratios of all pairs of rounds. Each round begins with an empty map, as if all were vaulted
//! at once; the agent clears what is vaulted at most every five seconds.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidegate::agent::activity::{ActivityMap, MapFile, REGION_BYTES};
use tidegate::agent::chunk_set::ChunkSet;
use tidegate::agent::clock::AgentClock;
use tidegate::agent::disk::{Disk, Overrides, Shared};
use tidegate::agent::splitter::Splitter;
use tidegate::agent::state::StateDir;
use tidegate::cli::quickstart::load::Numbers;
use tidegate::flow::{Budget, Clock, SystemClock};
use tidegate::nbd::{Export, FileExport};

const MIB: u64 = 1 << 20;
/// Writes of one round are counted for this long unless told otherwise. 5000 is what the agent leaves between two clearings.
const ROUND_MS: u64 = 150;

/// What is written.
struct Work {
    name: &'static str,
    disk_bytes: u64,
    write_bytes: usize,
    sequential: bool,
    /// Each write is durable before it is answered, as in a database's log.
    durable: bool,
}

const WORKS: [Work; 6] = [
    Work {
        name: "sequential 256 KiB",
        disk_bytes: 512 * MIB,
        write_bytes: 256 << 10,
        sequential: true,
        durable: false,
    },
    Work {
        name: "sequential 256 KiB, durable",
        disk_bytes: 512 * MIB,
        write_bytes: 256 << 10,
        sequential: true,
        durable: true,
    },
    Work {
        name: "random 4 KiB in 256 MiB",
        disk_bytes: 256 * MIB,
        write_bytes: 4096,
        sequential: false,
        durable: false,
    },
    Work {
        name: "random 4 KiB in 256 MiB, durable",
        disk_bytes: 256 * MIB,
        write_bytes: 4096,
        sequential: false,
        durable: true,
    },
    Work {
        name: "random 4 KiB in 1 GiB",
        disk_bytes: 1024 * MIB,
        write_bytes: 4096,
        sequential: false,
        durable: false,
    },
    Work {
        name: "random 4 KiB in 1 GiB, durable",
        disk_bytes: 1024 * MIB,
        write_bytes: 4096,
        sequential: false,
        durable: true,
    },
];

/// A map's file that takes everything and keeps nothing.
struct Forgetful;

impl MapFile for Forgetful {
    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn discard(&self) -> io::Result<()> {
        Ok(())
    }
}

struct Guest {
    disk: Arc<Disk>,
    splitter: Splitter,
}

fn guest(folder: &Path, work: &Work, forgetful: bool) -> Guest {
    let state = folder.join(if forgetful { "without" } else { "with" });
    let path = state.with_extension("img");
    File::options().create(true).truncate(false).write(true).open(&path).unwrap().set_len(work.disk_bytes).unwrap();
    let source = Arc::new(FileExport::open("d1", &path, false).unwrap());
    std::fs::create_dir_all(&state).unwrap();
    let shared = Shared {
        clock: Arc::new(AgentClock::new(Arc::new(SystemClock::new()))),
        budget: Budget::new(32 * MIB),
        dir: Arc::new(StateDir::open(&state).unwrap()),
    };
    let mut disk = Disk::open(source, &path, 32 * MIB, shared, Overrides::default()).unwrap();
    if forgetful {
        let regions = work.disk_bytes.div_ceil(REGION_BYTES);
        disk.activity = ActivityMap::new(Box::new(Forgetful), ChunkSet::full(regions));
    }
    let disk = Arc::new(disk);
    Guest { splitter: Splitter::new(Arc::clone(&disk)), disk }
}

impl Guest {
    /// As if everything were vaulted: the next write to each region has to set its bit again.
    fn clear(&self, work: &Work) {
        self.disk.activity.watch();
        self.disk.activity.clear(&ChunkSet::full(work.disk_bytes.div_ceil(REGION_BYTES)));
    }

    /// One round; microseconds per write.
    fn round(&self, work: &Work, numbers: &mut Numbers, length: Duration) -> f64 {
        self.clear(work);
        let data = Bytes::from(vec![7; work.write_bytes]);
        let clock = SystemClock::new();
        let (mut writes, mut next) = (0_u32, numbers.below(64) * 64 * MIB % work.disk_bytes);
        while clock.monotonic() < length {
            let places = work.disk_bytes / work.write_bytes as u64;
            let at = if work.sequential { next } else { numbers.below(places) * work.write_bytes as u64 };
            next = (at + work.write_bytes as u64) % work.disk_bytes;
            self.splitter.write(at, data.clone(), work.durable).unwrap();
            writes += 1;
        }
        let took = clock.monotonic();
        // What the page cache took is written in nobody's round.
        self.splitter.flush().unwrap();
        took.as_secs_f64() * 1e6 / f64::from(writes)
    }
}

#[test]
fn the_cost_of_the_activity_map_is_measured_side_by_side() {
    let setting = |name: &str, usual: u64| std::env::var(name).map_or(usual, |text| text.parse().unwrap());
    let rounds = setting("TIDEGATE_ACTIVITY_ROUNDS", 1);
    let length = Duration::from_millis(setting("TIDEGATE_ACTIVITY_ROUND_MS", ROUND_MS));
    println!("{:<34} {:>14} {:>14} {:>7}", "writes", "with map", "without", "ratio");
    for work in &WORKS {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (with, without) = (guest(folder.path(), work, false), guest(folder.path(), work, true));
        let mut numbers = Numbers::new(5);
        let mut pairs = Vec::new();
        for round in 0..rounds {
            // Each goes first as often as the other.
            let (mut with_map, mut without_map) = (0.0, 0.0);
            for nth in 0..2 {
                if (round + nth) % 2 == 0 {
                    with_map = with.round(work, &mut numbers, length);
                } else {
                    without_map = without.round(work, &mut numbers, length);
                }
            }
            pairs.push((with_map / without_map, with_map, without_map));
        }
        pairs.sort_by(|one, other| one.0.total_cmp(&other.0));
        let (ratio, with_map, without_map) = pairs[pairs.len() / 2];
        println!("{:<34} {with_map:>11.1} us {without_map:>11.1} us {ratio:>7.2}", work.name);
        assert!(with.disk.activity.active_regions() > 0, "the map was not used: nothing was measured");
        assert!(ratio.is_finite());
    }
}
