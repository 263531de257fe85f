use super::seal::{SEAL_OVERHEAD_BYTES, SealOnce, UnsealError, unseal};
use super::*;
use crate::fault::chain_text;

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn a_catalog_key_survives_its_file_which_nobody_else_may_read() {
    let folder = scratch();
    let path = folder.path().join("catalog.key");
    let key = CatalogKey::generate().unwrap();
    key.write(&path).unwrap();
    let read = CatalogKey::read(&path).unwrap();
    assert_eq!(read.expose(), key.expose());
    assert_eq!(read.kid(), key.kid());
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn a_key_file_is_never_overwritten() {
    let folder = scratch();
    let path = folder.path().join("key");
    let first = CatalogKey::generate().unwrap();
    first.write(&path).unwrap();
    let error = CatalogKey::generate().unwrap().write(&path).unwrap_err();
    assert!(chain_text(&error).contains("exists"), "{}", chain_text(&error));
    assert!(Identity::generate().write(&path).is_err());
    assert_eq!(CatalogKey::read(&path).unwrap().expose(), first.expose());
}

#[test]
fn an_identity_survives_its_file_and_a_comment_in_front() {
    let folder = scratch();
    let path = folder.path().join("recovery.key");
    let identity = Identity::generate();
    identity.write(&path).unwrap();
    assert_eq!(Identity::read(&path).unwrap().recipient(), identity.recipient());
    let text = std::fs::read_to_string(&path).unwrap();
    let other = folder.path().join("other.key");
    std::fs::write(&other, format!("# created: today\n\n{text}")).unwrap();
    assert_eq!(Identity::read(&other).unwrap().recipient(), identity.recipient());
}

#[test]
fn a_file_with_the_wrong_kind_of_key_says_which_kind_it_holds() {
    let folder = scratch();
    let (catalog, identity) = (folder.path().join("catalog.key"), folder.path().join("recovery.key"));
    CatalogKey::generate().unwrap().write(&catalog).unwrap();
    Identity::generate().write(&identity).unwrap();
    let text = chain_text(&CatalogKey::read(&identity).unwrap_err());
    assert!(text.contains("holds a recovery identity"), "{text}");
    assert!(text.contains("recovery.key"), "{text}");
    let text = chain_text(&Identity::read(&catalog).unwrap_err());
    assert!(text.contains("holds a catalog key"), "{text}");
    let missing = chain_text(&Identity::read(&folder.path().join("none")).unwrap_err());
    assert!(missing.contains("none"), "{missing}");
}

fn passphrase(text: &str) -> Passphrase {
    Passphrase::new(Zeroizing::new(text.to_owned())).unwrap()
}

#[test]
fn a_locked_identity_opens_with_its_passphrase_alone() {
    let folder = scratch();
    let path = folder.path().join("recovery.key");
    let identity = Identity::generate();
    identity.write_locked(&path, &passphrase("tide and gate")).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("-----BEGIN AGE ENCRYPTED FILE-----"), "{text}");
    assert!(Identity::read(&path).unwrap_err().is_locked());
    assert_eq!(Identity::unlock(&path, &passphrase("tide and gate")).unwrap().recipient(), identity.recipient());
    let wrong = Identity::unlock(&path, &passphrase("tide and gates")).unwrap_err();
    assert_eq!(wrong.fault(), Fault::Reject);
    assert!(matches!(wrong.problem, KeyFileProblem::WrongPassphrase), "{}", chain_text(&wrong));
    assert!(identity.write_locked(&path, &passphrase("another")).is_err(), "never overwritten");
    // Not taken for something that it is not.
    let text = chain_text(&CatalogKey::read(&path).unwrap_err());
    assert!(text.contains("holds a file that `age` encrypted"), "{text}");
    let text = chain_text(&read_recipients(&path).unwrap_err());
    assert!(text.contains("holds a file that `age` encrypted"), "{text}");
}

