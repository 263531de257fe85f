//! `tidegate verify`: is the vault whole?

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::time::Instant;

use super::keyring::{self, Opened, VaultArgs};
use super::restore::{ProgressMode, limits, memory, show};
use super::run_file::{RunFile, VerifyFigures, VerifyRound};
use super::{Failure, Outcome};
use crate::config::{parse_size, show_size};
use crate::fault::exit;
use crate::flow::{Clock, SystemClock};
use crate::restore::progress::Progress;
use crate::restore::verify::sample::{self, Quota};
use crate::restore::verify::state::State;
use crate::restore::verify::{self, Level, Report, Sampled, SignedReport, VerifyOptions, Witness};
use crate::signed::Authority;
use crate::signed::heads::{HEADS_BYTES_MAX, Heads};
use crate::telemetry::traces::within;
use crate::types::{DiskId, Id128, Micros};

/// Options of `tidegate verify`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    vault: VaultArgs,
    /// How deep to look; the default is the deepest that the keys at hand allow.
    #[arg(long, value_enum)]
    level: Option<LevelArg>,
    /// Messages to open at level data: a share (10%) or a number; with --state others each time, else drawn anew.
    #[arg(long, value_name = "PERCENT%|N", value_parser = quota, default_value = "100%")]
    sample: Quota,
    /// Bytes of messages to read at level data, such as 20 GiB; in the place of --sample.
    #[arg(long, value_name = "SIZE", value_parser = budget, conflicts_with = "sample")]
    budget: Option<Quota>,
    /// Remember here what was opened, so that runs take turns until all of it was, and that damage is looked at again each time
    /// until it is whole. Give each vault a file of its own.
    #[arg(long, value_name = "FILE", conflicts_with = "disk")]
    state: Option<PathBuf>,
    /// Only this disk's indexes and data.
    #[arg(long)]
    disk: Option<DiskId>,
    /// The authority that issues the agents' certificates, as `tidegate pki init` made it (ca.crt): whose signatures count. Without
    /// it they are checked against the certificates that the vault holds.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// What an agent was told to be vaulted, as `tidegate agent --heads` prints it: tells whether the end of a history was taken
    /// away. May be given more than once.
    #[arg(long, value_name = "FILE")]
    heads: Vec<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    /// How to show progress on standard error.
    #[arg(long, value_enum, default_value_t)]
    progress: ProgressMode,
    /// Leave a file for node-exporter's textfile collector that tells of this run: its name ends in .prom.
    #[arg(long, value_name = "FILE.prom")]
    metrics_file: Option<RunFile>,
    /// Memory for data on its way from the vault.
    #[arg(long, value_name = "SIZE", value_parser = memory, default_value = "256 MiB")]
    memory: u64,
    /// Reads of the vault at the same time.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
}

/// How deep to look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum LevelArg {
    /// Names and control objects; needs no key.
    List,
    /// And all indexes; needs the catalog key or the identity.
    Index,
    /// And the data; needs the identity.
    Data,
}

fn quota(text: &str) -> Result<Quota, String> {
    let Some(number) = text.trim().strip_suffix('%') else {
        return match text.trim().parse() {
            Ok(count @ 1..) => Ok(Quota::Messages(count)),
            _ => Err("expected a share, for example 10%, or a number of messages".to_owned()),
        };
    };
    match number.trim().parse::<f64>() {
        Ok(100.0) => Ok(Quota::All),
        Ok(percent) if percent > 0.0 && percent < 100.0 => Ok(Quota::Share(percent / 100.0)),
        _ => Err("expected more than 0 and at most 100 percent, for example 10%".to_owned()),
    }
}

fn budget(text: &str) -> Result<Quota, String> {
    match parse_size(text) {
        Some(bytes @ 1..) => Ok(Quota::Bytes(bytes)),
        _ => Err("expected a size such as 20 GiB".to_owned()),
    }
}

fn level(asked: Option<LevelArg>, opened: &Opened) -> Result<Level, Failure> {
    let (catalog, identity) = (opened.vault.catalog_key().is_some(), opened.identity.is_some());
    match asked {
        None if identity => Ok(Level::Data),
        None if catalog => Ok(Level::Index),
        None | Some(LevelArg::List) => Ok(Level::List),
        Some(LevelArg::Index) if catalog => Ok(Level::Index),
        Some(LevelArg::Data) if identity => Ok(Level::Data),
        Some(LevelArg::Index) => Err(Failure::usage(
            "level index needs a key: give --catalog-key FILE or --identity FILE (or verify with --level list)",
        )),
        Some(LevelArg::Data) => Err(Failure::usage(
            "level data needs the recovery identity: give --identity FILE (or verify with --level index)",
        )),
    }
}

