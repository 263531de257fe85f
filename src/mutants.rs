//! The code broken on purpose, one promise at a time: what the tests must notice.
//!
//! A test harness that finds nothing proves something only if it would find what is there. Each [`Mutant`] is one line
//! in the product, `if mutants::on(Mutant::…)`; `tests/mutants` turns them on one by one in the library's own tests, and
//! counts those that a test catches. Elsewhere, without the feature `mutants`, which no daemon is ever built with, [`on`]
//! is a constant `false` and the lines are gone.
//!
//! Chosen process-wide by `TIDEGATE_MUTANT=name`, or by [`set`] in a simulation.

/// Declares the mutants with their names.
macro_rules! mutants {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// One way in which the code can be made wrong. The text says what it does and which promise that breaks.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u8)]
        pub enum Mutant {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Mutant {
            /// Every mutant.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// Its name for `TIDEGATE_MUTANT`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

mutants! {
    /// The journal acks without syncing. Promise 1: journaled means durable.
    AckBeforeSync = "ack-before-sync",
    /// A failed sync is tried again on the same file, and believed. Promise 1.
    SyncRetried = "sync-retried",
    /// Replay takes a torn last commit for whole. Promise 6: nothing is believed unchecked.
    TornTailBelieved = "torn-tail-believed",
    /// Replay ends a segment at damage inside it. Promise 2: what lies behind was acked.
    TruncatedAtDamage = "truncated-at-damage",
    /// A record's bytes are not checked when they come from the journal. Promise 6.
    JournalCrcUnchecked = "journal-crc-unchecked",
    /// A segment is released while records of it are not vaulted. Promise 2.
    ReleasedBeforeVaulted = "released-before-vaulted",
    /// Segments are released before the marks that justify it are durable. Promise 2: a crash forgets both.
    ReleasedBeforeMarks = "released-before-marks",
    /// A file system without room counts as a broken disk. Promise 9: an outage of the store ends the gateway.
    NoRoomIsFailure = "no-room-is-failure",
    /// The uploader counts a batch as stored without a PUT. Promise 1: vaulted means stored.
    VaultedBeforePut = "vaulted-before-put",
    /// "Already exists" counts as stored without reading back. Promise 1.
    ExistsTrusted = "exists-trusted",
    /// A batch that the store refuses is dropped and counted as done. Promise 2.
    RefusedDropped = "refused-dropped",
    /// The seal of the lane is not looked for before the ack. Promise 2: the keeper may delete what is acked.
    SealUnchecked = "seal-unchecked",
    /// A gateway takes the same lane after a restart. Promise 10: names are never used twice.
    LaneReused = "lane-reused",
    /// Records above a hole count as vaulted. Promise 1: with every earlier record of the disk.
    AckPastHole = "ack-past-hole",
    /// A gateway resumes an epoch that is not the newest. Promise 10: who was cut off goes on and is acked.
    StaleResume = "stale-resume",
    /// A fork is made at the gateway's own mark, below what another one vaulted. Promise 2.
    ForkAtOwnMark = "fork-at-own-mark",
    /// A gateway takes an epoch on though its records are not the agent's. Promise 3: two accounts of one record.
    ConflictIgnored = "conflict-ignored",
    /// A recovery takes records behind a fork. Promise 3: a mixture of two histories.
    ForksIgnored = "forks-ignored",
    /// Of two accounts of one record the first is taken. Promise 3.
    FirstWins = "first-wins",
    /// A restore does not compare the agent's digest. Promise 6.
    DigestUnchecked = "digest-unchecked",
    /// The seal of a message does not bind its disk. Promise 6: a message can be moved to another disk.
    ContextCut = "context-cut",
    /// The key of a disk adds nothing to that of its lane. Who opens the lane opens a disk that was shredded.
    DiskKeyUnused = "disk-key-unused",
    /// The agent forgets what it must send as soon as it is journaled. Promise 2: a lost gateway loses it.
    SettledAtJournaled = "settled-at-journaled",
    /// The activity map is cleared before the floor is persisted. Promise 2: a crash forgets what to send.
    MapClearedFirst = "map-cleared-first",
    /// The activity map is set after the write. Promise 2: a crash in between forgets the write.
    MapSetLate = "map-set-late",
    /// A new epoch is not persisted before its first record. Promise 3: a crash numbers two histories alike.
    EpochNotPersisted = "epoch-not-persisted",
    /// An agent stops clean with something not vaulted. Promise 2: the next start sends nothing.
    CleanWhileDirty = "clean-while-dirty",
    /// Points are offered inside a sync span. Promise 3: half-copied states.
    PointsInsideSpan = "points-inside-span",
    /// A copy does not hold its range. Promise 3: an older content overtakes a write.
    CopyUnlocked = "copy-unlocked",
    /// A write that overflows the queue is not marked. Promise 2.
    OverflowForgotten = "overflow-forgotten",
    /// An agent with a new epoch compares only what its own state knows. Promise 3: a copy of a machine keeps what the
    /// original wrote in between.
    CloneRegionsForgotten = "clone-regions-forgotten",
    /// Labels follow the clock back. Promise 3: a time names two states.
    LabelGoesBack = "label-goes-back",
    /// Memory for records on their way has no bound. Promise 8: memory is bounded whatever agents do.
    CreditUnbacked = "credit-unbacked",
    /// No memory is kept for each way to the disk. Promise 9: what stalls one holds up the others.
    WaysNotKept = "ways-not-kept",
    /// A record that comes too slowly keeps its memory. Promise 9: agents that are slow on purpose stop all others.
    SlowNeverGivesWay = "slow-never-gives-way",
    /// Whatever signature a barrier has counts as its agent's. Promise 6: a gateway can forge a history.
    SignatureUnchecked = "signature-unchecked",
    /// Every authority stands behind every agent's certificate. Promise 6: a thief signs with a key of their own.
    AuthorityUnchecked = "authority-unchecked",
    /// What agents were told to be vaulted is not looked for. Promise 6: the end of a history can be cut off unseen.
    HeadsUnread = "heads-unread",
    /// What an older catalog key made counts whenever it appears. Promise 6: a key that leaked forges for ever.
    OldKeyForever = "old-key-forever",
}

#[cfg(not(any(test, feature = "mutants")))]
mod switch {
    use super::Mutant;

    /// Whether the code is to be wrong in this way: never.
    #[must_use]
    pub const fn on(_mutant: Mutant) -> bool {
        false
    }
}

#[cfg(any(test, feature = "mutants"))]
mod switch {
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::Mutant;

    const UNSET: u8 = u8::MAX;
    const NONE: u8 = u8::MAX - 1;
    static CHOSEN: AtomicU8 = AtomicU8::new(UNSET);

    /// Whether the code is to be wrong in this way.
    #[must_use]
    pub fn on(mutant: Mutant) -> bool {
        let mut chosen = CHOSEN.load(Ordering::Relaxed);
        if chosen == UNSET {
            let name = std::env::var("TIDEGATE_MUTANT").unwrap_or_default();
            chosen = Mutant::ALL.iter().find(|mutant| mutant.name() == name).map_or(NONE, |mutant| *mutant as u8);
            CHOSEN.store(chosen, Ordering::Relaxed);
        }
        chosen == mutant as u8
    }

    /// Chooses a mutant, or none, for the whole process.
    pub fn set(mutant: Option<Mutant>) {
        CHOSEN.store(mutant.map_or(NONE, |mutant| mutant as u8), Ordering::Relaxed);
    }
}

pub use switch::on;
#[cfg(any(test, feature = "mutants"))]
pub use switch::set;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutant_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> = Mutant::ALL.iter().map(|mutant| mutant.name()).collect();
        assert_eq!(names.len(), Mutant::ALL.len());
        assert!(names.len() >= 18);
    }
}
