//! One disk stream on the agent's side: records out under credit, events in.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::time::timeout;

use super::error::{ConnectionLost, OpenDiskError};
use super::lost;
use crate::fault::{Classify, Fault};
use crate::flow::{Clock, watch};
use crate::limits;
use crate::telemetry::waits::{Guard, Waiters};
use crate::types::{Chain, Epoch, RECORD_HEAD_BYTES, RecordHead, Seq};
use crate::wire::code::Code;
use crate::wire::frame::{self, Kind};
use crate::wire::messages::{Ack, Ask, CloseDisk, DiskOpened, Message, OpenDisk, Touched};
use crate::wire::stream::{FrameReader, ReadFrameError, write_message};
use crate::wire::transport::{SendHalf, Session};
use crate::wire::{CREDIT_BASE_BYTES, CREDIT_LAPSE};

/// After the gateway ended a stream without a word, its reason may follow as the end of the connection.
const REASON_PATIENCE: Duration = Duration::from_secs(5);

/// What the gateway said when it opened the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenedInfo {
    /// The epoch that the records must carry.
    pub epoch: Epoch,
    /// The first record that the gateway wants.
    pub next_seq: Seq,
    /// Chain before `next_seq`, if the gateway knows it; always there for a new epoch.
    pub chain: Option<Chain>,
    /// Highest seq of this epoch that is journaled.
    pub journaled: Seq,
    /// Highest seq of this epoch that is vaulted.
    pub vaulted: Seq,
    /// First credit: record bytes that may be sent in all on this stream.
    pub credit_bytes: u64,
    /// Of a new epoch: chunks to compare, because records hold them of which the agent's state may not know.
    pub touched: Vec<Range<u32>>,
}

impl OpenedInfo {
    pub(in crate::wire) fn new(opened: DiskOpened, touched: Vec<Range<u32>>) -> Self {
        let DiskOpened { epoch, next_seq, chain, journaled, vaulted, credit_bytes } = opened;
        Self { epoch, next_seq, chain, journaled, vaulted, credit_bytes, touched }
    }
}

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

/// What the gateway has said so far about one disk.
#[derive(Debug, Clone)]
struct State {
    ack: Ack,
    end: Option<DiskEvent>,
}

/// A grant, and when it came.
#[derive(Debug, Clone, Copy)]
struct Granted {
    bytes: u64,
    at: Duration,
}

/// Opens a disk stream of `session`.
pub(super) async fn open(
    session: &Session,
    addr: &Arc<str>,
    clock: &Arc<dyn Clock>,
    open: OpenDisk,
    redirect: watch::Receiver<Option<Vec<String>>>,
) -> Result<(DiskSender, DiskEvents, OpenedInfo), OpenDiskError> {
    let (mut send, recv) = session.open_stream().await.map_err(|end| lost(addr, end))?;
    let mut reader = FrameReader::new(recv);
    // A failed write shows as a failed read, which knows the reason.
    let _ = write_message(&mut send, &Message::OpenDisk(open)).await;
    let mut touched: Vec<Range<u32>> = Vec::new();
    let opened = loop {
        match answer(&mut reader, session, addr).await? {
            Answer::Touched(part) => take_touched(&mut touched, part)?,
            Answer::Opened(opened) => break OpenedInfo::new(opened, touched),
        }
    };
    let first = Granted { bytes: opened.credit_bytes, at: clock.monotonic() };
    let (grants, granted) = watch::channel(first);
    let ack = Ack { journaled: opened.journaled, vaulted: opened.vaulted };
    let (sender, state) = watch::channel(State { ack, end: None });
    let (session, addr) = (session.clone(), Arc::clone(addr));
    let ear = Ear { reader, session, addr, grants, clock: Arc::clone(clock) };
    tokio::spawn(ear.run(sender));
    let sender = DiskSender {
        send,
        purse: Purse::new(first),
        granted,
        clock: Arc::clone(clock),
        asking: Bytes::new(),
        state: state.clone(),
        last: Seq(opened.next_seq.0.saturating_sub(1)),
        writing: false,
    };
    Ok((sender, DiskEvents { state, redirect, told: ack, told_redirect: false }, opened))
}

/// What a gateway says that opens a disk.
enum Answer {
    Touched(Touched),
    Opened(DiskOpened),
}

