//! Loads that stand for a way in which gateways are used, each with the figures that count there and the bounds that they
//! are held against.
//!
//! ```text
//!  idle      many agents, a trickle         memory per agent, requests to the store
//!  fleet     2 TB a day from 450 disks      share of two cores
//!  fairness  99 light disks, one that       how much longer the light ones wait
//!            floods or does not
//!  backlog   more than the line takes       memory over what is configured
//!  soak      70 % of what it can carry      what changes from the first quarter to the last
//!  nbd       a guest at the agent's disk    its throughput over that at qemu-nbd
//!  restore   a disk back from the vault     processor time over that of its primitives
//! ```
//!
//! Sink and gateway are those of [`crate::bench`]: processes of their own on this machine.

mod backlog;
mod fairness;
mod fleet;
mod idle;
mod nbd;
mod restore;
mod soak;

use std::time::Duration;

use serde::Serialize;
use serde::ser::SerializeMap as _;
use tidegate::cli::quickstart::site::Site;

use crate::bench::{BenchError, Plan};
use crate::payload::Pool;
use crate::run::outcome::{Outcome, Sample};
use crate::run::profile::Profile;

/// Size of a disk where nothing else is asked for.
pub const DISK_BYTES_USUAL: u64 = 1 << 30;
/// How long everything may take to be copied.
const COPY_PATIENCE: Duration = Duration::from_secs(600);
const LOOK: Duration = Duration::from_millis(200);

/// A way in which a gateway is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// Many agents that write next to nothing.
    Idle,
    /// 225 machines with two disks each that write 2 TB a day.
    Fleet,
    /// Light disks, with and without one beside them that writes as fast as it can.
    Fairness,
    /// More than the line to the store takes, until the journal is full.
    Backlog,
    /// Long.
    Soak,
    /// A guest that writes through the agent.
    Nbd,
    /// A disk that comes back from the vault.
    Restore,
}

impl std::str::FromStr for Scenario {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "idle" => Self::Idle,
            "fleet" => Self::Fleet,
            "fairness" => Self::Fairness,
            "backlog" => Self::Backlog,
            "soak" => Self::Soak,
            "nbd" => Self::Nbd,
            "restore" => Self::Restore,
            _ => return Err("write idle, fleet, fairness, backlog, soak, nbd or restore".into()),
        })
    }
}

/// What a scenario is unless somebody asks for something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usual {
    /// Its name.
    pub name: &'static str,
    /// Agents.
    pub agents: u32,
    /// Disks of each.
    pub disks: u32,
    /// What the disks write.
    pub profile: Profile,
    /// How long each load is kept.
    pub duration: Duration,
    /// How often it is repeated.
    pub rounds: u32,
    /// Size of a disk.
    pub disk_bytes: u64,
}

impl Scenario {
    /// Its usual form.
    #[must_use]
    pub const fn usual(self) -> Usual {
        let (name, agents, disks, profile, seconds, rounds) = match self {
            Self::Idle => ("idle", 10_000, 1, Profile::Idle, 600, 1),
            Self::Fleet => ("fleet", 225, 2, Profile::Mixed, 30, 3),
            Self::Fairness => ("fairness", 99, 1, Profile::Oltp8, 20, 3),
            Self::Backlog => ("backlog", 4, 2, Profile::Files, 40, 3),
            Self::Soak => ("soak", 4, 2, Profile::Files, 3600, 1),
            Self::Nbd => ("nbd", 1, 1, Profile::Files, 10, 5),
            Self::Restore => ("restore", 1, 1, Profile::Files, 0, 3),
        };
        let disk_bytes = if matches!(self, Self::Restore) { 4 << 30 } else { DISK_BYTES_USUAL };
        Usual { name, agents, disks, profile, duration: Duration::from_secs(seconds), rounds, disk_bytes }
    }

    /// Measures.
    ///
    /// # Errors
    /// If it could not be done. A run that failed stands in the report.
    pub async fn measure(
        self,
        plan: &Plan,
        duration: Duration,
        pool: &Pool,
        say: &mut impl FnMut(&str),
    ) -> Result<Report, BenchError> {
        match self {
            Self::Idle => idle::measure(plan, duration, pool, say).await,
            Self::Fleet => fleet::measure(plan, duration, pool, say).await,
            Self::Fairness => fairness::measure(plan, duration, pool, say).await,
            Self::Backlog => backlog::measure(plan, duration, pool, say).await,
            Self::Soak => soak::measure(plan, duration, pool, say).await,
            Self::Nbd => nbd::measure(plan, duration, pool, say).await,
            Self::Restore => restore::measure(plan, say).await,
        }
    }
}

/// What a figure is meant to be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bound {
    /// Not more.
    AtMost(f64),
    /// Not more, whatever its sign.
    Within(f64),
    /// Not less.
    AtLeast(f64),
}

impl Bound {
    /// Whether a value keeps to it.
    #[must_use]
    pub fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::Within(most) => value.abs() <= most,
            Self::AtLeast(least) => value >= least,
        }
    }
}

/// A figure, and what it is meant to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figure {
    /// Name and unit.
    pub name: &'static str,
    /// What was measured.
    pub value: f64,
    /// What it is meant to be.
    pub bound: Option<Bound>,
}

impl Figure {
    const fn new(name: &'static str, value: f64) -> Self {
        Self { name, value, bound: None }
    }

    const fn at_most(name: &'static str, value: f64, most: f64) -> Self {
        Self { name, value, bound: Some(Bound::AtMost(most)) }
    }

    const fn within(name: &'static str, value: f64, most: f64) -> Self {
        Self { name, value, bound: Some(Bound::Within(most)) }
    }

    const fn at_least(name: &'static str, value: f64, least: f64) -> Self {
        Self { name, value, bound: Some(Bound::AtLeast(least)) }
    }

