//! A gateway and an agent in one thread, under paused time: what the simulation of the whole system stands on.

mod forgery;
mod rotation;
mod wires;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use tokio::task::LocalSet;

use self::wires::Wires;
use super::admin::Health;
use super::*;
use crate::agent::config::Config;
use crate::agent::tests::support::MemSource;
use crate::agent::{self, Agent};
use crate::journal::disk::sim::{Delays, SimDisk};
use crate::keys::Identity;
use crate::nbd::Export;
use crate::types::{BarrierKind, DiskId, Id128, Micros};
use crate::vault::InitOptions;
use crate::vault::store::VaultStore;
use crate::wire::TlsFiles;
use crate::wire::pki::{self, IssueOptions, Issued};

const DISK_BYTES: usize = 2 << 20;

/// Time of the runtime, from a fixed moment on.
struct PausedClock(tokio::time::Instant);

impl Clock for PausedClock {
    fn wall(&self) -> Micros {
        Micros(1_800_000_000_000_000 + self.monotonic().as_micros() as u64)
    }

    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }
}

/// Certificates of one gateway and one agent.
fn certificates(dir: &Path, vault: Id128) -> (TlsFiles, TlsFiles) {
    let options = IssueOptions { now: Micros(1_800_000_000_000_000), days: 30, force: false, keep_key: false };
    let files =
        |issued: &Issued| TlsFiles { ca: issued.ca.clone(), cert: issued.cert.clone(), key: issued.key.clone() };
    pki::init(dir, vault, options).expect("authority");
    let gateway = pki::issue_gateway(dir, "g1", &["10.0.0.1".into()], options).expect("gateway");
    let disks = [disk_id(), DiskId::new("d2").expect("a name")];
    let agent = pki::issue_agent(dir, "a1", &disks, options).expect("agent");
    (files(&gateway), files(&agent))
}

fn disk_id() -> DiskId {
    DiskId::new("d1").expect("a name")
}

/// A file as the daemon reads it; what no file can ask for is set afterwards.
fn gateway_config(dir: &Path, tls: &TlsFiles, listen: SocketAddr) -> GatewayConfig {
    let (ca, cert, key) = (tls.ca.display(), tls.cert.display(), tls.key.display());
    let file = dir.join("gateway.toml");
    let text = format!(
        "id = \"g1\"\nlisten = \"{listen}\"\nmemory = \"128 MiB\"\n\
         [tls]\nca = \"{ca}\"\ncert = \"{cert}\"\nkey = \"{key}\"\n\
         [vault]\nurl = \"memory:x\"\ncatalog_key = \"none\"\n\
         [journal]\ndir = \"/sim\"\ncapacity = \"64 MiB\"\nsegment = \"16 MiB\"\n"
    );
    std::fs::write(&file, text).expect("written");
    let mut config = GatewayConfig::load(&file).expect("a good file");
    config.pipeline_threads = 0;
    config
}

fn agent_config(dir: &Path, tls: &TlsFiles, gateway: SocketAddr) -> Config {
    let (ca, cert, key) = (tls.ca.display(), tls.cert.display(), tls.key.display());
    let (file, disk, dir) = (dir.join("agent.toml"), dir.join("disk"), dir.display());
    std::fs::write(&disk, b"stands for the disk in memory").expect("written");
    let text = format!(
        "id = \"a1\"\nstate_dir = \"{dir}/state\"\ngateways = [\"{gateway}\"]\nbarrier_interval = \"1 s\"\n\
         [tls]\nca = \"{ca}\"\ncert = \"{cert}\"\nkey = \"{key}\"\n\
         [[disk]]\nid = \"d1\"\npath = \"{}\"\nlisten = \"unix:{dir}/nbd\"\n",
        disk.display()
    );
    Config::parse(&file, &text).expect("a good file")
}

/// What a run leaves behind.
struct Outcome {
    batches: usize,
    elapsed: Duration,
}

/// A gateway that is to run, and what goes with it.
struct Site {
    parts: Parts,
    vault: Vault,
    identity: Identity,
    clock: Arc<dyn Clock>,
    wires: Wires,
    agent_tls: TlsFiles,
}

