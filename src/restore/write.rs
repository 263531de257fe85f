//! The driver of a restore: a plan and a target in, an image out, or nothing that could be taken for one.
//!
//! Durability order: write a message's bytes, fdatasync the target, read them back if that was asked for, only then note the
//! message in the resume file. After any failure the target keeps its `.partial` name (or, on a device, its resume file) and a
//! second run goes on. Several images get their names together, when all of them are whole: [`write`] and [`Whole::finish`].

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use super::damage::Damage;
use super::fetch::{self, FetchError, FetchLimits, Known, Sink};
use super::format::{Format, FormatError, Layout};
use super::history::History;
use super::open::Opened;
use super::plan::{MessageUse, Plan, RangedRead};
use super::progress::Progress;
use super::resume::{Earlier, Place, ResumeError, ResumeFile, ResumeHead};
use super::source::Source;
use super::target::{Expected, Target, TargetError};
use crate::fault::{Classify, Fault};
use crate::flow::blocking;
use crate::types::DiskId;
use crate::vault::VaultError;

/// Bytes written between two notes in the resume file: what an interruption costs at most, twice.
const NOTE_EVERY_BYTES: u64 = 256 << 20;
/// Damage kept by name; beyond it only the count grows.
const DAMAGE_KEPT_MAX: usize = 1000;

/// Why a restore failed. The target is then not an image, and does not look like one.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The target.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The resume file.
    #[error(transparent)]
    Resume(#[from] ResumeError),
    /// The form of the image.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The store.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The identity does not open what the image needs.
    #[error(transparent)]
    Vault(Box<VaultError>),
    /// Something that the image needs is damaged.
    #[error("disk {disk} cannot be restored to this point: {count} of the messages that it needs are damaged")]
    Damaged {
        /// The disk.
        disk: DiskId,
        /// How many.
        count: usize,
        /// Which, up to a bound.
        found: Vec<Damage>,
    },
}

impl Classify for RestoreError {
    fn fault(&self) -> Fault {
        match self {
            Self::Target(error) => error.fault(),
            Self::Resume(error) => error.fault(),
            Self::Format(error) => error.fault(),
            Self::Fetch(error) => error.fault(),
            Self::Vault(error) => error.fault(),
            Self::Damaged { .. } => Fault::Corrupt,
        }
    }
}

/// What a restore did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Restored {
    /// Size of the image.
    pub disk_bytes: u64,
    /// Bytes of it that came from messages.
    pub data_bytes: u64,
    /// Bytes read from the vault in this run.
    pub read_bytes: u64,
    /// Messages that the plan has.
    pub messages: u64,
    /// Messages that an earlier run had finished.
    pub resumed_messages: u64,
    /// Bytes of the disk that an existing image had right, and that were not written.
    pub same_bytes: u64,
    /// Bytes of the disk as the image states them, where its form counts in larger steps than the disk.
    pub virtual_bytes: u64,
}

/// How to run.
#[derive(Clone, Copy, Debug, Default)]
pub struct RestoreOptions {
    /// Overwrite what is there, and forget another half-done restore.
    pub force: bool,
    /// Memory and parallelism.
    pub limits: FetchLimits,
    /// The form of a new file.
    pub format: Format,
    /// Bring an image that is there to the point: write only blocks that differ. Such an image is raw.
    pub onto: bool,
    /// Read back from the target what was written.
    pub verify: bool,
}

/// Restores `plan` of `disk` to `path`.
///
/// # Errors
/// [`RestoreError`]; of damage everything that was found, after everything else was written.
pub async fn restore(
    source: &Source,
    disk: &DiskId,
    history: Arc<History>,
    plan: &Plan,
    path: &Path,
    options: &RestoreOptions,
    progress: Arc<Progress>,
) -> Result<Restored, RestoreError> {
    let (whole, restored) = write(source, disk, history, plan, path, options, progress).await?;
    apart(move || whole.finish()).await?;
    Ok(restored)
}

/// A target with every byte of the image, durable, that is not taken for an image yet.
#[derive(Debug)]
pub struct Whole {
    target: Target,
    note: ResumeFile,
}

impl Whole {
    /// Makes an image of it. Blocks.
    ///
    /// # Errors
    /// [`RestoreError`]; the same command goes on from there.
    pub fn finish(self) -> Result<(), RestoreError> {
        self.target.finish()?;
        Ok(self.note.finish()?)
    }
}

