//! A page that shows what `run --json` or `bench --json` told: plots over time, tables, nothing from any network.

mod chart;

use std::fmt::Write as _;

use serde_json::Value;
use tidegate::config::show_size;

use crate::run::outcome::Sample;
use chart::{Chart, Line, Scale};

/// What is no outcome of a run or bench.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAnOutcomeError;

impl std::fmt::Display for NotAnOutcomeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("this is neither what `loadgen run --json` nor what `loadgen bench --json` prints")
    }
}

impl std::error::Error for NotAnOutcomeError {}

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--faint:#d8dde3;--s0:#1f5fbf;--s1:#c2610c;--s2:#4a7f2c;--s3:#8a3fa0;--bad:#b3261e}\
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ed;--paper:#15181c;--faint:#343a41;--s0:#7fb0ff;--s1:#ffae66;--s2:#9fd67e;--s3:#d79bea;--bad:#ff8a80}}\
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:76rem;margin:2rem auto;padding:0 1rem}\
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .9rem .2rem 0;text-align:left;border-bottom:1px solid var(--faint)}\
td+td,th+th{text-align:right;font-variant-numeric:tabular-nums}.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,30rem),1fr));gap:1.5rem}\
figure{margin:0}figcaption{font-weight:600}svg{width:100%;height:auto}svg text{fill:var(--ink);font-size:12px}\
@media(max-width:40rem){svg text{font-size:17px}}.key{width:2rem;height:.5rem;vertical-align:middle;margin-right:.4rem}\
.grid{stroke:var(--faint)}polyline{fill:none;stroke-width:1.6;stroke:currentColor}.s0{color:var(--s0)}.s1{color:var(--s1)}.s2{color:var(--s2)}.s3{color:var(--s3)}\
polyline.s1{stroke-dasharray:7 3}polyline.s2{stroke-dasharray:2 3}polyline.s3{stroke-dasharray:10 3 2 3}\
ul{list-style:none;display:flex;flex-wrap:wrap;gap:0 1.2rem;margin:.2rem 0;padding:0}.failed{color:var(--bad);font-weight:600}";

/// Makes the page.
///
/// # Errors
/// [`NotAnOutcomeError`].
pub fn page(outcome: &Value) -> Result<String, NotAnOutcomeError> {
    let mut out = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width,initial-scale=1\"><title>Tidegate under load</title><style>{STYLE}</style>\
         <h1>Tidegate under load</h1>"
    );
    failures(&mut out, outcome);
    if let Some(rounds) = outcome.get("rounds").and_then(Value::as_array) {
        bench(&mut out, outcome);
        for (number, round) in rounds.iter().enumerate() {
            for (name, title) in [("full", "full load"), ("half", "half load"), ("seventy", "70 % load")] {
                let run = round.get(name).filter(|run| !run.is_null());
                run.map_or(Ok(()), |run| section(&mut out, &format!("Round {}: {title}", number + 1), run))?;
            }
        }
    } else if let Some(runs) = outcome.get("runs").and_then(Value::as_array) {
        scenario(&mut out, outcome);
        for named in runs {
            let title = named.get("title").and_then(Value::as_str).unwrap_or("Run");
            section(&mut out, title, named.get("run").ok_or(NotAnOutcomeError)?)?;
        }
    } else {
        section(&mut out, "Run", outcome)?;
    }
    out.push_str("</html>\n");
    Ok(out)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn failures(out: &mut String, outcome: &Value) {
    let failures = outcome.get("failures").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for failure in failures.iter().filter_map(Value::as_str) {
        let _ = write!(out, "<p class=\"failed\">{}</p>", escape(failure));
    }
}

