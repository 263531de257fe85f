//! A disk made of real records, with a naive replay to compare with.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use proptest::prelude::*;

use crate::types::{
    BarrierKind, Chain, DiskId, Epoch, Extent, ExtentKind, Id128, Micros, PointId, RecordHead, RecordKind, Seq,
    encode_extents, record_digest,
};

use super::history::{History, Presence, Row};
use super::open::{MessagePlace, Scratch};
use super::plan::Plan;
use super::source::{self, Source};
use crate::flow::{Clock, SystemClock};
use crate::keys::{Identity, MessageKey};
use crate::pipeline::codec::Codec;
use crate::pipeline::message::{self, MessageContext};
use crate::vault::batch::{BatchBuilder, BatchHeader};
use crate::vault::index::lane::LaneIndexBuilder;
use crate::vault::index::{MessageMeta, RecordMeta, SealedIndex};
use crate::vault::lane::Lane;
use crate::vault::objects::{DiskObject, EpochObject, LaneObject};
use crate::vault::put::create_only;
use crate::vault::reader::Want;
use crate::vault::store::VaultStore;
use crate::vault::{InitOptions, Vault, names};

/// One record as an agent would make it.
#[derive(Clone, Debug)]
pub struct ModelRecord {
    pub head: RecordHead,
    pub extents: Vec<Extent>,
    pub payload: Vec<u8>,
}

impl ModelRecord {
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.head.encode().to_vec();
        encode_extents(&self.extents, &mut bytes);
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    pub fn meta(&self) -> RecordMeta {
        let barrier = matches!(self.head.kind, RecordKind::Barrier(_));
        let name = barrier.then(|| String::from_utf8(self.payload.clone()).unwrap()).filter(|name| !name.is_empty());
        RecordMeta::new(&self.head, self.extents.clone(), name)
    }
}

/// A disk's whole history, known exactly.
#[derive(Clone, Debug)]
pub struct ModelDisk {
    pub id: DiskId,
    pub disk_bytes: u64,
    pub epochs: Vec<EpochObject>,
    pub records: BTreeMap<Epoch, Vec<ModelRecord>>,
    label: u64,
}

impl ModelDisk {
    pub fn new(disk_bytes: u64) -> Self {
        Self::named("sda", disk_bytes)
    }

    pub fn named(name: &str, disk_bytes: u64) -> Self {
        let id = DiskId::new(name).unwrap();
        let mut disk =
            Self { id, disk_bytes, epochs: Vec::new(), records: BTreeMap::new(), label: 1_800_000_000_000_000 };
        disk.open(None, Chain::GENESIS);
        disk
    }

    fn open(&mut self, from: Option<PointId>, chain_at_fork: Chain) {
        let epoch = Epoch(self.epochs.len() as u64 + 1);
        self.epochs.push(EpochObject {
            disk: self.id.clone(),
            epoch,
            previous: from.map(|from| from.epoch),
            fork_seq: from.map_or(Seq::NONE, |from| from.seq),
            chain_at_fork,
            size_bytes: self.disk_bytes,
            agent: "a1".into(),
            nonce: Id128::NONE,
            reason: "test".into(),
            gateway: "g1".into(),
            created_micros: Micros(self.label),
        });
        self.records.insert(epoch, Vec::new());
    }

    /// Lets time pass for the next labels.
    pub fn wait(&mut self, seconds: u64) {
        self.label += seconds * 1_000_000;
    }

    /// Opens the next epoch at `seq` of the newest.
    pub fn fork(&mut self, seq: Seq) {
        let epoch = self.epoch();
        let chain = self.chain_at(PointId { epoch, seq });
        self.open(Some(PointId { epoch, seq }), chain);
    }

    pub fn epoch(&self) -> Epoch {
        self.epochs.last().unwrap().epoch
    }

