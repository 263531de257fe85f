//! The agent's side of the wire: connect, keep the clock offset, open disks.
//!
//! One task per connection answers for the control stream (pings, redirect), one per disk stream reads what the gateway
//! says. Acks and credit are states, not queues: many moves between two looks are one event. Dropping the [`Client`]
//! closes the connection and ends both kinds of task.

mod clock_sync;
mod disk;
mod error;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tokio::time::timeout;

pub use clock_sync::ClockOffset;
pub use disk::{DiskEvent, DiskEvents, DiskSender, OpenedInfo, SendError, WireRecord};
pub use error::{ConnectError, ConnectionLost, OpenDiskError};

use self::clock_sync::ClockSync;
use super::code::Code;
use super::endpoint::{Tuning, client_endpoint};
use super::identity::{AgentIdentity, Identity};
use super::messages::{Hello, HelloOk, Message, OpenDisk, Ping, Pong};
use super::net::Net;
use super::stream::{FrameReader, ReadFrameError, write_message};
use super::tls::{Explanation, HandshakeFailure, Material, TlsFiles};
use super::transport::{SendHalf, Session, SessionEnd, StreamEnd};
use super::{PROTOCOL_MAX, PROTOCOL_MIN, SOFTWARE};
use crate::flow::{Clock, watch};

/// For the handshake and for the hello, each; a gateway that is alive needs a few round trips.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two pings.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// Pings before the connection counts as open, so that the first label has a usable offset.
const FIRST_PINGS: usize = 3;
/// How long a close may take to go out; a gateway that is gone takes none.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

/// A connection to a gateway. Dropping it closes the connection.
pub struct Client {
    session: Session,
    addr: Arc<str>,
    identity: AgentIdentity,
    gateway: HelloOk,
    gateway_id: String,
    clock: Arc<dyn Clock>,
    sync: Arc<Mutex<ClockSync>>,
    redirect: watch::Receiver<Option<Vec<String>>>,
    stopping: watch::Sender<bool>,
    control: AbortHandle,
}

impl Client {
    /// Connects to `addr` (`host:port`), checks the gateway's certificate, says hello and measures the clock offset.
    ///
    /// # Errors
    /// [`ConnectError`] names what was wrong on which side, and the next step.
    pub async fn connect(addr: &str, tls: &TlsFiles, clock: Arc<dyn Clock>, net: &Net) -> Result<Self, ConnectError> {
        Self::connect_with(addr, tls, &Tuning::default(), clock, net).await
    }

