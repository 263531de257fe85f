//! `tidegate quickstart`: a live disk protected, its gateway killed, the disk restored, every byte compared.
//!
//! ```text
//!  workload ─► NBD ─► agent ─► gateway ─► vault ─► restore ─► compare with copies taken at the points
//!                       ✗ -9     ✗ -9
//! ```
//!
//! Nothing here takes a short cut: gateway, agent, points and restores are processes of this same program, run as an
//! operator runs them. The end-to-end tests use the same parts ([`site`], [`child`], [`load`], [`copies`]).
//!
//! Whatever goes wrong, the work directory stays and its logs are named; the processes never stay, except by `--keep`.

pub mod child;
pub mod copies;
pub mod image;
pub mod load;
mod progress;
mod report;
pub mod site;
mod steps;
pub mod target;
mod work_dir;

use std::path::PathBuf;

use super::{Failure, Outcome};
use crate::config::{parse_size, show_size};
use crate::fault::{chain_text, exit};

/// Options of `tidegate quickstart`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Work directory; a new one below ./tidegate-quickstart if not given.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Wipe the work directory first, if an earlier quickstart made it.
    #[arg(long, requires = "dir")]
    force: bool,
    /// Size of the ext4 image that is made and protected; rounded up to 128 MiB.
    #[arg(long, value_name = "SIZE", default_value = "512 MiB", value_parser = size, conflicts_with = "disk")]
    size: u64,
    /// Protect a copy of this disk image instead. The image itself is only read.
    #[arg(long, value_name = "PATH")]
    disk: Option<PathBuf>,
    /// Use this vault (az://account/container, http://host:port/account/container, file:///path) instead of a new directory.
    #[arg(long, value_name = "URL")]
    vault: Option<String>,
    /// Most MiB per second that the workload writes.
    #[arg(long, value_name = "MIB", default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=4096))]
    rate: u64,
    /// Leave gateway and agent running at the end.
    #[arg(long)]
    keep: bool,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

fn size(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text).ok_or_else(|| "write for example \"512 MiB\"".to_owned())?;
    let bounds = image::IMAGE_STEP_BYTES..=image::IMAGE_BYTES_MAX;
    if bounds.contains(&bytes) {
        return Ok(bytes);
    }
    Err(format!("from {} to {}", show_size(*bounds.start()), show_size(*bounds.end())))
}

/// Runs the verb.
pub fn run(args: &Args) -> Outcome {
    let family = child::Family::default();
    end_children_on_signals(&family)?;
    let dir = work_dir::prepare(args.dir.as_deref(), args.force).map_err(|error| Failure::usage(chain_text(&error)))?;
    let mut progress = progress::Progress::new();
    let report = steps::run(args, &dir, &family, &mut progress).map_err(|error| {
        progress.failed();
        Failure::error(format!("{}\nThe logs are in {}", chain_text(&error), dir.join("logs").display()))
    })?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}", report.page());
    }
    if args.keep {
        eprintln!("{}", steps::what_next(&report));
    }
    Ok(if report.proven() { exit::OK } else { exit::DAMAGE })
}

/// On Ctrl-C and SIGTERM: children first, then we.
fn end_children_on_signals(family: &child::Family) -> Result<(), Failure> {
    use tokio::signal::unix::{SignalKind, signal};

    let family = family.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _guard = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                biased;
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        family.kill();
        eprintln!("\ntidegate: stopped; gateway and agent are ended, the work directory is left as it is");
        std::process::exit(130);
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_outside_what_an_image_can_be_are_refused() {
        assert_eq!(size("256 MiB"), Ok(256 << 20));
        assert!(size("1 MiB").is_err_and(|text| text.contains("128 MiB")));
        assert!(size("much").is_err());
    }
}
