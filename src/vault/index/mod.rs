//! What a batch holds, record by record: enough to plan an exact restore without opening any data.
//!
//! An index is written beside its messages in the same object, sealed with a key from the catalog key. Gateways and the
//! keeper can read it; the data behind it they cannot. The plaintext is compact ([`encoding`]): records of a message are
//! dense, so no seq is stored, and times and offsets are differences to the row before.
//!
//! Invariants
//! - Rows say what the records' heads say. The data remains the truth: whoever opens a message compares.
//! - Disks stand in ascending order, once each; the messages of a disk in the order of their offsets.
//! - Messages lie without gap or overlap between header and index ([`BatchIndex::check_layout`]), so no byte of the
//!   object is unaccounted for.
//! - Decoding allocates in proportion to the bytes present and to named limits, whatever counts the bytes claim.
//!
//! What it does not own: the frame of the object (`batch`), merging epochs into histories (restore).

mod encoding;
pub mod folded;
pub mod lane;

use zeroize::Zeroizing;

use crate::fault::{Classify, Fault};
use crate::keys::seal::{SEAL_HEAD_BYTES, SEAL_OVERHEAD_BYTES, SealError, SealOnce, UnsealError, unseal};
use crate::keys::{CatalogKey, RandomError};
use crate::pipeline::codec::{Codec, Packer, Packing, UnpackError, unpack};
use crate::types::{Chain, DiskId, Epoch, Extent, Id128, Micros, RecordHead, RecordKind, Seq};

/// Largest plaintext of one index. A batch closes at 16 MiB of sealed messages and rows, and a message's rows are never
/// larger than its plaintext.
pub const INDEX_PLAIN_BYTES_MAX: usize = 32 << 20;
/// Most records of one batch: bounds the memory of a decoded index to some tens of MiB.
pub const BATCH_RECORDS_MAX: usize = 1 << 18;

/// One record of a message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecordMeta {
    /// Its number in the epoch.
    pub seq: Seq,
    /// Label time.
    pub label: Micros,
    /// How far the agent's clock may have been off.
    pub uncertainty_micros: u32,
    /// Write, copy or barrier.
    pub kind: RecordKind,
    /// Group of a barrier, or [`Id128::NONE`].
    pub group: Id128,
    /// Name of a barrier, if it has one.
    pub name: Option<String>,
    /// The ranges it sets, in table order.
    pub extents: Vec<Extent>,
}

impl RecordMeta {
    /// The row of a record.
    #[must_use]
    pub fn new(head: &RecordHead, extents: Vec<Extent>, name: Option<String>) -> Self {
        Self {
            seq: head.seq,
            label: head.label,
            uncertainty_micros: head.clock_uncertainty_micros,
            kind: head.kind,
            group: head.group,
            name,
            extents,
        }
    }
}

/// The batch in which a message was sealed that stands elsewhere: a keeper moved it as it was, and it opens only as if it stood there still.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Origin {
    /// The lane, with whose key it was sealed.
    pub lane: Id128,
    /// Number of the batch, to whose name it is bound.
    pub n: u64,
    /// When that batch appeared, by the store's clock as the keeper saw it: what is moved grows no younger.
    pub put_by: Micros,
}

/// One sealed message: consecutive records of one disk and epoch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MessageMeta {
    /// The epoch of all its records.
    pub epoch: Epoch,
    /// Seq of its first record.
    pub first: Seq,
    /// Seq of its last record.
    pub last: Seq,
    /// Where it starts in the object.
    pub offset_bytes: u64,
    /// Bytes in the object: sealed.
    pub stored_bytes: u32,
    /// Bytes of the records.
    pub plain_bytes: u32,
    /// How they are packed.
    pub codec: Codec,
    /// Chain before its first record, if the gateway knew it.
    pub chain_before: Option<Chain>,
    /// Chain after its last record.
    pub chain_last: Chain,
    /// When the gateway received the first record, by the gateway's wall clock.
    pub received_first: Micros,
    /// When the gateway received the last record.
    pub received_last: Micros,
    /// Where it was sealed, if that is not where it stands.
    pub origin: Option<Origin>,
    /// Its records, dense from `first` to `last`.
    pub records: Vec<RecordMeta>,
}

/// The messages of one disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskPart {
    /// The disk.
    pub disk: DiskId,
    /// Its messages, in the order in which they stand in the object.
    pub messages: Vec<MessageMeta>,
}

