//! The blob store: one map for all, and every way in which a real one misbehaves.
//!
//! A PUT is on its way for a while and is applied even if the one who sent it has given up or died meanwhile. Names are
//! taken once: who comes second hears `AlreadyExists`, as `object_store` says it for every 409. A listing shows what
//! was there when it began, and may take long. Deleting and overwriting do not exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::dice::Dice;
use crate::node::EPOCH_MICROS;
use crate::{NodeId, note, trace};

/// PUTs that may be on their way.
const FLYING_MAX: usize = 10_000;

/// How the store behaves. Shares are of a thousand requests.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    /// Shortest answer, in microseconds.
    pub latency: u64,
    /// What may come on top.
    pub jitter: u64,
    /// 500, nothing done.
    pub fails: u32,
    /// 503: slow down.
    pub busy: u32,
    /// 409, though nothing stands there and nothing was stored.
    pub false_conflict: u32,
    /// The PUT is applied, the answer is an error.
    pub answer_lost: u32,
    /// No answer ever comes; a PUT is applied in half of the cases.
    pub hangs: u32,
    /// Takes up to a minute.
    pub crawls: u32,
    /// 403 to everybody.
    pub denied: bool,
}

impl Default for Weather {
    fn default() -> Self {
        Self {
            latency: 5_000,
            jitter: 30_000,
            fails: 0,
            busy: 0,
            false_conflict: 0,
            answer_lost: 0,
            hangs: 0,
            crawls: 0,
            denied: false,
        }
    }
}

/// The store. Clones share it.
#[derive(Clone)]
pub struct Blobs(Arc<Mutex<Inner>>);

struct Inner {
    now: u64,
    dice: Dice,
    weather: Weather,
    objects: BTreeMap<String, Bytes>,
    /// When each object appeared, in simulated microseconds.
    born: BTreeMap<String, u64>,
    flying: BTreeMap<(u64, u64), Put>,
    number: u64,
    /// Nodes that cannot reach the store.
    cut: BTreeSet<NodeId>,
    requests: u64,
}

struct Put {
    path: String,
    body: Bytes,
    answer: oneshot::Sender<bool>,
}

/// What becomes of one request.
enum Fate {
    /// It is carried out: applied after the first time, answered after the second.
    Done(u64, u64),
    /// As before, but the answer is an error.
    AnswerLost(u64, u64),
    /// Applied or not, nobody answers.
    Hangs(bool),
    /// An error, and nothing done.
    Refused(u64, Refusal),
}

#[derive(Clone, Copy)]
enum Refusal {
    Status(u16),
    Denied,
    FalseConflict,
    TimedOut,
}

impl Blobs {
    /// An empty store.
    #[must_use]
    pub fn new(dice: Dice) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            now: 0,
            dice,
            weather: Weather::default(),
            objects: BTreeMap::new(),
            born: BTreeMap::new(),
            flying: BTreeMap::new(),
            number: 0,
            cut: BTreeSet::new(),
            requests: 0,
        })))
    }

    /// A store with the same objects that has nothing to do with this one.
    #[must_use]
    pub fn copy(&self) -> Self {
        let copy = Self::new(Dice::new(0));
        copy.0.lock().objects = self.0.lock().objects.clone();
        copy
    }

    /// Changes its behaviour.
    pub fn set_weather(&self, weather: Weather) {
        self.0.lock().weather = weather;
    }

    /// Cuts a node off, or lets it in again.
    pub fn set_cut(&self, node: NodeId, cut: bool) {
        let mut inner = self.0.lock();
        if cut {
            inner.cut.insert(node)
        } else {
            inner.cut.remove(&node)
        };
    }

    /// Everybody reaches it again.
    pub fn heal(&self) {
        self.0.lock().cut.clear();
    }

    /// Names and sizes of all objects.
    #[must_use]
    pub fn names(&self) -> Vec<(String, usize)> {
        self.0.lock().objects.iter().map(|(name, body)| (name.clone(), body.len())).collect()
    }

    /// When an object appeared, in simulated microseconds.
    #[must_use]
    pub fn born(&self, name: &str) -> Option<u64> {
        self.0.lock().born.get(name).copied()
    }

    /// Changes an object behind everybody's back.
    pub fn alter(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut inner = self.0.lock();
        if let Some(body) = inner.objects.get_mut(name) {
            let mut bytes = body.to_vec();
            change(&mut bytes);
            *body = bytes.into();
        }
    }

    /// Deletes an object, as only a keeper may.
    pub fn remove(&self, name: &str) {
        self.0.lock().objects.remove(name);
    }

    /// Requests so far.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.0.lock().requests
    }

    /// Begins a window: applies the PUTs that have arrived.
    pub fn apply(&self, now: u64) {
        let mut inner = self.0.lock();
        inner.now = now;
        let rest = inner.flying.split_off(&(now + 1, 0));
        for Put { path, body, answer } in std::mem::replace(&mut inner.flying, rest).into_values() {
            let fresh = inner.apply(path, body);
            // Whoever sent it may be gone.
            let _ = answer.send(fresh);
        }
    }

    /// The store as one node sees it, until it is dead.
    #[must_use]
    pub fn of(&self, node: NodeId) -> NodeStore {
        NodeStore { blobs: self.clone(), node: Some(node) }
    }

    /// The store as it is, at once and without faults: for the judge.
    #[must_use]
    pub fn plain(&self) -> NodeStore {
        NodeStore { blobs: self.clone(), node: None }
    }
}

