//! Looks at a journal's directory without taking part in it: read-only, whole or damaged, with or without its identity
//! file, beside a gateway that stands still.
//!
//! What is said about records, marks and damage comes from the same replay that a gateway's start does, so both say the
//! same. A second walk over the headers adds the figures of each segment.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::depot::{segment_number, shard_dir};
use super::directory::{self, LOCK_FILE};
use super::disk::std::StdFiles;
use super::disk::{AlignedBuf, BufPool, File, Files, Listed};
use super::error::OpenError;
use super::format::{Header, Owner, RowKind};
use super::model::{Damage, DamageKind, RunRange, RunState};
use super::replay::ShardReplay;
use super::runs::Runs;
use super::walk::{Step, Walk};
use super::{SHARDS_MAX, engine};
use crate::limits::{BLOCK_BYTES, COMMIT_BYTES_MAX};
use crate::types::{DiskId, Epoch, Id128, Seq};

/// Told how many bytes were read, again and again.
pub type OnRead = Arc<dyn Fn(u64) + Send + Sync>;

/// Segments that are looked into for the id of a journal whose identity file is gone: one is enough, some may be damaged.
const IDENTITY_SEGMENTS_MAX: usize = 64;

/// What one look found.
#[derive(Debug, Clone)]
pub struct Look {
    /// The directory.
    pub dir: PathBuf,
    /// Whose it is.
    pub whose: Whose,
    /// Whether a process has it open: what is written meanwhile may look like damage.
    pub in_use: bool,
    /// Every segment file, by shard and number.
    pub segments: Vec<SegmentFigures>,
    /// Every disk's epoch that is known.
    pub runs: Vec<RunFigures>,
    /// What is wrong.
    pub damage: Vec<Damage>,
    /// Valid commits.
    pub commits: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Whose a journal is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whose {
    /// The journal's id.
    pub journal: Id128,
    /// The gateway; unknown if the identity file is gone or damaged.
    pub gateway: Option<String>,
    /// Number of shards.
    pub shards: u16,
    /// What is wrong with the identity file, if something is.
    pub identity_damage: Option<String>,
}

/// What a segment file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentFigures {
    /// Its shard.
    pub shard: u16,
    /// Its number.
    pub segment: u64,
    /// The file.
    pub file: PathBuf,
    /// The file's length.
    pub file_bytes: u64,
    /// Where its last valid commit ends.
    pub end_bytes: u64,
    /// Valid commits.
    pub commits: u64,
    /// Number of the first and of the last of them.
    pub numbers: Option<(u64, u64)>,
    /// Records in them.
    pub records: u64,
    /// Marks: vaulted or given up.
    pub marks: u64,
    /// Notes about segments.
    pub notes: u64,
    /// What it is good for.
    pub state: SegmentState,
}

/// What a segment is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentState {
    /// It holds records that are not vaulted.
    Needed,
    /// Everything in it is vaulted or given up.
    Vaulted,
    /// It holds nothing of its present life.
    Free,
}

/// What is here of one disk's epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunFigures {
    /// The disk.
    pub disk: DiskId,
    /// The epoch.
    pub epoch: Epoch,
    /// Last record known to be vaulted.
    pub vaulted: Option<Seq>,
    /// Whole records that are not known to be vaulted, without a gap in each.
    pub ranges: Vec<RunRange>,
}

impl RunFigures {
    /// Whole records that are not known to be vaulted.
    #[must_use]
    pub fn records(&self) -> u64 {
        let above = |range: &RunRange| range.first.0.max(self.vaulted.unwrap_or_default().0 + 1);
        self.ranges.iter().map(|range| (range.last.0 + 1).saturating_sub(above(range))).sum()
    }

    /// Records that should stand between those that are here, and do not: (first, last) of each gap.
    #[must_use]
    pub fn gaps(&self) -> Vec<(Seq, Seq)> {
        let mut out = Vec::new();
        let mut next = self.vaulted.map(Seq::next);
        for range in &self.ranges {
            if let Some(next) = next.filter(|next| *next < range.first) {
                out.push((next, Seq(range.first.0 - 1)));
            }
            next = Some(range.last.next());
        }
        out
    }
}

impl Look {
    /// Damage that is more than an ordinary torn tail.
    pub fn real_damage(&self) -> impl Iterator<Item = &Damage> {
        self.damage.iter().filter(|damage| damage.kind != DamageKind::TornTail)
    }

