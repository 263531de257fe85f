//! `tidegate drill --boot`: a machine boots from the vault, before anything of it is copied, and says that it is up.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::super::restore::{self, MEMORY_BYTES_MIN};
use super::super::{Failure, export::GUEST_PATIENCE};
use super::{Args, Folder, disk_report, duration, hold};
use crate::cli::asked::{self, Access, AtPoint};
use crate::cli::signals::asked_to_stop;
use crate::config::parse_size;
use crate::drill::machine::{self, Booted, Bus, End, Kernel, Machine, UNTIL_BYTES_MAX, Wish};
use crate::drill::report::{BootReport, DiskReport, DrillReport};
use crate::export::disk::PointDisk;
use crate::export::origin::{Figures, OriginLimits};
use crate::export::{self, ExportError, Exported, Places};
use crate::fault::chain_text;
use crate::flow::{Drain, DrainTrigger, blocking};
use crate::nbd::{Listen, Server};
use crate::restore::fetch;
use crate::restore::pin::Held;
use crate::restore::points::Ask;
use crate::types::{DiskId, Micros};
use crate::vault::reader::Want;

/// Less boots nothing of today.
const MACHINE_BYTES_MIN: u64 = 16 << 20;
/// What q35 has places for on its own SATA controller.
const SATA_DISKS_MAX: usize = 6;

/// Options of the machine.
#[derive(clap::Args)]
#[command(next_help_heading = "A machine from the vault")]
pub(super) struct BootArgs {
    /// Instead of restoring the disks, serve them from the vault and boot a machine in QEMU from the first. It has no network, and
    /// what it writes is gone afterwards.
    #[arg(long)]
    boot: bool,
    /// The machine is up when its serial console says this.
    #[arg(long, value_name = "TEXT", value_parser = until, default_value = "login:", requires = "boot")]
    until: String,
    /// How long that may take.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "15m", requires = "boot")]
    boot_timeout: Duration,
    /// Write a picture of its screen then, or when it is given up: PNG if the name ends in .png, PPM if in .ppm.
    #[arg(long, value_name = "FILE", value_parser = picture, requires = "boot")]
    screenshot: Option<PathBuf>,
    /// A kernel from beside the disks, instead of what the first disk boots.
    #[arg(long, value_name = "FILE", requires = "boot")]
    kernel: Option<PathBuf>,
    /// Its initrd.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// Its command line, such as "root=/dev/vda1 console=ttyS0".
    #[arg(long, value_name = "TEXT", requires = "kernel", allow_hyphen_values = true, default_value = "")]
    append: String,
    /// How the machine meets its disks: virtio, or sata for systems without its driver.
    #[arg(long, value_enum, default_value_t, requires = "boot")]
    bus: Bus,
    /// Memory of the machine.
    #[arg(long, value_name = "SIZE", value_parser = machine_memory, default_value = "2 GiB", requires = "boot")]
    boot_memory: u64,
    /// Processors of the machine.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64), default_value = "2", requires = "boot")]
    boot_processors: u16,
    /// QEMU.
    #[arg(long, value_name = "PROGRAM", default_value = "qemu-system-x86_64", requires = "boot")]
    qemu: PathBuf,
    /// One more argument of QEMU; may be given several times: --qemu-arg=-bios --qemu-arg=/usr/share/ovmf/OVMF.fd for UEFI.
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true, requires = "boot")]
    qemu_arg: Vec<String>,
}

fn until(text: &str) -> Result<String, String> {
    match text.len() {
        0 => Err("a machine says nothing at once: name a text".to_owned()),
        1..=UNTIL_BYTES_MAX => Ok(text.to_owned()),
        _ => Err(format!("at most {UNTIL_BYTES_MAX} bytes are waited for")),
    }
}

fn picture(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let named = path.extension().is_some_and(|ending| ending == "png" || ending == "ppm");
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match (named, folder.is_dir()) {
        (true, true) => Ok(path),
        (false, _) => Err("a name that ends in .png or .ppm is needed".to_owned()),
        (_, false) => Err(format!("there is no folder {}", folder.display())),
    }
}

fn machine_memory(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text).filter(|bytes| *bytes >= MACHINE_BYTES_MIN);
    bytes.ok_or_else(|| "expected a size such as 2 GiB".to_owned())
}

