//! Stage 4: the second durable home. One container or directory holds everything that a recovery needs.
//!
//! ```text
//!  vault                        what it is, to whom keys are wrapped          ┐
//!  recipients/<n> · rewraps/…   later recipients, and old lane keys for them  │
//!  keys/<kid>                   the catalog key, wrapped (age)                │ control objects:
//!  lanes/<lane>[.end|.seal]     one gateway incarnation and its wrapped key   │ JSON and a MAC,
//!  d/<disk>/disk · e/<n> · r/…  a disk, its epochs, lanes and keys in them    ┘ see `objects`
//!  b/<3 digits>/<lane>/<n>      batches: sealed messages and a sealed index     see `batch`
//!  x/<lane>/<k> · d/<disk>/f/…  lane indexes, and of one disk: folded indexes    see `index`
//!  m/l/<lane>/<n> · m/p · m/c …  the keeper's manifests, pins, claims, notes     see `keeper`
//! ```
//!
//! Purpose: [`Vault`] opens and makes it; [`lane::Lane`] is a gateway's right to write; [`uploader`] carries batches
//! there; [`reader`] finds them again; [`epochs`] decides which records count; [`recipients`] says to whom keys are wrapped,
//! `keyring` what counts under which catalog key, [`rotation`] puts another in its place.
//!
//! Invariants
//! - Every object is written once, by one PUT that fails if the name is taken, and never overwritten. Only the keeper deletes, and
//!   who shreds a disk.
//!   So a credential that can only create suffices for a gateway, and any two writers are safe beside each other.
//! - "Already exists" is never believed: `put` reads back and compares, or says that nothing is known.
//! - A batch is reported as vaulted only after every batch before it in the lane, and after the route objects of its
//!   disks, are there, and while no seal of the lane was seen and its catalog key stands.
//! - A lane's key is random, lives in memory only, and is never used by another incarnation. Numbers of batches in a
//!   lane are dense from 1.
//! - Nothing that was read is used before its MAC or seal was checked. What fails is reported by name; the rest goes on.
//!
//! What it does not own: keys and sealing (`keys`, `pipeline`), what is in a batch (`pipeline`), which records a
//! recovery takes (`restore`), retention.
//!
//! Shutdown: the uploader finishes what was submitted, writes the open lane index and the lane's end.
//! Crash: nothing is needed. Unconfirmed batches are in the journal, and the next incarnation sends them in a lane of
//! its own; a batch whose answer was lost is in the vault twice, with identical records.

pub mod batch;
pub mod certificates;
mod container;
mod credential;
pub mod epochs;
pub mod fault;
pub mod index;
mod keyring;
pub mod lane;
pub mod names;
pub mod objects;
pub mod put;
pub mod reader;
pub mod recipients;
pub mod rng;
pub mod rotation;
mod routes;
pub mod store;
mod store_clock;
#[cfg(test)]
pub(crate) mod testing;
pub mod upload_queue;
pub mod uploader;
pub mod url;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use object_store::PutPayload;
use object_store::path::Path;
use parking_lot::Mutex;

pub(crate) use self::keyring::Found;
use self::keyring::{Judged, in_time};
use self::objects::{DiskObject, EpochObject, LaneObject, ManifestObject, ObjectError, TooLate, VaultObject};
use self::put::{Created, PutError, create_only};
use self::recipients::Reader;
use self::rng::Rng;
use self::store::{GetError, Listed, VaultStore};
pub(crate) use self::store_clock::store_ahead;
use crate::fault::{Classify, Fault};
use crate::keys::{self, CatalogKey, Identity, KeyId, LaneKey, Recipient, UnwrapError};
use crate::limits;
use crate::types::{DiskId, Epoch, Id128, Micros};

/// Time for one PUT of a control object.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(30);
/// Least rate of the PUT of a larger object, in bytes per second.
const PUT_RATE_MIN: u64 = 128 << 10;
/// Tries of a control object's PUT before its error is handed on.
const CONTROL_TRIES: u32 = 6;

