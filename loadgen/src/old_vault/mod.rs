//! A vault as it is after months, without the months: what a recovery of one disk costs in it, before and after folding.
//!
//! ```text
//!  write: lanes · lane indexes · one disk's newest batches ─┐
//!                                                           ├─► store: listings, latency, accounts ─► measure: a disk's first byte
//!  the other batches: names and sizes alone ────────────────┘                                    └──► fold
//! ```
//!
//! Every lane index is true: the indexes of all batches, sealed for their names, with rows of all disks. What no reader of the one disk asks
//! for is left out: contents of batches of which it needs nothing (they are listed, with their sizes, and cannot be read), and what stands of
//! the other disks below `d/`, unless it is asked for.

pub mod measure;
pub mod store;
pub mod write;

use std::time::Duration;

use tidegate::types::DiskId;

/// Why a vault could not be made or read.
pub type Failed = Box<dyn std::error::Error + Send + Sync>;

const DAY_SECONDS: u64 = 86_400;

/// How large and how old a vault is.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Disks. The first is the one that is recovered.
    pub disks: u32,
    /// Days, each with a lane of its own.
    pub days: u32,
    /// Between two batches.
    pub batch_seconds: u32,
    /// Each disk has one message, a write and a barrier, in one of so many batches; as many disks in each.
    pub every: u32,
    /// Whether the other disks are described and have epochs and routes too.
    pub describe_all: bool,
}

impl Shape {
    /// Batches of a lane.
    #[must_use]
    pub fn batches_of_day(&self) -> u64 {
        (DAY_SECONDS / u64::from(self.batch_seconds.max(1))).max(1)
    }

    /// Whether a disk has a message in a batch, counted from the first of the vault.
    #[must_use]
    pub fn writes(&self, disk: u32, batch: u64) -> bool {
        (batch + u64::from(self.every) - u64::from(disk % self.every)).is_multiple_of(u64::from(self.every))
    }

    /// Messages of a disk before a batch, counted from the first of the vault.
    #[must_use]
    pub fn messages_before(&self, disk: u32, batch: u64) -> u64 {
        let (every, first) = (u64::from(self.every), u64::from(disk % self.every));
        if batch <= first { 0 } else { (batch - first).div_ceil(every) }
    }

    /// A disk's name.
    ///
    /// # Panics
    /// Never: the name is valid.
    #[must_use]
    pub fn disk(&self, disk: u32) -> DiskId {
        DiskId::new(&format!("host-{disk:05}.data")).unwrap_or_else(|_| unreachable!("a valid name"))
    }
}

/// What something cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Cost {
    /// Requests; each page of a listing is one.
    pub requests: u64,
    /// Pages of listings among them.
    pub pages: u64,
    /// Names that they gave.
    pub names: u64,
    /// Bytes of objects that were read.
    pub bytes: u64,
    /// Requests that had to wait for one another, as far as the order in which they were sent shows it.
    pub depth: u64,
    /// Time that it took, requests and work.
    pub seconds: f64,
}

/// Time in seconds.
#[must_use]
pub fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_as_they_are_spread() {
        let shape = Shape { disks: 7, days: 1, batch_seconds: 60, every: 5, describe_all: false };
        for disk in 0..7 {
            let mut count = 0;
            for batch in 0..40 {
                assert_eq!(shape.messages_before(disk, batch), count, "disk {disk} batch {batch}");
                count += u64::from(shape.writes(disk, batch));
            }
            assert_eq!(count, 8);
        }
    }
}
