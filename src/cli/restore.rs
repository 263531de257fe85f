//! `tidegate restore`: bring a disk back as it was at a point.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::keyring::{self, Opened, VaultArgs};
use super::points::{self as view, DiskView};
use super::run_file::{Figures, RunFile};
use super::{Failure, Outcome};
use crate::config::{parse_size, show_size};
use crate::fault::{Classify, exit};
use crate::flow::{Clock, SystemClock};
use crate::keys::Identity;
use crate::restore::ask;
use crate::restore::damage::Damage;
use crate::restore::fetch::{self, FetchLimits};
use crate::restore::pin;
use crate::restore::plan::Plan;
use crate::restore::points::{self, Ask, Point};
use crate::restore::progress::Progress;
use crate::restore::source::{self, Source};
use crate::restore::target::Target;
use crate::restore::write::{self, RestoreError, RestoreOptions, Restored};
use crate::types::DiskId;
use crate::vault::Vault;

/// Smallest useful byte budget: one of the longest reads and a little.
const MEMORY_BYTES_MIN: u64 = 16 << 20;
/// Damage that the text names one by one.
const DAMAGE_SHOWN: usize = 20;

/// Options of `tidegate restore`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    vault: VaultArgs,
    /// The disk.
    #[arg(long)]
    disk: DiskId,
    /// The last point at or before this time: 2026-11-22T21:00:05Z, "2026-11-22 21:00:05" (local), now, "-10 min".
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, conflicts_with_all = ["point", "latest"])]
    at: Option<String>,
    /// A point by its id (e1-s4711) or its name.
    #[arg(long, value_name = "POINT", conflicts_with = "latest")]
    point: Option<String>,
    /// The newest point; the default.
    #[arg(long)]
    latest: bool,
    /// File to create, or block device to overwrite.
    #[arg(long, value_name = "PATH")]
    to: PathBuf,
    /// Overwrite what is there, and drop another half-done restore into the same target.
    #[arg(long)]
    force: bool,
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

/// How progress is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub(super) enum ProgressMode {
    /// A bar on a terminal, nothing elsewhere.
    #[default]
    Auto,
    /// A line of text every few seconds.
    Plain,
    /// Nothing.
    None,
    /// A JSON object per line every second.
    Json,
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
    let asked = asked(&args)?;
    let (runtime, started) = (keyring::runtime()?, Instant::now());
    let mut figures = Figures::default();
    let outcome = runtime.block_on(restore(&args, &asked, &mut figures));
    if let Some(file) = &args.metrics_file {
        let (now, took) = (SystemClock::new().wall(), started.elapsed());
        file.tell_restore(args.disk.as_str(), now, took, outcome.is_ok(), figures);
    }
    outcome
}

fn asked(args: &Args) -> Result<Ask, Failure> {
    match (&args.at, &args.point) {
        (Some(at), _) => ask::at(at, SystemClock::new().wall(), &jiff::tz::TimeZone::system())
            .map_err(|error| Failure::usage(error.to_string())),
        (None, Some(point)) => Ok(ask::point(point)),
        (None, None) => Ok(Ask::Latest),
    }
}

async fn open(args: &Args) -> Result<(Vault, Identity), Failure> {
    let Opened { vault, identity } = args.vault.open_with_key().await?;
    let identity = identity.ok_or_else(|| {
        Failure::usage(
            "the catalog key opens indexes, not data: give the recovery identity with --identity FILE or TIDEGATE_IDENTITY",
        )
    })?;
    Ok((vault, identity))
}

/// The point to restore, or why there is none that can be called the answer.
fn choose(args: &Args, loaded: &DiskView, asked: &Ask) -> Result<Point, Failure> {
    let chosen = points::choose(&loaded.history, &loaded.points, asked);
    let lost_tail = source::lost_tail(&loaded.catalog, &loaded.history);
    match &chosen {
        Ok(point) => match points::hidden_by_damage(&loaded.history, lost_tail, point, asked) {
            None => {}
            Some(damage) => {
                let text = format!(
                    "disk {}: {damage}, so the newest point that can be restored, {} of {}, may not be the newest there was. \
                     If that is what you want, ask for it: --point {}",
                    args.disk, point.id, point.label, point.id
                );
                return Err(Failure { text, code: exit::DAMAGE });
            }
        },
        Err(_) if loaded.history.damaged() => {
            let warnings = loaded.warnings(&args.disk).join("\n  ");
            let text =
                format!("disk {}: no such point can be restored from this damaged vault:\n  {warnings}", args.disk);
            return Err(Failure { text, code: exit::DAMAGE });
        }
        Err(_) => {}
    }
    chosen.map_err(|error| Failure::error(format!("disk {}: {error}", args.disk)))
}

