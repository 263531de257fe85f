//! What the vault holds of one disk, put in order: the lineage of epochs, the contiguous prefix of each, and everything
//! that is missing or contradicts itself. Pure: rows and epoch facts in, values out.
//!
//! ```text
//!  epoch 1   ├── 1 … 40 ──┤ 41 … 57          41 to 57 came after the fork (a clone, a zombie): not part of history
//!  epoch 2                └─ 1 … 12 ─┤ gap ├ 20 … 30      usable through 12
//! ```
//!
//! - A record (e, s) belongs to history only if s ≤ the fork seq of the epoch that follows e on the newest lineage.
//! - Messages may overlap: a gateway that restarts vaults again what it cannot prove. Identical copies collapse.
//! - Two copies of one seq that differ are a conflict. Neither is believed: the epoch is usable only below it.
//! - An epoch whose parent is not whole up to the fork has no known base, so nothing in it is usable.
//! - Rows stay when their batch was let go: they are history, and tell which images can still be had. Where a record has a
//!   copy that can be read, that copy is taken.

use std::collections::HashMap;

use crate::mutants::{self, Mutant};
use crate::types::{Chain, Epoch, Micros, PointId, Seq};
use crate::vault::epochs::{Lineage, LineageError, Segment};
use crate::vault::index::{MessageMeta, RecordMeta};
use crate::vault::objects::EpochObject;

/// Whether the batch of a row can be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Presence {
    /// It is there.
    Here,
    /// It was there, and is lost.
    Missing,
    /// The keeper let it go: it is deleted, or may be at any moment.
    LetGo,
}

/// One message and where it is.
#[derive(Clone, Debug)]
pub struct Row {
    /// The vault object, as an index into the caller's table of batches.
    pub object: u32,
    /// Whether the batch was confirmed together with every earlier batch of its lane. What is missing before a
    /// confirmed row was vaulted once, so it is lost and not merely late.
    pub confirmed: bool,
    /// Whether the batch can be read.
    pub presence: Presence,
    /// The index's words.
    pub message: MessageMeta,
}

/// A stretch of one epoch that is read from one message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pick {
    /// Index into [`History::rows`].
    pub row: usize,
    /// First seq taken from it.
    pub first: Seq,
    /// Last seq taken from it.
    pub last: Seq,
}

/// One epoch of the newest lineage.
#[derive(Clone, Debug)]
pub struct Span {
    /// What its epoch object, and that of the next, say.
    pub segment: Segment,
    /// Last seq of the usable prefix; zero if nothing is.
    pub through: Seq,
    /// Where the usable prefix is read, in order and without overlap.
    pub picks: Vec<Pick>,
}

/// Records that are missing between what is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gap {
    /// The epoch.
    pub epoch: Epoch,
    /// First missing seq.
    pub first: Seq,
    /// Last missing seq.
    pub last: Seq,
    /// Whether the records are known to have been vaulted once. Otherwise they may only be late.
    pub lost: bool,
    /// Label of the last record before the gap.
    pub label_before: Option<Micros>,
    /// Label of the first record after it.
    pub label_after: Option<Micros>,
}

/// Two accounts of the same records that differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Conflict {
    /// The epoch.
    pub epoch: Epoch,
    /// The seq at which the accounts are known to differ.
    pub seq: Seq,
    /// Last seq that is still believed.
    pub cut: Seq,
    /// The rows, where a row is concerned; none stands for an epoch object's chain.
    pub rows: [Option<usize>; 2],
}

/// Something that is wrong with the epoch objects themselves.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EpochFault {
    /// The newest epoch does not lead back to a first one, so no record has a base.
    #[error(transparent)]
    Lineage(#[from] LineageError),
    /// Batches hold records of an epoch whose object is not there.
    #[error("the object of epoch {epoch} is missing, though there are records of it")]
    Missing {
        /// The epoch.
        epoch: Epoch,
    },
}

impl EpochFault {
    /// The epoch that is concerned.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        match self {
            Self::Lineage(LineageError::Missing { epoch, .. } | LineageError::Backwards { epoch, .. })
            | Self::Missing { epoch } => *epoch,
        }
    }
}

