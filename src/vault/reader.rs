//! Finding what a vault holds: from names and sizes, over indexes, to rows; everything in parallel, nothing believed
//! before it authenticated.
//!
//! ```text
//!  routes of the wanted disks ──► lanes ──► per lane: LIST batches · LIST lane indexes · registration · end
//!                                             │             │
//!                                             │             └ read whole: rows of up to 1,024 batches each
//!                                             └ what no lane index covers: last 64 KiB of the batch
//! ```
//!
//! Whoever reads one disk and asks for it ([`Want::folded`]) takes its folded index where a lane has one, and lists no batches there.
//!
//! What the keeper let go is no damage: the newest manifest of a sealed lane tells it, and the rows stand in a lane index.
//!
//! A batch is missing *provably* when its number is at or below one that a later index states as confirmed, or that the
//! lane's end states as its last. Any other hole is what a crash leaves: a batch that was never acked.
//!
//! What fails is a [`Finding`] with the object's name; the rest goes on. Only failures of the store itself (no access,
//! no answer) end the loading: a catalog that silently lacks lanes would make recovery points vanish.

mod folded;
mod lane_rows;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use object_store::path::Path;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::batch::BatchError;
use super::index::BatchIndex;
use super::lane::ListedLane;
use super::objects::{LaneObject, ObjectError, TooLate};
use super::store::{GetError, Listed};
use super::{Vault, VaultError, names};
use crate::fault::{Classify, Fault};
use crate::flow::Budget;
use crate::keys::KeyId;
use crate::types::{DiskId, Id128};

/// Requests at the same time, over all lanes.
const REQUESTS_AT_ONCE: usize = 32;
/// Bytes of indexes in flight: a few of the largest lane indexes.
const BYTES_IN_FLIGHT: u64 = 256 << 20;
/// Lanes in work at the same time whose batches are listed: each holds its listing.
const LANES_AT_ONCE: usize = 16;
/// Lanes in work at the same time, with those of which only a folded index is read.
const FOLDED_LANES_AT_ONCE: usize = 64;

/// A batch and its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogBatch {
    /// The object's name within the vault.
    pub object: Path,
    /// Size of the object: as listed, or as its index states if it is missing.
    pub size_bytes: u64,
    /// Whether the object itself is there.
    pub present: bool,
    /// When it appeared, by the store's clock, in microseconds since 1970; zero if it is not there.
    pub modified_micros: i64,
    /// It had appeared by then, by the store's clock: then, if it is there; at the latest then, if the keeper let it go; zero if
    /// nobody knows.
    pub put_by_micros: i64,
    /// Whether the keeper let it go: then it is deleted, or may be at any moment.
    pub let_go: bool,
    /// Its rows, only those of the wanted disks.
    pub index: BatchIndex,
}

/// What is known of a lane.
#[derive(Debug, Clone)]
pub struct CatalogLane {
    /// Its id.
    pub lane: Id128,
    /// Its registration with the wrapped key; `None` if it is missing or not believed (see the findings).
    pub object: Option<LaneObject>,
    /// The last batch, if the lane was ended.
    pub end: Option<u64>,
    /// Whether it has a seal.
    pub sealed: bool,
    /// Batches that the listing shows; of a lane whose folded index was read, those that hold something of the disk.
    pub batches: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Every batch up to this number was once confirmed.
    pub confirmed_through: u64,
    /// Whether older batches were left unread, as [`Newest`] asks for.
    pub cut: bool,
}

impl CatalogLane {
    /// Whether it holds messages that a keeper moved.
    #[must_use]
    pub fn is_moved(&self) -> bool {
        self.object.as_ref().is_some_and(|object| object.moved)
    }
}

/// Something wrong, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The object.
    pub object: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with an object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// It was there, and is not.
    #[error("is missing: it was vaulted once, and deleted or lost since")]
    Missing,
    /// It does not authenticate, is cut, or breaks its format.
    #[error("is damaged: {0}")]
    Damaged(String),
    /// A lane's registration is missing: its batches cannot be opened.
    #[error("is missing: the lane's key is lost, its batches cannot be opened")]
    LaneKeyMissing,
    /// A newer release wrote it.
    #[error("{0}")]
    Newer(String),
    /// Nothing of this kind belongs there.
    #[error("is not of a vault: nothing of that name belongs there")]
    Foreign,
    /// It was made with an older catalog key, after that key's time.
    #[error(
        "does not count: it appeared after catalog key {kid} was replaced (list {list} of the recipients), and was made with that key"
    )]
    TooLate {
        /// The key.
        kid: KeyId,
        /// The list that replaced it.
        list: u64,
    },
}

impl Problem {
    /// Whether what the vault holds is whole all the same: it is of something that never was a part of it.
    #[must_use]
    pub fn is_beside(&self) -> bool {
        matches!(self, Self::Foreign | Self::TooLate { .. })
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.object, self.problem)
    }
}

