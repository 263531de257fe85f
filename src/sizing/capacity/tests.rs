use std::path::PathBuf;

use serde_json::Value;

use super::*;

#[test]
fn what_a_record_costs_comes_from_two_measurements() {
    let capacity = Capacity::default();
    let sparse = capacity.cpu_seconds_per_sparse_record.value;
    let dense = capacity.cpu_seconds_per_dense_record.value;
    assert!((100e-6..250e-6).contains(&sparse), "{sparse}");
    assert!((2e-6..20e-6).contains(&dense), "{dense}");
}

#[test]
fn a_bench_replaces_what_it_measured_and_is_named() {
    let text = r#"{"profile":"oltp8","payload_ratio":3.0,"gateway_cpu_seconds_per_gib":5.0,"blob_requests_per_gib":90.0,
        "journaled_ack_seconds":{"p50":0.001,"p99":0.004,"p999":0.01},"rpo_seconds":{"p50":0.2,"p99":0.9,"p999":1.0},"failures":[]}"#;
    let capacity = Capacity::default().with_bench_text(text, "b.json").expect("a bench");
    assert_eq!(capacity.cpu_seconds_per_gib, Measured { value: 5.0, source: "b.json, profile oltp8".into() });
    assert_eq!(capacity.agents_per_gateway, Capacity::default().agents_per_gateway);
    for (from, to) in [("5.0", "-1.0"), ("\"failures\":[]", "\"failures\":[\"lost\"]"), ("payload_ratio", "ratio")] {
        assert!(Capacity::default().with_bench_text(&text.replace(from, to), "b.json").is_err(), "{to}");
    }
}

/// One constant: its name, what it says, its value now, and where a load's report has it.
struct Constant {
    name: &'static str,
    says: &'static str,
    now: f64,
    told: fn(&Value) -> Option<f64>,
}

/// One load: its name, where its values come from, and they.
struct Load {
    name: &'static str,
    now: &'static str,
    is_told_by: fn(&Value) -> bool,
    constants: Vec<Constant>,
}

fn at(report: &Value, path: &str) -> Option<f64> {
    report.pointer(path)?.as_f64()
}

/// Records per second of a scenario's runs together.
fn records_per_second(report: &Value) -> Option<f64> {
    let runs = report["runs"].as_array()?;
    let sum = |path: &str| runs.iter().map(|run| at(run, path)).sum::<Option<f64>>();
    Some(sum("/run/sent_records")? / sum("/run/seconds")?)
}

fn loads() -> Vec<Load> {
    let constant = |name, says, now, told| Constant { name, says, now, told };
    vec![
        Load {
            name: "files",
            now: measured::FILES_SOURCE,
            is_told_by: |report| report["profile"] == "files" && report["transport"] == "quic",
            constants: vec![
                constant("CPU_SECONDS_PER_GIB", "Processor time.", measured::FILES_CPU_SECONDS_PER_GIB, |report| {
                    at(report, "/gateway_cpu_seconds_per_gib")
                }),
                constant(
                    "COMPRESS_RATIO",
                    "How many times smaller LZ4 makes what is written.",
                    measured::FILES_COMPRESS_RATIO,
                    |report| at(report, "/payload_ratio"),
                ),
                constant("REQUESTS_PER_GIB", "Requests to the store.", measured::FILES_REQUESTS_PER_GIB, |report| {
                    at(report, "/blob_requests_per_gib")
                }),
                constant(
                    "VAULTED_SECONDS_P50",
                    "Until a write is vaulted, at 70 % load: half of all.",
                    measured::FILES_VAULTED_SECONDS_P50,
                    |report| at(report, "/rpo_seconds/p50"),
                ),
                constant(
                    "VAULTED_SECONDS_P99",
                    "The same, 99 of 100.",
                    measured::FILES_VAULTED_SECONDS_P99,
                    |report| at(report, "/rpo_seconds/p99"),
                ),
                constant(
                    "JOURNALED_SECONDS_P99",
                    "Until a write is journaled, at half load: 99 of 100.",
                    measured::FILES_JOURNALED_SECONDS_P99,
                    |report| at(report, "/journaled_ack_seconds/p99"),
                ),
            ],
        },
        Load {
            name: "oltp",
            now: measured::OLTP_SOURCE,
            is_told_by: |report| report["profile"].as_str().is_some_and(|profile| profile.starts_with("oltp")),
            constants: vec![constant(
                "CPU_SECONDS_PER_GIB",
                "Processor time.",
                measured::OLTP_CPU_SECONDS_PER_GIB,
                |report| at(report, "/gateway_cpu_seconds_per_gib"),
            )],
        },
        Load {
            name: "fleet",
            now: measured::FLEET_SOURCE,
            is_told_by: |report| report["scenario"] == "fleet",
            constants: vec![
                constant("CPU_SECONDS_PER_GIB", "Processor time.", measured::FLEET_CPU_SECONDS_PER_GIB, |report| {
                    at(report, "/gateway_cpu_seconds_per_gib")
                }),
                constant(
                    "RECORDS_PER_SECOND",
                    "Records that came.",
                    measured::FLEET_RECORDS_PER_SECOND,
                    records_per_second,
                ),
                constant("BYTES_PER_SECOND", "Bytes that came.", measured::FLEET_BYTES_PER_SECOND, |report| {
                    at(report, "/offered_bytes_per_second")
                }),
            ],
        },
        Load {
            name: "idle",
            now: measured::IDLE_SOURCE,
            is_told_by: |report| report["scenario"] == "idle",
            constants: vec![
                constant("AGENTS", "Agents that were connected.", measured::IDLE_AGENTS, |report| {
                    at(report, "/agents")
                }),
                constant(
                    "MEMORY_BYTES_PER_AGENT",
                    "Memory of each.",
                    measured::IDLE_MEMORY_BYTES_PER_AGENT,
                    |report| at(report, "/memory_per_trickling_agent_bytes"),
                ),
                constant(
                    "REQUESTS_PER_SECOND",
                    "Requests to the store, whatever the number of agents.",
                    measured::IDLE_REQUESTS_PER_SECOND,
                    |report| at(report, "/blob_requests_per_second"),
                ),
            ],
        },
    ]
}