impl Inner {
    fn apply(&mut self, path: String, body: Bytes) -> bool {
        if self.objects.contains_key(&path) {
            return false;
        }
        // Keys of agents are made anew for each run, and certificates are named by their digest.
        match path.split_once("/c/") {
            Some((disk, _)) => note!("stored a certificate of {disk}"),
            None => note!("stored {path}"),
        }
        self.born.insert(path.clone(), self.now);
        self.objects.insert(path, body);
        true
    }

    fn fate(&mut self, node: NodeId, put: bool) -> Fate {
        let (weather, dice) = (self.weather, &mut self.dice);
        self.requests += 1;
        let time = |dice: &mut Dice| weather.latency + dice.below(weather.jitter + 1);
        let (there, back) = (time(dice), time(dice));
        let crawl = if dice.permille(weather.crawls) { dice.below(60_000_000) } else { 0 };
        if self.cut.contains(&node) {
            return if dice.one_in(3) { Fate::Refused(there, Refusal::TimedOut) } else { Fate::Hangs(false) };
        }
        if weather.denied {
            return Fate::Refused(there, Refusal::Denied);
        }
        let thrown = dice.below(1000) as u32;
        let mut limit = weather.fails;
        if thrown < limit {
            return Fate::Refused(there, Refusal::Status(500));
        }
        limit += weather.busy;
        if thrown < limit {
            return Fate::Refused(there, Refusal::Status(503));
        }
        limit += weather.hangs;
        if thrown < limit {
            return Fate::Hangs(dice.one_in(2));
        }
        limit += weather.false_conflict;
        if put && thrown < limit {
            return Fate::Refused(there, Refusal::FalseConflict);
        }
        limit += weather.answer_lost;
        if put && thrown < limit {
            return Fate::AnswerLost(there + crawl, back);
        }
        Fate::Done(there + crawl, back)
    }
}

impl Refusal {
    fn error(self, path: &str) -> Error {
        let path = path.to_owned();
        let text = |text: &str| text.to_owned().into();
        match self {
            Self::Status(status) => Error::Generic {
                store: "sim",
                source: text(&format!("Server returned non-2xx status code: {status} ")),
            },
            Self::Denied => {
                let source = text("Server returned non-2xx status code: 403 <Code>AuthorizationFailure</Code>");
                Error::PermissionDenied { path, source }
            }
            Self::FalseConflict => {
                let source = text("Server returned non-2xx status code: 409 <Code>BlobAlreadyExists</Code>");
                Error::AlreadyExists { path, source }
            }
            Self::TimedOut => {
                Error::Generic { store: "sim", source: Box::new(io::Error::from(io::ErrorKind::TimedOut)) }
            }
        }
    }
}

fn not_found(path: &str) -> Error {
    let source = "Server returned non-2xx status code: 404 <Code>BlobNotFound</Code>".into();
    Error::NotFound { path: path.to_owned(), source }
}

fn unknown(operation: &str) -> Error {
    Error::NotImplemented { operation: operation.to_owned(), implementer: "simulation".to_owned() }
}

async fn sleep(micros: u64) {
    tokio::time::sleep(Duration::from_micros(micros)).await;
}

/// The store as one node sees it.
pub struct NodeStore {
    blobs: Blobs,
    /// None for the judge, whose requests never fail and take no time.
    node: Option<NodeId>,
}

impl fmt::Debug for NodeStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sim")
    }
}

impl fmt::Display for NodeStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sim")
    }
}

impl NodeStore {
    /// Waits as a read does, and returns the time that the answer takes.
    async fn read(&self, path: &str) -> Result<u64> {
        let Some(node) = self.node else { return Ok(0) };
        let fate = self.blobs.0.lock().fate(node, false);
        match fate {
            Fate::Done(there, back) | Fate::AnswerLost(there, back) => {
                sleep(there).await;
                Ok(back)
            }
            Fate::Hangs(_) => std::future::pending().await,
            Fate::Refused(there, refusal) => {
                sleep(there).await;
                Err(refusal.error(path))
            }
        }
    }

    fn fly(&self, path: &str, body: Bytes, after: u64) -> oneshot::Receiver<bool> {
        let (answer, receiver) = oneshot::channel();
        let mut inner = self.blobs.0.lock();
        inner.number += 1;
        if inner.flying.len() < FLYING_MAX {
            // In the sender's time: its window has begun already.
            let place = (trace::now() + after, inner.number);
            inner.flying.insert(place, Put { path: path.to_owned(), body, answer });
        }
        receiver
    }

