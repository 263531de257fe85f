//! The note of a half-restored target: which plan, and which of its messages are already durable in the target.
//!
//! ```text
//! tidegate-resume 1 <plan id> <disk> <point> <disk bytes> <target> <crc>\n
//! done <first>-<last> <crc>\n                                         numbers of messages in the plan's order
//! ```
//!
//! Its presence marks the target as not yet an image. A line is appended only after the target's bytes were made durable
//! with fdatasync, and every line carries a CRC-32C: a torn last line costs reading a few messages again, never a hole.
//! What it says holds for the very file or device that it names: one removed and made anew has nothing of it. Therefore
//! it is emptied, durably, before a target is emptied, and gets its first line after that. It is locked from the first
//! look to the end.
//!
//! It stands beside a file. What stands beside a device, in `/dev`, is gone when the machine is started anew, and the device would be
//! taken for an image: so there it stands in a folder that lasts ([`folder_of_devices`]), or in one that was named.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::fault::{Classify, Fault};
use crate::types::{Chain, DiskId, PointId};

/// Why a restore cannot go on from the note.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// It belongs to another restore.
    #[error(
        "{} belongs to a half-done restore of {found}: finish that one, or start over with --force", path.display()
    )]
    OtherPlan {
        /// The note.
        path: PathBuf,
        /// Disk and point that it names.
        found: String,
    },
    /// It is no such note.
    #[error("{} is not a resume file of this version: remove it, or start over with --force", path.display())]
    Format {
        /// The file.
        path: PathBuf,
    },
    /// Another process restores into the same target.
    #[error("{} is in use: another restore into this target is running", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be read or written.
    #[error("the resume file {} cannot be used", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Classify for ResumeError {
    fn fault(&self) -> Fault {
        Fault::Reject
    }
}

/// What a note is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ResumeHead {
    /// Digest of the plan.
    pub plan: Chain,
    /// The disk.
    pub disk: DiskId,
    /// The point.
    pub point: PointId,
    /// Size of the image.
    pub disk_bytes: u64,
}

impl ResumeHead {
    fn text(&self) -> String {
        format!("tidegate-resume 1 {} {} {} {}", self.plan, self.disk, self.point, self.disk_bytes)
    }
}

/// What an earlier run left.
#[derive(Debug)]
pub struct Earlier {
    /// Its note, locked.
    pub note: ResumeFile,
    /// Which messages of the plan are in the target; none if this is not the target that it wrote, or not this plan.
    pub done: Option<Vec<bool>>,
}

/// An open note.
#[derive(Debug)]
pub struct ResumeFile {
    path: PathBuf,
    file: File,
}

/// How the names of notes end.
const ENDING: &str = ".tidegate-resume";
/// Where notes of devices stand that root restores.
const FOLDER_OF_ROOT: &str = "/var/lib/tidegate/restore";

/// A target, and where its note stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The target.
    pub target: PathBuf,
    /// Its note.
    pub note: PathBuf,
}

impl From<&Path> for Place {
    fn from(target: &Path) -> Self {
        Self { target: target.to_owned(), note: path_of(target) }
    }
}

impl From<&PathBuf> for Place {
    fn from(target: &PathBuf) -> Self {
        target.as_path().into()
    }
}

impl Place {
    /// A target whose note stands in `folder`, which is made if it is not there.
    ///
    /// # Errors
    /// [`ResumeError::Io`] if it cannot be made.
    pub fn noted_in(target: &Path, folder: &Path) -> Result<Self, ResumeError> {
        std::fs::create_dir_all(folder).map_err(|source| ResumeError::Io { path: folder.to_owned(), source })?;
        Ok(Self { target: target.to_owned(), note: folder.join(name_of(target)) })
    }
}

/// The note of a target, where nobody named a folder.
#[must_use]
pub fn path_of(target: &Path) -> PathBuf {
    let mut beside = target.as_os_str().to_owned();
    beside.push(ENDING);
    let beside = PathBuf::from(beside);
    let is_device = std::fs::metadata(target).is_ok_and(|meta| meta.file_type().is_block_device());
    // An older release left one there, and the machine has not been started anew since.
    if !is_device || beside.exists() {
        return beside;
    }
    folder_of_devices().map_or(beside, |folder| folder.join(name_of(target)))
}

