//! What this machine allows the journal to do, found out at boot by doing it: a probe file is written and synced in
//! the journal's own directory, by each way in turn, best first: once with as many bytes as a ring is given, then small ones,
//! which are timed.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::{AlignedBuf, BackendChoice, Disk, DiskFile, Files, ring, std as plain};
use crate::flow::{Clock, SystemClock};
use crate::limits::BLOCK_BYTES;

/// The backend that drives a journal's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// io_uring.
    Ring,
    /// Plain calls on the shard's thread.
    Std,
}

impl Backend {
    /// Its word in logs and labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::Std => "std",
        }
    }
}

/// The graded answer of the preflight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preflight {
    /// What the journal uses.
    pub backend: Backend,
    /// Whether writes bypass the page cache (O_DIRECT).
    pub direct: bool,
    /// Release of the running kernel.
    pub kernel: String,
    /// Median time of one 4 KiB write with its sync, microseconds.
    pub sync_micros: u64,
    /// Why this backend and not a better one; empty if there is none better.
    pub remarks: Vec<String>,
}

impl fmt::Display for Preflight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direct = if self.direct { "O_DIRECT" } else { "page cache" };
        let (backend, micros) = (self.backend.as_str(), self.sync_micros);
        write!(f, "{backend}, {direct}, kernel {}, sync {micros} us", self.kernel)?;
        self.remarks.iter().try_for_each(|remark| write!(f, "; {remark}"))
    }
}

/// Why no backend serves.
#[derive(Debug)]
pub enum PreflightError {
    /// io_uring is demanded but not to be had.
    NoRing(String),
    /// The directory cannot be written at all.
    Io(io::Error),
}

const PROBE_NAME: &str = "preflight.tmp";
const PROBE_ROUNDS: usize = 9;
/// Of the probe file.
const PROBE_BYTES: usize = ring::WRITE_BYTES_MIN;
/// Writes that are timed at most: enough for a 99th percentile.
pub const TIMED_WRITES_MAX: usize = 100;
/// On a slow disk fewer are, so that a look at a host stays short.
pub const TIMED_WRITES_FOR: Duration = Duration::from_secs(5);
/// Places in the probe file that are written in turn.
const TIMED_PLACES: usize = 16;

/// Tries the backends on `dir`.
///
/// # Errors
/// [`PreflightError`] if the demanded backend fails, or plain writes do.
pub fn preflight(dir: &Path, choice: BackendChoice) -> Result<Preflight, PreflightError> {
    let path = dir.join(PROBE_NAME);
    let answer = probe(&path, choice);
    // Left behind it would only be removed by the next start.
    let _ = fs::remove_file(&path);
    answer
}

fn probe(path: &Path, choice: BackendChoice) -> Result<Preflight, PreflightError> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_else(|_| "unknown".into());
    let mut remarks = Vec::new();
    let direct = match make_probe(path, true) {
        Ok(()) => true,
        Err(error) => {
            remarks.push(format!("O_DIRECT is not possible here ({error}): writes go through the page cache"));
            make_probe(path, false).map_err(PreflightError::Io)?;
            false
        }
    };
    let mut answer =
        Preflight { backend: Backend::Ring, direct, kernel: kernel.trim().into(), sync_micros: 0, remarks };
    if choice != BackendChoice::Std {
        match try_ring(path, direct) {
            Ok(sync_micros) => return Ok(Preflight { sync_micros, ..answer }),
            Err(error) if choice == BackendChoice::Ring => return Err(PreflightError::NoRing(explain(&error))),
            Err(error) => answer.remarks.push(explain(&error)),
        }
    } else {
        answer.remarks.push("backend = \"std\" is configured".into());
    }
    let measured = plain::run(measure(plain::StdDisk { direct }, path)).and_then(|micros| micros);
    Ok(Preflight { backend: Backend::Std, sync_micros: measured.map_err(PreflightError::Io)?, ..answer })
}

fn make_probe(path: &Path, direct: bool) -> io::Result<()> {
    let files = plain::StdFiles { direct };
    files.remove(path)?;
    files.create_zeroed(path, PROBE_BYTES as u64)
}

/// On a thread of its own: the ring must not outlive the probe, and its library keeps state per thread.
fn try_ring(path: &Path, direct: bool) -> io::Result<u64> {
    std::thread::scope(|scope| {
        let probe = || ring::run(measure(ring::RingDisk { direct }, path))?;
        let thread = std::thread::Builder::new().name("tg-preflight".into()).spawn_scoped(scope, probe)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the probe of io_uring panicked")))
    })
}

