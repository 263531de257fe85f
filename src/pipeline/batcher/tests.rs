use proptest::prelude::*;

use super::*;
use crate::pipeline::testing::{Writer, input, noise};
use crate::types::BarrierKind;

const SECOND: Duration = Duration::from_secs(1);

fn limits_of(message_bytes: usize, batch_bytes: usize) -> BatcherLimits {
    BatcherLimits { message_bytes, batch_bytes, age: SECOND }
}

struct Bench {
    batcher: Batcher,
    steps: Vec<Step>,
}

impl Bench {
    fn new(message_bytes: usize, batch_bytes: usize) -> Self {
        let buffers = BufferPool::new(limits::MESSAGE_BYTES_TARGET, 4);
        Self { batcher: Batcher::new(limits_of(message_bytes, batch_bytes), buffers), steps: Vec::new() }
    }

    fn push(&mut self, disk: &DiskId, record: &[u8]) {
        self.push_at(Duration::ZERO, disk, record);
    }

    fn push_at(&mut self, now: Duration, disk: &DiskId, record: &[u8]) {
        self.batcher.push(now, disk, input(record), Micros(now.as_micros() as u64), &mut self.steps).unwrap();
    }

    fn write(&mut self, writer: &mut Writer, payload_bytes: usize) {
        let record = writer.write(0, &vec![1; payload_bytes]);
        self.push(&writer.disk.clone(), &record);
    }

    /// The steps as text: `disk e1 s1-3`, or the reason of a close.
    fn taken(&mut self) -> Vec<String> {
        let show = |step: Step| match step {
            Step::Message(one) => format!("{} e{} s{}-{}", one.disk, one.epoch, one.first, one.last),
            Step::Close(reason) => reason.as_str().to_owned(),
        };
        self.steps.drain(..).map(show).collect()
    }
}

#[test]
fn a_message_closes_at_its_target_and_holds_whole_records_in_order() {
    let mut bench = Bench::new(1000, 1 << 20);
    let mut writer = Writer::new("web-1");
    let mut sent = Vec::new();
    for number in 0..7_u8 {
        let record = writer.write(u64::from(number) * 512, &[number; 300]);
        bench.push(&writer.disk.clone(), &record);
        sent.extend(record);
    }
    bench.batcher.flush(&mut bench.steps);
    let plains: Vec<u8> = bench
        .steps
        .iter()
        .filter_map(|step| match step {
            Step::Message(message) => Some(message.content.to_vec()),
            Step::Close(_) => None,
        })
        .flatten()
        .collect();
    assert_eq!(plains, sent);
    assert_eq!(bench.taken(), ["web-1 e1 s1-3", "web-1 e1 s4-6", "web-1 e1 s7-7", "asked"]);
}

#[test]
fn another_epoch_or_a_gap_in_seq_closes_the_message_but_not_the_batch() {
    let mut bench = Bench::new(1 << 20, 1 << 24);
    let mut writer = Writer::new("web-1");
    bench.write(&mut writer, 10);
    bench.write(&mut writer, 10);
    writer.write(0, b"lost on the way");
    bench.write(&mut writer, 10);
    writer.fork();
    bench.write(&mut writer, 10);
    bench.batcher.flush(&mut bench.steps);
    assert_eq!(bench.taken(), ["web-1 e1 s1-2", "web-1 e1 s4-4", "web-1 e2 s1-1", "asked"]);
}

#[test]
fn the_chain_before_is_known_when_the_record_before_was_seen_also_across_batches() {
    let mut bench = Bench::new(1 << 20, 1 << 24);
    let mut writer = Writer::new("web-1");
    let mut chains = Vec::new();
    for round in 0..4 {
        if round == 2 {
            writer.write(0, b"lost");
        }
        bench.write(&mut writer, 10);
        chains.push(writer.chain);
        bench.batcher.flush(&mut bench.steps);
    }
    let known: Vec<_> = bench
        .steps
        .iter()
        .filter_map(|step| match step {
            Step::Message(message) => Some((message.chain_before, message.chain_last)),
            Step::Close(_) => None,
        })
        .collect();
    assert_eq!(
        known,
        [(None, chains[0]), (Some(chains[0]), chains[1]), (None, chains[2]), (Some(chains[2]), chains[3])]
    );
}

