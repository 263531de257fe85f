//! `tidegate restore`: bring disks back as they were at a point.

mod choice;
mod display;
mod told;

use std::path::PathBuf;
use std::sync::Arc;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{Instrument, info_span};

use self::choice::{Choice, Group, Member};
use self::display::show_of;
pub(super) use self::display::{ProgressMode, show};
use self::told::Told;
use super::asked::PointArgs;
use super::keyring::{self, Opened, VaultArgs};
use super::points::{self as view, DiskView};
use super::proof::{self, Signers};
use super::run_file::{Figures, RunFile};
use super::{Failure, Outcome};
use crate::config::{parse_size, show_size};
use crate::fault::{Classify, Fault, chain_text, exit};
use crate::flow::{Clock, SystemClock};
use crate::keys::Identity;
use crate::restore::fetch::{self, FetchLimits};
use crate::restore::format::Format;
use crate::restore::pin;
use crate::restore::plan::Plan;
use crate::restore::points::{self, Ask, Point};
use crate::restore::progress::Progress;
use crate::restore::resume::Place;
use crate::restore::source::{self, Source};
use crate::restore::write::{self, RestoreError, RestoreOptions, Restored, Whole};
use crate::signed::Authority;
use crate::telemetry::traces::within;
use crate::types::DiskId;
use crate::vault::reader::Want;
use crate::vault::{Vault, VaultError};

/// Smallest useful byte budget: one of the longest reads and a little.
pub(super) const MEMORY_BYTES_MIN: u64 = 16 << 20;

/// Options of `tidegate restore`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    vault: VaultArgs,
    /// The disk. Given several times, several disks; they get their names together, when all of them are whole.
    #[arg(long, required_unless_present_any = ["machine", "group"])]
    disk: Vec<DiskId>,
    /// All disks of a machine, by the id of the agent that first protected them.
    #[arg(long, value_name = "AGENT", conflicts_with_all = ["disk", "metrics_file"])]
    machine: Option<String>,
    /// The moment that several disks took together: an id of `tidegate points --groups`, for all disks that took it or those
    /// named; or `last`, the newest (by --at) that the disks named have in common.
    #[arg(long, value_name = "ID|last", conflicts_with_all = ["point", "latest", "metrics_file"])]
    group: Option<Group>,
    #[command(flatten)]
    point: PointArgs,
    /// File to create, or block device to overwrite. A folder takes a file for each disk; {disk} in a path stands for its name.
    #[arg(long, value_name = "PATH", required_unless_present = "onto")]
    to: Option<PathBuf>,
    /// Image or block device that has this disk at another point: only blocks that differ are written. Until it is done a
    /// file has another name. Raw images only.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["to", "format"])]
    onto: Option<PathBuf>,
    /// Form of the file. vhd-fixed is what Azure takes.
    #[arg(long, default_value = "raw", value_parser = format())]
    format: Format,
    /// Folder for the note of how far a restore has come, which goes on from there; made if it is not there. Without, it stands beside
    /// a file, and for a device in /var/lib/tidegate/restore.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Read back from the target what was written, once it is durable. What comes from the vault is always verified.
    #[arg(long)]
    verify: bool,
    #[command(flatten)]
    signers: Signers,
    /// Overwrite what is there, and drop another half-done restore into the same target.
    #[arg(long)]
    force: bool,
    /// Read the lanes' own indexes and list their batches, as if nothing were folded. Takes longer, and finds another copy of what was lost since.
    #[arg(long)]
    unfolded: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    /// How to show progress on standard error.
    #[arg(long, value_enum, default_value_t)]
    progress: ProgressMode,
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

impl Args {
    /// Whether the call is for a single disk, whatever the vault holds.
    fn names_one(&self) -> bool {
        self.disk.len() == 1 && self.group.is_none()
    }
}

fn format() -> impl TypedValueParser<Value = Format> {
    let named = |name: String| Format::ALL.into_iter().find(|format| format.as_str() == name).unwrap_or_default();
    PossibleValuesParser::new(Format::ALL.map(Format::as_str)).map(named)
}

pub(super) fn memory(text: &str) -> Result<u64, String> {
    match parse_size(text) {
        Some(bytes) if bytes >= MEMORY_BYTES_MIN => Ok(bytes),
        Some(_) => Err(format!("at least {} are needed", show_size(MEMORY_BYTES_MIN))),
        None => Err("expected a size such as 256 MiB".to_owned()),
    }
}

