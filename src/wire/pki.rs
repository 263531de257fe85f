//! A private certificate authority for one vault, and the certificates of its agents and gateways.
//!
//! ```text
//! <dir>/ca.crt           the authority; both sides trust it, and it names its vault
//! <dir>/ca.key           issues certificates; keep it off gateways and agents
//! <dir>/agent-<id>.crt   names the agent and the disks that it may write
//! <dir>/agent-<id>.key
//! <dir>/gateway-<id>.crt names the gateway and the hosts under which agents reach it
//! <dir>/gateway-<id>.key
//! ```
//!
//! Keys are ECDSA P-256, made here and written with mode 0600. Nothing is overwritten unless asked for: replacing the
//! authority orphans every certificate that it issued.

use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use time::OffsetDateTime;

use super::identity::{AgentIdentity, CertificateFacts, GatewayIdentity, Identity, IdentityError};
use crate::fault::{Classify, Fault};
use crate::types::{self, DiskId, Id128, InvalidNameError, Micros};

/// Default validity of an authority: ten years, because replacing it touches every machine.
pub const AUTHORITY_DAYS_DEFAULT: u32 = 3650;
/// Default validity of a certificate.
pub const LEAF_DAYS_DEFAULT: u32 = 397;
/// Certificates are valid from a little earlier than now: clocks of other machines may lag.
const BACKDATED: Duration = Duration::from_secs(3600);

/// What was made.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Issued {
    /// The identity, as its URI.
    pub identity: String,
    /// The certificate file.
    pub cert: PathBuf,
    /// The key file.
    pub key: PathBuf,
    /// The authority's certificate file.
    pub ca: PathBuf,
    /// End of validity.
    #[serde(serialize_with = "as_text")]
    pub not_after: Micros,
}

fn as_text<S: serde::Serializer>(time: &Micros, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(time)
}

