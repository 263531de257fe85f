//! Promise 10: any gateway may carry any disk at any time.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tidegate::cli::quickstart::child::{self, Child, Family, metric};
use tidegate::cli::quickstart::load::{Load, Pattern};
use tidegate::cli::quickstart::target::NbdTarget;
use tidegate::flow::{Clock as _, SystemClock};

use crate::common::{PATIENCE, Scene, Setting, assert_same, ext4, program, succeed, turn};

/// How soon another gateway is asked after the loss of one, as promised, and what a busy machine may add until the disk
/// is carried on there.
const FAIL_OVER: Duration = Duration::from_secs(5);
const SLACK: Duration = Duration::from_secs(20);
const RECEIVED: &str = "tidegate_received_bytes_total";

/// Where a gateway runs: its address, and the command that puts it there.
#[derive(Clone)]
pub struct Place {
    pub host: Ipv4Addr,
    pub inside: Vec<String>,
}

/// One of several gateways of an installation.
pub struct Member {
    pub id: String,
    admin: SocketAddr,
    inside: Vec<String>,
    /// What is started, from the next start on.
    program: PathBuf,
    process: Option<Child>,
}

/// An installation with several gateways, all named in the agent's list.
pub struct Fleet {
    pub scene: Scene,
    pub members: Vec<Member>,
}

/// What the loss of a gateway cost.
pub struct Loss {
    pub first: usize,
    pub second: usize,
    pub taken: Duration,
    pub unvaulted_bytes: u64,
    pub resent_bytes: f64,
}

impl Loss {
    /// Fails if it took too long, or more was sent again than was not vaulted.
    pub fn check(&self) {
        let Self { taken, unvaulted_bytes, resent_bytes, .. } = self;
        println!(
            "carried on after {taken:?}; {unvaulted_bytes} bytes were not vaulted, {resent_bytes} were sent again"
        );
        assert!(*taken < FAIL_OVER + SLACK, "carried on only after {taken:?}");
        assert!(*unvaulted_bytes > 0, "everything was vaulted already");
        // Heads and extent rows come on top of the chunks.
        let bound_bytes = *unvaulted_bytes as f64 * 1.05 + 65_536.0;
        assert!(*resent_bytes > 0.0 && *resent_bytes <= bound_bytes, "{resent_bytes} of {unvaulted_bytes} sent again");
    }
}

fn port(udp: bool) -> u16 {
    child::free_port(udp).unwrap()
}

impl Fleet {
    fn new(count: usize, setting: Setting, disks: &[&str]) -> Self {
        Self::here(count, setting, disks, ext4(128 << 20))
    }

    /// On this host, with disks that `make` makes.
    pub fn here(count: usize, setting: Setting, disks: &[&str], make: impl Fn(&str, &Path)) -> Self {
        let here = Place { host: Ipv4Addr::LOCALHOST, inside: Vec::new() };
        Self::at(&vec![here; count], setting, disks, make)
    }

    pub fn at(places: &[Place], mut setting: Setting, disks: &[&str], make: impl Fn(&str, &Path)) -> Self {
        let listens: Vec<String> = places.iter().map(|place| format!("{}:{}", place.host, port(true))).collect();
        setting.agent.push(("", format!("gateways = {listens:?}")));
        setting.agent.push(("", "return_after = \"2 s\"".into()));
        let scene = Scene::stopped(setting, disks, make);
        let mut members = Vec::new();
        for ((number, listen), place) in (1..).zip(&listens).zip(places) {
            // The installation's own gateway, gw1, is never started.
            let id = format!("gw{}", number + 1);
            let admin = SocketAddr::from((place.host, port(false)));
            scene.another_gateway(&id, &place.host.to_string(), listen, admin);
            let (inside, program) = (place.inside.clone(), program().to_owned());
            members.push(Member { id, admin, inside, program, process: None });
        }
        let mut fleet = Self { scene, members };
        for at in 0..places.len() {
            fleet.start(at);
        }
        fleet.scene.agent = Some(fleet.scene.site.start_agent().unwrap());
        fleet
    }

    pub fn start(&mut self, at: usize) {
        let site = &self.scene.site;
        let member = &mut self.members[at];
        let config = site.path(&format!("{}.toml", member.id)).display().to_string();
        let log = site.path(&format!("logs/{}.log", member.id));
        let mut command: Vec<&str> = member.inside.iter().map(String::as_str).collect();
        command.extend([member.program.to_str().unwrap(), "gateway", "--config", &config]);
        let (first, rest) = command.split_first().unwrap();
        let mut process = Child::start("gateway", &Family::default(), &log, Path::new(first), rest).unwrap();
        let ready = || child::http_get(member.admin, "/readyz").is_ok_and(|(status, _)| status == 200);
        process.wait_for("ready", PATIENCE, ready).unwrap();
        member.process = Some(process);
    }

