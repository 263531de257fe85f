//! From a vault's URL to its store, with the credential that the environment offers.
//!
//! | URL | store |
//! |---|---|
//! | `file:///path` | a directory; every object and its folder are synced before a PUT counts |
//! | `az://account/container[/prefix]` | Azure Blob |
//! | `https://account.blob.core.windows.net/container[/prefix]` | the same, as the portal shows it |
//! | `http(s)://host:port/account/container[/prefix]` | Azurite and compatible endpoints |
//! | `memory://name` | this process's memory, for tests |

use std::collections::HashMap;
use std::path::{Path as FsPath, PathBuf};
use std::sync::{Arc, LazyLock, Once};
use std::time::Duration;

use object_store::azure::{AzureConfigKey, MicrosoftAzure, MicrosoftAzureBuilder};
use object_store::client::{ClientOptions, HttpClient, HttpConnector};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, RetryConfig};
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::credential::{Credential, Secret, Variables};
use super::fault::BlobError;
use super::store::VaultStore;
use super::store_clock::DatedConnector;
use crate::fault::{Classify, Fault};

/// Time to set up a connection. Longer than any healthy network takes, short enough to notice an outage.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Above every limit that a caller sets for its own request, so that the caller's decides.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(900);

/// Why a URL gives no store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The URL is of none of the known forms.
    #[error(
        "{url:?} is not a vault URL: {problem}. Use file:///path, az://account/container[/prefix] or \
         http(s)://host:port/account/container[/prefix]"
    )]
    Url {
        /// The URL, without query and user information.
        url: String,
        /// What is wrong.
        problem: String,
    },
    /// The directory of a `file:` URL is not there.
    #[error("there is no vault at {url}: the directory {} does not exist (`tidegate vault init` creates it)", directory.display())]
    NoDirectory {
        /// The URL.
        url: String,
        /// The directory.
        directory: PathBuf,
    },
    /// The directory cannot be created or used.
    #[error("the directory {} of the vault cannot be used", directory.display())]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A credential in the environment cannot be used.
    #[error("the credential for {url} cannot be used: {problem}")]
    Credential {
        /// The URL.
        url: String,
        /// Which one, and what is wrong; never the secret.
        problem: String,
    },
    /// The client library refused the settings.
    #[error("no client for {url} can be made: {problem}")]
    Client {
        /// The URL.
        url: String,
        /// What it said.
        problem: String,
    },
    /// The container is missing and could not be created.
    #[error(transparent)]
    Container(#[from] BlobError),
}

impl Classify for StoreError {
    fn fault(&self) -> Fault {
        match self {
            Self::Container(error) => error.fault(),
            _ => Fault::Reject,
        }
    }
}

/// A parsed vault URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Location {
    File(PathBuf),
    Memory(String),
    Azure { endpoint: String, account: String, container: String, prefix: String },
}

/// Opens the store of a vault that exists. Nothing is created, and nothing is asked of a remote store yet.
///
/// # Errors
/// [`StoreError`] for a malformed URL, a missing directory or an unusable credential.
pub fn open_store(url: &str) -> Result<VaultStore, StoreError> {
    open(url, None)
}

/// As [`open_store`]; requests to a remote store run on `runtime`, whoever makes them. A connection is driven where its first
/// request ran, so without this the uploads of one runtime are sent, and encrypted, by another one that had asked something
/// before.
///
/// # Errors
/// As [`open_store`].
pub fn open_store_on(url: &str, runtime: &Handle) -> Result<VaultStore, StoreError> {
    open(url, Some(runtime))
}

fn open(url: &str, runtime: Option<&Handle>) -> Result<VaultStore, StoreError> {
    match parse(url)? {
        Location::File(directory) if !directory.is_dir() => {
            Err(StoreError::NoDirectory { url: url.to_owned(), directory })
        }
        Location::File(directory) => directory_store(url, &directory),
        Location::Memory(name) => Ok(VaultStore::new(memory_store(&name), url)),
        azure @ Location::Azure { .. } => azure_store(url, azure, runtime).map(|(store, _)| store),
    }
}

/// Opens the store for a new vault: creates the directory, or the container if the credential may.
///
/// # Errors
/// As [`open_store`]; also if the directory or container cannot be created.
pub async fn create_store(url: &str) -> Result<VaultStore, StoreError> {
    match parse(url)? {
        Location::File(directory) => {
            create_directory(&directory).map_err(|source| StoreError::Directory { directory, source })?;
            open_store(url)
        }
        Location::Memory(_) => open_store(url),
        azure @ Location::Azure { .. } => {
            let (store, client) = azure_store(url, azure, None)?;
            super::container::create_if_missing(&store, &client).await?;
            Ok(store)
        }
    }
}

/// Creates a directory durably: its name must survive a power cut as well as its content.
fn create_directory(directory: &FsPath) -> std::io::Result<()> {
    std::fs::create_dir_all(directory)?;
    for folder in [Some(directory), directory.parent()].into_iter().flatten() {
        std::fs::File::open(folder)?.sync_all()?;
    }
    Ok(())
}

