//! Mutual TLS 1.3 with the ring provider: files, verifiers, and texts for what goes wrong.
//!
//! - The provider is passed by hand; the process default may be missing or another one.
//! - No session is ever resumed and no early data taken: every connection proves its certificate anew, so an expired
//!   or replaced certificate counts at the next connect.
//! - A verifier notes in words why it refused, because TLS tells the other side only a number.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};

use super::identity::{AgentIdentity, CertificateFacts, GatewayIdentity, Identity, IdentityError};
use super::transport::SessionEnd;
use crate::fault::{Classify, Fault};
use crate::flow::Clock;
use crate::signed::Signer;
use crate::types::{DiskId, Id128, Micros};

/// The three files that each side needs, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate of the private authority that both sides trust.
    pub ca: PathBuf,
    /// This side's certificate (and intermediates, if any).
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// TLS files that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{what} {} cannot be read", path.display())]
    Read {
        /// What the file is.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file holds no PEM of the wanted kind.
    #[error("{} holds no {what} in PEM; make one with `tidegate pki`", path.display())]
    Pem {
        /// What was looked for.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The certificate's names are of no use.
    #[error("certificate {} cannot be used", path.display())]
    Identity {
        /// The file.
        path: PathBuf,
        /// Why.
        source: IdentityError,
    },
    /// The certificate is not of the authority that this side trusts.
    #[error("certificate {} is not of the authority in {}: {why}", path.display(), authority.display())]
    Chain {
        /// The file.
        path: PathBuf,
        /// The authority's file.
        authority: PathBuf,
        /// What the verifier says.
        why: String,
    },
    /// The certificate is for another role.
    #[error("certificate {} is of {found}: {wanted} needs its own, from `tidegate pki issue`", path.display())]
    Role {
        /// The file.
        path: PathBuf,
        /// Whose certificate it is.
        found: String,
        /// Who wants to use it.
        wanted: &'static str,
    },
    /// The certificate is of somebody else than the one before.
    #[error("certificate {} is of {found}, and this is {wanted}: another identity needs a restart", path.display())]
    Other {
        /// The file.
        path: PathBuf,
        /// Whose certificate it is.
        found: String,
        /// Whose it was.
        wanted: String,
    },
    /// The certificate is not valid now.
    #[error("certificate {} is valid from {from} to {until}, and not now; issue another one with `tidegate pki issue`", path.display())]
    Time {
        /// The file.
        path: PathBuf,
        /// Begin of its validity.
        from: Micros,
        /// Its end.
        until: Micros,
    },
    /// Certificate and key do not belong together, or TLS cannot use them.
    #[error("certificate {} with key {} cannot be used", cert.display(), key.display())]
    Pair {
        /// The certificate file.
        cert: PathBuf,
        /// The key file.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The authority's certificate cannot be a trust anchor.
    #[error("authority {} cannot be used: {text}", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why.
        text: String,
    },
}

/// Reads an agent's files as a connection does, and says until when its certificate is valid. Blocks.
///
/// # Errors
/// Everything that is wrong with them.
pub fn check_agent(files: &TlsFiles, clock: &Arc<dyn Clock>) -> Result<Micros, Vec<TlsError>> {
    let material = Material::load_all(files, clock)?;
    let role = material.agent().map(drop);
    let (from, until, now) = (material.facts.not_before, material.ends(), clock.wall());
    let valid = (from..=until).contains(&now);
    let time = || TlsError::Time { path: files.cert.clone(), from, until };
    let mistakes: Vec<_> = role.err().into_iter().chain((!valid).then(time)).collect();
    if mistakes.is_empty() { Ok(until) } else { Err(mistakes) }
}

/// The vault that a certificate file is for. Blocks.
///
/// # Errors
/// [`TlsError`] names the file.
pub fn vault_of(files: &TlsFiles) -> Result<Id128, TlsError> {
    read_chain(&files.cert).map(|(_, _, identity)| identity.vault())
}

impl Classify for TlsError {
    fn fault(&self) -> Fault {
        Fault::Reject
    }
}

/// Where a verifier notes why it refused the other side.
pub(crate) type Explanation = Arc<Mutex<Option<String>>>;

/// TLS files, read and checked against each other.
pub(super) struct Material {
    files: TlsFiles,
    roots: Arc<RootCertStore>,
    key: Arc<CertifiedKey>,
    provider: Arc<CryptoProvider>,
    time: Arc<ClockTime>,
    reset_key: ring::hmac::Key,
    /// What this side's certificate says.
    facts: CertificateFacts,
    identity: Identity,
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read { what, path: path.to_owned(), source })
}

