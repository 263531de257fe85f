//! Which barriers are points, and which one an ask finds.

use proptest::prelude::*;

use super::*;
use crate::restore::tests::{self as model, ModelDisk};

fn sample() -> (ModelDisk, History) {
    let mut disk = ModelDisk::new(4096);
    disk.barrier(BarrierKind::SyncBegin, ""); // 1
    disk.barrier(BarrierKind::Crash, ""); // 2: inside the first copy
    disk.write(0, vec![1; 512]); // 3
    disk.barrier(BarrierKind::SyncEnd, ""); // 4
    disk.write(0, vec![2; 512]); // 5
    disk.barrier(BarrierKind::App, "before upgrade"); // 6
    disk.write(0, vec![3; 512]); // 7
    disk.fork(Seq(7));
    disk.barrier(BarrierKind::Crash, ""); // 1: no finished sync yet
    disk.barrier(BarrierKind::SyncBegin, ""); // 2
    disk.barrier(BarrierKind::SyncEnd, ""); // 3
    let history = History::build(&disk.epochs, disk.rows(2));
    (disk, history)
}

fn id(text: &str) -> PointId {
    text.parse().expect("a point id")
}

#[test]
fn points_lie_outside_sync_spans_only() {
    let (_, history) = sample();
    let ids: Vec<String> = list(&history).iter().map(|point| point.id.to_string()).collect();
    assert_eq!(ids, ["e1-s4", "e1-s6", "e2-s3"]);
}

#[test]
fn a_time_finds_the_last_point_labelled_at_or_before_it() {
    let (disk, history) = sample();
    let points = list(&history);
    let label = |seq: usize| disk.records[&Epoch(1)][seq - 1].head.label;
    let at = |time| choose(&history, &points, &Ask::At(time)).map(|point| point.id);
    assert_eq!(at(label(5)), Ok(id("e1-s4")));
    assert_eq!(at(label(6)), Ok(id("e1-s6")));
    assert_eq!(at(Micros(u64::MAX)), Ok(id("e2-s3")));
    let early = at(Micros(label(4).0 - 1));
    let Err(ChooseError::TooEarly { nearest, .. }) = early else { panic!("{early:?}") };
    assert_eq!(nearest.after.map(|point| point.id), Some(id("e1-s4")));
}

#[test]
fn a_plain_record_outside_spans_can_be_asked_for_and_one_inside_cannot() {
    let (_, history) = sample();
    let points = list(&history);
    let by_id = |text| choose(&history, &points, &Ask::Id(id(text)));
    assert_eq!(by_id("e1-s5").map(|point| point.kind), Ok(None));
    let inside = by_id("e1-s3");
    let Err(ChooseError::InSync { nearest, .. }) = inside else { panic!("{inside:?}") };
    assert_eq!(nearest.after.map(|point| point.id), Some(id("e1-s4")));
    let unknown = by_id("e1-s9");
    let Err(ChooseError::Unknown { nearest, .. }) = unknown else { panic!("{unknown:?}") };
    assert_eq!(nearest.before.map(|point| point.id), Some(id("e1-s6")));
}

#[test]
fn names_find_their_newest_point() {
    let (_, history) = sample();
    let points = list(&history);
    let named = |name: &str| choose(&history, &points, &Ask::Name(name.to_owned())).map(|point| point.id);
    assert_eq!(named("before upgrade"), Ok(id("e1-s6")));
    assert!(matches!(named("after upgrade"), Err(ChooseError::NoName { .. })));
}

#[test]
fn damage_above_a_point_hides_the_newest_but_not_what_lies_below() {
    let (disk, _) = sample();
    let mut rows = disk.rows(1);
    // Seq 7, the last before the fork, is gone: the second epoch has no base.
    rows.remove(6);
    let history = History::build(&disk.epochs, rows);
    let points = list(&history);
    let newest = choose(&history, &points, &Ask::Latest).expect("one is usable");
    assert_eq!(newest.id, id("e1-s6"));
    assert!(hidden_by_damage(&history, None, &newest, &Ask::Latest).is_some());
    assert!(hidden_by_damage(&history, None, &newest, &Ask::Id(newest.id)).is_none());
    assert!(hidden_by_damage(&history, None, &newest, &Ask::At(newest.label)).is_none());
    let tail = || Some("the last batch is lost".to_owned());
    assert_eq!(hidden_by_damage(&history, tail(), &newest, &Ask::Id(newest.id)), None);
    let earlier = Ask::At(Micros(newest.label.0 - 1));
    let chosen = choose(&history, &points, &earlier).expect("one is usable");
    assert!(hidden_by_damage(&history, tail(), &chosen, &earlier).is_none());
    assert!(hidden_by_damage(&history, None, &newest, &Ask::At(Micros(newest.label.0 + 9_000_000))).is_some());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_point_lies_where_a_model_sees_an_open_span(steps in model::steps()) {
        let disk = model::model(&steps);
        let history = History::build(&disk.epochs, disk.rows(4));
        let points = list(&history);
        for span in &history.spans {
            let records = &disk.records[&span.segment.epoch][..span.through.0 as usize];
            for (at, record) in records.iter().enumerate() {
                let RecordKind::Barrier(kind) = record.head.kind else { continue };
                let last_mark = records[..=at].iter().rev().find_map(|record| match record.head.kind {
                    RecordKind::Barrier(mark @ (BarrierKind::SyncBegin | BarrierKind::SyncEnd)) => Some(mark),
                    _ => None,
                });
                let offered = points.iter().any(|point| point.id == record.head.point());
                prop_assert_eq!(offered, last_mark == Some(BarrierKind::SyncEnd), "{:?}", kind);
            }
        }
        prop_assert!(points.windows(2).all(|pair| pair[0].id < pair[1].id));
    }
}
