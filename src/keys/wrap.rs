//! Wrapping a 32-byte secret to recovery recipients, in the `age` format.
//!
//! An age file does not tell for whom it is: that is its privacy, and a riddle for an operator with four key files. So
//! the wrapped text carries the recipients, which are public in the vault anyway, as comment lines in front:
//!
//! ```text
//! # wrapped to age1…
//! -----BEGIN AGE ENCRYPTED FILE-----
//! …
//! ```
//!
//! Without its comment lines it is a plain armored age file, and the `age` tool opens it.

use std::fmt;
use std::io::{Read, Write};
use std::path::Path;
use std::str::FromStr;

use age::secrecy::ExposeSecret;
use zeroize::Zeroizing;

use super::file::{self, KeyFileError};
use super::locked::Passphrase;
use super::{RandomError, SECRET_BYTES};
use crate::fault::{Classify, Fault};

const WRAPPED_TO: &str = "# wrapped to ";

/// The public half of a recovery identity: `age1…`. Gateways hold only this.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Recipient(age::x25519::Recipient);

/// A text that is no recovery recipient.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRecipientError {
    /// A secret was given where a public key belongs.
    #[error("this is a recovery identity, which is secret: give its public key (age1…) instead")]
    Identity,
    /// Anything else.
    #[error("{text:?} is not a recovery recipient: expected age1 and 58 more characters")]
    Text {
        /// The refused text, cut to 80 characters.
        text: String,
    },
}

impl Classify for InvalidRecipientError {
    fn fault(&self) -> Fault {
        Fault::Reject
    }
}

