//! What the kernel accounts of a process, and the figures of this one that every Prometheus client gives, under their usual
//! names.

use std::io;

use super::{names, text};

/// The figures now, as Prometheus reads them; empty where the system keeps no such accounts.
#[must_use]
pub fn lines() -> String {
    let mut out = String::new();
    let times = times("self").ok();
    for (name, value) in [
        (names::PROCESS_RESIDENT_BYTES, resident_bytes().map(|bytes| bytes as f64)),
        (names::PROCESS_CPU_SECONDS, times.map(|times| times.cpu_seconds)),
        (names::PROCESS_START_SECONDS, times.and_then(|times| Some(boot_seconds()? + times.started_seconds))),
        (names::PROCESS_OPEN_FDS, open_files().map(|count| count as f64)),
    ] {
        if let Some(value) = value {
            text::single(&mut out, name, value);
        }
    }
    out
}

/// What this process holds in memory.
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    // Such a file is the kernel's own memory: reading it waits for no disk.
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    Some(field(&text, "VmRSS")? << 10)
}

/// The number after `name:` in a file of such lines, of which the kernel has many.
#[must_use]
pub fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Times of a process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Times {
    /// User and system time of all its threads, those that ended too.
    pub cpu_seconds: f64,
    /// Its start, since the machine's.
    pub started_seconds: f64,
}

/// The times of a process, named by its number or `self`; also of one that has ended, until its end was asked for.
///
/// # Errors
/// If it is gone, or the system keeps no such accounts.
pub fn times(process: &str) -> io::Result<Times> {
    let path = format!("/proc/{process}/stat");
    let text = std::fs::read_to_string(&path)?;
    // The name stands in brackets and may hold anything.
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks_per_second = rustix::param::clock_ticks_per_second() as f64;
    let seconds = |at: usize| {
        let ticks = fields.get(at).and_then(|text| text.parse::<u64>().ok());
        let ticks =
            ticks.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{path} is not understood")));
        Ok::<_, io::Error>(ticks? as f64 / ticks_per_second)
    };
    Ok(Times { cpu_seconds: seconds(11)? + seconds(12)?, started_seconds: seconds(19)? })
}

fn boot_seconds() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

fn open_files() -> Option<usize> {
    Some(std::fs::read_dir("/proc/self/fd").ok()?.count())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Clock, SystemClock};

    #[test]
    fn this_process_is_there_since_a_while_and_has_used_something() {
        assert!(resident_bytes().is_none_or(|bytes| bytes > 1 << 20));
        let now = SystemClock::new().wall().0 as f64 / 1e6;
        if let (Ok(times), Some(boot)) = (times("self"), boot_seconds()) {
            assert!(times.cpu_seconds >= 0.0);
            assert!((now - 86_400.0..now + 2.0).contains(&(boot + times.started_seconds)), "not of today");
        }
        let text = lines();
        assert!(
            text.is_empty() || text.contains("# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total ")
        );
    }

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        assert_eq!(field("VmRSSx:\t1 kB\nVmRSS:\t 23 kB\n", "VmRSS"), Some(23));
        assert_eq!(field("a: x\n", "a"), None);
        assert!(times("0").is_err());
    }
}