    pub fn chain_at(&self, point: PointId) -> Chain {
        match point.seq.0 {
            0 => self.epochs[point.epoch.0 as usize - 1].first_chain(),
            seq => self.records[&point.epoch][seq as usize - 1].head.chain,
        }
    }

    pub fn head(&self) -> PointId {
        let epoch = self.epoch();
        PointId { epoch, seq: Seq(self.records[&epoch].len() as u64) }
    }

    pub fn push(&mut self, kind: RecordKind, extents: Vec<Extent>, payload: Vec<u8>) -> PointId {
        self.push_in(Id128::NONE, kind, extents, payload)
    }

    fn push_in(&mut self, group: Id128, kind: RecordKind, extents: Vec<Extent>, payload: Vec<u8>) -> PointId {
        let before = self.chain_at(self.head());
        let head = self.head();
        self.label += 250_000;
        let mut table = Vec::new();
        encode_extents(&extents, &mut table);
        let head = RecordHead {
            kind,
            extent_count: extents.len() as u32,
            payload_bytes: payload.len() as u32,
            epoch: head.epoch,
            seq: head.seq.next(),
            label: Micros(self.label),
            clock_uncertainty_micros: 700,
            group,
            digest: record_digest(&table, [payload.as_slice()]),
            chain: Chain::GENESIS,
        }
        .sealed_after(before);
        self.records.get_mut(&head.epoch).unwrap().push(ModelRecord { head, extents, payload });
        self.head()
    }

    pub fn write(&mut self, offset_bytes: u64, payload: Vec<u8>) -> PointId {
        let extent = Extent { offset_bytes, length_bytes: payload.len() as u32, kind: ExtentKind::Data };
        self.push(RecordKind::Write, vec![extent], payload)
    }

    pub fn barrier(&mut self, kind: BarrierKind, name: &str) -> PointId {
        self.push(RecordKind::Barrier(kind), Vec::new(), name.as_bytes().to_vec())
    }

    /// A barrier that disks have in common.
    pub fn group_barrier(&mut self, kind: BarrierKind, group: Id128) -> PointId {
        self.push_in(group, RecordKind::Barrier(kind), Vec::new(), Vec::new())
    }

    /// Every record from the first that leads to `point`.
    fn lineage(&self, point: PointId) -> Vec<&ModelRecord> {
        let fact = &self.epochs[point.epoch.0 as usize - 1];
        let mut records = match fact.previous {
            Some(epoch) => self.lineage(PointId { epoch, seq: fact.fork_seq }),
            None => Vec::new(),
        };
        records.extend(&self.records[&point.epoch][..point.seq.0 as usize]);
        records
    }

    /// The image after replaying everything that leads to `point`.
    pub fn image_at(&self, point: PointId) -> Vec<u8> {
        let mut image = vec![0; self.disk_bytes as usize];
        for record in self.lineage(point) {
            let mut payload = record.payload.as_slice();
            for extent in &record.extents {
                let range = extent.offset_bytes as usize..extent.end_bytes() as usize;
                match extent.kind {
                    ExtentKind::Zero => image[range].fill(0),
                    ExtentKind::Data => {
                        let (data, rest) = payload.split_at(extent.length_bytes as usize);
                        image[range].copy_from_slice(data);
                        payload = rest;
                    }
                }
            }
        }
        image
    }

    pub fn message(&self, epoch: Epoch, first: u64, last: u64) -> MessageMeta {
        let records = &self.records[&epoch][first as usize - 1..last as usize];
        let plain_bytes = records.iter().map(|record| record.head.record_bytes()).sum::<usize>() as u32;
        MessageMeta {
            epoch,
            first: Seq(first),
            last: Seq(last),
            offset_bytes: 64,
            stored_bytes: plain_bytes,
            plain_bytes,
            codec: Codec::Raw,
            received_first: records[0].head.label,
            received_last: records[records.len() - 1].head.label,
            origin: None,
            chain_before: Some(self.chain_at(PointId { epoch, seq: Seq(first - 1) })),
            chain_last: self.chain_at(PointId { epoch, seq: Seq(last) }),
            records: records.iter().map(ModelRecord::meta).collect(),
        }
    }

