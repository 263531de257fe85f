//! Any bytes as the plaintext of an index: refused, or the one encoding of what they decode to.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::vault::index::BatchIndex;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(index) = BatchIndex::decode(bytes) {
        assert_eq!(index.encode(), bytes);
        let _ = index.check_layout(64, u64::from(u32::MAX));
    }
});
