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
