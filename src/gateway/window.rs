//! How much memory each disk may have for records on its way while there is plenty: less when the journal fills up. How
//! the sessions' memory is shared among disks is the wire's.

use super::live::Live;
use crate::flow::{Drain, watch};
use crate::journal::{Journal, Level};
use crate::limits::RECORD_BYTES_MAX;

/// The window of one disk.
const fn window_bytes(level: Level, configured_bytes: u64) -> u64 {
    match level {
        Level::Low => configured_bytes,
        // Enough to keep sequences moving, too little to fill what is left.
        Level::High => RECORD_BYTES_MAX as u64,
        Level::Full => 0,
    }
}

/// Starts the task that keeps the window up to date.
pub fn start(live: &Live, journal: &Journal, mut drain: Drain) -> watch::Receiver<u64> {
    let mut configured_bytes = live.window_bytes();
    let mut level = journal.space_changed();
    let (sender, receiver) = watch::channel(window_bytes(*level.borrow(), *configured_bytes.borrow()));
    tokio::spawn(async move {
        loop {
            tokio::select! {
                biased;
                () = drain.wait() => return,
                changed = level.changed() => if changed.is_err() { return },
                changed = configured_bytes.changed() => if changed.is_err() { return },
            }
            let bytes = window_bytes(*level.borrow_and_update(), *configured_bytes.borrow_and_update());
            sender.send_if_modified(|now| std::mem::replace(now, bytes) != bytes);
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_shrink_as_the_journal_fills_and_a_full_one_stops_the_agents() {
        const MIB: u64 = 1 << 20;
        assert_eq!(window_bytes(Level::Low, 8 * MIB), 8 * MIB);
        assert_eq!(window_bytes(Level::High, 8 * MIB), RECORD_BYTES_MAX as u64);
        assert_eq!(window_bytes(Level::Full, 8 * MIB), 0);
    }
}
