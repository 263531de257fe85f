//! What lies on a disk: partitions, and in each what kind of file system. Pure, but for a function that reads.
//!
//! Partition tables are GPT and the four entries of an MBR, with sectors of 512 bytes; a disk without a table may be one file
//! system as a whole. Everything else is named and left to the user's program.

use std::io;

/// Sectors, as partition tables count on nearly every disk.
const SECTOR_BYTES: u64 = 512;
/// Most partitions that are looked at: GPT's usual table has room for as many.
const PARTITIONS_MAX: usize = 128;
/// Largest entry of a GPT that is taken; the usual one has 128 bytes.
const GPT_ENTRY_BYTES_MAX: u32 = 4096;
/// Enough of a volume to know its kind.
const LOOK_BYTES: usize = 68 << 10;

/// A kind of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// ext2, ext3 or ext4.
    Ext,
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
    /// Swap space: nothing to prove.
    Swap,
    /// Part of a volume group.
    Lvm,
    /// An encrypted volume.
    Luks,
    /// Zeroes at its begin.
    Empty,
    /// Something else.
    Unknown,
}

impl Kind {
    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ext => "ext",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Swap => "swap",
            Self::Lvm => "lvm",
            Self::Luks => "luks",
            Self::Empty => "empty",
            Self::Unknown => "unknown",
        }
    }
}

/// A partition, or a whole disk without any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Volume {
    /// Where it begins.
    pub offset_bytes: u64,
    /// Its size.
    pub length_bytes: u64,
    /// What is in it.
    pub kind: Kind,
}

/// Fills a buffer from a place of the disk.
pub type Read<'a> = &'a mut dyn FnMut(u64, &mut [u8]) -> io::Result<()>;

