//! How long acks take, by level: from receiving a record until its ack may be sent.
//!
//! Inside, a histogram of three significant digits counts every record; it is locked once for a commit or a batch, never for
//! a record. Outside, its counts stand in buckets that are at most [`FINE_STEP`] apart where the level's answers are usual
//! and alerts look, so that a percentile taken from them is at most 5 % off there, and further apart elsewhere. All buckets
//! are there from the start, so rates are right from the first record.

use std::fmt::Write;
use std::sync::LazyLock;

use hdrhistogram::Histogram;
use parking_lot::Mutex;

use super::{names, text};

/// Shortest and longest time that is told apart: a microsecond and an hour.
const MICROS_MAX: u64 = 3_600_000_000;
/// Each bucket's end over the one before, where it matters. Rounded to four digits it stays within 5 %.
const FINE_STEP: f64 = 1.048;
/// The same elsewhere.
const COARSE_STEP: f64 = 1.5;
/// Where buckets begin and end: what is faster or slower than these needs no telling apart.
const ENDS: (f64, f64) = (100e-6, 600.0);

/// One level's times.
pub struct Latency {
    level: &'static str,
    ends: Vec<f64>,
    state: Mutex<State>,
}

struct State {
    // None only if the bounds above were none.
    counts: Option<Histogram<u64>>,
    seconds: f64,
}

/// To the gateway's disk: commits of a good disk take milliseconds, and 100 ms are felt.
static JOURNALED: LazyLock<Latency> = LazyLock::new(|| Latency::new("journaled", (1e-3, 100e-3)));
/// To the vault: the age of a batch and a request, up to the least objective that anybody sets.
static VAULTED: LazyLock<Latency> = LazyLock::new(|| Latency::new("vaulted", (0.5, 30.0)));

/// Of acks of the level journaled.
#[must_use]
pub fn journaled() -> &'static Latency {
    &JOURNALED
}

/// Of acks of the level vaulted.
#[must_use]
pub fn vaulted() -> &'static Latency {
    &VAULTED
}

/// The ends of the buckets, fine between `fine`.
fn ends(fine: (f64, f64)) -> Vec<f64> {
    let mut ends = Vec::new();
    let mut end = ENDS.0;
    while end < ENDS.1 {
        ends.push(four_digits(end));
        let step = if end >= fine.0 && end < fine.1 { FINE_STEP } else { COARSE_STEP };
        let next = end * step;
        // A coarse step does not run past the begin of the fine ones.
        end = if end < fine.0 && next > fine.0 { fine.0 } else { next };
    }
    ends
}

fn four_digits(value: f64) -> f64 {
    let scale = 10_f64.powi(3 - value.log10().floor() as i32);
    (value * scale).round() / scale
}

impl Latency {
    fn new(level: &'static str, fine: (f64, f64)) -> Self {
        let counts = Histogram::new_with_bounds(1, MICROS_MAX, 3).ok();
        Self { level, ends: ends(fine), state: Mutex::new(State { counts, seconds: 0.0 }) }
    }

    /// Counts records by the microseconds that they took: one lock for all of them.
    pub fn record(&self, times: impl IntoIterator<Item = (u64, u64)>) {
        let mut state = self.state.lock();
        let State { counts: Some(counts), seconds } = &mut *state else { return };
        let mut micros_sum = 0.0;
        for (micros, records) in times {
            counts.saturating_record_n(micros.max(1), records);
            micros_sum += micros as f64 * records as f64;
        }
        *seconds += micros_sum / 1e6;
    }

