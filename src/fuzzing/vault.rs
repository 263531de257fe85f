//! What a blob store may give back: batches, indexes, control objects, sealed messages.

use std::collections::BTreeSet;

use bytes::{Bytes, BytesMut};
use object_store::path::Path;

use crate::keeper::config::KeeperConfig;
use crate::keeper::marks::next_runs;
use crate::keys::{CatalogKey, DiskKey, DiskSecret, LaneKey, MessageKey, SigningKey, mac};
use crate::limits::MESSAGE_BYTES_MAX;
use crate::pipeline::codec::{Codec, Packing, unpack};
use crate::pipeline::message::{MessageContext, Scratch, open, seal};
use crate::types::{DiskId, Epoch, Id128, RecordView, Seq};
use crate::vault::batch::{BatchError, BatchHeader, BatchTrailer, Tail, open_index, parse_tail};
use crate::vault::epochs::Lineage;
use crate::vault::index::folded::{FoldedBuilder, FoldedIndex, FoldedPlace, SealedFolded};
use crate::vault::index::lane::{LaneIndex, LaneIndexBuilder};
use crate::vault::index::{BatchIndex, IndexPlace};
use crate::vault::objects::{
    ClaimObject, ControlObject, DiskObject, EpochObject, FoldObject, LaneEndObject, LaneObject, LaneSealObject,
    ManifestObject, PinObject, RecipientsObject, RewrapObject, RouteObject, ShredObject, Signed, SignedContent,
    VaultObject, decode, decode_unchecked, encode,
};

const PART_BYTES: usize = 64;

fn catalog_key() -> CatalogKey {
    CatalogKey::from_secret([7; 32])
}

/// Sets magic and checksum of the 64 bytes from `at` on, if they are there.
fn mend_part(bytes: &mut [u8], at: usize, magic: &[u8; 4]) {
    if let Some(part) = bytes.get_mut(at..at + PART_BYTES) {
        part[..4].copy_from_slice(magic);
        let sum = crc_fast::crc32_iscsi(&part[..60]);
        part[60..].copy_from_slice(&sum.to_le_bytes());
    }
}

/// First byte: bit 0 sets the checksums right, bit 1 the sizes too, bits 2 on how many bytes of the object are not at hand.
pub(super) fn batch(input: &[u8]) {
    let Some((mode, bytes)) = super::mode(input) else { return };
    let mut bytes = bytes.to_vec();
    let more = u64::from(mode >> 2);
    let total_bytes = bytes.len() as u64 + more;
    if mode & 1 == 1 && bytes.len() >= 2 * PART_BYTES {
        let trailer = bytes.len() - PART_BYTES;
        if mode & 2 == 2 {
            let index_bytes = u64::from(u16::from_le_bytes([bytes[trailer + 16], bytes[trailer + 17]]));
            let offset_bytes = (total_bytes - PART_BYTES as u64).saturating_sub(index_bytes);
            bytes[trailer + 8..trailer + 16].copy_from_slice(&offset_bytes.to_le_bytes());
            bytes[trailer + 18..trailer + 20].fill(0);
            bytes[trailer + 24..trailer + 32].copy_from_slice(&total_bytes.to_le_bytes());
        }
        mend_part(&mut bytes, trailer, b"TGT\x01");
        mend_part(&mut bytes, 0, b"TGB\x01");
    }
    let bytes = Bytes::from(bytes);
    if let Ok(header) = BatchHeader::decode(&bytes) {
        assert_eq!(header.encode(), bytes[..PART_BYTES]);
    }
    match parse_tail(total_bytes, &bytes) {
        Err(_) => {}
        Ok(Tail::Whole { trailer, index }) => {
            check_trailer(&trailer, &bytes);
            assert_eq!(index.bytes.len() as u64, trailer.index_range().end - trailer.index_range().start);
            let place = IndexPlace { vault: Id128::NONE, object: "b/0", lane: trailer.lane, n: trailer.n };
            // Nobody seals by chance.
            let opened = open_index(&catalog_key(), &place, &trailer, &index);
            assert!(matches!(opened, Err(BatchError::Index(_))), "{opened:?}");
        }
        Ok(Tail::More { trailer, range }) => {
            check_trailer(&trailer, &bytes);
            assert_eq!(range, trailer.index_offset_bytes..total_bytes);
        }
    }
}

fn check_trailer(trailer: &BatchTrailer, bytes: &[u8]) {
    assert_eq!(trailer.encode(), bytes[bytes.len() - PART_BYTES..]);
}

