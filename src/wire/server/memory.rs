//! The memory that records on their way may take: who may have how much of it, and who gives way.
//!
//! ```text
//!  gateway ──┬─ account of an agent ──┬─ lease of a disk stream     taken ◄── lease ──►◄─ base ─► granted
//!            │   (its connection)     └─ …                          every byte granted beyond the base is leased
//!            └─ …
//! ```
//!
//! Each open disk may always send [`CREDIT_BASE_BYTES`]; all credit beyond that is leased before it is granted. So all
//! that agents may have on its way, read or unread, is at most the gateway's memory and a base for each open disk; and
//! the window of a connection, which is as large as all that may be granted on it, is never filled by disks that wait.
//!
//! - A lease covers the whole record for which it was asked, and who waits for one holds none: a record that was begun
//!   needs nothing more to become whole, so no two wait for each other.
//! - Those who wait are served in the order in which they came. An agent that has used up its account, or a way to the
//!   disk on which nothing moves, lets others pass: part of all memory, and of each account, is kept for each way.
//! - While there is plenty a disk gets a whole window and keeps it. Once three quarters are taken, memory is given record
//!   by record, and leases of disks that send nothing come back.
//! - A record that comes too slowly gives way if others wait and nothing else is left: its stream ends with
//!   [`crate::wire::Code::Busy`], and its agent sends again. Who waits for the journal never gives way, because that is not the
//!   agent's doing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::flow::Clock;
use crate::limits::RECORD_BYTES_MAX;
use crate::mutants::{self, Mutant};
use crate::telemetry::names;
use crate::wire::CREDIT_BASE_BYTES;

/// How often those who wait look for leases that nothing comes of.
const LOOK: Duration = Duration::from_millis(250);
/// Without progress for so long a lease may be told to give way. More than an agent's credit needs to lapse and the
/// network to bring what was sent before: see [`crate::wire::CREDIT_LAPSE`].
const PATIENCE: Duration = Duration::from_millis(1500);
/// Bytes of a begun record that count as progress: at 32 KiB/s the largest record is there within 35 s.
const PROGRESS_BYTES: u64 = 48 << 10;
/// A larger window is not worth a lease below this.
const GROWTH_BYTES_MIN: u64 = 64 << 10;

/// What a stream shows of itself, without a lock.
#[derive(Default)]
pub(super) struct Signs {
    /// Record bytes that came in all, a begun record included as of its last read.
    pub(super) received_bytes: AtomicU64,
    /// Grants sent.
    pub(super) grants: AtomicU64,
    /// A record has begun and is not whole.
    pub(super) begun: AtomicBool,
    /// A record waits for the journal.
    pub(super) at_sink: AtomicBool,
    /// Told to give way although a record has begun.
    blamed: AtomicBool,
    served: Notify,
    told: Notify,
}

impl Signs {
    /// A record is whole, with which `received_bytes` have come, and goes to the sink.
    pub(super) fn goes_to_sink(&self, received_bytes: u64) {
        self.at_sink.store(true, Ordering::Relaxed);
        self.begun.store(false, Ordering::Relaxed);
        self.received_bytes.store(received_bytes, Ordering::Relaxed);
    }

    /// Whether it was told to give way although a record has begun.
    pub(super) fn is_blamed(&self) -> bool {
        self.blamed.swap(false, Ordering::Relaxed)
    }
}

/// Bytes that can be leased, and how many of them each way to the disk has.
struct Pot {
    all_bytes: u64,
    free_bytes: u64,
    held_bytes: Vec<u64>,
    /// What other ways leave to each way.
    kept_bytes: u64,
}

impl Pot {
    fn new(all_bytes: u64, ways: usize) -> Self {
        let kept_bytes = (all_bytes / (2 * ways as u64)).max(RECORD_BYTES_MAX as u64);
        Self { all_bytes, free_bytes: all_bytes, held_bytes: vec![0; ways], kept_bytes }
    }

    /// What `way` may still take.
    fn open_bytes(&self, way: usize) -> u64 {
        let others = self.held_bytes.iter().enumerate().filter(|(other, _)| *other != way);
        if mutants::on(Mutant::WaysNotKept) {
            return self.free_bytes;
        }
        let kept_bytes: u64 = others.map(|(_, held_bytes)| self.kept_bytes.saturating_sub(*held_bytes)).sum();
        self.free_bytes.saturating_sub(kept_bytes)
    }

    /// What `way` may take beyond need: a quarter is left for those who need it.
    fn spare_bytes(&self, way: usize) -> u64 {
        self.open_bytes(way).saturating_sub(self.all_bytes / 4)
    }

