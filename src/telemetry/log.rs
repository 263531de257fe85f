//! Logging: text for people, JSON for machines, chosen by option or environment.

use tracing::Subscriber;
use tracing_subscriber::filter::{FilterExt, LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use super::traces::{Traces, is_own_span};

/// How log lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// One line of text per event.
    #[default]
    Text,
    /// One JSON object per event.
    Json,
}

/// Starts logging to standard error, and whatever takes traces. `TIDEGATE_LOG` sets the log's filter (default `info`).
pub fn start(format: LogFormat, traces: &Traces) {
    let filter = EnvFilter::try_from_env("TIDEGATE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // A second start (tests in one process) keeps the first.
    let _ = subscriber(format, filter, traces).try_init();
}

fn subscriber(format: LogFormat, filter: EnvFilter, traces: &Traces) -> impl Subscriber + Send + Sync + use<> {
    // A line is the same with and without traces. Without the hint nobody would know that `debug` is off before he asks
    // for each event, of which there are some on the way of every datagram.
    let lines_only = filter_fn(|metadata| !is_own_span(metadata)).with_max_level_hint(LevelFilter::TRACE);
    let filter = filter.and(lines_only);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Text => {
            lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).with_filter(filter).boxed()
        }
        LogFormat::Json => lines.json().flatten_event(true).with_filter(filter).boxed(),
    };
    tracing_subscriber::registry().with(traces.layer()).with(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_switched_off_is_known_before_it_is_asked_for() {
        for (filter, level) in [("info", LevelFilter::INFO), ("warn,tidegate=debug", LevelFilter::DEBUG)] {
            for format in [LogFormat::Text, LogFormat::Json] {
                let subscriber = subscriber(format, EnvFilter::new(filter), &Traces::none());
                assert_eq!(subscriber.max_level_hint(), Some(level), "{filter} {format:?}");
            }
        }
    }
}
