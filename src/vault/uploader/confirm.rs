//! From "stored" to "vaulted": what must be true besides the batch's own PUT, in the order of the batches.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use object_store::PutPayload;
use object_store::path::Path;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

use super::{UploadEvent, UploadStop, Uploaded, UploaderConfig, Vaulted};
use crate::fault::{Classify, Fault, chain_text};
use crate::flow::{Clock, Watermark};
use crate::keys::KeyId;
use crate::mutants::{self, Mutant};
use crate::telemetry;
use crate::types::{DiskId, Id128};
use crate::vault::index::lane::LaneIndexBuilder;
use crate::vault::lane::Lane;
use crate::vault::put::{PutError, create_only};
use crate::vault::rng::Rng;
use crate::vault::{Vault, VaultError, names};

/// Route objects written at the same time: a thousand disks must not wait for each other's round trips.
const ROUTES_AT_ONCE: usize = 16;
/// Sealed indexes held for the open lane index before it is closed: they count towards the gateway's memory, and busy
/// batches have large ones.
const OPEN_INDEX_BYTES_MAX: usize = 16 << 20;
/// Pause before a control object or lane index is tried again for ever.
const PAUSE_MS_MIN: u64 = 500;
const PAUSE_MS_MAX: u64 = 10_000;

pub(super) struct Confirmer {
    vault: Vault,
    lane: Lane,
    config: UploaderConfig,
    clock: Arc<dyn Clock>,
    events: mpsc::Sender<UploadEvent>,
    stop: Arc<OnceLock<Arc<UploadStop>>>,
    confirmed: Arc<Watermark>,
    routed: HashSet<DiskId>,
    seal_checked: Option<Duration>,
    index: LaneIndexBuilder,
    index_bytes: usize,
    index_k: u64,
    index_writer: Option<JoinHandle<()>>,
}

impl Confirmer {
    pub(super) fn new(
        vault: Vault,
        lane: Lane,
        config: UploaderConfig,
        clock: Arc<dyn Clock>,
        events: mpsc::Sender<UploadEvent>,
        stop: Arc<OnceLock<Arc<UploadStop>>>,
        confirmed: Arc<Watermark>,
    ) -> Self {
        let index = LaneIndexBuilder::new(vault.id(), lane.id(), 1);
        Self {
            vault,
            lane,
            config,
            clock,
            events,
            stop,
            confirmed,
            routed: HashSet::new(),
            seal_checked: None,
            index,
            index_bytes: 0,
            index_k: 1,
            index_writer: None,
        }
    }

    /// Confirms what comes until the driver is done, then ends the lane. Returns the last batch.
    pub(super) async fn run(mut self, mut stored: mpsc::Receiver<Uploaded>) -> Result<u64, Arc<UploadStop>> {
        let mut last = 0;
        while let Some(uploaded) = stored.recv().await {
            last = uploaded.vaulted.n;
            if let Err(stop) = self.confirm(uploaded).await {
                return Err(self.stop_lane(stop).await);
            }
        }
        if let Some(stop) = self.stop.get() {
            return Err(Arc::clone(stop));
        }
        self.end(last).await;
        Ok(last)
    }

    async fn stop_lane(&self, stop: UploadStop) -> Arc<UploadStop> {
        let stop = Arc::clone(self.stop.get_or_init(|| Arc::new(stop)));
        tracing::error!(lane = %self.lane.id(), error = chain_text(&*stop), "the lane is stopped");
        let _ = self.events.send(UploadEvent::Stopped(Arc::clone(&stop))).await;
        stop
    }

    async fn confirm(&mut self, uploaded: Uploaded) -> Result<(), UploadStop> {
        let Uploaded { vaulted, sealed_index, received, _place } = uploaded;
        self.write_routes(&vaulted).await?;
        self.check_seal().await?;
        self.check_catalog_key().await?;
        self.confirmed.advance(vaulted.n);
        let now = self.clock.wall();
        telemetry::latency::vaulted().record(received.iter().flat_map(|span| span.times(now)));
        metrics::counter!(telemetry::names::VAULTED_STORED_BYTES).increment(vaulted.stored_bytes);
        metrics::counter!(telemetry::names::VAULTED_BYTES).increment(vaulted.record_bytes);
        metrics::counter!(telemetry::names::VAULTED_RECORDS).increment(vaulted.records);
        self.index_bytes += sealed_index.bytes.len();
        let added = self.index.push(vaulted.n, vaulted.stored_bytes, sealed_index);
        debug_assert!(added, "batches are confirmed in order");
        let _ = self.events.send(UploadEvent::Vaulted(vaulted)).await;
        if self.index.is_full() || self.index_bytes >= OPEN_INDEX_BYTES_MAX {
            self.write_index().await;
        }
        Ok(())
    }

    async fn write_routes(&mut self, vaulted: &Vaulted) -> Result<(), UploadStop> {
        let mut fresh: Vec<DiskId> =
            vaulted.parts.iter().map(|part| part.disk.clone()).filter(|disk| !self.routed.contains(disk)).collect();
        fresh.dedup();
        for some in fresh.chunks(ROUTES_AT_ONCE) {
            let mut writes = JoinSet::new();
            for disk in some {
                writes.spawn(write_route(self.vault.clone(), self.lane.clone(), disk.clone()));
            }
            while let Some(written) = writes.join_next().await {
                match written {
                    Ok(written) => written?,
                    Err(error) => {
                        return Err(UploadStop::Task { lane: self.lane.id(), text: error.to_string() });
                    }
                }
            }
        }
        self.routed.extend(fresh);
        Ok(())
    }

