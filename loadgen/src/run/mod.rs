//! Agents by the thousand over the real wire protocol, and what they had to wait for.
//!
//! ```text
//!  pool ─► pattern ─► writer ─► sender ═QUIC═► gateway      one task per disk: writes when they are due
//!  (made     where     label,                     │
//!  before)   how much  digest,   book ◄─ ear ◄────┘ acks     one task per disk: checks every ack
//!                      chain      │
//!                                 └─► tally ─► samples, outcome
//! ```
//!
//! Each agent has a certificate, a socket and a connection of its own, as on a machine of its own; nothing is taken in
//! shorter ways than an agent takes it. Not done here, because a figure would hide them: a lost connection is not made
//! again but ends the run as failed.
//!
//! What holds:
//!
//! - The latency of a write counts from the moment at which it was due (see [`pace`]); where this program itself woke up
//!   late, that is told apart as lateness.
//! - Every ack is held against what was sent ([`book`]): acks for what was not sent, that go back, or that say vaulted
//!   before journaled fail the run. At the end everything that was sent must be vaulted.
//! - Payload is never made while something is measured; a digest is, because an agent does that too.
//! - With [`Plan::keep_images`] what each disk must hold is known block by block, and its hash can be compared with that of
//!   a restored image ([`verify`]).

pub mod book;
mod certificates;
pub(crate) mod connect;
pub mod disk;
pub mod outcome;
pub mod pace;
pub mod profile;
mod sampler;
pub mod tally;
pub mod verify;
pub mod writer;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tidegate::flow::{Clock as _, SystemClock};
use tidegate::wire::Transport;
use tokio::task::JoinSet;

use crate::chance::Share;
use crate::payload::Pool;
use crate::process::{self, Usage};
use disk::{Common, Disk, Ended, State};
use outcome::{Gateway, Outcome, Sample};
use profile::{Profile, TraceWrite};
use tally::{Latencies, Tally};

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where the gateway is, `host:port`.
    pub gateway: String,
    /// Folder of the vault's authority, with its key: every agent gets a certificate of its own.
    pub authority: PathBuf,
    /// Agents.
    pub agents: usize,
    /// Disks of each.
    pub disks: usize,
    /// Size of a disk.
    pub disk_bytes: u64,
    /// The kind of load.
    pub profile: Profile,
    /// The lines of [`Profile::Trace`].
    pub trace: Arc<[TraceWrite]>,
    /// Writes that are zeroes.
    pub zero: Share,
    /// What all disks together write per second; zero for as much as the gateway takes.
    pub bytes_per_second: u64,
    /// For so long the rate grows.
    pub ramp: Duration,
    /// For how long it writes.
    pub duration: Option<Duration>,
    /// How much it writes.
    pub bytes: Option<u64>,
    /// What carries the connections.
    pub transport: Transport,
    /// Largest UDP payload that path discovery may try.
    pub mtu_max_bytes: u16,
    /// Decides where and when.
    pub seed: u64,
    /// How long everybody is connected before the first write.
    pub settle: Duration,
    /// How long connecting, and at the end the vault, may take.
    pub patience: Duration,
    /// The gateway's admin port, to see what it counted.
    pub admin: Option<SocketAddr>,
    /// The gateway's process, to see what it used.
    pub gateway_pid: Option<u32>,
    /// Whether what each disk must hold is kept, so that restored images can be compared.
    pub keep_images: bool,
}

/// A run could not be done.
#[derive(Debug)]
pub struct RunError(pub String);

impl std::fmt::Display for RunError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for RunError {}

/// What came of a run, and how each disk ended.
pub struct Done {
    /// Figures.
    pub outcome: Outcome,
    /// Disks.
    pub ended: Vec<Ended>,
}

fn common(plan: &Plan, pool: Pool) -> Arc<Common> {
    Arc::new(Common {
        pool,
        tally: Tally::default(),
        left_bytes: AtomicU64::new(plan.bytes.unwrap_or(u64::MAX)),
        bounded: plan.bytes.is_some(),
        duration: plan.duration,
        patience: plan.patience,
        stop: AtomicBool::new(false),
        clock: SystemClock::new(),
    })
}

