//! What can fail in the journal, one struct or variant per failure.

use std::io;
use std::path::PathBuf;

use super::model::Damage;
use crate::fault::{Classify, Fault};
use crate::types::{DiskId, PointId};

/// Why a journal could not be opened. Each names the directory or file and the next step.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory belongs to another gateway.
    #[error(
        "journal {dir} belongs to gateway {found:?}, this is {expected:?}: \
         give this gateway a directory of its own, or start the other one to let it drain"
    )]
    OtherGateway {
        /// The directory.
        dir: String,
        /// Gateway named in it.
        found: String,
        /// This gateway.
        expected: String,
    },
    /// The directory was written by another format version.
    #[error(
        "journal {dir} has format version {found}, this binary knows version {expected}: \
         drain it with the binary that wrote it, or use an empty directory"
    )]
    OtherVersion {
        /// The directory.
        dir: String,
        /// Version found.
        found: u32,
        /// Version known.
        expected: u32,
    },
    /// Another process has it open.
    #[error("journal {dir} is in use by another process: stop that gateway, or use another directory")]
    Locked {
        /// The directory.
        dir: String,
    },
    /// The identity file is not readable as such.
    #[error("journal {dir}: {file} is damaged ({what}): restore it from a copy, or move the directory away")]
    Identity {
        /// The directory.
        dir: String,
        /// The file's name.
        file: &'static str,
        /// What is wrong.
        what: String,
    },
    /// The number of shards was changed while records are waiting.
    #[error(
        "journal {dir} holds records in {found} shards and the configuration says {expected}: \
         start with shards = {found} until it is drained, then change the number"
    )]
    ShardCount {
        /// The directory.
        dir: String,
        /// Shards on disk.
        found: u16,
        /// Shards configured.
        expected: u16,
    },
    /// A value of the configuration cannot work.
    #[error("journal configuration: {what}")]
    Config {
        /// What is wrong and what would be right.
        what: String,
    },
    /// The backend that the configuration demands is not to be had.
    #[error(
        "journal {dir}: backend \"ring\" is demanded, but {why}: \
         allow io_uring (container seccomp profile, kernel.io_uring_disabled) or set backend = \"auto\""
    )]
    NoRing {
        /// The directory.
        dir: String,
        /// Why not.
        why: String,
    },
    /// The operating system refused.
    #[error("journal: cannot {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file or directory.
        path: PathBuf,
        /// The refusal.
        #[source]
        source: io::Error,
    },
}

impl Classify for OpenError {
    fn fault(&self) -> Fault {
        match self {
            Self::Identity { .. } => Fault::Corrupt,
            Self::Io { .. } => Fault::Fatal,
            _ => Fault::Reject,
        }
    }
}

impl OpenError {
    pub(super) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }
}

/// Why a record was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The journal is being closed.
    #[error("the journal is closed")]
    Closed,
    /// The journal's shard has failed and can take nothing more.
    #[error("the journal has failed: {what}")]
    Failed {
        /// The first failure.
        what: String,
    },
    /// The record is larger than a commit, or its pieces do not add up to what its head says.
    #[error("record {point} of disk {disk} has {found_bytes} bytes, expected {expected_bytes}")]
    Length {
        /// Its disk.
        disk: DiskId,
        /// Which one.
        point: PointId,
        /// Bytes given.
        found_bytes: usize,
        /// Bytes that the head says, or the most that is taken.
        expected_bytes: usize,
    },
}

impl Classify for AppendError {
    fn fault(&self) -> Fault {
        match self {
            Self::Closed => Fault::Retry,
            Self::Failed { .. } => Fault::Fatal,
            Self::Length { .. } => Fault::Reject,
        }
    }
}

/// What a reader met. After every variant but `Closed` and `Io` the next call goes on behind the damage.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Stored bytes are not what was written; they are skipped.
    #[error("journal: {0}")]
    Damaged(Damage),
    /// The journal is closed and everything journaled was read.
    #[error("the journal is closed")]
    Closed,
    /// The operating system refused; the next call tries the same place again.
    #[error("journal: cannot read {path}")]
    Io {
        /// The segment file.
        path: PathBuf,
        /// The refusal.
        #[source]
        source: io::Error,
    },
}

impl Classify for ReadError {
    fn fault(&self) -> Fault {
        match self {
            Self::Damaged(_) => Fault::Corrupt,
            Self::Closed => Fault::Reject,
            Self::Io { .. } => Fault::Retry,
        }
    }
}
