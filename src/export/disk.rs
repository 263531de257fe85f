//! The disk as the guest sees it: what it wrote, over the copy where that is there, over the vault.
//!
//! ```text
//!  phase    read                                          write
//!  Point    overlay, else copy of a message, else vault   overlay
//!  Moving   overlay, else copy                            overlay where the block is there, else copy
//!  Whole    copy                                          copy
//! ```
//!
//! *Moving* begins when every message is in the copy, and ends when no block is in the overlay any more. Without a copy it
//! stays at *Point*; without an overlay nothing is written. Phases only go forward, and a request sees one of them from its
//! begin to its end.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{RwLock, RwLockWriteGuard};

use super::copy::{CopyError, DiskCopy};
use super::origin::{Nearer, Origin};
use super::overlay::{BLOCK_BYTES, Overlay};
use crate::fault::chain_text;
use crate::flow::Drain;
#[cfg(test)]
use crate::flow::DrainTrigger;
use crate::nbd::{Export, FileExport, StatusExtent, ZeroFlags};

/// Most runs of one block status answer.
const STATUS_EXTENTS_MAX: usize = 4096;

/// How long requests are held up to go over to the next phase, before those under way are let through and it is tried again.
const PHASE_WAIT: Duration = Duration::from_millis(20);
/// Pause between two tries.
const PHASE_PAUSE: Duration = Duration::from_millis(50);

enum Phase {
    Point,
    Moving,
    Whole(FileExport),
}

/// A point of a disk as an NBD export.
pub struct PointDisk {
    name: String,
    size_bytes: u64,
    origin: Arc<Origin>,
    overlay: Option<Overlay>,
    copy: Option<Arc<DiskCopy>>,
    phase: RwLock<Phase>,
    /// The last phase has begun: for those who must not wait for a lock.
    whole: AtomicBool,
}

impl PointDisk {
    /// The disk of `origin`, with what lies over it.
    #[must_use]
    pub fn new(origin: Arc<Origin>, overlay: Option<Overlay>, copy: Option<DiskCopy>) -> Self {
        let (name, size_bytes) = (origin.disk().to_string(), origin.map().plan().disk_bytes);
        // What an earlier export began to move is read where it may be by now.
        let moving = overlay.as_ref().is_some_and(Overlay::moving);
        let phase = RwLock::new(if moving { Phase::Moving } else { Phase::Point });
        Self { name, size_bytes, origin, overlay, copy: copy.map(Arc::new), phase, whole: AtomicBool::new(false) }
    }

    /// What is read from the vault.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The copy that is made, if one is.
    #[must_use]
    pub const fn copy(&self) -> Option<&Arc<DiskCopy>> {
        self.copy.as_ref()
    }

    /// Bytes that lie in the overlay.
    #[must_use]
    pub fn overlay_bytes(&self) -> u64 {
        if self.is_whole() { 0 } else { self.overlay.as_ref().map_or(0, Overlay::held_bytes) }
    }