impl BootArgs {
    /// The machine without its disks, and what is waited for, if one is to boot.
    pub(super) fn check(&self) -> Result<Option<(Machine, Wish)>, Failure> {
        if !self.boot {
            return Ok(None);
        }
        if self.append.contains(&self.until) {
            return Err(Failure::usage(format!(
                "--until {:?} is part of --append, which a kernel prints before anything runs: wait for another text",
                self.until
            )));
        }
        let kernel = self.kernel.clone().map(|kernel| Kernel {
            kernel,
            initrd: self.initrd.clone(),
            append: self.append.clone(),
        });
        let machine = Machine {
            qemu: self.qemu.clone(),
            memory_bytes: self.boot_memory,
            processors: self.boot_processors,
            bus: self.bus,
            kernel,
            more: self.qemu_arg.clone(),
            disks: Vec::new(),
        };
        let (until, limit, screenshot) = (self.until.clone(), self.boot_timeout, self.screenshot.clone());
        Ok(Some((machine, Wish { until, limit, screenshot })))
    }
}

/// A disk that is served from the vault.
struct Served {
    id: DiskId,
    disk: Arc<PointDisk>,
    report: DiskReport,
    held: Held,
    stop: DrainTrigger,
    serving: JoinHandle<Result<(), ExportError>>,
}

impl Served {
    /// Stops serving and lets the point go; the disk's report, and what went wrong.
    async fn stop(self) -> (DiskReport, Option<String>) {
        self.stop.start();
        let ended = match self.serving.await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(chain_text(&error)),
            Err(error) => Some(error.to_string()),
        };
        self.held.let_go().await;
        let read_bytes = self.disk.origin().figures().vault_bytes.load(Ordering::Relaxed);
        let warning = ended.map(|error| format!("disk {}: {error}", self.id));
        (DiskReport { read_bytes, ..self.report }, warning)
    }
}

/// The drill with a machine: serves the disks, boots it from them, and tells how it fared.
pub(super) async fn drill(
    args: &Args,
    (machine, wish): (Machine, Wish),
    asked: &Ask,
    began: Micros,
) -> Result<DrillReport, Failure> {
    if machine.bus == Bus::Sata && args.disks.len() > SATA_DISKS_MAX {
        return Err(Failure::usage(format!("--bus sata has places for {SATA_DISKS_MAX} disks")));
    }
    let started = Instant::now();
    // A signal would otherwise leave the machine running.
    let stop = asked_to_stop(None)?;
    let authority = args.signers.authority()?;
    let (vault, identity) = unless(&stop, restore::open(&args.vault)).await?;
    let access = Access { vault: &vault, identity: &identity, authority: authority.as_ref() };
    let folder = Folder::make(&args.dir, false)?;
    let moment = if let Ask::At(time) = asked { *time } else { began };
    let mut report = DrillReport::new(began.to_string(), vault.store().shown().to_owned());
    let mut served = Vec::new();
    for disk in &args.disks {
        let place = folder.path.join(served.len().to_string());
        let serving = serve(args, access, (disk, asked, moment), &place, &mut report.warnings);
        match Box::pin(unless(&stop, serving)).await {
            Ok(disk) => served.push(disk),
            Err(failure) => {
                stop_all(served, &mut report).await;
                return Err(failure);
            }
        }
    }
    let disks = served.iter().enumerate().map(|(at, disk)| machine::Served {
        socket: socket_of(&folder.path.join(at.to_string())),
        export: disk.id.to_string(),
    });
    let machine = Machine { disks: disks.collect(), ..machine };
    eprintln!("booting a machine with {}", machine.shown());
    let (before, monitor) = (started.elapsed(), folder.path.join("m.sock"));
    let (booting, wanted) = (machine.clone(), wish.clone());
    let booted = blocking(move || booting.boot(&monitor, &wanted, &stop)).await;
    // Before the end of serving, which is no fault of what is still on its way then.
    let figures = figures(&served);
    stop_all(served, &mut report).await;
    let booted = booted?.map_err(|error| not_started(&machine, &error))?;
    if booted.end == End::Stopped {
        return Err(stopped());
    }
    report.rto_seconds = (before + booted.took).as_secs_f64();
    report.warnings.extend(booted.no_screenshot.iter().map(|why| format!("there is no picture of the screen: {why}")));
    report.boot = Some(boot_report(&machine, wish, booted, figures));
    report.judge((args.rpo, args.rto));
    Ok(report)
}

/// What comes of `work`, unless it was asked to stop. A pin that is left ends by itself.
async fn unless<T>(stop: &Drain, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let mut stop = stop.clone();
    tokio::select! {
        biased;
        () = stop.wait() => Err(stopped()),
        done = work => done,
    }
}

fn stopped() -> Failure {
    Failure::error("stopped before the machine was up; nothing of it is left")
}

fn not_started(machine: &Machine, error: &std::io::Error) -> Failure {
    let program = machine.qemu.display();
    match error.kind() {
        std::io::ErrorKind::NotFound => Failure::error(format!(
            "{program} is not installed: apt install qemu-system-x86, or name another with --qemu"
        )),
        _ => Failure::error(format!("{program} cannot be run: {error}")),
    }
}