/// Why no certificate was made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file or folder cannot be read or written.
    #[error("{} cannot be {what}", path.display())]
    Io {
        /// Read or written.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is there already.
    #[error("{} exists; choose another folder or id, or overwrite it with --force", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// There is no authority in the folder.
    #[error("{} holds no authority; make one with `tidegate pki init --dir {}`", dir.display(), dir.display())]
    NoAuthority {
        /// The folder.
        dir: PathBuf,
    },
    /// The certificate in `ca.crt` is not that of an authority of a vault.
    #[error("{} is not the certificate of a vault's authority: {text}", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why.
        text: String,
    },
    /// A name breaks the rule of names.
    #[error(transparent)]
    Name(#[from] InvalidNameError),
    /// A certificate without a disk, a host or a day is of no use.
    #[error("{text}")]
    Nothing {
        /// What is missing.
        text: &'static str,
    },
    /// A host that is neither a DNS name nor an address.
    #[error("host {host:?} is neither a DNS name nor an IP address (give it without a port)")]
    Host {
        /// The refused text.
        host: String,
    },
    /// The certificate cannot be made.
    #[error("the certificate cannot be made")]
    Make(#[from] rcgen::Error),
}

impl Classify for PkiError {
    fn fault(&self) -> Fault {
        Fault::Reject
    }
}

/// Validity in time, and what to do with files that exist.
#[derive(Debug, Clone, Copy)]
pub struct IssueOptions {
    /// The present.
    pub now: Micros,
    /// Days of validity from now.
    pub days: u32,
    /// Whether existing files are replaced.
    pub force: bool,
    /// Whether the key that is there goes on with a new certificate, which takes the place of the old one.
    pub keep_key: bool,
}

/// Makes the authority of `vault` in `dir`.
///
/// # Errors
/// [`PkiError`]; nothing was overwritten unless forced.
pub fn init(dir: &Path, vault: Id128, options: IssueOptions) -> Result<Issued, PkiError> {
    let identity = Identity::Authority(vault);
    let key = KeyPair::generate()?;
    // Part of the key in the name: two authorities of one vault are told apart in texts, and by verifiers.
    let mark = Id128(first_bytes(blake3::hash(key.public_key_raw()).as_bytes())).to_string();
    let mut params = params(&identity, &format!("tidegate authority {}", &mark[..8]), options)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let certificate = params.self_signed(&key)?;
    let create = std::fs::create_dir_all(dir);
    create.map_err(|source| PkiError::Io { what: "created", path: dir.to_owned(), source })?;
    write_pair(dir, "ca", &identity, &certificate.pem(), &key, options)
}

/// Issues a certificate for an agent that may write `disks`.
///
/// # Errors
/// [`PkiError`]; nothing was overwritten unless forced.
pub fn issue_agent(dir: &Path, agent: &str, disks: &[DiskId], options: IssueOptions) -> Result<Issued, PkiError> {
    types::check_name(agent)?;
    if disks.is_empty() {
        return Err(PkiError::Nothing { text: "an agent's certificate needs at least one --disk" });
    }
    let authority = Authority::load(dir)?;
    let mut disks = disks.to_vec();
    disks.sort();
    disks.dedup();
    let identity = Identity::Agent(AgentIdentity { vault: authority.vault, agent: agent.to_owned(), disks });
    let params = leaf(&identity, agent, ExtendedKeyUsagePurpose::ClientAuth, options)?;
    authority.issue(dir, &format!("agent-{agent}"), &identity, &params, options)
}

/// Issues a certificate for a gateway that agents reach as any of `hosts` (DNS names or addresses).
///
/// # Errors
/// [`PkiError`]; nothing was overwritten unless forced.
pub fn issue_gateway(dir: &Path, gateway: &str, hosts: &[String], options: IssueOptions) -> Result<Issued, PkiError> {
    types::check_name(gateway)?;
    if hosts.is_empty() {
        return Err(PkiError::Nothing { text: "a gateway's certificate needs at least one --host" });
    }
    let authority = Authority::load(dir)?;
    let identity = Identity::Gateway(GatewayIdentity { vault: authority.vault, gateway: gateway.to_owned() });
    let mut params = leaf(&identity, gateway, ExtendedKeyUsagePurpose::ServerAuth, options)?;
    for host in hosts {
        params.subject_alt_names.push(host_name(host)?);
    }
    authority.issue(dir, &format!("gateway-{gateway}"), &identity, &params, options)
}

fn host_name(host: &str) -> Result<SanType, PkiError> {
    let refused = || PkiError::Host { host: host.chars().take(200).collect() };
    if let Ok(address) = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let name = rustls::pki_types::DnsName::try_from(host).map_err(|_| refused())?;
    Ok(SanType::DnsName(name.as_ref().try_into().map_err(|_| refused())?))
}

fn first_bytes(bytes: &[u8; 32]) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&bytes[..16]);
    out
}

fn date(micros: Micros) -> OffsetDateTime {
    let seconds = i64::try_from(micros.0 / 1_000_000).unwrap_or(i64::MAX);
    // Far beyond what a certificate can hold; the year 9999 is its way to say "for ever".
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn params(identity: &Identity, name: &str, options: IssueOptions) -> Result<CertificateParams, PkiError> {
    if options.days == 0 || options.days > 36_500 {
        return Err(PkiError::Nothing { text: "a certificate is valid for 1 to 36500 days" });
    }
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, format!("vault {}", identity.vault()));
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date(Micros(options.now.0.saturating_sub(BACKDATED.as_micros() as u64)));
    params.not_after = date(not_after(options));
    for uri in identity.uris() {
        params.subject_alt_names.push(SanType::URI(uri.try_into()?));
    }
    Ok(params)
}

fn not_after(options: IssueOptions) -> Micros {
    // Certificates count in seconds.
    let now_seconds = options.now.0 / 1_000_000;
    Micros((now_seconds + u64::from(options.days) * 24 * 3600).saturating_mul(1_000_000))
}

