//! The threads on which exports are called: some per export, fed by a queue.
//!
//! The queue needs no bound of its own: every request in it has claimed bytes from the budget of its export, however few.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use tokio::sync::mpsc;

pub(super) type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    ready: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    closed: bool,
    idle: usize,
}

/// The worker threads of one export. Dropping it lets them finish the queue and end.
pub(super) struct Workers {
    queue: Arc<Queue>,
    alive: mpsc::Receiver<()>,
}

/// The side that hands requests over. Cheap to clone.
#[derive(Clone)]
pub(super) struct WorkQueue(Arc<Queue>);

impl WorkQueue {
    /// Queues `jobs`, which are taken out; idle threads take them.
    pub(super) fn push_all(&self, jobs: &mut Vec<Job>) {
        if jobs.is_empty() {
            return;
        }
        let mut state = self.0.state.lock();
        let wake = state.idle.min(jobs.len());
        state.jobs.extend(jobs.drain(..));
        drop(state);
        for _ in 0..wake {
            self.0.ready.notify_one();
        }
    }
}

impl Workers {
    /// Starts `count` threads, the first one called `tg-nbd-<first>`.
    pub(super) fn start(first: usize, count: usize) -> io::Result<Self> {
        let queue = Arc::new(Queue::default());
        // Nothing is ever sent: the channel closes when the last thread has dropped its end.
        let (token, alive) = mpsc::channel(1);
        let workers = Self { queue, alive };
        for number in first..first + count.max(1) {
            let (queue, token) = (Arc::clone(&workers.queue), token.clone());
            std::thread::Builder::new().name(format!("tg-nbd-{number}")).spawn(move || {
                work(&queue);
                drop(token);
            })?;
        }
        Ok(workers)
    }

    pub(super) fn queue(&self) -> WorkQueue {
        WorkQueue(Arc::clone(&self.queue))
    }

    /// Closes the queue and waits until every thread has ended.
    pub(super) async fn finish(mut self) {
        self.close();
        let _ = self.alive.recv().await;
    }

    fn close(&self) {
        self.queue.state.lock().closed = true;
        self.queue.ready.notify_all();
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.close();
    }
}

fn work(queue: &Queue) {
    loop {
        let mut state = queue.state.lock();
        let job = loop {
            if let Some(job) = state.jobs.pop_front() {
                break job;
            }
            if state.closed {
                return;
            }
            state.idle += 1;
            queue.ready.wait(&mut state);
            state.idle -= 1;
        };
        drop(state);
        job();
    }
}
