//! `tidegate verify`.

use super::{Failure, Outcome};

/// Options of `tidegate verify`.
#[derive(clap::Args)]
pub struct Args {}

/// Runs the verb.
pub fn run(_args: Args) -> Outcome {
    Err(Failure::error("under construction"))
}
