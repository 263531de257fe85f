//! What an agent signs, so that neither a gateway nor whoever writes to the store can rewrite a disk's history or drop its end unseen.
//!
//! Seals, MACs and the chain keep accidents out, and strangers. A gateway has the catalog key and its lanes' keys: it can make
//! records, seal them, and chain them to what it likes. What it does not have is the private key of an agent's certificate. So
//! the agent signs each barrier with that key, and with it all records before, because it signs the chain:
//!
//! ```text
//!  records ─► chain before ─┐
//!  kind, seq, label, group ─┼─► signature ─► block in the barrier's table ─► digest ─► chain ─► next records
//!  newest head it was told ─┘
//! ```
//!
//! - Nothing that was signed fits another place: the text names vault, disk, epoch and number, and the chain before them.
//! - The *head* says what the agent was told to be vaulted when it signed. So a history that ends or forks below it, or has a hole
//!   there, was shortened by somebody. Of what was vaulted after the newest signature in the vault only the agent itself can
//!   tell: see [`heads`].
//! - A signature costs about as much as hashing 50 KiB and is made for barriers only, outside the guest's path.
//!
//! Not owned here: when a barrier is made (the agent), keeping certificates (the vault), judging a history (`restore::verify`).
//! A gateway carries a signed barrier as any other record and checks nothing of it.
//!
//! The block, in place of a barrier's extent table, in rows of 16 bytes, padded by zeroes (all integers little endian):
//!
//! ```text
//!   0  scheme, the number that TLS gives it  u16      24  chain at that head, 32 bytes
//!   2  bytes of the signature                u16      56  chain before this barrier, 32 bytes
//!   4  zero                                  u32      88  BLAKE3 of the signer's certificate, 32 bytes
//!   8  epoch of the newest head, 0: none     u64     120  the signature; of ECDSA r ‖ s
//!  16  seq of it                             u64
//! ```
//!
//! Signed are `tidegate 1 signed barrier`, a line end, the vault's id, the length (u8) and bytes of the disk's name, the record's
//! bytes 0 to 63, the block's bytes 0 to 119, and the barrier's name.

pub mod certificate;
pub mod heads;

use std::ops::RangeInclusive;
use std::sync::Arc;

use ring::signature::{ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, VerificationAlgorithm};
use rustls::SignatureScheme;
use rustls::sign::{CertifiedKey, SigningKey};

use crate::mutants::{self, Mutant};
use crate::types::{Chain, Digest, DiskId, EXTENT_BYTES, Epoch, Id128, Micros, PointId, RecordHead, RecordView, Seq};
use crate::wire::identity::CertificateFacts;

pub use certificate::{AgentCertificate, Authority, Refused};

/// Bytes of the block before the signature.
pub(crate) const FIXED_BYTES: usize = 120;
/// What a signature is for, so that nothing else that the key signs can pass as one.
const PURPOSE: &[u8] = b"tidegate 1 signed barrier\n";
/// Bytes of a head that are signed: all but digest and chain, which come after the signature.
const HEAD_SIGNED_BYTES: usize = 64;

/// How a barrier is signed: the kinds of keys that have short signatures.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scheme {
    /// ECDSA over P-256 with SHA-256: what `tidegate pki` makes.
    P256,
    /// ECDSA over P-384 with SHA-384.
    P384,
    /// Ed25519.
    Ed25519,
}

impl Scheme {
    /// Every scheme.
    pub const ALL: [Self; 3] = [Self::P256, Self::P384, Self::Ed25519];

    const fn tls(self) -> SignatureScheme {
        match self {
            Self::P256 => SignatureScheme::ECDSA_NISTP256_SHA256,
            Self::P384 => SignatureScheme::ECDSA_NISTP384_SHA384,
            Self::Ed25519 => SignatureScheme::ED25519,
        }
    }

    fn number(self) -> u16 {
        u16::from(self.tls())
    }

    const fn signature_bytes(self) -> usize {
        match self {
            Self::P256 | Self::Ed25519 => 64,
            Self::P384 => 96,
        }
    }

    fn verifier(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::P256 => &ECDSA_P256_SHA256_FIXED,
            Self::P384 => &ECDSA_P384_SHA384_FIXED,
            Self::Ed25519 => &ED25519,
        }
    }

    /// Rows of the block.
    const fn rows(self) -> usize {
        (FIXED_BYTES + self.signature_bytes()).div_ceil(EXTENT_BYTES)
    }
}

