//! From the journal to the vault: the feeder reads commits in order and feeds the pipeline; finished batches go to the
//! uploader; what is vaulted is noted in the runs and released from the journal.
//!
//! It has a thread of its own, where reading the journal and waiting for the pipeline may block. It works in *lives*,
//! each with a lane of its own. A life ends when the lane's key has served its time, when the vault's recipients or its catalog key have
//! changed, when somebody sealed the lane, or when a part of the way failed. The next life reads everything unreleased from the journal again if the one before
//! did not bring it all to the vault: so nothing depends on how a life ended.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::admin::Health;
use super::config::GatewayConfig;
use super::disks::Disks;
use super::live::Live;
use super::recipients::{self, Look, RecipientsWatch};
use super::runs::Span;
use super::{GatewayError, Parts};
use crate::fault::chain_text;
use crate::flow::{Clock, Drain, DrainTrigger, Pace, Strand};
use crate::journal::{Commit, CommitReader, Damage, Journal, ReadError};
use crate::pipeline::{
    BatcherLimits, Input, LaneContext, Pipeline, PipelineConfig, PipelineError, PushError, SinkClosed,
};
use crate::types::{DiskId, PointId};
use crate::vault::lane::{Lane, OpenLaneError};
use crate::vault::upload_queue::QueueLimits;
use crate::vault::uploader::{UploadEvent, Uploader, UploaderConfig, Vaulted};
use crate::vault::{self, Vault, VaultError};

/// Longest wait for a commit: bounds how late the feeder sees that it should stop or that a batch is due.
const LOOK: Duration = Duration::from_millis(20);
/// Pause once everything that was there is fed, if it was little. Small commits come a millisecond apart, and to be woken for each costs
/// its writer and the feeder more than its records do; so those of some milliseconds are taken together. A batch takes far longer.
const NAP: Duration = Duration::from_millis(5);
/// What is little. More is fed while it is warm.
const NAP_BYTES_MAX: usize = 256 << 10;
/// Wait before a new life after a failure, so that a lasting one does not open lanes by the thousand.
const RESTART_PAUSE: Duration = Duration::from_secs(5);
/// Events of the uploader that may wait: each stands for one batch, and handling one takes microseconds.
const EVENTS_MAX: usize = 64;
/// How long a stop, when the drain's grace is over, waits for the store to take what is on its way.
const LANE_END_WAIT: Duration = Duration::from_secs(5);
/// What an agent is told whose records were damaged here.
const DAMAGED: &str = "records of this epoch were damaged in the gateway's journal";
/// How often a wait for the store shows that the feeder is alive.
const WAIT_LOOK: Duration = Duration::from_secs(1);

/// The running feeder.
pub struct Feeder {
    stop: DrainTrigger,
    strand: Strand,
}

impl Feeder {
    /// Starts it.
    ///
    /// # Errors
    /// [`GatewayError::System`] if there is no thread to be had.
    pub fn start(parts: &Parts, disks: &Arc<Disks>) -> Result<Self, GatewayError> {
        let (stop, stopped) = DrainTrigger::new();
        let feeding = Feeding {
            config: parts.config.clone(),
            clock: Arc::clone(&parts.clock),
            health: Arc::clone(&parts.health),
            runtime: parts.vault_runtime.clone(),
            vault: Arc::clone(&parts.vault),
            journal: parts.journal.clone(),
            pace: parts.live.bandwidth.upload(),
            disks: Arc::clone(disks),
            live: Arc::clone(&parts.live),
            stopped,
        };
        let strand = Strand::start("tg-feed", move || feeding.run())
            .map_err(GatewayError::system("the feeder's thread cannot be started"))?;
        Ok(Self { stop, strand })
    }

    /// Stops it: what the pipeline holds is uploaded as far as the store answers, the lane is ended.
    pub async fn stop(self) {
        self.stop.start();
        if self.strand.ended().await.is_err() {
            tracing::error!("the feeder panicked: what it had not vaulted is in the journal");
        }
    }
}

/// Why a life ended.
enum End {
    /// The gateway stops.
    Stopped,
    /// The lane's key has served its time, or is wrapped to those who were recipients before, or its catalog key was replaced; everything
    /// read so far is vaulted.
    LaneDue,
}

