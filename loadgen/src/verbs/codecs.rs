//! `loadgen codecs`.

use std::process::ExitCode;

use loadgen::limit::codecs::codecs;
use tidegate::config::show_size;

use super::run::PayloadArgs;
use super::{Outcome, size};

/// Options of `loadgen codecs`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    payload: PayloadArgs,
    /// Bytes that each codec packs.
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "64 MiB")]
    bytes: u64,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

/// Measures and tells.
pub fn run(args: &Args) -> Outcome {
    let costs = codecs(&args.payload.pool()?, args.bytes.max(1 << 20))?;
    if args.json {
        println!("{}", serde_json::json!({ "codecs": costs }));
        return Ok(ExitCode::SUCCESS);
    }
    println!("codec      times smaller   pack, CPU s per GiB   unpack");
    for one in costs {
        let (pack, unpack) = (one.pack_cpu_seconds_per_gib, one.unpack_cpu_seconds_per_gib);
        println!("{:<10} {:>13.2} {pack:>21.2} {unpack:>8.2}", one.codec, one.ratio);
    }
    println!("measured on {} of the payload", show_size(args.bytes));
    Ok(ExitCode::SUCCESS)
}
