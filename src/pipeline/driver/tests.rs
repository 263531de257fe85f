use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};

use super::*;
use crate::flow::{Clock, Tally};
use crate::pipeline::codec::Packing;
use crate::pipeline::message;
use crate::pipeline::testing::{LANE, VAULT, Writer, input, lane, lane_keys, noise};
use crate::types::{BarrierKind, RecordView};
use crate::vault::batch::{HEADER_BYTES, Tail, open_index, parse_tail};
use crate::vault::index::IndexPlace;

fn config(threads: usize, batch_bytes: usize) -> PipelineConfig {
    let limits = BatcherLimits { batch_bytes, age: Duration::from_secs(1), ..BatcherLimits::default() };
    PipelineConfig { threads, limits, queue_bytes_max: 8 << 20, ..PipelineConfig::default() }
}

fn start(threads: usize, batch_bytes: usize) -> (Pipeline, Receiver<BatchObject>) {
    let (sender, receiver) = sync_channel(1000);
    let sink = move |batch| sender.send(batch).map_err(|_| SinkClosed);
    (Pipeline::start(&config(threads, batch_bytes), lane(), sink).unwrap(), receiver)
}

/// Reads a batch from its bytes alone, checks all that can be checked, and returns its records by disk.
fn read(batch: &BatchObject) -> Vec<(DiskId, Vec<u8>)> {
    let context = lane();
    let body = Bytes::from(batch.body.clone());
    let Tail::Whole { trailer, index } = parse_tail(body.len() as u64, &body).unwrap() else { panic!("whole") };
    let place = IndexPlace { vault: VAULT, object: &batch.name, lane: batch.lane, n: batch.n };
    let opened = open_index(&context.catalog, &place, &trailer, &index).unwrap();
    assert_eq!(opened, batch.index);
    assert_eq!(index, batch.sealed_index);
    assert_eq!(opened.record_count(), batch.records);
    let mut out = Vec::new();
    for part in &opened.disks {
        let mut records = Vec::new();
        for meta in &part.messages {
            let start = meta.offset_bytes as usize;
            assert!(start >= HEADER_BYTES);
            let bound = MessageContext {
                vault: VAULT,
                object: &batch.name,
                disk: &part.disk,
                epoch: meta.epoch,
                first: meta.first,
                last: meta.last,
                codec: meta.codec,
                plain_bytes: meta.plain_bytes,
            };
            let mut plain = Vec::new();
            let sealed = &body[start..start + meta.stored_bytes as usize];
            let key = context.keys.of_messages(&part.disk).unwrap().into();
            message::open(&key, &bound, sealed, &mut plain).unwrap();
            records.extend(plain);
        }
        out.push((part.disk.clone(), records));
    }
    out
}

fn wait_for(mut done: impl FnMut() -> bool) {
    for _ in 0..20_000 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("did not happen within 20 s");
}

#[test]
fn what_goes_in_comes_out_of_the_batches_byte_for_byte_and_in_order() {
    let (mut pipeline, batches) = start(4, 1 << 20);
    let mut writers: Vec<Writer> = (0..4).map(|number| Writer::new(&format!("disk-{number}"))).collect();
    let mut sent: Vec<Vec<u8>> = vec![Vec::new(); 4];
    for round in 0..200_u64 {
        for (which, writer) in writers.iter_mut().enumerate() {
            let record = match (round + which as u64) % 5 {
                0 => writer.write(round * 4096, &noise(round, 20_000)),
                1 => writer.write(round * 4096, &vec![round as u8; 60_000]),
                2 => writer.barrier(BarrierKind::Crash, "point"),
                3 => writer.zeroes(40),
                _ => writer.write(0, b"t"),
            };
            pipeline.push(Duration::ZERO, &writer.disk, input(&record), Micros(round)).unwrap();
            sent[which].extend(record);
        }
    }
    assert_eq!(
        pipeline.finish().unwrap(),
        1 + batches.try_iter().fold(0, |count, batch| {
            assert_eq!(batch.n, count + 1);
            assert_eq!(batch.name, format!("b/{LANE}/{:012}", batch.n));
            for (disk, records) in read(&batch) {
                let which: usize = disk.as_str()[5..].parse().unwrap();
                let rest = sent[which].split_off(records.len());
                assert_eq!(std::mem::replace(&mut sent[which], rest), records, "{disk} of batch {}", batch.n);
            }
            count + 1
        })
    );
    assert!(sent.iter().all(Vec::is_empty), "records are missing at the end");
}

