//! The journal on this machine's own disk.

use super::*;

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("scratch directory")
}

fn config(dir: &tempfile::TempDir, backend: BackendChoice) -> JournalConfig {
    JournalConfig {
        segment_bytes: SEGMENT_BYTES_MIN,
        backend,
        ..JournalConfig::new(dir.path().join("journal"), 8 * SEGMENT_BYTES_MIN)
    }
}

#[test]
fn the_same_journal_is_written_by_ring_and_read_by_std_and_the_other_way_round() {
    let dir = scratch();
    let mut sources = [Source::new("a"), Source::new("b"), Source::new("c")];
    for (life, backend) in [BackendChoice::Auto, BackendChoice::Std, BackendChoice::Auto].into_iter().enumerate() {
        let (journal, report) = Journal::open(&config(&dir, backend), "gw-1").expect("the journal opens");
        assert!(report.damage.is_empty(), "{:?}", report.damage);
        let before = 20 * life as u64;
        for source in &mut sources {
            let expected: &[(u64, u64)] = if life == 0 { &[] } else { &[(1, before)] };
            assert_eq!(ranges(&report, source), expected);
        }
        let runtime = runtime();
        runtime.block_on(async {
            for round in 0..20 {
                for source in &mut sources {
                    source.send(&journal, 1 + round * 13_107).await;
                }
            }
            for source in &sources {
                source.settled().await;
            }
        });
        let (found, damage) = read_all(&journal);
        assert!(damage.is_empty(), "{damage:?}");
        for source in &sources {
            for sample in &source.records {
                assert_eq!(found[&(source.disk.clone(), 1, sample.head.seq.0)], sample.bytes);
            }
        }
        journal.close();
    }
}

#[test]
fn the_largest_record_fits_the_smallest_segment() {
    let dir = scratch();
    let (journal, _) = Journal::open(&config(&dir, BackendChoice::Auto), "gw-1").expect("the journal opens");
    runtime().block_on(async {
        let mut source = Source::new("a");
        for _ in 0..12 {
            source.send(&journal, crate::limits::RECORD_PAYLOAD_BYTES_MAX).await;
        }
        source.settled().await;
    });
    assert_eq!(read_all(&journal).0.len(), 12);
}

#[test]
fn a_journal_of_another_gateway_or_in_use_is_refused_and_left_alone() {
    let dir = scratch();
    let config = config(&dir, BackendChoice::Auto);
    let (journal, _) = Journal::open(&config, "gw-1").expect("the journal opens");
    assert!(matches!(Journal::open(&config, "gw-1"), Err(OpenError::Locked { .. })));
    drop(journal);
    let error = Journal::open(&config, "gw-2").expect_err("another gateway");
    assert!(matches!(error, OpenError::OtherGateway { .. }), "{error}");
    Journal::open(&config, "gw-1").expect("still there for its own gateway");
}

#[test]
fn another_number_of_shards_waits_until_the_journal_is_drained() {
    let dir = scratch();
    let two = config(&dir, BackendChoice::Auto);
    let one = JournalConfig { shards: 1, ..two.clone() };
    let mut source = Source::new("a");
    let (journal, _) = Journal::open(&two, "gw-1").expect("the journal opens");
    runtime().block_on(async {
        source.send(&journal, 100).await;
        source.settled().await;
    });
    journal.close();
    drop(journal);
    let error = Journal::open(&one, "gw-1").expect_err("a record waits");
    assert!(error.to_string().contains("shards = 2 until it is drained"), "{error}");

    let (journal, _) = Journal::open(&two, "gw-1").expect("as before");
    source.vault(&journal, 1);
    journal.close();
    drop(journal);
    let (journal, report) = Journal::open(&one, "gw-1").expect("drained");
    assert_eq!(journal.shard_count(), 1);
    let run = &report.runs[&(source.disk.clone(), source.epoch)];
    assert_eq!(run.vaulted_mark, Some((Seq(1), source.chain())), "what is known of the vault is not lost");
}

