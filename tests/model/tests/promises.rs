//! The protocol keeps its promises in every state within the bounds.

use model::{Break, Left, Protocol};
use stateright::{Checker, Model};

/// Looks at every state that these faults and writes can lead to.
fn holds(name: &str, left: Left) {
    // Two machines that run on one memory image take the stream from each other until one of them writes: no healing.
    let heals = left.live_clones == 0;
    let checker = Protocol::new(left, Break::Nothing, heals).checker().threads(2).spawn_bfs().join();
    println!(
        "{name}: {} states, {} steps, depth {}",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth()
    );
    checker.assert_properties();
    assert!(checker.unique_state_count() > 1000, "the faults did not happen");
}

#[test]
fn agents_that_crash_lose_nothing() {
    holds("agent crash", Left { writes: 2, agent_crashes: 1, ..Left::default() });
}

#[test]
fn agents_that_stop_in_order_go_on() {
    holds("agent stop", Left { writes: 2, stops: 1, ..Left::default() });
}

#[test]
fn gateways_that_crash_lose_nothing() {
    holds("gateway crash", Left { writes: 2, gateway_crashes: 1, ..Left::default() });
}

#[test]
fn gateways_whose_disk_is_destroyed_lose_nothing_vaulted() {
    holds("gateway disk destroyed", Left { writes: 2, lost_disks: 1, ..Left::default() });
}

#[test]
fn connections_and_answers_that_are_lost_change_nothing() {
    holds("connection cut", Left { writes: 2, cuts: 1, ..Left::default() });
}

#[test]
fn machines_set_back_to_a_snapshot_are_compared() {
    holds("rollback", Left { writes: 2, snapshots: 1, rollbacks: 1, ..Left::default() });
}

#[test]
fn machines_set_back_are_told_the_same_when_an_answer_is_lost() {
    holds("rollback and lost answer", Left { writes: 1, snapshots: 1, rollbacks: 1, cuts: 1, ..Left::default() });
}

#[test]
fn clones_of_a_running_machine_compare_what_it_wrote_since() {
    holds("clone of a running machine", Left { writes: 2, snapshots: 1, clones: 1, ..Left::default() });
}

#[test]
fn clones_fence_or_are_fenced() {
    holds("clone", Left { writes: 2, clones: 1, ..Left::default() });
}

#[test]
fn live_clones_are_never_mixed() {
    holds("live clone", Left { writes: 2, live_clones: 1, ..Left::default() });
}

#[test]
fn the_keeper_deletes_nothing_that_is_needed() {
    holds("keeper", Left { writes: 1, agent_crashes: 1, seals: 1, folds: 1, ..Left::default() });
}
