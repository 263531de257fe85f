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
fn what_is_granted_is_the_base_and_what_is_leased_and_no_more_for_who_has_lapsed() {
    let mut grants = Grants::default();
    assert!(grants.is_due(0, 0, false));
    assert_eq!(grants.grant(0, 0), CREDIT_BASE_BYTES);
    assert_eq!(grants.owed_bytes(0), 0, "the base needs no lease");
    let page_bytes = (16 << 10) + 200;
    assert!(
        grants.is_due(page_bytes, 0, true) && !grants.is_due(page_bytes, 0, false),
        "a page of the base waits for its ack"
    );
    assert!(grants.is_due(0, 4 << 20, false), "a lease is worth a grant");
    assert_eq!(grants.grant(0, 4 << 20), CREDIT_BASE_BYTES + (4 << 20));
    assert_eq!((grants.owed_bytes(0), grants.owed_bytes(1 << 20)), (4 << 20, 3 << 20));
    assert!(!grants.is_due(1, 4 << 20, true), "one byte is worth no bytes of a frame");
    assert!(grants.is_due((1 << 20) + CREDIT_BASE_BYTES, 4 << 20, true), "a quarter is");
    assert!(!grants.is_due((1 << 20) + CREDIT_BASE_BYTES, 4 << 20, false), "but no frame of its own");
    assert!(grants.is_due((2 << 20) + CREDIT_BASE_BYTES, 4 << 20, false), "half is worth that");
    grants.lapse(1 << 20);
    assert_eq!((grants.granted_bytes(), grants.owed_bytes(1 << 20)), ((1 << 20) + CREDIT_BASE_BYTES, 0));
    assert_eq!(grants.most_bytes(), CREDIT_BASE_BYTES + (4 << 20), "who did not know is not at fault");
    grants.lapse(8 << 20);
    assert_eq!(grants.granted_bytes(), (1 << 20) + CREDIT_BASE_BYTES, "nothing is granted by a lapse");
}

#[test]
fn of_its_window_an_agent_has_three_quarters_after_an_ack_and_half_before_and_of_the_base_alone_something() {
    let record_bytes = crate::limits::RECORD_BYTES_MAX as u64;
    let mut grants = Grants::default();
    let mut taken = 0;
    for step in 0..100_000_u64 {
        let lease = [4 << 20, 64 << 20, record_bytes, 8 << 20, 0][(step / 20_000) as usize];
        let along = step % 3 == 0;
        if grants.is_due(taken, lease, along) {
            grants.grant(taken, lease);
        }
        let left = grants.granted_bytes() - taken;
        let least = match (along, lease) {
            (true, _) => (lease + CREDIT_BASE_BYTES) * 3 / 4,
            (false, 0) => 1,
            (false, _) => (lease + CREDIT_BASE_BYTES) / 2,
        };
        assert!(left >= least, "step {step}: {left} left of {lease}");
        taken += 1 + (step * 7919) % left.min(record_bytes);
    }
}
