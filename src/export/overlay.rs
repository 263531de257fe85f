//! What the guest wrote: a sparse file that holds its blocks and says which. The vault never sees them.
//!
//! ```text
//!  0                    size of the disk, rounded up      + 4 KiB
//!  ├ blocks, at their place on the disk ┤ head: which image this belongs to ┤ log: runs of blocks, appended ├
//! ```
//!
//! - A block counts as here once it lies whole in the file. One that is written in part is filled up from below first.
//! - The log tells which blocks are here. An entry is written after its blocks are durable, so what a restart finds in the
//!   log is in the file; what was written and not flushed may be lost, as on any disk with a volatile cache.
//! - A torn or altered end of the log is cut off: nothing of it was ever promised.
//! - Blocks that were moved into a copy of the disk leave the log before anything is written behind them there.
//!
//! The file is locked while it is used, and names the vault, the disk and the point: it is never laid over another image.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use crate::agent::chunk_set::{ChunkSet, chunks_of};
use crate::agent::range_lock::{RangeGuard, RangeLock};
use crate::fault::{Classify, Fault};
use crate::nbd::{FileExport, SourceError, StatusExtent, ZeroFlags};
use crate::types::{DiskId, Epoch, Id128, PointId, Seq};

/// What is here is known by blocks of this size, the usual one of file systems.
pub const BLOCK_BYTES: u64 = 4096;
/// First bytes of the head, the last one its version.
const MAGIC: &[u8; 4] = b"TGO\x01";
/// Size of the head.
const HEAD_BYTES: u64 = 4096;
/// Bytes of the head that say something, with their checksum.
const HEAD_USED_BYTES: usize = 128;
/// Size of one entry of the log.
pub const ENTRY_BYTES: usize = 16;
/// Most blocks of one entry: the last bit of the count says that they left.
const RUN_BLOCKS_MAX: u64 = (1 << 31) - 1;
/// Set in the count of an entry whose blocks have left.
const LEFT_BIT: u32 = 1 << 31;
/// The log is read in pieces of this size, whatever its length.
const LOG_READ_BYTES: usize = 1 << 20;

/// Why an overlay cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// The file cannot be opened, or somebody uses it.
    #[error(transparent)]
    File(#[from] SourceError),
    /// It is something else.
    #[error("{} is there and is no overlay of a disk of {disk_bytes} bytes: name another file, or remove it", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Size of the disk.
        disk_bytes: u64,
    },
    /// It lies over another image.
    #[error("{} lies over {found}, not over {wanted}: export that point, or name another overlay", path.display())]
    OtherImage {
        /// The file.
        path: PathBuf,
        /// What its head says.
        found: String,
        /// What is exported.
        wanted: String,
    },
    /// The operating system said no.
    #[error("{operation} {} failed", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Classify for OverlayError {
    fn fault(&self) -> Fault {
        Fault::Reject
    }
}

/// Which image an overlay lies over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The vault.
    pub vault: Id128,
    /// The disk.
    pub disk: DiskId,
    /// The point.
    pub point: PointId,
    /// Size of the disk there.
    pub disk_bytes: u64,
}

impl std::fmt::Display for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "point {} of disk {} of vault {}", self.point, self.disk, self.vault)
    }
}

impl Image {
    /// The head of an overlay of this image.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let name = self.disk.as_str().as_bytes();
        let mut head = Vec::with_capacity(HEAD_BYTES as usize);
        head.extend_from_slice(MAGIC);
        head.extend_from_slice(&(name.len() as u32).to_le_bytes());
        head.extend_from_slice(&self.disk_bytes.to_le_bytes());
        head.extend_from_slice(&self.point.epoch.0.to_le_bytes());
        head.extend_from_slice(&self.point.seq.0.to_le_bytes());
        head.extend_from_slice(&self.vault.0);
        head.extend_from_slice(name);
        head.resize(HEAD_USED_BYTES - 4, 0);
        head.extend_from_slice(&crc_fast::crc32_iscsi(&head).to_le_bytes());
        head.resize(HEAD_BYTES as usize, 0);
        head
    }

    /// The image that a head names; `None` if it is no head.
    #[must_use]
    pub fn decode(head: &[u8]) -> Option<Self> {
        let used = head.get(..HEAD_USED_BYTES)?;
        let (said, crc) = used.split_at(HEAD_USED_BYTES - 4);
        if !said.starts_with(MAGIC) || crc_fast::crc32_iscsi(said).to_le_bytes() != crc {
            return None;
        }
        let number = |at: usize| said[at..at + 8].try_into().ok().map(u64::from_le_bytes);
        let name_bytes = u32::from_le_bytes(said[4..8].try_into().ok()?) as usize;
        let name = said.get(48..48_usize.checked_add(name_bytes)?)?;
        Some(Self {
            vault: Id128(said[32..48].try_into().ok()?),
            disk: DiskId::new(std::str::from_utf8(name).ok()?).ok()?,
            point: PointId { epoch: Epoch(number(16)?), seq: Seq(number(24)?) },
            disk_bytes: number(8)?,
        })
    }
}

