//! The vault, by the rights that a gateway needs: read, list, create. Nothing is left behind.

use std::time::Duration;

use bytes::Bytes;
use object_store::PutPayload;

use super::super::facts::{Store, Trouble};
use super::trouble;
use crate::fault::Classify;
use crate::flow::Clock;
use crate::gateway::config::GatewayConfig;
use crate::keys::CatalogKey;
use crate::limits::CONTROL_OBJECT_BYTES_MAX;
use crate::vault::fault::BlobCause;
use crate::vault::store::VaultStore;
use crate::vault::url::{Location, install_crypto, open_store, parse};
use crate::vault::{Vault, names, store_ahead};

/// For each question, tries included: a store that is there answers in well below a second.
const PATIENCE: Duration = Duration::from_secs(20);
/// Reads that are timed.
const READS: usize = 20;

async fn within<T, E: Classify>(what: &str, asked: impl Future<Output = Result<T, E>>) -> Result<T, Trouble> {
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(answered) => answered.map_err(|error| trouble(&error)),
        Err(_) => Err(Trouble { text: format!("{what}: no answer within {} s", PATIENCE.as_secs()), passing: true }),
    }
}

pub(super) async fn look(config: &GatewayConfig, clock: &dyn Clock) -> Store {
    let mut seen = Store {
        url: config.vault_url.clone(),
        vault: Err(Trouble { text: String::new(), passing: false }),
        lists: None,
        creates: None,
        read_micros: Vec::new(),
        ahead_micros: ahead(&config.vault_url, clock).await,
    };
    let store = match open_store(&config.vault_url) {
        Ok(store) => store,
        Err(error) => return Store { vault: Err(trouble(&error)), ..seen },
    };
    let head = within("reading the vault", store.get(&names::vault(), CONTROL_OBJECT_BYTES_MAX)).await;
    seen.vault = match (&head, CatalogKey::read(&config.catalog_key)) {
        (Err(trouble), _) => Err(trouble.clone()),
        (Ok(_), Err(error)) => Err(trouble(&error)),
        (Ok(_), Ok(key)) => {
            within("opening the vault", Vault::open(store.clone(), key)).await.map(|vault| vault.id().to_string())
        }
    };
    // A store that is away neither lists nor creates, and says so once.
    if matches!(&head, Err(trouble) if trouble.passing) {
        return seen;
    }
    seen.lists = Some(within("listing the vault", store.any(Some(&names::lanes()))).await.map(|_| ()));
    if let Ok(Some(head)) = head {
        seen.read_micros = read_times(&store, clock).await;
        seen.creates = Some(creates(&store, head).await);
    }
    seen
}

/// Asks to create what is there already, with the bytes that are there: a store answers whether the name is taken only to
/// whom it lets create.
async fn creates(store: &VaultStore, head: Bytes) -> Result<(), Trouble> {
    let Err(error) = store.put_new(&names::vault(), PutPayload::from(head), PATIENCE).await else {
        let text = format!(
            "{} took a second object under a name that was taken: it does not keep to If-None-Match, and no vault is safe in it",
            store.shown()
        );
        return Err(Trouble { text, passing: false });
    };
    match error.cause {
        BlobCause::AlreadyExists | BlobCause::Immutable => Ok(()),
        _ => Err(trouble(&error)),
    }
}

async fn read_times(store: &VaultStore, clock: &dyn Clock) -> Vec<u64> {
    let mut out = Vec::new();
    for _ in 0..READS {
        let started = clock.monotonic();
        if within("reading the vault", store.get(&names::vault(), CONTROL_OBJECT_BYTES_MAX)).await.is_err() {
            break;
        }
        out.push((clock.monotonic() - started).as_micros() as u64);
    }
    out.sort_unstable();
    out
}

/// What the endpoint's date says. It answers anybody, if only by a refusal.
async fn ahead(url: &str, clock: &dyn Clock) -> Option<i64> {
    let Ok(Location::Azure { endpoint, .. }) = parse(url) else { return None };
    install_crypto();
    let client = reqwest::Client::builder().timeout(PATIENCE).build().ok()?;
    let answer = client.get(endpoint).send().await.ok()?;
    store_ahead(answer.headers().get("date")?.to_str().ok()?, clock.wall())
}
