//! Where each object of a vault stands. Names are part of the format: messages and control objects are bound to them.
//!
//! Numbers have a fixed width, so that a listing comes in order.

use object_store::path::Path;

use crate::types::{Digest, DiskId, Epoch, Id128, Micros, parse_hex};

/// The description of the vault itself.
#[must_use]
pub fn vault() -> Path {
    Path::from("vault")
}

/// The catalog key `kid`, wrapped to the vault's recipients.
#[must_use]
pub fn key(kid: &str) -> Path {
    Path::from(format!("keys/{kid}"))
}

/// Folder of the lists of recipients that came after the vault's own.
#[must_use]
pub fn recipients() -> Path {
    Path::from("recipients")
}

/// List of recipients `n`, from 1.
#[must_use]
pub fn recipients_list(n: u64) -> Path {
    recipients().join(format!("{n:08}"))
}

/// Folder of all lane keys that were wrapped anew.
#[must_use]
pub fn all_rewraps() -> Path {
    Path::from("rewraps")
}

/// Folder of the wraps that were made anew of one lane's key.
#[must_use]
pub fn rewraps(lane: Id128) -> Path {
    Path::from(format!("rewraps/{lane}"))
}

/// Wrap `n` of a lane's key, from 1.
#[must_use]
pub fn rewrap(lane: Id128, n: u64) -> Path {
    rewraps(lane).join(format!("{n:08}"))
}

/// The lane in the name of a wrap made anew.
#[must_use]
pub fn lane_of_rewrap(path: &Path) -> Option<Id128> {
    path.parts().nth(1)?.as_ref().parse().ok()
}

/// Folder of all lanes.
#[must_use]
pub fn lanes() -> Path {
    Path::from("lanes")
}

/// A lane's registration, with its wrapped key.
#[must_use]
pub fn lane(lane: Id128) -> Path {
    Path::from(format!("lanes/{lane}"))
}

/// The lane's end: its last batch, written by a clean shutdown.
#[must_use]
pub fn lane_end(lane: Id128) -> Path {
    Path::from(format!("lanes/{lane}.end"))
}

/// The lane's seal: its gateway may no longer count on any batch written after it.
#[must_use]
pub fn lane_seal(lane: Id128) -> Path {
    Path::from(format!("lanes/{lane}.seal"))
}

/// Folder of the batches of all lanes.
#[must_use]
pub fn all_batches() -> Path {
    Path::from("b")
}

/// The lane in a batch's name.
#[must_use]
pub fn lane_of_batch(path: &Path) -> Option<Id128> {
    path.parts().nth(2)?.as_ref().parse().ok()
}

/// Folder of a lane's batches. The three digits in front spread lanes over the store's partitions.
#[must_use]
pub fn batches(lane: Id128) -> Path {
    let lane = lane.to_string();
    Path::from(format!("b/{}/{lane}", &lane[..3]))
}

/// Batch `n` of a lane, from 1.
#[must_use]
pub fn batch(lane: Id128, n: u64) -> Path {
    batches(lane).join(format!("{n:012}"))
}

/// The same as text: the name that a batch's content is bound to.
#[must_use]
pub fn batch_name(lane: Id128, n: u64) -> String {
    batch(lane, n).to_string()
}

/// Folder of a lane's indexes.
#[must_use]
pub fn lane_indexes(lane: Id128) -> Path {
    Path::from(format!("x/{lane}"))
}

/// Lane index `k`, from 1.
#[must_use]
pub fn lane_index(lane: Id128, k: u64) -> Path {
    lane_indexes(lane).join(format!("{k:08}"))
}

/// Folder of all disks.
#[must_use]
pub fn disks() -> Path {
    Path::from("d")
}

/// Folder of everything that stands of a disk: its description, epochs, routes and folded indexes.
#[must_use]
pub fn disk_folder(disk: &DiskId) -> Path {
    Path::from(format!("d/{disk}"))
}

/// A disk's description.
#[must_use]
pub fn disk(disk: &DiskId) -> Path {
    Path::from(format!("d/{disk}/disk"))
}

/// The word that a disk is shredded.
#[must_use]
pub fn shred(disk: &DiskId) -> Path {
    Path::from(format!("d/{disk}/shred"))
}

/// Folder of a disk's epochs.
#[must_use]
pub fn epochs(disk: &DiskId) -> Path {
    Path::from(format!("d/{disk}/e"))
}

