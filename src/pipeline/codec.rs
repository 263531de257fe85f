//! Compression: LZ4 block format where it pays, plain bytes where it does not.
//!
//! Buffers and the hash table are reused: a fresh allocation per message costs as much as the encryption.

use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};

use crate::fault::{Classify, Fault};

/// How bytes are packed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Codec {
    /// As they are.
    Raw = 0,
    /// One LZ4 block; the unpacked size is stated elsewhere, and authenticated.
    Lz4 = 1,
}

impl Codec {
    /// Reads the byte by which formats name a codec.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Raw),
            1 => Some(Self::Lz4),
            _ => None,
        }
    }
}

/// LZ4 must save at least one part in this many, or the bytes are kept raw. One part in 32: a smaller saving is worth
/// less than the time that every later restore would spend on unpacking.
pub const LZ4_SAVES_ONE_PART_IN: usize = 32;

/// Whether `packed_bytes` instead of `plain_bytes` is worth unpacking later.
#[must_use]
pub const fn lz4_pays(plain_bytes: usize, packed_bytes: usize) -> bool {
    packed_bytes + plain_bytes.div_ceil(LZ4_SAVES_ONE_PART_IN) <= plain_bytes
}

/// The compressor's hash table, kept between messages.
pub struct Packer {
    table: CompressTable,
}

impl Default for Packer {
    fn default() -> Self {
        Self { table: CompressTable::large() }
    }
}

impl Packer {
    /// Packs `plain` behind the first `room_bytes` bytes of `out`, whose former content is lost. `true`: `out` is room
    /// and LZ4 block. `false`: LZ4 does not pay, and `out` is to be ignored.
    pub fn pack(&mut self, plain: &[u8], room_bytes: usize, out: &mut Vec<u8>) -> bool {
        let need_bytes = room_bytes + get_maximum_output_size(plain.len());
        // Only ever longer here: cutting and growing again would zero the whole buffer each time.
        if out.len() < need_bytes {
            out.resize(need_bytes, 0);
        }
        match compress_into_with_table(plain, &mut out[room_bytes..], &mut self.table) {
            Ok(packed_bytes) if lz4_pays(plain.len(), packed_bytes) => {
                out.truncate(room_bytes + packed_bytes);
                true
            }
            _ => false,
        }
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::testing::noise;

    fn round_trip(plain: &[u8]) -> Codec {
        let mut out = Vec::new();
        let codec = if Packer::default().pack(plain, 3, &mut out) { Codec::Lz4 } else { Codec::Raw };
        let packed = if codec == Codec::Lz4 { &out[3..] } else { plain };
        let mut back = vec![1; 7];
        unpack(codec, packed, plain.len(), &mut back).unwrap();
        assert_eq!(back, plain);
        codec
    }

    #[test]
    fn bytes_survive_whatever_they_are_and_noise_is_kept_raw() {
        assert_eq!(round_trip(&[]), Codec::Raw);
        assert_eq!(round_trip(b"t"), Codec::Raw);
        assert_eq!(round_trip(&[0; 100]), Codec::Lz4);
        assert_eq!(round_trip(&noise(1, 70_000)), Codec::Raw);
        assert_eq!(round_trip(&vec![0; 8 << 20]), Codec::Lz4);
        assert_eq!(round_trip(&b"tidegate ".repeat(10_000)), Codec::Lz4);
    }

    #[test]
    fn lz4_pays_from_one_part_in_thirty_two() {
        assert!(lz4_pays(3200, 3100));
        assert!(!lz4_pays(3200, 3101));
        assert!(!lz4_pays(0, 1));
        assert!(!lz4_pays(10, 10));
    }

    #[test]
    fn a_packer_gives_the_same_bytes_after_other_inputs() {
        let mut packer = Packer::default();
        let (mut first, mut again) = (Vec::new(), Vec::new());
        let text = b"one two three one two three one two three ".repeat(20);
        assert!(packer.pack(&text, 0, &mut first));
        packer.pack(&noise(2, 100_000), 0, &mut again);
        assert!(packer.pack(&text, 0, &mut again));
        assert_eq!(first, again);
    }

    #[test]
    fn packed_bytes_of_another_size_than_stated_are_refused() {
        let mut packed = Vec::new();
        assert!(Packer::default().pack(&[7; 1000], 0, &mut packed));
        let mut out = Vec::new();
        assert!(unpack(Codec::Lz4, &packed, 999, &mut out).is_err());
        assert!(unpack(Codec::Lz4, &packed, 1001, &mut out).is_err());
        assert!(unpack(Codec::Lz4, &packed[..packed.len() - 1], 1000, &mut out).is_err());
        assert!(unpack(Codec::Raw, b"four", 5, &mut out).is_err());
        assert!(unpack(Codec::Lz4, &[], 0, &mut out).is_err());
    }
}