    /// As [`Client::connect`], with tuning.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn connect_with(
        addr: &str,
        tls: &TlsFiles,
        tuning: &Tuning,
        clock: Arc<dyn Clock>,
        net: &Net,
    ) -> Result<Self, ConnectError> {
        Self::connect_elsewhere(addr, &[], tls, tuning, clock, net).await
    }

    /// As [`Client::connect_with`], unless `addr` leads to one of the gateways `known` (their ids): a gateway ends an
    /// agent's older connection for a newer one, so one that carries disks must not be asked again by another name.
    ///
    /// # Errors
    /// As [`Client::connect`], and [`ConnectError::Known`].
    pub async fn connect_elsewhere(
        addr: &str,
        known: &[String],
        tls: &TlsFiles,
        tuning: &Tuning,
        clock: Arc<dyn Clock>,
        net: &Net,
    ) -> Result<Self, ConnectError> {
        let material = Material::load(tls, &clock)?;
        let identity = material.agent()?;
        let session = reach(addr, &material, tuning, net).await?;
        // From here on an early return drops the last handle, which closes the connection.
        let opened = match check_gateway(addr, &session, &identity, known) {
            Ok(id) => open(addr, &session, &identity, &material, &*clock).await.map(|opened| (id, opened)),
            Err(error) => Err(error),
        };
        let (gateway_id, (gateway, control, sync)) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                close_on(&session, &error);
                let _ = timeout(CLOSE_PATIENCE, session.close_sent()).await;
                return Err(error);
            }
        };
        let sync = Arc::new(Mutex::new(sync));
        let (redirect_sender, redirect) = watch::channel(None);
        let keeper = Keeper { control, sync: Arc::clone(&sync), clock: Arc::clone(&clock), redirect: redirect_sender };
        let control = tokio::spawn(keeper.run(session.clone())).abort_handle();
        let (addr, stopping) = (addr.into(), watch::Sender::new(false));
        Ok(Self { session, addr, identity, gateway, gateway_id, clock, sync, redirect, stopping, control })
    }

    /// The identity of this agent's certificate.
    #[must_use]
    pub const fn identity(&self) -> &AgentIdentity {
        &self.identity
    }

    /// What the gateway said of itself.
    #[must_use]
    pub const fn gateway(&self) -> &HelloOk {
        &self.gateway
    }

    /// The gateway's id by its certificate.
    #[must_use]
    pub fn gateway_id(&self) -> &str {
        &self.gateway_id
    }

    /// The gateway's clock against this machine's, at this moment.
    #[must_use]
    pub fn clock(&self) -> ClockOffset {
        self.sync.lock().offset(self.clock.wall(), self.clock.monotonic())
    }

    /// Opens a disk stream. May wait long: a fork is answered when the gateway has everything older in the vault.
    ///
    /// # Errors
    /// [`OpenDiskError`] says whether to fork, to stop, or to come back.
    pub async fn open_disk(&self, open: OpenDisk) -> Result<(DiskSender, DiskEvents, OpenedInfo), OpenDiskError> {
        disk::open(&self.session, &self.addr, &self.clock, open, self.redirect.clone()).await
    }

    /// What the gateway last said when it asked this agent to leave: gateways to try instead, best first; may be empty.
    #[must_use]
    pub fn redirects(&self) -> watch::Receiver<Option<Vec<String>>> {
        // Nobody reads from the original, so one that came before anybody listened is new to a clone.
        self.redirect.clone()
    }

    /// Notes that the gateway stops, which it tells on disk streams.
    pub fn note_stopping(&self) {
        self.stopping.send_replace(true);
    }

    /// Waits until it is known that the gateway stops.
    pub async fn stopping(&self) {
        // No error: the sender lives as long as this does.
        let _ = self.stopping.subscribe().wait_for(|&stopping| stopping).await;
    }

    /// The largest UDP payload that the path has proven to carry, in bytes; discovery goes on for a while.
    #[must_use]
    pub fn path_mtu_bytes(&self) -> u16 {
        self.session.path_mtu_bytes()
    }

    /// Waits until the connection has ended and says how.
    pub async fn closed(&self) -> ConnectionLost {
        lost(&self.addr, self.session.closed().await)
    }

    /// Closes the connection and waits (shortly) until the gateway can know it.
    pub async fn close(self) {
        self.session.close(Code::Done, "");
        let _ = timeout(CLOSE_PATIENCE, self.session.close_sent()).await;
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.control.abort();
        self.session.close(Code::Done, "");
    }
}

/// Finds the address and finishes the TLS handshake with the first of its addresses that answers.
async fn reach(addr: &str, material: &Material, tuning: &Tuning, net: &Net) -> Result<Session, ConnectError> {
    let unusable = |text: String| ConnectError::Address { addr: addr.to_owned(), text };
    let (host, _) = addr.rsplit_once(':').ok_or_else(|| unusable("expected host:port".to_owned()))?;
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let remotes = net.resolve(addr).await.map_err(|error| unusable(error.to_string()))?;
    let mut failure = unusable("the name has no address".to_owned());
    for remote in remotes {
        match reach_one(addr, name, remote, material, tuning, net).await {
            Ok(reached) => return Ok(reached),
            // Another address may answer where one was silent; a refusal is an answer.
            Err(error @ ConnectError::Unreachable { .. }) => failure = error,
            Err(error) => return Err(error),
        }
    }
    Err(failure)
}

