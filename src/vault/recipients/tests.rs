use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::flow::{Clock, SystemClock};
use crate::vault::lane::Lane;
use crate::vault::objects::VaultObject;
use crate::vault::store::VaultStore;
use crate::vault::testing::{Fate, FaultStore, vault_in};
use crate::vault::{InitOptions, objects, url};

fn now() -> Micros {
    SystemClock::new().wall()
}

async fn lane(vault: &Vault) -> Lane {
    Lane::open(vault, "gw-1", &SystemClock::new()).await.expect("opened")
}

async fn change(vault: &Vault, by: &Identity, to: &[&Identity]) -> Result<Lists, VaultError> {
    let recipients: Vec<Recipient> = to.iter().map(|one| one.recipient()).collect();
    vault.change_recipients(by, &vault.lists().await?, &recipients, now()).await
}

async fn add(vault: &Vault, by: &Identity, new: &Identity) -> Lists {
    let basis = vault.lists().await.expect("read");
    let recipients = [basis.present().recipients.clone(), vec![new.recipient()]].concat();
    vault.change_recipients(by, &basis, &recipients, now()).await.expect("changed")
}

async fn rewrap_all(vault: &Vault, by: &Identity) -> usize {
    let lists = vault.lists().await.expect("read");
    let wraps = vault.wraps(&lists).await.expect("read");
    for behind in &wraps.behind {
        vault.rewrap(by, &lists, behind, now()).await.expect("wrapped anew");
    }
    wraps.behind.len()
}

/// Whether an identity alone, with nothing but the store, has a lane's key.
async fn opens(store: &VaultStore, identity: &Identity, lane: &Lane) -> Result<(), VaultError> {
    let vault = Vault::open_with_identity(store.clone(), identity).await?;
    let key = vault.open_lane_key(&vault.lane(lane.id()).await?, identity)?;
    assert_eq!(key.expose(), lane.key().expose());
    Ok(())
}

async fn put(store: &VaultStore, path: &Path, bytes: Vec<u8>) {
    store.put_new(path, bytes.into(), Duration::from_secs(5)).await.expect("stored");
}

#[tokio::test]
async fn somebody_who_was_added_opens_old_lanes_and_new_ones_and_somebody_who_was_removed_only_old_ones() {
    let folder = tempfile::tempdir().expect("temp dir");
    let store = url::create_store(&format!("file://{}/vault", folder.path().display())).await.expect("created");
    let (vault, key, one) = vault_in(store.clone()).await;
    let (two, stranger) = (Identity::generate(), Identity::generate());
    let first = lane(&vault).await;
    assert_eq!((first.list(), vault.lists().await.expect("read").present().n), (0, 0));

    let lists = add(&vault, &one, &two).await;
    assert_eq!((lists.present().n, lists.present().recipients.len(), lists.all().count()), (1, 2, 2));
    let between = lane(&vault).await;
    assert_eq!(between.list(), 1);
    opens(&store, &two, &between).await.expect("wrapped to both by the gateway");
    let early = opens(&store, &two, &first).await.expect_err("not wrapped anew yet");
    assert!(early.to_string().contains("tidegate vault rewrap"), "{early}");
    assert_eq!(early.fault(), Fault::Reject);

    assert_eq!(rewrap_all(&vault, &one).await, 1, "the lane from before");
    assert_eq!(rewrap_all(&vault, &one).await, 0, "asked again, nothing is left");
    opens(&store, &two, &first).await.expect("wrapped anew");

    // The new one takes the old one off the list.
    let lists = change(&vault, &two, &[&two]).await.expect("removed");
    assert_eq!((lists.present().n, lists.present().recipients.clone()), (2, vec![two.recipient()]));
    let shown = vault.wraps(&lists).await.expect("read").open_to_others;
    let gone = one.recipient().to_string();
    assert!(shown.iter().all(|lane| lane.gateway == "gw-1" && lane.others == [gone.clone()]), "{shown:?}");
    assert_eq!(shown.len(), 2, "both lanes may still be written");
    first.end(&vault, 0).await.expect("ended");
    assert_eq!(vault.wraps(&lists).await.expect("read").open_to_others.len(), 1);
    let last = lane(&vault).await;
    for old in [&first, &between] {
        opens(&store, &one, old).await.expect("what was open to them stays open");
        opens(&store, &two, old).await.expect("to the other as well");
    }
    opens(&store, &two, &last).await.expect("new data");
    let closed = opens(&store, &one, &last).await.expect_err("no recipient any more");
    assert!(matches!(closed, VaultError::NotRewrapped { .. }), "{closed}");
    assert!(matches!(opens(&store, &stranger, &last).await, Err(VaultError::Unwrap { .. })));
    // Gateways go on with the same catalog key.
    let gateway = Vault::open(store, key).await.expect("opened");
    assert_eq!(gateway.lists().await.expect("read"), lists);
}

