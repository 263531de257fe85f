//! What the model remembers: agents, gateways, the vault, and the few ghosts that the properties need.

/// Chunks of the model's disk; write `k` goes to chunk `k % CHUNKS`.
pub const CHUNKS: usize = 2;
/// All chunks, as bits.
pub const ALL: u8 = (1 << CHUNKS) - 1;
/// The chunk of a record that writes nothing.
pub const NO_CHUNK: u8 = u8::MAX;

/// A disk: the number of the last write to each chunk.
pub type Image = [u8; CHUNKS];

/// What a record says about sync spans. A new epoch starts inside one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Sync {
    /// Nothing.
    No,
    /// A span begins.
    Begin,
    /// The span ends with it.
    End,
}

/// A record: a write, a copy, or only the beginning or end of a sync span.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Record {
    /// Its epoch.
    pub epoch: u8,
    /// Its number.
    pub seq: u8,
    /// What it writes, or [`NO_CHUNK`].
    pub chunk: u8,
    /// The number of the write whose content it carries.
    pub value: u8,
    /// Whether it begins or ends a sync span.
    pub sync: Sync,
    /// The chain after it.
    pub chain: u32,
}

/// The chain after one more record, or after a fork.
#[must_use]
pub const fn link(chain: u32, parts: [u8; 5]) -> u32 {
    let mut hash = chain ^ 0x9E37_79B9;
    let mut at = 0;
    while at < parts.len() {
        hash = (hash ^ parts[at] as u32).wrapping_mul(0x0100_0193);
        hash ^= hash >> 15;
        at += 1;
    }
    hash
}

impl Record {
    /// The record whose chain follows from the one before.
    #[must_use]
    pub const fn after(chain: u32, epoch: u8, seq: u8, (chunk, value): (u8, u8), sync: Sync) -> Self {
        Self { epoch, seq, chunk, value, sync, chain: link(chain, [epoch, seq, chunk, value, sync as u8]) }
    }

    /// Whether it continues a history that has `chain`.
    #[must_use]
    pub const fn follows(&self, chain: u32) -> bool {
        self.chain == Self::after(chain, self.epoch, self.seq, (self.chunk, self.value), self.sync).chain
    }
}

/// A place in an epoch.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Mark {
    /// The epoch; zero for none.
    pub epoch: u8,
    /// Last record included.
    pub seq: u8,
    /// The chain there.
    pub chain: u32,
}

/// What an agent wants next.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Plan {
    /// Go on with its epoch.
    Resume,
    /// Begin another.
    Fork,
    /// Nothing: another holder of its identity took over.
    Fenced,
}

/// What an agent has on its machine's disk.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Kept {
    /// The protected disk.
    pub disk: Image,
    /// Activity map: chunks that the vault may lack.
    pub active: u8,
    /// Epoch and what is known to be vaulted of it.
    pub floor: Mark,
    /// Nonce of the epoch.
    pub nonce: u8,
    /// Left in order, with everything vaulted.
    pub clean: bool,
    /// Another holder took over.
    pub fenced: bool,
}

/// What an agent has in memory.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Live {
    /// What it wants.
    pub plan: Plan,
    /// Nonce of the fork that it asks for; zero for none.
    pub asked: u8,
    /// Whether writes become records.
    pub recording: bool,
    /// Epoch and what is known to be vaulted of it.
    pub floor: Mark,
    /// Last record made, and the chain there.
    pub made: u8,
    /// Chain after the last record made.
    pub chain: u32,
    /// Records not known to be journaled.
    pub held: Vec<Record>,
    /// Records not known to be vaulted, without their content.
    pub unvaulted: Vec<(u8, u8, u32)>,
    /// Known to be journaled.
    pub journaled: u8,
    /// Chunks that must be sent.
    pub must: u8,
    /// Inside a sync span.
    pub span: bool,
    /// The gateway that carries it, and the last record sent to it.
    pub session: Option<(u8, u8)>,
}

