//! From the vault's catalog to what the pure cores and the fetcher need: rows, names of objects, keys of lanes.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use object_store::path::Path;

use super::damage::Damage;
use super::history::{History, Presence, Row};
use super::keys::Keys;
use super::plan::Plan;
use crate::fault::{self, Classify, Fault};
use crate::keys::{Identity, MessageKey};
use crate::types::{DiskId, Epoch, Id128, Seq};
use crate::vault::index::MessageMeta;
use crate::vault::objects::EpochObject;
use crate::vault::reader::{Catalog, CatalogBatch, CatalogLane, Problem, Want};
use crate::vault::store::GetError;
use crate::vault::{Vault, VaultError, names};

/// Loads of the catalog of a vault that is being written, before what still looks missing is believed to be.
const LOADS_MAX: usize = 3;
/// Missing objects that are asked for, the newest of the last lanes first: more than can be written while a listing runs
/// are missing for good, and each question takes a round trip.
const ASKED_MAX: usize = 64;

/// Loads the catalog. A batch that a gateway wrote while the listing ran may seem missing: such a catalog is loaded anew.
///
/// # Errors
/// [`VaultError`] if the store fails or the catalog key is not at hand. Damage is a finding, not an error.
pub async fn load(vault: &Vault, want: &Want) -> Result<Catalog, VaultError> {
    let mut loads = 1;
    loop {
        let catalog = Catalog::load(vault, want).await?;
        let mut appeared = false;
        let missing = catalog.findings.iter().filter(|finding| finding.problem == Problem::Missing);
        for finding in missing.rev().take(ASKED_MAX) {
            appeared = appeared || vault.store().exists(&Path::from(finding.object.as_str())).await?;
        }
        if !appeared || loads == LOADS_MAX {
            return Ok(catalog);
        }
        loads += 1;
    }
}

/// The history of one disk. The rows' objects are places in [`Catalog::batches`].
#[must_use]
pub fn history(catalog: &Catalog, disk: &DiskId, epochs: &[EpochObject]) -> History {
    let mut rows = Vec::new();
    for (object, batch) in catalog.batches.iter().enumerate() {
        let index = &batch.index;
        let confirmed = catalog.read_lane(index.lane).is_some_and(|lane| index.n <= lane.confirmed_through);
        for part in index.disks.iter().filter(|part| part.disk == *disk) {
            // What is there can be read, whatever a manifest says of it: a forged one hides nothing.
            let presence = match (batch.present, batch.let_go) {
                (true, _) => Presence::Here,
                (false, true) => Presence::LetGo,
                (false, false) => Presence::Missing,
            };
            let row = |message: &_| Row { object: object as u32, confirmed, presence, message: Clone::clone(message) };
            rows.extend(part.messages.iter().map(row));
        }
    }
    History::build(epochs, rows)
}

/// What the catalog found wrong, without what merely does not belong into a vault.
#[must_use]
pub fn damage(catalog: &Catalog) -> Vec<Damage> {
    let real = catalog.findings.iter().filter(|finding| finding.problem != Problem::Foreign);
    real.map(|finding| Damage::object(finding.object.clone(), finding.problem.to_string())).collect()
}

/// The batch that is lost and may have held records of the disk newer than any that history has, if there is one.
///
/// A loss in the middle shows as a gap; this is about the end, where nothing follows that would show it. Only the lane
/// where history ends is asked, and lanes of which nothing of the disk is left: in any other, later rows are there. What was
/// moved counts where it came from, and a lane of moved messages holds none that its first lane does not tell of.
#[must_use]
pub fn lost_tail(catalog: &Catalog, history: &History) -> Option<String> {
    let place = |row: &Row| catalog.batches[row.object as usize].index.sealed_in(&row.message);
    let moved = |lane| catalog.read_lane(lane).is_some_and(CatalogLane::is_moved);
    let mut newest: HashMap<Id128, u64> = HashMap::new();
    for (lane, n) in history.rows.iter().map(place) {
        let newest = newest.entry(lane).or_default();
        *newest = n.max(*newest);
    }
    let head =
        history.spans.iter().rev().find_map(|span| span.picks.last()).map(|pick| place(&history.rows[pick.row]).0);
    let lost = catalog.findings.iter().find(|finding| {
        let Some((lane, n)) = batch_of(&finding.object) else { return false };
        if finding.problem.is_beside() {
            return false;
        }
        let known = catalog.batches.binary_search_by_key(&(lane, n), |batch| (batch.index.lane, batch.index.n)).is_ok();
        let last = newest.get(&lane).copied();
        !known && !moved(lane) && last.is_none_or(|last| n > last && head == Some(lane))
    })?;
    Some(format!("{} {}, and it may hold the disk's newest records", lost.object, lost.problem))
}

