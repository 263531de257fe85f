//! Loading what the vault says of its batches, and the keys to open them: the driver between `vault` and the pure cores.
//!
//! Lane indexes are read first, because one of them stands for a thousand batches; what they do not cover is read from
//! the end of each batch. Both are sealed alike, so it does not matter from where a row comes. Nothing here stops at
//! damage: what cannot be read is named, and history then shows what is missing because of it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use object_store::path::Path;

use super::damage::Damage;
use super::history::{History, Row};
use crate::fault::{self, Classify, Fault};
use crate::keys::{CatalogKey, Identity, LaneKey};
use crate::types::{DiskId, Id128};
use crate::vault::batch::{self, BatchTrailer, Tail};
use crate::vault::index::lane::LaneIndex;
use crate::vault::index::{BatchIndex, IndexPlace, SealedIndex};
use crate::vault::objects::{EpochObject, LaneEndObject};
use crate::vault::store::GetError;
use crate::vault::{Vault, VaultError, names};

/// Small reads in flight.
const SMALL_READS: usize = 16;
/// Largest lane index that is read: the size at which one is closed, and the largest single index that may follow.
const LANE_INDEX_BYTES_MAX: u64 = 128 << 20;

/// A batch object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectRef {
    /// Its name.
    pub path: Path,
    /// Its lane.
    pub lane: Id128,
    /// Its number.
    pub n: u64,
    /// Its size as the store lists it; zero if it is not there.
    pub size_bytes: u64,
}

/// What is known of one lane.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LaneState {
    /// Batches that are listed, with their sizes.
    pub listed: BTreeMap<u64, u64>,
    /// Every batch up to here was confirmed by the store once.
    pub confirmed_through: u64,
    /// Batches at or below it that are not there.
    pub missing: Vec<RangeInclusive<u64>>,
}

/// The catalog of one disk, or of all.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The batches that were read.
    pub objects: Vec<ObjectRef>,
    /// Their indexes, by place in `objects`.
    pub indexes: Vec<(u32, BatchIndex)>,
    /// The lanes.
    pub lanes: BTreeMap<Id128, LaneState>,
    /// What could not be read or believed.
    pub damage: Vec<Damage>,
}

/// Where opened messages come from. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Source {
    /// The vault.
    pub vault: Vault,
    objects: Arc<[ObjectRef]>,
    keys: Arc<HashMap<Id128, LaneKey>>,
}

impl Source {
    /// An object by its number in the rows.
    #[must_use]
    pub fn object(&self, object: u32) -> &ObjectRef {
        &self.objects[object as usize]
    }

    /// The key of a lane, unless its registration is damaged.
    #[must_use]
    pub fn key(&self, lane: Id128) -> Option<&LaneKey> {
        self.keys.get(&lane)
    }

    /// Unwraps the keys of all lanes in `loaded` with a recovery identity. Damaged registrations are returned beside.
    ///
    /// # Errors
    /// [`VaultError`] if the identity is not one of the vault's, or the store fails.
    pub async fn open(vault: &Vault, identity: &Identity, loaded: &Loaded) -> Result<(Self, Vec<Damage>), VaultError> {
        let lanes: HashSet<Id128> = loaded.objects.iter().map(|object| object.lane).collect();
        let mut keys = HashMap::new();
        let mut damage = Vec::new();
        let mut registrations =
            stream::iter(lanes).map(|lane| async move { (lane, vault.lane(lane).await) }).buffer_unordered(SMALL_READS);
        while let Some((lane, registration)) = registrations.next().await {
            match registration.and_then(|object| vault.open_lane_key(&object, identity)) {
                Ok(key) => {
                    keys.insert(lane, key);
                }
                Err(error) if error.fault() == Fault::Corrupt => {
                    damage.push(Damage::object(names::lane(lane), fault::chain_text(&error)));
                }
                Err(error) => return Err(error),
            }
        }
        let source = Self { vault: vault.clone(), objects: loaded.objects.clone().into(), keys: Arc::new(keys) };
        Ok((source, damage))
    }
}

/// One index as it was found.
struct Found {
    n: u64,
    index: Result<BatchIndex, Damage>,
}

impl Loaded {
    /// Loads the indexes of every lane that carried `disk`, or of all lanes. With `thorough` every batch's own index is
    /// read too where a lane index stands for it.
    ///
    /// # Errors
    /// [`VaultError`] if the store fails. Damage is no error here.
    pub async fn load(vault: &Vault, disk: Option<&DiskId>, thorough: bool) -> Result<Self, VaultError> {
        let mut lanes: Vec<Id128> = vault.lanes().await?.iter().map(|lane| lane.lane).collect();
        if let Some(disk) = disk {
            let routes: HashSet<Id128> = vault.routes(disk).await?.into_iter().collect();
            lanes.retain(|lane| routes.contains(lane));
            // A lane whose registration was deleted still holds rows; its batches will say that its key is missing.
            lanes.extend(routes.into_iter().filter(|lane| !lanes.contains(lane)).collect::<Vec<_>>());
        } else {
            lanes.extend(unregistered(vault, &lanes).await?);
        }
        let mut loaded = Self::default();
        for lane in lanes {
            loaded.load_lane(vault, lane, disk, thorough).await?;
        }
        Ok(loaded)
    }

