//! A protected machine: the real agent over disks in memory, and the guests that write to them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidegate::agent::carrier::Choice;
use tidegate::agent::config::{Config, DiskConfig};
use tidegate::agent::disk::{Disk, Overrides, Plan};
use tidegate::agent::placement::Gateway;
use tidegate::agent::points::{self, PointMade, PointRequest};
use tidegate::agent::tracker::Mode;
use tidegate::agent::{Agent, Parts};
use tidegate::flow::Clock;
use tidegate::flow::platter::sim as platter;
use tidegate::nbd::{Export, Listen, ZeroFlags};
use tidegate::types::{BarrierKind, DiskId, Epoch, PointId};
use tidegate::wire::net::Net;
use tidegate::wire::{TlsFiles, Transport};
use tokio::sync::Notify;

use crate::dice::Dice;
use crate::disk::{GuestDisk, SECTOR};
use crate::model::{Change, Content, GroupPoint, History, Seen, made};
use crate::net::SimNet;
use crate::node::{Node, NodeClock};
use crate::{Failed, event};

/// What one protected disk of a machine is made of.
pub struct Protected {
    /// Its name.
    pub id: DiskId,
    /// The disk.
    pub disk: GuestDisk,
    /// What was done to it by its present owner.
    pub history: Rc<RefCell<History>>,
}

/// How busy the guests are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// They write nothing.
    Still,
    /// A few writes a second.
    Calm,
    /// As much as a small machine does at its worst.
    Busy,
}

/// Settings of an agent that a seed chooses.
#[derive(Debug, Clone)]
pub struct AgentSettings {
    /// Gateways that may carry its disks.
    pub gateways: Vec<Gateway>,
    /// Silence after which a gateway counts as lost.
    pub lost_after: Duration,
    /// How long a better gateway must answer before the agent returns to it.
    pub return_after: Duration,
    /// Bytes of the record queue of each disk.
    pub queue_bytes: u64,
    /// Time between its own recovery points.
    pub barrier_interval: Duration,
}

/// What the world sees of a running agent.
#[derive(Default)]
pub struct Live {
    /// Its disks; empty while it is down.
    pub disks: Vec<Arc<Disk>>,
    /// Asks it to stop in order.
    pub stop: Option<Rc<Notify>>,
    /// Set when it has stopped in order: whether it was clean.
    pub stopped: Option<bool>,
    /// Why it does not run.
    pub failed: Option<String>,
}

/// A protected machine.
pub struct AgentMachine {
    /// The machine.
    pub node: Node,
    /// The agent's id; a clone has that of its original.
    pub agent: String,
    /// Where it keeps its state.
    pub state_dir: PathBuf,
    /// Certificate files.
    pub tls: TlsFiles,
    /// Its disks, sorted by id.
    pub disks: Vec<Protected>,
    /// Its settings.
    pub settings: AgentSettings,
    /// How busy its guests are.
    pub pace: Rc<Cell<Pace>>,
    /// What the world sees of it.
    pub live: Rc<RefCell<Live>>,
    /// Switched off for good.
    pub retired: bool,
    /// What the operator asks for at the next start.
    pub overrides: Overrides,
    /// Journaled acks seen, to tell which gateway gave them: newest by disk.
    pub journaled: BTreeMap<DiskId, (Epoch, u64)>,
}

/// What the tracker of a disk says now.
#[must_use]
pub fn seen(disk: &Disk) -> Seen {
    let tracker = disk.tracker();
    let attached = tracker.mode() != Mode::Detached;
    let at = attached.then(|| PointId { epoch: tracker.queue().epoch(), seq: tracker.queue().last_seq() });
    Seen { at, recording: tracker.mode() == Mode::Recording }
}