async fn answer(reader: &mut FrameReader, session: &Session, addr: &Arc<str>) -> Result<Answer, OpenDiskError> {
    let refused = |code, text| Err(OpenDiskError::Refused { code, text });
    match reader.next_message().await {
        Ok(Message::Touched(touched)) => Ok(Answer::Touched(touched)),
        Ok(Message::DiskOpened(opened)) => Ok(Answer::Opened(opened)),
        Ok(Message::Fenced(fenced)) => Err(OpenDiskError::Fenced { newest: fenced.newest }),
        Ok(Message::DiskRefused(told)) if told.code == Code::MustFork => {
            Err(OpenDiskError::MustFork { text: told.text })
        }
        // The second says it of a connection over TCP before it is known for which disk.
        Ok(Message::DiskRefused(told) | Message::Refused(told)) => refused(told.code, told.text),
        Ok(other) => refused(Code::Message, format!("{:?} frame came as the answer to open-disk", other.kind())),
        Err(ReadFrameError::Stream(_) | ReadFrameError::End) => Err(reason(session, addr).await.into()),
        Err(error) => refused(Code::Frame, error.to_string()),
    }
}

/// Joins the frames of one answer; a gateway that says too much, or not in order, is not believed at all.
fn take_touched(all: &mut Vec<Range<u32>>, part: Touched) -> Result<(), OpenDiskError> {
    let text = match (all.last(), part.runs.first()) {
        _ if all.len() + part.runs.len() > limits::TOUCHED_RUNS_MAX => "more runs of touched chunks came than may be",
        (Some(last), Some(first)) if first.start <= last.end => "touched chunks came out of order",
        _ => {
            all.extend(part.runs);
            return Ok(());
        }
    };
    Err(OpenDiskError::Refused { code: Code::Message, text: text.to_owned() })
}

/// Why the connection ended, or that it did not: the gateway ended only the stream.
async fn reason(session: &Session, addr: &str) -> ConnectionLost {
    match timeout(REASON_PATIENCE, session.closed()).await {
        Ok(end) => lost(addr, end),
        Err(_) => ConnectionLost {
            gateway: addr.to_owned(),
            code: Code::Done,
            text: "the gateway ended the disk stream".to_owned(),
        },
    }
}

/// Reads what the gateway says, until the stream ends or nobody listens any more.
struct Ear {
    reader: FrameReader,
    session: Session,
    addr: Arc<str>,
    grants: watch::Sender<Granted>,
    clock: Arc<dyn Clock>,
}

impl Ear {
    async fn run(mut self, state: watch::Sender<State>) {
        let end = loop {
            let message = tokio::select! {
                biased;
                () = state.closed() => return,
                message = self.reader.next_message() => message,
            };
            match message {
                Ok(Message::Credit(credit)) => {
                    let granted = Granted { bytes: credit.granted_bytes, at: self.clock.monotonic() };
                    self.grants.send_replace(granted);
                }
                Ok(Message::Ack(ack)) => state.send_modify(|state| {
                    state.ack.journaled = state.ack.journaled.max(ack.journaled);
                    state.ack.vaulted = state.ack.vaulted.max(ack.vaulted);
                }),
                Ok(Message::Fenced(fenced)) => break DiskEvent::Fenced { newest: fenced.newest },
                Ok(Message::DiskRefused(refused)) => {
                    break DiskEvent::Refused { code: refused.code, text: refused.text };
                }
                Ok(other) => {
                    let text = format!("{:?} frame came from the gateway on a disk stream", other.kind());
                    break DiskEvent::Refused { code: Code::Message, text };
                }
                Err(ReadFrameError::Stream(_) | ReadFrameError::End) => {
                    break DiskEvent::Closed(reason(&self.session, &self.addr).await);
                }
                Err(error) => break DiskEvent::Refused { code: Code::Frame, text: error.to_string() },
            }
        };
        self.reader.stop(Code::Done);
        state.send_modify(|state| state.end = Some(end));
    }
}

/// The credit of a stream on the agent's side, and what of it lapses. Pure: times come in as arguments.
#[derive(Debug)]
struct Purse {
    sent_bytes: u64,
    granted_bytes: u64,
    /// Begin of a time in which credit that is not used lapses, and what was sent before it.
    since: Duration,
    since_bytes: u64,
    /// Credit that was asked for and has not come; 0 if there is no question open.
    asked_bytes: u64,
}

impl Purse {
    const fn new(first: Granted) -> Self {
        Self { sent_bytes: 0, granted_bytes: first.bytes, since: first.at, since_bytes: 0, asked_bytes: 0 }
    }

    /// The gateway counts with what it said last.
    fn take(&mut self, granted: Granted) {
        self.granted_bytes = granted.bytes;
        self.since = self.since.max(granted.at);
        self.since_bytes = self.sent_bytes;
    }