/// Median time of a small write with its sync, in microseconds; what is written is read back and compared.
async fn measure<D: Disk>(disk: D, path: &Path) -> io::Result<u64> {
    let clock = SystemClock::new();
    let file = disk.open(path)?;
    let mut buf = AlignedBuf::zeroed(PROBE_BYTES);
    buf.fill(PROBE_ROUNDS as u8 + 1);
    buf = write_synced(&file, buf, PROBE_BYTES, 0).await?;
    buf = read_probe(&file, buf, PROBE_BYTES, PROBE_ROUNDS as u8 + 1).await?;
    let mut times = Vec::new();
    for round in 0..PROBE_ROUNDS {
        buf[..BLOCK_BYTES].fill(round as u8 + 1);
        let start = clock.monotonic();
        buf = write_synced(&file, buf, BLOCK_BYTES, 0).await?;
        times.push((clock.monotonic() - start).as_micros() as u64);
    }
    read_probe(&file, buf, BLOCK_BYTES, PROBE_ROUNDS as u8).await?;
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

/// Writes the first `bytes` of `buf` at `offset_bytes` and syncs: what a commit does.
async fn write_synced<F: DiskFile>(
    file: &F,
    buf: AlignedBuf,
    bytes: usize,
    offset_bytes: u64,
) -> io::Result<AlignedBuf> {
    let (written, buf) = file.write_at(buf, 0..bytes, offset_bytes).await;
    if written? != bytes {
        return Err(io::Error::from(io::ErrorKind::WriteZero));
    }
    file.sync_data().await?;
    Ok(buf)
}

async fn read_probe<F: DiskFile>(file: &F, mut buf: AlignedBuf, bytes: usize, fill: u8) -> io::Result<AlignedBuf> {
    buf.fill(0);
    let (read, buf) = file.read_at(buf, 0..bytes, 0).await;
    if read? != bytes || buf[..bytes].iter().any(|&byte| byte != fill) {
        return Err(io::Error::other("the probe did not read back what it wrote"));
    }
    Ok(buf)
}

/// Times of writes of `bytes` with their sync in `dir`, in microseconds, the shortest first: by the backend that `found` names.
/// Ends after [`TIMED_WRITES_MAX`] or [`TIMED_WRITES_FOR`], whichever is first.
///
/// # Errors
/// What the operating system answers.
pub fn commit_times(dir: &Path, found: &Preflight, bytes: usize) -> io::Result<Vec<u64>> {
    let path = dir.join(PROBE_NAME);
    let files = plain::StdFiles { direct: found.direct };
    files.remove(&path)?;
    files.create_zeroed(&path, (bytes * TIMED_PLACES) as u64)?;
    let direct = found.direct;
    let on_thread = || match found.backend {
        Backend::Ring => ring::run(timed(ring::RingDisk { direct }, &path, bytes))?,
        Backend::Std => plain::run(timed(plain::StdDisk { direct }, &path, bytes))?,
    };
    let times = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("tg-preflight".into()).spawn_scoped(scope, on_thread)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the timing of writes panicked")))
    });
    files.remove(&path)?;
    times
}

async fn timed<D: Disk>(disk: D, path: &Path, bytes: usize) -> io::Result<Vec<u64>> {
    let clock = SystemClock::new();
    let file = disk.open(path)?;
    let (mut times, begun) = (Vec::new(), clock.monotonic());
    let mut buf = AlignedBuf::zeroed(bytes);
    while times.len() < TIMED_WRITES_MAX && clock.monotonic() - begun < TIMED_WRITES_FOR {
        buf.fill(times.len() as u8 + 1);
        let start = clock.monotonic();
        let at = (times.len() % TIMED_PLACES * bytes) as u64;
        buf = write_synced(&file, buf, bytes, at).await?;
        times.push((clock.monotonic() - start).as_micros() as u64);
    }
    times.sort_unstable();
    Ok(times)
}

fn explain(error: &io::Error) -> String {
    let why = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "forbidden by a seccomp profile or kernel.io_uring_disabled",
        Some(libc::ENOSYS) => "not in this kernel",
        Some(libc::ENOMEM) => "locked memory is limited: raise RLIMIT_MEMLOCK",
        _ => "the probe failed",
    };
    format!("io_uring is not possible: {why} ({error})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preflight_reports_ring_on_this_machine() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("scratch directory");
        let answer = preflight(dir.path(), BackendChoice::Auto).expect("some backend");
        assert!(!dir.path().join(PROBE_NAME).exists(), "the probe is removed");
        if answer.backend == Backend::Std
            && answer.remarks.iter().any(|r| r.contains("forbidden") || r.contains("not in this kernel"))
        {
            eprintln!("skipped: {answer}");
            return;
        }
        assert_eq!(answer.backend, Backend::Ring, "{answer}");
        assert!(answer.direct, "{answer}");
        assert!(answer.sync_micros > 0 && answer.remarks.is_empty(), "{answer}");
    }

    #[test]
    fn a_configured_backend_is_obeyed_and_said() {
        let dir = tempfile::tempdir().expect("scratch directory");
        let answer = preflight(dir.path(), BackendChoice::Std).expect("plain writes");
        assert_eq!(answer.backend, Backend::Std);
        assert!(answer.to_string().contains("is configured"), "{answer}");
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_an_error_not_a_panic() {
        let missing = Path::new("/nonexistent/journal");
        assert!(matches!(preflight(missing, BackendChoice::Auto), Err(PreflightError::Io(_))));
    }
}
