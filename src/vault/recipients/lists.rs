//! The lists of recipients as they are judged: which counts, under which catalog key, and what comes after it.

use std::fmt;

use object_store::path::Path;

use super::texts;
use crate::keys::chain::SealedOlderKey;
use crate::keys::{KeyId, Recipient};
use crate::limits;
use crate::types::Micros;
use crate::vault::lane::NotPinned;
use crate::vault::objects::{NextCatalogKey, RecipientsObject, Signed, SignedError, Signer, VaultObject};
use crate::vault::{Vault, VaultError, names};

/// What the digest of a set of recipients is for.
const PIN_CONTEXT: &str = "tidegate 1 pin of recipients";

/// A list of recipients that counts, or did until the next one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecipientList {
    /// Its number; zero for the vault's own.
    pub n: u64,
    /// When it was made.
    pub made: Micros,
    /// The recipients.
    pub recipients: Vec<Recipient>,
    /// The catalog key under which everything is written since.
    pub catalog_kid: KeyId,
    /// When it appeared, by the store's clock, in microseconds since 1970; zero for the vault's own.
    pub(in crate::vault) appeared_micros: i64,
    pub(super) signer: Option<Signer>,
    /// None for the vault's own list, whose catalog key stands in `keys/`.
    pub(super) wrapped_catalog_key: Option<String>,
    /// The list that made the catalog key the present one; none for the first key.
    pub(in crate::vault) key_since: Option<u64>,
    /// The catalog key that is staged.
    pub(in crate::vault) next: Option<NextCatalogKey>,
}

/// A catalog key is not the present one any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::vault) struct Replaced {
    /// The key that took its place.
    pub(in crate::vault) by: KeyId,
    /// The list that said so, and when it was made.
    pub(in crate::vault) list: u64,
    pub(in crate::vault) made: Micros,
    /// What appeared later, by the store's clock, counts under the replaced key no more; none if the store's times do not tell.
    pub(in crate::vault) until_micros: Option<i64>,
}

/// An older catalog key, sealed under a newer one.
#[derive(Debug, Clone, Copy)]
pub(in crate::vault) struct Link {
    pub(in crate::vault) older: KeyId,
    pub(in crate::vault) newer: KeyId,
    pub(in crate::vault) sealed: SealedOlderKey,
}

/// What a configuration names a set of recipients by: 64 hexadecimal digits, the same in whatever order they stand.
#[must_use]
pub fn pin_of(recipients: &[Recipient]) -> String {
    let mut texts = texts(recipients);
    texts.sort();
    let mut hasher = blake3::Hasher::new_derive_key(PIN_CONTEXT);
    texts.iter().for_each(|text| {
        hasher.update(text.as_bytes()).update(b"\n");
    });
    hasher.finalize().to_hex().to_string()
}

impl RecipientList {
    /// Whether the store's time of it is that of its making, and not that of a copy.
    fn has_its_time(&self) -> bool {
        let made_micros = i64::try_from(self.made.0).unwrap_or(i64::MAX);
        let apart_micros = self.appeared_micros.saturating_sub(made_micros).unsigned_abs();
        apart_micros <= limits::CATALOG_KEY_CLOCKS_APART_SECONDS_MAX * 1_000_000
    }

    /// Whether another catalog key may soon take the present one's place.
    #[must_use]
    pub fn stages_a_key(&self) -> bool {
        self.next.is_some()
    }

    /// Whether a gateway with these pins may wrap to the list: with none to any.
    ///
    /// # Errors
    /// [`NotPinned`] names the pin.
    pub fn check_pinned(&self, pins: &[String]) -> Result<(), NotPinned> {
        let pin = pin_of(&self.recipients);
        if pins.is_empty() || pins.contains(&pin) {
            return Ok(());
        }
        Err(NotPinned { list: self.n, recipients: texts(&self.recipients), pin })
    }
}

/// An object that is not believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Its name.
    pub object: String,
    /// Why.
    pub reason: String,
}

impl Refused {
    pub(super) fn new(path: &Path, reason: impl Into<String>) -> Self {
        Self { object: path.to_string(), reason: reason.into() }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} does not count: {}", self.object, self.reason)
    }
}

/// All lists of a vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lists {
    /// Those that count, from the vault's own on. Never empty.
    counted: Vec<RecipientList>,
    /// What stands under the name of a list and is none.
    pub refused: Vec<Refused>,
    /// The lowest number that is free.
    pub(in crate::vault) next_n: u64,
}

impl Lists {
    /// The vault's own list alone.
    pub(in crate::vault) fn of(head: &VaultObject) -> Self {
        let own = RecipientList {
            n: 0,
            made: head.created_micros,
            recipients: head.recipients.clone(),
            catalog_kid: head.catalog_kid,
            appeared_micros: 0,
            signer: head.signer.clone(),
            wrapped_catalog_key: None,
            key_since: None,
            next: None,
        };
        Self { counted: vec![own], refused: Vec::new(), next_n: 1 }
    }

    /// The list that counts now.
    #[must_use]
    pub fn present(&self) -> &RecipientList {
        let Some(last) = self.counted.last() else { unreachable!("the vault's own list is always there") };
        last
    }

    /// Those that count or did, from the vault's own on.
    pub fn all(&self) -> impl DoubleEndedIterator<Item = &RecipientList> {
        self.counted.iter()
    }

