//! What can go wrong on the agent's side of the wire.

use crate::fault::{Classify, Fault};
use crate::types::Epoch;
use crate::wire::code::Code;
use crate::wire::endpoint::EndpointError;
use crate::wire::tls::TlsError;

/// A connection that ended, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("connection to gateway {gateway} ended ({code}): {text}")]
pub struct ConnectionLost {
    /// The gateway's address.
    pub gateway: String,
    /// [`Code::Done`] if this side closed, [`Code::Timeout`] if the other side fell silent or the network broke, else
    /// what the gateway said.
    pub code: Code,
    /// In words.
    pub text: String,
}

impl Classify for ConnectionLost {
    fn fault(&self) -> Fault {
        self.code.fault()
    }
}

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The certificate files are not usable.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No UDP socket.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The address is no `host:port`, or its name has no address.
    #[error("gateway address {addr:?} cannot be used: {text}")]
    Address {
        /// The address as configured.
        addr: String,
        /// What is wrong with it.
        text: String,
    },
    /// Nobody answered.
    #[error("gateway {addr} does not answer: {text}; check that it runs and that {needs} reaches it")]
    Unreachable {
        /// The address as configured.
        addr: String,
        /// What the network must let through: UDP or TCP.
        needs: &'static str,
        /// In words.
        text: String,
    },
    /// This side refused the gateway's certificate.
    #[error("certificate of gateway {addr} is refused: {text}")]
    GatewayCertificate {
        /// The address as configured.
        addr: String,
        /// Which certificate, why, and what to do.
        text: String,
    },
    /// The gateway refused this agent's certificate.
    #[error("gateway {addr} refused this agent's certificate: {text}")]
    AgentCertificate {
        /// The address as configured.
        addr: String,
        /// Which certificate and file, why, and what to do.
        text: String,
    },
    /// The gateway refused the connection for another reason.
    #[error("gateway {addr} refused the connection ({code}): {text}")]
    Refused {
        /// The address as configured.
        addr: String,
        /// The reason as a number.
        code: Code,
        /// The gateway's words.
        text: String,
    },
    /// It is a gateway that the caller did not want; nothing was said to it.
    #[error("gateway {addr} is {gateway}, which is connected already")]
    Known {
        /// The address as configured.
        addr: String,
        /// The gateway's id.
        gateway: String,
    },
    /// The gateway does not keep to the protocol.
    #[error("gateway {addr} does not keep to the protocol: {text}")]
    Protocol {
        /// The address as configured.
        addr: String,
        /// What it did.
        text: String,
    },
}

impl Classify for ConnectError {
    fn fault(&self) -> Fault {
        match self {
            Self::Tls(error) => error.fault(),
            Self::Endpoint(error) => error.fault(),
            Self::Unreachable { .. } | Self::Address { .. } | Self::Known { .. } => Fault::Retry,
            Self::GatewayCertificate { .. } | Self::AgentCertificate { .. } | Self::Protocol { .. } => Fault::Reject,
            Self::Refused { code, .. } => code.fault(),
        }
    }
}

/// Why a disk stream did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenDiskError {
    /// The gateway cannot continue the epoch: ask again with [`crate::wire::Want::Fork`].
    #[error("the gateway cannot continue this epoch: {text}")]
    MustFork {
        /// The gateway's words.
        text: String,
    },
    /// Another epoch took over: this agent's state is old, or another agent carries the disk.
    #[error("fenced: epoch {newest} of this disk took over")]
    Fenced {
        /// The newest epoch that the gateway knows.
        newest: Epoch,
    },
    /// Refused for another reason.
    #[error("the gateway refused the disk ({code}): {text}")]
    Refused {
        /// The reason as a number.
        code: Code,
        /// The gateway's words.
        text: String,
    },
    /// The connection is gone.
    #[error(transparent)]
    Connection(#[from] ConnectionLost),
}

impl Classify for OpenDiskError {
    fn fault(&self) -> Fault {
        match self {
            Self::MustFork { .. } | Self::Fenced { .. } => Fault::Reject,
            Self::Refused { code, .. } => code.fault(),
            Self::Connection(lost) => lost.fault(),
        }
    }
}
