//! The keys of a vault: who can open what.
//!
//! ```text
//!  recovery identity (age, X25519)      held by the operator alone
//!      opens  keys/<kid>   ──► catalog key     gateways and keeper hold it in a file
//!      opens  lanes/<lane> ──► lane key        a gateway holds its present one in memory, at most a day
//!      with it opens d/<disk>/r/<lane> ──► disk key: the secret of one disk in one lane (`disk`)
//!                                 └► of both together: one AES-256-GCM key per message ([`seal`])
//!      opens  recipients/<n> ──► signing key: names the next recipients (`sign`), wraps lane keys anew
//!  catalog key ──► one AES-256-GCM key per index object, one HMAC key per kind of control object
//!      └► the catalog key before it ([`chain`])
//! ```
//!
//! Purpose: make, read, write and wrap these keys, and derive from them. What it does not own: object names and control
//! objects (vault), what is sealed (pipeline, vault index).
//!
//! Invariants
//! - A gateway can wrap a lane key but not unwrap it: only recipients (public keys) are on gateways. So a stolen gateway
//!   opens what it has in memory, nothing older.
//! - Secrets are wiped when dropped, and `Debug` shows the kind of key only, so no log line can carry one.
//! - Key files are created with mode 0600 and never overwritten: overwriting the only key loses the vault.
//! - Who the recipients are is signed, not MACed: gateways hold the catalog key, and must not be able to name recipients.
//! - Every derivation names its purpose, so no two uses share a key.

pub mod chain;
mod disk;
pub(crate) mod file;
pub(crate) mod locked;
pub mod seal;
mod sign;
mod wrap;

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use ring::{hkdf, hmac};
use zeroize::Zeroizing;

use crate::fault::{Classify, Fault};
use crate::types::parse_hex;

pub use disk::{DiskKey, DiskSecret, LaneKeys, MessageKey, SEALED_DISK_KEY_BYTES, SealedDiskKey};
pub use file::{KeyFileError, KeyFileProblem, read_recipients};
pub use locked::{PASSPHRASE_BYTES_MAX, Passphrase};
pub use sign::{Signature, SigningKey, VerifyingKey};
pub use wrap::{Identity, InvalidRecipientError, Recipient, UnwrapError, WrapError, unwrap, wrap, wrapped_to};

/// Bytes of a catalog key or lane key.
pub const SECRET_BYTES: usize = 32;

/// The operating system gave no random bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the operating system's random generator failed")]
pub struct RandomError;

impl Classify for RandomError {
    fn fault(&self) -> Fault {
        Fault::Fatal
    }
}

/// Random bytes from the operating system.
///
/// # Errors
/// [`RandomError`] if it has none.
pub fn random<const N: usize>() -> Result<[u8; N], RandomError> {
    let mut bytes = [0; N];
    crate::flow::fill_random(&mut bytes).map_err(|_| RandomError)?;
    Ok(bytes)
}

/// Names a catalog key without telling anything about it: 8 bytes derived from the key, shown as 16 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub [u8; 8]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no [`KeyId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected the 16 hexadecimal digits of a key id")]
pub struct InvalidKeyIdError;

impl FromStr for KeyId {
    type Err = InvalidKeyIdError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        parse_hex(s).map(Self).ok_or(InvalidKeyIdError)
    }
}

/// The symmetric key that opens indexes and authenticates control objects. Gateways and the keeper hold it; it opens
/// no data.
#[derive(Clone)]
pub struct CatalogKey {
    secret: Zeroizing<[u8; SECRET_BYTES]>,
    kid: KeyId,
}

/// The salt of every derivation from a catalog key: a name for this family of derivations.
const CATALOG_SALT: &[u8] = b"tidegate 1 catalog key";

/// An output length for ring's HKDF.
pub(crate) struct OutputBytes(pub usize);

impl hkdf::KeyType for OutputBytes {
    fn len(&self) -> usize {
        self.0
    }
}

