//! Each alert is made to fire by what really causes it, and to clear after.
//!
//! The short ones run with all tests; `tests/observe` runs all.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use loadgen::sink::{Account, Limits, Sink, Weather};
use tidegate::cli::quickstart::child::{Child, Family, http_get, metric};
use tidegate::nbd::{Client, Listen};

use super::DISK_BYTES;
use super::prometheus::{Prometheus, agent_page};
use crate::common::{PATIENCE, Scene, Setting, empty, program, succeed, tidegate, turn};
use crate::damage::batches;
use crate::surroundings::faketime;

fn sink(name: &str) -> (Sink, String) {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let sink = Sink::start(any, None, Account::default(), Limits::default(), Weather::default()).unwrap();
    let url = sink.vault_url(name);
    (sink, url)
}

/// A scene whose disk is copied, and a Prometheus that has seen its gateway with no alert.
fn scene(setting: Setting, agent: Option<SocketAddr>, disk_bytes: u64) -> (Scene, Prometheus) {
    let mut scene = Scene::new(setting, &["disk1"], empty(disk_bytes));
    scene.wait_copied("disk1");
    let prometheus = Prometheus::start(&scene, agent);
    scene.wait("Prometheus to scrape", |_| prometheus.sees());
    (scene, prometheus)
}

fn restart_gateway(scene: &mut Scene) {
    scene.gateway.take().unwrap().terminate(PATIENCE).unwrap();
    scene.gateway = Some(scene.site.start_gateway().unwrap());
}

#[test]
fn an_agent_without_a_gateway_and_a_copy_of_its_machine() {
    let _turn = turn();
    let (setting, page) = agent_page();
    let (mut scene, prometheus) = scene(setting, Some(page), DISK_BYTES);
    scene.gateway.take().unwrap().kill().unwrap();
    prometheus.wait_firing(&mut scene, &["TidegateGatewayDown", "TidegateAgentCutOff"]);
    scene.gateway = Some(scene.site.start_gateway().unwrap());
    prometheus.wait_clear(&mut scene, &["TidegateGatewayDown", "TidegateAgentCutOff"]);

    scene.wait_copied("disk1");
    let mut copy = copy_of_machine(&scene);
    // The copy takes the disk over, then is found out and switched off: the machine itself stays fenced.
    let taken_over = |scene: &Scene| scene.site.status("disk1").is_some_and(|disk| disk.state == "fenced");
    let load = scene.load("disk1", 53, 4);
    scene.wait("the copy to take the disk over", taken_over);
    copy.kill().unwrap();
    prometheus.wait_firing(&mut scene, &["TidegateFenced"]);
    drop(load);
    scene.agent.take().unwrap().terminate(PATIENCE).unwrap();
    let (config, log) = (scene.site.path("agent.toml"), scene.site.path("logs/agent.log"));
    let arguments = ["agent", "--config", config.to_str().unwrap(), "--take-over", "disk1"];
    scene.agent = Some(Child::start("agent", &Family::default(), &log, program(), &arguments).unwrap());
    prometheus.wait_clear(&mut scene, &["TidegateFenced"]);
    scene.wait_copied("disk1");
}

/// Starts a copy of the agent's machine: its state, its disk, its certificate.
fn copy_of_machine(scene: &Scene) -> Child {
    let site = &scene.site;
    std::fs::create_dir(site.path("copied")).unwrap();
    // The socket beside them is no file.
    let entries = std::fs::read_dir(site.path("agent")).unwrap().map(Result::unwrap);
    for file in entries.filter(|entry| entry.file_type().unwrap().is_file()) {
        std::fs::copy(file.path(), site.path("copied").join(file.file_name())).unwrap();
    }
    let image = site.path("copied.img");
    std::fs::copy(scene.image("disk1"), &image).unwrap();
    let (own, socket) = (scene.image("disk1").display().to_string(), site.path("disk1.sock"));
    let Listen::Unix(own_socket) = site.nbd("disk1") else { panic!("a unix socket") };
    assert_eq!(own_socket, socket);
    let config = std::fs::read_to_string(site.path("agent.toml")).unwrap();
    let lines = config.lines().filter(|line| !line.starts_with("metrics_listen"));
    let config: String = lines.map(|line| line.to_owned() + "\n").collect();
    let config = config
        .replace(&own, image.to_str().unwrap())
        .replace(socket.to_str().unwrap(), site.path("copied.sock").to_str().unwrap())
        .replace("state_dir = \"agent\"", "state_dir = \"copied\"");
    let file = site.path("copied.toml");
    std::fs::write(&file, config).unwrap();
    let arguments = ["agent", "--config", file.to_str().unwrap()];
    Child::start("agent", &Family::default(), &site.path("logs/copied.log"), program(), &arguments).unwrap()
}

