use proptest::prelude::*;

use super::lane::{Entry, LANE_INDEX_BYTES_TARGET, LaneIndex, LaneIndexBuilder};
use super::*;
use crate::limits;
use crate::pipeline::testing::{LANE, VAULT, disk, fixture, object_name};
use crate::types::{BarrierKind, ExtentKind};
use crate::vault::batch::BatchError;

pub(in crate::vault) fn key() -> CatalogKey {
    CatalogKey::from_secret([0x22; 32])
}

/// One of everything that rows can hold.
pub(crate) fn sample() -> BatchIndex {
    let row = |seq: u64, kind| RecordMeta {
        seq: Seq(seq),
        label: Micros(1_800_000_000_000_000 + seq * 1500),
        uncertainty_micros: 250,
        kind,
        group: Id128::NONE,
        name: None,
        extents: Vec::new(),
    };
    let extent = |offset_bytes, length_bytes, kind| Extent { offset_bytes, length_bytes, kind };
    let mut write = row(10, RecordKind::Write);
    write.extents = vec![extent(8192, 4096, ExtentKind::Data), extent(0, 512, ExtentKind::Zero)];
    let mut copy = row(11, RecordKind::Copy);
    copy.extents = vec![extent(limits::DISK_BYTES_MAX - 65536, 65536, ExtentKind::Data)];
    let mut barrier = row(12, RecordKind::Barrier(BarrierKind::App));
    (barrier.group, barrier.name) = (Id128([9; 16]), Some("vor dem Update ✓".to_owned()));
    // Clocks may jump back, and a gateway may know nothing of what was before.
    let mut early = row(1, RecordKind::Barrier(BarrierKind::SyncEnd));
    (early.label, early.uncertainty_micros) = (Micros(0), u32::MAX);
    let message = |epoch, first: u64, offset_bytes, records: Vec<RecordMeta>| MessageMeta {
        epoch: Epoch(epoch),
        first: Seq(first),
        last: Seq(first + records.len() as u64 - 1),
        offset_bytes,
        stored_bytes: 200,
        plain_bytes: 5000,
        codec: Codec::Lz4,
        chain_before: None,
        chain_last: Chain([first as u8; 32]),
        received_first: Micros(1_800_000_000_100_000),
        received_last: Micros(1_800_000_000_000_000),
        records,
    };
    let mut second = message(2, 1, 464, vec![early]);
    second.chain_before = Some(Chain([10; 32]));
    let mut third = message(2, 2, 664, vec![row(2, RecordKind::Write)]);
    (third.chain_before, third.codec) = (Some(Chain([77; 32])), Codec::Raw);
    let first = message(1, 10, 64, vec![write, copy, barrier]);
    let other = message(1, 5, 264, vec![row(5, RecordKind::Write)]);
    let disks = vec![
        DiskPart { disk: disk("db-1.data"), messages: vec![other] },
        DiskPart { disk: disk("web-1"), messages: vec![first, second, third] },
    ];
    BatchIndex { lane: LANE, n: 7, confirmed_through: 5, disks }
}

pub(in crate::vault) fn place(object: &str) -> IndexPlace<'_> {
    IndexPlace { vault: VAULT, object, lane: LANE, n: 7 }
}

#[test]
fn an_index_with_one_of_everything_comes_back() {
    let index = sample();
    assert_eq!(BatchIndex::decode(&index.encode()).unwrap(), index);
    assert_eq!(index.record_count(), 6);
    let empty = BatchIndex { disks: Vec::new(), ..index };
    assert_eq!(BatchIndex::decode(&empty.encode()).unwrap(), empty);
}

#[test]
fn the_stored_index_of_version_1_is_still_read_and_written() {
    let made = sample().encode();
    let stored = fixture("index.bin", &made);
    assert_eq!(BatchIndex::decode(&stored).unwrap(), sample());
    assert_eq!(stored, made);
}

#[test]
fn a_cut_index_is_refused_at_every_length() {
    let plain = sample().encode();
    for length in 0..plain.len() {
        assert!(BatchIndex::decode(&plain[..length]).is_err(), "{length}");
    }
    assert!(BatchIndex::decode(&[plain.as_slice(), &[0]].concat()).is_err());
}

#[test]
fn an_altered_plaintext_is_refused_or_decodes_to_another_index_which_encodes_to_those_bytes() {
    let plain = sample().encode();
    for bit in 0..plain.len() * 8 {
        let mut bytes = plain.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Ok(index) = BatchIndex::decode(&bytes) {
            assert_eq!(index.encode(), bytes, "bit {bit}: two encodings of one index");
        }
    }
}

