//! Destroying one disk: its keys go, and with them everything that was sealed with them, also in batches that it shares with others.
//!
//! ```text
//!  not pinned, no lane of it in use ─► d/<disk>/shred: says so, and which lanes ─► each route: deleted, put again without a key
//!                                                                            └─► all routes read back: no key left
//! ```
//!
//! Each step may be the last one, and asked again the verb goes on: the word names the lanes, so a route that is missing between its deletion
//! and its return is known. Nothing is ever put back. From the word on readers refuse the disk, gateways do not open it, and keepers need
//! nothing of it whose key is gone.
//!
//! What it cannot do: take a key from who kept a copy of a route, or of the gateway's memory; reach what the container keeps of deleted objects
//! (soft delete, versions, immutability); destroy what was sealed before disks had keys.
//!
//! Needs the catalog key and a credential that may delete, as a keeper has. The recovery identity is not needed, and proves nothing here.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::config::Work;
use super::pins;
use crate::fault::{Classify, Fault};
use crate::limits::SHRED_LANES_MAX;
use crate::restore::source;
use crate::types::{DiskId, Id128, Micros};
use crate::vault::objects::{LaneObject, ShredObject};
use crate::vault::reader::Want;
use crate::vault::{Vault, VaultError, names};

/// Routes that are read or changed at the same time.
const ROUTES_AT_ONCE: usize = 16;

/// Words that one call writes at most: more are needed only by a store that keeps what was deleted.
const WORDS_MAX: u32 = 8;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The disk.
    pub disk: DiskId,
    /// Why, for people.
    pub reason: String,
    /// Whether to go on although some of its data was sealed before disks had keys.
    pub leave_older: bool,
    /// The time by this machine.
    pub now: Micros,
}

/// Data that was sealed with a lane key alone: no shredding reaches it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Older {
    /// Lanes.
    pub lanes: u64,
    /// Batches that hold some.
    pub batches: u64,
    /// Bytes of its messages.
    pub bytes: u64,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shredded {
    /// The word that stands in the vault.
    pub word: ShredObject,
    /// Routes that lost their key by this call.
    pub destroyed: u64,
    /// Routes of the disk that were read back, none of which has a key.
    pub routes: u64,
    /// What no shredding reaches.
    pub older: Older,
}

/// Why a disk is not shredded, or not wholly.
#[derive(Debug, thiserror::Error)]
pub enum ShredError {
    /// The vault.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// There is no such disk.
    #[error("the vault {place} has no disk {disk}: nothing was done")]
    NoDisk {
        /// The disk.
        disk: DiskId,
        /// The vault.
        place: String,
    },
    /// Somebody reads it, or holds a point of it.
    #[error(
        "disk {disk} is pinned until {until} at least ({reason}): nothing was done. Stop what reads it, wait for that time or delete \
         {pin}, and ask again"
    )]
    Pinned {
        /// The disk.
        disk: DiskId,
        /// When the last pin ends.
        until: Micros,
        /// What it is for.
        reason: String,
        /// The pin.
        pin: String,
    },
    /// A pin cannot be read, and may be of this disk.
    #[error("{what}: nothing was done; ask again when it has ended, in a week at the latest")]
    PinsUnread {
        /// Which, and why.
        what: String,
    },
    /// A gateway may still write it.
    #[error(
        "lane {lane} of gateway {gateway}, begun {created}, holds records of disk {disk} and may be in use: stop protecting the disk, \
         restart that gateway, which ends its lane (one that it left when it was killed gets no end: wait until it is {hours} hours \
         old), and ask again. Routes that are left with a key: {left}"
    )]
    InUse {
        /// The disk.
        disk: DiskId,
        /// The lane.
        lane: Id128,
        /// Its gateway.
        gateway: String,
        /// When it was opened.
        created: Micros,
        /// Age from which it counts as left.
        hours: u64,
        /// Routes with a key.
        left: u64,
    },
    /// Keys stand there though their routes were deleted.
    #[error(
        "{kept} routes of disk {disk} have a key although they were deleted: does the container keep what is deleted, or does \
         somebody write them again? Nothing is destroyed as long as they stand"
    )]
    Kept {
        /// The disk.
        disk: DiskId,
        /// How many.
        kept: u64,
    },
    /// What a write left beside the routes of a vault that is a directory cannot be removed.
    #[error("{routes}: files whose names hold a # may be routes with a key that nobody lists: remove them by hand")]
    Staged {
        /// The directory.
        routes: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Some of its data was sealed before disks had keys.
    #[error(
        "{} batches of {} lanes hold data of disk {disk} from before disks had keys: who opens those lanes opens it, whatever is \
         shredded, and only deleting the batches helps (see docs/OPERATING.md, \"Destroy one disk for good\"). Nothing was done; \
         --leave-older destroys the rest now",
        .older.batches, .older.lanes
    )]
    Older {
        /// The disk.
        disk: DiskId,
        /// How much.
        older: Older,
    },
}

