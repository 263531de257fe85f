//! What a shard's files say when the journal is opened: valid commits, runs, marks, damage.
//!
//! - Each file is synced before it is read. After a kill of the process alone, what is read may still be on its way
//!   to the platter, and it will count as journaled from now on.
//! - A file is streamed through one window; memory does not grow with the journal.
//! - Commits of another segment number are what an earlier life of the file left: they are not seen.
//! - The last commit of a segment is void if its number stands again in a later segment: its sync failed and it was
//!   rewritten, or it was cut at an earlier start.
//! - The very last commit counts whole or not at all: if one of its records fails its CRC, the write was torn, nothing
//!   of it was acked, and all of it is cut. Keeping a part would leave records behind a gap that come once more.
//! - A segment ends where nothing valid follows. Bytes that are invalid with something valid behind them, or a record
//!   that fails its CRC, are damage: reported, stepped over, and everything else is kept.
//! - Writing goes on in a new segment, never behind a cut tail.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use super::depot::{segment_name, segment_number};
use super::disk::{BufPool, Files};
use super::error::OpenError;
use super::format::{Owner, Row, RowKind};
use super::ledger::{Came, Freed, Ledger};
use super::model::{CommitAt, Damage, DamageKind};
use super::runs::Runs;
use super::walk::{Found, Step, Walk};
use crate::mutants::{self, Mutant};
use crate::types::{DiskId, Epoch, Id128, PointId, RecordHead, Seq};

/// What one shard's files hold.
#[derive(Debug)]
pub struct ShardReplay {
    /// The books, with every segment that still matters.
    pub ledger: Ledger,
    /// Files that hold nothing.
    pub freed: Vec<Freed>,
    /// Files that hold something.
    pub held: u64,
    /// The first unused segment number.
    pub next_segment: u64,
    /// The first unused commit number.
    pub next_number: u64,
    /// Records and marks.
    pub runs: Runs,
    /// What is wrong.
    pub damage: Vec<Damage>,
    /// Valid commits.
    pub commits: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Names seen so far: a disk's name is checked and allocated once.
#[derive(Debug, Default)]
pub struct Names(HashMap<Box<str>, DiskId>);

impl Names {
    /// The disk of that name, if it is a valid one.
    pub fn get(&mut self, name: &str) -> Option<DiskId> {
        if let Some(disk) = self.0.get(name) {
            return Some(disk.clone());
        }
        let disk = DiskId::new(name).ok()?;
        self.0.insert(name.into(), disk.clone());
        Some(disk)
    }
}

/// A record of a commit, checked: its head, or the damage that it is.
///
/// # Errors
/// What is known of the damaged record: its disk if the name is valid, and its point.
pub fn check_record(row: &Row, commit: &[u8]) -> Result<RecordHead, PointId> {
    read_head(row, commit).filter(|_| row.is_whole(commit)).ok_or_else(|| row.point())
}

/// The head of a record, if it is the one that its row names. The record's checksum is not compared.
pub fn read_head(row: &Row, commit: &[u8]) -> Option<RecordHead> {
    let head = RecordHead::decode(&commit[row.body.clone()]).ok()?;
    (head.point() == row.point() && head.record_bytes() == row.body.len()).then_some(head)
}

struct Scan {
    out: ShardReplay,
    names: Names,
    file: PathBuf,
    segment: u64,
    last_number: u64,
    /// The commit found last, with its segment and file: what comes next says whether it counts.
    pending: Option<(Found, u64, PathBuf)>,
}

impl Scan {
    fn damaged(&mut self, kind: DamageKind, offset_bytes: u64, length_bytes: u64, records: Vec<(DiskId, PointId)>) {
        let file = self.file.clone();
        self.out.damage.push(Damage { kind, file, offset_bytes, length_bytes, records });
    }

    /// Takes a commit in; the one before counts unless this one has its number.
    fn found(&mut self, found: Found) {
        // Numbers only grow: a lower one can only be left from earlier, and says nothing about what is here.
        if self.pending.as_ref().is_some_and(|(before, ..)| before.header.number > found.header.number) {
            return;
        }
        if let Some((before, segment, file)) = self.pending.take()
            && before.header.number < found.header.number
        {
            self.commit(&before, segment, &file);
        }
        self.last_number = found.header.number;
        self.pending = Some((found, self.segment, self.file.clone()));
    }

    /// Decides about the very last commit.
    fn finish(&mut self) {
        let Some((last, segment, file)) = self.pending.take() else { return };
        let commit = last.bytes();
        let torn: Vec<&Row> = last.rows.iter().filter(|row| !row.is_whole(commit)).collect();
        if torn.is_empty() || mutants::on(Mutant::TornTailBelieved) {
            self.commit(&last, segment, &file);
            return;
        }
        let named =
            |row: &&Row| Some((DiskId::new(row.disk_name(commit)?).ok()?, PointId { epoch: row.epoch, seq: row.seq }));
        let records = torn.iter().filter_map(named).collect();
        self.out.damage.push(Damage {
            kind: DamageKind::TornTail,
            file,
            offset_bytes: last.header.offset_bytes,
            length_bytes: u64::from(last.header.commit_bytes),
            records,
        });
        // The next commit takes its number and says that the segment ends here, and so makes it void for ever.
        self.out.ledger.cut(segment, last.header.offset_bytes);
        self.last_number = last.header.number - 1;
    }

