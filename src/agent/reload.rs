//! SIGHUP: what would count after a restart is read and checked, and nothing is interrupted.
//!
//! Certificates need nothing more: a connection reads the files anew when it begins, so a new certificate or authority counts
//! at the next connect, and the one that lives stays as it is. Mistakes in them are told here, while there is time, instead
//! of then. Everything else in the configuration counts from a start only.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::config::Config;
use crate::fault::chain_text;
use crate::flow::{Clock, blocking};
use crate::telemetry::{names, supervisor};
use crate::types::Micros;
use crate::wire::tls;

/// The signal that asks for it. To be taken before anything else, as the process would end by it.
///
/// # Errors
/// If the system refuses.
pub fn signals() -> std::io::Result<Signal> {
    signal(SignalKind::hangup())
}

/// Waits for signals, for as long as the runtime lives. `running` was read from `file`.
pub async fn run(file: PathBuf, running: Config, clock: Arc<dyn Clock>, mut signals: Signal) {
    while signals.recv().await.is_some() {
        let told = supervisor::Reloading::begin(true);
        let (file, running, clock) = (file.clone(), running.clone(), Arc::clone(&clock));
        let refused = match blocking(move || check(&file, &running, &clock)).await {
            Ok(Ok((ends, later))) => {
                tracing::info!(certificate_ends = %ends, "certificates are in order, and count from the next connect on");
                if !later.is_empty() {
                    tracing::warn!(
                        "these were changed and stay as they were: each needs a restart: {}",
                        later.join(", ")
                    );
                }
                false
            }
            Ok(Err(mistakes)) => {
                tracing::error!("configuration or certificates are not usable: {}", mistakes.join("; "));
                true
            }
            Err(panicked) => {
                tracing::error!(%panicked, "configuration and certificates could not be checked");
                true
            }
        };
        metrics::gauge!(names::AGENT_RELOAD_REFUSED).set(f64::from(u8::from(refused)));
        told.end();
    }
}

/// The end of the certificate, and which changed keys need a restart; or all mistakes.
fn check(file: &Path, running: &Config, clock: &Arc<dyn Clock>) -> Result<(Micros, Vec<&'static str>), Vec<String>> {
    let named = |mistake: &String| format!("{}: {mistake}", file.display());
    let config = Config::load(file).map_err(|error| error.mistakes.iter().map(named).collect::<Vec<_>>())?;
    let ends = tls::check_agent(&config.tls, clock);
    let ends = ends.map_err(|mistakes| mistakes.iter().map(|mistake| chain_text(mistake)).collect::<Vec<_>>())?;
    Ok((ends, running.needs_restart(&config)))
}
