//! Who the recipients are: the vault's own list, the lists that came after it, and lane keys that were wrapped anew.
//!
//! ```text
//!  vault              list 0: recipients, and signing key 0, wrapped to them
//!  recipients/1       list 1, signed by key 0: its recipients, signing key 1 and the catalog key, wrapped to them
//!  recipients/2       list 2, signed by key 1: …; it may stage another catalog key, and a later one makes that the present one (`rotation`)
//!  rewraps/<lane>/1   a lane key for recipients who came after the lane was opened; signed by the key of the list it names
//! ```
//!
//! Purpose: read the lists and say which counts; name the next recipients; give them the keys of lanes that are older than they are.
//!
//! Invariants
//! - Numbers are dense. Lists are judged in ascending order up to the first number that is free, which is where the next list
//!   goes: so nothing that comes later can slip in before one that counts, whoever signed it.
//! - A list counts if the one that counts before it signed it. So only who opens keys of the present list names the next one: not a
//!   gateway, and not a recipient who was removed.
//! - Any other object under such a name is told and stepped over. It cannot keep gateways from their work, nor a list from its turn.
//! - A wrap made anew counts for a recipient if a list that came after the lane, and that has the recipient, signed it, and nothing
//!   before it did. So a signing key of the past wraps nothing for those who came after it.
//! - Nothing that stands is changed or deleted: whatever opened a key before opens it after. A list that was written and then
//!   does not read back is one that does not count.
//! - Every step is whole by itself. Killed between two, a change is finished by asking for it again.
//! - What was judged once stays judged in a process: a list that vanishes or is written over takes nobody back.
//!
//! What it does not own: when a gateway looks for a new list (`gateway`), what is shown (`cli`).

mod lists;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use object_store::path::Path;
use zeroize::Zeroizing;

use super::lane::{self, ListedLane};
use super::objects::{LaneObject, NextCatalogKey, RecipientsObject, RewrapObject, Signed, Signer};
use super::store::Listed;
use super::{Vault, VaultError, names};
use crate::fault::{Classify, Fault, chain_text};
use crate::keys::{self, CatalogKey, Identity, Recipient, SECRET_BYTES, SigningKey};
use crate::limits;
use crate::types::{Id128, Micros};

pub(super) use lists::Replaced;
pub use lists::{Lists, RecipientList, Refused, pin_of};

/// Small reads in flight.
const READS: usize = 16;

/// Who reads a vault, for whom lane keys may have been wrapped anew.
#[derive(Debug)]
pub(super) struct Reader {
    recipient: String,
}

impl Reader {
    pub(super) fn new(identity: &Identity) -> Self {
        Self { recipient: identity.recipient().to_string() }
    }
}

/// A lane whose key some of the present recipients cannot open.
#[derive(Debug, Clone)]
pub struct LaneBehind {
    /// The lane.
    pub lane: Id128,
    /// Who cannot open it.
    pub missing: Vec<Recipient>,
    /// The registration, with the key as the gateway wrapped it.
    object: LaneObject,
    /// The key as it was wrapped anew.
    wraps: Vec<String>,
    /// The lowest number that is free.
    next_n: u64,
}

/// A lane that may still be written, and that somebody off the list can open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneOpenToOthers {
    /// The lane.
    pub lane: Id128,
    /// The gateway that opened it.
    pub gateway: String,
    /// When.
    pub created: Micros,
    /// Who can open it.
    pub others: Vec<String>,
    /// Whether it was opened after the present list: only a gateway of an older release, or one that could not read the lists,
    /// does that.
    pub is_late: bool,
}

/// Which lanes the present recipients can open, and who else those that are being written.
#[derive(Debug, Default)]
pub struct Wraps {
    /// Lanes whose registration is believed.
    pub lanes: u64,
    /// Lanes without an end that, by the store's clock, were not too old to be written when the present list appeared. Their gateways
    /// end them within a minute; of a gateway that was killed they stay.
    pub open_to_others: Vec<LaneOpenToOthers>,
    /// Lanes that some present recipient cannot open.
    pub behind: Vec<LaneBehind>,
    /// Registrations and wraps that are not believed.
    pub refused: Vec<Refused>,
}

/// A new signing key, wrapped.
pub(super) fn new_signer(recipients: &[Recipient]) -> Result<Signer, VaultError> {
    let key = SigningKey::generate()?;
    Ok(Signer { public: key.verifying_key(), wrapped_seed: keys::wrap(recipients, key.expose())? })
}