fn read_certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(what, path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    certificates
        .ok()
        .filter(|certificates| !certificates.is_empty())
        .ok_or_else(|| TlsError::Pem { what: "certificate", path: path.to_owned() })
}

pub(crate) fn read_roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates("authority", path)? {
        let added = roots.add(certificate);
        added.map_err(|error| TlsError::Authority { path: path.to_owned(), text: error.to_string() })?;
    }
    Ok(roots)
}

/// A chain of certificates, what the first of them says, and whose it is.
type Chain = (Vec<CertificateDer<'static>>, CertificateFacts, Identity);

fn read_chain(path: &Path) -> Result<Chain, TlsError> {
    let chain = read_certificates("certificate", path)?;
    let unusable = |source| TlsError::Identity { path: path.to_owned(), source };
    let facts = CertificateFacts::read(&chain[0]).map_err(unusable)?;
    let identity = facts.identity.clone().map_err(unusable)?;
    Ok((chain, facts, identity))
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read("key", path)?)
        .map_err(|_| TlsError::Pem { what: "private key", path: path.to_owned() })
}

impl Material {
    /// Reads the files. Validity in time is left to the other side, but an expired certificate is logged.
    pub(super) fn load(files: &TlsFiles, clock: &Arc<dyn Clock>) -> Result<Self, TlsError> {
        // There is at least one where there is no material.
        let material = Self::load_all(files, clock).map_err(|mut mistakes| mistakes.swap_remove(0))?;
        if material.is_over(clock.wall()) {
            tracing::error!("{}", material.over_text());
        }
        Ok(material)
    }

