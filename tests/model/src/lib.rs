//! The protocol of Tidegate as a small model: one disk, its agent and a clone, two gateways, the blob store, the keeper.
//!
//! Every interleaving of their steps within the given bounds is looked at; `docs/MODEL.md` says what is modelled, what
//! is not, and how large the spaces are. Read in this order: [`state`], [`agent`] and [`gateway`] (the steps),
//! [`recovery`] (the merge rule), [`promises`] (what must hold in every state).
//!
//! - A step is what can be cut off from the next by a crash, or overtaken by somebody else's step.
//! - Time does not exist: whoever is slow, paused or a zombie is not scheduled for a while.
//! - [`Break`] makes one rule of the protocol wrong: the checker must then find a counterexample.

pub mod agent;
pub mod gateway;
pub mod promises;
pub mod recovery;
pub mod state;

use std::collections::HashSet;
use std::sync::Mutex;

use stateright::{Model, Property};

pub use state::{Left, State};

/// A rule of the protocol that is broken on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Break {
    /// None: the protocol as it is meant.
    Nothing,
    /// A record counts as journaled before the sync.
    AckBeforeSync,
    /// A record counts as vaulted when its PUT is sent.
    AckBeforePut,
    /// Whatever was confirmed last counts as vaulted, with or without what lies before.
    AckPastHole,
    /// A gateway does not look for its lane's seal.
    SealUnchecked,
    /// The keeper lists a sealed lane without waiting for looks that may be old.
    NoGrace,
    /// Of two records with one number a recovery takes the first it finds.
    FirstWins,
    /// A recovery does not cut an epoch at the fork of the next.
    ForksIgnored,
    /// A gateway does not look whether an epoch is the newest.
    StaleResume,
    /// A gateway resumes at the agent's floor without reading the vault's head.
    HeadNotRead,
    /// A gateway forks at what it and the agent know, without reading the vault's head.
    ForkAtOwnMark,
    /// An agent does not send again what was written between its floor and the fork.
    RollbackUnseen,
    /// What was written between floor and fork is told once: not when the answer was lost.
    ToldOnce,
    /// An agent forgets what it must send as soon as it is journaled.
    SettledAtJournaled,
    /// What came into a lane after the keeper had listed it counts until it is deleted.
    LateCounts,
    /// The keeper folds at the newest record instead of below a fork.
    FoldAtHead,
}

/// One step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// The guest of an agent writes.
    Write(u8),
    /// An agent copies a marked chunk, or ends its span.
    Copy(u8),
    /// An agent sends its next record.
    Send(u8),
    /// An agent takes acks.
    Ack(u8),
    /// An agent persists its floor and clears its map.
    Settle(u8),
    /// An agent stops in order.
    Stop(u8),
    /// An agent starts.
    Start(u8),
    /// A machine crashes.
    CrashAgent(u8),
    /// A connection ends.
    Cut(u8),
    /// The first machine's disk is copied.
    Snapshot,
    /// The first machine is set back to the copy.
    RollBack,
    /// A second machine is made of the copy.
    Clone,
    /// A second machine is made of the running one.
    CloneLive,
    /// An agent goes on with its epoch at a gateway.
    Resume(u8, u8),
    /// An agent asks a gateway for an epoch.
    AskFork(u8, u8),
    /// A gateway creates the epoch asked for, and the agent hears of it.
    CreateEpoch(u8),
    /// A gateway creates the epoch asked for, and the answer is lost.
    CreateEpochUnheard(u8),
    /// A gateway syncs what it received.
    Sync(u8),
    /// A gateway sends a PUT.
    Upload(u8),
    /// The store applies a PUT.
    ApplyPut(u8),
    /// A gateway looks for its lane's seal.
    LookSeal(u8),
    /// A gateway hears that a PUT was applied.
    Confirm(u8, u8),
    /// A gateway frees journal space.
    Release(u8),
    /// A gateway looks for newer epochs.
    LookEpochs(u8),
    /// A gateway's process or machine crashes and comes back.
    CrashGateway(u8),
    /// A gateway comes back without its disk.
    LoseDisk(u8),
    /// The keeper seals a lane.
    Seal(u8),
    /// The keeper lists a sealed lane after its grace.
    List(u8),
    /// The keeper folds.
    Fold,
    /// The keeper deletes.
    Delete,
}

/// Lanes that the keeper may seal.
const LANES_MAX: u8 = 4;

