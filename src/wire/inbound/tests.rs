use super::*;
use crate::types::{Extent, ExtentKind, Id128, RecordKind, encode_extents, record_digest};
use crate::wire::frame::Kind;

const EPOCH: Epoch = Epoch(2);
const DISK_BYTES: u64 = 1 << 20;

struct Draft {
    epoch: Epoch,
    seq: Seq,
    chain: Chain,
    label: Micros,
    extent: Extent,
}

fn draft(seq: u64) -> Draft {
    let extent = Extent { offset_bytes: 4096, length_bytes: 512, kind: ExtentKind::Data };
    Draft { epoch: EPOCH, seq: Seq(seq), chain: Chain::GENESIS, label: Micros(1000 + seq), extent }
}

impl Draft {
    fn bytes(&self) -> (RecordHead, Vec<u8>) {
        let mut table = Vec::new();
        encode_extents(&[self.extent], &mut table);
        let payload = vec![self.seq.0 as u8; self.extent.payload_bytes() as usize];
        let head = RecordHead {
            kind: RecordKind::Write,
            extent_count: 1,
            payload_bytes: payload.len() as u32,
            epoch: self.epoch,
            seq: self.seq,
            label: self.label,
            clock_uncertainty_micros: 0,
            group: Id128::NONE,
            digest: record_digest(&table, [payload.as_slice()]),
            chain: Chain::GENESIS,
        }
        .sealed_after(self.chain);
        (head, [&head.encode()[..], &table, &payload].concat())
    }

    fn frame(&self, piece_bytes: usize) -> Frame {
        frame(&self.bytes().1, piece_bytes)
    }
}

fn frame(bytes: &[u8], piece_bytes: usize) -> Frame {
    let body = bytes.chunks(piece_bytes).map(Bytes::copy_from_slice).collect();
    Frame { kind: Kind::Record, body_crc: 0, body_bytes: bytes.len(), body }
}

fn inbound() -> Inbound {
    Inbound::new(EPOCH, Seq(1), Some(Chain::GENESIS), DISK_BYTES)
}

#[test]
fn records_in_order_are_taken_whatever_pieces_they_come_in() {
    for piece_bytes in [1, 7, 128, 129, 143, 144, 100_000] {
        let mut inbound = inbound();
        let first = draft(1);
        let head = inbound.accept(&first.frame(piece_bytes), u64::MAX).expect("first");
        assert_eq!(head, first.bytes().0);
        let second = Draft { chain: head.chain, ..draft(2) };
        inbound.accept(&second.frame(piece_bytes), u64::MAX).expect("second");
        assert_eq!(inbound.last(), Seq(2));
    }
}

#[test]
fn gaps_and_repetitions_are_refused() {
    let mut inbound = inbound();
    let head = inbound.accept(&draft(1).frame(4096), u64::MAX).expect("first");
    for seq in [1, 3, 17] {
        let wrong = Draft { chain: head.chain, ..draft(seq) };
        let refused = inbound.accept(&wrong.frame(4096), u64::MAX);
        assert_eq!(refused, Err(Violation::Seq { expected: Seq(2), found: Seq(seq) }));
    }
}

#[test]
fn another_epoch_history_or_an_older_label_is_refused() {
    let seq = Seq(1);
    let other_epoch = Draft { epoch: Epoch(3), ..draft(1) };
    let refused = inbound().accept(&other_epoch.frame(4096), u64::MAX);
    assert_eq!(refused, Err(Violation::Epoch { seq, expected: EPOCH, found: Epoch(3) }));
    let other_history = Draft { chain: Chain([1; 32]), ..draft(1) };
    assert_eq!(inbound().accept(&other_history.frame(4096), u64::MAX), Err(Violation::Chain { seq }));
    let mut unknown = Inbound::new(EPOCH, Seq(1), None, DISK_BYTES);
    let head = unknown.accept(&other_history.frame(4096), u64::MAX).expect("nothing to compare with");
    assert_eq!(unknown.accept(&draft(2).frame(4096), u64::MAX), Err(Violation::Chain { seq: Seq(2) }));
    let older = Draft { chain: head.chain, label: Micros(1000), ..draft(2) };
    let refused = unknown.accept(&older.frame(4096), u64::MAX);
    assert_eq!(refused, Err(Violation::Label { seq: Seq(2), last: Micros(1001), found: Micros(1000) }));
}

#[test]
fn extents_outside_the_disk_and_wrong_lengths_are_refused() {
    let outside = Extent { offset_bytes: DISK_BYTES - 256, length_bytes: 512, kind: ExtentKind::Data };
    let refused = inbound().accept(&Draft { extent: outside, ..draft(1) }.frame(4096), u64::MAX);
    assert_eq!(refused.map_err(|violation| violation.code()), Err(Code::Record));
    let overflow = Extent { offset_bytes: u64::MAX - 1, ..outside };
    assert!(inbound().accept(&Draft { extent: overflow, ..draft(1) }.frame(4096), u64::MAX).is_err());
    let (_, good) = draft(1).bytes();
    for bytes in [good.len() - 1, good.len() + 1, 128, 127, 0] {
        let mut wrong = good.clone();
        wrong.resize(bytes, 0);
        assert!(inbound().accept(&frame(&wrong, 4096), u64::MAX).is_err(), "{bytes} bytes");
    }
}

#[test]
fn bytes_beyond_the_credit_are_refused_to_the_byte() {
    let bytes = draft(1).bytes().1.len() as u64;
    inbound().accept(&draft(1).frame(4096), bytes).expect("exactly the credit");
    let refused = inbound().accept(&draft(1).frame(4096), bytes - 1);
    assert_eq!(refused, Err(Violation::Credit { seq: Seq(1), sent_bytes: bytes, granted_bytes: bytes - 1 }));
}

#[test]
fn an_agent_is_never_left_without_room_for_the_largest_record() {
    let record_bytes = crate::limits::RECORD_BYTES_MAX as u64;
    // The window shrinks and grows; records of all sizes are taken one by one, as a sink would.
    let windows = [64 << 20, 1, CREDIT_WINDOW_BYTES_MIN, 8 << 20, 1];
    let mut grants = Grants::default();
    let (mut taken, mut granted) = (0, 0);
    for step in 0..100_000_u64 {
        let window = windows[(step / 20_000) as usize];
        if let Some(grant) = grants.due(taken, window) {
            assert!(grant > granted, "a grant went down");
            granted = grant;
        }
        assert!(granted - taken >= record_bytes, "step {step}: {} left", granted - taken);
        taken += 1 + (step * 7919) % record_bytes;
    }
}

#[test]
fn a_window_of_zero_grants_nothing_and_a_new_one_goes_on() {
    let mut grants = Grants::default();
    assert_eq!(grants.due(0, 0), None);
    assert_eq!(grants.due(0, 8 << 20), Some(8 << 20));
    assert_eq!(grants.due(8 << 20, 0), None);
    assert_eq!(grants.due(8 << 20, 8 << 20), Some(16 << 20));
    assert_eq!(grants.due((8 << 20) + 1, 8 << 20), None, "one byte is not worth a frame");
}
