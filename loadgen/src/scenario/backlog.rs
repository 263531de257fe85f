//! A line to the store that takes a fraction of what the agents write: what a gateway's memory comes to when all of its budget is used.
//!
//! The journal fills, every queue behind it is full, and each commit is read from the disk again when its turn comes. At full speed over
//! a wide line most of the budget stands empty.

use std::time::Duration;

use super::{Figure, Report, Scenario, gateway_cpu_seconds_per_gib, median};
use crate::bench::{BenchError, MEMORY_OVER_BYTES_AT_MOST, Plan, Stand, measured};
use crate::payload::Pool;
use crate::run::Plan as RunPlan;
use crate::run::outcome::Outcome;

/// What the store takes per second unless something else is asked for.
const UPLINK_BYTES_PER_SECOND: u64 = 20 << 20;

pub(super) async fn measure(
    plan: &Plan,
    duration: Duration,
    pool: &Pool,
    say: &mut impl FnMut(&str),
) -> Result<Report, BenchError> {
    let uplink_bytes_per_second = match plan.uplink_bytes_per_second {
        0 => UPLINK_BYTES_PER_SECOND,
        asked => asked,
    };
    let plan = &Plan { uplink_bytes_per_second, ..plan.clone() };
    say("starting sink and gateway");
    let stand = Stand::start(plan).await?;
    let run = RunPlan { duration: Some(duration), bytes: None, ..stand.plan(plan) };
    let mut runs = Vec::with_capacity(plan.rounds);
    for number in 1..=plan.rounds {
        say(&format!("round {number} of {}", plan.rounds));
        runs.push((format!("Round {number}"), measured(&run, pool).await?));
    }
    say("stopping");
    stand.stop().await?;
    let of = |value: &dyn Fn(&Outcome) -> f64| median(runs.iter().map(|(_, run)| value(run)));
    // What is in pieces after one round is there in the next.
    let peaks = runs.iter().filter_map(|(_, run)| Some(run.gateway?.used?.memory_peak_bytes));
    let peak = peaks.max().unwrap_or(0) as f64;
    let over = peak - plan.memory_bytes as f64;
    let figures = vec![
        Figure::at_most("memory_over_budget_bytes", over, MEMORY_OVER_BYTES_AT_MOST),
        Figure::new("memory_peak_bytes", peak),
        Figure::new("uplink_bytes_per_second", uplink_bytes_per_second as f64),
        Figure::new("throughput_bytes_per_second", of(&|run| run.throughput_bytes_per_second)),
        Figure::new("gateway_cpu_seconds_per_gib", of(&gateway_cpu_seconds_per_gib)),
        Figure::new("vaulted_p99_seconds", of(&|run| run.rpo_seconds.p99)),
    ];
    Ok(Report { scenario: Scenario::Backlog, figures, runs })
}
