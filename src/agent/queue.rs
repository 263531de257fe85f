//! The record queue of one disk: guest writes become records, records wait to be sent and then to be journaled.
//!
//! Pure: no I/O; time comes in as arguments. Invariants:
//!
//! - Numbers are dense. A record's number is fixed when its first write is appended, so everything known about that
//!   write (which generation of the dirty map holds it) can name it at once.
//! - Only the newest record is open. It is closed by a full payload, a barrier, another kind, or the sender.
//! - Digest and chain are computed when the sender takes the record, in order, outside the guest's path; a record sent
//!   again after a reconnect is the same bytes, because it is sealed once.
//! - `bytes` bounds memory: payload, extent rows and a fixed part per record. Payload is freed at *journaled*.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use crate::flow::BudgetGuard;
use crate::limits::{RECORD_EXTENTS_MAX, RECORD_PAYLOAD_BYTES_MAX};
use crate::mutants::{self, Mutant};
use crate::signed::{Head, Signer};
use crate::types::{
    Chain, DiskId, EXTENT_BYTES, Epoch, Extent, ExtentKind, Id128, Micros, RECORD_HEAD_BYTES, RecordHead, RecordKind,
    Seq, encode_extents, record_digest,
};

/// What a held record costs besides payload and extent rows: its structures here and its head.
const RECORD_COST_BYTES: u64 = 512;
/// What a write costs in a record besides its payload: its extent, its piece, its row on the wire.
const EXTENT_COST_BYTES: u64 = 128;
/// Longest zero extent: extents count bytes in 32 bits; a power of two below that keeps pieces aligned.
const ZERO_EXTENT_BYTES_MAX: u64 = 1 << 31;

/// The moment for a record's label: the agent's clock corrected by the session's measured offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Corrected wall-clock time.
    pub label: Micros,
    /// How far it may be off, in microseconds; `u32::MAX` if never measured.
    pub uncertainty_micros: u32,
    /// The agent's monotonic clock.
    pub at: Duration,
}

/// What a write puts at its place.
#[derive(Clone, Debug)]
pub enum Content {
    /// These bytes.
    Data(Bytes),
    /// So many zero bytes.
    Zero(u64),
}

impl Content {
    /// Bytes of the disk that it covers.
    #[must_use]
    pub fn length_bytes(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Zero(length_bytes) => *length_bytes,
        }
    }

    /// Bytes that it takes in the queue at most.
    #[must_use]
    pub fn cost_bytes(&self) -> u64 {
        let (payload_bytes, pieces) = match self {
            Self::Data(data) => (data.len() as u64, (data.len() as u64).div_ceil(RECORD_PAYLOAD_BYTES_MAX as u64)),
            Self::Zero(length_bytes) => (0, length_bytes.div_ceil(ZERO_EXTENT_BYTES_MAX)),
        };
        // One piece more: the first may not fit the open record whole.
        payload_bytes + (pieces + 1) * (EXTENT_COST_BYTES + RECORD_COST_BYTES)
    }
}

#[derive(Debug)]
struct Held {
    head: RecordHead,
    extents: Vec<Extent>,
    pieces: Vec<Bytes>,
    sealed: Option<Sealed>,
    closed: bool,
    opened: Duration,
    cost_bytes: u64,
    /// Claims on the agent's memory; given back with the payload.
    guards: Vec<BudgetGuard>,
}

/// A record as it goes out.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// Encoded head with digest and chain.
    pub head: [u8; RECORD_HEAD_BYTES],
    /// Encoded extent table.
    pub table: Bytes,
}

/// A record for the sender.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// Its head; digest and chain are set if `sealed` is.
    pub head: RecordHead,
    /// Its extents.
    pub extents: Vec<Extent>,
    /// Its payload.
    pub pieces: Vec<Bytes>,
    /// Set when it was sent before.
    pub sealed: Option<Sealed>,
    /// The chain before it.
    pub chain_before: Chain,
}

/// With what a barrier is signed.
#[derive(Clone, Copy, Debug)]
pub struct Signing<'a> {
    /// The agent's key.
    pub signer: &'a Signer,
    /// The disk.
    pub disk: &'a DiskId,
    /// The newest record that the agent was told to be vaulted.
    pub told: Option<Head>,
}

