//! A lane: one gateway incarnation's right to write batches, and its key.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::objects::{LaneEndObject, LaneObject, LaneSealObject};
use super::put::Created;
use super::recipients::Lists;
use super::store::Listed;
use super::{Vault, VaultError, names};
use crate::flow::Clock;
use crate::keys::{self, CatalogKey, LaneKey, LaneKeys};
use crate::limits;
use crate::mutants::{self, Mutant};
use crate::types::{Id128, Micros};

/// An open lane. Its key exists in this value and, wrapped, in the vault; nowhere else. So do the keys of disks in it, sealed in routes.
#[derive(Debug, Clone)]
pub struct Lane {
    id: Id128,
    keys: Arc<LaneKeys>,
    catalog: CatalogKey,
    list: u64,
    opened: Duration,
}

/// The list of recipients is not one of those that were pinned.
#[derive(Debug, thiserror::Error)]
#[error(
    "list {list} of the vault's recipients ({}) is not pinned, so nothing is wrapped to it: if it is as it should be, add its pin \
     {pin} to `recipients_pin`, and reload; if not, see docs/OPERATING.md, \"A leaked identity\"",
    recipients.join(", ")
)]
pub struct NotPinned {
    /// Its number.
    pub list: u64,
    /// Who is on it.
    pub recipients: Vec<String>,
    /// Its pin.
    pub pin: String,
}

/// Why no lane was opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenLaneError {
    /// The vault.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The list of recipients is not one of those that were pinned.
    #[error(transparent)]
    NotPinned(#[from] NotPinned),
}

impl Lane {
    /// Registers a new lane with a fresh random id and key, wrapped to those who are recipients at this moment.
    ///
    /// # Errors
    /// A failed request, or no random bytes.
    pub async fn open(vault: &Vault, gateway: &str, clock: &dyn Clock) -> Result<Self, VaultError> {
        Self::wrapped_to(vault, gateway, clock, &vault.lists().await?).await
    }

    /// The same, only if `pins` has the pin of the list of recipients, or is empty.
    ///
    /// # Errors
    /// As [`Lane::open`], and [`OpenLaneError::NotPinned`].
    pub async fn open_pinned(
        vault: &Vault,
        gateway: &str,
        clock: &dyn Clock,
        pins: &[String],
    ) -> Result<Self, OpenLaneError> {
        let lists = vault.lists().await?;
        lists.present().check_pinned(pins)?;
        // What was looked at is what is wrapped to: a list that comes now is the next lane's.
        Ok(Self::wrapped_to(vault, gateway, clock, &lists).await?)
    }

    async fn wrapped_to(vault: &Vault, gateway: &str, clock: &dyn Clock, lists: &Lists) -> Result<Self, VaultError> {
        let key = LaneKey::generate()?;
        let id = if mutants::on(Mutant::LaneReused) { Id128([7; 16]) } else { Id128(keys::random()?) };
        let catalog = register(vault, lists, (id, &key), gateway, clock.wall(), false).await?;
        let keys = Arc::new(LaneKeys::new(vault.id(), id, key));
        Ok(Self { id, keys, catalog, list: lists.present().n, opened: clock.boot() })
    }

