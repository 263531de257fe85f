//! The tracker against a model: whatever happens, the records make the image that the disk had.
//!
//! The model disk has 5 chunks of 16 cells; a cell is 4 KiB and holds one byte value. The replica applies records and
//! remembers the image after each, so that a fork can go back to any of them, as the vault can.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::types::{RecordView, Seq};

const CELL_BYTES: u64 = 4096;
const CHUNK_CELLS: usize = (CHUNK_BYTES / CELL_BYTES) as usize;
/// The last chunk is short.
const CELLS: usize = 5 * CHUNK_CELLS - 3;
type Image = Vec<u8>;

#[derive(Debug, Clone, Copy)]
enum Op {
    Write { cell: usize, cells: usize, value: u8 },
    Zero { cell: usize, cells: usize },
    FailedWrite { cell: usize, value: u8 },
    Barrier,
    Send { records: usize },
    Journal { back: u64 },
    Vault { back: u64 },
    CopyStart,
    CopyEnd,
    Reconnect { lost: usize },
    Fork { ahead: u64 },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        6 => (0..CELLS, 1..30_usize, 1..=255_u8).prop_map(|(cell, cells, value)| Op::Write { cell, cells, value }),
        1 => (0..CELLS, 1..30_usize).prop_map(|(cell, cells)| Op::Zero { cell, cells }),
        1 => (0..CELLS, 1..=255_u8).prop_map(|(cell, value)| Op::FailedWrite { cell, value }),
        2 => Just(Op::Barrier),
        4 => (1..6_usize).prop_map(|records| Op::Send { records }),
        3 => (0..3_u64).prop_map(|back| Op::Journal { back }),
        2 => (0..3_u64).prop_map(|back| Op::Vault { back }),
        3 => Just(Op::CopyStart),
        3 => Just(Op::CopyEnd),
        1 => (0..4_usize).prop_map(|lost| Op::Reconnect { lost }),
        1 => (0..3_u64).prop_map(|ahead| Op::Fork { ahead }),
    ];
    prop::collection::vec(op, 1..120)
}

struct World {
    disk: Image,
    tracker: Tracker,
    /// Images after seq 0, 1, … of the present epoch, at the other end.
    replica: Vec<Image>,
    epoch: u64,
    journaled: u64,
    vaulted: u64,
    /// Disk images at the points made, by (epoch, seq).
    points: HashMap<(u64, u64), Image>,
    /// Chunks being copied, read already.
    copying: Option<(Range<u64>, Image)>,
    cursor: u64,
    span_at_replica: bool,
    now: u64,
}

impl World {
    fn new(queue_bytes_max: u64) -> Self {
        let size_bytes = CELLS as u64 * CELL_BYTES;
        let mut disk = vec![0; CELLS];
        disk[3] = 9;
        disk[CELLS - 1] = 8;
        let mut tracker = Tracker::new(size_bytes, queue_bytes_max);
        tracker.mark(0, size_bytes, stamp(0));
        let mut world = Self {
            disk,
            tracker,
            replica: vec![vec![0; CELLS]],
            epoch: 0,
            journaled: 0,
            vaulted: 0,
            points: HashMap::new(),
            copying: None,
            cursor: 0,
            span_at_replica: false,
            now: 0,
        };
        world.fork(0);
        world
    }

    fn stamp(&mut self) -> Stamp {
        self.now += 100;
        stamp(self.now)
    }

    fn fork(&mut self, ahead: u64) {
        // The vault may be further than the agent was told, never behind it.
        let place = (self.tracker.dirty().floor().seq.0.max(self.vaulted) + ahead).min(self.replica.len() as u64 - 1);
        self.replica = vec![self.replica[place as usize].clone()];
        self.epoch += 1;
        (self.journaled, self.vaulted) = (0, 0);
        let start = EpochStart {
            epoch: Epoch(self.epoch),
            next_seq: Seq(1),
            chain: Chain::GENESIS.fork(Epoch(self.epoch)),
            from_zero: self.epoch == 1,
        };
        let stamp = self.stamp();
        self.tracker.start_epoch(start, Micros(0), stamp);
    }