async fn site(dir: &Path) -> Site {
    let clock: Arc<dyn Clock> = Arc::new(PausedClock(tokio::time::Instant::now()));
    let memory = Arc::new(InMemory::new());
    let store = || VaultStore::new(Arc::clone(&memory) as Arc<dyn ObjectStore>, "sim://vault");
    let identity = Identity::generate();
    let options = InitOptions { recipients: vec![identity.recipient()], now: clock.wall() };
    let (vault, key) = Vault::init(store(), &options).await.expect("an empty store");
    let (gateway_tls, agent_tls) = certificates(&dir.join("pki"), vault.id());
    let wires = Wires::new(Duration::from_millis(2));

    let address: SocketAddr = "10.0.0.1:9443".parse().expect("address");
    let (net, disk) = (wires.net(address.ip()), SimDisk::new(1));
    disk.set_delays(Delays { write: Duration::from_millis(1), sync: Duration::from_millis(3) });
    let config = gateway_config(dir, &gateway_tls, address);
    let (journal, report) = Journal::open_on(&config.journal, &disk, &clock).expect("the journal opens");
    let listener = Listener::bind(address, &config.tls, &Tuning::default(), &clock, &net).expect("listening");
    let (trigger, drain) = DrainTrigger::new();
    let live = Live::new(&config, &clock);
    let parts = Parts {
        config,
        live,
        clock: Arc::clone(&clock),
        health: Arc::new(Health::new(Arc::clone(&clock))),
        vault_runtime: Handle::current(),
        vault: Arc::new(Vault::open(store(), key).await.expect("the vault opens")),
        journal,
        report,
        listener,
        trigger,
        drain,
    };
    Site { parts, vault, identity, clock, wires, agent_tls }
}

async fn live(dir: &Path) -> Outcome {
    let Site { parts, vault, clock, wires, agent_tls, .. } = site(dir).await;
    let began = clock.monotonic();
    let (address, trigger) = (parts.listener.local_addr(), parts.trigger.clone());
    let gateway = tokio::task::spawn_local(parts.run());

    let source = Arc::new(MemSource::new("d1", DISK_BYTES));
    let config = agent_config(dir, &agent_tls, address);
    let agent = Agent::from_parts(agent::Parts {
        config: &config,
        overrides: &BTreeMap::new(),
        clock: Arc::clone(&clock),
        net: wires.net("10.0.0.2".parse().expect("address")),
        sources: BTreeMap::from([(disk_id(), Ok(Arc::clone(&source) as Arc<dyn Export>))]),
    })
    .expect("the agent starts");
    let guest = agent.splitters().remove(0);
    for number in 0..40_u64 {
        let content = Bytes::from(vec![number as u8 + 1; 4096]);
        guest.write(number % 30 * 65_536, content, false).expect("written");
        tokio::time::sleep(Duration::from_millis(37)).await;
    }
    let request = agent::points::PointRequest {
        kind: BarrierKind::Crash,
        name: "here".into(),
        wait: true,
        timeout: Duration::from_secs(60),
    };
    let points = agent::points::make(agent.disks(), &request).await.expect("a vaulted point");
    assert!(points[0].vaulted);
    assert!(agent.stop().await, "left clean");
    trigger.start();
    gateway.await.expect("no panic").expect("a clean end");

    let listed = vault.store().list(None).await.expect("a listing");
    let batches = listed.iter().filter(|object| object.path.as_ref().starts_with("b/")).count();
    Outcome { batches, elapsed: clock.monotonic() - began }
}

fn run<T>(seed: u64, life: impl AsyncFnOnce(&Path) -> T) -> T {
    let dir = tempfile::tempdir().expect("folder");
    run_in(seed, dir.path(), life)
}

fn run_in<T>(seed: u64, dir: &Path, life: impl AsyncFnOnce(&Path) -> T) -> T {
    let _chance = crate::flow::sim::enter(seed);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("runtime");
    let local = LocalSet::new();
    local.block_on(&runtime, life(dir))
}

#[test]
fn a_write_becomes_vaulted_with_everything_in_one_thread_and_no_real_time() {
    let outcome = run(1, live);
    assert!(outcome.batches >= 2, "{} batches", outcome.batches);
    assert!(outcome.elapsed > Duration::from_secs(1), "simulated time passed");
}

#[test]
fn a_gateway_that_can_serve_nobody_any_more_ends_and_says_so() {
    let ended = run(2, async |dir: &Path| {
        let Site { parts, .. } = site(dir).await;
        let endpoint = parts.listener.endpoint().clone();
        let gateway = tokio::task::spawn_local(parts.run());
        tokio::time::sleep(Duration::from_secs(3)).await;
        endpoint.close(0_u32.into(), b"");
        tokio::time::timeout(Duration::from_secs(300), gateway).await
    });
    let ended = ended.expect("ends by itself").expect("no panic");
    assert!(ended.is_err_and(|error| error.to_string().contains("endpoint")), "its supervisor starts it anew");
}
