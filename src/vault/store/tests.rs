//! A store that does not do what it says.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use futures_util::stream::{self, BoxStream};
use object_store::{
    Attributes, CopyOptions, GetResultPayload, ListResult, MultipartUpload, PutMultipartOptions, PutResult, Result,
};

use super::*;

const PIECE_BYTES: usize = 64 << 10;

/// Says that every object has `size_bytes`, sends without end, and lists without end.
#[derive(Debug)]
struct Liar {
    size_bytes: u64,
    sent_bytes: Arc<AtomicU64>,
}

impl fmt::Display for Liar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Liar")
    }
}

fn meta(location: Path, size: u64) -> ObjectMeta {
    ObjectMeta { location, last_modified: Default::default(), size, e_tag: None, version: None }
}

#[async_trait]
impl ObjectStore for Liar {
    async fn put_opts(&self, _: &Path, _: PutPayload, _: PutOptions) -> Result<PutResult> {
        Err(object_store::Error::NotImplemented { operation: "put".into(), implementer: "Liar".into() })
    }
    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(object_store::Error::NotImplemented { operation: "put".into(), implementer: "Liar".into() })
    }
    async fn get_opts(&self, location: &Path, _: GetOptions) -> Result<GetResult> {
        let sent_bytes = Arc::clone(&self.sent_bytes);
        let piece = Bytes::from(vec![7; PIECE_BYTES]);
        let endless = stream::repeat_with(move || {
            sent_bytes.fetch_add(PIECE_BYTES as u64, Ordering::Relaxed);
            Ok(piece.clone())
        });
        Ok(GetResult {
            payload: GetResultPayload::Stream(endless.boxed()),
            meta: meta(location.clone(), self.size_bytes),
            range: 0..self.size_bytes,
            attributes: Attributes::new(),
            extensions: Default::default(),
        })
    }
    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        locations
    }
    fn list(&self, _: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        stream::iter((0_u64..).map(|n| Ok(meta(Path::from(format!("b/{n}")), 1)))).boxed()
    }
    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        Ok(ListResult { common_prefixes: Vec::new(), objects: Vec::new(), extensions: Default::default() })
    }
    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(object_store::Error::NotImplemented { operation: "copy".into(), implementer: "Liar".into() })
    }
}

fn liar(size_bytes: u64) -> (VaultStore, Arc<AtomicU64>) {
    let sent_bytes = Arc::default();
    (VaultStore::new(Arc::new(Liar { size_bytes, sent_bytes: Arc::clone(&sent_bytes) }), "a liar"), sent_bytes)
}

#[tokio::test]
async fn an_object_that_is_larger_than_the_store_says_is_read_no_further_than_its_bound() {
    let (store, sent_bytes) = liar(100);
    let error = store.get(&Path::from("vault"), 1 << 20).await.expect_err("endless");
    assert!(matches!(error, GetError::TooLarge { .. }), "{error}");
    assert!(sent_bytes.load(Ordering::Relaxed) <= (1 << 20) + PIECE_BYTES as u64);
    let (store, sent_bytes) = liar(1 << 40);
    let error = store.get(&Path::from("vault"), 1 << 20).await.expect_err("huge");
    assert!(matches!(error, GetError::TooLarge { size_bytes, .. } if size_bytes == 1 << 40), "{error}");
    assert_eq!(sent_bytes.load(Ordering::Relaxed), 0, "not even begun");
}

#[tokio::test]
async fn a_range_of_other_length_than_asked_for_is_no_answer() {
    let (store, sent_bytes) = liar(1 << 20);
    let error = store.get_range(&Path::from("b"), 0..100_000).await.expect_err("endless");
    assert!(matches!(error, GetError::Short { .. }), "{error}");
    assert!(sent_bytes.load(Ordering::Relaxed) <= 3 * PIECE_BYTES as u64);
}

#[tokio::test]
async fn a_range_behind_the_end_of_an_object_that_was_cut_is_damage_in_a_directory_and_in_memory() {
    let dir = tempfile::tempdir().expect("a folder");
    let local = object_store::local::LocalFileSystem::new_with_prefix(dir.path()).expect("a store");
    let stores: [Arc<dyn ObjectStore>; 2] = [Arc::new(local), Arc::new(object_store::memory::InMemory::new())];
    for raw in stores {
        let (path, store) = (Path::from("b"), VaultStore::new(Arc::clone(&raw), "a store"));
        raw.put(&path, PutPayload::from_static(b"0123456789")).await.expect("put");
        let error = store.get_range(&path, 20..30).await.expect_err("cut");
        assert!(matches!(error, GetError::Short { have_bytes: 0, .. }), "{error}");
        assert_eq!(crate::fault::Classify::fault(&error), crate::fault::Fault::Corrupt);
        let missing = store.get_range(&Path::from("c"), 20..30).await.expect_err("missing");
        assert!(missing.is_not_found(), "{missing}");
    }
}

#[tokio::test]
async fn a_listing_without_end_is_an_error() {
    let (store, _) = liar(1);
    let error = store.list_up_to(None, 1000).await.expect_err("endless");
    assert!(matches!(error, GetError::Endless { listed_max: 1000, .. }), "{error}");
}
