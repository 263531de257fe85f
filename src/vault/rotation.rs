//! Another catalog key in the place of the present one, in two steps, so that no gateway stops.
//!
//! ```text
//!  stage     a list names the next key ─► its file goes to gateways and keepers, which are started anew and write under the present one
//!  activate  a list makes it the present key ─► within a minute each gateway ends its lane, and opens the next under the new key
//!            │ one hour │ ─► what appears under the old key counts no more (`keyring`)
//! ```
//!
//! Purpose: the two lists, and which lanes are still under an older key, or were opened by somebody who may not know of the next one.
//!
//! Invariants
//! - Whoever has the staged key has the present one, so nobody needs two files.
//! - Before a key is activated every lane is sealed that was opened before it was staged and has no end: a gateway of a release that cannot read
//!   such lists may still write there, and would go on for a day. A sealed lane acks nothing more.
//! - Killed anywhere, a step is finished by asking for it again.
//!
//! What it does not own: reading the lists (`recipients`), what counts (`keyring`), when a gateway looks (`gateway`).

use std::fmt;

use futures_util::stream::{self, StreamExt};

use super::lane::{self, ListedLane};
use super::objects::{LaneObject, LaneSealObject, NextCatalogKey, ObjectError};
use super::recipients::Lists;
use super::{Vault, VaultError, names};
use crate::fault::{Classify as _, Fault};
use crate::keys::chain::SealedOlderKey;
use crate::keys::{self, CatalogKey, Identity, KeyId, RandomError};
use crate::types::{Id128, Micros};

/// Registrations that are read at the same time.
const READS: usize = 16;

/// A catalog key that is staged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Staged {
    /// Its name.
    pub kid: KeyId,
    /// The first list that named it.
    pub list: u64,
    /// When that was made.
    pub made: Micros,
}

/// A catalog key that took the place of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Activated {
    /// The key that was replaced.
    pub older: KeyId,
    /// The list that did it.
    pub list: u64,
    /// When that was made.
    pub made: Micros,
    /// What the older key made counts only if it appeared until then, by the store's clock; none if the store's time of the list is not that
    /// of its making, so that all counts.
    pub counts_until: Option<Micros>,
}

impl Lists {
    /// The catalog key that is staged, if there is one.
    #[must_use]
    pub fn staged(&self) -> Option<Staged> {
        let kid = self.present().next.as_ref()?.kid;
        let first = self.all().find(|list| list.next.as_ref().is_some_and(|next| next.kid == kid))?;
        Some(Staged { kid, list: first.n, made: first.made })
    }

    /// How the present catalog key came to its place; none for the vault's first.
    #[must_use]
    pub fn activated(&self) -> Option<Activated> {
        let older = self.all().rev().find(|list| list.catalog_kid != self.present().catalog_kid)?.catalog_kid;
        let replaced = self.replaced(older)?;
        let counts_until = replaced.until_micros.map(|until| Micros(u64::try_from(until).unwrap_or(0)));
        Some(Activated { older, list: replaced.list, made: replaced.made, counts_until })
    }
}

impl fmt::Display for Activated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.counts_until {
            Some(until) => {
                write!(f, "catalog key {}: what appears under it after {until} counts for nobody", self.older)
            }
            None => write!(
                f,
                "catalog key {}: what appears under it counts whenever that is, as list {} has another time in the store than that of its \
                 making, {}: the vault is a copy, or a clock was wrong; replace the catalog key once more",
                self.older, self.list, self.made
            ),
        }
    }
}

/// A lane that may still be written, by its registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenLane {
    /// The lane.
    pub lane: Id128,
    /// Who opened it.
    pub gateway: String,
    /// When.
    pub created: Micros,
    /// The catalog key under which its indexes are sealed.
    pub catalog_kid: KeyId,
    /// The list of recipients that its gateway went by.
    pub list: u64,
}

impl Vault {
    /// Stages a catalog key, on behalf of a present recipient; if one is staged already, that one is returned. Also returns the lists as they
    /// are then, read back.
    ///
    /// # Errors
    /// As [`Vault::change_recipients`].
    pub async fn stage_catalog_key(
        &self,
        identity: &Identity,
        basis: &Lists,
        now: Micros,
    ) -> Result<(CatalogKey, Lists), VaultError> {
        let present = basis.present();
        if present.next.is_some() {
            return Ok((self.open_staged(present, identity)?, basis.clone()));
        }
        let (key, next) = (self.key_named(present.catalog_kid)?, CatalogKey::generate()?);
        let sealed_older_key = SealedOlderKey::new(self.id(), &key, &next).map_err(|_| RandomError)?;
        let wrapped_key = keys::wrap(&present.recipients, next.expose())?;
        let staged = NextCatalogKey { kid: next.kid(), wrapped_key, sealed_older_key };
        let lists = self.put_list(identity, basis, (&present.recipients, key, Some(staged)), now).await?;
        // As it stands there, and not as it was made.
        let read_back = self.open_staged(lists.present(), identity)?;
        Ok((read_back, lists))
    }

    /// Makes the staged catalog key the present one, on behalf of a present recipient. Returns the lists as they are then, read back.
    ///
    /// # Errors
    /// [`VaultError::NothingStaged`], and as [`Vault::change_recipients`].
    pub async fn activate_catalog_key(
        &self,
        identity: &Identity,
        basis: &Lists,
        now: Micros,
    ) -> Result<Lists, VaultError> {
        let present = basis.present();
        let key = self.open_staged(present, identity)?;
        self.put_list(identity, basis, (&present.recipients, key, None), now).await
    }

    /// Lanes without end and seal. One whose registration is not believed is nobody's to write, and told by `verify`.
    ///
    /// # Errors
    /// A failed request.
    pub async fn open_lanes(&self) -> Result<Vec<OpenLane>, VaultError> {
        let listed = lane::group(&self.store().list(Some(&names::lanes())).await?);
        let is_open = |one: &ListedLane| one.registered && !one.ended && one.sealed.is_none();
        let open: Vec<Id128> = listed.iter().filter(|one| is_open(one)).map(|one| one.lane).collect();
        let read = |lane: Id128| async move { self.get_object::<LaneObject>(&names::lane(lane)).await };
        let mut reads = stream::iter(open).map(read).buffered(READS);
        let mut lanes = Vec::new();
        while let Some(found) = reads.next().await {
            match found {
                Ok(Some(LaneObject { lane, gateway, created_micros: created, catalog_kid, list, .. })) => {
                    lanes.push(OpenLane { lane, gateway, created, catalog_kid, list: list.unwrap_or(0) });
                }
                Ok(None) => {}
                Err(VaultError::Object(ObjectError::Version { .. })) => {}
                Err(error) if error.fault() == Fault::Corrupt => {}
                Err(error) => return Err(error),
            }
        }
        Ok(lanes)
    }

    /// Seals a lane: a gateway that writes there goes on in another one, if it may.
    ///
    /// # Errors
    /// A failed request.
    pub async fn seal_lane(&self, lane: Id128, now: Micros, reason: &str) -> Result<(), VaultError> {
        let seal = LaneSealObject { lane, sealed_micros: now, reason: reason.to_owned() };
        match self.put_object(&names::lane_seal(lane), &seal).await {
            // Sealed by somebody else.
            Ok(_) | Err(VaultError::Taken { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests;
