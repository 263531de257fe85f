//! Stage 1: where changes are born. The agent stands between a guest and its disk, and tells a gateway what changes.
//!
//! ```text
//!  guest ──NBD──► splitter ──► range lock ──► activity map ──► real disk ──► tracker ──► reply
//!                                (order)        (durable)                      │ never waits
//!                                                                              ▼
//!                                                        record queue  │  dirty map
//!                                                            │         │     │
//!                                    replicator: send ◄──────┘         └────►│ copy (reads the disk)
//!                                       │  ▲                                 │
//!                                       ▼  │ acks ──► queue freed (journaled), generations dropped (vaulted)
//!                                    gateway                 └──► every few seconds: floor persisted, map cleared
//! ```
//!
//! Read in this order: [`tracker`] (the rules of one disk, over [`queue`] and [`dirty`]; no I/O), [`splitter`] (the
//! guest's writes), [`activity`] and [`state`] (what survives a crash), [`disk`] (all of that in one), [`replicator`],
//! [`link`] and [`placement`] (the way to a gateway, and which), [`points`] and [`control`] (what an operator asks for).
//!
//! Invariants:
//!
//! - The guest never waits for the gateway: the only waits of a write are the local disk, the activity map's sync at the
//!   first touch of a region, and overlapping writes. A full queue turns into marks of the dirty map.
//! - Whatever the vault at the persisted floor may lack lies in an active region of the persisted map, at every moment.
//! - Records of one disk are numbered and sent in the order in which their writes were completed; outside sync spans
//!   they make exactly the disk.
//! - An epoch is remembered before its first record goes out, so a crash cannot number two histories alike.
//! - Memory is bounded: records by each disk's queue and by one budget for all; maps by the disks' sizes.
//!
//! Threads: `tg-guest` (sockets of guests), `tg-nbd-N` (their requests on disks), `tg-agent` (everything else, which steps
//! back where processor time is short: see [`stepping_back`]).
//!
//! Not owned here: the wire's protocol, durability at the other end, which gateway carries what, who may do it.
//!
//! Shutdown: NBD servers stop first and answer what they took; a last barrier is made; everything is sent and waited for
//! until it is vaulted or the grace is over; then the state is written, clean if nothing was left.
//!
//! Crash: the next start finds no clean mark, marks the active regions, asks for a new epoch that forks at the floor or
//! wherever the vault has come since, and copies what is marked inside a sync span. With state or map lost it copies the
//! whole disk. Nothing is compared by hand, nothing waits: the guest writes all the while.
//!
//! A disk and state directory that are set back together (a snapshot of the machine), or a copy of both that is started
//! elsewhere, look like a crash. What was written in between the vault knows: the answer to the fork names those chunks,
//! and they are compared too. They must be of one moment, as any snapshot is.
//!
//! What it cannot notice: that state and disks of an agent that had stopped in order run a second time, before one of the
//! two meets what the other wrote. Before such a copy is started, `tidegate agent --resync DISK`.

pub mod activity;
pub mod carrier;
pub mod chunk_set;
pub mod clock;
pub mod config;
pub mod control;
pub mod dirty;
pub mod disk;
pub mod link;
mod page;
pub mod placement;
pub mod points;
pub mod queue;
pub mod range_lock;
pub mod reload;
pub mod replicator;
mod reporter;
pub mod splitter;
pub mod state;
pub mod tracker;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tracing::{Instrument, info_span};

use self::clock::AgentClock;
use self::config::{Config, DiskConfig};
use self::control::{Control, SocketError};
use self::disk::{Disk, Overrides, Shared};
use self::link::LinkState;
use self::page::Page;
use self::replicator::CopyPace;
use self::splitter::Splitter;
use self::state::{StateDir, StateError};
use crate::fault::{Classify, Fault, chain_text};
use crate::flow::{Budget, Clock, Drain, DrainTrigger, blocking, watch};
use crate::nbd::{Export, FileExport, Listen, Server, ServerLimits};
use crate::telemetry::supervisor;
use crate::telemetry::traces::failed;
use crate::types::DiskId;
use crate::wire::Net;

/// How often the floor is persisted and the map cleared. A crash resyncs about what was active in this time and what was
/// not vaulted; each round costs two small syncs and a flush of the disk.
const SETTLE_INTERVAL: Duration = Duration::from_secs(5);

/// Replication runs on threads of this lower priority: of a processor that is fully used they then get a quarter of what an
/// ordinary thread gets, so the guest that they protect, which may run on the same machine, hardly notices them; and not
/// so much less that replication stands still on a busy machine.
const NICE: i32 = 5;

