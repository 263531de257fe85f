//! What machines write: where, how much at once, in which order. Pure, from a seed.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tidegate::cli::quickstart::load::Numbers;
use tidegate::types::RecordKind;

use crate::chance::Share;

/// Writes start and end at multiples of this, so that images can be told block by block.
pub const BLOCK: u64 = 4096;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// A database's log goes round in a file of this size.
const LOG_BYTES: u64 = 64 * MIB;
/// Records in which one file's contents come one after the other.
const FILE_RECORDS: u64 = 4;

/// A kind of load.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// A disk is read from front to back and sent, 1 MiB at a time.
    Copy,
    /// 8 KiB anywhere.
    Oltp8,
    /// 16 KiB anywhere.
    Oltp16,
    /// 4 to 64 KiB one after the other, round and round.
    Log,
    /// Files of 64 KiB to 1 MiB pieces, anywhere.
    Files,
    /// 4 KiB now and then.
    Idle,
    /// As files, all of it in a tenth of the time.
    Burst,
    /// What a house of machines writes: each disk as one of the others, see [`Profile::of_disk`].
    Mixed,
    /// What a trace says.
    Trace,
}

impl std::str::FromStr for Profile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "copy" => Self::Copy,
            "oltp" | "oltp8" => Self::Oltp8,
            "oltp16" => Self::Oltp16,
            "log" => Self::Log,
            "files" => Self::Files,
            "idle" => Self::Idle,
            "burst" => Self::Burst,
            "mixed" => Self::Mixed,
            "trace" => Self::Trace,
            _ => return Err("write copy, oltp8, oltp16, log, files, idle, burst, mixed or trace".into()),
        })
    }
}

impl Profile {
    /// What the disk of this number among all disks writes: of ten disks of a mixed load four are of files, two each of the
    /// databases' tables, two of logs.
    #[must_use]
    pub const fn of_disk(self, number: usize) -> Self {
        match (self, number % 10) {
            (Self::Mixed, 0 | 3 | 5 | 8) => Self::Files,
            (Self::Mixed, 1 | 6) => Self::Oltp8,
            (Self::Mixed, 2 | 7) => Self::Oltp16,
            (Self::Mixed, _) => Self::Log,
            _ => self,
        }
    }

    /// Bytes of its typical write.
    #[must_use]
    pub const fn typical_bytes(self) -> u64 {
        match self {
            Self::Copy => MIB,
            Self::Oltp8 => 8 * KIB,
            Self::Oltp16 | Self::Log => 16 * KIB,
            Self::Files | Self::Burst | Self::Mixed => 256 * KIB,
            Self::Idle | Self::Trace => 4 * KIB,
        }
    }

    /// The share of the time in which it writes, and how often that comes round.
    #[must_use]
    pub const fn burst(self) -> Option<(Duration, Duration)> {
        match self {
            Self::Burst => Some((Duration::from_secs(1), Duration::from_secs(10))),
            _ => None,
        }
    }
}

/// One write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Write {
    /// First byte.
    pub offset_bytes: u64,
    /// Bytes.
    pub length_bytes: u32,
    /// A guest's write, or a copy.
    pub kind: RecordKind,
    /// Zeroes, told without payload.
    pub zero: bool,
}

/// One line of a trace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TraceWrite {
    /// When, from the start.
    pub at: Duration,
    offset_bytes: u64,
    length_bytes: u32,
    zero: bool,
}

/// Longest write of a trace's line: larger ones are several records of an agent.
const TRACE_WRITE_BYTES_MAX: u64 = MIB;

/// Reads a trace: lines of `seconds,offset,length[,w|z]`, `#` begins a comment. Offsets and lengths are taken to blocks.
///
/// # Errors
/// Names the first line that is not understood.
pub fn read_trace(text: &str) -> io::Result<Vec<TraceWrite>> {
    let mut out: Vec<TraceWrite> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let wrong = || io::Error::other(format!("line {}: write seconds,offset,length[,w|z]", number + 1));
        let mut fields = line.split(',').map(str::trim);
        let seconds: f64 = fields.next().and_then(|text| text.parse().ok()).ok_or_else(wrong)?;
        let offset: u64 = fields.next().and_then(|text| text.parse().ok()).ok_or_else(wrong)?;
        let length: u64 = fields.next().and_then(|text| text.parse().ok()).ok_or_else(wrong)?;
        let zero = match fields.next() {
            None | Some("w") => false,
            Some("z") => true,
            Some(_) => return Err(wrong()),
        };
        let at = Duration::try_from_secs_f64(seconds).map_err(|_| wrong())?;
        let length_bytes = length.next_multiple_of(BLOCK).clamp(BLOCK, TRACE_WRITE_BYTES_MAX) as u32;
        out.push(TraceWrite { at, offset_bytes: offset / BLOCK * BLOCK, length_bytes, zero });
    }
    out.sort_by_key(|write| write.at);
    Ok(out)
}

/// Which writes come, on one disk.
#[derive(Clone, Debug)]
pub struct Pattern {
    profile: Profile,
    numbers: Numbers,
    disk_bytes: u64,
    zero: Share,
    /// Where a run of writes goes on, and how many are left of it.
    at: u64,
    left: u64,
    trace: Arc<[TraceWrite]>,
    line: usize,
}

impl Pattern {
    /// A pattern over a disk; `zero` of its writes are zeroes.
    #[must_use]
    pub fn new(profile: Profile, seed: u64, disk_bytes: u64, zero: Share, trace: Arc<[TraceWrite]>) -> Self {
        let disk_bytes = (disk_bytes / BLOCK * BLOCK).max(MIB);
        Self { profile, numbers: Numbers::new(seed), disk_bytes, zero, at: 0, left: 0, trace, line: 0 }
    }

