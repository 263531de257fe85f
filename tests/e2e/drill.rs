//! The drill as a real process: a sound disk passes, a broken one, a missed objective and a program that fails do not. And a
//! machine boots from the vault, by the very code that stands on its disk.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use tidegate::cli::quickstart::child::wait_until;

use crate::common::{PATIENCE, Scene, Setting, ext4, program, tidegate, turn};

fn script(path: &Path, text: &str) -> String {
    std::fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

#[test]
fn a_drill_restores_looks_runs_the_users_program_and_reports() {
    let _turn = turn();
    let mut scene = Scene::new(Setting::default(), &["disk1"], ext4(128 << 20));
    let load = scene.load("disk1", 71, 40);
    scene.wait_copied("disk1");
    scene.write_more(&load, 8 << 20);
    scene.keep("disk1", "sound", Some(&load));
    drop(load);
    // The table of inodes is overwritten: no checker takes that for a file system.
    let mut client = tidegate::nbd::Client::connect(&scene.site.nbd("disk1"), "disk1").unwrap();
    client.write(4096, &vec![0x5a; 4 << 20], true).unwrap();
    drop(client);
    scene.keep("disk1", "broken", None);
    scene.wait_vaulted();
    scene.stop();
    let dir = scene.dir().join("drills");
    std::fs::create_dir(&dir).unwrap();
    let path = |name: &str| scene.dir().join(name).display().to_string();
    let (dir_text, report, metrics) = (dir.display().to_string(), path("drill.md"), path("drill.prom"));
    let look = script(&scene.dir().join("look"), "test -s \"$1\" && echo looked at $#");
    let refuse = script(&scene.dir().join("refuse"), "echo no database here; exit 4");
    let (vault, identity) = (scene.site.vault_url().to_owned(), scene.site.identity().display().to_string());
    let from = ["drill", "--vault", &vault, "--identity", &identity, "--disk", "disk1", "--dir", &dir_text, "--json"];
    let drill = |more: &[&str]| {
        let (code, out, err) = tidegate(&[&from[..], more].concat());
        assert!(std::fs::read_dir(&dir).unwrap().next().is_none(), "nothing is left: {err}");
        (code, serde_json::from_str::<Value>(&out).unwrap_or_else(|_| panic!("{code}: {out}{err}")))
    };
    let files = ["--report", &report, "--metrics-file", &metrics];

    let (code, told) = drill(&[&["--point", "sound", "--check", &look][..], &files].concat());
    assert_eq!((code, &told["failures"]), (0, &Value::Array(Vec::new())), "{told}");
    assert_eq!(told["disks"][0]["volumes"][0]["verdict"]["result"], "whole", "{told}");
    assert_eq!(told["program"]["said"], "looked at 1", "{told}");
    let page = std::fs::read_to_string(&report).unwrap();
    assert!(page.contains("# Recovery drill: passed") && page.contains("| disk1 |"), "{page}");
    let value = |name: &str| {
        let page = std::fs::read_to_string(&metrics).unwrap();
        let start = format!("{name}{{run=\"drill\"}} ");
        let line = page.lines().find_map(|line| line.strip_prefix(&start)?.parse::<f64>().ok());
        line.unwrap_or_else(|| panic!("{name} in\n{page}"))
    };
    let succeeded = value("tidegate_drill_last_success_timestamp_seconds");
    assert!(succeeded > 1.7e9 && value("tidegate_drill_rto_seconds") > 0.0);

    let (code, told) = drill(&[&["--latest"][..], &files].concat());
    assert_eq!((code, told["failures"].as_array().map(Vec::len)), (1, Some(1)), "{told}");
    assert_eq!(told["disks"][0]["volumes"].as_array().map(Vec::len), Some(1), "{told}");
    assert_eq!(value("tidegate_drill_last_success_timestamp_seconds"), succeeded, "the last one that passed");
    assert_eq!(value("tidegate_drill_failures"), 1.0);
    let (code, told) = drill(&["--point", "sound", "--check", &refuse]);
    assert!(code == 1 && told["failures"][0].as_str().unwrap().contains("no database here"), "{told}");
    let (code, told) = drill(&["--point", "sound", "--rpo", "1ms", "--rto", "1ms"]);
    assert_eq!((code, told["failures"].as_array().map(Vec::len)), (1, Some(2)), "{told}");
}

/// What a machine's firmware loads and runs: it reads the text of the next sector, says it on the serial console and the screen,
/// and stops there.
const BOOT_CODE: [u8; 39] = [
    0x31, 0xc0, // xor ax, ax
    0x8e, 0xd8, // mov ds, ax
    0x8e, 0xc0, // mov es, ax
    0xbb, 0x00, 0x7e, // mov bx, 0x7e00
    0xb8, 0x01, 0x02, // mov ax, 0x0201: read one sector
    0xb9, 0x02, 0x00, // mov cx, 2: the second, of the disk in dl
    0xb6, 0x00, // mov dh, 0
    0xcd, 0x13, // int 0x13
    0xbe, 0x00, 0x7e, // mov si, 0x7e00
    0xac, // next: lodsb
    0x08, 0xc0, // or al, al
    0x74, 0x0b, // jz end
    0xb4, 0x0e, // mov ah, 0x0e: onto the screen
    0xcd, 0x10, // int 0x10
    0xba, 0xf8, 0x03, // mov dx, 0x3f8: onto the serial line
    0xee, // out dx, al
    0xeb, 0xf1, // jmp next
    0x90, // nop
    0xf4, // end: hlt
];
/// Goes on after the above: for ever, or off.
const STAY: &[u8] = &[0xeb, 0xfd]; // jmp end
const GO_OFF: &[u8] = &[
    0xba, 0x04, 0x06, // mov dx, 0x604: power management of q35
    0xb8, 0x00, 0x20, // mov ax, 0x2000: switch off
    0xef, // out dx, ax
    0xeb, 0xf7, // jmp to the begin of this
];

/// The first two sectors of a disk that boots, says `text`, and then does what `after` says.
fn boots(text: &str, after: &[u8]) -> Vec<u8> {
    let mut sectors = vec![0; 1024];
    // Where it goes off it must not halt before.
    let code = if after == STAY { &BOOT_CODE[..] } else { &BOOT_CODE[..BOOT_CODE.len() - 1] };
    sectors[..code.len()].copy_from_slice(code);
    sectors[code.len()..code.len() + after.len()].copy_from_slice(after);
    sectors[510..512].copy_from_slice(&[0x55, 0xaa]);
    sectors[512..512 + text.len()].copy_from_slice(text.as_bytes());
    sectors
}

/// A vault with two points of a disk that boots: `up` stays up, `off` switches its machine off.
fn two_that_boot() -> Scene {
    let mut scene = Scene::new(Setting::default(), &["disk1"], |_, path| {
        let file = std::fs::File::create(path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &boots("the first machine\r\n", STAY), 0).unwrap();
        file.set_len(16 << 20).unwrap();
    });
    scene.wait_copied("disk1");
    scene.keep("disk1", "up", None);
    let mut guest = tidegate::nbd::Client::connect(&scene.site.nbd("disk1"), "disk1").unwrap();
    guest.write(0, &boots("the second machine\r\n", GO_OFF), true).unwrap();
    drop(guest);
    scene.keep("disk1", "off", None);
    scene.wait_vaulted();
    scene.stop();
    scene
}

#[test]
fn a_machine_boots_from_the_vault_shows_its_screen_and_what_does_not_come_up_fails() {
    let _turn = turn();
    let scene = two_that_boot();
    let dir = scene.dir().join("drills");
    std::fs::create_dir(&dir).unwrap();
    let path = |name: &str| scene.dir().join(name).display().to_string();
    let (dir_text, screen, metrics, page) = (dir.display().to_string(), path("s.png"), path("d.prom"), path("d.md"));
    let (vault, identity) = (scene.site.vault_url().to_owned(), scene.site.identity().display().to_string());
    let from = ["drill", "--vault", &vault, "--identity", &identity, "--disk", "disk1", "--dir", &dir_text, "--json"];
    let call = |more: &[&str]| {
        let ended = tidegate(&[&from[..], &["--boot"], more].concat());
        assert!(std::fs::read_dir(&dir).unwrap().next().is_none(), "nothing is left: {}", ended.2);
        ended
    };
    let drill = |more: &[&str]| {
        let (code, out, err) = call(more);
        (code, serde_json::from_str::<Value>(&out).unwrap_or_else(|_| panic!("{code}: {out}{err}")))
    };

    let files = ["--screenshot", &screen, "--metrics-file", &metrics, "--report", &page];
    let (code, told) = drill(&[&["--point", "up", "--until", "first machine"][..], &files].concat());
    assert_eq!((code, &told["failures"]), (0, &Value::Array(Vec::new())), "{told}");
    assert!(told["boot"]["said"].as_str().unwrap().ends_with("the first machine"), "{told}");
    assert_eq!(
        (&told["boot"]["failed_reads"], &told["warnings"]),
        (&Value::from(0), &Value::Array(Vec::new())),
        "{told}"
    );
    let (rto, seconds) = (told["rto_seconds"].as_f64().unwrap(), told["boot"]["seconds"].as_f64().unwrap());
    assert!(rto >= seconds && seconds > 0.0, "{told}");
    println!("up {seconds:.1} s after it was switched on, {rto:.1} s after the drill began");
    assert!(std::fs::read(&screen).unwrap().starts_with(b"\x89PNG"), "a picture");
    assert!(std::fs::read_to_string(&metrics).unwrap().contains("tidegate_drill_failures{run=\"d\"} 0"));
    let page = std::fs::read_to_string(&page).unwrap();
    assert!(page.contains("Recovery drill: passed") && page.contains("the first machine"), "{page}");

    // Another text than is waited for, and then nothing more: the machine of the other point.
    let (code, told) = drill(&["--point", "off", "--until", "first machine", "--bus", "sata"]);
    let failure = told["failures"][0].as_str().unwrap_or_default();
    assert!(code == 1 && failure.contains("went off") && failure.contains("first machine"), "{told}");
    assert!(told["boot"]["said"].as_str().unwrap().ends_with("the second machine"), "{told}");
    let (code, told) = drill(&["--point", "up", "--until", "the third", "--boot-timeout", "100ms"]);
    assert!(code == 1 && told["failures"][0].as_str().unwrap().contains("did not say \"the third\""), "{told}");

    let (code, _, err) = call(&["--qemu", "/nowhere/qemu"]);
    assert!(code == 1 && err.contains("/nowhere/qemu") && err.contains("apt install"), "{code}: {err}");
    let (code, _, err) = call(&["--kernel", "/boot/k", "--append", "job=up", "--until", "job=up"]);
    assert!(code == 2 && err.contains("--append"), "{code}: {err}");
    let (code, _, err) = tidegate(&[&from[..], &["--until", "up"]].concat());
    assert!(code == 2 && err.contains("--boot"), "{code}: {err}");
}

#[test]
fn a_drill_that_is_asked_to_stop_takes_its_machine_with_it() {
    let _turn = turn();
    let scene = two_that_boot();
    let dir = scene.dir().join("drills");
    std::fs::create_dir(&dir).unwrap();
    let identity = scene.site.identity();
    let from =
        ["drill", "--vault", scene.site.vault_url(), "--identity", identity.to_str().unwrap(), "--disk", "disk1"];
    let mut drill = Command::new(program())
        .args(from)
        .args(["--boot", "--until", "never", "--dir", dir.to_str().unwrap()])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // QEMU has made its monitor: there is a machine.
    let monitor = || {
        let made = std::fs::read_dir(&dir).unwrap().flatten().find(|entry| entry.path().join("m.sock").exists());
        made.map(|folder| folder.path().join("m.sock"))
    };
    let mut at = None;
    assert!(wait_until(PATIENCE, || {
        at = monitor();
        at.is_some()
    }));
    let connected = || std::os::unix::net::UnixStream::connect(at.as_ref().unwrap());
    assert!(wait_until(PATIENCE, || connected().is_ok()), "there is a machine");
    rustix::process::kill_process(rustix::process::Pid::from_child(&drill), rustix::process::Signal::TERM).unwrap();
    let mut ended = None;
    assert!(wait_until(PATIENCE, || {
        ended = drill.try_wait().unwrap();
        ended.is_some()
    }));
    assert_eq!(ended.unwrap().code(), Some(1));
    assert!(connected().is_err() && std::fs::read_dir(&dir).unwrap().next().is_none(), "nothing of it is left");
}
