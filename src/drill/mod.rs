//! The drill: a proof that machines come back, made before one has to.
//!
//! ```text
//!  point of each disk ─┬─► restore to a folder of its own ─► volumes ─► e2fsck ─► the user's program ─┬─► report
//!                      └─► export from the vault ─► a machine boots ─► its console says that it is up ─┘
//! ```
//!
//! Purpose: restore disks as they would be after a loss, look whether their file systems are whole, let the user's own program
//! look further (ask its database), or boot a machine from the vault before anything is copied; and say how old the points were
//! and how long it took.
//!
//! Invariants
//! - Nothing outside the drill's own folder is written, and that folder goes away unless it is to be kept.
//! - What was not looked at is named as such: a file system of a kind that is not known counts as no proof.
//! - A program that does not end is ended, and so is a machine that has shown what it was booted for.
//! - A machine that boots here meets nobody: it has no network.
//!
//! What it does not own: points and restore (`restore`), serving them (`export`), the schedule (a timer of the system).

pub mod check;
pub mod machine;
pub mod report;
pub mod volumes;