impl Finding {
    fn new(object: &Path, problem: Problem) -> Self {
        Self { object: object.to_string(), problem }
    }

    fn too_late(TooLate { object, kid, list }: TooLate) -> Self {
        Self { object, problem: Problem::TooLate { kid, list } }
    }

    /// The finding that an error stands for, or the error back if it says nothing about the object itself.
    fn of(object: &Path, error: VaultError) -> Result<Self, VaultError> {
        let error = match error {
            VaultError::Object(ObjectError::TooLate(late)) => return Ok(Self::too_late(late)),
            error => error,
        };
        match error.fault() {
            Fault::Corrupt => Ok(Self::new(object, Problem::Damaged(crate::fault::chain_text(&error)))),
            Fault::Reject if matches!(error, VaultError::Object(_)) => {
                Ok(Self::new(object, Problem::Newer(error.to_string())))
            }
            _ => Err(error),
        }
    }

    fn of_batch(object: &Path, error: &BatchError) -> Self {
        if let BatchError::TooLate(late) = error {
            return Self::too_late(late.clone());
        }
        let what = crate::fault::chain_text(error);
        let newer = error.fault() == Fault::Reject;
        Self::new(object, if newer { Problem::Newer(what) } else { Problem::Damaged(what) })
    }
}

/// What to load.
#[derive(Debug, Clone, Default)]
pub struct Want {
    /// Only these disks; all if `None`.
    pub disks: Option<BTreeSet<DiskId>>,
    /// Only what is newest. What is missing is not told then.
    pub newest: Option<Newest>,
    /// Whether the folded index of the one wanted disk stands for a lane, where it has one. What it names counts as there without a look,
    /// unless the keeper let go of some of it: what was lost since is told by whoever reads it.
    pub folded: bool,
}

/// A part of the vault, the newest one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Newest {
    /// Lanes that have ended, the last to carry one of the disks first. Lanes without an end are always read.
    pub lanes: usize,
    /// Batches of each lane, the last ones, read one by one.
    pub batches: usize,
}

impl Want {
    /// One disk.
    #[must_use]
    pub fn disk(disk: &DiskId) -> Self {
        Self { disks: Some(BTreeSet::from([disk.clone()])), ..Self::default() }
    }

    /// One disk, by its folded indexes where it has some.
    #[must_use]
    pub fn folded(disk: &DiskId) -> Self {
        Self { folded: true, ..Self::disk(disk) }
    }

    /// The one disk whose folded indexes may be read.
    fn folded_disk(&self) -> Option<&DiskId> {
        let disks = self.disks.as_ref().filter(|disks| self.folded && self.newest.is_none() && disks.len() == 1)?;
        disks.first()
    }

    fn holds(&self, disk: &DiskId) -> bool {
        self.disks.as_ref().is_none_or(|disks| disks.contains(disk))
    }
}

/// Everything that the wanted disks' indexes say.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    /// The lanes that were read, by id.
    pub lanes: Vec<CatalogLane>,
    /// Their batches, by lane and number.
    pub batches: Vec<CatalogBatch>,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// Lanes of the wanted disks that were not looked into at all, as [`Newest`] asks for.
    pub lanes_left_out: usize,
    /// Registrations of further lanes, in which messages were sealed that stand in those that were read.
    pub origins: Vec<LaneObject>,
}

/// What all lanes share while they are read.
#[derive(Clone)]
struct Shared {
    vault: Vault,
    want: Arc<Want>,
    requests: Arc<Semaphore>,
    listings: Arc<Semaphore>,
    bytes: Budget,
}

impl Catalog {
    /// Reads the indexes of every lane that carried a wanted disk.
    ///
    /// # Errors
    /// [`VaultError::KeyNeeded`] without a catalog key; a failed request. Damage is a finding, not an error.
    pub async fn load(vault: &Vault, want: &Want) -> Result<Self, VaultError> {
        vault.need_key()?;
        // What counts may have changed since the vault was opened.
        vault.look_again().await?;
        let shared = Shared {
            vault: vault.clone(),
            want: Arc::new(want.clone()),
            requests: Arc::new(Semaphore::new(REQUESTS_AT_ONCE)),
            listings: Arc::new(Semaphore::new(LANES_AT_ONCE)),
            bytes: Budget::new(BYTES_IN_FLIGHT),
        };
        let (lanes, lanes_left_out) = match want.folded_disk() {
            Some(disk) => (folded::lanes(vault, disk).await?, 0),
            None => {
                let (lanes, left_out) = wanted_lanes(vault, want).await?;
                (lanes.into_iter().map(|lane| (lane, None)).collect(), left_out)
            }
        };
        let mut waiting = lanes.into_iter();
        let mut running = JoinSet::new();
        let mut catalog = Self { lanes_left_out, ..Self::default() };
        loop {
            while running.len() < FOLDED_LANES_AT_ONCE {
                let Some((lane, folded)) = waiting.next() else { break };
                running.spawn(load_lane(shared.clone(), lane, folded));
            }
            match running.join_next().await {
                None => break,
                Some(Ok(part)) => catalog.join(part?),
                Some(Err(error)) => return Err(task_error(&error).into()),
            }
        }
        // Who reads only what is newest opens no message.
        if want.newest.is_none() {
            catalog.read_origins(&shared).await?;
        }
        catalog.lanes.sort_unstable_by_key(|lane| lane.lane);
        catalog.batches.sort_unstable_by_key(|batch| (batch.index.lane, batch.index.n));
        catalog.findings.sort_unstable_by(|a, b| a.object.cmp(&b.object));
        Ok(catalog)
    }