/// Runs the verb.
#[expect(clippy::needless_pass_by_value, reason = "every verb is called alike")]
pub fn run(args: Args) -> Outcome {
    let (runtime, started) = (keyring::runtime()?, Instant::now());
    let mut figures = VerifyFigures::default();
    let outcome = runtime.block_on(within(tracing::info_span!("verify"), check(&args, &mut figures)));
    if let Some(file) = &args.metrics_file {
        let whole = matches!(outcome, Ok(exit::OK));
        file.tell_verify(SystemClock::new().wall(), started.elapsed(), whole, &figures);
    }
    outcome
}

/// What the operator brings that does not come from the vault.
fn witness(ca: Option<&Path>, heads: &[PathBuf], vault: Id128) -> Result<Witness, Failure> {
    let authority = ca.map(Authority::load).transpose().map_err(|error| Failure::of(&error))?;
    let mut witness = Witness { authority, heads: Vec::new() };
    for path in heads {
        let unusable = |what: &dyn std::fmt::Display| Failure::usage(format!("{}: {what}", path.display()));
        let file = std::fs::File::open(path).map_err(|error| unusable(&error))?;
        let mut text = String::new();
        file.take(HEADS_BYTES_MAX).read_to_string(&mut text).map_err(|error| unusable(&error))?;
        let read = Heads::parse(&text).and_then(|read| read.of_vault(vault)).map_err(|error| unusable(&error))?;
        witness.heads.extend(read.heads);
    }
    Ok(witness)
}

async fn check(args: &Args, figures: &mut VerifyFigures) -> Outcome {
    let opened = args.vault.open().await?;
    let level = level(args.level, &opened)?;
    if args.state.is_some() && level != Level::Data {
        return Err(Failure::usage(
            "--state remembers which data was opened: that needs --level data, and --identity FILE",
        ));
    }
    let mut state = args.state.as_deref().map(|path| remembered(path, &opened)).transpose()?;
    let options = VerifyOptions {
        level,
        sample: args.budget.unwrap_or(args.sample),
        draw: state.as_ref().map(|state| state.draw.clone()),
        disk: args.disk.clone(),
        limits: limits(args.memory, args.jobs),
    };
    let witness = witness(args.ca.as_deref(), &args.heads, opened.vault.id())?;
    if options.level < Level::Index && !witness.heads.is_empty() {
        return Err(Failure::usage("--heads needs level index or data: give --catalog-key FILE or --identity FILE"));
    }
    let progress = Arc::new(Progress::default());
    let display = tokio::spawn(show(args.progress, Arc::clone(&progress)));
    let span = tracing::info_span!("look at vault", level = ?options.level);
    let looked = verify::verify_with(&opened.vault, opened.identity.as_ref(), &options, &witness, progress);
    let result = within(span, looked).await;
    display.abort();
    let _ = display.await;
    let report = result.map_err(|error| Failure::of(&error))?;
    let round = state.as_ref().zip(report.sampled.as_ref()).map(|(state, sampled)| Round::of(state, sampled));
    *figures = figures_of(&report, round.as_ref());
    if let (Some(path), Some(state), Some(sampled)) = (&args.state, &mut state, &report.sampled) {
        state.advance(sampled, SystemClock::new().wall());
        state.write(path).map_err(|error| Failure::of(&error))?;
    }
    if args.json {
        let mut out = serde_json::to_value(&report)?;
        out["round"] = serde_json::to_value(&round)?;
        println!("{out}");
    } else {
        print_text(&report, round.as_ref());
    }
    Ok(if report.damage.is_empty() { exit::OK } else { exit::DAMAGE })
}

/// What was remembered, or a new round.
fn remembered(path: &Path, opened: &Opened) -> Result<State, Failure> {
    let vault = opened.vault.id();
    let found = State::read(path, vault).map_err(|error| Failure::of(&error))?;
    if let Some(state) = found {
        return Ok(state);
    }
    if path.exists() {
        eprintln!("tidegate: warning: {} is damaged: the round begins anew", path.display());
    }
    State::new(vault, SystemClock::new().wall()).map_err(|error| Failure::of(&error))
}

/// How far the runs that take turns have come.
#[derive(serde::Serialize)]
struct Round {
    /// Its number.
    round: u64,
    /// When it began.
    began: String,
    /// When the last one ended that opened everything.
    last_whole: Option<String>,
    /// Share of the messages that it has opened.
    seen_ratio: f64,
    /// Runs like this one until it has opened everything that was there when it began.
    runs_left: u64,
    #[serde(skip)]
    began_micros: Micros,
}

