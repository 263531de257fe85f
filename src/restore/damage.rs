//! A finding of damage as a value: which object, which disk, which records, which bytes, and what is wrong.

use std::fmt;
use std::ops::Range;

use serde::ser::{Serialize, SerializeStruct, Serializer};

use crate::types::{DiskId, Epoch, Micros, Seq};
use crate::vault::index::MessageMeta;

/// Records of one disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecordRange {
    /// The disk.
    pub disk: DiskId,
    /// The epoch.
    pub epoch: Epoch,
    /// First record.
    pub first: Seq,
    /// Last record.
    pub last: Seq,
    /// Labels of the first and the last record, or of the records beside a gap, as far as known.
    pub labels: [Option<Micros>; 2],
}

impl RecordRange {
    /// The records of a message.
    #[must_use]
    pub fn of(disk: &DiskId, message: &MessageMeta) -> Self {
        let labels = [message.records.first(), message.records.last()].map(|record| record.map(|record| record.label));
        Self { disk: disk.clone(), epoch: message.epoch, first: message.first, last: message.last, labels }
    }
}

impl fmt::Display for RecordRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { disk, epoch, first, last, labels } = self;
        write!(f, "disk {disk}, records e{epoch}-s{first} to e{epoch}-s{last}")?;
        match labels {
            [Some(from), Some(to)] => write!(f, " ({from} to {to})"),
            [Some(from), None] => write!(f, " (from {from})"),
            [None, Some(to)] => write!(f, " (to {to})"),
            [None, None] => Ok(()),
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    /// The object, by its name within the vault; none if no single object is at fault.
    pub object: Option<String>,
    /// Bytes of the object.
    pub bytes: Option<Range<u64>>,
    /// What cannot be had because of it, as far as known.
    pub records: Option<RecordRange>,
    /// What is wrong.
    pub what: String,
}

impl Damage {
    /// Something wrong with a whole object.
    #[must_use]
    pub fn object(object: impl Into<String>, what: impl Into<String>) -> Self {
        Self { object: Some(object.into()), bytes: None, records: None, what: what.into() }
    }

    /// Something wrong with one message of an object.
    #[must_use]
    pub fn message(object: &str, disk: &DiskId, message: &MessageMeta, what: impl Into<String>) -> Self {
        let end_bytes = message.offset_bytes + u64::from(message.stored_bytes);
        Self {
            object: Some(object.to_owned()),
            bytes: Some(message.offset_bytes..end_bytes),
            records: Some(RecordRange::of(disk, message)),
            what: what.into(),
        }
    }

    /// Whether it is a disk's own: what it says is of its records, or of an object that is about it alone.
    #[must_use]
    pub fn is_of(&self, disk: &DiskId) -> bool {
        match (&self.records, &self.object) {
            (Some(records), _) => records.disk == *disk,
            (None, Some(object)) => {
                let mut parts = object.split('/');
                (parts.next(), parts.next()) == (Some("d"), Some(disk.as_str()))
            }
            (None, None) => false,
        }
    }

    /// Something wrong with records that no single object stands for.
    #[must_use]
    pub fn records(records: RecordRange, what: impl Into<String>) -> Self {
        Self { object: None, bytes: None, records: Some(records), what: what.into() }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(object) = &self.object {
            write!(f, "{object}")?;
            if let Some(bytes) = &self.bytes {
                write!(f, " bytes {} to {}", bytes.start, bytes.end)?;
            }
            f.write_str(": ")?;
        }
        if let Some(records) = &self.records {
            write!(f, "{records}: ")?;
        }
        f.write_str(&self.what)
    }
}

impl Serialize for Damage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_struct("Damage", 10)?;
        out.serialize_field("object", &self.object)?;
        out.serialize_field("first_byte", &self.bytes.as_ref().map(|bytes| bytes.start))?;
        out.serialize_field("end_byte", &self.bytes.as_ref().map(|bytes| bytes.end))?;
        let records = self.records.as_ref();
        out.serialize_field("disk", &records.map(|records| &records.disk))?;
        out.serialize_field("epoch", &records.map(|records| records.epoch))?;
        out.serialize_field("first_seq", &records.map(|records| records.first))?;
        out.serialize_field("last_seq", &records.map(|records| records.last))?;
        let label = |at: usize| records.and_then(|records| records.labels[at]).map(|label| label.to_string());
        out.serialize_field("first_time", &label(0))?;
        out.serialize_field("last_time", &label(1))?;
        out.serialize_field("what", &self.what)?;
        out.end()
    }
}
