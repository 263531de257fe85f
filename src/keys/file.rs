//! Key files: one line of text each, so that they survive copy, paste and print.
//!
//! A catalog key is `tidegate-catalog-key-1 <kid> <64 hex digits>`; a recovery identity is what `age-keygen` writes, so
//! that the `age` tool itself can open what was wrapped to it. Lines that start with `#` are comments in both. An identity may be
//! locked by a passphrase (see `locked`).

use std::io::Write;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::locked::{self, Passphrase};
use super::{CatalogKey, Identity, KeyId, Recipient};
use crate::fault::{Classify, Fault};
use crate::types::parse_hex;

/// First word of a catalog key file: format and version.
pub(super) const CATALOG_KEY_FORMAT: &str = "tidegate-catalog-key-1";
/// How every age identity starts.
const IDENTITY_PREFIX: &str = "AGE-SECRET-KEY-1";
/// Largest key file that is read: a few lines, with room for comments.
pub(super) const KEY_FILE_BYTES_MAX: u64 = 64 << 10;

/// A key file that could not be read, written or understood.
#[derive(Debug, thiserror::Error)]
#[error("key file {}", path.display())]
pub struct KeyFileError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    #[source]
    pub problem: KeyFileProblem,
}

/// What is wrong with a key file.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileProblem {
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// It holds another kind of key.
    #[error("holds {found}, but {expected} is needed here")]
    OtherKind {
        /// What it holds.
        found: &'static str,
        /// What was asked for.
        expected: &'static str,
    },
    /// It holds nothing that looks like a key.
    #[error("does not hold {expected}")]
    NotAKey {
        /// What was asked for.
        expected: &'static str,
    },
    /// It is locked, and no passphrase was given.
    #[error("is locked by a passphrase")]
    Locked,
    /// The passphrase is another one.
    #[error("does not open with this passphrase")]
    WrongPassphrase,
    /// It was made to cost more than anybody should pay.
    #[error("asks for 2^{required} steps of work for its passphrase; at most 2^{most} are done", most = locked::WORK_MAX)]
    TooMuchWork {
        /// The power of two that it asks for.
        required: u8,
    },
    /// It is locked by keys instead of a passphrase.
    #[error("is encrypted to other keys, not locked by a passphrase: open it with `age -d` first")]
    ForOthers,
    /// The age library could not read it.
    #[error("is damaged")]
    Age(#[source] age::DecryptError),
    /// The key does not match its own id: a digit was changed.
    #[error("is damaged: the key does not belong to its id {kid}")]
    Damaged {
        /// The id that the file states.
        kid: KeyId,
    },
}

impl Classify for KeyFileError {
    fn fault(&self) -> Fault {
        match self.problem {
            KeyFileProblem::Damaged { .. } | KeyFileProblem::Age(_) => Fault::Corrupt,
            _ => Fault::Reject,
        }
    }
}

impl KeyFileError {
    /// Whether all that is wrong is that a passphrase is needed.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        matches!(self.problem, KeyFileProblem::Locked)
    }
}

const CATALOG: &str = "a catalog key";
const IDENTITY: &str = "a recovery identity (AGE-SECRET-KEY-1…)";
const RECIPIENTS: &str = "recovery recipients (age1…)";
const LOCKED: &str = "a file that `age` encrypted";

fn kind_of(text: &str) -> Option<&'static str> {
    let line = payload_lines(text).next()?;
    if line.starts_with(CATALOG_KEY_FORMAT) {
        Some(CATALOG)
    } else if line.starts_with(IDENTITY_PREFIX) {
        Some(IDENTITY)
    } else if line.starts_with("age1") {
        Some(RECIPIENTS)
    } else {
        None
    }
}

fn payload_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn not_that(text: &str, expected: &'static str) -> KeyFileProblem {
    match kind_of(text) {
        Some(found) if found != expected => KeyFileProblem::OtherKind { found, expected },
        _ => KeyFileProblem::NotAKey { expected },
    }
}

fn read_bytes(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyFileProblem> {
    let bytes = std::fs::metadata(path)?.len();
    if bytes > KEY_FILE_BYTES_MAX {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "is far too large for a key file").into());
    }
    Ok(Zeroizing::new(std::fs::read(path)?))
}

fn as_text(bytes: &[u8]) -> Result<&str, KeyFileProblem> {
    Ok(std::str::from_utf8(bytes).map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error))?)
}

