//! What this build was measured to cost, from the constants of [`measured`], or from the operator's own bench.

use std::path::Path;

use serde::Deserialize;

use super::measured;

/// A measured value and where it comes from.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Measured {
    /// The value.
    pub value: f64,
    /// Command and day, or the file.
    pub source: String,
}

/// Costs of a gateway.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Capacity {
    /// Processor time per GiB of writes, where records are large.
    pub cpu_seconds_per_gib: Measured,
    /// Processor time that a record adds while few come: each has a commit and an ack of its own.
    pub cpu_seconds_per_sparse_record: Measured,
    /// Records per second and gateway up to which they count as few.
    pub sparse_records_per_second: Measured,
    /// Processor time that a record adds beyond that: many share a commit.
    pub cpu_seconds_per_dense_record: Measured,
    /// How many times smaller data becomes.
    pub compress_ratio: Measured,
    /// Requests to the store per GiB of writes.
    pub requests_per_gib: Measured,
    /// Requests to the store per second and gateway, whatever is written.
    pub requests_per_second: Measured,
    /// Agents of one gateway.
    pub agents_per_gateway: Measured,
    /// Memory per connected agent that writes now and then.
    pub memory_bytes_per_agent: Measured,
    /// Time until a write is vaulted, at the load of [`Capacity::load`]: half of all writes.
    pub vaulted_seconds_p50: Measured,
    /// The same, 99 of 100 writes.
    pub vaulted_seconds_p99: Measured,
    /// Time until a write is journaled, 99 of 100 writes, at half load.
    pub journaled_seconds_p99: Measured,
}

/// Share of its processors that a gateway is planned to use at the peak: where the times until writes are vaulted are measured.
pub const LOAD: f64 = 0.7;

const OLTP_RECORDS_PER_GIB: f64 = 131_072.0;
/// Bytes of a GiB.
pub const GIB: f64 = (1_u64 << 30) as f64;

impl Default for Capacity {
    fn default() -> Self {
        use measured::{FILES_SOURCE as FILES, FLEET_SOURCE as FLEET, IDLE_SOURCE as IDLE, OLTP_SOURCE as OLTP};
        let of = |value: f64, source: &str| Measured { value, source: source.to_owned() };
        let files = measured::FILES_CPU_SECONDS_PER_GIB;
        let fleet_records_per_gib = measured::FLEET_RECORDS_PER_SECOND / (measured::FLEET_BYTES_PER_SECOND / GIB);
        let sparse = (measured::FLEET_CPU_SECONDS_PER_GIB - files) / fleet_records_per_gib;
        let dense = (measured::OLTP_CPU_SECONDS_PER_GIB - files) / OLTP_RECORDS_PER_GIB;
        Self {
            cpu_seconds_per_gib: of(files, FILES),
            cpu_seconds_per_sparse_record: of(sparse, &format!("what {FLEET} took beyond its bytes, over its records")),
            sparse_records_per_second: of(measured::FLEET_RECORDS_PER_SECOND, FLEET),
            cpu_seconds_per_dense_record: of(dense, &format!("what {OLTP} took beyond its bytes, over its records")),
            compress_ratio: of(measured::FILES_COMPRESS_RATIO, FILES),
            requests_per_gib: of(measured::FILES_REQUESTS_PER_GIB, FILES),
            requests_per_second: of(measured::IDLE_REQUESTS_PER_SECOND, IDLE),
            agents_per_gateway: of(measured::IDLE_AGENTS, IDLE),
            memory_bytes_per_agent: of(measured::IDLE_MEMORY_BYTES_PER_AGENT, IDLE),
            vaulted_seconds_p50: of(measured::FILES_VAULTED_SECONDS_P50, FILES),
            vaulted_seconds_p99: of(measured::FILES_VAULTED_SECONDS_P99, FILES),
            journaled_seconds_p99: of(measured::FILES_JOURNALED_SECONDS_P99, FILES),
        }
    }
}

/// A bench that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{} is no report of `loadgen bench --json`: {problem}", path.display())]
pub struct BenchFileError {
    /// The file.
    pub path: std::path::PathBuf,
    /// What is wrong.
    pub problem: String,
}

/// Of `loadgen bench --json`, what counts here.
#[derive(Deserialize)]
struct Bench {
    profile: String,
    payload_ratio: f64,
    gateway_cpu_seconds_per_gib: f64,
    blob_requests_per_gib: f64,
    journaled_ack_seconds: Times,
    rpo_seconds: Times,
    #[serde(default)]
    failures: Vec<String>,
}

#[derive(Deserialize)]
struct Times {
    p50: f64,
    p99: f64,
}

impl Capacity {
    /// The same, with what `loadgen bench --json` measured on the operator's own machine.
    ///
    /// # Errors
    /// [`BenchFileError`] if the file is not such a report, or the bench had failures.
    pub fn with_bench(self, path: &Path) -> Result<Self, BenchFileError> {
        let wrong = |problem: String| BenchFileError { path: path.to_owned(), problem };
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        self.with_bench_text(&text, &path.display().to_string()).map_err(wrong)
    }

    fn with_bench_text(mut self, text: &str, file: &str) -> Result<Self, String> {
        let bench: Bench = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if let Some(failure) = bench.failures.first() {
            return Err(format!("the bench failed: {failure}"));
        }
        let values = [
            (&mut self.cpu_seconds_per_gib, bench.gateway_cpu_seconds_per_gib),
            (&mut self.compress_ratio, bench.payload_ratio),
            (&mut self.requests_per_gib, bench.blob_requests_per_gib),
            (&mut self.vaulted_seconds_p50, bench.rpo_seconds.p50),
            (&mut self.vaulted_seconds_p99, bench.rpo_seconds.p99),
            (&mut self.journaled_seconds_p99, bench.journaled_ack_seconds.p99),
        ];
        for (measured, value) in values {
            if !(value.is_finite() && value > 0.0) {
                return Err(format!("{value} is no measured value"));
            }
            *measured = Measured { value, source: format!("{file}, profile {}", bench.profile) };
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests;
