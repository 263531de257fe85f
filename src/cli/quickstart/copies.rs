//! Copies of a disk at a moment, their digests, and comparing them with what a restore brings back.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::types::Digest;

/// Read and compared at once; also the unit in which zeroes stay holes.
const PIECE_BYTES: usize = 1 << 20;

/// Copies `source` to a new file `target`, zeroes as holes, and returns the SHA-256 of the whole.
///
/// # Errors
/// Whatever kept it from reading or writing; `target` may then hold a part.
pub fn copy(source: &Path, target: &Path) -> io::Result<Digest> {
    let out = File::options().write(true).create_new(true).open(target)?;
    let (digest, size) =
        scan(
            source,
            |offset, piece| {
                if piece.iter().any(|&byte| byte != 0) { out.write_all_at(piece, offset) } else { Ok(()) }
            },
        )?;
    out.set_len(size)?;
    Ok(digest)
}

/// SHA-256 of a file or block device.
///
/// # Errors
/// If it cannot be read.
pub fn sha256(path: &Path) -> io::Result<Digest> {
    scan(path, |_, _| Ok(())).map(|(digest, _)| digest)
}

fn scan(path: &Path, mut each: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<(Digest, u64)> {
    let file = File::open(path)?;
    let mut hasher = ring::digest::Context::new(&ring::digest::SHA256);
    let mut piece = vec![0; PIECE_BYTES];
    let mut offset = 0;
    loop {
        let length = read_full(&file, &mut piece, offset)?;
        if length == 0 {
            break;
        }
        hasher.update(&piece[..length]);
        each(offset, &piece[..length])?;
        offset += length as u64;
    }
    let mut digest = Digest([0; 32]);
    digest.0.copy_from_slice(hasher.finish().as_ref());
    Ok((digest, offset))
}

fn read_full(file: &File, piece: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut length = 0;
    while length < piece.len() {
        match file.read_at(&mut piece[length..], offset + length as u64) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// The first byte in which two files differ (the end of the shorter one, if that is all), or `None`.
///
/// # Errors
/// If one cannot be read.
pub fn first_difference(one: &Path, other: &Path) -> io::Result<Option<u64>> {
    let (one, other) = (File::open(one)?, File::open(other)?);
    let (mut a, mut b) = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
    let mut offset = 0;
    loop {
        let (length_a, length_b) = (read_full(&one, &mut a, offset)?, read_full(&other, &mut b, offset)?);
        let common = length_a.min(length_b);
        if let Some(at) = (0..common).find(|&at| a[at] != b[at]) {
            return Ok(Some(offset + at as u64));
        }
        offset += common as u64;
        if length_a != length_b {
            return Ok(Some(offset));
        }
        if common == 0 {
            return Ok(None);
        }
    }
}

/// Size of a file or block device.
///
/// # Errors
/// If it cannot be opened.
pub fn size_bytes(path: &Path) -> io::Result<u64> {
    use std::io::Seek as _;
    File::open(path)?.seek(io::SeekFrom::End(0))
}

/// Bytes of all files below a folder.
///
/// # Errors
/// If a folder cannot be read.
pub fn stored_bytes(folder: &Path) -> io::Result<u64> {
    let mut total = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        total += if kind.is_dir() { stored_bytes(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_the_digest_of_its_source_and_keeps_holes() {
        use std::os::unix::fs::MetadataExt as _;
        let folder = tempfile::tempdir().unwrap();
        let (source, target) = (folder.path().join("source"), folder.path().join("target"));
        let file = File::create(&source).unwrap();
        file.set_len((64 << 20) + 17).unwrap();
        file.write_all_at(b"something", 33 << 20).unwrap();
        let digest = copy(&source, &target).unwrap();
        assert_eq!(digest, sha256(&source).unwrap());
        assert_eq!(digest, sha256(&target).unwrap());
        assert_eq!(first_difference(&source, &target).unwrap(), None);
        assert!(std::fs::metadata(&target).unwrap().blocks() * 512 <= 4 << 20, "the holes were filled");
    }

    #[test]
    fn a_difference_is_found_where_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (folder.path().join("one"), folder.path().join("other"));
        std::fs::write(&one, vec![1; 3 << 20]).unwrap();
        let mut bytes = vec![1; 3 << 20];
        bytes[2_500_000] = 2;
        std::fs::write(&other, &bytes).unwrap();
        assert_eq!(first_difference(&one, &other).unwrap(), Some(2_500_000));
        std::fs::write(&other, &bytes[..1_000_000]).unwrap();
        assert_eq!(first_difference(&one, &other).unwrap(), Some(1_000_000));
        std::fs::write(&other, b"").unwrap();
        assert_eq!(first_difference(&one, &other).unwrap(), Some(0));
    }
}