/// HKDF-SHA-256 with the purpose as its info.
fn derive<const N: usize>(secret: &[u8; SECRET_BYTES], purpose: &[u8]) -> Zeroizing<[u8; N]> {
    const { assert!(N <= 255 * 32, "HKDF-SHA-256 gives at most 255 blocks") };
    let mut out = Zeroizing::new([0; N]);
    let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, CATALOG_SALT).extract(secret);
    let filled = extracted.expand(&[purpose], OutputBytes(N)).and_then(|okm| okm.fill(&mut *out));
    assert!(filled.is_ok(), "HKDF refuses only lengths over its limit, asserted above");
    out
}

impl CatalogKey {
    /// A new random key.
    ///
    /// # Errors
    /// [`RandomError`] if the operating system has no random bytes.
    pub fn generate() -> Result<Self, RandomError> {
        Ok(Self::from_secret(random()?))
    }

    /// Takes the secret as unwrapped or read from a file.
    #[must_use]
    pub fn from_secret(secret: [u8; SECRET_BYTES]) -> Self {
        let secret = Zeroizing::new(secret);
        let kid = KeyId(*derive(&secret, b"key id"));
        Self { secret, kid }
    }

    /// Its public name.
    #[must_use]
    pub fn kid(&self) -> KeyId {
        self.kid
    }

    /// The secret itself, for wrapping.
    #[must_use]
    pub fn expose(&self) -> &[u8; SECRET_BYTES] {
        &self.secret
    }

    /// Reads a catalog key file: `tidegate-catalog-key-1 <kid> <hex>`.
    ///
    /// # Errors
    /// [`KeyFileError`] if the file cannot be read or holds something else; it says what it holds if that is known.
    pub fn read(path: &Path) -> Result<Self, KeyFileError> {
        file::read_catalog_key(path)
    }

    /// Writes the key to a new file with mode 0600.
    ///
    /// # Errors
    /// [`KeyFileError`] if the file exists or cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), KeyFileError> {
        file::write_new(path, &file::catalog_key_text(self))
    }

    /// The key from which index objects are sealed.
    #[must_use]
    pub fn index_secret(&self) -> Zeroizing<[u8; SECRET_BYTES]> {
        derive(&self.secret, b"seal index")
    }

    fn mac_key(&self, purpose: &str) -> hmac::Key {
        let secret = derive::<32>(&self.secret, [b"mac ", purpose.as_bytes()].concat().as_slice());
        hmac::Key::new(hmac::HMAC_SHA256, &*secret)
    }
}

impl fmt::Debug for CatalogKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CatalogKey({})", self.kid)
    }
}

/// HMAC-SHA-256 of `bytes` under a key that only `purpose` uses.
#[must_use]
pub fn mac(key: &CatalogKey, purpose: &str, bytes: &[u8]) -> [u8; 32] {
    let tag = hmac::sign(&key.mac_key(purpose), bytes);
    let mut out = [0; 32];
    out.copy_from_slice(tag.as_ref());
    out
}

/// Whether `tag` is the [`mac`] of `bytes`; compared in constant time.
#[must_use]
pub fn mac_holds(key: &CatalogKey, purpose: &str, bytes: &[u8], tag: &[u8]) -> bool {
    hmac::verify(&key.mac_key(purpose), bytes, tag).is_ok()
}

/// The secret of one lane: with the key of a disk in it, it gives every message of that disk its own key; messages from before disks had
/// keys got theirs from it alone. It lives in the memory of one gateway incarnation, and wrapped to the recovery recipients in the vault.
#[derive(Clone)]
pub struct LaneKey(Zeroizing<[u8; SECRET_BYTES]>);

impl LaneKey {
    /// A new random key.
    ///
    /// # Errors
    /// [`RandomError`] if the operating system has no random bytes.
    pub fn generate() -> Result<Self, RandomError> {
        Ok(Self::from_secret(random()?))
    }

    /// Takes the secret as unwrapped.
    #[must_use]
    pub fn from_secret(secret: [u8; SECRET_BYTES]) -> Self {
        Self(Zeroizing::new(secret))
    }

    /// The secret itself, for wrapping.
    #[must_use]
    pub fn expose(&self) -> &[u8; SECRET_BYTES] {
        &self.0
    }
}

impl fmt::Debug for LaneKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LaneKey(redacted)")
    }
}

#[cfg(test)]
mod tests;
