//! The lane indexes of a lane that is to be thinned: what a gateway did not come to is added, so that no row goes with its batch.
//!
//! A batch rests on a lane index only if this very run has read it there, opened it, and finds every disk in it judged by this lane. That
//! holds before a mark and again before a deletion. Before a mark it must also say the very same as the index of the batch itself: whoever has
//! the catalog key can write a lane index, and no word of it is to decide over a batch that says otherwise. An index that an older catalog key
//! sealed is sealed anew for a lane index that is written now, or it would count there for nobody. What of it is needed and was moved
//! must be, byte for byte, where it was moved to (`proof`), before a mark and before a deletion.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::judge::Verdict;
use super::marks::Present;
use super::proof;
use super::report::{Budget, Report};
use crate::fault;
use crate::keys::CatalogKey;
use crate::types::Id128;
use crate::vault::batch::{self, BatchError, BatchTrailer, Tail};
use crate::vault::index::lane::{HEADER_BYTES, LANE_INDEX_BYTES_MAX, LaneIndex, LaneIndexBuilder};
use crate::vault::index::{BatchIndex, INDEX_PLAIN_BYTES_MAX, IndexPlace, SealedIndex};
use crate::vault::store::Listed;
use crate::vault::{Found, Vault, VaultError, names};

/// The work on one lane.
pub(super) struct Cover<'a> {
    vault: &'a Vault,
    lane: Id128,
    verdict: &'a Verdict,
    /// What is to go.
    wanted: BTreeSet<u64>,
    /// What stands in a lane index.
    indexed: BTreeSet<u64>,
    /// What may go.
    covered: BTreeSet<u64>,
    /// Digests of the indexes of what is to go, as lane indexes have them.
    read: BTreeMap<u64, blake3::Hash>,
    /// Of which two indexes were found that differ.
    doubtful: BTreeSet<u64>,
    /// Number of the next lane index; none if the last one could not be reached within the budget.
    next_k: Option<u64>,
}

impl<'a> Cover<'a> {
    pub(super) fn new(vault: &'a Vault, lane: Id128, verdict: &'a Verdict, wanted: BTreeSet<u64>) -> Self {
        let (indexed, covered, doubtful) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        Self { vault, lane, verdict, wanted, indexed, covered, read: BTreeMap::new(), doubtful, next_k: None }
    }

    pub(super) fn into_covered(self) -> BTreeSet<u64> {
        &self.covered - &self.doubtful
    }

    /// Reads the lane indexes that are there. A damaged one covers nothing.
    pub(super) async fn read(&mut self, budget: &mut Budget) -> Result<(), VaultError> {
        let listed = self.vault.store().list(Some(&names::lane_indexes(self.lane))).await?;
        let last = listed.iter().filter_map(|one| names::number(&one.path)).max().unwrap_or(0);
        // What no reader takes for a lane index covers nothing.
        let is_read = |one: &&Listed| {
            names::number(&one.path).is_some_and(|k| k > 0 && names::lane_index(self.lane, k) == one.path)
        };
        let read: Vec<Listed> =
            listed.iter().filter(is_read).filter(|one| one.size_bytes >= HEADER_BYTES as u64).cloned().collect();
        for one in read {
            if !budget.take(1, HEADER_BYTES as u64) {
                return Ok(());
            }
            let head = match self.vault.store().get_range(&one.path, 0..HEADER_BYTES as u64).await {
                Ok(head) => head,
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(error.into()),
            };
            let Ok(numbers) = LaneIndex::numbers(&head) else { continue };
            // Of one that covers nothing of what is to go, its word is enough: the budget is for the others.
            if self.wanted.range(numbers.clone()).next().is_none() {
                self.indexed.extend(numbers);
                continue;
            }
            if !budget.take(1, one.size_bytes) {
                return Ok(());
            }
            let found = self.vault.store().get_timed(&one.path, LANE_INDEX_BYTES_MAX).await?;
            let Some((object, appeared_micros)) = found else { continue };
            self.take(&object, Found { object: one.path.as_ref(), appeared_micros });
        }
        self.next_k = last.checked_add(1);
        Ok(())
    }