    fn deliver(&mut self, record: Outgoing) {
        let mut record = record;
        let sealed = record.seal();
        self.tracker.sealed(&record);
        let mut bytes = [&sealed.head[..], &sealed.table].concat();
        record.pieces.iter().for_each(|piece| bytes.extend_from_slice(piece));
        let (view, _) = RecordView::split(&bytes).expect("whole record");
        view.check_digest().expect("digest");
        assert_eq!(view.head.seq.0, self.replica.len() as u64, "dense");
        let mut image = self.replica[self.replica.len() - 1].clone();
        let mut payload = view.payload;
        for extent in view.head.decode_extents(view.table, CELLS as u64 * CELL_BYTES).expect("extents") {
            for cell in extent.offset_bytes / CELL_BYTES..extent.end_bytes() / CELL_BYTES {
                image[cell as usize] = match extent.kind {
                    ExtentKind::Zero => 0,
                    ExtentKind::Data => {
                        let (taken, rest) = payload.split_at(CELL_BYTES as usize);
                        payload = rest;
                        taken[0]
                    }
                };
            }
        }
        match view.head.kind {
            RecordKind::Barrier(BarrierKind::SyncBegin) => self.span_at_replica = true,
            RecordKind::Barrier(kind) => {
                self.span_at_replica &= kind != BarrierKind::SyncEnd;
                assert!(!self.span_at_replica, "a point inside a span");
                let expected = self.points.get(&(self.epoch, view.head.seq.0)).expect("a point that was made");
                assert_eq!(expected, &image, "image at {}", view.head.point());
            }
            _ => {}
        }
        self.replica.push(image);
    }

    fn send(&mut self, records: usize) {
        for _ in 0..records {
            let stamp = self.stamp();
            match self.tracker.next(Duration::ZERO, stamp) {
                Next::Record(record) => self.deliver(*record),
                _ => break,
            }
        }
        let stamp = self.stamp();
        self.tracker.recover(stamp);
    }

    fn ack(&mut self, journal_back: Option<u64>, vault_back: Option<u64>) {
        let sent = self.replica.len() as u64 - 1;
        if let Some(back) = journal_back {
            self.journaled = self.journaled.max(sent.saturating_sub(back));
        }
        if let Some(back) = vault_back {
            self.vaulted = self.vaulted.max(self.journaled.saturating_sub(back));
        }
        self.tracker.acked(Epoch(self.epoch), Seq(self.journaled), Seq(self.vaulted));
        let stamp = self.stamp();
        self.tracker.recover(stamp);
    }

    fn copy_start(&mut self) {
        if self.copying.is_some() {
            return;
        }
        match self.tracker.next_copy(self.cursor, 2) {
            CopyNext::Chunks(chunks) => {
                self.cursor = chunks.end;
                let cells = chunks.start as usize * CHUNK_CELLS..(chunks.end as usize * CHUNK_CELLS).min(CELLS);
                self.copying = Some((chunks, self.disk[cells].to_vec()));
            }
            CopyNext::End => self.cursor = 0,
            CopyNext::Wait => {}
        }
    }

    fn copy_end(&mut self) {
        if let Some((chunks, cells)) = self.copying.take() {
            let pieces = cells
                .iter()
                .enumerate()
                .map(|(at, &value)| {
                    let content = if value == 0 { Content::Zero(CELL_BYTES) } else { data(&[value]) };
                    (chunks.start * CHUNK_BYTES + at as u64 * CELL_BYTES, content)
                })
                .collect();
            let stamp = self.stamp();
            self.tracker.copied(chunks, pieces, None, stamp);
        }
        let stamp = self.stamp();
        if let Some(at) = self.tracker.finish_span(stamp) {
            self.points.insert((at.epoch.0, at.seq.0), self.disk.clone());
        }
    }

