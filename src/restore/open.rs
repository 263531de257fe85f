//! Opening one message and believing nothing: the seal, each record's digest, the chain from record to record, and that
//! the records are what the index said when the plan was made.

use crate::fault;
use crate::keys::MessageKey;
use crate::mutants::{self, Mutant};
use crate::pipeline::message::{self, MessageContext, OpenError};
use crate::types::{Chain, DiskId, Id128, RecordError, RecordView, Seq};
use crate::vault::index::{MessageMeta, RecordMeta};

/// Where a message was sealed and with what it opens.
#[derive(Clone, Copy, Debug)]
pub struct MessagePlace<'a> {
    /// The vault.
    pub vault: Id128,
    /// Name of the batch object.
    pub object: &'a str,
    /// What opens it.
    pub key: &'a MessageKey,
    /// The disk.
    pub disk: &'a DiskId,
    /// Size of the disk, which no extent may leave.
    pub disk_bytes: u64,
}

/// Why a message is not believed.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// It does not open.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It holds no whole records.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A record is not the one that the index names.
    #[error("the record in place of seq {seq} is not what the index says")]
    Row {
        /// The seq that belongs there.
        seq: Seq,
    },
    /// A record does not continue the history before it.
    #[error("the chain breaks at seq {seq}")]
    Chain {
        /// The record.
        seq: Seq,
    },
    /// Records are missing or left over.
    #[error("it holds {found} records, the index says {stated}")]
    Count {
        /// Records found.
        found: usize,
        /// Records that the index names.
        stated: usize,
    },
}

/// The buffers of one worker, used again for every message.
#[derive(Debug, Default)]
pub struct Scratch {
    sealed: Vec<u8>,
    plain: Vec<u8>,
    payloads: Vec<usize>,
}

/// A message that was opened and checked.
#[derive(Clone, Copy, Debug)]
pub struct Opened<'a> {
    meta: &'a MessageMeta,
    plain: &'a [u8],
    payloads: &'a [usize],
}

impl Scratch {
    /// Opens `sealed` and checks everything in it against `meta`.
    ///
    /// # Errors
    /// [`MessageError`] names the first thing that is wrong; nothing of the message may then be used.
    pub fn open<'a>(
        &'a mut self,
        place: &MessagePlace<'_>,
        meta: &'a MessageMeta,
        sealed: &[u8],
    ) -> Result<Opened<'a>, MessageError> {
        let mut copy = std::mem::take(&mut self.sealed);
        copy.clear();
        copy.extend_from_slice(sealed);
        let opened = self.unseal(place, meta, &mut copy);
        self.sealed = copy;
        opened?;
        Ok(self.opened(meta))
    }

    /// [`Scratch::open`] for bytes that need not stay as they are: one copy less.
    ///
    /// # Errors
    /// [`MessageError`] as there.
    pub fn open_in_place<'a>(
        &'a mut self,
        place: &MessagePlace<'_>,
        meta: &'a MessageMeta,
        sealed: &mut [u8],
    ) -> Result<Opened<'a>, MessageError> {
        self.unseal(place, meta, sealed)?;
        Ok(self.opened(meta))
    }

    fn unseal(&mut self, place: &MessagePlace<'_>, meta: &MessageMeta, sealed: &mut [u8]) -> Result<(), MessageError> {
        let context = MessageContext {
            vault: place.vault,
            object: place.object,
            disk: place.disk,
            epoch: meta.epoch,
            first: meta.first,
            last: meta.last,
            codec: meta.codec,
            plain_bytes: meta.plain_bytes,
        };
        message::open_in_place(place.key, &context, sealed, &mut self.plain)?;
        self.payloads.clear();
        check_records(place.disk_bytes, meta, &self.plain, &mut self.payloads)
    }

    fn opened<'a>(&'a self, meta: &'a MessageMeta) -> Opened<'a> {
        Opened { meta, plain: &self.plain, payloads: &self.payloads }
    }
}

fn check_records(
    disk_bytes: u64,
    meta: &MessageMeta,
    plain: &[u8],
    payloads: &mut Vec<usize>,
) -> Result<(), MessageError> {
    let mut rest = plain;
    let mut before: Option<Chain> = meta.chain_before;
    for row in &meta.records {
        if rest.is_empty() {
            return Err(MessageError::Count { found: payloads.len(), stated: meta.records.len() });
        }
        let (view, after) = RecordView::split(rest)?;
        let extents = view.head.decode_extents(view.table, disk_bytes)?;
        let name = view.barrier_name().map(str::to_owned);
        if view.head.epoch != meta.epoch || RecordMeta::new(&view.head, extents, name) != *row {
            return Err(MessageError::Row { seq: row.seq });
        }
        if !mutants::on(Mutant::DigestUnchecked) {
            view.check_digest()?;
        }
        if before.is_some_and(|before| view.head.chain_after(before) != view.head.chain) {
            return Err(MessageError::Chain { seq: row.seq });
        }
        before = Some(view.head.chain);
        payloads.push(plain.len() - after.len() - view.payload.len());
        rest = after;
    }
    if !rest.is_empty() {
        return Err(MessageError::Count { found: payloads.len() + 1, stated: meta.records.len() });
    }
    if before != Some(meta.chain_last) {
        return Err(MessageError::Chain { seq: meta.last });
    }
    Ok(())
}

impl<'a> Opened<'a> {
    /// The index's words on the message.
    #[must_use]
    pub fn meta(&self) -> &'a MessageMeta {
        self.meta
    }

    /// Its records, as the agent made them.
    pub fn records(&self) -> impl Iterator<Item = RecordView<'a>> + use<'a> {
        let mut rest = self.plain;
        std::iter::from_fn(move || {
            let (view, after) = RecordView::split(rest).ok()?;
            rest = after;
            Some(view)
        })
    }

    /// The bytes of one data extent of one record; none if there is no such record, or it has no such data extent.
    #[must_use]
    pub fn extent(&self, seq: Seq, extent: u32) -> Option<&'a [u8]> {
        let at = seq.0.checked_sub(self.meta.first.0)? as usize;
        let extents = &self.meta.records.get(at)?.extents;
        let length = extents.get(extent as usize)?.payload_bytes() as usize;
        let before: usize = extents[..extent as usize].iter().map(|extent| extent.payload_bytes() as usize).sum();
        let start = self.payloads.get(at)? + before;
        self.plain.get(start..start + length)
    }
}

impl MessageError {
    /// The whole reason in one line.
    #[must_use]
    pub fn text(&self) -> String {
        fault::chain_text(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::tests::ModelDisk;
    use crate::types::Epoch;

    #[test]
    fn a_payload_that_is_not_what_the_agent_digested_is_refused() {
        let mut disk = ModelDisk::new(1 << 20);
        disk.write(0, vec![7; 4096]);
        let meta = disk.message(Epoch(1), 1, 1);
        let mut plain = disk.records[&Epoch(1)][0].bytes();
        check_records(1 << 20, &meta, &plain, &mut Vec::new()).expect("as the agent made it");
        // Sealed like this by a gateway whose memory failed: the seal says nothing about it.
        plain.last_mut().into_iter().for_each(|byte| *byte ^= 1);
        let refused = check_records(1 << 20, &meta, &plain, &mut Vec::new());
        assert!(matches!(refused, Err(MessageError::Record(RecordError::Digest { .. }))), "{refused:?}");
    }
}
