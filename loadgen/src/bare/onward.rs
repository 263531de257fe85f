//! What stands behind the floor's journal where it packs as well: CRC, LZ4, AEAD and upload of what was stored.
//!
//! ```text
//!  stored commits ─► CRC, LZ4, seal ─► 16 MiB of it ─► PUT, some at a time
//!       ▲                │
//!       └─ used buffers ─┘
//! ```
//!
//! Messages are of a gateway's size, cut out of a commit as it lies: no record is put to others of its disk.

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use tidegate::fault::chain_text;
use tidegate::flow::Watermark;
use tidegate::limits::{BATCH_BYTES_TARGET, MESSAGE_BYTES_TARGET};
use tidegate::pipeline::codec::{Packer, Packing};
use tidegate::vault::store::VaultStore;
use tidegate::vault::url::create_store;
use tidegate::wire::frame::crc32c;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::Open;
use crate::limit::network::Failure;

/// Stored commits that wait to be packed: as many as a gateway keeps in memory at its default.
const COMMITS_MAX: usize = 16;
/// Requests at a time: a gateway's most on two cores.
const UPLOADS_MAX: usize = 4;
/// Sealed messages that wait for the uploading thread.
const MESSAGES_MAX: usize = 64;
/// Memory for sealed messages is taken by so much, and used again when all of it is uploaded; so many pieces of it are kept.
const SLAB_BYTES: usize = 8 * MESSAGE_BYTES_TARGET;
const SLABS_MAX: usize = 32;
/// Longest that one PUT may take.
const PUT_TIME_MAX: Duration = Duration::from_secs(60);

enum Upload {
    Message(Bytes),
    /// Everything is to be uploaded; what came of it.
    Flush(oneshot::Sender<Result<(), String>>),
}

/// How far it has come.
pub(super) struct Progress {
    packed_bytes: AtomicU64,
    shown: Watermark,
    uploads: mpsc::Sender<Upload>,
}

impl Progress {
    /// Payload that is packed.
    pub(super) fn packed_bytes(&self) -> u64 {
        self.shown.get()
    }

    fn add(&self, bytes: usize) {
        let before = self.packed_bytes.fetch_add(bytes as u64, Ordering::AcqRel);
        self.shown.advance(before + bytes as u64);
    }

    /// Waits until so much is packed, and all of it uploaded.
    pub(super) async fn settle(&self, packed_bytes: u64) -> Result<(), Failure> {
        let mut seen = self.packed_bytes();
        while seen < packed_bytes {
            seen = self.shown.beyond(seen).await;
        }
        let (told, outcome) = oneshot::channel();
        self.uploads.send(Upload::Flush(told)).await.map_err(|_| "nobody uploads any more")?;
        Ok(outcome.await??)
    }
}

/// Takes stored commits; ends when dropped.
pub(super) struct Onward {
    stored: SyncSender<Open>,
    used: Receiver<Open>,
    progress: Arc<Progress>,
}

impl Onward {
    /// Starts a packing thread for each core, and one that uploads to the store at `vault_url`; their names begin with `threads`.
    pub(super) fn start(vault_url: &str, threads: &str) -> Result<Self, Failure> {
        let (stored, waiting) = sync_channel(COMMITS_MAX);
        let (give_back, used) = sync_channel(COMMITS_MAX + 1);
        let (uploads, to_upload) = mpsc::channel(MESSAGES_MAX);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let store = runtime.block_on(create_store(vault_url))?;
        std::thread::Builder::new()
            .name(format!("{threads}put"))
            .spawn(move || runtime.block_on(upload(store, to_upload)))?;
        let waiting = Arc::new(Mutex::new(waiting));
        let progress = Arc::new(Progress { packed_bytes: AtomicU64::new(0), shown: Watermark::default(), uploads });
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            let (waiting, give_back) = (Arc::clone(&waiting), give_back.clone());
            let mut thread = Thread::new(Arc::clone(&progress))?;
            std::thread::Builder::new()
                .name(format!("{threads}pack"))
                .spawn(move || thread.run(&waiting, &give_back))?;
        }
        for _ in 0..COMMITS_MAX {
            give_back.send(Open::new()).map_err(|_| "a buffer is lost")?;
        }
        Ok(Self { stored, used, progress })
    }

    /// Gives a stored commit away and takes an empty one.
    pub(super) fn exchange(&self, commit: Open) -> Result<Open, Failure> {
        self.stored.send(commit).map_err(|_| "nobody packs any more")?;
        Ok(self.used.recv()?)
    }

    pub(super) fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }
}

