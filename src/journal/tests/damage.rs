//! Bytes that are not what was written.

use super::*;
use crate::limits::BLOCK_BYTES;

/// Twenty commits of one record each, in several segments.
fn filled(disk: &SimDisk, config: &JournalConfig) -> Source {
    let (journal, _) = open(disk, config);
    let mut source = Source::new("a");
    runtime().block_on(async {
        for _ in 0..20 {
            source.send(&journal, 5000).await;
            source.settled().await;
        }
    });
    journal.close();
    source
}

/// (file offset, header) of each commit of a segment.
fn commits(disk: &SimDisk, segment: u64) -> Vec<(usize, format::Header)> {
    let bytes = disk.bytes_of(&segment_file(0, segment));
    let mut at = 0;
    let mut out = Vec::new();
    while at < bytes.len()
        && let Some(header) = format::Header::decode(&bytes[at..])
    {
        out.push((at, header));
        at += header.commit_bytes as usize;
    }
    out
}

#[test]
fn a_corrupted_record_is_skipped_and_named() {
    let disk = SimDisk::new(1);
    let config = small(1, 32);
    let source = filled(&disk, &config);
    let (at, header) = commits(&disk, 1)[2];
    disk.corrupt(&segment_file(0, 1), |bytes| bytes[at + format::HEADER_BYTES + 3000] ^= 1);
    let (journal, report) = open(&disk, &config);
    assert_eq!(report.damage.len(), 1, "{:?}", report.damage);
    let damage = &report.damage[0];
    assert_eq!(damage.kind, DamageKind::Record);
    assert_eq!(damage.records, [(source.disk.clone(), source.records[2].head.point())]);
    let text = damage.to_string();
    assert!(text.contains("shard-00/seg-00000001") && text.contains("disk a e1-s3"), "{text}");
    assert_eq!(header.number, 3);
    assert_eq!(ranges(&report, &source), [(1, 2), (4, 20)], "the gap is seen, the rest is kept");
    let (found, met) = read_all(&journal);
    assert_eq!(met, report.damage, "the reader meets the same");
    assert_eq!(seqs(&found, &source), (1..=20).filter(|seq| *seq != 3).collect::<Vec<_>>());
}

#[test]
fn interior_damage_is_reported_and_the_rest_is_kept() {
    for corrupt_at in [0, 60] {
        let disk = SimDisk::new(2);
        let config = small(1, 32);
        let source = filled(&disk, &config);
        let (at, header) = commits(&disk, 2)[1];
        disk.corrupt(&segment_file(0, 2), |bytes| bytes[at + corrupt_at] ^= 0x40);
        let (journal, report) = open(&disk, &config);
        let lost = header.number;
        let kept: Vec<u64> = (1..=20).filter(|seq| *seq != lost).collect();
        assert_eq!(report.damage.len(), 1, "{:?}", report.damage);
        assert_eq!(report.damage[0].kind, DamageKind::Commit);
        assert_eq!(report.damage[0].offset_bytes, at as u64);
        assert_eq!(report.damage[0].length_bytes, u64::from(header.commit_bytes));
        let (found, met) = read_all(&journal);
        assert_eq!(met, report.damage);
        assert_eq!(seqs(&found, &source), kept);
    }
}

#[test]
fn damage_at_the_end_of_a_segment_is_not_taken_for_its_end() {
    let disk = SimDisk::new(3);
    let config = small(1, 32);
    let source = filled(&disk, &config);
    let (at, header) = *commits(&disk, 1).last().expect("a commit");
    disk.corrupt(&segment_file(0, 1), |bytes| bytes[at] ^= 1);
    let (journal, report) = open(&disk, &config);
    assert_eq!(report.damage.len(), 1, "{:?}", report.damage);
    assert_eq!((report.damage[0].kind, report.damage[0].offset_bytes), (DamageKind::Commit, at as u64));
    assert_eq!(read_all(&journal).0.len(), 19);
    assert_eq!(ranges(&report, &source)[0], (1, header.number - 1));
}

