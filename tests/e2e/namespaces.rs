//! Three gateways, each behind a link of its own in a network namespace of its own: links are cut without a word, and a
//! gateway goes down with its disk.
//!
//! Making namespaces needs root. Continuous integration is root; elsewhere the test says that it did nothing.

use std::net::Ipv4Addr;

use crate::common::{ext4, output, succeed, turn};
use crate::several::{Fleet, Place, late_batches};

/// A namespace with one link to this one. Goes away with everything in it.
struct Namespace {
    name: String,
    number: u8,
}

impl Namespace {
    fn new(number: u8) -> Self {
        let name = format!("tg{}n{number}", std::process::id());
        let namespace = Self { name: name.clone(), number };
        let (near, far) = (namespace.near(), "far");
        succeed("ip", &["netns", "add", &name]);
        succeed("ip", &["link", "add", &near, "type", "veth", "peer", "name", far, "netns", &name]);
        succeed("ip", &["address", "add", &format!("{}/30", namespace.address(1)), "dev", &near]);
        succeed("ip", &["link", "set", &near, "up"]);
        succeed("ip", &["-n", &name, "address", "add", &format!("{}/30", namespace.address(2)), "dev", far]);
        succeed("ip", &["-n", &name, "link", "set", "lo", "up"]);
        succeed("ip", &["-n", &name, "link", "set", far, "up"]);
        namespace
    }

    /// The link's name on this side; names of links have at most 15 bytes.
    fn near(&self) -> String {
        format!("t{}n{}", std::process::id(), self.number)
    }

    /// Of a range that is set aside for tests of networks.
    fn address(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(198, 19, 200 + self.number, host)
    }

    fn place(&self) -> Place {
        let inside = ["ip", "netns", "exec", &self.name].map(str::to_owned).to_vec();
        Place { host: self.address(2), inside }
    }

    /// From here on each side sends to nobody: both directions are dropped, and neither side is told.
    fn cut(&self) {
        let nobody = ["lladdr", "02:00:00:00:00:01", "nud", "permanent"];
        let (here, there) = (self.address(1).to_string(), self.address(2).to_string());
        let near = self.near();
        succeed("ip", &[&["neighbour", "replace", &there, "dev", &near][..], &nobody].concat());
        let far = ["-n", &self.name, "neighbour", "replace", &here, "dev", "far"];
        succeed("ip", &[&far[..], &nobody].concat());
    }

    fn heal(&self) {
        let (here, there) = (self.address(1).to_string(), self.address(2).to_string());
        succeed("ip", &["neighbour", "delete", &there, "dev", &self.near()]);
        succeed("ip", &["-n", &self.name, "neighbour", "delete", &here, "dev", "far"]);
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The link goes with either of its ends.
        output("ip", &["netns", "delete", &self.name]);
    }
}

#[test]
fn a_cut_link_and_a_gateway_lost_with_its_disk_hold_no_disk_up_and_lose_nothing() {
    let _turn = turn();
    if !rustix::process::geteuid().is_root() {
        eprintln!("NOT RUN: network namespaces need root; run tests/run as root to have this test");
        return;
    }
    let namespaces = [1, 2, 3].map(Namespace::new);
    let places: Vec<Place> = namespaces.iter().map(Namespace::place).collect();
    let mut fleet = Fleet::at(&places, late_batches(), &["disk1", "disk2"], ext4(128 << 20));
    let load = fleet.scene.load("disk1", 41, 16);
    fleet.scene.wait_copied("disk1");
    fleet.scene.wait_copied("disk2");
    fleet.scene.keep("disk1", "before", Some(&load));
    fleet.scene.wait_vaulted();

    fleet.scene.write_more(&load, 12 << 20);
    let cut = fleet.lose("disk1", &load, |_, at| namespaces[at].cut());
    cut.check();
    fleet.await_carrier("disk2", |at| at != cut.first);
    fleet.scene.write_more(&load, 8 << 20);
    fleet.scene.keep("disk1", "cut", Some(&load));
    fleet.scene.keep("disk2", "cut", None);
    fleet.scene.wait_vaulted();

    fleet.scene.write_more(&load, 12 << 20);
    let lost = fleet.lose("disk1", &load, |fleet, at| {
        fleet.destroy(at);
        namespaces[at].cut();
    });
    lost.check();
    fleet.await_carrier("disk2", |at| at != cut.first && at != lost.first);
    assert!(fleet.epochs("disk1") >= 3);

    // The first gateway comes back, with what it still had of the first epoch.
    namespaces[cut.first].heal();
    fleet.scene.write_more(&load, 8 << 20);
    fleet.scene.wait_copied("disk1");
    fleet.scene.keep("disk1", "end", Some(&load));
    assert_eq!(load.done().interruptions, 0);
    drop(load);
    fleet.scene.wait_vaulted();
    fleet.stop();
    fleet.verify();
    fleet.scene.assert_all_restore();
}
