//! Stage 6: retention. What the policy does not keep is let go; what it keeps stays exactly as restorable as it was.
//!
//! ```text
//!  policy ──► kept points ─┐
//!  pins ───────────────────┼─► needs ─► verdict ─► marks ─► manifest ─► deletions
//!  indexes ──► histories ──┘  (pure)    (by lane)  (pure)   (create-only)
//! ```
//!
//! Purpose: [`policy`] says which points are kept, [`needs`] which messages they need, `places` which place of a message counts, [`marks`] what
//! follows for a lane; [`pins`] which points are in use; [`judge`] and [`run`] drive them over a vault, [`outlook`] tells what a run would cost in
//! points. Whole batches go, indexes stay: `docs/decisions/0012-keeper.md` says why. Where it is asked for, `mover` empties batches of which
//! little is needed (`sparse`), as `docs/decisions/0014-moving-messages.md` has it. [`fold`] writes beside indexes what they say of each disk
//! alone. [`shred`] destroys the keys of one disk, when somebody asks for that.
//!
//! Invariants
//! - What a kept or pinned point needs is never deleted, nor what any place needs at which a history may still be forked.
//! - Every deletion has two judgements behind it, `delete_after` apart by the store's clock, and between them manifests that all name
//!   the batch, under the same policies.
//! - What is needed and stands in two places goes from one only after it was found the same in the other, byte for byte (`proof`).
//! - No row goes: a batch is marked only when its index stands in a lane index. So histories never change by a deletion.
//! - A disk that is damaged, or cannot be read whole, lets nothing go.
//! - Of a disk that was shredded goes what nothing opens any more (`shredded`), whatever the policy says of its points, but no hold or pin.
//! - Memory is the rows of one group of disks, two marks per batch, and the batches of one lane by number; where messages are moved, also a
//!   few words per batch and per message of a sparse one, and the rows of one move; while a lane is folded, packed rows up to a bound.
//!
//! What it does not own: histories and points (`restore`), names and formats (`vault`), who may delete (the store's credential).
//! It never needs the recovery identity.
//!
//! Shutdown: a run may be dropped at any moment. Crash: the same; the next run goes on from what stands in the vault.

pub mod config;
mod cover;
pub mod error;
pub mod fold;
pub mod judge;
mod manifests;
pub mod marks;
mod mover;
pub mod needs;
pub mod outlook;
pub mod pins;
mod places;
pub mod policy;
mod proof;
pub mod report;
pub mod run;
pub mod shred;
mod shredded;
mod sparse;

#[cfg(test)]
mod tests;
