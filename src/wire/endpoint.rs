//! The endpoints of both sides and their tuning.
//!
//! Flow control of a connection must let through all that its streams may send, or a disk whose records wait for the
//! journal would take the connection's window away from the others. What really bounds a stream is the credit that the
//! gateway grants.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::RwLock;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller, VarInt};
use tokio::net::TcpListener;

use super::apart::Apart;
use super::identity::GatewayIdentity;
use super::net::{Net, TokioTime};
use super::server::admission::STRANGER_WINDOW_BYTES;
use super::tls::{Explanation, Material, TlsError, TlsFiles};
use super::transport::Transport;
use super::transport::congestion::CongestionConfig;
use crate::fault::{Classify, Fault};
use crate::flow::Clock;
use crate::types::Micros;
use crate::{keys, limits};

/// Default of [`Tuning::idle_timeout`]: longer than a route change, shorter than an operator's patience.
const IDLE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
/// The agent sends something so many times within the idle timeout, so that single losses do not matter.
pub(super) const KEEP_ALIVES_PER_IDLE_TIMEOUT: u32 = 6;
/// Bytes that an agent may have sent without acknowledgement by the network: 16 MiB carry 4 Gbit/s over 30 ms.
const AGENT_SEND_WINDOW_BYTES: u64 = 16 << 20;
/// The same of a gateway, whose acks are small: a peer that acknowledges nothing must not collect megabytes of them.
const GATEWAY_SEND_WINDOW_BYTES: u64 = 256 << 10;
/// Default of [`Tuning::mtu_max_bytes`]: what jumbo frames carry, which cost both sides half as much per byte. Where the path
/// carries less, discovery settles there within some dozens of round trips.
pub const MTU_BYTES_DEFAULT: u16 = 8952;
/// Most bytes that the kernel takes in one transmit; more segments than fit it make it fail for all of them.
const TRANSMIT_BYTES_MAX: usize = 65_000;
/// Most bytes that the kernel hands over in one buffer, of however many datagrams.
const RECEIVE_BYTES_MAX: usize = 1 << 16;
/// Handshakes that may wait to be looked at, and the bytes that each and all of them may hold meanwhile.
const INCOMING_MAX: usize = 1024;
const INCOMING_BYTES_EACH: u64 = 16 << 10;
const INCOMING_BYTES_ALL: u64 = 4 << 20;

/// Tuning of an endpoint. Windows and datagrams are QUIC's; TCP's are the kernel's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tuning {
    /// What a client connects over; a gateway listens on what it was told to.
    pub transport: Transport,
    /// After so long without an answer the other transport is tried too; with `None` never.
    pub other_after: Option<Duration>,
    /// Bytes that one stream may have on its way: the rate of one disk is at most this per round trip.
    pub stream_window_bytes: u32,
    /// Bytes that one connection may have on its way to an agent. A gateway's is what it may grant: see
    /// [`super::server::ServerLimits`].
    pub connection_window_bytes: u32,
    /// Largest UDP payload: at a gateway what it takes, at an agent what path discovery may try. Both sides' limits count.
    pub mtu_max_bytes: u16,
    /// Wanted size of the socket's kernel buffers.
    pub socket_buffer_bytes: u32,
    /// A connection on which nothing came for so long is lost; the smaller of both sides' counts.
    pub idle_timeout: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        let stream_window_bytes = 4 << 20;
        Self {
            transport: Transport::Quic,
            other_after: None,
            stream_window_bytes,
            connection_window_bytes: stream_window_bytes * (limits::DISKS_PER_AGENT_MAX as u32 + 1),
            mtu_max_bytes: MTU_BYTES_DEFAULT,
            socket_buffer_bytes: 8 << 20,
            idle_timeout: IDLE_TIMEOUT_DEFAULT,
        }
    }
}

