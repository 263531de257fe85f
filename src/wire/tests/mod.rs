//! The wire over real QUIC on the loopback interface, with a host in memory.

mod certificates;
mod faults;
mod hostile;
mod memory;
mod mute;
mod streams;
mod support;
