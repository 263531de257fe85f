//! What a machine writes, seen from its block devices or read from a trace. Pure: text in, figures out.

use std::collections::BTreeMap;

/// The kernel counts sectors of this size, whatever the device's is.
const SECTOR_BYTES: u64 = 512;
/// The busiest time is the busiest run of so many seconds: shorter bursts are what queues are for.
pub const PEAK_SECONDS: u64 = 10;
/// Longest trace.
const TRACE_SECONDS_MAX: u64 = 31 * 86_400;

/// Counters of one device since the machine started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Writes that were done.
    pub writes: u64,
    /// Bytes of them.
    pub bytes: u64,
}

/// Reads `/proc/diskstats`: the counters of each device by its name.
#[must_use]
pub fn read_diskstats(text: &str) -> BTreeMap<String, Counters> {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        Some((
            (*fields.get(2)?).to_owned(),
            Counters { writes: number(7)?, bytes: number(9)?.saturating_mul(SECTOR_BYTES) },
        ))
    };
    text.lines().filter_map(line).collect()
}

/// What was seen, second by second.
#[derive(Debug, Clone, PartialEq, Default, serde::Serialize)]
pub struct Seen {
    /// How long.
    pub seconds: f64,
    /// Writes.
    pub writes: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Bytes per second of the busiest [`PEAK_SECONDS`].
    pub peak_bytes_per_second: f64,
}

impl Seen {
    /// From the bytes of each second and the number of writes.
    #[must_use]
    pub fn of(seconds: &BTreeMap<u64, u64>, length_seconds: f64, writes: u64) -> Self {
        let mut peak_bytes = 0;
        for &second in seconds.keys() {
            let window = seconds.range(second..second + PEAK_SECONDS).map(|(_, bytes)| bytes).sum::<u64>();
            peak_bytes = peak_bytes.max(window);
        }
        let window_seconds = length_seconds.clamp(1.0, PEAK_SECONDS as f64);
        let bytes = seconds.values().sum();
        Self { seconds: length_seconds, writes, bytes, peak_bytes_per_second: peak_bytes as f64 / window_seconds }
    }

    /// Mean bytes per second.
    #[must_use]
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.seconds.max(1.0)
    }

    /// Mean writes per second.
    #[must_use]
    pub fn writes_per_second(&self) -> f64 {
        self.writes as f64 / self.seconds.max(1.0)
    }

    /// The busiest time over the mean, at least 1.
    #[must_use]
    pub fn peak_factor(&self) -> f64 {
        let mean = self.bytes_per_second();
        if mean > 0.0 { (self.peak_bytes_per_second / mean).max(1.0) } else { 1.0 }
    }
}

/// Reads a trace as `loadgen run --profile trace` takes it: lines of `seconds,offset,length[,w|z]`, `#` begins a comment.
/// Zeroes travel without payload, so they count as writes only.
///
/// # Errors
/// Names the first line that is not understood.
pub fn read_trace(text: &str) -> Result<Seen, String> {
    let (mut seconds, mut writes, mut end) = (BTreeMap::new(), 0, 0.0_f64);
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let wrong = || format!("line {}: write seconds,offset,length[,w|z]", number + 1);
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        let (at, length, kind) = match fields.as_slice() {
            [at, offset, length] if offset.parse::<u64>().is_ok() => (at, length, "w"),
            [at, offset, length, kind] if offset.parse::<u64>().is_ok() => (at, length, *kind),
            _ => return Err(wrong()),
        };
        let at: f64 = at.parse().map_err(|_| wrong())?;
        let bytes: u64 = length.parse().map_err(|_| wrong())?;
        if !(0.0..TRACE_SECONDS_MAX as f64).contains(&at) {
            return Err(format!("line {}: a trace has 0 to {TRACE_SECONDS_MAX} seconds", number + 1));
        }
        let bytes = match kind {
            "w" => bytes,
            "z" => 0,
            _ => return Err(wrong()),
        };
        *seconds.entry(at as u64).or_insert(0) += bytes;
        (writes, end) = (writes + 1, end.max(at));
    }
    if writes == 0 {
        return Err("it has no writes".to_owned());
    }
    // The last second is a whole one.
    Ok(Seen::of(&seconds, end.floor() + 1.0, writes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_the_kernel_are_sectors_and_writes() {
        let text = "   8       0 sda 100 5 2000 30 70 6 4096 50 0 60 80 0 0 0 0 0 0\n 253 0 dm-0 1 0 8 0 3 0 24 0 0 0 0\nshort line\n";
        let read = read_diskstats(text);
        assert_eq!(read["sda"], Counters { writes: 70, bytes: 4096 * 512 });
        assert_eq!((read.len(), read["dm-0"].bytes), (2, 24 * 512));
    }

    #[test]
    fn the_busiest_ten_seconds_are_the_peak() {
        let seconds: BTreeMap<u64, u64> = (0..100).map(|second| (second, if second < 20 { 50 } else { 10 })).collect();
        let seen = Seen::of(&seconds, 100.0, 400);
        assert_eq!((seen.bytes, seen.bytes_per_second(), seen.writes_per_second()), (1800, 18.0, 4.0));
        assert!((seen.peak_bytes_per_second - 50.0).abs() < 1e-9 && (seen.peak_factor() - 50.0 / 18.0).abs() < 1e-9);
        let still = Seen::of(&BTreeMap::new(), 60.0, 0);
        assert_eq!((still.bytes_per_second(), still.peak_factor()), (0.0, 1.0));
        let moment = Seen::of(&BTreeMap::from([(0, 100)]), 1.0, 1);
        assert_eq!(moment.peak_factor(), 1.0, "one second is its own peak");
    }

    #[test]
    fn a_trace_is_read_as_the_load_generator_reads_it() {
        let seen = read_trace("# x\n0.5,0,4096\n0.9,4096,100,w\n\n9.2,0,1048576,z # zeroes\n").expect("a trace");
        assert_eq!((seen.writes, seen.bytes, seen.seconds), (3, 4196, 10.0));
        for wrong in ["", "x,1,2", "1,1", "1,1,1,q", "1,x,1", "-1,0,1", "nan,0,1", "99999999,0,1", "1,1,1,w,w"] {
            assert!(read_trace(wrong).is_err(), "{wrong}");
        }
        assert!(read_trace("1,1,1\nrubbish").is_err_and(|text| text.starts_with("line 2")));
    }
}
