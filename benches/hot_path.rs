//! The hot path in cases whose instructions can be counted: the same work on every run, on one thread, without a clock.
//!
//! ```text
//!  hot_path                runs every case once (what `cargo bench` does)
//!  hot_path --list         names them
//!  hot_path CASE           runs one, once to warm up and once inside `counted`, where callgrind counts
//! ```
//!
//! `tests/instructions` counts and compares with `benches/instructions.txt`.

mod inputs;

use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use inputs::{DISK_BYTES, Record, Writer, datagrams, disk, index, noise};
use metrics::{counter, gauge, histogram};
use tidegate::flow::{SystemClock, Tally, Watermark};
use tidegate::journal::disk::AlignedBuf;
use tidegate::journal::format::{CommitBuilder, Header, Owner};
use tidegate::keys::{CatalogKey, LaneKey, LaneKeys};
use tidegate::limits::COMMIT_BYTES_MAX;
use tidegate::pipeline::codec::Packing;
use tidegate::pipeline::{CodecChoice, Input, LaneContext, Pipeline, PipelineConfig};
use tidegate::telemetry::{latency, names, recorder};
use tidegate::types::{Chain, Epoch, Id128, Micros, Seq};
use tidegate::vault::index::BatchIndex;
use tidegate::wire::frame::Decoder;
use tidegate::wire::inbound::Inbound;

