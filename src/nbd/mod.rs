//! The network block device server that the agent's splitter and `export` share, a small client, and raw files as exports.
//!
//! The protocol is NBD with the fixed newstyle handshake: options EXPORT_NAME, ABORT, LIST, INFO, GO, STRUCTURED_REPLY,
//! LIST_META_CONTEXT and SET_META_CONTEXT (`base:allocation`); commands READ, WRITE, FLUSH, TRIM, WRITE_ZEROES and
//! BLOCK_STATUS; STARTTLS where a server was given certificates, and then nothing without it. Else the socket is a unix socket
//! of mode 0600 or an address that the operator chose.
//!
//! ```text
//!            one task per connection                       threads tg-nbd-N, some per export
//!  socket ──► reader ──── requests + claims of their bytes ──► queue ──► Export::read, write, …
//!                                                                            │
//!  socket ◄── outlet ◄── replies, in the order in which they are done ◄──────┘
//! ```
//!
//! Read in this order: [`proto`] (the codec: bytes to values and back), [`handshake`] (what a server answers to options;
//! no I/O), `execute` (one request against one export), `workers` (the threads), `connection` (the reader), `outlet` (replies),
//! [`server`] (listening, limits, drain), [`tls`] (who may connect where that is asked). [`mod@file`] makes an export of a raw image or block device; [`client`] is the other side.
//!
//! Invariants:
//! - A reply of success leaves only after the [`Export`] call returned, so a FLUSH that arrives after a reply finds that write
//!   complete, whichever connection it came by. This is all that FLUSH and MULTI_CONN ask for, provided that
//!   [`Export::flush`] makes every call that returned before it durable.
//! - Requests of one connection run side by side and are answered out of order. Overlapping requests in flight have no order.
//! - Memory is bounded: payload of requests and replies is claimed from a byte budget of the export before it is allocated,
//!   requests in flight are counted per connection, options are bounded in length, number and time.
//! - A request that hangs in one export holds up no other export: each has its own threads, queue and budget.
//! - Whatever a client sends, it harms at most its own connection.
//!
//! Not owned here: what a write means (records, order, durability beyond the export).
//!
//! Shutdown: on drain the server stops accepting and reading, answers what it took, closes, and removes its unix socket.
//! Crash: nothing is kept; clients reconnect.

pub mod client;
mod connection;
pub(crate) mod execute;
pub mod file;
pub mod handshake;
mod outlet;
pub mod proto;
pub mod server;
pub mod tls;
mod workers;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use bytes::Bytes;

pub use client::{Client, ClientError};
pub use file::{FileExport, SourceError};
pub use server::{Server, ServerLimits};
pub use tls::ServerTls;

/// How a range is to be zeroed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ZeroFlags {
    /// Keep the space allocated: do not punch a hole.
    pub no_hole: bool,
    /// Durable before it returns.
    pub fua: bool,
    /// Fail with [`io::ErrorKind::Unsupported`] at once if zeroing is no faster than writing zeroes.
    pub fast: bool,
}

/// One run of a block status answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StatusExtent {
    /// Bytes, never zero.
    pub length: u64,
    /// Not allocated.
    pub hole: bool,
    /// Reads as zeroes.
    pub zero: bool,
}

/// A block device that the server offers. All calls may block; they run on the server's worker threads, several at a time.
///
/// Offsets and lengths are in bytes and were checked against [`Export::size_bytes`]; lengths are not zero.
/// Errors become NBD errors by their kind or OS code; their text goes to the client and to the log.
pub trait Export: Send + Sync + 'static {
    /// The name by which clients ask for it.
    fn name(&self) -> &str;
    /// Its size; fixed as long as the server runs.
    fn size_bytes(&self) -> u64;
    /// Whether writes are refused.
    fn read_only(&self) -> bool;
    /// Whether [`Export::flush`] covers completed writes of every connection, so that clients may open several.
    fn multi_conn(&self) -> bool;
    /// Whether `zero` honours [`ZeroFlags::fast`].
    fn fast_zero(&self) -> bool {
        false
    }
    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// Whatever kept it from filling all of `buf`.
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    /// Writes `data`; with `fua` durable before it returns.
    ///
    /// # Errors
    /// Whatever kept it from writing all; part of the data may then be written.
    fn write(&self, offset: u64, data: Bytes, fua: bool) -> io::Result<()>;
    /// Makes a range read as zeroes.
    ///
    /// # Errors
    /// As `write`; [`io::ErrorKind::Unsupported`] if `flags.fast` cannot be kept, and then nothing was changed.
    fn zero(&self, offset: u64, length: u64, flags: ZeroFlags) -> io::Result<()>;
    /// The client no longer needs the range: it may read as anything afterwards.
    ///
    /// # Errors
    /// As `write`.
    fn trim(&self, offset: u64, length: u64, fua: bool) -> io::Result<()>;
    /// Makes every write, zero and trim that returned before this call durable.
    ///
    /// # Errors
    /// If that cannot be promised.
    fn flush(&self) -> io::Result<()>;
    /// What is allocated and what is zero from `offset` on; may cover less than `length`, but something.
    ///
    /// # Errors
    /// If it cannot be found out.
    fn block_status(&self, offset: u64, length: u64) -> io::Result<Vec<StatusExtent>>;
}

/// Where a server listens or a client connects.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Listen {
    /// A unix socket, created with mode 0600.
    Unix(PathBuf),
    /// A TCP address. Without certificates there is no encryption and no authentication: keep it on loopback or a network of
    /// its own then.
    Tcp(SocketAddr),
}

/// A text that is no [`Listen`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no NBD address: expected unix:/path/to/socket or tcp:127.0.0.1:10809")]
pub struct InvalidListenError {
    /// The refused text.
    pub text: String,
}

impl FromStr for Listen {
    type Err = InvalidListenError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidListenError { text: s.to_owned() };
        if let Some(path) = s.strip_prefix("unix:") {
            // `unix://` would look like a URL and hide that the path is relative.
            let fits = path.len() <= UNIX_PATH_BYTES_MAX && !path.is_empty() && !path.starts_with("//");
            return if fits { Ok(Self::Unix(path.into())) } else { Err(invalid()) };
        }
        s.strip_prefix("tcp:").unwrap_or(s).parse().map(Self::Tcp).map_err(|_| invalid())
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

/// Longest path of a unix socket: the size of `sun_path` less its final zero.
pub const UNIX_PATH_BYTES_MAX: usize = 107;

#[cfg(test)]
mod tests;
