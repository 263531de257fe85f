//! Keys under construction.
