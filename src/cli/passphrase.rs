//! Identities that a passphrase locks. The passphrase is asked on the terminal, or read from a file or descriptor for automation;
//! never from the command line, which every process of a machine can read.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::Failure;
use crate::keys::{Identity, PASSPHRASE_BYTES_MAX, Passphrase};

/// Where the passphrase of an identity comes from.
#[derive(clap::Args, Debug, Clone)]
pub struct PassphraseArgs {
    /// File whose first line is the passphrase of a locked identity; /dev/fd/N is an open descriptor. Else it is asked on the
    /// terminal.
    #[arg(long, value_name = "FILE", env = "TIDEGATE_PASSPHRASE_FILE")]
    passphrase_file: Option<PathBuf>,
}

/// A recovery identity that is to be made.
#[derive(clap::Args, Debug, Clone)]
pub struct NewIdentityArgs {
    /// Make a new recovery identity, write it to this file and wrap to it. Keep the file away from the gateways.
    #[arg(long, value_name = "FILE")]
    pub new_identity: Option<PathBuf>,
    /// Lock the new identity by a passphrase, as `age -p` does.
    #[arg(long, requires = "new_identity")]
    lock: bool,
    /// File whose first line is the passphrase for --lock; /dev/fd/N is an open descriptor. Else it is asked on the terminal, twice.
    #[arg(long, value_name = "FILE", requires = "lock")]
    new_passphrase_file: Option<PathBuf>,
}

/// A new identity on its way to its file.
pub struct NewIdentity {
    /// The file.
    pub path: PathBuf,
    /// The identity.
    pub identity: Identity,
    lock: Option<Passphrase>,
}

impl PassphraseArgs {
    /// Reads an identity; asks for its passphrase if it is locked.
    ///
    /// # Errors
    /// [`Failure`] that names the file and, if there is nobody to ask, the option that gives the passphrase.
    pub fn identity(&self, path: &Path) -> Result<Identity, Failure> {
        match Identity::read(path) {
            Err(error) if error.is_locked() => {
                let shown = path.display();
                let passphrase = match &self.passphrase_file {
                    Some(file) => from_file(file)?,
                    None => asked(&format!("Passphrase of {shown}: "), || {
                        format!(
                            "{shown} is locked by a passphrase, and there is no terminal to ask for it: give \
                             --passphrase-file FILE, or set TIDEGATE_PASSPHRASE_FILE (/dev/fd/N is an open descriptor)"
                        )
                    })?,
                };
                Identity::unlock(path, &passphrase).map_err(|error| Failure::of(&error))
            }
            read => read.map_err(|error| Failure::of(&error)),
        }
    }
}

impl NewIdentityArgs {
    /// Makes the identity that is asked for, in memory; everything that can be wrong with the options is found here.
    ///
    /// # Errors
    /// [`Failure`] if the file exists, or the passphrase cannot be had.
    pub fn make(&self) -> Result<Option<NewIdentity>, Failure> {
        let Some(path) = self.new_identity.clone() else { return Ok(None) };
        super::keyring::must_be_free(&path)?;
        let lock = match (self.lock, &self.new_passphrase_file) {
            (false, _) => None,
            (true, Some(file)) => Some(from_file(file)?),
            (true, None) => Some(chosen(&path)?),
        };
        Ok(Some(NewIdentity { path, identity: Identity::generate(), lock }))
    }
}

impl NewIdentity {
    /// Writes the file.
    ///
    /// # Errors
    /// [`Failure`] that names the file.
    pub fn write(&self) -> Result<(), Failure> {
        let written = match &self.lock {
            None => self.identity.write(&self.path),
            Some(passphrase) => self.identity.write_locked(&self.path, passphrase),
        };
        written.map_err(|error| Failure::of(&error))?;
        // What cannot be read back would be missed on the day it is needed.
        let read = match &self.lock {
            None => Identity::read(&self.path),
            Some(passphrase) => Identity::unlock(&self.path, passphrase),
        };
        let read = read.map_err(|error| Failure::of(&error))?;
        if read.recipient() == self.identity.recipient() {
            return Ok(());
        }
        Err(Failure::error(format!("{} does not read back as it was written: do not use it", self.path.display())))
    }

    /// Takes the file away again: nothing was wrapped to it.
    pub fn discard(&self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The first line of a file.
fn from_file(path: &Path) -> Result<Passphrase, Failure> {
    let named = |what: &str| Failure::usage(format!("passphrase file {}: {what}", path.display()));
    let mut text = Zeroizing::new(String::with_capacity(PASSPHRASE_BYTES_MAX + 2));
    let file = File::open(path).map_err(|error| named(&error.to_string()))?;
    file.take(PASSPHRASE_BYTES_MAX as u64 + 2).read_to_string(&mut text).map_err(|error| named(&error.to_string()))?;
    let line = Zeroizing::new(text.lines().next().unwrap_or_default().to_owned());
    Passphrase::new(line).ok_or_else(|| named(&format!("its first line has to have 1 to {PASSPHRASE_BYTES_MAX} bytes")))
}

/// Asks on the terminal, without showing what is typed.
fn asked(prompt: &str, without_terminal: impl FnOnce() -> String) -> Result<Passphrase, Failure> {
    let terminal = console::Term::stderr();
    if !terminal.is_term() {
        return Err(Failure::usage(without_terminal()));
    }
    terminal.write_str(prompt)?;
    let typed = Zeroizing::new(terminal.read_secure_line()?);
    Passphrase::new(typed)
        .ok_or_else(|| Failure::usage(format!("a passphrase has to have 1 to {PASSPHRASE_BYTES_MAX} bytes")))
}

/// Asks for a new passphrase, twice.
fn chosen(path: &Path) -> Result<Passphrase, Failure> {
    let without_terminal =
        || "--lock needs a terminal to ask for the passphrase, or --new-passphrase-file FILE".to_owned();
    let first = asked(&format!("New passphrase for {}: ", path.display()), without_terminal)?;
    let second = asked("The same again: ", without_terminal)?;
    if first.is(&second) { Ok(first) } else { Err(Failure::usage("the two passphrases differ: nothing was done")) }
}
