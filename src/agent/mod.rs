//! Stage 1: where changes are born.

pub mod chunk_set;
pub mod dirty;
pub mod queue;
pub mod tracker;
