use bytes::BytesMut;
use proptest::prelude::*;

use super::super::index::tests::{key, place, sample};
use super::*;
use crate::keys::LaneKey;
use crate::pipeline::message::{self, MessageContext, Scratch};
use crate::pipeline::testing::{LANE, VAULT, Writer, fixture, noise};
use crate::types::{BarrierKind, Chain, Micros, RecordView};
use crate::vault::index::RecordMeta;

const NAME: &str = "b/b2b/b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2/000000000007";

fn header() -> BatchHeader {
    BatchHeader { vault: VAULT, lane: LANE, n: 7 }
}

fn trailer() -> BatchTrailer {
    BatchTrailer {
        lane: LANE,
        n: 7,
        index_offset_bytes: 1000,
        index_stored_bytes: 300,
        index_plain_bytes: 900,
        index_codec: Codec::Lz4,
        total_bytes: 1364,
        messages: 4,
    }
}

/// A batch of `sample` rows over made-up sealed bytes: enough for everything but opening messages.
fn batch() -> FinishedBatch {
    let mut builder = BatchBuilder::new(header());
    let mut messages: Vec<_> = sample()
        .disks
        .into_iter()
        .flat_map(|part| part.messages.into_iter().map(move |message| (part.disk.clone(), message)))
        .collect();
    messages.sort_by_key(|(_, message)| message.offset_bytes);
    for (disk, message) in messages {
        builder.push(&disk, message, noise(1, 200).into());
    }
    assert_eq!(builder.body_bytes(), 864);
    builder.finish(&key(), NAME, 5).unwrap()
}

/// Reads a batch as a reader does that only knows its size.
fn read(body: &Bytes, first_bytes: u64) -> Result<BatchIndex, BatchError> {
    let total_bytes = body.len() as u64;
    let tail = body.slice(body.len() - first_bytes.min(total_bytes) as usize..);
    let (trailer, index) = match parse_tail(total_bytes, &tail)? {
        Tail::Whole { trailer, index } => (trailer, index),
        Tail::More { range, .. } => {
            match parse_tail(total_bytes, &body.slice(range.start as usize..range.end as usize))? {
                Tail::Whole { trailer, index } => (trailer, index),
                Tail::More { .. } => panic!("asked for more twice"),
            }
        }
    };
    open_index(&key(), &place(NAME), &trailer, &index)
}

#[test]
fn header_and_trailer_come_back_and_every_flipped_bit_is_noticed() {
    assert_eq!(BatchHeader::decode(&header().encode()).unwrap(), header());
    assert_eq!(BatchTrailer::decode(1364, &trailer().encode()).unwrap(), trailer());
    for bit in 0..512 {
        let (mut head, mut tail) = (header().encode(), trailer().encode());
        head[bit / 8] ^= 1 << (bit % 8);
        tail[bit / 8] ^= 1 << (bit % 8);
        assert!(BatchHeader::decode(&head).is_err(), "header bit {bit}");
        assert!(BatchTrailer::decode(1364, &tail).is_err(), "trailer bit {bit}");
    }
    for length in 0..64 {
        assert!(BatchHeader::decode(&header().encode()[..length]).is_err());
        assert!(BatchTrailer::decode(1364, &trailer().encode()[..length]).is_err());
    }
}

#[test]
fn a_trailer_whose_index_leaves_the_object_is_refused() {
    let wrong = [
        BatchTrailer { index_offset_bytes: 63, ..trailer() },
        BatchTrailer { index_offset_bytes: 1001, ..trailer() },
        BatchTrailer { index_stored_bytes: 299, ..trailer() },
        BatchTrailer { index_offset_bytes: u64::MAX, ..trailer() },
        BatchTrailer { n: 0, ..trailer() },
    ];
    for trailer in wrong {
        assert!(matches!(BatchTrailer::decode(1364, &trailer.encode()), Err(BatchError::Field { .. })), "{trailer:?}");
    }
}

