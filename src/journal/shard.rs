//! One shard as its callers see it: the open commit, the books, the cache of recent commits, and who waits for what.
//!
//! Two locks, never held together: `open` (sessions copy records in; held for one copy) and `book` (readers, marks).
//! Neither is held across an await or a disk operation.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use metrics::counter;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};

use super::body::{CommitBody, PinnedBytes};
use super::depot::Depot;
use super::disk::{AlignedBuf, BufPool, Files};
use super::error::AppendError;
use super::format::{CommitBuilder, Owner};
use super::ledger::{Came, Freed, Ledger};
use super::model::{CommitAt, Entry};
use super::space::SpaceBoard;
use crate::flow::Watermark;
use crate::telemetry::waits::Guard;
use crate::telemetry::{latency, names};
use crate::types::{Chain, DiskId, Epoch, Id128, Micros, Seq};

/// Sizes that follow from the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Largest commit.
    pub commit_bytes: usize,
    /// Part of a commit that records leave to marks.
    pub mark_bytes: usize,
    /// Part of a segment that records leave to marks: what is written when the journal is full.
    pub reserve_bytes: u64,
    /// Memory for commits of one shard that no reader has had yet.
    pub cache_bytes: usize,
    /// Memory for commits whose records are kept.
    pub pinned_bytes: usize,
}

/// What is to be raised when a commit is durable: one per run in it.
#[derive(Debug)]
pub struct Pending {
    pub disk: DiskId,
    pub epoch: Epoch,
    pub last: Seq,
    pub journaled: Arc<Watermark>,
}

/// A commit on its way to the disk.
#[derive(Debug)]
pub struct Batch {
    pub commit: CommitBuilder,
    pub pending: Vec<Pending>,
    /// When each record came, in their order.
    pub received: Vec<Micros>,
    pub records: u64,
    pub record_bytes: u64,
}

#[derive(Debug)]
struct Open {
    batch: Batch,
    closing: bool,
    failed: Option<String>,
}

/// A durable commit that no reader has had yet.
#[derive(Debug)]
pub struct Cached {
    pub at: CommitAt,
    pub body: Arc<CommitBody>,
    pub commit_bytes: usize,
}

/// The part that readers and marks use.
#[derive(Debug, Default)]
pub struct Book {
    pub ledger: Ledger,
    cache: VecDeque<Cached>,
    cached_bytes: usize,
    /// Nothing more will come.
    pub ended: bool,
}

/// What the writer finds when it looks for work.
pub enum Work {
    /// Records to write.
    Batch(Batch),
    /// Only marks, to release what waits for them.
    Marks,
    /// Nothing now.
    Idle,
    /// Nothing ever again.
    Close,
}

/// A shard.
pub struct Shard {
    pub index: u16,
    pub dir: PathBuf,
    pub journal: Id128,
    pub sizes: Sizes,
    pub pool: BufPool,
    pub pinned: Arc<PinnedBytes>,
    pub depot: Arc<Depot>,
    pub space: Arc<SpaceBoard>,
    pub files: Arc<dyn Files>,
    open: Mutex<Open>,
    pub book: Mutex<Book>,
    /// Wakes readers: the book has something new.
    pub news: Notify,
    /// Wakes the writer.
    pub work: Notify,
    /// Wakes those who wait for room in the open commit.
    room: Notify,
    /// Those who wait, in the order in which they came.
    turnstile: Semaphore,
    waiting: AtomicUsize,
    /// Segments released before their notes were durable.
    pub unmarked: AtomicUsize,
}

impl Batch {
    fn new(pool: &BufPool) -> Self {
        Self {
            commit: CommitBuilder::new(pool.take()),
            pending: Vec::new(),
            received: Vec::new(),
            records: 0,
            record_bytes: 0,
        }
    }

