//! How much credit each disk gets: its share of the sessions' memory, less when the journal fills up.

use std::sync::Arc;
use std::time::Duration;

use super::config::GatewayConfig;
use super::host::Disks;
use crate::flow::{Drain, watch};
use crate::journal::{Journal, Level};
use crate::wire::CREDIT_WINDOW_BYTES_MIN;

/// How often shares are computed anew: disks come and go slowly, levels are followed at once.
const LOOK: Duration = Duration::from_secs(1);

/// The window of one disk. `memory_bytes` is shared by `disks`.
fn window_bytes(level: Level, configured_bytes: u64, memory_bytes: u64, disks: u64) -> u64 {
    let share_bytes = memory_bytes / disks.max(1);
    let easy_bytes = share_bytes.clamp(CREDIT_WINDOW_BYTES_MIN, configured_bytes.max(CREDIT_WINDOW_BYTES_MIN));
    match level {
        Level::Low => easy_bytes,
        // Enough to keep sequences moving, too little to fill what is left.
        Level::High => CREDIT_WINDOW_BYTES_MIN,
        Level::Full => 0,
    }
}

/// Starts the task that keeps the window up to date.
pub fn start(config: &GatewayConfig, journal: &Journal, disks: Arc<Disks>, mut drain: Drain) -> watch::Receiver<u64> {
    let (configured_bytes, memory_bytes) = (config.window_bytes, config.memory_quarter_bytes());
    let mut level = journal.space_changed();
    let compute =
        move |level: Level, disks: &Disks| window_bytes(level, configured_bytes, memory_bytes, disks.streams_open());
    let (sender, receiver) = watch::channel(compute(*level.borrow(), &disks));
    tokio::spawn(async move {
        loop {
            tokio::select! {
                biased;
                () = drain.wait() => return,
                changed = level.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK) => {}
            }
            let bytes = compute(*level.borrow_and_update(), &disks);
            sender.send_if_modified(|now| std::mem::replace(now, bytes) != bytes);
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_share_the_memory_and_shrink_as_the_journal_fills() {
        const MIB: u64 = 1 << 20;
        assert_eq!(window_bytes(Level::Low, 8 * MIB, 128 * MIB, 0), 8 * MIB);
        assert_eq!(window_bytes(Level::Low, 8 * MIB, 128 * MIB, 32), 4 * MIB);
        assert_eq!(window_bytes(Level::Low, 8 * MIB, 128 * MIB, 10_000), CREDIT_WINDOW_BYTES_MIN);
        assert_eq!(window_bytes(Level::High, 8 * MIB, 128 * MIB, 1), CREDIT_WINDOW_BYTES_MIN);
        assert_eq!(window_bytes(Level::Full, 8 * MIB, 128 * MIB, 1), 0);
    }
}
