//! The rows of one lane.

use std::collections::BTreeMap;

use object_store::path::Path;
use tokio::task::JoinSet;

use super::{Catalog, CatalogBatch, CatalogLane, Finding, Problem, Shared, task_error};
use crate::types::Id128;
use crate::vault::batch::{self, BatchError, Tail};
use crate::vault::index::lane::{LANE_INDEX_BYTES_MAX, LaneIndex};
use crate::vault::index::{BatchIndex, INDEX_PLAIN_BYTES_MAX, IndexPlace, SealedIndex};
use crate::vault::keyring::Found;
use crate::vault::lane::ListedLane;
use crate::vault::objects::{LaneEndObject, LaneObject, ManifestObject, TooLate};
use crate::vault::store::Listed;
use crate::vault::{VaultError, names};

/// Missing batches of one lane that are named: more say nothing more.
const MISSING_NAMED_MAX: usize = 1 << 14;

/// Reads what one lane holds of the wanted disks.
pub(super) async fn load(shared: Shared, listed: ListedLane) -> Result<Catalog, VaultError> {
    let lane = listed.lane;
    let mut out = Catalog::default();
    let object = registration(&shared, lane, &mut out.findings).await?;
    let end = if listed.ended { end(&shared, lane, &mut out.findings).await? } else { None };
    let appeared = present(&shared, &listed, &mut out.findings).await?;
    // A lane is sealed before anything of it is let go.
    let manifest = if listed.sealed.is_some() { manifest(&shared, lane, &mut out.findings).await? } else { None };
    let mut present = appeared.clone();
    let mut rows = BTreeMap::new();
    let mut cut = false;
    match shared.want.newest {
        Some(newest) => {
            let skipped = present.len().saturating_sub(newest.batches);
            // The rows of what was let go stand in lane indexes, which are not read here.
            cut = skipped > 0 || manifest.as_ref().is_some_and(|manifest| !manifest.let_go.is_empty());
            present = present.into_iter().skip(skipped).collect();
        }
        None => read_lane_indexes(&shared, lane, &mut rows, &mut out.findings).await?,
    }
    // A batch is put into a lane index when it is confirmed.
    let indexed = rows.keys().next_back().copied().unwrap_or(0);
    read_tails(&shared, lane, &present, &mut rows, &mut out.findings).await?;

    let stated = rows.values().map(|row| row.index.confirmed_through).max().unwrap_or(0);
    let confirmed_through = stated.max(end.unwrap_or(0));
    let first_read = if shared.want.newest.is_some() { present.keys().next().copied().unwrap_or(u64::MAX) } else { 1 };
    let runs = manifest.iter().flat_map(|manifest| &manifest.let_go).map(|run| (run.first, run.last));
    let mut accounted: Vec<(u64, u64)> = present.keys().map(|&n| (n, n)).chain(runs).collect();
    accounted.sort_unstable();
    for n in missing(&accounted, first_read, confirmed_through.max(indexed)) {
        out.findings.push(Finding::new(&names::batch(lane, n), Problem::Missing));
    }
    let (batches, bytes) = (present.len() as u64, present.values().map(|(size_bytes, _)| size_bytes).sum());
    for row in rows.into_values() {
        let listed = present.get(&row.index.n).and_then(|_| appeared.get(&row.index.n)).copied();
        out.batches.extend(batch_of(lane, row, listed, manifest.as_ref(), &mut out.findings));
    }
    let sealed = listed.sealed.is_some();
    out.lanes.push(CatalogLane { lane, object, end, sealed, batches, bytes, confirmed_through, cut });
    Ok(out)
}

/// The batches of a lane that are there and count: size, and when each appeared, by number.
pub(super) async fn present(
    shared: &Shared,
    listed: &ListedLane,
    findings: &mut Vec<Finding>,
) -> Result<BTreeMap<u64, (u64, i64)>, VaultError> {
    let mut batches = shared.vault.store().list(Some(&names::batches(listed.lane))).await?;
    batches.retain(|batch| !listed.is_late(batch.modified_micros));
    Ok(numbered(batches, findings, |n| names::batch(listed.lane, n)))
}

