//! Points of several disks at one moment, by the id that their barriers share.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::{DiskView, point_json, point_line, seconds};
use crate::cli::keyring::{Opened, VaultArgs};
use crate::cli::{Failure, Outcome};
use crate::fault::exit;
use crate::restore::points::Point;
use crate::types::{DiskId, Id128, Micros};
use crate::vault::reader::Want;

/// Disks whose indexes are in memory at the same time is one: only their group points are kept.
type Members = BTreeMap<DiskId, Point>;

/// A group point.
struct GroupPoint {
    id: Id128,
    members: Members,
}

impl GroupPoint {
    /// The label of its latest member: at this time all of them had it.
    fn label(&self) -> Micros {
        self.members.values().map(|point| point.label).max().unwrap_or(Micros(0))
    }

    fn name(&self) -> Option<&str> {
        self.members.values().find_map(|point| point.name.as_deref())
    }

    fn json(&self) -> Value {
        let members = self.members.iter().map(|(disk, point)| json!({ "disk": disk, "point": point_json(point) }));
        json!({
            "group": self.id, "time": self.label().to_string(), "name": self.name(),
            "disks": members.collect::<Vec<_>>(),
        })
    }

    fn print(&self) {
        let name = self.name().map(|name| format!("  {name:?}")).unwrap_or_default();
        println!("group {}  {}  {} disks{name}", self.id, self.label(), self.members.len());
        for (disk, point) in &self.members {
            println!("  {disk:<24} {}", point_line(&Point { group: None, ..point.clone() }));
        }
    }
}

/// Group points by time, from the points of each disk.
fn join(points: BTreeMap<Id128, Members>) -> Vec<GroupPoint> {
    let mut joined: Vec<GroupPoint> = points.into_iter().map(|(id, members)| GroupPoint { id, members }).collect();
    joined.sort_by_key(|point| (point.label(), point.id));
    joined
}

/// The last at or before a time and the first after it.
fn around(points: &[GroupPoint], time: Micros) -> [Option<&GroupPoint>; 2] {
    let at = points.partition_point(|point| point.label() <= time);
    [at.checked_sub(1).map(|before| &points[before]), points.get(at)]
}

/// Lists group points: all, one by its id, or those beside a time.
pub(super) fn run(
    args: &VaultArgs,
    runtime: &Runtime,
    only: Option<Id128>,
    near: Option<Micros>,
    as_json: bool,
) -> Outcome {
    let (points, warnings) = runtime.block_on(load(args))?;
    let points: Vec<GroupPoint> = points.into_iter().filter(|point| only.is_none_or(|id| id == point.id)).collect();
    if let (Some(id), true) = (only, points.is_empty()) {
        return Err(Failure::error(format!("no point of a group {id} can be restored: `points --groups` lists all")));
    }
    match near {
        Some(time) => print_near(&points, time, &warnings, as_json),
        None if as_json => {
            let groups: Vec<Value> = points.iter().map(GroupPoint::json).collect();
            println!("{}", json!({ "groups": groups, "warnings": warnings }));
        }
        None => {
            println!("{} group points", points.len());
            points.iter().for_each(GroupPoint::print);
        }
    }
    for warning in warnings {
        eprintln!("tidegate: warning: {warning}");
    }
    Ok(exit::OK)
}

fn print_near(points: &[GroupPoint], time: Micros, warnings: &[String], as_json: bool) {
    let [before, after] = around(points, time);
    if as_json {
        let (before, after) = (before.map(GroupPoint::json), after.map(GroupPoint::json));
        println!("{}", json!({ "time": time.to_string(), "before": before, "after": after, "warnings": warnings }));
        return;
    }
    println!("groups around {time}");
    for (side, point) in [("before", before), ("after", after)] {
        match point {
            Some(point) => {
                let apart = seconds(point.label().min(time), point.label().max(time));
                println!("{side}, by {apart:.3} s:");
                point.print();
            }
            None => println!("{side}: none"),
        }
    }
}

async fn load(args: &VaultArgs) -> Result<(Vec<GroupPoint>, Vec<String>), Failure> {
    let Opened { vault, .. } = args.open_with_key().await?;
    let mut found: BTreeMap<Id128, Members> = BTreeMap::new();
    let mut warnings = Vec::new();
    for disk in vault.disks().await.map_err(|error| Failure::of(&error))? {
        let view: DiskView = match super::load_if_there(&vault, &disk, &Want::folded(&disk)).await? {
            Ok(view) => view,
            Err(shredded) => {
                warnings.push(shredded);
                continue;
            }
        };
        warnings.extend(view.warnings(&disk));
        for point in view.points {
            if let Some(group) = point.group {
                found.entry(group).or_default().insert(disk.clone(), point);
            }
        }
    }
    warnings.sort();
    warnings.dedup();
    Ok((join(found), warnings))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{BarrierKind, Epoch, PointId, Seq};

    fn point(seq: u64, label: u64) -> Point {
        Point {
            id: PointId { epoch: Epoch(1), seq: Seq(seq) },
            label: Micros(label),
            uncertainty_micros: 0,
            kind: Some(BarrierKind::App),
            group: None,
            name: None,
        }
    }

    #[test]
    fn group_points_stand_by_time_and_are_found_on_both_sides_of_one() {
        let disk = |name| DiskId::new(name).expect("valid");
        let members = |label| BTreeMap::from([(disk("a"), point(1, label)), (disk("b"), point(9, label + 5))]);
        let joined = join(BTreeMap::from([(Id128([2; 16]), members(100)), (Id128([1; 16]), members(200))]));
        let ids: Vec<u8> = joined.iter().map(|point| point.id.0[0]).collect();
        assert_eq!(ids, [2, 1]);
        let at = |time| around(&joined, Micros(time)).map(|point| point.map(|point| point.id.0[0]));
        assert_eq!(at(104), [None, Some(2)], "not every disk had it yet");
        assert_eq!(at(105), [Some(2), Some(1)]);
        assert_eq!(at(1000), [Some(1), None]);
    }
}
