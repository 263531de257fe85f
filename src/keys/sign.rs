//! Signing what only a recovery identity may decide: who the recipients are, and what a lane key was wrapped anew to.
//!
//! A MAC under the catalog key does not do for that: every gateway holds the catalog key, so a stolen one could name a
//! recipient of its own, and all other gateways would wrap their lane keys to it. An age identity cannot sign. So a vault has a
//! signing key (Ed25519) whose secret half is wrapped to the present recipients, like every other key; who opens it may name the
//! next ones. Each list of recipients brings a signing key of its own, so that a recipient who was removed signs nothing more.

use std::fmt;

use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use zeroize::Zeroizing;

use super::{RandomError, SECRET_BYTES, random};
use crate::types::{hex_text, parse_hex};

/// The secret half. It exists in memory while a list is made, and wrapped in the vault. `ring` keeps what it derives from the seed
/// only while it signs, but does not wipe it.
pub struct SigningKey {
    seed: Zeroizing<[u8; SECRET_BYTES]>,
}

/// The public half: tells what was signed by the other one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct VerifyingKey(pub [u8; 32]);

/// A signature (Ed25519, RFC 8032).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature(pub [u8; 64]);

hex_text!(VerifyingKey);
hex_text!(Signature);

impl SigningKey {
    /// A new random key.
    ///
    /// # Errors
    /// [`RandomError`] if the operating system has no random bytes.
    pub fn generate() -> Result<Self, RandomError> {
        Ok(Self { seed: Zeroizing::new(random()?) })
    }

    /// Takes the seed as unwrapped.
    #[must_use]
    pub fn from_seed(seed: Zeroizing<[u8; SECRET_BYTES]>) -> Self {
        Self { seed }
    }

    fn pair(&self) -> Ed25519KeyPair {
        let Ok(pair) = Ed25519KeyPair::from_seed_unchecked(self.seed.as_slice()) else {
            unreachable!("ring refuses only seeds that are not 32 bytes long")
        };
        pair
    }

    /// The seed itself, for wrapping.
    #[must_use]
    pub fn expose(&self) -> &[u8; SECRET_BYTES] {
        &self.seed
    }

    /// The public half.
    #[must_use]
    pub fn verifying_key(&self) -> VerifyingKey {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.pair().public_key().as_ref());
        VerifyingKey(bytes)
    }

    /// Signs a text.
    #[must_use]
    pub fn sign(&self, text: &[u8]) -> Signature {
        let mut bytes = [0; 64];
        bytes.copy_from_slice(self.pair().sign(text).as_ref());
        Signature(bytes)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey(of {})", self.verifying_key())
    }
}

impl VerifyingKey {
    /// Whether the secret half signed `text`.
    #[must_use]
    pub fn signed(&self, text: &[u8], signature: &Signature) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(text, &signature.0).is_ok()
    }
}
