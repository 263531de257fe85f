//! Epochs: who may continue a disk's sequence, and which records count.
//!
//! Creating an epoch is the only decision in the system that must be unique, and create-if-absent in the store makes it
//! so. [`Lineage`] is the merge rule as a pure function: clones of an agent, gateways that return after hours and
//! disks that were rolled back are all cut off by what stands in the epochs, never by timing.

use super::objects::EpochObject;
use super::put::Created;
use super::{Vault, VaultError, names};
use crate::fault::{Classify, Fault};
use crate::mutants::{self, Mutant};
use crate::types::{Chain, DiskId, Epoch, PointId, Seq};

/// Epoch objects that are read at the same time.
pub(super) const READS_AT_ONCE: usize = 16;

/// Why an epoch was not created.
#[derive(Debug, thiserror::Error)]
pub enum CreateEpochError {
    /// Another caller created it.
    #[error("epoch {} of disk {} exists already, opened by agent {}", .existing.epoch, .existing.disk, .existing.agent)]
    Exists {
        /// The epoch that stands there.
        existing: Box<EpochObject>,
    },
    /// What stands under the number counts for nobody: it was made with an older catalog key, after its time.
    #[error("epoch {epoch} of disk {disk} can be used by nobody: take the next number")]
    Spent {
        /// The disk.
        disk: DiskId,
        /// The number.
        epoch: Epoch,
    },
    /// A request failed, or the object that stands there is not believed.
    #[error(transparent)]
    Vault(#[from] VaultError),
}

impl Classify for CreateEpochError {
    fn fault(&self) -> Fault {
        match self {
            Self::Exists { .. } | Self::Spent { .. } => Fault::Reject,
            Self::Vault(error) => error.fault(),
        }
    }
}

pub(super) async fn create(vault: &Vault, epoch: &EpochObject) -> Result<Created, CreateEpochError> {
    let path = names::epoch(&epoch.disk, epoch.epoch);
    let written = vault.put_object(&path, epoch).await;
    let spent = || CreateEpochError::Spent { disk: epoch.disk.clone(), epoch: epoch.epoch };
    match written {
        Ok(created) => Ok(created),
        Err(error) if error.is_too_late() => Err(spent()),
        Err(error @ VaultError::Taken { .. }) => match vault.get_object(&path).await {
            Ok(Some(existing)) => Err(CreateEpochError::Exists { existing: Box::new(existing) }),
            Ok(None) => Err(error.into()),
            Err(error) if error.is_too_late() => Err(spent()),
            Err(error) => Err(error.into()),
        },
        Err(error) => Err(error.into()),
    }
}

/// The part of one epoch that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// The epoch.
    pub epoch: Epoch,
    /// Its last record that counts; `None` for the newest epoch, which is open. Zero if none counts.
    pub last: Option<Seq>,
    /// The chain before its first record.
    pub chain_before: Chain,
    /// The chain at `last`, as the next epoch states it.
    pub chain_last: Option<Chain>,
    /// Size of the disk in this epoch.
    pub size_bytes: u64,
}

/// The history of a disk that leads to its newest epoch, oldest segment first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lineage {
    segments: Vec<Segment>,
}

/// Why a set of epochs is no lineage.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineageError {
    /// An epoch continues one that is not there.
    #[error("epoch {epoch} continues epoch {previous}, which is missing from the vault")]
    Missing {
        /// The epoch.
        epoch: Epoch,
        /// What it continues.
        previous: Epoch,
    },
    /// An epoch continues itself or a later one.
    #[error("epoch {epoch} claims to continue epoch {previous}")]
    Backwards {
        /// The epoch.
        epoch: Epoch,
        /// What it claims to continue.
        previous: Epoch,
    },
}

impl Classify for LineageError {
    fn fault(&self) -> Fault {
        Fault::Corrupt
    }
}

impl Lineage {
    /// The lineage of the newest of `epochs`. Of an epoch that is continued, records after the fork do not count;
    /// epochs that the newest does not descend from do not count at all.
    ///
    /// # Errors
    /// [`LineageError`] if the line does not lead back to an epoch that continues none.
    pub fn of(epochs: &[EpochObject]) -> Result<Self, LineageError> {
        let mut segments = Vec::new();
        let mut next: Option<&EpochObject> = None;
        let mut at = epochs.iter().max_by_key(|epoch| epoch.epoch);
        while let Some(epoch) = at {
            segments.push(Segment {
                epoch: epoch.epoch,
                last: next.filter(|_| !mutants::on(Mutant::ForksIgnored)).map(|next| next.fork_seq),
                chain_before: epoch.first_chain(),
                chain_last: next.map(|next| next.chain_at_fork),
                size_bytes: epoch.size_bytes,
            });
            next = Some(epoch);
            at = match epoch.previous {
                None => None,
                Some(previous) if previous >= epoch.epoch => {
                    return Err(LineageError::Backwards { epoch: epoch.epoch, previous });
                }
                Some(previous) => Some(
                    epochs
                        .iter()
                        .find(|older| older.epoch == previous)
                        .ok_or(LineageError::Missing { epoch: epoch.epoch, previous })?,
                ),
            };
        }
        segments.reverse();
        Ok(Self { segments })
    }

