//! Which messages of a disk are needed. Pure: a history and the places that are kept in, a mark for each row out.
//!
//! ```text
//!  records ──►   1 … 40     41        42 … 80      81         82 … 99    100 …
//!                         kept point             kept point   │          batches younger than the fork window
//!                                                             └ oldest place of a fork: from here on all is needed
//! ```
//!
//! Records are walked once, oldest first. Each byte of the disk is owned by the record that set it last; when another
//! takes it, its owner was needed if a kept place lies between the two. So the work does not grow with the number of
//! kept points, and memory is the ranges of one image and a mark for each row.

use std::collections::{BTreeMap, BTreeSet};

use crate::restore::history::History;
use crate::types::{ExtentKind, PointId};

/// The rows, in the order of [`History::rows`], that are needed for the images at `kept`, and at every place where the
/// history may still be forked. `is_young` tells of an object that it appeared within the fork window.
#[must_use]
pub fn needed(history: &History, kept: &BTreeSet<PointId>, is_young: impl Fn(u32) -> bool) -> Vec<bool> {
    let young: Vec<bool> = history.rows.iter().map(|row| is_young(row.object)).collect();
    let mut owners = Owners { ranges: BTreeMap::new(), needed: young.clone(), kept_at: None };
    let picks: Vec<_> = history.picks().collect();
    // Before the first young stretch, or at the very end, history may still be forked.
    let fork = picks.iter().position(|(_, pick)| young[pick.row]).unwrap_or(picks.len());
    let mut at = 0_u64;
    for (number, (epoch, pick)) in picks.iter().enumerate() {
        let movable = number >= fork;
        if movable || number + 1 == fork {
            owners.needed[pick.row] = true;
        }
        let records = history.picked(pick);
        for (index, record) in records.iter().enumerate() {
            at += 1;
            for extent in &record.extents {
                let row = (extent.kind == ExtentKind::Data).then_some(pick.row);
                owners.set(extent.offset_bytes, extent.end_bytes(), row, at);
            }
            let end = number + 1 == fork && index + 1 == records.len();
            if movable || end || kept.contains(&PointId { epoch: *epoch, seq: record.seq }) {
                owners.kept_at = Some(at);
            }
        }
    }
    let mut needed = owners.finish();
    beyond(history, &mut needed);
    needed
}

/// Rows above the usable part of the newest epoch: a hole below them may still be filled.
fn beyond(history: &History, needed: &mut [bool]) {
    let Some(newest) = history.spans.last() else { return };
    for (row, needed) in history.rows.iter().zip(needed) {
        let above = row.message.epoch == newest.segment.epoch && row.message.last > newest.through;
        *needed = *needed || above || row.message.epoch > newest.segment.epoch;
    }
}

#[derive(Clone, Copy)]
struct Owner {
    end: u64,
    row: usize,
    /// Place in the history of the record that set the range.
    since: u64,
}

struct Owners {
    /// By start; disjoint.
    ranges: BTreeMap<u64, Owner>,
    needed: Vec<bool>,
    /// The last kept place so far.
    kept_at: Option<u64>,
}

impl Owners {
    fn note(&mut self, owner: Owner) {
        if self.kept_at.is_some_and(|kept| kept >= owner.since) {
            self.needed[owner.row] = true;
        }
    }

    /// `start..end` is set at the place `at`: by data of `row`, or to zeroes, which nobody needs.
    fn set(&mut self, start: u64, end: u64, row: Option<usize>, at: u64) {
        if start >= end {
            return;
        }
        if let Some((&before, &owner)) = self.ranges.range(..start).next_back()
            && owner.end > start
        {
            self.note(owner);
            self.ranges.insert(before, Owner { end: start, ..owner });
            if owner.end > end {
                self.ranges.insert(end, owner);
            }
        }
        while let Some((&inside, &owner)) = self.ranges.range(start..end).next() {
            self.note(owner);
            self.ranges.remove(&inside);
            if owner.end > end {
                self.ranges.insert(end, owner);
            }
        }
        if let Some(row) = row {
            self.ranges.insert(start, Owner { end, row, since: at });
        }
    }

