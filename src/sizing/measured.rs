//! What a gateway cost when it was measured. Written by a test from the report of `loadgen table --long --json FILE`:
//! `TIDEGATE_BLESS=1 TIDEGATE_TABLE=FILE cargo test --lib sizing::capacity`. A load that the report has not keeps its values.

/// Where the values of the load `files` come from.
pub const FILES_SOURCE: &str = "loadgen bench --bytes 1GiB --rounds 3 --steady 6s, profile files, 2026-11-23 (docs/PERFORMANCE.md, Before, on a busy machine)";
/// Processor time.
pub const FILES_CPU_SECONDS_PER_GIB: f64 = 2.74;
/// How many times smaller LZ4 makes what is written.
pub const FILES_COMPRESS_RATIO: f64 = 2.33;
/// Requests to the store.
pub const FILES_REQUESTS_PER_GIB: f64 = 103.0;
/// Until a write is vaulted, at 70 % load: half of all.
pub const FILES_VAULTED_SECONDS_P50: f64 = 0.23;
/// The same, 99 of 100.
pub const FILES_VAULTED_SECONDS_P99: f64 = 0.96;
/// Until a write is journaled, at half load: 99 of 100.
pub const FILES_JOURNALED_SECONDS_P99: f64 = 0.021;

/// Where the values of the load `oltp` come from.
pub const OLTP_SOURCE: &str = "loadgen bench --profile oltp --bytes 768MiB --rounds 3 --steady 3s, 2026-11-25 (docs/PERFORMANCE.md, Records of 8 KiB)";
/// Processor time.
pub const OLTP_CPU_SECONDS_PER_GIB: f64 = 4.12;

/// Where the values of the load `fleet` come from.
pub const FLEET_SOURCE: &str = "loadgen bench --scenario fleet, 2026-11-25 (docs/PERFORMANCE.md, Many agents)";
/// Processor time.
pub const FLEET_CPU_SECONDS_PER_GIB: f64 = 12.3;
/// Records that came.
pub const FLEET_RECORDS_PER_SECOND: f64 = 1050.0;
/// Bytes that came.
pub const FLEET_BYTES_PER_SECOND: f64 = 23000000.0;

/// Where the values of the load `idle` come from.
pub const IDLE_SOURCE: &str =
    "loadgen bench --scenario idle --agents 10000, 2026-11-25 (docs/PERFORMANCE.md, Many agents)";
/// Agents that were connected.
pub const IDLE_AGENTS: f64 = 10000.0;
/// Memory of each.
pub const IDLE_MEMORY_BYTES_PER_AGENT: f64 = 70553.6;
/// Requests to the store, whatever the number of agents.
pub const IDLE_REQUESTS_PER_SECOND: f64 = 1.4;
