//! The wire over real QUIC and TCP on the loopback interface, with a host in memory.

mod certificates;
mod faults;
mod hostile;
mod memory;
mod mute;
mod paced;
mod streams;
pub(super) mod support;
mod tcp;
