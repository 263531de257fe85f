//! Recovery points of a history, and the choice of one. Pure.
//!
//! A point is a crash, fs or app barrier outside every sync span, or the end of a sync span. An epoch starts inside one:
//! it forked because something may differ, and until its first finished sync nobody knows what. Any other record
//! outside the spans may still be asked for by its id: the image is exact at every seq there.
//!
//! Where the keeper let batches go, only those points are offered whose image needs none of them. That follows from the
//! rows alone: a byte of the disk is gone from where a record of such a batch sets it until another record sets it anew.

use std::cmp::Ordering;

use crate::types::{BarrierKind, Epoch, Id128, Micros, PointId, RecordKind, Seq};

use super::gone::Gone;
use super::history::{History, Presence};
use crate::vault::index::RecordMeta;

/// A place to which a disk can be restored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Point {
    /// Its id.
    pub id: PointId,
    /// Label time.
    pub label: Micros,
    /// How far the agent's clock may have been off, in microseconds.
    pub uncertainty_micros: u32,
    /// What it promises; none for a plain record asked for by id.
    pub kind: Option<BarrierKind>,
    /// Group that it belongs to.
    pub group: Option<Id128>,
    /// Name that was given to it.
    pub name: Option<String>,
}

impl Point {
    /// The word for its kind.
    #[must_use]
    pub fn kind_text(&self) -> &'static str {
        self.kind.map_or("record", BarrierKind::as_str)
    }
}

/// What was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ask {
    /// The newest point.
    Latest,
    /// The last point labelled at or before this time.
    At(Micros),
    /// A record by id.
    Id(PointId),
    /// The newest point of this name.
    Name(String),
}

/// The points beside a place that is none itself.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Nearest {
    /// The last one before.
    pub before: Option<Point>,
    /// The first one after.
    pub after: Option<Point>,
}

impl std::fmt::Display for Nearest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let show = |point: &Point| format!("{} at {} ({})", point.id, point.label, point.kind_text());
        match (&self.before, &self.after) {
            (None, None) => f.write_str("the disk has no recovery points yet"),
            (Some(before), None) => write!(f, "nearest before: {}", show(before)),
            (None, Some(after)) => write!(f, "nearest after: {}", show(after)),
            (Some(before), Some(after)) => {
                write!(f, "nearest before: {}; nearest after: {}", show(before), show(after))
            }
        }
    }
}

/// Why nothing could be chosen.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ChooseError {
    /// There is no point at all.
    #[error("no recovery point: the first copy of the disk is not whole in the vault yet")]
    None,
    /// Nothing is labelled at or before the time.
    #[error("no recovery point at or before {time}; {nearest}")]
    TooEarly {
        /// The time asked for.
        time: Micros,
        /// What there is.
        nearest: Box<Nearest>,
    },
    /// No such name.
    #[error("no recovery point is named {name:?}; {nearest}")]
    NoName {
        /// The name asked for.
        name: String,
        /// The newest point, as a hint.
        nearest: Box<Nearest>,
    },
    /// The record is not there, or not part of history.
    #[error("{id} is not in the usable history of the disk; {nearest}")]
    Unknown {
        /// The id asked for.
        id: PointId,
        /// What there is.
        nearest: Box<Nearest>,
    },
    /// The record lies inside a sync span.
    #[error("{id} lies inside a sync span, where the image is not whole; {nearest}")]
    InSync {
        /// The id asked for.
        id: PointId,
        /// What there is.
        nearest: Box<Nearest>,
    },
    /// The keeper let go what the image needs.
    #[error("{id} is not kept any more: the policy let go what its image needs; {nearest}")]
    LetGo {
        /// The id asked for.
        id: PointId,
        /// What there is.
        nearest: Box<Nearest>,
    },
}

/// How the image is after a record.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Image {
    Whole,
    InSync,
    LetGo,
}

/// Walks the usable records and tells for each how the image is after it.
fn walk(history: &History, mut visit: impl FnMut(Epoch, &RecordMeta, Image)) {
    let mut in_sync = true;
    let mut epoch_before = None;
    let mut gone = history.thinned().then(Gone::default);
    for (epoch, pick) in history.picks() {
        let let_go = history.rows[pick.row].presence == Presence::LetGo;
        for record in history.picked(pick) {
            if epoch_before != Some(epoch) {
                in_sync = true;
                epoch_before = Some(epoch);
            }
            match record.kind {
                RecordKind::Barrier(BarrierKind::SyncBegin) => in_sync = true,
                RecordKind::Barrier(BarrierKind::SyncEnd) => in_sync = false,
                _ => {}
            }
            if let Some(gone) = &mut gone {
                record.extents.iter().for_each(|extent| gone.set(extent, let_go));
            }
            let image = match gone.as_ref().is_some_and(|gone| !gone.is_empty()) {
                _ if in_sync => Image::InSync,
                true => Image::LetGo,
                false => Image::Whole,
            };
            visit(epoch, record, image);
        }
    }
}

