//! What the process tells about itself: every metric name in one place, logging, health, signs to its supervisor.

pub mod log;
pub mod names;
pub mod process;
pub mod supervisor;