/// The history of one disk.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// All rows, in the order given.
    pub rows: Vec<Row>,
    /// The newest lineage, oldest epoch first.
    pub spans: Vec<Span>,
    /// What is missing.
    pub gaps: Vec<Gap>,
    /// What contradicts itself.
    pub conflicts: Vec<Conflict>,
    /// What is wrong with the epoch objects.
    pub faults: Vec<EpochFault>,
}

impl History {
    /// Puts the rows of one disk in order.
    #[must_use]
    pub fn build(epochs: &[EpochObject], rows: Vec<Row>) -> Self {
        let mut history = Self { rows, ..Self::default() };
        let lineage = Lineage::of(epochs).unwrap_or_else(|error| {
            history.faults.push(error.into());
            Lineage::default()
        });
        let mut by_epoch: HashMap<Epoch, Vec<usize>> = HashMap::new();
        for (index, row) in history.rows.iter().enumerate() {
            by_epoch.entry(row.message.epoch).or_default().push(index);
        }
        let mut missing: Vec<Epoch> =
            by_epoch.keys().copied().filter(|epoch| epochs.iter().all(|object| object.epoch != *epoch)).collect();
        missing.sort_unstable();
        history.faults.extend(missing.into_iter().map(|epoch| EpochFault::Missing { epoch }));
        let mut usable = true;
        for segment in lineage.segments() {
            let mut order = by_epoch.remove(&segment.epoch).unwrap_or_default();
            let span = history.span(segment, &mut order, usable);
            usable = usable && segment.last.is_none_or(|last| span.through >= last);
            history.spans.push(span);
        }
        history
    }

    fn span(&mut self, segment: &Segment, order: &mut [usize], usable: bool) -> Span {
        let limit = segment.last.map_or(u64::MAX, |seq| seq.0);
        order.sort_unstable_by_key(|&index| {
            let message = &self.rows[index].message;
            // Of two places of the same message that can be read, the first one is taken: a plan stays the same when a keeper moves
            // something. Of two that cannot be read, the one that is lost.
            let let_go = self.rows[index].presence == Presence::LetGo;
            (message.first, std::cmp::Reverse(message.last), let_go, message.origin.is_some(), index)
        });
        let (mut picks, gaps) = sweep(&self.rows, order, limit);
        let mut through = contiguous(&picks);
        for conflict in self.find_conflicts(segment, order, &picks, limit) {
            through = through.min(conflict.cut.0);
            self.conflicts.push(conflict);
        }
        self.note_gaps(segment.epoch, &gaps, &picks, segment.last.is_some());
        if !usable {
            through = 0;
        }
        picks.retain_mut(|pick| {
            pick.last = pick.last.min(Seq(through));
            pick.first <= pick.last
        });
        Span { segment: segment.clone(), through: Seq(through), picks }
    }

    fn note_gaps(&mut self, epoch: Epoch, gaps: &[(u64, u64)], picks: &[Pick], forked: bool) {
        for &(first, last) in gaps {
            let after = picks.iter().find(|pick| pick.first.0 > first);
            let before = picks.iter().rev().find(|pick| pick.last.0 < first);
            // A fork is made only at a seq that was vaulted, so what is missing below one is lost.
            let lost = forked || after.is_some_and(|pick| self.rows[pick.row].confirmed);
            self.gaps.push(Gap {
                epoch,
                first: Seq(first),
                last: Seq(last),
                lost,
                label_before: before.and_then(|pick| self.record(pick.row, pick.last)).map(|record| record.label),
                label_after: after.and_then(|pick| self.record(pick.row, pick.first)).map(|record| record.label),
            });
        }
    }

    /// The index's words on one record.
    #[must_use]
    pub fn record(&self, row: usize, seq: Seq) -> Option<&RecordMeta> {
        let message = &self.rows.get(row)?.message;
        message.records.get(seq.0.checked_sub(message.first.0)? as usize)
    }

