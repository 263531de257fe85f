//! What passes each stage of the path per second of late, and what waits there: the figures behind the status page and
//! `tidegate top`.
//!
//! They come from the metrics themselves, read as Prometheus reads them, so that the page and a board of Grafana cannot
//! contradict each other. Pure but for the text that is handed in.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::outlook::{Heading, Outlook};
use crate::journal::{Level, Space};
use crate::telemetry::names;

/// Between two samples.
pub const SAMPLE_EVERY: Duration = Duration::from_secs(2);
/// Samples kept: rates are of the last ten seconds, over which batches of a second each even out.
const SAMPLES_MAX: usize = 6;
/// Outcomes of requests to the store that are answers, not failures.
const ANSWERED: [&str; 3] = ["ok", "not_found", "exists"];

/// The metrics that are read; histograms by the sum and the count of what they hold.
const READ: [&str; 27] = [
    names::RECEIVED_BYTES,
    names::RECEIVED_RECORDS,
    names::DISK_STREAMS,
    names::RECORD_MEMORY_WAITING,
    names::AGENTS_SKEWED,
    names::REFUSED,
    names::OVERLOADED,
    names::JOURNALED_BYTES,
    names::RELEASED_BYTES,
    COMMIT_SUM,
    COMMIT_COUNT,
    names::PIPELINE_PLAIN_BYTES,
    names::PIPELINE_SEALED_BYTES,
    names::PIPELINE_QUEUE_BYTES,
    names::VAULTED_BYTES,
    names::BLOB_REQUESTS,
    names::UPLOAD_WINDOW_BATCHES,
    names::UPLOAD_QUEUE_BATCHES,
    names::UPLOAD_QUEUE_BYTES,
    names::UPLOAD_PARKED,
    names::CONFLICTS,
    names::PROCESS_CPU_SECONDS,
    names::PROCESSORS,
    names::PROCESS_RESIDENT_BYTES,
    names::MEMORY_LIMIT_BYTES,
    names::CERTIFICATE_ENDS_SECONDS,
    names::RELOAD_REFUSED,
];
const COMMIT_SUM: &str = "tidegate_journal_commit_seconds_sum";
const COMMIT_COUNT: &str = "tidegate_journal_commit_seconds_count";

/// One reading of the metrics, each summed over its labels.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Figures {
    values: [f64; READ.len()],
    failed_requests: f64,
}

impl Figures {
    /// Reads a metrics page.
    #[must_use]
    pub fn read(page: &str) -> Self {
        let mut figures = Self::default();
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, rest)) = line.find(['{', ' ']).map(|at| line.split_at(at)) else { continue };
            let Some(place) = READ.iter().position(|known| *known == name) else { continue };
            let value = rest.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).unwrap_or(0.0);
            figures.values[place] += value;
            let answered = |outcome: &&str| rest.contains(&format!("outcome=\"{outcome}\""));
            if name == names::BLOB_REQUESTS && !ANSWERED.iter().any(answered) {
                figures.failed_requests += value;
            }
        }
        figures
    }

    fn of(&self, name: &str) -> f64 {
        READ.iter().position(|known| *known == name).map_or(0.0, |place| self.values[place])
    }
}

/// From agents to the gateway.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WireStage {
    /// Record bytes that came.
    pub bytes_per_second: f64,
    /// Records that came.
    pub records_per_second: f64,
    /// Disk streams open.
    pub streams: f64,
    /// Disks that wait for memory before they may send.
    pub waiting_disks: f64,
    /// Agents whose clock is off.
    pub skewed_agents: f64,
    /// Sessions and streams refused.
    pub refused_per_second: f64,
    /// Whether agents are asked to go elsewhere.
    pub overloaded: bool,
}

/// The first durable home.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct JournalStage {
    /// Record bytes made durable.
    pub bytes_per_second: f64,
    /// Bytes of space given back.
    pub released_bytes_per_second: f64,
    /// Mean of one write and sync; none if there was none.
    pub commit_seconds: Option<f64>,
}

