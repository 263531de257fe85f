//! The shard's disk by io_uring. The only file that names the library behind it.
//!
//! What that library forces, and what holds it at bay:
//! - Operations reach the kernel only when the thread parks: nothing else runs on a shard's thread, and between two
//!   commits it waits.
//! - Dropping an operation stops nothing: the library keeps file and buffer until the kernel is done, so the write
//!   still lands. Nobody puts `select!` or a timeout around one.
//! - Its own entry point panics where io_uring is forbidden: [`run`] reports instead.
//! - Files and operations never leave their thread: files are opened here.

use std::future::Future;
use std::io;
use std::ops::Range;
use std::path::Path;

use tokio_uring::buf::BoundedBuf;

use super::{AlignedBuf, Disk, DiskFile};

/// Operations in flight are two at most (a write or a sync, and a file being closed); the rest is slack.
const RING_ENTRIES: u32 = 32;

/// The shard's disk by io_uring.
#[derive(Debug, Clone, Copy)]
pub struct RingDisk {
    /// Whether files are opened with O_DIRECT.
    pub direct: bool,
}

/// An open file.
pub struct RingFile(tokio_uring::fs::File);

impl Disk for RingDisk {
    type File = RingFile;

    fn open(&self, path: &Path) -> io::Result<RingFile> {
        Ok(RingFile(tokio_uring::fs::File::from_std(super::std::options(self.direct).open(path)?)))
    }
}

impl DiskFile for RingFile {
    async fn write_at(
        &self,
        mut buf: AlignedBuf,
        range: Range<usize>,
        offset_bytes: u64,
    ) -> (io::Result<usize>, AlignedBuf) {
        let (bytes, window) = buf.take_out(&range);
        let (written, slice) = self.0.write_at(bytes.slice(window), offset_bytes).submit().await;
        buf.put_back(slice.into_inner());
        (written, buf)
    }

    async fn read_at(
        &self,
        mut buf: AlignedBuf,
        range: Range<usize>,
        offset_bytes: u64,
    ) -> (io::Result<usize>, AlignedBuf) {
        let (bytes, window) = buf.take_out(&range);
        let (read, slice) = self.0.read_at(bytes.slice(window), offset_bytes).await;
        buf.put_back(slice.into_inner());
        (read, buf)
    }

    async fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data().await
    }
}

/// Runs `future` on this thread, with a ring of its own, to its end.
///
/// # Errors
/// If the kernel, a seccomp profile or a memory limit forbids the ring.
pub fn run<F: Future>(future: F) -> io::Result<F::Output> {
    let mut builder = tokio_uring::builder();
    builder.entries(RING_ENTRIES);
    Ok(tokio_uring::Runtime::new(&builder)?.block_on(future))
}