    fn push(&mut self, entry: &Entry<'_>, bytes: usize) {
        let (epoch, seq) = (entry.head.epoch, entry.head.seq);
        self.commit.push_record(entry.disk, (epoch, seq), entry.received, entry.body_crc, entry.chunks);
        self.received.push(entry.received);
        self.records += 1;
        self.record_bytes += bytes as u64;
        // Runs of one disk stand together more often than not; a commit has few disks, so a look back is cheap.
        let same = self.pending.iter_mut().rev().find(|pending| {
            pending.epoch == epoch && Arc::ptr_eq(&pending.journaled, entry.journaled) && pending.disk == *entry.disk
        });
        match same {
            Some(pending) => pending.last = pending.last.max(seq),
            None => self.pending.push(Pending {
                disk: entry.disk.clone(),
                epoch,
                last: seq,
                journaled: Arc::clone(entry.journaled),
            }),
        }
    }
}

/// Counts a waiter for as long as it lives, also when its future is dropped.
struct Waiter<'a>(&'a AtomicUsize);

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What a shard is made of.
pub struct ShardParts {
    pub index: u16,
    pub dir: PathBuf,
    pub journal: Id128,
    pub sizes: Sizes,
    pub depot: Arc<Depot>,
    pub space: Arc<SpaceBoard>,
    pub files: Arc<dyn Files>,
    pub ledger: Ledger,
}

/// Buffers that a shard has in turn beside those of which readers keep records: one open, one being written, two for a reader.
const BUFFERS_IN_TURN: usize = 4;

impl Shard {
    pub fn new(parts: ShardParts) -> Self {
        // Those of which records were kept come back several at a time, and are needed again: a fresh one costs a millisecond for its
        // pages and for clearing them.
        let free_max = BUFFERS_IN_TURN + parts.sizes.pinned_bytes / parts.sizes.commit_bytes;
        let pool = BufPool::new(parts.sizes.commit_bytes, free_max);
        let open = Open { batch: Batch::new(&pool), closing: false, failed: None };
        let book = Book { ledger: parts.ledger, ..Book::default() };
        let shard = Self {
            index: parts.index,
            dir: parts.dir,
            journal: parts.journal,
            sizes: parts.sizes,
            pool,
            pinned: PinnedBytes::new(parts.sizes.pinned_bytes),
            depot: parts.depot,
            space: parts.space,
            files: parts.files,
            open: Mutex::new(open),
            book: Mutex::new(book),
            news: Notify::new(),
            work: Notify::new(),
            room: Notify::new(),
            turnstile: Semaphore::new(1),
            waiting: AtomicUsize::new(0),
            unmarked: AtomicUsize::new(0),
        };
        shard.space.set_used(shard.index, shard.book.lock().ledger.used_bytes());
        shard
    }

    /// Whose commits a segment of this shard holds.
    pub fn owner(&self, segment: u64) -> Owner {
        Owner { journal: self.journal, shard: self.index, segment }
    }

