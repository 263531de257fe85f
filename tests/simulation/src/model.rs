//! What one life of a disk was: every change in order, and which of them a record (epoch, seq) stands behind.
//!
//! A history belongs to one owner of the disk: a clone or a machine that was rolled back starts another one. Samples are
//! taken before and after every change and at the end of every window: each says that the records up to (epoch, seq)
//! and the changes up to a count existed at the same moment. From them follows exactly which changes the image at a
//! recovery point must hold. Changes of all disks are numbered together, so that a point of several disks can be held
//! against one moment.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use tidegate::types::{Epoch, PointId, Seq};

use crate::dice::Dice;
use crate::disk::SECTOR;

/// One change of a disk.
#[derive(Clone)]
pub struct Change {
    /// First byte.
    pub offset: u64,
    /// How many.
    pub length: u64,
    /// What stands there afterwards.
    pub content: Content,
}

thread_local! {
    /// Changes so far, of every disk.
    static CHANGES: Cell<u64> = const { Cell::new(0) };
}

/// What a change puts at its place.
#[derive(Clone)]
pub enum Content {
    /// Bytes made from a number.
    Made(u64),
    /// Zeroes.
    Zero,
    /// These bytes: what was found there after a write that failed or a restart.
    Found(Bytes),
}

/// Bytes made from a number: every sector another, half of each compressible.
#[must_use]
pub fn made(number: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; length as usize];
    let mut dice = Dice::new(number);
    for sector in bytes.chunks_mut(SECTOR) {
        let half = sector.len() / 2;
        for word in sector[..half].chunks_mut(8) {
            let drawn = dice.roll().to_le_bytes();
            word.copy_from_slice(&drawn[..word.len()]);
        }
        let fill = number as u8 | 1;
        sector[half..].fill(fill);
    }
    bytes
}

impl Change {
    /// Makes the change in an image.
    pub fn apply(&self, image: &mut [u8]) {
        let target = &mut image[self.offset as usize..(self.offset + self.length) as usize];
        match &self.content {
            Content::Made(number) => target.copy_from_slice(&made(*number, self.length)),
            Content::Zero => target.fill(0),
            Content::Found(bytes) => target.copy_from_slice(bytes),
        }
    }
}

/// Records and changes that existed at the same moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// The newest record that had been made.
    pub at: PointId,
    /// Changes so far.
    pub changes: usize,
    /// Whether the records hold exactly these changes: none of the last ones was only marked.
    pub exact: bool,
}

/// What the tracker of a disk says at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// Its newest record; none while no epoch is open.
    pub at: Option<PointId>,
    /// Whether changes become records.
    pub recording: bool,
}

/// Acks that the owner has seen, by epoch.
#[derive(Debug, Clone, Copy, Default)]
pub struct Acked {
    /// Newest record acked as vaulted.
    pub vaulted: u64,
    /// When that ack came, in simulated microseconds.
    pub vaulted_at: u64,
}

/// One owner's history of a disk.
pub struct History {
    /// The owner, for messages.
    pub owner: String,
    /// The image with which it began.
    pub base: Vec<u8>,
    /// Every change.
    pub changes: Vec<Change>,
    /// The number of each among the changes of all disks.
    moments: Vec<u64>,
    /// Every sample, in order.
    pub samples: Vec<Sample>,
    /// Acks by epoch.
    pub acked: BTreeMap<Epoch, Acked>,
    /// Points that were promised to an operator as vaulted, with the changes in them.
    pub promised: Vec<(PointId, u64)>,
    /// Whether changes were marked only, since the newest record was made.
    marked: bool,
}

impl History {
    /// A history that begins with `base`.
    #[must_use]
    pub fn new(owner: String, base: Vec<u8>) -> Self {
        Self {
            owner,
            base,
            changes: Vec::new(),
            moments: Vec::new(),
            samples: Vec::new(),
            acked: BTreeMap::new(),
            promised: Vec::new(),
            marked: false,
        }
    }

    fn add(&mut self, change: Change) {
        let moment = CHANGES.get() + 1;
        CHANGES.set(moment);
        self.changes.push(change);
        self.moments.push(moment);
    }

    fn push(&mut self, sample: Sample) {
        if self.samples.last() != Some(&sample) {
            self.samples.push(sample);
        }
    }

    fn place(&self, seen: Seen) -> PointId {
        let before = self.samples.last().map_or(PointId { epoch: Epoch(0), seq: Seq::NONE }, |sample| sample.at);
        // The tracker forgets its epoch when it gives it up; for the order of things it is still the newest.
        seen.at.filter(|at| *at >= before).unwrap_or(before)
    }

    /// Takes a sample between changes.
    pub fn sample(&mut self, seen: Seen) {
        let at = self.place(seen);
        if self.samples.last().is_some_and(|last| last.at != at) {
            self.marked = false;
        }
        self.push(Sample { at, changes: self.changes.len(), exact: !self.marked });
    }

    /// Notes a change that was just made; a sample was taken just before.
    pub fn changed(&mut self, change: Change, failed: bool, seen: Seen) {
        self.add(change);
        let at = self.place(seen);
        let recorded = seen.recording && seen.at.is_some() && !failed;
        if !recorded {
            self.marked = true;
        } else if self.samples.last().is_some_and(|last| last.at != at) {
            self.marked = false;
        }
        self.push(Sample { at, changes: self.changes.len(), exact: !self.marked });
    }

    /// Notes what a failed flush left of the disk, and what the tracker said at that moment: records that were made just
    /// before know nothing of it.
    pub fn reverted(&mut self, seen: Seen, image: &[u8]) {
        self.sample(seen);
        self.restarted(image);
    }

