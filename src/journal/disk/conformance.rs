//! What every backend must do, run over all three.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::sim::SimDisk;
use super::std::{StdDisk, StdFiles};
use super::{AlignedBuf, Disk, DiskFile, Files, ring};
use crate::flow::{Clock, SystemClock};
use crate::limits::BLOCK_BYTES;

/// A write of which a ring is given something to do.
const LARGE_BYTES: usize = 256 << 10;

fn scratch() -> tempfile::TempDir {
    // Beside the sources: the system's temporary directory may be memory, which knows no O_DIRECT.
    tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("scratch directory")
}

async fn suite(disk: impl Disk, files: &dyn Files, dir: PathBuf) {
    files.create_dir(&dir.join("deep/er")).expect("directories");
    let path = dir.join("seg-1");
    assert!(disk.open(&path).is_err(), "an absent file is an error");
    files.create_zeroed(&path, 4 * LARGE_BYTES as u64).expect("a new file");
    writes_are_read_back(&disk, files, &path, LARGE_BYTES).await;
    files.remove(&path).expect("remove");
    files.create_zeroed(&path, 4 * BLOCK_BYTES as u64).expect("a new file");
    let again = files.create_zeroed(&path, BLOCK_BYTES as u64).expect_err("a taken name");
    assert_eq!(again.kind(), std::io::ErrorKind::AlreadyExists);
    writes_are_read_back(&disk, files, &path, BLOCK_BYTES).await;
    names_follow_renames(&disk, files, &dir, &path).await;
}

async fn writes_are_read_back(disk: &impl Disk, files: &dyn Files, path: &Path, unit_bytes: usize) {
    let file = disk.open(path).expect("open");
    let mut buf = AlignedBuf::zeroed(2 * unit_bytes);
    buf[..unit_bytes].fill(1);
    buf[unit_bytes..].fill(2);
    let (written, buf) = file.write_at(buf, 0..2 * unit_bytes, unit_bytes as u64).await;
    assert_eq!(written.expect("write"), 2 * unit_bytes);
    let (written, buf) = file.write_at(buf, unit_bytes..2 * unit_bytes, 0).await;
    assert_eq!(written.expect("write of a window"), unit_bytes);
    file.sync_data().await.expect("sync");
    assert_eq!(buf[0], 1, "the buffer comes back unchanged");

    let (read, buf) = file.read_at(AlignedBuf::zeroed(5 * unit_bytes), 0..5 * unit_bytes, 0).await;
    assert_eq!(read.expect("read"), 4 * unit_bytes, "short at the end of the file");
    let firsts: Vec<u8> = (0..4).map(|unit| buf[unit * unit_bytes]).collect();
    assert_eq!(firsts, [2, 1, 2, 0]);
    let (read, buf) = file.read_at(buf, unit_bytes..2 * unit_bytes, 2 * unit_bytes as u64).await;
    assert_eq!((read.expect("read into a window"), buf[unit_bytes]), (unit_bytes, 2));
    let (read, _) = file.read_at(buf, 0..unit_bytes, 4 * unit_bytes as u64).await;
    assert_eq!(read.expect("read at the end"), 0);

    let plain = files.open(path).expect("open plainly");
    assert_eq!(plain.bytes().expect("length"), 4 * unit_bytes as u64);
    let mut buf = AlignedBuf::zeroed(unit_bytes);
    assert_eq!(plain.read_at(&mut buf, 0..unit_bytes, 0).expect("plain read"), unit_bytes);
    assert_eq!(buf[0], 2);
    plain.sync_data().expect("plain sync");
}

async fn names_follow_renames(disk: &impl Disk, files: &dyn Files, dir: &Path, path: &Path) {
    let moved = dir.join("deep/seg-2");
    files.rename(path, &moved).expect("rename");
    assert!(disk.open(path).is_err());
    let listed = files.list(&dir.join("deep")).expect("list");
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].name.as_str(), listed[0].bytes), ("seg-2", 4 * BLOCK_BYTES as u64));
    let file = disk.open(&moved).expect("open under the new name");
    files.remove(&moved).expect("remove");
    files.remove(&moved).expect("remove what is gone");
    file.sync_data().await.expect("an open file outlives its name");
    assert!(files.list(&dir.join("absent")).expect("list of nothing").is_empty());
}

async fn dropped_write_still_lands(disk: impl Disk, files: &dyn Files, dir: PathBuf, bytes: usize) {
    let path = dir.join(format!("dropped-{bytes}"));
    files.create_zeroed(&path, bytes as u64).expect("a new file");
    let file = disk.open(&path).expect("open");
    let mut buf = AlignedBuf::zeroed(bytes);
    buf.fill(7);
    {
        let mut write = std::pin::pin!(file.write_at(buf, 0..bytes, 0));
        // One poll starts it; then it is dropped.
        std::future::poll_fn(|cx| {
            let _ = write.as_mut().poll(cx);
            std::task::Poll::Ready(())
        })
        .await;
    }
    // Whatever is submitted after it lets the thread park, so both reach the kernel; which is done first is open.
    let clock = SystemClock::new();
    while clock.monotonic() < Duration::from_secs(30) {
        let (read, buf) = file.read_at(AlignedBuf::zeroed(bytes), 0..bytes, 0).await;
        assert_eq!(read.expect("read"), bytes);
        if buf[0] == 7 {
            return;
        }
    }
    panic!("the dropped write never landed");
}

#[test]
fn the_plain_backend_conforms() {
    let dir = scratch();
    for direct in [false, true] {
        let dir = dir.path().join(format!("direct-{direct}"));
        let files = StdFiles { direct };
        files.create_dir(&dir).expect("directory");
        super::std::run(suite(StdDisk { direct }, &files, dir.clone())).expect("a runtime");
        for bytes in [BLOCK_BYTES, LARGE_BYTES] {
            let dropped = dropped_write_still_lands(StdDisk { direct }, &files, dir.clone(), bytes);
            super::std::run(dropped).expect("a runtime");
        }
    }
}

#[test]
fn the_ring_backend_conforms_and_a_dropped_write_still_lands() {
    let dir = scratch();
    for direct in [false, true] {
        let dir = dir.path().join(format!("direct-{direct}"));
        let files = StdFiles { direct };
        files.create_dir(&dir).expect("directory");
        match ring::run(suite(ring::RingDisk { direct }, &files, dir.clone())) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                eprintln!("skipped: io_uring is forbidden here: {error}");
                return;
            }
            ran => ran.expect("a ring"),
        }
        for bytes in [BLOCK_BYTES, LARGE_BYTES] {
            let dropped = dropped_write_still_lands(ring::RingDisk { direct }, &files, dir.clone(), bytes);
            ring::run(dropped).expect("a ring");
        }
    }
}

#[test]
fn the_simulated_backend_conforms() {
    let disk = SimDisk::new(1);
    super::std::run(suite(disk.clone(), &disk, "/sim".into())).expect("a runtime");
    for bytes in [BLOCK_BYTES, LARGE_BYTES] {
        let dropped = dropped_write_still_lands(disk.clone(), &disk, "/sim".into(), bytes);
        super::std::run(dropped).expect("a runtime");
    }
}
