//! `loadgen report`.

use std::path::PathBuf;
use std::process::ExitCode;

use loadgen::report::page;

use super::Outcome;

/// Options of `loadgen report`.
#[derive(clap::Args)]
pub struct Args {
    /// What `loadgen run --json` or `loadgen bench --json` printed.
    outcome: PathBuf,
    /// The page to write.
    #[arg(long, value_name = "FILE", default_value = "report.html")]
    to: PathBuf,
}

/// Draws.
pub fn run(args: &Args) -> Outcome {
    let wrong = |path: &PathBuf, error: &dyn std::error::Error| format!("{}: {error}", path.display());
    let text = std::fs::read_to_string(&args.outcome).map_err(|error| wrong(&args.outcome, &error))?;
    let outcome = serde_json::from_str(&text).map_err(|error| wrong(&args.outcome, &error))?;
    let html = page(&outcome).map_err(|error| wrong(&args.outcome, &error))?;
    std::fs::write(&args.to, html).map_err(|error| wrong(&args.to, &error))?;
    Ok(ExitCode::SUCCESS)
}
