//! The rules that a disk stream keeps, without I/O: what the gateway checks of every record before it takes it.
//!
//! - a record's epoch is the stream's, its seq follows the one before without a gap;
//! - its chain follows the one before, so a copy of the agent with another history is noticed at its first record;
//! - its label time does not go back;
//! - its extents lie inside the disk and its lengths add up;
//! - all record bytes together never exceed the credit granted.

use bytes::Bytes;

use super::CREDIT_BASE_BYTES;
use super::code::Code;
use super::frame::Frame;
use crate::fault::{Classify, Fault};
use crate::types::{Chain, Epoch, Micros, RECORD_HEAD_BYTES, RecordError, RecordHead, Seq};

/// How a record broke the rules of its stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Not a record, or outside its limits or the disk.
    #[error("record {seq} is not acceptable: {source}")]
    Record {
        /// The seq that was due.
        seq: Seq,
        /// What is wrong with it.
        source: RecordError,
    },
    /// Its length is not that of the frame.
    #[error("record {seq} has {record_bytes} bytes in a frame of {frame_bytes}")]
    Length {
        /// The seq that was due.
        seq: Seq,
        /// What head, table and payload add up to.
        record_bytes: usize,
        /// The body of the frame.
        frame_bytes: usize,
    },
    /// A gap or a repetition.
    #[error("record {found} came where {expected} was due")]
    Seq {
        /// What was due.
        expected: Seq,
        /// What came.
        found: Seq,
    },
    /// Another epoch than the stream's.
    #[error("record {seq} is of epoch {found}, the stream of epoch {expected}")]
    Epoch {
        /// The seq that was due.
        seq: Seq,
        /// The stream's.
        expected: Epoch,
        /// The record's.
        found: Epoch,
    },
    /// Another history.
    #[error("the chain of record {seq} does not follow the record before: another history of this disk")]
    Chain {
        /// Its seq.
        seq: Seq,
    },
    /// Label time went back.
    #[error("record {seq} is labelled {found}, before the record before it, {last}")]
    Label {
        /// Its seq.
        seq: Seq,
        /// The label before.
        last: Micros,
        /// Its label.
        found: Micros,
    },
    /// More than was granted.
    #[error("record {seq} makes {sent_bytes} bytes on this stream: {granted_bytes} were granted")]
    Credit {
        /// The seq that was due.
        seq: Seq,
        /// Sent in all, with this record.
        sent_bytes: u64,
        /// Granted in all.
        granted_bytes: u64,
    },
}

impl Violation {
    /// The code with which the stream ends.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::Record { .. } | Self::Length { .. } | Self::Label { .. } => Code::Record,
            Self::Seq { .. } => Code::Seq,
            Self::Epoch { .. } => Code::Epoch,
            Self::Chain { .. } => Code::Chain,
            Self::Credit { .. } => Code::Credit,
        }
    }
}

impl Classify for Violation {
    fn fault(&self) -> Fault {
        Fault::Reject
    }
}

/// The state of one disk stream on the gateway's side.
#[derive(Debug, Clone)]
pub struct Inbound {
    epoch: Epoch,
    next: Seq,
    chain: Option<Chain>,
    label: Micros,
    disk_bytes: u64,
    sent_bytes: u64,
    /// Head and extent table of one record, when they came in several pieces; kept for its allocation.
    scratch: Vec<u8>,
}

impl Inbound {
    /// A stream that begins at `next` after `chain`, for a disk of `disk_bytes`.
    #[must_use]
    pub const fn new(epoch: Epoch, next: Seq, chain: Option<Chain>, disk_bytes: u64) -> Self {
        Self { epoch, next, chain, label: Micros(0), disk_bytes, sent_bytes: 0, scratch: Vec::new() }
    }

    /// The last seq that was accepted, or the one before the first that is due.
    #[must_use]
    pub const fn last(&self) -> Seq {
        Seq(self.next.0.saturating_sub(1))
    }