impl Classify for ShredError {
    fn fault(&self) -> Fault {
        match self {
            Self::Vault(error) => error.fault(),
            Self::NoDisk { .. } | Self::Older { .. } | Self::Kept { .. } | Self::Staged { .. } => Fault::Reject,
            Self::Pinned { .. } | Self::PinsUnread { .. } | Self::InUse { .. } => Fault::Retry,
        }
    }
}

/// Shreds a disk, or goes on with it.
///
/// # Errors
/// [`ShredError`]. After one of the vault some routes may have lost their keys; asked again, the rest do.
pub async fn shred(vault: &Vault, wish: &Wish) -> Result<Shredded, ShredError> {
    let work = Shredding { vault, wish };
    let older = work.older().await?;
    let mut word = match vault.shred(&wish.disk).await? {
        Some(word) => word,
        None => work.begin(older).await?,
    };
    let (mut destroyed, mut kept) = (0, 0);
    for _ in 0..WORDS_MAX {
        destroyed += work.destroy(&word.lanes).await?;
        let (routes, left) = work.keyed().await?;
        if left.is_empty() {
            if let Some(directory) = vault.store().directory() {
                let routes = directory.join(names::routes(&wish.disk).as_ref());
                let failed = |source| ShredError::Staged { routes: routes.display().to_string(), source };
                remove_staged(&routes).map_err(failed)?;
            }
            return Ok(Shredded { word, destroyed, routes, older });
        }
        // A gateway that had the disk open went on with it, or there are more than one word names.
        kept = left.len();
        work.check_in_use(&left, kept).await?;
        word = work.say_anew(word, left).await?;
    }
    Err(ShredError::Kept { disk: wish.disk.clone(), kept: kept as u64 })
}

struct Shredding<'a> {
    vault: &'a Vault,
    wish: &'a Wish,
}

