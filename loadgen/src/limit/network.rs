//! Receiving encrypted bytes, and nothing else done with them. The sender is a thread of its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tidegate::wire::endpoint::{open_endpoint, transport};
use tidegate::wire::{Net, Tuning};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{Plan, Watch, Work, records};

pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The name in every certificate here.
pub(crate) const NAME: &str = "localhost";
const PROTOCOL: &[u8] = b"limit/1";
/// Chunks taken from QUIC at once, as the gateway takes them.
pub(crate) const CHUNKS_MAX: usize = 32;
/// Bytes that TLS over TCP is read by.
pub(crate) const READ_BYTES: usize = 256 << 10;
/// The gateway's own: see its configuration of a stream.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// What the gateway allows a connection with its default memory.
const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;

/// Both sides of a certificate that nobody keeps.
pub(crate) fn certificates() -> Result<(rustls::ServerConfig, rustls::ClientConfig), Failure> {
    tidegate::vault::url::install_crypto();
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
    let certificate: CertificateDer<'static> = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())?;
    let versions = &[&rustls::version::TLS13];
    let mut server = rustls::ServerConfig::builder_with_protocol_versions(versions)
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate)?;
    let mut client = rustls::ClientConfig::builder_with_protocol_versions(versions)
        .with_root_certificates(roots)
        .with_no_client_auth();
    server.alpn_protocols = vec![PROTOCOL.to_vec()];
    client.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok((server, client))
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// A server's QUIC with the settings of a gateway.
pub(crate) fn server_config(tls: rustls::ServerConfig, mtu_max_bytes: u16) -> Result<quinn::ServerConfig, Failure> {
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config.transport_config(tuned(mtu_max_bytes));
    Ok(config)
}

/// A client's QUIC with the settings of an agent.
pub(crate) fn client_config(tls: rustls::ClientConfig, mtu_max_bytes: u16) -> Result<quinn::ClientConfig, Failure> {
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(tuned(mtu_max_bytes));
    Ok(config)
}

/// As the wire opens them: large buffers, and no more datagrams at once than the kernel takes.
pub(crate) fn endpoint(mtu_max_bytes: u16, server: Option<quinn::ServerConfig>) -> Result<quinn::Endpoint, Failure> {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let key = |server| (server, ring::hmac::Key::new(ring::hmac::HMAC_SHA256, PROTOCOL));
    Ok(open_endpoint(any, &tuning(mtu_max_bytes), server.map(key), &Net::system())?)
}

/// The transport of both sides.
fn tuned(mtu_max_bytes: u16) -> Arc<quinn::TransportConfig> {
    Arc::new(transport(&tuning(mtu_max_bytes), 16))
}

fn tuning(mtu_max_bytes: u16) -> Tuning {
    Tuning {
        stream_window_bytes: STREAM_WINDOW_BYTES,
        connection_window_bytes: CONNECTION_WINDOW_BYTES,
        mtu_max_bytes,
        ..Tuning::default()
    }
}

/// One stream of one connection, read to its end.
pub(super) fn quic(plan: &Plan) -> Result<Work, Failure> {
    let (server, client) = certificates()?;
    let receiving = runtime()?;
    let config = server_config(server, plan.mtu_max_bytes)?;
    let listener = receiving.block_on(async { endpoint(plan.mtu_max_bytes, Some(config)) })?;
    let address = listener.local_addr()?;
    let config = client_config(client, plan.mtu_max_bytes)?;
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| runtime()?.block_on(send_quic(plan, config, address)));
        let work = receiving.block_on(receive_quic(&listener));
        let sent = sender.join().map_err(|_| "the sender has panicked")?;
        sent.and(work)
    })
}

async fn send_quic(plan: &Plan, config: quinn::ClientConfig, address: SocketAddr) -> Result<(), Failure> {
    let endpoint = endpoint(plan.mtu_max_bytes, None)?;
    let connection = endpoint.connect_with(config, address, NAME)?.await?;
    let (mut stream, _answer) = connection.open_bi().await?;
    for record in records(plan) {
        stream.write_chunk(record).await?;
    }
    stream.finish()?;
    // The other side ends the connection when it has everything.
    connection.closed().await;
    Ok(())
}

async fn receive_quic(listener: &quinn::Endpoint) -> Result<Work, Failure> {
    let incoming = listener.accept().await.ok_or("nobody came")?;
    let connection = incoming.await?;
    let (_answer, mut stream) = connection.accept_bi().await?;
    let (watch, mut bytes) = (Watch::start(), 0);
    let mut chunks = [const { Bytes::new() }; CHUNKS_MAX];
    while let Some(count) = stream.read_chunks(&mut chunks).await? {
        bytes += chunks.iter_mut().take(count).map(|chunk| std::mem::take(chunk).len() as u64).sum::<u64>();
    }
    let work = watch.stop(bytes);
    connection.close(0_u32.into(), b"");
    listener.wait_idle().await;
    Ok(work)
}

/// TLS 1.3 over TCP.
pub(super) fn tls(plan: &Plan) -> Result<Work, Failure> {
    let (server, client) = certificates()?;
    let receiving = runtime()?;
    let listener = receiving.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
    let address = listener.local_addr()?;
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| runtime()?.block_on(send_tls(plan, client, address)));
        let work = receiving.block_on(async {
            let (stream, _) = listener.accept().await?;
            let mut stream = TlsAcceptor::from(Arc::new(server)).accept(stream).await?;
            let (watch, mut bytes, mut piece) = (Watch::start(), 0, vec![0; READ_BYTES]);
            loop {
                match stream.read(&mut piece).await? {
                    0 => break Ok::<_, Failure>(watch.stop(bytes)),
                    read => bytes += read as u64,
                }
            }
        });
        let sent = sender.join().map_err(|_| "the sender has panicked")?;
        sent.and(work)
    })
}

async fn send_tls(plan: &Plan, client: rustls::ClientConfig, address: SocketAddr) -> Result<(), Failure> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut stream = TlsConnector::from(Arc::new(client)).connect(ServerName::try_from(NAME)?, stream).await?;
    for record in records(plan) {
        stream.write_all(&record).await?;
    }
    stream.shutdown().await?;
    // Whoever closes with something unread, such as a session ticket, resets the connection, and what is still on its
    // way to the other side is lost. So the other side closes first.
    let _ = stream.read(&mut [0]).await;
    Ok(())
}
