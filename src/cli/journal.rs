//! `tidegate journal`: look into a gateway's journal, check it, and bring what it holds to where it can be sent from.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use super::restore::{ProgressMode, show};
use super::{Failure, Outcome, keyring};
use crate::config::show_size;
use crate::fault::exit;
use crate::journal::inspect::{self, Look, OnRead, RunFigures, SegmentFigures, SegmentState};
use crate::journal::salvage::{self, Salvaged};
use crate::journal::{Damage, DamageKind};
use crate::restore::progress::Progress;

/// Options of `tidegate journal`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Show what a journal holds: segments, records of each disk, marks, damage. Changes nothing.
    ///
    /// May be run beside a running gateway; what is written at that moment then may look like damage.
    Inspect(LookArgs),
    /// Check every record of a journal against its CRC; exit code 3 if something is damaged.
    ///
    /// The gateway must be stopped. A torn tail, as every crash leaves one, is no damage. Damaged records are skipped by the
    /// gateway's start; what of them is not vaulted comes again from the agents, as long as these live.
    Verify(LookArgs),
    /// Copy what a journal holds to a new directory, from which a gateway can send it.
    ///
    /// For a disk that fails, for the disk of a gateway whose machine is gone, and for a journal whose journal.json was lost.
    /// A gateway that still starts needs none of this: it skips damage by itself.
    ///
    /// What to do: stop the old gateway; run this; set `dir` in the section [journal] of a gateway's configuration to the
    /// new directory (its id must be the one given here, its number of shards the one printed at the end); start that
    /// gateway. It sends what is not vaulted. Records that were sent already are recognised, twice does no harm.
    /// The old directory is only read.
    Salvage(SalvageArgs),
}

/// Options of inspect and verify.
#[derive(clap::Args)]
struct LookArgs {
    /// The journal's directory: `dir` in the section [journal] of the gateway's configuration.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    /// How to show progress on standard error.
    #[arg(long, value_enum, default_value_t)]
    progress: ProgressMode,
}

/// Options of salvage.
#[derive(clap::Args)]
struct SalvageArgs {
    #[command(flatten)]
    look: LookArgs,
    /// The new directory; must be absent or empty.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Id of the gateway that shall send the records; the one named in the old journal if not given.
    #[arg(long, value_name = "ID")]
    gateway: Option<String>,
}

/// Runs the verb.
pub fn run(args: Args) -> Outcome {
    match args.verb {
        Verb::Inspect(args) => run_inspect(&args),
        Verb::Verify(args) => run_verify(&args),
        Verb::Salvage(args) => run_salvage(&args),
    }
}

/// Does blocking work with its progress shown.
fn watched<T: Send + 'static>(
    mode: ProgressMode,
    dir: &Path,
    copies: u64,
    work: impl FnOnce(OnRead) -> T + Send + 'static,
) -> Result<T, Failure> {
    let progress = Arc::new(Progress::default());
    // Looking reads everything twice; a copy reads it once more and is then looked at itself.
    let look_bytes = inspect::size_bytes(dir).map_err(|error| Failure::of(&error))?;
    progress.start(look_bytes * (1 + copies) + look_bytes / 2 * copies);
    let counted = Arc::clone(&progress);
    let on_read: OnRead = Arc::new(move |bytes| counted.add(bytes));
    keyring::runtime()?.block_on(async {
        let display = tokio::spawn(show(mode, progress));
        let done = tokio::task::spawn_blocking(move || work(on_read)).await;
        display.abort();
        // Wait for its end, or the bar would be drawn into what follows.
        let _ = display.await;
        done.map_err(|error| Failure::error(format!("reading the journal panicked: {error}")))
    })
}

fn look(args: &LookArgs) -> Result<Look, Failure> {
    let dir = args.dir.clone();
    if !dir.is_dir() {
        return Err(Failure::usage(format!(
            "{} is no directory: name the `dir` of the section [journal] of gateway.toml",
            dir.display()
        )));
    }
    let looked = watched(args.progress, &args.dir, 0, move |on_read| inspect::look(&dir, on_read))?;
    looked.map_err(|error| Failure::of(&error))
}

