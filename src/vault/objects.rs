//! Control objects: the vault's description, lanes, disks, epochs, routes. Small, written once, read by people too.
//!
//! ```text
//! {"format":"tidegate-lane","version":1,…}\n
//! 64 hexadecimal digits: HMAC-SHA-256 under the catalog key, for the purpose "object <name>", of the line above\n
//! ```
//!
//! Because the MAC's purpose holds the object's name, an object that was renamed, or copied from another place of the
//! vault, does not authenticate. Its key is the vault's own, so neither does one from another vault.
//!
//! What only a recovery identity may decide is signed besides (`signed`): the catalog key is on every gateway.
//!
//! Two objects cannot have a MAC that is checked before the catalog key is known: `vault` (it names the key and the
//! recipients; its MAC is checked once the key is there) and `keys/<kid>` (armored `age` text, checked by the key id).

mod signed;

use object_store::path::Path;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::fault::{Classify, Fault};
use crate::keys::chain::SealedOlderKey;
use crate::keys::{CatalogKey, KeyId, Recipient, SealedDiskKey, VerifyingKey, mac, mac_holds};
use crate::limits;
use crate::types::{Chain, DiskId, Epoch, Id128, Micros, PointId, Seq};

pub use signed::{Signed, SignedContent, SignedError};

/// A kind of control object: its format's name, version and content.
pub trait ControlObject: Serialize + DeserializeOwned {
    /// Name of the format.
    const FORMAT: &'static str;
    /// Newest version that this build writes; it reads this one and all before.
    const VERSION: u32 = 1;

    /// The version that this very object is written as: an older one, where that says everything, is read by older builds too.
    fn version(&self) -> u32 {
        Self::VERSION
    }
}

/// What every control object starts with.
#[derive(Debug, Serialize, Deserialize)]
struct Preamble {
    format: String,
    version: u32,
}

#[derive(Serialize)]
struct Written<'a, T> {
    format: &'static str,
    version: u32,
    #[serde(flatten)]
    content: &'a T,
}

/// Why a control object is not believed.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// Another format stands under the name.
    #[error("{object} holds {found:?} where {expected:?} belongs")]
    Format {
        /// The object.
        object: String,
        /// Format found.
        found: String,
        /// Format that belongs there.
        expected: &'static str,
    },
    /// A newer release wrote it.
    #[error("{object} has version {found} of {format}; this build reads up to {newest}: use a newer tidegate")]
    Version {
        /// The object.
        object: String,
        /// Its format.
        format: &'static str,
        /// Its version.
        found: u32,
        /// The newest that is understood.
        newest: u32,
    },
    /// The MAC does not hold.
    #[error("{object} is damaged or forged: it does not authenticate under catalog key {kid}")]
    Mac {
        /// The object.
        object: String,
        /// The key that was tried.
        kid: KeyId,
    },
    /// It authenticates under a catalog key that had been replaced when it appeared.
    #[error(transparent)]
    TooLate(#[from] TooLate),
    /// It is not a control object at all, or a field is missing or of the wrong form.
    #[error("{object} is damaged: {what}")]
    Malformed {
        /// The object.
        object: String,
        /// What is wrong.
        what: String,
    },
}

impl Classify for ObjectError {
    fn fault(&self) -> Fault {
        match self {
            Self::Version { .. } => Fault::Reject,
            Self::Format { .. } | Self::Mac { .. } | Self::Malformed { .. } | Self::TooLate(_) => Fault::Corrupt,
        }
    }
}

/// Whoever had an older catalog key made it, after that key's time: nobody who knew better, or who could do better. It counts for
/// nobody, as if it were not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{object} does not count: it appeared after catalog key {kid} was replaced (list {list} of the recipients), and was made with that key"
)]
pub struct TooLate {
    /// The object.
    pub object: String,
    /// The key.
    pub kid: KeyId,
    /// The list of recipients that made another one the present key.
    pub list: u64,
}

/// Hexadecimal digits of the MAC.
const MAC_DIGITS: usize = 64;

fn purpose(path: &Path) -> String {
    format!("object {path}")
}