    /// Credit that is left at `now`. What was left over [`CREDIT_LAPSE`] ago and not used is gone, but for the base.
    fn left_bytes(&mut self, now: Duration) -> u64 {
        if now >= self.since + CREDIT_LAPSE {
            let base_bytes = self.sent_bytes + CREDIT_BASE_BYTES;
            if self.sent_bytes < self.since_bytes + CREDIT_BASE_BYTES && self.granted_bytes > base_bytes {
                self.granted_bytes = base_bytes;
                self.asked_bytes = 0;
            }
            (self.since, self.since_bytes) = (now, self.sent_bytes);
        }
        self.granted_bytes.saturating_sub(self.sent_bytes)
    }

    /// What is to be asked for before a record of `bytes` can be sent, unless it was asked for already.
    fn question(&mut self, bytes: u64) -> Option<Ask> {
        let wanted_bytes = self.sent_bytes + bytes;
        (std::mem::replace(&mut self.asked_bytes, wanted_bytes) != wanted_bytes).then_some(Ask { wanted_bytes })
    }

    const fn spend(&mut self, bytes: u64) {
        self.sent_bytes += bytes;
        self.asked_bytes = 0;
    }
}

/// Sends the records of one disk. Dropping it ends the stream.
pub struct DiskSender {
    send: SendHalf,
    purse: Purse,
    granted: watch::Receiver<Granted>,
    clock: Arc<dyn Clock>,
    /// Of a question that was dropped while it was written, what is still to be written.
    asking: Bytes,
    state: watch::Receiver<State>,
    last: Seq,
    /// Stands while a record is being written; still standing at the next call, it was dropped half-way.
    writing: bool,
}

impl DiskSender {
    /// Sends one record; waits for credit and for flow control. Dropped while it waits for credit it has done
    /// nothing; dropped later it has cut the stream: see [`SendError::Interrupted`].
    ///
    /// # Errors
    /// [`SendError`]; the records from this one on were not taken.
    pub async fn send(&mut self, record: WireRecord) -> Result<(), SendError> {
        if self.writing {
            return Err(SendError::Interrupted);
        }
        let bytes = RECORD_HEAD_BYTES + record.rest.iter().map(Bytes::len).sum::<usize>();
        if bytes > limits::FRAME_BODY_BYTES_MAX {
            return Err(SendError::Oversized { bytes });
        }
        self.credit(bytes as u64).await?;
        let pieces = std::iter::once(&record.head[..]).chain(record.rest.iter().map(Bytes::as_ref));
        let header = frame::encode_header(Kind::Record, bytes as u32, frame::crc32c(pieces));
        let mut first = BytesMut::with_capacity(header.len() + record.head.len());
        first.put_slice(&header);
        first.put_slice(&record.head);
        let mut chunks = Vec::with_capacity(1 + record.rest.len());
        chunks.push(first.freeze());
        chunks.extend(record.rest);
        self.writing = true;
        tokio::select! {
            biased;
            written = self.send.write_all(&mut chunks) => written.map_err(|_| SendError::Ended)?,
            // The gateway reads no more of it, and over TCP has no other way to say so than its last frame.
            _ = self.state.wait_for(|state| state.end.is_some()) => return Err(SendError::Ended),
        }
        self.writing = false;
        self.purse.spend(bytes as u64);
        if let Ok(head) = RecordHead::decode(&record.head) {
            self.last = head.seq;
        }
        Ok(())
    }

    /// Waits until there is credit for `record`; a [`DiskSender::send`] that follows does not wait for it any more. May be
    /// dropped while it waits.
    ///
    /// # Errors
    /// [`SendError::Ended`].
    pub async fn ready(&mut self, record: &WireRecord) -> Result<(), SendError> {
        let bytes = RECORD_HEAD_BYTES + record.rest.iter().map(Bytes::len).sum::<usize>();
        self.credit(bytes as u64).await
    }

    /// The last record that was sent; one before the first wanted, if none was.
    #[must_use]
    pub const fn last(&self) -> Seq {
        self.last
    }

    /// Record bytes that may be sent now without waiting for credit.
    pub fn credit_bytes(&mut self) -> u64 {
        let now = self.clock.monotonic();
        if self.granted.has_changed() {
            self.purse.take(*self.granted.borrow_and_update());
        }
        self.purse.left_bytes(now)
    }

    /// Waits until a record of `bytes` may be sent; asks for it if that is not so yet.
    async fn credit(&mut self, bytes: u64) -> Result<(), SendError> {
        let mut waits = Waiters::none(Guard::Credit);
        loop {
            if self.credit_bytes() >= bytes && self.asking.is_empty() {
                return Ok(());
            }
            if self.asking.is_empty()
                && let Some(ask) = self.purse.question(bytes)
            {
                self.asking = Message::Ask(ask).encode();
            }
            waits.set(1);
            let Self { send, asking, state, granted, purse, .. } = self;
            tokio::select! {
                biased;
                _ = state.wait_for(|state| state.end.is_some()) => return Err(SendError::Ended),
                // Written piece by piece: nothing is lost if this is dropped between two.
                written = send.write_some(asking), if !asking.is_empty() => written.map_err(|_| SendError::Ended)?,
                changed = granted.changed() => match changed {
                    Ok(()) => purse.take(*granted.borrow()),
                    // Whoever listens has ended.
                    Err(watch::Closed) => return Err(SendError::Ended),
                },
            }
        }
    }