/// Compression and sealing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PipelineStage {
    /// Plaintext bytes sealed.
    pub bytes_per_second: f64,
    /// What became of them.
    pub sealed_bytes_per_second: f64,
    /// Plaintext bytes that wait or are worked on.
    pub queue_bytes: f64,
}

/// The second durable home.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VaultStage {
    /// Record bytes vaulted.
    pub bytes_per_second: f64,
    /// Requests answered by the store, or given up.
    pub requests_per_second: f64,
    /// Of them those that failed.
    pub failed_per_second: f64,
    /// Batches that wait or are on their way.
    pub queue_batches: f64,
    /// Their sealed bytes.
    pub queue_bytes: f64,
    /// Batches that may be on their way at the same time.
    pub window_batches: f64,
    /// Whether uploads wait for somebody to help.
    pub parked: bool,
}

/// What the process uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessUse {
    /// Processors that it may use.
    pub processors: f64,
    /// The part of them that it used: 1 is all.
    pub processors_busy: f64,
    /// Bytes of memory that it holds.
    pub resident_bytes: f64,
    /// What it should hold at the most.
    pub memory_limit_bytes: f64,
    /// When the gateway's certificate ends, in seconds since 1970; 0 if that is not known.
    pub certificate_ends_seconds: f64,
    /// How often two accounts of one record were met since the start.
    pub conflicts: f64,
    /// Whether the configuration that was read again last is refused.
    pub reload_refused: bool,
}

/// The path, as `/v1/status` has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stages {
    /// The time that the rates are of.
    pub seconds: f64,
    /// From agents to the gateway.
    pub wire: WireStage,
    /// The first durable home.
    pub journal: JournalStage,
    /// Compression and sealing.
    pub pipeline: PipelineStage,
    /// The second durable home.
    pub vault: VaultStage,
    /// What the process uses.
    pub process: ProcessUse,
    /// Where the backlog of all disks is heading: bytes to copy and to vault; none before enough is known.
    pub backlog_heading: Option<Heading>,
}

/// Readings of late.
#[derive(Debug, Default)]
pub struct Meter {
    samples: VecDeque<(Duration, Figures)>,
    backlog_bytes: u64,
    backlog: Outlook,
}

impl Meter {
    /// Takes a reading at `now`, and how much all disks have to copy and to vault.
    pub fn take(&mut self, now: Duration, figures: Figures, backlog_bytes: Option<u64>) {
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back((now, figures));
        if let Some(bytes) = backlog_bytes {
            self.backlog_bytes = bytes;
            self.backlog.take(now, bytes);
        }
    }

