//! The TLS files, as the other side would judge them.

use std::sync::Arc;

use super::super::facts::Tls;
use crate::fault::chain_text;
use crate::flow::Clock;
use crate::types::DiskId;
use crate::wire::{Identity, TlsFiles, tls};

pub(super) fn look(files: &TlsFiles, disks: &[DiskId], clock: &Arc<dyn Clock>) -> Result<Tls, String> {
    let examined = tls::examine(files, clock).map_err(|error| chain_text(&error))?;
    let disks_missing = match &examined.identity {
        Identity::Agent(agent) => disks.iter().filter(|disk| !agent.may_write(disk)).map(ToString::to_string).collect(),
        _ => Vec::new(),
    };
    Ok(Tls {
        cert: files.cert.display().to_string(),
        identity: examined.identity,
        not_after: examined.not_after,
        authority_not_after: examined.authority_not_after,
        names: examined.names,
        chain: examined.chain,
        disks_missing,
    })
}