    fn finish(mut self) -> Vec<bool> {
        for owner in std::mem::take(&mut self.ranges).into_values() {
            self.note(owner);
        }
        self.needed
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::restore::history::Presence;
    use crate::restore::plan::Plan;
    use crate::restore::points;
    use crate::restore::tests::{self as model, ModelDisk};
    use crate::types::Seq;

    /// The same by its definition: the union of the plans at every kept place, and at every place from the fork on.
    fn by_plans(history: &History, kept: &BTreeSet<PointId>, young: &[bool]) -> Vec<bool> {
        let picks: Vec<_> = history.picks().collect();
        let fork = picks.iter().position(|(_, pick)| young[pick.row]).unwrap_or(picks.len());
        let mut needed = young.to_vec();
        let mut places: Vec<PointId> = kept.iter().copied().collect();
        for (number, (epoch, pick)) in picks.iter().enumerate() {
            if number + 1 >= fork {
                needed[pick.row] = true;
                places.push(PointId { epoch: *epoch, seq: pick.last });
            }
            if number >= fork {
                places.extend((pick.first.0..=pick.last.0).map(|seq| PointId { epoch: *epoch, seq: Seq(seq) }));
            }
        }
        for place in places {
            let Some(plan) = Plan::build(history, place) else { continue };
            plan.reads.iter().flat_map(|read| &read.messages).for_each(|message| needed[message.row] = true);
        }
        needed
    }

    fn history_of(disk: &ModelDisk, step: u64) -> History {
        History::build(&disk.epochs, disk.rows(step))
    }

    proptest! {
        #[test]
        fn what_is_needed_is_what_the_plans_read(
            steps in model::steps(), step in 1..5_u64, kept in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
            young_from in any::<prop::sample::Index>(),
        ) {
            let disk = model::model(&steps);
            let history = history_of(&disk, step);
            prop_assume!(!history.rows.is_empty());
            let points = points::list(&history);
            let kept: BTreeSet<PointId> =
                kept.iter().filter(|_| !points.is_empty()).map(|at| points[at.index(points.len())].id).collect();
            let from = young_from.index(history.rows.len() + 1);
            let young: Vec<bool> = (0..history.rows.len()).map(|row| row >= from).collect();
            let found = needed(&history, &kept, |object| object as usize >= from);
            let mut expected = by_plans(&history, &kept, &young);
            beyond(&history, &mut expected);
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn kept_points_stay_offered_and_readable_without_what_is_not_needed(
            steps in model::steps(), step in 1..5_u64, kept in prop::collection::vec(any::<prop::sample::Index>(), 1..6),
        ) {
            let disk = model::model(&steps);
            let mut history = history_of(&disk, step);
            let points = points::list(&history);
            prop_assume!(!points.is_empty());
            let kept: BTreeSet<PointId> = kept.iter().map(|at| points[at.index(points.len())].id).collect();
            let needed = needed(&history, &kept, |_| false);
            for (row, needed) in history.rows.iter_mut().zip(&needed) {
                row.presence = if *needed { Presence::Here } else { Presence::LetGo };
            }
            let thinned = History::build(&disk.epochs, history.rows);
            let offered: BTreeSet<PointId> = points::list(&thinned).iter().map(|point| point.id).collect();
            prop_assert!(kept.is_subset(&offered));
            for point in offered.iter().copied().chain(thinned.head()) {
                let plan = Plan::build(&thinned, point).expect("in history");
                let mut messages = plan.reads.iter().flat_map(|read| &read.messages);
                prop_assert!(messages.all(|message| needed[message.row]), "{point} is offered and cannot be read");
            }
        }
    }
}
