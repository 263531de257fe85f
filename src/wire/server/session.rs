//! One connection: handshake, identity, hello, then pings and disk streams until it ends.

mod tcp;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::admission::{Network, Place, STREAMS_SPARE};
use super::skew::Skew;
use super::{Gauged, Server, count_refused, disk};
use crate::telemetry::names;
use crate::types::RECORD_HEAD_BYTES;
use crate::wire::CREDIT_BASE_BYTES;
use crate::wire::client::PROBE_TEXT;
use crate::wire::code::Code;
use crate::wire::frame::HEADER_BYTES;
use crate::wire::host::Host;
use crate::wire::identity::{AgentIdentity, Identity, IdentityError};
use crate::wire::messages::{Hello, HelloOk, Message, Ping, Pong, Redirect, Refused, Report};
use crate::wire::stream::{FrameReader, ReadFrameError, write_message};
use crate::wire::tls::{Explanation, HandshakeFailure};
use crate::wire::transport::{SendHalf, Session, Transport, congestion};
use crate::wire::{PROTOCOL_MIN, PROTOCOL_SIGNED, SOFTWARE};

/// How long the other side has to read a refusal before the connection is closed over it.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(2);

/// Window of a connection beside that of its records: for control frames, and what was read is announced late.
const WINDOW_SPARE_BYTES: u64 = 256 << 10;

/// Why a connection is closed by this side: the code and its text.
struct Close(Code, String);

impl Close {
    fn new(code: Code, text: impl Into<String>) -> Self {
        Self(code, text.into())
    }
}

/// Runs one QUIC connection to its end.
pub(super) async fn run_quic<H: Host>(server: Arc<Server<H>>, incoming: quinn::Incoming, handshake: Place<Network>) {
    let address = incoming.remote_address();
    let mut drain = server.drain.clone();
    let connected = tokio::select! {
        biased;
        () = drain.wait() => return,
        // On the heap, and gone with the handshake: see `disk`.
        connected = Box::pin(connect_quic(&server, incoming)) => connected,
    };
    if let Some(session) = connected {
        run(&server, address, session, Some(handshake)).await;
    }
}

/// A connection over TCP that nothing was heard of yet.
pub(super) struct Came {
    pub(super) socket: TcpStream,
    pub(super) address: SocketAddr,
    /// Held as long as the socket.
    pub(super) place: OwnedSemaphorePermit,
}

/// Runs one connection over TCP to its end, or hands it to the session that it belongs to.
pub(super) async fn run_tcp<H: Host>(server: Arc<Server<H>>, came: Came, handshake: Place<Network>) {
    let address = came.address;
    let mut drain = server.drain.clone();
    let connected = tokio::select! {
        biased;
        () = drain.wait() => return,
        connected = Box::pin(tcp::connect(&server, came, handshake)) => connected,
    };
    if let Some(session) = connected {
        run(&server, address, session, None).await;
    }
}

/// Runs one session to its end.
async fn run<H: Host>(
    server: &Arc<Server<H>>,
    address: SocketAddr,
    session: Session,
    handshake: Option<Place<Network>>,
) {
    serve_session(server, address, &session, handshake).await;
    // Its last word goes out; a lost peer must not hold the gateway up.
    let _ = timeout(REFUSAL_PATIENCE, session.close_sent()).await;
}

async fn serve_session<H: Host>(
    server: &Arc<Server<H>>,
    address: SocketAddr,
    session: &Session,
    handshake: Option<Place<Network>>,
) {
    let mut drain = server.drain.clone();
    let refuse = |Close(code, text): Close| {
        log_refusal(address, code, &text);
        session.close(code, &text);
    };
    let opened = tokio::select! {
        biased;
        () = drain.wait() => Err(Close::new(Code::Draining, "the gateway stops; connect to it or another later")),
        opened = Box::pin(open(server, session, handshake)) => opened,
    };
    let (agent, control) = match opened {
        Ok(opened) => opened,
        Err(close) => return refuse(close),
    };
    let (seats_max, patience) = (server.limits.connections_max, server.limits.step_timeout);
    let Ok(seat) = server.seats.take(&agent.agent, session, seats_max, patience).await else {
        return refuse(full(server));
    };
    let disks = agent.disks.len().min(server.limits.disks_max) as u32;
    session.widen(streams_max(server, &agent), window_bytes(server.memory.account_bytes(), disks));
    let transport = session.transport().as_str();
    tracing::info!(%address, agent = agent.agent, transport, "agent connected");
    let gauge = Gauged::new(names::AGENT_SESSIONS);
    let over_tcp = (session.transport() == Transport::Tcp).then(|| Gauged::new(names::AGENT_SESSIONS_TCP));
    let agent = Arc::new(agent);
    if control.protocol >= PROTOCOL_SIGNED {
        let certificates = session.peer_certificates();
        server.host.shown(&agent, certificates.iter().map(|certificate| certificate.to_vec()).collect());
    }
    server.host.arrived(&agent, address, session.transport());
    let Close(code, text) = serve_agent(server, session, Arc::clone(&agent), control).await;
    server.host.left(&agent);
    tracing::info!(%address, agent = seat.agent, %code, "agent disconnected: {text}");
    session.close(code, &text);
    drop((gauge, over_tcp, seat));
}

