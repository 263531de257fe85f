//! The shard's thread: take what waits, write it, sync it, tell. Nothing else runs here.
//!
//! ```text
//!  open commit ──take──► place ──► seal ──► write ──► sync ──► books, cache, readers, watermarks
//!                         │ no room                │ failed
//!                         ▼                        ▼
//!               next prepared segment      segment poisoned, same commit into the next one
//! ```
//!
//! - One write is under way at a time, and the next starts only after its sync: an invalid commit with no valid one
//!   of a higher number behind it was never acked.
//! - A failed write or sync is never repeated on the same segment: what the disk made of it is unknown. The commit,
//!   still in memory, goes to a new segment under the same number. After [`POISONED_MAX`] segments in a row the shard
//!   gives up, and with it the process.
//! - No operation is put under `select!`: the only wait that may be abandoned is the one for a prepared segment.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use metrics::histogram;
use tokio::sync::mpsc;
use tracing::{error, warn};

use super::depot::Prepared;
use super::disk::{Disk, DiskFile};
use super::model::CommitAt;
use super::shard::{Batch, Shard, Work};
use crate::flow::Clock;
use crate::limits::BLOCK_BYTES;
use crate::mutants::{self, Mutant};
use crate::telemetry::names;
use crate::telemetry::waits::{Guard, Waiters};

/// Segments that may fail in a row before the disk counts as lost.
pub const POISONED_MAX: u32 = 3;
/// How often a closing shard looks whether the segment that is being prepared is still to be expected.
const CLOSE_LOOKS: u32 = 100;
/// Time between two such looks.
const LOOK: Duration = Duration::from_millis(20);

/// How often a writer that waits for a segment looks whether there will ever be one.
const LOST_LOOK: Duration = Duration::from_millis(500);

struct Active<F> {
    segment: u64,
    file: F,
    file_bytes: u64,
    end_bytes: u64,
}

/// The writer of one shard.
pub struct Writer<D: Disk> {
    shard: Arc<Shard>,
    disk: D,
    prepared: mpsc::Receiver<Prepared>,
    clock: Arc<dyn Clock>,
    active: Option<Active<D::File>>,
    next_number: u64,
    poisoned: u32,
    waits: Waiters,
}

/// Why the writer cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum WriterError {
    /// The disk takes nothing.
    #[error(
        "shard {shard}: {POISONED_MAX} segments in {} failed in a row; look after that disk and start the gateway again, \
         what was acked is kept: the last one failed {what}", dir.display()
    )]
    Poisoned {
        /// The shard.
        shard: u16,
        /// Its directory.
        dir: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The disk gives no further segment, and not because it is full.
    #[error(
        "shard {shard}: no segment can be prepared; make the disk writable again (a file system that met an error turns \
         read-only: check and mount it again) and start the gateway again, what was acked is kept: {refusal}"
    )]
    NoSegment {
        /// The shard.
        shard: u16,
        /// The file, and what the operating system said.
        refusal: String,
    },
}

impl<D: Disk> Writer<D> {
    /// A writer whose first commit gets `next_number`.
    pub fn new(
        shard: Arc<Shard>,
        disk: D,
        prepared: mpsc::Receiver<Prepared>,
        clock: Arc<dyn Clock>,
        next_number: u64,
    ) -> Self {
        Self {
            shard,
            disk,
            prepared,
            clock,
            active: None,
            next_number,
            poisoned: 0,
            waits: Waiters::none(Guard::JournalSegment),
        }
    }

    /// Works until the shard is closed.
    ///
    /// # Errors
    /// [`WriterError`] if the disk takes nothing any more; what was appended and not journaled is lost with it.
    pub async fn run(mut self) -> Result<(), WriterError> {
        let mut held = None;
        loop {
            let work = match held.take() {
                Some(batch) => Work::Batch(batch),
                None => self.shard.next_work(),
            };
            match work {
                Work::Batch(batch) => held = self.commit_or_wait(batch).await?,
                Work::Marks => {
                    if !self.write_marks_or_release().await? {
                        self.wait().await?;
                    }
                }
                Work::Idle => self.shard.work.notified().await,
                Work::Close => break,
            }
        }
        self.write_last_marks().await
    }

