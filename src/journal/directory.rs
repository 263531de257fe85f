//! The journal's directory: whose it is, and that only one process has it.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::disk::Files;
use super::disk::std::{StdFiles, sync_dir};
use super::error::OpenError;
use crate::types::Id128;

/// Version of the directory's layout and of its commits.
pub const VERSION: u32 = 1;
const FORMAT: &str = "tidegate-journal";
/// Name of the identity file.
pub const IDENTITY_FILE: &str = "journal.json";
/// Name of the file that whoever has the journal open holds locked.
pub const LOCK_FILE: &str = "lock";

/// Content of the identity file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    format: String,
    version: u32,
    /// Random id: commits of another journal never validate here.
    pub journal: Id128,
    /// The gateway whose it is.
    pub gateway: String,
    /// Number of shards.
    pub shards: u16,
}

impl Identity {
    /// Of the journal with this id.
    #[must_use]
    pub fn new(journal: Id128, gateway: &str, shards: u16) -> Self {
        Self { format: FORMAT.into(), version: VERSION, journal, gateway: gateway.to_owned(), shards }
    }
}

/// An open, locked directory. Dropping it unlocks.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// Who it belongs to.
    pub identity: Identity,
    _lock: fs::File,
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

impl Directory {
    /// Opens the directory of this gateway, or makes it.
    ///
    /// # Errors
    /// [`OpenError`] if it is another's, in use, of another version, or cannot be used.
    pub fn open(path: &Path, gateway: &str, shards: u16) -> Result<Self, OpenError> {
        StdFiles { direct: false }.create_dir(path).map_err(OpenError::io("make", path))?;
        let lock = lock(path)?;
        let identity = match read_identity(path)? {
            Some(found) => found,
            None => create_identity(path, gateway, shards)?,
        };
        if identity.gateway != gateway {
            let (found, expected) = (identity.gateway, gateway.to_owned());
            return Err(OpenError::OtherGateway { dir: text(path), found, expected });
        }
        Ok(Self { path: path.to_owned(), identity, _lock: lock })
    }

    /// Enters another number of shards, durably.
    ///
    /// # Errors
    /// [`OpenError::Io`].
    pub fn set_shards(&mut self, shards: u16) -> Result<(), OpenError> {
        self.identity.shards = shards;
        write_identity(&self.path, &self.identity)
    }
}

fn lock(path: &Path) -> Result<fs::File, OpenError> {
    let file = path.join(LOCK_FILE);
    let lock = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&file);
    let lock = lock.map_err(OpenError::io("open", &file))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(fs::TryLockError::WouldBlock) => Err(OpenError::Locked { dir: text(path) }),
        Err(fs::TryLockError::Error(error)) => Err(OpenError::io("lock", file)(error)),
    }
}

/// Reads the identity file; `None` if there is none.
///
/// # Errors
/// [`OpenError`] if it cannot be read, is damaged, or is of another version.
pub fn read_identity(path: &Path) -> Result<Option<Identity>, OpenError> {
    let file = path.join(IDENTITY_FILE);
    let bytes = match fs::read(&file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(OpenError::io("read", &file))?,
    };
    let damaged = |what: String| OpenError::Identity { dir: text(path), file: IDENTITY_FILE, what };
    // The version first: another version may have other fields.
    let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    if value.get("format").and_then(|format| format.as_str()) != Some(FORMAT) {
        return Err(damaged("it does not describe a journal".into()));
    }
    let found = value.get("version").and_then(serde_json::Value::as_u64).unwrap_or(0) as u32;
    if found != VERSION {
        return Err(OpenError::OtherVersion { dir: text(path), found, expected: VERSION });
    }
    serde_json::from_value(value).map(Some).map_err(|error| damaged(error.to_string()))
}

fn create_identity(path: &Path, gateway: &str, shards: u16) -> Result<Identity, OpenError> {
    if path.join(super::depot::shard_dir(Path::new(""), 0)).exists() {
        let what = "it is missing, but segments are here".to_owned();
        return Err(OpenError::Identity { dir: text(path), file: IDENTITY_FILE, what });
    }
    let random = crate::keys::random().map_err(io::Error::other);
    let journal = Id128(random.map_err(OpenError::io("draw random bytes for", path))?);
    let identity = Identity::new(journal, gateway, shards);
    write_identity(path, &identity)?;
    Ok(identity)
}

/// Writes the identity file, whole or not at all: written beside, synced, renamed, and the name synced.
///
/// # Errors
/// [`OpenError::Io`].
pub fn write_identity(path: &Path, identity: &Identity) -> Result<(), OpenError> {
    let (file, beside) = (path.join(IDENTITY_FILE), path.join("journal.json.new"));
    let write = || -> io::Result<()> {
        let mut out = fs::File::create(&beside)?;
        out.write_all(&serde_json::to_vec_pretty(identity)?)?;
        out.write_all(b"\n")?;
        out.sync_all()?;
        fs::rename(&beside, &file)?;
        sync_dir(path)
    };
    write().map_err(OpenError::io("write", &file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_another_gateway_is_refused_by_name() {
        let dir = tempfile::tempdir().expect("scratch directory");
        let first = Directory::open(dir.path(), "gw-1", 2).expect("a new directory");
        let journal = first.identity.journal;
        drop(first);
        let again = Directory::open(dir.path(), "gw-1", 4).expect("the same gateway");
        assert_eq!((again.identity.journal, again.identity.shards), (journal, 2));
        drop(again);
        let error = Directory::open(dir.path(), "gw-2", 2).expect_err("another gateway");
        let text = error.to_string();
        assert!(
            text.contains("gw-1") && text.contains("gw-2") && text.contains(&*dir.path().to_string_lossy()),
            "{text}"
        );
    }

    #[test]
    fn a_directory_in_use_is_refused() {
        let dir = tempfile::tempdir().expect("scratch directory");
        let _first = Directory::open(dir.path(), "gw-1", 2).expect("a new directory");
        assert!(matches!(Directory::open(dir.path(), "gw-1", 2), Err(OpenError::Locked { .. })));
    }

    #[test]
    fn another_version_and_a_damaged_or_missing_identity_are_refused() {
        let dir = tempfile::tempdir().expect("scratch directory");
        let file = dir.path().join(IDENTITY_FILE);
        let open = || Directory::open(dir.path(), "gw-1", 2);
        fs::write(&file, br#"{"format":"tidegate-journal","version":9,"what":"else"}"#).expect("write");
        assert!(matches!(open(), Err(OpenError::OtherVersion { found: 9, .. })));
        fs::write(&file, b"{\"format\":\"tidegate-jour").expect("write");
        assert!(matches!(open(), Err(OpenError::Identity { .. })));
        fs::remove_file(&file).expect("remove");
        fs::create_dir(dir.path().join("shard-00")).expect("a shard");
        let error = open().expect_err("segments without an identity");
        assert!(error.to_string().contains("segments are here"), "{error}");
    }
}
