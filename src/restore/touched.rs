//! Which chunks of a disk some records set: what an agent must compare that does not know of them. Pure.
//!
//! Chunks are those of the agent's dirty map. The answer is bounded whatever the records are: a disk that was written all
//! over gives more runs than anybody wants to hold, and so the smallest gaps between them are closed. Chunks too many
//! cost reading them; a chunk too few would cost the image.

use std::ops::Range;

use crate::limits::{CHUNK_BYTES, DISK_BYTES_MAX, TOUCHED_RUNS_MAX};
use crate::types::Extent;

/// Runs of chunks, ascending, with a gap between any two.
pub type Runs = Vec<Range<u32>>;

/// First number that no chunk has, on the largest disk.
const CHUNKS_MAX: u64 = DISK_BYTES_MAX / CHUNK_BYTES;
const _: () = assert!(CHUNKS_MAX <= u32::MAX as u64, "a chunk's number fits four bytes");

/// Every chunk of a disk.
#[must_use]
pub fn whole(size_bytes: u64) -> Runs {
    let chunks = size_bytes.div_ceil(CHUNK_BYTES).min(CHUNKS_MAX) as u32;
    Runs::from([Range { start: 0, end: chunks }])
}

/// The chunks that these extents touch, and as few more as the bound on runs asks for.
#[must_use]
pub fn chunks<'a>(extents: impl Iterator<Item = &'a Extent>) -> Runs {
    let mut runs: Runs = Vec::new();
    for extent in extents {
        let start = (extent.offset_bytes / CHUNK_BYTES).min(CHUNKS_MAX) as u32;
        let end = extent.end_bytes().div_ceil(CHUNK_BYTES).min(CHUNKS_MAX) as u32;
        match runs.last_mut() {
            // Most writes lie where the one before did, or behind it.
            Some(last) if last.start <= start && start <= last.end => last.end = last.end.max(end),
            _ => runs.push(start..end),
        }
    }
    runs.retain(|run| !run.is_empty());
    runs.sort_unstable_by_key(|run| run.start);
    join(&mut runs, 0);
    bound(&mut runs, TOUCHED_RUNS_MAX);
    runs
}

/// Joins runs, sorted by their start, that overlap or have no more than `gap` chunks between them.
fn join(runs: &mut Runs, gap: u32) {
    runs.dedup_by(|next, run| {
        let joins = next.start <= run.end.saturating_add(gap);
        if joins {
            run.end = run.end.max(next.end);
        }
        joins
    });
}

/// Closes the smallest gaps until there are no more than `runs_max` runs.
fn bound(runs: &mut Runs, runs_max: usize) {
    let Some(excess) = runs.len().checked_sub(runs_max).filter(|excess| *excess > 0) else { return };
    let mut gaps: Vec<u32> = runs.windows(2).map(|pair| pair[1].start - pair[0].end).collect();
    let (_, widest, _) = gaps.select_nth_unstable(excess - 1);
    join(runs, *widest);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::ExtentKind;

    fn extent(offset_bytes: u64, length_bytes: u32) -> Extent {
        Extent { offset_bytes, length_bytes, kind: ExtentKind::Data }
    }

    #[test]
    fn chunks_are_whole_joined_and_in_order() {
        let chunk = CHUNK_BYTES;
        let extents = [
            extent(9 * chunk + 5, 1),
            extent(2 * chunk - 1, 2),
            extent(3 * chunk, 100),
            extent(10 * chunk, 4096),
            extent(0, 1),
            extent(5 * chunk, 0),
        ];
        assert_eq!(chunks(extents.iter()), [0..4, 9..11]);
        assert_eq!(chunks([].iter()), []);
        assert_eq!(whole(1), [Range { start: 0, end: 1 }]);
        assert_eq!(whole(DISK_BYTES_MAX), [Range { start: 0, end: 1 << 30 }]);
    }

    #[test]
    fn too_many_runs_lose_their_smallest_gaps_and_nothing_else() {
        let mut runs: Runs = vec![0..1, 3..4, 10..11, 12..13, 100..101];
        bound(&mut runs, 5);
        assert_eq!(runs.len(), 5, "as many as may be");
        bound(&mut runs, 3);
        assert_eq!(runs, [0..4, 10..13, 100..101]);
        bound(&mut runs, 1);
        assert_eq!(runs, [Range { start: 0, end: 101 }]);
    }

    #[test]
    fn writes_all_over_the_largest_disk_stay_within_the_bound() {
        let step = DISK_BYTES_MAX / (3 * TOUCHED_RUNS_MAX as u64);
        let extents: Vec<Extent> = (0..3 * TOUCHED_RUNS_MAX as u64).map(|at| extent(at * step, 512)).collect();
        let runs = chunks(extents.iter());
        assert!(runs.len() <= TOUCHED_RUNS_MAX, "{} runs", runs.len());
        let lie_in = |offset: u64| runs.iter().any(|run| run.contains(&((offset / CHUNK_BYTES) as u32)));
        assert!(extents.iter().step_by(997).all(|extent| lie_in(extent.offset_bytes)));
    }

    proptest! {
        #[test]
        fn every_touched_chunk_is_in_the_runs(
            parts in prop::collection::vec((0..200_u64, 1..300_000_u32), 0..40), runs_max in 1..8_usize
        ) {
            let extents: Vec<Extent> = parts.iter().map(|(at, length)| extent(at * 30_000, *length)).collect();
            let exact = chunks(extents.iter());
            let mut few = exact.clone();
            bound(&mut few, runs_max);
            prop_assert!(few.len() <= runs_max.max(1));
            prop_assert!(few.windows(2).all(|pair| pair[0].end < pair[1].start));
            for chunk in 0..200_u32 {
                let bytes = u64::from(chunk) * CHUNK_BYTES..u64::from(chunk + 1) * CHUNK_BYTES;
                let touched = extents.iter().any(|one| one.offset_bytes < bytes.end && bytes.start < one.end_bytes());
                prop_assert_eq!(exact.iter().any(|run| run.contains(&chunk)), touched);
                prop_assert!(!touched || few.iter().any(|run| run.contains(&chunk)));
            }
        }
    }
}
