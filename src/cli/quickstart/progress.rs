//! What the user sees while it runs: one line per step on standard error, with a spinner on a terminal.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::flow::{Clock as _, SystemClock};

/// The steps of a run, shown as they go.
pub struct Progress {
    clock: SystemClock,
    step: Option<(String, Duration, Option<ProgressBar>)>,
}

impl Progress {
    /// Nothing shown yet.
    #[must_use]
    pub fn new() -> Self {
        Self { clock: SystemClock::new(), step: None }
    }

    /// Time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.clock.monotonic()
    }

    /// Ends the step before and begins one.
    pub fn step(&mut self, text: &str) {
        self.end('✓');
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner().with_message(text.to_owned());
            // The template is fixed and known to parse; if it did not, the default would do.
            if let Ok(style) = ProgressStyle::with_template("  {spinner} {msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        self.step = Some((text.to_owned(), self.clock.monotonic(), bar));
    }

    /// Adds to the line of the step that runs.
    pub fn note(&mut self, text: &str) {
        if let Some((line, _, bar)) = &mut self.step {
            line.push_str(": ");
            line.push_str(text);
            if let Some(bar) = bar {
                bar.set_message(line.clone());
            }
        }
    }

    /// Ends the last step.
    pub fn done(&mut self) {
        self.end('✓');
    }

    /// Ends the last step, which failed.
    pub fn failed(&mut self) {
        self.end('✗');
    }

    fn end(&mut self, mark: char) {
        let Some((line, started, bar)) = self.step.take() else { return };
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        let took = self.clock.monotonic().saturating_sub(started).as_secs_f64();
        eprintln!("  {mark} {line} ({took:.1} s)");
    }
}
