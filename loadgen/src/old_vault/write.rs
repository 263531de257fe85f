//! Writing an old vault.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use object_store::PutPayload;
use object_store::path::Path;
use tidegate::flow::{Clock as _, SystemClock};
use tidegate::keys::Identity;
use tidegate::pipeline::codec::Codec;
use tidegate::pipeline::message::{self, MessageContext};
use tidegate::types::{
    BarrierKind, Chain, DiskId, Epoch, Extent, ExtentKind, Id128, Micros, RecordHead, RecordKind, Seq, encode_extents,
    record_digest,
};
use tidegate::vault::batch::{BatchBuilder, BatchHeader};
use tidegate::vault::index::lane::LaneIndexBuilder;
use tidegate::vault::index::{MessageMeta, RecordMeta};
use tidegate::vault::lane::Lane;
use tidegate::vault::objects::{DiskObject, EpochObject};
use tidegate::vault::store::VaultStore;
use tidegate::vault::{InitOptions, Vault, names};

use super::store::OldStore;
use super::{DAY_SECONDS, Failed, Shape};

/// Bytes of one write.
const WRITE_BYTES: u32 = 512;
/// Writes of a disk before it begins again at its first byte: its contents are its last so many messages.
const SLOTS: u64 = 256;
/// Size of each disk.
const DISK_BYTES: u64 = SLOTS * WRITE_BYTES as u64;
/// What stands for a sealed message of which only the size counts.
static FILLER: [u8; 700] = [0x5a; 700];
/// Time for one object.
const PUT_LIMIT: Duration = Duration::from_secs(600);

/// An old vault.
#[derive(Debug)]
pub struct OldVault {
    /// Where it is.
    pub store: OldStore,
    /// Opens it.
    pub identity: Identity,
    /// Its lanes, the oldest first.
    pub lanes: Vec<Id128>,
    /// Bytes of its lane indexes.
    pub index_bytes: u64,
    /// Messages that they name.
    pub messages: u64,
    shape: Shape,
    began: Micros,
}

/// Messages of the disk that is recovered, by number: their records as they are sealed, and the chain after each.
struct Told {
    next: u64,
    chain: Chain,
}

impl OldVault {
    /// Writes one into an empty store, lane by lane. `tell` is called after each.
    ///
    /// # Errors
    /// A failed request.
    pub async fn write(store: OldStore, shape: Shape, tell: impl Fn(u32)) -> Result<Self, Failed> {
        let identity = Identity::generate();
        let now = SystemClock::new().wall();
        let began = Micros(now.0.saturating_sub(u64::from(shape.days) * DAY_SECONDS * 1_000_000));
        let options = InitOptions { recipients: vec![identity.recipient()], now: began };
        let (vault, _) = Vault::init(place(&store), &options).await?;
        let mut old = Self { store, identity, lanes: Vec::new(), index_bytes: 0, messages: 0, shape, began };
        for disk in 0..if shape.describe_all { shape.disks } else { 1 } {
            old.describe(&vault, disk).await?;
        }
        let mut told = Told { next: 0, chain: Chain::GENESIS };
        for day in 0..shape.days {
            old.day(&vault, day, &mut told).await?;
            tell(day);
        }
        Ok(old)
    }

    async fn describe(&self, vault: &Vault, disk: u32) -> Result<(), Failed> {
        let (id, agent, created_micros) = (self.shape.disk(disk), "agent".to_owned(), self.began);
        vault
            .create_disk(&DiskObject { disk: id.clone(), size_bytes: DISK_BYTES, agent: agent.clone(), created_micros })
            .await?;
        let epoch = EpochObject {
            disk: id,
            epoch: Epoch(1),
            previous: None,
            fork_seq: Seq::NONE,
            chain_at_fork: Chain::GENESIS,
            size_bytes: DISK_BYTES,
            agent,
            nonce: Id128([1; 16]),
            reason: "first".into(),
            gateway: "g1".into(),
            created_micros,
        };
        vault.create_epoch(&epoch).await?;
        Ok(())
    }

