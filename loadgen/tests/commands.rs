//! The commands as processes: what they print, and with which code they end.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Output, Stdio};

fn loadgen(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_loadgen")).args(arguments).output().expect("it runs")
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn wrong_options_end_with_the_code_for_usage_and_what_cannot_be_done_with_that_for_errors() {
    assert_eq!(loadgen(&["run"]).status.code(), Some(2));
    assert_eq!(loadgen(&["sink", "--busy", "120%"]).status.code(), Some(2));
    let missing =
        loadgen(&["run", "--gateway", "127.0.0.1:1", "--authority", "/nowhere", "--ratio", "2", "--pool", "4 MiB"]);
    let text = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert_eq!(missing.status.code(), Some(1), "{text}");
    assert!(text.contains("/nowhere"), "{text}");
    assert!(missing.stdout.is_empty(), "no figures without a run");
    let key = loadgen(&["sink", "--account", "other"]);
    assert_eq!(key.status.code(), Some(1));
}

#[test]
fn a_sink_tells_its_addresses_and_its_weather_changes() {
    let mut process = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(["sink", "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    let out = process.stdout.take().expect("its output");
    let _running = Running(process);
    let mut line = String::new();
    BufReader::new(out).read_line(&mut line).expect("a line");
    let told: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    let control: SocketAddr = told["control"].as_str().and_then(|text| text.parse().ok()).expect("an address");
    let mut stream = TcpStream::connect(control).expect("a control");
    let body = r#"{"latency_ms": 12.5}"#;
    let length = body.len();
    write!(stream, "PUT / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}")
        .expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.contains("\"latency_ms\":12.5") && answer.contains("\"puts\":0"), "{answer}");
}

#[test]
fn a_page_is_written_of_an_outcome_and_of_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let (outcome, page) = (folder.path().join("run.json"), folder.path().join("page.html"));
    let (from, to) = (outcome.display().to_string(), page.display().to_string());
    std::fs::write(&outcome, "{\"other\": 1}").expect("written");
    assert_eq!(loadgen(&["report", &from, "--to", &to]).status.code(), Some(1));
    assert!(!page.exists());
    std::fs::write(&outcome, "{\"samples\": [], \"agents\": 2}").expect("written");
    assert!(loadgen(&["report", &from, "--to", &to]).status.success());
    assert!(std::fs::read_to_string(&page).expect("a page").contains("<h2>Run</h2>"));
}

/// What `arguments` measured, in a folder of its own.
fn measured(arguments: &[&str]) -> serde_json::Value {
    let tidegate = std::path::Path::new(env!("CARGO_BIN_EXE_loadgen")).with_file_name("tidegate");
    assert!(tidegate.exists(), "{} is missing: test the whole workspace", tidegate.display());
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("bench");
    let (dir, tidegate) = (dir.to_str().expect("a name"), tidegate.to_str().expect("a name"));
    let usual =
        ["bench", "--dir", dir, "--tidegate", tidegate, "--json", "--ratio", "2", "--pool", "8 MiB", "--rounds", "1"];
    let done = loadgen(&[&usual, arguments].concat());
    assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    serde_json::from_slice(&done.stdout).expect("JSON")
}

#[test]
fn a_bench_holds_a_gateway_against_its_primitives_its_floor_and_its_targets() {
    let told = measured(&["--bytes", "32 MiB", "--steady", "2 s", "--codec", "auto", "--uplink", "64 MiB"]);
    let positive = |name: &str| assert!(told[name].as_f64().is_some_and(|value| value > 0.0), "{name}: {}", told[name]);
    [
        "cpu_ratio",
        "floor_over_primitives",
        "cpu_over_floor",
        "throughput_bytes_per_second",
        "floor_throughput_bytes_per_second",
        "journaled_p99_over_commit_p99",
        "floor_p99_over_commit_p99",
    ]
    .into_iter()
    .for_each(positive);
    let targets: Vec<&str> =
        told["targets"].as_array().expect("a list").iter().filter_map(|target| target["figure"].as_str()).collect();
    assert_eq!(targets.len(), 5, "{targets:?}");
    assert!(told["targets"][4]["met"].as_bool().is_some_and(|met| met), "memory: {}", told["targets"][4]);
}

#[test]
fn a_fleet_and_a_flood_are_held_against_the_floor() {
    let fleet = measured(&["--scenario", "fleet", "--agents", "5", "--duration", "3 s"]);
    let share = |name: &str| fleet[name].as_f64().expect("a figure");
    assert!(share("floor_cpu_share") > share("floor_receive_store_reply_cpu_share"), "{fleet}");
    assert!(share("gateway_cpu_share") > 0.0 && share("gateway_over_floor") > 0.0, "{fleet}");
    let flood = measured(&["--scenario", "fairness", "--agents", "5", "--duration", "3 s"]);
    assert!(flood["floor_beside_p99_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{flood}");
}

#[test]
fn a_backlog_is_more_than_the_line_takes_and_is_held_against_the_memory() {
    let told = measured(&["--scenario", "backlog", "--duration", "3 s", "--uplink", "8 MiB"]);
    let figure = |name: &str| told[name].as_f64().expect("a figure");
    assert_eq!(figure("uplink_bytes_per_second"), f64::from(8 << 20));
    // Compressed at best fourfold; what had no place was not taken.
    assert!(figure("throughput_bytes_per_second") < 4.0 * figure("uplink_bytes_per_second"), "{told}");
    assert!(figure("vaulted_p99_seconds") > 1.0, "it waited for the line: {told}");
    assert_eq!(told["targets"][0]["figure"], "memory_over_budget_bytes");
    assert_eq!(told["targets"][0]["met"], true, "{told}");
}