    fn find_conflicts(&self, segment: &Segment, order: &[usize], picks: &[Pick], limit: u64) -> Vec<Conflict> {
        if mutants::on(Mutant::FirstWins) {
            return Vec::new();
        }
        let mut found = Vec::new();
        let mut chains = ChainBook::default();
        chains.note(0, Some(segment.chain_before), None, 0, &mut found);
        if let Some(last) = segment.last.filter(|last| *last > Seq::NONE) {
            chains.note(last.0, segment.chain_last, None, last.0, &mut found);
        }
        for &index in order {
            let message = &self.rows[index].message;
            // Doubt about the chain at a seq reaches back to where its message starts.
            let cut = message.first.0 - 1;
            if message.first.0 <= limit {
                chains.note(cut, message.chain_before, Some(index), cut, &mut found);
            }
            if message.last.0 <= limit {
                chains.note(message.last.0, Some(message.chain_last), Some(index), cut, &mut found);
            }
            let from = picks.partition_point(|pick| pick.last < message.first);
            for pick in picks[from..].iter().take_while(|pick| pick.first <= message.last) {
                found.extend(
                    self.first_difference(index, pick).map(|seq| (seq - 1, seq, [Some(index), Some(pick.row)])),
                );
            }
        }
        let conflict = |(cut, seq, rows)| Conflict { epoch: segment.epoch, seq: Seq(seq), cut: Seq(cut), rows };
        found.into_iter().filter(|(_, seq, _)| *seq <= limit).map(conflict).collect()
    }

    /// First seq at which a row and the row of a pick describe the same record differently.
    fn first_difference(&self, row: usize, pick: &Pick) -> Option<u64> {
        if row == pick.row {
            return None;
        }
        let message = &self.rows[row].message;
        let first = message.first.0.max(pick.first.0);
        let last = message.last.0.min(pick.last.0);
        (first..=last).find(|&seq| self.record(row, Seq(seq)) != self.record(pick.row, Seq(seq)))
    }

    /// The span of an epoch on the newest lineage.
    #[must_use]
    pub fn span_of(&self, epoch: Epoch) -> Option<&Span> {
        self.spans.iter().find(|span| span.segment.epoch == epoch)
    }

    /// The newest record that is usable, whether or not the image is whole there.
    #[must_use]
    pub fn head(&self) -> Option<PointId> {
        let span = self.spans.iter().rev().find(|span| span.through > Seq::NONE)?;
        Some(PointId { epoch: span.segment.epoch, seq: span.through })
    }

    /// The newest end of a message that is usable, with the chain there: where an epoch can be forked.
    #[must_use]
    pub fn head_with_chain(&self) -> Option<(PointId, Chain)> {
        self.spans.iter().rev().find_map(|span| {
            // A prefix that is cut inside a message has no known chain; the end of the message before it has.
            let pick = span.picks.iter().rev().find(|pick| pick.last == self.rows[pick.row].message.last)?;
            let epoch = span.segment.epoch;
            Some((PointId { epoch, seq: pick.last }, self.rows[pick.row].message.chain_last))
        })
    }

    /// The index's words on [`History::head`].
    #[must_use]
    pub fn head_record(&self) -> Option<&RecordMeta> {
        let span = self.spans.iter().rev().find(|span| span.through > Seq::NONE)?;
        let pick = span.picks.last()?;
        self.record(pick.row, pick.last)
    }

    /// Size of the disk as the newest epoch has it, in bytes.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.spans.last().map_or(0, |span| span.segment.size_bytes)
    }

    /// The usable records in history's order, from the oldest.
    pub fn records(&self) -> impl Iterator<Item = (Epoch, &RecordMeta)> {
        self.picks().flat_map(|(epoch, pick)| self.picked(pick).iter().map(move |record| (epoch, record)))
    }

    /// The stretches in which the usable records are read, from the oldest.
    pub fn picks(&self) -> impl Iterator<Item = (Epoch, &Pick)> {
        self.spans.iter().flat_map(|span| span.picks.iter().map(move |pick| (span.segment.epoch, pick)))
    }

    /// The index's words on the records of a stretch.
    #[must_use]
    pub fn picked(&self, pick: &Pick) -> &[RecordMeta] {
        let message = &self.rows[pick.row].message;
        let from = (pick.first.0 - message.first.0) as usize;
        let to = (pick.last.0 - message.first.0) as usize;
        &message.records[from..=to]
    }

    /// Whether batches with records of the disk were let go.
    #[must_use]
    pub fn thinned(&self) -> bool {
        self.rows.iter().any(|row| row.presence == Presence::LetGo)
    }

    /// Whether something that was vaulted can no longer be had: loss, contradiction, or a broken lineage.
    #[must_use]
    pub fn damaged(&self) -> bool {
        !self.conflicts.is_empty() || !self.faults.is_empty() || self.gaps.iter().any(|gap| gap.lost)
    }
}

