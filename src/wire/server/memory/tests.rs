use proptest::prelude::*;

use super::*;
use crate::flow::SystemClock;

const MIB: u64 = 1 << 20;
const RECORD: u64 = RECORD_BYTES_MAX as u64;

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// The smallest gateway: 32 MiB for all, 8 for an agent.
fn memory(ways: usize) -> Arc<Memory> {
    Arc::new(Memory::new(32 * MIB, 8 * MIB, ways))
}

/// A lease of one largest record, or waiting for it.
fn asked(account: &Account, way: usize) -> Lease {
    let mut lease = account.lease(way);
    lease.ask(RECORD, RECORD, at(0));
    lease
}

fn held(leases: &[Lease]) -> usize {
    leases.iter().filter(|lease| lease.bytes() > 0).count()
}

/// Whether it is told now.
fn is_told(lease: &Lease) -> bool {
    use futures_util::FutureExt as _;
    lease.told().now_or_never().is_some()
}

#[test]
fn a_single_disk_gets_a_whole_window_and_a_crowd_a_record_each() {
    let memory = memory(1);
    let account = memory.account();
    let mut one = account.lease(0);
    one.ask(100_000, 4 * MIB, at(0));
    assert_eq!(one.bytes(), 4 * MIB);
    drop(one);
    let crowd: Vec<Lease> = (0..256).map(|_| asked(&account, 0)).collect();
    assert_eq!(held(&crowd), 7, "as many records as fit the account");
    assert!(memory.is_tight());
}

#[test]
fn those_who_wait_are_served_in_their_order_and_hold_nothing_meanwhile() {
    let memory = memory(1);
    let account = memory.account();
    let mut leases: Vec<Lease> = (0..7).map(|_| asked(&account, 0)).collect();
    let (mut large, mut small) = (asked(&account, 0), account.lease(0));
    small.ask(20_000, 20_000, at(0));
    assert!(large.waits() && small.waits(), "the small one does not overtake");
    leases[0].ask(RECORD, RECORD, at(0));
    assert!(leases[0].waits(), "it goes behind, without what it had");
    large.look();
    small.look();
    assert_eq!((large.bytes(), small.waits()), (RECORD, false));
    leases.truncate(1);
    leases[0].look();
    assert_eq!(leases[0].bytes(), RECORD);
}

#[test]
fn an_agent_that_has_used_up_its_account_does_not_stand_before_others() {
    let memory = memory(1);
    let (greedy, other) = (memory.account(), memory.account());
    let taken: Vec<Lease> = (0..20).map(|_| asked(&greedy, 0)).collect();
    assert_eq!(held(&taken), 7);
    assert_eq!(asked(&other, 0).bytes(), RECORD);
}

#[test]
fn a_way_on_which_nothing_moves_leaves_room_for_the_other() {
    let memory = memory(2);
    let accounts: Vec<Account> = (0..10).map(|_| memory.account()).collect();
    // Of one agent, and of all.
    let stuck: Vec<Lease> = accounts.iter().flat_map(|account| (0..100).map(|_| asked(account, 0))).collect();
    let held_bytes: u64 = stuck.iter().map(Lease::bytes).sum();
    assert!(held_bytes <= 24 * MIB, "{held_bytes} of 32 MiB");
    for account in &accounts {
        for _ in 0..50 {
            assert_eq!(asked(account, 1).bytes(), RECORD, "never held up");
        }
    }
}

#[test]
fn with_many_ways_each_account_still_lets_a_record_pass_on_each() {
    let memory = memory(16);
    let account = memory.account();
    let all: Vec<Lease> = (0..16).map(|way| asked(&account, way)).collect();
    assert_eq!(held(&all), 16);
    let stuck: Vec<Lease> = (0..15).flat_map(|way| (0..50).map(move |_| way)).map(|way| asked(&account, way)).collect();
    drop(all);
    assert_eq!(asked(&account, 15).bytes(), RECORD);
    drop(stuck);
}

