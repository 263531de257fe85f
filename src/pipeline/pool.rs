//! Plain threads that do CPU work, and hand results back in the order in which the jobs came.
//!
//! ```text
//!  submit ──► queue ──► tg-cpu-0 … tg-cpu-N ──► results by ticket ──► next (in order)
//!     └──── bytes and jobs held, from submit until next took the result ────┘
//! ```
//!
//! - Bounded: what was submitted and not yet taken counts, whether it waits, runs or is done. A slow taker stops the
//!   submitter, not the memory.
//! - A panic in a worker becomes [`PoolError`] for submitter and taker, at once and from then on: a lost job would leave a
//!   hole that the taker waits for.
//! - Shutdown: [`Pool::close`] lets the workers finish what was submitted; [`Pool::next`] then ends with `None`.
//!   Dropping the pool throws waiting jobs away and joins the threads.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use crate::fault::{Classify, Fault};
use crate::telemetry::waits::{Guard, Waiters};

/// The bounds of a pool.
#[derive(Clone, Copy, Debug)]
pub struct PoolConfig {
    /// Threads.
    pub threads: usize,
    /// Bytes held between submit and take. A single job above it is taken alone.
    pub queue_bytes_max: usize,
    /// Jobs held between submit and take.
    pub queue_jobs_max: usize,
}

/// The pool cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// A worker panicked.
    #[error("a pipeline worker panicked: {message}")]
    Panicked {
        /// The panic's words.
        message: String,
    },
    /// Submitted after close.
    #[error("the pipeline is closed")]
    Closed,
}

impl Classify for PoolError {
    fn fault(&self) -> Fault {
        Fault::Fatal
    }
}

struct State<J, R> {
    queue: VecDeque<(u64, J)>,
    /// One slot per ticket from `next_out` on: the bytes that the job holds, and its result once it is there.
    slots: VecDeque<(usize, Option<R>)>,
    next_in: u64,
    next_out: u64,
    held_bytes: usize,
    closed: bool,
    failed: Option<PoolError>,
}

struct Shared<J, R> {
    config: PoolConfig,
    state: Mutex<State<J, R>>,
    /// A job came, or the end.
    work: Condvar,
    /// The next result in order came, or the end.
    done: Condvar,
    /// A result was taken, or the end.
    room: Condvar,
}

/// See the module's head.
pub struct Pool<J, R> {
    shared: Arc<Shared<J, R>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl<J: Send + 'static, R: Send + 'static> Pool<J, R> {
    /// Starts the threads `tg-cpu-N`. Each makes its own worker, so that scratch memory is its own.
    ///
    /// # Errors
    /// The operating system's error if a thread cannot be started.
    pub fn start<W: FnMut(J) -> R>(
        config: PoolConfig,
        make_worker: impl Fn() -> W + Clone + Send + 'static,
    ) -> std::io::Result<Self> {
        let state = State {
            queue: VecDeque::new(),
            slots: VecDeque::new(),
            next_in: 0,
            next_out: 0,
            held_bytes: 0,
            closed: false,
            failed: None,
        };
        let shared = Arc::new(Shared {
            config,
            state: Mutex::new(state),
            work: Condvar::new(),
            done: Condvar::new(),
            room: Condvar::new(),
        });
        let pool = Self { shared, threads: Mutex::new(Vec::new()) };
        for number in 0..config.threads.max(1) {
            let (shared, make_worker) = (Arc::clone(&pool.shared), make_worker.clone());
            let body = move || run_worker(&shared, make_worker());
            let thread = std::thread::Builder::new().name(format!("tg-cpu-{number}")).spawn(body)?;
            pool.threads.lock().push(thread);
        }
        Ok(pool)
    }

    /// Waits for room and submits.
    ///
    /// # Errors
    /// [`PoolError`] if a worker panicked or the pool is closed; the job is lost.
    pub fn submit(&self, job: J, bytes: usize) -> Result<(), PoolError> {
        let config = self.shared.config;
        let mut state = self.shared.state.lock();
        let mut waits = Waiters::none(Guard::PipelineMemory);
        loop {
            state.check()?;
            if state.closed {
                return Err(PoolError::Closed);
            }
            let held_jobs = state.slots.len();
            let bytes_fit = held_jobs == 0 || state.held_bytes + bytes <= config.queue_bytes_max;
            if bytes_fit && held_jobs < config.queue_jobs_max.max(1) {
                break;
            }
            waits.set(1);
            self.shared.room.wait(&mut state);
        }
        let ticket = state.next_in;
        state.next_in += 1;
        state.held_bytes += bytes;
        state.slots.push_back((bytes, None));
        state.queue.push_back((ticket, job));
        drop(state);
        self.shared.work.notify_one();
        Ok(())
    }

    /// Waits for the next result in submission order; `None` after [`Pool::close`] when all were taken.
    ///
    /// # Errors
    /// [`PoolError::Panicked`] if a worker panicked, even if later results are there.
    pub fn next(&self) -> Result<Option<R>, PoolError> {
        let mut state = self.shared.state.lock();
        loop {
            if let Some(result) = state.take_first() {
                drop(state);
                self.shared.room.notify_one();
                return Ok(Some(result));
            }
            state.check()?;
            if state.closed && state.slots.is_empty() {
                return Ok(None);
            }
            self.shared.done.wait(&mut state);
        }
    }

    /// Jobs submitted and not yet taken.
    #[must_use]
    pub fn held_jobs(&self) -> usize {
        self.shared.state.lock().slots.len()
    }

    /// Bytes submitted and not yet taken.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.shared.state.lock().held_bytes
    }

