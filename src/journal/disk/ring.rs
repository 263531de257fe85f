//! The shard's disk by io_uring. The only file that names the library behind it.
//!
//! The ring is for writes of which the kernel has something to do. A small one, and every sync, is a plain call: the ring hands a sync
//! to a thread of the kernel's and tells of either by two wake-ups more, and the shard's thread has nothing else to do meanwhile.
//!
//! What that library forces, and what holds it at bay:
//! - Operations reach the kernel only when the thread parks: nothing else runs on a shard's thread, and between two
//!   commits it waits.
//! - Dropping an operation stops nothing: the library keeps file and buffer until the kernel is done, so the write
//!   still lands. Nobody puts `select!` or a timeout around one.
//! - Its own entry point panics where io_uring is forbidden: [`run`] reports instead.
//! - Files and operations never leave their thread: files are opened here.

use std::fs;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use tokio_uring::buf::BoundedBuf;

use super::{AlignedBuf, Disk, DiskFile};

/// One operation is in flight at a time; the rest is slack.
const RING_ENTRIES: u32 = 32;
/// Writes of fewer bytes are plain calls: at the rates at which they come, what a completion costs the processor shows.
pub(super) const WRITE_BYTES_MIN: usize = 128 << 10;

/// The shard's disk by io_uring.
#[derive(Debug, Clone, Copy)]
pub struct RingDisk {
    /// Whether files are opened with O_DIRECT.
    pub direct: bool,
}

/// An open file.
pub struct RingFile {
    ring: tokio_uring::fs::File,
    /// The same open file, for plain calls.
    plain: fs::File,
}

impl Disk for RingDisk {
    type File = RingFile;

    fn open(&self, path: &Path) -> io::Result<RingFile> {
        let plain = super::std::options(self.direct).open(path)?;
        Ok(RingFile { ring: tokio_uring::fs::File::from_std(plain.try_clone()?), plain })
    }
}

impl DiskFile for RingFile {
    async fn write_at(
        &self,
        mut buf: AlignedBuf,
        range: Range<usize>,
        offset_bytes: u64,
    ) -> (io::Result<usize>, AlignedBuf) {
        if range.len() < WRITE_BYTES_MIN {
            return (self.plain.write_at(&buf[range], offset_bytes), buf);
        }
        let (bytes, window) = buf.take_out(&range);
        let (written, slice) = self.ring.write_at(bytes.slice(window), offset_bytes).submit().await;
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
        let (read, slice) = self.ring.read_at(bytes.slice(window), offset_bytes).await;
        buf.put_back(slice.into_inner());
        (read, buf)
    }

    fn sync_data(&self) -> impl Future<Output = io::Result<()>> {
        std::future::ready(super::std::sync_once(&self.plain))
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