async fn reach_one(
    addr: &str,
    name: &str,
    remote: SocketAddr,
    material: &Material,
    tuning: &Tuning,
    net: &Net,
) -> Result<Session, ConnectError> {
    let unreachable = |text: String| ConnectError::Unreachable { addr: addr.to_owned(), text };
    let explanation = Explanation::default();
    let (endpoint, config) = client_endpoint(remote, material, tuning, &explanation, net)?;
    let connecting = endpoint
        .connect_with(config, remote, name)
        .map_err(|error| ConnectError::Address { addr: addr.to_owned(), text: error.to_string() })?;
    match timeout(STEP_TIMEOUT, connecting).await {
        Ok(Ok(connection)) => Ok(Session::Quic(connection, Some(endpoint))),
        Ok(Err(error)) => {
            let failure = failure(addr, material.explain(error.into(), &explanation));
            // The other side learns why only if the close still goes out.
            let _ = timeout(CLOSE_PATIENCE, endpoint.wait_idle()).await;
            Err(failure)
        }
        Err(_) => Err(unreachable(format!("no answer from {remote} within {} s", STEP_TIMEOUT.as_secs()))),
    }
}

fn failure(addr: &str, failure: HandshakeFailure) -> ConnectError {
    let addr = addr.to_owned();
    match failure {
        HandshakeFailure::Theirs(text) => ConnectError::GatewayCertificate { addr, text },
        HandshakeFailure::Ours(text) => ConnectError::AgentCertificate { addr, text },
        HandshakeFailure::Closed(code, text) => ConnectError::Refused { addr, code, text },
        HandshakeFailure::Silent(text) => ConnectError::Unreachable { addr, text },
    }
}

/// Tells the gateway why this side leaves before it began.
fn close_on(session: &Session, error: &ConnectError) {
    let (code, text) = match error {
        ConnectError::GatewayCertificate { text, .. } => (Code::Role, text.as_str()),
        ConnectError::Protocol { text, .. } => (Code::Message, text.as_str()),
        _ => (Code::Done, ""),
    };
    session.close(code, text);
}

/// The control stream.
struct Control {
    send: SendHalf,
    reader: FrameReader,
}

/// Hello and first pings.
async fn open(
    addr: &str,
    session: &Session,
    identity: &AgentIdentity,
    material: &Material,
    clock: &dyn Clock,
) -> Result<(HelloOk, Control, ClockSync), ConnectError> {
    let steps = async {
        let (send, recv) = session.open_stream().await.map_err(StreamEnd::Session)?;
        let mut control = Control { send, reader: FrameReader::new(recv) };
        control.send.set_urgent();
        let hello = Message::Hello(Hello {
            protocol_min: PROTOCOL_MIN,
            protocol_max: PROTOCOL_MAX,
            vault: identity.vault,
            agent: identity.agent.clone(),
            software: SOFTWARE.to_owned(),
        });
        // A failed write shows as a failed read, which knows the reason.
        let _ = write_message(&mut control.send, &hello).await;
        let answer = control.reader.next_message().await?;
        let mut sync = ClockSync::default();
        if matches!(answer, Message::HelloOk(_)) {
            for _ in 0..FIRST_PINGS {
                ping(&mut control.send, clock).await;
                if let Message::Pong(pong) = control.reader.next_message().await? {
                    take_pong(&mut sync, pong, clock);
                }
            }
        }
        Ok::<_, ReadFrameError>((answer, control, sync))
    };
    let protocol = |text: String| ConnectError::Protocol { addr: addr.to_owned(), text };
    let (answer, control, sync) = match timeout(STEP_TIMEOUT, steps).await {
        Ok(Ok(opened)) => opened,
        Ok(Err(ReadFrameError::Stream(StreamEnd::Session(end)))) => {
            return Err(failure(addr, material.explain(end, &Explanation::default())));
        }
        Ok(Err(error)) => return Err(protocol(error.to_string())),
        Err(_) => {
            let text = format!("no answer to the hello within {} s", STEP_TIMEOUT.as_secs());
            return Err(ConnectError::Unreachable { addr: addr.to_owned(), text });
        }
    };
    match answer {
        Message::HelloOk(ok) if ok.vault == identity.vault && (PROTOCOL_MIN..=PROTOCOL_MAX).contains(&ok.protocol) => {
            Ok((ok, control, sync))
        }
        Message::HelloOk(ok) => Err(protocol(format!(
            "it answered hello with vault {} and protocol version {}, this agent asked for vault {} and versions \
             {PROTOCOL_MIN} to {PROTOCOL_MAX}",
            ok.vault, ok.protocol, identity.vault
        ))),
        Message::Refused(refused) => {
            Err(ConnectError::Refused { addr: addr.to_owned(), code: refused.code, text: refused.text })
        }
        other => Err(protocol(format!("{:?} frame came as the answer to hello", other.kind()))),
    }
}