#[test]
fn batches_come_near_their_target_size_for_what_packs_and_what_does_not() {
    for (seed, packs) in [(1, false), (2, true)] {
        let (mut pipeline, batches) = start(2, 2 << 20);
        let mut writer = Writer::new("web-1");
        for round in 0..600_u64 {
            let mut payload = noise(seed + round, 50_000);
            if packs {
                payload[10_000..].fill(0);
            }
            let record = writer.write(0, &payload);
            pipeline.push(Duration::ZERO, &writer.disk, input(&record), Micros(0)).unwrap();
            // The estimate needs results; on a busy machine the threads that make them can lag by whole batches.
            wait_for(|| pipeline.held_jobs() == 0);
        }
        pipeline.finish().unwrap();
        let sizes: Vec<usize> = batches.try_iter().map(|batch| batch.body.content_length()).collect();
        let settled = &sizes[1..sizes.len() - 1];
        assert!(!settled.is_empty());
        for &bytes in settled {
            assert!((1 << 20..4 << 20).contains(&bytes), "packs {packs}: {sizes:?}");
        }
    }
}

#[test]
fn a_lone_record_leaves_at_its_age_without_another_push() {
    let (mut pipeline, batches) = start(1, 16 << 20);
    let mut writer = Writer::new("web-1");
    let record = writer.write(0, b"lone");
    pipeline.push(Duration::from_secs(5), &writer.disk, input(&record), Micros(1)).unwrap();
    assert_eq!(pipeline.due(), Some(Duration::from_secs(6)));
    pipeline.poll(Duration::from_millis(5999)).unwrap();
    assert_eq!(pipeline.next_n(), 1);
    pipeline.poll(Duration::from_secs(6)).unwrap();
    assert_eq!(pipeline.next_n(), 2);
    let batch = batches.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!(read(&batch), [(writer.disk.clone(), record)]);
    assert_eq!((batch.records, batch.plain_bytes), (1, 148));
    assert_eq!(pipeline.due(), None);
}

#[test]
fn rolling_the_lane_closes_the_batch_and_numbers_start_anew() {
    let (mut pipeline, batches) = start(2, 16 << 20);
    let mut writer = Writer::new("web-1");
    let mut push = |pipeline: &mut Pipeline| {
        let record = writer.write(0, b"text");
        pipeline.push(Duration::ZERO, &writer.disk, input(&record), Micros(0)).unwrap();
    };
    push(&mut pipeline);
    pipeline.flush().unwrap();
    push(&mut pipeline);
    pipeline.roll(LaneContext { lane: Id128([7; 16]), keys: lane_keys(Id128([7; 16]), 8), ..lane() }).unwrap();
    push(&mut pipeline);
    assert_eq!(pipeline.finish().unwrap(), 2);
    let places: Vec<(Id128, u64)> = batches.try_iter().map(|batch| (batch.lane, batch.n)).collect();
    assert_eq!(places, [(LANE, 1), (LANE, 2), (Id128([7; 16]), 1)]);
}

