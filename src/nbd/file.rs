//! A raw image or block device as an export.
//!
//! All methods take `&self` and may be called from several threads: reads and writes are positional. Zeroing and trimming
//! use `fallocate`, which Linux offers for files and block devices alike, and fall back to writing zeroes.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::{Export, StatusExtent, ZeroFlags};
use crate::fault::{Classify, Fault};
use crate::limits;

/// Most runs of one block status answer: 4,096 runs are 32 KiB on the wire.
const STATUS_EXTENTS_MAX: usize = 4096;
/// Zeroes are written in pieces of this size when `fallocate` cannot.
const ZEROES_BYTES: usize = 256 << 10;
/// Block devices take `fallocate` in whole logical blocks only; none has larger ones.
const DEVICE_BLOCK_BYTES: u64 = limits::BLOCK_BYTES as u64;

static ZEROES: [u8; ZEROES_BYTES] = [0; ZEROES_BYTES];

/// Why a source cannot be opened or used.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It does not open.
    #[error("cannot open {}", path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Neither a regular file nor a block device.
    #[error("{} is neither a regular file nor a block device", path.display())]
    Kind {
        /// The path.
        path: PathBuf,
    },
    /// Someone else has it open for the same purpose, or it is mounted.
    #[error("{} is in use: another agent or export has it open, or it is mounted", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// A size of zero or above the largest disk.
    #[error("{} has {size_bytes} bytes: a disk has 1 to {} bytes", path.display(), limits::DISK_BYTES_MAX)]
    Size {
        /// The path.
        path: PathBuf,
        /// Its size.
        size_bytes: u64,
    },
    /// The file was deleted or replaced, or the device is gone.
    #[error("{} has vanished: it was deleted, replaced or unplugged while in use", path.display())]
    Vanished {
        /// The path.
        path: PathBuf,
    },
    /// It is smaller than when it was opened.
    #[error("{} has shrunk from {opened_bytes} to {found_bytes} bytes while in use", path.display())]
    Shrunk {
        /// The path.
        path: PathBuf,
        /// Size when it was opened.
        opened_bytes: u64,
        /// Size now.
        found_bytes: u64,
    },
    /// An operation on it failed.
    #[error("{operation} of {} at offset {offset} failed", path.display())]
    Operation {
        /// The path.
        path: PathBuf,
        /// What was done.
        operation: &'static str,
        /// Where, in bytes.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
}

impl Classify for SourceError {
    fn fault(&self) -> Fault {
        match self {
            Self::Open { .. } | Self::Kind { .. } | Self::InUse { .. } | Self::Size { .. } => Fault::Reject,
            Self::Vanished { .. } | Self::Shrunk { .. } => Fault::Fatal,
            Self::Operation { .. } => Fault::Retry,
        }
    }
}

impl From<SourceError> for io::Error {
    fn from(error: SourceError) -> Self {
        let kind = match &error {
            SourceError::Open { source, .. } | SourceError::Operation { source, .. } => source.kind(),
            SourceError::InUse { .. } => io::ErrorKind::ResourceBusy,
            SourceError::Kind { .. } | SourceError::Size { .. } => io::ErrorKind::InvalidInput,
            SourceError::Vanished { .. } => io::ErrorKind::NotFound,
            SourceError::Shrunk { .. } => io::ErrorKind::UnexpectedEof,
        };
        Self::new(kind, error)
    }
}

/// A raw image or block device of fixed size.
///
/// While it is open for writing it is claimed: an advisory lock on a file, exclusive use of a block device (which the
/// kernel refuses if it is mounted). Both go with the process, also with a killed one.
#[derive(Debug)]
pub struct FileExport {
    name: String,
    path: PathBuf,
    file: File,
    size_bytes: u64,
    device: bool,
    read_only: bool,
    /// The file system refused to punch holes: do not ask for every request.
    no_punch: AtomicBool,
    /// The same for zeroing in place.
    no_zero_range: AtomicBool,
    /// File systems let one writer at a time into a file, and those that wait for it spin meanwhile. Here they sleep.
    turn: Mutex<()>,
}