/// A machine with its agent.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Agent {
    /// Survives a crash.
    pub kept: Kept,
    /// While it runs.
    pub live: Option<Live>,
    /// Ghost: the last record acked as vaulted, per epoch.
    pub acked: Vec<Mark>,
    /// Ghost: whether it exists.
    pub born: bool,
}

/// A run of one epoch at a gateway.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Run {
    /// How far it is vaulted, if its base is known.
    pub vaulted: Option<Mark>,
    /// Its epoch.
    pub epoch: u8,
    /// Confirmed above a hole.
    pub done: Vec<Record>,
}

/// A fork between reading the vault and writing the epoch.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Forking {
    /// Who asked.
    pub agent: u8,
    /// Its nonce.
    pub nonce: u8,
    /// Where the newest epoch is to end.
    pub at: Mark,
    /// Chunks that were written between the agent's floor and the fork.
    pub touched: u8,
}

/// A gateway. It restarts at once after a crash; being slow, paused or a zombie is not being scheduled.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Gateway {
    /// Read off the wire.
    pub received: Vec<Record>,
    /// Durable on its disk, not released.
    pub journal: Vec<Record>,
    /// Durable mark: what is vaulted of the epoch that it carries.
    pub mark: Mark,
    /// The epoch that it carries.
    pub run: Option<Run>,
    /// Whose stream is open.
    pub session: Option<u8>,
    /// A fork under way.
    pub forking: Option<Forking>,
    /// Its lane; zero for none yet.
    pub lane: u8,
    /// It has looked for the lane's seal less than the keeper's grace ago.
    pub looked: bool,
    /// PUTs without an answer.
    pub flight: Vec<Record>,
}

/// An epoch object.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Epoch {
    /// Last record of the epoch before that counts.
    pub fork: u8,
    /// The chain before its first record.
    pub chain: u32,
    /// Who began it.
    pub agent: u8,
    /// With which nonce.
    pub nonce: u8,
}

/// A batch: the model's batches hold one record.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Object {
    /// Its lane.
    pub lane: u8,
    /// What it holds.
    pub record: Record,
    /// It came after the keeper had listed its sealed lane.
    pub late: bool,
}

/// What the keeper folded everything below into.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Base {
    /// The place.
    pub at: Mark,
    /// The image there.
    pub image: Image,
}

/// The blob store.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Vault {
    /// Epochs 1, 2, 3, …: numbers are given by create-if-absent.
    pub epochs: Vec<Epoch>,
    /// Batches, in order.
    pub objects: Vec<Object>,
    /// PUTs that may yet be applied, in order; whoever sent them may be gone.
    pub puts: Vec<(u8, Record)>,
    /// Lanes registered.
    pub lanes: u8,
    /// Sealed lanes, as bits.
    pub sealed: u8,
    /// Sealed lanes that the keeper has listed.
    pub listed: u8,
    /// What the keeper made.
    pub base: Option<Base>,
}

/// How much may still happen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Left {
    /// Writes of guests.
    pub writes: u8,
    /// Crashes of agents.
    pub agent_crashes: u8,
    /// Orderly stops of agents.
    pub stops: u8,
    /// Crashes of gateways.
    pub gateway_crashes: u8,
    /// Gateways whose disk is destroyed.
    pub lost_disks: u8,
    /// Connections cut, and answers to forks lost.
    pub cuts: u8,
    /// Snapshots of the machine.
    pub snapshots: u8,
    /// Restores of the snapshot in place.
    pub rollbacks: u8,
    /// Second machines made from the snapshot.
    pub clones: u8,
    /// Second machines made of the running one, with its memory.
    pub live_clones: u8,
    /// Lanes that the keeper seals.
    pub seals: u8,
    /// Folds of the keeper.
    pub folds: u8,
}

/// Everything.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct State {
    /// The machine, and the place of its clone.
    pub agents: [Agent; 2],
    /// Two gateways.
    pub gateways: [Gateway; 2],
    /// The blob store.
    pub vault: Vault,
    /// A snapshot of the first machine.
    pub snapshot: Option<Kept>,
    /// Writes made.
    pub writes: u8,
    /// Nonces drawn.
    pub nonces: u8,
    /// What may still happen.
    pub left: Left,
    /// Ghost: every image that some disk ever had.
    pub existed: Vec<Image>,
    /// Ghost: lowest record of which the vault got two that differ, per epoch.
    pub conflicts: Vec<(u8, u8)>,
    /// Ghost: a journal was destroyed.
    pub journal_lost: bool,
}

