//! Level index: the folded indexes of a disk say what the indexes of their lanes say. A restore reads the first where they open.

use std::collections::{BTreeMap, BTreeSet};

use super::list::Listing;
use super::{Report, damage_words};
use crate::restore::damage::Damage;
use crate::types::{DiskId, Id128};
use crate::vault::index::DiskPart;
use crate::vault::index::folded::FoldedIndex;
use crate::vault::reader::Catalog;
use crate::vault::{Vault, VaultError, names};

/// Reads every folded index of these disks, one at a time, and compares it with the catalog, which was read without them.
pub(super) async fn check(
    vault: &Vault,
    listing: &Listing,
    catalog: &Catalog,
    disks: &[DiskId],
    report: &mut Report,
) -> Result<(), VaultError> {
    for disk in disks {
        for (lane, parts) in listing.disks.get(disk).into_iter().flat_map(|names_of| &names_of.folded) {
            if let Some(folded) = read(vault, disk, *lane, parts, report).await? {
                compare(catalog, disk, *lane, &folded, report);
            }
        }
    }
    Ok(())
}

/// The parts; none if they do not open or are not all there.
async fn read(
    vault: &Vault,
    disk: &DiskId,
    lane: Id128,
    parts: &BTreeSet<u32>,
    report: &mut Report,
) -> Result<Option<Vec<FoldedIndex>>, VaultError> {
    let mut folded = Vec::with_capacity(parts.len());
    for &part in parts {
        match vault.folded(disk, lane, part).await {
            Ok(read) => folded.extend(read),
            Err(error) => {
                let what = damage_words(error)?;
                let path = names::folded(disk, lane, part);
                report.damaged(Damage::object(path, format!("{what}; restores read the lane's own indexes instead")));
                return Ok(None);
            }
        }
    }
    if FoldedIndex::are_whole(&folded) {
        return Ok(Some(folded));
    }
    let path = names::folded(disk, lane, 1);
    report.notes.push(format!("{path} has not all its parts: restores read the lane's own indexes instead"));
    Ok(None)
}

/// What both say must be the same. What the lane's own indexes do not say any more, because they are damaged, is told elsewhere.
fn compare(catalog: &Catalog, disk: &DiskId, lane: Id128, folded: &[FoldedIndex], report: &mut Report) {
    let says: BTreeMap<u64, &[DiskPart]> =
        folded.iter().flat_map(|part| &part.batches).map(|batch| (batch.index.n, &batch.index.disks[..])).collect();
    let from = catalog.batches.partition_point(|batch| batch.index.lane < lane);
    let of_lane = catalog.batches[from..].iter().take_while(|batch| batch.index.lane == lane);
    let differs = of_lane.filter(|batch| {
        let own = batch.index.disks.iter().find(|part| part.disk == *disk);
        let copy = says.get(&batch.index.n).and_then(|parts| parts.first());
        own.is_some() && own != copy
    });
    let names: Vec<String> = differs.map(|batch| batch.object.to_string()).collect();
    if let Some(first) = names.first() {
        let what = format!(
            "it says something else than the lane's own indexes of {} batches, of {first} first: delete it, and restores read \
             those",
            names.len()
        );
        report.damaged(Damage::object(names::folded(disk, lane, 1), what));
    }
}
