//! Compression: one LZ4 block or one zstd frame where it pays, plain bytes where it does not.
//!
//! Buffers, hash tables and contexts are reused: a fresh allocation per message costs as much as the encryption.

use std::cell::RefCell;

use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};
use zstd::zstd_safe::{
    CCtx, CParameter, DCtx, ResetDirective, compress_bound, find_frame_compressed_size, get_frame_content_size,
};

use crate::fault::{Classify, Fault};
use crate::limits;

/// How bytes are packed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Codec {
    /// As they are.
    Raw = 0,
    /// One LZ4 block; the unpacked size is stated elsewhere, and authenticated.
    Lz4 = 1,
    /// One zstd frame that states the same size, without dictionary.
    Zstd = 2,
}

impl Codec {
    /// Reads the byte by which formats name a codec.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Raw),
            1 => Some(Self::Lz4),
            2 => Some(Self::Zstd),
            _ => None,
        }
    }

    /// As a metric label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

/// How hard bytes are to be packed. Readers need not know: a codec unpacks whatever effort made it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Packing {
    /// Not at all.
    None,
    /// By LZ4.
    #[default]
    Lz4,
    /// By zstd of this level, from 1 to [`ZSTD_LEVEL_MAX`].
    Zstd(u8),
}

impl Packing {
    /// What it makes where it pays.
    #[must_use]
    pub const fn codec(self) -> Codec {
        match self {
            Self::None => Codec::Raw,
            Self::Lz4 => Codec::Lz4,
            Self::Zstd(_) => Codec::Zstd,
        }
    }
}

/// The dearest level of zstd. Above it levels only widen windows beyond a message.
pub const ZSTD_LEVEL_MAX: u8 = 19;
/// Window of zstd: a message of the usual size sees all of itself, and no message, however large, makes a context larger
/// than 1.3 MiB at level 3, 6 MiB at level 9 or 10 MiB at level 19.
const ZSTD_WINDOW_LOG: u32 = limits::MESSAGE_BYTES_TARGET.ilog2();

/// Packing must save at least one part in this many, or the bytes are kept raw. One part in 32: a smaller saving is
/// worth less than the time that every later restore would spend on unpacking.
pub const PACKING_SAVES_ONE_PART_IN: usize = 32;

/// Whether `packed_bytes` instead of `plain_bytes` is worth unpacking later.
#[must_use]
pub const fn packing_pays(plain_bytes: usize, packed_bytes: usize) -> bool {
    packed_bytes + plain_bytes.div_ceil(PACKING_SAVES_ONE_PART_IN) <= plain_bytes
}

/// The compressors' memory, kept between messages.
pub struct Packer {
    table: CompressTable,
    /// Made when first needed: most gateways never do.
    zstd: Option<(CCtx<'static>, u8)>,
}

impl Default for Packer {
    fn default() -> Self {
        Self { table: CompressTable::large(), zstd: None }
    }
}

impl Packer {
    /// Packs `plain` behind the first `room_bytes` bytes of `out`, whose former content is lost. [`Codec::Raw`]: packing
    /// does not pay, and `out` is to be ignored. Otherwise `out` is room and packed bytes.
    pub fn pack(&mut self, packing: Packing, plain: &[u8], room_bytes: usize, out: &mut Vec<u8>) -> Codec {
        match self.pack_always(packing, plain, room_bytes, out) {
            Some(packed_bytes) if packing_pays(plain.len(), packed_bytes) => {
                out.truncate(room_bytes + packed_bytes);
                packing.codec()
            }
            _ => Codec::Raw,
        }
    }

    /// Packs like [`Packer::pack`], whether it pays or not, and returns the packed size; `out` is longer than that. `None`:
    /// there is no packing, or it failed.
    pub fn pack_always(
        &mut self,
        packing: Packing,
        plain: &[u8],
        room_bytes: usize,
        out: &mut Vec<u8>,
    ) -> Option<usize> {
        let bound_bytes = match packing {
            Packing::None => return None,
            Packing::Lz4 => get_maximum_output_size(plain.len()),
            Packing::Zstd(_) => compress_bound(plain.len()),
        };
        let need_bytes = room_bytes + bound_bytes;
        // Only ever longer here: cutting and growing again would zero the whole buffer each time.
        if out.len() < need_bytes {
            out.resize(need_bytes, 0);
        }
        let target = &mut out[room_bytes..];
        match packing {
            Packing::None => None,
            Packing::Lz4 => compress_into_with_table(plain, target, &mut self.table).ok(),
            Packing::Zstd(level) => self.zstd(level, plain, target),
        }
    }

