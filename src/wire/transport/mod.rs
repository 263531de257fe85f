//! The seam between the protocol and what carries it.
//!
//! The protocol needs little: a session between two proven identities, ordered byte streams inside it that hold up each
//! other not at all, and an end of the session with a code and a text. Everything above this module is written against
//! [`Session`], [`SendHalf`] and [`RecvHalf`] and is one code for every transport.

pub(super) mod congestion;
mod quic;
pub(super) mod tcp;

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use rustls::pki_types::CertificateDer;

use super::code::Code;
use super::identity::{CertificateFacts, Identity, IdentityError};
use super::messages::Refused;

/// Bytes of a large datagram, which is one chunk.
const DATAGRAM_BYTES: usize = 8 << 10;
/// Chunks taken from a stream at once: a burst of datagrams as the kernel hands them over.
const CHUNKS_MAX: usize = 32;

/// What carries a session.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// QUIC over UDP: one connection for all streams.
    #[default]
    Quic,
    /// TLS over TCP, for networks that block or slow down UDP: one connection per stream.
    Tcp,
}

impl Transport {
    /// Every transport.
    pub const ALL: [Self; 2] = [Self::Quic, Self::Tcp];

    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Quic => Self::Tcp,
            Self::Tcp => Self::Quic,
        }
    }

    /// The word used in configuration, logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Tcp => "tcp",
        }
    }
}

/// A word that names no transport.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no transport: quic or tcp")]
pub struct NoTransport(String);

impl std::str::FromStr for Transport {
    type Err = NoTransport;
    fn from_str(text: &str) -> Result<Self, NoTransport> {
        Self::ALL.into_iter().find(|one| one.as_str() == text).ok_or_else(|| NoTransport(text.to_owned()))
    }
}

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a session ended, or how an attempt to begin one failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum SessionEnd {
    /// This side closed it.
    #[error("closed by this side")]
    Local,
    /// The other side closed it, in the protocol's own words.
    #[error("closed by the other side ({code}): {text}")]
    Closed {
        /// Its code.
        code: Code,
        /// Its words.
        text: String,
    },
    /// The other side has no room for another connection.
    #[error("the gateway takes no more connections")]
    Busy,
    /// This side's TLS refused the other side.
    #[error("TLS refused the other side: {0}")]
    Refused(String),
    /// The other side's TLS refused this one, by this alert.
    #[error("TLS alert {0} from the other side")]
    Alert(u8),
    /// Nobody answered, or the network broke.
    #[error("{0}")]
    Lost(String),
}

/// Why nothing more can be read from a stream or written to it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum StreamEnd {
    /// The session is over, and the stream with it.
    #[error(transparent)]
    Session(#[from] SessionEnd),
    /// Only this stream is over, before its orderly end.
    #[error("{0}")]
    Stream(String),
}

/// One session with the other side. A clone is another handle to the same session; the last handle's drop closes it.
#[derive(Clone)]
pub(super) enum Session {
    /// A QUIC connection; for the side that connected, with the endpoint that is its alone.
    Quic(congestion::Connection, Option<quinn::Endpoint>),
    /// Connections over TCP.
    Tcp(tcp::Session),
}

impl Session {
    /// Opens a stream, of which the other side learns with its first bytes.
    pub(super) async fn open_stream(&self) -> Result<(SendHalf, RecvHalf), SessionEnd> {
        match self {
            Self::Quic(connection, _) => {
                let (send, recv) = connection.open_bi().await?;
                Ok((SendHalf::Quic(send), RecvHalf::Quic(recv)))
            }
            Self::Tcp(session) => {
                let (send, recv) = session.open_stream().await?;
                Ok((SendHalf::Tcp(send), RecvHalf::Tcp(recv)))
            }
        }
    }

    /// The next stream that the other side opened. Nothing is lost if the future is dropped.
    pub(super) async fn accept_stream(&self) -> Result<(SendHalf, RecvHalf), SessionEnd> {
        match self {
            Self::Quic(connection, _) => {
                let (send, recv) = connection.accept_bi().await?;
                Ok((SendHalf::Quic(send), RecvHalf::Quic(recv)))
            }
            Self::Tcp(session) => {
                let (send, recv) = session.accept_stream().await?;
                Ok((SendHalf::Tcp(send), RecvHalf::Tcp(recv)))
            }
        }
    }

