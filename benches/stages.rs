//! What one byte or one batch costs in each stage: `cargo bench`. Figures are for comparing changes on one machine; what
//! counts in the end is `loadgen bench`.

mod inputs;

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use inputs::{DISK_BYTES, Writer, datagrams, disk, index, noise, payload};
use tidegate::flow::Watermark;
use tidegate::journal::disk::AlignedBuf;
use tidegate::journal::format::{CommitBuilder, Header, Owner};
use tidegate::journal::{BackendChoice, Entry, Journal, JournalConfig};
use tidegate::keys::{CatalogKey, LaneKey};
use tidegate::limits::COMMIT_BYTES_MAX;
use tidegate::pipeline::codec::{Codec, Packing};
use tidegate::pipeline::message::{MessageContext, Scratch, open, seal};
use tidegate::restore::history::{History, Presence, Row};
use tidegate::restore::plan::Plan;
use tidegate::types::{Chain, DiskId, Epoch, Id128, Micros, PointId, Seq, record_digest};
use tidegate::vault::index::{BatchIndex, IndexPlace, MessageMeta, RecordMeta};
use tidegate::vault::objects::EpochObject;
use tidegate::vault::rng::Rng;
use tidegate::vault::upload_queue::{Next, QueueLimits, UploadQueue, Verdict};
use tidegate::wire::frame::{Decoder, crc32c};
use tidegate::wire::inbound::Inbound;

fn main() {
    // Long enough for a median, short enough that all of them take less than a minute.
    divan::Divan::from_args().max_time(Duration::from_millis(800)).main();
}

const RECORD_BYTES: usize = 1 << 20;
const MESSAGE_BYTES: usize = 512 << 10;
const RECORD_SIZES: [usize; 2] = [8 << 10, 64 << 10];

#[divan::bench]
fn agent_record_digest_1_mib(bencher: Bencher<'_, '_>) {
    let payload = payload(1, RECORD_BYTES);
    bencher.counter(BytesCount::new(RECORD_BYTES)).bench(|| record_digest(&[0; 16], [black_box(payload.as_slice())]));
}

#[divan::bench]
fn wire_body_crc_1_mib(bencher: Bencher<'_, '_>) {
    let payload = payload(1, RECORD_BYTES);
    bencher.counter(BytesCount::new(RECORD_BYTES)).bench(|| crc32c([black_box(payload.as_slice())]));
}

/// From datagrams to checked frames and accepted records: a MiB of them.
#[divan::bench(args = RECORD_SIZES)]
fn wire_frames_decoded_and_accepted(bencher: Bencher<'_, '_>, record_bytes: usize) {
    let chunks = datagrams(&Writer::new().records(RECORD_BYTES / record_bytes, record_bytes));
    bencher.counter(BytesCount::new(RECORD_BYTES)).with_inputs(|| chunks.clone()).bench_values(|chunks| {
        let mut decoder = Decoder::new();
        let mut inbound = Inbound::new(Epoch(1), Seq(1), Some(Chain::GENESIS), DISK_BYTES);
        let mut accepted = 0;
        for chunk in chunks {
            decoder.push(chunk);
            while let Ok(Some(frame)) = decoder.next_frame() {
                accepted += u64::from(inbound.accept(&frame, u64::MAX).is_ok());
            }
        }
        assert_eq!(accepted as usize, RECORD_BYTES / record_bytes);
    });
}

fn fill(builder: &mut CommitBuilder, disk: &DiskId, records: &[inputs::Record]) -> usize {
    for record in records {
        let at = (record.head.epoch, record.head.seq);
        builder.push_record(disk, at, Micros(1), record.crc, std::slice::from_ref(&record.bytes));
    }
    builder.seal(Owner { journal: Id128::NONE, shard: 0, segment: 1 }, 0, 1)
}

/// A group commit of a MiB: records copied in, table and header written.
#[divan::bench(args = RECORD_SIZES)]
fn journal_commit_encoded(bencher: Bencher<'_, '_>, record_bytes: usize) {
    let (records, disk) = (Writer::new().records(RECORD_BYTES / record_bytes, record_bytes), disk(1));
    let mut buf = AlignedBuf::zeroed(COMMIT_BYTES_MAX);
    bencher.counter(BytesCount::new(RECORD_BYTES)).bench_local(|| {
        let mut builder = CommitBuilder::new(std::mem::replace(&mut buf, AlignedBuf::none()));
        fill(&mut builder, &disk, black_box(&records));
        buf = builder.lend();
    });
}