    fn lines(&self, out: &mut String) {
        let (name, level) = (names::ACK_SECONDS, self.level);
        let state = self.state.lock();
        let Some(counts) = &state.counts else { return };
        let mut recorded = counts.iter_recorded().peekable();
        let mut below = 0;
        for end in &self.ends {
            while let Some(step) = recorded.next_if(|step| step.value_iterated_to() as f64 <= end * 1e6) {
                below += step.count_since_last_iteration();
            }
            let _ = writeln!(out, "{name}_bucket{{level=\"{level}\",le=\"{end}\"}} {below}");
        }
        let all = counts.len();
        let _ = writeln!(out, "{name}_bucket{{level=\"{level}\",le=\"+Inf\"}} {all}");
        let _ = writeln!(out, "{name}_sum{{level=\"{level}\"}} {}", text::number(state.seconds));
        let _ = writeln!(out, "{name}_count{{level=\"{level}\"}} {all}");
    }
}

/// The times of both levels, as Prometheus reads them.
#[must_use]
pub fn lines() -> String {
    let mut out = String::new();
    text::head(&mut out, names::ACK_SECONDS);
    JOURNALED.lines(&mut out);
    VAULTED.lines(&mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_within_five_percent_where_it_matters_and_few_elsewhere() {
        for latency in [&*JOURNALED, &*VAULTED] {
            let fine = if latency.level == "journaled" { (1e-3, 100e-3) } else { (0.5, 30.0) };
            let ends = &latency.ends;
            assert!(ends.windows(2).all(|pair| pair[0] < pair[1]), "{ends:?}");
            let within = |pair: &&[f64]| pair[0] >= fine.0 && pair[1] <= fine.1;
            let worst = ends.windows(2).filter(within).map(|pair| pair[1] / pair[0]).fold(0.0, f64::max);
            assert!(worst > 1.0 && worst <= 1.05, "{worst}");
            assert!(ends.contains(&fine.0) && ends.last() > Some(&fine.1), "{ends:?}");
            assert!(ends.len() < 140, "{} lines for a level", ends.len());
        }
    }

    /// A percentile from the buckets, as Prometheus takes it.
    fn quantile(page: &str, level: &str, wanted: f64) -> f64 {
        let start = format!("tidegate_ack_seconds_bucket{{level=\"{level}\",le=\"");
        let rows = page.lines().filter_map(|line| line.strip_prefix(&start)?.split_once("\"} "));
        let rows: Vec<(f64, f64)> =
            rows.map(|(end, count)| (end.parse().expect("a bound"), count.parse().expect("a count"))).collect();
        let rank = wanted * rows.last().expect("rows").1;
        let at = rows.iter().position(|(_, count)| *count >= rank).expect("all are in the last");
        let (below_end, below) = at.checked_sub(1).map_or((0.0, 0.0), |before| rows[before]);
        below_end + (rows[at].0 - below_end) * (rank - below) / (rows[at].1 - below)
    }

    #[test]
    fn percentiles_from_the_page_are_within_five_percent() {
        let latency = Latency::new("journaled", (1e-3, 100e-3));
        // 1 ms to 90 ms, more of the short ones.
        let micros: Vec<u64> = (0..5000_u32).map(|n| 1000 + (f64::from(n).powi(2) / 280.0) as u64).collect();
        for batch in micros.chunks(100) {
            latency.record(batch.iter().map(|micros| (*micros, 1)));
        }
        let mut page = String::new();
        latency.lines(&mut page);
        for wanted in [0.1, 0.5, 0.9, 0.99, 0.999] {
            let exact = micros[(wanted * 5000.0) as usize] as f64 / 1e6;
            let found = quantile(&page, "journaled", wanted);
            assert!((found / exact - 1.0).abs() < 0.05, "p{wanted}: {found} instead of {exact}");
        }
        assert!(page.contains("tidegate_ack_seconds_count{level=\"journaled\"} 5000\n"), "{page}");
    }

    #[test]
    fn times_without_measure_are_counted_at_the_ends() {
        let latency = Latency::new("vaulted", (0.5, 30.0));
        latency.record([(0, 2), (u64::MAX / 4, 3)]);
        let mut page = String::new();
        latency.lines(&mut page);
        assert!(page.contains("le=\"0.0001\"} 2\n") && page.contains("le=\"+Inf\"} 5\n"), "{page}");
    }
}
