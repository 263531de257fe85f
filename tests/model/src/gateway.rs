//! What gateways, the blob store and the keeper do.

use crate::state::{Base, Epoch, Forking, Gateway, Live, Mark, Object, Plan, Record, Run, State, link};
use crate::{Break, Protocol};

/// PUTs of a gateway without an answer.
const FLIGHT_MAX: usize = 2;

impl Gateway {
    /// Gives up what it has of epochs before `epoch`.
    pub(crate) fn retire_below(&mut self, epoch: u8) {
        if self.run.as_ref().is_some_and(|run| run.epoch < epoch) {
            self.run = None;
            self.received.clear();
            self.journal.clear();
            self.flight.clear();
        }
    }

    /// Makes sure that it has a run of `epoch`, and of no other.
    pub(crate) fn carry(&mut self, epoch: u8) {
        if self.run.as_ref().is_some_and(|run| run.epoch == epoch) {
            return;
        }
        self.retire_below(u8::MAX);
        let vaulted = Some(self.mark).filter(|mark| mark.epoch == epoch);
        self.run = Some(Run { vaulted, epoch, done: Vec::new() });
    }

    /// How far its run is appended.
    pub(crate) fn reached(&self) -> Mark {
        let start = self.run.as_ref().and_then(|run| run.vaulted).unwrap_or_default();
        self.journal.iter().chain(&self.received).fold(start, |at, record| {
            if record.seq == at.seq + 1 { Mark { epoch: at.epoch, seq: record.seq, chain: record.chain } } else { at }
        })
    }

    /// After a restart: what the journal tells.
    fn replay(&mut self) {
        let journal = std::mem::take(&mut self.journal);
        let mark = self.mark;
        *self = Self { journal, mark, ..Self::default() };
        let Some(first) = self.journal.first() else { return };
        let epoch = first.epoch;
        self.run = Some(Run { vaulted: Some(mark).filter(|mark| mark.epoch == epoch), epoch, done: Vec::new() });
    }

    fn to_upload(&self) -> Option<Record> {
        let run = self.run.as_ref()?;
        let vaulted = run.vaulted.map_or(0, |vaulted| vaulted.seq);
        let waits =
            |record: &&Record| record.seq > vaulted && !self.flight.contains(record) && !run.done.contains(record);
        self.journal.iter().find(waits).copied()
    }

    /// Everything it was handed is vaulted.
    fn drained(&self) -> bool {
        let Some(run) = &self.run else { return true };
        let vaulted = run.vaulted.map_or(0, |vaulted| vaulted.seq);
        self.received.is_empty() && self.journal.iter().all(|record| record.seq <= vaulted)
    }
}

impl Protocol {
    pub(crate) fn sync(&self, s: &mut State, g: usize) -> bool {
        let gateway = &mut s.gateways[g];
        let any = !gateway.received.is_empty();
        let received = std::mem::take(&mut gateway.received);
        gateway.journal.extend(received);
        any
    }

    /// Starts a PUT, in a new lane if it has none.
    pub(crate) fn upload(&self, s: &mut State, g: usize) -> bool {
        let gateway = &mut s.gateways[g];
        let Some(record) = gateway.to_upload().filter(|_| gateway.flight.len() < FLIGHT_MAX) else { return false };
        if gateway.lane == 0 {
            s.vault.lanes += 1;
            // Without a keeper there is nothing to look for.
            (gateway.lane, gateway.looked) = (s.vault.lanes, self.left.seals == 0);
        }
        gateway.flight.push(record);
        let put = (gateway.lane, record);
        if let Err(at) = s.vault.puts.binary_search(&put) {
            s.vault.puts.insert(at, put);
        }
        true
    }

    /// The store applies a PUT, whoever waits for it.
    pub(crate) fn apply_put(&self, s: &mut State, at: usize) -> bool {
        if at >= s.vault.puts.len() {
            return false;
        }
        let (lane, record) = s.vault.puts.remove(at);
        let same = |object: &&Object| (object.record.epoch, object.record.seq) == (record.epoch, record.seq);
        if s.vault.objects.iter().filter(same).any(|object| object.record != record) {
            let place = (record.epoch, record.seq);
            if !s.conflicts.contains(&place) {
                s.conflicts.push(place);
                s.conflicts.sort_unstable();
            }
        }
        let object = Object { lane, record, late: s.vault.listed & (1 << lane) != 0 };
        if let Err(at) = s.vault.objects.binary_search(&object) {
            s.vault.objects.insert(at, object);
        }
        true
    }

