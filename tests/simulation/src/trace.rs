//! What happened, in order: a rolling digest over every event of a run, and the last events as text.
//!
//! Two runs of one seed must have the same digest. Lines of the product's own log are events too, with the simulated
//! time and the node in whose turn they were written. The trace belongs to the thread that runs the seed.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{BufWriter, Write as _};

use tokio::time::Instant;
use tracing::field::{Field, Visit};
use tracing::{Level, Metadata, Subscriber, span};

/// Events kept as text for the report of a failure.
const KEPT: usize = 120;

thread_local! {
    static TRACE: RefCell<Option<Trace>> = const { RefCell::new(None) };
    /// Simulated time of the present window's start, in microseconds.
    static NOW: Cell<u64> = const { Cell::new(0) };
    /// The node whose turn it is: its name, and when its clock started by both times.
    static TURN: Cell<Option<Turn>> = const { Cell::new(None) };
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// The node whose turn it is.
#[derive(Clone, Copy)]
pub struct Turn {
    /// Its name.
    pub name: &'static str,
    /// Its runtime's clock when it was born.
    pub base: Instant,
    /// Simulated time then, in microseconds.
    pub born: u64,
}

struct Trace {
    digest: blake3::Hasher,
    events: u64,
    last: VecDeque<String>,
    file: Option<BufWriter<File>>,
    line: String,
}

/// What is left of a trace when the run is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Digest over all events, as hexadecimal digits.
    pub digest: String,
    /// How many there were.
    pub events: u64,
    /// The last of them.
    pub last: Vec<String>,
}

/// Starts this thread's trace; with `file`, every event is written there as a line.
pub fn start(file: Option<File>) {
    let file = file.map(BufWriter::new);
    let trace = Trace { digest: blake3::Hasher::new(), events: 0, last: VecDeque::new(), file, line: String::new() };
    TRACE.set(Some(trace));
}

/// Ends this thread's trace.
#[must_use]
pub fn finish() -> Summary {
    let Some(mut trace) = TRACE.take() else { return Summary { digest: String::new(), events: 0, last: Vec::new() } };
    if let Some(file) = &mut trace.file {
        // The trace file is a help for people; a full disk must not fail the run.
        let _ = file.flush();
    }
    let digest = trace.digest.finalize().to_hex()[..32].to_owned();
    Summary { digest, events: trace.events, last: trace.last.into() }
}

/// Sets the simulated time of the window that begins.
pub fn window(now: u64) {
    NOW.set(now);
}

/// Says whose turn it is.
pub fn turn(turn: Option<Turn>) {
    TURN.set(turn);
}

/// Simulated time, in microseconds.
#[must_use]
pub fn now() -> u64 {
    match TURN.get() {
        Some(turn) => turn.born + Instant::now().saturating_duration_since(turn.base).as_micros() as u64,
        None => NOW.get(),
    }
}

/// Adds an event.
pub fn event(text: fmt::Arguments<'_>) {
    add(text, true);
}

/// Adds an event that is not worth a place among the last ones.
pub fn note(text: fmt::Arguments<'_>) {
    add(text, false);
}

fn add(text: fmt::Arguments<'_>, keep: bool) {
    TRACE.with(|trace| {
        // An event inside the formatting of an event is not worth a panic.
        let Ok(mut trace) = trace.try_borrow_mut() else { return };
        let Some(trace) = trace.as_mut() else { return };
        let (now, node) = (now(), TURN.get().map_or("world", |turn| turn.name));
        trace.line.clear();
        let _ = write!(trace.line, "{:>4}.{:06} {node:<5} {text}", now / 1_000_000, now % 1_000_000);
        trace.digest.update(trace.line.as_bytes()).update(b"\n");
        trace.events += 1;
        if let Some(file) = &mut trace.file {
            let _ = writeln!(file, "{}", trace.line);
        }
        if keep {
            if trace.last.len() == KEPT {
                trace.last.pop_front();
            }
            trace.last.push_back(trace.line.clone());
        }
    });
}

/// Adds an event, with the arguments of `format!`.
#[macro_export]
macro_rules! event {
    ($($text:tt)*) => { $crate::trace::event(format_args!($($text)*)) };
}

/// Adds an event that is not worth a place among the last ones, with the arguments of `format!`.
#[macro_export]
macro_rules! note {
    ($($text:tt)*) => { $crate::trace::note(format_args!($($text)*)) };
}

/// Panics of the run so far: each is a failure, whoever caught it.
#[must_use]
pub fn take_panics() -> Vec<String> {
    PANICS.take()
}

/// From now on panics of threads with a trace are kept for [`take_panics`], and the log of the product becomes events.
pub fn install(level: Level) {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let traced = TRACE.with(|trace| trace.try_borrow().is_ok_and(|trace| trace.is_some()));
        if traced {
            let text = info.to_string().replace('\n', " ");
            // At once: a second panic, out of what the first one left half done, may end the process.
            eprintln!("PANIC at {} us: {text}", now());
            event(format_args!("PANIC {text}"));
            PANICS.with_borrow_mut(|panics| panics.push(text));
        } else {
            before(info);
        }
    }));
    // A second call finds the first one's subscriber, which does the same.
    let _ = tracing::subscriber::set_global_default(Log { level });
}

/// Turns log lines into events.
struct Log {
    level: Level,
}

struct Fields<'a>(&'a mut String);

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        let _ = match field.name() {
            "message" => write!(self.0, " {value}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level && metadata.target().starts_with("tidegate")
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(self.level.into())
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, logged: &tracing::Event<'_>) {
        let mut text = String::new();
        logged.record(&mut Fields(&mut text));
        let target = logged.metadata().target().trim_start_matches("tidegate::");
        event(format_args!("{} {target}:{text}", logged.metadata().level()));
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}