/// One packing thread.
struct Thread {
    packer: Packer,
    key: LessSafeKey,
    message: Vec<u8>,
    slab: BytesMut,
    /// Full slabs, the oldest first.
    full: VecDeque<BytesMut>,
    progress: Arc<Progress>,
}

impl Thread {
    fn new(progress: Arc<Progress>) -> Result<Self, Failure> {
        let key = UnboundKey::new(&AES_256_GCM, &[7; 32]).map_err(|_| "AES-256-GCM refused")?;
        let (message, slab, full) = (Vec::new(), BytesMut::with_capacity(SLAB_BYTES), VecDeque::new());
        Ok(Self { packer: Packer::default(), key: LessSafeKey::new(key), message, slab, full, progress })
    }

    /// Until nobody stores any more, or nobody uploads.
    fn run(&mut self, waiting: &Mutex<Receiver<Open>>, used: &SyncSender<Open>) {
        loop {
            let next = waiting.lock().recv();
            let Ok(mut commit) = next else { return };
            let stored = &commit.buf[..commit.filled_bytes];
            black_box(crc32c([stored]));
            for plain in stored.chunks(MESSAGE_BYTES_TARGET) {
                let Some(sealed) = self.pack(plain) else { return };
                if self.progress.uploads.blocking_send(Upload::Message(sealed)).is_err() {
                    return;
                }
            }
            self.progress.add(commit.filled_bytes);
            commit.filled_bytes = 0;
            // If whoever stores is gone, what waits is packed still.
            let _ = used.send(commit);
        }
    }

    /// `None` if it cannot be sealed.
    fn pack(&mut self, plain: &[u8]) -> Option<Bytes> {
        let packed_bytes = self.packer.pack_always(Packing::Lz4, plain, 0, &mut self.message);
        let packed_bytes = packed_bytes.filter(|packed_bytes| *packed_bytes < plain.len()).unwrap_or_else(|| {
            self.message[..plain.len()].copy_from_slice(plain);
            plain.len()
        });
        let sealed = &mut self.message[..packed_bytes];
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        let tag = self.key.seal_in_place_separate_tag(nonce, Aad::empty(), sealed).ok()?;
        if self.slab.capacity() < packed_bytes + tag.as_ref().len() {
            self.full.push_back(std::mem::take(&mut self.slab));
            let free = self.full.front_mut().is_some_and(|oldest| oldest.try_reclaim(SLAB_BYTES));
            let oldest = if free || self.full.len() > SLABS_MAX { self.full.pop_front() } else { None };
            self.slab = oldest.filter(|_| free).unwrap_or_else(|| BytesMut::with_capacity(SLAB_BYTES));
        }
        self.slab.extend_from_slice(sealed);
        self.slab.extend_from_slice(tag.as_ref());
        Some(self.slab.split().freeze())
    }
}

/// What is on its way to the store.
struct Uploads {
    store: VaultStore,
    under_way: JoinSet<Result<(), String>>,
    number: u64,
    failed: Option<String>,
}

async fn upload(store: VaultStore, mut messages: mpsc::Receiver<Upload>) {
    let mut uploads = Uploads { store, under_way: JoinSet::new(), number: 0, failed: None };
    let (mut body, mut body_bytes) = (Vec::new(), 0);
    while let Some(next) = messages.recv().await {
        match next {
            Upload::Message(sealed) => {
                body_bytes += sealed.len();
                body.push(sealed);
                if body_bytes >= BATCH_BYTES_TARGET {
                    uploads.put(std::mem::take(&mut body)).await;
                    body_bytes = 0;
                }
            }
            Upload::Flush(told) => {
                if !body.is_empty() {
                    uploads.put(std::mem::take(&mut body)).await;
                    body_bytes = 0;
                }
                while uploads.one_done().await {}
                // Nobody may wait any more.
                let _ = told.send(uploads.failed.clone().map_or(Ok(()), Err));
            }
        }
    }
}

impl Uploads {
    async fn put(&mut self, body: Vec<Bytes>) {
        while self.under_way.len() >= UPLOADS_MAX {
            self.one_done().await;
        }
        self.number += 1;
        let (store, path) = (self.store.clone(), format!("{}", self.number).into());
        self.under_way.spawn(async move {
            let put = store.put_new(&path, body.into_iter().collect(), PUT_TIME_MAX).await;
            put.map_err(|error| chain_text(&error))
        });
    }

    /// Waits for one of them; whether there was one.
    async fn one_done(&mut self) -> bool {
        let Some(done) = self.under_way.join_next().await else { return false };
        if let Err(error) = done.map_err(|error| error.to_string()).and_then(|put| put) {
            self.failed.get_or_insert(error);
        }
        true
    }
}