#[test]
fn a_locked_identity_that_was_cut_altered_or_asks_for_too_much_work_is_refused() {
    let folder = scratch();
    let path = folder.path().join("recovery.key");
    Identity::generate().write_locked(&path, &passphrase("tide and gate")).unwrap();
    let good = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, &good[..good.len() / 2]).unwrap();
    assert!(Identity::unlock(&path, &passphrase("tide and gate")).is_err());
    // A binary file that asks for 2^40 steps, which no machine could do.
    let (salt, rest) = ("A".repeat(22), "A".repeat(43));
    let text = format!("age-encryption.org/v1\n-> scrypt {salt} 40\n{rest}\n--- {rest}\n");
    std::fs::write(&path, [text.as_bytes(), &[0; 64]].concat()).unwrap();
    let error = Identity::unlock(&path, &passphrase("x")).unwrap_err();
    assert!(matches!(error.problem, KeyFileProblem::TooMuchWork { required: 40 }), "{}", chain_text(&error));
    // Encrypted to a key instead of a passphrase.
    let wrapped = wrap(&[Identity::generate().recipient()], &[1; 32]).unwrap();
    std::fs::write(&path, wrapped.split_once('\n').unwrap().1).unwrap();
    let error = Identity::unlock(&path, &passphrase("x")).unwrap_err();
    assert!(matches!(error.problem, KeyFileProblem::ForOthers), "{}", chain_text(&error));
}

#[test]
fn a_passphrase_is_neither_empty_nor_endless() {
    for text in ["", &"x".repeat(PASSPHRASE_BYTES_MAX + 1)] {
        assert!(Passphrase::new(Zeroizing::new(text.to_owned())).is_none());
    }
    assert!(passphrase("a").is(&passphrase("a")) && !passphrase("a").is(&passphrase("b")));
}

#[test]
fn a_signature_is_told_from_every_altered_text_and_signature() {
    let key = SigningKey::from_seed(Zeroizing::new([1; 32]));
    let signature = key.sign(b"text");
    assert!(key.verifying_key().signed(b"text", &signature));
    assert!(!key.verifying_key().signed(b"test", &signature));
    assert!(!SigningKey::from_seed(Zeroizing::new([2; 32])).verifying_key().signed(b"text", &signature));
    for bit in 0..64 * 8 {
        let mut altered = signature;
        altered.0[bit / 8] ^= 1 << (bit % 8);
        assert!(!key.verifying_key().signed(b"text", &altered), "bit {bit}");
    }
    // RFC 8032, section 7.1, test 2.
    let seed = parse_hex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb").unwrap();
    let key = SigningKey::from_seed(Zeroizing::new(seed));
    let public = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c";
    assert_eq!(key.verifying_key().to_string(), public);
    let signed = "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00";
    assert_eq!(key.sign(&[0x72]).to_string(), signed);
}

#[test]
fn every_altered_digit_of_a_catalog_key_file_is_noticed() {
    let folder = scratch();
    let path = folder.path().join("catalog.key");
    let key = CatalogKey::from_secret([0x5a; 32]);
    key.write(&path).unwrap();
    let good = std::fs::read(&path).unwrap();
    for at in 0..good.len() - 1 {
        let mut bytes = good.clone();
        bytes[at] = if bytes[at] == b'3' { b'4' } else { b'3' };
        std::fs::write(&path, &bytes).unwrap();
        assert!(CatalogKey::read(&path).is_err(), "digit {at}");
    }
}

#[test]
fn a_secret_opens_for_each_of_its_recipients() {
    let (one, two) = (Identity::generate(), Identity::generate());
    let secret = random::<32>().unwrap();
    let text = wrap(&[one.recipient(), two.recipient()], &secret).unwrap();
    assert_eq!(*unwrap(&one, &text).unwrap(), secret);
    assert_eq!(*unwrap(&two, &text).unwrap(), secret);
    assert!(text.contains("-----BEGIN AGE ENCRYPTED FILE-----"));
}