impl Round {
    fn of(state: &State, sampled: &Sampled) -> Self {
        Self {
            round: state.round,
            began: state.began.to_string(),
            last_whole: state.whole.map(|whole| whole.to_string()),
            seen_ratio: share(sampled.seen_messages, sampled.messages),
            runs_left: sampled.runs_left,
            began_micros: state.began,
        }
    }
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 1.0 } else { part as f64 / whole as f64 }
}

fn figures_of(report: &Report, round: Option<&Round>) -> VerifyFigures {
    VerifyFigures {
        bytes: report.bytes,
        damage: report.damage.len() as u64,
        disks: report.disks.iter().map(|disk| (disk.disk.clone(), disk.damage)).collect(),
        round: round.map(|round| VerifyRound { began: round.began_micros, seen_ratio: round.seen_ratio }),
    }
}

/// What a sample says, and what it does not.
fn print_sample(report: &Report, round: Option<&Round>) {
    let (Some(sampled), level) = (&report.sampled, report.level) else { return };
    if level != Level::Data {
        return;
    }
    let Some(round) = round else {
        let runs = sample::runs_for(share(report.messages_checked, report.messages));
        let chance = 100.0 * sample::CHANCE;
        println!(
            "drawn anew each time: {runs} such runs open a message with a chance of {chance:.0} % (--state makes it certain)"
        );
        return;
    };
    let (began, percent) = (&round.began, 100.0 * round.seen_ratio);
    print!(
        "round {} since {began}: {} of {} messages opened, {percent:.1} %",
        round.round, sampled.seen_messages, sampled.messages
    );
    match round.runs_left {
        0 => println!("; everything that was there when it began"),
        1 => println!("; 1 more run like this opens the rest"),
        runs => println!("; {runs} more runs like this open the rest"),
    }
}

fn signed_text(signed: &SignedReport, is_sample: bool) -> String {
    if is_sample {
        return format!("; {} signed barriers in what was opened", signed.barriers);
    }
    let Some(through) = &signed.through else { return "; no barrier is signed: its agent is older".to_owned() };
    let agents = signed.agents.iter().map(String::as_str).collect::<Vec<_>>().join(" and ");
    let older = if signed.unsigned > 0 { format!(", {} barriers without", signed.unsigned) } else { String::new() };
    let vouched = if signed.vouched { "" } else { ", for which nobody vouched" };
    format!("; signed through {through} by agent {agents}{vouched}{older}")
}

fn print_text(report: &Report, round: Option<&Round>) {
    let depth = match report.level {
        Level::List => "names and control objects",
        Level::Index => "names, control objects and indexes",
        Level::Data => "names, control objects, indexes and data",
    };
    let macs = if report.authenticated { "" } else { " (no key at hand: nothing was authenticated)" };
    println!("vault {}: {depth}{macs}", report.vault);
    let size = show_size(report.bytes);
    println!("{} objects, {size}; {} batches in {} lanes", report.objects, report.batches, report.lanes);
    if report.level == Level::Data {
        println!("{} of {} messages opened", report.messages_checked, report.messages);
        if report.messages_shredded > 0 {
            println!("{} messages of shredded disks stepped over", report.messages_shredded);
        }
    }
    print_sample(report, round);
    for disk in &report.disks {
        let newest = match (&disk.newest_point, &disk.newest_time) {
            (Some(id), Some(time)) => format!("newest {id} at {time}"),
            _ => "none yet".to_owned(),
        };
        let is_sample = report.sampled.is_some() && report.messages_checked < report.messages;
        if let Some(made) = &disk.shredded {
            println!("disk {}: {}, shredded at {made}", disk.disk, show_size(disk.size_bytes));
            continue;
        }
        let signed = disk.signed.as_ref().map(|signed| signed_text(signed, is_sample)).unwrap_or_default();
        println!("disk {}: {}, {} points, {newest}{signed}", disk.disk, show_size(disk.size_bytes), disk.points);
    }
    for damage in &report.damage {
        println!("damage: {damage}");
    }
    for late in &report.late {
        println!("not vaulted yet: {late}");
    }
    for note in &report.notes {
        println!("note: {note}");
    }
    match report.damage.len() {
        0 => println!("ok"),
        1 => println!("DAMAGED: 1 finding"),
        count => println!("DAMAGED: {count} findings"),
    }
}
