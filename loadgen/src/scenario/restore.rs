//! A disk that comes back from its vault, beside the primitives of that, and beside `cp`.
//!
//! ```text
//!  ext4 image ──► agent ──► gateway ──► vault ──► tidegate restore ──► image
//! ```
//!
//! The vault is filled once, by a gateway, from a file system of real files; then nothing but the restores runs. Everything
//! is per GiB of what the disk holds, which is what a copy would move too. What the vault holds is in the page cache, or in
//! that of Azurite: the figure is about processors, not about the store's disk. A restore's processor time is that of its process,
//! start and index included.

use std::path::{Path, PathBuf};
use std::process::{Child as Process, Command, Stdio};

use tidegate::cli::quickstart::child::{Family, free_port, http_get};
use tidegate::cli::quickstart::image;
use tidegate::cli::quickstart::site::{self, Site};
use tidegate::flow::{Clock as _, SystemClock};
use tidegate::types::DiskId;
use tokio::sync::mpsc::Sender;

use super::{COPY_PATIENCE, Figure, LOOK, Report, Scenario, median, wait_copied};
use crate::bench::{BenchError, Plan, because};
use crate::limit::restore::{Place, RestoreLimits, measure as primitives};
use crate::process;

const DISK: &str = "disk1";
const GIB: f64 = (1_u64 << 30) as f64;
/// Bound of the ratios: see docs/PERFORMANCE.md.
const RATIO_AT_MOST: f64 = 1.25;

/// Names of what is told of one store: ratio, processor time, that of the primitives, throughput, and each primitive.
type Names = [&'static str; 8];

const DIRECTORY: Names = [
    "directory_cpu_ratio",
    "directory_cpu_seconds_per_gib",
    "directory_primitives_cpu_seconds_per_gib",
    "directory_bytes_per_second",
    "directory_read_cpu_seconds_per_gib",
    "directory_decrypt_cpu_seconds_per_gib",
    "directory_unpack_cpu_seconds_per_gib",
    "directory_write_cpu_seconds_per_gib",
];
const AZURITE: Names = [
    "azurite_cpu_ratio",
    "azurite_cpu_seconds_per_gib",
    "azurite_primitives_cpu_seconds_per_gib",
    "azurite_bytes_per_second",
    "azurite_read_cpu_seconds_per_gib",
    "azurite_decrypt_cpu_seconds_per_gib",
    "azurite_unpack_cpu_seconds_per_gib",
    "azurite_write_cpu_seconds_per_gib",
];

/// Work of a process.
#[derive(Clone, Copy, Debug)]
struct Done {
    cpu_seconds: f64,
    seconds: f64,
    bytes: u64,
}

impl Done {
    fn cpu_per_gib(&self) -> f64 {
        self.cpu_seconds * GIB / self.bytes.max(1) as f64
    }

    fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.seconds.max(1e-9)
    }
}

/// One restore and its primitives.
type Round = (Done, RestoreLimits);

/// What was measured.
struct Measured {
    stores: Vec<(Names, Vec<Round>)>,
    cp: Vec<Done>,
}

pub(super) async fn measure(plan: &Plan, say: &mut impl FnMut(&str)) -> Result<Report, BenchError> {
    let plan = plan.clone();
    let (told, mut tells) = tokio::sync::mpsc::channel::<String>(16);
    let measured = tokio::task::spawn_blocking(move || all(&plan, &told));
    while let Some(text) = tells.recv().await {
        say(&text);
    }
    let measured = measured.await.map_err(|error| because("no rounds")(&error))??;
    let mut figures = Vec::new();
    for (names, rounds) in &measured.stores {
        let of = |value: &dyn Fn(&Round) -> f64| median(rounds.iter().map(value));
        figures.push(Figure::at_most(names[0], of(&|(done, limits)| done.cpu_per_gib() / limits.sum()), RATIO_AT_MOST));
        figures.push(Figure::new(names[1], of(&|(done, _)| done.cpu_per_gib())));
        figures.push(Figure::new(names[2], of(&|(_, limits)| limits.sum())));
        figures.push(Figure::new(names[3], of(&|(done, _)| done.bytes_per_second())));
        for at in 0..4 {
            figures.push(Figure::new(names[4 + at], of(&|(_, limits)| limits.primitives[at].of_payload())));
        }
    }
    let cp = |value: fn(&Done) -> f64| median(measured.cp.iter().map(value));
    figures.push(Figure::new("cp_cpu_seconds_per_gib", cp(Done::cpu_per_gib)));
    figures.push(Figure::new("cp_bytes_per_second", cp(Done::bytes_per_second)));
    Ok(Report { scenario: Scenario::Restore, figures, runs: Vec::new() })
}

