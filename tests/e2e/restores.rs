//! The ways in which disks come back: in every form of image, onto an image that is there, several at one moment.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::common::{PATIENCE, Scene, Setting, assert_file_system, assert_same, empty, ext4, succeed, tidegate, turn};
use crate::mount;
use tidegate::cli::quickstart::child::wait_until;
use tidegate::cli::quickstart::copies;

const DISK_BYTES: u64 = 128 << 20;

/// `tidegate restore` of a scene's vault.
fn restore(scene: &Scene, arguments: &[&str]) -> (i32, String, String) {
    let identity = scene.site.identity();
    let from = ["restore", "--vault", scene.site.vault_url(), "--identity", identity.to_str().unwrap()];
    tidegate(&[&from[..], arguments].concat())
}

fn assert_restored(scene: &Scene, arguments: &[&str]) -> serde_json::Value {
    let (code, out, err) = restore(scene, &[arguments, &["--json"]].concat());
    assert_eq!(code, 0, "{arguments:?}: {out}{err}");
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
}

/// A scene at rest whose disk has two points that differ.
fn two_points() -> Scene {
    let mut scene = Scene::new(Setting::default(), &["disk1"], ext4(DISK_BYTES));
    let load = scene.load("disk1", 91, 24);
    scene.wait_copied("disk1");
    for name in ["first", "second"] {
        scene.write_more(&load, 12 << 20);
        scene.keep("disk1", name, Some(&load));
    }
    drop(load);
    scene.wait_vaulted();
    scene.stop();
    scene
}

#[test]
fn a_disk_comes_back_in_every_form_and_qemu_finds_it_identical() {
    let _turn = turn();
    let scene = two_points();
    let (kept, folder) = (&scene.kept[1], scene.dir().join("images"));
    std::fs::create_dir(&folder).unwrap();
    for (format, driver, ending) in
        [("qcow2", "qcow2", "qcow2"), ("vhd", "vpc", "vhd"), ("vhd-fixed", "vpc", "vhd"), ("vmdk", "vmdk", "vmdk")]
    {
        let at = ["--disk", "disk1", "--point", &kept.made.id, "--format", format, "--verify"];
        let told = assert_restored(&scene, &[&at[..], &["--to", folder.to_str().unwrap()]].concat());
        let image = folder.join(format!("disk1.{ending}"));
        assert_eq!(told["to"], image.to_str().unwrap());
        let image_text = image.to_str().unwrap();
        if driver != "vpc" {
            succeed("qemu-img", &["check", "-f", driver, image_text]);
        }
        succeed("qemu-img", &["compare", "-f", "raw", "-F", driver, kept.copy.to_str().unwrap(), image_text]);
        let raw = scene.dir().join("converted.img");
        succeed("qemu-img", &["convert", "-f", driver, "-O", "raw", image_text, raw.to_str().unwrap()]);
        assert_file_system(&raw);
        std::fs::remove_file(&image).unwrap();
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0, "{format}: nothing is left beside it");
    }
    let (code, _, err) = restore(&scene, &["--disk", "disk1", "--to", "/dev/null", "--format", "qcow2"]);
    assert_eq!(code, 1, "{err}");
}

#[test]
fn an_image_is_brought_to_another_point_through_a_kill_and_differs_in_nothing() {
    let _turn = turn();
    let scene = two_points();
    let image = scene.dir().join("guest.img");
    let path = image.to_str().unwrap();
    let [first, second] = [&scene.kept[0], &scene.kept[1]];
    assert_restored(&scene, &["--disk", "disk1", "--point", &first.made.id, "--to", path]);
    let onto = ["--disk", "disk1", "--point", &second.made.id, "--onto", path];
    let identity = scene.site.identity();
    let from = ["restore", "--vault", scene.site.vault_url(), "--identity", identity.to_str().unwrap()];
    let mut command = Command::new(crate::common::program());
    command.args(from).args(onto).stdout(Stdio::null()).stderr(Stdio::null());
    let mut run = command.spawn().unwrap();
    let partial = scene.dir().join("guest.img.partial");
    // Killed as soon as it has begun, or it was quicker and is through: both must come right.
    wait_until(PATIENCE, || partial.exists() || run.try_wait().unwrap().is_some());
    let _ = run.kill();
    run.wait().unwrap();
    assert_ne!(partial.exists(), image.exists(), "an image that is half-way has another name");
    let told = assert_restored(&scene, &onto);
    assert_same(&second.copy, &image, "the second point");
    assert!(told["same_bytes"].as_u64().unwrap() > 0, "{told}");
    // And back, into the same file: only what the load wrote differs.
    let told = assert_restored(&scene, &["--disk", "disk1", "--point", &first.made.id, "--onto", path, "--verify"]);
    assert_same(&first.copy, &image, "the first point");
    let written = DISK_BYTES - told["same_bytes"].as_u64().unwrap();
    assert!(written > 0 && written < DISK_BYTES / 2, "{told}");
    let (code, _, err) = restore(&scene, &["--disk", "disk1", "--onto", "/nowhere/disk.img"]);
    assert!(code == 1 && err.contains("/nowhere/disk.img") && err.contains("--to"), "{code}: {err}");
}