/// The newest catalog key that the lists bring for an identity: a staged one before the present one.
pub(super) fn catalog_key_of(lists: &Lists, identity: &Identity) -> Result<CatalogKey, VaultError> {
    let mut newest_failure = None;
    for list in lists.all().rev() {
        let staged = list.next.as_ref().map(|next| (&next.wrapped_key, next.kid));
        let own = list.wrapped_catalog_key.as_ref().map(|text| (text, list.catalog_kid));
        for (text, kid) in staged.into_iter().chain(own) {
            match keys::unwrap(identity, text) {
                Ok(secret) => {
                    let key = CatalogKey::from_secret(*secret);
                    if key.kid() == kid {
                        return Ok(key);
                    }
                }
                Err(source) => {
                    let object = names::recipients_list(list.n).to_string();
                    newest_failure.get_or_insert(VaultError::Unwrap { object, source });
                }
            }
        }
    }
    Err(newest_failure.unwrap_or(VaultError::KeyNeeded))
}

impl Vault {
    /// All lists of recipients: one listing, and one small read for each that is new to this process.
    ///
    /// # Errors
    /// A failed request; a list that a newer release made and the present key signed. Any other object that is no list of this vault is told in
    /// [`Lists::refused`] instead.
    pub async fn lists(&self) -> Result<Lists, VaultError> {
        let (mut lists, began) = self.judged.lock().begin();
        if self.head().signer.is_none() {
            self.judged.lock().take(self, &lists, began);
            return Ok(lists);
        }
        lists.judge_refused_again();
        let listed = self.store().list(Some(&names::recipients())).await?;
        let appeared = numbered(&listed, names::recipients_list);
        let fresh = (lists.next_n..=limits::RECIPIENT_LISTS_MAX).map_while(|n| Some((n, *appeared.get(&n)?)));
        let fresh: Vec<(u64, i64)> = fresh.collect();
        let read = |(n, at): (u64, i64)| async move { (n, at, self.read(&names::recipients_list(n)).await) };
        let mut reads = stream::iter(fresh).map(read).buffered(READS);
        while let Some((n, at, found)) = reads.next().await {
            match found? {
                Ok(Some(bytes)) => lists.judge(self, n, at, &bytes)?,
                Ok(None) => break,
                Err(reason) => lists.refused.push(Refused::new(&names::recipients_list(n), reason)),
            }
            lists.next_n = n + 1;
        }
        self.judged.lock().take(self, &lists, began);
        Ok(lists)
    }

    /// Names the recipients from now on, on behalf of one who was and stays one of them; `basis` is what was decided on. Nothing is
    /// taken from those before: what they can open, they can open for ever. Lanes that are opened later are wrapped to the new
    /// ones alone; for older lanes see [`Vault::rewrap`]. Returns the lists as they are then, read back.
    ///
    /// # Errors
    /// Before anything is written: [`VaultError::Unwrap`] if the identity is not of a present recipient, [`VaultError::Unproven`]
    /// if it would be none then, [`VaultError::ListTaken`] if another list counts than the caller decided on,
    /// [`VaultError::RecipientsFixed`] of old vaults, and others of [`VaultError::is_unwritten`]. After any other error the list may count.
    pub async fn change_recipients(
        &self,
        identity: &Identity,
        basis: &Lists,
        recipients: &[Recipient],
        now: Micros,
    ) -> Result<Lists, VaultError> {
        check_recipients(recipients)?;
        if !recipients.contains(&identity.recipient()) {
            return Err(VaultError::Unproven { given: identity.recipient().to_string() });
        }
        let present = basis.present();
        let next = match &present.next {
            Some(next) => Some(NextCatalogKey {
                wrapped_key: keys::wrap(recipients, self.open_staged(present, identity)?.expose())?,
                ..next.clone()
            }),
            None => None,
        };
        let key = self.key_named(present.catalog_kid)?;
        self.put_list(identity, basis, (recipients, key, next), now).await
    }