    /// Gives a stranger's session what a known agent needs: so many streams, and the window of data, of which over TCP each
    /// stream has its part.
    pub(super) fn widen(&self, streams_max: u32, window_bytes: u32) {
        match self {
            Self::Quic(connection, _) => {
                connection.set_max_concurrent_bi_streams(streams_max.into());
                connection.set_receive_window(window_bytes.into());
            }
            Self::Tcp(session) => session.widen(streams_max, window_bytes),
        }
    }

    /// Ends the session and every stream of it, at once.
    pub(super) fn close(&self, code: Code, text: &str) {
        match self {
            Self::Quic(connection, _) => connection.close(code, text),
            Self::Tcp(session) => session.close(code, text),
        }
    }

    /// Waits until the session has ended and says how.
    pub(super) async fn closed(&self) -> SessionEnd {
        match self {
            Self::Quic(connection, _) => connection.closed().await.into(),
            Self::Tcp(session) => session.closed().await,
        }
    }

    /// Waits until the close has gone out; a gateway's QUIC endpoint sends it in its own time.
    pub(super) async fn close_sent(&self) {
        match self {
            Self::Quic(_, Some(endpoint)) => endpoint.wait_idle().await,
            Self::Quic(_, None) => {}
            Self::Tcp(session) => session.close_sent().await,
        }
    }

    /// What the other side's verified certificate says.
    pub(super) fn peer_identity(&self) -> Result<Identity, IdentityError> {
        identity_of(&self.peer_certificates())
    }

    /// The other side's verified certificate, and those that lead from it to the authority.
    pub(super) fn peer_certificates(&self) -> Vec<CertificateDer<'static>> {
        match self {
            Self::Quic(connection, _) => quic::peer_certificates(connection),
            Self::Tcp(session) => session.peer_certificates(),
        }
    }

    /// The largest UDP payload that the path has proven to carry, where it matters; discovery goes on for a while.
    pub(super) fn path_mtu_bytes(&self) -> Option<u16> {
        match self {
            Self::Quic(connection, _) => Some(connection.stats().path.current_mtu),
            Self::Tcp(_) => None,
        }
    }

    /// How its path fares, where a transport tells.
    pub(super) fn path_figures(&self) -> Option<PathFigures> {
        let Self::Quic(connection, _) = self else { return None };
        let path = connection.stats().path;
        Some(PathFigures {
            rtt: path.rtt,
            window_bytes: path.cwnd,
            sent: path.sent_packets,
            lost: path.lost_packets,
            congestion_events: path.congestion_events,
        })
    }

    /// What carries it.
    pub(super) const fn transport(&self) -> Transport {
        match self {
            Self::Quic(..) => Transport::Quic,
            Self::Tcp(_) => Transport::Tcp,
        }
    }
}

/// What a connection over QUIC says of its path. The counts are since it began.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PathFigures {
    /// The round trip time, smoothed.
    pub rtt: Duration,
    /// The congestion window.
    pub window_bytes: u64,
    /// Packets sent.
    pub sent: u64,
    /// Packets lost.
    pub lost: u64,
    /// Times at which it met congestion.
    pub congestion_events: u64,
}

