//! `tidegate keeper`: what retention would let go, one run of it, or one after the other.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;

use super::{Failure, Outcome, keyring};
use crate::config::show_size;
use crate::fault::{Classify, Fault, chain_text, exit};
use crate::flow::{Clock, SystemClock};
use crate::keeper::config::{DEFAULT_FILE, KeeperConfig};
use crate::keeper::judge::DiskVerdict;
use crate::keeper::run::{self, Count, Report};
use crate::keys::CatalogKey;
use crate::vault::Vault;
use crate::vault::url::open_store;

/// Options of `tidegate keeper`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Show which points are kept, what would go and what that saves; change nothing.
    Plan(ConfigArgs),
    /// Do one run: seal, mark, delete what was marked long ago, within the budget.
    Once(ConfigArgs),
    /// Do one run after the other until told to stop.
    Run(ConfigArgs),
    /// Print a configuration file with every key, its default and its meaning.
    PrintConfig,
}

#[derive(clap::Args)]
struct ConfigArgs {
    /// Configuration file.
    #[arg(long, value_name = "FILE", env = "TIDEGATE_KEEPER_CONFIG", default_value = "/etc/tidegate/keeper.toml")]
    config: PathBuf,
    /// Print the result as JSON; `run` prints one object per run.
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(args: Args) -> Outcome {
    let runtime = keyring::runtime()?;
    match args.verb {
        Verb::Plan(args) => runtime.block_on(plan(&args)),
        Verb::Once(args) => runtime.block_on(once(&args)),
        Verb::Run(args) => runtime.block_on(repeat(&args)),
        Verb::PrintConfig => {
            std::io::stdout().write_all(DEFAULT_FILE.as_bytes())?;
            Ok(exit::OK)
        }
    }
}

async fn open(args: &ConfigArgs) -> Result<(KeeperConfig, Vault), Failure> {
    let config = KeeperConfig::load(&args.config).map_err(|error| Failure::usage(error.to_string()))?;
    let key = CatalogKey::read(&config.catalog_key).map_err(|error| Failure::of(&error))?;
    let store = open_store(&config.vault_url).map_err(|error| Failure::of(&error))?;
    let vault = Vault::open(store, key).await.map_err(|error| Failure::of(&error))?;
    Ok((config, vault))
}

async fn plan(args: &ConfigArgs) -> Outcome {
    let (config, vault) = open(args).await?;
    let report = run::plan(&vault, &config.work, &config.policies, SystemClock::new().wall()).await;
    let report = report.map_err(|error| Failure::of(&error))?;
    if args.json {
        println!("{}", json!(report));
    } else {
        print_state(&report);
        println!("would go    {} once marked, and `delete_after` later", show(report.unneeded));
    }
    Ok(ending(&report))
}

async fn once(args: &ConfigArgs) -> Outcome {
    let (config, vault) = open(args).await?;
    let report = run::once(&vault, &config.work, &config.policies, Arc::new(SystemClock::new())).await;
    let report = report.map_err(|error| Failure::of(&error))?;
    if args.json {
        println!("{}", json!(report));
    } else {
        print_state(&report);
        print_done(&report);
    }
    Ok(ending(&report))
}

/// Runs until a signal. A run that fails is told, and the next one goes on.
async fn repeat(args: &ConfigArgs) -> Outcome {
    let (config, vault) = open(args).await?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut ticks = tokio::time::interval(config.work.every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let work = async {
            ticks.tick().await;
            run::once(&vault, &config.work, &config.policies, Arc::new(SystemClock::new())).await
        };
        // A run may be dropped at any moment: the next one, of whatever process, goes on.
        let result = tokio::select! {
            biased;
            _ = terminate.recv() => return Ok(exit::OK),
            _ = tokio::signal::ctrl_c() => return Ok(exit::OK),
            result = work => result,
        };
        match result {
            Ok(report) => tell(&report, args.json),
            Err(error) if error.fault() == Fault::Retry => {
                tracing::warn!(error = chain_text(&error), "a run of the keeper failed; the next one goes on");
            }
            Err(error) => {
                tracing::error!(error = chain_text(&error), "a run of the keeper failed; the next one goes on")
            }
        }
    }
}

fn tell(report: &Report, as_json: bool) {
    if as_json {
        println!("{}", json!(report));
    }
    tracing::info!(
        stored_bytes = report.stored.bytes,
        marked = report.newly_marked.batches,
        deleted = report.deleted.batches,
        deleted_bytes = report.deleted.bytes,
        budget_spent = report.budget_spent,
        "run of the keeper ended"
    );
    for disk in &report.disks {
        if let Some(why) = &disk.held_back {
            tracing::warn!(disk = %disk.disk, why, "nothing of the disk is let go");
        }
    }
    for note in &report.notes {
        tracing::warn!(note, "note of the keeper");
    }
}

/// Damage that holds a disk back is worth an exit code: retention stands still there.
fn ending(report: &Report) -> u8 {
    if report.disks.iter().any(|disk| disk.held_back.is_some()) { exit::DAMAGE } else { exit::OK }
}

fn show(count: Count) -> String {
    format!("{} batches, {}", count.batches, show_size(count.bytes))
}

fn print_state(report: &Report) {
    for disk in &report.disks {
        println!("disk        {}", disk_line(disk));
        if let Some(why) = &disk.held_back {
            println!("held back   {}: {why}", disk.disk);
        }
    }
    println!("stored      {}", show(report.stored));
    println!("needed      {} of messages", show_size(report.needed_bytes));
    println!("marked      {}", show(report.marked));
    for note in &report.notes {
        println!("note        {note}");
    }
}

fn disk_line(disk: &DiskVerdict) -> String {
    let reasons: Vec<String> =
        disk.reasons.iter().map(|(reason, count)| format!("{} {count}", reason.as_str())).collect();
    let oldest = disk.oldest_kept.as_ref().map(|(id, time)| format!("; oldest {id} of {time}")).unwrap_or_default();
    let pins = if disk.pins > 0 { format!("; {} pinned", disk.pins) } else { String::new() };
    format!("{}  {} of {} points kept ({}){oldest}{pins}", disk.disk, disk.kept, disk.points, reasons.join(", "))
}

fn print_done(report: &Report) {
    println!("now marked  {}", show(report.newly_marked));
    println!("deleted     {}", show(report.deleted));
    let lanes = [
        (report.lanes_sealed, "sealed: its batches are marked ten minutes from now at the earliest"),
        (report.lanes_waiting, "too young, or sealed a moment ago"),
        (report.lanes_elsewhere, "in the hands of another keeper"),
    ];
    for (count, what) in lanes.into_iter().filter(|(count, _)| *count > 0) {
        println!("lanes       {count} {what}");
    }
    if report.taken_back > 0 {
        println!("taken back  {} marks", report.taken_back);
    }
    if report.budget_spent {
        println!("budget      spent: the next run goes on");
    }
}
