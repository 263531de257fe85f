//! What a plan tells of points: which will be offered no more, and when. Reads, never writes.
//!
//! A point goes when a batch that its image needs does, which is later than the policy ceases to keep it: other points, and other disks,
//! may need the same batch. So the deletions that are due are played through on the history of each disk, in their order.

use std::collections::BTreeMap;

use super::error::KeeperError;
use super::judge::{self, Terms, Verdict};
use super::marks::{LaneSteps, Numbers, Present};
use crate::restore::history::{History, Presence, Row};
use crate::restore::points::{self, Point};
use crate::restore::source;
use crate::types::Id128;
use crate::vault::Vault;
use crate::vault::objects::LetGoRun;
use crate::vault::reader::{Catalog, Want};

/// Points of one disk that are told by name, the oldest first: more are told by their number.
const TOLD_MAX: usize = 1000;

/// When a point goes, if nothing changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum When {
    /// The next run deletes what its image needs.
    NextRun,
    /// What its image needs is marked, and not for long enough.
    Marked,
    /// What its image needs is not marked yet.
    Unmarked,
}

/// A point that goes.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct GoingPoint {
    /// Its id.
    pub id: String,
    /// Its label.
    pub time: String,
    /// When it goes.
    pub when: When,
    /// It is offered until then at least.
    pub not_before: String,
}

/// The points of a disk that go.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Going {
    /// How many.
    pub count: u64,
    /// The oldest of them.
    pub points: Vec<GoingPoint>,
}

/// What goes of one lane.
#[derive(Debug, Default)]
pub(super) struct LaneOutlook {
    stages: [Numbers; 3],
    let_go: Vec<LetGoRun>,
}

const STAGES: [When; 3] = [When::NextRun, When::Marked, When::Unmarked];

impl LaneOutlook {
    pub(super) fn new(steps: &LaneSteps, let_go: &[LetGoRun]) -> Self {
        let numbers = |batches: &[Present]| {
            let mut numbers = Numbers::default();
            batches.iter().for_each(|batch| numbers.insert(batch.n));
            numbers
        };
        Self {
            stages: [&steps.delete, &steps.waiting, &steps.mark].map(Vec::as_slice).map(numbers),
            let_go: let_go.to_vec(),
        }
    }

    fn marked_micros(&self, n: u64) -> Option<i64> {
        let at = self.let_go.partition_point(|run| run.last < n);
        self.let_go.get(at).filter(|run| run.first <= n).map(|run| run.marked_micros)
    }
}

/// By what points go.
pub(super) struct Outlook<'a> {
    pub(super) vault: &'a Vault,
    pub(super) terms: &'a Terms<'a>,
    pub(super) lanes: &'a BTreeMap<Id128, LaneOutlook>,
    pub(super) delete_after_micros: i64,
}

impl Outlook<'_> {
    /// Tells of each disk in `verdict` which of its points go.
    ///
    /// # Errors
    /// [`KeeperError`] if the store fails.
    pub(super) async fn tell(&self, verdict: &mut Verdict) -> Result<(), KeeperError> {
        for group in verdict.disks.chunks_mut(self.terms.disks_at_once.max(1)) {
            let want = Want { disks: Some(group.iter().map(|told| told.disk.clone()).collect()), ..Want::default() };
            let catalog = source::load(self.vault, &want).await?;
            for told in group {
                let judged = judge::open(self.vault, &catalog, &told.disk).await?;
                let rebuild = |rows| History::build(&judged.epochs, rows);
                told.going = Some(self.going(&catalog, judged.history, rebuild));
            }
        }
        Ok(())
    }

    fn going(&self, catalog: &Catalog, history: History, rebuild: impl Fn(Vec<Row>) -> History) -> Going {
        let (mut going, mut offered, mut rows) = (Going::default(), points::list(&history), history.rows);
        for (stage, when) in STAGES.into_iter().enumerate() {
            let mut marked_micros: Option<i64> = None;
            let mut changes = false;
            for row in rows.iter_mut().filter(|row| row.presence == Presence::Here) {
                let index = &catalog.batches[row.object as usize].index;
                let Some(lane) = self.lanes.get(&index.lane).filter(|lane| lane.stages[stage].contains(index.n)) else {
                    continue;
                };
                row.presence = Presence::LetGo;
                changes = true;
                marked_micros = [marked_micros, lane.marked_micros(index.n)].into_iter().flatten().min();
            }
            if !changes {
                continue;
            }
            let then = rebuild(rows);
            let left = points::list(&then);
            rows = then.rows;
            let from_micros = match when {
                When::NextRun => self.terms.now_micros,
                When::Marked => marked_micros.unwrap_or(self.terms.now_micros).saturating_add(self.delete_after_micros),
                When::Unmarked => self.terms.now_micros.saturating_add(self.delete_after_micros),
            };
            note(&mut going, &offered, &left, when, from_micros.max(self.terms.now_micros));
            offered = left;
        }
        going
    }
}

fn note(going: &mut Going, offered: &[Point], left: &[Point], when: When, from_micros: i64) {
    let not_before = judge::micros(from_micros).to_string();
    for point in offered.iter().filter(|point| left.binary_search_by(|one| one.id.cmp(&point.id)).is_err()) {
        going.count += 1;
        if going.points.len() < TOLD_MAX {
            let (id, time, not_before) = (point.id.to_string(), point.label.to_string(), not_before.clone());
            going.points.push(GoingPoint { id, time, when, not_before });
        }
    }
}
