//! Files made durable, in one place: a simulation, which works on real files, then knows what a power cut leaves of them.

use std::fs::File;
use std::io;
use std::path::Path;

/// Makes content and length of `file`, which is at `path`, durable.
///
/// # Errors
/// What the system said; then nothing may be believed about any write since the last success.
pub fn sync_data(file: &File, path: &Path) -> io::Result<()> {
    file.sync_data()?;
    noted(path, false)
}

/// Makes everything of `file`, which is at `path`, durable, but for its name.
///
/// # Errors
/// As [`sync_data`].
pub fn sync_all(file: &File, path: &Path) -> io::Result<()> {
    file.sync_all()?;
    noted(path, false)
}

/// Makes the names in `folder` durable.
///
/// # Errors
/// As [`sync_data`].
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()?;
    noted(folder, true)
}

fn noted(_path: &Path, _folder: bool) -> io::Result<()> {
    #[cfg(any(test, feature = "sim"))]
    return sim::noted(_path, _folder);
    #[cfg(not(any(test, feature = "sim")))]
    Ok(())
}

/// What a power cut leaves.
#[cfg(any(test, feature = "sim"))]
pub mod sim {
    use std::cell::RefCell;
    use std::collections::{BTreeMap, BTreeSet};
    use std::io;
    use std::os::unix::fs::MetadataExt;
    use std::path::{Path, PathBuf};

    use crate::flow::sim::active;

    /// What a disk writes whole.
    const BLOCK_BYTES: usize = 512;

    #[derive(Default)]
    struct Platter {
        /// What is durable of a file, by its number.
        contents: BTreeMap<u64, Vec<u8>>,
        /// Which file a name leads to.
        names: BTreeMap<PathBuf, u64>,
    }

    thread_local! {
        static PLATTER: RefCell<Platter> = RefCell::default();
    }

    pub(super) fn noted(path: &Path, folder: bool) -> io::Result<()> {
        if !active() {
            return Ok(());
        }
        PLATTER.with_borrow_mut(|platter| {
            if folder {
                platter.names.retain(|name, _| name.parent() != Some(path));
                platter.names.extend(files(path)?);
            } else {
                platter.contents.insert(std::fs::metadata(path)?.ino(), std::fs::read(path)?);
            }
            Ok(())
        })
    }

    fn files(folder: &Path) -> io::Result<BTreeMap<PathBuf, u64>> {
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_file() {
                files.insert(entry.path(), metadata.ino());
            }
        }
        Ok(files)
    }

    /// Whatever stands in `folder` now is durable, as after a restore from a backup.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn all_durable(folder: &Path) -> io::Result<()> {
        files(folder)?.keys().try_for_each(|path| noted(path, false))?;
        noted(folder, true)
    }

    /// Cuts the power: of what was not synced in `folder`, `survives` says each time whether it is there. Nobody may have
    /// a file of it open.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub fn power_cut(folder: &Path, mut survives: impl FnMut() -> bool) -> io::Result<()> {
        let seen = files(folder)?;
        let Platter { contents, names } = PLATTER.take();
        let durable = names.iter().filter(|(name, _)| name.parent() == Some(folder));
        let all: BTreeSet<PathBuf> = durable.map(|(name, _)| name.clone()).chain(seen.keys().cloned()).collect();
        for path in all {
            let (before, now) = (names.get(&path), seen.get(&path));
            let left = if before == now || survives() { now } else { before };
            let Some(number) = left else {
                if now.is_some() {
                    std::fs::remove_file(&path)?;
                }
                continue;
            };
            // Never synced: a file of no bytes.
            let kept = contents.get(number).map_or(&[][..], Vec::as_slice);
            let written = if now == left { std::fs::read(&path)? } else { kept.to_vec() };
            std::fs::write(&path, mixture(kept, written, &mut survives))?;
        }
        PLATTER.set(Platter { contents, names });
        all_durable(folder)
    }

    /// Any blocks of what was `written` over what was `kept`.
    fn mixture(kept: &[u8], written: Vec<u8>, survives: &mut impl FnMut() -> bool) -> Vec<u8> {
        if kept == written {
            return written;
        }
        if kept.len() != written.len() {
            return if survives() { written } else { kept.to_vec() };
        }
        let blocks = kept.chunks(BLOCK_BYTES).zip(written.chunks(BLOCK_BYTES));
        blocks.flat_map(|(kept, written)| if survives() { written } else { kept }.to_vec()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_cut_leaves_what_was_synced_and_of_the_rest_what_survives() {
        let guard = crate::flow::sim::enter(1);
        let folder = tempfile::tempdir().expect("folder");
        let at = |name: &str| folder.path().join(name);
        let write = |name: &str, bytes: &[u8]| {
            std::fs::write(at(name), bytes).expect("written");
            File::open(at(name)).expect("opened")
        };
        sync_all(&write("kept", b"old"), &at("kept")).expect("synced");
        sync_all(&write("replaced", b"old"), &at("replaced")).expect("synced");
        sync_folder(folder.path()).expect("synced");
        drop(write("kept", b"new"));
        sync_all(&write("replacement", b"new"), &at("replacement")).expect("synced");
        std::fs::rename(at("replacement"), at("replaced")).expect("renamed");
        drop(write("fresh", b"new"));
        let read = |name: &str| std::fs::read_to_string(at(name)).ok();
        sim::power_cut(folder.path(), || false).expect("cut");
        assert_eq!((read("kept").as_deref(), read("replaced").as_deref()), (Some("old"), Some("old")));
        assert_eq!(read("fresh"), None, "its name was never durable");
        drop(write("kept", b"new"));
        drop(write("fresh", b"new"));
        sim::power_cut(folder.path(), || true).expect("cut");
        assert_eq!((read("kept").as_deref(), read("fresh").as_deref()), (Some("new"), Some("new")));
        drop(guard);
    }
}