/// The index of one batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BatchIndex {
    /// The lane.
    pub lane: Id128,
    /// Number of the batch in its lane, dense from 1.
    pub n: u64,
    /// Every batch of the lane up to this number was confirmed by the store when this index was made; 0: none. So a batch
    /// at or below it that is not there was deleted.
    pub confirmed_through: u64,
    /// What it holds of each disk, in ascending order.
    pub disks: Vec<DiskPart>,
}

/// What an index is bound to.
#[derive(Clone, Copy, Debug)]
pub struct IndexPlace<'a> {
    /// The vault.
    pub vault: Id128,
    /// Name of the batch object within the vault.
    pub object: &'a str,
    /// The lane.
    pub lane: Id128,
    /// Number of the batch.
    pub n: u64,
}

/// An index as it is stored, with what must be known to open it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SealedIndex {
    /// Salt, commitment, ciphertext, tag.
    pub bytes: bytes::Bytes,
    /// How the plaintext is packed.
    pub codec: Codec,
    /// Bytes of the plaintext.
    pub plain_bytes: u32,
}

/// Why an index could not be made.
#[derive(Debug, thiserror::Error)]
pub enum IndexWriteError {
    /// More rows than the format allows: the batcher closed the batch too late.
    #[error("the index of batch {n} would take {plain_bytes} bytes, more than {INDEX_PLAIN_BYTES_MAX}")]
    TooLarge {
        /// Number of the batch.
        n: u64,
        /// Bytes of its rows.
        plain_bytes: usize,
    },
    /// Sealing failed.
    #[error(transparent)]
    Seal(#[from] SealError),
}

impl From<RandomError> for IndexWriteError {
    fn from(error: RandomError) -> Self {
        Self::Seal(error.into())
    }
}

impl Classify for IndexWriteError {
    fn fault(&self) -> Fault {
        Fault::Fatal
    }
}

/// Why stored bytes are no index.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// It does not open.
    #[error("the index of {object} does not open")]
    Unseal {
        /// The batch object.
        object: String,
        /// Why.
        #[source]
        source: UnsealError,
    },
    /// It opens, but does not unpack.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// The stated size is over the limit.
    #[error("an index of {plain_bytes} bytes is over the limit of {INDEX_PLAIN_BYTES_MAX}")]
    TooLarge {
        /// The stated size.
        plain_bytes: u64,
    },
    /// A newer release wrote it.
    #[error("the index is of version {found}, and this build reads up to {newest}: use a newer tidegate")]
    Version {
        /// Its version.
        found: u8,
        /// The newest that is understood.
        newest: u8,
    },
    /// A row breaks the format.
    #[error("the index breaks its format at byte {at}: {what}")]
    Encoding {
        /// Byte of the plaintext.
        at: usize,
        /// Which field.
        what: &'static str,
    },
    /// It belongs to another batch.
    #[error("the index says batch {n} of lane {lane}, which is not where it was found")]
    Place {
        /// The lane it names.
        lane: Id128,
        /// The number it names.
        n: u64,
    },
    /// Messages overlap, leave gaps or pass the end.
    #[error("messages do not fill the batch: expected one at byte {expected_bytes}, found {found_bytes}")]
    Layout {
        /// Where the next message had to start, or the messages to end.
        expected_bytes: u64,
        /// Where it starts.
        found_bytes: u64,
    },
}

impl Classify for IndexError {
    fn fault(&self) -> Fault {
        match self {
            Self::Version { .. } => Fault::Reject,
            _ => Fault::Corrupt,
        }
    }
}

const LABEL: &[u8] = b"tidegate 1 batch index";

/// The context that an index is sealed in; every part has a fixed width or its length in front.
fn with_context<T>(place: &IndexPlace<'_>, codec: Codec, plain_bytes: u32, use_it: impl FnOnce(&[&[u8]]) -> T) -> T {
    let name_bytes = (place.object.len() as u32).to_le_bytes();
    let context: [&[u8]; 7] = [
        &place.vault.0,
        &name_bytes,
        place.object.as_bytes(),
        &place.lane.0,
        &place.n.to_le_bytes(),
        &[codec as u8],
        &plain_bytes.to_le_bytes(),
    ];
    use_it(&context)
}

impl BatchIndex {
    /// Lane and number of the batch in which one of its messages was sealed: this one, unless the message was moved.
    #[must_use]
    pub fn sealed_in(&self, message: &MessageMeta) -> (Id128, u64) {
        message.origin.map_or((self.lane, self.n), |origin| (origin.lane, origin.n))
    }

