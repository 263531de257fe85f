//! Bytes per second that are kept to on average: token buckets whose rate may change at any moment.
//!
//! A bucket is *open* while it owes nothing. Whoever finds it open goes on with all that it has in hand, which is charged
//! and may bring the bucket into debt; it opens again when the rate has paid the debt. So over any span of time at most
//! the rate times the span, [`BURST`] of it, and what one had in hand go through; nothing is cut into pieces for it, and
//! nobody who was let in waits half-way.
//!
//! Those who wait for one bucket stand in a line, because at an opening only one goes: if all who wait went at once, each with
//! all that it has in hand, then whoever came next would wait until the rate has paid for all of them. Who takes little goes
//! first: see [`Line`]. The one in front watches the clock, and whoever leaves tells the next.
//!
//! A rate is one thing and its buckets another: all disks keep to one rate, each with a bucket of its own.
//! Who waits for buckets, whose turns they are, and how a stream pays for its credit: see [`hold`].

mod hold;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

pub use self::hold::{Hold, Pace, Toll};
use super::{Clock, watch};

/// What an idle bucket saves up: enough to begin at once, too little to be noticed as a burst.
pub const BURST: Duration = Duration::from_millis(250);
/// A limit counts as holding something up for so long after it last did: a look must not fall into a gap.
const HOLDS_FOR: Duration = Duration::from_secs(5);
/// There is no limit. No rate is zero.
const FREE: u64 = 0;

/// One bucket. Pure: times come in as arguments, those of one monotonic clock.
#[derive(Debug, Default)]
struct Bucket {
    /// Bytes per second; [`FREE`] without a limit.
    rate: u64,
    /// In bytes times nanoseconds per second, so that nothing is ever rounded away; negative in debt.
    balance: i128,
    at: Duration,
    /// How often the limit had ended when the balance began: what was charged before that is no part of it.
    era: u64,
}

/// Units of a balance in a byte.
const UNITS: i128 = 1_000_000_000;

impl Bucket {
    /// Brings it to `now`, from when on `rate` counts. A limit that has ended meanwhile, by its `era`, left no debt.
    fn settle(&mut self, now: Duration, rate: u64, era: u64) {
        if era > self.era {
            (self.era, self.rate, self.balance) = (era, FREE, 0);
        }
        let passed = now.saturating_sub(self.at);
        self.at = self.at.max(now);
        let paid = i128::from(self.rate) * passed.as_nanos() as i128;
        // A limit that begins has nothing saved up.
        let saved_max = if self.rate == FREE { 0 } else { i128::from(rate) * BURST.as_nanos() as i128 };
        self.balance = if rate == FREE { 0 } else { (self.balance + paid).min(saved_max) };
        self.rate = rate;
    }

    /// In which era it was charged; `None` without a limit.
    fn charge(&mut self, bytes: u64) -> Option<u64> {
        if self.rate == FREE {
            return None;
        }
        self.balance -= i128::from(bytes) * UNITS;
        Some(self.era)
    }

    /// What was charged in `era` and is not used; whether that is still part of the balance. The next [`Bucket::settle`] lets
    /// no more of it stand than an idle bucket saves.
    fn refund(&mut self, bytes: u64, era: u64) -> bool {
        let counts = self.rate != FREE && self.era == era;
        if counts {
            self.balance += i128::from(bytes) * UNITS;
        }
        counts
    }

    /// How long until it is open; `None` if it is.
    fn opens_in(&self) -> Option<Duration> {
        let owed = u128::try_from(-self.balance).unwrap_or(0);
        let nanos = owed.div_ceil(u128::from(self.rate.max(1)));
        // Centuries, at most.
        (owed > 0).then(|| Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }
}

/// A limit in bytes per second that may change at any moment, and what waits because of it.
pub struct Rate {
    clock: Arc<dyn Clock>,
    bytes_per_second: AtomicU64,
    /// How often a limit has ended.
    eras: AtomicU64,
    changes: watch::Sender<Option<u64>>,
    held_bytes: AtomicU64,
    /// Monotonic milliseconds of when something last waited, and one more; 0 if nothing ever has.
    held_at: AtomicU64,
}

impl fmt::Debug for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rate({:?})", self.get())
    }
}

impl Rate {
    /// No limit yet.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            clock,
            bytes_per_second: AtomicU64::new(FREE),
            eras: AtomicU64::new(0),
            changes: watch::Sender::new(None),
            held_bytes: AtomicU64::new(0),
            held_at: AtomicU64::new(0),
        })
    }

    /// The limit.
    #[must_use]
    pub fn get(&self) -> Option<u64> {
        Some(self.bytes_per_second.load(Ordering::Acquire)).filter(|rate| *rate != FREE)
    }

    /// Sets it, `None` for no limit; whether that changed it. Those who wait learn of it at once.
    pub fn set(&self, bytes_per_second: Option<u64>) -> bool {
        let rate = bytes_per_second.map_or(FREE, |rate| rate.max(1));
        let changed = self.bytes_per_second.swap(rate, Ordering::AcqRel) != rate;
        if changed {
            if rate == FREE {
                self.eras.fetch_add(1, Ordering::AcqRel);
            }
            self.changes.send_replace(self.get());
        }
        changed
    }

    /// Bytes that wait for it now.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes.load(Ordering::Relaxed)
    }

    /// Whether something waits for it, or did a moment ago.
    #[must_use]
    pub fn holds(&self) -> bool {
        let held_at = self.held_at.load(Ordering::Relaxed);
        let lately = self.now_ms().saturating_sub(held_at) < HOLDS_FOR.as_millis() as u64;
        self.get().is_some() && (self.held_bytes() > 0 || held_at > 0 && lately)
    }

    fn now_ms(&self) -> u64 {
        self.clock.monotonic().as_millis() as u64 + 1
    }
}

