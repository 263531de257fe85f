//! Stage 4: records become sealed batches.
//!
//! ```text
//!  journal's commits, in order
//!     │ push                     one feeder thread
//!  batcher    which record in which message, which message in which batch (pure)
//!     │ messages, in order
//!  pool       tg-cpu-N: LZ4 or zstd where it pays, AES-256-GCM under a key used once
//!     │ sealed messages, in the same order
//!  tg-batch   appended to the batch; index and trailer at its end
//!     │ batches, in the order of their numbers
//!  sink       the vault's uploader; where it waits, everything before it waits
//! ```
//!
//! Purpose: the least bytes and requests for the store, at the price of as little CPU and memory as can be: packing is nine
//! tenths of the work, so it alone is spread over threads, and every buffer of size is used again. A record's bytes are
//! copied once into the message, by the thread that packs it, unless the record is the message ([`content`]); packed and sealed
//! in memory of that thread, and copied packed to where they wait for the store ([`slabs`]).
//!
//! Invariants
//! - A disk's records leave in the order in which they came, in messages of consecutive seqs of one epoch.
//! - Every message is sealed under its own key, of its disk and lane, for its own place: vault, object, disk, epoch, range, codec, size. So
//!   nothing can be renamed, spliced or moved, and a reader unpacks only what it has authenticated.
//! - How a message is packed ([`CodecChoice`]: the configuration's word, or the ladder's for `auto`; nothing where a sample
//!   says that it would not pay) is a matter of cost alone: each message states its codec, and readers take any.
//! - Batches of a lane have dense numbers and reach the sink in that order.
//! - Memory ≤ open messages (at most 64 MiB of plaintext, copied or kept in memory that the journal counts) + the queue's
//!   bound + per thread the records and the packed form of one message, an open slab and the codec's tables (18 MiB at most) + the
//!   slabs of the batch being filled and of the batches that the sink holds, an eighth more than their bytes at most, of which
//!   as many as the sink may hold are kept when they are empty ([`PipelineConfig::sealed_bytes_max`]).
//!
//! What it does not own: when a record counts as vaulted (vault), lane keys and names (vault), reading the journal and
//! the time (gateway), what records mean (restore).
//!
//! Shutdown: [`Pipeline::finish`] closes the open batch and returns when the sink has taken it. Dropping the pipeline
//! throws away what is under way: nothing here was acknowledged as vaulted, and the journal still has it.
//!
//! Crash: the pipeline keeps no state. The next incarnation has a new lane and replays from the journal; a batch of the
//! old lane that was stored but not confirmed holds the same records with the same chains, which readers take once.

pub mod batcher;
pub mod buffers;
mod choice;
pub mod codec;
pub mod content;
mod driver;
pub mod ladder;
mod lane;
pub mod message;
pub mod pool;
pub mod probe;
mod slabs;
#[cfg(test)]
pub(crate) mod testing;

pub use batcher::BatcherLimits;
pub use choice::CodecChoice;
pub use content::Input;
pub use driver::{BatchObject, Pipeline, PipelineConfig, PipelineError, PushError, SinkClosed};
pub use lane::LaneContext;