/// What an entry of the log says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// These blocks are here.
    Came(Range<u64>),
    /// These blocks are in a copy of the disk, and no longer here.
    Left(Range<u64>),
    /// From now on blocks that are not here may be written in the copy alone.
    Moving,
}

impl Entry {
    /// Its bytes. A run is shorter than 2³¹ blocks.
    #[must_use]
    pub fn encode(&self, number: u64) -> [u8; ENTRY_BYTES] {
        let (start, count) = match self {
            Self::Came(run) => (run.start, (run.end - run.start) as u32),
            Self::Left(run) => (run.start, (run.end - run.start) as u32 | LEFT_BIT),
            Self::Moving => (0, LEFT_BIT),
        };
        let mut entry = [0; ENTRY_BYTES];
        entry[..8].copy_from_slice(&start.to_le_bytes());
        entry[8..12].copy_from_slice(&count.to_le_bytes());
        let crc = entry_crc(number, &entry);
        entry[12..].copy_from_slice(&crc.to_le_bytes());
        entry
    }

    /// What these bytes say of a disk of so many blocks; `None` if they are no entry of this number.
    #[must_use]
    pub fn decode(number: u64, entry: &[u8; ENTRY_BYTES], blocks: u64) -> Option<Self> {
        let [a, b, c, d, e, f, g, h, i, j, k, l, crc @ ..] = *entry;
        let start = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        let count = u32::from_le_bytes([i, j, k, l]);
        let run = start..start.checked_add(u64::from(count & !LEFT_BIT))?;
        if entry_crc(number, entry) != u32::from_le_bytes(crc) || run.end > blocks {
            return None;
        }
        match (run.is_empty(), count & LEFT_BIT != 0) {
            (false, false) => Some(Self::Came(run)),
            (false, true) => Some(Self::Left(run)),
            (true, true) if start == 0 => Some(Self::Moving),
            (true, _) => None,
        }
    }
}

/// With its number: an entry that stands in another's place is none.
fn entry_crc(number: u64, entry: &[u8; ENTRY_BYTES]) -> u32 {
    let mut said = [0; 20];
    said[..8].copy_from_slice(&number.to_le_bytes());
    said[8..].copy_from_slice(&entry[..12]);
    crc_fast::crc32_iscsi(&said)
}

/// Sets the checksum of an entry right, for the fuzzer.
#[cfg(any(test, feature = "fuzzing"))]
pub fn mend_entry(number: u64, entry: &mut [u8; ENTRY_BYTES]) {
    let crc = entry_crc(number, entry);
    entry[12..].copy_from_slice(&crc.to_le_bytes());
}

/// Which blocks are here.
#[derive(Debug)]
struct Blocks {
    here: ChunkSet,
    /// Of them those that the log does not tell yet.
    untold: ChunkSet,
}

/// The log's end.
#[derive(Debug)]
struct Log {
    file: File,
    /// Entries so far.
    entries: u64,
    /// A sync of it or of the blocks failed. The system may have dropped what was to be written and tells it once, so nothing more is
    /// promised before a restart.
    failed: bool,
}

/// An open overlay.
#[derive(Debug)]
pub struct Overlay {
    /// Blocks are read and written through it; it holds the lock.
    file: FileExport,
    disk_bytes: u64,
    head_at: u64,
    blocks: Mutex<Blocks>,
    log: Mutex<Log>,
    ranges: RangeLock,
    /// Blocks may have been written in a copy alone before it was opened.
    moving: bool,
    /// The next sync of the blocks fails.
    #[cfg(test)]
    fail_sync: std::sync::atomic::AtomicBool,
}

