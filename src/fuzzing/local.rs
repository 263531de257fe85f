//! Files of this machine that an accident or another hand may have changed: configuration, keys, state, notes.

use std::path::Path;

use crate::agent::config::Config as AgentConfig;
use crate::agent::{activity, state};
use crate::export::overlay::{self, Entry, Image};
use crate::gateway::config::GatewayConfig;
use crate::keys::{self, CatalogKey, Identity};
use crate::restore::resume::{self, Note, ResumeHead};
use crate::restore::verify::state::{self as verify_state, Found};
use crate::types::{Chain, DiskId, Epoch, PointId, Seq};

fn disk() -> DiskId {
    DiskId::new("web-1.sda").unwrap()
}

/// First byte: even for a gateway's file, odd for an agent's.
pub(super) fn config(input: &[u8]) {
    let Some((mode, bytes)) = super::mode(input) else { return };
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let path = Path::new("/nowhere/tidegate.toml");
    let error = if mode % 2 == 0 {
        GatewayConfig::parse(path, text).map(drop).err()
    } else {
        AgentConfig::parse(path, text).map(drop).err()
    };
    if let Some(error) = error {
        assert!(!error.mistakes.is_empty(), "a file is refused for a reason");
        assert!(error.to_string().contains("/nowhere/tidegate.toml"));
    }
}

/// The text of a key file, and of a wrapped key.
pub(super) fn keys(input: &[u8]) {
    let _ = keys::locked::is_age_file(input);
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(key) = keys::file::parse_catalog_key(text) {
        let again = keys::file::catalog_key_text(&key);
        assert_eq!(keys::file::parse_catalog_key(&again).map(|key: CatalogKey| key.kid()).unwrap(), key.kid());
    }
    let _ = keys::file::parse_identity(text);
    let _ = keys::file::parse_recipients(text);
    let _ = keys::wrapped_to(text);
    let _ = keys::unwrap(&identity(), text);
}

/// The identity for which the seeds are wrapped: that of the fixtures.
pub(super) fn identity() -> Identity {
    keys::file::parse_identity(include_str!("../../tests/fixtures/v1/vault/recovery.key")).unwrap()
}

/// First byte: bit 0 gives the first line its checksum.
pub(super) fn state(input: &[u8]) {
    let Some((mode, bytes)) = super::mode(input) else { return };
    let mut bytes = bytes.to_vec();
    if mode & 1 == 1 {
        let sum = crate::wire::frame::crc32c([bytes.as_slice()]);
        bytes.extend_from_slice(format!("\n{sum:08x}\n").as_bytes());
    }
    let path = Path::new("x.state");
    if let Ok(found) = state::decode(&bytes, &disk(), path) {
        let again = state::decode(&state::encode(&found), &disk(), path).unwrap();
        assert_eq!(again, found);
    }
}

/// First byte: the disk's size in units of 2 GiB; second: bit 0 sets the checksums right.
pub(super) fn activity(input: &[u8]) {
    let [size, mode, bytes @ ..] = input else { return };
    let disk_bytes = u64::from(*size) << 31 | 1 << 20;
    let mut bytes = bytes.to_vec();
    if mode & 1 == 1 {
        activity::mend(&mut bytes, &disk(), disk_bytes);
    }
    if let Ok((set, damaged)) = activity::decode_file(&bytes, &disk(), disk_bytes) {
        let again = activity::encode_file(&disk(), disk_bytes, &set);
        let (same, none) = activity::decode_file(&again, &disk(), disk_bytes).unwrap();
        assert_eq!((same.runs().collect::<Vec<_>>(), none), (set.runs().collect::<Vec<_>>(), 0));
        assert!(damaged > 0 || again.len() <= bytes.len());
    }
}

/// First byte: bit 0 gives each line its checksum and the first one its plan; bits 1 on the messages of the plan.
pub(super) fn resume(input: &[u8]) {
    let Some((mode, bytes)) = super::mode(input) else { return };
    let head = ResumeHead {
        plan: Chain([7; 32]),
        disk: disk(),
        point: PointId { epoch: Epoch(1), seq: Seq(9) },
        disk_bytes: 4096,
    };
    let messages = usize::from(mode >> 1);
    let mut bytes = bytes.to_vec();
    if mode & 1 == 1 {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let lines = text.lines().map(resume::with_crc);
        bytes = std::iter::once(resume::first_line(&head, "file-1")).chain(lines).collect::<String>().into_bytes();
    }
    if let Note::Ours { done, valid_bytes } = resume::read_note(&bytes, &head, Some("file-1"), messages) {
        assert_eq!(done.len(), messages);
        assert!(valid_bytes <= bytes.len());
        let again = resume::read_note(&bytes[..valid_bytes], &head, Some("file-1"), messages);
        assert_eq!(again, Note::Ours { done, valid_bytes }, "what is kept says the same");
    }
}

/// First byte: bit 0 gives each line its checksum.
pub(super) fn verify_state(input: &[u8]) {
    let Some((mode, bytes)) = super::mode(input) else { return };
    let mut bytes = bytes.to_vec();
    if mode & 1 == 1 {
        bytes = String::from_utf8_lossy(&bytes).lines().map(resume::with_crc).collect::<String>().into_bytes();
    }
    if let Found::State(found) = verify_state::decode(&bytes) {
        assert!(found.draw.again.len() <= verify_state::DAMAGED_MAX);
        let again = verify_state::encode(&found);
        assert_eq!(verify_state::decode(again.as_bytes()), Found::State(found));
    }
}

/// First byte: bit 0 gives each entry its checksum; bits 1 on the disk's size in blocks. A head, then the log.
pub(super) fn overlay(input: &[u8]) {
    let Some((mode, bytes)) = super::mode(input) else { return };
    let image = Image::decode(bytes);
    if let Some(image) = &image {
        assert_eq!(Image::decode(&image.encode()).as_ref(), Some(image));
    }
    let blocks = u64::from(mode >> 1);
    let mut log = bytes.to_vec();
    if mode & 1 == 1 {
        for (number, entry) in (0..).zip(log.as_chunks_mut::<{ overlay::ENTRY_BYTES }>().0) {
            overlay::mend_entry(number, entry);
        }
    }
    let mut again = Vec::new();
    let count = overlay::each_entry(&mut log.as_slice(), blocks, |entry| {
        if let Entry::Came(run) | Entry::Left(run) = &entry {
            assert!(run.start < run.end && run.end <= blocks);
        }
        let number = (again.len() / overlay::ENTRY_BYTES) as u64;
        again.extend_from_slice(&entry.encode(number));
    });
    let count = count.unwrap() as usize;
    assert_eq!(again, log[..count * overlay::ENTRY_BYTES], "what is read is what was written");
}
