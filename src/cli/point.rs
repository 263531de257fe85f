//! `tidegate point`.

use super::{Failure, Outcome};

/// Options of `tidegate point`.
#[derive(clap::Args)]
pub struct Args {}

/// Runs the verb.
pub fn run(_args: Args) -> Outcome {
    Err(Failure::error("under construction"))
}
