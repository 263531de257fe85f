//! Promise 3 at full size: a 2 GiB file system under three kinds of writers, restored at five points.

use std::path::{Path, PathBuf};

use tidegate::cli::quickstart::load::Pattern;

use crate::common::azurite::Azurite;
use crate::common::{Scene, Setting, assert_file_system, succeed, turn};
use tidegate::cli::quickstart::image;

const DISK_BYTES: u64 = 2 << 30;
/// A file in the image whose blocks the raw writers have for themselves, so that the file system stays whole.
const ARENA_BYTES: u64 = 128 << 20;

/// Makes the image, with the arena as a file of its own, and says where the arena lies.
fn make_image(path: &Path) -> std::ops::Range<u64> {
    let sources = path.with_extension("sources");
    std::fs::create_dir(&sources).unwrap();
    // Files above 32 MiB are left out of images: the arena is many files side by side, its middle surely contiguous.
    for number in 0..ARENA_BYTES / (32 << 20) {
        let mut piece = vec![0; 32 << 20];
        tidegate::cli::quickstart::load::contents(number, &mut piece);
        std::fs::write(sources.join(format!("arena-{number}")), piece).unwrap();
    }
    let mut all = vec![sources.clone()];
    all.extend(image::usual_sources());
    image::build(path, DISK_BYTES, DISK_BYTES / 2, &all).unwrap();
    std::fs::remove_dir_all(&sources).unwrap();
    let extents: Vec<_> = (0..ARENA_BYTES / (32 << 20)).map(|number| file_blocks(path, number)).collect();
    assert!(extents.windows(2).all(|pair| pair[0].end == pair[1].start), "{extents:?}");
    extents[0].start * 4096..extents[extents.len() - 1].end * 4096
}

/// Where debugfs finds one piece of the arena: it has a single extent, `(0-8191):first-last`.
fn file_blocks(image: &Path, number: u64) -> std::ops::Range<u64> {
    let request =
        format!("stat /{}/arena-{number}", image.with_extension("sources").file_name().unwrap().to_str().unwrap());
    let said = succeed("debugfs", &["-R", &request, image.to_str().unwrap()]);
    let run = said.rsplit_once("):").unwrap_or_else(|| panic!("no extents in {said}")).1.trim();
    let (first, last) = run.split_once('-').unwrap();
    first.parse().unwrap()..last.parse::<u64>().unwrap() + 1
}

/// A file system at work, without mounting: debugfs changes a copy of the disk as the kernel would, and what it changed
/// is written through NBD. Returns how many blocks.
fn file_system_at_work(scene: &Scene, round: u32) -> usize {
    let shadow = scene.dir().join("shadow.img");
    succeed("cp", &["--sparse=always", scene.image("disk1").to_str().unwrap(), shadow.to_str().unwrap()]);
    let payload = scene.dir().join("payload");
    let mut bytes = vec![0; 3 << 20];
    tidegate::cli::quickstart::load::contents(u64::from(round), &mut bytes);
    std::fs::write(&payload, bytes).unwrap();
    let mut script = format!("mkdir /round-{round}\n");
    for file in 0..8 {
        script += &format!("write {} /round-{round}/file-{file}\n", payload.display());
    }
    if round > 0 {
        script += &format!("rm /round-{}/file-3\n", round - 1);
    }
    let commands = scene.dir().join("commands");
    std::fs::write(&commands, script).unwrap();
    succeed("debugfs", &["-w", "-f", commands.to_str().unwrap(), shadow.to_str().unwrap()]);
    assert_file_system(&shadow);
    let changed = write_differences(scene, &shadow);
    std::fs::remove_file(shadow).unwrap();
    changed
}

/// Writes every 4 KiB block in which the shadow differs from the disk, through NBD.
fn write_differences(scene: &Scene, shadow: &Path) -> usize {
    use std::io::Read as _;
    let mut client = tidegate::nbd::client::Client::connect(&scene.site.nbd("disk1"), "disk1").unwrap();
    let mut new = std::io::BufReader::with_capacity(1 << 20, std::fs::File::open(shadow).unwrap());
    let mut old = std::io::BufReader::with_capacity(1 << 20, std::fs::File::open(scene.image("disk1")).unwrap());
    let (mut a, mut b) = ([0; 4096], [0; 4096]);
    let mut changed = 0;
    for offset in (0..DISK_BYTES).step_by(4096) {
        new.read_exact(&mut a).unwrap();
        old.read_exact(&mut b).unwrap();
        if a != b {
            client.write(offset, &a, false).unwrap();
            changed += 1;
        }
    }
    client.flush().unwrap();
    changed
}

fn uri(scene: &Scene) -> String {
    scene.site.nbd("disk1").to_string().replacen("unix:", "nbd+unix:///disk1?socket=", 1)
}

/// qemu-io and nbdcopy write into the first half of the arena, the workload into the second.
fn raw_writers(scene: &Scene, arena: &std::ops::Range<u64>, round: u64) {
    let at = arena.start + (round << 20);
    succeed(
        "qemu-io",
        &[
            "-f",
            "raw",
            "-c",
            &format!("write -P {} {at} 768k", round + 1),
            "-c",
            &format!("write -z {} 64k", at + (800 << 10)),
            "-c",
            &format!("aio_write -P 3 {} 128k", at + (16 << 20)),
            "-c",
            "aio_flush",
            "-c",
            "flush",
            &uri(scene),
        ],
    );
}

fn five_points(vault: Option<String>) {
    let arena = std::cell::OnceCell::new();
    let setting = Setting { vault, ..Setting::default() };
    let mut scene = Scene::stopped(setting, &["disk1"], |_, path| arena.set(make_image(path)).unwrap());
    let arena = arena.into_inner().unwrap();
    let before: PathBuf = scene.dir().join("before.img");
    succeed("cp", &["--sparse=always", scene.image("disk1").to_str().unwrap(), before.to_str().unwrap()]);
    scene.gateway = Some(scene.site.start_gateway().unwrap());
    scene.agent = Some(scene.site.start_agent().unwrap());
    // All three writers, and nbdcopy over the whole disk, while the initial copy runs.
    let middle = arena.start + ARENA_BYTES / 2;
    let load = scene.load_in("disk1", Pattern::new(31, std::iter::once(middle..arena.end).collect()), 24);
    raw_writers(&scene, &arena, 0);
    assert!(load.pause(crate::common::PATIENCE));
    succeed("nbdcopy", &["--flush", before.to_str().unwrap(), &uri(&scene)]);
    load.resume();
    scene.wait_copied("disk1");
    for round in 0..5 {
        raw_writers(&scene, &arena, u64::from(round) + 1);
        let changed = file_system_at_work(&scene, round);
        assert!(changed > 1000, "the file system changed only {changed} blocks");
        scene.write_more(&load, 12 << 20);
        scene.keep("disk1", &format!("point-{round}"), Some(&load));
    }
    drop(load);
    scene.wait_vaulted();
    scene.stop();
    for kept in &scene.kept {
        assert_file_system(&scene.assert_restores(kept));
    }
}

#[test]
fn five_points_of_a_busy_two_gib_file_system_come_back_identical_from_a_directory() {
    let _turn = turn();
    five_points(None);
}

#[test]
fn five_points_of_a_busy_two_gib_file_system_come_back_identical_from_azurite() {
    let _turn = turn();
    let azurite = Azurite::start();
    five_points(Some(azurite.vault_url("five")));
}
