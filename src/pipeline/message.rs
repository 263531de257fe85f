//! The message: consecutive records of one disk, packed and sealed together. The unit of every later read.
//!
//! ```text
//!  records ──► LZ4 block or zstd frame, or raw where it does not pay ──► AES-256-GCM under a key used once ──► stored
//! ```
//!
//! Sealed is with the secret of the disk in the lane, for which lane key and disk key are needed both; older messages with the lane key
//! alone, under another label. The seal ([`crate::keys::seal`]) binds vault, object name, disk, epoch, seq range, codec and plaintext size. Opening
//! checks the commitment, then authenticates, and only then unpacks, to exactly the size that was authenticated: no
//! unauthenticated byte reaches the decompressor.
//!
//! Copies: the codec writes from where the caller's records lie into the thread's own buffer, behind room for the seal's head;
//! what does not pay is copied there. It is sealed in that buffer, whose memory is warm, and the caller takes it from there.

use bytes::{BufMut, BytesMut};

use crate::fault::{Classify, Fault};
use crate::keys::seal::{SEAL_HEAD_BYTES, SEAL_OVERHEAD_BYTES, SealError, SealOnce, UnsealError, unseal};
use crate::keys::{MessageKey, RandomError, SECRET_BYTES};
use crate::limits;
use crate::mutants::{self, Mutant};
use crate::types::{DiskId, Epoch, Id128, Seq};

use super::codec::{Codec, Packer, Packing, UnpackError, packing_pays, unpack};
use super::probe;

/// What a message is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageContext<'a> {
    /// The vault.
    pub vault: Id128,
    /// Name of the batch object within the vault.
    pub object: &'a str,
    /// The disk.
    pub disk: &'a DiskId,
    /// Epoch of all its records.
    pub epoch: Epoch,
    /// Seq of its first record.
    pub first: Seq,
    /// Seq of its last record.
    pub last: Seq,
    /// How the records are packed. Sealing sets it.
    pub codec: Codec,
    /// Bytes of the records. Sealing sets it.
    pub plain_bytes: u32,
}

/// Label of messages that are sealed with a lane key alone.
const LANE_LABEL: &[u8] = b"tidegate 1 message";
/// Label of messages that take lane key and disk key.
const DISK_LABEL: &[u8] = b"tidegate 2 message";

fn secret(key: &MessageKey) -> (&[u8; SECRET_BYTES], &'static [u8]) {
    match key {
        MessageKey::Lane(key) => (key.expose(), LANE_LABEL),
        MessageKey::Disk(secret) => (secret.expose(), DISK_LABEL),
    }
}

impl MessageContext<'_> {
    /// Every part has a fixed width or its length in front, so no two contexts give the same bytes.
    fn with<T>(&self, use_it: impl FnOnce(&[&[u8]]) -> T) -> T {
        let context: [&[u8]; 10] = [
            &self.vault.0,
            &(self.object.len() as u32).to_le_bytes(),
            self.object.as_bytes(),
            &(self.disk.as_str().len() as u32).to_le_bytes(),
            self.disk.as_str().as_bytes(),
            &self.epoch.0.to_le_bytes(),
            &self.first.0.to_le_bytes(),
            &self.last.0.to_le_bytes(),
            &[self.codec as u8],
            &self.plain_bytes.to_le_bytes(),
        ];
        use_it(if mutants::on(Mutant::ContextCut) { &context[..3] } else { &context })
    }
}

/// What sealing made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SealedInfo {
    /// How the records are packed.
    pub codec: Codec,
    /// Bytes to store.
    pub stored_bytes: u32,
}

/// Reused memory of sealing, one per thread.
#[derive(Default)]
pub struct Scratch {
    /// How the next message is to be packed.
    pub packing: Packing,
    packer: Packer,
    packed: Vec<u8>,
    sample: Vec<u8>,
}

impl Scratch {
    /// For messages that are packed so.
    #[must_use]
    pub fn new(packing: Packing) -> Self {
        Self { packing, ..Self::default() }
    }

    #[cfg(test)]
    pub(super) fn packed_capacity_bytes(&self) -> usize {
        self.packed.capacity()
    }

    /// Whether a sample of `plain` is worth packing.
    pub fn sample_pays(&mut self, packing: Packing, plain: &[u8]) -> bool {
        probe::take_sample(plain, &mut self.sample);
        let mut packed = std::mem::take(&mut self.packed);
        let packed_bytes = self.packer.pack_always(packing, &self.sample, 0, &mut packed);
        self.packed = packed;
        packed_bytes.is_some_and(|packed_bytes| probe::sample_pays(self.sample.len(), packed_bytes))
    }
}

/// Why a message was not sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealMessageError {
    /// More than one message may hold.
    #[error("a message of {plain_bytes} bytes is over the limit of {max}", max = limits::MESSAGE_BYTES_MAX)]
    TooLarge {
        /// Bytes of its records.
        plain_bytes: usize,
    },
    /// Sealing failed.
    #[error(transparent)]
    Seal(#[from] SealError),
}

