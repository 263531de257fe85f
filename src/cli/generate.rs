//! `tidegate generate`: manual pages and shell completions, made from the command line's own definition. For packages;
//! hidden, because nobody who runs a gateway needs it.

use std::path::PathBuf;

use clap::ValueEnum;
use clap_complete::Shell;

use super::Outcome;
use crate::fault::exit;

/// Options of `tidegate generate`.
#[derive(clap::Args)]
pub struct Args {
    /// What to make.
    #[arg(value_enum)]
    what: What,
    /// An existing folder; files of the same name are replaced.
    #[arg(long, value_name = "FOLDER")]
    dir: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    /// One manual page per verb.
    Man,
    /// Completions for bash, zsh and fish.
    Completions,
}

/// Runs the verb for `command`, the whole command line.
pub fn run(args: &Args, mut command: clap::Command) -> Outcome {
    match args.what {
        What::Man => clap_mangen::generate_to(command, &args.dir)?,
        What::Completions => {
            for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
                clap_complete::generate_to(shell, &mut command, "tidegate", &args.dir)?;
            }
        }
    }
    Ok(exit::OK)
}
