//! Whether the vault's recipients have changed since a lane was opened: then another lane takes over, wrapped to the new ones.
//!
//! With `recipients_pin` in the configuration nothing is wrapped to a list that is not pinned. A lane goes on then, under the
//! recipients with whom it began, for the rest of its key's time, and that is told at once; the next one is not opened before the list is
//! pinned or another one counts. The journal has what comes meanwhile.
//!
//! With the recipients the catalog key may change. A lane under a key that was replaced ends in any case, as nothing counts under that
//! key an hour later; where the new key is not at hand, nothing is vaulted until somebody brings it.
//!
//! A look is one listing, and a small read for each list that is new. A lane ends for it as it does at the end of its key's time:
//! what was read for it goes out with it, and whoever was removed opens nothing that comes after.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use super::admin::Health;
use super::live::Live;
use crate::fault::chain_text;
use crate::keys::KeyId;
use crate::telemetry::names;
use crate::vault::Vault;
use crate::vault::lane::NotPinned;

/// How often to look: how long what is written may still be wrapped to somebody who was removed.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// What a look needs.
pub(super) struct Look {
    pub(super) vault: Arc<Vault>,
    pub(super) live: Arc<Live>,
    pub(super) health: Arc<Health>,
    /// The catalog key of the lane.
    pub(super) kid: KeyId,
}

/// Says that the present catalog key is not at hand: as where a credential ended, somebody must help before anything goes on.
pub(super) fn no_key(health: &Health, reason: &str) {
    metrics::gauge!(names::UPLOAD_PARKED).set(1.0);
    health.set_trouble(reason.to_owned());
}

/// Shows which list counts, and that it is not pinned, or is.
pub(super) fn told(health: &Health, list: u64, unpinned: Option<&NotPinned>) {
    metrics::gauge!(names::RECIPIENTS_LIST).set(list as f64);
    metrics::gauge!(names::RECIPIENTS_UNPINNED).set(f64::from(u8::from(unpinned.is_some())));
    health.set_unpinned(unpinned.map(|error| error.to_string()).unwrap_or_default());
}

/// Looks until it is dropped.
pub(super) struct RecipientsWatch {
    changed: Arc<AtomicBool>,
    task: AbortHandle,
}

impl RecipientsWatch {
    /// Looks for a list of recipients that came after number `list`.
    pub(super) fn start(runtime: &Handle, look: Look, list: u64) -> Self {
        let changed = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&changed);
        let task = runtime.spawn(async move {
            while !look.has_changed(list).await {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            told.store(true, Ordering::Relaxed);
        });
        Self { changed, task: task.abort_handle() }
    }

    /// Whether there is one.
    pub(super) fn has_changed(&self) -> bool {
        self.changed.load(Ordering::Relaxed)
    }
}

impl Drop for RecipientsWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Look {
    async fn has_changed(&self, list: u64) -> bool {
        let lists = match self.vault.lists().await {
            Ok(lists) => lists,
            Err(error) => {
                // The lane goes on: it is wrapped to those who were recipients when it began.
                tracing::warn!(
                    error = chain_text(&error),
                    "the lists of recipients cannot be read; looking again later"
                );
                return false;
            }
        };
        let present = lists.present();
        let unpinned = present.check_pinned(&self.live.recipients_pins()).err();
        told(&self.health, present.n, unpinned.as_ref());
        if present.catalog_kid != self.kid {
            let (list, replaced, by) = (present.n, self.kid, present.catalog_kid);
            tracing::warn!(list, %replaced, %by, "the catalog key was replaced: another lane takes over");
            return true;
        }
        if let Some(error) = unpinned {
            tracing::error!(error = chain_text(&error), "the lane goes on under the recipients with whom it began");
            return false;
        }
        if present.n != list {
            let recipients: Vec<String> = present.recipients.iter().map(ToString::to_string).collect();
            let recipients = recipients.join(", ");
            tracing::warn!(list = present.n, recipients, "the recipients have changed: another lane takes over");
        }
        present.n != list
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Clock, SystemClock};
    use crate::gateway::config::{DEFAULT_FILE, GatewayConfig};
    use crate::keys::Identity;
    use crate::types::Micros;
    use crate::vault::recipients::pin_of;
    use crate::vault::testing::{FaultStore, vault_in};

    fn config(pins: &[String]) -> GatewayConfig {
        let text = DEFAULT_FILE.replace("recipients_pin = []", &format!("recipients_pin = {pins:?}"));
        GatewayConfig::parse(std::path::Path::new("gateway.toml"), &text).expect("valid")
    }

    fn look(vault: &Arc<Vault>, pins: &[String]) -> Look {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let (live, health) = (Live::new(&config(pins), &clock), Arc::new(Health::new(clock)));
        Look { vault: Arc::clone(vault), live, health, kid: vault.head().catalog_kid }
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_that_is_not_pinned_ends_no_lane_and_begins_none_until_it_is() {
        let (vault, _, identity) = vault_in(FaultStore::new().place()).await;
        let vault = Arc::new(vault);
        let both = [identity.recipient(), Identity::generate().recipient()];
        let present = pin_of(&both[..1]);
        let look = look(&vault, std::slice::from_ref(&present));
        let (live, health) = (Arc::clone(&look.live), Arc::clone(&look.health));
        let watch = RecipientsWatch::start(&Handle::current(), look, 0);
        let basis = vault.lists().await.unwrap();
        vault.change_recipients(&identity, &basis, &both, Micros(2)).await.unwrap();
        tokio::time::sleep(LOOK_EVERY * 3).await;
        assert!(!watch.has_changed());
        let pin = pin_of(&both);
        assert_eq!(pin, pin_of(&[both[1].clone(), both[0].clone()]), "in whatever order");
        assert!(health.unpinned().contains(&pin), "{}", health.unpinned());
        let open = |pins: Vec<String>| {
            let vault = Arc::clone(&vault);
            async move { crate::vault::lane::Lane::open_pinned(&vault, "gw1", &SystemClock::new(), &pins).await }
        };
        let refused = open(vec![present.clone()]).await.unwrap_err();
        assert!(refused.to_string().contains(&pin), "{refused}");
        assert_eq!(vault.store().list(Some(&crate::vault::names::lanes())).await.unwrap().len(), 0);
        live.apply(&config(&[present.clone(), pin.clone()]));
        tokio::time::sleep(LOOK_EVERY * 2).await;
        assert!(watch.has_changed() && health.unpinned().is_empty());
        assert_eq!(open(vec![present, pin]).await.unwrap().list(), 1);
        assert!(open(Vec::new()).await.is_ok(), "without a pin to whomever the vault names");
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_list_of_recipients_is_seen_within_a_minute_and_an_old_one_is_not_taken_for_new() {
        let (vault, _, identity) = vault_in(FaultStore::new().place()).await;
        let vault = Arc::new(vault);
        let watch = RecipientsWatch::start(&Handle::current(), look(&vault, &[]), 0);
        tokio::time::sleep(LOOK_EVERY * 3).await;
        assert!(!watch.has_changed());
        let both = [identity.recipient(), Identity::generate().recipient()];
        let basis = vault.lists().await.unwrap();
        vault.change_recipients(&identity, &basis, &both, Micros(2)).await.unwrap();
        tokio::time::sleep(LOOK_EVERY * 2).await;
        assert!(watch.has_changed());
        let next = RecipientsWatch::start(&Handle::current(), look(&vault, &[]), 1);
        tokio::time::sleep(LOOK_EVERY * 3).await;
        assert!(!next.has_changed());
    }
}