/// Encodes and authenticates a control object for its name. The same content always gives the same bytes.
///
/// # Errors
/// [`ObjectError::Malformed`] if the content cannot be expressed, which no type of this module does.
pub fn encode<T: ControlObject>(key: &CatalogKey, path: &Path, content: &T) -> Result<Vec<u8>, ObjectError> {
    let written = Written { format: T::FORMAT, version: content.version(), content };
    let mut bytes = serde_json::to_vec(&written).map_err(|error| malformed(path, &error))?;
    bytes.push(b'\n');
    let tag = mac(key, &purpose(path), &bytes);
    for byte in tag {
        for digit in [byte >> 4, byte & 15] {
            bytes.push(if digit < 10 { b'0' + digit } else { b'a' + digit - 10 });
        }
    }
    bytes.push(b'\n');
    if bytes.len() as u64 > limits::CONTROL_OBJECT_BYTES_MAX {
        return Err(malformed(path, &format_args!("{} bytes are more than anybody would read of it", bytes.len())));
    }
    Ok(bytes)
}

/// Checks and decodes a control object read from `path`.
///
/// # Errors
/// [`ObjectError`]. A newer version is reported as such even if its MAC is made in another way.
pub fn decode<T: ControlObject>(key: &CatalogKey, path: &Path, bytes: &[u8]) -> Result<T, ObjectError> {
    let (line, tag) = split(path, bytes)?;
    check_version::<T>(path, line)?;
    let tag = tag.map(|tag| mac_holds(key, &purpose(path), line, &tag));
    if tag != Some(true) {
        return Err(ObjectError::Mac { object: path.to_string(), kid: key.kid() });
    }
    serde_json::from_slice(line).map_err(|error| malformed(path, &error))
}

/// Decodes without checking the MAC: only to find out which key to ask for, or to show what stands there.
///
/// # Errors
/// [`ObjectError`] without its `Mac` case.
pub fn decode_unchecked<T: ControlObject>(path: &Path, bytes: &[u8]) -> Result<T, ObjectError> {
    let (line, _) = split(path, bytes)?;
    check_version::<T>(path, line)?;
    serde_json::from_slice(line).map_err(|error| malformed(path, &error))
}

fn malformed(path: &Path, what: &dyn std::fmt::Display) -> ObjectError {
    ObjectError::Malformed { object: path.to_string(), what: what.to_string() }
}

/// The line with its end, and the tag if it has the right form.
fn split<'a>(path: &Path, bytes: &'a [u8]) -> Result<(&'a [u8], Option<[u8; 32]>), ObjectError> {
    let end = bytes.iter().position(|&byte| byte == b'\n');
    let Some(end) = end else {
        return Err(malformed(path, &"it has no complete first line"));
    };
    let (line, rest) = bytes.split_at(end + 1);
    let digits = rest.strip_suffix(b"\n").filter(|digits| digits.len() == MAC_DIGITS);
    let lower = |digits: &&[u8]| digits.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let tag =
        digits.filter(lower).and_then(|digits| std::str::from_utf8(digits).ok()).and_then(crate::types::parse_hex);
    Ok((line, tag))
}

fn check_version<T: ControlObject>(path: &Path, line: &[u8]) -> Result<(), ObjectError> {
    let preamble: Preamble = serde_json::from_slice(line).map_err(|error| malformed(path, &error))?;
    if preamble.format != T::FORMAT {
        let found = preamble.format.chars().take(80).collect();
        return Err(ObjectError::Format { object: path.to_string(), found, expected: T::FORMAT });
    }
    if preamble.version == 0 || preamble.version > T::VERSION {
        let (object, found) = (path.to_string(), preamble.version);
        return Err(ObjectError::Version { object, format: T::FORMAT, found, newest: T::VERSION });
    }
    Ok(())
}

