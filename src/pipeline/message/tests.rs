use super::*;
use crate::keys::{DiskKey, DiskSecret, LaneKey};
use crate::pipeline::testing::{LANE, VAULT, disk, noise, object_name};
use proptest::prelude::*;

fn lane_key() -> LaneKey {
    LaneKey::from_secret([0x11; 32])
}

fn key() -> MessageKey {
    lane_key().into()
}

/// Of a disk whose key is so many times `byte`.
fn disk_key(byte: u8) -> MessageKey {
    DiskSecret::new(&lane_key(), &DiskKey::from_secret([byte; 32])).into()
}

struct Sealed {
    bytes: Vec<u8>,
    disk: DiskId,
    object: String,
    info: SealedInfo,
    plain_bytes: u32,
}

impl Sealed {
    fn new(plain: &[u8]) -> Self {
        Self::packed_by(Packing::Lz4, plain)
    }

    fn packed_by(packing: Packing, plain: &[u8]) -> Self {
        let mut scratch = Scratch::new(packing);
        let (disk, object) = (disk("web-1"), object_name(LANE, 7));
        let context = MessageContext {
            vault: VAULT,
            object: &object,
            disk: &disk,
            epoch: Epoch(2),
            first: Seq(10),
            last: Seq(19),
            codec: Codec::Raw,
            plain_bytes: 0,
        };
        let (info, bytes) = seal(&key(), &context, plain, &mut scratch, BytesMut::with_capacity).unwrap();
        assert_eq!(info.stored_bytes as usize, bytes.len());
        let bytes = bytes.to_vec();
        Self { bytes, disk, object, info, plain_bytes: plain.len() as u32 }
    }

    fn context(&self) -> MessageContext<'_> {
        MessageContext {
            vault: VAULT,
            object: &self.object,
            disk: &self.disk,
            epoch: Epoch(2),
            first: Seq(10),
            last: Seq(19),
            codec: self.info.codec,
            plain_bytes: self.plain_bytes,
        }
    }

    fn opened(&self, context: &MessageContext<'_>) -> Result<Vec<u8>, OpenError> {
        let mut out = vec![9; 5];
        open(&key(), context, &self.bytes, &mut out).map(|()| out)
    }
}

#[test]
fn tiny_huge_packable_and_random_messages_come_back_as_they_were() {
    let huge = noise(1, limits::MESSAGE_BYTES_MAX);
    for plain in [&b""[..], b"t", &[0; 128], &b"tidegate".repeat(1000), &noise(2, 300_000), &huge] {
        for packing in [Packing::Lz4, Packing::Zstd(1), Packing::Zstd(9), Packing::None] {
            let sealed = Sealed::packed_by(packing, plain);
            assert_eq!(sealed.opened(&sealed.context()).unwrap(), plain);
        }
    }
}

#[test]
fn what_cannot_be_packed_is_stored_raw_with_nothing_but_the_seal_around_it() {
    let sealed = Sealed::new(&noise(3, 100_000));
    assert_eq!(sealed.info.codec, Codec::Raw);
    assert_eq!(sealed.bytes.len(), 100_000 + SEAL_HEAD_BYTES + 16);
    let sealed = Sealed::new(&[5; 100_000]);
    assert_eq!(sealed.info.codec, Codec::Lz4);
    assert!(packing_pays(100_000, sealed.bytes.len()));
    let sealed = Sealed::packed_by(Packing::Zstd(3), &noise(3, 100_000));
    assert_eq!((sealed.info.codec, sealed.bytes.len()), (Codec::Raw, 100_000 + SEAL_HEAD_BYTES + 16));
    assert_eq!(Sealed::packed_by(Packing::Zstd(3), &[5; 100_000]).info.codec, Codec::Zstd);
    assert_eq!(Sealed::packed_by(Packing::None, &[5; 100_000]).info.codec, Codec::Raw);
}

#[test]
fn more_than_a_message_may_hold_is_refused_both_ways() {
    let plain = vec![0; limits::MESSAGE_BYTES_MAX + 1];
    let sealed = Sealed::new(b"x");
    let mut scratch = Scratch::default();
    let sealing = seal(&key(), &sealed.context(), &plain, &mut scratch, BytesMut::with_capacity);
    assert!(matches!(sealing, Err(SealMessageError::TooLarge { .. })));
    let context = MessageContext { plain_bytes: u32::MAX, ..sealed.context() };
    assert!(matches!(sealed.opened(&context), Err(OpenError::TooLarge { .. })));
}