/// The same commit read back: header, table and every record checked.
#[divan::bench(args = RECORD_SIZES)]
fn journal_commit_decoded(bencher: Bencher<'_, '_>, record_bytes: usize) {
    let (records, disk) = (Writer::new().records(RECORD_BYTES / record_bytes, record_bytes), disk(1));
    let mut builder = CommitBuilder::new(AlignedBuf::zeroed(COMMIT_BYTES_MAX));
    let commit_bytes = fill(&mut builder, &disk, &records);
    let commit = builder.lend();
    bencher.counter(BytesCount::new(RECORD_BYTES)).bench_local(|| {
        let commit = black_box(&commit[..commit_bytes]);
        let rows = Header::decode(commit).and_then(|header| header.rows(commit)).unwrap_or_default();
        assert!(rows.len() == records.len() && rows.iter().all(|row| row.is_whole(commit)));
    });
}

/// A MiB of records of 64 KiB appended, written and synced on a real disk, then released.
#[divan::bench(args = ["ring", "std"])]
fn journal_append_1_mib_until_journaled(bencher: Bencher<'_, '_>, backend: &str) {
    let backend: BackendChoice = backend.parse().expect("a backend");
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let config = JournalConfig { shards: 1, backend, ..JournalConfig::new(folder.path().join("journal"), 512 << 20) };
    let journal = match Journal::open(&config, "bench") {
        Ok((journal, _)) => journal,
        Err(error) => return println!("not measured here: {error}"),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let (disk, mut writer, journaled) = (disk(1), Writer::new(), Arc::new(Watermark::new(0)));
    bencher
        .counter(BytesCount::new(RECORD_BYTES))
        .with_inputs(|| writer.records(16, 64 << 10))
        .bench_local_values(|records| runtime.block_on(append(&journal, &disk, &records, &journaled)));
    journal.close();
}

async fn append(journal: &Journal, disk: &DiskId, records: &[inputs::Record], journaled: &Arc<Watermark>) {
    for record in records {
        let entry = Entry {
            disk,
            head: &record.head,
            body_crc: record.crc,
            received: Micros(1),
            chunks: std::slice::from_ref(&record.bytes),
            journaled,
        };
        journal.append(entry).await.expect("appended");
    }
    let Some(last) = records.last() else { return };
    journaled.beyond(last.head.seq.0 - 1).await;
    journal.vaulted(disk, Epoch(1), last.head.seq, last.head.chain);
}

fn context<'a>(disk: &'a DiskId, codec: Codec) -> MessageContext<'a> {
    MessageContext {
        vault: Id128::NONE,
        object: "b/000/bench/1",
        disk,
        epoch: Epoch(1),
        first: Seq(1),
        last: Seq(1),
        codec,
        plain_bytes: MESSAGE_BYTES as u32,
    }
}

const PACKINGS: [&str; 5] = ["none", "lz4", "zstd:1", "zstd:3", "zstd:9"];

fn scratch(packing: &str) -> Scratch {
    Scratch::new(match packing.strip_prefix("zstd:") {
        Some(level) => Packing::Zstd(level.parse().expect("a level")),
        None if packing == "none" => Packing::None,
        None => Packing::Lz4,
    })
}

#[divan::bench(args = PACKINGS)]
fn pipeline_pack_and_seal_512_kib(bencher: Bencher<'_, '_>, packing: &str) {
    let (plain, key, disk) = (payload(1, MESSAGE_BYTES), LaneKey::from_secret([1; 32]).into(), disk(1));
    let mut scratch = scratch(packing);
    bencher.counter(BytesCount::new(MESSAGE_BYTES)).bench_local(|| {
        seal(&key, &context(&disk, Codec::Raw), black_box(&plain), &mut scratch, BytesMut::with_capacity).is_ok()
    });
}

/// What a message of a disk in doubt costs before it is kept raw.
#[divan::bench(args = ["lz4", "zstd:3", "zstd:9"])]
fn pipeline_sample_of_512_kib_of_noise(bencher: Bencher<'_, '_>, packing: &str) {
    let (plain, mut scratch) = (noise(1, MESSAGE_BYTES), scratch(packing));
    let packing = scratch.packing;
    bencher
        .counter(BytesCount::new(MESSAGE_BYTES))
        .bench_local(|| assert!(!scratch.sample_pays(packing, black_box(&plain))));
}

