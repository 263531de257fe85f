//! `tidegate verify`: is the vault whole?

use std::sync::Arc;

use tokio::time::Instant;

use super::keyring::{self, Opened, VaultArgs};
use super::restore::{ProgressMode, limits, memory, show};
use super::run_file::{Figures, RunFile};
use super::{Failure, Outcome};
use crate::config::show_size;
use crate::fault::exit;
use crate::flow::{Clock, SystemClock};
use crate::restore::progress::Progress;
use crate::restore::verify::{self, Level, Report, VerifyOptions};
use crate::types::DiskId;

/// Options of `tidegate verify`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    vault: VaultArgs,
    /// How deep to look; the default is the deepest that the keys at hand allow.
    #[arg(long, value_enum)]
    level: Option<LevelArg>,
    /// Share of the messages to open at level data, for example 10%. Drawn anew each time.
    #[arg(long, value_name = "PERCENT", value_parser = percent, default_value = "100%")]
    sample: f64,
    /// Only this disk's indexes and data.
    #[arg(long)]
    disk: Option<DiskId>,
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

/// How deep to look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum LevelArg {
    /// Names and control objects; needs no key.
    List,
    /// And all indexes; needs the catalog key or the identity.
    Index,
    /// And the data; needs the identity.
    Data,
}

fn percent(text: &str) -> Result<f64, String> {
    let number = text.trim().strip_suffix('%').unwrap_or(text).trim();
    match number.parse::<f64>() {
        Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(percent / 100.0),
        _ => Err("expected more than 0 and at most 100 percent, for example 10%".to_owned()),
    }
}

fn level(asked: Option<LevelArg>, opened: &Opened) -> Result<Level, Failure> {
    let (catalog, identity) = (opened.vault.catalog_key().is_some(), opened.identity.is_some());
    match asked {
        None if identity => Ok(Level::Data),
        None if catalog => Ok(Level::Index),
        None | Some(LevelArg::List) => Ok(Level::List),
        Some(LevelArg::Index) if catalog => Ok(Level::Index),
        Some(LevelArg::Data) if identity => Ok(Level::Data),
        Some(LevelArg::Index) => Err(Failure::usage(
            "level index needs a key: give --catalog-key FILE or --identity FILE (or verify with --level list)",
        )),
        Some(LevelArg::Data) => Err(Failure::usage(
            "level data needs the recovery identity: give --identity FILE (or verify with --level index)",
        )),
    }
}

/// Runs the verb.
#[expect(clippy::needless_pass_by_value, reason = "every verb is called alike")]
pub fn run(args: Args) -> Outcome {
    let (runtime, started) = (keyring::runtime()?, Instant::now());
    let mut figures = Figures::default();
    let outcome = runtime.block_on(check(&args, &mut figures));
    if let Some(file) = &args.metrics_file {
        let whole = matches!(outcome, Ok(exit::OK));
        file.tell_verify(SystemClock::new().wall(), started.elapsed(), whole, figures);
    }
    outcome
}

async fn check(args: &Args, figures: &mut Figures) -> Outcome {
    let opened = args.vault.open().await?;
    let options = VerifyOptions {
        level: level(args.level, &opened)?,
        sample: args.sample,
        disk: args.disk.clone(),
        limits: limits(args.memory, args.jobs),
    };
    let progress = Arc::new(Progress::default());
    let display = tokio::spawn(show(args.progress, Arc::clone(&progress)));
    let result = verify::verify(&opened.vault, opened.identity.as_ref(), &options, progress).await;
    display.abort();
    let _ = display.await;
    let report = result.map_err(|error| Failure::of(&error))?;
    *figures = Figures { bytes: report.bytes, damage: report.damage.len() as u64 };
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print_text(&report);
    }
    Ok(if report.damage.is_empty() { exit::OK } else { exit::DAMAGE })
}

fn print_text(report: &Report) {
    let depth = match report.level {
        Level::List => "names and control objects",
        Level::Index => "names, control objects and indexes",
        Level::Data => "names, control objects, indexes and data",
    };
    let macs = if report.authenticated { "" } else { " (no key at hand: nothing was authenticated)" };
    println!("vault {}: {depth}{macs}", report.vault);
    let size = show_size(report.bytes);
    println!("{} objects, {size}; {} batches in {} lanes", report.objects, report.batches, report.lanes);
    if report.level == Level::Data {
        println!("{} of {} messages opened", report.messages_checked, report.messages);
    }
    for disk in &report.disks {
        let newest = match (&disk.newest_point, &disk.newest_time) {
            (Some(id), Some(time)) => format!("newest {id} at {time}"),
            _ => "none yet".to_owned(),
        };
        println!("disk {}: {}, {} points, {newest}", disk.disk, show_size(disk.size_bytes), disk.points);
    }
    for damage in &report.damage {
        println!("damage: {damage}");
    }
    for late in &report.late {
        println!("not vaulted yet: {late}");
    }
    for note in &report.notes {
        println!("note: {note}");
    }
    match report.damage.len() {
        0 => println!("ok"),
        1 => println!("DAMAGED: 1 finding"),
        count => println!("DAMAGED: {count} findings"),
    }
}
