//! `tidegate drill`: prove that disks come back, and say how old the points were and how long it took.

mod boot;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{Instrument, info_span};

use super::asked::{self, Access, AtPoint, PointArgs};
use super::keyring::{self, VaultArgs};
use super::points as view;
use super::proof::Signers;
use super::restore::{self, memory};
use super::run_file::RunFile;
use super::{Failure, Outcome};
use crate::config::parse_duration;
use crate::drill::check;
use crate::drill::report::{DiskReport, DrillReport, ProgramReport};
use crate::fault::{chain_text, exit};
use crate::flow::{Clock, SystemClock, blocking};
use crate::keys;
use crate::restore::pin::Held;
use crate::restore::points::{Ask, Point};
use crate::restore::write::{self, RestoreOptions};
use crate::telemetry::names;
use crate::telemetry::traces::within;
use crate::types::{DiskId, Id128, Micros, PointId};
use crate::vault::Vault;
use crate::vault::reader::Want;

/// Options of `tidegate drill`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    vault: VaultArgs,
    /// A disk to bring back; may be given several times, for all disks of a machine.
    #[arg(long = "disk", value_name = "DISK", required = true)]
    disks: Vec<DiskId>,
    #[command(flatten)]
    point: PointArgs,
    #[command(flatten)]
    signers: Signers,
    /// Folder with room for the disks, or with --boot for what the machine writes. The drill works in a folder of its own in it, which is gone afterwards.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Leave the images there.
    #[arg(long, conflicts_with = "boot")]
    keep: bool,
    /// A program that looks further, such as one that boots a machine. It gets the images in the order of the disks; whatever it
    /// does to them, they are copies. Exit code 0 means that it found all well.
    #[arg(long, value_name = "PROGRAM", conflicts_with = "boot")]
    check: Option<PathBuf>,
    /// How long this program and each checker of a file system may take.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "30m")]
    check_timeout: Duration,
    /// Fail if more would be lost than this.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    rpo: Option<Duration>,
    #[command(flatten)]
    boot: boot::BootArgs,
    /// Fail if it takes longer than this until everything is restored and looked at, or the machine is up.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    rto: Option<Duration>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
    /// Write the report as Markdown to this file, too.
    #[arg(long, value_name = "FILE.md")]
    report: Option<PathBuf>,
    /// Leave a file for node-exporter's textfile collector that tells of this run: its name ends in .prom.
    #[arg(long, value_name = "FILE.prom")]
    metrics_file: Option<RunFile>,
    /// Memory for data on its way from the vault.
    #[arg(long, value_name = "SIZE", value_parser = memory, default_value = "256 MiB")]
    memory: u64,
    /// Reads of the vault at the same time.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "expected a duration such as 15m".to_owned())
}

/// Runs the verb.
#[expect(clippy::needless_pass_by_value, reason = "every verb is called alike")]
pub fn run(args: Args) -> Outcome {
    let asked = args.point.asked()?;
    let machine = args.boot.check()?;
    let (runtime, began) = (keyring::runtime()?, SystemClock::new().wall());
    let drilled = runtime.block_on(within(info_span!("drill"), async {
        match machine {
            Some(machine) => Box::pin(boot::drill(&args, machine, &asked, began)).await,
            None => Box::pin(drill(&args, &asked, began)).await,
        }
    }));
    if let Some(file) = &args.metrics_file {
        tell_file(file, drilled.as_ref().ok());
    }
    let report = drilled?;
    if let Some(path) = &args.report {
        std::fs::write(path, report.markdown())
            .map_err(|error| Failure::error(format!("the report {} cannot be written: {error}", path.display())))?;
    }
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{}", report.markdown());
    }
    Ok(if report.passed() { exit::OK } else { exit::ERROR })
}

/// How the run ended, as metrics.
fn tell_file(file: &RunFile, report: Option<&DrillReport>) {
    let now = SystemClock::new().wall().0 as f64 / 1e6;
    let passed = report.is_some_and(DrillReport::passed);
    let succeeded = if passed { now } else { file.earlier(names::DRILL_LAST_SUCCESS_SECONDS) };
    let mut values = vec![(names::DRILL_LAST_SUCCESS_SECONDS, succeeded), (names::DRILL_LAST_RUN_SECONDS, now)];
    if let Some(report) = report {
        values.push((names::DRILL_RPO_SECONDS, report.rpo_seconds));
        values.push((names::DRILL_RTO_SECONDS, report.rto_seconds));
        values.push((names::DRILL_FAILURES, report.failures.len() as f64));
    }
    file.tell_values(&[], &values);
}

/// The drill's own folder, gone when this is dropped unless it is kept.
struct Folder {
    path: PathBuf,
    keep: bool,
}

impl Folder {
    fn make(dir: &Path, keep: bool) -> Result<Self, Failure> {
        let path = dir.join(format!("tidegate-drill-{}", Id128(keys::random()?)));
        std::fs::create_dir(&path)
            .map_err(|error| Failure::error(format!("{} cannot be made: {error}", path.display())))?;
        Ok(Self { path, keep })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.keep {
            eprintln!("the images are in {}", self.path.display());
        } else if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!("tidegate: warning: {} was not removed: {error}", self.path.display());
        }
    }
}