/// The newest record that an agent was told to be vaulted, and the chain after it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// The record.
    pub at: PointId,
    /// The chain after it.
    pub chain: Chain,
}

/// A barrier's block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Signed {
    /// How it is signed.
    pub scheme: Scheme,
    /// What the agent was told to be vaulted.
    pub told: Option<Head>,
    /// The chain before the barrier, as the agent knows it.
    pub before: Chain,
    /// Digest of the signer's certificate.
    pub certificate: Digest,
    /// The signature.
    pub signature: Vec<u8>,
}

/// Bytes in place of a block that are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature's {field} is out of range")]
pub struct BlockError {
    /// Which field.
    pub field: &'static str,
}

impl Signed {
    fn fixed(&self) -> [u8; FIXED_BYTES] {
        let mut out = [0; FIXED_BYTES];
        out[0..2].copy_from_slice(&self.scheme.number().to_le_bytes());
        out[2..4].copy_from_slice(&(self.scheme.signature_bytes() as u16).to_le_bytes());
        if let Some(told) = &self.told {
            out[8..16].copy_from_slice(&told.at.epoch.0.to_le_bytes());
            out[16..24].copy_from_slice(&told.at.seq.0.to_le_bytes());
            out[24..56].copy_from_slice(&told.chain.0);
        }
        out[56..88].copy_from_slice(&self.before.0);
        out[88..120].copy_from_slice(&self.certificate.0);
        out
    }

    /// Encodes the block.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.fixed().to_vec();
        out.extend_from_slice(&self.signature);
        out.resize(self.scheme.rows() * EXTENT_BYTES, 0);
        out
    }

    /// Decodes a block; there is one encoding of each.
    ///
    /// # Errors
    /// [`BlockError`] names the field.
    pub fn decode(block: &[u8]) -> Result<Self, BlockError> {
        let wrong = |field| BlockError { field };
        let fixed: &[u8; FIXED_BYTES] = block.first_chunk().ok_or(wrong("length"))?;
        let number = u16::from_le_bytes(array(fixed, 0));
        let scheme = Scheme::ALL.into_iter().find(|scheme| scheme.number() == number).ok_or(wrong("scheme"))?;
        let signature_bytes = scheme.signature_bytes();
        if usize::from(u16::from_le_bytes(array(fixed, 2))) != signature_bytes
            || block.len() != scheme.rows() * EXTENT_BYTES
        {
            return Err(wrong("length"));
        }
        let (signature, rest) = block[FIXED_BYTES..].split_at(signature_bytes);
        if fixed[4..8] != [0; 4] || rest.iter().any(|&byte| byte != 0) {
            return Err(wrong("padding"));
        }
        let at = PointId {
            epoch: Epoch(u64::from_le_bytes(array(fixed, 8))),
            seq: Seq(u64::from_le_bytes(array(fixed, 16))),
        };
        let told = match (at.epoch.0, at.seq.0) {
            (0, 0) if fixed[24..56] == [0; 32] => None,
            (0, _) | (_, 0) => return Err(wrong("head")),
            _ => Some(Head { at, chain: Chain(array(fixed, 24)) }),
        };
        let (before, certificate) = (Chain(array(fixed, 56)), Digest(array(fixed, 88)));
        Ok(Self { scheme, told, before, certificate, signature: signature.to_vec() })
    }

    /// The block of a record; none if it is not signed.
    #[must_use]
    pub fn of(view: &RecordView<'_>) -> Option<Result<Self, BlockError>> {
        view.head.is_signed().then(|| Self::decode(view.table))
    }

    /// Whether the holder of `certificate` signed this barrier of `disk`.
    #[must_use]
    pub fn holds(&self, certificate: &AgentCertificate, disk: &DiskId, view: &RecordView<'_>) -> bool {
        let text = text(certificate.agent.vault, disk, &view.head, &self.fixed(), view.payload);
        let key = ring::signature::UnparsedPublicKey::new(self.scheme.verifier(), certificate.public_key());
        let holds = key.verify(&text, &self.signature).is_ok() || mutants::on(Mutant::SignatureUnchecked);
        self.certificate == certificate.digest && holds
    }
}

