//! SIGHUP: the configuration and the certificates are read again, and no session notices.
//!
//! Everything is read and checked before anything changes. If there is a mistake anywhere, all are told and all stays as it
//! is. Then the certificates count for every handshake from there on, over both transports, and so do the values of
//! [`Live`]; values that count from a start only are named, and stay as they are.
//!
//! Connections that live keep the certificates with which they began, and QUIC the key of its stateless resets.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::admin::Health;
use super::config::GatewayConfig;
use super::live::Live;
use crate::fault::chain_text;
use crate::flow::blocking;
use crate::telemetry::{names, supervisor};
use crate::wire::{CheckedFiles, Credentials};

/// Reads the configuration again when it is asked to.
pub struct Reload {
    /// The configuration file.
    pub file: PathBuf,
    /// As the gateway started, but for what was changed since.
    pub running: GatewayConfig,
    /// The certificates in use.
    pub credentials: Credentials,
    /// The values in use.
    pub live: Arc<Live>,
    /// Whether the service manager was told that the gateway is ready.
    pub health: Arc<Health>,
}

/// The signal that asks for it. To be taken before anything else, as the process would end by it.
pub fn signals() -> std::io::Result<Signal> {
    signal(SignalKind::hangup())
}

impl Reload {
    /// Waits for signals, for as long as the runtime lives.
    pub async fn run(mut self, mut signals: Signal) {
        for outcome in ["ok", "failed"] {
            metrics::counter!(names::RELOADS, "outcome" => outcome).increment(0);
        }
        // What the gateway started with was in order.
        metrics::gauge!(names::RELOAD_REFUSED).set(0.0);
        while signals.recv().await.is_some() {
            let told = supervisor::Reloading::begin(self.health.is_serving());
            let outcome = match self.once().await {
                Ok(()) => "ok",
                Err(mistakes) => {
                    tracing::error!("the configuration is not taken, and nothing is changed: {}", mistakes.join("; "));
                    "failed"
                }
            };
            metrics::counter!(names::RELOADS, "outcome" => outcome).increment(1);
            metrics::gauge!(names::RELOAD_REFUSED).set(f64::from(u8::from(outcome == "failed")));
            told.end();
        }
    }

    async fn once(&mut self) -> Result<(), Vec<String>> {
        let (file, credentials) = (self.file.clone(), self.credentials.clone());
        let checked = blocking(move || check(&file, &credentials)).await;
        let (config, files) = checked.map_err(|panicked| vec![panicked.to_string()])??;
        let later = self.running.needs_restart(&config);
        self.credentials.replace(files);
        self.live.apply(&config);
        let ends = self.credentials.ends();
        metrics::gauge!(names::CERTIFICATE_ENDS_SECONDS).set(ends.0 as f64 / 1e6);
        tracing::info!(file = %self.file.display(), certificate_ends = %ends, "configuration and certificates read again");
        if !later.is_empty() {
            tracing::warn!("these were changed too and stay as they were: each needs a restart: {}", later.join(", "));
        }
        self.running.take_live(config);
        Ok(())
    }
}

/// The configuration and the files that it names, or all mistakes.
fn check(file: &Path, credentials: &Credentials) -> Result<(GatewayConfig, CheckedFiles), Vec<String>> {
    let config = GatewayConfig::load(file).map_err(|error| {
        error.mistakes.iter().map(|mistake| format!("{}: {mistake}", file.display())).collect::<Vec<_>>()
    })?;
    let files = credentials.check(&config.tls);
    let files = files.map_err(|mistakes| mistakes.iter().map(|mistake| chain_text(mistake)).collect::<Vec<_>>())?;
    Ok((config, files))
}
