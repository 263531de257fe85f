//! Messages that were opened, kept on a local disk under a bound, so that memory need not hold all that a guest works with.
//!
//! The file has no name: it is gone with the process, however that ends, and nobody finds guest data in it later. It is as
//! large as the disk and sparse; each message's bytes lie where they lie on the disk, which no other message supplies. What
//! is let go becomes a hole again. A checksum in memory says whether what comes back is what was put there: if not, the
//! vault is asked.

use std::collections::{HashMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, fallocate};

use crate::keys;
use crate::restore::plan::Owned;
use crate::types::Id128;

/// What the file system gives out at once: a smaller range takes as much.
const UNIT_BYTES: u64 = 4096;

#[derive(Debug)]
struct Entry {
    crc: u32,
    /// Ranges of the disk: offset and length.
    ranges: Vec<(u64, u32)>,
    taken_bytes: u64,
}

#[derive(Debug, Default)]
struct Held {
    entries: HashMap<u32, Entry>,
    /// The oldest first.
    order: VecDeque<u32>,
    taken_bytes: u64,
}

/// Opened messages on a local disk.
#[derive(Debug)]
pub struct Spill {
    file: File,
    folder: PathBuf,
    bytes_max: u64,
    held: Mutex<Held>,
    /// The disk refused a write: it is not asked again.
    full: AtomicBool,
}

impl Spill {
    /// An empty one in `folder`, for a disk of `disk_bytes`, that takes at most `bytes_max`.
    ///
    /// # Errors
    /// If no file can be made there.
    pub fn create(folder: &Path, disk_bytes: u64, bytes_max: u64) -> io::Result<Self> {
        let chance = keys::random().map_err(|_| io::Error::other("the system gives no random numbers"))?;
        let path = folder.join(format!(".tidegate-cache-{}", Id128(chance)));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        std::fs::remove_file(&path)?;
        file.set_len(disk_bytes)?;
        let held = Mutex::default();
        Ok(Self { file, folder: folder.to_owned(), bytes_max, held, full: AtomicBool::new(false) })
    }

    /// Whether a message is held.
    #[must_use]
    pub fn has(&self, message: u32) -> bool {
        self.held.lock().entries.contains_key(&message)
    }

    /// What a message supplies, if it is held and still what it was.
    #[must_use]
    pub fn get(&self, message: u32, owned: &[Owned]) -> Option<Bytes> {
        let crc = self.held.lock().entries.get(&message)?.crc;
        let mut bytes = vec![0; owned.iter().map(|owned| owned.length_bytes as usize).sum()];
        let mut at = 0;
        for owned in owned {
            let end = at + owned.length_bytes as usize;
            self.file.read_exact_at(&mut bytes[at..end], owned.offset_bytes).ok()?;
            at = end;
        }
        if crc_fast::crc32_iscsi(&bytes) != crc {
            // It was let go meanwhile, or the disk is not to be trusted: either way the vault has it.
            self.forget(message);
            return None;
        }
        Some(bytes.into())
    }

    fn forget(&self, message: u32) {
        let mut held = self.held.lock();
        let Some(entry) = held.entries.remove(&message) else { return };
        held.taken_bytes -= entry.taken_bytes;
        held.order.retain(|other| *other != message);
        drop(held);
        // If no hole can be made, nothing more is put there, and this is the least of it.
        let _ = self.punch(&entry);
    }

    fn punch(&self, entry: &Entry) -> io::Result<()> {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        for &(offset_bytes, length_bytes) in &entry.ranges {
            fallocate(&self.file, punch, offset_bytes, length_bytes.into())?;
        }
        Ok(())
    }

    /// Keeps what a message supplies, and lets the oldest go for it. A disk that refuses is left alone from then on.
    pub fn put(&self, message: u32, owned: &[Owned], bytes: &[u8]) {
        let ranges: Vec<(u64, u32)> = owned.iter().map(|owned| (owned.offset_bytes, owned.length_bytes)).collect();
        let taken_bytes = ranges.iter().map(|range| units(*range)).sum();
        if self.full.load(Ordering::Relaxed) || taken_bytes > self.bytes_max || self.has(message) {
            return;
        }
        let written = self.make_room(taken_bytes).and_then(|()| self.write(&ranges, bytes));
        if let Err(error) = written {
            self.full.store(true, Ordering::Relaxed);
            tracing::warn!(folder = %self.folder.display(), %error, "the cache takes no more; the vault is asked instead");
            return;
        }
        let mut held = self.held.lock();
        held.order.push_back(message);
        held.entries.insert(message, Entry { crc: crc_fast::crc32_iscsi(bytes), ranges, taken_bytes });
    }

    fn write(&self, ranges: &[(u64, u32)], bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        for &(offset_bytes, length_bytes) in ranges {
            let (part, behind) = rest.split_at(length_bytes as usize);
            self.file.write_all_at(part, offset_bytes)?;
            rest = behind;
        }
        Ok(())
    }

    /// Lets others go until there is room, and takes it.
    fn make_room(&self, need_bytes: u64) -> io::Result<()> {
        loop {
            let mut held = self.held.lock();
            if held.taken_bytes + need_bytes <= self.bytes_max || held.order.is_empty() {
                held.taken_bytes += need_bytes;
                return Ok(());
            }
            let Some(oldest) = held.order.pop_front() else { return Ok(()) };
            let Some(entry) = held.entries.remove(&oldest) else { continue };
            held.taken_bytes -= entry.taken_bytes;
            drop(held);
            self.punch(&entry)?;
        }
    }
}

/// What a range takes on the disk, at most.
const fn units(range: (u64, u32)) -> u64 {
    let end = (range.0 + range.1 as u64).next_multiple_of(UNIT_BYTES);
    end - range.0 / UNIT_BYTES * UNIT_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Seq;

    fn owned(offset_bytes: u64, length_bytes: u32) -> Owned {
        Owned { seq: Seq(1), extent: 0, skip_bytes: 0, offset_bytes, length_bytes }
    }

    #[test]
    fn the_oldest_goes_and_neighbours_in_one_block_stay() {
        let folder = tempfile::tempdir().unwrap();
        let spill = Spill::create(folder.path(), 1 << 20, 8 * UNIT_BYTES).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "it has no name");
        let parts = |message: u64| [owned(message * 6000, 3000), owned(message * 6000 + 3000, 3000)];
        for message in 0..4 {
            let bytes = vec![message as u8 + 1; 6000];
            spill.put(message, &parts(message.into()), &bytes);
        }
        assert!(!spill.has(0) && spill.has(3));
        for message in 1..4 {
            let back = spill.get(message, &parts(message.into()));
            assert_eq!(back.is_some(), spill.has(message), "{message}");
            assert!(back.is_none_or(|bytes| bytes.len() == 6000 && bytes.iter().all(|b| u32::from(*b) == message + 1)));
        }
        assert!(spill.held.lock().taken_bytes <= 8 * UNIT_BYTES);
    }

    #[test]
    fn what_the_disk_altered_is_not_given_out() {
        let folder = tempfile::tempdir().unwrap();
        let spill = Spill::create(folder.path(), 1 << 20, 1 << 20).unwrap();
        spill.put(7, &[owned(0, 4096)], &[9; 4096]);
        assert_eq!(spill.get(7, &[owned(0, 4096)]).as_deref(), Some(&[9; 4096][..]));
        spill.file.write_all_at(&[8], 100).unwrap();
        assert_eq!(spill.get(7, &[owned(0, 4096)]), None);
        assert!(!spill.has(7), "it may be put there again");
    }
}
