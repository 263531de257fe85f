//! Buffers that O_DIRECT accepts: their bytes start at a multiple of [`BLOCK_BYTES`](crate::limits::BLOCK_BYTES).
//!
//! A buffer is a vector with room to spare, and the aligned window into it. So the alignment costs one block of
//! memory and no `unsafe`, and the vector itself is what an asynchronous write takes and gives back.
//!
//! A buffer for whole commits lies in huge pages where the kernel gives them: a write of O_DIRECT looks each page up and holds
//! it, which for small ones is most of what the write costs the processor. What is set aside to align it so goes back to the
//! kernel at once, so it is address space and no memory, also where the allocator cleared it because it was in use before.

use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::limits::BLOCK_BYTES;

/// A huge page of this machine's kind; where they are of another size, fewer or none are used.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// A multiple of every page size that kernels have for such memory: 4, 16 or 64 KiB.
const PAGES_BYTES: usize = 64 << 10;

/// An owned buffer whose first byte is block-aligned and whose length is a multiple of a block.
///
/// Dropped, it goes back to the pool it came from, if that still has room.
pub struct AlignedBuf {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
    pool: Weak<PoolInner>,
}

impl AlignedBuf {
    /// A zeroed buffer of at least `len` bytes, rounded up to whole blocks.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let len = len.next_multiple_of(BLOCK_BYTES).max(BLOCK_BYTES);
        let align = if len >= HUGE_PAGE_BYTES { HUGE_PAGE_BYTES } else { BLOCK_BYTES };
        let mut bytes = vec![0; len + align];
        let start = bytes.as_ptr().align_offset(align);
        assert!(start < align, "a byte pointer can always be aligned");
        let (before, window) = bytes.split_at_mut(start);
        let (window, behind) = window.split_at_mut(len);
        ask_for_huge_pages(window);
        give_back_pages(before);
        give_back_pages(behind);
        Self { bytes, start, len, pool: Weak::new() }
    }

    /// A copy of `content`, with zeroes behind it up to a whole block.
    #[must_use]
    pub fn copy_of(content: &[u8]) -> Self {
        let len = content.len().next_multiple_of(BLOCK_BYTES).max(BLOCK_BYTES);
        let mut bytes: Vec<u8> = Vec::with_capacity(len + BLOCK_BYTES);
        let start = bytes.as_ptr().align_offset(BLOCK_BYTES);
        assert!(start < BLOCK_BYTES, "a byte pointer can always be aligned");
        bytes.resize(start, 0);
        bytes.extend_from_slice(content);
        bytes.resize(start + len, 0);
        Self { bytes, start, len, pool: Weak::new() }
    }

    /// No buffer: what stands where one was lent out.
    #[must_use]
    pub const fn none() -> Self {
        Self { bytes: Vec::new(), start: 0, len: 0, pool: Weak::new() }
    }

    /// Memory that it takes: its length, and the block that alignment costs, which doubles a small one.
    #[must_use]
    pub const fn held_bytes(&self) -> usize {
        if self.bytes.is_empty() { 0 } else { self.len + BLOCK_BYTES }
    }

    /// Takes the vector out, with the window of `range` in it; [`Self::put_back`] is the way home.
    pub(super) fn take_out(&mut self, range: &Range<usize>) -> (Vec<u8>, Range<usize>) {
        assert!(range.end <= self.len, "a window inside the buffer");
        (std::mem::take(&mut self.bytes), self.start + range.start..self.start + range.end)
    }

    /// Puts the vector back that [`Self::take_out`] took; moving a vector does not move its bytes.
    pub(super) fn put_back(&mut self, bytes: Vec<u8>) {
        assert!(bytes.len() >= self.start + self.len, "the same vector");
        self.bytes = bytes;
    }
}

/// Asks for huge pages for the whole ones in `window`, which nobody has touched yet, or has for another use.
fn ask_for_huge_pages(window: &mut [u8]) {
    let whole_bytes = window.len() / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
    if whole_bytes == 0 {
        return;
    }
    // SAFETY: the range lies within `window`, which is ours alone, begins at a huge page, and the advice changes how the kernel
    // backs it and never what stands in it.
    #[expect(unsafe_code, reason = "there is no safe call for it")]
    let asked =
        unsafe { rustix::mm::madvise(window.as_mut_ptr().cast(), whole_bytes, rustix::mm::Advice::LinuxHugepage) };
    if let Err(error) = asked {
        // Everything works as well without them, and costs a little more.
        tracing::debug!(%error, "no huge pages for the journal's buffers");
    }
}

/// Gives the whole pages of `margin`, which is all zero, back to the kernel, but for some at its ends: read again, they are zero again.
fn give_back_pages(margin: &mut [u8]) {
    let start = margin.as_ptr().align_offset(PAGES_BYTES).min(margin.len());
    let whole_bytes = (margin.len() - start) / PAGES_BYTES * PAGES_BYTES;
    if whole_bytes == 0 {
        return;
    }
    // SAFETY: the range lies within `margin`, which is ours alone, consists of whole pages of private memory, and holds zeroes
    // before and after.
    #[expect(unsafe_code, reason = "there is no safe call for it")]
    let given = unsafe {
        rustix::mm::madvise(margin[start..].as_mut_ptr().cast(), whole_bytes, rustix::mm::Advice::LinuxDontNeed)
    };
    if let Err(error) = given {
        tracing::debug!(%error, "the margins of the journal's buffers stay in memory");
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // A vector that an abandoned write still holds leaves nothing to give back.
        if self.bytes.is_empty() {
            return;
        }
        if let Some(pool) = self.pool.upgrade() {
            let mut free = pool.free.lock();
            if free.len() < pool.free_max {
                free.push((std::mem::take(&mut self.bytes), self.start));
            }
        }
    }
}

