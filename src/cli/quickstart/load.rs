//! A workload: what a file system and a database do to a disk, from a seed, at a bounded rate.
//!
//! [`Pattern`] is pure: it says which operation comes next. [`Load`] runs it on a thread against a [`Target`], can be
//! stopped at a moment without an operation in flight, goes on after the target was away, and measures each write.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::{Condvar, Mutex};

use crate::flow::{Clock, SystemClock};

/// What the load writes to.
pub trait Target: Send {
    /// Writes `data`.
    ///
    /// # Errors
    /// The target is away or refused it.
    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Makes a range zero.
    ///
    /// # Errors
    /// As `write`.
    fn zero(&mut self, offset: u64, length: u64) -> io::Result<()>;
    /// Gives a range up.
    ///
    /// # Errors
    /// As `write`.
    fn trim(&mut self, offset: u64, length: u64) -> io::Result<()>;
    /// Makes all of it durable.
    ///
    /// # Errors
    /// As `write`.
    fn flush(&mut self) -> io::Result<()>;
}

/// Opens the target, again after it was away.
pub type Open = dyn Fn() -> io::Result<Box<dyn Target>> + Send;

/// One operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Write `length` bytes made from `seed`.
    Write {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
        /// Decides the contents.
        seed: u64,
    },
    /// Write zeroes.
    Zero {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// Trim.
    Trim {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// Flush.
    Flush,
}

/// A small generator of numbers that look random; the same seed gives the same numbers.
#[derive(Clone, Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// From a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is not zero.
    pub const fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Which operations come, within the ranges that may be written.
#[derive(Clone, Debug)]
pub struct Pattern {
    numbers: Numbers,
    ranges: Vec<Range<u64>>,
    /// A file being written from front to back: the rest of it.
    file: Range<u64>,
    /// The ring of a journal: where it goes on.
    ring_at: u64,
}

/// Longest write that is told apart: an hour.
const WRITE_MICROS_MAX: u64 = 3_600_000_000;
/// Contents of large files are written in such pieces, as a page cache does.
const FILE_PIECE_BYTES: u64 = 256 << 10;
/// Part of the first range that is used as a ring.
const RING_BYTES: u64 = 4 << 20;

impl Pattern {
    /// A pattern over `ranges`; those too short for a file are left out.
    #[must_use]
    pub fn new(seed: u64, mut ranges: Vec<Range<u64>>) -> Self {
        ranges.retain(|range| range.end - range.start >= 2 * RING_BYTES);
        Self { numbers: Numbers::new(seed), ranges, file: 0..0, ring_at: 0 }
    }

    /// Whether there is nowhere to write.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    fn place(&mut self, length: u64, align: u64) -> u64 {
        let pick = self.numbers.below(self.ranges.len() as u64) as usize;
        let range = self.ranges[pick].clone();
        let first = range.start.next_multiple_of(align);
        first + self.numbers.below((range.end - length - first) / align + 1) * align
    }

    /// The next operation. There must be a range.
    pub fn next_operation(&mut self) -> Operation {
        let seed = self.numbers.next();
        if !self.file.is_empty() {
            let (offset, length) = (self.file.start, (self.file.end - self.file.start).min(FILE_PIECE_BYTES));
            self.file.start += length;
            return Operation::Write { offset, length, seed };
        }
        match self.numbers.below(100) {
            // Pages of a database.
            0..50 => {
                let length = 4096 << self.numbers.below(5);
                Operation::Write { offset: self.place(length, 4096), length, seed }
            }
            // A journal: a ring of small writes, each followed by a flush now and then.
            50..72 => {
                let length = 4096 * (1 + self.numbers.below(8));
                if self.ring_at + length > RING_BYTES {
                    self.ring_at = 0;
                }
                let offset = self.ranges[0].start + self.ring_at;
                self.ring_at += length;
                Operation::Write { offset, length, seed }
            }
            72..80 => Operation::Flush,
            // A new file.
            80..88 => {
                let length = (1 + self.numbers.below(3 << 8)) * 4096;
                let offset = self.place(length, 4096);
                self.file = offset..offset + length;
                self.next_operation()
            }
            // Odd sectors, as a boot loader or an old file system writes.
            88..92 => {
                let length = 512 * (1 + self.numbers.below(64));
                Operation::Write { offset: self.place(length, 512), length, seed }
            }
            92..96 => {
                let length = (1 + self.numbers.below(256)) * 4096;
                Operation::Zero { offset: self.place(length, 4096), length }
            }
            _ => {
                let length = (1 + self.numbers.below(512)) * 4096;
                Operation::Trim { offset: self.place(length, 4096), length }
            }
        }
    }
}

/// Fills `data` from a seed: text-like three times out of four, else bytes that do not compress.
pub fn contents(seed: u64, data: &mut [u8]) {
    let mut numbers = Numbers::new(seed);
    let dense = numbers.below(4) == 0;
    let mut words = [[0; 8]; 64];
    for word in &mut words {
        *word = numbers.next().to_le_bytes();
    }
    for eight in data.chunks_mut(8) {
        let word = if dense { numbers.next().to_le_bytes() } else { words[numbers.below(64) as usize] };
        eight.copy_from_slice(&word[..eight.len()]);
    }
}

