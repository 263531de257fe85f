//! One run: machines, network, store, and the troubles of the seed, window by window.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tidegate::agent::disk::Overrides;
use tidegate::agent::placement::Gateway;
use tidegate::journal::ReplayReport;
use tidegate::journal::disk::sim::{Delays, Faults, SimDisk};
use tidegate::keys::{CatalogKey, Identity};
use tidegate::restore::source;
use tidegate::types::{DiskId, Epoch, Id128, Micros};
use tidegate::vault::lane::LATE_AFTER_SEAL;
use tidegate::vault::reader::Want;
use tidegate::vault::store::VaultStore;
use tidegate::vault::{InitOptions, Vault, names};

use crate::agent::{AgentMachine, AgentSettings, Live, Pace, Protected, copy_state, promise_point};
use crate::dice::Dice;
use crate::disk::{GuestDisk, Snapshot};
use crate::faults::{self, Act};
use crate::gateway::{GatewayMachine, GatewaySettings, reached};
use crate::model::{GroupPoint, History};
use crate::net::{self, SimNet};
use crate::node::{EPOCH_MICROS, Node};
use crate::pki::Authority;
use crate::store::{self, Blobs};
use crate::{Failed, LOOKAHEAD, event, note, trace};

const SECOND: u64 = 1_000_000;
/// After the last fault, everything must be vaulted within this time.
pub const RECOVERY_BOUND: u64 = 240 * SECOND;
/// Guests go on writing for so long after the last fault.
const AFTERMATH: u64 = 8 * SECOND;
/// Then every disk makes its last recovery point.
const LAST_POINT: u64 = 12 * SECOND;
/// What appears in a lane so long after its seal counts for nobody: as the product says, whose store tells whole seconds.
const SEAL_GRACE: u64 = LATE_AFTER_SEAL.as_micros() as u64 + 2 * SECOND;

/// State and disks of a machine, kept.
struct Kept {
    state: std::path::PathBuf,
    disks: Vec<Snapshot>,
    /// The agent had stopped in order, with everything vaulted.
    clean: bool,
}

/// A run.
pub struct World {
    /// Simulated time, in microseconds.
    pub now: u64,
    /// The machines with agents.
    pub agents: Vec<AgentMachine>,
    /// The gateways.
    pub gateways: Vec<GatewayMachine>,
    /// The store.
    pub blobs: Blobs,
    /// The operator's identity.
    pub identity: Identity,
    /// Histories of owners that are gone.
    pub past: Vec<(DiskId, Rc<RefCell<History>>)>,
    /// Points of all disks of a machine, as they were promised.
    pub groups: Rc<RefCell<Vec<GroupPoint>>>,
    /// What was found wrong.
    pub failures: Vec<String>,
    /// State directories and certificates.
    pub dir: TempDir,
    net: SimNet,
    key: CatalogKey,
    dice: Dice,
    events: BTreeMap<(u64, u64), Act>,
    number: u64,
    kept: BTreeMap<usize, Kept>,
    nodes: usize,
    quiet: bool,
    delivered: u64,
    /// Lanes that somebody sealed, and when.
    sealed: Vec<(Id128, u64)>,
}

