//! The blob store as the rest of the vault sees it: few operations, every one counted, timed, bounded in time and with
//! its errors classified. Reads are tried again here; writes of objects are not, because only the uploader knows when.

use std::io::{self, Read, Seek};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, GetResult, GetResultPayload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions,
    PutPayload,
};
use tokio::time::{Instant, timeout};

use super::fault::{BlobCause, BlobError, Passing};
use super::rng::Rng;
use crate::flow::blocking;
use crate::telemetry::names;

/// Time for one small request.
const SMALL_REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Least rate of a read of data, in bytes per second: a whole batch over a slow line takes a few minutes. A small object
/// gets little more than a small request, so that a connection which has died unnoticed holds nobody up for long.
const READ_RATE_MIN: u64 = 128 << 10;
/// Time for a whole listing, which may take thousands of requests.
const LIST_TIMEOUT: Duration = Duration::from_secs(1800);
/// Time between two answers of a listing.
const LIST_STALL: Duration = Duration::from_secs(30);
/// Tries of a request before its error is handed on. With the pauses below some 20 seconds.
const TRIES: u32 = 6;
const PAUSE_MS_MIN: u64 = 200;
const PAUSE_MS_MAX: u64 = 8_000;

fn read_timeout(bytes: u64) -> Duration {
    SMALL_REQUEST_TIMEOUT + Duration::from_secs(bytes / READ_RATE_MIN)
}

/// Everything that a listing gives, as long as it goes on giving.
async fn without_stalls<T>(mut pages: BoxStream<'_, object_store::Result<T>>) -> object_store::Result<Vec<T>> {
    let mut all = Vec::new();
    loop {
        match timeout(LIST_STALL, pages.try_next()).await {
            Ok(Ok(Some(next))) => all.push(next),
            Ok(Ok(None)) => return Ok(all),
            Ok(Err(error)) => return Err(error),
            Err(_) => {
                let source = Box::new(io::Error::from(io::ErrorKind::TimedOut));
                return Err(object_store::Error::Generic { store: "listing", source });
            }
        }
    }
}

/// Most objects of one folder that are taken: eight million batches are what a gateway writes in a day at 1.5 GiB/s, the
/// longest that a lane lives. A store that lists without end is broken or means harm, and would fill the memory.
const LISTED_MAX: usize = 8 << 20;
/// Most objects of the whole vault that are taken, also of all batches and of all disks with their routes: a batch per
/// second of ten gateways for ten months.
const LISTED_ALL_MAX: usize = 256 << 20;

/// An object's name and size, as a listing tells them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Name within the vault.
    pub path: Path,
    /// Size in bytes.
    pub size_bytes: u64,
    /// When it was written, by the store's clock, in microseconds since 1970.
    pub modified_micros: i64,
}

/// A vault's place: a store, rooted at the vault, and how to speak of it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct VaultStore {
    store: Arc<dyn ObjectStore>,
    place: Arc<str>,
    local: Option<Arc<std::path::Path>>,
    requests: Arc<AtomicU64>,
}