/// A batch as the catalog has it; `listed` is size and time, if the batch is there. None if it holds no wanted disk.
fn batch_of(
    lane: Id128,
    row: Row,
    listed: Option<(u64, i64)>,
    manifest: Option<&ManifestObject>,
    findings: &mut Vec<Finding>,
) -> Option<CatalogBatch> {
    let Row { size_bytes: stated_bytes, index } = row;
    let object = names::batch(lane, index.n);
    if let Some((found_bytes, _)) = listed.filter(|(found_bytes, _)| *found_bytes != stated_bytes) {
        findings.push(Finding::of_batch(&object, &BatchError::Size { found_bytes, stated_bytes }));
    }
    if index.disks.is_empty() {
        return None;
    }
    let gone_micros = manifest.map_or(0, |manifest| manifest.newest_micros);
    Some(CatalogBatch {
        object,
        size_bytes: listed.map_or(stated_bytes, |(found_bytes, _)| found_bytes),
        present: listed.is_some(),
        modified_micros: listed.map_or(0, |(_, modified_micros)| modified_micros),
        put_by_micros: listed.map_or(gone_micros, |(_, modified_micros)| modified_micros),
        let_go: manifest.is_some_and(|manifest| manifest.run_of(index.n).is_some()),
        index,
    })
}

/// The numbers `first..=through` that are in no run of `accounted`, which is sorted: by name as long as there are few, and
/// always the last of them, because what may lie behind it counts (see [`crate::restore::source::lost_tail`]). `through` and the
/// runs are what an index, an end or a manifest says: who has the catalog key may write any number there, and it must cost nobody's
/// memory.
fn missing(accounted: &[(u64, u64)], first: u64, through: u64) -> Vec<u64> {
    let mut out = Vec::new();
    let mut last = None;
    let mut from = first;
    let runs = accounted.iter().filter(|(_, end)| *end >= first).take_while(|(start, _)| *start <= through);
    let runs = runs.map(|&(start, end)| (start, end.saturating_add(1)));
    for (start, next) in runs.chain([(through.saturating_add(1), 0)]) {
        out.extend((from..start).take(MISSING_NAMED_MAX - out.len()));
        last = if from < start { Some(start - 1) } else { last };
        from = from.max(next);
    }
    match (last, out.last_mut()) {
        (Some(last), Some(named)) if *named < last => *named = last,
        _ => {}
    }
    out
}

/// A batch's rows and the size that goes with them.
struct Row {
    size_bytes: u64,
    index: BatchIndex,
}

pub(super) async fn registration(
    shared: &Shared,
    lane: Id128,
    findings: &mut Vec<Finding>,
) -> Result<Option<LaneObject>, VaultError> {
    let path = names::lane(lane);
    match shared.vault.lane(lane).await {
        Ok(object) if object.lane == lane => Ok(Some(object)),
        Ok(_) => {
            findings.push(Finding::new(&path, Problem::Damaged("it describes another lane".into())));
            Ok(None)
        }
        Err(VaultError::Missing { .. }) => {
            findings.push(Finding::new(&path, Problem::LaneKeyMissing));
            Ok(None)
        }
        Err(error) => {
            findings.push(Finding::of(&path, error)?);
            Ok(None)
        }
    }
}

/// The newest manifest of a lane. One that is damaged is a finding: what it let go is then told as missing.
async fn manifest(
    shared: &Shared,
    lane: Id128,
    findings: &mut Vec<Finding>,
) -> Result<Option<ManifestObject>, VaultError> {
    let mut late = Vec::new();
    let found = shared.vault.manifest_of_numbers(lane, None, &mut late).await;
    take_manifest(lane, found, late, findings)
}

/// The same, if a listing has shown its number.
pub(super) async fn manifest_numbered(
    shared: &Shared,
    lane: Id128,
    n: Option<u64>,
    findings: &mut Vec<Finding>,
) -> Result<Option<ManifestObject>, VaultError> {
    let Some(n) = n else { return Ok(None) };
    let mut late = Vec::new();
    let found = shared.vault.manifest_of_numbers(lane, Some(n), &mut late).await;
    take_manifest(lane, found, late, findings)
}

fn take_manifest(
    lane: Id128,
    found: Result<Option<ManifestObject>, VaultError>,
    late: Vec<TooLate>,
    findings: &mut Vec<Finding>,
) -> Result<Option<ManifestObject>, VaultError> {
    findings.extend(late.into_iter().map(Finding::too_late));
    match found {
        Ok(found) => Ok(found),
        Err(error) => {
            findings.push(Finding::of(&names::manifests(lane), error)?);
            Ok(None)
        }
    }
}

