//! A journal's files after any accident: commits byte by byte, and whole shards replayed.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::journal::depot::segment_name;
use crate::journal::disk::{AlignedBuf, BufPool, File, Files, Listed};
use crate::journal::format::{CommitBuilder, HEADER_BYTES, Header, Owner, RowKind, crc32c};
use crate::journal::replay::{check_record, replay_shard};
use crate::limits::{BLOCK_BYTES, COMMIT_BYTES_MAX};
use crate::types::{
    Chain, DiskId, Epoch, Extent, ExtentKind, Id128, Micros, RecordHead, RecordKind, Seq, encode_extents, record_digest,
};

const JOURNAL: Id128 = Id128([0xa5; 16]);
const SHARD: u16 = 3;
/// Blocks of a made file; small ones hold several commits.
const FILE_BLOCKS: usize = 12;
/// So many commits are made of one input at most: more only make it slow.
const COMMITS_MAX: usize = 24;

const fn owner(segment: u64) -> Owner {
    Owner { journal: JOURNAL, shard: SHARD, segment }
}

/// Files in memory.
#[derive(Default)]
struct MemoryFiles(BTreeMap<String, Bytes>);

struct MemoryFile(Bytes);

impl Files for MemoryFiles {
    fn create_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
    fn list(&self, _: &Path) -> io::Result<Vec<Listed>> {
        Ok(self.0.iter().map(|(name, bytes)| Listed { name: name.clone(), bytes: bytes.len() as u64 }).collect())
    }
    fn create_zeroed(&self, _: &Path, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let bytes = self.0.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(MemoryFile(bytes.clone())))
    }
    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn remove(&self, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl File for MemoryFile {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }
    fn read_at(&self, buf: &mut AlignedBuf, range: Range<usize>, offset_bytes: u64) -> io::Result<usize> {
        let start = (offset_bytes as usize).min(self.0.len());
        let count = range.len().min(self.0.len() - start);
        buf[range.start..range.start + count].copy_from_slice(&self.0[start..start + count]);
        Ok(count)
    }
    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Replays these files, by segment number, and checks what replay says of itself.
fn replay(files: &MemoryFiles) {
    let pool = BufPool::new(4 * BLOCK_BYTES, 2);
    let names: Vec<PathBuf> = files.0.keys().map(|name| Path::new("/j").join(name)).collect();
    let Ok(found) = replay_shard(files, Path::new("/j"), (JOURNAL, SHARD), &pool) else { panic!("memory cannot fail") };
    assert!(found.bytes <= files.0.values().map(|bytes| bytes.len() as u64).sum());
    assert_eq!(found.held as usize + found.freed.len(), names.len());
    for damage in &found.damage {
        // It may lie beyond the end of a file: what a note says was there and is not, is lost.
        assert!(damage.offset_bytes.checked_add(damage.length_bytes).is_some());
        assert!(!damage.to_string().is_empty());
    }
    for (_, state) in found.runs.finish() {
        assert!(state.journaled.iter().all(|range| range.first <= range.last));
        assert!(state.journaled.windows(2).all(|pair| pair[0].last < pair[1].first));
    }
}

/// First byte: bit 0 makes the header right (place, lengths, checksums), bits 1 and 2 the number of blocks, bit 3 sets the
/// checksums of bodies. The rest stands at the start of a segment file.
pub(super) fn commit(input: &[u8]) {
    let Some((mode, bytes)) = super::mode(input) else { return };
    let mut commit = bytes.to_vec();
    let blocks = commit.len().div_ceil(BLOCK_BYTES).max(usize::from(mode >> 1 & 3) + 1);
    commit.resize(blocks * BLOCK_BYTES, 0);
    if mode & 1 == 1 {
        mend(&mut commit, mode & 8 != 0);
    }
    if let Some(header) = Header::decode(&commit)
        && let Some(rows) = header.rows(&commit)
    {
        assert!(header.commit_bytes as usize <= COMMIT_BYTES_MAX);
        assert!(rows.len() * 40 <= commit.len(), "every row has its bytes");
        for row in &rows {
            let whole = row.is_whole(&commit);
            let name = row.disk_name(&commit);
            assert!(name.is_none_or(|name| name.len() <= 255));
            assert_eq!(row.chain(&commit).is_some(), row.body.len() == 32);
            if row.kind == RowKind::Record {
                assert!(whole || check_record(row, &commit).is_err());
            }
        }
    }
    replay(&MemoryFiles(BTreeMap::from([(segment_name(1), commit.into())])));
}

/// Lengths stay as they are, so that the fuzzer has a hand in them.
fn mend(commit: &mut [u8], bodies: bool) {
    let commit_bytes = commit.len() as u32;
    commit[..6].copy_from_slice(&[b'T', b'G', b'J', b'C', 1, 0]);
    commit[6..8].copy_from_slice(&SHARD.to_le_bytes());
    commit[8..24].copy_from_slice(&JOURNAL.0);
    commit[24..32].copy_from_slice(&1_u64.to_le_bytes());
    commit[32..40].fill(0);
    commit[60..64].copy_from_slice(&commit_bytes.to_le_bytes());
    let word = |commit: &[u8], at: usize| u32::from_le_bytes(commit[at..at + 4].try_into().unwrap()) as usize;
    let body_bytes = word(commit, 48).min(commit.len());
    let table = (HEADER_BYTES + body_bytes).next_multiple_of(8);
    let table = table..table + word(commit, 52).min(commit.len());
    if bodies {
        let mut at = table.start;
        while at + 40 <= table.end.min(commit.len()) {
            let (start, length) = (word(commit, at + 8), word(commit, at + 12));
            if let Some(crc) = commit.get(start..start.saturating_add(length)).map(crc32c) {
                commit[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
            }
            at += (40 + usize::from(commit[at + 1])).next_multiple_of(8);
        }
    }
    if let Some(crc) = commit.get(table).map(crc32c) {
        commit[64..68].copy_from_slice(&crc.to_le_bytes());
    }
    let crc = crc32c(&commit[..HEADER_BYTES - 4]);
    commit[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
}

/// A shard by script: what the encoder writes, put together in any order and then damaged.
pub(super) fn segments(input: &[u8]) {
    let mut script = Script { rest: input, chains: HashMap::new() };
    let mut files: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut number = 1;
    for _ in 0..COMMITS_MAX {
        let Some([file, step, rows]) = script.take() else { break };
        let segment = u64::from(file & 7) + 1;
        let bytes = files.entry(segment).or_default();
        number = u64::wrapping_add(number, u64::from(step & 3));
        if step == 0xff {
            // A number that no journal comes to, from a header that is whole all the same.
            number = if rows & 1 == 1 { u64::MAX } else { 0 };
        }
        let mut commit = script.commit(rows & 7, owner(segment), bytes.len() as u64, number);
        if file & 0x40 != 0 {
            script.damage(&mut commit);
        }
        bytes.extend_from_slice(&commit);
        if file & 0x80 != 0 {
            bytes.resize(bytes.len() + BLOCK_BYTES, 0);
        }
    }
    let files = files.into_iter().map(|(segment, mut bytes)| {
        bytes.resize(bytes.len().max(FILE_BLOCKS * BLOCK_BYTES), 0);
        (segment_name(segment), bytes.into())
    });
    replay(&MemoryFiles(files.collect()));
}

struct Script<'a> {
    rest: &'a [u8],
    chains: HashMap<(u8, u8), Chain>,
}

impl Script<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*taken)
    }

    fn commit(&mut self, rows: u8, owner: Owner, at: u64, number: u64) -> Vec<u8> {
        let mut builder = CommitBuilder::new(AlignedBuf::zeroed(2 * BLOCK_BYTES));
        for _ in 0..rows {
            let Some([kind, disk, epoch, seq]) = self.take() else { break };
            let name = DiskId::new(["a", "b", "web-1.sda"][usize::from(disk) % 3]).unwrap();
            // The last two stand for the largest numbers there are.
            let wide = |small: u8| if small >= 0xfe { u64::MAX - u64::from(0xff - small) } else { small.into() };
            let at = (Epoch(wide(epoch)), Seq(wide(seq)));
            if !builder.fits(&name, 512, 64) {
                break;
            }
            match kind % 7 {
                0..=2 => {
                    let record = self.record((disk % 3, epoch), at, kind & 0x80 != 0);
                    let crc = crc32c(&record);
                    builder.push_record(&name, at, Micros(1), crc, &[record.into()]);
                }
                3 => builder.push_mark(&name, at, Some(self.chain((disk % 3, epoch)))),
                4 => builder.push_mark(&name, at, None),
                5 => drop(builder.push_note(RowKind::Cut, u64::from(epoch & 15), u64::from(seq) << 12, 0)),
                _ => {
                    let kind = if kind & 0x80 == 0 { RowKind::Held } else { RowKind::Released };
                    builder.push_note(kind, u64::from(epoch & 15), u64::from(seq) << 12, 0);
                }
            }
        }
        let bytes = builder.seal(owner, at, number);
        builder.lend()[..bytes].to_vec()
    }

    fn chain(&self, of: (u8, u8)) -> Chain {
        self.chains.get(&of).copied().unwrap_or(Chain::GENESIS)
    }

    fn record(&mut self, of: (u8, u8), (epoch, seq): (Epoch, Seq), other_history: bool) -> Vec<u8> {
        let extent = Extent { offset_bytes: seq.0 % 64 * 512, length_bytes: 16, kind: ExtentKind::Data };
        let mut table = Vec::new();
        encode_extents(&[extent], &mut table);
        let payload = [seq.0 as u8; 16];
        let before = if other_history { Chain([9; 32]) } else { self.chain(of) };
        let head = RecordHead {
            kind: RecordKind::Write,
            extent_count: 1,
            payload_bytes: 16,
            epoch,
            seq,
            label: Micros(seq.0),
            clock_uncertainty_micros: 0,
            group: Id128::NONE,
            digest: record_digest(&table, [payload.as_slice()]),
            chain: Chain::GENESIS,
        }
        .sealed_after(before);
        self.chains.insert(of, head.chain);
        [&head.encode()[..], &table, &payload].concat()
    }

    /// Flips bytes, or cuts what was written last.
    fn damage(&mut self, commit: &mut [u8]) {
        let Some([low, high, value]) = self.take() else { return };
        let at = usize::from(u16::from_le_bytes([low, high])) % commit.len();
        if value == 0 {
            commit[at..].fill(0);
        } else {
            commit[at] ^= value;
        }
    }
}