/// [`restore`] up to the point where the image lacks nothing but its name.
///
/// # Errors
/// [`RestoreError`] as there.
pub async fn write(
    source: &Source,
    disk: &DiskId,
    history: Arc<History>,
    plan: &Plan,
    place: impl Into<Place>,
    options: &RestoreOptions,
    progress: Arc<Progress>,
) -> Result<(Whole, Restored), RestoreError> {
    let place = place.into();
    source.can_open(&history, plan).map_err(|error| RestoreError::Vault(Box::new(error)))?;
    let total = plan.reads.iter().map(|read| read.messages.len()).sum::<usize>();
    let head = ResumeHead {
        plan: plan.id(disk.as_str(), |object| source.path(object).to_string()),
        disk: disk.clone(),
        point: plan.target,
        disk_bytes: plan.disk_bytes,
    };
    let name = place.target.file_name().unwrap_or_default().to_string_lossy();
    let format = if options.onto { Format::Raw } else { options.format };
    let layout = Layout::new(format, plan.disk_bytes, &plan.zeroes, &name)?;
    let virtual_bytes = layout.virtual_bytes();
    let zeroes: Arc<[(u64, u64)]> = plan.zeroes.as_slice().into();
    let (to_clear, options) = (Arc::clone(&zeroes), *options);
    let prepared = apart(move || {
        let prepared = match options.onto {
            true => prepare_onto(&place, &head, total, options.force)?,
            false => prepare(&place, &head, &layout, total, options.force)?,
        };
        to_clear.iter().try_for_each(|&(offset_bytes, length_bytes)| prepared.0.zero(offset_bytes, length_bytes))?;
        Ok::<_, RestoreError>(prepared)
    });
    let (target, note, done) = prepared.await?;
    let reads = remaining(&plan.reads, &done, &history);
    let read_bytes = reads.iter().map(|read| read.length_bytes).sum();
    progress.start(read_bytes);
    let writer = Arc::new(Writer {
        numbers: numbers(plan, &history),
        disk: disk.clone(),
        source: source.clone(),
        history,
        target,
        progress,
        verify: options.verify,
        written: Mutex::default(),
        note: Mutex::new(Note { file: note, broken: false }),
        trouble: Mutex::default(),
    });
    let fetched = fetch::run(source.vault.store(), source.vault.id(), reads, &writer, &options.limits).await;
    let Some(writer) = Arc::into_inner(writer) else {
        unreachable!("the workers were joined, nobody else holds the writer")
    };
    let whole = apart(move || writer.finish(fetched, &zeroes)).await?;
    let resumed_messages = done.iter().filter(|done| **done).count() as u64;
    let (disk_bytes, data_bytes, messages) = (plan.disk_bytes, plan.data_bytes(), total as u64);
    let same_bytes = whole.target.same_bytes();
    let restored =
        Restored { disk_bytes, data_bytes, read_bytes, messages, resumed_messages, same_bytes, virtual_bytes };
    Ok((whole, restored))
}

/// Work on the target, where blocking is no harm.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    blocking(work).await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// Opens target and note: those of an earlier run as they stand, if the note is about this plan and this very target;
/// else both anew.
pub(crate) fn prepare(
    place: &Place,
    head: &ResumeHead,
    layout: &Layout,
    messages: usize,
    force: bool,
) -> Result<(Target, ResumeFile, Vec<bool>), RestoreError> {
    let (path, at) = (&place.target, &place.note);
    Target::check(path, force)?;
    let standing = Target::standing(path, layout)?;
    let standing_id = standing.as_ref().map(Target::id).transpose()?;
    let (note, standing) = match (ResumeFile::open_at(at, head, standing_id.as_deref(), messages, force)?, standing) {
        (Some(Earlier { note, done: Some(done) }), Some(target)) => return Ok((target, note, done)),
        (earlier, standing) => (earlier.map(|earlier| earlier.note), standing),
    };
    let mut device = standing.filter(Target::reused);
    if let Some(device) = device.as_mut().filter(|_| !force) {
        device.must_be_blank()?;
    }
    // First nothing is promised of the target any more, then it is emptied, then the note is about it.
    let mut note = match note {
        Some(note) => note.emptied()?,
        None => ResumeFile::create(at)?,
    };
    let target = match device {
        Some(device) => device,
        None => Target::create(path, layout)?,
    };
    note.start(head, &target.id()?)?;
    Ok((target, note, vec![false; messages]))
}

/// The same for an image that is brought to another point. Whatever stands in it is compared, so it need not be emptied.
fn prepare_onto(
    place: &Place,
    head: &ResumeHead,
    messages: usize,
    force: bool,
) -> Result<(Target, ResumeFile, Vec<bool>), RestoreError> {
    let (target, begun) = Target::standing_onto(&place.target, head.disk_bytes, force)?;
    let id = target.id()?;
    let known = Some(id.as_str()).filter(|_| begun);
    let earlier = ResumeFile::open_at(&place.note, head, known, messages, force)?;
    let mut note = match earlier {
        Some(Earlier { note, done: Some(done) }) => return Ok((target, note, done)),
        Some(Earlier { note, done: None }) => note.emptied()?,
        None => ResumeFile::create(&place.note)?,
    };
    target.begin_onto()?;
    note.start(head, &id)?;
    Ok((target, note, vec![false; messages]))
}

/// The number of each row's message in the plan's order; rows that the plan does not use have none.
fn numbers(plan: &Plan, history: &History) -> Vec<u32> {
    let mut numbers = vec![u32::MAX; history.rows.len()];
    let messages = plan.reads.iter().flat_map(|read| &read.messages);
    for (number, message) in messages.enumerate() {
        numbers[message.row] = number as u32;
    }
    numbers
}

