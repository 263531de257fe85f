//! Instant recovery: a point of a disk served over NBD, before anything of it was copied.
//!
//! ```text
//!  guest ──NBD──► PointDisk ─┬─► overlay      what the guest wrote
//!                            ├─► copy         what was brought already (--hydrate)
//!                            └─► origin ─► memory ─► local disk ─► vault
//!                                            ▲
//!                                            └── read-ahead
//! ```
//!
//! Read in this order: [`map`] (which message supplies which bytes; pure), [`ahead`] and [`cache`] (pure), [`spill`] and
//! [`origin`] (messages from the vault, once each), [`overlay`] (the guest's writes), [`copy`] (the disk, made meanwhile),
//! [`disk`] (all of that as one export).
//!
//! Invariants
//! - What the guest reads is the image that a restore of the point gives, with its own writes over it, and no mixture.
//! - Nothing is believed that `restore` would not believe: the same plan, the same fetcher, the same checks.
//! - The vault is only read, but for the pin that keeps the point while it is used, and that is taken away at the end.
//! - What cannot be read fails for that request alone, names the object, and everything else goes on.
//! - Memory is bounded: the cache, the messages of each request in progress, and the rows of one disk's index.
//! - What a FLUSH was answered for is there after a crash, with the same overlay or the same copy.
//!
//! What it does not own: NBD (`nbd`), plans and messages (`restore`), which point is chosen (the command).
//!
//! Shutdown: the server answers what it took; overlay and copy are made durable; the pin goes.
//! Crash: overlay and copy go on from what their own notes say is durable. The cache has no name and is gone. The pin ends by
//! itself.

pub mod ahead;
pub mod cache;
pub mod copy;
pub mod disk;
pub mod map;
pub mod origin;
pub mod overlay;
pub mod spill;

#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use self::copy::{CopyError, DiskCopy};
use self::disk::PointDisk;
use self::origin::{Origin, OriginLimits, OriginParts};
use self::overlay::{Image, Overlay, OverlayError};
use self::spill::Spill;
use crate::fault::{Classify, Fault, chain_text};
use crate::flow::{Drain, DrainTrigger, blocking};
use crate::nbd::{Export, Server, ServerLimits};
use crate::restore::fetch::FetchLimits;
use crate::restore::history::History;
use crate::restore::plan::Plan;
use crate::restore::source::Source;
use crate::types::DiskId;

/// Threads that read for the guest: each waits for the vault meanwhile, so there are more than an ordinary disk needs.
const WORKERS: usize = 16;
/// How often what the guest wrote is made durable though it did not ask.
const FLUSH_INTERVAL: Duration = Duration::from_secs(5);

