//! The agent as a whole.

pub mod support;
