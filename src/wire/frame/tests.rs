use proptest::prelude::*;

use super::*;

fn encode(kind: Kind, body: &[u8]) -> Vec<u8> {
    let mut out = encode_header(kind, body.len() as u32, crc32c([body])).to_vec();
    out.extend_from_slice(body);
    out
}

/// A header with any fields and a right checksum.
fn header(kind: u8, version: u8, flags: u16, body_bytes: u32) -> Vec<u8> {
    let mut out = vec![kind, version];
    out.extend_from_slice(&flags.to_le_bytes());
    out.extend_from_slice(&body_bytes.to_le_bytes());
    out.extend_from_slice(&0_u32.to_le_bytes());
    let crc = crc32c([out.as_slice()]);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

type Decoded = Vec<(Kind, Vec<u8>)>;

/// Feeds `bytes` cut at `cuts` and returns the frames before the end or the first error.
fn decode(bytes: &[u8], cuts: &[usize]) -> (Decoded, Result<(), FrameError>) {
    let mut decoder = Decoder::new();
    let mut frames = Vec::new();
    let mut rest = Bytes::copy_from_slice(bytes);
    for &cut in cuts.iter().chain([&usize::MAX]) {
        decoder.push(rest.split_to(cut.min(rest.len())));
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => {
                    assert_eq!(frame.body_bytes, frame.body.iter().map(Bytes::len).sum::<usize>());
                    frames.push((frame.kind, frame.contiguous().to_vec()));
                }
                Ok(None) => break,
                Err(error) => return (frames, Err(error)),
            }
        }
    }
    let finished = decoder.finish();
    (frames, finished)
}

#[test]
fn crc32c_is_castagnoli() {
    assert_eq!(crc32c([&b"123456789"[..]]), 0xe306_9283);
    assert_eq!(crc32c([&b"1234"[..], b"", b"56789"]), 0xe306_9283);
}

proptest! {
    #[test]
    fn frames_survive_any_cut(
        bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..8),
        cuts in prop::collection::vec(0_usize..64, 0..200),
    ) {
        let bytes: Vec<u8> = bodies.iter().flat_map(|body| encode(Kind::Record, body)).collect();
        let (frames, end) = decode(&bytes, &cuts);
        prop_assert_eq!(end, Ok(()));
        prop_assert!(frames.iter().map(|(_, body)| body).eq(&bodies));
    }

    #[test]
    fn random_bytes_never_make_a_frame(bytes in prop::collection::vec(any::<u8>(), 0..4096), cuts in prop::collection::vec(0_usize..64, 0..20)) {
        let (frames, end) = decode(&bytes, &cuts);
        prop_assert!(frames.is_empty());
        prop_assert_eq!(end.is_ok(), bytes.is_empty());
    }

    #[test]
    fn one_flipped_bit_is_noticed_wherever_it_is(body in prop::collection::vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>()) {
        let mut bytes = encode(Kind::Ack, &body);
        let bit = at.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        let (frames, end) = decode(&bytes, &[]);
        prop_assert!(frames.is_empty());
        prop_assert!(end.is_err());
    }

    #[test]
    fn a_cut_stream_is_noticed(body in prop::collection::vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>()) {
        let bytes = encode(Kind::Record, &body);
        let (frames, end) = decode(&bytes[..at.index(bytes.len())], &[]);
        prop_assert!(frames.is_empty());
        prop_assert_eq!(end, if at.index(bytes.len()) == 0 { Ok(()) } else { Err(FrameError::Cut) });
    }
}

#[test]
fn what_this_version_does_not_have_is_refused_by_name() {
    let known = Kind::Ack as u8;
    for (bytes, expected) in [
        (header(known, 2, 0, 0), FrameError::Version { found: 2 }),
        (header(200, FRAME_VERSION, 0, 0), FrameError::Type { found: 200 }),
        (header(known, FRAME_VERSION, 0x0100, 0), FrameError::Flags { found: 0x0100 }),
        (vec![0; HEADER_BYTES], FrameError::HeaderCrc),
    ] {
        assert_eq!(decode(&bytes, &[]), (vec![], Err(expected)));
    }
}

#[test]
fn a_huge_length_is_refused_before_anything_is_kept() {
    for kind in Kind::ALL {
        let max_bytes = kind.body_bytes_max();
        for found_bytes in [max_bytes as u32 + 1, u32::MAX] {
            let mut decoder = Decoder::new();
            decoder.push(header(kind as u8, FRAME_VERSION, 0, found_bytes).into());
            let expected = FrameError::Oversized { kind, found_bytes, max_bytes };
            assert_eq!(decoder.next_frame(), Err(expected.clone()));
            decoder.push(Bytes::from_static(&[0; 64]));
            assert_eq!(decoder.next_frame(), Err(expected), "{kind:?}: the error stays");
            assert_eq!(decoder.queued_bytes, 0);
        }
    }
}

#[test]
fn a_body_is_handed_on_without_a_copy() {
    let body = vec![7_u8; 100_000];
    let stream = Bytes::from(encode(Kind::Record, &body));
    let mut decoder = Decoder::new();
    stream.chunks(1200).for_each(|chunk| decoder.push(stream.slice_ref(chunk)));
    let frame = decoder.next_frame().expect("good").expect("whole");
    let range = stream.as_ptr_range();
    assert!(frame.body.len() > 80);
    assert!(frame.body.iter().all(|piece| range.contains(&piece.as_ptr())), "a piece lies outside the stream's buffer");
}

#[test]
fn crumbs_are_put_together_so_that_they_do_not_keep_datagrams_alive() {
    let body: Vec<u8> = (0..200_000_u32).map(|i| i as u8).collect();
    let stream = Bytes::from(encode(Kind::Record, &body));
    let mut decoder = Decoder::new();
    let mut found = None;
    for chunk in stream.chunks(1) {
        decoder.push(Bytes::copy_from_slice(chunk));
        found = found.or(decoder.next_frame().expect("good"));
    }
    let frame = found.expect("whole");
    assert!(frame.body.len() <= body.len() / CRUMB_RUN + CRUMB_RUN, "{} pieces", frame.body.len());
    assert_eq!(frame.contiguous(), body);
}
