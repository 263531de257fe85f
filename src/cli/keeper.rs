//! `tidegate keeper`: apply retention, or show what it would let go.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::run_file::{KeeperFigures, RunFile};
use super::signals::asked_to_stop;
use super::traces::Traced;
use super::{Failure, Outcome, keyring};
use crate::config::show_size;
use crate::fault::exit;
use crate::flow::{Clock, Drain, SystemClock};
use crate::keeper::config::{DEFAULT_FILE, KeeperConfig};
use crate::keeper::error::KeeperError;
use crate::keeper::judge::DiskVerdict;
use crate::keeper::outlook::When;
use crate::keeper::report::{Count, Progress, Report};
use crate::keeper::run::{self, Keeper};
use crate::keys::CatalogKey;
use crate::telemetry::traces::within;
use crate::vault::Vault;
use crate::vault::rng::Rng;
use crate::vault::url::open_store;

/// Between two lines that tell how far a run is.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);
/// Points that go and are printed, of each disk; `--json` has more.
const GOING_SHOWN: usize = 20;
/// What the log says when a signal asks it to stop.
const STOP_TOLD: &str = "asked to stop: the step that is under way is ended";

/// Options of `tidegate keeper`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Show which points are kept, which go and when, and what that saves; change nothing.
    ///
    /// Exit code 0, or 3 if something is damaged, so that retention stands still there.
    Plan(ConfigArgs),
    /// Run once: mark what the policy does not keep, and delete what was marked long enough ago.
    ///
    /// Several may run at the same time, on several machines. SIGTERM ends it after the step that it is at. Exit code 0 if all was done that
    /// can be done now; 75 if another run finds more to do at once or soon (another keeper works on some lanes, lanes were sealed less
    /// than ten minutes ago, or the budget is spent); 3 if something is damaged, so that retention stands still there.
    Once(RunArgs),
    /// Run again and again, `every` so often; the configuration is read anew for each run. SIGTERM ends it.
    Run(RunArgs),
    /// Print a configuration file with every key, its default and its meaning.
    PrintConfig,
}

#[derive(clap::Args)]
struct ConfigArgs {
    /// Configuration file.
    #[arg(long, value_name = "FILE", env = "TIDEGATE_KEEPER_CONFIG", default_value = "/etc/tidegate/keeper.toml")]
    config: PathBuf,
    /// Print the result as JSON, one object for each run.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Leave figures of the last run in this file, for node-exporter's textfile collector.
    #[arg(long, value_name = "FILE.prom")]
    metrics_file: Option<RunFile>,
}

impl Args {
    /// Of what the runs' traces tell, and what the file says of them.
    pub(super) fn traced(&self) -> Traced {
        let file = match &self.verb {
            Verb::Plan(args) => Some(&args.config),
            Verb::Once(args) | Verb::Run(args) => Some(&args.config.config),
            Verb::PrintConfig => None,
        };
        let config = file.and_then(|file| KeeperConfig::load(file).ok());
        Traced::with_file("tidegate-keeper", config.map(|config| (None, config.traces)))
    }
}

/// Runs the verb.
pub fn run(args: Args) -> Outcome {
    let runtime = keyring::runtime()?;
    match args.verb {
        Verb::Plan(args) => runtime.block_on(plan(&args)),
        Verb::Once(args) => runtime.block_on(once(&args)),
        Verb::Run(args) => runtime.block_on(run_on(&args)),
        Verb::PrintConfig => {
            std::io::stdout().write_all(DEFAULT_FILE.as_bytes())?;
            Ok(exit::OK)
        }
    }
}

async fn open(args: &ConfigArgs) -> Result<(KeeperConfig, Vault), Failure> {
    let config = KeeperConfig::load(&args.config).map_err(|error| Failure::usage(error.to_string()))?;
    let key = CatalogKey::read(&config.catalog_key).map_err(|error| Failure::of(&error))?;
    let store = open_store(&config.vault_url).map_err(|error| Failure::of(&error))?;
    let vault = Vault::open(store, key).await.map_err(|error| Failure::of(&error))?;
    Ok((config, vault))
}

fn failure(error: &KeeperError) -> Failure {
    let failure = Failure::of(error);
    match error {
        KeeperError::UnknownDisk { .. } => Failure { code: exit::USAGE, ..failure },
        KeeperError::Vault(_) | KeeperError::ClocksApart { .. } => failure,
    }
}

