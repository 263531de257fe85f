//! Looks out for epochs that began at other gateways.
//!
//! A disk that went elsewhere leaves its run here: records that nobody will acknowledge any more, which hold the
//! journal's segments, and perhaps a session of a clone or of a gateway that was asleep. Safety does not depend on
//! noticing that (readers cut by the fork's seq); space, and telling the agent, do.
//!
//! One question per disk, "is the next epoch there?", with no listing: every few seconds for a disk whose records move,
//! each minute for one that rests, and never more questions per second than a bound.
//!
//! Beside that, one disk after the other: records that stand here above a gap that only the vault can close would hold the
//! journal for ever if no agent came for them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;

use super::host::GatewayHost;
use super::runs::{DiskSlot, Mark};
use crate::fault::chain_text;
use crate::flow::Drain;
use crate::journal::Journal;
use crate::telemetry::names;
use crate::types::{DiskId, Epoch, Seq};
use crate::vault::{Vault, VaultError};
use crate::wire::DiskRefusal;

/// Between two rounds.
const ROUND: Duration = Duration::from_secs(1);
/// Between two looks at a disk with records on their way. With the round and the request, below 5 s.
const BUSY_EVERY: Duration = Duration::from_secs(3);
/// Between two looks at a disk at rest: it holds up nobody.
const IDLE_EVERY: Duration = Duration::from_secs(60);
/// Most looks of one round: what a thousand busy disks need each three seconds, at the price of small reads.
const LOOKS_MAX: usize = 350;
/// Looks at the same time.
const AT_ONCE: usize = 16;
/// Between two passes over runs with a gap: an agent that comes closes it at once, and reading indexes is dear.
const GAPS_EVERY: Duration = Duration::from_secs(300);
/// Longest look: a store that does not answer for one disk must not hold up the looks at the others.
const LOOK_MAX: Duration = Duration::from_secs(3);

/// When a disk was looked at last, and how far it was appended then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    at: Duration,
    appended: Seq,
}

/// Whether a disk is to be looked at again.
fn is_due(last: Option<Look>, appended: Seq, behind: bool, now: Duration) -> bool {
    let Some(last) = last else { return true };
    let every = if behind || last.appended != appended { BUSY_EVERY } else { IDLE_EVERY };
    now.saturating_sub(last.at) >= every
}

/// The task that looks.
pub struct Lookout {
    host: Arc<GatewayHost>,
    looks: BTreeMap<DiskId, Look>,
}

impl Lookout {
    /// One that has looked at nothing yet.
    #[must_use]
    pub fn new(host: Arc<GatewayHost>) -> Self {
        Self { host, looks: BTreeMap::new() }
    }

    /// Looks at every disk that stands in the journal: of what a gateway has that comes back after hours little counts.
    pub async fn first_round(&mut self) {
        let all: Vec<_> = self.host.disks.all().into_iter().filter(|slot| !slot.runs().is_empty()).collect();
        self.look_at(all).await;
    }

    /// Looks again and again, until `drain`.
    pub async fn run(mut self, mut drain: Drain) {
        let host = Arc::clone(&self.host);
        tokio::select! {
            biased;
            () = drain.wait() => {}
            () = self.look_on() => {}
            () = close_gaps(&host) => {}
        }
    }

    async fn look_on(&mut self) {
        self.first_round().await;
        loop {
            tokio::time::sleep(ROUND).await;
            let due = self.due();
            self.look_at(due).await;
        }
    }

    /// The disks to look at now, the longest unseen first.
    fn due(&self) -> Vec<Arc<DiskSlot>> {
        let now = self.host.clock.monotonic();
        let mut due: Vec<(Option<Duration>, Arc<DiskSlot>)> = Vec::new();
        for slot in self.host.disks.all() {
            let Some(run) = slot.runs().last().cloned() else { continue };
            let last = self.looks.get(&slot.disk).copied();
            let appended = run.appended_mark().map_or(Seq::NONE, |mark| mark.seq);
            if is_due(last, appended, !run.is_settled(), now) {
                due.push((last.map(|last| last.at), slot));
            }
        }
        due.sort_by(|(a, one), (b, other)| (a, &one.disk).cmp(&(b, &other.disk)));
        due.into_iter().take(LOOKS_MAX).map(|(_, slot)| slot).collect()
    }