    /// Waits until a gateway that is wanted carries the disk.
    pub fn await_carrier(&mut self, disk: &str, wanted: impl Fn(usize) -> bool) -> usize {
        let mut found = None;
        let ids: Vec<String> = self.members.iter().map(|member| member.id.clone()).collect();
        self.scene.wait("a gateway for the disk", |scene| {
            let id = scene.site.status(disk).and_then(|status| status.gateway);
            found = id.and_then(|id| ids.iter().position(|known| *known == id)).filter(|at| wanted(*at));
            found.is_some()
        });
        found.unwrap()
    }

    /// SIGKILL; its journal stays.
    pub fn kill(&mut self, at: usize) {
        self.members[at].process.take().unwrap().kill().unwrap();
    }

    fn pid(&self, at: usize) -> u32 {
        self.members[at].process.as_ref().unwrap().id()
    }

    /// A metric of a gateway, summed over its labels.
    fn metric(&self, at: usize, name: &str) -> f64 {
        child::http_get(self.members[at].admin, "/metrics").map_or(0.0, |(_, page)| metric(&page, name))
    }

    /// SIGKILL, and its journal is gone too.
    pub fn destroy(&mut self, at: usize) {
        self.kill(at);
        std::fs::remove_dir_all(self.scene.site.path(&format!("journal-{}", self.members[at].id))).unwrap();
    }

    /// Loses the gateway that carries the disk, while the guest pauses so that what is sent again can be told.
    pub fn lose(&mut self, disk: &str, load: &Load, how: impl FnOnce(&mut Self, usize)) -> Loss {
        let first = self.await_carrier(disk, |_| true);
        assert!(load.pause(PATIENCE), "the workload did not pause");
        let received: Vec<f64> = (0..self.members.len()).map(|at| self.metric(at, RECEIVED)).collect();
        let unvaulted_bytes = self.scene.site.status(disk).unwrap().unvaulted_bytes;
        how(self, first);
        let clock = SystemClock::new();
        let second = self.await_carrier(disk, |at| at != first);
        let taken = clock.monotonic();
        self.scene.wait_copied(disk);
        // What was read for the copy may still be on its way.
        self.scene.wait("the last record sent again", |scene| {
            scene.site.status(disk).is_some_and(|status| status.journaled == status.seq && status.queue_bytes == 0)
        });
        let resent_bytes = self.metric(second, RECEIVED) - received[second];
        load.resume();
        Loss { first, second, taken, unvaulted_bytes, resent_bytes }
    }

    /// Epochs of a disk in the vault.
    pub fn epochs(&self, disk: &str) -> usize {
        std::fs::read_dir(self.scene.dir().join(format!("vault/d/{disk}/e"))).unwrap().count()
    }

    pub fn stop(&mut self) {
        self.scene.stop();
        for process in self.members.iter_mut().filter_map(|member| member.process.as_mut()) {
            assert!(process.terminate(PATIENCE).unwrap().success(), "{}", process.log().display());
        }
    }

    pub fn verify(&self) {
        let (vault, identity) = (self.scene.site.vault_url(), self.scene.site.identity().display().to_string());
        succeed(program(), &["verify", "--vault", vault, "--identity", &identity, "--level", "index"]);
    }
}

/// Batches that are closed late, so that there is something that only one gateway has.
pub fn late_batches() -> Setting {
    Setting { gateway: vec![("vault", "batch_age = \"8 s\"".into())], ..Setting::default() }
}

#[test]
fn a_gateway_destroyed_with_its_journal_is_replaced_within_seconds_and_only_what_was_not_vaulted_is_sent_again() {
    let _turn = turn();
    let mut fleet = Fleet::new(3, late_batches(), &["disk1"]);
    let load = fleet.scene.load("disk1", 31, 16);
    fleet.scene.wait_copied("disk1");
    fleet.scene.keep("disk1", "before", Some(&load));
    fleet.scene.wait_vaulted();
    fleet.scene.write_more(&load, 12 << 20);
    let Loss { first, second, .. } = {
        let loss = fleet.lose("disk1", &load, Fleet::destroy);
        loss.check();
        loss
    };
    assert!(fleet.epochs("disk1") >= 2);

    fleet.scene.write_more(&load, 8 << 20);
    assert_eq!(load.done().interruptions, 0);
    fleet.scene.keep("disk1", "after", Some(&load));
    // A second loss, of a gateway that just took over.
    fleet.destroy(second);
    fleet.await_carrier("disk1", |at| at != first && at != second);
    fleet.scene.write_more(&load, 8 << 20);
    fleet.scene.wait_copied("disk1");
    fleet.scene.kept.retain(|kept| fleet.scene.site.listed("disk1", &kept.made.id));
    assert!(!fleet.scene.kept.is_empty(), "what was vaulted is there for ever");
    fleet.scene.keep("disk1", "end", Some(&load));
    drop(load);
    fleet.scene.wait_vaulted();
    fleet.stop();
    fleet.verify();
    fleet.scene.assert_all_restore();
}