    async fn load_lane(
        &mut self,
        vault: &Vault,
        lane: Id128,
        disk: Option<&DiskId>,
        thorough: bool,
    ) -> Result<(), VaultError> {
        let mut state = LaneState::default();
        for listed in vault.store().list(Some(&names::batches(lane))).await? {
            if let Some(n) = names::number(&listed.path) {
                state.listed.insert(n, listed.size_bytes);
            }
        }
        match vault.get_object::<LaneEndObject>(&names::lane_end(lane)).await {
            Ok(end) => state.confirmed_through = end.map_or(0, |end| end.last_batch),
            Err(error) if error.fault() == Fault::Corrupt => {
                self.damage.push(Damage::object(names::lane_end(lane), fault::chain_text(&error)));
            }
            Err(error) => return Err(error),
        }
        let mut found = self.read_lane_indexes(vault, lane, &mut state).await?;
        let uncovered: Vec<u64> = state.listed.keys().copied().filter(|n| thorough || !found.contains_key(n)).collect();
        self.take(read_tails(vault, lane, &state, uncovered).await?, &mut found, &mut state);
        // A batch that was confirmed but not listed was written while the listing ran, or it is gone.
        let absent: Vec<u64> = (1..=state.confirmed_through).filter(|n| !state.listed.contains_key(n)).collect();
        let late = look_again(vault, lane, absent, &mut state).await?;
        self.take(read_tails(vault, lane, &state, late).await?, &mut found, &mut state);
        state.missing = missing(&state);
        for (n, mut index) in found {
            index.disks.retain(|part| disk.is_none_or(|disk| part.disk == *disk));
            let size_bytes = state.listed.get(&n).copied().unwrap_or(0);
            self.indexes.push((self.objects.len() as u32, index));
            self.objects.push(ObjectRef { path: names::batch(lane, n), lane, n, size_bytes });
        }
        self.lanes.insert(lane, state);
        Ok(())
    }

    fn take(&mut self, tails: Vec<Found>, found: &mut BTreeMap<u64, BatchIndex>, state: &mut LaneState) {
        for Found { n, index } in tails {
            match index {
                Err(damage) => self.damage.push(damage),
                Ok(index) => {
                    state.confirmed_through = state.confirmed_through.max(index.confirmed_through);
                    match found.get(&n) {
                        Some(other) if *other != index => {
                            let what = "its index differs from the copy in the lane index";
                            self.damage.push(Damage::object(names::batch(index.lane, n), what));
                        }
                        Some(_) => {}
                        None => {
                            found.insert(n, index);
                        }
                    }
                }
            }
        }
    }

