//! `tidegate gateway`: run the daemon, or show and check its configuration.

use std::io::Write;
use std::path::PathBuf;

use super::traces::Traced;
use super::{Failure, Outcome};
use crate::fault::exit;
use crate::gateway::config::{DEFAULT_FILE, GatewayConfig};

/// Options of `tidegate gateway`.
#[derive(clap::Args)]
pub struct Args {
    /// Configuration file.
    #[arg(long, env = "TIDEGATE_CONFIG", required_unless_present = "print_config")]
    config: Option<PathBuf>,
    /// Print a configuration file with every key, its default and its meaning, and stop.
    #[arg(long)]
    print_config: bool,
}

impl Args {
    /// Of what the daemon's traces tell, and what its file says of them.
    pub(super) fn traced(&self) -> Traced {
        let config = self.config.as_deref().filter(|_| !self.print_config).map(GatewayConfig::load);
        let read = config.and_then(Result::ok).map(|config| (Some(config.id), config.traces));
        Traced::with_file("tidegate-gateway", read)
    }
}

/// Runs the verb.
pub fn run(args: Args) -> Outcome {
    if args.print_config {
        std::io::stdout().write_all(DEFAULT_FILE.as_bytes())?;
        return Ok(exit::OK);
    }
    let path = args.config.ok_or_else(|| Failure::usage("give --config FILE"))?;
    let config = GatewayConfig::load(&path).map_err(|error| Failure::usage(error.to_string()))?;
    crate::gateway::run(config, path).map_err(|error| Failure::of(&error))?;
    Ok(exit::OK)
}
