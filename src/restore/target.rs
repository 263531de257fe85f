//! Where the image goes: a new file, or a block device.
//!
//! A file is written under `<target>.partial` and gets its name only when it is whole and durable, so nobody ever finds
//! a wrong image under the right name. A device has no such refuge: until the restore is done, the resume file beside it
//! says that it is not an image.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use crate::fault::{Classify, Fault};

/// Zero blocks of at least this size inside data are left as holes of a new file.
const HOLE_BYTES: usize = 4096;
/// Zeroes written at once to a device that cannot punch.
const ZERO_WRITE_BYTES: usize = 1 << 20;
/// How much of a device's start and end must be zero for it to count as empty: partition tables, superblocks and
/// volume labels stand there.
const DEVICE_LOOK_BYTES: u64 = 1 << 20;

/// Why a target cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Something is there already.
    #[error("{} is not empty: name another target, or overwrite it with --force", path.display())]
    NotEmpty {
        /// The target.
        path: PathBuf,
    },
    /// The device cannot hold the image.
    #[error("{} has {have_bytes} bytes, the disk needs {need_bytes}: use a larger device", path.display())]
    TooSmall {
        /// The target.
        path: PathBuf,
        /// Its size.
        have_bytes: u64,
        /// The disk's size.
        need_bytes: u64,
    },
    /// Neither a file nor a block device.
    #[error("{} is neither a file nor a block device: name a file to create, or a device", path.display())]
    Kind {
        /// The target.
        path: PathBuf,
    },
    /// No room.
    #[error(
        "no space left while writing {}: free some and run the same command again, it goes on where it stopped",
        path.display()
    )]
    Full {
        /// The target.
        path: PathBuf,
    },
    /// The operating system said no.
    #[error("{operation} {} failed", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Classify for TargetError {
    fn fault(&self) -> Fault {
        Fault::Reject
    }
}

/// An open target.
#[derive(Debug)]
pub struct Target {
    file: File,
    path: PathBuf,
    /// Where a file is written until it is whole; none for a device.
    partial: Option<PathBuf>,
}

/// What stands at the target's path before anything is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing,
    File { bytes: u64 },
    Device,
}

/// The name under which a file is written until it is whole.
#[must_use]
pub fn partial_of(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

fn look(path: &Path) -> Result<Found, TargetError> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_file() => Ok(Found::File { bytes: meta.len() }),
        Ok(meta) if meta.file_type().is_block_device() => Ok(Found::Device),
        Ok(_) => Err(TargetError::Kind { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Found::Nothing),
        Err(source) => Err(TargetError::Io { operation: "looking at", path: path.to_owned(), source }),
    }
}

