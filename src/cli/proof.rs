//! The signature that proves a point: whose counts, and what the verbs say of it that give a disk back.

use std::path::PathBuf;

use super::Failure;
use crate::fault::exit;
use crate::restore::history::History;
use crate::restore::signature::{self, Standing};
use crate::restore::source::Source;
use crate::signed::Authority;
use crate::types::{DiskId, PointId};

/// Whose signatures count.
#[derive(clap::Args)]
pub(super) struct Signers {
    /// The authority that issues the agents' certificates, as `tidegate pki init` made it (ca.crt): only a point is given back that
    /// an agent signed whose certificate is of it.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

impl Signers {
    /// The authority, if one is named: to be read before anything of the vault.
    ///
    /// # Errors
    /// The file cannot be read, or holds no authority.
    pub(super) fn authority(&self) -> Result<Option<Authority>, Failure> {
        self.ca.as_deref().map(Authority::load).transpose().map_err(|error| Failure::of(&error))
    }
}

/// Says who signed the point, or returns a warning. With an authority, a point that it does not stand behind is refused.
pub(super) async fn told(
    authority: Option<&Authority>,
    source: &Source,
    history: &History,
    disk: &DiskId,
    point: PointId,
) -> Result<Option<String>, Failure> {
    let standing = signature::standing(source, history, disk, point, authority).await;
    let what = match standing.map_err(|error| Failure::of(&error))? {
        Standing::Signed { by, agent, vouched } => {
            let whom = if vouched { "" } else { "; nobody vouched for its certificate: give --ca" };
            eprintln!("proven by the signature of agent {agent} at {by}{whom}");
            return Ok(None);
        }
        Standing::Older if authority.is_none() => return Ok(None),
        Standing::Older => "no agent of the disk ever signed anything".to_owned(),
        Standing::Unproven { what } => what,
    };
    let advice = "see what `tidegate verify` finds, and choose an older point";
    if authority.is_some() {
        let text = format!(
            "disk {disk} is not given back at {point}: {what}; {advice}, or leave --ca away to have it as it is"
        );
        return Err(Failure { text, code: exit::DAMAGE });
    }
    let warning = format!("disk {disk} at {point} is not proven: {what}; {advice}");
    eprintln!("tidegate: warning: {warning}");
    Ok(Some(warning))
}