    /// The range lock: a write that touches chunks being copied waits for the copy.
    fn wait_for_copy(&mut self, cell: usize, cells: usize) {
        let chunks = (cell / CHUNK_CELLS) as u64..((cell + cells).div_ceil(CHUNK_CELLS)) as u64;
        if self.copying.as_ref().is_some_and(|(held, _)| held.start < chunks.end && chunks.start < held.end) {
            self.copy_end();
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Write { cell, cells, value } => {
                let cells = cells.min(CELLS - cell);
                self.wait_for_copy(cell, cells);
                self.disk[cell..cell + cells].fill(value);
                let stamp = self.stamp();
                self.tracker.write(cell as u64 * CELL_BYTES, data(&vec![value; cells]), claim, stamp);
            }
            Op::Zero { cell, cells } => {
                let cells = cells.min(CELLS - cell);
                self.wait_for_copy(cell, cells);
                self.disk[cell..cell + cells].fill(0);
                let stamp = self.stamp();
                let content = Content::Zero(cells as u64 * CELL_BYTES);
                self.tracker.write(cell as u64 * CELL_BYTES, content, claim, stamp);
            }
            Op::FailedWrite { cell, value } => {
                self.wait_for_copy(cell, 1);
                self.disk[cell] = value;
                let stamp = self.stamp();
                self.tracker.mark(cell as u64 * CELL_BYTES, CELL_BYTES, stamp);
            }
            Op::Barrier => {
                let stamp = self.stamp();
                if let Some(at) = self.tracker.barrier(BarrierKind::Crash, Id128::NONE, "", stamp) {
                    self.points.insert((at.epoch.0, at.seq.0), self.disk.clone());
                }
            }
            Op::Send { records } => self.send(records),
            Op::Journal { back } => self.ack(Some(back), None),
            Op::Vault { back } => self.ack(Some(back), Some(back)),
            Op::CopyStart => self.copy_start(),
            Op::CopyEnd => self.copy_end(),
            Op::Reconnect { lost } => {
                let keep = (self.replica.len() - lost.min(self.replica.len() - 1)).max(self.journaled as usize + 1);
                // What was not journaled may be lost on the way or in the gateway.
                self.replica.truncate(keep);
                self.span_at_replica = false;
                let next_seq = Seq(self.replica.len() as u64);
                assert!(self.tracker.resume(next_seq), "records are held until journaled");
                self.journaled = next_seq.0 - 1;
            }
            Op::Fork { ahead } => self.fork(ahead),
        }
        self.check_nothing_is_forgotten();
    }

    /// Where the disk differs from the replica's newest image, the tracker holds it: queued, or marked.
    fn check_nothing_is_forgotten(&self) {
        let image = &self.replica[self.replica.len() - 1];
        for cell in (0..CELLS).filter(|&cell| image[cell] != self.disk[cell]) {
            let chunk = (cell / CHUNK_CELLS) as u64;
            assert!(self.tracker.dirty().holds(&(chunk..chunk + 1)), "cell {cell} is forgotten");
        }
    }

    fn settle(&mut self) {
        for _ in 0..200 {
            self.copy_start();
            self.copy_end();
            self.send(usize::MAX);
            self.ack(Some(0), Some(0));
        }
        assert_eq!(self.tracker.mode(), Mode::Recording);
        assert!(!self.tracker.in_span());
        assert_eq!(self.replica.last(), Some(&self.disk));
        assert!(self.tracker.dirty().all_vaulted());
        assert_eq!(self.tracker.dirty().floor().seq.0, self.replica.len() as u64 - 1);
        assert_eq!((self.tracker.queue().bytes(), self.tracker.reserved_bytes), (0, 0));
    }
}

fn stamp(ms: u64) -> Stamp {
    Stamp { label: Micros(ms * 1000), uncertainty_micros: 0, at: Duration::from_millis(ms) }
}

fn claim(bytes: u64) -> Option<BudgetGuard> {
    crate::flow::Budget::new(u64::from(u32::MAX)).try_claim(bytes)
}

