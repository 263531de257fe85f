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
