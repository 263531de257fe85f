//! One run of the keeper: judge, then lane by lane seal, index, mark, delete, as far as the budget goes.
//!
//! ```text
//!  claim of the run (tells the store's time) ─► pins ─► verdict ─► each lane with something to do:
//!     claim ─► seal │ ten minutes │ ─► lane indexes ─► manifest: marks │ delete_after │ ─► deletions ─► release
//!  ─► sparse batches, if that is asked for: what is needed of them goes into a lane of its own │ delete_after │ and counts there
//!  and each lane that has ended, once: claim ─► folded indexes of its disks ─► release
//! ```
//!
//! A bar marks where a later run goes on. Every step may be the last one: see the decision page on crashes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use object_store::path::Path;
use tracing::info_span;

use super::config::{Policies, Work};
use super::cover::Cover;
use super::error::KeeperError;
use super::fold::{Folding, Limits, Notes};
use super::judge::{self, Terms, Verdict};
use super::manifests::Manifests;
use super::marks::{self, LaneSteps, LaneVerdict, Present, Times};
use super::mover::Mover;
use super::outlook::{LaneOutlook, Outlook};
use super::pins::{self, Pins};
use super::report::{Budget, Progress, Report};
use super::sparse;
use crate::fault;
use crate::flow::{Clock, Drain};
use crate::keys;
use crate::telemetry::traces::within;
use crate::types::{Id128, Micros};
use crate::vault::lane::{LATE_AFTER_SEAL, ListedLane};
use crate::vault::objects::{ClaimObject, LaneSealObject, ManifestObject};
use crate::vault::{Vault, VaultError, names};

/// Deletions between two looks at the newest manifest, the pins and the policies: few, because a restore that pins its point meanwhile has
/// listed them.
const DELETE_GROUP: usize = 32;
/// Age from which such a look counts no more.
const LOOK_AGE_MAX: Duration = Duration::from_secs(60);
/// A manifest that only marks more is written after a twentieth of `delete_after` at the soonest, so that few stand between a mark and its age.
const MARKS_PER_GRACE: u32 = 20;
/// Requests of such a look.
const LOOK_REQUESTS: u64 = 2;
/// A lane whose batches are all gone is looked at in one of so many runs: of them there are ever more.
const GONE_LOOK_RUNS: u8 = 16;
/// Deletions at the same time.
const DELETES_AT_ONCE: usize = 16;
/// How far the clocks of the store and of this machine may be apart: little beside `delete_after` and every term that deletes, and more than clocks
/// differ that somebody minds. That both are wrong in the same way is not to be expected.
pub const CLOCKS_APART_MAX: Duration = Duration::from_secs(300);

/// What would go, when, and what it saves. Writes nothing.
///
/// # Errors
/// [`KeeperError`] if the store fails, the catalog key is not at hand, or a policy is of no disk.
pub async fn plan(
    vault: &Vault,
    work: &Work,
    policies: &Policies,
    now: Micros,
    progress: &Progress,
) -> Result<Report, KeeperError> {
    let mut report = Report::default();
    let times = Times::at(i64::try_from(now.0).unwrap_or(i64::MAX), work.fork_window, work.delete_after);
    let pins = pins::read(vault, times.now_micros).await?;
    let terms = terms(work, policies, &pins, &times, work.sparse);
    let mut verdict = judge::judge(vault, &terms, progress).await?;
    report.needed_bytes = verdict.needed_bytes;
    (report.sparse, report.moving_saves_bytes) = sparse::saving(&verdict.holdings.sparse());
    let (nothing, digest) = (LaneVerdict::default(), policies.digest(work));
    let mut lanes = BTreeMap::new();
    for listed in vault.lanes().await? {
        let budget = &mut Budget::new(u64::MAX, u64::MAX);
        let state = state(vault, &listed, digest, &times, budget).await;
        let Some(state) = readable(state, &listed, &mut report)? else { continue };
        let steps = state.steps(verdict.lane(listed.lane).unwrap_or(&nothing), &times);
        count(&steps, &state.present, &mut report);
        lanes.insert(listed.lane, LaneOutlook::new(&steps, state.manifests.let_go()));
    }
    let delete_after_micros = work.delete_after.as_micros() as i64;
    Outlook { vault, terms: &terms, lanes: &lanes, delete_after_micros }.tell(&mut verdict).await?;
    report.disks = verdict.disks;
    Ok(report)
}