    /// As [`Self::load`], silent, with all that is wrong in the files.
    pub(super) fn load_all(files: &TlsFiles, clock: &Arc<dyn Clock>) -> Result<Self, Vec<TlsError>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let (roots, chain, key) = (read_roots(&files.ca), read_chain(&files.cert), read_key(&files.key));
        let (roots, (chain, facts, identity), key) = match (roots, chain, key) {
            (Ok(roots), Ok(chain), Ok(key)) => (roots, chain, key),
            (roots, chain, key) => {
                return Err([roots.err(), chain.err(), key.err()].into_iter().flatten().collect());
            }
        };
        let reset_secret = blake3::derive_key("tidegate 1 quic stateless reset", key.secret_der());
        let reset_key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &reset_secret);
        let pair = |source| TlsError::Pair { cert: files.cert.clone(), key: files.key.clone(), source };
        let key = CertifiedKey::from_der(chain, key, &provider).map_err(|source| vec![pair(source)])?;
        let time = Arc::new(ClockTime(Arc::clone(clock)));
        let (roots, key) = (Arc::new(roots), Arc::new(key));
        Ok(Self { files: files.clone(), roots, key, provider, time, reset_key, facts, identity })
    }

    /// Whether the certificate's time is over at `now`.
    pub(super) fn is_over(&self, now: Micros) -> bool {
        now > self.facts.not_after
    }

    fn over_text(&self) -> String {
        let (cert, not_after) = (self.files.cert.display(), self.facts.not_after);
        format!("this side's certificate {cert} expired on {not_after}; {RENEW}")
    }

    /// Why this must not take the place of `current` at `now`: it is of somebody else, or everybody would refuse it.
    pub(super) fn check_successor(&self, current: &Self, now: Micros) -> Result<(), TlsError> {
        if self.identity != current.identity {
            let (found, wanted) = (self.identity.to_string(), current.identity.to_string());
            return Err(TlsError::Other { path: self.files.cert.clone(), found, wanted });
        }
        // One that is over already and stays the same is no reason to refuse all else.
        let same = self.key.cert.first() == current.key.cert.first();
        if !same && (self.is_over(now) || now < self.facts.not_before) {
            let (from, until) = (self.facts.not_before, self.facts.not_after);
            return Err(TlsError::Time { path: self.files.cert.clone(), from, until });
        }
        // Agents trust what this side is told to trust: one that its own authority did not sign would be refused by all of them.
        let chain = if same { Ok(()) } else { self.check_chain() };
        chain.map_err(|why| TlsError::Chain { path: self.files.cert.clone(), authority: self.files.ca.clone(), why })
    }

    /// Makes the tokens by which a gateway tells agents that it does not know their connection. It comes from the
    /// private key, so a gateway that was killed and started again ends its old connections at once instead of leaving
    /// agents to their idle timeout.
    pub(super) fn reset_key(&self) -> ring::hmac::Key {
        self.reset_key.clone()
    }

    /// This side's identity, which must be an agent's.
    pub(super) fn agent(&self) -> Result<AgentIdentity, TlsError> {
        match &self.identity {
            Identity::Agent(agent) => Ok(agent.clone()),
            other => Err(self.wrong_role(other, "an agent")),
        }
    }

    /// Signs with the key of this side's certificate; none if its kind does not do.
    pub(super) fn signer(&self) -> Option<Signer> {
        Signer::new(&self.key, self.identity.vault())
    }

    /// This side's identity, which must be a gateway's.
    pub(super) fn gateway(&self) -> Result<GatewayIdentity, TlsError> {
        match &self.identity {
            Identity::Gateway(gateway) => Ok(gateway.clone()),
            other => Err(self.wrong_role(other, "a gateway")),
        }
    }

    /// Names and addresses of the certificate by which others may connect.
    pub(super) fn names(&self) -> &[String] {
        &self.facts.names
    }

    /// End of the certificate's validity.
    pub(super) const fn ends(&self) -> Micros {
        self.facts.not_after
    }

    fn wrong_role(&self, found: &Identity, wanted: &'static str) -> TlsError {
        TlsError::Role { path: self.files.cert.clone(), found: found.to_string(), wanted }
    }

    fn pair_error(&self, source: rustls::Error) -> TlsError {
        TlsError::Pair { cert: self.files.cert.clone(), key: self.files.key.clone(), source }
    }

    fn authority_error(&self, error: &dyn std::error::Error) -> TlsError {
        TlsError::Authority { path: self.files.ca.clone(), text: error.to_string() }
    }

    /// TLS for one incoming connection; a refusal is explained in `explanation`.
    pub(super) fn server_config(&self, explanation: &Explanation) -> Result<rustls::ServerConfig, TlsError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.roots), Arc::clone(&self.provider))
            .build()
            .map_err(|error| self.authority_error(&error))?;
        let verifier = Arc::new(ExplainedClient { inner: verifier, explain: self.explainer(explanation) });
        let time: Arc<dyn rustls::time_provider::TimeProvider> = Arc::clone(&self.time) as _;
        let mut config = rustls::ServerConfig::builder_with_details(Arc::clone(&self.provider), time)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|source| self.pair_error(source))?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(self.resolver());
        config.alpn_protocols = vec![super::ALPN.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// TLS for one outgoing connection; a refusal is explained in `explanation`.
    pub(super) fn client_config(&self, explanation: &Explanation) -> Result<rustls::ClientConfig, TlsError> {
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::clone(&self.roots), Arc::clone(&self.provider))
            .build()
            .map_err(|error| self.authority_error(&error))?;
        let verifier = Arc::new(ExplainedServer { inner: verifier, explain: self.explainer(explanation) });
        let time: Arc<dyn rustls::time_provider::TimeProvider> = Arc::clone(&self.time) as _;
        let mut config = rustls::ClientConfig::builder_with_details(Arc::clone(&self.provider), time)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|source| self.pair_error(source))?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(self.resolver());
        config.alpn_protocols = vec![super::ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(config)
    }

    fn resolver(&self) -> Arc<SingleCertAndKey> {
        Arc::new(SingleCertAndKey::from(Arc::clone(&self.key)))
    }

    fn explainer(&self, slot: &Explanation) -> Explainer {
        Explainer { ca: self.files.ca.clone(), slot: Arc::clone(slot) }
    }

    /// What a TLS alert of the other side says about this side's certificate.
    pub(super) fn alert_text(&self, alert: u8) -> String {
        let (cert, shown) = (self.files.cert.display(), self.facts.shown());
        match alert {
            45 => format!("certificate {cert} {shown} expired on {}; {RENEW}", self.facts.not_after),
            48 | 51 => format!(
                "certificate {cert} {shown} was issued by {:?}, which the other side does not trust; {SAME_AUTHORITY}",
                self.facts.issuer
            ),
            43 => format!("certificate {cert} {shown} is for another role; {RENEW} for the right one"),
            42 => format!(
                "certificate {cert} {shown} does not satisfy the other side: most often the name by which it connects \
                 is missing from the certificate; {RENEW} with --host"
            ),
            116 => format!("the other side got no certificate, although {cert} is configured"),
            120 => "the other side does not speak Tidegate's protocol version; update the older side".to_owned(),
            alert => format!("TLS alert {alert} from the other side about certificate {cert} {shown}"),
        }
    }
}

