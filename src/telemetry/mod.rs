//! What the process tells about itself: every metric name in one place, logging, health.

pub mod log;
pub mod names;
pub mod process;
