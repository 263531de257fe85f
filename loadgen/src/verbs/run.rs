//! `loadgen run`.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use loadgen::chance::Share;
use loadgen::payload::{POOL_BYTES_DEFAULT, Pool, Source};
use loadgen::run::outcome::{Outcome as Figures, Sample};
use loadgen::run::profile::{Profile, TraceWrite, read_trace};
use loadgen::run::tally::Latency;
use loadgen::run::verify::{Restore, verify};
use loadgen::run::{Done, Plan, run as execute};
use tidegate::config::show_size;
use tidegate::fault::exit;
use tidegate::wire::Transport;

use super::{Outcome, size, time};

/// A run that nobody bounds ends after this.
const DURATION_DEFAULT: Duration = Duration::from_secs(30);

/// What the payload is.
#[derive(clap::Args, Clone, Debug)]
pub struct PayloadArgs {
    /// Files or folders that payload is read from [default: files of this machine that are no secret].
    #[arg(long = "payload", value_name = "PATH", conflicts_with = "ratio")]
    payload: Vec<PathBuf>,
    /// Make payload that LZ4 shrinks by this factor, for example 2.5.
    #[arg(long, value_name = "FACTOR", value_parser = ratio)]
    ratio: Option<f64>,
    /// Payload that is made beforehand; writes take slices of it.
    #[arg(long, value_name = "SIZE", value_parser = size, default_value_t = POOL_BYTES_DEFAULT)]
    pool: u64,
    /// Decides where and when writes come, and what made payload is.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

fn ratio(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|ratio| (1.0..=200.0).contains(ratio)).ok_or_else(|| "write a factor from 1 to 200".into())
}

impl PayloadArgs {
    /// Makes the pool.
    ///
    /// # Errors
    /// If files cannot be read.
    pub fn pool(&self) -> std::io::Result<Pool> {
        let source = match self.ratio {
            Some(ratio) => Source::Ratio(ratio),
            None if self.payload.is_empty() => Source::Usual,
            None => Source::Files(self.payload.clone()),
        };
        Pool::fill(&source, self.pool, self.seed)
    }
}

/// Options of `loadgen run`.
#[derive(clap::Args)]
pub struct Args {
    /// The gateway, host:port.
    #[arg(long, value_name = "ADDRESS")]
    gateway: String,
    /// Folder of the vault's authority with its key (`tidegate pki init`): agents get certificates from it.
    #[arg(long, value_name = "DIR")]
    authority: PathBuf,
    /// Agents, each with a certificate, a socket and a connection of its own.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    agents: u32,
    /// Disks of each agent.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    disks: u32,
    /// Size of each disk.
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "1 GiB")]
    disk_size: u64,
    /// copy, oltp8, oltp16, log, files, idle, burst, mixed or trace.
    #[arg(long, default_value = "files")]
    profile: Profile,
    /// File for --profile trace: lines of seconds,offset,length[,w|z].
    #[arg(long, value_name = "FILE", required_if_eq("profile", "trace"))]
    trace: Option<PathBuf>,
    /// Writes that are zeroes.
    #[arg(long, value_name = "SHARE", default_value = "0%")]
    zero: Share,
    /// What all disks together write per second, however slow the gateway is: "40 MiB". 0: as much as it takes.
    /// [default: 0; for idle, 4 KiB per disk every 5 s]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    rate: Option<u64>,
    /// For so long the rate grows from nothing.
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "0 s")]
    ramp: Duration,
    /// For how long it writes [default: 30 s, unless --bytes is given].
    #[arg(long, value_name = "TIME", value_parser = time)]
    duration: Option<Duration>,
    /// How much all disks together write.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    bytes: Option<u64>,
    #[command(flatten)]
    payload: PayloadArgs,
    /// quic, or tcp for TLS over TCP.
    #[arg(long, default_value = "quic")]
    transport: Transport,
    /// Largest UDP payload that path discovery may try; the gateway must allow it too.
    #[arg(long, value_name = "BYTES", default_value_t = tidegate::wire::endpoint::MTU_BYTES_DEFAULT,
          value_parser = clap::value_parser!(u16).range(1200..=65_000))]
    mtu: u16,
    /// How long everybody is connected before the first write.
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "0 s")]
    settle: Duration,
    /// How long connecting may take, and at the end the vault.
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "5 min")]
    patience: Duration,
    /// The gateway's admin port: its counts are held against what was sent.
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
    /// The gateway's process: its memory and processor time are told.
    #[arg(long, value_name = "PID")]
    gateway_pid: Option<u32>,
    /// Restore so many disks at the end and compare their hashes; needs --vault and --identity.
    #[arg(long, value_name = "DISKS", default_value_t = 0, requires = "vault", requires = "identity")]
    verify: usize,
    /// URL of the vault, for --verify.
    #[arg(long, value_name = "URL")]
    vault: Option<String>,
    /// File of the recovery identity, for --verify.
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// The tidegate program, for --verify [default: the one beside this program].
    #[arg(long, value_name = "PATH")]
    tidegate: Option<PathBuf>,
    /// Folder with room for one image, for --verify [default: that of temporary files].
    #[arg(long, value_name = "DIR")]
    restore_dir: Option<PathBuf>,
    /// Threads [default: one per core].
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Print one JSON object instead of a table; `loadgen report` draws it.
    #[arg(long)]
    json: bool,
}