/// The file of constants, with what `table` has of them; a table without a load keeps what is there.
fn text(table: &Value) -> String {
    let mut out = String::from(
        "//! What a gateway cost when it was measured. Written by a test from the report of `loadgen table --long --json FILE`:\n\
         //! `TIDEGATE_BLESS=1 TIDEGATE_TABLE=FILE cargo test --lib sizing::capacity`. A load that the report has not keeps its values.\n",
    );
    let reports = table["reports"].as_array().map(Vec::as_slice).unwrap_or_default();
    for load in loads() {
        let report = reports.iter().find(|report| (load.is_told_by)(report));
        if let Some(failures) = report.and_then(|report| report["failures"].as_array()) {
            assert!(failures.is_empty(), "{} failed: {failures:?}", load.name);
        }
        let source = report.map_or_else(
            || load.now.to_owned(),
            |_| format!("loadgen table, {}, {}", load.name, table["machine"].as_str().expect("a machine")),
        );
        let prefix = load.name.to_uppercase();
        out += &format!("\n/// Where the values of the load `{}` come from.\n", load.name);
        let line = format!("pub const {prefix}_SOURCE: &str = {source:?};\n");
        // As the format has it: a text that fits into a line of its own goes there.
        let below = format!("    {source:?};\n");
        let fits = |line: &str| line.trim_end().chars().count() <= 120;
        out += &if fits(&line) || !fits(&below) { line } else { format!("pub const {prefix}_SOURCE: &str =\n{below}") };
        for Constant { name, says, now, told } in load.constants {
            let value = report.map_or(now, |report| {
                let value = told(report).unwrap_or_else(|| panic!("{name} of {} is not told", load.name));
                // More digits than it is worth, and few enough to be read.
                format!("{value:.4e}").parse().expect("a number")
            });
            assert!(value.is_finite() && value > 0.0, "{name} of {} is {value}", load.name);
            out += &format!("/// {says}\npub const {prefix}_{name}: f64 = {value:?};\n");
        }
    }
    out
}

#[test]
fn the_constants_are_as_the_table_told_them() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/sizing/measured.rs");
    if let (Some(_), Some(table)) = (std::env::var_os("TIDEGATE_BLESS"), std::env::var_os("TIDEGATE_TABLE")) {
        let table = std::fs::read_to_string(table).expect("the report");
        std::fs::write(&path, text(&serde_json::from_str(&table).expect("JSON"))).expect("written");
        return;
    }
    let found = std::fs::read_to_string(&path).expect("the constants");
    assert!(found == text(&Value::Null), "{} was changed by hand; its head says how it is made", path.display());
}

#[test]
fn a_table_gives_the_values_of_the_loads_that_it_has() {
    let table = serde_json::json!({ "machine": "2 cores, 2026-11-30", "reports": [
        { "profile": "files", "transport": "tcp", "gateway_cpu_seconds_per_gib": 9.0, "failures": [] },
        { "profile": "files", "transport": "quic", "gateway_cpu_seconds_per_gib": 2.5124999, "payload_ratio": 2.5,
          "blob_requests_per_gib": 48.0, "rpo_seconds": { "p50": 0.08, "p99": 0.9 },
          "journaled_ack_seconds": { "p99": 0.007 }, "failures": [] },
        { "scenario": "fleet", "gateway_cpu_seconds_per_gib": 10.0, "offered_bytes_per_second": 23e6, "failures": [],
          "runs": [{ "run": { "sent_records": 3000, "seconds": 2.0 } }, { "run": { "sent_records": 1000, "seconds": 2.0 } }] },
    ] });
    let text = text(&table);
    for line in [
        "pub const FILES_CPU_SECONDS_PER_GIB: f64 = 2.5125;",
        "pub const FILES_SOURCE: &str = \"loadgen table, files, 2 cores, 2026-11-30\";",
        "pub const FLEET_RECORDS_PER_SECOND: f64 = 1000.0;",
        &format!("pub const OLTP_CPU_SECONDS_PER_GIB: f64 = {:?};", measured::OLTP_CPU_SECONDS_PER_GIB),
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}
