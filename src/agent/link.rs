//! The agent's one connection to a gateway, shared by all its disks.
//!
//! One task connects to the gateway that [`super::placement`] names, publishes the connection, keeps the label clock
//! corrected, and goes on to the next gateway when the connection is lost. Disks open their streams on what is published.
//!
//! A move (a redirect, a return to a better choice) publishes the new connection while the old one lives: each disk
//! leaves the old one when all that it sent there is vaulted, and the last to leave drops it. So a move forks nothing. A
//! gateway has one seat per agent, so nobody is asked at whose gateway a connection lives: asking would end that one.
//!
//! What carries the connection is [`super::carrier`]'s choice: QUIC, and TLS over TCP where that does not get through.
//!
//! How soon a loss is met: `lost_after` and one keep-alive pass until it is noticed, [`ASK_FIRST`] for the gateway that
//! was lost, then the next one is asked. With the defaults for several gateways that is 4 s at the most.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::carrier::{Carrier, Choice};
use super::clock::AgentClock;
use super::placement::{Gateway, Placement, Why};
use crate::fault::chain_text;
use crate::flow::watch;
use crate::telemetry::names;
use crate::wire::{Client, Code, ConnectError, Net, TlsFiles, Transport, Tuning};

/// First pause after a failure: a gateway that restarts is back within a second.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest pause: an attempt costs a few packets, and RPO counts from the gateway's return.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long one of several gateways may take to answer in the first round; doubled in each round after it, for slow lines.
pub const ASK_FIRST: Duration = Duration::from_secs(1);
/// The longest that it may take: the handshake, the hello and the first pings need a few round trips.
const ASK_MAX: Duration = Duration::from_secs(10);
/// How long QUIC alone is given to answer, if a third of the patience is not shorter: some round trips of a long line.
const OTHER_AFTER_MAX: Duration = Duration::from_secs(1);
/// How long a probe of QUIC beside a connection over TCP may take.
const PROBE_PATIENCE: Duration = Duration::from_secs(3);
/// Pause before others are asked again to take over from a gateway that asked to leave.
const LEAVE_PAUSE: Duration = Duration::from_secs(5);
/// How often the clock offset is taken over from the connection, which measures it by its pings.
const CLOCK_INTERVAL: Duration = Duration::from_secs(1);

/// Pauses between attempts: doubling, with jitter, so that a thousand agents do not come back in the same moment.
#[derive(Debug)]
pub struct Backoff {
    pause: Duration,
    max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::up_to(PAUSE_MAX)
    }
}

impl Backoff {
    /// Pauses that grow to `max`.
    #[must_use]
    pub const fn up_to(max: Duration) -> Self {
        Self { pause: PAUSE_MIN, max }
    }

    /// After a success.
    pub const fn reset(&mut self) {
        self.pause = PAUSE_MIN;
    }

    /// The next pause: between half and all of the present step.
    pub fn next_pause(&mut self) -> Duration {
        let step = self.pause.min(self.max);
        self.pause = (self.pause * 2).min(self.max);
        step.mul_f64(0.5 + jitter() / 2.0)
    }
}

/// Of chance, between 0 and 1. Without randomness the middle: jitter is a courtesy, not a need.
fn jitter() -> f64 {
    crate::keys::random::<1>().map_or(0.5, |[byte]| f64::from(byte) / 255.0)
}

/// The state of the connection, for everyone who looks.
#[derive(Clone, Default)]
pub struct LinkState {
    /// The connection, if there is one.
    pub client: Option<Arc<Client>>,
    /// Why there is none.
    pub error: Option<String>,
    /// Where the connection goes, and why there.
    pub at: Option<(String, Why)>,
    /// What carries the connection, and whether it does so because QUIC did not get through.
    pub transport: Option<(Transport, bool)>,
    /// The list of gateways, best for this agent first.
    pub ranked: Vec<String>,
}

/// A receiver of the connection.
pub type Link = watch::Receiver<LinkState>;