/// A conflict before it has its epoch: (last believed seq, seq, rows).
type Found = (u64, u64, [Option<usize>; 2]);

/// Every chain value that somebody claims for a seq of one epoch.
#[derive(Default)]
struct ChainBook(HashMap<u64, (Chain, Option<usize>, u64)>);

impl ChainBook {
    fn note(&mut self, seq: u64, chain: Option<Chain>, row: Option<usize>, cut: u64, found: &mut Vec<Found>) {
        let Some(chain) = chain else { return };
        match self.0.get_mut(&seq) {
            None => {
                self.0.insert(seq, (chain, row, cut));
            }
            Some((known, other, other_cut)) => {
                *other_cut = cut.min(*other_cut);
                if *known != chain {
                    found.push((*other_cut, seq, [*other, row]));
                }
            }
        }
    }
}

/// Chooses, seq by seq, the message that reaches furthest, of those that can be read before all others; returns the choices
/// and the holes between them.
fn sweep(rows: &[Row], order: &[usize], limit: u64) -> (Vec<Pick>, Vec<(u64, u64)>) {
    let mut picks = Vec::new();
    let mut gaps = Vec::new();
    let begins = begins_here(rows, order);
    let mut waiting = 0;
    // The best of those that can be read, and of the others.
    let mut best: [Option<usize>; 2] = [None, None];
    let mut next = 1_u64;
    let last_of = |row: usize| rows[row].message.last.0;
    while next <= limit {
        while let Some(&index) = order.get(waiting).filter(|&&index| rows[index].message.first.0 <= next) {
            let best = &mut best[usize::from(rows[index].presence != Presence::Here)];
            if best.is_none_or(|best| last_of(index) > last_of(best)) {
                *best = Some(index);
            }
            waiting += 1;
        }
        let [here, gone] = best.map(|row| row.filter(|&row| last_of(row) >= next));
        if let Some(row) = here.or(gone) {
            // One that cannot be read gives way where one that can begins.
            let give_way = if here.is_some() { u64::MAX } else { begins[waiting].saturating_sub(1) };
            let last = last_of(row).min(give_way).min(limit);
            picks.push(Pick { row, first: Seq(next), last: Seq(last) });
            next = last + 1;
            continue;
        }
        match order.get(waiting) {
            Some(&index) if rows[index].message.first.0 <= limit => {
                let first = rows[index].message.first.0;
                gaps.push((next, first - 1));
                next = first;
            }
            _ => {
                if limit != u64::MAX {
                    gaps.push((next, limit));
                }
                break;
            }
        }
    }
    (picks, gaps)
}

/// For each place in `order`, and its end, the seq at which the next message that can be read begins.
fn begins_here(rows: &[Row], order: &[usize]) -> Vec<u64> {
    let mut begins = vec![u64::MAX; order.len() + 1];
    for (at, &index) in order.iter().enumerate().rev() {
        let here = rows[index].presence == Presence::Here;
        begins[at] = if here { rows[index].message.first.0 } else { begins[at + 1] };
    }
    begins
}

/// Last seq of the run that starts at 1.
fn contiguous(picks: &[Pick]) -> u64 {
    let mut through = 0;
    for pick in picks {
        if pick.first.0 != through + 1 {
            break;
        }
        through = pick.last.0;
    }
    through
}

#[cfg(test)]
mod tests;