impl AgentMachine {
    fn config(&self) -> Config {
        let disk = |protected: &Protected| DiskConfig {
            id: protected.id.clone(),
            path: PathBuf::from(format!("/simulated/{}", protected.id)),
            listen: Listen::Unix("/simulated/socket".into()),
            queue_bytes: self.settings.queue_bytes,
        };
        Config {
            id: self.agent.clone(),
            state_dir: self.state_dir.clone(),
            gateways: self.settings.gateways.clone(),
            lost_after: self.settings.lost_after,
            return_after: self.settings.return_after,
            // The simulated network carries datagrams alone.
            transport: Choice::Only(Transport::Quic),
            quic_retry: Duration::from_secs(60),
            tls: self.tls.clone(),
            barrier_interval: self.settings.barrier_interval,
            memory_bytes: 32 << 20,
            drain_grace: Duration::from_secs(10),
            copy_parallel: 2,
            copy_rate_bytes: 0,
            metrics_listen: None,
            traces: Default::default(),
            disks: self.disks.iter().map(disk).collect(),
        }
    }

    /// Starts the machine, the agent on it, and the guests.
    ///
    /// # Errors
    /// If the system gives no runtime.
    pub fn boot(&mut self, now: u64, net: &SimNet, dice: &mut Dice) -> Result<(), Failed> {
        let overrides = std::mem::take(&mut self.overrides);
        event!("agent {} starts on {} with {overrides:?}", self.agent, self.node.name);
        let config = self.config();
        let sources: Vec<(DiskId, GuestDisk, Rc<RefCell<History>>, Dice)> = self
            .disks
            .iter()
            .map(|one| (one.id.clone(), one.disk.clone(), Rc::clone(&one.history), dice.branch()))
            .collect();
        let stop = Rc::new(Notify::new());
        *self.live.borrow_mut() = Live { stop: Some(Rc::clone(&stop)), ..Live::default() };
        let (live, pace, net) = (Rc::clone(&self.live), Rc::clone(&self.pace), Net::new(net.of(self.node.id)));
        self.node.boot(now, move |clock| run(clock, config, overrides, net, sources, pace, live, stop))?;
        Ok(())
    }

    /// Kills the agent, or cuts the power of its machine.
    pub fn kill(&mut self, net: &SimNet, power_cut: bool) {
        if !self.node.is_up() {
            return;
        }
        event!("{} is killed{}", self.node.name, if power_cut { " by a power cut" } else { "" });
        self.observe();
        net.forget(self.node.id);
        for one in &mut self.disks {
            one.disk = one.disk.restarted(power_cut);
        }
        self.live.borrow_mut().disks.clear();
        self.node.kill();
        self.live.borrow_mut().stop = None;
        for one in &self.disks {
            one.history.borrow_mut().restarted(&one.disk.content());
        }
    }

    /// Takes away what a power cut leaves not of the state directory. The machine must be down.
    ///
    /// # Errors
    /// If the system refuses a file.
    pub fn lose_unsynced(&self, dice: &mut Dice) -> Result<(), Failed> {
        if self.state_dir.exists() {
            // Mostly all or nothing, as with the disks.
            let survives = *dice.pick(&[0, 0, 500, 1000]);
            platter::power_cut(&self.state_dir, || dice.permille(survives))?;
        }
        Ok(())
    }

    /// Takes samples of every disk and the acks it has seen.
    pub fn observe(&self) {
        let live = self.live.borrow();
        for disk in &live.disks {
            let Some(one) = self.disks.iter().find(|one| one.id == disk.id) else { continue };
            let mut history = one.history.borrow_mut();
            if let Some(seen) = one.disk.take_reverted() {
                history.reverted(seen, &one.disk.content());
            }
            history.sample(seen(disk));
            let tracker = disk.tracker();
            if tracker.mode() != Mode::Detached {
                let (epoch, vaulted) = (tracker.queue().epoch(), tracker.vaulted_seq().0);
                let acked = history.acked.entry(epoch).or_default();
                if vaulted > acked.vaulted {
                    acked.vaulted = vaulted;
                    acked.vaulted_at = crate::trace::now();
                }
            }
        }
    }