/// What a load did.
#[derive(Clone, Debug)]
pub struct Done {
    /// Writes, zeroes and trims that the target confirmed.
    pub operations: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Times that the target was away.
    pub interruptions: u64,
    /// Microseconds that each write took while the target was there.
    pub write_micros: Histogram<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Run,
    Pause,
    Stop,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    wanted: Wanted,
    paused: bool,
    done: Done,
}

/// A running load. Dropping it stops it.
pub struct Load {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// A load could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No range is large enough.
    #[error("there is no free range of {} in the disk to write to", crate::config::show_size(2 * RING_BYTES))]
    NoRoom,
    /// No thread or memory.
    #[error("cannot start the workload")]
    Start(#[from] io::Error),
}

impl Load {
    /// Starts `pattern` against what `open` opens, at most `bytes_per_second`.
    ///
    /// # Errors
    /// [`LoadError`] if there is nowhere to write or no thread.
    pub fn start(pattern: Pattern, open: Box<Open>, bytes_per_second: u64) -> Result<Self, LoadError> {
        if pattern.is_empty() {
            return Err(LoadError::NoRoom);
        }
        let write_micros =
            Histogram::new_with_max(WRITE_MICROS_MAX, 2).map_err(|error| LoadError::Start(io::Error::other(error)))?;
        let done = Done { operations: 0, written_bytes: 0, interruptions: 0, write_micros };
        let state = State { wanted: Wanted::Run, paused: false, done };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let worker = Worker { shared: Arc::clone(&shared), pattern, open, bytes_per_second, clock: SystemClock::new() };
        let thread = std::thread::Builder::new().name("workload".into()).spawn(move || worker.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Stops between two operations, everything before flushed, and stays so until [`Load::resume`]. False if the target
    /// did not come back within `patience`.
    #[must_use]
    pub fn pause(&self, patience: Duration) -> bool {
        let mut state = self.shared.state.lock();
        state.wanted = Wanted::Pause;
        self.shared.changed.notify_all();
        self.shared.changed.wait_while_for(&mut state, |state| !state.paused, patience);
        state.paused
    }

    /// Goes on.
    pub fn resume(&self) {
        self.shared.state.lock().wanted = Wanted::Run;
        self.shared.changed.notify_all();
    }

    /// What it did so far.
    #[must_use]
    pub fn done(&self) -> Done {
        self.shared.state.lock().done.clone()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.state.lock().wanted = Wanted::Stop;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic of the workload shows in its own message.
            let _ = thread.join();
        }
    }
}

struct Worker {
    shared: Arc<Shared>,
    pattern: Pattern,
    open: Box<Open>,
    bytes_per_second: u64,
    clock: SystemClock,
}

impl Worker {
    fn run(mut self) {
        let mut target = None;
        let mut pending = None;
        let mut data = Vec::new();
        let mut credit_until = self.clock.monotonic();
        while self.may_go_on(&mut target) {
            let Some(open) = target.as_mut() else {
                match (self.open)() {
                    Ok(opened) => target = Some(opened),
                    Err(_) => self.wait(Duration::from_millis(50)),
                }
                continue;
            };
            // An operation whose answer was lost is done again: as every guest does.
            let operation = *pending.get_or_insert_with(|| self.pattern.next_operation());
            let before = self.clock.monotonic();
            let outcome = apply(open.as_mut(), operation, &mut data);
            let took = self.clock.monotonic().saturating_sub(before);
            if outcome.is_err() {
                target = None;
                self.shared.state.lock().done.interruptions += 1;
                continue;
            }
            pending = None;
            let bytes = self.count(operation, took);
            credit_until =
                credit_until.max(before) + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
            let ahead = credit_until.saturating_sub(self.clock.monotonic());
            if ahead > Duration::from_millis(5) {
                self.wait(ahead);
            }
        }
    }

    fn count(&self, operation: Operation, took: Duration) -> u64 {
        let mut state = self.shared.state.lock();
        state.done.operations += u64::from(operation != Operation::Flush);
        let Operation::Write { length, .. } = operation else { return 0 };
        state.done.written_bytes += length;
        state.done.write_micros.saturating_record(took.as_micros() as u64);
        length
    }

    /// Waits where a pause is asked for; false at the end.
    fn may_go_on(&self, target: &mut Option<Box<dyn Target>>) -> bool {
        if self.shared.state.lock().wanted == Wanted::Pause {
            // A pause means that all of it is on the disk; a target that is away is opened first.
            match target.as_mut().map(|target| target.flush()) {
                None => return true,
                Some(Err(_)) => {
                    *target = None;
                    return true;
                }
                Some(Ok(())) => {}
            }
        }
        let mut state = self.shared.state.lock();
        if state.wanted == Wanted::Pause {
            state.paused = true;
            self.shared.changed.notify_all();
            self.shared.changed.wait_while(&mut state, |state| state.wanted == Wanted::Pause);
            state.paused = false;
        }
        state.wanted != Wanted::Stop
    }