    /// Looks for the seal of its lane; a sealed lane is left, and what it had not confirmed goes into another.
    pub(crate) fn look_seal(&self, s: &mut State, g: usize) -> bool {
        let gateway = &mut s.gateways[g];
        if gateway.lane == 0 || gateway.looked || gateway.flight.is_empty() {
            return false;
        }
        if s.vault.sealed & (1 << gateway.lane) != 0 && self.broken != Break::SealUnchecked {
            gateway.lane = 0;
            gateway.flight.clear();
        } else {
            gateway.looked = true;
        }
        true
    }

    /// The answer to a PUT arrives, and the last look found no seal.
    pub(crate) fn confirm(&self, s: &mut State, g: usize, at: usize) -> bool {
        let gateway = &mut s.gateways[g];
        let Some(record) = gateway.flight.get(at).copied().filter(|_| gateway.looked) else { return false };
        if s.vault.puts.contains(&(gateway.lane, record)) {
            return false;
        }
        gateway.flight.remove(at);
        if let Some(run) = &mut gateway.run {
            run.done.push(record);
            run.join();
        }
        true
    }

    /// Frees journal space of what is vaulted, marks first.
    pub(crate) fn release(&self, s: &mut State, g: usize) -> bool {
        if self.left.gateway_crashes + self.left.lost_disks == 0 {
            // Nobody will ever replay the journal.
            return false;
        }
        let gateway = &mut s.gateways[g];
        let Some(vaulted) = gateway.run.as_ref().and_then(|run| run.vaulted) else { return false };
        if gateway.journal.first().is_none_or(|record| record.seq > vaulted.seq) {
            return false;
        }
        gateway.mark = vaulted;
        gateway.journal.retain(|record| record.seq > vaulted.seq);
        true
    }

    pub(crate) fn crash_gateway(&self, s: &mut State, g: usize) -> bool {
        if s.left.gateway_crashes == 0 || s.gateways[g] == Gateway::default() {
            return false;
        }
        s.left.gateway_crashes -= 1;
        self.leave(s, g);
        s.gateways[g].replay();
        true
    }

    pub(crate) fn lose_disk(&self, s: &mut State, g: usize) -> bool {
        if s.left.lost_disks == 0 || s.gateways[g] == Gateway::default() {
            return false;
        }
        s.left.lost_disks -= 1;
        self.leave(s, g);
        s.gateways[g] = Gateway::default();
        s.journal_lost = true;
        true
    }

    fn leave(&self, s: &mut State, g: usize) {
        if let Some(a) = s.gateways[g].session {
            self.hang_up(s, usize::from(a));
        }
    }

    /// Looks for epochs that others began: a stale session ends, its records are given up.
    pub(crate) fn look_epochs(&self, s: &mut State, g: usize) -> bool {
        let newest = s.vault.newest();
        if s.gateways[g].run.as_ref().is_none_or(|run| run.epoch >= newest) || self.broken == Break::StaleResume {
            return false;
        }
        if let Some(a) = s.gateways[g].session {
            self.fence(s, usize::from(a));
        }
        s.gateways[g].retire_below(newest);
        true
    }

    /// An agent asks a gateway for a new epoch; the gateway finds out where the newest one ends.
    pub(crate) fn ask_fork(&self, s: &mut State, a: usize, g: usize) -> bool {
        let Some(live) = s.agents[a].live.as_ref() else { return false };
        if live.plan != Plan::Fork || live.session.is_some() || s.gateways[g].forking.is_some() {
            return false;
        }
        let (newest, floor, asked) = (s.vault.newest(), live.floor, live.asked);
        let waits = |gateway: &Gateway| gateway.forking.is_some_and(|fork| fork.nonce == asked);
        if s.gateways.iter().any(waits) {
            // It asks another one only when it has lost the first.
            if s.left.cuts == 0 {
                return false;
            }
            s.left.cuts -= 1;
        }
        let joins = floor.epoch == newest;
        if s.gateways[g].run.as_ref().is_some_and(|run| run.epoch < newest) {
            self.leave(s, g);
        }
        let gateway = &mut s.gateways[g];
        gateway.retire_below(newest);
        if let Some(run) = gateway.run.as_mut().filter(|_| joins) {
            run.learn(floor);
        }
        if !gateway.drained() {
            return false;
        }
        let head = s.vault.recover(self.broken).head;
        let first = Mark { epoch: newest, seq: 0, chain: s.vault.epochs[usize::from(newest) - 1].chain };
        let here = gateway.run.as_ref().filter(|run| run.epoch == newest).and_then(|run| run.vaulted);
        let known = [Some(head).filter(|_| self.broken != Break::ForkAtOwnMark), Some(floor), here];
        let known = known.into_iter().flatten().filter(|mark| mark.epoch == newest);
        let at = known.fold(first, |best, mark| if mark.seq > best.seq { mark } else { best });
        let again = floor.epoch + 1 == newest;
        let touched = match self.broken {
            Break::RollbackUnseen => 0,
            Break::ToldOnce if again => 0,
            _ => s.vault.touched(floor, at),
        };
        self.leave(s, g);
        if asked != 0 && s.vault.epochs[usize::from(newest) - 1].nonce == asked && at.seq == 0 {
            // The answer to the same request was lost on the way.
            s.gateways[g].carry(newest);
            if let Some(run) = &mut s.gateways[g].run {
                run.learn(first);
            }
            self.begin(s, a, g, touched);
            return true;
        }
        let nonce = if asked == 0 { s.nonces + 1 } else { asked };
        s.nonces = s.nonces.max(nonce);
        s.agents[a].live.iter_mut().for_each(|live: &mut Live| live.asked = nonce);
        s.gateways[g].forking = Some(Forking { agent: a as u8, nonce, at, touched });
        true
    }