impl Overlay {
    /// Opens the overlay of an image, or makes an empty one.
    ///
    /// # Errors
    /// [`OverlayError`] if the file is something else, lies over another image, or is in use.
    pub fn open(path: &Path, image: &Image) -> Result<Self, OverlayError> {
        let head_at = image.disk_bytes.next_multiple_of(BLOCK_BYTES);
        let wrap = |operation| move |source| OverlayError::Io { operation, path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut log = options.open(path).map_err(wrap("opening"))?;
        begin(&log, path, image, head_at)?;
        let file = FileExport::open(image.disk.as_str(), path, false)?;
        let mut head = vec![0; HEAD_USED_BYTES];
        let found = log.read_exact_at(&mut head, head_at).ok().and_then(|()| Image::decode(&head));
        let foreign = || OverlayError::Foreign { path: path.to_owned(), disk_bytes: image.disk_bytes };
        let found = found.ok_or_else(foreign)?;
        if found != *image {
            let (found, wanted) = (found.to_string(), image.to_string());
            return Err(OverlayError::OtherImage { path: path.to_owned(), found, wanted });
        }
        let blocks = image.disk_bytes.div_ceil(BLOCK_BYTES);
        log.seek(SeekFrom::Start(head_at + HEAD_BYTES)).map_err(wrap("reading"))?;
        let (mut here, mut moving) = (ChunkSet::new(blocks), false);
        let entries = each_entry(&mut log, blocks, |entry| match entry {
            Entry::Came(run) => here.insert(run),
            Entry::Left(run) => here.remove(run),
            Entry::Moving => moving = true,
        });
        let entries = entries.map_err(wrap("reading"))?;
        // Entries behind one that is none were never promised, and must not count when others come before them.
        let end = head_at + HEAD_BYTES + entries * ENTRY_BYTES as u64;
        let rest_bytes = file.size_bytes().saturating_sub(end);
        if rest_bytes > 0 {
            file.zero(end, rest_bytes, ZeroFlags { fua: true, ..ZeroFlags::default() }).map_err(wrap("cutting"))?;
        }
        let blocks = Mutex::new(Blocks { here, untold: ChunkSet::new(blocks) });
        let log = Mutex::new(Log { file: log, entries, failed: false });
        let (disk_bytes, ranges) = (image.disk_bytes, RangeLock::default());
        Ok(Self {
            file,
            disk_bytes,
            head_at,
            blocks,
            log,
            ranges,
            moving,
            #[cfg(test)]
            fail_sync: std::sync::atomic::AtomicBool::default(),
        })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Bytes of the blocks that are here.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        (self.blocks.lock().here.len() * BLOCK_BYTES).min(self.disk_bytes)
    }

    /// Keeps others from changing these ranges, in whole blocks.
    pub fn lock(&self, ranges: &[Range<u64>]) -> RangeGuard<'_> {
        let whole = ranges.iter().map(|range| {
            let blocks = chunks_of(range.start, range.end - range.start, BLOCK_BYTES);
            blocks.start * BLOCK_BYTES..blocks.end * BLOCK_BYTES
        });
        self.ranges.lock_all(&whole.collect::<Vec<_>>())
    }

