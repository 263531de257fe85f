//! Stage under construction.

pub mod batch;
pub mod index;