#[test]
fn a_wrong_identity_is_told_for_whom_the_secret_was_wrapped() {
    let (owner, stranger) = (Identity::generate(), Identity::generate());
    let text = wrap(&[owner.recipient()], &[1; 32]).unwrap();
    let error = unwrap(&stranger, &text).unwrap_err();
    assert_eq!(error.fault(), Fault::Reject);
    let shown = error.to_string();
    assert!(shown.contains(&owner.recipient().to_string()), "{shown}");
    assert!(shown.contains(&stranger.recipient().to_string()), "{shown}");
}

#[test]
fn a_secret_is_not_wrapped_to_nobody() {
    assert!(matches!(wrap(&[], &[1; 32]), Err(WrapError::NoRecipient)));
}

#[test]
fn a_damaged_wrap_is_reported_as_damage_and_not_as_a_wrong_key() {
    let owner = Identity::generate();
    let text = wrap(&[owner.recipient()], &[1; 32]).unwrap();
    let cut = &text[..text.len() - 60];
    assert_eq!(unwrap(&owner, cut).unwrap_err().fault(), Fault::Corrupt);
    assert_eq!(unwrap(&owner, "").unwrap_err().fault(), Fault::Corrupt);
    assert_eq!(unwrap(&owner, "# wrapped to me\nnothing").unwrap_err().fault(), Fault::Corrupt);
}

#[test]
fn an_identity_given_as_recipient_is_refused_without_being_shown() {
    let folder = scratch();
    let path = folder.path().join("key");
    Identity::generate().write(&path).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let secret = text.lines().find(|line| line.starts_with("AGE-SECRET")).unwrap();
    let error = secret.parse::<Recipient>().unwrap_err();
    assert_eq!(error, InvalidRecipientError::Identity);
    assert!(!error.to_string().contains(secret));
    assert!("age1nothing".parse::<Recipient>().is_err());
}

#[test]
fn recipients_are_read_from_a_file_one_per_line() {
    let folder = scratch();
    let path = folder.path().join("recipients");
    let (one, two) = (Identity::generate().recipient(), Identity::generate().recipient());
    std::fs::write(&path, format!("# the safe\n{one}\n\n# the other safe\n{two}\n")).unwrap();
    assert_eq!(read_recipients(&path).unwrap(), [one, two]);
    std::fs::write(&path, "# nobody\n").unwrap();
    assert!(read_recipients(&path).is_err());
}

#[test]
fn no_debug_output_shows_a_secret() {
    let folder = scratch();
    let identity = Identity::generate();
    identity.write(&folder.path().join("key")).unwrap();
    let text = std::fs::read_to_string(folder.path().join("key")).unwrap();
    let secret = text.lines().last().unwrap();
    let shown =
        format!("{:?} {:?} {:?}", identity, LaneKey::from_secret([0xab; 32]), CatalogKey::from_secret([0xab; 32]));
    let more = format!("{:?} {:?}", SigningKey::from_seed(Zeroizing::new([0xab; 32])), passphrase("abab"));
    assert!(!more.contains("abab") && !more.contains("171"), "{more}");
    assert!(!shown.contains(secret) && !shown.contains("abab") && !shown.contains("171"), "{shown}");
}

#[test]
fn a_mac_holds_for_its_own_purpose_bytes_and_key_only() {
    let key = CatalogKey::from_secret([1; 32]);
    let tag = mac(&key, "epoch", b"text");
    assert!(mac_holds(&key, "epoch", b"text", &tag));
    assert!(!mac_holds(&key, "lane", b"text", &tag));
    assert!(!mac_holds(&key, "epoch", b"test", &tag));
    assert!(!mac_holds(&CatalogKey::from_secret([2; 32]), "epoch", b"text", &tag));
    assert!(!mac_holds(&key, "epoch", b"text", &tag[..31]));
}

