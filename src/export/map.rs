//! Which message supplies which bytes of the disk. Pure: made from a plan, asked by range.

use std::ops::Range;

use crate::restore::history::History;
use crate::restore::plan::{self, MessageUse, Plan, RangedRead};

/// A range of the disk that one message supplies.
#[derive(Clone, Copy, Debug)]
struct Piece {
    offset_bytes: u64,
    length_bytes: u32,
    /// Where it begins among the bytes that the message supplies.
    at_bytes: u32,
    message: u32,
}

/// A stretch of the disk with one source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// First byte on the disk.
    pub offset_bytes: u64,
    /// Bytes.
    pub length_bytes: u64,
    /// The message by its number, and where the stretch begins among the bytes that it supplies; `None` for zeroes.
    pub source: Option<(u32, u32)>,
}

/// A plan that can be asked by range. Messages have the numbers of their order in the plan.
#[derive(Debug)]
pub struct Map {
    plan: Plan,
    /// By offset; they never overlap.
    pieces: Vec<Piece>,
    places: Vec<Place>,
}

/// Where a message stands in the plan, and how much of the disk it supplies.
#[derive(Clone, Copy, Debug)]
struct Place {
    read: u32,
    at: u32,
    supplied_bytes: u32,
}

impl Map {
    /// Sorts the plan's ranges by their place on the disk.
    #[must_use]
    pub fn new(plan: Plan) -> Self {
        let (mut pieces, mut places) = (Vec::new(), Vec::new());
        for (read, ranged) in plan.reads.iter().enumerate() {
            for (at, message) in ranged.messages.iter().enumerate() {
                let number = places.len() as u32;
                let mut at_bytes = 0;
                for owned in &message.owned {
                    let (offset_bytes, length_bytes) = (owned.offset_bytes, owned.length_bytes);
                    pieces.push(Piece { offset_bytes, length_bytes, at_bytes, message: number });
                    at_bytes += length_bytes;
                }
                places.push(Place { read: read as u32, at: at as u32, supplied_bytes: at_bytes });
            }
        }
        pieces.sort_unstable_by_key(|piece| piece.offset_bytes);
        Self { plan, pieces, places }
    }

    /// The plan.
    #[must_use]
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// How many messages the plan has.
    #[must_use]
    pub fn messages(&self) -> usize {
        self.places.len()
    }

    /// What a message supplies, in the order in which its bytes are kept.
    #[must_use]
    pub fn message(&self, number: u32) -> &MessageUse {
        let Place { read, at, .. } = self.places[number as usize];
        &self.plan.reads[read as usize].messages[at as usize]
    }

    /// The number of each row's message; rows that the plan does not use have none.
    #[must_use]
    pub fn numbers(&self, rows: usize) -> Vec<u32> {
        let mut numbers = vec![u32::MAX; rows];
        for number in 0..self.places.len() as u32 {
            numbers[self.message(number).row] = number;
        }
        numbers
    }

    /// Bytes of the disk that a message supplies.
    #[must_use]
    pub fn supplied_bytes(&self, number: u32) -> u64 {
        self.places[number as usize].supplied_bytes.into()
    }