    /// No more jobs; what was submitted is finished.
    pub fn close(&self) {
        self.shared.state.lock().closed = true;
        self.shared.wake_all();
    }

    /// Stops as if a worker had failed: waiting jobs are thrown away, submitter and taker get `error`.
    pub fn abort(&self, error: PoolError) {
        self.shared.fail(error);
    }
}

impl<J, R> State<J, R> {
    fn check(&self) -> Result<(), PoolError> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    fn take_first(&mut self) -> Option<R> {
        let (bytes, result) = self.slots.front_mut()?;
        let result = result.take()?;
        self.held_bytes -= *bytes;
        self.slots.pop_front();
        self.next_out += 1;
        Some(result)
    }
}

impl<J, R> Shared<J, R> {
    fn wake_all(&self) {
        self.work.notify_all();
        self.done.notify_all();
        self.room.notify_all();
    }

    fn fail(&self, error: PoolError) {
        let mut state = self.state.lock();
        state.failed.get_or_insert(error);
        let waiting = std::mem::take(&mut state.queue);
        drop(state);
        // Outside the lock: dropping jobs may run foreign code.
        drop(waiting);
        self.wake_all();
    }
}

fn run_worker<J, R>(shared: &Shared<J, R>, mut work: impl FnMut(J) -> R) {
    loop {
        let mut state = shared.state.lock();
        let (ticket, job) = loop {
            if state.failed.is_some() {
                return;
            }
            if let Some(job) = state.queue.pop_front() {
                break job;
            }
            if state.closed {
                return;
            }
            shared.work.wait(&mut state);
        };
        drop(state);
        match catch_unwind(AssertUnwindSafe(|| work(job))) {
            Ok(result) => {
                let mut state = shared.state.lock();
                // A ticket is taken only after its result was stored, so its slot is still there.
                let at = (ticket - state.next_out) as usize;
                if let Some(slot) = state.slots.get_mut(at) {
                    slot.1 = Some(result);
                }
                drop(state);
                if at == 0 {
                    shared.done.notify_one();
                }
            }
            Err(panic) => {
                let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
                return shared.fail(PoolError::Panicked { message: text.unwrap_or_else(|| "no message".into()) });
            }
        }
    }
}

impl<J, R> Drop for Pool<J, R> {
    fn drop(&mut self) {
        self.shared.fail(PoolError::Closed);
        for thread in self.threads.lock().drain(..) {
            // Its panic was caught inside; nothing is left to learn from the join.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
