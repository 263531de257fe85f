//! Who keeps to limits: all the buckets of one stream, its waiting for them, and what it pays.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use super::{BURST, Limiter, Place, Turn};
use crate::flow::watch;

/// Longest sleep: another look costs nothing.
const LONG: Duration = Duration::from_secs(3600);

/// All limits that somebody keeps to; by default none. A clone keeps to the same ones.
#[derive(Debug, Clone, Default)]
pub struct Pace(Vec<Arc<Limiter>>);

impl Pace {
    /// Keeps to all of `limiters`. They are waited for one after the other: first those of one's own, because who waits
    /// for one that is shared must be able to go when its turn comes.
    #[must_use]
    pub fn new(limiters: Vec<Arc<Limiter>>) -> Self {
        Self(limiters)
    }

    /// Counts `bytes` that go through.
    pub fn charge(&self, bytes: u64) {
        self.0.iter().for_each(|limiter| limiter.charge(bytes));
    }

    fn refund(&self, bytes: u64) {
        self.0.iter().for_each(|limiter| limiter.refund(bytes));
    }

    fn is_limited(&self) -> bool {
        self.0.iter().any(|limiter| limiter.is_limited())
    }

    /// How long until more may go through; `None` if it may now.
    #[must_use]
    pub fn opens_in(&self) -> Option<Duration> {
        self.0.iter().filter_map(|limiter| limiter.opens_in()).max()
    }

    /// Whether more may go through, and nobody waits to.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.0.iter().all(|limiter| limiter.is_idle())
    }

    /// Of `window_bytes` as many as are to be let in at once, so that what comes stays even: what the smallest of the limits
    /// lets through in [`BURST`], shared by those who wait for it. Beside a window each has what its next record needs.
    #[must_use]
    pub fn window(&self, window_bytes: u64) -> u64 {
        let shares = self.0.iter().filter_map(|limiter| {
            let burst_bytes = (u128::from(limiter.rate.get()?) * BURST.as_millis() / 1000) as u64;
            Some(burst_bytes / limiter.waiting.load(Ordering::Relaxed).max(1) as u64)
        });
        // No window at all would be a stop.
        shares.min().map_or(window_bytes, |share| window_bytes.min(share.max(1)))
    }

    /// Who may come to wait.
    #[must_use]
    pub fn hold(&self) -> Hold {
        Hold { pace: self.clone(), stands: Vec::new(), waits: None, passed: false, news: Arc::default() }
    }
}

/// What one stream pays for the records that come on it, each byte once.
///
/// Credit is paid for when it is granted: what is on its way is then counted already when the next one asks for its turn. What
/// is granted and not used is paid back. A stream's first credit is paid for only as it is used, because most streams are idle.
#[derive(Debug)]
pub struct Toll {
    pace: Pace,
    /// Credit was granted before.
    begun: AtomicBool,
    /// Up to where what comes is paid for.
    paid_bytes: AtomicU64,
    /// What has come.
    used_bytes: AtomicU64,
}

