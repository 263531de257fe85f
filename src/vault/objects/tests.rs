use super::*;
use crate::keys::{Identity, Passphrase, SigningKey, wrap};
use crate::types::Digest;
use crate::vault::names;

fn key() -> CatalogKey {
    CatalogKey::from_secret([7; 32])
}

fn route() -> (Path, RouteObject) {
    let route = RouteObject { disk: DiskId::new("d1").expect("valid"), lane: Id128([0xab; 16]) };
    (names::route(&route.disk, route.lane), route)
}

#[test]
fn a_control_object_comes_back_and_always_has_the_same_bytes() {
    let (path, route) = route();
    let bytes = encode(&key(), &path, &route).expect("encodes");
    assert_eq!(bytes, encode(&key(), &path, &route).expect("encodes"));
    assert_eq!(decode::<RouteObject>(&key(), &path, &bytes).expect("authentic"), route);
}

#[test]
fn every_flipped_bit_a_cut_and_an_addition_are_noticed() {
    let (path, route) = route();
    let good = encode(&key(), &path, &route).expect("encodes");
    for bit in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(decode::<RouteObject>(&key(), &path, &bytes).is_err(), "bit {bit} went unnoticed");
    }
    for length in 0..good.len() {
        assert!(decode::<RouteObject>(&key(), &path, &good[..length]).is_err(), "cut at {length} went unnoticed");
    }
    assert!(decode::<RouteObject>(&key(), &path, &[&good[..], b"\n"].concat()).is_err());
}

#[test]
fn an_object_under_another_name_or_of_another_vault_is_not_believed() {
    let (path, route) = route();
    let bytes = encode(&key(), &path, &route).expect("encodes");
    let other = names::route(&DiskId::new("d2").expect("valid"), route.lane);
    let error = decode::<RouteObject>(&key(), &other, &bytes).expect_err("moved");
    assert!(error.to_string().contains(other.as_ref()), "{error}");
    assert_eq!(error.fault(), Fault::Corrupt);
    let foreign = CatalogKey::from_secret([8; 32]);
    assert!(matches!(decode::<RouteObject>(&foreign, &path, &bytes), Err(ObjectError::Mac { .. })));
}

#[test]
fn a_newer_version_and_another_format_are_named_as_such() {
    let (path, _) = route();
    let newer = b"{\"format\":\"tidegate-route\",\"version\":2,\"anything\":1}\nnot a mac of ours\n";
    let error = decode::<RouteObject>(&key(), &path, newer).expect_err("newer");
    assert!(matches!(error, ObjectError::Version { found: 2, newest: 1, .. }), "{error}");
    assert_eq!(error.fault(), Fault::Reject);
    let other = b"{\"format\":\"tidegate-lane\",\"version\":1}\n";
    assert!(matches!(decode::<RouteObject>(&key(), &path, other), Err(ObjectError::Format { .. })));
}

fn manifest(lane: Id128) -> ManifestObject {
    let run = |first, last, marked_micros| LetGoRun { first, last, marked_micros };
    ManifestObject {
        lane,
        n: 3,
        made_micros: 1_800_000_000_000_001,
        run: Id128([6; 16]),
        policies: Id128([8; 16]),
        newest_micros: 1_799_999_500_000_000,
        let_go: vec![run(1, 40, 0), run(44, 44, 1_799_999_000_000_000), run(46, 90, 1_800_000_000_000_001)],
    }
}

fn pin(disk: DiskId) -> PinObject {
    let until_micros = Micros(1_800_000_000_000_001);
    PinObject { pin: Id128([5; 16]), disk, epoch: Epoch(2), seq: Seq(4711), until_micros, reason: "restore".into() }
}