/// Waits for a connection. `None` when the agent stops.
pub async fn connected(link: &mut Link) -> Option<Arc<Client>> {
    link.wait_for(|state| state.client.is_some()).await.ok()?.client.clone()
}

/// Waits until another connection than `client` is published.
pub async fn replaced(link: &mut Link, client: &Arc<Client>) {
    wait_for(link, |state| has_other(state, client)).await;
}

/// Waits until no other connection than `client` is published.
pub async fn other_lost(link: &mut Link, client: &Arc<Client>) {
    wait_for(link, |state| !has_other(state, client)).await;
}

fn has_other(state: &LinkState, client: &Arc<Client>) -> bool {
    state.client.as_ref().is_some_and(|other| !Arc::ptr_eq(other, client))
}

async fn wait_for(link: &mut Link, is_so: impl FnMut(&LinkState) -> bool) {
    if link.wait_for(is_so).await.is_err() {
        // The agent stops, and nothing will be published any more.
        std::future::pending::<()>().await;
    }
}

/// Which gateways there are and how to reach them.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    /// The agent's id.
    pub agent: String,
    /// The list.
    pub gateways: Vec<Gateway>,
    /// Silence after which a connection counts as lost.
    pub lost_after: Duration,
    /// How long a better gateway must answer before the agent returns to it.
    pub return_after: Duration,
    /// What may carry the connection.
    pub transport: Choice,
    /// First pause before QUIC is tried again where TCP carries the connection.
    pub quic_retry: Duration,
    /// Certificate files.
    pub tls: TlsFiles,
}

/// Keeps a connection published in `state`. Ends only by being dropped.
pub async fn run(config: LinkConfig, clock: Arc<AgentClock>, net: Net, state: watch::Sender<LinkState>) {
    let placement = Placement::new(&config.agent, &config.gateways, config.return_after);
    state.send_modify(|state| state.ranked = placement.ranked().to_vec());
    let tuning = Tuning { idle_timeout: config.lost_after, ..Tuning::default() };
    let (leaving, reported) = (Vec::new(), String::new());
    let carrier = Carrier::new(config.transport, config.quic_retry);
    let mut walker = Walker { config, clock, net, state, placement, carrier, tuning, leaving, reported };
    let mut next = None;
    loop {
        let (client, address) = match next.take() {
            Some(found) => found,
            None => walker.find().await,
        };
        next = walker.stay(Arc::new(client), &address).await;
    }
}

/// A connection, and where it goes.
type Found = (Client, String);

struct Walker {
    config: LinkConfig,
    clock: Arc<AgentClock>,
    net: Net,
    state: watch::Sender<LinkState>,
    placement: Placement,
    carrier: Carrier,
    tuning: Tuning,
    /// Gateways that were left, and connections to them that some disks may still use.
    leaving: Vec<(String, Weak<Client>)>,
    reported: String,
}

/// Why a gateway did not take this agent.
enum NoAnswer {
    /// The name leads to this gateway, where a connection of this agent lives.
    Known(String),
    /// Anything else, in words.
    Failed(String),
}

impl Walker {
    /// Asks the candidates in turn, round after round, until one answers.
    async fn find(&mut self) -> Found {
        let mut backoff = Backoff::default();
        let mut patience = if self.config.gateways.len() > 1 { ASK_FIRST } else { ASK_MAX };
        loop {
            for address in self.placement.candidates() {
                match self.ask(&address, patience, &[]).await {
                    Ok(client) => return (client, address),
                    Err(NoAnswer::Known(text) | NoAnswer::Failed(text)) => {
                        // An absent gateway is asked many times; one line per reason tells as much.
                        if self.reported != text {
                            tracing::warn!(gateway = address, error = text, "no connection");
                            self.reported.clone_from(&text);
                        }
                        self.state.send_modify(|state| state.error = Some(text));
                    }
                }
            }
            patience = (patience * 2).min(ASK_MAX);
            tokio::time::sleep(backoff.next_pause()).await;
        }
    }

