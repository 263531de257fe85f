//! The agent's side of the wire: connect, keep the clock offset, open disks.
//!
//! One task per connection answers for the control stream (pings, redirect), one per disk stream reads what the gateway
//! says. Acks and credit are states, not queues: many moves between two looks are one event. Dropping the [`Client`]
//! closes the connection and ends both kinds of task.

mod clock_sync;
mod disk;
mod error;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

pub use clock_sync::ClockOffset;
pub use disk::{DiskEvent, DiskEvents, DiskSender, OpenedInfo, SendError, WireRecord};
pub use error::{ConnectError, ConnectionLost, OpenDiskError};

use self::clock_sync::ClockSync;
use super::code::Code;
use super::endpoint::{KEEP_ALIVES_PER_IDLE_TIMEOUT, Tuning, client_endpoint};
use super::identity::{AgentIdentity, Identity};
use super::messages::{Hello, HelloOk, Message, OpenDisk, Ping, Pong, Report};
use super::net::Net;
use super::stream::{FrameReader, ReadFrameError, write_message};
use super::tls::{Explanation, HandshakeFailure, Material, TlsFiles};
use super::transport::tcp::Dialer;
use super::transport::{PathFigures, SendHalf, Session, SessionEnd, StreamEnd, Transport, congestion};
use super::{PROTOCOL_MAX, PROTOCOL_MIN, PROTOCOL_SIGNED, SOFTWARE};
use crate::flow::{Clock, watch};
use crate::keys;
use crate::signed::Signer;
use crate::types::{DiskId, Id128};

/// For the handshake and for the hello, each; a gateway that is alive needs a few round trips.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two pings.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// Pings before the connection counts as open, so that the first label has a usable offset.
const FIRST_PINGS: usize = 3;
/// How long a close may take to go out; a gateway that is gone takes none.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);
/// How long the wanted transport is tried once more when the other one has answered: twice as long as that took, within
/// these bounds.
const LAST_CHANCE_MIN: Duration = Duration::from_millis(200);
const LAST_CHANCE_MAX: Duration = Duration::from_secs(1);
/// What a gateway logs of an agent that only looked whether it is there.
pub(in crate::wire) const PROBE_TEXT: &str = "it only asked whether this gateway answers";

/// A connection to a gateway. Dropping it closes the connection.
pub struct Client {
    session: Session,
    addr: Arc<str>,
    identity: AgentIdentity,
    gateway: HelloOk,
    gateway_id: String,
    signer: Option<Arc<Signer>>,
    clock: Arc<dyn Clock>,
    sync: Arc<Mutex<ClockSync>>,
    redirect: watch::Receiver<Option<Vec<String>>>,
    reports: Arc<Reports>,
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
        // QUIC keeps itself alive; over TCP the pings do it.
        let ping_interval = match session.transport() {
            Transport::Quic => PING_INTERVAL,
            Transport::Tcp => PING_INTERVAL.min(tuning.idle_timeout / KEEP_ALIVES_PER_IDLE_TIMEOUT),
        };
        let (sync_kept, clock_kept) = (Arc::clone(&sync), Arc::clone(&clock));
        let reports = Arc::new(Reports::default());
        let reports_kept = Arc::clone(&reports);
        let keeper = Keeper {
            control,
            sync: sync_kept,
            clock: clock_kept,
            redirect: redirect_sender,
            reports: reports_kept,
            ping_interval,
        };
        let control = tokio::spawn(keeper.run(session.clone())).abort_handle();
        let (addr, stopping) = (addr.into(), watch::Sender::new(false));
        // With the certificate that this gateway has seen, which it keeps in the vault.
        let signer = (gateway.protocol >= PROTOCOL_SIGNED).then(|| material.signer()).flatten().map(Arc::new);
        Ok(Self {
            session,
            addr,
            identity,
            gateway,
            gateway_id,
            signer,
            clock,
            sync,
            redirect,
            reports,
            stopping,
            control,
        })
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

    /// Signs barriers with this agent's key; none if the gateway takes no signed ones, or the key is of a kind that does not do.
    #[must_use]
    pub fn signer(&self) -> Option<Arc<Signer>> {
        self.signer.clone()
    }

