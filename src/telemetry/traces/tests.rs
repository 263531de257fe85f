use std::sync::atomic::Ordering;
use std::time::Duration;

use opentelemetry::trace::{Span as _, Tracer as _, TracerProvider as _};
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::time::Instant;
use tracing::Instrument;
use tracing_subscriber::layer::SubscriberExt;

use super::queue::{QUEUE_SPANS_MAX, Queue};
use super::{is_own_span, within};

/// What a receiver does with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Takes,
    Refuses,
    Hangs,
}

#[derive(Debug, Clone)]
struct Receiver {
    answer: Answer,
    batches: Arc<Mutex<Vec<Vec<SpanData>>>>,
}

impl Receiver {
    fn new(answer: Answer) -> Self {
        Self { answer, batches: Arc::default() }
    }

    fn names(&self) -> Vec<String> {
        self.batches.lock().iter().flatten().map(|span| span.name.to_string()).collect()
    }

    fn provider(&self) -> (SdkTracerProvider, Arc<super::queue::Counts>) {
        let queue = Queue::start(self.clone(), "http://receiver".into()).expect("a thread");
        let counts = queue.counts();
        (SdkTracerProvider::builder().with_span_processor(queue).build(), counts)
    }
}

impl SpanExporter for Receiver {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.batches.lock().push(batch);
        match self.answer {
            Answer::Takes => Ok(()),
            Answer::Refuses => Err(OTelSdkError::InternalFailure("refused".into())),
            Answer::Hangs => std::future::pending().await,
        }
    }
}

fn make(provider: &SdkTracerProvider, spans: usize) {
    let tracer = provider.tracer("test");
    for _ in 0..spans {
        tracer.start("span").end();
    }
}

#[test]
fn what_ended_before_the_stop_is_sent_in_few_batches() {
    let receiver = Receiver::new(Answer::Takes);
    let (provider, counts) = receiver.provider();
    make(&provider, 700);
    provider.shutdown_with_timeout(Duration::from_secs(20)).expect("stopped");
    assert_eq!((receiver.names().len(), counts.sent.load(Ordering::Relaxed)), (700, 700));
    assert!(receiver.batches.lock().len() <= 4, "{}", receiver.batches.lock().len());
    make(&provider, 3);
    assert_eq!(receiver.names().len(), 700, "what comes after it goes nowhere");
}

#[test]
fn what_a_receiver_refuses_is_counted_as_lost() {
    let receiver = Receiver::new(Answer::Refuses);
    let (provider, counts) = receiver.provider();
    make(&provider, 5);
    provider.shutdown_with_timeout(Duration::from_secs(20)).expect("stopped");
    assert_eq!((counts.sent.load(Ordering::Relaxed), counts.lost.load(Ordering::Relaxed)), (0, 5));
}

#[test]
fn a_receiver_that_hangs_holds_up_neither_spans_nor_the_stop() {
    let receiver = Receiver::new(Answer::Hangs);
    let (provider, counts) = receiver.provider();
    let began = Instant::now();
    make(&provider, 3 * QUEUE_SPANS_MAX);
    let lost = counts.lost.load(Ordering::Relaxed) as usize;
    // Beside the queue there is the batch that hangs.
    assert!((QUEUE_SPANS_MAX..=2 * QUEUE_SPANS_MAX).contains(&lost), "{lost}");
    provider.shutdown_with_timeout(Duration::from_millis(200)).expect_err("it hangs");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[test]
fn a_span_inside_of_another_is_its_child_and_one_that_fails_says_so() {
    let receiver = Receiver::new(Answer::Takes);
    let (provider, _) = receiver.provider();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
    let subscriber = tracing_subscriber::registry().with(layer);
    tracing::subscriber::with_default(subscriber, || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        let outer = within(tracing::info_span!("outer"), async {
            let inner = within(tracing::info_span!("inner", disk = "d1"), async { Err::<(), _>("it broke") });
            inner.await.expect_err("broken");
            tracing::info!("going on");
            async {}.instrument(tracing::info_span!("after")).await;
            Ok::<_, String>(())
        });
        runtime.block_on(outer).expect("well");
    });
    provider.shutdown_with_timeout(Duration::from_secs(20)).expect("stopped");
    let spans = receiver.batches.lock().concat();
    let find = |name: &str| spans.iter().find(|span| span.name == name).expect("sent");
    let (inner, outer, after) = (find("inner"), find("outer"), find("after"));
    for child in [inner, after] {
        assert_eq!(child.parent_span_id, outer.span_context.span_id());
        assert_eq!(child.span_context.trace_id(), outer.span_context.trace_id());
    }
    assert_eq!(inner.status, opentelemetry::trace::Status::error("it broke"));
    assert_eq!(outer.status, opentelemetry::trace::Status::Unset);
    assert!(inner.attributes.iter().any(|pair| pair.key.as_str() == "disk" && pair.value.as_str() == "d1"));
    assert_eq!(outer.events.iter().map(|event| &*event.name).collect::<Vec<_>>(), ["going on"]);
}

#[test]
fn the_log_shows_none_of_our_spans_and_all_of_others() {
    struct Ask;
    impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Ask {
        fn on_new_span(
            &self,
            attributes: &tracing::span::Attributes<'_>,
            _: &tracing::Id,
            _: tracing_subscriber::layer::Context<'_, S>,
        ) {
            let metadata = attributes.metadata();
            assert_eq!(is_own_span(metadata), metadata.name() == "ours", "{metadata:?}");
        }
    }
    tracing::subscriber::with_default(tracing_subscriber::registry().with(Ask), || {
        drop(tracing::info_span!("ours"));
        drop(tracing::info_span!(target: "hyper::client", "theirs"));
    });
}
