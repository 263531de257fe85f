//! The newest record that this agent was told to be vaulted: signed with each barrier, and told to whoever keeps it apart from the
//! vault.

use super::Disk;
use crate::signed::Head;
use crate::types::Epoch;

impl Disk {
    /// The newest record known to be vaulted, of the present epoch or of one before.
    pub fn told(&self) -> Option<Head> {
        self.refresh().head().or_else(|| *self.told_before.lock())
    }

    /// Keeps what is known of the epochs before `next`, which is about to begin. A state that comes from another vault knows of
    /// epochs that are none of this one's: there `next` is the first.
    pub(super) fn keep_told(&self, next: Epoch) {
        let told = self.told().filter(|head| head.at.epoch < next);
        *self.told_before.lock() = told;
    }
}
