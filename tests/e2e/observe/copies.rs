//! Alerts of agents: without a gateway, with a copy of their machine, with two copies at two gateways.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use tidegate::cli::quickstart::child::{Child, Family, free_port, http_get, metric};
use tidegate::nbd::{Client, Listen};

use super::DISK_BYTES;
use super::alerts::{restart_gateway, watched};
use super::prometheus::agent_page;
use crate::common::{PATIENCE, Scene, Setting, program, turn};

pub const CUT_OFF: [&str; 2] = ["TidegateGatewayDown", "TidegateAgentCutOff"];
pub const FENCED: [&str; 1] = ["TidegateFenced"];
pub const CONFLICT: [&str; 1] = ["TidegateConflict"];

#[test]
fn an_agent_without_a_gateway_and_a_copy_of_its_machine() {
    let _turn = turn();
    let (setting, page) = agent_page();
    let (mut scene, prometheus) = watched(setting, Some(page), &["disk1"], DISK_BYTES);
    prometheus.cause(&mut scene, &CUT_OFF, |scene| scene.gateway.take().unwrap().kill().unwrap());
    scene.gateway = Some(scene.site.start_gateway().unwrap());
    prometheus.wait_clear(&mut scene, &CUT_OFF);

    scene.wait_copied("disk1");
    prometheus.wait_quiet(&mut scene, &FENCED);
    let mut copy = copy_of_machine(&scene, &scene.site.gateway_address());
    // The copy takes the disk over, then is found out and switched off: the machine itself stays fenced.
    let taken_over = |scene: &Scene| scene.site.status("disk1").is_some_and(|disk| disk.state == "fenced");
    let load = scene.load("disk1", 53, 4);
    scene.wait("the copy to take the disk over", taken_over);
    copy.kill().unwrap();
    prometheus.wait_firing(&mut scene, &FENCED);
    drop(load);
    scene.agent.take().unwrap().terminate(PATIENCE).unwrap();
    let (config, log) = (scene.site.path("agent.toml"), scene.site.path("logs/agent.log"));
    let arguments = ["agent", "--config", config.to_str().unwrap(), "--take-over", "disk1"];
    scene.agent = Some(Child::start("agent", &Family::default(), &log, program(), &arguments).unwrap());
    prometheus.wait_clear(&mut scene, &FENCED);
    scene.wait_copied("disk1");
    prometheus.assert_seen(&[&CUT_OFF, &FENCED]);
}

#[test]
#[ignore = "long: tests/observe runs it"]
fn two_copies_of_a_machine_that_write_at_two_gateways() {
    let _turn = turn();
    let (mut scene, prometheus) = watched(Setting::default(), None, &["disk1"], DISK_BYTES);
    // Stopped in order: what is started from this state may go on where it ended, and so may a copy of it, unless it meets
    // what the other has vaulted. Batches that are closed late let both begin before that.
    assert!(scene.agent.take().unwrap().terminate(PATIENCE).unwrap().success());
    let config = scene.site.path("gateway.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("[vault]\n", "[vault]\nbatch_age = \"20 s\"\n")).unwrap();
    restart_gateway(&mut scene);
    let (mut second, listen, admin) = second_gateway(&scene);
    let mut copy = copy_of_machine(&scene, &listen);
    scene.agent = Some(scene.site.start_agent().unwrap());
    let socket = copied_socket(&scene);
    scene.wait("the copy to serve its disk", |_| UnixStream::connect(&socket).is_ok());
    for (listen, byte) in [(scene.site.nbd("disk1"), 1), (Listen::Unix(socket), 2)] {
        Client::connect(&listen, "disk1").unwrap().write(0, &[byte; 4096], false).unwrap();
    }
    let gateways = [scene.site.admin_address(), admin];
    scene.wait("both accounts to be vaulted", |_| gateways.iter().all(|address| has_vaulted(*address)));
    let epochs = |scene: &Scene| std::fs::read_dir(scene.dir().join("vault/d/disk1/e")).unwrap().count();
    assert_eq!(epochs(&scene), 1, "one met what the other had vaulted: there are no two accounts");

    // The copy is found out and switched off. The difference is met when the machine connects again.
    copy.kill().unwrap();
    prometheus.cause(&mut scene, &CONFLICT, Scene::kill_agent);
    scene.wait_copied("disk1");
    let load = scene.load("disk1", 58, 4);
    scene.write_more(&load, 4 << 20);
    scene.keep("disk1", "after", Some(&load));
    drop(load);
    scene.wait_vaulted();
    scene.assert_all_restore();
    prometheus.wait_clear(&mut scene, &CONFLICT);
    prometheus.assert_seen(&[&CONFLICT]);
    assert!(second.terminate(PATIENCE).unwrap().success());
}

