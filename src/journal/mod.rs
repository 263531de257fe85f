//! Stage under construction.
pub mod disk;