fn terms<'a>(work: &Work, policies: &'a Policies, pins: &'a Pins, times: &Times, sparse: u64) -> Terms<'a> {
    let Times { now_micros, old_micros, delete_micros: ripe_micros } = *times;
    Terms { policies, pins, now_micros, old_micros, ripe_micros, disks_at_once: work.disks_at_once, sparse }
}

/// What stands in a lane.
struct LaneState {
    present: Vec<Present>,
    manifests: Manifests,
    /// What has been marked for long enough.
    ripe: marks::Numbers,
}

impl LaneState {
    fn steps(&self, verdict: &LaneVerdict, times: &Times) -> LaneSteps {
        LaneSteps::new(&self.present, self.manifests.let_go(), &self.ripe, verdict, times)
    }
}

/// Reads what stands in a lane. The manifests first: what they do not name yet was surely listed.
async fn state(
    vault: &Vault,
    listed: &ListedLane,
    policies: Id128,
    times: &Times,
    budget: &mut Budget,
) -> Result<LaneState, VaultError> {
    let lane = listed.lane;
    let manifests = if listed.sealed.is_some() { Manifests::read(vault, lane).await? } else { Manifests::default() };
    let batches = vault.store().list(Some(&names::batches(lane))).await?;
    let present = judge::present(listed, &batches);
    let ripe = manifests.ripe(vault, lane, &present, policies, times.delete_micros, budget).await?;
    Ok(LaneState { present, manifests, ripe })
}

/// What is wrong with one lane ends no run: the lane stays as it is.
fn readable<T>(
    result: Result<T, VaultError>,
    listed: &ListedLane,
    report: &mut Report,
) -> Result<Option<T>, VaultError> {
    match result {
        Ok(state) => Ok(Some(state)),
        Err(error @ (VaultError::Object(_) | VaultError::Missing { .. })) => {
            report.lanes_unread += 1;
            report.note(format!("nothing of lane {} goes: {}", listed.lane, fault::chain_text(&error)));
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn count(steps: &LaneSteps, present: &[Present], report: &mut Report) {
    report.stored.add(present);
    report.unneeded.add(&steps.mark);
    report.marked.add(&steps.waiting);
    report.marked.add(&steps.delete);
}

/// What is wrong with two clocks, if they are too far apart.
fn apart(store_micros: i64, other_micros: i64) -> Option<KeeperError> {
    let apart_micros = store_micros.saturating_sub(other_micros);
    let way = if apart_micros > 0 { "ahead of" } else { "behind" };
    let too_far = apart_micros.unsigned_abs() > CLOCKS_APART_MAX.as_micros() as u64;
    too_far.then(|| KeeperError::ClocksApart { apart_seconds: apart_micros.unsigned_abs() / 1_000_000, way })
}

/// What a run works with.
#[derive(Clone, Copy)]
pub struct Keeper<'a> {
    /// The vault.
    pub vault: &'a Vault,
    /// How to work.
    pub work: &'a Work,
    /// What is kept.
    pub policies: &'a Policies,
    /// This machine's clocks.
    pub clock: &'a Arc<dyn Clock>,
    /// The digest of the policies as they are written now, if they can be read: a run deletes by no policy that was changed since.
    pub policies_now: &'a (dyn Fn() -> Option<Id128> + Sync),
    /// Asks the run to end after its step.
    pub stop: &'a Drain,
    /// How far it is.
    pub progress: &'a Progress,
}

impl Keeper<'_> {
    /// One run over the whole vault.
    ///
    /// # Errors
    /// [`KeeperError`]: the next run goes on where this one stopped.
    pub async fn once(&self) -> Result<Report, KeeperError> {
        let (vault, run) = (self.vault, Id128(keys::random()?));
        let path = names::claim(run);
        vault.put_object(&path, &ClaimObject { claim: run, run }).await?;
        let ended = self.claimed(run, &path).await;
        match ended {
            // What failed may fail again; a claim that is left behind goes stale.
            Err(KeeperError::Vault(error)) => Err(error.into()),
            ended => {
                vault.store().delete(&path).await?;
                ended
            }
        }
    }

    /// The run whose claim stands at `path`.
    async fn claimed(&self, run: Id128, path: &Path) -> Result<Report, KeeperError> {
        let (vault, work, clock) = (self.vault, self.work, self.clock);
        let missing = || VaultError::Missing { object: path.to_string(), place: vault.store().shown().to_owned() };
        let began_micros = vault.store().modified(path).await?.ok_or_else(missing)?;
        // From here on the store's time is told by this machine's clock, a little late, which only makes graces longer.
        let started = clock.boot();
        if let Some(apart) = apart(began_micros, i64::try_from(clock.wall().0).unwrap_or(i64::MAX)) {
            return Err(apart);
        }
        let times = Times::at(began_micros, work.fork_window, work.delete_after);
        let pins = within(info_span!("read pins"), pins::read(vault, began_micros)).await?;
        // Who moves nothing needs no memory for it.
        let terms = terms(work, self.policies, &pins, &times, if work.moves { work.sparse } else { 0 });
        let mut stop = self.stop.clone();
        let verdict = tokio::select! {
            biased;
            // To judge only reads, and may be left at any moment.
            () = stop.wait() => return Ok(Report { stopped: true, ..Report::default() }),
            verdict = within(info_span!("judge"), judge::judge(vault, &terms, self.progress)) => verdict?,
        };
        let report = Report { needed_bytes: verdict.needed_bytes, ..Report::default() };
        let budget = Budget::new(work.requests, work.bytes);
        let place = Place { run, policies: self.policies.digest(work), times, began_micros, started };
        let mut run = Run { keeper: *self, place, verdict, pins, budget, report };
        run.all().await?;
        let Run { verdict, budget, report, .. } = run;
        Ok(Report { disks: verdict.disks, budget_spent: budget.spent, stopped: self.stop.started(), ..report })
    }
}

/// Which run, and when.
struct Place {
    run: Id128,
    /// Digest of the policies.
    policies: Id128,
    /// Of the run's start: what is old now was old then.
    times: Times,
    began_micros: i64,
    started: Duration,
}

/// A run under way.
struct Run<'a> {
    keeper: Keeper<'a>,
    place: Place,
    verdict: Verdict,
    pins: Pins,
    budget: Budget,
    report: Report,
}