async fn plan(args: &ConfigArgs) -> Outcome {
    let (config, vault) = open(args).await?;
    let (now, progress) = (SystemClock::new().wall(), Arc::new(Progress::default()));
    let telling = tokio::spawn(tell(Arc::clone(&progress)));
    let span = tracing::info_span!("keeper plan", vault = vault.store().shown());
    let report = within(span, run::plan(&vault, &config.work, &config.policies, now, &progress)).await;
    telling.abort();
    let report = report.map_err(|error| failure(&error))?;
    if args.json {
        println!("{}", json!(report));
    } else {
        print_state(&report);
        println!("would go    {} once marked, and `delete_after` later", show(report.unneeded));
        print_sparse(&report, config.work.moves);
    }
    Ok(if report.is_held_back() { exit::DAMAGE } else { exit::OK })
}

/// Tells now and then how far it is.
async fn tell(progress: Arc<Progress>) {
    loop {
        tokio::time::sleep(PROGRESS_EVERY).await;
        tracing::info!("{progress}");
    }
}

async fn once(args: &RunArgs) -> Outcome {
    let drain = asked_to_stop(Some(STOP_TOLD))?;
    one_run(args, &drain).await.1
}

/// One run, with all that is told of it; and the pause that its configuration asks for, if it could be read.
async fn one_run(args: &RunArgs, drain: &Drain) -> (Option<Duration>, Outcome) {
    let (clock, started): (Arc<dyn Clock>, _) = (Arc::new(SystemClock::new()), Instant::now());
    let mut every = None;
    let result = async {
        let (config, vault) = open(&args.config).await?;
        every = Some(config.work.every);
        let progress = Arc::new(Progress::default());
        let telling = tokio::spawn(tell(Arc::clone(&progress)));
        // A hold that is written while the run is under way counts.
        let policies_now = || {
            let config = KeeperConfig::load(&args.config.config).ok()?;
            Some(config.policies.digest(&config.work))
        };
        let keeper = Keeper {
            vault: &vault,
            work: &config.work,
            policies: &config.policies,
            clock: &clock,
            policies_now: &policies_now,
            stop: drain,
            progress: &progress,
        };
        let span = tracing::info_span!("keeper run", vault = vault.store().shown());
        let report = within(span, Box::pin(keeper.once())).await;
        telling.abort();
        report.map_err(|error| failure(&error))
    }
    .await;
    if let Some(file) = &args.metrics_file {
        let figures = result.as_ref().ok().map(figures);
        let success = result.as_ref().is_ok_and(|report| !report.is_held_back());
        file.tell_keeper(clock.wall(), started.elapsed(), success, figures);
    }
    (every, result.map(|report| print(&report, args.config.json)))
}

fn figures(report: &Report) -> KeeperFigures {
    let held_back = report.disks.iter().filter(|disk| disk.held_back.is_some()).count() as u64;
    KeeperFigures {
        deleted_bytes: report.deleted.bytes,
        marked_bytes: report.marked.bytes.saturating_sub(report.deleted.bytes) + report.newly_marked.bytes,
        stored_bytes: report.stored.bytes.saturating_sub(report.deleted.bytes),
        needed_bytes: report.needed_bytes,
        moved_bytes: report.moved.bytes,
        saving_bytes: report.moving_saves_bytes,
        held_back: held_back + report.lanes_unread,
    }
}

/// Prints what a run did; returns the exit code.
fn print(report: &Report, as_json: bool) -> u8 {
    if as_json {
        println!("{}", json!(report));
    } else {
        print_state(report);
        let (marked, back, deleted) = (show(report.newly_marked), report.taken_back, show(report.deleted));
        println!("this run    marked {marked}; took back {back} marks; deleted {deleted}");
        if report.moved.batches > 0 {
            println!("moved       what is needed of {} batches, into {}", report.emptied_batches, show(report.moved));
        }
        let (sealed, in_use) = (report.lanes_sealed, report.lanes_in_use);
        let (waiting, elsewhere) = (report.lanes_waiting, report.lanes_elsewhere);
        println!("lanes       {sealed} sealed, {in_use} still in use, {waiting} wait, {elsewhere} with another keeper");
        if report.lanes_folded + report.folded_written > 0 {
            println!("folded      {} lanes, {} objects", report.lanes_folded, report.folded_written);
        }
        if report.goes_on() {
            println!("go on       another run finds more to do");
        }
    }
    if report.is_held_back() {
        exit::DAMAGE
    } else if report.goes_on() {
        exit::TRY_AGAIN
    } else {
        exit::OK
    }
}