/// Lane and number of a batch by its name.
#[must_use]
pub fn batch_of(object: &str) -> Option<(Id128, u64)> {
    let mut parts = object.strip_prefix("b/")?.split('/').skip(1);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// What is said of a message whose lane has no key that can be had.
const NO_LANE_KEY: &str =
    "the key of the lane in which it was sealed cannot be had: its registration is missing or damaged";

/// Where messages are read and with what they open. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Source {
    /// The vault.
    pub vault: Vault,
    objects: Arc<[Object]>,
    keys: Arc<Keys>,
    closed: Arc<Closed>,
    moved: Arc<HashMap<DiskId, Moved>>,
}

/// A batch.
#[derive(Debug)]
struct Object {
    path: Path,
    lane: Id128,
    n: u64,
}

/// What tells a sealed message from every other of its disk, wherever it stands: where it was sealed, and with which records.
type SealedAs = (Id128, u64, Epoch, Seq);

/// The places of moved messages: objects that are there, with where the message starts.
type Moved = HashMap<SealedAs, Vec<(u32, u64)>>;

/// As what a message was sealed.
#[derive(Clone, Debug)]
pub struct Sealed<'a> {
    /// Name of the batch.
    pub object: Cow<'a, str>,
    /// What opens it, or why nothing does.
    pub key: Result<MessageKey, Arc<str>>,
}

/// Lanes that others can open.
#[derive(Debug, Default)]
struct Closed {
    /// Each with those to whom its key is wrapped.
    lanes: BTreeMap<Id128, Vec<String>>,
    /// Who cannot open them.
    given: String,
}

impl Closed {
    fn error(&self, lane: Id128) -> Option<VaultError> {
        let (object, given) = (names::lane(lane).to_string(), self.given.clone());
        self.lanes.get(&lane).map(|names| VaultError::NotRewrapped { object, wrapped_to: names.clone(), given })
    }
}

impl Source {
    /// Unwraps the keys of all lanes of the catalog with a recovery identity; what is damaged is returned beside. Lanes that are
    /// wrapped to others are no damage: whoever is no recipient any more reads what is older, see [`Source::can_open`].
    ///
    /// # Errors
    /// [`VaultError::NotRewrapped`] if the identity opens none.
    pub fn open(vault: &Vault, identity: &Identity, catalog: &Catalog) -> Result<(Self, Vec<Damage>), VaultError> {
        let mut keys = Keys::default();
        let mut damage = Vec::new();
        let mut closed = Closed::default();
        // The catalog has a finding for a registration that is not there.
        let registrations = catalog.lanes.iter().filter_map(|lane| lane.object.as_ref()).chain(&catalog.origins);
        for object in registrations {
            match vault.open_lane_key(object, identity) {
                Ok(key) => keys.add(object, key),
                Err(error) if error.fault() == Fault::Corrupt => {
                    damage.push(Damage::object(names::lane(object.lane), fault::chain_text(&error)));
                }
                Err(VaultError::NotRewrapped { wrapped_to, given, .. }) => {
                    closed.lanes.insert(object.lane, wrapped_to);
                    closed.given = given;
                }
                Err(error) => return Err(error),
            }
        }
        match closed.lanes.keys().next().and_then(|lane| closed.error(*lane)) {
            Some(error) if keys.is_empty() => return Err(error),
            _ => {}
        }
        let object = |batch: &CatalogBatch| {
            let (path, lane, n) = (batch.object.clone(), batch.index.lane, batch.index.n);
            Object { path, lane, n }
        };
        let objects = catalog.batches.iter().map(object).collect();
        let (keys, closed, moved) = (Arc::new(keys), Arc::new(closed), Arc::new(moved(catalog)));
        Ok((Self { vault: vault.clone(), objects, keys, closed, moved }, damage))
    }

