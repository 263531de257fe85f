//! The key of one disk in one lane: without it the lane's key opens none of that disk's messages, so a disk can be shredded although it
//! shares batches with others.
//!
//! ```text
//!  disk key, random ──► sealed under the lane key ──► stands in the disk's route to the lane, d/<disk>/r/<lane>
//!      │
//!  lane key ─┴► HKDF-SHA-512 ──► secret of the disk in the lane ──► one AES-256-GCM key per message (`seal`)
//! ```
//!
//! - Whoever opens the lane key opens the disk key where its sealed form still stands, and nowhere else: nothing is wrapped to anybody.
//! - A gateway makes it when it first seals something of the disk in the lane, and keeps of it what it seals with and what stands in the
//!   route. Both are made once, so a route that is written again is the same.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use ring::hkdf;
use zeroize::Zeroizing;

use super::seal::{SEAL_HEAD_BYTES, SEAL_OVERHEAD_BYTES, SealOnce, UnsealError, unseal};
use super::{LaneKey, OutputBytes, RandomError, SECRET_BYTES, random};
use crate::mutants::{self, Mutant};
use crate::types::{DiskId, Id128, hex_text, parse_hex};

/// Label under which a disk key is sealed.
const LABEL: &[u8] = b"tidegate 1 disk key";
/// Purpose of what lane key and disk key give together.
const PURPOSE: &[u8] = b"tidegate 2 disk in lane";
/// Bytes of a sealed disk key.
pub const SEALED_DISK_KEY_BYTES: usize = SEAL_OVERHEAD_BYTES + SECRET_BYTES;

/// The key of one disk in one lane. It exists while it is made or opened, and sealed in a route.
pub struct DiskKey(Zeroizing<[u8; SECRET_BYTES]>);

/// A disk key as it stands in a route.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SealedDiskKey(pub [u8; SEALED_DISK_KEY_BYTES]);

hex_text!(SealedDiskKey);

/// Every part has a fixed width or its length in front, so no two places give the same bytes.
fn within<T>(vault: Id128, disk: &DiskId, lane: Id128, use_it: impl FnOnce(&[&[u8]]) -> T) -> T {
    let name = disk.as_str().as_bytes();
    use_it(&[&vault.0, &(name.len() as u32).to_le_bytes(), name, &lane.0])
}

impl DiskKey {
    /// Takes the secret as opened.
    #[must_use]
    pub fn from_secret(secret: [u8; SECRET_BYTES]) -> Self {
        Self(Zeroizing::new(secret))
    }

    /// Seals it under the key of its lane, for its disk and lane.
    ///
    /// # Errors
    /// [`RandomError`] if the operating system has no random bytes.
    pub fn seal(&self, key: &LaneKey, vault: Id128, disk: &DiskId, lane: Id128) -> Result<SealedDiskKey, RandomError> {
        let once = within(vault, disk, lane, |context| SealOnce::new(key.expose(), LABEL, context))?;
        Ok(self.seal_by(once))
    }

    fn seal_by(&self, once: SealOnce) -> SealedDiskKey {
        let mut sealed = [0; SEALED_DISK_KEY_BYTES];
        sealed[SEAL_HEAD_BYTES..SEAL_HEAD_BYTES + SECRET_BYTES].copy_from_slice(&*self.0);
        let done = once.seal_within(&mut sealed);
        assert!(done.is_ok(), "there is room for exactly this");
        SealedDiskKey(sealed)
    }

    #[cfg(test)]
    pub(crate) fn seal_salted(
        &self,
        key: &LaneKey,
        (vault, disk, lane): (Id128, &DiskId, Id128),
        salt: [u8; super::seal::SALT_BYTES],
    ) -> SealedDiskKey {
        self.seal_by(within(vault, disk, lane, |context| SealOnce::with_salt(key.expose(), LABEL, context, salt)))
    }
}

impl fmt::Debug for DiskKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DiskKey(redacted)")
    }
}

impl SealedDiskKey {
    /// Opens it with the key of its lane.
    ///
    /// # Errors
    /// [`UnsealError`] tells another key, disk or lane from altered content.
    pub fn open(&self, key: &LaneKey, vault: Id128, disk: &DiskId, lane: Id128) -> Result<DiskKey, UnsealError> {
        let mut bytes = Zeroizing::new(self.0);
        let opened = within(vault, disk, lane, |context| unseal(key.expose(), LABEL, context, bytes.as_mut_slice()))?;
        let mut secret = Zeroizing::new([0; SECRET_BYTES]);
        // What was sealed has the length of a key, as the whole has a fixed one.
        secret.copy_from_slice(&opened[..SECRET_BYTES]);
        Ok(DiskKey(secret))
    }
}

