//! From writes to records, as an agent makes them: label, digest, chain. And what the disk holds after them.

use bytes::Bytes;
use tidegate::types::{
    BarrierKind, Chain, Digest, Epoch, Extent, ExtentKind, Id128, Micros, RecordHead, RecordKind, Seq, encode_extents,
    record_digest,
};
use tidegate::wire::{ClockOffset, OpenedInfo, WireRecord};

use super::profile::{BLOCK, Write};
use crate::payload::Pool;

/// The corrected time and how far it may be off.
#[derive(Clone, Copy, Debug)]
pub struct Stamp {
    label: Micros,
    uncertainty_micros: u32,
}

impl Stamp {
    /// This machine's wall clock, corrected.
    #[must_use]
    pub const fn new(wall: Micros, offset: ClockOffset) -> Self {
        let label = Micros(wall.0.saturating_add_signed(offset.offset_micros));
        Self { label, uncertainty_micros: offset.uncertainty_micros }
    }
}

/// Makes the records of one epoch of one disk.
#[derive(Debug)]
pub struct Writer {
    epoch: Epoch,
    last: Seq,
    chain: Chain,
    label: Micros,
}

impl Writer {
    /// Goes on where the gateway says; an epoch that is new always has a chain.
    #[must_use]
    pub fn new(opened: &OpenedInfo) -> Self {
        let last = Seq(opened.next_seq.0.saturating_sub(1));
        Self { epoch: opened.epoch, last, chain: opened.chain.unwrap_or(Chain::GENESIS), label: Micros(0) }
    }

    /// The last record that was made.
    #[must_use]
    pub const fn last(&self) -> Seq {
        self.last
    }

    /// The epoch.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// A record of one write.
    pub fn write(&mut self, write: &Write, payload: Bytes, stamp: Stamp) -> WireRecord {
        let kind = if write.zero { ExtentKind::Zero } else { ExtentKind::Data };
        let extent = Extent { offset_bytes: write.offset_bytes, length_bytes: write.length_bytes, kind };
        let payload = if write.zero { Bytes::new() } else { payload };
        self.record(write.kind, &[extent], payload, stamp)
    }

    /// A barrier.
    pub fn barrier(&mut self, kind: BarrierKind, stamp: Stamp) -> WireRecord {
        self.record(RecordKind::Barrier(kind), &[], Bytes::new(), stamp)
    }

    fn record(&mut self, kind: RecordKind, extents: &[Extent], payload: Bytes, stamp: Stamp) -> WireRecord {
        let mut table = Vec::with_capacity(extents.len() * tidegate::types::EXTENT_BYTES);
        encode_extents(extents, &mut table);
        let digest: Digest = record_digest(&table, [payload.as_ref()]);
        self.label = self.label.max(stamp.label);
        self.last = self.last.next();
        let head = RecordHead {
            kind,
            extent_count: extents.len() as u32,
            payload_bytes: payload.len() as u32,
            epoch: self.epoch,
            seq: self.last,
            label: self.label,
            clock_uncertainty_micros: stamp.uncertainty_micros,
            group: Id128::NONE,
            digest,
            chain: self.chain,
        }
        .sealed_after(self.chain);
        self.chain = head.chain;
        let mut rest = Vec::with_capacity(2);
        rest.extend((!table.is_empty()).then(|| Bytes::from(table)));
        rest.extend((!payload.is_empty()).then_some(payload));
        WireRecord { head: head.encode(), rest }
    }
}

/// What a disk must hold: for each block, which block of the pool was written there last.
#[derive(Debug)]
pub struct Image {
    /// One more than the pool's block; zero where nothing or zeroes were written.
    blocks: Vec<u32>,
}

impl Image {
    /// A disk of zeroes.
    #[must_use]
    pub fn new(disk_bytes: u64) -> Self {
        Self { blocks: vec![0; (disk_bytes / BLOCK) as usize] }
    }

    /// A write whose payload began at `block` of the pool.
    pub fn write(&mut self, write: &Write, block: u64) {
        let first = (write.offset_bytes / BLOCK) as usize;
        let count = (u64::from(write.length_bytes) / BLOCK) as usize;
        for (at, slot) in self.blocks[first..first + count].iter_mut().enumerate() {
            *slot = if write.zero { 0 } else { (block + at as u64 + 1) as u32 };
        }
    }

