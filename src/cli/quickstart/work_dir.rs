//! The work directory: never somebody else's files.

use std::io;
use std::path::{Path, PathBuf};

/// Where runs without `--dir` go.
const PARENT: &str = "tidegate-quickstart";
/// Marks a directory as ours.
const MARKER: &str = ".tidegate-quickstart";

/// A directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WorkDirError {
    /// It holds something that no quickstart put there.
    #[error("{} is not empty and not the work directory of a quickstart: choose another --dir", dir.display())]
    Foreign {
        /// The directory.
        dir: PathBuf,
    },
    /// It holds an earlier run.
    #[error("{} holds an earlier run: add --force to wipe it, or choose another --dir", dir.display())]
    Used {
        /// The directory.
        dir: PathBuf,
    },
    /// It cannot be made or read.
    #[error("cannot use {} as work directory", dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Makes the directory ready, empty but for its mark, and returns its absolute path.
///
/// # Errors
/// [`WorkDirError`] if it holds something, or cannot be made.
pub fn prepare(wanted: Option<&Path>, force: bool) -> Result<PathBuf, WorkDirError> {
    let dir = wanted.map_or_else(|| fresh(Path::new(PARENT)), Path::to_owned);
    let wrap = |source| WorkDirError::Io { dir: dir.clone(), source };
    std::fs::create_dir_all(&dir).map_err(wrap)?;
    let entries: Vec<_> = std::fs::read_dir(&dir).map_err(wrap)?.collect::<Result<_, _>>().map_err(wrap)?;
    let ours = entries.iter().any(|entry| entry.file_name() == MARKER);
    match (entries.is_empty(), ours, force) {
        (true, ..) => {}
        (false, false, _) => return Err(WorkDirError::Foreign { dir }),
        (false, true, false) => return Err(WorkDirError::Used { dir }),
        (false, true, true) => entries.iter().try_for_each(remove).map_err(wrap)?,
    }
    std::fs::write(dir.join(MARKER), "made by `tidegate quickstart`; --force wipes this directory\n").map_err(wrap)?;
    dir.canonicalize().map_err(wrap)
}

fn remove(entry: &std::fs::DirEntry) -> io::Result<()> {
    // A link is removed, not followed.
    if entry.file_type()?.is_dir() { std::fs::remove_dir_all(entry.path()) } else { std::fs::remove_file(entry.path()) }
}

/// The first of `parent/1`, `parent/2`, … that does not exist.
fn fresh(parent: &Path) -> PathBuf {
    let mut number = 1_u32;
    loop {
        let dir = parent.join(number.to_string());
        if std::fs::symlink_metadata(&dir).is_err() {
            return dir;
        }
        number += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_earlier_run_is_wiped_and_only_by_force() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("work");
        prepare(Some(&dir), false).unwrap();
        std::fs::create_dir(dir.join("vault")).unwrap();
        assert!(matches!(prepare(Some(&dir), false), Err(WorkDirError::Used { .. })));
        prepare(Some(&dir), true).unwrap();
        assert!(!dir.join("vault").exists());
        let foreign = folder.path().join("foreign");
        std::fs::create_dir(&foreign).unwrap();
        std::fs::write(foreign.join("thesis"), "mine").unwrap();
        for force in [false, true] {
            assert!(matches!(prepare(Some(&foreign), force), Err(WorkDirError::Foreign { .. })));
        }
        assert!(foreign.join("thesis").exists());
    }

    #[test]
    fn runs_without_a_directory_get_a_new_one_each() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(fresh(folder.path()), folder.path().join("1"));
        std::fs::create_dir(folder.path().join("1")).unwrap();
        assert_eq!(fresh(folder.path()), folder.path().join("2"));
    }
}
