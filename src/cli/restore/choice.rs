//! Which disks come back, to which point each, and where to: everything that is decided before a byte is written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::{Args, DiskView, choose, view};
use crate::cli::Failure;
use crate::restore::points::{Ask, Point};
use crate::restore::target::Target;
use crate::types::{DiskId, Id128, Micros};
use crate::vault::reader::Want;
use crate::vault::{Vault, VaultError};

/// What stands for a disk's name in a path.
const DISK_IN_PATH: &str = "{disk}";
/// Descriptions of disks that are read at the same time.
const READS: usize = 16;
/// Machines that an error names.
const MACHINES_SHOWN: usize = 20;

/// Which moment of a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Group {
    /// The newest that all disks have in common.
    Last,
    /// The one of this id.
    Id(Id128),
}

impl FromStr for Group {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "last" => Ok(Self::Last),
            _ => text
                .parse()
                .map(Self::Id)
                .map_err(|_| "expected last, or the id of a group as `tidegate points --groups` shows it".to_owned()),
        }
    }
}

/// One disk that comes back.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) disk: DiskId,
    pub(super) point: Point,
    pub(super) to: PathBuf,
    pub(super) warnings: Vec<String>,
}

/// All of them.
pub(super) struct Choice {
    pub(super) members: Vec<Member>,
    /// What was loaded of the disk, if it is the only one: the indexes of one disk at a time are what memory is meant for.
    pub(super) loaded: Option<DiskView>,
}

/// A disk and its points, as far as the choice needs them.
struct Candidate {
    disk: DiskId,
    point: Option<Point>,
    grouped: BTreeMap<Id128, Point>,
    warnings: Vec<String>,
}

/// Chooses disks, points and targets.
pub(super) async fn all(args: &Args, vault: &Vault, asked: &Ask) -> Result<Choice, Failure> {
    if args.group.is_some_and(|group| matches!(group, Group::Id(_))) && args.point.names_time() {
        return Err(Failure::usage("--group ID is one moment: leave out --at, or ask for --group last"));
    }
    let named = named(args, vault).await?;
    let disks = match &named {
        Some(named) => named.clone(),
        None => vault.disks().await.map_err(|error| Failure::of(&error))?,
    };
    let mut candidates = Vec::with_capacity(disks.len());
    let (mut loaded, mut gone) = (None, false);
    for disk in disks {
        drop(loaded.take());
        let want = Want { folded: !args.unfolded, ..Want::disk(&disk) };
        let view = match view::load_if_there(vault, &disk, &want).await? {
            Ok(view) => view,
            Err(shredded) if args.disk.contains(&disk) => return Err(Failure::error(shredded)),
            // Nobody named it, and it keeps nobody from having the others back.
            Err(shredded) => {
                eprintln!("tidegate: warning: {shredded}");
                gone = true;
                continue;
            }
        };
        candidates.push(candidate(args, asked, &disk, &view)?);
        loaded = Some(view);
    }
    if candidates.is_empty() && gone {
        return Err(Failure::error("nothing is left to restore: every disk that was asked for was shredded"));
    }
    let chosen = match args.group {
        None => candidates,
        Some(Group::Id(id)) => of_group(candidates, id, named.is_some())?,
        Some(Group::Last) => of_last_group(candidates)?,
    };
    let several = chosen.len() > 1;
    let mut members = Vec::with_capacity(chosen.len());
    for Candidate { disk, point, warnings, .. } in chosen {
        let Some(point) = point else { continue };
        let to = place(args, &disk, several)?;
        members.push(Member { disk, point, to, warnings });
    }
    Ok(Choice { loaded: loaded.filter(|_| !several && args.group.is_none()), members })
}

/// The disks that the call names; none if it names a group alone.
async fn named(args: &Args, vault: &Vault) -> Result<Option<Vec<DiskId>>, Failure> {
    if let Some(machine) = &args.machine {
        return of_machine(vault, machine).await.map(Some);
    }
    let mut disks = args.disk.clone();
    disks.sort();
    if let Some(twice) = disks.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Failure::usage(format!("disk {} is named twice", twice[0])));
    }
    if disks.is_empty() && args.group == Some(Group::Last) {
        return Err(Failure::usage("--group last needs --disk or --machine: of which disks?"));
    }
    Ok((!disks.is_empty()).then_some(disks))
}

