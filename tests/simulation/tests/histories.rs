//! What the model of a disk says is in each point: the measure of every image that the simulation restores.

use std::cell::RefCell;
use std::rc::Rc;

use simulation::model::{Change, Content, GroupPoint, History, Seen};
use tidegate::types::{Epoch, PointId, Seq};
fn point(epoch: u64, seq: u64) -> PointId {
    PointId { epoch: Epoch(epoch), seq: Seq(seq) }
}

fn change() -> Change {
    Change { offset: 0, length: 512, content: Content::Zero }
}

fn seen(epoch: u64, seq: u64, recording: bool) -> Seen {
    Seen { at: Some(point(epoch, seq)), recording }
}

#[test]
fn a_point_holds_the_changes_of_its_records_and_no_other() {
    let mut history = History::new("a".into(), vec![0; 4096]);
    history.sample(seen(1, 2, true));
    history.changed(change(), false, seen(1, 3, true));
    history.changed(change(), false, seen(1, 3, true));
    history.sample(seen(1, 4, true));
    history.changed(change(), false, seen(1, 5, true));
    assert_eq!(history.changes_at(point(1, 2)), 0);
    assert_eq!(history.changes_at(point(1, 3)), 2);
    assert_eq!(history.changes_at(point(1, 4)), 2);
    assert_eq!(history.changes_at(point(1, 9)), 3);
}

#[test]
fn a_barrier_right_before_a_failed_flush_does_not_hold_what_the_flush_left() {
    let mut history = History::new("a".into(), vec![7; 4096]);
    history.sample(seen(1, 3, true));
    history.reverted(seen(1, 4, true), &[0; 4096]);
    history.sample(seen(1, 8, true));
    assert_eq!(history.changes_at(point(1, 4)), 0);
    assert_eq!(history.changes_at(point(1, 8)), 8);
}

#[test]
fn points_of_two_disks_are_one_moment_only_if_no_change_lies_between_them() {
    let histories = [(), ()].map(|()| Rc::new(RefCell::new(History::new("a".into(), vec![0; 4096]))));
    for seq in 1..=3 {
        for history in &histories {
            history.borrow_mut().changed(change(), false, seen(1, seq, true));
        }
    }
    let at = |first, second| {
        let members = histories.iter().map(Rc::clone).zip([point(1, first), point(1, second)]).collect();
        GroupPoint { members }.is_one_moment()
    };
    assert!(at(2, 2) && at(3, 2) && at(3, 3));
    assert!(!at(1, 2) && !at(3, 1), "the second has a change that came after one that the first has not");
}

#[test]
fn marked_changes_belong_to_the_points_after_the_next_span() {
    let mut history = History::new("a".into(), vec![0; 4096]);
    history.sample(seen(1, 2, true));
    history.changed(change(), false, seen(1, 3, true));
    history.changed(change(), false, seen(1, 3, false));
    history.changed(change(), false, Seen { at: None, recording: false });
    history.sample(seen(2, 1, true));
    history.changed(change(), false, seen(2, 6, true));
    assert_eq!(history.changes_at(point(1, 3)), 1, "the marked ones came later");
    assert_eq!(history.changes_at(point(2, 5)), 3);
    assert_eq!(history.changes_at(point(2, 6)), 4);
}
