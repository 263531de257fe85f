//! The way back.

pub mod damage;
pub mod fetch;
pub mod head;
pub mod history;
pub mod open;
pub mod plan;
pub mod points;
pub mod progress;
pub mod resume;
pub mod source;
pub mod target;
pub mod write;

#[cfg(test)]
mod testing;
