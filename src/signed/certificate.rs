//! Whose signature it is: agents' certificates as the vault keeps them, and the authority that an operator believes.
//!
//! A certificate is judged at the moment of signing, by the barrier's label: that it is over by the time of a recovery says
//! nothing about what was signed with it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{CertificateError, Error};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::mutants::{self, Mutant};
use crate::types::{Digest, DiskId, Micros};
use crate::wire::TlsError;
use crate::wire::identity::{AgentIdentity, CertificateFacts, Identity, IdentityError};
use crate::wire::tls::read_roots;

/// The certificate of an agent, with those that lead from it to its authority.
#[derive(Debug, Clone)]
pub struct AgentCertificate {
    /// Its digest, by which signatures and objects name it.
    pub digest: Digest,
    /// Whose it is.
    pub agent: AgentIdentity,
    chain: Vec<CertificateDer<'static>>,
    public_key: Vec<u8>,
    valid: (Micros, Micros),
}

/// Why a certificate is no agent's, or not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is none.
    #[error("there is no certificate")]
    Empty,
    /// It says not whose it is.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// It is of somebody else.
    #[error("it is of {found}, which is no agent")]
    Role {
        /// Whose.
        found: String,
    },
    /// It was not valid when the barrier was signed.
    #[error("it was valid from {from} to {until}, and not at {at}")]
    Time {
        /// Begin of its validity.
        from: Micros,
        /// Its end.
        until: Micros,
        /// When it was used.
        at: Micros,
    },
    /// The authority did not issue it.
    #[error("the authority in {} did not issue it: {why}", authority.display())]
    Issuer {
        /// The authority's file.
        authority: PathBuf,
        /// What the verifier says.
        why: String,
    },
}

impl AgentCertificate {
    /// Reads a certificate that is followed by those above it.
    ///
    /// # Errors
    /// [`Refused`] if it is not that of an agent.
    pub fn read(chain: Vec<Vec<u8>>) -> Result<Self, Refused> {
        let chain: Vec<CertificateDer<'static>> = chain.into_iter().map(CertificateDer::from).collect();
        let own = chain.first().ok_or(Refused::Empty)?;
        let facts = CertificateFacts::read(own)?;
        let agent = match facts.identity? {
            Identity::Agent(agent) => agent,
            other => return Err(Refused::Role { found: other.to_string() }),
        };
        let (_, parsed) = X509Certificate::from_der(own).map_err(|_| IdentityError::Certificate)?;
        let public_key = parsed.public_key().subject_public_key.data.to_vec();
        let (digest, valid) = (digest_of(own), (facts.not_before, facts.not_after));
        Ok(Self { digest, agent, chain, public_key, valid })
    }

    /// Whether it names the disk.
    #[must_use]
    pub fn may_write(&self, disk: &DiskId) -> bool {
        self.agent.may_write(disk)
    }

    /// Judges when it was used, without an authority.
    ///
    /// # Errors
    /// [`Refused::Time`].
    pub fn check_time(&self, at: Micros) -> Result<(), Refused> {
        let (from, until) = self.valid;
        if (from..=until).contains(&at) { Ok(()) } else { Err(Refused::Time { from, until, at }) }
    }

    pub(super) fn public_key(&self) -> &[u8] {
        &self.public_key
    }
}

/// The digest by which a certificate is named.
#[must_use]
pub fn digest_of(certificate: &[u8]) -> Digest {
    Digest(blake3::hash(certificate).into())
}

/// The authority that issues the certificates of a vault's agents, as the operator knows it.
#[derive(Clone, Debug)]
pub struct Authority {
    path: PathBuf,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl Authority {
    /// Reads `ca.crt` as `tidegate pki init` makes it. Blocks.
    ///
    /// # Errors
    /// [`TlsError`] names the file.
    pub fn load(path: &Path) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let built = WebPkiClientVerifier::builder_with_provider(Arc::new(read_roots(path)?), provider).build();
        let verifier = built.map_err(|error| TlsError::Authority { path: path.to_owned(), text: error.to_string() })?;
        Ok(Self { path: path.to_owned(), verifier })
    }

    /// Judges a certificate that was used at a moment.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn vouches(&self, certificate: &AgentCertificate, at: Micros) -> Result<(), Refused> {
        let Some((own, above)) = certificate.chain.split_first() else { return Err(Refused::Empty) };
        let moment = UnixTime::since_unix_epoch(Duration::from_micros(at.0));
        match self.verifier.verify_client_cert(own, above, moment) {
            Ok(_) => Ok(()),
            Err(_) if mutants::on(Mutant::AuthorityUnchecked) => Ok(()),
            Err(Error::InvalidCertificate(
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. },
            )) if certificate.check_time(at).is_err() => certificate.check_time(at),
            Err(error) => Err(Refused::Issuer { authority: self.path.clone(), why: error.to_string() }),
        }
    }
}
