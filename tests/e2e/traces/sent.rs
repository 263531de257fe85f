//! What a build with traces sends, and that it waits for nobody.

use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use tidegate::cli::quickstart::child::{free_port, metric, wait_until};
use tokio::time::Instant;

use super::receiver::{Receiver, Span};
use crate::common::{PATIENCE, Scene, Setting, empty, folder, program, tidegate, turn};

const DISK_BYTES: u64 = 16 << 20;
const TOKEN: &str = "hunter2hunter2";

/// A setting whose daemons send their traces to these two places.
fn traced(gateway: &str, agent: &str, more: &str) -> Setting {
    let section = |url: &str| ("telemetry", format!("otlp_endpoint = {url:?}\n{more}"));
    Setting { gateway: vec![section(gateway)], agent: vec![section(agent)], ..Setting::default() }
}

/// The span of this name below `parent`, or without one first in its trace.
fn find<'a>(spans: &'a [Span], name: &str, parent: Option<&Span>) -> &'a Span {
    let parent_id = parent.map(|parent| parent.id.as_slice()).unwrap_or_default();
    let found = spans.iter().find(|span| span.name == name && span.parent == parent_id);
    let found = found.unwrap_or_else(|| panic!("no {name:?} below {parent:?} among {spans:#?}"));
    assert!(parent.is_none_or(|parent| parent.trace == found.trace), "{found:?} is of another trace than {parent:?}");
    found
}

fn has(span: &Span, attribute: &str, value: &str) {
    assert_eq!(span.attributes.get(attribute).map(String::as_str), Some(value), "{attribute} of {span:?}");
}

#[test]
fn the_steps_of_daemons_and_commands_reach_a_receiver_below_their_parents() {
    let _turn = turn();
    let (receiver, secrets) = (Receiver::start(), folder());
    let file = secrets.path().join("headers");
    std::fs::write(&file, format!("Authorization: Bearer {TOKEN}\n")).unwrap();
    let setting = traced(&receiver.url, &receiver.url, &format!("otlp_headers_file = {file:?}"));
    let mut scene = Scene::new(setting, &["disk1"], empty(DISK_BYTES));
    scene.wait_copied("disk1");
    scene.keep("disk1", "kept", None);
    scene.wait_vaulted();
    let sent =
        |scene: &Scene| metric(&scene.site.admin("/metrics").unwrap(), "tidegate_trace_spans_total{outcome=\"sent\"}");
    scene.wait("spans to be counted as sent", |scene| sent(scene) > 3.0);
    // Its next life begins another epoch.
    scene.kill_agent();
    scene.wait_copied("disk1");
    scene.stop();
    check_gateway(&receiver.of("tidegate-gateway"));
    check_agent(&receiver.of("tidegate-agent"));
    run_commands(&scene, &receiver, file.to_str().unwrap());
    check_commands(&receiver);
    let arrived = receiver.arrived.lock().unwrap();
    for head in &arrived.heads {
        assert!(head.starts_with("POST /v1/traces ") && head.contains(TOKEN), "{head}");
    }
    assert!(!format!("{:?}", arrived.spans).contains(TOKEN));
    let log = std::fs::read_to_string(scene.site.path("logs/gateway.log")).unwrap();
    assert!(log.contains("ready for agents") && !log.contains("open disk") && !log.contains(TOKEN), "{log}");
}

fn check_gateway(spans: &[Span]) {
    let start = find(spans, "start gateway", None);
    has(start, "gateway", "gw1");
    assert!(find(spans, "replay journal", Some(start)).attributes.contains_key("commits"));
    find(spans, "open vault", Some(start));
    for epoch in ["1", "2"] {
        let opened =
            |span: &&Span| span.name == "open disk" && span.attributes.get("epoch").is_some_and(|e| e == epoch);
        let open = spans.iter().find(opened).unwrap_or_else(|| panic!("no epoch {epoch} among {spans:#?}"));
        has(open, "disk", "disk1");
        has(open, "agent", "agent1");
        assert!(open.parent.is_empty());
        find(spans, "wait for turn", Some(open));
        let fork = find(spans, "fork", Some(open));
        find(spans, "wait until vaulted", Some(fork));
        find(spans, "create epoch", Some(fork));
    }
    let drain = find(spans, "drain gateway", None);
    for step in ["wait until vaulted", "stop uploads", "stop journal"] {
        find(spans, step, Some(drain));
    }
}

fn check_agent(spans: &[Span]) {
    let start = find(spans, "start agent", None);
    has(find(spans, "read disk state", Some(start)), "disk", "disk1");
    let opened = |span: &&Span| span.name == "open disk" && span.attributes.contains_key("epoch");
    let open = spans.iter().find(opened).unwrap_or_else(|| panic!("no disk was opened: {spans:#?}"));
    assert!(open.parent.is_empty());
    has(open, "disk", "disk1");
    has(open, "gateway", "gw1");
    has(open, "want", "fork");
    find(spans, "ask gateway", Some(open));
    find(spans, "begin epoch", Some(open));
    let stop = find(spans, "stop agent", None);
    find(spans, "wait until vaulted", Some(stop));
    has(find(spans, "close disk", Some(stop)), "disk", "disk1");
}

