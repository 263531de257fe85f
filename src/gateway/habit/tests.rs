//! A disk that writes as ever, and one that somebody encrypts.

use super::*;
use crate::pipeline::codec::Codec;
use crate::types::{Chain, Id128};
use crate::vault::index::RecordMeta;

const MIB: u32 = 1 << 20;
const START: u64 = 1_800_000_000_000_000;

/// A disk that writes a message a second.
struct Disk {
    habit: Habit,
    epoch: Epoch,
    seq: u64,
    second: u64,
}

impl Disk {
    fn new() -> Self {
        let mut disk = Self { habit: Habit::default(), epoch: Epoch(1), seq: 0, second: 0 };
        disk.barrier(BarrierKind::SyncBegin);
        disk
    }

    fn now(&self) -> Micros {
        Micros(START + self.second * 1_000_000)
    }

    fn message(&mut self, kind: RecordKind, plain_bytes: u32, stored_bytes: u32) -> MessageMeta {
        self.seq += 1;
        self.second += 1;
        let record = RecordMeta {
            seq: Seq(self.seq),
            label: self.now(),
            uncertainty_micros: 0,
            kind,
            group: Id128::NONE,
            name: None,
            extents: Vec::new(),
        };
        MessageMeta {
            epoch: self.epoch,
            first: Seq(self.seq),
            last: Seq(self.seq),
            offset_bytes: 0,
            stored_bytes,
            plain_bytes,
            codec: Codec::Lz4,
            chain_before: None,
            chain_last: Chain::GENESIS,
            received_first: self.now(),
            received_last: self.now(),
            origin: None,
            records: vec![record],
        }
    }

    fn write(&mut self, mib: u32, ratio: f64) {
        for _ in 0..mib {
            let message = self.message(RecordKind::Write, MIB, (f64::from(MIB) / ratio) as u32);
            self.habit.note(&message);
        }
    }

    fn barrier(&mut self, kind: BarrierKind) -> PointId {
        let message = self.message(RecordKind::Barrier(kind), 100, 160);
        self.habit.note(&message);
        PointId { epoch: self.epoch, seq: Seq(self.seq) }
    }

    fn event(&self) -> &Event {
        self.habit.events().next_back().expect("an event")
    }
}

fn copied() -> Disk {
    let mut disk = Disk::new();
    disk.write(64, 3.0);
    disk.barrier(BarrierKind::SyncEnd);
    disk
}

/// A disk that somebody encrypts, and the last point before that.
pub(in crate::gateway) fn encrypted() -> (Habit, PointId) {
    let mut disk = copied();
    disk.write(200, 3.0);
    let point = disk.barrier(BarrierKind::Crash);
    disk.write(100, 1.0);
    (disk.habit, point)
}

#[test]
fn an_event_names_the_begin_of_the_change_and_the_newest_point_before_it() {
    let mut disk = copied();
    for _ in 0..10 {
        disk.write(30, 3.0);
        disk.barrier(BarrierKind::Crash);
    }
    disk.write(5, 3.0);
    let before = disk.barrier(BarrierKind::Crash);
    disk.write(3, 3.0);
    let since = disk.second + 1;
    for _ in 0..6 {
        disk.write(10, 1.0);
        disk.barrier(BarrierKind::Crash);
    }
    let event = disk.event();
    assert_eq!(event.point.map(|point| point.id), Some(before), "{event:?}");
    assert_eq!(event.since, Micros(START + since * 1_000_000));
    assert!((event.worse_times() - 3.0).abs() < 0.05, "{}", event.worse_times());
    assert_eq!((event.over, disk.habit.events().count()), (None, 1));
    let words = event.words(&DiskId::new("web.sda").expect("a name"));
    let command = format!("tidegate restore --disk web.sda --point {before} ");
    assert!(words.contains("3.0 times worse") && words.contains(&command), "{words}");
    assert!(words.contains(&format!("since {}", event.since)), "{words}");
}

#[test]
fn a_quiet_disk_with_barriers_and_small_writes_gathers_no_evidence() {
    let mut disk = copied();
    disk.write(200, 3.0);
    for _ in 0..10_000 {
        disk.barrier(BarrierKind::Crash);
        let message = disk.message(RecordKind::Write, 1000, 500);
        disk.habit.note(&message);
    }
    let before = disk.barrier(BarrierKind::Crash);
    disk.write(100, 1.0);
    assert_eq!(disk.event().point.map(|point| point.id), Some(before));
}

