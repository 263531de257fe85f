//! `tidegate export`: serve a disk as it was at a point over NBD, before anything of it is copied.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::{Instrument, info_span};

use super::asked::{self, Access, AtPoint, PointArgs};
use super::keyring::{self, VaultArgs};
use super::points as view;
use super::proof::Signers;
use super::restore::{self, ProgressMode, memory, show};
use super::run_file::RunFile;
use super::signals::asked_to_stop;
use super::{Failure, Outcome};
use crate::config::{parse_duration, parse_size, show_size};
use crate::export::disk::PointDisk;
use crate::export::origin::OriginLimits;
use crate::export::{self, Event, Exported, Places};
use crate::fault::{Classify, Fault, chain_text, exit};
use crate::flow::{Clock, Drain, SystemClock, blocking};
use crate::nbd::{Listen, Server, ServerTls};
use crate::restore::fetch;
use crate::restore::pin::Held;
use crate::restore::points::{Ask, Point};
use crate::telemetry::names;
use crate::telemetry::traces::within;
use crate::types::DiskId;
use crate::vault::Vault;
use crate::vault::reader::Want;
use crate::wire::TlsFiles;

/// How often the file for Prometheus is written.
const METRICS_INTERVAL: Duration = Duration::from_secs(15);
/// How long a guest's read waits for a vault that is away, unless told otherwise (`--patience`).
pub(super) const GUEST_PATIENCE: Duration = Duration::from_secs(120);
/// Damage that the text names one by one.
const DAMAGE_SHOWN: usize = 20;

/// Options of `tidegate export`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    vault: VaultArgs,
    /// The disk.
    #[arg(long)]
    disk: DiskId,
    #[command(flatten)]
    point: PointArgs,
    #[command(flatten)]
    signers: Signers,
    /// Where to serve: unix:/path/to/socket or tcp:ADDRESS:PORT. Beyond this machine only with --tls-cert.
    #[arg(long, value_name = "ADDRESS")]
    listen: Listen,
    /// Certificate of this server, from `tidegate pki issue gateway`. Clients then need one of an agent that names the disk.
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "tls_ca"])]
    tls_cert: Option<PathBuf>,
    /// Its private key.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Certificate of the authority that made this side's certificate and those of the clients.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_ca: Option<PathBuf>,
    /// File for what the guest writes, made if it is not there; the same file goes on with it. Without it nothing can be written.
    #[arg(long, value_name = "FILE")]
    overlay: Option<PathBuf>,
    /// Copy the whole disk into this new file meanwhile, with the guest's writes, and serve it from there in the end.
    #[arg(long, value_name = "FILE")]
    hydrate: Option<PathBuf>,
    /// Folder for blocks that were read, beside the memory. They are gone with the process.
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Most that these take.
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "4 GiB", requires = "cache")]
    cache_size: u64,
    /// Memory for blocks that were read.
    #[arg(long, value_name = "SIZE", value_parser = memory, default_value = "256 MiB")]
    memory: u64,
    /// Reads of the vault at the same time, of the copy and of each read of the guest.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
    /// How long a read of the guest waits for a vault that is away, before it fails.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "2m")]
    patience: Duration,
    /// Read the lanes' own indexes and list their batches, as if nothing were folded. Takes longer, and finds another copy of what was lost since.
    #[arg(long)]
    unfolded: bool,
    /// Print what happens as JSON, one object per line.
    #[arg(long)]
    json: bool,
    /// How to show the progress of the copy on standard error.
    #[arg(long, value_enum, default_value_t)]
    progress: ProgressMode,
    /// Keep a file for node-exporter's textfile collector that tells how this export stands: its name ends in .prom.
    #[arg(long, value_name = "FILE.prom")]
    metrics_file: Option<RunFile>,
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text).ok_or_else(|| "expected a size such as 4 GiB".to_owned())
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "expected a duration such as 2m".to_owned())
}

/// Runs the verb.
#[expect(clippy::needless_pass_by_value, reason = "every verb is called alike")]
pub fn run(args: Args) -> Outcome {
    let asked = args.point.asked()?;
    let tls = tls(&args)?;
    let runtime = keyring::runtime()?;
    runtime.block_on(async {
        let drain = asked_to_stop(None)?;
        Box::pin(export(&args, &asked, tls, drain)).await
    })
}

/// The certificates, if any; without them nobody beyond this machine is served.
fn tls(args: &Args) -> Result<Option<ServerTls>, Failure> {
    let (Some(cert), Some(key), Some(ca)) = (&args.tls_cert, &args.tls_key, &args.tls_ca) else {
        return match args.listen {
            Listen::Tcp(address) if !address.ip().is_loopback() => Err(Failure::usage(format!(
                "{address} can be reached from other machines, and NBD alone has neither encryption nor passwords: give \
                 --tls-cert, --tls-key and --tls-ca, or listen on unix:… or 127.0.0.1"
            ))),
            _ => Ok(None),
        };
    };
    let files = TlsFiles { ca: ca.clone(), cert: cert.clone(), key: key.clone() };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    ServerTls::load(&files, &clock).map(Some).map_err(|error| Failure::usage(chain_text(&error)))
}