/// What a verified chain of certificates says.
pub(super) fn identity_of(certificates: &[CertificateDer<'_>]) -> Result<Identity, IdentityError> {
    CertificateFacts::read(certificates.first().ok_or(IdentityError::Certificate)?)?.identity
}

/// The sending half of a stream. Dropping it ends the stream in order.
pub(super) enum SendHalf {
    /// Of a QUIC stream.
    Quic(quinn::SendStream),
    /// Of a connection over TCP.
    Tcp(tcp::SendHalf),
}

impl SendHalf {
    /// Writes these bytes, as far as flow control lets them; dropped half-way, an unknown part of them has been written.
    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<(), StreamEnd> {
        match self {
            Self::Quic(send) => Ok(send.write_chunk(bytes).await?),
            Self::Tcp(send) => send.write_all(&mut [bytes]).await,
        }
    }

    /// Writes as much of these bytes as flow control lets through at once, when it lets any, and takes it off them. Nothing
    /// is lost if the future is dropped.
    pub(super) async fn write_some(&mut self, bytes: &mut Bytes) -> Result<(), StreamEnd> {
        match self {
            Self::Quic(send) => bytes.advance(send.write(bytes).await?),
            Self::Tcp(send) => return send.write_some(bytes).await,
        }
        Ok(())
    }

    /// Writes all these pieces, as [`SendHalf::write`] does.
    pub(super) async fn write_all(&mut self, pieces: &mut [Bytes]) -> Result<(), StreamEnd> {
        match self {
            Self::Quic(send) => Ok(send.write_all_chunks(pieces).await?),
            Self::Tcp(send) => send.write_all(pieces).await,
        }
    }

    /// Says that nothing more comes.
    pub(super) fn finish(&mut self) -> Result<(), StreamEnd> {
        match self {
            Self::Quic(send) => send.finish().map_err(|error| StreamEnd::Stream(error.to_string())),
            Self::Tcp(send) => send.finish(),
        }
    }

    /// Cuts the stream off, so that it does not look like an orderly end.
    pub(super) fn reset(&mut self, code: Code) {
        match self {
            // A stream that is over already needs no reset.
            Self::Quic(send) => drop(send.reset(code.var_int())),
            Self::Tcp(send) => send.reset(),
        }
    }

    /// Waits until the other side wants nothing more of this stream, or has all of it.
    pub(super) async fn stopped(&mut self) {
        match self {
            Self::Quic(send) => drop(send.stopped().await),
            Self::Tcp(send) => send.stopped().await,
        }
    }

    /// Sends what is written here before what is written to other streams.
    pub(super) fn set_urgent(&self) {
        match self {
            Self::Quic(send) => drop(send.set_priority(1)),
            // Nothing stands before it on its own connection.
            Self::Tcp(_) => {}
        }
    }
}

/// The receiving half of a stream. Dropping it tells the other side to stop.
pub(super) enum RecvHalf {
    /// Of a QUIC stream.
    Quic(quinn::RecvStream),
    /// Of a connection over TCP.
    Tcp(tcp::RecvHalf),
}

impl RecvHalf {
    /// Waits for bytes and gives them to `take` in their order; false at the orderly end. They are at most `bytes_max` and one
    /// chunk more. Nothing is lost if the future is dropped.
    pub(super) async fn read(&mut self, bytes_max: usize, mut take: impl FnMut(Bytes)) -> Result<bool, StreamEnd> {
        match self {
            Self::Quic(recv) => {
                let chunks_max = (bytes_max / DATAGRAM_BYTES + 1).min(CHUNKS_MAX);
                let read = poll_fn(|cx| {
                    // Not kept while nothing comes: a KiB for each stream of each idle agent.
                    let mut chunks = [const { Bytes::new() }; CHUNKS_MAX];
                    let read = ready!(pin!(recv.read_chunks(&mut chunks[..chunks_max])).poll(cx));
                    let take_all = |count| chunks.into_iter().take(count).for_each(&mut take);
                    Poll::Ready(read.map(|count| count.map(take_all).is_some()))
                });
                Ok(read.await?)
            }
            Self::Tcp(recv) => Ok(recv.read(bytes_max).await?.map(take).is_some()),
        }
    }

    /// Tells the sender to stop.
    pub(super) fn stop(&mut self, code: Code) {
        match self {
            // A stream that is over already needs no stop.
            Self::Quic(recv) => drop(recv.stop(code.var_int())),
            // There is no word for it: whoever says why it wants no more waits until the other side has ended.
            Self::Tcp(_) => {}
        }
    }

    /// Notes a close frame. `None` where none may come.
    pub(super) fn closed(&self, close: Refused) -> Option<StreamEnd> {
        match self {
            Self::Quic(_) => None,
            Self::Tcp(recv) => recv.closed(close),
        }
    }
}