fn all(plan: &Plan, told: &Sender<String>) -> Result<Measured, BenchError> {
    // Nobody looks on who would not have it.
    let say = |text: String| drop(told.blocking_send(text));
    say("making an image".to_owned());
    let image = plan.dir.join("disk1.img");
    image::build(&image, plan.disk_bytes, plan.disk_bytes, &image::usual_sources())
        .map_err(|error| because("no image")(&error))?;
    let directory = Filled::new(plan, "directory", None, &image, &say)?;
    let mut stores = vec![(DIRECTORY, directory, Vec::new())];
    let mut azurite = None;
    if let Some(program) = &plan.azurite {
        let service = Azurite::start(program, &plan.dir.join("blobs"))?;
        let filled = Filled::new(plan, "azurite", Some(service.vault.clone()), &image, &say)?;
        azurite = Some(service);
        stores.push((AZURITE, filled, Vec::new()));
    }
    let mut cp = Vec::with_capacity(plan.rounds);
    for number in 1..=plan.rounds {
        for (names, filled, rounds) in &mut stores {
            say(format!("round {number} of {}: {}", plan.rounds, names[0].trim_end_matches("_cpu_ratio")));
            let (done, target) = filled.restore(plan)?;
            let limits = primitives(&filled.place).map_err(|error| because("primitives")(&error))?;
            rounds.push((done, limits));
            cp.push(copy(&target, done.bytes)?);
            // What comes next finds the same room.
            std::fs::remove_file(&target).map_err(|error| because("the image stays")(&error))?;
        }
    }
    drop(azurite);
    Ok(Measured { stores: stores.into_iter().map(|(names, _, rounds)| (names, rounds)).collect(), cp })
}

/// A vault with the disk in it, and nobody at work on it.
struct Filled {
    place: Place,
}

impl Filled {
    fn new(
        plan: &Plan,
        name: &str,
        vault: Option<String>,
        image: &Path,
        say: &impl Fn(String),
    ) -> Result<Self, BenchError> {
        say(format!("filling the vault: {name}"));
        let dir = plan.dir.join(name);
        std::fs::create_dir(&dir).map_err(|error| because("no folder")(&error))?;
        let of_site = site::Plan {
            dir: dir.clone(),
            program: plan.tidegate.clone(),
            vault,
            disks: vec![(DISK.to_owned(), image.to_owned())],
            gateway: vec![
                ("", format!("memory = \"{} B\"", plan.memory_bytes)),
                ("pipeline", format!("codec = \"{}\"", plan.codec)),
            ],
            agent: Vec::new(),
        };
        let site = Site::create(of_site, &Family::default()).map_err(|error| because("no installation")(&error))?;
        let mut gateway = site.start_gateway().map_err(|error| because("no gateway")(&error))?;
        let mut agent = site.start_agent().map_err(|error| because("no agent")(&error))?;
        wait_copied(&site, DISK)?;
        for (name, process) in [("agent", &mut agent), ("gateway", &mut gateway)] {
            let stopped = process.terminate(COPY_PATIENCE);
            stopped.map_err(|error| because(&format!("the {name} does not stop"))(&error))?;
        }
        let disk = DiskId::new(DISK).map_err(|error| because("no disk")(&error))?;
        Ok(Self { place: Place { vault: site.vault_url().to_owned(), identity: site.identity(), disk, folder: dir } })
    }

