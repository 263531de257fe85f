//! A copy of the disk that is made while the guest works: whatever is in it already is read there instead of in the vault.
//!
//! A message's bytes are *not there*, or *on their way*, or *there*; only what is there is read. What is there lies on ranges
//! that no other message supplies, so a reader sees a message's bytes whole or asks the vault.
//!
//! The copy is a restore: the same targets, the same note beside it that names what is durable (`restore::resume`), and so it
//! goes on where it was stopped. It is a file: what stands beside a device is gone when the machine starts again, and then nobody
//! knows any more whether the guest's writes are there. Nothing of the guest's writes is in it before every message is; then they are moved in, and
//! only with the last of them the image gets its name.
//!
//! A sync that failed is not tried again: the system may have dropped what was to be written, and tells it once. From then on
//! nothing is read from the copy or noted, and while the guest's writes are in it alone, its I/O fails.

use std::collections::HashSet;
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::{FileExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use rustix::fs::{FallocateFlags, fallocate};

use super::origin::Origin;
use super::overlay::Overlay;
use crate::fault::{Classify, Fault, chain_text};
use crate::flow::{Drain, blocking};
use crate::restore::damage::Damage;
use crate::restore::fetch::{self, FetchLimits, Known, Sink};
use crate::restore::format::Layout;
use crate::restore::open::Opened;
use crate::restore::plan::MessageUse;
use crate::restore::progress::Progress;
use crate::restore::resume::{Earlier, ResumeFile, ResumeHead};
use crate::restore::source::Source;
use crate::restore::target::{Target, TargetError, partial_of};
use crate::restore::write::{self, RestoreError};

/// Bytes written between two notes: what an interruption costs at most.
const NOTE_EVERY_BYTES: u64 = 256 << 20;
/// Messages that one round brings: enough for long reads, few enough that a stop is soon heard.
const ROUND_MESSAGES: usize = 128;
/// Pause before a vault that is away is asked again. A copy in the background has time.
const AWAY_PAUSE: Duration = Duration::from_secs(5);
/// Damage kept by name; beyond it only the count grows.
const DAMAGE_KEPT_MAX: usize = 100;
/// What one step moves from the overlay at most; the guest's writes to it wait meanwhile.
const MOVE_BYTES_MAX: u64 = 16 << 20;
/// Runs of one step at most.
const MOVE_RUNS_MAX: usize = 512;
/// Zeroes are written in pieces of this size where no hole can be made.
const ZEROES_BYTES: usize = 256 << 10;

static ZEROES: [u8; ZEROES_BYTES] = [0; ZEROES_BYTES];

/// Why a copy cannot be made, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// It was finished before, or something else is there.
    #[error(
        "{} is there already. If an earlier export finished it, it is the whole disk: start the guest from it. \
         Otherwise name another target",
        path.display()
    )]
    There {
        /// The target.
        path: PathBuf,
    },
    /// Target or note.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// An operation on the copy failed.
    #[error("{operation} {} failed: free some room or look at the disk, and start the same export again", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Blocks of the overlay are in another copy.
    #[error(
        "blocks of the overlay {} were moved into a copy that had all of the disk, and {} has not: \
         name the target that was copied to then", overlay.display(), path.display()
    )]
    OtherCopy {
        /// The overlay.
        overlay: PathBuf,
        /// The target.
        path: PathBuf,
    },
    /// Blocks of the overlay are in a copy, and none was named.
    #[error(
        "blocks of the overlay {} were moved into a copy of the disk: name that copy with --hydrate", overlay.display()
    )]
    Moved {
        /// The overlay.
        overlay: PathBuf,
    },
    /// Something that the copy needs is damaged.
    #[error("{count} messages that the disk needs are damaged, so its copy stays unfinished; the export goes on")]
    Damaged {
        /// How many.
        count: usize,
        /// Which, up to a bound.
        found: Vec<Damage>,
    },
    /// A device.
    #[error(
        "{} is a block device, and a copy that takes the guest's writes needs a file, whose notes outlive a restart of this \
         machine. Name a new file, or write the device by `tidegate restore --to`",
        path.display()
    )]
    Device {
        /// The target.
        path: PathBuf,
    },
    /// The export stops.
    #[error("stopped before the copy was whole; the same export goes on with it")]
    Stopped,
}

impl Classify for CopyError {
    fn fault(&self) -> Fault {
        match self {
            Self::There { .. } | Self::Device { .. } | Self::Io { .. } => Fault::Reject,
            Self::OtherCopy { .. } | Self::Moved { .. } => Fault::Reject,
            Self::Restore(error) => error.fault(),
            Self::Damaged { .. } => Fault::Corrupt,
            Self::Stopped => Fault::Retry,
        }
    }
}

