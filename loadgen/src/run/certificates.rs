//! A certificate for each agent, from a copy of the authority in a folder of its own.

use std::path::{Path, PathBuf};

use tidegate::flow::{Clock as _, SystemClock};
use tidegate::types::DiskId;
use tidegate::wire::TlsFiles;
use tidegate::wire::pki::{self, IssueOptions};

use super::RunError;

/// A run is over within days.
const VALID_DAYS: u32 = 7;

/// A folder that is removed when dropped.
pub(super) struct Folder(PathBuf);

impl Folder {
    fn new() -> std::io::Result<Self> {
        let nonce = tidegate::keys::random::<8>().map_err(std::io::Error::other)?;
        let path = std::env::temp_dir().join(format!("loadgen-{:016x}", u64::from_le_bytes(nonce)));
        // It will hold keys.
        std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left is for whoever cleans the folder of temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// An agent that may connect.
#[derive(Clone, Debug)]
pub(super) struct Agent {
    pub(super) files: TlsFiles,
    pub(super) disks: Vec<DiskId>,
}

/// Makes `count` agents with `disks` disks each. Names hold `mark`, so that no run meets the disks of another.
pub(super) fn make(authority: &Path, mark: &str, count: usize, disks: usize) -> Result<(Folder, Vec<Agent>), RunError> {
    let wrong = |what: &Path, error: &dyn std::error::Error| RunError(format!("{}: {error}", what.display()));
    let folder = Folder::new().map_err(|error| wrong(&std::env::temp_dir(), &error))?;
    for name in ["ca.crt", "ca.key"] {
        let from = authority.join(name);
        std::fs::copy(&from, folder.0.join(name)).map_err(|error| wrong(&from, &error))?;
    }
    let options = IssueOptions { now: SystemClock::new().wall(), days: VALID_DAYS, force: false, keep_key: false };
    let mut agents = Vec::with_capacity(count);
    for number in 0..count {
        let name = format!("{mark}-{number}");
        let disks: Result<Vec<DiskId>, _> = (0..disks).map(|disk| DiskId::new(&format!("{name}-d{disk}"))).collect();
        let disks = disks.map_err(|error| wrong(authority, &error))?;
        let issued = pki::issue_agent(&folder.0, &name, &disks, options).map_err(|error| wrong(authority, &error))?;
        agents.push(Agent { files: TlsFiles { ca: issued.ca, cert: issued.cert, key: issued.key }, disks });
    }
    Ok((folder, agents))
}