/// A [`KeyId`] in JSON: 16 hexadecimal digits.
mod kid_text {
    use super::KeyId;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(kid: &KeyId, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(kid)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<KeyId, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// `vault`: what the whole is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultObject {
    /// Random id, part of every identity certificate and of every sealed message's context.
    pub id: Id128,
    /// When it was made.
    pub created_micros: Micros,
    /// To whom every key is wrapped, until a list of recipients says otherwise.
    pub recipients: Vec<Recipient>,
    /// Its catalog key.
    #[serde(with = "kid_text")]
    pub catalog_kid: KeyId,
    /// What signs the first list of recipients that comes after this one; none in vaults that were made before there was any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<Signer>,
}

/// A signing key as it stands in an object: its public half, and its secret half wrapped to the recipients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signer {
    /// Tells what it signed.
    pub public: VerifyingKey,
    /// The seed of its secret half.
    pub wrapped_seed: String,
}

impl ControlObject for VaultObject {
    const FORMAT: &'static str = "tidegate-vault";
}

/// `recipients/<n>`: to whom every key is wrapped from now on, if it counts (see `recipients`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecipientsObject {
    /// Its number, from 1.
    pub n: u64,
    /// When it was made, by the clock of who made it.
    pub made_micros: Micros,
    /// The recipients.
    pub recipients: Vec<Recipient>,
    /// The catalog key's name: that of the list before, or the one that was staged there.
    #[serde(with = "kid_text")]
    pub catalog_kid: KeyId,
    /// The catalog key, wrapped to the recipients.
    pub wrapped_catalog_key: String,
    /// The list that made it the present one; none for the vault's first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub catalog_key_since: Option<u64>,
    /// The catalog key that is staged to take its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_catalog_key: Option<NextCatalogKey>,
    /// What signs the next list, and the lane keys that are wrapped anew to this one.
    pub signer: Signer,
}

/// A catalog key that gateways and keepers are to have before anything is written under it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextCatalogKey {
    /// Its name.
    #[serde(with = "kid_text")]
    pub kid: KeyId,
    /// The key, wrapped to the recipients.
    pub wrapped_key: String,
    /// The present key, sealed under it.
    pub sealed_older_key: SealedOlderKey,
}

impl ControlObject for Signed<RecipientsObject> {
    const FORMAT: &'static str = "tidegate-recipients";
    const VERSION: u32 = 2;

    fn version(&self) -> u32 {
        self.version
    }
}

impl SignedContent for RecipientsObject {
    /// Whoever does not know of other catalog keys than the first must stop here, and may read everything else.
    fn version(&self) -> u32 {
        if self.catalog_key_since.is_some() || self.next_catalog_key.is_some() { 2 } else { 1 }
    }
}

/// `rewraps/<lane>/<n>`: a lane key, wrapped to recipients who came after the lane was opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RewrapObject {
    /// The lane.
    pub lane: Id128,
    /// Its number, from 1.
    pub n: u64,
    /// The list of recipients that it is wrapped to, whose signing key signed this.
    pub list: u64,
    /// When it was made, by the clock of who made it.
    pub made_micros: Micros,
    /// The lane key.
    pub wrapped_key: String,
}

impl SignedContent for RewrapObject {}

impl ControlObject for Signed<RewrapObject> {
    const FORMAT: &'static str = "tidegate-rewrap";
}

/// `lanes/<lane>`: one gateway incarnation's series of batches, or one of a keeper with messages that it moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneObject {
    /// Its random id, never used again.
    pub lane: Id128,
    /// Who writes it.
    pub gateway: String,
    /// When it was opened, by the gateway's clock.
    pub created_micros: Micros,
    /// The catalog key under which its indexes are sealed.
    #[serde(with = "kid_text")]
    pub catalog_kid: KeyId,
    /// The lane key, wrapped to the vault's recipients.
    pub wrapped_key: String,
    /// The list of recipients that it was wrapped to; none for the vault's own, as in lanes from before there were others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list: Option<u64>,
    /// Whether it is a keeper's: it holds messages that were sealed in other lanes, and nothing was ever sealed with its key.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub moved: bool,
    /// Whether the lane's key alone opens nothing in it: each disk has a key of its own, in its route. A build that knows of no such keys
    /// takes the lane for one of a newer release, instead of its messages for damaged ones.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disk_keys: bool,
}

