//! Whether the vault's recipients have changed since a lane was opened: then another lane takes over, wrapped to the new ones.
//!
//! A look is one listing, and a small read for each list that is new. A lane ends for it as it does at the end of its key's time:
//! what was read for it goes out with it, and whoever was removed opens nothing that comes after.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use crate::fault::chain_text;
use crate::vault::Vault;

/// How often to look: how long what is written may still be wrapped to somebody who was removed.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Looks until it is dropped.
pub(super) struct RecipientsWatch {
    changed: Arc<AtomicBool>,
    task: AbortHandle,
}

impl RecipientsWatch {
    /// Looks for a list of recipients that came after number `list`.
    pub(super) fn start(runtime: &Handle, vault: Arc<Vault>, list: u64) -> Self {
        let changed = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&changed);
        let task = runtime.spawn(async move {
            while !has_changed(&vault, list).await {
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

async fn has_changed(vault: &Vault, list: u64) -> bool {
    match vault.lists().await {
        Ok(lists) => {
            let present = lists.present();
            if present.n != list {
                let recipients: Vec<String> = present.recipients.iter().map(ToString::to_string).collect();
                let recipients = recipients.join(", ");
                tracing::warn!(list = present.n, recipients, "the recipients have changed: another lane takes over");
            }
            present.n != list
        }
        Err(error) => {
            // The lane goes on: it is wrapped to those who were recipients when it began.
            tracing::warn!(error = chain_text(&error), "the lists of recipients cannot be read; looking again later");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Identity;
    use crate::types::Micros;
    use crate::vault::testing::{FaultStore, vault_in};

    #[tokio::test(start_paused = true)]
    async fn a_new_list_of_recipients_is_seen_within_a_minute_and_an_old_one_is_not_taken_for_new() {
        let (vault, _, identity) = vault_in(FaultStore::new().place()).await;
        let vault = Arc::new(vault);
        let watch = RecipientsWatch::start(&Handle::current(), Arc::clone(&vault), 0);
        tokio::time::sleep(LOOK_EVERY * 3).await;
        assert!(!watch.has_changed());
        let both = [identity.recipient(), Identity::generate().recipient()];
        let basis = vault.lists().await.unwrap();
        vault.change_recipients(&identity, &basis, &both, Micros(2)).await.unwrap();
        tokio::time::sleep(LOOK_EVERY * 2).await;
        assert!(watch.has_changed());
        let next = RecipientsWatch::start(&Handle::current(), vault, 1);
        tokio::time::sleep(LOOK_EVERY * 3).await;
        assert!(!next.has_changed());
    }
}