fn log_refusal(address: SocketAddr, code: Code, text: &str) {
    if text.contains(PROBE_TEXT) {
        tracing::debug!(%address, "agent left before it began: {text}");
    } else if code == Code::Done {
        tracing::warn!(%address, "agent left before it began: {text}");
    } else {
        count_refused(code);
        tracing::warn!(%address, %code, "agent refused: {text}");
    }
}

fn full<H>(server: &Server<H>) -> Close {
    Close::new(Code::Busy, format!("this gateway has {} agents, as many as it may", server.limits.connections_max))
}

/// The streams that an agent needs: one for each disk and some to spare.
fn streams_max<H>(server: &Server<H>, agent: &AgentIdentity) -> u32 {
    let disks = agent.disks.len().min(server.limits.disks_max) as u32;
    // Twice: freed streams are announced only when an eighth of all is free, and until then disks must be able to reopen.
    2 * disks + STREAMS_SPARE
}

/// A connection's window: all credit that its disks may have at the same time, with the headers of their frames, so that
/// what is granted to one disk is never held up by what another one has unread here.
fn window_bytes(account_bytes: u64, disks: u32) -> u32 {
    let records_bytes = account_bytes + u64::from(disks) * CREDIT_BASE_BYTES;
    let headers_bytes = records_bytes / RECORD_HEAD_BYTES as u64 * HEADER_BYTES as u64;
    (records_bytes + headers_bytes + WINDOW_SPARE_BYTES).min(u64::from(u32::MAX)) as u32
}

/// The TLS handshake; a failure is logged with the address and this side's view of it.
async fn connect_quic<H>(server: &Server<H>, incoming: quinn::Incoming) -> Option<Session> {
    let address = incoming.remote_address();
    let (explanation, material) = (Explanation::default(), server.listener.material());
    let config = match server.listener.config_for_one(&material, &explanation) {
        Ok(config) => config,
        Err(error) => {
            tracing::error!(%error, "TLS cannot be set up for a connection");
            return None;
        }
    };
    let finished = match incoming.accept_with(config) {
        Ok(connecting) => timeout(server.limits.step_timeout, connecting).await,
        Err(error) => Ok(Err(error)),
    };
    match finished {
        Ok(Ok(connection)) => Some(Session::Quic(congestion::Connection::new(connection), None)),
        Ok(Err(error)) => {
            log_handshake_failure(address, material.explain(error.into(), &explanation));
            None
        }
        Err(_) => {
            log_late(address);
            None
        }
    }
}

fn log_late(address: SocketAddr) {
    count_refused(Code::Timeout);
    tracing::warn!(%address, "handshake not finished in time");
}

fn log_handshake_failure(address: SocketAddr, failure: HandshakeFailure) {
    match failure {
        HandshakeFailure::Theirs(text) => {
            count_refused(Code::Identity);
            tracing::warn!(%address, "agent refused: {text}");
        }
        HandshakeFailure::Ours(text) => tracing::warn!(%address, "an agent refused this gateway: {text}"),
        HandshakeFailure::Closed(code, text) => tracing::warn!(%address, %code, "agent left: {text}"),
        HandshakeFailure::Silent(text) => tracing::debug!(%address, "handshake came to nothing: {text}"),
    }
}

/// The control stream.
struct Control {
    send: SendHalf,
    reader: FrameReader,
    /// The version that both sides use.
    protocol: u16,
}

