//! Load and faults for Tidegate gateways.
//!
//! ```text
//!  agent ──► proxy-udp ──► gateway ──► proxy-blob ──► blob store
//!            loss, delay,              latency, bandwidth, 503,
//!            reorder, duplicates,      outages, answers lost
//!            black hole, rebinding     after the deed
//!
//!  run ──────────────────► gateway ──► sink
//!  thousands of agents,                a blob endpoint that costs little,
//!  every ack checked                   with a weather of its own
//! ```
//!
//! Each part is a value that a test starts, changes while it runs, and drops, and the same on a command line. Everything
//! that is held on the way is bounded.

mod bare;
pub mod bench;
pub mod blob;
pub mod chance;
pub mod limit;
mod line;
pub mod old_vault;
pub mod payload;
pub mod process;
pub mod report;
pub mod run;
pub mod scenario;
pub mod sink;
mod thread;
pub mod udp;
