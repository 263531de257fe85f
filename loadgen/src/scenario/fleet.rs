//! What the largest of the usual process servers carries: 2 TB a day, from many machines at once.
//!
//! Beside it the same machines write to [`crate::bare`]: many small writes cost system calls and wake-ups, which no sum of
//! primitives at full speed holds. The floor is what that costs, and LZ4, AEAD and upload by the byte.

use std::time::Duration;

use super::{Figure, Report, Scenario, gateway_cpu_seconds_per_gib, median, per_second};
use crate::bare::{self, Bare};
use crate::bench::{BenchError, Plan, Stand, limits, measured};
use crate::limit::Primitive;
use crate::payload::Pool;
use crate::run::Plan as RunPlan;

const BYTES_PER_SECOND: u64 = 2_000_000_000_000 / 86_400;
/// Whatever the machine has, the figure is in shares of two cores.
const CORES: f64 = 2.0;
/// Connections, segments and caches are there after so long.
const WARM_UP: Duration = Duration::from_secs(5);
/// Bound of the figure: see docs/PERFORMANCE.md.
const SHARE_AT_MOST: f64 = 0.05;

pub(super) async fn measure(
    plan: &Plan,
    duration: Duration,
    pool: &Pool,
    say: &mut impl FnMut(&str),
) -> Result<Report, BenchError> {
    say("starting sink and gateway");
    let stand = Stand::start(plan).await?;
    let run = RunPlan { bytes_per_second: BYTES_PER_SECOND, duration: Some(WARM_UP), bytes: None, ..stand.plan(plan) };
    say("warm-up");
    measured(&run, pool).await?;
    let bare = Bare::start(plan, None).await?;
    bare.load(&run, pool).await?;
    let long = RunPlan { duration: Some(duration), ..run };
    let (mut runs, mut floors) = (Vec::with_capacity(plan.rounds), Vec::with_capacity(plan.rounds));
    for number in 1..=plan.rounds {
        say(&format!("round {number} of {}", plan.rounds));
        let outcome = measured(&long, pool).await?;
        say(&format!("round {number} of {}: the floor", plan.rounds));
        floors.push((bare.load(&long, pool).await?, limits(plan, pool, &outcome).await?));
        runs.push((format!("Round {number}"), outcome));
    }
    drop(bare);
    say("stopping");
    stand.stop().await?;
    let of = |value: &dyn Fn(&crate::run::outcome::Outcome) -> f64| median(runs.iter().map(|(_, run)| value(run)));
    let share = |run: &crate::run::outcome::Outcome| {
        let during = run.samples.iter().filter(|sample| sample.seconds <= duration.as_secs_f64());
        per_second(&during.copied().collect::<Vec<_>>(), |sample| sample.gateway_cpu_seconds) / CORES
    };
    let bare_share = |floor: &bare::Outcome| floor.cpu_seconds / duration.as_secs_f64() / CORES;
    let by_the_byte = |limits: &crate::limit::Limits| {
        let packed = limits.primitives.iter().filter(|one| ["LZ4", "AES-256-GCM", "HTTP upload"].contains(&one.name));
        packed.map(Primitive::of_payload).sum::<f64>() * BYTES_PER_SECOND as f64 / (1_u64 << 30) as f64 / CORES
    };
    let floor = median(floors.iter().map(|(bare, limits)| bare_share(bare) + by_the_byte(limits)));
    let rounds = runs.iter().map(|(_, run)| run).zip(&floors);
    let over = median(rounds.map(|(run, (bare, limits))| share(run) / (bare_share(bare) + by_the_byte(limits))));
    let figures = vec![
        Figure::at_most("gateway_cpu_share", of(&share), SHARE_AT_MOST),
        Figure::new("floor_cpu_share", floor),
        Figure::new("gateway_over_floor", over),
        Figure::new("floor_receive_store_reply_cpu_share", median(floors.iter().map(|(bare, _)| bare_share(bare)))),
        Figure::new(
            "floor_commits_per_second",
            median(floors.iter().map(|(bare, _)| bare.commits as f64 / duration.as_secs_f64())),
        ),
        Figure::new("gateway_cpu_seconds_per_gib", of(&gateway_cpu_seconds_per_gib)),
        Figure::new("offered_bytes_per_second", BYTES_PER_SECOND as f64),
        Figure::new("journaled_p99_seconds", of(&|run| run.journaled_ack_seconds.p99)),
        Figure::new("vaulted_p99_seconds", of(&|run| run.rpo_seconds.p99)),
    ];
    Ok(Report { scenario: Scenario::Fleet, figures, runs })
}