    /// Writes the list that comes after `basis`: its recipients, its catalog key, and the one that it stages. Returns the lists as they are
    /// then, read back.
    pub(super) async fn put_list(
        &self,
        identity: &Identity,
        basis: &Lists,
        (recipients, key, next): (&[Recipient], CatalogKey, Option<NextCatalogKey>),
        now: Micros,
    ) -> Result<Lists, VaultError> {
        let lists = self.lists().await?;
        let before = lists.present();
        if before != basis.present() {
            return Err(VaultError::ListTaken { n: before.n });
        }
        let n = lists.next_n;
        if n > limits::RECIPIENT_LISTS_MAX {
            return Err(VaultError::TooManyLists { place: self.place() });
        }
        let (signer, path) = (self.open_signer(before, identity)?, names::recipients_list(n));
        let content = RecipientsObject {
            n,
            made_micros: now,
            recipients: recipients.to_vec(),
            catalog_kid: key.kid(),
            wrapped_catalog_key: keys::wrap(recipients, key.expose())?,
            catalog_key_since: if key.kid() == before.catalog_kid { before.key_since } else { Some(n) },
            next_catalog_key: next,
            signer: new_signer(recipients)?,
        };
        match self.put_object(&path, &Signed::new(&signer, self.id(), &path, &content)?).await {
            Err(VaultError::Taken { .. }) => return Err(VaultError::ListTaken { n }),
            written => written?,
        };
        // What stands there now decides, not what was meant to be there.
        let lists = self.lists().await?;
        let present = lists.present();
        if present.n < n || (present.n == n && !self.opens_list(present, identity)) {
            return Err(VaultError::NotAsWritten { object: path.to_string(), place: self.place() });
        }
        Ok(lists)
    }

    /// The key that a list stages.
    pub(super) fn open_staged(&self, list: &RecipientList, identity: &Identity) -> Result<CatalogKey, VaultError> {
        let (object, place) = (names::recipients_list(list.n).to_string(), self.place());
        let Some(next) = &list.next else { return Err(VaultError::NothingStaged { place }) };
        let secret = keys::unwrap(identity, &next.wrapped_key)
            .map_err(|source| VaultError::Unwrap { object: object.clone(), source })?;
        let key = CatalogKey::from_secret(*secret);
        let older = next.sealed_older_key.open(self.id(), list.catalog_kid, &key);
        if key.kid() == next.kid && older.is_ok() { Ok(key) } else { Err(VaultError::NotAsWritten { object, place }) }
    }

    fn place(&self) -> String {
        self.store().shown().to_owned()
    }

    /// Whether an identity opens all keys that a list brings.
    #[must_use]
    pub fn opens_list(&self, list: &RecipientList, identity: &Identity) -> bool {
        let catalog = list.wrapped_catalog_key.as_deref().and_then(|text| keys::unwrap(identity, text).ok());
        catalog.is_some_and(|secret| CatalogKey::from_secret(*secret).kid() == list.catalog_kid)
            && (list.next.is_none() || self.open_staged(list, identity).is_ok())
            && self.open_signer(list, identity).is_ok()
    }

    /// The signing key of a list.
    fn open_signer(&self, list: &RecipientList, identity: &Identity) -> Result<SigningKey, VaultError> {
        let path = if list.n == 0 { names::vault() } else { names::recipients_list(list.n) };
        let object = path.to_string();
        let Some(signer) = &list.signer else { return Err(VaultError::RecipientsFixed { place: self.place() }) };
        let seed = keys::unwrap(identity, &signer.wrapped_seed)
            .map_err(|source| VaultError::Unwrap { object: object.clone(), source })?;
        let key = SigningKey::from_seed(seed);
        if key.verifying_key() == signer.public {
            return Ok(key);
        }
        Err(VaultError::NotAsWritten { object, place: self.place() })
    }

    /// Which lanes name the present recipients among those they are wrapped to: one read for each lane and each wrap made anew.
    ///
    /// # Errors
    /// A failed request, or no catalog key.
    pub async fn wraps(&self, lists: &Lists) -> Result<Wraps, VaultError> {
        let mut anew: BTreeMap<Id128, Vec<Listed>> = BTreeMap::new();
        for listed in self.store().list(Some(&names::all_rewraps())).await? {
            if let Some(lane) = names::lane_of_rewrap(&listed.path) {
                anew.entry(lane).or_default().push(listed);
            }
        }
        let listed = self.store().list(Some(&names::lanes())).await?;
        let appeared: BTreeMap<&Path, i64> = listed.iter().map(|one| (&one.path, one.modified_micros)).collect();
        let look = |lane: ListedLane| {
            let anew = anew.get(&lane.lane).map(|all| dense(all, lane.lane)).unwrap_or_default();
            let appeared_micros = appeared.get(&names::lane(lane.lane)).copied().unwrap_or(0);
            async move { self.wraps_of(lists, lane, appeared_micros, anew).await }
        };
        let lanes: Vec<ListedLane> = lane::group(&listed).into_iter().filter(|one| one.registered).collect();
        let mut looks = stream::iter(lanes).map(look).buffered(READS);
        let mut wraps = Wraps::default();
        while let Some(looked) = looks.next().await {
            let Wraps { lanes, open_to_others, behind, refused } = looked?;
            wraps.lanes += lanes;
            wraps.open_to_others.extend(open_to_others);
            wraps.behind.extend(behind);
            wraps.refused.extend(refused);
        }
        Ok(wraps)
    }

