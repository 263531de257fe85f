//! What was seen on a host, and what its configuration asks for: plain values, so that findings need no host.

use crate::journal::Preflight;
use crate::types::Micros;
use crate::wire::Identity;

/// Whose host is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// `tidegate gateway`.
    Gateway,
    /// `tidegate agent`.
    Agent,
}

/// Why something could not be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What failed, why, and the next step where one is known.
    pub text: String,
    /// Whether another try may succeed with nothing changed.
    pub passing: bool,
}

/// Everything that was seen.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Whose host it is.
    pub role: Role,
    /// The daemon's id by its configuration.
    pub id: String,
    /// Wall clock of this host.
    pub now: Micros,
    /// What the configuration asks of the host.
    pub demand: Demand,
    /// Kernel, limits, memory, clock.
    pub host: Host,
    /// The directory that must be durable: the gateway's journal, the agent's state.
    pub place: Place,
    /// The TLS files.
    pub tls: Result<Tls, String>,
    /// Files that only their owner may read.
    pub secrets: Vec<SecretFile>,
    /// The vault; an agent has none.
    pub store: Option<Store>,
    /// Gateways as this agent reaches them.
    pub gateways: Vec<Reached>,
    /// The agent's disks.
    pub disks: Vec<DiskFile>,
    /// Addresses that the daemon opens.
    pub ports: Vec<Port>,
    /// The daemon itself.
    pub daemon: Daemon,
    /// Where traces go, if they go anywhere.
    pub traces: Option<Receiver>,
}

/// The receiver of traces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receiver {
    /// Its URL.
    pub endpoint: String,
    /// Whether it takes any.
    pub answer: Result<(), String>,
}

/// What the configuration asks of the host.
#[derive(Debug, Clone, Copy)]
pub struct Demand {
    /// Resident memory.
    pub memory_bytes: u64,
    /// Open files.
    pub files: u64,
    /// Locked memory, where rings count against it.
    pub memlock_bytes: u64,
    /// Each of a UDP socket's buffers.
    pub socket_buffer_bytes: u64,
    /// Space in the durable directory.
    pub space_bytes: u64,
}

/// The machine, as this process sees it.
#[derive(Debug, Clone)]
pub struct Host {
    /// Release of the kernel.
    pub kernel: String,
    /// Limit of locked memory; none if it is unlimited.
    pub memlock_bytes: Option<u64>,
    /// Hard limit of open files; none if it is unlimited.
    pub open_files: Option<u64>,
    /// What a UDP socket gets.
    pub udp: Result<Udp, String>,
    /// The container's limit of memory.
    pub memory_limit_bytes: Option<u64>,
    /// The machine's memory.
    pub memory_total_bytes: Option<u64>,
    /// Who keeps the clock.
    pub time: TimeService,
}

/// What a UDP socket gets.
#[derive(Debug, Clone, Copy)]
pub struct Udp {
    /// Receive buffer that the kernel gave.
    pub receive_bytes: u64,
    /// Send buffer that the kernel gave.
    pub send_bytes: u64,
    /// Datagrams that one call can send; 1 without segmentation offload.
    pub send_segments: usize,
    /// Datagrams that one call can receive.
    pub receive_segments: usize,
}

/// Who keeps the clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TimeService {
    /// A service says that the clock is right.
    Synchronised(&'static str),
    /// A service runs; what it has reached is not known.
    Running(&'static str),
    /// None was seen.
    Unknown,
}

/// A directory that must be durable.
#[derive(Debug, Clone)]
pub struct Place {
    /// The directory as configured.
    pub dir: String,
    /// Where was looked: `dir`, or what exists above it.
    pub looked_at: String,
    /// What was seen there.
    pub seen: Result<PlaceSeen, String>,
}

/// What was seen of a directory.
#[derive(Debug, Clone)]
pub struct PlaceSeen {
    /// Magic number of its file system.
    pub file_system: u64,
    /// Bytes that may still be written.
    pub free_bytes: u64,
    /// Bytes that the daemon has there already.
    pub own_bytes: u64,
    /// What the journal's preflight says; an agent has none.
    pub preflight: Option<Preflight>,
    /// Times of writes with their sync, in microseconds, the shortest first.
    pub commit_micros: Vec<u64>,
    /// Bytes of each of those writes.
    pub commit_bytes: u64,
}

/// The TLS files, as far as they can be used.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The certificate's file.
    pub cert: String,
    /// Whose it is.
    pub identity: Identity,
    /// End of the certificate.
    pub not_after: Micros,
    /// End of the authority.
    pub authority_not_after: Micros,
    /// Names and addresses by which others may connect.
    pub names: Vec<String>,
    /// Whether the other side would believe it.
    pub chain: Result<(), String>,
    /// Disks that the configuration has and the certificate does not name.
    pub disks_missing: Vec<String>,
}

/// A file with a secret in it.
#[derive(Debug, Clone)]
pub struct SecretFile {
    /// What it is.
    pub what: &'static str,
    /// The file.
    pub path: String,
    /// Its permission bits, or why it cannot be used.
    pub mode: Result<u32, String>,
}

/// The vault as this gateway reaches it.
#[derive(Debug, Clone)]
pub struct Store {
    /// The vault's URL.
    pub url: String,
    /// Its id, if it could be opened with the catalog key.
    pub vault: Result<String, Trouble>,
    /// Whether it may be listed, if that was tried.
    pub lists: Option<Result<(), Trouble>>,
    /// Whether objects may be created, if that was tried.
    pub creates: Option<Result<(), Trouble>>,
    /// Times of small reads, in microseconds, the shortest first.
    pub read_micros: Vec<u64>,
    /// The store's clock minus this host's; none for a directory, or if it did not say.
    pub ahead_micros: Option<i64>,
}

/// A gateway as an agent reaches it.
#[derive(Debug, Clone)]
pub struct Reached {
    /// The gateway's address.
    pub address: String,
    /// Over what.
    pub transport: &'static str,
    /// Time of the handshake in microseconds.
    pub answer: Result<u64, Trouble>,
}

/// A disk of an agent.
#[derive(Debug, Clone)]
pub struct DiskFile {
    /// Its name.
    pub disk: String,
    /// Image or device.
    pub path: String,
    /// Its size, or why it cannot be opened for reading and writing.
    pub size_bytes: Result<u64, String>,
}

/// An address that the daemon opens.
#[derive(Debug, Clone)]
pub struct Port {
    /// The key in the configuration.
    pub what: String,
    /// The address.
    pub address: String,
    /// How it stands.
    pub state: PortState,
}

/// How an address stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortState {
    /// It can be opened.
    Free,
    /// Somebody has it.
    InUse,
    /// The system refuses it.
    Refused(String),
}

/// The daemon, if it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Daemon {
    /// Nobody answers.
    Away,
    /// It has its state locked; more is not known.
    Runs,
    /// A gateway answered on the admin port.
    Answers {
        /// Its id; empty while it is not ready.
        gateway: String,
        /// Whether it takes agents.
        ready: bool,
        /// Why not.
        reason: String,
        /// What waits for somebody to help.
        trouble: String,
    },
}
