//! Certificates for the simulated machines.
//!
//! Ed25519 instead of the product's P-256: its signatures have one length, so that datagrams have the same sizes in every
//! run although their bytes differ.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ED25519, SanType, SerialNumber,
};
use tidegate::types::{DiskId, Id128};
use tidegate::wire::{AgentIdentity, GatewayIdentity, Identity, TlsFiles};
use time::OffsetDateTime;

use crate::Failed;

/// The authority of one run.
pub struct Authority {
    dir: PathBuf,
    vault: Id128,
    issuer: Issuer<'static, KeyPair>,
    serial: u64,
}

fn params(identity: &Identity, serial: u64) -> Result<CertificateParams, Failed> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "simulated");
    params.serial_number = Some(SerialNumber::from(0x1000 + serial));
    params.not_before = OffsetDateTime::UNIX_EPOCH;
    params.not_after = OffsetDateTime::UNIX_EPOCH + time::Duration::days(36_500);
    for uri in identity.uris() {
        params.subject_alt_names.push(SanType::URI(uri.try_into()?));
    }
    Ok(params)
}

impl Authority {
    /// Makes the authority of `vault`; its files stand in `dir`.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn new(dir: &Path, vault: Id128) -> Result<Self, Failed> {
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let mut params = params(&Identity::Authority(vault), 0)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(&key)?;
        std::fs::write(dir.join("ca.crt"), certificate.pem())?;
        let issuer = Issuer::from_ca_cert_der(certificate.der(), key)?;
        Ok(Self { dir: dir.to_owned(), vault, issuer, serial: 0 })
    }

    fn issue(&mut self, name: &str, identity: &Identity, host: Option<&str>) -> Result<TlsFiles, Failed> {
        self.serial += 1;
        let mut params = params(identity, self.serial)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let usage =
            if host.is_some() { ExtendedKeyUsagePurpose::ServerAuth } else { ExtendedKeyUsagePurpose::ClientAuth };
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        if let Some(host) = host {
            params.subject_alt_names.push(SanType::DnsName(host.try_into()?));
        }
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let file = |end: &str| self.dir.join(format!("{name}.{end}"));
        let files = TlsFiles { ca: self.dir.join("ca.crt"), cert: file("crt"), key: file("key") };
        std::fs::write(&files.cert, certificate.pem())?;
        std::fs::write(&files.key, key.serialize_pem())?;
        Ok(files)
    }

    /// A certificate for an agent.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn agent(&mut self, name: &str, disks: &[DiskId]) -> Result<TlsFiles, Failed> {
        let disks = disks.to_vec();
        let identity = Identity::Agent(AgentIdentity { vault: self.vault, agent: name.to_owned(), disks });
        self.issue(name, &identity, None)
    }

    /// A certificate for a gateway that is reached by its name.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn gateway(&mut self, name: &str) -> Result<TlsFiles, Failed> {
        let identity = Identity::Gateway(GatewayIdentity { vault: self.vault, gateway: name.to_owned() });
        self.issue(name, &identity, Some(name))
    }
}