fn run_inspect(args: &LookArgs) -> Outcome {
    let looked = look(args)?;
    if args.json {
        println!("{}", look_json(&looked));
    } else {
        print_head(&looked);
        looked.segments.iter().for_each(print_segment);
        print_runs(&looked);
        print_damage(&looked);
    }
    Ok(exit::OK)
}

fn run_verify(args: &LookArgs) -> Outcome {
    let _held = inspect::hold(&args.dir).map_err(|error| Failure::of(&error))?;
    let looked = look(args)?;
    if args.json {
        println!("{}", look_json(&looked));
    } else {
        print_head(&looked);
        print_damage(&looked);
        let checked: u64 = looked.segments.iter().map(|segment| segment.records).sum();
        println!("{checked} records in {} commits checked", looked.commits);
        println!("{}", if looked.is_whole() { "ok" } else { "DAMAGED" });
    }
    Ok(if looked.is_whole() { exit::OK } else { exit::DAMAGE })
}

fn run_salvage(args: &SalvageArgs) -> Outcome {
    let (dir, to, gateway) = (args.look.dir.clone(), args.to.clone(), args.gateway.clone());
    let work = move |on_read| salvage::salvage(&dir, &to, gateway.as_deref(), &on_read);
    let salvaged = watched(args.look.progress, &args.look.dir, 1, work)?.map_err(|error| Failure::of(&error))?;
    if args.look.json {
        println!("{}", salvaged_json(&salvaged));
    } else {
        print_salvaged(&salvaged);
    }
    Ok(exit::OK)
}

fn print_head(look: &Look) {
    let gateway = look.whose.gateway.as_deref().unwrap_or("unknown");
    println!(
        "journal {} of gateway {gateway} in {}: {} shards",
        look.whose.journal,
        look.dir.display(),
        look.whose.shards
    );
    if let Some(what) = &look.whose.identity_damage {
        println!("journal.json is of no use ({what}): id and shards as the segments say");
    }
    if look.in_use {
        println!(
            "a gateway has it open: these are the figures of a moment, and what is being written may look like damage"
        );
    }
    let needed = look.segments.iter().filter(|segment| segment.state == SegmentState::Needed).count();
    let free = look.segments.iter().filter(|segment| segment.state == SegmentState::Free).count();
    let file_bytes: u64 = look.segments.iter().map(|segment| segment.file_bytes).sum();
    println!(
        "{} segments, {}: {needed} with records that are not vaulted, {free} free; {} commits, {}",
        look.segments.len(),
        show_size(file_bytes),
        look.commits,
        show_size(look.bytes)
    );
}

fn state_word(state: SegmentState) -> &'static str {
    match state {
        SegmentState::Needed => "needed",
        SegmentState::Vaulted => "vaulted",
        SegmentState::Free => "free",
    }
}

fn print_segment(segment: &SegmentFigures) {
    let name = segment.file.file_name().unwrap_or_default().to_string_lossy();
    let numbers = segment.numbers.map_or(String::new(), |(first, last)| format!(" (no. {first} to {last})"));
    println!(
        "shard {:02}  {name}  {:<7}  {} of {}, {} commits{numbers}, {} records, {} marks, {} notes",
        segment.shard,
        state_word(segment.state),
        show_size(segment.end_bytes),
        show_size(segment.file_bytes),
        segment.commits,
        segment.records,
        segment.marks,
        segment.notes,
    );
}

fn print_runs(look: &Look) {
    for run in &look.runs {
        println!("{}", run_line(run));
    }
}

fn run_line(run: &RunFigures) -> String {
    let vaulted = run.vaulted.map_or("no mark".to_owned(), |seq| format!("vaulted to s{seq}"));
    let ranges: Vec<String> = run.ranges.iter().map(|range| format!("s{} to s{}", range.first, range.last)).collect();
    let here = if ranges.is_empty() { "nothing to send".to_owned() } else { format!("here: {}", ranges.join(", ")) };
    format!("disk {}  epoch {}  {vaulted}  {here}", run.disk, run.epoch)
}

