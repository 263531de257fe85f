//! Moving what is needed out of sparse batches, as it is: the bytes are copied into a lane of the keeper's own, whose indexes tell under which
//! name and lane each message was sealed.
//!
//! ```text
//!  sparse batches ─► indexes ─► needed messages, by disk and seq ─► registration ─► routes ─► batches ─► lane indexes ─► end
//!                                                                                          each read back and compared
//! ```
//!
//! Every step only creates, and each may be the last one. Nobody relies on a copy in a lane without an end; and whoever does later, looks first
//! whether it is the same (`proof`). A lane of moved messages is else like any other: it is sealed, thinned and emptied as they are.
//!
//! Within a lane the messages of a disk stand in the order of epoch and seq, as they do in a gateway's.
//!
//! Memory: the rows of [`RECORDS_MAX`] records, and one batch three times over.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use object_store::path::Path;

use super::cover;
use super::judge::{self, Verdict};
use super::marks::Present;
use super::report::{Budget, Report};
use super::sparse::Sparse;
use crate::fault::{self, Classify, Fault};
use crate::flow::{Clock, Drain};
use crate::keys::CatalogKey;
use crate::types::{DiskId, Id128, Micros};
use crate::vault::batch::{self, BatchBuilder, BatchHeader};
use crate::vault::index::lane::{LANE_INDEX_BYTES_MAX, LaneIndexBuilder};
use crate::vault::index::{BATCH_RECORDS_MAX, INDEX_PLAIN_BYTES_MAX, IndexPlace, MessageMeta, Origin};
use crate::vault::lane::Lane;
use crate::vault::objects::{LaneEndObject, LaneSealObject, ObjectError};
use crate::vault::{Found, Vault, VaultError, names};

/// Rows that one move holds: twice what one index may have, some 100 MiB. The next run moves the rest.
const RECORDS_MAX: usize = 2 * BATCH_RECORDS_MAX;
/// Plaintext of the messages of one batch: rows are never larger, and the names of where they were sealed come on top.
const PLAIN_BYTES_MAX: u64 = INDEX_PLAIN_BYTES_MAX as u64 / 2;
/// Messages that are read at the same time.
const READS_AT_ONCE: usize = 8;
/// A move that takes longer gets no end: well before anybody seals a lane without one, which its last batches could miss.
pub(super) const MOVE_TIME_MAX: Duration = Duration::from_secs(30 * 60);
/// Requests of a lane beside those of its messages, batches and routes: registration, lane index and end, each with a look, and one at the seal.
const LANE_REQUESTS: u64 = 8;

/// A message on its way.
struct Moving {
    disk: DiskId,
    /// As it is to stand in the new batch.
    message: MessageMeta,
    from: Path,
    at_bytes: u64,
    /// What was read for it.
    source: (Id128, u64),
}

/// A move under way.
pub(super) struct Mover<'a> {
    pub(super) vault: &'a Vault,
    pub(super) verdict: &'a Verdict,
    pub(super) budget: &'a mut Budget,
    pub(super) report: &'a mut Report,
    pub(super) clock: &'a dyn Clock,
    pub(super) stop: &'a Drain,
    /// The store's time, when the move begins.
    pub(super) now: Micros,
    /// Sealed bytes of a batch, before it is closed.
    pub(super) batch_bytes: usize,
}

