//! A real ext4 image of real files, made without mke2fs, root or a loop device; and where such an image is free.
//!
//! The image holds files of this machine that are no secret: sources of crates, `/usr/share`, libraries. They compress
//! like a real disk does, which random bytes or zeroes would not.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use arcbox_ext4::Formatter;
use arcbox_ext4::constants::{file_mode, make_mode};
use arcbox_ext4::error::FormatError;

/// Sizes are rounded up to this: one block group.
pub const IMAGE_STEP_BYTES: u64 = 128 << 20;
/// The format keeps block numbers in 32 bits with room to spare; a demonstration needs no more.
pub const IMAGE_BYTES_MAX: u64 = 1 << 40;

const BLOCK_BYTES: u64 = 4096;
/// Files above this are skipped: many files make a better file system than one archive.
const FILE_BYTES_MAX: u64 = 32 << 20;
/// Deeper folders are left out: nothing needs them and a loop of bind mounts would not end.
const DEPTH_MAX: usize = 16;

/// What an image was made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filled {
    /// Size of the image.
    pub size_bytes: u64,
    /// Files in it.
    pub files: u64,
    /// Their bytes.
    pub file_bytes: u64,
}

/// An image could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the image {}", path.display())]
pub struct ImageError {
    path: PathBuf,
    source: FormatError,
}

/// An image's free space could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FreeSpaceError {
    /// Reading failed.
    #[error("cannot read the file system of the image")]
    Read(#[from] io::Error),
    /// There is no ext4 in it, or one of a kind that this does not read.
    #[error("the image holds no ext4 file system that is understood here: {0}")]
    Unknown(&'static str),
}

/// Folders whose files may be shown to anybody, those that are there, in a fixed order.
#[must_use]
pub fn usual_sources() -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let cargo = std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| home.map(|home| home.join(".cargo")));
    let mut sources: Vec<PathBuf> = cargo.map(|cargo| cargo.join("registry/src")).into_iter().collect();
    sources.extend(["/usr/share", "/usr/include", "/usr/lib"].map(PathBuf::from));
    sources.retain(|source| source.is_dir());
    sources
}

/// Makes an ext4 image of at least `size_bytes` at `path`, with up to `fill_bytes` of files from `sources`, taken in
/// turn and by name, so that the same machine makes the same image.
///
/// # Errors
/// [`ImageError`] if the image cannot be written. Source files that cannot be read are left out.
pub fn build(path: &Path, size_bytes: u64, fill_bytes: u64, sources: &[PathBuf]) -> Result<Filled, ImageError> {
    let wrap = |source| ImageError { path: path.to_owned(), source };
    let size_bytes = size_bytes.next_multiple_of(IMAGE_STEP_BYTES);
    let mut formatter = Formatter::new(path, BLOCK_BYTES as u32, size_bytes).map_err(wrap)?;
    // As many inodes as the formatter can lay out beside the data: one per 16 KiB, as mke2fs does.
    let mut room = Room { bytes: fill_bytes.min(size_bytes / 4 * 3), files: size_bytes / (16 << 10) * 3 / 4 };
    let mut filled = Filled { size_bytes, files: 0, file_bytes: 0 };
    for (number, source) in sources.iter().enumerate() {
        // The first sources would take everything: each gets its share of what is left.
        let shares = (sources.len() - number) as u64;
        let mut share = Room { bytes: room.bytes / shares, files: room.files / shares };
        let before = share;
        let name = source.file_name().map_or_else(|| "files".into(), |name| name.to_string_lossy().into_owned());
        fill(&mut formatter, source, &format!("/{name}"), 0, &mut share, &mut filled).map_err(wrap)?;
        room.bytes -= before.bytes - share.bytes;
        room.files -= before.files - share.files;
    }
    formatter.close().map_err(wrap)?;
    Ok(filled)
}

#[derive(Clone, Copy)]
struct Room {
    bytes: u64,
    files: u64,
}

fn fill(
    formatter: &mut Formatter,
    folder: &Path,
    inside: &str,
    depth: usize,
    room: &mut Room,
    filled: &mut Filled,
) -> Result<(), FormatError> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(()) };
    let mut entries: Vec<_> = entries.flatten().collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let (Ok(kind), Ok(name)) = (entry.file_type(), entry.file_name().into_string()) else { continue };
        let target = format!("{inside}/{name}");
        if kind.is_dir() && depth < DEPTH_MAX && room.files > 0 {
            fill(formatter, &entry.path(), &target, depth + 1, room, filled)?;
            continue;
        }
        let Some((file, bytes)) = readable(&entry, kind.is_file()) else { continue };
        // A block and an inode is the least that a file costs, and folders come on top.
        let cost = bytes.next_multiple_of(BLOCK_BYTES) + BLOCK_BYTES / 4;
        if cost > room.bytes || room.files == 0 {
            continue;
        }
        let mut contents = file.take(bytes);
        let mode = make_mode(file_mode::S_IFREG, 0o644);
        formatter.create(&target, mode, None, None, Some(&mut contents), None, None, None)?;
        room.bytes -= cost;
        room.files -= 1;
        filled.files += 1;
        filled.file_bytes += bytes;
    }
    Ok(())
}

fn readable(entry: &std::fs::DirEntry, is_file: bool) -> Option<(File, u64)> {
    if !is_file {
        return None;
    }
    let file = File::open(entry.path()).ok()?;
    let bytes = file.metadata().ok()?.len();
    (bytes <= FILE_BYTES_MAX).then_some((file, bytes))
}

