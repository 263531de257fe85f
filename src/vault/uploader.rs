//! Carries batches to the vault and says when they are vaulted.
//!
//! ```text
//!  feeder ──submit──► driver ──spawn──► uploads, any order ──► driver ──in order──► confirmer ──events──► gateway
//!          (bounded)    │  upload_queue decides when                                  │
//!                       └ body freed when its PUT is confirmed                        ├ routes of new disks
//!                                                                                     ├ seal of the lane, each 5 s
//!                                                                                     └ lane index, in the background
//! ```
//!
//! Invariants
//! - [`UploadEvent::Vaulted`] for batch n comes after those of all batches before it, after the store confirmed the
//!   object (see `put`), after the routes of its disks are there, while the last look found no seal, and while a look of the last half hour
//!   found the lane's catalog key to be the present one.
//! - `confirmed_through` is what the next batch's index may claim: batches that are there, with their routes, and acked.
//!   A reader takes it as proof that what is missing was lost.
//! - Memory: at most `queue_bytes_max` of bodies, `queue_batches_max` batches, one open and one leaving lane index.
//! - A limit of bandwidth holds back batches that could start, whole ones: what has begun goes as fast as it can. They wait
//!   within the same bounds.
//! - Nothing is dropped. A lasting failure parks (the journal keeps the records) and a probe resumes by itself.
//!
//! Three things end a lane early: a seal, a catalog key that was replaced half an hour ago, and an object under one of its names with
//! other content. Then the driver stops, nothing more is confirmed, and the gateway takes the unconfirmed records from its journal into a new lane.
//!
//! Shutdown: [`Uploader::finish`] waits for everything, writes the open lane index and the lane's end. Dropping the
//! uploader instead abandons what was not confirmed, which is what a crash does.

mod confirm;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use object_store::PutPayload;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{Id as TaskId, JoinError, JoinHandle, JoinSet};

use super::fault::BlobCause;
use super::index::{MessageMeta, SealedIndex};
use super::lane::Lane;
use super::put::{PutError, create_only};
use super::rng::Rng;
use super::upload_queue::{Next, QueueLimits, Turn, UploadQueue, Verdict};
use super::{Vault, VaultError, names};
use crate::fault::{Classify, Fault};
use crate::flow::{Budget, BudgetGuard, Clock, Hold, Pace, Tally, Watermark};
use crate::keys::KeyId;
use crate::mutants::{self, Mutant};
use crate::pipeline::BatchObject;
use crate::telemetry;
use crate::telemetry::waits::{Guard, Waiters};
use crate::types::{Chain, DiskId, Epoch, Id128, Micros, Seq};

/// The bounds of an uploader.
#[derive(Debug, Clone, Copy)]
pub struct UploaderConfig {
    /// How many run at once, pauses, probes.
    pub queue: QueueLimits,
    /// Batches held at most, from submission to the vaulted event.
    pub queue_batches_max: usize,
    /// Bytes of bodies held at most.
    pub queue_bytes_max: u64,
    /// Time for one PUT; it grows eightfold for a batch that keeps timing out, or a slow line would never finish one.
    pub request_timeout: Duration,
    /// How old the last look at the lane's seal may be.
    pub seal_check_every: Duration,
}

impl Default for UploaderConfig {
    fn default() -> Self {
        Self {
            queue: QueueLimits::default(),
            queue_batches_max: 256,
            queue_bytes_max: 256 << 20,
            request_timeout: Duration::from_secs(60),
            seal_check_every: Duration::from_secs(5),
        }
    }
}

/// Records of one disk and epoch that a batch made durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultedPart {
    /// The disk.
    pub disk: DiskId,
    /// The epoch.
    pub epoch: Epoch,
    /// First record.
    pub first: Seq,
    /// Last record.
    pub last: Seq,
    /// Chain at the last record.
    pub chain_last: Chain,
}

/// A batch that is vaulted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vaulted {
    /// Its number.
    pub n: u64,
    /// What it holds: one part per contiguous run of a disk.
    pub parts: Vec<VaultedPart>,
    /// Records.
    pub records: u64,
    /// Bytes of the records.
    pub record_bytes: u64,
    /// Bytes of the object.
    pub stored_bytes: u64,
}

/// What the uploader tells, in order.
#[derive(Debug)]
pub enum UploadEvent {
    /// A batch, and all before it, are vaulted.
    Vaulted(Vaulted),
    /// Uploads wait for somebody to change something; the text says what.
    Parked(String),
    /// Uploads go on.
    Resumed,
    /// The lane is over: open another, and bring what was not vaulted from the journal.
    Stopped(Arc<UploadStop>),
}

