//! Raw files as exports.

use std::path::Path;

use super::super::{FileExport, SourceError};
use super::*;

fn image(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
}

fn source_error(error: &io::Error) -> &SourceError {
    error.get_ref().and_then(|inner| inner.downcast_ref()).unwrap_or_else(|| panic!("{error:?}"))
}

#[test]
fn zeroing_and_trimming_make_zeroes_of_exactly_their_range() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("d");
    let mut model = vec![0xaa; 1 << 20];
    image(&path, &model);
    let export = FileExport::open("d", &path, false).unwrap();
    let all = [
        ZeroFlags::default(),
        ZeroFlags { no_hole: true, ..ZeroFlags::default() },
        ZeroFlags { fua: true, ..ZeroFlags::default() },
    ];
    for (n, flags) in all.into_iter().enumerate() {
        let offset = 100_000 * (n as u64 + 1) + 17;
        export.zero(offset, 70_001, flags).unwrap();
        model[offset as usize..][..70_001].fill(0);
    }
    if let Some(range) = export.trim(600_001, 99_999, true).unwrap() {
        model[range.start as usize..range.end as usize].fill(0);
    }
    let mut back = vec![1; model.len()];
    export.read(0, &mut back).unwrap();
    assert!(back == model);
}

#[test]
fn block_status_covers_the_range_and_calls_nothing_a_hole_that_holds_data() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("d");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(8 << 20).unwrap();
    let export = FileExport::open("d", &path, false).unwrap();
    export.write(1 << 20, &[1; 4096], false).unwrap();
    export.write(5 << 20, &[1; 1 << 20], false).unwrap();
    for (offset, length) in [(0, 8 << 20), (1, 100), (1 << 20, 4096), ((5 << 20) + 7, 3 << 19), ((8 << 20) - 1, 1)] {
        let mut at = offset;
        for extent in export.block_status(offset, length).unwrap() {
            assert!(extent.length > 0 && extent.hole == extent.zero);
            let mut data = vec![1; extent.length as usize];
            export.read(at, &mut data).unwrap();
            assert!(!extent.zero || proto::is_zero(&data));
            at += extent.length;
        }
        assert_eq!(at, offset + length);
    }
}

#[test]
fn a_source_that_shrank_or_vanished_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk-7.img");
    image(&path, &[1; 8192]);
    let export = FileExport::open("d", &path, false).unwrap();
    export.check().unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(4096).unwrap();
    let error = export.read(4000, &mut [0; 1000]).unwrap_err();
    assert!(
        matches!(source_error(&error), SourceError::Shrunk { opened_bytes: 8192, found_bytes: 4096, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("disk-7.img"), "{error}");
    assert!(matches!(source_error(&export.flush().unwrap_err()), SourceError::Shrunk { .. }));
    std::fs::rename(&path, directory.path().join("elsewhere")).unwrap();
    assert!(matches!(export.check(), Err(SourceError::Vanished { .. })));
    image(&path, &[1; 8192]);
    assert!(
        matches!(export.check(), Err(SourceError::Vanished { .. })),
        "another file of that name is no disk of ours"
    );
}

#[test]
fn what_cannot_be_a_disk_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("d");
    let open = |read_only| FileExport::open("d", &path, read_only);
    assert!(matches!(open(true), Err(SourceError::Open { .. })));
    std::fs::create_dir(&path).unwrap();
    assert!(matches!(open(true), Err(SourceError::Kind { .. })));
    std::fs::remove_dir(&path).unwrap();
    image(&path, &[]);
    assert!(matches!(open(false), Err(SourceError::Size { size_bytes: 0, .. })));
    image(&path, &[1; 512]);
    let first = open(false).unwrap();
    let second = open(false).unwrap_err();
    assert!(matches!(second, SourceError::InUse { .. }), "{second}");
    // Readers do no harm.
    open(true).unwrap();
    drop(first);
    open(false).unwrap();
}

#[test]
fn a_range_outside_the_disk_reaches_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("d");
    image(&path, &[1; 4096]);
    let export = FileExport::open("d", &path, false).unwrap();
    assert!(export.write(4095, &[2; 2], false).is_err());
    assert!(export.read(u64::MAX, &mut [0; 2]).is_err());
    assert!(export.zero(0, 4097, ZeroFlags::default()).is_err());
    assert!(export.trim(1, u64::MAX, false).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), [1; 4096]);
}
