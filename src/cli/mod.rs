//! The `tidegate` command: one file per verb, each a thin shell over a stage.
//!
//! Standard output carries results (text, or JSON with `--json`), standard error everything else. Exit codes are
//! those of [`crate::fault::exit`].

mod agent;
mod config;
mod gateway;
mod generate;
mod journal;
mod keeper;
pub mod keyring;
mod pki;
mod point;
mod points;
pub mod quickstart;
mod restore;
mod status;
mod vault;
mod verify;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::fault::{self, Classify, Fault, exit};
use crate::telemetry::log::{self, LogFormat};

/// What a verb ends with: an exit code, or a failure to print.
pub type Outcome = Result<u8, Failure>;

/// A failure as the user sees it: one text that names the thing and the next step, and an exit code.
#[derive(Debug)]
pub struct Failure {
    /// What went wrong and what to do.
    pub text: String,
    /// The process's exit code.
    pub code: u8,
}

impl Failure {
    /// The call or the configuration is wrong.
    pub fn usage(text: impl Into<String>) -> Self {
        Self { text: text.into(), code: exit::USAGE }
    }

    /// Anything that is none of the other kinds.
    pub fn error(text: impl Into<String>) -> Self {
        Self { text: text.into(), code: exit::ERROR }
    }

    /// From a stage's error, its class deciding the exit code.
    pub fn of(error: &dyn Classify) -> Self {
        let code = match error.fault() {
            Fault::Retry => exit::TRY_AGAIN,
            Fault::Reject | Fault::Fatal => exit::ERROR,
            Fault::Corrupt => exit::DAMAGE,
        };
        Self { text: fault::chain_text(error), code }
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::error(fault::chain_text(&error))
    }
}

#[derive(Parser)]
#[command(name = "tidegate", version, about, max_term_width = 110)]
struct Cli {
    /// Form of the log on standard error; TIDEGATE_LOG sets the level.
    #[arg(long, global = true, value_enum, default_value_t, env = "TIDEGATE_LOG_FORMAT")]
    log_format: LogFormat,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Protect a demonstration disk end to end on this machine, kill the gateway, restore, compare.
    Quickstart(quickstart::Args),
    /// Run the gateway daemon.
    Gateway(gateway::Args),
    /// Look into a gateway's journal, check it, or bring what it holds to another gateway.
    Journal(journal::Args),
    /// Check configuration files.
    Config(config::Args),
    /// Show how a gateway and its disks stand.
    Status(status::Args),
    /// Run the agent on a protected machine.
    Agent(agent::Args),
    /// Make a recovery point now.
    Point(point::Args),
    /// List the recovery points of a disk, or of groups.
    Points(points::Args),
    /// Bring a disk back as it was at a point.
    Restore(restore::Args),
    /// Check that a vault is whole.
    Verify(verify::Args),
    /// Apply retention to a vault.
    Keeper(keeper::Args),
    /// Create or look at a vault.
    Vault(vault::Args),
    /// Make a private certificate authority and certificates.
    Pki(pki::Args),
    /// Make manual pages and shell completions, for packages.
    #[command(hide = true)]
    Generate(generate::Args),
}

/// Parses the command line, runs the verb, prints a failure; the whole of `main`.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    log::start(cli.log_format);
    let outcome = match cli.verb {
        Verb::Quickstart(args) => quickstart::run(&args),
        Verb::Gateway(args) => gateway::run(args),
        Verb::Journal(args) => journal::run(args),
        Verb::Config(args) => config::run(args),
        Verb::Status(args) => status::run(&args),
        Verb::Agent(args) => agent::run(args),
        Verb::Point(args) => point::run(args),
        Verb::Points(args) => points::run(args),
        Verb::Restore(args) => restore::run(args),
        Verb::Verify(args) => verify::run(args),
        Verb::Keeper(args) => keeper::run(args),
        Verb::Vault(args) => vault::run(args),
        Verb::Pki(args) => pki::run(args),
        Verb::Generate(args) => generate::run(&args, Cli::command()),
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("tidegate: {}", failure.text);
            ExitCode::from(failure.code)
        }
    }
}
