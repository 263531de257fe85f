//! Creating the container of a new vault, which `object_store` leaves to others: one signed request.

use object_store::azure::AzureAuthorizer;
use object_store::client::{HttpRequest, HttpRequestBody};
use tokio::time::timeout;

use super::fault::BlobError;
use super::store::VaultStore;
use super::url::AzureClient;

const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);

/// Creates the container unless it is there, with some tries: asking twice does no harm. A credential that may not create
/// containers is no failure here: the first real request tells whether the container is missing.
pub(super) async fn create_if_missing(store: &VaultStore, client: &AzureClient) -> Result<(), BlobError> {
    store.again("create", || create_once(store, client)).await
}

async fn create_once(store: &VaultStore, client: &AzureClient) -> Result<(), BlobError> {
    let name = format!("container {}", client.container);
    match timeout(TIMEOUT, ask(client)).await {
        Ok(Ok(status)) => {
            tracing::debug!(%status, container = client.container, "asked for the container");
            let error = BlobError::answered("create", &name, store.shown(), status.as_u16());
            // 409: it is there. 401, 403: not allowed to create it, or wrong; the next request says which.
            let is_known = status.is_success() || status == reqwest::StatusCode::CONFLICT || !error.is_passing();
            if is_known { Ok(()) } else { Err(error) }
        }
        Ok(Err(error)) => Err(BlobError::new("create", &name, store.shown(), &error)),
        Err(_) => Err(BlobError::timeout("create", &name, store.shown(), TIMEOUT)),
    }
}

async fn ask(client: &AzureClient) -> object_store::Result<reqwest::StatusCode> {
    let url = format!("{}/{}?restype=container", client.endpoint, client.container);
    let mut request = HttpRequest::new(HttpRequestBody::empty());
    *request.method_mut() = reqwest::Method::PUT;
    *request.uri_mut() = url.parse().map_err(|_| generic("the endpoint is no URL"))?;
    request.headers_mut().insert("content-length", 0.into());
    let credential = client.azure.credentials().get_credential().await?;
    AzureAuthorizer::new(&credential, &client.account).try_authorize(&mut request)?;
    client
        .http
        .execute(request)
        .await
        .map(|response| response.status())
        .map_err(|error| object_store::Error::Generic { store: "MicrosoftAzure", source: Box::new(error) })
}

fn generic(text: &str) -> object_store::Error {
    object_store::Error::Generic { store: "MicrosoftAzure", source: text.to_owned().into() }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use crate::vault::url::create_store;

    /// A service that breaks the first connection and refuses the second request; afterwards it answers `last`.
    async fn service(last: &'static str) -> (String, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/devstoreaccount1/box", listener.local_addr().unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                let answer = match count.fetch_add(1, Ordering::Relaxed) {
                    0 => continue,
                    1 => "503 Busy",
                    _ => last,
                };
                let mut request = [0; 4096];
                let _ = connection.read(&mut request).await;
                let text = format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                let _ = connection.write_all(text.as_bytes()).await;
            }
        });
        (url, asked)
    }

    #[tokio::test]
    async fn a_container_is_asked_for_again_after_a_broken_connection_and_a_busy_service() {
        let (url, asked) = service("201 Created").await;
        create_store(&url).await.unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn a_credential_that_may_not_create_containers_is_no_failure_and_no_reason_to_ask_again() {
        let (url, asked) = service("403 Forbidden").await;
        create_store(&url).await.unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), 3);
    }
}
