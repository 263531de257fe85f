//! From the wire into the journal: what one disk stream brings.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::disks::StreamCount;
use super::runs::{Run, Session};
use crate::fault::chain_text;
use crate::journal::{AppendError, Entry, Journal};
use crate::types::{DiskId, Micros, RecordHead};
use crate::wire::{Code, DiskRefusal, RecordSink};

/// Hands the records of one stream to the journal.
pub struct JournalSink {
    /// The disk.
    pub disk: DiskId,
    /// Where they go.
    pub journal: Journal,
    /// The books of their epoch.
    pub run: Arc<Run>,
    /// Whether another stream took over.
    pub session: Session,
    /// Counts the stream for as long as it is open.
    pub _count: StreamCount,
}

impl RecordSink for JournalSink {
    async fn record(
        &mut self,
        head: RecordHead,
        body_crc: u32,
        chunks: Vec<Bytes>,
        received: Micros,
    ) -> Result<(), DiskRefusal> {
        if self.session.superseded.load(Ordering::Acquire) {
            return Err(DiskRefusal::refused(Code::InUse, "another stream took over this disk"));
        }
        if self.run.is_broken() {
            let text = format!("records of epoch {} were damaged in this gateway's journal", self.run.epoch);
            return Err(DiskRefusal::MustFork { text });
        }
        let journaled = &self.run.journaled;
        let entry = Entry { disk: &self.disk, head: &head, body_crc, received, chunks: &chunks, journaled };
        self.journal.append(entry).await.map_err(|error| journal_refusal(&error))?;
        self.run.appended(head.seq, head.chain);
        Ok(())
    }
}

fn journal_refusal(error: &AppendError) -> DiskRefusal {
    DiskRefusal::refused(Code::Unavailable, format!("the journal takes no records: {}", chain_text(error)))
}
