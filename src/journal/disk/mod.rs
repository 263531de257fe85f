//! The I/O seam of the journal: few operations over owned, aligned buffers, and siblings that pass one suite.
//!
//! ```text
//!  shard thread  ── Disk, DiskFile ──►  ring  tokio-uring, O_DIRECT      (the only file that names it)
//!                                       std   pwrite on the thread
//!                                       sim   memory: torn, lost, failing, held writes; crash
//!  plain threads ── Files, File ─────►  std   replay, readers, preparing segments
//!                                       sim
//! ```
//!
//! Invariants, for every sibling:
//! - A write counts as done only for the bytes it returned; a caller that needs all of them asks again for the rest.
//! - Written bytes are durable only after a later `sync_data` of the same file returned without an error.
//! - After a failed sync the state of everything written since the last good one is unknown, for ever: nobody may
//!   sync again and believe it.
//! - Buffers, ranges and offsets are multiples of [`BLOCK_BYTES`](crate::limits::BLOCK_BYTES).
//! - An operation that was started goes on to its end, also if its future is dropped: the write still lands.

mod aligned;
pub mod preflight;
pub(super) mod ring;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub(super) mod std;

#[cfg(test)]
mod conformance;

use ::std::future::Future;
use ::std::io;
use ::std::ops::Range;
use ::std::path::Path;

pub use aligned::{AlignedBuf, BufPool};

/// How the journal's disk shall be driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BackendChoice {
    /// io_uring if the preflight finds it possible, else plain calls.
    #[default]
    Auto,
    /// io_uring or nothing.
    Ring,
    /// Plain calls.
    Std,
}

impl ::std::str::FromStr for BackendChoice {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "ring" => Ok(Self::Ring),
            "std" => Ok(Self::Std),
            _ => Err(format!("{text:?} is no backend: use \"auto\", \"ring\" or \"std\"")),
        }
    }
}

/// Segment files as the shard's thread sees them. Its files never leave that thread.
pub trait Disk: 'static {
    /// An open file.
    type File: DiskFile;

    /// Opens a prepared file for reading and writing.
    ///
    /// # Errors
    /// What the operating system answers.
    fn open(&self, path: &Path) -> io::Result<Self::File>;
}

/// An open segment file on the shard's thread.
pub trait DiskFile: 'static {
    /// Writes `range` of `buf` at `offset_bytes`; gives the buffer back with the number of bytes written.
    fn write_at(
        &self,
        buf: AlignedBuf,
        range: Range<usize>,
        offset_bytes: u64,
    ) -> impl Future<Output = (io::Result<usize>, AlignedBuf)>;

    /// Reads into `range` of `buf` from `offset_bytes`; zero bytes mean the end of the file.
    fn read_at(
        &self,
        buf: AlignedBuf,
        range: Range<usize>,
        offset_bytes: u64,
    ) -> impl Future<Output = (io::Result<usize>, AlignedBuf)>;

    /// Makes everything written so far durable.
    fn sync_data(&self) -> impl Future<Output = io::Result<()>>;
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// File name.
    pub name: String,
    /// Length of the file.
    pub bytes: u64,
}

/// Files as plain threads see them: every call blocks.
pub trait Files: Send + Sync + 'static {
    /// Makes a directory and its parents durable; one that exists is fine.
    ///
    /// # Errors
    /// What the operating system answers.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;

    /// Regular files of a directory in order of name; an absent directory is empty.
    ///
    /// # Errors
    /// What the operating system answers.
    fn list(&self, dir: &Path) -> io::Result<Vec<Listed>>;

    /// Makes a new file of `bytes` zeroes that were really written, durable together with its name.
    ///
    /// # Errors
    /// What the operating system answers; `AlreadyExists` if the name is taken. A half-made file is removed.
    fn create_zeroed(&self, path: &Path, bytes: u64) -> io::Result<()>;

    /// Opens a file for reading and writing.
    ///
    /// # Errors
    /// What the operating system answers.
    fn open(&self, path: &Path) -> io::Result<Box<dyn File>>;

    /// Renames durably, also between directories.
    ///
    /// # Errors
    /// What the operating system answers.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file; an absent one is fine.
    ///
    /// # Errors
    /// What the operating system answers.
    fn remove(&self, path: &Path) -> io::Result<()>;
}

/// An open file on a plain thread.
pub trait File: Send {
    /// Length in bytes.
    ///
    /// # Errors
    /// What the operating system answers.
    fn bytes(&self) -> io::Result<u64>;

    /// Reads into `range` of `buf`; zero bytes mean the end of the file.
    ///
    /// # Errors
    /// What the operating system answers.
    fn read_at(&self, buf: &mut AlignedBuf, range: Range<usize>, offset_bytes: u64) -> io::Result<usize>;

    /// Makes everything written so far durable.
    ///
    /// # Errors
    /// What the operating system answers.
    fn sync_data(&self) -> io::Result<()>;
}
