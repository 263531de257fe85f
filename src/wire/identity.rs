//! Who the other side is: read from the URI names of a certificate that TLS has verified.
//!
//! ```text
//! spiffe://<vault id>                          the private authority of one vault
//! spiffe://<vault id>/gateway/<id>             a gateway
//! spiffe://<vault id>/agent/<id>               an agent …
//! spiffe://<vault id>/agent/<id>/disk/<disk>   … and each disk that it may write
//! ```
//!
//! A certificate has exactly one role in exactly one vault; anything else is no identity, so that nobody can choose
//! among several. Names in other schemes are left alone.

use std::fmt;
use std::net::IpAddr;

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::fault::{Classify, Fault};
use crate::types::{self, DiskId, Id128, Micros};

/// An agent as its certificate names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentIdentity {
    /// The vault that it protects into.
    pub vault: Id128,
    /// Its id.
    pub agent: String,
    /// The disks that it may write, sorted.
    pub disks: Vec<DiskId>,
}

impl AgentIdentity {
    /// Whether this agent may write `disk`.
    #[must_use]
    pub fn may_write(&self, disk: &DiskId) -> bool {
        self.disks.binary_search(disk).is_ok()
    }
}

/// A gateway as its certificate names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayIdentity {
    /// The vault that it writes.
    pub vault: Id128,
    /// Its id.
    pub gateway: String,
}

/// What a certificate says its holder is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// The authority that issues the certificates of a vault.
    Authority(Id128),
    /// An agent.
    Agent(AgentIdentity),
    /// A gateway.
    Gateway(GatewayIdentity),
}

impl Identity {
    /// The vault that it belongs to.
    #[must_use]
    pub const fn vault(&self) -> Id128 {
        match self {
            Self::Authority(vault) => *vault,
            Self::Agent(agent) => agent.vault,
            Self::Gateway(gateway) => gateway.vault,
        }
    }

    /// Every URI that names this identity, the first one its own name.
    #[must_use]
    pub fn uris(&self) -> Vec<String> {
        let own = self.to_string();
        let disks = match self {
            Self::Agent(agent) => agent.disks.as_slice(),
            Self::Authority(_) | Self::Gateway(_) => &[],
        };
        let disk_uris: Vec<String> = disks.iter().map(|disk| format!("{own}/disk/{disk}")).collect();
        std::iter::once(own).chain(disk_uris).collect()
    }

    /// Reads the identity from URI names.
    ///
    /// # Errors
    /// [`IdentityError`] if there is none, or more than one.
    pub fn from_uris<'a>(uris: impl IntoIterator<Item = &'a str>) -> Result<Self, IdentityError> {
        let mut found: Option<Self> = None;
        let mut disks = Vec::new();
        for uri in uris {
            let Some(path) = uri.strip_prefix("spiffe://") else { continue };
            let malformed = || IdentityError::Malformed { uri: uri.chars().take(200).collect() };
            let (identity, disk) = parse_path(path).ok_or_else(malformed)?;
            if found.as_ref().is_some_and(|earlier| *earlier != identity) {
                return Err(IdentityError::Several);
            }
            found = Some(identity);
            disks.extend(disk);
        }
        let mut identity = found.ok_or(IdentityError::None)?;
        if let Self::Agent(agent) = &mut identity {
            disks.sort();
            disks.dedup();
            agent.disks = disks;
        }
        Ok(identity)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Authority(vault) => write!(f, "spiffe://{vault}"),
            Self::Agent(agent) => write!(f, "spiffe://{}/agent/{}", agent.vault, agent.agent),
            Self::Gateway(gateway) => write!(f, "spiffe://{}/gateway/{}", gateway.vault, gateway.gateway),
        }
    }
}

fn parse_path(path: &str) -> Option<(Identity, Option<DiskId>)> {
    let parts: Vec<&str> = path.split('/').collect();
    let vault: Id128 = parts.first()?.parse().ok()?;
    let name = |name: &str| types::check_name(name).is_ok().then(|| name.to_owned());
    let agent = |id: &str| Some(Identity::Agent(AgentIdentity { vault, agent: name(id)?, disks: Vec::new() }));
    match parts[1..] {
        [] => Some((Identity::Authority(vault), None)),
        ["gateway", id] => Some((Identity::Gateway(GatewayIdentity { vault, gateway: name(id)? }), None)),
        ["agent", id] => Some((agent(id)?, None)),
        ["agent", id, "disk", disk] => Some((agent(id)?, Some(DiskId::new(disk).ok()?))),
        _ => None,
    }
}

