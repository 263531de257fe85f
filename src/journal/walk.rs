//! Steps through the commits of a segment file, from replay and from readers: one window of memory, any damage found
//! and stepped over.

use std::io;
use std::sync::Arc;

use super::body::CommitBody;
use super::disk::{AlignedBuf, BufPool, File};
use super::format::{HEADER_BYTES, Header, Owner, Row};
use crate::limits::BLOCK_BYTES;

/// What stands next in a segment.
pub enum Step {
    /// A commit whose header and table are whole; bodies are not checked yet.
    Commit(Found),
    /// Bytes that are no commit, with a commit behind them.
    Damaged {
        /// First byte.
        offset_bytes: u64,
        /// How many.
        length_bytes: u64,
    },
    /// Nothing valid up to the end.
    End {
        /// Where the end begins.
        offset_bytes: u64,
        /// Whether a commit of this segment was begun there.
        begun: bool,
    },
}

/// A commit in memory.
pub struct Found {
    /// Its header.
    pub header: Header,
    /// Its table.
    pub rows: Vec<Row>,
    /// The memory it stands in.
    pub body: Arc<CommitBody>,
    /// Its first byte there.
    pub base: usize,
}

impl Found {
    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.body.buf[self.base..self.base + self.header.commit_bytes as usize]
    }
}

/// A place in a segment file, with what was read around it.
pub struct Walk {
    owner: Owner,
    pool: BufPool,
    offset_bytes: u64,
    end_bytes: u64,
    window: Arc<CommitBody>,
    window_at: u64,
    window_bytes: usize,
}

impl Walk {
    /// Starts at `offset_bytes` of a file that `owner` wrote up to `end_bytes` at most.
    pub fn new(owner: Owner, pool: BufPool, offset_bytes: u64, end_bytes: u64) -> Self {
        let window = Arc::new(CommitBody::new(AlignedBuf::none()));
        Self { owner, pool, offset_bytes, end_bytes, window, window_at: 0, window_bytes: 0 }
    }

    /// Whose segment it is.
    pub fn segment(&self) -> u64 {
        self.owner.segment
    }

    /// Goes to another place, possibly with more to read behind it.
    pub fn seek(&mut self, offset_bytes: u64, end_bytes: u64) {
        if end_bytes != self.end_bytes {
            // What was read beyond the old end is out of date.
            self.window_bytes = self.window_bytes.min(self.end_bytes.saturating_sub(self.window_at) as usize);
        }
        self.offset_bytes = offset_bytes;
        self.end_bytes = end_bytes;
    }

    /// The next step.
    ///
    /// # Errors
    /// What the operating system answers; unreadable sectors count as damage instead.
    pub fn step(&mut self, file: &dyn File) -> io::Result<Step> {
        let (start, owner) = (self.offset_bytes, self.owner);
        let mut at = start;
        let mut begun = false;
        while at + HEADER_BYTES as u64 <= self.end_bytes {
            let block = self.load(file, at, BLOCK_BYTES)?;
            begun |= at == start && Header::was_begun(block, &owner, at);
            let Some(header) = self.header_at(file, at)? else {
                at += BLOCK_BYTES as u64;
                continue;
            };
            let commit_bytes = header.commit_bytes as usize;
            let commit = self.load(file, at, commit_bytes)?;
            let Some(rows) = header.rows(commit) else {
                // Its length is known all the same.
                at += commit_bytes as u64;
                continue;
            };
            if at > start {
                self.offset_bytes = at;
                return Ok(Step::Damaged { offset_bytes: start, length_bytes: at - start });
            }
            self.offset_bytes = at + commit_bytes as u64;
            let base = (at - self.window_at) as usize;
            return Ok(Step::Commit(Found { header, rows, body: Arc::clone(&self.window), base }));
        }
        self.offset_bytes = self.end_bytes;
        Ok(Step::End { offset_bytes: start, begun })
    }

    fn header_at(&mut self, file: &dyn File, at: u64) -> io::Result<Option<Header>> {
        let (owner, end_bytes) = (self.owner, self.end_bytes);
        let header = Header::decode(self.load(file, at, BLOCK_BYTES)?);
        Ok(header.filter(|header| {
            header.owner == owner && header.offset_bytes == at && at + u64::from(header.commit_bytes) <= end_bytes
        }))
    }

    /// The bytes `at..at + length`, or fewer at the end of the file.
    fn load(&mut self, file: &dyn File, at: u64, length: usize) -> io::Result<&[u8]> {
        let inside = at >= self.window_at && at + length as u64 <= self.window_at + self.window_bytes as u64;
        if !inside {
            self.refill(file, at, length)?;
        }
        let start = (at - self.window_at) as usize;
        Ok(&self.window.buf[start..(start + length).min(self.window_bytes)])
    }

    fn refill(&mut self, file: &dyn File, at: u64, length: usize) -> io::Result<()> {
        let want = (self.end_bytes - at).min(self.pool.buf_bytes().max(length) as u64) as usize;
        let want = want.next_multiple_of(BLOCK_BYTES);
        if Arc::get_mut(&mut self.window).is_none_or(|window| window.buf.len() < want) {
            let fits = want <= self.pool.buf_bytes();
            let buf = if fits { self.pool.take() } else { AlignedBuf::zeroed(want) };
            self.window = Arc::new(CommitBody::new(buf));
        }
        self.window_bytes = 0;
        self.window_at = at;
        let Some(window) = Arc::get_mut(&mut self.window) else { unreachable!("it is shared with nobody") };
        self.window_bytes = read_window(file, &mut window.buf, want, at)?;
        Ok(())
    }
}

fn read_window(file: &dyn File, buf: &mut AlignedBuf, want: usize, at: u64) -> io::Result<usize> {
    let mut have = 0;
    while have < want {
        match file.read_at(buf, have..want, at + have as u64) {
            Ok(0) => break,
            // Only the end of a file ends inside a block.
            Ok(bytes) => have += bytes,
            Err(error) if is_bad_sector(&error) => {
                // One block at a time around the bad place; what cannot be read reads as nothing.
                let block = have..have + BLOCK_BYTES;
                match file.read_at(buf, block.clone(), at + have as u64) {
                    Ok(0) => break,
                    Ok(bytes) => have += bytes,
                    Err(error) if is_bad_sector(&error) => {
                        buf[block].fill(0);
                        have += BLOCK_BYTES;
                    }
                    Err(error) => return Err(error),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(have)
}

fn is_bad_sector(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EBADMSG | libc::EILSEQ))
}