/// What can be said of one side's TLS files without another side.
#[derive(Debug, Clone)]
pub struct Examined {
    /// Whose certificate it is.
    pub identity: Identity,
    /// End of its validity.
    pub not_after: Micros,
    /// End of the authority's validity: of the first to end, if there are several.
    pub authority_not_after: Micros,
    /// Names and addresses by which others may connect.
    pub names: Vec<String>,
    /// Whether the other side, with the same authority and at this moment, would believe it; else why not.
    pub chain: Result<(), String>,
}

/// Reads the files and judges them as the other side would.
///
/// # Errors
/// [`TlsError`] if a file cannot be read or understood, or the key does not fit.
pub fn examine(files: &TlsFiles, clock: &Arc<dyn Clock>) -> Result<Examined, TlsError> {
    let material = Material::load(files, clock)?;
    let ends = read_certificates("authority", &files.ca)?;
    let ends =
        ends.iter().filter_map(|certificate| CertificateFacts::read(certificate).ok()).map(|facts| facts.not_after);
    Ok(Examined {
        authority_not_after: ends.min().unwrap_or(material.facts.not_after),
        chain: material.check_chain(),
        not_after: material.facts.not_after,
        names: material.facts.names.clone(),
        identity: material.identity,
    })
}

impl Material {
    /// Judges this side's own certificate by the authority that this side trusts.
    fn check_chain(&self) -> Result<(), String> {
        let explanation = Explanation::default();
        let explain = self.explainer(&explanation);
        let (roots, provider) = (Arc::clone(&self.roots), Arc::clone(&self.provider));
        let Some((own, above)) = self.key.cert.split_first() else { return Err("there is no certificate".to_owned()) };
        let now = UnixTime::since_unix_epoch(Duration::from_micros(self.time.0.wall().0));
        let judged = match &self.identity {
            Identity::Agent(_) => {
                let built = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
                let inner = built.map_err(|error| error.to_string())?;
                ExplainedClient { inner, explain }.verify_client_cert(own, above, now).map(|_| ())
            }
            _ => {
                // A wildcard stands for a host below its domain.
                let mut names = self.facts.names.iter().map(|name| name.replacen("*.", "gateway.", 1));
                let name = names.find_map(|name| ServerName::try_from(name).ok());
                let name = name.ok_or_else(|| format!("the certificate names no host; {RENEW} with --host"))?;
                let built = WebPkiServerVerifier::builder_with_provider(roots, provider).build();
                let inner = built.map_err(|error| error.to_string())?;
                ExplainedServer { inner, explain }.verify_server_cert(own, above, &name, &[], now).map(|_| ())
            }
        };
        judged.map_err(|error| explanation.lock().take().unwrap_or_else(|| error.to_string()))
    }
}

/// TLS of a server that is no gateway, whose clients are agents by their certificates.
pub struct DiskClients(Material);

impl DiskClients {
    /// Reads this side's files.
    ///
    /// # Errors
    /// [`TlsError`] names the file.
    pub fn load(files: &TlsFiles, clock: &Arc<dyn Clock>) -> Result<Self, TlsError> {
        let material = Material::load(files, clock)?;
        material.gateway()?;
        Ok(Self(material))
    }

    /// For one connection, and where a refusal of the client's certificate is explained.
    pub(crate) fn config(&self) -> Result<(rustls::ServerConfig, Explanation), TlsError> {
        let explanation = Explanation::default();
        let mut config = self.0.server_config(&explanation)?;
        // The protocol inside has a handshake of its own, and its clients name none.
        config.alpn_protocols.clear();
        Ok((config, explanation))
    }