#[test]
fn a_batch_closes_at_the_age_of_its_first_record_and_an_empty_one_never() {
    let mut bench = Bench::new(1 << 20, 1 << 24);
    let mut writer = Writer::new("web-1");
    bench.batcher.poll(SECOND * 100, &mut bench.steps);
    assert_eq!(bench.batcher.due(), None);
    assert!(bench.taken().is_empty(), "an empty batch was closed");
    let disk = writer.disk.clone();
    bench.push_at(SECOND * 100, &disk, &writer.write(0, b"one"));
    bench.push_at(SECOND * 100 + SECOND / 2, &disk, &writer.write(0, b"two"));
    assert_eq!(bench.batcher.due(), Some(SECOND * 101));
    bench.batcher.poll(SECOND * 101 - Duration::from_nanos(1), &mut bench.steps);
    assert!(bench.taken().is_empty());
    bench.batcher.poll(SECOND * 101, &mut bench.steps);
    assert_eq!(bench.taken(), ["web-1 e1 s1-2", "age"]);
    assert_eq!(bench.batcher.due(), None);
    bench.batcher.flush(&mut bench.steps);
    assert!(bench.taken().is_empty());
}

#[test]
fn a_batch_closes_at_its_size_with_the_open_messages_of_every_disk() {
    let mut bench = Bench::new(1 << 20, 9000);
    let (mut one, mut two) = (Writer::new("one"), Writer::new("two"));
    for _ in 0..4 {
        bench.write(&mut one, 1000);
        bench.write(&mut two, 1000);
    }
    let taken = bench.taken();
    assert_eq!(taken.len(), 3, "{taken:?}");
    assert!(taken[0].starts_with("one e1 s1-") && taken[1].starts_with("two e1 s1-"), "{taken:?}");
    assert_eq!(taken[2], "bytes");
    assert_eq!(bench.batcher.ordinal(), 1);
}

#[test]
fn what_packs_well_makes_batches_of_more_plaintext_once_it_is_known() {
    let mut bench = Bench::new(100_000, 1 << 20);
    let mut writer = Writer::new("web-1");
    let mut plain_bytes = Vec::new();
    let mut batch_bytes = 0;
    for _ in 0..2000 {
        bench.write(&mut writer, 50_000);
        for step in std::mem::take(&mut bench.steps) {
            match step {
                Step::Message(message) => {
                    batch_bytes += message.plain_bytes;
                    bench.batcher.note_sealed(bench.batcher.ordinal(), message.plain_bytes, message.plain_bytes / 4);
                }
                Step::Close(_) => plain_bytes.push(std::mem::take(&mut batch_bytes)),
            }
        }
    }
    let late = plain_bytes.last().unwrap();
    assert!((3 << 20..5 << 20).contains(late), "{plain_bytes:?}");
}

#[test]
fn late_reports_of_a_closed_batch_do_not_count_for_the_present_one() {
    let mut bench = Bench::new(1000, 1 << 20);
    let mut writer = Writer::new("web-1");
    bench.write(&mut writer, 2000);
    bench.batcher.flush(&mut bench.steps);
    bench.write(&mut writer, 2000);
    let before = bench.batcher.estimated_bytes();
    bench.batcher.note_sealed(0, 2128, 2200);
    assert!(bench.batcher.estimated_bytes() <= before);
    bench.batcher.note_sealed(1, 2144, 100_000);
    assert!(bench.batcher.estimated_bytes() > 100_000);
}

#[test]
fn open_messages_of_many_quiet_disks_stay_under_the_bound() {
    let mut bench = Bench::new(limits::MESSAGE_BYTES_TARGET, limits::BATCH_BYTES_TARGET);
    // As if everything packed to nothing, so that size alone would never close the batch.
    bench.batcher.note_sealed(u64::MAX, 1 << 30, 0);
    let mut writers: Vec<Writer> = (0..300).map(|number| Writer::new(&format!("disk-{number}"))).collect();
    let mut closes = 0;
    for _ in 0..3 {
        for writer in &mut writers {
            let payload = vec![0; 250_000];
            let record = writer.write(0, &payload);
            bench.push(&writer.disk.clone(), &record);
            assert!(bench.batcher.open_bytes() < BATCH_PLAIN_BYTES_MAX);
            assert!(bench.batcher.open_capacity_bytes <= OPEN_CAPACITY_BYTES_MAX + BATCH_PLAIN_BYTES_MAX);
            closes += bench.steps.drain(..).filter(|step| matches!(step, Step::Close(_))).count();
        }
    }
    assert!(closes >= 3, "{closes}");
    let open: usize = bench.batcher.open.values().map(|open| open.content.capacity_bytes()).sum();
    assert_eq!(open, bench.batcher.open_capacity_bytes);
}

