//! What the agent remembers of a disk: identity, epoch, floor, and whether it was left cleanly.
//!
//! One file per disk, `<state_dir>/<disk>.state`: one line of JSON, one line with its CRC-32C, replaced as a whole
//! (write, fsync, rename, fsync of the folder). A file that is damaged counts as lost: the disk is then compared from end
//! to end, which costs time and nothing else. The folder is locked, because two agents with one state would both number
//! records of the same epoch.

use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::dirty::Floor;
use crate::fault::{Classify, Fault};
use crate::flow::platter;
use crate::signed::Head;
use crate::types::{Chain, DiskId, Epoch, Id128, Micros, PointId, Seq};
use crate::wire::frame::crc32c;

/// How far the label in the file lies ahead of the clock while the agent runs. Twice the time between two settlings,
/// so that an agent that is not idle writes nothing for the labels alone. After a crash the first labels may be so
/// much too late, never too early.
pub const LABEL_AHEAD: Duration = Duration::from_secs(10);

/// The label to keep for the start after a crash, which knows nothing of the labels given since: if a clock went back
/// meanwhile, the machine's or that of the next gateway, the next epoch would begin before the end of the last one.
/// `newest` was given, `kept` is in the file, and the clock says `now`.
#[must_use]
pub fn kept_label(newest: Micros, kept: Micros, now: Micros) -> Micros {
    let ahead = LABEL_AHEAD.as_micros() as u64;
    // Not ahead of the file: an agent that is started over and over would move away from the clock.
    if newest.0 + ahead / 2 <= kept.0 { kept } else { newest.max(Micros(now.0 + ahead)) }
}

/// Version of the file that this code writes.
pub const STATE_VERSION: u32 = 1;

/// The remembered state of one disk.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DiskState {
    /// Version of the format.
    pub version: u32,
    /// The disk.
    pub disk: DiskId,
    /// Its size when it was first protected.
    pub size_bytes: u64,
    /// The present epoch, if one was ever opened.
    pub epoch: Option<Epoch>,
    /// Highest seq of that epoch known to be vaulted.
    pub floor_seq: Seq,
    /// Chain after it; after the fork if the seq is zero.
    pub floor_chain: Chain,
    /// No later label was given: labels do not go back over a restart. The newest one itself after a clean stop, else one
    /// from [`kept_label`].
    pub label: Micros,
    /// Whether the image in the vault was whole when this was written: no sync span open, nothing left to copy.
    pub synced: bool,
    /// Whether the agent stopped with everything vaulted. Set last when it stops, reset first when it starts.
    pub clean: bool,
    /// Random id of this state's epoch: tells a clone from its original.
    pub nonce: Id128,
    /// When the image file was modified last, in nanoseconds since 1970, at a clean stop. A later change was made behind
    /// the agent's back. None for a block device, which does not tell.
    pub modified_nanos: Option<u64>,
    /// Another epoch took over: this agent must not go on until an operator says so.
    pub fenced: Option<Epoch>,
}

impl DiskState {
    /// The state of a disk that was never protected, or whose state is lost.
    #[must_use]
    pub const fn new(disk: DiskId, size_bytes: u64) -> Self {
        Self {
            version: STATE_VERSION,
            disk,
            size_bytes,
            epoch: None,
            floor_seq: Seq::NONE,
            floor_chain: Chain::GENESIS,
            label: Micros(0),
            synced: false,
            clean: false,
            nonce: Id128::NONE,
            modified_nanos: None,
            fenced: None,
        }
    }

    /// Epoch and floor, if an epoch was ever opened.
    #[must_use]
    pub fn floor(&self) -> Option<(Epoch, Floor)> {
        Some((self.epoch?, Floor { seq: self.floor_seq, chain: self.floor_chain }))
    }

    /// The newest record known to be vaulted; none if nothing of the epoch is, because the chain is then only what a gateway said.
    #[must_use]
    pub fn head(&self) -> Option<Head> {
        let (epoch, floor) = self.floor()?;
        let at = PointId { epoch, seq: floor.seq };
        (floor.seq > Seq::NONE).then_some(Head { at, chain: floor.chain })
    }
}

