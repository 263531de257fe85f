//! One write and one sync, again and again, as a journal without anything around it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use hdrhistogram::Histogram;
use tidegate::flow::Clock as _;
use tidegate::journal::disk::AlignedBuf;
use tidegate::limits::{BLOCK_BYTES, COMMIT_BYTES_MAX, SEGMENT_BYTES_DEFAULT};

use super::{Plan, Watch, Work};

/// Fewer commits tell no percentile.
const COMMITS_MIN: u64 = 200;
/// More tell nothing new, and small ones take long.
const COMMITS_MAX: u64 = 4000;

/// Removed when dropped.
pub(crate) struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // It holds nothing that anybody wants.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A file as large as a segment, without the page cache. A journal's segments were written once before they are used:
/// unwritten extents would cost twice as much.
pub(crate) fn segment(folder: &Path) -> io::Result<(Scratch, File)> {
    // A process may have several at a time.
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let scratch = Scratch(folder.join(format!("limit-{}-{number}.tmp", std::process::id())));
    let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
    let mut options = OpenOptions::new();
    let file = options.create(true).truncate(false).read(true).write(true).custom_flags(direct).open(&scratch.0)?;
    let zeroes = AlignedBuf::zeroed(COMMIT_BYTES_MAX);
    for offset in (0..SEGMENT_BYTES_DEFAULT).step_by(COMMIT_BYTES_MAX) {
        file.write_all_at(&zeroes, offset)?;
    }
    file.sync_all()?;
    Ok((scratch, file))
}

/// Longest time of one commit that is told apart, in microseconds: a minute.
const MICROS_MAX: u64 = 60_000_000;

/// With its bounds from the start: one that grows by itself does not grow for what saturates it, and counts the long ones as short.
fn micros() -> io::Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, MICROS_MAX, 3).map_err(io::Error::other)
}

/// The work, and the 50th and 99th percentile of one commit's seconds.
pub(super) fn write_and_sync(plan: &Plan) -> io::Result<(Work, (f64, f64))> {
    let (_scratch, file) = segment(&plan.folder)?;
    let size = (plan.commit_bytes as usize).next_multiple_of(BLOCK_BYTES).clamp(BLOCK_BYTES, COMMIT_BYTES_MAX);
    let mut buf = AlignedBuf::zeroed(size);
    buf[..size].copy_from_slice(&plan.pool.bytes()[..size]);
    let commits = (plan.bytes / size as u64).clamp(COMMITS_MIN, COMMITS_MAX);
    let in_file = SEGMENT_BYTES_DEFAULT / size as u64;
    let mut micros = micros()?;
    let watch = Watch::start();
    for number in 0..commits {
        let before = watch.clock.monotonic();
        file.write_all_at(&buf[..size], number % in_file * size as u64)?;
        file.sync_data()?;
        micros.saturating_record((watch.clock.monotonic() - before).as_micros() as u64);
    }
    let work = watch.stop(commits * size as u64);
    let at = |quantile| micros.value_at_quantile(quantile) as f64 / 1e6;
    Ok((work, (at(0.5), at(0.99))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_that_takes_long_counts_as_long() {
        let mut micros = micros().expect("bounds");
        for value in [1, 3_000, 80_000, 2 * MICROS_MAX] {
            micros.saturating_record(value);
        }
        let near = |quantile, wanted: u64| micros.equivalent(micros.value_at_quantile(quantile), wanted);
        assert!(near(0.5, 3_000) && near(0.75, 80_000) && near(1.0, MICROS_MAX));
    }
}