impl FileExport {
    /// Opens `path` as an export called `name`.
    ///
    /// # Errors
    /// [`SourceError`] names the path and what is wrong with it.
    pub fn open(name: &str, path: &Path, read_only: bool) -> Result<Self, SourceError> {
        let open_error = |source: io::Error| SourceError::Open { path: path.to_owned(), source };
        let in_use = || SourceError::InUse { path: path.to_owned() };
        let kind = std::fs::metadata(path).map_err(open_error)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(SourceError::Kind { path: path.to_owned() });
        }
        let device = kind.is_block_device();
        let mut options = OpenOptions::new();
        options.read(true).write(!read_only);
        if device && !read_only {
            options.custom_flags(libc::O_EXCL);
        }
        let mut file = options.open(path).map_err(|error| match error.kind() {
            io::ErrorKind::ResourceBusy => in_use(),
            _ => open_error(error),
        })?;
        if !read_only && !device {
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(in_use()),
                // Some network file systems have no locks; they are not refused for that.
                Err(TryLockError::Error(error)) => {
                    tracing::warn!(path = %path.display(), %error, "file cannot be locked")
                }
            }
        }
        // The end by seeking, since the metadata of a block device says zero.
        let size_bytes = file.seek(SeekFrom::End(0)).map_err(open_error)?;
        if size_bytes == 0 || size_bytes > limits::DISK_BYTES_MAX {
            return Err(SourceError::Size { path: path.to_owned(), size_bytes });
        }
        Ok(Self {
            name: name.to_owned(),
            path: path.to_owned(),
            file,
            size_bytes,
            device,
            read_only,
            no_punch: AtomicBool::new(false),
            no_zero_range: AtomicBool::new(false),
            turn: Mutex::new(()),
        })
    }

    /// The name of the export.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size in bytes when it was opened.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Whether it was opened for reading only.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Whether it is a block device.
    #[must_use]
    pub fn is_device(&self) -> bool {
        self.device
    }

    /// Looks whether the source is still what was opened: same size or larger, still under its path.
    ///
    /// Cheap enough for every few seconds.
    ///
    /// # Errors
    /// [`SourceError::Vanished`] or [`SourceError::Shrunk`].
    pub fn check(&self) -> Result<(), SourceError> {
        let vanished = || SourceError::Vanished { path: self.path.clone() };
        let held = self.file.metadata().map_err(|_| vanished())?;
        let found = std::fs::metadata(&self.path).map_err(|_| vanished())?;
        if (held.dev(), held.ino()) != (found.dev(), found.ino()) && !self.device {
            return Err(vanished());
        }
        self.check_size()
    }

    fn check_size(&self) -> Result<(), SourceError> {
        let found_bytes =
            (&self.file).seek(SeekFrom::End(0)).map_err(|error| self.operation_error("size look-up", 0, error))?;
        if found_bytes < self.size_bytes {
            let (path, opened_bytes) = (self.path.clone(), self.size_bytes);
            return Err(SourceError::Shrunk { path, opened_bytes, found_bytes });
        }
        Ok(())
    }

    fn operation_error(&self, operation: &'static str, offset: u64, source: io::Error) -> SourceError {
        match source.raw_os_error() {
            Some(libc::ENXIO | libc::ENODEV) => SourceError::Vanished { path: self.path.clone() },
            _ => SourceError::Operation { path: self.path.clone(), operation, offset, source },
        }
    }

    fn failed(&self, operation: &'static str, offset: u64) -> impl FnOnce(io::Error) -> io::Error + '_ {
        move |source| {
            // The end of the file before the end of the disk: someone cut it.
            if source.kind() == io::ErrorKind::UnexpectedEof
                && let Err(shrunk) = self.check_size()
            {
                return shrunk.into();
            }
            self.operation_error(operation, offset, source).into()
        }
    }

    fn check_range(&self, offset: u64, length: u64) -> io::Result<()> {
        match offset.checked_add(length) {
            Some(end) if end <= self.size_bytes => Ok(()),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "{length} bytes at {offset} do not lie inside {} ({} bytes)",
                    self.path.display(),
                    self.size_bytes
                ),
            )),
        }
    }

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// As text with the path; the inner error is a [`SourceError`].
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.check_range(offset, buf.len() as u64)?;
        self.file.read_exact_at(buf, offset).map_err(self.failed("read", offset))
    }

    /// Writes `data`; with `fua` durable before it returns.
    ///
    /// # Errors
    /// As `read`. Part of the data may be written.
    pub fn write(&self, offset: u64, data: &[u8], fua: bool) -> io::Result<()> {
        self.check_range(offset, data.len() as u64)?;
        {
            // A device takes several.
            let _turn = (!self.device).then(|| self.turn.lock());
            self.file.write_all_at(data, offset).map_err(self.failed("write", offset))?;
        }
        self.flush_if(fua)
    }

    /// Makes a range read as zeroes.
    ///
    /// # Errors
    /// As `write`; [`io::ErrorKind::Unsupported`] for `flags.fast` where only writing zeroes would do: nothing was changed.
    pub fn zero(&self, offset: u64, length: u64, flags: ZeroFlags) -> io::Result<()> {
        self.check_range(offset, length)?;
        let whole = self.whole_blocks(offset, length);
        let keep = FallocateFlags::KEEP_SIZE;
        let punched = !flags.no_hole
            && self.try_fallocate(&self.no_punch, FallocateFlags::PUNCH_HOLE | keep, &whole, "hole punching")?;
        let zeroed =
            punched || self.try_fallocate(&self.no_zero_range, FallocateFlags::ZERO_RANGE | keep, &whole, "zeroing")?;
        if zeroed {
            self.write_zeroes(offset..whole.start)?;
            self.write_zeroes(whole.end..offset + length)?;
        } else if flags.fast {
            return Err(io::ErrorKind::Unsupported.into());
        } else {
            self.write_zeroes(offset..offset + length)?;
        }
        self.flush_if(flags.fua)
    }

    /// Gives the space of a range back. Returns the part that reads as zeroes now; what lies outside is unchanged.
    ///
    /// # Errors
    /// As `write`. A source that cannot punch holes is no error: nothing changes and `None` is returned.
    pub fn trim(&self, offset: u64, length: u64, fua: bool) -> io::Result<Option<Range<u64>>> {
        self.check_range(offset, length)?;
        let whole = self.whole_blocks(offset, length);
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if whole.is_empty() || !self.try_fallocate(&self.no_punch, flags, &whole, "hole punching")? {
            return Ok(None);
        }
        self.flush_if(fua)?;
        Ok(Some(whole))
    }

    /// Makes everything that was written before durable. Also notices if the source shrank: writes beyond the new end
    /// would have grown it again, with zeroes where data was.
    ///
    /// # Errors
    /// As `read`. After a failed flush the system may have dropped the data: it cannot be tried again.
    pub fn flush(&self) -> io::Result<()> {
        self.file.sync_data().map_err(self.failed("flush", 0))?;
        Ok(self.check_size()?)
    }

    fn flush_if(&self, fua: bool) -> io::Result<()> {
        if fua { self.flush() } else { Ok(()) }
    }

    /// Which parts are holes, from `offset` on; covers `length`, or less if there are very many runs.
    ///
    /// # Errors
    /// As `read`.
    pub fn block_status(&self, offset: u64, length: u64) -> io::Result<Vec<StatusExtent>> {
        self.check_range(offset, length)?;
        let end = offset + length;
        let mut extents = Vec::new();
        let mut at = offset;
        while at < end && extents.len() < STATUS_EXTENTS_MAX {
            let data_at = self.seek_to(rustix::fs::SeekFrom::Data(at))?.unwrap_or(end).min(end);
            let (hole, next) = if data_at > at {
                (true, data_at)
            } else {
                (false, self.seek_to(rustix::fs::SeekFrom::Hole(at))?.unwrap_or(end).min(end))
            };
            if next <= at {
                // The file changes under the look; what is unknown counts as data.
                extents.push(StatusExtent { length: end - at, hole: false, zero: false });
                break;
            }
            extents.push(StatusExtent { length: next - at, hole, zero: hole });
            at = next;
        }
        Ok(extents)
    }

    /// The offset of the next data or hole, `None` past the last one.
    fn seek_to(&self, to: rustix::fs::SeekFrom) -> io::Result<Option<u64>> {
        let (rustix::fs::SeekFrom::Data(from) | rustix::fs::SeekFrom::Hole(from)) = to else { return Ok(None) };
        match rustix::fs::seek(&self.file, to) {
            Ok(found) => Ok(Some(found)),
            // "Past the last data" and "device is gone" are the same code; the next read tells them apart.
            Err(Errno::NXIO) => Ok(None),
            // A file system without this look-up: everything is data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                Ok(Some(if matches!(to, rustix::fs::SeekFrom::Data(_)) { from } else { self.size_bytes }))
            }
            Err(error) => Err(self.failed("block status", from)(error.into())),
        }
    }

    /// The part of a range that `fallocate` takes: all of it in a file, whole blocks on a device.
    fn whole_blocks(&self, offset: u64, length: u64) -> Range<u64> {
        let end = offset + length;
        if !self.device {
            return offset..end;
        }
        let start = offset.next_multiple_of(DEVICE_BLOCK_BYTES).min(end);
        start..(end - end % DEVICE_BLOCK_BYTES).max(start)
    }

    /// Whether the range was treated; `false` if this source cannot do it.
    fn try_fallocate(
        &self,
        refused: &AtomicBool,
        flags: FallocateFlags,
        range: &Range<u64>,
        operation: &'static str,
    ) -> io::Result<bool> {
        if range.is_empty() {
            return Ok(true);
        }
        if refused.load(Ordering::Relaxed) {
            return Ok(false);
        }
        loop {
            match fallocate(&self.file, flags, range.start, range.end - range.start) {
                Ok(()) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                    refused.store(true, Ordering::Relaxed);
                    return Ok(false);
                }
                // Only this range is not to its taste, for example a device with larger blocks.
                Err(Errno::INVAL) => return Ok(false),
                Err(error) => return Err(self.failed(operation, range.start)(error.into())),
            }
        }
    }

    fn write_zeroes(&self, range: Range<u64>) -> io::Result<()> {
        let mut at = range.start;
        while at < range.end {
            let piece = (range.end - at).min(ZEROES_BYTES as u64) as usize;
            self.file.write_all_at(&ZEROES[..piece], at).map_err(self.failed("write", at))?;
            at += piece as u64;
        }
        Ok(())
    }
}

impl Export for FileExport {
    fn name(&self) -> &str {
        &self.name
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn multi_conn(&self) -> bool {
        true
    }

    fn fast_zero(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        Self::read(self, offset, buf)
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> io::Result<()> {
        Self::write(self, offset, &data, fua)
    }

    fn zero(&self, offset: u64, length: u64, flags: ZeroFlags) -> io::Result<()> {
        Self::zero(self, offset, length, flags)
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> io::Result<()> {
        Self::trim(self, offset, length, fua).map(drop)
    }

    fn flush(&self) -> io::Result<()> {
        Self::flush(self)
    }

    fn block_status(&self, offset: u64, length: u64) -> io::Result<Vec<StatusExtent>> {
        Self::block_status(self, offset, length)
    }
}