    /// Commits a batch; gives it back if there is no segment for it yet.
    async fn commit_or_wait(&mut self, batch: Batch) -> Result<Option<Batch>, WriterError> {
        let Some(batch) = self.commit(batch, self.shard.sizes.reserve_bytes).await? else { return Ok(None) };
        if self.shard.book.lock().ledger.has_releasing() {
            self.write_marks_or_release().await?;
        }
        if self.shard.is_closing() {
            return self.wait_while_closing(batch).await;
        }
        self.wait().await?;
        Ok(Some(batch))
    }

    /// Writes the marks that let segments go. In a full journal that has not even room for them, the segments go
    /// without: their records are vaulted, and the marks are written with the next commit, which these segments make
    /// possible. Returns false if there may be room soon.
    async fn write_marks_or_release(&mut self) -> Result<bool, WriterError> {
        let batch = self.shard.empty_batch();
        let stuck = self.commit(batch, 0).await?.is_some();
        let starved = self.shard.space.is_starved(self.shard.index);
        let released = stuck && starved && self.shard.release_unmarked();
        Ok(!stuck || released)
    }

    /// Waits for a segment or for other work. Nothing is in flight here, so either may be abandoned.
    async fn wait(&mut self) -> Result<(), WriterError> {
        let shard = Arc::clone(&self.shard);
        self.waits.set(1);
        if let Some(refusal) = shard.depot.lost() {
            return Err(WriterError::NoSegment { shard: shard.index, refusal });
        }
        // With segments to release, also for the news that no segment is to be had.
        let releasing = shard.book.lock().ledger.has_releasing();
        tokio::select! {
            biased;
            Some(prepared) = self.prepared.recv() => self.activate(prepared),
            () = shard.work.notified() => Ok(()),
            () = tokio::time::sleep(if releasing { LOOK } else { LOST_LOOK }) => Ok(()),
        }
    }

    /// Told to stop with records in hand: a segment that is being prepared is worth a moment. If the journal is full,
    /// the records are dropped: they were never acked, so their agents send them again.
    async fn wait_while_closing(&mut self, batch: Batch) -> Result<Option<Batch>, WriterError> {
        for _ in 0..CLOSE_LOOKS {
            if let Ok(Some(prepared)) = tokio::time::timeout(LOOK, self.prepared.recv()).await {
                self.activate(prepared)?;
                return Ok(Some(batch));
            }
            if self.shard.space.is_starved(self.shard.index) {
                break;
            }
        }
        if batch.records > 0 {
            warn!(shard = self.shard.index, records = batch.records, "closed while full: unacked records are dropped");
        }
        Ok(None)
    }

    fn activate(&mut self, prepared: Prepared) -> Result<(), WriterError> {
        self.waits.set(0);
        self.shard.depot.want(self.shard.index);
        let Prepared { segment, path, file_bytes } = prepared;
        let opened = self.disk.open(&path);
        self.shard.book.lock().ledger.activate(segment, path, file_bytes);
        match opened {
            Ok(file) => {
                self.active = Some(Active { segment, file, file_bytes, end_bytes: 0 });
                Ok(())
            }
            Err(error) => self.poison(segment, "to open", error),
        }
    }

    fn poison(&mut self, segment: u64, what: &'static str, source: io::Error) -> Result<(), WriterError> {
        error!(shard = self.shard.index, segment, %source, "a segment failed {what} and is not used again");
        self.shard.book.lock().ledger.poison(segment);
        self.active = None;
        self.poisoned += 1;
        if self.poisoned < POISONED_MAX {
            return Ok(());
        }
        Err(WriterError::Poisoned { shard: self.shard.index, dir: self.shard.dir.clone(), what, source })
    }

