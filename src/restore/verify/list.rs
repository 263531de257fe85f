//! Level list: every name, and every control object by itself.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use futures_util::stream::{self, StreamExt};
use object_store::ObjectStoreExt;
use object_store::path::Path;

use super::{Report, damage_words, tails};
use crate::fault;
use crate::keys::{self, Identity};
use crate::limits;
use crate::restore::damage::Damage;
use crate::signed::AgentCertificate;
use crate::types::{Digest, DiskId, Epoch, Id128, parse_hex};
use crate::vault::epochs::Lineage;
use crate::vault::objects::{
    self, CertificateObject, ControlObject, DiskObject, EpochObject, LaneEndObject, LaneObject, LaneSealObject,
    RecipientsObject, RewrapObject, RouteObject, ShredObject, Signed,
};
use crate::vault::store::Listed;
use crate::vault::{Vault, VaultError, batch, names};

/// Small reads in flight.
const READS: usize = 16;
/// A hole this far below a lane's newest batch is no longer an upload on its way: a gateway holds far fewer at a time.
const BATCHES_IN_FLIGHT_MAX: u64 = 1024;

/// Looks at single names, per hole: a gateway fills only its newest holes.
const LOOKS_MAX: usize = 256;

/// First and last line of a wrapped key.
const ARMOR_BEGIN: &str = "-----BEGIN AGE ENCRYPTED FILE-----\n";
const ARMOR_END: &str = "-----END AGE ENCRYPTED FILE-----\n";

/// What one lane has by name.
#[derive(Default)]
pub(super) struct LaneNames {
    registered: bool,
    sealed: bool,
    end: Option<u64>,
    /// Whether its disks have keys in it.
    disk_keys: bool,
    /// What its newest batch says was confirmed when it was made.
    confirmed_through: u64,
    /// Numbers and sizes.
    pub(super) batches: BTreeMap<u64, u64>,
    /// Numbers of its lane indexes.
    pub(super) indexes: BTreeSet<u64>,
}

/// What one disk has by name.
#[derive(Default)]
pub(super) struct DiskNames {
    described: bool,
    pub(super) epochs: Vec<EpochObject>,
    epoch_numbers: BTreeSet<u64>,
    routes: BTreeSet<Id128>,
    /// Those of its routes in which its key stands.
    keyed: BTreeSet<Id128>,
    /// The word that it was shredded.
    pub(super) shred: Option<ShredObject>,
    /// Parts of its folded indexes, by lane.
    pub(super) folded: BTreeMap<Id128, BTreeSet<u32>>,
    /// Those with which its barriers were signed.
    pub(super) certificates: HashMap<Digest, AgentCertificate>,
}

/// Everything that was listed.
#[derive(Default)]
pub(super) struct Listing {
    pub(super) lanes: BTreeMap<Id128, LaneNames>,
    pub(super) disks: BTreeMap<DiskId, DiskNames>,
    keys: BTreeSet<String>,
}

/// What a name stands for.
enum Named {
    Vault,
    Key(String),
    Recipients,
    Rewrap,
    Lane(Id128),
    LaneEnd(Id128),
    LaneSeal(Id128),
    Batch(Id128, u64),
    LaneIndex(Id128, u64),
    Disk(DiskId),
    Epoch(DiskId, u64),
    Route(DiskId, Id128),
    Shred(DiskId),
    Folded(DiskId, Id128, u32),
    Certificate(DiskId, Digest),
    /// Hints and the keeper's manifests: their loss costs time, never data.
    Hint,
}