impl FromStr for Recipient {
    type Err = InvalidRecipientError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let text = s.trim();
        // Never echo a secret into an error text.
        if text.to_ascii_uppercase().starts_with("AGE-SECRET-KEY-") {
            return Err(InvalidRecipientError::Identity);
        }
        text.parse().map(Self).map_err(|_: &str| InvalidRecipientError::Text { text: text.chars().take(80).collect() })
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl serde::Serialize for Recipient {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Recipient {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The secret half: opens every key of the vault. Held by the operator, never by a gateway.
#[derive(Clone)]
pub struct Identity(age::x25519::Identity);

impl Identity {
    /// A new random identity.
    #[must_use]
    pub fn generate() -> Self {
        Self(age::x25519::Identity::generate())
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        text.parse().ok().map(Self)
    }

    /// Its public half.
    #[must_use]
    pub fn recipient(&self) -> Recipient {
        Recipient(self.0.to_public())
    }

    /// Reads an identity file as `age-keygen` or [`Identity::write`] made it.
    ///
    /// # Errors
    /// [`KeyFileError`] if the file cannot be read or holds something else; one of which [`KeyFileError::is_locked`] is true
    /// wants [`Identity::unlock`].
    pub fn read(path: &Path) -> Result<Self, KeyFileError> {
        file::read_identity(path)
    }

    /// Reads an identity file that a passphrase locks, as `age -p` or [`Identity::write_locked`] made it. Takes a second or more, on
    /// purpose.
    ///
    /// # Errors
    /// [`KeyFileError`] if the passphrase is another one, or as [`Identity::read`].
    pub fn unlock(path: &Path, passphrase: &Passphrase) -> Result<Self, KeyFileError> {
        file::unlock_identity(path, passphrase)
    }

    /// Writes the identity to a new file with mode 0600, in the form of `age-keygen`.
    ///
    /// # Errors
    /// [`KeyFileError`] if the file exists or cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), KeyFileError> {
        file::write_new(path, &self.text())
    }

    /// The same, locked by a passphrase. `age` and `rage` open it too.
    ///
    /// # Errors
    /// As [`Identity::write`].
    pub fn write_locked(&self, path: &Path, passphrase: &Passphrase) -> Result<(), KeyFileError> {
        file::write_locked(path, &self.text(), passphrase)
    }

    fn text(&self) -> Zeroizing<String> {
        let secret = self.0.to_string();
        Zeroizing::new(format!("# public key: {}\n{}\n", self.recipient(), secret.expose_secret()))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity(of {})", self.recipient())
    }
}

/// Why a secret was not wrapped.
#[derive(Debug, thiserror::Error)]
pub enum WrapError {
    /// Nobody could ever open it.
    #[error("no recovery recipient is given: what is wrapped to nobody is lost")]
    NoRecipient,
    /// The age library failed.
    #[error("wrapping a key failed")]
    Age(#[source] std::io::Error),
    /// No random bytes.
    #[error(transparent)]
    Random(#[from] RandomError),
}

impl Classify for WrapError {
    fn fault(&self) -> Fault {
        match self {
            Self::NoRecipient => Fault::Reject,
            Self::Age(_) | Self::Random(_) => Fault::Fatal,
        }
    }
}

/// Why a wrapped secret was not opened.
#[derive(Debug, thiserror::Error)]
pub enum UnwrapError {
    /// It was wrapped to others.
    #[error("wrapped to {}, but the identity given is that of {given}", .wrapped_to.join(", "))]
    OtherRecipient {
        /// The recipients that the object names.
        wrapped_to: Vec<String>,
        /// The recipient of the identity that was tried.
        given: String,
    },
    /// It is no wrapped secret, or altered.
    #[error("the wrapped key is damaged")]
    Damaged(#[source] age::DecryptError),
    /// It opened, but holds no 32-byte secret.
    #[error("the wrapped key holds {found_bytes} bytes instead of 32")]
    Length {
        /// Bytes found (at most 33 are read).
        found_bytes: usize,
    },
}

impl Classify for UnwrapError {
    fn fault(&self) -> Fault {
        match self {
            Self::OtherRecipient { .. } => Fault::Reject,
            Self::Damaged(_) | Self::Length { .. } => Fault::Corrupt,
        }
    }
}

/// Wraps a secret to every recipient; any one of them opens it.
///
/// # Errors
/// [`WrapError::NoRecipient`] for an empty list; others if the library or the random generator fails.
pub fn wrap(recipients: &[Recipient], secret: &[u8; SECRET_BYTES]) -> Result<String, WrapError> {
    let encryptor = age::Encryptor::with_recipients(recipients.iter().map(|recipient| &recipient.0 as _))
        .map_err(|_| WrapError::NoRecipient)?;
    let mut text = Vec::new();
    for recipient in recipients {
        text.extend_from_slice(format!("{WRAPPED_TO}{recipient}\n").as_bytes());
    }
    let write = |text: &mut Vec<u8>| -> std::io::Result<()> {
        let armor = age::armor::ArmoredWriter::wrap_output(text, age::armor::Format::AsciiArmor)?;
        let mut writer = encryptor.wrap_output(armor)?;
        writer.write_all(secret)?;
        writer.finish()?.finish()?;
        Ok(())
    };
    write(&mut text).map_err(WrapError::Age)?;
    String::from_utf8(text).map_err(|error| WrapError::Age(std::io::Error::other(error)))
}

/// The recipients that a wrapped text names. Only a hint: the truth is whether an identity opens it.
#[must_use]
pub fn wrapped_to(text: &str) -> Vec<String> {
    text.lines().filter_map(|line| line.strip_prefix(WRAPPED_TO)).map(|name| name.trim().to_owned()).collect()
}

/// Opens what [`wrap`] made.
///
/// # Errors
/// [`UnwrapError::OtherRecipient`] names for whom it was wrapped; the others say that it is damaged.
pub fn unwrap(identity: &Identity, text: &str) -> Result<Zeroizing<[u8; SECRET_BYTES]>, UnwrapError> {
    let armored: String = text.lines().filter(|line| !line.starts_with('#')).flat_map(|line| [line, "\n"]).collect();
    let open = || -> Result<Zeroizing<Vec<u8>>, age::DecryptError> {
        let decryptor = age::Decryptor::new_buffered(age::armor::ArmoredReader::new(armored.as_bytes()))?;
        let reader = decryptor.decrypt(std::iter::once(&identity.0 as _))?;
        let mut secret = Zeroizing::new(Vec::with_capacity(SECRET_BYTES + 1));
        reader.take(SECRET_BYTES as u64 + 1).read_to_end(&mut secret)?;
        Ok(secret)
    };
    let secret = open().map_err(|error| match error {
        age::DecryptError::NoMatchingKeys => {
            UnwrapError::OtherRecipient { wrapped_to: wrapped_to(text), given: identity.recipient().to_string() }
        }
        other => UnwrapError::Damaged(other),
    })?;
    let mut out = Zeroizing::new([0; SECRET_BYTES]);
    if secret.len() != SECRET_BYTES {
        return Err(UnwrapError::Length { found_bytes: secret.len() });
    }
    out.copy_from_slice(&secret);
    Ok(out)
}