    async fn read_lane_indexes(
        &mut self,
        vault: &Vault,
        lane: Id128,
        state: &mut LaneState,
    ) -> Result<BTreeMap<u64, BatchIndex>, VaultError> {
        let key = vault.need_key()?;
        let mut found = BTreeMap::new();
        for listed in vault.store().list(Some(&names::lane_indexes(lane))).await? {
            let bytes = match vault.store().get(&listed.path, LANE_INDEX_BYTES_MAX).await {
                Ok(Some(bytes)) => bytes,
                Ok(None) => continue,
                Err(error) if error.fault() == Fault::Corrupt => {
                    self.damage.push(Damage::object(listed.path, fault::chain_text(&error)));
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let parsed = match LaneIndex::parse(&bytes) {
                Ok(parsed) if parsed.lane == lane && parsed.vault == vault.id() => parsed,
                Ok(_) => {
                    self.damage.push(Damage::object(listed.path, "it belongs to another lane or vault"));
                    continue;
                }
                Err(error) => {
                    self.damage.push(Damage::object(listed.path, fault::chain_text(&error)));
                    continue;
                }
            };
            for entry in parsed.entries {
                state.confirmed_through = state.confirmed_through.max(entry.n);
                let size_bytes = state.listed.get(&entry.n).copied();
                if size_bytes.is_some_and(|size_bytes| size_bytes != entry.total_bytes) {
                    let (size_bytes, stated) = (size_bytes.unwrap_or(0), entry.total_bytes);
                    let what = format!("the object has {size_bytes} bytes, the lane index says {stated}");
                    self.damage.push(Damage::object(names::batch(lane, entry.n), what));
                }
                let path = names::batch(lane, entry.n);
                match open_entry(vault, key, lane, entry.n, &path, &entry.index) {
                    Ok(index) => {
                        found.insert(entry.n, index);
                    }
                    Err(what) => {
                        let what = format!("its entry for {path}: {what}");
                        self.damage.push(Damage::object(listed.path.clone(), what));
                    }
                }
            }
        }
        Ok(found)
    }

    /// The history of one disk.
    #[must_use]
    pub fn history(&self, disk: &DiskId, epochs: &[EpochObject]) -> History {
        let mut rows = Vec::new();
        for (object, index) in &self.indexes {
            let confirmed = self.lanes.get(&index.lane).is_some_and(|lane| index.n <= lane.confirmed_through);
            for part in index.disks.iter().filter(|part| part.disk == *disk) {
                let row = |message: &_| Row { object: *object, confirmed, message: Clone::clone(message) };
                rows.extend(part.messages.iter().map(row));
            }
        }
        History::build(epochs, rows)
    }
}

/// Lanes that have batches but no registration.
async fn unregistered(vault: &Vault, registered: &[Id128]) -> Result<Vec<Id128>, VaultError> {
    let mut lanes = HashSet::new();
    for folder in vault.store().folders(&Path::from("b")).await? {
        for lane in vault.store().folders(&Path::from(format!("b/{folder}"))).await? {
            lanes.extend(lane.parse::<Id128>().ok());
        }
    }
    Ok(lanes.into_iter().filter(|lane| !registered.contains(lane)).collect())
}

fn open_entry(
    vault: &Vault,
    key: &CatalogKey,
    lane: Id128,
    n: u64,
    path: &Path,
    index: &SealedIndex,
) -> Result<BatchIndex, String> {
    let place = IndexPlace { vault: vault.id(), object: path.as_ref(), lane, n };
    BatchIndex::open(key, &place, index).map_err(|error| fault::chain_text(&error))
}

/// Reads the index at the end of each of these batches.
async fn read_tails(
    vault: &Vault,
    lane: Id128,
    state: &LaneState,
    numbers: Vec<u64>,
) -> Result<Vec<Found>, VaultError> {
    let read = |n| {
        let size_bytes = state.listed.get(&n).copied().unwrap_or(0);
        async move {
            let path = names::batch(lane, n);
            match read_tail(vault, lane, n, &path, size_bytes).await {
                Ok(index) => Ok(Found { n, index: Ok(index) }),
                Err(TailError::Damaged(what)) => Ok(Found { n, index: Err(Damage::object(path, what)) }),
                Err(TailError::Vault(error)) => Err(error),
            }
        }
    };
    let mut reads = stream::iter(numbers).map(read).buffered(SMALL_READS);
    let mut all = Vec::new();
    while let Some(found) = reads.next().await {
        all.push(found?);
    }
    Ok(all)
}

enum TailError {
    Damaged(String),
    Vault(VaultError),
}

impl From<GetError> for TailError {
    fn from(error: GetError) -> Self {
        if error.is_not_found() {
            Self::Damaged("the object is missing".to_owned())
        } else if error.fault() == Fault::Corrupt {
            Self::Damaged(fault::chain_text(&error))
        } else {
            Self::Vault(error.into())
        }
    }
}

async fn read_tail(vault: &Vault, lane: Id128, n: u64, path: &Path, size_bytes: u64) -> Result<BatchIndex, TailError> {
    let damaged = |error: &dyn std::error::Error| TailError::Damaged(fault::chain_text(error));
    let key = vault.need_key().map_err(TailError::Vault)?;
    let place = IndexPlace { vault: vault.id(), object: path.as_ref(), lane, n };
    let open = |trailer: &BatchTrailer, index: &SealedIndex| {
        batch::open_index(key, &place, trailer, index).map_err(|error| damaged(&error))
    };
    if size_bytes == 0 {
        return Err(TailError::Damaged("the object is empty".to_owned()));
    }
    let tail: Bytes = vault.store().get_range(path, batch::tail_range(size_bytes)).await?;
    let range = match batch::parse_tail(size_bytes, &tail).map_err(|error| damaged(&error))? {
        Tail::Whole { trailer, index } => return open(&trailer, &index),
        Tail::More { range, .. } => range,
    };
    let tail = vault.store().get_range(path, range).await?;
    match batch::parse_tail(size_bytes, &tail).map_err(|error| damaged(&error))? {
        Tail::Whole { trailer, index } => open(&trailer, &index),
        Tail::More { .. } => Err(TailError::Damaged("its trailer changed while it was read".to_owned())),
    }
}

/// Lists what appeared since the listing, and returns which of `absent` are there now.
async fn look_again(
    vault: &Vault,
    lane: Id128,
    absent: Vec<u64>,
    state: &mut LaneState,
) -> Result<Vec<u64>, VaultError> {
    if absent.is_empty() {
        return Ok(absent);
    }
    for listed in vault.store().list(Some(&names::batches(lane))).await? {
        if let Some(n) = names::number(&listed.path).filter(|n| absent.binary_search(n).is_ok()) {
            state.listed.insert(n, listed.size_bytes);
        }
    }
    Ok(absent.into_iter().filter(|n| state.listed.contains_key(n)).collect())
}

/// Runs of batches at or below the confirmed one that are not there.
fn missing(state: &LaneState) -> Vec<RangeInclusive<u64>> {
    let mut runs = Vec::new();
    let mut next = 1;
    let present = state.listed.keys().copied().take_while(|n| *n <= state.confirmed_through);
    for n in present.chain([state.confirmed_through + 1]) {
        if n > next {
            runs.push(next..=n - 1);
        }
        next = n + 1;
    }
    runs
}