    /// Whether everything comes from the copy alone.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.whole.load(Ordering::Relaxed)
    }

    /// Moves the guest's writes into the copy, which has to be full, and goes over to it. Blocks.
    ///
    /// # Errors
    /// [`CopyError`]; the guest is then served as before.
    pub fn go_over(&self, stop: &Drain) -> Result<PathBuf, CopyError> {
        let Some(copy) = &self.copy else { return Err(CopyError::Stopped) };
        self.begin_moving(stop)?;
        if let Some(overlay) = &self.overlay {
            while copy.take_in(overlay)? {
                // The next export goes on with it.
                if stop.started() {
                    return Err(CopyError::Stopped);
                }
            }
        }
        let wrap = |operation| move |source| CopyError::Io { operation, path: copy.at().to_owned(), source };
        // What can fail or take long comes before the guest has to wait, and before the image has its name.
        let whole = FileExport::open(&self.name, copy.at(), self.overlay.is_none());
        let whole = whole.map_err(io::Error::from).map_err(wrap("opening"))?;
        copy.sync().map_err(wrap("syncing"))?;
        let mut phase = self.phase_alone(stop)?;
        copy.finish()?;
        *phase = Phase::Whole(whole);
        self.whole.store(true, Ordering::Relaxed);
        drop(phase);
        if let Some(overlay) = &self.overlay
            && let Err(error) = overlay.remove()
        {
            tracing::warn!(path = %overlay.path().display(), %error, "the overlay holds nothing any more and cannot be removed");
        }
        Ok(copy.path().to_owned())
    }

    /// What was begun before ends in the overlay; what comes after finds the copy full, and may be written there alone.
    fn begin_moving(&self, stop: &Drain) -> Result<(), CopyError> {
        let mut phase = self.phase_alone(stop)?;
        if let Some(overlay) = &self.overlay {
            let (operation, path) = ("writing the log of", overlay.path().to_owned());
            overlay.begin_moving().map_err(|source| CopyError::Io { operation, path, source })?;
        }
        *phase = Phase::Moving;
        Ok(())
    }

    /// The phase, while no request is under way. One that waits for the vault is not waited for with the others held up: they go
    /// on, and it is tried again.
    fn phase_alone(&self, stop: &Drain) -> Result<RwLockWriteGuard<'_, Phase>, CopyError> {
        loop {
            if let Some(phase) = self.phase.try_write_for(PHASE_WAIT) {
                return Ok(phase);
            }
            if stop.started() {
                return Err(CopyError::Stopped);
            }
            std::thread::sleep(PHASE_PAUSE);
        }
    }

    /// Moves a part of the writes and stops, as if killed then.
    #[cfg(test)]
    pub(super) fn move_some(&self) -> Result<bool, CopyError> {
        self.begin_moving(&DrainTrigger::new().1)?;
        match (&self.copy, &self.overlay) {
            (Some(copy), Some(overlay)) => copy.take_in(overlay),
            _ => Ok(false),
        }
    }

    /// Makes everything durable and notes how far the copy is.
    ///
    /// # Errors
    /// Of the files.
    pub fn close(&self) -> io::Result<()> {
        Export::flush(self)?;
        if let (Phase::Point, Some(copy)) = (&*self.phase.read(), &self.copy)
            && let Err(error) = copy.note_all()
        {
            // Nothing of the guest's is in it: the next export copies more.
            tracing::warn!(error = chain_text(&error), "how far the copy is was not noted");
        }
        Ok(())
    }

    /// What lies below the overlay while the copy is not full.
    fn read_below(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        let Some(copy) = &self.copy else { return self.origin.read(offset_bytes, buf, None) };
        let nearer = |message: u32, offset: u64, part: &mut [u8]| copy.read_of(message, offset, part);
        let nearer: Nearer<'_> = &nearer;
        self.origin.read(offset_bytes, buf, Some(nearer))
    }

    /// The stretches of a range, in order, with whether they are in the overlay.
    fn stretches(&self, range: Range<u64>) -> impl Iterator<Item = (Range<u64>, bool)> + '_ {
        let none = self.overlay.is_none().then(|| (range.clone(), false));
        let some = self.overlay.as_ref().map(|overlay| overlay.stretches(range));
        none.into_iter().chain(some.into_iter().flatten())
    }

    fn overlay(&self) -> io::Result<&Overlay> {
        self.overlay.as_ref().ok_or_else(|| io::ErrorKind::ReadOnlyFilesystem.into())
    }

    /// The copy, in the phases that have one.
    fn full_copy(&self) -> io::Result<&DiskCopy> {
        self.copy.as_deref().ok_or_else(|| io::Error::other("there is no copy to read"))
    }

    fn flush_in(&self, phase: &Phase) -> io::Result<()> {
        if let Phase::Whole(file) = phase {
            return file.flush();
        }
        if matches!(phase, Phase::Moving) {
            self.full_copy()?.sync()?;
        }
        self.overlay.as_ref().map_or(Ok(()), Overlay::flush)
    }
}

/// A block that is in the overlay needs nothing from below.
fn nothing(_: u64, _: &mut [u8]) -> io::Result<()> {
    Ok(())
}

fn part_of<'a>(buf: &'a mut [u8], start_bytes: u64, part: &Range<u64>) -> &'a mut [u8] {
    &mut buf[(part.start - start_bytes) as usize..(part.end - start_bytes) as usize]
}

