//! `tidegate quickstart`.

mod child;
mod copies;
mod image;
mod load;

use super::{Failure, Outcome};

/// Options of `tidegate quickstart`.
#[derive(clap::Args)]
pub struct Args {}

/// Runs the verb.
pub fn run(_args: Args) -> Outcome {
    Err(Failure::error("under construction"))
}
