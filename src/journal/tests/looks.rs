//! Looking into journals that stand still, and bringing what they hold elsewhere.

use std::os::unix::fs::FileExt;
use std::path::Path;

use super::inspect::{Look, OnRead, SegmentState, hold, look};
use super::salvage::{SalvageError, salvage};
use super::*;

const SHARDS: u16 = 2;

fn config(dir: &Path) -> JournalConfig {
    JournalConfig {
        shards: SHARDS,
        segment_bytes: SEGMENT_BYTES_MIN,
        ..JournalConfig::new(dir.to_owned(), 12 * SEGMENT_BYTES_MIN)
    }
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("scratch directory")
}

fn silent() -> OnRead {
    Arc::new(|_| ())
}

fn seen(dir: &Path) -> Look {
    look(dir, silent()).expect("the journal can be looked at")
}

/// Three disks, thirty records of 300 kB each, ten of the first disk vaulted; stopped in order.
fn filled(dir: &Path) -> Vec<Source> {
    let (journal, _) = Journal::open(&config(dir), "gw-1").expect("the journal opens");
    let mut sources = [Source::new("a"), Source::new("b"), Source::new("c")];
    runtime().block_on(async {
        for _ in 0..30 {
            for source in &mut sources {
                source.send(&journal, 300_000).await;
                source.settled().await;
            }
        }
    });
    sources[0].vault(&journal, 10);
    journal.close();
    sources.into()
}

/// What the gateway that opens `dir` would send, whole and as it was written.
fn sent(dir: &Path, gateway: &str) -> (Found, ReplayReport) {
    let (journal, report) = Journal::open(&config(dir), gateway).expect("the journal opens");
    let (found, _) = read_all(&journal);
    journal.close();
    (found, report)
}

fn whole(found: &Found, sources: &[Source]) {
    for ((disk, _, seq), bytes) in found {
        let source = sources.iter().find(|source| source.disk == *disk).expect("a known disk");
        assert_eq!(*bytes, source.records[*seq as usize - 1].bytes, "disk {disk} s{seq}");
    }
}

/// Flips a byte in the payload of a record that stands in the middle of a segment.
fn flip(dir: &Path) -> PathBuf {
    let found = seen(dir);
    let segment = found.segments.iter().find(|one| one.state == SegmentState::Needed && one.records > 5);
    let segment = segment.expect("a segment with records");
    let file = std::fs::File::options().read(true).write(true).open(&segment.file).expect("the segment");
    // All commits are alike: in the body of one of them, wherever the middle falls.
    let at = segment.end_bytes / 2 + 100_000;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("a byte");
    file.write_all_at(&[byte[0] ^ 4], at).expect("another byte");
    segment.file.clone()
}

#[test]
fn a_look_says_the_same_as_a_start_and_changes_nothing() {
    let dir = scratch();
    let path = dir.path().join("journal");
    let sources = filled(&path);
    let first = seen(&path);
    assert_eq!(first.whose.gateway.as_deref(), Some("gw-1"));
    assert!(first.is_whole() && !first.in_use, "{:?}", first.damage);
    assert_eq!(first.records(), 80);
    let run = |name: &str| first.runs.iter().find(|run| run.disk.as_str() == name).expect("a run").clone();
    assert_eq!((run("a").vaulted, run("a").records()), (Some(Seq(10)), 20));
    assert_eq!((run("b").vaulted, run("b").records()), (None, 30));
    assert!(first.runs.iter().all(|run| run.gaps().is_empty()));
    let records: u64 = first.segments.iter().map(|segment| segment.records).sum();
    assert_eq!(records, 90);
    assert!(first.segments.iter().any(|segment| segment.marks > 0));
    let (again, figures) = (seen(&path), first.segments.clone());
    assert_eq!(again.segments, figures, "a look leaves no trace");

    let (found, report) = sent(&path, "gw-1");
    whole(&found, &sources);
    assert_eq!((found.len(), report.damage.len()), (80, 0));
}

#[test]
fn a_journal_in_use_can_be_looked_at_but_not_held() {
    let dir = scratch();
    let path = dir.path().join("journal");
    let (journal, _) = Journal::open(&config(&path), "gw-1").expect("the journal opens");
    assert!(matches!(hold(&path), Err(OpenError::Locked { .. })));
    assert!(seen(&path).in_use);
    let to = dir.path().join("to");
    let refused = salvage(&path, &to, None, &silent()).expect_err("a gateway has it");
    assert!(matches!(refused, SalvageError::Open(OpenError::Locked { .. })), "{refused}");
    journal.close();
    drop(journal);
    let held = hold(&path).expect("nobody has it");
    assert!(matches!(Journal::open(&config(&path), "gw-1"), Err(OpenError::Locked { .. })), "held means held");
    drop(held);
}

