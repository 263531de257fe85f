//! Telling the keeper that a point is in use, so that its image stays until it has been read.
//!
//! Best effort: a credential that may only read pins nothing, and then what the keeper lets go stays for its `delete_after`.
//! A vault that no keeper has ever worked on needs no pin, and gets none.

use std::time::Duration;

use crate::flow::Clock;
use crate::keys;
use crate::types::{DiskId, Id128, Micros, PointId};
use crate::vault::objects::PinObject;
use crate::vault::{Vault, VaultError, names};

/// How long one pin holds.
const PIN_FOR: Duration = Duration::from_secs(12 * 3600);
/// A new pin is made so often; also how often it is looked whether a keeper has begun to work.
const PIN_EVERY: Duration = Duration::from_secs(3600);

/// Pins a point once, if the vault has a keeper. Returns whether it has.
///
/// # Errors
/// [`VaultError`], above all of a credential that may not write.
pub async fn pin(vault: &Vault, disk: &DiskId, point: PointId, now: Micros, reason: &str) -> Result<bool, VaultError> {
    if vault.store().any(Some(&names::kept())).await?.is_none() {
        return Ok(false);
    }
    let pin = Id128(keys::random()?);
    let until_micros = Micros(now.0.saturating_add(PIN_FOR.as_micros() as u64));
    let (disk, epoch, seq, reason) = (disk.clone(), point.epoch, point.seq, reason.to_owned());
    let object = PinObject { pin, disk, epoch, seq, until_micros, reason };
    vault.put_object(&names::pin(pin), &object).await?;
    Ok(true)
}

/// Pins a point again and again, for as long as it is polled.
pub async fn hold(vault: Vault, disk: DiskId, point: PointId, clock: impl Clock) {
    loop {
        tokio::time::sleep(PIN_EVERY).await;
        if let Err(error) = pin(&vault, &disk, point, clock.wall(), "restore").await {
            tracing::warn!(%error, "the point that is read could not be pinned again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::tests::TestVault;
    use crate::types::{Epoch, Seq};
    use crate::vault::objects::ClaimObject;

    #[tokio::test]
    async fn a_point_is_pinned_only_where_a_keeper_works() {
        let vault = TestVault::in_memory().await.vault;
        let (disk, point) = (DiskId::new("sda").unwrap(), PointId { epoch: Epoch(2), seq: Seq(7) });
        let now = Micros(1_800_000_000_000_000);
        assert!(!pin(&vault, &disk, point, now, "test").await.unwrap());
        assert!(vault.store().list(Some(&names::pins())).await.unwrap().is_empty());
        let run = Id128([1; 16]);
        vault.put_object(&names::claim(run), &ClaimObject { claim: run, run }).await.unwrap();
        assert!(pin(&vault, &disk, point, now, "test").await.unwrap());
        let pins = crate::keeper::judge::pins(&vault, &mut Vec::new()).await.unwrap();
        assert_eq!(pins.len(), 1);
        assert_eq!((pins[0].object.epoch, pins[0].object.seq), (point.epoch, point.seq));
    }
}
