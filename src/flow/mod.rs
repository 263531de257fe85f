//! What every stage shares: the clock, chance, blocking work, watermarks, sums of time, byte budgets,
//! limits of bandwidth and the drain signal.

mod blocking;
mod budget;
mod chance;
mod clock;
mod drain;
mod limiter;
pub mod platter;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
mod strand;
mod tally;
pub mod watch;
mod watermark;

pub(crate) use blocking::{blocking, blocking_in, simulated};
pub use budget::{Budget, BudgetGuard};
pub(crate) use chance::fill_random;
pub use clock::{Clock, SystemClock};
pub use drain::{Drain, DrainTrigger};
pub use limiter::{BURST, Hold, Limiter, Pace, Rate, Toll};
pub(crate) use strand::Strand;
pub use tally::Tally;
pub use watermark::Watermark;
