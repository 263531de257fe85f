//! Reading messages back: ranged reads ahead of the work under a byte budget, opened on worker threads.
//!
//! ```text
//!  reads ─► claim bytes ─► GET range (up to `jobs` at a time) ─► bounded queue ─► tg-cpu-N: open, check ─► sink
//!             ▲                                                                          │
//!             └──────────────────── the claim is dropped with the bytes ─────────────────┘
//! ```
//!
//! What fails is told to the sink by name and range, and everything else goes on. A message that is missing, or does not open, is
//! read where else it stands, if a keeper has moved it. A failure that is no damage (the store is away, access is denied) stops the
//! run: going on would only repeat it.

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

/// A message that does not open where it was planned, and stands elsewhere too. There are at most as many as were planned.
struct Unopened {
    object: u32,
    message: MessageUse,
    what: String,
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
    let join = move || workers.into_iter().map(std::thread::JoinHandle::join).collect::<Vec<_>>();
    // Only a runtime that ends does not join.
    let Ok(joined) = tokio::task::spawn_blocking(join).await else { return result };
    let joined = joined.into_iter().map(|worker| worker.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
    let of_workers: Vec<Option<Vec<Unopened>>> = joined.collect();
    result?;
    if let Some(unopened) = of_workers.into_iter().collect::<Option<Vec<_>>>() {
        open_elsewhere(store, vault, unopened.into_iter().flatten(), sink).await;
    }
    Ok(())
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
    for place in sink.source().elsewhere(object, known.disk, known.meta) {
        if let Some(bytes) = fetch_at(store, place, known.meta).await? {
            return Ok(Some(bytes));
        }
    }
    Ok(None)
}

/// A message from one place, unless it is missing there.
async fn fetch_at(store: &VaultStore, place: (&Path, u64), meta: &MessageMeta) -> Result<Option<Bytes>, GetError> {
    let (path, offset_bytes) = place;
    let end_bytes = offset_bytes + u64::from(meta.stored_bytes);
    match store.get_range(path, offset_bytes..end_bytes).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) => damage_text(store, path, error, end_bytes).await.map(|_| None),
    }
}

/// Opens messages where else they stand, one after the other: there are few, or there is more to mend than time. What opens nowhere is
/// told as the damage that it is where it was planned, also if the store fails elsewhere.
async fn open_elsewhere<S: Sink>(
    store: &VaultStore,
    vault: Id128,
    unopened: impl Iterator<Item = Unopened> + Send,
    sink: &Arc<S>,
) {
    let mut opened_elsewhere = 0_u64;
    for Unopened { object, message, mut what } in unopened {
        let Known { disk, meta, .. } = sink.message(message.row);
        let planned = sink.source().path(object);
        let mut told = None;
        for place in sink.source().elsewhere(object, disk, meta) {
            let bytes = match fetch_at(store, place, meta).await {
                Ok(Some(bytes)) => bytes,
                Ok(None) => continue,
                Err(error) => {
                    what = format!("{what}; where a keeper has put it: {}", fault::chain_text(&error));
                    continue;
                }
            };
            let (at_work, message) = (Arc::clone(sink), message.clone());
            let opening = move || {
                let (sealed, mut scratch) = (&mut BytesMut::from(&bytes[..]), Scratch::default());
                open_one(vault, object, sealed, &message, at_work.as_ref(), &mut scratch)
            };
            match tokio::task::spawn_blocking(opening).await {
                Ok(Ok(flow)) => {
                    if opened_elsewhere == 0 {
                        tracing::warn!(%disk, object = %planned, what, elsewhere = %place.0, "a message was read where a keeper has put it");
                    }
                    opened_elsewhere += 1;
                    told = Some(flow);
                    break;
                }
                Ok(Err(_)) => {}
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                // A runtime that ends.
                Err(_) => return,
            }
        }
        let damaged = || sink.damaged(message.row, Damage::message(planned.as_ref(), disk, meta, what));
        if told.unwrap_or_else(damaged).is_break() {
            return;
        }
    }
    if opened_elsewhere > 1 {
        tracing::warn!(
            messages = opened_elsewhere,
            "so many do not open where they were planned, and were read elsewhere"
        );
    }
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

/// One worker thread: takes what was read until the queue ends or the sink breaks off, and has kept then what is to be read
/// elsewhere; nothing, if the sink broke off.
fn work<S: Sink>(vault: Id128, queue: &Mutex<mpsc::Receiver<Fetched>>, sink: &S) -> Option<Vec<Unopened>> {
    let (mut scratch, mut unopened) = (Scratch::default(), Vec::new());
    loop {
        // The lock is held while waiting: whoever waits next would wait for the same thing.
        let fetched = queue.lock().blocking_recv();
        let Some(Fetched { read, bytes, _claim }) = fetched else { return Some(unopened) };
        // Opened where they lie, unless the store keeps them too.
        let mut bytes = bytes.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        for message in read.messages {
            let Known { disk, meta, .. } = sink.message(message.row);
            let start = (meta.offset_bytes - read.offset_bytes) as usize;
            let sealed = &mut bytes[start..start + meta.stored_bytes as usize];
            let flow = match open_one(vault, read.object, sealed, &message, sink, &mut scratch) {
                Ok(flow) => flow,
                Err(what) => {
                    let source = sink.source();
                    // Without its key it opens nowhere.
                    let has_key = source.sealed(read.object, disk, meta).key.is_ok();
                    if has_key && sink.anywhere() && source.elsewhere(read.object, disk, meta).next().is_some() {
                        unopened.push(Unopened { object: read.object, message, what });
                        continue;
                    }
                    sink.damaged(message.row, Damage::message(source.path(read.object).as_ref(), disk, meta, what))
                }
            };
            if flow.is_break() {
                queue.lock().close();
                return None;
            }
        }
    }
}

/// Opens a message and gives it to the sink; else what is wrong with it.
fn open_one<S: Sink>(
    vault: Id128,
    object: u32,
    sealed: &mut [u8],
    message: &MessageUse,
    sink: &S,
    scratch: &mut Scratch,
) -> Result<ControlFlow<()>, String> {
    let Known { disk, disk_bytes, meta } = sink.message(message.row);
    let as_sealed = sink.source().sealed(object, disk, meta);
    let key = as_sealed.key.map_err(|what| what.to_string())?;
    let place = MessagePlace { vault, object: &as_sealed.object, key: &key, disk, disk_bytes };
    let opened = scratch.open_in_place(&place, meta, sealed).map_err(|error| error.text())?;
    Ok(sink.opened(message, &opened))
}