    /// Whether others were judged further.
    pub(in crate::vault) fn is_behind(&self, others: &Self) -> bool {
        (self.next_n, self.counted.len()) < (others.next_n, others.counted.len())
    }

    /// Forgets the last ones that were refused after the present list, so that they are judged once more: one wrong answer of a store must not
    /// hide for the life of a process that another catalog key took this one's place.
    pub(super) fn judge_refused_again(&mut self) {
        let after = (self.present().n + 1).max(self.next_n.saturating_sub(limits::RECIPIENT_LISTS_JUDGED_AGAIN));
        if after < self.next_n {
            let again: Vec<String> = (after..self.next_n).map(|n| names::recipients_list(n).to_string()).collect();
            self.refused.retain(|refused| !again.contains(&refused.object));
            self.next_n = after;
        }
    }

    /// When a catalog key was replaced; none if it is the present one, a staged one, or none of the vault's.
    pub(in crate::vault) fn replaced(&self, kid: KeyId) -> Option<Replaced> {
        let mut activations = self.counted.windows(2).filter(|pair| pair[0].catalog_kid != pair[1].catalog_kid);
        let next = &activations.find(|pair| pair[0].catalog_kid == kid)?[1];
        // In a copy of a vault all times are later, in any order: none of them tells what came before the others. One that is made there does,
        // for all that it finds.
        let timed = std::iter::once(next).chain(activations.map(|pair| &pair[1])).find(|list| list.has_its_time());
        let grace_micros = (limits::CATALOG_KEY_GRACE_SECONDS * 1_000_000) as i64;
        let until_micros = timed.map(|list| list.appeared_micros.saturating_add(grace_micros));
        Some(Replaced { by: next.catalog_kid, list: next.n, made: next.made, until_micros })
    }

    /// What leads from each catalog key to the one before it, the oldest first.
    pub(in crate::vault) fn links(&self) -> Vec<Link> {
        let mut links: Vec<Link> = Vec::new();
        for list in &self.counted {
            let Some(next) = &list.next else { continue };
            if links.last().is_none_or(|last| last.newer != next.kid) {
                links.push(Link { older: list.catalog_kid, newer: next.kid, sealed: next.sealed_older_key });
            }
        }
        links
    }

    /// What is wrong with the catalog key that a list stages: none comes back.
    fn unfit_key(&self, list: &RecipientsObject) -> Option<String> {
        let kid = list.next_catalog_key.as_ref()?.kid;
        let known = self.counted.iter().any(|one| one.catalog_kid == kid);
        known.then(|| format!("it stages catalog key {kid}, which is or was the present one"))
    }

    /// Judges the object that has the next number.
    pub(in crate::vault) fn judge(
        &mut self,
        vault: &Vault,
        n: u64,
        appeared_micros: i64,
        bytes: &[u8],
    ) -> Result<(), VaultError> {
        let path = names::recipients_list(n);
        let present = self.present();
        let Some(signer) = &present.signer else { return Ok(()) };
        // The signature says all, and to everybody the same, whichever catalog keys are at hand.
        let opened = Signed::<RecipientsObject>::open(None, &signer.public, vault.id(), &path, bytes);
        let reason = match opened {
            Ok(content) => match unfit(&content, n, present).or_else(|| self.unfit_key(&content)) {
                Some(reason) => reason,
                None => {
                    self.counted.push(RecipientList {
                        n,
                        made: content.made_micros,
                        recipients: content.recipients,
                        catalog_kid: content.catalog_kid,
                        appeared_micros,
                        signer: Some(content.signer),
                        wrapped_catalog_key: Some(content.wrapped_catalog_key),
                        key_since: content.catalog_key_since,
                        next: content.next_catalog_key,
                    });
                    return Ok(());
                }
            },
            Err(SignedError::Newer(error)) => return Err(error.into()),
            Err(SignedError::Refused(reason)) => reason,
        };
        self.refused.push(Refused::new(&path, reason));
        Ok(())
    }
}

/// What is wrong with a list that is signed as it should be, and comes after `before`.
fn unfit(list: &RecipientsObject, n: u64, before: &RecipientList) -> Option<String> {
    if list.n != n {
        return Some(format!("it says that it is list {}", list.n));
    }
    if list.recipients.is_empty() || list.recipients.len() > limits::RECIPIENTS_MAX {
        return Some(format!("it names {} recipients", list.recipients.len()));
    }
    let (staged, next) = (before.next.as_ref(), list.next_catalog_key.as_ref());
    let (since, what) = if list.catalog_kid == before.catalog_kid {
        // What is staged stays staged until it is the present one: gateways may have no other file any more.
        let dropped = staged.filter(|staged| {
            next.map(|next| (next.kid, next.sealed_older_key)) != Some((staged.kid, staged.sealed_older_key))
        });
        (before.key_since, dropped.map(|staged| format!("it drops the staged catalog key {}", staged.kid)))
    } else if staged.is_some_and(|staged| staged.kid == list.catalog_kid) {
        (Some(n), next.map(|_| "it stages a catalog key and makes another the present one".to_owned()))
    } else {
        (None, Some(format!("it is for catalog key {}", list.catalog_kid)))
    };
    let wrong_since =
        || (list.catalog_key_since != since).then(|| "it tells another age of the catalog key".to_owned());
    what.or_else(wrong_since)
}
