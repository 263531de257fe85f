//! The manifests of one lane that stand in the vault: what was let go, and since when.
//!
//! ```text
//!  m/l/<lane>/  7          8         9        10        11
//!               older than `delete_after`  │  younger                       by the store's clock, whatever they say themselves
//!               └ superseded, deleted      │
//!                          └───────────────┴── a batch that each of these names, under these very policies, may be deleted
//! ```
//!
//! So a mark is as old as the store says of the oldest manifest since which every one has named the batch. A mark that was taken back
//! begins anew; so does every mark when the policies change; and a manifest that somebody forged has to wait like any other.

use object_store::path::Path;

use super::marks::{self, Numbers, Present};
use super::report::Budget;
use crate::types::Id128;
use crate::vault::objects::{LetGoRun, ManifestObject};
use crate::vault::store::Listed;
use crate::vault::{Vault, VaultError, names};

/// Manifests younger than `delete_after` that are read for the marks of one lane: a keeper writes one in a run at most, so more
/// of them are made to keep it busy.
const YOUNG_MAX: usize = 10_000;

/// The manifests of a lane.
#[derive(Debug, Default)]
pub(super) struct Manifests {
    /// The one that counts.
    pub(super) newest: Option<ManifestObject>,
    /// Numbers, times and sizes of all, by number.
    listed: Vec<(u64, i64, u64)>,
}

impl Manifests {
    /// Lists them and reads the newest.
    ///
    /// # Errors
    /// A failed request, or a newest manifest that is not believed.
    pub(super) async fn read(vault: &Vault, lane: Id128) -> Result<Self, VaultError> {
        let listed = vault.store().list(Some(&names::manifests(lane))).await?;
        let numbered =
            |one: &Listed| Some((names::manifest_number(lane, &one.path)?, one.modified_micros, one.size_bytes));
        let mut listed: Vec<(u64, i64, u64)> = listed.iter().filter_map(numbered).collect();
        listed.sort_unstable();
        let mut late = Vec::new();
        let newest = match listed.last() {
            Some(last) => vault.manifest_of_numbers(lane, Some(last.0), &mut late).await?,
            None => None,
        };
        late.iter().for_each(|late| tracing::warn!("{late}"));
        Ok(Self { newest, listed })
    }

    /// What the newest says.
    pub(super) fn let_go(&self) -> &[LetGoRun] {
        self.newest.as_ref().map(|newest| newest.let_go.as_slice()).unwrap_or_default()
    }

    /// The number of the newest; zero if there is none.
    pub(super) fn number(&self) -> u64 {
        self.listed.last().map_or(0, |one| one.0)
    }

    /// When the newest appeared, by the store's clock.
    pub(super) fn newest_micros(&self) -> Option<i64> {
        self.listed.last().map(|one| one.1)
    }

    /// Where the youngest of those stands that are old enough.
    fn youngest_old(&self, delete_micros: i64) -> Option<usize> {
        self.listed.iter().rposition(|one| one.1 <= delete_micros)
    }

    /// The youngest of those that are old enough and all after it, if there is such a one and no number is missing: one that is not
    /// there may have taken a mark back.
    fn since(&self, delete_micros: i64) -> Option<&[(u64, i64, u64)]> {
        let since = &self.listed[self.youngest_old(delete_micros)?..];
        let dense = since.windows(2).all(|pair| pair[0].0.checked_add(1) == Some(pair[1].0));
        (dense && since.len() <= YOUNG_MAX).then_some(since)
    }

    /// Which of `present` have been marked, without a break and under the policies of this digest, since `delete_micros`.
    ///
    /// # Errors
    /// A failed request.
    pub(super) async fn ripe(
        &self,
        vault: &Vault,
        lane: Id128,
        present: &[Present],
        policies: Id128,
        delete_micros: i64,
        budget: &mut Budget,
    ) -> Result<Numbers, VaultError> {
        let none = Ok(Numbers::default());
        let Some(newest) = self.newest.as_ref().filter(|newest| newest.policies == policies) else { return none };
        let mut marked: Vec<u64> = present.iter().map(|batch| batch.n).collect();
        marked.retain(|n| marks::names(&newest.let_go, *n));
        let Some(since) = self.since(delete_micros).filter(|_| !marked.is_empty()) else { return none };
        for (n, _, size_bytes) in &since[..since.len() - 1] {
            if marked.is_empty() || !budget.take(1, *size_bytes) {
                return none;
            }
            let manifest = match vault.manifest_of(lane, *n).await {
                Ok(Some(manifest)) => manifest,
                Ok(None) => return none,
                Err(error) if error.is_too_late() => return none,
                Err(error) => return Err(error),
            };
            marked.retain(|n| manifest.policies == policies && marks::names(&manifest.let_go, *n));
        }
        let mut ripe = Numbers::default();
        marked.into_iter().for_each(|n| ripe.insert(n));
        Ok(ripe)
    }

    /// Those that neither a reader nor a mark's age needs any more, the oldest first.
    pub(super) fn superseded(&self, lane: Id128, delete_micros: i64) -> Vec<Path> {
        let keep_from = self.youngest_old(delete_micros).unwrap_or(0);
        self.listed[..keep_from].iter().map(|one| names::manifest(lane, one.0)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_as_old_as_the_manifests_that_stand_there_without_a_break() {
        let sized = |listed: &[(u64, i64)]| listed.iter().map(|one| (one.0, one.1, 7)).collect::<Vec<_>>();
        let manifests = |listed: &[(u64, i64)]| Manifests { newest: None, listed: sized(listed) };
        let since = |manifests: &Manifests, delete_micros| manifests.since(delete_micros).map(<[_]>::to_vec);
        let lane = Id128([1; 16]);
        let dense = manifests(&[(4, 100), (5, 200), (6, 300), (7, 400)]);
        assert_eq!(since(&dense, 250), Some(sized(&[(5, 200), (6, 300), (7, 400)])));
        assert_eq!(dense.superseded(lane, 250), [names::manifest(lane, 4)], "5 tells the age of marks");
        assert_eq!(since(&dense, 99), None, "all are young");
        assert!(dense.superseded(lane, 99).is_empty());
        assert_eq!(since(&dense, 1000), Some(sized(&[(7, 400)])));
        assert_eq!(dense.superseded(lane, 1000).len(), 3);
        assert_eq!(since(&manifests(&[]), 1000), None);
        let holed = manifests(&[(4, 100), (5, 200), (7, 400)]);
        assert_eq!(since(&holed, 250), None, "6 may have taken marks back");
        assert_eq!(since(&holed, 400), Some(sized(&[(7, 400)])));
        let last = manifests(&[(u64::MAX - 1, 100), (u64::MAX, 200)]);
        assert_eq!(since(&last, 150).map(|since| since.len()), Some(2));
        // A clock that went back: what is after one that is old is asked too.
        assert_eq!(since(&manifests(&[(1, 500), (2, 100), (3, 400)]), 250), Some(sized(&[(2, 100), (3, 400)])));
    }
}
