//! `tidegate keeper`: what retention would let go.
//!
//! The keeper's runs ([`run::once`]) are no verb yet: what is open before anything may delete stands in decision 12.

use std::io::Write;
use std::path::PathBuf;

use serde_json::json;

use super::{Failure, Outcome, keyring};
use crate::config::show_size;
use crate::fault::exit;
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
    /// Print a configuration file with every key, its default and its meaning.
    PrintConfig,
}

#[derive(clap::Args)]
struct ConfigArgs {
    /// Configuration file.
    #[arg(long, value_name = "FILE", env = "TIDEGATE_KEEPER_CONFIG", default_value = "/etc/tidegate/keeper.toml")]
    config: PathBuf,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(args: Args) -> Outcome {
    let runtime = keyring::runtime()?;
    match args.verb {
        Verb::Plan(args) => runtime.block_on(plan(&args)),
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