/// An endpoint that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The TLS files are not usable.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address cannot be listened on.
    #[error("UDP {listen} cannot be opened")]
    Bind {
        /// The address.
        listen: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The address cannot be listened on.
    #[error("TCP {listen} cannot be listened on; listen_tcp takes another address, or \"off\"")]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// TLS offers nothing that QUIC can use.
    #[error("QUIC cannot use this TLS configuration")]
    Quic(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
}

impl Classify for EndpointError {
    fn fault(&self) -> Fault {
        match self {
            Self::Tls(error) => error.fault(),
            Self::Bind { .. } | Self::Listen { .. } | Self::Quic(_) => Fault::Fatal,
        }
    }
}

/// What QUIC is told on both sides, but that a gateway looks for no larger datagrams: also for whoever measures it without a gateway.
#[must_use]
pub fn transport(tuning: &Tuning, streams_max: u32) -> quinn::TransportConfig {
    let mut mtu = quinn::MtuDiscoveryConfig::default();
    mtu.upper_bound(tuning.mtu_max_bytes.max(1200));
    let mut config = quinn::TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(streams_max))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(tuning.stream_window_bytes))
        .receive_window(VarInt::from_u32(tuning.connection_window_bytes))
        .send_window(AGENT_SEND_WINDOW_BYTES)
        .max_idle_timeout(Some(VarInt::from_u32(tuning.idle_timeout.as_millis() as u32).into()))
        .mtu_discovery_config(Some(mtu))
        .congestion_controller_factory(Arc::new(CongestionConfig::default()));
    config
}

/// Opens an endpoint with the sockets and limits of both sides; a server's key makes its connection ids and resets. Also
/// for whoever measures QUIC without a gateway.
///
/// # Errors
/// [`EndpointError::Bind`].
pub fn open_endpoint(
    listen: SocketAddr,
    tuning: &Tuning,
    server: Option<(quinn::ServerConfig, ring::hmac::Key)>,
    net: &Net,
) -> Result<quinn::Endpoint, EndpointError> {
    let failed = |source| EndpointError::Bind { listen, source };
    let socket = net.open(listen, tuning.socket_buffer_bytes).map_err(failed)?;
    // Peers learn from this how large a datagram may be; never below what every QUIC endpoint must take.
    let payload_max = tuning.mtu_max_bytes.clamp(1200, 65_000);
    // A gateway sends acks, one datagram at a time, and QUIC keeps room for as many as there may be in each connection.
    let segments_max = match server {
        Some(_) => 1,
        None => (TRANSMIT_BYTES_MAX / usize::from(payload_max)).max(1),
    };
    let receive_max = RECEIVE_BYTES_MAX.div_ceil(usize::from(payload_max));
    let socket = Arc::new(LimitedSocket { inner: socket, segments_max, receive_max });
    let (server, mut config) = match server {
        Some((server, reset_key)) => {
            // Connection ids too must look the same in every life: packets with unknown ids are dropped without a reset.
            let mut ids_key = [0; 8];
            ids_key.copy_from_slice(&ring::hmac::sign(&reset_key, b"connection ids").as_ref()[..8]);
            let ids_key = u64::from_le_bytes(ids_key);
            let mut config = quinn::EndpointConfig::new(Arc::new(reset_key));
            config.cid_generator(move || Box::new(quinn_proto::HashedConnectionIdGenerator::from_key(ids_key)));
            (Some(server), config)
        }
        None => (None, quinn::EndpointConfig::default()),
    };
    // Chance has one source here, which a simulation seeds; QUIC would use another one.
    config.rng_seed(Some(keys::random().map_err(io::Error::other).map_err(failed)?));
    if config.max_udp_payload_size(payload_max).is_err() {
        return Err(failed(io::Error::from(io::ErrorKind::InvalidInput)));
    }
    quinn::Endpoint::new_with_abstract_socket(config, server, socket, Arc::new(TokioTime)).map_err(failed)
}

