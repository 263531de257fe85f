//! The verbs of the command line: options, and what is printed.

pub mod bench;
pub mod codecs;
pub mod limit;
pub mod proxy;
pub mod report;
pub mod run;
pub mod sink;
pub mod table;
pub mod vault;

use std::process::ExitCode;
use std::time::Duration;

use tidegate::config::{parse_duration, parse_size};
use tidegate::flow::{Clock as _, SystemClock};

/// How often the counts are printed.
const REPORT_EVERY: Duration = Duration::from_secs(10);
/// How often outages and rebindings are looked at.
const LOOK: Duration = Duration::from_millis(20);

/// What a verb ends with, or why it could not be done.
pub type Outcome = Result<ExitCode, Box<dyn std::error::Error>>;

/// A time on the command line.
pub fn time(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "write for example \"40 ms\"".into())
}

/// A size on the command line.
pub fn size(text: &str) -> Result<u64, String> {
    parse_size(text).ok_or_else(|| "write for example \"10 MiB\"".into())
}

/// An outage on the command line: start and length.
pub fn outage(text: &str) -> Result<(Duration, Duration), String> {
    let (start, length) = text.split_once('+').ok_or("write for example \"30 s+10 min\"")?;
    Ok((time(start.trim())?, time(length.trim())?))
}

/// Calls `look` with the time since the start, and prints what `report` gives now and then. Runs until the process is
/// ended.
pub fn watch(mut look: impl FnMut(Duration), report: impl Fn() -> Option<String>) -> ! {
    let clock = SystemClock::new();
    let mut reports = 0;
    loop {
        std::thread::sleep(LOOK);
        let now = clock.monotonic();
        look(now);
        if now > REPORT_EVERY * (reports + 1) {
            reports += 1;
            if let Some(text) = report() {
                println!("{:>6} s  {text}", now.as_secs());
            }
        }
    }
}