#[test]
fn a_damaged_record_is_named_by_a_look_and_left_out_by_a_salvage_with_everything_else_kept() {
    let dir = scratch();
    let path = dir.path().join("journal");
    let sources = filled(&path);
    let file = flip(&path);
    let found = seen(&path);
    assert!(!found.is_whole());
    let damage: Vec<_> = found.real_damage().collect();
    assert_eq!((damage.len(), damage[0].kind, &damage[0].file), (1, DamageKind::Record, &file), "{damage:?}");
    let (disk, point) = damage[0].records[0].clone();
    let lost = found.runs.iter().find(|run| run.disk == disk).expect("its run");
    assert_eq!(lost.gaps(), [(point.seq, point.seq)], "the gap is the damaged record");
    assert_eq!(found.records(), 79);

    let to = dir.path().join("salvaged");
    let done = salvage(&path, &to, Some("gw-2"), &silent()).expect("salvaged");
    assert_eq!((done.to.records(), done.unreadable_bytes), (79, 0));
    assert_eq!(done.to.runs, found.runs);
    let (sent, report) = sent(&to, "gw-2");
    whole(&sent, &sources);
    assert_eq!(sent.len(), 79);
    assert_eq!(report.damage.len(), 1, "what was damaged is still known to be: {:?}", report.damage);
    let twice = salvage(&path, &to, None, &silent()).expect_err("it is there already");
    assert!(matches!(twice, SalvageError::NotEmpty { .. }), "{twice}");
}

#[test]
fn a_journal_without_its_identity_is_salvaged_for_the_gateway_that_is_named() {
    let dir = scratch();
    let path = dir.path().join("journal");
    let sources = filled(&path);
    let journal = seen(&path).whose.journal;
    for broken in [None, Some("{\"format\":\"tidegate-jou")] {
        match broken {
            None => std::fs::remove_file(path.join("journal.json")).expect("removed"),
            Some(text) => std::fs::write(path.join("journal.json"), text).expect("written"),
        }
        assert!(Journal::open(&config(&path), "gw-1").is_err(), "no gateway opens it");
        let found = seen(&path);
        assert_eq!((found.whose.journal, found.whose.shards, found.whose.gateway), (journal, SHARDS, None));
        assert!(found.whose.identity_damage.is_some());
        let to = dir.path().join(if broken.is_none() { "one" } else { "two" });
        let refused = salvage(&path, &to, None, &silent()).expect_err("for whom?");
        assert!(refused.to_string().contains("--gateway"), "{refused}");
        assert!(!to.exists());
        salvage(&path, &to, Some("gw-9"), &silent()).expect("salvaged");
        let (sent, _) = sent(&to, "gw-9");
        whole(&sent, &sources);
        assert_eq!(sent.len(), 80);
    }
}

#[test]
fn a_lost_segment_leaves_gaps_that_a_look_names() {
    let dir = scratch();
    let path = dir.path().join("journal");
    let sources = filled(&path);
    let segments = seen(&path).segments;
    let lost = segments.iter().filter(|one| one.state == SegmentState::Needed).nth(1).expect("a second segment");
    std::fs::remove_file(&lost.file).expect("removed");
    let found = seen(&path);
    assert!(found.real_damage().any(|damage| damage.file == lost.file), "{:?}", found.damage);
    assert!(found.records() < 80);
    let to = dir.path().join("to");
    salvage(&path, &to, None, &silent()).expect("salvaged");
    let (sent, _) = sent(&to, "gw-1");
    whole(&sent, &sources);
    assert_eq!(sent.len() as u64, found.records());
}

#[test]
fn what_is_no_journal_or_needs_no_salvage_is_told_so() {
    let dir = scratch();
    assert!(look(dir.path(), silent()).is_err(), "an empty directory is no journal");
    let path = dir.path().join("journal");
    let (journal, _) = Journal::open(&config(&path), "gw-1").expect("the journal opens");
    journal.close();
    drop(journal);
    assert!(seen(&path).is_whole());
    let nothing = salvage(&path, &dir.path().join("to"), None, &silent()).expect_err("nothing is in it");
    assert!(matches!(nothing, SalvageError::Nothing { .. }), "{nothing}");
}
