//! Which lanes carried a disk, with which key in each, and whether the keys of a disk were destroyed.

use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::epochs::READS_AT_ONCE;
use super::objects::{ControlObject, ObjectError, RouteObject, ShredObject};
use super::{Vault, VaultError, names};
use crate::fault::{self, Classify, Fault};
use crate::keys::SealedDiskKey;
use crate::types::{DiskId, Id128};

impl Vault {
    /// The lanes that carried a disk, sorted. Needs no key.
    ///
    /// # Errors
    /// A failed request.
    pub async fn routes(&self, disk: &DiskId) -> Result<Vec<Id128>, VaultError> {
        let listed = self.store.list(Some(&names::routes(disk))).await?;
        Ok(listed.iter().filter_map(|listed| listed.path.filename()?.parse().ok()).collect())
    }

    /// Notes that a lane carries a disk, where that has no key in it. Repeating it is harmless.
    ///
    /// # Errors
    /// A failed request.
    pub async fn create_route(&self, disk: &DiskId, lane: Id128) -> Result<(), VaultError> {
        self.put_route(disk, lane, None).await
    }

    /// The same with the disk's key in the lane. Repeating it with the same key is harmless, and with another one refused.
    ///
    /// # Errors
    /// [`VaultError::Taken`] if the route has another key; a failed request.
    pub async fn create_keyed_route(&self, disk: &DiskId, lane: Id128, key: SealedDiskKey) -> Result<(), VaultError> {
        self.put_route(disk, lane, Some(key)).await
    }

    async fn put_route(&self, disk: &DiskId, lane: Id128, sealed_key: Option<SealedDiskKey>) -> Result<(), VaultError> {
        let route = RouteObject { disk: disk.clone(), lane, sealed_key };
        self.put_object(&names::route(disk, lane), &route).await.map(|_| ())
    }

    /// The route of a disk to a lane; `None` if there is none.
    ///
    /// # Errors
    /// A failed request, or a route that is not believed.
    pub async fn route(&self, disk: &DiskId, lane: Id128) -> Result<Option<RouteObject>, VaultError> {
        let path = names::route(disk, lane);
        let route = self.get_object::<RouteObject>(&path).await?;
        if route.as_ref().is_some_and(|route| route.disk != *disk || route.lane != lane) {
            let what = format!("it is no {} of this disk to this lane", RouteObject::FORMAT);
            return Err(ObjectError::Malformed { object: path.to_string(), what }.into());
        }
        Ok(route)
    }

    /// The word that a disk is shredded, if there is one. One that is not believed, or came too late for its catalog key, is as if it were not
    /// there, so that nobody without that key keeps a disk from its owner; `verify` says what is wrong with it.
    ///
    /// # Errors
    /// A failed request, or a word of a newer release.
    pub async fn shred(&self, disk: &DiskId) -> Result<Option<ShredObject>, VaultError> {
        let path = names::shred(disk);
        match self.get_object::<ShredObject>(&path).await {
            Ok(Some(shred)) if shred.disk != *disk => {
                tracing::warn!("{path} names another disk, and is not believed");
                Ok(None)
            }
            Err(VaultError::Object(error)) if error.fault() == Fault::Corrupt => {
                tracing::warn!("{}, and is not believed", fault::chain_text(&error));
                Ok(None)
            }
            read => read,
        }
    }

    /// Those of `disks` that were shredded.
    ///
    /// # Errors
    /// As [`Vault::shred`].
    pub async fn shreds(&self, disks: &[DiskId]) -> Result<Vec<ShredObject>, VaultError> {
        let read = |disk: DiskId| async move { self.shred(&disk).await };
        let reads = stream::iter(disks.to_vec()).map(read).buffered(READS_AT_ONCE);
        let words: Vec<Option<ShredObject>> = reads.try_collect().await?;
        Ok(words.into_iter().flatten().collect())
    }
}
