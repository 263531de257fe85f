//! The gateway's side of the wire: accept, check, hand records to the host, acknowledge.

use std::sync::Arc;
use std::time::Duration;

use super::endpoint::Listener;
use super::host::Host;
use crate::flow::{Clock, Drain};
use crate::limits;

/// Bounds of a server; the defaults have their reasons beside them.
#[derive(Debug, Clone)]
pub struct ServerLimits {
    /// Agents connected at the same time. A connection costs some 100 KiB before it carries anything.
    pub connections_max: usize,
    /// Handshakes at the same time; above it new ones must prove their address first (stateless retry), because a
    /// handshake costs signatures and its sender's address may be forged.
    pub handshakes_max: usize,
    /// Disk streams of one connection.
    pub disks_max: usize,
    /// For TLS, hello, and the first frame of a disk stream, each: an honest agent needs a few round trips.
    pub step_timeout: Duration,
    /// How long a drain goes on acknowledging what was received before connections are closed.
    pub drain_grace: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            connections_max: 1024,
            handshakes_max: 64,
            disks_max: limits::DISKS_PER_AGENT_MAX,
            step_timeout: Duration::from_secs(10),
            drain_grace: Duration::from_secs(10),
        }
    }
}

/// Serves agents until `drain` starts and then until everything received is journaled or the grace is over. Returns
/// when every connection is closed.
pub async fn serve<H: Host>(
    listener: Listener,
    host: Arc<H>,
    limits: ServerLimits,
    clock: Arc<dyn Clock>,
    mut drain: Drain,
) {
    let _ = (listener, host, limits, clock);
    drain.wait().await;
}