/// The volumes of a disk of `disk_bytes`.
///
/// # Errors
/// Of `read`, which is asked for nothing beyond the disk.
pub fn volumes(disk_bytes: u64, read: Read<'_>) -> io::Result<Vec<Volume>> {
    let whole = Volume { offset_bytes: 0, length_bytes: disk_bytes, kind: kind_at(0, disk_bytes, read)? };
    if !matches!(whole.kind, Kind::Unknown) {
        return Ok(vec![whole]);
    }
    let mut head = vec![0; (2 * SECTOR_BYTES).min(disk_bytes) as usize];
    read(0, &mut head)?;
    let mut found = match head.get(512..) {
        Some(gpt) if gpt.starts_with(b"EFI PART") => gpt_partitions(disk_bytes, gpt, read)?,
        _ => mbr_partitions(&head),
    };
    found.retain(|(offset, length)| *length > 0 && offset.checked_add(*length).is_some_and(|end| end <= disk_bytes));
    if found.is_empty() {
        return Ok(vec![whole]);
    }
    found.sort_unstable();
    let volume = |(offset_bytes, length_bytes)| {
        Ok(Volume { offset_bytes, length_bytes, kind: kind_at(offset_bytes, length_bytes, read)? })
    };
    found.into_iter().map(volume).collect()
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    number(bytes, at).map_or(0, u64::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    number(bytes, at).map_or(0, u32::from_le_bytes)
}

/// Offset and length of each entry in use.
fn gpt_partitions(disk_bytes: u64, header: &[u8], read: Read<'_>) -> io::Result<Vec<(u64, u64)>> {
    let (table_at, count, entry_bytes) =
        (u64_at(header, 72).saturating_mul(SECTOR_BYTES), u32_at(header, 80), u32_at(header, 84));
    if !(128..=GPT_ENTRY_BYTES_MAX).contains(&entry_bytes) {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for number in 0..u64::from(count).min(PARTITIONS_MAX as u64) {
        let mut entry = [0; 48];
        let at = table_at.saturating_add(number * u64::from(entry_bytes));
        if at.saturating_add(48) > disk_bytes {
            break;
        }
        read(at, &mut entry)?;
        if entry[..16].iter().any(|byte| *byte != 0) {
            let (first, last) = (u64_at(&entry, 32), u64_at(&entry, 40));
            let sectors = last.saturating_add(1).saturating_sub(first);
            found.push((first.saturating_mul(SECTOR_BYTES), sectors.saturating_mul(SECTOR_BYTES)));
        }
    }
    Ok(found)
}

fn mbr_partitions(head: &[u8]) -> Vec<(u64, u64)> {
    if head.get(510..512) != Some(&[0x55, 0xaa][..]) {
        return Vec::new();
    }
    let entries = (0..4).filter_map(|number| head.get(446 + 16 * number..462 + 16 * number));
    let used = entries.filter(|entry| entry[4] != 0);
    used.map(|entry| (u64::from(u32_at(entry, 8)) * SECTOR_BYTES, u64::from(u32_at(entry, 12)) * SECTOR_BYTES))
        .collect()
}

/// What is at a place, by the marks that file systems leave at their begin.
fn kind_at(offset_bytes: u64, length_bytes: u64, read: Read<'_>) -> io::Result<Kind> {
    let mut head = vec![0; (LOOK_BYTES as u64).min(length_bytes) as usize];
    read(offset_bytes, &mut head)?;
    let is = |at: usize, mark: &[u8]| head.get(at..at + mark.len()) == Some(mark);
    Ok(if is(1024 + 56, &[0x53, 0xef]) {
        Kind::Ext
    } else if is(0, b"XFSB") {
        Kind::Xfs
    } else if is(0x1_0040, b"_BHRfS_M") {
        Kind::Btrfs
    } else if is(4086, b"SWAPSPACE2") {
        Kind::Swap
    } else if is(512, b"LABELONE") {
        Kind::Lvm
    } else if is(0, b"LUKS\xba\xbe") {
        Kind::Luks
    } else if head.iter().all(|byte| *byte == 0) {
        Kind::Empty
    } else {
        Kind::Unknown
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(disk: &[u8]) -> Vec<Volume> {
        let mut read = |at: u64, buf: &mut [u8]| {
            buf.copy_from_slice(&disk[at as usize..at as usize + buf.len()]);
            Ok(())
        };
        volumes(disk.len() as u64, &mut read).unwrap()
    }

    fn ext_at(disk: &mut [u8], at: usize) {
        disk[at + 1080..at + 1082].copy_from_slice(&[0x53, 0xef]);
    }

    #[test]
    fn a_disk_may_be_one_file_system_as_a_whole() {
        let mut disk = vec![0; 1 << 20];
        assert_eq!(of(&disk)[0].kind, Kind::Empty);
        ext_at(&mut disk, 0);
        assert_eq!(of(&disk), [Volume { offset_bytes: 0, length_bytes: 1 << 20, kind: Kind::Ext }]);
    }

    #[test]
    fn partitions_of_an_mbr_are_found() {
        let mut disk = vec![0; 4 << 20];
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        for (number, first, sectors) in [(0, 2048_u32, 2048_u32), (2, 4096, 1024), (3, 4_000_000, 8)] {
            let at = 446 + 16 * number;
            disk[at + 4] = 0x83;
            disk[at + 8..at + 12].copy_from_slice(&first.to_le_bytes());
            disk[at + 12..at + 16].copy_from_slice(&sectors.to_le_bytes());
        }
        ext_at(&mut disk, 1 << 20);
        disk[2 << 20..(2 << 20) + 4].copy_from_slice(b"XFSB");
        let found: Vec<_> = of(&disk).iter().map(|volume| (volume.offset_bytes, volume.kind)).collect();
        assert_eq!(found, [(1 << 20, Kind::Ext), (2 << 20, Kind::Xfs)], "one that lies beyond the disk is none");
    }

    #[test]
    fn partitions_of_a_gpt_are_found() {
        let mut disk = vec![0; 4 << 20];
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        disk[450] = 0xee;
        disk[512..520].copy_from_slice(b"EFI PART");
        disk[512 + 72..512 + 80].copy_from_slice(&2_u64.to_le_bytes());
        disk[512 + 80..512 + 84].copy_from_slice(&128_u32.to_le_bytes());
        disk[512 + 84..512 + 88].copy_from_slice(&128_u32.to_le_bytes());
        disk[1024] = 1;
        disk[1024 + 32..1024 + 40].copy_from_slice(&2048_u64.to_le_bytes());
        disk[1024 + 40..1024 + 48].copy_from_slice(&4095_u64.to_le_bytes());
        ext_at(&mut disk, 1 << 20);
        assert_eq!(of(&disk), [Volume { offset_bytes: 1 << 20, length_bytes: 1 << 20, kind: Kind::Ext }]);
    }

    proptest! {
        #[test]
        fn any_disk_is_borne(
            mut disk in prop::collection::vec(any::<u8>(), 0..6000), gpt in any::<bool>(), mbr in any::<bool>(),
        ) {
            if gpt && disk.len() >= 520 {
                disk[512..520].copy_from_slice(b"EFI PART");
            }
            if mbr && disk.len() >= 512 {
                disk[510..512].copy_from_slice(&[0x55, 0xaa]);
            }
            for volume in of(&disk) {
                prop_assert!(volume.offset_bytes + volume.length_bytes <= disk.len() as u64);
            }
        }
    }
}