/// The plaintext of an index, of either version: refused, or the one encoding of what it decodes to. Then the way through the seal.
pub(super) fn index(input: &[u8]) {
    let Ok(index) = BatchIndex::decode(input) else { return };
    assert_eq!(index.encode(), input);
    let _ = index.check_layout(PART_BYTES as u64, u64::from(u32::MAX));
    let rows: usize = index.disks.iter().flat_map(|part| &part.messages).map(|one| one.records.len()).sum();
    assert!(rows <= input.len(), "every row has its bytes");
    let moved = index.disks.iter().flat_map(|part| &part.messages).any(|message| message.origin.is_some());
    assert_eq!(input[0], if moved { 2 } else { 1 });
    for message in index.disks.iter().flat_map(|part| &part.messages) {
        assert!(message.origin.is_none_or(|origin| origin.n > 0 && (origin.lane, origin.n) != (index.lane, index.n)));
        assert_eq!(message.last.0 - message.first.0 + 1, message.records.len() as u64);
        assert!(message.offset_bytes.checked_add(message.stored_bytes.into()).is_some());
    }
    let (key, place) = (catalog_key(), IndexPlace { vault: Id128::NONE, object: "b/0", lane: index.lane, n: index.n });
    let sealed = index.seal(&key, &place).unwrap();
    assert_eq!(BatchIndex::open(&key, &place, &sealed), Ok(index));
}

/// First byte: bit 0 sets the checksums and the size right, along the lengths that the entries state.
pub(super) fn lane_index(input: &[u8]) {
    let Some((mode, bytes)) = super::mode(input) else { return };
    let mut bytes = bytes.to_vec();
    if mode & 1 == 1 && bytes.len() >= PART_BYTES {
        let total_bytes = bytes.len() as u64;
        bytes[48..56].copy_from_slice(&total_bytes.to_le_bytes());
        bytes[56..60].fill(0);
        mend_part(&mut bytes, 0, b"TGX\x01");
        let mut at = PART_BYTES;
        while let Some(head) = bytes.get(at..at + 32) {
            let end = at + 32 + usize::from(u16::from_le_bytes([head[16], head[17]]));
            if end > bytes.len() {
                break;
            }
            bytes[at + 18..at + 20].fill(0);
            let sum = crc_fast::crc32_iscsi(&[&bytes[at..at + 28], &bytes[at + 32..end]].concat());
            bytes[at + 28..at + 32].copy_from_slice(&sum.to_le_bytes());
            at = end;
        }
    }
    let object = Bytes::from(bytes);
    let Ok(parsed) = LaneIndex::parse(&object) else { return };
    assert!(parsed.entries.len() * 32 <= object.len(), "every entry has its bytes");
    let mut builder = LaneIndexBuilder::new(parsed.vault, parsed.lane, parsed.first);
    for entry in parsed.entries {
        assert!(builder.push(entry.n, entry.total_bytes, entry.index));
    }
    assert_eq!(builder.finish(), object, "a lane index has one encoding");
}

/// First byte: bit 0 sets the checksums and the size right, along the lengths that the sections state; bit 1 takes the bytes for the plaintext
/// of rows instead, of batches 1 to 2^32 of lane 0 and the disk `d`.
pub(super) fn folded_index(input: &[u8]) {
    let Some((mode, bytes)) = super::mode(input) else { return };
    let Ok(disk) = DiskId::new("d") else { return };
    if mode & 2 == 2 {
        let told = [1, 1 << 32, 7_u64].map(u64::to_le_bytes).concat();
        let sections = [told, bytes.to_vec()].into_iter().map(Ok);
        let Ok(folded) = FoldedIndex::decode(Id128::NONE, &disk, true, sections) else { return };
        let mut builder = FoldedBuilder::default();
        folded.batches.iter().for_each(|batch| builder.push(batch.total_bytes, &batch.index.encode()));
        let place = FoldedPlace { vault: Id128::NONE, object: "d/d/f/0/0001", lane: Id128::NONE, part: 1 };
        let object = builder.finish(&catalog_key(), &place, folded.bounds).unwrap();
        let sealed = SealedFolded::parse(&place, &object).unwrap();
        assert_eq!(sealed.open(&catalog_key(), &place, &disk), Ok(folded));
        return;
    }
    let mut bytes = bytes.to_vec();
    if mode & 1 == 1 && bytes.len() >= PART_BYTES {
        let total_bytes = bytes.len() as u64;
        bytes[48..56].copy_from_slice(&total_bytes.to_le_bytes());
        bytes[56..60].fill(0);
        mend_part(&mut bytes, 0, b"TGF\x01");
        let mut at = PART_BYTES;
        while let Some(head) = bytes.get(at..at + 16) {
            let end = at + 16 + usize::from(u16::from_le_bytes([head[0], head[1]]));
            if end > bytes.len() {
                break;
            }
            bytes[at + 2..at + 4].fill(0);
            let sum = crc_fast::crc32_iscsi(&[&bytes[at..at + 12], &bytes[at + 16..end]].concat());
            bytes[at + 12..at + 16].copy_from_slice(&sum.to_le_bytes());
            at = end;
        }
    }
    let object = Bytes::from(bytes);
    let ids = |at: usize| object.get(at..at + 16).map_or([0; 16], |id| std::array::from_fn(|byte| id[byte]));
    let part = object.get(40..44).map_or(0, |part| u32::from_le_bytes([part[0], part[1], part[2], part[3]]));
    let place = FoldedPlace { vault: Id128(ids(8)), object: "d/d/f/0/0001", lane: Id128(ids(24)), part };
    let Ok(sealed) = SealedFolded::parse(&place, &object) else { return };
    assert_eq!(sealed.encode(&place), object, "a folded index has one encoding");
    // Nobody seals by chance.
    assert!(sealed.open(&catalog_key(), &place, &disk).is_err());
}