    /// The stretches of a range that are here and those that are not, in order, each looked up when it is asked for.
    pub fn stretches(&self, range: Range<u64>) -> impl Iterator<Item = (Range<u64>, bool)> + '_ {
        let (mut at, end) = (range.start, range.end);
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let block = at / BLOCK_BYTES;
            let run = self.blocks.lock().here.next_run(block, end.div_ceil(BLOCK_BYTES) - block);
            let (until, here) = match run {
                Some(run) if run.start <= block => (run.end * BLOCK_BYTES, true),
                Some(run) => (run.start * BLOCK_BYTES, false),
                None => (end, false),
            };
            let stretch = at..until.min(end);
            at = stretch.end;
            Some((stretch, here))
        })
    }

    /// Reads a range that is here.
    ///
    /// # Errors
    /// Of the file.
    pub fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read(offset_bytes, buf)
    }

    /// Writes, blocks that are touched in part being filled up from `below`. The range is locked by the caller.
    ///
    /// # Errors
    /// Of the file, or of `below`. Nothing of the range counts as here then that did not before.
    pub fn write(
        &self,
        offset_bytes: u64,
        data: &[u8],
        below: impl Fn(u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let range = offset_bytes..offset_bytes + data.len() as u64;
        self.fill_edges(&range, below)?;
        self.file.write(offset_bytes, data, false)?;
        self.came(&range);
        Ok(())
    }

    /// Makes a range read as zeroes, by a hole where that can be. The range is locked by the caller.
    ///
    /// # Errors
    /// As [`Overlay::write`].
    pub fn zero(
        &self,
        range: &Range<u64>,
        no_hole: bool,
        below: impl Fn(u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        self.fill_edges(range, below)?;
        let flags = ZeroFlags { no_hole, fua: false, fast: false };
        self.file.zero(range.start, range.end - range.start, flags)?;
        self.came(range);
        Ok(())
    }

    /// Fills the first and the last block of a range that is to be written in part of them.
    fn fill_edges(&self, range: &Range<u64>, below: impl Fn(u64, &mut [u8]) -> io::Result<()>) -> io::Result<()> {
        let whole = chunks_of(range.start, range.end - range.start, BLOCK_BYTES);
        let first = (!range.start.is_multiple_of(BLOCK_BYTES)).then_some(whole.start);
        // The disk may end inside a block.
        let cut = !range.end.is_multiple_of(BLOCK_BYTES) && range.end < self.disk_bytes;
        let last = cut.then_some(whole.end - 1).filter(|last| Some(*last) != first);
        let mut block = [0; BLOCK_BYTES as usize];
        for edge in first.into_iter().chain(last) {
            if self.blocks.lock().here.contains(edge) {
                continue;
            }
            let start = edge * BLOCK_BYTES;
            let length = BLOCK_BYTES.min(self.disk_bytes - start) as usize;
            below(start, &mut block[..length])?;
            self.file.write(start, &block[..length], false)?;
        }
        Ok(())
    }

    fn came(&self, range: &Range<u64>) {
        let run = chunks_of(range.start, range.end - range.start, BLOCK_BYTES);
        let mut blocks = self.blocks.lock();
        if blocks.here.all(run.clone()) {
            return;
        }
        // Runs of what is new only: the log grows by what comes, not by what is written again.
        let mut at = run.start;
        while at < run.end {
            if blocks.here.contains(at) {
                at = blocks.here.next_run(at, run.end - at).map_or(run.end, |known| known.end);
                continue;
            }
            let until = blocks.here.next_run(at, 1).map_or(run.end, |known| known.start).min(run.end);
            blocks.untold.insert(at..until);
            at = until;
        }
        blocks.here.insert(run);
    }

    /// Makes everything that was written before durable, and the log tell of it.
    ///
    /// # Errors
    /// Of the file. Nothing more is promised then, not even by a later call.
    pub fn flush(&self) -> io::Result<()> {
        let mut log = self.log.lock();
        self.check_log(&log)?;
        // Before the sync: what comes during it may not be durable.
        let told: Vec<Range<u64>> = {
            let mut blocks = self.blocks.lock();
            let told = blocks.untold.runs().collect();
            blocks.untold.clear();
            told
        };
        log.failed = true;
        self.sync_blocks()?;
        log.failed = false;
        self.append(&mut log, told.iter().flat_map(pieces).map(Entry::Came))
    }

    fn sync_blocks(&self) -> io::Result<()> {
        #[cfg(test)]
        if self.fail_sync.swap(false, std::sync::atomic::Ordering::Relaxed) {
            return Err(io::Error::other("told to fail"));
        }
        self.file.flush()
    }

    fn check_log(&self, log: &Log) -> io::Result<()> {
        if !log.failed {
            return Ok(());
        }
        let path = self.path().display();
        Err(io::Error::other(format!(
            "{path} could not be made durable: look at its disk, and start the same export again"
        )))
    }

    /// Appends entries and makes them durable.
    fn append(&self, log: &mut Log, entries: impl Iterator<Item = Entry>) -> io::Result<()> {
        self.check_log(log)?;
        let bytes: Vec<u8> = (log.entries..).zip(entries).flat_map(|(number, entry)| entry.encode(number)).collect();
        if bytes.is_empty() {
            return Ok(());
        }
        let at = self.head_at + HEAD_BYTES + log.entries * ENTRY_BYTES as u64;
        log.entries += (bytes.len() / ENTRY_BYTES) as u64;
        log.failed = true;
        log.file.write_all_at(&bytes, at)?;
        log.file.sync_data()?;
        log.failed = false;
        Ok(())
    }

    /// Says, durably, that blocks which are not here may from now on be written in a copy of the disk alone.
    ///
    /// # Errors
    /// Of the file.
    pub fn begin_moving(&self) -> io::Result<()> {
        if self.moving { Ok(()) } else { self.append(&mut self.log.lock(), std::iter::once(Entry::Moving)) }
    }

    /// The first runs of blocks that are here, in bytes, as many as hold no more than `bytes_max` in all.
    #[must_use]
    pub fn first_runs(&self, bytes_max: u64, runs_max: usize) -> Vec<Range<u64>> {
        let (mut found, mut left) = (Vec::new(), bytes_max / BLOCK_BYTES);
        let blocks = self.blocks.lock();
        let mut at = 0;
        while left > 0
            && found.len() < runs_max
            && let Some(run) = blocks.here.next_run(at, left)
        {
            at = run.end;
            left -= run.end - run.start;
            found.push(run.start * BLOCK_BYTES..(run.end * BLOCK_BYTES).min(self.disk_bytes));
        }
        found
    }

    /// Lets blocks go that lie durably in a copy of the disk. Durable itself when it returns. They are locked by the caller.
    ///
    /// # Errors
    /// Of the file; the blocks are here then as before.
    pub fn left(&self, ranges: &[Range<u64>]) -> io::Result<()> {
        let runs: Vec<Range<u64>> =
            ranges.iter().map(|range| chunks_of(range.start, range.end - range.start, BLOCK_BYTES)).collect();
        let mut log = self.log.lock();
        self.append(&mut log, runs.iter().flat_map(pieces).map(Entry::Left))?;
        let mut blocks = self.blocks.lock();
        for run in runs {
            blocks.here.remove(run.clone());
            blocks.untold.remove(run);
        }
        Ok(())
    }

    /// Whether blocks may be in a copy of the disk and nowhere else, from before it was opened.
    #[must_use]
    pub const fn moving(&self) -> bool {
        self.moving
    }

    /// What is a hole in a range that is here.
    ///
    /// # Errors
    /// Of the file.
    pub fn block_status(&self, range: &Range<u64>) -> io::Result<Vec<StatusExtent>> {
        self.file.block_status(range.start, range.end - range.start)
    }

    /// Removes the file: nothing of it is needed any more.
    ///
    /// # Errors
    /// Of the file system.
    pub fn remove(&self) -> io::Result<()> {
        std::fs::remove_file(self.path())
    }
}

/// Gives an empty file its head, under the lock: of two that find it empty, one makes it its own.
fn begin(file: &File, path: &Path, image: &Image, head_at: u64) -> Result<(), OverlayError> {
    let wrap = |operation| move |source| OverlayError::Io { operation, path: path.to_owned(), source };
    let empty = || {
        let meta = file.metadata().map_err(wrap("looking at"))?;
        Ok::<_, OverlayError>(meta.is_file() && meta.len() == 0)
    };
    if !empty()? {
        return Ok(());
    }
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(SourceError::InUse { path: path.to_owned() }.into()),
        Err(TryLockError::Error(source)) => return Err(wrap("locking")(source)),
    }
    if empty()? {
        // In one write, so that a file that is not empty has its head.
        file.write_all_at(&image.encode(), head_at).map_err(wrap("writing"))?;
        file.sync_all().map_err(wrap("syncing"))?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(wrap("syncing the folder of"))?;
    }
    // From here on it is locked by whoever uses its blocks.
    file.unlock().map_err(wrap("unlocking"))
}

/// A run in pieces that fit an entry each.
fn pieces(run: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let end = run.end;
    (run.start..end).step_by(RUN_BLOCKS_MAX as usize).map(move |start| start..end.min(start + RUN_BLOCKS_MAX))
}

/// Calls `visit` for each entry up to the first that is none; how many there were.
///
/// # Errors
/// Of the reader.
pub fn each_entry(log: &mut impl Read, blocks: u64, mut visit: impl FnMut(Entry)) -> io::Result<u64> {
    let mut log = io::BufReader::with_capacity(LOG_READ_BYTES, log);
    let (mut entry, mut number) = ([0; ENTRY_BYTES], 0);
    loop {
        match log.read_exact(&mut entry) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(number),
            Err(error) => return Err(error),
        }
        let Some(entry) = Entry::decode(number, &entry, blocks) else { return Ok(number) };
        visit(entry);
        number += 1;
    }
}

#[cfg(test)]
mod tests;