#[test]
fn a_lost_segment_is_reported_but_a_released_one_is_not() {
    let disk = SimDisk::new(7);
    let config = small(1, 32);
    let mut source = filled(&disk, &config);
    source.journaled = Arc::new(Watermark::new(20));
    let whole = disk.kill();
    let disk = whole.copy();
    disk.remove(&segment_file(0, 2)).expect("a file to lose");
    let (journal, report) = open(&disk, &config);
    assert_eq!(report.damage.len(), 1, "{:?}", report.damage);
    assert_eq!((report.damage[0].kind, &report.damage[0].file), (DamageKind::Commit, &segment_file(0, 2)));
    let lost = ranges(&report, &source);
    assert_eq!(lost.len(), 2, "one gap: {lost:?}");
    drop(journal);

    let disk = whole.kill();
    let (journal, report) = open(&disk, &config);
    assert!(report.damage.is_empty(), "{:?}", report.damage);
    source.vault(&journal, 16);
    runtime().block_on(async {
        while journal.space().used_bytes > 2 * (64 << 10) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    // Without a farewell: what was released is known all the same.
    let disk = disk.crash(disk::sim::Survival::None, 512);
    drop(journal);
    for _ in 0..3 {
        let (journal, report) = open(&disk, &config);
        assert!(report.damage.is_empty(), "{:?}", report.damage);
        assert_eq!(ranges(&report, &source).last().map(|range| range.1), Some(20));
        journal.close();
    }
}

#[test]
fn a_cut_beyond_the_end_of_its_file_costs_no_more_than_the_file() {
    let disk = SimDisk::new(11);
    let config = small(1, 32);
    let (journal, _) = open(&disk, &config);
    let mut source = Source::new("a");
    runtime().block_on(async {
        source.send(&journal, 5000).await;
        source.settled().await;
    });
    journal.close();
    let (at, header) = *commits(&disk, 1).last().expect("a commit");
    let behind = at + header.commit_bytes as usize;
    let mut builder = format::CommitBuilder::new(disk::AlignedBuf::zeroed(2 * BLOCK_BYTES));
    assert!(builder.push_note(format::RowKind::Cut, 1, u64::MAX, 0));
    let bytes = builder.seal(header.owner, behind as u64, header.number + 1);
    let commit = builder.lend()[..bytes].to_vec();
    disk.corrupt(&segment_file(0, 1), |file| file[behind..behind + bytes].copy_from_slice(&commit));
    // It would be years until a walk came to that end.
    let (journal, report) = open(&disk, &config);
    assert_eq!(ranges(&report, &source), [(1, 1)]);
    assert_eq!(read_all(&journal).0.len(), 1);
}

#[test]
fn a_torn_tail_is_cut_and_writing_goes_on() {
    for torn_from in [64, BLOCK_BYTES] {
        let disk = SimDisk::new(4);
        let config = small(1, 32);
        let mut source = filled(&disk, &config);
        let segment = (1..20).rev().find(|segment| disk_has(&disk, *segment)).expect("a segment with commits");
        let (at, _) = *commits(&disk, segment).last().expect("a commit");
        // The last write reached the disk only up to here.
        disk.corrupt(&segment_file(0, segment), |bytes| bytes[at + torn_from..].fill(0));
        let (journal, report) = open(&disk, &config);
        assert!(report.damage.iter().all(|one| one.kind == DamageKind::TornTail), "{:?}", report.damage);
        assert!(!report.damage.is_empty());
        assert_eq!(ranges(&report, &source), [(1, 19)]);
        source.records.truncate(19);
        source.journaled = Arc::new(Watermark::new(19));
        runtime().block_on(async {
            source.send(&journal, 4000).await;
            source.settled().await;
        });
        journal.close();
        let (journal, report) = open(&disk, &config);
        assert_eq!(ranges(&report, &source), [(1, 20)]);
        assert_eq!(seqs(&read_all(&journal).0, &source), (1..=20).collect::<Vec<_>>());
    }
}

fn disk_has(disk: &SimDisk, segment: u64) -> bool {
    let listed = Files::list(disk, &depot::shard_dir("/sim".as_ref(), 0)).expect("list");
    listed.iter().any(|file| file.name == depot::segment_name(segment)) && !commits(disk, segment).is_empty()
}

#[test]
fn a_segment_used_again_never_shows_what_it_held_before() {
    let disk = SimDisk::new(5);
    let config = small(1, 4);
    let (journal, _) = open(&disk, &config);
    let mut source = Source::new("a");
    runtime().block_on(async {
        for seq in 1..=40 {
            source.send(&journal, 5000).await;
            source.settled().await;
            source.vault(&journal, seq);
        }
        source.send(&journal, 5000).await;
        source.settled().await;
    });
    // No close: the last marks are not written, and old commits stand behind the new ones in every file.
    let disk = disk.crash(disk::sim::Survival::None, 4096);
    let (journal, report) = open(&disk, &config);
    assert!(report.damage.is_empty(), "{:?}", report.damage);
    let found = seqs(&read_all(&journal).0, &source);
    assert_eq!(found.last(), Some(&41));
    assert!(found.windows(2).all(|pair| pair[1] == pair[0] + 1), "{found:?}");
    assert!(found.len() < 40, "most of it is gone for good");
}

#[test]
fn commits_of_another_journal_or_shard_are_not_taken() {
    let disk = SimDisk::new(6);
    let config = small(1, 32);
    let source = filled(&disk, &config);
    let foreign = disk.bytes_of(&segment_file(0, 1));
    let journal = {
        let config = small(2, 32);
        disk.create_zeroed(&segment_file(1, 1), foreign.len() as u64).expect("a file");
        disk.corrupt(&segment_file(1, 1), |bytes| bytes.copy_from_slice(&foreign));
        let (journal, report) = open(&disk, &config);
        assert_eq!(ranges(&report, &source), [(1, 20)]);
        journal
    };
    assert_eq!(read_all(&journal).0.len(), 20, "each record once");
}