    /// Takes what a lane index covers.
    fn take(&mut self, object: &Bytes, found: Found<'_>) {
        let Ok(index) = LaneIndex::parse(object) else { return };
        if index.lane != self.lane || index.vault != self.vault.id() {
            return;
        }
        for entry in index.entries {
            if self.wanted.contains(&entry.n) {
                // One that does not open is no cover, and the index of the batch itself is written once more.
                let rows = match self.open(entry.n, &entry.index, found) {
                    Ok(rows) => rows,
                    // What nobody reads speaks against nothing.
                    Err(BatchError::TooLate(_)) => return,
                    Err(_) => {
                        self.note(entry.n, &entry.index, None);
                        continue;
                    }
                };
                self.note(entry.n, &entry.index, Some(&rows));
                if rows.disks.iter().all(|part| self.verdict.judged(self.lane, &part.disk)) {
                    self.covered.insert(entry.n);
                }
            }
            self.indexed.insert(entry.n);
        }
    }

    /// Remembers an index, and whether it differs from another of the same batch: in what it says, as the same rows may be sealed under two
    /// catalog keys; where it says nothing, byte for byte.
    fn note(&mut self, n: u64, sealed: &SealedIndex, rows: Option<&BatchIndex>) {
        let mut hasher = blake3::Hasher::new();
        match rows {
            Some(rows) => hasher.update(b"rows").update(&rows.encode()),
            None => hasher
                .update(b"sealed")
                .update(&[sealed.codec as u8])
                .update(&sealed.plain_bytes.to_le_bytes())
                .update(&sealed.bytes),
        };
        let digest = hasher.finalize();
        if self.read.insert(n, digest).is_some_and(|before| before != digest) {
            self.doubtful.insert(n);
        }
    }

    /// Compares what lane indexes say of the batches that are to be marked with what these say themselves. What the budget leaves out is not
    /// covered.
    pub(super) async fn compare(
        &mut self,
        mark: &[Present],
        budget: &mut Budget,
        report: &mut Report,
    ) -> Result<(), VaultError> {
        for &one in mark {
            if !self.covered.contains(&one.n) {
                continue;
            }
            if !budget.take(2, 2 * one.size_bytes.min(batch::TAIL_BYTES)) {
                self.covered.remove(&one.n);
                continue;
            }
            match tail(self.vault, self.lane, one).await? {
                Ok((_, sealed)) => {
                    let path = names::batch(self.lane, one.n);
                    let found = Found { object: path.as_ref(), appeared_micros: one.modified_micros };
                    let rows = self.open(one.n, &sealed, found).ok();
                    self.note(one.n, &sealed, rows.as_ref());
                }
                Err(what) => {
                    report.note(format!("{} stays: {what}", names::batch(self.lane, one.n)));
                    self.covered.remove(&one.n);
                }
            }
            if self.doubtful.contains(&one.n) {
                let path = names::batch(self.lane, one.n);
                report.note(format!("{path} stays: a lane index has another index of it than the batch itself"));
            }
        }
        Ok(())
    }

    /// Leaves out of what may go each batch of which something is needed that does not stand, byte for byte, where it is taken from now.
    pub(super) async fn prove(&mut self, budget: &mut Budget, report: &mut Report) -> Result<(), VaultError> {
        for n in self.covered.clone() {
            if !proof::proven(self.vault, (self.lane, n), &self.verdict.spares, budget, report).await? {
                self.covered.remove(&n);
            }
        }
        Ok(())
    }

    fn open(&self, n: u64, sealed: &SealedIndex, found: Found<'_>) -> Result<BatchIndex, BatchError> {
        let object = names::batch_name(self.lane, n);
        let place = IndexPlace { vault: self.vault.id(), object: &object, lane: self.lane, n };
        self.vault.open_index(&place, sealed, found)
    }

    /// The index of a batch as it goes into a lane index that is written now: byte for byte, unless an older catalog key sealed it. One that
    /// cannot be opened stays what it is.
    fn as_written_now(&self, key: &CatalogKey, one: Present, sealed: SealedIndex) -> Option<SealedIndex> {
        let object = names::batch_name(self.lane, one.n);
        let place = IndexPlace { vault: self.vault.id(), object: &object, lane: self.lane, n: one.n };
        let found = Found { object: &object, appeared_micros: one.modified_micros };
        match self.vault.sealed_by(key, &place, &sealed, found) {
            Ok(sealed) => Some(sealed),
            Err(BatchError::TooLate(_)) => None,
            Err(_) => Some(sealed),
        }
    }