/// Starts another gateway: where agents reach it, and its admin port.
fn second_gateway(scene: &Scene) -> (Child, String, SocketAddr) {
    let at = |udp| SocketAddr::from((Ipv4Addr::LOCALHOST, free_port(udp).unwrap()));
    let (listen, admin) = (at(true).to_string(), at(false));
    let config = scene.another_gateway("gw2", "127.0.0.1", &listen, admin);
    let arguments = ["gateway", "--config", config.to_str().unwrap()];
    let log = scene.site.path("logs/gw2.log");
    let mut gateway = Child::start("gateway", &Family::default(), &log, program(), &arguments).unwrap();
    let ready = || http_get(admin, "/readyz").is_ok_and(|(status, _)| status == 200);
    gateway.wait_for("ready", PATIENCE, ready).unwrap();
    (gateway, listen, admin)
}

fn has_vaulted(gateway: SocketAddr) -> bool {
    http_get(gateway, "/metrics").is_ok_and(|(_, page)| metric(&page, "tidegate_vaulted_records_total") > 0.0)
}

fn copied_socket(scene: &Scene) -> PathBuf {
    scene.site.path("copied.sock")
}

/// Starts a copy of the agent's machine: its state, its disk, its certificate. It goes to the gateway at `gateway`.
fn copy_of_machine(scene: &Scene, gateway: &str) -> Child {
    let site = &scene.site;
    std::fs::create_dir(site.path("copied")).unwrap();
    // The socket beside them is no file.
    let entries = std::fs::read_dir(site.path("agent")).unwrap().map(Result::unwrap);
    for file in entries.filter(|entry| entry.file_type().unwrap().is_file()) {
        std::fs::copy(file.path(), site.path("copied").join(file.file_name())).unwrap();
    }
    let image = site.path("copied.img");
    std::fs::copy(scene.image("disk1"), &image).unwrap();
    // As in a copy of the whole machine: the agent would take another time for a change behind its back.
    let modified = std::fs::metadata(scene.image("disk1")).unwrap().modified().unwrap();
    File::options().write(true).open(&image).unwrap().set_modified(modified).unwrap();
    let (own, socket) = (scene.image("disk1").display().to_string(), site.path("disk1.sock"));
    let Listen::Unix(own_socket) = site.nbd("disk1") else { panic!("a unix socket") };
    assert_eq!(own_socket, socket);
    let config = std::fs::read_to_string(site.path("agent.toml")).unwrap();
    let lines = config.lines().filter(|line| !line.starts_with("metrics_listen"));
    let config: String = lines.map(|line| line.to_owned() + "\n").collect();
    let config = config
        .replace(&own, image.to_str().unwrap())
        .replace(socket.to_str().unwrap(), copied_socket(scene).to_str().unwrap())
        .replace(&site.gateway_address(), gateway)
        .replace("state_dir = \"agent\"", "state_dir = \"copied\"");
    let file = site.path("copied.toml");
    std::fs::write(&file, config).unwrap();
    let arguments = ["agent", "--config", file.to_str().unwrap()];
    Child::start("agent", &Family::default(), &site.path("logs/copied.log"), program(), &arguments).unwrap()
}
