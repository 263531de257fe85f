//! A store that fails as told, and batches to put into it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::{BoxStream, StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;

use super::batch::{BatchBuilder, BatchHeader, FinishedBatch};
use super::index::{MessageMeta, RecordMeta};
use super::store::VaultStore;
use super::{InitOptions, Vault, names};
use crate::keys::{CatalogKey, Identity};
use crate::pipeline::BatchObject;
use crate::pipeline::codec::Codec;
use crate::types::{Chain, DiskId, Epoch, Id128, Micros, RecordKind, Seq};

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is carried out.
    Good,
    /// It is carried out after a while.
    Slow(Duration),
    /// It is carried out, but the answer is an error as of a broken connection.
    AnswerLost,
    /// It is carried out, but no answer ever comes.
    Hang,
    /// It is not carried out, and answered by this status.
    Status(u16),
}

type Plan = Box<dyn FnMut(&'static str, &Path) -> Fate + Send>;

/// The store: memory, and a plan of what fails.
pub(crate) struct FaultStore {
    inner: Arc<InMemory>,
    plan: Arc<Mutex<Plan>>,
    puts: Mutex<(usize, usize)>,
    times: Arc<Times>,
}

/// The store's clock, as far as it is set forward, and by how much it was when each object appeared.
#[derive(Default)]
struct Times {
    ahead_micros: Arc<AtomicI64>,
    appeared: Mutex<BTreeMap<Path, i64>>,
}

impl Times {
    fn note(&self, path: &Path) {
        self.appeared.lock().entry(path.clone()).or_insert(self.ahead_micros.load(Ordering::Relaxed));
    }

    fn shift(&self, meta: &mut ObjectMeta) {
        let ahead_micros = self.appeared.lock().get(&meta.location).copied().unwrap_or(0);
        let by = Duration::from_micros(ahead_micros.unsigned_abs());
        meta.last_modified = if ahead_micros < 0 { meta.last_modified - by } else { meta.last_modified + by };
    }
}

impl fmt::Debug for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultStore")
    }
}

impl fmt::Display for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultStore")
    }
}

impl FaultStore {
    /// A store where nothing fails yet.
    pub(crate) fn new() -> Arc<Self> {
        let plan: Plan = Box::new(|_, _| Fate::Good);
        let (inner, plan, times) = (Arc::new(InMemory::new()), Arc::new(Mutex::new(plan)), Arc::default());
        Arc::new(Self { inner, plan, puts: Mutex::default(), times })
    }

    /// By how many microseconds the store's clock is ahead of this machine's: whoever sets it sets the clock.
    pub(crate) fn ahead_micros(&self) -> &Arc<AtomicI64> {
        &self.times.ahead_micros
    }

