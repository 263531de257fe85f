//! `loadgen bench`.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use loadgen::bench::{Plan, Report, bench};
use loadgen::report::figure_text;
use loadgen::run::profile::Profile;
use loadgen::scenario::{Bound, DISK_BYTES_USUAL, Report as ScenarioReport, Scenario, Target, Usual};
use tidegate::fault::exit;
use tidegate::pipeline::CodecChoice;
use tidegate::wire::Transport;

use super::run::{PayloadArgs, beside, need_open_files, runtime};
use super::{Outcome, limit, size, time};

/// Options of `loadgen bench`.
#[derive(clap::Args)]
pub struct Args {
    /// Folder for the installation, on the disk that the journal is to be measured on; made, and must be new.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// idle, fleet, fairness, backlog, soak, nbd or restore: figures of one way to use Tidegate instead of a gateway's cost.
    #[arg(long, value_name = "NAME")]
    scenario: Option<Scenario>,
    /// copy, oltp8, oltp16, log, files or mixed [default: files, or that of the scenario].
    #[arg(long)]
    profile: Option<Profile>,
    /// Agents [default: 4, or those of the scenario].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    agents: Option<u32>,
    /// Disks of each [default: 2, or those of the scenario].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    disks: Option<u32>,
    /// Size of each disk [default: 1 GiB; 4 GiB for restore].
    #[arg(long, value_name = "SIZE", value_parser = size)]
    disk_size: Option<u64>,
    /// What is written at full load in each round [default: 4 GiB].
    #[arg(long, value_name = "SIZE", value_parser = size)]
    bytes: Option<u64>,
    /// Rounds [default: 3, or those of the scenario].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,
    /// How long half load and 70 % load are kept. 0 s leaves them out.
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "10 s", conflicts_with = "scenario")]
    steady: Duration,
    /// How long each load of the scenario is kept [default: idle 10 min, fleet 30 s, fairness 20 s, backlog 40 s, soak 1 h, nbd 10 s].
    #[arg(long, value_name = "TIME", value_parser = time, requires = "scenario")]
    duration: Option<Duration>,
    #[command(flatten)]
    payload: PayloadArgs,
    /// What carries the load: quic, or tcp for TLS over TCP. It decides which sum of primitives the gateway is held against.
    #[arg(long, default_value = "quic")]
    transport: Transport,
    /// Largest UDP payload that the agents' path discovery may try and the gateway takes.
    #[arg(long, value_name = "BYTES", default_value_t = tidegate::wire::endpoint::MTU_BYTES_DEFAULT,
          value_parser = clap::value_parser!(u16).range(1200..=65_000))]
    mtu: u16,
    /// Memory of the gateway.
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "512 MiB")]
    memory: u64,
    /// How the gateway packs: lz4, zstd:N, none or auto.
    #[arg(long, default_value = "lz4")]
    codec: CodecChoice,
    /// What the store takes per second, for example "20 MiB": a narrow line to it. 0 for no bound.
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "0")]
    uplink: u64,
    /// The tidegate program [default: the one beside this program].
    #[arg(long, value_name = "PATH")]
    tidegate: Option<PathBuf>,
    /// Azurite's program, for the scenario restore [default: that of tests/azurite, if it is installed].
    #[arg(long, value_name = "PATH")]
    azurite: Option<PathBuf>,
    /// Print one JSON object instead of a table; `loadgen report` draws it.
    #[arg(long)]
    json: bool,
}

/// Without a scenario.
const USUAL: Usual = Usual {
    name: "",
    agents: 4,
    disks: 2,
    profile: Profile::Files,
    duration: Duration::ZERO,
    rounds: 3,
    disk_bytes: DISK_BYTES_USUAL,
};

/// Where the tests have theirs, seen from the repository.
pub(super) fn installed_azurite() -> Option<PathBuf> {
    let program = PathBuf::from("tests/azurite/node_modules/.bin/azurite-blob");
    program.exists().then_some(program)
}

