//! The disk at the point, as the vault has it: read message by message when somebody asks, and kept for a while.
//!
//! ```text
//!  read ─► map ─► memory? ─► local disk? ─► on its way? wait ─► else: ranged reads (restore::fetch) ─► opened, checked
//!            │                                                                                             │
//!            └─ read-ahead: the same for what comes next, on the runtime, nobody waits ◄── lands in memory ┘
//! ```
//!
//! - A message that several want at once is brought once: whoever comes first brings it, the others wait for it to land.
//! - Whoever has begun to bring messages lands every one of them, with bytes or with the reason why not, also if it is
//!   stopped or panics: nobody waits for ever.
//! - Nothing is kept that was not opened and checked as a restore does it.
//!
//! Memory: one half of the bound is the cache's, the other is for what is on its way, sealed and opened. A read goes on in steps
//! that fit into it; a read-ahead for which there is no room is left out.

use std::collections::HashMap;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::ahead::ReadAhead;
use super::cache::Cache;
use super::map::{Map, Run};
use super::spill::Spill;
use crate::fault::{Classify, Fault, chain_text};
use crate::flow::{Budget, Drain};
use crate::restore::damage::Damage;
use crate::restore::fetch::{self, FetchError, FetchLimits, Known, Sink};
use crate::restore::history::History;
use crate::restore::open::Opened;
use crate::restore::plan::{MessageUse, Plan, READ_BYTES_MAX};
use crate::restore::source::Source;
use crate::types::DiskId;

/// Messages that one step of a read waits for together: more only make the first one later.
const STEP_MESSAGES_MAX: usize = 16;
/// The part of what may be on its way that one step takes: a few of the guest's reads go on side by side.
const STEP_SHARE: u64 = 4;
/// Messages that one read-ahead brings at most, or scattered ones would push out what is in use.
const AHEAD_MESSAGES_MAX: usize = 32;
/// Read-aheads at the same time; further ones are left out, for they only spare time.
const AHEADS_MAX: usize = 4;
/// Pause before the vault is asked again after its own tries are used up.
const AGAIN_PAUSE: Duration = Duration::from_millis(500);

/// Why a part of the disk cannot be read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// What it needs is damaged.
    #[error("{0}")]
    Damaged(Arc<Damage>),
    /// The store failed for longer than is waited for.
    #[error("the vault cannot be read")]
    Store(#[source] Arc<FetchError>),
    /// Whoever brought it ended before it was there.
    #[error("the read was given up before its end: the export stops, or a worker failed")]
    GivenUp,
}

impl Classify for ReadError {
    fn fault(&self) -> Fault {
        match self {
            Self::Damaged(_) => Fault::Corrupt,
            Self::Store(error) => error.fault(),
            Self::GivenUp => Fault::Retry,
        }
    }
}

impl From<ReadError> for io::Error {
    fn from(error: ReadError) -> Self {
        Self::other(error)
    }
}

/// What was asked for and what it took, since the start.
#[derive(Debug, Default)]
pub struct Figures {
    /// Bytes of the point that the guest has read, wherever they came from; not what it wrote itself.
    pub guest_bytes: AtomicU64,
    /// Bytes read from the vault.
    pub vault_bytes: AtomicU64,
    /// Ranged reads of the vault.
    pub requests: AtomicU64,
    /// Messages opened.
    pub messages: AtomicU64,
    /// Reads of the guest that failed.
    pub failed: AtomicU64,
}

impl Figures {
    fn count(counter: &AtomicU64, by: u64) {
        counter.fetch_add(by, Ordering::Relaxed);
    }
}

/// How much an origin may use.
#[derive(Clone, Copy, Debug)]
pub struct OriginLimits {
    /// Memory for messages: those that are kept, and those on their way.
    pub memory_bytes: u64,
    /// Reads of the vault at the same time, per bringer.
    pub jobs: usize,
    /// How long a guest's read waits for a vault that is away, before it fails.
    pub patience: Duration,
}

