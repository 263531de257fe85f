//! Who keeps to limits: all the buckets of a disk, the waiting of its streams for them, and what they pay.
//!
//! Turns are a disk's ([`Pace`]), whatever streams it comes on and whatever agent it belongs to: each disk has a recovery point of
//! its own to keep up, and a machine is whole only with all of its disks. A disk's stream ([`Hold`], [`Toll`]) may end and
//! come again at any time, and that must be worth nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{BURST, Limiter, Place, Turn};
use crate::flow::watch;

/// Longest sleep: another look costs nothing.
const LONG: Duration = Duration::from_secs(3600);

/// One limit that somebody keeps to.
#[derive(Debug)]
struct Member {
    limiter: Arc<Limiter>,
    /// Where it was done the last time: see [`super::Line`]. Changed with the limiter's lock held.
    done: AtomicU64,
}

/// All limits that somebody keeps to; by default none. A clone is the same somebody: what its streams took before counts when
/// they want more, so nobody gets more turns by more streams, or by coming again.
#[derive(Debug, Clone, Default)]
pub struct Pace(Arc<[Member]>);

impl Pace {
    /// Keeps to all of `limiters`. They are waited for one after the other: first those of one's own, because who waits
    /// for one that is shared must be able to go when its turn comes.
    #[must_use]
    pub fn new(limiters: Vec<Arc<Limiter>>) -> Self {
        Self(limiters.into_iter().map(|limiter| Member { limiter, done: AtomicU64::new(0) }).collect())
    }

    fn limiters(&self) -> impl Iterator<Item = &Limiter> {
        self.0.iter().map(|member| &*member.limiter)
    }

    /// Counts `bytes` that go through.
    pub fn charge(&self, bytes: u64) {
        for limiter in self.limiters() {
            limiter.charge(bytes);
        }
    }

    /// Whether there is any limit now.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.limiters().any(Limiter::is_limited)
    }

    /// How long until more may go through; `None` if it may now.
    #[must_use]
    pub fn opens_in(&self) -> Option<Duration> {
        self.limiters().filter_map(Limiter::opens_in).max()
    }

    /// Of `window_bytes` as many as are to be let in at once, so that what comes stays even: what the smallest of the limits
    /// lets through in [`BURST`], shared by those who wait for it. Beside a window each has what its next record needs.
    #[must_use]
    pub fn window(&self, window_bytes: u64) -> u64 {
        let shares = self.limiters().filter_map(|limiter| {
            let burst_bytes = (u128::from(limiter.rate.get()?) * BURST.as_millis() / 1000) as u64;
            Some(burst_bytes / limiter.waiting.load(Ordering::Relaxed).max(1) as u64)
        });
        // No window at all would be a stop.
        shares.min().map_or(window_bytes, |share| window_bytes.min(share.max(1)))
    }

    /// Who may come to wait.
    #[must_use]
    pub fn hold(&self) -> Hold {
        Hold { pace: self.clone(), stands: Vec::new(), waits: None, news: Arc::default() }
    }
}

/// What one stream pays for the records that come on it, each byte once.
///
/// Credit is paid for when it is granted, the first too: what is on its way is then counted already when the next one asks for
/// its turn. What is granted and not used is paid back, to those limits that were charged with it. Credit of a time without a
/// limit is paid for as it is used.
#[derive(Debug)]
pub struct Toll {
    pace: Pace,
    /// What has come.
    used_bytes: AtomicU64,
    paid: Mutex<Paid>,
}

/// How far a stream has paid.
#[derive(Debug, Default)]
struct Paid {
    /// Up to where what comes is paid for.
    until_bytes: u64,
    /// For each limit, from the first payment on.
    charges: Vec<Charge>,
}

/// From where to the end of what is paid one limit was charged.
#[derive(Debug, Default, Clone, Copy)]
struct Charge {
    /// The era of the limit in which it was; none if it never was. What was charged in an era before is no debt any more.
    era: Option<u64>,
    from_bytes: u64,
}

impl Toll {
    /// Nothing has come.
    #[must_use]
    pub fn new(pace: Pace) -> Self {
        Self { pace, used_bytes: AtomicU64::new(0), paid: Mutex::default() }
    }

    /// `bytes` in all may come from now on. What was paid for that.
    pub fn ahead(&self, bytes: u64) -> u64 {
        self.pay(bytes, self.used_bytes.load(Ordering::Relaxed))
    }

    /// `bytes` in all have come.
    pub fn used(&self, bytes: u64) {
        let before_bytes = self.used_bytes.swap(bytes, Ordering::Relaxed);
        self.pay(bytes, before_bytes);
    }