    /// Whether it is what it is meant to be.
    #[must_use]
    pub fn is_met(&self) -> bool {
        self.bound.is_none_or(|bound| bound.is_met(self.value))
    }
}

/// A figure's bound, and whether it keeps to it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Target {
    /// Name and unit.
    pub figure: &'static str,
    /// What it is meant to be.
    #[serde(flatten)]
    pub bound: Bound,
    /// Whether it is.
    pub met: bool,
}

impl Target {
    /// Of a figure that was measured.
    #[must_use]
    pub fn new(figure: &'static str, value: f64, bound: Bound) -> Self {
        Self { figure, bound, met: bound.is_met(value) }
    }
}

/// What came of a scenario.
#[derive(Clone, Debug)]
pub struct Report {
    /// Which.
    pub scenario: Scenario,
    /// What counts there.
    pub figures: Vec<Figure>,
    /// All that was measured, with what it was called.
    pub runs: Vec<(String, Outcome)>,
}

impl Report {
    /// What went wrong in any of the runs.
    pub fn failures(&self) -> impl Iterator<Item = &String> {
        self.runs.iter().flat_map(|(_, run)| &run.failures)
    }
}

/// One run as it stands in the object.
#[derive(Serialize)]
struct Named<'a> {
    title: &'a str,
    run: &'a Outcome,
}

impl Serialize for Report {
    /// Figures are fields of the first level; those with a bound stand in `targets` once more.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("scenario", &self.scenario)?;
        for figure in &self.figures {
            map.serialize_entry(figure.name, &figure.value)?;
        }
        let target = |figure: &Figure| Some(Target::new(figure.name, figure.value, figure.bound?));
        let targets: Vec<_> = self.figures.iter().filter_map(target).collect();
        map.serialize_entry("targets", &targets)?;
        let runs: Vec<_> = self.runs.iter().map(|(title, run)| Named { title, run }).collect();
        map.serialize_entry("runs", &runs)?;
        map.serialize_entry("failures", &self.failures().collect::<Vec<_>>())?;
        map.end()
    }
}

/// Waits until all of a disk is in the vault. Blocks.
fn wait_copied(site: &Site, disk: &str) -> Result<(), BenchError> {
    for _ in 0..COPY_PATIENCE.as_millis() / LOOK.as_millis() {
        let status = site.status(disk);
        if status.is_some_and(|status| status.state == "protected" && status.unvaulted_bytes + status.dirty_bytes == 0)
        {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
    Err(BenchError(format!("the disk was not copied within {COPY_PATIENCE:?}")))
}

/// The middle of some values; zero if there are none.
fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    crate::bench::Spread::of(values).median
}

/// Processor time of the gateway during a run per GiB of its payload; zero if it is not known.
fn gateway_cpu_seconds_per_gib(run: &Outcome) -> f64 {
    let used = run.gateway.and_then(|gateway| gateway.used).unwrap_or_default();
    used.cpu_seconds * (1_u64 << 30) as f64 / (run.sent_bytes as f64).max(1.0)
}

/// Growth per second of a sum from the first sample that knows it to the last one; zero if fewer than two do.
fn per_second(samples: &[Sample], of: impl Fn(&Sample) -> Option<f64>) -> f64 {
    let mut known = samples.iter().filter_map(|sample| Some((sample.seconds, of(sample)?)));
    match (known.next(), known.next_back()) {
        (Some(first), Some(last)) if last.0 > first.0 => (last.1 - first.1) / (last.0 - first.0),
        _ => 0.0,
    }
}

/// The samples of the first and of the last quarter of a run that wrote for `duration`.
fn quarters(samples: &[Sample], duration: Duration) -> (&[Sample], &[Sample]) {
    let end = duration.as_secs_f64();
    let before = |seconds: f64| samples.partition_point(|sample| sample.seconds < seconds);
    (&samples[..before(end * 0.25)], &samples[before(end * 0.75)..before(end)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Sample> {
        let sample = |at: u64| Sample { seconds: at as f64, blob_requests: Some(3 * at), ..Sample::default() };
        (1..=20).map(sample).collect()
    }

    #[test]
    fn quarters_are_those_of_the_time_and_rates_those_of_the_whole() {
        let samples = samples();
        let (first, last) = quarters(&samples, Duration::from_secs(16));
        let seconds = |part: &[Sample]| part.iter().map(|sample| sample.seconds as u64).collect::<Vec<_>>();
        assert_eq!((seconds(first), seconds(last)), (vec![1, 2, 3], vec![12, 13, 14, 15]));
        assert!((per_second(&samples, |sample| sample.blob_requests.map(|count| count as f64)) - 3.0).abs() < 1e-9);
        assert_eq!(per_second(&samples, |_| None), 0.0);
        assert_eq!(per_second(&samples[..1], |_| Some(1.0)), 0.0);
    }

    #[test]
    fn figures_are_fields_and_bounds_are_told() {
        let figures =
            vec![Figure::within("drift", -0.06, 0.05), Figure::new("count", 3.0), Figure::at_least("part", 0.9, 0.8)];
        assert_eq!(figures.iter().map(Figure::is_met).collect::<Vec<_>>(), [false, true, true]);
        let report = Report { scenario: Scenario::Soak, figures, runs: Vec::new() };
        let json = serde_json::to_value(&report).expect("JSON");
        assert_eq!((&json["scenario"], &json["drift"], &json["count"]), (&"soak".into(), &(-0.06).into(), &3.0.into()));
        let targets = serde_json::json!([
            {"figure": "drift", "within": 0.05, "met": false},
            {"figure": "part", "at-least": 0.8, "met": true}
        ]);
        assert_eq!(json["targets"], targets);
    }
}
