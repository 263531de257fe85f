//! Looks out for epochs that began at other gateways.
//!
//! A disk that went elsewhere leaves its run here: records that nobody will acknowledge any more, which hold the
//! journal's segments, and perhaps a session of a clone or of a gateway that was asleep. Safety does not depend on
//! noticing that (readers cut by the fork's seq); space, and telling the agent, do.
//!
//! Who begins an epoch announces it first, in a folder of the hour. One listing per round tells which disks are to be
//! looked at, however many there are; a look asks "is the next epoch there?", for an announcement proves nothing.
//! After a start, and after a sleep of a day, every disk is looked at.
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
use crate::types::{DiskId, Epoch, Micros};
use crate::vault::names::hour;
use crate::vault::{Vault, VaultError};
use crate::wire::DiskRefusal;

/// Between two rounds: an epoch is noticed within two of them, at a fifth of a request per second.
const ROUND: Duration = Duration::from_secs(5);
/// By how much clocks of gateways may differ without delay, and how much earlier than its epoch an announcement may be.
const SKEW_USUAL: Duration = Duration::from_secs(60);
/// Clocks that differ more, up to this, are allowed for in every so many rounds.
const SKEW_MAX: Duration = Duration::from_secs(3600);
const SKEW_ROUNDS: u64 = 60;
/// Hours that are listed at most; who was asleep for longer looks at every disk instead.
const HOURS_MAX: u64 = 24;
/// Most looks of one round, at the price of small reads: a fail-over of thousands of disks shows within a minute.
const LOOKS_MAX: usize = 1500;
/// Looks at the same time.
const AT_ONCE: usize = 16;
/// Between two passes over runs with a gap: an agent that comes closes it at once, and reading indexes is dear.
const GAPS_EVERY: Duration = Duration::from_secs(300);
/// Longest look: a store that does not answer for one disk must not hold up the looks at the others.
const LOOK_MAX: Duration = Duration::from_secs(3);

/// The hours in which announcements may stand that nobody has listed since `listed`, with clocks that differ by `skew`.
fn hours(listed: Micros, now: Micros, skew: Duration) -> std::ops::RangeInclusive<u64> {
    let skew = skew.as_micros() as u64;
    // A clock that was set back has listed nothing of what is to come.
    let listed = listed.min(now);
    hour(Micros(listed.0.saturating_sub(skew)))..=hour(Micros(now.0.saturating_add(skew)))
}

/// The task that looks.
pub struct Lookout {
    host: Arc<GatewayHost>,
    /// Until when announcements were listed.
    listed: Micros,
    rounds: u64,
    /// When each announced disk was looked at last.
    looks: BTreeMap<DiskId, Duration>,
}

impl Lookout {
    /// One that has looked at nothing yet.
    #[must_use]
    pub fn new(host: Arc<GatewayHost>) -> Self {
        let listed = host.clock.wall();
        Self { host, listed, rounds: 0, looks: BTreeMap::new() }
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
            self.round().await;
        }
    }

    /// Looks at the disks of which a newer epoch was announced.
    pub async fn round(&mut self) {
        self.rounds += 1;
        let skew = if self.rounds.is_multiple_of(SKEW_ROUNDS) { SKEW_MAX } else { SKEW_USUAL };
        let now = self.host.clock.wall();
        let hours = hours(self.listed, now, skew);
        if hours.end() - hours.start() > HOURS_MAX {
            self.first_round().await;
            self.listed = now;
            return;
        }
        let mut announced: BTreeMap<DiskId, Epoch> = BTreeMap::new();
        for hour in hours {
            let listed = tokio::time::timeout(LOOK_MAX, self.host.vault.announced_epochs(hour)).await;
            let listed = match listed {
                Ok(listed) => listed.map_err(|error| chain_text(&error)),
                Err(_) => Err(format!("no answer within {LOOK_MAX:?}")),
            };
            match listed {
                Ok(listed) => listed.into_iter().for_each(|(disk, epoch)| {
                    let newest = announced.entry(disk).or_insert(epoch);
                    *newest = epoch.max(*newest);
                }),
                // The next round begins where this one did.
                Err(error) => return tracing::warn!(error, "could not look for newer epochs"),
            }
        }
        self.listed = now;
        self.looks.retain(|disk, _| announced.contains_key(disk));
        let due = self.due(&announced);
        self.look_at(due).await;
    }

    /// The disks to look at now, the longest unseen first.
    fn due(&self, announced: &BTreeMap<DiskId, Epoch>) -> Vec<Arc<DiskSlot>> {
        let known = announced.iter().filter_map(|(disk, epoch)| Some((self.host.disks.known(disk)?, *epoch)));
        let older = known.filter(|(slot, epoch)| slot.runs().last().is_some_and(|run| run.epoch < *epoch));
        let mut due: Vec<_> = older.map(|(slot, _)| (self.looks.get(&slot.disk).copied(), slot)).collect();
        due.sort_by(|(a, one), (b, other)| (a, &one.disk).cmp(&(b, &other.disk)));
        due.into_iter().take(LOOKS_MAX).map(|(_, slot)| slot).collect()
    }

    async fn look_at(&mut self, slots: Vec<Arc<DiskSlot>>) {
        let now = self.host.clock.monotonic();
        self.looks.extend(slots.iter().map(|slot| (slot.disk.clone(), now)));
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
    fn the_hours_since_the_last_listing_are_listed_with_what_clocks_may_differ() {
        let at = |hours: u64, minutes: u64| Micros((hours * 60 + minutes) * 60_000_000);
        assert_eq!(hours(at(10, 30), at(10, 31), SKEW_USUAL), 10..=10);
        assert_eq!(hours(at(10, 59), at(11, 0), SKEW_USUAL), 10..=11);
        assert_eq!(hours(at(11, 0), at(11, 1), SKEW_USUAL), 10..=11, "announced just before the hour was over");
        assert_eq!(hours(at(10, 30), at(10, 31), SKEW_MAX), 9..=11);
        assert_eq!(hours(at(10, 30), at(15, 0), SKEW_USUAL), 10..=15, "asleep meanwhile");
        assert_eq!(hours(at(15, 0), at(10, 30), SKEW_USUAL), 10..=10, "the clock was set back");
    }
}
