//! Records, lanes and noise for the tests of this stage and of the formats that it fills.

use std::sync::{Arc, LazyLock};

use crate::flow::{SystemClock, Tally, Watermark};
use crate::keys::{CatalogKey, LaneKey, LaneKeys};
use crate::pipeline::{Input, LaneContext};
use crate::types::{
    BarrierKind, Chain, DiskId, Epoch, Extent, ExtentKind, Id128, Micros, RecordHead, RecordKind, Seq, encode_extents,
    record_digest,
};
use crate::wire::frame::crc32c;

/// A deterministic stream of numbers.
pub fn numbers(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// Bytes that nothing can pack.
pub fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut next = numbers(seed);
    (0..count.div_ceil(8)).flat_map(|_| next().to_le_bytes()).take(count).collect()
}

pub fn disk(name: &str) -> DiskId {
    DiskId::new(name).unwrap()
}

/// One disk's records, with digests and chains as an agent makes them.
pub struct Writer {
    pub disk: DiskId,
    pub epoch: Epoch,
    pub seq: Seq,
    pub chain: Chain,
    pub label: u64,
}

impl Writer {
    pub fn new(name: &str) -> Self {
        let label = 1_800_000_000_000_000;
        Self { disk: disk(name), epoch: Epoch(1), seq: Seq::NONE, chain: Chain::GENESIS, label }
    }

    /// Starts the next epoch where this one ends.
    pub fn fork(&mut self) {
        self.epoch = Epoch(self.epoch.0 + 1);
        self.chain = self.chain.fork(self.epoch);
        self.seq = Seq::NONE;
    }

    fn record(&mut self, kind: RecordKind, extents: &[Extent], payload: &[u8]) -> Vec<u8> {
        self.seq = self.seq.next();
        self.label += 1000;
        let mut table = Vec::new();
        encode_extents(extents, &mut table);
        let head = RecordHead {
            kind,
            extent_count: extents.len() as u32,
            payload_bytes: payload.len() as u32,
            epoch: self.epoch,
            seq: self.seq,
            label: Micros(self.label),
            clock_uncertainty_micros: 250,
            group: if matches!(kind, RecordKind::Barrier(_)) { Id128([3; 16]) } else { Id128::NONE },
            digest: record_digest(&table, [payload]),
            chain: Chain::GENESIS,
        }
        .sealed_after(self.chain);
        self.chain = head.chain;
        [&head.encode()[..], &table, payload].concat()
    }

    /// One write of `payload` at `offset_bytes`.
    pub fn write(&mut self, offset_bytes: u64, payload: &[u8]) -> Vec<u8> {
        let extent = Extent { offset_bytes, length_bytes: payload.len() as u32, kind: ExtentKind::Data };
        self.record(RecordKind::Write, &[extent], payload)
    }

    /// Writes zeroes to many ranges.
    pub fn zeroes(&mut self, ranges: u32) -> Vec<u8> {
        let extent =
            |number: u32| Extent { offset_bytes: u64::from(number) << 20, length_bytes: 4096, kind: ExtentKind::Zero };
        self.record(RecordKind::Copy, &(0..ranges).map(extent).collect::<Vec<_>>(), &[])
    }

    pub fn barrier(&mut self, kind: BarrierKind, name: &str) -> Vec<u8> {
        self.record(RecordKind::Barrier(kind), &[], name.as_bytes())
    }
}

/// A record as the journal gives it: checked by whoever uses it, and for two of three kept if that pays.
pub fn input(record: &[u8]) -> Input {
    let may_keep = !record.len().is_multiple_of(3);
    Input { bytes: record.to_vec().into(), unchecked_crc: Some(crc32c([record])), may_keep }
}

pub const VAULT: Id128 = Id128([0xa1; 16]);
pub const LANE: Id128 = Id128([0xb2; 16]);

pub fn object_name(lane: Id128, n: u64) -> String {
    format!("b/{lane}/{n:012}")
}

/// The keys of a lane whose own is so many times `byte`.
pub fn lane_keys(lane: Id128, byte: u8) -> Arc<LaneKeys> {
    Arc::new(LaneKeys::new(VAULT, lane, LaneKey::from_secret([byte; 32])))
}

static KEYS: LazyLock<Arc<LaneKeys>> = LazyLock::new(|| lane_keys(LANE, 0x11));

/// A lane with fixed keys. Those of its disks are random, and the same for the whole process.
pub fn lane() -> LaneContext {
    LaneContext {
        vault: VAULT,
        lane: LANE,
        keys: Arc::clone(&KEYS),
        catalog: CatalogKey::from_secret([0x22; 32]),
        next_n: 1,
        confirmed: Arc::new(Watermark::new(0)),
        uplink: Arc::new(Tally::new(Arc::new(SystemClock::new()))),
        object_name,
    }
}

/// The stored example `name` of format version 1. With `TIDEGATE_WRITE_FIXTURES` set it is written from `made` first:
/// only for a new format.
pub fn fixture(name: &str, made: &[u8]) -> Vec<u8> {
    fixture_of(1, name, made)
}

/// The same of another version.
pub fn fixture_of(version: u32, name: &str, made: &[u8]) -> Vec<u8> {
    let folder = format!("tests/fixtures/v{version}");
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(name);
    if std::env::var_os("TIDEGATE_WRITE_FIXTURES").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, made).unwrap();
    }
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