/// Why an operation on the vault failed.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// A read failed.
    #[error(transparent)]
    Get(#[from] GetError),
    /// A write failed.
    #[error(transparent)]
    Put(#[from] PutError),
    /// A control object is not believed.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// No random bytes.
    #[error(transparent)]
    Random(#[from] keys::RandomError),
    /// A key could not be wrapped.
    #[error(transparent)]
    Wrap(#[from] keys::WrapError),
    /// A wrapped key could not be opened.
    #[error("{object} does not open")]
    Unwrap {
        /// Where the wrapped key stands.
        object: String,
        /// Why.
        #[source]
        source: UnwrapError,
    },
    /// There is no vault at the place.
    #[error("there is no vault at {place}: check the URL, or create it with `tidegate vault init`")]
    NoVault {
        /// The place.
        place: String,
    },
    /// `init` found a vault.
    #[error("{place} already holds the vault {id}: `tidegate vault init` never touches an existing vault")]
    Exists {
        /// The place.
        place: String,
        /// Its id.
        id: Id128,
    },
    /// `init` found something else.
    #[error("{place} is not empty (it holds {found}): give an empty directory, container or prefix")]
    NotEmpty {
        /// The place.
        place: String,
        /// One object that stands there.
        found: String,
    },
    /// `init` was given nobody to recover.
    #[error(
        "a vault needs at least one recovery recipient (--recipient age1…): without one nobody could restore from it"
    )]
    NoRecipient,
    /// A list of recipients that nobody could keep.
    #[error("{given} recipients are too many: a vault has at most {most}", most = limits::RECIPIENTS_MAX)]
    TooManyRecipients {
        /// Recipients given.
        given: usize,
    },
    /// The vault is from before recipients could change.
    #[error(
        "the vault at {place} was made by a release whose vaults keep their recipients for ever: make a new vault, let the \
         gateways write there, and keep this one for as long as its history is needed"
    )]
    RecipientsFixed {
        /// The place.
        place: String,
    },
    /// Nobody at hand could open what would be written.
    #[error(
        "the identity given, of {given}, would be off the list: give that of somebody who stays, so that it is proven to open what \
         is written from then on"
    )]
    Unproven {
        /// The recipient of the identity.
        given: String,
    },
    /// Two changed the recipients at the same moment.
    #[error(
        "somebody else changed the recipients at this moment (list {n}): look with `tidegate vault recipients list`, then \
         decide anew"
    )]
    ListTaken {
        /// The number of the list.
        n: u64,
    },
    /// Only somebody who floods the vault makes so many.
    #[error(
        "{place} holds {most} objects under the names of lists of recipients, and takes no more: gateways go on with the present list",
        most = limits::RECIPIENT_LISTS_MAX
    )]
    TooManyLists {
        /// The place.
        place: String,
    },
    /// A key was written, and what stands there does not open.
    #[error(
        "{object} in {place} does not read back as it was written: nothing relies on it, and what stood before is as it was"
    )]
    NotAsWritten {
        /// The object.
        object: String,
        /// The place.
        place: String,
    },
    /// A lane is older than a recipient, and nobody wrapped its key anew.
    #[error(
        "{object} is wrapped to {}, not to {given}: one of them lets it in by `tidegate vault recipients add`, or by \
         `tidegate vault rewrap` if it is a recipient already",
        .wrapped_to.join(", ")
    )]
    NotRewrapped {
        /// The lane.
        object: String,
        /// Who can open it.
        wrapped_to: Vec<String>,
        /// Who cannot.
        given: String,
    },
    /// Neither a gateway nor anybody else wrapped a lane's key in a form that is believed.
    #[error("{object} has no wrapped key that is believed")]
    NoWrap {
        /// The lane.
        object: String,
    },
    /// The catalog key is another vault's.
    #[error("the catalog key {given} does not belong to the vault at {place}: its key is {wanted}")]
    OtherCatalogKey {
        /// Key given.
        given: KeyId,
        /// Key of the vault.
        wanted: KeyId,
        /// The place.
        place: String,
    },
    /// The catalog key is not the present one any more.
    #[error(
        "catalog key {given} of the vault at {place} was replaced by {by} (list {list} of the recipients, {made}): write the new key's file \
         with `tidegate vault catalog-key --identity FILE --out FILE`, put it in the place of the old one and restart; a journal keeps what it \
         has until then"
    )]
    CatalogKeyReplaced {
        /// Key given.
        given: KeyId,
        /// The key that took its place, when this list was made.
        by: KeyId,
        /// The list of recipients that said so.
        list: u64,
        /// When it was made.
        made: Micros,
        /// The place.
        place: String,
    },
    /// No catalog key is staged that could become the present one.
    #[error("no catalog key is staged in {place}: `tidegate vault rotate stage --out FILE` comes first")]
    NothingStaged {
        /// The place.
        place: String,
    },
    /// Something needs the catalog key, and none was given.
    #[error("the catalog key is needed: give --catalog-key FILE or --identity FILE")]
    KeyNeeded,
    /// An object that must be there is not.
    #[error("{object} is missing from {place}")]
    Missing {
        /// The object.
        object: String,
        /// The place.
        place: String,
    },
    /// Another object stands under the name.
    #[error("{object} exists in {place} with other content")]
    Taken {
        /// The object.
        object: String,
        /// The place.
        place: String,
        /// What stands there.
        found: Bytes,
    },
}

