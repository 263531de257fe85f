//! Why a disk cannot be protected.

use std::path::PathBuf;

use super::{MapError, StateError};
use crate::fault::{Classify, Fault};
use crate::types::DiskId;

/// Why a disk cannot be protected. The others go on.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Its state or the state directory is not usable.
    #[error(transparent)]
    State(#[from] StateError),
    /// Its activity map cannot be made.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The image or device has another size than before.
    #[error(
        "disk {disk} has {found} bytes, but {known} when it was first protected: disks keep their size; \
         give it a new id in the configuration to protect it as a new disk, or undo the change of {}", path.display()
    )]
    Size {
        /// The disk.
        disk: DiskId,
        /// Its path.
        path: PathBuf,
        /// Remembered size in bytes.
        known: u64,
        /// Present size in bytes.
        found: u64,
    },
}

impl Classify for DiskError {
    fn fault(&self) -> Fault {
        match self {
            Self::State(error) => error.fault(),
            Self::Map(error) => error.fault(),
            Self::Size { .. } => Fault::Reject,
        }
    }
}
