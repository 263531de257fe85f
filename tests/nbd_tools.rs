//! The NBD server against the clients that others wrote: libnbd's nbdinfo and nbdcopy, qemu-img, qemu-io and fio.
//!
//! Each test serves a raw image through the library, on a unix socket in a directory of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::thread::JoinHandle;

use tidegate::flow::{Clock, DrainTrigger, SystemClock};
use tidegate::nbd::{Client, Export, FileExport, Listen, Server, ServerLimits, ServerTls};
use tidegate::types::{DiskId, Id128};
use tidegate::wire::TlsFiles;
use tidegate::wire::pki::{self, IssueOptions};

const MIB: u64 = 1 << 20;

/// The Debian package of each tool that is used here.
const PACKAGES: &[(&str, &str)] = &[
    ("nbdinfo", "libnbd-bin"),
    ("nbdcopy", "libnbd-bin"),
    ("qemu-img", "qemu-utils"),
    ("qemu-io", "qemu-utils"),
    ("fio", "fio"),
];

/// Runs a tool and returns what it printed. A tool that hangs is killed by `timeout`, and the test fails with its name.
fn tool(name: &str, args: &[&str]) -> String {
    let package = PACKAGES.iter().find(|(tool, _)| *tool == name).expect("a tool of the list").1;
    let found =
        std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|p| p.join(name).is_file()));
    assert!(
        found,
        "{name} is missing: install the Debian package {package} (apt-get install {package}) or use tests/run"
    );
    let Output { status, stdout, stderr } = Command::new("timeout").arg("120").arg(name).args(args).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout).into_owned(), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{name} {args:?} ended with {status}:\n{stdout}\n{stderr}");
    stdout
}

/// An image served until it is dropped.
struct Served {
    directory: tempfile::TempDir,
    trigger: DrainTrigger,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    fn start(size_bytes: u64, fill: impl FnOnce(&mut std::fs::File), read_only: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("disk.img");
        let mut file = std::fs::File::create(&image).unwrap();
        file.set_len(size_bytes).unwrap();
        fill(&mut file);
        let export: Arc<dyn Export> = Arc::new(FileExport::open("disk", &image, read_only).unwrap());
        let listen = Listen::Unix(directory.path().join("s"));
        let server = Server::bind(listen, vec![export], ServerLimits::default()).unwrap();
        let (trigger, drain) = DrainTrigger::new();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(server.run(drain)).unwrap();
        });
        Self { directory, trigger, thread: Some(thread) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn image(&self) -> Vec<u8> {
        std::fs::read(self.path("disk.img")).unwrap()
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///disk?socket={}", self.path("s").display())
    }

    fn client(&self) -> Client {
        Client::connect(&Listen::Unix(self.path("s")), "disk").unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.trigger.start();
        let joined = self.thread.take().unwrap().join();
        assert!(std::thread::panicking() || joined.is_ok());
    }
}

/// Data at the front, a hole, and data at an odd place behind it.
fn sparse(file: &mut std::fs::File) {
    file.write_all(&noise(3 * MIB as usize, 1)).unwrap();
    file.seek(SeekFrom::Start(20 * MIB + 12_345)).unwrap();
    file.write_all(&noise(MIB as usize, 2)).unwrap();
}

/// Bytes that do not repeat, the same in each run.
fn noise(count: usize, seed: u64) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    let mut bytes = vec![0; count];
    hasher.finalize_xof().read_exact(&mut bytes).unwrap();
    bytes
}

