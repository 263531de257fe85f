//! The checker finds what is wrong with a protocol that breaks one of its rules: so it would find it in ours.

use model::promises::{ACKED_IS_RECOVERED, BASE_COUNTS, HEALS, JOURNALED_SURVIVES, ONE_ACCOUNT, POINTS_EXISTED};
use model::{Break, Left, Protocol};
use stateright::{Checker, HasDiscoveries, Model};

/// A counterexample to `promise` exists, and is printed.
fn refuted(broken: Break, left: Left, promise: &'static str) {
    let model = Protocol::new(left, broken, promise == HEALS);
    let stop = HasDiscoveries::AnyOf([promise].into());
    let checker = model.checker().threads(2).finish_when(stop).spawn_bfs().join();
    let Some(path) = checker.discovery(promise) else {
        panic!("{broken:?} is not refuted: {promise}, in {} states", checker.unique_state_count());
    };
    let steps: Vec<_> = path.into_actions();
    println!("{broken:?}: not {promise}, after {} states: {steps:?}", checker.unique_state_count());
}

#[test]
fn an_ack_before_the_sync() {
    let left = Left { writes: 1, gateway_crashes: 1, ..Left::default() };
    refuted(Break::AckBeforeSync, left, JOURNALED_SURVIVES);
}

#[test]
fn an_ack_before_the_put() {
    refuted(Break::AckBeforePut, Left { writes: 1, ..Left::default() }, ACKED_IS_RECOVERED);
}

#[test]
fn an_ack_past_a_hole() {
    refuted(Break::AckPastHole, Left { writes: 2, ..Left::default() }, ACKED_IS_RECOVERED);
}

#[test]
fn a_seal_that_nobody_looks_for() {
    refuted(Break::SealUnchecked, Left { writes: 1, seals: 1, ..Left::default() }, ACKED_IS_RECOVERED);
}

#[test]
fn a_keeper_without_grace() {
    refuted(Break::NoGrace, Left { writes: 2, seals: 1, ..Left::default() }, ACKED_IS_RECOVERED);
}

#[test]
fn a_late_upload_counts_for_a_while() {
    let left = Left { writes: 1, agent_crashes: 1, seals: 1, ..Left::default() };
    refuted(Break::LateCounts, left, ACKED_IS_RECOVERED);
}

#[test]
fn a_keeper_that_folds_what_can_still_be_forked_away() {
    let left = Left { writes: 1, agent_crashes: 1, folds: 1, ..Left::default() };
    refuted(Break::FoldAtHead, left, BASE_COUNTS);
}

#[test]
fn the_first_of_two_accounts_wins() {
    refuted(Break::FirstWins, Left { writes: 3, live_clones: 1, ..Left::default() }, POINTS_EXISTED);
}

#[test]
fn records_behind_a_fork_count() {
    let left = Left { writes: 2, clones: 1, ..Left::default() };
    refuted(Break::ForksIgnored, left, POINTS_EXISTED);
}

#[test]
fn a_stale_epoch_is_resumed() {
    refuted(Break::StaleResume, Left { writes: 1, clones: 1, ..Left::default() }, HEALS);
}

#[test]
fn a_resume_does_not_read_the_head() {
    let left = Left { writes: 2, stops: 1, snapshots: 1, rollbacks: 1, ..Left::default() };
    refuted(Break::HeadNotRead, left, ONE_ACCOUNT);
}

#[test]
fn a_fork_does_not_read_the_head() {
    let left = Left { writes: 1, agent_crashes: 1, ..Left::default() };
    refuted(Break::ForkAtOwnMark, left, ACKED_IS_RECOVERED);
}

#[test]
fn a_rollback_sends_nothing_again() {
    let left = Left { writes: 1, snapshots: 1, rollbacks: 1, ..Left::default() };
    refuted(Break::RollbackUnseen, left, HEALS);
}

#[test]
fn a_lost_answer_is_not_told_again() {
    let left = Left { writes: 1, snapshots: 1, rollbacks: 1, cuts: 1, ..Left::default() };
    refuted(Break::ToldOnce, left, HEALS);
}

#[test]
fn an_agent_forgets_at_journaled() {
    let left = Left { writes: 1, lost_disks: 1, ..Left::default() };
    refuted(Break::SettledAtJournaled, left, HEALS);
}
