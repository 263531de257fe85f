//! With what messages open: the keys of lanes, opened at once, and those of disks in them, read when something of a disk in a lane is
//! first wanted. So a recovery reads one route for each lane that it opens messages of, and of older lanes none.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OnceCell;

use crate::fault::{self, Classify, Fault};
use crate::keys::{DiskSecret, LaneKey, MessageKey};
use crate::types::{DiskId, Id128};
use crate::vault::objects::{LaneObject, RouteObject};
use crate::vault::store::GetError;
use crate::vault::{Vault, VaultError, names};

/// The key of a disk's messages in a lane, or why it cannot be had.
pub(super) type Found = Result<MessageKey, Arc<str>>;

/// What is known of the disks of each lane: a cell is filled by the first read, and who comes meanwhile waits for it.
type Cells = HashMap<Id128, HashMap<DiskId, Arc<OnceCell<Found>>>>;

/// A lane that the identity opens.
#[derive(Debug)]
struct OpenLane {
    key: LaneKey,
    disk_keys: bool,
}

/// The keys of a recovery, bounded by the lanes of its catalog, and in each by the disks that are read.
#[derive(Debug, Default)]
pub(super) struct Keys {
    lanes: HashMap<Id128, OpenLane>,
    disks: Mutex<Cells>,
}

impl Keys {
    /// Takes the key of a lane.
    pub(super) fn add(&mut self, lane: &LaneObject, key: LaneKey) {
        self.lanes.insert(lane.lane, OpenLane { key, disk_keys: lane.disk_keys });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// What is known of the key of a disk in a lane whose disks have keys.
    fn cell(&self, disk: &DiskId, lane: Id128) -> Option<Arc<OnceCell<Found>>> {
        self.disks.lock().get(&lane)?.get(disk).cloned()
    }

    /// Whether [`Keys::of`] knows all that can be known of a disk in a lane.
    pub(super) fn is_ready(&self, disk: &DiskId, lane: Id128) -> bool {
        let has_keys = self.lanes.get(&lane).is_some_and(|open| open.disk_keys);
        !has_keys || self.cell(disk, lane).is_some_and(|cell| cell.initialized())
    }

    /// Reads the key of a disk in a lane, if it is not there yet; who comes meanwhile waits for the one read.
    ///
    /// # Errors
    /// The store fails. What is missing or damaged is told by [`Keys::of`].
    pub(super) async fn make_ready(&self, vault: &Vault, disk: &DiskId, lane: Id128) -> Result<(), GetError> {
        let Some(open) = self.lanes.get(&lane).filter(|open| open.disk_keys) else { return Ok(()) };
        let cell = {
            let mut disks = self.disks.lock();
            Arc::clone(disks.entry(lane).or_default().entry(disk.clone()).or_default())
        };
        cell.get_or_try_init(|| read(vault, disk, lane, &open.key)).await.map(|_| ())
    }

    /// The key of a disk's messages in a lane; `None` if the lane's own cannot be had, or [`Keys::make_ready`] was not called.
    pub(super) fn of(&self, disk: &DiskId, lane: Id128) -> Option<Found> {
        let open = self.lanes.get(&lane)?;
        if open.disk_keys {
            return self.cell(disk, lane)?.get().cloned();
        }
        Some(Ok(open.key.clone().into()))
    }
}

async fn read(vault: &Vault, disk: &DiskId, lane: Id128, key: &LaneKey) -> Result<Found, GetError> {
    let path = names::route(disk, lane);
    let what = match vault.route(disk, lane).await {
        Ok(Some(RouteObject { sealed_key: Some(sealed), .. })) => match sealed.open(key, vault.id(), disk, lane) {
            Ok(opened) => return Ok(Ok(DiskSecret::new(key, &opened).into())),
            Err(error) => format!("the disk's key in {path} does not open: {error}"),
        },
        Ok(Some(_)) => format!("{path} has no key of the disk any more: it was destroyed, and nothing opens this"),
        Ok(None) => format!("{path} is missing, and with it the disk's key: nothing opens this"),
        Err(VaultError::Get(error)) if error.fault() != Fault::Corrupt => return Err(error),
        Err(error) => format!("the disk's key cannot be had: {}", fault::chain_text(&error)),
    };
    Ok(Err(what.into()))
}