    /// Whether nothing is wrong but what every crash leaves.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.whose.identity_damage.is_none() && self.real_damage().next().is_none()
    }

    /// Whole records that are not known to be vaulted, of all disks.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.runs.iter().map(RunFigures::records).sum()
    }
}

/// A journal that nobody opens while this lives.
#[derive(Debug)]
pub struct Held {
    _lock: Option<fs::File>,
}

/// Keeps gateways away from a journal while it is read.
///
/// # Errors
/// [`OpenError::Locked`] if a process has it open.
pub fn hold(dir: &Path) -> Result<Held, OpenError> {
    let file = dir.join(LOCK_FILE);
    let lock = match fs::File::open(&file) {
        // A copy of a journal may come without it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Held { _lock: None }),
        opened => opened.map_err(OpenError::io("open", &file))?,
    };
    match lock.try_lock_shared() {
        Ok(()) => Ok(Held { _lock: Some(lock) }),
        Err(fs::TryLockError::WouldBlock) => Err(OpenError::Locked { dir: dir.display().to_string() }),
        Err(fs::TryLockError::Error(error)) => Err(OpenError::io("lock", file)(error)),
    }
}

/// Bytes that [`look`] will read: every segment twice.
///
/// # Errors
/// [`OpenError::Io`] if a directory cannot be listed.
pub fn size_bytes(dir: &Path) -> Result<u64, OpenError> {
    let files = StdFiles { direct: false };
    let mut bytes = 0;
    for shard in 0..SHARDS_MAX {
        let dir = shard_dir(dir, shard);
        bytes += files.list(&dir).map_err(OpenError::io("list", &dir))?.iter().map(|file| file.bytes).sum::<u64>();
    }
    Ok(bytes * 2)
}

/// Looks at the journal in `dir`. Blocks.
///
/// # Errors
/// [`OpenError`] if there is none, if it is of another version, or if a file cannot be read.
pub fn look(dir: &Path, on_read: OnRead) -> Result<Look, OpenError> {
    let files = ReadOnly { on_read };
    let in_use = matches!(hold(dir), Err(OpenError::Locked { .. }));
    let whose = whose(dir, &files)?;
    let pool = BufPool::new(COMMIT_BYTES_MAX, usize::from(whose.shards));
    let mut replays = engine::replay(&files, dir, whose.journal, whose.shards, &pool)?;
    let mut runs = Runs::default();
    let (mut damage, mut segments, mut commits, mut bytes) = (Vec::new(), Vec::new(), 0, 0);
    for (shard, replay) in replays.iter_mut().enumerate() {
        runs.merge(std::mem::take(&mut replay.runs));
        damage.append(&mut replay.damage);
        commits += replay.commits;
        bytes += replay.bytes;
        segments.append(&mut figures(dir, (whose.journal, shard as u16), replay, &files, &pool)?);
    }
    let runs: BTreeMap<(DiskId, Epoch), RunState> = runs.finish().into_iter().collect();
    let figures = |((disk, epoch), state): ((DiskId, Epoch), RunState)| {
        let vaulted = state.vaulted_mark.map(|(seq, _)| seq);
        RunFigures { disk, epoch, vaulted, ranges: state.journaled }
    };
    let runs = runs.into_iter().map(figures).collect();
    Ok(Look { dir: dir.to_owned(), whose, in_use, segments, runs, damage, commits, bytes })
}

/// The figures of a shard's segments.
fn figures(
    dir: &Path,
    (journal, shard): (Id128, u16),
    replay: &ShardReplay,
    files: &ReadOnly,
    pool: &BufPool,
) -> Result<Vec<SegmentFigures>, OpenError> {
    let dir = shard_dir(dir, shard);
    let mut out = Vec::new();
    for listed in files.list(&dir).map_err(OpenError::io("list", &dir))? {
        let Some(segment) = segment_number(&listed.name) else { continue };
        let path = dir.join(&listed.name);
        let mut of = SegmentFigures {
            shard,
            segment,
            file: path.clone(),
            file_bytes: listed.bytes,
            end_bytes: 0,
            commits: 0,
            numbers: None,
            records: 0,
            marks: 0,
            notes: 0,
            state: SegmentState::Free,
        };
        let file = files.open(&path).map_err(OpenError::io("open", &path))?;
        let mut walk = Walk::new(Owner { journal, shard, segment }, pool.clone(), 0, listed.bytes);
        loop {
            match walk.step(&*file).map_err(OpenError::io("read", &path))? {
                Step::Commit(found) => of.count(&found.header, found.rows.iter().map(|row| row.kind)),
                Step::Damaged { .. } => {}
                Step::End { .. } => break,
            }
        }
        of.state = match of.commits {
            0 => SegmentState::Free,
            _ if replay.ledger.holds(segment) => SegmentState::Needed,
            _ => SegmentState::Vaulted,
        };
        out.push(of);
    }
    Ok(out)
}