/// Why a point cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The overlay.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// The copy.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The cache.
    #[error("no cache can be made in {}: name another folder", path.display())]
    Cache {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The server.
    #[error("the NBD server failed")]
    Server(#[source] io::Error),
    /// The guest's last writes.
    #[error("the guest's last writes could not be made durable")]
    Close(#[source] io::Error),
}

impl Classify for ExportError {
    fn fault(&self) -> Fault {
        match self {
            Self::Overlay(error) => error.fault(),
            Self::Copy(error) => error.fault(),
            Self::Cache { .. } => Fault::Reject,
            Self::Server(_) | Self::Close(_) => Fault::Fatal,
        }
    }
}

/// What is exported.
pub struct Exported {
    /// Where messages are read.
    pub source: Source,
    /// The disk.
    pub disk: DiskId,
    /// Its history.
    pub history: Arc<History>,
    /// How its point is rebuilt.
    pub plan: Plan,
}

/// Where the parts of an exported disk lie on this machine.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// What the guest writes.
    pub overlay: Option<PathBuf>,
    /// Where the disk is copied to.
    pub copy: Option<PathBuf>,
    /// A folder for opened messages.
    pub cache: Option<PathBuf>,
    /// Most bytes there.
    pub cache_bytes: u64,
}

/// Puts the disk together. Blocks for local files; nothing is read from the vault yet.
///
/// # Errors
/// [`ExportError`] names the file that cannot be used.
pub fn open(
    exported: Exported,
    places: &Places,
    limits: OriginLimits,
    runtime: Handle,
    stop: Drain,
) -> Result<PointDisk, ExportError> {
    let Exported { source, disk, history, plan } = exported;
    let image = Image { vault: source.vault.id(), disk: disk.clone(), point: plan.target, disk_bytes: plan.disk_bytes };
    // What is refused leaves nothing.
    places.copy.as_deref().map(DiskCopy::check).transpose()?;
    let spill = places.cache.as_ref().map(|path| {
        let made = Spill::create(path, plan.disk_bytes, places.cache_bytes);
        made.map_err(|source| ExportError::Cache { path: path.clone(), source })
    });
    let spill = spill.transpose()?;
    let overlay = places.overlay.as_ref().map(|path| Overlay::open(path, &image)).transpose()?;
    let parts = OriginParts { source, disk, history, plan, spill, limits };
    let origin = Arc::new(Origin::new(parts, runtime, stop));
    let copy = match (&places.copy, &overlay) {
        (Some(path), overlay) => Some(DiskCopy::open(Arc::clone(&origin), path, overlay.as_ref())?),
        (None, Some(overlay)) if overlay.moving() => {
            return Err(CopyError::Moved { overlay: overlay.path().to_owned() }.into());
        }
        (None, _) => None,
    };
    Ok(PointDisk::new(origin, overlay, copy))
}

/// Bounds of the server of an export.
#[must_use]
pub fn server_limits() -> ServerLimits {
    ServerLimits { workers_per_export: WORKERS, ..ServerLimits::default() }
}

/// What happens while an export runs.
#[derive(Debug)]
pub enum Event {
    /// The copy is the whole disk, with the guest's writes, and alone serves it from now on.
    Whole(PathBuf),
    /// The copy could not be finished; the export goes on.
    CopyFailed(CopyError),
}

/// Serves until `drain`, and copies meanwhile if that was asked for.
///
/// # Errors
/// [`ExportError`] if the server fails or the last writes cannot be made durable.
pub async fn run(
    disk: Arc<PointDisk>,
    server: Server,
    copy_limits: FetchLimits,
    drain: Drain,
    tell: impl Fn(Event) + Send + 'static,
) -> Result<(), ExportError> {
    let (stop_copy, copy_drain) = DrainTrigger::new();
    let copying = tokio::spawn(make_copy(Arc::clone(&disk), copy_limits, copy_drain, tell));
    let flushing = tokio::spawn(flush_now_and_then(Arc::clone(&disk)));
    let served = server.run(drain).await;
    stop_copy.start();
    // It must have let go of the files, however the server ended.
    let _ = copying.await;
    flushing.abort();
    let closed = blocking(move || disk.close()).await;
    served.map_err(ExportError::Server)?;
    closed.map_err(io::Error::other).and_then(|closed| closed).map_err(ExportError::Close)
}

/// Fills the copy and goes over to it.
async fn make_copy(disk: Arc<PointDisk>, limits: FetchLimits, drain: Drain, tell: impl Fn(Event)) {
    let Some(copy) = disk.copy() else { return };
    let filled = copy.fill(&limits, drain.clone()).await;
    let outcome = match filled {
        Err(error) => Err(error),
        Ok(()) => {
            let disk = Arc::clone(&disk);
            match blocking(move || disk.go_over(&drain)).await {
                Ok(outcome) => outcome,
                // The runtime stops.
                Err(_) => return,
            }
        }
    };
    match outcome {
        Ok(path) => tell(Event::Whole(path)),
        Err(CopyError::Stopped) => tracing::info!("stopped before the copy was whole"),
        Err(error) => tell(Event::CopyFailed(error)),
    }
}

async fn flush_now_and_then(disk: Arc<PointDisk>) {
    if disk.read_only() {
        return;
    }
    loop {
        tokio::time::sleep(FLUSH_INTERVAL).await;
        let disk = Arc::clone(&disk);
        if let Ok(Err(error)) = blocking(move || disk.flush()).await {
            tracing::error!(error = chain_text(&error), "what the guest wrote cannot be made durable");
        }
    }
}
