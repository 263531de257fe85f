//! Retention: what a vault keeps, and for how long.

pub mod config;
pub mod marks;
pub mod policy;