async fn of_machine(vault: &Vault, machine: &str) -> Result<Vec<DiskId>, Failure> {
    let disks = vault.disks().await.map_err(|error| Failure::of(&error))?;
    let read = |disk: DiskId| async move {
        let object = vault.disk(&disk).await?;
        Ok::<_, VaultError>(object.map(|object| (object.agent, disk)))
    };
    let found: Vec<_> =
        stream::iter(disks).map(read).buffered(READS).try_collect().await.map_err(|error| Failure::of(&error))?;
    let mut machines: BTreeMap<String, Vec<DiskId>> = BTreeMap::new();
    for (agent, disk) in found.into_iter().flatten() {
        machines.entry(agent).or_default().push(disk);
    }
    machines.remove(machine).ok_or_else(|| {
        let known: Vec<&str> = machines.keys().take(MACHINES_SHOWN).map(String::as_str).collect();
        let more = if machines.len() > MACHINES_SHOWN { " and others" } else { "" };
        let known = if known.is_empty() { "none yet".to_owned() } else { format!("{}{more}", known.join(", ")) };
        Failure::error(format!(
            "the vault {} has no disk of a machine {machine}: it knows {known}",
            vault.store().shown()
        ))
    })
}

fn candidate(args: &Args, asked: &Ask, disk: &DiskId, view: &DiskView) -> Result<Candidate, Failure> {
    let (mut point, mut grouped) = (None, BTreeMap::new());
    if args.group.is_some() {
        let until = if let Ask::At(time) = asked { *time } else { Micros(u64::MAX) };
        let in_time = view.points.iter().filter(|point| point.label <= until);
        grouped.extend(in_time.filter_map(|point| Some((point.group?, point.clone()))));
    } else {
        point = Some(choose(disk, view, asked)?);
    }
    Ok(Candidate { disk: disk.clone(), point, grouped, warnings: view.warnings(disk) })
}

/// Those that took the moment; each of them must have if they were `named`.
fn of_group(candidates: Vec<Candidate>, id: Id128, named: bool) -> Result<Vec<Candidate>, Failure> {
    let mut chosen = Vec::new();
    for mut candidate in candidates {
        candidate.point = candidate.grouped.remove(&id);
        match candidate.point {
            Some(_) => chosen.push(candidate),
            None if named => {
                let disk = candidate.disk;
                return Err(Failure::error(format!(
                    "disk {disk} has no point of the group {id}: `tidegate points --groups {id}` shows who has"
                )));
            }
            None => {}
        }
    }
    if chosen.is_empty() {
        return Err(Failure::error(format!("no point of a group {id} can be restored: `points --groups` lists all")));
    }
    Ok(chosen)
}

/// The newest moment that all of them took.
fn of_last_group(mut candidates: Vec<Candidate>) -> Result<Vec<Candidate>, Failure> {
    let label_of = |id: &Id128| {
        let labels: Option<Vec<Micros>> =
            candidates.iter().map(|candidate| candidate.grouped.get(id).map(|point| point.label)).collect();
        labels?.into_iter().max()
    };
    let ids = candidates.first().map(|candidate| candidate.grouped.keys().copied().collect::<Vec<_>>());
    let newest = ids.unwrap_or_default().into_iter().filter_map(|id| Some((label_of(&id)?, id))).max();
    let Some((_, id)) = newest else {
        return Err(Failure::error(
            "these disks have no moment in common: `tidegate points --groups` lists those that there are, and without --group \
             each disk comes back to its own last point",
        ));
    };
    for candidate in &mut candidates {
        candidate.point = candidate.grouped.remove(&id);
    }
    Ok(candidates)
}