fn directory_store(url: &str, directory: &FsPath) -> Result<VaultStore, StoreError> {
    let store = LocalFileSystem::new_with_prefix(directory)
        .map_err(|error| StoreError::Client { url: url.to_owned(), problem: error.to_string() })?
        // Without it no vaulted ack would be true.
        .with_fsync(true);
    Ok(VaultStore::new(Arc::new(store), url).with_directory(directory))
}

fn memory_store(name: &str) -> Arc<dyn ObjectStore> {
    static STORES: LazyLock<Mutex<HashMap<String, Arc<InMemory>>>> = LazyLock::new(Mutex::default);
    Arc::clone(STORES.lock().entry(name.to_owned()).or_default()) as _
}

/// The Azure client with what its container's creation needs.
pub(super) struct AzureClient {
    pub(super) azure: MicrosoftAzure,
    pub(super) http: HttpClient,
    pub(super) endpoint: String,
    pub(super) account: String,
    pub(super) container: String,
}

fn azure_store(
    url: &str,
    location: Location,
    runtime: Option<&Handle>,
) -> Result<(VaultStore, AzureClient), StoreError> {
    let Location::Azure { endpoint, account, container, prefix } = location else {
        return Err(StoreError::Client { url: url.to_owned(), problem: "no Azure URL".into() });
    };
    install_crypto();
    let credential = Credential::find(&account, &Variables::process())
        .map_err(|problem| StoreError::Credential { url: url.to_owned(), problem })?;
    let options = client_options(&endpoint);
    let connector = DatedConnector::on(runtime);
    let http = connector
        .connect(&options)
        .map_err(|error| StoreError::Client { url: url.to_owned(), problem: error.to_string() })?;
    let builder = MicrosoftAzureBuilder::new()
        .with_account(&account)
        .with_container_name(&container)
        .with_endpoint(endpoint.clone())
        .with_client_options(options)
        .with_http_connector(connector)
        // The uploader paces and repeats by itself, and reads are repeated by `VaultStore`.
        .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() });
    let azure =
        with_credential(builder, &credential).build().map_err(|error| client_error(url, &credential, &error))?;
    let place = format!("{} (with {})", show(url), credential.source);
    let shared: Arc<dyn ObjectStore> = if prefix.is_empty() {
        Arc::new(azure.clone())
    } else {
        Arc::new(PrefixStore::new(azure.clone(), Path::from(prefix)))
    };
    Ok((VaultStore::new(shared, &place), AzureClient { azure, http, endpoint, account, container }))
}

fn client_error(url: &str, credential: &Credential, error: &object_store::Error) -> StoreError {
    let url = show(url);
    // The library's text may quote what it could not parse; for credentials only its kind is told.
    match &credential.secret {
        Secret::Key(_) | Secret::Sas(_) => StoreError::Credential {
            url,
            problem: format!(
                "{} is not of the right form (a key is base64, a SAS token a query string)",
                credential.source
            ),
        },
        _ => StoreError::Client { url, problem: error.to_string() },
    }
}

fn client_options(endpoint: &str) -> ClientOptions {
    let plain = endpoint.starts_with("http://");
    let options = ClientOptions::new()
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_timeout(REQUEST_TIMEOUT)
        .with_http1_only()
        .with_allow_http(plain);
    // A plain endpoint needs no certificates, and a slim container may have none to load.
    if plain { options.with_no_system_certificates(true) } else { options }
}

fn with_credential(builder: MicrosoftAzureBuilder, credential: &Credential) -> MicrosoftAzureBuilder {
    match &credential.secret {
        Secret::Key(key) => builder.with_access_key(key.as_str()),
        Secret::Sas(token) => builder.with_config(AzureConfigKey::SasKey, token.as_str()),
        Secret::Workload { client, tenant, token_file, authority } => {
            let builder = builder.with_client_id(client).with_tenant_id(tenant).with_federated_token_file(token_file);
            with_authority(builder, authority.as_deref())
        }
        Secret::Client { client, tenant, secret, authority } => {
            let builder = builder.with_client_secret_authorization(client, secret.as_str(), tenant);
            with_authority(builder, authority.as_deref())
        }
        Secret::Managed { client, endpoint } => {
            let builder = match client {
                Some(client) => builder.with_client_id(client),
                None => builder,
            };
            match endpoint {
                Some(endpoint) => builder.with_msi_endpoint(endpoint),
                None => builder,
            }
        }
    }
}

fn with_authority(builder: MicrosoftAzureBuilder, authority: Option<&str>) -> MicrosoftAzureBuilder {
    match authority {
        Some(authority) => builder.with_authority_host(authority),
        None => builder,
    }
}

/// reqwest takes the process's default provider, and panics if there is none.
pub fn install_crypto() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // An error means that a provider is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

/// The URL without anything that may be secret.
fn show(url: &str) -> String {
    url.split(['?', '#']).next().unwrap_or_default().to_owned()
}

