//! `tidegate points`: the recovery points of a disk, or of groups of disks.

mod groups;

use jiff::tz::TimeZone;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::keyring::{self, Opened, VaultArgs};
use super::{Failure, Outcome};
use crate::config::show_size;
use crate::fault::exit;
use crate::flow::{Clock, SystemClock};
use crate::gateway::habit::{self, EventView};
use crate::restore::ask;
use crate::restore::damage::Damage;
use crate::restore::history::{Gap, History};
use crate::restore::points::{self, Ask, Point};
use crate::restore::source;
use crate::telemetry::traces::within;
use crate::types::{BarrierKind, DiskId, Id128, Micros};
use crate::vault::reader::{Catalog, Want};
use crate::vault::{Vault, names};

/// Plain crash points that the text shows unless all are asked for: the newest.
const CRASH_POINTS_SHOWN: usize = 20;

/// Options of `tidegate points`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    vault: VaultArgs,
    /// The disk.
    #[arg(long, required_unless_present = "groups", conflicts_with = "groups")]
    disk: Option<DiskId>,
    /// The points of groups: those that several disks took at one moment; with an id only that one.
    #[arg(long, value_name = "ID", num_args = 0..=1)]
    groups: Option<Option<Id128>>,
    /// Only the last point at or before this time and the first after it: 2026-11-22T21:00:05Z, "2026-11-22 21:00:05"
    /// (local), now, "-10 min".
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    near: Option<String>,
    /// Since when the disk's writes pack no more, if ever, and the last point before: what a gateway tells of a disk that may be being
    /// encrypted, found again in the vault's indexes.
    #[arg(long, requires = "disk", conflicts_with_all = ["near", "all"])]
    events: bool,
    /// Print every point; otherwise the named ones and the newest. JSON always has all.
    #[arg(long)]
    all: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// What the vault says of one disk.
pub(super) struct DiskView {
    pub(super) catalog: Catalog,
    pub(super) history: History,
    pub(super) points: Vec<Point>,
    /// What is wrong with the lanes that carried the disk.
    pub(super) damage: Vec<Damage>,
}

/// Loads everything about one disk, which is the one that `want` names.
///
/// # Errors
/// [`Failure`] if the vault does not know the disk, or cannot be read, or the disk was shredded.
pub(super) async fn load(vault: &Vault, disk: &DiskId, want: &Want) -> Result<DiskView, Failure> {
    load_if_there(vault, disk, want).await?.map_err(Failure::error)
}

/// The same, for who asks for many disks: of one that was shredded, that and when and why.
pub(super) async fn load_if_there(
    vault: &Vault,
    disk: &DiskId,
    want: &Want,
) -> Result<Result<DiskView, String>, Failure> {
    let failure = |error: crate::vault::VaultError| Failure::of(&error);
    if let Some(word) = vault.shred(disk).await.map_err(failure)? {
        return Ok(Err(format!(
            "disk {disk} was shredded at {} ({}), as {} says: its keys are destroyed, and nothing of it comes back; if nobody asked for \
             that, see docs/OPERATING.md, \"Destroy one disk for good\"",
            word.made_micros,
            word.reason,
            names::shred(disk)
        )));
    }
    let span = tracing::info_span!("load indexes", %disk);
    let catalog = within(span, source::load(vault, want)).await.map_err(failure)?;
    // After the batches: an epoch that they name is then surely listed.
    let epochs = vault.epochs(disk).await.map_err(failure)?;
    if epochs.is_empty() && catalog.batches.is_empty() && vault.disk(disk).await.map_err(failure)?.is_none() {
        let known: Vec<String> = vault.disks().await.map_err(failure)?.iter().map(ToString::to_string).collect();
        let known =
            if known.is_empty() { "it knows none yet".to_owned() } else { format!("it knows {}", known.join(", ")) };
        return Err(Failure::error(format!("the vault {} has no disk {disk}: {known}", vault.store().shown())));
    }
    let history = source::history(&catalog, disk, &epochs);
    let points = points::list(&history);
    let damage = source::damage(&catalog);
    Ok(Ok(DiskView { catalog, history, points, damage }))
}

