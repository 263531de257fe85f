//! Which batch is uploaded when: a pure scheduler, without I/O and without a clock of its own.
//!
//! ```text
//!  push ──► waiting ──next──► running ──report──► done (forgotten here)
//!              ▲                 │
//!              └── back-off ◄────┘ overload, passing, lasting
//! ```
//!
//! - **Window.** At most `window` batches run. It starts small; each full window of successes adds one, as long as a
//!   batch does not take much longer than it would alone: time per byte tells how many batches only wait for the line
//!   (as TCP Vegas does). Overload (503, timeouts) halves it, once per round, and leaves a ceiling: close to it the window
//!   grows eight times slower, so that a store is not asked for what it just refused; what goes well above the ceiling
//!   lifts it. It never falls below one.
//! - **Back-off.** A failed batch waits, twice as long after each failure, with jitter, so that many gateways do not
//!   come back at the same moment. The first success after an outage calls the waiting ones at once.
//! - **Park.** After a lasting failure (401, 403, an immutability policy, a full disk) nothing runs but one probe at a
//!   time; its success resumes everything. Nothing is ever given up.
//! - The oldest batch that may run goes first, because acks are given in order.

use std::collections::BTreeMap;
use std::time::Duration;

use super::rng::Rng;

/// The bounds of the scheduler.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueueLimits {
    /// Batches that run at the same time at first.
    pub window_start: u32,
    /// Batches that ever run at the same time.
    pub window_max: u32,
    /// Pause after the first failure of a batch.
    pub pause_min: Duration,
    /// Longest pause.
    pub pause_max: Duration,
    /// Time between two probes while parked.
    pub probe_every: Duration,
}

impl Default for QueueLimits {
    fn default() -> Self {
        Self {
            window_start: 2,
            window_max: 32,
            pause_min: Duration::from_millis(200),
            pause_max: Duration::from_secs(10),
            probe_every: Duration::from_secs(5),
        }
    }
}

/// How an upload ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The object is there.
    Done {
        /// Size of the object.
        bytes: u64,
    },
    /// The store or the way to it is overloaded.
    Overload,
    /// A passing failure of another kind.
    Passing,
    /// It will fail again until somebody changes something.
    Lasting,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Upload this batch.
    Start(u64),
    /// Ask again at this time, or when something happened.
    At(Duration),
    /// Ask again when something happened.
    Idle,
}

/// What a report changed for everybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Nothing of note.
    None,
    /// Uploads are parked now.
    Parked,
    /// Uploads go on.
    Resumed,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    not_before: Duration,
    failures: u32,
    overloaded: bool,
}

#[derive(Debug, Clone, Copy)]
struct Running {
    started: Duration,
    failures: u32,
}

/// Batches of this size and more tell the time per byte; smaller ones mostly the distance.
const SAMPLE_BYTES_MIN: u64 = 1 << 20;
/// Batches that may wait for the line before the window stops growing, and before it shrinks.
const LINE_QUEUE_GROW: f64 = 2.0;
const LINE_QUEUE_SHRINK: f64 = 4.0;
/// The best time per byte is forgotten at this rate per sample, so that a line that became slower is measured anew; but
/// only while few batches run, or the batches' own crowding would slowly pass for the line's speed.
const BEST_AGING: f64 = 1.01;
const BEST_AGING_WINDOW_MAX: f64 = 4.0;

/// How much slower the window grows where the store refused something lately: one refusal among nine requests at worst.
const CEILING_CAUTION: f64 = 8.0;

/// The scheduler. Times are those of one monotonic clock.
#[derive(Debug)]
pub struct UploadQueue {
    limits: QueueLimits,
    rng: Rng,
    window: f64,
    waiting: BTreeMap<u64, Waiting>,
    running: BTreeMap<u64, Running>,
    halved: Option<Duration>,
    /// The window that was too much lately.
    ceiling: Option<f64>,
    probe_at: Option<Duration>,
    best_seconds_per_byte: Option<f64>,
}

impl UploadQueue {
    /// An empty queue.
    #[must_use]
    pub fn new(limits: QueueLimits, rng: Rng) -> Self {
        let window = f64::from(limits.window_start.clamp(1, limits.window_max.max(1)));
        Self {
            limits,
            rng,
            window,
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            halved: None,
            ceiling: None,
            probe_at: None,
            best_seconds_per_byte: None,
        }
    }

    /// Adds a batch.
    pub fn push(&mut self, n: u64, now: Duration) {
        let fresh = self.waiting.insert(n, Waiting { not_before: now, failures: 0, overloaded: false });
        debug_assert!(fresh.is_none() && !self.running.contains_key(&n), "batch {n} was queued twice");
    }

    /// Batches that may run at the same time.
    #[must_use]
    pub fn window(&self) -> u32 {
        self.window as u32
    }