    async fn put(&self, path: &str, body: Bytes) -> Result<()> {
        let Some(node) = self.node else {
            return if self.blobs.0.lock().apply(path.to_owned(), body) {
                Ok(())
            } else {
                Err(Refusal::FalseConflict.error(path))
            };
        };
        let fate = self.blobs.0.lock().fate(node, true);
        let (fresh, back, lost) = match fate {
            Fate::Done(there, back) => (self.fly(path, body, there).await, back, false),
            Fate::AnswerLost(there, back) => (self.fly(path, body, there).await, back, true),
            Fate::Hangs(applied) => {
                if applied {
                    drop(self.fly(path, body, 20_000));
                }
                std::future::pending().await
            }
            Fate::Refused(there, refusal) => {
                sleep(there).await;
                return Err(refusal.error(path));
            }
        };
        sleep(back).await;
        match fresh {
            _ if lost => Err(Refusal::Status(500).error(path)),
            Ok(true) => Ok(()),
            Ok(false) => Err(Refusal::FalseConflict.error(path)),
            Err(_) => Err(Refusal::Status(503).error(path)),
        }
    }

    fn metas(&self, prefix: &str) -> Vec<ObjectMeta> {
        let inner = self.blobs.0.lock();
        let below = inner.objects.range(prefix.to_owned()..).take_while(|(name, _)| name.starts_with(prefix));
        let born = |name: &str| inner.born.get(name).copied().unwrap_or(0);
        below.map(|(name, body)| meta(name, body.len() as u64, born(name))).collect()
    }
}

fn meta(name: &str, size: u64, born: u64) -> ObjectMeta {
    let location = Path::parse(name).unwrap_or_default();
    let mut meta = ObjectMeta { location, last_modified: Default::default(), size, e_tag: None, version: None };
    // Whole seconds, as HTTP has them.
    meta.last_modified += Duration::from_secs((EPOCH_MICROS + born) / 1_000_000);
    meta
}

fn folder(prefix: Option<&Path>) -> String {
    match prefix {
        Some(prefix) if !prefix.as_ref().is_empty() => format!("{prefix}/"),
        _ => String::new(),
    }
}

#[async_trait]
impl ObjectStore for NodeStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        assert!(options.mode == PutMode::Create, "a vault object is never overwritten: {location}");
        self.put(location.as_ref(), payload.into()).await?;
        Ok(PutResult { e_tag: None, version: None, extensions: Default::default() })
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(unknown("put_multipart"))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let back = self.read(location.as_ref()).await?;
        let (body, born) = {
            let inner = self.blobs.0.lock();
            let born = inner.born.get(location.as_ref()).copied();
            (inner.objects.get(location.as_ref()).cloned(), born.unwrap_or(0))
        };
        sleep_if(back).await;
        let body = body.ok_or_else(|| not_found(location.as_ref()))?;
        let size = body.len() as u64;
        let range = match options.range {
            None => 0..size,
            Some(GetRange::Bounded(range)) if range.start < size => range.start..range.end.min(size),
            Some(GetRange::Offset(start)) if start < size => start..size,
            Some(GetRange::Suffix(length)) => size.saturating_sub(length)..size,
            Some(_) => return Err(Refusal::Status(416).error(location.as_ref())),
        };
        let part = body.slice(range.start as usize..range.end as usize);
        Ok(GetResult {
            payload: GetResultPayload::Stream(stream::once(async move { Ok(part) }).boxed()),
            meta: meta(location.as_ref(), size, born),
            range,
            attributes: Default::default(),
            extensions: Default::default(),
        })
    }

    fn delete_stream(&self, _: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        stream::once(async { Err(unknown("delete")) }).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (prefix, this) = (folder(prefix), Self { blobs: self.blobs.clone(), node: self.node });
        let listed = async move {
            let back = this.read(&prefix).await?;
            let metas = this.metas(&prefix);
            sleep_if(back).await;
            Ok::<_, Error>(metas)
        };
        let pages = stream::once(listed).flat_map(|listed| match listed {
            Ok(metas) => stream::iter(metas.into_iter().map(Ok).collect::<Vec<_>>()),
            Err(error) => stream::iter(vec![Err(error)]),
        });
        pages.boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let prefix = folder(prefix);
        let back = self.read(&prefix).await?;
        let metas = self.metas(&prefix);
        sleep_if(back).await;
        let mut folders = BTreeSet::new();
        let mut objects = Vec::new();
        for meta in metas {
            match meta.location.as_ref()[prefix.len()..].split_once('/') {
                Some((folder, _)) => drop(folders.insert(format!("{prefix}{folder}"))),
                None => objects.push(meta),
            }
        }
        let common_prefixes = folders.iter().map(|name| Path::parse(name).unwrap_or_default()).collect();
        Ok(ListResult { common_prefixes, objects, extensions: Default::default() })
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(unknown("copy"))
    }
}

/// The judge has no clock to sleep on.
async fn sleep_if(micros: u64) {
    if micros > 0 {
        sleep(micros).await;
    }
}
