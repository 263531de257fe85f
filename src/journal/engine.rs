//! Puts a journal together on any backend: replay, shards, helper thread, shard threads; and takes it apart.

use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::depot::{self, Depot, Prepared, ShardFiles, shard_dir};
use super::disk::{BufPool, Disk, Files};
use super::error::OpenError;
use super::model::{Damage, JournalConfig};
use super::replay::{ShardReplay, replay_shard};
use super::runs::Runs;
use super::shard::{Shard, ShardParts, Sizes};
use super::space::{LevelRule, SpaceBoard};
use super::writer::Writer;
use crate::fault::chain_text;
use crate::flow::{Clock, Strand, simulated};
use crate::limits::{BLOCK_BYTES, COMMIT_BYTES_MAX};
use crate::types::Id128;

/// A running journal.
pub struct Engine {
    /// The shards.
    pub shards: Vec<Arc<Shard>>,
    /// The space board.
    pub space: Arc<SpaceBoard>,
    depot: Arc<Depot>,
    threads: Mutex<Threads>,
}

#[derive(Default)]
struct Threads {
    writers: Vec<Strand>,
    helper: Option<Strand>,
}

/// What replay found in all shards.
#[derive(Debug, Default)]
pub struct Replayed {
    /// Records and marks.
    pub runs: Runs,
    /// What is wrong.
    pub damage: Vec<Damage>,
    /// Valid commits.
    pub commits: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Replayed {
    fn add(&mut self, shard: &mut ShardReplay) {
        self.runs.merge(std::mem::take(&mut shard.runs));
        self.damage.append(&mut shard.damage);
        self.commits += shard.commits;
        self.bytes += shard.bytes;
    }
}

/// What the thread of one shard gets.
pub struct WriterSeed {
    /// The shard.
    pub shard: Arc<Shard>,
    /// Its segments come here.
    pub prepared: mpsc::Receiver<Prepared>,
    /// Number of its next commit.
    pub next_number: u64,
}

impl WriterSeed {
    /// Runs the writer on `disk` to its end; `run` brings the runtime.
    pub fn run<D: Disk>(self, disk: D, clock: Arc<dyn Clock>, run: impl FnOnce(Work) -> io::Result<()>) {
        let guard = EndGuard(Arc::clone(&self.shard));
        if let Err(error) = run(Box::pin(self.work(disk, clock))) {
            guard.0.fail(format!("the runtime of shard {} cannot be made: {error}", guard.0.index));
        }
    }

    /// The writer's work on `disk` to its end.
    pub async fn work<D: Disk>(self, disk: D, clock: Arc<dyn Clock>) {
        // Whatever ends this, a panic too, nobody waits for it afterwards.
        let shard = Arc::clone(&self.shard);
        let _guard = EndGuard(Arc::clone(&shard));
        let writer = Writer::new(self.shard, disk, self.prepared, clock, self.next_number);
        match writer.run().await {
            Ok(()) => shard.end(),
            Err(error) => shard.fail(chain_text(&error)),
        }
    }
}

/// The writer as a future for the runtime of its thread.
pub type Work = std::pin::Pin<Box<dyn Future<Output = ()>>>;

struct EndGuard(Arc<Shard>);

impl Drop for EndGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(format!("the thread of shard {} panicked", self.0.index));
        }
    }
}

impl Sizes {
    /// The sizes for a configuration.
    #[must_use]
    pub fn new(config: &JournalConfig) -> Self {
        // A quarter, so that a segment holds several commits also where it is small.
        let quarter = (config.segment_bytes / 4) as usize & !(BLOCK_BYTES - 1);
        let commit_bytes = quarter.min(COMMIT_BYTES_MAX);
        let half_bytes = (config.cache_bytes / u64::from(config.shards) / 2) as usize;
        Self {
            commit_bytes,
            mark_bytes: commit_bytes / 16,
            reserve_bytes: (config.segment_bytes / 64).max(BLOCK_BYTES as u64) & !(BLOCK_BYTES as u64 - 1),
            cache_bytes: half_bytes,
            pinned_bytes: half_bytes,
        }
    }
}

