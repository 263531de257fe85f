//! What agents and their machines do.

use crate::state::{ALL, Agent, CHUNKS, Gateway, Live, Mark, NO_CHUNK, Plan, Record, Run, State, Sync};
use crate::{Break, Protocol};

impl Protocol {
    /// The guest writes: activity map, disk, record; one step, because the map is durable before the disk is touched.
    pub(crate) fn write(&self, s: &mut State, a: usize) -> bool {
        let agent = &mut s.agents[a];
        let Some(live) = &mut agent.live else { return false };
        if s.left.writes == 0 {
            return false;
        }
        s.left.writes -= 1;
        s.writes += 1;
        let chunk = s.writes % CHUNKS as u8;
        agent.kept.active |= 1 << chunk;
        agent.kept.disk[usize::from(chunk)] = s.writes;
        if live.recording {
            live.record(chunk, s.writes, Sync::No);
        } else {
            live.must |= 1 << chunk;
        }
        existed(s, a);
        true
    }

    /// Copies a marked chunk; the last one ends the span.
    pub(crate) fn copy(&self, s: &mut State, a: usize) -> bool {
        let agent = &mut s.agents[a];
        let Some(live) = agent.live.as_mut().filter(|live| live.recording && live.span) else { return false };
        if live.must == 0 {
            live.record(NO_CHUNK, 0, Sync::End);
        } else {
            let chunk = live.must.trailing_zeros() as u8;
            live.must &= live.must - 1;
            let sync = if live.must == 0 { Sync::End } else { Sync::No };
            live.record(chunk, agent.kept.disk[usize::from(chunk)], sync);
        }
        live.span = live.must != 0;
        true
    }

    /// Sends the next record.
    pub(crate) fn send(&self, s: &mut State, a: usize) -> bool {
        let Some(live) = &mut s.agents[a].live else { return false };
        let Some((g, sent)) = live.session else { return false };
        let Some(record) = live.held.iter().find(|record| record.seq > sent).copied() else { return false };
        live.session = Some((g, record.seq));
        s.gateways[usize::from(g)].received.push(record);
        true
    }

    /// Takes the acks that its gateway would send now.
    pub(crate) fn ack(&self, s: &mut State, a: usize) -> bool {
        let agent = &mut s.agents[a];
        let Some(live) = &mut agent.live else { return false };
        let Some((g, sent)) = live.session else { return false };
        let gateway = &s.gateways[usize::from(g)];
        let Some(run) = gateway.run.as_ref().filter(|run| run.epoch == live.floor.epoch) else { return false };
        let vaulted = gateway.vaulted_ack(run, self.broken);
        let mut journaled = gateway.journal.last().map_or(vaulted.seq, |record| record.seq.max(vaulted.seq));
        if self.broken == Break::AckBeforeSync {
            journaled = journaled.max(gateway.received.last().map_or(0, |record| record.seq));
        }
        let journaled = journaled.min(sent.max(live.floor.seq));
        if journaled <= live.journaled && vaulted.seq <= live.floor.seq {
            return false;
        }
        live.journaled = live.journaled.max(journaled);
        live.held.retain(|record| record.seq > journaled);
        if vaulted.seq > live.floor.seq {
            live.floor = vaulted;
        }
        let settled = if self.broken == Break::SettledAtJournaled { live.journaled } else { live.floor.seq };
        live.unvaulted.retain(|(seq, ..)| *seq > settled);
        agent.acked.retain(|acked| acked.epoch != live.floor.epoch);
        agent.acked.push(live.floor);
        true
    }

    /// Persists the floor, then clears the activity map where everything is vaulted.
    pub(crate) fn settle(&self, s: &mut State, a: usize) -> bool {
        if self.left.agent_crashes + self.left.stops + self.left.snapshots == 0 {
            // Nobody will ever read what is persisted.
            return false;
        }
        let Agent { kept, live: Some(live), .. } = &mut s.agents[a] else { return false };
        let before = (kept.floor, kept.active);
        if live.recording {
            kept.floor = live.floor;
        }
        kept.active &=
            live.must | live.unvaulted.iter().fold(0, |bits, (_, chunk, _)| bits | crate::state::bit(*chunk));
        before != (kept.floor, kept.active)
    }