/// Where a disk is served, by what its files' names begin with.
fn socket_of(place: &Path) -> PathBuf {
    place.with_extension("sock")
}

/// Serves a disk's point, with what the machine writes beside it.
async fn serve(
    args: &Args,
    access: Access<'_>,
    (disk, asked, moment): (&DiskId, &Ask, Micros),
    place: &Path,
    warnings: &mut Vec<String>,
) -> Result<Served, Failure> {
    eprintln!("serving disk {disk} from the vault");
    let mut chosen = asked::open(access, &Want::folded(disk), disk, asked).await?;
    let report = disk_report(disk, &chosen.point, chosen.plan.disk_bytes, moment);
    let held = hold(access.vault, disk, chosen.point.id, &mut chosen.warnings).await;
    warnings.append(&mut chosen.warnings);
    let (stop, drain) = DrainTrigger::new();
    let bound = match open(args, chosen, disk, place, drain.clone()).await {
        Ok(bound) => bound,
        Err(failure) => {
            held.let_go().await;
            return Err(failure);
        }
    };
    let (point_disk, server) = bound;
    // Nothing is copied, so that nothing happens meanwhile that would be told.
    let limits = restore::limits(args.memory, args.jobs);
    let (runtime, exported) = (tokio::runtime::Handle::current(), Arc::clone(&point_disk));
    let serving = tokio::task::spawn_blocking(move || {
        runtime.block_on(export::run(exported, server, limits, drain, |_event| {}))
    });
    Ok(Served { id: disk.clone(), disk: point_disk, report, held, stop, serving })
}

async fn open(
    args: &Args,
    chosen: AtPoint,
    disk: &DiskId,
    place: &Path,
    stop: Drain,
) -> Result<(Arc<PointDisk>, Server), Failure> {
    let AtPoint { source, history, plan, .. } = chosen;
    let exported = Exported { source, disk: disk.clone(), history, plan };
    let places = Places { overlay: Some(place.with_extension("overlay")), ..Places::default() };
    let limits = OriginLimits {
        memory_bytes: (args.memory / args.disks.len().max(1) as u64).max(MEMORY_BYTES_MIN),
        jobs: args.jobs.map_or(fetch::JOBS_DEFAULT, usize::from),
        patience: GUEST_PATIENCE,
    };
    let runtime = tokio::runtime::Handle::current();
    let opened = blocking(move || export::open(exported, &places, limits, runtime, stop)).await?;
    let disk = Arc::new(opened.map_err(|error| Failure::of(&error))?);
    let listen = Listen::Unix(socket_of(place));
    let server = Server::bind(listen, vec![Arc::clone(&disk) as _], export::server_limits())
        .map_err(|error| Failure::error(format!("{error}; a --dir with a shorter name may help")))?;
    Ok((disk, server))
}

async fn stop_all(served: Vec<Served>, report: &mut DrillReport) {
    for disk in served {
        let (told, warning) = disk.stop().await;
        report.disks.push(told);
        report.warnings.extend(warning);
    }
}

/// What the machine read and wrote.
fn figures(served: &[Served]) -> BootReport {
    let sum = |of: fn(&Figures) -> &AtomicU64| -> u64 {
        served.iter().map(|served| of(served.disk.origin().figures()).load(Ordering::Relaxed)).sum()
    };
    BootReport {
        guest_read_bytes: sum(|figures| &figures.guest_bytes),
        vault_requests: sum(|figures| &figures.requests),
        failed_reads: sum(|figures| &figures.failed),
        written_bytes: served.iter().map(|served| served.disk.overlay_bytes()).sum(),
        ..BootReport::default()
    }
}

#[expect(clippy::needless_pass_by_value, reason = "what else it says becomes the report's")]
fn boot_report(machine: &Machine, wish: Wish, booted: Booted, figures: BootReport) -> BootReport {
    let Wish { until, screenshot, .. } = wish;
    let Booted { end, took, said, no_screenshot } = booted;
    let seconds = took.as_secs_f64();
    let failure = match end {
        End::Up | End::Stopped => None,
        End::Late => Some(format!("the machine's console did not say {:?} within {seconds:.0} s", until)),
        End::Off(status, complaint) => {
            let complaint = if complaint.is_empty() { complaint } else { format!(": {complaint}") };
            let how = format!("QEMU ended with {status}{complaint}");
            Some(format!("the machine went off after {seconds:.1} s and had not said {:?}; {how}", until))
        }
    };
    let screenshot = screenshot.filter(|_| no_screenshot.is_none()).map(|file| file.display().to_string());
    BootReport { machine: machine.shown(), until, failure, seconds, said, screenshot, ..figures }
}