#[test]
fn an_index_states_how_far_the_lane_was_confirmed_when_it_was_made() {
    let (sender, batches) = sync_channel(10);
    let context = lane();
    let confirmed = Arc::clone(&context.confirmed);
    let sink = move |batch| sender.send(batch).map_err(|_| SinkClosed);
    let mut pipeline = Pipeline::start(&config(1, 1 << 20), context, sink).unwrap();
    let mut writer = Writer::new("web-1");
    for n in 1..=3 {
        let record = writer.write(0, b"text");
        pipeline.push(Duration::ZERO, &writer.disk, input(&record), Micros(0)).unwrap();
        pipeline.flush().unwrap();
        let batch = batches.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!((batch.n, batch.index.confirmed_through), (n, n - 1));
        confirmed.advance(n);
    }
}

#[test]
fn a_waiting_sink_stops_the_feeder_with_bounded_bytes_and_loses_nothing() {
    let (sender, batches) = sync_channel(0);
    let sink = move |batch| sender.send(batch).map_err(|_| SinkClosed);
    let mut pipeline = Pipeline::start(&config(2, 1 << 20), lane(), sink).unwrap();
    let pushed = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&pushed);
    let feeder = std::thread::spawn(move || {
        let mut writer = Writer::new("web-1");
        for round in 0..1000_u64 {
            let record = writer.write(0, &noise(round, 60_000));
            pipeline.push(Duration::ZERO, &writer.disk, input(&record), Micros(0)).unwrap();
            count.fetch_add(record.len(), Ordering::SeqCst);
        }
        pipeline.finish().unwrap()
    });
    // Nobody takes: the feeder comes to rest, at no more than queue, open batch, and the one that is offered.
    let mut last = 0;
    let mut still = 0;
    wait_for(|| {
        let now = pushed.load(Ordering::SeqCst);
        still = if now == last && now > 0 { still + 1 } else { 0 };
        last = now;
        still > 200
    });
    assert!(last < (8 << 20) + 2 * (3 << 20) + (1 << 20), "{last}");
    let mut plain_bytes = 0;
    for batch in &batches {
        plain_bytes += batch.plain_bytes as usize;
    }
    feeder.join().unwrap();
    assert_eq!(plain_bytes, 1000 * (60_000 + 144));
}

#[test]
fn a_sink_that_ends_stops_the_pipeline_with_an_error_and_not_with_a_hang() {
    let (mut pipeline, batches) = start(2, 1 << 20);
    drop(batches);
    let mut writer = Writer::new("web-1");
    let error = (0..10_000).find_map(|round| {
        let record = writer.write(0, &noise(round, 60_000));
        pipeline.push(Duration::ZERO, &writer.disk, input(&record), Micros(0)).err()
    });
    assert!(matches!(error, Some(PushError::Stopped(PipelineError::Sink(_)))), "{error:?}");
    assert_eq!(error.unwrap().fault(), Fault::Fatal);
    assert!(pipeline.finish().is_err());
}

#[test]
fn finish_has_dropped_the_sink_whether_it_failed_or_not() {
    for gives_up in [false, true] {
        let held = Arc::new(());
        let inside = Arc::clone(&held);
        let sink = move |_: BatchObject| {
            let _keep = &inside;
            if gives_up { Err(SinkClosed) } else { Ok(()) }
        };
        let mut pipeline = Pipeline::start(&config(2, 1 << 20), lane(), sink).unwrap();
        let mut writer = Writer::new("web-1");
        let record = writer.write(0, b"text");
        pipeline.push(Duration::ZERO, &writer.disk, input(&record), Micros(0)).unwrap();
        assert_eq!(pipeline.finish().is_err(), gives_up);
        assert_eq!(Arc::strong_count(&held), 1);
    }
}

#[test]
fn a_sink_that_panics_stops_the_pipeline_with_an_error_and_not_with_a_hang() {
    let sink = |_: BatchObject| panic!("the sink went wrong");
    let mut pipeline = Pipeline::start(&config(2, 1 << 20), lane(), sink).unwrap();
    let mut writer = Writer::new("web-1");
    let error = (0..10_000).find_map(|round| {
        let record = writer.write(0, &noise(round, 60_000));
        pipeline.push(Duration::ZERO, &writer.disk, input(&record), Micros(0)).err()
    });
    assert!(matches!(error, Some(PushError::Stopped(_))), "{error:?}");
}

