//! A long time at 70 % of what the gateway carries, and what is different at its end.

use std::time::Duration;

use super::{Figure, Report, Scenario, median, per_second, quarters};
use crate::bench::{BenchError, Plan, Stand, measured};
use crate::payload::Pool;
use crate::run::Plan as RunPlan;
use crate::run::outcome::Sample;

const LOAD_PERCENT: f64 = 70.0;
/// Before the throughput counts, this part of the bytes is written.
const WARM_UP_PART: u64 = 8;
/// Bound of every drift: see docs/PERFORMANCE.md.
const DRIFT_AT_MOST: f64 = 0.05;

pub(super) async fn measure(
    plan: &Plan,
    duration: Duration,
    pool: &Pool,
    say: &mut impl FnMut(&str),
) -> Result<Report, BenchError> {
    say("starting sink and gateway");
    let stand = Stand::start(plan).await?;
    let full = stand.plan(plan);
    say("warm-up");
    measured(&RunPlan { bytes: Some(plan.bytes / WARM_UP_PART), ..full.clone() }, pool).await?;
    say("full load");
    let at_full = measured(&full, pool).await?;
    let rate = at_full.throughput_bytes_per_second * LOAD_PERCENT / 100.0;
    say(&format!("{LOAD_PERCENT} % load, {:.0} MB/s for {} s", rate / 1e6, duration.as_secs()));
    let long = RunPlan { bytes_per_second: rate as u64, duration: Some(duration), bytes: None, ..full };
    let outcome = measured(&long, pool).await?;
    say("stopping");
    stand.stop().await?;
    let figures = figures(&outcome.samples, duration, rate);
    let runs = vec![("Full load".into(), at_full), (format!("{LOAD_PERCENT} % load"), outcome)];
    Ok(Report { scenario: Scenario::Soak, figures, runs })
}

/// How much more the last quarter has than the first, as a part of the first.
fn figures(samples: &[Sample], duration: Duration, rate: f64) -> Vec<Figure> {
    let (first, last) = quarters(samples, duration);
    let drift = |name, of: &dyn Fn(&[Sample]) -> f64| Figure::within(name, of(last) / of(first) - 1.0, DRIFT_AT_MOST);
    let middle = |part: &[Sample], of: fn(&Sample) -> f64| median(part.iter().map(of));
    let memory = |part: &[Sample]| {
        median(part.iter().filter_map(|sample| sample.gateway_memory_bytes).map(|bytes| bytes as f64))
    };
    let throughput = |part: &[Sample]| per_second(part, |sample| Some(sample.vaulted_bytes as f64));
    vec![
        Figure::new("offered_bytes_per_second", rate),
        drift("drift_memory", &memory),
        drift("drift_throughput", &throughput),
        drift("drift_journaled_p50", &|part| middle(part, |sample| sample.journaled.p50)),
        drift("drift_journaled_p99", &|part| middle(part, |sample| sample.journaled.p99)),
        drift("drift_vaulted_p50", &|part| middle(part, |sample| sample.vaulted.p50)),
        drift("drift_vaulted_p99", &|part| middle(part, |sample| sample.vaulted.p99)),
        Figure::new("memory_first_quarter_bytes", memory(first)),
        Figure::new("memory_last_quarter_bytes", memory(last)),
        Figure::new("journaled_p99_last_quarter_seconds", middle(last, |sample| sample.journaled.p99)),
        Figure::new("vaulted_p99_last_quarter_seconds", middle(last, |sample| sample.vaulted.p99)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::tally::Latency;

    #[test]
    fn a_drift_is_seen_where_it_is_and_nowhere_else() {
        let sample = |at: u64| Sample {
            seconds: at as f64,
            vaulted_bytes: at * 1000,
            gateway_memory_bytes: Some((100 << 20) + (at << 20)),
            journaled: Latency { count: 1, p50: 0.001, p99: 0.002, ..Latency::default() },
            vaulted: Latency { count: 1, p50: 0.5, p99: if at > 80 { 1.0 } else { 0.8 }, ..Latency::default() },
            ..Sample::default()
        };
        let samples: Vec<Sample> = (1..=105).map(sample).collect();
        let figures = figures(&samples, Duration::from_secs(100), 1.0);
        let missed: Vec<_> = figures.iter().filter(|figure| !figure.is_met()).map(|figure| figure.name).collect();
        assert_eq!(missed, ["drift_memory", "drift_vaulted_p99"]);
    }
}
