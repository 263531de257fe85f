//! Stage under construction.

pub mod codec;
pub mod message;
