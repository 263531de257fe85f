//! The activity map: which regions of a disk may differ from what the vault has at the persisted floor.
//!
//! It is what is left of the dirty map after a crash. Rules:
//!
//! - Before a write may reach the disk, the bit of its region is durable ([`ActivityMap::ensure`]: written, then
//!   fdatasync; one sync serves all writers that wait; neighbours are taken along when writes run forward).
//! - A bit is cleared only when everything of the region is vaulted, the disk itself has been flushed (after a power cut
//!   it must not be older than the vault), and a floor that covers it all has been persisted. Clearing needs no sync: a
//!   bit that stays only costs reading its region once more.
//! - A bit that cannot be read counts as set; a map that cannot be read means that everything may differ.
//!
//! Clearing runs in three steps, so that no lock is held over I/O: [`ActivityMap::watch`], then choose candidates and
//! persist the floor, then [`ActivityMap::clear`], which spares every region touched since `watch`.
//!
//! A region has 4 MiB: small enough that a crash after a busy minute costs seconds of reading, large enough that a
//! random writer syncs the map once per 4 MiB and a map of 64 TiB has 2 MiB.
//!
//! The file is format `TGA` version 1 of `docs/FORMAT.md`: a header and then blocks of 512 bytes (what a disk writes
//! whole), each with its own checksum.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use parking_lot::{Condvar, Mutex};

use super::chunk_set::{ChunkSet, chunks_of};
use super::state::replace_file;
use crate::fault::{Classify, Fault};
use crate::flow::platter;
use crate::types::DiskId;
use crate::wire::frame::crc32c;

/// Bytes of one region.
pub const REGION_BYTES: u64 = 4 << 20;
/// Regions taken along when writes run forward: a sync per 64 MiB of a sequential stream.
const PREFETCH_REGIONS: u64 = 16;
const MAGIC: [u8; 4] = *b"TGA\x01";
const BLOCK_BYTES: usize = 512;
/// Bitmap bytes of a block; block number and checksum take the rest.
const BLOCK_BITMAP_BYTES: usize = BLOCK_BYTES - 8;
const BLOCK_REGIONS: u64 = BLOCK_BITMAP_BYTES as u64 * 8;

/// The two operations that the map needs of its file; a seam for crash tests.
pub trait MapFile: Send + Sync {
    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// If not all was written.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes what was written durable.
    ///
    /// # Errors
    /// If that cannot be promised; then nothing may be believed about any write since the last success.
    fn sync(&self) -> io::Result<()>;
    /// Removes the file durably: the map is not to be used any more.
    ///
    /// # Errors
    /// If it may still be there after a crash.
    fn discard(&self) -> io::Result<()>;
}

struct DiskFile {
    file: File,
    path: PathBuf,
}

impl MapFile for DiskFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        platter::sync_data(&self.file, &self.path)
    }

    fn discard(&self) -> io::Result<()> {
        std::fs::remove_file(&self.path)?;
        platter::sync_folder(self.path.parent().unwrap_or(Path::new(".")))
    }
}

/// Why a map file cannot be used. Everything of the disk must then be compared anew.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// It is not there.
    #[error("activity map {} does not exist", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be read or written.
    #[error("activity map {} cannot be used", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Its header is damaged, of another version, or of another disk.
    #[error("activity map {} has no valid header: {what}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
}

impl Classify for MapError {
    fn fault(&self) -> Fault {
        match self {
            Self::Missing { .. } | Self::Io { .. } => Fault::Retry,
            Self::Header { .. } => Fault::Corrupt,
        }
    }
}

struct Inner {
    /// Bits as they are to be.
    wanted: ChunkSet,
    /// Bits known to be set in the file durably; a subset of `wanted`.
    durable: ChunkSet,
    /// Regions asked for since [`ActivityMap::watch`].
    touched: ChunkSet,
    /// Blocks of the file that are not as `wanted`.
    stale_blocks: BTreeSet<u64>,
    /// Regions set since the last write began.
    fresh: ChunkSet,
    /// Counts changes of `wanted` that must be durable, and up to which they are.
    version: u64,
    durable_version: u64,
    writing: bool,
    /// The file failed: it was removed, all is active (`Ok`), or it could not be removed (`Err`).
    failed: Option<Result<(), String>>,
}

/// The activity map of one disk. Shared by all its writers.
pub struct ActivityMap {
    file: Box<dyn MapFile>,
    inner: Mutex<Inner>,
    changed: Condvar,
}

