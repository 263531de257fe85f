//! Any bytes as a sealed message, which must be refused, and as packed content, which must never overrun its size.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::keys::LaneKey;
use tidegate::pipeline::codec::{Codec, unpack};
use tidegate::pipeline::message::{MessageContext, open};
use tidegate::types::{DiskId, Epoch, Id128, Seq};

fuzz_target!(|input: (u16, bool, &[u8])| {
    let (plain_bytes, packed, bytes) = input;
    let Ok(disk) = DiskId::new("disk") else { return };
    let codec = if packed { Codec::Lz4 } else { Codec::Raw };
    let context = MessageContext {
        vault: Id128::NONE,
        object: "b/0",
        disk: &disk,
        epoch: Epoch(1),
        first: Seq(1),
        last: Seq(1),
        codec,
        plain_bytes: plain_bytes.into(),
    };
    let mut out = Vec::new();
    assert!(open(&LaneKey::from_secret([7; 32]), &context, bytes, &mut out).is_err());
    if unpack(codec, bytes, plain_bytes.into(), &mut out).is_ok() {
        assert_eq!(out.len(), usize::from(plain_bytes));
    }
});
