//! Retention: what a vault keeps, and for how long.

pub mod policy;