impl Mover<'_> {
    /// Moves what is needed of these batches, as far as the budget goes.
    pub(super) async fn run(mut self, sparse: Vec<Sparse>) -> Result<(), VaultError> {
        let began = self.clock.boot();
        let mut messages = self.choose(sparse).await?;
        if messages.is_empty() || self.stop.started() {
            return Ok(());
        }
        messages.sort_by(|a, b| {
            let place = |one: &Moving| (one.message.epoch, one.message.first);
            a.disk.cmp(&b.disk).then(place(a).cmp(&place(b)))
        });
        let emptied: BTreeSet<(Id128, u64)> = messages.iter().map(|one| one.source).collect();
        let (lane, key) = Lane::register_moved(self.vault, self.now).await?;
        // Before the batches: a lane that holds records of a disk must be found from it.
        let disks: BTreeSet<&DiskId> = messages.iter().map(|one| &one.disk).collect();
        for disk in disks {
            self.vault.create_route(disk, lane).await?;
        }
        let mut written = Written::new(self.vault, lane, key);
        let mut waiting = messages.into_iter().peekable();
        while let Some(group) = next_group(&mut waiting, self.batch_bytes) {
            if self.stop.started() || self.clock.boot().saturating_sub(began) > MOVE_TIME_MAX {
                self.report
                    .note(format!("lane {lane} of moved messages gets no end: the run was stopped, or took too long"));
                return Ok(());
            }
            if !self.vault.is_present(written.key.kid()).await? {
                self.report
                    .note(format!("lane {lane} of moved messages gets no end: its catalog key was replaced meanwhile"));
                return Ok(());
            }
            written.put(group).await?;
        }
        if written.n == 0 || !written.finish().await? {
            return Ok(());
        }
        self.report.moved.batches += written.n;
        self.report.moved.bytes += written.bytes;
        self.report.emptied_batches += emptied.len() as u64;
        Ok(())
    }

    /// Opens the indexes of the batches, and returns the messages that are to be moved.
    async fn choose(&mut self, sparse: Vec<Sparse>) -> Result<Vec<Moving>, VaultError> {
        let (mut chosen, mut records, mut routes) = (Vec::new(), 0, BTreeSet::<DiskId>::new());
        if !self.budget.take(LANE_REQUESTS, 0) {
            return Ok(chosen);
        }
        for one in sparse {
            // Each message is read once, and may begin a batch of its own, which is written and read back.
            let requests = 2 + 3 * one.needed_at.len() as u64;
            let bytes = 3 * one.needed_bytes + 2 * one.size_bytes.min(batch::TAIL_BYTES);
            if records >= RECORDS_MAX || self.stop.started() || !self.budget.take(requests, bytes) {
                break;
            }
            let Some(messages) = self.open(&one).await? else { continue };
            let new: BTreeSet<DiskId> =
                messages.iter().map(|one| one.disk.clone()).filter(|disk| !routes.contains(disk)).collect();
            if !self.budget.take(new.len() as u64, 0) {
                break;
            }
            routes.extend(new);
            records += messages.iter().map(|one| one.message.records.len()).sum::<usize>();
            chosen.extend(messages);
        }
        Ok(chosen)
    }

    /// The messages of a batch that are to be moved; none if it could not be let go then.
    async fn open(&mut self, one: &Sparse) -> Result<Option<Vec<Moving>>, VaultError> {
        let path = names::batch(one.lane, one.n);
        let present = Present { n: one.n, size_bytes: one.size_bytes, modified_micros: one.appeared_micros };
        let place = IndexPlace { vault: self.vault.id(), object: path.as_ref(), lane: one.lane, n: one.n };
        let opened = match cover::tail(self.vault, one.lane, present).await? {
            Ok((trailer, sealed)) => {
                let found = Found { object: path.as_ref(), appeared_micros: one.appeared_micros };
                self.vault.open_batch(&place, &trailer, &sealed, found).map_err(|error| fault::chain_text(&error))
            }
            Err(what) => Err(what),
        };
        let index = match opened {
            Ok(index) => index,
            Err(what) => {
                self.report.note(format!("nothing of {path} is moved: {what}"));
                return Ok(None);
            }
        };
        // What holds a disk that was not judged by this lane stays, whatever is moved of it.
        if !index.disks.iter().all(|part| self.verdict.judged(one.lane, &part.disk)) {
            return Ok(None);
        }
        let wanted: BTreeSet<u64> = one.needed_at.iter().map(|at| u64::from(*at)).collect();
        let first = Origin { lane: one.lane, n: one.n, put_by: judge::micros(one.appeared_micros) };
        let mut moving = Vec::with_capacity(wanted.len());
        for part in index.disks {
            for mut message in part.messages.into_iter().filter(|message| wanted.contains(&message.offset_bytes)) {
                // What was moved before keeps the place where it was sealed.
                message.origin = message.origin.or(Some(first));
                let (disk, from, at_bytes) = (part.disk.clone(), path.clone(), message.offset_bytes);
                moving.push(Moving { disk, message, from, at_bytes, source: (one.lane, one.n) });
            }
        }
        Ok((moving.len() == wanted.len()).then_some(moving))
    }
}

/// The messages of the next batch.
fn next_group(
    waiting: &mut std::iter::Peekable<impl Iterator<Item = Moving>>,
    batch_bytes: usize,
) -> Option<Vec<Moving>> {
    let (mut group, mut stored_bytes, mut plain_bytes, mut records) = (Vec::new(), 0, 0, 0);
    while let Some(next) = waiting.next_if(|next| {
        let message = &next.message;
        group.is_empty()
            || (stored_bytes + message.stored_bytes as usize <= batch_bytes
                && plain_bytes + u64::from(message.plain_bytes) <= PLAIN_BYTES_MAX
                && records + message.records.len() <= BATCH_RECORDS_MAX)
    }) {
        stored_bytes += next.message.stored_bytes as usize;
        plain_bytes += u64::from(next.message.plain_bytes);
        records += next.message.records.len();
        group.push(next);
    }
    (!group.is_empty()).then_some(group)
}

/// A lane of moved messages while it is written.
struct Written<'a> {
    vault: &'a Vault,
    lane: Id128,
    /// The catalog key of its indexes.
    key: CatalogKey,
    /// Its last batch, and the bytes of all.
    n: u64,
    bytes: u64,
    index: LaneIndexBuilder,
    /// Its last lane index.
    k: u64,
}

impl<'a> Written<'a> {
    fn new(vault: &'a Vault, lane: Id128, key: CatalogKey) -> Self {
        Self { vault, lane, key, n: 0, bytes: 0, index: LaneIndexBuilder::new(vault.id(), lane, 1), k: 0 }
    }