#[tokio::test]
async fn somebody_who_comes_back_opens_what_was_written_meanwhile() {
    let store = FaultStore::new().place();
    let (vault, _, one) = vault_in(store.clone()).await;
    let two = Identity::generate();
    add(&vault, &one, &two).await;
    change(&vault, &two, &[&two]).await.expect("removed");
    let meanwhile = lane(&vault).await;
    assert!(opens(&store, &one, &meanwhile).await.is_err());
    add(&vault, &two, &one).await;
    assert_eq!(rewrap_all(&vault, &two).await, 1);
    opens(&store, &one, &meanwhile).await.expect("wrapped anew");
}

#[tokio::test]
async fn only_the_identity_of_a_present_recipient_changes_the_list() {
    let store = FaultStore::new().place();
    let (vault, _, one) = vault_in(store.clone()).await;
    let (two, stranger) = (Identity::generate(), Identity::generate());
    let refused = change(&vault, &stranger, &[&stranger]).await.expect_err("a stranger");
    assert!(matches!(refused, VaultError::Unwrap { .. }) && refused.fault() == Fault::Reject, "{refused}");
    assert!(matches!(change(&vault, &one, &[]).await, Err(VaultError::NoRecipient)));
    let many = change(&vault, &one, &[&two; limits::RECIPIENTS_MAX + 1]).await;
    assert!(matches!(many, Err(VaultError::TooManyRecipients { .. })));
    add(&vault, &one, &two).await;
    let unproven = change(&vault, &one, &[&two]).await;
    assert!(matches!(unproven, Err(VaultError::Unproven { .. })), "whoever stays has to show that they can");
    change(&vault, &two, &[&two]).await.expect("handed over");
    let refused = change(&vault, &one, &[&one]).await.expect_err("no recipient any more");
    assert!(matches!(refused, VaultError::Unwrap { .. }), "{refused}");
    assert_eq!(vault.lists().await.expect("read").present().n, 2, "nothing was written");
}

/// A list that names `thief`, as somebody with the catalog key and a signing key would make it.
fn forged_list(vault: &Vault, n: u64, signer: &SigningKey, thief: &Identity) -> Vec<u8> {
    let key = vault.need_key().expect("at hand");
    let path = names::recipients_list(n);
    let content = RecipientsObject {
        n,
        made_micros: now(),
        recipients: vec![thief.recipient()],
        catalog_kid: key.kid(),
        wrapped_catalog_key: keys::wrap(&[thief.recipient()], key.expose()).expect("wrapped"),
        catalog_key_since: None,
        next_catalog_key: None,
        signer: new_signer(&[thief.recipient()]).expect("made"),
    };
    let object = Signed::new(signer, vault.id(), &path, &content).expect("signed");
    objects::encode(key, &path, &object).expect("encodes")
}

