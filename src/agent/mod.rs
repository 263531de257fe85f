//! Stage 1: where changes are born.

pub mod activity;
pub mod chunk_set;
pub mod dirty;
pub mod queue;
pub mod range_lock;
pub mod state;
pub mod tracker;
