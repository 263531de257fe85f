//! Each alert is made to fire by what really causes it, and to clear after: here those of certificates, clocks and the
//! vault's contents, and the list of all.
//!
//! The short scenarios run with all tests; `tests/observe` runs all.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use tidegate::cli::quickstart::child::{Child, Family, http_get, metric};
use tidegate::nbd::Client;

use super::prometheus::{Prometheus, RULES, agent_page};
use super::{DISK_BYTES, copies, machine, store};
use crate::common::{PATIENCE, Scene, Setting, empty, program, succeed, tidegate, turn};
use crate::damage::batches;
use crate::encrypted::{noise, text};
use crate::surroundings::faketime;

const CERTIFICATE: [&str; 2] = ["TidegateCertificateEnds", "TidegateCertificateEndsSoon"];
const AGENTS_CLOCK: [&str; 1] = ["TidegateClockApart"];
const ENCRYPTED: [&str; 1] = ["TidegateAnomaly"];
const DAMAGED: [&str; 2] = ["TidegateDamage", "TidegateVerifyStale"];
const RECIPIENTS: [&str; 1] = ["TidegateRecipientsChanged"];
const DRILL: [&str; 2] = ["TidegateDrillFailed", "TidegateDrillStale"];
const HELD_BACK: [&str; 2] = ["TidegateRetentionHeldBack", "TidegateRetentionStale"];

/// All that scenarios make fire and clear; [`Prometheus::assert_seen`] holds each scenario to its lists.
const CAUSED: [&[&str]; 18] = [
    &copies::CUT_OFF,
    &copies::FENCED,
    &copies::CONFLICT,
    &store::REFUSED,
    &store::CLOCK,
    &store::AWAY,
    &store::SLOW,
    &machine::RELOAD,
    &machine::OVERLOADED,
    &machine::MISSING,
    &machine::PROCESSORS,
    &machine::MEMORY,
    &CERTIFICATE,
    &ENCRYPTED,
    &RECIPIENTS,
    &DAMAGED,
    &DRILL,
    &HELD_BACK,
];

#[test]
fn every_alert_of_the_rules_has_a_scenario_that_causes_it() {
    let rules = std::fs::read_to_string(RULES).unwrap();
    let alerts: BTreeSet<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let caused: BTreeSet<&str> = CAUSED.iter().flat_map(|list| list.iter().copied()).collect();
    assert!(alerts.len() > 20, "{alerts:?}");
    assert_eq!(alerts, caused);
}

/// A scene whose disks are copied, and a Prometheus that has seen its gateway.
pub fn watched(setting: Setting, agent: Option<SocketAddr>, disks: &[&str], disk_bytes: u64) -> (Scene, Prometheus) {
    let mut scene = Scene::new(setting, disks, empty(disk_bytes));
    disks.iter().for_each(|disk| scene.wait_copied(disk));
    let prometheus = Prometheus::start(&scene, agent);
    scene.wait("Prometheus to scrape", |_| prometheus.sees());
    (scene, prometheus)
}

pub fn restart_gateway(scene: &mut Scene) {
    scene.gateway.take().unwrap().terminate(PATIENCE).unwrap();
    scene.gateway = Some(scene.site.start_gateway().unwrap());
}

#[test]
fn a_certificate_near_its_end_and_a_clock_that_is_off() {
    let _turn = turn();
    let (mut scene, prometheus) = watched(Setting::default(), None, &["disk1"], DISK_BYTES);
    let issue = |scene: &Scene, days: &str| {
        let pki = scene.site.path("pki").display().to_string();
        let host = ["gateway", "--id", "gw1", "--host", "127.0.0.1", "--host", "localhost"];
        succeed(program(), &[&["pki", "issue", "--dir", &pki, "--force", "--days", days], &host[..]].concat());
    };
    prometheus.cause(&mut scene, &CERTIFICATE, |scene| {
        issue(scene, "2");
        restart_gateway(scene);
    });
    issue(&scene, "300");
    restart_gateway(&mut scene);
    prometheus.wait_clear(&mut scene, &CERTIFICATE);

    scene.agent.take().unwrap().terminate(PATIENCE).unwrap();
    let config = scene.site.path("agent.toml");
    let faked = faketime("+90s", &["agent", "--config", config.to_str().unwrap()]);
    let arguments: Vec<&str> = faked.iter().map(String::as_str).collect();
    let log = scene.site.path("logs/agent.log");
    prometheus.cause(&mut scene, &AGENTS_CLOCK, |scene| {
        scene.agent = Some(Child::start("agent", &Family::default(), &log, Path::new("env"), &arguments).unwrap());
    });
    scene.agent.take().unwrap().terminate(PATIENCE).unwrap();
    scene.agent = Some(scene.site.start_agent().unwrap());
    prometheus.wait_clear(&mut scene, &AGENTS_CLOCK);
    prometheus.assert_seen(&[&CERTIFICATE, &AGENTS_CLOCK]);
}

