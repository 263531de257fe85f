//! Tidegate: an open, high-throughput replication gateway for disaster recovery.
//!
//! Modules stand in the order in which a changed byte meets them:
//!
//! ```text
//!  protected machine         gateway                                    blob store      anywhere
//!  agent (nbd) ──► wire ──►  journal (disk) ──► pipeline ──► vault ───► batches ──────► restore, export (nbd)
//!        ◄── acks: journaled, vaulted ──┘
//! ```
//!
//! The promises that this path keeps stand in `README.md`; the formats in `docs/FORMAT.md` and `docs/PROTOCOL.md`.

pub mod agent;
pub mod nbd;

pub mod wire;

pub mod journal;

pub mod pipeline;

pub mod vault;

pub mod restore;

pub mod export;

pub mod keeper;

pub mod gateway;

pub mod bundle;
pub mod doctor;
pub mod drill;
pub mod sizing;

pub mod cli;
pub mod config;
pub mod fault;
pub mod flow;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod keys;
pub mod limits;
pub mod mutants;
pub mod signed;
pub mod telemetry;
pub mod types;
