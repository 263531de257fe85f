//! Level data: opening messages, all or a sample, and the headers of their batches.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::stream::{self, StreamExt};
use object_store::path::Path;
use parking_lot::Mutex;

use super::{Report, VerifyError, VerifyOptions};
use crate::fault::{self, Classify, Fault};
use crate::keys::{self, LaneKey};
use crate::restore::damage::Damage;
use crate::restore::fetch::{self, FetchError, Known, Sink};
use crate::restore::history::History;
use crate::restore::open::Opened;
use crate::restore::plan::{self, MessageUse, RangedRead};
use crate::restore::progress::Progress;
use crate::restore::source::Source;
use crate::types::DiskId;
use crate::vault::batch::{BatchHeader, HEADER_BYTES};
use crate::vault::index::MessageMeta;
use crate::vault::reader::Catalog;

/// Headers in flight.
const READS: usize = 16;
/// Damage kept by name.
const DAMAGE_KEPT_MAX: usize = 10_000;

/// One message to open.
struct Wanted {
    disk: DiskId,
    disk_bytes: u64,
    object: u32,
    meta: MessageMeta,
}

struct Checker {
    source: Source,
    wanted: Vec<Wanted>,
    checked: AtomicU64,
    damage: Mutex<Vec<Damage>>,
    progress: Arc<Progress>,
}

/// Opens the messages of `histories`.
pub(super) async fn check(
    source: Source,
    catalog: &Catalog,
    histories: Vec<(DiskId, History)>,
    options: &VerifyOptions,
    progress: Arc<Progress>,
    report: &mut Report,
) -> Result<(), VerifyError> {
    let seed = keys::random()?;
    let mut wanted = Vec::new();
    for (disk, history) in histories {
        let sizes: HashMap<_, _> =
            history.spans.iter().map(|span| (span.segment.epoch, span.segment.size_bytes)).collect();
        for row in history.rows {
            // What is missing as an object was reported, and would only be reported again.
            let present = catalog.batches[row.object as usize].present;
            if present && in_sample(seed, &disk, &row.message, options.sample) {
                // Records that were cut off at a fork have no size that binds them.
                let disk_bytes = sizes.get(&row.message.epoch).copied().unwrap_or(u64::MAX);
                wanted.push(Wanted { disk: disk.clone(), disk_bytes, object: row.object, meta: row.message });
            }
        }
    }
    wanted.sort_unstable_by_key(|one| (one.object, one.meta.offset_bytes));
    let reads = reads(&wanted);
    progress.start(reads.iter().map(|read| read.length_bytes).sum());
    check_headers(&source, catalog, report).await?;
    let (vault, limits) = (source.vault.clone(), options.limits);
    let checker = Arc::new(Checker { source, wanted, checked: AtomicU64::new(0), damage: Mutex::default(), progress });
    fetch::run(vault.store(), vault.id(), reads, &checker, &limits).await?;
    report.messages_checked = checker.checked.load(Ordering::Relaxed);
    let damage = std::mem::take(&mut *checker.damage.lock());
    damage.into_iter().for_each(|damage| report.damaged(damage));
    Ok(())
}

/// Draws by the message and a seed of this run, so that many runs cover everything.
fn in_sample(seed: [u8; 32], disk: &DiskId, message: &MessageMeta, share: f64) -> bool {
    if share >= 1.0 {
        return true;
    }
    let mut hasher = blake3::Hasher::new_keyed(&seed);
    hasher.update(disk.as_str().as_bytes());
    hasher.update(&message.epoch.0.to_le_bytes()).update(&message.first.0.to_le_bytes());
    hasher.update(&message.offset_bytes.to_le_bytes());
    let hash = hasher.finalize();
    let mut draw = [0; 8];
    draw.copy_from_slice(&hash.as_bytes()[..8]);
    (u64::from_le_bytes(draw) as f64) < share * u64::MAX as f64
}

/// Joins neighbours into reads; `wanted` is sorted by place.
fn reads(wanted: &[Wanted]) -> Vec<RangedRead> {
    let mut reads: Vec<RangedRead> = Vec::new();
    for (row, one) in wanted.iter().enumerate() {
        let end_bytes = one.meta.offset_bytes + u64::from(one.meta.stored_bytes);
        let message = MessageUse { row, owned: Vec::new() };
        match reads.last_mut() {
            Some(read)
                if read.object == one.object
                    && one.meta.offset_bytes == read.offset_bytes + read.length_bytes
                    && end_bytes - read.offset_bytes <= plan::READ_BYTES_MAX =>
            {
                read.length_bytes = end_bytes - read.offset_bytes;
                read.messages.push(message);
            }
            _ => reads.push(RangedRead {
                object: one.object,
                offset_bytes: one.meta.offset_bytes,
                length_bytes: u64::from(one.meta.stored_bytes),
                messages: vec![message],
            }),
        }
    }
    reads
}

/// The first bytes of each batch: no restore reads them, but they are part of what was written.
async fn check_headers(source: &Source, catalog: &Catalog, report: &mut Report) -> Result<(), VerifyError> {
    let present: Vec<_> =
        catalog.batches.iter().filter(|batch| batch.present && batch.size_bytes >= HEADER_BYTES as u64).collect();
    let read = |batch| async move { (batch, read_header(source, batch).await) };
    let mut reads = stream::iter(present).map(read).buffered(READS);
    while let Some((batch, found)) = reads.next().await {
        let what = match found {
            Ok(header) => {
                let right = BatchHeader { vault: source.vault.id(), lane: batch.index.lane, n: batch.index.n };
                match header {
                    Ok(header) if header == right => continue,
                    Ok(_) => "its header names another batch".to_owned(),
                    Err(error) => fault::chain_text(&error),
                }
            }
            Err(error) if error.is_not_found() => "the object is missing".to_owned(),
            Err(error) if error.fault() == Fault::Corrupt => fault::chain_text(&error),
            Err(error) => return Err(FetchError::from(error).into()),
        };
        report.damaged(Damage::object(batch.object.clone(), what));
    }
    Ok(())
}

async fn read_header(
    source: &Source,
    batch: &crate::vault::reader::CatalogBatch,
) -> Result<Result<BatchHeader, crate::vault::batch::BatchError>, crate::vault::store::GetError> {
    let bytes = source.vault.store().get_range(&batch.object, 0..HEADER_BYTES as u64).await?;
    Ok(BatchHeader::decode(&bytes))
}

impl Sink for Checker {
    fn object(&self, object: u32) -> (&Path, Option<&LaneKey>) {
        (self.source.path(object), self.source.key(object))
    }

    fn message(&self, row: usize) -> Known<'_> {
        let one = &self.wanted[row];
        Known { disk: &one.disk, disk_bytes: one.disk_bytes, meta: &one.meta }
    }

    fn opened(&self, _message: &MessageUse, opened: &Opened<'_>) -> ControlFlow<()> {
        self.checked.fetch_add(1, Ordering::Relaxed);
        self.progress.add(u64::from(opened.meta().stored_bytes));
        ControlFlow::Continue(())
    }

    fn damaged(&self, row: usize, damage: Damage) -> ControlFlow<()> {
        self.progress.add(u64::from(self.wanted[row].meta.stored_bytes));
        let mut all = self.damage.lock();
        if all.len() < DAMAGE_KEPT_MAX {
            all.push(damage);
        }
        ControlFlow::Continue(())
    }
}
