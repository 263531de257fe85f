//! What is to be done in one lane. Pure: what is there, what was let go, what is needed, and the time in; steps out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::limits;
use crate::vault::objects::LetGoRun;

/// Most runs of one manifest, so that it stays within the bound of a control object. A lane in which more would be let go keeps
/// the rest until neighbours go too.
pub const MANIFEST_RUNS_MAX: usize = 15 << 10;
/// The longest run as text: three numbers of 20 digits.
const RUN_BYTES_MAX: usize = 64;

const _: () = assert!(
    (MANIFEST_RUNS_MAX * RUN_BYTES_MAX + 1024) as u64 <= limits::CONTROL_OBJECT_BYTES_MAX,
    "a manifest is a control object"
);

/// A set of batch numbers, sparse: numbers come from names and indexes, and must cost nobody's memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers(BTreeMap<u64, u64>);

impl Numbers {
    /// Adds a number.
    pub fn insert(&mut self, n: u64) {
        *self.0.entry(n / 64).or_default() |= 1 << (n % 64);
    }

    /// Whether a number is there.
    #[must_use]
    pub fn contains(&self, n: u64) -> bool {
        self.0.get(&(n / 64)).is_some_and(|word| word & (1 << (n % 64)) != 0)
    }
}

/// A batch as a listing shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Present {
    /// Its number.
    pub n: u64,
    /// Its size.
    pub size_bytes: u64,
    /// When it appeared, by the store's clock.
    pub modified_micros: i64,
}

/// What was judged of a lane.
#[derive(Clone, Debug, Default)]
pub struct LaneVerdict {
    /// Batches whose rows were looked at.
    pub seen: Numbers,
    /// Those of them that hold something needed.
    pub needed: Numbers,
    /// Those of these that hold something needed of which no copy ripens: they may not even be marked.
    pub alone: Numbers,
    /// Whether any of its batches stood there.
    pub here: bool,
    /// Disks that were judged by what this lane holds of them too, by their places in [`super::judge::Verdict::disks`].
    pub judged: Numbers,
}

/// When something is old enough, by the store's clock, in microseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Now.
    pub now_micros: i64,
    /// What is older may be marked.
    pub old_micros: i64,
    /// What is marked for longer may be deleted.
    pub delete_micros: i64,
}

impl Times {
    /// The times of a moment.
    #[must_use]
    pub fn at(now_micros: i64, fork_window: Duration, delete_after: Duration) -> Self {
        let before = |span: Duration| now_micros - span.as_micros() as i64;
        Self { now_micros, old_micros: before(fork_window), delete_micros: before(delete_after) }
    }
}

/// The steps in one lane.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LaneSteps {
    /// To be marked.
    pub mark: Vec<Present>,
    /// Marked, and needed all the same, in this place: the mark is to be taken back.
    pub take_back: Vec<u64>,
    /// To be deleted.
    pub delete: Vec<Present>,
    /// Marked, and not yet old enough, or copies of it are not.
    pub waiting: Vec<Present>,
    /// What stays.
    pub stay: Vec<Present>,
}

impl LaneSteps {
    /// The steps for what is `present`, `let_go` by the newest manifest, marked for long enough (`ripe`), and judged.
    #[must_use]
    pub fn new(present: &[Present], let_go: &[LetGoRun], ripe: &Numbers, verdict: &LaneVerdict, times: &Times) -> Self {
        let mut steps = Self::default();
        for &batch in present {
            let is_seen = verdict.seen.contains(batch.n);
            // A mark and the copies of what is needed ripen side by side, and it goes when both have.
            let may_be_marked = is_seen && !verdict.alone.contains(batch.n);
            let may_go = may_be_marked && !verdict.needed.contains(batch.n);
            match names(let_go, batch.n) {
                true if !may_be_marked => steps.take_back.push(batch.n),
                true if may_go && ripe.contains(batch.n) => steps.delete.push(batch),
                true => steps.waiting.push(batch),
                false if may_be_marked && batch.modified_micros <= times.old_micros => steps.mark.push(batch),
                false => steps.stay.push(batch),
            }
        }
        steps
    }

