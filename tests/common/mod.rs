//! What the end-to-end tests share: an installation with running daemons, its disks under load, points with copies
//! taken at the same moment, and the proof that a restore equals the copy.

#![allow(dead_code, reason = "not every test uses every part")]

pub mod azurite;
pub mod browser;
pub mod proxy;

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tidegate::cli::quickstart::child::{Child, Family, wait_until};
use tidegate::cli::quickstart::copies;
use tidegate::cli::quickstart::image;
use tidegate::cli::quickstart::load::{Load, Pattern};
use tidegate::cli::quickstart::site::{self, MadePoint, Plan, Site, SiteError};
use tidegate::cli::quickstart::target::NbdTarget;
use tidegate::types::Digest;

/// Longest wait for what should take seconds: a busy machine must not fail a test.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// So many end-to-end tests run at a time, each with daemons and disks of its own: much of a test is waiting for clocks,
/// stores and processes that come back, so that two fill two cores, and more would only stretch each other.
const TURNS_MAX: usize = 2;

static TURNS: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

/// Places of end-to-end tests; given back when dropped.
pub struct Turn(usize);

/// Waits for a place.
pub fn turn() -> Turn {
    take_turns(1)
}

/// Waits for all places: for tests that hold one measurement against another.
pub fn turn_alone() -> Turn {
    take_turns(TURNS_MAX)
}

fn take_turns(places: usize) -> Turn {
    let taken = TURNS.0.lock().unwrap_or_else(PoisonError::into_inner);
    let taken = TURNS.1.wait_while(taken, |taken| *taken + places > TURNS_MAX);
    *taken.unwrap_or_else(PoisonError::into_inner) += places;
    Turn(places)
}

impl Drop for Turn {
    fn drop(&mut self) {
        *TURNS.0.lock().unwrap_or_else(PoisonError::into_inner) -= self.0;
        TURNS.1.notify_all();
    }
}

/// The program under test: the one built with the tests, or the one that `TIDEGATE_TEST_PROGRAM` names, such as a release
/// build or a copy that outlives the next build.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let named = std::env::var_os("TIDEGATE_TEST_PROGRAM");
        named.map_or_else(|| env!("CARGO_BIN_EXE_tidegate").into(), PathBuf::from)
    })
}

/// Runs any program; its output whatever its exit code.
pub fn output(program: impl AsRef<Path>, arguments: &[&str]) -> Output {
    let program = program.as_ref();
    let output = Command::new(program).args(arguments).env("PATH", search_path()).output();
    output.unwrap_or_else(|error| {
        panic!("{} cannot be run ({error}): tests/run installs what the tests need", program.display())
    })
}

/// e2fsck and its like stand in sbin, which a plain user's PATH leaves out.
fn search_path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

/// Runs a program that must succeed and returns its standard output.
pub fn succeed(program: impl AsRef<Path>, arguments: &[&str]) -> String {
    let name = program.as_ref().display().to_string();
    let output = output(program, arguments);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name} {arguments:?}: {}\n{out}\n{err}", output.status);
    out.into_owned()
}

