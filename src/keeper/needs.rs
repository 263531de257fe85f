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
//!
//! A legal hold of a span keeps more than points: every state of the disk in it, which makes each record in it a kept place, and every
//! message written in it, also where a fork has cut it off. A message is in the span by a label, or by the store's time of its batch.
//!
//! Of records that stand in several messages all are needed, if one is: which of them a history takes changes when another appears,
//! under a reader's hands, and that the last one opens nobody has tried.

use std::collections::{BTreeMap, BTreeSet};

use super::policy::Held;
use crate::restore::history::{History, Pick, Row};
use crate::types::{Epoch, ExtentKind, Micros, PointId};

/// What is known of the batch of a row; of one that was moved, of the batch that it came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Appeared {
    /// Whether it appeared within the fork window.
    pub young: bool,
    /// When it appeared at the latest, by the store's clock; zero if nobody knows.
    pub put_by: Micros,
}

/// The rows, in the order of [`History::rows`], that are needed for the images at `kept`, in the spans of `holds`, and at every
/// place where the history may still be forked.
#[must_use]
pub fn needed(
    history: &History,
    kept: &BTreeSet<PointId>,
    holds: &[Held],
    appeared: impl Fn(&Row) -> Appeared,
) -> Vec<bool> {
    let young: Vec<bool> = history.rows.iter().map(|row| appeared(row).young).collect();
    let held = held(history, holds, |row| appeared(row).put_by);
    let mut owners = Owners { ranges: BTreeMap::new(), needed: young.clone(), kept_at: None };
    owners.needed.iter_mut().zip(&held).for_each(|(needed, held)| *needed |= held);
    let picks: Vec<_> = history.picks().collect();
    // Before the first young stretch, or at the very end, history may still be forked.
    let fork = picks.iter().position(|(_, pick)| young[pick.row]).unwrap_or(picks.len());
    let mut at = 0_u64;
    for (number, (epoch, pick)) in picks.iter().enumerate() {
        let movable = number >= fork;
        if movable || number + 1 == fork {
            owners.needed[pick.row] = true;
        }
        // The state that a held message found.
        owners.kept_at = if held[pick.row] && at > 0 { Some(at) } else { owners.kept_at };
        let records = history.picked(pick);
        for (index, record) in records.iter().enumerate() {
            at += 1;
            for extent in &record.extents {
                let row = (extent.kind == ExtentKind::Data).then_some(pick.row);
                owners.set(extent.offset_bytes, extent.end_bytes(), row, at);
            }
            let end = number + 1 == fork && index + 1 == records.len();
            let next = records.get(index + 1).or_else(|| history.picked(picks.get(number + 1)?.1).first());
            let next = next.map(|next| next.label);
            let is_held = held[pick.row] || holds.iter().any(|held| held.meets(record.label, next));
            if movable || end || is_held || kept.contains(&PointId { epoch: *epoch, seq: record.seq }) {
                owners.kept_at = Some(at);
            }
        }
    }
    let mut needed = owners.finish();
    copies(history, &picks, &mut needed);
    beyond(history, &mut needed);
    needed
}

/// For each row whether it was written in a held span, also if it is not part of history.
fn held(history: &History, holds: &[Held], put_by: impl Fn(&Row) -> Micros) -> Vec<bool> {
    let within = |time: Micros| holds.iter().any(|held| held.contains(time));
    let rows = history.rows.iter();
    rows.map(|row| {
        !holds.is_empty() && (within(put_by(row)) || row.message.records.iter().any(|record| within(record.label)))
    })
    .collect()
}