    /// Whether the client, whose certificates TLS has verified, may use `disk`; if not, whose certificate it is.
    pub(crate) fn admit(certificates: &[CertificateDer<'_>], disk: Option<&DiskId>) -> Result<(), String> {
        let Some(own) = certificates.first() else { return Err("nobody".to_owned()) };
        let identity =
            CertificateFacts::read(own).and_then(|facts| facts.identity).map_err(|error| error.to_string())?;
        match (&identity, disk) {
            (Identity::Agent(agent), Some(disk)) if agent.may_write(disk) => Ok(()),
            _ => Err(identity.to_string()),
        }
    }
}

const RENEW: &str = "issue a new one with `tidegate pki issue`";
const SAME_AUTHORITY: &str = "both sides need certificates of the same `tidegate pki init`";

struct ClockTime(Arc<dyn Clock>);

impl std::fmt::Debug for ClockTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClockTime")
    }
}

impl rustls::time_provider::TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_micros(self.0.wall().0)))
    }
}

#[derive(Debug)]
struct Explainer {
    ca: PathBuf,
    slot: Explanation,
}

impl Explainer {
    fn note(&self, end_entity: &CertificateDer<'_>, name: Option<&ServerName<'_>>, error: &rustls::Error) {
        let facts = CertificateFacts::read(end_entity);
        *self.slot.lock() = Some(match facts {
            Ok(facts) => self.text(&facts, name, error),
            Err(unreadable) => unreadable.to_string(),
        });
    }

    fn text(&self, facts: &CertificateFacts, name: Option<&ServerName<'_>>, error: &rustls::Error) -> String {
        let (shown, ca) = (facts.shown(), self.ca.display());
        let rustls::Error::InvalidCertificate(reason) = error else {
            return format!("certificate {shown}: {error}");
        };
        match reason {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                format!("certificate {shown} expired on {}; {RENEW}", facts.not_after)
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                format!("certificate {shown} is valid only from {}; check the clocks of both sides", facts.not_before)
            }
            CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
                "certificate {shown} was issued by {:?}, not by the authority in {ca}; {SAME_AUTHORITY}",
                facts.issuer
            ),
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                let wanted = if name.is_some() { "a gateway" } else { "an agent" };
                format!("certificate {shown} is not one of {wanted}; {RENEW} for {wanted}")
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                let name = name.map(|name| name.to_str().into_owned()).unwrap_or_default();
                format!("certificate {shown} does not name {name:?}; {RENEW} with --host {name}")
            }
            other => format!("certificate {shown}: {other}"),
        }
    }
}

#[derive(Debug)]
struct ExplainedClient {
    inner: Arc<dyn ClientCertVerifier>,
    explain: Explainer,
}

impl ClientCertVerifier for ExplainedClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now);
        verified.inspect_err(|error| self.explain.note(end_entity, None, error))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[derive(Debug)]
struct ExplainedServer {
    inner: Arc<WebPkiServerVerifier>,
    explain: Explainer,
}

impl ServerCertVerifier for ExplainedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        verified.inspect_err(|error| self.explain.note(end_entity, Some(server_name), error))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// How an attempt to connect failed, from the view of one side.
pub(super) enum HandshakeFailure {
    /// This side refused the other's certificate.
    Theirs(String),
    /// The other side refused this side's certificate.
    Ours(String),
    /// The other side ended the connection in the protocol's own words.
    Closed(super::Code, String),
    /// Nobody answered, or the network broke.
    Silent(String),
}

impl Material {
    /// Puts the end of a session, or of an attempt to begin one, into words.
    pub(super) fn explain(&self, end: SessionEnd, explanation: &Explanation) -> HandshakeFailure {
        match end {
            SessionEnd::Refused(reason) => HandshakeFailure::Theirs(explanation.lock().take().unwrap_or(reason)),
            SessionEnd::Alert(alert) => HandshakeFailure::Ours(self.alert_text(alert)),
            SessionEnd::Busy => HandshakeFailure::Closed(super::Code::Busy, end.to_string()),
            SessionEnd::Closed { code, text } => HandshakeFailure::Closed(code, text),
            SessionEnd::Local | SessionEnd::Lost(_) => HandshakeFailure::Silent(end.to_string()),
        }
    }
}