    /// Connects, unless it is one of the gateways `known`.
    async fn ask(&self, address: &str, patience: Duration, known: &[String]) -> Result<Client, NoAnswer> {
        let (tls, clock) = (&self.config.tls, self.clock.machine());
        let (transport, or_other) = self.carrier.wanted();
        let other_after = or_other.then(|| OTHER_AFTER_MAX.min(patience / 3));
        let tuning = Tuning { transport, other_after, ..self.tuning.clone() };
        let connecting = Client::connect_elsewhere(address, known, tls, &tuning, clock, &self.net);
        let asked = tokio::time::timeout(patience, connecting).await;
        let outcome = if matches!(asked, Ok(Ok(_))) { "connected" } else { "failed" };
        metrics::counter!(names::AGENT_ATTEMPTS, "outcome" => outcome).increment(1);
        match asked {
            Ok(Ok(client)) => Ok(client),
            Ok(Err(ConnectError::Known { gateway, .. })) => Err(NoAnswer::Known(gateway)),
            Ok(Err(error)) => Err(NoAnswer::Failed(chain_text(&error))),
            Err(_) => Err(NoAnswer::Failed(format!("gateway {address} does not answer within {patience:?}"))),
        }
    }

    /// As [`Self::ask`], from gateway `here`.
    async fn ask_from(&mut self, here: &str, address: &str) -> Result<Client, String> {
        self.leaving.retain(|(_, client)| client.strong_count() > 0);
        let known: Vec<String> = self.leaving.iter().map(|(id, _)| id.clone()).chain([here.to_owned()]).collect();
        let answer = self.ask(address, ASK_FIRST * 2, &known).await;
        answer.map_err(|none| match none {
            NoAnswer::Failed(text) => text,
            NoAnswer::Known(id) if id == here => {
                self.placement.is_same(address);
                format!("{address} is the gateway {id}, where this agent is")
            }
            NoAnswer::Known(id) => format!("{address} is the gateway {id}, which this agent is leaving"),
        })
    }

    /// Publishes a connection until it ends, or until there is another to go to: that one is returned.
    async fn stay(&mut self, client: Arc<Client>, address: &str) -> Option<Found> {
        self.placement.arrived(address, self.clock.monotonic());
        let why = self.placement.stay().map_or(Why::FirstChoice, |stay| stay.why);
        let (id, vault) = (client.gateway_id().to_owned(), client.gateway().vault);
        let transport = client.transport();
        tracing::info!(gateway = address, id, %vault, why = why.as_str(), %transport, "connected");
        if self.carrier.connected(transport, self.clock.monotonic()) {
            tracing::warn!(
                gateway = address,
                "QUIC does not get through to this gateway: TLS over TCP carries the connection; check that UDP reaches \
                 the same port. QUIC is tried again now and then"
            );
        }
        self.reported.clear();
        self.clock.correct(client.clock());
        self.state.send_modify(|state| {
            state.client = Some(Arc::clone(&client));
            state.at = Some((address.to_owned(), why));
            state.transport = Some((transport, self.carrier.fell_back()));
            state.error = None;
        });
        let clock = Arc::clone(&self.clock);
        let corrected = async {
            loop {
                tokio::time::sleep(CLOCK_INTERVAL).await;
                clock.correct(client.clock());
            }
        };
        let lost = tokio::select! {
            biased;
            lost = client.closed() => lost,
            () = corrected => return None,
            found = self.elsewhere(&client, address) => {
                let Some(found) = found else {
                    self.back_to_quic(&client).await;
                    return None;
                };
                self.leaving.retain(|(_, client)| client.strong_count() > 0);
                self.leaving.push((id, Arc::downgrade(&client)));
                return Some(found);
            }
        };
        tracing::warn!(error = %lost, "connection lost");
        if self.carrier.lost(transport, lost.code == Code::Timeout, self.clock.monotonic()) {
            tracing::warn!("connections over QUIC fall silent soon after they begin: TLS over TCP is tried first");
        }
        self.placement.lost();
        self.state.send_modify(|state| {
            state.client = None;
            state.at = None;
            state.transport = None;
            state.error = Some(lost.to_string());
        });
        None
    }