/// From which every message of one disk in one lane gets its own key. Takes lane key and disk key, and is neither.
#[derive(Clone)]
pub struct DiskSecret(Arc<Zeroizing<[u8; SECRET_BYTES]>>);

impl DiskSecret {
    /// What the two keys give together.
    #[must_use]
    pub fn new(lane: &LaneKey, disk: &DiskKey) -> Self {
        let mut out = Zeroizing::new([0; SECRET_BYTES]);
        let extracted = hkdf::Salt::new(hkdf::HKDF_SHA512, lane.expose()).extract(&*disk.0);
        let filled = extracted.expand(&[PURPOSE], OutputBytes(SECRET_BYTES)).and_then(|okm| okm.fill(&mut *out));
        assert!(filled.is_ok(), "HKDF-SHA-512 gives up to 16320 bytes");
        if mutants::on(Mutant::DiskKeyUnused) {
            out.copy_from_slice(lane.expose());
        }
        Self(Arc::new(out))
    }

    /// The secret itself.
    #[must_use]
    pub fn expose(&self) -> &[u8; SECRET_BYTES] {
        &self.0
    }

    #[cfg(test)]
    pub(crate) fn from_secret(secret: [u8; SECRET_BYTES]) -> Self {
        Self(Arc::new(Zeroizing::new(secret)))
    }
}

impl fmt::Debug for DiskSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DiskSecret(redacted)")
    }
}

/// With what the messages of one disk in one lane are sealed.
#[derive(Clone, Debug)]
pub enum MessageKey {
    /// The lane's key alone, as before disks had keys.
    Lane(LaneKey),
    /// Lane key and disk key together.
    Disk(DiskSecret),
}

impl From<LaneKey> for MessageKey {
    fn from(key: LaneKey) -> Self {
        Self::Lane(key)
    }
}

impl From<DiskSecret> for MessageKey {
    fn from(secret: DiskSecret) -> Self {
        Self::Disk(secret)
    }
}

/// The keys of a lane while it is written: its own, and those of the disks in it, made as they come. Bounded, as routes are, by the disks
/// of one gateway.
pub struct LaneKeys {
    vault: Id128,
    lane: Id128,
    key: LaneKey,
    disks: Mutex<HashMap<DiskId, Made>>,
}

/// What is kept of a disk key.
struct Made {
    secret: DiskSecret,
    sealed: SealedDiskKey,
}

impl LaneKeys {
    /// Of a lane whose key is `key`.
    #[must_use]
    pub fn new(vault: Id128, lane: Id128, key: LaneKey) -> Self {
        Self { vault, lane, key, disks: Mutex::default() }
    }

    /// The lane's own key.
    #[must_use]
    pub fn lane_key(&self) -> &LaneKey {
        &self.key
    }

    /// With what messages of a disk are sealed. Asked by one thread for each message, and by another for each new disk.
    ///
    /// # Errors
    /// [`RandomError`] if the disk is new and the operating system has no random bytes.
    pub fn secret(&self, disk: &DiskId) -> Result<DiskSecret, RandomError> {
        self.made(disk, |made| made.secret.clone())
    }

    /// The same as the key of messages.
    ///
    /// # Errors
    /// As [`LaneKeys::secret`].
    pub fn of_messages(&self, disk: &DiskId) -> Result<MessageKey, RandomError> {
        self.secret(disk).map(MessageKey::from)
    }

    /// The disk's key as it stands in its route: the same whenever it is asked for.
    ///
    /// # Errors
    /// As [`LaneKeys::secret`].
    pub fn sealed(&self, disk: &DiskId) -> Result<SealedDiskKey, RandomError> {
        self.made(disk, |made| made.sealed)
    }

    fn made<T>(&self, disk: &DiskId, take: impl FnOnce(&Made) -> T) -> Result<T, RandomError> {
        let mut disks = self.disks.lock();
        if let Some(made) = disks.get(disk) {
            return Ok(take(made));
        }
        let key = DiskKey::from_secret(random()?);
        let sealed = key.seal(&self.key, self.vault, disk, self.lane)?;
        let made = Made { secret: DiskSecret::new(&self.key, &key), sealed };
        Ok(take(disks.entry(disk.clone()).or_insert(made)))
    }
}