/// Identity and hello: everything before the agent counts as connected. From the identity on, the connection holds a
/// place of its certificate instead of one of its address.
async fn open<H>(
    server: &Server<H>,
    session: &Session,
    handshake: Option<Place<Network>>,
) -> Result<(AgentIdentity, Control), Close> {
    let agent = check_identity(server, session.peer_identity())?;
    let Some(_place) = server.hellos.take(&agent.agent) else {
        let text = format!("agent {} has too many connections that have not said hello", agent.agent);
        return Err(Close::new(Code::Busy, text));
    };
    drop(handshake);
    let late = |_| Close::new(Code::Timeout, "no hello came in time");
    let (send, recv) = timeout(server.limits.step_timeout, session.accept_stream())
        .await
        .map_err(late)?
        .map_err(|error| Close::new(Code::Done, error.to_string()))?;
    let mut control = Control { send, reader: FrameReader::new(recv), protocol: PROTOCOL_MIN };
    control.send.set_urgent();
    let message = timeout(server.limits.step_timeout, control.reader.next_message()).await.map_err(late)?;
    let hello = match message.map_err(|error| close_of(&error))? {
        Message::Hello(hello) => hello,
        other => return Err(Close::new(Code::Message, format!("{:?} frame came instead of a hello", other.kind()))),
    };
    let seated =
        if server.seats.may_take(&agent.agent, server.limits.connections_max) { Ok(()) } else { Err(full(server)) };
    match seated.and_then(|()| answer_hello(server, &agent, &hello)) {
        Ok(answer) => {
            let sent = timeout(server.limits.step_timeout, write_message(&mut control.send, &answer)).await;
            sent.map_err(late)?.map_err(|error| Close::new(Code::Done, error.to_string()))?;
            control.protocol = server.limits.protocol_max.min(hello.protocol_max);
            tracing::debug!(agent = agent.agent, software = hello.software, "hello");
            Ok((agent, control))
        }
        Err(Close(code, text)) => {
            let refused = Message::Refused(Refused { code, text: text.clone() });
            // A peer that opens no window for the answer must not keep this connection, and a drain, for ever.
            let sent = timeout(REFUSAL_PATIENCE, write_message(&mut control.send, &refused)).await;
            if matches!(sent, Ok(Ok(()))) && control.send.finish().is_ok() {
                let heard = async {
                    match session.transport() {
                        // A close throws away what was not read.
                        Transport::Quic => drop(session.closed().await),
                        Transport::Tcp => control.send.stopped().await,
                    }
                };
                let _ = timeout(REFUSAL_PATIENCE, heard).await;
            }
            Err(Close(code, text))
        }
    }
}

fn check_identity<H>(server: &Server<H>, identity: Result<Identity, IdentityError>) -> Result<AgentIdentity, Close> {
    let identity = identity.map_err(|error| Close::new(Code::Identity, error.to_string()))?;
    let Identity::Agent(agent) = identity else {
        let text = format!(
            "certificate of {identity} is not an agent's; agents need certificates from `tidegate pki issue … agent`"
        );
        return Err(Close::new(Code::Role, text));
    };
    if agent.vault != server.hello.vault {
        return Err(Close::new(
            Code::Vault,
            format!(
                "agent {} has a certificate of vault {}, gateway {} writes vault {}; connect to a gateway of the \
                 agent's vault or issue a certificate for this one",
                agent.agent, agent.vault, server.hello.gateway, server.hello.vault
            ),
        ));
    }
    Ok(agent)
}

fn answer_hello<H>(server: &Server<H>, agent: &AgentIdentity, hello: &Hello) -> Result<Message, Close> {
    let protocol_max = server.limits.protocol_max;
    if hello.protocol_min > protocol_max || hello.protocol_max < PROTOCOL_MIN {
        return Err(Close::new(
            Code::Protocol,
            format!(
                "agent {} speaks protocol versions {} to {}, this gateway {PROTOCOL_MIN} to {protocol_max}; update the \
                 older side",
                agent.agent, hello.protocol_min, hello.protocol_max
            ),
        ));
    }
    if hello.vault != server.hello.vault {
        let text = format!(
            "agent {} protects into vault {}, this gateway writes vault {}",
            agent.agent, hello.vault, server.hello.vault
        );
        return Err(Close::new(Code::Vault, text));
    }
    if hello.agent != agent.agent {
        let text = format!("{:?} says hello with the certificate of agent {}", hello.agent, agent.agent);
        return Err(Close::new(Code::Identity, text));
    }
    Ok(Message::HelloOk(HelloOk {
        protocol: protocol_max.min(hello.protocol_max),
        vault: server.hello.vault,
        gateway: server.hello.gateway.clone(),
        software: SOFTWARE.to_owned(),
    }))
}