#[test]
fn it_is_over_when_the_disk_is_itself_again_and_stays_known() {
    let mut disk = copied();
    disk.write(300, 3.0);
    let first = disk.barrier(BarrierKind::Crash);
    disk.write(100, 1.0);
    let second = disk.barrier(BarrierKind::Crash);
    assert_eq!(disk.habit.take_untold().len(), 1);
    disk.write(400, 3.0);
    assert!(disk.event().over.is_some());
    assert!(disk.habit.take_untold().is_empty(), "each is told once");
    disk.barrier(BarrierKind::Crash);
    disk.write(100, 1.0);
    let points: Vec<_> = disk.habit.events().filter_map(|event| Some(event.point?.id)).collect();
    assert!(points.len() == 2 && points[0] == first && points[1] > second, "{points:?}");
    assert!(disk.event().words(&DiskId::new("d").expect("a name")).contains("last point before"));
}

#[test]
fn the_rate_is_held_against_the_day_before() {
    let mut disk = copied();
    for _ in 0..300 {
        disk.write(1, 3.0);
        disk.second += 9;
    }
    disk.barrier(BarrierKind::Crash);
    disk.write(100, 1.0);
    let times = disk.event().rate_times().expect("known");
    assert!((8.0..12.0).contains(&times), "ten times: {times}");
}

#[test]
fn a_first_copy_of_another_kind_of_data_is_none_and_nothing_is_said_without_a_past() {
    let mut disk = Disk::new();
    disk.write(300, 3.0);
    disk.write(300, 1.0);
    assert_eq!(disk.habit.events().count(), 0, "there is nothing to go back to");
    let mut young = copied();
    young.write(20, 3.0);
    young.write(20, 1.0);
    assert_eq!(young.habit.events().count(), 0);
}

#[test]
fn contents_that_differ_from_message_to_message_are_no_event_and_do_not_hide_one() {
    let mut disk = copied();
    let mixed = |disk: &mut Disk, rounds: u32| {
        for _ in 0..rounds {
            disk.write(3, 4.0);
            disk.write(1, 1.0);
            disk.write(2, 2.0);
            disk.barrier(BarrierKind::Crash);
        }
    };
    mixed(&mut disk, 100);
    assert_eq!(disk.habit.events().count(), 0);
    let before = PointId { epoch: disk.epoch, seq: Seq(disk.seq) };
    disk.write(100, 1.0);
    let point = disk.event().point.expect("a point").id;
    assert!(point <= before && point.seq.0 + 15 > before.seq.0, "{point} for {before}");
}

#[test]
fn what_is_packed_again_counts_once_and_a_point_above_a_fork_is_none() {
    let mut disk = copied();
    disk.write(200, 3.0);
    let message = disk.message(RecordKind::Write, MIB, MIB);
    for _ in 0..200 {
        disk.habit.note(&message);
    }
    assert_eq!(disk.habit.events().count(), 0, "one message is no event, however often it is packed");
    let point = disk.barrier(BarrierKind::Crash);
    disk.write(100, 1.0);
    disk.habit.forked(Epoch(1), Seq(point.seq.0));
    assert!(disk.event().point.is_some());
    disk.habit.forked(Epoch(1), Seq(1));
    assert_eq!(disk.event().point, None);
    let words = disk.event().words(&DiskId::new("d").expect("a name"));
    assert!(words.contains("tidegate points --disk d --near "), "{words}");
}

#[test]
fn a_resync_at_an_attackers_pace_has_the_point_before_it() {
    let mut disk = copied();
    disk.write(200, 3.0);
    let before = disk.barrier(BarrierKind::Crash);
    // The queue overflowed: what was encrypted is copied.
    disk.barrier(BarrierKind::SyncBegin);
    disk.write(100, 1.0);
    disk.barrier(BarrierKind::SyncEnd);
    assert_eq!(disk.event().point.map(|point| point.id), Some(before));
}

#[test]
fn a_replay_of_all_messages_finds_what_was_found_live() {
    let mut disk = copied();
    let mut all = Vec::new();
    for (mib, ratio) in [(150, 3.0), (80, 1.0)] {
        for _ in 0..mib {
            let message = disk.message(RecordKind::Write, MIB, (f64::from(MIB) / ratio) as u32);
            disk.habit.note(&message);
            all.push(message);
        }
    }
    let live = disk.event();
    let replayed = replay(&all);
    assert_eq!((replayed.len(), replayed[0].since), (1, live.since));
}