    fn commit(&mut self, found: &Found, segment: u64, file: &Path) {
        self.file = file.to_owned();
        let (header, commit) = (found.header, found.bytes());
        self.out.commits += 1;
        self.out.bytes += u64::from(header.commit_bytes);
        let mut lasts: BTreeMap<(DiskId, Epoch), Seq> = BTreeMap::new();
        let mut marks = Vec::new();
        for row in found.rows.iter().filter(|row| !row.kind.is_of_segment()) {
            let disk = row.disk_name(commit).and_then(|name| self.names.get(name));
            let Some(disk) = disk else {
                self.row_damage(header.offset_bytes, row, None);
                continue;
            };
            match row.kind {
                RowKind::Record => match check_record(row, commit) {
                    Ok(head) => {
                        let last = lasts.entry((disk.clone(), row.epoch)).or_default();
                        *last = row.seq.max(*last);
                        if self.out.runs.add(&disk, &head).is_err() {
                            let at = header.offset_bytes + row.body.start as u64;
                            let records = vec![(disk, head.point())];
                            self.damaged(DamageKind::Conflict, at, row.body.len() as u64, records);
                        }
                    }
                    Err(_) => self.row_damage(header.offset_bytes, row, Some(disk)),
                },
                RowKind::Vaulted | RowKind::Forgotten if !row.is_whole(commit) => {
                    self.row_damage(header.offset_bytes, row, Some(disk));
                }
                RowKind::Vaulted | RowKind::Forgotten => marks.push((disk, row)),
                RowKind::Cut | RowKind::Held | RowKind::Released => {}
            }
        }
        let at = CommitAt { segment, offset_bytes: header.offset_bytes, number: header.number };
        let received = found.rows.iter().filter(|row| row.kind == RowKind::Record).map(|row| row.received);
        let came = Came { records: received.clone().count() as u64, first: received.min().unwrap_or_default() };
        let lasts = lasts.iter().map(|((disk, epoch), seq)| (disk, *epoch, *seq));
        self.out.ledger.committed(at, u64::from(header.commit_bytes), came, lasts);
        for (disk, row) in marks {
            match (row.kind, row.chain(commit)) {
                (RowKind::Vaulted, Some(chain)) => self.out.ledger.vaulted(&disk, row.epoch, row.seq, chain),
                (RowKind::Forgotten, _) => {
                    self.out.ledger.forget(&disk, row.epoch);
                }
                _ => self.row_damage(header.offset_bytes, row, Some(disk)),
            }
        }
    }