impl VaultStore {
    /// Wraps a store whose root is the vault. `place` is shown in errors and must hold no secret.
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>, place: &str) -> Self {
        Self { store, place: place.into(), local: None, requests: Arc::default() }
    }

    /// The same, with the directory that it stands for.
    #[must_use]
    pub(super) fn with_directory(mut self, directory: &std::path::Path) -> Self {
        self.local = Some(directory.into());
        self
    }

    /// How to speak of this place: URL and source of the credential.
    #[must_use]
    pub fn shown(&self) -> &str {
        &self.place
    }

    /// The directory, if the vault is one.
    #[must_use]
    pub fn directory(&self) -> Option<&std::path::Path> {
        self.local.as_deref()
    }

    /// Requests so far, of this place and its clones; a listing counts as one, however many pages it has.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// The store below.
    #[must_use]
    pub fn inner(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    fn error(&self, operation: &'static str, path: &Path, error: &object_store::Error) -> BlobError {
        let mut error = BlobError::new(operation, path.as_ref(), &self.place, error);
        // A directory vault whose directory went away answers like one that lacks the object.
        if error.cause == BlobCause::NotFound && self.local.as_ref().is_some_and(|directory| !directory.is_dir()) {
            error.cause = BlobCause::NoContainer;
        }
        error
    }

    async fn run<T>(
        &self,
        operation: &'static str,
        path: &Path,
        limit: Duration,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, BlobError> {
        let started = Instant::now();
        self.requests.fetch_add(1, Ordering::Relaxed);
        let _running = Running::new(operation);
        let result = match timeout(limit, request).await {
            Ok(result) => result.map_err(|error| self.error(operation, path, &error)),
            Err(_) => Err(BlobError::timeout(operation, path.as_ref(), &self.place, limit)),
        };
        let outcome = result.as_ref().err().map_or("ok", BlobError::outcome);
        metrics::counter!(names::BLOB_REQUESTS, "operation" => operation, "outcome" => outcome).increment(1);
        metrics::histogram!(names::BLOB_REQUEST_SECONDS, "operation" => operation).record(started.elapsed());
        result
    }

    /// One PUT of a whole object, only if nothing has that name. Never tried again here.
    ///
    /// # Errors
    /// [`BlobError`]; [`BlobCause::AlreadyExists`] says nothing about what is stored (see [`super::put`]).
    pub async fn put_new(&self, path: &Path, body: PutPayload, limit: Duration) -> Result<(), BlobError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        self.run("put", path, limit, self.store.put_opts(path, body, options)).await.map(|_| ())
    }

    /// One try to read an object whole, refusing one that is larger than `bytes_max`.
    async fn get_once(&self, path: &Path, bytes_max: u64) -> Result<(Bytes, i64), GetError> {
        let request = async {
            let result = self.store.get_opts(path, GetOptions::default()).await?;
            let (size_bytes, appeared_micros) = (result.meta.size, result.meta.last_modified.timestamp_micros());
            if size_bytes > bytes_max {
                return Ok(Err(size_bytes));
            }
            Ok(collect(result, bytes_max).await?.map(|bytes| (bytes, appeared_micros)))
        };
        match self.run("get", path, read_timeout(bytes_max), request).await? {
            Ok(found) => Ok(found),
            Err(size_bytes) => Err(GetError::TooLarge { object: path.to_string(), size_bytes, bytes_max }),
        }
    }

    /// Reads an object whole; `None` if it is not there.
    ///
    /// # Errors
    /// [`GetError`] after some tries, or at once for a lasting failure or an object above `bytes_max`.
    pub async fn get(&self, path: &Path, bytes_max: u64) -> Result<Option<Bytes>, GetError> {
        Ok(self.get_timed(path, bytes_max).await?.map(|(bytes, _)| bytes))
    }

    /// The same, and when the object appeared, by the store's clock, in microseconds since 1970.
    ///
    /// # Errors
    /// As [`VaultStore::get`].
    pub async fn get_timed(&self, path: &Path, bytes_max: u64) -> Result<Option<(Bytes, i64)>, GetError> {
        match self.again("get", || self.get_once(path, bytes_max)).await {
            Ok(found) => Ok(Some(found)),
            Err(GetError::Blob(error)) if error.cause == BlobCause::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads a range of an object. The range must lie inside the object.
    ///
    /// # Errors
    /// [`GetError`] after some tries; [`GetError::Short`] if fewer bytes came.
    pub async fn get_range(&self, path: &Path, range: Range<u64>) -> Result<Bytes, GetError> {
        let once = || async {
            let request = async {
                let options = GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
                collect(self.store.get_opts(path, options).await?, range.end - range.start).await
            };
            let answer = match self.run("get", path, read_timeout(range.end - range.start), request).await {
                // A range that begins behind the end is refused by each kind of store in its own words: the size tells.
                Err(error) if matches!(error.cause, BlobCause::Status(416) | BlobCause::Other) => {
                    match self.run("head", path, SMALL_REQUEST_TIMEOUT, self.store.head(path)).await {
                        Ok(meta) if meta.size <= range.start => Err(0),
                        _ => return Err(error.into()),
                    }
                }
                answer => answer?,
            };
            let have_bytes = match answer {
                Ok(bytes) if bytes.len() as u64 == range.end - range.start => return Ok(bytes),
                Ok(bytes) => bytes.len() as u64,
                Err(have_bytes) => have_bytes,
            };
            Err(GetError::Short { object: path.to_string(), range: range.clone(), have_bytes })
        };
        self.again("get", once).await
    }

    /// Whether an object is there.
    ///
    /// # Errors
    /// [`GetError`] after some tries.
    pub async fn exists(&self, path: &Path) -> Result<bool, GetError> {
        let once = || async {
            self.run("head", path, SMALL_REQUEST_TIMEOUT, self.store.head(path)).await.map_err(GetError::from)
        };
        match self.again("head", once).await {
            Ok(_) => Ok(true),
            Err(GetError::Blob(error)) if error.cause == BlobCause::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// When an object appeared, by the store's clock, in microseconds since 1970; `None` if it is not there.
    ///
    /// # Errors
    /// [`GetError`] after some tries.
    pub async fn modified(&self, path: &Path) -> Result<Option<i64>, GetError> {
        let once = || async {
            self.run("head", path, SMALL_REQUEST_TIMEOUT, self.store.head(path)).await.map_err(GetError::from)
        };
        match self.again("head", once).await {
            Ok(meta) => Ok(Some(meta.last_modified.timestamp_micros())),
            Err(GetError::Blob(error)) if error.cause == BlobCause::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Deletes an object; one that is not there is deleted already. Only the keeper does, and only its credential may.
    ///
    /// # Errors
    /// [`GetError`] after some tries.
    pub async fn delete(&self, path: &Path) -> Result<(), GetError> {
        let once = || async {
            self.run("delete", path, SMALL_REQUEST_TIMEOUT, self.store.delete(path)).await.map_err(GetError::from)
        };
        match self.again("delete", once).await {
            Err(GetError::Blob(error)) if error.cause == BlobCause::NotFound => Ok(()),
            result => result,
        }
    }

    /// All objects below a folder, sorted by name; an absent folder is empty.
    ///
    /// # Errors
    /// [`GetError`] after some tries.
    pub async fn list(&self, folder: Option<&Path>) -> Result<Vec<Listed>, GetError> {
        let grows = [super::names::all_batches(), super::names::disks()];
        let whole = folder.is_none_or(|folder| grows.contains(folder));
        self.list_up_to(folder, if whole { LISTED_ALL_MAX } else { LISTED_MAX }).await
    }

    async fn list_up_to(&self, folder: Option<&Path>, listed_max: usize) -> Result<Vec<Listed>, GetError> {
        let shown = folder.cloned().unwrap_or_default();
        let once = || async {
            let pages = self.store.list(folder).take(listed_max + 1).map_ok(
                |ObjectMeta { location, size, last_modified, .. }| Listed {
                    path: location,
                    size_bytes: size,
                    modified_micros: last_modified.timestamp_micros(),
                },
            );
            let all = without_stalls(pages.boxed());
            self.run("list", &shown, LIST_TIMEOUT, all).await.map_err(GetError::from)
        };
        let mut all = self.again("list", once).await?;
        if all.len() > listed_max {
            return Err(GetError::Endless { folder: shown.to_string(), listed_max });
        }
        all.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(all)
    }

    /// Whether anything at all stands below a folder.
    ///
    /// # Errors
    /// [`GetError`] after some tries.
    pub async fn any(&self, folder: Option<&Path>) -> Result<Option<Path>, GetError> {
        let shown = folder.cloned().unwrap_or_default();
        let once = || async {
            let first = async { self.store.list(folder).next().await.transpose() };
            self.run("list", &shown, SMALL_REQUEST_TIMEOUT, first).await.map_err(GetError::from)
        };
        Ok(self.again("list", once).await?.map(|meta| meta.location))
    }

    /// The names of the folders directly below a folder, sorted.
    ///
    /// # Errors
    /// [`GetError`] after some tries.
    pub async fn folders(&self, folder: &Path) -> Result<Vec<String>, GetError> {
        let once = || async {
            let request = self.store.list_with_delimiter(Some(folder));
            self.run("list", folder, LIST_STALL * 10, request).await.map_err(GetError::from)
        };
        let listed = self.again("list", once).await?;
        let mut names: Vec<_> =
            listed.common_prefixes.iter().filter_map(|path| path.filename().map(str::to_owned)).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Tries what can be asked twice until it succeeds, fails for good, or the tries are used up.
    pub(super) async fn again<T, E, F>(&self, operation: &'static str, mut once: impl FnMut() -> F) -> Result<T, E>
    where
        E: Passing,
        F: Future<Output = Result<T, E>>,
    {
        let mut rng = Rng::from_entropy();
        for attempt in 1.. {
            match once().await {
                Err(error) if attempt < TRIES && error.is_passing() => {
                    metrics::counter!(names::BLOB_RETRIES, "operation" => operation).increment(1);
                    let ceiling_ms = (PAUSE_MS_MIN << attempt).min(PAUSE_MS_MAX);
                    let pause_ms = ceiling_ms / 2 + rng.below(ceiling_ms / 2);
                    tracing::debug!(%error, attempt, pause_ms, "request to the vault is tried again");
                    tokio::time::sleep(Duration::from_millis(pause_ms)).await;
                }
                result => return result,
            }
        }
        unreachable!("the last try returns its result")
    }
}

/// Counts a request for as long as it runs, also when its future is dropped.
struct Running(metrics::Gauge);

impl Running {
    fn new(operation: &'static str) -> Self {
        let gauge = metrics::gauge!(names::BLOB_RUNNING, "operation" => operation);
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// A local file has no opinion of its own, and is read in one go: into memory that is not filled with zeroes first, which would
/// cost a tenth of reading it.
async fn read_local(mut file: std::fs::File, range: Range<u64>) -> object_store::Result<Bytes> {
    let failed = |source| object_store::Error::Generic { store: "directory", source };
    let read = move || {
        let mut bytes = Vec::with_capacity((range.end - range.start) as usize);
        file.seek(io::SeekFrom::Start(range.start))?;
        file.take(range.end - range.start).read_to_end(&mut bytes)?;
        Ok::<_, io::Error>(Bytes::from(bytes))
    };
    match blocking(read).await {
        Ok(read) => read.map_err(|error| failed(error.into())),
        Err(error) => Err(failed(error.into())),
    }
}

/// The bytes of an answer, or how many had come when they were too many: what a store says of the size before need not
/// be what it sends.
async fn collect(answer: GetResult, bytes_max: u64) -> object_store::Result<Result<Bytes, u64>> {
    if let GetResultPayload::File(file, _) = answer.payload {
        return read_local(file, answer.range).await.map(Ok);
    }
    let stated_bytes = answer.range.end.saturating_sub(answer.range.start).min(bytes_max);
    let mut pieces = answer.into_stream();
    let Some(first) = pieces.try_next().await? else { return Ok(Ok(Bytes::new())) };
    let mut have_bytes = first.len() as u64;
    let mut all = Vec::new();
    while let Some(piece) = pieces.try_next().await? {
        have_bytes += piece.len() as u64;
        if have_bytes > bytes_max {
            break;
        }
        if all.is_empty() {
            all.reserve(stated_bytes as usize);
            all.extend_from_slice(&first);
        }
        all.extend_from_slice(&piece);
    }
    if have_bytes > bytes_max {
        return Ok(Err(have_bytes));
    }
    // A single piece is handed on as it is.
    Ok(Ok(if all.is_empty() { first } else { all.into() }))
}

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
pub enum GetError {
    /// The store said so.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// An object is larger than anything that is written under its name.
    #[error("{object} is damaged: it has {size_bytes} bytes, more than the {bytes_max} that such an object may have")]
    TooLarge {
        /// Its name.
        object: String,
        /// Its size.
        size_bytes: u64,
        /// The bound.
        bytes_max: u64,
    },
    /// A listing without end.
    #[error("the listing of {folder:?} goes on after {listed_max} objects: no vault has so many there")]
    Endless {
        /// The folder.
        folder: String,
        /// The bound.
        listed_max: usize,
    },
    /// Other bytes than asked for: the object is shorter than it was, or the store does not keep to the range.
    #[error("{object} gave {have_bytes} bytes for the range {range:?}: it was cut, or the store is broken")]
    Short {
        /// Its name.
        object: String,
        /// The range asked for.
        range: Range<u64>,
        /// Bytes that came.
        have_bytes: u64,
    },
}

impl Passing for GetError {
    fn is_passing(&self) -> bool {
        matches!(self, Self::Blob(error) if error.is_passing())
    }
}

impl GetError {
    /// Whether the object is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Blob(error) if error.cause == BlobCause::NotFound)
    }
}

impl crate::fault::Classify for GetError {
    fn fault(&self) -> crate::fault::Fault {
        match self {
            Self::Blob(error) => error.fault(),
            Self::TooLarge { .. } | Self::Short { .. } | Self::Endless { .. } => crate::fault::Fault::Corrupt,
        }
    }
}

#[cfg(test)]
mod tests;
