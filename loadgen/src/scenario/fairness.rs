//! Whether one disk that writes as fast as it can makes the others wait.
//!
//! The flood has threads of its own, as if it came from another process: the light disks wait for the gateway, not for
//! the flood's own work. Both share the cores of this machine with the gateway all the same, so the figure tells more
//! than the gateway's part of it.

use std::time::Duration;

use super::{Figure, Report, Scenario, median};
use crate::bare::{self, Bare};
use crate::bench::{BenchError, Plan, Stand, because, measured};
use crate::payload::Pool;
use crate::run::outcome::Outcome;
use crate::run::profile::Profile;
use crate::run::{self, Plan as RunPlan};

/// What each light disk writes.
const LIGHT_WRITES_PER_SECOND: u64 = 10;
/// The flood begins so long before the light disks and ends so long after them.
const LEAD: Duration = Duration::from_secs(2);
const TRAIL: Duration = Duration::from_secs(4);
/// Bound of the figure: see docs/PERFORMANCE.md.
const RATIO_AT_MOST: f64 = 2.0;

pub(super) async fn measure(
    plan: &Plan,
    duration: Duration,
    pool: &Pool,
    say: &mut impl FnMut(&str),
) -> Result<Report, BenchError> {
    say("starting sink and gateway");
    let stand = Stand::start(plan).await?;
    let usual = stand.plan(plan);
    let rate = (plan.agents * plan.disks) as u64 * plan.profile.typical_bytes() * LIGHT_WRITES_PER_SECOND;
    let light = RunPlan { bytes_per_second: rate, duration: Some(duration), bytes: None, ..usual.clone() };
    let flood = RunPlan {
        agents: 1,
        disks: 1,
        profile: Profile::Files,
        bytes_per_second: 0,
        duration: Some(LEAD + duration + TRAIL),
        bytes: None,
        admin: None,
        gateway_pid: None,
        ..usual
    };
    say("warm-up");
    beside(&light, &RunPlan { duration: Some(LEAD), ..flood.clone() }, pool).await?;
    let bare = Bare::start(plan, None).await?;
    bare.load(&RunPlan { duration: Some(LEAD), ..light.clone() }, pool).await?;
    let (mut alone_all, mut beside_all, mut floods) = (Vec::new(), Vec::new(), Vec::new());
    let mut floors = Vec::new();
    for number in 1..=plan.rounds {
        say(&format!("round {number} of {}: light disks alone", plan.rounds));
        alone_all.push(measured(&light, pool).await?);
        say(&format!("round {number} of {}: beside a flood", plan.rounds));
        let (beside_it, of_flood) = beside(&light, &flood, pool).await?;
        beside_all.push(beside_it);
        floods.push(of_flood);
        say(&format!("round {number} of {}: the floor", plan.rounds));
        let alone = bare.load(&light, pool).await?;
        floors.push((alone, beside_while(bare.load(&light, pool), &flood, pool).await?.0));
    }
    drop(bare);
    say("stopping");
    stand.stop().await?;
    let figures = figures(&alone_all, &beside_all, &floods, &floors);
    let mut runs = Vec::new();
    for (number, ((alone, beside), flood)) in alone_all.into_iter().zip(beside_all).zip(floods).enumerate() {
        let number = number + 1;
        runs.push((format!("Round {number}: light disks alone"), alone));
        runs.push((format!("Round {number}: light disks beside a flood"), beside));
        runs.push((format!("Round {number}: the flood"), flood));
    }
    Ok(Report { scenario: Scenario::Fairness, figures, runs })
}

fn figures(
    alone: &[Outcome],
    beside: &[Outcome],
    floods: &[Outcome],
    floors: &[(bare::Outcome, bare::Outcome)],
) -> Vec<Figure> {
    let of = |runs: &[Outcome], value: fn(&Outcome) -> f64| median(runs.iter().map(value));
    let p99 = |run: &Outcome| run.journaled_ack_seconds.p99;
    let ratio = median(alone.iter().zip(beside).map(|(alone, beside)| p99(beside) / p99(alone).max(1e-9)));
    let floor = |of: fn(&(bare::Outcome, bare::Outcome)) -> f64| median(floors.iter().map(of));
    vec![
        Figure::at_most("fairness_ratio", ratio, RATIO_AT_MOST),
        Figure::new("floor_ratio", floor(|(alone, beside)| beside.ack_seconds.p99 / alone.ack_seconds.p99.max(1e-9))),
        Figure::new("floor_alone_p99_seconds", floor(|(alone, _)| alone.ack_seconds.p99)),
        Figure::new("floor_beside_p50_seconds", floor(|(_, beside)| beside.ack_seconds.p50)),
        Figure::new("floor_beside_p99_seconds", floor(|(_, beside)| beside.ack_seconds.p99)),
        Figure::new("alone_journaled_p50_seconds", of(alone, |run| run.journaled_ack_seconds.p50)),
        Figure::new("alone_journaled_p99_seconds", of(alone, |run| run.journaled_ack_seconds.p99)),
        Figure::new("beside_journaled_p50_seconds", of(beside, |run| run.journaled_ack_seconds.p50)),
        Figure::new("beside_journaled_p99_seconds", of(beside, |run| run.journaled_ack_seconds.p99)),
        Figure::new("alone_vaulted_p99_seconds", of(alone, |run| run.rpo_seconds.p99)),
        Figure::new("beside_vaulted_p99_seconds", of(beside, |run| run.rpo_seconds.p99)),
        Figure::new("flood_bytes_per_second", of(floods, |run| run.throughput_bytes_per_second)),
        Figure::new("light_late_seconds_max", of(beside, |run| run.late_seconds_max)),
    ]
}

/// The light disks while the flood runs; returns both.
async fn beside(light: &RunPlan, flood: &RunPlan, pool: &Pool) -> Result<(Outcome, Outcome), BenchError> {
    beside_while(measured(light, pool), flood, pool).await
}

/// Something while the flood runs; returns both.
async fn beside_while<T>(
    light: impl Future<Output = Result<T, BenchError>>,
    flood: &RunPlan,
    pool: &Pool,
) -> Result<(T, Outcome), BenchError> {
    let (plan, of_flood) = (flood.clone(), pool.clone());
    let flood = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("flood").build();
        let runtime = runtime.map_err(|error| because("no threads for the flood")(&error))?;
        let done = runtime.block_on(run::run(&plan, of_flood, |_| ()));
        done.map(|done| done.outcome).map_err(|error| because("the flood did not begin")(&error))
    });
    tokio::time::sleep(LEAD).await;
    let light = light.await?;
    let flood = flood.await.map_err(|error| because("the flood")(&error))??;
    Ok((light, flood))
}
