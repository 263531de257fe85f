//! What of the configuration counts from the moment it is read, also in a gateway that runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use super::bandwidth::Bandwidth;
use super::config::GatewayConfig;
use crate::flow::{Clock, watch};

/// The values that may change, for all that go by them.
#[derive(Debug)]
pub struct Live {
    /// Limits of bandwidth.
    pub bandwidth: Arc<Bandwidth>,
    window_bytes: watch::Sender<u64>,
    streams_target: AtomicU64,
    peers: RwLock<Vec<String>>,
    admin_names: RwLock<Vec<String>>,
    recipients_pins: RwLock<Vec<String>>,
}

impl Live {
    /// As `config` says.
    #[must_use]
    pub fn new(config: &GatewayConfig, clock: &Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            bandwidth: Bandwidth::new(config.bandwidth.clone(), clock),
            window_bytes: watch::Sender::new(config.window_bytes),
            streams_target: AtomicU64::new(config.streams_target),
            peers: RwLock::new(config.peers.clone()),
            admin_names: RwLock::new(config.admin_names.clone()),
            recipients_pins: RwLock::new(config.recipients_pins.clone()),
        })
    }

    /// As `config` says from now on.
    pub fn apply(&self, config: &GatewayConfig) {
        self.bandwidth.plan(config.bandwidth.clone());
        self.window_bytes.send_replace(config.window_bytes);
        self.streams_target.store(config.streams_target, Ordering::Relaxed);
        self.peers.write().clone_from(&config.peers);
        self.admin_names.write().clone_from(&config.admin_names);
        self.recipients_pins.write().clone_from(&config.recipients_pins);
    }

    /// Largest credit window of one disk, and its changes.
    #[must_use]
    pub fn window_bytes(&self) -> watch::Receiver<u64> {
        self.window_bytes.subscribe()
    }

    /// Disk streams above which agents are asked to go elsewhere.
    #[must_use]
    pub fn streams_target(&self) -> u64 {
        self.streams_target.load(Ordering::Relaxed)
    }

    /// Gateways named to agents that are to leave.
    #[must_use]
    pub fn peers(&self) -> Vec<String> {
        self.peers.read().clone()
    }

    /// Pins of the recipients to whom lane keys may be wrapped; with none, whoever the vault names.
    #[must_use]
    pub fn recipients_pins(&self) -> Vec<String> {
        self.recipients_pins.read().clone()
    }

    /// Names by which the admin port may be asked, beside those that the gateway knows by itself.
    #[must_use]
    pub fn admin_names(&self) -> Vec<String> {
        self.admin_names.read().clone()
    }
}