/// A name is known only if it is exactly what the writers would have written.
fn named(path: &Path) -> Option<Named> {
    let text = path.as_ref();
    let parts: Vec<&str> = text.split('/').collect();
    let (found, name) = match parts[..] {
        ["vault"] => (Named::Vault, names::vault()),
        ["keys", kid] => (Named::Key(kid.to_owned()), names::key(kid)),
        ["recipients", _] => (Named::Recipients, names::recipients_list(names::number(path)?)),
        ["rewraps", lane, _] => (Named::Rewrap, names::rewrap(lane.parse().ok()?, names::number(path)?)),
        ["lanes", name] => lane_file(name)?,
        ["b", _, lane, _] => {
            let (lane, n) = (lane.parse().ok()?, names::number(path)?);
            (Named::Batch(lane, n), names::batch(lane, n))
        }
        ["x", lane, _] => {
            let (lane, k) = (lane.parse().ok()?, names::number(path)?);
            (Named::LaneIndex(lane, k), names::lane_index(lane, k))
        }
        ["d", disk, ref rest @ ..] => disk_file(&DiskId::new(disk).ok()?, path, rest)?,
        ["hint" | "m", ..] => return Some(Named::Hint),
        _ => return None,
    };
    (name == *path).then_some(found)
}

fn lane_file(name: &str) -> Option<(Named, Path)> {
    let (id, kind) = name.split_once('.').unwrap_or((name, ""));
    let lane = id.parse().ok()?;
    Some(match kind {
        "" => (Named::Lane(lane), names::lane(lane)),
        "end" => (Named::LaneEnd(lane), names::lane_end(lane)),
        "seal" => (Named::LaneSeal(lane), names::lane_seal(lane)),
        _ => return None,
    })
}

fn disk_file(disk: &DiskId, path: &Path, rest: &[&str]) -> Option<(Named, Path)> {
    Some(match rest {
        ["disk"] => (Named::Disk(disk.clone()), names::disk(disk)),
        ["shred"] => (Named::Shred(disk.clone()), names::shred(disk)),
        ["e", _] => {
            let n = names::number(path)?;
            (Named::Epoch(disk.clone(), n), names::epoch(disk, Epoch(n)))
        }
        ["r", lane] => {
            let lane = lane.parse().ok()?;
            (Named::Route(disk.clone(), lane), names::route(disk, lane))
        }
        ["f", _, _] => {
            let (lane, part) = names::folded_part(disk, path)?;
            (Named::Folded(disk.clone(), lane, part), names::folded(disk, lane, part))
        }
        ["c", digest] => {
            let digest = Digest(parse_hex(digest)?);
            (Named::Certificate(disk.clone(), digest), names::certificate(disk, digest))
        }
        _ => return None,
    })
}

/// What a control object told, once it was read and believed.
enum Told {
    Nothing,
    /// A lane, and whether its disks have keys in it.
    Lane(Id128, bool),
    End(Id128, u64),
    /// The disk's key stands in its route to the lane.
    Key(DiskId, Id128),
    Shred(ShredObject),
    Epoch(EpochObject),
    Certificate(DiskId, Box<AgentCertificate>),
    Wrong(String),
}

