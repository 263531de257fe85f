//! Bad networks between agent and gateway: the session lives on or comes back, and the image is right.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::Duration;

use loadgen::chance::Share;
use loadgen::udp::{UdpFaults, UdpProxy};
use tidegate::cli::quickstart::child::{free_port, metric, wait_until};
use tidegate::cli::quickstart::load::Load;

use crate::common::{Scene, Setting, empty, turn};

const DISK_BYTES: u64 = 96 << 20;
/// Little enough for what congestion control leaves of a line that seems to lose every tenth datagram.
const MIB_PER_SECOND: u64 = 3;
/// The least that QUIC needs of a path.
const QUIC_DATAGRAM_BYTES: usize = 1200;
/// A fallback to TCP that nothing speaks for ends after three looks at QUIC, 10 s apart, the first one after 10 s.
const QUIC_AGAIN: Duration = Duration::from_secs(45);

/// A scene whose agent reaches its gateway through a proxy.
fn behind_proxy() -> (Scene, UdpProxy) {
    let port = free_port(true).unwrap();
    let local = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let proxy = UdpProxy::start(local(0), local(port), UdpFaults::default(), 11).unwrap();
    let setting = Setting {
        gateway: vec![("", format!("listen = \"{}\"", local(port)))],
        agent: vec![("", format!("gateways = [\"{}\"]", proxy.address()))],
        ..Setting::default()
    };
    (Scene::new(setting, &["disk1"], empty(DISK_BYTES)), proxy)
}

/// Writes and makes a point under the faults, and sees it reach the vault under them.
fn prove(scene: &mut Scene, load: &Load, proxy: &UdpProxy, name: &str, faults: UdpFaults) {
    proxy.set(faults);
    scene.write_more(load, 2 << 20);
    scene.wait_copied("disk1");
    scene.keep("disk1", name, Some(load));
    scene.wait_vaulted();
}

#[test]
fn loss_delay_reordering_duplicates_a_black_hole_and_rebinding_each_leave_the_image_right() {
    let _turn = turn();
    let (mut scene, proxy) = behind_proxy();
    let load = scene.load("disk1", 31, MIB_PER_SECOND);
    scene.wait_copied("disk1");
    let none = UdpFaults::default();
    // Large datagrams are few.
    let many = Share::percent(30.0);
    prove(&mut scene, &load, &proxy, "loss", UdpFaults { loss: Share::percent(3.0), ..none });
    let (delay, jitter) = (Duration::from_millis(20), Duration::from_millis(1));
    prove(&mut scene, &load, &proxy, "delay", UdpFaults { delay, jitter, ..none });
    prove(&mut scene, &load, &proxy, "reorder", UdpFaults { reorder: many, ..none });
    prove(&mut scene, &load, &proxy, "duplicate", UdpFaults { duplicate: many, ..none });
    prove(&mut scene, &load, &proxy, "black-hole", UdpFaults { datagram_bytes_max: QUIC_DATAGRAM_BYTES, ..none });
    for round in 0..3 {
        proxy.rebind();
        prove(&mut scene, &load, &proxy, &format!("rebound-{round}"), none);
    }
    let counts = proxy.counts();
    for (what, count, least) in [
        ("lost", &counts.lost, 10),
        ("duplicated", &counts.duplicated, 40),
        ("reordered", &counts.reordered, 40),
        ("bound", &counts.bound, 4),
    ] {
        let count = count.load(Ordering::Relaxed);
        assert!(count >= least, "only {count} datagrams {what}: the faults did not happen");
    }
    assert_eq!(load.done().interruptions, 0, "the guest noticed");
    drop(load);
    scene.stop();
    scene.assert_all_restore();
}

#[test]
fn a_network_that_is_cut_and_comes_back_loses_nothing_and_stalls_no_write() {
    let _turn = turn();
    let (mut scene, proxy) = behind_proxy();
    let load = scene.load("disk1", 32, MIB_PER_SECOND);
    scene.wait_copied("disk1");
    // Shorter and longer than the time after which both sides give a silent connection up.
    for seconds in [2, 20] {
        proxy.set(UdpFaults { cut: true, ..UdpFaults::default() });
        let mut least = u64::MAX;
        for _ in 0..seconds {
            let before = load.done().written_bytes;
            wait_until(Duration::from_secs(1), || false);
            least = least.min(load.done().written_bytes - before);
        }
        assert!(least > 0, "the guest stood still while the network was cut");
        prove(&mut scene, &load, &proxy, &format!("cut-{seconds}"), UdpFaults::default());
    }
    assert_eq!(load.done().interruptions, 0);
    drop(load);
    scene.stop();
    scene.assert_all_restore();
}

/// What carries the agent's connection, and whether that is what is left.
fn carrier(scene: &Scene) -> Option<(String, bool)> {
    let status = scene.site.agent_status()?;
    Some((status.transport?, status.fell_back))
}