/// As another process sees them, that has judged nothing yet.
async fn afresh(vault: &Vault) -> Lists {
    let key = vault.need_key().expect("at hand").clone();
    Vault::open(vault.store().clone(), key).await.expect("opened").lists().await.expect("read")
}

/// Who has everything that a gateway has makes lists that authenticate, and none that counts.
#[tokio::test]
async fn a_list_made_with_the_catalog_key_alone_or_by_somebody_removed_does_not_count_and_blocks_nobody() {
    let store = FaultStore::new().place();
    let (vault, _, one) = vault_in(store.clone()).await;
    let (two, thief) = (Identity::generate(), Identity::generate());
    let stray = SigningKey::generate().expect("random");
    put(&store, &names::recipients_list(1), forged_list(&vault, 1, &stray, &thief)).await;
    put(&store, &names::recipients_list(2), b"noise".to_vec()).await;
    // Whoever says to be newer than this release is not believed either.
    let newer = b"{\"format\":\"tidegate-recipients\",\"version\":3,\"signed\":\"\",\"signature\":\"\"}\n".to_vec();
    put(&store, &names::recipients_list(3), newer).await;
    let lists = vault.lists().await.expect("read");
    assert_eq!((lists.present().n, lists.refused.len()), (0, 3), "{:?}", lists.refused);
    assert!(lists.refused[0].to_string().contains("not signed"), "{}", lists.refused[0]);
    let opened = lane(&vault).await;
    assert!(opens(&store, &thief, &opened).await.is_err());
    opens(&store, &one, &opened).await.expect("as before");

    // The next real list takes the next free number.
    let lists = add(&vault, &one, &two).await;
    assert_eq!((lists.present().n, lists.refused.len()), (4, 3));
    // Whoever was removed knows the key that signed the list that removed them, and no later one.
    let old = vault.open_signer(lists.present(), &two).expect("a present recipient");
    change(&vault, &one, &[&one]).await.expect("two is removed");
    put(&store, &names::recipients_list(6), forged_list(&vault, 6, &old, &two)).await;
    // Nor does a list count in another place.
    let moved = store.get(&names::recipients_list(5), 1 << 20).await.expect("read").expect("there");
    put(&store, &names::recipients_list(7), moved.to_vec()).await;
    for lists in [vault.lists().await.expect("read"), afresh(&vault).await] {
        assert_eq!((lists.present().n, lists.present().recipients.clone()), (5, vec![one.recipient()]));
    }
}

#[tokio::test]
async fn nothing_slips_in_before_a_list_that_counts_whatever_numbers_were_taken_before() {
    let store = FaultStore::new().place();
    let (vault, _, one) = vault_in(store.clone()).await;
    let two = Identity::generate();
    let lists = add(&vault, &one, &two).await;
    let key = vault.open_signer(lists.present(), &two).expect("a present recipient");
    // What two leaves behind before it is removed: gaps to come back through, and numbers at their ends.
    for n in [40, 100, 99_999_999] {
        put(&store, &names::recipients_list(n), b"noise".to_vec()).await;
    }
    for name in ["recipients/18446744073709551615", "recipients/2", "recipients/00000000", "recipients/x"] {
        put(&store, &Path::from(name), b"noise".to_vec()).await;
    }
    let lists = change(&vault, &one, &[&one]).await.expect("two is removed");
    assert_eq!((lists.present().n, lists.refused.len()), (2, 0), "{:?}", lists.refused);
    for n in [3, 39, 41] {
        put(&store, &names::recipients_list(n), forged_list(&vault, n, &key, &two)).await;
    }
    for lists in [vault.lists().await.expect("read"), afresh(&vault).await] {
        assert_eq!((lists.present().n, lists.present().recipients.clone()), (2, vec![one.recipient()]));
    }
    // What was judged stays judged, also if it is gone: a removed recipient is not let in again by a deletion.
    store.delete(&names::recipients_list(2)).await.expect("deleted");
    assert_eq!(vault.lists().await.expect("read").present().n, 2);
}

