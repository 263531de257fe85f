//! Where a verb that asks a running gateway finds its admin port.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Failure;
use crate::config::ConfigError;
use crate::gateway::config::GatewayConfig;

/// How long the admin port may take: it answers from memory.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// The configuration of a gateway that a package installed.
const CONFIG_USUAL: &str = "/etc/tidegate/gateway.toml";
/// Where the admin port is unless a configuration says otherwise.
const ADMIN_USUAL: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9444));

/// The options that name it. For verbs with verbs of their own, too.
#[derive(clap::Args)]
pub struct AdminArgs {
    /// The gateway's admin port [default: that of /etc/tidegate/gateway.toml, else 127.0.0.1:9444].
    #[arg(long, value_name = "ADDRESS", conflicts_with = "config", global = true)]
    admin: Option<SocketAddr>,
    /// Take the admin port of this gateway configuration.
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
}

impl AdminArgs {
    /// The address.
    ///
    /// # Errors
    /// A wrong configuration that was named.
    pub fn address(&self) -> Result<SocketAddr, Failure> {
        match (self.admin, self.config.as_deref()) {
            (Some(admin), _) => Ok(admin),
            (None, Some(path)) => listens_at(path).map_err(|error| Failure::usage(error.to_string())),
            // A gateway goes on by what its file said at the start, whatever mistakes are in it now.
            (None, None) => Ok(listens_at(Path::new(CONFIG_USUAL)).unwrap_or(ADMIN_USUAL)),
        }
    }
}

fn listens_at(config: &Path) -> Result<SocketAddr, ConfigError> {
    Ok(GatewayConfig::load(config)?.admin_listen)
}