    /// Journaled acks that came since the last call: (gateway, disk, epoch, seq).
    pub fn journaled_news(&mut self) -> Vec<(String, DiskId, Epoch, u64)> {
        let live = self.live.borrow();
        let mut news = Vec::new();
        for disk in &live.disks {
            let (mode, epoch, journaled) = {
                let tracker = disk.tracker();
                (tracker.mode(), tracker.queue().epoch(), tracker.journaled_seq().0)
            };
            if mode == Mode::Detached {
                continue;
            }
            let known = self.journaled.get(&disk.id).copied();
            if known.is_some_and(|known| known >= (epoch, journaled)) {
                continue;
            }
            self.journaled.insert(disk.id.clone(), (epoch, journaled));
            if let Some(gateway) = disk.condition().gateway {
                news.push((gateway, disk.id.clone(), epoch, journaled));
            }
        }
        news
    }

    /// Whether it stands still since its agent stopped in order, with everything vaulted.
    #[must_use]
    pub fn stopped_clean(&self) -> bool {
        !self.node.is_up() && self.live.borrow().stopped == Some(true)
    }

    /// Whether every disk has everything vaulted, or is fenced.
    #[must_use]
    pub fn settled(&self) -> bool {
        let live = self.live.borrow();
        !live.disks.is_empty() && live.disks.iter().all(|disk| disk.all_vaulted())
    }

    /// Whether another owner took one of its disks over.
    #[must_use]
    pub fn fenced(&self) -> bool {
        self.live.borrow().disks.iter().any(|disk| matches!(disk.plan(), Plan::Fenced(_)))
    }

    /// In words, what its disks are at.
    #[must_use]
    pub fn describe(&self) -> String {
        let live = self.live.borrow();
        let mut text = String::new();
        for disk in &live.disks {
            let tracker = disk.tracker();
            let condition = disk.condition();
            text += &format!(
                "{} {:?} {:?} at e{}-s{} journaled {} vaulted {} span {} unsent {} gateway {:?} error {:?}; ",
                disk.id,
                disk.plan(),
                tracker.mode(),
                tracker.queue().epoch(),
                tracker.queue().last_seq(),
                tracker.journaled_seq(),
                tracker.vaulted_seq(),
                tracker.in_span(),
                tracker.dirty().must_send().len(),
                condition.gateway,
                condition.last_error,
            );
        }
        text
    }
}

#[expect(clippy::too_many_arguments, reason = "everything that a life of the machine is given")]
async fn run(
    clock: NodeClock,
    config: Config,
    overrides: Overrides,
    net: Net,
    sources: Vec<(DiskId, GuestDisk, Rc<RefCell<History>>, Dice)>,
    pace: Rc<Cell<Pace>>,
    live: Rc<RefCell<Live>>,
    stop: Rc<Notify>,
) {
    let clock: Arc<dyn Clock> = Arc::new(clock);
    let by_disk = sources.iter().map(|(id, ..)| (id.clone(), overrides)).collect();
    let exports = sources.iter().map(|(id, disk, ..)| (id.clone(), Ok(Arc::new(disk.clone()) as Arc<dyn Export>)));
    let parts = Parts { config: &config, overrides: &by_disk, clock, net, sources: exports.collect() };
    let agent = match Agent::from_parts(parts) {
        Ok(agent) => agent,
        Err(error) => {
            live.borrow_mut().failed = Some(tidegate::fault::chain_text(&error));
            return;
        }
    };
    live.borrow_mut().disks = agent.disks().to_vec();
    let mut guests = tokio::task::JoinSet::new();
    for (splitter, (_, disk, history, dice)) in agent.splitters().into_iter().zip(sources) {
        let protected = agent.disks().iter().find(|known| known.id.as_str() == splitter.name()).cloned();
        let Some(protected) = protected else { continue };
        disk.protected_by(&protected);
        let guest = Guest { splitter: Box::new(splitter), protected, disk, history, dice };
        guests.spawn_local(guest.run(Rc::clone(&pace)));
    }
    stop.notified().await;
    guests.shutdown().await;
    let clean = agent.stop().await;
    event!("agent stopped, clean: {clean}");
    live.borrow_mut().stopped = Some(clean);
}