/// A restore that is told by flags, a verification that is told by a variable, a run of the keeper by its file.
fn run_commands(scene: &Scene, receiver: &Receiver, headers: &str) {
    let (vault, identity) = (scene.site.vault_url(), scene.site.identity().display().to_string());
    let from = ["--vault", vault, "--identity", &identity];
    let target = scene.dir().join("restored.img").display().to_string();
    let to = ["--otlp-endpoint", &receiver.url, "--otlp-headers-file", headers];
    let (code, out, err) = tidegate(&[&["restore", "--disk", "disk1", "--to", &target], &from[..], &to[..]].concat());
    assert_eq!(code, 0, "{out}{err}");
    let mut verify = Command::new(program());
    verify.arg("verify").args(from).env("OTEL_EXPORTER_OTLP_ENDPOINT", &receiver.url);
    let verified = verify.args(["--otlp-headers-file", headers]).output().unwrap();
    assert!(verified.status.success(), "{verified:?}");
    let config = scene.dir().join("keeper.toml");
    let policy = format!(
        "[vault]\nurl = {vault:?}\ncatalog_key = 'catalog.key'\n[policy]\nevery = '24 h'\n\
         [telemetry]\notlp_endpoint = {:?}\notlp_headers_file = {headers:?}\n",
        receiver.url
    );
    std::fs::write(&config, policy).unwrap();
    let (code, out, err) = tidegate(&["keeper", "once", "--config", config.to_str().unwrap()]);
    assert!(code == 0 || code == 75, "{code}: {out}{err}");
    let (code, _, err) = tidegate(&[&["restore", "--disk", "nothing", "--to", "/x"], &from[..], &to[..]].concat());
    assert_eq!(code, 1, "{err}");
}

fn check_commands(receiver: &Receiver) {
    let spans = receiver.of("tidegate-restore");
    let (failed, done): (Vec<Span>, Vec<Span>) = spans.into_iter().partition(|span| span.failed);
    assert!(failed.iter().any(|span| span.name == "restore" && span.parent.is_empty()), "{failed:#?}");
    let restore = find(&done, "restore", None);
    find(&done, "open vault", Some(restore));
    let choose = find(&done, "choose points", Some(restore));
    has(find(&done, "load indexes", Some(choose)), "disk", "disk1");
    let disk = find(&done, "restore disk", Some(restore));
    has(disk, "disk", "disk1");
    find(&done, "plan", Some(disk));
    find(&done, "write image", Some(disk));
    find(&done, "give names", Some(restore));
    let spans = receiver.of("tidegate-verify");
    let verify = find(&spans, "verify", None);
    find(&spans, "open vault", Some(verify));
    find(&spans, "look at vault", Some(verify));
    let spans = receiver.of("tidegate-keeper");
    let run = find(&spans, "keeper run", None);
    for step in ["read pins", "judge", "tidy"] {
        find(&spans, step, Some(run));
    }
}

#[test]
fn a_receiver_that_is_away_or_silent_costs_a_line_and_a_counter_and_holds_up_nothing() {
    let _turn = turn();
    // Nobody listens at the first; the second takes connections and never answers.
    let away = free_port(false).unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let (away, silent_url) = (format!("http://127.0.0.1:{away}"), format!("http://{}", silent.local_addr().unwrap()));
    let mut scene = Scene::new(traced(&away, &silent_url, ""), &["disk1"], empty(DISK_BYTES));
    scene.wait_copied("disk1");
    scene.keep("disk1", "kept", None);
    scene.wait_vaulted();
    let lost =
        |scene: &Scene| metric(&scene.site.admin("/metrics").unwrap(), "tidegate_trace_spans_total{outcome=\"lost\"}");
    scene.wait("spans to be counted as lost", |scene| lost(scene) > 3.0);
    scene.kill_agent();
    scene.wait_copied("disk1");
    let before = lost(&scene);
    assert!(wait_until(PATIENCE, || lost(&scene) > before), "the second life's spans are lost too");
    let began = Instant::now();
    scene.stop();
    assert!(began.elapsed() < Duration::from_secs(30), "the stop took {:?}", began.elapsed());
    let log = std::fs::read_to_string(scene.site.path("logs/gateway.log")).unwrap();
    assert_eq!(log.matches("traces do not reach").count(), 1, "{log}");
    let identity = scene.site.identity().display().to_string();
    let from = ["restore", "--vault", scene.site.vault_url(), "--identity", &identity, "--disk", "disk1", "--to"];
    let timed = |name: &str, more: &[&str]| {
        let (target, began) = (scene.dir().join(name).display().to_string(), Instant::now());
        let (code, out, err) = tidegate(&[&from[..], &[&target], more].concat());
        assert_eq!(code, 0, "{out}{err}");
        began.elapsed()
    };
    let (without, with) = (timed("without.img", &[]), timed("with.img", &["--otlp-endpoint", &silent_url]));
    assert!(with < without + Duration::from_secs(10), "{with:?} beside {without:?}");
    scene.assert_all_restore();
}