#[test]
#[ignore = "long: tests/observe runs it"]
fn a_disk_that_somebody_encrypts() {
    let _turn = turn();
    let (mut scene, prometheus) = watched(Setting::default(), None, &["disk1"], 512 << 20);
    let mut guest = Client::connect(&scene.site.nbd("disk1"), "disk1").unwrap();
    let mut write = |mib: u64, fill: fn(u64, &mut [u8])| {
        let mut piece = vec![0; 1 << 20];
        for at in 0..mib {
            fill(at, &mut piece);
            guest.write(at << 20, &piece, false).unwrap();
        }
    };
    write(300, text);
    let shown = |scene: &Scene, name: &str| metric(&scene.site.admin("/metrics").unwrap(), name);
    scene.wait("the text to be vaulted", |scene| shown(scene, "tidegate_disks_rpo_max_seconds") == 0.0);
    let usual = shown(&scene, "tidegate_disks_anomaly_max_ratio");
    assert!(usual < 0.3, "{usual}");
    prometheus.cause(&mut scene, &ENCRYPTED, |_| write(200, noise));
    write(300, text);
    prometheus.wait_clear(&mut scene, &ENCRYPTED);
    prometheus.assert_seen(&[&ENCRYPTED]);
}

#[test]
#[ignore = "long: tests/observe runs it"]
fn recipients_that_nobody_pinned() {
    let _turn = turn();
    let (mut scene, prometheus) = watched(Setting::default(), None, &["disk1"], DISK_BYTES);
    let (vault, identity) = (scene.site.vault_url().to_owned(), scene.site.identity().display().to_string());
    let recipients = |verb: &str, rest: &[&str]| -> serde_json::Value {
        let from = ["vault", "recipients", verb, "--vault", &vault, "--identity", &identity, "--json"];
        serde_json::from_str(&succeed(program(), &[&from[..], rest].concat())).unwrap()
    };
    let pin = |scene: &Scene, pins: &[&str]| {
        let file = scene.site.path("gateway.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with("recipients_pin"));
        let line = format!("[vault]\nrecipients_pin = {pins:?}");
        std::fs::write(&file, lines.collect::<Vec<_>>().join("\n").replace("[vault]", &line) + "\n").unwrap();
        crate::reload::hang_up(scene.gateway.as_ref());
    };
    let before = recipients("list", &[])["pin"].as_str().unwrap().to_owned();
    pin(&scene, &[&before]);
    scene.wait("the reload", |scene| metric(&scene.site.admin("/metrics").unwrap(), "tidegate_reload_refused") == 0.0);
    let new = scene.site.path("new.key").display().to_string();
    prometheus.wait_quiet(&mut scene, &RECIPIENTS);
    let after = recipients("add", &["--new-identity", &new])["pin"].as_str().unwrap().to_owned();
    prometheus.wait_firing(&mut scene, &RECIPIENTS);
    scene.wait("the list to be found unpinned", |scene| {
        metric(&scene.site.admin("/metrics").unwrap(), "tidegate_recipients_unpinned") == 1.0
    });
    pin(&scene, &[&before, &after]);
    prometheus.wait_clear(&mut scene, &RECIPIENTS);
    prometheus.assert_seen(&[&RECIPIENTS]);
}

#[test]
fn a_damaged_vault_one_that_nobody_found_whole_and_a_drill_that_fails() {
    let _turn = turn();
    let (mut scene, prometheus) = watched(Setting::default(), None, &["disk1"], DISK_BYTES);
    let load = scene.load("disk1", 55, 8);
    scene.write_more(&load, 8 << 20);
    scene.keep("disk1", "kept", Some(&load));
    drop(load);
    scene.wait_vaulted();
    let largest = batches(&scene.dir().join("vault")).into_iter().max_by_key(|path| path.metadata().unwrap().len());
    let batch = largest.unwrap();
    let (file, at) =
        (File::options().read(true).write(true).open(&batch).unwrap(), batch.metadata().unwrap().len() / 2);
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
    let told = Prometheus::file(&scene, "nightly.prom");
    let (vault, identity) = (scene.site.vault_url().to_owned(), scene.site.identity().display().to_string());
    let verify = ["verify", "--vault", &vault, "--identity", &identity, "--metrics-file", &told];
    let (code, out, err) = prometheus.cause(&mut scene, &DAMAGED, |_| tidegate(&verify));
    assert_eq!(code, 3, "{out}{err}");
    file.write_all_at(&byte, at).unwrap();
    let (code, out, err) = tidegate(&verify);
    assert_eq!(code, 0, "{out}{err}");
    prometheus.wait_clear(&mut scene, &DAMAGED);

    // A drill whose program finds something missing.
    let (dir, rehearsal) = (scene.dir().display().to_string(), Prometheus::file(&scene, "rehearsal.prom"));
    let from = ["drill", "--vault", &vault, "--identity", &identity, "--disk", "disk1", "--dir", &dir];
    let drill = |check: &str| tidegate(&[&from[..], &["--metrics-file", &rehearsal, "--check", check]].concat());
    let (code, out, err) = prometheus.cause(&mut scene, &DRILL, |_| drill("false"));
    assert_eq!(code, 1, "{out}{err}");
    let (code, out, err) = drill("true");
    assert_eq!(code, 0, "{out}{err}");
    prometheus.wait_clear(&mut scene, &DRILL);

    // A batch that is not there holds retention back.
    let (config, retention) = (scene.dir().join("keeper.toml"), Prometheus::file(&scene, "retention.prom"));
    let text = format!("[vault]\nurl = {vault:?}\ncatalog_key = 'catalog.key'\n[policy]\nevery = '24 h'\n");
    std::fs::write(&config, text).unwrap();
    let config = config.display().to_string();
    let keeper = ["keeper", "once", "--config", &config, "--metrics-file", &retention];
    let away = scene.dir().join("away");
    std::fs::rename(&batch, &away).unwrap();
    let (code, out, err) = prometheus.cause(&mut scene, &HELD_BACK, |_| tidegate(&keeper));
    assert_eq!(code, 3, "{out}{err}");
    std::fs::rename(&away, &batch).unwrap();
    let (code, out, err) = tidegate(&keeper);
    assert_eq!(code, 0, "{out}{err}");
    prometheus.wait_clear(&mut scene, &HELD_BACK);
    prometheus.assert_seen(&[&DAMAGED, &DRILL, &HELD_BACK]);
}

#[test]
fn an_agent_shows_its_disks_on_a_page_of_its_own_and_only_if_asked() {
    let _turn = turn();
    let (setting, page) = agent_page();
    let mut scene = Scene::new(setting, &["disk1", "disk2"], empty(DISK_BYTES));
    scene.wait_copied("disk1");
    let text = http_get(page, "/metrics").unwrap().1;
    for line in [
        "tidegate_agent_connected 1",
        "tidegate_agent_disk_state{disk=\"disk1\",state=\"protected\"} 1",
        "tidegate_agent_disk_state{disk=\"disk2\",state=\"fenced\"} 0",
        "tidegate_agent_connection_attempts_total{outcome=\"connected\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
    }
    assert!(text.contains("transport=\"quic\"} 1") && metric(&text, "tidegate_agent_rtt_seconds") > 0.0, "{text}");
    // Port and file are taken: another agent says which setting to change.
    let (config, other) = (scene.site.path("agent.toml"), scene.site.path("other.toml"));
    let taken = std::fs::read_to_string(&config).unwrap().replace("state_dir = \"agent\"", "state_dir = \"other\"");
    std::fs::write(&other, taken).unwrap();
    let (code, _, err) = tidegate(&["agent", "--config", other.to_str().unwrap()]);
    assert!(code == 1 && err.contains("metrics_listen") && err.contains(&page.to_string()), "{code}: {err}");
}
