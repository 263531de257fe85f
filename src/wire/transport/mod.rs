//! The seam between the protocol and what carries it.
//!
//! The protocol needs little: a session between two proven identities, ordered byte streams inside it that hold up each
//! other not at all, and an end of the session with a code and a text. Everything above this module is written against
//! [`Session`], [`SendHalf`] and [`RecvHalf`] and is one code for every transport.

mod quic;

use bytes::{Buf, Bytes};

use super::code::Code;
use super::identity::{CertificateFacts, Identity, IdentityError};

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
    Quic(quinn::Connection, Option<quinn::Endpoint>),
}

impl Session {
    /// Opens a stream, of which the other side learns with its first bytes.
    pub(super) async fn open_stream(&self) -> Result<(SendHalf, RecvHalf), SessionEnd> {
        match self {
            Self::Quic(connection, _) => {
                let (send, recv) = connection.open_bi().await?;
                Ok((SendHalf::Quic(send), RecvHalf::Quic(recv)))
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
        }
    }

    /// Gives a stranger's session what a known agent needs: so many streams, and the window of data.
    pub(super) fn widen(&self, streams_max: u32, window_bytes: u32) {
        match self {
            Self::Quic(connection, _) => {
                connection.set_max_concurrent_bi_streams(streams_max.into());
                connection.set_receive_window(window_bytes.into());
            }
        }
    }

    /// Ends the session and every stream of it, at once.
    pub(super) fn close(&self, code: Code, text: &str) {
        match self {
            Self::Quic(connection, _) => connection.close(code.var_int(), text.as_bytes()),
        }
    }

    /// Waits until the session has ended and says how.
    pub(super) async fn closed(&self) -> SessionEnd {
        match self {
            Self::Quic(connection, _) => connection.closed().await.into(),
        }
    }

    /// Waits until the close has gone out, for the side that connected.
    pub(super) async fn close_sent(&self) {
        match self {
            Self::Quic(_, Some(endpoint)) => endpoint.wait_idle().await,
            Self::Quic(_, None) => {}
        }
    }

    /// What the other side's verified certificate says.
    pub(super) fn peer_identity(&self) -> Result<Identity, IdentityError> {
        let certificates = match self {
            Self::Quic(connection, _) => quic::peer_certificates(connection),
        };
        CertificateFacts::read(certificates.first().ok_or(IdentityError::Certificate)?)?.identity
    }

    /// The largest UDP payload that the path has proven to carry; discovery goes on for a while.
    pub(super) fn path_mtu_bytes(&self) -> u16 {
        match self {
            Self::Quic(connection, _) => connection.stats().path.current_mtu,
        }
    }
}

/// The sending half of a stream. Dropping it ends the stream in order.
pub(super) enum SendHalf {
    /// Of a QUIC stream.
    Quic(quinn::SendStream),
}

impl SendHalf {
    /// Writes these bytes, as far as flow control lets them; dropped half-way, an unknown part of them has been written.
    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<(), StreamEnd> {
        match self {
            Self::Quic(send) => Ok(send.write_chunk(bytes).await?),
        }
    }

    /// Writes as much of these bytes as flow control lets through at once, when it lets any, and takes it off them. Nothing
    /// is lost if the future is dropped.
    pub(super) async fn write_some(&mut self, bytes: &mut Bytes) -> Result<(), StreamEnd> {
        match self {
            Self::Quic(send) => bytes.advance(send.write(bytes).await?),
        }
        Ok(())
    }

    /// Writes all these pieces, as [`SendHalf::write`] does.
    pub(super) async fn write_all(&mut self, pieces: &mut [Bytes]) -> Result<(), StreamEnd> {
        match self {
            Self::Quic(send) => Ok(send.write_all_chunks(pieces).await?),
        }
    }

    /// Says that nothing more comes.
    pub(super) fn finish(&mut self) -> Result<(), StreamEnd> {
        match self {
            Self::Quic(send) => send.finish().map_err(|error| StreamEnd::Stream(error.to_string())),
        }
    }

    /// Cuts the stream off, so that it does not look like an orderly end.
    pub(super) fn reset(&mut self, code: Code) {
        match self {
            // A stream that is over already needs no reset.
            Self::Quic(send) => drop(send.reset(code.var_int())),
        }
    }

    /// Waits until the other side wants nothing more of this stream, or has all of it.
    pub(super) async fn stopped(&mut self) {
        match self {
            Self::Quic(send) => drop(send.stopped().await),
        }
    }

    /// Sends what is written here before what is written to other streams.
    pub(super) fn set_urgent(&self) {
        match self {
            Self::Quic(send) => drop(send.set_priority(1)),
        }
    }
}

/// The receiving half of a stream. Dropping it tells the other side to stop.
pub(super) enum RecvHalf {
    /// Of a QUIC stream.
    Quic(quinn::RecvStream),
}

impl RecvHalf {
    /// Waits for bytes, puts them into `chunks` in their order, and says how many chunks there are; `None` is the
    /// orderly end. Nothing is lost if the future is dropped.
    pub(super) async fn read_chunks(&mut self, chunks: &mut [Bytes]) -> Result<Option<usize>, StreamEnd> {
        match self {
            Self::Quic(recv) => Ok(recv.read_chunks(chunks).await?),
        }
    }

    /// Tells the sender to stop.
    pub(super) fn stop(&mut self, code: Code) {
        match self {
            // A stream that is over already needs no stop.
            Self::Quic(recv) => drop(recv.stop(code.var_int())),
        }
    }
}
