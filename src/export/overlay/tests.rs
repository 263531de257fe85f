//! An overlay against a model, through restarts, torn logs and foreign files.

use proptest::prelude::*;

use super::*;

fn image(disk_bytes: u64) -> Image {
    let point = PointId { epoch: Epoch(2), seq: Seq(77) };
    Image { vault: Id128([5; 16]), disk: DiskId::new("web-1.sda").unwrap(), point, disk_bytes }
}

/// What lies below: each byte says where it is.
fn below(offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
    buf.iter_mut().zip(offset_bytes..).for_each(|(byte, at)| *byte = (at / 512) as u8 ^ 0xa5);
    Ok(())
}

fn read(overlay: &Overlay, range: &Range<u64>) -> Vec<u8> {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    for (stretch, here) in overlay.stretches(range.clone()) {
        let part = &mut bytes[(stretch.start - range.start) as usize..(stretch.end - range.start) as usize];
        if here {
            overlay.read(stretch.start, part).unwrap();
        } else {
            below(stretch.start, part).unwrap();
        }
    }
    bytes
}

#[derive(Debug, Clone)]
enum Step {
    Write(u64, u16, u8),
    Zero(u64, u16),
    Flush,
    /// Closed and opened again, after a flush.
    Restart,
}

const DISK: u64 = 50_000;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_was_written_is_read_also_after_restarts(steps in prop::collection::vec(prop_oneof![
        6 => (0..DISK, 1..20_000_u16, any::<u8>()).prop_map(|(at, length, fill)| Step::Write(at, length, fill)),
        2 => (0..DISK, 1..20_000_u16).prop_map(|(at, length)| Step::Zero(at, length)),
        1 => Just(Step::Flush),
        1 => Just(Step::Restart),
    ], 0..30)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("overlay");
        let mut model = vec![0; DISK as usize];
        below(0, &mut model).unwrap();
        let mut overlay = Overlay::open(&path, &image(DISK)).unwrap();
        for step in steps {
            match step {
                Step::Write(at, length, fill) => {
                    let end = (at + u64::from(length)).min(DISK);
                    let data = vec![fill; (end - at) as usize];
                    overlay.write(at, &data, below).unwrap();
                    model[at as usize..end as usize].copy_from_slice(&data);
                }
                Step::Zero(at, length) => {
                    let end = (at + u64::from(length)).min(DISK);
                    overlay.zero(&(at..end), false, below).unwrap();
                    model[at as usize..end as usize].fill(0);
                }
                Step::Flush => overlay.flush().unwrap(),
                Step::Restart => {
                    overlay.flush().unwrap();
                    drop(overlay);
                    overlay = Overlay::open(&path, &image(DISK)).unwrap();
                }
            }
            prop_assert!(read(&overlay, &(0..DISK)) == model);
        }
    }

    #[test]
    fn any_bytes_are_read_as_entries_up_to_the_first_that_is_none(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let count = each_entry(&mut &bytes[..], 100, drop).unwrap();
        prop_assert!(count <= bytes.len() as u64 / ENTRY_BYTES as u64);
        let _ = Image::decode(&bytes);
    }
}

#[test]
fn what_was_flushed_outlives_a_kill_and_what_was_not_is_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("overlay");
    let overlay = Overlay::open(&path, &image(DISK)).unwrap();
    overlay.write(4096, &[1; 4096], below).unwrap();
    overlay.flush().unwrap();
    overlay.write(16_384, &[2; 4096], below).unwrap();
    // Killed: nothing is told of the second.
    drop(overlay);
    let overlay = Overlay::open(&path, &image(DISK)).unwrap();
    assert_eq!(read(&overlay, &(4096..8192)), [1; 4096]);
    let mut expected = [0; 4096];
    below(16_384, &mut expected).unwrap();
    assert_eq!(read(&overlay, &(16_384..20_480)), expected);
    assert_eq!(overlay.held_bytes(), 4096);
}

#[test]
fn a_torn_or_altered_end_of_the_log_is_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("overlay");
    let overlay = Overlay::open(&path, &image(DISK)).unwrap();
    for block in [1, 3, 5] {
        overlay.write(block * 4096, &[block as u8; 4096], below).unwrap();
        overlay.flush().unwrap();
    }
    let log_at = overlay.head_at + HEAD_BYTES;
    drop(overlay);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[0xff], log_at + 2 * ENTRY_BYTES as u64 + 3).unwrap();
    let overlay = Overlay::open(&path, &image(DISK)).unwrap();
    assert_eq!(overlay.held_bytes(), 2 * 4096);
    overlay.write(7 * 4096, &[7; 4096], below).unwrap();
    overlay.flush().unwrap();
    drop(overlay);
    file.set_len(log_at + 3 * ENTRY_BYTES as u64 - 1).unwrap();
    let overlay = Overlay::open(&path, &image(DISK)).unwrap();
    assert_eq!(overlay.held_bytes(), 2 * 4096, "written behind what was valid, then torn");
}

