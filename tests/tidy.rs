//! The repository's own rules, as tests: what a reviewer would otherwise have to say again and again.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const FILE_LINES_MAX: usize = 700;
const FUNCTION_LINES_MAX: usize = 70;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// One source file, its path relative to the repository.
struct Source {
    name: String,
    text: String,
    /// Compiled for tests only.
    is_test: bool,
}

impl Source {
    /// The product's lines: without unit tests at the end of the file.
    fn product_lines(&self) -> Vec<&str> {
        let lines: Vec<&str> = self.text.lines().collect();
        let tests = lines.windows(2).position(|pair| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod tests {"));
        lines[..tests.unwrap_or(lines.len())].to_vec()
    }

    /// Where the files of the modules declared here stand.
    fn folder(&self) -> &str {
        let stem = self.name.trim_end_matches(".rs");
        let own = ["/mod", "/lib", "/main"].iter().find_map(|root| stem.strip_suffix(root));
        own.unwrap_or(stem)
    }

    /// Paths, without `.rs`, of the modules declared here that exist for tests only.
    fn test_modules(&self) -> Vec<String> {
        let lines: Vec<&str> = self.text.lines().collect();
        let under_test = lines.windows(2).filter(|pair| pair[0].trim() == "#[cfg(test)]").map(|pair| pair[1].trim());
        let names = under_test.filter_map(|line| line.split("mod ").nth(1)?.strip_suffix(';'));
        names.map(|name| format!("{}/{name}", self.folder())).collect()
    }

    /// Product lines with their number, comments cut off.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = if self.is_test { Vec::new() } else { self.product_lines() };
        lines.into_iter().enumerate().map(|(at, line)| (at + 1, line.split("//").next().unwrap_or_default()))
    }
}

fn sources() -> Vec<Source> {
    let mut folders: Vec<PathBuf> = ["src", "tests", "loadgen", "benches"].map(|folder| root().join(folder)).to_vec();
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            if path.is_dir() && !name.contains("node_modules") && !name.contains("target") {
                folders.push(path);
            } else if name.ends_with(".rs") {
                let is_test = name.starts_with("tests/");
                found.push(Source { name, text: std::fs::read_to_string(&path).unwrap(), is_test });
            }
        }
    }
    assert!(found.len() > 20, "found only {} sources", found.len());
    found.sort_by(|a, b| a.name.cmp(&b.name));
    let for_tests: Vec<String> = found.iter().flat_map(Source::test_modules).collect();
    for source in &mut found {
        source.is_test |= for_tests.iter().any(|module| {
            source.name.strip_prefix(module.as_str()).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
        });
    }
    found
}

fn assert_none(offences: &[String], rule: &str) {
    assert!(offences.is_empty(), "{rule}:\n{}", offences.join("\n"));
}

#[test]
fn no_file_is_longer_than_one_sitting() {
    let long: Vec<_> = sources()
        .iter()
        .map(|source| (source.product_lines().len(), &source.name))
        .filter(|(lines, _)| *lines > FILE_LINES_MAX)
        .map(|(lines, name)| format!("{name}: {lines} lines"))
        .collect();
    assert_none(&long, "split these: at most 700 lines without unit tests");
}

#[test]
fn no_function_is_longer_than_a_screen() {
    let mut long = Vec::new();
    for source in sources().iter().filter(|source| !source.is_test) {
        let lines = source.product_lines();
        for (start, line) in lines.iter().enumerate() {
            let body = line.trim_start();
            let words: Vec<&str> = body.split_whitespace().take(5).collect();
            // A method without a body ends its signature, which may be several lines long, by a semicolon.
            let mut ends = lines[start..].iter().filter_map(|line| line.trim_end().chars().last());
            let has_body = ends.find(|end| matches!(end, '{' | '}' | ';')) == Some('{');
            if !words.contains(&"fn") || body.starts_with("//") || !has_body {
                continue;
            }
            // The format puts a function's closing brace at the indentation of its first line.
            let close = format!("{}}}", &line[..line.len() - body.len()]);
            let length = lines[start..].iter().position(|line| *line == close).unwrap_or(0) + 1;
            if length > FUNCTION_LINES_MAX {
                long.push(format!("{}:{}: {length} lines", source.name, start + 1));
            }
        }
    }
    assert_none(&long, "split these: at most 70 lines");
}

