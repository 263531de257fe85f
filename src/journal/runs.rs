//! Which records of each disk are in the journal: ranges without a gap, each record following the chain of the one
//! before. Pure; built by replay.

use std::collections::BTreeMap;

use super::model::{RunRange, RunState};
use crate::types::{DiskId, Epoch, RecordHead};

/// The runs found so far.
#[derive(Debug, Default)]
pub struct Runs(BTreeMap<(DiskId, Epoch), RunState>);

/// A record that contradicts what was found before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conflict;

impl Runs {
    /// Adds a record.
    ///
    /// # Errors
    /// [`Conflict`] if its chain contradicts its neighbour's; it is left out, so a gap stays where it stood.
    pub fn add(&mut self, disk: &DiskId, head: &RecordHead) -> Result<(), Conflict> {
        let ranges = &mut self.0.entry((disk.clone(), head.epoch)).or_default().journaled;
        let fresh = RunRange { first: head.seq, last: head.seq, chain_last: head.chain, label_last: head.label };
        let Some(last) = ranges.last_mut() else {
            ranges.push(fresh);
            return Ok(());
        };
        if head.seq == last.last.next() {
            if head.chain_after(last.chain_last) != head.chain {
                return Err(Conflict);
            }
            *last = RunRange { first: last.first, ..fresh };
            return Ok(());
        }
        if head.seq > last.last {
            ranges.push(fresh);
            return Ok(());
        }
        // A commit that was rewritten after a failed sync may be found twice.
        match ranges.iter().position(|range| head.seq <= range.last) {
            Some(at) if head.seq < ranges[at].first => ranges.insert(at, fresh),
            Some(at) if head.seq == ranges[at].last && head.chain != ranges[at].chain_last => return Err(Conflict),
            _ => {}
        }
        Ok(())
    }

    /// The runs, with what `other` knows of other disks.
    pub fn merge(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// The run of a disk's epoch, made if absent.
    pub fn state_mut(&mut self, disk: &DiskId, epoch: Epoch) -> &mut RunState {
        self.0.entry((disk.clone(), epoch)).or_default()
    }

    /// Drops a run that was given up.
    pub fn remove(&mut self, disk: &DiskId, epoch: Epoch) {
        self.0.remove(&(disk.clone(), epoch));
    }

    /// Ends building: ranges that the mark covers are left out.
    #[must_use]
    pub fn finish(self) -> BTreeMap<(DiskId, Epoch), RunState> {
        let mut runs = self.0;
        for run in runs.values_mut() {
            if let Some((mark, _)) = run.vaulted_mark {
                run.journaled.retain(|range| range.last > mark);
            }
        }
        runs.retain(|_, run| run.vaulted_mark.is_some() || !run.journaled.is_empty());
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Chain, Digest, Id128, Micros, RecordKind, Seq};

    fn heads(count: u64) -> Vec<RecordHead> {
        let mut chain = Chain::GENESIS;
        let head = |seq| RecordHead {
            kind: RecordKind::Write,
            extent_count: 0,
            payload_bytes: 0,
            epoch: Epoch(1),
            seq: Seq(seq),
            label: Micros(seq * 10),
            clock_uncertainty_micros: 0,
            group: Id128::NONE,
            digest: Digest([0; 32]),
            chain: Chain::GENESIS,
        };
        (1..=count)
            .map(|seq| {
                let head = head(seq).sealed_after(chain);
                chain = head.chain;
                head
            })
            .collect()
    }

    fn bounds(runs: Runs) -> Vec<(u64, u64)> {
        runs.finish().values().flat_map(|run| run.journaled.iter().map(|range| (range.first.0, range.last.0))).collect()
    }

    #[test]
    fn records_merge_into_ranges_and_gaps_stay() {
        let disk = DiskId::new("d").expect("a name");
        let heads = heads(9);
        let mut runs = Runs::default();
        for index in [0, 1, 2, 4, 5, 5, 1, 8] {
            runs.add(&disk, &heads[index]).expect("no conflict");
        }
        assert_eq!(bounds(runs), [(1, 3), (5, 6), (9, 9)]);
    }

    #[test]
    fn a_broken_chain_leaves_a_gap_instead_of_a_lie() {
        let disk = DiskId::new("d").expect("a name");
        let mut heads = heads(4);
        heads[1].chain = Chain([9; 32]);
        let mut runs = Runs::default();
        let results: Vec<bool> = heads.iter().map(|head| runs.add(&disk, head).is_ok()).collect();
        assert_eq!(results, [true, false, true, true]);
        assert_eq!(bounds(runs), [(1, 1), (3, 4)]);
    }

    #[test]
    fn what_the_mark_covers_is_not_listed() {
        let disk = DiskId::new("d").expect("a name");
        let mut runs = Runs::default();
        for head in heads(3) {
            runs.add(&disk, &head).expect("no conflict");
        }
        runs.state_mut(&disk, Epoch(1)).vaulted_mark = Some((Seq(3), Chain([1; 32])));
        let finished = runs.finish();
        let run = &finished[&(disk, Epoch(1))];
        assert!(run.journaled.is_empty() && run.vaulted_mark.is_some());
    }
}
