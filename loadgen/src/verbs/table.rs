//! `loadgen table`: the measured figures of one machine as one Markdown table.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use loadgen::bench::{Plan, Report, bench};
use loadgen::payload::Pool;
use loadgen::report::figure_text;
use loadgen::run::profile::Profile;
use loadgen::scenario::{Report as ScenarioReport, Scenario, Target};
use tidegate::fault::exit;
use tidegate::flow::{Clock as _, SystemClock};
use tidegate::pipeline::CodecChoice;
use tidegate::wire::Transport;
use tokio::runtime::Runtime;

use super::bench::{installed_azurite, target_text};
use super::run::{PayloadArgs, beside, need_open_files, runtime};
use super::{Outcome, time};

/// Options of `loadgen table`.
#[derive(clap::Args)]
pub struct Args {
    /// Folder on the disk that the journal is to be measured on; made, and must be new.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Rounds of each load.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100), default_value_t = 5)]
    rounds: u32,
    /// How long each steady load is kept.
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "10 s")]
    steady: Duration,
    /// With 10,000 idle agents for ten minutes, and a soak of an hour.
    #[arg(long)]
    long: bool,
    #[command(flatten)]
    payload: PayloadArgs,
    /// Write everything that was measured to this file too, as JSON: what the constants of `tidegate plan` are made from.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The tidegate program [default: the one beside this program].
    #[arg(long, value_name = "PATH")]
    tidegate: Option<PathBuf>,
}

/// One gateway against its primitives: what is written, and by which transport.
const BENCHES: [(Profile, Transport); 3] =
    [(Profile::Files, Transport::Quic), (Profile::Files, Transport::Tcp), (Profile::Oltp8, Transport::Quic)];
/// Figures of a bench that stand in the table besides those with a target.
const TOLD: [&str; 12] = [
    "gateway_cpu_seconds_per_gib",
    "primitives_cpu_seconds_per_gib",
    "cpu_ratio_beside",
    "floor_over_primitives",
    "cpu_over_floor",
    "throughput_bytes_per_second",
    "floor_throughput_bytes_per_second",
    "journaled_ack_seconds.p50",
    "journaled_ack_seconds.p99",
    "floor_p99_over_commit_p99",
    "rpo_seconds.p50",
    "blob_requests_per_gib",
];

/// Measures one load after the other and prints as it goes.
pub fn run(args: &Args) -> Outcome {
    std::fs::create_dir(&args.dir).map_err(|error| format!("{}: {error}", args.dir.display()))?;
    let pool = args.payload.pool()?;
    let runtime = runtime(None)?;
    let mut told = Told::default();
    println!("{}\n", machine());
    println!("| load | figure | median (least to most) | target |\n|---|---|---|---|");
    let mut failures: Vec<String> = Vec::new();
    for (number, (profile, transport)) in BENCHES.into_iter().enumerate() {
        let plan = Plan { profile, transport, ..plan(args, &format!("bench-{number}"))? };
        let report = runtime.block_on(bench(&plan, &pool, say))?;
        let load =
            format!("{} over {}", of(profile), if transport == Transport::Quic { "QUIC" } else { "TLS over TCP" });
        bench_rows(&load, &report);
        told.add(&report)?;
        failures.extend(report.failures);
    }
    let mut scenarios = vec![Scenario::Fleet, Scenario::Fairness, Scenario::Backlog, Scenario::Restore];
    if ["fio", "qemu-nbd"].iter().all(|program| is_there(program)) {
        scenarios.push(Scenario::Nbd);
    } else {
        println!("| nbd | not measured: fio and qemu-nbd are not installed | | |");
    }
    if args.long {
        scenarios.extend([Scenario::Idle, Scenario::Soak]);
    }
    for scenario in scenarios {
        let report = measure(args, scenario, &runtime, &pool)?;
        scenario_rows(&report);
        told.add(&report)?;
        failures.extend(report.failures().cloned());
    }
    runtime.shutdown_timeout(Duration::from_secs(2));
    if let Some(path) = &args.json {
        told.write(path)?;
    }
    failures.iter().take(20).for_each(|failure| eprintln!("loadgen: {failure}"));
    Ok(ExitCode::from(if failures.is_empty() { exit::OK } else { exit::ERROR }))
}

