//! Listening, the server's bounds, and its drain.

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::connection::{self, ConnectionError, Shared};
use super::tls::ServerTls;
use super::workers::Workers;
use super::{Export, Listen, proto};
use crate::fault::{Classify, Fault, chain_text};
use crate::flow::{Budget, Drain};
use crate::telemetry::names;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;
/// Pause after a failed accept, for example for want of file descriptors: trying at once would only burn CPU.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bounds of a [`Server`].
#[derive(Clone, Debug)]
pub struct ServerLimits {
    /// Connections at the same time; more are closed at once.
    pub connections_max: usize,
    /// Requests of one connection that are worked on at the same time.
    pub requests_per_connection_max: usize,
    /// Payload bytes of requests and replies in memory, over all connections. Divided evenly among the exports, so that
    /// one that hangs leaves the others theirs; each gets at least one request of the largest size.
    pub payload_bytes_max: u64,
    /// Payload bytes in memory of one connection.
    pub payload_bytes_per_connection_max: u64,
    /// Worker threads of each export.
    pub workers_per_export: usize,
    /// Time that a client has for the whole handshake.
    pub handshake_timeout: Duration,
    /// Time without a byte after which a client that owes the rest of a request is dropped, and time that a client
    /// which has ended may take for its last replies.
    pub stall_timeout: Duration,
    /// Time that a drain waits for requests in flight.
    pub drain_timeout: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            connections_max: 64,
            requests_per_connection_max: 64,
            payload_bytes_max: 128 << 20,
            payload_bytes_per_connection_max: 64 << 20,
            workers_per_export: 4,
            handshake_timeout: Duration::from_secs(15),
            stall_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(10),
        }
    }
}

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// A listening server. It serves once [`Server::run`] is polled; clients that connect earlier wait.
pub struct Server {
    listen: Listen,
    listener: Listener,
    /// Removed when the server is dropped.
    _socket_file: Option<SocketFile>,
    exports: Vec<Arc<dyn Export>>,
    limits: ServerLimits,
    tls: Option<ServerTls>,
}

impl Server {
    /// Binds `listen`. Needs no runtime. A unix socket is created with mode 0600; a stale one is removed if nobody listens.
    ///
    /// # Errors
    /// If the address is in use or not usable; the text names it.
    pub fn bind(listen: Listen, exports: Vec<Arc<dyn Export>>, limits: ServerLimits) -> io::Result<Self> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("cannot listen on {listen}: {error}"));
        let (listener, socket_file, listen) = match &listen {
            Listen::Unix(path) => {
                let (listener, file) = bind_unix(path).map_err(named)?;
                (Listener::Unix(listener), Some(file), listen)
            }
            Listen::Tcp(address) => {
                let listener = TcpListener::bind(address).map_err(named)?;
                listener.set_nonblocking(true).map_err(named)?;
                let bound = listener.local_addr().map_err(named)?;
                (Listener::Tcp(listener), None, Listen::Tcp(bound))
            }
        };
        Ok(Self { listen, listener, _socket_file: socket_file, exports, limits, tls: None })
    }

    /// The same, for clients that encrypt and show a certificate, and no others.
    #[must_use]
    pub fn with_tls(mut self, tls: ServerTls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Where it listens; with TCP port 0 the port that was given.
    #[must_use]
    pub fn listen(&self) -> &Listen {
        &self.listen
    }

    /// Serves until `drain`, answers what was taken, and returns. The exports are no longer called afterwards, unless one
    /// of their calls hangs beyond [`ServerLimits::drain_timeout`]: that is logged, and the call's thread left behind.
    ///
    /// # Errors
    /// If the threads cannot be started or the listener fails.
    pub async fn run(self, drain: Drain) -> io::Result<()> {
        let count = self.limits.workers_per_export.max(1);
        let workers =
            (0..self.exports.len()).map(|n| Workers::start(n * count, count)).collect::<io::Result<Vec<_>>>()?;
        let largest = u64::from(proto::PAYLOAD_BYTES_MAX);
        let budget_bytes = (self.limits.payload_bytes_max / self.exports.len().max(1) as u64).max(largest);
        let shared = Arc::new(Shared {
            exports: self.exports,
            queues: workers.iter().map(Workers::queue).collect(),
            budgets: workers.iter().map(|_| Budget::new(budget_bytes)).collect(),
            limits: self.limits,
            tls: self.tls,
        });
        tracing::info!(listen = %self.listen, exports = shared.exports.len(), workers = count, "nbd server listens");
        let mut connections = JoinSet::new();
        match self.listener {
            Listener::Unix(listener) => {
                let listener = tokio::net::UnixListener::from_std(listener)?;
                let accept = async || Ok(listener.accept().await?.0.into_split());
                accept_until(drain, accept, &shared, &mut connections).await;
            }
            Listener::Tcp(listener) => {
                let listener = tokio::net::TcpListener::from_std(listener)?;
                let accept = async || {
                    let stream = listener.accept().await?.0;
                    // Replies are gathered already; waiting for more would only delay them.
                    stream.set_nodelay(true)?;
                    // A client whose machine died would keep its place for ever.
                    socket2::SockRef::from(&stream).set_keepalive(true)?;
                    Ok(stream.into_split())
                };
                accept_until(drain, accept, &shared, &mut connections).await;
            }
        }
        finish(&shared, connections, workers).await;
        tracing::info!(listen = %self.listen, "nbd server has stopped");
        Ok(())
    }
}