impl VaultError {
    /// Whether a change of recipients that ended so has written nothing: another list that counts was told of, or the call was refused.
    #[must_use]
    pub fn is_unwritten(&self) -> bool {
        matches!(
            self,
            Self::NoRecipient
                | Self::TooManyRecipients { .. }
                | Self::RecipientsFixed { .. }
                | Self::Unproven { .. }
                | Self::ListTaken { .. }
                | Self::TooManyLists { .. }
                | Self::NothingStaged { .. }
                | Self::Unwrap { .. }
        )
    }

    /// Whether an object was made with an older catalog key, after its time: it counts for nobody.
    #[must_use]
    pub fn is_too_late(&self) -> bool {
        matches!(self, Self::Object(ObjectError::TooLate(_)))
    }
}

impl Classify for VaultError {
    fn fault(&self) -> Fault {
        match self {
            Self::Get(error) => error.fault(),
            Self::Put(error) => error.fault(),
            Self::Object(error) => error.fault(),
            Self::Random(error) => error.fault(),
            Self::Wrap(error) => error.fault(),
            Self::Unwrap { source, .. } => source.fault(),
            Self::Missing { .. } | Self::NotAsWritten { .. } | Self::NoWrap { .. } => Fault::Corrupt,
            Self::NoVault { .. }
            | Self::Exists { .. }
            | Self::NotEmpty { .. }
            | Self::NoRecipient
            | Self::TooManyRecipients { .. }
            | Self::RecipientsFixed { .. }
            | Self::Unproven { .. }
            | Self::ListTaken { .. }
            | Self::TooManyLists { .. }
            | Self::NotRewrapped { .. }
            | Self::OtherCatalogKey { .. }
            | Self::CatalogKeyReplaced { .. }
            | Self::NothingStaged { .. }
            | Self::KeyNeeded
            | Self::Taken { .. } => Fault::Reject,
        }
    }
}

/// What `init` needs to know.
#[derive(Debug, Clone)]
pub struct InitOptions {
    /// To whom every key of the vault is wrapped; at least one.
    pub recipients: Vec<Recipient>,
    /// The time that is noted.
    pub now: Micros,
}

/// An open vault. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Vault {
    store: VaultStore,
    head: VaultObject,
    key: Option<CatalogKey>,
    /// For whom lane keys are looked up.
    reader: Option<Arc<Reader>>,
    /// The lists of recipients, as far as they were judged, and what follows for the catalog keys.
    judged: Arc<Mutex<Judged>>,
}