/// Splits a URL into its parts.
pub(crate) fn parse(text: &str) -> Result<Location, StoreError> {
    let refuse = |problem: &str| StoreError::Url { url: show(text), problem: problem.to_owned() };
    let url = url::Url::parse(text).map_err(|error| refuse(&error.to_string()))?;
    if !url.username().is_empty() || url.password().is_some() {
        let url = format!("{}://…", url.scheme());
        let problem = "a URL must not hold a user or password".into();
        return Err(StoreError::Url { url, problem });
    }
    if url.query().is_some() {
        return Err(refuse(
            "a SAS token belongs into AZURE_STORAGE_SAS_TOKEN or AZURE_STORAGE_SAS_TOKEN_FILE, not into the URL",
        ));
    }
    let segments: Vec<&str> = url.path().split('/').filter(|segment| !segment.is_empty()).collect();
    let host = url.host_str().unwrap_or_default();
    match url.scheme() {
        "file" => {
            let path = url.to_file_path().map_err(|()| refuse("a file URL has three slashes and an absolute path"))?;
            Ok(Location::File(path))
        }
        "memory" if !host.is_empty() => Ok(Location::Memory(format!("{host}{}", url.path()))),
        "az" if !host.is_empty() => {
            let endpoint = format!("https://{host}.blob.core.windows.net");
            container(endpoint, host, &segments).ok_or_else(|| refuse("the container is missing"))
        }
        "http" | "https" => {
            let authority = &url[url::Position::BeforeHost..url::Position::AfterPort];
            let origin = format!("{}://{authority}", url.scheme());
            let found = match host.split_once(".blob.") {
                Some((account, _)) => container(origin, account, &segments),
                None => segments
                    .split_first()
                    .and_then(|(account, rest)| container(format!("{origin}/{account}"), account, rest)),
            };
            found.ok_or_else(|| refuse("account or container is missing"))
        }
        other => Err(refuse(&format!("the scheme {other:?} is not known, or the part after it is missing"))),
    }
}

fn container(endpoint: String, account: &str, segments: &[&str]) -> Option<Location> {
    let (container, prefix) = segments.split_first()?;
    Some(Location::Azure {
        endpoint,
        account: account.to_owned(),
        container: (*container).to_owned(),
        prefix: prefix.join("/"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn azure(endpoint: &str, account: &str, container: &str, prefix: &str) -> Location {
        Location::Azure {
            endpoint: endpoint.into(),
            account: account.into(),
            container: container.into(),
            prefix: prefix.into(),
        }
    }

    #[test]
    fn every_form_of_url_finds_its_store() {
        let parsed = |text: &str| parse(text).expect("a vault URL");
        assert_eq!(parsed("file:///srv/vault"), Location::File("/srv/vault".into()));
        assert_eq!(parsed("az://acc/con/a/b"), azure("https://acc.blob.core.windows.net", "acc", "con", "a/b"));
        let azurite = azure("http://127.0.0.1:10000/devstoreaccount1", "devstoreaccount1", "tg", "");
        assert_eq!(parsed("http://127.0.0.1:10000/devstoreaccount1/tg"), azurite);
        let portal = azure("https://acc.blob.core.windows.net", "acc", "con", "");
        assert_eq!(parsed("https://acc.blob.core.windows.net/con/"), portal);
        assert_eq!(parsed("memory://x"), Location::Memory("x".into()));
    }

    #[test]
    fn a_url_with_a_secret_is_refused_without_repeating_it() {
        for text in [
            "https://a.blob.core.windows.net/c?sv=1&sig=hunter2",
            "https://me:hunter2@h/a/c",
            "ftp://h/hunter2?hunter2",
        ] {
            let error = parse(text).expect_err("refused").to_string();
            let secret_part = error.replace("ftp://h/hunter2", "");
            assert!(!secret_part.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn malformed_urls_say_what_is_missing() {
        for text in ["", "vault", "/srv/vault", "az://acc", "http://127.0.0.1:1/acc", "file://host/x", "s3://b/c"] {
            let error = parse(text).expect_err(text);
            assert_eq!(error.fault(), Fault::Reject);
            assert!(error.to_string().contains("az://account/container"), "{error}");
        }
    }

    #[test]
    fn a_missing_directory_is_named_and_not_created_by_opening() {
        let folder = tempfile::tempdir().expect("temp dir");
        let directory = folder.path().join("vault");
        let url = format!("file://{}", directory.display());
        let error = open_store(&url).expect_err("missing");
        assert!(matches!(error, StoreError::NoDirectory { .. }), "{error}");
        assert!(!directory.exists());
    }

    #[tokio::test]
    async fn creating_makes_the_directory_and_https_clients_can_be_built() {
        let folder = tempfile::tempdir().expect("temp dir");
        let url = format!("file://{}/a/vault", folder.path().display());
        let store = create_store(&url).await.expect("created");
        assert!(store.directory().is_some_and(FsPath::is_dir));
        open_store("https://127.0.0.1:1/devstoreaccount1/c").expect("a TLS client with the ring provider");
    }
}