/// The bounds that the options give.
pub(super) fn limits(memory_bytes: u64, jobs: Option<u16>) -> FetchLimits {
    let jobs = jobs.map_or(fetch::JOBS_DEFAULT, usize::from);
    FetchLimits { memory_bytes, jobs, ..FetchLimits::default() }
}

/// Runs the verb.
#[expect(clippy::needless_pass_by_value, reason = "every verb is called alike")]
pub fn run(args: Args) -> Outcome {
    let asked = args.point.asked()?;
    let (runtime, started) = (keyring::runtime()?, Instant::now());
    let mut figures: Vec<(DiskId, Figures)> = args.disk.iter().map(|disk| (disk.clone(), Figures::default())).collect();
    let outcome = runtime.block_on(within(info_span!("restore"), restore(&args, &asked, &mut figures)));
    if let Some(file) = &args.metrics_file {
        let (now, took) = (SystemClock::new().wall(), started.elapsed());
        file.tell_restore(&figures, now, took, outcome.is_ok());
    }
    outcome
}

/// The vault, and the identity that opens its data.
pub(super) async fn open(vault: &VaultArgs) -> Result<(Vault, Identity), Failure> {
    let Opened { vault, identity } = vault.open_with_key().await?;
    let identity = identity.ok_or_else(|| {
        Failure::usage(
            "the catalog key opens indexes, not data: give the recovery identity with --identity FILE or TIDEGATE_IDENTITY",
        )
    })?;
    Ok((vault, identity))
}

/// The point that was asked for, or why there is none that can be called the answer.
pub(super) fn choose(disk: &DiskId, loaded: &DiskView, asked: &Ask) -> Result<Point, Failure> {
    let chosen = points::choose(&loaded.history, &loaded.points, asked);
    let lost_tail = source::lost_tail(&loaded.catalog, &loaded.history);
    match &chosen {
        Ok(point) => match points::hidden_by_damage(&loaded.history, lost_tail, point, asked) {
            None => {}
            Some(damage) => {
                let text = format!(
                    "disk {disk}: {damage}, so the newest point that can be restored, {} of {}, may not be the newest there \
                     was. If that is what you want, ask for it: --point {}",
                    point.id, point.label, point.id
                );
                return Err(Failure { text, code: exit::DAMAGE });
            }
        },
        Err(_) if loaded.history.damaged() => {
            let warnings = loaded.warnings(disk).join("\n  ");
            let text = format!("disk {disk}: no such point can be restored from this damaged vault:\n  {warnings}");
            return Err(Failure { text, code: exit::DAMAGE });
        }
        Err(_) => {}
    }
    chosen.map_err(|error| Failure::error(format!("disk {disk}: {error}")))
}

