//! `tidegate bundle`: everything that somebody who helps wants to see, in one file without secrets.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::doctor::{Loaded, findings_json};
use super::point::ask;
use super::{Failure, Outcome, journal, keyring};
use crate::agent::control::{self, Request};
use crate::bundle::redact::Redactor;
use crate::bundle::{Collected, archive, collect};
use crate::config::show_size;
use crate::doctor::{Finding, Role};
use crate::fault::{chain_text, exit};
use crate::flow::{Clock, SystemClock};
use crate::journal::inspect;

/// Journals of more bytes than this are not looked through: `tidegate journal inspect` does that, with patience.
const JOURNAL_BYTES_MAX: u64 = 8 << 30;

/// An agent answers from memory.
const AGENT_PATIENCE: Duration = Duration::from_secs(5);

/// Options of `tidegate bundle`.
#[derive(clap::Args)]
pub struct Args {
    /// Configuration file of the gateway or agent.
    #[arg(long, value_name = "FILE", env = "TIDEGATE_CONFIG")]
    config: PathBuf,
    /// The file to write, such as bundle.tar.gz; must not be there yet.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// A log file to take the end of; may be given several times. The system's journal is asked by itself.
    #[arg(long, value_name = "FILE")]
    log: Vec<PathBuf>,
    /// Print what is in it as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(args: &Args) -> Outcome {
    if args.out.exists() {
        return Err(Failure::usage(format!("{} exists already: give a new file", args.out.display())));
    }
    let text = std::fs::read_to_string(&args.config)
        .map_err(|error| Failure::usage(format!("{} cannot be read: {error}", args.config.display())))?;
    // A configuration that does not load is one of the reasons to ask for help.
    let loaded = Loaded::load(&args.config, None);
    let collected = keyring::runtime()?.block_on(collect(args, text, &loaded));
    let redactor = Redactor::new(collect::secrets(&key_files(&loaded)).iter().map(String::as_str));
    let list = archive::write(&args.out, &collected, &redactor, SystemClock::new().wall())
        .map_err(|error| Failure::error(format!("{} cannot be written: {error}", args.out.display())))?;
    let left_out: Vec<_> =
        collected.left_out.iter().map(|(what, why)| (redactor.redact(what), redactor.redact(why))).collect();
    if args.json {
        let files: Vec<_> = list.iter().map(|(name, bytes)| json!({ "name": name, "bytes": bytes })).collect();
        let left_out: Vec<_> = left_out.iter().map(|(what, why)| json!({ "what": what, "why": why })).collect();
        println!("{}", json!({ "file": args.out, "files": files, "left_out": left_out }));
    } else {
        list.iter().for_each(|(name, bytes)| println!("{name:<36} {}", show_size(*bytes)));
        left_out.iter().for_each(|(what, why)| println!("left out: {what}: {why}"));
        println!("{}: look at it before you give it away", args.out.display());
    }
    Ok(exit::OK)
}

fn key_files(loaded: &Result<Loaded, Failure>) -> Vec<PathBuf> {
    let (mut files, traces) = match loaded {
        Ok(Loaded::Gateway(config)) => (vec![config.tls.key.clone(), config.catalog_key.clone()], &config.traces),
        Ok(Loaded::Agent(config)) => (vec![config.tls.key.clone()], &config.traces),
        Err(_) => return Vec::new(),
    };
    files.extend(traces.headers_file.clone());
    files
}

async fn collect(args: &Args, text: String, loaded: &Result<Loaded, Failure>) -> Collected {
    let mut out = Collected::default();
    let version = json!({
        "version": env!("CARGO_PKG_VERSION"), "os": std::env::consts::OS, "architecture": std::env::consts::ARCH,
        "time": SystemClock::new().wall().to_string(),
    });
    out.add("version.json", Ok(version.to_string()));
    out.add("config.toml", Ok(text));
    match loaded {
        Ok(loaded) => {
            let effective = match loaded {
                Loaded::Gateway(config) => format!("{config:#?}"),
                Loaded::Agent(config) => format!("{config:#?}"),
            };
            out.add("config-effective.txt", Ok(effective));
            let findings: Vec<Finding> = loaded.examine().await;
            out.add("doctor.json", Ok(findings_json(loaded.role(), &findings).to_string()));
            let unit = unit(loaded.role());
            let lines = tokio::task::spawn_blocking(move || collect::journald(unit)).await;
            out.add("logs/journald.txt", lines.unwrap_or_else(|error| Err(error.to_string())));
        }
        Err(failure) => out.add("config-mistakes.txt", Ok(failure.text.clone())),
    }
    match loaded {
        Ok(Loaded::Gateway(config)) => {
            collect::gateway(&mut out, config.admin_listen).await;
            let dir = config.journal.dir.clone();
            let looked = tokio::task::spawn_blocking(move || look(&dir)).await;
            out.add("journal.json", looked.unwrap_or_else(|error| Err(error.to_string())));
        }
        Ok(Loaded::Agent(config)) => {
            let socket = control::socket_path(&config.state_dir);
            let asked = tokio::task::spawn_blocking(move || agent_status(&socket)).await;
            out.add("agent/status.json", asked.unwrap_or_else(|error| Err(error.to_string())));
        }
        Err(_) => {}
    }
    for (number, log) in args.log.iter().enumerate() {
        let name = log.file_name().unwrap_or_default().to_string_lossy();
        out.add(&format!("logs/{number}-{name}"), collect::log_file(log));
    }
    collect::host(&mut out);
    out
}

fn agent_status(socket: &Path) -> Result<String, String> {
    let answer = ask(socket, &Request::Status, AGENT_PATIENCE).map_err(|failure| failure.text)?;
    serde_json::to_string(&answer).map_err(|error| error.to_string())
}

const fn unit(role: Role) -> &'static str {
    match role {
        Role::Gateway => "tidegate-gateway",
        Role::Agent => "tidegate-agent",
    }
}

/// The journal, if it is small enough to be looked through beside a running gateway.
fn look(dir: &Path) -> Result<String, String> {
    let bytes = inspect::size_bytes(dir).map_err(|error| chain_text(&error))? / 2;
    if bytes > JOURNAL_BYTES_MAX {
        return Err(format!(
            "{} in {}: run `tidegate journal inspect --json` by hand",
            show_size(bytes),
            dir.display()
        ));
    }
    let looked = inspect::look(dir, Arc::new(|_| {})).map_err(|error| chain_text(&error))?;
    Ok(journal::look_json(&looked).to_string())
}
