//! SIGHUP: certificates and limits are read again, and no session notices.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;

use tidegate::cli::quickstart::child::{Child, metric};

use crate::common::{PATIENCE, Scene, Setting, empty, program, succeed, turn};

const DISK_BYTES: u64 = 64 << 20;

pub fn hang_up(daemon: Option<&Child>) {
    succeed("kill", &["-HUP", &daemon.unwrap().id().to_string()]);
}

fn log(scene: &Scene, name: &str) -> String {
    std::fs::read_to_string(scene.site.path(&format!("logs/{name}.log"))).unwrap_or_default()
}

fn reloads(scene: &Scene, outcome: &str) -> f64 {
    let page = scene.site.admin("/metrics").unwrap_or_default();
    let line = format!("tidegate_reloads_total{{outcome=\"{outcome}\"}} ");
    page.lines().find_map(|text| text.strip_prefix(&line)?.parse().ok()).unwrap_or(0.0)
}

/// The code with which the admin port answers whoever calls it by this name.
fn asked_as(scene: &Scene, host: &str) -> u16 {
    let mut stream = TcpStream::connect(scene.site.admin_address()).unwrap();
    let host = if host.is_empty() { String::new() } else { format!("Host: {host}\r\n") };
    write!(stream, "GET /v1/status HTTP/1.0\r\n{host}\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_whitespace().nth(1).and_then(|code| code.parse().ok()).unwrap()
}

#[test]
fn the_admin_port_answers_by_its_addresses_and_its_own_names_and_by_no_other_name() {
    let _turn = turn();
    let scene = Scene::new(Setting::default(), &["disk1"], empty(8 << 20));
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    // The certificate names localhost and 127.0.0.1; who names nothing is no browser.
    for host in ["127.0.0.1", "10.1.2.3:9444", "[::1]:9444", "localhost:1", "LOCALHOST", machine.trim(), ""] {
        assert_eq!(asked_as(&scene, host), 200, "{host}");
    }
    for _ in 0..2 {
        for host in ["rebound.example:9444", "127.0.0.1.rebound.example", "localhost.rebound.example"] {
            assert_eq!(asked_as(&scene, host), 403, "{host}");
        }
    }
    let said = log(&scene, "gateway");
    assert_eq!(said.matches("rebound.example").count(), 3, "each is told once: {said}");
}

fn certificate_ends(scene: &Scene) -> f64 {
    metric(&scene.site.admin("/metrics").unwrap(), "tidegate_certificate_ends_timestamp_seconds")
}

/// An authority of its own in `dir` for the scene's vault, with a gateway's and an agent's certificate.
fn authority(scene: &Scene, dir: &str, agent: &str, disk: &str) {
    let shown = scene.site.path(dir).display().to_string();
    let catalog = scene.site.path("catalog.key").display().to_string();
    let status = ["vault", "status", "--vault", scene.site.vault_url(), "--catalog-key", &catalog, "--json"];
    let status: serde_json::Value = serde_json::from_str(&succeed(program(), &status)).unwrap();
    let vault = status["id"].as_str().unwrap();
    succeed(program(), &["pki", "init", "--dir", &shown, "--vault-id", vault]);
    let gateway = ["gateway", "--id", "gw1", "--host", "127.0.0.1"];
    succeed(program(), &[&["pki", "issue", "--dir", &shown, "--days", "900"], &gateway[..]].concat());
    succeed(program(), &["pki", "issue", "--dir", &shown, "agent", "--id", agent, "--disk", disk]);
}

fn change(file: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "{from} is not in {}", file.display());
    std::fs::write(file, text.replace(from, to)).unwrap();
}