#[tokio::test]
async fn a_change_is_written_on_the_list_that_was_decided_on_or_not_at_all() {
    let store = FaultStore::new().place();
    let (vault, _, one) = vault_in(store.clone()).await;
    let (two, three) = (Identity::generate(), Identity::generate());
    let basis = add(&vault, &one, &two).await;
    // Somebody waits at a prompt; meanwhile two is removed.
    change(&vault, &one, &[&one]).await.expect("two is removed");
    let all = [one.recipient(), two.recipient(), three.recipient()];
    let late = vault.change_recipients(&one, &basis, &all, now()).await.expect_err("decided on an old list");
    assert!(matches!(late, VaultError::ListTaken { n: 2 }) && late.is_unwritten(), "{late}");
    // Nor are lane keys wrapped on to somebody who was removed meanwhile.
    let opened = lane(&vault).await;
    let basis = add(&vault, &one, &three).await;
    let behind = vault.wraps(&basis).await.expect("read").behind;
    assert_eq!(behind.len(), 1);
    change(&vault, &one, &[&one]).await.expect("three is removed");
    let late = vault.rewrap(&one, &basis, &behind[0], now()).await.expect_err("not to three any more");
    assert!(matches!(late, VaultError::ListTaken { .. }), "{late}");
    assert!(opens(&store, &three, &opened).await.is_err());
}

/// A wrap of a random key, as somebody with the catalog key and a signing key would make it.
fn forged_wrap(vault: &Vault, opened: &Lane, n: u64, list: u64, signer: &SigningKey, to: &[&Identity]) -> Vec<u8> {
    let path = names::rewrap(opened.id(), n);
    let recipients: Vec<Recipient> = to.iter().map(|one| one.recipient()).collect();
    let wrapped_key = keys::wrap(&recipients, &[9; 32]).expect("wrapped");
    let content = RewrapObject { lane: opened.id(), n, list, made_micros: now(), wrapped_key };
    let object = Signed::new(signer, vault.id(), &path, &content).expect("signed");
    objects::encode(vault.need_key().expect("at hand"), &path, &object).expect("encodes")
}

#[tokio::test]
async fn a_wrap_that_no_recipient_or_a_past_one_signed_is_told_and_stepped_over() {
    let store = FaultStore::new().place();
    let (vault, _, one) = vault_in(store.clone()).await;
    let (two, three) = (Identity::generate(), Identity::generate());
    let first = lane(&vault).await;
    let lists = add(&vault, &one, &two).await;
    let past = vault.open_signer(lists.present(), &two).expect("a present recipient");
    change(&vault, &one, &[&one]).await.expect("two is removed");
    let between = lane(&vault).await;
    let stray = SigningKey::generate().expect("random");
    put(&store, &names::rewrap(first.id(), 1), forged_wrap(&vault, &first, 1, 1, &stray, &[&three])).await;
    // Two names somebody who came later, and a lane that was opened later.
    put(&store, &names::rewrap(first.id(), 2), forged_wrap(&vault, &first, 2, 1, &past, &[&one, &three])).await;
    put(&store, &names::rewrap(between.id(), 1), forged_wrap(&vault, &between, 1, 1, &past, &[&one, &two])).await;
    put(&store, &names::rewrap(first.id(), 99), b"noise".to_vec()).await;
    let lists = add(&vault, &one, &three).await;
    let wraps = vault.wraps(&lists).await.expect("read");
    assert_eq!((wraps.lanes, wraps.behind.len(), wraps.refused.len()), (2, 2, 3), "{:?}", wraps.refused);
    assert!(matches!(opens(&store, &three, &first).await, Err(VaultError::NotRewrapped { .. })));
    assert_eq!(rewrap_all(&vault, &one).await, 2);
    for opened in [&first, &between] {
        opens(&store, &three, opened).await.expect("the right one is found behind the forged one");
        opens(&store, &one, opened).await.expect("as ever");
    }
    assert!(opens(&store, &two, &between).await.is_err());
}

