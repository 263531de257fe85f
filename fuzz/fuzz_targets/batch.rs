//! Bytes of a store as the tail of a batch, as a header and as a lane index.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use tidegate::vault::batch::{BatchHeader, Tail, parse_tail};
use tidegate::vault::index::lane::LaneIndex;

fuzz_target!(|input: (u16, bool, &[u8])| {
    let (more, fix_sum, bytes) = input;
    let mut bytes = bytes.to_vec();
    // With a right checksum at the end, or the fuzzer would never get behind it.
    if fix_sum && bytes.len() >= 64 {
        let start = bytes.len() - 64;
        bytes[start..start + 4].copy_from_slice(b"TGT\x01");
        let sum = crc_fast::crc32_iscsi(&bytes[start..start + 60]);
        bytes[start + 60..].copy_from_slice(&sum.to_le_bytes());
    }
    let bytes = Bytes::from(bytes);
    let _ = BatchHeader::decode(&bytes);
    let _ = LaneIndex::parse(&bytes);
    let total_bytes = bytes.len() as u64 + u64::from(more);
    match parse_tail(total_bytes, &bytes) {
        Err(_) => {}
        Ok(Tail::Whole { trailer, index }) => {
            assert_eq!(index.bytes.len() as u64, trailer.index_range().end - trailer.index_range().start);
        }
        Ok(Tail::More { trailer, range }) => {
            assert_eq!(range, trailer.index_offset_bytes..total_bytes);
        }
    }
});