/// An epoch of a disk.
#[must_use]
pub fn epoch(disk: &DiskId, epoch: Epoch) -> Path {
    epochs(disk).join(format!("{:08}", epoch.0))
}

/// Folder of the certificates with which agents signed barriers of a disk.
#[must_use]
pub fn certificates(disk: &DiskId) -> Path {
    Path::from(format!("d/{disk}/c"))
}

/// A certificate by its digest.
#[must_use]
pub fn certificate(disk: &DiskId, digest: Digest) -> Path {
    certificates(disk).join(digest.to_string())
}

/// The digest in the name of a certificate.
#[must_use]
pub fn digest_of_certificate(path: &Path) -> Option<Digest> {
    parse_hex(path.filename()?).map(Digest)
}

/// Folder of the lanes that carried a disk.
#[must_use]
pub fn routes(disk: &DiskId) -> Path {
    Path::from(format!("d/{disk}/r"))
}

/// The note that a lane carried a disk, with the disk's key in it.
#[must_use]
pub fn route(disk: &DiskId, lane: Id128) -> Path {
    routes(disk).join(lane.to_string())
}

/// Part of the folded index of a disk in a lane, from 1.
#[must_use]
pub fn folded(disk: &DiskId, lane: Id128, part: u32) -> Path {
    Path::from(format!("d/{disk}/f/{lane}/{part:04}"))
}

/// Lane and part in the name of a disk's folded index.
#[must_use]
pub fn folded_part(disk: &DiskId, path: &Path) -> Option<(Id128, u32)> {
    let lane = path.parts().nth(3)?.as_ref().parse().ok()?;
    let part = u32::try_from(number(path)?).ok().filter(|&part| part > 0)?;
    (folded(disk, lane, part) == *path).then_some((lane, part))
}

/// Hours since 1970: announcements stand in folders by the hour, so that who follows them lists little.
#[must_use]
pub const fn hour(time: Micros) -> u64 {
    time.0 / (3600 * 1_000_000)
}

/// Folder of the epochs that were announced in an hour.
#[must_use]
pub fn announcements(hour: u64) -> Path {
    Path::from(format!("hint/epochs/{hour:08}"))
}

/// The announcement that an epoch of a disk is about to begin.
#[must_use]
pub fn announcement(hour: u64, disk: &DiskId, epoch: Epoch) -> Path {
    Path::from(format!("hint/epochs/{hour:08}/{disk}/{:08}", epoch.0))
}

/// Disk and epoch of an announcement's name.
#[must_use]
pub fn announced(path: &Path) -> Option<(DiskId, Epoch)> {
    let disk = path.parts().nth(3)?;
    Some((DiskId::new(disk.as_ref()).ok()?, Epoch(number(path)?)))
}

/// The lane in a route's name.
#[must_use]
pub fn lane_of_route(path: &Path) -> Option<Id128> {
    let mut parts = path.parts().skip(2);
    (parts.next()?.as_ref() == "r").then(|| parts.next()?.as_ref().parse().ok())?
}

/// Folder of everything that keepers write, but lane indexes and seals.
#[must_use]
pub fn kept() -> Path {
    Path::from("m")
}

/// Folder of the keeper's manifests of all lanes.
#[must_use]
pub fn all_manifests() -> Path {
    Path::from("m/l")
}

/// The lane in a manifest's name.
#[must_use]
pub fn lane_of_manifest(path: &Path) -> Option<Id128> {
    path.parts().nth(2)?.as_ref().parse().ok()
}

/// Folder of the keeper's notes on what it has folded.
#[must_use]
pub fn folds() -> Path {
    Path::from("m/f")
}

/// Note `n`, from 1, on how far a lane is folded.
#[must_use]
pub fn fold(lane: Id128, n: u64) -> Path {
    Path::from(format!("m/f/{lane}/{n:08}"))
}

/// The note that a lane is folded as a whole.
#[must_use]
pub fn fold_whole(lane: Id128) -> Path {
    Path::from(format!("m/f/{lane}/whole"))
}

/// The lane in the name of a note on folding.
#[must_use]
pub fn lane_of_fold(path: &Path) -> Option<Id128> {
    path.parts().nth(2)?.as_ref().parse().ok()
}

/// Folder of the keeper's manifests of a lane.
#[must_use]
pub fn manifests(lane: Id128) -> Path {
    Path::from(format!("m/l/{lane}"))
}

/// Manifest `n` of a lane, from 1.
#[must_use]
pub fn manifest(lane: Id128, n: u64) -> Path {
    manifests(lane).join(format!("{n:08}"))
}