impl Kept {
    fn new() -> Self {
        Self { disk: [0; CHUNKS], active: 0, floor: Mark::default(), nonce: 0, clean: false, fenced: false }
    }
}

impl Live {
    /// A process that starts with what is kept.
    #[must_use]
    pub const fn start(kept: &Kept, plan: Plan) -> Self {
        Self {
            plan,
            asked: 0,
            recording: false,
            floor: kept.floor,
            made: kept.floor.seq,
            chain: kept.floor.chain,
            held: Vec::new(),
            unvaulted: Vec::new(),
            journaled: kept.floor.seq,
            must: kept.active,
            span: false,
            session: None,
        }
    }

    /// First record still held.
    #[must_use]
    pub fn first_held(&self) -> u8 {
        self.held.first().map_or(self.made + 1, |record| record.seq)
    }

    /// Gives up the epoch: what is not vaulted must be sent anew.
    pub fn abandon(&mut self) {
        self.must |= self.unvaulted.iter().fold(0, |bits, &(_, chunk, _)| bits | bit(chunk));
        self.unvaulted.clear();
        self.held.clear();
        self.recording = false;
        self.span = false;
        self.session = None;
        self.plan = Plan::Fork;
    }

    /// Makes a record.
    pub fn record(&mut self, chunk: u8, value: u8, sync: Sync) {
        let record = Record::after(self.chain, self.floor.epoch, self.made + 1, (chunk, value), sync);
        (self.made, self.chain) = (record.seq, record.chain);
        self.unvaulted.push((record.seq, chunk, record.chain));
        self.held.push(record);
    }

    /// The chain after a record that is not older than the floor.
    #[must_use]
    pub fn chain_at(&self, seq: u8) -> Option<u32> {
        let known = self.unvaulted.iter().find(|(known, ..)| *known == seq).map(|(.., chain)| *chain);
        known.or_else(|| (seq == self.floor.seq).then_some(self.floor.chain))
    }

    /// Whether everything is vaulted.
    #[must_use]
    pub fn settled(&self) -> bool {
        self.recording && !self.span && self.must == 0 && self.unvaulted.is_empty()
    }
}

/// The chunk as a bit.
#[must_use]
pub const fn bit(chunk: u8) -> u8 {
    if chunk == NO_CHUNK { 0 } else { 1 << chunk }
}

impl State {
    /// A machine in its first epoch, carried by the first gateway, with nothing written yet.
    #[must_use]
    pub fn new(left: Left) -> Self {
        let first = Mark { epoch: 1, seq: 0, chain: link(0, [1, 0, 0, 0, 0]) };
        let kept = Kept { floor: first, nonce: 1, ..Kept::new() };
        let mut live = Live::start(&kept, Plan::Resume);
        (live.recording, live.session) = (true, Some((0, 0)));
        let first_kept = kept.clone();
        let agent = Agent { kept, live: Some(live), acked: Vec::new(), born: true };
        let clone = Agent { kept: Kept::new(), live: None, acked: Vec::new(), born: false };
        let carrying = Gateway {
            mark: first,
            run: Some(Run { vaulted: Some(first), epoch: 1, done: Vec::new() }),
            session: Some(0),
            ..Gateway::default()
        };
        let epochs = vec![Epoch { fork: 0, chain: first.chain, agent: 0, nonce: 1 }];
        Self {
            agents: [agent, clone],
            gateways: [carrying, Gateway::default()],
            vault: Vault { epochs, ..Vault::default() },
            // Without a moment of its own the snapshot is of the beginning.
            snapshot: (left.snapshots == 0).then_some(first_kept),
            writes: 0,
            nonces: 1,
            left,
            existed: vec![[0; CHUNKS]],
            conflicts: Vec::new(),
            journal_lost: false,
        }
    }
}
