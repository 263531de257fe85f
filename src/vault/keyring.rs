//! The catalog keys of a vault that a process has: which of them writes, and what still counts under the others.
//!
//! ```text
//!             list 0 ─────── list 3 ─────────── list 4 ──────── one hour ──────► time, by the store's clock
//!  key A      present        present            replaced        what appears from here on counts no more
//!  key B      -              staged             present         present
//!                            └ holds A, sealed under B: who has B has A
//! ```
//!
//! Purpose: from the one key that a process was given, and the lists of recipients, to all older ones; to open by any of them; to
//! say under which one is written.
//!
//! Invariants
//! - Everything that a catalog key authenticates or seals is opened here, with the time at which it appeared. What an older key
//!   made counts only if it appeared no later than an hour (`limits::CATALOG_KEY_GRACE_SECONDS`) after the list that replaced that key:
//!   else a key that leaked forges for ever.
//! - Nothing is written under a key by a look at the lists older than ten minutes, and nothing that was written is relied on by one
//!   older than half an hour: whoever writes under a key that is replaced meanwhile is done, or knows of it, while it counts.
//! - Where the store's time of such a list is not the time at which it was made, the vault was copied, and times say nothing: then the next
//!   list that replaces a key ends the time of all older ones.
//! - A look is as old as its beginning, by a clock that runs on while the machine sleeps, or by the wall's if that says more: a machine
//!   that its hypervisor held does not know of it, until its wall clock is set right.
//! - What is too late is told by name, and else as if it were not there.
//!
//! What it does not own: the lists (`recipients`), who makes a key the present one (`rotation`), the sealing (`index`, `objects`).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use object_store::path::Path;

use super::batch::{self, BatchError, BatchTrailer};
use super::index::{BatchIndex, IndexError, IndexPlace, SealedIndex};
use super::objects::{self, ControlObject, ObjectError, TooLate, VaultObject};
use super::put::Created;
use super::recipients::{self, Lists, Replaced};
use super::store::VaultStore;
use super::{Vault, VaultError, names};
use crate::flow::{Clock, SystemClock};
use crate::keys::seal::UnsealError;
use crate::keys::{self, CatalogKey, Identity, KeyId};
use crate::limits;
use crate::mutants::{self, Mutant};
use crate::types::{Id128, Micros};

/// Oldest look by which something is written.
const LOOK_AGE_MAX: Duration = Duration::from_secs(limits::LISTS_AGE_SECONDS_MAX);
/// Oldest look by which what was written is relied on.
pub(super) const LOOK_AGE_ACK_MAX: Duration = Duration::from_secs(limits::LISTS_AGE_SECONDS_ACK_MAX);

/// When a look at the lists began, by two clocks.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Began {
    boot: Duration,
    wall: Micros,
}

impl Began {
    fn now(clock: &dyn Clock) -> Self {
        Self { boot: clock.boot(), wall: clock.wall() }
    }

    /// The longer of two ages.
    fn age(self, clock: &dyn Clock) -> Duration {
        let by_wall = Duration::from_micros(clock.wall().0.saturating_sub(self.wall.0));
        clock.boot().saturating_sub(self.boot).max(by_wall)
    }
}

/// Tells an attempt with another key from damage.
trait WrongKey {
    fn is_wrong_key(&self) -> bool;
}

impl WrongKey for ObjectError {
    fn is_wrong_key(&self) -> bool {
        matches!(self, Self::Mac { .. })
    }
}

impl WrongKey for IndexError {
    fn is_wrong_key(&self) -> bool {
        matches!(self, Self::Unseal { source: UnsealError::Commitment, .. })
    }
}

impl WrongKey for BatchError {
    fn is_wrong_key(&self) -> bool {
        matches!(self, Self::Index(error) if error.is_wrong_key())
    }
}

/// A key at hand.
#[derive(Debug)]
struct RingKey {
    key: CatalogKey,
    /// When another one took its place.
    replaced: Option<Replaced>,
}

/// The keys at hand, the newest first.
#[derive(Debug)]
pub(super) struct Keys(Vec<RingKey>);