/// The number of a lane's manifest, if the name is one of a manifest: others with digits in them are nobody's.
#[must_use]
pub fn manifest_number(lane: Id128, path: &Path) -> Option<u64> {
    number(path).filter(|&n| n > 0 && manifest(lane, n) == *path)
}

/// Folder of the pins.
#[must_use]
pub fn pins() -> Path {
    Path::from("m/p")
}

/// A pin.
#[must_use]
pub fn pin(id: Id128) -> Path {
    Path::from(format!("m/p/{id}"))
}

/// Folder of the keepers' claims.
#[must_use]
pub fn claims() -> Path {
    Path::from("m/c")
}

/// A keeper's claim of a lane, or a run of a keeper.
#[must_use]
pub fn claim(id: Id128) -> Path {
    Path::from(format!("m/c/{id}"))
}

/// The number at the end of a batch's or lane index's or epoch's name.
#[must_use]
pub fn number(path: &Path) -> Option<u64> {
    let digits = path.filename()?;
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_format() {
        let lane = Id128([0xab; 16]);
        let disk = DiskId::new("web-1.sda").expect("valid");
        let hex = "ab".repeat(16);
        assert_eq!(batch(lane, 7).as_ref(), format!("b/aba/{hex}/000000000007"));
        assert_eq!(lane_index(lane, 1).as_ref(), format!("x/{hex}/00000001"));
        assert_eq!(lane_end(lane).as_ref(), format!("lanes/{hex}.end"));
        assert_eq!(epoch(&disk, Epoch(3)).as_ref(), "d/web-1.sda/e/00000003");
        assert_eq!(route(&disk, lane).as_ref(), format!("d/web-1.sda/r/{hex}"));
        assert_eq!(shred(&disk).as_ref(), "d/web-1.sda/shred");
        assert_eq!(lane_of_route(&shred(&disk)), None);
        let certificate = certificate(&disk, Digest([0xcd; 32]));
        assert_eq!(certificate.as_ref(), format!("d/web-1.sda/c/{}", "cd".repeat(32)));
        assert_eq!(lane_of_route(&certificate), None);
        assert_eq!(digest_of_certificate(&certificate), Some(Digest([0xcd; 32])));
        assert_eq!(number(&batch(lane, 41)), Some(41));
        assert_eq!(lane_of_batch(&batch(lane, 41)), Some(lane));
        assert_eq!(lane_of_route(&route(&disk, lane)), Some(lane));
        assert_eq!(lane_of_route(&super::disk(&disk)), None);
        let told = announcement(hour(Micros(1_764_000_000_000_000)), &disk, Epoch(7));
        assert_eq!(told.as_ref(), "hint/epochs/00490000/web-1.sda/00000007");
        assert_eq!(announced(&told), Some((disk.clone(), Epoch(7))));
        assert_eq!(announced(&route(&disk, lane)), None);
        assert_eq!(number(&lane_end(lane)), None);
        assert_eq!(manifest(lane, 3).as_ref(), format!("m/l/{hex}/00000003"));
        assert_eq!(manifest_number(lane, &manifest(lane, 3)), Some(3));
        assert_eq!(manifest_number(lane, &manifests(lane).join("900")), None);
        assert_eq!(pin(lane).as_ref(), format!("m/p/{hex}"));
        assert_eq!(claim(lane).as_ref(), format!("m/c/{hex}"));
        assert_eq!(recipients_list(2).as_ref(), "recipients/00000002");
        assert_eq!(rewrap(lane, 1).as_ref(), format!("rewraps/{hex}/00000001"));
        assert_eq!(lane_of_rewrap(&rewrap(lane, 1)), Some(lane));
        assert_eq!(folded(&disk, lane, 2).as_ref(), format!("d/web-1.sda/f/{hex}/0002"));
        assert_eq!(folded_part(&disk, &folded(&disk, lane, 2)), Some((lane, 2)));
        assert_eq!(folded_part(&disk, &route(&disk, lane)), None);
        assert_eq!(lane_of_route(&folded(&disk, lane, 1)), None);
        assert_eq!(fold(lane, 2).as_ref(), format!("m/f/{hex}/00000002"));
        assert_eq!(fold_whole(lane).as_ref(), format!("m/f/{hex}/whole"));
        assert_eq!(lane_of_fold(&fold_whole(lane)), Some(lane));
        assert_eq!(lane_of_manifest(&manifest(lane, 3)), Some(lane));
    }
}