/// The point in hand, with everything that is said of it.
struct Chosen {
    vault: Vault,
    point: Point,
    warnings: Vec<String>,
    /// Requests of the vault, and time, up to here.
    requests: u64,
    took: Duration,
}

async fn choose(args: &Args, asked: &Ask) -> Result<(Chosen, Exported), Failure> {
    let started = Instant::now();
    let authority = args.signers.authority()?;
    let (vault, identity) = restore::open(&args.vault).await?;
    let access = Access { vault: &vault, identity: &identity, authority: authority.as_ref() };
    let want = Want { folded: !args.unfolded, ..Want::disk(&args.disk) };
    let AtPoint { point, source, history, plan, warnings } = asked::open(access, &want, &args.disk, asked).await?;
    let exported = Exported { source, disk: args.disk.clone(), history, plan };
    let (requests, took) = (vault.store().requests(), started.elapsed());
    Ok((Chosen { vault, point, warnings, requests, took }, exported))
}

async fn export(args: &Args, asked: &Ask, tls: Option<ServerTls>, drain: Drain) -> Outcome {
    let mut stop = drain.clone();
    let chosen = tokio::select! {
        biased;
        () = stop.wait() => return Ok(exit::OK),
        chosen = within(info_span!("open point", disk = %args.disk), choose(args, asked)) => chosen,
    };
    let (mut chosen, exported) = chosen?;
    let (disk, point) = (&args.disk, chosen.point.id);
    let (held, unpinned) = Held::pin(&chosen.vault, disk, point, "export", SystemClock::new()).await;
    chosen.warnings.extend(unpinned.as_ref().map(restore::not_pinned));
    for warning in &chosen.warnings {
        eprintln!("tidegate: warning: {warning}");
    }
    let served = serve(args, &chosen, exported, tls, drain).await;
    // However it ended, the pin goes.
    held.let_go().await;
    served
}

async fn serve(args: &Args, chosen: &Chosen, exported: Exported, tls: Option<ServerTls>, drain: Drain) -> Outcome {
    let (overlay, copy, cache) = (args.overlay.clone(), args.hydrate.clone(), args.cache.clone());
    let places = Places { overlay, copy, cache, cache_bytes: args.cache_size };
    let jobs = args.jobs.map_or(fetch::JOBS_DEFAULT, usize::from);
    let limits = OriginLimits { memory_bytes: args.memory, jobs, patience: args.patience };
    let runtime = tokio::runtime::Handle::current();
    let stop = drain.clone();
    let opened = blocking(move || export::open(exported, &places, limits, runtime, stop));
    let opened = opened.instrument(info_span!("open export", disk = %args.disk)).await?;
    let disk = Arc::new(opened.map_err(|error| Failure::of(&error))?);
    let server = Server::bind(args.listen.clone(), vec![Arc::clone(&disk) as _], export::server_limits())
        .map_err(|error| Failure::error(error.to_string()))?;
    let encrypted = tls.is_some();
    let server = match tls {
        Some(tls) => server.with_tls(tls),
        None => server,
    };
    tell_ready(args, chosen, &disk, &uri(server.listen(), &args.disk, encrypted));
    let shown = disk.copy().map(|copy| tokio::spawn(show(args.progress, Arc::clone(copy.progress()))));
    let metrics = args.metrics_file.clone().map(|file| tokio::spawn(keep_file(file, Arc::clone(&disk))));
    let failed = Arc::new(Mutex::new(None));
    let (json, into) = (args.json, Arc::clone(&failed));
    let tell = move |event| tell_event(event, json, &into);
    let ran = export::run(Arc::clone(&disk), server, restore::limits(args.memory, args.jobs), drain, tell).await;
    if let Some(shown) = shown {
        shown.abort();
        // Wait for its end, or the bar would be drawn into what follows.
        let _ = shown.await;
    }
    if let Some(metrics) = metrics {
        metrics.abort();
    }
    if let Some(file) = &args.metrics_file {
        file.tell_values(&[("disk", args.disk.as_str())], &figures(&disk));
    }
    tell_end(args, &disk);
    ran.map_err(|error| Failure::of(&error))?;
    let code = failed.lock().take();
    Ok(code.unwrap_or(exit::OK))
}

/// How clients name the export.
fn uri(listen: &Listen, disk: &DiskId, encrypted: bool) -> String {
    let scheme = if encrypted { "nbds" } else { "nbd" };
    match listen {
        Listen::Unix(path) => format!("{scheme}+unix:///{disk}?socket={}", path.display()),
        Listen::Tcp(address) => format!("{scheme}://{address}/{disk}"),
    }
}

