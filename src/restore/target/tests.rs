//! A target takes what it is given, has its name only when it is whole, and is overwritten only when it may be.

use super::*;
use std::os::unix::fs::MetadataExt;

#[test]
fn zero_blocks_of_a_new_file_stay_holes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let target = Target::create(&path, &Layout::raw(64 << 20)).unwrap();
    let mut data = vec![0; 1 << 20];
    data[5000] = 1;
    target.write(8 << 20, &data).unwrap();
    target.finish().unwrap();
    let meta = std::fs::metadata(&path).unwrap();
    assert_eq!(meta.len(), 64 << 20);
    assert!(meta.blocks() * 512 <= 64 << 10, "{} blocks", meta.blocks());
    assert_eq!(std::fs::read(&path).unwrap()[(8 << 20) + 5000], 1);
}

#[test]
fn runs_follow_the_blocks_of_the_image_not_of_the_data() {
    let mut data = vec![0; 3 * HOLE_BYTES];
    assert_eq!(content_runs(0, &data), []);
    assert_eq!(content_runs(512, &data), [(0, HOLE_BYTES - 512), (3 * HOLE_BYTES - 512, 3 * HOLE_BYTES)]);
    data[HOLE_BYTES] = 9;
    assert_eq!(content_runs(4096, &data), [(HOLE_BYTES, 2 * HOLE_BYTES)]);
}

#[test]
fn a_file_has_its_name_only_when_it_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let target = Target::create(&path, &Layout::raw(4096)).unwrap();
    target.write(0, &[1; 4096]).unwrap();
    assert!(!path.exists());
    let id = target.id().unwrap();
    drop(target);
    assert!(Target::standing(&path, &Layout::raw(8192)).unwrap().is_none(), "another size");
    let target = Target::standing(&path, &Layout::raw(4096)).unwrap().unwrap();
    assert_eq!(target.id().unwrap(), id);
    target.finish().unwrap();
    assert!(Target::standing(&path, &Layout::raw(4096)).unwrap().is_none(), "an image is not gone on with");
    assert_eq!(std::fs::read(&path).unwrap(), [1; 4096], "what the first run wrote was kept");
    assert!(!partial_of(&path).exists());
}

#[test]
fn content_is_overwritten_only_when_forced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    std::fs::write(&path, b"precious").unwrap();
    assert!(matches!(Target::check(&path, false), Err(TargetError::NotEmpty { .. })));
    Target::check(&path, true).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    Target::create(&path, &Layout::raw(4096)).unwrap().finish().unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), [0; 4096]);
    assert!(matches!(Target::check(folder.path(), true), Err(TargetError::Kind { .. })));
}

#[test]
fn an_empty_file_may_be_a_target() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    std::fs::write(&path, b"").unwrap();
    Target::check(&path, false).unwrap();
    Target::create(&path, &Layout::raw(4096)).unwrap().finish().unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 4096);
}

#[test]
fn what_a_target_does_not_keep_is_found_when_it_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    for format in Format::ALL {
        let path = folder.path().join("image");
        let layout = Layout::new(format, 4 << 20, &[(0, 1 << 20), (2 << 20, 2 << 20)], "image").unwrap();
        let target = Target::create(&path, &layout).unwrap();
        let mut data = vec![0xa5; 1 << 20];
        // A hole must read as what was written there, too.
        data[8192..16384].fill(0);
        let ranges = [(1 << 20, 0..300_000), ((1 << 20) + 300_000, 300_000..1 << 20)];
        let mut expected = Vec::new();
        for (at, range) in ranges {
            target.write(at, &data[range.clone()]).unwrap();
            expected.push(Expected::of(at, &data[range]));
        }
        target.sync().unwrap();
        target.check_written(expected.clone()).unwrap();
        let (at, _) = layout.place((1 << 20) + 500_000).unwrap();
        target.file.write_all_at(b"!", at).unwrap();
        let found = target.check_written(expected);
        assert!(matches!(found, Err(TargetError::Differs { offset_bytes: 1_348_576, .. })), "{found:?}");
    }
}

#[test]
fn ranges_that_must_be_zero_are_cleared_only_where_they_are_not_and_looked_at_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let file = File::create(&path).unwrap();
    file.set_len(8 << 20).unwrap();
    file.write_all_at(&[1; 100], 5 << 20).unwrap();
    let (target, begun) = Target::standing_onto(&path, 8 << 20, false).unwrap();
    assert!(!begun);
    let zeroes = [(4096, (6 << 20) - 4096)];
    let found = target.check_zeroes(&zeroes);
    assert!(matches!(found, Err(TargetError::Differs { .. })), "{found:?}");
    target.zero(zeroes[0].0, zeroes[0].1).unwrap();
    target.check_zeroes(&zeroes).unwrap();
    let (same, cleared) = (target.same_bytes(), zeroes[0].1 - target.same_bytes());
    assert!((1..=ZERO_WRITE_BYTES as u64).contains(&cleared), "{same} of {} were zero", zeroes[0].1);
}
