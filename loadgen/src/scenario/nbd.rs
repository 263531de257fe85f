//! A guest that writes to its disk through the agent, and the same guest at `qemu-nbd`.
//!
//! ```text
//!  fio ──NBD──► agent ──► disk1.img        fio ──NBD──► qemu-nbd ──► disk1-copy.img
//!                 └──► gateway ──► sink
//! ```
//!
//! The floor of sequential writes: qemu-nbd, while [`crate::bare`] receives, packs and uploads on the same cores as many bytes a
//! second as the gateway received in the agent's job of the same round: a guest whose disk is replicated by primitives alone.
//!
//! Both images have the same content on the same file system, and both servers write through the page cache, as
//! they do by default, which knows nothing of either image when a job begins. The agent replicates meanwhile, with gateway and sink on the same cores; before each job what the one
//! before left to be copied is vaulted, so that no job pays for another.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child as Process, Command, Stdio};
use std::time::Duration;

use super::{COPY_PATIENCE, Figure, LOOK, Report, Scenario, median, wait_copied};
use tidegate::cli::quickstart::child::{http_get, metric};
use tidegate::telemetry::names;

use crate::bare::Bare;
use crate::bench::{BenchError, Plan, Stand, because};
use crate::payload::Pool;
use crate::run::Plan as RunPlan;
use crate::run::profile::Profile;

const DISK: &str = "disk1";
/// How long qemu-nbd may take to listen.
const START_PATIENCE: Duration = Duration::from_secs(10);
/// Bound of both figures: see docs/PERFORMANCE.md.
const RATIO_AT_LEAST: f64 = 0.8;

/// What the guest does.
struct Job {
    options: &'static [&'static str],
    /// Names of the ratio, of both throughputs and of both 99th percentiles.
    names: [&'static str; 5],
    /// What the floor carries meanwhile, and the name of the floor's ratio.
    floor: Option<(Profile, &'static str)>,
}

const JOBS: [Job; 2] = [
    Job {
        options: &["--rw=randwrite", "--bs=4k", "--iodepth=32"],
        names: [
            "random_4k_ratio",
            "random_4k_agent_bytes_per_second",
            "random_4k_qemu_bytes_per_second",
            "random_4k_agent_p99_seconds",
            "random_4k_qemu_p99_seconds",
        ],
        floor: None,
    },
    Job {
        options: &["--rw=write", "--bs=1M", "--iodepth=8"],
        names: [
            "sequential_1m_ratio",
            "sequential_1m_agent_bytes_per_second",
            "sequential_1m_qemu_bytes_per_second",
            "sequential_1m_agent_p99_seconds",
            "sequential_1m_qemu_p99_seconds",
        ],
        floor: Some((Profile::Copy, "sequential_1m_floor_ratio")),
    },
];

/// Who serves the guest: the agent, qemu-nbd, and qemu-nbd beside the floor.
const SIDES: [&str; 3] = ["the agent", "qemu-nbd", "qemu-nbd beside the floor"];

/// What fio told of one job.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Done {
    bytes_per_second: f64,
    p99_seconds: f64,
}

pub(super) async fn measure(
    plan: &Plan,
    duration: Duration,
    pool: &Pool,
    say: &mut impl FnMut(&str),
) -> Result<Report, BenchError> {
    for (program, package) in [("fio", "fio"), ("qemu-nbd", "qemu-utils")] {
        let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        found.map_err(|error| BenchError(format!("{program} is needed, from the package {package}: {error}")))?;
    }
    say("making images");
    let (plan, pool) = (plan.clone(), pool.clone());
    let (told, mut tells) = tokio::sync::mpsc::channel::<String>(16);
    let runtime = tokio::runtime::Handle::current();
    let rounds = tokio::task::spawn_blocking(move || rounds(&plan, duration, &pool, &told, &runtime));
    while let Some(text) = tells.recv().await {
        say(&text);
    }
    let rounds = rounds.await.map_err(|error| because("no rounds")(&error))??;
    let mut figures = Vec::new();
    for (number, Job { names, floor, .. }) in JOBS.iter().enumerate() {
        let of = |value: fn(&[Done; SIDES.len()]) -> f64| median(rounds.iter().map(|round| value(&round[number])));
        let ratio = of(|[agent, qemu, _]| agent.bytes_per_second / qemu.bytes_per_second.max(1.0));
        figures.push(Figure::at_least(names[0], ratio, RATIO_AT_LEAST));
        if let Some((_, name)) = floor {
            let ratio = of(|[_, qemu, beside]| beside.bytes_per_second / qemu.bytes_per_second.max(1.0));
            figures.push(Figure::new(name, ratio));
        }
        figures.push(Figure::new(names[1], of(|[agent, ..]| agent.bytes_per_second)));
        figures.push(Figure::new(names[2], of(|[_, qemu, _]| qemu.bytes_per_second)));
        figures.push(Figure::new(names[3], of(|[agent, ..]| agent.p99_seconds)));
        figures.push(Figure::new(names[4], of(|[_, qemu, _]| qemu.p99_seconds)));
    }
    Ok(Report { scenario: Scenario::Nbd, figures, runs: Vec::new() })
}

