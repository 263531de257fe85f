//! What goes wrong, and when. A seed chooses which kinds of trouble it has at all, so that rare ones meet each other
//! without the noise of all the others; then the hours of each.

use std::time::Duration;

use tidegate::journal::disk::sim::{Delays, Faults};

use crate::agent::Pace;
use crate::dice::Dice;
use crate::{net, store};

/// One thing that happens. Machines are named by their place in the world's lists.
#[derive(Debug, Clone)]
pub enum Act {
    /// A gateway is killed, or its power cut, for some time.
    KillGateway { gateway: usize, power_cut: bool, down: u64 },
    /// A gateway is asked to drain, and comes back.
    DrainGateway { gateway: usize },
    /// A gateway that is down comes back.
    BootGateway { gateway: usize },
    /// A gateway is stopped where it stands and goes on much later.
    Zombie { gateway: usize, asleep: u64 },
    /// It goes on.
    Wake { gateway: usize },
    /// An agent is killed, or its machine's power cut.
    KillAgent { agent: usize, power_cut: bool, down: u64 },
    /// An agent is stopped in order.
    StopAgent { agent: usize },
    /// An agent that is down comes back.
    BootAgent { agent: usize },
    /// Nothing passes between an agent and a gateway, in one direction or both.
    Cut { agent: usize, gateway: usize, ways: u8, last: u64 },
    /// It passes again.
    Mend { agent: usize, gateway: usize },
    /// A gateway cannot reach the store.
    CutStore { gateway: usize, last: u64 },
    /// It can again.
    MendStore { gateway: usize },
    /// The network's weather changes.
    NetWeather(net::Weather),
    /// The store's weather changes.
    StoreWeather(store::Weather),
    /// A journal's disk fails, is slow, or lies.
    JournalDisk { gateway: usize, faults: Faults, delays: Delays, last: u64 },
    /// It is well again.
    JournalWell { gateway: usize },
    /// Something else fills the file system of a journal.
    JournalFull { gateway: usize, last: u64 },
    /// It goes away.
    JournalRoom { gateway: usize },
    /// A gateway's machine dies, and its journal has rotten bytes when it comes back.
    Rot { gateway: usize },
    /// An agent's address is translated to another one.
    Rebind { agent: usize },
    /// A machine is copied, with state and disks, and both go on.
    Clone { agent: usize },
    /// State and disks of a machine are kept.
    Snapshot { agent: usize },
    /// They come back, and the operator does what the manual says.
    Rollback { agent: usize },
    /// A wall clock jumps by so many microseconds.
    ClockOfAgent { agent: usize, by: i64 },
    /// As before.
    ClockOfGateway { gateway: usize, by: i64 },
    /// Guests change their pace.
    Pace { agent: usize, pace: Pace },
    /// An operator asks for a recovery point and waits for it.
    Point { agent: usize },
    /// Writes and flushes of the guests' disks fail now and then.
    GuestDisk { agent: usize, fails: u32 },
    /// Somebody seals a lane, as a keeper does before it deletes.
    Seal,
}

const SECOND: u64 = 1_000_000;

/// Copies of machines, and machines that were set back, start with `--resync` once in so many times; without it they must
/// come right by themselves.
pub const RESYNC_ONE_IN: u64 = 4;

/// Kinds of trouble.
const KINDS: u64 = 16;

/// The troubles of a run of `gateways` and `agents` between `from` and `until`.
#[must_use]
pub fn plan(dice: &mut Dice, gateways: usize, agents: usize, from: u64, until: u64) -> Vec<(u64, Act)> {
    let mut plan = Vec::new();
    // Half of the kinds on the average; once in a while hardly any, to see that calm runs are calm.
    let density = *dice.pick(&[150, 400, 500, 500, 700]);
    for kind in 0..KINDS {
        if !dice.permille(density) {
            continue;
        }
        for _ in 0..dice.between(1, 4) {
            let at = dice.between(from, until);
            one(dice, kind, gateways, agents, at, until, &mut plan);
        }
    }
    for _ in 0..dice.between(2, 6) {
        let agent = dice.below(agents as u64) as usize;
        plan.push((dice.between(from, until), Act::Point { agent }));
        let pace = *dice.pick(&[Pace::Calm, Pace::Calm, Pace::Still, Pace::Busy]);
        plan.push((dice.between(from, until), Act::Pace { agent, pace }));
    }
    plan
}