impl Run<'_> {
    /// The store's time, as far as this machine's clock has run evenly since the start.
    fn now_micros(&self) -> i64 {
        let since = self.keeper.clock.boot().saturating_sub(self.place.started);
        self.place.began_micros.saturating_add(since.as_micros() as i64)
    }

    /// Every lane, from another one on each time, or the last ones would never come to their turn under a small budget.
    async fn all(&mut self) -> Result<(), KeeperError> {
        let mut lanes = self.keeper.vault.lanes().await?;
        let first = lanes.partition_point(|listed| listed.lane < self.place.run);
        lanes.rotate_left(first);
        self.keeper.progress.working(lanes.len());
        for listed in &lanes {
            if self.budget.spent || self.keeper.stop.started() {
                break;
            }
            if !self.is_over(listed.lane) {
                self.lane(listed).await?;
            }
            self.keeper.progress.lane_done();
        }
        within(info_span!("move messages"), self.move_messages()).await?;
        within(info_span!("tidy"), self.tidy()).await?;
        within(info_span!("fold"), self.fold(&lanes)).await
    }

    /// Empties sparse batches, if that is asked for and worth a lane. Last, because what is let go without that needs no moving.
    async fn move_messages(&mut self) -> Result<(), KeeperError> {
        let Keeper { vault, work, clock, stop, .. } = self.keeper;
        let sparse = self.verdict.holdings.sparse();
        (self.report.sparse, self.report.moving_saves_bytes) = sparse::saving(&sparse);
        let worth_it = sparse::is_worth_it(self.report.moving_saves_bytes, self.report.stored.bytes);
        if !work.moves || !worth_it || self.budget.spent || stop.started() {
            return Ok(());
        }
        let found = &self.report;
        // What was marked in this run was not when it judged.
        let marked_bytes = found.marked.bytes.saturating_sub(found.deleted.bytes);
        let waits_bytes = marked_bytes + self.verdict.holdings.emptied_bytes();
        let sparse = sparse::within(sparse, waits_bytes, found.stored.bytes, work.batch_bytes as u64);
        if sparse.is_empty() {
            return Ok(());
        }
        // In the vault's own name: of two keepers that move the same, one works for nothing.
        if !self.budget.take(4, 0) || !self.claim(vault.id()).await? {
            return Ok(());
        }
        let now = judge::micros(self.now_micros());
        let (verdict, budget, report) = (&self.verdict, &mut self.budget, &mut self.report);
        let mover =
            Mover { vault, verdict, budget, report, clock: clock.as_ref(), stop, now, batch_bytes: work.batch_bytes };
        mover.run(sparse).await?;
        vault.store().delete(&names::claim(vault.id())).await?;
        Ok(())
    }

    /// Folds what has ended since, last of all: what is to be deleted waits for nothing.
    async fn fold(&mut self, lanes: &[ListedLane]) -> Result<(), KeeperError> {
        if !self.keeper.work.fold || self.budget.spent {
            return Ok(());
        }
        let notes = Notes::list(self.keeper.vault).await?;
        for listed in lanes.iter().filter(|listed| !notes.is_whole(listed.lane)) {
            if self.budget.spent || self.keeper.stop.started() {
                break;
            }
            match self.fold_lane(listed, notes.newest(listed.lane)).await {
                Err(KeeperError::Vault(error)) => self.not_folded(listed.lane, error)?,
                folded => folded?,
            }
        }
        Ok(())
    }

    async fn fold_lane(&mut self, listed: &ListedLane, note: u64) -> Result<(), KeeperError> {
        let (vault, lane) = (self.keeper.vault, listed.lane);
        // Claim and release, listings, end, manifest, and the last note.
        if !self.has_ended(listed).await? || !self.budget.take(9, 0) {
            return Ok(());
        }
        if !self.claim(lane).await? {
            self.report.lanes_elsewhere += 1;
            return Ok(());
        }
        let (verdict, work, stop) = (&self.verdict, self.keeper.work, self.keeper.stop);
        let (budget, report, limits) = (&mut self.budget, &mut self.report, Limits::default());
        let folded = Folding { vault, listed, verdict, work, stop, budget, report, note, limits }.run().await;
        folded.or_else(|error| self.not_folded(lane, error))?;
        vault.store().delete(&names::claim(lane)).await?;
        Ok(())
    }

    /// What is wrong with one lane ends no run, and a lane that is not folded is read all the same.
    fn not_folded(&mut self, lane: Id128, error: VaultError) -> Result<(), VaultError> {
        match error {
            VaultError::Taken { object, .. } => {
                self.report.lanes_elsewhere += 1;
                self.report.note(format!("{object} was written by another keeper, which goes on with the lane"));
                Ok(())
            }
            VaultError::Object(_) | VaultError::Missing { .. } => {
                self.report.note(format!("lane {lane} is not folded: {}", fault::chain_text(&error)));
                Ok(())
            }
            error => Err(error),
        }
    }

    /// Whether nothing comes to a lane any more. One that its gateway left without an end is sealed when it is old.
    async fn has_ended(&mut self, listed: &ListedLane) -> Result<bool, KeeperError> {
        if listed.ended {
            return Ok(true);
        }
        if let Some(sealed) = listed.sealed {
            return Ok(self.now_micros() >= sealed.saturating_add(self.keeper.work.seal_grace.as_micros() as i64));
        }
        if self.budget.take(2, 0) && self.is_old(listed.lane).await? {
            self.put_seal(listed.lane, "folding").await?;
        }
        Ok(false)
    }

    /// Whether a lane is to be left out: of one whose batches are all gone only old manifests are left to delete, now and then.
    fn is_over(&self, lane: Id128) -> bool {
        let gone = self.verdict.lane(lane).is_some_and(|verdict| !verdict.here);
        gone && lane.0[0] % GONE_LOOK_RUNS != self.place.run.0[0] % GONE_LOOK_RUNS
    }

    async fn lane(&mut self, listed: &ListedLane) -> Result<(), KeeperError> {
        if !self.budget.take(3, 0) {
            return Ok(());
        }
        let (lane, vault) = (listed.lane, self.keeper.vault);
        let state = state(vault, listed, self.place.policies, &self.place.times, &mut self.budget).await;
        let Some(state) = readable(state, listed, &mut self.report)? else { return Ok(()) };
        let nothing = LaneVerdict::default();
        let steps = state.steps(self.verdict.lane(lane).unwrap_or(&nothing), &self.place.times);
        count(&steps, &state.present, &mut self.report);
        let superseded = state.manifests.superseded(lane, self.place.times.delete_micros);
        if steps.is_empty() && superseded.is_empty() && !self.is_renewed(&state.manifests, &steps) {
            return Ok(());
        }
        if !self.budget.take(4, 0) {
            return Ok(());
        }
        if !self.claim(lane).await? {
            self.report.lanes_elsewhere += 1;
            return Ok(());
        }
        match within(info_span!("work on lane", %lane), self.work_on(listed, &state, &steps)).await {
            // Somebody else came first, with a claim that had gone stale here or there.
            Err(KeeperError::Vault(VaultError::Taken { object, .. })) => {
                self.report.lanes_elsewhere += 1;
                self.report.note(format!("{object} was written by another keeper, which goes on with the lane"));
            }
            Err(KeeperError::Vault(error)) => {
                readable::<()>(Err(error), listed, &mut self.report)?;
            }
            worked => worked?,
        }
        vault.store().delete(&names::claim(lane)).await?;
        Ok(())
    }

    /// Whether marks were made under other policies, so that they begin anew under these.
    fn is_renewed(&self, manifests: &Manifests, steps: &LaneSteps) -> bool {
        let others = manifests.newest.as_ref().is_some_and(|newest| newest.policies != self.place.policies);
        others && !(steps.waiting.is_empty() && steps.delete.is_empty())
    }

    async fn claim(&mut self, lane: Id128) -> Result<bool, KeeperError> {
        let (path, vault) = (names::claim(lane), self.keeper.vault);
        let claim = ClaimObject { claim: lane, run: self.place.run };
        for _ in 0..2 {
            let mine = match vault.put_object(&path, &claim).await {
                Ok(_) => true,
                Err(VaultError::Taken { .. }) => false,
                Err(error) => return Err(error.into()),
            };
            let stale_micros = self.now_micros().saturating_sub(self.keeper.work.claim_stale.as_micros() as i64);
            match vault.store().modified(&path).await? {
                // A claim is new, and so tells the store's time once more.
                Some(at) if mine => {
                    if let Some(apart) = apart(at, self.now_micros()) {
                        vault.store().delete(&path).await?;
                        return Err(apart);
                    }
                    return Ok(true);
                }
                None if mine => return Ok(false),
                Some(at) if at > stale_micros => return Ok(false),
                Some(_) => vault.store().delete(&path).await?,
                None => {}
            }
        }
        Ok(false)
    }

    async fn work_on(&mut self, listed: &ListedLane, state: &LaneState, steps: &LaneSteps) -> Result<(), KeeperError> {
        let grace_micros = self.keeper.work.seal_grace.as_micros() as i64;
        let Some(sealed) = listed.sealed else { return self.seal(listed).await };
        if self.now_micros() < sealed.saturating_add(grace_micros) {
            self.report.lanes_waiting += 1;
            return Ok(());
        }
        // Of the manifest, before others use it up: a mark that is to be taken back must not grow older.
        if !self.budget.take(2, 0) {
            return Ok(());
        }
        let recent_micros = (self.keeper.work.delete_after / MARKS_PER_GRACE).as_micros() as i64;
        let recent =
            state.manifests.newest_micros().is_some_and(|at| at.saturating_add(recent_micros) > self.now_micros());
        let mark = if recent { &[] } else { steps.mark.as_slice() };
        let covered = self.cover(listed.lane, &state.present, mark, &steps.delete).await?;
        let mark: BTreeSet<u64> = mark.iter().map(|batch| batch.n).filter(|n| covered.contains(n)).collect();
        let newest = self.commit(listed, state, steps, &mark).await?;
        // What is marked, and covered no more, waits until it is.
        let delete: Vec<Present> = steps.delete.iter().copied().filter(|batch| covered.contains(&batch.n)).collect();
        self.delete(listed.lane, newest, &delete).await?;
        self.supersede(listed.lane, &state.manifests).await
    }

    async fn seal(&mut self, listed: &ListedLane) -> Result<(), KeeperError> {
        if !listed.ended && !self.is_old(listed.lane).await? {
            self.report.lanes_in_use += 1;
            return Ok(());
        }
        self.put_seal(listed.lane, "retention").await
    }

    /// Whether a lane began so long ago that no gateway uses it any more.
    async fn is_old(&self, lane: Id128) -> Result<bool, KeeperError> {
        let created = self.keeper.vault.lane(lane).await?.created_micros;
        let age_micros = self.now_micros().saturating_sub(i64::try_from(created.0).unwrap_or(i64::MAX));
        Ok(age_micros >= self.keeper.work.seal_after.as_micros() as i64)
    }

    async fn put_seal(&mut self, lane: Id128, reason: &str) -> Result<(), KeeperError> {
        let sealed_micros = judge::micros(self.now_micros());
        let seal = LaneSealObject { lane, sealed_micros, reason: reason.into() };
        self.keeper.vault.put_object(&names::lane_seal(lane), &seal).await?;
        self.report.lanes_sealed += 1;
        Ok(())
    }

    /// Brings the indexes of the lane's batches into lane indexes; returns which of those that are to go stand in one and may.
    async fn cover(
        &mut self,
        lane: Id128,
        present: &[Present],
        mark: &[Present],
        delete: &[Present],
    ) -> Result<BTreeSet<u64>, KeeperError> {
        let wanted: BTreeSet<u64> = mark.iter().chain(delete).map(|batch| batch.n).collect();
        if wanted.is_empty() {
            return Ok(wanted);
        }
        let mut cover = Cover::new(self.keeper.vault, lane, &self.verdict, wanted);
        cover.read(&mut self.budget).await?;
        cover.compare(mark, &mut self.budget, &mut self.report).await?;
        cover.complete(present, &mut self.budget, &mut self.report).await?;
        cover.prove(&mut self.budget, &mut self.report).await?;
        Ok(cover.into_covered())
    }

    /// Writes the next manifest, if anything changes; returns the number of the newest.
    async fn commit(
        &mut self,
        listed: &ListedLane,
        state: &LaneState,
        steps: &LaneSteps,
        mark: &BTreeSet<u64>,
    ) -> Result<u64, KeeperError> {
        let (lane, newest) = (listed.lane, state.manifests.number());
        let back: BTreeSet<u64> = steps.take_back.iter().copied().collect();
        let changes = !mark.is_empty() || !back.is_empty() || self.is_renewed(&state.manifests, steps);
        let Some(n) = newest.checked_add(1).filter(|_| changes) else { return Ok(newest) };
        let numbers: BTreeSet<u64> = state.present.iter().map(|batch| batch.n).collect();
        let made_micros = self.now_micros();
        let Some(let_go) = marks::next_runs(state.manifests.let_go(), &numbers, &back, mark, made_micros) else {
            self.report.note(format!("lane {lane}: what was let go of it is in more pieces than a manifest holds"));
            return Ok(newest);
        };
        let before_micros = state.manifests.newest.as_ref().map_or(0, |newest| newest.newest_micros);
        let last_micros = listed.sealed.unwrap_or(i64::MAX).saturating_add(LATE_AFTER_SEAL.as_micros() as i64);
        let newest_micros = state.present.iter().map(|batch| batch.modified_micros).max().unwrap_or(0);
        // Nothing that came later than that counts, so a forged time is bounded too.
        let newest_micros = newest_micros.max(before_micros).min(last_micros);
        let (run, policies) = (self.place.run, self.place.policies);
        let next = ManifestObject { lane, n, made_micros, run, policies, newest_micros, let_go };
        self.keeper.vault.put_object(&names::manifest(lane, n), &next).await?;
        let marked: Vec<Present> = steps.mark.iter().copied().filter(|batch| next.run_of(batch.n).is_some()).collect();
        self.report.newly_marked.add(&marked);
        self.report.taken_back += back.len() as u64;
        Ok(n)
    }

    /// Deletes what was marked long ago and found unneeded by this run too.
    async fn delete(&mut self, lane: Id128, newest: u64, batches: &[Present]) -> Result<(), KeeperError> {
        let mut rest = batches;
        while !rest.is_empty() && !self.keeper.stop.started() {
            let group;
            (group, rest) = rest.split_at(self.budget.requests_left(LOOK_REQUESTS).min(DELETE_GROUP).min(rest.len()));
            if group.is_empty() || !self.budget.take(group.len() as u64 + LOOK_REQUESTS, 0) {
                self.budget.spent = true;
                return Ok(());
            }
            let (clock, looked) = (self.keeper.clock, self.keeper.clock.boot());
            if let Some(why) = self.news(lane, newest).await? {
                self.report.note(format!("lane {lane}: {why}; this run deletes nothing more of it"));
                return Ok(());
            }
            let store = self.keeper.vault.store();
            let deletes = group.iter().map(|batch| async move {
                // What a slow store or a sleep has made old is left to the next run.
                if clock.boot().saturating_sub(looked) > LOOK_AGE_MAX {
                    return Ok(None);
                }
                let path = names::batch(lane, batch.n);
                store.delete(&path).await.map(|()| Some(*batch))
            });
            let mut deletes = stream::iter(deletes).buffer_unordered(DELETES_AT_ONCE);
            while let Some(deleted) = deletes.next().await {
                if let Some(batch) = deleted? {
                    self.report.deleted.add(&[batch]);
                    self.keeper.progress.deleted(1);
                }
            }
        }
        Ok(())
    }

    /// What has happened since this run judged that makes its verdict on a lane an old one.
    async fn news(&self, lane: Id128, newest: u64) -> Result<Option<&'static str>, KeeperError> {
        let age_micros = self.now_micros().saturating_sub(self.place.began_micros);
        if age_micros > (self.keeper.work.delete_after / 2).as_micros() as i64
            && self.keeper.work.delete_after > LOOK_AGE_MAX
        {
            return Ok(Some("the run has judged long ago"));
        }
        if (self.keeper.policies_now)() != Some(self.place.policies) {
            return Ok(Some("the policies were changed since the run began, or cannot be read"));
        }
        let store = self.keeper.vault.store();
        let manifests = store.list(Some(&names::manifests(lane))).await?;
        if manifests.iter().filter_map(|one| names::manifest_number(lane, &one.path)).max().unwrap_or(0) != newest {
            return Ok(Some("another keeper wrote a manifest"));
        }
        let pins = store.list(Some(&names::pins())).await?;
        let known = pins.iter().all(|one| self.pins.knows(&one.path));
        Ok((!known).then_some("a point was pinned since the run began"))
    }

    /// Deletes manifests that no reader can hold for the newest any more, and no mark is as old as.
    async fn supersede(&mut self, lane: Id128, manifests: &Manifests) -> Result<(), KeeperError> {
        for path in manifests.superseded(lane, self.place.times.delete_micros) {
            if !self.budget.take(1, 0) {
                return Ok(());
            }
            self.keeper.vault.store().delete(&path).await?;
        }
        Ok(())
    }

    /// Deletes pins that have ended and claims that were left behind.
    async fn tidy(&mut self) -> Result<(), KeeperError> {
        let store = self.keeper.vault.store();
        let stale_micros = self.now_micros().saturating_sub(self.keeper.work.claim_stale.as_micros() as i64);
        let claims = store.list(Some(&names::claims())).await?;
        let mut old: Vec<_> =
            claims.into_iter().filter(|one| one.modified_micros < stale_micros).map(|one| one.path).collect();
        // Ended for as long as nothing may be deleted that was marked while it held.
        let ended_micros = self.place.times.delete_micros;
        old.extend(self.pins.all.iter().filter(|pin| pin.ends_micros < ended_micros).map(|pin| pin.path.clone()));
        for path in old.into_iter().filter(|path| *path != names::claim(self.place.run)) {
            if !self.budget.take(1, 0) {
                return Ok(());
            }
            store.delete(&path).await?;
        }
        Ok(())
    }
}
