//! The agent's control socket, `<state_dir>/agent.sock`: one JSON object per line in, one per line out.
//!
//! Requests: `{"op":"status"}`, `{"op":"heads"}` and `{"op":"point","disks":["d1"],"name":"…","kind":"crash","wait":true,"timeout_ms":60000}`.
//! The socket has mode 0600: whoever may open it is the user that runs the agent, or root. Requests are small and few;
//! connections and line length are bounded all the same.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::disk::{Disk, Plan};
use super::link::Link;
use super::points::{self, PointError, PointMade, PointRequest};
use super::tracker::Mode;
use crate::fault::{Classify, Fault, chain_text};
use crate::limits::{CHUNK_BYTES, DISKS_PER_AGENT_MAX, POINT_NAME_BYTES_MAX};
use crate::nbd::UNIX_PATH_BYTES_MAX;
use crate::signed::heads::DiskHead;
use crate::telemetry::supervisor;
use crate::types::{BarrierKind, DiskId};
use crate::wire::{Condition, Report};

/// Connections at the same time: each waiting `tidegate point` holds one.
const CONNECTIONS_MAX: usize = 64;
/// Longest request: a point of the most disks with the longest names.
const REQUEST_BYTES_MAX: u64 = 64 << 10;
/// Longest time that a point may wait.
pub const POINT_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);

/// The state of a disk of the configuration that could not be opened.
pub const REFUSED: &str = "refused";

/// The socket's path in a state directory.
#[must_use]
pub fn socket_path(state_dir: &Path) -> PathBuf {
    state_dir.join("agent.sock")
}

/// What can be asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Request {
    /// The state of every disk.
    Status,
    /// What it was told to be vaulted.
    Heads,
    /// A recovery point.
    Point {
        /// The disks, at one instant.
        disks: Vec<DiskId>,
        /// Its name.
        #[serde(default)]
        name: String,
        /// crash, fs or app.
        kind: BarrierKind,
        /// Wait until it is vaulted.
        wait: bool,
        /// How long in all.
        timeout_ms: u64,
    },
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// To [`Request::Status`].
    Status(AgentStatus),
    /// To [`Request::Heads`]: of each disk that is served the newest record known to be vaulted.
    Heads(Vec<DiskHead>),
    /// To [`Request::Point`]: every disk's point, vaulted if that was waited for.
    Points(Vec<PointAnswer>),
    /// It was not done.
    Failed(FailedAnswer),
}

/// A point as answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PointAnswer {
    /// The disk.
    pub disk: DiskId,
    /// Its id, as `tidegate restore --point` takes it.
    pub id: String,
    /// Label time, RFC 3339 with microseconds.
    pub time: String,
    /// Label time in microseconds since 1970.
    pub label_micros: u64,
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: BarrierKind,
    /// Group id, if several disks were taken together.
    pub group: Option<String>,
    /// Whether it is known to be in the vault.
    pub vaulted: bool,
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FailedAnswer {
    /// What is wrong and what to do.
    pub text: String,
    /// Whether it may be tried again.
    pub try_again: bool,
    /// Points that were made but are not vaulted yet.
    pub points: Vec<PointAnswer>,
}

/// The state of an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// The agent's id.
    pub agent: String,
    /// The gateway it is connected to.
    pub gateway: Option<String>,
    /// The address under which it reached that one.
    #[serde(default)]
    pub address: Option<String>,
    /// Why it is there.
    #[serde(default)]
    pub why: Option<String>,
    /// What carries the connection: `quic` or `tcp`.
    #[serde(default)]
    pub transport: Option<String>,
    /// Whether it is TCP because QUIC did not get through.
    #[serde(default)]
    pub fell_back: bool,
    /// The configured gateways, best for this agent first.
    #[serde(default)]
    pub ranked: Vec<String>,
    /// Why it is not connected.
    pub error: Option<String>,
    /// Every disk of the configuration.
    pub disks: Vec<DiskStatus>,
}

/// The state of one disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DiskStatus {
    /// The disk.
    pub disk: DiskId,
    /// In one word: `protected`, `copying`, `overflowed`, `waiting`, `fenced` or `refused`.
    pub state: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// The present epoch.
    pub epoch: Option<u64>,
    /// Newest record made.
    pub seq: u64,
    /// Newest record known to be journaled.
    pub journaled: u64,
    /// Newest record known to be vaulted.
    pub vaulted: u64,
    /// Memory held by records.
    pub queue_bytes: u64,
    /// Bytes still to be copied.
    pub dirty_bytes: u64,
    /// Bytes sent and not vaulted, in whole chunks.
    pub unvaulted_bytes: u64,
    /// How often the queue was full.
    pub overflows: u64,
    /// Age of the oldest write that no recovery point in the vault has; 0 if there is none.
    pub rpo_seconds: f64,
    /// The gateway that carries it.
    pub gateway: Option<String>,
    /// What went wrong last.
    pub last_error: Option<String>,
}

