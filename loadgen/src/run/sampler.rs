//! Looks at a run every second until all its disks have ended.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tidegate::flow::Clock as _;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::disk::{Common, Ended, State};
use super::outcome::{Counted, Sample};
use super::tally::Latencies;
use super::{Plan, counted, used};

const EVERY: Duration = Duration::from_secs(1);
/// Samples that are kept: a day. A longer run keeps its first day and its sums.
const SAMPLES_MAX: usize = 86_400;

/// What was seen.
pub(super) struct Watched {
    pub(super) samples: Vec<Sample>,
    pub(super) total: Latencies,
    pub(super) ended: Vec<Ended>,
}

pub(super) async fn watch(
    plan: &Plan,
    common: &Common,
    states: &[Arc<State>],
    started: Duration,
    mut tasks: JoinSet<Ended>,
    mut each: impl FnMut(&Sample),
) -> Watched {
    let mut watched = Watched { samples: Vec::new(), total: Latencies::default(), ended: Vec::new() };
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks.tick().await;
    loop {
        tokio::select! {
            biased;
            ended = tasks.join_next() => match ended {
                Some(Ok(ended)) => watched.ended.push(ended),
                // A panic has told itself; the sums at the end will not come out.
                Some(Err(_)) => common.stop.store(true, Ordering::Relaxed),
                None => break,
            },
            _ = ticks.tick() => watched.look(plan, common, states, started, &mut each).await,
        }
    }
    watched.look(plan, common, states, started, &mut each).await;
    watched
}

impl Watched {
    async fn look(
        &mut self,
        plan: &Plan,
        common: &Common,
        states: &[Arc<State>],
        started: Duration,
        each: &mut impl FnMut(&Sample),
    ) {
        let taken = common.tally.take();
        self.total.add(&taken);
        let oldest = states.iter().filter_map(|state| state.oldest()).max().unwrap_or_default();
        let (used, counted): (_, Option<Counted>) = (used(plan), counted(plan).await);
        let load = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
        let sample = Sample {
            seconds: (common.clock.monotonic() - started).as_secs_f64(),
            sent_bytes: load(&common.tally.sent_bytes),
            journaled_bytes: load(&common.tally.journaled_bytes),
            vaulted_bytes: load(&common.tally.vaulted_bytes),
            journaled: taken.journaled(),
            vaulted: taken.vaulted(),
            oldest_seconds: oldest.as_secs_f64(),
            gateway_memory_bytes: used.map(|used| used.memory_bytes),
            gateway_cpu_seconds: used.map(|used| used.cpu_seconds),
            journal_used_bytes: counted.map(|counted| counted.journal_used_bytes),
            blob_requests: counted.map(|counted| counted.blob_requests),
        };
        each(&sample);
        if self.samples.len() < SAMPLES_MAX {
            self.samples.push(sample);
        }
    }
}
