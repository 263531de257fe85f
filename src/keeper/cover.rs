//! The lane indexes of a lane that is to be thinned: what a gateway did not come to is added, so that no row goes with its batch.

use std::collections::BTreeSet;

use super::marks::Present;
use super::run::{Budget, NOTES_MAX};
use crate::fault;
use crate::types::{DiskId, Id128};
use crate::vault::batch::{self, Tail};
use crate::vault::index::lane::{LANE_INDEX_BYTES_MAX, LaneIndex, LaneIndexBuilder};
use crate::vault::index::{BatchIndex, INDEX_PLAIN_BYTES_MAX, IndexPlace, SealedIndex};
use crate::vault::{Vault, VaultError, names};

/// The work on one lane.
pub(super) struct Cover<'a> {
    vault: &'a Vault,
    lane: Id128,
    judged: &'a BTreeSet<DiskId>,
    /// What is to go.
    wanted: BTreeSet<u64>,
    /// What stands in a lane index.
    indexed: BTreeSet<u64>,
    /// What may go.
    covered: BTreeSet<u64>,
    /// Number of the next lane index; none if the last one could not be reached within the budget.
    next_k: Option<u64>,
    written: u64,
}

impl<'a> Cover<'a> {
    pub(super) fn new(vault: &'a Vault, lane: Id128, judged: &'a BTreeSet<DiskId>, wanted: BTreeSet<u64>) -> Self {
        let (indexed, covered) = (BTreeSet::new(), BTreeSet::new());
        Self { vault, lane, judged, wanted, indexed, covered, next_k: None, written: 0 }
    }

    pub(super) fn written(&self) -> u64 {
        self.written
    }

    pub(super) fn into_covered(self) -> BTreeSet<u64> {
        self.covered
    }

    /// Reads the lane indexes that are there. A damaged one covers nothing.
    pub(super) async fn read(&mut self, budget: &mut Budget) -> Result<(), VaultError> {
        let listed = self.vault.store().list(Some(&names::lane_indexes(self.lane))).await?;
        let last = listed.iter().filter_map(|one| names::number(&one.path)).max().unwrap_or(0);
        for one in listed {
            if !budget.take(1, one.size_bytes) {
                return Ok(());
            }
            let Some(object) = self.vault.store().get(&one.path, LANE_INDEX_BYTES_MAX).await? else { continue };
            let Ok(index) = LaneIndex::parse(&object) else { continue };
            if index.lane != self.lane || index.vault != self.vault.id() {
                continue;
            }
            for entry in index.entries {
                if self.wanted.contains(&entry.n) && self.may_go(entry.n, &entry.index)? {
                    self.covered.insert(entry.n);
                }
                self.indexed.insert(entry.n);
            }
        }
        self.next_k = last.checked_add(1);
        Ok(())
    }

    /// Whether an index opens, and every disk in it was judged.
    fn may_go(&self, n: u64, sealed: &SealedIndex) -> Result<bool, VaultError> {
        let object = names::batch_name(self.lane, n);
        let place = IndexPlace { vault: self.vault.id(), object: &object, lane: self.lane, n };
        let opened = BatchIndex::open(self.vault.need_key()?, &place, sealed);
        Ok(opened.is_ok_and(|index| index.disks.iter().all(|part| self.judged.contains(&part.disk))))
    }

    /// Writes lane indexes for every batch that stands in none, as far as the budget goes.
    pub(super) async fn complete(
        &mut self,
        present: &[Present],
        budget: &mut Budget,
        notes: &mut Vec<String>,
    ) -> Result<(), VaultError> {
        if self.wanted.iter().all(|n| self.indexed.contains(n)) {
            return Ok(());
        }
        let mut open: Option<(LaneIndexBuilder, BTreeSet<u64>)> = None;
        for one in present.iter().filter(|one| !self.indexed.contains(&one.n)).copied().collect::<Vec<_>>() {
            if self.next_k.is_none() || !budget.take(2, one.size_bytes.min(batch::TAIL_BYTES)) {
                break;
            }
            let sealed = match self.tail(one).await? {
                Ok(sealed) => sealed,
                Err(what) => {
                    if notes.len() < NOTES_MAX {
                        notes.push(format!("{} stays: {what}", names::batch(self.lane, one.n)));
                    }
                    continue;
                }
            };
            if open.as_ref().is_some_and(|(builder, _)| builder.is_full() || builder.next_n() != one.n) {
                self.finish(open.take()).await?;
            }
            let may_go = self.wanted.contains(&one.n) && self.may_go(one.n, &sealed)?;
            let (builder, going) =
                open.get_or_insert_with(|| (LaneIndexBuilder::new(self.vault.id(), self.lane, one.n), BTreeSet::new()));
            let added = builder.push(one.n, one.size_bytes, sealed);
            if added && may_go {
                going.insert(one.n);
            }
        }
        self.finish(open).await
    }

    async fn finish(&mut self, open: Option<(LaneIndexBuilder, BTreeSet<u64>)>) -> Result<(), VaultError> {
        let Some(((builder, going), k)) = open.zip(self.next_k) else { return Ok(()) };
        self.vault.put_bytes(&names::lane_index(self.lane, k), builder.finish()).await?;
        self.covered.extend(going);
        self.written += 1;
        self.next_k = k.checked_add(1);
        Ok(())
    }

    /// The sealed index at the end of a batch, or what is wrong with it.
    async fn tail(&self, one: Present) -> Result<Result<SealedIndex, String>, VaultError> {
        let path = names::batch(self.lane, one.n);
        let mut range = batch::tail_range(one.size_bytes);
        // Twice at most: the second read starts where the index does.
        for _ in 0..2 {
            if range.is_empty() || range.end - range.start > INDEX_PLAIN_BYTES_MAX as u64 {
                return Ok(Err("it has no index of a possible size".to_owned()));
            }
            let bytes = match self.vault.store().get_range(&path, range).await {
                Ok(bytes) => bytes,
                Err(error) if error.is_not_found() => return Ok(Err("it is gone".to_owned())),
                Err(error) => return Err(error.into()),
            };
            match batch::parse_tail(one.size_bytes, &bytes) {
                Ok(Tail::Whole { trailer, index }) if trailer.lane == self.lane && trailer.n == one.n => {
                    return Ok(Ok(index));
                }
                Ok(Tail::Whole { .. }) => return Ok(Err("it is another batch than its name says".to_owned())),
                Ok(Tail::More { range: more, .. }) => range = more,
                Err(error) => return Ok(Err(fault::chain_text(&error))),
            }
        }
        Ok(Err("its trailer points elsewhere each time".to_owned()))
    }
}