    /// Registers a lane for messages that a keeper moves as they are. It has a key like any other, so that everybody treats it alike; nothing
    /// is sealed with it, and it is forgotten at once. Also returns the catalog key under which its indexes are to be sealed.
    ///
    /// # Errors
    /// As [`Lane::open`].
    pub async fn register_moved(vault: &Vault, now: Micros) -> Result<(Id128, CatalogKey), VaultError> {
        let id = Id128(keys::random()?);
        let catalog = register(vault, &vault.lists().await?, (id, &LaneKey::generate()?), KEEPER, now, true).await?;
        Ok((id, catalog))
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> Id128 {
        self.id
    }

    /// Its key.
    #[must_use]
    pub fn key(&self) -> &LaneKey {
        self.keys.lane_key()
    }

    /// Its key with those of the disks in it.
    #[must_use]
    pub fn keys(&self) -> &Arc<LaneKeys> {
        &self.keys
    }

    /// The catalog key under which its indexes are sealed, whatever takes that key's place meanwhile.
    #[must_use]
    pub fn catalog_key(&self) -> &CatalogKey {
        &self.catalog
    }

    /// The list of recipients that its key was wrapped to.
    #[must_use]
    pub fn list(&self) -> u64 {
        self.list
    }

    /// Whether the key has served its time and another lane should take over.
    #[must_use]
    pub fn is_due(&self, clock: &dyn Clock) -> bool {
        clock.boot().saturating_sub(self.opened) >= Duration::from_secs(limits::LANE_AGE_SECONDS_MAX)
    }

    /// The lane's seal, if somebody wrote one: nothing that is vaulted later may count.
    ///
    /// # Errors
    /// A failed request, or a seal that is not believed.
    pub async fn check_seal(&self, vault: &Vault) -> Result<Option<LaneSealObject>, VaultError> {
        vault.get_object(&names::lane_seal(self.id)).await
    }

    /// Writes the lane's end: `last_batch` is there, and nothing follows.
    ///
    /// # Errors
    /// A failed request.
    pub async fn end(&self, vault: &Vault, last_batch: u64) -> Result<Created, VaultError> {
        vault.put_object(&names::lane_end(self.id), &LaneEndObject { lane: self.id, last_batch }).await
    }
}

/// What stands in the place of the gateway in lanes of moved messages.
const KEEPER: &str = "keeper";

/// Returns the catalog key of the lane's indexes.
async fn register(
    vault: &Vault,
    lists: &Lists,
    (lane, key): (Id128, &LaneKey),
    gateway: &str,
    created_micros: Micros,
    moved: bool,
) -> Result<CatalogKey, VaultError> {
    let catalog = vault.key_named(lists.present().catalog_kid)?;
    lists.refused.iter().for_each(|refused| tracing::error!("{refused}"));
    let list = lists.present().n;
    let object = LaneObject {
        lane,
        gateway: gateway.to_owned(),
        created_micros,
        catalog_kid: catalog.kid(),
        wrapped_key: keys::wrap(&lists.present().recipients, key.expose())?,
        list: (list > 0).then_some(list),
        moved,
        disk_keys: !moved,
    };
    vault.put_object(&names::lane(lane), &object).await?;
    Ok(catalog)
}

/// A lane as a listing shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedLane {
    /// Its id.
    pub lane: Id128,
    /// Whether its registration is there.
    pub registered: bool,
    /// Whether it has an end.
    pub ended: bool,
    /// When its seal appeared, by the store's clock, in microseconds since 1970; none if it has none.
    pub sealed: Option<i64>,
}

/// A batch that appears in a sealed lane so long after the seal counts for nobody: no gateway acks it, so no reader may
/// take it for vaulted, and whoever keeps the vault may delete it at any time. A gateway acks nothing without a look for
/// the seal in the last five seconds; the rest is for stores that tell times in whole seconds.
pub const LATE_AFTER_SEAL: Duration = Duration::from_secs(30);

impl ListedLane {
    /// Whether a batch that appeared at `modified_micros`, by the store's clock, came too late to count.
    #[must_use]
    pub fn is_late(&self, modified_micros: i64) -> bool {
        self.sealed.is_some_and(|sealed| modified_micros > sealed + LATE_AFTER_SEAL.as_micros() as i64)
    }
}

/// Groups the objects below `lanes/` by lane.
pub(super) fn group(listed: &[Listed]) -> Vec<ListedLane> {
    let mut lanes: BTreeMap<Id128, ListedLane> = BTreeMap::new();
    for Listed { path, modified_micros, .. } in listed {
        let name = path.filename().unwrap_or_default();
        let (id, kind) = name.split_once('.').unwrap_or((name, ""));
        let Ok(lane) = id.parse() else { continue };
        let entry = lanes.entry(lane).or_insert(ListedLane { lane, registered: false, ended: false, sealed: None });
        match kind {
            "" => entry.registered = true,
            "end" => entry.ended = true,
            "seal" => entry.sealed = Some(*modified_micros),
            _ => {}
        }
    }
    lanes.into_values().collect()
}