fn print_damage(look: &Look) {
    for damage in &look.damage {
        let ordinary =
            if damage.kind == DamageKind::TornTail { " (ordinary after a crash: it was never acked)" } else { "" };
        println!("{damage}{ordinary}");
    }
    for run in &look.runs {
        for (first, last) in run.gaps() {
            println!(
                "missing: disk {} epoch {} s{first} to s{last}: not vaulted as far as this journal knows; the agent sends it again",
                run.disk, run.epoch
            );
        }
    }
}

fn print_salvaged(salvaged: &Salvaged) {
    let Salvaged { to, .. } = salvaged;
    println!("{} segments, {} copied to {}", salvaged.segments, show_size(salvaged.bytes), to.dir.display());
    if salvaged.unreadable_bytes > 0 {
        println!("{} could not be read and are left out", show_size(salvaged.unreadable_bytes));
    }
    print_runs(to);
    print_damage(to);
    println!("{} records can be sent", to.records());
    let gateway = to.whose.gateway.as_deref().unwrap_or_default();
    println!(
        "next: in the configuration of gateway {gateway}, section [journal], set dir = {:?} and shards = {}, and start it",
        to.dir.display().to_string(),
        to.whose.shards
    );
}

fn damage_json(damage: &Damage) -> Value {
    let kind = match damage.kind {
        DamageKind::TornTail => "torn-tail",
        DamageKind::Commit => "commit",
        DamageKind::Record => "record",
        DamageKind::Conflict => "conflict",
    };
    let records: Vec<Value> =
        damage.records.iter().map(|(disk, point)| json!({ "disk": disk, "point": point.to_string() })).collect();
    json!({
        "kind": kind,
        "file": damage.file,
        "offset_bytes": damage.offset_bytes,
        "length_bytes": damage.length_bytes,
        "records": records,
    })
}

fn segment_json(segment: &SegmentFigures) -> Value {
    json!({
        "shard": segment.shard,
        "segment": segment.segment,
        "file": segment.file,
        "state": state_word(segment.state),
        "file_bytes": segment.file_bytes,
        "end_bytes": segment.end_bytes,
        "commits": segment.commits,
        "records": segment.records,
        "marks": segment.marks,
        "notes": segment.notes,
    })
}

fn run_json(run: &RunFigures) -> Value {
    let ranges: Vec<Value> =
        run.ranges.iter().map(|range| json!({ "first": range.first.0, "last": range.last.0 })).collect();
    let gaps: Vec<Value> = run.gaps().iter().map(|(first, last)| json!({ "first": first.0, "last": last.0 })).collect();
    json!({
        "disk": run.disk,
        "epoch": run.epoch.0,
        "vaulted": run.vaulted.map(|seq| seq.0),
        "records": run.records(),
        "ranges": ranges,
        "missing": gaps,
    })
}

pub(super) fn look_json(look: &Look) -> Value {
    json!({
        "dir": look.dir,
        "journal": look.whose.journal.to_string(),
        "gateway": look.whose.gateway,
        "shards": look.whose.shards,
        "identity_damage": look.whose.identity_damage,
        "in_use": look.in_use,
        "whole": look.is_whole(),
        "commits": look.commits,
        "commit_bytes": look.bytes,
        "unvaulted_records": look.records(),
        "segments": look.segments.iter().map(segment_json).collect::<Vec<_>>(),
        "runs": look.runs.iter().map(run_json).collect::<Vec<_>>(),
        "damage": look.damage.iter().map(damage_json).collect::<Vec<_>>(),
    })
}

fn salvaged_json(salvaged: &Salvaged) -> Value {
    json!({
        "segments": salvaged.segments,
        "bytes": salvaged.bytes,
        "unreadable_bytes": salvaged.unreadable_bytes,
        "journal": look_json(&salvaged.to),
    })
}