    async fn check_seal(&mut self) -> Result<(), UploadStop> {
        let lane = self.lane.id();
        let mut pauses = Pauses::new(lane);
        if mutants::on(Mutant::SealUnchecked) {
            return Ok(());
        }
        loop {
            // A look from before the machine slept is old, however little ran since.
            let now = self.clock.boot();
            if self.seal_checked.is_some_and(|at| now.saturating_sub(at) < self.config.seal_check_every) {
                return Ok(());
            }
            match self.lane.check_seal(&self.vault).await {
                Ok(Some(seal)) => return Err(UploadStop::Sealed { lane, reason: seal.reason }),
                Ok(None) => self.seal_checked = Some(now),
                Err(error) => pauses.after(error).await?,
            }
        }
    }

    /// What appears too long after the lane's catalog key was replaced counts for nobody.
    async fn check_catalog_key(&self) -> Result<(), UploadStop> {
        let (lane, kid) = (self.lane.id(), self.lane.catalog_key().kid());
        let mut pauses = Pauses::new(lane);
        loop {
            match self.vault.is_present(kid).await {
                Ok(true) => return Ok(()),
                Ok(false) => return Err(UploadStop::CatalogKeyReplaced { lane, kid }),
                Err(error) => pauses.after(error).await?,
            }
        }
    }

    /// Sends the lane index off in the background: it only makes recoveries faster, and no ack waits for it.
    async fn write_index(&mut self) {
        if let Some(writer) = self.index_writer.take() {
            // Two at once would be twice the memory.
            let _ = writer.await;
        }
        let lane = self.lane.id();
        let next = LaneIndexBuilder::new(self.vault.id(), lane, self.index.next_n());
        let full = std::mem::replace(&mut self.index, next);
        self.index_bytes = 0;
        if full.is_empty() {
            return;
        }
        let path = names::lane_index(lane, self.index_k);
        self.index_k += 1;
        let (vault, kid, limit) = (self.vault.clone(), self.lane.catalog_key().kid(), self.config.request_timeout * 4);
        self.index_writer = Some(tokio::spawn(put_index(vault, kid, path, full.finish(), limit)));
    }

    async fn end(&mut self, last: u64) {
        self.write_index().await;
        if let Some(writer) = self.index_writer.take() {
            let _ = writer.await;
        }
        if let Err(error) = self.lane.end(&self.vault, last).await {
            // Without it the last batches' loss could not be proven; nothing else depends on it.
            tracing::warn!(lane = %self.lane.id(), error = chain_text(&error), "the lane's end is not written");
        }
    }
}

async fn put_index(vault: Vault, kid: KeyId, path: Path, body: Bytes, limit: Duration) {
    let mut pause_ms = PAUSE_MS_MIN;
    loop {
        match vault.is_present(kid).await {
            Ok(true) => match create_only(vault.store(), &path, PutPayload::from(body.clone()), limit).await {
                Ok(_) => return,
                Err(error @ PutError::Taken { .. }) => {
                    tracing::error!(%error, "lane index not written; recoveries read its batches one by one");
                    return;
                }
                Err(error) => tracing::warn!(%error, "lane index is tried again"),
            },
            // It would count for nobody, and look like somebody's who has the old key.
            Ok(false) => {
                tracing::warn!(%path, "lane index not written, as its catalog key was replaced; recoveries read its batches one by one");
                return;
            }
            Err(error) => tracing::warn!(%error, "lane index is tried again"),
        }
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        pause_ms = (pause_ms * 2).min(PAUSE_MS_MAX);
    }
}

/// With the key that the disk's messages in the batch took: before this no ack, or a crash would leave what nobody opens.
async fn write_route(vault: Vault, lane: Lane, disk: DiskId) -> Result<(), UploadStop> {
    let (keys, lane) = (lane.keys(), lane.id());
    // Made once: whatever an earlier try has written is the same.
    let key = keys.sealed(&disk).map_err(|error| UploadStop::Vault { lane, source: error.into() })?;
    let mut pauses = Pauses::new(lane);
    loop {
        match vault.create_keyed_route(&disk, lane, key).await {
            Ok(()) => return Ok(()),
            Err(error) => pauses.after(error).await?,
        }
    }
}

/// Repeats work on control objects until it succeeds or is hopeless.
struct Pauses {
    lane: Id128,
    rng: Rng,
    pause_ms: u64,
}

impl Pauses {
    fn new(lane: Id128) -> Self {
        Self { lane, rng: Rng::from_entropy(), pause_ms: PAUSE_MS_MIN }
    }

    /// Waits a little longer each time. What is refused now counts as passing: credentials and policies are changed by
    /// people, and the records are safe in the journal.
    async fn after(&mut self, source: VaultError) -> Result<(), UploadStop> {
        let hopeless = matches!(source.fault(), Fault::Corrupt | Fault::Fatal)
            || matches!(source, VaultError::Taken { .. } | VaultError::CatalogKeyReplaced { .. });
        if hopeless {
            return Err(UploadStop::Vault { lane: self.lane, source });
        }
        tracing::warn!(lane = %self.lane, error = chain_text(&source), "tried again");
        tokio::time::sleep(Duration::from_millis(self.pause_ms / 2 + self.rng.below(self.pause_ms))).await;
        self.pause_ms = (self.pause_ms * 2).min(PAUSE_MS_MAX);
        Ok(())
    }
}