/// Buffers of one size, used again and again: a fresh one costs page faults.
#[derive(Debug, Clone)]
pub struct BufPool(Arc<PoolInner>);

#[derive(Debug)]
struct PoolInner {
    buf_bytes: usize,
    free_max: usize,
    free: Mutex<Vec<(Vec<u8>, usize)>>,
}

impl BufPool {
    /// A pool of buffers of `buf_bytes` that keeps up to `free_max` unused ones.
    #[must_use]
    pub fn new(buf_bytes: usize, free_max: usize) -> Self {
        let buf_bytes = buf_bytes.next_multiple_of(BLOCK_BYTES);
        Self(Arc::new(PoolInner { buf_bytes, free_max, free: Mutex::new(Vec::new()) }))
    }

    /// Size of its buffers.
    #[must_use]
    pub fn buf_bytes(&self) -> usize {
        self.0.buf_bytes
    }

    /// Buffers that wait to be used again.
    #[cfg(test)]
    pub fn unused(&self) -> usize {
        self.0.free.lock().len()
    }

    /// A buffer with unspecified content: whoever takes it writes what it reads.
    #[must_use]
    pub fn take(&self) -> AlignedBuf {
        let pool = Arc::downgrade(&self.0);
        let free = self.0.free.lock().pop();
        match free {
            Some((bytes, start)) => AlignedBuf { bytes, start, len: self.0.buf_bytes, pool },
            None => {
                let mut buf = AlignedBuf::zeroed(self.0.buf_bytes);
                buf.pool = pool;
                buf
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_also_after_they_come_back_to_the_pool() {
        let pool = BufPool::new(10_000, 2);
        assert_eq!(pool.buf_bytes(), 12_288);
        for round in 0..3_u8 {
            let mut held: Vec<AlignedBuf> = (0..4).map(|_| pool.take()).collect();
            for buf in &mut held {
                assert_eq!(buf.as_ptr().align_offset(BLOCK_BYTES), 0);
                buf.fill(round);
            }
            drop(held);
            assert_eq!(pool.unused(), 2, "the pool keeps no more than it should");
        }
    }

    #[test]
    fn a_copy_is_aligned_and_padded_with_zeroes() {
        for len in [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 10 * BLOCK_BYTES] {
            let copy = AlignedBuf::copy_of(&vec![7; len]);
            assert_eq!(copy.as_ptr().align_offset(BLOCK_BYTES), 0);
            assert_eq!(copy.len(), len.max(1).next_multiple_of(BLOCK_BYTES));
            assert!(copy[..len].iter().all(|&byte| byte == 7) && copy[len..].iter().all(|&byte| byte == 0));
        }
    }

    /// Pages of `bytes` that are in memory, by the kernel's own account, of those that lie within it as a whole.
    fn resident_pages(bytes: &[u8]) -> usize {
        use std::os::unix::fs::FileExt as _;
        let page_bytes = rustix::param::page_size();
        let first = (bytes.as_ptr() as usize).div_ceil(page_bytes);
        let end = (bytes.as_ptr() as usize + bytes.len()) / page_bytes;
        let mut entries = vec![0; end.saturating_sub(first) * 8];
        let pagemap = std::fs::File::open("/proc/self/pagemap").unwrap();
        pagemap.read_exact_at(&mut entries, first as u64 * 8).unwrap();
        entries.chunks_exact(8).filter(|entry| entry[7] & 0x80 != 0).count()
    }

    #[test]
    fn the_margin_of_a_large_buffer_takes_no_memory_also_where_the_allocator_had_cleared_it() {
        let len = 2 * HUGE_PAGE_BYTES;
        let (mut was_cleared, mut stays) = (false, Vec::new());
        for _ in 0..8 {
            // What was in use is what the allocator has to clear, once such sizes do not go back to the kernel any more, which what
            // stays behind them prevents.
            let used: Vec<Vec<u8>> = (0..4).map(|_| vec![1; len + HUGE_PAGE_BYTES]).collect();
            stays.push(vec![1_u8; 100]);
            drop(used);
            let cleared = vec![0_u8; len + HUGE_PAGE_BYTES];
            was_cleared |= resident_pages(&cleared) > 0;
            drop(cleared);
            let mut held: Vec<AlignedBuf> = (0..4).map(|_| AlignedBuf::zeroed(len)).collect();
            for buf in &mut held {
                buf.fill(1);
                let (start, end) = (buf.start, buf.start + buf.len);
                let resident = resident_pages(&buf.bytes[..start]) + resident_pages(&buf.bytes[end..]);
                assert!(resident * rustix::param::page_size() <= 2 * PAGES_BYTES, "{resident} pages");
                assert!(buf.bytes[..start].iter().chain(&buf.bytes[end..]).all(|&byte| byte == 0));
            }
        }
        assert!(was_cleared, "the allocator cleared nothing, so nothing was shown ({} stay)", stays.len());
    }
}
