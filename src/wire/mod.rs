//! Stage 2: the way of records from agents to a gateway, and of acks back.

pub mod client;
mod code;
pub mod endpoint;
pub mod frame;
mod host;
pub mod identity;
pub mod inbound;
pub mod messages;
pub mod pki;
pub mod server;
mod stream;
pub mod tls;

pub use client::{Client, ClockOffset, ConnectError, ConnectionLost, OpenDiskError};
pub use client::{DiskEvent, DiskEvents, DiskSender, OpenedInfo, SendError, WireRecord};
pub use code::Code;
pub use endpoint::{EndpointError, Listener, Tuning};
pub use host::{DiskRefusal, HelloInfo, Host, OpenedDisk, RecordSink};
pub use identity::{AgentIdentity, GatewayIdentity, Identity};
pub use messages::{ForkReason, OpenDisk, Want};
pub use server::{ServerLimits, serve};
pub use tls::{TlsError, TlsFiles};

use crate::limits;

/// The protocol versions that this side speaks: lowest and highest.
pub const PROTOCOL_MIN: u16 = 1;
/// See [`PROTOCOL_MIN`].
pub const PROTOCOL_MAX: u16 = 1;
/// The name by which TLS picks this protocol.
pub const ALPN: &[u8] = b"tidegate/1";
/// Smallest credit window that is not zero: two of the largest records, so that a quarter of it can wait for the next
/// grant while a whole record still goes through.
pub const CREDIT_WINDOW_BYTES_MIN: u64 = 2 * limits::RECORD_BYTES_MAX as u64;
/// Name and version that each side tells the other, for its log.
pub(crate) const SOFTWARE: &str = concat!("tidegate ", env!("CARGO_PKG_VERSION"));

#[cfg(test)]
mod tests;