/// A message on its way.
#[derive(Default)]
struct Flight {
    outcome: Mutex<Option<Result<Bytes, ReadError>>>,
    landed: Condvar,
}

impl Flight {
    fn land(&self, outcome: Result<Bytes, ReadError>) {
        *self.outcome.lock() = Some(outcome);
        self.landed.notify_all();
    }

    fn wait(&self) -> Result<Bytes, ReadError> {
        let mut outcome = self.outcome.lock();
        loop {
            match &*outcome {
                Some(outcome) => return outcome.clone(),
                None => self.landed.wait(&mut outcome),
            }
        }
    }
}

struct Held {
    cache: Cache,
    flights: HashMap<u32, Arc<Flight>>,
}

struct Shared {
    source: Source,
    history: Arc<History>,
    disk: DiskId,
    map: Map,
    /// The number of each row's message.
    numbers: Vec<u32>,
    held: Mutex<Held>,
    spill: Option<Spill>,
    figures: Figures,
}

/// The disk at the point.
pub struct Origin {
    shared: Arc<Shared>,
    runtime: Handle,
    limits: OriginLimits,
    ahead: Mutex<ReadAhead>,
    aheads: Arc<Semaphore>,
    /// For messages on their way.
    budget: Budget,
    stop: Drain,
}

/// Says whether a part of what a message supplies is nearer than the vault, and then reads it from there.
pub type Nearer<'a> = &'a dyn Fn(u32, u64, &mut [u8]) -> Option<io::Result<()>>;

/// What an origin is made of.
pub struct OriginParts {
    /// Where messages are read.
    pub source: Source,
    /// The disk.
    pub disk: DiskId,
    /// Its history.
    pub history: Arc<History>,
    /// How its point is rebuilt.
    pub plan: Plan,
    /// Where opened messages are kept beside the memory.
    pub spill: Option<Spill>,
    /// Bounds.
    pub limits: OriginLimits,
}

impl Origin {
    /// The disk as the plan rebuilds it. Reads of the vault run on `runtime`; the calls here block and are not for its threads.
    #[must_use]
    pub fn new(parts: OriginParts, runtime: Handle, stop: Drain) -> Self {
        let OriginParts { source, disk, history, plan, spill, limits } = parts;
        let map = Map::new(plan);
        let numbers = map.numbers(history.rows.len());
        let held = Mutex::new(Held { cache: Cache::new(limits.memory_bytes / 2), flights: HashMap::new() });
        let figures = Figures::default();
        let shared = Arc::new(Shared { source, history, disk, map, numbers, held, spill, figures });
        let aheads = Arc::new(Semaphore::new(AHEADS_MAX));
        let budget = Budget::new(limits.memory_bytes / 2);
        Self { shared, runtime, limits, ahead: Mutex::default(), aheads, budget, stop }
    }

    /// Which message supplies what.
    #[must_use]
    pub fn map(&self) -> &Map {
        &self.shared.map
    }

    /// The disk's history.
    #[must_use]
    pub fn history(&self) -> &Arc<History> {
        &self.shared.history
    }