/// The folder of the notes of devices: of whoever runs this, and not emptied when the machine is started anew.
#[must_use]
pub fn folder_of_devices() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from(FOLDER_OF_ROOT));
    }
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")));
    Some(state?.join("tidegate/restore"))
}

/// A target's path as the name of one file.
fn name_of(target: &Path) -> String {
    let target = std::path::absolute(target).unwrap_or_else(|_| target.to_owned());
    let text = target.to_string_lossy();
    format!("{}{ENDING}", text.trim_start_matches('/').replace('/', "+"))
}

pub(crate) fn with_crc(text: &str) -> String {
    format!("{text} {:08x}\n", crc_fast::crc32_iscsi(text.as_bytes()))
}

/// The text of a whole line, if its CRC holds.
pub(crate) fn checked(line: &str) -> Option<&str> {
    let (text, crc) = line.strip_suffix('\n')?.rsplit_once(' ')?;
    (u32::from_str_radix(crc, 16).ok()? == crc_fast::crc32_iscsi(text.as_bytes())).then_some(text)
}

/// What the bytes of a note say.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// Nothing of this target: a run that was stopped before it wrote anything, or one into another target.
    Nothing,
    /// It is of another plan, or no note at all.
    OtherPlan {
        /// Its first line.
        first: String,
    },
    /// It is of this plan and this target.
    Ours {
        /// Which messages are in the target.
        done: Vec<bool>,
        /// Up to where it can be believed, and written on.
        valid_bytes: usize,
    },
}

/// The first line of a note.
pub(crate) fn first_line(head: &ResumeHead, target_id: &str) -> String {
    with_crc(&format!("{} {target_id}", head.text()))
}

/// Reads the bytes of a note.
pub(crate) fn read_note(bytes: &[u8], head: &ResumeHead, target_id: Option<&str>, messages: usize) -> Note {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.split_inclusive('\n');
    let Some(first) = lines.next() else { return Note::Nothing };
    let written = checked(first).and_then(|line| line.rsplit_once(' ')).filter(|(plan, _)| *plan == head.text());
    let Some((_, written_to)) = written else { return Note::OtherPlan { first: first.to_owned() } };
    if target_id != Some(written_to) {
        return Note::Nothing;
    }
    let mut done = vec![false; messages];
    let mut valid_bytes = first.len();
    for line in lines {
        let Some((from, to)) = checked(line).and_then(done_range).filter(|&(_, to)| to < messages) else { break };
        done[from..=to].fill(true);
        valid_bytes += line.len();
    }
    Note::Ours { done, valid_bytes }
}

impl ResumeFile {
    /// Opens the note of an earlier run, if there is one. `target_id` is that of the target that stands there, if one
    /// does. With `force` the note of another plan is none to go on from; without, it is an error.
    ///
    /// # Errors
    /// [`ResumeError`] if it belongs to another plan, or is none, or is in use.
    pub fn open(
        target: &Path,
        head: &ResumeHead,
        target_id: Option<&str>,
        messages: usize,
        force: bool,
    ) -> Result<Option<Earlier>, ResumeError> {
        Self::open_at(&path_of(target), head, target_id, messages, force)
    }

    /// The same by the path of the note.
    ///
    /// # Errors
    /// As [`ResumeFile::open`].
    pub fn open_at(
        path: &Path,
        head: &ResumeHead,
        target_id: Option<&str>,
        messages: usize,
        force: bool,
    ) -> Result<Option<Earlier>, ResumeError> {
        let Some(mut note) = Self::locked(path, false)? else { return Ok(None) };
        let mut bytes = Vec::new();
        note.file.read_to_end(&mut bytes).map_err(|source| note.failed(source))?;
        let (done, valid_bytes) = match read_note(&bytes, head, target_id, messages) {
            Note::Ours { done, valid_bytes } => (done, valid_bytes),
            Note::OtherPlan { .. } if force => return Ok(Some(Earlier { note, done: None })),
            Note::OtherPlan { first } => return Err(other_plan(&note.path, &first)),
            Note::Nothing => return Ok(Some(Earlier { note, done: None })),
        };
        let cut = note.file.set_len(valid_bytes as u64).and_then(|()| note.file.seek(SeekFrom::End(0)));
        cut.map_err(|source| note.failed(source))?;
        Ok(Some(Earlier { note, done: Some(done) }))
    }