    /// An orderly stop, with everything vaulted.
    pub(crate) fn stop(&self, s: &mut State, a: usize) -> bool {
        if s.left.stops == 0 || !s.agents[a].live.as_ref().is_some_and(Live::settled) {
            return false;
        }
        s.left.stops -= 1;
        self.settle(s, a);
        self.down(s, a);
        s.agents[a].kept.clean = true;
        true
    }

    pub(crate) fn start(&self, s: &mut State, a: usize) -> bool {
        let agent = &mut s.agents[a];
        if agent.live.is_some() || !agent.born {
            return false;
        }
        let plan = match &agent.kept {
            kept if kept.fenced => Plan::Fenced,
            kept if kept.clean && kept.active == 0 => Plan::Resume,
            _ => Plan::Fork,
        };
        agent.kept.clean = false;
        agent.live = Some(Live::start(&agent.kept, plan));
        true
    }

    pub(crate) fn crash_agent(&self, s: &mut State, a: usize) -> bool {
        if s.left.agent_crashes == 0 || s.agents[a].live.is_none() {
            return false;
        }
        s.left.agent_crashes -= 1;
        self.down(s, a);
        true
    }

    fn down(&self, s: &mut State, a: usize) {
        self.hang_up(s, a);
        s.agents[a].live = None;
    }

    /// Ends the session of an agent, if it has one. What it sent is with the gateway.
    pub(crate) fn hang_up(&self, s: &mut State, a: usize) -> bool {
        let Some((g, _)) = s.agents[a].live.as_mut().and_then(|live| live.session.take()) else { return false };
        s.gateways[usize::from(g)].session = None;
        true
    }

    pub(crate) fn cut(&self, s: &mut State, a: usize) -> bool {
        if s.left.cuts == 0 || !self.hang_up(s, a) {
            return false;
        }
        s.left.cuts -= 1;
        true
    }

    pub(crate) fn snapshot(&self, s: &mut State) -> bool {
        if s.left.snapshots == 0 {
            return false;
        }
        s.left.snapshots -= 1;
        s.snapshot = Some(s.agents[0].kept.clone());
        true
    }

    /// The machine is set back to the snapshot.
    pub(crate) fn roll_back(&self, s: &mut State) -> bool {
        let Some(kept) = s.snapshot.clone().filter(|_| s.left.rollbacks > 0) else { return false };
        s.left.rollbacks -= 1;
        self.down(s, 0);
        s.agents[0].kept = kept;
        true
    }

    /// A second machine is made from the snapshot.
    pub(crate) fn clone_machine(&self, s: &mut State) -> bool {
        let Some(kept) = s.snapshot.clone().filter(|_| s.left.clones > 0 && !s.agents[1].born) else { return false };
        s.left.clones -= 1;
        s.agents[1] = Agent { kept, live: None, acked: Vec::new(), born: true };
        true
    }

    /// A second machine is made of the running one, memory and all.
    pub(crate) fn clone_live(&self, s: &mut State) -> bool {
        // Early, which is all that matters: what both have before it is the same in the vault, too.
        if s.left.live_clones == 0 || s.agents[1].born || s.writes > 0 {
            return false;
        }
        s.left.live_clones -= 1;
        let mut clone = Agent { acked: Vec::new(), ..s.agents[0].clone() };
        if let Some(live) = &mut clone.live {
            live.session = None;
        }
        s.agents[1] = clone;
        true
    }

    /// Goes on with its epoch at a gateway.
    pub(crate) fn resume(&self, s: &mut State, a: usize, g: usize) -> bool {
        let Some(live) = s.agents[a].live.as_ref() else { return false };
        if live.plan != Plan::Resume || live.session.is_some() {
            return false;
        }
        let (floor, nonce, first_held) = (live.floor, s.agents[a].kept.nonce, live.first_held());
        let newest = s.vault.newest();
        if newest > floor.epoch && self.broken != Break::StaleResume {
            s.gateways[g].retire_below(newest);
            self.fence(s, a);
            return true;
        }
        if s.vault.epochs[usize::from(floor.epoch) - 1].nonce != nonce {
            return self.must_fork(s, a);
        }
        let head = s.vault.recover(self.broken).head;
        let gateway = &mut s.gateways[g];
        gateway.carry(floor.epoch);
        let Some(run) = &mut gateway.run else { return false };
        if run.vaulted.is_none_or(|vaulted| vaulted.seq < floor.seq) {
            if head.epoch == floor.epoch && head.seq > floor.seq && self.broken != Break::HeadNotRead {
                run.learn(head);
            }
            run.learn(floor);
        }
        gateway.mark = run.vaulted.unwrap_or(gateway.mark);
        let reached = gateway.reached();
        if first_held > reached.seq + 1 {
            return self.must_fork(s, a);
        }
        let Some(live) = &mut s.agents[a].live else { return false };
        let same = live.chain_at(reached.seq) == Some(reached.chain);
        if live.recording && reached.seq > live.made {
            return self.must_fork(s, a);
        }
        if !same {
            // What the gateway has is not what this agent sent: everything must be compared.
            s.agents[a].kept.active = ALL;
            let live = s.agents[a].live.as_mut();
            live.into_iter().for_each(|live| live.must = ALL);
            return self.must_fork(s, a);
        }
        if !live.recording {
            (live.recording, live.span) = (true, live.must != 0);
            (live.made, live.chain, live.journaled) = (reached.seq, reached.chain, reached.seq);
            if live.span {
                live.record(NO_CHUNK, 0, Sync::Begin);
            }
        }
        live.session = Some((g as u8, reached.seq));
        self.take_over(s, a, g);
        true
    }