fn array<const N: usize>(bytes: &[u8; FIXED_BYTES], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

/// What is signed.
fn text(vault: Id128, disk: &DiskId, head: &RecordHead, fixed: &[u8; FIXED_BYTES], name: &[u8]) -> Vec<u8> {
    let disk = disk.as_str().as_bytes();
    [PURPOSE, &vault.0, &[disk.len() as u8], disk, &head.encode()[..HEAD_SIGNED_BYTES], fixed, name].concat()
}

/// Signs barriers with the key of an agent's certificate.
#[derive(Debug)]
pub struct Signer {
    key: Arc<dyn SigningKey>,
    scheme: Scheme,
    vault: Id128,
    certificate: Digest,
    valid: RangeInclusive<Micros>,
}

/// Why a barrier was not signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The key failed.
    #[error("the agent's key does not sign")]
    Key(#[from] rustls::Error),
    /// The certificate is over, or not valid yet: what is signed now would be refused.
    #[error("the agent's certificate is not valid at {0}: issue another one with `tidegate pki issue`")]
    Time(Micros),
    /// The key gave something else than a signature of its kind.
    #[error("the agent's key gave no signature of its kind")]
    Form,
}

impl Signer {
    /// With the key of a certificate of `vault`; none if keys of its kind have signatures too long for a barrier (RSA).
    #[must_use]
    pub fn new(key: &CertifiedKey, vault: Id128) -> Option<Self> {
        let certificate = Digest(blake3::hash(key.cert.first()?).into());
        let scheme = Scheme::ALL.into_iter().find(|scheme| key.key.choose_scheme(&[scheme.tls()]).is_some())?;
        let facts = CertificateFacts::read(key.cert.first()?).ok()?;
        let valid = facts.not_before..=facts.not_after;
        Some(Self { key: Arc::clone(&key.key), scheme, vault, certificate, valid })
    }

    /// Signs a barrier that stands after `before`: its block. The head's count of rows is set, digest and chain are not.
    ///
    /// # Errors
    /// [`SignError`]; the head is then as it was.
    pub fn sign(
        &self,
        disk: &DiskId,
        head: &mut RecordHead,
        name: &[u8],
        before: Chain,
        told: Option<Head>,
    ) -> Result<Vec<u8>, SignError> {
        // A session may outlive its certificate. The next signature, by a new one, proves what stands before it.
        if !self.valid.contains(&head.label) {
            return Err(SignError::Time(head.label));
        }
        let rows = self.scheme.rows() as u32;
        let counted = RecordHead { extent_count: rows, ..*head };
        let mut block =
            Signed { scheme: self.scheme, told, before, certificate: self.certificate, signature: Vec::new() };
        let text = text(self.vault, disk, &counted, &block.fixed(), name);
        let signer = self.key.choose_scheme(&[self.scheme.tls()]).ok_or(SignError::Form)?;
        let signature = signer.sign(&text)?;
        block.signature = match self.scheme {
            Scheme::Ed25519 => signature,
            // As TLS has it, its length varies with its content.
            Scheme::P256 | Scheme::P384 => {
                plain_ecdsa(&signature, self.scheme.signature_bytes() / 2).ok_or(SignError::Form)?
            }
        };
        if block.signature.len() != self.scheme.signature_bytes() {
            return Err(SignError::Form);
        }
        head.extent_count = rows;
        Ok(block.encode())
    }
}

/// The two numbers of an ECDSA signature in DER, each in `width` bytes.
fn plain_ecdsa(der: &[u8], width: usize) -> Option<Vec<u8>> {
    // Both lengths fit one byte: the longest signature has 104.
    let [0x30, length, numbers @ ..] = der else { return None };
    let (r, rest) = number(numbers, width)?;
    let (s, rest) = number(rest, width)?;
    (usize::from(*length) == numbers.len() && rest.is_empty()).then(|| [r, s].concat())
}

fn number(der: &[u8], width: usize) -> Option<(Vec<u8>, &[u8])> {
    let [0x02, length, rest @ ..] = der else { return None };
    let (digits, rest) = rest.split_at_checked(usize::from(*length))?;
    let zeroes = digits.iter().take_while(|&&digit| digit == 0).count();
    let digits = &digits[zeroes..];
    let mut out = vec![0; width.checked_sub(digits.len())?];
    out.extend_from_slice(digits);
    Some((out, rest))
}

const _: () =
    assert!(Scheme::P384.rows() == crate::limits::SIGNATURE_ROWS_MAX, "the longest block is what a record may have");

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