/// Why a certificate holds no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The bytes are no X.509 certificate.
    #[error("not an X.509 certificate")]
    Certificate,
    /// No URI name of the spiffe scheme.
    #[error(
        "the certificate names no identity (no URI spiffe://<vault>/agent/<id> or spiffe://<vault>/gateway/<id>); \
         issue one with `tidegate pki issue`"
    )]
    None,
    /// Names of several vaults, roles or ids.
    #[error("the certificate names several identities; one certificate is for one agent or one gateway of one vault")]
    Several,
    /// A spiffe name of another form.
    #[error("the certificate names {uri:?}, which is not spiffe://<vault>/agent/<id>[/disk/<disk>] or …/gateway/<id>")]
    Malformed {
        /// The refused name, cut to 200 characters.
        uri: String,
    },
}

impl Classify for IdentityError {
    fn fault(&self) -> Fault {
        Fault::Reject
    }
}

/// What texts about a certificate need to know of it.
#[derive(Debug, Clone)]
pub struct CertificateFacts {
    /// Who it says its holder is.
    pub identity: Result<Identity, IdentityError>,
    /// Names and addresses by which others may connect.
    pub names: Vec<String>,
    /// Distinguished name of the issuer.
    pub issuer: String,
    /// Start of its validity.
    pub not_before: Micros,
    /// End of its validity.
    pub not_after: Micros,
}

impl CertificateFacts {
    /// Reads a certificate, verified or not; the facts of one that is not verified are for texts only.
    ///
    /// # Errors
    /// [`IdentityError::Certificate`] if it is none.
    pub fn read(der: &[u8]) -> Result<Self, IdentityError> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| IdentityError::Certificate)?;
        let names = certificate.subject_alternative_name().map_err(|_| IdentityError::Certificate)?;
        let uris = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        let micros = |seconds: i64| Micros(u64::try_from(seconds).unwrap_or(0).saturating_mul(1_000_000));
        let general = names.iter().flat_map(|names| &names.value.general_names);
        let names = general.filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
            _ => None,
        });
        Ok(Self {
            identity: Identity::from_uris(uris),
            names: names.collect(),
            issuer: certificate.issuer().to_string(),
            not_before: micros(certificate.validity().not_before.timestamp()),
            not_after: micros(certificate.validity().not_after.timestamp()),
        })
    }

    /// Its name in texts.
    #[must_use]
    pub fn shown(&self) -> String {
        self.identity.as_ref().map_or_else(|_| "without an identity".to_owned(), |identity| format!("of {identity}"))
    }
}

/// An address as certificates have it: four bytes, or sixteen.
fn address(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const VAULT: &str = "000102030405060708090a0b0c0d0e0f";

    fn parse(uris: &[String]) -> Result<Identity, IdentityError> {
        Identity::from_uris(uris.iter().map(String::as_str))
    }

    #[test]
    fn an_identity_is_read_back_from_its_uris() {
        let disks = vec![DiskId::new("d1").expect("name"), DiskId::new("d2").expect("name")];
        let vault = VAULT.parse().expect("id");
        for identity in [
            Identity::Authority(vault),
            Identity::Gateway(GatewayIdentity { vault, gateway: "g1".into() }),
            Identity::Agent(AgentIdentity { vault, agent: "a1".into(), disks }),
        ] {
            assert_eq!(parse(&identity.uris()), Ok(identity));
        }
    }

    #[test]
    fn a_certificate_of_two_roles_vaults_or_agents_has_no_identity() {
        let base = format!("spiffe://{VAULT}/agent/a1");
        let other_vault = "f".repeat(32);
        for second in [
            format!("spiffe://{VAULT}/gateway/a1"),
            format!("spiffe://{VAULT}/agent/a2/disk/d1"),
            format!("spiffe://{other_vault}/agent/a1"),
            format!("spiffe://{VAULT}"),
        ] {
            assert_eq!(parse(&[base.clone(), second.clone()]), Err(IdentityError::Several), "{second}");
        }
    }

    #[test]
    fn names_that_are_almost_right_are_refused() {
        for path in [
            "agent",
            "agent/A",
            "agent/a/disk",
            "agent/a/disk/..",
            "agent/a/disk/d/x",
            "gateway/g/disk/d",
            "agent//disk/d",
        ] {
            let uri = format!("spiffe://{VAULT}/{path}");
            assert!(matches!(parse(&[uri]), Err(IdentityError::Malformed { .. })), "{path}");
        }
        assert_eq!(parse(&["https://example.invalid/".into()]), Err(IdentityError::None));
        assert!(matches!(parse(&["spiffe://example.org/agent/a".into()]), Err(IdentityError::Malformed { .. })));
    }
}
