//! How far a long run is, for people and for programs.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use tokio::time::Instant;

use crate::config::show_size;
use crate::restore::progress::Progress;

/// How progress is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub(in crate::cli) enum ProgressMode {
    /// A bar on a terminal, nothing elsewhere.
    #[default]
    Auto,
    /// A line of text every few seconds.
    Plain,
    /// Nothing.
    None,
    /// A JSON object per line every second.
    Json,
}

/// How far, how fast and how long yet.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Pace {
    done_bytes: u64,
    total_bytes: u64,
    bytes_per_second: f64,
    /// None as long as nothing was done.
    left_seconds: Option<f64>,
}

impl Pace {
    fn of(done_bytes: u64, total_bytes: u64, seconds: f64) -> Self {
        let bytes_per_second = done_bytes as f64 / seconds.max(1e-3);
        let left = total_bytes.saturating_sub(done_bytes) as f64;
        let left_seconds = (done_bytes > 0).then(|| left / bytes_per_second);
        Self { done_bytes, total_bytes, bytes_per_second, left_seconds }
    }

    fn text(&self, what: &str) -> String {
        let what = if what.is_empty() { String::new() } else { format!("{what}: ") };
        let left = self.left_seconds.map(|seconds| format!(", {seconds:.0} s left")).unwrap_or_default();
        let (done, total) = (show_size(self.done_bytes), show_size(self.total_bytes));
        format!("{what}{done} of {total} read, {}/s{left}", show_size(self.bytes_per_second as u64))
    }

    fn json(&self, what: &str) -> String {
        let mut line = json!({
            "done_bytes": self.done_bytes,
            "total_bytes": self.total_bytes,
            "bytes_per_second": self.bytes_per_second,
            "left_seconds": self.left_seconds,
        });
        if !what.is_empty() {
            line["disk"] = what.into();
        }
        line.to_string()
    }
}

/// Shows progress until it is aborted.
pub(in crate::cli) async fn show(mode: ProgressMode, progress: Arc<Progress>) {
    show_of(mode, progress, String::new()).await;
}

/// [`show`], where `what` says of which disk.
pub(super) async fn show_of(mode: ProgressMode, progress: Arc<Progress>, what: String) {
    let terminal = std::io::stderr().is_terminal();
    match mode {
        ProgressMode::Auto if terminal => bar(&progress, what).await,
        ProgressMode::Auto | ProgressMode::None => {}
        ProgressMode::Plain => lines(Duration::from_secs(5), &progress, |pace| pace.text(&what)).await,
        ProgressMode::Json => lines(Duration::from_secs(1), &progress, |pace| pace.json(&what)).await,
    }
}

async fn lines(every: Duration, progress: &Progress, text: impl Fn(Pace) -> String) {
    let mut ticks = tokio::time::interval(every);
    let mut started: Option<Instant> = None;
    loop {
        ticks.tick().await;
        let (done, total) = progress.get();
        if total > 0 {
            // What came before there was anything to read is no part of the pace.
            let seconds = started.get_or_insert_with(Instant::now).elapsed().as_secs_f64();
            eprintln!("{}", text(Pace::of(done, total, seconds)));
        }
    }
}

async fn bar(progress: &Progress, what: String) {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{msg}{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    if !what.is_empty() {
        bar.set_message(format!("{what} "));
    }
    let mut ticks = tokio::time::interval(Duration::from_millis(200));
    loop {
        ticks.tick().await;
        let (done, total) = progress.get();
        if total > 0 {
            bar.set_length(total);
            bar.set_position(done);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_says_how_long_it_takes_yet() {
        let pace = Pace::of(1 << 30, 4 << 30, 8.0);
        assert_eq!(pace.text(""), "1 GiB of 4 GiB read, 128 MiB/s, 24 s left");
        assert_eq!(pace.text("web.sda"), "web.sda: 1 GiB of 4 GiB read, 128 MiB/s, 24 s left");
        assert_eq!(Pace::of(0, 4 << 30, 0.0).text(""), "0 B of 4 GiB read, 0 B/s");
        let line: serde_json::Value = serde_json::from_str(&pace.json("web.sda")).expect("JSON");
        assert_eq!((&line["disk"], &line["left_seconds"]), (&"web.sda".into(), &24.0.into()));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&pace.json("")).expect("JSON").get("disk"), None);
    }
}