    /// Where messages are read.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.shared.source
    }

    /// The disk.
    #[must_use]
    pub fn disk(&self) -> &DiskId {
        &self.shared.disk
    }

    /// What was asked for so far.
    #[must_use]
    pub fn figures(&self) -> &Figures {
        &self.shared.figures
    }

    /// A message as a sink of the fetcher must know it.
    pub(super) fn known(&self, row: usize) -> Known<'_> {
        self.shared.known(row)
    }

    /// The number of a row's message.
    pub(super) fn number(&self, row: usize) -> u32 {
        self.shared.numbers[row]
    }

    /// Fills `buf` from `offset_bytes`, from what is nearer where it is.
    ///
    /// # Errors
    /// [`ReadError`] of the first part that cannot be had, or what is nearer failed.
    pub fn read(&self, offset_bytes: u64, buf: &mut [u8], nearer: Option<Nearer<'_>>) -> io::Result<()> {
        let length_bytes = buf.len() as u64;
        Figures::count(&self.shared.figures.guest_bytes, length_bytes);
        self.read_ahead(offset_bytes, length_bytes, nearer.is_some());
        let (mut wanted, mut waiting): (Vec<u32>, Vec<Run>) = (Vec::new(), Vec::new());
        let (mut step_bytes, step_bytes_max) = (0, self.budget.limit_bytes() / STEP_SHARE);
        for run in self.shared.map.runs(offset_bytes, length_bytes) {
            let from = (run.offset_bytes - offset_bytes) as usize;
            let part = &mut buf[from..from + run.length_bytes as usize];
            let Some((message, _)) = run.source else {
                part.fill(0);
                continue;
            };
            if let Some(read) = nearer.and_then(|nearer| nearer(message, run.offset_bytes, part)) {
                read?;
                continue;
            }
            if !wanted.contains(&message) {
                let bytes = self.shared.on_its_way_bytes(message);
                let full = wanted.len() == STEP_MESSAGES_MAX || step_bytes + bytes > step_bytes_max;
                if full && !wanted.is_empty() {
                    self.step(&wanted, step_bytes, &waiting, offset_bytes, buf)?;
                    wanted.clear();
                    waiting.clear();
                    step_bytes = 0;
                }
                wanted.push(message);
                step_bytes += bytes;
            }
            waiting.push(run);
        }
        Ok(self.step(&wanted, step_bytes, &waiting, offset_bytes, buf)?)
    }

    /// Brings some messages, for which there is room when they take `bytes`, and copies out what was asked of them.
    fn step(
        &self,
        wanted: &[u32],
        bytes: u64,
        runs: &[Run],
        start_bytes: u64,
        buf: &mut [u8],
    ) -> Result<(), ReadError> {
        if wanted.is_empty() {
            return Ok(());
        }
        let loaded = match self.shared.at_hand(wanted) {
            Some(loaded) => loaded,
            None => {
                let _room = self.runtime.block_on(self.budget.claim(bytes));
                self.load(wanted).inspect_err(|_| Figures::count(&self.shared.figures.failed, 1))?
            }
        };
        for run in runs {
            let Some((message, at)) = run.source else { continue };
            let Some(bytes) = wanted.iter().position(|one| *one == message).map(|at| &loaded[at]) else { continue };
            let (from, length) = ((run.offset_bytes - start_bytes) as usize, run.length_bytes as usize);
            buf[from..from + length].copy_from_slice(&bytes[at as usize..at as usize + length]);
        }
        Ok(())
    }

    /// What these messages supply. A vault that is away is waited for within the patience.
    fn load(&self, wanted: &[u32]) -> Result<Vec<Bytes>, ReadError> {
        let started = Instant::now();
        loop {
            let error = match self.load_once(wanted) {
                Ok(loaded) => return Ok(loaded),
                Err(error) => error,
            };
            let away = matches!(&error, ReadError::Store(error) if error.fault() == Fault::Retry);
            if !away || self.stop.started() || started.elapsed() >= self.limits.patience {
                return Err(error);
            }
            tracing::warn!(disk = %self.shared.disk, error = chain_text(&error), "the guest waits for the vault");
            std::thread::sleep(AGAIN_PAUSE);
        }
    }

    fn load_once(&self, wanted: &[u32]) -> Result<Vec<Bytes>, ReadError> {
        let (found, landing) = self.shared.look(wanted);
        let mut missing = landing.numbers();
        missing.retain(|message| match self.shared.spilled(*message) {
            Some(bytes) => {
                landing.land(*message, Ok(bytes));
                false
            }
            None => true,
        });
        if !missing.is_empty() {
            self.runtime.block_on(bring(&Arc::new(landing), &missing, &self.fetch_limits()));
        }
        found.into_iter().map(Found::wait).collect()
    }

    /// Brings the first message as a guest's first read does, for a test that counts.
    #[cfg(test)]
    pub(super) async fn bring_first(&self) {
        let (_, landing) = self.shared.look(&[0]);
        let missing = landing.numbers();
        bring(&Arc::new(landing), &missing, &self.fetch_limits()).await;
        assert!(self.shared.held.lock().cache.has(0), "it is there");
    }

    fn fetch_limits(&self) -> FetchLimits {
        // One worker: what is waited for is a message or two, and other requests have workers of their own.
        FetchLimits { memory_bytes: READ_BYTES_MAX, jobs: self.limits.jobs, workers: 1 }
    }

    /// Brings what comes next, without waiting for it.
    fn read_ahead(&self, offset_bytes: u64, length_bytes: u64, has_nearer: bool) {
        let disk_bytes = self.shared.map.plan().disk_bytes;
        let Some(range) = self.ahead.lock().note(offset_bytes, length_bytes, disk_bytes) else { return };
        // While the whole disk is copied anyway, reading ahead would read it twice.
        let place = if has_nearer { None } else { Arc::clone(&self.aheads).try_acquire_owned().ok() };
        let Some(place) = place else { return };
        let next = self.shared.map.messages_in(range, AHEAD_MESSAGES_MAX);
        let bytes = next.iter().map(|message| self.shared.on_its_way_bytes(*message)).sum();
        let Some(room) = self.budget.try_claim(bytes) else { return };
        let landing = self.shared.claim(&next);
        let missing = landing.numbers();
        if missing.is_empty() || self.stop.started() {
            return;
        }
        let limits = self.fetch_limits();
        self.runtime.spawn(async move {
            bring(&Arc::new(landing), &missing, &limits).await;
            drop((place, room));
        });
    }
}