impl Vault {
    /// Makes a new vault in an empty place, and the catalog key for it.
    ///
    /// # Errors
    /// [`VaultError::NoRecipient`], [`VaultError::Exists`], [`VaultError::NotEmpty`], or a failed request.
    pub async fn init(store: VaultStore, options: &InitOptions) -> Result<(Self, CatalogKey), VaultError> {
        if options.recipients.is_empty() {
            return Err(VaultError::NoRecipient);
        }
        let place = || store.shown().to_owned();
        if let Some(bytes) = store.get(&names::vault(), limits::CONTROL_OBJECT_BYTES_MAX).await? {
            let head: VaultObject = objects::decode_unchecked(&names::vault(), &bytes)?;
            return Err(VaultError::Exists { place: place(), id: head.id });
        }
        if let Some(found) = store.any(None).await? {
            return Err(VaultError::NotEmpty { place: place(), found: found.to_string() });
        }
        let key = CatalogKey::generate()?;
        let head = VaultObject {
            id: Id128(keys::random()?),
            created_micros: options.now,
            recipients: options.recipients.clone(),
            catalog_kid: key.kid(),
            signer: Some(recipients::new_signer(&options.recipients)?),
        };
        let wrapped = keys::wrap(&head.recipients, key.expose())?;
        let vault = Self::with(store, head, Some(key.clone()));
        vault.has_no_lists_yet();
        // The key first: a vault object without its key would be a vault that no identity opens.
        vault.put_bytes(&names::key(&key.kid().to_string()), wrapped.into()).await?;
        vault.put_object(&names::vault(), &vault.head).await?;
        Ok((vault, key))
    }

    async fn read_head(store: &VaultStore) -> Result<(VaultObject, Bytes), VaultError> {
        let bytes = store.get(&names::vault(), limits::CONTROL_OBJECT_BYTES_MAX).await?;
        let bytes = bytes.ok_or_else(|| VaultError::NoVault { place: store.shown().to_owned() })?;
        Ok((objects::decode_unchecked(&names::vault(), &bytes)?, bytes))
    }

    fn with(store: VaultStore, head: VaultObject, key: Option<CatalogKey>) -> Self {
        let judged = Arc::new(Mutex::new(Judged::of(&head, key.as_ref())));
        Self { store, head, key, reader: None, judged }
    }

    /// The vault for a reader with this identity: keys of lanes that are older than its place among the recipients are found where
    /// they were wrapped anew.
    #[must_use]
    pub fn read_as(self, identity: &Identity) -> Self {
        Self { reader: Some(Arc::new(Reader::new(identity))), ..self }
    }

    /// Opens a vault without any key: enough to list it. Nothing that it says is authenticated.
    ///
    /// # Errors
    /// [`VaultError::NoVault`], a malformed or newer `vault` object, a failed request.
    pub async fn open_without_key(store: VaultStore) -> Result<Self, VaultError> {
        let (head, _) = Self::read_head(&store).await?;
        Ok(Self::with(store, head, None))
    }

    /// The vault's id.
    #[must_use]
    pub fn id(&self) -> Id128 {
        self.head.id
    }

    /// The vault's own description.
    #[must_use]
    pub fn head(&self) -> &VaultObject {
        &self.head
    }

    /// To whom every key was wrapped when the vault was made. [`Vault::lists`] tells to whom now.
    #[must_use]
    pub fn first_recipients(&self) -> &[Recipient] {
        &self.head.recipients
    }

    /// The store below.
    #[must_use]
    pub fn store(&self) -> &VaultStore {
        &self.store
    }

