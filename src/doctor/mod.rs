//! Looks whether a host can do what its configuration asks for, before the daemon is started and after.
//!
//! ```text
//!  configuration ──► probe (host, disk, certificates, store, ports) ──► Facts ──► findings ──► text, JSON, exit code
//!                    the only part that touches anything                 pure
//! ```
//!
//! # What it touches
//!
//! - A probe file of at most 16 MiB in the journal's directory, or in the nearest one above it that exists, removed again.
//! - The store: reads of the object `vault`, one listing, one PUT of that same object which every store must refuse, because the
//!   name is taken. So the right to create is proven and nothing is left behind, also where nobody may delete.
//! - Ports: opened for a moment, if they are free.
//! - Gateways, from an agent's host: a handshake without a word after it, which ends no session.
//!
//! It may run beside the daemon. What the daemon has in use then counts as its own, by the admin port's answer or the lock on
//! the agent's state.
//!
//! # What it does not do
//!
//! It changes no setting, and it does not read the limits of the service: those of this very process count, so it is run as
//! the service is (`systemd-run` with the unit's properties, or in the container).

pub mod facts;
mod findings;
mod probe;

pub use facts::{Facts, Role};
pub use findings::{Finding, Grade, examine, worst_code};
pub use probe::{agent, gateway};
