//! The signals that ask a verb to stop.

use tokio::signal::unix::{SignalKind, signal};

use super::Failure;
use crate::flow::{Drain, DrainTrigger};

/// Begins at SIGTERM or Ctrl-C, which would otherwise end the process where it is; the log says `told` then. To be called
/// within a runtime.
pub(super) fn asked_to_stop(told: Option<&'static str>) -> Result<Drain, Failure> {
    let (trigger, drain) = DrainTrigger::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        tokio::select! {
            biased;
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if let Some(told) = told {
            tracing::info!("{told}");
        }
        trigger.start();
    });
    Ok(drain)
}
