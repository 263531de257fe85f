//! Which messages a run opens, and which share of all was opened by it and those before it. Pure.
//!
//! Every message has a place on a ring: a keyed digest of disk, epoch and records, the same in every run, wherever the keeper moves
//! it. A run takes what stands from where the last one stopped, until its quota is full or the ring ends; the next one goes on there.
//! So a *round* of runs opens everything that was there when it began, each message once, with certainty; what came since is
//! opened in this round or the next. Which messages come together nobody can tell who has not the key.
//!
//! What a run found damaged is opened again by each one after it, whatever its quota, until it is whole: a sample that happens to
//! leave it out must not call the vault whole.
//!
//! Without a memory each run draws a ring of its own and begins anywhere; then nothing is certain, and [`runs_for`] says how many
//! it takes.

use std::collections::BTreeSet;

use crate::types::DiskId;
use crate::vault::index::MessageMeta;

/// Bytes of the key of a ring.
pub const SEED_BYTES: usize = 32;
/// The chance that is spoken of where nothing is certain.
pub const CHANCE: f64 = 0.99;

/// How much a run opens.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Quota {
    /// Everything.
    All,
    /// This share of the messages, 0 to 1.
    Share(f64),
    /// So many messages.
    Messages(u64),
    /// So many bytes as they are stored; one message at least.
    Bytes(u64),
}

/// Where a run begins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Draw {
    /// The key of the ring.
    pub seed: [u8; SEED_BYTES],
    /// The first place that was not opened yet in this round.
    pub from: u64,
    /// Places of what is to be opened whatever the quota.
    pub again: BTreeSet<u64>,
}

impl Draw {
    /// One without a past.
    #[must_use]
    pub fn new(seed: [u8; SEED_BYTES]) -> Self {
        Self { seed, from: 0, again: BTreeSet::new() }
    }

    /// The place of a message: of what it says, not of where it stands.
    #[must_use]
    pub fn place(&self, disk: &DiskId, message: &MessageMeta) -> u64 {
        let mut hasher = blake3::Hasher::new_keyed(&self.seed);
        hasher.update(&[disk.as_str().len() as u8]).update(disk.as_str().as_bytes());
        hasher.update(&message.epoch.0.to_le_bytes()).update(&message.first.0.to_le_bytes());
        hasher.update(&message.last.0.to_le_bytes());
        let mut place = [0; 8];
        place.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        u64::from_le_bytes(place)
    }
}

/// The stretch of the ring that a run opens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stretch {
    /// Its first place.
    pub from: u64,
    /// The first place behind it; none if it goes to the ring's end, and the round with it.
    pub end: Option<u64>,
    /// Messages before its end: opened in this round, up to this run.
    pub seen_messages: u64,
    /// Messages in all.
    pub messages: u64,
    /// Messages in it.
    pub taken_messages: u64,
}

impl Stretch {
    /// Whether a place lies in it.
    #[must_use]
    pub fn has(&self, place: u64) -> bool {
        place >= self.from && self.end.is_none_or(|end| place < end)
    }

    /// How many more runs like this one the round takes.
    #[must_use]
    pub fn runs_left(&self) -> u64 {
        match self.end {
            None => 0,
            Some(_) => (self.messages - self.seen_messages).div_ceil(self.taken_messages.max(1)).max(1),
        }
    }
}

/// The stretch that a run opens of messages with these places and stored bytes.
#[must_use]
pub fn stretch(mut messages: Vec<(u64, u32)>, quota: Quota, from: u64) -> Stretch {
    let all = messages.len() as u64;
    if quota == Quota::All {
        return Stretch { from: 0, end: None, seen_messages: all, messages: all, taken_messages: all };
    }
    messages.sort_unstable();
    let first = messages.partition_point(|(place, _)| *place < from);
    let (mut at, mut bytes) = (first, 0);
    let full = |taken: u64, bytes: u64| match quota {
        Quota::All => false,
        Quota::Share(share) => taken >= ((share * all as f64).ceil() as u64).max(1),
        Quota::Messages(count) => taken >= count,
        Quota::Bytes(budget) => bytes > budget,
    };
    while let Some((place, stored_bytes)) = messages.get(at) {
        bytes += u64::from(*stored_bytes);
        let taken = (at - first) as u64;
        // Copies of one message have one place, and come together.
        let is_copy = at > first && messages[at - 1].0 == *place;
        if taken > 0 && !is_copy && full(taken, bytes) {
            break;
        }
        at += 1;
    }
    let end = messages.get(at).map(|(place, _)| *place);
    Stretch { from, end, seen_messages: at as u64, messages: all, taken_messages: (at - first) as u64 }
}

/// Runs after which each message was opened once with a chance of [`CHANCE`], where each run draws this share anew.
#[must_use]
pub fn runs_for(share: f64) -> u64 {
    if share >= 1.0 {
        return 1;
    }
    ((1.0 - CHANCE).ln() / (1.0 - share).ln()).ceil() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Places and sizes without order.
    fn messages(count: u64) -> Vec<(u64, u32)> {
        (1..=count).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15), 1000 + (n % 7) as u32)).collect()
    }

    fn rounds(quota: Quota) -> Vec<Stretch> {
        let (mut from, mut runs) = (0, Vec::new());
        loop {
            let run = stretch(messages(100), quota, from);
            runs.push(run);
            match run.end {
                Some(end) => from = end,
                None => return runs,
            }
        }
    }

    #[test]
    fn a_round_opens_each_message_once_in_as_many_runs_as_were_said() {
        for (quota, runs_at_most) in
            [(Quota::Share(0.05), 20), (Quota::Messages(30), 4), (Quota::Bytes(10_100), 12), (Quota::All, 1)]
        {
            let runs = rounds(quota);
            assert!(runs.len() <= runs_at_most, "{quota:?}: {runs:?}");
            assert_eq!(runs.len() as u64, 1 + runs[0].runs_left(), "{quota:?}: {runs:?}");
            for (place, _) in messages(100) {
                assert_eq!(runs.iter().filter(|run| run.has(place)).count(), 1, "{quota:?}");
            }
        }
    }

    #[test]
    fn a_budget_is_kept_but_for_one_message() {
        let run = stretch(messages(100), Quota::Bytes(5000), 0);
        assert_eq!(run.taken_messages, 4);
        assert_eq!(stretch(messages(100), Quota::Bytes(1), 0).taken_messages, 1, "or nothing would ever be opened");
        let run = stretch(Vec::new(), Quota::Bytes(1), 7);
        assert_eq!((run.end, run.runs_left()), (None, 0));
    }

    #[test]
    fn copies_of_a_message_are_opened_together() {
        let twice: Vec<_> = messages(10).into_iter().flat_map(|one| [one, one]).collect();
        let mut from = 0;
        while let Some(end) = stretch(twice.clone(), Quota::Messages(1), from).end {
            let run = stretch(twice.clone(), Quota::Messages(1), from);
            assert_eq!(run.taken_messages, 2, "{run:?}");
            from = end;
        }
    }

    #[test]
    fn without_a_memory_it_takes_longer() {
        assert_eq!((runs_for(1.0), runs_for(0.05), runs_for(0.5)), (1, 90, 7));
    }
}
