//! The agent as a whole, over the real wire, against a gateway in memory.

mod gateway;
mod lives;
mod operator;
mod signed;
pub mod support;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use self::gateway::{FakeGateway, Serving, another_gateway, certificates};
use self::support::{Dice, until};
use super::carrier::Choice;
use super::config::{Config, DiskConfig};
use super::disk::{Disk, Overrides};
use super::placement::Gateway;
use super::splitter::Splitter;
use super::state::StateDir;
use super::{Agent, AgentError};
use crate::flow::SystemClock;
use crate::nbd::{Export, Listen, ZeroFlags};
use crate::telemetry::traces::settings::Settings;
use crate::types::DiskId;
use crate::wire::{TlsFiles, Transport};

const DISK_BYTES: usize = 24 << 20;
/// The gateway's and an agent's state, disks and certificates.
struct World {
    folder: tempfile::TempDir,
    host: Arc<FakeGateway>,
    serving: Option<Serving>,
    gateway_tls: TlsFiles,
    config: Config,
}

impl World {
    /// Disks with something in them, and a gateway that runs.
    async fn new(disks: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let (gateway_tls, tls) = certificates(&folder.path().join("pki"), disks);
        let host = FakeGateway::new(disks);
        let any: SocketAddr = "127.0.0.1:0".parse().expect("address");
        let serving = Serving::start(&host, &gateway_tls, any).await;
        let config = Config {
            transport: Choice::Only(Transport::Quic),
            quic_retry: Duration::from_secs(60),
            id: "a1".into(),
            state_dir: folder.path().join("state"),
            gateways: vec![Gateway::new(serving.address.to_string())],
            lost_after: Duration::from_secs(3),
            return_after: Duration::from_secs(1),
            tls,
            barrier_interval: Duration::from_millis(100),
            memory_bytes: 64 << 20,
            drain_grace: Duration::from_secs(10),
            copy_parallel: 2,
            copy_rate_bytes: 0,
            metrics_listen: None,
            traces: Settings::default(),
            disks: disks
                .iter()
                .map(|name| DiskConfig {
                    id: DiskId::new(name).expect("name"),
                    path: folder.path().join(format!("{name}.img")),
                    listen: Listen::Unix(folder.path().join(format!("{name}.sock"))),
                    queue_bytes: 8 << 20,
                })
                .collect(),
        };
        for disk in &config.disks {
            let mut image = vec![0; DISK_BYTES];
            let mut dice = Dice(1);
            image[..DISK_BYTES / 2].iter_mut().step_by(61).for_each(|byte| *byte = dice.roll(256) as u8);
            std::fs::write(&disk.path, image).expect("image");
        }
        Self { folder, host, serving: Some(serving), gateway_tls, config }
    }

    fn start_agent(&self) -> Agent {
        self.start_agent_with(Overrides::default()).expect("agent")
    }

    fn start_agent_with(&self, overrides: Overrides) -> Result<Agent, AgentError> {
        let overrides: BTreeMap<_, _> = self.config.disks.iter().map(|disk| (disk.id.clone(), overrides)).collect();
        Agent::start(&self.config, &overrides, Arc::new(SystemClock::new()))
    }

    fn path(&self, disk: usize) -> PathBuf {
        self.config.disks[disk].path.clone()
    }

    fn on_disk(&self, disk: usize) -> Vec<u8> {
        std::fs::read(self.path(disk)).expect("image")
    }

    fn kill_gateway(&mut self) {
        self.serving = None;
    }

    async fn start_gateway(&mut self) {
        let address = self.config.gateways[0].address.parse().expect("address");
        self.serving = Some(Serving::start(&self.host, &self.gateway_tls, address).await);
    }

    /// One of the release before signed barriers.
    async fn start_older_gateway(&mut self) {
        let address = self.config.gateways[0].address.parse().expect("address");
        self.serving = Some(Serving::start_speaking(&self.host, &self.gateway_tls, address, 1).await);
    }

    /// Waits until all disks are wholly vaulted, and compares them with what their records make.
    async fn compare(&self, agent: &Agent) {
        for (at, disk) in agent.disks().iter().enumerate() {
            until("everything vaulted", || disk.all_vaulted()).await;
            let image = self.host.disk(disk.id.as_str()).image(DISK_BYTES, None);
            assert!(image == self.on_disk(at), "{}: the records make another image", disk.id);
        }
    }

    /// Ends an agent as SIGKILL would: nothing is written any more. Waits until its files are free again.
    async fn crash(&self, agent: Agent) {
        drop(agent);
        // Disks that nobody has any more may still be closing their files; the directory's lock goes last.
        until("the agent's end", || StateDir::open(&self.config.state_dir).is_ok()).await;
    }
}

/// A guest that writes at random until told to stop.
struct Guest {
    stop: Arc<AtomicBool>,
    writes: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Guest {
    fn start(disk: &Arc<Disk>, seed: u64) -> Self {
        let splitter = Splitter::new(Arc::clone(disk));
        let (stop, writes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&writes));
        let thread = std::thread::spawn(move || {
            let mut dice = Dice(seed);
            while !stopped.load(Ordering::SeqCst) {
                change(&splitter, &mut dice);
                counted.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_micros(300));
            }
        });
        Self { stop, writes, thread }
    }

    /// Waits until it has written this often since now: it was not held up.
    async fn goes_on(&self, writes: u64) {
        let before = self.writes.load(Ordering::SeqCst);
        until("the guest's writes", || self.writes.load(Ordering::SeqCst) >= before + writes).await;
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::SeqCst);
        tokio::task::spawn_blocking(|| self.thread.join().expect("guest")).await.expect("joined");
    }
}

fn change(splitter: &Splitter, dice: &mut Dice) {
    let offset = dice.roll(DISK_BYTES as u64 / 512 - 256) * 512;
    let length = (1 + dice.roll(255)) * 512;
    match dice.roll(10) {
        0 => splitter.zero(offset, length, ZeroFlags::default()).expect("zero"),
        1 => splitter.trim(offset, length, false).expect("trim"),
        2 => splitter.flush().expect("flush"),
        _ => {
            let value = dice.roll(256) as u8;
            let fua = dice.roll(20) == 0;
            splitter.write(offset, vec![value; length as usize].into(), fua).expect("write");
        }
    }
}

/// Changes an image behind the agent's back.
fn overwrite(path: &std::path::Path, offset: u64, bytes: &[u8]) {
    let file = std::fs::File::options().write(true).open(path).expect("image");
    file.write_all_at(bytes, offset).expect("written");
    // The stamp of a file may be as coarse as a clock tick.
    let later = std::time::UNIX_EPOCH + Duration::from_secs(1_900_000_000);
    file.set_modified(later).expect("stamp");
}
