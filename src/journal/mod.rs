//! Third stage: the first durable home of a record.
pub mod disk;
mod error;
mod model;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::types::{Chain, DiskId, Epoch, Seq};
pub use disk::BackendChoice;
pub use disk::preflight::{Backend, Preflight};
pub use error::{AppendError, OpenError, ReadError};
pub use model::*;

/// An open journal. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Journal {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    level: watch::Sender<Level>,
}

/// A cursor over the unreleased commits of one shard, in order.
#[derive(Debug)]
pub struct CommitReader {
    _inner: Arc<Inner>,
}

impl CommitReader {
    /// The next commit, waiting up to `wait` for one; `None` if none came. Blocks: for plain threads.
    ///
    /// # Errors
    /// [`ReadError`]; after damage the next call goes on behind it.
    pub fn next_blocking(&mut self, _wait: Duration) -> Result<Option<Commit>, ReadError> {
        Err(ReadError::Closed)
    }
}

impl Journal {
    /// Opens or creates a journal: preflight, lock, identity, replay, threads. Blocks.
    ///
    /// # Errors
    /// [`OpenError`] names the directory and the next step.
    pub fn open(config: &JournalConfig, _gateway_id: &str) -> Result<(Self, ReplayReport), OpenError> {
        Err(OpenError::Locked { dir: config.dir.display().to_string() })
    }

    /// Takes a record: waits for room; on return its bytes stand in the open commit. `entry.journaled` is raised
    /// once that commit is written and synced. Safe to cancel: a cancelled append took nothing.
    ///
    /// # Errors
    /// [`AppendError`]; the record was not taken.
    pub fn append(&self, _entry: Entry<'_>) -> impl Future<Output = Result<(), AppendError>> + Send {
        std::future::ready(Err(AppendError::Closed))
    }

    /// Notes that a disk's records up to `seq` are vaulted: segments that nothing else needs are released, and the
    /// mark is written with later commits. Does not block.
    pub fn vaulted(&self, _disk: &DiskId, _epoch: Epoch, _seq: Seq, _chain: Chain) {}

    /// Gives up what is still here of an epoch that was fenced or forked away: readers skip it, space returns.
    pub fn forget(&self, _disk: &DiskId, _epoch: Epoch) {}

    /// How full it is.
    #[must_use]
    pub fn space(&self) -> Space {
        Space { used_bytes: 0, capacity_bytes: 0, level: Level::Low }
    }

    /// The level and its changes.
    #[must_use]
    pub fn space_changed(&self) -> watch::Receiver<Level> {
        self.inner.level.subscribe()
    }

    /// The first failure after which the journal takes nothing more, if there was one. The process should stop.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        None
    }

    /// A new cursor at the oldest unreleased commit of `shard`.
    #[must_use]
    pub fn reader(&self, _shard: u16) -> CommitReader {
        CommitReader { _inner: Arc::clone(&self.inner) }
    }

    /// Number of shards.
    #[must_use]
    pub fn shard_count(&self) -> u16 {
        0
    }

    /// Stops: writes and syncs what was appended, and the marks, and joins the threads. Blocks. Later appends are
    /// refused, readers get what is left and then [`ReadError::Closed`]. Calling it twice is harmless.
    pub fn close(&self) {}
}