    /// The stretches of a range, without a gap, in order.
    pub fn runs(&self, offset_bytes: u64, length_bytes: u64) -> impl Iterator<Item = Run> + '_ {
        let end = offset_bytes.saturating_add(length_bytes).min(self.plan.disk_bytes);
        let mut at = offset_bytes;
        let mut next =
            self.pieces.partition_point(|piece| piece.offset_bytes + u64::from(piece.length_bytes) <= offset_bytes);
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let piece = self.pieces.get(next).filter(|piece| piece.offset_bytes < end);
            let run = match piece {
                Some(piece) if piece.offset_bytes <= at => {
                    let skip = (at - piece.offset_bytes) as u32;
                    next += 1;
                    let stop = (piece.offset_bytes + u64::from(piece.length_bytes)).min(end);
                    let source = Some((piece.message, piece.at_bytes + skip));
                    Run { offset_bytes: at, length_bytes: stop - at, source }
                }
                Some(piece) => Run { offset_bytes: at, length_bytes: piece.offset_bytes - at, source: None },
                None => Run { offset_bytes: at, length_bytes: end - at, source: None },
            };
            at += run.length_bytes;
            Some(run)
        })
    }

    /// The messages that supply something of a range, each once, by their first place there; at most `most`.
    #[must_use]
    pub fn messages_in(&self, range: Range<u64>, most: usize) -> Vec<u32> {
        let mut found: Vec<u32> = Vec::new();
        for run in self.runs(range.start, range.end.saturating_sub(range.start)) {
            let Some((message, _)) = run.source else { continue };
            if !found.contains(&message) {
                if found.len() == most {
                    break;
                }
                found.push(message);
            }
        }
        found
    }

    /// The reads that bring these messages: neighbours within an object share one.
    #[must_use]
    pub fn reads(&self, history: &History, numbers: &[u32]) -> Vec<RangedRead> {
        plan::coalesce(history, numbers.iter().map(|number| self.message(*number).clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::restore::tests::{MODEL_BYTES, model, steps};
    use crate::types::Epoch;

    proptest! {
        #[test]
        fn runs_cover_a_range_and_give_the_bytes_of_the_image(
            steps in steps(), step in 1..5_u64, ranges in prop::collection::vec((0..MODEL_BYTES, 1..MODEL_BYTES), 1..8),
        ) {
            let disk = model(&steps);
            let history = History::build(&disk.epochs, disk.rows(step));
            let Some(head) = history.head() else { return Ok(()) };
            let Some(plan) = Plan::build(&history, head) else { return Ok(()) };
            let (map, image) = (Map::new(plan), disk.image_at(head));
            let supplied: Vec<Vec<u8>> = (0..map.messages() as u32).map(|number| {
                let owned = &map.message(number).owned;
                owned.iter().flat_map(|owned| {
                    let start = owned.offset_bytes as usize;
                    image[start..start + owned.length_bytes as usize].to_vec()
                }).collect()
            }).collect();
            for (offset, length) in ranges {
                let end = (offset + length).min(MODEL_BYTES);
                let mut bytes = Vec::new();
                for run in map.runs(offset, length) {
                    prop_assert_eq!(run.offset_bytes, offset + bytes.len() as u64);
                    prop_assert!(run.length_bytes > 0);
                    match run.source {
                        None => bytes.resize(bytes.len() + run.length_bytes as usize, 0),
                        Some((message, at)) => bytes.extend_from_slice(
                            &supplied[message as usize][at as usize..at as usize + run.length_bytes as usize],
                        ),
                    }
                }
                prop_assert_eq!(&bytes[..], &image[offset as usize..end as usize]);
                let some = map.messages_in(offset..end, 2);
                prop_assert!(some.len() <= 2);
                let all = map.messages_in(offset..end, usize::MAX);
                prop_assert_eq!(&all[..some.len()], &some[..]);
            }
            prop_assert_eq!(map.numbers(history.rows.len()).iter().filter(|n| **n != u32::MAX).count(), map.messages());
        }
    }

    #[test]
    fn messages_that_lie_side_by_side_are_read_together() {
        let mut disk = crate::restore::tests::ModelDisk::new(1 << 20);
        for at in 0..8 {
            disk.write(at * 4096, vec![at as u8 + 1; 4096]);
        }
        let mut rows = disk.rows(1);
        let mut place = 64;
        for row in &mut rows {
            row.object = 0;
            row.message.offset_bytes = place;
            place += u64::from(row.message.stored_bytes);
        }
        let history = History::build(&disk.epochs, rows);
        let target = crate::types::PointId { epoch: Epoch(1), seq: crate::types::Seq(8) };
        let map = Map::new(Plan::build(&history, target).unwrap());
        assert_eq!(map.messages(), 8);
        let reads = map.reads(&history, &[5, 4, 6]);
        assert_eq!(reads.len(), 1);
        assert_eq!(reads[0].messages.len(), 3);
        assert_eq!(map.supplied_bytes(3), 4096);
    }
}
