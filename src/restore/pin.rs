//! Telling the keeper that a point is in use, so that its image stays until it has been read.
//!
//! Best effort: a credential that may only read pins nothing, and then what the keeper lets go stays for its `delete_after`.
//! A vault that no keeper has ever worked on needs no pin, and gets none.

use std::time::Duration;

use tokio::task::JoinHandle;

use crate::flow::{Clock, Drain, DrainTrigger};
use crate::keys;
use crate::types::{DiskId, Id128, Micros, PointId};
use crate::vault::objects::PinObject;
use crate::vault::{Vault, VaultError, names};

/// How long one pin holds: by the clock of who makes it, and at least so long by the store's.
pub const PIN_FOR: Duration = Duration::from_secs(12 * 3600);
/// A new pin is made so often; also how often it is looked whether a keeper has begun to work.
pub const PIN_EVERY: Duration = Duration::from_secs(3600);

/// Pins a point once, if the vault has a keeper. Returns the pin, or none if it has not.
///
/// # Errors
/// [`VaultError`], above all of a credential that may not write.
pub async fn pin(
    vault: &Vault,
    disk: &DiskId,
    point: PointId,
    now: Micros,
    reason: &str,
) -> Result<Option<Id128>, VaultError> {
    pin_for(vault, disk, point, now, PIN_FOR, reason).await
}

/// The same for a time of one's own.
///
/// # Errors
/// As [`pin`].
pub async fn pin_for(
    vault: &Vault,
    disk: &DiskId,
    point: PointId,
    now: Micros,
    span: Duration,
    reason: &str,
) -> Result<Option<Id128>, VaultError> {
    if vault.store().any(Some(&names::kept())).await?.is_none() {
        return Ok(None);
    }
    pin_always(vault, disk, point, now, span, reason).await.map(Some)
}

/// The same whether or not a keeper works: one may begin to.
///
/// # Errors
/// As [`pin`].
pub async fn pin_always(
    vault: &Vault,
    disk: &DiskId,
    point: PointId,
    now: Micros,
    span: Duration,
    reason: &str,
) -> Result<Id128, VaultError> {
    let pin = Id128(keys::random()?);
    let (disk, epoch, seq, reason) = (disk.clone(), point.epoch, point.seq, reason.to_owned());
    let object = PinObject { pin, disk, epoch, seq, until_micros: ends(now, span), reason };
    vault.put_object(&names::pin(pin), &object).await?;
    Ok(pin)
}

/// When a pin ends that is made now for so long.
#[must_use]
pub fn ends(now: Micros, span: Duration) -> Micros {
    Micros(now.0.saturating_add(span.as_micros() as u64))
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

/// A point that is kept from the keeper until it is let go.
#[derive(Debug)]
pub struct Held {
    let_go: DrainTrigger,
    holding: JoinHandle<()>,
}

impl Held {
    /// Pins a point, again and again, as far as the credential may; also why it could not be pinned at first. To be called within a
    /// runtime.
    pub async fn pin(
        vault: &Vault,
        disk: &DiskId,
        point: PointId,
        reason: &'static str,
        clock: impl Clock,
    ) -> (Self, Option<VaultError>) {
        let (first, unpinned) = match pin(vault, disk, point, clock.wall(), reason).await {
            Ok(first) => (first, None),
            Err(error) => (None, Some(error)),
        };
        let (let_go, held) = DrainTrigger::new();
        let holding = hold_until(vault.clone(), disk.clone(), point, first, reason, clock, held);
        (Self { let_go, holding: tokio::spawn(holding) }, unpinned)
    }

    /// Takes the pin away, as far as the credential may; one that stays ends by itself.
    pub async fn let_go(self) {
        self.let_go.start();
        // It says in the log what it could not do.
        let _ = self.holding.await;
    }
}

/// Pins a point again and again until `drain`, and takes its pins away then, `first` among them, as far as the credential may.
/// A pin that stays ends by itself.
async fn hold_until(
    vault: Vault,
    disk: DiskId,
    point: PointId,
    first: Option<Id128>,
    reason: &'static str,
    clock: impl Clock,
    mut drain: Drain,
) {
    let mut pinned = first;
    loop {
        let stop = tokio::select! {
            biased;
            () = drain.wait() => true,
            () = tokio::time::sleep(PIN_EVERY) => false,
        };
        let next = if stop { Ok(None) } else { pin(&vault, &disk, point, clock.wall(), reason).await };
        match next {
            // The new one stands: the one before is not needed.
            Ok(next) => release(&vault, std::mem::replace(&mut pinned, next)).await,
            Err(error) => tracing::warn!(%error, "the point that is read could not be pinned again"),
        }
        if stop {
            return;
        }
    }
}

/// Takes a pin away, as far as the credential may; one that stays ends by itself.
async fn release(vault: &Vault, pinned: Option<Id128>) {
    if let Some(pinned) = pinned
        && let Err(error) = vault.store().delete(&names::pin(pinned)).await
    {
        tracing::debug!(%error, "a pin stays until it ends by itself");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::SystemClock;
    use crate::restore::tests::TestVault;
    use crate::types::{Epoch, Seq};
    use crate::vault::objects::ClaimObject;

    #[tokio::test]
    async fn a_point_is_pinned_only_where_a_keeper_works() {
        let vault = TestVault::in_memory().await.vault;
        let (disk, point) = (DiskId::new("sda").unwrap(), PointId { epoch: Epoch(2), seq: Seq(7) });
        let now = Micros(1_800_000_000_000_000);
        assert!(pin(&vault, &disk, point, now, "test").await.unwrap().is_none());
        assert!(vault.store().list(Some(&names::pins())).await.unwrap().is_empty());
        let run = Id128([1; 16]);
        vault.put_object(&names::claim(run), &ClaimObject { claim: run, run }).await.unwrap();
        let pinned = pin(&vault, &disk, point, now, "test").await.unwrap();
        assert!(pinned.is_some());
        let pins = crate::keeper::pins::read(&vault, 0).await.unwrap();
        let held: Vec<_> = pins.of(&disk, 0).map(|pin| (pin.epoch, pin.seq)).collect();
        assert_eq!(held, [(point.epoch, point.seq)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_point_is_held_by_one_pin_that_goes_at_the_end() {
        let vault = TestVault::in_memory().await.vault;
        let (disk, point) = (DiskId::new("sda").unwrap(), PointId { epoch: Epoch(2), seq: Seq(7) });
        let run = Id128([1; 16]);
        vault.put_object(&names::claim(run), &ClaimObject { claim: run, run }).await.unwrap();
        let (held, unpinned) = Held::pin(&vault, &disk, point, "export", SystemClock::new()).await;
        assert!(unpinned.is_none(), "{unpinned:?}");
        let first = vault.store().list(Some(&names::pins())).await.unwrap();
        assert_eq!(first.len(), 1);
        tokio::time::sleep(PIN_EVERY * 3 + PIN_EVERY / 2).await;
        let pins = vault.store().list(Some(&names::pins())).await.unwrap();
        assert_eq!(pins.len(), 1, "the ones before are not needed");
        assert_ne!(pins[0].path, first[0].path);
        held.let_go().await;
        assert!(vault.store().list(Some(&names::pins())).await.unwrap().is_empty());
    }
}