    /// One lane: its batches' indexes in lane indexes, its end, its routes.
    async fn day(&mut self, vault: &Vault, day: u32, told: &mut Told) -> Result<(), Failed> {
        let shape = self.shape;
        let lane = Lane::open(vault, "g1", &SystemClock::new()).await?;
        for disk in 0..if shape.describe_all { shape.disks } else { 1 } {
            let id = shape.disk(disk);
            vault.create_keyed_route(&id, lane.id(), lane.keys().sealed(&id)?).await?;
        }
        let count = shape.batches_of_day();
        let first = u64::from(day) * count;
        let mut sizes = Vec::with_capacity(count as usize);
        let mut builder = LaneIndexBuilder::new(vault.id(), lane.id(), 1);
        let mut k = 1;
        for n in 1..=count {
            let batch = self.batch(vault, &lane, first + n - 1, n, told)?;
            let size = batch.body.content_length();
            sizes.push(u32::try_from(size)?);
            if batch.is_needed {
                put(vault, &names::batch(lane.id(), n), batch.body).await?;
            }
            self.messages += batch.messages;
            if !builder.push(n, size as u64, batch.index) {
                return Err("a batch out of order".into());
            }
            if builder.is_full() || n == count {
                let full = std::mem::replace(&mut builder, LaneIndexBuilder::new(vault.id(), lane.id(), n + 1));
                let object = full.finish();
                self.index_bytes += object.len() as u64;
                put(vault, &names::lane_index(lane.id(), k), object.into()).await?;
                k += 1;
            }
            tokio::task::yield_now().await;
        }
        lane.end(vault, count).await?;
        self.store.list_batches(lane.id(), sizes).await?;
        self.lanes.push(lane.id());
        Ok(())
    }

    /// Batch `n` of a lane, which is batch `at` of the vault.
    fn batch(&self, vault: &Vault, lane: &Lane, at: u64, n: u64, told: &mut Told) -> Result<Made, Failed> {
        let shape = self.shape;
        let object = names::batch_name(lane.id(), n);
        let mut builder = BatchBuilder::new(BatchHeader { vault: vault.id(), lane: lane.id(), n });
        let mut is_needed = false;
        let first = (at % u64::from(shape.every)) as u32;
        for disk in (first..shape.disks).step_by(shape.every as usize) {
            let number = shape.messages_before(disk, at);
            let id = shape.disk(disk);
            if disk == 0 {
                let all = shape.messages_before(0, u64::from(shape.days) * shape.batches_of_day());
                is_needed = number + SLOTS >= all;
                let (meta, plain) = self.true_message(at, told)?;
                let context = MessageContext {
                    vault: vault.id(),
                    object: &object,
                    disk: &id,
                    epoch: Epoch(1),
                    first: meta.first,
                    last: meta.last,
                    codec: Codec::Raw,
                    plain_bytes: plain.len() as u32,
                };
                let mut scratch = message::Scratch::default();
                let room = BytesMut::with_capacity;
                let (info, sealed) =
                    message::seal(&lane.keys().of_messages(&id)?.into(), &context, &plain, &mut scratch, room)?;
                builder.push(&id, MessageMeta { codec: info.codec, ..meta }, sealed.freeze());
            } else {
                builder.push(&id, self.likely_message(disk, number, at), Bytes::from_static(&FILLER));
            }
        }
        let messages = u64::from(builder.messages());
        let key = vault.need_key()?;
        let made = builder.finish(key, &object, n - 1)?;
        Ok(Made { body: made.body, index: made.sealed_index, is_needed, messages })
    }

    fn label(&self, at: u64) -> Micros {
        Micros(self.began.0 + at * u64::from(self.shape.batch_seconds) * 1_000_000)
    }