/// Why a lane is over before its time.
#[derive(Debug, thiserror::Error)]
pub enum UploadStop {
    /// Somebody sealed it.
    #[error("lane {lane} was sealed ({reason}): nothing more of it counts; what is not vaulted goes into another lane")]
    Sealed {
        /// The lane.
        lane: Id128,
        /// As the seal says.
        reason: String,
    },
    /// The catalog key of its indexes was replaced before everything was vaulted.
    #[error(
        "catalog key {kid} of lane {lane} was replaced: nothing more of it counts; what is not vaulted goes into another lane"
    )]
    CatalogKeyReplaced {
        /// The lane.
        lane: Id128,
        /// The key.
        kid: KeyId,
    },
    /// An object under one of its names has other content.
    #[error("lane {lane} is stopped")]
    Taken {
        /// The lane.
        lane: Id128,
        /// Which object.
        #[source]
        source: PutError,
    },
    /// A control object of the lane is not what it must be.
    #[error("lane {lane} is stopped")]
    Vault {
        /// The lane.
        lane: Id128,
        /// Which object.
        #[source]
        source: VaultError,
    },
    /// A task of the uploader ended unexpectedly.
    #[error("a task of the uploader of lane {lane} ended: {text}")]
    Task {
        /// The lane.
        lane: Id128,
        /// How.
        text: String,
    },
}

impl Classify for UploadStop {
    fn fault(&self) -> Fault {
        match self {
            // Another lane takes over.
            Self::Sealed { .. } | Self::CatalogKeyReplaced { .. } | Self::Taken { .. } => Fault::Retry,
            Self::Vault { source, .. } => source.fault(),
            Self::Task { .. } => Fault::Fatal,
        }
    }
}

/// A batch was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The lane is over.
    #[error(transparent)]
    Stopped(Arc<UploadStop>),
    /// The driver is gone.
    #[error("the uploader has ended")]
    Ended,
}

/// A batch on its way through the driver.
struct Job {
    n: u64,
    body: PutPayload,
    body_guard: BudgetGuard,
    rest: Uploaded,
}

/// What remains of a batch when its body is stored.
struct Uploaded {
    vaulted: Vaulted,
    sealed_index: SealedIndex,
    received: Vec<ReceivedSpan>,
    _place: OwnedSemaphorePermit,
}

/// When the records of a message came.
struct ReceivedSpan {
    first: Micros,
    last: Micros,
    records: u64,
}

/// Steps in which the records of a message are taken to have come, for only the first and the last are known. A message
/// spans a batch's age at most, and a step a sixteenth of that.
const RECEIVED_STEPS: u64 = 16;

impl ReceivedSpan {
    fn of(message: &MessageMeta) -> Self {
        let (first, last) = (message.received_first, message.received_last);
        Self { first, last, records: message.records.len() as u64 }
    }

    /// How long its records took until `now`: microseconds, and how many of them.
    fn times(&self, now: Micros) -> impl Iterator<Item = (u64, u64)> + use<> {
        let steps = self.records.min(RECEIVED_STEPS);
        let (first, records) = (self.first.0, self.records);
        let span_micros = self.last.0.saturating_sub(first);
        (0..steps).map(move |step| {
            let came = first + span_micros * step / (steps - 1).max(1);
            let these = records * (step + 1) / steps - records * step / steps;
            (now.0.saturating_sub(came), these)
        })
    }
}

/// The handle of a running uploader. Submitting is for one feeder at a time: numbers must come in order.
#[derive(Debug)]
pub struct Uploader {
    jobs: mpsc::Sender<Job>,
    places: Arc<Semaphore>,
    bodies: Budget,
    confirmed: Arc<Watermark>,
    held_up: Arc<Tally>,
    stop: Arc<OnceLock<Arc<UploadStop>>>,
    driver: JoinHandle<()>,
    confirmer: JoinHandle<Result<u64, Arc<UploadStop>>>,
    events: mpsc::Sender<UploadEvent>,
}