/// What makes each of the threads that it is called on step back behind the process's own priority.
pub fn stepping_back() -> impl Fn() + Send + Sync + 'static {
    // Absolute, for a thread inherits the priority of the one that started it.
    let own = rustix::process::getpriority_process(None).unwrap_or(0);
    move || {
        // The system's thread priorities never fail to go down; if they do, it runs as it would have.
        let _ = rustix::process::setpriority_process(None, own.saturating_add(NICE));
    }
}

/// Why the agent does not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The control socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// An NBD address cannot be served.
    #[error("cannot serve {listen}")]
    Listen {
        /// The address.
        listen: Listen,
        /// Why.
        source: io::Error,
    },
    /// The metrics page cannot be served.
    #[error("cannot serve metrics at {listen}: change metrics_listen, or leave it out")]
    Page {
        /// The address.
        listen: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The system gives no threads.
    #[error("cannot start threads for guests")]
    Threads {
        /// Its answer.
        source: io::Error,
    },
    /// No disk could be opened.
    #[error("none of the {count} disks can be protected; the log names the reason of each, the first is: {first}")]
    NoDisk {
        /// Disks of the configuration.
        count: usize,
        /// The first reason.
        first: String,
    },
}

impl Classify for AgentError {
    fn fault(&self) -> Fault {
        match self {
            Self::State(error) => error.fault(),
            Self::Socket(error) => error.fault(),
            Self::Listen { .. } | Self::Page { .. } | Self::Threads { .. } => Fault::Fatal,
            Self::NoDisk { .. } => Fault::Reject,
        }
    }
}

/// A running agent. Dropping it stops everything at once, as a crash would.
pub struct Agent {
    disks: Vec<Arc<Disk>>,
    control: Arc<Control>,
    nbd: JoinSet<io::Result<()>>,
    nbd_stop: DrainTrigger,
    guests: Option<Guests>,
    tasks: JoinSet<()>,
    drain_grace: Duration,
}

/// Threads for the sockets of guests: nothing that replication does makes a guest wait for its turn.
struct Guests(Option<Runtime>);

impl Guests {
    fn start() -> Result<Self, AgentError> {
        let runtime = Builder::new_multi_thread().thread_name("tg-guest").enable_all().build();
        Ok(Self(Some(runtime.map_err(|source| AgentError::Threads { source })?)))
    }

    fn spawn(&self, servers: Vec<Server>, stop: &DrainTrigger, into: &mut JoinSet<io::Result<()>>) {
        let Some(runtime) = &self.0 else { return };
        for server in servers {
            // The accept loop has a thread of its own there: no storm of connections delays those that are open.
            let (handle, drain) = (runtime.handle().clone(), stop.drain());
            into.spawn_blocking_on(move || handle.block_on(server.run(drain)), runtime.handle());
        }
    }
}

impl Drop for Guests {
    fn drop(&mut self) {
        // Not waited for, which a runtime inside another must not.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Everything that an agent is made of. The daemon brings the real disks, a simulation its own.
pub struct Parts<'a> {
    /// Sizes, times, gateways, certificates, and the disks.
    pub config: &'a Config,
    /// What the operator asked for.
    pub overrides: &'a BTreeMap<DiskId, Overrides>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The way to gateways.
    pub net: Net,
    /// The real disk of each disk of the configuration, or why there is none.
    pub sources: BTreeMap<DiskId, Result<Arc<dyn Export>, String>>,
}

/// Disks opened, and why others are not.
struct Opened {
    shared: Shared,
    disks: Vec<Arc<Disk>>,
    refused: BTreeMap<DiskId, String>,
}

impl Parts<'_> {
    fn open(&self) -> Result<Opened, AgentError> {
        let _entered = info_span!("start agent", agent = self.config.id).entered();
        let shared = Shared {
            clock: Arc::new(AgentClock::new(Arc::clone(&self.clock))),
            budget: Budget::new(self.config.memory_bytes),
            dir: Arc::new(StateDir::open(&self.config.state_dir)?),
        };
        let (mut disks, mut refused) = (Vec::new(), BTreeMap::new());
        for disk in &self.config.disks {
            match self.open_disk(disk, &shared) {
                Ok(opened) => disks.push(Arc::new(opened)),
                Err(error) => {
                    tracing::error!(disk = %disk.id, error, "disk is not protected");
                    refused.insert(disk.id.clone(), error);
                }
            }
        }
        if disks.is_empty() {
            let first = refused.into_values().next().unwrap_or_default();
            return Err(AgentError::NoDisk { count: self.config.disks.len(), first });
        }
        disks.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(Opened { shared, disks, refused })
    }

