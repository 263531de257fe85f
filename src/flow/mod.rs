//! What every stage shares: the clock, watermarks, byte budgets and the drain signal.

mod budget;
mod clock;
mod drain;
mod watermark;

pub use budget::{Budget, BudgetGuard};
pub use clock::{Clock, SystemClock};
pub use drain::{Drain, DrainTrigger};
pub use watermark::Watermark;