fn leaf(
    identity: &Identity,
    name: &str,
    usage: ExtendedKeyUsagePurpose,
    options: IssueOptions,
) -> Result<CertificateParams, PkiError> {
    let mut params = params(identity, name, options)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// An authority that can issue.
struct Authority {
    vault: Id128,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn load(dir: &Path) -> Result<Self, PkiError> {
        let (cert_path, key_path) = (dir.join("ca.crt"), dir.join("ca.key"));
        let read = |path: &Path| match std::fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(PkiError::NoAuthority { dir: dir.to_owned() })
            }
            other => other.map_err(|source| PkiError::Io { what: "read", path: path.to_owned(), source }),
        };
        let (pem, key) = (read(&cert_path)?, read(&key_path)?);
        let refused = |text: String| PkiError::Authority { path: cert_path.clone(), text };
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| refused(error.to_string()))?;
        let facts = CertificateFacts::read(&der).map_err(|error| refused(error.to_string()))?;
        let vault = match facts.identity {
            Ok(Identity::Authority(vault)) => vault,
            Ok(other) => return Err(refused(format!("it names {other}"))),
            Err(IdentityError::None) => return Err(refused("it names no vault".to_owned())),
            Err(error) => return Err(refused(error.to_string())),
        };
        let key = KeyPair::from_pem(&key)?;
        Ok(Self { vault, issuer: Issuer::from_ca_cert_der(&der, key)? })
    }

    fn issue(
        &self,
        dir: &Path,
        file: &str,
        identity: &Identity,
        params: &CertificateParams,
        options: IssueOptions,
    ) -> Result<Issued, PkiError> {
        let key_path = dir.join(format!("{file}.key"));
        let key = if options.keep_key { read_pair(&key_path)? } else { KeyPair::generate()? };
        let certificate = params.signed_by(&key, &self.issuer)?;
        write_pair(dir, file, identity, &certificate.pem(), &key, options)
    }
}

fn read_pair(path: &Path) -> Result<KeyPair, PkiError> {
    let pem = std::fs::read_to_string(path);
    let pem = pem.map_err(|source| PkiError::Io { what: "read", path: path.to_owned(), source })?;
    Ok(KeyPair::from_pem(&pem)?)
}

fn write_pair(
    dir: &Path,
    file: &str,
    identity: &Identity,
    pem: &str,
    key: &KeyPair,
    options: IssueOptions,
) -> Result<Issued, PkiError> {
    let (cert_path, key_path) = (dir.join(format!("{file}.crt")), dir.join(format!("{file}.key")));
    if !options.force
        && !options.keep_key
        && let Some(path) = [&cert_path, &key_path].into_iter().find(|path| path.exists())
    {
        return Err(PkiError::Exists { path: path.clone() });
    }
    // The key first: a certificate without its key looks usable and is not.
    if !options.keep_key {
        write_file(&key_path, &key.serialize_pem(), 0o600)?;
    }
    write_file(&cert_path, pem, 0o644)?;
    Ok(Issued {
        identity: identity.to_string(),
        cert: cert_path,
        key: key_path,
        ca: dir.join("ca.crt"),
        not_after: not_after(options),
    })
}

/// A certificate with any names and usages, to test what the checks refuse.
#[cfg(test)]
pub(super) fn issue_any(dir: &Path, file: &str, names: &[String], options: IssueOptions) -> Result<Issued, PkiError> {
    let authority = Authority::load(dir)?;
    let identity = Identity::Authority(authority.vault);
    let mut params = leaf(&identity, file, ExtendedKeyUsagePurpose::ServerAuth, options)?;
    params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
    params.subject_alt_names.clear();
    for name in names {
        let name = name.as_str();
        params.subject_alt_names.push(match name.contains("://") {
            true => SanType::URI(name.try_into()?),
            false => SanType::DnsName(name.try_into()?),
        });
    }
    params.subject_alt_names.push(host_name("127.0.0.1")?);
    authority.issue(dir, file, &identity, &params, options)
}