    /// Restores by the command that an operator uses.
    fn restore(&self, plan: &Plan) -> Result<(Done, PathBuf), BenchError> {
        let target = self.place.folder.join("restored.img");
        let mut command = Command::new(&plan.tidegate);
        command.args(["restore", "--json", "--progress", "none", "--disk", DISK, "--vault", &self.place.vault]);
        command.arg("--identity").arg(&self.place.identity).arg("--to").arg(&target);
        let (cpu_seconds, seconds, out) = timed(&mut command)?;
        let told: Option<serde_json::Value> = serde_json::from_str(&out).ok();
        let bytes = told.as_ref().and_then(|told| told.get("data_bytes")?.as_u64());
        let bytes = bytes.ok_or_else(|| BenchError(format!("restore says {out}")))?;
        Ok((Done { cpu_seconds, seconds, bytes }, target))
    }
}

/// The image once more, by `cp`, and durable.
fn copy(image: &Path, bytes: u64) -> Result<Done, BenchError> {
    let copy = image.with_extension("copy");
    let (cp_cpu, cp, _) = timed(Command::new("cp").args(["--sparse=auto", "--reflink=never"]).args([image, &copy]))?;
    let (sync_cpu, sync, _) = timed(Command::new("sync").arg(&copy))?;
    std::fs::remove_file(&copy).map_err(|error| because("the copy stays")(&error))?;
    Ok(Done { cpu_seconds: cp_cpu + sync_cpu, seconds: cp + sync, bytes })
}

/// Runs a command to its end: processor time of all its threads, time, and what it printed, which is little.
fn timed(command: &mut Command) -> Result<(f64, f64, String), BenchError> {
    let name = command.get_program().to_string_lossy().into_owned();
    let failed = |error: &dyn std::error::Error| because(&name)(error);
    let clock = SystemClock::new();
    let process = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let process = process.map_err(|error| failed(&error))?;
    let seconds = process::wait_ended(&process).map(|()| clock.monotonic().as_secs_f64());
    let seconds = seconds.map_err(|error| failed(&error))?;
    // The accounts are kept until somebody asks how it ended.
    let cpu_seconds = process::cpu_seconds(process.id()).map_err(|error| failed(&error))?;
    let output = process.wait_with_output().map_err(|error| failed(&error))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(BenchError(format!("{name}: {}: {}", output.status, text.trim())));
    }
    Ok((cpu_seconds, seconds, String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// Azurite as a process. Its data go with the folder of the bench.
struct Azurite {
    process: Process,
    vault: String,
}

impl Azurite {
    fn start(program: &Path, data: &Path) -> Result<Self, BenchError> {
        let port = free_port(false).map_err(|error| because("no port for Azurite")(&error))?;
        let process = Command::new("node")
            .arg(program)
            .args(["--skipApiVersionCheck", "--disableTelemetry", "--silent", "--blobHost", "127.0.0.1", "--blobPort"])
            .arg(port.to_string())
            .arg("--location")
            .arg(data)
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| because("Azurite does not start")(&error))?;
        let vault = format!("http://127.0.0.1:{port}/{}/restore", crate::sink::ACCOUNT_DEFAULT);
        let service = Self { process, vault };
        for _ in 0..COPY_PATIENCE.as_millis() / LOOK.as_millis() {
            if http_get(([127, 0, 0, 1], port).into(), "/?comp=list").is_ok() {
                return Ok(service);
            }
            std::thread::sleep(LOOK);
        }
        Err(BenchError("Azurite does not answer".into()))
    }
}

impl Drop for Azurite {
    fn drop(&mut self) {
        // Nobody reads its vault again.
        let _ = (self.process.kill(), self.process.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_timed_with_all_that_it_used_and_said() {
        let busy = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo done";
        let (cpu_seconds, seconds, out) = timed(Command::new("sh").args(["-c", busy])).expect("runs");
        assert!(cpu_seconds > 0.0 && cpu_seconds <= seconds + 0.05 && out == "done\n", "{cpu_seconds} {seconds} {out}");
        let failed = timed(Command::new("sh").args(["-c", "echo no room >&2; exit 4"]));
        assert!(failed.is_err_and(|error| error.0.contains("no room")));
    }
}
