//! Promise 2, again and again: gateways and agents are killed with SIGKILL at random moments under a live load, also while
//! they start, and nobody lends a hand. Every recovery point that an agent confirmed must be offered by the vault in the
//! end, and images restored at several of them must be what the disk was.
//!
//! A gateway that is alone comes back with its journal, so a point counts as confirmed when it is journaled. Where there
//! are two, disks go on at the other one while the first is dead: what only its journal had may be cut off, so a point
//! counts when its agent was told that it is vaulted.
//!
//! The short form runs with all tests; `tests/soak` runs the long one. `TIDEGATE_SOAK_CYCLES`, `TIDEGATE_SOAK_VAULTS`
//! (`directory`, `azurite`, `slow`, `two`: two gateways and a directory) and `TIDEGATE_SOAK_SEED` say how long, where
//! and which.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use loadgen::blob::{BlobFaults, BlobProxy};
use tidegate::cli::quickstart::child::{Child, Family, wait_until};
use tidegate::cli::quickstart::copies;
use tidegate::cli::quickstart::load::{Load, Numbers};
use tidegate::flow::{Clock as _, SystemClock};
use tidegate::types::Digest;

use crate::common::azurite::Azurite;
use crate::common::{PATIENCE, Scene, Setting, empty, program, turn};
use crate::several::Fleet;

const DISKS: [&str; 2] = ["disk1", "disk2"];
const DISK_BYTES: u64 = 64 << 20;
const MIB_PER_SECOND: u64 = 16;
/// What a slow store takes while it is slow: far less than the loads bring.
const SLOW_BYTES_PER_SECOND: u64 = 2 << 20;
/// Points of each disk whose images are restored and compared; the newest is always among them.
const COMPARED_MAX: usize = 10;
/// A line of progress every so many kills.
const REPORT_EVERY: u64 = 50;

/// What one soak did.
#[derive(Default)]
struct Report {
    vault: String,
    gateway_kills: u64,
    agent_kills: u64,
    /// Of both: those before the process was ready.
    early_kills: u64,
    written_bytes: u64,
    interruptions: u64,
    slowest_write: Duration,
    points: usize,
    lost: Vec<String>,
    compared: usize,
    took: Duration,
    /// Deaths during which the other gateway carried the disks.
    moves: u64,
    /// Kept until the verdict if something was lost, for whoever looks for the reason.
    fleet: Option<Fleet>,
}

impl Report {
    fn kills(&self) -> u64 {
        self.gateway_kills + self.agent_kills
    }
}

/// A point, and what the disk was then.
struct Point {
    id: String,
    sha256: Digest,
    /// The agent was told what makes it outlive the deaths of this soak.
    confirmed: bool,
}

struct Soak {
    /// Its installation; without members, the installation's own gateway carries the disks.
    fleet: Fleet,
    loads: Vec<Load>,
    /// In front of a slow store.
    proxy: Option<BlobProxy>,
    numbers: Numbers,
    points: BTreeMap<&'static str, Vec<Point>>,
    report: Report,
    clock: SystemClock,
}

impl Soak {
    fn start(vault: &str, url: Option<String>, seed: u64, proxy: Option<BlobProxy>) -> Self {
        let journal = vec![("journal", "capacity = \"128 MiB\"".into()), ("journal", "segment = \"16 MiB\"".into())];
        let setting = Setting { vault: url, gateway: journal, ..Setting::default() };
        let fleet = match vault {
            "two" => Fleet::here(2, setting, &DISKS, empty(DISK_BYTES)),
            _ => Fleet { scene: Scene::new(setting, &DISKS, empty(DISK_BYTES)), members: Vec::new() },
        };
        let load = |(disk, nth): (&&str, u64)| fleet.scene.load(disk, seed + nth, MIB_PER_SECOND);
        let loads = DISKS.iter().zip(1..).map(load).collect();
        Self {
            fleet,
            loads,
            proxy,
            numbers: Numbers::new(seed),
            points: BTreeMap::new(),
            report: Report { vault: vault.to_owned(), ..Report::default() },
            clock: SystemClock::new(),
        }
    }