    /// Says that no more records come. Acks go on until the gateway has everything vaulted or the connection ends.
    ///
    /// # Errors
    /// [`SendError`] if the stream had ended.
    pub async fn finish(mut self) -> Result<(), SendError> {
        if self.writing {
            return Err(SendError::Interrupted);
        }
        let asking = std::mem::take(&mut self.asking);
        self.send.write(asking).await.map_err(|_| SendError::Ended)?;
        let close = Message::CloseDisk(CloseDisk { last: self.last });
        write_message(&mut self.send, &close).await.map_err(|_| SendError::Ended)?;
        self.send.finish().map_err(|_| SendError::Ended)
    }
}

impl Drop for DiskSender {
    fn drop(&mut self) {
        if self.writing {
            // The end of the stream inside a frame must not look like an orderly one.
            self.send.reset(Code::Done);
        }
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

/// Receives what the gateway says about one disk. It may be dropped; the sender still gets its credit.
pub struct DiskEvents {
    state: watch::Receiver<State>,
    redirect: watch::Receiver<Option<Vec<String>>>,
    told: Ack,
    told_redirect: bool,
}

impl DiskEvents {
    /// The next event. Acks come before the end that followed them; after the last event it is repeated for ever. May
    /// be dropped while it waits.
    pub async fn next(&mut self) -> DiskEvent {
        loop {
            if let Some(event) = self.untold() {
                return event;
            }
            tokio::select! {
                biased;
                changed = self.state.changed() => if changed.is_err() && self.state.borrow().end.is_none() {
                    // The task that listens was ended with the runtime.
                    return DiskEvent::Closed(ConnectionLost {
                        gateway: String::new(),
                        code: Code::Done,
                        text: "this side stopped listening".to_owned(),
                    });
                },
                () = redirected(&mut self.redirect, self.told_redirect) => {}
            }
        }
    }

    fn untold(&mut self) -> Option<DiskEvent> {
        let state = self.state.borrow_and_update();
        if state.ack != self.told {
            self.told = state.ack;
            return Some(DiskEvent::Ack { journaled: state.ack.journaled, vaulted: state.ack.vaulted });
        }
        if state.end.is_some() {
            return state.end.clone();
        }
        let gateways = self.redirect.borrow().clone().filter(|_| !self.told_redirect)?;
        self.told_redirect = true;
        Some(DiskEvent::Redirect { gateways })
    }
}

async fn redirected(redirect: &mut watch::Receiver<Option<Vec<String>>>, told: bool) {
    if told || redirect.wait_for(Option::is_some).await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn purse(bytes: u64) -> Purse {
        Purse::new(Granted { bytes, at: ms(0) })
    }

    #[test]
    fn credit_that_is_not_used_lapses_down_to_the_base() {
        let mut purse = purse(4 * MIB);
        purse.spend(MIB);
        assert_eq!(purse.left_bytes(ms(499)), 3 * MIB);
        assert_eq!(purse.left_bytes(ms(500)), 3 * MIB, "it was used");
        purse.spend(100);
        assert_eq!(purse.left_bytes(ms(1000)), CREDIT_BASE_BYTES, "hardly any of it was used");
        purse.spend(CREDIT_BASE_BYTES);
        assert_eq!(purse.left_bytes(ms(1001)), 0, "what has lapsed does not come back by use");
        purse.take(Granted { bytes: 8 * MIB, at: ms(1300) });
        assert_eq!(purse.left_bytes(ms(1799)), 7 * MIB - 100 - CREDIT_BASE_BYTES, "a grant begins the time anew");
        assert_eq!(purse.left_bytes(ms(1800)), CREDIT_BASE_BYTES);
    }

    #[test]
    fn a_grant_that_lapsed_before_anybody_looked_is_asked_for_again() {
        let mut purse = purse(CREDIT_BASE_BYTES);
        assert_eq!(purse.question(MIB), Some(Ask { wanted_bytes: MIB }));
        assert_eq!(purse.question(MIB), None, "asked once");
        purse.take(Granted { bytes: MIB, at: ms(10) });
        assert_eq!(purse.left_bytes(ms(2000)), CREDIT_BASE_BYTES);
        assert_eq!(purse.question(MIB), Some(Ask { wanted_bytes: MIB }));
    }
}