fn bench(out: &mut String, outcome: &Value) {
    out.push_str("<table><tr><th>figure</th><th>median</th><th>least</th><th>most</th></tr>");
    for row in outcome.get("spread").and_then(Value::as_array).into_iter().flatten() {
        let name = row.get(0).and_then(Value::as_str).unwrap_or_default();
        let value = |key: &str| row.get(1).and_then(|spread| spread.get(key)?.as_f64());
        let cell = |key: &str| value(key).map(|value| figure_text(name, value)).unwrap_or_default();
        let _ = write!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(name),
            cell("median"),
            cell("least"),
            cell("most")
        );
    }
    out.push_str("</table>");
    let limits = outcome.pointer("/rounds/0/limits/primitives").and_then(Value::as_array);
    if let Some(primitives) = limits {
        out.push_str("<table><tr><th>primitive, first round</th><th>CPU s per GiB</th><th>share</th></tr>");
        for one in primitives {
            let name = one.get("name").and_then(Value::as_str).unwrap_or_default();
            let cell = |key: &str| one.get(key).and_then(Value::as_f64).map(number).unwrap_or_default();
            let (cost, share) = (cell("cpu_seconds_per_gib"), cell("share"));
            let _ = write!(out, "<tr><td>{}</td><td>{cost}</td><td>{share}</td></tr>", escape(name));
        }
        out.push_str("</table>");
    }
}

/// The figures of a scenario, with what some of them are meant not to exceed.
fn scenario(out: &mut String, outcome: &Value) {
    let name = outcome.get("scenario").and_then(Value::as_str).unwrap_or_default();
    let _ = write!(out, "<h2>Scenario: {}</h2>", escape(name));
    out.push_str("<table><tr><th>figure</th><th>measured</th><th>target</th></tr>");
    let targets = outcome.get("targets").and_then(Value::as_array);
    for (name, value) in outcome.as_object().into_iter().flatten() {
        let Some(value) = value.as_f64() else { continue };
        let is_of = |target: &&Value| target.get("figure").and_then(Value::as_str) == Some(name);
        let target = targets.into_iter().flatten().find(is_of);
        let bound =
            |key: &str| target.and_then(|target| target.get(key)?.as_f64()).map(|value| figure_text(name, value));
        let most = bound("at-most").map(|most| format!("at most {most}"));
        let least = bound("at-least").map(|least| format!("at least {least}"));
        let met = target.and_then(|target| target.get("met")?.as_bool()).unwrap_or(true);
        let class = if met { "" } else { " class=\"failed\"" };
        let (shown, target) = (figure_text(name, value), most.or(least).unwrap_or_default());
        let _ = write!(out, "<tr><td>{}</td><td{class}>{shown}</td><td>{target}</td></tr>", escape(name));
    }
    out.push_str("</table>");
}

/// A figure in words; its name says its unit.
#[must_use]
pub fn figure_text(name: &str, value: f64) -> String {
    match name {
        name if name.ends_with("_bytes_per_second") => rate(value),
        name if name.ends_with("_agent_bytes") => format!("{:.1} KiB", value / 1024.0),
        name if name.starts_with("drift_") || name.ends_with("_share") => format!("{:.2} %", value * 100.0),
        name if name.starts_with("memory_") => format!("{:.1} MiB", value / f64::from(1 << 20)),
        name if name.contains("_ack_seconds") || name.contains("rpo_seconds") || name.ends_with("_seconds") => {
            seconds(value)
        }
        name if name.ends_with("_per_gib") && !name.contains("cpu") => format!("{value:.0}"),
        _ => number(value),
    }
}

fn number(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.3}") }
}