    /// Whether there is nothing to do now.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.mark.is_empty() && self.take_back.is_empty() && self.delete.is_empty()
    }
}

/// Whether runs hold a batch.
#[must_use]
pub fn names(let_go: &[LetGoRun], n: u64) -> bool {
    let at = let_go.partition_point(|run| run.last < n);
    let_go.get(at).is_some_and(|run| run.first <= n)
}

/// The runs of the next manifest: those of the one before, without what is taken back, and with `mark`. Numbers that are not
/// present are deleted for good, and join into long runs. If the runs would be too many, the newest of `mark` are left out, and then
/// everything that is present is taken back. None if what is deleted alone makes too many.
#[must_use]
pub fn next_runs(
    before: &[LetGoRun],
    present: &BTreeSet<u64>,
    take_back: &BTreeSet<u64>,
    mark: &BTreeSet<u64>,
    now_micros: i64,
) -> Option<Vec<LetGoRun>> {
    let mut mark = mark.clone();
    loop {
        let runs = join(split(before, present, take_back), &mark, now_micros);
        if runs.len() <= MANIFEST_RUNS_MAX {
            return Some(runs);
        }
        if mark.is_empty() {
            break;
        }
        let half = mark.len() / 2;
        mark = mark.into_iter().take(half).collect();
    }
    let runs = join(split(before, present, present), &mark, now_micros);
    (runs.len() <= MANIFEST_RUNS_MAX).then_some(runs)
}

/// The old runs, cut at what is present: that keeps its time of the mark, the rest needs none any more.
fn split(before: &[LetGoRun], present: &BTreeSet<u64>, take_back: &BTreeSet<u64>) -> Vec<LetGoRun> {
    let mut runs = Vec::new();
    for run in before {
        let mut from = Some(run.first);
        for &n in present.range(run.first..=run.last) {
            if let Some(first) = from.filter(|first| *first < n) {
                runs.push(LetGoRun { first, last: n - 1, marked_micros: 0 });
            }
            if !take_back.contains(&n) {
                runs.push(LetGoRun { first: n, last: n, marked_micros: run.marked_micros });
            }
            from = n.checked_add(1);
        }
        if let Some(first) = from.filter(|first| *first <= run.last) {
            runs.push(LetGoRun { first, last: run.last, marked_micros: 0 });
        }
    }
    runs
}

