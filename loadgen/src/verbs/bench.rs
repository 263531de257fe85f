//! `loadgen bench`.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use loadgen::bench::{Plan, Report, bench};
use loadgen::run::profile::Profile;
use tidegate::config::show_size;
use tidegate::fault::exit;

use super::run::{PayloadArgs, beside, runtime, seconds};
use super::{Outcome, limit, size, time};

/// Options of `loadgen bench`.
#[derive(clap::Args)]
pub struct Args {
    /// Folder for the installation, on the disk that the journal is to be measured on; made, and must be new.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// copy, oltp8, oltp16, log or files.
    #[arg(long, default_value = "files")]
    profile: Profile,
    /// Agents.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    agents: u32,
    /// Disks of each.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=256))]
    disks: u32,
    /// Size of each disk.
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "1 GiB")]
    disk_size: u64,
    /// What is written at full load in each round [default: 4 GiB; 1 GiB for oltp8 and oltp16].
    #[arg(long, value_name = "SIZE", value_parser = size)]
    bytes: Option<u64>,
    /// Rounds.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long half load and 70 % load are kept. 0 s leaves them out.
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "10 s")]
    steady: Duration,
    #[command(flatten)]
    payload: PayloadArgs,
    /// Largest UDP payload that path discovery may try; the gateway has its own limit.
    #[arg(long, value_name = "BYTES", default_value_t = tidegate::wire::endpoint::MTU_BYTES_DEFAULT)]
    mtu: u16,
    /// Memory of the gateway.
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "512 MiB")]
    memory: u64,
    /// The tidegate program [default: the one beside this program].
    #[arg(long, value_name = "PATH")]
    tidegate: Option<PathBuf>,
    /// Print one JSON object instead of a table; `loadgen report` draws it.
    #[arg(long)]
    json: bool,
}

/// Measures and tells.
pub fn run(args: &Args) -> Outcome {
    std::fs::create_dir(&args.dir).map_err(|error| format!("{}: {error}", args.dir.display()))?;
    let small = matches!(args.profile, Profile::Oltp8 | Profile::Oltp16);
    let plan = Plan {
        dir: args.dir.canonicalize()?,
        tidegate: args.tidegate.clone().map_or_else(beside, Ok)?,
        loadgen: std::env::current_exe()?,
        profile: args.profile,
        agents: args.agents as usize,
        disks: args.disks as usize,
        disk_bytes: args.disk_size.max(1 << 20) / 4096 * 4096,
        bytes: args.bytes.unwrap_or(if small { 1 << 30 } else { 4 << 30 }),
        rounds: args.rounds as usize,
        steady: args.steady,
        mtu_max_bytes: args.mtu,
        seed: args.payload.seed,
        gateway: vec![("", format!("memory = \"{} B\"", args.memory))],
    };
    let pool = args.payload.pool()?;
    // What is being done is for somebody who looks on.
    let looked_at = std::io::stderr().is_terminal();
    let runtime = runtime(None)?;
    let report = runtime.block_on(bench(&plan, &pool, |text| {
        if looked_at {
            eprintln!("{text}");
        }
    }))?;
    runtime.shutdown_timeout(Duration::from_secs(2));
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print_text(&report);
    }
    report.failures.iter().take(20).for_each(|failure| eprintln!("loadgen: {failure}"));
    Ok(ExitCode::from(if report.failures.is_empty() { exit::OK } else { exit::ERROR }))
}

fn print_text(report: &Report) {
    println!("median of {} rounds           median        least         most", report.rounds.len());
    for (name, spread) in &report.spread {
        let shown = |value: f64| shown(name, value);
        println!("{name:<32} {:>12} {:>12} {:>12}", shown(spread.median), shown(spread.least), shown(spread.most));
    }
    if let Some(round) = report.rounds.last() {
        println!("\nprimitives of the last round");
        limit::print_text(&round.limits);
    }
    println!("{}", if report.failures.is_empty() { "ok" } else { "FAILED" });
}

fn shown(name: &str, value: f64) -> String {
    match name {
        "throughput_bytes_per_second" => format!("{:.1} MB/s", value / 1e6),
        "memory_peak_bytes" => show_size(value as u64),
        name if name.contains("_ack_seconds") || name.contains("rpo_seconds") => seconds(value),
        name if name.ends_with("_per_gib") && !name.contains("cpu") => format!("{value:.0}"),
        _ => format!("{value:.3}"),
    }
}
