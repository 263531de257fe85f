//! A disk in memory that does what real ones may: tear, lose, reorder and fail writes, hold completions, crash.
//!
//! Every file has two contents: what reads see, and what would survive a power cut. A write changes the first and
//! waits in a list; a sync moves the list to the second. At a crash, each block of each waiting write survives or
//! not, by [`Survival`]. The random numbers are the simulation's own and come from its seed.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{AlignedBuf, Disk, DiskFile, File, Files, Listed};
use crate::types::Id128;

/// Which unsynced blocks survive a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survival {
    /// None.
    None,
    /// Those of the first writes, up to a random block.
    Prefix,
    /// Any: writes reach the platter in any order.
    Subset,
    /// All.
    All,
}

/// What goes wrong, in percent of the operations.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// Writes that fail.
    pub write_fails: u8,
    /// Writes that do only a part and say so.
    pub write_short: u8,
    /// Writes that claim success and do nothing.
    pub write_lost: u8,
    /// Syncs that fail; what waited is then durable in part, and no later sync can save the rest.
    pub sync_fails: u8,
    /// Nothing can be changed any more, as after a file system met an error: every change fails.
    pub read_only: bool,
}

/// How slow the disk is, in the time of the runtime that uses it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Delays {
    /// Each write.
    pub write: Duration,
    /// Each sync.
    pub sync: Duration,
}

#[derive(Debug, Clone)]
struct Waiting {
    offset: usize,
    bytes: Vec<u8>,
}

#[derive(Debug, Clone, Default)]
struct Content {
    seen: Vec<u8>,
    durable: Vec<u8>,
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct State {
    files: BTreeMap<PathBuf, Arc<Mutex<Content>>>,
    faults: Faults,
    delays: Delays,
    /// Of the journal that is made here.
    identity: Id128,
    rng: u64,
    dead: bool,
    /// Files' bytes together may not exceed this.
    room_bytes: u64,
    /// What a file gets that has no room.
    no_room: io::ErrorKind,
    /// Files that got none.
    no_rooms: u32,
    syncs_held: bool,
    syncs_waiting: usize,
    /// Operations seen: writes, syncs.
    counts: (u64, u64),
}

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    released: Notify,
}

/// The simulated disk. Clones share it.
#[derive(Debug, Clone)]
pub struct SimDisk(Arc<Inner>);

/// An open simulated file.
#[derive(Debug)]
pub struct SimFile {
    disk: SimDisk,
    content: Arc<Mutex<Content>>,
}

/// A small generator (xorshift multiply); good enough to choose faults, and the same everywhere.
pub fn draw(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

fn gone() -> io::Error {
    io::Error::other("the simulated machine has crashed")
}

fn injected(what: &'static str) -> io::Error {
    io::Error::other(what)
}

impl State {
    fn chance(&mut self, percent: u8) -> bool {
        draw(&mut self.rng) % 100 < u64::from(percent)
    }

    fn changeable(&self) -> io::Result<()> {
        if self.faults.read_only { Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem)) } else { Ok(()) }
    }
}

