//! What agents were told to be vaulted, as a file that an operator keeps apart from the vault: the only proof against a history that
//! was cut off behind its last signature.
//!
//! ```text
//! {"format":"tidegate-heads","version":1,"vault":"…","agent":"a1","made_micros":…,"heads":[{"disk":"d1","epoch":1,"seq":9,"chain":"…"}]}
//! ```
//!
//! One line of JSON, as `tidegate agent --heads` prints it. It is as good as the way that it came by: nothing in it is signed.

use serde::{Deserialize, Serialize};

use super::Head;
use crate::fault::{Classify, Fault};
use crate::types::{Chain, DiskId, Epoch, Id128, Micros, PointId, Seq};

/// Name of the format.
const FORMAT: &str = "tidegate-heads";
/// Version that this build writes, and the newest that it reads.
const VERSION: u32 = 1;
/// Most bytes read of a file: 256 disks take 50 KiB.
pub const HEADS_BYTES_MAX: u64 = 1 << 20;

/// The heads of one agent's disks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Heads {
    format: String,
    version: u32,
    /// The vault.
    pub vault: Id128,
    /// The agent that was told.
    pub agent: String,
    /// When it was asked, by its clock.
    pub made_micros: Micros,
    /// Of each disk the newest.
    pub heads: Vec<DiskHead>,
}

/// The head of one disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DiskHead {
    /// The disk.
    pub disk: DiskId,
    /// Epoch of the newest record that the agent was told to be vaulted.
    pub epoch: Epoch,
    /// Its number.
    pub seq: Seq,
    /// The chain after it.
    pub chain: Chain,
}

/// Why a file holds no heads.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeadsError {
    /// It is something else.
    #[error("it holds no heads: {0}; make it with `tidegate agent --heads`")]
    Form(String),
    /// A newer release wrote it.
    #[error("it has version {0} of tidegate-heads; this build reads up to {VERSION}: use a newer tidegate")]
    Version(u32),
    /// They are of another vault.
    #[error("it is of vault {found}, and this is vault {wanted}")]
    Vault {
        /// Whose heads they are.
        found: Id128,
        /// The vault at hand.
        wanted: Id128,
    },
}

impl Classify for HeadsError {
    fn fault(&self) -> Fault {
        Fault::Reject
    }
}

impl Heads {
    /// The heads of an agent of `vault`.
    #[must_use]
    pub fn new(vault: Id128, agent: String, made_micros: Micros, heads: Vec<DiskHead>) -> Self {
        Self { format: FORMAT.to_owned(), version: VERSION, vault, agent, made_micros, heads }
    }

    /// The file's one line, with its end.
    #[must_use]
    pub fn text(&self) -> String {
        // Plain fields always serialise; an empty line would be refused on reading.
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }

    /// Reads a file's text.
    ///
    /// # Errors
    /// [`HeadsError`].
    pub fn parse(text: &str) -> Result<Self, HeadsError> {
        #[derive(Deserialize)]
        struct Preamble {
            format: String,
            version: u32,
        }
        let form = |error: serde_json::Error| HeadsError::Form(error.to_string());
        let Preamble { format, version } = serde_json::from_str(text).map_err(form)?;
        if format != FORMAT {
            return Err(HeadsError::Form(format!("its format is {:?}", format.chars().take(80).collect::<String>())));
        }
        if version == 0 || version > VERSION {
            return Err(HeadsError::Version(version));
        }
        let heads: Self = serde_json::from_str(text).map_err(form)?;
        match heads.heads.iter().find(|head| head.epoch.0 == 0) {
            Some(head) => Err(HeadsError::Form(format!("disk {} has epoch 0", head.disk))),
            None => Ok(heads),
        }
    }

    /// Refuses heads of another vault.
    ///
    /// # Errors
    /// [`HeadsError::Vault`].
    pub fn of_vault(self, wanted: Id128) -> Result<Self, HeadsError> {
        if self.vault == wanted { Ok(self) } else { Err(HeadsError::Vault { found: self.vault, wanted }) }
    }
}

impl DiskHead {
    /// The head of a disk.
    #[must_use]
    pub fn new(disk: DiskId, head: Head) -> Self {
        Self { disk, epoch: head.at.epoch, seq: head.at.seq, chain: head.chain }
    }

    /// Where it is.
    #[must_use]
    pub const fn at(&self) -> PointId {
        PointId { epoch: self.epoch, seq: self.seq }
    }
}