#[test]
fn a_drained_gateway_hands_its_disks_over_without_a_fork_and_gets_them_back() {
    hand_over_and_back("quic");
}

#[test]
fn over_tcp_a_drained_gateway_hands_its_disks_over_without_a_fork_and_gets_them_back() {
    hand_over_and_back("tcp");
}

fn hand_over_and_back(transport: &str) {
    let _turn = turn();
    // On a busy machine a short silence must not look like a loss, which would fork.
    let agent = vec![("", format!("lost_after = \"30 s\"\ntransport = \"{transport}\""))];
    let patient = Setting { agent, ..Setting::default() };
    let mut fleet = Fleet::new(2, patient, &["disk1", "disk2"]);
    let load = fleet.scene.load("disk1", 32, 16);
    fleet.scene.wait_copied("disk1");
    fleet.scene.wait_copied("disk2");
    let first = fleet.await_carrier("disk1", |_| true);
    fleet.scene.write_more(&load, 8 << 20);
    fleet.scene.keep("disk1", "before", Some(&load));

    let mut process = fleet.members[first].process.take().unwrap();
    assert!(process.terminate(PATIENCE).unwrap().success(), "{}", process.log().display());
    let second = fleet.await_carrier("disk1", |at| at != first);
    fleet.await_carrier("disk2", |at| at == second);
    assert_eq!(fleet.scene.site.agent_status().unwrap().transport.as_deref(), Some(transport));
    fleet.scene.write_more(&load, 8 << 20);
    fleet.scene.keep("disk1", "there", Some(&load));
    fleet.scene.keep("disk2", "there", None);

    // Both were up at the start, so the first is the agent's first choice.
    fleet.start(first);
    fleet.await_carrier("disk1", |at| at == first);
    fleet.await_carrier("disk2", |at| at == first);
    fleet.scene.write_more(&load, 8 << 20);
    fleet.scene.keep("disk1", "back", Some(&load));
    assert_eq!(load.done().interruptions, 0);
    drop(load);
    fleet.scene.wait_vaulted();
    assert_eq!((fleet.epochs("disk1"), fleet.epochs("disk2")), (1, 1), "a hand-over forked");
    let copied = std::fs::read_to_string(fleet.scene.site.path("logs/agent.log")).unwrap();
    let copies = copied.lines().filter(|line| line.contains("copy is complete")).count();
    assert_eq!(copies, 2, "only the two first copies");
    fleet.stop();
    fleet.verify();
    fleet.scene.assert_all_restore();
}

