//! Stage 5: the way back. From the vault alone to a disk as it was.
//!
//! ```text
//!  vault: catalog, epochs ─► history ─► points ─► plan ─► fetch ─► open ─► write ─► target
//!                            (pure)     (pure)   (pure)   GETs     checks  pwrite   file or device
//!                                 └────────────────────────────► verify: the same checks, nothing written
//! ```
//!
//! Purpose: list recovery points, restore one exactly, and prove at any time that it could be done.
//!
//! Invariants
//! - The vault and the recovery identity suffice. No gateway, agent or database is asked.
//! - An image is a state that existed: all records up to one place of one lineage, and no other. Places inside a sync
//!   span are not offered.
//! - A byte is written only after its message authenticated and unpacked, every record's digest held, the chain followed
//!   from record to record, and all rows were what the index said when the plan was made.
//! - Damage is a value with the object, disk, records and bytes it concerns. It never stops what it does not concern.
//! - A target never looks like an image before it is one: a file has another name, a device has a resume file beside it.
//! - Where each byte stands in a file, whatever its form, follows from the plan ([`format`]): workers write in any order.
//! - Memory is the byte budget for sealed data, one message's plaintext per worker, and the rows of one disk's index. To read back
//!   what was written, a checksum for each range since the last note.
//!
//! What it does not own: names and formats of the vault (`vault`), sealing (`pipeline`, `keys`), retention.
//!
//! Shutdown: a run may be dropped at any moment; its threads end with the message in hand.
//! Crash: the resume file names only messages that are durable in the target, so the same command goes on from there.

pub mod ask;
pub mod damage;
pub mod fetch;
pub mod format;
mod gone;
pub mod head;
pub mod history;
mod keys;
pub mod open;
pub mod pin;
pub mod plan;
pub mod points;
pub mod progress;
pub mod resume;
pub mod signature;
pub mod source;
pub mod target;
pub mod touched;
pub mod verify;
pub mod write;

#[cfg(test)]
pub(crate) mod tests;