impl SegmentFigures {
    fn count(&mut self, header: &Header, rows: impl Iterator<Item = RowKind>) {
        self.commits += 1;
        self.end_bytes = header.offset_bytes + u64::from(header.commit_bytes);
        let first = self.numbers.map_or(header.number, |(first, _)| first);
        self.numbers = Some((first, header.number));
        for kind in rows {
            match kind {
                RowKind::Record => self.records += 1,
                RowKind::Vaulted | RowKind::Forgotten => self.marks += 1,
                RowKind::Cut | RowKind::Held | RowKind::Released => self.notes += 1,
            }
        }
    }
}

/// From the identity file, or if that is of no use from what the commits say of themselves.
fn whose(dir: &Path, files: &ReadOnly) -> Result<Whose, OpenError> {
    let damage = match directory::read_identity(dir) {
        Ok(Some(identity)) => {
            let (journal, shards) = (identity.journal, identity.shards.clamp(1, SHARDS_MAX));
            return Ok(Whose { journal, gateway: Some(identity.gateway), shards, identity_damage: None });
        }
        Ok(None) => "it is missing".to_owned(),
        Err(OpenError::Identity { what, .. }) => what,
        Err(error) => return Err(error),
    };
    let shards = (0..SHARDS_MAX).filter(|shard| shard_dir(dir, *shard).is_dir()).map(|shard| shard + 1).max();
    match (shards, journal_of_commits(dir, files)?) {
        (Some(shards), Some(journal)) => Ok(Whose { journal, gateway: None, shards, identity_damage: Some(damage) }),
        _ => {
            let what = format!("{damage}, and no segment under it tells what it was: this is no journal");
            Err(OpenError::Identity { dir: dir.display().to_string(), file: directory::IDENTITY_FILE, what })
        }
    }
}

/// The id that most segments start with.
fn journal_of_commits(dir: &Path, files: &ReadOnly) -> Result<Option<Id128>, OpenError> {
    let mut votes: BTreeMap<[u8; 16], usize> = BTreeMap::new();
    let mut block = AlignedBuf::zeroed(BLOCK_BYTES);
    for shard in 0..SHARDS_MAX {
        let dir = shard_dir(dir, shard);
        let listed = files.list(&dir).map_err(OpenError::io("list", &dir))?;
        // The newest first: they are the least likely to be left over from something else.
        let segments = listed.iter().rev().filter(|file| segment_number(&file.name).is_some());
        for listed in segments.take(IDENTITY_SEGMENTS_MAX) {
            let path = dir.join(&listed.name);
            let file = files.open(&path).map_err(OpenError::io("open", &path))?;
            let read = file.read_at(&mut block, 0..BLOCK_BYTES, 0).unwrap_or(0);
            if let Some(header) = Header::decode(&block[..read]) {
                *votes.entry(header.owner.journal.0).or_default() += 1;
            }
        }
    }
    Ok(votes.into_iter().max_by_key(|(_, votes)| *votes).map(|(journal, _)| Id128(journal)))
}

/// Files that nobody changes, with what is read counted.
pub(super) struct ReadOnly {
    pub(super) on_read: OnRead,
}

struct ReadOnlyFile {
    file: fs::File,
    on_read: OnRead,
}

fn refused<T>() -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "this journal is only looked at"))
}

impl Files for ReadOnly {
    fn create_dir(&self, _: &Path) -> io::Result<()> {
        refused()
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Listed>> {
        StdFiles { direct: false }.list(dir)
    }

    fn create_zeroed(&self, _: &Path, _: u64) -> io::Result<()> {
        refused()
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        Ok(Box::new(ReadOnlyFile { file: fs::File::open(path)?, on_read: Arc::clone(&self.on_read) }))
    }

    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        refused()
    }

    fn remove(&self, _: &Path) -> io::Result<()> {
        refused()
    }
}

impl File for ReadOnlyFile {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, buf: &mut AlignedBuf, range: Range<usize>, offset_bytes: u64) -> io::Result<usize> {
        let read = self.file.read_at(&mut buf[range], offset_bytes)?;
        (self.on_read)(read as u64);
        Ok(read)
    }

    /// Nothing is written, so nothing has to be made durable; and a file system that is mounted read-only could not.
    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
}