    /// The first byte from `offset` of which `found` differs from what the disk must hold.
    #[must_use]
    pub fn difference(&self, pool: &Pool, offset_bytes: u64, found: &[u8]) -> Option<u64> {
        let first = (offset_bytes / BLOCK) as usize;
        for (at, piece) in found.chunks(BLOCK as usize).enumerate() {
            let slot = self.blocks.get(first + at).copied().unwrap_or(0) as usize;
            let same = match slot.checked_sub(1) {
                None => piece.iter().all(|&byte| byte == 0),
                Some(block) => pool.bytes()[block * BLOCK as usize..][..piece.len()] == *piece,
            };
            if !same {
                return Some(offset_bytes + (at as u64) * BLOCK);
            }
        }
        None
    }

    /// SHA-256 of what the disk must hold.
    #[must_use]
    pub fn sha256(&self, pool: &Pool) -> Digest {
        let mut hasher = ring::digest::Context::new(&ring::digest::SHA256);
        let zeroes = [0; BLOCK as usize];
        for &slot in &self.blocks {
            match (slot as usize).checked_sub(1) {
                None => hasher.update(&zeroes),
                Some(block) => hasher.update(&pool.bytes()[block * BLOCK as usize..][..BLOCK as usize]),
            }
        }
        let mut digest = Digest([0; 32]);
        digest.0.copy_from_slice(hasher.finish().as_ref());
        digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::Source;
    use tidegate::types::RecordView;
    use tidegate::wire::OpenedInfo;

    #[test]
    fn records_are_whole_dense_and_chained() {
        let opened = OpenedInfo {
            epoch: Epoch(3),
            next_seq: Seq(5),
            chain: Some(Chain([7; 32])),
            journaled: Seq(4),
            vaulted: Seq(4),
            credit_bytes: 0,
            touched: Vec::new(),
        };
        let mut writer = Writer::new(&opened);
        let offset = ClockOffset { offset_micros: -5, uncertainty_micros: 1 };
        let write = Write { offset_bytes: 4096, length_bytes: 8192, kind: RecordKind::Write, zero: false };
        let mut chain = Chain([7; 32]);
        for (seq, wall) in [(5, 100), (6, 50)] {
            let stamp = Stamp::new(Micros(wall), offset);
            let record = writer.write(&write, Bytes::from(vec![9; 8192]), stamp);
            let bytes = [&record.head[..], &record.rest.concat()].concat();
            let (view, rest) = RecordView::split(&bytes).expect("a record");
            view.check_digest().expect("its digest");
            assert_eq!((view.head.seq, view.head.label, rest.len()), (Seq(seq), Micros(95), 0), "labels never go back");
            assert_eq!(view.head.chain_after(chain), view.head.chain);
            chain = view.head.chain;
        }
    }

    #[test]
    fn an_image_knows_what_was_written_last() {
        let pool = Pool::fill(&Source::Ratio(2.0), 4 << 20, 5).expect("made");
        let mut image = Image::new(64 << 10);
        let write =
            |offset_bytes, length_bytes, zero| Write { offset_bytes, length_bytes, kind: RecordKind::Write, zero };
        image.write(&write(0, 16384, false), 10);
        image.write(&write(4096, 4096, true), 0);
        image.write(&write(8192, 4096, false), 3);
        let at = |block: usize| &pool.bytes()[block * 4096..][..4096];
        let mut disk = [at(10), &[0; 4096], at(3), at(13)].concat();
        disk.resize(64 << 10, 0);
        assert_eq!(image.difference(&pool, 0, &disk), None);
        assert_eq!(image.difference(&pool, 8192, &disk[8192..12288]), None);
        let digest = ring::digest::digest(&ring::digest::SHA256, &disk);
        assert_eq!(image.sha256(&pool).0, digest.as_ref());
        disk[12289] ^= 1;
        assert_eq!(image.difference(&pool, 0, &disk), Some(12288));
    }
}
