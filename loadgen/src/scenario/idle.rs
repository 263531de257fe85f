//! Many agents that are connected and write next to nothing: what each costs the gateway.
//!
//! Memory is what the kernel counts as resident. "Idle" is before the first write, when everybody has been connected for a
//! moment; "trickling" is the last quarter of the time, when what the gateway keeps for its work (caches of its journal,
//! buffers: all of it within its configured memory) is there too.

use std::time::Duration;

use super::{Figure, Report, Scenario, median, per_second, quarters};
use crate::bench::{BenchError, Plan, Stand, because, measured};
use crate::payload::Pool;
use crate::process;
use crate::run::Plan as RunPlan;

/// What a disk writes: one block in so long.
const BLOCK_BYTES: u64 = 4096;
const EVERY_SECONDS: u64 = 5;
/// Everybody is connected for so long before memory counts and writing begins.
const SETTLE: Duration = Duration::from_secs(10);
/// Ten thousand handshakes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(900);
/// Bounds of the figures: see docs/PERFORMANCE.md.
const MEMORY_BYTES_AT_MOST: f64 = 65_536.0;
const REQUESTS_AT_MOST: f64 = 1.5;

pub(super) async fn measure(
    plan: &Plan,
    duration: Duration,
    pool: &Pool,
    say: &mut impl FnMut(&str),
) -> Result<Report, BenchError> {
    say("starting sink and gateway");
    let stand = Stand::start(plan).await?;
    let agents = plan.agents as f64;
    let unknown = because("the gateway's memory is not known");
    let before = process::usage(stand.gateway.id()).map_err(|error| unknown(&error))?.memory_bytes as f64;
    say(&format!("connecting {} agents", plan.agents));
    let run = RunPlan {
        bytes_per_second: (plan.agents * plan.disks) as u64 * BLOCK_BYTES / EVERY_SECONDS,
        duration: Some(duration),
        bytes: None,
        settle: SETTLE,
        patience: PATIENCE,
        ..stand.plan(plan)
    };
    let outcome = measured(&run, pool).await?;
    say("stopping");
    stand.stop().await?;
    let samples = &outcome.samples;
    let (_, last) = quarters(samples, duration);
    let each = |bytes: f64| (bytes - before) / agents;
    let connected = outcome.gateway_memory_at_start_bytes.map_or(0.0, |bytes| bytes as f64);
    let trickling = median(last.iter().filter_map(|sample| sample.gateway_memory_bytes).map(|bytes| bytes as f64));
    let requests = per_second(samples, |sample| sample.blob_requests.map(|count| count as f64));
    let cores = per_second(samples, |sample| sample.gateway_cpu_seconds);
    let figures = vec![
        Figure::new("agents", agents),
        Figure::new("connect_seconds", outcome.connect_seconds),
        Figure::at_most("memory_per_idle_agent_bytes", each(connected), MEMORY_BYTES_AT_MOST),
        Figure::at_most("memory_per_trickling_agent_bytes", each(trickling), MEMORY_BYTES_AT_MOST),
        Figure::at_most("blob_requests_per_second", requests, REQUESTS_AT_MOST),
        Figure::new("gateway_cpu_share", cores / 2.0),
        Figure::new("memory_before_bytes", before),
    ];
    Ok(Report { scenario: Scenario::Idle, figures, runs: vec![("A trickle".into(), outcome)] })
}
