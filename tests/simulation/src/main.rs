//! `tests/sim`: runs seeds of the simulation.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use simulation::{Failed, Outcome, run_seed, trace};

/// Runs the whole of Tidegate under simulated time, faults included, and judges what can be restored.
#[derive(Parser)]
struct Args {
    /// Replays one seed and prints its last events.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Runs so many seeds, on every core.
    #[arg(long)]
    seeds: Option<u64>,
    /// First seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Simulated minutes of each.
    #[arg(long, default_value_t = 5)]
    minutes: u64,
    /// Runs the product with this bug in it.
    #[arg(long)]
    mutant: Option<String>,
    /// With --seed: writes every event there.
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Log level of the product in the trace: error, warn, info, debug.
    #[arg(long, default_value = "info")]
    log: tracing::Level,
    /// Processes at a time; all cores if not given.
    #[arg(long)]
    jobs: Option<usize>,
    /// Goes on after a failure.
    #[arg(long)]
    keep_going: bool,
    /// With --seed: one line for the process that counts.
    #[arg(long, hide = true)]
    brief: bool,
}

/// Where a build with bugs finds the one that it is to have.
const MUTANT: &str = "TIDEGATE_MUTANT";
/// A seed that takes longer than this by the wall clock is stuck.
const WALL_BOUND: Duration = Duration::from_secs(300);

fn main() -> ExitCode {
    let args = Args::parse();
    let result = match args.seed {
        Some(seed) => one(&args, seed),
        None => many(&args, args.seeds.unwrap_or(100)),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("sim: {error}");
            ExitCode::from(2)
        }
    }
}

/// Runs one seed in this process.
fn one(args: &Args, seed: u64) -> Result<bool, Failed> {
    if let Some(mutant) = args.mutant.as_ref().filter(|mutant| std::env::var(MUTANT).as_ref() != Ok(mutant)) {
        // The product reads the variable once; set from the start it holds for every thread.
        let error = Command::new(std::env::current_exe()?).args(std::env::args().skip(1)).env(MUTANT, mutant).exec();
        return Err(error.into());
    }
    trace::install(args.log);
    let file = args.trace.as_ref().map(File::create).transpose()?;
    let (minutes, started) = (args.minutes, now());
    let thread = std::thread::Builder::new().stack_size(16 << 20).spawn(move || run_seed(seed, minutes, file))?;
    let outcome = thread.join().map_err(|_| "the run itself panicked")??;
    let Outcome { failures, trace, simulated, counts } = outcome;
    if !args.brief || !failures.is_empty() {
        trace.last.iter().for_each(|line| println!("{line}"));
        failures.iter().for_each(|failure| println!("FAILED seed {seed}: {failure}"));
    }
    println!(
        "seed {seed} {} digest {} events {} seconds {} images {} changes {} flips {} epochs {} wall {:.2}",
        if failures.is_empty() { "ok" } else { "failed" },
        trace.digest,
        trace.events,
        simulated / 1_000_000,
        counts.images,
        counts.changes,
        counts.flips,
        counts.epochs,
        started.elapsed().as_secs_f64(),
    );
    Ok(failures.is_empty())
}

#[expect(clippy::disallowed_methods, reason = "wall time of the run, for people")]
fn now() -> Instant {
    Instant::now()
}

#[derive(Default)]
struct Totals {
    seeds: AtomicU64,
    seconds: AtomicU64,
    images: AtomicU64,
    changes: AtomicU64,
    failed: Mutex<VecDeque<u64>>,
    stop: AtomicBool,
}

/// Runs many seeds, each in a process of its own: nothing that one leaves behind can change another.
fn many(args: &Args, seeds: u64) -> Result<bool, Failed> {
    let started = now();
    let jobs = args.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(2, usize::from));
    let (next, totals) = (AtomicU64::new(args.from), Totals::default());
    let end = args.from + seeds;
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || totals.stop.load(Ordering::Relaxed) {
                        return;
                    }
                    if let Err(error) = child(args, seed, &totals) {
                        println!("FAILED seed {seed}: {error}");
                        totals.note_failure(seed, args.keep_going);
                    }
                }
            });
        }
    });
    if std::io::stdout().is_terminal() {
        print!("\r\x1b[K");
    }
    let failed = totals.failed.lock().map_err(|_| "a worker panicked")?;
    let (done, wall) = (totals.seeds.load(Ordering::Relaxed), started.elapsed().as_secs_f64());
    println!(
        "{done} seeds, {} simulated seconds, {} changes, {} images compared, {wall:.0} s, {:.2} seeds/s, {} failed",
        totals.seconds.load(Ordering::Relaxed),
        totals.changes.load(Ordering::Relaxed),
        totals.images.load(Ordering::Relaxed),
        done as f64 / wall,
        failed.len(),
    );
    if !failed.is_empty() {
        println!("failed seeds: {failed:?}; tests/sim --seed N replays one");
    }
    Ok(failed.is_empty())
}

impl Totals {
    fn note_failure(&self, seed: u64, keep_going: bool) {
        if let Ok(mut failed) = self.failed.lock() {
            failed.push_back(seed);
        }
        self.stop.fetch_or(!keep_going, Ordering::Relaxed);
    }
}

fn child(args: &Args, seed: u64, totals: &Totals) -> Result<(), Failed> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--brief", "--seed", &seed.to_string(), "--minutes", &args.minutes.to_string()]);
    if let Some(mutant) = &args.mutant {
        command.env(MUTANT, mutant);
    }
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let started = now();
    let mut output = child.stdout.take().ok_or("no output")?;
    // Read beside the wait: a child with much to say would wait for its reader.
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut output, &mut text).map(|_| text)
    });
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if started.elapsed() > WALL_BOUND {
            child.kill()?;
            return Err(format!("stuck: no end after {WALL_BOUND:?}").into());
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let text = reader.join().map_err(|_| "the reader panicked")??;
    let line = text.lines().last().unwrap_or_default();
    let field = |name: &str| -> u64 {
        let value = line.split_once(&format!(" {name} ")).and_then(|(_, rest)| rest.split(' ').next());
        value.and_then(|value| value.parse().ok()).unwrap_or(0)
    };
    totals.seeds.fetch_add(1, Ordering::Relaxed);
    totals.seconds.fetch_add(field("seconds"), Ordering::Relaxed);
    totals.images.fetch_add(field("images"), Ordering::Relaxed);
    totals.changes.fetch_add(field("changes"), Ordering::Relaxed);
    if !status.success() {
        println!("\nFAILED seed {seed}: {status}");
        let mut errors = String::new();
        if let Some(mut stderr) = child.stderr.take() {
            std::io::Read::read_to_string(&mut stderr, &mut errors)?;
        }
        print!("\n{text}{errors}");
        totals.note_failure(seed, args.keep_going);
    } else if std::io::stdout().is_terminal() {
        print!("\r{} seeds", totals.seeds.load(Ordering::Relaxed));
        std::io::stdout().flush()?;
    }
    Ok(())
}