impl SimDisk {
    /// An empty disk.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let rng = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15) | 1;
        let mut name = rng;
        let identity = u128::from(draw(&mut name)) << 64 | u128::from(draw(&mut name));
        Self::with_identity(rng, Id128(identity.to_be_bytes()))
    }

    fn with_identity(rng: u64, identity: Id128) -> Self {
        let state = State {
            files: BTreeMap::new(),
            faults: Faults::default(),
            delays: Delays::default(),
            identity,
            rng: rng | 1,
            dead: false,
            room_bytes: u64::MAX,
            no_room: io::ErrorKind::StorageFull,
            no_rooms: 0,
            syncs_held: false,
            syncs_waiting: 0,
            counts: (0, 0),
        };
        Self(Arc::new(Inner { state: Mutex::new(state), released: Notify::new() }))
    }

    /// The identity of the journal that is made here; it outlives crashes.
    #[must_use]
    pub fn identity(&self) -> Id128 {
        self.0.state.lock().identity
    }

    /// Makes it the disk of another journal.
    pub fn set_identity(&self, identity: Id128) {
        self.0.state.lock().identity = identity;
    }

    /// From now on operations take so long. A write has landed, and waits for a sync, as soon as it has begun.
    pub fn set_delays(&self, delays: Delays) {
        self.0.state.lock().delays = delays;
    }

    /// From now on these faults happen.
    pub fn set_faults(&self, faults: Faults) {
        self.0.state.lock().faults = faults;
    }

    /// From now on files have so much room together.
    pub fn set_room(&self, bytes: u64) {
        self.0.state.lock().room_bytes = bytes;
    }

    /// What a file gets from now on that has no room: a full file system and a quota answer differently.
    pub fn set_no_room(&self, kind: io::ErrorKind) {
        self.0.state.lock().no_room = kind;
    }

    /// How many files found no room.
    #[must_use]
    pub fn no_rooms(&self) -> u32 {
        self.0.state.lock().no_rooms
    }

    /// From now on syncs do their work only after [`Self::release_syncs`].
    pub fn hold_syncs(&self) {
        self.0.state.lock().syncs_held = true;
    }

    /// Ends [`Self::hold_syncs`].
    pub fn release_syncs(&self) {
        self.0.state.lock().syncs_held = false;
        self.0.released.notify_waiters();
    }

    /// Syncs that wait to be released.
    #[must_use]
    pub fn syncs_waiting(&self) -> usize {
        self.0.state.lock().syncs_waiting
    }

    /// (writes, syncs) so far.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        self.0.state.lock().counts
    }

    /// Cuts the power: this disk fails every further operation; the answer is the disk after the restart.
    #[must_use]
    pub fn crash(&self, survival: Survival, block_bytes: usize) -> Self {
        let mut state = self.0.state.lock();
        state.dead = true;
        let after = Self::with_identity(draw(&mut state.rng), state.identity);
        // Handed over, not copied: the dead disk refuses every operation before it looks at a file.
        let files = std::mem::take(&mut state.files);
        for content in files.values() {
            let Content { seen, durable, waiting } = &mut *content.lock();
            keep_some(durable, waiting, survival, block_bytes, &mut state.rng);
            // Only what waited can differ.
            for write in waiting.drain(..) {
                let range = write.offset..write.offset + write.bytes.len();
                seen[range.clone()].copy_from_slice(&durable[range]);
            }
        }
        after.0.state.lock().files = files;
        drop(state);
        self.0.released.notify_waiters();
        after
    }

    /// Kills the process only: what was written is still seen, but no more durable than before.
    #[must_use]
    pub fn kill(&self) -> Self {
        let mut state = self.0.state.lock();
        state.dead = true;
        let after = Self::with_identity(draw(&mut state.rng), state.identity);
        after.0.state.lock().files = std::mem::take(&mut state.files);
        drop(state);
        self.0.released.notify_waiters();
        after
    }

    /// A disk of its own with the same files.
    #[cfg(test)]
    #[must_use]
    pub fn copy(&self) -> Self {
        let mut state = self.0.state.lock();
        let copy = Self::with_identity(draw(&mut state.rng), state.identity);
        let files =
            state.files.iter().map(|(path, content)| (path.clone(), Arc::new(Mutex::new(content.lock().clone()))));
        copy.0.state.lock().files = files.collect();
        copy
    }

    /// Changes stored bytes behind everybody's back; nothing if there is no such file.
    pub fn corrupt(&self, path: &Path, change: impl FnOnce(&mut [u8])) {
        let Ok(content) = self.content(path) else { return };
        let mut content = content.lock();
        change(&mut content.seen);
        content.durable = content.seen.clone();
        content.waiting.clear();
    }

    /// What reads see of a file; empty if there is no such file.
    #[must_use]
    pub fn bytes_of(&self, path: &Path) -> Vec<u8> {
        self.content(path).map_or(Vec::new(), |content| content.lock().seen.clone())
    }

    /// Paths of all files, in order.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        self.0.state.lock().files.keys().cloned().collect()
    }

    fn content(&self, path: &Path) -> io::Result<Arc<Mutex<Content>>> {
        let state = self.0.state.lock();
        if state.dead {
            return Err(gone());
        }
        state.files.get(path).cloned().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    fn alive(&self) -> io::Result<()> {
        if self.0.state.lock().dead { Err(gone()) } else { Ok(()) }
    }
}