/// What the socket answers about.
pub struct Control {
    /// The agent's id.
    pub agent: String,
    /// Disks that are served, sorted by id.
    pub disks: Vec<Arc<Disk>>,
    /// Disks of the configuration that could not be opened, and why.
    pub refused: BTreeMap<DiskId, String>,
    /// The connection.
    pub link: Link,
}

/// The socket cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("control socket {} cannot be made", path.display())]
pub struct SocketError {
    /// Its path.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

impl Classify for SocketError {
    fn fault(&self) -> Fault {
        Fault::Fatal
    }
}

/// Binds the socket. The state directory's lock is held, so a socket that is there is a dead agent's.
///
/// # Errors
/// [`SocketError`] names the path.
pub fn bind(state_dir: &Path) -> Result<UnixListener, SocketError> {
    let path = socket_path(state_dir);
    let error = |source| SocketError { path: path.clone(), source };
    if path.as_os_str().len() > UNIX_PATH_BYTES_MAX {
        let text = format!("the path is longer than {UNIX_PATH_BYTES_MAX} bytes: choose a shorter state_dir");
        return Err(error(io::Error::new(io::ErrorKind::InvalidInput, text)));
    }
    match std::fs::remove_file(&path) {
        Err(failed) if failed.kind() != io::ErrorKind::NotFound => return Err(error(failed)),
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(error)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(error)?;
    Ok(listener)
}

/// Answers requests. Ends only by being dropped.
pub async fn serve(listener: UnixListener, control: Arc<Control>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let control = Arc::clone(&control);
                tokio::spawn(async move {
                    // A peer that went away has no use for an error.
                    let _ = answer_all(stream, &control).await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "control socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer_all(stream: UnixStream, control: &Control) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let mut line = String::new();
        if (&mut read).take(REQUEST_BYTES_MAX).read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let response = match serde_json::from_str(&line) {
            Ok(request) => answer(control, request).await,
            Err(error) => failed(format!("request is not understood: {error}"), false),
        };
        let mut text = serde_json::to_vec(&response)?;
        text.push(b'\n');
        write.write_all(&text).await?;
    }
}

fn failed(text: String, try_again: bool) -> Response {
    Response::Failed(FailedAnswer { text, try_again, points: Vec::new() })
}

/// Answers one request.
pub async fn answer(control: &Control, request: Request) -> Response {
    match request {
        Request::Status => Response::Status(control.status()),
        Request::Heads => Response::Heads(control.heads()),
        Request::Point { mut disks, name, kind, wait, timeout_ms } => {
            if matches!(kind, BarrierKind::SyncBegin | BarrierKind::SyncEnd) {
                return failed("kind must be crash, fs or app".into(), false);
            }
            if name.len() > POINT_NAME_BYTES_MAX || name.chars().any(char::is_control) {
                return failed(
                    format!("a name has at most {POINT_NAME_BYTES_MAX} bytes and no control characters"),
                    false,
                );
            }
            disks.sort();
            disks.dedup();
            if disks.is_empty() || disks.len() > DISKS_PER_AGENT_MAX {
                return failed("name at least one disk".into(), false);
            }
            let mut chosen = Vec::with_capacity(disks.len());
            for id in &disks {
                match control.find(id) {
                    Ok(disk) => chosen.push(disk),
                    Err(text) => return failed(text, false),
                }
            }
            let timeout = Duration::from_millis(timeout_ms).min(POINT_TIMEOUT_MAX);
            let request = PointRequest { kind, name, wait, timeout };
            answer_point(&chosen, &request).await
        }
    }
}

async fn answer_point(disks: &[Arc<Disk>], request: &PointRequest) -> Response {
    let shown = |points: &[PointMade]| points.iter().map(|point| shown_point(point, request)).collect::<Vec<_>>();
    match points::make(disks, request).await {
        Ok(points) => Response::Points(shown(&points)),
        Err(error) => {
            let points = if let PointError::NotVaulted { points } = &error { shown(points) } else { Vec::new() };
            let try_again = error.fault() == Fault::Retry;
            Response::Failed(FailedAnswer { text: chain_text(&error), try_again, points })
        }
    }
}

fn shown_point(point: &PointMade, request: &PointRequest) -> PointAnswer {
    PointAnswer {
        disk: point.disk.clone(),
        id: point.id().to_string(),
        time: point.at.label.to_string(),
        label_micros: point.at.label.0,
        name: request.name.clone(),
        kind: request.kind,
        group: (point.group != crate::types::Id128::NONE).then(|| point.group.to_string()),
        vaulted: point.vaulted,
    }
}

impl Control {
    fn heads(&self) -> Vec<DiskHead> {
        let told = |disk: &Arc<Disk>| Some(DiskHead::new(disk.id.clone(), disk.told()?));
        self.disks.iter().filter_map(told).collect()
    }

    fn find(&self, id: &DiskId) -> Result<Arc<Disk>, String> {
        if let Some(disk) = self.disks.iter().find(|disk| disk.id == *id) {
            return Ok(Arc::clone(disk));
        }
        if let Some(why) = self.refused.get(id) {
            return Err(format!("disk {id} is not protected at present: {why}"));
        }
        let known: Vec<&str> = self.disks.iter().map(|disk| disk.id.as_str()).collect();
        Err(format!("this agent has no disk {id}; it has {}", known.join(", ")))
    }

    /// As the service manager sees it: ready as soon as guests find their disks, whether there is a gateway or not.
    pub(super) fn daemon_state(&self, stopping: bool) -> supervisor::DaemonState {
        let link = self.link.borrow();
        let mut words = match (stopping, &link.client, &link.error) {
            (true, ..) => "draining".to_owned(),
            (false, Some(client), _) => format!("connected to gateway {}", client.gateway().gateway),
            (false, None, Some(error)) => format!("not connected: {error}"),
            (false, None, None) => "not connected".to_owned(),
        };
        if !self.refused.is_empty() {
            let refused: Vec<&str> = self.refused.keys().map(DiskId::as_str).collect();
            words = format!("{words}; NOT protected: {}", refused.join(", "));
        }
        supervisor::DaemonState { ready: true, stopping, alive: true, words }
    }

    /// The state of everything.
    #[must_use]
    pub fn status(&self) -> AgentStatus {
        let link = self.link.borrow().clone();
        let mut disks: Vec<_> = self.disks.iter().map(|disk| look(disk).1).collect();
        disks.extend(self.refused.iter().map(|(disk, why)| DiskStatus {
            disk: disk.clone(),
            state: REFUSED.into(),
            size_bytes: 0,
            epoch: None,
            seq: 0,
            journaled: 0,
            vaulted: 0,
            queue_bytes: 0,
            dirty_bytes: 0,
            unvaulted_bytes: 0,
            overflows: 0,
            rpo_seconds: 0.0,
            gateway: None,
            last_error: Some(why.clone()),
        }));
        let gateway = link.client.map(|client| client.gateway().gateway.clone());
        let (address, why) = link.at.map(|(address, why)| (address, why.as_str().to_owned())).unzip();
        AgentStatus {
            agent: self.agent.clone(),
            gateway,
            address,
            why,
            transport: link.transport.map(|(transport, _)| transport.to_string()),
            fell_back: link.transport.is_some_and(|(_, fell_back)| fell_back),
            ranked: link.ranked,
            error: link.error,
            disks,
        }
    }
}

fn look(disk: &Disk) -> (Condition, DiskStatus) {
    let (plan, condition, remembered) = (disk.plan(), disk.condition(), disk.state());
    let now = disk.shared.clock.monotonic();
    let tracker = disk.tracker();
    let does = match (plan, tracker.mode()) {
        (Plan::Fenced(_), _) => Condition::Fenced,
        (_, Mode::Overflowed) => Condition::Overflowed,
        (_, Mode::Detached) => Condition::Waiting,
        (_, Mode::Recording) if condition.gateway.is_none() => Condition::Waiting,
        (_, Mode::Recording) if tracker.in_span() => Condition::Copying,
        (_, Mode::Recording) => Condition::Protected,
    };
    let attached = tracker.mode() != Mode::Detached;
    let status = DiskStatus {
        disk: disk.id.clone(),
        state: does.as_str().into(),
        size_bytes: disk.source.size_bytes(),
        epoch: if attached { Some(tracker.queue().epoch().0) } else { remembered.epoch.map(|epoch| epoch.0) },
        seq: if attached { tracker.queue().last_seq().0 } else { remembered.floor_seq.0 },
        journaled: tracker.journaled_seq().0,
        vaulted: tracker.vaulted_seq().0,
        queue_bytes: tracker.queue().bytes(),
        dirty_bytes: tracker.dirty().must_send().len() * CHUNK_BYTES,
        unvaulted_bytes: tracker.dirty().unvaulted_bytes(),
        overflows: tracker.overflows(),
        rpo_seconds: tracker.oldest_exposed().map_or(0.0, |since| now.saturating_sub(since).as_secs_f64()),
        gateway: condition.gateway,
        last_error: condition.last_error,
    };
    (does, status)
}

/// How a disk stands, for the gateway.
pub(super) fn report(disk: &Disk) -> Report {
    let (condition, status) = look(disk);
    Report {
        disk: status.disk,
        condition,
        rpo_micros: (status.rpo_seconds * 1e6) as u64,
        dirty_bytes: status.dirty_bytes,
        unvaulted_bytes: status.unvaulted_bytes,
    }
}