#[test]
fn a_configuration_that_cannot_work_is_refused_with_the_reason() {
    let dir = scratch();
    let good = config(&dir, BackendChoice::Auto);
    let cases = [
        (JournalConfig { shards: 0, ..good.clone() }, "shards"),
        (JournalConfig { segment_bytes: 1 << 20, ..good.clone() }, "segment size"),
        (JournalConfig { capacity_bytes: SEGMENT_BYTES_MIN, ..good.clone() }, "two segments for each shard"),
        (JournalConfig { low_water_percent: 90, ..good.clone() }, "water marks"),
    ];
    for (config, word) in cases {
        let error = Journal::open(&config, "gw-1").expect_err(word);
        assert!(error.to_string().contains(word), "{error}");
    }
    assert!(!good.dir.exists(), "nothing was made");
}

/// A segment written by version 1, in a file of its own. A newer version must go on reading it.
#[test]
fn the_fixture_of_version_1_stays_readable() {
    let fixture: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/fixtures/v1/journal-seg-00000001"].iter().collect();
    let golden = golden_segment();
    if std::env::var_os("TIDEGATE_WRITE_FIXTURES").is_some() {
        std::fs::create_dir_all(fixture.parent().expect("a parent")).expect("a directory");
        std::fs::write(&fixture, &golden).expect("the fixture");
    }
    let stored = std::fs::read(&fixture).expect("the fixture");
    let disk = SimDisk::new(1);
    disk.set_identity(JOURNAL);
    let file = segment_file(0, 1);
    disk.create_zeroed(&file, stored.len() as u64).expect("a file");
    disk.corrupt(&file, |bytes| bytes.copy_from_slice(&stored));
    let (journal, report) = open(&disk, &small(1, 8));
    assert!(report.damage.is_empty(), "{:?}", report.damage);
    let mut source = Source::new("web-1.sda");
    let samples: Vec<Sample> = (1..=3).map(|seq| source.make(seq * 100)).collect();
    let run = &report.runs[&(source.disk.clone(), source.epoch)];
    assert_eq!(run.vaulted_mark, Some((Seq(1), source.chain_at(1))));
    assert_eq!(ranges(&report, &source), [(1, 3)]);
    let (found, _) = read_all(&journal);
    assert_eq!(seqs(&found, &source), [2, 3]);
    assert_eq!(found[&(source.disk, 1, 3)], samples[2].bytes);
    assert!(stored == golden, "version 1 is written in other bytes than it was: that needs a new version");
}

/// Two commits: records 1 and 2; then record 3, a vaulted mark and a given-up epoch of another disk.
fn golden_segment() -> Vec<u8> {
    let mut source = Source::new("web-1.sda");
    let owner = format::Owner { journal: JOURNAL, shard: 0, segment: 1 };
    let mut file = Vec::new();
    let mut commit = format::CommitBuilder::new(disk::AlignedBuf::zeroed(16 << 10));
    for number in 1..=2_u64 {
        for seq in if number == 1 { 1..=2 } else { 3..=3 } {
            let sample = source.make(seq * 100);
            let at = (sample.head.epoch, sample.head.seq);
            commit.push_record(&source.disk, at, Micros(sample.head.label.0 + 5), sample.crc, &[sample.bytes]);
        }
        if number == 2 {
            commit.push_mark(&source.disk, (Epoch(1), Seq(1)), Some(source.chain_at(1)));
            commit.push_mark(&DiskId::new("web-2.sda").expect("a name"), (Epoch(4), Seq(0)), None);
            assert!(commit.push_note(format::RowKind::Cut, 7, 8192, 0));
            assert!(commit.push_note(format::RowKind::Held, 6, 8192, 0));
            assert!(commit.push_note(format::RowKind::Released, 6, 0, 0));
        }
        let bytes = commit.seal(owner, file.len() as u64, number);
        file.extend_from_slice(&commit.lend()[..bytes]);
        commit = format::CommitBuilder::new(disk::AlignedBuf::zeroed(16 << 10));
    }
    file
}
