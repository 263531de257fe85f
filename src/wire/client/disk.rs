//! One disk stream on the agent's side.

use bytes::Bytes;

use super::error::ConnectionLost;
use crate::fault::{Classify, Fault};
use crate::types::{Epoch, RECORD_HEAD_BYTES, Seq};
use crate::wire::code::Code;
use crate::wire::messages::DiskOpened;

/// What the gateway said when it opened the disk: epoch, first seq wanted, chain before it, watermarks.
pub type OpenedInfo = DiskOpened;

/// A record as the agent sends it: its bytes in pieces, none of them copied.
#[derive(Debug, Clone)]
pub struct WireRecord {
    /// The encoded head.
    pub head: [u8; RECORD_HEAD_BYTES],
    /// The extent table and then the payload, in any cut.
    pub rest: Vec<Bytes>,
}

/// Why a record was not sent. [`DiskEvents`] tells the reason in full.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The disk stream or the connection has ended.
    #[error("the disk stream has ended")]
    Ended,
    /// An earlier `send` was dropped in the middle of a record, so that the stream cannot be used any more.
    #[error("an earlier send was dropped in the middle of a record")]
    Interrupted,
    /// The record is larger than a frame may be.
    #[error("record of {bytes} bytes is larger than a frame may be")]
    Oversized {
        /// Its size.
        bytes: usize,
    },
}

impl Classify for SendError {
    fn fault(&self) -> Fault {
        match self {
            Self::Ended | Self::Interrupted => Fault::Retry,
            Self::Oversized { .. } => Fault::Fatal,
        }
    }
}

/// Sends the records of one disk. Dropping it ends the stream.
pub struct DiskSender {}

impl DiskSender {
    /// Sends one record; waits for credit and for QUIC flow control. Not to be dropped half-way: see
    /// [`SendError::Interrupted`].
    ///
    /// # Errors
    /// [`SendError`]; the records from this one on were not taken.
    pub async fn send(&mut self, record: WireRecord) -> Result<(), SendError> {
        let _ = record;
        Err(SendError::Ended)
    }

    /// Says that no more records come. Acks go on until the gateway has everything vaulted or the connection ends.
    ///
    /// # Errors
    /// [`SendError`] if the stream had ended.
    pub async fn finish(self) -> Result<(), SendError> {
        Err(SendError::Ended)
    }
}

/// What the gateway says about a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskEvent {
    /// Watermarks moved; several moves may come as one.
    Ack {
        /// Every record up to this one is journaled.
        journaled: Seq,
        /// Every record up to this one is vaulted.
        vaulted: Seq,
    },
    /// Another epoch took over. The last event.
    Fenced {
        /// The newest epoch that the gateway knows.
        newest: Epoch,
    },
    /// The gateway ended the stream. The last event.
    Refused {
        /// The reason as a number.
        code: Code,
        /// The gateway's words.
        text: String,
    },
    /// The gateway asks the agent to leave; acks go on for a while.
    Redirect {
        /// Gateways to try instead, best first; may be empty.
        gateways: Vec<String>,
    },
    /// The connection ended. The last event.
    Closed(ConnectionLost),
}

/// Receives what the gateway says about one disk.
pub struct DiskEvents {}

impl DiskEvents {
    /// The next event. After the last one it is repeated for ever. May be dropped while it waits.
    pub async fn next(&mut self) -> DiskEvent {
        std::future::pending().await
    }
}