impl Target {
    /// Refuses a file that has content and that may not be overwritten.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn check(path: &Path, force: bool) -> Result<(), TargetError> {
        match look(path)? {
            Found::File { bytes } if bytes > 0 && !force => Err(TargetError::NotEmpty { path: path.to_owned() }),
            _ => Ok(()),
        }
    }

    /// Opens what stands there without a change to it: a device, or the file of an earlier run that had this size.
    ///
    /// # Errors
    /// [`TargetError`] if it is too small or not usable.
    pub fn standing(path: &Path, disk_bytes: u64) -> Result<Option<Self>, TargetError> {
        if look(path)? == Found::Device {
            return Self::open_device(path, disk_bytes).map(Some);
        }
        let wrap = |source| TargetError::Io { operation: "opening the unfinished", path: path.to_owned(), source };
        let partial = partial_of(path);
        let file = match OpenOptions::new().read(true).write(true).open(&partial) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(wrap(error)),
        };
        let meta = file.metadata().map_err(wrap)?;
        let usable = meta.is_file() && meta.len() == disk_bytes;
        Ok(usable.then(|| Self { file, path: path.to_owned(), partial: Some(partial) }))
    }

    /// A new file for an image of `disk_bytes`; an old image, and what an earlier run wrote, are gone.
    ///
    /// # Errors
    /// [`TargetError`] if it is not usable.
    pub fn create(path: &Path, disk_bytes: u64) -> Result<Self, TargetError> {
        let partial = partial_of(path);
        let wrap = |operation| move |source| TargetError::Io { operation, path: path.to_owned(), source };
        // What is overwritten goes first, or both images would have to fit.
        if matches!(look(path)?, Found::File { .. }) {
            std::fs::remove_file(path).map_err(wrap("removing the old"))?;
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        let file = options.open(&partial).map_err(wrap("creating"))?;
        file.set_len(disk_bytes).map_err(wrap("sizing"))?;
        Ok(Self { file, path: path.to_owned(), partial: Some(partial) })
    }

    fn open_device(path: &Path, disk_bytes: u64) -> Result<Self, TargetError> {
        let wrap = |operation| move |source| TargetError::Io { operation, path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        // Exclusive on a block device means: not while it is mounted.
        options.read(true).write(true).custom_flags(libc::O_EXCL);
        let mut file = options.open(path).map_err(wrap("opening"))?;
        let have_bytes = file.seek(SeekFrom::End(0)).map_err(wrap("sizing"))?;
        if have_bytes < disk_bytes {
            return Err(TargetError::TooSmall { path: path.to_owned(), have_bytes, need_bytes: disk_bytes });
        }
        Ok(Self { file, path: path.to_owned(), partial: None })
    }

    /// Refuses a device that has content.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn must_be_blank(&mut self) -> Result<(), TargetError> {
        match is_blank(&mut self.file) {
            Ok(true) => Ok(()),
            Ok(false) => Err(TargetError::NotEmpty { path: self.path.clone() }),
            Err(source) => Err(self.failed("reading", source)),
        }
    }

    /// Tells this target from another one of the same name: the device's number, or the file's with its birth, because
    /// a file that is made anew often gets the number of one just removed.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn id(&self) -> Result<String, TargetError> {
        let meta = self.file.metadata().map_err(|source| self.failed("looking at", source))?;
        if self.partial.is_none() {
            return Ok(format!("device-{}", meta.rdev()));
        }
        let born = meta.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok());
        Ok(format!("file-{}-{}-{}", meta.dev(), meta.ino(), born.unwrap_or_default().as_nanos()))
    }

    /// Whether earlier content may show where nothing is written.
    #[must_use]
    pub fn reused(&self) -> bool {
        self.partial.is_none()
    }

    /// Writes `data` at `offset_bytes`. In a new file, blocks of zeroes stay holes.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn write(&self, offset_bytes: u64, data: &[u8]) -> Result<(), TargetError> {
        if self.reused() {
            return self.write_all(offset_bytes, data);
        }
        for (start, end) in content_runs(offset_bytes, data) {
            self.write_all(offset_bytes + start as u64, &data[start..end])?;
        }
        Ok(())
    }

    fn write_all(&self, offset_bytes: u64, data: &[u8]) -> Result<(), TargetError> {
        self.file.write_all_at(data, offset_bytes).map_err(|source| self.failed("writing", source))
    }

    /// Makes a range of a reused target zero, by a hole where the device can.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn zero(&self, offset_bytes: u64, length_bytes: u64) -> Result<(), TargetError> {
        if !self.reused() {
            return Ok(());
        }
        use rustix::fs::{FallocateFlags, fallocate};
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if fallocate(&self.file, punch, offset_bytes, length_bytes).is_ok() {
            return Ok(());
        }
        let zeroes = vec![0; ZERO_WRITE_BYTES.min(length_bytes as usize)];
        let end_bytes = offset_bytes + length_bytes;
        let mut at = offset_bytes;
        while at < end_bytes {
            let length = (end_bytes - at).min(zeroes.len() as u64);
            self.write_all(at, &zeroes[..length as usize])?;
            at += length;
        }
        Ok(())
    }

    /// Makes everything written so far durable.
    ///
    /// # Errors
    /// [`TargetError`]. After a failed sync nothing written since the one before may be believed.
    pub fn sync(&self) -> Result<(), TargetError> {
        self.file.sync_data().map_err(|source| self.failed("syncing", source))
    }

    /// Makes the image durable and gives it its name.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn finish(self) -> Result<(), TargetError> {
        self.file.sync_all().map_err(|source| self.failed("syncing", source))?;
        let Some(partial) = &self.partial else { return Ok(()) };
        std::fs::rename(partial, &self.path).map_err(|source| self.failed("renaming to", source))?;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|source| self.failed("syncing the folder of", source))
    }

    fn failed(&self, operation: &'static str, source: io::Error) -> TargetError {
        let path = self.partial.as_ref().unwrap_or(&self.path).clone();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                TargetError::Full { path }
            }
            _ => TargetError::Io { operation, path, source },
        }
    }
}

