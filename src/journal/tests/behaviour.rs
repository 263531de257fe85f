//! Acks, order, backpressure, release.

use super::*;

#[test]
fn no_journaled_ack_leaves_before_its_sync_completed() {
    let disk = SimDisk::new(1);
    let (journal, _) = open(&disk, &small(1, 8));
    runtime().block_on(async {
        let mut source = Source::new("a");
        disk.hold_syncs();
        source.send(&journal, 1000).await;
        while disk.syncs_waiting() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // The write is done and its sync is under way; more comes in and waits for the next commit.
        source.send(&journal, 1000).await;
        source.send(&journal, 1000).await;
        let early = tokio::time::timeout(Duration::from_millis(50), source.journaled.beyond(0)).await;
        assert!(early.is_err(), "acked {early:?} while the sync was held");
        assert!(read_all(&journal).0.is_empty(), "what is not durable is not read either");
        disk.release_syncs();
        source.settled().await;
        let (writes, syncs) = disk.counts();
        assert_eq!((writes, syncs), (2, 2), "the two that waited shared one write and one sync");
    });
}

/// Made anew, each costs the writer a millisecond for its pages.
#[test]
fn buffers_whose_records_were_kept_together_are_used_again() {
    let disk = SimDisk::new(1);
    let (journal, _) = open(&disk, &JournalConfig { cache_bytes: 512 << 10, ..small(1, 8) });
    runtime().block_on(async {
        let (mut source, mut reader) = (Source::new("a"), journal.reader(0));
        let mut kept = Vec::new();
        for number in 0..11 {
            source.send(&journal, 8000).await;
            source.settled().await;
            let commit = reader.next(Duration::from_secs(30)).await.expect("a sound journal").expect("a commit");
            assert!(commit.may_keep);
            // A reader finds the first one on the disk.
            if number > 0 {
                kept.push(commit);
            }
        }
        drop(kept);
        let unused = journal.engine.shards[0].pool.unused();
        assert!(unused >= 10, "of 10 that came back {unused} are there for the next commits");
    });
}

#[test]
fn records_come_back_as_they_were_sent_from_memory_and_from_disk() {
    let disk = SimDisk::new(2);
    let config = small(2, 64);
    let (journal, report) = open(&disk, &config);
    assert!(report.runs.is_empty() && report.damage.is_empty());
    let mut sources = [Source::new("a"), Source::new("b"), Source::new("c")];
    runtime().block_on(async {
        for round in 0..60 {
            for source in &mut sources {
                source.send(&journal, 100 + round * 90).await;
            }
        }
        for source in &sources {
            source.settled().await;
        }
    });
    let (found, damage) = read_all(&journal);
    assert!(damage.is_empty(), "{damage:?}");
    for source in &sources {
        assert_eq!(seqs(&found, source), (1..=60).collect::<Vec<_>>());
        for sample in &source.records {
            assert_eq!(found[&(source.disk.clone(), 1, sample.head.seq.0)], sample.bytes);
        }
    }
    journal.close();
    let (journal, report) = open(&disk, &config);
    assert_eq!(read_all(&journal).0, found, "the same after a restart, all from the disk");
    for source in &sources {
        let run = &report.runs[&(source.disk.clone(), source.epoch)];
        assert_eq!(ranges(&report, source), [(1, 60)]);
        assert_eq!(run.journaled[0].chain_last, source.chain());
        assert_eq!(run.journaled[0].label_last, source.records[59].head.label);
    }
}

#[test]
fn a_reader_follows_the_writer_and_is_told_of_the_end() {
    let disk = SimDisk::new(3);
    let (journal, _) = open(&disk, &small(1, 64));
    let follower = {
        let mut reader = journal.reader(0);
        std::thread::spawn(move || {
            let mut seen = Vec::new();
            let runtime = runtime();
            loop {
                match runtime.block_on(reader.next(Duration::from_secs(30))) {
                    Ok(Some(commit)) => seen.extend(commit.entries.iter().map(|entry| entry.head.seq.0)),
                    Ok(None) => {}
                    Err(ReadError::Closed) => return seen,
                    Err(error) => panic!("{error}"),
                }
            }
        })
    };
    runtime().block_on(async {
        let mut source = Source::new("a");
        for round in 0..200 {
            source.send(&journal, 50 + round % 7 * 600).await;
            if round % 10 == 0 {
                source.settled().await;
            }
        }
    });
    journal.close();
    assert_eq!(follower.join().expect("the reader's thread"), (1..=200).collect::<Vec<_>>());
}