impl Outgoing {
    /// Whether it is a barrier that was not sent yet, which is to be signed.
    #[must_use]
    pub const fn to_sign(&self) -> bool {
        self.sealed.is_none() && matches!(self.head.kind, RecordKind::Barrier(_))
    }

    /// Computes digest and chain, unless that was done before: the costly part, done outside every lock.
    pub fn seal(&mut self) -> Sealed {
        self.seal_signed(None)
    }

    /// As [`Outgoing::seal`]; a barrier is signed.
    pub fn seal_signed(&mut self, signing: Option<Signing<'_>>) -> Sealed {
        if let Some(sealed) = &self.sealed {
            return sealed.clone();
        }
        let mut table = Vec::with_capacity(self.extents.len() * EXTENT_BYTES);
        encode_extents(&self.extents, &mut table);
        if let Some(Signing { signer, disk, told }) = signing.filter(|_| self.to_sign()) {
            let name = self.pieces.first().map_or(&[][..], |name| name);
            match signer.sign(disk, &mut self.head, name, self.chain_before, told) {
                Ok(block) => table = block,
                // The point stands as one of an agent that does not sign, and `verify` says so.
                Err(error) => tracing::error!(%disk, point = %self.head.point(), %error, "point is not signed"),
            }
        }
        self.head.digest = record_digest(&table, self.pieces.iter().map(Bytes::as_ref));
        self.head = self.head.sealed_after(self.chain_before);
        let sealed = Sealed { head: self.head.encode(), table: table.into() };
        self.sealed = Some(sealed.clone());
        sealed
    }
}

/// What the sender finds.
#[derive(Debug)]
pub enum Next {
    /// A record to send now.
    Record(Box<Outgoing>),
    /// The open record may still grow for this long.
    Linger(Duration),
    /// Nothing to send.
    Empty,
}

/// The records of one epoch that are not journaled yet.
#[derive(Debug)]
pub struct RecordQueue {
    epoch: Epoch,
    /// Number of the next record to be opened.
    next_seq: Seq,
    held: VecDeque<Held>,
    /// How many of `held`, from the front, were handed to the sender.
    sent: usize,
    /// Chain after the newest sealed record.
    chain: Chain,
    label: Micros,
    bytes: u64,
}

impl RecordQueue {
    /// An empty queue that goes on after `chain` with number `next_seq`.
    #[must_use]
    pub const fn new(epoch: Epoch, next_seq: Seq, chain: Chain, label: Micros) -> Self {
        Self { epoch, next_seq, held: VecDeque::new(), sent: 0, chain, label, bytes: 0 }
    }

    /// The epoch.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Number of the newest record, open or not.
    #[must_use]
    pub const fn last_seq(&self) -> Seq {
        Seq(self.next_seq.0 - 1)
    }

    /// The newest label given.
    #[must_use]
    pub const fn label(&self) -> Micros {
        self.label
    }

    /// Memory held.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// First record held; the next one if none is.
    #[must_use]
    pub fn first_held(&self) -> Seq {
        self.held.front().map_or(self.next_seq, |held| held.head.seq)
    }

    /// Whether a barrier from `seq` on was signed already, and so cannot be sent in another form.
    #[must_use]
    pub fn holds_signed(&self, seq: Seq) -> bool {
        self.held.iter().any(|held| held.head.seq >= seq && held.head.is_signed())
    }

    /// Whether every record was handed to the sender.
    #[must_use]
    pub fn all_sent(&self) -> bool {
        self.sent == self.held.len()
    }