/// First byte: which object; bit 7 appends the right MAC to the line.
pub(super) fn objects(input: &[u8]) {
    let Some((mode, bytes)) = super::mode(input) else { return };
    let authentic = mode & 0x80 != 0;
    match mode % 7 {
        0 => drop(object::<VaultObject>(bytes, authentic)),
        1 => drop(object::<LaneObject>(bytes, authentic)),
        2 => drop(object::<LaneEndObject>(bytes, authentic)),
        3 => drop(object::<LaneSealObject>(bytes, authentic)),
        4 => drop(object::<DiskObject>(bytes, authentic)),
        5 => drop(object::<RouteObject>(bytes, authentic)),
        _ => lineage(bytes, authentic),
    }
}

/// First byte: which of the keeper's objects, the word of a shredded disk among them, or its configuration; bit 7 appends the right MAC to the line. Of a manifest also
/// what a reader and the next run of the keeper do with it.
pub(super) fn keeper(input: &[u8]) {
    let Some((mode, bytes)) = super::mode(input) else { return };
    let authentic = mode & 0x80 != 0;
    match mode & 7 {
        0 => {
            let Some(manifest) = object::<ManifestObject>(bytes, authentic) else { return };
            if !manifest.is_sound(manifest.lane, manifest.n) {
                return;
            }
            let numbers = [1, 2, 3, 40, 44, u64::MAX];
            let told: Vec<u64> = numbers.into_iter().filter(|n| manifest.run_of(*n).is_some()).collect();
            let (present, none) = (numbers.into_iter().collect(), BTreeSet::new());
            let Some(let_go) = next_runs(&manifest.let_go, &present, &none, &none, 7) else { return };
            let next = ManifestObject { let_go, ..manifest };
            assert!(next.is_sound(next.lane, next.n));
            assert!(numbers.into_iter().filter(|n| next.run_of(*n).is_some()).eq(told));
        }
        1 => drop(object::<PinObject>(bytes, authentic)),
        2 => drop(object::<ClaimObject>(bytes, authentic)),
        4 => drop(object::<FoldObject>(bytes, authentic)),
        5 => drop(object::<ShredObject>(bytes, authentic)),
        _ => {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            if let Err(error) = KeeperConfig::parse(std::path::Path::new("/nowhere/keeper.toml"), text) {
                assert!(!error.mistakes.is_empty(), "a file is refused for a reason");
            }
        }
    }
}

pub(super) fn object<T: ControlObject + PartialEq + std::fmt::Debug>(bytes: &[u8], authentic: bool) -> Option<T> {
    let (key, path) = (catalog_key(), Path::from("x/y"));
    let mut stored = bytes.to_vec();
    if authentic {
        stored.push(b'\n');
        let tag = mac(&key, "object x/y", &stored);
        stored.extend(tag.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()));
        stored.push(b'\n');
    }
    let unchecked = decode_unchecked::<T>(&path, &stored).ok();
    let checked = decode::<T>(&key, &path, &stored).ok();
    let content = if authentic && !bytes.contains(&b'\n') {
        assert_eq!(checked, unchecked);
        checked?
    } else {
        unchecked?
    };
    let again = encode(&key, &path, &content).unwrap();
    assert_eq!(decode::<T>(&key, &path, &again).unwrap(), content);
    Some(content)
}

