use super::*;

fn owner() -> Owner {
    Owner { journal: Id128([7; 16]), shard: 3, segment: 9 }
}

fn sample() -> (AlignedBuf, usize) {
    let disk = DiskId::new("web-1.sda").expect("a name");
    let mut commit = CommitBuilder::new(AlignedBuf::zeroed(1 << 16));
    let chunks = [Bytes::from_static(b"first "), Bytes::from_static(b"record")];
    let crc = crc32c(b"first record");
    commit.push_record(&disk, (Epoch(2), Seq(5)), Micros(77), crc, &chunks);
    commit.push_mark(&disk, (Epoch(1), Seq(4)), Some(Chain([9; 32])));
    commit.push_mark(&disk, (Epoch(1), Seq(0)), None);
    assert!(commit.push_note(RowKind::Cut, 8, 12_288, 0));
    let bytes = commit.seal(owner(), 8192, 41);
    (commit.lend(), bytes)
}

#[test]
fn a_sealed_commit_reads_back_as_it_was_put_in() {
    let (buf, commit_bytes) = sample();
    assert_eq!(commit_bytes, BLOCK_BYTES);
    let commit = &buf[..commit_bytes];
    let header = Header::decode(commit).expect("header");
    assert_eq!((header.owner, header.offset_bytes, header.number), (owner(), 8192, 41));
    let rows = header.rows(commit).expect("table");
    assert_eq!(rows.len(), 4);
    assert!(rows[..3].iter().all(|row| row.is_whole(commit) && row.disk_name(commit) == Some("web-1.sda")));
    assert_eq!(&commit[rows[0].body.clone()], b"first record");
    assert_eq!((rows[0].epoch, rows[0].seq, rows[0].received), (Epoch(2), Seq(5), Micros(77)));
    assert_eq!((rows[1].kind, rows[1].chain(commit)), (RowKind::Vaulted, Some(Chain([9; 32]))));
    assert_eq!((rows[2].kind, rows[2].chain(commit)), (RowKind::Forgotten, None));
    assert_eq!((rows[3].kind, rows[3].epoch.0, rows[3].seq.0), (RowKind::Cut, 8, 12_288));
}

#[test]
fn every_flipped_bit_of_a_commit_is_noticed_or_means_nothing() {
    let (buf, commit_bytes) = sample();
    let good = buf[..commit_bytes].to_vec();
    let header = Header::decode(&good).expect("header");
    let used = header.table().end;
    for bit in 0..used * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let noticed = Header::decode(&bytes)
            .and_then(|header| header.rows(&bytes))
            .is_none_or(|rows| rows.iter().any(|row| !row.is_whole(&bytes)));
        let padding = bytes[header.table().start - (header.table().start - HEADER_BYTES - header.body_bytes as usize)
            ..header.table().start]
            .iter()
            .any(|&byte| byte != 0);
        assert!(noticed || padding, "bit {bit} went unnoticed");
    }
}

#[test]
fn hostile_headers_and_tables_are_refused_without_a_panic() {
    let (buf, commit_bytes) = sample();
    let mut rng = 88_u64;
    for _ in 0..20_000 {
        let mut bytes = buf[..commit_bytes].to_vec();
        for _ in 0..4 {
            rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = (rng >> 33) as usize % 400;
            bytes[at] = (rng >> 20) as u8;
        }
        // The CRCs are made good again: what is behind them must hold by itself.
        let crc = crc32c(&bytes[..HEADER_CRC_AT]);
        bytes[HEADER_CRC_AT..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
        if let Some(mut header) = Header::decode(&bytes) {
            if header.table().end <= bytes.len() {
                header.table_crc = crc32c(&bytes[header.table()]);
            }
            for row in header.rows(&bytes).unwrap_or_default() {
                let _ = (row.is_whole(&bytes), row.disk_name(&bytes), row.chain(&bytes));
            }
        }
    }
}

#[test]
fn a_commit_says_beforehand_what_fits() {
    let disk = DiskId::new("d").expect("a name");
    let mut commit = CommitBuilder::new(AlignedBuf::zeroed(3 * BLOCK_BYTES));
    let record = [Bytes::from(vec![1; 1000])];
    let mut taken = 0;
    while commit.fits(&disk, 1000, BLOCK_BYTES) {
        commit.push_record(&disk, (Epoch(1), Seq(taken + 1)), Micros(0), 0, &record);
        taken += 1;
    }
    assert_eq!(taken, 7);
    assert_eq!(commit.seal(owner(), 0, 1), 2 * BLOCK_BYTES, "the reserve stayed free");
    assert!(!commit.fits(&disk, 5000, 0));
}

#[test]
fn sealing_again_for_another_place_changes_only_the_header() {
    let disk = DiskId::new("d").expect("a name");
    let mut commit = CommitBuilder::new(AlignedBuf::zeroed(2 * BLOCK_BYTES));
    commit.push_record(&disk, (Epoch(1), Seq(1)), Micros(0), crc32c(b"x"), &[Bytes::from_static(b"x")]);
    commit.seal(owner(), 0, 1);
    let elsewhere = Owner { segment: 10, ..owner() };
    commit.push_mark(&disk, (Epoch(1), Seq(1)), Some(Chain([1; 32])));
    let bytes = commit.seal(elsewhere, 4096, 1);
    let buf = commit.lend();
    let header = Header::decode(&buf[..bytes]).expect("header");
    assert_eq!((header.owner, header.offset_bytes), (elsewhere, 4096));
    assert!(header.rows(&buf[..bytes]).expect("table").iter().all(|row| row.is_whole(&buf[..bytes])));
}