    /// Makes a point of a disk and notes what the disk is. Waits for a copy to end only if `patiently`.
    fn point(&mut self, nth: usize, patiently: bool) {
        let disk = DISKS[nth];
        if patiently {
            self.fleet.scene.wait_copied(disk);
        } else if !self.fleet.scene.site.copied(disk) {
            return;
        }
        let (scene, load) = (&self.fleet.scene, &self.loads[nth]);
        assert!(load.pause(PATIENCE), "the workload did not pause");
        let made = scene.site.point(disk, &format!("kill-{}", self.report.kills())).unwrap();
        let sha256 = copies::sha256(scene.image(disk)).unwrap();
        load.resume();
        let confirmed = self.fleet.members.is_empty();
        self.points.entry(disk).or_default().push(Point { id: made.id, sha256, confirmed });
    }

    /// Notes which points the agent was told to be vaulted.
    fn confirm(&mut self) {
        for (disk, points) in &mut self.points {
            let Some(status) = self.fleet.scene.site.status(disk) else { continue };
            for point in points.iter_mut().filter(|point| !point.confirmed) {
                let (epoch, seq) = parse(&point.id);
                point.confirmed = status.epoch == Some(epoch) && status.vaulted >= seq;
            }
        }
    }

    /// Waits until every point made so far is journaled: only that outlives the agent.
    fn wait_journaled(&mut self) {
        for disk in DISKS {
            let Some(point) = self.points.get(disk).and_then(|points| points.last()) else { continue };
            let (epoch, seq) = parse(&point.id);
            self.fleet.scene.wait("journaling of the newest point", |scene| {
                let status = scene.site.status(disk);
                status.is_some_and(|now| now.epoch > Some(epoch) || (now.epoch == Some(epoch) && now.journaled >= seq))
            });
        }
    }

    /// Waits until the newest point of a disk is vaulted, so that it counts.
    fn wait_vaulted(&mut self, disk: &str) {
        let Some(point) = self.points.get(disk).and_then(|points| points.last()) else { return };
        let (epoch, seq) = parse(&point.id);
        self.fleet.scene.wait("upload of the newest point", |scene| {
            let status = scene.site.status(disk);
            status.is_some_and(|now| now.epoch > Some(epoch) || (now.epoch == Some(epoch) && now.vaulted >= seq))
        });
    }

    fn pause(&mut self, millis_max: u64) {
        let millis = self.numbers.below(millis_max + 1);
        wait_until(Duration::from_millis(millis), || false);
    }

    /// Starts a process and kills it before it is ready.
    fn stillborn(&mut self, what: &'static str, name: &str) {
        let site = &self.fleet.scene.site;
        let config = site.path(&format!("{name}.toml"));
        let log = site.path(&format!("logs/{name}.log"));
        let arguments = [what, "--config", config.to_str().unwrap()];
        let mut child = Child::start(what, &Family::default(), &log, program(), &arguments).unwrap();
        self.pause(150);
        child.kill().unwrap();
        self.report.early_kills += 1;
    }

    /// Kills a gateway and starts it again.
    fn kill_gateway(&mut self) {
        self.report.gateway_kills += 1;
        let early = self.numbers.below(8) == 0;
        self.report.gateway_kills += u64::from(early);
        if self.fleet.members.is_empty() {
            self.fleet.scene.gateway.take().unwrap().kill().unwrap();
            if early {
                self.stillborn("gateway", "gateway");
            }
            self.fleet.scene.gateway = Some(self.fleet.scene.site.start_gateway().unwrap());
            return;
        }
        // Mostly the one with the disks; for a while only the other one lives, or it is back at once.
        let agent = self.fleet.scene.agent.is_some();
        let carrier = if agent { self.fleet.await_carrier(DISKS[0], |_| true) } else { 0 };
        let at = if self.numbers.below(4) == 0 { 1 - carrier } else { carrier };
        self.fleet.kill(at);
        if early {
            let name = self.fleet.members[at].id.clone();
            self.stillborn("gateway", &name);
        }
        if agent && at == carrier && (self.report.moves == 0 || self.numbers.below(3) == 0) {
            for disk in DISKS {
                self.fleet.await_carrier(disk, |now| now != at);
            }
            self.report.moves += 1;
            self.pause(2000);
        }
        self.fleet.start(at);
    }

