//! What a gateway cost when it was measured. Written by a test from the report of `loadgen table --long --json FILE`:
//! `TIDEGATE_BLESS=1 TIDEGATE_TABLE=FILE cargo test --lib sizing::capacity`. A load that the report has not keeps its values.

/// Where the values of the load `files` come from.
pub const FILES_SOURCE: &str = "loadgen table, files, 2 cores of AMD EPYC, 23 GiB, Linux 6.18.44-fc-v669; generator, sink and gateway on this one machine; 2026-11-30";
/// Processor time.
pub const FILES_CPU_SECONDS_PER_GIB: f64 = 1.8947;
/// How many times smaller LZ4 makes what is written.
pub const FILES_COMPRESS_RATIO: f64 = 2.5651;
/// Requests to the store.
pub const FILES_REQUESTS_PER_GIB: f64 = 50.992;
/// Until a write is vaulted, at 70 % load: half of all.
pub const FILES_VAULTED_SECONDS_P50: f64 = 0.067391;
/// The same, 99 of 100.
pub const FILES_VAULTED_SECONDS_P99: f64 = 0.14208;
/// Until a write is journaled, at half load: 99 of 100.
pub const FILES_JOURNALED_SECONDS_P99: f64 = 0.004519;

/// Where the values of the load `oltp` come from.
pub const OLTP_SOURCE: &str = "loadgen table, oltp, 2 cores of AMD EPYC, 23 GiB, Linux 6.18.44-fc-v669; generator, sink and gateway on this one machine; 2026-11-30";
/// Processor time.
pub const OLTP_CPU_SECONDS_PER_GIB: f64 = 2.4533;

/// Where the values of the load `fleet` come from.
pub const FLEET_SOURCE: &str = "loadgen table, fleet, 2 cores of AMD EPYC, 23 GiB, Linux 6.18.44-fc-v669; generator, sink and gateway on this one machine; 2026-11-30";
/// Processor time.
pub const FLEET_CPU_SECONDS_PER_GIB: f64 = 9.7155;
/// Records that came.
pub const FLEET_RECORDS_PER_SECOND: f64 = 1086.8;
/// Bytes that came.
pub const FLEET_BYTES_PER_SECOND: f64 = 23148000.0;

/// Where the values of the load `idle` come from.
pub const IDLE_SOURCE: &str =
    "loadgen bench --scenario idle --agents 10000, 2026-11-25 (docs/PERFORMANCE.md, Many agents)";
/// Agents that were connected.
pub const IDLE_AGENTS: f64 = 10000.0;
/// Memory of each.
pub const IDLE_MEMORY_BYTES_PER_AGENT: f64 = 70553.6;
/// Requests to the store, whatever the number of agents.
pub const IDLE_REQUESTS_PER_SECOND: f64 = 1.4;