    async fn look_at(&mut self, slots: Vec<Arc<DiskSlot>>) {
        let now = self.host.clock.monotonic();
        for slot in &slots {
            let appended = slot.runs().last().and_then(|run| run.appended_mark()).map_or(Seq::NONE, |mark| mark.seq);
            self.looks.insert(slot.disk.clone(), Look { at: now, appended });
        }
        let (vault, journal) = (&self.host.vault, &self.host.journal);
        let looks = stream::iter(slots).map(|slot| async move {
            let looked = match tokio::time::timeout(LOOK_MAX, look(vault, journal, &slot)).await {
                Ok(looked) => looked.map_err(|error| chain_text(&error)),
                Err(_) => Err(format!("no answer within {LOOK_MAX:?}")),
            };
            (looked, slot)
        });
        let failed: Vec<_> = looks
            .buffer_unordered(AT_ONCE)
            .filter_map(|(looked, slot)| async move { looked.err().map(|error| (slot, error)) })
            .collect()
            .await;
        if let Some((slot, error)) = failed.first() {
            let (disk, count) = (&slot.disk, failed.len());
            tracing::warn!(%disk, count, error, "could not look for newer epochs");
        }
    }
}

/// Gives up a disk's runs of epochs before `newest`, and what the journal holds of them.
pub(super) fn retire_below(slot: &DiskSlot, journal: &Journal, newest: Epoch) -> Vec<Epoch> {
    let retired = slot.retire_below(newest);
    for epoch in &retired {
        journal.forget(&slot.disk, *epoch);
        metrics::counter!(names::RUNS_RETIRED).increment(1);
    }
    retired
}

/// Closes the gaps of all runs that have one, again and again.
async fn close_gaps(host: &GatewayHost) {
    loop {
        tokio::time::sleep(GAPS_EVERY).await;
        for slot in host.disks.all() {
            if let Err(error) = close_gap(host, &slot).await {
                let disk = &slot.disk;
                tracing::warn!(%disk, error = chain_text(&error), "the vault does not tell what is missing in the journal");
            }
        }
    }
}

/// Joins what stands in the journal above a gap to what the vault holds, so that it counts as vaulted when it is.
pub(super) async fn close_gap(host: &GatewayHost, slot: &DiskSlot) -> Result<(), DiskRefusal> {
    if slot.runs().iter().all(|run| run.is_broken() || !run.has_gap()) {
        return Ok(());
    }
    // A stream of the disk is being opened, which closes the gap itself.
    let Ok(_opening) = slot.opening.try_lock() else { return Ok(()) };
    let Some(newest) = host.newest_epoch(&slot.disk).await? else { return Ok(()) };
    retire_below(slot, &host.journal, newest.epoch);
    let Some(run) = slot.run(newest.epoch).filter(|run| run.has_gap() && !run.is_broken()) else { return Ok(()) };
    // A contradiction is left to an agent that comes: it alone knows which account is the disk's.
    host.join_vaulted(slot, &run, &newest).await?;
    if let Some(Mark { seq, chain: Some(chain) }) = run.vaulted_mark() {
        host.journal.vaulted(&slot.disk, run.epoch, seq, chain);
    }
    if run.has_gap() {
        let (disk, epoch) = (&slot.disk, run.epoch);
        tracing::warn!(%disk, %epoch, "records below those in the journal are neither here nor in the vault: only the agent can bring them");
    }
    Ok(())
}

/// Looks at one disk, and gives up what went on elsewhere.
async fn look(vault: &Vault, journal: &Journal, slot: &DiskSlot) -> Result<(), VaultError> {
    let Some(run) = slot.runs().last().cloned() else { return Ok(()) };
    if !vault.epoch_exists(&slot.disk, Epoch(run.epoch.0 + 1)).await? {
        return Ok(());
    }
    // A stream of the disk is being opened, which looks for itself.
    let Ok(_opening) = slot.opening.try_lock() else { return Ok(()) };
    let Some(newest) = vault.newest_epoch(&slot.disk).await? else { return Ok(()) };
    let retired = retire_below(slot, journal, newest.epoch);
    if !retired.is_empty() {
        let (disk, newest, gateway) = (&slot.disk, newest.epoch, newest.gateway.as_str());
        tracing::warn!(%disk, %newest, gateway, ?retired, "the disk went on elsewhere: its older records here are given up");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_disk_is_looked_at_within_seconds_and_an_idle_one_within_a_minute() {
        let seconds = Duration::from_secs;
        let last = Some(Look { at: seconds(100), appended: Seq(5) });
        assert!(is_due(None, Seq(5), false, seconds(100)));
        assert!(!is_due(last, Seq(6), false, seconds(102)) && is_due(last, Seq(6), false, seconds(103)));
        assert!(!is_due(last, Seq(5), false, seconds(159)) && is_due(last, Seq(5), false, seconds(160)));
        assert!(is_due(last, Seq(5), true, seconds(103)), "its backlog holds the journal");
    }
}