#[divan::bench(args = PACKINGS)]
fn restore_open_and_unpack_512_kib(bencher: Bencher<'_, '_>, packing: &str) {
    let (plain, key, disk) = (payload(1, MESSAGE_BYTES), LaneKey::from_secret([1; 32]).into(), disk(1));
    let (mut scratch, mut out) = (scratch(packing), Vec::new());
    let (info, sealed) =
        seal(&key, &context(&disk, Codec::Raw), &plain, &mut scratch, BytesMut::with_capacity).expect("sealed");
    let sealed = sealed.to_vec();
    bencher
        .counter(BytesCount::new(MESSAGE_BYTES))
        .bench_local(|| assert!(open(&key, &context(&disk, info.codec), black_box(&sealed), &mut out).is_ok()));
}

#[divan::bench]
fn vault_index_encoded_and_sealed(bencher: Bencher<'_, '_>) {
    let (index, key) = (index(), CatalogKey::from_secret([2; 32]));
    let place = IndexPlace { vault: Id128::NONE, object: "b/000/bench/7", lane: index.lane, n: index.n };
    let records = ItemsCount::new(index.record_count() as usize);
    bencher.counter(records).bench(|| black_box(&index).seal(&key, &place).is_ok());
}

#[divan::bench]
fn vault_index_decoded(bencher: Bencher<'_, '_>) {
    let index = index();
    let (plain, records) = (index.encode(), ItemsCount::new(index.record_count() as usize));
    bencher.counter(records).bench(|| BatchIndex::decode(black_box(&plain)).is_ok());
}

/// Batches through the scheduler, one refused in sixteen.
#[divan::bench(args = [16, 1024])]
fn vault_upload_queue(bencher: Bencher<'_, '_>, batches: u64) {
    bencher.counter(ItemsCount::new(batches as usize)).bench(|| {
        let mut queue = UploadQueue::new(QueueLimits::default(), Rng::seeded(1));
        let mut now = Duration::ZERO;
        (1..=batches).for_each(|n| queue.push(n, now));
        while !queue.is_empty() {
            now += Duration::from_millis(1);
            match queue.next(now) {
                Next::Start(n) if n.is_multiple_of(16) && queue.failures(n) == 0 => {
                    queue.report(n, now, Verdict::Passing);
                }
                Next::Start(n) => {
                    queue.report(n, now, Verdict::Done { bytes: 4 << 20 });
                }
                Next::At(at) => now = at,
                Next::Idle => {}
            }
        }
    });
}

fn epoch_object() -> EpochObject {
    EpochObject {
        disk: disk(1),
        epoch: Epoch(1),
        previous: None,
        fork_seq: Seq::NONE,
        chain_at_fork: Chain::GENESIS,
        size_bytes: DISK_BYTES,
        agent: "bench".into(),
        nonce: Id128::NONE,
        reason: "bench".into(),
        gateway: "bench".into(),
        created_micros: Micros(1),
    }
}

/// Rows of one disk: `count` messages of 64 records each.
fn rows(count: u64) -> Vec<Row> {
    let mut next = inputs::numbers(11);
    let template = index().disks.remove(0).messages.remove(0);
    let row = |number: u64| {
        let first = number * 64 + 1;
        let records = template.records.iter().enumerate().map(|(at, record)| {
            let mut record = RecordMeta { seq: Seq(first + at as u64), ..record.clone() };
            record.extents[0].offset_bytes = next() % (1 << 20) * 8192;
            record
        });
        let message = MessageMeta {
            first: Seq(first),
            last: Seq(first + 63),
            offset_bytes: number % 32 * 130_000,
            chain_before: Some(Chain([number as u8; 32])),
            chain_last: Chain([number as u8 + 1; 32]),
            records: records.collect(),
            ..template.clone()
        };
        Row { object: (number / 32) as u32, confirmed: true, presence: Presence::Here, message }
    };
    (0..count).map(row).collect()
}

/// From index rows to the list of reads: 64,000 records of 8 KiB all over the disk.
#[divan::bench(sample_count = 20)]
fn restore_history_and_plan(bencher: Bencher<'_, '_>) {
    let (rows, epochs) = (rows(1000), [epoch_object()]);
    let target = PointId { epoch: Epoch(1), seq: Seq(64_000) };
    bencher.counter(ItemsCount::new(64_000_usize)).with_inputs(|| rows.clone()).bench_local_values(|rows| {
        let history = History::build(&epochs, rows);
        let plan = Plan::build(&history, target).expect("the target is there");
        assert!(plan.data_bytes() > 0);
        (history, plan)
    });
}