fn is_blank(file: &mut File) -> io::Result<bool> {
    let bytes = file.seek(SeekFrom::End(0))?;
    let look_bytes = DEVICE_LOOK_BYTES.min(bytes);
    let mut buffer = vec![0; look_bytes as usize];
    for at in [0, bytes - look_bytes] {
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut buffer)?;
        if buffer.iter().any(|&byte| byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The parts of `data` that are not whole blocks of zeroes of the image, as start and end within `data`.
fn content_runs(offset_bytes: u64, data: &[u8]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    let mut at = 0;
    while at < data.len() {
        let to_border = HOLE_BYTES - (offset_bytes + at as u64) as usize % HOLE_BYTES;
        let end = data.len().min(at + to_border);
        let hole = end - at == HOLE_BYTES && is_zero(&data[at..end]);
        if !hole {
            match runs.last_mut() {
                Some(run) if run.1 == at => run.1 = end,
                _ => runs.push((at, end)),
            }
        }
        at = end;
    }
    runs
}

/// Looks at words, not bytes: this runs over every restored block.
fn is_zero(block: &[u8]) -> bool {
    block.as_chunks::<16>().0.iter().all(|word| u128::from_ne_bytes(*word) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn zero_blocks_of_a_new_file_stay_holes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let target = Target::create(&path, 64 << 20).unwrap();
        let mut data = vec![0; 1 << 20];
        data[5000] = 1;
        target.write(8 << 20, &data).unwrap();
        target.finish().unwrap();
        let meta = std::fs::metadata(&path).unwrap();
        assert_eq!(meta.len(), 64 << 20);
        assert!(meta.blocks() * 512 <= 64 << 10, "{} blocks", meta.blocks());
        assert_eq!(std::fs::read(&path).unwrap()[(8 << 20) + 5000], 1);
    }

    #[test]
    fn runs_follow_the_blocks_of_the_image_not_of_the_data() {
        let mut data = vec![0; 3 * HOLE_BYTES];
        assert_eq!(content_runs(0, &data), []);
        assert_eq!(content_runs(512, &data), [(0, HOLE_BYTES - 512), (3 * HOLE_BYTES - 512, 3 * HOLE_BYTES)]);
        data[HOLE_BYTES] = 9;
        assert_eq!(content_runs(4096, &data), [(HOLE_BYTES, 2 * HOLE_BYTES)]);
    }

    #[test]
    fn a_file_has_its_name_only_when_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let target = Target::create(&path, 4096).unwrap();
        target.write(0, &[1; 4096]).unwrap();
        assert!(!path.exists());
        let id = target.id().unwrap();
        drop(target);
        assert!(Target::standing(&path, 8192).unwrap().is_none(), "another size");
        let target = Target::standing(&path, 4096).unwrap().unwrap();
        assert_eq!(target.id().unwrap(), id);
        target.finish().unwrap();
        assert!(Target::standing(&path, 4096).unwrap().is_none(), "an image is not gone on with");
        assert_eq!(std::fs::read(&path).unwrap(), [1; 4096], "what the first run wrote was kept");
        assert!(!partial_of(&path).exists());
    }

    #[test]
    fn content_is_overwritten_only_when_forced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        std::fs::write(&path, b"precious").unwrap();
        assert!(matches!(Target::check(&path, false), Err(TargetError::NotEmpty { .. })));
        Target::check(&path, true).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        Target::create(&path, 4096).unwrap().finish().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), [0; 4096]);
        assert!(matches!(Target::check(folder.path(), true), Err(TargetError::Kind { .. })));
    }

    #[test]
    fn an_empty_file_may_be_a_target() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        std::fs::write(&path, b"").unwrap();
        Target::check(&path, false).unwrap();
        Target::create(&path, 4096).unwrap().finish().unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 4096);
    }
}
