//! Recovery points on demand, for one disk or for several at the same instant.
//!
//! For several disks all trackers are locked together, each gets its barrier, and all are released: microseconds, while
//! every guest write is either before all barriers or after. A write that completed on one disk before another was
//! submitted on a second is in its queue before that, so no cut through the group can hold the later one alone.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::disk::{Disk, Plan};
use super::tracker::BarrierAt;
use crate::fault::{Classify, Fault};
use crate::keys::random;
use crate::types::{BarrierKind, DiskId, Id128, PointId};

/// A point that was asked for.
#[derive(Clone, Debug)]
pub struct PointRequest {
    /// Its kind: crash, fs or app.
    pub kind: BarrierKind,
    /// Its name; may be empty.
    pub name: String,
    /// Wait until it is vaulted.
    pub wait: bool,
    /// How long in all.
    pub timeout: Duration,
}

/// A point that was made.
#[derive(Clone, Debug)]
pub struct PointMade {
    /// The disk.
    pub disk: DiskId,
    /// Where.
    pub at: BarrierAt,
    /// The group, or [`Id128::NONE`] for a single disk.
    pub group: Id128,
    /// Whether it is known to be vaulted.
    pub vaulted: bool,
}

impl PointMade {
    /// Its id.
    #[must_use]
    pub const fn id(&self) -> PointId {
        PointId { epoch: self.at.epoch, seq: self.at.seq }
    }
}

/// Why there is no point, or none in the vault.
#[derive(Debug, thiserror::Error)]
pub enum PointError {
    /// The time was over before a point could be made.
    #[error("no point within the time given: {reason}")]
    NotMade {
        /// What it waited for.
        reason: String,
    },
    /// The point was made, but is not vaulted yet.
    #[error(
        "the point was made but is not in the vault within the time given; it will be as soon as the gateway gets there"
    )]
    NotVaulted {
        /// What was made.
        points: Vec<PointMade>,
    },
    /// Another epoch took over: there will be no point.
    #[error("disk {disk} is fenced: another agent carries it; see `tidegate agent --status`")]
    Fenced {
        /// The disk.
        disk: DiskId,
    },
    /// No random bytes for a group id.
    #[error(transparent)]
    Random(#[from] crate::keys::RandomError),
}

impl Classify for PointError {
    fn fault(&self) -> Fault {
        match self {
            Self::NotMade { .. } | Self::NotVaulted { .. } => Fault::Retry,
            Self::Fenced { .. } => Fault::Reject,
            Self::Random(error) => error.fault(),
        }
    }
}

/// Makes a point of every disk in `disks` at the same instant. They must be sorted by id and distinct.
///
/// # Errors
/// [`PointError`] says whether a point was made.
pub async fn make(disks: &[Arc<Disk>], request: &PointRequest) -> Result<Vec<PointMade>, PointError> {
    let deadline = Instant::now() + request.timeout;
    loop {
        let mut points = barrier_when_possible(disks, request, deadline).await?;
        if !request.wait {
            return Ok(points);
        }
        match tokio::time::timeout_at(deadline, all_vaulted(disks, &points)).await {
            Ok(true) => {
                points.iter_mut().for_each(|point| point.vaulted = true);
                return Ok(points);
            }
            // An epoch was given up before its point was vaulted: the point may be lost, so it is made again.
            Ok(false) => {}
            Err(_) => return Err(PointError::NotVaulted { points }),
        }
    }
}

/// Makes the barriers as soon as every disk is outside of sync spans and has room in its queue.
async fn barrier_when_possible(
    disks: &[Arc<Disk>],
    request: &PointRequest,
    deadline: Instant,
) -> Result<Vec<PointMade>, PointError> {
    let mut progress: Vec<_> = disks.iter().map(|disk| disk.progress.subscribe()).collect();
    loop {
        if let Some(fenced) = disks.iter().find(|disk| matches!(disk.plan(), Plan::Fenced(_))) {
            return Err(PointError::Fenced { disk: fenced.id.clone() });
        }
        progress.iter_mut().for_each(|seen| drop(seen.borrow_and_update()));
        let group = if disks.len() > 1 { Id128(random()?) } else { Id128::NONE };
        let waiting = match barrier(disks, request, group) {
            Ok(points) => {
                disks.iter().for_each(|disk| disk.to_send.notify_one());
                return Ok(points);
            }
            Err(waiting) => waiting,
        };
        let changes = progress.iter_mut().map(|seen| Box::pin(seen.changed()));
        if tokio::time::timeout_at(deadline, futures_util::future::select_all(changes)).await.is_err() {
            let reason =
                format!("disk {waiting} is being copied, or its queue is full, or no gateway is there to change that");
            return Err(PointError::NotMade { reason });
        }
    }
}

/// One barrier in every disk, or the disk that cannot have one now.
fn barrier(disks: &[Arc<Disk>], request: &PointRequest, group: Id128) -> Result<Vec<PointMade>, DiskId> {
    // In the order of ids, so that two groups asked for at the same time do not wait for each other.
    let mut trackers: Vec<_> = disks.iter().map(|disk| disk.tracker()).collect();
    if let Some(at) = trackers.iter().position(|tracker| !tracker.offers_points()) {
        return Err(disks[at].id.clone());
    }
    let mut points = Vec::with_capacity(disks.len());
    for (disk, tracker) in disks.iter().zip(&mut trackers) {
        let stamp = disk.shared.clock.stamp();
        let made = tracker.barrier(request.kind, group, &request.name, stamp);
        let at = made.ok_or_else(|| disk.id.clone())?;
        points.push(PointMade { disk: disk.id.clone(), at, group, vaulted: false });
    }
    Ok(points)
}

/// Waits until every point is vaulted; false if an epoch was given up before.
async fn all_vaulted(disks: &[Arc<Disk>], points: &[PointMade]) -> bool {
    for (disk, point) in disks.iter().zip(points) {
        let mut progress = disk.progress.subscribe();
        loop {
            progress.borrow_and_update();
            let (epoch, vaulted) = {
                let tracker = disk.tracker();
                (tracker.queue().epoch(), tracker.vaulted_seq())
            };
            if epoch != point.at.epoch {
                return false;
            }
            if vaulted >= point.at.seq {
                break;
            }
            if progress.changed().await.is_err() {
                return false;
            }
        }
    }
    true
}
