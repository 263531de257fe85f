//! Bytes per second that are kept to on average: token buckets whose rate may change at any moment.
//!
//! A bucket is *open* while it owes nothing. Whoever finds it open goes on with all that it has in hand, which is charged
//! and may bring the bucket into debt; it opens again when the rate has paid the debt. So over any span of time at most
//! the rate times the span, [`BURST`] of it, and what was in hand at the last opening go through; nothing is cut into pieces
//! for it, and nobody who was let in waits half-way.
//!
//! A rate is one thing and its buckets another: all disks keep to one rate, each with a bucket of its own.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::{Clock, watch};
use crate::limits::RECORD_BYTES_MAX;

/// What an idle bucket saves up: enough to begin at once, too little to be noticed as a burst.
pub const BURST: Duration = Duration::from_millis(250);
/// A limit counts as holding something up for so long after it last did: a look must not fall into a gap.
const HOLDS_FOR: Duration = Duration::from_secs(5);
/// Longest sleep: another look costs nothing.
const LONG: Duration = Duration::from_secs(3600);
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
}

/// Units of a balance in a byte.
const UNITS: i128 = 1_000_000_000;

impl Bucket {
    /// Brings it to `now`, from when on `rate` counts.
    fn settle(&mut self, now: Duration, rate: u64) {
        let passed = now.saturating_sub(self.at);
        self.at = self.at.max(now);
        let paid = i128::from(self.rate) * passed.as_nanos() as i128;
        // A limit that begins has nothing saved up.
        let saved_max = if self.rate == FREE { 0 } else { i128::from(rate) * BURST.as_nanos() as i128 };
        self.balance = if rate == FREE { 0 } else { (self.balance + paid).min(saved_max) };
        self.rate = rate;
    }

    fn charge(&mut self, bytes: u64) {
        if self.rate != FREE {
            self.balance -= i128::from(bytes) * UNITS;
        }
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

/// A bucket of a [`Rate`].
#[derive(Debug)]
pub struct Limiter {
    rate: Arc<Rate>,
    bucket: Mutex<Bucket>,
}

impl Limiter {
    /// A bucket that owes nothing.
    #[must_use]
    pub fn new(rate: &Arc<Rate>) -> Arc<Self> {
        Arc::new(Self { rate: Arc::clone(rate), bucket: Mutex::default() })
    }

    /// Counts `bytes` that go through.
    fn charge(&self, bytes: u64) {
        // Without a limit there is nothing to count, and no lock to wait for.
        if self.rate.bytes_per_second.load(Ordering::Relaxed) != FREE {
            self.settled(|bucket| bucket.charge(bytes));
        }
    }

    fn opens_in(&self) -> Option<Duration> {
        self.rate.get().and_then(|_| self.settled(|bucket| bucket.opens_in()))
    }

    fn settled<T>(&self, then: impl FnOnce(&mut Bucket) -> T) -> T {
        let (now, rate) = (self.rate.clock.monotonic(), self.rate.bytes_per_second.load(Ordering::Acquire));
        let mut bucket = self.bucket.lock();
        bucket.settle(now, rate);
        then(&mut bucket)
    }
}

/// All limits that somebody keeps to; by default none. A clone keeps to the same ones.
#[derive(Debug, Clone, Default)]
pub struct Pace(Vec<Arc<Limiter>>);

impl Pace {
    /// Keeps to all of `limiters`.
    #[must_use]
    pub fn new(limiters: Vec<Arc<Limiter>>) -> Self {
        Self(limiters)
    }

    /// Counts `bytes` that go through.
    pub fn charge(&self, bytes: u64) {
        self.0.iter().for_each(|limiter| limiter.charge(bytes));
    }

    /// How long until more may go through; `None` if it may now.
    #[must_use]
    pub fn opens_in(&self) -> Option<Duration> {
        self.0.iter().filter_map(|limiter| limiter.opens_in()).max()
    }

    /// Of `window_bytes` as many as are to be let in at once, so that what comes stays even: what the smallest of the limits
    /// lets through in [`BURST`], but at least the largest record.
    #[must_use]
    pub fn window(&self, window_bytes: u64) -> u64 {
        let rate = self.0.iter().filter_map(|limiter| limiter.rate.get()).min();
        let even = |rate: u64| (u128::from(rate) * BURST.as_millis() / 1000) as u64;
        rate.map_or(window_bytes, |rate| window_bytes.min(even(rate).max(RECORD_BYTES_MAX as u64)))
    }

    /// Who may come to wait.
    #[must_use]
    pub fn hold(&self) -> Hold {
        Hold { pace: self.clone(), bytes: 0, waits_for: Vec::new() }
    }
}

/// A limit that was shut at the last look, and its changes since.
#[derive(Debug)]
struct Shut {
    rate: Arc<Rate>,
    changes: watch::Receiver<Option<u64>>,
}

/// One that waits now and then, and shows how much with it.
#[derive(Debug)]
pub struct Hold {
    pace: Pace,
    bytes: u64,
    waits_for: Vec<Shut>,
}

impl Hold {
    /// Looks whether `bytes` may go through now, and shows them as waiting if not. How long they wait if nothing changes.
    pub fn look(&mut self, bytes: u64) -> Option<Duration> {
        self.release();
        let shut = self.pace.0.iter().filter(|limiter| limiter.opens_in().is_some());
        let shut = shut.map(|limiter| (Arc::clone(&limiter.rate), limiter.rate.changes.subscribe()));
        self.waits_for = shut.map(|(rate, changes)| Shut { rate, changes }).collect();
        if self.waits_for.is_empty() {
            return None;
        }
        self.bytes = bytes;
        for Shut { rate, .. } in &self.waits_for {
            rate.held_bytes.fetch_add(bytes, Ordering::Relaxed);
            if bytes > 0 {
                rate.held_at.store(rate.now_ms(), Ordering::Relaxed);
            }
        }
        // A change before the changes were watched is seen now.
        let wait = self.pace.opens_in();
        if wait.is_none() {
            self.release();
        }
        wait
    }

    /// See [`Pace::window`].
    #[must_use]
    pub fn window(&self, window_bytes: u64) -> u64 {
        self.pace.window(window_bytes)
    }

    /// Waits no longer.
    pub fn release(&mut self) {
        for Shut { rate, .. } in self.waits_for.drain(..) {
            rate.held_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }

    /// Returns when it is time for another look: after `wait`, which the last look said, or when one of the limits that were
    /// shut has changed. May be dropped.
    pub async fn opens(&mut self, wait: Option<Duration>) {
        if self.waits_for.is_empty() {
            return std::future::pending().await;
        }
        let all = self.waits_for.iter_mut().map(|shut| Box::pin(shut.changes.changed()));
        tokio::select! {
            biased;
            _ = futures_util::future::select_all(all) => {}
            () = tokio::time::sleep(wait.unwrap_or(Duration::MAX).min(LONG)) => {}
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests;
