//! Files as their descriptions say, read back by readers that know the descriptions only.

use proptest::prelude::*;

use super::*;

/// The file of a disk whose bytes at `offset` are `byte(offset)` where it holds something.
fn file(layout: &Layout, zeroes: &[(u64, u64)], byte: impl Fn(u64) -> u8) -> Vec<u8> {
    let mut file = vec![0; layout.file_bytes() as usize];
    for (offset, length) in units::content(layout.disk_bytes(), zeroes) {
        let (mut at, end) = (offset, offset + length);
        while at < end {
            let (place, together) = layout.place(at).expect("content has a place");
            let piece = together.min(end - at);
            for step in 0..piece {
                let into = &mut file[(place + step) as usize];
                assert_eq!(*into, 0, "two bytes of the disk in one place");
                *into = byte(at + step);
            }
            at += piece;
        }
    }
    let put = |at: u64, bytes: &[u8]| {
        let into = &mut file[at as usize..at as usize + bytes.len()];
        assert!(into.iter().all(|&byte| byte == 0) || bytes.is_empty(), "the frame lies over something");
        into.copy_from_slice(bytes);
        Ok::<_, std::convert::Infallible>(())
    };
    layout.frame([7; 16], put).unwrap();
    file
}

fn be(bytes: &[u8], at: usize, length: usize) -> u64 {
    bytes[at..at + length].iter().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

fn le(bytes: &[u8], at: usize, length: usize) -> u64 {
    bytes[at..at + length].iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

fn read_qcow2(file: &[u8]) -> Vec<u8> {
    assert_eq!((&file[..4], be(file, 4, 4)), (&b"QFI\xfb"[..], 3));
    let (cluster, size) = (1_u64 << be(file, 20, 4), be(file, 24, 8));
    let (entries, level_1) = (be(file, 36, 4), be(file, 40, 8));
    let mut disk = Vec::new();
    let mut used = vec![0_u64; (file.len() as u64).div_ceil(cluster) as usize];
    let mut mark = |offset: u64| used[(offset / cluster) as usize] += 1;
    mark(0);
    (0..(entries * 8).div_ceil(cluster)).for_each(|at| mark(level_1 + at * cluster));
    let (refcounts, refcount_clusters) = (be(file, 48, 8), be(file, 56, 4));
    (0..refcount_clusters).for_each(|at| mark(refcounts + at * cluster));
    for at in 0..refcount_clusters * cluster / 8 {
        let block = be(file, (refcounts + at * 8) as usize, 8);
        if block != 0 {
            mark(block);
        }
    }
    for table in 0..entries {
        let table = be(file, (level_1 + table * 8) as usize, 8) & !(1 << 63);
        if table != 0 {
            mark(table);
        }
        for entry in 0..cluster / 8 {
            let at = if table == 0 { 0 } else { be(file, (table + entry * 8) as usize, 8) & !(1 << 63) };
            if at == 0 {
                disk.resize(disk.len() + cluster as usize, 0);
            } else {
                mark(at);
                disk.extend_from_slice(&file[at as usize..(at + cluster) as usize]);
            }
            if disk.len() as u64 >= size {
                break;
            }
        }
    }
    for (number, used) in used.iter().enumerate() {
        let block = be(file, refcounts as usize + number / 32768 * 8, 8) as usize;
        assert_eq!(be(file, block + number % 32768 * 2, 2), *used, "refcount of cluster {number}");
    }
    disk.truncate(size as usize);
    disk
}

fn checked_footer(footer: &[u8]) -> (u64, u64) {
    assert_eq!(&footer[..8], b"conectix");
    let sum: u64 = footer.iter().enumerate().filter(|(at, _)| !(64..68).contains(at)).map(|(_, &b)| u64::from(b)).sum();
    assert_eq!(be(footer, 64, 4), u64::from(!(sum as u32)));
    (be(footer, 48, 8), be(footer, 60, 4))
}

fn read_vhd_fixed(file: &[u8]) -> Vec<u8> {
    let (disk, footer) = file.split_at(file.len() - 512);
    assert_eq!(checked_footer(footer), (disk.len() as u64, 2));
    disk.to_vec()
}

fn read_vhd(file: &[u8]) -> Vec<u8> {
    let (size, kind) = checked_footer(&file[file.len() - 512..]);
    assert_eq!((kind, &file[..512]), (3, &file[file.len() - 512..]));
    let header = be(file, 16, 8) as usize;
    assert_eq!(&file[header..header + 8], b"cxsparse");
    let (table, entries, block) = (be(file, header + 16, 8), be(file, header + 28, 4), be(file, header + 32, 4));
    assert_eq!(entries, size.div_ceil(block));
    let mut disk = Vec::new();
    for entry in 0..entries {
        let sector = be(file, (table + entry * 4) as usize, 4);
        if sector == 0xffff_ffff {
            disk.resize(disk.len() + block as usize, 0);
        } else {
            let bitmap = sector as usize * 512;
            assert!(file[bitmap..bitmap + 512].iter().all(|&byte| byte == 0xff));
            disk.extend_from_slice(&file[bitmap + 512..bitmap + 512 + block as usize]);
        }
    }
    disk.truncate(size as usize);
    disk
}

fn read_vmdk(file: &[u8]) -> Vec<u8> {
    assert_eq!((&file[..4], le(file, 4, 4), &file[73..77]), (&b"KDMV"[..], 1, &b"\n \r\n"[..]));
    let (sectors, grain, per_table) = (le(file, 12, 8), le(file, 20, 8), le(file, 44, 4));
    let description = String::from_utf8(file[512..512 * 21].to_vec()).unwrap();
    assert!(description.contains(&format!("\nRW {sectors} SPARSE \"")), "{description}");
    let read = |directory: u64| {
        let mut disk = Vec::new();
        for number in 0..sectors.div_ceil(grain) {
            let table = le(file, (directory * 512 + number / per_table * 4) as usize, 4);
            let at = le(file, (table * 512 + number % per_table * 4) as usize, 4) as usize * 512;
            match at {
                0 => disk.resize(disk.len() + grain as usize * 512, 0),
                _ => disk.extend_from_slice(&file[at..at + grain as usize * 512]),
            }
        }
        disk
    };
    let (copy, disk) = (read(le(file, 48, 8)), read(le(file, 56, 8)));
    assert!(copy == disk, "both directories say the same");
    assert_eq!(disk.len() as u64, sectors * 512);
    disk
}

/// The disk in a file of this form.
pub(crate) fn read(format: Format, file: Vec<u8>) -> Vec<u8> {
    match format {
        Format::Raw => file,
        Format::Qcow2 => read_qcow2(&file),
        Format::Vhd => read_vhd(&file),
        Format::VhdFixed => read_vhd_fixed(&file),
        Format::Vmdk => read_vmdk(&file),
    }
}

/// Zero ranges of a disk, made of the lengths of what holds something and what does not, in turn.
fn zeroes(lengths: &[(u64, u64)]) -> (u64, Vec<(u64, u64)>) {
    let (mut at, mut zeroes) = (0, Vec::new());
    for &(content, zero) in lengths {
        at += content;
        zeroes.push((at, zero));
        at += zero;
    }
    (at, zeroes)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn every_byte_is_read_back_where_the_disk_had_it(
        lengths in prop::collection::vec((1..100_000_u64, 1..600_000_u64), 1..6), starts_empty in any::<bool>()
    ) {
        let (disk_bytes, mut zeroes) = zeroes(&lengths);
        if starts_empty && zeroes[0].0 > 10 {
            zeroes.insert(0, (0, 5));
        }
        let byte = |at: u64| (at % 251) as u8 + 1;
        let mut model: Vec<u8> = (0..disk_bytes).map(byte).collect();
        zeroes.iter().for_each(|&(at, length)| model[at as usize..(at + length) as usize].fill(0));
        for format in Format::ALL {
            let layout = Layout::new(format, disk_bytes, &zeroes, "disk.vmdk").unwrap();
            let disk = read(format, file(&layout, &zeroes, byte));
            prop_assert_eq!(disk.len() as u64, layout.virtual_bytes());
            prop_assert!(disk[..model.len()] == model, "{} differs", format);
            prop_assert!(disk[model.len()..].iter().all(|&byte| byte == 0));
        }
    }
}

#[test]
fn what_holds_nothing_takes_no_room() {
    let disk_bytes = 64 << 40;
    let zeroes = [(1 << 20, (30 << 40) - (1 << 20)), ((30 << 40) + 4096, (34 << 40) - 4096)];
    let layout = Layout::new(Format::Qcow2, disk_bytes, &zeroes, "").unwrap();
    // 16 clusters at the start, one in the middle, two level-2 tables; 1 MiB of level-1 table.
    assert_eq!(layout.file_bytes(), (1 + 16 + 1 + 1 + 2 + 17) << 16);
    assert_eq!(layout.place(30 << 40), Some((layout.file_bytes() - (1 << 16), 1 << 16)));
    assert_eq!(layout.place(5 << 30), None);
    let mut bytes = 0;
    layout
        .frame([0; 16], |_, piece| {
            bytes += piece.len();
            Ok::<_, ()>(())
        })
        .unwrap();
    assert!(bytes < 2 << 20, "{bytes}");
}

#[test]
fn the_refcounts_of_a_full_disk_count_themselves() {
    for gib in [1, 3, 700, 65_536_u64] {
        let layout = Layout::new(Format::Qcow2, gib << 30, &[], "").unwrap();
        let clusters = layout.file_bytes() >> 16;
        let (first, together) = layout.place(0).unwrap();
        assert_eq!(together, gib << 30);
        assert_eq!(first + together, layout.file_bytes());
        let before = first >> 16;
        let blocks = clusters.div_ceil(32_768);
        let tables = (gib << 14).div_ceil(8192);
        assert_eq!(before, 1 + tables.div_ceil(8192) + tables + blocks + blocks.div_ceil(8192), "{gib} GiB");
    }
}

#[test]
fn a_disk_that_a_form_cannot_hold_is_refused() {
    for (format, gib) in [(Format::Vhd, 2041), (Format::Vmdk, 2041)] {
        assert!(Layout::new(format, (gib - 1) << 30, &[], "x").is_ok());
        let refused = Layout::new(format, gib << 30, &[], "x");
        assert!(matches!(refused, Err(FormatError::TooLarge { .. })), "{refused:?}");
    }
    assert!(Layout::new(Format::VhdFixed, 4 << 40, &[], "x").is_ok());
    let refused = Layout::new(Format::Vmdk, 1 << 30, &[], "a\"b");
    assert!(matches!(refused, Err(FormatError::Name { .. })), "{refused:?}");
}

#[test]
fn sectors_of_the_largest_files_fit_their_fields() {
    for format in [Format::Vhd, Format::Vmdk] {
        let layout = Layout::new(format, 2040 << 30, &[], "x").unwrap();
        assert!(layout.file_bytes() / 512 <= u64::from(u32::MAX), "{format}");
    }
}
