//! Images in every form against QEMU, which has written and read them for longer: `qemu-img check`, `compare` and `convert`.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;
use std::process::Command;

use tidegate::cli::quickstart::image;
use tidegate::cli::quickstart::load::Numbers;
use tidegate::restore::format::{Format, Layout};
use tidegate::restore::target::Target;

const MIB: u64 = 1 << 20;

fn qemu_img(arguments: &[&str]) -> String {
    let output = Command::new("qemu-img").args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("qemu-img, from qemu-utils: {error}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "qemu-img {arguments:?}: {}\n{out}\n{err}", output.status);
    out.into_owned()
}

const fn driver(format: Format) -> &'static str {
    match format {
        Format::Raw => "raw",
        Format::Qcow2 => "qcow2",
        Format::Vhd | Format::VhdFixed => "vpc",
        Format::Vmdk => "vmdk",
    }
}

/// Ranges of whole blocks of `disk` that are zero: offset and length.
fn zeroes(disk: &[u8], block: usize) -> Vec<(u64, u64)> {
    let mut zeroes: Vec<(u64, u64)> = Vec::new();
    for (number, bytes) in disk.chunks(block).enumerate() {
        let at = (number * block) as u64;
        if bytes.iter().any(|&byte| byte != 0) {
            continue;
        }
        match zeroes.last_mut() {
            Some((offset, length)) if *offset + *length == at => *length += bytes.len() as u64,
            _ => zeroes.push((at, bytes.len() as u64)),
        }
    }
    zeroes
}

/// Writes the image as a restore does: in pieces, in no order.
fn write(disk: &[u8], zeroes: &[(u64, u64)], format: Format, path: &Path, numbers: &mut Numbers) {
    let name = path.file_name().unwrap().to_str().unwrap();
    let layout = Layout::new(format, disk.len() as u64, zeroes, name).unwrap();
    let target = Target::create(path, &layout).unwrap();
    let mut pieces = Vec::new();
    let mut at = 0;
    let after = zeroes.iter().copied().chain([(disk.len() as u64, 0)]);
    for (offset, length) in after {
        while at < offset {
            let piece = (numbers.below(MIB) + 1).min(offset - at);
            pieces.push(at..at + piece);
            at += piece;
        }
        at = offset + length;
    }
    while !pieces.is_empty() {
        let piece = pieces.swap_remove(numbers.below(pieces.len() as u64) as usize);
        target.write(piece.start, &disk[piece.start as usize..piece.end as usize]).unwrap();
    }
    target.finish().unwrap();
}

fn assert_all_forms(raw: &Path, block: usize) {
    let disk = std::fs::read(raw).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut numbers = Numbers::new(disk.len() as u64);
    let zeroes = zeroes(&disk, block);
    for format in Format::ALL {
        let path = folder.path().join(format!("{format}.{}", format.ending()));
        write(&disk, &zeroes, format, &path, &mut numbers);
        let (raw, image, driver) = (raw.to_str().unwrap(), path.to_str().unwrap(), driver(format));
        if matches!(format, Format::Qcow2 | Format::Vmdk) {
            qemu_img(&["check", "-f", driver, image]);
        }
        // Identical up to the size, and zero beyond where a form counts in larger steps.
        qemu_img(&["compare", "-f", "raw", "-F", driver, raw, image]);
        if format == Format::VhdFixed {
            continue;
        }
        // Found without being told the form, as most users do.
        let info: serde_json::Value = serde_json::from_str(&qemu_img(&["info", "--output=json", image])).unwrap();
        assert_eq!(info["format"], driver, "{info}");
        let size = info["virtual-size"].as_u64().unwrap();
        let step = if matches!(format, Format::Vhd) { MIB } else { 64 << 10 };
        assert!(size >= disk.len() as u64 && size < disk.len() as u64 + step, "{format}: {size}");
    }
    // What was made can be gone on with: written to, grown, converted.
    let qcow2 = folder.path().join("qcow2.qcow2");
    let qcow2 = qcow2.to_str().unwrap();
    let written = Command::new("qemu-io").args(["-f", "qcow2", "-c", "write -P 7 0 512", qcow2]).output();
    assert!(written.is_ok_and(|output| output.status.success()));
    qemu_img(&["check", "-f", "qcow2", qcow2]);
    let back = folder.path().join("back.raw");
    let (vhd, back) = (folder.path().join("vhd.vhd"), back.to_str().unwrap());
    qemu_img(&["convert", "-f", "vpc", "-O", "raw", vhd.to_str().unwrap(), back]);
    qemu_img(&["compare", "-f", "raw", "-F", "raw", raw.to_str().unwrap(), back]);
}

#[test]
fn a_file_system_is_identical_in_every_form() {
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("ext4.img");
    image::build(&raw, 256 * MIB, 64 * MIB, &image::usual_sources()).unwrap();
    assert_all_forms(&raw, 4096);
    let qcow2 = folder.path().join("ext4.qcow2");
    let (disk, mut numbers) = (std::fs::read(&raw).unwrap(), Numbers::new(3));
    write(&disk, &zeroes(&disk, 65536), Format::Qcow2, &qcow2, &mut numbers);
    let back = folder.path().join("back.img");
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw", qcow2.to_str().unwrap(), back.to_str().unwrap()]);
    let check = Command::new("/sbin/e2fsck").arg("-fn").arg(&back).output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
}

#[test]
fn sparse_disks_of_odd_sizes_are_identical_in_every_form() {
    let folder = tempfile::tempdir().unwrap();
    for (seed, size_bytes) in [(1, 12 * MIB), (2, 5 * MIB + 512), (3, 77 * MIB + 4096), (4, 512), (5, 2 * MIB - 512)] {
        let mut numbers = Numbers::new(seed);
        let mut disk = vec![0; size_bytes as usize];
        for _ in 0..12 {
            let at = numbers.below(size_bytes) as usize;
            let end = (at + numbers.below(300_000) as usize + 1).min(disk.len());
            disk[at..end].fill(numbers.below(255) as u8 + 1);
        }
        let raw = folder.path().join(format!("{seed}.img"));
        std::fs::write(&raw, &disk).unwrap();
        // Not on any border that a form knows.
        assert_all_forms(&raw, if seed % 2 == 0 { 512 } else { 1000 });
    }
}

#[test]
fn a_disk_without_content_is_an_image_too() {
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("empty.img");
    std::fs::File::create(&raw).unwrap().set_len(64 * MIB).unwrap();
    assert_all_forms(&raw, 4096);
}

#[test]
fn the_largest_disks_are_opened_by_qemu() {
    let folder = tempfile::tempdir().unwrap();
    for (format, gib) in [(Format::Qcow2, 64 << 10), (Format::Vhd, 2040), (Format::Vmdk, 2040)] {
        let size_bytes: u64 = gib << 30;
        let path = folder.path().join("large");
        // One byte at the very end.
        let layout = Layout::new(format, size_bytes, &[(0, size_bytes - 4096)], "large").unwrap();
        let target = Target::create(&path, &layout).unwrap();
        target.write(size_bytes - 4096, &[9; 4096]).unwrap();
        target.finish().unwrap();
        let path = path.to_str().unwrap();
        let last = format!("read -P 9 {} 4096", size_bytes - 4096);
        let found = Command::new("qemu-io").args(["-r", "-f", driver(format), "-c", &last, path]).output().unwrap();
        let said = String::from_utf8_lossy(&found.stdout);
        let said = format!("{said}{}", String::from_utf8_lossy(&found.stderr));
        assert!(found.status.success() && !said.contains("failed"), "{format}: {said}");
    }
}
