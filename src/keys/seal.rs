//! Sealing bytes under a key that is used once and then gone: the one construction for messages and indexes.
//!
//! ```text
//!  secret ─┐
//!  salt ───┴► HKDF-SHA-512 extract ─► expand(label ‖ context) ─► AES-256 key 32 · nonce 12 · commitment 32
//!
//!  sealed: salt 24 · commitment 32 · ciphertext · tag 16
//! ```
//!
//! - The salt is random, 24 bytes, so keys do not repeat however many messages a secret serves, and no counter has to be
//!   kept anywhere.
//! - The context is part of the derivation. Whatever is moved, renamed or spliced meets another key, and fails.
//! - AES-GCM alone does not commit to its key: one ciphertext can be made to open under two. The commitment is derived
//!   beside the key and compared before anything is decrypted, so a sealed text has one key and one context.
//! - [`SealOnce`] is consumed by sealing; that a key serves one message is not a rule to remember but the only code that
//!   compiles:
//!
//! ```compile_fail,E0382
//! use tidegate::keys::seal::SealOnce;
//! let once = SealOnce::new(&[7; 32], b"label", &[]).unwrap();
//! let mut first = SealOnce::room();
//! let mut second = SealOnce::room();
//! once.seal(&mut first).unwrap();
//! once.seal(&mut second).unwrap(); // used after being consumed
//! ```
//!
//! Once is fine:
//!
//! ```
//! use tidegate::keys::seal::SealOnce;
//! let once = SealOnce::new(&[7; 32], b"label", &[]).unwrap();
//! let mut sealed = SealOnce::room();
//! sealed.extend_from_slice(b"text");
//! once.seal(&mut sealed).unwrap();
//! ```

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf;
use zeroize::Zeroizing;

use super::{OutputBytes, RandomError, SECRET_BYTES, random};
use crate::fault::{Classify, Fault};

/// Random bytes in front of what is sealed.
pub const SALT_BYTES: usize = 24;
/// Bytes that tie a sealed text to its key and context.
pub const COMMITMENT_BYTES: usize = 32;
/// Bytes before the ciphertext.
pub const SEAL_HEAD_BYTES: usize = SALT_BYTES + COMMITMENT_BYTES;
/// Authentication tag at the end.
pub const TAG_BYTES: usize = 16;
/// What sealing adds.
pub const SEAL_OVERHEAD_BYTES: usize = SEAL_HEAD_BYTES + TAG_BYTES;

const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;

/// Why bytes were not sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// No random salt.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// The buffer was not begun with [`SealOnce::room`], or AES-GCM's own limit of 64 GiB is passed.
    #[error("the bytes to seal do not fit the sealed layout")]
    Layout,
}

impl Classify for SealError {
    fn fault(&self) -> Fault {
        Fault::Fatal
    }
}

/// Why sealed bytes were not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnsealError {
    /// Too few bytes to be anything sealed.
    #[error("{have_bytes} bytes are too few to be sealed")]
    Short {
        /// Bytes present.
        have_bytes: usize,
    },
    /// Sealed with another key or for another place.
    #[error("sealed with another key, or moved or renamed")]
    Commitment,
    /// The right key, but the content was altered.
    #[error("altered after sealing")]
    Altered,
}

impl Classify for UnsealError {
    fn fault(&self) -> Fault {
        Fault::Corrupt
    }
}

struct Derived {
    key: LessSafeKey,
    nonce: [u8; NONCE_BYTES],
    commitment: [u8; COMMITMENT_BYTES],
}

fn derive(secret: &[u8; SECRET_BYTES], salt: &[u8; SALT_BYTES], label: &[u8], context: &[&[u8]]) -> Derived {
    const OUTPUT: usize = KEY_BYTES + NONCE_BYTES + COMMITMENT_BYTES;
    let extracted = hkdf::Salt::new(hkdf::HKDF_SHA512, salt).extract(secret);
    let mut info = Vec::with_capacity(1 + context.len());
    info.push(label);
    info.extend_from_slice(context);
    let mut output = Zeroizing::new([0; OUTPUT]);
    let filled = extracted.expand(&info, OutputBytes(OUTPUT)).and_then(|okm| okm.fill(&mut *output));
    assert!(filled.is_ok(), "HKDF-SHA-512 gives up to 16320 bytes");
    let (key, rest) = output.split_at(KEY_BYTES);
    let (nonce, commitment) = rest.split_at(NONCE_BYTES);
    let Ok(key) = UnboundKey::new(&AES_256_GCM, key) else { unreachable!("an AES-256 key has 32 bytes") };
    let mut derived =
        Derived { key: LessSafeKey::new(key), nonce: [0; NONCE_BYTES], commitment: [0; COMMITMENT_BYTES] };
    derived.nonce.copy_from_slice(nonce);
    derived.commitment.copy_from_slice(commitment);
    derived
}