async fn drill(args: &Args, asked: &Ask, began: Micros) -> Result<DrillReport, Failure> {
    let started = Instant::now();
    let authority = args.signers.authority()?;
    let (vault, identity) = restore::open(&args.vault).await?;
    let access = Access { vault: &vault, identity: &identity, authority: authority.as_ref() };
    let folder = Folder::make(&args.dir, args.keep)?;
    let moment = if let Ask::At(time) = asked { *time } else { began };
    let mut report = DrillReport::new(began.to_string(), vault.store().shown().to_owned());
    let mut images = Vec::new();
    for disk in &args.disks {
        eprintln!("restoring disk {disk}");
        let image = folder.path.join(format!("{disk}.img"));
        let brought_back = one_disk(args, access, asked, (disk, &image), moment);
        let told = within(info_span!("bring disk back", %disk), brought_back).await?;
        report.disks.push(told.0);
        report.warnings.extend(told.1);
        images.push(image);
    }
    report.rto_seconds = started.elapsed().as_secs_f64();
    if let Some(program) = &args.check {
        eprintln!("running {}", program.display());
        let ran = user_program(program, images, args.check_timeout).instrument(info_span!("run check"));
        report.program = Some(ran.await);
        report.rto_seconds = started.elapsed().as_secs_f64();
    }
    report.judge((args.rpo, args.rto));
    Ok(report)
}

/// Keeps a point from the keeper, as far as the credential may; what it may not is a warning.
async fn hold(vault: &Vault, disk: &DiskId, point: PointId, warnings: &mut Vec<String>) -> Held {
    let (held, unpinned) = Held::pin(vault, disk, point, "drill", SystemClock::new()).await;
    if let Some(error) = unpinned {
        warnings.push(format!("disk {disk}: the point could not be pinned ({})", chain_text(&error)));
    }
    held
}

/// Brings one disk back and looks at it; also what a person should know.
async fn one_disk(
    args: &Args,
    access: Access<'_>,
    asked: &Ask,
    (disk, image): (&DiskId, &Path),
    moment: Micros,
) -> Result<(DiskReport, Vec<String>), Failure> {
    let started = Instant::now();
    let want = Want::folded(disk);
    let AtPoint { point, source, history, plan, mut warnings } = asked::open(access, &want, disk, asked).await?;
    let held = hold(access.vault, disk, point.id, &mut warnings).await;
    let limits = restore::limits(args.memory, args.jobs);
    let options = RestoreOptions { limits, ..RestoreOptions::default() };
    let restored = write::restore(&source, disk, history, &plan, image, &options, Arc::default());
    let restored = within(info_span!("write image", point = %point.id), restored).await;
    // However it ended, the pin goes.
    held.let_go().await;
    let restored = restored.map_err(|error| Failure::of(&error))?;
    let restore_seconds = started.elapsed().as_secs_f64();
    let (path, limit) = (image.to_owned(), args.check_timeout);
    let looked = blocking(move || check::image(&path, limit)).instrument(info_span!("look at image")).await?;
    let volumes = looked.map_err(|error| Failure::error(format!("{} cannot be read: {error}", image.display())))?;
    let told = DiskReport {
        restore_seconds: Some(restore_seconds),
        check_seconds: Some(started.elapsed().as_secs_f64() - restore_seconds),
        read_bytes: restored.read_bytes,
        volumes,
        ..disk_report(disk, &point, restored.disk_bytes, moment)
    };
    Ok((told, warnings))
}

/// What is known of a disk once its point is chosen.
fn disk_report(disk: &DiskId, point: &Point, disk_bytes: u64, moment: Micros) -> DiskReport {
    DiskReport {
        disk: disk.to_string(),
        point: point.id.to_string(),
        time: point.label.to_string(),
        kind: point.kind_text().to_owned(),
        rpo_seconds: view::seconds(point.label, moment),
        restore_seconds: None,
        check_seconds: None,
        disk_bytes,
        read_bytes: 0,
        volumes: Vec::new(),
    }
}

async fn user_program(program: &Path, images: Vec<PathBuf>, limit: Duration) -> ProgramReport {
    let started = Instant::now();
    let shown = program.display().to_string();
    let mut command = Command::new(program);
    command.args(images);
    let ended = blocking(move || check::run(&mut command, limit)).await;
    let (passed, said) = match ended {
        Ok(Ok(ended)) if ended.status.success() => (true, ended.said),
        Ok(Ok(ended)) => (false, format!("ended with {}: {}", ended.status, ended.said)),
        Ok(Err(error)) => (false, error.to_string()),
        Err(error) => (false, error.to_string()),
    };
    ProgramReport { program: shown, passed, said, seconds: started.elapsed().as_secs_f64() }
}