    /// Appends a write. `each` is told the record and extent of every piece.
    pub fn append(
        &mut self,
        kind: RecordKind,
        offset_bytes: u64,
        content: Content,
        guard: Option<BudgetGuard>,
        stamp: Stamp,
        mut each: impl FnMut(Seq, Extent),
    ) {
        match content {
            Content::Zero(length_bytes) => {
                let mut done_bytes = 0;
                while done_bytes < length_bytes {
                    let piece_bytes = (length_bytes - done_bytes).min(ZERO_EXTENT_BYTES_MAX);
                    let extent = Extent {
                        offset_bytes: offset_bytes + done_bytes,
                        length_bytes: piece_bytes as u32,
                        kind: ExtentKind::Zero,
                    };
                    each(self.append_piece(kind, extent, Bytes::new(), stamp), extent);
                    done_bytes += piece_bytes;
                }
            }
            Content::Data(data) => {
                let mut at = 0;
                while at < data.len() {
                    let piece = data.slice(at..data.len().min(at + RECORD_PAYLOAD_BYTES_MAX));
                    let length_bytes = piece.len() as u32;
                    let extent =
                        Extent { offset_bytes: offset_bytes + at as u64, length_bytes, kind: ExtentKind::Data };
                    at += piece.len();
                    each(self.append_piece(kind, extent, piece, stamp), extent);
                }
            }
        }
        if let (Some(guard), Some(held)) = (guard, self.held.back_mut()) {
            held.guards.push(guard);
        }
    }

    /// Appends one extent that fits a record; returns that record's number.
    fn append_piece(&mut self, kind: RecordKind, extent: Extent, piece: Bytes, stamp: Stamp) -> Seq {
        let fits = self.held.back().is_some_and(|open| {
            !open.closed
                && open.head.kind == kind
                && open.extents.len() < RECORD_EXTENTS_MAX
                && open.head.payload_bytes as usize + piece.len() <= RECORD_PAYLOAD_BYTES_MAX
        });
        if !fits {
            self.close_open(stamp);
            self.open(kind, stamp);
        }
        let mut seq = self.last_seq();
        if let Some(open) = self.held.back_mut() {
            seq = open.head.seq;
            let cost_bytes = piece.len() as u64 + EXTENT_COST_BYTES;
            open.head.payload_bytes += piece.len() as u32;
            open.cost_bytes += cost_bytes;
            self.bytes += cost_bytes;
            match open.extents.last_mut() {
                // A sequential stream of small writes needs one row, not hundreds.
                Some(last) if joins(last, &extent) => last.length_bytes += extent.length_bytes,
                _ => open.extents.push(extent),
            }
            if !piece.is_empty() {
                open.pieces.push(piece);
            }
        }
        seq
    }

    fn open(&mut self, kind: RecordKind, stamp: Stamp) {
        let head = RecordHead {
            kind,
            extent_count: 0,
            payload_bytes: 0,
            epoch: self.epoch,
            seq: self.next_seq,
            label: stamp.label,
            clock_uncertainty_micros: stamp.uncertainty_micros,
            group: Id128::NONE,
            digest: crate::types::Digest([0; 32]),
            chain: Chain::GENESIS,
        };
        self.next_seq = self.next_seq.next();
        self.bytes += RECORD_COST_BYTES;
        self.held.push_back(Held {
            head,
            extents: Vec::new(),
            pieces: Vec::new(),
            sealed: None,
            closed: false,
            opened: stamp.at,
            cost_bytes: RECORD_COST_BYTES,
            guards: Vec::new(),
        });
    }

    /// Closes the open record. Its label is the moment of closing: nothing in it was written later.
    fn close_open(&mut self, stamp: Stamp) {
        if let Some(open) = self.held.back_mut().filter(|held| !held.closed) {
            self.label = if mutants::on(Mutant::LabelGoesBack) { stamp.label } else { self.label.max(stamp.label) };
            open.head.label = self.label;
            open.head.clock_uncertainty_micros = stamp.uncertainty_micros;
            open.head.extent_count = open.extents.len() as u32;
            open.closed = true;
        }
    }

    /// Appends a barrier as its own record and returns its number and label. `name` is at most
    /// [`crate::limits::POINT_NAME_BYTES_MAX`] bytes, checked where it came in.
    pub fn barrier(&mut self, kind: RecordKind, group: Id128, name: &str, stamp: Stamp) -> (Seq, Micros) {
        self.close_open(stamp);
        self.open(kind, stamp);
        if let Some(held) = self.held.back_mut() {
            held.head.group = group;
            held.head.payload_bytes = name.len() as u32;
            if !name.is_empty() {
                held.pieces.push(Bytes::copy_from_slice(name.as_bytes()));
            }
        }
        self.close_open(stamp);
        (self.last_seq(), self.label)
    }