async fn end(shared: &Shared, lane: Id128, findings: &mut Vec<Finding>) -> Result<Option<u64>, VaultError> {
    let path = names::lane_end(lane);
    match shared.vault.get_object::<LaneEndObject>(&path).await {
        Ok(end) => Ok(end.filter(|end| end.lane == lane).map(|end| end.last_batch)),
        Err(error) => {
            findings.push(Finding::of(&path, error)?);
            Ok(None)
        }
    }
}

/// Listed objects by number, with size and time; what has no number, or is written otherwise, is foreign.
fn numbered(listed: Vec<Listed>, findings: &mut Vec<Finding>, name: impl Fn(u64) -> Path) -> BTreeMap<u64, (u64, i64)> {
    let mut out = BTreeMap::new();
    for Listed { path, size_bytes, modified_micros } in listed {
        match names::number(&path).filter(|&n| n > 0 && name(n) == path) {
            Some(n) => {
                out.insert(n, (size_bytes, modified_micros));
            }
            None => findings.push(Finding::new(&path, Problem::Foreign)),
        }
    }
    out
}

/// Opens an index that stands in a lane index, for its place, and keeps the wanted disks.
fn open(
    shared: &Shared,
    lane: Id128,
    (n, sealed): (u64, &SealedIndex),
    found: Found<'_>,
) -> Result<BatchIndex, BatchError> {
    let object = names::batch(lane, n);
    let place = IndexPlace { vault: shared.vault.id(), object: object.as_ref(), lane, n };
    let mut index = shared.vault.open_index(&place, sealed, found)?;
    index.disks.retain(|part| shared.want.holds(&part.disk));
    Ok(index)
}

async fn read_lane_indexes(
    shared: &Shared,
    lane: Id128,
    rows: &mut BTreeMap<u64, Row>,
    findings: &mut Vec<Finding>,
) -> Result<(), VaultError> {
    let listed = shared.vault.store().list(Some(&names::lane_indexes(lane))).await?;
    let mut running = JoinSet::new();
    for (k, (size_bytes, _)) in numbered(listed, findings, |k| names::lane_index(lane, k)) {
        running.spawn(read_lane_index(shared.clone(), lane, names::lane_index(lane, k), size_bytes));
    }
    while let Some(ended) = running.join_next().await {
        let (found, wrong) = ended.map_err(|error| task_error(&error))??;
        rows.extend(found);
        findings.extend(wrong);
    }
    Ok(())
}

type Rows = (BTreeMap<u64, Row>, Vec<Finding>);

/// A damaged lane index only costs time: its batches are read one by one instead.
async fn read_lane_index(shared: Shared, lane: Id128, path: Path, size_bytes: u64) -> Result<Rows, VaultError> {
    let _request = shared.requests.acquire().await;
    // Sealed and opened form are in memory at the same time.
    let _bytes = shared.bytes.claim(size_bytes.min(LANE_INDEX_BYTES_MAX) * 2).await;
    let (mut rows, mut findings) = (BTreeMap::new(), Vec::new());
    let found = shared.vault.store().get_timed(&path, LANE_INDEX_BYTES_MAX).await.map_err(VaultError::from);
    let (object, appeared_micros) = match found {
        Ok(Some(found)) => found,
        Ok(None) => return Ok((rows, findings)),
        Err(error) => return Ok((rows, vec![Finding::of(&path, error)?])),
    };
    let parsed = LaneIndex::parse(&object).and_then(|index| {
        let right = index.lane == lane && index.vault == shared.vault.id();
        if right { Ok(index) } else { Err(BatchError::Place { lane: index.lane, n: index.first }) }
    });
    match parsed {
        Ok(index) => {
            for entry in &index.entries {
                let found = Found { object: path.as_ref(), appeared_micros };
                match open(&shared, lane, (entry.n, &entry.index), found) {
                    Ok(index) => {
                        rows.insert(entry.n, Row { size_bytes: entry.total_bytes, index });
                    }
                    // Said once of the whole object.
                    Err(BatchError::TooLate(late)) => {
                        let finding = Finding::too_late(late);
                        if findings.last() != Some(&finding) {
                            findings.push(finding);
                        }
                    }
                    Err(error) => findings.push(Finding::of_batch(&path, &error)),
                }
            }
        }
        Err(error) => findings.push(Finding::of_batch(&path, &error)),
    }
    Ok((rows, findings))
}

