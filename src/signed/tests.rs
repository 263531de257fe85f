//! Blocks, signatures, certificates and heads.

use super::heads::{DiskHead, Heads, HeadsError};
use super::testing::{AgentKey, NOW};
use super::*;
use crate::types::{BarrierKind, Micros, RECORD_HEAD_BYTES, RecordKind, record_digest};

const VAULT: Id128 = Id128([0xa1; 16]);

fn disk(name: &str) -> DiskId {
    DiskId::new(name).unwrap()
}

fn head() -> RecordHead {
    RecordHead {
        kind: RecordKind::Barrier(BarrierKind::App),
        extent_count: 0,
        payload_bytes: 4,
        epoch: Epoch(3),
        seq: Seq(17),
        label: Micros(NOW.0 + 60_000_000),
        clock_uncertainty_micros: 250,
        group: Id128::NONE,
        digest: Digest([0; 32]),
        chain: Chain::GENESIS,
    }
}

/// A whole signed barrier of disk d1 after chain 7.
fn barrier(signer: &Signer) -> Vec<u8> {
    let mut head = head();
    let before = Chain([7; 32]);
    let told = Some(Head { at: PointId { epoch: Epoch(3), seq: Seq(9) }, chain: Chain([9; 32]) });
    let block = signer.sign(&disk("d1"), &mut head, b"noon", before, told).unwrap();
    head.digest = record_digest(&block, [&b"noon"[..]]);
    [&head.sealed_after(before).encode()[..], &block, b"noon"].concat()
}

fn holds(certificate: &AgentCertificate, on: &str, record: &[u8]) -> bool {
    let (view, _) = RecordView::split(record).unwrap();
    Signed::of(&view).is_some_and(|block| block.is_ok_and(|block| block.holds(certificate, &disk(on), &view)))
}

#[test]
fn a_signature_holds_for_what_was_signed_and_for_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let key = AgentKey::issue(dir.path(), VAULT, "a1", &["d1", "d2"]);
    let (certificate, record) = (key.certificate(), barrier(&key.signer));
    let (view, rest) = RecordView::split(&record).unwrap();
    assert_eq!((view.barrier_name(), rest.len(), record[3]), (Some("noon"), 0, 2));
    view.check_digest().unwrap();
    assert!(view.head.decode_extents(view.table, 4096).unwrap().is_empty());
    assert!(holds(&certificate, "d1", &record));
    assert!(!holds(&certificate, "d2", &record), "moved to another disk");
    let other = AgentKey::issue(dir.path(), VAULT, "a2", &["d1"]);
    assert!(!holds(&other.certificate(), "d1", &record), "another agent's certificate");
    // Digest and chain are not signed: whoever re-seals sets them right, and everything else is.
    let unsigned = 64..RECORD_HEAD_BYTES;
    for bit in (0..record.len() * 8).filter(|bit| !unsigned.contains(&(bit / 8))) {
        let mut forged = record.clone();
        forged[bit / 8] ^= 1 << (bit % 8);
        let taken = RecordView::split(&forged).is_ok() && holds(&certificate, "d1", &forged);
        assert!(!taken, "bit {bit} went unnoticed");
    }
}

#[test]
fn a_block_is_read_back_and_has_one_encoding() {
    for scheme in Scheme::ALL {
        for told in [None, Some(Head { at: PointId { epoch: Epoch(1), seq: Seq(2) }, chain: Chain([3; 32]) })] {
            let (before, certificate) = (Chain([4; 32]), Digest([5; 32]));
            let signature = vec![6; scheme.signature_bytes()];
            let block = Signed { scheme, told, before, certificate, signature };
            let bytes = block.encode();
            assert_eq!(bytes.len() % EXTENT_BYTES, 0);
            assert_eq!(Signed::decode(&bytes), Ok(block.clone()));
            for bit in 0..bytes.len() * 8 {
                let mut other = bytes.clone();
                other[bit / 8] ^= 1 << (bit % 8);
                assert_ne!(Signed::decode(&other), Ok(block.clone()), "bit {bit}");
            }
            assert!(Signed::decode(&bytes[..bytes.len() - 1]).is_err());
        }
    }
}

fn fixture(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// With `TIDEGATE_RECORD_FIXTURES`, those that are not there are made: signatures are random, so they are not compared.
fn record_fixtures() {
    let record = fixture("v2/record-signed.bin");
    if std::env::var_os("TIDEGATE_RECORD_FIXTURES").is_some() && !record.exists() {
        let dir = tempfile::tempdir().unwrap();
        let key = AgentKey::issue(dir.path(), VAULT, "a1", &["d1"]);
        std::fs::write(record, barrier(&key.signer)).unwrap();
        std::fs::copy(dir.path().join("agent-a1.crt"), fixture("v2/agent.crt")).unwrap();
        std::fs::write(fixture("v1/heads.json"), heads().text()).unwrap();
    }
}

#[test]
fn the_fixture_of_record_version_2_is_still_read_and_holds() {
    record_fixtures();
    let record = std::fs::read(fixture("v2/record-signed.bin")).unwrap();
    use rustls::pki_types::pem::PemObject as _;
    let own = rustls::pki_types::CertificateDer::from_pem_file(fixture("v2/agent.crt")).unwrap();
    let certificate = AgentCertificate::read(vec![own.to_vec()]).unwrap();
    assert!(holds(&certificate, "d1", &record));
    let (view, _) = RecordView::split(&record).unwrap();
    let block = Signed::of(&view).unwrap().unwrap();
    assert_eq!(block.encode(), view.table, "a changed encoding needs a new version");
    assert_eq!(view.head.encode()[..], record[..RECORD_HEAD_BYTES]);
    assert_eq!(block.told.unwrap().at, PointId { epoch: Epoch(3), seq: Seq(9) });
}

#[test]
fn a_record_of_version_2_is_a_signed_barrier_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let key = AgentKey::issue(dir.path(), VAULT, "a1", &["d1"]);
    let record = barrier(&key.signer);
    let altered = |at: usize, value: u8| {
        let mut record = record.clone();
        record[at] = value;
        RecordHead::decode(&record).is_err()
    };
    assert!(altered(3, 1), "version 1 has no rows in a barrier");
    assert!(altered(8, 0), "version 2 has some");
    assert!(altered(8, crate::limits::SIGNATURE_ROWS_MAX as u8 + 1), "and not more than the longest");
    assert!(altered(4, 0), "writes are not signed");
    assert!(altered(3, 3), "nothing is known of version 3");
}

