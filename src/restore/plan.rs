//! From a target point to the reads that rebuild it. Pure: the history in, an ordered list of ranged reads out.
//!
//! Records are walked from the target backwards, and each takes the bytes of the disk that no newer one has taken. So
//! every byte is owned by exactly one extent, each message is read at most once, messages that own nothing are not read
//! at all, and the walk ends early once the whole disk is owned. What nobody owns, or a zero extent owns, is a hole.

use std::collections::BTreeMap;

use crate::types::{Chain, ExtentKind, PointId, Seq};

use super::history::{History, Pick};

/// Bytes of an object that are read though nobody needs them, to save a request between two messages that are needed.
pub const READ_THROUGH_BYTES_MAX: u64 = 128 << 10;
/// Longest single read. Larger ones gain nothing and make the byte budget coarse.
pub const READ_BYTES_MAX: u64 = 8 << 20;

/// A range of the disk that one extent of one message supplies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owned {
    /// Seq of the record.
    pub seq: Seq,
    /// Extent within the record.
    pub extent: u32,
    /// Bytes to skip at the extent's start.
    pub skip_bytes: u32,
    /// Where on the disk.
    pub offset_bytes: u64,
    /// How much.
    pub length_bytes: u32,
}

/// A message to open, and what it supplies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MessageUse {
    /// Index into [`History::rows`].
    pub row: usize,
    /// What to write, by seq and extent.
    pub owned: Vec<Owned>,
}

/// One ranged read of one object, covering one or more messages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RangedRead {
    /// The object, as the rows name it.
    pub object: u32,
    /// First byte.
    pub offset_bytes: u64,
    /// Bytes to read.
    pub length_bytes: u64,
    /// The messages within, by offset.
    pub messages: Vec<MessageUse>,
}

/// How to rebuild a disk at a point.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// The point.
    pub target: PointId,
    /// Size of the disk there.
    pub disk_bytes: u64,
    /// The reads, by object and offset.
    pub reads: Vec<RangedRead>,
    /// Ranges of the disk that are zero: (offset, length), ascending, never adjacent.
    pub zeroes: Vec<(u64, u64)>,
}

impl Plan {
    /// Plans the restore of `target`, which must lie in the usable part of the history.
    ///
    /// Returns none if it does not.
    #[must_use]
    pub fn build(history: &History, target: PointId) -> Option<Self> {
        let span = history.span_of(target.epoch).filter(|span| target.seq <= span.through)?;
        let disk_bytes = span.segment.size_bytes;
        let mut owner = Ownership::new(disk_bytes);
        let mut uses = Vec::new();
        for span in history.spans.iter().rev().filter(|span| span.segment.epoch <= target.epoch) {
            let until = if span.segment.epoch == target.epoch { target.seq } else { span.through };
            for pick in span.picks.iter().rev().filter(|pick| pick.first <= until) {
                if owner.free_bytes == 0 {
                    break;
                }
                let owned = claim(history, pick, until.min(pick.last), &mut owner);
                if !owned.is_empty() {
                    uses.push(MessageUse { row: pick.row, owned });
                }
            }
        }
        let zeroes = complement(disk_bytes, uses.iter().flat_map(|message| &message.owned));
        Some(Self { target, disk_bytes, reads: coalesce(history, uses), zeroes })
    }

    /// Bytes of the disk that come from messages.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        let owned = self.reads.iter().flat_map(|read| &read.messages).flat_map(|message| &message.owned);
        owned.map(|owned| u64::from(owned.length_bytes)).sum()
    }

    /// Bytes read from the vault.
    #[must_use]
    pub fn read_bytes(&self) -> u64 {
        self.reads.iter().map(|read| read.length_bytes).sum()
    }

    /// A digest that is the same exactly if the plan is: `object_name` tells the objects apart.
    #[must_use]
    pub fn id(&self, disk: &str, object_name: impl Fn(u32) -> String) -> Chain {
        let mut hasher = blake3::Hasher::new_derive_key("tidegate 1 restore plan");
        hasher.update(format!("{disk} {} {}\n", self.target, self.disk_bytes).as_bytes());
        for read in &self.reads {
            hasher.update(
                format!("{} {} {}\n", object_name(read.object), read.offset_bytes, read.length_bytes).as_bytes(),
            );
            for owned in read.messages.iter().flat_map(|message| &message.owned) {
                hasher.update(&owned.seq.0.to_le_bytes());
                hasher.update(&owned.offset_bytes.to_le_bytes());
                hasher.update(&owned.length_bytes.to_le_bytes());
            }
        }
        Chain(hasher.finalize().into())
    }
}

