//! `tidegate agent`.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::point::ask;
use super::signals::asked_to_stop;
use super::traces::Traced;
use super::{Failure, Outcome};
use crate::agent::config::{Config, DEFAULT_FILE};
use crate::agent::control::{AgentStatus, DiskStatus, Request, Response, socket_path};
use crate::agent::disk::Overrides;
use crate::agent::state::{self, StateError};
use crate::agent::{reload, stepping_back};
use crate::config::show_size;
use crate::fault::exit;
use crate::flow::{Clock, SystemClock};
use crate::signed::heads::{DiskHead, Heads};
use crate::types::DiskId;
use crate::wire::tls::vault_of;

/// Options of `tidegate agent`.
#[derive(clap::Args)]
pub struct Args {
    /// The configuration file.
    #[arg(long, value_name = "FILE", env = "TIDEGATE_AGENT_CONFIG", default_value = "/etc/tidegate/agent.toml")]
    config: PathBuf,
    /// Print a commented configuration with every default, and end.
    #[arg(long, group = "instead")]
    print_config: bool,
    /// Check the configuration, print every mistake, and end.
    #[arg(long, group = "instead")]
    check: bool,
    /// Print the state of the running agent's disks, and end.
    #[arg(long, group = "instead")]
    status: bool,
    /// Print of each disk the newest record that this agent was told to be vaulted, as a file for `tidegate verify --heads`, and
    /// end. Keep it where nobody who writes to the vault can change it. Works without a running agent, too.
    #[arg(long, group = "instead")]
    heads: bool,
    /// With --status: as JSON.
    #[arg(long, requires = "status")]
    json: bool,
    /// Compare the whole of this disk with what was sent, whatever the state says: for a disk that came from elsewhere, or
    /// a copy of a machine whose agent had stopped in order. May be given more than once.
    #[arg(long, value_name = "DISK", conflicts_with = "instead")]
    resync: Vec<DiskId>,
    /// Carry this disk again although another agent took it over. May be given more than once.
    #[arg(long, value_name = "DISK", conflicts_with = "instead")]
    take_over: Vec<DiskId>,
}

impl Args {
    /// Of what the daemon's traces tell, and what its file says of them; nothing if it is not to run.
    pub(super) fn traced(&self) -> Option<Traced> {
        if self.print_config || self.check || self.status {
            return None;
        }
        let read = Config::load(&self.config).ok().map(|config| (Some(config.id), config.traces));
        Some(Traced::with_file("tidegate-agent", read))
    }
}

/// Runs the verb.
pub fn run(args: Args) -> Outcome {
    if args.print_config {
        std::io::stdout().write_all(DEFAULT_FILE.as_bytes())?;
        return Ok(exit::OK);
    }
    let config = Config::load(&args.config).map_err(|error| Failure::usage(error.to_string()))?;
    if args.check {
        eprintln!("{}: {} disks, no mistakes", args.config.display(), config.disks.len());
        return Ok(exit::OK);
    }
    if args.status {
        return status(&config, args.json);
    }
    if args.heads {
        return heads(&config);
    }
    let mut overrides: BTreeMap<DiskId, Overrides> = BTreeMap::new();
    for disk in args.resync.iter().chain(&args.take_over) {
        if !config.disks.iter().any(|known| known.id == *disk) {
            return Err(Failure::usage(format!("{} has no disk {disk}", args.config.display())));
        }
    }
    args.resync.into_iter().for_each(|disk| overrides.entry(disk).or_default().resync = true);
    args.take_over.into_iter().for_each(|disk| overrides.entry(disk).or_default().take_over = true);
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.thread_name("tg-agent").on_thread_start(stepping_back()).enable_all().build()?;
    runtime.block_on(async {
        let drain = asked_to_stop(None)?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let reloads = reload::signals()?;
        tokio::spawn(reload::run(args.config.clone(), config.clone(), Arc::clone(&clock), reloads));
        crate::agent::run(&config, &overrides, clock, drain).await.map_err(|error| Failure::of(&error))?;
        Ok(exit::OK)
    })
}

fn status(config: &Config, json: bool) -> Outcome {
    let socket = socket_path(&config.state_dir);
    let status = match ask(&socket, &Request::Status, Duration::from_secs(10))? {
        Response::Status(status) => status,
        other => return Err(Failure::error(format!("the agent gave an unexpected answer: {other:?}"))),
    };
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, &status)?;
        writeln!(out)?;
    } else {
        print(&mut out, &status)?;
    }
    Ok(exit::OK)
}

/// What the running agent knows; without one, what its state files do, which may be some seconds older.
fn heads(config: &Config) -> Outcome {
    let vault = vault_of(&config.tls).map_err(|error| Failure::of(&error))?;
    let socket = socket_path(&config.state_dir);
    let heads = match ask(&socket, &Request::Heads, Duration::from_secs(10)) {
        Ok(Response::Heads(heads)) => heads,
        Ok(Response::Failed(failed)) => return Err(Failure::error(failed.text)),
        Ok(other) => return Err(Failure::error(format!("the agent gave an unexpected answer: {other:?}"))),
        Err(failure) => {
            eprintln!("tidegate: warning: {}; the state files are read instead", failure.text);
            config.disks.iter().filter_map(|disk| kept_head(config, &disk.id).transpose()).collect::<Result<_, _>>()?
        }
    };
    let file = Heads::new(vault, config.id.clone(), SystemClock::new().wall(), heads);
    print!("{}", file.text());
    Ok(exit::OK)
}

fn kept_head(config: &Config, disk: &DiskId) -> Result<Option<DiskHead>, Failure> {
    match state::read(&config.state_dir, disk) {
        Ok(state) => Ok(state.head().map(|head| DiskHead::new(disk.clone(), head))),
        Err(StateError::Missing { .. }) => Ok(None),
        Err(error) => Err(Failure::of(&error)),
    }
}

fn print(out: &mut impl Write, status: &AgentStatus) -> std::io::Result<()> {
    match (&status.gateway, &status.error) {
        (Some(gateway), _) => {
            let at = status.address.as_deref().unwrap_or("?");
            let why = status.why.as_deref().unwrap_or("?");
            let transport = match (status.transport.as_deref(), status.fell_back) {
                (Some("tcp"), true) => " over TCP, because QUIC does not get through",
                (Some("tcp"), false) => " over TCP",
                _ => "",
            };
            writeln!(out, "agent {}, connected to gateway {gateway} at {at}{transport}: {why}", status.agent)?;
        }
        (None, Some(error)) => writeln!(out, "agent {}, not connected: {error}", status.agent)?,
        (None, None) => writeln!(out, "agent {}, not connected", status.agent)?,
    }
    if status.ranked.len() > 1 {
        writeln!(out, "gateways, best for this agent first: {}", status.ranked.join(", "))?;
    }
    status.disks.iter().try_for_each(|disk| print_disk(out, disk))
}

fn print_disk(out: &mut impl Write, disk: &DiskStatus) -> std::io::Result<()> {
    let place = disk.epoch.map_or_else(|| "no epoch".into(), |epoch| format!("e{epoch}-s{}", disk.seq));
    writeln!(
        out,
        "{}  {}  {}  at {place}, vaulted s{}, RPO {:.1} s, queued {}, to copy {}",
        disk.disk,
        disk.state,
        show_size(disk.size_bytes),
        disk.vaulted,
        disk.rpo_seconds,
        show_size(disk.queue_bytes),
        show_size(disk.dirty_bytes),
    )?;
    disk.last_error.iter().try_for_each(|error| writeln!(out, "    {error}"))
}
