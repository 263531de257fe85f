//! The gateway's side of a session: which disk may go on where, new epochs, and handing records to the journal.
//!
//! Opening a disk follows DESIGN's rules for epochs:
//!
//! - Resume only in the newest epoch of the vault, and only if what the agent still holds joins what stands here.
//! - A fork that another gateway's new epoch overtook is refused, and so is one whose epoch has records: a request that is
//!   long dead must not begin an epoch, which would fence the agent that made it.
//! - Fork after everything journaled here is vaulted, so that no point acked as journaled is cut off; at the larger of
//!   what this gateway and the agent know to be vaulted; from the vault's own indexes if neither knows.
//! - A fork tells the agent which chunks were written between its floor and the fork: what a copy of the machine, or the
//!   machine before it was set back, wrote there, no state of the agent knows.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tracing::field::Empty;
use tracing::{Instrument, Span, info_span};

use super::FAILURE_LOOK;
use super::board::Roll;
use super::disks::Disks;
use super::lanes::Lanes;
use super::live::Live;
use super::lookout::retire_below;
use super::overload::Overload;
use super::runs::{DiskSlot, Mark, Run, Session};
use super::sink::JournalSink;
use crate::fault::{Classify, Fault, chain_text};
use crate::flow::{Clock, watch};
use crate::journal::Journal;
use crate::mutants::{self, Mutant};
use crate::restore::touched::Runs;
use crate::restore::{self, touched};
use crate::signed::certificate::digest_of;
use crate::telemetry::names;
use crate::telemetry::traces::within;
use crate::types::{Chain, DiskId, Epoch, PointId, Seq};
use crate::vault::Vault;
use crate::vault::epochs::CreateEpochError;
use crate::vault::objects::{DiskObject, EpochObject};
use crate::wire::{
    AgentIdentity, Code, DiskRefusal, ForkReason, HelloInfo, Host, OpenDisk, OpenedDisk, Report, Transport, Want,
};

/// How long a fork waits for journaled records to be vaulted before it asks the agent to come again. Below the agent's
/// own patience, so that the answer arrives.
const FORK_DRAIN_WAIT: Duration = Duration::from_secs(15);
/// Two gateways that race for the same epoch number: the loser looks again, and finds the winner's epoch unless the
/// store's listing lags.
const EPOCH_RACES_MAX: u32 = 8;
/// Oldest look at a disk's end that an epoch may be forked from. The keeper deletes what no place needs at which a history may
/// still be forked, and takes for such places only what was the end of it within the last hour.
const FORK_LOOK_AGE_MAX: Duration = Duration::from_secs(600);

/// What all sessions share.
pub struct GatewayHost {
    /// Name and vault told to every agent.
    pub hello: HelloInfo,
    /// First durable home of records.
    pub journal: Journal,
    /// Epochs and disk descriptions.
    pub vault: Arc<Vault>,
    /// Disks known here.
    pub disks: Arc<Disks>,
    /// Credit window of each disk, in bytes.
    pub window: watch::Receiver<u64>,
    /// Times of epoch objects.
    pub clock: Arc<dyn Clock>,
    /// Who is asked to leave.
    pub overload: Arc<Overload>,
    /// Gateways to name to those that are, and limits of bandwidth.
    pub live: Arc<Live>,
    /// Lanes by whether a gateway of this name wrote them.
    pub lanes: Lanes,
    /// Agents that are here, and what they tell.
    pub roll: Arc<Roll>,
}

/// What became of an epoch.
enum Made {
    Yes,
    /// Another gateway took the number first, or the vault's end was looked up too long ago.
    LookAgain,
    /// Nobody can use the number.
    Spent,
}

/// Where an epoch ends in the vault.
struct End {
    at: Mark,
    /// The chunks that the records above the floor set that was asked for; `None` without one.
    touched: Option<Runs>,
}