#[test]
fn an_object_that_was_cut_or_has_grown_is_noticed_by_its_size() {
    let good = Bytes::from(batch().body);
    assert_eq!(
        parse_tail(good.len() as u64 + 1, &good),
        Err(BatchError::Size { found_bytes: good.len() as u64 + 1, stated_bytes: good.len() as u64 })
    );
    for length in 0..good.len() {
        assert!(read(&good.slice(..length), TAIL_BYTES).is_err(), "{length}");
    }
}

#[test]
fn a_finished_batch_is_read_back_from_its_tail_alone() {
    let FinishedBatch { body, index, sealed_index } = batch();
    assert_eq!(index, sample());
    let body = Bytes::from(body);
    assert_eq!(read(&body, TAIL_BYTES).unwrap(), sample());
    assert_eq!(tail_range(body.len() as u64), 0..body.len() as u64);
    assert_eq!(tail_range(100_000), 34_464..100_000);
    match parse_tail(body.len() as u64, &body).unwrap() {
        Tail::Whole { trailer, index } => {
            assert_eq!(index, sealed_index);
            let range = trailer.index_range();
            assert_eq!(body.slice(range.start as usize..range.end as usize), index.bytes);
        }
        more => panic!("{more:?}"),
    }
}

#[test]
fn a_tail_that_is_too_short_for_the_index_says_what_to_read() {
    let body = Bytes::from(batch().body);
    for first_bytes in [64, 65, 200] {
        assert_eq!(read(&body, first_bytes).unwrap(), sample(), "{first_bytes}");
    }
    assert!(read(&body, 63).is_err());
}

#[test]
fn every_flipped_bit_outside_the_messages_is_noticed_from_header_and_tail() {
    let good = Bytes::from(batch().body).to_vec();
    for bit in 0..good.len() * 8 {
        if (64..864).contains(&(bit / 8)) {
            continue;
        }
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let body = Bytes::from(bytes);
        let noticed = BatchHeader::decode(&body).is_err() || read(&body, TAIL_BYTES).is_err();
        assert!(noticed, "bit {bit}");
    }
}

#[test]
fn a_batch_under_another_name_or_number_is_refused() {
    let body = Bytes::from(batch().body);
    let Tail::Whole { trailer, index } = parse_tail(body.len() as u64, &body).unwrap() else { panic!("small") };
    let renamed = open_index(&key(), &place("b/other"), &trailer, &index);
    assert!(matches!(renamed, Err(BatchError::Index(IndexError::Unseal { .. }))));
    let moved = open_index(&key(), &IndexPlace { n: 8, ..place(NAME) }, &trailer, &index);
    assert_eq!(moved, Err(BatchError::Place { lane: LANE, n: 7 }));
    let miscounted = open_index(&key(), &place(NAME), &BatchTrailer { messages: 5, ..trailer }, &index);
    assert_eq!(miscounted, Err(BatchError::Field { part: "trailer", field: "messages" }));
}