/// What one message still owns, newest record first taken, returned in order of seq and extent.
fn claim(history: &History, pick: &Pick, until: Seq, owner: &mut Ownership) -> Vec<Owned> {
    let mut owned = Vec::new();
    let message = &history.rows[pick.row].message;
    let from = (pick.first.0 - message.first.0) as usize;
    let to = (until.0 - message.first.0) as usize;
    for record in message.records[from..=to].iter().rev() {
        for (index, extent) in record.extents.iter().enumerate().rev() {
            let data = extent.kind == ExtentKind::Data;
            owner.take(extent.offset_bytes, extent.end_bytes(), |start, end| {
                if data {
                    owned.push(Owned {
                        seq: record.seq,
                        extent: index as u32,
                        skip_bytes: (start - extent.offset_bytes) as u32,
                        offset_bytes: start,
                        length_bytes: (end - start) as u32,
                    });
                }
            });
        }
    }
    owned.sort_unstable_by_key(|owned| (owned.seq, owned.extent, owned.skip_bytes));
    owned
}

/// Sorts the messages by place and joins neighbours into one read.
pub(crate) fn coalesce(history: &History, mut uses: Vec<MessageUse>) -> Vec<RangedRead> {
    let place = |message: &MessageUse| {
        let row = &history.rows[message.row];
        (row.object, row.message.offset_bytes, u64::from(row.message.stored_bytes))
    };
    uses.sort_unstable_by_key(|message| {
        let (object, offset_bytes, _) = place(message);
        (object, offset_bytes)
    });
    let mut reads: Vec<RangedRead> = Vec::new();
    for message in uses {
        let (object, offset_bytes, stored_bytes) = place(&message);
        let end_bytes = offset_bytes + stored_bytes;
        if let Some(read) = reads.last_mut() {
            let read_end_bytes = read.offset_bytes + read.length_bytes;
            if read.object == object
                && offset_bytes <= read_end_bytes + READ_THROUGH_BYTES_MAX
                && end_bytes.saturating_sub(read.offset_bytes) <= READ_BYTES_MAX
            {
                read.length_bytes = read.length_bytes.max(end_bytes - read.offset_bytes);
                read.messages.push(message);
                continue;
            }
        }
        reads.push(RangedRead { object, offset_bytes, length_bytes: stored_bytes, messages: vec![message] });
    }
    reads
}

/// The parts of the disk that are not in `owned`.
fn complement<'a>(disk_bytes: u64, owned: impl Iterator<Item = &'a Owned>) -> Vec<(u64, u64)> {
    let mut data: Vec<(u64, u64)> =
        owned.map(|owned| (owned.offset_bytes, owned.offset_bytes + u64::from(owned.length_bytes))).collect();
    data.sort_unstable();
    let mut zeroes = Vec::new();
    let mut at = 0;
    for (start, end) in data {
        if start > at {
            zeroes.push((at, start - at));
        }
        at = end;
    }
    if at < disk_bytes {
        zeroes.push((at, disk_bytes - at));
    }
    zeroes
}

/// Which bytes of the disk are taken: disjoint, never adjacent ranges, start to end.
struct Ownership {
    taken: BTreeMap<u64, u64>,
    disk_bytes: u64,
    free_bytes: u64,
}

impl Ownership {
    fn new(disk_bytes: u64) -> Self {
        Self { taken: BTreeMap::new(), disk_bytes, free_bytes: disk_bytes }
    }

    /// Takes what is free of `start..end` and calls `fresh` with each free part. Ranges that it touches are merged, so
    /// the work over a whole plan is proportional to the extents, not to their square.
    fn take(&mut self, start: u64, end: u64, mut fresh: impl FnMut(u64, u64)) {
        let end = end.min(self.disk_bytes);
        if start >= end {
            return;
        }
        let (mut joined_start, mut joined_end) = (start, end);
        let mut at = start;
        if let Some((&before_start, &before_end)) = self.taken.range(..=start).next_back()
            && before_end >= start
        {
            if before_end >= end {
                return;
            }
            joined_start = before_start;
            at = before_end;
        }
        // Ranges that begin inside, or just at the end, of what is taken now.
        while let Some((&next_start, &next_end)) = self.taken.range(start + 1..=end).next() {
            if next_start > at {
                self.free_bytes -= next_start - at;
                fresh(at, next_start);
            }
            at = at.max(next_end);
            joined_end = joined_end.max(next_end);
            self.taken.remove(&next_start);
        }
        if at < end {
            self.free_bytes -= end - at;
            fresh(at, end);
        }
        self.taken.insert(joined_start, joined_end);
    }
}

#[cfg(test)]
mod tests;
