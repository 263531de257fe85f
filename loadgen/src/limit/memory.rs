//! What is done to bytes in memory.

use std::hint::black_box;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use tidegate::limits::{COMMIT_BYTES_MAX, MESSAGE_BYTES_TARGET};
use tidegate::pipeline::codec::{Codec, Packer, Packing};
use tidegate::wire::frame::crc32c;

use super::{Plan, Watch, Work, records};

pub(super) fn crc(plan: &Plan) -> Work {
    let (watch, mut bytes) = (Watch::start(), 0);
    for record in records(plan) {
        black_box(crc32c([black_box(&record[..])]));
        bytes += record.len() as u64;
    }
    watch.stop(bytes)
}

/// Into a buffer of a commit's size that is used again and again.
pub(super) fn copy(plan: &Plan) -> Work {
    let mut commit = vec![1_u8; COMMIT_BYTES_MAX];
    let (watch, mut bytes, mut at) = (Watch::start(), 0, 0);
    for record in records(plan) {
        if at + record.len() > commit.len() {
            at = 0;
        }
        commit[at..at + record.len()].copy_from_slice(&record);
        black_box(&mut commit);
        at += record.len();
        bytes += record.len() as u64;
    }
    watch.stop(bytes)
}

/// Messages of a gateway's size, and what is left of them.
pub(super) fn lz4(plan: &Plan) -> (Work, u64) {
    let (mut packer, mut out) = (Packer::default(), Vec::new());
    // The buffer's first use costs page faults that no later one does.
    packer.pack(Packing::Lz4, &plan.pool.bytes()[..MESSAGE_BYTES_TARGET], 0, &mut out);
    let (watch, mut bytes, mut packed_bytes) = (Watch::start(), 0, 0);
    for message in plan.pool.bytes().chunks(MESSAGE_BYTES_TARGET).cycle() {
        let codec = packer.pack(Packing::Lz4, message, 0, &mut out);
        packed_bytes += if codec == Codec::Raw { message.len() } else { out.len() } as u64;
        bytes += message.len() as u64;
        if bytes >= plan.bytes {
            break;
        }
    }
    (watch.stop(bytes), packed_bytes)
}

/// As many bytes as LZ4 left, in messages of the size that it left.
pub(super) fn seal(plan: &Plan, packed_bytes: u64) -> Result<Work, String> {
    let failed = |_| "AES-256-GCM refused".to_owned();
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[7; 32]).map_err(failed)?);
    let share = packed_bytes as f64 / plan.bytes.max(1) as f64;
    let size = ((MESSAGE_BYTES_TARGET as f64 * share) as usize).clamp(4096, MESSAGE_BYTES_TARGET);
    let mut message = plan.pool.bytes()[..size].to_vec();
    let (watch, mut bytes) = (Watch::start(), 0);
    while bytes < packed_bytes {
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        let _tag = black_box(key.seal_in_place_separate_tag(nonce, Aad::empty(), &mut message).map_err(failed)?);
        bytes += size as u64;
    }
    Ok(watch.stop(bytes))
}
