//! Which batches hold so little that is needed that it is worth moving. Pure: messages with what they are for in, batches out.
//!
//! Only what can be emptied counts: old batches of lanes that have ended or are sealed, without a mark, in which everything needed may be
//! moved. A batch's share is by its messages alone, so that one that is full of needed messages is never sparse, however long its index is.

use std::collections::BTreeMap;

use super::report::Count;
use crate::types::Id128;
use crate::vault::index::MessageMeta;
use crate::vault::reader::CatalogBatch;

/// Most needed messages that are remembered by their place: some tens of MiB. With more, batches that look dense are forgotten, and then
/// those that come last are left to a later run.
const MESSAGES_MAX: usize = 1 << 20;
/// What moving must save, of all that is stored, to be begun: each move makes a lane, with a route for each of its disks. In few large moves more
/// stands twice at once, and what is dead waits longer for the next one.
const SAVING_SHARE: u64 = 100;
/// What may wait for its deletion at once, of all that is stored, for a move to empty more: what is moved stands twice until then. Enough for a day's
/// writes of a twentieth; where more is written, the sparsest batches go first, and others have time to get sparser.
const WAITING_SHARE: u64 = 10;

/// What a message is for, as far as its batch is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Use {
    /// Nothing: no kept point needs it, or another place has it.
    Dead,
    /// It is needed, until a copy that stands already is old enough.
    Copied,
    /// It is needed, and may be moved.
    Needed,
    /// It is needed where it is.
    Stuck,
}

/// What a batch holds.
#[derive(Debug, Default)]
struct Holding {
    size_bytes: u64,
    appeared_micros: i64,
    all_bytes: u64,
    needed_bytes: u64,
    needed_at: Vec<u32>,
    stuck: bool,
}

impl Holding {
    fn is_sparse(&self, percent: u64) -> bool {
        !self.stuck && self.needed_bytes * 100 < percent * self.all_bytes
    }
}

/// What the batches hold that may be emptied.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    batches: BTreeMap<(Id128, u64), Holding>,
    /// Places that are remembered.
    messages: usize,
    /// Below so many hundredths a batch is sparse.
    percent: u64,
}

/// A batch that is worth emptying.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Sparse {
    pub(super) lane: Id128,
    pub(super) n: u64,
    pub(super) size_bytes: u64,
    /// When it appeared, by the store's clock.
    pub(super) appeared_micros: i64,
    /// Bytes of the messages that are to be moved, and where they start.
    pub(super) needed_bytes: u64,
    pub(super) needed_at: Vec<u32>,
    /// Bytes of the others.
    pub(super) saves_bytes: u64,
}

impl Holdings {
    pub(super) fn new(percent: u64) -> Self {
        Self { percent, ..Self::default() }
    }

    /// Notes a message of a batch that may be emptied.
    pub(super) fn note(&mut self, batch: &CatalogBatch, message: &MessageMeta, what_for: Use) {
        if self.messages > MESSAGES_MAX {
            self.forget_dense();
        }
        let full = self.messages > MESSAGES_MAX;
        let holding = self.batches.entry((batch.index.lane, batch.index.n)).or_default();
        (holding.size_bytes, holding.appeared_micros) = (batch.size_bytes, batch.modified_micros);
        let stored_bytes = u64::from(message.stored_bytes);
        holding.all_bytes += stored_bytes;
        match what_for {
            Use::Dead | Use::Copied => {}
            Use::Needed if !full && !holding.stuck => {
                holding.needed_bytes += stored_bytes;
                // An index tells no offset that is larger.
                holding.needed_at.push(message.offset_bytes as u32);
                self.messages += 1;
            }
            Use::Needed | Use::Stuck => {
                self.messages -= holding.needed_at.len();
                holding.needed_at = Vec::new();
                holding.stuck = true;
            }
        }
    }

    /// Those that look dense so far stay as they are in this run.
    fn forget_dense(&mut self) {
        let percent = self.percent;
        for holding in self.batches.values_mut().filter(|holding| !holding.is_sparse(percent)) {
            self.messages -= holding.needed_at.len();
            holding.needed_at = Vec::new();
            holding.stuck = true;
        }
    }

    /// Bytes of the batches of which nothing is needed, or no longer than until copies of it are old enough.
    pub(super) fn emptied_bytes(&self) -> u64 {
        let emptied = self.batches.values().filter(|one| !one.stuck && one.needed_at.is_empty());
        emptied.map(|one| one.size_bytes).sum()
    }

    /// What is worth emptying, the sparsest first.
    pub(super) fn sparse(&self) -> Vec<Sparse> {
        let worth = self.batches.iter().filter(|(_, one)| one.is_sparse(self.percent) && !one.needed_at.is_empty());
        let mut sparse: Vec<Sparse> = worth
            .map(|(&(lane, n), one)| Sparse {
                lane,
                n,
                size_bytes: one.size_bytes,
                appeared_micros: one.appeared_micros,
                needed_bytes: one.needed_bytes,
                needed_at: one.needed_at.clone(),
                saves_bytes: one.all_bytes - one.needed_bytes,
            })
            .collect();
        let share = |one: &Sparse| one.needed_bytes as f64 / (one.needed_bytes + one.saves_bytes) as f64;
        sparse.sort_by(|a, b| share(a).total_cmp(&share(b)).then((a.lane, a.n).cmp(&(b.lane, b.n))));
        sparse
    }
}

