//! The rows of one disk in one lane by its folded index: as many requests as the disk has lanes, and no row of another disk.
//!
//! A folded index is a copy of what the lane's own indexes say, made when nothing came to the lane any more. So where one does not open,
//! or its parts are not all there, the lane is read as if there were none, and nothing is wrong.

use std::collections::{BTreeMap, BTreeSet};

use object_store::path::Path;
use tokio::task::JoinSet;

use super::lane_rows::{self, manifest_numbered, registration};
use super::{Catalog, CatalogBatch, CatalogLane, Finding, Problem, Shared, task_error};
use crate::fault::{Classify, Fault, chain_text};
use crate::types::{DiskId, Id128};
use crate::vault::batch::BatchError;
use crate::vault::index::folded::{FOLDED_BYTES_MAX, FoldedIndex, FoldedPlace, SealedFolded};
use crate::vault::keyring::Found;
use crate::vault::lane::ListedLane;
use crate::vault::objects::{ManifestObject, ObjectError};
use crate::vault::store::Listed;
use crate::vault::{Vault, VaultError, names};

/// The parts of one lane's folded index as a listing shows them, and what else of the lane it shows.
#[derive(Clone, Debug)]
pub(super) struct Parts {
    disk: DiskId,
    /// Their sizes, from part 1 on.
    sizes: Vec<u64>,
    /// Number of the lane's newest manifest.
    manifest: Option<u64>,
}

/// The lanes that carried a disk, each with its folded index if it has one: three listings, side by side.
pub(super) async fn lanes(vault: &Vault, disk: &DiskId) -> Result<Vec<(ListedLane, Option<Parts>)>, VaultError> {
    let (folder, manifests) = (names::disk_folder(disk), names::all_manifests());
    // Manifests and batches may be listed in either order: hours lie between the mark of a batch and its end.
    let (lanes, of_disk, manifests) = tokio::try_join!(vault.lanes(), list(vault, &folder), list(vault, &manifests))?;
    let mut newest: BTreeMap<Id128, u64> = BTreeMap::new();
    for path in manifests.iter().map(|listed| &listed.path) {
        let Some(lane) = names::lane_of_manifest(path) else { continue };
        let Some(n) = names::manifest_number(lane, path) else { continue };
        let known = newest.entry(lane).or_default();
        *known = n.max(*known);
    }
    let routed: BTreeSet<Id128> = of_disk.iter().filter_map(|listed| names::lane_of_route(&listed.path)).collect();
    let mut parts: BTreeMap<Id128, BTreeMap<u32, u64>> = BTreeMap::new();
    for listed in &of_disk {
        if let Some((lane, part)) = names::folded_part(disk, &listed.path) {
            parts.entry(lane).or_default().insert(part, listed.size_bytes);
        }
    }
    let known: BTreeMap<Id128, ListedLane> = lanes.into_iter().map(|lane| (lane.lane, lane)).collect();
    let lane = |lane: Id128| {
        let unknown = ListedLane { lane, registered: false, ended: false, sealed: None };
        let sizes: Vec<u64> = parts.remove(&lane).unwrap_or_default().into_values().collect();
        let manifest = newest.get(&lane).copied();
        let listed = known.get(&lane).copied().unwrap_or(unknown);
        // Nothing is folded before a lane is over.
        let is_over = listed.ended || listed.sealed.is_some();
        let folded = (is_over && !sizes.is_empty()).then(|| Parts { disk: disk.clone(), sizes, manifest });
        (listed, folded)
    };
    Ok(routed.into_iter().map(lane).collect())
}