    /// The segments, oldest first.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The newest epoch.
    #[must_use]
    pub fn newest(&self) -> Option<Epoch> {
        self.segments.last().map(|segment| segment.epoch)
    }

    /// Whether a record counts.
    #[must_use]
    pub fn holds(&self, point: PointId) -> bool {
        self.segments
            .iter()
            .find(|segment| segment.epoch == point.epoch)
            .is_some_and(|segment| point.seq > Seq::NONE && segment.last.is_none_or(|last| point.seq <= last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Id128, Micros};
    use proptest::prelude::*;

    fn epoch(number: u64, previous: Option<(u64, u64)>) -> EpochObject {
        EpochObject {
            disk: DiskId::new("d1").expect("valid"),
            epoch: Epoch(number),
            previous: previous.map(|(epoch, _)| Epoch(epoch)),
            fork_seq: Seq(previous.map_or(0, |(_, seq)| seq)),
            chain_at_fork: Chain([number as u8; 32]),
            size_bytes: 1 << 20,
            agent: "a1".into(),
            nonce: Id128::NONE,
            reason: "test".into(),
            gateway: "g1".into(),
            created_micros: Micros(1),
        }
    }

    fn point(epoch: u64, seq: u64) -> PointId {
        PointId { epoch: Epoch(epoch), seq: Seq(seq) }
    }

    #[test]
    fn records_after_the_fork_and_epochs_beside_the_line_do_not_count() {
        // 1 ── 2 (a clone's, abandoned)
        //  └── 3 ── 4
        let epochs = [epoch(1, None), epoch(2, Some((1, 90))), epoch(3, Some((1, 50))), epoch(4, Some((3, 0)))];
        let lineage = Lineage::of(&epochs).expect("a line");
        assert!(lineage.holds(point(1, 50)) && !lineage.holds(point(1, 51)));
        assert!(!lineage.holds(point(2, 1)));
        assert!(!lineage.holds(point(3, 1)), "epoch 4 forked before its first record");
        assert!(lineage.holds(point(4, u64::MAX)) && !lineage.holds(point(4, 0)));
        assert_eq!(lineage.newest(), Some(Epoch(4)));
        assert_eq!(lineage.segments()[0].chain_before, Chain::GENESIS);
        assert_eq!(lineage.segments()[0].chain_last, Some(Chain([3; 32])));
    }

    #[test]
    fn a_missing_or_circular_epoch_is_reported_instead_of_guessed() {
        let gap = [epoch(1, None), epoch(3, Some((2, 5)))];
        assert_eq!(Lineage::of(&gap), Err(LineageError::Missing { epoch: Epoch(3), previous: Epoch(2) }));
        let circle = [epoch(1, Some((1, 5)))];
        assert!(matches!(Lineage::of(&circle), Err(LineageError::Backwards { .. })));
        assert_eq!(Lineage::of(&[]).expect("empty").newest(), None);
    }

    proptest! {
        #[test]
        fn every_record_that_counts_lies_at_or_before_the_fork_that_follows_it(
            forks in proptest::collection::vec((any::<prop::sample::Index>(), 0_u64..20), 0..8),
            at in 1_u64..10, seq in 1_u64..25,
        ) {
            let mut epochs = vec![epoch(1, None)];
            for (number, (pick, fork_seq)) in (2..).zip(&forks) {
                let previous = pick.index(epochs.len()) as u64 + 1;
                epochs.push(epoch(number, Some((previous, *fork_seq))));
            }
            let lineage = Lineage::of(&epochs).expect("a tree always has a line");
            let held = lineage.holds(point(at, seq));
            let newest = epochs.len() as u64;
            let successor = lineage.segments().windows(2).find(|pair| pair[0].epoch.0 == at).map(|pair| pair[1].epoch);
            let expected = match successor {
                Some(next) => seq <= epochs[next.0 as usize - 1].fork_seq.0,
                None => at == newest,
            };
            prop_assert_eq!(held, expected);
        }
    }
}
