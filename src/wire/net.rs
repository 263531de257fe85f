//! How the wire reaches the network: where sockets come from, how names become addresses, whose time QUIC has.
//!
//! One QUIC runtime serves everywhere. Its timers and its clock are those of the tokio runtime that it runs in, so a
//! runtime with paused time pauses the connections too, with their retransmissions and idle timeouts.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use quinn::{AsyncTimer, AsyncUdpSocket, Runtime};
use tokio::net::{TcpListener, TcpStream};

/// Connections over TCP that the kernel finishes before they are accepted; it allows 4,096 by itself.
const TCP_BACKLOG: i32 = 1024;
/// Most that the kernel keeps unread of one connection over TCP: as much as a QUIC stream's window.
pub(super) const TCP_UNREAD_BYTES_MAX: usize = 1 << 20;
/// What the kernel keeps of a gateway's acks until they are acknowledged, per connection: they are small.
const TCP_UNSENT_BYTES_MAX: usize = 64 << 10;

/// Where sockets and addresses come from. The system's is [`Net::system`]; a simulation brings its own.
pub trait Network: Send + Sync + 'static {
    /// Opens a UDP socket at `listen`; port 0 lets it choose. Its kernel buffers are wanted to hold
    /// `socket_buffer_bytes` each.
    ///
    /// # Errors
    /// What the system answers.
    fn open(&self, listen: SocketAddr, socket_buffer_bytes: u32) -> io::Result<Arc<dyn AsyncUdpSocket>>;

    /// Connects to `remote` over TCP.
    fn connect_tcp(&self, remote: SocketAddr) -> Connecting<'_> {
        let _ = remote;
        Box::pin(std::future::ready(Err(io::Error::from(io::ErrorKind::Unsupported))))
    }

    /// Listens at `listen` for connections over TCP; port 0 lets it choose.
    ///
    /// # Errors
    /// What the system answers.
    fn listen_tcp(&self, listen: SocketAddr) -> io::Result<TcpListener> {
        let _ = listen;
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }

    /// The addresses of `addr` (`host:port`), in the order in which they are to be tried.
    fn resolve<'a>(&'a self, addr: &'a str) -> Resolving<'a>;
}

/// The answer to [`Network::resolve`], when it comes.
pub type Resolving<'a> = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'a>>;

/// The answer to [`Network::connect_tcp`], when it comes.
pub type Connecting<'a> = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send + 'a>>;

/// The network that endpoints are opened on. Cheap to clone.
#[derive(Clone)]
pub struct Net(Arc<dyn Network>);

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Net")
    }
}

impl Net {
    /// This machine's network.
    #[must_use]
    pub fn system() -> Self {
        Self::new(System)
    }

    /// Another network.
    pub fn new(network: impl Network) -> Self {
        Self(Arc::new(network))
    }

    pub(super) fn open(&self, listen: SocketAddr, socket_buffer_bytes: u32) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        self.0.open(listen, socket_buffer_bytes)
    }

    pub(super) async fn connect_tcp(&self, remote: SocketAddr) -> io::Result<TcpStream> {
        self.0.connect_tcp(remote).await
    }

    pub(super) fn listen_tcp(&self, listen: SocketAddr) -> io::Result<TcpListener> {
        self.0.listen_tcp(listen)
    }

    pub(super) async fn resolve(&self, addr: &str) -> io::Result<Vec<SocketAddr>> {
        self.0.resolve(addr).await
    }
}

struct System;

impl Network for System {
    fn open(&self, listen: SocketAddr, socket_buffer_bytes: u32) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioTime.wrap_udp_socket(open_socket(listen, socket_buffer_bytes)?)
    }

    fn connect_tcp(&self, remote: SocketAddr) -> Connecting<'_> {
        Box::pin(TcpStream::connect(remote))
    }

    fn listen_tcp(&self, listen: SocketAddr) -> io::Result<TcpListener> {
        listen_tcp(listen)
    }

    fn resolve<'a>(&'a self, addr: &'a str) -> Resolving<'a> {
        Box::pin(async move { Ok(tokio::net::lookup_host(addr).await?.collect()) })
    }
}