/// Lists everything, reads every control object, and checks what names alone can tell.
pub(super) async fn check(
    vault: &Vault,
    identity: Option<&Identity>,
    report: &mut Report,
) -> Result<Listing, VaultError> {
    let mut listing = Listing::default();
    let mut control = Vec::new();
    for Listed { path, size_bytes, .. } in vault.store().list(None).await? {
        report.objects += 1;
        report.bytes += size_bytes;
        match named(&path) {
            Some(Named::Hint) => {}
            Some(found) => {
                if listing.note(&found, size_bytes) {
                    control.push((path, found));
                }
            }
            None => report.notes.push(format!("{path} is not of a vault: nothing of that name belongs there")),
        }
    }
    let read = |(path, found): (Path, Named)| async move { (read(vault, identity, &path, found).await, path) };
    let mut reads = stream::iter(control).map(read).buffered(READS);
    while let Some((told, path)) = reads.next().await {
        match told? {
            Told::Nothing => {}
            Told::End(lane, last) => listing.lanes.entry(lane).or_default().end = Some(last),
            Told::Lane(lane, disk_keys) => listing.lanes.entry(lane).or_default().disk_keys = disk_keys,
            Told::Key(disk, lane) => {
                listing.disks.entry(disk).or_default().keyed.insert(lane);
            }
            Told::Shred(word) => {
                let disk = word.disk.clone();
                listing.disks.entry(disk).or_default().shred = Some(word);
            }
            Told::Epoch(epoch) => listing.disks.entry(epoch.disk.clone()).or_default().epochs.push(epoch),
            Told::Certificate(disk, certificate) => {
                let certificates = &mut listing.disks.entry(disk).or_default().certificates;
                certificates.insert(certificate.digest, *certificate);
            }
            Told::Wrong(what) => report.damaged(Damage::object(path, what)),
        }
    }
    check_recipients(vault, identity, report).await?;
    report.lanes = listing.lanes.len() as u64;
    report.batches = listing.lanes.values().map(|lane| lane.batches.len() as u64).sum();
    ask_newest(vault, &mut listing).await?;
    check_lanes(&listing, report);
    check_disks(&mut listing, report);
    if !listing.keys.contains(&vault.head().catalog_kid.to_string()) {
        let what = "is missing: without it the recovery identity alone does not open the vault";
        report.damaged(Damage::object(names::key(&vault.head().catalog_kid.to_string()), what));
    }
    Ok(listing)
}

impl Listing {
    /// Whether a route leads from the disk to the lane.
    pub(super) fn routed(&self, disk: &DiskId, lane: Id128) -> bool {
        self.disks.get(disk).is_some_and(|disk| disk.routes.contains(&lane))
    }

    /// The word that a disk was shredded, if it was.
    pub(super) fn shredded(&self, disk: &DiskId) -> Option<&ShredObject> {
        self.disks.get(disk)?.shred.as_ref()
    }

    /// The disks with a route to the lane.
    pub(super) fn carried_by(&self, lane: Id128) -> Vec<&str> {
        let carried = self.disks.iter().filter(|(_, names_of)| names_of.routes.contains(&lane));
        carried.map(|(disk, _)| disk.as_str()).collect()
    }

    /// Notes a name; whether its object is to be read.
    fn note(&mut self, found: &Named, size_bytes: u64) -> bool {
        match found {
            Named::Batch(lane, n) => {
                self.lanes.entry(*lane).or_default().batches.insert(*n, size_bytes);
                return false;
            }
            Named::LaneIndex(lane, k) => {
                self.lanes.entry(*lane).or_default().indexes.insert(*k);
                return false;
            }
            Named::Folded(disk, lane, part) => {
                self.disks.entry(disk.clone()).or_default().folded.entry(*lane).or_default().insert(*part);
                return false;
            }
            Named::Lane(lane) => self.lanes.entry(*lane).or_default().registered = true,
            Named::LaneEnd(lane) => {
                self.lanes.entry(*lane).or_default();
            }
            Named::LaneSeal(lane) => self.lanes.entry(*lane).or_default().sealed = true,
            Named::Key(kid) => {
                self.keys.insert(kid.clone());
            }
            Named::Disk(disk) => self.disks.entry(disk.clone()).or_default().described = true,
            Named::Epoch(disk, n) => {
                self.disks.entry(disk.clone()).or_default().epoch_numbers.insert(*n);
            }
            Named::Route(disk, lane) => {
                self.disks.entry(disk.clone()).or_default().routes.insert(*lane);
            }
            Named::Shred(disk) => {
                self.disks.entry(disk.clone()).or_default();
            }
            Named::Vault | Named::Hint | Named::Recipients | Named::Rewrap | Named::Certificate(..) => {}
        }
        true
    }
}

