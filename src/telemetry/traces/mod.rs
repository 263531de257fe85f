//! Traces: how long the steps of what is long and single took, told to an OTLP receiver if one is configured.
//!
//! ```text
//!  a span ends ──► layer (filter of its own) ──► queue, bounded ──► tg-trace: batches ──HTTP──► receiver
//!                                                   └── full: counted as lost
//! ```
//!
//! # What is a span
//!
//! What happens seldom, takes long and is one thing: opening a disk, a fork that waits, the replay of a journal, a drain, a
//! run of the keeper, a restore. Never a record, a message, a batch or anything else of the path of the bytes: these share
//! their work with others, and metrics say how long it takes.
//!
//! Agent and gateway make traces of their own, which meet in the attributes `disk` and `epoch`: a peer does not tell a
//! gateway under which trace its work goes.
//!
//! # What holds
//!
//! - Without an endpoint a span costs one look at a flag. The log is the same with and without one: spans are not shown
//!   there, and what is logged inside of a span is also an event of it.
//! - Nothing ever waits for the receiver: what does not fit the queue is dropped and counted, one that is away costs one
//!   warning until it is back, and a stop waits for [`STOP_PATIENCE`] at most.
//! - No secrets: attributes are names, places and counts, and events are lines of the log.
//!
//! Without the feature `otlp` spans are made as before and nobody takes them; settings are read all the same, so that an
//! endpoint that this build cannot serve is refused by name.

#[cfg(feature = "otlp")]
mod export;
#[cfg(feature = "otlp")]
mod queue;
pub mod settings;
#[cfg(not(feature = "otlp"))]
mod without;

use std::fmt::Display;
use std::time::Duration;

use tracing::{Instrument, Metadata, Span};
use tracing_subscriber::{Layer, Registry};

#[cfg(feature = "otlp")]
use self::export::Way;
use self::settings::{Endpoint, Settings};
#[cfg(not(feature = "otlp"))]
use self::without::Way;

/// How long the end of the process waits for traces on their way: a receiver at hand takes them in a fraction of it, and one
/// that is away must not hold up a supervisor.
pub const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// Of whom traces tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// What it is, such as `tidegate-gateway`.
    pub name: &'static str,
    /// Which of them, if it has a name.
    pub instance: Option<String>,
}

/// The traces of this process on their way out, if they go anywhere.
pub struct Traces(Option<Way>);

impl Traces {
    /// Nobody takes any.
    #[must_use]
    pub const fn none() -> Self {
        Self(None)
    }

    /// Sends them to `endpoint` from now on.
    ///
    /// # Errors
    /// Why they cannot be sent, and what to do.
    pub fn start(endpoint: &Endpoint, settings: &Settings, service: &Service) -> Result<Self, String> {
        Way::open(endpoint, settings, service).map(|way| Self(Some(way)))
    }

    /// What takes spans, for the process's one subscriber.
    #[must_use]
    pub fn layer(&self) -> Option<Box<dyn Layer<Registry> + Send + Sync>> {
        self.0.as_ref().map(Way::layer)
    }

    /// Sends what is left, for [`STOP_PATIENCE`] at most.
    pub fn stop(self) {
        if let Some(way) = self.0 {
            way.stop(STOP_PATIENCE);
        }
    }
}

/// Whether this is a span of ours, which the log does not show.
#[must_use]
pub fn is_own_span(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && metadata.target().starts_with(env!("CARGO_PKG_NAME"))
}

/// Does `work` inside of `span`, which tells if it failed. The work lies on the heap, for as long as it takes: what is long and single is large, too,
/// and would else be part of whatever waits for it.
///
/// # Errors
/// Those of `work`.
pub fn within<T, E: Display>(
    span: Span,
    work: impl Future<Output = Result<T, E>>,
) -> impl Future<Output = Result<T, E>> {
    let work = Box::pin(work.instrument(span.clone()));
    async move {
        let outcome = work.await;
        if let Err(error) = &outcome {
            failed(&span, error);
        }
        outcome
    }
}

/// Notes that what `span` stands for failed.
pub fn failed(span: &Span, error: &impl Display) {
    if !span.is_disabled() {
        Way::note_failure(span, error.to_string());
    }
}

#[cfg(feature = "otlp")]
#[cfg(test)]
mod tests;
