//! Frames, messages and records as they come from a peer.

use bytes::Bytes;

use crate::limits::DISK_BYTES_MAX;
use crate::types::{
    Chain, Epoch, RECORD_HEAD_BYTES, RECORD_MAGIC, RecordHead, RecordKind, RecordView, Seq, encode_extents,
};
use crate::wire::frame::{Decoder, FRAME_VERSION, Frame, HEADER_BYTES, Kind, crc32c, encode_header};
use crate::wire::inbound::Inbound;
use crate::wire::messages::Message;

const DISK_BYTES: u64 = 1 << 30;

/// First byte: length of the cuts. The rest is a stream: as it is, as (kind, length, body) triples with right checksums,
/// and the same with records that follow each other.
pub(super) fn frames(input: &[u8]) {
    let Some((cut, stream)) = super::mode(input) else { return };
    let cut = usize::from(cut).max(1);
    for stream in [stream.to_vec(), mended(stream, false), mended(stream, true)] {
        let stream = Bytes::from(stream);
        let whole = feed(&stream, stream.len().max(1));
        assert_eq!(feed(&stream, cut), whole, "the cut must not matter");
        take(whole);
    }
}

/// Gives the bytes right checksums; kind and length stay as they are. Lengths have two bytes, so that records fit.
fn mended(data: &[u8], records: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len());
    let mut rest = data;
    let (mut chain, mut seq) = (Chain::GENESIS, Seq(1));
    while let [kind, low, high, body @ ..] = rest {
        let kind = Kind::ALL[usize::from(*kind) % Kind::ALL.len()];
        let (body, after) = body.split_at(body.len().min(usize::from(u16::from_le_bytes([*low, *high]))));
        let mut body = body.to_vec();
        if records && kind == Kind::Record {
            follow(&mut body, &mut chain, &mut seq);
        }
        out.extend_from_slice(&encode_header(kind, body.len() as u32, crc32c([body.as_slice()])));
        out.extend_from_slice(&body);
        rest = after;
    }
    out
}

/// Makes a record's head one that the stream may bring next, if all else of it is sound.
fn follow(body: &mut [u8], chain: &mut Chain, seq: &mut Seq) {
    if body.len() < RECORD_HEAD_BYTES {
        return;
    }
    body[..4].copy_from_slice(&RECORD_MAGIC);
    body[16..24].copy_from_slice(&1_u64.to_le_bytes());
    body[24..32].copy_from_slice(&seq.0.to_le_bytes());
    if let Ok(head) = RecordHead::decode(body) {
        let head = head.sealed_after(*chain);
        body[..RECORD_HEAD_BYTES].copy_from_slice(&head.encode());
        *chain = head.chain;
        *seq = seq.next();
    }
}

/// The frames of a stream that comes in pieces of `cut` bytes, and whether it ended in an error.
fn feed(stream: &Bytes, cut: usize) -> (Vec<(Kind, Vec<u8>)>, bool) {
    let mut decoder = Decoder::new();
    let mut frames = Vec::new();
    for chunk in stream.chunks(cut) {
        decoder.push(stream.slice_ref(chunk));
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(checked(frame)),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(decoder.next_frame(), Err(error), "an error stays");
                    return (frames, true);
                }
            }
        }
    }
    (frames, decoder.finish().is_err())
}

fn checked(frame: Frame) -> (Kind, Vec<u8>) {
    assert!(frame.body_bytes <= frame.kind.body_bytes_max());
    assert_eq!(crc32c(frame.body.iter().map(Bytes::as_ref)), frame.body_crc);
    assert_eq!(frame.body.iter().map(Bytes::len).sum::<usize>(), frame.body_bytes);
    (frame.kind, frame.contiguous().to_vec())
}

/// What a gateway does with them.
fn take((frames, _): (Vec<(Kind, Vec<u8>)>, bool)) {
    let mut inbound = Inbound::new(Epoch(1), Seq(1), None, DISK_BYTES);
    for (kind, body) in frames {
        let pieces = body.chunks(100).map(Bytes::copy_from_slice).collect();
        let frame = Frame { kind, body_crc: crc32c([body.as_slice()]), body_bytes: body.len(), body: pieces };
        if kind == Kind::Record {
            let before = inbound.last();
            match inbound.accept(&frame, 1 << 20) {
                Ok(head) => {
                    assert_eq!(head.seq, before.next());
                    record(&body);
                }
                Err(violation) => assert!(!violation.to_string().is_empty()),
            }
        } else if let Ok(message) = Message::decode(frame) {
            let again = message.encode();
            assert_eq!(again[1], FRAME_VERSION);
            assert_eq!(again[HEADER_BYTES..], body[..], "{message:?}");
        }
    }
}

/// Bytes as records, back to back.
pub(super) fn record(input: &[u8]) {
    let mut rest = input;
    while let Ok((view, after)) = RecordView::split(rest) {
        let RecordView { head, table, payload } = view;
        assert_eq!(head.encode(), rest[..RECORD_HEAD_BYTES], "a head has one encoding");
        assert_eq!(head.record_bytes(), rest.len() - after.len());
        assert_eq!(RECORD_HEAD_BYTES + table.len() + payload.len(), head.record_bytes());
        let _ = view.check_digest();
        let named = view.barrier_name().is_some();
        assert!(!named || matches!(head.kind, RecordKind::Barrier(_)));
        assert_eq!(head.point().to_string().parse(), Ok(head.point()));
        let _ = head.label.to_string();
        if head.is_signed() {
            assert!(matches!(head.kind, RecordKind::Barrier(_)) && !table.is_empty());
        } else if let Ok(extents) = head.decode_extents(table, DISK_BYTES_MAX) {
            let mut again = Vec::new();
            encode_extents(&extents, &mut again);
            assert_eq!(again, table, "a table has one encoding");
            assert!(extents.iter().all(|extent| extent.end_bytes() <= DISK_BYTES_MAX));
        }
        rest = after;
    }
}