fn one(dice: &mut Dice, kind: u64, gateways: usize, agents: usize, at: u64, until: u64, plan: &mut Vec<(u64, Act)>) {
    let (gateway, agent) = (dice.below(gateways as u64) as usize, dice.below(agents as u64) as usize);
    // Mostly short, sometimes longer than every patience.
    let last = *dice.pick(&[1, 3, 10, 30, 90]) * SECOND + dice.below(SECOND);
    let power_cut = dice.one_in(2);
    match kind {
        0 | 1 => plan.push((at, Act::KillGateway { gateway, power_cut, down: last })),
        2 => plan.push((at, Act::DrainGateway { gateway })),
        3 => plan.push((at, Act::Zombie { gateway, asleep: last + dice.below(120) * SECOND })),
        4 => plan.push((at, Act::KillAgent { agent, power_cut, down: last.min(20 * SECOND) })),
        5 => plan.push((at, Act::StopAgent { agent })),
        6 => plan.push((at, Act::Cut { agent, gateway, ways: dice.between(1, 3) as u8, last })),
        7 => {
            plan.push((at, Act::CutStore { gateway, last }));
            crash_within(dice, gateway, at, last, plan);
        }
        8 => {
            plan.push((at, Act::NetWeather(bad_net(dice))));
            plan.push((at + last, Act::NetWeather(net::Weather::default())));
        }
        9 | 10 => {
            plan.push((at, Act::StoreWeather(bad_store(dice))));
            plan.push((at + last, Act::StoreWeather(store::Weather::default())));
            crash_within(dice, gateway, at, last, plan);
            if dice.one_in(3) {
                plan.push((at + dice.below(last), Act::StopAgent { agent }));
            }
        }
        11 => {
            plan.extend(bad_journal(dice, gateway, agent, last).into_iter().map(|act| (at, act)));
            crash_within(dice, gateway, at, last, plan);
        }
        12 => plan.push((at, Act::Rebind { agent })),
        13 => {
            if dice.one_in(2) {
                plan.push((at, Act::Clone { agent }));
            } else {
                plan.push((at, Act::Snapshot { agent }));
                plan.push((dice.between(at, until), Act::Rollback { agent }));
            }
        }
        14 => {
            let by = (dice.below(7_200_000_000) as i64) - 3_600_000_000;
            plan.push((at, Act::ClockOfAgent { agent, by }));
            plan.push((dice.between(at, until), Act::ClockOfGateway { gateway, by: -by }));
        }
        _ => plan.push((at, rare(dice, gateway, agent))),
    }
}

/// Trouble seldom comes alone, and a crash in the middle of another one asks the most of everybody.
fn crash_within(dice: &mut Dice, gateway: usize, at: u64, last: u64, plan: &mut Vec<(u64, Act)>) {
    if dice.one_in(2) {
        let (power_cut, down) = (dice.one_in(2), dice.between(1, 20) * SECOND);
        plan.push((at + dice.below(last), Act::KillGateway { gateway, power_cut, down }));
    }
}

fn rare(dice: &mut Dice, gateway: usize, agent: usize) -> Act {
    match dice.below(3) {
        0 => Act::Rot { gateway },
        1 => Act::GuestDisk { agent, fails: *dice.pick(&[5, 50]) },
        _ => Act::Seal,
    }
}

fn bad_net(dice: &mut Dice) -> net::Weather {
    net::Weather {
        latency: *dice.pick(&[1_000, 20_000, 80_000]),
        jitter: *dice.pick(&[2_000, 20_000, 200_000]),
        loss: *dice.pick(&[0, 10, 100, 300]),
        doubled: *dice.pick(&[0, 10, 200]),
        overtaken: *dice.pick(&[0, 20, 200]),
        mtu: *dice.pick(&[1_500, 1_500, 1_280]),
    }
}

fn bad_store(dice: &mut Dice) -> store::Weather {
    let mut weather = store::Weather { jitter: *dice.pick(&[30_000, 300_000, 3_000_000]), ..Default::default() };
    match dice.below(8) {
        0 => weather.fails = *dice.pick(&[50, 300, 1000]),
        1 => weather.busy = *dice.pick(&[100, 500, 1000]),
        2 => weather.false_conflict = *dice.pick(&[50, 300]),
        3 => weather.answer_lost = *dice.pick(&[50, 300]),
        4 => weather.hangs = *dice.pick(&[20, 100]),
        5 => weather.crawls = *dice.pick(&[50, 300]),
        6 => weather.denied = true,
        _ => {
            weather.fails = 30;
            weather.busy = 30;
            weather.false_conflict = 30;
            weather.answer_lost = 60;
            weather.hangs = 10;
            weather.crawls = 30;
        }
    }
    weather
}

fn bad_journal(dice: &mut Dice, gateway: usize, agent: usize, last: u64) -> Vec<Act> {
    let (mut faults, mut delays) = (Faults::default(), Delays::default());
    match dice.below(6) {
        // With a busy guest and uploads that stop, the files that are there do not suffice.
        0 => {
            let busy = Act::Pace { agent, pace: Pace::Busy };
            return vec![Act::JournalFull { gateway, last }, Act::CutStore { gateway, last }, busy];
        }
        1 => faults.write_fails = *dice.pick(&[2, 20]),
        2 => faults.write_short = *dice.pick(&[10, 50]),
        3 => faults.sync_fails = *dice.pick(&[2, 20, 100]),
        4 => faults.write_lost = *dice.pick(&[1, 10]),
        _ => {
            delays.write = Duration::from_millis(*dice.pick(&[5, 50, 500]));
            delays.sync = Duration::from_millis(*dice.pick(&[5, 200, 2_000]));
        }
    }
    vec![Act::JournalDisk { gateway, faults, delays, last }]
}