impl Keys {
    /// The key that was given, and those before it.
    fn of(given: &CatalogKey, vault: Id128, lists: &Lists) -> Self {
        let mut known = vec![given.clone()];
        for link in lists.links().iter().rev() {
            let newer = known.iter().find(|key| key.kid() == link.newer).cloned();
            let Some(newer) = newer.filter(|_| known.iter().all(|key| key.kid() != link.older)) else { continue };
            match link.sealed.open(vault, link.older, &newer) {
                Ok(older) => known.push(older),
                // Whoever signed the list saw it open.
                Err(error) => {
                    tracing::error!(%error, older = %link.older, newer = %link.newer, "an older catalog key does not open")
                }
            }
        }
        let ring = |key: CatalogKey| RingKey { replaced: lists.replaced(key.kid()), key };
        Self(known.into_iter().map(ring).collect())
    }

    fn get(&self, kid: KeyId) -> Option<&CatalogKey> {
        self.0.iter().map(|one| &one.key).find(|key| key.kid() == kid)
    }

    /// Opens with the first key that fits. Where none does, the error is that of the newest.
    fn open<T, E: WrongKey>(&self, open: impl Fn(&CatalogKey) -> Result<T, E>) -> Option<Result<Opened<T>, E>> {
        let mut failure = None;
        for one in &self.0 {
            match open(&one.key) {
                Ok(content) => return Some(Ok(Opened { content, kid: one.key.kid(), replaced: one.replaced })),
                Err(error) if error.is_wrong_key() => {
                    failure.get_or_insert(error);
                }
                Err(error) => return Some(Err(error)),
            }
        }
        failure.map(Err)
    }
}

/// What a key opened; whether it counts may be a question of time.
#[derive(Debug)]
pub(crate) struct Opened<T> {
    content: T,
    kid: KeyId,
    replaced: Option<Replaced>,
}

impl<T> Opened<T> {
    /// The content, unless it appeared too late for its key.
    ///
    /// # Errors
    /// [`TooLate`].
    pub(crate) fn counts(self, found: Found<'_>) -> Result<T, TooLate> {
        let until_micros = self.replaced.and_then(|replaced| Some((replaced.list, replaced.until_micros?)));
        match until_micros {
            Some((list, until_micros))
                if found.appeared_micros > until_micros && !mutants::on(Mutant::OldKeyForever) =>
            {
                Err(TooLate { object: found.object.to_owned(), kid: self.kid, list })
            }
            _ => Ok(self.content),
        }
    }
}

/// Where something was found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found<'a> {
    /// The object in which it stands.
    pub(crate) object: &'a str,
    /// When that appeared, by the store's clock, in microseconds since 1970.
    pub(crate) appeared_micros: i64,
}

/// The lists of recipients as far as a process has judged them, and what follows for its keys.
pub(super) struct Judged {
    lists: Lists,
    keys: Option<Arc<Keys>>,
    clock: Arc<dyn Clock>,
    /// When a look began that found each key to be the present one: the last such look.
    present_at: BTreeMap<KeyId, Began>,
}

impl fmt::Debug for Judged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Judged").field("lists", &self.lists).field("keys", &self.keys).finish_non_exhaustive()
    }
}

impl Judged {
    /// Before anything was read but the vault's own description.
    pub(super) fn of(head: &VaultObject, given: Option<&CatalogKey>) -> Self {
        let lists = Lists::of(head);
        let keys = given.map(|given| Arc::new(Keys::of(given, head.id, &lists)));
        Self { lists, keys, clock: Arc::new(SystemClock::new()), present_at: BTreeMap::new() }
    }

    /// The lists, and when a look that goes on from them begins.
    pub(super) fn begin(&self) -> (Lists, Began) {
        (self.lists.clone(), Began::now(&*self.clock))
    }

    /// Takes over what a look found that began at `began`. What was judged once stays judged.
    pub(super) fn take(&mut self, vault: &Vault, lists: &Lists, began: Began) {
        if self.lists.is_behind(lists) {
            self.lists.clone_from(lists);
            self.hold(vault);
        }
        // Of two looks that were under way at once the one that began later counts.
        let at = self.present_at.entry(lists.present().catalog_kid).or_insert(began);
        if at.boot < began.boot {
            *at = began;
        }
    }

    /// Finds the keys at hand anew.
    fn hold(&mut self, vault: &Vault) {
        let given = vault.catalog_key();
        self.keys = given.map(|given| Arc::new(Keys::of(given, vault.id(), &self.lists)));
    }

    /// How old the last look is by which a key was the present one; of any key, if none is named.
    fn look_age(&self, kid: Option<KeyId>) -> Option<Duration> {
        let looks = self.present_at.iter().filter(|(of, _)| kid.is_none_or(|kid| **of == kid));
        looks.map(|(_, at)| at.age(&*self.clock)).min()
    }