/// Reads a control object and checks that it says of itself what its name says.
async fn read(vault: &Vault, identity: Option<&Identity>, path: &Path, found: Named) -> Result<Told, VaultError> {
    let told = match found {
        Named::Key(kid) => return read_key(vault, identity, path, &kid).await,
        Named::Lane(lane) => object::<LaneObject>(vault, path)
            .await
            .map(|object| (object.lane == lane, Told::Lane(lane, object.disk_keys))),
        Named::LaneEnd(lane) => object::<LaneEndObject>(vault, path)
            .await
            .map(|object| (object.lane == lane, Told::End(lane, object.last_batch))),
        Named::LaneSeal(lane) => {
            object::<LaneSealObject>(vault, path).await.map(|object| (object.lane == lane, Told::Nothing))
        }
        Named::Disk(disk) => object::<DiskObject>(vault, path).await.map(|object| (object.disk == disk, Told::Nothing)),
        Named::Epoch(disk, n) => object::<EpochObject>(vault, path)
            .await
            .map(|object| (object.disk == disk && object.epoch.0 == n, Told::Epoch(object))),
        Named::Route(disk, lane) => object::<RouteObject>(vault, path).await.map(|object| {
            let told = if object.sealed_key.is_some() { Told::Key(disk.clone(), lane) } else { Told::Nothing };
            (object.disk == disk && object.lane == lane, told)
        }),
        Named::Shred(disk) => {
            object::<ShredObject>(vault, path).await.map(|object| (object.disk == disk, Told::Shred(object)))
        }
        Named::Certificate(disk, digest) => return read_certificate(vault, path, disk, digest).await,
        // What they are worth is checked together, as each list signs what follows; here that they authenticate too.
        Named::Recipients => object::<Signed<RecipientsObject>>(vault, path).await.map(|_| (true, Told::Nothing)),
        Named::Rewrap => object::<Signed<RewrapObject>>(vault, path).await.map(|_| (true, Told::Nothing)),
        // Opening the vault checked its own description.
        Named::Vault | Named::Batch(..) | Named::LaneIndex(..) | Named::Folded(..) | Named::Hint => {
            return Ok(Told::Nothing);
        }
    };
    match told {
        Ok((true, told)) => Ok(told),
        Ok((false, _)) => Ok(Told::Wrong("it describes something else than its name says".to_owned())),
        Err(error) => damage_words(error).map(Told::Wrong),
    }
}

/// A certificate that was kept; whether anybody vouches for it is another question.
async fn read_certificate(vault: &Vault, path: &Path, disk: DiskId, digest: Digest) -> Result<Told, VaultError> {
    let object = match object::<CertificateObject>(vault, path).await {
        Ok(object) if object.disk == disk => object,
        Ok(_) => return Ok(Told::Wrong("it describes something else than its name says".to_owned())),
        Err(error) => return damage_words(error).map(Told::Wrong),
    };
    Ok(match object.certificate(digest) {
        Ok(certificate) => Told::Certificate(disk, Box::new(certificate)),
        Err(what) => Told::Wrong(what),
    })
}

/// Reads one object, authenticated if the key is at hand.
async fn object<T: ControlObject>(vault: &Vault, path: &Path) -> Result<T, VaultError> {
    let missing = || VaultError::Missing { object: path.to_string(), place: vault.store().shown().to_owned() };
    if vault.catalog_key().is_some() {
        return vault.get_object(path).await?.ok_or_else(missing);
    }
    let bytes = vault.store().get(path, limits::CONTROL_OBJECT_BYTES_MAX).await?.ok_or_else(missing)?;
    Ok(objects::decode_unchecked(path, &bytes)?)
}

