//! Looking at what stands in a target: to leave alone what is right already, and to see whether it kept what it was given.

use std::cell::RefCell;
use std::sync::atomic::Ordering;

use super::{Target, TargetError, ZERO_WRITE_BYTES, block_runs, is_zero};

thread_local! {
    /// What a thread compares with: memory for one extent, as long as the longest that it met, so that it is not made and
    /// filled with zeroes again for each.
    static THERE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Calls `work` with `length` bytes of this thread's buffer.
fn with_buffer<T>(length: usize, work: impl FnOnce(&mut [u8]) -> T) -> T {
    THERE.with_borrow_mut(|buffer| {
        if buffer.len() < length {
            buffer.resize(length, 0);
        }
        work(&mut buffer[..length])
    })
}

/// A range of the disk that was written, and what it must read like.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Expected {
    offset_bytes: u64,
    length_bytes: u32,
    checksum: u64,
}

impl Expected {
    /// What was written at `offset_bytes`.
    #[must_use]
    pub fn of(offset_bytes: u64, data: &[u8]) -> Self {
        // Against faults, not against forgers: whoever can write to the target needs no collision.
        Self { offset_bytes, length_bytes: data.len() as u32, checksum: crc_fast::crc64_nvme(data) }
    }
}

impl Target {
    /// Writes the blocks of the disk in which `data` is other than what stands there.
    pub(super) fn write_differences(&self, offset_bytes: u64, data: &[u8]) -> Result<(), TargetError> {
        with_buffer(data.len(), |there| {
            self.read_exact(offset_bytes, there)?;
            let mut written = 0;
            for (start, end) in block_runs(offset_bytes, data.len(), |range| data[range.clone()] != there[range]) {
                self.write_all(offset_bytes + start as u64, &data[start..end])?;
                written += end - start;
            }
            self.same_bytes.fetch_add((data.len() - written) as u64, Ordering::Relaxed);
            Ok(())
        })
    }

    /// Makes zero the blocks of the disk that are not zero yet.
    pub(super) fn clear_differences(&self, offset_bytes: u64, length_bytes: u64) -> Result<(), TargetError> {
        let mut cleared_bytes = 0;
        self.each_content(offset_bytes, length_bytes, |at, length| {
            cleared_bytes += length;
            self.clear(at, length)
        })?;
        self.same_bytes.fetch_add(length_bytes - cleared_bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Makes durable, and reads back, ranges that must be zero.
    ///
    /// # Errors
    /// [`TargetError::Differs`] at the first that is not.
    pub fn check_zeroes(&self, zeroes: &[(u64, u64)]) -> Result<(), TargetError> {
        self.sync()?;
        self.forget()?;
        zeroes.iter().try_for_each(|&(offset_bytes, length_bytes)| {
            self.each_content(offset_bytes, length_bytes, |at, _| {
                Err(TargetError::Differs { path: self.path.clone(), offset_bytes: at })
            })
        })
    }

    /// Reads back what was written and made durable: from the device, not from memory.
    ///
    /// # Errors
    /// [`TargetError::Differs`] at the first range that is not what was written.
    pub fn check_written(&self, mut expected: Vec<Expected>) -> Result<(), TargetError> {
        self.forget()?;
        expected.sort_unstable();
        for one in expected {
            with_buffer(one.length_bytes as usize, |there| {
                self.read_exact(one.offset_bytes, there)?;
                if Expected::of(one.offset_bytes, there) == one {
                    return Ok(());
                }
                Err(TargetError::Differs { path: self.path.clone(), offset_bytes: one.offset_bytes })
            })?;
        }
        Ok(())
    }

    /// Asks the page cache to give up what is durable, so that a read shows what the device has.
    fn forget(&self) -> Result<(), TargetError> {
        let forget = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed);
        forget.map_err(|error| self.failed("reading back", error.into()))
    }

    /// Calls `each` with the stretches of blocks of a range that are not zero. Holes are not read.
    fn each_content(
        &self,
        offset_bytes: u64,
        length_bytes: u64,
        mut each: impl FnMut(u64, u64) -> Result<(), TargetError>,
    ) -> Result<(), TargetError> {
        let end_bytes = offset_bytes + length_bytes;
        let mut at = offset_bytes;
        while let Some(data_at) = self.next_data(at).filter(|found| *found < end_bytes) {
            at = at.max(data_at);
            let length = (end_bytes - at).min(ZERO_WRITE_BYTES as u64);
            let runs = with_buffer(length as usize, |there| {
                self.read_exact(at, there)?;
                Ok::<_, TargetError>(block_runs(at, there.len(), |range| !is_zero(&there[range])))
            })?;
            runs.into_iter().try_for_each(|(start, end)| each(at + start as u64, (end - start) as u64))?;
            at += length;
        }
        Ok(())
    }

    /// Where the next byte stands that is in no hole; `None` if only a hole follows. What knows no holes has none.
    fn next_data(&self, offset_bytes: u64) -> Option<u64> {
        match rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Data(offset_bytes)) {
            Ok(at) => Some(at),
            Err(rustix::io::Errno::NXIO) => None,
            Err(_) => Some(offset_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::target::HOLE_BYTES;

    #[test]
    fn only_blocks_that_differ_are_written() {
        let there = vec![1; 5 * HOLE_BYTES];
        let mut data = there.clone();
        let runs = |data: &[u8]| block_runs(512, data.len(), |range| data[range.clone()] != there[range]);
        assert_eq!(runs(&data), []);
        for at in [0, 2 * HOLE_BYTES - 512, 3 * HOLE_BYTES - 513, 3 * HOLE_BYTES - 512] {
            data[at] = 2;
        }
        let block = |n: usize| n * HOLE_BYTES - 512;
        assert_eq!(runs(&data), [(0, block(1)), (block(2), block(4))]);
    }
}