    fn must_fork(&self, s: &mut State, a: usize) -> bool {
        s.agents[a].live.iter_mut().for_each(Live::abandon);
        true
    }

    /// A gateway's stream of the disk is this agent's now; the one before is closed.
    pub(crate) fn take_over(&self, s: &mut State, a: usize, g: usize) {
        if let Some(other) = s.gateways[g].session.replace(a as u8).filter(|other| usize::from(*other) != a) {
            s.agents[usize::from(other)].live.iter_mut().for_each(|live| live.session = None);
        }
    }

    /// Learns that another holder of its identity took over.
    pub(crate) fn fence(&self, s: &mut State, a: usize) {
        self.hang_up(s, a);
        s.agents[a].kept.fenced = true;
        let Some(live) = &mut s.agents[a].live else { return };
        live.abandon();
        live.plan = Plan::Fenced;
    }

    /// Begins the epoch that a gateway has opened for it.
    pub(crate) fn begin(&self, s: &mut State, a: usize, g: usize, touched: u8) {
        let newest = s.vault.newest();
        let object = s.vault.epochs[usize::from(newest) - 1];
        let agent = &mut s.agents[a];
        let Some(live) = &mut agent.live else { return };
        live.abandon();
        live.must |= touched;
        agent.kept.active |= live.must;
        let floor = Mark { epoch: newest, seq: 0, chain: object.chain };
        (agent.kept.floor, agent.kept.nonce) = (floor, object.nonce);
        (live.floor, live.made, live.chain, live.journaled) = (floor, 0, floor.chain, 0);
        (live.plan, live.asked, live.recording, live.span) = (Plan::Resume, 0, true, true);
        live.session = Some((g as u8, 0));
        self.take_over(s, a, g);
    }
}

fn existed(s: &mut State, a: usize) {
    let image = s.agents[a].kept.disk;
    if let Err(at) = s.existed.binary_search(&image) {
        s.existed.insert(at, image);
    }
}

impl Run {
    /// Learns that everything up to `mark` is vaulted.
    pub fn learn(&mut self, mark: Mark) {
        if self.vaulted.is_none_or(|vaulted| vaulted.seq < mark.seq) {
            self.vaulted = Some(mark);
        }
        self.join();
    }

    /// Joins what was confirmed above a hole.
    pub fn join(&mut self) {
        let Some(mut vaulted) = self.vaulted else { return };
        self.done.sort_unstable();
        for record in &self.done {
            if record.seq == vaulted.seq + 1 {
                vaulted = Mark { epoch: self.epoch, seq: record.seq, chain: record.chain };
            }
        }
        self.done.retain(|record| record.seq > vaulted.seq);
        self.vaulted = Some(vaulted);
    }
}

impl Gateway {
    /// What it says is vaulted.
    pub(crate) fn vaulted_ack(&self, run: &Run, broken: Break) -> Mark {
        let vaulted = run.vaulted.unwrap_or_default();
        let claimed: Option<&Record> = match broken {
            Break::AckPastHole => run.done.last(),
            Break::AckBeforePut => self.flight.iter().chain(&run.done).max_by_key(|record| record.seq),
            _ => None,
        };
        claimed.filter(|record| record.seq > vaulted.seq).map_or(vaulted, |record| Mark {
            epoch: record.epoch,
            seq: record.seq,
            chain: record.chain,
        })
    }
}
