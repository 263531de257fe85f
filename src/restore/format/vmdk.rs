//! VMDK, monolithic and sparse: VMware's "Virtual Disk Format 1.1".
//!
//! ```text
//!  header │ description │ directory, tables (a copy of the next) │ directory, tables │ grains
//! ```
//!
//! Both directories name all tables, whether or not anything stands in them: readers other than QEMU expect it.

use super::FormatError;
use super::units::Units;

const SECTOR_BYTES: u64 = 512;
pub(super) const GRAIN_BYTES: u64 = 64 << 10;
const GRAIN_SECTORS: u64 = GRAIN_BYTES / SECTOR_BYTES;
const TABLE_ENTRIES: u64 = 512;
const TABLE_BYTES: u64 = TABLE_ENTRIES * 4;
const TABLE_SECTORS: u64 = TABLE_BYTES / SECTOR_BYTES;
const DESCRIPTION_SECTORS: u64 = 20;
const DESCRIPTION_AT: u64 = SECTOR_BYTES;
/// Sectors of the file are counted in 32 bits, and the tables need some too.
pub(super) const BYTES_MAX: u64 = 2040 << 30;
/// Longest file name of the usual file systems.
const NAME_BYTES_MAX: usize = 255;
/// The line ends below say whether something took the file for text; and there is a second directory.
const FLAGS: u32 = 3;

/// Where what stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Shape {
    virtual_bytes: u64,
    name: String,
    pub(super) units: Units,
    tables: u64,
}

impl Shape {
    pub(super) fn new(
        virtual_bytes: u64,
        content: impl Iterator<Item = (u64, u64)>,
        name: &str,
    ) -> Result<Self, FormatError> {
        if name.len() > NAME_BYTES_MAX || name.contains(|letter: char| letter == '"' || letter.is_control()) {
            return Err(FormatError::Name { name: name.to_owned() });
        }
        let tables = virtual_bytes.div_ceil(GRAIN_BYTES * TABLE_ENTRIES);
        let mut shape = Self { virtual_bytes, name: name.to_owned(), units: Units::of(GRAIN_BYTES, content), tables };
        let first_bytes = shape.overhead_sectors() * SECTOR_BYTES;
        shape.units = shape.units.placed(first_bytes, GRAIN_BYTES);
        Ok(shape)
    }

    pub(super) fn file_bytes(&self) -> u64 {
        self.units.at(self.units.count())
    }

    const fn directory_sectors(&self) -> u64 {
        (self.tables * 4).div_ceil(SECTOR_BYTES)
    }

    /// Where a directory begins: 0 for the copy, 1 for the one that counts. Its tables follow.
    const fn directory_at(&self, which: u64) -> u64 {
        1 + DESCRIPTION_SECTORS + which * (self.directory_sectors() + self.tables * TABLE_SECTORS)
    }

    const fn overhead_sectors(&self) -> u64 {
        self.directory_at(2).next_multiple_of(GRAIN_SECTORS)
    }

    const fn table_at(&self, which: u64, table: u64) -> u64 {
        self.directory_at(which) + self.directory_sectors() + table * TABLE_SECTORS
    }

    pub(super) fn frame<E>(
        &self,
        unique: [u8; 16],
        put: &mut impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        for table in self.units.groups(TABLE_ENTRIES) {
            let mut entries = [0; TABLE_BYTES as usize];
            let first = table * TABLE_ENTRIES;
            self.units.each(first, first + TABLE_ENTRIES, |grain, rank| {
                set_u32(&mut entries, (grain - first) as usize * 4, (self.units.at(rank) / SECTOR_BYTES) as u32);
            });
            for which in [0, 1] {
                put(self.table_at(which, table) * SECTOR_BYTES, &entries)?;
            }
        }
        for which in [0, 1] {
            let mut directory = vec![0; (self.directory_sectors() * SECTOR_BYTES) as usize];
            for table in 0..self.tables {
                set_u32(&mut directory, table as usize * 4, self.table_at(which, table) as u32);
            }
            put(self.directory_at(which) * SECTOR_BYTES, &directory)?;
        }
        put(DESCRIPTION_AT, self.description(unique).as_bytes())?;
        put(0, &self.header())
    }

    fn header(&self) -> [u8; SECTOR_BYTES as usize] {
        let mut header = [0; SECTOR_BYTES as usize];
        header[..4].copy_from_slice(b"KDMV");
        set_u32(&mut header, 4, 1);
        set_u32(&mut header, 8, FLAGS);
        set_u64(&mut header, 12, self.virtual_bytes / SECTOR_BYTES);
        set_u64(&mut header, 20, GRAIN_SECTORS);
        set_u64(&mut header, 28, DESCRIPTION_AT / SECTOR_BYTES);
        set_u64(&mut header, 36, DESCRIPTION_SECTORS);
        set_u32(&mut header, 44, TABLE_ENTRIES as u32);
        set_u64(&mut header, 48, self.directory_at(0));
        set_u64(&mut header, 56, self.directory_at(1));
        set_u64(&mut header, 64, self.overhead_sectors());
        header[73..77].copy_from_slice(b"\n \r\n");
        header
    }

    fn description(&self, unique: [u8; 16]) -> String {
        let sectors = self.virtual_bytes / SECTOR_BYTES;
        let [a, b, c, d, ..] = unique;
        // All ones and the like are taken by other meanings.
        let id = u32::from_be_bytes([a, b, c, d]) & 0x7fff_fffe | 2;
        let cylinders = (sectors / (16 * 63)).min(16383);
        format!(
            "# Disk DescriptorFile\nversion=1\nCID={id:08x}\nparentCID=ffffffff\ncreateType=\"monolithicSparse\"\n\n\
             # Extent description\nRW {sectors} SPARSE \"{}\"\n\n\
             # The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = \"4\"\nddb.geometry.cylinders = \"{cylinders}\"\n\
             ddb.geometry.heads = \"16\"\nddb.geometry.sectors = \"63\"\nddb.adapterType = \"lsilogic\"\n",
            self.name
        )
    }
}

fn set_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn set_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}