    /// Whether the identity opens every lane in which something was sealed that a plan reads, as far as that is not a matter of damage.
    ///
    /// # Errors
    /// [`VaultError::NotRewrapped`] names the first lane that others can open.
    pub fn can_open(&self, history: &History, plan: &Plan) -> Result<(), VaultError> {
        let messages =
            plan.reads.iter().flat_map(|read| read.messages.iter().map(|message| (read.object, message.row)));
        let mut lanes = messages.map(|(object, row)| self.sealed_as(object, &history.rows[row].message).0);
        lanes.find_map(|lane| self.closed.error(lane)).map_or(Ok(()), Err)
    }

    /// Whether the identity opens every lane of the catalog, as far as that is not a matter of damage.
    ///
    /// # Errors
    /// As [`Source::can_open`].
    pub fn can_open_all(&self) -> Result<(), VaultError> {
        self.closed.lanes.keys().find_map(|lane| self.closed.error(*lane)).map_or(Ok(()), Err)
    }

    /// The name of an object.
    #[must_use]
    pub fn path(&self, object: u32) -> &Path {
        &self.objects[object as usize].path
    }

    fn sealed_as(&self, object: u32, message: &MessageMeta) -> SealedAs {
        let here = &self.objects[object as usize];
        let (lane, n) = message.origin.map_or((here.lane, here.n), |origin| (origin.lane, origin.n));
        (lane, n, message.epoch, message.first)
    }

    /// Whether [`Source::sealed`] has the key of a message without asking the vault.
    #[must_use]
    pub fn is_ready(&self, object: u32, disk: &DiskId, message: &MessageMeta) -> bool {
        self.keys.is_ready(disk, self.sealed_as(object, message).0)
    }

    /// Reads the key of the message's disk in the lane in which it was sealed, unless that was done.
    ///
    /// # Errors
    /// The store fails. A key that is missing or damaged is told where it is asked for.
    pub async fn make_ready(&self, object: u32, disk: &DiskId, message: &MessageMeta) -> Result<(), GetError> {
        self.keys.make_ready(&self.vault, disk, self.sealed_as(object, message).0).await
    }

    /// As what a message of a disk in an object was sealed, and with which key. To be called after [`Source::make_ready`].
    #[must_use]
    pub fn sealed(&self, object: u32, disk: &DiskId, message: &MessageMeta) -> Sealed<'_> {
        let (lane, n, ..) = self.sealed_as(object, message);
        let object = match message.origin {
            Some(_) => Cow::Owned(names::batch_name(lane, n)),
            None => Cow::Borrowed(self.path(object).as_ref()),
        };
        let key = self.keys.of(disk, lane).unwrap_or_else(|| Err(NO_LANE_KEY.into()));
        Sealed { object, key }
    }

    /// Where else a keeper has put a message: object and first byte. A batch may go under a reader's hands when what was needed of it
    /// stands elsewhere.
    pub fn elsewhere<'a>(
        &'a self,
        object: u32,
        disk: &DiskId,
        message: &MessageMeta,
    ) -> impl Iterator<Item = (&'a Path, u64)> + use<'a> {
        let moved = self.moved.get(disk).and_then(|moved| moved.get(&self.sealed_as(object, message)));
        let others = moved.into_iter().flatten().filter(move |(other, _)| *other != object);
        others.map(|(other, offset_bytes)| (self.path(*other), *offset_bytes))
    }
}

fn moved(catalog: &Catalog) -> HashMap<DiskId, Moved> {
    let mut moved: HashMap<DiskId, Moved> = HashMap::new();
    for (object, batch) in catalog.batches.iter().enumerate().filter(|(_, batch)| batch.present) {
        for part in &batch.index.disks {
            let messages = part.messages.iter().filter_map(|message| Some((message, message.origin?)));
            for (message, origin) in messages {
                let places = moved.entry(part.disk.clone()).or_default();
                let sealed_as = (origin.lane, origin.n, message.epoch, message.first);
                places.entry(sealed_as).or_default().push((object as u32, message.offset_bytes));
            }
        }
    }
    moved
}
