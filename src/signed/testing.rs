//! An agent's key and certificate for tests.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::{AgentCertificate, Signer};
use crate::types::{DiskId, Id128, Micros};
use crate::wire::pki::{self, IssueOptions};

/// When the authorities of tests begin.
pub(crate) const NOW: Micros = Micros(1_800_000_000_000_000);

/// The key of an agent of a vault, from an authority in `dir`.
pub(crate) struct AgentKey {
    pub(crate) signer: Signer,
    pub(crate) chain: Vec<Vec<u8>>,
}

impl AgentKey {
    /// Issued by the authority in `dir`, which is made if it is not there.
    pub(crate) fn issue(dir: &Path, vault: Id128, agent: &str, disks: &[&str]) -> Self {
        Self::issue_at(NOW, dir, vault, agent, disks)
    }

    /// One that is valid for a month from `now`.
    pub(crate) fn issue_at(now: Micros, dir: &Path, vault: Id128, agent: &str, disks: &[&str]) -> Self {
        let options = IssueOptions { now, days: 30, force: false, keep_key: false };
        if !dir.join("ca.crt").exists() {
            pki::init(dir, vault, options).expect("authority");
        }
        let disks: Vec<DiskId> = disks.iter().map(|disk| DiskId::new(disk).expect("name")).collect();
        let issued = pki::issue_agent(dir, agent, &disks, options).expect("agent");
        let chain: Vec<_> = CertificateDer::pem_file_iter(&issued.cert).expect("file").map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_file(&issued.key).expect("key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let certified = CertifiedKey::from_der(chain.clone(), key, &provider).expect("a pair");
        let signer = Signer::new(&certified, vault).expect("a kind that signs");
        Self { signer, chain: chain.iter().map(|one| one.to_vec()).collect() }
    }

    pub(crate) fn certificate(&self) -> AgentCertificate {
        AgentCertificate::read(self.chain.clone()).expect("an agent's")
    }
}