    /// Writes lane indexes for every batch that stands in none, as far as the budget goes. `present` is without late batches: their
    /// rows count for nobody, and must not by standing in a lane index.
    pub(super) async fn complete(
        &mut self,
        present: &[Present],
        budget: &mut Budget,
        report: &mut Report,
    ) -> Result<(), VaultError> {
        if self.wanted.iter().all(|n| self.indexed.contains(n)) {
            return Ok(());
        }
        let mut open: Option<LaneIndexBuilder> = None;
        let key = self.vault.key_to_write().await?;
        for one in present.iter().filter(|one| !self.indexed.contains(&one.n)).copied().collect::<Vec<_>>() {
            let begins = open.as_ref().is_none_or(|builder| builder.is_full() || builder.next_n() != one.n);
            // Its tail, which may take two reads; and for a new lane index one PUT, and one GET that reads it back.
            let requests = if begins { 4 } else { 2 };
            if self.next_k.is_none() || !budget.take(requests, 2 * one.size_bytes.min(batch::TAIL_BYTES)) {
                break;
            }
            let sealed = match tail(self.vault, self.lane, one).await? {
                Ok((_, sealed)) => sealed,
                Err(what) => {
                    report.note(format!("{} stays: {what}", names::batch(self.lane, one.n)));
                    continue;
                }
            };
            let Some(sealed) = self.as_written_now(&key, one, sealed) else {
                report.note(format!(
                    "{} counts for nobody: it came after its catalog key's time",
                    names::batch(self.lane, one.n)
                ));
                continue;
            };
            if begins {
                self.finish(open.take(), report).await?;
            }
            let builder = open.get_or_insert_with(|| LaneIndexBuilder::new(self.vault.id(), self.lane, one.n));
            let added = builder.push(one.n, one.size_bytes, sealed);
            debug_assert!(added, "the builder goes on with this number, or was made for it");
        }
        self.finish(open, report).await
    }

    /// Writes a lane index and reads it back: what the store does not give again covers nothing.
    async fn finish(&mut self, open: Option<LaneIndexBuilder>, report: &mut Report) -> Result<(), VaultError> {
        let Some((builder, k)) = open.zip(self.next_k) else { return Ok(()) };
        let path = names::lane_index(self.lane, k);
        self.vault.put_bytes(&path, builder.finish()).await?;
        report.indexes_written += 1;
        self.next_k = k.checked_add(1);
        if let Some((object, appeared_micros)) = self.vault.store().get_timed(&path, LANE_INDEX_BYTES_MAX).await? {
            self.take(&object, Found { object: path.as_ref(), appeared_micros });
        }
        Ok(())
    }
}

/// The trailer and the sealed index at the end of a batch, or what is wrong with it.
pub(super) async fn tail(
    vault: &Vault,
    lane: Id128,
    one: Present,
) -> Result<Result<(BatchTrailer, SealedIndex), String>, VaultError> {
    let path = names::batch(lane, one.n);
    let mut range = batch::tail_range(one.size_bytes);
    // Twice at most: the second read starts where the index does.
    for _ in 0..2 {
        if range.is_empty() || range.end - range.start > INDEX_PLAIN_BYTES_MAX as u64 {
            return Ok(Err("it has no index of a possible size".to_owned()));
        }
        let bytes = match vault.store().get_range(&path, range).await {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() => return Ok(Err("it is gone".to_owned())),
            Err(error) => return Err(error.into()),
        };
        match batch::parse_tail(one.size_bytes, &bytes) {
            Ok(Tail::Whole { trailer, index }) if trailer.lane == lane && trailer.n == one.n => {
                return Ok(Ok((trailer, index)));
            }
            Ok(Tail::Whole { .. }) => return Ok(Err("it is another batch than its name says".to_owned())),
            Ok(Tail::More { range: more, .. }) => range = more,
            Err(error) => return Ok(Err(fault::chain_text(&error))),
        }
    }
    Ok(Err("its trailer points elsewhere each time".to_owned()))
}