/// The `tidegate` program beside this one.
pub fn beside() -> std::io::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name("tidegate"))
}

/// Files that are open beside one socket per agent.
const OPEN_FILES_SPARE: u64 = 256;

/// Raises the bound of open files as far as this process may, for each agent has a socket.
///
/// # Errors
/// If that is not enough.
pub fn need_open_files(agents: u32) -> Result<(), String> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let wanted = u64::from(agents) + OPEN_FILES_SPARE;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    limit.current = limit.maximum;
    // What it came to is read back.
    let _ = setrlimit(Resource::Nofile, limit);
    match getrlimit(Resource::Nofile).current {
        Some(current) if current < wanted => {
            Err(format!("{agents} agents need {wanted} open files, and {current} are allowed: `ulimit -n {wanted}`"))
        }
        _ => Ok(()),
    }
}

/// A runtime for agents.
pub fn runtime(threads: Option<usize>) -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = threads {
        builder.worker_threads(threads.max(1));
    }
    builder.enable_all().thread_name("agents").build()
}

/// Runs to the end and tells what came of it.
pub fn run(args: &Args) -> Outcome {
    let plan = plan(args)?;
    need_open_files(args.agents)?;
    let pool = args.payload.pool()?;
    let ratio = pool.ratio();
    // Progress is for somebody who looks on, and never in the way of what is kept.
    let looked_at = std::io::stderr().is_terminal();
    let runtime = runtime(args.threads)?;
    let Done { mut outcome, ended } = runtime.block_on(execute(&plan, pool.clone(), |sample| {
        if looked_at {
            eprint!("\r\x1b[K{}", progress(sample));
        }
    }))?;
    runtime.shutdown_timeout(Duration::from_secs(2));
    if looked_at {
        eprintln!();
    }
    outcome.payload_ratio = ratio;
    if let Some(restore) = restore(args)? {
        let verified = verify(&restore, &pool, &ended);
        outcome.failures.extend(verified.differences.iter().cloned());
        outcome.verified = Some(verified);
    }
    if args.json {
        println!("{}", serde_json::to_string(&outcome)?);
    } else {
        print_text(&outcome);
    }
    outcome.failures.iter().take(20).for_each(|failure| eprintln!("loadgen: {failure}"));
    let differs = outcome.verified.as_ref().is_some_and(|verified| !verified.differences.is_empty());
    Ok(ExitCode::from(match (differs, outcome.failures.is_empty()) {
        (true, _) => exit::DAMAGE,
        (false, true) => exit::OK,
        (false, false) => exit::ERROR,
    }))
}