    /// The same for one lane, of which wraps up to number `anew` stand there.
    async fn wraps_of(
        &self,
        lists: &Lists,
        listed: ListedLane,
        appeared_micros: i64,
        anew: u64,
    ) -> Result<Wraps, VaultError> {
        let (lane, path, present) = (listed.lane, names::lane(listed.lane), lists.present());
        let mut found = Wraps::default();
        let object = match believable(self.get_object::<LaneObject>(&path).await)? {
            Ok(Some(object)) => object,
            Ok(None) => return Ok(found),
            Err(reason) => {
                found.refused.push(Refused::new(&path, reason));
                return Ok(found);
            }
        };
        found.lanes = 1;
        if let Some(gone) = object.list.filter(|list| *list > present.n) {
            found
                .refused
                .push(Refused::new(&names::recipients_list(gone), format!("it is gone, and {path} was wrapped to it")));
        }
        if !listed.ended && listed.sealed.is_none() {
            found.open_to_others.extend(open_to_others(present, &object, appeared_micros));
        }
        let mut wraps = Vec::new();
        for n in 1..=anew {
            match self.rewrap_of(lists, &object, n).await? {
                Ok(one) => wraps.extend(one.map(|one| one.wrapped_key)),
                Err(refused) => found.refused.push(refused),
            }
        }
        let all = std::iter::once(&object.wrapped_key).chain(&wraps);
        let named: BTreeSet<String> = all.flat_map(|text| keys::wrapped_to(text)).collect();
        let missing: Vec<Recipient> =
            present.recipients.iter().filter(|one| !named.contains(&one.to_string())).cloned().collect();
        if !missing.is_empty() {
            found.behind.push(LaneBehind { lane, missing, object, wraps, next_n: anew + 1 });
        }
        Ok(found)
    }

    /// Wraps a lane's key anew, to all present recipients; what was written is read back and opened.
    ///
    /// # Errors
    /// [`VaultError::Unwrap`] if the identity opens no wrap of the lane, or is not of a present recipient; [`VaultError::ListTaken`]
    /// if the recipients have changed since; [`VaultError::Taken`] if something else was written there meanwhile; a failed request.
    pub async fn rewrap(
        &self,
        identity: &Identity,
        lists: &Lists,
        behind: &LaneBehind,
        now: Micros,
    ) -> Result<(), VaultError> {
        let now_present = self.lists().await?;
        let (present, lane) = (lists.present(), behind.lane);
        if now_present.present() != present {
            return Err(VaultError::ListTaken { n: now_present.present().n });
        }
        let key = self.open_signer(present, identity)?;
        let secret = open_any(behind, identity)?;
        let path = names::rewrap(lane, behind.next_n);
        let wrapped_key = keys::wrap(&present.recipients, &secret)?;
        let content = RewrapObject { lane, n: behind.next_n, list: present.n, made_micros: now, wrapped_key };
        self.put_object(&path, &Signed::new(&key, self.id(), &path, &content)?).await?;
        let again = self.rewrap_of(lists, &behind.object, behind.next_n).await?.ok().flatten();
        let again = again.and_then(|one| keys::unwrap(identity, &one.wrapped_key).ok());
        if again.is_some_and(|again| again == secret) {
            return Ok(());
        }
        Err(VaultError::NotAsWritten { object: path.to_string(), place: self.place() })
    }

    /// A wrap made anew that is believed; `None` if there is none.
    async fn rewrap_of(
        &self,
        lists: &Lists,
        lane: &LaneObject,
        n: u64,
    ) -> Result<Result<Option<RewrapObject>, Refused>, VaultError> {
        let path = names::rewrap(lane.lane, n);
        let bytes = match self.read(&path).await? {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(Ok(None)),
            Err(reason) => return Ok(Err(Refused::new(&path, reason))),
        };
        let after = lane.list.unwrap_or(0);
        for list in lists.all().filter(|list| list.n > after) {
            let Some(signer) = &list.signer else { continue };
            let opened = Signed::<RewrapObject>::open(None, &signer.public, self.id(), &path, &bytes);
            let Ok(found) = opened else { continue };
            let on_the_list = texts(&list.recipients);
            let fits = (found.lane, found.n, found.list) == (lane.lane, n, list.n)
                && keys::wrapped_to(&found.wrapped_key).iter().all(|one| on_the_list.contains(one));
            if fits {
                return Ok(Ok(Some(found)));
            }
        }
        Ok(Err(Refused::new(
            &path,
            "no list of recipients that came after the lane signed it for this lane and its own",
        )))
    }