    fn kill_agent(&mut self) {
        self.fleet.scene.agent.take().unwrap().kill().unwrap();
        self.report.agent_kills += 1;
        if self.numbers.below(8) == 0 {
            self.stillborn("agent", "agent");
            self.report.agent_kills += 1;
        }
    }

    /// One cycle: load, maybe a point, one or both killed at a random moment, and started again.
    fn cycle(&mut self, nth: u64) {
        match nth % 10 {
            3 => self.pace(SLOW_BYTES_PER_SECOND),
            7 => self.pace(0),
            _ => {}
        }
        let which = self.numbers.below(2) as usize;
        let bytes = self.numbers.below(1 << 20);
        let load = &self.loads[which];
        let until = load.done().written_bytes + bytes;
        self.fleet.scene.wait("the workload's progress", |_| load.done().written_bytes >= until);
        // Right after a death a disk is still being compared; every third time that is waited for, if the store can keep up.
        self.point(which, nth.is_multiple_of(3) && (self.proxy.is_none() || !(3..8).contains(&(nth % 10))));
        self.pause(120);
        // Agents die in a quarter of the cycles, in some of them together with their gateway.
        let (gateway, agent) = match self.numbers.below(20) {
            0..4 => (false, true),
            4 => (true, true),
            _ => (true, false),
        };
        if agent {
            self.wait_journaled();
        }
        if !self.fleet.members.is_empty() && nth.is_multiple_of(3) {
            self.wait_vaulted(DISKS[which]);
        }
        self.confirm();
        if agent {
            self.kill_agent();
        }
        if gateway {
            self.kill_gateway();
        }
        if agent {
            self.fleet.scene.agent = Some(self.fleet.scene.site.start_agent().unwrap());
        }
    }

    fn run(mut self, kills: u64) -> Report {
        let mut shown = 0;
        for nth in 1.. {
            if self.report.kills() >= kills {
                break;
            }
            self.cycle(nth);
            if self.report.kills() / REPORT_EVERY > shown {
                shown = self.report.kills() / REPORT_EVERY;
                let (points, seconds) =
                    (self.points.values().map(Vec::len).sum::<usize>(), self.clock.monotonic().as_secs());
                println!("{}: {} kills, {points} points, {seconds} s", self.report.vault, self.report.kills());
            }
        }
        self.pace(0);
        self.finish()
    }

    /// A slow store is slow half of the time; then journals fill up and start full.
    fn pace(&self, bytes_per_second: u64) {
        if let Some(proxy) = &self.proxy {
            proxy.set(BlobFaults { bytes_per_second, ..BlobFaults::default() });
        }
    }

    /// Lets everything reach the vault and looks whether it is there.
    fn finish(mut self) -> Report {
        for nth in 0..DISKS.len() {
            self.point(nth, true);
        }
        for load in std::mem::take(&mut self.loads) {
            let done = load.done();
            self.report.written_bytes += done.written_bytes;
            self.report.interruptions += done.interruptions;
            self.report.slowest_write = self.report.slowest_write.max(Duration::from_micros(done.write_micros.max()));
        }
        for (disk, points) in &self.points {
            let last = points.last().unwrap().id.clone();
            self.fleet.scene.wait("the upload of the newest points", |scene| scene.site.listed(disk, &last));
        }
        self.confirm();
        self.fleet.stop();
        let points = std::mem::take(&mut self.points);
        for (disk, points) in &points {
            self.report.points += points.iter().filter(|point| point.confirmed).count();
            self.compare(disk, points);
        }
        self.report.took = self.clock.monotonic();
        // Gigabytes, which nobody needs if all is well.
        self.report.fleet = (!self.report.lost.is_empty()).then_some(self.fleet);
        self.report
    }

