//! The receiver of traces: it is sent none, which every receiver takes.

use std::time::Duration;

use reqwest::header::CONTENT_TYPE;

use super::super::facts::Receiver;
use crate::fault::chain_text;
use crate::telemetry::traces::settings::{Endpoint, Settings, headers};
use crate::vault::url::install_crypto;

/// A receiver that takes longer takes no traces either.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the receiver says, if the configuration names one.
pub(super) async fn look(settings: &Settings) -> Option<Receiver> {
    let endpoint = settings.endpoint.as_ref()?;
    Some(Receiver { endpoint: endpoint.to_string(), answer: ask(endpoint, settings).await })
}

async fn ask(endpoint: &Endpoint, settings: &Settings) -> Result<(), String> {
    let headers = settings.headers_file.as_deref().map(headers).transpose().map_err(|error| chain_text(&error))?;
    install_crypto();
    let client = reqwest::Client::builder().timeout(PATIENCE).redirect(reqwest::redirect::Policy::none()).build();
    let client = client.map_err(|error| chain_text(&error))?;
    // A message of Protocol Buffers without fields has no bytes.
    let request = client.post(endpoint.as_str()).header(CONTENT_TYPE, "application/x-protobuf").body("");
    let answer = request.headers(headers.unwrap_or_default()).send().await.map_err(|error| chain_text(&error))?;
    if answer.status().is_success() { Ok(()) } else { Err(format!("it answered {}", answer.status())) }
}