    /// Encodes the plaintext. It takes what decoding takes back: rows must obey the limits and stand in order.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encoding::encode(self)
    }

    /// Decodes the plaintext.
    ///
    /// # Errors
    /// [`IndexError::Encoding`] names the byte and the field.
    pub fn decode(plain: &[u8]) -> Result<Self, IndexError> {
        encoding::decode(plain)
    }

    /// Encodes and seals. `object` of the place is the batch object's name.
    ///
    /// # Errors
    /// [`IndexWriteError`] if it is too large or the random generator fails.
    pub fn seal(&self, key: &CatalogKey, place: &IndexPlace<'_>) -> Result<SealedIndex, IndexWriteError> {
        self.seal_by(key, place, SealOnce::new)
    }

    fn seal_by(
        &self,
        key: &CatalogKey,
        place: &IndexPlace<'_>,
        make_key: impl FnOnce(&[u8; 32], &[u8], &[&[u8]]) -> Result<SealOnce, RandomError>,
    ) -> Result<SealedIndex, IndexWriteError> {
        let plain = self.encode();
        if plain.len() > INDEX_PLAIN_BYTES_MAX {
            return Err(IndexWriteError::TooLarge { n: self.n, plain_bytes: plain.len() });
        }
        let plain_bytes = plain.len() as u32;
        let mut sealed = Vec::new();
        let codec = Packer::default().pack(Packing::Lz4, &plain, SEAL_HEAD_BYTES, &mut sealed);
        if codec == Codec::Raw {
            sealed = SealOnce::room();
            sealed.extend_from_slice(&plain);
        }
        let secret = key.index_secret();
        let once = with_context(place, codec, plain_bytes, |context| make_key(&secret, LABEL, context))?;
        once.seal(&mut sealed)?;
        sealed.shrink_to_fit();
        Ok(SealedIndex { bytes: sealed.into(), codec, plain_bytes })
    }

    /// Opens and decodes a stored index, and checks that it belongs to `place`.
    ///
    /// # Errors
    /// [`IndexError`] says whether it does not open (wrong key, moved, altered) or breaks the format.
    pub fn open(key: &CatalogKey, place: &IndexPlace<'_>, sealed: &SealedIndex) -> Result<Self, IndexError> {
        if sealed.plain_bytes as usize > INDEX_PLAIN_BYTES_MAX {
            return Err(IndexError::TooLarge { plain_bytes: u64::from(sealed.plain_bytes) });
        }
        let secret: Zeroizing<_> = key.index_secret();
        let mut bytes = sealed.bytes.to_vec();
        let packed = with_context(place, sealed.codec, sealed.plain_bytes, |context| {
            unseal(&secret, LABEL, context, &mut bytes)
        })
        .map_err(|source| IndexError::Unseal { object: place.object.to_owned(), source })?;
        let mut plain = Vec::new();
        unpack(sealed.codec, packed, sealed.plain_bytes as usize, &mut plain)?;
        let index = Self::decode(&plain)?;
        if index.lane != place.lane || index.n != place.n {
            return Err(IndexError::Place { lane: index.lane, n: index.n });
        }
        Ok(index)
    }

    /// Checks that the messages fill the object from `start_bytes` to `end_bytes` without gap or overlap.
    ///
    /// # Errors
    /// [`IndexError::Layout`] names the first place that is wrong.
    pub fn check_layout(&self, start_bytes: u64, end_bytes: u64) -> Result<(), IndexError> {
        let messages = self.disks.iter().flat_map(|part| &part.messages);
        let mut spans: Vec<(u64, u32)> = messages.map(|one| (one.offset_bytes, one.stored_bytes)).collect();
        spans.sort_unstable();
        let mut expected_bytes = start_bytes;
        for (offset_bytes, stored_bytes) in spans {
            if offset_bytes != expected_bytes {
                return Err(IndexError::Layout { expected_bytes, found_bytes: offset_bytes });
            }
            expected_bytes += u64::from(stored_bytes);
        }
        if expected_bytes == end_bytes {
            Ok(())
        } else {
            Err(IndexError::Layout { expected_bytes, found_bytes: end_bytes })
        }
    }

    /// Records in the batch.
    #[must_use]
    pub fn record_count(&self) -> u64 {
        self.disks.iter().flat_map(|part| &part.messages).map(|one| one.records.len() as u64).sum()
    }
}

/// Smallest sealed message: an empty text has its overhead.
const MESSAGE_STORED_BYTES_MIN: usize = SEAL_OVERHEAD_BYTES;

#[cfg(test)]
pub(crate) mod tests;