    /// One frame, or `None` where zstd refuses: for want of memory, or of room.
    fn zstd(&mut self, level: u8, plain: &[u8], target: &mut [u8]) -> Option<usize> {
        let level = level.clamp(1, ZSTD_LEVEL_MAX);
        if self.zstd.is_none() {
            let mut context = CCtx::try_create()?;
            context.set_parameter(CParameter::WindowLog(ZSTD_WINDOW_LOG)).ok()?;
            self.zstd = Some((context, 0));
        }
        let (context, set_level) = self.zstd.as_mut()?;
        if *set_level != level {
            context.set_parameter(CParameter::CompressionLevel(i32::from(level))).ok()?;
            *set_level = level;
        }
        let packed = context.compress2(target, plain);
        if packed.is_err() {
            // A failed frame stays open, and would be the beginning of the next. This reset cannot fail.
            let _ = context.reset(ResetDirective::SessionOnly);
        }
        packed.ok()
    }
}

/// Authenticated bytes that do not unpack to the stated size: a fault of the writer, not of the store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{codec:?} content of {packed_bytes} bytes does not unpack to the {plain_bytes} bytes stated")]
pub struct UnpackError {
    /// How it is packed.
    pub codec: Codec,
    /// Bytes present.
    pub packed_bytes: usize,
    /// Bytes expected.
    pub plain_bytes: usize,
}

impl Classify for UnpackError {
    fn fault(&self) -> Fault {
        Fault::Corrupt
    }
}

/// Unpacks to exactly `plain_bytes`, which replace the content of `out`. The caller has bounded `plain_bytes`.
///
/// # Errors
/// [`UnpackError`] if the size is another.
pub fn unpack(codec: Codec, packed: &[u8], plain_bytes: usize, out: &mut Vec<u8>) -> Result<(), UnpackError> {
    let error = UnpackError { codec, packed_bytes: packed.len(), plain_bytes };
    match codec {
        Codec::Raw if packed.len() == plain_bytes => {
            out.clear();
            out.extend_from_slice(packed);
            Ok(())
        }
        Codec::Raw => Err(error),
        Codec::Lz4 => {
            out.resize(plain_bytes, 0);
            match decompress_into(packed, out) {
                Ok(bytes) if bytes == plain_bytes => Ok(()),
                _ => Err(error),
            }
        }
        Codec::Zstd => {
            let one_frame = find_frame_compressed_size(packed) == Ok(packed.len());
            if !one_frame || get_frame_content_size(packed).ok().flatten() != Some(plain_bytes as u64) {
                return Err(error);
            }
            out.resize(plain_bytes, 0);
            match unpack_frame(packed, out) {
                Some(bytes) if bytes == plain_bytes => Ok(()),
                _ => Err(error),
            }
        }
    }
}

thread_local! {
    /// 93 KiB that a thread which reads zstd keeps: making it anew for each message would cost page faults each time.
    static UNPACKER: RefCell<Option<DCtx<'static>>> = const { RefCell::new(None) };
}

/// Never writes beyond `out`: unpacking in one step needs no memory that the frame could ask for.
fn unpack_frame(packed: &[u8], out: &mut [u8]) -> Option<usize> {
    UNPACKER.with_borrow_mut(|unpacker| {
        if unpacker.is_none() {
            *unpacker = DCtx::try_create();
        }
        unpacker.as_mut()?.decompress(out, packed).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::testing::noise;

    const ZSTD: Packing = Packing::Zstd(3);

    fn packed(packing: Packing, plain: &[u8]) -> (Codec, Vec<u8>) {
        let mut out = Vec::new();
        let codec = Packer::default().pack(packing, plain, 3, &mut out);
        (codec, if codec == Codec::Raw { plain.to_vec() } else { out.split_off(3) })
    }

    fn round_trip(packing: Packing, plain: &[u8]) -> Codec {
        let (codec, packed) = packed(packing, plain);
        let mut back = vec![1; 7];
        unpack(codec, &packed, plain.len(), &mut back).unwrap();
        assert_eq!(back, plain);
        codec
    }

    #[test]
    fn bytes_survive_whatever_they_are_and_noise_is_kept_raw() {
        for (packing, codec) in [
            (Packing::Lz4, Codec::Lz4),
            (Packing::Zstd(1), Codec::Zstd),
            (ZSTD, Codec::Zstd),
            (Packing::Zstd(ZSTD_LEVEL_MAX), Codec::Zstd),
            (Packing::None, Codec::Raw),
        ] {
            assert_eq!(round_trip(packing, &[]), Codec::Raw);
            assert_eq!(round_trip(packing, b"t"), Codec::Raw);
            assert_eq!(round_trip(packing, &[0; 100]), codec);
            assert_eq!(round_trip(packing, &noise(1, 70_000)), Codec::Raw);
            assert_eq!(round_trip(packing, &vec![0; 8 << 20]), codec);
            assert_eq!(round_trip(packing, &b"tidegate ".repeat(10_000)), codec);
        }
    }

    #[test]
    fn zstd_packs_what_lz4_cannot() {
        // Four bits of chance in every byte, and nothing that repeats.
        let plain: Vec<u8> = noise(3, 100_000).iter().map(|byte| byte & 15).collect();
        assert_eq!(packed(Packing::Lz4, &plain).0, Codec::Raw);
        let (codec, frame) = packed(ZSTD, &plain);
        assert_eq!(codec, Codec::Zstd);
        assert!(frame.len() < 52_000, "{}", frame.len());
    }

    #[test]
    fn packing_pays_from_one_part_in_thirty_two() {
        assert!(packing_pays(3200, 3100));
        assert!(!packing_pays(3200, 3101));
        assert!(!packing_pays(0, 1));
        assert!(!packing_pays(10, 10));
    }

    #[test]
    fn a_packer_gives_the_same_bytes_after_other_inputs() {
        let mut packer = Packer::default();
        let text = b"one two three one two three one two three ".repeat(20);
        for packing in [Packing::Lz4, ZSTD] {
            let (mut first, mut again) = (Vec::new(), Vec::new());
            assert_ne!(packer.pack(packing, &text, 0, &mut first), Codec::Raw);
            packer.pack(packing, &noise(2, 100_000), 0, &mut again);
            packer.pack(Packing::Zstd(9), &text, 0, &mut again);
            assert_ne!(packer.pack(packing, &text, 0, &mut again), Codec::Raw);
            assert_eq!(first, again);
        }
    }

    #[test]
    fn a_context_of_zstd_stays_as_small_as_is_said_whatever_the_message() {
        let mut packer = Packer::default();
        let plain = b"records of web-1, again and again; ".repeat(limits::MESSAGE_BYTES_MAX / 35);
        for (level, kib) in [(3, 1300), (9, 6000), (ZSTD_LEVEL_MAX, 10_240)] {
            assert_eq!(packer.pack(Packing::Zstd(level), &plain, 0, &mut Vec::new()), Codec::Zstd);
            let bytes = packer.zstd.as_ref().map(|(context, _)| context.sizeof()).unwrap();
            assert!(bytes <= kib << 10, "level {level}: {} KiB", bytes >> 10);
        }
    }

    #[test]
    fn packed_bytes_of_another_size_than_stated_are_refused() {
        let mut out = Vec::new();
        for (packing, codec) in [(Packing::Lz4, Codec::Lz4), (ZSTD, Codec::Zstd)] {
            let packed = packed(packing, &[7; 1000]).1;
            assert!(unpack(codec, &packed, 999, &mut out).is_err());
            assert!(unpack(codec, &packed, 1001, &mut out).is_err());
            assert!(unpack(codec, &packed[..packed.len() - 1], 1000, &mut out).is_err());
            assert!(unpack(codec, &[], 0, &mut out).is_err());
            assert!(unpack(codec, &packed, 1000, &mut out).is_ok());
        }
        assert!(unpack(Codec::Raw, b"four", 5, &mut out).is_err());
    }

    #[test]
    fn a_message_is_one_frame_and_nothing_beside_it() {
        let (half, mut out) = (packed(ZSTD, &[7; 500]).1, Vec::new());
        let two_frames = half.repeat(2);
        assert!(unpack(Codec::Zstd, &two_frames, 1000, &mut out).is_err());
        // A frame of a kind that decoders skip.
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9][..], &half].concat();
        assert!(unpack(Codec::Zstd, &skippable, 500, &mut out).is_err());
        assert!(unpack(Codec::Zstd, &[&half[..], &[0]].concat(), 500, &mut out).is_err());
        assert!(unpack(Codec::Zstd, &half, 500, &mut out).is_ok());
    }
}