/// What the lane holds of the disk; none if its folded index cannot be read, or not in full.
pub(super) async fn load(shared: &Shared, listed: &ListedLane, parts: &Parts) -> Result<Option<Catalog>, VaultError> {
    let lane = listed.lane;
    let (mut findings, mut of_manifest) = (Vec::new(), Vec::new());
    let (object, manifest, folded) = tokio::try_join!(
        registration(shared, lane, &mut findings),
        manifest_numbered(shared, lane, parts.manifest, &mut of_manifest),
        read(shared, lane, parts),
    )?;
    findings.append(&mut of_manifest);
    let Some(folded) = folded else { return Ok(None) };
    let confirmed_through = folded.iter().map(|part| part.bounds.confirmed_through).max().unwrap_or(0);
    let batches: Vec<_> = folded.into_iter().flat_map(|part| part.batches).collect();
    let let_go = |n: u64| manifest.as_ref().is_some_and(|manifest| manifest.run_of(n).is_some());
    // What stands in the vault is read, whatever a manifest says of it: only a look tells.
    let listing = if batches.iter().any(|batch| let_go(batch.index.n)) {
        let _listing = shared.listings.acquire().await;
        Some(lane_rows::present(shared, listed, &mut findings).await?)
    } else {
        None
    };
    let mut out = Catalog { findings, ..Catalog::default() };
    let gone_micros = manifest.as_ref().map_or(0, |manifest: &ManifestObject| manifest.newest_micros);
    for batch in batches {
        let (n, object) = (batch.index.n, names::batch(lane, batch.index.n));
        let there = listing.as_ref().map_or(Some((batch.total_bytes, 0)), |listing| listing.get(&n).copied());
        if there.is_none() && !let_go(n) {
            out.findings.push(Finding::new(&object, Problem::Missing));
        }
        out.batches.push(CatalogBatch {
            object,
            size_bytes: there.map_or(batch.total_bytes, |(size_bytes, _)| size_bytes),
            present: there.is_some(),
            modified_micros: there.map_or(0, |(_, modified_micros)| modified_micros),
            put_by_micros: there.map_or(gone_micros, |(_, modified_micros)| modified_micros),
            let_go: let_go(n),
            index: batch.index,
        });
    }
    let (count, bytes) = (out.batches.len() as u64, out.batches.iter().map(|batch| batch.size_bytes).sum());
    let sealed = listed.sealed.is_some();
    out.lanes.push(CatalogLane {
        lane,
        object,
        end: None,
        sealed,
        batches: count,
        bytes,
        confirmed_through,
        cut: false,
    });
    Ok(Some(out))
}

async fn list(vault: &Vault, folder: &Path) -> Result<Vec<Listed>, VaultError> {
    Ok(vault.store().list(Some(folder)).await?)
}

/// All parts; none if one of them is not as it must be.
async fn read(shared: &Shared, lane: Id128, parts: &Parts) -> Result<Option<Vec<FoldedIndex>>, VaultError> {
    let mut running = JoinSet::new();
    for (number, &size_bytes) in (1..).zip(&parts.sizes) {
        running.spawn(part(shared.clone(), lane, parts.disk.clone(), number, size_bytes));
    }
    let mut read = Vec::with_capacity(parts.sizes.len());
    while let Some(ended) = running.join_next().await {
        match ended.map_err(|error| task_error(&error))?? {
            Some(part) => read.push(part),
            None => return Ok(None),
        }
    }
    read.sort_unstable_by_key(|part| (part.bounds.first, part.bounds.is_last));
    Ok(Some(read).filter(|parts| FoldedIndex::are_whole(parts)))
}

async fn part(
    shared: Shared,
    lane: Id128,
    disk: DiskId,
    part: u32,
    size_bytes: u64,
) -> Result<Option<FoldedIndex>, VaultError> {
    let _request = shared.requests.acquire().await;
    // Sealed and opened form are in memory at the same time.
    let _bytes = shared.bytes.claim(size_bytes.min(FOLDED_BYTES_MAX) * 2).await;
    match shared.vault.folded(&disk, lane, part).await {
        Ok(folded) => Ok(folded),
        Err(error) if error.fault() == Fault::Corrupt => {
            tracing::debug!(error = chain_text(&error), "the lane's own indexes are read instead of a folded one");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

impl Vault {
    /// A part of the folded index of a disk in a lane; `None` if it is not there.
    ///
    /// # Errors
    /// A failed request, or a part that does not open.
    pub async fn folded(&self, disk: &DiskId, lane: Id128, part: u32) -> Result<Option<FoldedIndex>, VaultError> {
        self.need_key()?;
        let path = names::folded(disk, lane, part);
        let Some((object, appeared_micros)) = self.store().get_timed(&path, FOLDED_BYTES_MAX).await? else {
            return Ok(None);
        };
        let place = FoldedPlace { vault: self.id(), object: path.as_ref(), lane, part };
        let found = Found { object: path.as_ref(), appeared_micros };
        let opened = SealedFolded::parse(&place, &object)
            .and_then(|sealed| self.unseal(|key| sealed.open(key, &place, disk)))
            .and_then(|opened| Ok(opened.counts(found)?));
        match opened {
            Ok(folded) => Ok(Some(folded)),
            Err(BatchError::TooLate(late)) => Err(ObjectError::from(late).into()),
            Err(error) => Err(ObjectError::Malformed { object: path.to_string(), what: chain_text(&error) }.into()),
        }
    }
}
