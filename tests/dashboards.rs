//! The boards for Grafana are made here from `dashboards/boards/*.toml`, and held against the list of metrics both ways.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};
use tidegate::telemetry::names;

/// Width of a board in Grafana's units.
const WIDTH: usize = 24;
const PANEL_HEIGHT: usize = 8;

#[derive(Deserialize)]
struct Board {
    title: String,
    /// Whether one instance is looked at, chosen at the top.
    #[serde(default)]
    instance: bool,
    /// The same of agents.
    #[serde(default)]
    agent: bool,
    row: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    title: String,
    panel: Vec<Panel>,
}

#[derive(Deserialize)]
struct Panel {
    title: String,
    #[serde(default)]
    kind: Option<String>,
    #[serde(default)]
    unit: Option<String>,
    query: Vec<Query>,
}

#[derive(Deserialize)]
struct Query {
    expr: String,
    legend: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboards")
}

fn boards() -> Vec<(String, Board)> {
    let files = std::fs::read_dir(root().join("boards")).unwrap().flatten().map(|entry| entry.path());
    let mut files: Vec<_> = files.collect();
    files.sort();
    let name = |path: &Path| path.file_stem().unwrap().to_str().unwrap().to_owned();
    files.iter().map(|path| (name(path), toml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap())).collect()
}

fn panel(panel: &Panel, id: usize, at: (usize, usize, usize)) -> Value {
    let source = json!({ "type": "prometheus", "uid": "${source}" });
    let letters = "ABCDEFGH".chars();
    let is_table = panel.kind.as_deref() == Some("table");
    let targets: Vec<Value> = (panel.query.iter().zip(letters))
        .map(|(query, letter)| {
            json!({
                "refId": letter.to_string(), "expr": query.expr, "legendFormat": query.legend, "datasource": source,
                "instant": is_table, "range": !is_table,
            })
        })
        .collect();
    // A table of legends and last values reads like a list.
    let kind = panel.kind.as_deref().map_or("timeseries", |kind| if kind == "table" { "stat" } else { kind });
    json!({
        "id": id, "type": kind, "title": panel.title, "datasource": source, "targets": targets,
        "gridPos": { "x": at.0, "y": at.1, "w": at.2, "h": PANEL_HEIGHT },
        "fieldConfig": { "defaults": { "unit": panel.unit.as_deref().unwrap_or("short"), "min": 0 }, "overrides": [] },
    })
}

fn grafana(name: &str, board: &Board) -> Value {
    let (mut panels, mut y, mut id) = (Vec::new(), 0, 0);
    for row in &board.row {
        id += 1;
        let place = json!({ "x": 0, "y": y, "w": WIDTH, "h": 1 });
        panels.push(json!({ "id": id, "type": "row", "title": row.title, "gridPos": place, "panels": [] }));
        y += 1;
        // As many side by side as can be read.
        let columns = row.panel.len().min(3);
        for (number, one) in row.panel.iter().enumerate() {
            id += 1;
            let (column, line) = (number % columns, number / columns);
            let width = WIDTH / columns;
            panels.push(panel(one, id, (column * width, y + line * PANEL_HEIGHT, width)));
        }
        y += row.panel.len().div_ceil(columns) * PANEL_HEIGHT;
    }
    let mut choices =
        vec![json!({ "name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus" })];
    let instances = match (board.instance, board.agent) {
        (_, true) => Some(("Agent", "label_values(tidegate_agent_build_info, instance)")),
        (true, _) => Some(("Gateway", "label_values(tidegate_build_info, instance)")),
        _ => None,
    };
    if let Some((label, query)) = instances {
        choices.push(json!({
            "name": "instance", "label": label, "type": "query", "query": query, "refresh": 2,
            "datasource": { "type": "prometheus", "uid": "${source}" },
        }));
    }
    json!({
        "uid": format!("tidegate-{name}"), "title": board.title, "tags": ["tidegate"], "schemaVersion": 39, "version": 1,
        "refresh": "10s", "time": { "from": "now-1h", "to": "now" }, "templating": { "list": choices }, "panels": panels,
    })
}

#[test]
fn the_boards_for_grafana_are_as_their_lists_say() {
    let bless = std::env::var_os("TIDEGATE_BLESS").is_some();
    for (name, board) in boards() {
        let text = serde_json::to_string_pretty(&grafana(&name, &board)).unwrap() + "\n";
        let path = root().join(format!("{name}.json"));
        if bless {
            std::fs::write(&path, text).unwrap();
            continue;
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(found == text, "{} is not what its list says: TIDEGATE_BLESS=1 makes it again", path.display());
    }
}

/// The metrics that a text names, without the endings of histograms.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || "_:".contains(c)));
    let metrics = words.filter(|word| word.starts_with("tidegate_") || word.starts_with("process_"));
    let known = |word: &str| names::ALL.iter().any(|(name, ..)| *name == word);
    let stem = |word: &str| {
        let stem = ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end));
        stem.filter(|stem| !known(word) && known(stem)).unwrap_or(word).to_owned()
    };
    metrics.map(stem).collect()
}

#[test]
fn every_metric_of_a_board_exists_and_every_metric_is_on_a_board() {
    let known: BTreeSet<String> = names::ALL.iter().map(|(name, ..)| (*name).to_owned()).collect();
    let queries = |board: &Board| -> Vec<String> {
        board
            .row
            .iter()
            .flat_map(|row| &row.panel)
            .flat_map(|panel| &panel.query)
            .map(|query| query.expr.clone())
            .collect()
    };
    let text: String = boards().iter().flat_map(|(_, board)| queries(board)).map(|expr| expr + "\n").collect();
    let shown = named(&text);
    let unknown: Vec<_> = shown.difference(&known).collect();
    assert!(unknown.is_empty(), "no such metrics: {unknown:?}");
    let missing: Vec<_> = known.difference(&shown).collect();
    assert!(missing.is_empty(), "on no board: {missing:?}");
}
