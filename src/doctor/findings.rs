//! From facts to findings: what is right, what is not, and what to do. Pure.

mod files;
mod host;
mod network;
#[cfg(test)]
mod tests;

use super::facts::Facts;
use crate::fault::exit;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// As it should be.
    Ok,
    /// It works, and will hurt.
    Warn,
    /// It does not work.
    Fail,
}

impl Grade {
    /// Its word in texts.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// The check's name: stable, for programs.
    pub check: &'static str,
    /// How it ended.
    pub grade: Grade,
    /// What was measured or seen.
    pub measured: String,
    /// What to do; empty if nothing is to be done.
    pub advice: String,
    /// Whether another try may end otherwise with nothing changed here.
    pub passing: bool,
}

impl Finding {
    fn ok(check: &'static str, measured: impl Into<String>) -> Self {
        Self { check, grade: Grade::Ok, measured: measured.into(), advice: String::new(), passing: false }
    }

    fn warn(check: &'static str, measured: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { grade: Grade::Warn, advice: advice.into(), ..Self::ok(check, measured) }
    }

    fn fail(check: &'static str, measured: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { grade: Grade::Fail, advice: advice.into(), ..Self::ok(check, measured) }
    }

    fn passing(self, passing: bool) -> Self {
        Self { passing, ..self }
    }
}

/// Every finding, in the order in which a host is set up.
#[must_use]
pub fn examine(facts: &Facts) -> Vec<Finding> {
    let mut out = host::findings(facts);
    out.extend(files::findings(facts));
    out.extend(network::findings(facts));
    out
}

/// The exit code: 0 if nothing failed, 75 if all that failed may pass by itself, else 1.
#[must_use]
pub fn worst_code(findings: &[Finding]) -> u8 {
    let mut failed = findings.iter().filter(|finding| finding.grade == Grade::Fail).peekable();
    if failed.peek().is_none() {
        return exit::OK;
    }
    if failed.all(|finding| finding.passing) { exit::TRY_AGAIN } else { exit::ERROR }
}

/// A time as people say it.
fn time(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..1_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        _ => format!("{:.1} s", micros as f64 / 1e6),
    }
}

/// The value below which `percent` of the sorted values lie.
fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(at).copied().unwrap_or_default()
}
