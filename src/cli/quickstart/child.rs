//! The processes that the demonstration starts: their logs, their deaths, and asking them over HTTP how they are.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::ops::Range;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};

use crate::bundle::collect::log_file;
use crate::flow::{Clock, SystemClock, fill_random};

/// How often something awaited is looked at.
const POLL: Duration = Duration::from_millis(20);
/// Ports that are handed out. All are below those that the kernel gives to whoever connects (`ip_local_port_range`): who asked for a free
/// one listens on it only later, and until then each connection of somebody else might take it.
const PORTS: Range<u16> = 16_384..32_768;
/// Few ports of the loopback are taken, so the next is most often free for both.
const PORT_TRIES_MAX: u32 = 20;

/// A process did not start, or ended when it should not have.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// It could not be started.
    #[error("cannot start the {what}")]
    Start {
        /// Which process.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// It ended by itself.
    #[error("the {what} ended with {status}; its log is {} and ends with: {said}", log.display())]
    Ended {
        /// Which process.
        what: &'static str,
        /// How.
        status: ExitStatus,
        /// The last line of its log.
        said: String,
        /// Where it says why.
        log: PathBuf,
    },
    /// It did not come to what was waited for.
    #[error("the {what} did not become {awaited} within {seconds} s; its log is {}", log.display())]
    Late {
        /// Which process.
        what: &'static str,
        /// What was waited for.
        awaited: &'static str,
        /// For how long.
        seconds: u64,
        /// Where it may say why.
        log: PathBuf,
    },
}

/// Ids of all children that run, so that a signal handler can end them.
#[derive(Clone, Debug, Default)]
pub struct Family(Arc<Mutex<Vec<Pid>>>);