/// Opens a UDP socket with large buffers; smaller ones than wanted are used, and logged.
fn open_socket(listen: SocketAddr, socket_buffer_bytes: u32) -> io::Result<std::net::UdpSocket> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
    if listen.is_ipv6() && listen.ip().is_unspecified() {
        // `[::]` means every address, those of IPv4 too. A host that forbids it still serves IPv6.
        let _ = socket.set_only_v6(false);
    }
    let wanted_bytes = socket_buffer_bytes as usize;
    // The kernel cuts a size above its limit silently, so what counts is what is read back.
    let _ = socket.set_recv_buffer_size(wanted_bytes);
    let _ = socket.set_send_buffer_size(wanted_bytes);
    let (receive_bytes, send_bytes) = (socket.recv_buffer_size()?, socket.send_buffer_size()?);
    // Linux reports twice the usable size.
    if receive_bytes.min(send_bytes) < 2 * wanted_bytes {
        tracing::info!(
            wanted_bytes,
            receive_bytes = receive_bytes / 2,
            send_bytes = send_bytes / 2,
            "UDP socket buffers are smaller than wanted and may drop datagrams in bursts; raise net.core.rmem_max and \
             net.core.wmem_max"
        );
    }
    socket.set_nonblocking(true)?;
    socket.bind(&listen.into())?;
    Ok(socket.into())
}

/// Listens with a queue for a moment in which all agents come at once, and bounds what the kernel keeps for each: left to
/// itself it gives a quick connection many megabytes, which no budget counts.
fn listen_tcp(listen: SocketAddr) -> io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(listen), Type::STREAM, Some(Protocol::TCP))?;
    if listen.is_ipv6() && listen.ip().is_unspecified() {
        // As for UDP.
        let _ = socket.set_only_v6(false);
    }
    // A gateway that starts again takes its port back from the connections of its former life.
    socket.set_reuse_address(true)?;
    // Before listening, or the window could not grow beyond the kernel's first choice. It cuts a size above its limit
    // silently, and reports twice the usable size.
    let _ = socket.set_recv_buffer_size(TCP_UNREAD_BYTES_MAX);
    let _ = socket.set_send_buffer_size(TCP_UNSENT_BYTES_MAX);
    let receive_bytes = socket.recv_buffer_size()? / 2;
    if receive_bytes < TCP_UNREAD_BYTES_MAX {
        tracing::info!(
            wanted_bytes = TCP_UNREAD_BYTES_MAX,
            receive_bytes,
            "TCP receive buffers are smaller than wanted, so a disk is slow over TCP on long lines; raise \
             net.core.rmem_max"
        );
    }
    socket.set_nonblocking(true)?;
    socket.bind(&listen.into())?;
    socket.listen(TCP_BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// What a UDP socket of this machine gets.
#[derive(Debug, Clone, Copy)]
pub struct SocketFacts {
    /// Receive buffer that the kernel gave.
    pub receive_bytes: u64,
    /// Send buffer that the kernel gave.
    pub send_bytes: u64,
    /// Datagrams that one call can send.
    pub send_segments: usize,
    /// Datagrams that one call can receive.
    pub receive_segments: usize,
}

/// Opens a UDP socket on loopback as endpoints do, and tells what it got. Wants a tokio runtime around it.
///
/// # Errors
/// What the system answers.
pub fn look_at_udp(socket_buffer_bytes: u32) -> io::Result<SocketFacts> {
    let socket = std::net::UdpSocket::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let (receive, send) = {
        let socket = socket2::SockRef::from(&socket);
        let _ = socket.set_recv_buffer_size(socket_buffer_bytes as usize);
        let _ = socket.set_send_buffer_size(socket_buffer_bytes as usize);
        (socket.recv_buffer_size()?, socket.send_buffer_size()?)
    };
    socket.set_nonblocking(true)?;
    let socket = TokioTime.wrap_udp_socket(socket)?;
    Ok(SocketFacts {
        // Linux reports twice the usable size.
        receive_bytes: receive as u64 / 2,
        send_bytes: send as u64 / 2,
        send_segments: socket.max_transmit_segments(),
        receive_segments: socket.max_receive_segments(),
    })
}

/// QUIC on tokio, with tokio's clock: quinn's own runtime reads the machine's.
#[derive(Debug)]
pub(super) struct TokioTime;

impl Runtime for TokioTime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        Box::pin(tokio::time::sleep_until(at.into()))
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        tokio::spawn(future);
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        quinn::TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}