    /// Notes what a restart left of the disk, where it differs from what the changes make.
    pub fn restarted(&mut self, image: &[u8]) {
        let known = self.image(self.changes.len());
        let mut at = 0;
        while at < image.len() {
            let sector = at..(at + SECTOR).min(image.len());
            if image[sector.clone()] != known[sector.clone()] {
                let (offset, length) = (at as u64, sector.len() as u64);
                let content = Content::Found(Bytes::copy_from_slice(&image[sector]));
                self.add(Change { offset, length, content });
            }
            at += SECTOR;
        }
        self.marked = true;
        let at = self.place(Seen { at: None, recording: false });
        self.push(Sample { at, changes: self.changes.len(), exact: false });
    }

    /// The image after the first `changes`.
    #[must_use]
    pub fn image(&self, changes: usize) -> Vec<u8> {
        let mut image = self.base.clone();
        self.changes[..changes].iter().for_each(|change| change.apply(&mut image));
        image
    }

    /// Whether the owner made records of this epoch.
    #[must_use]
    pub fn owns(&self, epoch: Epoch) -> bool {
        self.samples.iter().any(|sample| sample.at.epoch == epoch)
    }

    /// How many changes the image at a point must hold, the point lying outside of every sync span.
    #[must_use]
    pub fn changes_at(&self, point: PointId) -> usize {
        let until = self.samples.partition_point(|sample| sample.at <= point);
        let Some(last) = until.checked_sub(1).map(|last| &self.samples[last]) else { return 0 };
        if last.at < point {
            return last.changes;
        }
        let same = self.samples[..until].iter().rev().take_while(|sample| sample.at == point);
        let mut exact = same.filter(|sample| sample.exact);
        exact.next().map_or(last.changes, |sample| sample.changes)
    }
}

/// A point that several disks were promised as one moment.
pub struct GroupPoint {
    /// Of each disk its history and its point.
    pub members: Vec<(Rc<RefCell<History>>, PointId)>,
}

impl GroupPoint {
    /// Whether some moment lies after everything that the points hold and before everything that they do not.
    #[must_use]
    pub fn is_one_moment(&self) -> bool {
        let (mut held, mut left_out) = (0, u64::MAX);
        for (history, point) in &self.members {
            let history = history.borrow();
            let count = history.changes_at(*point);
            held = history.moments[..count].last().map_or(held, |last| held.max(*last));
            left_out = history.moments.get(count).map_or(left_out, |next| left_out.min(*next));
        }
        held < left_out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(epoch: u64, seq: u64) -> PointId {
        PointId { epoch: Epoch(epoch), seq: Seq(seq) }
    }

    fn change() -> Change {
        Change { offset: 0, length: 512, content: Content::Zero }
    }

    fn seen(epoch: u64, seq: u64, recording: bool) -> Seen {
        Seen { at: Some(point(epoch, seq)), recording }
    }

    #[test]
    fn a_point_holds_the_changes_of_its_records_and_no_other() {
        let mut history = History::new("a".into(), vec![0; 4096]);
        history.sample(seen(1, 2, true));
        history.changed(change(), false, seen(1, 3, true));
        history.changed(change(), false, seen(1, 3, true));
        history.sample(seen(1, 4, true));
        history.changed(change(), false, seen(1, 5, true));
        assert_eq!(history.changes_at(point(1, 2)), 0);
        assert_eq!(history.changes_at(point(1, 3)), 2);
        assert_eq!(history.changes_at(point(1, 4)), 2);
        assert_eq!(history.changes_at(point(1, 9)), 3);
    }

    #[test]
    fn a_barrier_right_before_a_failed_flush_does_not_hold_what_the_flush_left() {
        let mut history = History::new("a".into(), vec![7; 4096]);
        history.sample(seen(1, 3, true));
        history.reverted(seen(1, 4, true), &[0; 4096]);
        history.sample(seen(1, 8, true));
        assert_eq!(history.changes_at(point(1, 4)), 0);
        assert_eq!(history.changes_at(point(1, 8)), 8);
    }

    #[test]
    fn points_of_two_disks_are_one_moment_only_if_no_change_lies_between_them() {
        let histories = [(), ()].map(|()| Rc::new(RefCell::new(History::new("a".into(), vec![0; 4096]))));
        for seq in 1..=3 {
            for history in &histories {
                history.borrow_mut().changed(change(), false, seen(1, seq, true));
            }
        }
        let at = |first, second| {
            let members = histories.iter().map(Rc::clone).zip([point(1, first), point(1, second)]).collect();
            GroupPoint { members }.is_one_moment()
        };
        assert!(at(2, 2) && at(3, 2) && at(3, 3));
        assert!(!at(1, 2) && !at(3, 1), "the second has a change that came after one that the first has not");
    }

    #[test]
    fn marked_changes_belong_to_the_points_after_the_next_span() {
        let mut history = History::new("a".into(), vec![0; 4096]);
        history.sample(seen(1, 2, true));
        history.changed(change(), false, seen(1, 3, true));
        history.changed(change(), false, seen(1, 3, false));
        history.changed(change(), false, Seen { at: None, recording: false });
        history.sample(seen(2, 1, true));
        history.changed(change(), false, seen(2, 6, true));
        assert_eq!(history.changes_at(point(1, 3)), 1, "the marked ones came later");
        assert_eq!(history.changes_at(point(2, 5)), 3);
        assert_eq!(history.changes_at(point(2, 6)), 4);
    }
}