/// The certificates that a gateway shows and trusts. They can be replaced while it serves: whoever comes from then on meets
/// the new ones, and who is there stays. A clone is another handle to the same.
///
/// The key of stateless resets stays that of the start, because connections that live know its tokens.
#[derive(Clone)]
pub struct Credentials {
    current: Arc<RwLock<Arc<Material>>>,
    clock: Arc<dyn Clock>,
}

/// Certificates that were read and found usable.
pub struct CheckedFiles(Material);

impl Credentials {
    fn new(material: Material, clock: &Arc<dyn Clock>) -> Self {
        Self { current: Arc::new(RwLock::new(Arc::new(material))), clock: Arc::clone(clock) }
    }

    /// Those that count now.
    pub(super) fn current(&self) -> Arc<Material> {
        Arc::clone(&self.current.read())
    }

    /// Reads files that are to take the place of the present ones, and changes nothing yet. Blocks.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn check(&self, files: &TlsFiles) -> Result<CheckedFiles, Vec<EndpointError>> {
        let material = Material::load_all(files, &self.clock)
            .map_err(|mistakes| mistakes.into_iter().map(EndpointError::from).collect::<Vec<_>>())?;
        let fits = material.check_successor(&self.current(), self.clock.wall()).map_err(EndpointError::from);
        let usable = material.server_config(&Explanation::default()).map_err(EndpointError::from);
        let mistakes: Vec<_> = fits.err().into_iter().chain(usable.err()).collect();
        if mistakes.is_empty() { Ok(CheckedFiles(material)) } else { Err(mistakes) }
    }

    /// Lets them count from now on.
    pub fn replace(&self, files: CheckedFiles) {
        *self.current.write() = Arc::new(files.0);
    }

    /// Names and addresses by which others may connect, by the certificate that counts now.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.current().names().to_vec()
    }

    /// When the certificate that counts now ends.
    #[must_use]
    pub fn ends(&self) -> Micros {
        self.current().ends()
    }
}

/// A gateway's endpoint, listening.
pub struct Listener {
    endpoint: quinn::Endpoint,
    credentials: Credentials,
    transport: Arc<quinn::TransportConfig>,
    local: SocketAddr,
    identity: GatewayIdentity,
    tcp: Option<TcpListener>,
    idle_timeout: Duration,
    apart: Apart,
}

impl Listener {
    /// Loads the certificate files and listens. To be called inside the runtime that will serve.
    ///
    /// # Errors
    /// [`EndpointError`] names the file or the address.
    pub fn bind(
        listen: SocketAddr,
        tls: &TlsFiles,
        tuning: &Tuning,
        clock: &Arc<dyn Clock>,
        net: &Net,
    ) -> Result<Self, EndpointError> {
        let material = Material::load(tls, clock)?;
        let identity = material.gateway()?;
        // For a stranger: the control stream and a hello. Who said hello gets more, see `server::admission`.
        let mut transport = transport(tuning, 1);
        transport.receive_window(VarInt::from_u32(STRANGER_WINDOW_BYTES)).send_window(GATEWAY_SEND_WINDOW_BYTES);
        // Nearly all that a gateway sends fits into the smallest datagrams, and each connection keeps room for one of its largest: 9 KiB of
        // an idle agent's memory. How large a datagram may be that comes is said by the endpoint.
        transport.mtu_discovery_config(None);
        let transport = Arc::new(transport);
        let config = server_config(&material, &transport, &Explanation::default())?;
        let apart = Apart::default();
        let net = apart.network(net);
        let endpoint = open_endpoint(listen, tuning, Some((config, material.reset_key())), &net)?;
        let local = endpoint.local_addr().map_err(|source| EndpointError::Bind { listen, source })?;
        let (idle_timeout, credentials) = (tuning.idle_timeout, Credentials::new(material, clock));
        Ok(Self { endpoint, credentials, transport, local, identity, tcp: None, idle_timeout, apart })
    }

    /// Listens at `listen` for agents that come over TCP, too.
    ///
    /// # Errors
    /// [`EndpointError::Listen`].
    pub fn with_tcp(mut self, listen: SocketAddr, net: &Net) -> Result<Self, EndpointError> {
        self.tcp = Some(net.listen_tcp(listen).map_err(|source| EndpointError::Listen { listen, source })?);
        Ok(self)
    }