fn sessions_over_tcp(scene: &Scene) -> f64 {
    metric(&scene.site.admin("/metrics").unwrap_or_default(), "tidegate_agent_sessions_tcp")
}

#[test]
fn a_network_without_udp_is_crossed_over_tcp_until_quic_gets_through_again() {
    let _turn = turn();
    let local = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    // At one address: the gateway's TCP, and in front of its UDP the network.
    let (port, front) = (free_port(true).unwrap(), free_port(true).unwrap());
    let blocked = UdpFaults { cut: true, ..UdpFaults::default() };
    let proxy = UdpProxy::start(local(front), local(port), blocked, 12).unwrap();
    let setting = Setting {
        gateway: vec![("", format!("listen = \"{}\"\nlisten_tcp = \"{}\"", local(port), local(front)))],
        agent: vec![
            ("", format!("gateways = [\"{}\"]", local(front))),
            ("", "quic_retry = \"1 s\"\nlost_after = \"2 s\"".into()),
        ],
        ..Setting::default()
    };
    let mut scene = Scene::new(setting, &["disk1"], empty(DISK_BYTES));
    let load = scene.load("disk1", 33, MIB_PER_SECOND);
    scene.wait_copied("disk1");
    assert_eq!(carrier(&scene), Some(("tcp".into(), true)));
    assert_eq!(sessions_over_tcp(&scene), 1.0);
    let log = std::fs::read_to_string(scene.site.path("logs/agent.log")).unwrap();
    assert!(log.contains("QUIC does not get through"), "{log}");
    let told = scene.site.run(&["agent", "--config", scene.site.path("agent.toml").to_str().unwrap(), "--status"]);
    assert!(told.unwrap().contains("over TCP, because QUIC does not get through"));
    prove(&mut scene, &load, &proxy, "over-tcp", blocked);
    // Back to QUIC, and away from it again.
    for round in 0..2 {
        proxy.set(UdpFaults::default());
        scene.wait("QUIC", |scene| carrier(scene) == Some(("quic".into(), false)));
        assert_eq!(sessions_over_tcp(&scene), 0.0);
        prove(&mut scene, &load, &proxy, &format!("over-quic-{round}"), UdpFaults::default());
        proxy.set(blocked);
        scene.wait("TCP", |scene| carrier(scene) == Some(("tcp".into(), true)));
        prove(&mut scene, &load, &proxy, &format!("over-tcp-{round}"), blocked);
    }
    assert_eq!(load.done().interruptions, 0, "the guest noticed");
    drop(load);
    scene.stop();
    scene.assert_all_restore();
}

#[test]
fn a_gateway_that_is_killed_over_and_over_is_carried_on_with_over_tcp() {
    let _turn = turn();
    let setting = Setting { agent: vec![("", "transport = \"tcp\"".into())], ..Setting::default() };
    let mut scene = Scene::new(setting, &["disk1", "disk2"], empty(DISK_BYTES));
    let loads = [scene.load("disk1", 34, MIB_PER_SECOND), scene.load("disk2", 35, MIB_PER_SECOND)];
    for round in 0..3 {
        scene.write_more(&loads[0], 4 << 20);
        scene.kill_gateway();
        scene.wait_copied("disk1");
        scene.wait_copied("disk2");
        assert_eq!(carrier(&scene), Some(("tcp".into(), false)));
        scene.keep("disk1", &format!("killed-{round}"), Some(&loads[0]));
        scene.keep("disk2", &format!("killed-{round}"), Some(&loads[1]));
        scene.wait_vaulted();
    }
    drop(loads);
    scene.stop();
    scene.assert_all_restore();
}

#[test]
fn a_gateway_that_is_killed_over_and_over_is_soon_reached_over_quic_again() {
    let _turn = turn();
    let mut scene = Scene::new(Setting::default(), &["disk1"], empty(DISK_BYTES));
    let load = scene.load("disk1", 36, MIB_PER_SECOND);
    scene.wait_copied("disk1");
    for round in 0..4 {
        scene.kill_gateway();
        // By the new gateway's count: the agent may not have noticed yet that the old one is gone.
        let back = wait_until(QUIC_AGAIN, || {
            let page = scene.site.admin("/metrics").unwrap_or_default();
            metric(&page, "tidegate_agent_sessions") >= 1.0 && metric(&page, "tidegate_agent_sessions_tcp") < 1.0
        });
        assert!(back, "round {round}: {:?} after {QUIC_AGAIN:?}", carrier(&scene));
        scene.write_more(&load, 1 << 20);
    }
    scene.keep("disk1", "end", Some(&load));
    assert_eq!(load.done().interruptions, 0, "the guest noticed");
    drop(load);
    scene.wait_vaulted();
    scene.stop();
    scene.assert_all_restore();
}