#[test]
fn rows_close_a_batch_before_its_index_can_pass_its_limit() {
    let mut bench = Bench::new(limits::MESSAGE_BYTES_TARGET, usize::MAX);
    bench.batcher.note_sealed(u64::MAX, 1 << 30, 0);
    let mut writer = Writer::new("web-1");
    let record = writer.zeroes(4096);
    let mut rows_bytes = 0;
    let mut closed = false;
    // The same record over and over: a gap in seq each time, so each is a message of its own.
    for _ in 0..1000 {
        bench.push(&writer.disk.clone(), &record);
        rows_bytes = rows_bytes.max(bench.batcher.fill.rows_bytes);
        closed |= bench.steps.drain(..).any(|step| matches!(step, Step::Close(CloseReason::Bytes)));
    }
    assert!(closed);
    assert!(rows_bytes <= INDEX_PLAIN_BYTES_MAX, "{rows_bytes}");
}

#[test]
fn bytes_that_are_no_whole_record_are_refused_and_leave_nothing_behind() {
    let mut bench = Bench::new(1 << 20, 1 << 24);
    let mut writer = Writer::new("web-1");
    let record = writer.write(0, b"text");
    let disk = writer.disk.clone();
    let longer = [record.as_slice(), &[0]].concat();
    for bytes in [&record[..record.len() - 1], &record[1..], &longer, &noise(1, 300)] {
        assert!(bench.batcher.push(SECOND, &disk, input(bytes), Micros(0), &mut bench.steps).is_err());
    }
    assert_eq!(bench.batcher.due(), None);
    bench.push(&disk, &record);
    bench.batcher.flush(&mut bench.steps);
    assert_eq!(bench.taken(), ["web-1 e1 s1-1", "asked"]);
}

#[test]
fn index_rows_say_what_the_records_say() {
    let mut bench = Bench::new(1 << 20, 1 << 24);
    let mut writer = Writer::new("web-1");
    let disk = writer.disk.clone();
    for record in [writer.write(4096, b"text"), writer.zeroes(2), writer.barrier(BarrierKind::App, "noon")] {
        bench.push(&disk, &record);
    }
    bench.batcher.flush(&mut bench.steps);
    let Some(Step::Message(message)) = bench.steps.first() else { panic!("no message") };
    let rows = &message.records;
    assert_eq!(rows.iter().map(|row| row.seq.0).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(rows[0].extents[0].offset_bytes, 4096);
    assert_eq!(rows[1].extents.len(), 2);
    assert_eq!(rows[2].name.as_deref(), Some("noon"));
    assert_eq!(rows[2].group, Id128([3; 16]));
    assert_eq!(message.chain_last, writer.chain);
}

proptest! {
    /// Whatever comes in whatever mixture: every record leaves exactly once, in the order of its disk, in messages of
    /// consecutive seqs, and the steps after the last close are none.
    #[test]
    fn nothing_is_lost_doubled_or_reordered(
        writes in proptest::collection::vec((0..5_usize, 1..5000_usize, 0..40_u8), 1..200),
    ) {
        let mut bench = Bench::new(8000, 40_000);
        let mut writers: Vec<Writer> = (0..5).map(|number| Writer::new(&format!("disk-{number}"))).collect();
        let mut sent: Vec<Vec<u8>> = vec![Vec::new(); 5];
        let mut now = Duration::ZERO;
        for (which, bytes, event) in writes {
            match event {
                0 => writers[which].fork(),
                1 => drop(writers[which].write(0, b"lost on the way")),
                2 => now += SECOND / 3,
                3 => bench.batcher.flush(&mut bench.steps),
                _ => {}
            }
            let record = writers[which].write(0, &vec![event; bytes]);
            bench.batcher.poll(now, &mut bench.steps);
            bench.push_at(now, &writers[which].disk.clone(), &record);
            sent[which].extend(record);
        }
        bench.batcher.flush(&mut bench.steps);
        prop_assert!(matches!(bench.steps.last(), Some(Step::Close(_))));
        let mut got: Vec<Vec<u8>> = vec![Vec::new(); 5];
        let mut in_batch = 0;
        for step in &bench.steps {
            let Step::Message(message) = step else {
                prop_assert!(in_batch > 0, "an empty batch was closed");
                in_batch = 0;
                continue;
            };
            in_batch += 1;
            let plain = message.content.to_vec();
            prop_assert_eq!(plain.len(), message.plain_bytes);
            let mut rest = &plain[..];
            let mut expected = message.first;
            while !rest.is_empty() {
                let (view, after) = RecordView::split(rest).unwrap();
                prop_assert_eq!((view.head.epoch, view.head.seq), (message.epoch, expected));
                (rest, expected) = (after, expected.next());
            }
            prop_assert_eq!(message.last.next(), expected);
            let which: usize = message.disk.as_str()[5..].parse().unwrap();
            got[which].extend_from_slice(&plain);
        }
        prop_assert_eq!(got, sent);
    }
}
