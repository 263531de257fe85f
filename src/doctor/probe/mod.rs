//! The part that touches the host: each file looks at one thing and writes down what it saw.

mod certificates;
mod disk;
mod host;
mod ports;
mod store;
mod traces;

use std::path::Path;
use std::sync::Arc;

use futures_util::future::join_all;

use super::facts::{Daemon, Demand, DiskFile, Facts, Reached, Role, SecretFile, Trouble};
use crate::agent::carrier::Choice;
use crate::agent::config::Config as AgentConfig;
use crate::fault::{Classify, Fault, chain_text};
use crate::flow::{Clock, SystemClock, blocking};
use crate::gateway::config::GatewayConfig;
use crate::gateway::{MEMORY_BESIDES_BYTES, files};
use crate::journal::BackendChoice;
use crate::telemetry::traces::settings::Settings;
use crate::wire::{Client, Net, Transport, Tuning};

const MIB: u64 = 1 << 20;
/// Rings take about so much of locked memory per shard, and one more is made by the preflight.
const RING_BYTES: u64 = MIB;
/// What an agent's state takes per disk at most.
const STATE_BYTES_PER_DISK: u64 = 2 * MIB;
/// Files of an agent: sockets of guests, images, state.
const AGENT_FILES: u64 = 1024;

fn trouble(error: &impl Classify) -> Trouble {
    Trouble { text: chain_text(error), passing: error.fault() == Fault::Retry }
}

fn secret(what: &'static str, path: &Path) -> SecretFile {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::File::open(path).and_then(|file| file.metadata()).map(|meta| meta.permissions().mode());
    SecretFile { what, path: path.display().to_string(), mode: mode.map_err(|error| error.to_string()) }
}

fn with_headers(mut secrets: Vec<SecretFile>, traces: &Settings) -> Vec<SecretFile> {
    secrets.extend(traces.headers_file.as_deref().map(|path| secret("headers of traces", path)));
    secrets
}

/// Looks at a gateway's host.
pub async fn gateway(config: &GatewayConfig) -> Facts {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let socket_buffer_bytes = Tuning::default().socket_buffer_bytes;
    let demand = Demand {
        memory_bytes: config.memory_bytes + MEMORY_BESIDES_BYTES,
        files: files::wanted(config.listen_tcp.is_some(), config.agents_max),
        memlock_bytes: RING_BYTES * (u64::from(config.journal.shards) + 1),
        socket_buffer_bytes: u64::from(socket_buffer_bytes),
        space_bytes: config.journal.capacity_bytes,
    };
    let journal = config.journal.clone();
    let place = blocking(move || disk::journal(&journal.dir, journal.backend)).await;
    let place = place.unwrap_or_else(|error| disk::unseen(&config.journal.dir, &error.to_string()));
    Facts {
        role: Role::Gateway,
        id: config.id.clone(),
        now: clock.wall(),
        demand,
        host: host::look(socket_buffer_bytes),
        place,
        tls: certificates::look(&config.tls, &[], &clock),
        secrets: with_headers(
            vec![secret("TLS key", &config.tls.key), secret("catalog key", &config.catalog_key)],
            &config.traces,
        ),
        store: Some(store::look(config, &*clock).await),
        gateways: Vec::new(),
        disks: Vec::new(),
        ports: ports::gateway(config),
        daemon: ports::daemon(config).await,
        traces: traces::look(&config.traces).await,
    }
}

/// Looks at an agent's host.
pub async fn agent(config: &AgentConfig) -> Facts {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let socket_buffer_bytes = Tuning::default().socket_buffer_bytes;
    let demand = Demand {
        memory_bytes: config.memory_bytes + MEMORY_BESIDES_BYTES,
        files: AGENT_FILES,
        memlock_bytes: 0,
        socket_buffer_bytes: u64::from(socket_buffer_bytes),
        space_bytes: STATE_BYTES_PER_DISK * config.disks.len() as u64,
    };
    let (state, seen) = (config.state_dir.clone(), config.state_dir.clone());
    let place = blocking(move || disk::state(&seen)).await;
    let disks: Vec<_> = config.disks.iter().map(|disk| disk.id.clone()).collect();
    Facts {
        role: Role::Agent,
        id: config.id.clone(),
        now: clock.wall(),
        demand,
        host: host::look(socket_buffer_bytes),
        place: place.unwrap_or_else(|error| disk::unseen(&state, &error.to_string())),
        tls: certificates::look(&config.tls, &disks, &clock),
        secrets: with_headers(vec![secret("TLS key", &config.tls.key)], &config.traces),
        store: None,
        gateways: reach(config, &clock).await,
        disks: config.disks.iter().map(|disk| disk_file(disk.id.as_str(), &disk.path)).collect(),
        ports: ports::agent(config),
        daemon: if disk::is_locked(&config.state_dir.join("lock")) { Daemon::Runs } else { Daemon::Away },
        traces: traces::look(&config.traces).await,
    }
}

/// Opened for reading and writing, never written.
fn disk_file(disk: &str, path: &Path) -> DiskFile {
    use std::io::{Seek as _, SeekFrom};
    let opened = std::fs::OpenOptions::new().read(true).write(true).open(path);
    // A block device tells its size by its end alone.
    let size_bytes = opened.and_then(|mut file| file.seek(SeekFrom::End(0))).map_err(|error| error.to_string());
    DiskFile { disk: disk.to_owned(), path: path.display().to_string(), size_bytes }
}

/// Every way to every gateway that the configuration allows, all at once.
async fn reach(config: &AgentConfig, clock: &Arc<dyn Clock>) -> Vec<Reached> {
    let transports: &[Transport] = match config.transport {
        Choice::Auto => &[Transport::Quic, Transport::Tcp],
        Choice::Only(Transport::Quic) => &[Transport::Quic],
        Choice::Only(Transport::Tcp) => &[Transport::Tcp],
    };
    let ways = config.gateways.iter().flat_map(|gateway| transports.iter().map(move |transport| (gateway, *transport)));
    join_all(ways.map(|(gateway, transport)| async move {
        let tuning = Tuning { transport, ..Tuning::default() };
        let started = clock.monotonic();
        let probed = Client::probe(&gateway.address, &config.tls, &tuning, Arc::clone(clock), &Net::system()).await;
        let micros = (clock.monotonic() - started).as_micros() as u64;
        Reached {
            address: gateway.address.clone(),
            transport: transport.as_str(),
            answer: probed.map(|()| micros).map_err(|error| trouble(&error)),
        }
    }))
    .await
}

/// The choice of an agent's state: plain calls.
const STATE_BACKEND: BackendChoice = BackendChoice::Std;