impl From<TargetError> for CopyError {
    fn from(error: TargetError) -> Self {
        RestoreError::from(error).into()
    }
}

/// What is written and not yet noted.
struct Notes {
    note: Option<ResumeFile>,
    written: Vec<u32>,
    bytes: u64,
}

/// A copy that is being made.
pub struct DiskCopy {
    origin: Arc<Origin>,
    path: PathBuf,
    /// Where it is written now.
    at: PathBuf,
    file: File,
    /// None once it has its name.
    target: RwLock<Option<Target>>,
    there: Vec<AtomicBool>,
    notes: Mutex<Notes>,
    trouble: Mutex<Trouble>,
    progress: Arc<Progress>,
    /// One sync at a time, or one that succeeds could hide one that failed.
    syncing: Mutex<()>,
    /// A sync failed.
    broken: AtomicBool,
    /// The next sync fails.
    #[cfg(test)]
    pub(super) fail_sync: AtomicBool,
}

#[derive(Default)]
struct Trouble {
    /// Messages that are damaged, by their numbers: they are not asked for again.
    damaged: HashSet<u32>,
    found: Vec<Damage>,
    stop: Option<CopyError>,
}

impl DiskCopy {
    /// Refuses a target that has content or is a device, before anything is made.
    ///
    /// # Errors
    /// [`CopyError`].
    pub fn check(path: &Path) -> Result<(), CopyError> {
        if std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device()) {
            return Err(CopyError::Device { path: path.to_owned() });
        }
        match Target::check(path, false) {
            Err(TargetError::NotEmpty { path }) => Err(CopyError::There { path }),
            checked => Ok(checked?),
        }
    }

    /// Opens the copy that an earlier export began, or begins one. If blocks of `overlay` may be in a copy alone, it has to be
    /// this one, and nothing is made or changed if it is not. Blocks.
    ///
    /// # Errors
    /// [`CopyError`] if the target cannot be used.
    pub fn open(origin: Arc<Origin>, path: &Path, overlay: Option<&Overlay>) -> Result<Self, CopyError> {
        Self::check(path)?;
        let (map, source) = (origin.map(), origin.source());
        let plan = map.plan();
        let head = ResumeHead {
            plan: plan.id(origin.disk().as_str(), |object| source.path(object).to_string()),
            disk: origin.disk().clone(),
            point: plan.target,
            disk_bytes: plan.disk_bytes,
        };
        let (target, note, done) = match overlay.filter(|overlay| overlay.moving()) {
            None => write::prepare(&path.into(), &head, &Layout::raw(plan.disk_bytes), map.messages(), false)?,
            Some(overlay) => full(path, &head, map.messages())?
                .ok_or_else(|| CopyError::OtherCopy { overlay: overlay.path().to_owned(), path: path.to_owned() })?,
        };
        let at = partial_of(path);
        let wrap = |source| CopyError::Io { operation: "opening", path: at.clone(), source };
        let file = OpenOptions::new().read(true).write(true).open(&at).map_err(wrap)?;
        // It holds the guest's data, and is empty when it is new.
        file.set_permissions(Permissions::from_mode(0o600)).map_err(wrap)?;
        let numbers = (0_u32..).zip(&done);
        let done_bytes = numbers.filter(|(_, done)| **done).map(|(number, _)| map.supplied_bytes(number)).sum();
        let progress = Arc::new(Progress::default());
        progress.start(plan.data_bytes());
        progress.add(done_bytes);
        Ok(Self {
            path: path.to_owned(),
            at,
            file,
            target: RwLock::new(Some(target)),
            there: done.into_iter().map(AtomicBool::new).collect(),
            notes: Mutex::new(Notes { note: Some(note), written: Vec::new(), bytes: 0 }),
            trouble: Mutex::default(),
            progress,
            syncing: Mutex::default(),
            broken: AtomicBool::new(false),
            #[cfg(test)]
            fail_sync: AtomicBool::new(false),
            origin,
        })
    }

    /// Where it is written now.
    #[must_use]
    pub fn at(&self) -> &Path {
        &self.at
    }

    /// The target.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How far it is: bytes of the disk that are there, and that are not zero.
    #[must_use]
    pub const fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// Whether a message is there, and can be trusted to be.
    #[must_use]
    pub fn has(&self, message: u32) -> bool {
        self.there[message as usize].load(Ordering::Acquire) && !self.broken.load(Ordering::Acquire)
    }

    /// Fills `buf` if it is of a message that is there.
    pub fn read_of(&self, message: u32, offset_bytes: u64, buf: &mut [u8]) -> Option<io::Result<()>> {
        self.has(message).then(|| self.read(offset_bytes, buf))
    }

    /// Fills `buf` from the copy, which has to be full.
    ///
    /// # Errors
    /// Of the copy's disk.
    pub fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        self.check_sound()?;
        self.file.read_exact_at(buf, offset_bytes)
    }

    /// Writes into the copy, which has to be full.
    ///
    /// # Errors
    /// Of the copy's disk.
    pub fn write(&self, offset_bytes: u64, data: &[u8]) -> io::Result<()> {
        self.check_sound()?;
        self.file.write_all_at(data, offset_bytes)
    }

    /// Makes a range of the copy, which has to be full, read as zeroes.
    ///
    /// # Errors
    /// Of the copy's disk.
    pub fn zero(&self, offset_bytes: u64, length_bytes: u64, no_hole: bool) -> io::Result<()> {
        self.check_sound()?;
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if !no_hole && fallocate(&self.file, punch, offset_bytes, length_bytes).is_ok() {
            return Ok(());
        }
        let end = offset_bytes + length_bytes;
        for at in (offset_bytes..end).step_by(ZEROES_BYTES) {
            self.file.write_all_at(&ZEROES[..(end - at).min(ZEROES_BYTES as u64) as usize], at)?;
        }
        Ok(())
    }

    /// Makes what was written into the copy durable.
    ///
    /// # Errors
    /// Of the copy's disk, and then always.
    pub fn sync(&self) -> io::Result<()> {
        let _one = self.syncing.lock();
        self.check_sound()?;
        let synced = self.sync_file();
        self.broken.store(synced.is_err(), Ordering::Release);
        synced
    }

    fn sync_file(&self) -> io::Result<()> {
        #[cfg(test)]
        if self.fail_sync.swap(false, Ordering::Relaxed) {
            return Err(io::Error::other("told to fail"));
        }
        self.file.sync_data()
    }

    fn check_sound(&self) -> io::Result<()> {
        if !self.broken.load(Ordering::Acquire) {
            return Ok(());
        }
        let text = format!(
            "{} could not be made durable: look at its disk, and start the same export again",
            self.at.display()
        );
        Err(io::Error::other(text))
    }

    /// Brings everything that is not there. A vault that is away is waited for.
    ///
    /// # Errors
    /// [`CopyError`]; of damage everything that was found, after all else was brought.
    pub async fn fill(self: &Arc<Self>, limits: &FetchLimits, mut drain: Drain) -> Result<(), CopyError> {
        let mut away = false;
        let mut from = 0;
        while from < self.there.len() {
            if drain.started() {
                return Err(CopyError::Stopped);
            }
            let until = (from + ROUND_MESSAGES).min(self.there.len());
            let missing = self.missing(from as u32..until as u32);
            match self.bring(&missing, limits).await? {
                None => {
                    (from, away) = (until, false);
                    tracing::debug!(messages = until, "copied");
                }
                Some(error) => {
                    if !std::mem::replace(&mut away, true) {
                        tracing::warn!(error, "the copy waits for the vault");
                    }
                    tokio::select! {
                        biased;
                        () = drain.wait() => return Err(CopyError::Stopped),
                        () = tokio::time::sleep(AWAY_PAUSE) => {}
                    }
                }
            }
        }
        let copy = Arc::clone(self);
        match blocking(move || copy.note_all()).await {
            Ok(noted) => noted?,
            // The runtime stops.
            Err(_) => return Err(CopyError::Stopped),
        }
        let trouble = self.trouble.lock();
        match trouble.damaged.len() {
            0 => Ok(()),
            count => Err(CopyError::Damaged { count, found: trouble.found.clone() }),
        }
    }

    /// Those of the messages that are not there, and not known to be damaged.
    fn missing(&self, messages: Range<u32>) -> Vec<u32> {
        let trouble = self.trouble.lock();
        messages.filter(|message| !self.has(*message) && !trouble.damaged.contains(message)).collect()
    }

    /// One round; if the vault is away, what it said.
    async fn bring(self: &Arc<Self>, missing: &[u32], limits: &FetchLimits) -> Result<Option<String>, CopyError> {
        if missing.is_empty() {
            return Ok(None);
        }
        let reads = self.origin.map().reads(self.origin.history(), missing);
        let vault = &self.origin.source().vault;
        let brought = fetch::run(vault.store(), vault.id(), reads, self, limits).await;
        if let Some(stop) = self.trouble.lock().stop.take() {
            return Err(stop);
        }
        match brought {
            Ok(()) => Ok(None),
            Err(error) if error.fault() == Fault::Retry => Ok(Some(chain_text(&error))),
            Err(error) => Err(RestoreError::from(error).into()),
        }
    }

    fn put(&self, message: &MessageUse, opened: &Opened<'_>) -> Result<(), CopyError> {
        let mut bytes = 0;
        {
            let target = self.target.read();
            let Some(target) = &*target else { unreachable!("it has its name only when it is full") };
            for owned in &message.owned {
                // The plan was made from the same rows that the message was just checked against.
                let data = opened.extent(owned.seq, owned.extent).unwrap_or_default();
                let start = owned.skip_bytes as usize;
                let Some(data) = data.get(start..start + owned.length_bytes as usize) else {
                    unreachable!("an owned range lies inside its extent")
                };
                target.write(owned.offset_bytes, data)?;
                bytes += data.len() as u64;
            }
        }
        let number = self.origin.number(message.row);
        self.there[number as usize].store(true, Ordering::Release);
        self.progress.add(bytes);
        let mut notes = self.notes.lock();
        notes.written.push(number);
        notes.bytes += bytes;
        if notes.bytes >= NOTE_EVERY_BYTES {
            // Under the lock: what other workers write meanwhile is noted the next time.
            self.note(&mut notes)?;
        }
        Ok(())
    }

    /// Notes what is written, once it is durable.
    fn note(&self, notes: &mut Notes) -> Result<(), CopyError> {
        let wrap = |source| CopyError::Io { operation: "syncing", path: self.at.clone(), source };
        self.sync().map_err(wrap)?;
        if let Some(note) = notes.note.as_mut().filter(|_| !notes.written.is_empty()) {
            note.done(std::mem::take(&mut notes.written)).map_err(RestoreError::from)?;
        }
        notes.bytes = 0;
        Ok(())
    }

    /// Notes what is there, for an export that stops before the copy is full.
    ///
    /// # Errors
    /// [`CopyError`].
    pub fn note_all(&self) -> Result<(), CopyError> {
        self.note(&mut self.notes.lock())
    }

    /// Moves blocks of the overlay into the copy, which has to be full. Whether any were left to move.
    ///
    /// # Errors
    /// [`CopyError`]; what was not moved is in the overlay as before.
    pub fn take_in(&self, overlay: &Overlay) -> Result<bool, CopyError> {
        let runs = overlay.first_runs(MOVE_BYTES_MAX, MOVE_RUNS_MAX);
        if runs.is_empty() {
            return Ok(false);
        }
        let _held = overlay.lock(&runs);
        let wrap = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| CopyError::Io { operation, path, source }
        };
        let mut buf = Vec::new();
        for run in &runs {
            buf.resize((run.end - run.start) as usize, 0);
            overlay.read(run.start, &mut buf).map_err(wrap("reading", overlay.path()))?;
            self.write(run.start, &buf).map_err(wrap("writing", &self.at))?;
        }
        self.sync().map_err(wrap("syncing", &self.at))?;
        // Durable before the blocks are written here alone, or a restart would take what the overlay has for newer.
        overlay.left(&runs).map_err(wrap("writing the log of", overlay.path()))?;
        Ok(true)
    }

    /// Gives the copy its name: it is the guest's disk now.
    ///
    /// # Errors
    /// [`CopyError`].
    pub fn finish(&self) -> Result<(), CopyError> {
        if let Some(target) = self.target.write().take() {
            target.finish()?;
        }
        match self.notes.lock().note.take() {
            Some(note) => Ok(note.finish().map_err(RestoreError::from)?),
            None => Ok(()),
        }
    }
}