fn section(out: &mut String, title: &str, run: &Value) -> Result<(), NotAnOutcomeError> {
    let samples = run.get("samples").cloned().ok_or(NotAnOutcomeError)?;
    let samples: Vec<Sample> = serde_json::from_value(samples).map_err(|_| NotAnOutcomeError)?;
    let _ = write!(out, "<h2>{}</h2>", escape(title));
    out.push_str("<table>");
    let figure = |pointer: &str| run.pointer(pointer).and_then(Value::as_f64);
    for (name, pointer, shown) in [
        ("agents", "/agents", number as fn(f64) -> String),
        ("disks of each", "/disks_each", number),
        ("sent", "/sent_bytes", size),
        ("throughput", "/throughput_bytes_per_second", rate),
        ("journaled, p99", "/journaled_ack_seconds/p99", seconds),
        ("vaulted, p99", "/rpo_seconds/p99", seconds),
        ("load generator late, at most", "/late_seconds_max", seconds),
    ] {
        if let Some(value) = figure(pointer) {
            let _ = write!(out, "<tr><td>{name}</td><td>{}</td></tr>", shown(value));
        }
    }
    out.push_str("</table><div class=\"plots\">");
    charts(&samples).iter().filter_map(Chart::svg).for_each(|svg| out.push_str(&svg));
    out.push_str("</div>");
    Ok(())
}

fn size(value: f64) -> String {
    show_size(value as u64)
}

fn rate(value: f64) -> String {
    let digits = if value < 100e6 { 1 } else { 0 };
    format!("{:.digits$} MB/s", value / 1e6)
}

fn seconds(value: f64) -> String {
    if value >= 1.0 {
        format!("{value:.1} s")
    } else if value >= 1e-3 {
        format!("{:.1} ms", value * 1e3)
    } else {
        format!("{:.0} us", value * 1e6)
    }
}

/// Shorter times between samples give no rate: the one at the end of a run may come just after the one before.
const RATE_SECONDS_MIN: f64 = 0.5;

