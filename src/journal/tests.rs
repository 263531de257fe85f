//! The journal as a whole, on the simulated disk unless a test says otherwise.

mod behaviour;
mod crash;
mod damage;
mod looks;
mod machine;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::disk::sim::SimDisk;
use super::*;
use crate::flow::Watermark;
use crate::types::{Extent, ExtentKind, Id128, Micros, RecordHead, RecordKind, encode_extents, record_digest};

const JOURNAL: Id128 = Id128([0x4a; 16]);

/// A small journal: commits of 16 KiB, four to a segment.
fn small(shards: u16, segments: u64) -> JournalConfig {
    JournalConfig {
        shards,
        segment_bytes: 64 << 10,
        cache_bytes: 64 << 10,
        ..JournalConfig::new("/sim".into(), segments * (64 << 10))
    }
}

fn open(disk: &SimDisk, config: &JournalConfig) -> (Journal, ReplayReport) {
    try_open(disk, config).expect("the journal opens")
}

fn try_open(disk: &SimDisk, config: &JournalConfig) -> Result<(Journal, ReplayReport), OpenError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    Journal::open_on(config, disk, &clock)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime")
}

/// One record as the wire would hand it over.
#[derive(Debug, Clone)]
struct Sample {
    head: RecordHead,
    crc: u32,
    bytes: Bytes,
}

/// A disk that makes records in order.
#[derive(Debug)]
struct Source {
    disk: DiskId,
    epoch: Epoch,
    records: Vec<Sample>,
    journaled: Arc<Watermark>,
}

impl Source {
    fn new(name: &str) -> Self {
        let disk = DiskId::new(name).expect("a name");
        Self { disk, epoch: Epoch(1), records: Vec::new(), journaled: Arc::new(Watermark::new(0)) }
    }

    fn chain(&self) -> Chain {
        self.records.last().map_or(Chain::GENESIS, |record| record.head.chain)
    }

    /// The next record, with `payload_bytes` of a content that tells disk and seq.
    fn make(&mut self, payload_bytes: usize) -> Sample {
        let seq = Seq(self.records.len() as u64 + 1);
        let extent = Extent { offset_bytes: seq.0 * 4096, length_bytes: payload_bytes as u32, kind: ExtentKind::Data };
        let mut table = Vec::new();
        encode_extents(&[extent], &mut table);
        let mut state = seq.0 * 1_000_003 + u64::from(self.disk.as_str().as_bytes()[0]);
        let payload: Vec<u8> = (0..payload_bytes).map(|_| disk::sim::draw(&mut state) as u8).collect();
        let head = RecordHead {
            kind: RecordKind::Write,
            extent_count: 1,
            payload_bytes: payload_bytes as u32,
            epoch: self.epoch,
            seq,
            label: Micros(1_000_000 + seq.0),
            clock_uncertainty_micros: 1,
            group: Id128::NONE,
            digest: record_digest(&table, [payload.as_slice()]),
            chain: Chain([0; 32]),
        }
        .sealed_after(self.chain());
        let bytes = Bytes::from([&head.encode()[..], &table, &payload].concat());
        let sample = Sample { head, crc: format::crc32c(&bytes), bytes };
        self.records.push(sample.clone());
        sample
    }

    fn chain_at(&self, seq: u64) -> Chain {
        self.records[seq as usize - 1].head.chain
    }

    async fn append(&self, journal: &Journal, sample: &Sample) -> Result<(), AppendError> {
        // In pieces, as they come from the network.
        let cut = sample.bytes.len() / 3;
        let chunks = [sample.bytes.slice(..cut), sample.bytes.slice(cut..)];
        let entry = Entry {
            disk: &self.disk,
            head: &sample.head,
            body_crc: sample.crc,
            received: Micros(sample.head.label.0 + 5),
            chunks: &chunks,
            journaled: &self.journaled,
        };
        journal.append(entry).await
    }

    /// Makes and appends a record.
    async fn send(&mut self, journal: &Journal, payload_bytes: usize) {
        let sample = self.make(payload_bytes);
        self.append(journal, &sample).await.expect("the record is taken");
    }

    /// Waits until everything sent is journaled.
    async fn settled(&self) {
        let last = self.records.len() as u64;
        if last > 0 {
            self.journaled.beyond(last - 1).await;
        }
    }

    fn vault(&self, journal: &Journal, seq: u64) {
        journal.vaulted(&self.disk, self.epoch, Seq(seq), self.chain_at(seq));
    }
}

type Found = BTreeMap<(DiskId, u64, u64), Vec<u8>>;

/// Reads what the journal has now, and the damage met on the way.
fn read_all(journal: &Journal) -> (Found, Vec<Damage>) {
    let mut found = Found::new();
    let mut damage = Vec::new();
    for shard in 0..journal.shard_count() {
        let mut reader = journal.reader(shard);
        loop {
            match reader.try_next() {
                Ok(Some(commit)) => {
                    for (index, entry) in commit.entries.iter().enumerate() {
                        let key = (entry.disk.clone(), entry.head.epoch.0, entry.head.seq.0);
                        let twice = found.insert(key, commit.record(index).to_vec());
                        assert!(twice.is_none(), "{entry:?} was given twice");
                    }
                }
                Ok(None) | Err(ReadError::Closed) => break,
                Err(ReadError::Damaged(one)) => damage.push(one),
                Err(error) => panic!("{error}"),
            }
        }
    }
    (found, damage)
}

fn seqs(found: &Found, source: &Source) -> Vec<u64> {
    let of_disk = found.keys().filter(|(disk, epoch, _)| *disk == source.disk && *epoch == source.epoch.0);
    of_disk.map(|(_, _, seq)| *seq).collect()
}

fn ranges(report: &ReplayReport, source: &Source) -> Vec<(u64, u64)> {
    let run = report.runs.get(&(source.disk.clone(), source.epoch));
    run.map_or(Vec::new(), |run| run.journaled.iter().map(|range| (range.first.0, range.last.0)).collect())
}

fn segment_file(shard: u16, segment: u64) -> PathBuf {
    depot::shard_dir("/sim".as_ref(), shard).join(depot::segment_name(segment))
}
