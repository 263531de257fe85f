//! `tidegate config`: check configuration files before a daemon meets them.

use std::path::PathBuf;

use super::{Failure, Outcome};
use crate::agent::config::Config as AgentConfig;
use crate::config::ConfigError;
use crate::fault::exit;
use crate::gateway::config::GatewayConfig;
use crate::keeper::config::KeeperConfig;

/// Options of `tidegate config`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Check a configuration file and show all its mistakes at once.
    Check {
        /// Whose file it is.
        #[arg(long, value_enum)]
        kind: Kind,
        /// The file.
        file: PathBuf,
        /// One JSON object instead of text.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Kind {
    /// `tidegate gateway`.
    Gateway,
    /// `tidegate agent`.
    Agent,
    /// `tidegate keeper`.
    Keeper,
}

/// Runs the verb.
pub fn run(args: Args) -> Outcome {
    let Action::Check { kind, file, json } = args.action;
    let result: Result<(), ConfigError> = match kind {
        Kind::Gateway => GatewayConfig::load(&file).map(|_| ()),
        Kind::Agent => AgentConfig::load(&file).map(|_| ()),
        Kind::Keeper => KeeperConfig::load(&file).map(|_| ()),
    };
    if json {
        let mistakes = result.as_ref().err().map(|error| error.mistakes.clone()).unwrap_or_default();
        println!("{}", serde_json::json!({ "file": file, "ok": result.is_ok(), "mistakes": mistakes }));
        return Ok(if result.is_ok() { exit::OK } else { exit::USAGE });
    }
    result.map_err(|error| Failure::usage(error.to_string()))?;
    println!("{}: ok", file.display());
    Ok(exit::OK)
}