/// What changed from one sample to the next, per second.
fn per_second(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> Vec<(f64, f64)> {
    let pairs = samples.windows(2).map(|pair| (&pair[0], &pair[1], pair[1].seconds - pair[0].seconds));
    let long = pairs.filter(|(_, _, seconds)| *seconds >= RATE_SECONDS_MIN);
    long.map(|(from, to, seconds)| (to.seconds, (of(to) - of(from)) / seconds)).collect()
}

fn values(samples: &[Sample], of: impl Fn(&Sample) -> Option<f64>) -> Vec<(f64, f64)> {
    samples.iter().filter_map(|sample| Some((sample.seconds, of(sample)?))).collect()
}

fn charts(samples: &[Sample]) -> Vec<Chart> {
    let line = |name, points| Line { name, points };
    let journaled = |of: fn(&Sample) -> f64| values(samples, |s| (s.journaled.count > 0).then(|| of(s)));
    let vaulted = |of: fn(&Sample) -> f64| values(samples, |s| (s.vaulted.count > 0).then(|| of(s)));
    let cpu: Vec<Sample> = samples.iter().filter(|s| s.gateway_cpu_seconds.is_some()).copied().collect();
    let even = |title, shown, lines| Chart { title, scale: Scale::Even, shown, lines };
    let sizes = |title, lines| Chart { title, scale: Scale::Sizes, shown: size, lines };
    let decades = |title, lines| Chart { title, scale: Scale::Decades, shown: seconds, lines };
    vec![
        even(
            "Throughput",
            rate,
            vec![
                line("sent", per_second(samples, |s| s.sent_bytes as f64)),
                line("journaled", per_second(samples, |s| s.journaled_bytes as f64)),
                line("vaulted", per_second(samples, |s| s.vaulted_bytes as f64)),
            ],
        ),
        decades(
            "Until journaled",
            vec![
                line("p50", journaled(|s| s.journaled.p50)),
                line("p99", journaled(|s| s.journaled.p99)),
                line("p99.9", journaled(|s| s.journaled.p999)),
            ],
        ),
        decades(
            "Until vaulted (RPO)",
            vec![
                line("p50", vaulted(|s| s.vaulted.p50)),
                line("p99", vaulted(|s| s.vaulted.p99)),
                line("p99.9", vaulted(|s| s.vaulted.p999)),
                line("oldest waiting", values(samples, |s| Some(s.oldest_seconds).filter(|oldest| *oldest > 0.0))),
            ],
        ),
        sizes(
            "Memory of the gateway",
            vec![line("resident", values(samples, |s| s.gateway_memory_bytes.map(|bytes| bytes as f64)))],
        ),
        sizes("Journal", vec![line("in use", values(samples, |s| s.journal_used_bytes.map(|bytes| bytes as f64)))]),
        even(
            "Processor of the gateway",
            |cores| format!("{cores:.1} cores"),
            vec![line("busy", per_second(&cpu, |s| s.gateway_cpu_seconds.unwrap_or(0.0)))],
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::tally::Latency;

    fn samples() -> Value {
        let sample = |at: u64| Sample {
            seconds: at as f64,
            sent_bytes: at * 100_000_000,
            journaled_bytes: at * 90_000_000,
            vaulted_bytes: at * 80_000_000,
            journaled: Latency { count: 9, p50: 0.001, p99: 0.01, p999: 0.02, max: 0.03 },
            gateway_memory_bytes: Some(300 << 20),
            ..Sample::default()
        };
        serde_json::to_value((1..30).map(sample).collect::<Vec<_>>()).expect("JSON")
    }

    #[test]
    fn a_page_holds_plots_and_failures_and_asks_no_network() {
        let run = serde_json::json!({"samples": samples(), "agents": 3, "failures": ["<disk> & more"]});
        let html = page(&run).expect("a page");
        assert!(html.contains("Until journaled") && html.contains("Memory of the gateway"));
        assert!(!html.contains("Processor of the gateway"), "nothing is known of it");
        assert!(html.contains("&lt;disk&gt; &amp; more") && html.contains("100 MB/s"));
        for foreign in ["http:", "https:", "<script", "src=", "@import", "url("] {
            assert!(!html.contains(foreign), "{foreign}");
        }
    }

    #[test]
    fn a_bench_shows_its_spread_and_every_round() {
        let run = serde_json::json!({"samples": samples()});
        let limits = serde_json::json!({"primitives": [{"name": "LZ4", "cpu_seconds_per_gib": 1.25, "share": 1.0}]});
        let round = serde_json::json!({"full": run, "half": null, "seventy": run, "limits": limits});
        let spread = serde_json::json!([["cpu_ratio", {"median": 1.2, "least": 1.1, "most": 1.3}]]);
        let html = page(&serde_json::json!({"spread": spread, "rounds": [round, round]})).expect("a page");
        assert!(html.contains("<td>cpu_ratio</td><td>1.200</td>") && html.contains("<td>LZ4</td><td>1.250</td>"));
        assert_eq!((html.matches("full load</h2>").count(), html.matches("half load</h2>").count()), (2, 0));
        assert_eq!(page(&serde_json::json!({"x": 1})), Err(NotAnOutcomeError));
    }

    #[test]
    fn a_scenario_shows_its_figures_and_which_of_them_are_too_large() {
        let run = serde_json::json!({"title": "A <trickle>", "run": {"samples": samples(), "disks_each": 1}});
        let html = page(&serde_json::json!({
            "scenario": "idle", "agents": 10_000.0, "much": 2.0, "little": -0.5,
            "targets": [
                {"figure": "much", "at-most": 1.5, "met": false}, {"figure": "little", "at-least": 0.25, "met": true}
            ], "runs": [run]
        }));
        let html = html.expect("a page");
        assert!(html.contains("<td>much</td><td class=\"failed\">2</td><td>at most 1.500</td>"), "{html}");
        assert!(
            html.contains("<td>little</td><td>-0.500</td><td>at least 0.250</td>") && html.contains("<td>10000</td>")
        );
        assert!(html.contains("A &lt;trickle&gt;</h2>") && html.contains("<td>disks of each</td><td>1</td>"));
    }

    #[test]
    fn a_sample_just_after_another_gives_no_rate() {
        let at = |seconds: f64, sent_bytes| Sample { seconds, sent_bytes, ..Sample::default() };
        let samples = [at(1.0, 10), at(2.0, 30), at(2.01, 90)];
        assert_eq!(per_second(&samples, |sample| sample.sent_bytes as f64), [(2.0, 20.0)]);
    }
}