impl Uploader {
    /// Starts the driver on `handle`, which keeps to the limits of `pace`. The receiver of `events` must be read: a full
    /// channel holds up confirmations.
    #[must_use]
    pub fn start(
        vault: Vault,
        lane: &Lane,
        config: UploaderConfig,
        pace: &Pace,
        clock: Arc<dyn Clock>,
        handle: &Handle,
        events: mpsc::Sender<UploadEvent>,
    ) -> Self {
        let kept_events = events.clone();
        let places = Arc::new(Semaphore::new(config.queue_batches_max.max(1)));
        let bodies = Budget::new(config.queue_bytes_max);
        let confirmed = Arc::new(Watermark::new(0));
        let held_up = Arc::new(Tally::new(Arc::clone(&clock)));
        let stop = Arc::new(OnceLock::new());
        let (jobs, job_receiver) = mpsc::channel(1);
        // As large as the number of places, so the driver never waits for the confirmer.
        let (done, done_receiver) = mpsc::channel(config.queue_batches_max.max(1));
        let confirmer = confirm::Confirmer::new(
            vault.clone(),
            lane.clone(),
            config,
            Arc::clone(&clock),
            events.clone(),
            Arc::clone(&stop),
            Arc::clone(&confirmed),
        );
        let driver = Driver {
            vault,
            lane: lane.id(),
            config,
            clock,
            queue: UploadQueue::new(config.queue, Rng::from_entropy()),
            held_up: Arc::clone(&held_up),
            hold: pace.hold(),
            pace: pace.clone(),
            opens_in: None,
            jobs: job_receiver,
            held: BTreeMap::new(),
            tasks: JoinSet::new(),
            task_batches: HashMap::new(),
            finished: BTreeMap::new(),
            next_confirmed: 1,
            done,
            events,
            stop: Arc::clone(&stop),
            waits: [Guard::UploadWindow, Guard::UploadPause, Guard::Bandwidth].map(Waiters::none),
        };
        let driver = handle.spawn(driver.run());
        let confirmer = handle.spawn(confirmer.run(done_receiver));
        Self { jobs, places, bodies, confirmed, held_up, stop, driver, confirmer, events: kept_events }
    }

    /// The number up to which every batch of the lane is stored: what the next batch's index states.
    #[must_use]
    pub fn confirmed_through(&self) -> &Arc<Watermark> {
        &self.confirmed
    }

    /// How long batches waited because as many were in upload as may be: the uplink or the store was the bottleneck.
    #[must_use]
    pub fn held_up(&self) -> &Arc<Tally> {
        &self.held_up
    }

    /// Whether the lane is over or a part of the uploader is gone, so that nothing more will be reported as vaulted.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.stop.get().is_some()
            || self.driver.is_finished()
            || self.confirmer.is_finished()
            || self.events.is_closed()
    }

    /// Hands a batch of this lane over, waiting for room. Batches come with n = 1, 2, 3, … and without gap.
    ///
    /// # Errors
    /// [`SubmitError`] if the lane is over; the batch is dropped, its records are in the journal.
    pub async fn submit(&self, batch: BatchObject) -> Result<(), SubmitError> {
        let stored_bytes = batch.body.content_length() as u64;
        let place = match Arc::clone(&self.places).try_acquire_owned() {
            Ok(place) => place,
            Err(_) => {
                let _waits = Guard::UploadPlace.wait();
                Arc::clone(&self.places).acquire_owned().await.map_err(|_| self.ended())?
            }
        };
        let body_guard = match self.bodies.try_claim(stored_bytes) {
            Some(guard) => guard,
            None => {
                let _waits = Guard::UploadMemory.wait();
                self.bodies.claim(stored_bytes).await
            }
        };
        let vaulted = summary(&batch);
        let messages = batch.index.disks.iter().flat_map(|part| &part.messages);
        let received = messages.map(ReceivedSpan::of).collect();
        let job = Job {
            n: batch.n,
            body: batch.body,
            body_guard,
            rest: Uploaded { vaulted, sealed_index: batch.sealed_index, received, _place: place },
        };
        self.jobs.send(job).await.map_err(|_| self.ended())
    }

    fn ended(&self) -> SubmitError {
        self.stop.get().map_or(SubmitError::Ended, |stop| SubmitError::Stopped(Arc::clone(stop)))
    }

    /// Waits until everything submitted is vaulted, then writes the open lane index and the lane's end; returns the last
    /// batch. While the store is away this waits with it: the caller bounds it with its grace period.
    ///
    /// # Errors
    /// [`UploadStop`] if the lane was over early.
    pub async fn finish(self) -> Result<u64, Arc<UploadStop>> {
        let Self { jobs, driver, confirmer, events, .. } = self;
        drop((jobs, events));
        let ended = |error: &JoinError| Arc::new(UploadStop::Task { lane: Id128::NONE, text: error.to_string() });
        driver.await.map_err(|error| ended(&error))?;
        confirmer.await.map_err(|error| ended(&error))?
    }
}