#[test]
fn a_manifest_tells_its_batches_and_is_sound_only_in_its_place_and_order() {
    let lane = Id128([0xab; 16]);
    let good = manifest(lane);
    assert!(good.is_sound(lane, 3) && !good.is_sound(lane, 4) && !good.is_sound(Id128([1; 16]), 3));
    let held: Vec<u64> = (1..=100).filter(|n| good.run_of(*n).is_none()).collect();
    assert_eq!(held, [41, 42, 43, 45, 91, 92, 93, 94, 95, 96, 97, 98, 99, 100]);
    let spoils: [fn(&mut ManifestObject); 3] =
        [|one| one.let_go.swap(0, 1), |one| one.let_go[0].first = 0, |one| one.let_go[1].last = 46];
    for spoil in spoils {
        let mut bad = good.clone();
        spoil(&mut bad);
        assert!(!bad.is_sound(lane, 3), "{bad:?}");
    }
}

/// One object of each kind, all fields filled.
fn samples(key: &CatalogKey, recipient: Recipient, wrapped_key: String) -> Vec<(Path, Vec<u8>)> {
    let (disk, lane) = (DiskId::new("web-1.sda").expect("valid"), Id128([0xab; 16]));
    let at = Micros(1_800_000_000_000_001);
    // As it was made before recipients could change: still read, and written alike without a signer.
    let vault = VaultObject {
        id: Id128([1; 16]),
        created_micros: at,
        recipients: vec![recipient.clone()],
        catalog_kid: key.kid(),
        signer: None,
    };
    let (list, wrap) = later(key, recipient, &wrapped_key);
    let opened = LaneObject {
        lane,
        gateway: "gw-1".into(),
        created_micros: at,
        catalog_kid: key.kid(),
        wrapped_key,
        list: None,
        moved: false,
    };
    let epoch = EpochObject {
        disk: disk.clone(),
        epoch: Epoch(2),
        previous: Some(Epoch(1)),
        fork_seq: Seq(4711),
        chain_at_fork: Chain([3; 32]),
        size_bytes: 2 << 30,
        agent: "web-1".into(),
        nonce: Id128([4; 16]),
        reason: "unclean-start".into(),
        gateway: "gw-1".into(),
        created_micros: at,
    };
    let described = DiskObject { disk: disk.clone(), size_bytes: 2 << 30, agent: "web-1".into(), created_micros: at };
    fn one<T: ControlObject>(key: &CatalogKey, path: Path, content: &T) -> (Path, Vec<u8>) {
        let bytes = encode(key, &path, content).expect("encodes");
        (path, bytes)
    }
    vec![
        one(key, names::vault(), &vault),
        one(key, names::lane(lane), &opened),
        one(key, names::lane_end(lane), &LaneEndObject { lane, last_batch: 86_400 }),
        one(key, names::lane_seal(lane), &LaneSealObject { lane, sealed_micros: at, reason: "retention".into() }),
        one(key, names::disk(&disk), &described),
        one(key, names::epoch(&disk, Epoch(2)), &epoch),
        one(key, names::route(&disk, lane), &RouteObject { disk: disk.clone(), lane }),
        one(key, names::fold(lane, 2), &FoldObject { lane, through: Some(disk.clone()) }),
        one(key, names::certificate(&disk, Digest([0xcd; 32])), &kept(&disk)),
        one(key, names::pin(Id128([5; 16])), &pin(disk)),
        one(key, names::claim(lane), &ClaimObject { claim: lane, run: Id128([6; 16]) }),
        one(key, names::recipients_list(1), &list),
        one(key, names::rewrap(lane, 1), &wrap),
    ]
}

/// Two certificates that are none: what stands in them is not this module's.
fn kept(disk: &DiskId) -> CertificateObject {
    CertificateObject::new(disk, "web-1", &[vec![0x30, 1, 2], vec![0x30, 3]])
}

fn signing(seed: [u8; 32]) -> SigningKey {
    SigningKey::from_seed(zeroize::Zeroizing::new(seed))
}