impl fmt::Debug for LaneKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LaneKeys(of lane {})", self.lane)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(name: &str) -> DiskId {
        DiskId::new(name).expect("valid")
    }

    #[test]
    fn a_disk_key_opens_with_its_lanes_key_for_its_disk_and_lane_only() {
        let (vault, lane, key) = (Id128([1; 16]), Id128([2; 16]), LaneKey::from_secret([3; 32]));
        let sealed = DiskKey::from_secret([4; 32]).seal(&key, vault, &disk("d1"), lane).expect("sealed");
        let open = |key: &LaneKey, vault, of: &str, lane| sealed.open(key, vault, &disk(of), lane).map(|key| *key.0);
        assert_eq!(open(&key, vault, "d1", lane), Ok([4; 32]));
        let wrong = Err(UnsealError::Commitment);
        assert_eq!(open(&LaneKey::from_secret([9; 32]), vault, "d1", lane), wrong);
        assert_eq!(open(&key, Id128([9; 16]), "d1", lane), wrong);
        assert_eq!(open(&key, vault, "d2", lane), wrong);
        assert_eq!(open(&key, vault, "d1", Id128([9; 16])), wrong);
        for byte in 0..SEALED_DISK_KEY_BYTES {
            let mut altered = sealed;
            altered.0[byte] ^= 1;
            assert!(altered.open(&key, vault, &disk("d1"), lane).is_err(), "byte {byte}");
        }
        let text = sealed.to_string();
        assert_eq!(serde_json::from_str::<SealedDiskKey>(&format!("{text:?}")).expect("read"), sealed);
        assert!(serde_json::from_str::<SealedDiskKey>(&format!("{:?}", &text[2..])).is_err(), "cut");
    }

    #[test]
    fn the_secret_of_a_disk_takes_both_keys_and_is_none_of_them() {
        let key = |byte| LaneKey::from_secret([byte; 32]);
        let disk = |byte| DiskKey::from_secret([byte; 32]);
        let secret = *DiskSecret::new(&key(1), &disk(2)).expose();
        assert_ne!(secret, *DiskSecret::new(&key(3), &disk(2)).expose());
        assert_ne!(secret, *DiskSecret::new(&key(1), &disk(3)).expose());
        assert!(secret != [1; 32] && secret != [2; 32]);
    }

    #[test]
    fn a_lane_makes_one_key_for_each_disk_and_always_gives_the_same() {
        let keys = LaneKeys::new(Id128([1; 16]), Id128([2; 16]), LaneKey::from_secret([3; 32]));
        let secret = |name: &str| match keys.of_messages(&disk(name)).expect("random") {
            MessageKey::Disk(secret) => *secret.expose(),
            MessageKey::Lane(_) => panic!("sealed with the lane's key alone"),
        };
        let first = secret("d1");
        let sealed = keys.sealed(&disk("d1")).expect("random");
        assert_eq!(keys.sealed(&disk("d1")).expect("random"), sealed, "a route is written again as it was");
        assert_eq!(secret("d1"), first);
        assert_ne!(secret("d2"), first);
        let opened = sealed.open(keys.lane_key(), Id128([1; 16]), &disk("d1"), Id128([2; 16])).expect("opens");
        assert_eq!(*DiskSecret::new(keys.lane_key(), &opened).expose(), first);
        let other = LaneKeys::new(Id128([1; 16]), Id128([2; 16]), LaneKey::from_secret([3; 32]));
        assert_ne!(other.sealed(&disk("d1")).expect("random"), sealed, "keys are random");
    }

    #[test]
    fn no_debug_output_shows_a_disks_secret() {
        let keys = LaneKeys::new(Id128([1; 16]), Id128([2; 16]), LaneKey::from_secret([0xab; 32]));
        let (key, secret) = (DiskKey::from_secret([0xab; 32]), DiskSecret::from_secret([0xab; 32]));
        let shown = format!("{keys:?} {key:?} {secret:?} {:?}", keys.of_messages(&disk("d1")).expect("random"));
        assert!(!shown.contains("abab") && !shown.contains("171"), "{shown}");
    }
}
