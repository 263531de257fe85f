//! Brings what a journal still holds into a directory that a gateway can open: from a failing disk, from the disk of a
//! machine that is gone, or after the identity file was lost.
//!
//! Segments that hold something are copied as they are; sectors that cannot be read become zeroes, which replay sees as
//! damage and steps over. Nothing is interpreted: what the copy holds, what it misses and what is known to be vaulted is
//! decided by the replay of the gateway that opens it, by the same rules as ever. The identity is written last and names
//! the gateway that shall send the records; a copy that was interrupted has none, and no gateway opens it.
//!
//! Sending a record twice harms nobody: it is the same byte for byte, and readers take both as one.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::depot::{segment_name, shard_dir};
use super::directory::{self, Identity};
use super::disk::std::sync_dir;
use super::error::OpenError;
use super::inspect::{Look, OnRead, SegmentState, hold, look};
use crate::fault::{Classify, Fault};
use crate::limits::BLOCK_BYTES;
use crate::types::check_name;

/// Bytes that are copied at once.
const PIECE_BYTES: usize = 1 << 20;

/// What a salvage did.
#[derive(Debug, Clone)]
pub struct Salvaged {
    /// The old journal as it was found.
    pub from: Look,
    /// The copy, read back.
    pub to: Look,
    /// Segments copied.
    pub segments: u64,
    /// Bytes copied.
    pub bytes: u64,
    /// Bytes that could not be read and stand as zeroes in the copy.
    pub unreadable_bytes: u64,
}

/// Why nothing was salvaged, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum SalvageError {
    /// The journal cannot be read at all.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The target holds something.
    #[error("{} is there already and not empty: name a new directory for --to", to.display())]
    NotEmpty {
        /// The target.
        to: PathBuf,
    },
    /// Nobody knows whose the journal is.
    #[error("journal {} does not say whose it is ({what}): name the gateway that shall send it with --gateway ID", dir.display())]
    NoGateway {
        /// The old journal.
        dir: PathBuf,
        /// What is wrong with its identity.
        what: String,
    },
    /// The gateway's id cannot be one.
    #[error("--gateway {gateway}: {what}")]
    Gateway {
        /// As given.
        gateway: String,
        /// What is wrong with it.
        what: String,
    },
    /// Nothing here needs to be sent.
    #[error("journal {} holds no record that is not vaulted: there is nothing to salvage", dir.display())]
    Nothing {
        /// The old journal.
        dir: PathBuf,
    },
    /// The copy could not be written.
    #[error("cannot write {}; remove {} and try again where there is room", path.display(), to.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The target.
        to: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Classify for SalvageError {
    fn fault(&self) -> Fault {
        match self {
            Self::Open(error) => error.fault(),
            Self::NotEmpty { .. } | Self::NoGateway { .. } | Self::Gateway { .. } | Self::Nothing { .. } => {
                Fault::Reject
            }
            Self::Write { .. } => Fault::Fatal,
        }
    }
}

/// Copies what the journal in `dir` holds to the new directory `to`, for `gateway` (its old one if not given). Blocks.
///
/// # Errors
/// [`SalvageError`]; a copy that was begun stays and is no journal.
pub fn salvage(dir: &Path, to: &Path, gateway: Option<&str>, on_read: &OnRead) -> Result<Salvaged, SalvageError> {
    let _held = hold(dir)?;
    let empty = fs::read_dir(to)
        .map_or_else(|error| error.kind() == io::ErrorKind::NotFound, |mut names| names.next().is_none());
    if !empty {
        return Err(SalvageError::NotEmpty { to: to.to_owned() });
    }
    let from = look(dir, OnRead::clone(on_read))?;
    let gateway = match (gateway, &from.whose.gateway) {
        (Some(gateway), _) => gateway.to_owned(),
        (None, Some(gateway)) => gateway.clone(),
        (None, None) => {
            let what = from.whose.identity_damage.clone().unwrap_or_default();
            return Err(SalvageError::NoGateway { dir: dir.to_owned(), what });
        }
    };
    if let Err(error) = check_name(&gateway) {
        return Err(SalvageError::Gateway { gateway, what: error.to_string() });
    }
    if from.records() == 0 {
        return Err(SalvageError::Nothing { dir: dir.to_owned() });
    }
    let wrote = |path: &Path| {
        let (path, to) = (path.to_owned(), to.to_owned());
        move |source| SalvageError::Write { path, to, source }
    };
    for shard in 0..from.whose.shards {
        let dir = shard_dir(to, shard);
        fs::create_dir_all(&dir).map_err(wrote(&dir))?;
    }
    let (mut segments, mut bytes, mut unreadable_bytes) = (0, 0, 0);
    // Those with nothing but vaulted records too: they may hold the marks that say so.
    for segment in from.segments.iter().filter(|segment| segment.state != SegmentState::Free) {
        let target = shard_dir(to, segment.shard).join(segment_name(segment.segment));
        unreadable_bytes += copy(&segment.file, &target, segment.file_bytes, on_read)?.map_err(wrote(&target))?;
        segments += 1;
        bytes += segment.file_bytes;
    }
    for shard in 0..from.whose.shards {
        let dir = shard_dir(to, shard);
        sync_dir(&dir).map_err(wrote(&dir))?;
    }
    directory::write_identity(to, &Identity::new(from.whose.journal, &gateway, from.whose.shards))?;
    let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    sync_dir(parent).map_err(wrote(parent))?;
    let copied = look(to, OnRead::clone(on_read))?;
    Ok(Salvaged { from, to: copied, segments, bytes, unreadable_bytes })
}

/// Copies a segment and syncs it; returns how many bytes could not be read.
fn copy(from: &Path, to: &Path, bytes: u64, on_read: &OnRead) -> Result<io::Result<u64>, OpenError> {
    let source = fs::File::open(from).map_err(OpenError::io("open", from))?;
    let write = |piece: &[u8], at: u64, target: &fs::File| target.write_all_at(piece, at);
    let mut piece = vec![0; PIECE_BYTES];
    let (mut at, mut unreadable) = (0, 0);
    let target = match fs::File::create_new(to) {
        Ok(target) => target,
        Err(error) => return Ok(Err(error)),
    };
    while at < bytes {
        let length = (bytes - at).min(PIECE_BYTES as u64) as usize;
        unreadable += read_around(&source, &mut piece[..length], at);
        on_read(length as u64);
        if let Err(error) = write(&piece[..length], at, &target) {
            return Ok(Err(error));
        }
        at += length as u64;
    }
    Ok(target.sync_all().map(|()| unreadable))
}

/// Reads a piece; what cannot be read is zero. Returns how much that is.
fn read_around(source: &fs::File, piece: &mut [u8], at: u64) -> u64 {
    if source.read_exact_at(piece, at).is_ok() {
        return 0;
    }
    let mut unreadable = 0;
    for (index, block) in piece.chunks_mut(BLOCK_BYTES).enumerate() {
        if source.read_exact_at(block, at + (index * BLOCK_BYTES) as u64).is_err() {
            block.fill(0);
            unreadable += block.len() as u64;
        }
    }
    unreadable
}