    /// Each epoch cut into messages of `step` records, one object per message.
    pub fn rows(&self, step: u64) -> Vec<Row> {
        let mut rows = Vec::new();
        for (&epoch, records) in &self.records {
            let count = records.len() as u64;
            for first in (1..=count).step_by(step as usize) {
                let message = self.message(epoch, first, (first + step - 1).min(count));
                rows.push(Row { object: rows.len() as u32, confirmed: false, presence: Presence::Here, message });
            }
        }
        rows
    }
}

/// What a random history is made of.
#[derive(Clone, Debug)]
pub enum Step {
    Write(Vec<(u64, u16, bool)>),
    Barrier(u8),
    /// Fork after dropping this many records.
    Fork(u8),
}

/// Bytes of a random disk; small, so that writes overlap often.
pub const MODEL_BYTES: u64 = 4096;

pub fn steps() -> impl Strategy<Value = Vec<Step>> {
    let extent = (0..MODEL_BYTES - 1, 1..600_u16, any::<bool>());
    let step = prop_oneof![
        8 => prop::collection::vec(extent, 1..4).prop_map(Step::Write),
        3 => (1..=5_u8).prop_map(Step::Barrier),
        1 => (0..12_u8).prop_map(Step::Fork),
    ];
    prop::collection::vec(step, 1..60)
}

pub fn model(steps: &[Step]) -> ModelDisk {
    let mut disk = ModelDisk::new(MODEL_BYTES);
    for (at, step) in steps.iter().enumerate() {
        match step {
            Step::Write(parts) => {
                let mut extents = Vec::new();
                let mut payload = Vec::new();
                for &(offset_bytes, length, data) in parts {
                    let length_bytes = u64::from(length).min(MODEL_BYTES - offset_bytes) as u32;
                    let kind = if data { ExtentKind::Data } else { ExtentKind::Zero };
                    extents.push(Extent { offset_bytes, length_bytes, kind });
                    if data {
                        payload.extend((0..length_bytes).map(|byte| (at as u32 * 31 + byte) as u8 | 1));
                    }
                }
                disk.push(RecordKind::Write, extents, payload);
            }
            Step::Barrier(kind) => {
                let kinds = [
                    BarrierKind::Crash,
                    BarrierKind::Fs,
                    BarrierKind::App,
                    BarrierKind::SyncBegin,
                    BarrierKind::SyncEnd,
                ];
                disk.barrier(kinds[*kind as usize - 1], "");
            }
            Step::Fork(drop) => {
                let head = disk.head();
                disk.fork(Seq(head.seq.0.saturating_sub(u64::from(*drop))));
            }
        }
    }
    disk
}

/// A vault in memory or in a directory, filled by the writers that a gateway uses.
pub struct TestVault {
    pub vault: Vault,
    pub identity: Identity,
    pub lane: Lane,
    pub next_batch: u64,
    /// Size and sealed index of every batch so far.
    batches: Vec<(u64, u64, SealedIndex)>,
    /// Whether disks have no keys in its lanes, as before there were any.
    older: bool,
}

impl TestVault {
    pub async fn new(store: Arc<dyn ObjectStore>) -> Self {
        let identity = Identity::generate();
        let options = InitOptions { recipients: vec![identity.recipient()], now: Micros(1) };
        let (vault, _) = Vault::init(VaultStore::new(store, "test"), &options).await.unwrap();
        let lane = Lane::open(&vault, "g1", &SystemClock::new()).await.unwrap();
        Self { vault, identity, lane, next_batch: 1, batches: Vec::new(), older: false }
    }

    pub async fn in_memory() -> Self {
        Self::new(Arc::new(InMemory::new())).await
    }