    /// Batches that wait or run.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len() + self.running.len()
    }

    /// Whether nothing waits or runs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether only probes run.
    #[must_use]
    pub fn is_parked(&self) -> bool {
        self.probe_at.is_some()
    }

    /// Whether a batch that could run waits for others to end. One that waits after a failure of its own does not count, nor
    /// do those that wait for a probe: then the store is away, and not slow.
    #[must_use]
    pub fn is_held_up(&self, now: Duration) -> bool {
        let full = self.running.len() >= self.window() as usize;
        full && !self.is_parked() && self.waiting.values().any(|waiting| waiting.not_before <= now)
    }

    /// Whether [`Self::next`] would name a batch at `now`.
    #[must_use]
    pub fn could_start(&self, now: Duration) -> bool {
        match self.probe_at {
            Some(at) => self.running.is_empty() && at <= now && !self.waiting.is_empty(),
            None => {
                let room = self.running.len() < self.window() as usize;
                room && self.waiting.values().any(|waiting| waiting.not_before <= now)
            }
        }
    }

    /// Whether a batch waits.
    #[must_use]
    pub fn waits(&self, n: u64) -> bool {
        self.waiting.contains_key(&n)
    }

    /// Batches that could run and wait for others to end, and those that wait after a failure: each for its own, or all for a
    /// probe.
    #[must_use]
    pub fn waiting(&self, now: Duration) -> [u64; 2] {
        let ready = self.waiting.values().filter(|waiting| waiting.not_before <= now).count();
        let ready = if self.is_parked() { 0 } else { ready };
        [ready as u64, (self.waiting.len() - ready) as u64]
    }

    /// Failures of a running batch so far.
    #[must_use]
    pub fn failures(&self, n: u64) -> u32 {
        self.running.get(&n).map_or(0, |running| running.failures)
    }

    /// What to do at `now`. A batch that is named counts as running from then on.
    pub fn next(&mut self, now: Duration) -> Next {
        let room = if self.is_parked() { self.running.is_empty() } else { self.running.len() < self.window() as usize };
        if !room || self.waiting.is_empty() {
            return Next::Idle;
        }
        if let Some(at) = self.probe_at.filter(|&at| at > now) {
            return Next::At(at);
        }
        // A probe need not wait for its own pause as well.
        let parked = self.is_parked();
        let ready = self.waiting.iter().find(|(_, waiting)| parked || waiting.not_before <= now);
        if let Some((&n, &Waiting { failures, .. })) = ready {
            self.waiting.remove(&n);
            self.running.insert(n, Running { started: now, failures });
            return Next::Start(n);
        }
        self.waiting.values().map(|waiting| waiting.not_before).min().map_or(Next::Idle, Next::At)
    }

    /// Takes the result of a batch that ran.
    pub fn report(&mut self, n: u64, now: Duration, verdict: Verdict) -> Turn {
        let full = self.running.len() >= self.window() as usize;
        let Some(running) = self.running.remove(&n) else { return Turn::None };
        match verdict {
            Verdict::Done { bytes } => return self.succeeded(running, now, bytes, full),
            Verdict::Overload => self.halve(running.started, now),
            Verdict::Passing | Verdict::Lasting => {}
        }
        let failures = running.failures.saturating_add(1);
        let not_before = now + self.pause(failures);
        self.waiting.insert(n, Waiting { not_before, failures, overloaded: verdict == Verdict::Overload });
        let was_parked = self.is_parked();
        if was_parked || verdict == Verdict::Lasting {
            self.probe_at = Some(now + self.jittered(self.limits.probe_every));
        }
        if self.is_parked() && !was_parked { Turn::Parked } else { Turn::None }
    }

    fn succeeded(&mut self, running: Running, now: Duration, bytes: u64, full: bool) -> Turn {
        let line_queue = self.line_queue(bytes, now.saturating_sub(running.started));
        if full && line_queue < LINE_QUEUE_GROW {
            self.grow();
        } else if line_queue > LINE_QUEUE_SHRINK {
            self.window -= 1.0 / self.window;
        }
        self.window = self.window.clamp(1.0, f64::from(self.limits.window_max.max(1)));
        for waiting in self.waiting.values_mut().filter(|waiting| !waiting.overloaded) {
            waiting.not_before = waiting.not_before.min(now);
        }
        if self.probe_at.take().is_some() { Turn::Resumed } else { Turn::None }
    }

    fn grow(&mut self) {
        let caution = match self.ceiling {
            Some(ceiling) if self.window >= ceiling + 1.0 => {
                self.ceiling = None;
                1.0
            }
            Some(ceiling) if self.window >= ceiling - 1.0 => CEILING_CAUTION,
            _ => 1.0,
        };
        self.window += 1.0 / (self.window * caution);
    }

    /// How many of the window's batches only waited for the line while this one ran.
    fn line_queue(&mut self, bytes: u64, took: Duration) -> f64 {
        if bytes < SAMPLE_BYTES_MIN || took.is_zero() {
            return 0.0;
        }
        let sample = took.as_secs_f64() / bytes as f64;
        let aging = if self.window <= BEST_AGING_WINDOW_MAX { BEST_AGING } else { 1.0 };
        let best = self.best_seconds_per_byte.map_or(sample, |best| (best * aging).min(sample));
        self.best_seconds_per_byte = Some(best);
        self.window * (1.0 - best / sample)
    }

    /// Halves the window, unless the batch started before the last halving and so says nothing new.
    fn halve(&mut self, started: Duration, now: Duration) {
        if self.halved.is_none_or(|halved| started >= halved) {
            self.ceiling = Some(self.window.floor());
            self.window = (self.window / 2.0).max(1.0);
            self.halved = Some(now);
        }
    }

    fn pause(&mut self, failures: u32) -> Duration {
        let factor = 1_u32 << failures.saturating_sub(1).min(16);
        let pause = self.limits.pause_min.saturating_mul(factor).min(self.limits.pause_max);
        self.jittered(pause)
    }

    /// Between half and the whole of `pause`.
    fn jittered(&mut self, pause: Duration) -> Duration {
        let half_nanos = (pause.as_nanos() / 2) as u64;
        Duration::from_nanos(half_nanos + self.rng.below(half_nanos + 1))
    }
}

#[cfg(test)]
mod tests;
