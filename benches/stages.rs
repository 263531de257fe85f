//! What one byte costs in each stage's pure core: `cargo bench`. Figures are for comparing changes on one machine.

use std::hint::black_box;

use divan::Bencher;
use divan::counter::BytesCount;
use tidegate::keys::LaneKey;
use tidegate::pipeline::codec::Codec;
use tidegate::pipeline::message::{MessageContext, Scratch, open, seal};
use tidegate::types::{
    Chain, DiskId, Epoch, Extent, ExtentKind, Id128, Micros, RecordHead, RecordKind, Seq, encode_extents, record_digest,
};
use tidegate::wire::frame::crc32c;

fn main() {
    divan::main();
}

const RECORD_BYTES: usize = 1 << 20;
const MESSAGE_BYTES: usize = 512 << 10;

/// Bytes that compress about as file systems do: lines that repeat words, and a third of them random.
fn payload(bytes: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut out = Vec::with_capacity(bytes + 64);
    while out.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        if state.is_multiple_of(3) {
            out.extend_from_slice(&state.to_le_bytes());
        } else {
            out.extend_from_slice(b"the journal keeps what the vault has not yet ");
        }
    }
    out.truncate(bytes);
    out
}

#[divan::bench]
fn agent_record_digest_1_mib(bencher: Bencher<'_, '_>) {
    let (payload, mut table) = (payload(RECORD_BYTES), Vec::new());
    encode_extents(
        &[Extent { offset_bytes: 0, length_bytes: RECORD_BYTES as u32, kind: ExtentKind::Data }],
        &mut table,
    );
    bencher.counter(BytesCount::new(RECORD_BYTES)).bench(|| record_digest(&table, [black_box(payload.as_slice())]));
}

#[divan::bench]
fn gateway_record_chain(bencher: Bencher<'_, '_>) {
    let head = RecordHead {
        kind: RecordKind::Write,
        extent_count: 0,
        payload_bytes: 0,
        epoch: Epoch(1),
        seq: Seq(1),
        label: Micros(1),
        clock_uncertainty_micros: 0,
        group: Id128::NONE,
        digest: record_digest(&[], []),
        chain: Chain::GENESIS,
    };
    bencher.bench(|| black_box(&head).chain_after(Chain::GENESIS));
}

#[divan::bench]
fn wire_body_crc_1_mib(bencher: Bencher<'_, '_>) {
    let payload = payload(RECORD_BYTES);
    bencher.counter(BytesCount::new(RECORD_BYTES)).bench(|| crc32c([black_box(payload.as_slice())]));
}

fn with_message(run: impl FnOnce(&LaneKey, &dyn Fn(Codec) -> MessageContext<'static>)) {
    let Ok(key) = LaneKey::generate() else { return };
    let Ok(disk) = DiskId::new("bench") else { return };
    let disk: &'static DiskId = Box::leak(Box::new(disk));
    run(&key, &|codec| MessageContext {
        vault: Id128::NONE,
        object: "b/000/bench/1",
        disk,
        epoch: Epoch(1),
        first: Seq(1),
        last: Seq(1),
        codec,
        plain_bytes: MESSAGE_BYTES as u32,
    });
}

#[divan::bench]
fn pipeline_compress_and_seal_512_kib(bencher: Bencher<'_, '_>) {
    let plain = payload(MESSAGE_BYTES);
    with_message(|key, context| {
        let (mut scratch, mut out) = (Scratch::default(), Vec::new());
        bencher
            .counter(BytesCount::new(MESSAGE_BYTES))
            .bench_local(|| seal(key, &context(Codec::Lz4), black_box(&plain), &mut scratch, &mut out).is_ok());
    });
}

#[divan::bench]
fn restore_open_and_decompress_512_kib(bencher: Bencher<'_, '_>) {
    let plain = payload(MESSAGE_BYTES);
    with_message(|key, context| {
        let (mut scratch, mut sealed, mut out) = (Scratch::default(), Vec::new(), Vec::new());
        let Ok(info) = seal(key, &context(Codec::Lz4), &plain, &mut scratch, &mut sealed) else { return };
        bencher
            .counter(BytesCount::new(MESSAGE_BYTES))
            .bench_local(|| open(key, &context(info.codec), black_box(&sealed), &mut out).is_ok());
    });
}