    fn take(&mut self, way: usize, bytes: u64) {
        self.free_bytes -= bytes;
        self.held_bytes[way] += bytes;
    }

    fn give_back(&mut self, way: usize, bytes: u64) {
        self.free_bytes += bytes;
        self.held_bytes[way] -= bytes;
    }

    const fn is_tight(&self) -> bool {
        self.free_bytes < self.all_bytes / 4
    }
}

struct Entry {
    account: u64,
    way: usize,
    bytes: u64,
    /// Waits for this many bytes; 0 if it does not wait.
    need_bytes: u64,
    /// How much more than that is welcome.
    want_bytes: u64,
    signs: Arc<Signs>,
    /// What its signs showed when there last was progress, and when that was.
    seen: (u64, u64),
    since: Duration,
}

impl Entry {
    /// Looks at the signs; whether nothing has come of the lease for [`PATIENCE`].
    fn stands(&mut self, now: Duration) -> bool {
        let received_bytes = self.signs.received_bytes.load(Ordering::Relaxed);
        let grants = self.signs.grants.load(Ordering::Relaxed);
        let begun = self.signs.begun.load(Ordering::Relaxed);
        let enough_bytes = if begun { PROGRESS_BYTES } else { CREDIT_BASE_BYTES };
        let moved = received_bytes.saturating_sub(self.seen.0) >= enough_bytes || grants != self.seen.1;
        if moved || self.signs.at_sink.load(Ordering::Relaxed) {
            self.seen = (received_bytes, grants);
            self.since = now;
        }
        now >= self.since + PATIENCE
    }
}

struct State {
    pot: Pot,
    accounts: BTreeMap<u64, Pot>,
    /// Those that hold bytes or wait for some.
    leases: BTreeMap<u64, Entry>,
    queue: VecDeque<u64>,
    looked: Duration,
}

impl State {
    /// What lease `id` gets now: all that it needs, and what it wants beyond that out of what is to spare.
    fn share(&self, id: u64) -> Option<u64> {
        let entry = self.leases.get(&id)?;
        let account = self.accounts.get(&entry.account)?;
        let (open_bytes, own_bytes) = (self.pot.open_bytes(entry.way), account.open_bytes(entry.way));
        let (spare_bytes, own_spare_bytes) = (self.pot.spare_bytes(entry.way), account.spare_bytes(entry.way));
        let welcome_bytes = entry.want_bytes.min(spare_bytes / 4).min(own_spare_bytes * 2 / 3);
        (entry.need_bytes <= open_bytes.min(own_bytes)).then(|| entry.need_bytes.max(welcome_bytes))
    }

    fn take(&mut self, id: u64, bytes: u64) {
        let Some(entry) = self.leases.get_mut(&id) else { return };
        let Some(account) = self.accounts.get_mut(&entry.account) else { return };
        account.take(entry.way, bytes);
        self.pot.take(entry.way, bytes);
        entry.bytes += bytes;
    }

    /// Takes back all but `bytes` of a lease, and ends its waiting. What it still has.
    fn cut(&mut self, id: u64, bytes: u64) -> u64 {
        let Some(entry) = self.leases.get_mut(&id) else { return 0 };
        let more_bytes = entry.bytes.saturating_sub(bytes);
        entry.bytes -= more_bytes;
        let waited = std::mem::take(&mut entry.need_bytes) > 0;
        let (left_bytes, account, way) = (entry.bytes, entry.account, entry.way);
        self.pot.give_back(way, more_bytes);
        if let Some(account) = self.accounts.get_mut(&account) {
            account.give_back(way, more_bytes);
        }
        if left_bytes == 0 {
            self.leases.remove(&id);
        }
        if waited {
            self.queue.retain(|waiting| *waiting != id);
        }
        left_bytes
    }

    /// Gives memory to those who wait, in their order. Who cannot have it stops those behind it that want of the same:
    /// of its way, and of its account if that is what has no more.
    fn serve(&mut self) {
        let (mut full_ways, mut full_accounts) = (BTreeSet::new(), BTreeSet::new());
        let mut waiting = std::mem::take(&mut self.queue);
        waiting.retain(|id| {
            let Some(entry) = self.leases.get(id) else { return false };
            let (account, way) = (entry.account, entry.way);
            if full_ways.contains(&way) || full_accounts.contains(&(account, way)) {
                return true;
            }
            let Some(bytes) = self.share(*id) else {
                let all_have_less = self.pot.open_bytes(way) < entry.need_bytes;
                if all_have_less {
                    full_ways.insert(way)
                } else {
                    full_accounts.insert((account, way))
                };
                return true;
            };
            self.take(*id, bytes);
            if let Some(entry) = self.leases.get_mut(id) {
                entry.need_bytes = 0;
                entry.signs.served.notify_one();
            }
            false
        });
        self.queue = waiting;
    }

