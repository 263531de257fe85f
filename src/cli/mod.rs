//! The `tidegate` command: one file per verb, each a thin shell over a stage.
//!
//! Standard output carries results (text, or JSON with `--json`), standard error everything else. Exit codes are
//! those of [`crate::fault::exit`].

mod admin;
mod agent;
mod asked;
mod bandwidth;
mod bundle;
mod config;
mod doctor;
mod drill;
mod export;
mod gateway;
mod generate;
mod journal;
mod keeper;
pub mod keyring;
mod passphrase;
mod pki;
mod plan;
mod point;
mod points;
mod proof;
pub mod quickstart;
mod restore;
mod run_file;
mod seen;
mod signals;
mod status;
mod top;
mod traces;
mod vault;
mod verify;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use self::traces::Traced;
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

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
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
    #[command(flatten)]
    traces: traces::Args,
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
    /// Size gateways, journals, uplink and price by what machines write.
    ///
    /// What is written comes from figures (--churn), from this machine (--observe) or from a trace (--trace); --machines and --disks
    /// multiply it. Costs of a gateway are those measured with this build (docs/PERFORMANCE.md), or of a `loadgen bench --json`
    /// report (--bench). --explain shows the formula of every figure. Without --prices no price is told.
    ///
    /// Exit code 0, 1 if what is given (such as --uplink) cannot carry what is written, 2 for a wrong call.
    Plan(plan::Args),
    /// Look whether a host can do what its configuration asks for, and say what to do.
    ///
    /// Looks at kernel, io_uring, limits, memory, UDP, clock, the disk of the journal or the agent's state, certificates, keys, the
    /// vault (for an agent: the gateways), ports, and the daemon if it runs. Writes a probe file of up to 16 MiB in the journal's
    /// directory and removes it; leaves nothing in the vault. Limits are those of this very process.
    ///
    /// Exit code 0 if nothing failed (there may be warnings), 1 if a check failed, 2 for a wrong configuration, 75 if all that
    /// failed is a vault or gateway that could not be reached for now.
    Doctor(doctor::Args),
    /// Pack what somebody who helps wants to see into one file, without secrets.
    ///
    /// Version, configuration, the doctor's findings, what the admin port says, a look at the journal, facts of the host and the end
    /// of the logs. Account keys, SAS signatures, private keys, catalog keys, recovery identities and passwords are blotted out;
    /// names of machines, disks, files and addresses stay. Look at it before you give it away: tar -xzf FILE.
    Bundle(bundle::Args),
    /// Show how a gateway and its disks stand.
    Status(status::Args),
    /// Watch a gateway full screen: its path, what holds it up, disks and agents.
    Top(top::Args),
    /// Show how many bytes per second a gateway lets through, and set limits for a while.
    Bandwidth(bandwidth::Args),
    /// Run the agent on a protected machine.
    Agent(agent::Args),
    /// Make a recovery point now.
    Point(point::Args),
    /// List the recovery points of a disk, or of groups.
    Points(points::Args),
    /// Bring a disk back as it was at a point.
    Restore(restore::Args),
    /// Serve a disk as it was at a point over NBD, at once: a machine boots from the vault.
    ///
    /// Blocks are read from the vault when they are asked for, and some before. What the guest writes goes to --overlay and never
    /// to the vault; with --hydrate the disk is copied meanwhile, and served from the copy in the end. Runs until SIGTERM or Ctrl-C.
    ///
    /// Exit code 0, 1 for a failure, 2 for a wrong call, 3 if parts that the copy needs are damaged, 75 if the vault cannot be
    /// reached for now.
    Export(export::Args),
    /// Prove that disks come back: restore and look at them, or boot a machine from the vault; report RPO and RTO.
    ///
    /// Works in a folder of its own, which is gone afterwards. ext file systems are looked at by e2fsck after their journal was
    /// replayed; --check PROGRAM looks further. --boot restores nothing: a machine in QEMU boots from the vault, and is up when its
    /// serial console says so (--until). On a schedule, by a timer, with --metrics-file.
    ///
    /// Exit code 0 if all was well, 1 if something was not or an objective was missed, 2 for a wrong call, 3 for damage in the
    /// vault, 75 if it cannot be reached for now.
    Drill(drill::Args),
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

impl Verb {
    /// Of what traces tell; nothing of a verb that is over at once, or that only asks.
    fn traced(&self) -> Option<Traced> {
        match self {
            Self::Gateway(args) => Some(args.traced()),
            Self::Agent(args) => args.traced(),
            Self::Keeper(args) => Some(args.traced()),
            Self::Restore(_) => Some(Traced::verb("tidegate-restore")),
            Self::Export(_) => Some(Traced::verb("tidegate-export")),
            Self::Drill(_) => Some(Traced::verb("tidegate-drill")),
            Self::Verify(_) => Some(Traced::verb("tidegate-verify")),
            _ => None,
        }
    }
}

/// Parses the command line, runs the verb, prints a failure; the whole of `main`.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let (traces, warning) = match traces::start(&cli.traces, &cli.verb) {
        Ok(started) => started,
        Err(failure) => return failed(&failure),
    };
    log::start(cli.log_format, &traces);
    if let Some(warning) = warning {
        tracing::warn!("{warning}");
    }
    let outcome = run(cli.verb);
    traces.stop();
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(failure) => failed(&failure),
    }
}

fn failed(failure: &Failure) -> ExitCode {
    eprintln!("tidegate: {failure}");
    ExitCode::from(failure.code)
}

fn run(verb: Verb) -> Outcome {
    match verb {
        Verb::Quickstart(args) => quickstart::run(&args),
        Verb::Gateway(args) => gateway::run(args),
        Verb::Journal(args) => journal::run(args),
        Verb::Config(args) => config::run(args),
        Verb::Plan(args) => plan::run(&args),
        Verb::Doctor(args) => doctor::run(&args),
        Verb::Bundle(args) => bundle::run(&args),
        Verb::Status(args) => status::run(&args),
        Verb::Top(args) => top::run(&args),
        Verb::Bandwidth(args) => bandwidth::run(args),
        Verb::Agent(args) => agent::run(args),
        Verb::Point(args) => point::run(args),
        Verb::Points(args) => points::run(args),
        Verb::Restore(args) => restore::run(args),
        Verb::Export(args) => export::run(args),
        Verb::Drill(args) => drill::run(args),
        Verb::Verify(args) => verify::run(args),
        Verb::Keeper(args) => keeper::run(args),
        Verb::Vault(args) => vault::run(args),
        Verb::Pki(args) => pki::run(args),
        Verb::Generate(args) => generate::run(&args, Cli::command()),
    }
}
