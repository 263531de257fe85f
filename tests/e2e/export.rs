//! Instant recovery as real processes: a point is served from the vault, written over, killed, gone on with, copied.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::Value;
use tidegate::cli::quickstart::child::wait_until;
use tidegate::cli::quickstart::load::{Load, Pattern};
use tidegate::cli::quickstart::target::NbdTarget;
use tidegate::nbd::Listen;

use crate::alone::copy_tree;
use crate::common::{
    PATIENCE, Scene, Setting, assert_file_system, assert_same, ext4, output, program, succeed, tidegate, turn,
};
use crate::damage::batches;

const DISK_BYTES: u64 = 256 << 20;

/// An installation that has stopped: two points of a file system in its vault.
fn two_points() -> Scene {
    let mut scene = Scene::new(Setting::default(), &["disk1"], ext4(DISK_BYTES));
    let load = scene.load("disk1", 61, 40);
    scene.wait_copied("disk1");
    scene.write_more(&load, 24 << 20);
    scene.keep("disk1", "one", Some(&load));
    scene.write_more(&load, 24 << 20);
    drop(load);
    scene.keep("disk1", "two", None);
    scene.wait_vaulted();
    scene.stop();
    scene
}

/// A running `tidegate export --json`. Killed when dropped.
pub struct Running {
    child: Child,
    lines: BufReader<ChildStdout>,
    log: PathBuf,
    pub ready: Value,
}