    fn open_disk(&self, disk: &DiskConfig, shared: &Shared) -> Result<Disk, String> {
        let span = info_span!("read disk state", disk = %disk.id);
        let _entered = span.enter();
        let source = self.sources.get(&disk.id).cloned().unwrap_or_else(|| Err("there is no such disk".into()))?;
        let overrides = self.overrides.get(&disk.id).copied().unwrap_or_default();
        let opened = Disk::open(source, &disk.path, disk.queue_bytes, shared.clone(), overrides);
        opened.map_err(|error| chain_text(&error)).inspect_err(|error| failed(&span, error))
    }

    /// Starts replicating; nobody serves the disks yet.
    fn replicate(self, opened: Opened) -> Agent {
        let Opened { shared, disks, refused } = opened;
        let config = self.config;
        let mut tasks = JoinSet::new();
        let (publish, link) = watch::channel(LinkState::default());
        tasks.spawn(link::run(config.link(), shared.clock, self.net, publish));
        let pace = CopyPace { parallel: config.copy_parallel, rate_bytes: config.copy_rate_bytes };
        for disk in &disks {
            tasks.spawn(replicator::run(Arc::clone(disk), link.clone(), pace));
            tasks.spawn(barriers(Arc::clone(disk), config.barrier_interval));
            tasks.spawn(settle(Arc::clone(disk)));
        }
        let control = Arc::new(Control { agent: config.id.clone(), disks: disks.clone(), refused, link });
        tasks.spawn(reporter::run(Arc::clone(&control)));
        let (nbd_stop, _) = DrainTrigger::new();
        Agent { disks, control, nbd: JoinSet::new(), nbd_stop, guests: None, tasks, drain_grace: config.drain_grace }
    }
}

impl Agent {
    /// Opens the disks, starts serving them, and starts replicating. Disks that cannot be opened are left out and named
    /// in the log and the status.
    ///
    /// # Errors
    /// [`AgentError`] if nothing can be protected or an address is not free.
    pub fn start(
        config: &Config,
        overrides: &BTreeMap<DiskId, Overrides>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, AgentError> {
        let open = |disk: &DiskConfig| match FileExport::open(disk.id.as_str(), &disk.path, false) {
            Ok(source) => Ok(Arc::new(source) as Arc<dyn Export>),
            Err(error) => Err(chain_text(&error)),
        };
        let sources = config.disks.iter().map(|disk| (disk.id.clone(), open(disk))).collect();
        let parts = Parts { config, overrides, clock, net: Net::system(), sources };
        let opened = parts.open()?;
        let socket = control::bind(&config.state_dir)?;
        let servers = nbd_servers(config, &opened.disks)?;
        let guests = Guests::start()?;
        let mut agent = parts.replicate(opened);
        guests.spawn(servers, &agent.nbd_stop, &mut agent.nbd);
        agent.guests = Some(guests);
        agent.tasks.spawn(control::serve(socket, Arc::clone(&agent.control)));
        Ok(agent)
    }

    /// Opens the disks and starts replicating, without serving anybody: whoever has the agent writes to its disks by
    /// [`Agent::splitters`].
    ///
    /// # Errors
    /// [`AgentError`] if nothing can be protected.
    pub fn from_parts(parts: Parts<'_>) -> Result<Self, AgentError> {
        let opened = parts.open()?;
        Ok(parts.replicate(opened))
    }

    /// The guest's door to each disk, sorted by id.
    #[must_use]
    pub fn splitters(&self) -> Vec<Splitter> {
        self.disks.iter().map(|disk| Splitter::new(Arc::clone(disk))).collect()
    }

    /// What the control socket answers from.
    #[must_use]
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// The disks, sorted by id.
    #[must_use]
    pub fn disks(&self) -> &[Arc<Disk>] {
        &self.disks
    }

    /// Waits until an NBD server ends by itself, which it should not.
    pub async fn nbd_failed(&mut self) -> io::Error {
        match self.nbd.join_next().await {
            Some(Ok(Err(error))) => error,
            Some(Err(panicked)) => io::Error::other(panicked),
            Some(Ok(Ok(()))) | None => io::Error::other("an NBD server has stopped"),
        }
    }

    /// Stops in order; see the module's head. Returns whether every disk was left clean.
    pub async fn stop(mut self) -> bool {
        self.nbd_stop.start();
        while self.nbd.join_next().await.is_some() {}
        for disk in &self.disks {
            disk.periodic_barrier();
        }
        let vaulted = async {
            for disk in &self.disks {
                replicator::all_vaulted(disk).await;
            }
        };
        let vaulted = vaulted.instrument(info_span!("wait until vaulted"));
        if tokio::time::timeout(self.drain_grace, vaulted).await.is_err() {
            tracing::warn!("not everything is vaulted: the next start compares what was active");
        }
        self.tasks.shutdown().await;
        let mut clean = true;
        for disk in std::mem::take(&mut self.disks) {
            let id = disk.id.clone();
            let closed = blocking(move || disk.close()).instrument(info_span!("close disk", disk = %id)).await;
            match closed {
                Ok(Ok(left_clean)) => clean &= left_clean,
                Ok(Err(error)) => {
                    clean = false;
                    tracing::error!(disk = %id, error = chain_text(&error), "state was not written");
                }
                Err(_) => clean = false,
            }
        }
        clean
    }
}

/// The servers of the disks' addresses; one address may serve several disks.
fn nbd_servers(config: &Config, disks: &[Arc<Disk>]) -> Result<Vec<Server>, AgentError> {
    let mut served: Vec<(Listen, Vec<Arc<dyn Export>>)> = Vec::new();
    for known in &config.disks {
        let Some(disk) = disks.iter().find(|disk| disk.id == known.id) else { continue };
        let export: Arc<dyn Export> = Arc::new(Splitter::new(Arc::clone(disk)));
        match served.iter_mut().find(|(listen, _)| *listen == known.listen) {
            Some((_, exports)) => exports.push(export),
            None => served.push((known.listen.clone(), vec![export])),
        }
    }
    let bind = |(listen, exports): (Listen, _)| {
        let shown = listen.clone();
        let bound = Server::bind(listen, exports, ServerLimits::default());
        bound.map_err(|source| AgentError::Listen { listen: shown, source })
    };
    served.into_iter().map(bind).collect()
}

/// The barriers of the interval.
async fn barriers(disk: Arc<Disk>, interval: Duration) {
    let mut ticks = tokio::time::interval(interval);
    // After a stall one barrier, not one for each that was missed.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        disk.periodic_barrier();
    }
}