#[test]
fn a_message_that_was_moved_renamed_or_given_another_range_does_not_open() {
    let sealed = Sealed::new(b"records of a disk");
    let context = sealed.context();
    let other_disk = disk("web-2");
    let elsewhere = [
        MessageContext { vault: Id128([1; 16]), ..context },
        MessageContext { object: "b/other", ..context },
        MessageContext { disk: &other_disk, ..context },
        MessageContext { epoch: Epoch(3), ..context },
        MessageContext { first: Seq(9), ..context },
        MessageContext { last: Seq(20), ..context },
        MessageContext { codec: Codec::Lz4, ..context },
        MessageContext { codec: Codec::Zstd, ..context },
        MessageContext { plain_bytes: context.plain_bytes - 1, ..context },
    ];
    for place in elsewhere {
        let error = sealed.opened(&place).unwrap_err();
        assert!(matches!(error, OpenError::Unseal { source: UnsealError::Commitment, .. }), "{place:?}");
    }
    assert!(sealed.opened(&context).is_ok());
}

#[test]
fn the_border_between_object_and_disk_name_cannot_be_shifted() {
    let (short, long) = (disk("b"), disk("ab"));
    let sealed = Sealed::new(b"");
    let place = sealed.context();
    let context = MessageContext { object: "xa", disk: &short, codec: Codec::Raw, plain_bytes: 4, ..place };
    let mut scratch = Scratch::default();
    let (_, bytes) = seal(&key(), &context, b"text", &mut scratch, BytesMut::with_capacity).unwrap();
    let shifted = MessageContext { object: "x", disk: &long, ..context };
    assert!(open(&key(), &shifted, &bytes, &mut Vec::new()).is_err());
    assert!(open(&key(), &context, &bytes, &mut Vec::new()).is_ok());
}

#[test]
fn a_message_put_together_from_two_does_not_open() {
    let (one, two) = (Sealed::new(&noise(4, 500)), Sealed::new(&noise(5, 500)));
    for at in [24, 56, 100, 556] {
        let spliced = Sealed { bytes: [&one.bytes[..at], &two.bytes[at..]].concat(), ..Sealed::new(&noise(4, 500)) };
        assert!(spliced.opened(&spliced.context()).is_err(), "spliced at {at}");
    }
}

#[test]
fn another_lanes_key_does_not_open_it_and_the_error_names_what_it_was() {
    let sealed = Sealed::new(b"text");
    let other = LaneKey::from_secret([0x12; 32]).into();
    let error = open(&other, &sealed.context(), &sealed.bytes, &mut Vec::new()).unwrap_err();
    assert_eq!(error.fault(), Fault::Corrupt);
    let shown = crate::fault::chain_text(&error);
    assert!(shown.contains("disk:web-1") || shown.contains("web-1 e2 s10 to s19"), "{shown}");
    assert!(shown.contains("another key"), "{shown}");
}

#[test]
fn every_flipped_bit_fails_before_anything_is_unpacked() {
    for packing in [Packing::Lz4, Packing::Zstd(1)] {
        let good = Sealed::packed_by(packing, &[7; 300]);
        assert_eq!(good.info.codec, packing.codec());
        for bit in 0..good.bytes.len() * 8 {
            let mut bytes = good.bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let mut out = b"untouched".to_vec();
            let error = open(&key(), &good.context(), &bytes, &mut out).unwrap_err();
            assert!(matches!(error, OpenError::Unseal { .. }), "bit {bit}: {error}");
            assert_eq!(out, b"untouched", "bit {bit}");
        }
    }
}

#[test]
fn authenticated_bytes_that_do_not_unpack_are_an_error_and_no_crash() {
    // Sealed as packed by hand, which no writer does. The last: a frame of as many bytes as stated, and one more.
    let mut frame = Vec::new();
    Packer::default().pack(Packing::Zstd(1), &[7; 5001], 0, &mut frame);
    for (codec, content) in [(Codec::Lz4, noise(6, 200)), (Codec::Zstd, noise(6, 200)), (Codec::Zstd, frame)] {
        let (disk, object) = (disk("web-1"), object_name(LANE, 7));
        let context = MessageContext {
            vault: VAULT,
            object: &object,
            disk: &disk,
            epoch: Epoch(1),
            first: Seq(1),
            last: Seq(1),
            codec,
            plain_bytes: 5000,
        };
        let mut sealed = SealOnce::room();
        sealed.extend_from_slice(&content);
        let once = context.with(|bound| SealOnce::new(lane_key().expose(), LANE_LABEL, bound)).unwrap();
        once.seal(&mut sealed).unwrap();
        assert!(matches!(open(&key(), &context, &sealed, &mut Vec::new()), Err(OpenError::Unpack(_))));
    }
}