/// Measures and tells.
pub fn run(args: &Args) -> Outcome {
    std::fs::create_dir(&args.dir).map_err(|error| format!("{}: {error}", args.dir.display()))?;
    let usual = args.scenario.map_or(USUAL, Scenario::usual);
    let profile = args.profile.unwrap_or(usual.profile);
    let agents = args.agents.unwrap_or(usual.agents);
    need_open_files(agents)?;
    let plan = Plan {
        dir: args.dir.canonicalize()?,
        tidegate: args.tidegate.clone().map_or_else(beside, Ok)?,
        loadgen: std::env::current_exe()?,
        profile,
        agents: agents as usize,
        disks: args.disks.unwrap_or(usual.disks) as usize,
        disk_bytes: args.disk_size.unwrap_or(usual.disk_bytes).max(1 << 20) / 4096 * 4096,
        bytes: args.bytes.unwrap_or(4 << 30),
        rounds: args.rounds.unwrap_or(usual.rounds) as usize,
        steady: args.steady,
        transport: args.transport,
        mtu_max_bytes: args.mtu,
        seed: args.payload.seed,
        memory_bytes: args.memory,
        codec: args.codec,
        uplink_bytes_per_second: args.uplink,
        azurite: args.azurite.clone().or_else(installed_azurite),
    };
    let pool = args.payload.pool()?;
    // What is being done is for somebody who looks on.
    let looked_at = std::io::stderr().is_terminal();
    let mut say = |text: &str| {
        if looked_at {
            eprintln!("{text}");
        }
    };
    let runtime = runtime(None)?;
    let failures = match args.scenario {
        Some(scenario) => {
            let duration = args.duration.unwrap_or(usual.duration);
            let report = runtime.block_on(scenario.measure(&plan, duration, &pool, &mut say))?;
            tell(args, &report, print_scenario)?;
            report.failures().cloned().collect()
        }
        None => {
            let report = runtime.block_on(bench(&plan, &pool, say))?;
            tell(args, &report, print_text)?;
            report.failures
        }
    };
    runtime.shutdown_timeout(Duration::from_secs(2));
    failures.iter().take(20).for_each(|failure| eprintln!("loadgen: {failure}"));
    Ok(ExitCode::from(if failures.is_empty() { exit::OK } else { exit::ERROR }))
}

fn tell<R: serde::Serialize>(args: &Args, report: &R, print: fn(&R)) -> serde_json::Result<()> {
    if args.json {
        println!("{}", serde_json::to_string(report)?);
    } else {
        print(report);
    }
    Ok(())
}

fn print_scenario(report: &ScenarioReport) {
    println!("{:<36} {:>12}   target", "figure", "measured");
    for figure in &report.figures {
        let target = figure.bound.map(|bound| target_text(&Target::new(figure.name, figure.value, bound)));
        let target = target.unwrap_or_default();
        println!("{:<36} {:>12}   {target}", figure.name, figure_text(figure.name, figure.value));
    }
    println!("{}", if report.failures().next().is_none() { "ok" } else { "FAILED" });
}

/// A bound in words, and whether it is kept to.
pub(super) fn target_text(target: &Target) -> String {
    let bound = match target.bound {
        Bound::AtMost(most) => format!("at most {}", figure_text(target.figure, most)),
        Bound::Within(most) => format!("within {}", figure_text(target.figure, most)),
        Bound::AtLeast(least) => format!("at least {}", figure_text(target.figure, least)),
    };
    format!("{bound}{}", if target.met { "" } else { ", missed" })
}

fn print_text(report: &Report) {
    println!("median of {} rounds           median        least         most   target", report.rounds.len());
    for (name, spread) in &report.spread {
        let shown = |value: f64| figure_text(name, value);
        let target = report.targets.iter().find(|target| target.figure == *name).map(target_text).unwrap_or_default();
        let (median, least, most) = (shown(spread.median), shown(spread.least), shown(spread.most));
        println!("{name:<32} {median:>12} {least:>12} {most:>12}   {target}");
    }
    if let Some(round) = report.rounds.last() {
        println!("\nprimitives of the last round");
        limit::print_text(&round.limits);
    }
    println!("{}", if report.failures.is_empty() { "ok" } else { "FAILED" });
}