#[tokio::test]
async fn a_list_that_is_gone_is_told_by_the_lanes_that_were_wrapped_to_it() {
    let store = FaultStore::new().place();
    let (vault, key, one) = vault_in(store.clone()).await;
    add(&vault, &one, &Identity::generate()).await;
    lane(&vault).await;
    store.delete(&names::recipients_list(1)).await.expect("deleted");
    let again = Vault::open(store, key).await.expect("opened");
    let lists = again.lists().await.expect("read");
    assert_eq!(lists.present().n, 0);
    let refused = again.wraps(&lists).await.expect("read").refused;
    assert!(
        refused.iter().any(|one| one.object == "recipients/00000001" && one.reason.contains("gone")),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_vault_that_was_flooded_takes_no_more_changes_and_opens_lanes_as_ever() {
    let store = FaultStore::new().place();
    let (vault, _, one) = vault_in(store.clone()).await;
    for n in 1..=limits::RECIPIENT_LISTS_MAX + 3 {
        put(&store, &names::recipients_list(n), Vec::new()).await;
    }
    opens(&store, &one, &lane(&vault).await).await.expect("as ever");
    let full = change(&vault, &one, &[&one]).await.expect_err("no number is left");
    assert!(matches!(full, VaultError::TooManyLists { .. }) && full.is_unwritten(), "{full}");
}

/// Killed after any of its requests, a change leaves a vault that opens for all who could open it; asked again, it ends.
#[tokio::test]
async fn a_change_that_was_cut_off_anywhere_locks_nobody_out_and_is_finished_by_asking_again() {
    for cut in 0..4 {
        let faults = FaultStore::new();
        let store = faults.place();
        let (vault, _, one) = vault_in(store.clone()).await;
        let (two, lanes) = (Identity::generate(), [lane(&vault).await, lane(&vault).await]);
        let mut puts = 0;
        faults.plan(move |operation, _| {
            puts += usize::from(operation == "put");
            // From then on the store refuses for good, as it does for one whose right was taken.
            if operation == "put" && puts > cut { Fate::Status(403) } else { Fate::Good }
        });
        let all = async {
            let lists = change(&vault, &one, &[&one, &two]).await?;
            for behind in &vault.wraps(&lists).await?.behind {
                vault.rewrap(&one, &lists, behind, now()).await?;
            }
            Ok::<(), VaultError>(())
        };
        assert_eq!(all.await.is_ok(), cut >= 3, "a list and two wraps are three writes");
        faults.plan(|_, _| Fate::Good);
        for lane in &lanes {
            opens(&store, &one, lane).await.expect("whatever was left undone");
        }
        if cut == 0 {
            add(&vault, &one, &two).await;
        }
        rewrap_all(&vault, &one).await;
        for lane in &lanes {
            opens(&store, &two, lane).await.expect("all is done");
        }
    }
}

#[tokio::test]
async fn an_answer_that_was_lost_is_no_second_list_and_of_two_who_change_at_once_one_is_told() {
    let faults = FaultStore::new();
    let (vault, _, one) = vault_in(faults.place()).await;
    let mut lost = false;
    faults.plan(
        move |operation, _| {
            if operation == "put" && !std::mem::replace(&mut lost, true) { Fate::AnswerLost } else { Fate::Good }
        },
    );
    let two = Identity::generate();
    let lists = add(&vault, &one, &two).await;
    assert_eq!((lists.present().n, lists.refused.len()), (1, 0));
    faults.plan(|_, _| Fate::Good);
    // Two have decided on the same list, and read it again, before either writes.
    let basis = vault.lists().await.expect("read");
    let other = Vault::open(faults.place(), vault.need_key().expect("at hand").clone()).await.expect("opened");
    let path = names::recipients_list(2);
    let three = Identity::generate();
    let slower = forged_list(&other, 2, &other.open_signer(basis.present(), &two).expect("present"), &three);
    let mut waits = Some((faults.place(), slower, path.clone()));
    let ahead = move |operation: &'static str, at: &Path| match waits.take_if(|_| operation == "put" && *at == path) {
        // The other one's list arrives a moment before.
        Some((store, bytes, path)) => {
            tokio::spawn(async move { put(&store, &path, bytes).await });
            Fate::Slow(Duration::from_millis(200))
        }
        None => Fate::Good,
    };
    faults.plan(ahead);
    let told = vault.change_recipients(&one, &basis, &[one.recipient()], now()).await.expect_err("the slower one");
    assert!(matches!(told, VaultError::ListTaken { n: 2 }) && told.is_unwritten(), "{told}");
    let lists = vault.lists().await.expect("read");
    assert_eq!((lists.present().n, lists.present().recipients.clone()), (2, vec![three.recipient()]));
    assert_eq!(lists.refused.len(), 0, "{:?}", lists.refused);
}

#[tokio::test]
async fn a_list_that_stands_although_nothing_was_answered_any_more_is_not_called_unwritten() {
    let faults = FaultStore::new();
    let (vault, _, one) = vault_in(faults.place()).await;
    let mut applied = false;
    faults.plan(move |operation, _| {
        let after = applied;
        applied |= operation == "put";
        match (operation, after) {
            ("put", false) => Fate::AnswerLost,
            (_, true) => Fate::Status(403),
            _ => Fate::Good,
        }
    });
    let error = change(&vault, &one, &[&one, &Identity::generate()]).await.expect_err("no answer");
    assert!(!error.is_unwritten(), "{error}");
    faults.plan(|_, _| Fate::Good);
    assert_eq!(vault.lists().await.expect("read").present().n, 1, "it counts all the same");
}

#[tokio::test]
async fn a_vault_from_before_recipients_could_change_is_read_as_ever_and_says_so_when_asked_to_change() {
    let store = FaultStore::new().place();
    let one = Identity::generate();
    let key = CatalogKey::generate().expect("random");
    let head = VaultObject {
        id: Id128([1; 16]),
        created_micros: now(),
        recipients: vec![one.recipient()],
        catalog_kid: key.kid(),
        signer: None,
    };
    put(&store, &names::vault(), objects::encode(&key, &names::vault(), &head).expect("encodes")).await;
    let wrapped = keys::wrap(&head.recipients, key.expose()).expect("wrapped");
    put(&store, &names::key(&key.kid().to_string()), wrapped.into_bytes()).await;
    // Whatever stands under such a name in such a vault counts for nothing.
    put(&store, &names::recipients_list(1), b"noise".to_vec()).await;
    let vault = Vault::open(store.clone(), key).await.expect("opened");
    opens(&store, &one, &lane(&vault).await).await.expect("as ever");
    let error = change(&vault, &one, &[&one]).await.expect_err("for ever");
    assert!(matches!(error, VaultError::RecipientsFixed { .. }) && error.fault() == Fault::Reject, "{error}");
}

#[tokio::test]
async fn every_recipient_of_the_first_hour_changes_the_list_alone() {
    let store = FaultStore::new().place();
    let people: Vec<Identity> = (0..3).map(|_| Identity::generate()).collect();
    let recipients = people.iter().map(Identity::recipient).collect();
    let (vault, _) = Vault::init(store.clone(), &InitOptions { recipients, now: now() }).await.expect("made");
    let opened = Arc::new(lane(&vault).await);
    for one in &people {
        change(&vault, one, &people.iter().collect::<Vec<_>>()).await.expect("changed");
        opens(&store, one, &opened).await.expect("still");
    }
    assert_eq!(vault.lists().await.expect("read").present().n, 3);
}
