//! What the process tells about itself: every metric name in one place, logging, traces, health, signs to its supervisor.

pub mod latency;
pub mod log;
pub mod names;
pub mod process;
pub mod recorder;
pub mod supervisor;
pub mod text;
pub mod traces;
pub mod waits;