/// The text of a file that is never locked.
fn read_text(path: &Path, expected: &'static str) -> Result<Zeroizing<String>, KeyFileProblem> {
    let bytes = read_bytes(path)?;
    if locked::is_age_file(&bytes) {
        return Err(KeyFileProblem::OtherKind { found: LOCKED, expected });
    }
    as_text(&bytes).map(|text| Zeroizing::new(text.to_owned()))
}

fn at<T>(path: &Path, result: Result<T, KeyFileProblem>) -> Result<T, KeyFileError> {
    result.map_err(|problem| KeyFileError { path: path.to_owned(), problem })
}

/// Creates `path` with mode 0600 and makes its content durable. An existing file is never touched.
pub(super) fn write_new(path: &Path, text: &str) -> Result<(), KeyFileError> {
    let write = || -> Result<(), KeyFileProblem> {
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        // Without this the name itself may be gone after a power cut, and with it the only copy of the key.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::File::open(folder)?.sync_all()?;
        Ok(())
    };
    at(path, write())
}

pub(crate) fn catalog_key_text(key: &CatalogKey) -> Zeroizing<String> {
    let mut text = Zeroizing::new(format!("{CATALOG_KEY_FORMAT} {} ", key.kid()));
    for byte in key.expose() {
        // Two digits at a time: a formatted copy of the whole secret would stay in memory unwiped.
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
        }
    }
    text.push('\n');
    text
}

pub(crate) fn parse_catalog_key(text: &str) -> Result<CatalogKey, KeyFileProblem> {
    let parse = || {
        let mut words = payload_lines(text).next()?.split_ascii_whitespace();
        let format = words.next()?;
        let (kid, secret) = (words.next()?, words.next()?);
        if format != CATALOG_KEY_FORMAT || words.next().is_some() {
            return None;
        }
        Some((kid.parse::<KeyId>().ok()?, Zeroizing::new(parse_hex(secret)?)))
    };
    let (kid, secret) = parse().ok_or_else(|| not_that(text, CATALOG))?;
    let key = CatalogKey::from_secret(*secret);
    if key.kid() == kid { Ok(key) } else { Err(KeyFileProblem::Damaged { kid }) }
}

pub(super) fn read_catalog_key(path: &Path) -> Result<CatalogKey, KeyFileError> {
    at(path, read_text(path, CATALOG).and_then(|text| parse_catalog_key(&text)))
}

pub(super) fn read_identity(path: &Path) -> Result<Identity, KeyFileError> {
    let read = || {
        let bytes = read_bytes(path)?;
        if locked::is_age_file(&bytes) {
            return Err(KeyFileProblem::Locked);
        }
        parse_identity(as_text(&bytes)?)
    };
    at(path, read())
}

pub(super) fn unlock_identity(path: &Path, passphrase: &Passphrase) -> Result<Identity, KeyFileError> {
    let text = read_bytes(path).and_then(|bytes| locked::unlock(&bytes, passphrase));
    at(path, text.and_then(|text| parse_identity(&text)))
}

/// Writes an identity's text, locked.
pub(super) fn write_locked(path: &Path, text: &str, passphrase: &Passphrase) -> Result<(), KeyFileError> {
    let locked = at(path, locked::lock(text, passphrase))?;
    write_new(path, &locked)
}

pub(crate) fn parse_identity(text: &str) -> Result<Identity, KeyFileProblem> {
    let line = payload_lines(text).find(|line| line.starts_with(IDENTITY_PREFIX));
    line.and_then(Identity::parse).ok_or_else(|| not_that(text, IDENTITY))
}

/// Reads a file of recovery recipients, one `age1…` per line.
///
/// # Errors
/// [`KeyFileError`] if the file cannot be read, holds none, or a line is none.
pub fn read_recipients(path: &Path) -> Result<Vec<Recipient>, KeyFileError> {
    at(path, read_text(path, RECIPIENTS).and_then(|text| parse_recipients(&text)))
}

pub(crate) fn parse_recipients(text: &str) -> Result<Vec<Recipient>, KeyFileProblem> {
    let recipients: Result<Vec<Recipient>, _> = payload_lines(text).map(str::parse).collect();
    match recipients {
        Ok(recipients) if !recipients.is_empty() => Ok(recipients),
        _ => Err(not_that(text, RECIPIENTS)),
    }
}
