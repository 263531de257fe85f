//! One run of the keeper: judge, then lane by lane seal, index, mark, delete, as far as the budget goes.
//!
//! ```text
//!  claim of the run (tells the store's time) ─► pins ─► verdict ─► each lane with something to do:
//!     claim ─► seal │ ten minutes │ ─► lane indexes ─► manifest: marks │ delete_after │ ─► deletions ─► release
//! ```
//!
//! A bar marks where a later run goes on. Every step may be the last one: see the decision page on crashes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};

use super::config::{Policies, Work};
use super::cover;
use super::judge::{self, DiskVerdict, Terms, Verdict};
use super::marks::{self, LaneSteps, LaneVerdict, Present, Times};
use crate::flow::Clock;
use crate::keys;
use crate::types::{Id128, Micros};
use crate::vault::lane::ListedLane;
use crate::vault::objects::{ClaimObject, LaneSealObject, LetGoRun, ManifestObject};
use crate::vault::store::Listed;
use crate::vault::{Vault, VaultError, names};

/// Deletions between two looks at the newest manifest.
const DELETE_GROUP: usize = 256;
/// Deletions at the same time.
const DELETES_AT_ONCE: usize = 16;
/// Notes that are kept by name: more say nothing more.
pub(super) const NOTES_MAX: usize = 1000;

/// What a run, or a plan, found and did.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Report {
    /// Every disk.
    pub disks: Vec<DiskVerdict>,
    /// Batches that the vault holds, and their bytes.
    pub stored: Count,
    /// Bytes of the messages that are needed.
    pub needed_bytes: u64,
    /// Batches that are not needed and not yet marked.
    pub unneeded: Count,
    /// Batches that are marked, and not deleted.
    pub marked: Count,
    /// Lanes that were sealed.
    pub lanes_sealed: u64,
    /// Lanes that have something to let go and were not old enough: in use, or sealed a moment ago.
    pub lanes_waiting: u64,
    /// Lanes that another keeper works on.
    pub lanes_elsewhere: u64,
    /// Lane indexes that were written.
    pub indexes_written: u64,
    /// Batches that were marked in this run.
    pub newly_marked: Count,
    /// Marks that were taken back.
    pub taken_back: u64,
    /// Batches that were deleted in this run.
    pub deleted: Count,
    /// Whether the budget ended the run before its work was done.
    pub budget_spent: bool,
    /// What is worth knowing.
    pub notes: Vec<String>,
}

/// Some batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Count {
    /// How many.
    pub batches: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Count {
    fn add(&mut self, batches: &[Present]) {
        self.batches += batches.len() as u64;
        self.bytes += batches.iter().map(|batch| batch.size_bytes).sum::<u64>();
    }
}

/// What a run may still use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    requests: u64,
    bytes: u64,
    pub(super) spent: bool,
}

impl Budget {
    /// Requests beside the one that looks whether they may still be sent.
    fn requests_left(&self) -> usize {
        usize::try_from(self.requests.saturating_sub(1)).unwrap_or(usize::MAX)
    }

    /// Whether so much may be used; it is used then.
    pub(super) fn take(&mut self, requests: u64, bytes: u64) -> bool {
        if self.requests < requests || self.bytes < bytes {
            self.spent = true;
            return false;
        }
        self.requests -= requests;
        self.bytes -= bytes;
        true
    }
}

/// What would go and what it saves. Writes nothing.
///
/// # Errors
/// [`VaultError`] if the store fails or the catalog key is not at hand.
pub async fn plan(vault: &Vault, work: &Work, policies: &Policies, now: Micros) -> Result<Report, VaultError> {
    let mut report = Report::default();
    let now_micros = i64::try_from(now.0).unwrap_or(i64::MAX);
    let times = Times::at(now_micros, work.fork_window, work.delete_after);
    let verdict = look(vault, work, policies, &times, &mut report).await?;
    let nothing = LaneVerdict::default();
    for listed in vault.lanes().await? {
        let (present, manifest) = lane_state(vault, &listed).await?;
        let let_go = manifest.map(|manifest| manifest.let_go).unwrap_or_default();
        let steps = LaneSteps::new(&present, &let_go, verdict.lane(listed.lane).unwrap_or(&nothing), &times);
        count(&steps, &present, &mut report);
    }
    report.disks = verdict.disks;
    Ok(report)
}