fn plan(args: &Args) -> Result<Plan, Box<dyn std::error::Error>> {
    let trace: Arc<[TraceWrite]> = match &args.trace {
        None => Arc::new([]),
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
            read_trace(&text).map_err(|error| format!("{}: {error}", path.display()))?.into()
        }
    };
    let disks = u64::from(args.agents) * u64::from(args.disks);
    let trickle = if args.profile == Profile::Idle { disks * 4096 / 5 } else { 0 };
    let end = (args.duration, args.bytes, args.profile == Profile::Trace);
    let duration = if end == (None, None, false) { Some(DURATION_DEFAULT) } else { args.duration };
    Ok(Plan {
        gateway: args.gateway.clone(),
        authority: args.authority.clone(),
        agents: args.agents as usize,
        disks: args.disks as usize,
        disk_bytes: args.disk_size.max(1 << 20) / 4096 * 4096,
        profile: args.profile,
        trace,
        zero: args.zero,
        bytes_per_second: args.rate.unwrap_or(trickle),
        ramp: args.ramp,
        duration,
        bytes: args.bytes,
        transport: args.transport,
        mtu_max_bytes: args.mtu,
        seed: args.payload.seed,
        settle: args.settle,
        patience: args.patience,
        admin: args.admin,
        gateway_pid: args.gateway_pid,
        keep_images: args.verify > 0,
    })
}

fn restore(args: &Args) -> Result<Option<Restore>, Box<dyn std::error::Error>> {
    let (Some(vault), Some(identity), true) = (&args.vault, &args.identity, args.verify > 0) else { return Ok(None) };
    let program = args.tidegate.clone().map_or_else(beside, Ok)?;
    let folder = args.restore_dir.clone().unwrap_or_else(std::env::temp_dir);
    Ok(Some(Restore { program, vault: vault.clone(), identity: identity.clone(), folder, disks_max: args.verify }))
}

fn progress(sample: &Sample) -> String {
    format!(
        "{:>5.0} s  sent {}, vaulted {}, journaled p99 {}, oldest {}",
        sample.seconds,
        show_size(sample.sent_bytes),
        show_size(sample.vaulted_bytes),
        seconds(sample.journaled.p99),
        seconds(sample.oldest_seconds)
    )
}

/// Seconds in the unit that suits them.
pub fn seconds(value: f64) -> String {
    match value {
        value if value >= 1.0 => format!("{value:.2} s"),
        value if value >= 1e-3 => format!("{:.2} ms", value * 1e3),
        value => format!("{:.0} us", value * 1e6),
    }
}

fn percentiles(latency: &Latency) -> String {
    format!(
        "p50 {}, p99 {}, p99.9 {}, longest {}",
        seconds(latency.p50),
        seconds(latency.p99),
        seconds(latency.p999),
        seconds(latency.max)
    )
}

fn print_text(outcome: &Figures) {
    let per_second = |bytes: f64| format!("{:.1} MB/s", bytes / 1e6);
    println!(
        "connected      {} agents with {} disks each in {:.1} s",
        outcome.agents, outcome.disks_each, outcome.connect_seconds
    );
    println!("payload        LZ4 makes it {:.2} times smaller", outcome.payload_ratio);
    println!("sent           {} in {} records", show_size(outcome.sent_bytes), outcome.sent_records);
    println!("until vaulted  {:.2} s: {}", outcome.seconds, per_second(outcome.throughput_bytes_per_second));
    if outcome.offered_bytes_per_second > 0 {
        let offered = per_second(outcome.offered_bytes_per_second as f64);
        println!("open loop      {offered}; this program was late by at most {}", seconds(outcome.late_seconds_max));
    } else {
        println!("closed loop    latencies count from when the connection was free to take a record");
    }
    println!("journaled      {}", percentiles(&outcome.journaled_ack_seconds));
    println!("vaulted        {}", percentiles(&outcome.rpo_seconds));
    let gib = outcome.sent_bytes as f64 / f64::from(1 << 30);
    if let Some(used) = outcome.gateway.and_then(|gateway| gateway.used) {
        println!(
            "gateway        {:.2} CPU s, {:.2} per GiB; memory at most {}",
            used.cpu_seconds,
            used.cpu_seconds / gib,
            show_size(used.memory_peak_bytes)
        );
    }
    if let Some(counted) = outcome.gateway.and_then(|gateway| gateway.counted) {
        println!(
            "counted        received {}, journaled {}, vaulted {} records; {} blob requests",
            counted.received_records, counted.journaled_records, counted.vaulted_records, counted.blob_requests
        );
    }
    if let Some(verified) = &outcome.verified {
        println!("restored       {} disks, {} differ", verified.disks, verified.differences.len());
    }
    println!("{}", if outcome.failures.is_empty() { "ok" } else { "FAILED" });
}