    /// Beyond `bytes` in all nothing is expected any more. What comes all the same is paid for as it comes.
    pub fn back(&self, bytes: u64) {
        let bytes = bytes.max(self.used_bytes.load(Ordering::Relaxed));
        let mut paid = self.paid.lock();
        let was_bytes = paid.until_bytes;
        if was_bytes <= bytes {
            return;
        }
        paid.until_bytes = bytes;
        for (charge, Member { limiter, done }) in paid.charges.iter_mut().zip(&*self.pace.0) {
            let unused_bytes = was_bytes.saturating_sub(charge.from_bytes.max(bytes));
            charge.from_bytes = charge.from_bytes.min(bytes);
            if charge.era.is_some_and(|era| limiter.refund(unused_bytes, era)) {
                limiter.undo(done, unused_bytes);
            }
        }
    }

    /// Pays up to `bytes`, of which `free_bytes` are not to be paid for.
    fn pay(&self, bytes: u64, free_bytes: u64) -> u64 {
        // Nothing is written down without a limit: what has come is known, and what is in hand then is paid for as it comes.
        if !self.pace.is_limited() {
            return 0;
        }
        let mut paid = self.paid.lock();
        let from_bytes = paid.until_bytes.max(free_bytes);
        let due_bytes = bytes.saturating_sub(from_bytes);
        if due_bytes == 0 {
            return 0;
        }
        paid.until_bytes = bytes;
        paid.charges.resize_with(self.pace.0.len(), Charge::default);
        for (charge, limiter) in paid.charges.iter_mut().zip(self.pace.limiters()) {
            let era = limiter.charge(due_bytes);
            if era.is_some() && charge.era != era {
                *charge = Charge { era, from_bytes };
            }
        }
        due_bytes
    }
}

impl Drop for Toll {
    fn drop(&mut self) {
        self.back(0);
    }
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
/// aside](Hold::step_aside) or [waits no longer](Hold::release). So between these nothing may be waited for; and who steps
/// aside must look again, because what let it through is for others then.
#[derive(Debug)]
pub struct Hold {
    pace: Pace,
    /// Its place with each limiter, from the first time on that it waits. Who stepped aside has one and does not stand there.
    stands: Vec<Option<Place>>,
    waits: Option<Waits>,
    news: Arc<Notify>,
}

impl Hold {
    /// Looks whether about `takes_bytes` may go through now, and shows `held_bytes` as waiting if not. How long they wait at most
    /// for another look.
    pub fn look(&mut self, held_bytes: u64, takes_bytes: u64) -> Option<Duration> {
        self.hide();
        if !self.pace.is_limited() {
            self.release();
            return None;
        }
        self.stands.resize(self.pace.0.len(), None);
        let pace = self.pace.clone();
        for (at, member) in pace.0.iter().enumerate() {
            let limiter = &member.limiter;
            // A change before the changes were watched is seen now.
            let changes = limiter.rate.changes.subscribe();
            let wait = match self.turn(at, member, takes_bytes) {
                Turn::Now => continue,
                Turn::In(wait) => wait,
                Turn::Later => LONG,
            };
            // Who cannot go on here holds nobody up there.
            self.leave(at + 1);
            limiter.rate.held_bytes.fetch_add(held_bytes, Ordering::Relaxed);
            if held_bytes > 0 {
                limiter.rate.held_at.store(limiter.rate.now_ms(), Ordering::Relaxed);
            }
            self.waits = Some(Waits { limiter: Arc::clone(limiter), changes, held_bytes });
            return Some(wait);
        }
        None
    }

    fn turn(&mut self, at: usize, member: &Member, takes_bytes: u64) -> Turn {
        let (place, limiter) = (&mut self.stands[at], &member.limiter);
        if limiter.rate.get().is_none() {
            if let Some(place) = place.take() {
                limiter.leave(place);
            }
            return Turn::Now;
        }
        limiter.turn(place, member.done.load(Ordering::Relaxed), takes_bytes, &self.news)
    }

    /// See [`Pace::window`].
    #[must_use]
    pub fn window(&self, window_bytes: u64) -> u64 {
        self.pace.window(window_bytes)
    }

    /// See [`Pace::is_limited`].
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.pace.is_limited()
    }

    /// It went, with `bytes` that were charged: the next one may.
    pub fn went(&mut self, bytes: u64) {
        if bytes == 0 {
            return self.release();
        }
        self.hide();
        self.stands.resize(self.pace.0.len(), None);
        for (place, Member { limiter, done }) in self.stands.iter_mut().zip(&*self.pace.0) {
            limiter.go(place.take(), done, bytes);
        }
    }

    /// Something else keeps it: others may go. It takes its place again when it looks again.
    pub fn step_aside(&mut self) {
        self.hide();
        self.leave(0);
    }

    /// Waits no longer.
    pub fn release(&mut self) {
        self.step_aside();
        self.stands.fill(None);
    }

    fn hide(&mut self) {
        if let Some(Waits { limiter, held_bytes, .. }) = self.waits.take() {
            limiter.rate.held_bytes.fetch_sub(held_bytes, Ordering::Relaxed);
        }
    }

    /// Stands in no line from `first` on, and keeps its places.
    fn leave(&self, first: usize) {
        for (place, limiter) in self.stands.iter().zip(self.pace.limiters()).skip(first) {
            if let Some(place) = place {
                limiter.leave(*place);
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
