//! Third stage: the first durable home of a record, on the gateway's own disk.
//!
//! ```text
//!  sessions ──append──► open commit ──► tg-journal-N ──► segment files, O_DIRECT
//!   (copy once)          (per shard)     write · sync        │
//!                                          │                 │ unreleased commits
//!                     watermarks ◄─────────┤                 ▼
//!                     (journaled)          └─► cache ──► CommitReader ──► pipeline … vault
//!                                                                              │
//!                     helper ◄── free files ◄── books ◄────── vaulted ◄────────┘
//!                     tg-journal-prep: zero, rename, hand over
//! ```
//!
//! # Invariants
//! - A watermark rises only after the sync of the commit that holds the record has returned without an error.
//! - `journaled ≥ vaulted ≥ released` for each disk and epoch: a segment goes only when everything in it is vaulted or
//!   given up, and when the marks that say so are durable.
//! - A disk always belongs to the same shard, so its records stand in the journal in the order in which they came.
//! - Group commit: whatever waits when a write is issued shares it, its sync, and one wake-up per disk.
//! - Memory is bounded: per shard one commit open and one being written, and the cache: half of it for commits that no
//!   reader has had, half for those whose records are kept ([`body`]). The backlog is on the disk, and a reader's place
//!   in it is a few numbers.
//! - Writing and syncing are two operations. `O_DSYNC` would save one hand-over per commit, but after a failure it
//!   leaves open which part of a group is durable, and it costs a flush for each piece of a write that was cut short.
//!
//! # What it does not own
//! Whether a record may be written (the wire checks agent, epoch, order and CRC), what happens to it afterwards (the
//! pipeline), and which epoch is the newest (the vault). It trusts nothing it reads back: every record is checked
//! against the CRC that came with it over the wire.
//!
//! # Full
//! Full is an ordinary state. Above the high-water mark [`Level::High`] asks senders to slow down; when a shard gets
//! no further segment, its appends wait and the level is [`Level::Full`]; when something is vaulted, it goes on. The
//! last part of each segment is kept for marks, so that space can return also then.
//!
//! # Shutdown
//! [`Journal::close`] refuses further appends, writes what was taken and the marks, ends the readers when they have
//! everything, and joins the threads. Dropping the last handle does the same.
//!
//! # Crash
//! [`Journal::open`] reads every segment again. The valid prefix of each counts; a torn tail is cut; damage inside is
//! reported and stepped over. Files are synced before they are read, so what is found is durable. (Where O_DIRECT is
//! not possible, that holds unless a sync failed before: the page cache may then show what the platter does not have.) Writing goes on in a
//! new segment. After a failed write or sync the commit goes to another segment; a disk that fails three in a row
//! fails the journal ([`Journal::failure`]), and the process has to stop: what was not acked is sent again.

mod body;
pub(crate) mod depot;
mod directory;
pub mod disk;
mod engine;
mod error;
pub mod format;
pub mod inspect;
mod ledger;
mod model;
mod reader;
pub(crate) mod replay;
mod runs;
pub mod salvage;
mod shard;
mod space;
mod walk;
mod writer;

use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;

use metrics::gauge;
use tracing::{info, warn};

use crate::flow::{Clock, Strand, SystemClock, watch};
use crate::limits::BLOCK_BYTES;
use crate::telemetry::names;
use crate::types::{Chain, DiskId, Epoch, Micros, Seq, check_name};
use directory::Directory;
use disk::preflight::{PreflightError, preflight};
use disk::{BufPool, Files, ring};
use engine::{Engine, Replayed, WriterSeed};

pub use disk::BackendChoice;
pub use disk::preflight::{Backend, Preflight};
pub use error::{AppendError, OpenError, ReadError};
pub use model::*;
pub use reader::CommitReader;

/// Most shards: more threads than disks in one machine have queues gain nothing.
pub const SHARDS_MAX: u16 = 64;
/// Smallest segment: a commit is a quarter of it and must hold the largest record.
pub const SEGMENT_BYTES_MIN: u64 = 8 << 20;

/// An open journal. Cheap to clone.
#[derive(Clone)]
pub struct Journal {
    // Before the directory: its threads end before the lock is given back.
    engine: Arc<Engine>,
    _directory: Option<Arc<Directory>>,
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Journal({} shards, {:?})", self.engine.shards.len(), self.space())
    }
}

