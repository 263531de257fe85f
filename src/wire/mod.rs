//! Stage 2: the way of records from agents to a gateway, and of acks back.
//!
//! ```text
//!  agent                                   QUIC, mutual TLS 1.3                    gateway
//!  Client ── control stream ────────────────────────────────────────────────────► session
//!    │        hello, pings, redirect                                                 │
//!    └─ DiskSender / DiskEvents ── one stream per disk ─────────────────────────► disk task ─► RecordSink
//!         records ──►                       credit, acks, fenced ◄──                 Inbound, Grants
//! ```
//!
//! A record travels as the bytes in which the agent made it; the wire adds a frame header with a CRC-32C and takes it
//! off again. The pure core is [`frame`] (bytes to checked frames), [`messages`] (frames to messages), [`inbound`] (the
//! rules of a disk stream) and the clock offset; `stream`, [`client`], [`server`] and [`endpoint`] drive it over QUIC.
//! `docs/PROTOCOL.md` is the page for those who write the other side.
//!
//! Invariants:
//!
//! - Nobody is heard before TLS has verified a certificate of the vault's authority, and nothing is sent to a side
//!   whose certificate has the wrong role or vault: identities come from certificates, never from a frame.
//! - A sink sees the records of one stream in dense order of seq, of one epoch, in one chain, inside the disk, each
//!   one whole and with its checksum verified. What breaks a rule ends its stream with a code, not the others.
//! - The bytes that an agent may send on a stream never exceed what was granted; what is granted is never taken back.
//!   So the memory that a disk can take here is at most its credit window, and the rest is the agent's.
//! - An ack says what the watermarks of the host say at that moment, and `journaled ≥ vaulted` in every ack. The wire
//!   never computes an ack from what it has sent or received.
//! - Every disk has a stream, a window and a task of its own, and the connection's window is the sum of theirs: a disk
//!   that waits holds up no other.
//! - Every length is checked before anything is allocated for it, every queue is a state (watermark, latest value).
//!
//! Not owned here: which epoch a disk is in and whether it may resume (the [`Host`]), durability (the journal), when
//! to reconnect and what to send again (the agent), the digest of a record (checked where a record is read to be used;
//! here the frame's CRC-32C covers the same bytes).
//!
//! Shutdown: the agent drops or closes its [`Client`]. The gateway starts its drain: connections are refused, reading
//! stops between two records, acks go on until everything taken is journaled or the grace is over, then every
//! connection is closed with [`Code::Draining`].
//!
//! Crash: nothing here is durable. A side that vanishes is noticed by the idle timeout, as one event; the agent then
//! opens the disk again and learns from [`OpenedInfo`] where to go on. Records in between are sent twice, which the
//! seq makes harmless.

mod apart;
pub mod client;
mod code;
pub mod endpoint;
pub mod frame;
mod host;
pub mod identity;
pub mod inbound;
pub mod messages;
pub mod net;
pub mod pki;
pub mod server;
mod stream;
pub mod tls;
mod transport;

pub use client::{Client, ClockOffset, ConnectError, ConnectionLost, OpenDiskError};
pub use client::{DiskEvent, DiskEvents, DiskSender, OpenedInfo, SendError, WireRecord};
pub use code::Code;
pub use endpoint::{CheckedFiles, Credentials, EndpointError, Listener, Tuning};
pub use host::{DiskRefusal, HelloInfo, Host, OpenedDisk, RecordSink};
pub use identity::{AgentIdentity, GatewayIdentity, Identity};
pub use messages::{Condition, ForkReason, OpenDisk, REDIRECT_GATEWAYS_MAX, Report, Want};
pub use net::Net;
pub use server::{ServerLimits, serve};
pub use tls::{TlsError, TlsFiles};
pub use transport::{NoTransport, PathFigures, Transport};

use std::time::Duration;

/// The protocol versions that this side speaks: lowest and highest.
pub const PROTOCOL_MIN: u16 = 1;
/// See [`PROTOCOL_MIN`].
pub const PROTOCOL_MAX: u16 = 2;
/// From this version on a gateway takes barriers that their agent signed, and keeps the agent's certificate in the vault.
pub const PROTOCOL_SIGNED: u16 = 2;
/// The name by which TLS picks this protocol.
pub const ALPN: &[u8] = b"tidegate/1";
/// Credit that every open disk has at any time, unless it is stopped: a few small records or one of 16 KiB with its head and
/// table, which the pages of common databases are, and little enough for 256 disks of an agent. All else is granted only when there is
/// memory for it.
pub const CREDIT_BASE_BYTES: u64 = (16 << 10) + (1 << 10);
/// So long after an agent has sent less than the base on a stream, its credit there is no more than the base: what it does
/// not use is for others.
pub const CREDIT_LAPSE: Duration = Duration::from_millis(500);
/// Name and version that each side tells the other, for its log.
pub(crate) const SOFTWARE: &str = concat!("tidegate ", env!("CARGO_PKG_VERSION"));

#[cfg(test)]
mod tests;