fn list_of(key: &CatalogKey, recipient: Recipient, wrapped: &str) -> RecipientsObject {
    RecipientsObject {
        n: 1,
        made_micros: Micros(1_800_000_000_000_001),
        recipients: vec![recipient],
        catalog_kid: key.kid(),
        wrapped_catalog_key: wrapped.to_owned(),
        catalog_key_since: None,
        next_catalog_key: None,
        signer: Signer { public: signing([9; 32]).verifying_key(), wrapped_seed: wrapped.to_owned() },
    }
}

/// A list of recipients, signed by the seed of 32 bytes 8, and a lane key that was wrapped anew to them, signed by the list's own
/// seed of 32 bytes 9.
fn later(key: &CatalogKey, recipient: Recipient, wrapped: &str) -> (Signed<RecipientsObject>, Signed<RewrapObject>) {
    let (vault, lane, at) = (Id128([1; 16]), Id128([0xab; 16]), Micros(1_800_000_000_000_001));
    let list = list_of(key, recipient, wrapped);
    let wrap = RewrapObject { lane, n: 1, list: 1, made_micros: at, wrapped_key: wrapped.to_owned() };
    let list = Signed::new(&signing([8; 32]), vault, &names::recipients_list(1), &list).expect("signed");
    (list, Signed::new(&signing([9; 32]), vault, &names::rewrap(lane, 1), &wrap).expect("signed"))
}

#[test]
fn a_signature_holds_for_its_content_place_and_vault_only() {
    let (path, vault, catalog) = (names::recipients_list(1), Id128([1; 16]), key());
    let content = list_of(&catalog, Identity::generate().recipient(), "wrapped");
    let signed = Signed::new(&signing([8; 32]), vault, &path, &content).expect("signed");
    let bytes = encode(&catalog, &path, &signed).expect("encodes");
    let (right, wrong) = (signing([8; 32]).verifying_key(), signing([9; 32]).verifying_key());
    type List = Signed<RecipientsObject>;
    let open =
        |by: &VerifyingKey, vault: Id128, path: &Path, bytes: &[u8]| List::open(Some(&catalog), by, vault, path, bytes);
    assert_eq!(open(&right, vault, &path, &bytes).expect("opens"), content);
    assert_eq!(List::open(None, &right, vault, &path, &bytes).expect("without the catalog key too"), content);
    assert!(open(&wrong, vault, &path, &bytes).is_err());
    assert!(open(&right, Id128([2; 16]), &path, &bytes).is_err());
    assert!(open(&right, vault, &names::recipients_list(2), &bytes).is_err());
    let foreign = CatalogKey::from_secret([8; 32]);
    assert!(List::open(Some(&foreign), &right, vault, &path, &bytes).is_err(), "the MAC is checked as well");
    for at in 0..bytes.len() {
        let mut altered = bytes.clone();
        altered[at] ^= 1;
        assert!(open(&right, vault, &path, &altered).is_err(), "byte {at}");
        assert!(open(&right, vault, &path, &bytes[..at]).is_err(), "cut at {at}");
    }
    // The catalog key alone, which a gateway has, makes an object that reads, and no signature.
    let other = list_of(&catalog, Identity::generate().recipient(), "wrapped");
    let forged = Signed::new(&signing([9; 32]), vault, &path, &other).expect("signed");
    let forged = encode(&catalog, &path, &forged).expect("encodes");
    assert!(matches!(open(&right, vault, &path, &forged), Err(SignedError::Refused(_))));
    // Of a newer release is what says so and is signed, not what says so alone.
    let newer =
        |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text").replace("\"version\":1", "\"version\":3");
    assert!(matches!(open(&right, vault, &path, newer(&bytes).as_bytes()), Err(SignedError::Newer(_))));
    assert!(matches!(open(&right, vault, &path, newer(&forged).as_bytes()), Err(SignedError::Refused(_))));
    let bare = b"{\"format\":\"tidegate-recipients\",\"version\":3}\n";
    assert!(matches!(open(&right, vault, &path, bare), Err(SignedError::Refused(_))));
}

