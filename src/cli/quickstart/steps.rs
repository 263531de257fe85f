//! The run itself, step by step.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Args;
use super::child::{self, Child, Family};
use super::copies;
use super::image;
use super::load::{Load, LoadError, Pattern};
use super::progress::Progress;
use super::report::{Kill, Paths, Point, Report, Writes};
use super::site::{Plan, Site, SiteError};
use super::target::NbdTarget;
use crate::config::show_size;
use crate::flow::{Clock as _, SystemClock};
use crate::telemetry::names;

/// Name of the protected disk.
const DISK: &str = "demo";
/// How much the workload writes between two events.
const LOAD_BYTES: u64 = 48 << 20;
/// Longest wait for anything that should take seconds.
const PATIENCE: Duration = Duration::from_secs(180);
/// Pause between two looks at the agent.
const LOOK: Duration = Duration::from_millis(200);
/// How long a daemon may take to stop.
const GRACE: Duration = Duration::from_secs(60);
/// The seed of the workload: every run writes the same.
const SEED: u64 = 0x7469_6465;

/// A run failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// A part of the installation failed.
    #[error(transparent)]
    Site(#[from] SiteError),
    /// A process ended.
    #[error(transparent)]
    Child(#[from] child::ChildError),
    /// The image could not be made.
    #[error(transparent)]
    Image(#[from] image::ImageError),
    /// The image's free space could not be found.
    #[error(transparent)]
    FreeSpace(#[from] image::FreeSpaceError),
    /// The workload could not be started.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The disk to protect is not usable.
    #[error("{} is not usable: {why}", path.display())]
    Disk {
        /// The image.
        path: PathBuf,
        /// Why not.
        why: &'static str,
    },
    /// Something did not come true in time.
    #[error("{what} did not happen within {} s", PATIENCE.as_secs())]
    Late {
        /// What was awaited.
        what: &'static str,
    },
    /// A file could not be read or written.
    #[error("{}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn file<T>(path: &Path, outcome: io::Result<T>) -> Result<T, StepError> {
    outcome.map_err(|source| StepError::File { path: path.to_owned(), source })
}

/// Everything that runs.
struct Run<'a> {
    site: Site,
    gateway: Child,
    agent: Child,
    load: Load,
    clock: SystemClock,
    progress: &'a mut Progress,
    image: PathBuf,
    points: Vec<Point>,
    kills: Vec<Kill>,
    /// Looks at the age of the oldest write that no point in the vault has.
    rpo_seconds: Vec<f64>,
    /// Bytes received by gateways that were killed: their counters went with them.
    received_before: u64,
}

/// Does it all and returns what it proved.
///
/// # Errors
/// [`StepError`] if anything fails; a restore that differs is no error but part of the report.
pub fn run(args: &Args, dir: &Path, family: &Family, progress: &mut Progress) -> Result<Report, StepError> {
    let image = dir.join("disk.img");
    make_disk(args, &image, progress)?;
    progress.step("make keys, certificates, vault and configurations");
    let program =
        std::env::current_exe().map_err(|source| StepError::File { path: "current program".into(), source })?;
    let plan = Plan {
        dir: dir.to_owned(),
        program,
        vault: args.vault.clone(),
        disks: vec![(DISK.to_owned(), image.clone())],
        gateway: Vec::new(),
        agent: Vec::new(),
    };
    let site = Site::create(plan, family)?;
    progress.step("start gateway and agent");
    let gateway = site.start_gateway()?;
    let agent = site.start_agent()?;
    progress.note(&format!("processes {} and {}", gateway.id(), agent.id()));
    let load = start_load(args, &site, &image)?;
    let clock = SystemClock::new();
    let (points, kills) = (Vec::new(), Vec::new());
    let mut run = Run {
        site,
        gateway,
        agent,
        load,
        clock,
        progress,
        image,
        points,
        kills,
        rpo_seconds: Vec::new(),
        received_before: 0,
    };
    run.play()?;
    run.finish(args)
}

fn make_disk(args: &Args, image: &Path, progress: &mut Progress) -> Result<(), StepError> {
    let Some(source) = &args.disk else {
        progress.step(&format!("make an ext4 image of {}", show_size(args.size)));
        let filled = image::build(image, args.size, args.size / 2, &image::usual_sources())?;
        progress.note(&format!("{} real files, {} MiB", filled.files, filled.file_bytes >> 20));
        return Ok(());
    };
    progress.step(&format!("copy {} (the original is only read)", source.display()));
    let wrong = |why| StepError::Disk { path: source.clone(), why };
    let size = file(source, copies::size_bytes(source))?;
    if size == 0 || !size.is_multiple_of(512) {
        return Err(wrong("its size is not a whole number of 512-byte sectors"));
    }
    file(source, copies::copy(source, image)).map(drop)
}

/// The workload writes where the file system is free, so that it stays whole; where there is none, anywhere.
fn start_load(args: &Args, site: &Site, image: &Path) -> Result<Load, StepError> {
    let disk = file(image, File::open(image))?;
    let size = file(image, copies::size_bytes(image))?;
    let free = match image::free_ranges(&disk, 1 << 20) {
        Ok(free) if !Pattern::new(SEED, free.clone()).is_empty() => free,
        _ if args.disk.is_some() => std::iter::once(0..size).collect(),
        other => other?,
    };
    let listen = site.nbd(DISK);
    let open = move || NbdTarget::open(&listen, DISK);
    Ok(Load::start(Pattern::new(SEED, free), Box::new(open), args.rate << 20)?)
}

impl Run<'_> {
    fn play(&mut self) -> Result<(), StepError> {
        self.progress.step("initial copy, while the workload writes through NBD");
        self.wait_copied()?;
        self.progress.note(&format!("{} MiB written meanwhile", self.load.done().written_bytes >> 20));
        self.write_more(LOAD_BYTES / 2)?;
        self.make_point("first")?;
        self.write_more(LOAD_BYTES)?;
        self.kill_gateway()?;
        self.write_more(LOAD_BYTES)?;
        self.make_point("second")?;
        self.write_more(LOAD_BYTES / 2)?;
        self.kill_agent()?;
        self.write_more(LOAD_BYTES / 2)?;
        self.wait_copied()?;
        self.make_point("third")?;
        self.write_more(LOAD_BYTES / 4)
    }

    fn check(&mut self) -> Result<(), StepError> {
        self.gateway.check()?;
        Ok(self.agent.check()?)
    }

    fn wait_copied(&mut self) -> Result<(), StepError> {
        self.wait("the copy of the disk", |run| run.site.copied(DISK))
    }

    fn wait(&mut self, what: &'static str, mut reached: impl FnMut(&mut Self) -> bool) -> Result<(), StepError> {
        let mut checked = Ok(());
        let in_time = child::wait_until(PATIENCE, || {
            checked = self.check();
            checked.is_err() || reached(self)
        });
        checked?;
        if in_time { Ok(()) } else { Err(StepError::Late { what }) }
    }

    fn write_more(&mut self, bytes: u64) -> Result<(), StepError> {
        let until = self.load.done().written_bytes + bytes;
        self.wait("the workload's progress", |run| {
            // Twenty looks a second would be load of their own.
            std::thread::sleep(LOOK);
            run.rpo_seconds.extend(run.site.status(DISK).map(|status| status.rpo_seconds));
            run.load.done().written_bytes >= until
        })
    }

    /// Stops the workload between two writes, makes the point, copies the disk as it is, and goes on.
    fn make_point(&mut self, name: &str) -> Result<(), StepError> {
        self.progress.step(&format!("point \"{name}\" and a copy of the disk at that moment"));
        if !self.load.pause(PATIENCE) {
            return Err(StepError::Late { what: "a pause of the workload" });
        }
        let made = self.site.point(DISK, name)?;
        let since = self.clock.monotonic();
        let copy = self.site.path(&format!("copies/{name}.img"));
        file(&copy, std::fs::create_dir_all(self.site.path("copies")))?;
        let sha256 = file(&copy, copies::copy(&self.image, &copy))?;
        let mut vaulted_after = None;
        let id = made.id.clone();
        let clock = self.clock.clone();
        self.load.resume();
        self.wait("the upload of the point", |run| {
            if run.site.listed(DISK, &id) {
                vaulted_after.get_or_insert(clock.monotonic().saturating_sub(since));
            }
            vaulted_after.is_some()
        })?;
        self.progress.note(&format!("{} at {}", made.id, made.time));
        self.points.push(Point {
            id: made.id,
            name: name.to_owned(),
            time: made.time,
            sha256,
            restored_sha256: None,
            first_difference: None,
            vaulted_after_seconds: vaulted_after.unwrap_or_default().as_secs_f64(),
        });
        Ok(())
    }

    fn kill_gateway(&mut self) -> Result<(), StepError> {
        self.progress.step("kill the gateway with SIGKILL under load");
        self.received_before += self.metric(names::RECEIVED_BYTES);
        let when = self.clock.wall().to_string();
        let written_bytes = self.load.done().written_bytes;
        let log = self.gateway.log().to_owned();
        file(&log, self.gateway.kill())?;
        // The guest goes on writing although nobody receives.
        let since = self.clock.monotonic();
        self.gateway = self.site.start_gateway()?;
        let back = self.clock.monotonic().saturating_sub(since).as_secs_f64();
        self.progress.note(&format!("back after {back:.1} s"));
        self.kills.push(Kill { what: "gateway", when, written_bytes, back_after_seconds: back });
        Ok(())
    }

    fn kill_agent(&mut self) -> Result<(), StepError> {
        self.progress.step("kill the agent with SIGKILL under load");
        let when = self.clock.wall().to_string();
        let written_bytes = self.load.done().written_bytes;
        let log = self.agent.log().to_owned();
        file(&log, self.agent.kill())?;
        let since = self.clock.monotonic();
        self.agent = self.site.start_agent()?;
        let back = self.clock.monotonic().saturating_sub(since).as_secs_f64();
        self.progress.note(&format!("back after {back:.1} s"));
        self.kills.push(Kill { what: "agent", when, written_bytes, back_after_seconds: back });
        Ok(())
    }

    fn metric(&self, name: &str) -> u64 {
        self.site.admin("/metrics").map_or(0, |page| child::metric(&page, name) as u64)
    }

    /// Stops everything (unless it is to be kept), restores from the vault alone, compares.
    fn finish(mut self, args: &Args) -> Result<Report, StepError> {
        if !self.load.pause(PATIENCE) {
            return Err(StepError::Late { what: "a pause of the workload" });
        }
        let done = self.load.done();
        let received_bytes = self.received_before + self.metric(names::RECEIVED_BYTES);
        let journal_backend = self.journal_backend();
        drop(self.load);
        if args.keep {
            let pids = format!("{} {}\n", self.agent.keep(), self.gateway.keep());
            let path = self.site.path("running.pids");
            file(&path, std::fs::write(&path, pids))?;
        } else {
            self.progress.step("stop agent and gateway");
            let log = self.site.path("logs");
            file(&log, self.agent.terminate(GRACE))?;
            file(&log, self.gateway.terminate(GRACE))?;
        }
        let stored_bytes = self.site.stored_bytes()?;
        restore_all(&self.site, &mut self.points, self.progress)?;
        self.progress.done();
        self.rpo_seconds.sort_by(f64::total_cmp);
        let rpo_seconds = self.rpo_seconds.get(self.rpo_seconds.len() / 2).copied().unwrap_or_default();
        let micros = &done.write_micros;
        let report = Report {
            version: env!("CARGO_PKG_VERSION"),
            disk: DISK.to_owned(),
            size_bytes: file(&self.image, copies::size_bytes(&self.image))?,
            points: self.points,
            written_bytes: done.written_bytes,
            received_bytes,
            stored_bytes,
            ratio: received_bytes as f64 / stored_bytes.max(1) as f64,
            rpo_seconds,
            rpo_seconds_max: self.rpo_seconds.last().copied().unwrap_or_default(),
            kills: self.kills,
            writes: Writes {
                count: micros.len(),
                p50_micros: micros.value_at_quantile(0.5),
                p99_micros: micros.value_at_quantile(0.99),
                max_micros: micros.max(),
            },
            journal_backend,
            seconds: self.progress.elapsed().as_secs_f64(),
            paths: Paths {
                dir: self.site.dir().to_owned(),
                vault: self.site.vault_url().to_owned(),
                identity: self.site.identity(),
                disk: self.image,
                logs: self.site.path("logs"),
            },
        };
        let path = self.site.path("report.json");
        let text = serde_json::to_string_pretty(&report).map_err(io::Error::other);
        file(&path, text.and_then(|text| std::fs::write(&path, text + "\n")))?;
        Ok(report)
    }

    /// The label of the backend gauge that stands at one.
    fn journal_backend(&self) -> String {
        let page = self.site.admin("/metrics").unwrap_or_default();
        let row = page.lines().find(|line| line.starts_with(names::JOURNAL_BACKEND_INFO) && line.ends_with(" 1"));
        let label = row.and_then(|row| row.split('"').nth(1));
        label.unwrap_or("unknown").to_owned()
    }
}

fn restore_all(site: &Site, points: &mut [Point], progress: &mut Progress) -> Result<(), StepError> {
    let folder = site.path("restored");
    file(&folder, std::fs::create_dir_all(&folder))?;
    for point in points {
        progress.step(&format!("restore \"{}\" from the vault and compare every byte", point.name));
        let target = folder.join(format!("{}.img", point.name));
        let copy = site.path(&format!("copies/{}.img", point.name));
        site.restore(DISK, &point.id, &target)?;
        point.restored_sha256 = Some(file(&target, copies::sha256(&target))?);
        point.first_difference = file(&target, copies::first_difference(&copy, &target))?;
        progress.note(if point.identical() { "identical" } else { "DIFFERENT" });
    }
    Ok(())
}

/// What to try on an installation that was kept running.
#[must_use]
pub fn what_next(report: &Report) -> String {
    let dir = report.paths.dir.display();
    let socket = report.paths.dir.join(format!("{DISK}.sock"));
    let program = std::env::current_exe().map_or_else(|_| "tidegate".into(), |path| path.display().to_string());
    let vault = &report.paths.vault;
    let identity = report.paths.identity.display();
    format!(
        "Gateway and agent are running. Try:\n\
         \n  write to the disk    qemu-io -f raw -c 'write -P 7 0 64k' 'nbd+unix:///{DISK}?socket={}'\
         \n  make a point         {program} point --config {dir}/agent.toml --disk {DISK} --name mine\
         \n  list the points      {program} points --vault {vault} --identity {identity} --disk {DISK}\
         \n  restore the latest   {program} restore --vault {vault} --identity {identity} --disk {DISK} --to {dir}/latest.img\
         \n  check the vault      {program} verify --vault {vault} --identity {identity}\
         \n  stop                 kill $(cat {dir}/running.pids)\n",
        socket.display(),
    )
}