    /// What passes each stage; none before there are two readings.
    #[must_use]
    pub fn stages(&self) -> Option<Stages> {
        let ((began, first), (now, last)) = (self.samples.front()?, self.samples.back()?);
        let seconds = now.saturating_sub(*began).as_secs_f64();
        if seconds <= 0.0 {
            return None;
        }
        let rate = |name| ((last.of(name) - first.of(name)) / seconds).max(0.0);
        let commits = last.of(COMMIT_COUNT) - first.of(COMMIT_COUNT);
        let commit_seconds = (commits > 0.0).then(|| (last.of(COMMIT_SUM) - first.of(COMMIT_SUM)) / commits);
        let processors = last.of(names::PROCESSORS);
        let space = Space { used_bytes: self.backlog_bytes, capacity_bytes: u64::MAX, level: Level::Low };
        Some(Stages {
            seconds,
            wire: WireStage {
                bytes_per_second: rate(names::RECEIVED_BYTES),
                records_per_second: rate(names::RECEIVED_RECORDS),
                streams: last.of(names::DISK_STREAMS),
                waiting_disks: last.of(names::RECORD_MEMORY_WAITING),
                skewed_agents: last.of(names::AGENTS_SKEWED),
                refused_per_second: rate(names::REFUSED),
                overloaded: last.of(names::OVERLOADED) > 0.0,
            },
            journal: JournalStage {
                bytes_per_second: rate(names::JOURNALED_BYTES),
                released_bytes_per_second: rate(names::RELEASED_BYTES),
                commit_seconds,
            },
            pipeline: PipelineStage {
                bytes_per_second: rate(names::PIPELINE_PLAIN_BYTES),
                sealed_bytes_per_second: rate(names::PIPELINE_SEALED_BYTES),
                queue_bytes: last.of(names::PIPELINE_QUEUE_BYTES),
            },
            vault: VaultStage {
                bytes_per_second: rate(names::VAULTED_BYTES),
                requests_per_second: rate(names::BLOB_REQUESTS),
                failed_per_second: ((last.failed_requests - first.failed_requests) / seconds).max(0.0),
                queue_batches: last.of(names::UPLOAD_QUEUE_BATCHES),
                queue_bytes: last.of(names::UPLOAD_QUEUE_BYTES),
                window_batches: last.of(names::UPLOAD_WINDOW_BATCHES),
                parked: last.of(names::UPLOAD_PARKED) > 0.0,
            },
            process: ProcessUse {
                processors,
                processors_busy: rate(names::PROCESS_CPU_SECONDS) / processors.max(1.0),
                resident_bytes: last.of(names::PROCESS_RESIDENT_BYTES),
                memory_limit_bytes: last.of(names::MEMORY_LIMIT_BYTES),
                certificate_ends_seconds: last.of(names::CERTIFICATE_ENDS_SECONDS),
                conflicts: last.of(names::CONFLICTS),
                reload_refused: last.of(names::RELOAD_REFUSED) > 0.0,
            },
            backlog_heading: self.backlog.heading(space),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# HELP tidegate_blob_requests_total x\n# TYPE tidegate_blob_requests_total counter\n\
        tidegate_received_bytes_total 1000\n\
        tidegate_blob_requests_total{operation=\"put\",outcome=\"ok\"} 6\n\
        tidegate_blob_requests_total{operation=\"get\",outcome=\"not_found\"} 1\n\
        tidegate_blob_requests_total{operation=\"put\",outcome=\"connection\"} 3\n\
        tidegate_received_bytes_total_of_something_else 7\n\
        tidegate_journal_commit_seconds_bucket{le=\"+Inf\"} 4\n\
        tidegate_journal_commit_seconds_sum 0.5\ntidegate_journal_commit_seconds_count 4\n\
        tidegate_processors 2\nprocess_cpu_seconds_total 10\ntidegate_upload_parked 1\n";

    #[test]
    fn rates_are_of_the_time_between_the_oldest_and_the_newest_reading() {
        let mut meter = Meter::default();
        meter.take(Duration::from_secs(0), Figures::read(""), None);
        assert_eq!(meter.stages(), None, "one reading has no rate");
        meter.take(Duration::from_secs(10), Figures::read(PAGE), None);
        let stages = meter.stages().expect("two readings");
        assert_eq!((stages.seconds, stages.wire.bytes_per_second), (10.0, 100.0));
        assert_eq!((stages.vault.requests_per_second, stages.vault.failed_per_second), (1.0, 0.3));
        assert!(stages.vault.parked && !stages.wire.overloaded);
        assert_eq!(stages.journal.commit_seconds, Some(0.125));
        assert_eq!(stages.process.processors_busy, 0.5);
    }

    #[test]
    fn what_was_long_ago_does_not_count_and_nothing_flows_backwards() {
        let mut meter = Meter::default();
        meter.take(Duration::from_secs(0), Figures::read(PAGE), None);
        for second in 1..=SAMPLES_MAX as u64 {
            meter.take(Duration::from_secs(second), Figures::read(""), None);
        }
        let stages = meter.stages().expect("readings");
        assert_eq!((stages.seconds, stages.wire.bytes_per_second), (5.0, 0.0));
        assert_eq!((stages.journal.commit_seconds, stages.backlog_heading), (None, None));
    }

    #[test]
    fn a_backlog_that_shrinks_has_an_end() {
        let mut meter = Meter::default();
        for step in 0..6_u32 {
            let bytes = (600 - 100 * u64::from(step)) << 20;
            meter.take(SAMPLE_EVERY * step, Figures::default(), Some(bytes));
        }
        let heading = meter.stages().and_then(|stages| stages.backlog_heading).expect("known after ten seconds");
        assert_eq!(heading.drained_seconds, Some(2.0));
    }
}