#[test]
fn one_poisoned_record_is_refused_by_name_and_the_others_go_on() {
    let (mut pipeline, batches) = start(1, 1 << 20);
    let mut writer = Writer::new("web-1");
    let good = writer.write(0, b"good");
    pipeline.push(Duration::ZERO, &writer.disk, input(&good), Micros(0)).unwrap();
    let error = pipeline.push(Duration::ZERO, &writer.disk, input(&noise(1, 500)), Micros(0)).unwrap_err();
    assert!(error.to_string().contains("web-1"), "{error}");
    assert_eq!(error.fault(), Fault::Corrupt);
    let next = writer.write(0, b"next");
    pipeline.push(Duration::ZERO, &writer.disk, input(&next), Micros(0)).unwrap();
    pipeline.finish().unwrap();
    let batch = batches.try_iter().next().unwrap();
    assert_eq!(read(&batch), [(writer.disk.clone(), [good, next].concat())]);
}

#[test]
fn a_record_that_changes_while_it_is_kept_is_named_and_leaves_no_hole_in_the_lane() {
    let (mut pipeline, batches) = start(1, 16 << 20);
    let mut writer = Writer::new("web-1");
    let mut push = |pipeline: &mut Pipeline, altered: bool| {
        let record = writer.write(0, &noise(3, 300_000));
        let mut input = Input { may_keep: true, ..input(&record) };
        if altered {
            input.unchecked_crc = input.unchecked_crc.map(|crc| crc ^ 1);
        }
        pipeline.push(Duration::ZERO, &writer.disk, input, Micros(0)).unwrap();
    };
    // The first message makes the disk a busy one, whose records are kept.
    for (altered, in_batch) in [(false, 1), (true, 0), (false, 1)] {
        push(&mut pipeline, altered);
        pipeline.flush().unwrap();
        let batch = batches.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!((batch.records, read(&batch).len()), (in_batch, in_batch as usize));
        let damaged = pipeline.take_damaged();
        let expected = PointId { epoch: crate::types::Epoch(1), seq: Seq(2) };
        assert_eq!(damaged, if altered { vec![(writer_disk(), expected)] } else { Vec::new() });
    }
    assert_eq!(pipeline.finish().unwrap(), 4);
}

#[test]
fn a_threads_memory_does_not_grow_with_the_number_of_its_messages() {
    let buffers = BufferPool::new(MESSAGE_BUFFER_BYTES, 1);
    let chooser = Arc::new(Chooser::new(PipelineConfig::default().codec, 1));
    let (mut worker, mut batcher) =
        (Worker::new(&chooser, &buffers, &Slabs::new(0)), Batcher::new(BatcherLimits::default(), Arc::clone(&buffers)));
    let target = Arc::new(Target { lane: Arc::new(lane()), n: 1, object: "b/1".into(), ordinal: 0 });
    let mut writer = Writer::new("web-1");
    for _ in 0..64 {
        let mut steps = Vec::new();
        for _ in 0..2 {
            let record = Input { may_keep: true, ..input(&writer.write(0, &[1; 100_000])) };
            batcher.push(Duration::ZERO, &writer.disk, record, Micros(0), &mut steps).unwrap();
        }
        batcher.flush(&mut steps);
        let Some(Step::Message(message)) = steps.into_iter().next() else { panic!("no message") };
        let key = target.lane.keys.of_messages(&message.disk).unwrap().into();
        assert!(matches!(worker.seal(message, &key, Arc::clone(&target)), Done::Sealed(..)));
    }
    let held_bytes = worker.plain.capacity() + worker.scratch.packed_capacity_bytes();
    assert!(held_bytes < 1 << 20, "{held_bytes}");
}