/// Reads what all shards hold, each on a thread of its own; in place inside a simulation.
///
/// # Errors
/// [`OpenError::Io`] of the first shard that fails.
pub fn replay(
    files: &dyn Files,
    dir: &Path,
    journal: Id128,
    shards: u16,
    pool: &BufPool,
) -> Result<Vec<ShardReplay>, OpenError> {
    if simulated() {
        let replay = |shard| replay_shard(files, &shard_dir(dir, shard), (journal, shard), pool);
        return (0..shards).map(replay).collect();
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..shards)
            .map(|shard| {
                let path = shard_dir(dir, shard);
                scope.spawn(move || replay_shard(files, &path, (journal, shard), pool))
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| match thread.join() {
                Ok(replayed) => replayed,
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect()
    })
}

/// Replays and starts a journal on `files`; `spawn` starts the writer of a shard.
///
/// # Errors
/// [`OpenError::Io`].
pub fn start(
    config: &JournalConfig,
    files: &Arc<dyn Files>,
    journal: Id128,
    spawn: impl Fn(WriterSeed) -> io::Result<Strand>,
) -> Result<(Engine, Replayed), OpenError> {
    let sizes = Sizes::new(config);
    for shard in 0..config.shards {
        let dir = shard_dir(&config.dir, shard);
        files.create_dir(&dir).map_err(OpenError::io("make", dir))?;
    }
    let pool = BufPool::new(sizes.commit_bytes, usize::from(config.shards));
    let mut replays = replay(&**files, &config.dir, journal, config.shards, &pool)?;
    let mut replayed = Replayed::default();
    replays.iter_mut().for_each(|shard| replayed.add(shard));
    let files_max = config.capacity_bytes / config.segment_bytes;
    let stock = keep_fitting(config, &**files, &mut replays, files_max)?;
    let rule = LevelRule::new(config.capacity_bytes, config.high_water_percent, config.low_water_percent);
    let space = Arc::new(SpaceBoard::new(rule, config.shards));
    let depot = Arc::new(Depot::new(config.segment_bytes, files_max, stock));

    let mut shards = Vec::new();
    let mut senders = Vec::new();
    let mut threads = Threads::default();
    for (index, replay) in replays.into_iter().enumerate() {
        let index = index as u16;
        let shard = Arc::new(Shard::new(ShardParts {
            index,
            dir: shard_dir(&config.dir, index),
            journal,
            sizes,
            depot: Arc::clone(&depot),
            space: Arc::clone(&space),
            files: Arc::clone(files),
            ledger: replay.ledger,
        }));
        // A shard asks for one segment at a time.
        let (sender, prepared) = mpsc::channel(1);
        senders.push(sender);
        let seed = WriterSeed { shard: Arc::clone(&shard), prepared, next_number: replay.next_number };
        threads.writers.push(spawn(seed).map_err(OpenError::io("start a thread for", &config.dir))?);
        shards.push(shard);
    }
    let helper = depot::start(&depot, Arc::clone(files), Arc::clone(&space), senders);
    threads.helper = Some(helper.map_err(OpenError::io("start a thread for", &config.dir))?);
    Ok((Engine { shards, space, depot, threads: Mutex::new(threads) }, replayed))
}

/// Keeps the free files that the configuration still has a use for, and removes the others.
fn keep_fitting(
    config: &JournalConfig,
    files: &dyn Files,
    replays: &mut [ShardReplay],
    files_max: u64,
) -> Result<Vec<ShardFiles>, OpenError> {
    let mut count: u64 = replays.iter().map(|replay| replay.held).sum();
    let mut stock = Vec::new();
    for (index, replay) in replays.iter_mut().enumerate() {
        let mut free = Vec::new();
        for freed in replay.freed.drain(..) {
            if freed.file_bytes == config.segment_bytes && count < files_max {
                count += 1;
                free.push(freed.path);
            } else {
                files.remove(&freed.path).map_err(OpenError::io("remove", &freed.path))?;
            }
        }
        let dir = shard_dir(&config.dir, index as u16);
        stock.push(ShardFiles { dir, free, held: replay.held, next_segment: replay.next_segment });
    }
    Ok(stock)
}

impl Engine {
    /// Ends the threads: the shards' first, which may still want a segment. Blocks.
    pub fn close(&self) {
        for shard in &self.shards {
            shard.close();
        }
        let mut threads = self.threads.lock();
        // A panic was reported as the shard's failure.
        threads.writers.drain(..).for_each(Strand::join);
        self.depot.stop();
        threads.helper.take().into_iter().for_each(Strand::join);
    }

    /// As [`Self::close`], without blocking.
    pub async fn stop(&self) {
        for shard in &self.shards {
            shard.close();
        }
        let Threads { writers, helper } = std::mem::take(&mut *self.threads.lock());
        for strand in writers {
            let _ = strand.ended().await;
        }
        self.depot.stop();
        if let Some(strand) = helper {
            let _ = strand.ended().await;
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.close();
    }
}