/// Where one stands in a [`Line`]: first those that are done first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// Where it is done, once it has what it wants.
    done: u64,
    arrival: u64,
    start: u64,
}

/// Those who wait for one bucket, in the order in which they go (fair queueing).
///
/// All count what they had on one scale. Each starts where it was done the last time, but not behind the start of the last one
/// who went, so that nobody saves up turns while it wants none; and who is done first with what it wants now goes first. Who
/// takes little thus goes before those who take much, however many they are, and who takes much takes turns with its like.
/// The scale only grows, so nobody waits for ever.
#[derive(Debug, Default)]
struct Line {
    /// As many as there are holds of this bucket.
    waiting: BTreeMap<Place, Arc<Notify>>,
    arrivals: u64,
    /// The start of the last one who went.
    start: u64,
}

/// Whether it is one's turn.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    Now,
    /// The first in the line, before a bucket that opens in so long.
    In(Duration),
    /// Others go before. The one who waits is told when it is the first.
    Later,
}

#[derive(Debug, Default)]
struct State {
    bucket: Bucket,
    line: Line,
}

/// A bucket of a [`Rate`].
#[derive(Debug)]
pub struct Limiter {
    rate: Arc<Rate>,
    state: Mutex<State>,
    /// Length of the line, for those who need no more than that.
    waiting: AtomicUsize,
}

impl Limiter {
    /// A bucket that owes nothing.
    #[must_use]
    pub fn new(rate: &Arc<Rate>) -> Arc<Self> {
        Arc::new(Self { rate: Arc::clone(rate), state: Mutex::default(), waiting: AtomicUsize::new(0) })
    }

    fn is_limited(&self) -> bool {
        // Without a limit there is nothing to count, and no lock to wait for.
        self.rate.bytes_per_second.load(Ordering::Relaxed) != FREE
    }

    /// Counts `bytes` that go through. In which of the limit's eras; `None` without a limit.
    fn charge(&self, bytes: u64) -> Option<u64> {
        if self.is_limited() { self.settled(|state| state.bucket.charge(bytes)) } else { None }
    }

    /// Counts `bytes` no more that were counted in `era` and do not go through. Whether they still counted.
    fn refund(&self, bytes: u64, era: u64) -> bool {
        self.is_limited()
            && bytes > 0
            && self.settled(|state| {
                let counted = state.bucket.refund(bytes, era);
                state.line.tell_first();
                counted
            })
    }

    fn opens_in(&self) -> Option<Duration> {
        self.rate.get().and_then(|_| self.settled(|state| state.bucket.opens_in()))
    }

    /// Asks for a turn to take about `takes_bytes`, at `place` if one was taken before. `done` is where it was done before.
    fn turn(&self, place: &mut Option<Place>, done: u64, takes_bytes: u64, news: &Arc<Notify>) -> Turn {
        self.settled(|state| {
            let line = &mut state.line;
            let own = *place.get_or_insert_with(|| line.place(done, takes_bytes));
            line.waiting.entry(own).or_insert_with(|| Arc::clone(news));
            self.waiting.store(line.waiting.len(), Ordering::Relaxed);
            if line.waiting.first_key_value().is_some_and(|(first, _)| *first < own) {
                return Turn::Later;
            }
            state.bucket.opens_in().map_or(Turn::Now, Turn::In)
        })
    }

    /// Leaves the line, if it stands there, and tells the next.
    fn leave(&self, place: Place) {
        self.left(&mut self.state.lock().line, place);
    }

    fn left(&self, line: &mut Line, own: Place) {
        let was_first = line.waiting.first_key_value().is_some_and(|(first, _)| *first == own);
        line.waiting.remove(&own);
        if was_first {
            line.tell_first();
        }
        self.waiting.store(line.waiting.len(), Ordering::Relaxed);
    }

    /// Goes with `bytes`, from `place` if it stood in the line, and moves on where it is `done`.
    fn go(&self, place: Option<Place>, done: &AtomicU64, bytes: u64) {
        let mut state = self.state.lock();
        let line = &mut state.line;
        if let Some(own) = place {
            self.left(line, own);
        }
        let start = place.map_or(line.start, |place| place.start).max(done.load(Ordering::Relaxed));
        line.start = line.start.max(place.map_or(start, |place| place.start));
        done.store(start.saturating_add(bytes), Ordering::Relaxed);
    }

    /// Did not use `bytes` with which it went: moves back where it is `done`.
    fn undo(&self, done: &AtomicU64, bytes: u64) {
        let _state = self.state.lock();
        done.store(done.load(Ordering::Relaxed).saturating_sub(bytes), Ordering::Relaxed);
    }

    fn settled<T>(&self, then: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock();
        // In this order: of a limit that begins after another one's end, that end is known.
        let rate = self.rate.bytes_per_second.load(Ordering::Acquire);
        let era = self.rate.eras.load(Ordering::Acquire);
        state.bucket.settle(self.rate.clock.monotonic(), rate, era);
        then(&mut state)
    }
}

impl Line {
    fn place(&mut self, done: u64, takes_bytes: u64) -> Place {
        self.arrivals += 1;
        let start = done.max(self.start);
        Place { done: start.saturating_add(takes_bytes), arrival: self.arrivals, start }
    }

    fn tell_first(&self) {
        if let Some((_, news)) = self.waiting.first_key_value() {
            news.notify_one();
        }
    }
}

#[cfg(test)]
mod tests;