async fn restore(args: &Args, asked: &Ask, figures: &mut Figures) -> Outcome {
    let started = Instant::now();
    // Before anything is read: most mistakes are here.
    Target::check(&args.to, args.force).map_err(|error| Failure::of(&error))?;
    let (vault, identity) = open(args).await?;
    let loaded = view::load(&vault, &args.disk).await?;
    let point = choose(args, &loaded, asked)?;
    let (source, damaged_lanes) =
        Source::open(&vault, &identity, &loaded.catalog).map_err(|error| Failure::of(&error))?;
    let mut warnings = loaded.warnings(&args.disk);
    warnings.extend(damaged_lanes.iter().map(ToString::to_string));
    for warning in &warnings {
        eprintln!("tidegate: warning: {warning}");
    }
    eprintln!("restoring disk {} to {}", args.disk, view::point_line(&point));
    if let Err(error) = pin::pin(&vault, &args.disk, point.id, SystemClock::new().wall(), "restore").await {
        let what = "the point could not be pinned: what the keeper lets go meanwhile stays for its `delete_after`";
        warnings.push(format!("{what} ({})", crate::fault::chain_text(&error)));
        warnings.last().into_iter().for_each(|warning| eprintln!("tidegate: warning: {warning}"));
    }
    let pinned = tokio::spawn(pin::hold(vault.clone(), args.disk.clone(), point.id, SystemClock::new()));
    let DiskView { history, .. } = loaded;
    let plan = Plan::build(&history, point.id)
        .ok_or_else(|| Failure::error(format!("{} is not in the usable history of the disk", point.id)))?;
    let progress = Arc::new(Progress::default());
    let display = tokio::spawn(show(args.progress, Arc::clone(&progress)));
    let options = RestoreOptions { force: args.force, limits: limits(args.memory, args.jobs) };
    let result = write::restore(&source, &args.disk, Arc::new(history), &plan, &args.to, &options, progress).await;
    pinned.abort();
    display.abort();
    // Wait for its end, or the bar would be drawn into what follows.
    let _ = display.await;
    match result {
        Ok(restored) => {
            figures.bytes = restored.read_bytes;
            print_done(args, &point, &restored, started.elapsed(), &warnings);
            Ok(exit::OK)
        }
        Err(error) => {
            if let RestoreError::Damaged { found, .. } = &error {
                figures.damage = found.len() as u64;
            }
            Err(failed(args, &point, &error))
        }
    }
}

fn print_done(args: &Args, point: &Point, restored: &Restored, took: Duration, warnings: &[String]) {
    if args.json {
        let result = json!({
            "disk": args.disk,
            "point": view::point_json(point),
            "to": args.to,
            "disk_bytes": restored.disk_bytes,
            "data_bytes": restored.data_bytes,
            "read_bytes": restored.read_bytes,
            "messages": restored.messages,
            "resumed_messages": restored.resumed_messages,
            "seconds": took.as_secs_f64(),
            "warnings": warnings,
        });
        println!("{result}");
        return;
    }
    println!(
        "disk {} is as it was at {} ({}, clock ±{} s): {} in {}, of which {} data; read {} in {:.1} s",
        args.disk,
        point.label,
        point.id,
        view::uncertainty_seconds(point),
        show_size(restored.disk_bytes),
        args.to.display(),
        show_size(restored.data_bytes),
        show_size(restored.read_bytes),
        took.as_secs_f64()
    );
    if restored.resumed_messages > 0 {
        println!("{} of {} messages were there from an earlier run", restored.resumed_messages, restored.messages);
    }
}

fn failed(args: &Args, point: &Point, error: &RestoreError) -> Failure {
    let mut failure = Failure::of(error);
    let found: &[Damage] = if let RestoreError::Damaged { found, .. } = error { found } else { &[] };
    for damage in found.iter().take(DAMAGE_SHOWN) {
        failure.text.push_str(&format!("\n  {damage}"));
    }
    if found.len() > DAMAGE_SHOWN {
        failure.text.push_str(&format!("\n  … and {} more (--json names them)", found.len() - DAMAGE_SHOWN));
    }
    if !found.is_empty() {
        failure.text.push_str(&format!(
            "\n  {} is no image and keeps what was sound. With the damaged objects brought back from a copy of the vault, \
             the same command finishes it; `tidegate points` shows earlier points",
            args.to.display()
        ));
    }
    if args.json {
        let damage: Vec<Value> = found.iter().map(|damage| json!(damage)).collect();
        let passing = error.fault() == crate::fault::Fault::Retry;
        let result = json!({
            "disk": args.disk,
            "point": view::point_json(point),
            "to": args.to,
            "error": error.to_string(),
            "try_again": passing,
            "damage": damage,
        });
        println!("{result}");
    }
    failure
}

/// Shows progress until it is aborted.
pub(super) async fn show(mode: ProgressMode, progress: Arc<Progress>) {
    let terminal = std::io::stderr().is_terminal();
    match mode {
        ProgressMode::Auto if terminal => bar(&progress).await,
        ProgressMode::Auto | ProgressMode::None => {}
        ProgressMode::Plain => {
            lines(Duration::from_secs(5), &progress, |done, total| {
                format!("{} of {} read", show_size(done), show_size(total))
            })
            .await;
        }
        ProgressMode::Json => {
            lines(Duration::from_secs(1), &progress, |done, total| {
                json!({ "done_bytes": done, "total_bytes": total }).to_string()
            })
            .await;
        }
    }
}

async fn lines(every: Duration, progress: &Progress, text: impl Fn(u64, u64) -> String) {
    let mut ticks = tokio::time::interval(every);
    loop {
        ticks.tick().await;
        let (done, total) = progress.get();
        if total > 0 {
            eprintln!("{}", text(done, total));
        }
    }
}

async fn bar(progress: &Progress) {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    let mut ticks = tokio::time::interval(Duration::from_millis(200));
    loop {
        ticks.tick().await;
        let (done, total) = progress.get();
        if total > 0 {
            bar.set_length(total);
            bar.set_position(done);
        }
    }
}