/// Floor and activity map, and the label whenever it is due.
async fn settle(disk: Arc<Disk>) {
    let mut ticks = tokio::time::interval(SETTLE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let all = tokio::select! {
            biased;
            _ = ticks.tick() => true,
            () = disk.label_due.notified() => false,
        };
        let shared = Arc::clone(&disk);
        let stored = blocking(move || if all { shared.settle() } else { shared.remember() }).await;
        if let Ok(Err(error)) = stored {
            tracing::error!(disk = %disk.id, error = chain_text(&error), "state cannot be written; a crash now costs a longer resync");
            // Every record may find a label due now: once per interval is enough to try.
            ticks.tick().await;
        }
    }
}

/// Runs an agent until `drain`.
///
/// # Errors
/// [`AgentError`] if it cannot start or an NBD server fails.
pub async fn run(
    config: &Config,
    overrides: &BTreeMap<DiskId, Overrides>,
    clock: Arc<dyn Clock>,
    mut drain: Drain,
) -> Result<(), AgentError> {
    // First, so that nothing is recorded before somebody takes it.
    let page = match config.metrics_listen {
        Some(listen) => Some(Page::open(listen).await.map_err(|source| AgentError::Page { listen, source })?),
        None => None,
    };
    let mut agent = Agent::start(config, overrides, clock)?;
    let page = page.map(|page| tokio::spawn(page.serve(Arc::clone(&agent.control), drain.clone())));
    tracing::info!(agent = config.id, disks = agent.disks().len(), "agent is up");
    let control = Arc::clone(&agent.control);
    let told = supervisor::tell(config.drain_grace, drain.clone(), move |stopping| control.daemon_state(stopping));
    let supervised = tokio::spawn(told);
    let failed = tokio::select! {
        biased;
        () = drain.wait() => None,
        error = agent.nbd_failed() => Some(error),
    };
    tracing::info!("stopping");
    let clean = agent.stop().instrument(info_span!("stop agent", agent = config.id)).await;
    supervised.abort();
    if let Some(page) = page {
        page.abort();
    }
    tracing::info!(clean, "stopped");
    match failed {
        None => Ok(()),
        Some(source) => Err(AgentError::Listen { listen: config.disks[0].listen.clone(), source }),
    }
}

#[cfg(test)]
pub(crate) mod tests;
