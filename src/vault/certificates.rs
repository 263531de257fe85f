//! The certificates with which agents sign barriers: kept beside the disk, named by their digest, so that whoever verifies a
//! history years later still knows whose key it was.
//!
//! The gateway that an agent shows one writes it, before it takes a signed barrier. A forged one under a right name is no use to
//! anybody: the digest is in the name and in what was signed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::objects::CertificateObject;
use super::{Vault, VaultError, names};
use crate::signed::AgentCertificate;
use crate::signed::certificate::digest_of;
use crate::types::{Digest, DiskId};

impl CertificateObject {
    /// What is kept of the certificates that an agent showed.
    #[must_use]
    pub fn new(disk: &DiskId, agent: &str, chain: &[Vec<u8>]) -> Self {
        let chain = chain.iter().map(|certificate| STANDARD.encode(certificate)).collect();
        Self { disk: disk.clone(), agent: agent.to_owned(), chain }
    }

    /// The certificate, if this is the one that the name promises.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn certificate(&self, digest: Digest) -> Result<AgentCertificate, String> {
        let chain: Result<Vec<_>, _> = self.chain.iter().map(|text| STANDARD.decode(text)).collect();
        let chain = chain.map_err(|error| format!("its certificate is not in base64: {error}"))?;
        let certificate = AgentCertificate::read(chain).map_err(|refused| refused.to_string())?;
        match certificate.digest == digest {
            true => Ok(certificate),
            false => Err("it holds another certificate than its name says".to_owned()),
        }
    }
}

impl Vault {
    /// Keeps the certificates that an agent showed for a disk, its own first. Repeating it is harmless.
    ///
    /// # Errors
    /// A failed request.
    pub async fn keep_certificate(&self, disk: &DiskId, agent: &str, chain: &[Vec<u8>]) -> Result<(), VaultError> {
        let Some(own) = chain.first() else { return Ok(()) };
        let path = names::certificate(disk, digest_of(own));
        match self.put_object(&path, &CertificateObject::new(disk, agent, chain)).await {
            Ok(_) => Ok(()),
            Err(VaultError::Taken { object, .. }) => {
                // With other certificates above it, or somebody else's work: `verify` tells. It must not keep a machine
                // from being protected.
                tracing::warn!(%disk, object, "another account of the agent's certificate stands in the vault");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}
