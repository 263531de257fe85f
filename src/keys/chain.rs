//! The chain of a vault's catalog keys: each older one is sealed under the one that took its place, so that who has the newest has
//! all of them, and a key file keeps one key.

use std::fmt;

use zeroize::Zeroizing;

use super::seal::{SEAL_HEAD_BYTES, SEAL_OVERHEAD_BYTES, SealError, SealOnce, UnsealError, unseal};
use super::{CatalogKey, KeyId, SECRET_BYTES, derive};
use crate::types::{Id128, hex_text, parse_hex};

const LABEL: &[u8] = b"tidegate 1 older catalog key";

/// A catalog key, sealed under the one that comes after it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SealedOlderKey(pub [u8; SEAL_OVERHEAD_BYTES + SECRET_BYTES]);

hex_text!(SealedOlderKey);

/// The secret of a key from which older ones are sealed.
fn secret_of(newer: &CatalogKey) -> Zeroizing<[u8; SECRET_BYTES]> {
    derive(&newer.secret, b"seal older key")
}

impl SealedOlderKey {
    /// Seals `older` under `newer`, for one vault.
    ///
    /// # Errors
    /// [`SealError`] if the operating system has no random bytes.
    pub fn new(vault: Id128, older: &CatalogKey, newer: &CatalogKey) -> Result<Self, SealError> {
        let once = SealOnce::new(&secret_of(newer), LABEL, &[&vault.0, &older.kid().0, &newer.kid().0])?;
        let mut sealed = [0; SEAL_OVERHEAD_BYTES + SECRET_BYTES];
        sealed[SEAL_HEAD_BYTES..SEAL_HEAD_BYTES + SECRET_BYTES].copy_from_slice(older.expose());
        once.seal_within(&mut sealed)?;
        Ok(Self(sealed))
    }

    /// The same with a given salt, so that stored examples can be made again.
    #[cfg(test)]
    pub(crate) fn with_salt(vault: Id128, older: &CatalogKey, newer: &CatalogKey, salt: [u8; 24]) -> Self {
        let context: [&[u8]; 3] = [&vault.0, &older.kid().0, &newer.kid().0];
        let mut sealed = [0; SEAL_OVERHEAD_BYTES + SECRET_BYTES];
        sealed[SEAL_HEAD_BYTES..SEAL_HEAD_BYTES + SECRET_BYTES].copy_from_slice(older.expose());
        SealOnce::with_salt(&secret_of(newer), LABEL, &context, salt).seal_within(&mut sealed).expect("it has room");
        Self(sealed)
    }

    /// The older key, by the one that came after it.
    ///
    /// # Errors
    /// [`UnsealError`] if it was sealed under another key, for another vault or another older key, or was altered.
    pub fn open(&self, vault: Id128, older: KeyId, newer: &CatalogKey) -> Result<CatalogKey, UnsealError> {
        let mut sealed = Zeroizing::new(self.0);
        let opened = unseal(&secret_of(newer), LABEL, &[&vault.0, &older.0, &newer.kid().0], sealed.as_mut_slice())?;
        let secret = Zeroizing::new(<[u8; SECRET_BYTES]>::try_from(&*opened).map_err(|_| UnsealError::Altered)?);
        let key = CatalogKey::from_secret(*secret);
        if key.kid() == older { Ok(key) } else { Err(UnsealError::Altered) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_key_opens_by_the_newer_one_alone_and_for_its_vault_alone() {
        let [one, two, three] = [1, 2, 3].map(|byte| CatalogKey::from_secret([byte; 32]));
        let vault = Id128([7; 16]);
        let sealed = SealedOlderKey::new(vault, &one, &two).expect("random");
        assert_eq!(sealed.open(vault, one.kid(), &two).expect("opens").expose(), one.expose());
        assert!(sealed.open(vault, one.kid(), &three).is_err());
        assert!(sealed.open(vault, one.kid(), &one).is_err(), "not by the older one itself");
        assert!(sealed.open(Id128([8; 16]), one.kid(), &two).is_err());
        assert!(sealed.open(vault, three.kid(), &two).is_err());
        for at in 0..sealed.0.len() {
            let mut altered = sealed;
            altered.0[at] ^= 1;
            assert!(altered.open(vault, one.kid(), &two).is_err(), "byte {at}");
        }
        assert!(!format!("{sealed}").contains(&"01".repeat(32)), "it is sealed");
    }
}