#[test]
fn a_certificate_near_its_end_and_a_clock_that_is_off() {
    let _turn = turn();
    let (mut scene, prometheus) = scene(Setting::default(), None, DISK_BYTES);
    let issue = |scene: &Scene, days: &str| {
        let pki = scene.site.path("pki").display().to_string();
        let host = ["gateway", "--id", "gw1", "--host", "127.0.0.1", "--host", "localhost"];
        succeed(program(), &[&["pki", "issue", "--dir", &pki, "--force", "--days", days], &host[..]].concat());
    };
    issue(&scene, "2");
    restart_gateway(&mut scene);
    prometheus.wait_firing(&mut scene, &["TidegateCertificateEnds", "TidegateCertificateEndsSoon"]);
    issue(&scene, "300");
    restart_gateway(&mut scene);
    prometheus.wait_clear(&mut scene, &["TidegateCertificateEnds", "TidegateCertificateEndsSoon"]);

    scene.agent.take().unwrap().terminate(PATIENCE).unwrap();
    let config = scene.site.path("agent.toml");
    let faked = faketime("+90s", &["agent", "--config", config.to_str().unwrap()]);
    let arguments: Vec<&str> = faked.iter().map(String::as_str).collect();
    let log = scene.site.path("logs/agent.log");
    scene.agent = Some(Child::start("agent", &Family::default(), &log, Path::new("env"), &arguments).unwrap());
    prometheus.wait_firing(&mut scene, &["TidegateClockApart"]);
    scene.agent.take().unwrap().terminate(PATIENCE).unwrap();
    scene.agent = Some(scene.site.start_agent().unwrap());
    prometheus.wait_clear(&mut scene, &["TidegateClockApart"]);
}

#[test]
#[ignore = "long: tests/observe runs it"]
fn a_store_away_until_the_journal_is_full_and_a_slow_one_after() {
    let _turn = turn();
    let (store, url) = sink("filled");
    let gateway =
        vec![("journal", "capacity = \"256 MiB\"".to_owned()), ("journal", "segment = \"16 MiB\"".to_owned())];
    let setting = Setting { vault: Some(url), gateway, ..Setting::default() };
    let (mut scene, prometheus) = scene(setting, None, 384 << 20);
    store.set(Weather { away: true, ..Weather::default() });
    let load = scene.load("disk1", 54, 24);
    let full = ["TidegateJournalFills", "TidegateJournalNearlyFull", "TidegateBehind", "TidegateFarBehind"];
    prometheus.wait_firing(&mut scene, &full);
    prometheus.wait_firing(&mut scene, &["TidegateOverflowed", "TidegateStoreFails"]);
    scene.wait("somebody to wait for credit", |_| {
        prometheus.has_data("tidegate_waiting{guard=~\"journal_full|record_memory|upload_pause\"} > 0")
    });
    drop(load);
    // A line so slow that the backlog needs its time.
    store.set(Weather { bytes_per_second: 4 << 20, ..Weather::default() });
    prometheus.wait_firing(&mut scene, &["TidegateDrainsSlowly", "TidegateDrainsVerySlowly"]);
    store.set(Weather::default());
    let slow = ["TidegateDrainsSlowly", "TidegateDrainsVerySlowly", "TidegateOverflowed", "TidegateStoreFails"];
    prometheus.wait_clear(&mut scene, &slow);
    prometheus.wait_clear(&mut scene, &full);
}

#[test]
#[ignore = "long: tests/observe runs it"]
fn a_disk_that_somebody_encrypts() {
    let _turn = turn();
    let (mut scene, prometheus) = scene(Setting::default(), None, 512 << 20);
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
    write(200, noise);
    prometheus.wait_firing(&mut scene, &["TidegateAnomaly"]);
    write(300, text);
    prometheus.wait_clear(&mut scene, &["TidegateAnomaly"]);
}

/// A quarter noise, the rest of which packs well.
fn text(seed: u64, data: &mut [u8]) {
    noise(seed, data);
    data.chunks_mut(4096).for_each(|block| block[1024..].fill(b't'));
}

/// Bytes that nothing packs.
fn noise(seed: u64, data: &mut [u8]) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for piece in data.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        piece.copy_from_slice(&state.to_le_bytes()[..piece.len()]);
    }
}

#[test]
fn a_damaged_vault_and_one_that_nobody_found_whole() {
    let _turn = turn();
    let (mut scene, prometheus) = scene(Setting::default(), None, DISK_BYTES);
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
    let (code, out, err) = tidegate(&verify);
    assert_eq!(code, 3, "{out}{err}");
    prometheus.wait_firing(&mut scene, &["TidegateDamage", "TidegateVerifyStale"]);
    file.write_all_at(&byte, at).unwrap();
    let (code, out, err) = tidegate(&verify);
    assert_eq!(code, 0, "{out}{err}");
    prometheus.wait_clear(&mut scene, &["TidegateDamage", "TidegateVerifyStale"]);
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