    /// Writes and syncs a batch with the due marks; gives it back if no segment has room for it.
    async fn commit(&mut self, mut batch: Batch, reserve_bytes: u64) -> Result<Option<Batch>, WriterError> {
        loop {
            let need_bytes = (batch.commit.commit_bytes() + self.shard.sizes.mark_bytes) as u64 + reserve_bytes;
            let left = |active: &Option<Active<D::File>>| active.as_ref().map_or(0, |a| a.file_bytes - a.end_bytes);
            if left(&self.active) < need_bytes {
                match self.prepared.try_recv() {
                    Ok(prepared) => self.activate(prepared)?,
                    // Marks alone may use what records leave.
                    Err(_) if batch.records == 0 && left(&self.active) >= BLOCK_BYTES as u64 => {}
                    Err(_) => return Ok(Some(batch)),
                }
            }
            let left_bytes = left(&self.active);
            let Some(active) = &self.active else { continue };
            self.shard.add_marks(&mut batch, left_bytes);
            let at = CommitAt { segment: active.segment, offset_bytes: active.end_bytes, number: self.next_number };
            let commit_bytes = batch.commit.seal(self.shard.owner(at.segment), at.offset_bytes, at.number);
            let start = self.clock.monotonic();
            match write_and_sync(&active.file, &mut batch, commit_bytes, at.offset_bytes).await {
                Ok(()) => {
                    let seconds = (self.clock.monotonic() - start).as_secs_f64();
                    histogram!(names::JOURNAL_COMMIT_SECONDS).record(seconds);
                    histogram!(names::JOURNAL_COMMIT_BYTES).record(commit_bytes as f64);
                    self.done(at, commit_bytes, batch);
                    return Ok(None);
                }
                Err((what, error)) => self.poison(at.segment, what, error)?,
            }
        }
    }

    fn done(&mut self, at: CommitAt, commit_bytes: usize, batch: Batch) {
        self.poisoned = 0;
        self.waits.set(0);
        self.next_number += 1;
        if let Some(active) = &mut self.active {
            active.end_bytes += commit_bytes as u64;
        }
        self.shard.committed(at, commit_bytes, batch, self.clock.wall());
    }

    /// At the end: marks that are not durable yet would only cost uploads done twice, so what does not fit is left.
    async fn write_last_marks(&mut self) -> Result<(), WriterError> {
        if !self.shard.book.lock().ledger.has_due_marks() {
            return Ok(());
        }
        let batch = self.shard.empty_batch();
        if let Some(batch) = self.commit(batch, 0).await?
            && let Some(batch) = self.wait_while_closing(batch).await?
        {
            self.commit(batch, 0).await?;
        }
        Ok(())
    }
}

/// Writes the sealed commit and makes it durable.
async fn write_and_sync<F: DiskFile>(
    file: &F,
    batch: &mut Batch,
    commit_bytes: usize,
    offset_bytes: u64,
) -> Result<(), (&'static str, io::Error)> {
    let mut written = 0;
    let mut interrupted = false;
    while written < commit_bytes {
        let buf = batch.commit.lend();
        let (result, buf) = file.write_at(buf, written..commit_bytes, offset_bytes + written as u64).await;
        batch.commit.put_back(buf);
        match result {
            // A short write may end inside a block; that block is written again, from its start.
            Ok(bytes) if bytes >= BLOCK_BYTES || written + bytes == commit_bytes => {
                written =
                    if written + bytes == commit_bytes { commit_bytes } else { (written + bytes) & !(BLOCK_BYTES - 1) };
            }
            Ok(_) if !interrupted => interrupted = true,
            Ok(_) => return Err(("to be written", io::Error::from(io::ErrorKind::WriteZero))),
            // A signal or the end of another thread can cancel an operation that the kernel had put aside. Writing
            // the same bytes to the same place again is harmless; a sync is never repeated.
            Err(error) if !interrupted && matches!(error.raw_os_error(), Some(libc::ECANCELED | libc::EINTR)) => {
                interrupted = true;
            }
            Err(error) => return Err(("to be written", error)),
        }
    }
    if mutants::on(Mutant::AckBeforeSync) {
        return Ok(());
    }
    let synced = file.sync_data().await;
    if mutants::on(Mutant::SyncRetried) && synced.is_err() {
        return file.sync_data().await.map_err(|error| ("to be synced", error));
    }
    synced.map_err(|error| ("to be synced", error))
}
