//! The directory that must be durable: its file system, space, and what a write with its sync takes there.

use std::fs;
use std::path::Path;

use super::super::facts::{Place, PlaceSeen};
use super::STATE_BACKEND;
use crate::journal::disk::preflight::{PreflightError, commit_times, preflight};
use crate::journal::{BackendChoice, inspect};

/// A commit under load: between the 570 KiB of small records and the 1.9 MiB of large ones (docs/PERFORMANCE.md).
const COMMIT_BYTES: usize = 1 << 20;
/// What an agent writes to its activity log before a guest's write into a range that was at rest.
const ACTIVITY_BYTES: usize = 4 << 10;

pub(super) fn journal(dir: &Path, backend: BackendChoice) -> Place {
    let own_bytes = inspect::size_bytes(dir).unwrap_or_default() / 2;
    look(dir, backend, COMMIT_BYTES, own_bytes, true)
}

pub(super) fn state(dir: &Path) -> Place {
    look(dir, STATE_BACKEND, ACTIVITY_BYTES, 0, false)
}

/// A directory that nothing can be said of.
pub(super) fn unseen(dir: &Path, why: &str) -> Place {
    let dir = dir.display().to_string();
    Place { looked_at: dir.clone(), dir, seen: Err(why.to_owned()) }
}

fn look(dir: &Path, backend: BackendChoice, commit_bytes: usize, own_bytes: u64, tell: bool) -> Place {
    // The daemon makes what is missing, so what is above it decides.
    let existing = dir.ancestors().find(|above| above.exists()).unwrap_or(dir);
    let seen = see(existing, backend, commit_bytes, own_bytes, tell);
    Place { dir: dir.display().to_string(), looked_at: existing.display().to_string(), seen }
}

fn see(
    dir: &Path,
    backend: BackendChoice,
    commit_bytes: usize,
    own_bytes: u64,
    tell: bool,
) -> Result<PlaceSeen, String> {
    if !dir.is_dir() {
        return Err(format!("{} is no directory", dir.display()));
    }
    let system = rustix::fs::statfs(dir).map_err(|error| error.to_string())?;
    let space = rustix::fs::statvfs(dir).map_err(|error| error.to_string())?;
    let found = preflight(dir, backend).map_err(|error| match error {
        PreflightError::NoRing(text) => format!("{text}; backend = \"ring\" asks for it: write \"auto\""),
        PreflightError::Io(error) => format!("{} cannot be written: {error}", dir.display()),
    })?;
    let commit_micros = commit_times(dir, &found, commit_bytes)
        .map_err(|error| format!("a probe in {} failed: {error}", dir.display()))?;
    Ok(PlaceSeen {
        file_system: system.f_type as u64,
        free_bytes: space.f_bavail * space.f_frsize,
        own_bytes,
        preflight: tell.then_some(found),
        commit_micros,
        commit_bytes: commit_bytes as u64,
    })
}

/// Whether a process holds the lock of a directory.
pub(super) fn is_locked(file: &Path) -> bool {
    fs::File::open(file).is_ok_and(|file| matches!(file.try_lock_shared(), Err(fs::TryLockError::WouldBlock)))
}