    fn wait(&self, time: Duration) {
        let mut state = self.shared.state.lock();
        if state.wanted == Wanted::Run {
            self.shared.changed.wait_for(&mut state, time);
        } else {
            drop(state);
            std::thread::sleep(time.min(Duration::from_millis(50)));
        }
    }
}

fn apply(target: &mut dyn Target, operation: Operation, data: &mut Vec<u8>) -> io::Result<()> {
    match operation {
        Operation::Write { offset, length, seed } => {
            data.resize(length as usize, 0);
            contents(seed, data);
            target.write(offset, data)
        }
        Operation::Zero { offset, length } => target.zero(offset, length),
        Operation::Trim { offset, length } => target.trim(offset, length),
        Operation::Flush => target.flush(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_stay_within_the_ranges_and_repeat_by_seed() {
        let ranges = vec![4096..(64 << 20) + 4096, (100 << 20) + 512..120 << 20];
        let mut pattern = Pattern::new(7, ranges.clone());
        let mut again = Pattern::new(7, ranges.clone());
        let (mut writes, mut zeroes, mut trims, mut flushes) = (0, 0, 0, 0);
        for _ in 0..20_000 {
            let operation = pattern.next_operation();
            assert_eq!(operation, again.next_operation());
            let (offset, length) = match operation {
                Operation::Write { offset, length, .. } => (offset, length),
                Operation::Zero { offset, length } | Operation::Trim { offset, length } => (offset, length),
                Operation::Flush => (4096, 512),
            };
            match operation {
                Operation::Write { .. } => writes += 1,
                Operation::Zero { .. } => zeroes += 1,
                Operation::Trim { .. } => trims += 1,
                Operation::Flush => flushes += 1,
            }
            assert!(length > 0 && offset % 512 == 0 && length % 512 == 0);
            assert!(ranges.iter().any(|range| range.start <= offset && offset + length <= range.end), "{operation:?}");
        }
        assert!(writes > 10_000 && zeroes > 100 && trims > 100 && flushes > 100);
        assert!(Pattern::new(1, vec![0..4096, 8192..100_000]).is_empty());
    }

    /// A disk in memory that fails each hundredth operation, as if its server went away.
    struct Flaky {
        disk: Arc<Mutex<Vec<u8>>>,
        left: u32,
    }

    impl Flaky {
        fn step(&mut self) -> io::Result<()> {
            self.left = self.left.checked_sub(1).ok_or_else(|| io::Error::other("away"))?;
            Ok(())
        }
    }

    impl Target for Flaky {
        fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.step()?;
            self.disk.lock()[offset as usize..][..data.len()].copy_from_slice(data);
            Ok(())
        }
        fn zero(&mut self, offset: u64, length: u64) -> io::Result<()> {
            self.step()?;
            self.disk.lock()[offset as usize..][..length as usize].fill(0);
            Ok(())
        }
        fn trim(&mut self, _: u64, _: u64) -> io::Result<()> {
            self.step()
        }
        fn flush(&mut self) -> io::Result<()> {
            self.step()
        }
    }

    #[test]
    fn a_paused_load_changes_nothing_and_goes_on_after_its_target_was_away() {
        let disk = Arc::new(Mutex::new(vec![0; 16 << 20]));
        let shared = Arc::clone(&disk);
        let open = move || Ok(Box::new(Flaky { disk: Arc::clone(&shared), left: 100 }) as Box<dyn Target>);
        let load =
            Load::start(Pattern::new(3, std::iter::once(0..16 << 20).collect()), Box::new(open), 1 << 40).unwrap();
        let patience = Duration::from_secs(30);
        while load.done().interruptions < 3 {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(load.pause(patience));
        let (before, frozen) = (load.done().operations, disk.lock().clone());
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(load.done().operations, before);
        assert!(*disk.lock() == frozen, "the disk changed during a pause");
        load.resume();
        while load.done().operations == before {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!load.done().write_micros.is_empty());
    }

    /// A disk on which every write takes its time.
    struct Slow;

    impl Target for Slow {
        fn write(&mut self, _: u64, _: &[u8]) -> io::Result<()> {
            std::thread::sleep(Duration::from_millis(5));
            Ok(())
        }
        fn zero(&mut self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn trim(&mut self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_slow_write_is_seen_as_slow_as_it_was() {
        let load = Load::start(
            Pattern::new(1, std::iter::once(0..16 << 20).collect()),
            Box::new(|| Ok(Box::new(Slow))),
            1 << 40,
        )
        .unwrap();
        while load.done().write_micros.len() < 10 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let micros = load.done().write_micros;
        // Two digits of precision may round the value down.
        assert!(micros.value_at_quantile(0.5) >= 4_900 && micros.max() >= 4_900, "{}", micros.max());
    }

    #[test]
    fn contents_repeat_by_seed_and_differ_between_seeds() {
        let make = |seed| {
            let mut data = vec![0; 1000];
            contents(seed, &mut data);
            data
        };
        assert_eq!(make(1), make(1));
        assert_ne!(make(1), make(2));
    }
}
