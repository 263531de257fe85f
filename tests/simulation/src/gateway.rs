//! A gateway machine: the real gateway over a simulated journal disk.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tidegate::fault::{Classify, Fault, chain_text};
use tidegate::flow::{Clock, DrainTrigger};
use tidegate::gateway::Parts;
use tidegate::gateway::admin::Health;
use tidegate::gateway::config::GatewayConfig;
use tidegate::journal::disk::sim::{SimDisk, Survival};
use tidegate::journal::{BackendChoice, Journal, JournalConfig, ReplayReport};
use tidegate::keys::CatalogKey;
use tidegate::types::{DiskId, Epoch};
use tidegate::vault::Vault;
use tidegate::vault::store::VaultStore;
use tidegate::wire::endpoint::MTU_BYTES_DEFAULT;
use tidegate::wire::net::Net;
use tidegate::wire::{Listener, TlsFiles, Tuning};

use crate::dice::Dice;
use crate::net::SimNet;
use crate::node::{Node, NodeClock};
use crate::store::Blobs;
use crate::{Failed, event};

/// Wait of a gateway between two attempts to open the vault.
const VAULT_RETRY: Duration = Duration::from_secs(2);

/// Settings of a gateway that a seed chooses.
#[derive(Debug, Clone)]
pub struct GatewaySettings {
    /// Journal shards.
    pub shards: u16,
    /// Bytes of a journal segment.
    pub segment_bytes: u64,
    /// Segments of a shard.
    pub segments: u64,
    /// Age at which a batch is closed.
    pub batch_age: Duration,
    /// Most batches in upload.
    pub upload_parallel: u16,
    /// Disk streams above which agents are asked to go elsewhere.
    pub streams_target: u64,
}

/// What the world sees of a running gateway.
#[derive(Default)]
pub struct Live {
    /// Asks it to drain.
    pub trigger: Option<DrainTrigger>,
    /// Set when it has ended by itself: why.
    pub ended: Option<Result<(), String>>,
    /// What replay found, until somebody looks.
    pub report: Option<ReplayReport>,
}

/// A gateway machine.
pub struct GatewayMachine {
    /// The machine.
    pub node: Node,
    /// The journal's disk.
    pub disk: SimDisk,
    /// Whether the journal's disk did what no journal can make good: lost writes that it had confirmed, or rot.
    pub lied: bool,
    /// Whether something else has taken the rest of the file system that the journal is on.
    pub full: bool,
    /// Certificate files.
    pub tls: TlsFiles,
    /// Its settings.
    pub settings: GatewaySettings,
    /// What the world sees of it.
    pub live: Rc<RefCell<Live>>,
    /// Newest records that it acked as journaled, by disk and epoch.
    pub journaled: BTreeMap<(DiskId, Epoch), u64>,
    /// Down until then, if it is down.
    pub up_at: u64,
}

impl GatewayMachine {
    fn config(&self) -> GatewayConfig {
        let journal = JournalConfig {
            dir: PathBuf::from("/journal"),
            shards: self.settings.shards,
            capacity_bytes: self.settings.segments * self.settings.segment_bytes * u64::from(self.settings.shards),
            segment_bytes: self.settings.segment_bytes,
            high_water_percent: 80,
            low_water_percent: 60,
            cache_bytes: 4 << 20,
            backend: BackendChoice::Std,
        };
        let nowhere = ([127, 0, 0, 1], 0).into();
        GatewayConfig {
            id: self.node.name.to_owned(),
            listen: SimNet::address(self.node.id),
            listen_tcp: None,
            datagram_max_bytes: MTU_BYTES_DEFAULT,
            disk_lines_max: 0,
            admin_listen: nowhere,
            admin_names: Vec::new(),
            memory_bytes: 64 << 20,
            drain_grace: Duration::from_secs(10),
            tls: self.tls.clone(),
            vault_url: "sim".to_owned(),
            catalog_key: PathBuf::new(),
            batch_age: self.settings.batch_age,
            recipients_pins: Vec::new(),
            upload_parallel_max: self.settings.upload_parallel,
            request_timeout: Duration::from_secs(10),
            journal,
            pipeline_threads: 0,
            codec: tidegate::pipeline::CodecChoice::default(),
            agents_max: 100,
            streams_target: self.settings.streams_target,
            peers: Vec::new(),
            window_bytes: 4 << 20,
            bandwidth: Default::default(),
            traces: Default::default(),
        }
    }