fn write_file(path: &Path, bytes: &[u8]) -> String {
    std::fs::write(path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn nbdinfo_sees_size_flags_and_block_sizes() {
    let served = Served::start(32 * MIB, sparse, false);
    let text = tool("nbdinfo", &["--json", &served.uri()]);
    let info: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(info["protocol"], "newstyle-fixed");
    assert_eq!(info["structured"], true);
    let export = &info["exports"][0];
    assert_eq!(export["export-size"], 32 * MIB);
    assert_eq!(export["contexts"], serde_json::json!(["base:allocation"]));
    for able in ["can_df", "can_fast_zero", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"] {
        assert_eq!(export[able], true, "{able}");
    }
    assert_eq!(export["is_read_only"], false);
    assert_eq!(export["block_size_preferred"], 4096);
    assert_eq!(export["block_size_maximum"], 32 * MIB);
    let listed = tool("nbdinfo", &["--list", "--json", &format!("nbd+unix:///?socket={}", served.path("s").display())]);
    assert!(listed.contains("\"export-name\": \"disk\""), "{listed}");
    let read_only = Served::start(MIB, |_| {}, true);
    tool("nbdinfo", &["--is", "read-only", &read_only.uri()]);
}

#[test]
fn nbdinfo_and_qemu_img_map_the_holes_where_the_file_has_them() {
    let served = Served::start(32 * MIB, sparse, false);
    let ours: Vec<_> = served.client().block_status(0, 32 * MIB).unwrap();
    assert!(ours.len() >= 4 && ours.iter().any(|extent| extent.hole), "{ours:?}");
    let map: Vec<serde_json::Value> =
        serde_json::from_str(&tool("nbdinfo", &["--map", "--json", &served.uri()])).unwrap();
    let theirs: Vec<_> = map.iter().map(|run| (run["length"].as_u64().unwrap(), run["type"] == 3)).collect();
    assert_eq!(theirs, ours.iter().map(|extent| (extent.length, extent.hole && extent.zero)).collect::<Vec<_>>());
    let args = ["map", "--output=json", "--image-opts"];
    let options = format!("driver=nbd,server.type=unix,server.path={},export=disk", served.path("s").display());
    let map: Vec<serde_json::Value> =
        serde_json::from_str(&tool("qemu-img", &[&args[..], &[&options]].concat())).unwrap();
    let data_bytes: u64 = map.iter().filter(|run| run["data"] == true).map(|run| run["length"].as_u64().unwrap()).sum();
    assert_eq!(data_bytes, ours.iter().filter(|extent| !extent.hole).map(|extent| extent.length).sum::<u64>());
}

#[test]
fn nbdcopy_brings_an_image_in_and_out_over_many_connections_unchanged() {
    let served = Served::start(48 * MIB, |_| {}, false);
    let mut bytes = noise(48 * MIB as usize, 3);
    bytes[7 * MIB as usize..][..11 * MIB as usize + 99].fill(0);
    let source = write_file(&served.path("in.img"), &bytes);
    tool("nbdcopy", &["--connections=4", "--requests=16", "--flush", &source, &served.uri()]);
    assert!(served.image() == bytes, "what nbdcopy wrote is not what the image holds");
    let target = served.path("out.img");
    tool("nbdcopy", &["--connections=4", "--requests=32", &served.uri(), target.to_str().unwrap()]);
    assert!(std::fs::read(target).unwrap() == bytes, "what nbdcopy read is not what the image holds");
}

#[test]
fn qemu_img_converts_in_and_out_and_finds_both_sides_identical() {
    let served = Served::start(32 * MIB, sparse, false);
    let before = served.image();
    let qcow = served.path("out.qcow2").to_str().unwrap().to_owned();
    tool("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &served.uri(), &qcow]);
    tool("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &served.uri(), &qcow]);
    let other = Served::start(32 * MIB, |file| file.write_all(&noise(32 * MIB as usize, 9)).unwrap(), false);
    tool("qemu-img", &["convert", "-n", "-f", "qcow2", "-O", "raw", &qcow, &other.uri()]);
    assert!(other.image() == before);
}

#[test]
fn qemu_io_writes_zeroes_discards_and_reads_back_patterns() {
    let served = Served::start(16 * MIB, |_| {}, false);
    let commands = [
        "write -P 0x5a 4k 1M",
        "write -f -P 0x33 1000 3000",
        "aio_write -P 0x77 8M 2M",
        "aio_write -P 0x78 10M 2M",
        "aio_flush",
        "write -z 64k 64k",
        "write -z -u 9M 512k",
        "discard 12M 1M",
        "flush",
        "read -P 0x5a 4k 60k",
        "read -P 0 64k 64k",
        "read -P 0x5a 128k 900k",
        "read -P 0x33 1000 3000",
        "read -P 0x77 8M 1M",
        "read -P 0 9M 512k",
        "read -P 0x78 10M 2M",
    ];
    let uri = served.uri();
    let mut args = vec!["-f", "raw", "-t", "none"];
    commands.iter().for_each(|command| args.extend(["-c", command]));
    args.push(&uri);
    let text = tool("qemu-io", &args);
    // It reports a wrong pattern in words, not by its exit code.
    assert!(!text.contains("failed") && !text.contains("rror"), "{text}");
    assert!(text.matches(" bytes at offset ").count() >= commands.len() - 2, "{text}");
    let mut expected = vec![0; 16 * MIB as usize];
    expected[4096..][..MIB as usize].fill(0x5a);
    expected[1000..4000].fill(0x33);
    expected[8 * MIB as usize..10 * MIB as usize].fill(0x77);
    expected[10 * MIB as usize..12 * MIB as usize].fill(0x78);
    expected[64 << 10..128 << 10].fill(0);
    expected[9 * MIB as usize..][..512 << 10].fill(0);
    assert!(served.image() == expected);
}

#[test]
fn fio_verifies_random_writes_of_mixed_sizes_at_depth() {
    let served = Served::start(64 * MIB, |_| {}, false);
    let uri = format!("--uri={}", served.uri());
    let state = format!("--aux-path={}", served.directory.path().display());
    let text = tool(
        "fio",
        &[
            "--name=verify",
            "--ioengine=nbd",
            &uri,
            &state,
            "--rw=randwrite",
            "--bsrange=512-128k",
            "--bs_unaligned=0",
            "--iodepth=32",
            "--size=64M",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--do_verify=1",
            "--fsync=64",
            "--randseed=7",
            "--output-format=json",
        ],
    );
    let report: serde_json::Value = serde_json::from_str(&text[text.find('{').unwrap()..]).unwrap();
    let job = &report["jobs"][0];
    assert_eq!(job["error"], 0);
    assert!(job["write"]["io_bytes"].as_u64().unwrap() >= 64 * MIB);
    assert!(job["read"]["io_bytes"].as_u64().unwrap() >= 32 * MIB, "fio has verified what it wrote");
}

/// An image served over TLS, with certificates of a private authority, and a folder of them as libnbd and QEMU want it.
struct Encrypted {
    directory: tempfile::TempDir,
    listen: Listen,
    trigger: DrainTrigger,
    thread: Option<JoinHandle<()>>,
}

impl Encrypted {
    fn start(image: &[u8]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let pki = directory.path().join("pki");
        std::fs::create_dir(&pki).unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let options = IssueOptions { now: clock.wall(), days: 2, force: false, keep_key: false };
        pki::init(&pki, Id128([7; 16]), options).unwrap();
        let own = pki::issue_gateway(&pki, "recovery", &["localhost".into(), "127.0.0.1".into()], options).unwrap();
        std::fs::write(directory.path().join("disk.img"), image).unwrap();
        let export = FileExport::open("disk", &directory.path().join("disk.img"), false).unwrap();
        let files = TlsFiles { ca: own.ca, cert: own.cert, key: own.key };
        let listen = Listen::Tcp("127.0.0.1:0".parse().unwrap());
        let server = Server::bind(listen, vec![Arc::new(export)], ServerLimits::default()).unwrap();
        let server = server.with_tls(ServerTls::load(&files, &clock).unwrap());
        let (listen, (trigger, drain)) = (server.listen().clone(), DrainTrigger::new());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(server.run(drain)).unwrap();
        });
        let this = Self { directory, listen, trigger, thread: Some(thread) };
        for (client, disks) in [("may", ["disk"]), ("other", ["disk2"])] {
            let disks = disks.map(|disk| DiskId::new(disk).unwrap());
            let issued = pki::issue_agent(&pki, client, &disks, options).unwrap();
            let folder = this.directory.path().join(client);
            std::fs::create_dir(&folder).unwrap();
            for (from, name) in
                [(issued.ca, "ca-cert.pem"), (issued.cert, "client-cert.pem"), (issued.key, "client-key.pem")]
            {
                std::fs::copy(from, folder.join(name)).unwrap();
            }
        }
        this
    }

    fn port(&self) -> u16 {
        let Listen::Tcp(address) = &self.listen else { unreachable!() };
        address.port()
    }

    /// As the client of one folder reaches it.
    fn uri(&self, client: &str) -> String {
        let folder = self.directory.path().join(client);
        format!("nbds://localhost:{}/disk?tls-certificates={}", self.port(), folder.display())
    }
}

impl Drop for Encrypted {
    fn drop(&mut self) {
        self.trigger.start();
        let joined = self.thread.take().unwrap().join();
        assert!(std::thread::panicking() || joined.is_ok());
    }
}

#[test]
fn a_client_with_a_certificate_that_names_the_disk_reads_and_writes_over_tls_and_no_other() {
    let image = noise(24 * MIB as usize, 11);
    let served = Encrypted::start(&image);
    let copy = served.directory.path().join("copy.img");
    tool("nbdcopy", &[&served.uri("may"), copy.to_str().unwrap()]);
    assert!(std::fs::read(&copy).unwrap() == image);
    let new = noise(24 * MIB as usize, 12);
    let source = write_file(&served.directory.path().join("new.img"), &new);
    tool("nbdcopy", &["--flush", &source, &served.uri("may")]);
    assert!(std::fs::read(served.directory.path().join("disk.img")).unwrap() == new);
    let refused = |uri: &str| !Command::new("timeout").args(["60", "nbdinfo", uri]).output().unwrap().status.success();
    assert!(refused(&served.uri("other")), "its certificate names another disk");
    assert!(refused(&format!("nbd://localhost:{}/disk", served.port())), "nothing goes without TLS");
}

#[test]
fn qemu_reads_over_tls() {
    let image = noise(8 * MIB as usize, 13);
    let served = Encrypted::start(&image);
    let credentials = format!(
        "tls-creds-x509,id=tls,endpoint=client,sanity-check=off,dir={}",
        served.directory.path().join("may").display()
    );
    let options =
        format!("driver=nbd,host=localhost,port={},export=disk,tls-creds=tls,tls-hostname=localhost", served.port());
    let copy = served.directory.path().join("copy.img");
    let to = copy.to_str().unwrap();
    tool("qemu-img", &["convert", "--object", &credentials, "--image-opts", &options, "-O", "raw", to]);
    assert!(std::fs::read(&copy).unwrap() == image);
}

#[test]
fn what_is_sent_before_tls_begins_counts_for_nothing() {
    let served = Encrypted::start(&[5; 4096]);
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", served.port())).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
    // Flags, STARTTLS, and behind it in the same piece what somebody between would like to put in.
    let mut said = 3_u32.to_be_bytes().to_vec();
    for option in [5_u32, 7] {
        said.extend_from_slice(&0x4948_4156_454f_5054_u64.to_be_bytes());
        said.extend_from_slice(&option.to_be_bytes());
        said.extend_from_slice(&0_u32.to_be_bytes());
    }
    stream.write_all(&said).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer.len(), 18 + 20, "the greeting, the answer to STARTTLS, and the end");
}

/// A loop device over a file; detached on drop.
struct Loop(String);

impl Loop {
    /// `None` without the right to make one, as in most containers.
    fn attach(file: &Path) -> Option<Self> {
        let output = Command::new("losetup").args(["--find", "--show"]).arg(file).output().ok()?;
        output.status.success().then(|| Self(String::from_utf8(output.stdout).unwrap().trim().to_owned()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn a_block_device_is_claimed_zeroed_and_trimmed_at_any_alignment() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("backing.img");
    let mut model = noise(16 * MIB as usize, 5);
    std::fs::write(&file, &model).unwrap();
    let Some(device) = Loop::attach(&file) else {
        eprintln!("skipped: no right to make a loop device here");
        return;
    };
    let path = Path::new(&device.0);
    let export = FileExport::open("dev", path, false).unwrap();
    assert!(export.is_device());
    assert_eq!(export.size_bytes(), 16 * MIB);
    let second = FileExport::open("dev", path, false).unwrap_err();
    assert!(second.to_string().contains("in use"), "{second}");
    for (n, no_hole) in [(1_usize, false), (2, true)] {
        let flags = tidegate::nbd::ZeroFlags { no_hole, ..Default::default() };
        for (at, length) in [(MIB as usize + 1, 300_000), (3 * MIB as usize, 8192), (4 * MIB as usize + 100, 50)] {
            let at = at + (n - 1) * 6 * MIB as usize;
            export.zero(at as u64, length as u64, flags).unwrap();
            model[at..at + length].fill(0);
        }
    }
    if let Some(range) = export.trim(14 * MIB + 511, 100_000, false).unwrap() {
        assert!(range.start >= 14 * MIB + 511 && range.end <= 14 * MIB + 511 + 100_000);
        model[range.start as usize..range.end as usize].fill(0);
    }
    assert_eq!(export.trim(14 * MIB + 1, 100, false).unwrap(), None, "no whole block, nothing changed");
    export.write(5_000_001, b"odd", true).unwrap();
    model[5_000_001..][..3].copy_from_slice(b"odd");
    let mut back = vec![0; model.len()];
    export.read(0, &mut back).unwrap();
    assert!(back == model);
    let covered: u64 = export.block_status(0, 16 * MIB).unwrap().iter().map(|extent| extent.length).sum();
    assert_eq!(covered, 16 * MIB);
    drop(export);
    assert!(std::fs::read(&file).unwrap() == model, "flushed by FUA and by the last close");
}