/// The reads without the messages that are done already.
fn remaining(reads: &[RangedRead], done: &[bool], history: &History) -> Vec<RangedRead> {
    let mut done = done.iter();
    let mut left = Vec::new();
    for read in reads {
        let mut messages = read.messages.clone();
        messages.retain(|_| done.next() == Some(&false));
        let (Some(first), Some(last)) = (messages.first(), messages.last()) else { continue };
        let offset_bytes = history.rows[first.row].message.offset_bytes;
        let last = &history.rows[last.row].message;
        let length_bytes = last.offset_bytes + u64::from(last.stored_bytes) - offset_bytes;
        left.push(RangedRead { object: read.object, offset_bytes, length_bytes, messages });
    }
    left
}

/// Takes opened messages on the worker threads and writes what they own.
struct Writer {
    numbers: Vec<u32>,
    disk: DiskId,
    source: Source,
    history: Arc<History>,
    target: Target,
    progress: Arc<Progress>,
    verify: bool,
    written: Mutex<Written>,
    note: Mutex<Note>,
    trouble: Mutex<Trouble>,
}

/// What is written but not yet noted as durable.
#[derive(Default)]
struct Written {
    numbers: Vec<u32>,
    /// Only to be read back; no more than [`NOTE_EVERY_BYTES`] in all, and a message per worker.
    expected: Vec<Expected>,
    bytes: u64,
}

/// The resume file, held by who makes durable what it is to say.
struct Note {
    file: ResumeFile,
    /// A sync failed or the target lied: nothing more is noted, not even what a later sync takes for durable.
    broken: bool,
}

#[derive(Default)]
struct Trouble {
    count: usize,
    found: Vec<Damage>,
    stop: Option<RestoreError>,
}

impl Writer {
    fn write(&self, message: &MessageUse, opened: &Opened<'_>) -> Result<(), RestoreError> {
        let (mut bytes, mut expected) = (0, Vec::new());
        for owned in &message.owned {
            // The plan was made from the same rows that the message was just checked against.
            let data = opened.extent(owned.seq, owned.extent).unwrap_or_default();
            let start = owned.skip_bytes as usize;
            let Some(data) = data.get(start..start + owned.length_bytes as usize) else {
                unreachable!("an owned range lies inside its extent")
            };
            self.target.write(owned.offset_bytes, data)?;
            if self.verify {
                expected.push(Expected::of(owned.offset_bytes, data));
            }
            bytes += data.len() as u64;
        }
        let due = {
            let mut written = self.written.lock();
            written.numbers.push(self.numbers[message.row]);
            written.expected.append(&mut expected);
            written.bytes += bytes;
            written.bytes >= NOTE_EVERY_BYTES
        };
        if due { self.make_durable() } else { Ok(()) }
    }

    /// Makes durable, and notes, what was written so far. One worker does it while the others go on, until as much again is
    /// written: then they wait here, so that memory and device never hold more.
    fn make_durable(&self) -> Result<(), RestoreError> {
        let mut note = self.note.lock();
        let written = std::mem::take(&mut *self.written.lock());
        if note.broken || written.numbers.is_empty() {
            return Ok(());
        }
        // Until it has succeeded.
        note.broken = true;
        self.target.sync()?;
        if self.verify {
            self.target.check_written(written.expected)?;
        }
        note.file.done(written.numbers)?;
        note.broken = false;
        Ok(())
    }

    fn finish(self, fetched: Result<(), FetchError>, zeroes: &[(u64, u64)]) -> Result<Whole, RestoreError> {
        let trouble = std::mem::take(&mut *self.trouble.lock());
        if let Some(stop) = trouble.stop {
            return Err(stop);
        }
        self.make_durable()?;
        fetched?;
        if trouble.count > 0 {
            return Err(RestoreError::Damaged { disk: self.disk, count: trouble.count, found: trouble.found });
        }
        if self.verify && self.target.reused() {
            self.target.check_zeroes(zeroes)?;
        }
        Ok(Whole { target: self.target, note: self.note.into_inner().file })
    }
}

impl Sink for Writer {
    fn source(&self) -> &Source {
        &self.source
    }

    fn message(&self, row: usize) -> Known<'_> {
        let meta = &self.history.rows[row].message;
        let disk_bytes = self.history.span_of(meta.epoch).map_or(u64::MAX, |span| span.segment.size_bytes);
        Known { disk: &self.disk, disk_bytes, meta }
    }

    fn opened(&self, message: &MessageUse, opened: &Opened<'_>) -> ControlFlow<()> {
        if self.trouble.lock().stop.is_some() {
            return ControlFlow::Break(());
        }
        self.progress.add(u64::from(opened.meta().stored_bytes));
        match self.write(message, opened) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                self.trouble.lock().stop.get_or_insert(error);
                ControlFlow::Break(())
            }
        }
    }

    fn damaged(&self, row: usize, damage: Damage) -> ControlFlow<()> {
        self.progress.add(u64::from(self.history.rows[row].message.stored_bytes));
        let mut trouble = self.trouble.lock();
        trouble.count += 1;
        if trouble.found.len() < DAMAGE_KEPT_MAX {
            trouble.found.push(damage);
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests;
