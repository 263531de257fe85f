//! The thin driver: batcher, pool and batch builder tied together.
//!
//! ```text
//!  feeder thread            tg-cpu-N                    tg-batch                          caller's sink
//!  push, poll ─► batcher ─► pack and seal ─► in order ─► append, index, trailer ─► BatchObject ─► deliver
//!       ▲                                                     │
//!       └──────────────── sizes of sealed messages ◄──────────┘
//! ```
//!
//! In place ([`Pipeline::in_place`]) there are no threads: what is pushed is sealed at once, and finished batches wait
//! until the feeder takes them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use object_store::PutPayload;
use parking_lot::Mutex;

use super::batcher::{Batcher, BatcherLimits, CloseReason, OpenMessage, Step};
use super::buffers::BufferPool;
use super::choice::{Chooser, CodecChoice};
use super::codec::Codec;
use super::content::{Content, Input, Plain};
use super::lane::LaneContext;
use super::message::{MessageContext, Scratch, SealMessageError, SealedInfo, seal};
use super::pool::{Pool, PoolConfig, PoolError};
use super::slabs::{Shelf, Slabs};
use crate::fault::{Classify, Fault};
use crate::keys::{DiskSecret, MessageKey};
use crate::limits;
use crate::telemetry::names;
use crate::types::{DiskId, Id128, Micros, PointId, RecordError, Seq};
use crate::vault::batch::{BatchBuilder, BatchHeader, FinishedBatch};
use crate::vault::index::{BatchIndex, IndexWriteError, MessageMeta, SealedIndex};

/// Full-size message buffers: the largest message that ordinary records make.
const MESSAGE_BUFFER_BYTES: usize = limits::MESSAGE_BYTES_TARGET + (128 << 10);
/// Full-size message buffers kept idle: what the queue of the default size holds.
const MESSAGE_BUFFERS_IDLE_MAX: usize = 32;
/// Messages held between batcher and batch: enough that small ones keep every thread busy.
const QUEUE_JOBS_MAX: usize = 1024;

/// Sizes of a pipeline.
#[derive(Clone, Copy, Debug)]
pub struct PipelineConfig {
    /// Threads that pack and seal, of [`Pipeline::start`].
    pub threads: usize,
    /// When messages and batches close.
    pub limits: BatcherLimits,
    /// Plaintext bytes held between batcher and batch.
    pub queue_bytes_max: usize,
    /// Bytes that the taker of batches holds at most: as much memory for sealed messages is kept for use again.
    pub sealed_bytes_max: usize,
    /// How messages are packed.
    pub codec: CodecChoice,
}

impl Default for PipelineConfig {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        let (limits, codec) = (BatcherLimits::default(), CodecChoice::default());
        Self { threads, limits, queue_bytes_max: 16 << 20, sealed_bytes_max: 64 << 20, codec }
    }
}

/// A batch ready to be stored.
#[derive(Clone, Debug)]
pub struct BatchObject {
    /// The vault it is sealed for.
    pub vault: Id128,
    /// The lane.
    pub lane: Id128,
    /// Number in the lane.
    pub n: u64,
    /// Object name; the content is bound to it.
    pub name: String,
    /// The whole object, in pieces.
    pub body: PutPayload,
    /// Its index.
    pub index: BatchIndex,
    /// Its index as it stands in the object, for the lane index.
    pub sealed_index: SealedIndex,
    /// Records in it.
    pub records: u64,
    /// Bytes of the records.
    pub plain_bytes: u64,
}

/// The taker of batches is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nobody takes batches any more")]
pub struct SinkClosed;