    fn join(&mut self, other: Self) {
        self.lanes.extend(other.lanes);
        self.batches.extend(other.batches);
        self.findings.extend(other.findings);
    }

    /// Reads the registrations of lanes that messages were moved from, where no route led to them.
    async fn read_origins(&mut self, shared: &Shared) -> Result<(), VaultError> {
        let messages = self.batches.iter().flat_map(|batch| &batch.index.disks).flat_map(|part| &part.messages);
        let origins: BTreeSet<Id128> = messages.filter_map(|message| Some(message.origin?.lane)).collect();
        let read: BTreeSet<Id128> = self.lanes.iter().map(|lane| lane.lane).collect();
        for lane in origins.difference(&read) {
            self.origins.extend(lane_rows::registration(shared, *lane, &mut self.findings).await?);
        }
        Ok(())
    }

    /// What is known of a lane, if it was read.
    #[must_use]
    pub fn read_lane(&self, lane: Id128) -> Option<&CatalogLane> {
        self.lanes.binary_search_by_key(&lane, |one| one.lane).ok().map(|at| &self.lanes[at])
    }

    /// A lane's registration, for its wrapped key.
    #[must_use]
    pub fn lane(&self, lane: Id128) -> Option<&LaneObject> {
        self.read_lane(lane)?.object.as_ref()
    }

    /// The registration of a lane in which messages were sealed, also where only moved ones are left of it.
    #[must_use]
    pub fn registration(&self, lane: Id128) -> Option<&LaneObject> {
        self.lane(lane).or_else(|| self.origins.iter().find(|object| object.lane == lane))
    }
}

/// Reads what one lane holds of the wanted disks.
async fn load_lane(shared: Shared, lane: ListedLane, folded: Option<folded::Parts>) -> Result<Catalog, VaultError> {
    if let Some(parts) = folded
        && let Some(catalog) = folded::load(&shared, &lane, &parts).await?
    {
        return Ok(catalog);
    }
    let listings = Arc::clone(&shared.listings);
    let _listing = listings.acquire().await;
    lane_rows::load(shared, lane).await
}

/// A task ends without a result only when the runtime goes down or the task panics.
fn task_error(error: &tokio::task::JoinError) -> GetError {
    let generic = object_store::Error::Generic { store: "catalog", source: error.to_string().into() };
    super::fault::BlobError::new("load", "catalog", "the vault", &generic).into()
}

/// The lanes that may hold records of the wanted disks. Routes and registrations are both asked, because either may have
/// been deleted: a lane without its registration must be reported, not forgotten. Also tells how many were left out
/// because only the newest are wanted.
async fn wanted_lanes(vault: &Vault, want: &Want) -> Result<(Vec<ListedLane>, usize), VaultError> {
    let mut lanes = vault.lanes().await?;
    // With the time at which each began to carry one of them.
    let mut routed: BTreeMap<Id128, i64> = BTreeMap::new();
    let mut note = |all: &[Listed]| {
        for listed in all {
            if let Some(lane) = names::lane_of_route(&listed.path) {
                let began = routed.entry(lane).or_insert(listed.modified_micros);
                *began = listed.modified_micros.max(*began);
            }
        }
    };
    match &want.disks {
        Some(disks) => {
            for disk in disks {
                note(&vault.store().list(Some(&names::routes(disk))).await?);
            }
        }
        None => note(&vault.store().list(Some(&names::disks())).await?),
    }
    for &lane in routed.keys() {
        if lanes.iter().all(|known| known.lane != lane) {
            lanes.push(ListedLane { lane, registered: false, ended: false, sealed: None });
        }
    }
    if want.disks.is_some() {
        lanes.retain(|lane| routed.contains_key(&lane.lane));
    }
    let all = lanes.len();
    if let Some(newest) = want.newest {
        let began = |lane: &ListedLane| routed.get(&lane.lane).copied().unwrap_or(i64::MIN);
        lanes.sort_by_key(|lane| (lane.ended, std::cmp::Reverse(began(lane)), lane.lane));
        let open = lanes.iter().take_while(|lane| !lane.ended).count();
        lanes.truncate(open + newest.lanes);
    }
    let left_out = all - lanes.len();
    Ok((lanes, left_out))
}

#[cfg(test)]
mod tests;