    /// Where this vault's reader came after the lane was opened, puts the wrap that was made for it in the place of the gateway's.
    pub(super) async fn take_rewrap(&self, object: &mut LaneObject) -> Result<(), VaultError> {
        let Some(reader) = self.reader.as_ref().filter(|_| self.head().signer.is_some()) else { return Ok(()) };
        let names_reader = |text: &str| keys::wrapped_to(text).contains(&reader.recipient);
        if names_reader(&object.wrapped_key) {
            return Ok(());
        }
        let lists = self.lists().await?;
        let listed = self.store().list(Some(&names::rewraps(object.lane))).await?;
        for n in 1..=dense(&listed, object.lane) {
            match self.rewrap_of(&lists, object, n).await? {
                Ok(Some(found)) if names_reader(&found.wrapped_key) => {
                    object.wrapped_key = found.wrapped_key;
                    return Ok(());
                }
                Ok(_) => {}
                Err(refused) => tracing::warn!("{refused}"),
            }
        }
        Ok(())
    }

    /// The bytes of a small object, or why there are none to be believed.
    async fn read(&self, path: &Path) -> Result<Result<Option<Bytes>, String>, VaultError> {
        believable(self.store().get(path, limits::CONTROL_OBJECT_BYTES_MAX).await.map_err(VaultError::from))
    }
}

/// Objects by their number, with when they appeared; names that no writer would have written are left out.
fn numbered(listed: &[Listed], name: impl Fn(u64) -> Path) -> BTreeMap<u64, i64> {
    let number = |one: &Listed| names::number(&one.path).filter(|n| name(*n) == one.path);
    listed.iter().filter_map(|one| Some((number(one)?, one.modified_micros))).collect()
}

/// The number up to which every wrap of a lane made anew is there: what stands behind a gap was not written by who wraps.
fn dense(listed: &[Listed], lane: Id128) -> u64 {
    let numbers = numbered(listed, |n| names::rewrap(lane, n));
    (1..=limits::REWRAPS_MAX).take_while(|n| numbers.contains_key(n)).last().unwrap_or(0)
}

/// What was read, or why it is not to be believed.
fn believable<T>(found: Result<T, VaultError>) -> Result<Result<T, String>, VaultError> {
    match found {
        Ok(found) => Ok(Ok(found)),
        Err(error) if error.fault() == Fault::Corrupt => Ok(Err(chain_text(&error))),
        Err(error) => Err(error),
    }
}

fn texts(recipients: &[Recipient]) -> Vec<String> {
    recipients.iter().map(ToString::to_string).collect()
}

/// A lane that was young enough to be written when the list appeared, if others than those on the list can open it.
fn open_to_others(present: &RecipientList, lane: &LaneObject, appeared_micros: i64) -> Option<LaneOpenToOthers> {
    let age_micros = (limits::LANE_AGE_SECONDS_MAX * 1_000_000) as i64;
    let on_the_list = texts(&present.recipients);
    let named = keys::wrapped_to(&lane.wrapped_key);
    let others: Vec<String> = named.into_iter().filter(|one| !on_the_list.contains(one)).collect();
    // Twice its age, as a gateway ends a lane only when the store has taken what was queued for it.
    let is_open = !others.is_empty() && appeared_micros.saturating_add(2 * age_micros) >= present.appeared_micros;
    let is_late = appeared_micros > present.appeared_micros;
    let (lane, gateway, created) = (lane.lane, lane.gateway.clone(), lane.created_micros);
    is_open.then_some(LaneOpenToOthers { lane, gateway, created, others, is_late })
}

fn check_recipients(recipients: &[Recipient]) -> Result<(), VaultError> {
    if recipients.is_empty() {
        return Err(VaultError::NoRecipient);
    }
    if recipients.len() > limits::RECIPIENTS_MAX {
        return Err(VaultError::TooManyRecipients { given: recipients.len() });
    }
    Ok(())
}

/// Opens the first of several wraps of a lane's key that an identity opens.
fn open_any(behind: &LaneBehind, identity: &Identity) -> Result<Zeroizing<[u8; SECRET_BYTES]>, VaultError> {
    let mut failure = None;
    for text in std::iter::once(&behind.object.wrapped_key).chain(&behind.wraps) {
        match keys::unwrap(identity, text) {
            Ok(secret) => return Ok(secret),
            Err(source) => {
                failure.get_or_insert(VaultError::Unwrap { object: names::lane(behind.lane).to_string(), source });
            }
        }
    }
    Err(failure.unwrap_or(VaultError::NoWrap { object: names::lane(behind.lane).to_string() }))
}

#[cfg(test)]
mod tests;
