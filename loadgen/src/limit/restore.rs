//! The primitives that a restore is made of, each alone, with the messages of the very disk that is restored.
//!
//! ```text
//!  read ─► decrypt ─►             of what is stored
//!                    unpack ─► write + sync     of what the disk holds
//! ```
//!
//! Left out: the digest of each record and the chain, which no copy has, and everything that a restore does once.

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use tidegate::keys::Identity;
use tidegate::pipeline::codec::{Codec, Packer, Packing, unpack};
use tidegate::restore::history::History;
use tidegate::restore::open::{MessagePlace, Scratch};
use tidegate::restore::plan::{Plan, READ_BYTES_MAX, RangedRead};
use tidegate::restore::points;
use tidegate::restore::source::{self, Source};
use tidegate::types::DiskId;
use tidegate::vault::Vault;
use tidegate::vault::reader::Want;
use tidegate::vault::url::open_store;
use tokio::runtime::Runtime;

use super::{LimitError, Primitive, Watch, Work};

/// Most of the disk's bytes that are held to measure with, from all parts of it.
const SAMPLE_BYTES: u64 = 256 << 20;
/// Written between two syncs, as by a restore.
const SYNC_EVERY_BYTES: u64 = 256 << 20;

/// The disk that is restored.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// URL of the vault.
    pub(crate) vault: String,
    /// File of the recovery identity.
    pub(crate) identity: PathBuf,
    /// The disk; its newest point counts.
    pub(crate) disk: DiskId,
    /// Folder on the disk that is written to.
    pub(crate) folder: PathBuf,
}

/// Each primitive, per byte that the disk holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RestoreLimits {
    /// Read, decrypt, unpack, write.
    pub(crate) primitives: [Primitive; 4],
}

impl RestoreLimits {
    /// Processor time of all of them per GiB that the disk holds.
    pub(crate) fn sum(&self) -> f64 {
        self.primitives.iter().map(Primitive::of_payload).sum()
    }
}

/// A disk in its vault.
struct Opened {
    disk: DiskId,
    source: Source,
    history: History,
    plan: Plan,
}

/// Contents of the disk, message by message.
struct Sample {
    messages: Vec<Vec<u8>>,
    bytes: u64,
}

/// Measures all of them, one after the other. Blocks.
///
/// # Errors
/// [`LimitError`] names the primitive.
pub(crate) fn measure(place: &Place) -> Result<RestoreLimits, LimitError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(LimitError::of("reading"))?;
    let opened = runtime.block_on(open(place)).map_err(LimitError::of("reading"))?;
    let stored_bytes: u64 = messages(&opened).map(|(_, stored_bytes)| stored_bytes).sum();
    let data_bytes = opened.plan.data_bytes().max(1);
    let of_data = |bytes: u64| bytes as f64 / data_bytes as f64;
    let read = read(&runtime, &opened).map_err(LimitError::of("reading"))?;
    let sample = runtime.block_on(sample(&opened)).map_err(LimitError::of("reading"))?;
    let sealed_bytes = (stored_bytes / messages(&opened).count().max(1) as u64) as usize;
    let decrypt = decrypt(sealed_bytes, SAMPLE_BYTES).map_err(LimitError::of("decrypting"))?;
    let unpacked = unpacked(&sample).map_err(LimitError::of("unpacking"))?;
    let written = written(&sample, place, data_bytes).map_err(LimitError::of("writing"))?;
    Ok(RestoreLimits {
        primitives: [
            read.named("read", of_data(opened.plan.read_bytes())),
            decrypt.named("AES-256-GCM", of_data(stored_bytes)),
            unpacked.named("unpack", 1.0),
            written.named("write + sync", 1.0),
        ],
    })
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

async fn open(place: &Place) -> Result<Opened, Failed> {
    let identity = Identity::read(&place.identity)?;
    let vault = Vault::open_with_identity(open_store(&place.vault)?, &identity).await?;
    let disk = place.disk.clone();
    let catalog = source::load(&vault, &Want::disk(&disk)).await?;
    let history = source::history(&catalog, &disk, &vault.epochs(&disk).await?);
    let point = points::list(&history).pop().ok_or("the disk has no point")?;
    let plan = Plan::build(&history, point.id).ok_or("the point is not there")?;
    let (source, _) = Source::open(&vault, &identity, &catalog)?;
    Ok(Opened { disk, source, history, plan })
}

/// The rows of the messages that the plan reads, and the bytes of each as it is stored.
fn messages(opened: &Opened) -> impl Iterator<Item = (usize, u64)> {
    let rows = opened.plan.reads.iter().flat_map(|read| &read.messages).map(|message| message.row);
    rows.map(|row| (row, u64::from(opened.history.rows[row].message.stored_bytes)))
}