/// What an upgrade does, gateway by gateway: drain, stop, another program in its place, start, and agents come back.
#[test]
fn gateways_upgraded_one_after_the_other_under_load_lose_nothing_and_begin_no_epoch() {
    let _turn = turn();
    let patient = || "lost_after = \"30 s\"\nreturn_after = \"2 s\"".to_owned();
    let setting = Setting { agent: vec![("", "lost_after = \"30 s\"".into())], ..Setting::default() };
    let mut fleet = Fleet::new(2, setting, &["disk1", "disk2"]);
    let pki = fleet.scene.site.path("pki").display().to_string();
    succeed(program(), &["pki", "issue", "--dir", &pki, "agent", "--id", "agent2", "--disk", "disk3"]);
    let agent = std::fs::read_to_string(fleet.scene.site.path("agent.toml")).unwrap();
    let gateways = agent.lines().find(|line| line.starts_with("gateways")).unwrap();
    let top = format!("{gateways}\n{}", patient());
    let mut agent2 = fleet.scene.another_agent("agent2", "disk3", "pki", &top, 64 << 20);
    let loads = [fleet.scene.load("disk1", 34, 8), fleet.scene.load("disk2", 35, 8)];
    let third = {
        let (listen, range) = (fleet.scene.site.nbd("disk3"), std::iter::once(0..64 << 20).collect());
        Load::start(Pattern::new(36, range), Box::new(move || NbdTarget::open(&listen, "disk3")), 4 << 20).unwrap()
    };
    fleet.scene.wait_copied("disk1");
    fleet.scene.wait_copied("disk2");
    fleet.scene.write_more(&third, 4 << 20);
    let admins: Vec<_> = fleet.members.iter().map(|member| member.admin).collect();
    let seats = |at: usize| {
        let page = child::http_get(admins[at], "/v1/agents").map(|(_, page)| page).unwrap_or_default();
        ["agent1", "agent2"].map(|id| page.contains(&format!("\"agent\":\"{id}\"")))
    };
    let home = [0, 1].map(|agent| if seats(0)[agent] { 0 } else { 1 });
    let epochs = |fleet: &Fleet| ["disk1", "disk2", "disk3"].map(|disk| fleet.epochs(disk));
    assert_eq!(epochs(&fleet), [1, 1, 1]);

    for at in 0..2 {
        fleet.scene.write_more(&loads[0], 6 << 20);
        fleet.scene.keep("disk1", &format!("before {at}"), Some(&loads[0]));
        let mut process = fleet.members[at].process.take().unwrap();
        let old = process.id();
        assert!(process.terminate(PATIENCE).unwrap().success(), "{}", process.log().display());
        fleet.scene.wait("all agents at the other gateway", |_| seats(1 - at) == [true, true]);
        fleet.scene.write_more(&loads[1], 4 << 20);
        let new = fleet.scene.site.path(&format!("tidegate-{at}"));
        std::fs::copy(program(), &new).unwrap();
        fleet.members[at].program.clone_from(&new);
        fleet.start(at);
        assert_ne!(fleet.pid(at), old);
        assert_eq!(std::fs::read_link(format!("/proc/{}/exe", fleet.pid(at))).unwrap(), new);
        fleet
            .scene
            .wait("the agents to be where they were", |_| [0, 1].iter().all(|agent| seats(home[*agent])[*agent]));
        fleet.scene.write_more(&loads[1], 4 << 20);
        fleet.scene.keep("disk2", &format!("after {at}"), Some(&loads[1]));
    }
    fleet.scene.write_more(&third, 4 << 20);
    assert!(loads.iter().chain([&third]).all(|load| load.done().interruptions == 0), "a guest noticed");
    drop((loads, third));
    let config = fleet.scene.site.path("agent2.toml").display().to_string();
    let made = succeed(program(), &["point", "--config", &config, "--disk", "disk3", "--name", "end", "--json"]);
    let made: serde_json::Value = serde_json::from_str(&made).unwrap();
    fleet.scene.wait_vaulted();
    assert_eq!(epochs(&fleet), [1, 1, 1], "an upgrade forked");
    assert!(agent2.terminate(PATIENCE).unwrap().success());
    fleet.stop();
    fleet.verify();
    fleet.scene.assert_all_restore();
    let restored = fleet.scene.site.path("disk3.restored");
    fleet.scene.site.restore("disk3", made["id"].as_str().unwrap(), &restored).unwrap();
    assert_same(&fleet.scene.site.path("disk3.img"), &restored, "disk3");
}

#[test]
fn a_gateway_that_was_asleep_gives_up_what_went_on_elsewhere() {
    let _turn = turn();
    let mut fleet = Fleet::new(2, late_batches(), &["disk1"]);
    let load = fleet.scene.load("disk1", 33, 16);
    fleet.scene.wait_copied("disk1");
    fleet.scene.keep("disk1", "before", Some(&load));
    fleet.scene.wait_vaulted();
    let first = fleet.await_carrier("disk1", |_| true);
    fleet.scene.write_more(&load, 12 << 20);

    // What it has journaled and not vaulted is written again at the other gateway, in a new epoch.
    succeed("sh", &["-c", &format!("kill -STOP {}", fleet.pid(first))]);
    fleet.await_carrier("disk1", |at| at != first);
    fleet.scene.write_more(&load, 12 << 20);
    fleet.scene.wait_copied("disk1");
    fleet.scene.keep("disk1", "elsewhere", Some(&load));
    assert!(fleet.epochs("disk1") >= 2);
    succeed("sh", &["-c", &format!("kill -CONT {}", fleet.pid(first))]);
    let admin = fleet.members[first].admin;
    fleet.scene.wait("the end of the old run", |_| {
        let page = child::http_get(admin, "/metrics").map(|(_, page)| page).unwrap_or_default();
        metric(&page, "tidegate_runs_retired_total") >= 1.0
    });
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