fn header(disk: &DiskId, disk_bytes: u64) -> [u8; BLOCK_BYTES] {
    let mut out = [0; BLOCK_BYTES];
    out[0..4].copy_from_slice(&MAGIC);
    out[8..16].copy_from_slice(&disk_bytes.to_le_bytes());
    out[16..24].copy_from_slice(&REGION_BYTES.to_le_bytes());
    out[24] = disk.as_str().len() as u8;
    out[25..25 + disk.as_str().len()].copy_from_slice(disk.as_str().as_bytes());
    let crc = crc32c([&out[..BLOCK_BYTES - 4]]);
    out[BLOCK_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    out
}

fn encode_block(number: u64, set: &ChunkSet) -> [u8; BLOCK_BYTES] {
    let mut out = [0; BLOCK_BYTES];
    let first = number * BLOCK_REGIONS;
    let mut from = first;
    while let Some(run) = set.next_run(from, u64::MAX).filter(|run| run.start < first + BLOCK_REGIONS) {
        from = run.end.min(first + BLOCK_REGIONS);
        for bit in run.start - first..from - first {
            out[(bit / 8) as usize] |= 1 << (bit % 8);
        }
    }
    out[BLOCK_BITMAP_BYTES..BLOCK_BITMAP_BYTES + 4].copy_from_slice(&(number as u32).to_le_bytes());
    let crc = crc32c([&out[..BLOCK_BYTES - 4]]);
    out[BLOCK_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Puts the bits of a block into `set`; false (and nothing put) if the block is damaged.
fn decode_block(number: u64, block: &[u8], set: &mut ChunkSet) -> bool {
    let (body, crc) = block.split_at(BLOCK_BYTES - 4);
    let (bits, at) = body.split_at(BLOCK_BITMAP_BYTES);
    if crc != crc32c([body]).to_le_bytes() || at != (number as u32).to_le_bytes() {
        return false;
    }
    let first = number * BLOCK_REGIONS;
    for (byte, value) in bits.iter().enumerate().filter(|(_, value)| **value != 0) {
        for bit in (0..8).filter(|bit| value >> bit & 1 == 1) {
            let region = first + byte as u64 * 8 + bit;
            set.insert(region..region + 1);
        }
    }
    true
}

fn regions_of_disk(disk_bytes: u64) -> u64 {
    disk_bytes.div_ceil(REGION_BYTES)
}

pub(crate) fn encode_file(disk: &DiskId, disk_bytes: u64, set: &ChunkSet) -> Vec<u8> {
    let blocks = regions_of_disk(disk_bytes).div_ceil(BLOCK_REGIONS);
    let mut out = Vec::with_capacity((blocks as usize + 1) * BLOCK_BYTES);
    out.extend_from_slice(&header(disk, disk_bytes));
    (0..blocks).for_each(|number| out.extend_from_slice(&encode_block(number, set)));
    out
}

/// Reads a map file's bytes; returns the active regions and how many blocks were damaged (they count as active).
pub(crate) fn decode_file(bytes: &[u8], disk: &DiskId, disk_bytes: u64) -> Result<(ChunkSet, u64), &'static str> {
    let head = bytes.get(..BLOCK_BYTES).ok_or("cut short")?;
    if head[..4] != MAGIC {
        return Err("another format or version");
    }
    if head[BLOCK_BYTES - 4..] != crc32c([&head[..BLOCK_BYTES - 4]]).to_le_bytes() {
        return Err("checksum mismatch");
    }
    if head != header(disk, disk_bytes) {
        return Err("another disk, size or region size");
    }
    let mut set = ChunkSet::new(regions_of_disk(disk_bytes));
    let mut damaged = 0;
    for number in 0..set.limit().div_ceil(BLOCK_REGIONS) {
        let at = (number as usize + 1) * BLOCK_BYTES;
        if !bytes.get(at..at + BLOCK_BYTES).is_some_and(|block| decode_block(number, block, &mut set)) {
            damaged += 1;
            set.insert(number * BLOCK_REGIONS..(number + 1) * BLOCK_REGIONS);
        }
    }
    Ok((set, damaged))
}

/// Sets header and checksums right, for a fuzzer.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn mend(bytes: &mut [u8], disk: &DiskId, disk_bytes: u64) {
    for (number, block) in bytes.chunks_exact_mut(BLOCK_BYTES).enumerate() {
        match number.checked_sub(1) {
            None => block.copy_from_slice(&header(disk, disk_bytes)),
            Some(number) => {
                block[BLOCK_BITMAP_BYTES..BLOCK_BITMAP_BYTES + 4].copy_from_slice(&(number as u32).to_le_bytes());
                let crc = crc32c([&block[..BLOCK_BYTES - 4]]);
                block[BLOCK_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
            }
        }
    }
}

impl ActivityMap {
    /// Creates the map anew with every region active, replacing any older file.
    ///
    /// # Errors
    /// [`MapError::Io`] names the file.
    pub fn create(path: &Path, disk: &DiskId, disk_bytes: u64) -> Result<Self, MapError> {
        let io_error = |source| MapError::Io { path: path.to_owned(), source };
        let set = ChunkSet::full(regions_of_disk(disk_bytes));
        replace_file(path, &encode_file(disk, disk_bytes, &set)).map_err(io_error)?;
        Self::on_disk(path, set).map_err(io_error)
    }

    /// Opens the map; returns it and the number of damaged blocks, whose regions count as active.
    ///
    /// # Errors
    /// [`MapError`]: then everything must count as active, see [`ActivityMap::create`].
    pub fn open(path: &Path, disk: &DiskId, disk_bytes: u64) -> Result<(Self, u64), MapError> {
        let io_error = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => MapError::Missing { path: path.to_owned() },
            _ => MapError::Io { path: path.to_owned(), source },
        };
        let bytes = std::fs::read(path).map_err(io_error)?;
        let (set, damaged) =
            decode_file(&bytes, disk, disk_bytes).map_err(|what| MapError::Header { path: path.to_owned(), what })?;
        if damaged > 0 {
            // Written whole once, so that no damaged block stays; also proves that the file can be written.
            replace_file(path, &encode_file(disk, disk_bytes, &set)).map_err(io_error)?;
        }
        Ok((Self::on_disk(path, set).map_err(io_error)?, damaged))
    }

    fn on_disk(path: &Path, set: ChunkSet) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        // What was read may be in the page cache only, if an earlier process was killed before its sync.
        platter::sync_data(&file, path)?;
        Ok(Self::new(Box::new(DiskFile { file, path: path.to_owned() }), set))
    }

    /// A map over `file` whose durable content is `set`.
    #[must_use]
    pub fn new(file: Box<dyn MapFile>, set: ChunkSet) -> Self {
        let regions = set.limit();
        let inner = Inner {
            durable: set.clone(),
            wanted: set,
            touched: ChunkSet::new(regions),
            stale_blocks: BTreeSet::new(),
            fresh: ChunkSet::new(regions),
            version: 0,
            durable_version: 0,
            writing: false,
            failed: None,
        };
        Self { file, inner: Mutex::new(inner), changed: Condvar::new() }
    }

    /// Returns once the regions of the byte range are durably active. Blocks the thread for a write and a sync of the
    /// map at the first touch of a region, else not at all.
    ///
    /// # Errors
    /// Only if the map's file failed and could not be removed either: a write that went on could be lost for the vault
    /// after a crash.
    pub fn ensure(&self, offset_bytes: u64, length_bytes: u64) -> io::Result<()> {
        self.ensure_all(&[(offset_bytes, length_bytes)])
    }

    /// The same for many byte ranges, each an offset and a length, with one write and sync for all.
    ///
    /// # Errors
    /// As [`ActivityMap::ensure`].
    pub fn ensure_all(&self, ranges: &[(u64, u64)]) -> io::Result<()> {
        let mut inner = self.inner.lock();
        let mut all_durable = true;
        for (offset_bytes, length_bytes) in ranges {
            let regions = chunks_of(*offset_bytes, *length_bytes, REGION_BYTES);
            all_durable &= inner.want(regions);
        }
        if all_durable {
            return Ok(());
        }
        let version = inner.version;
        while inner.durable_version < version && inner.failed.is_none() {
            if inner.writing {
                self.changed.wait(&mut inner);
            } else {
                self.write_out(&mut inner, true);
            }
        }
        if matches!(inner.failed, Some(Err(_))) && self.file.discard().is_ok() {
            tracing::warn!("the failed activity map is removed now: writes go on");
            inner.failed = Some(Ok(()));
            inner.durable = ChunkSet::full(inner.wanted.limit());
        }
        match &inner.failed {
            None | Some(Ok(())) => Ok(()),
            Some(Err(text)) => Err(io::Error::other(text.clone())),
        }
    }

    /// Writes the stale blocks with the lock released meanwhile. Only one thread is in here at a time.
    fn write_out(&self, inner: &mut parking_lot::MutexGuard<'_, Inner>, sync: bool) {
        inner.writing = true;
        let version = inner.version;
        let regions = inner.wanted.limit();
        let fresh = std::mem::replace(&mut inner.fresh, ChunkSet::new(regions));
        let stale = std::mem::take(&mut inner.stale_blocks);
        let blocks: Vec<_> = stale.iter().map(|&number| (number, encode_block(number, &inner.wanted))).collect();
        let outcome = parking_lot::MutexGuard::unlocked(inner, || {
            for (number, block) in &blocks {
                self.file.write_at((number + 1) * BLOCK_BYTES as u64, block)?;
            }
            if sync { self.file.sync() } else { Ok(()) }
        });
        inner.writing = false;
        match outcome {
            Ok(()) if sync => {
                inner.durable_version = version;
                for run in fresh.runs() {
                    // A prefetched region may have been cleared during the write.
                    for region in run.filter(|&region| inner.wanted.contains(region)).collect::<Vec<_>>() {
                        inner.durable.insert(region..region + 1);
                    }
                }
            }
            Ok(()) => inner.fresh.absorb(&fresh),
            Err(error) => self.fail(inner, &error),
        }
        self.changed.notify_all();
    }

    /// After a failed write or sync nothing is known about the file. Without it a crash costs a comparison of the whole
    /// disk, which is safe; with a wrong one it would lose writes.
    fn fail(&self, inner: &mut Inner, error: &io::Error) {
        let regions = inner.wanted.limit();
        inner.wanted = ChunkSet::full(regions);
        inner.durable = ChunkSet::full(regions);
        inner.failed = Some(match self.file.discard() {
            Ok(()) => {
                tracing::error!(%error, "activity map failed and was removed: a crash will cost a copy of the whole disk; \
                    repair the state directory and restart the agent");
                Ok(())
            }
            Err(discard) => {
                tracing::error!(%error, %discard, "activity map failed and cannot be removed: writes fail until it can");
                inner.durable.clear();
                Err(format!("activity map of the disk failed ({error}) and cannot be removed ({discard})"))
            }
        });
    }

    /// Step 1 of clearing: from now on, note every region that is asked for.
    pub fn watch(&self) {
        self.inner.lock().touched.clear();
    }

    /// The first run of active regions at or after `from`, cut to `max` regions.
    #[must_use]
    pub fn next_active(&self, from: u64, max: u64) -> Option<Range<u64>> {
        self.inner.lock().wanted.next_run(from, max)
    }

    /// Active regions.
    #[must_use]
    pub fn active_regions(&self) -> u64 {
        self.inner.lock().wanted.len()
    }

    /// Step 3 of clearing: clears the candidates, but none that was asked for since [`ActivityMap::watch`]. Written
    /// without a sync.
    pub fn clear(&self, candidates: &ChunkSet) {
        let mut inner = self.inner.lock();
        if inner.failed.is_some() {
            return;
        }
        for run in candidates.runs() {
            for region in run {
                if !inner.touched.contains(region) && inner.wanted.contains(region) {
                    inner.wanted.remove(region..region + 1);
                    inner.durable.remove(region..region + 1);
                    inner.stale_blocks.insert(region / BLOCK_REGIONS);
                }
            }
        }
        if !inner.writing && !inner.stale_blocks.is_empty() {
            self.write_out(&mut inner, false);
        }
    }
}

impl Inner {
    /// Wants regions to be active. Returns whether they are, durably.
    fn want(&mut self, regions: Range<u64>) -> bool {
        self.touched.insert(regions.clone());
        if self.durable.all(regions.clone()) {
            return true;
        }
        let forward = regions.start > 0 && self.wanted.contains(regions.start - 1);
        let end = if forward { regions.end + PREFETCH_REGIONS } else { regions.end };
        if !self.wanted.all(regions.clone()) {
            self.set(regions.start..end);
        }
        false
    }

    fn set(&mut self, regions: Range<u64>) {
        let regions = regions.start..regions.end.min(self.wanted.limit());
        self.stale_blocks.extend(regions.start / BLOCK_REGIONS..regions.end.div_ceil(BLOCK_REGIONS));
        self.wanted.insert(regions.clone());
        self.fresh.insert(regions);
        self.version += 1;
    }
}

#[cfg(test)]
mod tests;
