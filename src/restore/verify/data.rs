//! Level data: opening messages, all or a sample, and the headers of their batches.

use std::collections::{BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::stream::{self, StreamExt};
use parking_lot::Mutex;

use super::sample::{self, Draw, Quota, Stretch};
use super::signed::Book;
use super::{Report, Sampled, VerifyError, VerifyOptions};
use crate::fault::{self, Classify, Fault};
use crate::keys;
use crate::restore::damage::Damage;
use crate::restore::fetch::{self, FetchError, Known, Sink};
use crate::restore::history::History;
use crate::restore::open::Opened;
use crate::restore::plan::{self, MessageUse, RangedRead};
use crate::restore::progress::Progress;
use crate::restore::source::Source;
use crate::types::{DiskId, Id128};
use crate::vault::batch::{BatchHeader, HEADER_BYTES};
use crate::vault::index::MessageMeta;
use crate::vault::reader::Catalog;

/// Headers in flight.
const READS: usize = 16;
/// Damage kept by name.
const DAMAGE_KEPT_MAX: usize = 10_000;

/// One message to open.
struct Wanted {
    /// Its place on the ring of samples.
    place: u64,
    disk: DiskId,
    disk_bytes: u64,
    object: u32,
    meta: MessageMeta,
}

struct Checker {
    source: Source,
    wanted: Vec<Wanted>,
    checked: AtomicU64,
    book: Arc<Book>,
    damage: Mutex<Vec<Damage>>,
    /// Places of what is damaged.
    places: Mutex<BTreeSet<u64>>,
    progress: Arc<Progress>,
}

/// What a run opens.
pub(super) struct Selection {
    wanted: Vec<Wanted>,
    stretch: Stretch,
    /// Whether it is all that there is.
    whole: bool,
}

impl Selection {
    /// Lane and number of the batches that it looks into; none if that is all of them.
    pub(super) fn batches(&self, catalog: &Catalog) -> Option<BTreeSet<(Id128, u64)>> {
        let batch = |one: &Wanted| &catalog.batches[one.object as usize].index;
        (!self.whole).then(|| self.wanted.iter().map(batch).map(|index| (index.lane, index.n)).collect())
    }
}

/// Chooses among the messages of `histories`.
pub(super) fn select(
    catalog: &Catalog,
    histories: Vec<(DiskId, History)>,
    (options, book): (&VerifyOptions, &Book),
    report: &mut Report,
) -> Result<Selection, keys::RandomError> {
    let draw = match &options.draw {
        Some(draw) => draw.clone(),
        None => Draw::new(keys::random()?),
    };
    let mut wanted = Vec::new();
    for (disk, history) in histories {
        let sizes: HashMap<_, _> =
            history.spans.iter().map(|span| (span.segment.epoch, span.segment.size_bytes)).collect();
        for row in history.rows {
            // What is missing as an object was reported, and would only be reported again.
            if catalog.batches[row.object as usize].present {
                // Records that were cut off at a fork have no size that binds them.
                let disk_bytes = sizes.get(&row.message.epoch).copied().unwrap_or(u64::MAX);
                let place = draw.place(&disk, &row.message);
                wanted.push(Wanted { place, disk: disk.clone(), disk_bytes, object: row.object, meta: row.message });
            }
        }
    }
    let stretch = sample::stretch(places(&wanted), options.sample, draw.from);
    wanted.retain(|one| {
        let drawn = stretch.has(one.place) || draw.again.contains(&one.place);
        if !drawn {
            book.not_read(&one.disk);
        }
        drawn
    });
    for one in &wanted {
        let disk = report.disks.iter_mut().find(|disk| disk.disk == one.disk);
        disk.into_iter().for_each(|disk| disk.messages_checked += 1);
    }
    wanted.sort_unstable_by_key(|one| (one.object, one.meta.offset_bytes));
    Ok(Selection { wanted, stretch, whole: options.sample == Quota::All })
}

/// Opens what was chosen.
pub(super) async fn check(
    source: Source,
    catalog: &Catalog,
    selection: Selection,
    options: &VerifyOptions,
    book: &Arc<Book>,
    (progress, report): (Arc<Progress>, &mut Report),
) -> Result<Looked, VerifyError> {
    let Selection { wanted, stretch, whole } = selection;
    let reads = reads(&wanted);
    progress.start(reads.iter().map(|read| read.length_bytes).sum());
    let looked_at: Option<BTreeSet<u32>> = (!whole).then(|| wanted.iter().map(|one| one.object).collect());
    check_headers(&source, catalog, looked_at.as_ref(), report).await?;
    let (vault, limits) = (source.vault.clone(), options.limits);
    let checker = Arc::new(Checker {
        source,
        wanted,
        checked: AtomicU64::new(0),
        book: Arc::clone(book),
        damage: Mutex::default(),
        places: Mutex::default(),
        progress,
    });
    fetch::run(vault.store(), vault.id(), reads, &checker, &limits).await?;
    report.messages_checked = checker.checked.load(Ordering::Relaxed);
    let damage = std::mem::take(&mut *checker.damage.lock());
    damage.into_iter().for_each(|damage| report.damaged(damage));
    Ok(Looked { checker, stretch, whole })
}

/// What was opened.
pub(super) struct Looked {
    checker: Arc<Checker>,
    stretch: Stretch,
    whole: bool,
}

impl Looked {
    /// Says which share that was, and what the next run must open again: what is damaged, and what stands in a batch whose header or
    /// index is, or in which a signature is refused.
    pub(super) fn tell(&self, options: &VerifyOptions, report: &mut Report) {
        if self.whole && options.draw.is_none() {
            return;
        }
        let objects: BTreeSet<&str> = report.damage.iter().filter_map(|damage| damage.object.as_deref()).collect();
        let in_damaged = |one: &&Wanted| objects.contains(self.checker.source.path(one.object).as_ref());
        let mut damaged = std::mem::take(&mut *self.checker.places.lock());
        // Only where the message itself is not what is damaged: a large batch would be opened for one message of it.
        let known: BTreeSet<u32> =
            self.checker.wanted.iter().filter(|one| damaged.contains(&one.place)).map(|one| one.object).collect();
        let others = self.checker.wanted.iter().filter(in_damaged).filter(|one| !known.contains(&one.object));
        damaged.extend(others.map(|one| one.place));
        let Stretch { seen_messages, messages, end: next, .. } = self.stretch;
        let runs_left = self.stretch.runs_left();
        report.sampled = Some(Sampled { seen_messages, messages, runs_left, next, damaged });
        if !self.whole {
            let what = "a sample checks the signatures of what it opens; that none is missing only a run over everything proves";
            report.notes.push(what.to_owned());
        }
    }
}

fn places(wanted: &[Wanted]) -> Vec<(u64, u32)> {
    wanted.iter().map(|one| (one.place, one.meta.stored_bytes)).collect()
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

/// The first bytes of each batch, or of those that a sample looks into: no restore reads them, but they are part of what was
/// written.
async fn check_headers(
    source: &Source,
    catalog: &Catalog,
    looked_at: Option<&BTreeSet<u32>>,
    report: &mut Report,
) -> Result<(), VerifyError> {
    let wanted = |object: u32| looked_at.is_none_or(|objects| objects.contains(&object));
    let batches = (0..).zip(&catalog.batches).filter(|(object, _)| wanted(*object)).map(|(_, batch)| batch);
    let present: Vec<_> = batches.filter(|batch| batch.present && batch.size_bytes >= HEADER_BYTES as u64).collect();
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
    fn source(&self) -> &Source {
        &self.source
    }

    fn anywhere(&self) -> bool {
        false
    }

    fn message(&self, row: usize) -> Known<'_> {
        let one = &self.wanted[row];
        Known { disk: &one.disk, disk_bytes: one.disk_bytes, meta: &one.meta }
    }

    fn opened(&self, message: &MessageUse, opened: &Opened<'_>) -> ControlFlow<()> {
        let one = &self.wanted[message.row];
        self.book.take(&one.disk, self.source.path(one.object), opened);
        self.checked.fetch_add(1, Ordering::Relaxed);
        self.progress.add(u64::from(opened.meta().stored_bytes));
        ControlFlow::Continue(())
    }

    fn damaged(&self, row: usize, damage: Damage) -> ControlFlow<()> {
        let one = &self.wanted[row];
        self.progress.add(u64::from(one.meta.stored_bytes));
        // What it signed nobody knows: what follows is no proof that something was left unsigned.
        self.book.not_read(&one.disk);
        self.places.lock().insert(one.place);
        let mut all = self.damage.lock();
        if all.len() < DAMAGE_KEPT_MAX {
            all.push(damage);
        }
        ControlFlow::Continue(())
    }
}