impl DiskView {
    /// What a user should know before believing that the newest point is the newest there was.
    pub(super) fn warnings(&self, disk: &DiskId) -> Vec<String> {
        let mut warnings: Vec<String> = self.damage.iter().map(ToString::to_string).collect();
        warnings.extend(self.history.faults.iter().map(ToString::to_string));
        for conflict in &self.history.conflicts {
            warnings.push(format!(
                "disk {disk}: two accounts of e{0}-s{1} differ; nothing after e{0}-s{2} is believed",
                conflict.epoch, conflict.seq, conflict.cut
            ));
        }
        warnings.extend(self.history.gaps.iter().filter(|gap| gap.lost).map(|gap| gap_text(disk, gap)));
        warnings
    }
}

/// A gap in words.
pub(super) fn gap_text(disk: &DiskId, gap: &Gap) -> String {
    let what = if gap.lost { "are lost" } else { "are not vaulted yet" };
    let label =
        |label: Option<_>| label.map_or_else(|| "an unknown time".to_owned(), |label: Micros| label.to_string());
    format!(
        "disk {disk}: records e{0}-s{1} to e{0}-s{2} {what} (between {3} and {4})",
        gap.epoch,
        gap.first,
        gap.last,
        label(gap.label_before),
        label(gap.label_after)
    )
}

/// A point as JSON.
pub(super) fn point_json(point: &Point) -> Value {
    json!({
        "id": point.id.to_string(),
        "time": point.label.to_string(),
        "kind": point.kind_text(),
        "name": point.name,
        "group": point.group,
        "epoch": point.id.epoch,
        "seq": point.id.seq,
        "clock_uncertainty_seconds": uncertainty_seconds(point),
    })
}

/// How far the clock that labelled a point may have been off.
pub(super) fn uncertainty_seconds(point: &Point) -> f64 {
    f64::from(point.uncertainty_micros) / 1e6
}

/// A point in one line of text.
pub(super) fn point_line(point: &Point) -> String {
    let name = point.name.as_deref().map(|name| format!("  {name:?}")).unwrap_or_default();
    let group = point.group.map(|group| format!("  group {group}")).unwrap_or_default();
    let uncertainty_ms = uncertainty_seconds(point) * 1e3;
    format!("{:<14} {}  ±{uncertainty_ms:.1} ms  {}{name}{group}", point.id.to_string(), point.label, point.kind_text())
}

/// Runs the verb.
#[expect(clippy::needless_pass_by_value, reason = "every verb is called alike")]
pub fn run(args: Args) -> Outcome {
    let near = args.near.as_deref().map(|text| match ask::at(text, SystemClock::new().wall(), &TimeZone::system()) {
        Ok(Ask::At(time)) => Ok(time),
        Ok(_) => Err(Failure::usage("--near takes a time; `tidegate points` names the newest point by itself")),
        Err(error) => Err(Failure::usage(error.to_string())),
    });
    let near = near.transpose()?;
    let runtime = keyring::runtime()?;
    match (&args.disk, args.groups) {
        (Some(disk), _) => of_disk(&args, &runtime, disk, near),
        (None, group) => groups::run(&args.vault, &runtime, group.flatten(), near, args.json),
    }
}

fn of_disk(args: &Args, runtime: &Runtime, disk: &DiskId, near: Option<Micros>) -> Outcome {
    let view = runtime.block_on(async {
        let Opened { vault, .. } = args.vault.open_with_key().await?;
        load(&vault, disk, &Want::folded(disk)).await
    })?;
    let warnings = view.warnings(disk);
    match near {
        Some(time) => print_near(args, disk, &view, time, &warnings),
        None if args.events => print_events(args, disk, &view, &warnings),
        None if args.json => println!("{}", as_json(disk, &view, &warnings)),
        None => print_text(args, disk, &view),
    }
    for warning in warnings {
        eprintln!("tidegate: warning: {warning}");
    }
    Ok(exit::OK)
}