struct Feeding {
    config: GatewayConfig,
    clock: Arc<dyn Clock>,
    health: Arc<Health>,
    runtime: Handle,
    vault: Arc<Vault>,
    journal: Journal,
    /// Limits of what uploads send.
    pace: Pace,
    disks: Arc<Disks>,
    live: Arc<Live>,
    stopped: Drain,
}

/// One lane's pipeline and uploader.
struct Way {
    pipeline: Pipeline,
    uploader: Arc<Uploader>,
    lane: Lane,
    recipients: RecipientsWatch,
}

impl Feeding {
    async fn run(self) {
        let mut readers = None;
        while !self.stopped.started() {
            let mut current = readers.take().unwrap_or_else(|| self.open_readers());
            match self.life(&mut current).await {
                Ok(End::Stopped) => return,
                // Nothing was lost on the way: go on where the readers stand.
                Ok(End::LaneDue) => readers = Some(current),
                Err(reason) => {
                    tracing::error!("the way to the vault was interrupted: {reason}; going on from the journal");
                    self.pause(RESTART_PAUSE).await;
                }
            }
        }
    }

    fn open_readers(&self) -> Vec<CommitReader> {
        (0..self.journal.shard_count()).map(|shard| self.journal.reader(shard)).collect()
    }

    async fn pause(&self, how_long: Duration) {
        let until = self.clock.monotonic() + how_long;
        while self.clock.monotonic() < until && !self.stopped.started() {
            self.health.feeder_turned();
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn life(&self, readers: &mut [CommitReader]) -> Result<End, String> {
        let (vault, id, clock) = (Arc::clone(&self.vault), self.config.id.clone(), Arc::clone(&self.clock));
        // On the store's runtime, where connections outlive the request.
        let pins = self.live.recipients_pins();
        let lane = self.runtime.spawn(async move { Lane::open_pinned(&vault, &id, clock.as_ref(), &pins).await });
        let lane = lane.await.map_err(|error| error.to_string())?.map_err(|error| {
            let reason = chain_text(&error);
            match &error {
                OpenLaneError::NotPinned(refused) => recipients::told(&self.health, refused.list, Some(refused)),
                OpenLaneError::Vault(VaultError::CatalogKeyReplaced { .. }) => {
                    recipients::no_key(&self.health, &reason)
                }
                OpenLaneError::Vault(_) => {}
            }
            reason
        })?;
        recipients::told(&self.health, lane.list(), None);
        tracing::info!(lane = %lane.id(), "lane opened");
        let mut way = self.open_way(lane)?;
        let fed = self.feed(&mut way, readers).await;
        let ended = self.end_way(way).await;
        let end = fed.map_err(|error| chain_text(&error))?;
        ended?;
        Ok(end)
    }

    fn open_way(&self, lane: Lane) -> Result<Way, String> {
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let quarter_bytes = self.config.memory_quarter_bytes();
        let uploader_config = UploaderConfig {
            queue: QueueLimits { window_max: u32::from(self.config.upload_parallel_max), ..QueueLimits::default() },
            queue_bytes_max: quarter_bytes,
            request_timeout: self.config.request_timeout,
            ..UploaderConfig::default()
        };
        let vault = Vault::clone(&self.vault);
        let clock = Arc::clone(&self.clock);
        let uploader = Uploader::start(vault, &lane, uploader_config, &self.pace, clock, &self.runtime, events);
        let uploader = Arc::new(uploader);
        let events =
            Events { disks: Arc::clone(&self.disks), journal: self.journal.clone(), health: Arc::clone(&self.health) };
        self.runtime.spawn(events.run(receiver));
        let context = LaneContext {
            vault: self.vault.id(),
            lane: lane.id(),
            keys: Arc::clone(lane.keys()),
            catalog: lane.catalog_key().clone(),
            next_n: 1,
            confirmed: Arc::clone(uploader.confirmed_through()),
            uplink: Arc::clone(uploader.held_up()),
            object_name: |lane, n| vault::names::batch(lane, n).to_string(),
        };
        let pipeline_config = PipelineConfig {
            threads: usize::from(self.config.pipeline_threads),
            limits: BatcherLimits { age: self.config.batch_age, ..BatcherLimits::default() },
            queue_bytes_max: (quarter_bytes / 2) as usize,
            sealed_bytes_max: quarter_bytes as usize,
            codec: self.config.codec,
        };
        let pipeline = self.start_pipeline(&pipeline_config, context, &uploader).map_err(|error| chain_text(&error))?;
        let look = Look {
            vault: Arc::clone(&self.vault),
            live: Arc::clone(&self.live),
            health: Arc::clone(&self.health),
            kid: lane.catalog_key().kid(),
        };
        let recipients = RecipientsWatch::start(&self.runtime, look, lane.list());
        Ok(Way { pipeline, uploader, lane, recipients })
    }

    fn start_pipeline(
        &self,
        config: &PipelineConfig,
        context: LaneContext,
        uploader: &Arc<Uploader>,
    ) -> Result<Pipeline, PipelineError> {
        if config.threads == 0 {
            return Ok(Pipeline::in_place(config, context));
        }
        let (uploader, runtime, disks) = (Arc::clone(uploader), self.runtime.clone(), Arc::clone(&self.disks));
        let (stopped, health) = (self.stopped.clone(), Arc::clone(&self.health));
        Pipeline::start(config, context, move |batch| {
            disks.note_packed(&batch.index);
            let submitted = runtime.block_on(wait_on_store(uploader.submit(batch), stopped.clone(), &health));
            submitted.and_then(Result::ok).ok_or(SinkClosed)
        })
    }

    async fn feed(&self, way: &mut Way, readers: &mut [CommitReader]) -> Result<End, PipelineError> {
        // Since it paused, if anything was.
        let mut fed_bytes: Option<usize> = None;
        loop {
            self.health.feeder_turned();
            if self.stopped.started() {
                return Ok(End::Stopped);
            }
            if way.uploader.has_ended() {
                return Err(SinkClosed.into());
            }
            if way.lane.is_due(self.clock.as_ref()) || way.recipients.has_changed() {
                return Ok(End::LaneDue);
            }
            let mut idle = true;
            for reader in readers.iter_mut() {
                if let Some(bytes) = self.feed_next(way, reader, Duration::ZERO).await? {
                    fed_bytes = Some(fed_bytes.unwrap_or(0) + bytes);
                    idle = false;
                }
            }
            match readers.first_mut() {
                _ if !idle => {}
                Some(first) if fed_bytes.is_none_or(|bytes| bytes > NAP_BYTES_MAX) => {
                    fed_bytes = self.feed_next(way, first, LOOK).await?;
                }
                _ => {
                    tokio::time::sleep(NAP).await;
                    fed_bytes = None;
                }
            }
            way.pipeline.poll(self.clock.monotonic())?;
            for (disk, point) in way.pipeline.take_damaged() {
                self.break_off(&disk, point, "it changed in memory after it was journaled");
            }
            self.hand_over(way).await?;
        }
    }

    /// Feeds the next commit of one shard; returns the bytes of its records, if there was one.
    async fn feed_next(
        &self,
        way: &mut Way,
        reader: &mut CommitReader,
        wait: Duration,
    ) -> Result<Option<usize>, PipelineError> {
        let next = if wait.is_zero() { reader.try_next() } else { reader.next(wait).await };
        match next {
            Ok(None) => Ok(None),
            Ok(Some(commit)) => self.push_commit(way, &commit).await.map(Some),
            Err(ReadError::Damaged(damage)) => {
                self.note_damage(&damage);
                Ok(Some(0))
            }
            Err(ReadError::Closed) => {
                tokio::time::sleep(wait).await;
                Ok(None)
            }
            Err(error @ ReadError::Io { .. }) => {
                tracing::error!(error = chain_text(&error), "the journal cannot be read; trying again");
                tokio::time::sleep(LOOK).await;
                Ok(None)
            }
        }
    }

    /// Gives the uploader what a pipeline without threads has finished.
    async fn hand_over(&self, way: &mut Way) -> Result<(), PipelineError> {
        while let Some(batch) = way.pipeline.take_finished() {
            self.disks.note_packed(&batch.index);
            let submitted = wait_on_store(way.uploader.submit(batch), self.stopped.clone(), &self.health).await;
            submitted.and_then(Result::ok).ok_or(SinkClosed)?;
        }
        Ok(())
    }

    async fn push_commit(&self, way: &mut Way, commit: &Commit) -> Result<usize, PipelineError> {
        let mut record_bytes = 0;
        for (number, entry) in commit.entries.iter().enumerate() {
            record_bytes += entry.head.record_bytes();
            // A run that is gone was forked away: its records count no more.
            let Some(run) = self.disks.run(&entry.disk, entry.head.epoch) else { continue };
            if entry.head.seq.0 <= run.vaulted.get() {
                continue;
            }
            let bytes = commit.record(number);
            let record = Input { bytes, unchecked_crc: entry.unchecked_crc, may_keep: commit.may_keep };
            match way.pipeline.push(self.clock.monotonic(), &entry.disk, record, entry.received) {
                Ok(()) => self.hand_over(way).await?,
                Err(PushError::Stopped(error)) => return Err(error),
                Err(error @ PushError::Record { .. }) => {
                    self.break_off(&entry.disk, entry.head.point(), &chain_text(&error));
                }
            }
        }
        Ok(record_bytes)
    }

    fn break_off(&self, disk: &DiskId, point: PointId, error: &str) {
        tracing::error!(%disk, %point, error, "a journaled record is unusable");
        self.disks.slot(disk).break_off(point.epoch, DAMAGED);
    }

    /// What is damaged here comes again from the agent: its run cannot go on, so its next session forks.
    fn note_damage(&self, damage: &Damage) {
        tracing::error!(%damage, "journal damage: skipped, the agents concerned fork and send again");
        for (disk, point) in &damage.records {
            self.disks.slot(disk).break_off(point.epoch, DAMAGED);
        }
        if damage.records.is_empty() {
            // Whose records they were can no longer be read: nobody with records on the way can be sure.
            for slot in self.disks.all() {
                for run in slot.runs().into_iter().filter(|run| !run.is_settled()) {
                    slot.break_off(run.epoch, DAMAGED);
                }
            }
        }
    }

    async fn end_way(&self, mut way: Way) -> Result<(), String> {
        let flushed = match way.pipeline.flush() {
            Ok(()) => self.hand_over(&mut way).await,
            failed => failed,
        };
        let Way { pipeline, uploader, .. } = way;
        // Finishing drops the sink, and with it the other owner of the uploader.
        let finished = flushed.and(pipeline.finish().map(|_| ()));
        let Some(uploader) = Arc::into_inner(uploader) else {
            return Err("the pipeline still holds its uploader".into());
        };
        let ended = match wait_on_store(uploader.finish(), self.stopped.clone(), &self.health).await {
            Some(ended) => ended.map_err(|stop| chain_text(stop.as_ref())),
            None => Err("the store does not answer; the rest stays in the journal".into()),
        };
        finished.map_err(|error| chain_text(&error))?;
        ended.map(|_| ())
    }
}

/// Waits for what depends on the store, as long as it takes: an ordinary state, in which the feeder counts as alive. A
/// stop does not wait with it for ever: `None` when its patience is over.
async fn wait_on_store<T>(work: impl Future<Output = T>, mut stopped: Drain, health: &Health) -> Option<T> {
    let given_up = async {
        stopped.wait().await;
        tokio::time::sleep(LANE_END_WAIT).await;
    };
    tokio::pin!(work, given_up);
    loop {
        health.feeder_turned();
        tokio::select! {
            biased;
            done = &mut work => return Some(done),
            () = &mut given_up => return None,
            () = tokio::time::sleep(WAIT_LOOK) => {}
        }
    }
}

/// Takes the uploader's events into the runs and the journal.
struct Events {
    disks: Arc<Disks>,
    journal: Journal,
    health: Arc<Health>,
}

impl Events {
    async fn run(self, mut events: mpsc::Receiver<UploadEvent>) {
        while let Some(event) = events.recv().await {
            match event {
                UploadEvent::Vaulted(vaulted) => self.note_vaulted(&vaulted),
                UploadEvent::Parked(reason) => {
                    tracing::error!(%reason, "uploads wait for somebody to help; the journal keeps everything");
                    self.health.set_trouble(reason);
                }
                UploadEvent::Resumed => {
                    tracing::info!("uploads go on");
                    self.health.set_trouble(String::new());
                }
                UploadEvent::Stopped(stop) => tracing::error!(error = chain_text(stop.as_ref()), "the lane is over"),
            }
        }
    }

    fn note_vaulted(&self, vaulted: &Vaulted) {
        for part in &vaulted.parts {
            let Some(run) = self.disks.run(&part.disk, part.epoch) else { continue };
            let span = Span { first: part.first, last: part.last, chain_last: part.chain_last };
            if let Some(mark) = run.span_vaulted(span)
                && let Some(chain) = mark.chain
            {
                self.journal.vaulted(&part.disk, part.epoch, mark.seq, chain);
            }
        }
    }
}