/// Why the pipeline stopped. It does not start again: a new one replays from the journal.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PipelineError {
    /// A worker failed.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// A message could not be sealed.
    #[error("sealing a message of {disk} failed")]
    Seal {
        /// The disk.
        disk: DiskId,
        /// Why.
        #[source]
        source: SealMessageError,
    },
    /// An index could not be made.
    #[error("making the index of {object} failed")]
    Index {
        /// The batch object.
        object: String,
        /// Why.
        #[source]
        source: Arc<IndexWriteError>,
    },
    /// The taker of batches is gone.
    #[error(transparent)]
    Sink(#[from] SinkClosed),
    /// A thread could not be started.
    #[error("starting a pipeline thread failed")]
    Thread(#[source] Arc<std::io::Error>),
}

impl PipelineError {
    fn seal(disk: &DiskId, source: SealMessageError) -> Self {
        Self::Seal { disk: disk.clone(), source }
    }
}

impl Classify for PipelineError {
    fn fault(&self) -> Fault {
        Fault::Fatal
    }
}

/// Why a record was not taken.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PushError {
    /// The bytes are no record. Nothing was taken; the pipeline goes on.
    #[error("{disk}: the record to be sealed is not whole")]
    Record {
        /// The disk.
        disk: DiskId,
        /// What is wrong.
        #[source]
        source: RecordError,
    },
    /// The pipeline has stopped.
    #[error(transparent)]
    Stopped(#[from] PipelineError),
}

impl Classify for PushError {
    fn fault(&self) -> Fault {
        match self {
            Self::Record { .. } => Fault::Corrupt,
            Self::Stopped(error) => error.fault(),
        }
    }
}

/// The batch that a message was assigned to, shared by all its messages.
struct Target {
    lane: Arc<LaneContext>,
    n: u64,
    object: String,
    ordinal: u64,
}

struct Sealed {
    message: OpenMessage,
    stored: Bytes,
    info: SealedInfo,
}

enum Job {
    Seal(OpenMessage, DiskSecret, Arc<Target>),
    Close(CloseReason, Arc<Target>),
}

enum Done {
    Sealed(Sealed, Arc<Target>),
    /// A record in it is not what its checksum says; the message is left out.
    Damaged(DiskId, PointId, Arc<Target>),
    Close(CloseReason, Arc<Target>),
    Failed(PipelineError),
}

/// What the collector tells the feeder's side.
#[derive(Default)]
struct Feedback {
    /// Batch ordinal, plaintext bytes, sealed bytes.
    sealed: Vec<(u64, usize, usize)>,
    damaged: Vec<(DiskId, PointId)>,
    failure: Option<PipelineError>,
}

/// See the module's head. Owned by one feeder thread; every call may wait for the sink.
pub struct Pipeline {
    batcher: Batcher,
    steps: Vec<Step>,
    lane: Arc<LaneContext>,
    next_n: u64,
    target: Option<Arc<Target>>,
    feedback: Arc<Mutex<Feedback>>,
    work: Work,
}

/// Who works.
enum Work {
    Threads { pool: Arc<Pool<Job, Done>>, collector: Option<JoinHandle<()>> },
    InPlace(Box<InPlace>),
}

/// The work of all threads, done by the feeder.
struct InPlace {
    worker: Worker,
    assembler: Assembler,
    finished: VecDeque<BatchObject>,
}

impl InPlace {
    fn submit(&mut self, job: Job) -> Result<(), PipelineError> {
        let done = self.worker.work(job);
        self.finished.extend(self.assembler.take(done)?);
        Ok(())
    }
}

impl Pipeline {
    /// Starts the threads. Finished batches go to `sink`, on the thread `tg-batch`, in the order of their numbers; while it
    /// waits, the pipeline fills up to its bounds and then [`Pipeline::push`] waits.
    ///
    /// # Errors
    /// [`PipelineError::Thread`] if a thread cannot be started.
    pub fn start(
        config: &PipelineConfig,
        lane: LaneContext,
        sink: impl FnMut(BatchObject) -> Result<(), SinkClosed> + Send + 'static,
    ) -> Result<Self, PipelineError> {
        let message_buffers = BufferPool::new(MESSAGE_BUFFER_BYTES, MESSAGE_BUFFERS_IDLE_MAX);
        let pool_config = PoolConfig {
            threads: config.threads,
            queue_bytes_max: config.queue_bytes_max,
            queue_jobs_max: QUEUE_JOBS_MAX,
        };
        let (chooser, buffers) = (Arc::new(Chooser::new(config.codec, config.threads)), Arc::clone(&message_buffers));
        let slabs = Slabs::new(config.sealed_bytes_max);
        let make_worker = move || {
            let mut worker = Worker::new(&chooser, &buffers, &slabs);
            move |job| worker.work(job)
        };
        let thread_error = |error| PipelineError::Thread(Arc::new(error));
        let pool = Arc::new(Pool::start(pool_config, make_worker).map_err(thread_error)?);
        let feedback = Arc::new(Mutex::new(Feedback::default()));
        let assembler = Assembler::new(&feedback);
        let collector = Collector { pool: Arc::clone(&pool), assembler, sink };
        let collector =
            std::thread::Builder::new().name("tg-batch".into()).spawn(move || collector.run()).map_err(thread_error)?;
        let work = Work::Threads { pool, collector: Some(collector) };
        Ok(Self::new(config, lane, message_buffers, feedback, work))
    }

    /// A pipeline without threads, for a caller that awaits where a sink would block: finished batches are to be taken
    /// by [`Pipeline::take_finished`] after every call, which bounds what is held to what one call may close.
    #[must_use]
    pub fn in_place(config: &PipelineConfig, lane: LaneContext) -> Self {
        let message_buffers = BufferPool::new(MESSAGE_BUFFER_BYTES, MESSAGE_BUFFERS_IDLE_MAX);
        let feedback = Arc::new(Mutex::new(Feedback::default()));
        let worker = Worker::new(
            &Arc::new(Chooser::new(config.codec, 1)),
            &message_buffers,
            &Slabs::new(config.sealed_bytes_max),
        );
        let work = InPlace { worker, assembler: Assembler::new(&feedback), finished: VecDeque::new() };
        Self::new(config, lane, message_buffers, feedback, Work::InPlace(Box::new(work)))
    }

    fn new(
        config: &PipelineConfig,
        lane: LaneContext,
        message_buffers: Arc<BufferPool>,
        feedback: Arc<Mutex<Feedback>>,
        work: Work,
    ) -> Self {
        Self {
            batcher: Batcher::new(config.limits, message_buffers),
            steps: Vec::new(),
            next_n: lane.next_n,
            lane: Arc::new(lane),
            target: None,
            feedback,
            work,
        }
    }

    /// The next finished batch, in the order of their numbers. Always `None` with threads, whose sink gets them.
    pub fn take_finished(&mut self) -> Option<BatchObject> {
        match &mut self.work {
            Work::Threads { .. } => None,
            Work::InPlace(work) => work.finished.pop_front(),
        }
    }

    /// Takes one whole record of `disk`, received at `received`. `now` is any monotonic time, the same as in
    /// [`Pipeline::poll`]. Waits while the pipeline is full.
    ///
    /// # Errors
    /// [`PushError::Record`] if the bytes are no record, or not those of their checksum; of a record that is kept, this is
    /// told later by [`Pipeline::take_damaged`]. [`PushError::Stopped`] if the pipeline has failed.
    pub fn push(&mut self, now: Duration, disk: &DiskId, record: Input, received: Micros) -> Result<(), PushError> {
        self.take_feedback()?;
        let pushed = self.batcher.push(now, disk, record, received, &mut self.steps);
        self.run_steps()?;
        pushed.map_err(|source| PushError::Record { disk: disk.clone(), source })
    }

    /// Records that were damaged while they were kept: their messages are in no batch.
    pub fn take_damaged(&mut self) -> Vec<(DiskId, PointId)> {
        std::mem::take(&mut self.feedback.lock().damaged)
    }

    /// Closes the batch if it is old enough. To be called at [`Pipeline::due`], or every few milliseconds.
    ///
    /// # Errors
    /// [`PipelineError`] if the pipeline has failed.
    pub fn poll(&mut self, now: Duration) -> Result<(), PipelineError> {
        self.take_feedback()?;
        self.batcher.poll(now, &mut self.steps);
        self.run_steps()
    }

    /// When [`Pipeline::poll`] has something to do next; `None` while nothing is open.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        self.batcher.due()
    }

    /// Closes the open batch now, if there is one.
    ///
    /// # Errors
    /// [`PipelineError`] if the pipeline has failed.
    pub fn flush(&mut self) -> Result<(), PipelineError> {
        self.batcher.flush(&mut self.steps);
        self.run_steps()
    }

    /// Closes the open batch and goes on in another lane.
    ///
    /// # Errors
    /// [`PipelineError`] if the pipeline has failed.
    pub fn roll(&mut self, lane: LaneContext) -> Result<(), PipelineError> {
        self.flush()?;
        self.next_n = lane.next_n;
        self.lane = Arc::new(lane);
        Ok(())
    }

    /// Number that the next batch will have: all below are closed, and on their way to the sink at least.
    #[must_use]
    pub fn next_n(&self) -> u64 {
        self.next_n
    }

    /// Closes the open batch and waits until the sink has taken everything and was dropped. The result is the number after
    /// the last batch. A sink that waits makes this wait: whoever must end in time lets the sink give up.
    ///
    /// # Errors
    /// [`PipelineError`] if the pipeline has failed; batches may then be missing.
    pub fn finish(mut self) -> Result<u64, PipelineError> {
        let flushed = self.flush();
        let joined = match &mut self.work {
            Work::Threads { pool, collector } => {
                pool.close();
                // Also after a failure, which ends the collector: the sink and what it holds are gone when this returns.
                collector.take().map_or(Ok(()), JoinHandle::join)
            }
            Work::InPlace(_) => Ok(()),
        };
        flushed?;
        self.take_feedback()?;
        // A panic of the sink has left its failure in the feedback; this is for a panic beside it.
        joined.map_err(|_| PipelineError::from(SinkClosed))?;
        Ok(self.next_n)
    }

    /// Messages and batch ends between batcher and batch.
    fn held_jobs(&self) -> usize {
        match &self.work {
            Work::Threads { pool, .. } => pool.held_jobs(),
            Work::InPlace(_) => 0,
        }
    }

    fn take_feedback(&mut self) -> Result<(), PipelineError> {
        let mut feedback = self.feedback.lock();
        if let Some(failure) = &feedback.failure {
            return Err(failure.clone());
        }
        for (ordinal, plain_bytes, sealed_bytes) in feedback.sealed.drain(..) {
            self.batcher.note_sealed(ordinal, plain_bytes, sealed_bytes);
        }
        Ok(())
    }

    fn target(&mut self, ordinal: u64) -> Arc<Target> {
        let (lane, n) = (&self.lane, self.next_n);
        let make = || {
            let object = (lane.object_name)(lane.lane, n);
            Arc::new(Target { lane: Arc::clone(lane), n, object, ordinal })
        };
        Arc::clone(self.target.get_or_insert_with(make))
    }

    fn run_steps(&mut self) -> Result<(), PipelineError> {
        if self.steps.is_empty() {
            return Ok(());
        }
        if let Work::Threads { pool, .. } = &self.work {
            metrics::gauge!(names::PIPELINE_QUEUE_MESSAGES).set(self.held_jobs() as f64);
            metrics::gauge!(names::PIPELINE_QUEUE_BYTES).set(pool.held_bytes() as f64);
        }
        let mut steps = std::mem::take(&mut self.steps);
        // The batcher is ahead by the closes that it asks for now.
        let closes = steps.iter().filter(|step| matches!(step, Step::Close(_))).count() as u64;
        let mut ordinal = self.batcher.ordinal() - closes;
        for step in steps.drain(..) {
            let target = self.target(ordinal);
            let (job, bytes) = match step {
                Step::Message(message) => {
                    let bytes = message.content.capacity_bytes().max(message.plain_bytes);
                    // Here, where one thread asks, and not in the workers: they would wait for each other.
                    let secret = target.lane.keys.secret(&message.disk);
                    let secret = secret.map_err(|error| PipelineError::seal(&message.disk, error.into()))?;
                    (Job::Seal(message, secret, target), bytes)
                }
                Step::Close(reason) => {
                    self.target = None;
                    self.next_n += 1;
                    ordinal += 1;
                    (Job::Close(reason, target), 0)
                }
            };
            match &mut self.work {
                Work::Threads { pool, .. } => pool.submit(job, bytes).map_err(|error| {
                    // The collector may know the deeper reason.
                    self.feedback.lock().failure.clone().unwrap_or(error.into())
                })?,
                Work::InPlace(work) => work.submit(job)?,
            }
        }
        self.steps = steps;
        Ok(())
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        // Not finished: what is on its way is thrown away; the journal still has it.
        if let Work::Threads { pool, collector } = &mut self.work {
            pool.abort(PoolError::Closed);
            // The collector is not joined: it may wait in the sink, whose owner may wait for this drop.
            drop(collector.take());
        }
    }
}