/// A message that was looked for.
enum Found {
    Here(Bytes),
    Coming(Arc<Flight>),
}

impl Found {
    fn wait(self) -> Result<Bytes, ReadError> {
        match self {
            Self::Here(bytes) => Ok(bytes),
            Self::Coming(flight) => flight.wait(),
        }
    }
}

impl Shared {
    /// What these messages supply, if memory has all of them.
    fn at_hand(&self, wanted: &[u32]) -> Option<Vec<Bytes>> {
        let mut held = self.held.lock();
        wanted.iter().map(|message| held.cache.get(*message)).collect()
    }

    /// Looks for messages; those that nobody brings yet are the caller's to land.
    fn look(self: &Arc<Self>, wanted: &[u32]) -> (Vec<Found>, Landing) {
        let (mut found, mut mine) = (Vec::with_capacity(wanted.len()), HashMap::new());
        let mut held = self.held.lock();
        for &message in wanted {
            if let Some(bytes) = held.cache.get(message) {
                found.push(Found::Here(bytes));
                continue;
            }
            let flight = held.flights.entry(message).or_insert_with(|| {
                let flight = Arc::new(Flight::default());
                mine.insert(message, Arc::clone(&flight));
                flight
            });
            found.push(Found::Coming(Arc::clone(flight)));
        }
        drop(held);
        (found, Landing { shared: Arc::clone(self), flights: Mutex::new(mine) })
    }

    /// Takes over to bring those of the messages that are neither at hand nor on their way.
    fn claim(self: &Arc<Self>, wanted: &[u32]) -> Landing {
        let mut mine = HashMap::new();
        let mut held = self.held.lock();
        for &message in wanted {
            let at_hand = held.cache.has(message) || self.spill.as_ref().is_some_and(|spill| spill.has(message));
            if !at_hand && !held.flights.contains_key(&message) {
                let flight = Arc::new(Flight::default());
                held.flights.insert(message, Arc::clone(&flight));
                mine.insert(message, flight);
            }
        }
        drop(held);
        Landing { shared: Arc::clone(self), flights: Mutex::new(mine) }
    }

