//! A cursor over the unreleased commits of a shard: from memory if they are recent, else from the disk.
//!
//! The cursor is a place, not a list, so memory does not grow with the backlog. A segment may be released and used
//! again while it is read: what does not check out is looked up in the books once more before it is called damaged.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::body::Owner;
use super::disk::File;
use super::error::ReadError;
use super::format::{Header, RowKind};
use super::ledger::SegmentView;
use super::model::{Commit, CommitAt, CommitEntry, Damage, DamageKind};
use super::replay::{Names, read_head};
use super::shard::{Cached, Shard};
use super::walk::{Found, Step, Walk};
use crate::types::PointId;

/// A cursor over the unreleased commits of one shard, in order.
pub struct CommitReader {
    shard: Arc<Shard>,
    names: Names,
    /// Number of the commit that is due next.
    number: u64,
    /// Segment that was read last, and the place behind what was read.
    segment: u64,
    offset_bytes: u64,
    disk: Option<(Walk, Box<dyn File>)>,
    /// Found, but not given out yet: damage goes before what is left of its commit.
    ready: VecDeque<Result<Commit, ReadError>>,
}

impl fmt::Debug for CommitReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CommitReader(shard {}, commit {})", self.shard.index, self.number)
    }
}

/// Where a commit was found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// As it was written: records were checked before, on the wire.
    Memory,
    /// As it was read: nothing is checked.
    Disk,
}

enum Next {
    Memory(Found),
    Disk(SegmentView),
    Nothing,
    Ended,
}

impl CommitReader {
    pub(super) fn new(shard: Arc<Shard>) -> Self {
        Self {
            shard,
            names: Names::default(),
            number: 0,
            segment: 0,
            offset_bytes: 0,
            disk: None,
            ready: VecDeque::new(),
        }
    }

    /// The next commit that holds a record which is neither vaulted nor given up, waiting up to `wait` for one; `None`
    /// if none came. Reading from the disk blocks: for a thread of its own. Nothing is lost when it is dropped.
    ///
    /// # Errors
    /// [`ReadError`]; after damage the next call goes on behind it, after `Closed` there is nothing more.
    pub async fn next(&mut self, wait: Duration) -> Result<Option<Commit>, ReadError> {
        let deadline = tokio::time::Instant::now() + wait;
        loop {
            let shard = Arc::clone(&self.shard);
            let news = shard.news.notified();
            tokio::pin!(news);
            // Registered before the look, or a commit in between would be missed.
            news.as_mut().enable();
            if let Some(commit) = self.try_next()? {
                return Ok(Some(commit));
            }
            if tokio::time::timeout_at(deadline, news).await.is_err() {
                return Ok(None);
            }
        }
    }