fn join(mut runs: Vec<LetGoRun>, mark: &BTreeSet<u64>, now_micros: i64) -> Vec<LetGoRun> {
    runs.extend(mark.iter().map(|&n| LetGoRun { first: n, last: n, marked_micros: now_micros }));
    runs.sort_unstable_by_key(|run| run.first);
    let mut joined: Vec<LetGoRun> = Vec::new();
    for run in runs {
        match joined.last_mut() {
            Some(last) if last.last.checked_add(1) == Some(run.first) && last.marked_micros == run.marked_micros => {
                last.last = run.last;
            }
            _ => joined.push(run),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::Id128;
    use crate::vault::objects::ManifestObject;

    fn batch(n: u64, modified_micros: i64) -> Present {
        Present { n, size_bytes: 100, modified_micros }
    }

    fn run(first: u64, last: u64, marked_micros: i64) -> LetGoRun {
        LetGoRun { first, last, marked_micros }
    }

    #[test]
    fn a_batch_is_marked_waits_and_goes_and_a_mark_that_is_wrong_is_taken_back() {
        let mut verdict = LaneVerdict::default();
        (1..=6).chain([8, 9, 10]).for_each(|n| verdict.seen.insert(n));
        [2, 4, 8, 9, 10].into_iter().for_each(|n| verdict.needed.insert(n));
        [2, 4].into_iter().for_each(|n| verdict.alone.insert(n));
        let times = Times { now_micros: 1000, old_micros: 900, delete_micros: 500 };
        let present = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10].map(|n| batch(n, if matches!(n, 6 | 10) { 950 } else { 10 }));
        let mut ripe = Numbers::default();
        [1, 3, 4, 9].into_iter().for_each(|n| ripe.insert(n));
        let steps =
            LaneSteps::new(&present, &[run(3, 3, 500), run(4, 5, 501), run(9, 9, 500)], &ripe, &verdict, &times);
        let numbers = |batches: &[Present]| batches.iter().map(|batch| batch.n).collect::<Vec<_>>();
        assert_eq!(numbers(&steps.mark), [1, 8], "not needed, or copied");
        assert_eq!(numbers(&steps.delete), [3]);
        assert_eq!(steps.take_back, [4]);
        assert_eq!(numbers(&steps.waiting), [5, 9], "a mark that is too young, copies that are");
        assert_eq!(numbers(&steps.stay), [2, 6, 7, 10], "needed, too young, never looked at, copied and too young");
    }

    proptest! {
        #[test]
        fn the_next_manifest_holds_what_was_let_go_and_is_sound(
            old in prop::collection::btree_map(1..200_u64, 1..4_i64, 0..60),
            deleted in prop::collection::btree_set(1..200_u64, 0..60),
            back in prop::collection::btree_set(1..200_u64, 0..20),
            mark in prop::collection::btree_set(1..200_u64, 0..40),
        ) {
            let before = join(old.iter().map(|(&n, &at)| run(n, n, at)).collect(), &BTreeSet::new(), 0);
            let present: BTreeSet<u64> = (1..200).filter(|n| !deleted.contains(n)).collect();
            let back: BTreeSet<u64> = back.into_iter().filter(|n| present.contains(n)).collect();
            let mark: BTreeSet<u64> = mark.into_iter().filter(|n| present.contains(n) && !old.contains_key(n)).collect();
            let manifest = ManifestObject {
                lane: Id128([1; 16]),
                n: 2,
                made_micros: 9,
                run: Id128([2; 16]),
                policies: Id128([3; 16]),
                newest_micros: 8,
                let_go: next_runs(&before, &present, &back, &mark, 9).expect("few"),
            };
            prop_assert!(manifest.is_sound(Id128([1; 16]), 2));
            for n in 1..200 {
                let expected = match (old.get(&n), mark.contains(&n)) {
                    (_, true) => Some(9),
                    (Some(_), _) if back.contains(&n) => None,
                    (Some(_), _) if !present.contains(&n) => Some(0),
                    (Some(at), _) => Some(*at),
                    (None, _) => None,
                };
                prop_assert_eq!(manifest.run_of(n).map(|run| run.marked_micros), expected, "{}", n);
            }
        }
    }

    #[test]
    fn a_manifest_stays_within_its_bound_and_numbers_beyond_all_cost_nothing() {
        let all: BTreeSet<u64> = (1..=4 * MANIFEST_RUNS_MAX as u64).collect();
        let odd: BTreeSet<u64> = all.iter().copied().filter(|n| n % 2 == 1).collect();
        let runs = next_runs(&[], &all, &BTreeSet::new(), &odd, 5).expect("as many as there is room for");
        assert!(runs.len() <= MANIFEST_RUNS_MAX && runs.len() > MANIFEST_RUNS_MAX / 4, "{}", runs.len());
        assert_eq!(runs[0], run(1, 1, 5));
        let forged = [run(1, u64::MAX, 3)];
        let present = BTreeSet::from([7, u64::MAX]);
        let runs = next_runs(&forged, &present, &BTreeSet::from([7]), &BTreeSet::new(), 5);
        assert_eq!(runs.expect("few"), [run(1, 6, 0), run(8, u64::MAX - 1, 0), run(u64::MAX, u64::MAX, 3)]);
        // Every second mark is taken back: that is more than a manifest holds, so all of them are.
        let whole = [run(1, 10, 0), run(11, 4 * MANIFEST_RUNS_MAX as u64, 3)];
        let standing: BTreeSet<u64> = all.range(11..).copied().collect();
        let runs = next_runs(&whole, &standing, &odd, &BTreeSet::new(), 5);
        assert_eq!(runs.expect("what is gone fits"), [run(1, 10, 0)]);
        let holed = odd.iter().map(|&n| run(n, n, 0)).collect::<Vec<_>>();
        assert_eq!(next_runs(&holed, &BTreeSet::new(), &BTreeSet::new(), &BTreeSet::new(), 5), None);
    }
}
