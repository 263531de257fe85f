//! The gateway's side of a session: which disk may go on where, new epochs, and handing records to the journal.
//!
//! Opening a disk follows DESIGN's rules for epochs:
//!
//! - Resume only in the newest epoch of the vault, and only if what the agent still holds joins what stands here.
//! - Fork after everything journaled here is vaulted, so that no point acked as journaled is cut off; at the larger of
//!   what this gateway and the agent know to be vaulted; from the vault's own indexes if neither knows.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dashmap::DashMap;
use tokio::sync::watch;

use super::runs::{DiskSlot, Mark, Run};
use crate::fault::{Classify, Fault, chain_text};
use crate::flow::{Drain, DrainTrigger};
use crate::journal::{Entry, Journal};
use crate::limits;
use crate::telemetry::names;
use crate::types::{Chain, DiskId, Epoch, Id128, Micros, PointId, RecordHead, Seq};
use crate::vault::Vault;
use crate::wire::{AgentIdentity, DiskRefusal, HelloInfo, Host, OpenDisk, OpenedDisk, RecordSink, RefusalCode, Want};

/// How long an open waits for journaled records to be vaulted before it asks the agent to come again. Below the
/// agent's own patience, so that the answer arrives.
const FORK_DRAIN_WAIT: Duration = Duration::from_secs(15);
/// Two gateways that race for the same epoch number: each loser looks again. More losses in a row are no race.
const EPOCH_RACES_MAX: u32 = 8;

/// What all sessions share.
pub struct GatewayHost {
    /// Name and vault told to every agent.
    pub hello: HelloInfo,
    /// First durable home of records.
    pub journal: Journal,
    /// Epochs and disk descriptions.
    pub vault: Arc<Vault>,
    /// Disks known here. Bounded by the disks that certificates of this vault name.
    pub disks: Arc<Disks>,
    /// Credit window of each disk, in bytes.
    pub window: watch::Receiver<u64>,
}

/// The registry of disks.
#[derive(Debug, Default)]
pub struct Disks {
    slots: DashMap<DiskId, Arc<DiskSlot>>,
}

impl Disks {
    /// The slot of a disk, made at first use.
    #[must_use]
    pub fn slot(&self, disk: &DiskId) -> Arc<DiskSlot> {
        if let Some(slot) = self.slots.get(disk) {
            return Arc::clone(&slot);
        }
        let slot = self.slots.entry(disk.clone()).or_insert_with(|| Arc::new(DiskSlot::new(disk.clone())));
        Arc::clone(&slot)
    }

    /// The run of an epoch, if its records passed here.
    #[must_use]
    pub fn run(&self, disk: &DiskId, epoch: Epoch) -> Option<Arc<Run>> {
        let slot = self.slots.get(disk).map(|slot| Arc::clone(&slot))?;
        slot.run(epoch)
    }

    /// All disks.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<DiskSlot>> {
        self.slots.iter().map(|slot| Arc::clone(&slot)).collect()
    }
}

fn refuse(code: RefusalCode, text: impl Into<String>) -> DiskRefusal {
    DiskRefusal { code, text: text.into() }
}

fn vault_refusal(what: &str, error: &(impl Classify + 'static)) -> DiskRefusal {
    let code = match error.fault() {
        Fault::Retry => RefusalCode::TryAgain,
        _ => RefusalCode::Internal,
    };
    refuse(code, format!("{what}: {}", chain_text(error)))
}