/// Accepts and serves until the drain.
async fn accept_until<R, W>(
    mut drain: Drain,
    accept: impl AsyncFn() -> io::Result<(R, W)>,
    shared: &Arc<Shared>,
    connections: &mut JoinSet<()>,
) where
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    let places = Arc::new(Semaphore::new(shared.limits.connections_max));
    let for_connections = drain.clone();
    let mut draining = std::pin::pin!(drain.wait());
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut draining => return,
            // Ended connections are collected here, or the set would grow.
            Some(_) = connections.join_next() => continue,
            accepted = accept() => accepted,
        };
        match (accepted, Arc::clone(&places).try_acquire_owned()) {
            (Ok((read, write)), Ok(place)) => {
                connections.spawn(one_client(Arc::clone(shared), read, write, for_connections.clone(), place));
            }
            (Ok(_), Err(_)) => {
                tracing::warn!(limit = shared.limits.connections_max, "too many connections: one closed")
            }
            (Err(error), _) => {
                tracing::warn!(%error, "accepting a connection failed");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn one_client<R, W>(shared: Arc<Shared>, read: R, write: W, drain: Drain, place: OwnedSemaphorePermit)
where
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    metrics::gauge!(names::NBD_CONNECTIONS).increment(1);
    let ended = connection::serve(&shared, read, write, drain).await;
    metrics::gauge!(names::NBD_CONNECTIONS).decrement(1);
    drop(place);
    match ended {
        Ok(()) => tracing::debug!("client left"),
        // A client that is killed is ordinary; one that speaks another protocol should be known.
        Err(error @ ConnectionError::Io(_)) => tracing::debug!(error = chain_text(&error), "client is gone"),
        Err(error) if error.fault() == Fault::Reject => tracing::warn!(error = chain_text(&error), "client dropped"),
        Err(error) => tracing::warn!(error = chain_text(&error), "connection failed"),
    }
}

/// Waits for connections, then for worker threads, each no longer than the drain may take.
async fn finish(shared: &Shared, mut connections: JoinSet<()>, workers: Vec<Workers>) {
    let limit = shared.limits.drain_timeout;
    let all = async { while connections.join_next().await.is_some() {} };
    if timeout(limit, all).await.is_err() {
        tracing::warn!("clients did not take their last replies in time: their connections are cut");
        connections.shutdown().await;
    }
    let all = async {
        for threads in workers {
            threads.finish().await;
        }
    };
    if timeout(limit, all).await.is_err() {
        tracing::error!("a request hangs in its export: its thread is left behind");
    }
}

/// The file of a unix socket that we bound; removed on drop if it still is ours.
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody may have taken the path over meanwhile; theirs is not ours to remove.
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == (self.device, self.inode));
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "socket cannot be removed");
        }
    }
}

fn bind_unix(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    let address = socket2::SockAddr::unix(path)?;
    let new = || socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None);
    let mut socket = new()?;
    match socket.bind(&address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            remove_stale(path, &address)?;
            socket = new()?;
            socket.bind(&address)?;
        }
        bound => bound?,
    }
    let metadata = std::fs::symlink_metadata(path)?;
    let file = SocketFile { path: path.to_owned(), device: metadata.dev(), inode: metadata.ino() };
    // Before listening: until then nobody can connect, whatever the umask was.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok((UnixListener::from(OwnedFd::from(socket)), file))
}

/// Removes a socket that a killed server left behind, and nothing else.
fn remove_stale(path: &Path, address: &socket2::SockAddr) -> io::Result<()> {
    if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
        let text = "the path is taken by something that is no socket";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
    }
    let probe = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    // A server with a full backlog must not make us wait; it listens, which is all we ask.
    probe.set_nonblocking(true)?;
    match probe.connect(address) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        _ => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens on it")),
    }
}