async fn restore(args: &Args, asked: &Ask, figures: &mut [(DiskId, Figures)]) -> Outcome {
    let started = Instant::now();
    if args.names_one() {
        // Before anything is read: most mistakes are here.
        choice::place(args, &args.disk[0], false)?;
    }
    let authority = args.signers.authority()?;
    let (vault, identity) = open(&args.vault).await?;
    let Choice { mut members, mut loaded } =
        within(info_span!("choose points"), choice::all(args, &vault, asked)).await?;
    let apart = choice::apart(&members);
    apart.iter().for_each(|apart| eprintln!("tidegate: warning: {apart}"));
    let mut pinned = JoinSet::new();
    for member in &mut members {
        pin_point(&vault, member).await;
        pinned.spawn(pin::hold(vault.clone(), member.disk.clone(), member.point.id, SystemClock::new()));
    }
    let (mut told, mut wholes): (Vec<Told<'_>>, Vec<Whole>) = (Vec::new(), Vec::new());
    for member in &members {
        let (begun, several) = (Instant::now(), members.len() > 1);
        let mut warnings = member.warnings.clone();
        let span = info_span!("restore disk", disk = %member.disk, point = %member.point.id);
        let restored =
            one(args, (&vault, &identity), authority.as_ref(), member, loaded.take(), several, &mut warnings);
        let outcome = match within(span, restored).await? {
            Ok((whole, restored)) => {
                wholes.push(whole);
                Ok(restored)
            }
            Err(error) => Err(error),
        };
        let goes_on = !matches!(&outcome, Err(error) if error.fault() != Fault::Corrupt);
        told.push(Told { member, took: begun.elapsed(), warnings, outcome });
        if !goes_on {
            // The store is away, or a target is full: the others would only say the same.
            break;
        }
    }
    note_figures(figures, &told);
    let mut nameless = wholes.len();
    if nameless == members.len() {
        finish(wholes, &mut told).instrument(info_span!("give names")).await;
        nameless = 0;
    }
    if args.json {
        println!("{}", told::all_json(args, &told, apart.as_ref(), started.elapsed()));
    }
    let failures = told.iter().filter_map(|told| Some(told.failure(told.outcome.as_ref().err()?)));
    let failures: Vec<Failure> = failures.collect();
    if !failures.is_empty() {
        return Err(told::joined(failures, nameless));
    }
    let restored = told.iter().filter_map(|told| Some(told.text(args, told.outcome.as_ref().ok()?)));
    restored.filter(|_| !args.json).for_each(|text| println!("{text}"));
    Ok(exit::OK)
}

/// Tells the keeper of a point that is about to be read.
async fn pin_point(vault: &Vault, member: &mut Member) {
    for warning in &member.warnings {
        eprintln!("tidegate: warning: {warning}");
    }
    if let Err(error) = pin::pin(vault, &member.disk, member.point.id, SystemClock::new().wall(), "restore").await {
        let warning = not_pinned(&error);
        eprintln!("tidegate: warning: {warning}");
        member.warnings.push(warning);
    }
}

/// What is said of a point that could not be pinned.
pub(super) fn not_pinned(error: &VaultError) -> String {
    let what = "the point could not be pinned: what the keeper lets go meanwhile stays for its `delete_after`";
    format!("{what} ({})", chain_text(error))
}

/// Writes one disk up to its name. The outer failure is one before anything was written.
async fn one(
    args: &Args,
    (vault, identity): (&Vault, &Identity),
    authority: Option<&Authority>,
    member: &Member,
    loaded: Option<DiskView>,
    several: bool,
    warnings: &mut Vec<String>,
) -> Result<Result<(Whole, Restored), RestoreError>, Failure> {
    let Member { disk, point, to, .. } = member;
    let DiskView { catalog, history, .. } = match loaded {
        Some(view) => view,
        None => view::load(vault, disk, &Want { folded: !args.unfolded, ..Want::disk(disk) }).await?,
    };
    let (source, damaged) = Source::open(vault, identity, &catalog).map_err(|error| Failure::of(&error))?;
    for damage in damaged {
        eprintln!("tidegate: warning: {damage}");
        warnings.push(damage.to_string());
    }
    drop(catalog);
    eprintln!("restoring disk {disk} to {}", view::point_line(point));
    warnings.extend(proof::told(authority, &source, &history, disk, point.id).await?);
    let plan = info_span!("plan")
        .in_scope(|| Plan::build(&history, point.id))
        .ok_or_else(|| Failure::error(format!("{} is not in the usable history of the disk", point.id)))?;
    let progress = Arc::new(Progress::default());
    let what = if several { disk.to_string() } else { String::new() };
    let display = tokio::spawn(show_of(args.progress, Arc::clone(&progress), what));
    let (force, limits, format) = (args.force, limits(args.memory, args.jobs), args.format);
    let options = RestoreOptions { force, limits, format, onto: args.onto.is_some(), verify: args.verify };
    let place = match &args.state {
        Some(folder) => Place::noted_in(to, folder).map_err(|error| Failure::of(&error))?,
        None => Place::from(to),
    };
    let written = write::write(&source, disk, Arc::new(history), &plan, place, &options, progress);
    let written = within(info_span!("write image", format = format.as_str()), written).await;
    display.abort();
    // Wait for its end, or the bar would be drawn into what follows.
    let _ = display.await;
    Ok(written)
}

/// Gives all images their names.
async fn finish(wholes: Vec<Whole>, told: &mut [Told<'_>]) {
    let finished = tokio::task::spawn_blocking(move || wholes.into_iter().map(Whole::finish).collect::<Vec<_>>()).await;
    let finished = finished.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    for (told, finished) in told.iter_mut().zip(finished) {
        if let Err(error) = finished {
            told.outcome = Err(error);
        }
    }
}

fn note_figures(figures: &mut [(DiskId, Figures)], told: &[Told<'_>]) {
    for (disk, figures) in figures {
        let Some(told) = told.iter().find(|told| told.member.disk == *disk) else { continue };
        match &told.outcome {
            Ok(restored) => figures.bytes = restored.read_bytes,
            Err(RestoreError::Damaged { found, .. }) => figures.damage = found.len() as u64,
            Err(_) => {}
        }
    }
}
