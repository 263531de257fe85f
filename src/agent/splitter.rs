//! The write splitter: the real disk as the guest sees it, every change of it tracked on the way.
//!
//! The order of one write, all of it on the worker thread of the guest's request:
//!
//! 1. the range lock: overlapping changes and copies of the range wait for each other;
//! 2. the activity bit of its region is durable (after the first write to a region this costs nothing);
//! 3. the write to the real disk;
//! 4. the record queue takes it, or marks it: never waits, so the gateway cannot hold up the guest;
//! 5. the reply.
//!
//! Whatever fails at 3 may have changed the range in part: it is marked and read back later. TRIM is carried out as
//! "zero, if that is cheap": a device may return anything for a discarded range, which no replica could match; where
//! zeroing is not cheap, TRIM changes nothing, as it may. FLUSH and FUA are the real disk's own; one that succeeds still
//! fails for the guest if the agent's own flush took the error.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::disk::Disk;
use super::queue::Content;
use crate::mutants::{self, Mutant};
use crate::nbd::{Export, StatusExtent, ZeroFlags};

/// How a change is made.
#[derive(Clone, Copy, Default)]
struct Manner {
    /// It is to be durable.
    fua: bool,
    /// It may be refused before anything was touched.
    refusable: bool,
}

/// A protected disk as an NBD export.
pub struct Splitter {
    disk: Arc<Disk>,
}

impl Splitter {
    /// The guest's door to `disk`.
    #[must_use]
    pub const fn new(disk: Arc<Disk>) -> Self {
        Self { disk }
    }

    /// One change: `apply` makes it on the real disk.
    fn change(
        &self,
        offset: u64,
        content: Content,
        manner: Manner,
        apply: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        let length = content.length_bytes();
        let held = self.disk.ranges.lock(offset, length);
        if !mutants::on(Mutant::MapSetLate) {
            self.disk.activity.ensure(offset, length)?;
        }
        let outcome = apply();
        if mutants::on(Mutant::MapSetLate) {
            self.disk.activity.ensure(offset, length)?;
        }
        match &outcome {
            Ok(()) => self.disk.changed(offset, content),
            Err(error) if manner.refusable && error.kind() == io::ErrorKind::Unsupported => return outcome,
            Err(_) => self.disk.uncertain(offset, length),
        }
        drop(held);
        if manner.fua { self.disk.guest_flushed(outcome) } else { outcome }
    }
}

impl Export for Splitter {
    fn name(&self) -> &str {
        self.disk.id.as_str()
    }

    fn size_bytes(&self) -> u64 {
        self.disk.source.size_bytes()
    }

    fn read_only(&self) -> bool {
        false
    }

    fn multi_conn(&self) -> bool {
        self.disk.source.multi_conn()
    }

    fn fast_zero(&self) -> bool {
        self.disk.source.fast_zero()
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.disk.source.read(offset, buf)
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> io::Result<()> {
        let manner = Manner { fua, refusable: false };
        self.change(offset, Content::Data(data.clone()), manner, || self.disk.source.write(offset, data, fua))
    }

    fn zero(&self, offset: u64, length: u64, flags: ZeroFlags) -> io::Result<()> {
        let manner = Manner { fua: flags.fua, refusable: flags.fast };
        self.change(offset, Content::Zero(length), manner, || self.disk.source.zero(offset, length, flags))
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> io::Result<()> {
        let flags = ZeroFlags { no_hole: false, fua, fast: true };
        match self.zero(offset, length, flags) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            outcome => outcome,
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.disk.guest_flushed(self.disk.source.flush())
    }

    fn block_status(&self, offset: u64, length: u64) -> io::Result<Vec<StatusExtent>> {
        self.disk.source.block_status(offset, length)
    }
}

#[cfg(test)]
mod tests;
