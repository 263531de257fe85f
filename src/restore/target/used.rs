//! Whether somebody else uses what is about to be overwritten, and how a device is told from others.
//!
//! QEMU, its tools and libvirt lock single bytes of every image that they open (from 100 and from 200 on), whether to read or to
//! write. A lock of the whole file meets any of them, and as long as it is held none of them opens the image. It belongs to this
//! process, and goes when any of its descriptors of the file is closed: so a target is opened once and kept.
//! Whoever locks nothing is not seen; of a device the kernel knows whether it is mounted or part of another one.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::TargetError;

/// Takes what nobody else may have open, for as long as the file is open.
pub(super) fn lock(file: &File, path: &Path) -> Result<(), TargetError> {
    match rustix::fs::fcntl_lock(file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::AGAIN | Errno::ACCESS) => Err(TargetError::InUse { path: path.to_owned() }),
        // The file system has no locks: then nobody else has one either.
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Refuses an image that somebody uses. Before the target is opened: the lock goes with the descriptor here.
pub(super) fn refuse_used(path: &Path) -> Result<(), TargetError> {
    // What cannot be opened for writing is not written either, and opening it says why.
    let Ok(file) = File::options().read(true).write(true).open(path) else { return Ok(()) };
    lock(&file, path)
}

/// What the system said to opening a device: that it is busy is a matter of its own.
pub(super) fn not_opened(path: &Path, source: io::Error) -> TargetError {
    match source.kind() {
        io::ErrorKind::ResourceBusy => TargetError::InUse { path: path.to_owned() },
        _ => TargetError::Io { operation: "opening", path: path.to_owned(), source },
    }
}

/// Where the system says what a device is, by its number.
const DEVICES: &str = "/sys/dev/block";
/// Tells one run of the system from the next.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// What a device has for good, in the order in which it is looked for: a volume's, an array's, a disk's id.
const LASTING: [&str; 6] = ["dm/uuid", "md/uuid", "wwid", "device/wwid", "serial", "device/serial"];

/// Tells a device from others, also after the system was started anew and numbers have changed. One that has no id of its own, such
/// as a loop device or one of memory, is another one after each start: what it held then may be gone.
pub(super) fn device_id(number: u64) -> String {
    let folder = Path::new(DEVICES).join(format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number)));
    let lasting = lasting(&folder).unwrap_or_else(|| {
        let boot = std::fs::read_to_string(BOOT_ID).unwrap_or_default();
        format!("number {number} of boot {}", boot.trim())
    });
    let digest = blake3::hash(lasting.as_bytes()).to_hex();
    format!("device-{}", &digest[..32])
}

fn lasting(folder: &Path) -> Option<String> {
    let read = |folder: &Path, name: &str| {
        let text = std::fs::read_to_string(folder.join(name)).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    let of = |folder: &Path| LASTING.iter().find_map(|name| Some(format!("{name} {}", read(folder, name)?)));
    match read(folder, "partition") {
        // A partition has the id of its disk, and its place there.
        Some(partition) => {
            let start = read(folder, "start")?;
            Some(format!("{} partition {partition} at {start}", of(folder.canonicalize().ok()?.parent()?)?))
        }
        None => of(folder),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, format!("{text}\n")).unwrap();
        }
        folder
    }

    #[test]
    fn a_device_is_known_by_what_it_keeps() {
        let volume = device(&[("dm/uuid", "LVM-x1"), ("serial", "")]);
        assert_eq!(lasting(volume.path()).unwrap(), "dm/uuid LVM-x1");
        let disk = device(&[("device/wwid", "naa.5"), ("sda1/partition", "1"), ("sda1/start", "2048"), ("size", "9")]);
        assert_eq!(lasting(disk.path()).unwrap(), "device/wwid naa.5");
        let partition = lasting(&disk.path().join("sda1")).unwrap();
        assert_eq!(partition, "device/wwid naa.5 partition 1 at 2048");
        assert_eq!(lasting(device(&[("size", "9")]).path()), None, "a loop device");
        assert_eq!(device_id(7 << 8), device_id(7 << 8));
        assert_ne!(device_id(7 << 8), device_id(7 << 8 | 1));
    }
}
