//! The agent's one connection to a gateway, shared by all its disks.
//!
//! One task connects to the gateway that [`super::placement`] names, publishes the connection, keeps the label clock
//! corrected, and goes on to the next gateway when the connection is lost. Disks open their streams on what is published.
//!
//! A move (a redirect, a return to a better choice) publishes the new connection while the old one lives: each disk
//! leaves the old one when all that it sent there is vaulted, and the last to leave drops it. So a move forks nothing.
//!
//! How soon a loss is met: `lost_after` and one keep-alive pass until it is noticed, [`ASK_FIRST`] for the gateway that
//! was lost, then the next one is asked. With the defaults for several gateways that is 4 s at the most.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use super::clock::AgentClock;
use super::placement::{Gateway, Placement, Why};
use crate::fault::chain_text;
use crate::flow::watch;
use crate::wire::{Client, Net, TlsFiles, Tuning};

/// First pause after a failure: a gateway that restarts is back within a second.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest pause: an attempt costs a few packets, and RPO counts from the gateway's return.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long one of several gateways may take to answer in the first round; doubled in each round after it, for slow lines.
pub const ASK_FIRST: Duration = Duration::from_secs(1);
/// The longest that it may take: the handshake, the hello and the first pings need a few round trips.
const ASK_MAX: Duration = Duration::from_secs(10);
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
        // Without randomness the pause is the middle: jitter is a courtesy, not a need.
        let share = crate::keys::random::<1>().map_or(0.5, |[byte]| f64::from(byte) / 255.0);
        step.mul_f64(0.5 + share / 2.0)
    }
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
    let other = |state: &LinkState| state.client.as_ref().is_some_and(|other| !Arc::ptr_eq(other, client));
    if link.wait_for(other).await.is_err() {
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
    /// Certificate files.
    pub tls: TlsFiles,
}

/// Keeps a connection published in `state`. Ends only by being dropped.
pub async fn run(config: LinkConfig, clock: Arc<AgentClock>, net: Net, state: watch::Sender<LinkState>) {
    let placement = Placement::new(&config.agent, &config.gateways, config.return_after);
    state.send_modify(|state| state.ranked = placement.ranked().to_vec());
    let tuning = Tuning { idle_timeout: config.lost_after, ..Tuning::default() };
    let mut walker = Walker { config, clock, net, state, placement, tuning, reported: String::new() };
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
    tuning: Tuning,
    reported: String,
}

impl Walker {
    /// Asks the candidates in turn, round after round, until one answers.
    async fn find(&mut self) -> Found {
        let mut backoff = Backoff::default();
        let mut patience = if self.config.gateways.len() > 1 { ASK_FIRST } else { ASK_MAX };
        loop {
            for address in self.placement.candidates() {
                match self.ask(&address, patience).await {
                    Ok(client) => return (client, address),
                    Err(text) => {
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

    async fn ask(&self, address: &str, patience: Duration) -> Result<Client, String> {
        let connecting = Client::connect_with(address, &self.config.tls, &self.tuning, self.clock.machine(), &self.net);
        match tokio::time::timeout(patience, connecting).await {
            Ok(Ok(client)) => Ok(client),
            Ok(Err(error)) => Err(chain_text(&error)),
            Err(_) => Err(format!("gateway {address} does not answer within {patience:?}")),
        }
    }

    /// Publishes a connection until it ends, or until there is another to go to: that one is returned.
    async fn stay(&mut self, client: Arc<Client>, address: &str) -> Option<Found> {
        self.placement.arrived(address, self.clock.monotonic());
        let why = self.placement.stay().map_or(Why::FirstChoice, |stay| stay.why);
        let (id, vault) = (client.gateway().gateway.clone(), client.gateway().vault);
        tracing::info!(gateway = address, id, %vault, why = why.as_str(), "connected");
        self.reported.clear();
        self.clock.correct(client.clock());
        self.state.send_modify(|state| {
            state.client = Some(Arc::clone(&client));
            state.at = Some((address.to_owned(), why));
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
            found = self.elsewhere(&client) => return Some(found),
        };
        tracing::warn!(error = %lost, "connection lost");
        self.placement.lost();
        self.state.send_modify(|state| {
            state.client = None;
            state.at = None;
            state.error = Some(lost.to_string());
        });
        None
    }

    /// Waits until the agent should go elsewhere, and has a connection there.
    async fn elsewhere(&mut self, client: &Client) -> Found {
        let mut redirects = client.redirects();
        let mut leave_at: Option<Duration> = None;
        let mut probes = tokio::time::interval(self.placement.probe_every());
        probes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let now = self.clock.monotonic();
            let leave = tokio::time::sleep(leave_at.unwrap_or_default().saturating_sub(now));
            tokio::select! {
                biased;
                hinted = redirected(&mut redirects) => {
                    let at = self.placement.redirected(hinted, self.clock.monotonic());
                    leave_at = Some(leave_at.map_or(at, |before| before.min(at)));
                }
                () = leave, if leave_at.is_some() => {
                    if let Some(found) = self.leave().await {
                        return found;
                    }
                    leave_at = Some(self.clock.monotonic() + LEAVE_PAUSE);
                }
                _ = probes.tick(), if leave_at.is_none() => if let Some(found) = self.probe().await {
                    return found;
                },
            }
        }
    }

    /// The first of the candidates that answers.
    async fn leave(&mut self) -> Option<Found> {
        for address in self.placement.candidates() {
            match self.ask(&address, ASK_FIRST * 2).await {
                Ok(client) => return Some((client, address)),
                Err(error) => tracing::info!(gateway = address, error, "cannot take over"),
            }
        }
        None
    }

    /// Looks at better choices. Returns the first that has proven itself.
    async fn probe(&mut self) -> Option<Found> {
        for address in self.placement.better() {
            let answer = self.ask(&address, ASK_FIRST * 2).await;
            let go = self.placement.probed(&address, answer.is_ok(), self.clock.monotonic());
            match answer {
                Ok(client) if go => {
                    tracing::info!(gateway = address, "a better choice is back");
                    return Some((client, address));
                }
                Ok(client) => {
                    client.close().await;
                    // What is worse than one that answers need not be asked.
                    return None;
                }
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