    /// A new note, which says nothing yet but that the target is not an image.
    ///
    /// # Errors
    /// [`ResumeError`].
    pub fn create(path: &Path) -> Result<Self, ResumeError> {
        let wrap = |source| ResumeError::Io { path: path.to_owned(), source };
        if let Some(folder) = folder_of_devices().filter(|folder| path.parent() == Some(folder.as_path())) {
            std::fs::create_dir_all(folder).map_err(wrap)?;
        }
        let note = Self::locked(path, true)?;
        let note = note.ok_or_else(|| wrap(io::ErrorKind::NotFound.into()))?;
        sync_folder(&note.path).map_err(|source| note.failed(source))?;
        note.emptied()
    }

    /// Forgets, durably, what the note says: its target is about to lose it.
    ///
    /// # Errors
    /// [`ResumeError::Io`].
    pub fn emptied(mut self) -> Result<Self, ResumeError> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.rewind()).and_then(|()| self.file.sync_all());
        emptied.map_err(|source| self.failed(source))?;
        Ok(self)
    }

    /// Names plan and target in an emptied note; from now on messages can be noted.
    ///
    /// # Errors
    /// [`ResumeError::Io`].
    pub fn start(&mut self, head: &ResumeHead, target_id: &str) -> Result<(), ResumeError> {
        let line = first_line(head, target_id);
        let written = self.file.write_all(line.as_bytes()).and_then(|()| self.file.sync_all());
        written.map_err(|source| self.failed(source))
    }

    fn locked(path: &Path, create: bool) -> Result<Option<Self>, ResumeError> {
        let path = path.to_owned();
        let wrap = |source| ResumeError::Io { path: path.clone(), source };
        let file = match OpenOptions::new().read(true).write(true).create(create).truncate(false).open(&path) {
            Ok(file) => file,
            // With `create` it is the folder that is missing, and that is the user's mistake.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !create => return Ok(None),
            Err(error) => return Err(wrap(error)),
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(ResumeError::Busy { path }),
            Err(TryLockError::Error(source)) => return Err(wrap(source)),
        }
        // Its owner has finished and removed it between the opening and the locking.
        if file.metadata().map_err(wrap)?.nlink() == 0 {
            return Err(ResumeError::Busy { path });
        }
        Ok(Some(Self { path, file }))
    }

    fn failed(&self, source: io::Error) -> ResumeError {
        ResumeError::Io { path: self.path.clone(), source }
    }

    /// Notes that these messages are durable in the target. `numbers` need not be sorted.
    ///
    /// # Errors
    /// [`ResumeError::Io`].
    pub fn done(&mut self, mut numbers: Vec<u32>) -> Result<(), ResumeError> {
        numbers.sort_unstable();
        let mut text = String::new();
        for run in numbers.chunk_by(|a, b| a + 1 == *b) {
            text.push_str(&with_crc(&format!("done {}-{}", run[0], run[run.len() - 1])));
        }
        let result = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data());
        result.map_err(|source| self.failed(source))
    }

    /// Removes the note, durably: the target is an image now.
    ///
    /// # Errors
    /// [`ResumeError::Io`].
    pub fn finish(self) -> Result<(), ResumeError> {
        std::fs::remove_file(&self.path).and_then(|()| sync_folder(&self.path)).map_err(|source| self.failed(source))
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

fn done_range(text: &str) -> Option<(usize, usize)> {
    let (first, last) = text.strip_prefix("done ")?.split_once('-')?;
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some((first, last))
}

fn other_plan(path: &Path, first_line: &str) -> ResumeError {
    let mut words = checked(first_line).unwrap_or_default().split(' ');
    let path = path.to_owned();
    match (words.next(), words.next(), words.nth(1), words.next()) {
        (Some("tidegate-resume"), Some("1"), Some(disk), Some(point)) => {
            ResumeError::OtherPlan { path, found: format!("disk {disk} to point {point}") }
        }
        _ => ResumeError::Format { path },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(point: &str) -> ResumeHead {
        ResumeHead {
            plan: Chain([7; 32]),
            disk: DiskId::new("sda").unwrap(),
            point: point.parse().unwrap(),
            disk_bytes: 4096,
        }
    }

    fn create(target: &Path) -> ResumeFile {
        let mut file = ResumeFile::create(&path_of(target)).unwrap();
        file.start(&head("e1-s9"), "file-1").unwrap();
        file
    }

    fn open(target: &Path, messages: usize) -> Result<Option<Earlier>, ResumeError> {
        ResumeFile::open(target, &head("e1-s9"), Some("file-1"), messages, false)
    }

    fn done(target: &Path, messages: usize) -> (ResumeFile, Vec<bool>) {
        let earlier = open(target, messages).unwrap().unwrap();
        (earlier.note, earlier.done.unwrap())
    }

    #[test]
    fn a_second_run_knows_what_the_first_finished() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("image");
        assert!(open(&target, 8).unwrap().is_none());
        let mut file = create(&target);
        file.done(vec![3, 1, 2, 6]).unwrap();
        assert!(matches!(open(&target, 8), Err(ResumeError::Busy { .. })));
        drop(file);
        let (file, done) = done(&target, 8);
        assert_eq!(done, [false, true, true, true, false, false, true, false]);
        file.finish().unwrap();
        assert!(!path_of(&target).exists());
    }

    #[test]
    fn a_note_stands_beside_a_file_or_in_the_folder_that_was_named() {
        let folder = tempfile::tempdir().unwrap();
        let (target, state) = (folder.path().join("image"), folder.path().join("notes"));
        assert_eq!(Place::from(&target).note, folder.path().join("image.tidegate-resume"));
        let place = Place::noted_in(Path::new("/dev/vg0/data"), &state).unwrap();
        assert_eq!(place.note, state.join("dev+vg0+data.tidegate-resume"));
        drop(ResumeFile::create(&place.note).unwrap());
        assert!(place.note.exists());
        // A folder that is not there and was not named is a mistake in the target's path.
        assert!(ResumeFile::create(&path_of(&folder.path().join("nowhere/image"))).is_err());
        assert!(folder_of_devices().is_some_and(|folder| folder.is_absolute() && !folder.starts_with("/dev")));
    }

    #[test]
    fn a_torn_or_altered_line_is_dropped_with_what_follows() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("image");
        let mut file = create(&target);
        file.done(vec![0]).unwrap();
        file.done(vec![2, 5]).unwrap();
        drop(file);
        let mut bytes = std::fs::read(path_of(&target)).unwrap();
        bytes.truncate(bytes.len() - 3);
        std::fs::write(path_of(&target), &bytes).unwrap();
        let (mut file, known) = done(&target, 6);
        assert_eq!(known, [true, false, true, false, false, false]);
        file.done(vec![5]).unwrap();
        drop(file);
        let (_, known) = done(&target, 6);
        assert_eq!(known, [true, false, true, false, false, true], "appended behind what was valid");
        let text = std::fs::read_to_string(path_of(&target)).unwrap().replace("done 2-2", "done 2-3");
        std::fs::write(path_of(&target), text).unwrap();
        let (_, known) = done(&target, 6);
        assert_eq!(known, [true, false, false, false, false, false]);
    }

    #[test]
    fn another_plan_is_refused_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("image");
        drop(create(&target));
        let other = |force| ResumeFile::open(&target, &head("e1-s8"), Some("file-1"), 8, force);
        let error = other(false).unwrap_err();
        assert!(error.to_string().contains("disk sda to point e1-s9"), "{error}");
        assert_eq!(other(true).unwrap().unwrap().done, None);
        std::fs::write(path_of(&target), b"something else\n").unwrap();
        assert!(matches!(open(&target, 8), Err(ResumeError::Format { .. })));
    }

    #[test]
    fn a_note_holds_for_the_very_target_that_it_names() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("image");
        create(&target).done(vec![0, 1]).unwrap();
        for other in [None, Some("file-12"), Some("device-1")] {
            let earlier = ResumeFile::open(&target, &head("e1-s9"), other, 2, false).unwrap().unwrap();
            assert_eq!(earlier.done, None, "{other:?}");
        }
        assert_eq!(done(&target, 2).1, [true, true], "looking changed nothing");
    }

    #[test]
    fn a_note_is_void_before_its_target_is_emptied() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("image");
        create(&target).done(vec![0, 1]).unwrap();
        let forced = ResumeFile::open(&target, &head("e1-s8"), Some("file-1"), 2, true).unwrap().unwrap();
        // Killed before the new plan is named.
        drop(forced.note.emptied().unwrap());
        assert_eq!(open(&target, 2).unwrap().unwrap().done, None);
        assert!(path_of(&target).exists(), "the target is still not an image");
    }
}