/// Name of an object's file among the fixtures.
fn fixture(path: &Path) -> std::path::PathBuf {
    fixture_of(1, path)
}

fn fixture_of(version: u32, path: &Path) -> std::path::PathBuf {
    let folder = format!("{}/tests/fixtures/v{version}/vault", env!("CARGO_MANIFEST_DIR"));
    std::path::Path::new(&folder).join(path.as_ref().replace('/', "~"))
}

#[test]
fn a_manifest_of_version_1_is_read_and_one_of_version_2_is_written_as_recorded() {
    let path = names::manifest(Id128([0xab; 16]), 3);
    let now = manifest(Id128([0xab; 16]));
    let stored = std::fs::read(fixture(&path)).expect("a fixture of version 1");
    let read: ManifestObject = decode(&key(), &path, &stored).expect("still read");
    assert_eq!(read, ManifestObject { policies: Id128::NONE, newest_micros: 0, ..now.clone() });
    let bytes = encode(&key(), &path, &now).expect("encodes");
    let recorded = fixture_of(2, &path);
    if std::env::var_os("TIDEGATE_RECORD_FIXTURES").is_some() && !recorded.exists() {
        std::fs::create_dir_all(recorded.parent().expect("a folder")).expect("created");
        std::fs::write(&recorded, &bytes).expect("written");
    }
    let stored = std::fs::read(&recorded).expect("a fixture of version 2");
    assert_eq!(String::from_utf8_lossy(&stored), String::from_utf8_lossy(&bytes));
    assert_eq!(decode::<ManifestObject>(&key(), &path, &stored).expect("authentic"), now);
}

#[test]
fn a_lane_of_moved_messages_is_of_version_2_and_a_gateways_of_version_1() {
    let path = names::lane(Id128([0xab; 16]));
    let stored = std::fs::read(fixture(&path)).expect("a fixture of version 1");
    let gateways: LaneObject = decode(&key(), &path, &stored).expect("still read");
    assert!(!gateways.moved);
    assert_eq!(encode(&key(), &path, &gateways).expect("encodes"), stored, "older builds read what gateways write");
    let moved = LaneObject { gateway: "keeper".into(), moved: true, ..gateways };
    let bytes = encode(&key(), &path, &moved).expect("encodes");
    let recorded = fixture_of(2, &path);
    if std::env::var_os("TIDEGATE_RECORD_FIXTURES").is_some() && !recorded.exists() {
        std::fs::write(&recorded, &bytes).expect("written");
    }
    let stored = std::fs::read(&recorded).expect("a fixture of version 2");
    assert_eq!(String::from_utf8_lossy(&stored), String::from_utf8_lossy(&bytes));
    assert!(stored.starts_with(b"{\"format\":\"tidegate-lane\",\"version\":2,"));
    assert_eq!(decode::<LaneObject>(&key(), &path, &stored).expect("authentic"), moved);
}

#[test]
fn a_list_that_stages_a_catalog_key_or_follows_another_is_of_version_2() {
    let (older, newer, vault) = (key(), CatalogKey::from_secret([8; 32]), Id128([1; 16]));
    let (recipient, wrapped) = recorded().expect("the fixtures of version 1 are read");
    let first = list_of(&older, recipient, &wrapped);
    assert_eq!(first.version(), 1, "older builds read what touches no key");
    let sealed_older_key = SealedOlderKey::with_salt(vault, &older, &newer, [5; 24]);
    let next = NextCatalogKey { kid: newer.kid(), wrapped_key: wrapped, sealed_older_key };
    let staged = RecipientsObject { n: 2, next_catalog_key: Some(next), ..first.clone() };
    let activated = RecipientsObject { n: 3, catalog_kid: newer.kid(), catalog_key_since: Some(3), ..first };
    for content in [staged, activated] {
        assert_eq!(content.version(), 2);
        let path = names::recipients_list(content.n);
        let signed = Signed::new(&signing([8; 32]), vault, &path, &content).expect("signed");
        let bytes = encode(&older, &path, &signed).expect("encodes");
        let recorded = fixture_of(2, &path);
        if std::env::var_os("TIDEGATE_RECORD_FIXTURES").is_some() && !recorded.exists() {
            std::fs::write(&recorded, &bytes).expect("written");
        }
        let stored = std::fs::read(&recorded).expect("a fixture of version 2");
        assert_eq!(String::from_utf8_lossy(&stored), String::from_utf8_lossy(&bytes));
        assert!(stored.starts_with(b"{\"format\":\"tidegate-recipients\",\"version\":2,"));
        let signer = signing([8; 32]).verifying_key();
        let opened = Signed::<RecipientsObject>::open(Some(&older), &signer, vault, &path, &stored);
        assert_eq!(opened.expect("opens"), content);
        if let Some(next) = content.next_catalog_key {
            let opened =
                next.sealed_older_key.open(vault, older.kid(), &newer).expect("who has the newer has the older");
            assert_eq!(opened.expose(), older.expose());
        }
    }
}