impl From<RandomError> for SealMessageError {
    fn from(error: RandomError) -> Self {
        Self::Seal(error.into())
    }
}

impl Classify for SealMessageError {
    fn fault(&self) -> Fault {
        Fault::Fatal
    }
}

/// Why a stored message was not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The index states more than a message may hold.
    #[error("a message of {plain_bytes} bytes is over the limit of {max}", max = limits::MESSAGE_BYTES_MAX)]
    TooLarge {
        /// The stated size.
        plain_bytes: u32,
    },
    /// It does not open.
    #[error("{disk} e{epoch} s{first} to s{last} of {object} does not open")]
    Unseal {
        /// The disk.
        disk: DiskId,
        /// The epoch.
        epoch: Epoch,
        /// First record.
        first: Seq,
        /// Last record.
        last: Seq,
        /// The batch object.
        object: String,
        /// Wrong key or place, or altered.
        #[source]
        source: UnsealError,
    },
    /// It opens but does not unpack.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
}

impl Classify for OpenError {
    fn fault(&self) -> Fault {
        Fault::Corrupt
    }
}

/// Packs and seals records. The stored message comes in what `room` gives: empty memory for so many bytes.
///
/// # Errors
/// [`SealMessageError`] if the records are too many or the random generator fails.
pub fn seal(
    key: &MessageKey,
    context: &MessageContext<'_>,
    plain: &[u8],
    scratch: &mut Scratch,
    room: impl FnOnce(usize) -> BytesMut,
) -> Result<(SealedInfo, BytesMut), SealMessageError> {
    seal_by(key, context, plain, scratch, room, SealOnce::new)
}

fn seal_by(
    key: &MessageKey,
    context: &MessageContext<'_>,
    plain: &[u8],
    scratch: &mut Scratch,
    room: impl FnOnce(usize) -> BytesMut,
    make_key: impl FnOnce(&[u8; 32], &[u8], &[&[u8]]) -> Result<SealOnce, RandomError>,
) -> Result<(SealedInfo, BytesMut), SealMessageError> {
    let plain_bytes = plain.len();
    if plain_bytes > limits::MESSAGE_BYTES_MAX {
        return Err(SealMessageError::TooLarge { plain_bytes });
    }
    let Scratch { packing, packer, packed, .. } = scratch;
    let paying = packer
        .pack_always(*packing, plain, SEAL_HEAD_BYTES, packed)
        .filter(|packed_bytes| packing_pays(plain_bytes, *packed_bytes));
    let (codec, text_bytes) = paying.map_or((Codec::Raw, plain_bytes), |packed_bytes| (packing.codec(), packed_bytes));
    let stored_bytes = SEAL_OVERHEAD_BYTES + text_bytes;
    let context = MessageContext { codec, plain_bytes: plain_bytes as u32, ..*context };
    let (secret, label) = secret(key);
    let once = context.with(|context| make_key(secret, label, context))?;
    let mut stored = room(stored_bytes);
    if codec == Codec::Raw {
        stored.put_bytes(0, SEAL_HEAD_BYTES);
        stored.extend_from_slice(plain);
        stored.put_bytes(0, SEAL_OVERHEAD_BYTES - SEAL_HEAD_BYTES);
        once.seal_within(&mut stored)?;
    } else {
        // Only ever longer: cutting and growing again would zero most of it for each message.
        if packed.len() < stored_bytes {
            packed.resize(stored_bytes, 0);
        }
        once.seal_within(&mut packed[..stored_bytes])?;
        stored.extend_from_slice(&packed[..stored_bytes]);
    }
    Ok((SealedInfo { codec, stored_bytes: stored_bytes as u32 }, stored))
}

/// Opens a stored message in place and unpacks its records into `out`, whose content is replaced. Codec, plaintext size
/// and all else of `context` come from the index.
///
/// # Errors
/// [`OpenError`] names disk, range and object, and tells a wrong key or place from altered content.
pub fn open_in_place(
    key: &MessageKey,
    context: &MessageContext<'_>,
    sealed: &mut [u8],
    out: &mut Vec<u8>,
) -> Result<(), OpenError> {
    if context.plain_bytes as usize > limits::MESSAGE_BYTES_MAX {
        return Err(OpenError::TooLarge { plain_bytes: context.plain_bytes });
    }
    let (secret, label) = secret(key);
    let packed = context.with(|bound| unseal(secret, label, bound, sealed)).map_err(|source| OpenError::Unseal {
        disk: context.disk.clone(),
        epoch: context.epoch,
        first: context.first,
        last: context.last,
        object: context.object.to_owned(),
        source,
    })?;
    unpack(context.codec, packed, context.plain_bytes as usize, out)?;
    Ok(())
}

/// [`open_in_place`] for bytes that must stay as they are: one more copy.
///
/// # Errors
/// [`OpenError`] as there.
pub fn open(key: &MessageKey, context: &MessageContext<'_>, sealed: &[u8], out: &mut Vec<u8>) -> Result<(), OpenError> {
    open_in_place(key, context, &mut sealed.to_vec(), out)
}

#[cfg(test)]
mod tests;