/// All reports, for a program.
#[derive(Default)]
struct Told(Vec<serde_json::Value>);

impl Told {
    fn add(&mut self, report: &impl serde::Serialize) -> serde_json::Result<()> {
        self.0.push(serde_json::to_value(report)?);
        Ok(())
    }

    fn write(&self, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
        let all = serde_json::json!({ "machine": machine(), "reports": self.0 });
        std::fs::write(path, serde_json::to_vec(&all)?).map_err(|error| format!("{}: {error}", path.display()).into())
    }
}

fn say(text: &str) {
    if std::io::stderr().is_terminal() {
        eprintln!("{text}");
    }
}

fn of(profile: Profile) -> &'static str {
    if profile == Profile::Oltp8 { "records of 8 KiB" } else { "files" }
}

/// A bench in a folder of its own, with what [`super::bench`] takes unless it is told otherwise.
fn plan(args: &Args, name: &str) -> Result<Plan, Box<dyn std::error::Error>> {
    let dir = args.dir.canonicalize()?.join(name);
    std::fs::create_dir(&dir)?;
    Ok(Plan {
        dir,
        tidegate: args.tidegate.clone().map_or_else(beside, Ok)?,
        loadgen: std::env::current_exe()?,
        profile: Profile::Files,
        agents: 4,
        disks: 2,
        disk_bytes: 1 << 30,
        bytes: 4 << 30,
        rounds: args.rounds as usize,
        steady: args.steady,
        transport: Transport::Quic,
        mtu_max_bytes: tidegate::wire::endpoint::MTU_BYTES_DEFAULT,
        seed: args.payload.seed,
        memory_bytes: 512 << 20,
        codec: CodecChoice::default(),
        uplink_bytes_per_second: 0,
        azurite: installed_azurite(),
    })
}

fn measure(
    args: &Args,
    scenario: Scenario,
    runtime: &Runtime,
    pool: &Pool,
) -> Result<ScenarioReport, Box<dyn std::error::Error>> {
    let usual = scenario.usual();
    need_open_files(usual.agents)?;
    let rounds = if usual.rounds == 1 { 1 } else { args.rounds as usize };
    let named = plan(args, usual.name)?;
    let (agents, disks) = (usual.agents as usize, usual.disks as usize);
    let plan = Plan { profile: usual.profile, agents, disks, rounds, disk_bytes: usual.disk_bytes, ..named };
    // What is in use of the memory grows with the backlog.
    let whole = usual.rounds == 1 || scenario == Scenario::Backlog;
    let duration = if whole { usual.duration } else { args.steady };
    Ok(runtime.block_on(scenario.measure(&plan, duration, pool, &mut say))?)
}

fn is_there(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    found.is_ok_and(|status| status.success())
}

fn bench_rows(load: &str, report: &Report) {
    for (name, spread) in &report.spread {
        let target = report.targets.iter().find(|target| target.figure == *name);
        if target.is_none() && !TOLD.contains(name) {
            continue;
        }
        let shown = |value: f64| figure_text(name, value);
        let (median, least, most) = (shown(spread.median), shown(spread.least), shown(spread.most));
        println!(
            "| {load} | `{name}` | {median} ({least} to {most}) | {} |",
            target.map(target_text).unwrap_or_default()
        );
    }
}

fn scenario_rows(report: &ScenarioReport) {
    let load = report.scenario.usual().name;
    for figure in &report.figures {
        let target = figure.bound.map(|bound| target_text(&Target::new(figure.name, figure.value, bound)));
        let shown = figure_text(figure.name, figure.value);
        println!("| {load} | `{}` | {shown} | {} |", figure.name, target.unwrap_or_default());
    }
}

/// The processor, cores, memory, kernel and day.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(Path::new(path)).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let cpu = field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "a processor without a name".into());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = field(&read("/proc/meminfo"), "MemTotal").and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
    let day = jiff::Timestamp::from_microsecond(SystemClock::new().wall().0 as i64)
        .map(|now| now.strftime("%Y-%m-%d").to_string())
        .unwrap_or_default();
    format!(
        "{cores} cores of {cpu}, {} GiB, Linux {}; generator, sink and gateway on this one machine; {day}",
        memory.unwrap_or(0) >> 20,
        read("/proc/sys/kernel/osrelease").trim(),
    )
}