impl Journal {
    /// Opens or creates a journal: preflight, lock, identity, replay, threads. Blocks.
    ///
    /// # Errors
    /// [`OpenError`] names the directory and the next step.
    pub fn open(config: &JournalConfig, gateway_id: &str) -> Result<(Self, ReplayReport), OpenError> {
        check_config(config, gateway_id)?;
        let mut directory = Directory::open(&config.dir, gateway_id, config.shards)?;
        let backend = preflight(&config.dir, config.backend).map_err(|error| match error {
            PreflightError::NoRing(why) => OpenError::NoRing { dir: config.dir.display().to_string(), why },
            PreflightError::Io(error) => OpenError::io("write to", &config.dir)(error),
        })?;
        info!(dir = %config.dir.display(), %backend, "journal backend chosen");
        for known in [Backend::Ring, Backend::Std] {
            let used = if known == backend.backend { 1.0 } else { 0.0 };
            gauge!(names::JOURNAL_BACKEND_INFO, "backend" => known.as_str()).set(used);
        }
        let files: Arc<dyn Files> = Arc::new(disk::std::StdFiles { direct: backend.direct });
        let before = change_shards(config, &mut directory, &*files)?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let spawn = |seed| spawn(seed, &backend, Arc::clone(&clock));
        let (engine, mut replayed) = engine::start(config, &files, directory.identity.journal, spawn)?;
        replayed.runs.merge(before);
        let report = report(replayed, backend);
        let journal = Self { engine: Arc::new(engine), _directory: Some(Arc::new(directory)) };
        Ok((journal, report))
    }

    /// Opens or creates a journal on a simulated disk, whose identity it takes: no preflight, no lock. Inside a
    /// simulation everything runs as tasks of the surrounding `LocalSet`.
    ///
    /// # Errors
    /// [`OpenError::Io`], as the disk's faults will have it.
    #[cfg(any(test, feature = "sim"))]
    pub fn open_on(
        config: &JournalConfig,
        disk: &disk::sim::SimDisk,
        clock: &Arc<dyn Clock>,
    ) -> Result<(Self, ReplayReport), OpenError> {
        let files: Arc<dyn Files> = Arc::new(disk.clone());
        let spawn = |seed: WriterSeed| {
            let (name, disk, clock) = (format!("tg-journal-{}", seed.shard.index), disk.clone(), Arc::clone(clock));
            Strand::start(&name, move || seed.work(disk, clock))
        };
        let (engine, replayed) = engine::start(config, &files, disk.identity(), spawn)?;
        let (backend, kernel) = (Backend::Std, "simulated".into());
        let backend = Preflight { backend, direct: false, kernel, sync_micros: 0, remarks: Vec::new() };
        Ok((Self { engine: Arc::new(engine), _directory: None }, report(replayed, backend)))
    }

    /// Which shard has the records of a disk.
    #[must_use]
    pub fn shard_of(&self, disk: &DiskId) -> usize {
        format::crc32c(disk.as_str().as_bytes()) as usize % self.engine.shards.len()
    }

    fn shard(&self, disk: &DiskId) -> &shard::Shard {
        &self.engine.shards[self.shard_of(disk)]
    }

    /// Takes a record: waits for room; on return its bytes stand in the open commit. `entry.journaled` is raised
    /// once that commit is written and synced. Safe to cancel: a cancelled append took nothing.
    ///
    /// # Errors
    /// [`AppendError`]; the record was not taken.
    pub fn append(&self, entry: Entry<'_>) -> impl Future<Output = Result<(), AppendError>> + Send {
        self.shard(entry.disk).append(entry)
    }

    /// Notes that a disk's records up to `seq` are vaulted: segments that nothing else needs are released, and the
    /// mark is written with later commits. Does not block.
    pub fn vaulted(&self, disk: &DiskId, epoch: Epoch, seq: Seq, chain: Chain) {
        self.shard(disk).vaulted(disk, epoch, seq, chain);
    }

    /// Gives up what is still here of an epoch that was fenced or forked away: readers skip it, space returns.
    pub fn forget(&self, disk: &DiskId, epoch: Epoch) {
        self.shard(disk).forget(disk, epoch);
    }

    /// How full it is.
    #[must_use]
    pub fn space(&self) -> Space {
        self.engine.space.space()
    }

    /// When the oldest record was received that is not vaulted, at the latest; none if everything is.
    #[must_use]
    pub fn oldest(&self) -> Option<Micros> {
        self.engine.shards.iter().filter_map(|shard| shard.book.lock().ledger.oldest()).min()
    }

    /// The level and its changes.
    #[must_use]
    pub fn space_changed(&self) -> watch::Receiver<Level> {
        self.engine.space.changes()
    }