/// A wrapped catalog key: whether it opens can be told only with an identity, and then it is.
async fn read_key(vault: &Vault, identity: Option<&Identity>, path: &Path, kid: &str) -> Result<Told, VaultError> {
    let bytes = match vault.store().get(path, limits::CONTROL_OBJECT_BYTES_MAX).await.map_err(VaultError::from) {
        Ok(bytes) => bytes.unwrap_or_default(),
        Err(error) => return damage_words(error).map(Told::Wrong),
    };
    let Ok(text) = std::str::from_utf8(&bytes) else { return Ok(Told::Wrong("it is no wrapped key".to_owned())) };
    let recipients: Vec<String> = vault.first_recipients().iter().map(ToString::to_string).collect();
    if keys::wrapped_to(text) != recipients {
        return Ok(Told::Wrong("it is not wrapped to the recipients of the vault".to_owned()));
    }
    if !text.contains(ARMOR_BEGIN) || !text.ends_with(ARMOR_END) {
        return Ok(Told::Wrong("it is no whole wrapped key".to_owned()));
    }
    // Who became a recipient later finds the key in a list of recipients.
    let Some(identity) = identity.filter(|one| vault.first_recipients().contains(&one.recipient())) else {
        return Ok(Told::Nothing);
    };
    match keys::unwrap(identity, text) {
        Ok(secret) if keys::CatalogKey::from_secret(*secret).kid().to_string() == kid => Ok(Told::Nothing),
        Ok(_) => Ok(Told::Wrong("it holds another key than its name says".to_owned())),
        Err(error) => Ok(Told::Wrong(fault::chain_text(&error))),
    }
}

/// The lists of recipients, and with the key at hand the lane keys that were wrapped anew.
async fn check_recipients(vault: &Vault, identity: Option<&Identity>, report: &mut Report) -> Result<(), VaultError> {
    let lists = vault.lists().await?;
    let untimed = lists.activated().filter(|activated| activated.counts_until.is_none());
    report.notes.extend(untimed.map(|activated| activated.to_string()));
    let present = lists.present();
    let named = identity.filter(|one| present.n > 0 && present.recipients.contains(&one.recipient()));
    if named.is_some_and(|identity| !vault.opens_list(present, identity)) {
        let what = "it names the recipient of the identity given, but its keys do not open with it";
        report.damaged(Damage::object(names::recipients_list(present.n), what));
    }
    let mut refused = lists.refused.clone();
    if vault.catalog_key().is_some() {
        let wraps = vault.wraps(&lists).await?;
        refused.extend(wraps.refused);
        let (behind, all) = (wraps.behind.len(), wraps.lanes);
        if behind > 0 {
            let mend = "`tidegate vault rewrap` mends it";
            report.notes.push(format!("{behind} of {all} lanes do not open for all recipients: {mend}"));
        }
    }
    refused.into_iter().for_each(|one| report.damaged(Damage::object(one.object, one.reason)));
    Ok(())
}

/// Where a lane has holes, asks its newest batch what was there once; needs the key. A batch that was uploaded while the
/// listing ran fills its hole.
async fn ask_newest(vault: &Vault, listing: &mut Listing) -> Result<(), VaultError> {
    if vault.catalog_key().is_none() {
        return Ok(());
    }
    for (lane, names_of) in &mut listing.lanes {
        let Some((&newest, &size_bytes)) = names_of.batches.last_key_value() else { continue };
        let holes = holes(names_of.batches.keys().copied(), newest);
        if holes.is_empty() || names_of.end.is_some() {
            continue;
        }
        if let Ok(index) = tails::tail(vault, *lane, newest, size_bytes).await? {
            names_of.confirmed_through = index.confirmed_through;
        }
        for (first, last) in holes {
            for n in (first..=last).take_while(|n| *n <= names_of.confirmed_through).take(LOOKS_MAX) {
                let path = names::batch(*lane, n);
                if vault.store().exists(&path).await?
                    && let Ok(meta) = vault.store().inner().head(&path).await
                {
                    names_of.batches.insert(n, meta.size);
                }
            }
        }
    }
    Ok(())
}

