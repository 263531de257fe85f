//! How long something was the case in total: set by the side that knows, read by the side that decides.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::Clock;

/// Sums the time during which it was on. Off at first.
pub struct Tally {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    total: Duration,
    on_since: Option<Duration>,
}

impl Tally {
    /// A sum of zero by this clock.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, state: Mutex::default() }
    }

    /// Monotonic time of the clock that it counts by.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.clock.monotonic()
    }

    /// Says whether it is the case from now on.
    pub fn set(&self, on: bool) {
        let mut state = self.state.lock();
        match (on, state.on_since) {
            (true, None) => state.on_since = Some(self.now()),
            (false, Some(since)) => {
                state.total += self.now().saturating_sub(since);
                state.on_since = None;
            }
            (true, Some(_)) | (false, None) => {}
        }
    }

    /// The sum up to now.
    #[must_use]
    pub fn total(&self) -> Duration {
        let state = self.state.lock();
        let open = state.on_since.map_or(Duration::ZERO, |since| self.now().saturating_sub(since));
        state.total + open
    }
}

impl fmt::Debug for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tally({:?})", self.total())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::types::Micros;

    struct Hand(AtomicU64);

    impl Clock for Hand {
        fn wall(&self) -> Micros {
            Micros(0)
        }
        fn monotonic(&self) -> Duration {
            Duration::from_secs(self.0.load(Ordering::SeqCst))
        }
    }

    #[test]
    fn only_the_time_while_it_was_on_counts_and_it_counts_while_it_is_on() {
        let hand = Arc::new(Hand(AtomicU64::new(0)));
        let tally = Tally::new(Arc::clone(&hand) as _);
        for (at, on, total) in [(1, true, 0), (3, true, 2), (4, false, 3), (9, false, 3), (10, true, 3), (12, false, 5)]
        {
            hand.0.store(at, Ordering::SeqCst);
            assert_eq!(tally.total(), Duration::from_secs(total), "at {at}");
            tally.set(on);
        }
        hand.0.store(20, Ordering::SeqCst);
        assert_eq!(tally.total(), Duration::from_secs(5));
    }
}
