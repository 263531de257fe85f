//! `tidegate quickstart`.

mod image;

use super::{Failure, Outcome};

/// Options of `tidegate quickstart`.
#[derive(clap::Args)]
pub struct Args {}

/// Runs the verb.
pub fn run(_args: Args) -> Outcome {
    Err(Failure::error("under construction"))
}