    /// From now on a gateway of an older release writes: its lanes have no keys of disks.
    pub async fn grow_older(&mut self) {
        self.older = true;
        self.turn().await;
    }

    /// From now on a gateway of this release writes.
    pub async fn grow_up(&mut self) {
        self.older = false;
        self.turn().await;
    }

    /// With what messages of a disk are sealed in the present lane.
    pub fn message_key(&self, disk: &DiskId) -> MessageKey {
        if self.older { self.lane.key().clone().into() } else { self.lane.keys().of_messages(disk).unwrap().into() }
    }

    pub async fn put_route(&self, disk: &DiskId) {
        let lane = self.lane.id();
        let put = match self.older {
            true => self.vault.create_route(disk, lane).await,
            false => self.vault.create_keyed_route(disk, lane, self.lane.keys().sealed(disk).unwrap()).await,
        };
        put.unwrap();
    }

    /// Describes the disks, and vaults all their records: messages of `step` records, `per_batch` messages per batch.
    pub async fn fill(&mut self, disks: &[&ModelDisk], step: u64, per_batch: usize) {
        let mut messages = Vec::new();
        for disk in disks {
            let object = DiskObject {
                disk: disk.id.clone(),
                size_bytes: disk.disk_bytes,
                agent: "a1".into(),
                created_micros: Micros(1),
            };
            self.vault.create_disk(&object).await.unwrap();
            for epoch in &disk.epochs {
                self.vault.create_epoch(epoch).await.unwrap();
            }
            messages.extend(disk.rows(step).into_iter().map(|row| (*disk, row.message)));
        }
        // Batches mix disks, as they do in life.
        messages.sort_by_key(|(disk, message)| (message.epoch, message.first, disk.id.clone()));
        for batch in messages.chunks(per_batch) {
            self.put_batch(batch).await;
        }
    }

    pub async fn put_batch(&mut self, messages: &[(&ModelDisk, MessageMeta)]) -> Path {
        self.put_batch_confirmed(messages, self.next_batch - 1).await
    }

    pub async fn put_batch_confirmed(&mut self, messages: &[(&ModelDisk, MessageMeta)], through: u64) -> Path {
        let path = names::batch(self.lane.id(), self.next_batch);
        let header = BatchHeader { vault: self.vault.id(), lane: self.lane.id(), n: self.next_batch };
        let mut builder = BatchBuilder::new(header);
        let mut scratch = message::Scratch::default();
        for (disk, meta) in messages {
            let records = &disk.records[&meta.epoch][meta.first.0 as usize - 1..meta.last.0 as usize];
            let plain: Vec<u8> = records.iter().flat_map(ModelRecord::bytes).collect();
            let context = MessageContext {
                vault: self.vault.id(),
                object: path.as_ref(),
                disk: &disk.id,
                epoch: meta.epoch,
                first: meta.first,
                last: meta.last,
                codec: Codec::Raw,
                plain_bytes: plain.len() as u32,
            };
            let key = self.message_key(&disk.id);
            let (info, sealed) = message::seal(&key, &context, &plain, &mut scratch, BytesMut::with_capacity).unwrap();
            let meta = MessageMeta { codec: info.codec, plain_bytes: plain.len() as u32, ..meta.clone() };
            builder.push(&disk.id, meta, sealed.freeze());
            self.put_route(&disk.id).await;
        }
        let batch = builder.finish(self.lane.catalog_key(), path.as_ref(), through).unwrap();
        self.batches.push((self.next_batch, batch.body.content_length() as u64, batch.sealed_index));
        create_only(self.vault.store(), &path, batch.body, Duration::from_secs(5)).await.unwrap();
        self.next_batch += 1;
        path
    }

