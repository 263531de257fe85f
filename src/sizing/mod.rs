//! How many gateways, of which size, and what they cost: from what machines write.
//!
//! ```text
//!  figures, a trace, or a watched machine ──► Demand ┐
//!  measured costs of this build, or a bench ► Capacity ├─► size ──► figures, each with its formula ──► text, JSON
//!  a price table ─────────────────────────── ► Prices ┘     pure
//! ```
//!
//! Invariants:
//! - A figure carries the formula and the numbers that it came from; nothing is rounded up in silence.
//! - More writes, more machines or a longer outage never need less of anything that is counted over all gateways.
//! - What was measured stands in [`measured`] alone, with the command and the day; what was merely chosen is an option with its
//!   default in the help text. Without a price table there is no price.
//!
//! What it does not know: the way to the store beyond what it is told, and how much of a machine's data others have already.

pub mod answer;
pub mod capacity;
pub mod demand;
pub mod measured;
pub mod observe;
pub mod prices;
pub mod table;

pub use answer::{Figure, Sizing, size};
pub use capacity::Capacity;
pub use demand::{Choices, Demand};
pub use prices::Prices;
