//! What this build was measured to cost. The only place where such constants stand.

use std::path::Path;

use serde::Deserialize;

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

/// Each value, and where in docs/PERFORMANCE.md its command stands. All on two cores of an AMD EPYC (Zen 4), release build.
const FILES: &str = "loadgen bench --bytes 1GiB --rounds 3 --steady 6s, profile files, 2026-11-23 (docs/PERFORMANCE.md, Before, on a busy machine)";
const OLTP: &str = "loadgen bench --profile oltp --bytes 768MiB --rounds 3 --steady 3s, 2026-11-25 (docs/PERFORMANCE.md, Records of 8 KiB)";
const FLEET: &str = "loadgen bench --scenario fleet, 2026-11-25 (docs/PERFORMANCE.md, Many agents)";
const IDLE: &str = "loadgen bench --scenario idle --agents 10000, 2026-11-25 (docs/PERFORMANCE.md, Many agents)";

const FILES_CPU_SECONDS_PER_GIB: f64 = 2.74;
const OLTP_CPU_SECONDS_PER_GIB: f64 = 4.12;
const OLTP_RECORDS_PER_GIB: f64 = 131_072.0;
const FLEET_CPU_SECONDS_PER_GIB: f64 = 12.3;
const FLEET_RECORDS_PER_SECOND: f64 = 1_050.0;
const FLEET_BYTES_PER_SECOND: f64 = 23e6;
/// Bytes of a GiB.
pub const GIB: f64 = (1_u64 << 30) as f64;

impl Default for Capacity {
    fn default() -> Self {
        let of = |value: f64, source: &str| Measured { value, source: source.to_owned() };
        let sparse = (FLEET_CPU_SECONDS_PER_GIB - FILES_CPU_SECONDS_PER_GIB)
            / (FLEET_RECORDS_PER_SECOND / (FLEET_BYTES_PER_SECOND / GIB));
        let dense = (OLTP_CPU_SECONDS_PER_GIB - FILES_CPU_SECONDS_PER_GIB) / OLTP_RECORDS_PER_GIB;
        Self {
            cpu_seconds_per_gib: of(FILES_CPU_SECONDS_PER_GIB, FILES),
            cpu_seconds_per_sparse_record: of(sparse, &format!("what {FLEET} took beyond its bytes, over its records")),
            sparse_records_per_second: of(FLEET_RECORDS_PER_SECOND, FLEET),
            cpu_seconds_per_dense_record: of(dense, &format!("what {OLTP} took beyond its bytes, over its records")),
            compress_ratio: of(2.33, FILES),
            requests_per_gib: of(103.0, FILES),
            requests_per_second: of(1.4, IDLE),
            agents_per_gateway: of(10_000.0, IDLE),
            memory_bytes_per_agent: of(68.9 * 1024.0, IDLE),
            vaulted_seconds_p50: of(0.23, FILES),
            vaulted_seconds_p99: of(0.96, FILES),
            journaled_seconds_p99: of(0.021, FILES),
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
mod tests {
    use super::*;

    #[test]
    fn what_a_record_costs_comes_from_two_measurements() {
        let capacity = Capacity::default();
        let sparse = capacity.cpu_seconds_per_sparse_record.value;
        let dense = capacity.cpu_seconds_per_dense_record.value;
        assert!((150e-6..250e-6).contains(&sparse), "{sparse}");
        assert!((5e-6..20e-6).contains(&dense), "{dense}");
    }

    #[test]
    fn a_bench_replaces_what_it_measured_and_is_named() {
        let text = r#"{"profile":"oltp8","payload_ratio":3.0,"gateway_cpu_seconds_per_gib":5.0,"blob_requests_per_gib":90.0,
            "journaled_ack_seconds":{"p50":0.001,"p99":0.004,"p999":0.01},"rpo_seconds":{"p50":0.2,"p99":0.9,"p999":1.0},"failures":[]}"#;
        let capacity = Capacity::default().with_bench_text(text, "b.json").expect("a bench");
        assert_eq!(capacity.cpu_seconds_per_gib, Measured { value: 5.0, source: "b.json, profile oltp8".into() });
        assert_eq!(capacity.agents_per_gateway, Capacity::default().agents_per_gateway);
        for (from, to) in [("5.0", "-1.0"), ("\"failures\":[]", "\"failures\":[\"lost\"]"), ("payload_ratio", "ratio")]
        {
            assert!(Capacity::default().with_bench_text(&text.replace(from, to), "b.json").is_err(), "{to}");
        }
    }
}
