//! The store of an old vault: what is there, what is only listed, how long each request takes, and what was asked.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::RwLock;
use tidegate::types::Id128;
use tidegate::vault::names;

use super::Cost;

/// Names of one page of a listing, as Azure gives them.
const PAGE_NAMES: usize = 5000;

/// Batches of one lane that are listed, whether or not they are there.
#[derive(Debug, Clone)]
struct ListedBatches {
    /// Sizes, from batch 1 on.
    sizes: Vec<u32>,
    /// What is told of each but its name and size.
    like: ObjectMeta,
}

impl ListedBatches {
    fn listed(&self, lane: Id128) -> Vec<ObjectMeta> {
        let one = |(n, &size): (u64, &u32)| ObjectMeta {
            location: names::batch(lane, n),
            size: u64::from(size),
            ..self.like.clone()
        };
        (1..).zip(&self.sizes).map(one).collect()
    }
}

#[derive(Debug, Default)]
struct Accounts {
    requests: AtomicU64,
    pages: AtomicU64,
    names: AtomicU64,
    bytes: AtomicU64,
    /// The most requests that ended one after the other.
    depth: AtomicU64,
}

impl Accounts {
    /// Counts a request that takes so long; what it gives counts once it has ended.
    async fn request(&self, latency: Duration) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let place = self.depth.load(Ordering::Relaxed) + 1;
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        self.depth.fetch_max(place, Ordering::Relaxed);
    }
}

/// The store: another one below, which holds what there is to read.
#[derive(Debug, Clone)]
pub struct OldStore {
    inner: Arc<dyn ObjectStore>,
    batches: Arc<RwLock<BTreeMap<Id128, ListedBatches>>>,
    accounts: Arc<Accounts>,
    latency: Duration,
}

impl OldStore {
    /// Over another store, without any latency.
    #[must_use]
    pub fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self { inner, batches: Arc::default(), accounts: Arc::default(), latency: Duration::ZERO }
    }

    /// The same place with accounts of its own, and this time for each request.
    #[must_use]
    pub fn measured(&self, latency: Duration) -> Self {
        Self { accounts: Arc::default(), latency, ..self.clone() }
    }

    /// From now on the batches of a lane are listed with these sizes, and as old as its registration.
    ///
    /// # Errors
    /// If that is not there.
    pub async fn list_batches(&self, lane: Id128, sizes: Vec<u32>) -> Result<()> {
        let head = GetOptions { head: true, ..GetOptions::default() };
        let like = self.inner.get_opts(&names::lane(lane), head).await?.meta;
        self.batches.write().insert(lane, ListedBatches { sizes, like });
        Ok(())
    }

    /// What was asked so far, in so much time.
    #[must_use]
    pub fn cost(&self, time: Duration) -> Cost {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Accounts { requests, pages, names, bytes, depth } = &*self.accounts;
        Cost {
            requests: get(requests),
            pages: get(pages),
            names: get(names),
            bytes: get(bytes),
            depth: get(depth),
            seconds: super::seconds(time),
        }
    }

    /// The batches of a lane, if these are asked for and it is one of those that are listed so.
    fn asked(&self, prefix: &Path) -> Option<Vec<ObjectMeta>> {
        let lane = names::lane_of_batch(&prefix.clone().join("0")).filter(|lane| names::batches(*lane) == *prefix)?;
        Some(self.batches.read().get(&lane)?.listed(lane))
    }
}

impl fmt::Display for OldStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an old vault in {}", self.inner)
    }
}

#[async_trait]
impl ObjectStore for OldStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.accounts.request(self.latency).await;
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.accounts.request(self.latency).await;
        let is_head = options.head;
        let found = self.inner.get_opts(location, options).await?;
        if !is_head {
            self.accounts.bytes.fetch_add(found.range.end - found.range.start, Ordering::Relaxed);
        }
        Ok(found)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (accounts, latency) = (Arc::clone(&self.accounts), self.latency);
        let counted = locations.then(move |location| {
            let accounts = Arc::clone(&accounts);
            async move {
                accounts.request(latency).await;
                location
            }
        });
        self.inner.delete_stream(counted.boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (accounts, latency) = (Arc::clone(&self.accounts), self.latency);
        let listed = prefix.and_then(|prefix| self.asked(prefix));
        let below = match listed {
            Some(listed) => stream::iter(listed.into_iter().map(Ok)).boxed(),
            None => self.inner.list(prefix),
        };
        // A page at a time, also where there is nothing, as a listing over the net gives it.
        let pages = stream::unfold((below.chunks(PAGE_NAMES), true), move |(mut pages, is_first)| {
            let accounts = Arc::clone(&accounts);
            async move {
                let page = pages.next().await.or(is_first.then(Vec::new))?;
                accounts.request(latency).await;
                accounts.pages.fetch_add(1, Ordering::Relaxed);
                accounts.names.fetch_add(page.len() as u64, Ordering::Relaxed);
                Some((Ok::<_, object_store::Error>(stream::iter(page)), (pages, false)))
            }
        });
        pages.try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.accounts.request(self.latency).await;
        self.accounts.pages.fetch_add(1, Ordering::Relaxed);
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use object_store::ObjectStoreExt;
    use object_store::memory::InMemory;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_listing_takes_a_request_for_each_page_and_gives_what_is_not_there() {
        let store = OldStore::new(Arc::new(InMemory::new()));
        let lane = Id128([0x2a; 16]);
        store.put(&names::lane(lane), "lane".into()).await.expect("memory");
        store.list_batches(lane, vec![7; 12_001]).await.expect("the lane is there");
        let measured = store.measured(Duration::from_millis(10));
        let started = tokio::time::Instant::now();
        let all: Vec<_> = measured.list(Some(&names::batches(lane))).try_collect().await.expect("a listing");
        assert_eq!((all.len(), all[12_000].size), (12_001, 7));
        assert_eq!(all[12_000].location, names::batch(lane, 12_001));
        assert_eq!(started.elapsed(), Duration::from_millis(30));
        let none: Vec<_> = measured.list(Some(&names::pins())).try_collect().await.expect("a listing");
        assert!(none.is_empty());
        measured.get(&names::lane(lane)).await.expect("it is there");
        let cost = measured.cost(started.elapsed());
        assert_eq!((cost.requests, cost.pages, cost.names, cost.bytes, cost.depth), (5, 4, 12_001, 4, 5));
        assert_eq!(store.cost(Duration::ZERO).requests, 1, "the put");
    }
}