#[test]
fn nothing_unfinished_is_left() {
    let marks = ["to\u{64}o!", "db\u{67}!", "XX\u{58}", "FIX\u{4d}E", "unimplemente\u{64}!"];
    let mut left = Vec::new();
    for source in sources() {
        for (at, line) in source.text.lines().enumerate() {
            for mark in marks.iter().filter(|mark| line.contains(**mark)) {
                left.push(format!("{}:{}: {mark}", source.name, at + 1));
            }
        }
    }
    assert_none(&left, "finish or delete");
}

#[test]
fn every_module_says_what_it_is_for() {
    // Unit tests beside their module are what that module's comment is about.
    let silent: Vec<_> = sources()
        .iter()
        .filter(|source| !source.text.starts_with("//! ") && (!source.is_test || source.name.starts_with("tests/")))
        .map(|source| source.name.clone())
        .collect();
    assert_none(&silent, "these have no head comment");
}

#[test]
fn unsafe_code_stands_in_one_file() {
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| source.name != "src/journal/disk/aligned.rs") {
        for (at, line) in source.code() {
            if ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"].iter().any(|form| line.contains(form)) {
                found.push(format!("{}:{at}", source.name));
            }
        }
    }
    assert_none(&found, "unsafe is for src/journal/disk/aligned.rs alone");
}

/// Without an order tokio draws one by chance, which no seed gives again.
#[test]
fn every_select_has_an_order() {
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| source.name.starts_with("src/")) {
        let lines: Vec<_> = source.code().filter(|(_, line)| !line.trim().is_empty()).collect();
        for pair in lines.windows(2).filter(|pair| pair[0].1.contains("select! {")) {
            if pair[1].1.trim() != "biased;" {
                found.push(format!("{}:{}", source.name, pair[0].0));
            }
        }
    }
    assert_none(&found, "begin these with `biased;` and put the branches into the order that is meant");
}

#[test]
fn values_are_watched_through_one_channel() {
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| source.name.starts_with("src/")) {
        let foreign = |line: &str| line.contains("tokio::sync::") && line.contains("watch");
        found.extend(source.code().filter(|(_, line)| foreign(line)).map(|(at, _)| format!("{}:{at}", source.name)));
    }
    assert_none(&found, "use flow::watch, whose watchers wake in order");
}

#[test]
fn one_file_names_the_ring() {
    let name = ["tokio", "uring::"].join("_");
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| source.name != "src/journal/disk/ring.rs") {
        for (at, line) in source.code().filter(|(_, line)| line.contains(&name)) {
            found.push(format!("{}:{at}: {}", source.name, line.trim()));
        }
    }
    assert_none(&found, "the io_uring runtime is for src/journal/disk/ring.rs alone");
}

#[test]
fn only_the_command_line_prints() {
    let mut found = Vec::new();
    for source in sources().iter().filter(|s| s.name.starts_with("src/") && !s.name.starts_with("src/cli/")) {
        for (at, line) in source.code().filter(|(_, line)| line.contains("print!(") || line.contains("println!(")) {
            found.push(format!("{}:{at}: {}", source.name, line.trim()));
        }
    }
    assert_none(&found, "stages log and return, src/cli prints");
}

#[test]
fn every_format_magic_is_in_the_format_document() {
    let documents = ["docs/FORMAT.md", "docs/PROTOCOL.md"]
        .map(|name| std::fs::read_to_string(root().join(name)).unwrap_or_default());
    let mut magics = BTreeSet::new();
    for source in sources() {
        for (_, line) in source.code() {
            for (at, _) in line.match_indices("b\"TG") {
                let magic: String = line[at + 2..].chars().take_while(char::is_ascii_alphanumeric).collect();
                magics.insert((magic, source.name.clone()));
            }
        }
    }
    assert!(!magics.is_empty(), "no magic found: has their spelling changed?");
    let missing: Vec<_> = magics
        .iter()
        .filter(|(magic, _)| !documents.iter().any(|text| text.contains(magic.as_str())))
        .map(|(magic, name)| format!("{magic} of {name}"))
        .collect();
    assert_none(&missing, "not described in docs/FORMAT.md");
}