/// What a thread packs and seals with: memory that is the same for every message, so that it stays in the processor's cache.
struct Worker {
    chooser: Arc<Chooser>,
    scratch: Scratch,
    /// Several records of a message, one behind the other.
    plain: Vec<u8>,
    sealed: Shelf,
    /// Where copied records go back to.
    buffers: Arc<BufferPool>,
}

impl Worker {
    fn new(chooser: &Arc<Chooser>, buffers: &Arc<BufferPool>, slabs: &Arc<Slabs>) -> Self {
        let (chooser, buffers, sealed) = (Arc::clone(chooser), Arc::clone(buffers), Shelf::new(slabs));
        Self { chooser, scratch: Scratch::default(), plain: Vec::new(), sealed, buffers }
    }

    fn work(&mut self, job: Job) -> Done {
        match job {
            Job::Close(reason, target) => Done::Close(reason, target),
            Job::Seal(message, secret, target) => self.seal(message, &secret.into(), target),
        }
    }

    fn seal(&mut self, mut message: OpenMessage, key: &MessageKey, target: Arc<Target>) -> Done {
        let context = MessageContext {
            vault: target.lane.vault,
            object: &target.object,
            disk: &message.disk,
            epoch: message.epoch,
            first: message.first,
            last: message.last,
            codec: Codec::Raw,
            plain_bytes: 0,
        };
        let content = std::mem::replace(&mut message.content, Content::kept());
        let plain = match content.checked(&mut self.plain) {
            Ok(plain) => plain,
            Err(number) => {
                let seq = Seq(message.first.0 + number as u64);
                return Done::Damaged(message.disk, PointId { epoch: message.epoch, seq }, target);
            }
        };
        let (chooser, scratch, room) = (&self.chooser, &mut self.scratch, &mut self.sealed);
        let sealed = pack_and_seal(chooser, (&target.lane, key), &context, &plain, scratch, room);
        if let Plain::Copied(buffer) = plain {
            self.buffers.give_back(buffer);
        }
        match sealed {
            Ok((info, stored)) => Done::Sealed(Sealed { message, stored, info }, target),
            Err(source) => Done::Failed(PipelineError::seal(&message.disk, source)),
        }
    }
}

