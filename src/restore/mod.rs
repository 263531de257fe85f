//! The way back.

pub mod history;
pub mod plan;
pub mod points;
pub mod resume;
pub mod target;

#[cfg(test)]
mod testing;
