//! What must hold in every state.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use stateright::Property;

use crate::state::{Agent, Left, Live, Plan, State};
use crate::{Protocol, Step};

/// Steps within which everything comes right once the faults have stopped.
const HEAL_STEPS_MAX: usize = 250;

/// Every vaulted ack is in every later recovery.
pub const ACKED_IS_RECOVERED: &str = "every vaulted-acked record is in every later recovery";
/// Every recovery point is a state that some disk had.
pub const POINTS_EXISTED: &str = "every recovery point is a state that existed";
/// What an agent was told to be journaled can be had as long as no gateway's disk is destroyed.
pub const JOURNALED_SURVIVES: &str = "a journaled-acked record survives everything but the loss of the gateway's disk";
/// A single machine never makes two records with one number.
pub const ONE_ACCOUNT: &str = "no record has two accounts, as long as a machine has no twin";
/// The keeper's base stays on the lineage.
pub const BASE_COUNTS: &str = "what the keeper folded stays part of the history";
/// Nobody is stuck.
pub const HEALS: &str = "once faults stop, everything is vaulted, or the agent knows that it is fenced";

/// All promises.
#[must_use]
pub fn all() -> Vec<Property<Protocol>> {
    vec![
        Property::always(ACKED_IS_RECOVERED, acked_is_recovered),
        Property::always(POINTS_EXISTED, points_existed),
        Property::always(JOURNALED_SURVIVES, |_, s: &State| journaled_survives(s)),
        Property::always(ONE_ACCOUNT, |_, s: &State| s.conflicts.is_empty() || s.agents[1].born),
        Property::always(BASE_COUNTS, |model: &Protocol, s: &State| s.vault.recover(model.broken).base_good),
        Property::always(HEALS, |model: &Protocol, s: &State| !model.heals || heals(model, s)),
    ]
}

/// Exempt is what another holder of the identity cut off by its epoch (its agent is fenced, and alarms), and what two
/// holders of one epoch made contradict itself (nothing of it is believed, and a recovery says so).
fn acked_is_recovered(model: &Protocol, s: &State) -> bool {
    let found = s.vault.recover(model.broken);
    let in_doubt = |epoch: u8, seq: u8| s.conflicts.iter().any(|place| *place <= (epoch, seq));
    s.agents.iter().enumerate().all(|(a, agent)| {
        agent.acked.iter().filter(|acked| acked.seq > 0 && !in_doubt(acked.epoch, acked.seq)).all(|acked| {
            let place = usize::from(acked.epoch);
            let next = s.vault.epochs.get(place);
            if next.is_some_and(|next| acked.seq > next.fork && usize::from(next.agent) != a) {
                return true;
            }
            let counts = next.is_none_or(|next| acked.seq <= next.fork);
            let has = found.through.get(place - 1).is_some_and(|through| through.seq >= acked.seq);
            counts && has
        })
    })
}

fn points_existed(model: &Protocol, s: &State) -> bool {
    s.vault.recover(model.broken).points.iter().all(|image| s.existed.binary_search(image).is_ok())
}

fn journaled_survives(s: &State) -> bool {
    if s.journal_lost {
        return true;
    }
    s.agents.iter().filter_map(|agent| agent.live.as_ref()).filter(|live| live.recording).all(|live| {
        let epoch = live.floor.epoch;
        if epoch < s.vault.newest() {
            return true;
        }
        (live.floor.seq + 1..=live.journaled).all(|seq| {
            let stored = s.vault.objects.iter().map(|object| &object.record);
            let mut records = s.gateways.iter().flat_map(|gateway| &gateway.journal).chain(stored);
            records.any(|record| (record.epoch, record.seq) == (epoch, seq))
        })
    })
}

/// Takes honest steps as long as there are any. Ways of healing meet soon: each state on one is looked at once.
fn heals(model: &Protocol, s: &State) -> bool {
    if !s.conflicts.is_empty() {
        return true;
    }
    let mut s = State { left: Left::default(), ..s.clone() };
    let mut way = Vec::new();
    let mut steps = Vec::with_capacity(32);
    while way.len() < HEAL_STEPS_MAX {
        let print = BuildHasherDefault::<DefaultHasher>::default().hash_one(&s);
        if model.healed.lock().is_ok_and(|healed| healed.contains(&print)) {
            return model.healed.lock().map(|mut healed| healed.extend(way)).is_ok();
        }
        way.push(print);
        steps.clear();
        Protocol::honest(&mut steps, &s);
        // Settling is not needed to come right.
        steps.retain(|step| !matches!(step, Step::Settle(_)));
        let next = steps.iter().find_map(|step| {
            let mut next = s.clone();
            model.take(&mut next, *step).then_some(next)
        });
        match next {
            Some(next) => s = next,
            None => break,
        }
    }
    let found = s.vault.recover(model.broken);
    let right = s.agents.iter().filter(|agent| agent.born).all(|agent| match &agent.live {
        Some(live) if live.plan == Plan::Fenced => true,
        Some(live) => carried(agent, live) && found.whole && (found.image == agent.kept.disk || shared(&s)),
        None => false,
    });
    right && model.healed.lock().map(|mut healed| healed.extend(way)).is_ok()
}

fn carried(agent: &Agent, live: &Live) -> bool {
    live.settled() && !agent.kept.fenced
}

/// Two holders of one epoch: nobody can know before the silent one of them makes a record.
fn shared(s: &State) -> bool {
    s.agents.iter().all(|agent| {
        agent.live.as_ref().is_some_and(|live| live.plan == Plan::Resume && live.floor.epoch == s.vault.newest())
    })
}