/// Rows that hold records of a stretch that is read from a needed row.
fn copies(history: &History, picks: &[(Epoch, &Pick)], needed: &mut [bool]) {
    let taken: Vec<_> = picks.iter().filter(|(_, pick)| needed[pick.row]).collect();
    for (row, needed) in history.rows.iter().zip(needed) {
        let message = &row.message;
        // In the order of the history, and within an epoch by their seqs.
        let from = taken.partition_point(|(epoch, pick)| (*epoch, pick.last) < (message.epoch, message.first));
        let overlaps = |(epoch, pick): &&(Epoch, &Pick)| *epoch == message.epoch && pick.first <= message.last;
        *needed = *needed || taken.get(from).copied().filter(overlaps).is_some();
    }
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

    /// When the object of a row appeared in these tests: half a second after its first record was labelled.
    fn put_by(history: &History, row: usize) -> Micros {
        Micros(history.rows[row].message.records[0].label.0 + 500_000)
    }

    /// The same by its definition: the union of the plans at every kept place, at every place of a held span, and at every place
    /// from the fork on; what was written in a held span, and every copy of what a plan reads.
    fn by_plans(history: &History, kept: &BTreeSet<PointId>, holds: &[Held], young: &[bool]) -> Vec<bool> {
        let picks: Vec<_> = history.picks().collect();
        let fork = picks.iter().position(|(_, pick)| young[pick.row]).unwrap_or(picks.len());
        let mut needed = young.to_vec();
        let mut places: Vec<PointId> = kept.iter().copied().collect();
        let records: Vec<_> = history.records().collect();
        for held in holds {
            let mut in_span = BTreeSet::new();
            for (index, row) in history.rows.iter().enumerate() {
                let labels = row.message.records.iter().map(|record| record.label.0);
                if labels.chain([put_by(history, index).0]).any(|at| (held.from.0..=held.until.0).contains(&at)) {
                    needed[index] = true;
                    in_span.extend((row.message.first.0..=row.message.last.0).map(|seq| (row.message.epoch, Seq(seq))));
                }
            }
            let mut places_of = BTreeSet::new();
            for (at, (epoch, record)) in records.iter().enumerate() {
                if in_span.contains(&(*epoch, record.seq)) {
                    places_of.extend([Some(at), at.checked_sub(1)].into_iter().flatten());
                }
            }
            places_of.extend(records.iter().rposition(|(_, record)| record.label <= held.from));
            places.extend(places_of.into_iter().map(|at| PointId { epoch: records[at].0, seq: records[at].1.seq }));
        }
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
            young_from in any::<prop::sample::Index>(), holds in prop::collection::vec((0..60_u64, 0..20_u64), 0..3),
        ) {
            let disk = model::model(&steps);
            let history = history_of(&disk, step);
            prop_assume!(!history.rows.is_empty());
            let points = points::list(&history);
            let kept: BTreeSet<PointId> =
                kept.iter().filter(|_| !points.is_empty()).map(|at| points[at.index(points.len())].id).collect();
            let from = young_from.index(history.rows.len() + 1);
            let young: Vec<bool> = (0..history.rows.len()).map(|row| row >= from).collect();
            let first = 1_800_000_000_000_000;
            let span = |(from, length): (u64, u64)| {
                Held { from: Micros(first + from * 125_000), until: Micros(first + (from + length) * 125_000) }
            };
            let holds: Vec<Held> = holds.into_iter().map(span).collect();
            let appeared = |row: &Row| {
                Appeared { young: row.object as usize >= from, put_by: put_by(&history, row.object as usize) }
            };
            let found = needed(&history, &kept, &holds, appeared);
            let mut expected = by_plans(&history, &kept, &holds, &young);
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
            let needed = needed(&history, &kept, &[], |_: &Row| Appeared { young: false, put_by: Micros(0) });
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

    /// A copy that was put later, in other pieces, takes no place from the one that was there: neither goes as long as the other is needed.
    #[test]
    fn of_copies_all_are_needed_if_one_is() {
        let mut disk = ModelDisk::new(64 << 10);
        for number in 0..24_u64 {
            disk.write(number % 8 * 4096, vec![number as u8 | 1; 4096]);
        }
        let last = PointId { epoch: Epoch(1), seq: Seq(20) };
        let mut rows = disk.rows(4);
        let pieces = [(1, 9), (11, 16), (15, 20)];
        for (first, until) in pieces {
            let message = disk.message(Epoch(1), first, until);
            rows.push(Row { object: rows.len() as u32, confirmed: false, presence: Presence::Here, message });
        }
        let history = History::build(&disk.epochs, rows);
        let old = |_: &Row| Appeared { young: false, put_by: Micros(0) };
        let needed = needed(&history, &BTreeSet::from([last]), &[], old);
        // The image at 20 holds records 13 to 20: messages 4 and 5 of the first account, and both that overlap them.
        let found: Vec<usize> = (0..needed.len()).filter(|row| needed[*row]).collect();
        assert!([3, 4, 7, 8].iter().all(|row| found.contains(row)), "{found:?}");
        assert!(!found.contains(&0) && !found.contains(&1), "{found:?}: what no image needs goes with all its copies");
    }
}