fn point(epoch: Epoch, record: &RecordMeta) -> Point {
    Point {
        id: PointId { epoch, seq: record.seq },
        label: record.label,
        uncertainty_micros: record.uncertainty_micros,
        kind: match record.kind {
            RecordKind::Barrier(kind) => Some(kind),
            RecordKind::Write | RecordKind::Copy => None,
        },
        group: (record.group != Id128::NONE).then_some(record.group),
        name: record.name.clone(),
    }
}

/// Every recovery point, oldest first.
#[must_use]
pub fn list(history: &History) -> Vec<Point> {
    let mut points = Vec::new();
    walk(history, |epoch, record, image| {
        if image == Image::Whole && matches!(record.kind, RecordKind::Barrier(_)) {
            points.push(point(epoch, record));
        }
    });
    points
}

/// Chooses the point that was asked for.
///
/// # Errors
/// [`ChooseError`], with the nearest points, if there is none.
pub fn choose(history: &History, points: &[Point], ask: &Ask) -> Result<Point, ChooseError> {
    match ask {
        Ask::Latest => points.last().cloned().ok_or(ChooseError::None),
        Ask::At(time) => {
            if points.is_empty() {
                return Err(ChooseError::None);
            }
            points.iter().rev().find(|point| point.label <= *time).cloned().ok_or_else(|| ChooseError::TooEarly {
                time: *time,
                nearest: Box::new(Nearest { before: None, after: points.first().cloned() }),
            })
        }
        Ask::Name(name) => {
            points.iter().rev().find(|point| point.name.as_ref() == Some(name)).cloned().ok_or_else(|| {
                let nearest = Nearest { before: points.last().cloned(), after: None };
                ChooseError::NoName { name: name.clone(), nearest: Box::new(nearest) }
            })
        }
        Ask::Id(id) => by_id(history, points, *id),
    }
}

fn by_id(history: &History, points: &[Point], id: PointId) -> Result<Point, ChooseError> {
    if let Ok(at) = points.binary_search_by(|point| point.id.cmp(&id)) {
        return Ok(points[at].clone());
    }
    let mut found = None;
    walk(history, |epoch, record, image| {
        if epoch == id.epoch && record.seq == id.seq {
            found = Some((point(epoch, record), image));
        }
    });
    match found {
        Some((point, Image::Whole)) => Ok(point),
        Some((_, Image::InSync)) => Err(ChooseError::InSync { id, nearest: Box::new(around(points, id)) }),
        Some((_, Image::LetGo)) => Err(ChooseError::LetGo { id, nearest: Box::new(around(points, id)) }),
        None => Err(ChooseError::Unknown { id, nearest: Box::new(around(points, id)) }),
    }
}

/// The points before and after a place.
#[must_use]
pub fn around(points: &[Point], id: PointId) -> Nearest {
    let at = points.partition_point(|point| point.id.cmp(&id) == Ordering::Less);
    let after = points[at..].iter().find(|point| point.id != id).cloned();
    Nearest { before: at.checked_sub(1).map(|before| points[before].clone()), after }
}

/// The last point labelled at or before a time, and the first one after it.
#[must_use]
pub fn around_time(points: &[Point], time: Micros) -> Nearest {
    let at = points.partition_point(|point| point.label <= time);
    Nearest { before: at.checked_sub(1).map(|before| points[before].clone()), after: points.get(at).cloned() }
}

/// The damage that hides newer points than `chosen` from an ask for the newest, if there is any: such an ask cannot then
/// be answered honestly. An ask for a place below the damage can. `lost_tail` is damage beyond the end of history.
#[must_use]
pub fn hidden_by_damage(history: &History, lost_tail: Option<String>, chosen: &Point, ask: &Ask) -> Option<String> {
    match ask {
        Ask::Id(_) | Ask::Name(_) => return None,
        Ask::Latest => {}
        Ask::At(time) => {
            // Damage lies above the usable history. With a usable record later than the time asked for, the answer
            // would be the same without the damage.
            let head = history.head_record().map(|record| record.label);
            if chosen.label == *time || head.is_some_and(|label| label > *time) {
                return None;
            }
        }
    }
    let above = |epoch: Epoch, seq: Seq| PointId { epoch, seq } > chosen.id;
    let fault = history.faults.iter().find(|fault| fault.epoch() > chosen.id.epoch).map(ToString::to_string);
    let gap = history.gaps.iter().find(|gap| gap.lost && above(gap.epoch, gap.last));
    let gap = gap.map(|gap| format!("records e{0}-s{1} to e{0}-s{2} are lost", gap.epoch, gap.first, gap.last));
    let conflict = history.conflicts.iter().find(|conflict| above(conflict.epoch, conflict.seq));
    let conflict = conflict.map(|conflict| format!("two accounts of e{}-s{} differ", conflict.epoch, conflict.seq));
    fault.or(gap).or(conflict).or(lost_tail)
}

#[cfg(test)]
mod tests;