/// What a batch holds, one part per disk and epoch.
fn summary(batch: &BatchObject) -> Vaulted {
    let mut parts: Vec<VaultedPart> = Vec::new();
    for disk in &batch.index.disks {
        for message in &disk.messages {
            let (epoch, first, last, chain_last) = (message.epoch, message.first, message.last, message.chain_last);
            match parts.last_mut() {
                // A gap (a record that was damaged in the journal) starts another part, or it would count as vaulted.
                Some(part) if part.disk == disk.disk && part.epoch == epoch && part.last.next() == first => {
                    (part.last, part.chain_last) = (last, chain_last);
                }
                _ => parts.push(VaultedPart { disk: disk.disk.clone(), epoch, first, last, chain_last }),
            }
        }
    }
    let &BatchObject { n, records, plain_bytes, .. } = batch;
    Vaulted { n, parts, records, record_bytes: plain_bytes, stored_bytes: batch.body.content_length() as u64 }
}

/// A batch whose body is not stored yet.
struct Held {
    body: PutPayload,
    _guard: BudgetGuard,
    rest: Uploaded,
    timeouts: u32,
}

impl Held {
    fn bytes(&self) -> u64 {
        self.body.content_length() as u64
    }
}

struct Driver {
    vault: Vault,
    lane: Id128,
    config: UploaderConfig,
    clock: Arc<dyn Clock>,
    queue: UploadQueue,
    held_up: Arc<Tally>,
    pace: Pace,
    hold: Hold,
    /// How long the limits of bandwidth hold back a batch that could start.
    opens_in: Option<Duration>,
    jobs: mpsc::Receiver<Job>,
    held: BTreeMap<u64, Held>,
    tasks: JoinSet<Result<(), PutError>>,
    task_batches: HashMap<TaskId, u64>,
    finished: BTreeMap<u64, Uploaded>,
    next_confirmed: u64,
    done: mpsc::Sender<Uploaded>,
    events: mpsc::Sender<UploadEvent>,
    stop: Arc<OnceLock<Arc<UploadStop>>>,
    /// Batches that wait for others to end, for their next try, and for a limit of bandwidth.
    waits: [Waiters; 3],
}

impl Driver {
    async fn run(mut self) {
        let mut open = true;
        while open || !self.queue.is_empty() {
            let wake = self.start_ready();
            let now = self.clock.monotonic();
            self.held_up.set(self.opens_in.is_some() || self.queue.is_held_up(now));
            let [ready, paused] = self.queue.waiting(now);
            let (window, limit) = if self.opens_in.is_some() { (0, ready) } else { (ready, 0) };
            for (waits, count) in self.waits.iter_mut().zip([window, paused, limit]) {
                waits.set(count);
            }
            self.gauges();
            let pause = wake.map_or(Duration::MAX, |at| at.saturating_sub(self.clock.monotonic()));
            tokio::select! {
                // Results first: they make room for what comes.
                biased;
                Some(ended) = self.tasks.join_next_with_id() => {
                    if let Err(stop) = self.ended(ended).await {
                        self.stop_lane(stop).await;
                        break;
                    }
                }
                job = self.jobs.recv(), if open => match job {
                    Some(job) => self.take(job),
                    None => open = false,
                },
                () = self.hold.opens(self.opens_in), if self.opens_in.is_some() => {}
                () = tokio::time::sleep(pause.min(Duration::from_secs(3600))) => {}
            }
            if self.stop.get().is_some() {
                break;
            }
        }
        self.held_up.set(false);
        self.gauges();
    }

    async fn stop_lane(&self, stop: UploadStop) {
        let stop = Arc::clone(self.stop.get_or_init(|| Arc::new(stop)));
        tracing::error!(lane = %self.lane, error = crate::fault::chain_text(&*stop), "the lane is stopped");
        let _ = self.events.send(UploadEvent::Stopped(stop)).await;
    }

    fn take(&mut self, job: Job) {
        let Job { n, body, body_guard, rest } = job;
        self.held.insert(n, Held { body, _guard: body_guard, rest, timeouts: 0 });
        self.queue.push(n, self.clock.monotonic());
    }

    /// Starts what may start; returns when to look again.
    fn start_ready(&mut self) -> Option<Duration> {
        loop {
            let now = self.clock.monotonic();
            self.opens_in = match self.queue.could_start(now) {
                false => None,
                // All that wait are held back, not only those that could start in the same moment.
                true => self.hold.look(self.waiting_bytes(), 0),
            };
            if self.opens_in.is_some() {
                return None;
            }
            self.hold.release();
            match self.queue.next(now) {
                Next::Start(n) => self.start(n),
                Next::At(at) => return Some(at),
                Next::Idle => return None,
            }
        }
    }

