//! Why a keeper does not go on.

use crate::fault::{Classify, Fault};
use crate::keys::RandomError;
use crate::vault::VaultError;
use crate::vault::store::GetError;

/// Why a run, or a plan, ended before its end. Nothing that was done is undone, and the next run goes on.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The vault failed.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The configuration speaks of disks that are not there. With a slip in a name, its disk would have the policy of all others.
    #[error(
        "the vault has no disk {names}, for which the configuration has a policy: correct the name, or take the section out until \
         the disk is there; nothing is deleted until then"
    )]
    UnknownDisk {
        /// Their names.
        names: String,
    },
    /// The store's clock is not this machine's.
    #[error(
        "the store's clock is {apart_seconds} s {way} this machine's: one of them is wrong, and by a wrong one everything is old, so \
         nothing is deleted; look at the time service here and there"
    )]
    ClocksApart {
        /// By how much.
        apart_seconds: u64,
        /// In which direction.
        way: &'static str,
    },
}

impl From<GetError> for KeeperError {
    fn from(error: GetError) -> Self {
        Self::Vault(error.into())
    }
}

impl From<RandomError> for KeeperError {
    fn from(error: RandomError) -> Self {
        Self::Vault(error.into())
    }
}

impl Classify for KeeperError {
    fn fault(&self) -> Fault {
        match self {
            Self::Vault(error) => error.fault(),
            Self::UnknownDisk { .. } | Self::ClocksApart { .. } => Fault::Reject,
        }
    }
}
