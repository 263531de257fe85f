//! The way back.

pub mod history;
pub mod plan;
pub mod points;
pub mod rows;
#[cfg(test)]
mod testing;