#[test]
fn counts_beyond_the_bytes_present_allocate_nothing() {
    // version, lane, n 1, confirmed 0, then a count of disks of nearly 2^63.
    let mut bytes = vec![1];
    bytes.extend_from_slice(&[0; 16]);
    bytes.extend_from_slice(&[1, 0]);
    bytes.extend_from_slice(&[0xff; 8]);
    bytes.push(0x7f);
    assert!(matches!(BatchIndex::decode(&bytes), Err(IndexError::Encoding { what: "disk count", .. })));
}

#[test]
fn rows_that_break_a_limit_are_refused() {
    let refused = |alter: fn(&mut BatchIndex), what: &str| {
        let mut index = sample();
        alter(&mut index);
        match BatchIndex::decode(&index.encode()) {
            Err(IndexError::Encoding { what: found, .. }) => assert_eq!(found, what),
            other => panic!("{what}: {other:?}"),
        }
    };
    refused(|index| index.n = 0, "batch number");
    refused(|index| index.confirmed_through = 7, "confirmed through");
    refused(|index| index.disks.reverse(), "disk order");
    refused(|index| index.disks[0].messages.clear(), "message count");
    refused(|index| index.disks[1].messages.reverse(), "message order");
    refused(|index| index.disks[0].messages[0].epoch = Epoch(0), "epoch or first seq");
    refused(|index| index.disks[0].messages[0].first = Seq(0), "epoch or first seq");
    refused(|index| index.disks[0].messages[0].first = Seq(u64::MAX), "record count");
    refused(|index| index.disks[0].messages[0].stored_bytes = 71, "stored bytes");
    refused(|index| index.disks[0].messages[0].plain_bytes = limits::MESSAGE_BYTES_MAX as u32 + 1, "plain bytes");
    refused(|index| index.disks[0].messages[0].records.clear(), "record count");
    refused(|index| index.disks[1].messages[0].records[0].extents[0].length_bytes = 0, "extent range");
    refused(|index| index.disks[1].messages[0].records[1].extents[0].offset_bytes += 512, "extent range");
}

#[test]
fn messages_must_fill_the_batch_without_gap_or_overlap() {
    let index = sample();
    index.check_layout(64, 864).unwrap();
    for end in [863, 865] {
        assert!(matches!(index.check_layout(64, end), Err(IndexError::Layout { .. })), "{end}");
    }
    let mut gap = sample();
    gap.disks[1].messages[1].offset_bytes += 1;
    assert_eq!(gap.check_layout(64, 864), Err(IndexError::Layout { expected_bytes: 464, found_bytes: 465 }));
    let mut overlap = sample();
    overlap.disks[0].messages[0].stored_bytes += 1;
    assert!(overlap.check_layout(64, 864).is_err());
}

#[test]
fn a_sealed_index_opens_at_its_own_place_only() {
    let sealed = sample().seal(&key(), &place("b/x/7")).unwrap();
    assert_eq!(BatchIndex::open(&key(), &place("b/x/7"), &sealed).unwrap(), sample());
    let wrong = [
        place("b/x/8"),
        IndexPlace { vault: LANE, ..place("b/x/7") },
        IndexPlace { lane: VAULT, ..place("b/x/7") },
        IndexPlace { n: 8, ..place("b/x/7") },
    ];
    for place in wrong {
        let error = BatchIndex::open(&key(), &place, &sealed).unwrap_err();
        assert!(matches!(error, IndexError::Unseal { source: UnsealError::Commitment, .. }), "{error}");
    }
    let other = CatalogKey::from_secret([0x23; 32]);
    assert!(BatchIndex::open(&other, &place("b/x/7"), &sealed).is_err());
    for (codec, plain_bytes) in [(Codec::Raw, sealed.plain_bytes), (sealed.codec, sealed.plain_bytes + 1)] {
        let altered = SealedIndex { codec, plain_bytes, bytes: sealed.bytes.clone() };
        if altered != sealed {
            assert!(BatchIndex::open(&key(), &place("b/x/7"), &altered).is_err());
        }
    }
}