    /// From now on `plan` decides, by operation (`put`, `get`, `delete`) and name.
    pub(crate) fn plan(&self, plan: impl FnMut(&'static str, &Path) -> Fate + Send + 'static) {
        *self.plan.lock() = Box::new(plan);
    }

    /// Most PUTs that were under way at the same time.
    pub(crate) fn puts_at_once_max(&self) -> usize {
        self.puts.lock().1
    }

    /// Stores something without any plan.
    pub(crate) async fn inner_put(&self, path: &Path, content: &'static str) {
        self.inner.put_opts(path, content.into(), PutOptions::default()).await.expect("memory");
    }

    /// As the place of a vault.
    pub(crate) fn place(self: &Arc<Self>) -> VaultStore {
        VaultStore::new(Arc::clone(self) as _, "fault://test")
    }
}

/// Errors as the Azure client makes them.
fn answer(status: u16, path: &Path) -> Error {
    let text = format!("Server returned non-2xx status code: {status} Told: <Error><Code>Told</Code></Error>");
    let (path, source) = (path.to_string(), text.into());
    match status {
        401 => Error::Unauthenticated { path, source },
        403 => Error::PermissionDenied { path, source },
        404 => Error::NotFound { path, source },
        409 => Error::AlreadyExists { path, source },
        _ => Error::Generic { store: "FaultStore", source },
    }
}

fn broken() -> Error {
    let source = std::io::Error::from(std::io::ErrorKind::TimedOut);
    Error::Generic { store: "FaultStore", source: Box::new(source) }
}

#[async_trait]
impl ObjectStore for FaultStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        {
            let mut puts = self.puts.lock();
            puts.0 += 1;
            puts.1 = puts.1.max(puts.0);
        }
        let fate = (self.plan.lock())("put", location);
        // What is not stored gets no time: names are never used for two objects.
        if !matches!(fate, Fate::Status(_)) {
            self.times.note(location);
        }
        // Let others start, or nothing would ever overlap.
        tokio::task::yield_now().await;
        let result = match fate {
            Fate::Status(status) => Err(answer(status, location)),
            Fate::Good => self.inner.put_opts(location, payload, options).await,
            Fate::Slow(pause) => {
                tokio::time::sleep(pause).await;
                self.inner.put_opts(location, payload, options).await
            }
            Fate::AnswerLost => self.inner.put_opts(location, payload, options).await.and(Err(broken())),
            Fate::Hang => {
                self.inner.put_opts(location, payload, options).await?;
                std::future::pending().await
            }
        };
        self.puts.lock().0 -= 1;
        result
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let fate = (self.plan.lock())("get", location);
        match fate {
            Fate::Status(status) => Err(answer(status, location)),
            Fate::AnswerLost | Fate::Hang => Err(broken()),
            Fate::Good | Fate::Slow(_) => {
                let mut found = self.inner.get_opts(location, options).await?;
                self.times.shift(&mut found.meta);
                Ok(found)
            }
        }
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        unreachable!("objects are written by single PUTs")
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (inner, plan, times) = (Arc::clone(&self.inner), Arc::clone(&self.plan), Arc::clone(&self.times));
        let delete = move |location: Path| {
            let (inner, fate) = (Arc::clone(&inner), (plan.lock())("delete", &location));
            if !matches!(fate, Fate::Status(_)) {
                times.appeared.lock().remove(&location);
            }
            async move {
                match fate {
                    Fate::Status(status) => Err(answer(status, &location)),
                    Fate::AnswerLost | Fate::Hang => inner.delete(&location).await.and(Err(broken())),
                    Fate::Good | Fate::Slow(_) => inner.delete(&location).await.map(|()| location),
                }
            }
        };
        locations.and_then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let times = Arc::clone(&self.times);
        let shift = move |mut meta: ObjectMeta| {
            times.shift(&mut meta);
            meta
        };
        self.inner.list(prefix).map_ok(shift).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        unreachable!("objects are never copied")
    }
}

/// A vault in `store`, its catalog key and its identity.
pub(crate) async fn vault_in(store: VaultStore) -> (Vault, CatalogKey, Identity) {
    let identity = Identity::generate();
    let options = InitOptions { recipients: vec![identity.recipient()], now: Micros(1_800_000_000_000_000) };
    let (vault, key) = Vault::init(store, &options).await.expect("an empty store");
    (vault, key, identity)
}

pub(crate) fn disk(name: &str) -> DiskId {
    DiskId::new(name).expect("a valid name")
}

/// Records `first..=last` of epoch 1 of a disk, as a message's row with `filler` bytes of "sealed" content.
pub(crate) fn message(first: u64, last: u64) -> MessageMeta {
    let record = |seq| RecordMeta {
        seq: Seq(seq),
        label: Micros(1_800_000_000_000_000 + seq),
        uncertainty_micros: 10,
        kind: RecordKind::Copy,
        group: Id128::NONE,
        name: None,
        extents: Vec::new(),
    };
    MessageMeta {
        epoch: Epoch(1),
        first: Seq(first),
        last: Seq(last),
        offset_bytes: 0,
        stored_bytes: 0,
        plain_bytes: 128 * (last - first + 1) as u32,
        codec: Codec::Raw,
        chain_before: None,
        chain_last: Chain([last as u8; 32]),
        received_first: Micros(1_800_000_000_000_000),
        received_last: Micros(1_800_000_000_000_000),
        origin: None,
        records: (first..=last).map(record).collect(),
    }
}

/// A batch of a lane that holds `parts`, each with one message of `filler_bytes`.
pub(crate) fn batch(
    vault: &Vault,
    lane: Id128,
    n: u64,
    confirmed_through: u64,
    parts: &[(&DiskId, u64, u64)],
    filler_bytes: usize,
) -> BatchObject {
    let mut builder = BatchBuilder::new(BatchHeader { vault: vault.id(), lane, n });
    for &(disk, first, last) in parts {
        builder.push(disk, message(first, last), vec![n as u8; filler_bytes.max(256)].into());
    }
    let name = names::batch_name(lane, n);
    let key = vault.catalog_key().expect("opened with its key");
    let FinishedBatch { body, index, sealed_index } = builder.finish(key, &name, confirmed_through).expect("sealed");
    let records = index.record_count();
    let plain_bytes = index.disks.iter().flat_map(|part| &part.messages).map(|one| u64::from(one.plain_bytes)).sum();
    BatchObject { vault: vault.id(), lane, n, name, body, index, sealed_index, records, plain_bytes }
}
