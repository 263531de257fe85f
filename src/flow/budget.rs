//! A bound on bytes held in memory. A claim is a guard that travels with the bytes and gives them back when dropped.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes that may be held at the same time, in units of 1 KiB.
#[derive(Debug, Clone)]
pub struct Budget {
    permits: Arc<Semaphore>,
    limit_bytes: u64,
}

/// Bytes claimed from a [`Budget`]; returned on drop.
#[derive(Debug)]
pub struct BudgetGuard {
    _permit: OwnedSemaphorePermit,
}

/// A semaphore counts u32 permits at a time; KiB units reach 4 TiB.
const UNIT_BYTES: u64 = 1024;

impl Budget {
    /// A budget of `limit_bytes`.
    #[must_use]
    pub fn new(limit_bytes: u64) -> Self {
        let units = limit_bytes.div_ceil(UNIT_BYTES).min(u64::from(u32::MAX)) as usize;
        Self { permits: Arc::new(Semaphore::new(units)), limit_bytes }
    }

    /// Its size.
    #[must_use]
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// Bytes not claimed, to the unit.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        self.permits.available_permits() as u64 * UNIT_BYTES
    }

    fn units(&self, bytes: u64) -> u32 {
        // A single claim above the whole budget waits for all of it instead of for ever.
        bytes.min(self.limit_bytes).div_ceil(UNIT_BYTES).max(1) as u32
    }

    /// Waits until `bytes` are free and claims them. Waiters are served in order.
    pub async fn claim(&self, bytes: u64) -> BudgetGuard {
        match Arc::clone(&self.permits).acquire_many_owned(self.units(bytes)).await {
            Ok(permit) => BudgetGuard { _permit: permit },
            Err(_) => unreachable!("the semaphore is never closed"),
        }
    }

    /// Claims `bytes` if they are free now.
    #[must_use]
    pub fn try_claim(&self, bytes: u64) -> Option<BudgetGuard> {
        let permit = Arc::clone(&self.permits).try_acquire_many_owned(self.units(bytes)).ok()?;
        Some(BudgetGuard { _permit: permit })
    }
}