#[test]
fn the_metrics_document_lists_every_metric() {
    use std::fmt::Write as _;

    let path = root().join("docs/METRICS.md");
    let mut wanted = String::from(
        "# Metrics\n\nMade from `src/telemetry/names.rs`; after a change there, `TIDEGATE_BLESS=1 cargo test --test tidy` writes this \
         page again.\n\n\
         - A gateway shows its metrics at `/metrics` of its admin port, an agent at its `metrics_listen`, if that is set.\n\
         - `restore`, `export`, `drill`, `verify` and `keeper` leave theirs with `--metrics-file` for node-exporter's textfile collector.\n\
         - Percentiles of `tidegate_ack_seconds` are at most 5 % off from 1 ms to 100 ms (journaled) and from 0.5 s to 30 s \
         (vaulted).\n\
         - Disks with labels of their own are bounded by the gateway's `disk_lines`; `/v1/disks` has every one.\n\
         - What each guard of `tidegate_waiting` stands for: the head of `src/telemetry/waits.rs`. How an anomaly is \
         reckoned: the head of `src/gateway/packed.rs`.\n\
         - What recording costs on the way of the bytes: [PERFORMANCE.md](PERFORMANCE.md).\n\n\
         | name | kind | shown by | meaning |\n|---|---|---|---|\n",
    );
    for (name, kind, help) in tidegate::telemetry::names::ALL {
        let shown_by = tidegate::telemetry::names::shown_by(name);
        writeln!(wanted, "| `{name}` | {kind} | {shown_by} | {} |", help.trim()).unwrap();
    }
    if std::env::var_os("TIDEGATE_BLESS").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == wanted, "docs/METRICS.md is out of date: run TIDEGATE_BLESS=1 cargo test --test tidy");
}

#[test]
fn every_metric_is_recorded_somewhere() {
    let names = std::fs::read_to_string(root().join("src/telemetry/names.rs")).unwrap();
    let all: String = sources().iter().filter(|s| s.name.starts_with("src/")).map(|s| s.text.as_str()).collect();
    let unused: Vec<_> = names
        .lines()
        .filter_map(|line| line.trim().split_once(" = \"tidegate_")?.0.split_whitespace().last())
        .filter(|constant| !all.contains(&format!("names::{constant}")))
        .map(str::to_owned)
        .collect();
    assert_none(&unused, "never recorded");
}

#[test]
fn every_test_and_event_that_the_durability_document_names_exists() {
    let document = std::fs::read_to_string(root().join("docs/DURABILITY.md")).unwrap();
    let (simulation, others): (Vec<_>, Vec<_>) =
        sources().into_iter().partition(|source| source.name.starts_with("tests/simulation/"));
    let text = |sources: &[Source]| sources.iter().map(|source| source.text.as_str()).collect::<String>();
    let (simulated, all) = (text(&simulation), text(&others) + &text(&simulation));
    // Inside a table row, what stands between two backticks. Tests are the names of several words, events are in capitals.
    let rows = document.lines().filter(|line| line.starts_with('|'));
    let named: BTreeSet<&str> = rows.flat_map(|line| line.split('`').skip(1).step_by(2)).collect();
    let is_test = |name: &&&str| name.matches('_').count() >= 2 && !name.contains(['/', '.', ' ']);
    let tests = named.iter().filter(is_test);
    let missing_tests = tests.clone().filter(|name| !all.contains(&format!("fn {name}(")));
    let is_event = |name: &&&str| name.starts_with(char::is_uppercase) && name.chars().all(char::is_alphabetic);
    let missing_events = named
        .iter()
        .filter(is_event)
        .filter(|name| [" ", "("].iter().all(|end| !simulated.contains(&format!("    {name}{end}"))));
    assert!(tests.count() > 40, "the document names hardly any test: has its form changed?");
    let missing_events = missing_events.filter(|_| !simulation.is_empty());
    let missing: Vec<_> = missing_tests.chain(missing_events).map(|name| (*name).to_owned()).collect();
    assert_none(&missing, "named in docs/DURABILITY.md, but not there");
}

#[test]
fn the_product_is_never_broken_on_purpose() {
    const { assert!(!tidegate::mutants::on(tidegate::mutants::Mutant::AckBeforeSync)) };
}