fn check_lanes(listing: &Listing, report: &mut Report) {
    for (lane, names_of) in &listing.lanes {
        if !names_of.registered {
            let what = "is missing: the lane's key is lost, its batches cannot be opened";
            report.damaged(Damage::object(names::lane(*lane), what));
        }
        let newest = names_of.batches.last_key_value().map_or(0, |(n, _)| *n);
        let end = names_of.end.unwrap_or(0);
        for (first, last) in holes(names_of.batches.keys().copied(), newest.max(end)) {
            let object = names::batch(*lane, first);
            let count = last - first + 1;
            let many = if count > 1 { format!(" with the {} that follow it", count - 1) } else { String::new() };
            let proven =
                first <= end.max(names_of.confirmed_through) || newest.saturating_sub(last) >= BATCHES_IN_FLIGHT_MAX;
            match (proven, names_of.sealed) {
                (true, false) => report.damaged(Damage::object(object, format!("is missing{many}"))),
                (_, true) => report.notes.push(format!("{object} is gone{many}; its lane is sealed for retention")),
                (false, false) => {
                    report.late.push(format!(
                        "{object} is missing{many}; the names alone do not tell whether it was ever there"
                    ));
                }
            }
        }
        let least_bytes = (batch::HEADER_BYTES + batch::TRAILER_BYTES) as u64;
        for (n, size_bytes) in names_of.batches.iter().filter(|(_, size_bytes)| **size_bytes < least_bytes) {
            let what = format!("the object has {size_bytes} bytes, fewer than any batch");
            report.damaged(Damage::object(names::batch(*lane, *n), what));
        }
    }
}

fn check_disks(listing: &mut Listing, report: &mut Report) {
    for (disk, names_of) in &mut listing.disks {
        names_of.epochs.sort_unstable_by_key(|epoch| epoch.epoch);
        if !names_of.described {
            report.damaged(Damage::object(names::disk(disk), "is missing"));
        }
        let newest = names_of.epoch_numbers.last().copied().unwrap_or(0);
        for (first, last) in holes(names_of.epoch_numbers.iter().copied(), newest) {
            for n in first..=last {
                report.damaged(Damage::object(names::epoch(disk, Epoch(n)), "is missing"));
            }
        }
        if names_of.epochs.is_empty() && !names_of.routes.is_empty() {
            report.damaged(Damage::object(names::epoch(disk, Epoch(1)), "is missing"));
        }
        if let Err(error) = Lineage::of(&names_of.epochs)
            && names_of.epochs.len() == names_of.epoch_numbers.len()
        {
            report.damaged(Damage::object(names::epochs(disk), error.to_string()));
        }
        for lane in &names_of.routes {
            let Some(names_of_lane) = listing.lanes.get(lane) else {
                let what = format!("is missing, though disk {disk} was carried by it");
                report.damaged(Damage::object(names::lane(*lane), what));
                continue;
            };
            if names_of_lane.disk_keys && names_of.shred.is_none() && !names_of.keyed.contains(lane) {
                let what = "has no key of the disk: nothing opens what the lane holds of it";
                report.damaged(Damage::object(names::route(disk, *lane), what));
            }
        }
        if let Some(word) = names_of.shred.as_ref() {
            report.notes.push(shredded(word, names_of.keyed.len()));
        }
    }
}

/// What is said of a shredded disk.
fn shredded(word: &ShredObject, keyed: usize) -> String {
    let (object, made, reason) = (names::shred(&word.disk), word.made_micros, &word.reason);
    let left = match keyed {
        0 => String::new(),
        _ => format!("; {keyed} of its routes have a key still: if it is to go, ask `tidegate vault shred` again"),
    };
    format!("disk {} was shredded at {made} ({reason}), as {object} says{left}", word.disk)
}

/// Runs of numbers from 1 to `last` that are not among `present`.
fn holes(present: impl Iterator<Item = u64>, last: u64) -> Vec<(u64, u64)> {
    let mut runs = Vec::new();
    let mut next = 1;
    for n in present.take_while(|n| *n <= last).chain([last + 1]) {
        if n > next {
            runs.push((next, n - 1));
        }
        next = n + 1;
    }
    runs
}