/// Why a state file was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It is not there: a new disk, or the state was lost.
    #[error("no state at {}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be read or written.
    #[error("state {} cannot be used", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Its bytes are not what was written.
    #[error("state {} is damaged: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Written by a newer version of this software.
    #[error("state {} has version {found}, this agent knows up to {STATE_VERSION}: start the newer agent again", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
    /// The state directory is another agent's at present.
    #[error("state directory {} is in use by another agent: stop it, or give each agent its own state_dir", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
}

impl Classify for StateError {
    fn fault(&self) -> Fault {
        match self {
            Self::Missing { .. } | Self::Version { .. } | Self::InUse { .. } => Fault::Reject,
            Self::Io { .. } => Fault::Fatal,
            Self::Damaged { .. } => Fault::Corrupt,
        }
    }
}

/// Replaces `path` by a file with these bytes so that after any crash it is the old or the new one, whole.
///
/// # Errors
/// Whatever the system said; the old file is then still there.
pub fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = folder.join(name);
    let mut file = File::create(&new)?;
    file.write_all(bytes)?;
    platter::sync_all(&file, &new)?;
    std::fs::rename(&new, path)?;
    platter::sync_folder(folder)
}

/// The state directory of one agent, locked while this value lives.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Creates the directory if needed and locks it.
    ///
    /// # Errors
    /// [`StateError::InUse`] if another agent runs on it, [`StateError::Io`] otherwise.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let io_error = |source| StateError::Io { path: path.to_owned(), source };
        std::fs::create_dir_all(path).map_err(io_error)?;
        let lock =
            File::options().create(true).truncate(false).write(true).open(path.join("lock")).map_err(io_error)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(StateError::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => Err(io_error(source)),
        }
    }

    /// The activity map's file of a disk.
    #[must_use]
    pub fn map_path(&self, disk: &DiskId) -> PathBuf {
        self.path.join(format!("{disk}.map"))
    }

    /// The state file of a disk.
    #[must_use]
    pub fn state_path(&self, disk: &DiskId) -> PathBuf {
        self.path.join(format!("{disk}.state"))
    }

    /// Reads a disk's state.
    ///
    /// # Errors
    /// [`StateError`]; `Missing` and `Damaged` mean that everything must be compared anew.
    pub fn load(&self, disk: &DiskId) -> Result<DiskState, StateError> {
        read(&self.path, disk)
    }

    /// Writes a disk's state durably.
    ///
    /// # Errors
    /// [`StateError::Io`]; the older state is then still there.
    pub fn store(&self, state: &DiskState) -> Result<(), StateError> {
        let path = self.state_path(&state.disk);
        replace_file(&path, &encode(state)).map_err(|source| StateError::Io { path, source })
    }
}

