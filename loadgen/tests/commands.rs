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