/// A loop device over a file. Detached when dropped.
struct Loop(String);

impl Loop {
    fn new(file: &Path) -> Self {
        Self(succeed("losetup", &["--find", "--show", file.to_str().unwrap()]).trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("/usr/sbin/losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn a_block_device_takes_a_restore_and_is_brought_to_another_point() {
    if !mount::possible() || !rustix::process::geteuid().is_root() {
        return;
    }
    let _turn = turn();
    let scene = two_points();
    let file = scene.dir().join("device");
    std::fs::File::create(&file).unwrap().set_len(DISK_BYTES).unwrap();
    let device = Loop::new(&file);
    let [first, second] = [&scene.kept[0], &scene.kept[1]];
    let at = |kept: &crate::common::Kept| ["--disk", "disk1", "--point", &kept.made.id].map(str::to_owned);
    let run = |kept, rest: &[&str]| {
        let at = at(kept);
        let arguments: Vec<&str> = at.iter().map(String::as_str).chain(rest.iter().copied()).collect();
        restore(&scene, &arguments)
    };
    let (code, _, err) = run(first, &["--to", &device.0, "--format", "qcow2"]);
    assert!(code == 1 && err.contains("--format"), "{code}: {err}");
    let (code, _, err) = run(first, &["--to", &device.0, "--verify"]);
    assert_eq!(code, 0, "{err}");
    assert_same(&first.copy, Path::new(&device.0), "the first point");
    let (code, _, err) = run(second, &["--to", &device.0]);
    assert!(code == 1 && err.contains("not empty"), "a device with content is no empty one: {code}: {err}");
    let (code, out, err) = run(second, &["--onto", &device.0, "--verify", "--json"]);
    assert_eq!(code, 0, "{err}");
    assert_same(&second.copy, Path::new(&device.0), "the second point");
    let told: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert!(told["same_bytes"].as_u64().unwrap() > DISK_BYTES / 2, "{told}");
    let note = PathBuf::from(format!("{}.tidegate-resume", device.0));
    assert!(!note.exists(), "a device that is done is an image");
    half_way_to_a_device(&scene, first, &device.0);
}

/// What says that a device is no image stands where a reboot leaves it, and the next run goes on by it.
fn half_way_to_a_device(scene: &Scene, kept: &crate::common::Kept, device: &str) {
    let state = scene.dir().join("notes");
    let note = state.join(format!("{}.tidegate-resume", device.trim_start_matches('/').replace('/', "+")));
    let onto = ["--disk", "disk1", "--point", &kept.made.id, "--onto", device, "--state", state.to_str().unwrap()];
    let identity = scene.site.identity();
    let from = ["restore", "--vault", scene.site.vault_url(), "--identity", identity.to_str().unwrap()];
    let mut command = Command::new(crate::common::program());
    command.args(from).args(onto).stdout(Stdio::null()).stderr(Stdio::null());
    let mut run = command.spawn().unwrap();
    wait_until(PATIENCE, || note.exists() || run.try_wait().unwrap().is_some());
    let _ = run.kill();
    let was_killed = !run.wait().unwrap().success();
    assert_eq!(note.exists(), was_killed, "{}", note.display());
    assert_restored(scene, &onto);
    assert!(!note.exists());
    assert_same(&kept.copy, Path::new(device), "the first point again");
}

/// A program that holds an image as QEMU holds the disks of a guest. Ended when dropped.
struct Guest(std::process::Child);

impl Guest {
    fn with(image: &Path, socket: &Path) -> Self {
        let arguments = ["--format=raw", "--persistent", "--socket", socket.to_str().unwrap(), image.to_str().unwrap()];
        let child = Command::new("qemu-nbd").args(arguments).spawn().unwrap();
        let guest = Self(child);
        assert!(wait_until(PATIENCE, || socket.exists()), "qemu-nbd serves");
        guest
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_image_that_a_guest_uses_is_not_written_and_no_guest_gets_one_that_is_being_written() {
    let _turn = turn();
    let scene = two_points();
    let (image, socket) = (scene.dir().join("guest.img"), scene.dir().join("guest.sock"));
    let path = image.to_str().unwrap();
    let [first, second] = [&scene.kept[0], &scene.kept[1]];
    let to_first = ["--disk", "disk1", "--point", &first.made.id];
    let to_second = ["--disk", "disk1", "--point", &second.made.id];
    assert_restored(&scene, &[&to_first[..], &["--to", path]].concat());
    let guest = Guest::with(&image, &socket);
    for how in [&["--onto", path][..], &["--onto", path, "--force"], &["--to", path, "--force"]] {
        let (code, _, err) = restore(&scene, &[&to_second[..], how].concat());
        assert!(
            code == 1 && err.contains(path) && err.contains("QEMU") && err.contains("--to"),
            "{how:?}: {code}: {err}"
        );
        assert_same(&first.copy, &image, "the image of a guest that runs");
    }
    drop(guest);
    assert_restored(&scene, &[&to_second[..], &["--onto", path]].concat());
    assert_same(&second.copy, &image, "the second point");

    // The other way round: what is being written opens for nobody.
    let target = tidegate::restore::target::Target::standing_onto(&image, DISK_BYTES, false).unwrap();
    let look = |image: &str| crate::common::output("qemu-io", &["-f", "raw", "-r", "-c", "read 0 512", image]);
    let refused = look(path);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("lock"), "{refused:?}");
    drop(target);
    let opened = look(path);
    assert!(opened.status.success(), "{opened:?}");
}

#[test]
fn disks_of_a_machine_come_back_to_one_moment_and_get_their_names_together() {
    let _turn = turn();
    let mut scene = Scene::new(Setting::default(), &["disk1", "disk2"], empty(32 << 20));
    let loads = [scene.load("disk1", 92, 8), scene.load("disk2", 93, 8)];
    for disk in ["disk1", "disk2"] {
        scene.wait_copied(disk);
    }
    loads.iter().for_each(|load| scene.write_more(load, 4 << 20));
    loads.iter().for_each(|load| assert!(load.pause(PATIENCE)));
    let config = scene.site.path("agent.toml");
    let point = ["point", "--config", config.to_str().unwrap(), "--disk", "disk1", "--disk", "disk2", "--json"];
    let made = scene.site.run(&point).unwrap();
    let dir = scene.dir().to_owned();
    let copy = |disk: &str| dir.join(format!("{disk}.copy"));
    for disk in ["disk1", "disk2"] {
        copies::copy(scene.image(disk), &copy(disk)).unwrap();
    }
    loads.iter().for_each(tidegate::cli::quickstart::load::Load::resume);
    loads.iter().for_each(|load| scene.write_more(load, 2 << 20));
    drop(loads);
    scene.keep("disk1", "later", None);
    scene.wait_vaulted();
    scene.stop();
    let made: serde_json::Value = serde_json::from_str(made.lines().next().unwrap()).unwrap();
    let group = made["group"].as_str().unwrap_or_else(|| panic!("{made}"));

    let folder = scene.dir().join("images");
    std::fs::create_dir(&folder).unwrap();
    let to = folder.join("{disk}.raw");
    let (folder_text, to) = (folder.to_str().unwrap(), to.to_str().unwrap());
    for arguments in [
        &["--machine", "agent1", "--group", "last", "--to", to][..],
        &["--group", group, "--to", to, "--force"],
        &["--disk", "disk2", "--disk", "disk1", "--group", group, "--to", to, "--force"],
    ] {
        let told = assert_restored(&scene, arguments);
        assert_eq!(told["disks"].as_array().map(Vec::len), Some(2), "{told}");
        assert!(told["warnings"].is_null(), "one moment: {told}");
        for disk in ["disk1", "disk2"] {
            assert_same(&copy(disk), &folder.join(format!("{disk}.raw")), disk);
        }
    }
    // Without a group each has its own last point, and that is told.
    let (code, _, err) = restore(&scene, &["--machine", "agent1", "--to", folder_text]);
    assert!(code == 0 && err.contains("no moment that they had in common"), "{code}: {err}");
    assert!(folder.join("disk1.img").exists() && folder.join("disk2.img").exists());

    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::create_dir(&folder).unwrap();
    let (code, _, err) = restore(&scene, &["--machine", "agent9", "--to", folder_text]);
    assert!(code == 1 && err.contains("agent1"), "{code}: {err}");
    let (code, _, err) = restore(&scene, &["--machine", "agent1", "--to", scene.dir().join("one").to_str().unwrap()]);
    assert!(code == 2 && err.contains("{disk}"), "{code}: {err}");
}
