//! The whole of Tidegate under simulated time: real agents, wire, journals, pipelines, uploaders and the real way back,
//! on simulated clocks, networks, disks and a simulated blob store. One number, the seed, decides everything.
//!
//! ```text
//!  guests ─► agents ═══ net: late, lost, doubled ═══► gateways ─► journal disks: torn, slow, lying
//!    │ model                                             └─► store: 5xx, 403, hangs, answers lost
//!    └──────────────► judge ◄── images restored from the store alone
//! ```
//!
//! Read [`world`] (the run), [`faults`] (what goes wrong), [`judge`] (what must hold), then the parts of the world:
//! [`node`], [`net`], [`store`], [`disk`], [`agent`], [`gateway`], [`model`].
//!
//! Everything of a seed runs on one thread: nodes have runtimes of their own with paused time, and run one after the
//! other for a window of [`LOOKAHEAD`]. Nothing passes between nodes faster than that, so the order within a window
//! changes nothing that physics would not allow. Chance comes from the seed alone ([`entropy`], [`dice`]); the same seed
//! gives the same [`trace`] to the last event.

mod agent;
mod dice;
mod disk;
mod entropy;
mod faults;
mod gateway;
mod judge;
pub mod model;
mod net;
mod node;
mod pki;
mod store;
pub mod trace;
mod world;

use std::fs::File;

pub use judge::Counts;
use judge::Judge;
pub use trace::Summary;
use world::World;

/// Microseconds of a window: no datagram is faster.
pub const LOOKAHEAD: u64 = 10_000;

/// Number of a machine.
pub type NodeId = u32;

/// Why a run could not be carried out, which says nothing about the product.
pub type Failed = Box<dyn std::error::Error + Send + Sync>;

/// What a seed gave.
#[derive(Debug)]
pub struct Outcome {
    /// What was found wrong; empty if everything held.
    pub failures: Vec<String>,
    /// The trace.
    pub trace: Summary,
    /// Simulated microseconds.
    pub simulated: u64,
    /// What it amounted to.
    pub counts: Counts,
}

/// Runs one seed on this thread, which must be fresh: what it drew from the system before would make a difference.
///
/// # Errors
/// If the system refuses files or runtimes.
pub fn run_seed(seed: u64, minutes: u64, file: Option<File>) -> Result<Outcome, Failed> {
    entropy::enter(seed);
    trace::start(file);
    let guard = tidegate::flow::sim::enter(seed);
    let mut world = World::new(seed)?;
    let ran = world.run(minutes);
    world.end();
    drop(guard);
    ran?;
    let mut failures = std::mem::take(&mut world.failures);
    let mut counts = Counts::default();
    if failures.is_empty() {
        let mut judge = Judge::new(&world, seed);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        runtime.block_on(judge.judge())?;
        counts = judge.counts;
        failures.append(&mut judge.failures);
        failures.extend(trace::take_panics().into_iter().map(|panic| format!("panic: {panic}")));
    }
    for failure in &failures {
        event!("FAILED {failure}");
    }
    Ok(Outcome { failures, trace: trace::finish(), simulated: world.now, counts })
}
