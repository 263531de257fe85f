//! Which point of a disk a verb is asked for, and the way to it: what every verb that reads a disk at a point shares.

use std::sync::Arc;

use super::Failure;
use super::points::{self as view, DiskView};
use super::{proof, restore};
use crate::flow::{Clock, SystemClock};
use crate::keys::Identity;
use crate::restore::ask;
use crate::restore::history::History;
use crate::restore::plan::Plan;
use crate::restore::points::{Ask, Point};
use crate::restore::source::Source;
use crate::signed::Authority;
use crate::types::DiskId;
use crate::vault::Vault;
use crate::vault::reader::Want;

/// The options that choose a point.
#[derive(clap::Args)]
pub struct PointArgs {
    /// The last point at or before this time: 2026-11-22T21:00:05Z, "2026-11-22 21:00:05" (local), now, "-10 min".
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, conflicts_with_all = ["point", "latest"])]
    at: Option<String>,
    /// A point by its name, or of a single disk by its id (e1-s4711).
    #[arg(long, value_name = "POINT", conflicts_with = "latest")]
    point: Option<String>,
    /// The newest point, of each disk; the default.
    #[arg(long)]
    latest: bool,
}

impl PointArgs {
    /// The point that is asked for; without any option the newest.
    ///
    /// # Errors
    /// A time that is none.
    pub(super) fn asked(&self) -> Result<Ask, Failure> {
        asked(self.at.as_deref(), self.point.as_deref())
    }

    /// Whether a time is given.
    pub(super) const fn names_time(&self) -> bool {
        self.at.is_some()
    }
}

/// The point of a time, or of a name or id; without either the newest.
///
/// # Errors
/// A time that is none.
pub(super) fn asked(at: Option<&str>, point: Option<&str>) -> Result<Ask, Failure> {
    match (at, point) {
        (Some(at), _) => ask::at(at, SystemClock::new().wall(), &jiff::tz::TimeZone::system())
            .map_err(|error| Failure::usage(error.to_string())),
        (None, Some(point)) => Ok(ask::point(point)),
        (None, None) => Ok(Ask::Latest),
    }
}

/// What a disk is read with.
#[derive(Clone, Copy)]
pub(super) struct Access<'a> {
    pub(super) vault: &'a Vault,
    pub(super) identity: &'a Identity,
    /// Whose signatures count, if any must.
    pub(super) authority: Option<&'a Authority>,
}

/// A disk at a point, ready to be read.
pub(super) struct AtPoint {
    pub(super) point: Point,
    pub(super) source: Source,
    pub(super) history: Arc<History>,
    pub(super) plan: Plan,
    /// What a person should know of the disk's vault.
    pub(super) warnings: Vec<String>,
}

/// Finds the point of `disk` that is `asked` for, and everything that reading it takes, by the indexes that `want` names. With an
/// authority, only a point that it stands behind: that takes a read more or two.
///
/// # Errors
/// [`Failure`]: no such point, damage that hides it, lanes that the identity does not open, or no signature that counts.
pub(super) async fn open(access: Access<'_>, want: &Want, disk: &DiskId, asked: &Ask) -> Result<AtPoint, Failure> {
    let Access { vault, identity, authority } = access;
    let loaded = view::load(vault, disk, want).await?;
    let point = restore::choose(disk, &loaded, asked)?;
    let (source, damaged_lanes) =
        Source::open(vault, identity, &loaded.catalog).map_err(|error| Failure::of(&error))?;
    let mut warnings = loaded.warnings(disk);
    warnings.extend(damaged_lanes.iter().map(ToString::to_string));
    let DiskView { history, .. } = loaded;
    let plan = Plan::build(&history, point.id)
        .ok_or_else(|| Failure::error(format!("{} is not in the usable history of the disk", point.id)))?;
    source.can_open(&history, &plan).map_err(|error| Failure::of(&error))?;
    if authority.is_some() {
        warnings.extend(proof::told(authority, &source, &history, disk, point.id).await?);
    }
    Ok(AtPoint { point, source, history: Arc::new(history), plan, warnings })
}