/// Runs a plan; `each` is told every second how it goes.
///
/// # Errors
/// If it could not begin. What fails later stands in the outcome.
pub async fn run(plan: &Plan, pool: Pool, each: impl FnMut(&Sample)) -> Result<Done, RunError> {
    let common = common(plan, pool);
    let before = counted(plan).await;
    let started = common.clock.monotonic();
    let disks = connect::connect(plan, &common).await?;
    let connect_seconds = (common.clock.monotonic() - started).as_secs_f64();
    let states: Vec<Arc<State>> = disks.iter().map(Disk::state).collect();
    tokio::time::sleep(plan.settle).await;
    // A peak of memory counts from here; where that is not allowed, it holds what was before.
    if let Some(pid) = plan.gateway_pid {
        let _ = process::forget_peak(pid);
    }
    let at_start = used(plan);
    let (started, mut tasks) = (common.clock.monotonic(), JoinSet::new());
    for disk in disks {
        tasks.spawn(disk.run(started));
    }
    let watched = sampler::watch(plan, &common, &states, started, tasks, each).await;
    let seconds = (common.clock.monotonic() - started).as_secs_f64();
    let at_end = used(plan);
    let after = counted(plan).await;
    let gateway = gateway(before, after, at_start.zip(at_end));
    let times = (connect_seconds, seconds);
    let mut outcome = summary(plan, &common, &watched.total, watched.samples, gateway, times, &watched.ended);
    outcome.gateway_memory_at_start_bytes = at_start.map(|used| used.memory_bytes);
    Ok(Done { outcome, ended: watched.ended })
}

fn used(plan: &Plan) -> Option<Usage> {
    plan.gateway_pid.and_then(|pid| process::usage(pid).ok())
}

async fn counted(plan: &Plan) -> Option<outcome::Counted> {
    let admin = plan.admin?;
    tokio::task::spawn_blocking(move || outcome::Counted::ask(admin)).await.ok().flatten()
}

fn gateway(
    before: Option<outcome::Counted>,
    after: Option<outcome::Counted>,
    used: Option<(Usage, Usage)>,
) -> Option<Gateway> {
    let counted = before.zip(after).map(|(before, after)| after.since(&before));
    let used = used.map(|(before, after)| Usage {
        cpu_seconds: after.cpu_seconds - before.cpu_seconds,
        waits: after.waits.saturating_sub(before.waits),
        preemptions: after.preemptions.saturating_sub(before.preemptions),
        calls: after.calls.saturating_sub(before.calls),
        ..after
    });
    (counted.is_some() || used.is_some()).then_some(Gateway { counted, used })
}

fn summary(
    plan: &Plan,
    common: &Common,
    total: &Latencies,
    samples: Vec<Sample>,
    gateway: Option<Gateway>,
    (connect_seconds, seconds): (f64, f64),
    ended: &[Ended],
) -> Outcome {
    let tally = &common.tally;
    let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let (sent_bytes, sent_records) = (load(&tally.sent_bytes), load(&tally.sent_records));
    let mut failures: Vec<String> =
        ended.iter().filter_map(|disk| disk.failure.as_ref().map(|text| format!("disk {}: {text}", disk.id))).collect();
    if failures.is_empty() {
        for (level, bytes) in [("journaled", load(&tally.journaled_bytes)), ("vaulted", load(&tally.vaulted_bytes))] {
            if bytes != sent_bytes {
                failures.push(format!("{sent_bytes} bytes were sent, but {bytes} acked as {level}"));
            }
        }
        let counted = gateway.as_ref().and_then(|gateway| gateway.counted);
        failures.extend(counted.into_iter().flat_map(|counted| counted.against(sent_records)));
    }
    Outcome {
        profile: plan.profile,
        agents: plan.agents,
        disks_each: plan.disks,
        offered_bytes_per_second: plan.bytes_per_second,
        payload_ratio: 0.0,
        connect_seconds,
        seconds,
        sent_bytes,
        sent_records,
        throughput_bytes_per_second: sent_bytes as f64 / seconds.max(1e-9),
        journaled_ack_seconds: total.journaled(),
        rpo_seconds: total.vaulted(),
        late_seconds_max: load(&tally.late_micros_max) as f64 / 1e6,
        gateway,
        gateway_memory_at_start_bytes: None,
        verified: None,
        failures,
        samples,
    }
}
