//! Where a disk's history ends, for a gateway that forks it.

use super::source;
use crate::types::{Chain, DiskId, PointId};
use crate::vault::reader::Want;
use crate::vault::{Vault, VaultError};

/// The newest record of `disk` with everything before it in the vault, and the chain after it; `None` if there is none.
///
/// # Errors
/// [`VaultError`] if the store fails.
pub async fn head(vault: &Vault, disk: &DiskId) -> Result<Option<(PointId, Chain)>, VaultError> {
    let catalog = source::load(vault, &Want::disk(disk)).await?;
    let epochs = vault.epochs(disk).await?;
    Ok(source::history(&catalog, disk, &epochs).head_with_chain())
}
