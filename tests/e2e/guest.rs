//! A real Linux guest comes back: its disk is an agent's, it writes files and is wrecked from inside, and it boots again from the
//! vault, before anything is copied and from restored images.
//!
//! `tests/guest` makes the guest (a Debian with its kernel) and runs this. Its process 1 does one job, says on the serial console
//! what came of it, and switches the machine off: tests/guest.d/init.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use tidegate::cli::quickstart::child::wait_until;
use tidegate::flow::{Clock, SystemClock};
use tidegate::nbd::Listen;

use crate::common::{Scene, Setting, assert_file_system, output, succeed, tidegate, turn_alone};
use crate::export::Running;

/// An emulated processor on a busy machine takes minutes for what takes seconds.
const GUEST_PATIENCE: Duration = Duration::from_secs(1200);
/// With what the guest's own words begin.
const SAYS: &str = "tidegate-guest: ";

/// A file that `tests/guest` made.
fn made(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guest").join(name);
    assert!(path.exists(), "{} is missing: tests/guest makes it", path.display());
    path
}

/// Of its kernel, which comes from beside the disk, as with a host that boots its guests directly. A panic ends the machine.
fn command_line(job: &str) -> String {
    format!("root=/dev/vda rw console=ttyS0 quiet panic=-1 init=/usr/sbin/tidegate-guest tidegate.job={job}")
}

/// A running machine. Dropped, its power is cut.
struct Guest {
    machine: Child,
    keys: ChildStdin,
    console: PathBuf,
}

impl Guest {
    /// Switches a machine on whose only disk is `drive`, in the words of QEMU's option of that name.
    fn boot(scene: &Scene, name: &str, drive: &str, job: &str) -> Self {
        let console = scene.dir().join(format!("{name}.console"));
        let told = File::create(&console).unwrap();
        let append = command_line(job);
        let mut machine = Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg", "-machine", "pc", "-cpu", "max", "-m", "512"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"])
            .args(["-device", "virtio-rng-pci", "-drive", &format!("{drive},if=virtio")])
            .args(["-kernel".as_ref(), made("vmlinuz").as_os_str(), "-initrd".as_ref(), made("initrd").as_os_str()])
            .args(["-append", &append])
            .stdin(Stdio::piped())
            .stdout(told.try_clone().unwrap())
            .stderr(told)
            .spawn()
            .expect("QEMU is there: tests/guest installs it");
        let keys = machine.stdin.take().unwrap();
        Self { machine, keys, console }
    }

    fn console(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// What the guest has said that begins with `word`: the rest of each whole line.
    fn said(&self, word: &str) -> Vec<String> {
        let console = self.console();
        let whole = console.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        let said = whole.filter_map(|line| line.split_once(SAYS)?.1.trim().strip_prefix(word));
        said.map(|rest| rest.trim().to_owned()).collect()
    }

    /// Waits until it has said `word` more than `times`; the rest of the last such line.
    fn wait_said(&mut self, word: &str, times: usize) -> String {
        let mut said = Vec::new();
        let in_time = wait_until(GUEST_PATIENCE, || {
            let off = self.machine.try_wait().unwrap().is_some();
            said = self.said(word);
            said.len() > times || off || !self.said("FAILED").is_empty()
        });
        let console = self.console();
        let tail: Vec<&str> = console.lines().rev().take(40).collect();
        let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
        assert!(in_time && said.len() > times, "the guest did not say {word:?}:\n{tail}");
        said.pop().unwrap()
    }

    /// Waits until it has switched itself off.
    fn wait_off(mut self) {
        let mut ended = None;
        wait_until(GUEST_PATIENCE, || {
            ended = self.machine.try_wait().unwrap();
            ended.is_some()
        });
        assert!(ended.is_some_and(|status| status.success()), "{ended:?}:\n{}", self.console());
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.machine.kill();
        let _ = self.machine.wait();
    }
}

/// A disk that is served at a socket, for QEMU.
fn served(socket: &Path) -> String {
    let at = format!("file.server.type=unix,file.server.path={}", socket.display());
    format!("file.driver=nbd,{at},file.export=disk1,format=raw")
}

/// A guest whose disk is protected writes files; points while it works and when it is off. Then it is wrecked from inside, and
/// everything but the vault is gone. Also the checksum of all checksums.
fn wrecked() -> (Scene, String) {
    let copy = |_: &str, path: &Path| {
        succeed("cp", &["--sparse=always", made("disk.img").to_str().unwrap(), path.to_str().unwrap()]);
    };
    let mut scene = Scene::new(Setting::default(), &["disk1"], copy);
    let Listen::Unix(socket) = scene.site.nbd("disk1") else { panic!("the agent serves at a unix socket") };
    let protected = served(&socket);
    scene.wait_copied("disk1");
    let mut guest = Guest::boot(&scene, "write", &protected, "write");
    let sums = guest.wait_said("written", 0);
    assert_eq!(sums.len(), 64, "{sums}");
    // While it goes on writing.
    let noise = guest.said("noise").len();
    guest.wait_said("noise", noise + 2);
    let at_work = scene.site.point("disk1", "at-work").unwrap().id;
    let noise = guest.said("noise").len();
    guest.wait_said("noise", noise + 2);
    guest.keys.write_all(b"enough\n").unwrap();
    guest.wait_said("ready to go off", 0);
    guest.wait_off();
    scene.keep("disk1", "at-rest", None);

    let mut guest = Guest::boot(&scene, "wreck", &protected, "wreck");
    guest.wait_said("wrecked", 0);
    guest.wait_off();
    let looked = output("e2fsck", &["-fn", scene.image("disk1").to_str().unwrap()]);
    assert!(!looked.status.success(), "the disk is to be a wreck: {looked:?}");
    scene.wait_vaulted();
    scene.wait("the upload of the point", |scene| scene.site.listed("disk1", &at_work));
    scene.stop();
    std::fs::remove_file(scene.image("disk1")).unwrap();
    (scene, sums)
}