#[test]
fn certificates_authority_and_limits_change_on_sighup_while_a_session_writes_and_mistakes_change_nothing() {
    let _turn = turn();
    let mut scene = Scene::new(Setting::default(), &["disk1"], empty(DISK_BYTES));
    scene.wait_copied("disk1");
    let load = scene.load("disk1", 91, 4);
    scene.write_more(&load, 4 << 20);
    let (config, ends) = (scene.site.path("gateway.toml"), certificate_ends(&scene));
    authority(&scene, "pki2", "agent2", "disk2");

    // A limit, and files that are not there: all mistakes are told, and nothing is changed, not the limit either.
    let before = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("{before}\n[bandwidth]\nupload_max = \"64 MiB/s\"\n")).unwrap();
    change(&config, "pki/ca.crt", "nowhere/ca.crt");
    change(&config, "pki/gateway-gw1.key", "nowhere/key");
    hang_up(scene.gateway.as_ref());
    scene.wait("the refusal of missing files", |scene| reloads(scene, "failed") == 1.0);
    let said = log(&scene, "gateway");
    let line = said.lines().find(|line| line.contains("nothing is changed")).unwrap();
    assert!(line.contains("nowhere/ca.crt") && line.contains("nowhere/key"), "{line}");
    std::fs::write(&config, format!("{before}\n[bandwidth]\nupload_max = \"fast\"\n[jurnal]\n")).unwrap();
    hang_up(scene.gateway.as_ref());
    scene.wait("the refusal of a broken file", |scene| reloads(scene, "failed") == 2.0);
    let said = log(&scene, "gateway");
    let line = said.lines().rfind(|line| line.contains("nothing is changed")).unwrap();
    assert!(line.contains("bandwidth.upload_max") && line.contains("jurnal"), "{line}");
    let page = scene.site.admin("/metrics").unwrap();
    let limit =
        page.lines().find_map(|line| line.strip_prefix("tidegate_bandwidth_limit_bytes_per_second{limit=\"upload\"} "));
    let limit: f64 = limit.and_then(|text| text.parse().ok()).unwrap();
    assert!(limit.is_infinite(), "a refused file has set a limit: {limit}");
    assert!((certificate_ends(&scene) - ends).abs() < 1.0);

    // The certificate and key of another authority, which both sides trust from now on; a limit; and what needs a restart.
    let both = ["pki/ca.crt", "pki2/ca.crt"].map(|file| std::fs::read_to_string(scene.site.path(file)).unwrap());
    std::fs::write(scene.site.path("both.crt"), both.concat()).unwrap();
    std::fs::write(&config, format!("{before}\n[bandwidth]\nupload_max = \"64 MiB/s\"\n")).unwrap();
    change(&config, "pki/ca.crt", "both.crt");
    change(&config, "pki/gateway-gw1", "pki2/gateway-gw1");
    change(&config, "capacity = \"2 GiB\"", "capacity = \"3 GiB\"");
    hang_up(scene.gateway.as_ref());
    scene.wait("the reload", |scene| reloads(scene, "ok") == 1.0);
    let said = log(&scene, "gateway");
    let line = said.lines().find(|line| line.contains("needs a restart")).unwrap();
    assert!(line.contains("[journal]") && !line.contains("memory"), "{line}");
    assert!(certificate_ends(&scene) > ends + 400.0 * 86_400.0, "{}", certificate_ends(&scene));
    let page = scene.site.admin("/metrics").unwrap();
    assert!(page.contains("tidegate_bandwidth_limit_bytes_per_second{limit=\"upload\"} 67108864"), "{page}");

    // A name for the admin port, which it did not know before.
    assert_eq!(asked_as(&scene, "gw1.mgmt.example:9444"), 403);
    change(&config, "admin_listen", "admin_names = [\"gw1.mgmt.example\"]\nadmin_listen");
    hang_up(scene.gateway.as_ref());
    scene.wait("the reload", |scene| reloads(scene, "ok") == 2.0);
    assert_eq!(asked_as(&scene, "gw1.mgmt.example:9444"), 200);

    // Whoever comes now meets the new certificate with the new authority; who is there stays.
    let gateways = format!("gateways = [\"{}\"]", scene.site.gateway_address());
    let mut agent2 = scene.another_agent("agent2", "disk2", "pki2", &gateways, DISK_BYTES);
    let agents = |scene: &Scene| {
        let page: serde_json::Value = serde_json::from_str(&scene.site.admin("/v1/agents").unwrap()).unwrap();
        page.as_array().map_or(0, Vec::len)
    };
    scene.wait("the agent of the new authority", |scene| agents(scene) == 2);
    scene.write_more(&load, 4 << 20);
    let said = log(&scene, "gateway");
    let count = |text: &str| said.lines().filter(|line| line.contains(text) && line.contains("agent1")).count();
    assert_eq!((count("agent connected"), count("agent disconnected")), (1, 0), "the session was dropped");

    // The agent's own files, of the old authority until now: checked when asked, used at the next connect.
    let agent_config = scene.site.path("agent.toml");
    std::fs::write(scene.site.path("pki/agent-agent1.crt"), "no certificate").unwrap();
    hang_up(scene.agent.as_ref());
    scene.wait("the agent's complaint", |scene| log(scene, "agent").contains("certificates are not usable"));
    let pki2 = scene.site.path("pki2").display().to_string();
    succeed(program(), &["pki", "issue", "--dir", &pki2, "agent", "--id", "agent1", "--disk", "disk1"]);
    for (from, to) in [
        ("both.crt", "pki/ca.crt"),
        ("pki2/agent-agent1.crt", "pki/agent-agent1.crt"),
        ("pki2/agent-agent1.key", "pki/agent-agent1.key"),
    ] {
        std::fs::copy(scene.site.path(from), scene.site.path(to)).unwrap();
    }
    change(&agent_config, "state_dir", "barrier_interval = \"7 s\"\nstate_dir");
    hang_up(scene.agent.as_ref());
    scene.wait("the agent's reload", |scene| log(scene, "agent").contains("certificates are in order"));
    assert!(log(&scene, "agent").contains("each needs a restart: barrier_interval"));
    scene.keep("disk1", "after", Some(&load));
    assert_eq!(load.done().interruptions, 0);
    // Without a restart: the gateway is, and the agent comes back with what it reads now.
    scene.kill_gateway();
    scene.wait("the agent with its new certificate", |scene| agents(scene) == 2);
    scene.write_more(&load, 4 << 20);
    scene.keep("disk1", "again", Some(&load));
    drop(load);
    scene.wait_vaulted();
    assert!(agent2.terminate(PATIENCE).unwrap().success());
    scene.stop();
    scene.assert_all_restore();
}
