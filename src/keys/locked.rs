//! Identity files that are locked by a passphrase, as `age -p` makes them, and as `rage -p` and `age` itself open them.
//!
//! The passphrase is stretched by scrypt. How much work that takes stands in the file, so whoever can change the file could ask
//! for hours and for all memory: there is a limit.

use std::fmt;
use std::io::{Read, Write};

use age::secrecy::SecretString;
use zeroize::Zeroizing;

use super::file::{KEY_FILE_BYTES_MAX, KeyFileProblem};

/// Longest passphrase: far longer than any that is typed, so that a wrong file is not read as one.
pub const PASSPHRASE_BYTES_MAX: usize = 1024;
/// Most work for a passphrase, as a power of two: 4 GiB of memory and some ten seconds, the limit of `age` itself.
pub(super) const WORK_MAX: u8 = 22;
/// How an age file starts.
const AGE_FILE: &[u8] = b"age-encryption.org/";
/// How an armored age file starts.
const ARMORED: &[u8] = b"-----BEGIN AGE ENCRYPTED FILE-----";

/// What locks an identity file. Wiped when dropped, never shown; what the terminal's own buffers keep of it is not ours to wipe.
pub struct Passphrase(Zeroizing<String>);

impl Passphrase {
    /// Takes a passphrase as it was typed or read; `None` if it is empty or too long to be one.
    #[must_use]
    pub fn new(text: Zeroizing<String>) -> Option<Self> {
        (1..=PASSPHRASE_BYTES_MAX).contains(&text.len()).then_some(Self(text))
    }

    /// Whether both are the same: who chooses one types it twice. Neither is kept, so how long this takes tells nobody anything.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        *self.0 == *other.0
    }

    fn secret(&self) -> SecretString {
        SecretString::from(self.0.as_str().to_owned())
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(redacted)")
    }
}

/// Whether a file's bytes are an age file, armored or not, instead of plain text.
#[must_use]
pub(crate) fn is_age_file(bytes: &[u8]) -> bool {
    let bytes = bytes.trim_ascii_start();
    bytes.starts_with(AGE_FILE) || bytes.starts_with(ARMORED)
}

/// Opens an identity file with its passphrase.
pub(super) fn unlock(bytes: &[u8], passphrase: &Passphrase) -> Result<Zeroizing<String>, KeyFileProblem> {
    let open = || -> Result<Option<Zeroizing<String>>, age::DecryptError> {
        let armored = age::armor::ArmoredReader::new(bytes.trim_ascii_start());
        let decryptor = age::Decryptor::new_buffered(armored)?;
        if !decryptor.is_scrypt() {
            return Ok(None);
        }
        let mut opener = age::scrypt::Identity::new(passphrase.secret());
        opener.set_max_work_factor(WORK_MAX);
        let reader = decryptor.decrypt(std::iter::once(&opener as _))?;
        // With room for all: a text that grows leaves parts of itself behind.
        let mut text = Zeroizing::new(String::with_capacity(KEY_FILE_BYTES_MAX as usize + 1));
        reader.take(KEY_FILE_BYTES_MAX).read_to_string(&mut text)?;
        Ok(Some(text))
    };
    match open() {
        Ok(Some(text)) => Ok(text),
        Ok(None) => Err(KeyFileProblem::ForOthers),
        // The header's own check comes after its key was opened, so it is the file that is wrong there.
        Err(age::DecryptError::DecryptionFailed | age::DecryptError::KeyDecryptionFailed) => {
            Err(KeyFileProblem::WrongPassphrase)
        }
        Err(age::DecryptError::ExcessiveWork { required, .. }) => Err(KeyFileProblem::TooMuchWork { required }),
        Err(other) => Err(KeyFileProblem::Age(other)),
    }
}

/// Locks the text of an identity file: armored, so that it survives copy, paste and print as the others do.
pub(super) fn lock(text: &str, passphrase: &Passphrase) -> Result<String, KeyFileProblem> {
    let encryptor = age::Encryptor::with_user_passphrase(passphrase.secret());
    let mut locked = Vec::new();
    let armor = age::armor::ArmoredWriter::wrap_output(&mut locked, age::armor::Format::AsciiArmor)?;
    let mut writer = encryptor.wrap_output(armor)?;
    writer.write_all(text.as_bytes())?;
    writer.finish()?.finish()?;
    Ok(String::from_utf8(locked).map_err(std::io::Error::other)?)
}