#[test]
fn a_window_grows_only_while_there_is_plenty() {
    let memory = memory(1);
    let accounts: Vec<Account> = (0..8).map(|_| memory.account()).collect();
    let mut leases: Vec<Lease> = accounts.iter().map(|account| account.lease(0)).collect();
    for lease in &mut leases {
        lease.grow(64 * MIB, at(0));
    }
    let held_bytes: u64 = leases.iter().map(Lease::bytes).sum();
    assert_eq!(leases[0].bytes(), 4 * MIB, "two thirds of what its account has to spare");
    assert!(held_bytes <= 24 * MIB, "a quarter is left for those who ask");
    // Who asks gets no more than it needs then.
    let mut late = Vec::new();
    while !memory.is_tight() {
        late.push(asked(&accounts[7], 0));
    }
    let mut last = accounts[6].lease(0);
    last.ask(RECORD, 4 * MIB, at(0));
    assert_eq!(last.bytes(), RECORD);
    let before_bytes = last.bytes();
    last.grow(4 * MIB, at(0));
    assert_eq!(last.bytes(), before_bytes);
}

#[test]
fn an_idle_lease_is_told_when_memory_is_short_and_one_that_moves_is_not() {
    let memory = memory(1);
    let account = memory.account();
    let leases: Vec<Lease> = (0..7).map(|_| asked(&account, 0)).collect();
    let _waiting = asked(&account, 0);
    for step in 1..=8 {
        leases[1].signs().received_bytes.fetch_add(CREDIT_BASE_BYTES, Ordering::Relaxed);
        leases[2].signs().grants.fetch_add(1, Ordering::Relaxed);
        leases[3].signs().at_sink.store(true, Ordering::Relaxed);
        memory.change(|state| state.press(at(step * 250)));
    }
    let told: Vec<bool> = leases.iter().map(is_told).collect();
    assert_eq!(told, [true, false, false, false, true, true, true]);
}

#[test]
fn begun_records_that_stand_give_way_only_as_far_as_others_wait_and_the_oldest_first() {
    let memory = memory(1);
    let account = memory.account();
    let leases: Vec<Lease> = (0..7).map(|_| asked(&account, 0)).collect();
    for (number, lease) in leases.iter().enumerate() {
        lease.signs().begun.store(true, Ordering::Relaxed);
        // The fifth was the last to move.
        lease.signs().received_bytes.store(PROGRESS_BYTES * u64::from(number == 4), Ordering::Relaxed);
    }
    memory.change(|state| state.press(at(1000)));
    memory.change(|state| state.press(at(2000)));
    assert!(!leases.iter().any(is_told), "nobody waits");
    let waiting = [asked(&account, 0), asked(&account, 0)];
    memory.change(|state| state.press(at(2400)));
    let told: Vec<bool> = leases.iter().map(is_told).collect();
    assert_eq!(told, [true, true, false, false, false, false, false]);
    assert!(leases[0].signs().is_blamed() && !leases[4].signs().is_blamed());
    drop(waiting);
}

#[test]
fn a_record_of_another_agent_does_not_give_way_to_one_that_has_used_up_its_own_account() {
    let memory = memory(1);
    let (slow, greedy) = (memory.account(), memory.account());
    let victim = asked(&slow, 0);
    victim.signs().begun.store(true, Ordering::Relaxed);
    let taken: Vec<Lease> = (0..9).map(|_| asked(&greedy, 0)).collect();
    taken.iter().for_each(|lease| lease.signs().at_sink.store(true, Ordering::Relaxed));
    for step in 1..20 {
        memory.change(|state| state.press(at(step * 250)));
    }
    assert!(!is_told(&victim));
}

