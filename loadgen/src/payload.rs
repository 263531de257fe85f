//! What records carry, made beforehand: a pool of bytes of which every write takes a slice, so that making it costs nothing
//! while something is measured.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tidegate::cli::quickstart::image::usual_sources;
use tidegate::cli::quickstart::load::Numbers;
use tidegate::pipeline::codec::{Codec, Packer, Packing};

/// Slices begin at multiples of this, the block size of common file systems.
pub const BLOCK_BYTES: usize = 4096;
/// Pool unless told otherwise: much larger than any processor's cache, small beside a gateway's memory.
pub const POOL_BYTES_DEFAULT: u64 = 256 << 20;
/// Smaller pools could not give a slice of the largest record at many places.
pub const POOL_BYTES_MIN: u64 = 4 << 20;
/// Deeper folders are left out.
const DEPTH_MAX: usize = 16;
/// No file gives more: many files are more like a file system than one is.
const FILE_BYTES_MAX: u64 = 32 << 20;
/// What a made block repeats where it is to compress.
const PATTERN_BYTES: usize = 64;
/// Bytes on which the ratio is measured and set right.
const SAMPLE_BYTES: usize = 4 << 20;

/// Where a pool's bytes come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// Files, each from a block's start, as in a file system. Folders are read in order of name.
    Files(Vec<PathBuf>),
    /// Files of this machine that are no secret.
    Usual,
    /// Made: LZ4 shall shrink them by this factor.
    Ratio(f64),
}

/// Bytes to take slices of. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Pool {
    bytes: Bytes,
}

impl Pool {
    /// Fills a pool of about `bytes`.
    ///
    /// # Errors
    /// If files cannot be read, or there are too few of them.
    pub fn fill(source: &Source, bytes: u64, seed: u64) -> io::Result<Self> {
        let bytes = (bytes.max(POOL_BYTES_MIN) as usize).next_multiple_of(BLOCK_BYTES);
        let pool = match source {
            Source::Ratio(ratio) => made(bytes, *ratio, seed),
            Source::Files(paths) => read(paths, bytes)?,
            Source::Usual => read(&usual_sources(), bytes)?,
        };
        if pool.len() < POOL_BYTES_MIN as usize {
            return Err(io::Error::other(format!(
                "the files hold {} bytes: at least {POOL_BYTES_MIN} are needed",
                pool.len()
            )));
        }
        Ok(Self { bytes: pool.into() })
    }

    /// Blocks in it.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        (self.bytes.len() / BLOCK_BYTES) as u64
    }

    /// All of it.
    #[must_use]
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// `length` bytes from a block that `number` decides; and which block that is.
    #[must_use]
    pub fn slice(&self, number: u64, length: usize) -> (u64, Bytes) {
        let length = length.min(self.bytes.len());
        let starts = self.blocks() - (length.div_ceil(BLOCK_BYTES) as u64) + 1;
        let block = number % starts;
        let at = block as usize * BLOCK_BYTES;
        (block, self.bytes.slice(at..at + length))
    }

    /// How much smaller LZ4 makes it, in blocks of a message's size.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        ratio(&self.bytes)
    }
}

fn ratio(bytes: &[u8]) -> f64 {
    let (mut packer, mut out, mut packed_bytes) = (Packer::default(), Vec::new(), 0);
    for message in bytes.chunks(tidegate::limits::MESSAGE_BYTES_TARGET) {
        let codec = packer.pack(Packing::Lz4, message, 0, &mut out);
        packed_bytes += if codec == Codec::Raw { message.len() } else { out.len() };
    }
    bytes.len() as f64 / packed_bytes.max(1) as f64
}

/// Blocks of which a part is noise and the rest repeats; the part is set right by measuring.
fn made(bytes: usize, wanted: f64, seed: u64) -> Vec<u8> {
    let mut noise = 1.0 / wanted.max(1.0);
    for _ in 0..6 {
        let found = ratio(&blocks(SAMPLE_BYTES.min(bytes), noise, seed));
        noise = (noise * found / wanted).clamp(0.0, 1.0);
    }
    blocks(bytes, noise, seed)
}

fn blocks(bytes: usize, noise: f64, seed: u64) -> Vec<u8> {
    let mut numbers = Numbers::new(seed);
    let noisy_bytes = ((BLOCK_BYTES as f64 * noise) as usize).min(BLOCK_BYTES).next_multiple_of(8);
    let mut out = Vec::with_capacity(bytes);
    while out.len() < bytes {
        let end = out.len() + noisy_bytes;
        while out.len() < end {
            out.extend_from_slice(&numbers.next().to_le_bytes());
        }
        let pattern: Vec<u8> = (0..PATTERN_BYTES / 8).flat_map(|_| numbers.next().to_le_bytes()).collect();
        let rest = BLOCK_BYTES - noisy_bytes;
        out.extend(pattern.iter().cycle().take(rest));
    }
    out.truncate(bytes);
    out
}

fn read(paths: &[PathBuf], bytes: usize) -> io::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(bytes);
    for (at, path) in paths.iter().enumerate() {
        // The first folder would take everything: each gets its share of what is left.
        let share = out.len() + (bytes - out.len()) / (paths.len() - at);
        if path.is_dir() {
            read_folder(path, 0, share, &mut out);
        } else {
            read_file(path, share, u64::MAX, &mut out)?;
        }
    }
    Ok(out)
}

/// What cannot be read is left out.
fn read_folder(folder: &Path, depth: usize, bytes_max: usize, out: &mut Vec<u8>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let mut entries: Vec<_> = entries.flatten().collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let Ok(kind) = entry.file_type() else { continue };
        if out.len() >= bytes_max {
            return;
        }
        if kind.is_dir() && depth < DEPTH_MAX {
            read_folder(&entry.path(), depth + 1, bytes_max, out);
        } else if kind.is_file() {
            let before = out.len();
            if read_file(&entry.path(), bytes_max, FILE_BYTES_MAX, out).is_err() {
                out.truncate(before);
            }
        }
    }
}

fn read_file(path: &Path, bytes_max: usize, file_bytes_max: u64, out: &mut Vec<u8>) -> io::Result<()> {
    let room = (bytes_max.saturating_sub(out.len()) as u64).min(file_bytes_max);
    std::fs::File::open(path)?.take(room).read_to_end(out)?;
    out.resize(out.len().next_multiple_of(BLOCK_BYTES), 0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_bytes_shrink_as_asked() {
        for wanted in [1.0, 2.0, 3.5] {
            let found = Pool::fill(&Source::Ratio(wanted), 8 << 20, 7).expect("made").ratio();
            assert!((found / wanted - 1.0).abs() < 0.1, "asked for {wanted}, got {found}");
        }
    }

    #[test]
    fn files_stand_at_blocks_and_slices_stay_inside() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("a"), vec![1; 5000]).expect("written");
        std::fs::write(folder.path().join("b"), vec![2; 6 << 20]).expect("written");
        let files = Source::Files(vec![folder.path().to_owned()]);
        let pool = Pool::fill(&files, 5 << 20, 1).expect("read");
        assert_eq!((pool.bytes()[4999], pool.bytes()[5000], pool.bytes()[8192]), (1, 0, 2));
        for number in [0, 1, 77, u64::MAX] {
            let (block, slice) = pool.slice(number, 1 << 20);
            assert_eq!(
                slice,
                pool.bytes().slice(block as usize * BLOCK_BYTES..block as usize * BLOCK_BYTES + (1 << 20))
            );
        }
        let few = Source::Files(vec![folder.path().join("a")]);
        assert!(Pool::fill(&few, 5 << 20, 1).is_err());
    }
}
