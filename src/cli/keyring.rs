//! Where the verbs that read a vault find its keys.
//!
//! Options first, then the environment, then, for a directory vault, the files that `quickstart` and `vault init` leave
//! beside it. What is given is used or refused by name; what merely lies beside the vault may also be another vault's.

use std::path::{Path, PathBuf};

use super::Failure;
use super::passphrase::PassphraseArgs;
use crate::fault::{Classify, Fault};
use crate::keys::{CatalogKey, Identity};
use crate::telemetry::traces::within;
use crate::vault::store::VaultStore;
use crate::vault::url::open_store;
use crate::vault::{Vault, VaultError};

/// The catalog key's file beside a directory vault.
pub const CATALOG_KEY_FILE: &str = "catalog.key";
/// The recovery identity's file beside a directory vault.
pub const IDENTITY_FILE: &str = "recovery.key";

/// Options that say which vault, and where its keys are.
#[derive(clap::Args, Debug, Clone)]
pub struct VaultArgs {
    /// The vault: file:///path, az://account/container[/prefix] or http(s)://host:port/account/container[/prefix].
    #[arg(long, value_name = "URL", env = "TIDEGATE_VAULT")]
    pub vault: String,
    /// File with the recovery identity (AGE-SECRET-KEY-1…): opens everything.
    #[arg(long, value_name = "FILE", env = "TIDEGATE_IDENTITY")]
    pub identity: Option<PathBuf>,
    #[command(flatten)]
    passphrase: PassphraseArgs,
    /// File with the catalog key: opens indexes, not data.
    #[arg(long, value_name = "FILE", env = "TIDEGATE_CATALOG_KEY")]
    pub catalog_key: Option<PathBuf>,
}

/// The keys at hand.
#[derive(Debug, Clone, Default)]
pub struct Keyring {
    /// Opens data.
    pub identity: Option<Identity>,
    /// Opens indexes.
    pub catalog_key: Option<CatalogKey>,
    /// Whether each was only found beside the vault.
    found_beside: bool,
}

/// A vault opened with the best key at hand.
#[derive(Debug, Clone)]
pub struct Opened {
    /// The vault; without its catalog key if none was at hand.
    pub vault: Vault,
    /// The recovery identity, if one was at hand.
    pub identity: Option<Identity>,
}

impl VaultArgs {
    /// The store of the vault.
    ///
    /// # Errors
    /// [`Failure`] that names the URL and the next step.
    pub fn store(&self) -> Result<VaultStore, Failure> {
        open_store(&self.vault).map_err(|error| Failure::of(&error))
    }

    /// Reads the keys that were given or lie beside the vault.
    ///
    /// # Errors
    /// [`Failure`] that names the file.
    pub fn keyring(&self, store: &VaultStore) -> Result<Keyring, Failure> {
        let identity = self.identity.as_deref().map(|path| self.passphrase.identity(path)).transpose()?;
        let catalog_key =
            self.catalog_key.as_deref().map(CatalogKey::read).transpose().map_err(|error| Failure::of(&error))?;
        if identity.is_some() || catalog_key.is_some() {
            return Ok(Keyring { identity, catalog_key, found_beside: false });
        }
        // Nobody is asked for the passphrase of what merely lies there.
        let beside = |name: &str| store.directory().and_then(Path::parent).map(|folder| folder.join(name));
        Ok(Keyring {
            identity: beside(IDENTITY_FILE).and_then(|path| Identity::read(&path).ok()),
            catalog_key: beside(CATALOG_KEY_FILE).and_then(|path| CatalogKey::read(&path).ok()),
            found_beside: true,
        })
    }

    /// Opens the vault with the best key at hand; without any, only enough to list it.
    ///
    /// # Errors
    /// [`Failure`]; a given key that is not this vault's is one.
    pub async fn open(&self) -> Result<Opened, Failure> {
        let store = self.store()?;
        let keyring = self.keyring(&store)?;
        let span = tracing::info_span!("open vault", vault = store.shown());
        within(span, open(store, keyring)).await.map_err(|error| Failure::of(&error))
    }

    /// As [`VaultArgs::open`], refusing to go on without the catalog key.
    ///
    /// # Errors
    /// [`Failure`] that says which options give the key.
    pub async fn open_with_key(&self) -> Result<Opened, Failure> {
        let opened = self.open().await?;
        if opened.vault.catalog_key().is_none() {
            return Err(Failure::usage(format!(
                "no key for the vault {} is at hand: give --identity FILE (the recovery identity) or --catalog-key FILE, \
                 or set TIDEGATE_IDENTITY or TIDEGATE_CATALOG_KEY",
                self.vault
            )));
        }
        Ok(opened)
    }
}

async fn open(store: VaultStore, keyring: Keyring) -> Result<Opened, VaultError> {
    let Keyring { identity, catalog_key, found_beside } = keyring;
    // Keys of another vault that merely lie there are no reason to fail.
    let other = |error: &VaultError| {
        let foreign = matches!(error, VaultError::OtherCatalogKey { .. } | VaultError::Unwrap { .. });
        found_beside && foreign && error.fault() == Fault::Reject
    };
    if let Some(key) = catalog_key {
        match Vault::open(store.clone(), key).await {
            Err(error) if other(&error) => {}
            // An older key's file lies beside the vault, and the identity opens all.
            Err(VaultError::CatalogKeyReplaced { .. }) if identity.is_some() => {}
            vault => {
                let vault = vault?;
                let Some(identity) = identity else { return Ok(Opened { vault, identity: None }) };
                // Another key may become the present one while this goes on; who has the identity has that one too.
                let is_staged = vault.lists().await?.present().stages_a_key();
                let newest = if is_staged { Vault::open_with_identity(store, &identity).await.ok() } else { None };
                let vault = newest.unwrap_or_else(|| vault.read_as(&identity));
                return Ok(Opened { vault, identity: Some(identity) });
            }
        }
    }
    if let Some(identity) = identity {
        match Vault::open_with_identity(store.clone(), &identity).await {
            Err(error) if other(&error) => {}
            vault => return Ok(Opened { vault: vault?, identity: Some(identity) }),
        }
    }
    Ok(Opened { vault: Vault::open_without_key(store).await?, identity: None })
}

/// A key file is never overwritten: better to know before anything is done.
///
/// # Errors
/// [`Failure`] if the file exists, or its directory does not.
pub fn must_be_free(path: &Path) -> Result<(), Failure> {
    if path.exists() {
        return Err(Failure::usage(format!("{} exists already: a key file is never overwritten", path.display())));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    match folder {
        Some(folder) if !folder.is_dir() => {
            Err(Failure::usage(format!("the directory {} for {} does not exist", folder.display(), path.display())))
        }
        _ => Ok(()),
    }
}

/// A runtime for the verbs that talk to a vault.
///
/// # Errors
/// [`Failure`] if the system gives no threads.
pub fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let built = tokio::runtime::Builder::new_multi_thread().thread_name("tg-vault").enable_all().build();
    built.map_err(|error| Failure::error(format!("the runtime cannot be started: {error}")))
}