/// Judges the vault.
async fn look(
    vault: &Vault,
    work: &Work,
    policies: &Policies,
    times: &Times,
    report: &mut Report,
) -> Result<Verdict, VaultError> {
    let pins = judge::pins(vault, &mut report.notes).await?;
    let terms = Terms {
        policies,
        pins: &pins,
        now_micros: times.now_micros,
        old_micros: times.old_micros,
        disks_at_once: work.disks_at_once,
    };
    let verdict = judge::judge(vault, &terms).await?;
    report.needed_bytes = verdict.needed_bytes;
    Ok(verdict)
}

/// What stands in a lane, and its newest manifest. The manifest first: what it does not name yet was surely listed.
async fn lane_state(vault: &Vault, listed: &ListedLane) -> Result<(Vec<Present>, Option<ManifestObject>), VaultError> {
    let manifest = if listed.sealed.is_some() { vault.manifest(listed.lane).await? } else { None };
    let batches = vault.store().list(Some(&names::batches(listed.lane))).await?;
    Ok((judge::present(listed.lane, &batches), manifest))
}

fn count(steps: &LaneSteps, present: &[Present], report: &mut Report) {
    report.stored.add(present);
    report.unneeded.add(&steps.mark);
    report.marked.add(&steps.waiting);
    report.marked.add(&steps.delete);
}

/// One run over the whole vault.
///
/// # Errors
/// [`VaultError`] if the store fails: the next run goes on where this one stopped.
pub async fn once(
    vault: &Vault,
    work: &Work,
    policies: &Policies,
    clock: Arc<dyn Clock>,
) -> Result<Report, VaultError> {
    let run = Id128(keys::random()?);
    let path = names::claim(run);
    vault.put_object(&path, &ClaimObject { claim: run, run }).await?;
    let started = clock.monotonic();
    let missing = || VaultError::Missing { object: path.to_string(), place: vault.store().shown().to_owned() };
    let began_micros = vault.store().modified(&path).await?.ok_or_else(missing)?;
    let mut report = Report::default();
    let times = Times::at(began_micros, work.fork_window, work.delete_after);
    let verdict = look(vault, work, policies, &times, &mut report).await?;
    let budget = Budget { requests: work.requests, bytes: work.bytes, spent: false };
    let mut keeper = Run { vault, work, run, verdict, times, began_micros, started, clock, budget, report };
    // From another lane each time, or the last ones would never come to their turn under a small budget.
    let mut lanes = vault.lanes().await?;
    let first = lanes.partition_point(|listed| listed.lane < run);
    lanes.rotate_left(first);
    for listed in lanes {
        if keeper.budget.spent {
            break;
        }
        keeper.lane(&listed).await?;
    }
    keeper.tidy().await?;
    vault.store().delete(&path).await?;
    let mut report = keeper.report;
    report.budget_spent = keeper.budget.spent;
    report.disks = keeper.verdict.disks;
    report.notes.truncate(NOTES_MAX);
    Ok(report)
}

/// A run under way.
struct Run<'a> {
    vault: &'a Vault,
    work: &'a Work,
    run: Id128,
    verdict: Verdict,
    /// Of the run's start: what is old now was old then.
    times: Times,
    began_micros: i64,
    started: Duration,
    clock: Arc<dyn Clock>,
    budget: Budget,
    report: Report,
}