fn data(values: &[u8]) -> Content {
    let bytes: Vec<u8> = values.iter().flat_map(|&value| [value; CELL_BYTES as usize]).collect();
    Content::Data(bytes.into())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn every_point_outside_a_span_is_the_disk_at_that_moment(ops in ops(), small in any::<bool>()) {
        // A small queue overflows every few writes.
        let mut world = World::new(if small { 300 << 10 } else { 64 << 20 });
        for op in ops {
            world.apply(op);
        }
        world.settle();
    }
}

#[test]
fn an_overflow_marks_and_catches_up_in_the_same_epoch() {
    let mut world = World::new(300 << 10);
    world.settle();
    for round in 0..20 {
        world.apply(Op::Write { cell: round * 3, cells: 16, value: round as u8 + 1 });
    }
    assert_eq!(world.tracker.mode(), Mode::Overflowed);
    assert!(world.tracker.queue().bytes() <= 300 << 10);
    assert_eq!(world.tracker.barrier(BarrierKind::Crash, Id128::NONE, "", stamp(9_000_000)), None);
    world.settle();
    assert_eq!(world.epoch, 1);
}

#[test]
fn zeroes_of_a_new_disk_are_not_sent() {
    let mut world = World::new(64 << 20);
    world.settle();
    let sent: u64 = world.replica.len() as u64;
    assert!(sent <= 6, "sync-begin, copies of chunks 0 and 4, sync-end: {sent}");
}

#[test]
fn an_idle_disk_makes_a_barrier_a_minute_and_a_busy_one_each_time() {
    let mut world = World::new(64 << 20);
    world.settle();
    let idle = Duration::from_secs(60);
    let base = world.now;
    let mut at = |seconds: u64| world.tracker.periodic_barrier(idle, stamp(base + seconds * 1000)).is_some();
    assert!(at(0), "the sync-end is long ago");
    assert!(!at(5));
    assert!(at(61));
    assert!(!at(66));
    world.tracker.write(0, data(&[1]), claim, stamp(base + 67_000));
    assert!(world.tracker.periodic_barrier(idle, stamp(base + 70_000)).is_some());
    assert!(world.tracker.periodic_barrier(idle, stamp(base + 75_000)).is_none());
}

#[test]
fn points_asked_for_stay_within_the_queue() {
    let bound = 300 << 10;
    let mut world = World::new(bound);
    world.settle();
    let mut made = 0;
    while world.tracker.barrier(BarrierKind::App, Id128::NONE, "again", stamp(9_000_000)).is_some() {
        made += 1;
        assert!(made <= bound, "without end");
    }
    assert!(made > 0 && world.tracker.queue().bytes() <= bound + 1024);
    assert!(!world.tracker.offers_points());
    world.tracker.mark(0, 1, stamp(9_000_000));
    assert!(world.tracker.in_span(), "a span needs no room: it is how a full queue is left");
}

#[test]
fn acks_of_another_epoch_or_from_beyond_free_nothing() {
    let mut world = World::new(64 << 20);
    assert!(!world.tracker.acked(Epoch(9), Seq(1), Seq(1)));
    world.tracker.acked(Epoch(1), Seq(500), Seq(500));
    assert_eq!(world.tracker.dirty().floor().seq, Seq(0), "record 1 was not sealed yet");
    assert_eq!(world.tracker.queue().first_held(), Seq(1), "nor sent");
}

#[test]
fn what_is_journaled_and_not_vaulted_is_sent_again_after_a_fork() {
    let mut world = World::new(64 << 20);
    world.settle();
    world.apply(Op::Write { cell: CHUNK_CELLS, cells: 1, value: 5 });
    world.send(usize::MAX);
    world.ack(Some(0), None);
    assert_eq!(world.tracker.queue().bytes(), 0, "the gateway has it");
    world.tracker.abandon(Duration::ZERO);
    assert!(world.tracker.dirty().must_send().any(1..2), "the gateway may be lost, with its disk");
}