    /// The first failure after which the journal takes nothing more, if there was one. The process should stop.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.engine.shards.iter().find_map(|shard| shard.failure())
    }

    /// A new cursor at the oldest unreleased commit of `shard`.
    ///
    /// # Panics
    /// If `shard` is not below [`Self::shard_count`].
    #[must_use]
    pub fn reader(&self, shard: u16) -> CommitReader {
        CommitReader::new(Arc::clone(&self.engine.shards[usize::from(shard)]))
    }

    /// Number of shards.
    #[must_use]
    pub fn shard_count(&self) -> u16 {
        self.engine.shards.len() as u16
    }

    /// Stops: writes and syncs what was appended, and the marks, and joins the threads. Blocks. Later appends are
    /// refused, readers get what is left and then [`ReadError::Closed`]. Calling it twice is harmless.
    pub fn close(&self) {
        self.engine.close();
    }

    /// As [`Self::close`], waiting without blocking.
    pub async fn stop(&self) {
        self.engine.stop().await;
    }
}

fn report(replayed: Replayed, backend: Preflight) -> ReplayReport {
    for damage in &replayed.damage {
        if damage.kind == DamageKind::TornTail {
            info!(%damage, "journal tail cut");
        } else {
            warn!(%damage, "journal is damaged; everything else in it is kept");
        }
    }
    let Replayed { runs, damage, commits, bytes } = replayed;
    ReplayReport { runs: runs.finish(), damage, commits, bytes, backend }
}

fn spawn(seed: WriterSeed, backend: &Preflight, clock: Arc<dyn Clock>) -> io::Result<Strand> {
    let Preflight { backend, direct, .. } = *backend;
    let name = format!("tg-journal-{}", seed.shard.index);
    let thread = std::thread::Builder::new().name(name).spawn(move || match backend {
        Backend::Ring => seed.run(ring::RingDisk { direct }, clock, ring::run),
        Backend::Std => seed.run(disk::std::StdDisk { direct }, clock, disk::std::run),
    });
    thread.map(Strand::thread)
}

fn check_config(config: &JournalConfig, gateway_id: &str) -> Result<(), OpenError> {
    let refuse = |what: String| Err(OpenError::Config { what });
    if let Err(error) = check_name(gateway_id) {
        return refuse(format!("gateway id: {error}"));
    }
    if !(1..=SHARDS_MAX).contains(&config.shards) {
        return refuse(format!("shards = {}: use 1 to {SHARDS_MAX}", config.shards));
    }
    let segment_bytes = config.segment_bytes;
    if segment_bytes < SEGMENT_BYTES_MIN || !segment_bytes.is_multiple_of(BLOCK_BYTES as u64) {
        return refuse(format!(
            "segment size {segment_bytes}: use a multiple of {BLOCK_BYTES} of at least {SEGMENT_BYTES_MIN}"
        ));
    }
    let least = 2 * u64::from(config.shards) * segment_bytes;
    if config.capacity_bytes < least {
        let capacity = config.capacity_bytes;
        return refuse(format!("capacity {capacity}: two segments for each shard need at least {least} bytes"));
    }
    let (low, high) = (config.low_water_percent, config.high_water_percent);
    if low >= high || high > 100 {
        return refuse(format!("water marks {low} and {high} percent: the low one must be below the high one"));
    }
    Ok(())
}

/// Another number of shards puts disks into other shards: only a drained journal can follow. Its files are removed;
/// what it knows of vaulted records goes into this start's report.
fn change_shards(
    config: &JournalConfig,
    directory: &mut Directory,
    files: &dyn Files,
) -> Result<runs::Runs, OpenError> {
    let (found, expected) = (directory.identity.shards, config.shards);
    if found == expected {
        return Ok(runs::Runs::default());
    }
    let pool = BufPool::new(shard::Sizes::new(config).commit_bytes, usize::from(found));
    let replays = engine::replay(files, &config.dir, directory.identity.journal, found, &pool)?;
    if replays.iter().any(|replay| !replay.ledger.is_drained()) {
        return Err(OpenError::ShardCount { dir: config.dir.display().to_string(), found, expected });
    }
    for shard in 0..found {
        let dir = depot::shard_dir(&config.dir, shard);
        for file in files.list(&dir).map_err(OpenError::io("list", &dir))? {
            let path = dir.join(file.name);
            files.remove(&path).map_err(OpenError::io("remove", &path))?;
        }
    }
    directory.set_shards(expected)?;
    let mut runs = runs::Runs::default();
    replays.into_iter().for_each(|replay| runs.merge(replay.runs));
    Ok(runs)
}

#[cfg(test)]
mod tests;