impl Family {
    /// Ends every child at once.
    pub fn kill(&self) {
        for pid in self.0.lock().drain(..) {
            // One that is gone already needs no signal.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// A child process whose output goes to a file. Dropped, it is killed.
pub struct Child {
    what: &'static str,
    process: std::process::Child,
    log: PathBuf,
    family: Family,
    kept: bool,
}

impl Child {
    /// Starts `program` with its output appended to `log`, in a process group of its own, so that a Ctrl-C on the
    /// terminal reaches only us and everything ends in order.
    ///
    /// # Errors
    /// [`ChildError::Start`].
    pub fn start(
        what: &'static str,
        family: &Family,
        log: &Path,
        program: &Path,
        arguments: &[&str],
    ) -> Result<Self, ChildError> {
        let wrap = |source| ChildError::Start { what, source };
        let output = File::options().create(true).append(true).open(log).map_err(wrap)?;
        let process = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone().map_err(wrap)?)
            .stderr(output)
            .process_group(0)
            .spawn()
            .map_err(wrap)?;
        let child = Self { what, process, log: log.to_owned(), family: family.clone(), kept: false };
        family.0.lock().extend(child.pid());
        Ok(child)
    }

    fn pid(&self) -> Option<Pid> {
        Pid::from_raw(i32::try_from(self.process.id()).ok()?)
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    fn forget(&self) {
        let pid = self.pid();
        self.family.0.lock().retain(|other| Some(*other) != pid);
    }

    /// SIGKILL, and waits for the end: nothing of it runs any more on return.
    ///
    /// # Errors
    /// If the system refuses, which would be a bug.
    pub fn kill(&mut self) -> io::Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        self.forget();
        Ok(())
    }

    /// SIGTERM, and waits; SIGKILL if it has not ended after `grace`.
    ///
    /// # Errors
    /// If the system refuses, which would be a bug.
    pub fn terminate(&mut self, grace: Duration) -> io::Result<ExitStatus> {
        if let Some(pid) = self.pid() {
            kill_process(pid, Signal::TERM)?;
        }
        let mut ended = None;
        wait_until(grace, || {
            ended = self.process.try_wait().ok().flatten();
            ended.is_some()
        });
        let status = match ended {
            Some(status) => status,
            None => {
                self.process.kill()?;
                self.process.wait()?
            }
        };
        self.forget();
        Ok(status)
    }

    /// Leaves it running after we end.
    #[must_use]
    pub fn keep(mut self) -> u32 {
        self.forget();
        self.kept = true;
        self.id()
    }

    /// Fails if it ended.
    ///
    /// # Errors
    /// [`ChildError::Ended`].
    pub fn check(&mut self) -> Result<(), ChildError> {
        match self.process.try_wait() {
            Ok(Some(status)) => {
                let end = log_file(&self.log).unwrap_or_else(|error| format!("(it cannot be read: {error})"));
                let said = end.trim_end().lines().next_back().unwrap_or("(nothing)").to_owned();
                Err(ChildError::Ended { what: self.what, status, said, log: self.log.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Waits until `reached`, as long as the process lives.
    ///
    /// # Errors
    /// [`ChildError`] if it ends or is late.
    pub fn wait_for(
        &mut self,
        awaited: &'static str,
        patience: Duration,
        mut reached: impl FnMut() -> bool,
    ) -> Result<(), ChildError> {
        let mut ended = Ok(());
        let in_time = wait_until(patience, || {
            ended = self.check();
            ended.is_err() || reached()
        });
        ended?;
        if in_time {
            return Ok(());
        }
        Err(ChildError::Late { what: self.what, awaited, seconds: patience.as_secs(), log: self.log.clone() })
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.kept {
            // Both fail only if it is gone already.
            let _ = self.process.kill();
            let _ = self.process.wait();
            self.forget();
        }
    }
}

/// Looks at `reached` again and again, for at most `patience`; whether it came true.
pub fn wait_until(patience: Duration, mut reached: impl FnMut() -> bool) -> bool {
    let clock = SystemClock::new();
    loop {
        if reached() {
            return true;
        }
        if clock.monotonic() >= patience {
            return false;
        }
        std::thread::sleep(POLL);
    }
}

/// A TCP (or, where `udp`, a UDP and TCP) port of the loopback that is free now.
///
/// # Errors
/// If there is none.
pub fn free_port(udp: bool) -> io::Result<u16> {
    static NEXT: OnceLock<AtomicU16> = OnceLock::new();
    let next = NEXT.get_or_init(|| AtomicU16::new(random_start()));
    let mut tries = 0;
    loop {
        // No port twice in this process until all were handed out.
        let port = PORTS.start + next.fetch_add(1, Ordering::Relaxed) % PORTS.len() as u16;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let listener = TcpListener::bind(address);
        // A gateway listens on the same number for both.
        let both = listener.and_then(|_tcp| if udp { UdpSocket::bind(address).map(drop) } else { Ok(()) });
        match both {
            Ok(()) => return Ok(port),
            Err(error) if tries == PORT_TRIES_MAX => return Err(error),
            Err(_) => tries += 1,
        }
    }
}

/// Another one in each process, so that several at a time seldom meet.
fn random_start() -> u16 {
    let mut bytes = [0; 2];
    // Without entropy they all begin at the first one, which is then taken or free as any other.
    fill_random(&mut bytes).map_or(0, |()| u16::from_le_bytes(bytes))
}

/// A plain HTTP GET: status and body.
///
/// # Errors
/// If nobody answers within a second, or with something else than HTTP.
pub fn http_get(address: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let patience = Duration::from_secs(1);
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split_whitespace().nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| io::Error::other("the answer is no HTTP"))?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    Ok((status, body))
}

/// The sum over all labels of a metric in a Prometheus page.
#[must_use]
pub fn metric(page: &str, name: &str) -> f64 {
    let of_name = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
    page.lines().filter(of_name).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, folder: &Path) -> Child {
        let log = folder.join("log");
        Child::start("shell", &Family::default(), &log, Path::new("/bin/sh"), &["-c", script]).unwrap()
    }

    #[test]
    fn a_child_that_ends_by_itself_is_noticed_and_its_log_named() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = shell("echo why; exit 7", folder.path());
        let error = child.wait_for("ready", Duration::from_secs(20), || false).unwrap_err();
        assert!(matches!(&error, ChildError::Ended { status, .. } if status.code() == Some(7)), "{error}");
        assert!(error.to_string().ends_with("log and ends with: why"), "{error}");
        assert_eq!(std::fs::read_to_string(child.log()).unwrap(), "why\n");
    }

    #[test]
    fn a_child_ends_on_request_and_by_force() {
        let folder = tempfile::tempdir().unwrap();
        let ready = || folder.path().join("ready").exists();
        let script = format!(
            "trap 'exit 0' TERM; touch {}; while :; do sleep 0.01; done",
            folder.path().join("ready").display()
        );
        let mut child = shell(&script, folder.path());
        child.wait_for("ready", Duration::from_secs(20), ready).unwrap();
        assert!(child.terminate(Duration::from_secs(20)).unwrap().success());
        let mut deaf = shell("trap '' TERM; sleep 100", folder.path());
        deaf.kill().unwrap();
    }

    #[test]
    fn a_dropped_child_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let family = Family::default();
        let child =
            Child::start("sleep", &family, &folder.path().join("log"), Path::new("/bin/sleep"), &["100"]).unwrap();
        let pid = child.pid().unwrap();
        assert_eq!(*family.0.lock(), [pid]);
        drop(child);
        assert!(family.0.lock().is_empty());
        assert!(rustix::process::test_kill_process(pid).is_err());
    }

    #[test]
    fn a_metric_is_summed_over_its_labels() {
        let page = "# HELP a x\na_total{l=\"1\"} 2\na_total{l=\"2\"} 3.5\na_total_more 9\nb 1\n";
        assert!((metric(page, "a_total") - 5.5).abs() < 1e-9);
        assert!((metric(page, "b") - 1.0).abs() < 1e-9);
        assert!(metric(page, "c").abs() < 1e-9);
    }
}