async fn read_tails(
    shared: &Shared,
    lane: Id128,
    present: &BTreeMap<u64, (u64, i64)>,
    rows: &mut BTreeMap<u64, Row>,
    findings: &mut Vec<Finding>,
) -> Result<(), VaultError> {
    let uncovered: Vec<(u64, (u64, i64))> =
        present.iter().filter(|(n, _)| !rows.contains_key(n)).map(|(&n, &listed)| (n, listed)).collect();
    let mut waiting = uncovered.into_iter();
    let mut running = JoinSet::new();
    loop {
        while running.len() < super::REQUESTS_AT_ONCE {
            let Some((n, listed)) = waiting.next() else { break };
            running.spawn(read_tail(shared.clone(), lane, n, listed));
        }
        match running.join_next().await {
            None => return Ok(()),
            Some(ended) => match ended.map_err(|error| task_error(&error))?? {
                Ok((n, row)) => {
                    rows.insert(n, row);
                }
                Err(finding) => findings.push(finding),
            },
        }
    }
}

/// Reads the end of a batch, and again from the index's start if the index is longer than that.
async fn read_tail(
    shared: Shared,
    lane: Id128,
    n: u64,
    (size_bytes, appeared_micros): (u64, i64),
) -> Result<Result<(u64, Row), Finding>, VaultError> {
    let path = names::batch(lane, n);
    let found = Found { object: path.as_ref(), appeared_micros };
    let _request = shared.requests.acquire().await;
    let mut range = batch::tail_range(size_bytes);
    loop {
        if range.is_empty() {
            let error = BatchError::Short { part: "batch", have_bytes: 0, need_bytes: 1 };
            return Ok(Err(Finding::of_batch(&path, &error)));
        }
        let _bytes = shared.bytes.claim((range.end - range.start) * 2).await;
        let tail = match shared.vault.store().get_range(&path, range).await {
            Ok(tail) => tail,
            // Listed a moment ago, and gone now.
            Err(error) if error.is_not_found() => return Ok(Err(Finding::new(&path, Problem::Missing))),
            Err(error) => return Finding::of(&path, error.into()).map(Err),
        };
        match batch::parse_tail(size_bytes, &tail) {
            Ok(Tail::Whole { trailer, index }) => {
                let right = trailer.lane == lane && trailer.n == n;
                let place = || BatchError::Place { lane: trailer.lane, n: trailer.n };
                let opened =
                    if right { open_checked(&shared, (lane, n), &trailer, &index, found) } else { Err(place()) };
                return Ok(opened
                    .map(|index| (n, Row { size_bytes, index }))
                    .map_err(|error| Finding::of_batch(&path, &error)));
            }
            Ok(Tail::More { trailer, .. }) if trailer.index_stored_bytes as usize > INDEX_PLAIN_BYTES_MAX => {
                let error = BatchError::Field { part: "trailer", field: "index bytes" };
                return Ok(Err(Finding::of_batch(&path, &error)));
            }
            Ok(Tail::More { range: more, .. }) => range = more,
            Err(error) => return Ok(Err(Finding::of_batch(&path, &error))),
        }
    }
}

fn open_checked(
    shared: &Shared,
    (lane, n): (Id128, u64),
    trailer: &batch::BatchTrailer,
    sealed: &SealedIndex,
    found: Found<'_>,
) -> Result<BatchIndex, BatchError> {
    let place = IndexPlace { vault: shared.vault.id(), object: found.object, lane, n };
    let mut index = shared.vault.open_batch(&place, trailer, sealed, found)?;
    index.disks.retain(|part| shared.want.holds(&part.disk));
    Ok(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_batches_are_named_and_a_number_beyond_all_costs_nothing() {
        let present = [1, 3, 4, 7].map(|n| (n, n));
        assert_eq!(missing(&present, 1, 0), Vec::<u64>::new());
        assert_eq!(missing(&present, 1, 1), Vec::<u64>::new());
        assert_eq!(missing(&present, 1, 7), [2, 5, 6]);
        assert_eq!(missing(&present, 1, 9), [2, 5, 6, 8, 9]);
        assert_eq!(missing(&present, 4, 9), [5, 6, 8, 9]);
        assert_eq!(missing(&present, u64::MAX, 9), Vec::<u64>::new());
        let many = missing(&present, 1, u64::MAX - 1);
        assert_eq!((many.len(), many[0], many[many.len() - 1]), (MISSING_NAMED_MAX, 2, u64::MAX - 1));
        assert_eq!(missing(&[], 1, u64::MAX - 1).len(), MISSING_NAMED_MAX);
        assert_eq!(missing(&[], 1, u64::MAX).len(), MISSING_NAMED_MAX);
        assert_eq!(missing(&[(1, 5), (3, 3), (8, u64::MAX)], 1, u64::MAX), [6, 7]);
    }
}