    /// Creates the epoch if nobody was faster; the answer may be lost.
    pub(crate) fn create_epoch(&self, s: &mut State, g: usize, answered: bool) -> bool {
        let Some(Forking { agent, nonce, at, touched }) = s.gateways[g].forking else { return false };
        let wins = s.vault.newest() == at.epoch;
        if !answered {
            if !wins || s.left.cuts == 0 {
                return false;
            }
            s.left.cuts -= 1;
        }
        s.gateways[g].forking = None;
        if !wins {
            return true;
        }
        let epoch = at.epoch + 1;
        let chain = link(at.chain, [epoch, at.seq, u8::MAX, u8::MAX, u8::MAX]);
        s.vault.epochs.push(Epoch { fork: at.seq, chain, agent, nonce });
        let gateway = &mut s.gateways[g];
        gateway.retire_below(epoch);
        gateway.carry(epoch);
        let first = Mark { epoch, seq: 0, chain };
        gateway.mark = first;
        if let Some(run) = &mut gateway.run {
            run.learn(first);
        }
        let waits = |live: &Live| live.plan == Plan::Fork && live.asked == nonce && live.session.is_none();
        if answered && s.agents[usize::from(agent)].live.as_ref().is_some_and(waits) {
            self.begin(s, usize::from(agent), g, touched);
        }
        true
    }

    pub(crate) fn seal(&self, s: &mut State, lane: u8) -> bool {
        if s.left.seals == 0 || lane > s.vault.lanes || s.vault.sealed & (1 << lane) != 0 {
            return false;
        }
        s.left.seals -= 1;
        s.vault.sealed |= 1 << lane;
        true
    }

    /// The keeper's grace is over: every look at a seal is older than it allows. It lists the lane; what comes later does
    /// not count.
    pub(crate) fn list(&self, s: &mut State, lane: u8) -> bool {
        let lane_bit = 1 << lane;
        if s.vault.sealed & lane_bit == 0 || s.vault.listed & lane_bit != 0 {
            return false;
        }
        s.vault.listed |= lane_bit;
        if self.broken != Break::NoGrace {
            s.gateways.iter_mut().for_each(|gateway| gateway.looked = false);
        }
        true
    }

    /// Deletes what came too late into listed lanes, and what the base holds.
    pub(crate) fn delete(&self, s: &mut State) -> bool {
        let (listed, base) = (s.vault.listed, s.vault.base);
        let before = s.vault.objects.len();
        s.vault.objects.retain(|object| {
            let below =
                base.is_some_and(|base| (object.record.epoch, object.record.seq) <= (base.at.epoch, base.at.seq));
            listed & (1 << object.lane) == 0 || !(object.late || below)
        });
        s.vault.objects.len() != before
    }

    /// Folds everything below a place into a base: below a fork, which nothing can move any more.
    pub(crate) fn fold(&self, s: &mut State) -> bool {
        let newest = s.vault.newest();
        if s.left.folds == 0 {
            return false;
        }
        let found = s.vault.recover(self.broken);
        let place = if self.broken == Break::FoldAtHead {
            Some((found.head, found.image)).filter(|_| found.whole && found.head.seq > 0)
        } else {
            let chain = s.vault.epochs[usize::from(newest) - 1].chain;
            let image = found.starts.last().copied().flatten().filter(|_| newest > 1);
            image.map(|image| (Mark { epoch: newest, seq: 0, chain }, image))
        };
        let Some((at, image)) = place else { return false };
        if s.vault.base.is_some_and(|base| (base.at.epoch, base.at.seq) >= (at.epoch, at.seq)) {
            return false;
        }
        s.left.folds -= 1;
        s.vault.base = Some(Base { at, image });
        true
    }
}