    /// What a message takes until it has landed: as it is stored, unpacked, and what is taken of it.
    fn on_its_way_bytes(&self, message: u32) -> u64 {
        let meta = &self.history.rows[self.map.message(message).row].message;
        u64::from(meta.stored_bytes) + u64::from(meta.plain_bytes) + self.map.supplied_bytes(message)
    }

    fn spilled(&self, message: u32) -> Option<Bytes> {
        self.spill.as_ref()?.get(message, &self.map.message(message).owned)
    }

    fn known(&self, row: usize) -> Known<'_> {
        let meta = &self.history.rows[row].message;
        let disk_bytes = self.history.span_of(meta.epoch).map_or(u64::MAX, |span| span.segment.size_bytes);
        Known { disk: &self.disk, disk_bytes, meta }
    }
}

/// Reads messages from the vault and lands them.
async fn bring(landing: &Arc<Landing>, missing: &[u32], limits: &FetchLimits) {
    let shared = &landing.shared;
    let reads = shared.map.reads(&shared.history, missing);
    Figures::count(&shared.figures.requests, reads.len() as u64);
    Figures::count(&shared.figures.vault_bytes, reads.iter().map(|read| read.length_bytes).sum());
    let vault = &shared.source.vault;
    if let Err(error) = fetch::run(vault.store(), vault.id(), reads, landing, limits).await {
        landing.land_all(&ReadError::Store(Arc::new(error)));
    }
}

/// The messages that one bringer has taken over. Whatever becomes of it, all of them land.
struct Landing {
    shared: Arc<Shared>,
    flights: Mutex<HashMap<u32, Arc<Flight>>>,
}

impl Landing {
    /// What has not landed yet, in order.
    fn numbers(&self) -> Vec<u32> {
        let mut numbers: Vec<u32> = self.flights.lock().keys().copied().collect();
        numbers.sort_unstable();
        numbers
    }

    fn land(&self, message: u32, outcome: Result<Bytes, ReadError>) {
        let Some(flight) = self.flights.lock().remove(&message) else { return };
        let mut held = self.shared.held.lock();
        if let Ok(bytes) = &outcome {
            held.cache.put(message, bytes.clone());
        }
        held.flights.remove(&message);
        drop(held);
        flight.land(outcome);
    }

    fn land_all(&self, error: &ReadError) {
        for message in self.numbers() {
            self.land(message, Err(error.clone()));
        }
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.land_all(&ReadError::GivenUp);
    }
}

impl Sink for Landing {
    fn source(&self) -> &Source {
        &self.shared.source
    }

    fn message(&self, row: usize) -> Known<'_> {
        self.shared.known(row)
    }

    fn opened(&self, message: &MessageUse, opened: &Opened<'_>) -> ControlFlow<()> {
        let bytes = Bytes::from(supplied(message, opened));
        let number = self.shared.numbers[message.row];
        Figures::count(&self.shared.figures.messages, 1);
        if let Some(spill) = &self.shared.spill {
            spill.put(number, &message.owned, &bytes);
        }
        self.land(number, Ok(bytes));
        ControlFlow::Continue(())
    }

    fn damaged(&self, row: usize, damage: Damage) -> ControlFlow<()> {
        self.land(self.shared.numbers[row], Err(ReadError::Damaged(Arc::new(damage))));
        ControlFlow::Continue(())
    }
}

/// The bytes that a message supplies, one range after the other.
fn supplied(message: &MessageUse, opened: &Opened<'_>) -> Vec<u8> {
    let length = message.owned.iter().map(|owned| owned.length_bytes as usize).sum();
    let mut bytes = Vec::with_capacity(length);
    for owned in &message.owned {
        // The plan was made from the same rows that the message was just checked against.
        let data = opened.extent(owned.seq, owned.extent).unwrap_or_default();
        let start = owned.skip_bytes as usize;
        let Some(data) = data.get(start..start + owned.length_bytes as usize) else {
            unreachable!("an owned range lies inside its extent")
        };
        bytes.extend_from_slice(data);
    }
    bytes
}