#[test]
fn numbers_of_ecdsa_lose_nothing_when_they_are_made_plain() {
    let der = [0x30, 9, 0x02, 2, 0x00, 0x80, 0x02, 3, 0x01, 0x02, 0x03];
    assert_eq!(plain_ecdsa(&der, 4).unwrap(), [0, 0, 0, 0x80, 0, 1, 2, 3]);
    assert_eq!(plain_ecdsa(&der, 2), None, "three digits do not fit");
    for cut in 0..der.len() {
        assert_eq!(plain_ecdsa(&der[..cut], 4), None);
    }
    assert_eq!(plain_ecdsa(&[&der[..], &[0]].concat(), 4), None, "something behind it");
}

#[test]
fn an_authority_vouches_for_its_own_and_for_the_time_of_signing() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let key = AgentKey::issue(dir.path(), VAULT, "a1", &["d1"]);
    let forged = AgentKey::issue(elsewhere.path(), VAULT, "a1", &["d1"]);
    let authority = Authority::load(&dir.path().join("ca.crt")).unwrap();
    let day = |days: u64| Micros(NOW.0 + days * 86_400_000_000);
    let certificate = key.certificate();
    authority.vouches(&certificate, day(1)).unwrap();
    assert!(matches!(authority.vouches(&certificate, day(31)), Err(Refused::Time { .. })));
    assert!(matches!(certificate.check_time(day(31)), Err(Refused::Time { .. })));
    let refused = authority.vouches(&forged.certificate(), day(1));
    assert!(matches!(&refused, Err(Refused::Issuer { .. })), "{refused:?}");
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("ca.crt") && text.contains("did not issue"), "{text}");
}

#[test]
fn nothing_is_signed_when_the_certificate_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let key = AgentKey::issue(dir.path(), VAULT, "a1", &["d1"]);
    let mut late = RecordHead { label: Micros(NOW.0 + 31 * 86_400_000_000), ..head() };
    let refused = key.signer.sign(&disk("d1"), &mut late, b"noon", Chain([7; 32]), None);
    assert!(matches!(refused, Err(SignError::Time(_))), "{refused:?}");
    assert!(!late.is_signed(), "it stands as one of an agent that does not sign");
}

#[test]
fn only_an_agents_certificate_is_one() {
    let dir = tempfile::tempdir().unwrap();
    AgentKey::issue(dir.path(), VAULT, "a1", &["d1"]);
    use rustls::pki_types::pem::PemObject as _;
    let ca = rustls::pki_types::CertificateDer::from_pem_file(dir.path().join("ca.crt")).unwrap();
    let refused = AgentCertificate::read(vec![ca.to_vec()]).unwrap_err();
    assert!(matches!(refused, Refused::Role { .. }), "{refused}");
    assert_eq!(AgentCertificate::read(Vec::new()).unwrap_err(), Refused::Empty);
    assert!(AgentCertificate::read(vec![vec![1, 2, 3]]).is_err());
}

fn heads() -> Heads {
    let at = PointId { epoch: Epoch(2), seq: Seq(4711) };
    let head = DiskHead::new(disk("web-1.sda"), Head { at, chain: Chain([0xab; 32]) });
    Heads::new(VAULT, "a1".into(), NOW, vec![head])
}

#[test]
fn heads_are_read_back_and_those_of_others_refused() {
    let text = heads().text();
    let recorded = std::fs::read_to_string(fixture("v1/heads.json")).unwrap();
    assert_eq!(text, recorded, "a changed encoding needs a new version");
    assert_eq!(Heads::parse(&text), Ok(heads()));
    assert_eq!(heads().of_vault(VAULT), Ok(heads()));
    assert!(matches!(heads().of_vault(Id128([1; 16])), Err(HeadsError::Vault { .. })));
    let newer = text.replace("\"version\":1", "\"version\":2");
    assert_eq!(Heads::parse(&newer), Err(HeadsError::Version(2)));
    for wrong in ["", "{}", "{\"format\":\"tidegate-lane\",\"version\":1}", &text.replace("\"epoch\":2", "\"epoch\":0")]
    {
        assert!(matches!(Heads::parse(wrong), Err(HeadsError::Form(_))), "{wrong}");
    }
}