    /// Checks the next record frame under a credit of `granted_bytes` in all.
    ///
    /// # Errors
    /// [`Violation`]; the stream is over then.
    pub fn accept(&mut self, frame: &Frame, granted_bytes: u64) -> Result<RecordHead, Violation> {
        let seq = self.next;
        // Credit first: it bounds what a stream can cost, whatever its records look like.
        let sent_bytes = self.sent_bytes + frame.body_bytes as u64;
        if sent_bytes > granted_bytes {
            return Err(Violation::Credit { seq, sent_bytes, granted_bytes });
        }
        let record = |source| Violation::Record { seq, source };
        let head_bytes = prefix(&frame.body, RECORD_HEAD_BYTES, &mut self.scratch);
        let head = RecordHead::decode(head_bytes).map_err(record)?;
        if head.record_bytes() != frame.body_bytes {
            let (record_bytes, frame_bytes) = (head.record_bytes(), frame.body_bytes);
            return Err(Violation::Length { seq, record_bytes, frame_bytes });
        }
        if head.epoch != self.epoch {
            return Err(Violation::Epoch { seq, expected: self.epoch, found: head.epoch });
        }
        if head.seq != seq {
            return Err(Violation::Seq { expected: seq, found: head.seq });
        }
        if self.chain.is_some_and(|before| head.chain_after(before) != head.chain) {
            return Err(Violation::Chain { seq });
        }
        if head.label < self.label {
            return Err(Violation::Label { seq, last: self.label, found: head.label });
        }
        let table =
            &prefix(&frame.body, RECORD_HEAD_BYTES + head.table_bytes(), &mut self.scratch)[RECORD_HEAD_BYTES..];
        head.decode_extents(table, self.disk_bytes).map_err(record)?;
        self.sent_bytes = sent_bytes;
        self.next = seq.next();
        self.chain = Some(head.chain);
        self.label = head.label;
        Ok(head)
    }
}

/// The first `bytes` of the pieces (or all, if fewer), copied only if the first piece is shorter.
fn prefix<'a>(pieces: &'a [Bytes], bytes: usize, scratch: &'a mut Vec<u8>) -> &'a [u8] {
    if let Some(whole) = pieces.first().and_then(|first| first.get(..bytes)) {
        return whole;
    }
    scratch.clear();
    for piece in pieces {
        let missing = bytes - scratch.len();
        if missing == 0 {
            break;
        }
        scratch.extend_from_slice(&piece[..piece.len().min(missing)]);
    }
    scratch
}

/// The credit of one disk stream, on the gateway's side: a base that every open disk has, and what is leased for it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Grants {
    granted_bytes: u64,
    most_bytes: u64,
}

impl Grants {
    /// Record bytes in all for which there is memory: what an agent counts with that heeds the lapse.
    #[must_use]
    pub const fn granted_bytes(&self) -> u64 {
        self.granted_bytes
    }

    /// The most that was ever granted. Who sends more breaks a rule.
    #[must_use]
    pub const fn most_bytes(&self) -> u64 {
        self.most_bytes
    }

    /// What must be leased for credit that is granted and not used.
    #[must_use]
    pub const fn owed_bytes(&self, taken_bytes: u64) -> u64 {
        self.granted_bytes.saturating_sub(taken_bytes + CREDIT_BASE_BYTES)
    }

    /// What another grant would bring.
    #[must_use]
    pub const fn more_bytes(&self, taken_bytes: u64, lease_bytes: u64) -> u64 {
        (taken_bytes + CREDIT_BASE_BYTES + lease_bytes).saturating_sub(self.granted_bytes)
    }

    /// Whether what was taken is worth another grant, with a lease of `lease_bytes`. Where the grant goes `along` with an ack, small
    /// steps wait until a quarter of the window is together. Where it would go by itself, until half of it is, and of the base alone all:
    /// an ack of what was taken is seldom far, and an agent that cannot wait for it asks.
    #[must_use]
    pub const fn is_due(&self, taken_bytes: u64, lease_bytes: u64, along: bool) -> bool {
        let window_bytes = CREDIT_BASE_BYTES + lease_bytes;
        let step_bytes = match (along, lease_bytes) {
            (true, _) => window_bytes / 4,
            (false, 0) => window_bytes,
            (false, _) => window_bytes / 2,
        };
        self.more_bytes(taken_bytes, lease_bytes) >= step_bytes
    }

    /// Grants the base and all that is leased.
    pub fn grant(&mut self, taken_bytes: u64, lease_bytes: u64) -> u64 {
        self.granted_bytes = taken_bytes + CREDIT_BASE_BYTES + lease_bytes;
        self.most_bytes = self.most_bytes.max(self.granted_bytes);
        self.granted_bytes
    }

    /// Counts with no more than the base: the agent has sent nothing for so long that its credit has lapsed.
    pub const fn lapse(&mut self, taken_bytes: u64) {
        let base_bytes = taken_bytes + CREDIT_BASE_BYTES;
        if self.granted_bytes > base_bytes {
            self.granted_bytes = base_bytes;
        }
    }
}

#[cfg(test)]
mod tests;
