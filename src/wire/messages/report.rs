//! How a disk stands with its agent, as the agent tells the gateway.
//!
//! Only the agent knows how far the newest recovery point is behind the guest: its dirty map may hold what no gateway has
//! seen. Told now and then, so that whoever asks any gateway sees every disk of it.

use bytes::{BufMut, BytesMut};

use super::{Fields, MessageError, put_text};
use crate::limits;
use crate::types::DiskId;

/// What a disk's replication does at present.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Condition {
    /// Every write goes out as it comes.
    Protected = 1,
    /// A copy of what is missing runs, the first one or a resync: no new point before it is over.
    Copying = 2,
    /// More came than memory holds: changes are only marked, and copied later.
    Overflowed = 3,
    /// No gateway takes the disk.
    Waiting = 4,
    /// Another agent carries the disk.
    Fenced = 5,
}

impl Condition {
    /// Every condition.
    pub const ALL: [Self; 5] = [Self::Protected, Self::Copying, Self::Overflowed, Self::Waiting, Self::Fenced];

    /// The word used in output.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Protected => "protected",
            Self::Copying => "copying",
            Self::Overflowed => "overflowed",
            Self::Waiting => "waiting",
            Self::Fenced => "fenced",
        }
    }
}

/// How one disk stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The disk.
    pub disk: DiskId,
    /// What its replication does.
    pub condition: Condition,
    /// Age of the oldest write that no recovery point in the vault has, in microseconds; 0 if there is none.
    pub rpo_micros: u64,
    /// Bytes still to be copied.
    pub dirty_bytes: u64,
    /// Bytes sent and not vaulted, in whole chunks.
    pub unvaulted_bytes: u64,
}

pub(super) fn put(out: &mut BytesMut, report: &Report) {
    put_text(out, report.disk.as_str());
    out.put_u8(report.condition as u8);
    out.put_u64_le(report.rpo_micros);
    out.put_u64_le(report.dirty_bytes);
    out.put_u64_le(report.unvaulted_bytes);
}

pub(super) fn take(fields: &mut Fields<'_>) -> Result<Report, MessageError> {
    let name = fields.text("disk", limits::NAME_BYTES_MAX)?;
    let disk = DiskId::new(&name).map_err(|_| fields.out_of_range("disk"))?;
    let number = fields.u8("condition")?;
    let condition = Condition::ALL.into_iter().find(|condition| *condition as u8 == number);
    Ok(Report {
        disk,
        condition: condition.ok_or_else(|| fields.out_of_range("condition"))?,
        rpo_micros: fields.u64("age")?,
        dirty_bytes: fields.u64("dirty bytes")?,
        unvaulted_bytes: fields.u64("unvaulted bytes")?,
    })
}
