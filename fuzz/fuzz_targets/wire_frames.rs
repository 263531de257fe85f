//! Any bytes in any cut: the decoder gives checked frames or an error, messages encode to what they were decoded
//! from, and records pass the rules of a stream or are refused.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use tidegate::types::{Epoch, Seq};
use tidegate::wire::frame::{Decoder, FRAME_VERSION, HEADER_BYTES, Kind, crc32c, encode_header};
use tidegate::wire::inbound::Inbound;
use tidegate::wire::messages::Message;

/// Gives the bytes right checksums, so that the fuzzer gets past them; kind and length stay as they are.
fn mended(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len());
    let mut rest = data;
    while let [kind, length, body @ ..] = rest {
        let kind = Kind::ALL[usize::from(*kind) % Kind::ALL.len()];
        let (body, after) = body.split_at(body.len().min(usize::from(*length)));
        out.extend_from_slice(&encode_header(kind, body.len() as u32, crc32c([body])));
        out.extend_from_slice(body);
        rest = after;
    }
    out
}

fn feed(stream: &[u8], cut: usize) {
    let stream = Bytes::copy_from_slice(stream);
    let mut decoder = Decoder::new();
    let mut inbound = Inbound::new(Epoch(1), Seq(1), None, 1 << 30);
    for chunk in stream.chunks(cut) {
        decoder.push(stream.slice_ref(chunk));
        while let Ok(Some(frame)) = decoder.next_frame() {
            assert!(frame.body_bytes <= frame.kind.body_bytes_max());
            assert_eq!(crc32c(frame.body.iter().map(Bytes::as_ref)), frame.body_crc);
            if frame.kind == Kind::Record {
                let _ = inbound.accept(&frame, 1 << 20);
                continue;
            }
            let body = frame.clone().contiguous();
            if let Ok(message) = Message::decode(frame) {
                assert_eq!(message.encode()[1], FRAME_VERSION);
                assert_eq!(message.encode()[HEADER_BYTES..], body[..]);
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&cut, data)) = data.split_first() else { return };
    let cut = usize::from(cut).max(1);
    feed(data, cut);
    feed(&mended(data), cut);
});
