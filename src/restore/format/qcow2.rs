//! qcow2, version 3: the description is `docs/interop/qcow2.txt` of QEMU.
//!
//! ```text
//!  cluster 0   1 …              …                …                …            …
//!  header      level-1 table    refcount table   refcount blocks  level-2      clusters of the disk
//!                                                                 tables
//! ```
//!
//! Every cluster of the file is used exactly once, so every refcount is one.

use super::units::Units;

const CLUSTER_BITS: u32 = 16;
const CLUSTER_BYTES: u64 = 1 << CLUSTER_BITS;
/// Entries of a table that fills a cluster: eight bytes each.
const TABLE_ENTRIES: u64 = CLUSTER_BYTES / 8;
/// Refcounts of a block: two bytes each.
const BLOCK_REFCOUNTS: u64 = CLUSTER_BYTES / 2;
/// `refcount_order` of two bytes.
const REFCOUNT_ORDER: u32 = 4;
const HEADER_BYTES: u32 = 104;
/// The cluster that an entry names has a refcount of one.
const COPIED: u64 = 1 << 63;

/// Which clusters hold what.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Shape {
    virtual_bytes: u64,
    pub(super) units: Units,
    /// Numbers of the level-2 tables that there are.
    tables: Vec<u64>,
    level_1_entries: u64,
    refcount_table_clusters: u64,
    refcount_blocks: u64,
    /// Clusters of the file.
    clusters: u64,
}

impl Shape {
    pub(super) fn new(virtual_bytes: u64, content: impl Iterator<Item = (u64, u64)>) -> Self {
        let units = Units::of(CLUSTER_BYTES, content);
        let tables = units.groups(TABLE_ENTRIES);
        let level_1_entries = virtual_bytes.div_ceil(CLUSTER_BYTES * TABLE_ENTRIES);
        let others = 1 + level_1_entries.div_ceil(TABLE_ENTRIES) + tables.len() as u64 + units.count();
        // Refcounts are counted too: a few rounds until they are enough for themselves.
        let (mut refcount_table_clusters, mut refcount_blocks) = (0, 0);
        loop {
            let clusters: u64 = others + refcount_table_clusters + refcount_blocks;
            let blocks = clusters.div_ceil(BLOCK_REFCOUNTS);
            let table = blocks.div_ceil(TABLE_ENTRIES);
            if (table, blocks) == (refcount_table_clusters, refcount_blocks) {
                break;
            }
            (refcount_table_clusters, refcount_blocks) = (table, blocks);
        }
        let clusters = others + refcount_table_clusters + refcount_blocks;
        let first_bytes = (clusters - units.count()) * CLUSTER_BYTES;
        let units = units.placed(first_bytes, CLUSTER_BYTES);
        Self { virtual_bytes, units, tables, level_1_entries, refcount_table_clusters, refcount_blocks, clusters }
    }

    pub(super) const fn file_bytes(&self) -> u64 {
        self.clusters * CLUSTER_BYTES
    }

    const fn level_1_at(&self) -> u64 {
        CLUSTER_BYTES
    }

    const fn refcount_table_at(&self) -> u64 {
        self.level_1_at() + self.level_1_entries.div_ceil(TABLE_ENTRIES) * CLUSTER_BYTES
    }

    const fn refcount_blocks_at(&self) -> u64 {
        self.refcount_table_at() + self.refcount_table_clusters * CLUSTER_BYTES
    }

    const fn level_2_at(&self) -> u64 {
        self.refcount_blocks_at() + self.refcount_blocks * CLUSTER_BYTES
    }

    pub(super) fn frame<E>(&self, put: &mut impl FnMut(u64, &[u8]) -> Result<(), E>) -> Result<(), E> {
        let mut cluster = vec![0; CLUSTER_BYTES as usize];
        for (number, &table) in self.tables.iter().enumerate() {
            cluster.fill(0);
            let first = table * TABLE_ENTRIES;
            self.units.each(first, first + TABLE_ENTRIES, |unit, rank| {
                set_u64(&mut cluster, (unit - first) as usize * 8, self.units.at(rank) | COPIED);
            });
            put(self.level_2_at() + number as u64 * CLUSTER_BYTES, &cluster)?;
        }
        for block in 0..self.refcount_blocks {
            let used = (self.clusters - block * BLOCK_REFCOUNTS).min(BLOCK_REFCOUNTS) as usize;
            cluster.fill(0);
            cluster[..used * 2].as_chunks_mut::<2>().0.fill(1_u16.to_be_bytes());
            put(self.refcount_blocks_at() + block * CLUSTER_BYTES, &cluster)?;
        }
        let blocks = (0..self.refcount_blocks).map(|block| (block, self.refcount_blocks_at() + block * CLUSTER_BYTES));
        put(self.refcount_table_at(), &table(self.refcount_table_clusters * CLUSTER_BYTES, blocks))?;
        let tables = self.tables.iter().enumerate();
        let tables = tables.map(|(number, &at)| (at, (self.level_2_at() + number as u64 * CLUSTER_BYTES) | COPIED));
        put(self.level_1_at(), &table(self.level_1_entries * 8, tables))?;
        put(0, &self.header())
    }

    fn header(&self) -> [u8; HEADER_BYTES as usize] {
        let mut header = [0; HEADER_BYTES as usize];
        header[..4].copy_from_slice(b"QFI\xfb");
        set_u32(&mut header, 4, 3);
        set_u32(&mut header, 20, CLUSTER_BITS);
        set_u64(&mut header, 24, self.virtual_bytes);
        set_u32(&mut header, 36, self.level_1_entries as u32);
        set_u64(&mut header, 40, self.level_1_at());
        set_u64(&mut header, 48, self.refcount_table_at());
        set_u32(&mut header, 56, self.refcount_table_clusters as u32);
        set_u32(&mut header, 96, REFCOUNT_ORDER);
        set_u32(&mut header, 100, HEADER_BYTES);
        header
    }
}

/// A table of eight-byte entries.
fn table(bytes: u64, entries: impl Iterator<Item = (u64, u64)>) -> Vec<u8> {
    let mut table = vec![0; bytes as usize];
    entries.for_each(|(at, entry)| set_u64(&mut table, at as usize * 8, entry));
    table
}

fn set_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn set_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
}