    /// Writes lane index 1 over the batches from `first` to `last`.
    pub async fn put_lane_index(&self, first: u64, last: u64) {
        let mut builder = LaneIndexBuilder::new(self.vault.id(), self.lane.id(), first);
        for (n, total_bytes, index) in &self.batches {
            if (first..=last).contains(n) {
                assert!(builder.push(*n, *total_bytes, index.clone()));
            }
        }
        let path = names::lane_index(self.lane.id(), 1);
        create_only(self.vault.store(), &path, builder.finish().into(), Duration::from_secs(5)).await.unwrap();
    }

    /// Goes on in a lane of its own.
    pub async fn turn(&mut self) {
        self.turn_by(&SystemClock::new()).await;
    }

    /// The same by a clock of one's own.
    pub async fn turn_by(&mut self, clock: &dyn Clock) {
        self.lane = Lane::open(&self.vault, "g1", clock).await.unwrap();
        if self.older {
            let path = names::lane(self.lane.id());
            let registered: LaneObject = self.vault.get_object(&path).await.unwrap().unwrap();
            self.vault.store().delete(&path).await.unwrap();
            self.vault.put_object(&path, &LaneObject { disk_keys: false, ..registered }).await.unwrap();
        }
        self.next_batch = 1;
        self.batches.clear();
    }

    pub async fn end(&self) {
        self.lane.end(&self.vault, self.next_batch - 1).await.unwrap();
    }

    /// Changes an object behind the vault's back.
    pub async fn tamper(&self, path: &Path, change: impl FnOnce(Vec<u8>) -> Option<Vec<u8>>) {
        let store = self.vault.store().inner();
        let bytes = store.get(path).await.unwrap().bytes().await.unwrap();
        store.delete(path).await.unwrap();
        if let Some(bytes) = change(bytes.to_vec()) {
            store.put(path, bytes.into()).await.unwrap();
        }
    }

    /// Everything that a reader needs for one disk.
    pub async fn open(&self, disk: &DiskId) -> (Source, Arc<History>) {
        self.open_by(disk, &Want::disk(disk)).await
    }

    /// The same, read in a given way.
    pub async fn open_by(&self, disk: &DiskId, want: &Want) -> (Source, Arc<History>) {
        let catalog = source::load(&self.vault, want).await.unwrap();
        let history = source::history(&catalog, disk, &self.vault.epochs(disk).await.unwrap());
        let (source, damage) = Source::open(&self.vault, &self.identity, &catalog).unwrap();
        assert!(damage.is_empty());
        (source, Arc::new(history))
    }

    /// The image at a point by what the vault gives; none if something is missing.
    pub async fn image(&self, disk: &ModelDisk, point: PointId) -> Option<Vec<u8>> {
        let (source, history) = self.open(&disk.id).await;
        let plan = Plan::build(&history, point)?;
        let mut image = vec![0; plan.disk_bytes as usize];
        let mut scratch = Scratch::default();
        for read in &plan.reads {
            let path = source.path(read.object);
            let range = read.offset_bytes..read.offset_bytes + read.length_bytes;
            let bytes = self.vault.store().get_range(path, range).await.ok()?;
            for message in &read.messages {
                let meta = &history.rows[message.row].message;
                let start = (meta.offset_bytes - read.offset_bytes) as usize;
                source.make_ready(read.object, &disk.id, meta).await.ok()?;
                let sealed = source.sealed(read.object, &disk.id, meta);
                let place = MessagePlace {
                    vault: self.vault.id(),
                    object: &sealed.object,
                    key: &sealed.key.unwrap(),
                    disk: &disk.id,
                    disk_bytes: plan.disk_bytes,
                };
                let opened = scratch.open(&place, meta, &bytes[start..start + meta.stored_bytes as usize]).unwrap();
                for owned in &message.owned {
                    let data = opened.extent(owned.seq, owned.extent).unwrap();
                    let skip = owned.skip_bytes as usize;
                    let at = owned.offset_bytes as usize;
                    let length = owned.length_bytes as usize;
                    image[at..at + length].copy_from_slice(&data[skip..skip + length]);
                }
            }
        }
        Some(image)
    }
}