/// Made by an independent implementation (Python's hashlib and hmac), so that the derivations are what FORMAT.md says.
#[test]
fn derivations_are_those_of_the_format() {
    let key = CatalogKey::from_secret([7; 32]);
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(key.kid().to_string(), "afad085d047bc4d6");
    assert_eq!(hex(&*key.index_secret()), "8893b890e4d2a4aff12d86f39020510b25eb8f1884c01cec36a982841492a028");
    assert_eq!(hex(&mac(&key, "epoch", b"text")), "5cd6d6aaa57632017ac9250edb87416224ae2dcae0ac7630c5668f2de3a687ae");
    let (lane, disk) = (LaneKey::from_secret([0x11; 32]), DiskKey::from_secret([0x33; 32]));
    let secret = "dca879556560fd7c98a1425c94447651caa2f4205a7ce6a6b44f5c66225f9bf6";
    assert_eq!(hex(DiskSecret::new(&lane, &disk).expose()), secret);
    let mut sealed = SealOnce::room();
    sealed.extend_from_slice(b"tide");
    SealOnce::with_salt(&[7; 32], b"label", &[b"con", b"text"], [9; 24]).seal(&mut sealed).unwrap();
    assert_eq!(hex(&sealed[24..56]), "39687d6dc11d6ca3be201869a0e1240006987466c261c184053f9d72edbf9b61");
    assert_eq!(hex(&sealed[56..]), "b6528a10a6687cd28ade5f50581b3c46789b8f03");
}

#[test]
fn what_was_sealed_opens_with_its_secret_label_and_context_only() {
    let seal = || {
        let mut sealed = SealOnce::room();
        sealed.extend_from_slice(b"the text");
        SealOnce::new(&[1; 32], b"label", &[b"a", b"b"]).unwrap().seal(&mut sealed).unwrap();
        sealed
    };
    assert_eq!(seal().len(), 8 + SEAL_OVERHEAD_BYTES);
    assert_eq!(unseal(&[1; 32], b"label", &[b"a", b"b"], &mut seal()).unwrap(), b"the text");
    let wrong = Err(UnsealError::Commitment);
    assert_eq!(unseal(&[2; 32], b"label", &[b"a", b"b"], &mut seal()), wrong);
    assert_eq!(unseal(&[1; 32], b"other", &[b"a", b"b"], &mut seal()), wrong);
    assert_eq!(unseal(&[1; 32], b"label", &[b"a", b"c"], &mut seal()), wrong);
}

#[test]
fn the_same_text_is_never_sealed_alike() {
    let seal = || {
        let mut sealed = SealOnce::room();
        SealOnce::new(&[1; 32], b"label", &[]).unwrap().seal(&mut sealed).unwrap();
        sealed
    };
    assert_ne!(seal()[..24], seal()[..24], "salts");
    assert_ne!(seal()[24..56], seal()[24..56], "commitments");
}

#[test]
fn every_flipped_bit_of_a_sealed_text_is_noticed_and_nothing_is_decrypted_before_the_commitment_held() {
    let mut good = SealOnce::room();
    good.extend_from_slice(b"the text");
    SealOnce::new(&[1; 32], b"label", &[b"context"]).unwrap().seal(&mut good).unwrap();
    for bit in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let ciphertext = bytes[56..].to_vec();
        let error = unseal(&[1; 32], b"label", &[b"context"], &mut bytes).map(|text| text.to_vec()).unwrap_err();
        if bit < 56 * 8 {
            assert_eq!(error, UnsealError::Commitment, "bit {bit}");
            assert_eq!(bytes[56..], ciphertext, "decrypted although the commitment failed");
        } else {
            assert_eq!(error, UnsealError::Altered, "bit {bit}");
        }
    }
    for short in 0..SEAL_OVERHEAD_BYTES {
        assert_eq!(
            unseal(&[1; 32], b"label", &[], &mut good[..short].to_vec()),
            Err(UnsealError::Short { have_bytes: short })
        );
    }
}