    /// The present key, as far as is known.
    fn present_key(&self, vault: &Vault) -> Result<CatalogKey, VaultError> {
        let (keys, given) = (self.keys.as_ref().ok_or(VaultError::KeyNeeded)?, vault.need_key()?.kid());
        let (wanted, place) = (self.lists.present().catalog_kid, vault.store().shown().to_owned());
        match (keys.get(wanted), self.lists.replaced(given)) {
            (Some(key), _) => Ok(key.clone()),
            (None, Some(Replaced { by, list, made, .. })) => {
                Err(VaultError::CatalogKeyReplaced { given, by, list, made, place })
            }
            (None, None) => Err(VaultError::OtherCatalogKey { given, wanted, place }),
        }
    }
}

impl Vault {
    /// Opens a vault with its catalog key: the present one, or the one that is staged to take its place.
    ///
    /// # Errors
    /// [`VaultError::NoVault`], [`VaultError::OtherCatalogKey`], [`VaultError::CatalogKeyReplaced`], a damaged or newer `vault` object, a
    /// failed request.
    pub async fn open(store: VaultStore, key: CatalogKey) -> Result<Self, VaultError> {
        let (head, bytes) = Self::read_head(&store).await?;
        let vault = Self::with(store, head, Some(key));
        vault.lists().await?;
        vault.authenticated(&bytes)
    }

    /// Opens a vault with a recovery identity alone: the catalog key is in the vault, wrapped to it, and so is what was wrapped for it
    /// later (see [`Vault::read_as`]).
    ///
    /// # Errors
    /// As [`Vault::open`]; [`VaultError::Unwrap`] if the identity is not one of the vault's.
    pub async fn open_with_identity(store: VaultStore, identity: &Identity) -> Result<Self, VaultError> {
        let (head, bytes) = Self::read_head(&store).await?;
        let vault = Self::with(store, head, None);
        let lists = vault.lists().await?;
        let key = match recipients::catalog_key_of(&lists, identity) {
            Ok(key) => key,
            // Who was among the first has the first key.
            Err(of_lists) => match vault.first_key(identity).await {
                Ok(key) => key,
                Err(error) => return Err(if lists.present().n == 0 { error } else { of_lists }),
            },
        };
        let vault = Self { key: Some(key), ..vault };
        vault.judged.lock().hold(&vault);
        Ok(vault.authenticated(&bytes)?.read_as(identity))
    }

    /// The vault's first catalog key, as it was wrapped when the vault was made.
    async fn first_key(&self, identity: &Identity) -> Result<CatalogKey, VaultError> {
        let path = names::key(&self.head.catalog_kid.to_string());
        let missing = || VaultError::Missing { object: path.to_string(), place: self.store.shown().to_owned() };
        let bytes = self.store.get(&path, limits::CONTROL_OBJECT_BYTES_MAX).await?.ok_or_else(missing)?;
        match keys::unwrap(identity, &String::from_utf8_lossy(&bytes)) {
            Ok(secret) => Ok(CatalogKey::from_secret(*secret)),
            Err(source) => Err(VaultError::Unwrap { object: path.to_string(), source }),
        }
    }

    /// The vault, if the key that was given is of use, and the vault's own description authenticates under its first key.
    fn authenticated(mut self, bytes: &[u8]) -> Result<Self, VaultError> {
        let keys = {
            let judged = self.judged.lock();
            judged.present_key(&self)?;
            judged.keys.clone().ok_or(VaultError::KeyNeeded)?
        };
        let (object, place) = (names::recipients().to_string(), self.store.shown().to_owned());
        let first = keys.get(self.head.catalog_kid).ok_or(VaultError::NotAsWritten { object, place })?;
        self.head = objects::decode(first, &names::vault(), bytes)?;
        Ok(self)
    }

    /// The catalog key that the vault was opened with, if it was with one. What it opens, and which key writes: see `keyring`.
    #[must_use]
    pub fn catalog_key(&self) -> Option<&CatalogKey> {
        self.key.as_ref()
    }

    /// The catalog key, or the error that says how to give one.
    ///
    /// # Errors
    /// [`VaultError::KeyNeeded`].
    pub fn need_key(&self) -> Result<&CatalogKey, VaultError> {
        self.key.as_ref().ok_or(VaultError::KeyNeeded)
    }