/// Byte ranges of an ext4 image that no file and no structure uses, each at least `least_bytes` long: where a
/// workload may write while the file system stays whole.
///
/// # Errors
/// [`FreeSpaceError`] if it cannot be read or is no ext4 with the layout that this knows.
pub fn free_ranges(image: &File, least_bytes: u64) -> Result<Vec<Range<u64>>, FreeSpaceError> {
    let mut superblock = [0; 1024];
    image.read_exact_at(&mut superblock, 1024)?;
    let u32_at = |bytes: &[u8], at: usize| {
        u64::from(bytes[at])
            | u64::from(bytes[at + 1]) << 8
            | u64::from(bytes[at + 2]) << 16
            | u64::from(bytes[at + 3]) << 24
    };
    if superblock[56..58] != [0x53, 0xef] {
        return Err(FreeSpaceError::Unknown("no magic number"));
    }
    let incompatible = u32_at(&superblock, 96);
    if incompatible & 0x10 != 0 {
        return Err(FreeSpaceError::Unknown("descriptors in meta block groups"));
    }
    let block_bytes = 1024 << u32_at(&superblock, 24).min(6);
    let (blocks, first, per_group) = (u32_at(&superblock, 4), u32_at(&superblock, 20), u32_at(&superblock, 32));
    if per_group == 0 || per_group > block_bytes * 8 {
        return Err(FreeSpaceError::Unknown("odd block groups"));
    }
    let wide = incompatible & 0x80 != 0;
    let descriptor_bytes = if wide { u64::from(superblock[254]) | u64::from(superblock[255]) << 8 } else { 32 }.max(32);
    let mut free = Vec::new();
    let mut bitmap = vec![0; block_bytes as usize];
    for (group, start) in (first..blocks).step_by(per_group as usize).enumerate() {
        let mut descriptor = [0; 32];
        image.read_exact_at(&mut descriptor, (first + 1) * block_bytes + group as u64 * descriptor_bytes)?;
        // A bitmap that was never written (flag 2) describes a group that may hold structures: left alone.
        if descriptor[18] & 2 != 0 {
            continue;
        }
        image.read_exact_at(&mut bitmap, u32_at(&descriptor, 0) * block_bytes)?;
        let count = per_group.min(blocks - start);
        let used = |at: u64| bitmap[(at / 8) as usize] >> (at % 8) & 1 == 1;
        collect_free(count, used, |range| {
            free.push((start + range.start) * block_bytes..(start + range.end) * block_bytes)
        });
    }
    free.retain(|range| range.end - range.start >= least_bytes);
    Ok(free)
}

fn collect_free(count: u64, used: impl Fn(u64) -> bool, mut found: impl FnMut(Range<u64>)) {
    let mut since = None;
    for at in 0..=count {
        match (at < count && !used(at), since) {
            (true, None) => since = Some(at),
            (false, Some(start)) => {
                found(start..at);
                since = None;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn few_files(folder: &Path) -> Vec<PathBuf> {
        let source = folder.join("source");
        std::fs::create_dir_all(source.join("deep/er")).unwrap();
        for number in 0..200_usize {
            std::fs::write(source.join(format!("deep/er/{number}")), vec![number as u8; number * 97]).unwrap();
        }
        std::fs::write(source.join("large"), vec![7; 5 << 20]).unwrap();
        std::os::unix::fs::symlink("/etc/shadow", source.join("link")).unwrap();
        vec![source]
    }

    #[test]
    fn an_image_holds_the_files_and_passes_e2fsck() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        let filled = build(&image, 100 << 20, 64 << 20, &few_files(folder.path())).unwrap();
        assert_eq!((filled.size_bytes, filled.files), (128 << 20, 201));
        assert_eq!(std::fs::metadata(&image).unwrap().len(), filled.size_bytes);
        // The check needs e2fsprogs, which tests/run installs; a bare `cargo test` still runs the rest.
        if let Ok(check) = std::process::Command::new("/sbin/e2fsck").arg("-fn").arg(&image).output() {
            assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
        }
    }

    #[test]
    fn the_same_files_make_the_same_contents_and_a_bound_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let sources = few_files(folder.path());
        let build = |name: &str, fill| build(&folder.path().join(name), 1, fill, &sources).unwrap();
        assert_eq!(build("a", 2 << 20), build("b", 2 << 20));
        assert!(build("c", 1 << 20).file_bytes <= 1 << 20);
    }

    #[test]
    fn writing_to_the_free_ranges_leaves_the_file_system_whole() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        build(&image, 200 << 20, 64 << 20, &few_files(folder.path())).unwrap();
        let file = File::options().read(true).write(true).open(&image).unwrap();
        let free = free_ranges(&file, 1 << 20).unwrap();
        let total: u64 = free.iter().map(|range| range.end - range.start).sum();
        assert!(total > 150 << 20, "only {total} bytes free");
        for range in free {
            file.write_all_at(&vec![0xa5; (range.end - range.start) as usize], range.start).unwrap();
        }
        if let Ok(check) = std::process::Command::new("/sbin/e2fsck").arg("-fn").arg(&image).output() {
            assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
        }
    }

    #[test]
    fn other_contents_are_no_ext4() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("zeroes");
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        assert!(matches!(free_ranges(&File::open(&path).unwrap(), 1), Err(FreeSpaceError::Unknown(_))));
    }
}