impl Export for PointDisk {
    fn name(&self) -> &str {
        &self.name
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_only(&self) -> bool {
        self.overlay.is_none()
    }

    fn multi_conn(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let phase = self.phase.read();
        if let Phase::Whole(file) = &*phase {
            return file.read(offset, buf);
        }
        for (part, here) in self.stretches(offset..offset + buf.len() as u64) {
            let buf = part_of(buf, offset, &part);
            match (&*phase, here) {
                (_, true) => self.overlay()?.read(part.start, buf)?,
                (Phase::Moving, false) => self.full_copy()?.read(part.start, buf)?,
                (_, false) => self.read_below(part.start, buf)?,
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> io::Result<()> {
        let phase = self.phase.read();
        if let Phase::Whole(file) = &*phase {
            return file.write(offset, &data, fua);
        }
        let (range, overlay) = (offset..offset + data.len() as u64, self.overlay()?);
        let held = overlay.lock(std::slice::from_ref(&range));
        if matches!(&*phase, Phase::Point) {
            overlay.write(offset, &data, |at, buf| self.read_below(at, buf))?;
        } else {
            let copy = self.full_copy()?;
            for (part, here) in self.stretches(range) {
                let data = &data[(part.start - offset) as usize..(part.end - offset) as usize];
                if here { overlay.write(part.start, data, nothing)? } else { copy.write(part.start, data)? }
            }
        }
        drop(held);
        if fua { self.flush_in(&phase) } else { Ok(()) }
    }

    fn zero(&self, offset: u64, length: u64, flags: ZeroFlags) -> io::Result<()> {
        let phase = self.phase.read();
        if let Phase::Whole(file) = &*phase {
            return file.zero(offset, length, flags);
        }
        let (range, overlay) = (offset..offset + length, self.overlay()?);
        let held = overlay.lock(std::slice::from_ref(&range));
        if matches!(&*phase, Phase::Point) {
            overlay.zero(&range, flags.no_hole, |at, buf| self.read_below(at, buf))?;
        } else {
            let copy = self.full_copy()?;
            for (part, here) in self.stretches(range) {
                if here {
                    overlay.zero(&part, flags.no_hole, nothing)?;
                } else {
                    copy.zero(part.start, part.end - part.start, flags.no_hole)?;
                }
            }
        }
        drop(held);
        if flags.fua { self.flush_in(&phase) } else { Ok(()) }
    }

    /// Whole blocks become zeroes, which frees their space and spares reading them from the vault; the rest stays.
    fn trim(&self, offset: u64, length: u64, fua: bool) -> io::Result<()> {
        let end = offset + length;
        let whole_end = if end == self.size_bytes { end } else { end - end % BLOCK_BYTES };
        let start = offset.next_multiple_of(BLOCK_BYTES);
        let flags = ZeroFlags { no_hole: false, fua, fast: false };
        if start < whole_end { self.zero(start, whole_end - start, flags) } else { Ok(()) }
    }

    fn flush(&self) -> io::Result<()> {
        self.flush_in(&self.phase.read())
    }

    fn block_status(&self, offset: u64, length: u64) -> io::Result<Vec<StatusExtent>> {
        let phase = self.phase.read();
        if let Phase::Whole(file) = &*phase {
            return file.block_status(offset, length);
        }
        let mut extents = Vec::new();
        for (part, here) in self.stretches(offset..offset + length) {
            let room = STATUS_EXTENTS_MAX.saturating_sub(extents.len());
            // An answer may stop early, and must not have a gap.
            if room == 0 {
                break;
            }
            match (&*phase, here) {
                (_, true) => {
                    let found = self.overlay()?.block_status(&part)?;
                    let covered: u64 = found.iter().map(|extent| extent.length).sum();
                    extents.extend(found.into_iter().take(room));
                    if covered < part.end - part.start {
                        break;
                    }
                }
                (Phase::Moving, false) => {
                    extents.push(StatusExtent { length: part.end - part.start, hole: false, zero: false });
                }
                (_, false) => {
                    let runs = self.origin.map().runs(part.start, part.end - part.start).take(room);
                    extents.extend(runs.map(|run| {
                        let zero = run.source.is_none();
                        StatusExtent { length: run.length_bytes, hole: zero, zero }
                    }));
                }
            }
        }
        Ok(extents)
    }
}
