//! What a pipeline is told of the lane that it makes batches for.

use std::fmt;
use std::sync::Arc;

use crate::flow::{Tally, Watermark};
use crate::keys::{CatalogKey, LaneKeys};
use crate::types::Id128;

/// The lane that batches are made for.
#[derive(Clone)]
pub struct LaneContext {
    /// The vault.
    pub vault: Id128,
    /// The lane.
    pub lane: Id128,
    /// Seal the lane's messages, disk by disk.
    pub keys: Arc<LaneKeys>,
    /// Seals the indexes.
    pub catalog: CatalogKey,
    /// Number of the lane's next batch, from 1.
    pub next_n: u64,
    /// Highest number up to which every batch of the lane was confirmed by the store. Written by the uploader, read when
    /// an index is made.
    pub confirmed: Arc<Watermark>,
    /// How long batches of the lane were held up by the uplink. Written by the uploader, read to choose a codec.
    pub uplink: Arc<Tally>,
    /// The object name of a batch within the vault.
    pub object_name: fn(lane: Id128, n: u64) -> String,
}

impl fmt::Debug for LaneContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LaneContext({} from batch {})", self.lane, self.next_n)
    }
}