impl Run<'_> {
    /// The store's time, as far as this machine's clock has run evenly since the start.
    fn now_micros(&self) -> i64 {
        self.began_micros + self.clock.monotonic().saturating_sub(self.started).as_micros() as i64
    }

    async fn lane(&mut self, listed: &ListedLane) -> Result<(), VaultError> {
        if !self.budget.take(2, 0) {
            return Ok(());
        }
        let lane = listed.lane;
        let (present, manifest) = lane_state(self.vault, listed).await?;
        let nothing = LaneVerdict::default();
        let let_go = manifest.as_ref().map(|manifest| manifest.let_go.as_slice()).unwrap_or_default();
        let steps = LaneSteps::new(&present, let_go, self.verdict.lane(lane).unwrap_or(&nothing), &self.times);
        count(&steps, &present, &mut self.report);
        if steps.is_empty() {
            return Ok(());
        }
        if !self.budget.take(3, 0) {
            return Ok(());
        }
        if !self.claim(lane).await? {
            self.report.lanes_elsewhere += 1;
            return Ok(());
        }
        match self.work_on(listed, &present, manifest.as_ref(), &steps).await {
            // Somebody else came first, with a claim that had gone stale here or there.
            Err(VaultError::Taken { object, .. }) => {
                self.report.lanes_elsewhere += 1;
                self.report.notes.push(format!("{object} was written by another keeper, which goes on with the lane"));
            }
            worked => worked?,
        }
        self.vault.store().delete(&names::claim(lane)).await?;
        Ok(())
    }

    async fn claim(&mut self, lane: Id128) -> Result<bool, VaultError> {
        let (path, claim) = (names::claim(lane), ClaimObject { claim: lane, run: self.run });
        for _ in 0..2 {
            match self.vault.put_object(&path, &claim).await {
                Ok(_) => return Ok(true),
                Err(VaultError::Taken { .. }) => {}
                Err(error) => return Err(error),
            }
            let stale_micros = self.now_micros() - self.work.claim_stale.as_micros() as i64;
            match self.vault.store().modified(&path).await? {
                Some(at) if at > stale_micros => return Ok(false),
                Some(_) => self.vault.store().delete(&path).await?,
                None => {}
            }
        }
        Ok(false)
    }

    async fn work_on(
        &mut self,
        listed: &ListedLane,
        present: &[Present],
        manifest: Option<&ManifestObject>,
        steps: &LaneSteps,
    ) -> Result<(), VaultError> {
        let lane = listed.lane;
        let grace_micros = self.work.seal_grace.as_micros() as i64;
        match listed.sealed {
            None => return self.seal(listed).await,
            Some(sealed) if self.now_micros() < sealed + grace_micros => {
                self.report.lanes_waiting += 1;
                return Ok(());
            }
            Some(_) => {}
        }
        let mark = if steps.mark.is_empty() { BTreeSet::new() } else { self.cover(lane, present, &steps.mark).await? };
        let newest = self.commit(lane, present, manifest, steps, &mark).await?;
        self.delete(lane, newest, &steps.delete).await?;
        self.supersede(lane, newest).await
    }

    async fn seal(&mut self, listed: &ListedLane) -> Result<(), VaultError> {
        let now_micros = self.now_micros();
        let lane = listed.lane;
        if !listed.ended {
            let created = self.vault.lane(lane).await?.created_micros;
            let age_micros = now_micros.saturating_sub(i64::try_from(created.0).unwrap_or(i64::MAX));
            if age_micros < self.work.seal_after.as_micros() as i64 {
                self.report.lanes_waiting += 1;
                return Ok(());
            }
        }
        let sealed_micros = Micros(u64::try_from(now_micros).unwrap_or(0));
        let seal = LaneSealObject { lane, sealed_micros, reason: "retention".into() };
        self.vault.put_object(&names::lane_seal(lane), &seal).await?;
        self.report.lanes_sealed += 1;
        Ok(())
    }

    /// Brings the indexes of the lane's batches into lane indexes; returns which of `mark` stand in one and may go.
    async fn cover(&mut self, lane: Id128, present: &[Present], mark: &[Present]) -> Result<BTreeSet<u64>, VaultError> {
        let wanted: BTreeSet<u64> = mark.iter().map(|batch| batch.n).collect();
        let mut cover = cover::Cover::new(self.vault, lane, &self.verdict.judged, wanted);
        cover.read(&mut self.budget).await?;
        let written = cover.complete(present, &mut self.budget, &mut self.report.notes).await;
        self.report.indexes_written += cover.written();
        written?;
        Ok(cover.into_covered())
    }

    /// Writes the next manifest, if anything changes; returns the number of the newest.
    async fn commit(
        &mut self,
        lane: Id128,
        present: &[Present],
        manifest: Option<&ManifestObject>,
        steps: &LaneSteps,
        mark: &BTreeSet<u64>,
    ) -> Result<u64, VaultError> {
        let newest = manifest.map_or(0, |manifest| manifest.n);
        let before: &[LetGoRun] = manifest.map(|manifest| manifest.let_go.as_slice()).unwrap_or_default();
        let back: BTreeSet<u64> = steps.take_back.iter().copied().collect();
        if (mark.is_empty() && back.is_empty()) || !self.budget.take(2, 0) {
            return Ok(newest);
        }
        let numbers: BTreeSet<u64> = present.iter().map(|batch| batch.n).collect();
        let made_micros = self.now_micros();
        let let_go = marks::next_runs(before, &numbers, &back, mark, made_micros);
        let next = ManifestObject { lane, n: newest + 1, made_micros, run: self.run, let_go };
        self.vault.put_object(&names::manifest(lane, next.n), &next).await?;
        let marked: Vec<Present> = steps.mark.iter().copied().filter(|batch| next.run_of(batch.n).is_some()).collect();
        self.report.newly_marked.add(&marked);
        self.report.taken_back += back.len() as u64;
        Ok(next.n)
    }

    /// Deletes what was marked long ago and found unneeded by this run too.
    async fn delete(&mut self, lane: Id128, newest: u64, batches: &[Present]) -> Result<(), VaultError> {
        let mut rest = batches;
        while !rest.is_empty() {
            let group;
            (group, rest) = rest.split_at(self.budget.requests_left().min(DELETE_GROUP).min(rest.len()));
            if group.is_empty() || !self.budget.take(group.len() as u64 + 1, 0) {
                self.budget.spent = true;
                return Ok(());
            }
            if self.newest_manifest(lane).await? != newest {
                self.report
                    .notes
                    .push(format!("lane {lane}: another keeper wrote a manifest; this run deletes nothing more"));
                return Ok(());
            }
            let store = self.vault.store();
            let deletes = group.iter().map(|batch| async move {
                let path = names::batch(lane, batch.n);
                store.delete(&path).await.map(|()| *batch)
            });
            let mut deletes = stream::iter(deletes).buffer_unordered(DELETES_AT_ONCE);
            while let Some(deleted) = deletes.next().await {
                self.report.deleted.add(&[deleted?]);
            }
        }
        Ok(())
    }

    async fn newest_manifest(&self, lane: Id128) -> Result<u64, VaultError> {
        let listed = self.vault.store().list(Some(&names::manifests(lane))).await?;
        Ok(listed.iter().filter_map(|one| names::number(&one.path)).max().unwrap_or(0))
    }

    /// Deletes manifests that no reader can hold for the newest any more.
    async fn supersede(&mut self, lane: Id128, newest: u64) -> Result<(), VaultError> {
        let listed = self.vault.store().list(Some(&names::manifests(lane))).await?;
        let old = |one: &&Listed| {
            names::number(&one.path).is_some_and(|n| n < newest) && one.modified_micros <= self.times.delete_micros
        };
        let old: Vec<_> = listed.iter().filter(old).map(|one| one.path.clone()).collect();
        for path in old {
            if !self.budget.take(1, 0) {
                return Ok(());
            }
            self.vault.store().delete(&path).await?;
        }
        Ok(())
    }

    /// Deletes pins that have ended and claims that were left behind.
    async fn tidy(&mut self) -> Result<(), VaultError> {
        let mut old = Vec::new();
        let stale_micros = self.now_micros() - self.work.claim_stale.as_micros() as i64;
        let claims = self.vault.store().list(Some(&names::claims())).await?;
        old.extend(claims.into_iter().filter(|one| one.modified_micros < stale_micros).map(|one| one.path));
        // Ended for as long as nothing may be deleted that was marked while it held.
        let ended_micros = self.times.delete_micros;
        let pins = judge::pins(self.vault, &mut Vec::new()).await?;
        old.extend(pins.into_iter().filter(|pin| pin.ends_micros < ended_micros).map(|pin| names::pin(pin.object.pin)));
        for path in old.into_iter().filter(|path| *path != names::claim(self.run)) {
            if !self.budget.take(1, 0) {
                return Ok(());
            }
            self.vault.store().delete(&path).await?;
        }
        Ok(())
    }
}