/// Wrapping is random, so the wrapped lane key and the recipient of the fixtures are read from the fixtures.
fn recorded() -> Option<(Recipient, String)> {
    let lane = names::lane(Id128([0xab; 16]));
    let vault: VaultObject = decode(&key(), &names::vault(), &std::fs::read(fixture(&names::vault())).ok()?).ok()?;
    let lane: LaneObject = decode(&key(), &lane, &std::fs::read(fixture(&lane)).ok()?).ok()?;
    Some((vault.recipients.into_iter().next()?, lane.wrapped_key))
}

#[test]
fn every_control_object_of_version_1_is_read_and_written_as_recorded() {
    if std::env::var_os("TIDEGATE_RECORD_FIXTURES").is_some() && recorded().is_none() {
        let identity = Identity::generate();
        let folder = fixture(&names::vault()).parent().expect("a folder").to_owned();
        std::fs::create_dir_all(&folder).expect("created");
        identity.write(&folder.join("recovery.key")).expect("written");
        let wrapped = wrap(&[identity.recipient()], &[9; 32]).expect("wrapped");
        for (path, bytes) in samples(&key(), identity.recipient(), wrapped) {
            std::fs::write(fixture(&path), bytes).expect("written");
        }
    }
    let (recipient, wrapped) = recorded().expect("the fixtures of version 1 are read");
    let identity = Identity::read(&fixture(&Path::from("recovery.key"))).expect("the fixtures' identity");
    let locked = fixture(&Path::from("locked.key"));
    let passphrase = Passphrase::new(zeroize::Zeroizing::new("tide and gate".to_owned())).expect("one");
    if std::env::var_os("TIDEGATE_RECORD_FIXTURES").is_some() && !locked.exists() {
        identity.write_locked(&locked, &passphrase).expect("written");
    }
    let unlocked = Identity::unlock(&locked, &passphrase).expect("a locked identity");
    assert_eq!(unlocked.recipient(), identity.recipient());
    assert_eq!(*crate::keys::unwrap(&identity, &wrapped).expect("opens"), [9; 32]);
    let signer = list_of(&key(), recipient.clone(), &wrapped).signer;
    let mut all = samples(&key(), recipient, wrapped);
    let mut head: VaultObject = decode(&key(), &names::vault(), &all[0].1).expect("the vault's");
    head.signer = Some(signer);
    all.push((Path::from("vault-with-signer"), encode(&key(), &names::vault(), &head).expect("encodes")));
    for (path, bytes) in all {
        if std::env::var_os("TIDEGATE_RECORD_FIXTURES").is_some() && !fixture(&path).exists() {
            std::fs::write(fixture(&path), &bytes).expect("written");
        }
        let stored = std::fs::read(fixture(&path)).expect("a fixture per object");
        assert_eq!(String::from_utf8_lossy(&stored), String::from_utf8_lossy(&bytes), "{path}");
    }
}
