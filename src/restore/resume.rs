//! The note beside a half-restored target: which plan, and which of its messages are already durable in the target.
//!
//! ```text
//! tidegate-resume 1 <plan id> <disk> <point> <disk bytes> <crc>\n
//! done <first>-<last> <crc>\n                                         numbers of messages in the plan's order
//! ```
//!
//! Its presence marks the target as not yet an image. A line is appended only after the target's bytes were made durable
//! with fdatasync, and every line carries a CRC-32C: a torn last line costs reading a few messages again, never a hole.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
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
    fn line(&self) -> String {
        with_crc(&format!("tidegate-resume 1 {} {} {} {}", self.plan, self.disk, self.point, self.disk_bytes))
    }
}

/// An open note.
#[derive(Debug)]
pub struct ResumeFile {
    path: PathBuf,
    file: File,
}

/// The name of the note of a target.
#[must_use]
pub fn path_of(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(".tidegate-resume");
    name.into()
}

fn with_crc(text: &str) -> String {
    format!("{text} {:08x}\n", crc_fast::crc32_iscsi(text.as_bytes()))
}

/// The text of a whole line, if its CRC holds.
fn checked(line: &str) -> Option<&str> {
    let (text, crc) = line.strip_suffix('\n')?.rsplit_once(' ')?;
    (u32::from_str_radix(crc, 16).ok()? == crc_fast::crc32_iscsi(text.as_bytes())).then_some(text)
}

impl ResumeFile {
    /// Starts a new note, replacing any old one.
    ///
    /// # Errors
    /// [`ResumeError::Io`].
    pub fn create(target: &Path, head: &ResumeHead) -> Result<Self, ResumeError> {
        let path = path_of(target);
        let wrap = |source| ResumeError::Io { path: path.clone(), source };
        // Locked before it is emptied: it may be another's.
        let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(wrap)?;
        lock(&file, &path)?;
        file.set_len(0).map_err(wrap)?;
        file.write_all(head.line().as_bytes()).and_then(|()| file.sync_all()).map_err(wrap)?;
        Ok(Self { path, file })
    }

    /// Opens the note of an earlier run, if there is one, and returns which messages of the plan are done.
    ///
    /// # Errors
    /// [`ResumeError`] if it belongs to another plan, or is none.
    pub fn open(target: &Path, head: &ResumeHead, messages: usize) -> Result<Option<(Self, Vec<bool>)>, ResumeError> {
        let path = path_of(target);
        let wrap = |source| ResumeError::Io { path: path.clone(), source };
        let mut file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(wrap(error)),
        };
        lock(&file, &path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(wrap)?;
        let text = String::from_utf8_lossy(&bytes);
        let mut lines = text.split_inclusive('\n');
        let first = lines.next().unwrap_or_default();
        if first != head.line() {
            return Err(other_plan(&path, first));
        }
        let mut done = vec![false; messages];
        let mut valid_bytes = first.len();
        for line in lines {
            let Some((from, to)) = checked(line).and_then(done_range).filter(|&(_, to)| to < messages) else { break };
            done[from..=to].fill(true);
            valid_bytes += line.len();
        }
        file.set_len(valid_bytes as u64).and_then(|()| file.seek(SeekFrom::End(0))).map_err(wrap)?;
        Ok(Some((Self { path, file }, done)))
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
        result.map_err(|source| ResumeError::Io { path: self.path.clone(), source })
    }

    /// Removes the note: the target is an image now.
    ///
    /// # Errors
    /// [`ResumeError::Io`].
    pub fn finish(self) -> Result<(), ResumeError> {
        std::fs::remove_file(&self.path).map_err(|source| ResumeError::Io { path: self.path, source })
    }
}

fn lock(file: &File, path: &Path) -> Result<(), ResumeError> {
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => ResumeError::Busy { path: path.to_owned() },
        TryLockError::Error(source) => ResumeError::Io { path: path.to_owned(), source },
    })
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

    #[test]
    fn a_second_run_knows_what_the_first_finished() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("image");
        assert!(ResumeFile::open(&target, &head("e1-s9"), 8).unwrap().is_none());
        let mut file = ResumeFile::create(&target, &head("e1-s9")).unwrap();
        file.done(vec![3, 1, 2, 6]).unwrap();
        assert!(matches!(ResumeFile::open(&target, &head("e1-s9"), 8), Err(ResumeError::Busy { .. })));
        drop(file);
        let (file, done) = ResumeFile::open(&target, &head("e1-s9"), 8).unwrap().unwrap();
        assert_eq!(done, [false, true, true, true, false, false, true, false]);
        file.finish().unwrap();
        assert!(!path_of(&target).exists());
    }

    #[test]
    fn a_torn_or_altered_line_is_dropped_with_what_follows() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("image");
        let mut file = ResumeFile::create(&target, &head("e1-s9")).unwrap();
        file.done(vec![0]).unwrap();
        file.done(vec![2, 5]).unwrap();
        drop(file);
        let mut bytes = std::fs::read(path_of(&target)).unwrap();
        bytes.truncate(bytes.len() - 3);
        std::fs::write(path_of(&target), &bytes).unwrap();
        let (mut file, done) = ResumeFile::open(&target, &head("e1-s9"), 6).unwrap().unwrap();
        assert_eq!(done, [true, false, true, false, false, false]);
        file.done(vec![5]).unwrap();
        drop(file);
        let (_, done) = ResumeFile::open(&target, &head("e1-s9"), 6).unwrap().unwrap();
        assert_eq!(done, [true, false, true, false, false, true], "appended behind what was valid");
        let text = std::fs::read_to_string(path_of(&target)).unwrap().replace("done 2-2", "done 2-3");
        std::fs::write(path_of(&target), text).unwrap();
        let (_, done) = ResumeFile::open(&target, &head("e1-s9"), 6).unwrap().unwrap();
        assert_eq!(done, [true, false, false, false, false, false]);
    }

    #[test]
    fn another_plan_is_refused_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("image");
        ResumeFile::create(&target, &head("e1-s9")).unwrap();
        let error = ResumeFile::open(&target, &head("e1-s8"), 8).unwrap_err();
        assert!(error.to_string().contains("disk sda to point e1-s9"), "{error}");
        std::fs::write(path_of(&target), b"something else\n").unwrap();
        assert!(matches!(ResumeFile::open(&target, &head("e1-s9"), 8), Err(ResumeError::Format { .. })));
    }
}