    /// What to send next. An open record is closed when it has been open for `linger`.
    pub fn next(&mut self, linger: Duration, stamp: Stamp) -> Next {
        let Some(held) = self.held.get(self.sent) else { return Next::Empty };
        if !held.closed {
            let age = stamp.at.saturating_sub(held.opened);
            if age < linger {
                return Next::Linger(linger - age);
            }
            self.close_open(stamp);
        }
        let held = &self.held[self.sent];
        self.sent += 1;
        Next::Record(Box::new(Outgoing {
            head: held.head,
            extents: held.extents.clone(),
            pieces: held.pieces.clone(),
            sealed: held.sealed.clone(),
            chain_before: self.chain,
        }))
    }

    /// Keeps what sealing found, so that a second sending is the same bytes. Called in order, once per record.
    pub fn sealed(&mut self, record: &Outgoing) {
        let first = self.first_held().0;
        let index = record.head.seq.0.checked_sub(first).and_then(|index| usize::try_from(index).ok());
        if let Some(held) = index.and_then(|index| self.held.get_mut(index)).filter(|held| held.sealed.is_none()) {
            held.head = record.head;
            held.sealed.clone_from(&record.sealed);
            self.chain = record.head.chain;
        }
    }

    /// Frees every record up to `seq`; returns the memory given back.
    pub fn journaled(&mut self, seq: Seq) -> u64 {
        let before = self.bytes;
        // A record that was not sent cannot be journaled: an ack beyond that is the other side's mistake.
        while self.sent > 0
            && let Some(held) = self.held.front().filter(|held| held.head.seq <= seq)
        {
            self.bytes -= held.cost_bytes;
            self.held.pop_front();
            self.sent -= 1;
        }
        before - self.bytes
    }

    /// After a reconnect: the gateway has everything up to `seq`; the rest is sent again.
    pub fn rewind(&mut self, seq: Seq) {
        self.journaled(seq);
        self.sent = 0;
    }
}