fn writer_disk() -> DiskId {
    crate::pipeline::testing::disk("web-1")
}

#[test]
fn a_dropped_pipeline_does_not_wait_for_a_sink_that_waits() {
    let (sender, batches) = sync_channel(0);
    let sink = move |batch| sender.send(batch).map_err(|_| SinkClosed);
    let mut pipeline = Pipeline::start(&config(2, 1 << 20), lane(), sink).unwrap();
    let mut writer = Writer::new("web-1");
    let record = writer.write(0, b"text");
    pipeline.push(Duration::ZERO, &writer.disk, input(&record), Micros(0)).unwrap();
    pipeline.flush().unwrap();
    drop(pipeline);
    drop(batches);
}

#[test]
fn no_key_shows_in_debug_output() {
    let shown = format!("{:?}", lane());
    assert!(!shown.contains("11, 11") && !shown.contains("1111"), "{shown}");
}

#[test]
fn records_of_one_disk_carry_on_across_batches_without_gap() {
    let (mut pipeline, batches) = start(3, 300_000);
    let mut writer = Writer::new("web-1");
    for round in 0..100_u64 {
        let record = writer.write(0, &noise(round, 30_000));
        pipeline.push(Duration::ZERO, &writer.disk, input(&record), Micros(0)).unwrap();
    }
    pipeline.finish().unwrap();
    let mut chain = None;
    let mut seq = 1;
    for batch in batches.try_iter() {
        for meta in batch.index.disks.iter().flat_map(|part| &part.messages) {
            assert_eq!(meta.first.0, seq);
            assert_eq!(meta.chain_before, chain);
            (seq, chain) = (meta.last.0 + 1, Some(meta.chain_last));
        }
        for (_, records) in read(&batch) {
            let (view, _) = RecordView::split(&records).unwrap();
            view.check_digest().unwrap();
        }
    }
    assert_eq!((seq, chain), (101, Some(writer.chain)));
}

/// Pushes `records` of one disk through a pipeline with this codec, and returns its messages by codec and the stored bytes.
fn stored(codec: CodecChoice, payloads: impl Iterator<Item = Vec<u8>>) -> ([usize; 3], usize) {
    let mut config = PipelineConfig { codec, ..config(1, 16 << 20) };
    config.limits.message_bytes = 500_000;
    let mut pipeline = Pipeline::in_place(&config, lane());
    let (mut writer, mut sent, mut found) = (Writer::new("web-1"), Vec::new(), Vec::new());
    let (mut by_codec, mut stored_bytes) = ([0; 3], 0);
    let mut take = |pipeline: &mut Pipeline, found: &mut Vec<u8>| {
        while let Some(batch) = pipeline.take_finished() {
            for meta in batch.index.disks.iter().flat_map(|part| &part.messages) {
                by_codec[meta.codec as usize] += 1;
                stored_bytes += meta.stored_bytes as usize;
            }
            read(&batch).into_iter().for_each(|(_, records)| found.extend(records));
        }
    };
    for payload in payloads {
        let record = writer.write(0, &payload);
        pipeline.push(Duration::ZERO, &writer.disk, input(&record), Micros(0)).unwrap();
        sent.extend(record);
        take(&mut pipeline, &mut found);
    }
    pipeline.flush().unwrap();
    take(&mut pipeline, &mut found);
    assert!(found == sent, "records came back otherwise");
    (by_codec, stored_bytes)
}

const ALL_CODECS: [CodecChoice; 5] = [
    CodecChoice::Fixed(Packing::None),
    CodecChoice::Fixed(Packing::Lz4),
    CodecChoice::Fixed(Packing::Zstd(1)),
    CodecChoice::Fixed(Packing::Zstd(9)),
    CodecChoice::Auto,
];