impl Toll {
    /// Nothing has come.
    #[must_use]
    pub const fn new(pace: Pace) -> Self {
        let (paid_bytes, used_bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { pace, begun: AtomicBool::new(false), paid_bytes, used_bytes }
    }

    /// `bytes` in all may come from now on. What was paid for that.
    pub fn ahead(&self, bytes: u64) -> u64 {
        let first = !self.begun.swap(true, Ordering::Relaxed);
        // What is in hand when a limit begins is paid for as it comes.
        if first || !self.pace.is_limited() { 0 } else { self.pay(bytes) }
    }

    /// `bytes` in all have come.
    pub fn used(&self, bytes: u64) {
        self.used_bytes.store(bytes, Ordering::Relaxed);
        self.pay(bytes);
    }

    /// Beyond `bytes` in all nothing is expected any more. What comes all the same is paid for as it comes.
    pub fn back(&self, bytes: u64) {
        let bytes = bytes.max(self.used_bytes.load(Ordering::Relaxed));
        let paid_bytes = self.paid_bytes.fetch_min(bytes, Ordering::Relaxed);
        self.pace.refund(paid_bytes.saturating_sub(bytes));
    }

    fn pay(&self, bytes: u64) -> u64 {
        let due_bytes = bytes.saturating_sub(self.paid_bytes.fetch_max(bytes, Ordering::Relaxed));
        if due_bytes > 0 {
            self.pace.charge(due_bytes);
        }
        due_bytes
    }
}

impl Drop for Toll {
    fn drop(&mut self) {
        self.back(0);
    }
}

/// Where one stands with one limiter.
#[derive(Debug, Default)]
struct Stand {
    place: Option<Place>,
    /// Where it was done the last time: see [`super::Line`].
    done: u64,
}

/// What one waits for, and shows as waiting there.
#[derive(Debug)]
struct Waits {
    limiter: Arc<Limiter>,
    changes: watch::Receiver<Option<u64>>,
    held_bytes: u64,
}

/// One that waits now and then, in line with others, and shows how much with it.
///
/// Who is let through by [`Hold::look`] keeps the others back until it says that it [went](Hold::went), [steps
/// aside](Hold::step_aside) or [waits no longer](Hold::release). So between these nothing may be waited for.
#[derive(Debug)]
pub struct Hold {
    pace: Pace,
    /// One for each limiter, from the first time on that it waits.
    stands: Vec<Stand>,
    waits: Option<Waits>,
    /// It was let through and has not gone.
    passed: bool,
    news: Arc<Notify>,
}

impl Hold {
    /// Looks whether about `takes_bytes` may go through now, and shows `held_bytes` as waiting if not. How long they wait at most
    /// for another look.
    pub fn look(&mut self, held_bytes: u64, takes_bytes: u64) -> Option<Duration> {
        self.hide();
        if self.passed {
            return None;
        }
        if !self.pace.is_limited() {
            self.leave(0, 0);
            return None;
        }
        self.stands.resize_with(self.pace.0.len(), Stand::default);
        for at in 0..self.stands.len() {
            let limiter = Arc::clone(&self.pace.0[at]);
            // A change before the changes were watched is seen now.
            let changes = limiter.rate.changes.subscribe();
            let wait = match self.turn(at, &limiter, takes_bytes) {
                Turn::Now => continue,
                Turn::In(wait) => wait,
                Turn::Later => LONG,
            };
            // Who cannot go on here holds nobody up there.
            self.leave(at + 1, 0);
            limiter.rate.held_bytes.fetch_add(held_bytes, Ordering::Relaxed);
            if held_bytes > 0 {
                limiter.rate.held_at.store(limiter.rate.now_ms(), Ordering::Relaxed);
            }
            self.waits = Some(Waits { limiter, changes, held_bytes });
            return Some(wait);
        }
        self.passed = true;
        None
    }

    fn turn(&mut self, at: usize, limiter: &Limiter, takes_bytes: u64) -> Turn {
        let stand = &mut self.stands[at];
        if limiter.rate.get().is_none() {
            if let Some(place) = stand.place.take() {
                limiter.leave(Some(place), stand.done, 0);
            }
            return Turn::Now;
        }
        limiter.turn(&mut stand.place, stand.done, takes_bytes, &self.news)
    }

    /// See [`Pace::window`].
    #[must_use]
    pub fn window(&self, window_bytes: u64) -> u64 {
        self.pace.window(window_bytes)
    }

    /// See [`Pace::is_idle`].
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.pace.is_idle()
    }

    /// It went, with `bytes` that were charged: the next one may.
    pub fn went(&mut self, bytes: u64) {
        self.release_with(bytes);
    }

    /// It was let through, and something else keeps it: others may go, and it need not wait again.
    pub fn step_aside(&mut self) {
        self.leave(0, 0);
    }

    /// Waits no longer.
    pub fn release(&mut self) {
        self.release_with(0);
    }

    fn release_with(&mut self, bytes: u64) {
        self.hide();
        self.leave(0, bytes);
        self.passed = false;
    }

    fn hide(&mut self) {
        if let Some(Waits { limiter, held_bytes, .. }) = self.waits.take() {
            limiter.rate.held_bytes.fetch_sub(held_bytes, Ordering::Relaxed);
        }
    }

    /// Leaves the lines from `first` on with `bytes`.
    fn leave(&mut self, first: usize, bytes: u64) {
        for (stand, limiter) in self.stands.iter_mut().zip(&self.pace.0).skip(first) {
            let place = stand.place.take();
            if place.is_some() || bytes > 0 {
                stand.done = limiter.leave(place, stand.done, bytes);
            }
        }
    }

    /// Returns when it is time for another look: after `wait`, which the last look said, or when the limit it waits for has
    /// changed or lets it through. May be dropped.
    pub async fn opens(&mut self, wait: Option<Duration>) {
        let Some(waits) = &mut self.waits else {
            return std::future::pending().await;
        };
        tokio::select! {
            biased;
            _ = waits.changes.changed() => {}
            () = self.news.notified() => {}
            () = tokio::time::sleep(wait.unwrap_or(LONG).min(LONG)) => {}
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.release();
    }
}