/// Runs `tidegate` and returns exit code, standard output and standard error.
pub fn tidegate(arguments: &[&str]) -> (i32, String, String) {
    let output = output(program(), arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// Fails unless the file system in an image is whole; replaying a journal is all that may be left to do.
pub fn assert_file_system(image: &Path) {
    let check = output("e2fsck", &["-fn", image.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&check.stdout);
    assert!(check.status.success(), "e2fsck of {}: {}\n{said}", image.display(), check.status);
}

/// A point, and a copy of the disk taken while nothing was written.
pub struct Kept {
    pub disk: String,
    pub made: MadePoint,
    pub copy: PathBuf,
    pub sha256: Digest,
}

/// An installation with its daemons, in a directory that goes away with it.
pub struct Scene {
    pub gateway: Option<Child>,
    pub agent: Option<Child>,
    pub site: Site,
    pub kept: Vec<Kept>,
    images: Vec<(String, PathBuf)>,
    folder: tempfile::TempDir,
}

/// How a scene differs from the usual one.
#[derive(Default)]
pub struct Setting {
    pub vault: Option<String>,
    pub gateway: Vec<(&'static str, String)>,
    pub agent: Vec<(&'static str, String)>,
}

pub fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("tg").tempdir().unwrap()
}

impl Scene {
    /// Makes an installation for disks of these names, each an image that `make` makes, and starts it.
    pub fn new(setting: Setting, disks: &[&str], make: impl Fn(&str, &Path)) -> Self {
        let mut scene = Self::stopped(setting, disks, make);
        scene.gateway = Some(scene.site.start_gateway().unwrap());
        scene.agent = Some(scene.site.start_agent().unwrap());
        scene
    }

    /// The same without starting it.
    pub fn stopped(setting: Setting, disks: &[&str], make: impl Fn(&str, &Path)) -> Self {
        let folder = folder();
        let mut images = Vec::new();
        for disk in disks {
            let path = folder.path().join(format!("{disk}.img"));
            make(disk, &path);
            images.push(((*disk).to_owned(), path));
        }
        let plan = Plan {
            dir: folder.path().to_owned(),
            program: program().to_owned(),
            vault: setting.vault,
            disks: images.clone(),
            gateway: setting.gateway,
            agent: setting.agent,
        };
        let site = Site::create(plan, &Family::default()).unwrap();
        Self { gateway: None, agent: None, site, kept: Vec::new(), images, folder }
    }

    pub fn dir(&self) -> &Path {
        self.folder.path()
    }

    pub fn image(&self, disk: &str) -> &Path {
        &self.images.iter().find(|(name, _)| name == disk).unwrap().1
    }

    /// Fails with the end of the daemons' logs if one of them is gone.
    pub fn assert_alive(&mut self) {
        for child in self.gateway.iter_mut().chain(&mut self.agent) {
            if let Err(error) = child.check() {
                let log = std::fs::read_to_string(child.log()).unwrap_or_default();
                let tail: Vec<_> = log.lines().rev().take(30).collect();
                panic!("{error}\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
            }
        }
    }

    /// Waits until `reached`; fails with the logs if it takes too long or a daemon dies.
    pub fn wait(&mut self, what: &str, mut reached: impl FnMut(&Self) -> bool) {
        let in_time = wait_until(PATIENCE, || {
            self.assert_alive();
            reached(self)
        });
        if !in_time {
            let log =
                |name: &str| std::fs::read_to_string(self.site.path(&format!("logs/{name}.log"))).unwrap_or_default();
            let tail =
                |name: &str| log(name).lines().rev().take(15).map(|line| format!("{line}\n")).collect::<String>();
            panic!(
                "{what} did not happen; newest lines first:\ngateway:\n{}agent:\n{}",
                tail("gateway"),
                tail("agent")
            );
        }
    }

    /// Waits until the initial copy, or any later one, is over.
    pub fn wait_copied(&mut self, disk: &str) {
        self.wait("the copy of the disk", |scene| scene.site.copied(disk));
    }

    /// A load in the free space of a disk's file system, or all over a disk that has none.
    pub fn load(&self, disk: &str, seed: u64, mib_per_second: u64) -> Load {
        let image = File::open(self.image(disk)).unwrap();
        let size = image.metadata().unwrap().len();
        let free = image::free_ranges(&image, 1 << 20).unwrap_or_else(|_| std::iter::once(0..size).collect());
        self.load_in(disk, Pattern::new(seed, free), mib_per_second)
    }

    pub fn load_in(&self, disk: &str, pattern: Pattern, mib_per_second: u64) -> Load {
        let (listen, disk) = (self.site.nbd(disk), disk.to_owned());
        Load::start(pattern, Box::new(move || NbdTarget::open(&listen, &disk)), mib_per_second << 20).unwrap()
    }

    /// Waits until a load has written this much more.
    pub fn write_more(&mut self, load: &Load, bytes: u64) {
        let until = load.done().written_bytes + bytes;
        self.wait("the workload's progress", |_| load.done().written_bytes >= until);
    }

    /// One more agent, for an empty disk of its own: `<disk>.img`, served at `<disk>.sock`, configured by `<id>.toml`. Its
    /// certificate is there, in the folder `pki`.
    pub fn another_agent(&self, id: &str, disk: &str, pki: &str, top: &str, disk_bytes: u64) -> Child {
        let path = |name: &str| self.site.path(name).display().to_string();
        File::create(path(&format!("{disk}.img"))).unwrap().set_len(disk_bytes).unwrap();
        std::fs::create_dir(path(&format!("state-{id}"))).unwrap();
        let (config, socket) = (path(&format!("{id}.toml")), path(&format!("{disk}.sock")));
        let text = format!(
            "id = {id:?}\nstate_dir = \"state-{id}\"\n{top}\n\
             [tls]\nca = \"{pki}/ca.crt\"\ncert = \"{pki}/agent-{id}.crt\"\nkey = \"{pki}/agent-{id}.key\"\n\
             [[disk]]\nid = {disk:?}\npath = \"{disk}.img\"\nlisten = \"unix:{socket}\"\n"
        );
        std::fs::write(&config, text).unwrap();
        let log = self.site.path(&format!("logs/{id}.log"));
        let arguments = ["agent", "--config", &config];
        let mut agent = Child::start("agent", &Family::default(), &log, program(), &arguments).unwrap();
        agent.wait_for("ready", PATIENCE, || std::os::unix::net::UnixStream::connect(&socket).is_ok()).unwrap();
        agent
    }

    /// What one more gateway needs: its certificate for `host`, a journal of its own, and `<id>.toml`, which is the first
    /// one's configuration but for that. The file; nothing is started.
    pub fn another_gateway(&self, id: &str, host: &str, listen: &str, admin: SocketAddr) -> PathBuf {
        let pki = self.site.path("pki").display().to_string();
        succeed(program(), &["pki", "issue", "--dir", &pki, "gateway", "--id", id, "--host", host]);
        let config = std::fs::read_to_string(self.site.path("gateway.toml")).unwrap();
        let lines = config.lines().map(|line| match line.split('=').next().unwrap_or_default().trim() {
            "id" => format!("id = {id:?}"),
            "listen" => format!("listen = {listen:?}"),
            "admin_listen" => format!("admin_listen = \"{admin}\""),
            "dir" => format!("dir = \"journal-{id}\""),
            _ => line.replace("gateway-gw1", &format!("gateway-{id}")),
        });
        let file = self.site.path(&format!("{id}.toml"));
        std::fs::write(&file, lines.map(|line| line + "\n").collect::<String>()).unwrap();
        std::fs::create_dir_all(self.site.path(&format!("journal-{id}"))).unwrap();
        file
    }

    /// Makes a point while the load (if any) pauses, and copies the disk as it is then.
    pub fn keep(&mut self, disk: &str, name: &str, load: Option<&Load>) -> String {
        assert!(load.is_none_or(|load| load.pause(PATIENCE)), "the workload did not pause");
        let made = self.site.point(disk, name).unwrap();
        let copy = self.dir().join(format!("{disk}-{name}.copy"));
        let sha256 = copies::copy(self.image(disk), &copy).unwrap();
        if let Some(load) = load {
            load.resume();
        }
        let id = made.id.clone();
        self.kept.push(Kept { disk: disk.to_owned(), made, copy, sha256 });
        id
    }

    /// Waits until the vault offers every kept point.
    pub fn wait_vaulted(&mut self) {
        let mut left: Vec<_> = self.kept.iter().map(|kept| (kept.disk.clone(), kept.made.id.clone())).collect();
        // Looking may fail where the store is a bad one: what was seen once is not looked for again.
        self.wait("the upload of all points", |scene| {
            left.retain(|(disk, id)| !scene.site.listed(disk, id));
            left.is_empty()
        });
    }

    pub fn kill_gateway(&mut self) {
        self.gateway.take().unwrap().kill().unwrap();
        self.gateway = Some(self.site.start_gateway().unwrap());
    }

    pub fn kill_agent(&mut self) {
        self.agent.take().unwrap().kill().unwrap();
        self.agent = Some(self.site.start_agent().unwrap());
    }

    /// Stops both daemons in order.
    pub fn stop(&mut self) {
        for mut child in self.agent.take().into_iter().chain(self.gateway.take()) {
            let status = child.terminate(PATIENCE).unwrap();
            assert!(status.success(), "{} ended with {status}", child.log().display());
        }
    }

    /// Restores a kept point and compares every byte; the restored image.
    pub fn assert_restores(&self, kept: &Kept) -> PathBuf {
        let target = self.dir().join("restored.img");
        // The last one made room.
        let _ = std::fs::remove_file(&target);
        self.site.restore(&kept.disk, &kept.made.id, &target).unwrap();
        assert_same(&kept.copy, &target, &kept.made.id);
        assert_eq!(copies::sha256(&target).unwrap(), kept.sha256);
        target
    }

    /// Restores every kept point and compares.
    pub fn assert_all_restore(&self) {
        assert!(!self.kept.is_empty());
        for kept in &self.kept {
            self.assert_restores(kept);
        }
    }
}

impl Drop for Scene {
    /// With `TIDEGATE_TEST_KEEP` a failed test leaves its installation, logs and all, for whoever looks for the reason.
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("TIDEGATE_TEST_KEEP").is_some() {
            self.folder.disable_cleanup(true);
            eprintln!("kept: {}", self.folder.path().display());
        }
    }
}

pub fn assert_same(expected: &Path, found: &Path, what: &str) {
    if let Some(at) = copies::first_difference(expected, found).unwrap() {
        panic!("{what}: {} differs from {} at byte {at}", found.display(), expected.display());
    }
}

/// An ext4 image of real files of this machine, half full.
pub fn ext4(size_bytes: u64) -> impl Fn(&str, &Path) {
    move |_, path| {
        image::build(path, size_bytes, size_bytes / 2, &image::usual_sources()).unwrap();
    }
}

/// A disk without anything in it.
pub fn empty(size_bytes: u64) -> impl Fn(&str, &Path) {
    move |_, path| File::create(path).unwrap().set_len(size_bytes).unwrap()
}

/// The exit code of a command that must fail.
pub fn exit_code(outcome: Result<String, SiteError>) -> (i32, String) {
    match outcome.expect_err("this must fail") {
        SiteError::Command { code, text, .. } => (code.unwrap_or(-1), text),
        other => panic!("{other}"),
    }
}

/// Runs `tidegate` as the site module does.
pub fn run(arguments: &[&str]) -> Result<String, SiteError> {
    site::run(program(), arguments)
}