/// Runs until a signal asks it to stop. The first run's failures end it, if they are those of a wrong call; later ones are told.
async fn run_on(args: &RunArgs) -> Outcome {
    let mut drain = asked_to_stop(Some(STOP_TOLD))?;
    let mut rng = Rng::from_entropy();
    let mut every = Duration::from_secs(60);
    let mut first = true;
    loop {
        let (asked, outcome) = one_run(args, &drain).await;
        every = asked.unwrap_or(every);
        match outcome {
            Err(failure) if first && failure.code == exit::USAGE => return Err(failure),
            Err(failure) => tracing::error!("the run failed, and the next one goes on: {}", failure.text),
            Ok(_) => {}
        }
        first = false;
        let pause = jittered(every, &mut rng);
        tokio::select! {
            biased;
            () = drain.wait() => {}
            () = tokio::time::sleep(pause) => {}
        }
        if drain.started() {
            return Ok(exit::OK);
        }
    }
}

/// A tenth more or less, so that several keepers do not meet at every lane.
fn jittered(every: Duration, rng: &mut Rng) -> Duration {
    let millis = every.as_millis() as u64;
    Duration::from_millis(millis - millis / 10 + rng.below(millis / 5 + 1))
}

fn show(count: Count) -> String {
    format!("{} batches, {}", count.batches, show_size(count.bytes))
}

fn print_state(report: &Report) {
    for disk in &report.disks {
        println!("disk        {}", disk_line(disk));
        if let Some(why) = &disk.held_back {
            println!("held back   {}: {why}", disk.disk);
        }
        print_going(disk);
    }
    println!("stored      {}", show(report.stored));
    println!("needed      {} of messages", show_size(report.needed_bytes));
    println!("marked      {}", show(report.marked));
    for note in &report.notes {
        println!("note        {note}");
    }
}

fn print_sparse(report: &Report, moves: bool) {
    if report.sparse.batches > 0 {
        let how = if moves { "a run moves it as far as its budget goes" } else { "with move = true" };
        let saved = show_size(report.moving_saves_bytes);
        println!("sparse      {}: to move what is needed of them saves {saved} more ({how})", show(report.sparse));
    }
}

fn print_going(disk: &DiskVerdict) {
    let Some(going) = &disk.going else { return };
    for point in going.points.iter().take(GOING_SHOWN) {
        let when = match point.when {
            When::NextRun => "by the next run".to_owned(),
            When::Marked => format!("from {} on", point.not_before),
            When::Unmarked => format!("not marked yet, so not before {}", point.not_before),
        };
        println!("goes        {} {} of {}: {when}", disk.disk, point.id, point.time);
    }
    let more = going.count.saturating_sub(GOING_SHOWN as u64);
    if more > 0 {
        println!("goes        {} and {more} more points (--json tells the first thousand)", disk.disk);
    }
}

fn disk_line(disk: &DiskVerdict) -> String {
    let reasons: Vec<String> =
        disk.reasons.iter().map(|(reason, count)| format!("{} {count}", reason.as_str())).collect();
    let oldest = disk.oldest_kept.as_ref().map(|(id, time)| format!("; oldest {id} of {time}")).unwrap_or_default();
    let pins = if disk.pins > 0 { format!("; {} pinned", disk.pins) } else { String::new() };
    let hold = match (disk.hold, disk.pinned_whole, disk.shredded) {
        (true, ..) => "; everything is held",
        (_, true, _) => "; everything stays for a pin",
        (.., true) => "; shredded, so nothing of it is needed",
        _ => "",
    };
    format!("{}  {} of {} points kept ({}){oldest}{pins}{hold}", disk.disk, disk.kept, disk.points, reasons.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_lie_around_what_was_asked_for() {
        let mut rng = Rng::seeded(3);
        let every = Duration::from_secs(900);
        let pauses: Vec<_> = (0..1000).map(|_| jittered(every, &mut rng)).collect();
        assert!(pauses.iter().all(|pause| (810..=990).contains(&pause.as_secs())));
        assert!(pauses.iter().any(|pause| pause.as_secs() < 850) && pauses.iter().any(|pause| pause.as_secs() > 950));
    }

    #[test]
    fn the_exit_code_says_whether_another_run_finds_more_to_do() {
        let report = Report::default;
        assert_eq!(print(&report(), true), exit::OK);
        for more in [
            Report { lanes_elsewhere: 1, ..report() },
            Report { lanes_waiting: 1, ..report() },
            Report { lanes_sealed: 1, ..report() },
            Report { budget_spent: true, ..report() },
            Report { stopped: true, ..report() },
        ] {
            assert_eq!(print(&more, false), exit::TRY_AGAIN, "{more:?}");
            assert_eq!(print(&Report { lanes_unread: 1, ..more }, true), exit::DAMAGE);
        }
        assert_eq!(print(&Report { lanes_in_use: 3, ..report() }, false), exit::OK, "a lane in use is no failure");
    }
}
