//! Azurite, the blob service that the tests run against: on a free loopback port, its data in a directory of its own.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tidegate::cli::quickstart::child::free_port;

const ACCOUNT: &str = "devstoreaccount1";
/// Looks for the port before giving up: 60 s on a busy machine.
const LOOKS_MAX: u32 = 600;
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Time for the first answer; a service that is slow to start answers at the next look.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Ports that others may take in the moment between finding and using them.
const STARTS_MAX: u32 = 5;

/// A running Azurite. Killed when dropped; its data go with it.
#[derive(Debug)]
pub struct Azurite {
    data: tempfile::TempDir,
    address: SocketAddr,
    process: Option<Child>,
}

fn program() -> PathBuf {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/azurite/node_modules/.bin/azurite-blob");
    assert!(program.exists(), "Azurite is not installed: run `cd tests/azurite && npm ci` (tests/run does it)");
    program
}

fn free_address() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, free_port(false).expect("a free port")))
}

impl Azurite {
    /// Starts an empty one.
    pub fn start() -> Self {
        let data = tempfile::tempdir().expect("a temporary directory");
        for _ in 0..STARTS_MAX {
            let address = free_address();
            if let Some(process) = launch(data.path(), address) {
                return Self { data, address, process: Some(process) };
            }
        }
        panic!("Azurite did not start; its log is {}", log(data.path()));
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// URL of a vault in a container of this name; `tidegate vault init` creates the container.
    pub fn vault_url(&self, container: &str) -> String {
        self.vault_url_at(self.address, container)
    }

    /// The same, reached through another address.
    pub fn vault_url_at(&self, address: SocketAddr, container: &str) -> String {
        format!("http://{address}/{ACCOUNT}/{container}")
    }

    /// Stops it; its data stay. It is asked to end, because what it confirmed in the last seconds is in its memory only:
    /// killed, it would forget whole containers, which no blob service may do.
    pub fn stop(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        let asked = Command::new("kill").arg(process.id().to_string()).status();
        assert!(asked.is_ok_and(|status| status.success()), "Azurite cannot be asked to end");
        for _ in 0..LOOKS_MAX {
            if process.try_wait().expect("the process can be asked").is_some() {
                return;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        end(process);
    }

    /// Starts it again on the same port, with its data.
    pub fn start_again(&mut self) {
        assert!(self.process.is_none(), "stop it first");
        for _ in 0..STARTS_MAX {
            self.process = launch(self.data.path(), self.address);
            if self.process.is_some() {
                return;
            }
        }
        panic!("Azurite did not start again; its log is {}", log(self.data.path()));
    }
}

impl Drop for Azurite {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            end(process);
        }
    }
}

fn end(mut process: Child) {
    let _ = process.kill();
    let _ = process.wait();
}

fn log(data: &Path) -> String {
    std::fs::read_to_string(data.join("log")).unwrap_or_default()
}

/// Whether a blob service answers there. A connection alone proves nothing: while many tests look for free ports, another
/// one's listener may stand there for a moment.
fn answers(address: SocketAddr) -> bool {
    let ask = || {
        let mut connection = TcpStream::connect(address)?;
        connection.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        connection.write_all(b"GET /?comp=list HTTP/1.0\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer)?;
        Ok::<_, std::io::Error>(answer.starts_with(b"HTTP/1."))
    };
    ask().unwrap_or(false)
}

/// Starts a process and waits until it answers requests; `None` if it ended before.
fn launch(data: &Path, address: SocketAddr) -> Option<Child> {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(data.join("log")).expect("a log file");
    let errors = log.try_clone().expect("a second handle");
    let mut process = Command::new("node")
        .arg(program())
        .args(["--skipApiVersionCheck", "--disableTelemetry", "--silent", "--blobHost"])
        .arg(address.ip().to_string())
        .args(["--blobPort", &address.port().to_string(), "--location"])
        .arg(data.join("blobs"))
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .spawn()
        .unwrap_or_else(|error| panic!("node cannot be run ({error}): tests/run installs what the tests need"));
    for _ in 0..LOOKS_MAX {
        if process.try_wait().expect("the process can be asked").is_some() {
            return None;
        }
        if answers(address) {
            return Some(process);
        }
        std::thread::sleep(LOOK_EVERY);
    }
    end(process);
    None
}