/// For each round and job what the agent and what qemu-nbd did. Blocks.
fn rounds(
    plan: &Plan,
    duration: Duration,
    pool: &Pool,
    told: &tokio::sync::mpsc::Sender<String>,
    runtime: &tokio::runtime::Handle,
) -> Result<Vec<[[Done; SIDES.len()]; JOBS.len()]>, BenchError> {
    let (image, copy) = (plan.dir.join("disk1.img"), plan.dir.join("disk1-copy.img"));
    for path in [&image, &copy] {
        fill(path, plan.disk_bytes, pool).map_err(|error| because("no image")(&error))?;
    }
    let mut stand = Stand::begin(plan, vec![(DISK.to_owned(), image.clone())])?;
    let mut agent = stand.site.start_agent().map_err(|error| because("no agent")(&error))?;
    let agent_socket = match stand.site.nbd(DISK) {
        tidegate::nbd::Listen::Unix(path) => path,
        other => return Err(BenchError(format!("the agent listens at {other}"))),
    };
    let qemu = QemuNbd::start(&copy, &plan.dir.join("qemu.sock"))?;
    let floor = runtime.block_on(Bare::start(plan, Some(stand.sink.vault_url("floor"))))?;
    let mut rounds = Vec::with_capacity(plan.rounds);
    for number in 1..=plan.rounds {
        let mut round = [[Done::default(); SIDES.len()]; JOBS.len()];
        for (at, job) in JOBS.iter().enumerate() {
            // Turn and turn about, so that neither is always the one with the warmer machine.
            let order = if number % 2 == 1 { [0, 1, 2] } else { [1, 0, 2] };
            let mut carried = 0.0;
            for side in order {
                let socket = if side == 0 { &agent_socket } else { &qemu.socket };
                let beside = if side == 2 { job.floor } else { None };
                if side == 2 && beside.is_none() {
                    continue;
                }
                let text = format!("round {number} of {}: {} at {}", plan.rounds, job.options[0], SIDES[side]);
                // Nobody looks on who would not have it.
                let _ = told.blocking_send(text);
                wait_copied(&stand.site, DISK)?;
                for path in [&image, &copy] {
                    forget(path).map_err(|error| because("no image")(&error))?;
                }
                let before = received_bytes(&stand)?;
                round[at][side] = match beside {
                    None => fio(socket, job, duration)?,
                    Some((profile, _)) => {
                        let all = stand.plan(plan);
                        let (duration, bytes_per_second) = (Some(duration), (carried as u64).max(1));
                        let load = RunPlan { profile, duration, bytes: None, bytes_per_second, ..all };
                        beside_floor(&floor, &load, pool, runtime, || fio(socket, job, duration.unwrap_or_default()))?
                    }
                };
                if side == 0 {
                    carried = (received_bytes(&stand)? - before) / duration.as_secs_f64();
                }
            }
        }
        rounds.push(round);
    }
    wait_copied(&stand.site, DISK)?;
    for (name, process) in [("agent", &mut agent), ("gateway", &mut stand.gateway)] {
        let stopped = process.terminate(COPY_PATIENCE);
        stopped.map_err(|error| because(&format!("the {name} does not stop"))(&error))?;
    }
    Ok(rounds)
}

