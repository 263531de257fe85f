//! What machines write, and what the operator chooses.

use std::time::Duration;

/// What all machines write together.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Demand {
    /// Machines, each with an agent.
    pub machines: u64,
    /// Disks of each.
    pub disks_per_machine: u64,
    /// Bytes to copy of each disk; none if not known.
    pub disk_bytes: Option<u64>,
    /// Mean rate of writes.
    pub churn_bytes_per_second: f64,
    /// Mean number of writes.
    pub writes_per_second: f64,
    /// The busiest time over the mean.
    pub peak_factor: f64,
}

/// What the operator chooses.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Choices {
    /// How long the busiest time lasts.
    pub peak_lasts: Duration,
    /// Outage of the store, or of the way to it, that journals ride out.
    pub outage: Duration,
    /// How long catching up after it may take.
    pub catch_up: Duration,
    /// How long history is kept.
    pub keep: Duration,
    /// Processors of one gateway.
    pub gateway_cores: u64,
    /// `memory` of one gateway's configuration.
    pub gateway_memory_bytes: u64,
    /// Bits per second that there are to the store; none if that is what is asked.
    pub uplink_bits: Option<f64>,
    /// Time that one answer of the store takes more than a sink on the same machine.
    pub store_latency: Duration,
}

impl Default for Choices {
    fn default() -> Self {
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        Self {
            peak_lasts: hours(1),
            outage: hours(4),
            catch_up: hours(12),
            keep: hours(14 * 24),
            gateway_cores: 4,
            gateway_memory_bytes: 512 << 20,
            uplink_bits: None,
            store_latency: Duration::ZERO,
        }
    }
}

const BYTE_UNITS: [(&str, f64); 10] = [
    ("kib", 1024.0),
    ("mib", 1_048_576.0),
    ("gib", 1_073_741_824.0),
    ("tib", 1_099_511_627_776.0),
    ("kb", 1e3),
    ("mb", 1e6),
    ("gb", 1e9),
    ("tb", 1e12),
    ("pb", 1e15),
    ("b", 1.0),
];
const BIT_UNITS: [(&str, f64); 4] = [("kbit", 1e3), ("mbit", 1e6), ("gbit", 1e9), ("bit", 1.0)];

/// Reads an amount with its unit, such as `1.5 TB`.
fn amount(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let lower = text.trim().to_ascii_lowercase();
    let split = lower.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = (lower[..split].trim().parse::<f64>().ok()?, &lower[split..]);
    let (_, times) = units.iter().find(|(name, _)| *name == unit)?;
    let value = number * times;
    (value.is_finite() && value >= 0.0).then_some(value)
}

/// Reads `2 TB/day`, `24 MiB/s`, `90 GB/h`, in bytes per second.
#[must_use]
pub fn parse_rate(text: &str) -> Option<f64> {
    per_second(text, &BYTE_UNITS)
}

/// Reads `1 Gbit/s`, in bits per second.
#[must_use]
pub fn parse_bit_rate(text: &str) -> Option<f64> {
    per_second(text, &BIT_UNITS)
}

fn per_second(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let (of, per) = text.rsplit_once('/')?;
    let seconds = match per.trim().to_ascii_lowercase().as_str() {
        "s" | "second" => 1.0,
        "min" | "minute" => 60.0,
        "h" | "hour" => 3600.0,
        "d" | "day" => 86_400.0,
        _ => return None,
    };
    Some(amount(of, units)? / seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_by_their_units() {
        let near = |read: Option<f64>, wanted: f64| {
            assert!((read.expect("a rate") - wanted).abs() < wanted * 1e-9, "{wanted}")
        };
        near(parse_rate("2 TB/day"), 2e12 / 86_400.0);
        near(parse_rate("24MiB/s"), 24.0 * 1_048_576.0);
        near(parse_rate("1.5 gib / h"), 1.5 * 1_073_741_824.0 / 3600.0);
        near(parse_bit_rate("10 Gbit/s"), 1e10);
        assert_eq!(parse_rate("0 B/s"), Some(0.0));
        for wrong in ["2 TB", "TB/day", "2/day", "2 TB/fortnight", "-1 MB/s", "1 Gbit/s", "nan mb/s", "1e999 mb/s"] {
            assert_eq!(parse_rate(wrong), None, "{wrong}");
        }
        assert_eq!(parse_bit_rate("1 GB/s"), None, "bits are not bytes");
    }
}