/// [`seal`], packed as the chooser says.
fn pack_and_seal(
    chooser: &Chooser,
    (lane, key): (&LaneContext, &MessageKey),
    context: &MessageContext<'_>,
    plain: &[u8],
    scratch: &mut Scratch,
    sealed: &mut Shelf,
) -> Result<(SealedInfo, Bytes), SealMessageError> {
    let chosen = chooser.choose(context.disk, plain, &lane.uplink, scratch);
    let (info, stored) = seal(key, context, plain, scratch, |bytes| sealed.room(bytes))?;
    chooser.done(context.disk, chosen, info.codec, &lane.uplink);
    Ok((info, stored.freeze()))
}

struct OpenBatch {
    builder: BatchBuilder,
    records: u64,
    plain_bytes: u64,
}

/// The side of thread `tg-batch`.
struct Collector<S> {
    pool: Arc<Pool<Job, Done>>,
    assembler: Assembler,
    sink: S,
}

/// Makes batches of sealed messages.
struct Assembler {
    feedback: Arc<Mutex<Feedback>>,
    open: Option<OpenBatch>,
}

/// Tells the feeder that the collector is gone, also when the sink panics: otherwise `push` would wait for ever.
struct EndGuard {
    pool: Arc<Pool<Job, Done>>,
    feedback: Arc<Mutex<Feedback>>,
}