    /// Tells leases of which nothing comes to give way: idle ones at once, begun records only as far as others wait for
    /// their bytes, the one first that stands the longest.
    fn press(&mut self, now: Duration) {
        if now < self.looked + LOOK {
            return;
        }
        self.looked = now;
        let mut standing = Vec::new();
        for (id, entry) in self.leases.iter_mut().filter(|(_, entry)| entry.bytes > 0) {
            let begun = entry.signs.begun.load(Ordering::Relaxed);
            match (entry.stands(now), begun && !mutants::on(Mutant::SlowNeverGivesWay)) {
                (false, _) => {}
                (true, false) => entry.signs.told.notify_one(),
                (true, true) => standing.push((entry.since, *id)),
            }
        }
        standing.sort_unstable();
        let mut told = BTreeSet::new();
        for id in &self.queue {
            let Some(waiter) = self.leases.get(id) else { continue };
            let own =
                self.accounts.get(&waiter.account).is_some_and(|pot| pot.open_bytes(waiter.way) < waiter.need_bytes);
            let mut missing_bytes = waiter.need_bytes;
            for (_, id) in &standing {
                let Some(entry) = self.leases.get(id) else { continue };
                if missing_bytes > 0 && (!own || entry.account == waiter.account) && told.insert(*id) {
                    missing_bytes = missing_bytes.saturating_sub(entry.bytes);
                    entry.signs.blamed.store(true, Ordering::Relaxed);
                    entry.signs.told.notify_one();
                }
            }
            if told.len() == standing.len() {
                return;
            }
        }
    }
}

/// All memory for records on their way.
pub(super) struct Memory {
    state: Mutex<State>,
    /// Memory is given record by record.
    tight: AtomicBool,
    numbers: AtomicU64,
    ways: usize,
    account_bytes: u64,
    leased: metrics::Gauge,
    waiting: metrics::Gauge,
}

impl Memory {
    /// Of `all_bytes`, of which an agent may have `account_bytes`, for records that go `ways` ways from here. Both are at
    /// least what lets one of the largest records pass on each way beside one that stands.
    pub(super) fn new(all_bytes: u64, account_bytes: u64, ways: usize) -> Self {
        let ways = ways.max(1);
        let account_bytes = if mutants::on(Mutant::CreditUnbacked) { 1 << 40 } else { account_bytes };
        let account_bytes = account_bytes.max((ways as u64 + 1) * RECORD_BYTES_MAX as u64);
        let pot = Pot::new(all_bytes.max(account_bytes), ways);
        let state = State {
            pot,
            accounts: BTreeMap::new(),
            leases: BTreeMap::new(),
            queue: VecDeque::new(),
            looked: Duration::ZERO,
        };
        let (leased, waiting) =
            (metrics::gauge!(names::RECORD_MEMORY_BYTES), metrics::gauge!(names::RECORD_MEMORY_WAITING));
        let (state, tight, numbers) = (Mutex::new(state), AtomicBool::new(false), AtomicU64::new(0));
        Self { state, tight, numbers, ways, account_bytes, leased, waiting }
    }

    /// What one agent may have, beside the base of each of its disks.
    pub(super) const fn account_bytes(&self) -> u64 {
        self.account_bytes
    }

    /// An account for one agent.
    pub(super) fn account(self: &Arc<Self>) -> Account {
        let id = self.numbers.fetch_add(1, Ordering::Relaxed);
        self.state.lock().accounts.insert(id, Pot::new(self.account_bytes, self.ways));
        Account { memory: Arc::clone(self), id }
    }

    /// Whether memory is short, so that nobody should keep more than it uses.
    pub(super) fn is_tight(&self) -> bool {
        self.tight.load(Ordering::Relaxed)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock();
        let result = change(&mut state);
        state.serve();
        self.tight.store(state.pot.is_tight() || !state.queue.is_empty(), Ordering::Relaxed);
        self.leased.set((state.pot.all_bytes - state.pot.free_bytes) as f64);
        self.waiting.set(state.queue.len() as f64);
        result
    }
}

/// What one agent may have of the memory.
pub(super) struct Account {
    memory: Arc<Memory>,
    id: u64,
}

