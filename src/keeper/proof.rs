//! The proof that a copy is what it stands for: both are read and compared, byte for byte.
//!
//! A keeper cannot open a message, and whoever has the catalog key can write a lane with copies that hold nothing. So no batch is marked because
//! its messages stand elsewhere, and none is deleted, before this very run has seen that they do.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;

use super::report::{Budget, Report};
use crate::fault::{self, Classify, Fault};
use crate::types::Id128;
use crate::vault::{Vault, VaultError, names};

/// Longest read of either side.
const READ_BYTES_MAX: u64 = 8 << 20;
/// Most messages of which a run remembers where they stand besides: some tens of MiB. Others are needed where they are, until a later run.
const SPARES_MAX: usize = 1 << 20;

/// A message that is needed, and not where it stands; or not for much longer, because a copy ripens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Spare {
    /// Where it starts, and its bytes.
    pub(super) offset_bytes: u64,
    pub(super) stored_bytes: u32,
    /// The batch that has it too, and where.
    pub(super) batch: (Id128, u64),
    pub(super) at_bytes: u64,
}

/// The messages that stand elsewhere too, by batch.
#[derive(Debug, Default)]
pub(super) struct Spares {
    batches: BTreeMap<(Id128, u64), Vec<Spare>>,
    count: usize,
}

impl Spares {
    /// Remembers a message of a batch; `false` if there are too many.
    pub(super) fn add(&mut self, batch: (Id128, u64), spare: Spare) -> bool {
        let fits = self.count < SPARES_MAX;
        if fits {
            self.batches.entry(batch).or_default().push(spare);
            self.count += 1;
        }
        fits
    }

    /// Those of one batch, joined where both places go on, so that they are read at once.
    fn of(&self, batch: (Id128, u64)) -> Vec<Joined> {
        let mut spares = self.batches.get(&batch).cloned().unwrap_or_default();
        spares.sort_unstable_by_key(|spare| spare.offset_bytes);
        let mut joined: Vec<Joined> = Vec::new();
        for spare in spares {
            let bytes = u64::from(spare.stored_bytes);
            match joined.last_mut() {
                Some(last)
                    if last.batch == spare.batch
                        && last.offset_bytes + last.bytes == spare.offset_bytes
                        && last.at_bytes + last.bytes == spare.at_bytes
                        && last.bytes + bytes <= READ_BYTES_MAX =>
                {
                    last.bytes += bytes;
                }
                _ => joined.push(Joined {
                    offset_bytes: spare.offset_bytes,
                    bytes,
                    batch: spare.batch,
                    at_bytes: spare.at_bytes,
                }),
            }
        }
        joined
    }
}

/// A stretch that two batches have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Joined {
    offset_bytes: u64,
    bytes: u64,
    batch: (Id128, u64),
    at_bytes: u64,
}

/// Whether everything of a batch that is needed stands where it is said to. What the budget leaves out is not known.
pub(super) async fn proven(
    vault: &Vault,
    batch: (Id128, u64),
    spares: &Spares,
    budget: &mut Budget,
    report: &mut Report,
) -> Result<bool, VaultError> {
    for joined in spares.of(batch) {
        if !budget.take(2, 2 * joined.bytes) {
            return Ok(false);
        }
        let range = |start: u64| start..start + joined.bytes;
        let ours = read(vault, batch, range(joined.offset_bytes)).await?;
        let theirs = read(vault, joined.batch, range(joined.at_bytes)).await?;
        let what = match (ours, theirs) {
            (Ok(ours), Ok(theirs)) if ours == theirs => continue,
            (Ok(_), Ok(_)) => "it holds other bytes".to_owned(),
            (Err(what), _) | (_, Err(what)) => what,
        };
        let (first, copy) = (names::batch(batch.0, batch.1), names::batch(joined.batch.0, joined.batch.1));
        report.note(format!("{first} stays: {copy} is to hold what is needed of it, but {what}"));
        return Ok(false);
    }
    Ok(true)
}

async fn read(vault: &Vault, batch: (Id128, u64), range: Range<u64>) -> Result<Result<Bytes, String>, VaultError> {
    let path = names::batch(batch.0, batch.1);
    match vault.store().get_range(&path, range).await {
        Ok(bytes) => Ok(Ok(bytes)),
        Err(error) if error.is_not_found() => Ok(Err(format!("{path} is gone"))),
        Err(error) if error.fault() == Fault::Corrupt => Ok(Err(fault::chain_text(&error))),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_that_go_on_in_both_places_are_read_at_once() {
        let (batch, one, two) = ((Id128([1; 16]), 3), (Id128([2; 16]), 1), (Id128([2; 16]), 2));
        let mut spares = Spares::default();
        let all =
            [(164, 50, one, 1050), (64, 100, one, 950), (214, 10, two, 64), (224, 10, two, 75), (234, 10, two, 85)];
        for (offset_bytes, stored_bytes, batch_of, at_bytes) in all {
            assert!(spares.add(batch, Spare { offset_bytes, stored_bytes, batch: batch_of, at_bytes }));
        }
        let joined = |offset_bytes, bytes, batch, at_bytes| Joined { offset_bytes, bytes, batch, at_bytes };
        assert_eq!(spares.of(batch), [joined(64, 150, one, 950), joined(214, 10, two, 64), joined(224, 20, two, 75)]);
        assert!(spares.of(one).is_empty());
    }
}