    /// Whether the gateway takes barriers that are signed.
    #[must_use]
    pub const fn takes_signed(&self) -> bool {
        self.gateway.protocol >= PROTOCOL_SIGNED
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

    /// How the connection's path fares; none over TCP, of which the system keeps the books.
    #[must_use]
    pub fn path(&self) -> Option<PathFigures> {
        self.session.path_figures()
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

    /// Tells the gateway how disks stand, as soon as it reads; of each disk the newest is told.
    pub fn report(&self, reports: Vec<Report>) {
        let mut waiting = self.reports.waiting.lock();
        waiting.extend(reports.into_iter().map(|report| (report.disk.clone(), report)));
        drop(waiting);
        self.reports.due.notify_one();
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

    /// The largest UDP payload that the path has proven to carry, in bytes, over QUIC; discovery goes on for a while.
    #[must_use]
    pub fn path_mtu_bytes(&self) -> Option<u16> {
        self.session.path_mtu_bytes()
    }

    /// What carries the connection.
    #[must_use]
    pub const fn transport(&self) -> Transport {
        self.session.transport()
    }

    /// Whether the gateway at `addr` answers over the transport of `tuning`, without saying hello to it, which would end a
    /// connection that this agent has there.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn probe(
        addr: &str,
        tls: &TlsFiles,
        tuning: &Tuning,
        clock: Arc<dyn Clock>,
        net: &Net,
    ) -> Result<(), ConnectError> {
        let material = Material::load(tls, &clock)?;
        let identity = material.agent()?;
        let session = reach(addr, &material, tuning, net).await?;
        let checked = check_gateway(addr, &session, &identity, &[]);
        match &checked {
            Ok(_) => session.close(Code::Done, PROBE_TEXT),
            Err(error) => close_on(&session, error),
        }
        let _ = timeout(CLOSE_PATIENCE, session.close_sent()).await;
        checked.map(|_| ())
    }

    /// Waits until the connection has ended and says how.
    pub async fn closed(&self) -> ConnectionLost {
        lost(&self.addr, self.session.closed().await)
    }

    /// Closes the connection, whoever else holds it.
    pub fn end(&self) {
        self.session.close(Code::Done, "");
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

/// What is to be reached, and with what.
struct Target<'a> {
    addr: &'a str,
    /// The name that the gateway's certificate must have.
    name: &'a str,
    material: &'a Material,
    tuning: &'a Tuning,
    net: &'a Net,
}

/// Finds the address and finishes the TLS handshake with the first of its addresses that answers.
async fn reach(addr: &str, material: &Material, tuning: &Tuning, net: &Net) -> Result<Session, ConnectError> {
    let unusable = |text: String| ConnectError::Address { addr: addr.to_owned(), text };
    let (host, _) = addr.rsplit_once(':').ok_or_else(|| unusable("expected host:port".to_owned()))?;
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let remotes = net.resolve(addr).await.map_err(|error| unusable(error.to_string()))?;
    let target = Target { addr, name, material, tuning, net };
    let mut failure = unusable("the name has no address".to_owned());
    for remote in remotes {
        // On the heap: handshakes by two transports at once are large, and rare.
        match Box::pin(reach_by_either(&target, remote)).await {
            Ok(reached) => return Ok(reached),
            // Another address may answer where one was silent; a refusal is an answer.
            Err(error @ ConnectError::Unreachable { .. }) => failure = error,
            Err(error) => return Err(error),
        }
    }
    Err(failure)
}

/// Over the wanted transport, and over the other one if that does not answer in time. Neither says hello yet, so the one
/// that is not taken leaves nothing behind.
async fn reach_by_either(target: &Target<'_>, remote: SocketAddr) -> Result<Session, ConnectError> {
    let transport = target.tuning.transport;
    let mut wanted = pin!(reach_one(target, remote, transport));
    let Some(other_after) = target.tuning.other_after else { return wanted.await };
    let silent = match timeout(other_after, &mut wanted).await {
        Ok(Err(silent @ ConnectError::Unreachable { .. })) => Some(silent),
        Ok(answered) => return answered,
        Err(_) => None,
    };
    let begun = Instant::now();
    let mut other = pin!(reach_one(target, remote, transport.other()));
    let reached = match silent {
        Some(silent) => other.await.map_err(|error| both(silent, error)),
        None => tokio::select! {
            biased;
            answered = &mut wanted => match answered {
                Err(silent @ ConnectError::Unreachable { .. }) => other.await.map_err(|error| both(silent, error)),
                answered => return answered,
            },
            answered = &mut other => match answered {
                Err(error) => return wanted.await.map_err(|silent| both(silent, error)),
                answered => answered,
            },
        },
    };
    let other = reached?;
    // What was sent before the gateway was there is sent again only after a while: one that has just started again gets a
    // fresh first word, or all its agents would come over the other transport.
    let patience = (begun.elapsed() * 2).clamp(LAST_CHANCE_MIN, LAST_CHANCE_MAX);
    match timeout(patience, reach_one(target, remote, transport)).await {
        Ok(Ok(wanted)) => {
            other.close(Code::Done, PROBE_TEXT);
            Ok(wanted)
        }
        _ => Ok(other),
    }
}

/// Neither transport came through: what is to be told of both.
fn both(wanted: ConnectError, other: ConnectError) -> ConnectError {
    match (wanted, other) {
        (ConnectError::Unreachable { addr, text, .. }, ConnectError::Unreachable { text: other, .. }) => {
            ConnectError::Unreachable { addr, text: format!("{text}; {other}"), needs: "UDP or TCP" }
        }
        // A refusal says more than silence does.
        (ConnectError::Unreachable { .. }, refusal) => refusal,
        (refusal, _) => refusal,
    }
}

async fn reach_one(target: &Target<'_>, remote: SocketAddr, transport: Transport) -> Result<Session, ConnectError> {
    let Target { addr, name, material, tuning, net } = *target;
    let unusable = |text: String| ConnectError::Address { addr: addr.to_owned(), text };
    let explanation = Explanation::default();
    let reached = match transport {
        Transport::Quic => {
            let (endpoint, config) = client_endpoint(remote, material, tuning, &explanation, net)?;
            let connecting =
                endpoint.connect_with(config, remote, name).map_err(|error| unusable(error.to_string()))?;
            match timeout(STEP_TIMEOUT, connecting).await {
                Ok(Ok(connection)) => Ok(Ok(Session::Quic(congestion::Connection::new(connection), Some(endpoint)))),
                Ok(Err(error)) => {
                    // The other side learns why only if the close still goes out.
                    let _ = timeout(CLOSE_PATIENCE, endpoint.wait_idle()).await;
                    Ok(Err(error.into()))
                }
                Err(late) => Err(late),
            }
        }
        Transport::Tcp => {
            let name = ServerName::try_from(name.to_owned()).map_err(|error| unusable(error.to_string()))?;
            let dialer = Dialer {
                remote,
                name,
                tls: Arc::new(material.client_config(&explanation)?),
                net: net.clone(),
                session: Id128(keys::random().map_err(|error| unusable(error.to_string()))?),
                idle_timeout: tuning.idle_timeout,
                step_timeout: STEP_TIMEOUT,
                gateway: None,
            };
            timeout(STEP_TIMEOUT, dialer.dial()).await.map(|dialled| dialled.map(Session::Tcp))
        }
    };
    match reached {
        Ok(Ok(session)) => Ok(session),
        Ok(Err(end)) => Err(failure(addr, transport, material.explain(end, &explanation))),
        Err(_) => {
            let text = format!("no answer from {remote} over {} within {} s", needs(transport), STEP_TIMEOUT.as_secs());
            Err(ConnectError::Unreachable { addr: addr.to_owned(), text, needs: needs(transport) })
        }
    }
}

/// What the network must let through.
const fn needs(transport: Transport) -> &'static str {
    match transport {
        Transport::Quic => "UDP",
        Transport::Tcp => "TCP",
    }
}

fn failure(addr: &str, transport: Transport, failure: HandshakeFailure) -> ConnectError {
    let addr = addr.to_owned();
    match failure {
        HandshakeFailure::Theirs(text) => ConnectError::GatewayCertificate { addr, text },
        HandshakeFailure::Ours(text) => ConnectError::AgentCertificate { addr, text },
        HandshakeFailure::Closed(code, text) => ConnectError::Refused { addr, code, text },
        HandshakeFailure::Silent(text) => ConnectError::Unreachable { addr, text, needs: needs(transport) },
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
                let known = sync.offset(clock.wall(), clock.monotonic());
                ping(&mut control.send, clock, known).await;
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
            return Err(failure(addr, session.transport(), material.explain(end, &Explanation::default())));
        }
        Ok(Err(error)) => return Err(protocol(error.to_string())),
        Err(_) => {
            let text = format!("no answer to the hello within {} s", STEP_TIMEOUT.as_secs());
            let needs = needs(session.transport());
            return Err(ConnectError::Unreachable { addr: addr.to_owned(), text, needs });
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

async fn ping(send: &mut SendHalf, clock: &dyn Clock, known: ClockOffset) {
    let token = clock.monotonic().as_micros() as u64;
    let ClockOffset { offset_micros, uncertainty_micros } = known;
    // A lost connection shows on the reading side.
    let _ = write_message(send, &Message::Ping(Ping { token, offset_micros, uncertainty_micros })).await;
}

fn take_pong(sync: &mut ClockSync, pong: Pong, clock: &dyn Clock) {
    let now = clock.monotonic();
    let asked = Duration::from_micros(pong.token);
    // A token from the future was never sent by this side.
    if asked <= now {
        sync.take(asked, now, pong.received, pong.sent);
    }
}

/// What is still to be told: one for each disk at the most.
#[derive(Default)]
struct Reports {
    waiting: Mutex<BTreeMap<DiskId, Report>>,
    due: Notify,
}

/// Keeps the control stream.
struct Keeper {
    control: Control,
    sync: Arc<Mutex<ClockSync>>,
    clock: Arc<dyn Clock>,
    redirect: watch::Sender<Option<Vec<String>>>,
    reports: Arc<Reports>,
    ping_interval: Duration,
}

impl Keeper {
    /// Pings and reads side by side: a ping that finds no window, because the gateway's journal is full, must not keep
    /// a redirect from being read.
    async fn run(self, session: Session) {
        let Self { control: Control { mut send, mut reader, .. }, sync, clock, redirect, reports, ping_interval } =
            self;
        let pings = async {
            let mut ticks = tokio::time::interval(ping_interval);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    biased;
                    _ = ticks.tick() => {
                        let known = sync.lock().offset(clock.wall(), clock.monotonic());
                        ping(&mut send, &*clock, known).await;
                    }
                    () = reports.due.notified() => {
                        let told = std::mem::take(&mut *reports.waiting.lock());
                        for report in told.into_values() {
                            // A lost connection shows on the reading side.
                            let _ = write_message(&mut send, &Message::Report(report)).await;
                        }
                    }
                }
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
