//! The figures of a process that every Prometheus client gives, under their usual names.

use super::{names, text};

/// The figures now, as Prometheus reads them; empty where the system keeps no such accounts.
#[must_use]
pub fn lines() -> String {
    let mut out = String::new();
    for (name, value) in [
        (names::PROCESS_RESIDENT_BYTES, resident_bytes().map(|bytes| bytes as f64)),
        (names::PROCESS_CPU_SECONDS, stat().map(|stat| stat.cpu_seconds)),
        (names::PROCESS_START_SECONDS, stat().and_then(|stat| Some(boot_seconds()? + stat.started_seconds))),
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
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib << 10)
}

struct Stat {
    cpu_seconds: f64,
    /// Since the machine started.
    started_seconds: f64,
}

fn stat() -> Option<Stat> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name stands in brackets and may hold anything.
    let fields: Vec<&str> = text.rsplit(')').next()?.split_whitespace().collect();
    let ticks_per_second = rustix::param::clock_ticks_per_second() as f64;
    let seconds = |at: usize| Some(fields.get(at)?.parse::<u64>().ok()? as f64 / ticks_per_second);
    Some(Stat { cpu_seconds: seconds(11)? + seconds(12)?, started_seconds: seconds(19)? })
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
        if let (Some(stat), Some(boot)) = (stat(), boot_seconds()) {
            assert!(stat.cpu_seconds >= 0.0);
            assert!((now - 86_400.0..now + 2.0).contains(&(boot + stat.started_seconds)), "not of today");
        }
        let text = lines();
        assert!(
            text.is_empty() || text.contains("# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total ")
        );
    }
}