    /// As [`Self::next`], without waiting.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub fn try_next(&mut self) -> Result<Option<Commit>, ReadError> {
        loop {
            if let Some(ready) = self.ready.pop_front() {
                return ready.map(Some);
            }
            match self.look() {
                Next::Memory(found) => {
                    self.offset_bytes = found.header.offset_bytes + u64::from(found.header.commit_bytes);
                    self.segment = found.header.owner.segment;
                    self.give(&found, Origin::Memory);
                }
                Next::Disk(view) => self.read(&view)?,
                Next::Nothing => return Ok(None),
                Next::Ended => return Err(ReadError::Closed),
            }
        }
    }

    /// Finds where the next commit is.
    fn look(&self) -> Next {
        let mut book = self.shard.book.lock();
        if let Some(found) = book.take(self.number).and_then(in_memory) {
            return Next::Memory(found);
        }
        match book.ledger.find(self.segment, self.number) {
            Some(view) => Next::Disk(view),
            None if book.ended => Next::Ended,
            None => Next::Nothing,
        }
    }

    fn read(&mut self, view: &SegmentView) -> Result<(), ReadError> {
        if !view.wanted {
            // Everything in it is vaulted: it waits only to be closed or released.
            self.pass(view);
            return Ok(());
        }
        if self.segment != view.segment {
            (self.segment, self.offset_bytes) = (view.segment, 0);
        }
        match self.step(view) {
            Ok(Step::Commit(found)) if found.header.number < self.number => self.offset_bytes += commit_len(&found),
            Ok(Step::Commit(found)) => {
                self.offset_bytes += commit_len(&found);
                self.give(&found, Origin::Disk);
            }
            Ok(Step::Damaged { offset_bytes, length_bytes }) => {
                self.offset_bytes = offset_bytes + length_bytes;
                self.damaged(view, offset_bytes, length_bytes);
            }
            Ok(Step::End { offset_bytes, .. }) => {
                // A durable end has a commit before it: nothing valid up to there is damage.
                if offset_bytes < view.end_bytes {
                    self.damaged(view, offset_bytes, view.end_bytes - offset_bytes);
                }
                self.pass(view);
            }
            Err(source) => {
                self.disk = None;
                if self.is_held(view.segment) {
                    return Err(ReadError::Io { path: view.path.clone(), source });
                }
            }
        }
        Ok(())
    }

    fn step(&mut self, view: &SegmentView) -> std::io::Result<Step> {
        if self.disk.as_ref().is_none_or(|(walk, _)| walk.segment() != view.segment) {
            let owner = self.shard.owner(view.segment);
            let walk = Walk::new(owner, self.shard.pool.clone(), self.offset_bytes, view.end_bytes);
            self.disk = Some((walk, self.shard.files.open(&view.path)?));
        }
        let Some((walk, file)) = &mut self.disk else { unreachable!("it was just opened") };
        walk.seek(self.offset_bytes, view.end_bytes);
        walk.step(&**file)
    }

    /// Goes behind the last commit of a segment.
    fn pass(&mut self, view: &SegmentView) {
        (self.segment, self.offset_bytes) = (view.segment, view.end_bytes);
        self.number = self.number.max(view.last_number + 1);
    }

    fn is_held(&self, segment: u64) -> bool {
        self.shard.book.lock().ledger.holds(segment)
    }

    fn damaged(&mut self, view: &SegmentView, offset_bytes: u64, length_bytes: u64) {
        if !self.is_held(view.segment) {
            self.disk = None;
            return;
        }
        let (kind, file) = (DamageKind::Commit, view.path.clone());
        let damage = Damage { kind, file, offset_bytes, length_bytes, records: Vec::new() };
        self.ready.push_back(Err(ReadError::Damaged(damage)));
    }

    /// Queues what is wanted of a commit's records, and what is damaged.
    fn give(&mut self, found: &Found, origin: Origin) {
        self.number = found.header.number + 1;
        let commit = found.bytes();
        let mut entries = Vec::new();
        let mut damaged = Vec::new();
        for row in found.rows.iter().filter(|row| row.kind == RowKind::Record) {
            let Some(disk) = row.disk_name(commit).and_then(|name| self.names.get(name)) else { continue };
            if self.shard.book.lock().ledger.covers(&disk, row.epoch, row.seq) {
                continue;
            }
            let unchecked_crc = (origin == Origin::Memory).then_some(row.crc);
            match read_head(row, commit) {
                Some(head) if unchecked_crc.is_some() || row.is_whole(commit) => {
                    let range = found.base + row.body.start..found.base + row.body.end;
                    entries.push(CommitEntry { disk, head, received: row.received, unchecked_crc, range });
                }
                _ => damaged.push((disk, row.point(), row.body.clone())),
            }
        }
        // A segment that was released under the reader's hands may be half overwritten.
        if !damaged.is_empty() && self.is_held(found.header.owner.segment) {
            for (disk, point, body) in damaged {
                self.record_damage(found, (disk, point), body.start, body.len());
            }
        }
        if !entries.is_empty() {
            let header = &found.header;
            let at =
                CommitAt { segment: header.owner.segment, offset_bytes: header.offset_bytes, number: header.number };
            let may_keep = found.body.pin(&self.shard.pinned);
            let bytes = Bytes::from_owner(Owner(Arc::clone(&found.body)));
            self.ready.push_back(Ok(Commit { shard: self.shard.index, at, may_keep, bytes, entries }));
        }
    }

    fn record_damage(&mut self, found: &Found, record: (crate::types::DiskId, PointId), start: usize, length: usize) {
        let dir = super::depot::segment_name(found.header.owner.segment);
        let file = self.shard.dir.join(dir);
        let offset_bytes = found.header.offset_bytes + start as u64;
        let damage =
            Damage { kind: DamageKind::Record, file, offset_bytes, length_bytes: length as u64, records: vec![record] };
        self.ready.push_back(Err(ReadError::Damaged(damage)));
    }
}

/// A commit that was just written; a fresh cursor starts on the disk.
fn in_memory(cached: Cached) -> Option<Found> {
    let Cached { at, body, commit_bytes } = cached;
    let commit = &body.buf[..commit_bytes];
    // What was sealed in memory decodes; if not, memory is broken and the disk may do better.
    let header = Header::decode(commit).filter(|header| header.number == at.number)?;
    let rows = header.rows(commit)?;
    Some(Found { header, rows, body, base: 0 })
}

fn commit_len(found: &Found) -> u64 {
    u64::from(found.header.commit_bytes)
}