impl ControlObject for LaneObject {
    const FORMAT: &'static str = "tidegate-lane";
    const VERSION: u32 = 3;

    fn version(&self) -> u32 {
        match (self.disk_keys, self.moved) {
            (true, _) => 3,
            (false, true) => 2,
            (false, false) => 1,
        }
    }
}

/// `lanes/<lane>.end`: written by a clean shutdown, after its last batch was vaulted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneEndObject {
    /// The lane.
    pub lane: Id128,
    /// Its last batch; zero if it wrote none.
    pub last_batch: u64,
}

impl ControlObject for LaneEndObject {
    const FORMAT: &'static str = "tidegate-lane-end";
}

/// `lanes/<lane>.seal`: written before anything of the lane is deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneSealObject {
    /// The lane.
    pub lane: Id128,
    /// When it was sealed.
    pub sealed_micros: Micros,
    /// By whom and why, for people.
    pub reason: String,
}

impl ControlObject for LaneSealObject {
    const FORMAT: &'static str = "tidegate-lane-seal";
}

/// `d/<disk>/disk`: what a disk is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskObject {
    /// Its name.
    pub disk: DiskId,
    /// Its size when it was first protected.
    pub size_bytes: u64,
    /// The agent that first protected it.
    pub agent: String,
    /// When.
    pub created_micros: Micros,
}

impl ControlObject for DiskObject {
    const FORMAT: &'static str = "tidegate-disk";
}

/// `d/<disk>/e/<epoch>`: where an unbroken run of a disk's records begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochObject {
    /// The disk.
    pub disk: DiskId,
    /// Its number.
    pub epoch: Epoch,
    /// The epoch that it continues, none for the first.
    pub previous: Option<Epoch>,
    /// The last record of `previous` that still counts; zero if none does.
    pub fork_seq: Seq,
    /// The chain at that record: that of everything before this epoch.
    pub chain_at_fork: Chain,
    /// Size of the disk.
    pub size_bytes: u64,
    /// The agent for which it was opened.
    pub agent: String,
    /// The agent's random number for this opening: tells a repeated request from another agent's.
    pub nonce: Id128,
    /// Why it was opened, one word.
    pub reason: String,
    /// The gateway that wrote this object.
    pub gateway: String,
    /// When, by the gateway's clock.
    pub created_micros: Micros,
}

impl ControlObject for EpochObject {
    const FORMAT: &'static str = "tidegate-epoch";
}

impl EpochObject {
    /// The place where it leaves the epoch before.
    #[must_use]
    pub fn fork_point(&self) -> Option<PointId> {
        self.previous.map(|epoch| PointId { epoch, seq: self.fork_seq })
    }

    /// The chain before its first record.
    #[must_use]
    pub fn first_chain(&self) -> Chain {
        if self.previous.is_some() { self.chain_at_fork.fork(self.epoch) } else { Chain::GENESIS }
    }
}

/// `d/<disk>/c/<digest>`: a certificate with which an agent signed barriers of the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateObject {
    /// The disk.
    pub disk: DiskId,
    /// The agent that showed it.
    pub agent: String,
    /// The certificate and those that lead from it to its authority, each in DER and base64.
    pub chain: Vec<String>,
}

impl ControlObject for CertificateObject {
    const FORMAT: &'static str = "tidegate-certificate";
}

/// `d/<disk>/r/<lane>`: the lane holds records of the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteObject {
    /// The disk.
    pub disk: DiskId,
    /// The lane.
    pub lane: Id128,
    /// The disk's key in the lane. None in lanes that have no such keys, and where the disk was shredded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed_key: Option<SealedDiskKey>,
}

impl ControlObject for RouteObject {
    const FORMAT: &'static str = "tidegate-route";
    const VERSION: u32 = 2;

    fn version(&self) -> u32 {
        if self.sealed_key.is_some() { 2 } else { 1 }
    }
}