/// Where a disk goes to, after a look at what is there.
pub(super) fn place(args: &Args, disk: &DiskId, several: bool) -> Result<PathBuf, Failure> {
    let (asked, ending) = match (&args.to, &args.onto) {
        (Some(to), _) => (to, args.format.ending()),
        (None, Some(onto)) => (onto, "img"),
        (None, None) => return Err(Failure::usage("say where to: --to PATH or --onto PATH")),
    };
    let path = match asked.to_str() {
        Some(text) if text.contains(DISK_IN_PATH) => PathBuf::from(text.replace(DISK_IN_PATH, disk.as_str())),
        _ if asked.is_dir() => asked.join(format!("{disk}.{ending}")),
        _ if several => return Err(one_place(asked)),
        _ => asked.clone(),
    };
    let checked = if args.onto.is_some() { Target::check_onto(&path) } else { Target::check(&path, args.force) };
    checked.map_err(|error| Failure::of(&error))?;
    Ok(path)
}

fn one_place(asked: &Path) -> Failure {
    Failure::usage(format!(
        "{} is one place for several disks: name a folder that is there, or a path with {DISK_IN_PATH} in it, such as \
         /dev/vg0/{DISK_IN_PATH}",
        asked.display()
    ))
}

/// How far the points of several disks lie apart, in words, unless they are one moment.
pub(super) fn apart(members: &[Member]) -> Option<String> {
    let first = members.first()?;
    if first.point.group.is_some() && members.iter().all(|member| member.point.group == first.point.group) {
        return None;
    }
    let labels = || members.iter().map(|member| member.point.label);
    let seconds = view::seconds(labels().min()?, labels().max()?);
    (members.len() > 1).then(|| {
        format!(
            "these disks come back to points of their own, up to {seconds:.3} s apart, which is no moment that they had in \
             common: --group last takes the newest that they had"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{BarrierKind, Epoch, PointId, Seq};

    fn point(label: u64, group: u8) -> Point {
        Point {
            id: PointId { epoch: Epoch(1), seq: Seq(label) },
            label: Micros(label),
            uncertainty_micros: 0,
            kind: Some(BarrierKind::Crash),
            group: (group > 0).then_some(Id128([group; 16])),
            name: None,
        }
    }

    fn candidate(name: &str, grouped: &[(u8, u64)]) -> Candidate {
        let grouped = grouped.iter().map(|&(group, label)| (Id128([group; 16]), point(label, group))).collect();
        Candidate { disk: DiskId::new(name).unwrap(), point: None, grouped, warnings: Vec::new() }
    }

    fn labels(chosen: &[Candidate]) -> Vec<u64> {
        chosen.iter().filter_map(|candidate| candidate.point.as_ref()).map(|point| point.label.0).collect()
    }

    #[test]
    fn the_last_moment_is_the_newest_that_all_took() {
        let disks = || vec![candidate("a", &[(1, 10), (2, 20), (3, 30)]), candidate("b", &[(1, 11), (2, 19), (4, 40)])];
        assert_eq!(labels(&of_last_group(disks()).unwrap()), [20, 19]);
        let mut none = disks();
        none.push(candidate("c", &[(4, 41)]));
        assert!(of_last_group(none).is_err());
    }

    #[test]
    fn a_moment_is_that_of_those_who_took_it_and_of_all_who_are_named() {
        let disks = || vec![candidate("a", &[(1, 10)]), candidate("b", &[(2, 20)]), candidate("c", &[(1, 12)])];
        let first = Id128([1; 16]);
        assert_eq!(labels(&of_group(disks(), first, false).unwrap()), [10, 12]);
        assert!(of_group(disks(), first, true).is_err_and(|failure| failure.text.contains("disk b")));
        assert!(of_group(disks(), Id128([9; 16]), false).is_err());
        assert_eq!("last".parse::<Group>(), Ok(Group::Last));
        assert_eq!(first.to_string().parse::<Group>(), Ok(Group::Id(first)));
        assert!("latest".parse::<Group>().is_err());
    }

    #[test]
    fn points_that_are_no_moment_are_called_so() {
        let member = |label, group| Member {
            disk: DiskId::new("a").unwrap(),
            point: point(label, group),
            to: PathBuf::new(),
            warnings: Vec::new(),
        };
        assert_eq!(apart(&[member(1, 0)]), None);
        assert_eq!(apart(&[member(1, 7), member(900_000, 7)]), None);
        let told = apart(&[member(1_000_000, 0), member(2_500_000, 0)]).unwrap();
        assert!(told.contains("1.500 s"), "{told}");
    }
}
