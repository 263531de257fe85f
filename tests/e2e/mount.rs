//! A small ext4 file system of its own on a loop device, which fills up and fails like a real one.
//!
//! Mounting needs root, or sudo without a password. Where neither is there the tests that need it fail and say so, unless
//! `TIDEGATE_TEST_NO_ROOT` is set: then they say that they were skipped.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::succeed;

/// Whether file systems may be mounted here.
pub fn possible() -> bool {
    let root = rustix::process::geteuid().is_root();
    let sudo = || Command::new("sudo").args(["-n", "true"]).output().is_ok_and(|output| output.status.success());
    if root || sudo() {
        return true;
    }
    assert!(
        std::env::var_os("TIDEGATE_TEST_NO_ROOT").is_some(),
        "this test mounts a loop device: run it as root, allow sudo without a password, or set TIDEGATE_TEST_NO_ROOT=1 to skip it"
    );
    println!("SKIPPED: neither root nor sudo, so nothing can be mounted");
    false
}

fn as_root(program: &str, arguments: &[&str]) {
    if rustix::process::geteuid().is_root() {
        succeed(program, arguments);
    } else {
        succeed("sudo", &[&["-n", program], arguments].concat());
    }
}

/// A mounted file system. Unmounted when dropped.
pub struct Mount {
    image: PathBuf,
    at: PathBuf,
    mounted: bool,
}

impl Mount {
    /// Makes a file system of this size in a file beside `at`, and mounts it there.
    pub fn new(at: &Path, bytes: u64) -> Self {
        let image = at.with_extension("fs");
        std::fs::File::create(&image).unwrap().set_len(bytes).unwrap();
        // No reserve for root: full is full.
        succeed("mkfs.ext4", &["-q", "-m", "0", image.to_str().unwrap()]);
        let mut mount = Self { image, at: at.to_owned(), mounted: false };
        mount.mount();
        let user = format!("{}:{}", rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        as_root("chown", &[&user, at.to_str().unwrap()]);
        mount
    }

    pub fn mount(&mut self) {
        as_root("mount", &["-o", "loop", self.image.to_str().unwrap(), self.at.to_str().unwrap()]);
        self.mounted = true;
    }

    pub fn unmount(&mut self) {
        if std::mem::take(&mut self.mounted) {
            as_root("umount", &[self.at.to_str().unwrap()]);
        }
    }

    /// What the kernel does when it meets damage: from now on nothing more is written, also not to open files.
    pub fn abort(&self) {
        as_root("mount", &["-o", "remount,abort", self.at.to_str().unwrap()]);
    }

    /// Repairs the unmounted file system.
    pub fn repair(&self) {
        let check = crate::common::output("e2fsck", &["-fy", self.image.to_str().unwrap()]);
        assert!(check.status.code().is_some_and(|code| code < 4), "{check:?}");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if std::mem::take(&mut self.mounted) {
            let at = self.at.display().to_string();
            // A daemon that is still there holds it only until it is killed; lazily is soon enough.
            let lazily = ["-n", "umount", "-l", &at];
            let root = rustix::process::geteuid().is_root();
            let _ = if root {
                Command::new("umount").args(["-l", &at]).status()
            } else {
                Command::new("sudo").args(lazily).status()
            };
        }
    }
}
