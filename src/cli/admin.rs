//! Where a verb that asks a running gateway finds its admin port.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Failure;
use crate::gateway::config::GatewayConfig;

/// How long the admin port may take: it answers from memory.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// The options that name it.
#[derive(clap::Args)]
pub struct AdminArgs {
    /// The gateway's admin port.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9444", conflicts_with = "config")]
    admin: SocketAddr,
    /// Take the admin port of this gateway configuration.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl AdminArgs {
    /// The address.
    ///
    /// # Errors
    /// A wrong configuration.
    pub fn address(&self) -> Result<SocketAddr, Failure> {
        address(self.admin, self.config.as_deref())
    }
}

/// That of the configuration, if one is given.
///
/// # Errors
/// A wrong configuration.
pub fn address(admin: SocketAddr, config: Option<&Path>) -> Result<SocketAddr, Failure> {
    match config {
        Some(path) => Ok(GatewayConfig::load(path).map_err(|error| Failure::usage(error.to_string()))?.admin_listen),
        None => Ok(admin),
    }
}
