//! Stage 6: retention. What the policy does not keep is let go; what it keeps stays exactly as restorable as it was.
//!
//! ```text
//!  policy ──► kept points ─┐
//!  pins ───────────────────┼─► needs ─► verdict ─► marks ─► manifest ─► deletions
//!  indexes ──► histories ──┘  (pure)    (by lane)  (pure)   (create-only)
//! ```
//!
//! Purpose: [`policy`] says which points are kept, [`needs`] which messages they need, [`marks`] what follows for a lane; [`pins`] which
//! points are in use; [`judge`] and [`run`] drive them over a vault, [`outlook`] tells what a run would cost in points. Whole batches go,
//! indexes stay: `docs/decisions/0012-keeper.md` says why.
//!
//! Invariants
//! - What a kept or pinned point needs is never deleted, nor what any place needs at which a history may still be forked.
//! - Every deletion has two judgements behind it, `delete_after` apart by the store's clock, and between them manifests that all name
//!   the batch, under the same policies.
//! - No row goes: a batch is marked only when its index stands in a lane index. So histories never change by a deletion.
//! - A disk that is damaged, or cannot be read whole, lets nothing go.
//! - Memory is the rows of one group of disks, two marks per batch, and the batches of one lane by number.
//!
//! What it does not own: histories and points (`restore`), names and formats (`vault`), who may delete (the store's credential).
//! It never needs the recovery identity.
//!
//! Shutdown: a run may be dropped at any moment. Crash: the same; the next run goes on from what stands in the vault.

pub mod config;
mod cover;
pub mod error;
pub mod judge;
mod manifests;
pub mod marks;
pub mod needs;
pub mod outlook;
pub mod pins;
pub mod policy;
pub mod report;
pub mod run;

#[cfg(test)]
mod tests;
