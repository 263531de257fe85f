//! What of a shredded disk nothing opens any more: those of its messages are not needed.
//!
//! The word that a disk is shredded is authenticated by the catalog key alone, which every gateway has, and needs no right to delete. So
//! nothing goes for the word: a key counts as destroyed only if the lane was opened with keys for its disks, and the disk's route to it stands
//! there without one. Routes are created only if absent, so to bring that about takes the right to delete, as a keeper has it. In lanes from
//! before disks had keys nothing is destroyed, and the policy alone decides.

use std::collections::BTreeSet;

use crate::fault::{Classify, Fault};
use crate::restore::history::{History, Row};
use crate::types::{DiskId, Id128};
use crate::vault::reader::Catalog;
use crate::vault::{Vault, VaultError};

/// The lane in which a message was sealed.
fn sealed_in(catalog: &Catalog, row: &Row) -> Id128 {
    catalog.batches[row.object as usize].index.sealed_in(&row.message).0
}

/// The lanes in which the disk's key was destroyed; none if it was not shredded.
///
/// # Errors
/// A failed request, or a word of a newer release.
pub(super) async fn destroyed(
    vault: &Vault,
    catalog: &Catalog,
    disk: &DiskId,
    history: &History,
) -> Result<BTreeSet<Id128>, VaultError> {
    if vault.shred(disk).await?.is_none() {
        return Ok(BTreeSet::new());
    }
    let lanes: BTreeSet<Id128> = history.rows.iter().map(|row| sealed_in(catalog, row)).collect();
    let mut destroyed = BTreeSet::new();
    let has_keys = |lane: &Id128| catalog.registration(*lane).is_some_and(|object| object.disk_keys);
    for lane in lanes.into_iter().filter(has_keys) {
        match vault.route(disk, lane).await {
            Ok(Some(route)) if route.sealed_key.is_none() => {
                destroyed.insert(lane);
            }
            Ok(_) => {}
            Err(error) if error.fault() == Fault::Retry => return Err(error),
            // Whether it has a key cannot be told.
            Err(_) => {}
        }
    }
    Ok(destroyed)
}

/// Whether all that there is of the disk was sealed in these lanes.
pub(super) fn holds_all(destroyed: &BTreeSet<Id128>, catalog: &Catalog, history: &History) -> bool {
    history.rows.iter().all(|row| destroyed.contains(&sealed_in(catalog, row)))
}

/// Takes the need off every message that was sealed in these lanes.
pub(super) fn let_go(destroyed: &BTreeSet<Id128>, catalog: &Catalog, history: &History, needed: &mut [bool]) {
    for (row, needed) in history.rows.iter().zip(needed) {
        *needed &= !destroyed.contains(&sealed_in(catalog, row));
    }
}