/// Reads a disk's state in a directory that may be another process's.
///
/// # Errors
/// As [`StateDir::load`].
pub fn read(dir: &Path, disk: &DiskId) -> Result<DiskState, StateError> {
    let path = dir.join(format!("{disk}.state"));
    match std::fs::read(&path) {
        Ok(bytes) => decode(&bytes, disk, &path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(StateError::Missing { path }),
        Err(source) => Err(StateError::Io { path, source }),
    }
}

pub(crate) fn encode(state: &DiskState) -> Vec<u8> {
    // A struct of plain fields always serialises; an empty line would be refused as damaged on reading.
    let json = serde_json::to_string(state).unwrap_or_default();
    format!("{json}\n{:08x}\n", crc32c([json.as_bytes()])).into_bytes()
}

pub(crate) fn decode(bytes: &[u8], disk: &DiskId, path: &Path) -> Result<DiskState, StateError> {
    let damaged = |what: &str| StateError::Damaged { path: path.to_owned(), what: what.to_owned() };
    let text = std::str::from_utf8(bytes).map_err(|_| damaged("not text"))?;
    let mut lines = text.split_terminator('\n');
    let (Some(json), Some(crc), None) = (lines.next(), lines.next(), lines.next()) else {
        return Err(damaged("expected two lines"));
    };
    if crc != format!("{:08x}", crc32c([json.as_bytes()])) {
        return Err(damaged("checksum mismatch"));
    }
    let value: serde_json::Value = serde_json::from_str(json).map_err(|error| damaged(&error.to_string()))?;
    let found = value.get("version").and_then(serde_json::Value::as_u64).unwrap_or(0);
    if found > u64::from(STATE_VERSION) {
        return Err(StateError::Version { path: path.to_owned(), found });
    }
    let state: DiskState = serde_json::from_value(value).map_err(|error| damaged(&error.to_string()))?;
    if state.disk != *disk {
        return Err(damaged("it is another disk's"));
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> DiskState {
        let mut state = DiskState::new(DiskId::new("web-1.sda").expect("name"), 1 << 30);
        state.epoch = Some(Epoch(3));
        state.floor_seq = Seq(4711);
        state.floor_chain = Chain([0xab; 32]);
        state.label = Micros(1_800_000_000_000_000);
        state.synced = true;
        state.nonce = Id128([7; 16]);
        state.modified_nanos = Some(1_800_000_000_123_456_789);
        state
    }

    #[test]
    fn the_kept_label_stays_ahead_and_does_not_run_away() {
        let second = |at: u64| Micros(1_800_000_000_000_000 + at * 1_000_000);
        assert_eq!(kept_label(second(0), Micros(0), second(0)), second(10));
        assert_eq!(kept_label(second(4), second(10), second(4)), second(10), "still ahead enough");
        assert_eq!(kept_label(second(6), second(10), second(6)), second(16));
        assert_eq!(kept_label(second(60), second(10), second(60)), second(70), "idle for a while");
        let mut kept = second(10);
        for started in 0..8 {
            // The first label of each start is the one that was kept.
            kept = kept_label(kept, kept, second(started));
        }
        assert_eq!(kept, second(17), "ten seconds ahead of the clock, however often it is started");
        assert_eq!(kept_label(second(17), second(17), second(0)), second(17), "the clock went back");
    }

    #[test]
    fn a_state_is_read_back_as_it_was_written() {
        let folder = tempfile::tempdir().expect("folder");
        let dir = StateDir::open(folder.path()).expect("open");
        let state = sample();
        assert!(matches!(dir.load(&state.disk), Err(StateError::Missing { .. })));
        dir.store(&state).expect("store");
        assert_eq!(dir.load(&state.disk).expect("load"), state);
    }

    #[test]
    fn the_fixture_of_version_1_is_still_read() {
        let bytes = include_bytes!("../../tests/fixtures/agent/v1.state");
        let state = decode(bytes, &sample().disk, Path::new("v1.state")).expect("version 1");
        assert_eq!(state, sample());
        assert_eq!(encode(&sample()), bytes, "a changed encoding needs a new version");
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let state = sample();
        let good = encode(&state);
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bytes, &state.disk, Path::new("x")).is_err(), "bit {bit}");
        }
        assert!(decode(&good[..good.len() - 3], &state.disk, Path::new("x")).is_err());
    }

    #[test]
    fn a_newer_version_is_refused_by_name() {
        let mut state = sample();
        state.version = 2;
        let error = decode(&encode(&state), &state.disk, Path::new("x")).expect_err("newer");
        assert!(matches!(error, StateError::Version { found: 2, .. }), "{error}");
    }

    #[test]
    fn two_agents_cannot_share_a_state_directory() {
        let folder = tempfile::tempdir().expect("folder");
        let first = StateDir::open(folder.path()).expect("first");
        assert!(matches!(StateDir::open(folder.path()), Err(StateError::InUse { .. })));
        drop(first);
        StateDir::open(folder.path()).expect("free again");
    }
}