fn range(read: &RangedRead) -> std::ops::Range<u64> {
    read.offset_bytes..read.offset_bytes + read.length_bytes
}

/// All ranges once: out of a directory into one buffer, out of a blob store by the client that a restore has.
fn read(runtime: &Runtime, opened: &Opened) -> Result<Work, Failed> {
    let (store, source) = (opened.source.vault.store(), &opened.source);
    let mut buffer = vec![1_u8; READ_BYTES_MAX as usize];
    let watch = Watch::start();
    for read in &opened.plan.reads {
        let path = source.path(read.object);
        if let Some(directory) = store.directory() {
            let length = read.length_bytes as usize;
            if buffer.len() < length {
                buffer.resize(length, 0);
            }
            File::open(directory.join(path.as_ref()))?.read_exact_at(&mut buffer[..length], read.offset_bytes)?;
            black_box(&mut buffer);
        } else {
            black_box(runtime.block_on(store.get_range(path, range(read)))?);
        }
    }
    Ok(watch.stop(opened.plan.read_bytes()))
}

/// What the messages of some reads, evenly from all, say of the disk.
async fn sample(opened: &Opened) -> Result<Sample, Failed> {
    let Opened { disk, source, history, plan } = opened;
    let stride = plan.data_bytes().div_ceil(SAMPLE_BYTES).max(1) as usize;
    let (mut scratch, mut sample) = (Scratch::default(), Sample { messages: Vec::new(), bytes: 0 });
    for read in plan.reads.iter().step_by(stride) {
        let bytes = source.vault.store().get_range(source.path(read.object), range(read)).await?;
        for message in &read.messages {
            let meta = &history.rows[message.row].message;
            let start = (meta.offset_bytes - read.offset_bytes) as usize;
            source.make_ready(read.object, disk, meta).await?;
            let sealed_as = source.sealed(read.object, disk, meta);
            let place = MessagePlace {
                vault: source.vault.id(),
                object: &sealed_as.object,
                key: &sealed_as.key.map_err(|what| what.to_string())?,
                disk,
                disk_bytes: plan.disk_bytes,
            };
            let sealed = &bytes[start..start + meta.stored_bytes as usize];
            let opened = scratch.open(&place, meta, sealed)?;
            let mut plain = Vec::new();
            for owned in &message.owned {
                let (from, data) = (owned.skip_bytes as usize, opened.extent(owned.seq, owned.extent));
                plain.extend_from_slice(&data.ok_or("a range is not there")?[from..from + owned.length_bytes as usize]);
            }
            sample.bytes += plain.len() as u64;
            sample.messages.push(plain);
        }
    }
    Ok(sample)
}

/// The cipher takes as long in either direction, and sealing needs no sealed bytes that are whole.
fn decrypt(message_bytes: usize, bytes_max: u64) -> Result<Work, Failed> {
    let failed = |_| "AES-256-GCM refused";
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[7; 32]).map_err(failed)?);
    let mut message = vec![0x5a; message_bytes.max(1)];
    let (watch, mut bytes) = (Watch::start(), 0);
    while bytes < bytes_max {
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        let _tag = black_box(key.seal_in_place_separate_tag(nonce, Aad::empty(), &mut message).map_err(failed)?);
        bytes += message.len() as u64;
    }
    Ok(watch.stop(bytes))
}

fn unpacked(sample: &Sample) -> Result<Work, Failed> {
    let (mut packer, mut out, mut packed) = (Packer::default(), Vec::new(), Vec::with_capacity(sample.messages.len()));
    for message in &sample.messages {
        match packer.pack(Packing::Lz4, message, 0, &mut out) {
            Codec::Raw => packed.push((Codec::Raw, message.clone())),
            codec => packed.push((codec, out.clone())),
        }
    }
    let watch = Watch::start();
    for ((codec, bytes), message) in packed.iter().zip(&sample.messages) {
        unpack(*codec, bytes, message.len(), &mut out)?;
        black_box(&mut out);
    }
    Ok(watch.stop(sample.bytes))
}

/// As much as the disk holds, into a new file.
fn written(sample: &Sample, place: &Place, data_bytes: u64) -> Result<Work, Failed> {
    let path = place.folder.join("limit-write");
    let file = File::create_new(&path)?;
    file.set_len(data_bytes)?;
    let (watch, mut at, mut synced) = (Watch::start(), 0, 0);
    for message in sample.messages.iter().cycle() {
        let length = (data_bytes - at).min(message.len() as u64);
        file.write_all_at(&message[..length as usize], at)?;
        at += length;
        if at - synced >= SYNC_EVERY_BYTES || at == data_bytes {
            file.sync_data()?;
            synced = at;
        }
        if at == data_bytes {
            break;
        }
    }
    let work = watch.stop(data_bytes);
    std::fs::remove_file(&path)?;
    Ok(work)
}
