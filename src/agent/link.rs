//! The agent's one connection to a gateway, shared by all its disks.
//!
//! One task connects, tries the configured gateways in their order, publishes the connection, keeps the label clock
//! corrected, and starts over when the connection ends. Disks wait for a connection and open their streams on it.

use std::sync::Arc;
use std::time::Duration;

use crate::flow::watch;

use super::clock::AgentClock;
use crate::fault::chain_text;
use crate::wire::{Client, Net, TlsFiles};

/// First pause after a failure: a gateway that restarts is back within a second.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest pause: an attempt costs a few packets, and RPO counts from the gateway's return.
const PAUSE_MAX: Duration = Duration::from_secs(5);
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
}

/// A receiver of the connection.
pub type Link = watch::Receiver<LinkState>;

/// Waits for a connection. `None` when the agent stops.
pub async fn connected(link: &mut Link) -> Option<Arc<Client>> {
    link.wait_for(|state| state.client.is_some()).await.ok()?.client.clone()
}

/// Keeps a connection published in `state`. Ends only by being dropped.
pub async fn run(
    gateways: Vec<String>,
    tls: TlsFiles,
    clock: Arc<AgentClock>,
    net: Net,
    state: watch::Sender<LinkState>,
) {
    let mut backoff = Backoff::default();
    let mut reported = String::new();
    loop {
        for gateway in &gateways {
            match Client::connect(gateway, &tls, clock.machine(), &net).await {
                Ok(client) => {
                    let (id, vault) = (client.gateway().gateway.clone(), client.gateway().vault);
                    tracing::info!(%gateway, id, %vault, "connected");
                    reported.clear();
                    hold(client, &clock, &state).await;
                    backoff.reset();
                }
                Err(error) => {
                    let text = chain_text(&error);
                    // An absent gateway is tried many times; one line per reason tells as much.
                    if reported != text {
                        tracing::warn!(%gateway, error = text, "no connection");
                        reported.clone_from(&text);
                    }
                    state.send_modify(|state| state.error = Some(text));
                }
            }
        }
        tokio::time::sleep(backoff.next_pause()).await;
    }
}

/// Publishes a connection until it ends.
async fn hold(client: Client, clock: &AgentClock, state: &watch::Sender<LinkState>) {
    clock.correct(client.clock());
    let client = Arc::new(client);
    state.send_replace(LinkState { client: Some(Arc::clone(&client)), error: None });
    let correct = async {
        loop {
            tokio::time::sleep(CLOCK_INTERVAL).await;
            clock.correct(client.clock());
        }
    };
    let lost = tokio::select! {
        biased;
        lost = client.closed() => lost,
        () = correct => return,
    };
    tracing::warn!(error = %lost, "connection lost");
    state.send_replace(LinkState { client: None, error: Some(lost.to_string()) });
}