    /// A number of chance, for whoever fills the write.
    pub const fn number(&mut self) -> u64 {
        self.numbers.next()
    }

    fn place(&mut self, length: u64, align: u64) -> u64 {
        self.numbers.below((self.disk_bytes - length) / align + 1) * align
    }

    /// When the next write is due by the trace; `None` without one, and after its last line.
    #[must_use]
    pub fn next_at(&self) -> Option<Duration> {
        self.trace.get(self.line).map(|write| write.at)
    }

    /// Whether nothing comes any more.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.profile == Profile::Trace && self.line >= self.trace.len()
    }

    /// The next write.
    pub fn next_write(&mut self) -> Write {
        let (offset_bytes, length) = match self.profile {
            Profile::Copy => self.along(MIB, self.disk_bytes),
            Profile::Oltp8 => (self.place(8 * KIB, 8 * KIB), 8 * KIB),
            Profile::Oltp16 => (self.place(16 * KIB, 16 * KIB), 16 * KIB),
            Profile::Idle => (self.place(BLOCK, BLOCK), BLOCK),
            Profile::Log => {
                let length = BLOCK << self.numbers.below(5);
                self.along(length, LOG_BYTES.min(self.disk_bytes))
            }
            Profile::Files | Profile::Burst | Profile::Mixed => self.file(),
            Profile::Trace => return self.traced(),
        };
        let kind = if self.profile == Profile::Copy { RecordKind::Copy } else { RecordKind::Write };
        Write { offset_bytes, length_bytes: length as u32, kind, zero: self.zero.hits(&mut self.numbers) }
    }

    fn along(&mut self, length: u64, end: u64) -> (u64, u64) {
        if self.at + length > end {
            self.at = 0;
        }
        let offset = self.at;
        self.at += length;
        (offset, length)
    }

    fn file(&mut self) -> (u64, u64) {
        let length = (64 * KIB) << self.numbers.below(5);
        if self.left == 0 || self.at + length > self.disk_bytes {
            self.left = FILE_RECORDS;
            self.at = self.place(length, 64 * KIB);
        }
        self.left -= 1;
        self.along(length, self.disk_bytes)
    }

    fn traced(&mut self) -> Write {
        let line = self.trace.get(self.line).copied();
        self.line += 1;
        let line =
            line.unwrap_or(TraceWrite { at: Duration::ZERO, offset_bytes: 0, length_bytes: BLOCK as u32, zero: false });
        let length = u64::from(line.length_bytes);
        let offset_bytes = if line.offset_bytes + length > self.disk_bytes {
            line.offset_bytes % (self.disk_bytes - length + BLOCK) / BLOCK * BLOCK
        } else {
            line.offset_bytes
        };
        Write { offset_bytes, length_bytes: line.length_bytes, kind: RecordKind::Write, zero: line.zero }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_write_of_every_profile_lies_on_blocks_inside_the_disk() {
        let trace = read_trace("0.5,4096,100\n# none\n0,999999999999,9999999,z\n").expect("a trace");
        assert_eq!(trace[0].at, Duration::ZERO, "in order of time");
        for name in ["copy", "oltp8", "oltp16", "log", "files", "idle", "burst", "mixed", "trace"] {
            let profile: Profile = name.parse().expect("a profile");
            let mut pattern = Pattern::new(profile, 3, 7 * MIB, Share::percent(10.0), trace.clone().into());
            for _ in 0..500 {
                let write = pattern.next_write();
                let (offset, length) = (write.offset_bytes, u64::from(write.length_bytes));
                assert!(length > 0 && length <= MIB && offset + length <= 7 * MIB, "{name}: {write:?}");
                assert!(offset % BLOCK == 0 && length % BLOCK == 0, "{name}: {write:?}");
            }
        }
    }

    #[test]
    fn a_mixed_load_gives_each_disk_one_kind_and_no_other_load_does() {
        let count = |kind| (0..100).filter(|&number| Profile::Mixed.of_disk(number) == kind).count();
        let counts = [Profile::Files, Profile::Oltp8, Profile::Oltp16, Profile::Log].map(count);
        assert_eq!((counts, count(Profile::Mixed)), ([40, 20, 20, 20], 0));
        assert_eq!(Profile::Idle.of_disk(3), Profile::Idle);
    }

    #[test]
    fn a_copy_covers_the_disk_and_a_trace_says_what_it_says() {
        let mut copy = Pattern::new(Profile::Copy, 1, 8 * MIB, Share::NONE, Arc::new([]));
        let offsets: Vec<u64> = (0..9).map(|_| copy.next_write().offset_bytes / MIB).collect();
        assert_eq!(offsets, [0, 1, 2, 3, 4, 5, 6, 7, 0]);
        let trace = read_trace("1,8192,4096\n2,0,8192,z").expect("a trace");
        let mut pattern = Pattern::new(Profile::Trace, 1, MIB, Share::NONE, trace.into());
        assert_eq!(pattern.next_at(), Some(Duration::from_secs(1)));
        let first = pattern.next_write();
        assert_eq!((first.offset_bytes, first.length_bytes, first.zero), (8192, 4096, false));
        assert!(pattern.next_write().zero && pattern.ended());
        assert!(read_trace("x,1,2").is_err() && read_trace("1,1").is_err() && read_trace("1,1,1,q").is_err());
    }
}