#[test]
fn every_flipped_bit_of_a_sealed_index_is_noticed() {
    let good = sample().seal(&key(), &place("b/x/7")).unwrap();
    for bit in 0..good.bytes.len() * 8 {
        let mut bytes = good.bytes.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let altered = SealedIndex { bytes: bytes.into(), ..good.clone() };
        assert!(BatchIndex::open(&key(), &place("b/x/7"), &altered).is_err(), "bit {bit}");
    }
}

fn lane_index() -> (LaneIndexBuilder, Vec<String>) {
    let mut builder = LaneIndexBuilder::new(VAULT, LANE, 7);
    let names: Vec<String> = (7..10).map(|n| object_name(LANE, n)).collect();
    for (n, name) in (7..10).zip(&names) {
        let index = BatchIndex { n, ..sample() };
        let sealed = index.seal(&key(), &IndexPlace { n, ..place(name) }).unwrap();
        assert!(builder.push(n, 1000 + n, sealed));
    }
    (builder, names)
}

#[test]
fn a_lane_index_gives_back_every_batch_and_each_opens_as_in_its_batch() {
    let (builder, names) = lane_index();
    let object = builder.finish();
    let lane = LaneIndex::parse(&object).unwrap();
    assert_eq!((lane.vault, lane.lane, lane.first), (VAULT, LANE, 7));
    for (Entry { n, total_bytes, index }, name) in lane.entries.iter().zip(&names) {
        assert_eq!(*total_bytes, 1000 + n);
        let place = IndexPlace { n: *n, ..place(name) };
        assert_eq!(BatchIndex::open(&key(), &place, index).unwrap(), BatchIndex { n: *n, ..sample() });
    }
    assert_eq!(lane.entries.len(), 3);
}

/// The stored lane index of version 1 must be readable for ever.
#[test]
fn the_stored_lane_index_of_version_1_still_opens() {
    let (builder, names) = lane_index();
    let stored = fixture("index-lane.bin", &builder.finish());
    let lane = LaneIndex::parse(&stored.into()).unwrap();
    assert_eq!((lane.vault, lane.lane, lane.first, lane.entries.len()), (VAULT, LANE, 7, 3));
    for (entry, name) in lane.entries.iter().zip(&names) {
        let index = BatchIndex::open(&key(), &IndexPlace { n: entry.n, ..place(name) }, &entry.index).unwrap();
        assert_eq!(index, BatchIndex { n: entry.n, ..sample() });
    }
}

#[test]
fn a_lane_index_takes_batches_in_order_only_and_knows_when_it_is_full() {
    let sealed = SealedIndex { bytes: vec![0; 100].into(), codec: Codec::Raw, plain_bytes: 28 };
    let mut builder = LaneIndexBuilder::new(VAULT, LANE, 1);
    assert!(builder.is_empty());
    assert!(!builder.push(2, 0, sealed.clone()));
    for n in 1..=limits::LANE_INDEX_BATCHES {
        assert!(!builder.is_full());
        assert!(builder.push(n, 0, sealed.clone()));
    }
    assert!(builder.is_full());
    assert!(!builder.push(1, 0, sealed.clone()));
    let mut large = LaneIndexBuilder::new(VAULT, LANE, 1);
    assert!(large.push(1, 0, SealedIndex { bytes: vec![0; LANE_INDEX_BYTES_TARGET].into(), ..sealed }));
    assert!(large.is_full());
}

#[test]
fn every_flipped_bit_and_every_cut_of_a_lane_index_is_noticed() {
    let (builder, names) = lane_index();
    let good = builder.finish();
    let readable = |object: &bytes::Bytes| -> Result<(), BatchError> {
        let lane = LaneIndex::parse(object)?;
        assert_eq!(lane.entries.len(), 3);
        for (entry, name) in lane.entries.iter().zip(&names) {
            BatchIndex::open(
                &key(),
                &IndexPlace { vault: lane.vault, object: name, lane: lane.lane, n: entry.n },
                &entry.index,
            )?;
        }
        Ok(())
    };
    readable(&good).unwrap();
    for bit in 0..good.len() * 8 {
        let mut bytes = good.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(readable(&bytes.into()).is_err(), "bit {bit}");
    }
    for length in 0..good.len() {
        assert!(LaneIndex::parse(&good.slice(..length)).is_err(), "{length}");
    }
    assert!(LaneIndex::parse(&[good.as_ref(), &[0]].concat().into()).is_err());
}

