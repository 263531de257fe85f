//! Tells of events of disks ([`super::habit`]), and asks the keeper to keep the last point before each.
//!
//! Whoever encrypts a disk wants its owner to notice when nothing is left to go back to. So the point is pinned at once, for as
//! long as a pin may hold, before anybody has read the alert. In a vault without a keeper nothing goes, and nothing is pinned; it is
//! looked again every hour, as one may begin to work. A credential that may not write there is told once and costs nothing else.

use std::sync::Arc;
use std::time::Duration;

use super::disks::Disks;
use super::habit::Had;
use super::runs::DiskSlot;
use crate::fault::chain_text;
use crate::flow::{Clock, Drain};
use crate::keeper::pins::PIN_MAX;
use crate::restore::pin;
use crate::types::Micros;
use crate::vault::Vault;

/// How often to look for new events: well below the time that an alert waits.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often points that nobody keeps yet are tried again.
const HOLD_EVERY: Duration = Duration::from_secs(3600);

/// Who looks.
pub(super) struct EventWatch {
    pub(super) disks: Arc<Disks>,
    pub(super) vault: Arc<Vault>,
    pub(super) clock: Arc<dyn Clock>,
}

impl EventWatch {
    /// Looks until `drain`.
    pub(super) async fn run(self, mut drain: Drain) {
        let mut tried = self.clock.monotonic();
        loop {
            tokio::select! {
                biased;
                () = drain.wait() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let again = self.clock.monotonic().saturating_sub(tried) >= HOLD_EVERY;
            if again {
                tried = self.clock.monotonic();
            }
            tokio::select! {
                biased;
                () = drain.wait() => return,
                () = self.look(again) => {}
            }
        }
    }

    /// Tells what is new, and keeps the points of that; with `again` those of older events too.
    async fn look(&self, again: bool) {
        for slot in self.disks.all() {
            let untold = slot.habit.lock().take_untold();
            for event in &untold {
                tracing::error!(disk = %slot.disk, "the disk may be being encrypted: {}", event.words(&slot.disk));
            }
            let since: Vec<Micros> = untold.iter().map(|event| event.since).collect();
            let unheld = slot.habit.lock().unheld();
            for (begun, point) in unheld.into_iter().filter(|(begun, _)| again || since.contains(begun)) {
                self.hold(&slot, begun, point).await;
            }
        }
    }

    async fn hold(&self, slot: &DiskSlot, since: Micros, point: Had) {
        let now = self.clock.wall();
        match pin::pin_for(&self.vault, &slot.disk, point.id, now, PIN_MAX, "the last point before an anomaly").await {
            Ok(Some(_)) => {
                let until = pin::ends(now, PIN_MAX);
                tracing::warn!(disk = %slot.disk, point = %point.id, %until, "the last point before the anomaly is pinned");
                slot.habit.lock().held(since, until);
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(
                disk = %slot.disk, point = %point.id, error = chain_text(&error),
                "the last point before the anomaly could not be pinned: `tidegate vault hold` does it with another credential"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::SystemClock;
    use crate::gateway::habit::tests::encrypted;
    use crate::types::{DiskId, Id128};
    use crate::vault::names;
    use crate::vault::objects::ClaimObject;
    use crate::vault::testing::{FaultStore, vault_in};

    #[tokio::test(start_paused = true)]
    async fn the_point_before_an_event_is_pinned_once_as_soon_as_a_keeper_works() {
        let (vault, ..) = vault_in(FaultStore::new().place()).await;
        let (vault, disks) = (Arc::new(vault), Arc::new(Disks::default()));
        let disk = DiskId::new("web.sda").unwrap();
        let (habit, point) = encrypted();
        *disks.slot(&disk).habit.lock() = habit;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let watch = EventWatch { disks: Arc::clone(&disks), vault: Arc::clone(&vault), clock };
        watch.look(false).await;
        assert!(vault.store().list(Some(&names::pins())).await.unwrap().is_empty(), "no keeper works");
        let run = Id128([1; 16]);
        vault.put_object(&names::claim(run), &ClaimObject { claim: run, run }).await.unwrap();
        watch.look(false).await;
        assert!(vault.store().list(Some(&names::pins())).await.unwrap().is_empty(), "not tried at every look");
        watch.look(true).await;
        watch.look(true).await;
        let pins = crate::keeper::pins::read(&vault, 0).await.unwrap();
        let held: Vec<_> = pins.of(&disk, 0).map(|pin| (pin.epoch, pin.seq)).collect();
        assert_eq!(held, [(point.epoch, point.seq)]);
        let views: Vec<_> = disks.slot(&disk).habit.lock().events().map(|event| event.view(&disk)).collect();
        assert!(views[0].words.contains(", kept until "), "{}", views[0].words);
    }
}