/// The model: bounds, and which rule is broken.
#[derive(Debug)]
pub struct Protocol {
    /// How much may happen.
    pub left: Left,
    /// Which rule is broken.
    pub broken: Break,
    /// Whether every state is also asked whether everything can still come right.
    pub heals: bool,
    /// Fingerprints of states from which everything comes right.
    healed: Mutex<HashSet<u64>>,
}

impl Protocol {
    /// A model with these bounds.
    #[must_use]
    pub fn new(left: Left, broken: Break, heals: bool) -> Self {
        Self { left, broken, heals, healed: Mutex::default() }
    }

    /// Takes a step; false, with the state in disorder, if it is not possible.
    #[must_use]
    pub fn take(&self, s: &mut State, step: Step) -> bool {
        let at = usize::from;
        match step {
            Step::Write(a) => self.write(s, at(a)),
            Step::Copy(a) => self.copy(s, at(a)),
            Step::Send(a) => self.send(s, at(a)),
            Step::Ack(a) => self.ack(s, at(a)),
            Step::Settle(a) => self.settle(s, at(a)),
            Step::Stop(a) => self.stop(s, at(a)),
            Step::Start(a) => self.start(s, at(a)),
            Step::CrashAgent(a) => self.crash_agent(s, at(a)),
            Step::Cut(a) => self.cut(s, at(a)),
            Step::Snapshot => self.snapshot(s),
            Step::RollBack => self.roll_back(s),
            Step::Clone => self.clone_machine(s),
            Step::CloneLive => self.clone_live(s),
            Step::Resume(a, g) => self.resume(s, at(a), at(g)),
            Step::AskFork(a, g) => self.ask_fork(s, at(a), at(g)),
            Step::CreateEpoch(g) => self.create_epoch(s, at(g), true),
            Step::CreateEpochUnheard(g) => self.create_epoch(s, at(g), false),
            Step::Sync(g) => self.sync(s, at(g)),
            Step::Upload(g) => self.upload(s, at(g)),
            Step::ApplyPut(put) => self.apply_put(s, at(put)),
            Step::LookSeal(g) => self.look_seal(s, at(g)),
            Step::Confirm(g, put) => self.confirm(s, at(g), at(put)),
            Step::Release(g) => self.release(s, at(g)),
            Step::LookEpochs(g) => self.look_epochs(s, at(g)),
            Step::CrashGateway(g) => self.crash_gateway(s, at(g)),
            Step::LoseDisk(g) => self.lose_disk(s, at(g)),
            Step::Seal(lane) => self.seal(s, lane),
            Step::List(lane) => self.list(s, lane),
            Step::Fold => self.fold(s),
            Step::Delete => self.delete(s),
        }
    }

    /// Steps that belong to no fault, of one agent or gateway: also what healing takes.
    fn honest(steps: &mut Vec<Step>, s: &State) {
        for one in 0..2 {
            steps.extend([Step::LookSeal(one), Step::Confirm(one, 0), Step::Confirm(one, 1), Step::Release(one)]);
            steps.extend([Step::Sync(one), Step::Upload(one), Step::LookEpochs(one), Step::CreateEpoch(one)]);
            if s.agents[usize::from(one)].born {
                steps.extend([Step::Start(one), Step::Ack(one), Step::Copy(one), Step::Send(one), Step::Settle(one)]);
                for gateway in 0..2 {
                    steps.extend([Step::Resume(one, gateway), Step::AskFork(one, gateway)]);
                }
            }
        }
        steps.extend((0..s.vault.puts.len() as u8).map(Step::ApplyPut));
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(self.left)]
    }

    fn actions(&self, s: &State, steps: &mut Vec<Step>) {
        Self::honest(steps, s);
        for one in 0..2 {
            steps.extend([Step::CreateEpochUnheard(one), Step::CrashGateway(one), Step::LoseDisk(one)]);
            steps.extend([Step::Write(one), Step::Stop(one), Step::CrashAgent(one), Step::Cut(one)]);
        }
        steps.extend([Step::Snapshot, Step::RollBack, Step::Clone, Step::CloneLive, Step::Fold, Step::Delete]);
        for lane in 1..=s.vault.lanes.min(LANES_MAX) {
            steps.extend([Step::Seal(lane), Step::List(lane)]);
        }
    }

    fn next_state(&self, s: &State, step: Step) -> Option<State> {
        let mut next = s.clone();
        self.take(&mut next, step).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        promises::all()
    }
}