fn any_extent() -> impl Strategy<Value = Extent> {
    (0..limits::DISK_BYTES_MAX, 1..u32::MAX, any::<bool>()).prop_map(|(offset, length, zero)| {
        let length_bytes = length.min((limits::DISK_BYTES_MAX - offset).min(u64::from(u32::MAX)) as u32);
        let kind = if zero { ExtentKind::Zero } else { ExtentKind::Data };
        Extent { offset_bytes: offset, length_bytes, kind }
    })
}

fn any_kind() -> impl Strategy<Value = RecordKind> {
    prop_oneof![
        Just(RecordKind::Write),
        Just(RecordKind::Copy),
        Just(RecordKind::Barrier(BarrierKind::Crash)),
        Just(RecordKind::Barrier(BarrierKind::Fs)),
        Just(RecordKind::Barrier(BarrierKind::SyncBegin)),
    ]
}

fn any_record() -> impl Strategy<Value = RecordMeta> {
    let name = proptest::option::of("[a-zäß ]{0,40}");
    let extents = proptest::collection::vec(any_extent(), 0..5);
    (any::<u64>(), any::<u32>(), any_kind(), any::<[u8; 16]>(), any::<bool>(), name, extents).prop_map(
        |(label, uncertainty_micros, kind, group, grouped, name, extents)| RecordMeta {
            seq: Seq::NONE,
            label: Micros(label),
            uncertainty_micros,
            kind,
            group: if grouped { Id128(group) } else { Id128::NONE },
            name,
            extents,
        },
    )
}

fn any_message() -> impl Strategy<Value = MessageMeta> {
    let records = proptest::collection::vec(any_record(), 1..6);
    let chains = (proptest::option::of(any::<[u8; 32]>()), any::<[u8; 32]>());
    let sizes = (72..1_000_000_u32, 0..limits::MESSAGE_BYTES_MAX as u32, any::<bool>());
    (1..u64::MAX, 1..u64::MAX - 10, records, chains, any::<(u64, u64)>(), sizes).prop_map(
        |(epoch, first, mut records, chains, received, (stored_bytes, plain_bytes, raw))| {
            for (seq, record) in (first..).zip(&mut records) {
                record.seq = Seq(seq);
            }
            MessageMeta {
                epoch: Epoch(epoch),
                first: Seq(first),
                last: Seq(first + records.len() as u64 - 1),
                offset_bytes: 0,
                stored_bytes,
                plain_bytes,
                codec: if raw { Codec::Raw } else { Codec::Lz4 },
                chain_before: chains.0.map(Chain),
                chain_last: Chain(chains.1),
                received_first: Micros(received.0),
                received_last: Micros(received.1),
                records,
            }
        },
    )
}

fn any_index() -> impl Strategy<Value = BatchIndex> {
    let parts = proptest::collection::btree_map(
        "[a-z0-9][a-z0-9._-]{0,20}",
        proptest::collection::vec(any_message(), 1..4),
        0..4,
    );
    (any::<[u8; 16]>(), 1..u64::MAX, any::<u64>(), parts).prop_map(|(lane, n, confirmed, parts)| {
        let mut offset_bytes = 64;
        let mut disks = Vec::new();
        for (name, mut messages) in parts {
            for message in &mut messages {
                message.offset_bytes = offset_bytes;
                offset_bytes += u64::from(message.stored_bytes);
            }
            disks.push(DiskPart { disk: disk(&name), messages });
        }
        BatchIndex { lane: Id128(lane), n, confirmed_through: confirmed % n, disks }
    })
}

proptest! {
    #[test]
    fn any_index_comes_back(index in any_index()) {
        prop_assert_eq!(BatchIndex::decode(&index.encode()).unwrap(), index);
    }

    #[test]
    fn any_bytes_are_refused_or_are_the_one_encoding_of_an_index(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(index) = BatchIndex::decode(&bytes) {
            prop_assert_eq!(index.encode(), bytes);
        }
    }

    #[test]
    fn any_two_altered_bytes_decode_canonically_or_not_at_all(
        index in any_index(), at in any::<(usize, usize)>(), to in any::<(u8, u8)>(),
    ) {
        let mut bytes = index.encode();
        let length = bytes.len();
        bytes[at.0 % length] = to.0;
        bytes[at.1 % length] = to.1;
        if let Ok(index) = BatchIndex::decode(&bytes) {
            prop_assert_eq!(index.encode(), bytes);
        }
    }

    #[test]
    fn any_bytes_given_as_a_lane_index_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(LaneIndex::parse(&bytes.into()).is_err());
    }
}