    /// Copies a record into the open commit; waits for room, in order of arrival.
    pub async fn append(&self, entry: Entry<'_>) -> Result<(), AppendError> {
        let bytes = self.check_length(&entry)?;
        if self.waiting.load(Ordering::Acquire) == 0 && self.try_append(&entry, bytes)? {
            return Ok(());
        }
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let _waiter = Waiter(&self.waiting);
        let _waits = Guard::JournalRoom.wait();
        // The permit is the head of the queue: a large record is not overtaken for ever by small ones.
        let Ok(_turn) = self.turnstile.acquire().await else { return Err(AppendError::Closed) };
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            // Registered before the look, or room made in between would be missed.
            room.as_mut().enable();
            if self.try_append(&entry, bytes)? {
                return Ok(());
            }
            room.await;
        }
    }

    fn check_length(&self, entry: &Entry<'_>) -> Result<usize, AppendError> {
        let found_bytes: usize = entry.chunks.iter().map(bytes::Bytes::len).sum();
        let wrong = |expected_bytes| AppendError::Length {
            disk: entry.disk.clone(),
            point: entry.head.point(),
            found_bytes,
            expected_bytes,
        };
        if found_bytes != entry.head.record_bytes() {
            return Err(wrong(entry.head.record_bytes()));
        }
        // A row and the header take less than a block.
        let most = self.sizes.commit_bytes - self.sizes.mark_bytes - crate::limits::BLOCK_BYTES;
        if found_bytes > most { Err(wrong(most)) } else { Ok(found_bytes) }
    }

    fn try_append(&self, entry: &Entry<'_>, bytes: usize) -> Result<bool, AppendError> {
        let mut open = self.open.lock();
        if let Some(what) = &open.failed {
            return Err(AppendError::Failed { what: what.clone() });
        }
        if open.closing {
            return Err(AppendError::Closed);
        }
        if !open.batch.commit.fits(entry.disk, bytes, self.sizes.mark_bytes) {
            return Ok(false);
        }
        let was_empty = open.batch.commit.is_empty();
        open.batch.push(entry, bytes);
        drop(open);
        if was_empty {
            self.work.notify_one();
        }
        Ok(true)
    }

    /// What the writer should do next; takes the open commit if there is something in it. For the writer alone.
    pub fn next_work(&self) -> Work {
        let open = self.open.lock();
        let (is_empty, closing) = (open.batch.commit.is_empty(), open.closing);
        drop(open);
        if !is_empty {
            // Without the lock, for which every append waits: it may have to be made. Meanwhile nobody else takes the open commit.
            let fresh = Batch::new(&self.pool);
            let batch = std::mem::replace(&mut self.open.lock().batch, fresh);
            self.room.notify_waiters();
            Work::Batch(batch)
        } else if closing {
            Work::Close
        } else if self.book.lock().ledger.has_releasing() {
            Work::Marks
        } else {
            Work::Idle
        }
    }

    /// Whether [`Self::close`] was called.
    pub fn is_closing(&self) -> bool {
        self.open.lock().closing
    }

    /// An empty commit.
    pub fn empty_batch(&self) -> Batch {
        Batch::new(&self.pool)
    }

    /// Puts the due marks into `batch` as far as they fit, also into the `left_bytes` of the segment.
    pub fn add_marks(&self, batch: &mut Batch, left_bytes: u64) {
        let beyond_bytes = (self.sizes.commit_bytes as u64).saturating_sub(left_bytes) as usize;
        let mut book = self.book.lock();
        // First, so that they stand in the first commit of a segment.
        book.ledger
            .write_notes(|kind, segment, end_bytes| batch.commit.push_note(kind, segment, end_bytes, beyond_bytes));
        book.ledger.write_marks(|mark| {
            let fits = batch.commit.fits(&mark.disk, 32, beyond_bytes);
            if fits {
                batch.commit.push_mark(&mark.disk, (mark.epoch, mark.seq), mark.chain);
            }
            fits
        });
    }

    /// Releases what waits for its marks although they cannot be written. A crash before the next commit then reports
    /// these segments as lost, which costs a fork and no data. Whether there was something to release.
    pub fn release_unmarked(&self) -> bool {
        let mut book = self.book.lock();
        let freed = book.ledger.release_unmarked();
        let used_bytes = book.ledger.used_bytes();
        drop(book);
        if freed.is_empty() {
            return false;
        }
        self.unmarked.fetch_add(freed.len(), Ordering::Relaxed);
        tracing::info!(shard = self.index, segments = freed.len(), "released without room to note it");
        self.release(freed);
        self.space.set_used(self.index, used_bytes);
        true
    }

    /// Enters a commit that is durable at `now`: books, cache, readers, space; then raises the watermarks.
    pub fn committed(&self, at: CommitAt, commit_bytes: usize, mut batch: Batch, now: Micros) {
        let body = self.cache_body(&mut batch, commit_bytes);
        let mut book = self.book.lock();
        let lasts = batch.pending.iter().map(|pending| (&pending.disk, pending.epoch, pending.last));
        let received_first = batch.received.iter().copied().min().unwrap_or(now);
        book.ledger.committed(at, commit_bytes as u64, Came { records: batch.records, first: received_first }, lasts);
        book.remember(at, body, commit_bytes, self.sizes.cache_bytes);
        let freed = book.ledger.marks_durable();
        let used_bytes = book.ledger.used_bytes();
        drop(book);
        self.news.notify_waiters();
        self.release(freed);
        self.space.set_used(self.index, used_bytes);
        for pending in &batch.pending {
            pending.journaled.advance(pending.last.0);
        }
        // After the watermarks: nobody waits for this.
        latency::journaled().record(batch.received.iter().map(|received| (now.0.saturating_sub(received.0), 1)));
        counter!(names::JOURNALED_RECORDS).increment(batch.records);
        counter!(names::JOURNALED_BYTES).increment(batch.record_bytes);
    }

    /// A small commit is copied out of its large buffer, or the cache would hold mostly air.
    fn cache_body(&self, batch: &mut Batch, commit_bytes: usize) -> Arc<CommitBody> {
        let buf = batch.commit.lend();
        if commit_bytes > buf.len() / 16 {
            return Arc::new(CommitBody::new(buf));
        }
        Arc::new(CommitBody::new(AlignedBuf::copy_of(&buf[..commit_bytes])))
    }

    fn release(&self, freed: Vec<Freed>) {
        if freed.is_empty() {
            return;
        }
        let held_bytes = freed.iter().map(|freed| freed.held_bytes).sum();
        counter!(names::RELEASED_BYTES).increment(held_bytes);
        counter!(names::RELEASED_RECORDS).increment(freed.iter().map(|freed| freed.records).sum());
        self.depot.give_back(self.index, freed, &*self.files);
    }

    /// Notes a mark; wakes the writer if that lets a segment go.
    pub fn vaulted(&self, disk: &DiskId, epoch: Epoch, seq: Seq, chain: Chain) {
        self.mark(|ledger| ledger.vaulted(disk, epoch, seq, chain));
    }

    /// Gives a run up.
    pub fn forget(&self, disk: &DiskId, epoch: Epoch) {
        self.mark(|ledger| ledger.forget(disk, epoch));
    }

    fn mark(&self, change: impl FnOnce(&mut Ledger)) {
        let mut book = self.book.lock();
        change(&mut book.ledger);
        let releasing = book.ledger.has_releasing();
        drop(book);
        if releasing {
            self.work.notify_one();
        }
    }

    /// Refuses further appends and lets the writer finish.
    pub fn close(&self) {
        self.open.lock().closing = true;
        self.turnstile.close();
        self.room.notify_waiters();
        self.work.notify_one();
    }

    /// Refuses everything: the writer cannot go on.
    pub fn fail(&self, what: String) {
        self.open.lock().failed.get_or_insert(what);
        self.room.notify_waiters();
        self.end();
    }

    /// The writer is done: readers get what is left.
    pub fn end(&self) {
        self.book.lock().ended = true;
        self.news.notify_waiters();
    }

    /// Why the writer cannot go on.
    pub fn failure(&self) -> Option<String> {
        self.open.lock().failed.clone()
    }
}

impl Book {
    fn remember(&mut self, at: CommitAt, body: Arc<CommitBody>, commit_bytes: usize, cache_bytes: usize) {
        self.cached_bytes += body.buf.held_bytes();
        self.cache.push_back(Cached { at, body, commit_bytes });
        while self.cached_bytes > cache_bytes
            && let Some(oldest) = self.cache.pop_front()
        {
            self.cached_bytes -= oldest.body.buf.held_bytes();
        }
    }

    /// Takes the commit of that number out of the cache, and those before it, which its reader has passed. So memory is
    /// used again while it is warm, and the cache is for what is still to be read.
    pub fn take(&mut self, number: u64) -> Option<Cached> {
        while self.cache.front()?.at.number <= number {
            let cached = self.cache.pop_front()?;
            self.cached_bytes -= cached.body.buf.held_bytes();
            if cached.at.number == number {
                return Some(cached);
            }
        }
        None
    }
}