    /// Writes an object of any size if its name is free, with some tries. Writing the same twice is a success.
    ///
    /// # Errors
    /// As [`Vault::put_object`].
    pub(crate) async fn put_bytes(&self, path: &Path, bytes: Bytes) -> Result<Created, VaultError> {
        let mut rng = Rng::from_entropy();
        let limit = CONTROL_TIMEOUT + Duration::from_secs(bytes.len() as u64 / PUT_RATE_MIN);
        for attempt in 1.. {
            match create_only(&self.store, path, PutPayload::from(bytes.clone()), limit).await {
                Ok(created) => return Ok(created),
                Err(PutError::Taken { object, place, .. }) => {
                    let found = match self.store.get(path, limits::CONTROL_OBJECT_BYTES_MAX).await {
                        // Not worth carrying about: it is no control object.
                        Err(GetError::TooLarge { .. }) => None,
                        found => found?,
                    };
                    return Err(VaultError::Taken { object, place, found: found.unwrap_or_default() });
                }
                Err(error) if attempt < CONTROL_TRIES && passing(&error) => {
                    let pause_ms = (100 << attempt) / 2 + rng.below((100 << attempt) / 2);
                    tracing::debug!(%error, attempt, pause_ms, "write of a control object is tried again");
                    tokio::time::sleep(Duration::from_millis(pause_ms)).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        unreachable!("the last try returns its result")
    }

    /// Describes a disk, once; a description that is there already stands.
    ///
    /// # Errors
    /// A failed request.
    pub async fn create_disk(&self, disk: &DiskObject) -> Result<(), VaultError> {
        match self.put_object(&names::disk(&disk.disk), disk).await {
            Ok(_) | Err(VaultError::Taken { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// A disk's description; `None` if the vault does not know the disk.
    ///
    /// # Errors
    /// [`VaultError`].
    pub async fn disk(&self, disk: &DiskId) -> Result<Option<DiskObject>, VaultError> {
        self.get_object(&names::disk(disk)).await
    }

    /// The names of all disks, sorted. Needs no key.
    ///
    /// # Errors
    /// A failed request.
    pub async fn disks(&self) -> Result<Vec<DiskId>, VaultError> {
        let folders = self.store.folders(&names::disks()).await?;
        Ok(folders.iter().filter_map(|name| DiskId::new(name).ok()).collect())
    }

    /// The epochs of a disk, oldest first.
    ///
    /// # Errors
    /// A failed request, or the first epoch object that is not believed: without all of them no lineage is certain. One that is too late
    /// for its catalog key is none.
    pub async fn epochs(&self, disk: &DiskId) -> Result<Vec<EpochObject>, VaultError> {
        let listed = self.store.list(Some(&names::epochs(disk))).await?;
        let reads = listed.into_iter().map(|one| async move { in_time(self.require_object(&one.path).await) });
        let epochs: Vec<Option<EpochObject>> =
            stream::iter(reads).buffered(epochs::READS_AT_ONCE).try_collect().await?;
        let mut epochs: Vec<EpochObject> = epochs.into_iter().flatten().collect();
        epochs.sort_unstable_by_key(|epoch| epoch.epoch);
        Ok(epochs)
    }

    /// The newest epoch of a disk: a listing of names, and one read.
    ///
    /// # Errors
    /// A failed request, or an epoch object that is not believed.
    pub async fn newest_epoch(&self, disk: &DiskId) -> Result<Option<EpochObject>, VaultError> {
        let mut listed = self.store.list(Some(&names::epochs(disk))).await?;
        // Names are of one width up to the eighth digit only.
        listed.sort_by_key(|listed| std::cmp::Reverse(names::number(&listed.path)));
        for Listed { path, .. } in listed {
            if let Some(newest) = in_time(self.require_object(&path).await)? {
                return Ok(Some(newest));
            }
        }
        Ok(None)
    }

    /// Whether an epoch of a disk exists.
    ///
    /// # Errors
    /// A failed request.
    pub async fn epoch_exists(&self, disk: &DiskId, epoch: Epoch) -> Result<bool, VaultError> {
        Ok(self.store.exists(&names::epoch(disk, epoch)).await?)
    }

    /// Creates an epoch. Exactly one caller in the world succeeds; a repeated call with the same content does too.
    ///
    /// # Errors
    /// [`epochs::CreateEpochError::Exists`] with the epoch that stands there, [`epochs::CreateEpochError::Spent`] if that counts for nobody; a
    /// failed request.
    pub async fn create_epoch(&self, epoch: &EpochObject) -> Result<Created, epochs::CreateEpochError> {
        epochs::create(self, epoch).await
    }

    /// Tells other gateways that an epoch of a disk is about to begin. Repeating it is harmless.
    ///
    /// # Errors
    /// A failed request.
    pub async fn announce_epoch(&self, disk: &DiskId, epoch: Epoch, now: Micros) -> Result<(), VaultError> {
        let name = names::announcement(names::hour(now), disk, epoch);
        match self.put_bytes(&name, Bytes::new()).await {
            // Whatever somebody else has put there, the name says all.
            Ok(_) | Err(VaultError::Taken { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The epochs that were announced in an hour: one listing. A hint, which proves nothing. Needs no key.
    ///
    /// # Errors
    /// A failed request.
    pub async fn announced_epochs(&self, hour: u64) -> Result<Vec<(DiskId, Epoch)>, VaultError> {
        let listed = self.store.list(Some(&names::announcements(hour))).await?;
        Ok(listed.iter().filter_map(|listed| names::announced(&listed.path)).collect())
    }

    /// All lanes by listing, with whether each has an end and a seal. Needs no key.
    ///
    /// # Errors
    /// A failed request.
    pub async fn lanes(&self) -> Result<Vec<lane::ListedLane>, VaultError> {
        let listed = self.store.list(Some(&names::lanes())).await?;
        Ok(lane::group(&listed))
    }

    /// A lane's registration; with the key as it was wrapped anew, where this vault's reader needs that (see [`Vault::read_as`]).
    ///
    /// # Errors
    /// [`VaultError::Missing`] and others.
    pub async fn lane(&self, lane: Id128) -> Result<LaneObject, VaultError> {
        let mut object = self.require_object(&names::lane(lane)).await?;
        self.take_rewrap(&mut object).await?;
        Ok(object)
    }

    /// The newest manifest of a lane: what the keeper let go of it.
    ///
    /// # Errors
    /// A failed request, or a manifest that is not believed.
    pub async fn manifest(&self, lane: Id128) -> Result<Option<ManifestObject>, VaultError> {
        self.manifest_of_numbers(lane, None, &mut Vec::new()).await
    }

    /// The same, if a listing has shown its number `newest`, or else by a listing. One that was listed and is not there is an error: without it
    /// nobody knows what was let go. One that is too late for its catalog key is told in `late`, and the one before it counts.
    pub(crate) async fn manifest_of_numbers(
        &self,
        lane: Id128,
        newest: Option<u64>,
        late: &mut Vec<TooLate>,
    ) -> Result<Option<ManifestObject>, VaultError> {
        let mut numbers: Vec<u64> = newest.into_iter().collect();
        let mut is_listed = false;
        loop {
            while let Some(n) = numbers.pop() {
                let object = names::manifest(lane, n).to_string();
                match self.manifest_of(lane, n).await {
                    Ok(Some(manifest)) => return Ok(Some(manifest)),
                    Ok(None) => return Err(VaultError::Missing { object, place: self.store.shown().to_owned() }),
                    Err(VaultError::Object(ObjectError::TooLate(one))) => late.push(one),
                    Err(error) => return Err(error),
                }
            }
            if std::mem::replace(&mut is_listed, true) {
                return Ok(None);
            }
            let listed = self.store.list(Some(&names::manifests(lane))).await?;
            numbers.extend(listed.iter().filter_map(|one| names::manifest_number(lane, &one.path)));
            numbers.retain(|n| late.iter().all(|late| late.object != names::manifest(lane, *n).as_ref()));
            numbers.sort_unstable();
        }
    }

    /// Manifest `n` of a lane; `None` if it is not there.
    ///
    /// # Errors
    /// As [`Vault::manifest`].
    pub async fn manifest_of(&self, lane: Id128, n: u64) -> Result<Option<ManifestObject>, VaultError> {
        let path = names::manifest(lane, n);
        match self.get_object::<ManifestObject>(&path).await? {
            Some(manifest) if !manifest.is_sound(lane, n) => {
                let what = "it describes another lane, or its runs are out of order".to_owned();
                Err(ObjectError::Malformed { object: path.to_string(), what }.into())
            }
            found => Ok(found),
        }
    }

    /// Opens a lane's key with a recovery identity.
    ///
    /// # Errors
    /// [`VaultError::NotRewrapped`] if it is wrapped to others only, [`VaultError::Unwrap`] if the wrapped key is damaged.
    pub fn open_lane_key(&self, lane: &LaneObject, identity: &Identity) -> Result<LaneKey, VaultError> {
        let object = || names::lane(lane.lane).to_string();
        match keys::unwrap(identity, &lane.wrapped_key) {
            Ok(secret) => Ok(LaneKey::from_secret(*secret)),
            Err(UnwrapError::OtherRecipient { wrapped_to, given }) => {
                Err(VaultError::NotRewrapped { object: object(), wrapped_to, given })
            }
            Err(source) => Err(VaultError::Unwrap { object: object(), source }),
        }
    }
}

fn passing(error: &PutError) -> bool {
    match error {
        PutError::Blob(error) => error.is_passing(),
        PutError::NotStored { .. } => true,
        PutError::Taken { .. } => false,
    }
}

#[cfg(test)]
mod tests;