#[tokio::test(start_paused = true)]
async fn who_waits_presses_by_itself_and_is_served_when_others_let_go() {
    let memory = memory(1);
    let account = memory.account();
    let mut leases: Vec<Lease> = (0..7).map(|_| asked(&account, 0)).collect();
    let mut waiting = asked(&account, 0);
    let clock = SystemClock::new();
    let served = async {
        waiting.served(&clock).await;
    };
    let let_go = async {
        tokio::time::sleep(at(100)).await;
        leases[3].shrink_to(0);
    };
    tokio::join!(served, let_go);
    waiting.look();
    assert_eq!(waiting.bytes(), RECORD);
    drop((waiting, leases));
    assert_eq!(memory.state.lock().pot.free_bytes, 32 * MIB);
    assert!(memory.state.lock().leases.is_empty() && !memory.is_tight());
}

#[test]
fn who_waits_no_longer_stands_in_nobodys_way() {
    let memory = memory(1);
    let account = memory.account();
    let mut leases: Vec<Lease> = (0..7).map(|_| asked(&account, 0)).collect();
    let (mut first, dropped, mut last) = (asked(&account, 0), asked(&account, 0), asked(&account, 0));
    first.withdraw();
    drop(dropped);
    drop(leases.pop());
    last.look();
    assert_eq!((first.waits(), first.bytes(), last.bytes()), (false, 0, RECORD));
    // Withdrawn in the moment in which it is served.
    let mut late = asked(&account, 0);
    drop(leases.pop());
    late.withdraw();
    assert_eq!((late.waits(), late.bytes()), (false, 0));
    drop((leases, first, last, late));
    assert_eq!(memory.state.lock().pot.free_bytes, 32 * MIB);
}

proptest! {
    /// Whatever streams do, what is leased is what is not free, nobody has more than its account, and who lets go of
    /// everything lets everybody pass.
    #[test]
    fn nothing_is_leased_twice_and_nothing_is_lost(
        ways in 1_usize..4,
        steps in prop::collection::vec((0_usize..12, 0_u8..5, 1..RECORD, any::<bool>()), 1..200),
    ) {
        let memory = memory(ways);
        let accounts: Vec<Account> = (0..3).map(|_| memory.account()).collect();
        let mut leases: Vec<Lease> = (0..12).map(|number| accounts[number % 3].lease(number % ways)).collect();
        for (step, (number, act, bytes, flag)) in steps.into_iter().enumerate() {
            let lease = &mut leases[number];
            match act {
                0 if !lease.waits() => lease.ask(bytes, if flag { 4 * MIB } else { bytes }, at(step as u64 * 100)),
                1 => lease.grow(bytes * 4, at(step as u64 * 100)),
                2 if !lease.waits() => lease.shrink_to(bytes),
                3 => lease.withdraw(),
                _ => lease.look(),
            }
            let state = memory.state.lock();
            let sum = |of: &dyn Fn(&Entry) -> bool| state.leases.values().filter(|e| of(e)).map(|e| e.bytes).sum::<u64>();
            prop_assert_eq!(state.pot.all_bytes - state.pot.free_bytes, sum(&|_| true));
            for account in &accounts {
                let pot = &state.accounts[&account.id];
                prop_assert_eq!(pot.all_bytes - pot.free_bytes, sum(&|entry| entry.account == account.id));
            }
            for (id, entry) in &state.leases {
                prop_assert!(entry.need_bytes == 0 || entry.bytes == 0, "who waits holds nothing");
                prop_assert_eq!(entry.need_bytes > 0, state.queue.contains(id));
            }
            // The first in line waits only for what is not there.
            let first = state.queue.front();
            prop_assert!(first.is_none_or(|id| state.share(*id).is_none()));
        }
        for _ in 0..12 {
            for lease in leases.iter_mut().filter(|lease| !lease.waits()) {
                lease.shrink_to(0);
            }
            leases.iter_mut().for_each(Lease::look);
        }
        prop_assert!(leases.iter().all(|lease| !lease.waits()), "everybody was served");
        drop(leases);
        prop_assert!(memory.state.lock().leases.is_empty());
    }
}