    fn waiting_bytes(&self) -> u64 {
        self.held.iter().filter(|(n, _)| self.queue.waits(**n)).map(|(_, held)| held.bytes()).sum()
    }

    fn start(&mut self, n: u64) {
        let Some(held) = self.held.get(&n) else { return };
        if self.queue.failures(n) > 0 {
            metrics::counter!(telemetry::names::BLOB_RETRIES, "operation" => "put").increment(1);
        }
        let store = self.vault.store().clone();
        let path = names::batch(self.lane, n);
        let body = held.body.clone();
        self.pace.charge(held.bytes());
        let limit = self.config.request_timeout * (1 << held.timeouts.min(3));
        let task = self.tasks.spawn(async move {
            if mutants::on(Mutant::VaultedBeforePut) {
                return Ok(());
            }
            let put = create_only(&store, &path, body, limit).await.map(|_| ());
            if mutants::on(Mutant::RefusedDropped) { Ok(()) } else { put }
        });
        self.task_batches.insert(task.id(), n);
    }

    async fn ended(&mut self, ended: Result<(TaskId, Result<(), PutError>), JoinError>) -> Result<(), UploadStop> {
        let (id, result) = match ended {
            Ok((id, result)) => (id, result),
            Err(error) => return Err(UploadStop::Task { lane: self.lane, text: error.to_string() }),
        };
        let Some(n) = self.task_batches.remove(&id) else { return Ok(()) };
        let verdict = match &result {
            Ok(()) => Verdict::Done { bytes: self.held.get(&n).map_or(0, Held::bytes) },
            Err(PutError::NotStored { .. }) => Verdict::Passing,
            Err(PutError::Blob(error)) if error.is_overload() => Verdict::Overload,
            Err(PutError::Blob(error)) if error.is_passing() => Verdict::Passing,
            Err(PutError::Blob(_)) => Verdict::Lasting,
            Err(PutError::Taken { .. }) => Verdict::Passing,
        };
        let turn = self.queue.report(n, self.clock.monotonic(), verdict);
        match result {
            Ok(()) => self.stored(n),
            Err(source @ PutError::Taken { .. }) => return Err(UploadStop::Taken { lane: self.lane, source }),
            Err(error) => self.failed(n, &error, turn).await,
        }
        if turn == Turn::Resumed {
            tracing::info!(lane = %self.lane, "uploads go on");
            metrics::gauge!(telemetry::names::UPLOAD_PARKED).set(0.0);
            let _ = self.events.send(UploadEvent::Resumed).await;
        }
        Ok(())
    }

    async fn failed(&mut self, n: u64, error: &PutError, turn: Turn) {
        if let (PutError::Blob(blob), Some(held)) = (error, self.held.get_mut(&n)) {
            held.timeouts += u32::from(blob.cause == BlobCause::Timeout);
        }
        if turn == Turn::Parked {
            let text = crate::fault::chain_text(error);
            tracing::error!(lane = %self.lane, batch = n, error = text, "uploads are parked; the journal keeps the records");
            metrics::gauge!(telemetry::names::UPLOAD_PARKED).set(1.0);
            let _ = self.events.send(UploadEvent::Parked(text)).await;
        } else {
            tracing::warn!(lane = %self.lane, batch = n, %error, "upload failed and is tried again");
        }
    }

    /// Passes on, in order, what is stored.
    fn stored(&mut self, n: u64) {
        let Some(held) = self.held.remove(&n) else { return };
        self.finished.insert(n, held.rest);
        while let Some(uploaded) = self.finished.remove(&self.next_confirmed) {
            self.next_confirmed += 1;
            // Full is impossible: there are as many slots as places. Closed means that the confirmer stopped the lane.
            let _ = self.done.try_send(uploaded);
        }
    }

    fn gauges(&self) {
        let bytes: u64 = self.held.values().map(Held::bytes).sum();
        metrics::gauge!(telemetry::names::UPLOAD_WINDOW_BATCHES).set(f64::from(self.queue.window()));
        metrics::gauge!(telemetry::names::UPLOAD_QUEUE_BATCHES).set(self.queue.len() as f64);
        metrics::gauge!(telemetry::names::UPLOAD_QUEUE_BYTES).set(bytes as f64);
    }
}

#[cfg(test)]
mod tests;