fn keep_some(durable: &mut [u8], waiting: &[Waiting], survival: Survival, block_bytes: usize, rng: &mut u64) {
    let blocks: usize = waiting.iter().map(|write| write.bytes.len().div_ceil(block_bytes)).sum();
    let prefix = if blocks == 0 { 0 } else { draw(rng) as usize % (blocks + 1) };
    let mut number = 0;
    for write in waiting {
        for (index, block) in write.bytes.chunks(block_bytes).enumerate() {
            let keep = match survival {
                Survival::None => false,
                Survival::Prefix => number < prefix,
                Survival::Subset => draw(rng) & 1 == 0,
                Survival::All => true,
            };
            if keep {
                let at = write.offset + index * block_bytes;
                durable[at..at + block.len()].copy_from_slice(block);
            }
            number += 1;
        }
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    fn open(&self, path: &Path) -> io::Result<SimFile> {
        Ok(SimFile { disk: self.clone(), content: self.content(path)? })
    }
}

impl Files for SimDisk {
    fn create_dir(&self, _dir: &Path) -> io::Result<()> {
        self.alive()
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Listed>> {
        self.alive()?;
        let state = self.0.state.lock();
        let here = state.files.iter().filter(|(path, _)| path.parent() == Some(dir));
        Ok(here
            .map(|(path, content)| Listed {
                name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                bytes: content.lock().seen.len() as u64,
            })
            .collect())
    }

    fn create_zeroed(&self, path: &Path, bytes: u64) -> io::Result<()> {
        self.alive()?;
        let mut state = self.0.state.lock();
        state.changeable()?;
        let used: u64 = state.files.values().map(|content| content.lock().seen.len() as u64).sum();
        if used + bytes > state.room_bytes {
            state.no_rooms += 1;
            return Err(io::Error::from(state.no_room));
        }
        if state.files.contains_key(path) {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        // Twice fresh zeroes rather than a copy: the system gives them without touching memory.
        let (seen, durable) = (vec![0; bytes as usize], vec![0; bytes as usize]);
        let content = Content { seen, durable, waiting: Vec::new() };
        state.files.insert(path.to_owned(), Arc::new(Mutex::new(content)));
        Ok(())
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        Ok(Box::new(SimFile { disk: self.clone(), content: self.content(path)? }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.alive()?;
        let mut state = self.0.state.lock();
        state.changeable()?;
        let content = state.files.remove(from).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        state.files.insert(to.to_owned(), content);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.alive()?;
        let mut state = self.0.state.lock();
        state.changeable()?;
        state.files.remove(path);
        Ok(())
    }
}

impl SimFile {
    async fn take_time(&self, which: impl FnOnce(Delays) -> Duration) {
        let delay = which(self.disk.0.state.lock().delays);
        if delay.is_zero() {
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(delay).await;
        }
    }

    fn write_now(&self, bytes: &[u8], offset: usize) -> io::Result<usize> {
        let mut state = self.disk.0.state.lock();
        if state.dead {
            return Err(gone());
        }
        state.counts.0 += 1;
        state.changeable()?;
        let faults = state.faults;
        if state.chance(faults.write_fails) {
            return Err(injected("injected write failure"));
        }
        let lost = state.chance(faults.write_lost);
        let short = bytes.len() > 512 && state.chance(faults.write_short);
        let length = if short { 512 * (1 + draw(&mut state.rng) as usize % (bytes.len() / 512)) } else { bytes.len() };
        // Still under the disk's lock: a crash finds an operation done or not begun, and nothing lands on the disk after it.
        let mut content = self.content.lock();
        if offset + length > content.seen.len() {
            return Err(injected("write beyond the end of a segment"));
        }
        if !lost {
            content.seen[offset..offset + length].copy_from_slice(&bytes[..length]);
            content.waiting.push(Waiting { offset, bytes: bytes[..length].to_vec() });
        }
        Ok(length)
    }

    fn sync_now(&self) -> io::Result<()> {
        let mut state = self.disk.0.state.lock();
        if state.dead {
            return Err(gone());
        }
        state.counts.1 += 1;
        state.changeable()?;
        let faults = state.faults;
        let fails = state.chance(faults.sync_fails);
        let mut rng = draw(&mut state.rng) | 1;
        // Still under the disk's lock: a crash finds an operation done or not begun, and nothing lands on the disk after it.
        let mut content = self.content.lock();
        let waiting = std::mem::take(&mut content.waiting);
        let survival = if fails { Survival::Subset } else { Survival::All };
        keep_some(&mut content.durable, &waiting, survival, 512, &mut rng);
        if fails {
            // Past the page cache, reads tell what the platter has.
            content.seen = content.durable.clone();
            return Err(injected("injected sync failure"));
        }
        Ok(())
    }

    fn read_now(&self, out: &mut [u8], offset: usize) -> io::Result<usize> {
        self.disk.alive()?;
        let content = self.content.lock();
        let length = out.len().min(content.seen.len().saturating_sub(offset));
        out[..length].copy_from_slice(&content.seen[offset..offset + length]);
        Ok(length)
    }
}

impl DiskFile for SimFile {
    async fn write_at(
        &self,
        buf: AlignedBuf,
        range: Range<usize>,
        offset_bytes: u64,
    ) -> (io::Result<usize>, AlignedBuf) {
        // Landed before the first await: a dropped write lands as well.
        let written = self.write_now(&buf[range], offset_bytes as usize);
        self.take_time(|delays| delays.write).await;
        (written, buf)
    }

    async fn read_at(
        &self,
        mut buf: AlignedBuf,
        range: Range<usize>,
        offset_bytes: u64,
    ) -> (io::Result<usize>, AlignedBuf) {
        tokio::task::yield_now().await;
        let read = self.read_now(&mut buf[range], offset_bytes as usize);
        (read, buf)
    }

    async fn sync_data(&self) -> io::Result<()> {
        self.disk.0.state.lock().syncs_waiting += 1;
        loop {
            let released = self.disk.0.released.notified();
            tokio::pin!(released);
            released.as_mut().enable();
            let held = {
                let state = self.disk.0.state.lock();
                state.syncs_held && !state.dead
            };
            if !held {
                break;
            }
            released.await;
        }
        self.disk.0.state.lock().syncs_waiting -= 1;
        self.take_time(|delays| delays.sync).await;
        self.sync_now()
    }
}

impl File for SimFile {
    fn bytes(&self) -> io::Result<u64> {
        self.disk.alive()?;
        Ok(self.content.lock().seen.len() as u64)
    }

    fn read_at(&self, buf: &mut AlignedBuf, range: Range<usize>, offset_bytes: u64) -> io::Result<usize> {
        self.read_now(&mut buf[range], offset_bytes as usize)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync_now()
    }
}