/// Batches that are worth emptying together: how many, their bytes, and how many of them that frees.
pub(super) fn saving(sparse: &[Sparse]) -> (Count, u64) {
    let bytes = sparse.iter().map(|one| one.size_bytes).sum();
    (Count { batches: sparse.len() as u64, bytes }, sparse.iter().map(|one| one.saves_bytes).sum())
}

/// Whether that is worth a lane.
pub(super) fn is_worth_it(saves_bytes: u64, stored_bytes: u64) -> bool {
    saves_bytes > 0 && saves_bytes >= stored_bytes / SAVING_SHARE
}

/// As many of these, in their order, as may wait beside `waits_bytes`. None while more than half of what may waits: so a lane is made for no
/// handful. Of a small vault so much may wait that a batch of `batch_bytes` is filled.
pub(super) fn within(sparse: Vec<Sparse>, waits_bytes: u64, stored_bytes: u64, batch_bytes: u64) -> Vec<Sparse> {
    let most_bytes = batch_bytes.max(stored_bytes / WAITING_SHARE);
    let mut room_bytes = most_bytes.saturating_sub(waits_bytes);
    if room_bytes < most_bytes / 2 {
        return Vec::new();
    }
    let fits = |one: &Sparse| {
        let fits = room_bytes > 0;
        room_bytes = room_bytes.saturating_sub(one.size_bytes);
        fits
    };
    sparse.into_iter().take_while(fits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vault::index::BatchIndex;
    use crate::vault::testing::message;

    fn batch(n: u64) -> CatalogBatch {
        CatalogBatch {
            object: crate::vault::names::batch(Id128([1; 16]), n),
            size_bytes: 5000,
            present: true,
            modified_micros: 7,
            put_by_micros: 7,
            let_go: false,
            index: BatchIndex { lane: Id128([1; 16]), n, confirmed_through: 0, disks: Vec::new() },
        }
    }

    fn note(holdings: &mut Holdings, n: u64, uses: &[(u32, Use)]) {
        for (at, &(stored_bytes, what_for)) in uses.iter().enumerate() {
            let mut message = message(1, 2);
            (message.offset_bytes, message.stored_bytes) = (64 + at as u64, stored_bytes);
            holdings.note(&batch(n), &message, what_for);
        }
    }

    #[test]
    fn a_batch_is_worth_emptying_if_little_of_it_is_needed_and_all_of_that_may_go() {
        let mut holdings = Holdings::new(75);
        note(&mut holdings, 1, &[(100, Use::Dead), (290, Use::Needed)]);
        note(&mut holdings, 2, &[(100, Use::Dead), (310, Use::Needed)]);
        note(&mut holdings, 3, &[(900, Use::Dead), (10, Use::Needed), (1, Use::Stuck), (5, Use::Needed)]);
        note(&mut holdings, 4, &[(10, Use::Needed), (100, Use::Dead), (20, Use::Needed)]);
        note(&mut holdings, 5, &[(100, Use::Dead), (100, Use::Copied)]);
        note(&mut holdings, 6, &[(100, Use::Copied), (50, Use::Needed)]);
        let sparse = holdings.sparse();
        let told: Vec<_> = sparse.iter().map(|one| (one.n, one.needed_at.as_slice(), one.needed_bytes)).collect();
        assert_eq!(told, [(4, [64, 66].as_slice(), 30), (6, [65].as_slice(), 50), (1, [65].as_slice(), 290)]);
        assert_eq!(saving(&sparse), (Count { batches: 3, bytes: 15_000 }, 100 + 100 + 100));
        assert!(is_worth_it(300, 30_000) && !is_worth_it(299, 30_000) && !is_worth_it(0, 10));
    }

    #[test]
    fn the_sparsest_are_emptied_as_far_as_what_waits_stays_a_tenth_of_the_vault() {
        let mut holdings = Holdings::new(75);
        (1..=4).for_each(|n| note(&mut holdings, n, &[(100, Use::Dead), (n as u32, Use::Needed)]));
        let chosen = |waits_bytes, stored_bytes| {
            within(holdings.sparse(), waits_bytes, stored_bytes, 20).iter().map(|one| one.n).collect::<Vec<_>>()
        };
        assert_eq!(chosen(0, 1_000_000), [1, 2, 3, 4]);
        assert_eq!(chosen(0, 150_000), [1, 2, 3], "5000 bytes each");
        assert_eq!(chosen(6000, 150_000), [1, 2]);
        assert!(chosen(8000, 150_000).is_empty(), "too little room");
        assert_eq!(chosen(0, 10), [1], "a batch can be filled");
    }
}
