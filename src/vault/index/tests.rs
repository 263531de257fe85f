use proptest::prelude::*;

use super::folded::{
    FOLDED_BYTES_MAX, FOLDED_BYTES_TARGET, FoldedBounds, FoldedBuilder, FoldedIndex, FoldedPlace, SealedFolded,
};
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
        origin: None,
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

/// The same as a keeper would have moved it, from three batches, one of them named twice; and a message of its own.
pub(crate) fn moved_sample() -> BatchIndex {
    let mut index = sample();
    let origin = |lane, n, put_by| Some(Origin { lane: Id128([lane; 16]), n, put_by: Micros(put_by) });
    index.disks[0].messages[0].origin = origin(5, 9, 1_800_000_000_000_000);
    index.disks[1].messages[0].origin = origin(5, 8, 1_800_000_001_000_000);
    index.disks[1].messages[2].origin = origin(5, 9, 1_800_000_000_000_000);
    index
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
fn the_stored_index_of_version_2_is_still_read_and_written() {
    let made = moved_sample().encode();
    let stored = fixture("../v2/index.bin", &made);
    assert_eq!((stored[0], BatchIndex::decode(&stored).unwrap()), (2, moved_sample()));
    assert_eq!(stored, made);
}

#[test]
fn an_index_of_a_later_version_is_told_as_such() {
    let mut bytes = sample().encode();
    bytes[0] = 3;
    let error = BatchIndex::decode(&bytes).unwrap_err();
    assert_eq!(error, IndexError::Version { found: 3, newest: 2 });
    assert_eq!(error.fault(), Fault::Reject, "it is whole, and not for this build");
}

#[test]
fn a_cut_index_is_refused_at_every_length() {
    for plain in [sample().encode(), moved_sample().encode()] {
        for length in 0..plain.len() {
            assert!(BatchIndex::decode(&plain[..length]).is_err(), "{length}");
        }
        assert!(BatchIndex::decode(&[plain.as_slice(), &[0]].concat()).is_err());
    }
}

#[test]
fn an_altered_plaintext_is_refused_or_decodes_to_another_index_which_encodes_to_those_bytes() {
    for plain in [sample().encode(), moved_sample().encode()] {
        for bit in 0..plain.len() * 8 {
            let mut bytes = plain.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(index) = BatchIndex::decode(&bytes) {
                assert_eq!(index.encode(), bytes, "bit {bit}: two encodings of one index");
            }
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
fn origins_stand_once_each_in_the_order_in_which_messages_name_them_and_are_other_batches() {
    let decoded = |alter: fn(&mut BatchIndex)| {
        let mut index = moved_sample();
        alter(&mut index);
        BatchIndex::decode(&index.encode())
    };
    let origin = |index: &mut BatchIndex, alter: fn(&mut Origin)| {
        index.disks[1].messages[0].origin.iter_mut().for_each(alter);
    };
    let refused = |found, what: &str| match found {
        Err(IndexError::Encoding { what: found, .. }) => assert_eq!(found, what),
        other => panic!("{what}: {other:?}"),
    };
    assert!(decoded(|_| ()).is_ok());
    refused(
        decoded(|index| index.disks[1].messages[0].origin = Some(Origin { lane: LANE, n: 7, put_by: Micros(1) })),
        "origin",
    );
    let mut zero = moved_sample();
    origin(&mut zero, |origin| origin.n = 0);
    refused(BatchIndex::decode(&zero.encode()), "origin");
    // The same batch with two times.
    let mut twice = moved_sample();
    origin(&mut twice, |origin| origin.n = 9);
    refused(BatchIndex::decode(&twice.encode()), "origin");
    // Version 2, and no origin at all: that is version 1.
    let mut bytes = sample().encode();
    bytes[0] = 2;
    bytes.insert(19, 0);
    refused(BatchIndex::decode(&bytes), "origin count");
    // An origin that no message names.
    let mut bytes = moved_sample().encode();
    assert_eq!(bytes[19], 2, "a count of origins");
    bytes[19] = 3;
    let third = [&[6; 16][..], &[1, 1]].concat();
    let end = 20 + 2 * (16 + 1 + 8);
    bytes.splice(end..end, third);
    refused(BatchIndex::decode(&bytes), "origin that no message has");
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
                origin: None,
                records,
            }
        },
    )
}

/// None, or one of a few batches, so that several messages come from one.
fn any_origin() -> impl Strategy<Value = Option<Origin>> {
    let origin = (1..3_u8, 1..4_u64);
    proptest::option::of(origin.prop_map(|(lane, n)| {
        // One time for each: it is the batch's own.
        Origin { lane: Id128([lane; 16]), n, put_by: Micros(u64::from(lane) << 40 | n) }
    }))
}

fn any_index() -> impl Strategy<Value = BatchIndex> {
    let parts = proptest::collection::btree_map(
        "[a-z0-9][a-z0-9._-]{0,20}",
        proptest::collection::vec((any_message(), any_origin()), 1..4),
        0..4,
    );
    (any::<[u8; 16]>(), 1..u64::MAX, any::<u64>(), parts).prop_map(|(lane, n, confirmed, parts)| {
        let mut offset_bytes = 64;
        let mut disks = Vec::new();
        for (name, messages) in parts {
            let moved = messages.into_iter().map(|(message, origin)| MessageMeta { origin, ..message });
            let mut messages: Vec<MessageMeta> = moved.collect();
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

fn folded_place(object: &str) -> FoldedPlace<'_> {
    FoldedPlace { vault: VAULT, object, lane: LANE, part: 1 }
}

fn folded_object() -> (String, BatchIndex, FoldedBuilder) {
    let disk = disk("web-1");
    let mut index = sample();
    index.disks.retain(|part| part.disk == disk);
    let mut builder = FoldedBuilder::default();
    for n in [7, 9] {
        builder.push(1000 + n, &BatchIndex { n, ..index.clone() }.encode());
    }
    (crate::vault::names::folded(&disk, LANE, 1).to_string(), index, builder)
}

/// The plaintext of rows, for the fuzzer: of the disk `d` in lane 0.
pub(crate) fn folded_rows() -> Vec<u8> {
    let mut rows = Vec::new();
    for n in [7, 9] {
        let mut index = BatchIndex { lane: Id128::NONE, n, ..sample() };
        index.disks.truncate(1);
        index.disks[0].disk = disk("d");
        let encoded = index.encode();
        rows.extend_from_slice(&(1000 + n).to_le_bytes());
        rows.extend_from_slice(&(encoded.len() as u32).to_le_bytes());
        rows.extend_from_slice(&encoded);
    }
    rows
}

const FOLDED_BOUNDS: FoldedBounds = FoldedBounds { first: 1, last: 12, confirmed_through: 11, is_last: true };

fn check_folded(object: &bytes::Bytes) {
    let (name, index, _) = folded_object();
    let sealed = SealedFolded::parse(&folded_place(&name), object).unwrap();
    let folded = sealed.open(&key(), &folded_place(&name), &disk("web-1")).unwrap();
    assert_eq!(folded.bounds, FOLDED_BOUNDS);
    let rows: Vec<_> = folded.batches.iter().map(|batch| (batch.total_bytes, batch.index.clone())).collect();
    assert_eq!(rows, [7, 9].map(|n| (1000 + n, BatchIndex { n, ..index.clone() })));
    assert!(FoldedIndex::are_whole(&[folded]));
    assert_eq!(sealed.encode(&folded_place(&name)), object);
}

/// The stored folded index of version 1 must be readable for ever.
#[test]
fn the_stored_folded_index_of_version_1_still_opens() {
    let (name, _, builder) = folded_object();
    let made = builder.finish(&key(), &folded_place(&name), FOLDED_BOUNDS).unwrap();
    check_folded(&made);
    check_folded(&fixture("index-folded.bin", &made).into());
}

#[test]
fn every_flipped_bit_every_cut_and_every_other_place_of_a_folded_index_is_noticed() {
    let (name, _, builder) = folded_object();
    let good = builder.finish(&key(), &folded_place(&name), FOLDED_BOUNDS).unwrap();
    let web = disk("web-1");
    let open = |object: &bytes::Bytes, place: &FoldedPlace<'_>, key: &CatalogKey, disk: &DiskId| {
        SealedFolded::parse(place, object)?.open(key, place, disk)
    };
    assert!(open(&good, &folded_place(&name), &key(), &web).is_ok());
    for bit in 0..good.len() * 8 {
        let mut bytes = good.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(open(&bytes.into(), &folded_place(&name), &key(), &web).is_err(), "bit {bit}");
    }
    for length in 0..good.len() {
        assert!(open(&good.slice(..length), &folded_place(&name), &key(), &web).is_err(), "{length}");
    }
    let more = [good.as_ref(), &[0]].concat();
    assert!(open(&more.into(), &folded_place(&name), &key(), &web).is_err());
    let renamed = name.replace("web-1", "web-2");
    let other_key = CatalogKey::from_secret([0x23; 32]);
    assert!(open(&good, &folded_place(&renamed), &key(), &web).is_err(), "renamed");
    assert!(open(&good, &folded_place(&name), &other_key, &web).is_err(), "of another vault's key");
    assert!(open(&good, &folded_place(&name), &key(), &disk("web-2")).is_err(), "asked for another disk");
    assert!(open(&good, &FoldedPlace { part: 2, ..folded_place(&name) }, &key(), &web).is_err(), "another part");
}

#[test]
fn a_part_that_is_closed_at_its_target_stays_within_the_bound_of_what_is_read() {
    let (name, _, _) = folded_object();
    // What no codec makes smaller.
    let mut state = 1_u64;
    let mut noise = |bytes: usize| -> Vec<u8> {
        let words = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 32) as u32
        });
        words.take(bytes / 4).flat_map(u32::to_le_bytes).collect()
    };
    let mut builder = FoldedBuilder::default();
    while builder.stored_bytes() + 1024 < FOLDED_BYTES_TARGET {
        builder.push(1, &noise(1000));
    }
    builder.push(1, &noise(INDEX_PLAIN_BYTES_MAX));
    assert!(builder.stored_bytes() >= FOLDED_BYTES_TARGET, "it is closed here");
    let object = builder.finish(&key(), &folded_place(&name), FOLDED_BOUNDS).unwrap();
    assert!(object.len() as u64 <= FOLDED_BYTES_MAX);
    assert!(SealedFolded::parse(&folded_place(&name), &object).is_ok());
}

#[test]
fn parts_are_whole_only_from_the_first_batch_to_the_last_without_a_gap() {
    let part = |first, last, is_last| FoldedIndex {
        bounds: FoldedBounds { first, last, confirmed_through: 0, is_last },
        batches: Vec::new(),
    };
    assert!(FoldedIndex::are_whole(&[part(1, 0, true)]), "a lane without a batch");
    assert!(FoldedIndex::are_whole(&[part(1, 9, false), part(10, 12, true)]));
    for wrong in [
        vec![],
        vec![part(2, 9, true)],
        vec![part(1, 9, false)],
        vec![part(1, 9, false), part(11, 12, true)],
        vec![part(1, 9, false), part(9, 12, true)],
        vec![part(1, 9, true), part(10, 12, true)],
    ] {
        assert!(!FoldedIndex::are_whole(&wrong), "{wrong:?}");
    }
}

proptest! {
    #[test]
    fn any_bytes_given_as_a_folded_index_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(SealedFolded::parse(&folded_place("d/a/f/b/0001"), &bytes.into()).is_err());
    }
}