/// Writes payload over the whole length, again and again.
fn fill(path: &Path, bytes: u64, pool: &Pool) -> std::io::Result<()> {
    let mut file = std::fs::File::create_new(path)?;
    let mut left = bytes;
    while left > 0 {
        let piece = &pool.bytes()[..pool.bytes().len().min(left as usize)];
        file.write_all(piece)?;
        left -= piece.len() as u64;
    }
    file.sync_all()
}

/// What the guest does while the floor has its load.
fn beside_floor(
    floor: &Bare,
    load: &RunPlan,
    pool: &Pool,
    runtime: &tokio::runtime::Handle,
    guest: impl FnOnce() -> Result<Done, BenchError>,
) -> Result<Done, BenchError> {
    std::thread::scope(|scope| {
        let carried = scope.spawn(|| runtime.block_on(floor.load(load, pool)));
        let done = guest();
        carried.join().map_err(|_| BenchError("the floor has panicked".into()))??;
        done
    })
}

/// What the gateway has read off the wire so far.
fn received_bytes(stand: &Stand) -> Result<f64, BenchError> {
    let page = http_get(stand.site.admin_address(), "/metrics").map_err(|error| because("no metrics")(&error))?;
    Ok(metric(&page.1, names::RECEIVED_BYTES))
}

/// Lets the page cache forget an image, so that each job begins with the same: a write into a large page that an earlier
/// one left there costs ten times of one into a small page, and which of them are large is luck.
fn forget(path: &Path) -> std::io::Result<()> {
    let file = std::fs::File::open(path)?;
    file.sync_all()?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(())
}

fn fio(socket: &Path, job: &Job, duration: Duration) -> Result<Done, BenchError> {
    let uri = format!("--uri=nbd+unix:///{DISK}?socket={}", socket.display());
    let time = format!("--runtime={}", duration.as_secs().max(1));
    let output = Command::new("fio")
        .args(["--name=guest", "--ioengine=nbd", "--time_based", "--output-format=json", &uri, &time])
        .args(job.options)
        .output()
        .map_err(|error| because("fio does not start")(&error))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let done = output.status.success().then(|| read_fio(&text)).flatten();
    done.ok_or_else(|| {
        let error = String::from_utf8_lossy(&output.stderr);
        BenchError(format!("fio at {}: {} {}", socket.display(), output.status, error.trim()))
    })
}

/// Reads what fio printed; in front of the object there may be notes.
fn read_fio(text: &str) -> Option<Done> {
    let object: serde_json::Value = serde_json::from_str(text.get(text.find('{')?..)?).ok()?;
    let write = object.pointer("/jobs/0/write")?;
    let bytes_per_second = write.get("bw_bytes")?.as_f64()?;
    let nanos = write.pointer("/clat_ns/percentile/99.000000")?.as_f64()?;
    Some(Done { bytes_per_second, p99_seconds: nanos / 1e9 })
}

/// `qemu-nbd` as a process.
struct QemuNbd {
    process: Process,
    socket: PathBuf,
}

impl QemuNbd {
    fn start(image: &Path, socket: &Path) -> Result<Self, BenchError> {
        let process = Command::new("qemu-nbd")
            .args(["--persistent", "--shared=4", "--format=raw", "--export-name", DISK, "--socket"])
            .args([socket, image])
            .spawn()
            .map_err(|error| because("qemu-nbd does not start")(&error))?;
        let server = Self { process, socket: socket.to_owned() };
        for _ in 0..START_PATIENCE.as_millis() / LOOK.as_millis() {
            if std::os::unix::net::UnixStream::connect(socket).is_ok() {
                return Ok(server);
            }
            std::thread::sleep(LOOK);
        }
        Err(BenchError("qemu-nbd does not listen".into()))
    }
}

impl Drop for QemuNbd {
    fn drop(&mut self) {
        // Its image is a copy.
        let _ = (self.process.kill(), self.process.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fio_prints_is_read_behind_its_notes() {
        let text = r#"note: both iodepth >= 1 and synchronous I/O engine
{"jobs": [{"write": {"bw_bytes": 1048576, "clat_ns": {"percentile": {"99.000000": 2500000}}}}]}"#;
        assert_eq!(read_fio(text), Some(Done { bytes_per_second: 1_048_576.0, p99_seconds: 0.0025 }));
        assert_eq!(read_fio("{\"jobs\": []}"), None);
        assert_eq!(read_fio("no such engine"), None);
    }
}
