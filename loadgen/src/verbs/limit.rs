//! `loadgen limit`.

use std::path::PathBuf;
use std::process::ExitCode;

use loadgen::limit::{BYTES_DEFAULT, COMMIT_BYTES_DEFAULT, Limits, Plan, measure};
use tidegate::config::show_size;

use super::run::{PayloadArgs, seconds};
use super::{Outcome, size};

/// Options of `loadgen limit`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    payload: PayloadArgs,
    /// Bytes that each primitive handles.
    #[arg(long, value_name = "SIZE", value_parser = size, default_value_t = BYTES_DEFAULT)]
    bytes: u64,
    /// Bytes of a record.
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "256 KiB")]
    record: u64,
    /// Bytes of one write and sync.
    #[arg(long, value_name = "SIZE", value_parser = size, default_value_t = COMMIT_BYTES_DEFAULT)]
    commit: u64,
    /// Folder on the disk to be measured.
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// Largest UDP payload that path discovery may try.
    #[arg(long, value_name = "BYTES", default_value_t = tidegate::wire::endpoint::MTU_BYTES_DEFAULT,
          value_parser = clap::value_parser!(u16).range(1200..=65_000))]
    mtu: u16,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

/// Measures and tells.
pub fn run(args: &Args) -> Outcome {
    let plan = Plan {
        pool: args.payload.pool()?,
        bytes: args.bytes.max(1 << 20),
        record_bytes: args.record.clamp(512, 1 << 20) as usize,
        commit_bytes: args.commit,
        folder: args.dir.clone(),
        mtu_max_bytes: args.mtu,
    };
    let limits = measure(&plan)?;
    if args.json {
        println!("{}", serde_json::to_string(&limits)?);
    } else {
        print_text(&limits);
    }
    Ok(ExitCode::SUCCESS)
}

/// One line per primitive, and the sums.
pub fn print_text(limits: &Limits) {
    println!("primitive                CPU s per GiB   of payload    one thread");
    for one in &limits.primitives {
        let (cost, of_payload) = (one.cpu_seconds_per_gib, one.of_payload());
        println!("{:<24} {cost:>12.3} {of_payload:>12.3} {:>9.0} MB/s", one.name, one.bytes_per_second / 1e6);
    }
    println!("sum, by QUIC             {:>25.3}", limits.sum_quic);
    println!("sum, by TLS over TCP     {:>25.3}", limits.sum_tcp);
    println!(
        "payload {:.2} times smaller by LZ4; records of {}; commits of {}: p50 {}, p99 {}",
        limits.payload_ratio,
        show_size(limits.record_bytes as u64),
        show_size(limits.commit_bytes),
        seconds(limits.commit_seconds_p50),
        seconds(limits.commit_seconds_p99)
    );
}