/// Since when the disk wrote otherwise than ever, each time that it did.
fn print_events(args: &Args, disk: &DiskId, view: &DiskView, warnings: &[String]) {
    let history = &view.history;
    let events = habit::replay(history.picks().map(|(_, pick)| &history.rows[pick.row].message));
    let events: Vec<EventView> = events.iter().map(|event| event.view(disk)).collect();
    if args.json {
        println!("{}", json!({ "disk": disk, "events": events, "warnings": warnings }));
        return;
    }
    for event in &events {
        println!("{}", event.words);
    }
    if events.is_empty() {
        println!("disk {disk}: its writes have packed as ever, as far as the vault's indexes reach back");
    }
}

/// The points beside a time, and what lies between them.
fn print_near(args: &Args, disk: &DiskId, view: &DiskView, time: Micros, warnings: &[String]) {
    let points::Nearest { before, after } = points::around_time(&view.points, time);
    if args.json {
        let point = |point: &Option<Point>| point.as_ref().map(point_json);
        println!(
            "{}",
            json!({
                "disk": disk, "time": time.to_string(), "before": point(&before), "after": point(&after),
                "seconds_before": before.as_ref().map(|point| seconds(point.label, time)),
                "seconds_after": after.as_ref().map(|point| seconds(time, point.label)),
                "damaged": view.history.damaged(), "warnings": warnings,
            })
        );
        return;
    }
    println!("disk {disk}, around {time}");
    match &before {
        Some(point) => println!("before  {}  {:.3} s earlier", point_line(point), seconds(point.label, time)),
        None => println!("before  none: the oldest point is later"),
    }
    match &after {
        Some(point) => println!("after   {}  {:.3} s later", point_line(point), seconds(time, point.label)),
        None => println!("after   none: the newest point is earlier"),
    }
}

pub(super) fn seconds(from: Micros, until: Micros) -> f64 {
    until.0.saturating_sub(from.0) as f64 / 1e6
}

fn as_json(disk: &DiskId, view: &DiskView, warnings: &[String]) -> Value {
    let history = &view.history;
    let gaps = history.gaps.iter().map(|gap| {
        json!({
            "epoch": gap.epoch,
            "first_seq": gap.first,
            "last_seq": gap.last,
            "lost": gap.lost,
            "after": gap.label_before.map(|label| label.to_string()),
            "before": gap.label_after.map(|label| label.to_string()),
        })
    });
    let newest_record = history.head().zip(history.head_record());
    json!({
        "disk": disk,
        "size_bytes": history.disk_bytes(),
        "points": view.points.iter().map(point_json).collect::<Vec<_>>(),
        "oldest": view.points.first().map(|point| point.id.to_string()),
        "newest": view.points.last().map(|point| point.id.to_string()),
        "newest_record": newest_record.map(|(id, record)| json!({
            "id": id.to_string(),
            "time": record.label.to_string(),
        })),
        "gaps": gaps.collect::<Vec<_>>(),
        "damaged": history.damaged(),
        "warnings": warnings,
    })
}

fn print_text(args: &Args, disk: &DiskId, view: &DiskView) {
    let points = &view.points;
    println!("disk {disk}, {}, {} recovery points", show_size(view.history.disk_bytes()), points.len());
    let plain = |point: &Point| point.name.is_none() && point.kind == Some(BarrierKind::Crash);
    let shown_from = points.iter().rev().filter(|point| plain(point)).nth(CRASH_POINTS_SHOWN - 1).map(|point| point.id);
    let mut left_out = 0;
    for point in points {
        if args.all || !plain(point) || shown_from.is_none_or(|from| point.id >= from) {
            println!("{}", point_line(point));
        } else {
            left_out += 1;
        }
    }
    if left_out > 0 {
        println!("… and {left_out} older crash points (--all shows them)");
    }
    for gap in view.history.gaps.iter().filter(|gap| !gap.lost) {
        println!("note: {}", gap_text(disk, gap));
    }
}
