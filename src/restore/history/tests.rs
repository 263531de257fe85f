//! History against a model: cut anywhere, duplicated, shuffled, thinned out, it is exactly the prefix that is there.

use proptest::prelude::*;

use super::*;
use crate::restore::tests::{self as model, ModelDisk};
use crate::types::BarrierKind;

fn disk_of(count: u64) -> ModelDisk {
    let mut disk = ModelDisk::new(4096);
    for at in 0..count {
        disk.write(at % 4 * 512, vec![at as u8; 512]);
    }
    disk
}

fn row(disk: &ModelDisk, epoch: u64, first: u64, last: u64) -> Row {
    Row { object: 0, confirmed: false, presence: Presence::Here, message: disk.message(Epoch(epoch), first, last) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_usable_prefix_is_what_a_model_says(
        steps in model::steps(),
        cuts in prop::collection::vec((0.0..1.0_f64, 1..9_u64), 0..40),
        keep in prop::collection::vec(any::<bool>(), 64),
        whole in any::<bool>(),
    ) {
        let disk = model::model(&steps);
        // Messages in regular cuts, some of them dropped, and random overlapping ones.
        let mut rows: Vec<Row> = disk.rows(3);
        if !whole {
            let mut keep = keep.iter().cycle();
            rows.retain(|_| *keep.next().unwrap());
        }
        for (at, &(place, length)) in cuts.iter().enumerate() {
            let epoch = Epoch(at as u64 % disk.epochs.len() as u64 + 1);
            let count = disk.records[&epoch].len() as u64;
            if count > 0 {
                let first = (place * count as f64) as u64 + 1;
                rows.insert(rows.len() / 2, row(&disk, epoch.0, first, (first + length).min(count)));
            }
        }
        let history = History::build(&disk.epochs, rows.clone());
        prop_assert!(history.conflicts.is_empty() && history.faults.is_empty());
        let mut usable = true;
        for span in &history.spans {
            let epoch = span.segment.epoch;
            let held = |seq: u64| rows.iter().any(|row| {
                row.message.epoch == epoch && (row.message.first.0..=row.message.last.0).contains(&seq)
            });
            let child = disk.epochs.iter().find(|fact| fact.previous == Some(epoch));
            let limit = child.map_or(u64::MAX, |child| child.fork_seq.0);
            let through = (1..=limit).take_while(|&seq| held(seq)).last().unwrap_or(0);
            prop_assert_eq!(span.through.0, if usable { through } else { 0 });
            let covered: Vec<u64> = span.picks.iter().flat_map(|pick| pick.first.0..=pick.last.0).collect();
            prop_assert_eq!(covered, (1..=span.through.0).collect::<Vec<_>>());
            usable = usable && (child.is_none() || through == limit);
            for gap in history.gaps.iter().filter(|gap| gap.epoch == epoch) {
                prop_assert!((gap.first.0..=gap.last.0).all(|seq| !held(seq)));
                prop_assert_eq!(gap.lost, child.is_some());
            }
        }
        prop_assert_eq!(history.spans.len(), disk.epochs.len());
    }
}

#[test]
fn records_after_the_fork_of_a_later_epoch_are_cut_off() {
    let mut disk = disk_of(10);
    disk.fork(Seq(6));
    disk.write(0, vec![9; 512]);
    let history = History::build(&disk.epochs, disk.rows(4));
    assert_eq!(history.spans[0].through, Seq(6));
    assert_eq!(history.records().count(), 7);
    assert!(!history.damaged());
}

#[test]
fn a_zombie_that_writes_on_after_the_fork_is_no_conflict() {
    let mut disk = disk_of(6);
    let mut zombie = disk.clone();
    disk.fork(Seq(6));
    disk.write(0, vec![1; 512]);
    zombie.write(0, vec![2; 512]);
    zombie.write(0, vec![3; 512]);
    let mut rows = disk.rows(3);
    rows.push(row(&zombie, 1, 5, 8));
    let history = History::build(&disk.epochs, rows);
    assert!(!history.damaged());
    assert_eq!(history.head(), Some(disk.head()));
}

#[test]
fn a_differing_duplicate_is_quarantined_and_cut_before() {
    let disk = disk_of(12);
    let mut other = disk_of(4);
    for _ in 4..12 {
        other.write(0, vec![0xAB; 256]);
    }
    let rows = vec![row(&disk, 1, 1, 4), row(&disk, 1, 5, 8), row(&disk, 1, 9, 12), row(&other, 1, 5, 8)];
    let history = History::build(&disk.epochs, rows);
    assert_eq!(history.spans[0].through, Seq(4));
    assert!(history.conflicts.iter().all(|conflict| conflict.cut == Seq(4)));
    assert!(history.damaged());
}

#[test]
fn a_duplicate_that_differs_only_in_its_bytes_is_found_by_the_chain() {
    let disk = disk_of(8);
    let mut other = disk_of(4);
    for at in 4..8_u64 {
        other.write(at % 4 * 512, vec![0xCD; 512]);
    }
    let mut message = other.message(Epoch(1), 5, 8);
    message.records = disk.message(Epoch(1), 5, 8).records;
    let rows = vec![
        row(&disk, 1, 1, 4),
        row(&disk, 1, 5, 8),
        Row { object: 1, confirmed: false, presence: Presence::Here, message },
    ];
    let history = History::build(&disk.epochs, rows);
    assert_eq!(history.spans[0].through, Seq(4));
    assert_eq!(history.conflicts[0].seq, Seq(8));
}

#[test]
fn a_message_that_does_not_follow_its_neighbour_is_not_believed() {
    let disk = disk_of(8);
    let mut other = ModelDisk::new(4096);
    for _ in 0..8 {
        other.write(0, vec![7; 512]);
    }
    let rows = vec![row(&disk, 1, 1, 4), row(&other, 1, 5, 8)];
    let history = History::build(&disk.epochs, rows);
    assert_eq!(history.spans[0].through, Seq(0), "neither account is believed");
    assert_eq!(history.conflicts[0].seq, Seq(4));
}

#[test]
fn a_gap_below_a_confirmed_batch_is_lost_and_one_below_an_unconfirmed_is_late() {
    let disk = disk_of(9);
    for confirmed in [false, true] {
        let mut rows = vec![row(&disk, 1, 1, 3), row(&disk, 1, 7, 9)];
        rows[1].confirmed = confirmed;
        let history = History::build(&disk.epochs, rows);
        assert_eq!(history.spans[0].through, Seq(3));
        let gap = history.gaps[0];
        assert_eq!((gap.first, gap.last, gap.lost), (Seq(4), Seq(6), confirmed));
        assert!(gap.label_before < gap.label_after);
        assert_eq!(history.damaged(), confirmed);
    }
}

#[test]
fn a_missing_epoch_object_leaves_nothing_usable_above_it() {
    let mut disk = disk_of(4);
    disk.fork(Seq(4));
    disk.barrier(BarrierKind::SyncEnd, "");
    let rows = disk.rows(4);
    let history = History::build(&disk.epochs[1..], rows.clone());
    assert!(history.faults.contains(&EpochFault::Missing { epoch: Epoch(1) }));
    assert!(history.faults.contains(&LineageError::Missing { epoch: Epoch(2), previous: Epoch(1) }.into()));
    assert_eq!(history.head(), None);
    let history = History::build(&disk.epochs[..1], rows);
    assert_eq!(history.faults, [EpochFault::Missing { epoch: Epoch(2) }]);
    assert_eq!(history.head(), Some(PointId { epoch: Epoch(1), seq: Seq(4) }));
}