/// A whole batch with real records, as a gateway makes it.
fn real_batch() -> (Vec<u8>, Vec<Vec<u8>>) {
    let lane_key = LaneKey::from_secret([0x11; 32]).into();
    let mut builder = BatchBuilder::new(header());
    let mut plains = Vec::new();
    for name in ["web-1", "db-1"] {
        let mut writer = Writer::new(name);
        let records =
            [writer.write(4096, &[7; 700]), writer.zeroes(3), writer.barrier(BarrierKind::Crash, "before lunch")];
        let rows: Vec<RecordMeta> = records
            .iter()
            .map(|record| {
                let (view, _) = RecordView::split(record).unwrap();
                let extents = view.head.decode_extents(view.table, 1 << 30).unwrap();
                RecordMeta::new(&view.head, extents, view.barrier_name().map(str::to_owned))
            })
            .collect();
        let plain = records.concat();
        let mut context = MessageContext {
            vault: VAULT,
            object: NAME,
            disk: &writer.disk,
            epoch: writer.epoch,
            first: rows[0].seq,
            last: rows[2].seq,
            codec: Codec::Raw,
            plain_bytes: 0,
        };
        let mut scratch = Scratch::default();
        let (info, sealed) = message::seal(&lane_key, &context, &plain, &mut scratch, BytesMut::with_capacity).unwrap();
        context.codec = info.codec;
        let meta = MessageMeta {
            epoch: writer.epoch,
            first: context.first,
            last: context.last,
            offset_bytes: 0,
            stored_bytes: 0,
            plain_bytes: plain.len() as u32,
            codec: info.codec,
            chain_before: Some(Chain::GENESIS),
            chain_last: writer.chain,
            received_first: Micros(5),
            received_last: Micros(6),
            origin: None,
            records: rows,
        };
        builder.push(&writer.disk, meta, sealed.freeze());
        plains.push(plain);
    }
    (Bytes::from(builder.finish(&key(), NAME, 3).unwrap().body).to_vec(), plains)
}

/// The stored batch of version 1 must be readable for ever, down to the records.
#[test]
fn the_stored_batch_of_version_1_still_opens() {
    let (made, plains) = real_batch();
    let body = Bytes::from(fixture("batch.bin", &made));
    assert_eq!(BatchHeader::decode(&body).unwrap(), header());
    let index = read(&body, TAIL_BYTES).unwrap();
    assert_eq!((index.n, index.confirmed_through, index.record_count()), (7, 3, 6));
    assert_eq!(index.disks.iter().map(|part| part.disk.as_str()).collect::<Vec<_>>(), ["db-1", "web-1"]);
    let lane_key = LaneKey::from_secret([0x11; 32]).into();
    for (part, plain) in index.disks.iter().zip(plains.iter().rev()) {
        let meta = &part.messages[0];
        let context = MessageContext {
            vault: VAULT,
            object: NAME,
            disk: &part.disk,
            epoch: meta.epoch,
            first: meta.first,
            last: meta.last,
            codec: meta.codec,
            plain_bytes: meta.plain_bytes,
        };
        let start = meta.offset_bytes as usize;
        let mut out = Vec::new();
        message::open(&lane_key, &context, &body[start..start + meta.stored_bytes as usize], &mut out).unwrap();
        assert_eq!(&out, plain);
        let (view, _) = RecordView::split(&out).unwrap();
        view.check_digest().unwrap();
        assert_eq!(meta.records[2].name.as_deref(), Some("before lunch"));
    }
}

#[test]
fn the_stored_record_of_version_1_is_still_read_and_written() {
    let made = Writer::new("web-1").write(4096, b"tidegate");
    let stored = fixture("record.bin", &made);
    let (view, rest) = RecordView::split(&stored).unwrap();
    view.check_digest().unwrap();
    assert_eq!(view.head.chain_after(Chain::GENESIS), view.head.chain);
    assert_eq!((view.payload, rest), (&b"tidegate"[..], &b""[..]));
    assert_eq!(stored, made);
}

proptest! {
    #[test]
    fn any_bytes_given_as_a_tail_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300), more in 0..100_u64) {
        let total = bytes.len() as u64 + more;
        prop_assert!(parse_tail(total, &bytes.into()).is_err());
    }

    #[test]
    fn a_tail_with_a_valid_checksum_and_any_fields_never_panics(
        fields in proptest::array::uniform32(any::<u8>()), total in 0..5000_u64, exact in any::<bool>(),
    ) {
        let mut bytes = trailer().encode();
        bytes[4..36].copy_from_slice(&fields);
        if exact {
            bytes[24..32].copy_from_slice(&total.to_le_bytes());
        }
        let crc = crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        let tail = [vec![0; 500], bytes.to_vec()].concat();
        let _ = parse_tail(total, &tail.into());
    }
}
