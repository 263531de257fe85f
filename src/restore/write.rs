//! The driver of a restore: a plan and a target in, an image out, or nothing that could be taken for one.
//!
//! Durability order: write a message's bytes, fdatasync the target, only then note the message in the resume file. After
//! any failure the target keeps its `.partial` name (or, on a device, its resume file) and a second run goes on.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use object_store::path::Path as ObjectPath;
use parking_lot::Mutex;

use super::damage::Damage;
use super::fetch::{self, FetchError, FetchLimits, Known, Sink};
use super::history::History;
use super::open::Opened;
use super::plan::{MessageUse, Plan, RangedRead};
use super::progress::Progress;
use super::resume::{Earlier, ResumeError, ResumeFile, ResumeHead};
use super::source::Source;
use super::target::{Target, TargetError};
use crate::fault::{Classify, Fault};
use crate::keys::LaneKey;
use crate::types::DiskId;
use crate::vault::VaultError;

/// Bytes written between two notes in the resume file: what an interruption costs at most.
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
}

/// How to run.
#[derive(Clone, Copy, Debug, Default)]
pub struct RestoreOptions {
    /// Overwrite what is there, and forget another half-done restore.
    pub force: bool,
    /// Memory and parallelism.
    pub limits: FetchLimits,
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
    source.can_open(plan).map_err(|error| RestoreError::Vault(Box::new(error)))?;
    let total = plan.reads.iter().map(|read| read.messages.len()).sum::<usize>();
    let head = ResumeHead {
        plan: plan.id(disk.as_str(), |object| source.path(object).to_string()),
        disk: disk.clone(),
        point: plan.target,
        disk_bytes: plan.disk_bytes,
    };
    let (target, resume, done) = prepare(path, &head, total, options.force)?;
    for &(offset_bytes, length_bytes) in &plan.zeroes {
        target.zero(offset_bytes, length_bytes)?;
    }
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
        notes: Mutex::new(Notes { resume, written: Vec::new(), bytes: 0 }),
        trouble: Mutex::default(),
    });
    let fetched = fetch::run(source.vault.store(), source.vault.id(), reads, &writer, &options.limits).await;
    let Some(writer) = Arc::into_inner(writer) else {
        unreachable!("the workers were joined, nobody else holds the writer")
    };
    writer.finish(fetched)?;
    let resumed_messages = done.iter().filter(|done| **done).count() as u64;
    let (disk_bytes, data_bytes) = (plan.disk_bytes, plan.data_bytes());
    Ok(Restored { disk_bytes, data_bytes, read_bytes, messages: total as u64, resumed_messages })
}

/// Opens target and note: those of an earlier run as they stand, if the note is about this plan and this very target;
/// else both anew.
fn prepare(
    path: &Path,
    head: &ResumeHead,
    messages: usize,
    force: bool,
) -> Result<(Target, ResumeFile, Vec<bool>), RestoreError> {
    Target::check(path, force)?;
    let standing = Target::standing(path, head.disk_bytes)?;
    let standing_id = standing.as_ref().map(Target::id).transpose()?;
    let (note, standing) = match (ResumeFile::open(path, head, standing_id.as_deref(), messages, force)?, standing) {
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
        None => ResumeFile::create(path)?,
    };
    let target = match device {
        Some(device) => device,
        None => Target::create(path, head.disk_bytes)?,
    };
    note.start(head, &target.id()?)?;
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
    notes: Mutex<Notes>,
    trouble: Mutex<Trouble>,
}

/// What is written but not yet noted as durable.
struct Notes {
    resume: ResumeFile,
    written: Vec<u32>,
    bytes: u64,
}

#[derive(Default)]
struct Trouble {
    count: usize,
    found: Vec<Damage>,
    stop: Option<RestoreError>,
}

impl Writer {
    fn write(&self, message: &MessageUse, opened: &Opened<'_>) -> Result<(), RestoreError> {
        let mut bytes = 0;
        for owned in &message.owned {
            // The plan was made from the same rows that the message was just checked against.
            let data = opened.extent(owned.seq, owned.extent).unwrap_or_default();
            let start = owned.skip_bytes as usize;
            let Some(data) = data.get(start..start + owned.length_bytes as usize) else {
                unreachable!("an owned range lies inside its extent")
            };
            self.target.write(owned.offset_bytes, data)?;
            bytes += data.len() as u64;
        }
        let mut notes = self.notes.lock();
        notes.written.push(self.numbers[message.row]);
        notes.bytes += bytes;
        if notes.bytes >= NOTE_EVERY_BYTES {
            // Under the lock: what other workers write meanwhile is noted the next time.
            self.note(&mut notes)?;
        }
        Ok(())
    }

    fn note(&self, notes: &mut Notes) -> Result<(), RestoreError> {
        self.target.sync()?;
        notes.resume.done(std::mem::take(&mut notes.written))?;
        notes.bytes = 0;
        Ok(())
    }

    fn finish(self, fetched: Result<(), FetchError>) -> Result<(), RestoreError> {
        let trouble = std::mem::take(&mut *self.trouble.lock());
        if let Some(stop) = trouble.stop {
            return Err(stop);
        }
        self.note(&mut self.notes.lock())?;
        fetched?;
        if trouble.count > 0 {
            return Err(RestoreError::Damaged { disk: self.disk, count: trouble.count, found: trouble.found });
        }
        self.target.finish()?;
        Ok(self.notes.into_inner().resume.finish()?)
    }
}

impl Sink for Writer {
    fn object(&self, object: u32) -> (&ObjectPath, Option<&LaneKey>) {
        (self.source.path(object), self.source.key(object))
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