#[test]
fn scratch_memory_does_not_grow_or_shrink_with_the_run_of_messages() {
    let mut scratch = Scratch::default();
    let sealed = Sealed::new(b"");
    for round in 0..50_usize {
        let plain = vec![round as u8; if round.is_multiple_of(2) { 200_000 } else { 500 }];
        seal(&key(), &sealed.context(), &plain, &mut scratch, BytesMut::with_capacity).unwrap();
    }
    let capacity = scratch.packed.capacity();
    assert!((200_000..=1 << 20).contains(&capacity), "{capacity}");
}

/// The stored example of version 1 must open for ever; with the same salt, raw content must also seal to the same bytes.
#[test]
fn the_stored_messages_of_version_1_still_open() {
    for (name, plain, codec) in [
        ("message-raw.bin", noise(11, 600), Codec::Raw),
        ("message-lz4.bin", b"records of web-1, again and again; ".repeat(40), Codec::Lz4),
        ("message-zstd.bin", b"records of web-2, again and again; ".repeat(40), Codec::Zstd),
    ] {
        let (disk, object) = (disk("web-1"), "b/b2b/b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2/000000000007");
        let context = MessageContext {
            vault: VAULT,
            object,
            disk: &disk,
            epoch: Epoch(2),
            first: Seq(10),
            last: Seq(19),
            codec,
            plain_bytes: plain.len() as u32,
        };
        let with_salt = |secret: &[u8; 32], label: &[u8], bound: &[&[u8]]| {
            Ok(SealOnce::with_salt(secret, label, bound, [0x5a; 24]))
        };
        let packing = if codec == Codec::Zstd { Packing::Zstd(3) } else { Packing::Lz4 };
        let mut scratch = Scratch::new(packing);
        let (_, made) = seal_by(&key(), &context, &plain, &mut scratch, BytesMut::with_capacity, with_salt).unwrap();
        let stored = crate::pipeline::testing::fixture(name, &made);
        let mut out = Vec::new();
        open(&key(), &context, &stored, &mut out).unwrap();
        assert_eq!(out, plain, "{name}");
        if codec == Codec::Raw {
            assert_eq!(stored, made, "{name}");
        }
    }
}

/// The same of a message that takes lane key and disk key.
#[test]
fn the_stored_message_of_version_2_still_opens_and_with_lane_key_and_disk_key_alone() {
    let (disk, object) = (disk("web-1"), "b/b2b/b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2/000000000007");
    let plain = noise(11, 600);
    let context = MessageContext {
        vault: VAULT,
        object,
        disk: &disk,
        epoch: Epoch(2),
        first: Seq(10),
        last: Seq(19),
        codec: Codec::Raw,
        plain_bytes: plain.len() as u32,
    };
    let with_salt =
        |secret: &[u8; 32], label: &[u8], bound: &[&[u8]]| Ok(SealOnce::with_salt(secret, label, bound, [0x5a; 24]));
    let (mut scratch, key) = (Scratch::default(), disk_key(0x33));
    let (_, made) = seal_by(&key, &context, &plain, &mut scratch, BytesMut::with_capacity, with_salt).unwrap();
    let stored = crate::pipeline::testing::fixture_of(2, "message.bin", &made);
    assert_eq!(stored, made);
    let mut out = Vec::new();
    open(&key, &context, &stored, &mut out).unwrap();
    assert_eq!(out, plain);
    // Neither alone, nor the one in the place of the other, nor another disk's.
    let alone =
        [lane_key().into(), DiskSecret::from_secret([0x11; 32]).into(), DiskSecret::from_secret([0x33; 32]).into()];
    for wrong in alone.into_iter().chain([LaneKey::from_secret([0x33; 32]).into(), disk_key(0x34)]) {
        assert!(open(&wrong, &context, &stored, &mut out).is_err(), "{wrong:?}");
    }
}

proptest! {
    #[test]
    fn any_bytes_come_back(plain in proptest::collection::vec(any::<u8>(), 0..5000), repeat in 1_usize..5) {
        let plain = plain.repeat(repeat);
        for packing in [Packing::Lz4, Packing::Zstd(2)] {
            let sealed = Sealed::packed_by(packing, &plain);
            prop_assert_eq!(&sealed.opened(&sealed.context()).unwrap(), &plain);
        }
    }

    #[test]
    fn any_bytes_given_as_a_message_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
        let sealed = Sealed { bytes, ..Sealed::new(b"text") };
        prop_assert!(sealed.opened(&sealed.context()).is_err());
    }
}