/// Boots from the point before any of it is copied; tells the seconds from the export's start until all files were found right.
fn assert_boots_from_the_vault(scene: &Scene, point: &str, sums: &str) {
    let (socket, overlay) = (scene.dir().join("export.sock"), scene.dir().join(format!("{point}.overlay")));
    let (listen, overlay) = (format!("unix:{}", socket.display()), overlay.display().to_string());
    let clock = SystemClock::new();
    let arguments = ["--disk", "disk1", "--point", point, "--listen", &listen, "--overlay", &overlay];
    let running = Running::start(scene, scene.site.vault_url(), &arguments);
    let mut guest = Guest::boot(scene, &format!("export-{point}"), &served(&socket), "check");
    assert_eq!(guest.wait_said("found", 0), sums, "{point}");
    let seconds = clock.monotonic().as_secs_f64();
    guest.wait_off();
    let end = running.terminate(0);
    assert_eq!(end["failed_reads"], 0, "{end}");
    let mib = |name: &str| end[name].as_u64().unwrap() >> 20;
    assert!(end["overlay_bytes"].as_u64().unwrap() > 0, "the guest wrote: {end}");
    println!(
        "booted from the vault at {point}, files right {seconds:.1} s after the export's start: the guest read {} MiB, for which \
         {} MiB came from the vault in {} requests",
        mib("guest_read_bytes"),
        mib("vault_read_bytes"),
        end["vault_requests"]
    );
}

/// A drill boots from the point, and finds the same.
fn assert_a_drill_boots(scene: &Scene, point: &str, sums: &str) {
    let path = |name: &str| scene.dir().join(name).display().to_string();
    let (identity, dir) = (scene.site.identity().display().to_string(), path("drills"));
    let (kernel, initrd) = (made("vmlinuz").display().to_string(), made("initrd").display().to_string());
    std::fs::create_dir(&dir).unwrap();
    let from = ["drill", "--vault", scene.site.vault_url(), "--identity", &identity, "--disk", "disk1", "--json"];
    let (until, append) = (format!("{SAYS}found {sums}"), command_line("check"));
    let patience = format!("{}s", GUEST_PATIENCE.as_secs());
    let machine =
        ["--point", point, "--dir", &dir, "--boot", "--kernel", &kernel, "--initrd", &initrd, "--append", &append];
    // No picture: the guest switches itself off as soon as it has said this.
    let wish = ["--until", &until, "--boot-timeout", &patience];
    let (code, out, err) = tidegate(&[&from[..], &machine, &wish].concat());
    let told: serde_json::Value = serde_json::from_str(&out).unwrap_or_default();
    assert_eq!((code, &told["warnings"]), (0, &serde_json::json!([])), "{out}{err}");
    println!(
        "a drill of {point}: RTO {:.1} s, of them the machine {:.1} s; it read {} MiB of its disk",
        told["rto_seconds"].as_f64().unwrap(),
        told["boot"]["seconds"].as_f64().unwrap(),
        told["boot"]["guest_read_bytes"].as_u64().unwrap() >> 20
    );
}

/// Boots from an image of this format that was restored.
fn assert_boots_from_an_image(scene: &Scene, point: &str, (format, driver): (&str, &str), sums: &str) {
    let image = scene.dir().join(format!("restored.{format}"));
    let (identity, to) = (scene.site.identity().display().to_string(), image.display().to_string());
    let clock = SystemClock::new();
    let from = ["restore", "--vault", scene.site.vault_url(), "--identity", &identity, "--disk", "disk1"];
    let (code, out, err) = tidegate(&[&from[..], &["--point", point, "--format", format, "--to", &to]].concat());
    assert_eq!(code, 0, "{out}{err}");
    let restored = clock.monotonic().as_secs_f64();
    let mut guest = Guest::boot(scene, format, &format!("file={to},format={driver}"), "check");
    assert_eq!(guest.wait_said("found", 0), sums, "{format}");
    guest.wait_off();
    println!("booted from a restored {format}: restored in {restored:.1} s");
    std::fs::remove_file(image).unwrap();
}

#[test]
#[ignore = "needs a Debian as its guest: tests/guest makes it and runs this"]
fn a_guest_that_was_wrecked_from_inside_boots_from_the_vault_alone_and_from_images_and_finds_its_files() {
    let _turn = turn_alone();
    let clock = SystemClock::new();
    let told = |what: &str| println!("{what} ({:.0} s)", clock.monotonic().as_secs_f64());
    let (scene, sums) = wrecked();
    told("the guest is a wreck, and only the vault is left");
    assert_boots_from_the_vault(&scene, "at-rest", &sums);
    // As after a power cut: the guest's own kernel replays the journal of its file system, into the overlay.
    assert_a_drill_boots(&scene, "at-work", &sums);
    for format in [("qcow2", "qcow2"), ("vhd", "vpc")] {
        assert_boots_from_an_image(&scene, "at-rest", format, &sums);
    }
    let restored = scene.assert_restores(&scene.kept[0]);
    assert_file_system(&restored);
    told("the restored disk equals the copy, and its file system is whole");
}
