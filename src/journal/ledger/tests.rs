use super::*;

fn disk(name: &str) -> DiskId {
    DiskId::new(name).expect("a name")
}

fn commit(ledger: &mut Ledger, segment: u64, number: u64, lasts: &[(&DiskId, u64)]) {
    let at = CommitAt { segment, offset_bytes: number * 4096, number };
    let came = Came { records: lasts.len() as u64, first: Micros(number) };
    ledger.committed(at, 4096, came, lasts.iter().map(|(disk, seq)| (*disk, Epoch(1), Seq(*seq))));
}

fn vault(ledger: &mut Ledger, disk: &DiskId, seq: u64) {
    ledger.vaulted(disk, Epoch(1), Seq(seq), Chain([seq as u8; 32]));
}

fn write(ledger: &mut Ledger) {
    ledger.write_notes(|_, _, _| true);
    ledger.write_marks(|_| true);
}

fn release(ledger: &mut Ledger) -> Vec<String> {
    write(ledger);
    ledger.marks_durable().iter().map(|freed| freed.path.display().to_string()).collect()
}

fn two_segments(a: &DiskId, b: &DiskId) -> Ledger {
    let mut ledger = Ledger::default();
    ledger.activate(1, "s1".into(), 1 << 16);
    commit(&mut ledger, 1, 1, &[(a, 3), (b, 1)]);
    commit(&mut ledger, 1, 2, &[(a, 5)]);
    ledger.activate(2, "s2".into(), 1 << 16);
    commit(&mut ledger, 2, 3, &[(a, 6)]);
    ledger
}

#[test]
fn a_segment_is_released_when_its_last_run_is_vaulted_and_the_mark_is_durable() {
    let (a, b) = (disk("a"), disk("b"));
    let mut ledger = two_segments(&a, &b);
    vault(&mut ledger, &a, 5);
    assert!(release(&mut ledger).is_empty(), "disk b still waits");
    vault(&mut ledger, &b, 1);
    assert!(ledger.marks_durable().is_empty(), "the mark is not durable yet");
    write(&mut ledger);
    vault(&mut ledger, &a, 6);
    let freed = ledger.marks_durable();
    assert_eq!(freed.len(), 1);
    assert_eq!((freed[0].held_bytes, freed[0].reusable), (3 * 4096, true));
    assert!(!ledger.has_releasing(), "the open segment stays");
    assert!(ledger.covers(&a, Epoch(1), Seq(6)) && !ledger.covers(&a, Epoch(1), Seq(7)));
}

#[test]
fn a_slow_disk_holds_only_the_segments_in_which_it_stands() {
    let (a, b) = (disk("a"), disk("b"));
    let mut ledger = two_segments(&a, &b);
    ledger.activate(3, "s3".into(), 1 << 16);
    vault(&mut ledger, &a, 6);
    assert_eq!(release(&mut ledger), ["s2"]);
    assert_eq!(ledger.find(1, 1).map(|view| view.segment), Some(1));
    assert_eq!(ledger.find(1, 3), None, "the open one has no commit yet");
    ledger.forget(&b, Epoch(1));
    assert_eq!(release(&mut ledger), ["s1"]);
    assert_eq!(ledger.used_bytes(), 0);
}

#[test]
fn every_mark_is_due_again_in_a_new_segment_and_refused_ones_stay_due() {
    let (a, b) = (disk("a"), disk("b"));
    let mut ledger = two_segments(&a, &b);
    vault(&mut ledger, &a, 1);
    vault(&mut ledger, &b, 1);
    assert!(ledger.has_due_marks());
    release(&mut ledger);
    assert!(!ledger.has_due_marks());
    ledger.activate(3, "s3".into(), 1 << 16);
    let mut taken = Vec::new();
    ledger.write_marks(|mark| {
        taken.push(mark.disk.clone());
        taken.len() < 2
    });
    assert!(ledger.has_due_marks(), "the refused mark");
    let mut rest = Vec::new();
    ledger.write_marks(|mark| {
        rest.push(mark.disk.clone());
        true
    });
    assert_eq!(rest, taken[1..]);
}

#[test]
fn a_poisoned_segment_is_released_but_never_used_again() {
    let a = disk("a");
    let mut ledger = Ledger::default();
    ledger.activate(1, "s1".into(), 1 << 16);
    commit(&mut ledger, 1, 1, &[(&a, 1)]);
    ledger.poison(1);
    ledger.activate(2, "s2".into(), 1 << 16);
    vault(&mut ledger, &a, 1);
    write(&mut ledger);
    let freed = ledger.marks_durable();
    assert_eq!(freed.len(), 1);
    assert!(!freed[0].reusable);
}

#[test]
fn a_new_segment_starts_with_what_is_held_and_a_release_is_noted_before_it_happens() {
    let (a, b) = (disk("a"), disk("b"));
    let mut ledger = two_segments(&a, &b);
    ledger.activate(3, "s3".into(), 1 << 16);
    let mut notes = Vec::new();
    ledger.write_notes(|kind, segment, end_bytes| {
        notes.push((kind, segment, end_bytes));
        true
    });
    assert_eq!(notes, [(RowKind::Held, 1, 3 * 4096), (RowKind::Held, 2, 4 * 4096)]);
    vault(&mut ledger, &a, 6);
    ledger.write_notes(|_, _, _| false);
    ledger.write_marks(|_| true);
    assert!(ledger.marks_durable().is_empty(), "the note had no room");
    notes.clear();
    ledger.write_notes(|kind, segment, end_bytes| {
        notes.push((kind, segment, end_bytes));
        true
    });
    assert_eq!(notes, [(RowKind::Released, 2, 0)]);
    assert_eq!(release(&mut ledger), ["s2"]);
}

#[test]
fn the_oldest_record_is_the_first_that_is_not_vaulted() {
    let (a, b) = (disk("a"), disk("b"));
    let mut ledger = two_segments(&a, &b);
    assert_eq!(ledger.oldest(), Some(Micros(1)));
    vault(&mut ledger, &a, 4);
    assert_eq!(ledger.oldest(), Some(Micros(1)), "disk b");
    vault(&mut ledger, &b, 1);
    assert_eq!(ledger.oldest(), Some(Micros(2)), "the commit of seq 5");
    ledger.forget(&a, Epoch(1));
    assert_eq!(ledger.oldest(), None);
}

#[test]
fn a_long_backlog_keeps_few_times_and_never_looks_younger_than_it_is() {
    let a = disk("a");
    let mut ledger = Ledger::default();
    ledger.activate(1, "s1".into(), 1 << 30);
    for number in 1..=10_000 {
        commit(&mut ledger, 1, number, &[(&a, number)]);
    }
    assert!(ledger.runs[&a][&Epoch(1)].times.kept.len() <= TIMES_MAX);
    for vaulted in (0..10_000).step_by(7) {
        vault(&mut ledger, &a, vaulted);
        let oldest = ledger.oldest().expect("behind").0;
        assert!(oldest <= vaulted + 1, "vaulted {vaulted}, oldest {oldest}");
        assert!(oldest + 10_000 / 30 >= vaulted, "vaulted {vaulted}, oldest {oldest}");
    }
    vault(&mut ledger, &a, 10_000);
    assert_eq!(ledger.oldest(), None);
}