impl Account {
    /// An empty lease for a stream whose records go `way`.
    pub(super) fn lease(&self, way: usize) -> Lease {
        let id = self.memory.numbers.fetch_add(1, Ordering::Relaxed);
        let way = way.min(self.memory.ways - 1);
        Lease {
            memory: Arc::clone(&self.memory),
            account: self.id,
            id,
            way,
            bytes: 0,
            waits: false,
            signs: Arc::default(),
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.memory.state.lock().accounts.remove(&self.id);
    }
}

/// What one stream has of the memory. Given back when dropped.
pub(super) struct Lease {
    memory: Arc<Memory>,
    account: u64,
    id: u64,
    way: usize,
    bytes: u64,
    waits: bool,
    signs: Arc<Signs>,
}

impl Lease {
    /// What it has.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether it waits for what it asked for.
    pub(super) const fn waits(&self) -> bool {
        self.waits
    }

    /// What the stream is to show of itself.
    pub(super) const fn signs(&self) -> &Arc<Signs> {
        &self.signs
    }

    /// See [`Memory::is_tight`].
    pub(super) fn is_tight(&self) -> bool {
        self.memory.is_tight()
    }

    /// Asks for `need_bytes` in exchange for what it has, and for up to `want_bytes` if there is plenty. It may have them
    /// at once; else it waits: see [`Self::served`].
    pub(super) fn ask(&mut self, need_bytes: u64, want_bytes: u64, now: Duration) {
        let id = self.id;
        self.bytes = self.memory.change(|state| {
            state.cut(id, 0);
            state.leases.insert(id, self.entry(need_bytes.max(1), want_bytes, now));
            state.queue.push_back(id);
            state.serve();
            // Whoever finds nothing left looks for what others do not use.
            state.press(now);
            state.leases.get(&id).map_or(0, |entry| entry.bytes)
        });
        self.waits = self.bytes == 0;
    }

    fn entry(&self, need_bytes: u64, want_bytes: u64, now: Duration) -> Entry {
        let seen = (self.signs.received_bytes.load(Ordering::Relaxed), self.signs.grants.load(Ordering::Relaxed));
        let (account, way, signs) = (self.account, self.way, Arc::clone(&self.signs));
        Entry { account, way, bytes: 0, need_bytes, want_bytes, signs, seen, since: now }
    }

    /// Waits until it has what it asked for. May be dropped: it keeps its place.
    pub(super) async fn served(&self, clock: &dyn Clock) {
        loop {
            let news = self.signs.served.notified();
            if self.memory.state.lock().leases.get(&self.id).is_none_or(|entry| entry.need_bytes == 0) {
                return;
            }
            tokio::select! {
                biased;
                () = news => {}
                () = tokio::time::sleep(LOOK) => {
                    let now = clock.monotonic();
                    self.memory.change(|state| state.press(now));
                }
            }
        }
    }

    /// Takes note of what it was given, if it was.
    pub(super) fn look(&mut self) {
        if !self.waits {
            return;
        }
        let state = self.memory.state.lock();
        if let Some(entry) = state.leases.get(&self.id).filter(|entry| entry.need_bytes == 0) {
            self.bytes = entry.bytes;
            self.waits = false;
        }
    }

    /// Waits no longer.
    pub(super) fn withdraw(&mut self) {
        if self.waits {
            self.shrink_to(0);
        }
    }

    /// Takes more, up to `want_bytes` in all, if there is plenty and it is worth it.
    pub(super) fn grow(&mut self, want_bytes: u64, now: Duration) {
        if self.waits || want_bytes < self.bytes + GROWTH_BYTES_MIN {
            return;
        }
        let (id, more_bytes) = (self.id, want_bytes - self.bytes);
        self.bytes = self.memory.change(|state| {
            let entry = state.leases.entry(id).or_insert_with(|| self.entry(0, 0, now));
            entry.want_bytes = more_bytes;
            if let Some(bytes) = state.share(id).filter(|bytes| *bytes >= GROWTH_BYTES_MIN) {
                state.take(id, bytes);
            }
            state.leases.get(&id).map_or(0, |entry| entry.bytes)
        });
        self.drop_empty();
    }

    /// Gives back all but `bytes`, and waits no longer.
    pub(super) fn shrink_to(&mut self, bytes: u64) {
        let id = self.id;
        self.bytes = self.memory.change(|state| state.cut(id, bytes));
        self.waits = false;
    }

    fn drop_empty(&self) {
        if self.bytes == 0 {
            self.memory.state.lock().leases.remove(&self.id);
        }
    }

    /// Waits until it is told to give way.
    pub(super) async fn told(&self) {
        self.signs.told.notified().await;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.waits || self.bytes > 0 {
            self.shrink_to(0);
        }
    }
}

#[cfg(test)]
mod tests;