impl Running {
    /// Starts it with these arguments behind vault and identity, and waits until it serves.
    pub fn start(scene: &Scene, vault: &str, arguments: &[&str]) -> Self {
        let identity = scene.site.identity().display().to_string();
        let log = scene.site.path("logs/export.log");
        let told = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        let mut child = Command::new(program())
            .args(["export", "--vault", vault, "--identity", &identity, "--json"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(told)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let mut this = Self { child, lines, log, ready: Value::Null };
        this.ready = this.event("ready");
        this
    }

    /// The next line, which must be of this event.
    pub fn event(&mut self, event: &str) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        let told: Value = serde_json::from_str(&line).unwrap_or_default();
        assert_eq!(told["event"], event, "{line:?}\n{}", self.log());
        told
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; what it said at the end.
    pub fn terminate(mut self, code: i32) -> Value {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let end = self.event("end");
        let mut ended = None;
        assert!(wait_until(PATIENCE, || {
            ended = self.child.try_wait().unwrap();
            ended.is_some()
        }));
        assert_eq!(ended.unwrap().code(), Some(code), "{}", self.log());
        end
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Every object of a directory vault, with its size.
fn objects(vault: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let mut folders = vec![vault.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let meta = entry.metadata().unwrap();
            if meta.is_dir() { folders.push(entry.path()) } else { found.push((entry.path(), meta.len())) }
        }
    }
    found.sort();
    found
}

/// Runs commands of qemu-io, which reports a wrong pattern in words.
fn qemu_io(uri: &str, commands: &[&str]) {
    let mut arguments = vec!["-f", "raw"];
    commands.iter().for_each(|command| arguments.extend(["-c", command]));
    arguments.push(uri);
    let said = succeed("qemu-io", &arguments);
    assert!(!said.contains("failed") && !said.contains("rror"), "{commands:?}: {said}");
}

#[test]
fn a_point_is_served_from_the_vault_written_over_killed_and_gone_on_with() {
    let _turn = turn();
    let scene = two_points();
    let (vault, folder) = (scene.site.vault_url().to_owned(), scene.dir().join("vault"));
    let kept = &scene.kept[0];
    let (socket, overlay) = (scene.dir().join("export.sock"), scene.dir().join("overlay"));
    let (cache, metrics) = (scene.dir().join("cache"), scene.dir().join("export.prom"));
    std::fs::create_dir(&cache).unwrap();
    let before = objects(&folder);
    let listen = format!("unix:{}", socket.display());
    let arguments = ["--disk", "disk1", "--point", &kept.made.id, "--listen", &listen];

    // Read-only, with little memory and a cache on disk.
    let (cache_text, metrics_text, overlay_text) = (text(&cache), text(&metrics), text(&overlay));
    let small = ["--cache", &cache_text, "--memory", "16 MiB", "--metrics-file", &metrics_text];
    let running = Running::start(&scene, &vault, &[&arguments[..], &small].concat());
    println!("ready after {} requests, {} s", running.ready["vault_requests"], running.ready["seconds"]);
    assert_eq!(running.ready["writable"], false);
    let uri = running.ready["uri"].as_str().unwrap().to_owned();
    let copy = text(&kept.copy);
    succeed("qemu-img", &["compare", "-f", "raw", "-F", "raw", &copy, &uri]);
    let write = output("qemu-io", &["-f", "raw", "-c", "write -P 1 0 4k", &uri]);
    assert!(!write.status.success(), "it is read-only");
    let end = running.terminate(0);
    assert_eq!(end["failed_reads"], 0);
    assert!(end["guest_read_bytes"].as_u64().unwrap() >= 200 << 20, "{end}");
    assert!(!socket.exists() && std::fs::read_dir(&cache).unwrap().next().is_none(), "nothing is left");
    let told = std::fs::read_to_string(&metrics).unwrap();
    assert!(told.contains("tidegate_export_failed_reads{run=\"export\",disk=\"disk1\"} 0\n"), "{told}");

    // With an overlay: written, flushed, killed; the same command goes on.
    let writable = [&arguments[..], &["--overlay", &overlay_text]].concat();
    let running = Running::start(&scene, &vault, &writable);
    let image = scene.dir().join("nbdcopied.img");
    succeed("nbdcopy", &[&uri, &text(&image)]);
    assert_same(&kept.copy, &image, "what nbdcopy read");
    assert_file_system(&image);
    let write = ["write -P 0x5a 5M 3M", "write -P 0x33 20000001 70001", "write -z 40M 2M", "write -z 60M 1M", "flush"];
    qemu_io(&uri, &write);
    running.kill();
    assert!(socket.exists(), "a killed server leaves its socket");
    let running = Running::start(&scene, &vault, &writable);
    assert!(running.ready["overlay_bytes"].as_u64().unwrap() >= 5 << 20, "{}", running.ready);
    let read = ["read -P 0x5a 5M 3M", "read -P 0x33 20000001 70001", "read -P 0 40M 2M", "read -P 0 60M 1M"];
    qemu_io(&uri, &read);
    let shadow = scene.dir().join("shadow.img");
    succeed("nbdcopy", &[&uri, &text(&shadow)]);
    let expected = scene.dir().join("expected.img");
    succeed("cp", &["--sparse=always", &copy, &text(&expected)]);
    qemu_io(&text(&expected), &write);
    assert_same(&expected, &shadow, "the point with the guest's writes");
    running.terminate(0);
    let other = [&["--disk", "disk1", "--point", &scene.kept[1].made.id, "--listen", &listen][..], &writable[6..]];
    let from = ["export", "--vault", &vault, "--identity", &text(&scene.site.identity())];
    let (code, _, said) = tidegate(&[&from[..], &other.concat()].concat());
    assert!(code == 1 && said.contains("lies over point"), "{code}: {said}");
    assert_eq!(objects(&folder), before, "the vault is as it was");
}

#[test]
fn a_copy_is_made_while_a_guest_writes_is_killed_and_takes_over_in_the_end() {
    let _turn = turn();
    let scene = two_points();
    let kept = &scene.kept[1];
    let (socket, overlay) = (scene.dir().join("export.sock"), scene.dir().join("overlay"));
    let target = scene.dir().join("recovered.img");
    let listen = format!("unix:{}", socket.display());
    let (overlay_text, target_text) = (text(&overlay), text(&target));
    let arguments = [
        "--disk",
        "disk1",
        "--point",
        &kept.made.id,
        "--listen",
        &listen,
        "--overlay",
        &overlay_text,
        "--hydrate",
        &target_text,
    ];
    let vault = scene.site.vault_url().to_owned();
    let running = Running::start(&scene, &vault, &arguments);
    let uri = running.ready["uri"].as_str().unwrap().to_owned();
    qemu_io(&uri, &["write -P 0x11 1M 1M", "flush"]);
    running.kill();
    let mut running = Running::start(&scene, &vault, &arguments);
    qemu_io(&uri, &["read -P 0x11 1M 1M", "write -P 0x22 30M 1M"]);
    // A guest at work in a part of its own, before, while and after the copy takes over.
    let part = 128 << 20..160 << 20;
    let at = Listen::Unix(socket);
    let open = Box::new(move || NbdTarget::open(&at, "disk1"));
    let load = Load::start(Pattern::new(5, std::iter::once(part).collect()), open, 8 << 20).unwrap();
    assert_eq!(running.event("whole")["target"], target_text.as_str());
    let done = load.done().written_bytes;
    assert!(wait_until(PATIENCE, || load.done().written_bytes > done + (4 << 20)));
    assert!(load.pause(PATIENCE));
    assert!(!overlay.exists(), "nothing is in it any more");
    qemu_io(&uri, &["write -P 0x44 40M 1M", "flush"]);
    let seen = scene.dir().join("seen.img");
    succeed("nbdcopy", &[&uri, &text(&seen)]);
    drop(load);
    let end = running.terminate(0);
    assert_eq!((&end["whole"], &end["failed_reads"]), (&Value::Bool(true), &Value::from(0)));
    let expected = scene.dir().join("expected.img");
    succeed("cp", &["--sparse=always", &text(&kept.copy), &text(&expected)]);
    qemu_io(&text(&expected), &["write -P 0x11 1M 1M", "write -P 0x22 30M 1M", "write -P 0x44 40M 1M", "flush"]);
    // The load's part as it was seen while the load paused: it wrote nothing after.
    succeed(
        "dd",
        &[
            &format!("if={}", seen.display()),
            &format!("of={}", expected.display()),
            "bs=1M",
            "skip=128",
            "seek=128",
            "count=32",
            "conv=notrunc",
            "status=none",
        ],
    );
    assert_same(&expected, &seen, "what the guest saw");
    assert_same(&expected, &target, "the copy");
    let left = [".partial", ".tidegate-resume"].map(|end| PathBuf::from(format!("{target_text}{end}")).exists());
    assert_eq!(left, [false, false]);
    let from = ["export", "--vault", &vault, "--identity", &text(&scene.site.identity())];
    let (code, _, said) = tidegate(&[&from[..], &arguments].concat());
    assert!(code == 1 && said.contains("start the guest from it"), "{code}: {said}");
    assert!(!overlay.exists(), "what is refused leaves nothing");
}

#[test]
fn what_cannot_be_read_is_an_error_for_the_guest_and_the_rest_is_served() {
    let _turn = turn();
    let scene = two_points();
    let place = scene.dir().join("damaged");
    copy_tree(&scene.dir().join("vault"), &place);
    let mut all = batches(&place);
    all.sort_by_key(|path| std::fs::metadata(path).unwrap().len());
    let victim = all.last().unwrap();
    let mut bytes = std::fs::read(victim).unwrap();
    // In every message of it; the index stands behind them.
    let data_end = bytes.len() * 3 / 4;
    bytes[1000..data_end].iter_mut().step_by(100_000).for_each(|byte| *byte ^= 0x40);
    std::fs::write(victim, bytes).unwrap();
    let name = text(victim.strip_prefix(&place).unwrap());
    let listen = format!("unix:{}", scene.dir().join("export.sock").display());
    let vault = format!("file://{}", place.display());
    let target = scene.dir().join("recovered.img");
    let arguments = ["--disk", "disk1", "--point", &scene.kept[1].made.id, "--listen", &listen];
    let mut running = Running::start(&scene, &vault, &[&arguments[..], &["--hydrate", &text(&target)]].concat());
    let uri = running.ready["uri"].as_str().unwrap().to_owned();
    let told = running.event("copy-failed");
    assert!(told["damage"].to_string().contains(&name), "{name}: {told}");
    let compared = output("qemu-img", &["compare", "-f", "raw", "-F", "raw", &text(&scene.kept[1].copy), &uri]);
    assert!(!compared.status.success(), "a damaged part is not made up");
    // Whatever can be read is right.
    let (mut failed, mut right) = (0, 0);
    let image = std::fs::read(&scene.kept[1].copy).unwrap();
    let mut client = tidegate::nbd::Client::connect(&listen.parse().unwrap(), "disk1").unwrap();
    let mut piece = vec![0; 1 << 20];
    for at in (0..DISK_BYTES).step_by(1 << 20) {
        match client.read(at, &mut piece) {
            Ok(()) => {
                assert!(piece == image[at as usize..at as usize + (1 << 20)], "at {at}");
                right += 1;
            }
            Err(_) => failed += 1,
        }
    }
    assert!(failed > 0 && right > failed, "{failed} of {} MiB cannot be read", failed + right);
    assert!(running.log().contains(&name), "the log names {name}:\n{}", running.log());
    drop(client);
    let end = running.terminate(3);
    assert!(end["failed_reads"].as_u64().unwrap() > 0);
    assert!(!target.exists(), "what is not whole has not its name");
}

#[test]
fn beyond_this_machine_a_point_is_served_only_with_certificates() {
    let _turn = turn();
    let scene = two_points();
    let vault = scene.site.vault_url().to_owned();
    let identity = text(&scene.site.identity());
    let from = ["export", "--vault", &vault, "--identity", &identity, "--disk", "disk1", "--listen", "tcp:0.0.0.0:0"];
    let (code, _, said) = tidegate(&from);
    assert!(code == 2 && said.contains("--tls-cert"), "{code}: {said}");

    let pki = scene.dir().join("pki");
    let may = ["pki", "issue", "--dir", &text(&pki), "agent", "--id", "recovery", "--disk", "disk1"];
    let host = ["pki", "issue", "--dir", &text(&pki), "gateway", "--id", "export", "--host", "localhost"];
    for issue in [&may, &host] {
        let (code, _, said) = tidegate(issue);
        assert_eq!(code, 0, "{said}");
    }
    let client = scene.dir().join("client");
    std::fs::create_dir(&client).unwrap();
    for (name, made) in
        [("ca-cert.pem", "ca.crt"), ("client-cert.pem", "agent-recovery.crt"), ("client-key.pem", "agent-recovery.key")]
    {
        std::fs::copy(pki.join(made), client.join(name)).unwrap();
    }
    let [ca, cert, key] = ["ca.crt", "gateway-export.crt", "gateway-export.key"].map(|name| text(&pki.join(name)));
    let arguments = [
        "--disk",
        "disk1",
        "--point",
        "one",
        "--listen",
        "tcp:127.0.0.1:0",
        "--tls-ca",
        &ca,
        "--tls-cert",
        &cert,
        "--tls-key",
        &key,
    ];
    let running = Running::start(&scene, &vault, &arguments);
    let uri = running.ready["uri"].as_str().unwrap().replace("127.0.0.1", "localhost");
    assert!(uri.starts_with("nbds://"), "{uri}");
    let image = scene.dir().join("nbdcopied.img");
    succeed("nbdcopy", &[&format!("{uri}?tls-certificates={}", client.display()), &text(&image)]);
    assert_same(&scene.kept[0].copy, &image, "what came over TLS");
    let plain = output("timeout", &["30", "nbdinfo", &uri.replace("nbds://", "nbd://")]);
    assert!(!plain.status.success(), "nothing goes without TLS");
    running.terminate(0);
}
