//! What to read before it is asked for. Pure.
//!
//! A guest that boots or copies reads runs of its disk, several at a time. Each run that goes on where it was is given a
//! window that doubles, up to a bound; what lies in it is brought before the guest comes there. A read somewhere else costs
//! nothing ahead, so random reads waste none.

use std::collections::VecDeque;
use std::ops::Range;

/// Runs that are followed at the same time: more than a guest has programs that read at start.
const RUNS_MAX: usize = 16;
/// A read that begins this near to where a run ended goes on with it: file systems leave out what they know already.
const NEAR_BYTES: u64 = 256 << 10;
/// The window of a run's second read: about one message.
const WINDOW_BYTES_MIN: u64 = 512 << 10;
/// The largest window: two of the longest reads, which is what a line of 1 Gbit/s brings in some round trips.
pub const WINDOW_BYTES_MAX: u64 = 16 << 20;

#[derive(Clone, Copy, Debug)]
struct Run {
    /// Where the next read is expected.
    next: u64,
    window_bytes: u64,
    /// What lies before this was asked for ahead.
    ahead: u64,
}

/// The runs of one disk.
#[derive(Debug, Default)]
pub struct ReadAhead {
    /// The one that read last stands first.
    runs: VecDeque<Run>,
}

impl ReadAhead {
    /// Takes note of a read, and says what to bring before it is asked for.
    pub fn note(&mut self, offset_bytes: u64, length_bytes: u64, disk_bytes: u64) -> Option<Range<u64>> {
        let end = offset_bytes.saturating_add(length_bytes);
        let follows = |run: &Run| {
            let from = run.next.saturating_sub(NEAR_BYTES);
            (from..=run.next.saturating_add(NEAR_BYTES)).contains(&offset_bytes)
        };
        let Some(mut run) = self.runs.iter().position(follows).and_then(|at| self.runs.remove(at)) else {
            self.runs.truncate(RUNS_MAX - 1);
            self.runs.push_front(Run { next: end, window_bytes: 0, ahead: end });
            return None;
        };
        if end <= run.next {
            // Read again: the run went on nowhere.
            self.runs.push_front(run);
            return None;
        }
        run.next = end;
        run.window_bytes = (run.window_bytes * 2).clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX);
        run.ahead = run.ahead.max(run.next);
        // In large steps, or every read would ask for a little more.
        let due = run.ahead - run.next <= run.window_bytes / 2;
        let until = run.next.saturating_add(run.window_bytes).min(disk_bytes);
        let wanted = (due && until > run.ahead).then_some(run.ahead..until);
        if let Some(wanted) = &wanted {
            run.ahead = wanted.end;
        }
        self.runs.push_front(run);
        wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: u64 = 1 << 30;

    #[test]
    fn a_run_is_read_ahead_of_in_growing_steps_and_each_byte_once() {
        let mut ahead = ReadAhead::default();
        assert_eq!(ahead.note(0, 4096, DISK), None, "one read is no run");
        let (mut at, mut reached, mut steps) = (4096, None, 0);
        while at < 256 << 20 {
            if let Some(range) = ahead.note(at, 65_536, DISK) {
                assert!(reached.is_none_or(|reached| range.start == reached), "{range:?} after {reached:?}");
                assert!(range.end - range.start <= WINDOW_BYTES_MAX);
                assert!(range.end <= at + 65_536 + WINDOW_BYTES_MAX);
                reached = Some(range.end);
                steps += 1;
            }
            at += 65_536;
            assert!(reached.is_some_and(|reached| reached > at - 65_536), "what is read next was asked for");
        }
        assert!(steps < 60, "{steps} steps");
    }

    #[test]
    fn reads_here_and_there_ask_for_nothing() {
        let mut ahead = ReadAhead::default();
        for number in 0..1000_u64 {
            assert_eq!(ahead.note((number * 7_919 % 1000) << 20, 4096, 1 << 40), None);
            assert!(ahead.runs.len() <= RUNS_MAX);
        }
    }

    #[test]
    fn several_runs_at_once_are_told_apart() {
        let mut ahead = ReadAhead::default();
        let mut found = 0;
        for step in 0..64 {
            for run in 0..RUNS_MAX as u64 {
                found += usize::from(ahead.note((run << 26) + step * 4096, 4096, DISK).is_some());
            }
        }
        assert!(found >= RUNS_MAX, "{found}");
    }

    #[test]
    fn what_is_read_again_asks_for_nothing() {
        let mut ahead = ReadAhead::default();
        assert!((0..20).all(|_| ahead.note(1 << 20, 4096, DISK).is_none()));
        assert!(ahead.note((1 << 20) + 4096, 4096, DISK).is_some());
    }

    #[test]
    fn the_end_of_the_disk_is_the_end() {
        let mut ahead = ReadAhead::default();
        ahead.note(DISK - 20_480, 4096, DISK);
        assert_eq!(ahead.note(DISK - 16_384, 4096, DISK), Some(DISK - 12_288..DISK));
        assert_eq!(ahead.note(DISK - 4096, 4096, DISK), None);
    }
}