    /// Every point must be offered; of some the image must be right.
    fn compare(&mut self, disk: &str, points: &[Point]) {
        let site = &self.fleet.scene.site;
        let catalog = site.path("catalog.key").display().to_string();
        let all = ["points", "--vault", site.vault_url(), "--catalog-key", &catalog, "--disk", disk, "--json"];
        let listed = site.run(&all).unwrap();
        let (offered, missing): (Vec<_>, Vec<_>) =
            points.iter().partition(|point| listed.contains(&format!("{:?}", point.id)));
        let lost = missing.iter().filter(|point| point.confirmed);
        self.report.lost.extend(lost.map(|point| format!("{disk} {} is not offered", point.id)));
        let step = offered.len().div_ceil(COMPARED_MAX).max(1);
        let target = self.fleet.scene.dir().join("restored.img");
        for point in offered.iter().rev().step_by(step) {
            // The last one made room.
            let _ = std::fs::remove_file(&target);
            match site.restore(disk, &point.id, &target) {
                Err(error) => self.report.lost.push(format!("{disk} {}: {error}", point.id)),
                Ok(()) if copies::sha256(&target).unwrap() != point.sha256 => {
                    self.report.lost.push(format!("{disk} {} has another image", point.id));
                }
                Ok(()) => {}
            }
            self.report.compared += 1;
        }
    }
}

/// Epoch and seq of a point's id.
pub fn parse(id: &str) -> (u64, u64) {
    let (epoch, seq) = id.strip_prefix('e').and_then(|rest| rest.split_once("-s")).unwrap();
    (epoch.parse().unwrap(), seq.parse().unwrap())
}

fn setting(name: &str, usual: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| usual.to_owned())
}

fn print(reports: &[Report]) {
    println!(
        "{:<10} {:>6} {:>8} {:>7} {:>6} {:>6} {:>9} {:>7} {:>9} {:>6} {:>11} {:>9} {:>7}",
        "vault",
        "kills",
        "gateways",
        "agents",
        "early",
        "moves",
        "written",
        "points",
        "compared",
        "lost",
        "interrupted",
        "slowest",
        "took"
    );
    for report in reports {
        println!(
            "{:<10} {:>6} {:>8} {:>7} {:>6} {:>6} {:>5} MiB {:>7} {:>9} {:>6} {:>11} {:>7} ms {:>5} s",
            report.vault,
            report.kills(),
            report.gateway_kills,
            report.agent_kills,
            report.early_kills,
            report.moves,
            report.written_bytes >> 20,
            report.points,
            report.compared,
            report.lost.len(),
            report.interruptions,
            report.slowest_write.as_millis(),
            report.took.as_secs()
        );
    }
    let (lost, points): (usize, usize) =
        reports.iter().fold((0, 0), |(lost, points), report| (lost + report.lost.len(), points + report.points));
    println!("lost {lost} of {points}");
}

#[test]
fn gateways_and_agents_killed_again_and_again_under_load_lose_no_confirmed_point() {
    let _turn = turn();
    let kills: u64 = setting("TIDEGATE_SOAK_CYCLES", "32").parse().expect("TIDEGATE_SOAK_CYCLES is a number");
    let seed: u64 = setting("TIDEGATE_SOAK_SEED", "2026").parse().expect("TIDEGATE_SOAK_SEED is a number");
    let vaults = setting("TIDEGATE_SOAK_VAULTS", "directory azurite slow two");
    let vaults: Vec<&str> = vaults.split_whitespace().collect();
    let mut reports = Vec::new();
    for vault in &vaults {
        let azurite = matches!(*vault, "azurite" | "slow").then(Azurite::start);
        let proxy = azurite.as_ref().filter(|_| *vault == "slow").map(|azurite| {
            let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            BlobProxy::start(any, azurite.address(), BlobFaults::default(), seed).unwrap()
        });
        let url = azurite
            .as_ref()
            .map(|azurite| azurite.vault_url_at(proxy.as_ref().map_or(azurite.address(), BlobProxy::address), "soak"));
        let soak = Soak::start(vault, url, seed, proxy);
        reports.push(soak.run(kills.div_ceil(vaults.len() as u64)));
    }
    print(&reports);
    let lost: Vec<&String> = reports.iter().flat_map(|report| &report.lost).collect();
    assert!(lost.is_empty(), "seed {seed}: {lost:#?}");
    for report in &reports {
        let bearable = report.agent_kills * DISKS.len() as u64;
        assert!(report.interruptions <= bearable, "only a dead agent may interrupt its guests");
        assert!(report.points > 0 && report.compared > 0);
        assert!(report.moves > 0 || report.vault != "two", "no disk went on at another gateway: nothing was proven");
    }
}