/// Who writes to one disk.
struct Guest {
    splitter: Box<dyn Export>,
    protected: Arc<Disk>,
    disk: GuestDisk,
    history: Rc<RefCell<History>>,
    dice: Dice,
}

impl Guest {
    async fn run(mut self, pace: Rc<Cell<Pace>>) {
        loop {
            let pause_ms = match pace.get() {
                Pace::Still => 500,
                Pace::Calm => self.dice.between(50, 1500),
                Pace::Busy => self.dice.between(2, 120),
            };
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            if pace.get() != Pace::Still {
                self.act();
            }
        }
    }

    fn act(&mut self) {
        if self.dice.one_in(12) {
            // A flush that fails may change what reads see.
            let _ = self.splitter.flush();
            return;
        }
        let sectors = self.disk.size_bytes() / SECTOR as u64;
        // Mostly small and near each other, sometimes anywhere and large.
        let most = *self.dice.pick(&[1, 8, 8, 16, 128]);
        let length = self.dice.between(1, most).min(sectors);
        let area = if self.dice.one_in(4) { sectors } else { sectors / 8 };
        let at = self.dice.below(area.saturating_sub(length).max(1));
        let (offset, length) = (at * SECTOR as u64, length * SECTOR as u64);
        {
            let mut history = self.history.borrow_mut();
            if let Some(seen) = self.disk.take_reverted() {
                history.reverted(seen, &self.disk.content());
            }
            history.sample(seen(&self.protected));
        }
        let fua = self.dice.one_in(16);
        let (outcome, content) = match self.dice.below(16) {
            0 => (self.splitter.zero(offset, length, ZeroFlags { fua, ..ZeroFlags::default() }), Content::Zero),
            1 => (self.splitter.trim(offset, length, fua), Content::Zero),
            _ => {
                let number = self.dice.roll();
                let data = Bytes::from(made(number, length));
                (self.splitter.write(offset, data, fua), Content::Made(number))
            }
        };
        let failed = outcome.is_err();
        let content = if failed { Content::Found(self.disk.part(offset, length)) } else { content };
        let mut history = self.history.borrow_mut();
        history.changed(Change { offset, length, content }, failed, seen(&self.protected));
        if let Some(seen) = self.disk.take_reverted() {
            history.reverted(seen, &self.disk.content());
        }
    }
}

/// Asks for a recovery point of all disks of a machine as an operator does, and notes it as promised when it is vaulted.
pub async fn promise_point(
    disks: Vec<Arc<Disk>>,
    histories: Vec<Rc<RefCell<History>>>,
    groups: Rc<RefCell<Vec<GroupPoint>>>,
    name: String,
) {
    let request = PointRequest { kind: BarrierKind::Fs, name, wait: true, timeout: Duration::from_secs(60) };
    match points::make(&disks, &request).await {
        Ok(made) => {
            for (point, history) in made.iter().zip(&histories) {
                event!("point {} of disk {} is vaulted", point.id(), point.disk);
                history.borrow_mut().promised.push((point.id(), crate::trace::now()));
            }
            let members = histories.into_iter().zip(made.iter().map(PointMade::id)).collect();
            groups.borrow_mut().push(GroupPoint { members });
        }
        Err(error) => event!("no point: {error}"),
    }
}

/// Copies a state directory, without its lock; the copy is durable.
///
/// # Errors
/// If a file cannot be read or written.
pub fn copy_state(from: &Path, to: &Path) -> std::io::Result<()> {
    if to.exists() {
        std::fs::remove_dir_all(to)?;
    }
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_name() != "lock" && entry.file_type()?.is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    platter::all_durable(to)
}
