//! The disk of a protected machine, in memory: with a cache that a power cut empties, and errors.

use std::io;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;
use tidegate::agent::disk::Disk;
use tidegate::nbd::{Export, StatusExtent, ZeroFlags};

use crate::agent::seen;
use crate::dice::Dice;
use crate::model::Seen;

/// What a power cut may tear apart.
pub const SECTOR: usize = 512;

/// A disk. Clones share it.
#[derive(Clone)]
pub struct GuestDisk {
    name: String,
    size_bytes: u64,
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    /// What reads see.
    seen: Vec<u8>,
    /// What a power cut leaves for certain.
    durable: Vec<u8>,
    /// Written since the last flush: place and bytes.
    waiting: Vec<(usize, Vec<u8>)>,
    dice: Dice,
    /// Writes and flushes of a thousand that fail.
    fails: u32,
    dead: bool,
    /// Who protects it.
    protector: Weak<Disk>,
    /// A failed flush gave back what the platter has, and nobody has asked yet: what the tracker said at that moment.
    reverted: Option<Seen>,
}

/// What stands on a disk, to go back to.
#[derive(Clone)]
pub struct Snapshot {
    seen: Vec<u8>,
}

impl GuestDisk {
    /// An empty disk.
    #[must_use]
    pub fn new(name: &str, size_bytes: u64, dice: Dice) -> Self {
        Self::holding(name, vec![0; size_bytes as usize], dice)
    }

    fn holding(name: &str, bytes: Vec<u8>, dice: Dice) -> Self {
        let size_bytes = bytes.len() as u64;
        let inner = Inner {
            durable: bytes.clone(),
            seen: bytes,
            waiting: Vec::new(),
            dice,
            fails: 0,
            dead: false,
            protector: Weak::new(),
            reverted: None,
        };
        Self { name: name.to_owned(), size_bytes, inner: Arc::new(Mutex::new(inner)) }
    }

    /// The disk after its machine was switched off: without the power cut, everything that was written is there;
    /// with it, any sectors that were not flushed may be lost. The old handles are dead.
    #[must_use]
    pub fn restarted(&self, power_cut: bool) -> Self {
        let mut inner = self.inner.lock();
        inner.dead = true;
        let mut dice = inner.dice.branch();
        let mut bytes = inner.seen.clone();
        if power_cut {
            bytes.clone_from(&inner.durable);
            // Mostly all or nothing of the cache: a mixture of it is the rarest and the most cunning.
            let survives = *dice.pick(&[0, 0, 500, 1000, 1000]);
            for (at, written) in &inner.waiting {
                for (number, sector) in written.chunks(SECTOR).enumerate() {
                    if dice.permille(survives) {
                        bytes[at + number * SECTOR..][..sector.len()].copy_from_slice(sector);
                    }
                }
            }
        }
        let after = Self::holding(&self.name, bytes, dice);
        if !power_cut {
            // The cache is the machine's, which lives on.
            let mut lives_on = after.inner.lock();
            lives_on.durable = std::mem::take(&mut inner.durable);
            lives_on.waiting = std::mem::take(&mut inner.waiting);
        }
        after.inner.lock().fails = inner.fails;
        drop(inner);
        after
    }

    /// What stands on it.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { seen: self.inner.lock().seen.clone() }
    }

    /// A disk with the content of a snapshot, all of it durable.
    #[must_use]
    pub fn from_snapshot(name: &str, snapshot: &Snapshot, dice: Dice) -> Self {
        Self::holding(name, snapshot.seen.clone(), dice)
    }

    /// Writes and flushes of a thousand that fail from now on.
    pub fn set_fails(&self, fails: u32) {
        self.inner.lock().fails = fails;
    }

    /// Its content.
    #[must_use]
    pub fn content(&self) -> Vec<u8> {
        self.inner.lock().seen.clone()
    }

    /// Says who protects it from now on.
    pub fn protected_by(&self, protector: &Arc<Disk>) {
        self.inner.lock().protector = Arc::downgrade(protector);
    }

    /// Whether a flush failed since the last call, and what the tracker said then: from that moment on reads may show
    /// older content than before.
    #[must_use]
    pub fn take_reverted(&self) -> Option<Seen> {
        self.inner.lock().reverted.take()
    }

    /// A part of its content.
    #[must_use]
    pub fn part(&self, offset: u64, length: u64) -> Bytes {
        Bytes::copy_from_slice(&self.inner.lock().seen[offset as usize..(offset + length) as usize])
    }
}

impl Snapshot {
    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.seen
    }
}

fn broken() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

impl Inner {
    fn set(&mut self, at: usize, bytes: &[u8]) -> io::Result<()> {
        if self.dead {
            return Err(broken());
        }
        let fails = self.dice.permille(self.fails);
        let done =
            if fails { self.dice.below(bytes.len() as u64 / SECTOR as u64 + 1) as usize * SECTOR } else { bytes.len() };
        self.seen[at..at + done].copy_from_slice(&bytes[..done]);
        self.waiting.push((at, bytes[..done].to_vec()));
        if fails { Err(broken()) } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.dead {
            return Err(broken());
        }
        if self.dice.permille(self.fails) {
            // The system forgets what it could not write, as Linux does: reads then show what the platter has.
            let waiting = std::mem::take(&mut self.waiting);
            for (at, bytes) in &waiting {
                if self.dice.one_in(2) {
                    self.durable[*at..*at + bytes.len()].copy_from_slice(bytes);
                }
            }
            // Only now: of two writes in one place either may be the one that is left.
            for (at, bytes) in &waiting {
                let range = *at..*at + bytes.len();
                self.seen[range.clone()].copy_from_slice(&self.durable[range]);
            }
            let seen = self.protector.upgrade().map_or(Seen { at: None, recording: false }, |disk| seen(&disk));
            self.reverted.get_or_insert(seen);
            return Err(broken());
        }
        for (at, bytes) in std::mem::take(&mut self.waiting) {
            self.durable[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        Ok(())
    }
}

impl Export for GuestDisk {
    fn name(&self) -> &str {
        &self.name
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_only(&self) -> bool {
        false
    }

    fn multi_conn(&self) -> bool {
        true
    }

    fn fast_zero(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let inner = self.inner.lock();
        if inner.dead {
            return Err(broken());
        }
        buf.copy_from_slice(&inner.seen[offset as usize..][..buf.len()]);
        Ok(())
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> io::Result<()> {
        let mut inner = self.inner.lock();
        inner.set(offset as usize, &data)?;
        if fua { inner.flush() } else { Ok(()) }
    }

    fn zero(&self, offset: u64, length: u64, flags: ZeroFlags) -> io::Result<()> {
        let mut inner = self.inner.lock();
        inner.set(offset as usize, &vec![0; length as usize])?;
        if flags.fua { inner.flush() } else { Ok(()) }
    }

    fn trim(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.inner.lock().flush()
    }

    fn block_status(&self, _: u64, length: u64) -> io::Result<Vec<StatusExtent>> {
        Ok(vec![StatusExtent { length, hole: false, zero: false }])
    }
}