#[test]
fn it_is_laid_over_no_other_image_and_used_once_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("overlay");
    let overlay = Overlay::open(&path, &image(DISK)).unwrap();
    assert!(matches!(Overlay::open(&path, &image(DISK)), Err(OverlayError::File(SourceError::InUse { .. }))));
    drop(overlay);
    let other = Image { point: PointId { epoch: Epoch(2), seq: Seq(78) }, ..image(DISK) };
    let refused = Overlay::open(&path, &other).unwrap_err();
    assert!(refused.to_string().contains("lies over point e2-s77 of disk web-1.sda"), "{refused}");
    std::fs::write(&path, b"precious").unwrap();
    assert!(matches!(Overlay::open(&path, &image(DISK)), Err(OverlayError::Foreign { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[test]
fn after_a_failed_sync_nothing_is_promised_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("overlay");
    let overlay = Overlay::open(&path, &image(DISK)).unwrap();
    overlay.write(0, &[1; 4096], below).unwrap();
    overlay.flush().unwrap();
    overlay.write(4096, &[2; 4096], below).unwrap();
    overlay.fail_sync.store(true, std::sync::atomic::Ordering::Relaxed);
    overlay.flush().unwrap_err();
    // The system would say that all is well now.
    let error = overlay.flush().unwrap_err();
    assert!(error.to_string().contains("start the same export again"), "{error}");
    overlay.left(&[0..4096]).unwrap_err();
    overlay.begin_moving().unwrap_err();
    drop(overlay);
    let overlay = Overlay::open(&path, &image(DISK)).unwrap();
    assert_eq!((overlay.held_bytes(), overlay.moving()), (4096, false));
    assert_eq!(read(&overlay, &(0..4096)), [1; 4096]);
}

#[test]
fn of_two_that_find_a_file_empty_one_makes_it_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("overlay");
    let held = File::create(&path).unwrap();
    held.try_lock().unwrap();
    assert!(matches!(Overlay::open(&path, &image(DISK)), Err(OverlayError::File(SourceError::InUse { .. }))));
    drop(held);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 0, "nothing was written into it");
    Overlay::open(&path, &image(DISK)).unwrap();
}

#[test]
fn blocks_that_left_are_not_here_after_a_restart_either() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("overlay");
    let overlay = Overlay::open(&path, &image(DISK)).unwrap();
    overlay.write(0, &[1; 12_288], below).unwrap();
    overlay.write(40_960, &[2; 9040], below).unwrap();
    assert!(!overlay.moving());
    assert_eq!(overlay.first_runs(8192, 9), [0..8192]);
    assert_eq!(overlay.first_runs(1 << 20, 9), [0..12_288, 40_960..DISK]);
    overlay.flush().unwrap();
    overlay.begin_moving().unwrap();
    overlay.left(&[0..8192]).unwrap();
    drop(overlay);
    let overlay = Overlay::open(&path, &image(DISK)).unwrap();
    assert_eq!(overlay.first_runs(1 << 20, 9), [8192..12_288, 40_960..DISK]);
    assert!(overlay.moving());
    overlay.remove().unwrap();
    assert!(!path.exists());
}

#[test]
fn the_format_of_version_1_is_what_the_fixture_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1/overlay.bin");
    let mut bytes = image(DISK).encode();
    let entries = [Entry::Came(1..4), Entry::Moving, Entry::Left(2..3)];
    for (number, entry) in (0..).zip(&entries) {
        bytes.extend_from_slice(&entry.encode(number));
    }
    if std::env::var_os("TIDEGATE_BLESS").is_some() {
        std::fs::write(&path, &bytes).unwrap();
    }
    assert!(std::fs::read(&path).unwrap_or_default() == bytes, "TIDEGATE_BLESS=1 writes it");
    assert_eq!(Image::decode(&bytes), Some(image(DISK)));
    let mut found = Vec::new();
    each_entry(&mut &bytes[HEAD_BYTES as usize..], 13, |entry| found.push(entry)).unwrap();
    assert_eq!(found, entries);
}
