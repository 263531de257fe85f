//! VHD, fixed and growing: Microsoft's "Virtual Hard Disk Image Format Specification" of 2006.
//!
//! ```text
//!  footer's copy │ header │ block table │ … bitmap, block │ … bitmap, block │ footer
//! ```
//!
//! Blocks begin at multiples of 4 KiB and their bitmaps in the sector before, so that pages of zeroes stay holes. Of a block that
//! is there every sector counts as written.

use super::units::Units;

pub(super) const FOOTER_BYTES: u64 = 512;
const SECTOR_BYTES: u64 = 512;
const HEADER_BYTES: u64 = 1024;
const TABLE_AT: u64 = FOOTER_BYTES + HEADER_BYTES;
const BLOCK_BYTES: u64 = 2 << 20;
/// From one block's content to the next: room for a bitmap, in whole pages.
const STRIDE_BYTES: u64 = BLOCK_BYTES + PAGE_BYTES;
const PAGE_BYTES: u64 = 4096;
/// The specification's bound: sectors are counted in 32 bits.
pub(super) const GROWING_BYTES_MAX: u64 = 2040 << 30;
/// Entries written at once: 64 KiB.
const TABLE_PIECE_ENTRIES: u64 = 16 << 10;

/// The kinds that are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Fixed = 2,
    Growing = 3,
}

/// Where a growing one has what.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Shape {
    virtual_bytes: u64,
    pub(super) units: Units,
}

impl Shape {
    pub(super) fn new(virtual_bytes: u64, content: impl Iterator<Item = (u64, u64)>) -> Self {
        let table_end = TABLE_AT + table_bytes(virtual_bytes);
        let first_bytes = (table_end + SECTOR_BYTES).next_multiple_of(PAGE_BYTES);
        Self { virtual_bytes, units: Units::of(BLOCK_BYTES, content).placed(first_bytes, STRIDE_BYTES) }
    }

    fn footer_at(&self) -> u64 {
        match self.units.count().checked_sub(1) {
            Some(last) => self.units.at(last) + BLOCK_BYTES,
            None => TABLE_AT + table_bytes(self.virtual_bytes),
        }
    }

    pub(super) fn file_bytes(&self) -> u64 {
        self.footer_at() + FOOTER_BYTES
    }

    pub(super) fn frame<E>(
        &self,
        unique: [u8; 16],
        put: &mut impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        for rank in 0..self.units.count() {
            put(self.units.at(rank) - SECTOR_BYTES, &[0xff; SECTOR_BYTES as usize])?;
        }
        let entries = table_bytes(self.virtual_bytes) / 4;
        for first in (0..entries).step_by(TABLE_PIECE_ENTRIES as usize) {
            let end = entries.min(first + TABLE_PIECE_ENTRIES);
            let mut piece = vec![0xff; (end - first) as usize * 4];
            self.units.each(first, end, |block, rank| {
                let sector = (self.units.at(rank) - SECTOR_BYTES) / SECTOR_BYTES;
                set(&mut piece, (block - first) as usize * 4, &(sector as u32).to_be_bytes());
            });
            put(TABLE_AT + first * 4, &piece)?;
        }
        put(FOOTER_BYTES, &self.header())?;
        let footer = footer(Kind::Growing, self.virtual_bytes, unique);
        put(self.footer_at(), &footer)?;
        put(0, &footer)
    }

    fn header(&self) -> [u8; HEADER_BYTES as usize] {
        let mut header = [0; HEADER_BYTES as usize];
        set(&mut header, 0, b"cxsparse");
        set(&mut header, 8, &u64::MAX.to_be_bytes());
        set(&mut header, 16, &TABLE_AT.to_be_bytes());
        set(&mut header, 24, &0x0001_0000_u32.to_be_bytes());
        set(&mut header, 28, &(self.virtual_bytes.div_ceil(BLOCK_BYTES) as u32).to_be_bytes());
        set(&mut header, 32, &(BLOCK_BYTES as u32).to_be_bytes());
        let sum = checksum(&header);
        set(&mut header, 36, &sum);
        header
    }
}

/// Four bytes for each block, in whole sectors.
const fn table_bytes(virtual_bytes: u64) -> u64 {
    (virtual_bytes.div_ceil(BLOCK_BYTES) * 4).next_multiple_of(SECTOR_BYTES)
}

/// The last sector of any VHD.
pub(super) fn footer(kind: Kind, virtual_bytes: u64, unique: [u8; 16]) -> [u8; FOOTER_BYTES as usize] {
    let mut footer = [0; FOOTER_BYTES as usize];
    set(&mut footer, 0, b"conectix");
    // A bit that is always set.
    set(&mut footer, 8, &2_u32.to_be_bytes());
    set(&mut footer, 12, &0x0001_0000_u32.to_be_bytes());
    let header_at = if kind == Kind::Fixed { u64::MAX } else { FOOTER_BYTES };
    set(&mut footer, 16, &header_at.to_be_bytes());
    // "win " says that the size below counts, not cylinders, heads and sectors; readers know few names.
    set(&mut footer, 28, b"win ");
    set(&mut footer, 32, &0x000a_0000_u32.to_be_bytes());
    set(&mut footer, 36, b"Wi2k");
    set(&mut footer, 40, &virtual_bytes.to_be_bytes());
    set(&mut footer, 48, &virtual_bytes.to_be_bytes());
    let (cylinders, heads, sectors) = geometry(virtual_bytes / SECTOR_BYTES);
    set(&mut footer, 56, &cylinders.to_be_bytes());
    set(&mut footer, 58, &[heads, sectors]);
    set(&mut footer, 60, &(kind as u32).to_be_bytes());
    set(&mut footer, 68, &unique);
    let sum = checksum(&footer);
    set(&mut footer, 64, &sum);
    footer
}

/// The specification's appendix: cylinders, heads, sectors per track.
fn geometry(sectors: u64) -> (u16, u8, u8) {
    let total = sectors.min(65535 * 16 * 255);
    if total >= 65535 * 16 * 63 {
        return ((total / 255 / 16) as u16, 16, 255);
    }
    let (mut per_track, mut tracks) = (17, total / 17);
    let mut heads = tracks.div_ceil(1024).max(4);
    if tracks >= heads * 1024 || heads > 16 {
        (per_track, heads, tracks) = (31, 16, total / 31);
    }
    if tracks >= heads * 1024 {
        (per_track, heads, tracks) = (63, 16, total / 63);
    }
    ((tracks / heads) as u16, heads as u8, per_track)
}

/// One's complement of the sum of all bytes, where the checksum itself is zero.
fn checksum(bytes: &[u8]) -> [u8; 4] {
    let sum: u32 = bytes.iter().map(|&byte| u32::from(byte)).sum();
    (!sum).to_be_bytes()
}

fn set(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_geometry_is_that_of_the_specification() {
        // 40 MiB, 2 GiB and 40 GiB as qemu-img and Hyper-V have them, and what is beyond all cylinders.
        assert_eq!(geometry(40 << 11), (963, 5, 17));
        assert_eq!(geometry(2 << 21), (4161, 16, 63));
        assert_eq!(geometry(40 << 21), (20560, 16, 255));
        assert_eq!(geometry(4 << 31), (65535, 16, 255));
    }
}