/// A key for exactly one text. See the module's head.
pub struct SealOnce {
    salt: [u8; SALT_BYTES],
    derived: Derived,
}

impl SealOnce {
    /// Derives a key with a fresh random salt. `context` pieces are joined as they are: the caller makes them
    /// unambiguous (fixed widths, lengths in front).
    ///
    /// # Errors
    /// [`RandomError`] if there is no random salt.
    pub fn new(secret: &[u8; SECRET_BYTES], label: &[u8], context: &[&[u8]]) -> Result<Self, RandomError> {
        let salt = random()?;
        Ok(Self { salt, derived: derive(secret, &salt, label, context) })
    }

    /// With a given salt, so that stored examples can be made again.
    #[cfg(test)]
    pub(crate) fn with_salt(
        secret: &[u8; SECRET_BYTES],
        label: &[u8],
        context: &[&[u8]],
        salt: [u8; SALT_BYTES],
    ) -> Self {
        Self { salt, derived: derive(secret, &salt, label, context) }
    }

    /// A buffer with the room that [`SealOnce::seal`] needs in front of the text.
    #[must_use]
    pub fn room() -> Vec<u8> {
        vec![0; SEAL_HEAD_BYTES]
    }

    /// Seals in place everything after the first [`SEAL_HEAD_BYTES`] bytes of `buffer`, fills those and appends the tag.
    ///
    /// # Errors
    /// [`SealError::Layout`] if the room is missing.
    pub fn seal(self, buffer: &mut Vec<u8>) -> Result<(), SealError> {
        buffer.resize(buffer.len() + TAG_BYTES, 0);
        self.seal_within(buffer)
    }

    /// The same where the room for the tag is there: the last [`TAG_BYTES`] bytes of `sealed`.
    ///
    /// # Errors
    /// [`SealError::Layout`] if room is missing.
    pub fn seal_within(self, sealed: &mut [u8]) -> Result<(), SealError> {
        let text_bytes = sealed.len().checked_sub(SEAL_OVERHEAD_BYTES).ok_or(SealError::Layout)?;
        let (head, rest) = sealed.split_at_mut(SEAL_HEAD_BYTES);
        let (text, tag) = rest.split_at_mut(text_bytes);
        let nonce = Nonce::assume_unique_for_key(self.derived.nonce);
        let made = self.derived.key.seal_in_place_separate_tag(nonce, Aad::empty(), text);
        tag.copy_from_slice(made.map_err(|_| SealError::Layout)?.as_ref());
        head[..SALT_BYTES].copy_from_slice(&self.salt);
        head[SALT_BYTES..].copy_from_slice(&self.derived.commitment);
        Ok(())
    }
}

/// Opens in place; the result is the part of `sealed` that holds the text.
///
/// # Errors
/// [`UnsealError`] tells a wrong key or place from altered content. Nothing is decrypted before the commitment held.
pub fn unseal<'a>(
    secret: &[u8; SECRET_BYTES],
    label: &[u8],
    context: &[&[u8]],
    sealed: &'a mut [u8],
) -> Result<&'a mut [u8], UnsealError> {
    if sealed.len() < SEAL_OVERHEAD_BYTES {
        return Err(UnsealError::Short { have_bytes: sealed.len() });
    }
    let (head, text) = sealed.split_at_mut(SEAL_HEAD_BYTES);
    let mut salt = [0; SALT_BYTES];
    salt.copy_from_slice(&head[..SALT_BYTES]);
    let derived = derive(secret, &salt, label, context);
    if derived.commitment != head[SALT_BYTES..] {
        return Err(UnsealError::Commitment);
    }
    let nonce = Nonce::assume_unique_for_key(derived.nonce);
    derived.key.open_in_place(nonce, Aad::empty(), text).map_err(|_| UnsealError::Altered)
}