/// The copy that stands there, if it has every message.
fn full(path: &Path, head: &ResumeHead, messages: usize) -> Result<Option<(Target, ResumeFile, Vec<bool>)>, CopyError> {
    let Some(target) = Target::standing(path, &Layout::raw(head.disk_bytes))? else { return Ok(None) };
    let id = target.id()?;
    let earlier = ResumeFile::open(path, head, Some(&id), messages, false).map_err(RestoreError::from)?;
    Ok(match earlier {
        Some(Earlier { note, done: Some(done) }) if done.iter().all(|done| *done) => Some((target, note, done)),
        _ => None,
    })
}

impl Sink for DiskCopy {
    fn source(&self) -> &Source {
        self.origin.source()
    }

    fn message(&self, row: usize) -> Known<'_> {
        self.origin.known(row)
    }

    fn opened(&self, message: &MessageUse, opened: &Opened<'_>) -> ControlFlow<()> {
        if self.trouble.lock().stop.is_some() {
            return ControlFlow::Break(());
        }
        match self.put(message, opened) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                self.trouble.lock().stop.get_or_insert(error);
                ControlFlow::Break(())
            }
        }
    }

    fn damaged(&self, row: usize, damage: Damage) -> ControlFlow<()> {
        tracing::error!(%damage, "a part of the disk cannot be copied");
        let mut trouble = self.trouble.lock();
        trouble.damaged.insert(self.origin.number(row));
        if trouble.found.len() < DAMAGE_KEPT_MAX {
            trouble.found.push(damage);
        }
        ControlFlow::Continue(())
    }
}