    /// The same at the address and port that QUIC listens at.
    ///
    /// # Errors
    /// [`EndpointError::Listen`].
    pub fn with_tcp_at_same(self, net: &Net) -> Result<Self, EndpointError> {
        let local = self.local;
        self.with_tcp(local, net)
    }

    /// The address that agents reach over TCP, if there is one.
    #[must_use]
    pub fn tcp_addr(&self) -> Option<SocketAddr> {
        self.tcp.as_ref()?.local_addr().ok()
    }

    /// Where agents come in over TCP. To be taken once.
    pub(super) const fn take_tcp(&mut self) -> Option<TcpListener> {
        self.tcp.take()
    }

    /// Its certificates, which can be replaced.
    #[must_use]
    pub const fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// The switch that keeps received datagrams apart.
    pub(crate) fn apart(&self) -> Apart {
        self.apart.clone()
    }

    /// Silence after which a connection counts as lost.
    pub(super) const fn idle_timeout(&self) -> Duration {
        self.idle_timeout
    }

    /// The address that agents reach, with the port that the system chose if 0 was asked for.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Who the gateway's certificate says it is.
    #[must_use]
    pub const fn identity(&self) -> &GatewayIdentity {
        &self.identity
    }

    pub(crate) const fn endpoint(&self) -> &quinn::Endpoint {
        &self.endpoint
    }

    /// The certificates for one incoming connection: the same until its handshake is over.
    pub(super) fn material(&self) -> Arc<Material> {
        self.credentials.current()
    }

    /// The configuration for one incoming connection, whose refusal is explained in `explanation`.
    pub(super) fn config_for_one(
        &self,
        material: &Material,
        explanation: &Explanation,
    ) -> Result<Arc<quinn::ServerConfig>, EndpointError> {
        server_config(material, &self.transport, explanation).map(Arc::new)
    }
}

fn server_config(
    material: &Material,
    transport: &Arc<quinn::TransportConfig>,
    explanation: &Explanation,
) -> Result<quinn::ServerConfig, EndpointError> {
    let crypto = QuicServerConfig::try_from(material.server_config(explanation)?)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config
        .transport_config(Arc::clone(transport))
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BYTES_EACH)
        .incoming_buffer_size_total(INCOMING_BYTES_ALL);
    Ok(config)
}

/// An endpoint for one outgoing connection to `remote`, and its configuration.
pub(super) fn client_endpoint(
    remote: SocketAddr,
    material: &Material,
    tuning: &Tuning,
    explanation: &Explanation,
    net: &Net,
) -> Result<(quinn::Endpoint, quinn::ClientConfig), EndpointError> {
    let any: SocketAddr = if remote.is_ipv6() {
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
    } else {
        (std::net::Ipv4Addr::UNSPECIFIED, 0).into()
    };
    let endpoint = open_endpoint(any, tuning, None, net)?;
    let crypto = QuicClientConfig::try_from(material.client_config(explanation)?)?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    // A gateway opens no streams.
    let mut transport = transport(tuning, 0);
    transport.keep_alive_interval(Some(tuning.idle_timeout / KEEP_ALIVES_PER_IDLE_TIMEOUT));
    config.transport_config(Arc::new(transport));
    Ok((endpoint, config))
}

/// A UDP socket that never takes more segments at once than the kernel can send, and asks for no more room than it can fill.
///
/// QUIC hands over up to ten datagrams per system call; with jumbo frames they exceed 64 KiB and all are lost. It makes room
/// for 64 datagrams of the largest size in each of 32 buffers, which are 18 MiB then.
#[derive(Debug)]
struct LimitedSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    segments_max: usize,
    receive_max: usize,
}

impl AsyncUdpSocket for LimitedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments().min(self.segments_max)
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments().min(self.receive_max)
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}
