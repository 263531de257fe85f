//! Which lanes a gateway of this name wrote: records of other lanes stand in no journal here.

use std::collections::BTreeMap;

use futures_util::{StreamExt as _, stream};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::fault::{Classify as _, Fault, chain_text};
use crate::types::Id128;
use crate::vault::{Vault, VaultError};

/// Ends of epochs that are read from the vault at the same time. Each may have some dozens of requests and 256 MiB of
/// indexes under way, and at a fail-over thousands of disks ask at once.
const HEADS_AT_ONCE: usize = 8;
/// Registrations of lanes that are read at the same time.
const LANES_AT_ONCE: usize = 16;

/// What is known of lanes that carried disks of this gateway, bounded by the lanes of the vault; and who may read in them.
#[derive(Debug)]
pub struct Lanes {
    /// Whether this gateway's name stands in a lane's registration.
    ours: Mutex<BTreeMap<Id128, bool>>,
    /// Held by the one that asks the vault: disks that are opened together ask for the same lanes.
    asking: tokio::sync::Mutex<()>,
    /// Taken while the end of an epoch is read.
    pub(super) heads: Semaphore,
}

impl Default for Lanes {
    fn default() -> Self {
        Self { ours: Mutex::default(), asking: tokio::sync::Mutex::default(), heads: Semaphore::new(HEADS_AT_ONCE) }
    }
}

impl Lanes {
    /// Whether another gateway than `own` wrote one of `lanes`.
    pub(super) async fn of_others(&self, vault: &Vault, own: &str, lanes: &[Id128]) -> Result<bool, VaultError> {
        if let Some(known) = self.known(lanes) {
            return Ok(known);
        }
        let _asking = self.asking.lock().await;
        let unknown: Vec<Id128> = {
            let ours = self.ours.lock();
            lanes.iter().copied().filter(|lane| !ours.contains_key(lane)).collect()
        };
        let asked = stream::iter(unknown).map(|lane| async move { (lane, is_ours(vault, own, lane).await) });
        let mut asked = std::pin::pin!(asked.buffer_unordered(LANES_AT_ONCE));
        while let Some((lane, ours)) = asked.next().await {
            let ours = ours?;
            self.ours.lock().insert(lane, ours);
        }
        Ok(self.known(lanes).unwrap_or(true))
    }

    /// The same as far as it is known already.
    fn known(&self, lanes: &[Id128]) -> Option<bool> {
        let ours = self.ours.lock();
        let mut all_known = true;
        for lane in lanes {
            match ours.get(lane) {
                Some(false) => return Some(true),
                Some(true) => {}
                None => all_known = false,
            }
        }
        all_known.then_some(false)
    }
}

/// A registration that is missing, damaged or of a newer release may be another gateway's: it must not keep the disks of
/// its lane from being opened for ever.
async fn is_ours(vault: &Vault, own: &str, lane: Id128) -> Result<bool, VaultError> {
    match vault.lane(lane).await {
        Ok(object) => Ok(object.gateway == own),
        Err(error) if matches!(error.fault(), Fault::Corrupt | Fault::Reject) => {
            tracing::warn!(%lane, error = chain_text(&error), "the lane counts as another gateway's");
            Ok(false)
        }
        Err(error) => Err(error),
    }
}
