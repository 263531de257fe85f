//! The drill: a proof that machines come back, made before one has to.
//!
//! ```text
//!  point of each disk ─► restore to a folder of its own ─► volumes ─► e2fsck ─► the user's program ─► report
//! ```
//!
//! Purpose: restore disks as they would be after a loss, look whether their file systems are whole, let the user's own program
//! look further (boot a machine from the images, ask its database), and say how old the points were and how long it took.
//!
//! Invariants
//! - Nothing outside the drill's own folder is written, and that folder goes away unless it is to be kept.
//! - What was not looked at is named as such: a file system of a kind that is not known counts as no proof.
//! - A program that does not end is ended.
//!
//! What it does not own: points and restore (`restore`), the schedule (a timer of the system).

pub mod check;
pub mod report;
pub mod volumes;