    /// Reads and authenticates a control object; `None` if it is not there.
    ///
    /// # Errors
    /// [`VaultError`].
    pub async fn get_object<T: ControlObject>(&self, path: &Path) -> Result<Option<T>, VaultError> {
        self.need_key()?;
        match self.store.get_timed(path, limits::CONTROL_OBJECT_BYTES_MAX).await? {
            Some((bytes, appeared_micros)) => self.decode(path, &bytes, appeared_micros).await.map(Some),
            None => Ok(None),
        }
    }

    pub(super) async fn require_object<T: ControlObject>(&self, path: &Path) -> Result<T, VaultError> {
        let missing = || VaultError::Missing { object: path.to_string(), place: self.store.shown().to_owned() };
        self.get_object(path).await?.ok_or_else(missing)
    }

    /// The vault is being made here, so there is nothing to look at.
    pub(super) fn has_no_lists_yet(&self) {
        let mut judged = self.judged.lock();
        let (lists, began) = judged.begin();
        judged.take(self, &lists, began);
    }

    /// Measures by another clock how old a look at the lists is.
    pub fn set_clock(&self, clock: Arc<dyn Clock>) {
        let mut judged = self.judged.lock();
        judged.clock = clock;
        // Times of two clocks are not to be compared.
        judged.present_at.clear();
    }

    /// Looks at the lists if the last look is too old for anything to be written or judged by it.
    pub(crate) async fn look_again(&self) -> Result<(), VaultError> {
        let age = self.judged.lock().look_age(None);
        if age.is_none_or(|age| age > LOOK_AGE_MAX) {
            self.lists().await?;
        }
        Ok(())
    }

    /// The key under which everything is written now.
    ///
    /// # Errors
    /// [`VaultError::CatalogKeyReplaced`] if it is not at hand; a failed request.
    pub(crate) async fn key_to_write(&self) -> Result<CatalogKey, VaultError> {
        self.need_key()?;
        self.look_again().await?;
        self.judged.lock().present_key(self)
    }

    /// A key by its name, if it is at hand.
    ///
    /// # Errors
    /// Why it is not.
    pub(super) fn key_named(&self, kid: KeyId) -> Result<CatalogKey, VaultError> {
        let judged = self.judged.lock();
        let key = judged.keys.as_ref().and_then(|keys| keys.get(kid)).cloned();
        key.ok_or_else(|| judged.present_key(self).err().unwrap_or(VaultError::KeyNeeded))
    }

    /// Whether what was written under a key until now counts: a look that is young enough, made now if there is none, found it to be the
    /// present key.
    ///
    /// # Errors
    /// A failed request.
    pub(crate) async fn is_present(&self, kid: KeyId) -> Result<bool, VaultError> {
        loop {
            let age = self.judged.lock().look_age(Some(kid));
            if age.is_some_and(|age| age < LOOK_AGE_ACK_MAX) {
                return Ok(true);
            }
            if self.lists().await?.present().catalog_kid != kid {
                return Ok(false);
            }
        }
    }

    /// Writes a control object if its name is free, with some tries. Writing the same twice is a success.
    ///
    /// # Errors
    /// [`VaultError::Taken`] with what stands there; [`VaultError::CatalogKeyReplaced`]; a failed request.
    pub async fn put_object<T: ControlObject>(&self, path: &Path, content: &T) -> Result<Created, VaultError> {
        let key = self.key_to_write().await?;
        let bytes = objects::encode(&key, path, content)?;
        let created = match self.put_bytes(path, bytes.into()).await {
            Err(VaultError::Taken { found, .. }) if self.is_ours(path, content, &found)? => {
                // Written under the key before, and the answer was lost.
                self.get_object::<T>(path).await?;
                return Ok(Created::Before);
            }
            created => created?,
        };
        self.still_counts(path, key.kid()).await?;
        Ok(created)
    }

