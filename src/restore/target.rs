//! Where the image goes: a new file in some form, a block device, or an image that is there and mostly right.
//!
//! A file is written under `<target>.partial` and gets its name only when it is whole and durable, so nobody ever finds
//! a wrong image under the right name; one that is brought to another point loses its name for as long as it is neither. A
//! device has no such refuge: until the restore is done, its resume file says that it is not an image. What a guest uses is
//! refused, and no guest gets it meanwhile.

mod compare;
mod used;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use parking_lot::Mutex;

pub use self::compare::Expected;
use super::format::{Format, Layout};
use crate::fault::{Classify, Fault};
use crate::keys;

/// Zero blocks of at least this size inside data are left as holes of a new file.
const HOLE_BYTES: usize = 4096;
/// Zeroes written, or looked for, at once.
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
    /// A form of file for what is no file.
    #[error("{} is a block device, which takes the disk as it is: leave out --format {format}", path.display())]
    FormatOnDevice {
        /// The target.
        path: PathBuf,
        /// The form.
        format: Format,
    },
    /// Somebody uses it.
    #[error(
        "{} is in use: it is mounted, or a program has locked it, as QEMU does for a running guest. Stop the guest, or detach \
         the disk, and run the same command again; or restore to another place with --to",
        path.display()
    )]
    InUse {
        /// The target.
        path: PathBuf,
    },
    /// Nothing to compare with.
    #[error("there is no {} whose blocks could be compared: write a new image with --to", path.display())]
    Missing {
        /// The target.
        path: PathBuf,
    },
    /// The image that is to be brought to another point is another disk's, by its size.
    #[error(
        "{} has {have_bytes} bytes, the disk has {need_bytes}: is it this disk's image? --force makes it one",
        path.display()
    )]
    OtherSize {
        /// The target.
        path: PathBuf,
        /// Its size.
        have_bytes: u64,
        /// The disk's size.
        need_bytes: u64,
    },
    /// What an earlier restore left stands where the image would be while it is changed.
    #[error("{} is left over from another restore: remove it, or overwrite it with --force", path.display())]
    InTheWay {
        /// The file.
        path: PathBuf,
    },
    /// The target does not keep what it is given.
    #[error(
        "{} gave back other bytes than were written at {offset_bytes}: do not trust it, look into the kernel's log, and \
         restore to another one",
        path.display()
    )]
    Differs {
        /// The target.
        path: PathBuf,
        /// First byte of the range of the disk.
        offset_bytes: u64,
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
    /// No chance for an id that some forms have.
    #[error(transparent)]
    Random(#[from] keys::RandomError),
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
    layout: Layout,
    /// Whether what stands there is compared, and stays where it is right.
    onto: bool,
    /// Bytes that were found right.
    same_bytes: AtomicU64,
    /// File systems let one writer at a time into a file, and those that wait for it spin meanwhile. Here they sleep.
    turn: Mutex<()>,
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

fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

impl Target {
    /// Refuses a file that has content and that may not be overwritten, or that somebody uses.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn check(path: &Path, force: bool) -> Result<(), TargetError> {
        match look(path)? {
            Found::File { bytes } if bytes > 0 && !force => Err(TargetError::NotEmpty { path: path.to_owned() }),
            Found::File { .. } => used::refuse_used(path),
            Found::Nothing | Found::Device => Ok(()),
        }
    }

    /// Refuses what cannot be brought to another point because it is not there, neither whole nor half-done, or because somebody
    /// uses it.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn check_onto(path: &Path) -> Result<(), TargetError> {
        match look(path)? {
            Found::Nothing if look(&partial_of(path))? == Found::Nothing => {
                Err(TargetError::Missing { path: path.to_owned() })
            }
            Found::File { .. } => used::refuse_used(path),
            Found::Nothing | Found::Device => Ok(()),
        }
    }

    /// Opens what stands there without a change to it: a device, or the file of an earlier run that had this layout.
    ///
    /// # Errors
    /// [`TargetError`] if it is too small or not usable.
    pub fn standing(path: &Path, layout: &Layout) -> Result<Option<Self>, TargetError> {
        if look(path)? == Found::Device {
            return Self::open_device(path, layout, false).map(Some);
        }
        let Some(found) = Self::open_partial(path, layout, false)? else { return Ok(None) };
        let bytes = found.file.metadata().map_err(|source| found.failed("looking at", source))?.len();
        Ok((bytes == layout.file_bytes()).then_some(found))
    }

    /// Opens the image of an earlier point, or what an interrupted run made of it, without a change to it. Beside it, whether a run
    /// may have begun to change it: a file that has its name was not, or somebody took it for an image since.
    ///
    /// # Errors
    /// [`TargetError`] if there is none, or it is not usable.
    pub fn standing_onto(path: &Path, disk_bytes: u64, force: bool) -> Result<(Self, bool), TargetError> {
        let layout = Layout::raw(disk_bytes);
        let (found, begun) = match look(path)? {
            Found::Device => return Self::open_device(path, &layout, true).map(|device| (device, true)),
            Found::File { .. } => {
                let partial = partial_of(path);
                if !force && look(&partial)? != Found::Nothing {
                    return Err(TargetError::InTheWay { path: partial });
                }
                let wrap = |source| TargetError::Io { operation: "opening", path: path.to_owned(), source };
                let file = OpenOptions::new().read(true).write(true).open(path).map_err(wrap)?;
                used::lock(&file, path)?;
                (Self::of(file, path, Some(partial), &layout, true), false)
            }
            Found::Nothing => {
                let found = Self::open_partial(path, &layout, true)?;
                (found.ok_or_else(|| TargetError::Missing { path: path.to_owned() })?, true)
            }
        };
        let have_bytes = found.file.metadata().map_err(|source| found.failed("looking at", source))?.len();
        if have_bytes != disk_bytes && !force {
            return Err(TargetError::OtherSize { path: path.to_owned(), have_bytes, need_bytes: disk_bytes });
        }
        Ok((found, begun))
    }

    /// Takes its name from an image that is about to be changed, durably, and gives it the disk's size.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn begin_onto(&self) -> Result<(), TargetError> {
        let Some(partial) = &self.partial else { return Ok(()) };
        match std::fs::rename(&self.path, partial) {
            Ok(()) => sync_folder_of(partial).map_err(|source| self.failed("syncing the folder of", source))?,
            // An interrupted run did.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(self.failed("renaming to", source)),
        }
        self.file.set_len(self.layout.file_bytes()).map_err(|source| self.failed("sizing", source))
    }

    /// A new file of this layout; an old image, and what an earlier run wrote, are gone.
    ///
    /// # Errors
    /// [`TargetError`] if it is not usable.
    pub fn create(path: &Path, layout: &Layout) -> Result<Self, TargetError> {
        let partial = partial_of(path);
        let wrap = |operation| move |source| TargetError::Io { operation, path: path.to_owned(), source };
        // What is overwritten goes first, or both images would have to fit.
        if matches!(look(path)?, Found::File { .. }) {
            std::fs::remove_file(path).map_err(wrap("removing the old"))?;
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&partial).map_err(wrap("creating"))?;
        // Somebody may look into an unfinished image: not even that is emptied under them.
        used::lock(&file, &partial)?;
        file.set_len(0).map_err(wrap("emptying"))?;
        file.set_len(layout.file_bytes()).map_err(wrap("sizing"))?;
        Ok(Self::of(file, path, Some(partial), layout, false))
    }

    fn of(file: File, path: &Path, partial: Option<PathBuf>, layout: &Layout, onto: bool) -> Self {
        let (path, layout) = (path.to_owned(), layout.clone());
        Self { file, path, partial, layout, onto, same_bytes: AtomicU64::new(0), turn: Mutex::new(()) }
    }

    fn open_partial(path: &Path, layout: &Layout, onto: bool) -> Result<Option<Self>, TargetError> {
        let wrap = |source| TargetError::Io { operation: "opening the unfinished", path: path.to_owned(), source };
        let partial = partial_of(path);
        let file = match OpenOptions::new().read(true).write(true).open(&partial) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(wrap(error)),
        };
        let usable = file.metadata().map_err(wrap)?.is_file();
        used::lock(&file, &partial)?;
        Ok(usable.then(|| Self::of(file, path, Some(partial), layout, onto)))
    }

    fn open_device(path: &Path, layout: &Layout, onto: bool) -> Result<Self, TargetError> {
        let wrap = |operation| move |source| TargetError::Io { operation, path: path.to_owned(), source };
        if layout.format() != Format::Raw {
            return Err(TargetError::FormatOnDevice { path: path.to_owned(), format: layout.format() });
        }
        let mut options = OpenOptions::new();
        // Exclusive on a block device means: not while it is mounted.
        options.read(true).write(true).custom_flags(libc::O_EXCL);
        let mut file = options.open(path).map_err(|source| used::not_opened(path, source))?;
        used::lock(&file, path)?;
        let have_bytes = file.seek(SeekFrom::End(0)).map_err(wrap("sizing"))?;
        let need_bytes = layout.disk_bytes();
        if have_bytes < need_bytes {
            return Err(TargetError::TooSmall { path: path.to_owned(), have_bytes, need_bytes });
        }
        Ok(Self::of(file, path, None, layout, onto))
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

    /// Tells this target from another one of the same name, and from the same one written otherwise: by what the device has for
    /// good, or by the file's number with its birth, because a file that is made anew often gets the number of one just removed.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn id(&self) -> Result<String, TargetError> {
        let meta = self.file.metadata().map_err(|source| self.failed("looking at", source))?;
        let manner = match self.layout.format() {
            Format::Raw if self.onto => "onto-".to_owned(),
            Format::Raw => String::new(),
            format => format!("{format}-"),
        };
        if self.partial.is_none() {
            return Ok(format!("{manner}{}", used::device_id(meta.rdev())));
        }
        let born = meta.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok());
        Ok(format!("{manner}file-{}-{}-{}", meta.dev(), meta.ino(), born.unwrap_or_default().as_nanos()))
    }

    /// Whether earlier content may show where nothing is written.
    #[must_use]
    pub fn reused(&self) -> bool {
        self.partial.is_none() || self.onto
    }

    /// Bytes of the disk that were found right and left alone.
    #[must_use]
    pub fn same_bytes(&self) -> u64 {
        self.same_bytes.load(Ordering::Relaxed)
    }

    /// Writes `data` at `offset_bytes` of the disk. In a new file, blocks of zeroes stay holes.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn write(&self, offset_bytes: u64, data: &[u8]) -> Result<(), TargetError> {
        if self.onto {
            return self.write_differences(offset_bytes, data);
        }
        if self.reused() {
            return self.write_all(offset_bytes, data);
        }
        for (start, end) in content_runs(offset_bytes, data) {
            self.write_all(offset_bytes + start as u64, &data[start..end])?;
        }
        Ok(())
    }

    fn write_all(&self, offset_bytes: u64, data: &[u8]) -> Result<(), TargetError> {
        let _turn = self.partial.is_some().then(|| self.turn.lock());
        self.pieces(offset_bytes, data.len(), |at, range| self.file.write_all_at(&data[range], at))
            .map_err(|source| self.failed("writing", source))
    }

    fn read_exact(&self, offset_bytes: u64, data: &mut [u8]) -> Result<(), TargetError> {
        self.pieces(offset_bytes, data.len(), |at, range| self.file.read_exact_at(&mut data[range], at))
            .map_err(|source| self.failed("reading", source))
    }

    /// Calls `each` with the places in the file of a range of the disk, and with the part of the range.
    fn pieces(
        &self,
        offset_bytes: u64,
        length_bytes: usize,
        mut each: impl FnMut(u64, Range<usize>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < length_bytes {
            let Some((at, together)) = self.layout.place(offset_bytes + done as u64) else {
                unreachable!("the plan says of nothing that it is zero and writes it all the same")
            };
            let end = done + together.min((length_bytes - done) as u64) as usize;
            assert!(end > done, "a write leaves the disk");
            each(at, done..end)?;
            done = end;
        }
        Ok(())
    }

    /// Makes a range of a reused target zero, by a hole where the device can.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn zero(&self, offset_bytes: u64, length_bytes: u64) -> Result<(), TargetError> {
        match (self.reused(), self.onto) {
            (false, _) => Ok(()),
            (true, false) => self.clear(offset_bytes, length_bytes),
            (true, true) => self.clear_differences(offset_bytes, length_bytes),
        }
    }

    fn clear(&self, offset_bytes: u64, length_bytes: u64) -> Result<(), TargetError> {
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

    /// Makes an image of its form of it, makes it durable and gives it its name.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn finish(self) -> Result<(), TargetError> {
        if self.layout.format() != Format::Raw {
            // The first bytes come last: with them the file is taken for whole.
            self.file.sync_data().map_err(|source| self.failed("syncing", source))?;
            let put = |at, bytes: &[u8]| self.file.write_all_at(bytes, at);
            self.layout.frame(keys::random()?, put).map_err(|source| self.failed("writing", source))?;
        }
        self.file.sync_all().map_err(|source| self.failed("syncing", source))?;
        let Some(partial) = &self.partial else { return Ok(()) };
        std::fs::rename(partial, &self.path).map_err(|source| self.failed("renaming to", source))?;
        sync_folder_of(&self.path).map_err(|source| self.failed("syncing the folder of", source))
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
    block_runs(offset_bytes, data.len(), |range| range.len() < HOLE_BYTES || !is_zero(&data[range]))
}

/// Stretches of blocks of the image that are `wanted`, as start and end within a range that begins at `offset_bytes` and need
/// not begin and end with a block.
fn block_runs(offset_bytes: u64, length: usize, wanted: impl Fn(Range<usize>) -> bool) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    let mut at = 0;
    while at < length {
        let to_border = HOLE_BYTES - (offset_bytes + at as u64) as usize % HOLE_BYTES;
        let end = length.min(at + to_border);
        if wanted(at..end) {
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
    let (words, rest) = block.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests;
