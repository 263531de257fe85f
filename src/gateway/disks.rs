//! The disks that passed through this gateway, each with its slot, and how many streams of them are open.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;

use super::runs::{DiskSlot, Run};
use crate::types::{DiskId, Epoch};
use crate::vault::index::BatchIndex;

/// The registry of disks. Bounded by the disks that certificates of this vault name.
#[derive(Debug, Default)]
pub struct Disks {
    slots: DashMap<DiskId, Arc<DiskSlot>>,
    streams_open: Arc<AtomicU64>,
}

/// Counts one open stream as long as it lives.
pub struct StreamCount(Arc<AtomicU64>);

impl Drop for StreamCount {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
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

    /// The slot of a disk that is known here already.
    #[must_use]
    pub fn known(&self, disk: &DiskId) -> Option<Arc<DiskSlot>> {
        self.slots.get(disk).map(|slot| Arc::clone(&slot))
    }

    /// The run of an epoch, if its records passed here.
    #[must_use]
    pub fn run(&self, disk: &DiskId, epoch: Epoch) -> Option<Arc<Run>> {
        self.known(disk)?.run(epoch)
    }

    /// Learns how small the messages of a batch became.
    pub fn note_packed(&self, index: &BatchIndex) {
        for part in &index.disks {
            let Some(slot) = self.known(&part.disk) else { continue };
            let mut habit = slot.habit.lock();
            part.messages.iter().for_each(|message| habit.note(message));
        }
    }

    /// Disk streams open at present.
    #[must_use]
    pub fn streams_open(&self) -> u64 {
        self.streams_open.load(Ordering::Relaxed)
    }

    /// Counts a stream that was opened.
    #[must_use]
    pub fn count_stream(&self) -> StreamCount {
        self.streams_open.fetch_add(1, Ordering::Relaxed);
        StreamCount(Arc::clone(&self.streams_open))
    }

    /// All disks, in the order of their names.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<DiskSlot>> {
        let mut all: Vec<_> = self.slots.iter().map(|slot| Arc::clone(&slot)).collect();
        all.sort_by(|a, b| a.disk.cmp(&b.disk));
        all
    }
}