/// Whether `next` continues `last`, so that one row can stand for both: their payload is adjacent too.
fn joins(last: &Extent, next: &Extent) -> bool {
    last.kind == next.kind
        && last.end_bytes() == next.offset_bytes
        && u64::from(last.length_bytes) + u64::from(next.length_bytes) <= ZERO_EXTENT_BYTES_MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{BarrierKind, RecordView};

    fn stamp(ms: u64) -> Stamp {
        Stamp { label: Micros(ms * 1000), uncertainty_micros: 7, at: Duration::from_millis(ms) }
    }

    fn queue() -> RecordQueue {
        RecordQueue::new(Epoch(1), Seq(1), Chain::GENESIS, Micros(0))
    }

    fn write(queue: &mut RecordQueue, offset_bytes: u64, data: &[u8], ms: u64) -> Vec<Seq> {
        let mut seqs = Vec::new();
        let data = Content::Data(Bytes::copy_from_slice(data));
        queue.append(RecordKind::Write, offset_bytes, data, None, stamp(ms), |seq, _| seqs.push(seq));
        seqs
    }

    fn take(queue: &mut RecordQueue, ms: u64) -> Option<Vec<u8>> {
        match queue.next(Duration::ZERO, stamp(ms)) {
            Next::Record(mut record) => {
                let sealed = record.seal();
                queue.sealed(&record);
                let mut bytes = [&sealed.head[..], &sealed.table].concat();
                record.pieces.iter().for_each(|piece| bytes.extend_from_slice(piece));
                Some(bytes)
            }
            _ => None,
        }
    }

    #[test]
    fn small_writes_share_a_record_until_the_sender_takes_it() {
        let mut queue = queue();
        assert_eq!(write(&mut queue, 0, b"ab", 0), [Seq(1)]);
        assert_eq!(write(&mut queue, 2, b"cd", 1), [Seq(1)]);
        assert_eq!(write(&mut queue, 512, b"ef", 2), [Seq(1)]);
        assert!(
            matches!(queue.next(Duration::from_millis(5), stamp(2)), Next::Linger(wait) if wait == Duration::from_millis(3))
        );
        let bytes = take(&mut queue, 6).expect("due");
        let (view, rest) = RecordView::split(&bytes).expect("whole");
        assert!(rest.is_empty());
        view.check_digest().expect("digest");
        assert_eq!((view.head.extent_count, view.payload), (2, &b"abcdef"[..]));
        assert_eq!(view.head.label, Micros(6000));
        assert!(take(&mut queue, 7).is_none());
    }

    #[test]
    fn large_writes_become_several_records_in_order() {
        let mut queue = queue();
        let data = vec![7; 2 * RECORD_PAYLOAD_BYTES_MAX + 5];
        assert_eq!(write(&mut queue, 4096, &data, 0), [Seq(1), Seq(2), Seq(3)]);
        let mut chain = Chain::GENESIS;
        for seq in 1..=3 {
            let bytes = take(&mut queue, 1).expect("record");
            let (view, _) = RecordView::split(&bytes).expect("whole");
            assert_eq!(view.head.seq, Seq(seq));
            assert_eq!(view.head.chain, view.head.chain_after(chain));
            chain = view.head.chain;
        }
    }

    #[test]
    fn labels_never_go_back_though_the_clock_does() {
        let mut queue = queue();
        write(&mut queue, 0, b"a", 50);
        let (_, first) = queue.barrier(RecordKind::Barrier(BarrierKind::Crash), Id128::NONE, "", stamp(60));
        write(&mut queue, 0, b"b", 10);
        let (seq, second) = queue.barrier(RecordKind::Barrier(BarrierKind::Crash), Id128::NONE, "x", stamp(11));
        assert_eq!((first, second, seq), (Micros(60_000), Micros(60_000), Seq(4)));
    }

    #[test]
    fn records_are_held_until_journaled_and_sent_again_as_the_same_bytes() {
        let mut queue = queue();
        for at in 0..4 {
            write(&mut queue, at * 512, b"payload", at);
            queue.barrier(RecordKind::Barrier(BarrierKind::Crash), Id128::NONE, "", stamp(at));
        }
        let first: Vec<_> = std::iter::from_fn(|| take(&mut queue, 9)).collect();
        assert_eq!(first.len(), 8);
        queue.journaled(Seq(3));
        assert_eq!(queue.first_held(), Seq(4));
        queue.rewind(Seq(5));
        write(&mut queue, 0, b"later", 10);
        let again: Vec<_> = std::iter::from_fn(|| take(&mut queue, 11)).collect();
        assert_eq!(again[..3], first[5..]);
        let (view, _) = RecordView::split(&again[3]).expect("whole");
        let (before, _) = RecordView::split(&first[7]).expect("whole");
        assert_eq!(view.head.chain, view.head.chain_after(before.head.chain));
        queue.journaled(Seq(9));
        assert_eq!((queue.bytes(), queue.first_held()), (0, Seq(10)));
    }

    #[test]
    fn an_ack_beyond_what_was_sent_frees_nothing_unsent() {
        let mut queue = queue();
        write(&mut queue, 0, b"a", 0);
        queue.journaled(Seq(9));
        assert!(take(&mut queue, 1).is_some());
    }

    #[test]
    fn the_stated_cost_covers_what_a_write_takes() {
        for length in [1, 4096, RECORD_PAYLOAD_BYTES_MAX, 3 * RECORD_PAYLOAD_BYTES_MAX + 1] {
            let mut queue = queue();
            write(&mut queue, 0, &[1; 700], 0);
            let before = queue.bytes();
            let content = Content::Data(vec![0; length].into());
            let cost_bytes = content.cost_bytes();
            queue.append(RecordKind::Write, 0, content, None, stamp(1), |_, _| {});
            assert!(queue.bytes() - before <= cost_bytes, "{length}");
        }
        let mut queue = queue();
        let zero = Content::Zero(5 << 31);
        let cost_bytes = zero.cost_bytes();
        queue.append(RecordKind::Write, 0, zero, None, stamp(0), |_, _| {});
        assert!(queue.bytes() <= cost_bytes);
    }
}