/// First byte: bit 0 tells a list of recipients from a wrap made anew; bit 6 signs the line as it is; bit 7 appends the right MAC.
pub(super) fn recipients(input: &[u8]) {
    let Some((mode, bytes)) = super::mode(input) else { return };
    let authentic = mode & 0x80 != 0;
    if mode & 1 == 0 {
        drop(object::<Signed<RecipientsObject>>(bytes, authentic));
        signed::<RecipientsObject>(bytes, mode & 0x40 != 0);
    } else {
        drop(object::<Signed<RewrapObject>>(bytes, authentic));
        signed::<RewrapObject>(bytes, mode & 0x40 != 0);
    }
}

/// Nobody signs by chance. What is signed opens as what it says, in its place alone.
fn signed<T: SignedContent + PartialEq + std::fmt::Debug>(bytes: &[u8], sign: bool)
where
    Signed<T>: ControlObject,
{
    let (place, other, catalog) = (Path::from("x/y"), Path::from("x/z"), catalog_key());
    let key = SigningKey::from_seed(zeroize::Zeroizing::new([8; 32]));
    let public = key.verifying_key();
    assert!(Signed::<T>::open(None, &public, Id128::NONE, &place, bytes).is_err());
    if !sign {
        return;
    }
    let Ok(content) = serde_json::from_slice::<T>(bytes) else { return };
    let ours = Signed::new(&key, Id128::NONE, &place, &content).unwrap();
    let stored = encode(&catalog, &place, &ours).unwrap();
    assert_eq!(Signed::<T>::open(Some(&catalog), &public, Id128::NONE, &place, &stored).unwrap(), content);
    assert!(Signed::<T>::open(Some(&catalog), &public, Id128::NONE, &other, &stored).is_err());
}

/// Epochs, one per line.
fn lineage(bytes: &[u8], authentic: bool) {
    let lines = bytes.split(|byte| *byte == b'\n').take(32);
    let epochs: Vec<EpochObject> = if authentic {
        lines.filter_map(|line| object(line, true)).collect()
    } else {
        lines.filter_map(|line| object(&[line, b"\n"].concat(), false)).collect()
    };
    for epoch in &epochs {
        let _ = (epoch.fork_point(), epoch.first_chain());
    }
    if let Ok(lineage) = Lineage::of(&epochs) {
        assert!(lineage.segments().len() <= epochs.len());
        assert!(lineage.segments().windows(2).all(|pair| pair[0].epoch < pair[1].epoch));
        assert_eq!(lineage.newest(), epochs.iter().map(|epoch| epoch.epoch).max());
    }
}

/// First two bytes: the plaintext size that the index states. Third: the lower two bits are the codec. The rest as a sealed message, which
/// must be refused; as packed content, which must never overrun its size; and as plaintext, which must come back.
pub(super) fn message(input: &[u8]) {
    let [low, high, codec, bytes @ ..] = input else { return };
    let plain_bytes = u32::from(u16::from_le_bytes([*low, *high]));
    let Ok(disk) = DiskId::new("disk") else { return };
    let codec = Codec::from_byte(codec & 3).unwrap_or(Codec::Lz4);
    let context = MessageContext {
        vault: Id128::NONE,
        object: "b/0",
        disk: &disk,
        epoch: Epoch(1),
        first: Seq(1),
        last: Seq(1),
        codec,
        plain_bytes,
    };
    // Either construction: what opens with one opens with no other.
    let lane_key = LaneKey::from_secret([7; 32]);
    let disk_secret = DiskSecret::new(&lane_key, &DiskKey::from_secret([8; 32]));
    let keys: [MessageKey; 2] = [lane_key.into(), disk_secret.into()];
    let [key, other] = if bytes.len().is_multiple_of(2) {
        keys
    } else {
        let [one, two] = keys;
        [two, one]
    };
    let mut out = Vec::new();
    assert!(open(&key, &context, bytes, &mut out).is_err());
    if unpack(codec, bytes, plain_bytes as usize, &mut out).is_ok() {
        assert_eq!(out.len(), plain_bytes as usize);
        // What a restore does with it next.
        let mut rest = out.as_slice();
        while let Ok((_, after)) = RecordView::split(rest) {
            rest = after;
        }
    }
    let packing = if codec == Codec::Zstd { Packing::Zstd(1) } else { Packing::Lz4 };
    let mut scratch = Scratch::new(packing);
    let (info, sealed) = seal(&key, &context, bytes, &mut scratch, BytesMut::with_capacity).unwrap();
    let opened = MessageContext { codec: info.codec, plain_bytes: bytes.len() as u32, ..context };
    open(&key, &opened, &sealed, &mut out).unwrap();
    assert_eq!(out, bytes);
    assert!(open(&other, &opened, &sealed, &mut out).is_err());
    let too_large = MessageContext { plain_bytes: MESSAGE_BYTES_MAX as u32 + 1, ..opened };
    assert!(open(&key, &too_large, &sealed, &mut out).is_err());
}
