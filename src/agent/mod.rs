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
//! guest's writes), [`activity`] and [`state`] (what survives a crash), [`disk`] (all of that in one), [`replicator`] and
//! [`link`] (the way to the gateway), [`points`] and [`control`] (what an operator asks for).
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
//! Not owned here: the wire's protocol, durability at the other end, which gateway carries what, who may do it.
//!
//! Shutdown: NBD servers stop first and answer what they took; a last barrier is made; everything is sent and waited for
//! until it is vaulted or the grace is over; then the state is written, clean if nothing was left.
//!
//! Crash: the next start finds no clean mark, marks the active regions, asks for a new epoch that forks at the floor or
//! wherever the vault has come since, and copies what is marked inside a sync span. With state or map lost it copies the
//! whole disk. Nothing is compared by hand, nothing waits: the guest writes all the while.
//!
//! What it cannot notice: a disk and state directory rolled back together (a snapshot of the machine that was restored
//! from elsewhere). After that, `tidegate agent --resync DISK`.

pub mod activity;
pub mod chunk_set;
pub mod clock;
pub mod config;
pub mod control;
pub mod dirty;
pub mod disk;
pub mod link;
pub mod points;
pub mod queue;
pub mod range_lock;
pub mod replicator;
pub mod splitter;
pub mod state;
pub mod tracker;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use self::clock::AgentClock;
use self::config::{Config, DiskConfig};
use self::control::{Control, SocketError};
use self::disk::{Disk, DiskError, Overrides, Shared};
use self::link::LinkState;
use self::replicator::CopyPace;
use self::splitter::Splitter;
use self::state::{StateDir, StateError};
use crate::fault::{Classify, Fault, chain_text};
use crate::flow::{Budget, Clock, Drain, DrainTrigger, blocking};
use crate::nbd::file::SourceError;
use crate::nbd::{Export, FileExport, Listen, Server, ServerLimits};
use crate::types::DiskId;
use crate::wire::Net;

/// How often the floor is persisted and the map cleared. A crash resyncs about what was active in this time and what was
/// not vaulted; each round costs two small syncs and a flush of the disk.
const SETTLE_INTERVAL: Duration = Duration::from_secs(5);

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
            Self::Listen { .. } => Fault::Fatal,
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
    tasks: JoinSet<()>,
    drain_grace: Duration,
}

/// Why one disk is left out.
fn open_disk(disk: &DiskConfig, shared: &Shared, overrides: Overrides) -> Result<Disk, String> {
    let open = || -> Result<Disk, Box<dyn std::error::Error>> {
        let source = FileExport::open(disk.id.as_str(), &disk.path, false).map_err(|error: SourceError| error)?;
        let opened: Result<Disk, DiskError> =
            Disk::open(Arc::new(source), &disk.path, disk.queue_bytes, shared.clone(), overrides);
        Ok(opened?)
    };
    open().map_err(|error| chain_text(error.as_ref()))
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
        let shared = Shared {
            clock: Arc::new(AgentClock::new(clock)),
            budget: Budget::new(config.memory_bytes),
            dir: Arc::new(StateDir::open(&config.state_dir)?),
        };
        let (mut disks, mut refused) = (Vec::new(), BTreeMap::new());
        let mut served: Vec<(Listen, Vec<Arc<dyn Export>>)> = Vec::new();
        for disk in &config.disks {
            match open_disk(disk, &shared, overrides.get(&disk.id).copied().unwrap_or_default()) {
                Ok(opened) => {
                    let opened = Arc::new(opened);
                    let export: Arc<dyn Export> = Arc::new(Splitter::new(Arc::clone(&opened)));
                    match served.iter_mut().find(|(listen, _)| *listen == disk.listen) {
                        Some((_, exports)) => exports.push(export),
                        None => served.push((disk.listen.clone(), vec![export])),
                    }
                    disks.push(opened);
                }
                Err(error) => {
                    tracing::error!(disk = %disk.id, error, "disk is not protected");
                    refused.insert(disk.id.clone(), error);
                }
            }
        }
        if disks.is_empty() {
            let first = refused.into_values().next().unwrap_or_default();
            return Err(AgentError::NoDisk { count: config.disks.len(), first });
        }
        disks.sort_by(|a, b| a.id.cmp(&b.id));
        Self::serve(config, &shared, disks, refused, served)
    }

    fn serve(
        config: &Config,
        shared: &Shared,
        disks: Vec<Arc<Disk>>,
        refused: BTreeMap<DiskId, String>,
        served: Vec<(Listen, Vec<Arc<dyn Export>>)>,
    ) -> Result<Self, AgentError> {
        let socket = control::bind(&config.state_dir)?;
        let (nbd_stop, nbd_drain) = DrainTrigger::new();
        let mut nbd = JoinSet::new();
        for (listen, exports) in served {
            let shown = listen.clone();
            let server = Server::bind(listen, exports, ServerLimits::default())
                .map_err(|source| AgentError::Listen { listen: shown, source })?;
            // The accept loop has a thread of its own: no storm of connections delays replication.
            let (runtime, drain) = (tokio::runtime::Handle::current(), nbd_drain.clone());
            nbd.spawn_blocking(move || runtime.block_on(server.run(drain)));
        }
        let mut tasks = JoinSet::new();
        let (publish, link) = watch::channel(LinkState::default());
        tasks.spawn(link::run(
            config.gateways.clone(),
            config.tls.clone(),
            Arc::clone(&shared.clock),
            Net::system(),
            publish,
        ));
        let pace = CopyPace { parallel: config.copy_parallel, rate_bytes: config.copy_rate_bytes };
        for disk in &disks {
            tasks.spawn(replicator::run(Arc::clone(disk), link.clone(), pace));
            tasks.spawn(barriers(Arc::clone(disk), config.barrier_interval));
            tasks.spawn(settle(Arc::clone(disk)));
        }
        let control = Arc::new(Control { agent: config.id.clone(), disks: disks.clone(), refused, link });
        tasks.spawn(control::serve(socket, Arc::clone(&control)));
        Ok(Self { disks, control, nbd, nbd_stop, tasks, drain_grace: config.drain_grace })
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
        if tokio::time::timeout(self.drain_grace, vaulted).await.is_err() {
            tracing::warn!("not everything is vaulted: the next start compares what was active");
        }
        self.tasks.shutdown().await;
        let mut clean = true;
        for disk in std::mem::take(&mut self.disks) {
            let id = disk.id.clone();
            let closed = blocking(move || disk.close()).await;
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

/// Floor and activity map.
async fn settle(disk: Arc<Disk>) {
    let mut ticks = tokio::time::interval(SETTLE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let shared = Arc::clone(&disk);
        if let Ok(Err(error)) = blocking(move || shared.settle()).await {
            tracing::error!(disk = %disk.id, error = chain_text(&error), "state cannot be written; a crash now costs a longer resync");
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
    let mut agent = Agent::start(config, overrides, clock)?;
    tracing::info!(agent = config.id, disks = agent.disks().len(), "agent is up");
    let failed = tokio::select! {
        () = drain.wait() => None,
        error = agent.nbd_failed() => Some(error),
    };
    tracing::info!("stopping");
    let clean = agent.stop().await;
    tracing::info!(clean, "stopped");
    match failed {
        None => Ok(()),
        Some(source) => Err(AgentError::Listen { listen: config.disks[0].listen.clone(), source }),
    }
}

#[cfg(test)]
mod tests;