/// The other side must be a gateway of this agent's vault: any other holder of a certificate of the same authority
/// (another agent, say) would get this machine's data.
fn check_gateway(addr: &str, session: &Session, own: &AgentIdentity, known: &[String]) -> Result<String, ConnectError> {
    let text = match session.peer_identity() {
        Ok(Identity::Gateway(gateway)) if gateway.vault == own.vault && known.contains(&gateway.gateway) => {
            return Err(ConnectError::Known { addr: addr.to_owned(), gateway: gateway.gateway });
        }
        Ok(Identity::Gateway(gateway)) if gateway.vault == own.vault => return Ok(gateway.gateway),
        Ok(Identity::Gateway(gateway)) => format!(
            "it is gateway {} of vault {}, agent {} protects into vault {}; check the address, or issue a certificate \
             for that vault",
            gateway.gateway, gateway.vault, own.agent, own.vault
        ),
        Ok(other) => format!(
            "it belongs to {other}, which is no gateway; check the address, or issue one with `tidegate pki issue … \
             gateway`"
        ),
        Err(error) => error.to_string(),
    };
    Err(ConnectError::GatewayCertificate { addr: addr.to_owned(), text })
}

async fn ping(send: &mut SendHalf, clock: &dyn Clock) {
    let token = clock.monotonic().as_micros() as u64;
    // A lost connection shows on the reading side.
    let _ = write_message(send, &Message::Ping(Ping { token })).await;
}

fn take_pong(sync: &mut ClockSync, pong: Pong, clock: &dyn Clock) {
    let now = clock.monotonic();
    let asked = Duration::from_micros(pong.token);
    // A token from the future was never sent by this side.
    if asked <= now {
        sync.take(asked, now, pong.received, pong.sent);
    }
}

/// Keeps the control stream.
struct Keeper {
    control: Control,
    sync: Arc<Mutex<ClockSync>>,
    clock: Arc<dyn Clock>,
    redirect: watch::Sender<Option<Vec<String>>>,
}

impl Keeper {
    /// Pings and reads side by side: a ping that finds no window, because the gateway's journal is full, must not keep
    /// a redirect from being read.
    async fn run(self, session: Session) {
        let Self { control: Control { mut send, mut reader, .. }, sync, clock, redirect } = self;
        let pings = async {
            let mut ticks = tokio::time::interval(PING_INTERVAL);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                ping(&mut send, &*clock).await;
            }
        };
        let reads = async {
            loop {
                match reader.next_message().await {
                    Ok(Message::Pong(pong)) => take_pong(&mut sync.lock(), pong, &*clock),
                    Ok(Message::Redirect(asked)) => {
                        tracing::info!(gateways = ?asked.gateways, "the gateway asks this agent to leave");
                        redirect.send_replace(Some(asked.gateways));
                    }
                    Ok(other) => {
                        let text = format!("{:?} frame came on the control stream", other.kind());
                        return session.close(Code::Message, &text);
                    }
                    // The gateway ended the control stream, or the connection is gone, which the disks notice too.
                    Err(ReadFrameError::Stream(_) | ReadFrameError::End) => return,
                    Err(error) => return session.close(Code::Frame, &error.to_string()),
                }
            }
        };
        tokio::select! {
            biased;
            () = reads => {}
            () = pings => {}
        }
    }
}

/// The end of a connection as the agent sees it.
fn lost(addr: &str, end: SessionEnd) -> ConnectionLost {
    let (code, text) = match end {
        SessionEnd::Local => (Code::Done, end.to_string()),
        SessionEnd::Closed { code, text } => (code, text),
        other => (Code::Timeout, other.to_string()),
    };
    ConnectionLost { gateway: addr.to_owned(), code, text }
}
