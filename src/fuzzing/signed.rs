//! What stands for an agent's word: blocks of signed barriers, certificates that were kept, heads that an operator brings.

use std::sync::OnceLock;

use crate::signed::heads::Heads;
use crate::signed::{AgentCertificate, FIXED_BYTES, Signed};
use crate::types::{Digest, DiskId, RecordHead, RecordView};
use crate::vault::objects::CertificateObject;

fn fixture(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v2").join(name)
}

/// A signed barrier, as an agent made it.
fn seed() -> &'static [u8] {
    static READ: OnceLock<Vec<u8>> = OnceLock::new();
    READ.get_or_init(|| std::fs::read(fixture("record-signed.bin")).unwrap())
}

/// The certificate whose key signed the seed.
fn certificate() -> &'static AgentCertificate {
    static READ: OnceLock<AgentCertificate> = OnceLock::new();
    READ.get_or_init(|| {
        use rustls::pki_types::CertificateDer;
        use rustls::pki_types::pem::PemObject as _;
        let own = CertificateDer::from_pem_file(fixture("agent.crt")).unwrap();
        AgentCertificate::read(vec![own.to_vec()]).unwrap()
    })
}

/// First byte: 0 a block in the place of the seed's, 1 heads, else a kept certificate; bit 7 appends the right MAC to its line.
pub(super) fn signed(input: &[u8]) {
    let Some((mode, bytes)) = super::mode(input) else { return };
    match mode & 3 {
        0 => block(bytes),
        1 => {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            if let Ok(heads) = Heads::parse(text) {
                assert_eq!(Heads::parse(&heads.text()), Ok(heads));
            }
        }
        _ => {
            let Some(object) = super::vault::object::<CertificateObject>(bytes, mode & 0x80 != 0) else { return };
            assert!(object.certificate(Digest([0; 32])).is_err(), "nothing has this digest");
        }
    }
}

fn block(bytes: &[u8]) {
    let (seed, _) = RecordView::split(seed()).unwrap();
    if let Ok(block) = Signed::decode(bytes) {
        assert_eq!(block.encode(), bytes, "a block has one encoding");
    }
    let head = RecordHead { extent_count: (bytes.len() / 16) as u32, ..seed.head };
    let view = RecordView { head, table: bytes, payload: seed.payload };
    if let Some(Ok(block)) = Signed::of(&view) {
        let holds = block.holds(certificate(), &DiskId::new("d1").unwrap(), &view);
        assert!(!holds || bytes[..FIXED_BYTES] == seed.table[..FIXED_BYTES], "only what was signed holds");
    }
}