    /// The write and the barrier of message `number`, without digests and chains.
    fn heads(&self, number: u64, at: u64) -> [(RecordHead, Vec<Extent>); 2] {
        let offset_bytes = number % SLOTS * u64::from(WRITE_BYTES);
        let extent = Extent { offset_bytes, length_bytes: WRITE_BYTES, kind: ExtentKind::Data };
        // A point is offered only after the first sync has ended.
        let barrier = if number == 0 { BarrierKind::SyncEnd } else { BarrierKind::Crash };
        let parts = [(RecordKind::Write, vec![extent]), (RecordKind::Barrier(barrier), Vec::new())];
        let mut seq = number * 2;
        parts.map(|(kind, extents)| {
            seq += 1;
            let head = RecordHead {
                kind,
                extent_count: extents.len() as u32,
                payload_bytes: extents.iter().map(|extent| extent.length_bytes).sum(),
                epoch: Epoch(1),
                seq: Seq(seq),
                label: self.label(at),
                clock_uncertainty_micros: 700,
                group: Id128::NONE,
                digest: record_digest(&[], [&b""[..]]),
                chain: Chain::GENESIS,
            };
            (head, extents)
        })
    }

    fn meta(&self, number: u64, at: u64, chains: [Chain; 2], records: Vec<RecordMeta>) -> MessageMeta {
        MessageMeta {
            epoch: Epoch(1),
            first: Seq(number * 2 + 1),
            last: Seq(number * 2 + 2),
            offset_bytes: 0,
            stored_bytes: 0,
            plain_bytes: 1024,
            codec: Codec::Raw,
            chain_before: Some(chains[0]),
            chain_last: chains[1],
            received_first: self.label(at),
            received_last: self.label(at),
            origin: None,
            records,
        }
    }

    /// The next message of the disk that is recovered, as its agent makes it.
    fn true_message(&self, at: u64, told: &mut Told) -> Result<(MessageMeta, Vec<u8>), Failed> {
        let (number, before) = (told.next, told.chain);
        let payload = contents(number);
        let (mut plain, mut records) = (Vec::new(), Vec::new());
        for (head, extents) in self.heads(number, at) {
            let payload: &[u8] = if extents.is_empty() { &[] } else { &payload };
            let mut table = Vec::new();
            encode_extents(&extents, &mut table);
            let head = RecordHead { digest: record_digest(&table, [payload]), ..head }.sealed_after(told.chain);
            told.chain = head.chain;
            plain.extend_from_slice(&head.encode());
            plain.extend_from_slice(&table);
            plain.extend_from_slice(payload);
            records.push(RecordMeta::new(&head, extents, None));
        }
        told.next += 1;
        let meta = MessageMeta {
            plain_bytes: u32::try_from(plain.len())?,
            ..self.meta(number, at, [before, told.chain], records)
        };
        Ok((meta, plain))
    }

    /// Rows of another disk: the same sizes, and chains that follow each other.
    fn likely_message(&self, disk: u32, number: u64, at: u64) -> MessageMeta {
        let chain = |number: u64| match number {
            0 => Chain::GENESIS,
            _ => Chain(record_digest(&disk.to_le_bytes(), [&number.to_le_bytes()[..]]).0),
        };
        let records = self.heads(number, at).map(|(head, extents)| RecordMeta::new(&head, extents, None));
        self.meta(number, at, [chain(number), chain(number + 1)], records.into())
    }

    /// The first bytes of the disk at its newest point.
    #[must_use]
    pub fn first_bytes(&self) -> Vec<u8> {
        let all = self.shape.messages_before(0, u64::from(self.shape.days) * self.shape.batches_of_day());
        contents((all - 1) / SLOTS * SLOTS)
    }

    /// The disk that is recovered.
    #[must_use]
    pub fn disk(&self) -> DiskId {
        self.shape.disk(0)
    }
}

struct Made {
    body: PutPayload,
    index: tidegate::vault::index::SealedIndex,
    is_needed: bool,
    messages: u64,
}

/// What message `number` writes.
fn contents(number: u64) -> Vec<u8> {
    (0..u64::from(WRITE_BYTES)).map(|at| (number.wrapping_mul(31) + at) as u8 | 1).collect()
}

/// A vault's place in such a store.
#[must_use]
pub fn place(store: &OldStore) -> VaultStore {
    VaultStore::new(Arc::new(store.clone()), "an old vault")
}

async fn put(vault: &Vault, path: &Path, body: PutPayload) -> Result<(), Failed> {
    Ok(vault.store().put_new(path, body, PUT_LIMIT).await?)
}