/// `d/<disk>/shred`: the disk's keys are destroyed, or are being destroyed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShredObject {
    /// The disk.
    pub disk: DiskId,
    /// When it was asked for, by the clock of who asked.
    pub made_micros: Micros,
    /// The lanes whose routes of the disk lose their keys.
    pub lanes: Vec<Id128>,
    /// Why, for people.
    pub reason: String,
}

impl ControlObject for ShredObject {
    const FORMAT: &'static str = "tidegate-shred";
}

/// Consecutive batches of a lane that the keeper let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u64, u64, i64)", into = "(u64, u64, i64)")]
pub struct LetGoRun {
    /// First batch.
    pub first: u64,
    /// Last batch.
    pub last: u64,
    /// When they were marked, by the store's clock, in microseconds since 1970; zero if they are deleted.
    pub marked_micros: i64,
}

impl From<(u64, u64, i64)> for LetGoRun {
    fn from((first, last, marked_micros): (u64, u64, i64)) -> Self {
        Self { first, last, marked_micros }
    }
}

impl From<LetGoRun> for (u64, u64, i64) {
    fn from(run: LetGoRun) -> Self {
        (run.first, run.last, run.marked_micros)
    }
}

/// `m/l/<lane>/<n>`: what the keeper let go of a lane. The highest number counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestObject {
    /// The lane.
    pub lane: Id128,
    /// Its number, from 1.
    pub n: u64,
    /// When it was made, by the store's clock, in microseconds since 1970.
    pub made_micros: i64,
    /// The run of a keeper that made it.
    pub run: Id128,
    /// Digest of the policies by which it was made; zero, as in version 1, is nobody's.
    #[serde(default)]
    pub policies: Id128,
    /// When the last of the batches that are gone appeared at the latest, by the store's clock; zero, as in version 1, if nobody
    /// knows.
    #[serde(default)]
    pub newest_micros: i64,
    /// Every batch that was let go, in ascending runs.
    pub let_go: Vec<LetGoRun>,
}

impl ControlObject for ManifestObject {
    const FORMAT: &'static str = "tidegate-manifest";
    const VERSION: u32 = 2;
}

impl ManifestObject {
    /// Whether it is what its name says, and its runs ascend without overlap.
    #[must_use]
    pub fn is_sound(&self, lane: Id128, n: u64) -> bool {
        let runs = &self.let_go;
        let ascend = runs.windows(2).all(|pair| pair[0].last < pair[1].first);
        self.lane == lane && self.n == n && ascend && runs.iter().all(|run| 0 < run.first && run.first <= run.last)
    }

    /// The run that holds a batch.
    #[must_use]
    pub fn run_of(&self, n: u64) -> Option<&LetGoRun> {
        let at = self.let_go.partition_point(|run| run.last < n);
        self.let_go.get(at).filter(|run| run.first <= n)
    }
}

/// `m/p/<id>`: a point that is in use, and stays until the pin ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinObject {
    /// Its random id.
    pub pin: Id128,
    /// The disk.
    pub disk: DiskId,
    /// Epoch of the point.
    pub epoch: Epoch,
    /// Seq of the point.
    pub seq: Seq,
    /// When it ends, by the clock of who made it.
    pub until_micros: Micros,
    /// What for, for people.
    pub reason: String,
}

impl ControlObject for PinObject {
    const FORMAT: &'static str = "tidegate-pin";
}

/// `m/c/<id>`: a run of a keeper, or a lane that such a run works on. Saves double work and tells the store's time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimObject {
    /// The lane, or the run itself.
    pub claim: Id128,
    /// The run.
    pub run: Id128,
}

impl ControlObject for ClaimObject {
    const FORMAT: &'static str = "tidegate-claim";
}

/// `m/f/<lane>/<n>`, `m/f/<lane>/whole`: how far a keeper has folded a lane. Saves work, and proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoldObject {
    /// The lane.
    pub lane: Id128,
    /// The last disk, by name, that is folded; none if all are.
    pub through: Option<DiskId>,
}

impl ControlObject for FoldObject {
    const FORMAT: &'static str = "tidegate-fold";
}

#[cfg(test)]
mod tests;
