//! Level index beyond the catalog: a batch's own index is checked also where a lane index stands for it. A recovery may
//! need either.

use std::collections::BTreeSet;

use futures_util::stream::{self, StreamExt};
use object_store::path::Path;

use super::list::Listing;
use super::{Report, damage_words};
use crate::fault::{self, Classify, Fault};
use crate::limits::LANE_INDEX_BATCHES;
use crate::restore::damage::Damage;
use crate::types::Id128;
use crate::vault::batch::{self, Tail};
use crate::vault::index::{BatchIndex, IndexPlace};
use crate::vault::reader::Catalog;
use crate::vault::store::GetError;
use crate::vault::{Vault, VaultError, names};

/// Tails in flight.
const READS: usize = 16;

/// Reads the own index of every batch that a lane index may stand for, or of those of them that are in `only`, and compares it with
/// what the catalog has.
pub(super) async fn check(
    vault: &Vault,
    listing: &Listing,
    catalog: &Catalog,
    only: Option<&BTreeSet<(Id128, u64)>>,
    report: &mut Report,
) -> Result<(), VaultError> {
    let mut wanted = Vec::new();
    for lane in &catalog.lanes {
        let Some(names_of) = listing.lanes.get(&lane.lane) else { continue };
        // An index may be closed early, so this is where its cover ends at the latest.
        let covered = names_of.indexes.last().copied().unwrap_or(0).saturating_mul(LANE_INDEX_BATCHES);
        // One that is too short for any batch was reported with the names.
        let least_bytes = (batch::HEADER_BYTES + batch::TRAILER_BYTES) as u64;
        let batches = names_of.batches.iter().take_while(|(n, _)| **n <= covered);
        let batches = batches.filter(|(_, size_bytes)| **size_bytes >= least_bytes);
        let batches = batches.filter(|(n, _)| only.is_none_or(|only| only.contains(&(lane.lane, **n))));
        wanted.extend(batches.map(|(&n, &size_bytes)| (lane.lane, n, size_bytes)));
    }
    let read = |(lane, n, size_bytes)| async move { (lane, n, tail(vault, lane, n, size_bytes).await) };
    let mut reads = stream::iter(wanted).map(read).buffered(READS);
    while let Some((lane, n, found)) = reads.next().await {
        let object = names::batch(lane, n);
        match found? {
            Err(what) => report.damaged(Damage::object(object, what)),
            Ok(index) => {
                let at = catalog.batches.binary_search_by_key(&(lane, n), |batch| (batch.index.lane, batch.index.n));
                let Ok(at) = at else { continue };
                let same = catalog.batches[at].index.disks.iter().all(|part| index.disks.contains(part));
                if !same {
                    report.damaged(Damage::object(object, "its index differs from the copy in the lane index"));
                }
            }
        }
    }
    Ok(())
}

/// The index at the end of a batch, or what is wrong with it.
pub(super) async fn tail(
    vault: &Vault,
    lane: Id128,
    n: u64,
    size_bytes: u64,
) -> Result<Result<BatchIndex, String>, VaultError> {
    let path = names::batch(lane, n);
    vault.need_key()?;
    let place = IndexPlace { vault: vault.id(), object: path.as_ref(), lane, n };
    let mut range = batch::tail_range(size_bytes);
    // Twice at most: the second read starts where the index does.
    for _ in 0..2 {
        let bytes = match get(vault, &path, range).await? {
            Ok(bytes) => bytes,
            Err(what) => return Ok(Err(what)),
        };
        match batch::parse_tail(size_bytes, &bytes) {
            Ok(Tail::More { range: more, .. }) => range = more,
            Ok(Tail::Whole { trailer, index }) => {
                let opened = vault.open_batch_asked(&place, &trailer, &index, &path).await?;
                return Ok(opened.map_err(|error| fault::chain_text(&error)));
            }
            Err(error) => return Ok(Err(fault::chain_text(&error))),
        }
    }
    Ok(Err("its trailer points elsewhere each time".to_owned()))
}

async fn get(
    vault: &Vault,
    path: &Path,
    range: std::ops::Range<u64>,
) -> Result<Result<bytes::Bytes, String>, VaultError> {
    match vault.store().get_range(path, range).await {
        Ok(bytes) => Ok(Ok(bytes)),
        Err(error) if missing(&error) => Ok(Err("is missing".to_owned())),
        Err(error) if error.fault() == Fault::Corrupt => Ok(Err(fault::chain_text(&error))),
        Err(error) => damage_words(error.into()).map(Err),
    }
}

fn missing(error: &GetError) -> bool {
    error.is_not_found()
}