    fn row_damage(&mut self, commit_at: u64, row: &Row, disk: Option<DiskId>) {
        let point = PointId { epoch: row.epoch, seq: row.seq };
        let records = disk.map(|disk| (disk, point)).into_iter().collect();
        self.damaged(DamageKind::Record, commit_at + row.body.start as u64, row.body.len() as u64, records);
    }
}

/// Reads the files of a shard.
///
/// # Errors
/// [`OpenError::Io`] if a file cannot be opened, synced or read.
pub fn replay_shard(
    files: &dyn Files,
    dir: &Path,
    owner: (Id128, u16),
    pool: &BufPool,
) -> Result<ShardReplay, OpenError> {
    let listed = files.list(dir).map_err(OpenError::io("list", dir))?;
    let mut segments: Vec<(u64, PathBuf, u64)> = listed
        .into_iter()
        .filter_map(|file| Some((segment_number(&file.name)?, dir.join(&file.name), file.bytes)))
        .collect();
    segments.sort_unstable();
    let out = ShardReplay {
        ledger: Ledger::default(),
        freed: Vec::new(),
        held: 0,
        next_segment: segments.last().map_or(1, |(segment, ..)| segment + 1),
        next_number: 1,
        runs: Runs::default(),
        damage: Vec::new(),
        commits: 0,
        bytes: 0,
    };
    let mut scan =
        Scan { out, names: Names::default(), file: dir.to_owned(), segment: 0, last_number: 0, pending: None };
    let (cuts, held) = find_notes(files, &segments, owner, pool)?;
    let mut ends = BTreeMap::new();
    for (segment, path, file_bytes) in &segments {
        scan.segment = *segment;
        let owner = Owner { journal: owner.0, shard: owner.1, segment: *segment };
        let cut = cuts.get(segment).copied();
        if let Some(end_bytes) = cut {
            scan.out.ledger.cut(*segment, end_bytes);
        }
        let end_bytes = replay_segment(&mut scan, files, owner, pool, (path, *file_bytes, cut))?;
        ends.insert(*segment, end_bytes);
    }
    note_lost(&mut scan, dir, &held, &ends);
    scan.finish();
    let mut out = scan.out;
    out.next_number = scan.last_number + 1;
    settle(&mut out, &segments);
    Ok(out)
}

/// Ends of cut and of held segments, by segment.
type Notes = (BTreeMap<u64, u64>, BTreeMap<u64, u64>);

/// What the newest segment that has a commit says about the others: each segment starts with all of it.
fn find_notes(
    files: &dyn Files,
    segments: &[(u64, PathBuf, u64)],
    owner: (Id128, u16),
    pool: &BufPool,
) -> Result<Notes, OpenError> {
    let (mut cuts, mut held) = (BTreeMap::new(), BTreeMap::new());
    for (segment, path, file_bytes) in segments.iter().rev() {
        let owner = Owner { journal: owner.0, shard: owner.1, segment: *segment };
        let file = files.open(path).map_err(OpenError::io("open", path))?;
        let mut walk = Walk::new(owner, pool.clone(), 0, *file_bytes);
        let mut empty = true;
        loop {
            match walk.step(&*file).map_err(OpenError::io("read", path))? {
                Step::Commit(found) => {
                    empty = false;
                    for row in &found.rows {
                        let (segment, end_bytes) = (row.epoch.0, row.seq.0);
                        match row.kind {
                            RowKind::Cut => cuts.insert(segment, end_bytes),
                            RowKind::Held => held.insert(segment, end_bytes),
                            RowKind::Released => held.remove(&segment),
                            RowKind::Record | RowKind::Vaulted | RowKind::Forgotten => None,
                        };
                    }
                }
                Step::Damaged { .. } => {}
                Step::End { .. } => break,
            }
        }
        if !empty {
            break;
        }
    }
    // Of a file that has another name by now nothing has to be remembered; and nothing is walked that no file has.
    cuts.retain(|cut, end_bytes| {
        let file_bytes = segments.iter().find(|(segment, ..)| segment == cut).map(|(_, _, file_bytes)| *file_bytes);
        *end_bytes = (*end_bytes).min(file_bytes.unwrap_or(0));
        file_bytes.is_some()
    });
    Ok((cuts, held))
}

/// Takes the commits of one segment in; returns where they end.
fn replay_segment(
    scan: &mut Scan,
    files: &dyn Files,
    owner: Owner,
    pool: &BufPool,
    (path, file_bytes, cut): (&Path, u64, Option<u64>),
) -> Result<u64, OpenError> {
    let file = files.open(path).map_err(OpenError::io("open", path))?;
    file.sync_data().map_err(OpenError::io("sync", path))?;
    let mut walk = Walk::new(owner, pool.clone(), 0, cut.unwrap_or(file_bytes));
    let mut empty = true;
    loop {
        let step = walk.step(&*file).map_err(OpenError::io("read", path))?;
        scan.file = path.to_owned();
        match step {
            Step::Commit(found) => {
                if empty {
                    empty = false;
                    scan.out.ledger.add_segment(owner.segment, path.to_owned(), file_bytes);
                }
                scan.found(found);
            }
            Step::Damaged { offset_bytes, .. } if mutants::on(Mutant::TruncatedAtDamage) => return Ok(offset_bytes),
            Step::Damaged { offset_bytes, length_bytes } => {
                scan.damaged(DamageKind::Commit, offset_bytes, length_bytes, Vec::new());
            }
            Step::End { offset_bytes, begun } => {
                if begun && cut.is_none() {
                    scan.damaged(DamageKind::TornTail, offset_bytes, file_bytes - offset_bytes, Vec::new());
                }
                return Ok(offset_bytes);
            }
        }
    }
}

/// What the list of held segments says and the files do not: whole segments, or their ends, are lost.
fn note_lost(scan: &mut Scan, dir: &Path, held: &BTreeMap<u64, u64>, ends: &BTreeMap<u64, u64>) {
    for (segment, held_bytes) in held {
        let end_bytes = ends.get(segment).copied().unwrap_or(0);
        if end_bytes < *held_bytes {
            let file = dir.join(segment_name(*segment));
            // It was torn no more than anything else in a closed segment.
            scan.out.damage.retain(|damage| damage.file != file || damage.kind != DamageKind::TornTail);
            let (kind, length_bytes) = (DamageKind::Commit, held_bytes - end_bytes);
            scan.out.damage.push(Damage { kind, file, offset_bytes: end_bytes, length_bytes, records: Vec::new() });
        }
    }
}

/// Closes the books: what is covered or empty is free, the rest is held.
fn settle(out: &mut ShardReplay, segments: &[(u64, PathBuf, u64)]) {
    for (segment, path, file_bytes) in segments {
        if !out.ledger.holds(*segment) {
            let (segment, path, file_bytes) = (*segment, path.clone(), *file_bytes);
            out.freed.push(Freed { segment, path, file_bytes, held_bytes: 0, records: 0, reusable: true });
        }
    }
    out.ledger.replayed();
    out.held = segments.len() as u64 - out.freed.len() as u64;
    for (disk, epoch, mark) in out.ledger.marks() {
        if let Some(mark) = mark {
            out.runs.state_mut(disk, epoch).vaulted_mark = Some(mark);
        }
    }
    for (disk, epoch) in out.ledger.forgotten() {
        out.runs.remove(disk, epoch);
    }
}