impl World {
    /// Sets the world of a seed up.
    ///
    /// # Errors
    /// If the system refuses files or runtimes.
    pub fn new(seed: u64) -> Result<Self, Failed> {
        let mut dice = Dice::new(seed);
        let (net, blobs) = (SimNet::new(dice.branch()), Blobs::new(dice.branch()));
        let shared_memory = std::path::Path::new("/dev/shm");
        let dir = if shared_memory.is_dir() {
            tempfile::Builder::new().prefix("tidegate-sim-").tempdir_in(shared_memory)?
        } else {
            tempfile::tempdir()?
        };
        let identity = Identity::generate();
        let options = InitOptions { recipients: vec![identity.recipient()], now: Micros(EPOCH_MICROS) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
        let store = VaultStore::new(Arc::new(blobs.plain()), "sim");
        let (vault, key) = runtime.block_on(Vault::init(store, &options))?;
        let mut world = Self {
            now: 0,
            agents: Vec::new(),
            gateways: Vec::new(),
            blobs,
            identity,
            past: Vec::new(),
            groups: Rc::default(),
            failures: Vec::new(),
            dir,
            net,
            key,
            dice,
            events: BTreeMap::new(),
            number: 0,
            kept: BTreeMap::new(),
            nodes: 0,
            quiet: false,
            delivered: 0,
            sealed: Vec::new(),
        };
        world.furnish(&vault)?;
        Ok(world)
    }

    fn furnish(&mut self, vault: &Vault) -> Result<(), Failed> {
        let mut authority = Authority::new(self.dir.path(), vault.id())?;
        let settings = GatewaySettings {
            shards: self.dice.between(1, 2) as u16,
            segment_bytes: 6 << 20,
            segments: self.dice.between(4, 5),
            batch_age: Duration::from_millis(*self.dice.pick(&[200, 500, 1000])),
            upload_parallel: self.dice.between(1, 8) as u16,
            streams_target: *self.dice.pick(&[1, 3, 1000, 1000]),
        };
        for number in 1..=self.dice.between(2, 5) {
            let name = format!("g{number}");
            let node = self.node(&name);
            self.net.name_host(&name, node.id);
            let (tls, disk) = (authority.gateway(&name)?, SimDisk::new(self.dice.roll()));
            let settings = settings.clone();
            let (live, journaled) = (Rc::default(), BTreeMap::new());
            let (lied, full, up_at) = (false, false, 0);
            self.gateways.push(GatewayMachine { node, disk, lied, full, tls, settings, live, journaled, up_at });
        }
        for number in 1..=self.dice.between(1, 3) {
            let agent = format!("a{number}");
            let count = self.dice.between(1, 3);
            let ids: Vec<DiskId> =
                (1..=count).map(|disk| DiskId::new(&format!("{agent}-d{disk}"))).collect::<Result<_, _>>()?;
            let tls = authority.agent(&agent, &ids)?;
            let disks = ids.into_iter().map(|id| self.protected(id)).collect();
            let gateways: Vec<Gateway> =
                self.gateways.iter().map(|gateway| Gateway::new(format!("{}:9443", gateway.node.name))).collect();
            let settings = AgentSettings {
                gateways,
                lost_after: Duration::from_secs(*self.dice.pick(&[3, 3, 10])),
                return_after: Duration::from_secs(*self.dice.pick(&[5, 20, 60])),
                queue_bytes: *self.dice.pick(&[256 << 10, 4 << 20, 4 << 20]),
                barrier_interval: Duration::from_millis(*self.dice.pick(&[500, 2_000, 5_000])),
            };
            let node = self.node(&agent);
            let state_dir = self.dir.path().join(&agent);
            let pace = Rc::new(Cell::new(*self.dice.pick(&[Pace::Calm, Pace::Calm, Pace::Busy])));
            self.agents.push(AgentMachine {
                node,
                agent,
                state_dir,
                tls,
                disks,
                settings,
                pace,
                live: Rc::new(RefCell::new(Live::default())),
                retired: false,
                overrides: Default::default(),
                journaled: BTreeMap::new(),
            });
        }
        Ok(())
    }

    fn node(&mut self, name: &str) -> Node {
        self.nodes += 1;
        Node::new(self.nodes as u32, name)
    }

    fn protected(&mut self, id: DiskId) -> Protected {
        let mib = *self.dice.pick(&[1, 1, 2, 4, 8]);
        let disk = GuestDisk::new(id.as_str(), mib << 20, self.dice.branch());
        let history = Rc::new(RefCell::new(History::new(format!("{id} first"), disk.content())));
        Protected { id, disk, history }
    }

    fn at(&mut self, time: u64, act: Act) {
        self.number += 1;
        self.events.insert((time, self.number), act);
    }

    fn fail(&mut self, text: String) {
        event!("FAILED {text}");
        self.failures.push(text);
    }

    /// Runs everything: a first copy, the troubles, the recovery.
    ///
    /// # Errors
    /// If the system refuses files or runtimes.
    pub fn run(&mut self, minutes: u64) -> Result<(), Failed> {
        for gateway in 0..self.gateways.len() {
            self.boot_gateway(gateway)?;
        }
        for agent in 0..self.agents.len() {
            self.boot_agent(agent)?;
        }
        let until = minutes * 60 * SECOND;
        let mut dice = self.dice.branch();
        for (time, act) in faults::plan(&mut dice, self.gateways.len(), self.agents.len(), 5 * SECOND, until) {
            self.at(time, act);
        }
        while self.now < until && self.failures.is_empty() {
            while let Some(entry) = self.events.first_entry().filter(|entry| entry.key().0 <= self.now) {
                let act = entry.remove();
                self.act(act)?;
            }
            self.window()?;
        }
        self.recover()
    }

    /// The faults stop: within a bound everything is vaulted again.
    fn recover(&mut self) -> Result<(), Failed> {
        event!("the faults stop");
        self.quiet = true;
        self.events.clear();
        self.net.heal();
        self.net.set_weather(net::Weather::default());
        self.blobs.heal();
        self.blobs.set_weather(store::Weather::default());
        for gateway in 0..self.gateways.len() {
            self.gateways[gateway].disk.set_faults(Faults::default());
            self.gateways[gateway].disk.set_delays(Delays::default());
            self.gateways[gateway].make_room();
            self.wake(gateway);
            self.boot_gateway(gateway)?;
        }
        self.one_owner_each();
        for agent in 0..self.agents.len() {
            self.agents[agent].pace.set(Pace::Calm);
            self.agents[agent].disks.iter().for_each(|one| one.disk.set_fails(0));
            self.boot_agent(agent)?;
        }
        let began = self.now;
        while self.failures.is_empty() {
            let since = self.now - began;
            if since >= AFTERMATH {
                self.agents.iter().for_each(|agent| agent.pace.set(Pace::Still));
            }
            if since >= AFTERMATH + LAST_POINT && self.living().all(AgentMachine::settled) {
                event!("everything is vaulted {} ms after the last fault", since / 1000);
                return Ok(());
            }
            if since > RECOVERY_BOUND {
                let stuck: Vec<String> =
                    self.living().filter(|agent| !agent.settled()).map(|agent| agent.describe()).collect();
                let text = format!("no progress within {} s after the faults: {}", since / SECOND, stuck.join("| "));
                self.fail(text);
            }
            if since.is_multiple_of(5 * SECOND) {
                self.take_over_again()?;
            }
            self.window()?;
        }
        Ok(())
    }

    fn living(&self) -> impl Iterator<Item = &AgentMachine> {
        self.agents.iter().filter(|agent| !agent.retired)
    }

    /// Of each machine and its clones the operator keeps one.
    fn one_owner_each(&mut self) {
        let names: BTreeSet<String> = self.agents.iter().map(|agent| agent.agent.clone()).collect();
        for name in names {
            let all: Vec<usize> = (0..self.agents.len())
                .filter(|at| self.agents[*at].agent == name && !self.agents[*at].retired)
                .collect();
            let kept = *self.dice.pick(&all);
            for agent in all.into_iter().filter(|agent| *agent != kept) {
                self.agents[agent].kill(&self.net, false);
                self.agents[agent].retired = true;
            }
        }
    }

    /// The operator reads the alarm of a machine that was fenced, and says that it is the right one.
    fn take_over_again(&mut self) -> Result<(), Failed> {
        for agent in 0..self.agents.len() {
            if !self.agents[agent].retired && self.agents[agent].fenced() {
                self.agents[agent].kill(&self.net, false);
                self.agents[agent].overrides.take_over = true;
                self.boot_agent(agent)?;
            }
        }
        Ok(())
    }

    /// One window of every machine, in an order of the seed's.
    fn window(&mut self) -> Result<(), Failed> {
        trace::window(self.now);
        self.blobs.apply(self.now);
        self.delivered += self.net.deliver(self.now) as u64;
        let mut order: Vec<usize> = (0..self.gateways.len() + self.agents.len()).collect();
        self.dice.shuffle(&mut order);
        for machine in order {
            match machine.checked_sub(self.gateways.len()) {
                None => self.gateways[machine].node.run(self.now),
                Some(agent) => self.agents[agent].node.run(self.now),
            }
        }
        self.now += LOOKAHEAD;
        trace::window(self.now);
        self.look()?;
        if self.now.is_multiple_of(SECOND) {
            note!("delivered {} datagrams, store {} requests", self.delivered, self.blobs.requests());
        }
        for panic in trace::take_panics() {
            self.fail(format!("panic: {panic}"));
        }
        Ok(())
    }

    /// What has happened in the window.
    fn look(&mut self) -> Result<(), Failed> {
        for agent in 0..self.agents.len() {
            if !self.agents[agent].node.is_up() {
                continue;
            }
            self.agents[agent].observe();
            for (gateway, disk, epoch, seq) in self.agents[agent].journaled_news() {
                if let Some(gateway) = self.gateways.iter_mut().find(|known| known.node.name == gateway) {
                    gateway.note_journaled(disk, epoch, seq);
                }
            }
            let (failed, stopped) = {
                let live = self.agents[agent].live.borrow();
                (live.failed.clone(), live.stopped)
            };
            if let Some(failed) = failed {
                self.fail(format!("agent {} does not start: {failed}", self.agents[agent].node.name));
            }
            if stopped.is_some() {
                self.agents[agent].kill(&self.net, false);
                let after = self.dice.between(1, 5) * SECOND;
                self.at(self.now + after, Act::BootAgent { agent });
                if self.quiet {
                    self.boot_agent(agent)?;
                }
            }
        }
        for gateway in 0..self.gateways.len() {
            let report = self.gateways[gateway].live.borrow_mut().report.take();
            if let Some(report) = report {
                self.check_replay(gateway, &report)?;
            }
            let ended = self.gateways[gateway].live.borrow_mut().ended.take();
            if ended.is_some() {
                self.gateways[gateway].kill(&self.net, false, &mut self.dice);
                self.gateways[gateway].up_at = self.now + SECOND;
                self.at(self.now + SECOND, Act::BootGateway { gateway });
            }
            if self.quiet && self.gateways[gateway].up_at <= self.now {
                self.boot_gateway(gateway)?;
            }
        }
        Ok(())
    }

    /// Everything that a gateway acked as journaled, and that is not vaulted, must be there when it comes back.
    fn check_replay(&mut self, gateway: usize, report: &ReplayReport) -> Result<(), Failed> {
        let machine = &self.gateways[gateway];
        if machine.lied {
            return Ok(());
        }
        let mut lost = Vec::new();
        for ((disk, epoch), acked) in &machine.journaled {
            let next = names::epoch(disk, Epoch(epoch.0 + 1)).to_string();
            if self.blobs.born(&next).is_some() {
                // Forked away: what was above the fork counts no more.
                continue;
            }
            let histories = self.histories(disk);
            let vaulted =
                histories.iter().map(|history| history.borrow().acked.get(epoch).map_or(0, |acked| acked.vaulted));
            let known = vaulted.max().unwrap_or(0);
            let mut found = reached(report, disk, *epoch, known);
            if found < *acked {
                // Segments may be released before there is room to note it, and nobody told yet: then the vault knows.
                found = reached(report, disk, *epoch, self.in_vault(disk, *epoch)?.max(known));
            }
            if found < *acked {
                lost.push(format!("disk {disk} e{epoch}: journaled up to {acked}, found up to {found}"));
            }
        }
        for text in lost {
            let name = self.gateways[gateway].node.name;
            self.fail(format!("gateway {name} lost records that it had acked as journaled: {text}"));
        }
        Ok(())
    }

    /// How far an epoch is usable in the store.
    fn in_vault(&self, disk: &DiskId, epoch: Epoch) -> Result<u64, Failed> {
        let store = VaultStore::new(Arc::new(self.blobs.plain()), "sim");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
        runtime.block_on(async {
            let vault = Vault::open(store, self.key.clone()).await?;
            let catalog = source::load(&vault, &Want::disk(disk)).await?;
            let records = source::history(&catalog, disk, &vault.epochs(disk).await?);
            Ok(records.span_of(epoch).map_or(0, |span| span.through.0))
        })
    }

    /// Every history of a disk, by all its owners.
    #[must_use]
    pub fn histories(&self, disk: &DiskId) -> Vec<Rc<RefCell<History>>> {
        let present = self.agents.iter().flat_map(|agent| &agent.disks).filter(|one| one.id == *disk);
        let past = self.past.iter().filter(|(id, _)| id == disk).map(|(_, history)| Rc::clone(history));
        present.map(|one| Rc::clone(&one.history)).chain(past).collect()
    }

    fn boot_gateway(&mut self, gateway: usize) -> Result<(), Failed> {
        if self.gateways[gateway].node.is_up() {
            return Ok(());
        }
        let (net, blobs, key) = (&self.net, &self.blobs, &self.key);
        self.gateways[gateway].boot(self.now, net, blobs, key)
    }

    fn boot_agent(&mut self, agent: usize) -> Result<(), Failed> {
        let machine = &mut self.agents[agent];
        if machine.node.is_up() || machine.retired {
            return Ok(());
        }
        machine.boot(self.now, &self.net, &mut self.dice)
    }

    fn wake(&mut self, gateway: usize) {
        if self.gateways[gateway].node.is_paused() {
            event!("{} goes on", self.gateways[gateway].node.name);
            self.gateways[gateway].node.go_on(self.now);
        }
    }

    fn act(&mut self, act: Act) -> Result<(), Failed> {
        event!("{act:?}");
        match act {
            Act::KillGateway { gateway, power_cut, down } => {
                self.gateways[gateway].kill(&self.net, power_cut, &mut self.dice);
                self.at(self.now + down, Act::BootGateway { gateway });
            }
            Act::DrainGateway { gateway } => {
                if let Some(trigger) = &self.gateways[gateway].live.borrow().trigger {
                    trigger.start();
                }
            }
            Act::BootGateway { gateway } => self.boot_gateway(gateway)?,
            Act::Zombie { gateway, asleep } => {
                self.gateways[gateway].node.pause();
                self.at(self.now + asleep, Act::Wake { gateway });
            }
            Act::Wake { gateway } => self.wake(gateway),
            Act::KillAgent { agent, power_cut, down } => {
                if power_cut && self.agents[agent].node.is_up() {
                    self.agents[agent].kill(&self.net, true);
                    self.agents[agent].lose_unsynced(&mut self.dice.branch())?;
                }
                self.agents[agent].kill(&self.net, false);
                self.at(self.now + down, Act::BootAgent { agent });
            }
            Act::StopAgent { agent } => {
                if let Some(stop) = &self.agents[agent].live.borrow().stop {
                    stop.notify_one();
                }
            }
            Act::BootAgent { agent } => self.boot_agent(agent)?,
            Act::Rebind { agent } => self.net.rebind(self.agents[agent].node.id),
            Act::Clone { agent } => self.clone_agent(agent)?,
            Act::Snapshot { agent } => self.snapshot(agent)?,
            Act::Rollback { agent } => self.roll_back(agent)?,
            Act::ClockOfAgent { agent, by } => jump(&self.agents[agent].node, by),
            Act::ClockOfGateway { gateway, by } => jump(&self.gateways[gateway].node, by),
            Act::Pace { agent, pace } => self.agents[agent].pace.set(pace),
            Act::Point { agent } => self.point(agent),
            Act::GuestDisk { agent, fails } => {
                self.agents[agent].disks.iter().for_each(|one| one.disk.set_fails(fails))
            }
            Act::Seal => self.seal()?,
            Act::Rot { gateway } => self.rot(gateway),
            other => self.weather(&other),
        }
        Ok(())
    }

    fn weather(&mut self, act: &Act) {
        match *act {
            Act::Cut { agent, gateway, ways, last } => {
                let (agent_node, gateway_node) = (self.agents[agent].node.id, self.gateways[gateway].node.id);
                self.net.set_cut(agent_node, gateway_node, ways & 1 != 0);
                self.net.set_cut(gateway_node, agent_node, ways & 2 != 0);
                self.at(self.now + last, Act::Mend { agent, gateway });
            }
            Act::Mend { agent, gateway } => {
                let (agent, gateway) = (self.agents[agent].node.id, self.gateways[gateway].node.id);
                self.net.set_cut(agent, gateway, false);
                self.net.set_cut(gateway, agent, false);
            }
            Act::CutStore { gateway, last } => {
                self.blobs.set_cut(self.gateways[gateway].node.id, true);
                self.at(self.now + last, Act::MendStore { gateway });
            }
            Act::MendStore { gateway } => self.blobs.set_cut(self.gateways[gateway].node.id, false),
            Act::NetWeather(weather) => self.net.set_weather(weather),
            Act::StoreWeather(weather) => self.blobs.set_weather(weather),
            Act::JournalDisk { gateway, faults, delays, last } => {
                self.gateways[gateway].lied |= faults.write_lost > 0;
                self.gateways[gateway].disk.set_faults(faults);
                self.gateways[gateway].disk.set_delays(delays);
                self.at(self.now + last, Act::JournalWell { gateway });
            }
            Act::JournalFull { gateway, last } => {
                self.gateways[gateway].fill();
                self.at(self.now + last, Act::JournalRoom { gateway });
            }
            Act::JournalRoom { gateway } => self.gateways[gateway].make_room(),
            Act::JournalWell { gateway } => {
                self.gateways[gateway].disk.set_faults(Faults::default());
                self.gateways[gateway].disk.set_delays(Delays::default());
            }
            _ => {}
        }
    }

    fn point(&mut self, agent: usize) {
        self.number += 1;
        let name = format!("point {}", self.number);
        let machine = &self.agents[agent];
        let disks = machine.live.borrow().disks.clone();
        let histories = machine.disks.iter().map(|one| Rc::clone(&one.history)).collect();
        if disks.len() == machine.disks.len() {
            machine.node.spawn(promise_point(disks, histories, Rc::clone(&self.groups), name));
        }
    }

    fn seal(&mut self) -> Result<(), Failed> {
        let store = VaultStore::new(Arc::new(self.blobs.plain()), "sim");
        let (key, now) = (self.key.clone(), self.now);
        let mut dice = self.dice.branch();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
        let sealed = runtime.block_on(async {
            let vault = Vault::open(store, key).await?;
            let lanes: Vec<_> = vault.lanes().await?.into_iter().filter(|lane| lane.sealed.is_none()).collect();
            if lanes.is_empty() {
                return Ok(None);
            }
            let lane = dice.pick(&lanes).lane;
            event!("lane {lane} is sealed");
            let seal = tidegate::vault::objects::LaneSealObject {
                lane,
                reason: "simulated".to_owned(),
                sealed_micros: Micros(EPOCH_MICROS + now),
            };
            vault.put_object(&names::lane_seal(lane), &seal).await?;
            Ok::<_, Failed>(Some(lane))
        })?;
        self.sealed.extend(sealed.map(|lane| (lane, now)));
        Ok(())
    }

    /// What a keeper may do: whatever came into a lane long after its seal is deleted.
    fn sweep(&self) {
        for (lane, sealed) in &self.sealed {
            let part = format!("/{lane}/");
            for (name, _) in self.blobs.names() {
                let late = self.blobs.born(&name).is_some_and(|born| born > sealed + SEAL_GRACE);
                if late && name.starts_with("b/") && name.contains(&part) {
                    event!("deleted {name}");
                    self.blobs.remove(&name);
                }
            }
        }
    }

    fn rot(&mut self, gateway: usize) {
        self.gateways[gateway].kill(&self.net, false, &mut self.dice);
        self.gateways[gateway].lied = true;
        let disk = self.gateways[gateway].disk.clone();
        let files: Vec<_> = disk.files().into_iter().filter(|path| !disk.bytes_of(path).is_empty()).collect();
        if !files.is_empty() {
            let path = self.dice.pick(&files).clone();
            let (at, bits) = (self.dice.roll(), self.dice.between(1, 255) as u8);
            event!("bytes of {} rot", path.display());
            disk.corrupt(&path, |bytes| {
                // Near the front of a segment, where something stands.
                let at = (at % (bytes.len() as u64 / 8).max(1)) as usize;
                bytes.iter_mut().skip(at).take(600).for_each(|byte| *byte ^= bits);
            });
        }
        self.at(self.now + SECOND, Act::BootGateway { gateway });
    }

    fn snapshot(&mut self, agent: usize) -> Result<(), Failed> {
        let state = self.dir.path().join(format!("kept-{agent}"));
        let machine = &self.agents[agent];
        if machine.state_dir.exists() {
            copy_state(&machine.state_dir, &state)?;
            let disks = machine.disks.iter().map(|one| one.disk.snapshot()).collect();
            self.kept.insert(agent, Kept { state, disks, clean: machine.stopped_clean() });
        }
        Ok(())
    }

    fn roll_back(&mut self, agent: usize) -> Result<(), Failed> {
        let Some(kept) = self.kept.remove(&agent) else { return Ok(()) };
        if self.agents[agent].retired {
            return Ok(());
        }
        self.agents[agent].kill(&self.net, true);
        copy_state(&kept.state, &self.agents[agent].state_dir.clone())?;
        for (at, snapshot) in kept.disks.iter().enumerate() {
            let dice = self.dice.branch();
            let now = self.now;
            let one = &mut self.agents[agent].disks[at];
            one.disk = GuestDisk::from_snapshot(one.id.as_str(), snapshot, dice);
            let owner = format!("{} rolled back at {} s", one.id, now / SECOND);
            let fresh = Rc::new(RefCell::new(History::new(owner, snapshot.bytes().to_vec())));
            let before = std::mem::replace(&mut one.history, fresh);
            self.past.push((one.id.clone(), before));
        }
        // A state that was left in order says nothing of what came after it: there the manual asks for it.
        self.agents[agent].overrides.resync = kept.clean || self.dice.one_in(faults::RESYNC_ONE_IN);
        self.agents[agent].journaled.clear();
        self.boot_agent(agent)
    }

    fn clone_agent(&mut self, agent: usize) -> Result<(), Failed> {
        let name = format!("{}c", self.agents[agent].node.name);
        if self.agents[agent].retired || !self.agents[agent].state_dir.exists() || self.agents.len() > 5 {
            return Ok(());
        }
        let node = self.node(&name);
        let state_dir = self.dir.path().join(format!("clone-{}", node.id));
        copy_state(&self.agents[agent].state_dir, &state_dir)?;
        let mut disks = Vec::new();
        for one in &self.agents[agent].disks {
            let dice = self.dice.branch();
            let disk = GuestDisk::from_snapshot(one.id.as_str(), &one.disk.snapshot(), dice);
            let history = Rc::new(RefCell::new(History::new(format!("{} cloned", one.id), disk.content())));
            disks.push(Protected { id: one.id.clone(), disk, history });
        }
        let original = &self.agents[agent];
        // Left in order, its state tells how far everything was; else the vault does, and an operator may ask for more.
        let resync = !original.stopped_clean() && self.dice.one_in(faults::RESYNC_ONE_IN);
        let clone = AgentMachine {
            node,
            agent: original.agent.clone(),
            state_dir,
            tls: original.tls.clone(),
            disks,
            settings: original.settings.clone(),
            pace: Rc::new(Cell::new(Pace::Calm)),
            live: Rc::new(RefCell::new(Live::default())),
            retired: false,
            overrides: Overrides { resync, ..Overrides::default() },
            journaled: BTreeMap::new(),
        };
        self.agents.push(clone);
        self.boot_agent(self.agents.len() - 1)
    }

    /// Switches everything off.
    pub fn end(&mut self) {
        self.sweep();
        for agent in &mut self.agents {
            agent.observe();
            agent.live.borrow_mut().disks.clear();
            self.net.forget(agent.node.id);
            agent.node.kill();
        }
        for gateway in &mut self.gateways {
            gateway.kill(&self.net, false, &mut self.dice);
        }
    }
}

fn jump(node: &Node, by: i64) {
    node.skew.fetch_add(by, std::sync::atomic::Ordering::Relaxed);
}
