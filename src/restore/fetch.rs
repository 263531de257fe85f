//! Reading messages back: ranged reads ahead of the work under a byte budget, opened on worker threads.
//!
//! ```text
//!  reads ─► claim bytes ─► GET range (up to `jobs` at a time) ─► bounded queue ─► tg-cpu-N: open, check ─► sink
//!             ▲                                                                          │
//!             └──────────────────── the claim is dropped with the bytes ─────────────────┘
//! ```
//!
//! What fails is told to the sink by name and range, and everything else goes on. A failure that is no damage (the store
//! is away, access is denied) stops the run: going on would only repeat it.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::damage::Damage;
use super::open::{MessagePlace, Opened, Scratch};
use super::plan::{MessageUse, RangedRead};
use super::source::Source;
use crate::fault::{self, Classify, Fault};
use crate::flow::{Budget, BudgetGuard};
use crate::types::{DiskId, Id128};
use crate::vault::index::MessageMeta;
use crate::vault::store::{GetError, VaultStore};

/// Default bytes of sealed data held in memory.
pub const MEMORY_BYTES_DEFAULT: u64 = 256 << 20;
/// Default reads in flight: enough to hide the latency of a blob store at some hundred MiB/s.
pub const JOBS_DEFAULT: usize = 16;
/// Reads that wait for a worker, per worker. The budget bounds the bytes; this only keeps the order near the plan's.
const QUEUE_PER_WORKER: usize = 2;

/// Keys of disks that are read at the same time for one read: messages that a keeper moved may come from many lanes.
const KEYS_AT_ONCE: usize = 8;

/// How much to use.
#[derive(Clone, Copy, Debug)]
pub struct FetchLimits {
    /// Bytes of sealed data in memory.
    pub memory_bytes: u64,
    /// Reads in flight.
    pub jobs: usize,
    /// Worker threads.
    pub workers: usize,
}

impl Default for FetchLimits {
    fn default() -> Self {
        let workers = std::thread::available_parallelism().map_or(2, usize::from);
        Self { memory_bytes: MEMORY_BYTES_DEFAULT, jobs: JOBS_DEFAULT, workers }
    }
}

/// One message as the sink knows it.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Its disk.
    pub disk: &'a DiskId,
    /// Size of the disk in the message's epoch.
    pub disk_bytes: u64,
    /// The index's words.
    pub meta: &'a MessageMeta,
}

/// Who knows the messages and takes what comes. Called from the worker threads.
pub trait Sink: Send + Sync + 'static {
    /// Where messages are read and with what they open.
    fn source(&self) -> &Source;
    /// Whether a message that cannot be read where it was planned may be read where else it stands. Who looks at every place has no use for that.
    fn anywhere(&self) -> bool {
        true
    }
    /// A message by its row.
    fn message(&self, row: usize) -> Known<'_>;
    /// Takes an opened message. Break stops the run.
    fn opened(&self, message: &MessageUse, opened: &Opened<'_>) -> ControlFlow<()>;
    /// Takes note of damage.
    fn damaged(&self, row: usize, damage: Damage) -> ControlFlow<()>;
}