    /// Whether this very content stands there, under whatever key.
    fn is_ours<T: ControlObject>(&self, path: &Path, content: &T, found: &[u8]) -> Result<bool, VaultError> {
        let keys = self.judged.lock().keys.clone();
        for one in keys.iter().flat_map(|keys| &keys.0) {
            if objects::encode(&one.key, path, content)? == found {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A machine that slept over its write, or a store that took long, may have written too late.
    async fn still_counts(&self, path: &Path, kid: KeyId) -> Result<(), VaultError> {
        if self.is_present(kid).await? {
            return Ok(());
        }
        let Some(replaced) = self.judged.lock().lists.replaced(kid) else { return Ok(()) };
        let appeared_micros = self.store.modified(path).await?.unwrap_or(i64::MAX);
        let object = path.to_string();
        let opened = Opened { content: (), kid, replaced: Some(replaced) };
        Ok(opened.counts(Found { object: &object, appeared_micros }).map_err(ObjectError::from)?)
    }

    /// Checks and decodes a control object that appeared then.
    pub(super) async fn decode<T: ControlObject>(
        &self,
        path: &Path,
        bytes: &[u8],
        appeared_micros: i64,
    ) -> Result<T, VaultError> {
        let once = || -> Result<T, VaultError> {
            let keys = self.judged.lock().keys.clone().ok_or(VaultError::KeyNeeded)?;
            let opened = keys.open(|key| objects::decode::<T>(key, path, bytes)).ok_or(VaultError::KeyNeeded)??;
            Ok(opened.counts(Found { object: path.as_ref(), appeared_micros }).map_err(ObjectError::from)?)
        };
        let first = once();
        let is_closed = matches!(&first, Err(VaultError::Object(ObjectError::Mac { .. })));
        if !is_closed || self.lists().await.is_err() {
            return first;
        }
        // Perhaps somebody wrote it who knows of a newer key.
        self.judged.lock().present_key(self)?;
        once()
    }

    /// Opens the index of a batch as it stands in a lane index.
    pub(crate) fn open_index(
        &self,
        place: &IndexPlace<'_>,
        sealed: &SealedIndex,
        found: Found<'_>,
    ) -> Result<BatchIndex, BatchError> {
        Ok(self.unseal(|key| BatchIndex::open(key, place, sealed).map_err(BatchError::from))?.counts(found)?)
    }

    /// Opens the index of a batch as it stands in the batch.
    pub(crate) fn open_batch(
        &self,
        place: &IndexPlace<'_>,
        trailer: &BatchTrailer,
        sealed: &SealedIndex,
        found: Found<'_>,
    ) -> Result<BatchIndex, BatchError> {
        Ok(self.unseal(|key| batch::open_index(key, place, trailer, sealed))?.counts(found)?)
    }

    /// The same, where nobody knows when the batch appeared: the store is asked if that matters.
    ///
    /// # Errors
    /// A failed request.
    pub(crate) async fn open_batch_asked(
        &self,
        place: &IndexPlace<'_>,
        trailer: &BatchTrailer,
        sealed: &SealedIndex,
        path: &Path,
    ) -> Result<Result<BatchIndex, BatchError>, VaultError> {
        let opened = match self.unseal(|key| batch::open_index(key, place, trailer, sealed)) {
            Ok(opened) if opened.replaced.is_none() => return Ok(Ok(opened.content)),
            Ok(opened) => opened,
            Err(error) => return Ok(Err(error)),
        };
        let appeared_micros = self.store.modified(path).await?.unwrap_or(i64::MAX);
        Ok(opened.counts(Found { object: path.as_ref(), appeared_micros }).map_err(BatchError::from))
    }

    /// Opens what a catalog key sealed with the one that did.
    pub(super) fn unseal<T>(
        &self,
        open: impl Fn(&CatalogKey) -> Result<T, BatchError>,
    ) -> Result<Opened<T>, BatchError> {
        let keys = self.judged.lock().keys.clone();
        let needed = BatchError::Field { part: "vault", field: "catalog key" };
        keys.and_then(|keys| keys.open(open)).ok_or(needed)?
    }

    /// The index of a batch, sealed under `key`: as it stands, or anew if an older key had sealed it, so that it counts in an object that
    /// appears now.
    pub(crate) fn sealed_by(
        &self,
        key: &CatalogKey,
        place: &IndexPlace<'_>,
        sealed: &SealedIndex,
        found: Found<'_>,
    ) -> Result<SealedIndex, BatchError> {
        let opened = self.unseal(|key| BatchIndex::open(key, place, sealed).map_err(BatchError::from))?;
        let is_older = opened.kid != key.kid();
        let index = opened.counts(found)?;
        if !is_older {
            return Ok(sealed.clone());
        }
        index.seal(key, place).map_err(|_| BatchError::Field { part: "index", field: "size" })
    }
}

/// What was read, unless it is too late for its catalog key: that counts for nobody. `verify` tells it.
pub(super) fn in_time<T>(found: Result<T, VaultError>) -> Result<Option<T>, VaultError> {
    match found {
        Err(error) if error.is_too_late() => {
            tracing::warn!("{error}");
            Ok(None)
        }
        found => found.map(Some),
    }
}
