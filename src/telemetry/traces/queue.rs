//! Spans that have ended, on their way to the receiver: a bounded queue, and the thread `tg-trace` that empties it.
//!
//! The library's own batches count nothing of what they drop, tell the log of every failure, and send on a thread without
//! a runtime, where the asynchronous client panics. Here a span that finds the queue full is counted, and a receiver that is away is told of
//! once until it is back.
//!
//! Shutdown: the queue closes, what is in it is sent, and whoever waits does so for a bounded time; the thread ends with the
//! process. Crash: what is in the queue is gone.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc as waiting};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter, SpanProcessor};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::telemetry::names;

/// Spans that wait: what a gateway makes while all its disks are opened anew, and with some KiB each a few MiB.
pub const QUEUE_SPANS_MAX: usize = 2048;
/// Spans of one request: below a receiver's usual limit of 4 MiB.
const BATCH_SPANS_MAX: usize = 512;
/// How long the first span of a batch waits for others: a trace comes as a whole, and nobody looks sooner.
const GATHER: Duration = Duration::from_secs(1);

/// How long a batch may take with all attempts; a receiver may ask for any pause between them.
const BATCH_PATIENCE: Duration = Duration::from_secs(30);

/// What became of spans.
#[derive(Debug, Default)]
pub struct Counts {
    pub sent: AtomicU64,
    pub lost: AtomicU64,
}

impl Counts {
    fn sent(&self, spans: u64) {
        self.sent.fetch_add(spans, Ordering::Relaxed);
        metrics::counter!(names::TRACE_SPANS, "outcome" => "sent").increment(spans);
    }

    fn lost(&self, spans: u64) {
        self.lost.fetch_add(spans, Ordering::Relaxed);
        metrics::counter!(names::TRACE_SPANS, "outcome" => "lost").increment(spans);
    }
}

/// The queue's way in.
pub struct Queue {
    /// None once it is closed.
    spans: Mutex<Option<mpsc::Sender<SpanData>>>,
    ended: Mutex<waiting::Receiver<()>>,
    counts: Arc<Counts>,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("counts", &self.counts).finish_non_exhaustive()
    }
}

impl Queue {
    /// Starts the thread that hands spans to `exporter`, which sends them to `place`.
    ///
    /// # Errors
    /// The system's, if it gives no thread.
    pub fn start(exporter: impl SpanExporter + 'static, place: String) -> std::io::Result<Self> {
        let (spans, taken) = mpsc::channel(QUEUE_SPANS_MAX);
        let (end, ended) = waiting::sync_channel(1);
        let counts = Arc::new(Counts::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let sender = Sender { exporter, place, counts: Arc::clone(&counts), is_reached: true };
        std::thread::Builder::new().name("tg-trace".into()).spawn(move || {
            runtime.block_on(sender.run(taken));
            // Whoever waits may have given up.
            let _ = end.send(());
            // A name that is still looked up is not waited for.
            runtime.shutdown_background();
        })?;
        Ok(Self { spans: Mutex::new(Some(spans)), ended: Mutex::new(ended), counts })
    }

    /// What became of the spans so far.
    #[cfg(test)]
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if !span.span_context.is_sampled() {
            return;
        }
        let queued = self.spans.lock().as_ref().is_some_and(|spans| spans.try_send(span).is_ok());
        if !queued {
            self.counts.lost(1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        // Nobody asks for it: a batch waits for a second at most.
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        drop(self.spans.lock().take());
        match self.ended.lock().recv_timeout(timeout) {
            Err(waiting::RecvTimeoutError::Timeout) => Err(OTelSdkError::Timeout(timeout)),
            // The second of two that stop finds nobody there.
            Ok(()) | Err(waiting::RecvTimeoutError::Disconnected) => Ok(()),
        }
    }
}

/// The queue's way out.
struct Sender<E> {
    exporter: E,
    place: String,
    counts: Arc<Counts>,
    /// Whether the last batch arrived.
    is_reached: bool,
}

impl<E: SpanExporter> Sender<E> {
    async fn run(mut self, mut spans: mpsc::Receiver<SpanData>) {
        let mut batch = Vec::new();
        while gather(&mut spans, &mut batch).await {
            let count = batch.len() as u64;
            let sent = tokio::time::timeout(BATCH_PATIENCE, self.exporter.export(std::mem::take(&mut batch))).await;
            let sent = sent.unwrap_or(Err(OTelSdkError::Timeout(BATCH_PATIENCE)));
            match &sent {
                Ok(()) => self.counts.sent(count),
                Err(_) => self.counts.lost(count),
            }
            self.tell(sent);
        }
    }

    /// Tells of a receiver that is away once, and once of its return.
    fn tell(&mut self, sent: OTelSdkResult) {
        let place = &self.place;
        match sent {
            Err(error) if self.is_reached => {
                tracing::warn!(
                    "traces do not reach {place}, and are dropped until they do; nothing waits for them: {error}"
                );
                self.is_reached = false;
            }
            Ok(()) if !self.is_reached => {
                tracing::info!("traces reach {place} again");
                self.is_reached = true;
            }
            _ => {}
        }
    }
}

/// Waits for a batch; false once the queue is closed and empty.
async fn gather(spans: &mut mpsc::Receiver<SpanData>, batch: &mut Vec<SpanData>) -> bool {
    if spans.recv_many(batch, BATCH_SPANS_MAX).await == 0 {
        return false;
    }
    let until = Instant::now() + GATHER;
    while batch.len() < BATCH_SPANS_MAX {
        let room = BATCH_SPANS_MAX - batch.len();
        match tokio::time::timeout_at(until, spans.recv_many(batch, room)).await {
            Ok(1..) => {}
            // Closed, or the time is over.
            Ok(0) | Err(_) => break,
        }
    }
    true
}