/// Why a run stopped early though nothing was found damaged.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The store failed.
    #[error(transparent)]
    Get(#[from] GetError),
    /// A worker could not be started.
    #[error("a worker thread could not be started")]
    Thread(#[source] std::io::Error),
}

impl Classify for FetchError {
    fn fault(&self) -> Fault {
        match self {
            Self::Get(error) => error.fault(),
            Self::Thread(_) => Fault::Fatal,
        }
    }
}

struct Fetched {
    read: RangedRead,
    bytes: Bytes,
    _claim: Arc<BudgetGuard>,
}

/// Reads and opens everything in `reads`. Returns when all is done, the sink broke off, or the store failed.
///
/// # Errors
/// [`FetchError`] if the store failed for another reason than a missing or short object.
pub async fn run<S: Sink>(
    store: &VaultStore,
    vault: Id128,
    reads: Vec<RangedRead>,
    sink: &Arc<S>,
    limits: &FetchLimits,
) -> Result<(), FetchError> {
    let (sender, receiver) = mpsc::channel(limits.workers * QUEUE_PER_WORKER);
    let receiver = Arc::new(Mutex::new(receiver));
    let mut workers = Vec::new();
    for at in 0..limits.workers {
        let (receiver, sink) = (Arc::clone(&receiver), Arc::clone(sink));
        let thread = std::thread::Builder::new().name(format!("tg-cpu-{at}"));
        workers.push(thread.spawn(move || work(vault, &receiver, sink.as_ref())).map_err(FetchError::Thread)?);
    }
    // The workers' end of the queue must vanish with the last worker, or a send would wait for ever.
    drop(receiver);
    let result = feed(store, reads, sink, limits, &sender).await;
    drop(sender);
    let joined = tokio::task::spawn_blocking(move || workers.into_iter().map(std::thread::JoinHandle::join).collect());
    let joined: Vec<_> = joined.await.unwrap_or_default();
    if let Some(panic) = joined.into_iter().find_map(Result::err) {
        std::panic::resume_unwind(panic);
    }
    result
}

/// Keeps up to `jobs` reads going until all are queued. Each is a task of its own: what comes is taken in on all cores, also
/// while the queue is full.
async fn feed<S: Sink>(
    store: &VaultStore,
    reads: Vec<RangedRead>,
    sink: &Arc<S>,
    limits: &FetchLimits,
    sender: &mpsc::Sender<Fetched>,
) -> Result<(), FetchError> {
    let mut flying = JoinSet::new();
    let result = feed_from(&mut flying, store, reads, sink, limits, sender).await;
    // Also of those that nobody waits for any more none holds the sink when this returns.
    flying.shutdown().await;
    result
}

/// Reads that are under way.
type Flying = JoinSet<Result<Vec<Fetched>, GetError>>;

async fn feed_from<S: Sink>(
    flying: &mut Flying,
    store: &VaultStore,
    reads: Vec<RangedRead>,
    sink: &Arc<S>,
    limits: &FetchLimits,
    sender: &mpsc::Sender<Fetched>,
) -> Result<(), FetchError> {
    let budget = Budget::new(limits.memory_bytes);
    let mut waiting = reads.into_iter();
    loop {
        while flying.len() < limits.jobs.max(1)
            && let Some(read) = waiting.next()
        {
            let (store, sink, budget) = (store.clone(), Arc::clone(sink), budget.clone());
            flying.spawn(async move {
                let claim = Arc::new(budget.claim(read.length_bytes).await);
                fetch(&store, read, sink.as_ref(), claim).await
            });
        }
        let Some(fetched) = flying.join_next().await else { return Ok(()) };
        let fetched = fetched.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        for fetched in fetched? {
            if sender.send(fetched).await.is_err() {
                // Every worker has stopped: the sink broke off.
                return Ok(());
            }
        }
    }
}

/// One read. If it fails for damage, each of its messages is tried alone, so that the whole ones are not lost with it.
async fn fetch<S: Sink>(
    store: &VaultStore,
    read: RangedRead,
    sink: &S,
    claim: Arc<BudgetGuard>,
) -> Result<Vec<Fetched>, GetError> {
    let path = sink.source().path(read.object);
    let range = read.offset_bytes..read.offset_bytes + read.length_bytes;
    let (found, ready) = tokio::join!(store.get_range(path, range), make_ready(&read, sink));
    ready?;
    match found {
        Ok(bytes) => return Ok(vec![Fetched { read, bytes, _claim: claim }]),
        Err(error) if read.messages.len() == 1 => {
            let what = damage_text(store, path, error, read.offset_bytes + read.length_bytes).await?;
            let row = read.messages[0].row;
            let known = sink.message(row);
            if let Some(bytes) = fetch_elsewhere(store, read.object, known, sink).await? {
                return Ok(vec![Fetched { read, bytes, _claim: claim }]);
            }
            let _ = sink.damaged(row, Damage::message(path.as_ref(), known.disk, known.meta, what));
            return Ok(Vec::new());
        }
        Err(error) => drop(damage_text(store, path, error, read.offset_bytes + read.length_bytes).await?),
    }
    let mut fetched = Vec::new();
    for message in read.messages {
        let meta = sink.message(message.row).meta;
        let single = RangedRead {
            object: read.object,
            offset_bytes: meta.offset_bytes,
            length_bytes: u64::from(meta.stored_bytes),
            messages: vec![message],
        };
        fetched.extend(Box::pin(fetch(store, single, sink, Arc::clone(&claim))).await?);
    }
    Ok(fetched)
}

/// Reads the keys of a read's messages that are not there yet: one for each disk and lane that is met for the first time.
async fn make_ready<S: Sink>(read: &RangedRead, sink: &S) -> Result<(), GetError> {
    let (source, object) = (sink.source(), read.object);
    let known = read.messages.iter().map(|message| sink.message(message.row));
    let missing: Vec<_> = known.filter(|known| !source.is_ready(object, known.disk, known.meta)).collect();
    for some in missing.chunks(KEYS_AT_ONCE) {
        let mut reads = FuturesUnordered::new();
        for known in some {
            reads.push(source.make_ready(object, known.disk, known.meta));
        }
        while let Some(ready) = reads.next().await {
            ready?;
        }
    }
    Ok(())
}

/// A message from another place, if it can be read there. It is the same sealed bytes, so nothing else changes.
async fn fetch_elsewhere<S: Sink>(
    store: &VaultStore,
    object: u32,
    known: Known<'_>,
    sink: &S,
) -> Result<Option<Bytes>, GetError> {
    if !sink.anywhere() {
        return Ok(None);
    }
    for (path, offset_bytes) in sink.source().elsewhere(object, known.disk, known.meta) {
        let end_bytes = offset_bytes + u64::from(known.meta.stored_bytes);
        match store.get_range(path, offset_bytes..end_bytes).await {
            Ok(bytes) => return Ok(Some(bytes)),
            Err(error) => drop(damage_text(store, path, error, end_bytes).await?),
        }
    }
    Ok(None)
}

/// Tells damage from a store that fails: for damage the words for it, otherwise the error again.
async fn damage_text(store: &VaultStore, path: &Path, error: GetError, end_bytes: u64) -> Result<String, GetError> {
    if error.is_not_found() {
        return Ok("the object is missing".to_owned());
    }
    if error.fault() == Fault::Retry {
        return Err(error);
    }
    // Stores answer a range beyond the end in many ways; the size tells what it was.
    match store.inner().head(path).await {
        Ok(meta) if meta.size < end_bytes => {
            Ok(format!("the object is cut short: it has {} bytes, {end_bytes} are needed", meta.size))
        }
        Ok(_) if error.fault() == Fault::Corrupt => Ok(fault::chain_text(&error)),
        _ => Err(error),
    }
}

/// One worker thread: takes what was read until the queue ends or the sink breaks off.
fn work<S: Sink>(vault: Id128, queue: &Mutex<mpsc::Receiver<Fetched>>, sink: &S) {
    let mut scratch = Scratch::default();
    loop {
        // The lock is held while waiting: whoever waits next would wait for the same thing.
        let fetched = queue.lock().blocking_recv();
        let Some(Fetched { read, bytes, _claim }) = fetched else { return };
        // Opened where they lie, unless the store keeps them too.
        let mut bytes = bytes.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        for message in &read.messages {
            if open_one(vault, &read, &mut bytes, message, sink, &mut scratch).is_break() {
                queue.lock().close();
                return;
            }
        }
    }
}

fn open_one<S: Sink>(
    vault: Id128,
    read: &RangedRead,
    bytes: &mut [u8],
    message: &MessageUse,
    sink: &S,
    scratch: &mut Scratch,
) -> ControlFlow<()> {
    let Known { disk, disk_bytes, meta } = sink.message(message.row);
    let (path, sealed) = (sink.source().path(read.object), sink.source().sealed(read.object, disk, meta));
    let key = match sealed.key {
        Ok(key) => key,
        Err(what) => return sink.damaged(message.row, Damage::message(path.as_ref(), disk, meta, &*what)),
    };
    let place = MessagePlace { vault, object: &sealed.object, key: &key, disk, disk_bytes };
    let start = (meta.offset_bytes - read.offset_bytes) as usize;
    let sealed = &mut bytes[start..start + meta.stored_bytes as usize];
    match scratch.open_in_place(&place, meta, sealed) {
        Ok(opened) => sink.opened(message, &opened),
        Err(error) => sink.damaged(message.row, Damage::message(path.as_ref(), disk, meta, error.text())),
    }
}
