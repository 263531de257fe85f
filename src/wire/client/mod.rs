//! The agent's side of the wire: connect, keep the clock offset, open disks.

mod clock_sync;
mod disk;
mod error;

pub use clock_sync::ClockOffset;
pub use disk::{DiskEvent, DiskEvents, DiskSender, OpenedInfo, SendError, WireRecord};
pub use error::{ConnectError, ConnectionLost, OpenDiskError};

use std::sync::Arc;

use super::identity::AgentIdentity;
use super::messages::{HelloOk, OpenDisk};
use super::tls::TlsFiles;
use crate::flow::Clock;

/// A connection to a gateway. Dropping it closes the connection.
pub struct Client {
    identity: AgentIdentity,
    gateway: HelloOk,
}

impl Client {
    /// Connects to `addr` (`host:port`), checks the gateway's certificate, says hello and measures the clock offset.
    ///
    /// # Errors
    /// [`ConnectError`] names what was wrong on which side, and the next step.
    pub async fn connect(addr: &str, tls: &TlsFiles, clock: Arc<dyn Clock>) -> Result<Self, ConnectError> {
        let _ = (tls, clock);
        Err(ConnectError::Unreachable { addr: addr.to_owned(), text: "under construction".into() })
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

    /// The gateway's clock against this machine's, at this moment.
    #[must_use]
    pub fn clock(&self) -> ClockOffset {
        ClockOffset { offset_micros: 0, uncertainty_micros: u32::MAX }
    }

    /// Opens a disk stream.
    ///
    /// # Errors
    /// [`OpenDiskError`] says whether to fork, to stop, or to come back.
    pub async fn open_disk(&self, open: OpenDisk) -> Result<(DiskSender, DiskEvents, OpenedInfo), OpenDiskError> {
        let _ = open;
        Err(OpenDiskError::MustFork { text: "under construction".into() })
    }

    /// Waits until the connection has ended and says how.
    pub async fn closed(&self) -> ConnectionLost {
        std::future::pending().await
    }
}