impl EndGuard {
    fn fail(&self, failure: PipelineError) {
        self.feedback.lock().failure.get_or_insert(failure);
        self.pool.abort(PoolError::Closed);
    }
}

impl Drop for EndGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.fail(SinkClosed.into());
        }
    }
}

impl<S: FnMut(BatchObject) -> Result<(), SinkClosed>> Collector<S> {
    fn run(mut self) {
        let guard = EndGuard { pool: Arc::clone(&self.pool), feedback: Arc::clone(&self.assembler.feedback) };
        loop {
            let result = match self.pool.next() {
                Ok(None) => return,
                Ok(Some(done)) => self.assembler.take(done),
                Err(error) => Err(error.into()),
            };
            let delivered = result.and_then(|batch| batch.map_or(Ok(()), |batch| Ok((self.sink)(batch)?)));
            if let Err(failure) = delivered {
                return guard.fail(failure);
            }
        }
    }
}

impl Assembler {
    fn new(feedback: &Arc<Mutex<Feedback>>) -> Self {
        Self { feedback: Arc::clone(feedback), open: None }
    }

    /// Takes the next result in order; returns the batch that it closed.
    fn take(&mut self, done: Done) -> Result<Option<BatchObject>, PipelineError> {
        match done {
            Done::Failed(error) => Err(error),
            Done::Sealed(sealed, target) => {
                self.append(sealed, &target);
                Ok(None)
            }
            Done::Damaged(disk, point, target) => {
                // Also a batch without messages takes its number: the lane must have no hole.
                self.open_batch(&target);
                self.feedback.lock().damaged.push((disk, point));
                Ok(None)
            }
            Done::Close(reason, target) => self.close(reason, &target),
        }
    }

