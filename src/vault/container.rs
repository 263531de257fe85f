//! Creating the container of a new vault, which `object_store` leaves to others: one signed request.

use object_store::azure::AzureAuthorizer;
use object_store::client::{HttpConnector, HttpRequest, HttpRequestBody, ReqwestConnector};
use tokio::time::timeout;

use super::fault::BlobError;
use super::store::VaultStore;
use super::url::AzureClient;

const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);

/// Creates the container unless it is there. A credential that may not create containers is no failure here: the first
/// real request tells whether the container is missing.
pub(super) async fn create_if_missing(store: &VaultStore, client: &AzureClient) -> Result<(), BlobError> {
    let name = format!("container {}", client.container);
    let failed = |error: &object_store::Error| BlobError::new("create", &name, store.shown(), error);
    let send = async {
        let url = format!("{}/{}?restype=container", client.endpoint, client.container);
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.method_mut() = reqwest::Method::PUT;
        *request.uri_mut() = url.parse().map_err(|_| generic("the endpoint is no URL"))?;
        request.headers_mut().insert("content-length", 0.into());
        let credential = client.azure.credentials().get_credential().await?;
        AzureAuthorizer::new(&credential, &client.account).try_authorize(&mut request)?;
        let http = ReqwestConnector::default().connect(&client.options)?;
        http.execute(request)
            .await
            .map(|response| response.status())
            .map_err(|error| object_store::Error::Generic { store: "MicrosoftAzure", source: Box::new(error) })
    };
    match timeout(TIMEOUT, send).await {
        // 409: it is there. 401, 403: not allowed to create it, or wrong; the next request says which.
        Ok(Ok(status)) => {
            tracing::debug!(%status, container = client.container, "asked for the container");
            Ok(())
        }
        Ok(Err(error)) => Err(failed(&error)),
        Err(_) => Err(BlobError::timeout("create", &name, store.shown(), TIMEOUT)),
    }
}

fn generic(text: &str) -> object_store::Error {
    object_store::Error::Generic { store: "MicrosoftAzure", source: text.to_owned().into() }
}