/// Writes beside the target and renames, so that no reader sees half a file and no older mode survives.
fn write_file(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    let failed = |source| PkiError::Io { what: "written", path: path.to_owned(), source };
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let draft = PathBuf::from(draft);
    // Left behind by a run that was killed.
    let _ = std::fs::remove_file(&draft);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&draft).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    std::fs::rename(&draft, path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const NOW: Micros = Micros(1_800_000_000_000_000);
    const OPTIONS: IssueOptions = IssueOptions { now: NOW, days: 30, force: false, keep_key: false };

    fn facts(path: &Path) -> CertificateFacts {
        let pem = std::fs::read(path).expect("certificate file");
        CertificateFacts::read(&CertificateDer::from_pem_slice(&pem).expect("pem")).expect("certificate")
    }

    #[test]
    fn issued_certificates_name_their_holder_and_end_on_their_day() {
        let dir = tempfile::tempdir().expect("dir");
        let vault = Id128([7; 16]);
        let ca = init(dir.path(), vault, OPTIONS).expect("authority");
        assert_eq!(facts(&ca.cert).identity, Ok(Identity::Authority(vault)));
        let disks = [DiskId::new("d2").expect("name"), DiskId::new("d1").expect("name")];
        let agent = issue_agent(dir.path(), "a1", &disks, OPTIONS).expect("agent");
        let found = facts(&agent.cert);
        let Ok(Identity::Agent(identity)) = found.identity else { panic!("{found:?}") };
        assert_eq!((identity.vault, identity.agent.as_str()), (vault, "a1"));
        assert!(identity.disks.iter().map(DiskId::as_str).eq(["d1", "d2"]));
        assert_eq!(found.not_after, Micros(NOW.0 + 30 * 24 * 3600 * 1_000_000));
        let gateway = issue_gateway(dir.path(), "g1", &["localhost".into(), "::1".into()], OPTIONS).expect("gateway");
        assert_eq!(facts(&gateway.cert).identity.map(|identity| identity.to_string()), Ok(gateway.identity));
    }

    #[test]
    fn keys_are_for_their_owner_only_and_nothing_is_overwritten_unasked() {
        let dir = tempfile::tempdir().expect("dir");
        let ca = init(dir.path(), Id128([1; 16]), OPTIONS).expect("authority");
        let mode = std::fs::metadata(&ca.key).expect("key").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let before = std::fs::read(&ca.key).expect("key");
        assert!(matches!(init(dir.path(), Id128([1; 16]), OPTIONS), Err(PkiError::Exists { .. })));
        assert_eq!(std::fs::read(&ca.key).expect("key"), before);
        init(dir.path(), Id128([1; 16]), IssueOptions { force: true, ..OPTIONS }).expect("forced");
        assert_ne!(std::fs::read(&ca.key).expect("key"), before);
    }

    #[test]
    fn a_key_goes_on_with_a_new_certificate_and_one_that_is_not_there_does_not() {
        let dir = tempfile::tempdir().expect("dir");
        init(dir.path(), Id128([1; 16]), OPTIONS).expect("authority");
        let disk = [DiskId::new("d").expect("name")];
        let keep = IssueOptions { keep_key: true, days: 60, ..OPTIONS };
        let missing = issue_agent(dir.path(), "a", &disk, keep);
        assert!(matches!(missing, Err(PkiError::Io { what: "read", .. })), "{missing:?}");
        let first = issue_agent(dir.path(), "a", &disk, OPTIONS).expect("agent");
        let (key, cert) = (std::fs::read(&first.key).expect("key"), std::fs::read(&first.cert).expect("certificate"));
        let second = issue_agent(dir.path(), "a", &disk, keep).expect("agent");
        assert_eq!(std::fs::read(&second.key).expect("key"), key);
        assert_ne!(std::fs::read(&second.cert).expect("certificate"), cert);
        assert_eq!(facts(&second.cert).not_after, second.not_after);
    }

    #[test]
    fn what_cannot_be_issued_is_refused_by_name() {
        let dir = tempfile::tempdir().expect("dir");
        let disk = [DiskId::new("d").expect("name")];
        let missing = issue_agent(dir.path(), "a", &disk, OPTIONS);
        assert!(matches!(missing, Err(PkiError::NoAuthority { .. })), "{missing:?}");
        init(dir.path(), Id128([1; 16]), OPTIONS).expect("authority");
        assert!(matches!(issue_agent(dir.path(), "A", &disk, OPTIONS), Err(PkiError::Name(_))));
        assert!(matches!(issue_agent(dir.path(), "a", &[], OPTIONS), Err(PkiError::Nothing { .. })));
        assert!(matches!(issue_gateway(dir.path(), "g", &[], OPTIONS), Err(PkiError::Nothing { .. })));
        for host in ["host:9443", "a b", ""] {
            let refused = issue_gateway(dir.path(), "g", &[host.into()], OPTIONS);
            assert!(matches!(refused, Err(PkiError::Host { .. })), "{host}: {refused:?}");
        }
        let forever = issue_agent(dir.path(), "a", &disk, IssueOptions { days: 0, ..OPTIONS });
        assert!(matches!(forever, Err(PkiError::Nothing { .. })));
    }
}