    /// Writes the next batch and reads it back. What is gone meanwhile is left out: another keeper was faster.
    async fn put(&mut self, group: Vec<Moving>) -> Result<(), VaultError> {
        let n = self.n + 1;
        let path = names::batch(self.lane, n);
        let mut builder = BatchBuilder::new(BatchHeader { vault: self.vault.id(), lane: self.lane, n });
        let vault = self.vault;
        let read = |one: Moving| async move { read(vault, &one).await.map(|bytes| (one, bytes)) };
        let mut reads = stream::iter(group).map(read).buffered(READS_AT_ONCE);
        while let Some((one, bytes)) = reads.try_next().await? {
            if let Some(bytes) = bytes {
                builder.push(&one.disk, one.message, bytes);
            }
        }
        if builder.messages() == 0 {
            return Ok(());
        }
        // Those before it were read back.
        let finished = builder
            .finish(&self.key, path.as_ref(), self.n)
            .map_err(|error| malformed(&path, fault::chain_text(&error)))?;
        let bytes = Bytes::from(finished.body);
        let size_bytes = bytes.len() as u64;
        write(self.vault, &path, &bytes, size_bytes).await?;
        (self.n, self.bytes) = (n, self.bytes + size_bytes);
        let added = self.index.push(n, size_bytes, finished.sealed_index);
        debug_assert!(added, "batches are dense");
        if self.index.is_full() { self.put_index().await } else { Ok(()) }
    }

    async fn put_index(&mut self) -> Result<(), VaultError> {
        let next = LaneIndexBuilder::new(self.vault.id(), self.lane, self.n + 1);
        let full = std::mem::replace(&mut self.index, next);
        if full.is_empty() {
            return Ok(());
        }
        self.k += 1;
        write(self.vault, &names::lane_index(self.lane, self.k), &full.finish(), LANE_INDEX_BYTES_MAX).await
    }

    /// Writes what is left of the lane's indexes, and its end: from then on it counts. `false` if somebody has sealed it, or what was written
    /// may have come after its catalog key's time.
    async fn finish(&mut self) -> Result<bool, VaultError> {
        self.put_index().await?;
        if !self.vault.is_present(self.key.kid()).await? {
            return Ok(false);
        }
        if self.vault.get_object::<LaneSealObject>(&names::lane_seal(self.lane)).await?.is_some() {
            return Ok(false);
        }
        let (path, end) = (names::lane_end(self.lane), LaneEndObject { lane: self.lane, last_batch: self.n });
        self.vault.put_object(&path, &end).await?;
        if self.vault.get_object::<LaneEndObject>(&path).await? == Some(end) {
            Ok(true)
        } else {
            Err(not_kept(self.vault, &path))
        }
    }
}

/// The sealed bytes of a message; none if its batch is gone.
async fn read(vault: &Vault, one: &Moving) -> Result<Option<Bytes>, VaultError> {
    let range = one.at_bytes..one.at_bytes + u64::from(one.message.stored_bytes);
    match vault.store().get_range(&one.from, range).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.is_not_found() || error.fault() == Fault::Corrupt => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Writes an object and reads it back: what the store does not give again is not there.
async fn write(vault: &Vault, path: &Path, bytes: &Bytes, bytes_max: u64) -> Result<(), VaultError> {
    vault.put_bytes(path, bytes.clone()).await?;
    match vault.store().get(path, bytes_max).await? {
        Some(found) if found == *bytes => Ok(()),
        Some(_) => Err(malformed(path, "the store gives back other bytes than were written".to_owned())),
        None => Err(not_kept(vault, path)),
    }
}

fn not_kept(vault: &Vault, path: &Path) -> VaultError {
    VaultError::Missing { object: path.to_string(), place: vault.store().shown().to_owned() }
}

fn malformed(path: &Path, what: String) -> VaultError {
    ObjectError::Malformed { object: path.to_string(), what }.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::BATCH_BYTES_TARGET;
    use crate::vault::testing::message;

    #[test]
    fn a_batch_closes_before_it_or_its_index_would_be_too_large() {
        let moving = |stored_bytes, plain_bytes| {
            let mut message = message(1, 2);
            (message.stored_bytes, message.plain_bytes) = (stored_bytes, plain_bytes);
            let (disk, from) = (DiskId::new("sda").expect("valid"), names::batch(Id128([1; 16]), 1));
            Moving { disk, message, from, at_bytes: 64, source: (Id128([1; 16]), 1) }
        };
        let mib = 1 << 20;
        let groups = |messages: Vec<Moving>| {
            let mut waiting = messages.into_iter().peekable();
            let mut lengths = Vec::new();
            while let Some(group) = next_group(&mut waiting, BATCH_BYTES_TARGET) {
                lengths.push(group.len());
            }
            lengths
        };
        assert_eq!(groups((0..40).map(|_| moving(mib, mib)).collect()), [16, 16, 8]);
        // What packs well has as many rows as what does not.
        assert_eq!(groups((0..40).map(|_| moving(1000, mib)).collect()), [16, 16, 8]);
        assert_eq!(groups(Vec::new()), Vec::<usize>::new());
    }
}
