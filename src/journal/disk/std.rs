//! Plain calls: what replay, readers and the preparing thread always use, and the shard's thread where io_uring is
//! forbidden. Writes bypass the page cache where the file system allows it.

use std::fs;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::{AlignedBuf, Disk, DiskFile, File, Files, Listed};

/// Bytes per write while a segment is filled with zeroes.
const ZERO_BYTES: usize = 1 << 20;

/// Files of the operating system.
#[derive(Debug, Clone, Copy)]
pub struct StdFiles {
    /// Whether files are opened with O_DIRECT.
    pub direct: bool,
}

/// The shard's disk by plain calls.
#[derive(Debug, Clone, Copy)]
pub struct StdDisk {
    /// Whether files are opened with O_DIRECT.
    pub direct: bool,
}

/// An open file.
#[derive(Debug)]
pub struct StdFile(fs::File);

/// Options for reading and writing, with O_DIRECT if `direct`.
pub(super) fn options(direct: bool) -> fs::OpenOptions {
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true);
    if direct {
        options.custom_flags(libc::O_DIRECT);
    }
    options
}

/// Makes the names in `dir` durable.
///
/// # Errors
/// What the operating system answers.
pub(in crate::journal) fn sync_dir(dir: &Path) -> io::Result<()> {
    fs::File::open(dir)?.sync_all()
}

/// Makes the data of `file` durable by one call: the standard library's repeats one that a signal broke off, and no sync is repeated here.
pub(super) fn sync_once(file: &fs::File) -> io::Result<()> {
    Ok(rustix::fs::fdatasync(file)?)
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("."))
}

fn fill_with_zeroes(file: &fs::File, bytes: u64) -> io::Result<()> {
    let zeroes = AlignedBuf::zeroed(ZERO_BYTES);
    let mut offset = 0;
    while offset < bytes {
        let length = (bytes - offset).min(ZERO_BYTES as u64) as usize;
        file.write_all_at(&zeroes[..length], offset)?;
        offset += length as u64;
    }
    file.sync_all()
}

impl Files for StdFiles {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let missing: Vec<&Path> = dir.ancestors().take_while(|at| !at.as_os_str().is_empty() && !at.exists()).collect();
        fs::create_dir_all(dir)?;
        missing.iter().try_for_each(|made| sync_dir(&parent(made).canonicalize().unwrap_or_else(|_| ".".into())))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Listed>> {
        let entries = match fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut out = Vec::new();
        for entry in entries {
            let entry = entry?;
            let meta = entry.metadata()?;
            if let (true, Ok(name)) = (meta.is_file(), entry.file_name().into_string()) {
                out.push(Listed { name, bytes: meta.len() });
            }
        }
        out.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(out)
    }

    fn create_zeroed(&self, path: &Path, bytes: u64) -> io::Result<()> {
        let file = options(self.direct).create_new(true).open(path)?;
        let made = fill_with_zeroes(&file, bytes).and_then(|()| sync_dir(parent(path)));
        if made.is_err() {
            // What is half made would be taken for a segment, and its space is needed.
            let _ = fs::remove_file(path);
        }
        made
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        Ok(Box::new(StdFile(options(self.direct).open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)?;
        sync_dir(parent(to))?;
        if parent(from) == parent(to) { Ok(()) } else { sync_dir(parent(from)) }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }
}

impl File for StdFile {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buf: &mut AlignedBuf, range: Range<usize>, offset_bytes: u64) -> io::Result<usize> {
        self.0.read_at(&mut buf[range], offset_bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

impl Disk for StdDisk {
    type File = StdFile;

    fn open(&self, path: &Path) -> io::Result<StdFile> {
        Ok(StdFile(options(self.direct).open(path)?))
    }
}

impl DiskFile for StdFile {
    fn write_at(
        &self,
        buf: AlignedBuf,
        range: Range<usize>,
        offset_bytes: u64,
    ) -> impl Future<Output = (io::Result<usize>, AlignedBuf)> {
        let written = self.0.write_at(&buf[range], offset_bytes);
        std::future::ready((written, buf))
    }

    fn read_at(
        &self,
        mut buf: AlignedBuf,
        range: Range<usize>,
        offset_bytes: u64,
    ) -> impl Future<Output = (io::Result<usize>, AlignedBuf)> {
        let read = self.0.read_at(&mut buf[range], offset_bytes);
        std::future::ready((read, buf))
    }

    fn sync_data(&self) -> impl Future<Output = io::Result<()>> {
        std::future::ready(sync_once(&self.0))
    }
}

/// Runs `future` on this thread to its end.
///
/// # Errors
/// If the runtime cannot be made.
pub fn run<F: Future>(future: F) -> io::Result<F::Output> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(future))
}