#[test]
fn vaulted_segments_are_used_again_and_their_space_returns() {
    let disk = SimDisk::new(4);
    let (journal, _) = open(&disk, &small(1, 6));
    runtime().block_on(async {
        let mut source = Source::new("a");
        // Many times what fits at once.
        for round in 1..=300_u64 {
            source.send(&journal, 8000).await;
            if round % 8 == 0 {
                source.settled().await;
                source.vault(&journal, round - 4);
            }
        }
        source.settled().await;
        source.vault(&journal, 300);
        while journal.space().used_bytes > 64 << 10 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    assert_eq!(*journal.space_changed().borrow(), Level::Low);
    let files = Files::list(&disk, &depot::shard_dir("/sim".as_ref(), 0)).expect("list");
    assert!(files.len() <= 6, "{} files", files.len());
    assert!(read_all(&journal).0.is_empty(), "vaulted records are not read again");
}

#[test]
fn a_full_journal_blocks_append_and_resumes() {
    let disk = SimDisk::new(5);
    let (journal, _) = open(&disk, &small(1, 4));
    runtime().block_on(async {
        let mut source = Source::new("a");
        let mut levels = journal.space_changed();
        let mut refused = None;
        for _ in 0..100 {
            let sample = source.make(8000);
            let append = source.append(&journal, &sample);
            if tokio::time::timeout(Duration::from_millis(200), append).await.is_err() {
                refused = Some(sample);
                break;
            }
        }
        let sample = refused.expect("the journal is bounded");
        assert!(journal.space().used_bytes <= journal.space().capacity_bytes);
        levels.wait_for(|level| *level == Level::Full).await.expect("the journal lives");
        let acked = source.journaled.get();
        source.vault(&journal, acked);
        source.append(&journal, &sample).await.expect("taken after space returned");
        source.settled().await;
        levels.wait_for(|level| *level != Level::Full).await.expect("the journal lives");
        let (found, _) = read_all(&journal);
        assert_eq!(seqs(&found, &source), (acked + 1..=sample.head.seq.0).collect::<Vec<_>>(), "none lost, none twice");
    });
    journal.close();
}

#[test]
fn a_file_system_without_room_is_waited_for() {
    waited_for(io::ErrorKind::StorageFull);
}

#[test]
fn a_quota_that_is_used_up_is_waited_for() {
    waited_for(io::ErrorKind::QuotaExceeded);
}

/// More tries than a broken disk gets find no room; then there is some.
fn waited_for(no_room: io::ErrorKind) {
    let disk = SimDisk::new(12);
    disk.set_no_room(no_room);
    disk.set_room(2 * (64 << 10));
    let (journal, _) = open(&disk, &small(1, 16));
    runtime().block_on(async {
        let mut source = Source::new("a");
        let mut levels = journal.space_changed();
        for _ in 0..8 {
            source.send(&journal, 8000).await;
        }
        let sample = source.make(8000);
        let full = async {
            levels.wait_for(|level| *level == Level::Full).await.expect("the journal lives");
            while disk.no_rooms() <= depot::REFUSED_MAX + 1 && journal.failure().is_none() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert_eq!(journal.failure(), None);
            disk.set_room(u64::MAX);
        };
        let appends = async {
            for _ in 0..8 {
                source.append(&journal, &sample).await.expect("taken in the end");
            }
        };
        tokio::join!(full, appends);
        levels.wait_for(|level| *level != Level::Full).await.expect("the journal lives");
    });
    assert_eq!(journal.failure(), None);
}

#[test]
fn a_full_journal_opens_again_and_drains() {
    let disk = SimDisk::new(6);
    let config = small(1, 4);
    let mut source = Source::new("a");
    // Each start leaves the tail of a segment behind, until every file is held.
    for _ in 0..8 {
        let (journal, report) = open(&disk, &config);
        let last = ranges(&report, &source).last().map_or(0, |range| range.1);
        source.records.truncate(last as usize);
        source.journaled = Arc::new(Watermark::new(last));
        runtime().block_on(async {
            for _ in 0..6 {
                let sample = source.make(8000);
                let append = source.append(&journal, &sample);
                let _ = tokio::time::timeout(Duration::from_millis(50), append).await;
            }
        });
        journal.close();
    }
    let (journal, report) = open(&disk, &config);
    let last = ranges(&report, &source)[0].1;
    assert_eq!(seqs(&read_all(&journal).0, &source), (1..=last).collect::<Vec<_>>());
    source.records.truncate(last as usize);
    source.journaled = Arc::new(Watermark::new(last));
    source.vault(&journal, last);
    runtime().block_on(async {
        for _ in 0..20 {
            source.send(&journal, 8000).await;
            source.settled().await;
            source.vault(&journal, source.records.len() as u64);
        }
    });
    journal.close();
}

#[test]
fn one_forgotten_epoch_gives_its_space_back_and_is_not_read() {
    let disk = SimDisk::new(7);
    let config = small(1, 8);
    let (journal, _) = open(&disk, &config);
    let (mut old, mut other) = (Source::new("a"), Source::new("b"));
    runtime().block_on(async {
        for _ in 0..20 {
            old.send(&journal, 6000).await;
            other.send(&journal, 100).await;
        }
        old.settled().await;
        other.settled().await;
    });
    journal.forget(&old.disk, old.epoch);
    let (found, _) = read_all(&journal);
    assert_eq!((seqs(&found, &old).len(), seqs(&found, &other).len()), (0, 20));
    let used_bytes = journal.space().used_bytes;
    other.vault(&journal, 20);
    runtime().block_on(async {
        while journal.space().used_bytes >= used_bytes {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    journal.close();
    let (journal, report) = open(&disk, &config);
    assert!(ranges(&report, &old).is_empty(), "given up also after a restart");
    assert!(read_all(&journal).0.is_empty());
}

#[test]
fn vaulted_marks_survive_a_restart() {
    let disk = SimDisk::new(8);
    let config = small(1, 16);
    let (journal, _) = open(&disk, &config);
    let mut source = Source::new("a");
    runtime().block_on(async {
        for _ in 0..10 {
            source.send(&journal, 4000).await;
        }
        source.settled().await;
    });
    source.vault(&journal, 7);
    journal.close();
    for _ in 0..3 {
        let (journal, report) = open(&disk, &config);
        let run = &report.runs[&(source.disk.clone(), source.epoch)];
        assert_eq!(run.vaulted_mark, Some((Seq(7), source.chain_at(7))));
        assert_eq!(seqs(&read_all(&journal).0, &source), [8, 9, 10]);
        journal.close();
    }
}

#[test]
fn a_cancelled_append_took_nothing_and_blocks_nobody() {
    let disk = SimDisk::new(9);
    let (journal, _) = open(&disk, &small(1, 64));
    runtime().block_on(async {
        let (mut a, mut b) = (Source::new("a"), Source::new("b"));
        disk.hold_syncs();
        let mut cancelled = 0;
        while cancelled < 3 {
            let sample = a.make(6000);
            let append = a.append(&journal, &sample);
            if tokio::time::timeout(Duration::from_millis(20), append).await.is_err() {
                a.records.pop();
                cancelled += 1;
            }
        }
        disk.release_syncs();
        b.send(&journal, 6000).await;
        b.settled().await;
        a.settled().await;
        let (found, _) = read_all(&journal);
        assert_eq!(seqs(&found, &a), (1..=a.records.len() as u64).collect::<Vec<_>>());
    });
}

#[test]
fn a_record_whose_length_lies_is_refused() {
    let disk = SimDisk::new(10);
    let (journal, _) = open(&disk, &small(1, 8));
    runtime().block_on(async {
        let mut source = Source::new("a");
        let mut sample = source.make(500);
        sample.bytes = sample.bytes.slice(..sample.bytes.len() - 1);
        let refused = source.append(&journal, &sample).await;
        assert!(matches!(refused, Err(AppendError::Length { .. })), "{refused:?}");
        let large = source.make(16 << 10);
        let refused = source.append(&journal, &large).await.expect_err("larger than a commit");
        assert!(refused.to_string().contains("e1-s2 of disk a"), "{refused}");
    });
    journal.close();
    let mut source = Source::new("a");
    let sample = source.make(10);
    assert_eq!(runtime().block_on(source.append(&journal, &sample)), Err(AppendError::Closed));
}

#[test]
fn commits_go_on_while_sessions_never_pause() {
    // The library behind the ring submits only when its thread parks: if the shard kept itself busy between commits,
    // nothing would ever reach the disk. Here every session appends as fast as it can.
    let disk = SimDisk::new(11);
    let (journal, _) = open(&disk, &small(1, 4096));
    let sessions: Vec<_> = ["a", "b", "c", "d"]
        .into_iter()
        .map(|name| {
            let journal = journal.clone();
            std::thread::spawn(move || {
                runtime().block_on(async {
                    let mut source = Source::new(name);
                    for _ in 0..500 {
                        source.send(&journal, 200).await;
                    }
                    source.settled().await;
                });
            })
        })
        .collect();
    for session in sessions {
        session.join().expect("a session");
    }
    assert_eq!(read_all(&journal).0.len(), 2000);
}
