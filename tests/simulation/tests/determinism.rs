//! One seed, one run: a failure can be replayed only if nothing but the seed decides.

use std::path::Path;
use std::process::Command;

/// Runs a seed for two simulated minutes and returns its summary line without the wall time, and its trace.
fn run(seed: u64, trace: &Path) -> (String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_simulation"));
    command.args(["--brief", "--minutes", "2", "--seed", &seed.to_string(), "--trace"]).arg(trace);
    let output = command.output().expect("the simulation starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().last().unwrap_or_default().split(" wall ").next().unwrap_or_default().to_owned();
    (line, std::fs::read_to_string(trace).expect("a trace"))
}

#[test]
fn the_same_seed_gives_the_same_trace_to_the_last_event() {
    let dir = tempfile::tempdir().expect("a folder");
    for seed in [1, 2, 5] {
        let (first, first_trace) = run(seed, &dir.path().join("first"));
        let (second, second_trace) = run(seed, &dir.path().join("second"));
        let differ = first_trace.lines().zip(second_trace.lines()).find(|(first, second)| first != second);
        assert_eq!(differ, None, "seed {seed}: the first events that differ");
        assert_eq!(first, second, "seed {seed}");
        assert!(first.contains(" digest "), "no summary: {first}");
    }
    let (one, _) = run(1, &dir.path().join("one"));
    let (other, _) = run(2, &dir.path().join("other"));
    assert_ne!(one, other, "seeds make a difference");
}
