//! The rules for Prometheus: they are well formed, do what their unit tests say, name metrics that exist, and each alert has
//! its section in the runbook.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use tidegate::telemetry::names;

const RULES: &str = "deploy/prometheus/tidegate.rules.yml";

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap()
}

fn promtool(arguments: &[&str]) {
    let output = Command::new("promtool").args(arguments).output().expect("promtool is there: tests/run installs it");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
}

#[test]
fn promtool_finds_the_rules_well_formed_and_their_unit_tests_pass() {
    promtool(&["check", "rules", path(RULES).to_str().unwrap()]);
    for tests in ["tidegate.test.yml", "tidegate.days.test.yml"] {
        promtool(&["test", "rules", path("deploy/prometheus").join(tests).to_str().unwrap()]);
    }
}

#[test]
fn every_metric_of_the_rules_exists() {
    let known: BTreeSet<&str> = names::ALL.iter().map(|(name, ..)| *name).collect();
    let rules = text(RULES);
    let words = rules.split(|c: char| !(c.is_ascii_alphanumeric() || "_:".contains(c)));
    let used: BTreeSet<&str> =
        words.filter(|word| word.starts_with("tidegate_") || word.starts_with("process_")).collect();
    assert!(used.len() > 10, "{used:?}");
    let unknown: Vec<_> = used.difference(&known).collect();
    assert!(unknown.is_empty(), "no such metrics: {unknown:?}");
}

#[test]
fn every_alert_has_its_section_in_the_runbook_and_every_section_an_alert() {
    let (rules, runbook) = (text(RULES), text("docs/RUNBOOK.md"));
    let after = |text: &str, start: &str| -> BTreeSet<String> {
        text.lines().filter_map(|line| line.trim().strip_prefix(start)).map(|rest| rest.trim().to_lowercase()).collect()
    };
    let linked = after(&rules, "runbook: docs/RUNBOOK.md#");
    let sections = after(&runbook, "## ");
    assert_eq!(linked, sections);
    let alerts = rules.matches("- alert:").count();
    assert_eq!(alerts, rules.matches("runbook:").count(), "each alert has a link");
    assert_eq!(alerts, rules.matches("summary:").count(), "each alert says what is wrong");
    assert_eq!(alerts, rules.matches("severity:").count(), "each alert says how bad it is");
}