/// A failure of the vault as the agent sees it: a passing one asks it to come again.
fn vault_refusal(what: &str, error: &(impl Classify + 'static)) -> DiskRefusal {
    let code = if error.fault() == Fault::Retry { Code::Unavailable } else { Code::Internal };
    DiskRefusal::refused(code, format!("{what}: {}", chain_text(error)))
}

impl Host for GatewayHost {
    type Sink = JournalSink;

    fn hello(&self) -> HelloInfo {
        self.hello.clone()
    }

    fn peers(&self) -> Vec<String> {
        self.live.peers()
    }

    fn ways(&self) -> usize {
        usize::from(self.journal.shard_count())
    }

    fn leave_turn(&self) -> impl Future<Output = ()> + Send {
        self.overload.turn()
    }

    fn arrived(&self, agent: &AgentIdentity, address: SocketAddr, transport: Transport) {
        self.roll.arrived(agent, address, transport, self.clock.monotonic());
    }

    fn left(&self, agent: &AgentIdentity) {
        self.roll.left(agent);
    }

    fn shown(&self, agent: &AgentIdentity, certificates: Vec<Vec<u8>>) {
        self.roll.shown(agent, certificates);
    }

    fn report(&self, agent: &AgentIdentity, report: Report) {
        self.roll.report(agent, report, self.clock.monotonic());
    }

    async fn broken(&self) {
        while self.journal.failure().is_none() {
            tokio::time::sleep(FAILURE_LOOK).await;
        }
    }

    async fn open_disk(&self, agent: &AgentIdentity, open: OpenDisk) -> Result<OpenedDisk<JournalSink>, DiskRefusal> {
        let span = info_span!("open disk", disk = %open.disk, agent = agent.agent, epoch = Empty);
        within(span, self.open_in_turn(agent, open)).await
    }
}

impl GatewayHost {
    async fn open_in_turn(
        &self,
        agent: &AgentIdentity,
        open: OpenDisk,
    ) -> Result<OpenedDisk<JournalSink>, DiskRefusal> {
        let slot = self.disks.slot(&open.disk);
        let _one_at_a_time = slot.opening.lock().instrument(info_span!("wait for turn")).await;
        self.check_not_shredded(&open.disk).await?;
        self.keep_certificate(&slot, agent).await?;
        let opened = match open.want {
            Want::Resume { epoch, floor, floor_chain, first_held } => {
                let floor = Mark { seq: floor, chain: Some(floor_chain) };
                within(info_span!("resume"), self.resume(&slot, &open, epoch, floor, first_held)).await
            }
            Want::Fork { reason, floor } => {
                let span = info_span!("fork", reason = reason.as_str());
                within(span, self.fork(&slot, agent, &open, reason, floor)).await
            }
        }?;
        Span::current().record("epoch", opened.epoch.0);
        Ok(opened)
    }

    /// Nothing goes on with a disk that was shredded, here or by a new epoch. One small read for each disk that is opened.
    async fn check_not_shredded(&self, disk: &DiskId) -> Result<(), DiskRefusal> {
        let word = self.vault.shred(disk).await;
        let word = word.map_err(|error| vault_refusal("whether the disk was shredded cannot be told", &error))?;
        let Some(word) = word else { return Ok(()) };
        let text = format!(
            "disk {disk} was shredded at {} ({}): protect it under another name, by a new disk id in agent.toml",
            word.made_micros, word.reason
        );
        tracing::error!("{text}");
        Err(DiskRefusal::refused(Code::Shredded, text))
    }

    /// Keeps the certificate with which the agent signs, before a barrier of it is taken: whoever verifies needs it.
    async fn keep_certificate(&self, slot: &DiskSlot, agent: &AgentIdentity) -> Result<(), DiskRefusal> {
        let Some(shown) = self.roll.certificates(agent) else { return Ok(()) };
        let Some(own) = shown.first() else { return Ok(()) };
        let digest = digest_of(own);
        if *slot.certificate.lock() == Some(digest) {
            return Ok(());
        }
        let kept = self.vault.keep_certificate(&slot.disk, &agent.agent, &shown).await;
        kept.map_err(|error| vault_refusal("the agent's certificate cannot be kept in the vault", &error))?;
        *slot.certificate.lock() = Some(digest);
        Ok(())
    }

    pub(super) async fn newest_epoch(&self, disk: &DiskId) -> Result<Option<EpochObject>, DiskRefusal> {
        let newest = self.vault.newest_epoch(disk).await;
        newest.map_err(|error| vault_refusal("the disk's newest epoch cannot be read from the vault", &error))
    }

    /// Whether the vault may hold records of the disk that came by way of another gateway.
    async fn carried_elsewhere(&self, disk: &DiskId) -> Result<bool, DiskRefusal> {
        let others = async {
            let lanes = self.vault.routes(disk).await?;
            self.lanes.of_others(&self.vault, &self.hello.gateway, &lanes).await
        };
        others.await.map_err(|error| vault_refusal("the lanes of the disk cannot be read from the vault", &error))
    }

    async fn resume(
        &self,
        slot: &DiskSlot,
        open: &OpenDisk,
        epoch: Epoch,
        floor: Mark,
        first_held: Seq,
    ) -> Result<OpenedDisk<JournalSink>, DiskRefusal> {
        let must_fork = |text: String| Err(DiskRefusal::MustFork { text });
        let Some(newest) = self.newest_epoch(&open.disk).await? else {
            return must_fork(format!("the vault holds no epoch of disk {}", open.disk));
        };
        // What another gateway forked away counts above the fork no more, and is vaulted below it.
        retire_below(slot, &self.journal, newest.epoch);
        if newest.epoch > epoch && !mutants::on(Mutant::StaleResume) {
            return Err(DiskRefusal::Fenced { newest: newest.epoch });
        }
        if newest.epoch < epoch {
            return must_fork(format!("the vault's newest epoch is {}, not {epoch}", newest.epoch));
        }
        check_size(open, newest.size_bytes)?;
        if newest.nonce != open.nonce {
            return must_fork(format!("epoch {epoch} was begun by another state of the agent"));
        }
        let run = slot.run_or_new(epoch);
        if run.is_broken() {
            return must_fork(format!("records of epoch {epoch} were damaged in this gateway's journal"));
        }
        // An agent that was rolled back, perhaps with all that its memory held, has its floor below the vault's head: it
        // would write records again that are vaulted with other content.
        let unknown = run.vaulted_mark().is_none_or(|mark| mark.seq < floor.seq);
        if unknown || self.carried_elsewhere(&open.disk).await? {
            let head = self.vault_head(slot, &newest, Some(floor)).await?.at;
            if head.seq > floor.seq {
                run.set_base(head);
            }
        }
        for known in [run.vaulted_mark(), run.appended_mark()].into_iter().flatten() {
            if mutants::on(Mutant::ConflictIgnored) {
                break;
            }
            self.check_same(slot, epoch, floor, known)?;
        }
        let mut reached = run.resume_from(floor);
        if first_held > reached.seq.next() && run.has_gap() {
            self.close_gap(slot, &run, &newest).await?;
            reached = run.resume_from(floor);
        }
        if let Some(Mark { seq, chain: Some(chain) }) = run.vaulted_mark() {
            self.journal.vaulted(&slot.disk, epoch, seq, chain);
        }
        if first_held > reached.seq.next() {
            return must_fork(format!(
                "records {} to {} are neither here nor with the agent",
                reached.seq.next(),
                Seq(first_held.0 - 1)
            ));
        }
        tracing::info!(disk = %open.disk, %epoch, after = %reached.seq, "disk resumed");
        Ok(self.opened(slot, run, reached, Runs::new()))
    }

    fn opened(&self, slot: &DiskSlot, run: Arc<Run>, reached: Mark, touched: Runs) -> OpenedDisk<JournalSink> {
        let session = Session::new();
        slot.take_over(session.clone());
        OpenedDisk {
            epoch: run.epoch,
            next_seq: reached.seq.next(),
            chain: reached.chain,
            touched,
            journaled: Arc::clone(&run.journaled),
            vaulted: Arc::clone(&run.vaulted),
            window: self.window.clone(),
            pace: slot.pace.get_or_init(|| self.live.bandwidth.disk()).clone(),
            way: self.journal.shard_of(&slot.disk),
            fenced: session.fenced.subscribe(),
            must_fork: session.must_fork.subscribe(),
            sink: JournalSink {
                disk: slot.disk.clone(),
                journal: self.journal.clone(),
                run,
                session,
                _count: self.disks.count_stream(),
            },
        }
    }

    async fn fork(
        &self,
        slot: &DiskSlot,
        agent: &AgentIdentity,
        open: &OpenDisk,
        reason: ForkReason,
        floor: Option<(PointId, Chain)>,
    ) -> Result<OpenedDisk<JournalSink>, DiskRefusal> {
        slot.stop_session();
        // The floor may join what was journaled here to what was vaulted by way of another gateway.
        if let Some((point, chain)) = floor
            && let Some(run) = slot.run(point.epoch)
        {
            run.set_base(Mark { seq: point.seq, chain: Some(chain) });
        }
        let asked_at = self.newest_epoch(&open.disk).await?;
        if let Some(newest) = &asked_at {
            // Not worth waiting for: what another gateway forked away counts no more, or is vaulted.
            retire_below(slot, &self.journal, newest.epoch);
            if let Some(run) = slot.run(newest.epoch)
                && run.has_gap()
                && !run.is_broken()
            {
                self.close_gap(slot, &run, newest).await?;
            }
        }
        let asked_at = asked_at.map(|newest| newest.epoch);
        within(info_span!("wait until vaulted"), self.drain_disk(slot)).await?;
        // Numbers that nobody can use.
        let mut spent = 0;
        for _ in 0..EPOCH_RACES_MAX {
            let looked = self.clock.boot();
            let newest = self.newest_epoch(&open.disk).await?;
            let (previous, at, touched) = match &newest {
                None => (None, Mark { seq: Seq::NONE, chain: Some(Chain::GENESIS) }, touched::whole(open.size_bytes)),
                Some(newest) => {
                    let (at, touched) = self.end_of(slot, open, newest, asked_at, floor).await?;
                    if newest.nonce == open.nonce {
                        // The answer to the same request was lost on the way: the epoch is there and empty.
                        return Ok(self.start_epoch(slot, newest, touched));
                    }
                    (Some(newest.epoch), at, touched)
                }
            };
            let Some(chain_at_fork) = at.chain else {
                return Err(DiskRefusal::refused(Code::Internal, "the chain at the fork is not known"));
            };
            let object = EpochObject {
                epoch: Epoch(previous.map_or(1, |epoch| epoch.0 + 1) + spent),
                previous,
                fork_seq: at.seq,
                chain_at_fork,
                ..self.fresh_epoch(agent, open, reason)
            };
            match previous {
                None => self.describe_disk(agent, open).await?,
                Some(_) => self.announce(&object).await?,
            }
            match within(info_span!("create epoch"), self.create_epoch(&object, looked)).await? {
                Made::Yes => return Ok(self.start_epoch(slot, &object, touched)),
                Made::Spent => spent += 1,
                Made::LookAgain => {}
            }
        }
        Err(DiskRefusal::refused(Code::Unavailable, "other gateways keep forking this disk; try again"))
    }

    /// An epoch that continues none.
    fn fresh_epoch(&self, agent: &AgentIdentity, open: &OpenDisk, reason: ForkReason) -> EpochObject {
        EpochObject {
            disk: open.disk.clone(),
            epoch: Epoch(1),
            previous: None,
            fork_seq: Seq::NONE,
            chain_at_fork: Chain::GENESIS,
            size_bytes: open.size_bytes,
            agent: agent.agent.clone(),
            nonce: open.nonce,
            reason: reason.as_str().to_owned(),
            gateway: self.hello.gateway.clone(),
            created_micros: self.clock.wall(),
        }
    }

    /// Before the epoch is there: a gateway that ends in between has announced nothing that others would miss.
    async fn announce(&self, object: &EpochObject) -> Result<(), DiskRefusal> {
        let told = self.vault.announce_epoch(&object.disk, object.epoch, self.clock.wall()).await;
        told.map_err(|error| vault_refusal("the epoch cannot be announced to other gateways", &error))
    }

    /// Where the newest epoch ends, and which chunks the agent is to compare in the next one, if it may be asked for.
    async fn end_of(
        &self,
        slot: &DiskSlot,
        open: &OpenDisk,
        newest: &EpochObject,
        asked_at: Option<Epoch>,
        floor: Option<(PointId, Chain)>,
    ) -> Result<(Mark, Runs), DiskRefusal> {
        check_size(open, newest.size_bytes)?;
        check_not_overtaken(open, asked_at, newest)?;
        let end = self.fork_point(slot, newest, floor).await?;
        let at = end.at;
        if newest.nonce == open.nonce {
            check_unused(slot, newest, at)?;
        }
        Ok((at, self.touched(slot, newest, end, floor).await?))
    }

    async fn create_epoch(&self, object: &EpochObject, looked: Duration) -> Result<Made, DiskRefusal> {
        if self.clock.boot().saturating_sub(looked) > FORK_LOOK_AGE_MAX {
            return Ok(Made::LookAgain);
        }
        match self.vault.create_epoch(object).await {
            Ok(_) => Ok(Made::Yes),
            Err(CreateEpochError::Exists { .. }) => Ok(Made::LookAgain),
            Err(CreateEpochError::Spent { .. }) => Ok(Made::Spent),
            Err(error) => Err(vault_refusal("the epoch cannot be created", &error)),
        }
    }

    async fn describe_disk(&self, agent: &AgentIdentity, open: &OpenDisk) -> Result<(), DiskRefusal> {
        let object = DiskObject {
            disk: open.disk.clone(),
            size_bytes: open.size_bytes,
            agent: agent.agent.clone(),
            created_micros: self.clock.wall(),
        };
        let created = self.vault.create_disk(&object).await;
        created.map(|_| ()).map_err(|error| vault_refusal("the disk cannot be described in the vault", &error))
    }

    fn start_epoch(&self, slot: &DiskSlot, object: &EpochObject, touched: Runs) -> OpenedDisk<JournalSink> {
        let chain = object.first_chain();
        let run = Arc::new(Run::fresh(object.epoch, chain));
        if let Some(previous) = object.previous {
            slot.habit.lock().forked(previous, object.fork_seq);
        }
        for retired in slot.start_epoch(Arc::clone(&run)) {
            self.journal.forget(&slot.disk, retired);
        }
        metrics::counter!(names::EPOCHS_CREATED, "reason" => object.reason.clone()).increment(1);
        let (epoch, fork_seq, reason) = (object.epoch, object.fork_seq, &object.reason);
        tracing::info!(disk = %slot.disk, %epoch, %fork_seq, %reason, "epoch created");
        self.opened(slot, run, Mark { seq: Seq::NONE, chain: Some(chain) }, touched)
    }

    /// Between what is known to be vaulted and what stands in the journal, records are missing: released here by a life
    /// that was killed before it noted so, or carried by another gateway. The vault has them; unless it is asked, what is
    /// journaled above the gap would be forked away.
    async fn close_gap(&self, slot: &DiskSlot, run: &Run, newest: &EpochObject) -> Result<(), DiskRefusal> {
        match self.join_vaulted(slot, run, newest).await {
            // What the run calls vaulted may be what an agent said of it.
            Err(refusal) if refusal.code() == Code::Conflict => {
                run.set_base(self.vault_head(slot, newest, None).await?.at)
            }
            joined => joined?,
        }
        Ok(())
    }

    /// Joins what stands in the journal above a gap to what the vault has, if they agree.
    pub(super) async fn join_vaulted(
        &self,
        slot: &DiskSlot,
        run: &Run,
        newest: &EpochObject,
    ) -> Result<(), DiskRefusal> {
        run.set_base(self.vault_head(slot, newest, run.vaulted_mark()).await?.at);
        Ok(())
    }

    /// Waits until everything of the disk that is journaled here is vaulted, as far as it is contiguous.
    async fn drain_disk(&self, slot: &DiskSlot) -> Result<(), DiskRefusal> {
        let drained = async {
            for run in slot.runs().into_iter().filter(|run| !run.is_broken()) {
                while let (Some(appended), Some(vaulted)) = (run.appended_mark(), run.vaulted_mark()) {
                    if vaulted.seq >= appended.seq {
                        break;
                    }
                    run.vaulted.beyond(vaulted.seq.0).await;
                }
            }
        };
        tokio::time::timeout(FORK_DRAIN_WAIT, drained).await.map_err(|_| {
            DiskRefusal::refused(
                Code::Unavailable,
                "records of this disk are still on their way to the vault; try again",
            )
        })
    }

    /// Where the newest epoch ends as far as anybody knows it to be vaulted; and what its records above the agent's floor
    /// set, if the floor lies in it.
    async fn fork_point(
        &self,
        slot: &DiskSlot,
        newest: &EpochObject,
        floor: Option<(PointId, Chain)>,
    ) -> Result<End, DiskRefusal> {
        let here = slot.run(newest.epoch).and_then(|run| run.vaulted_mark()).filter(|mark| mark.chain.is_some());
        let agents = floor
            .filter(|(point, _)| point.epoch == newest.epoch)
            .map(|(point, chain)| Mark { seq: point.seq, chain: Some(chain) });
        // Marks of this gateway and the agent's floor may both lie below what another gateway vaulted: the vault knows.
        let known = here.into_iter().chain(agents);
        if let (Some(at), true) = (known.clone().max_by_key(|mark| mark.seq), mutants::on(Mutant::ForkAtOwnMark)) {
            return Ok(End { at, touched: None });
        }
        // From the agent's floor up, though it lies below what is known here: everything above it is asked for.
        let head = match self.vault_head(slot, newest, agents.or(here)).await {
            // An agent that was refused for it forks from what the vault has.
            Err(refusal) if refusal.code() == Code::Conflict => return self.vault_head(slot, newest, None).await,
            head => head?,
        };
        let at = known.fold(head.at, |best, mark| if mark.seq > best.seq { mark } else { best });
        // Of records that are said to be vaulted, and that were not found, nobody knows what they set.
        let all_seen = at.seq == head.at.seq || agents.is_some_and(|mark| mark.seq == at.seq);
        Ok(End { at, touched: head.touched.filter(|_| all_seen && agents.is_some()) })
    }

    /// How far the newest epoch is contiguous in the vault, by the vault's own indexes; `floor` is known to be vaulted.
    async fn vault_head(&self, slot: &DiskSlot, newest: &EpochObject, floor: Option<Mark>) -> Result<End, DiskRefusal> {
        let disk = &slot.disk;
        let _turn = self.lanes.heads.acquire().await;
        let floor = floor.and_then(|mark| Some((mark.seq, mark.chain?)));
        let head =
            within(info_span!("look up head"), restore::head::head(&self.vault, disk, newest.epoch, floor)).await;
        let head = head.map_err(|error| vault_refusal("the disk's head cannot be read from the vault", &error))?;
        for conflict in &head.conflicts {
            metrics::counter!(names::CONFLICTS, "seen" => "vault").increment(1);
            let (epoch, seq) = (conflict.epoch, conflict.seq);
            tracing::error!(%disk, %epoch, %seq, "the vault holds two accounts of a record: both are quarantined");
        }
        if head.contradicts_floor
            && !mutants::on(Mutant::ConflictIgnored)
            && let Some((seq, _)) = floor
        {
            return Err(self.conflict(slot, newest.epoch, seq));
        }
        let start = Mark { seq: Seq::NONE, chain: Some(newest.first_chain()) };
        let at = head.at.map_or(start, |(seq, chain)| Mark { seq, chain: Some(chain) });
        Ok(End { at, touched: head.touched })
    }

    /// The chunks that the agent is to compare: those that records set between its floor and the fork at `end`, where
    /// the newest epoch ends; all of them if that cannot be known.
    async fn touched(
        &self,
        slot: &DiskSlot,
        newest: &EpochObject,
        end: End,
        floor: Option<(PointId, Chain)>,
    ) -> Result<Runs, DiskRefusal> {
        let known = match floor {
            Some((point, chain)) if point.epoch == newest.epoch => {
                end.touched.filter(|_| point.seq > Seq::NONE || chain == newest.first_chain())
            }
            // Nothing came of the newest epoch: an agent crashed before it had remembered it.
            Some((point, chain)) if end.at.seq == Seq::NONE && newest.previous == Some(point.epoch) => {
                self.touched_before(slot, newest, (point, chain)).await?
            }
            _ => None,
        };
        Ok(known.unwrap_or_else(|| {
            tracing::info!(disk = %slot.disk, "the whole disk is to be compared: the agent's floor says nothing here");
            touched::whole(newest.size_bytes)
        }))
    }

    /// The chunks that records set between a floor in the epoch before `next` and the fork to it; `None` if that cannot
    /// be known.
    async fn touched_before(
        &self,
        slot: &DiskSlot,
        next: &EpochObject,
        (floor, chain): (PointId, Chain),
    ) -> Result<Option<Runs>, DiskRefusal> {
        if floor.seq >= next.fork_seq {
            let same = floor.seq == next.fork_seq && chain == next.chain_at_fork;
            return Ok(same.then(Runs::new));
        }
        let _turn = self.lanes.heads.acquire().await;
        let head = restore::head::head(&self.vault, &slot.disk, floor.epoch, Some((floor.seq, chain))).await;
        let head = head.map_err(|error| vault_refusal("the epoch before cannot be read from the vault", &error))?;
        let whole = !head.contradicts_floor && head.at.is_some_and(|(seq, _)| seq >= next.fork_seq);
        Ok(head.touched.filter(|_| whole))
    }

    fn check_same(&self, slot: &DiskSlot, epoch: Epoch, agents: Mark, known: Mark) -> Result<(), DiskRefusal> {
        let both_known = known.chain.is_some() && agents.chain.is_some();
        if known.seq == agents.seq && both_known && known.chain != agents.chain {
            return Err(self.conflict(slot, epoch, agents.seq));
        }
        Ok(())
    }

    /// Two accounts of one record: what is vaulted stays, the agent is refused and begins a new epoch from what its disk
    /// holds.
    fn conflict(&self, slot: &DiskSlot, epoch: Epoch, seq: Seq) -> DiskRefusal {
        metrics::counter!(names::CONFLICTS, "seen" => "session").increment(1);
        let (disk, gateway) = (&slot.disk, &self.hello.gateway);
        tracing::error!(%disk, %epoch, %seq, gateway, "the agent's account of a record is not the one known here");
        let text = format!("the agent's history of disk {disk} up to e{epoch}-s{seq} is not the one that is vaulted");
        DiskRefusal::refused(Code::Conflict, text)
    }
}

/// A fork that waited here while another gateway began an epoch is no longer what was asked for: the agent may have given
/// the request up, and carry that very epoch.
fn check_not_overtaken(open: &OpenDisk, asked_at: Option<Epoch>, newest: &EpochObject) -> Result<(), DiskRefusal> {
    if newest.nonce == open.nonce || asked_at == Some(newest.epoch) {
        return Ok(());
    }
    let text = format!("epoch {} was begun at gateway {} meanwhile; try again", newest.epoch, newest.gateway);
    Err(DiskRefusal::refused(Code::Unavailable, text))
}

/// A request that began an epoch with records was answered: it came again by a way that the agent has left. Another epoch
/// would cut off what is vaulted of this one.
fn check_unused(slot: &DiskSlot, newest: &EpochObject, at: Mark) -> Result<(), DiskRefusal> {
    let appended = slot.run(newest.epoch).and_then(|run| run.appended_mark());
    if at.seq == Seq::NONE && appended.is_none_or(|mark| mark.seq == Seq::NONE) {
        return Ok(());
    }
    let text = format!("this fork was answered: epoch {} has records; ask anew for another one", newest.epoch);
    Err(DiskRefusal::MustFork { text })
}

fn check_size(open: &OpenDisk, vault_bytes: u64) -> Result<(), DiskRefusal> {
    if open.size_bytes == vault_bytes {
        return Ok(());
    }
    let (disk, size) = (&open.disk, open.size_bytes);
    let text = format!(
        "disk {disk} has {size} bytes, the vault's {vault_bytes}: a resized disk needs a new disk id in agent.toml"
    );
    Err(DiskRefusal::refused(Code::Size, text))
}