    /// Ends a connection over TCP, so that the next one goes over QUIC. The disks carry on from where the gateway stands.
    async fn back_to_quic(&mut self, client: &Client) {
        tracing::info!("QUIC gets through again: the connection returns to it");
        client.end();
        self.placement.lost();
        self.state.send_modify(|state| {
            state.client = None;
            state.at = None;
            state.transport = None;
        });
        client.closed().await;
    }

    /// Tries QUIC beside a connection over TCP. Whether to return to it.
    async fn probe_quic(&mut self, address: &str) -> bool {
        let tuning = Tuning { transport: Transport::Quic, other_after: None, ..self.tuning.clone() };
        let probe = Client::probe(address, &self.config.tls, &tuning, self.clock.machine(), &self.net);
        let answered = matches!(tokio::time::timeout(PROBE_PATIENCE, probe).await, Ok(Ok(())));
        tracing::debug!(gateway = address, answered, "QUIC was tried");
        self.carrier.probed(answered, self.clock.monotonic())
    }

    /// Waits until the agent should go elsewhere, and has a connection there; `None` if it should come again over QUIC.
    async fn elsewhere(&mut self, client: &Client, address: &str) -> Option<Found> {
        let here = client.gateway_id();
        let mut redirects = client.redirects();
        let mut leave_at: Option<Duration> = None;
        let mut stopping = false;
        loop {
            let now = self.clock.monotonic();
            let leave = tokio::time::sleep(leave_at.unwrap_or_default().saturating_sub(now));
            let probe_at = self.placement.probe_at().filter(|_| leave_at.is_none());
            let probe = tokio::time::sleep(probe_at.unwrap_or_default().saturating_sub(now));
            let quic_at = self.carrier.probe_at();
            let quic = tokio::time::sleep(quic_at.unwrap_or_default().saturating_sub(now));
            tokio::select! {
                biased;
                hinted = redirected(&mut redirects) => {
                    let at = self.placement.redirected(hinted, self.clock.monotonic());
                    leave_at = Some(leave_at.map_or(at, |before| before.min(at)));
                }
                // That took until a disk was told so: a redirect does not say why.
                () = client.stopping(), if !stopping => {
                    stopping = true;
                    self.placement.stopping();
                    leave_at = Some(self.clock.monotonic());
                }
                () = leave, if leave_at.is_some() => {
                    if let Some(found) = self.leave(here).await {
                        return Some(found);
                    }
                    leave_at = Some(self.clock.monotonic() + LEAVE_PAUSE);
                }
                () = probe, if probe_at.is_some() => if let Some(found) = self.probe(here).await {
                    return Some(found);
                },
                () = quic, if quic_at.is_some() => if self.probe_quic(address).await {
                    return None;
                },
            }
        }
    }

    /// The first of the candidates that answers.
    async fn leave(&mut self, here: &str) -> Option<Found> {
        for address in self.placement.successors(self.clock.monotonic()) {
            match self.ask_from(here, &address).await {
                Ok(client) => return Some((client, address)),
                Err(error) => tracing::info!(gateway = address, error, "cannot take over"),
            }
        }
        None
    }

    /// Looks at better choices. Returns the first that has proven itself.
    async fn probe(&mut self, here: &str) -> Option<Found> {
        for address in self.placement.to_probe(self.clock.monotonic()) {
            let answer = self.ask_from(here, &address).await;
            let go = self.placement.probed(&address, answer.is_ok(), self.clock.monotonic(), jitter());
            match answer {
                Ok(client) if go => {
                    tracing::info!(gateway = address, "a better choice is back");
                    return Some((client, address));
                }
                Ok(client) => client.close().await,
                Err(_) => {}
            }
        }
        None
    }
}

async fn redirected(redirects: &mut watch::Receiver<Option<Vec<String>>>) -> Vec<String> {
    loop {
        if redirects.changed().await.is_err() {
            // The control stream is over, and the connection ends.
            std::future::pending::<()>().await;
        }
        if let Some(hinted) = redirects.borrow_and_update().clone() {
            return hinted;
        }
    }
}
