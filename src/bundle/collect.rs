//! Reads what goes into a bundle. Nothing here is blotted out yet.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{Collected, PART_BYTES_MAX};
use crate::fault::chain_text;
use crate::vault::url::install_crypto;

/// The admin port answers from memory.
const ADMIN_PATIENCE: Duration = Duration::from_secs(5);
/// A journal of the system that is asked for so long has more than anybody wants to read.
const JOURNALCTL_PATIENCE: Duration = Duration::from_secs(20);
/// How often it is looked whether that is over.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// More than [`LOG_LINES_MAX`] usual lines.
const JOURNALD_BYTES_MAX: u64 = 32 << 20;
/// Lines of a log.
const LOG_LINES_MAX: usize = 5_000;
/// Key files are small; what is larger is none.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// Pages of the admin port, and what they are called.
const PAGES: [(&str, &str); 6] = [
    ("/healthz", "gateway/healthz.json"),
    ("/readyz", "gateway/readyz.json"),
    ("/v1/status", "gateway/status.json"),
    ("/v1/disks", "gateway/disks.json"),
    ("/v1/agents", "gateway/agents.json"),
    ("/metrics", "gateway/metrics.txt"),
];

/// The kernel's files that say what kind of host this is. None holds a command line or an environment.
const HOST_FILES: [&str; 16] = [
    "/etc/os-release",
    "/proc/version",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/self/mountinfo",
    "/proc/self/limits",
    "/proc/self/cgroup",
    "/proc/net/snmp",
    "/proc/net/udp",
    "/proc/pressure/cpu",
    "/proc/pressure/io",
    "/proc/pressure/memory",
    "/proc/sys/kernel/io_uring_disabled",
];
const HOST_SETTINGS: [&str; 3] =
    ["/proc/sys/net/core/rmem_max", "/proc/sys/net/core/wmem_max", "/proc/sys/net/core/netdev_max_backlog"];

/// Facts of the host, one part per file.
pub fn host(out: &mut Collected) {
    for file in HOST_FILES.iter().chain(&HOST_SETTINGS) {
        let name = format!("host{}", file.replace("/proc/", "/").replace("/self/", "/process/"));
        out.add(&name, fs::read_to_string(file).map_err(|error| error.to_string()));
    }
}

/// What the admin port says, if anybody answers.
pub async fn gateway(out: &mut Collected, admin: SocketAddr) {
    install_crypto();
    let client = match reqwest::Client::builder().timeout(ADMIN_PATIENCE).no_proxy().build() {
        Ok(client) => client,
        Err(error) => return out.add("gateway", Err(chain_text(&error))),
    };
    for (page, name) in PAGES {
        let asked = async { client.get(format!("http://{admin}{page}")).send().await?.text().await };
        out.add(name, asked.await.map_err(|error| format!("http://{admin}{page}: {}", chain_text(&error))));
    }
}

/// The end of a log file.
///
/// # Errors
/// In words.
pub fn log_file(path: &Path) -> Result<String, String> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = fs::File::open(path)?;
        let bytes = file.metadata()?.len();
        file.seek(SeekFrom::Start(bytes.saturating_sub(PART_BYTES_MAX as u64)))?;
        let mut text = Vec::new();
        file.take(PART_BYTES_MAX as u64).read_to_end(&mut text)?;
        Ok(text)
    };
    let bytes = read().map_err(|error| format!("{}: {error}", path.display()))?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    // A line that was cut may have lost what tells a secret; the first one of a whole file has not.
    let first = lines.len().saturating_sub(LOG_LINES_MAX).max(usize::from(bytes.len() >= PART_BYTES_MAX));
    Ok(lines[first.min(lines.len())..].join("\n"))
}

/// The service's lines in the system's journal.
///
/// # Errors
/// In words, if there is no such journal or service.
pub fn journald(unit: &str) -> Result<String, String> {
    let lines = LOG_LINES_MAX.to_string();
    let mut command = Command::new("journalctl");
    command.args(["--unit", unit, "--lines", &lines, "--no-pager", "--output", "short-iso", "--quiet"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| format!("journalctl: {error}"))?;
    let out = child.stdout.take();
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is as good as nothing.
        let read = out.map(|out| out.take(JOURNALD_BYTES_MAX).read_to_end(&mut bytes));
        read.and_then(Result::ok).map(|_| bytes).unwrap_or_default()
    });
    let mut waited = Duration::ZERO;
    while !reader.is_finished() && waited < JOURNALCTL_PATIENCE {
        std::thread::sleep(LOOK_EVERY);
        waited += LOOK_EVERY;
    }
    // Nothing is left to be read of it; one that hangs ends here.
    let _ = (child.kill(), child.wait());
    let text = String::from_utf8_lossy(&reader.join().unwrap_or_default()).into_owned();
    if text.trim().is_empty() {
        return Err(format!("the system's journal has nothing of {unit}, or this user may not read it"));
    }
    Ok(text)
}

/// Secrets of this host: what the key files and the variables of this process hold, and the files that these name.
#[must_use]
pub fn secrets(key_files: &[PathBuf]) -> Vec<String> {
    let read = |path: &Path| {
        let bytes = fs::metadata(path).ok()?.len();
        if bytes > SECRET_BYTES_MAX { None } else { fs::read_to_string(path).ok() }
    };
    let mut out: Vec<String> = key_files.iter().filter_map(|path| read(path)).collect();
    for (name, value) in std::env::vars_os() {
        let (Ok(name), Ok(value)) = (name.into_string(), value.into_string()) else { continue };
        let secret = ["KEY", "SECRET", "TOKEN", "SAS", "PASSWORD", "CONNECTION_STRING", "HEADERS"]
            .iter()
            .any(|word| name.contains(word));
        if !secret {
            continue;
        }
        if name.ends_with("_FILE") {
            out.extend(read(Path::new(&value)));
        } else if let Some(pairs) = name.contains("SAS").then(|| value.trim_start_matches('?')) {
            // A token's other fields are dates and rights.
            out.extend(pairs.split('&').filter_map(|pair| pair.strip_prefix("sig=")).map(str::to_owned));
        } else {
            // A file's name is none, and its content is.
            match read(Path::new(&value)) {
                Some(content) => out.push(content),
                None => out.push(value),
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_is_kept_and_a_cut_line_is_not() {
        let file = tempfile::NamedTempFile::new().expect("file");
        let line = "x".repeat(1023);
        let lines: Vec<String> = (0..6000).map(|n| format!("{n} {line}")).collect();
        fs::write(file.path(), lines.join("\n")).expect("written");
        let text = log_file(file.path()).expect("a log");
        assert!(text.ends_with(&lines[5999]) && text.len() < PART_BYTES_MAX, "{}", text.len());
        assert!(lines.iter().any(|line| text.starts_with(line.as_str())), "the first line is whole");
        fs::write(file.path(), "one\ntwo\n").expect("written");
        assert_eq!(log_file(file.path()).as_deref(), Ok("one\ntwo"));
        assert!(log_file(Path::new("/nowhere/log")).is_err_and(|text| text.contains("/nowhere/log")));
    }

    #[test]
    fn a_host_tells_what_it_is() {
        let mut out = Collected::default();
        host(&mut out);
        assert!(
            out.parts.iter().any(|part| part.name == "host/meminfo" && part.text.contains("MemTotal")),
            "{:?}",
            out.left_out
        );
        assert!(out.parts.iter().any(|part| part.name == "host/process/limits"), "{:?}", out.left_out);
    }
}