fn tell_ready(args: &Args, chosen: &Chosen, disk: &PointDisk, uri: &str) {
    let Chosen { point, warnings, requests, took, .. } = chosen;
    let plan = disk.origin().map().plan();
    if args.json {
        let ready = json!({
            "event": "ready",
            "disk": args.disk,
            "point": view::point_json(point),
            "uri": uri,
            "writable": args.overlay.is_some(),
            "disk_bytes": plan.disk_bytes,
            "data_bytes": plan.data_bytes(),
            "messages": disk.origin().map().messages(),
            "overlay_bytes": disk.overlay_bytes(),
            "vault_requests": requests,
            "seconds": took.as_secs_f64(),
            "warnings": warnings,
        });
        println!("{ready}");
        return;
    }
    println!("disk {} as it was at {}", args.disk, view::point_line(point));
    println!(
        "{} of which {} data; ready after {requests} requests of the vault in {:.1} s; {}",
        show_size(plan.disk_bytes),
        show_size(plan.data_bytes()),
        took.as_secs_f64(),
        if args.overlay.is_some() { "writes go to the overlay" } else { "read-only (--overlay FILE admits writes)" }
    );
    println!("{uri}");
}

/// Tells what happens, and keeps the exit code that a failed copy asks for.
fn tell_event(event: Event, as_json: bool, failed: &Mutex<Option<u8>>) {
    match event {
        Event::Whole(path) if as_json => println!("{}", json!({ "event": "whole", "target": path })),
        Event::Whole(path) => {
            println!("{} is the whole disk, with the guest's writes, and serves it from now on", path.display());
        }
        Event::CopyFailed(error) => {
            let failure = Failure::of(&error);
            *failed.lock() = Some(failure.code);
            let damage: &[_] = if let export::copy::CopyError::Damaged { found, .. } = &error { found } else { &[] };
            if as_json {
                let again = error.fault() == Fault::Retry;
                let damage: Vec<Value> = damage.iter().map(|damage| json!(damage)).collect();
                let told =
                    json!({ "event": "copy-failed", "error": failure.text, "try_again": again, "damage": damage });
                println!("{told}");
                return;
            }
            eprintln!("tidegate: {}", failure.text);
            for damage in damage.iter().take(DAMAGE_SHOWN) {
                eprintln!("  {damage}");
            }
        }
    }
}

fn tell_end(args: &Args, disk: &PointDisk) {
    let figures = disk.origin().figures();
    let [guest, vault, requests, failed] =
        [&figures.guest_bytes, &figures.vault_bytes, &figures.requests, &figures.failed]
            .map(|counter| counter.load(Ordering::Relaxed));
    if args.json {
        let ended = json!({
            "event": "end",
            "guest_read_bytes": guest,
            "vault_read_bytes": vault,
            "vault_requests": requests,
            "failed_reads": failed,
            "overlay_bytes": disk.overlay_bytes(),
            "whole": disk.is_whole(),
        });
        println!("{ended}");
        return;
    }
    println!(
        "the guest read {}, for which {} came from the vault in {requests} requests; {failed} reads failed",
        show_size(guest),
        show_size(vault)
    );
    match &args.overlay {
        Some(overlay) if !disk.is_whole() => {
            println!("what it wrote, {}, is in {}", show_size(disk.overlay_bytes()), overlay.display());
        }
        _ => {}
    }
}

/// How the export stands, as metrics.
fn figures(disk: &PointDisk) -> Vec<(&'static str, f64)> {
    let figures = disk.origin().figures();
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed) as f64;
    let mut values = vec![
        (names::EXPORT_SEEN_SECONDS, SystemClock::new().wall().0 as f64 / 1e6),
        (names::EXPORT_GUEST_BYTES, count(&figures.guest_bytes)),
        (names::EXPORT_VAULT_BYTES, count(&figures.vault_bytes)),
        (names::EXPORT_VAULT_REQUESTS, count(&figures.requests)),
        (names::EXPORT_FAILED_READS, count(&figures.failed)),
        (names::EXPORT_OVERLAY_BYTES, disk.overlay_bytes() as f64),
    ];
    if let Some(copy) = disk.copy() {
        let (done, total) = copy.progress().get();
        let share = if total == 0 { 1.0 } else { done as f64 / total as f64 };
        values.push((names::EXPORT_COPIED_RATIO, share));
    }
    values
}

/// Writes the file for Prometheus until it is aborted.
async fn keep_file(file: RunFile, disk: Arc<PointDisk>) {
    let mut ticks = tokio::time::interval(METRICS_INTERVAL);
    loop {
        ticks.tick().await;
        let (file, disk) = (file.clone(), Arc::clone(&disk));
        let told = move || file.tell_values(&[("disk", disk.origin().disk().as_str())], &figures(&disk));
        if blocking(told).await.is_err() {
            return;
        }
    }
}