impl Shredding<'_> {
    /// Checks that the disk may go, and says that it does.
    async fn begin(&self, older: Older) -> Result<ShredObject, ShredError> {
        let Wish { disk, reason, leave_older, now } = self.wish;
        let routes = self.vault.routes(disk).await?;
        if routes.is_empty() && self.vault.disk(disk).await?.is_none() {
            return Err(ShredError::NoDisk { disk: disk.clone(), place: self.vault.store().shown().to_owned() });
        }
        self.check_pins().await?;
        if older.batches > 0 && !leave_older {
            return Err(ShredError::Older { disk: disk.clone(), older });
        }
        let (_, keyed) = self.keyed().await?;
        self.check_in_use(&routes.into_iter().collect(), keyed.len()).await?;
        let lanes = keyed.into_iter().take(SHRED_LANES_MAX).collect();
        let word = ShredObject { disk: disk.clone(), made_micros: *now, lanes, reason: reason.clone() };
        self.say(word).await
    }

    /// Writes the word. Of two who do so at once, both go on with the one that stands; one that nobody believes makes room.
    async fn say(&self, word: ShredObject) -> Result<ShredObject, ShredError> {
        let path = names::shred(&word.disk);
        for _ in 0..WORDS_MAX {
            match self.vault.put_object(&path, &word).await {
                Ok(_) => return Ok(word),
                Err(VaultError::Taken { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            if let Some(stands) = self.vault.shred(&word.disk).await? {
                return Ok(stands);
            }
            self.vault.store().delete(&path).await.map_err(VaultError::from)?;
        }
        Err(ShredError::Kept { disk: word.disk.clone(), kept: word.lanes.len() as u64 })
    }

    /// Names other lanes in the word. All that it named before have their routes back, so nothing is forgotten if this is the last step.
    async fn say_anew(&self, word: ShredObject, left: BTreeSet<Id128>) -> Result<ShredObject, ShredError> {
        let word = ShredObject { lanes: left.into_iter().take(SHRED_LANES_MAX).collect(), ..word };
        self.vault.store().delete(&names::shred(&word.disk)).await.map_err(VaultError::from)?;
        self.say(word).await
    }

    async fn check_pins(&self) -> Result<(), ShredError> {
        let Wish { disk, now, .. } = self.wish;
        let now_micros = i64::try_from(now.0).unwrap_or(i64::MAX);
        let pins = pins::read(self.vault, now_micros).await?;
        if let Some(what) = pins.holds_all {
            return Err(ShredError::PinsUnread { what });
        }
        let of_disk = pins.all.iter().filter(|pin| pin.ends_micros > now_micros);
        let of_disk = of_disk.filter_map(|pin| Some((pin, pin.object.as_ref().filter(|object| object.disk == *disk)?)));
        match of_disk.max_by_key(|(pin, _)| pin.ends_micros) {
            None => Ok(()),
            Some((pin, object)) => Err(ShredError::Pinned {
                disk: disk.clone(),
                until: super::judge::micros(pin.ends_micros),
                reason: object.reason.clone(),
                pin: pin.path.to_string(),
            }),
        }
    }

    /// Whether a gateway may still write into one of these lanes: it has neither end nor seal, and is no older than lanes in use are.
    async fn check_in_use(&self, lanes: &BTreeSet<Id128>, left: usize) -> Result<(), ShredError> {
        let listed = self.vault.lanes().await?;
        let open = listed.iter().filter(|one| one.registered && !one.ended && one.sealed.is_none());
        for one in open.filter(|one| lanes.contains(&one.lane)) {
            let seal_after = Work::default().seal_after;
            let LaneObject { gateway, created_micros: created, moved, .. } = self.vault.lane(one.lane).await?;
            let age_micros = u128::from(self.wish.now.0.saturating_sub(created.0));
            if !moved && age_micros < seal_after.as_micros() {
                let (disk, lane, hours) = (self.wish.disk.clone(), one.lane, seal_after.as_secs() / 3600);
                return Err(ShredError::InUse { disk, lane, gateway, created, hours, left: left as u64 });
            }
        }
        Ok(())
    }

    /// What was sealed before disks had keys, as far as it stands there.
    async fn older(&self) -> Result<Older, ShredError> {
        let catalog = source::load(self.vault, &Want::disk(&self.wish.disk)).await?;
        let mut lanes: BTreeMap<Id128, bool> = BTreeMap::new();
        let mut older = Older::default();
        for batch in catalog.batches.iter().filter(|batch| batch.present) {
            let mut bytes = 0;
            let mine = batch.index.disks.iter().filter(|part| part.disk == self.wish.disk);
            for message in mine.flat_map(|part| &part.messages) {
                let (lane, _) = batch.index.sealed_in(message);
                // Of a lane without registration nothing opens anything.
                let opens_alone = || catalog.registration(lane).is_some_and(|object| !object.disk_keys);
                if *lanes.entry(lane).or_insert_with(opens_alone) {
                    bytes += u64::from(message.stored_bytes);
                }
            }
            older.bytes += bytes;
            older.batches += u64::from(bytes > 0);
        }
        older.lanes = lanes.values().filter(|opens| **opens).count() as u64;
        Ok(older)
    }

    /// Takes the keys out of the routes to these lanes; returns how many had one.
    async fn destroy(&self, lanes: &[Id128]) -> Result<u64, ShredError> {
        let one = |lane: Id128| async move { self.destroy_one(lane).await };
        let destroyed = stream::iter(lanes.to_vec()).map(one).buffer_unordered(ROUTES_AT_ONCE);
        Ok(destroyed.try_fold(0, |count, had_one| async move { Ok(count + u64::from(had_one)) }).await?)
    }

    async fn destroy_one(&self, lane: Id128) -> Result<bool, VaultError> {
        let (vault, disk) = (self.vault, &self.wish.disk);
        let had_one = match vault.route(disk, lane).await {
            Ok(Some(route)) if route.sealed_key.is_none() => return Ok(false),
            Ok(None) => false,
            Ok(Some(_)) => true,
            // What is damaged may hold the key all the same.
            Err(error @ VaultError::Object(_)) if error.fault() == Fault::Corrupt => true,
            Err(error) => return Err(error),
        };
        vault.store().delete(&names::route(disk, lane)).await?;
        match vault.create_route(disk, lane).await {
            // A gateway came in between with its key: that is seen when all are read back.
            Ok(()) | Err(VaultError::Taken { .. }) => Ok(had_one),
            Err(error) => Err(error),
        }
    }

    /// Reads every route of the disk: how many there are, and to which lanes it still has a key.
    async fn keyed(&self) -> Result<(u64, BTreeSet<Id128>), ShredError> {
        let lanes = self.vault.routes(&self.wish.disk).await?;
        let count = lanes.len() as u64;
        let read = |lane: Id128| async move {
            match self.vault.route(&self.wish.disk, lane).await {
                Ok(route) => Ok::<_, VaultError>(route.and_then(|route| route.sealed_key).map(|_| lane)),
                Err(error @ VaultError::Object(_)) if error.fault() == Fault::Corrupt => Ok(Some(lane)),
                Err(error) => Err(error),
            }
        };
        let keyed: Vec<Option<Id128>> =
            stream::iter(lanes).map(read).buffer_unordered(ROUTES_AT_ONCE).try_collect().await?;
        Ok((count, keyed.into_iter().flatten().collect()))
    }
}

/// What a write that was cut off has left beside the routes of a vault that is a directory: no listing shows it, and it may be a whole route.
fn remove_staged(routes: &std::path::Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(routes)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().contains('#') {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
