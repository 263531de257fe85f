//! Restores the disks of a run by the command that an operator uses, and compares hashes.

use std::path::{Path, PathBuf};

use tidegate::cli::quickstart::{copies, site};

use super::disk::Ended;
use super::outcome::Verified;
use crate::payload::Pool;

/// Where the images come from and go to.
#[derive(Clone, Debug)]
pub struct Restore {
    /// The `tidegate` program.
    pub program: PathBuf,
    /// URL of the vault.
    pub vault: String,
    /// File of the recovery identity.
    pub identity: PathBuf,
    /// Folder with room for one image.
    pub folder: PathBuf,
    /// Disks to restore, at most.
    pub disks_max: usize,
}

/// Restores and compares one disk after the other. Blocks.
#[must_use]
pub fn verify(restore: &Restore, pool: &Pool, ended: &[Ended]) -> Verified {
    let mut verified = Verified::default();
    for disk in ended.iter().filter(|disk| disk.failure.is_none()).take(restore.disks_max) {
        let Some(image) = &disk.image else { continue };
        let target = restore.folder.join(format!("{}.img", disk.id));
        let found = restored(restore, disk, &target);
        // One image at a time is what the folder needs room for.
        let _ = std::fs::remove_file(&target);
        verified.disks += 1;
        match found {
            Ok(found) if found == image.sha256(pool) => {}
            Ok(found) => {
                let wanted = image.sha256(pool);
                verified.differences.push(format!("disk {} at {}: {found} instead of {wanted}", disk.id, disk.point));
            }
            Err(text) => verified.differences.push(format!("disk {} at {}: {text}", disk.id, disk.point)),
        }
    }
    verified
}

fn restored(restore: &Restore, disk: &Ended, target: &Path) -> Result<tidegate::types::Digest, String> {
    let text = |path: &Path| path.display().to_string();
    let (identity, to) = (text(&restore.identity), text(target));
    let (id, point) = (disk.id.to_string(), disk.point.to_string());
    let from = ["restore", "--vault", &restore.vault, "--identity", &identity];
    site::run(&restore.program, &[&from[..], &["--disk", &id, "--point", &point, "--to", &to]].concat())
        .map_err(|error| error.to_string())?;
    copies::sha256(target).map_err(|error| error.to_string())
}
