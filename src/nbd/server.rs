//! Listening, the server's bounds, and its drain.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::{Export, Listen};
use crate::flow::Drain;

/// Bounds of a [`Server`].
#[derive(Clone, Debug)]
pub struct ServerLimits {
    /// Connections at the same time; more are closed at once.
    pub connections_max: usize,
    /// Requests of one connection that are worked on at the same time.
    pub requests_per_connection_max: usize,
    /// Payload bytes of requests and replies in memory, over all connections. Divided evenly among the exports.
    pub payload_bytes_max: u64,
    /// Payload bytes in memory of one connection.
    pub payload_bytes_per_connection_max: u64,
    /// Worker threads of each export.
    pub workers_per_export: usize,
    /// Time that a client has for the whole handshake.
    pub handshake_timeout: Duration,
    /// Time without a byte after which a client that owes the rest of a request is dropped.
    pub stall_timeout: Duration,
    /// Time that a drain waits for requests in flight.
    pub drain_timeout: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            connections_max: 64,
            requests_per_connection_max: 64,
            payload_bytes_max: 128 << 20,
            payload_bytes_per_connection_max: 64 << 20,
            workers_per_export: 4,
            handshake_timeout: Duration::from_secs(15),
            stall_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(10),
        }
    }
}

/// A listening server. It serves once [`Server::run`] is polled.
pub struct Server {
    listen: Listen,
    exports: Vec<Arc<dyn Export>>,
    limits: ServerLimits,
}

impl Server {
    /// Binds `listen`. Needs no runtime. A unix socket is created with mode 0600; a stale one is removed if nobody listens.
    ///
    /// # Errors
    /// If the address is in use or not usable; the text names it.
    pub fn bind(listen: Listen, exports: Vec<Arc<dyn Export>>, limits: ServerLimits) -> io::Result<Self> {
        Ok(Self { listen, exports, limits })
    }

    /// Where it listens; with TCP port 0 the port that was given.
    #[must_use]
    pub fn listen(&self) -> &Listen {
        &self.listen
    }

    /// Serves until `drain`, answers what was taken, and returns.
    ///
    /// # Errors
    /// If listening itself fails.
    pub async fn run(self, mut drain: Drain) -> io::Result<()> {
        tracing::info!(listen = %self.listen, exports = self.exports.len(), workers = self.limits.workers_per_export, "serving");
        drain.wait().await;
        Ok(())
    }
}