/// Work that can be done again and again.
type Case = Box<dyn FnMut()>;
/// Its name, and how it is made.
type Named = (&'static str, fn() -> Case);

/// A MiB each, except where the name says otherwise.
const CASES: [Named; 11] = [
    ("wire_frames_of_64_kib", || wire_frames(64 << 10)),
    ("wire_frames_of_8_kib", || wire_frames(8 << 10)),
    ("journal_commit_of_64_kib_records", || commit_encoded(64 << 10)),
    ("journal_commit_of_8_kib_records", || commit_encoded(8 << 10)),
    ("journal_commit_of_8_kib_records_checked", || commit_checked(8 << 10)),
    ("pipeline_512_kib_lz4", || pipeline(Packing::Lz4, false)),
    ("pipeline_512_kib_zstd_3", || pipeline(Packing::Zstd(3), false)),
    ("pipeline_512_kib_noise", || pipeline(Packing::Lz4, true)),
    ("index_of_8192_records_encoded", index_encoded),
    ("index_of_8192_records_decoded", index_decoded),
    ("recording_for_8_kib_records", || recording(8 << 10)),
];

fn main() -> ExitCode {
    // `cargo bench` hands on an option of its own.
    let wanted = std::env::args().nth(1).filter(|argument| argument != "--bench");
    match wanted.as_deref() {
        None => CASES.iter().for_each(|(_, make)| run(make())),
        Some("--list") => CASES.iter().for_each(|(name, _)| println!("{name}")),
        Some(name) => match CASES.iter().find(|(case, _)| *case == name) {
            Some((_, make)) => run(make()),
            None => {
                eprintln!("hot_path: there is no case {name}: --list names them");
                return ExitCode::from(2);
            }
        },
    }
    ExitCode::SUCCESS
}

fn run(mut case: Case) {
    // First use of buffers and tables.
    case();
    counted(&mut case);
}

/// The name is what callgrind looks for.
#[inline(never)]
fn counted(case: &mut Case) {
    case();
}

const MIB: usize = 1 << 20;

fn wire_frames(record_bytes: usize) -> Case {
    let chunks = datagrams(&Writer::new().records(MIB / record_bytes, record_bytes));
    Box::new(move || {
        let mut decoder = Decoder::new();
        let mut inbound = Inbound::new(Epoch(1), Seq(1), Some(Chain::GENESIS), DISK_BYTES);
        let mut accepted = 0;
        for chunk in &chunks {
            decoder.push(Bytes::clone(chunk));
            while let Ok(Some(frame)) = decoder.next_frame() {
                accepted += usize::from(inbound.accept(&frame, u64::MAX).is_ok());
            }
        }
        assert_eq!(accepted, MIB / record_bytes);
    })
}

fn fill(mut builder: CommitBuilder, records: &[Record]) -> (AlignedBuf, usize) {
    let disk = disk(1);
    for record in records {
        let at = (record.head.epoch, record.head.seq);
        builder.push_record(&disk, at, Micros(1), record.crc, std::slice::from_ref(&record.bytes));
    }
    let commit_bytes = builder.seal(Owner { journal: Id128::NONE, shard: 0, segment: 1 }, 0, 1);
    (builder.lend(), commit_bytes)
}

fn commit_encoded(record_bytes: usize) -> Case {
    let records = Writer::new().records(MIB / record_bytes, record_bytes);
    let mut buf = AlignedBuf::zeroed(COMMIT_BYTES_MAX);
    Box::new(move || {
        let builder = CommitBuilder::new(std::mem::replace(&mut buf, AlignedBuf::none()));
        (buf, _) = fill(builder, &records);
    })
}

fn commit_checked(record_bytes: usize) -> Case {
    let records = Writer::new().records(MIB / record_bytes, record_bytes);
    let (commit, commit_bytes) = fill(CommitBuilder::new(AlignedBuf::zeroed(COMMIT_BYTES_MAX)), &records);
    Box::new(move || {
        let commit = &commit[..commit_bytes];
        let rows = Header::decode(commit).and_then(|header| header.rows(commit)).unwrap_or_default();
        assert!(rows.len() == records.len() && rows.iter().all(|row| row.is_whole(commit)));
    })
}

/// One message of records of 64 KiB, from the batcher to the finished batch.
fn pipeline(packing: Packing, noisy: bool) -> Case {
    let config = PipelineConfig { codec: CodecChoice::Fixed(packing), ..PipelineConfig::default() };
    let lane = LaneContext {
        vault: Id128::NONE,
        lane: Id128([1; 16]),
        keys: LaneKeys::new(Id128::NONE, Id128([1; 16]), LaneKey::from_secret([1; 32])).into(),
        catalog: CatalogKey::from_secret([2; 32]),
        next_n: 1,
        confirmed: Watermark::new(0).into(),
        uplink: Tally::new(std::sync::Arc::new(SystemClock::new())).into(),
        object_name: |lane, n| format!("b/{lane}/{n}"),
    };
    let (mut pipeline, disk, mut writer) = (Pipeline::in_place(&config, lane), disk(1), Writer::new());
    let mut round = |seed| match noisy {
        true => noise(seed, MIB / 2).chunks(64 << 10).map(|payload| writer.write(payload)).collect(),
        false => writer.records(8, 64 << 10),
    };
    let mut rounds = vec![round(1), round(2)].into_iter();
    Box::new(move || {
        for record in rounds.next().expect("one round to warm up and one to count") {
            let input = Input { bytes: record.bytes, unchecked_crc: Some(record.crc), may_keep: true };
            pipeline.push(Duration::ZERO, &disk, input, Micros(1)).expect("taken");
        }
        pipeline.flush().expect("sealed");
        assert!(pipeline.take_finished().is_some());
    })
}

fn index_encoded() -> Case {
    let index = index();
    Box::new(move || assert!(!index.encode().is_empty()))
}

fn index_decoded() -> Case {
    let plain = index().encode();
    Box::new(move || assert!(BatchIndex::decode(&plain).is_ok()))
}

/// Everything that is recorded while a MiB goes its way, by the calls that the stages make: for each record at the wire, for
/// the commit that holds them, for the two messages that they become, for the batch.
fn recording(record_bytes: usize) -> Case {
    // The last case: those before count without a recorder. A second one is refused, which changes nothing.
    let _ = recorder::install();
    let records = (MIB / record_bytes) as u64;
    let received = [counter!(names::RECEIVED_BYTES), counter!(names::RECEIVED_RECORDS)];
    let acks = counter!(names::ACKS_SENT, "level" => "journaled");
    let times: Vec<(u64, u64)> = (0..records).map(|record| (2000 + 37 * record, 1)).collect();
    Box::new(move || {
        for _ in 0..records {
            received[0].increment(record_bytes as u64);
            received[1].increment(1);
        }
        histogram!(names::JOURNAL_COMMIT_SECONDS).record(0.003);
        histogram!(names::JOURNAL_COMMIT_BYTES).record(MIB as f64);
        counter!(names::JOURNALED_RECORDS).increment(records);
        counter!(names::JOURNALED_BYTES).increment(MIB as u64);
        gauge!(names::JOURNAL_USED_BYTES).set(MIB as f64);
        latency::journaled().record(times.iter().copied());
        acks.increment(1);
        for _ in 0..2 {
            gauge!(names::PIPELINE_QUEUE_MESSAGES).set(1.0);
            gauge!(names::PIPELINE_QUEUE_BYTES).set(MIB as f64);
            counter!(names::PIPELINE_RECORDS).increment(records / 2);
            counter!(names::PIPELINE_MESSAGES, "codec" => "lz4").increment(1);
            counter!(names::PIPELINE_PLAIN_BYTES, "codec" => "lz4").increment(MIB as u64 / 2);
            counter!(names::PIPELINE_SEALED_BYTES, "codec" => "lz4").increment(MIB as u64 / 4);
        }
        counter!(names::PIPELINE_BATCHES, "reason" => "age").increment(1);
        counter!(names::BLOB_REQUESTS, "operation" => "put", "outcome" => "ok").increment(1);
        histogram!(names::BLOB_REQUEST_SECONDS, "operation" => "put").record(0.02);
        // Sixteen steps for each message.
        latency::vaulted().record(times.iter().take(32).copied());
        counter!(names::VAULTED_BYTES).increment(MIB as u64);
        counter!(names::VAULTED_RECORDS).increment(records);
        counter!(names::VAULTED_STORED_BYTES).increment(MIB as u64 / 2);
        counter!(names::RELEASED_BYTES).increment(MIB as u64);
        counter!(names::RELEASED_RECORDS).increment(records);
    })
}