#[test]
fn every_codec_packs_what_can_be_packed_and_keeps_noise_raw() {
    for codec in ALL_CODECS {
        let text = (0..32_u64).map(|round| [noise(round, 250_000), vec![round as u8; 250_000]].concat());
        let (by_codec, stored_bytes) = stored(codec, text);
        let packed = match codec {
            CodecChoice::Fixed(packing) => packing.codec(),
            CodecChoice::Auto => Codec::Lz4,
        };
        assert_eq!(by_codec[packed as usize], 32, "{codec:?}");
        assert!(packed == Codec::Raw || stored_bytes < 32 * 256_000, "{codec:?}: {stored_bytes}");
        let (by_codec, _) = stored(codec, (0..32).map(|round| noise(round, 500_000)));
        assert_eq!(by_codec, [32, 0, 0], "{codec:?}");
    }
}

struct Hand(AtomicUsize);

impl Clock for Hand {
    fn wall(&self) -> Micros {
        Micros(0)
    }
    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::SeqCst) as u64)
    }
}

#[test]
fn auto_packs_harder_only_while_the_uplink_holds_batches_up() {
    for held_up in [false, true] {
        let hand = Arc::new(Hand(AtomicUsize::new(0)));
        let context = LaneContext { uplink: Arc::new(Tally::new(Arc::clone(&hand) as _)), ..lane() };
        context.uplink.set(held_up);
        let mut pipeline =
            Pipeline::in_place(&PipelineConfig { codec: CodecChoice::Auto, ..config(1, 1 << 20) }, context);
        let mut writer = Writer::new("web-1");
        let mut codecs = Vec::new();
        for round in 0..20 {
            hand.0.store(round * 500, Ordering::SeqCst);
            let record = writer.write(0, &b"tidegate ".repeat(1000));
            pipeline.push(Duration::ZERO, &writer.disk, input(&record), Micros(0)).unwrap();
            pipeline.flush().unwrap();
            let batch = pipeline.take_finished().unwrap();
            codecs.push(batch.index.disks[0].messages[0].codec);
            read(&batch);
        }
        // Three seconds in a row must be held up first.
        assert!(codecs[..6].iter().all(|codec| *codec == Codec::Lz4), "{codecs:?}");
        assert_eq!(codecs[19], if held_up { Codec::Zstd } else { Codec::Lz4 }, "{codecs:?}");
    }
}

/// Noise in between must not make the rest look like noise: in blocks, in messages, or in stretches of both.
#[test]
fn mixed_data_is_packed_nearly_as_well_as_if_everything_were_tried() {
    let block = |seed: u64, noisy: bool| if noisy { noise(seed, 4096) } else { vec![seed as u8; 4096] };
    let payload = |number: u64, noisy: &dyn Fn(u64) -> bool| -> Vec<u8> {
        (number * 128..(number + 1) * 128).flat_map(|seed| block(seed, noisy(seed))).collect()
    };
    let chance = |seed: u64| noise(seed ^ 0xabcd, 8)[3];
    type Mixture<'a> = (&'a str, &'a dyn Fn(u64) -> bool, f64);
    let mixtures: [Mixture<'_>; 4] = [
        ("three of four blocks are noise", &|seed| seed % 4 != 0, 0.76),
        ("nine of ten blocks are noise, by chance", &|seed| chance(seed) > 25, 0.93),
        ("each second message is noise", &|seed| seed / 128 % 2 == 0, 0.51),
        ("eight messages of noise, then eight of text", &|seed| seed / 1024 % 2 == 0, 0.51),
    ];
    for (name, noisy, share) in mixtures {
        let plain_bytes = 64 * 128 * 4096;
        let (_, stored_bytes) = stored(CodecChoice::default(), (0..64).map(|number| payload(number, noisy)));
        let found = stored_bytes as f64 / plain_bytes as f64;
        assert!(found < share + 0.01, "{name}: stored {found:.3} of it");
    }
}