    /// Starts the machine and the gateway on it.
    ///
    /// # Errors
    /// If the system gives no runtime.
    pub fn boot(&mut self, now: u64, net: &SimNet, blobs: &Blobs, key: &CatalogKey) -> Result<(), Failed> {
        event!("gateway {} starts", self.node.name);
        *self.live.borrow_mut() = Live::default();
        let store = VaultStore::new(Arc::new(blobs.of(self.node.id)), "sim");
        let (config, disk, live) = (self.config(), self.disk.clone(), Rc::clone(&self.live));
        let (net, key) = (Net::new(net.of(self.node.id)), key.clone());
        self.node.boot(now, move |clock| async move {
            let ended = life(clock, config, disk, store, net, key, &live).await;
            event!("gateway ended: {ended:?}");
            live.borrow_mut().ended = Some(ended);
        })?;
        Ok(())
    }

    /// Kills the gateway, or cuts the power of its machine.
    pub fn kill(&mut self, net: &SimNet, power_cut: bool, dice: &mut Dice) {
        if !self.node.is_up() {
            return;
        }
        event!("{} is killed{}", self.node.name, if power_cut { " by a power cut" } else { "" });
        net.forget(self.node.id);
        self.disk = if power_cut {
            let survival = *dice.pick(&[Survival::None, Survival::Prefix, Survival::Subset, Survival::All]);
            self.disk.crash(survival, *dice.pick(&[512, 4096]))
        } else {
            self.disk.kill()
        };
        if self.full {
            self.fill();
        }
        self.node.kill();
        *self.live.borrow_mut() = Live::default();
    }

    /// Something else takes the rest of the file system: no file is made any more, those that are there stay.
    pub fn fill(&mut self) {
        let used: usize = self.disk.files().iter().map(|path| self.disk.bytes_of(path).len()).sum();
        self.disk.set_room(used as u64);
        self.full = true;
    }

    /// It gives back what it took.
    pub fn make_room(&mut self) {
        self.disk.set_room(u64::MAX);
        self.full = false;
    }

    /// Notes a journaled ack that an agent has seen.
    pub fn note_journaled(&mut self, disk: DiskId, epoch: Epoch, seq: u64) {
        let newest = self.journaled.entry((disk, epoch)).or_default();
        *newest = seq.max(*newest);
    }
}

/// How far a journal goes on from what is known to be vaulted of an epoch.
#[must_use]
pub fn reached(report: &ReplayReport, disk: &DiskId, epoch: Epoch, vaulted: u64) -> u64 {
    let Some(run) = report.runs.get(&(disk.clone(), epoch)) else { return vaulted };
    let mut reached = vaulted.max(run.vaulted_mark.map_or(0, |(seq, _)| seq.0));
    for range in &run.journaled {
        if range.first.0 <= reached + 1 {
            reached = reached.max(range.last.0);
        }
    }
    reached
}

async fn life(
    clock: NodeClock,
    config: GatewayConfig,
    disk: SimDisk,
    store: VaultStore,
    net: Net,
    key: CatalogKey,
    live: &RefCell<Live>,
) -> Result<(), String> {
    let clock: Arc<dyn Clock> = Arc::new(clock);
    let opened = Journal::open_on(&config.journal, &disk, &clock).map_err(|error| chain_text(&error));
    let (journal, report) = opened?;
    for damage in &report.damage {
        event!("journal damage: {damage}");
    }
    live.borrow_mut().report = Some(report.clone());
    let listener = Listener::bind(config.listen, &config.tls, &Tuning::default(), &clock, &net);
    let listener = listener.map_err(|error| chain_text(&error))?;
    let vault = loop {
        match Vault::open(store.clone(), key.clone()).await {
            Ok(vault) => break Arc::new(vault),
            Err(error) if error.fault() == Fault::Retry => tokio::time::sleep(VAULT_RETRY).await,
            // A machine's supervisor starts it again.
            Err(error) => return Err(chain_text(&error)),
        }
    };
    let (trigger, drain) = DrainTrigger::new();
    live.borrow_mut().trigger = Some(trigger.clone());
    let health = Arc::new(Health::new(Arc::clone(&clock)));
    let vault_runtime = tokio::runtime::Handle::current();
    let live = tidegate::gateway::live::Live::new(&config, &clock);
    let parts = Parts { config, clock, health, live, vault_runtime, vault, journal, report, listener, trigger, drain };
    parts.run().await.map_err(|error| chain_text(&error))
}