    fn open_batch(&mut self, target: &Target) -> &mut OpenBatch {
        self.open.get_or_insert_with(|| {
            let header = BatchHeader { vault: target.lane.vault, lane: target.lane.lane, n: target.n };
            OpenBatch { builder: BatchBuilder::new(header), records: 0, plain_bytes: 0 }
        })
    }

    fn append(&mut self, sealed: Sealed, target: &Target) {
        let Sealed { message, stored, info } = sealed;
        let plain_bytes = message.plain_bytes;
        let open = self.open_batch(target);
        open.records += message.records.len() as u64;
        open.plain_bytes += plain_bytes as u64;
        let records = message.records.len() as u64;
        let meta = MessageMeta {
            epoch: message.epoch,
            first: message.first,
            last: message.last,
            offset_bytes: 0,
            stored_bytes: info.stored_bytes,
            plain_bytes: plain_bytes as u32,
            codec: info.codec,
            chain_before: message.chain_before,
            chain_last: message.chain_last,
            received_first: message.received_first,
            received_last: message.received_last,
            origin: None,
            records: message.records,
        };
        open.builder.push(&message.disk, meta, stored);
        self.feedback.lock().sealed.push((target.ordinal, plain_bytes, info.stored_bytes as usize));
        let codec = info.codec.as_str();
        metrics::counter!(names::PIPELINE_RECORDS).increment(records);
        metrics::counter!(names::PIPELINE_MESSAGES, "codec" => codec).increment(1);
        metrics::counter!(names::PIPELINE_PLAIN_BYTES, "codec" => codec).increment(plain_bytes as u64);
        metrics::counter!(names::PIPELINE_SEALED_BYTES, "codec" => codec).increment(u64::from(info.stored_bytes));
    }

    fn close(&mut self, reason: CloseReason, target: &Target) -> Result<Option<BatchObject>, PipelineError> {
        let Some(OpenBatch { builder, records, plain_bytes }) = self.open.take() else { return Ok(None) };
        let lane = &target.lane;
        let FinishedBatch { body, index, sealed_index } = builder
            .finish(&lane.catalog, &target.object, lane.confirmed.get())
            .map_err(|source| PipelineError::Index { object: target.object.clone(), source: Arc::new(source) })?;
        metrics::counter!(names::PIPELINE_BATCHES, "reason" => reason.as_str()).increment(1);
        let name = target.object.clone();
        let (vault, lane, n) = (lane.vault, lane.lane, target.n);
        Ok(Some(BatchObject { vault, lane, n, name, body, index, sealed_index, records, plain_bytes }))
    }
}

#[cfg(test)]
mod tests;