/// What a failed read means for the connection.
fn close_of(error: &ReadFrameError) -> Close {
    match error {
        ReadFrameError::Frame(frame) => Close::new(Code::Frame, frame.to_string()),
        ReadFrameError::Message(message) => Close::new(Code::Message, message.to_string()),
        ReadFrameError::Credit { .. } => Close::new(Code::Credit, error.to_string()),
        ReadFrameError::Stream(stream) => Close::new(Code::Done, stream.to_string()),
        ReadFrameError::End => Close::new(Code::Done, "the agent ended the control stream"),
    }
}

/// Pings and disk streams, until the connection ends or is drained.
async fn serve_agent<H: Host>(
    server: &Arc<Server<H>>,
    session: &Session,
    agent: Arc<AgentIdentity>,
    mut control: Control,
) -> Close {
    let account = Arc::new(server.memory.account());
    let mut skew = Skew::new(agent.agent.clone());
    let mut disks = JoinSet::new();
    let mut drain = server.drain.clone();
    let leave = server.host.leave_turn();
    tokio::pin!(leave);
    let mut asked = false;
    let close = loop {
        tokio::select! {
            biased;
            () = drain.wait() => break Close::new(Code::Draining, "the gateway stops; connect to it or another later"),
            Some(_) = disks.join_next() => {}
            message = control.reader.next_message() => {
                let answered = heard(server, &agent, message, &mut skew, &mut control).await;
                if let Err(close) = answered {
                    break close;
                }
            }
            stream = session.accept_stream() => match stream {
                Ok((send, recv)) => {
                    let full = disks.len() >= server.limits.disks_max;
                    let stream = disk::Stream::new(send, recv, session.clone(), Arc::clone(&account));
                    disks.spawn(disk::run(Arc::clone(server), Arc::clone(&agent), stream, full));
                }
                Err(error) => break Close::new(Code::Done, error.to_string()),
            },
            () = &mut leave, if !asked => {
                asked = true;
                tracing::info!(agent = agent.agent, "agent is asked to go to another gateway: this one is overloaded");
                // On the heap: it happens once, and a session must be small. So below.
                Box::pin(redirect(server, &mut control)).await;
            }
        }
    };
    if close.0 == Code::Draining {
        Box::pin(redirect(server, &mut control)).await;
        // Disk streams end by themselves when everything they took is vaulted.
        let all_ended = async { while disks.join_next().await.is_some() {} };
        tokio::select! {
            biased;
            _ = session.closed() => {}
            // The sooner the agents are at another gateway, the sooner what was lost here comes again there.
            () = server.host.broken() => {}
            _ = timeout(server.limits.drain_grace, all_ended) => {}
        }
    }
    if close.0 != Code::Draining && close.0 != Code::Done {
        count_refused(close.0);
    }
    // Awaited, so that every sink is gone before this agent's seat is free.
    disks.shutdown().await;
    close
}

/// One message on the control stream.
async fn heard<H: Host>(
    server: &Server<H>,
    agent: &AgentIdentity,
    message: Result<Message, ReadFrameError>,
    skew: &mut Skew,
    control: &mut Control,
) -> Result<(), Close> {
    match message.map_err(|error| close_of(&error))? {
        Message::Ping(ping) => {
            skew.take(ping);
            answer_ping(server, ping, control).await
        }
        Message::Report(report) if agent.may_write(&report.disk) => {
            server.host.report(agent, report);
            Ok(())
        }
        Message::Report(Report { disk, .. }) => {
            let text = format!("the certificate of agent {} does not name disk {disk}", agent.agent);
            Err(Close::new(Code::NotAuthorised, text))
        }
        other => Err(Close::new(Code::Message, format!("{:?} frame came on the control stream", other.kind()))),
    }
}

async fn redirect<H: Host>(server: &Server<H>, control: &mut Control) {
    let redirect = Message::Redirect(Redirect { gateways: server.host.peers() });
    metrics::counter!(names::REDIRECTS).increment(1);
    // An agent that does not take it loses a hint.
    let _ = timeout(REFUSAL_PATIENCE, write_message(&mut control.send, &redirect)).await;
}

async fn answer_ping<H>(server: &Server<H>, ping: Ping, control: &mut Control) -> Result<(), Close> {
    let now = server.clock.wall();
    let pong = Message::Pong(Pong { token: ping.token, received: now, sent: server.clock.wall() });
    match timeout(server.limits.step_timeout, write_message(&mut control.send, &pong)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Close::new(Code::Done, error.to_string())),
        Err(_) => Err(Close::new(Code::Timeout, "the agent does not read the answers to its pings")),
    }
}
