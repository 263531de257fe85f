//! A whole installation in one directory: keys, certificates, vault, configurations, and the commands to run on it.
//!
//! Everything is made by the same commands that an operator types, each a process of its own, so that a demonstration
//! and the end-to-end tests show what an operator gets.
//!
//! ```text
//!  <dir>/recovery.key   recovery identity       <dir>/gateway.toml agent.toml   configurations
//!        catalog.key    catalog key                   journal/ agent/           their state
//!        vault/         unless the vault is elsewhere nbd.sock                  the protected disks
//!        pki/           authority and certificates    logs/
//! ```

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::super::point::ask;
use super::child::{self, Child, ChildError, Family};
use crate::agent::control::{AgentStatus, DiskStatus, Request, Response, socket_path};
use crate::nbd::Listen;

/// Longest path of the directory: unix sockets below it must fit their address.
const DIR_BYTES_MAX: usize = 80;
/// A start includes replaying the journal; on a busy machine that takes a while.
const START_PATIENCE: Duration = Duration::from_secs(90);

/// An installation could not be made, or one of its commands failed.
#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    /// The directory's path is too long for unix sockets below it.
    #[error("{} is too long: choose a --dir of at most {DIR_BYTES_MAX} characters", dir.display())]
    LongPath {
        /// The directory.
        dir: PathBuf,
    },
    /// A file could not be made or read.
    #[error("{}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A command failed.
    #[error("`tidegate {command}` ended with {status}: {text}")]
    Command {
        /// Its arguments.
        command: String,
        /// Exit code, or what ended it.
        status: String,
        /// Exit code as a number, if it has one.
        code: Option<i32>,
        /// What it said on standard error.
        text: String,
    },
    /// A command's answer was not what its description says.
    #[error("`tidegate {command}` answered something else than expected: {answer}")]
    Answer {
        /// Its arguments.
        command: String,
        /// What it said.
        answer: String,
    },
    /// A daemon did not start or ended.
    #[error(transparent)]
    Child(#[from] ChildError),
}

/// What an installation is to be.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its directory; must exist.
    pub dir: PathBuf,
    /// The `tidegate` program.
    pub program: PathBuf,
    /// URL of the vault; the directory `vault` in `dir` if not given.
    pub vault: Option<String>,
    /// Names and images of the disks.
    pub disks: Vec<(String, PathBuf)>,
    /// Lines put into the gateway's configuration, by section (`""` is the top).
    pub gateway: Vec<(&'static str, String)>,
    /// The same for the agent.
    pub agent: Vec<(&'static str, String)>,
}

/// An installation.
pub struct Site {
    plan: Plan,
    vault_url: String,
    gateway_port: u16,
    admin: SocketAddr,
    family: Family,
}

/// A point that was made.
#[derive(Clone, Debug)]
pub struct MadePoint {
    /// Its id.
    pub id: String,
    /// Its label time.
    pub time: String,
}

impl Site {
    /// Makes keys, vault, certificates and configurations.
    ///
    /// # Errors
    /// [`SiteError`] names what could not be made.
    pub fn create(plan: Plan, family: &Family) -> Result<Self, SiteError> {
        if plan.dir.as_os_str().len() > DIR_BYTES_MAX {
            return Err(SiteError::LongPath { dir: plan.dir });
        }
        let port = |udp| child::free_port(udp).map_err(|source| SiteError::File { path: "127.0.0.1:0".into(), source });
        let admin = SocketAddr::from(([127, 0, 0, 1], port(false)?));
        let vault_url = plan.vault.clone().unwrap_or_else(|| format!("file://{}", plan.dir.join("vault").display()));
        let site = Self { plan, vault_url, gateway_port: port(true)?, admin, family: family.clone() };
        for folder in ["logs", "journal", "agent"] {
            let path = site.path(folder);
            std::fs::create_dir_all(&path).map_err(|source| SiteError::File { path, source })?;
        }
        site.make_keys()?;
        site.write("gateway.toml", &site.gateway_config())?;
        site.write("agent.toml", &site.agent_config())?;
        Ok(site)
    }

    fn make_keys(&self) -> Result<(), SiteError> {
        let (identity, catalog) = (self.shown("recovery.key"), self.shown("catalog.key"));
        let new = ["--new-identity", &identity, "--catalog-key", &catalog, "--json"];
        let made = self.run(&[&["vault", "init", "--vault", &self.vault_url], &new[..]].concat())?;
        let vault_id = field(&made, "id").ok_or_else(|| answer("vault init --json", &made))?;
        let pki = self.shown("pki");
        self.run(&["pki", "init", "--dir", &pki, "--vault-id", &vault_id])?;
        self.run(&[
            "pki",
            "issue",
            "--dir",
            &pki,
            "gateway",
            "--id",
            "gw1",
            "--host",
            "localhost",
            "--host",
            "127.0.0.1",
        ])?;
        let mut agent = vec!["pki", "issue", "--dir", &pki, "agent", "--id", "agent1"];
        for (disk, _) in &self.plan.disks {
            agent.extend(["--disk", disk]);
        }
        self.run(&agent).map(drop)
    }

    fn gateway_config(&self) -> String {
        let tls = "ca = \"pki/ca.crt\"\ncert = \"pki/gateway-gw1.crt\"\nkey = \"pki/gateway-gw1.key\"";
        let vault = format!("url = {:?}\ncatalog_key = \"catalog.key\"", self.vault_url);
        let top =
            format!("id = \"gw1\"\nlisten = \"127.0.0.1:{}\"\nadmin_listen = \"{}\"", self.gateway_port, self.admin);
        // A demonstration needs no 16 GiB of journal.
        let journal = "dir = \"journal\"\ncapacity = \"2 GiB\"";
        sections(&[("", &top), ("tls", tls), ("vault", &vault), ("journal", journal)], &self.plan.gateway)
    }

    fn agent_config(&self) -> String {
        let gateways = format!("gateways = [\"127.0.0.1:{}\"]", self.gateway_port);
        let top = format!("id = \"agent1\"\nstate_dir = \"agent\"\n{gateways}");
        let tls = "ca = \"pki/ca.crt\"\ncert = \"pki/agent-agent1.crt\"\nkey = \"pki/agent-agent1.key\"";
        let mut text = sections(&[("", &top), ("tls", tls)], &self.plan.agent);
        for (disk, image) in &self.plan.disks {
            text += &format!("\n[[disk]]\nid = {disk:?}\npath = {:?}\nlisten = \"{}\"\n", image, self.nbd(disk));
        }
        text
    }

    fn write(&self, name: &str, text: &str) -> Result<(), SiteError> {
        let path = self.path(name);
        std::fs::write(&path, text).map_err(|source| SiteError::File { path, source })
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.plan.dir
    }

    /// A path in the directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.plan.dir.join(name)
    }

    fn shown(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// The recovery identity.
    #[must_use]
    pub fn identity(&self) -> PathBuf {
        self.path("recovery.key")
    }

    /// URL of the vault.
    #[must_use]
    pub fn vault_url(&self) -> &str {
        &self.vault_url
    }

    /// Where agents reach the gateway.
    #[must_use]
    pub fn gateway_address(&self) -> String {
        format!("127.0.0.1:{}", self.gateway_port)
    }

    /// The gateway's admin port.
    #[must_use]
    pub const fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// Where a disk is served.
    #[must_use]
    pub fn nbd(&self, disk: &str) -> Listen {
        Listen::Unix(self.path(&format!("{disk}.sock")))
    }

    /// Starts the gateway and waits until it is ready.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start_gateway(&self) -> Result<Child, SiteError> {
        let mut gateway = self.start("gateway")?;
        let ready = || child::http_get(self.admin, "/readyz").is_ok_and(|(status, _)| status == 200);
        gateway.wait_for("ready", START_PATIENCE, ready)?;
        Ok(gateway)
    }

    /// Starts the agent and waits until it serves its disks.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start_agent(&self) -> Result<Child, SiteError> {
        let mut agent = self.start("agent")?;
        agent.wait_for("ready", START_PATIENCE, || {
            self.plan.disks.iter().all(|(disk, _)| match self.nbd(disk) {
                Listen::Unix(path) => std::os::unix::net::UnixStream::connect(path).is_ok(),
                Listen::Tcp(address) => std::net::TcpStream::connect(address).is_ok(),
            })
        })?;
        Ok(agent)
    }

    fn start(&self, what: &'static str) -> Result<Child, SiteError> {
        let log = self.path(&format!("logs/{what}.log"));
        let config = self.shown(&format!("{what}.toml"));
        Ok(Child::start(what, &self.family, &log, &self.plan.program, &[what, "--config", &config])?)
    }

    /// A page of the gateway's admin port, if it answers.
    #[must_use]
    pub fn admin(&self, path: &str) -> Option<String> {
        child::http_get(self.admin, path).ok().map(|(_, body)| body)
    }

    /// Runs a command to its end and returns its standard output.
    ///
    /// # Errors
    /// [`SiteError::Command`] if it fails.
    pub fn run(&self, arguments: &[&str]) -> Result<String, SiteError> {
        run(&self.plan.program, arguments)
    }

    /// Makes a point of a disk now, or as soon as no copy is under way. Does not wait for the vault.
    ///
    /// # Errors
    /// If the agent does not make it.
    pub fn point(&self, disk: &str, name: &str) -> Result<MadePoint, SiteError> {
        let config = self.shown("agent.toml");
        let made = self.run(&["point", "--config", &config, "--disk", disk, "--name", name, "--no-wait", "--json"])?;
        match (field(&made, "id"), field(&made, "time")) {
            (Some(id), Some(time)) => Ok(MadePoint { id, time }),
            _ => Err(answer("point --json", &made)),
        }
    }

    /// Whether the vault offers the point to a reader.
    #[must_use]
    pub fn listed(&self, disk: &str, point: &str) -> bool {
        let catalog = self.shown("catalog.key");
        let asked = ["points", "--vault", &self.vault_url, "--catalog-key", &catalog, "--disk", disk, "--json"];
        let listed = self.run(&asked).unwrap_or_default();
        listed.contains(&format!("{point:?}"))
    }

    /// What the agent says of a disk, if it answers.
    #[must_use]
    pub fn status(&self, disk: &str) -> Option<DiskStatus> {
        self.agent_status()?.disks.into_iter().find(|status| status.disk.as_str() == disk)
    }

    /// The state of the agent, if it answers.
    #[must_use]
    pub fn agent_status(&self) -> Option<AgentStatus> {
        match ask(&socket_path(&self.path("agent")), &Request::Status, Duration::from_secs(5)) {
            Ok(Response::Status(status)) => Some(status),
            _ => None,
        }
    }

    /// Whether the whole disk was sent: no copy is under way or waiting.
    #[must_use]
    pub fn copied(&self, disk: &str) -> bool {
        self.status(disk).is_some_and(|status| status.state == "protected" && status.dirty_bytes == 0)
    }

    /// Bytes in the vault.
    ///
    /// # Errors
    /// If the vault cannot be read.
    pub fn stored_bytes(&self) -> Result<u64, SiteError> {
        let catalog = self.shown("catalog.key");
        let status = self.run(&["vault", "status", "--vault", &self.vault_url, "--catalog-key", &catalog, "--json"])?;
        let value: serde_json::Value =
            serde_json::from_str(&status).map_err(|_| answer("vault status --json", &status))?;
        value.get("bytes").and_then(serde_json::Value::as_u64).ok_or_else(|| answer("vault status --json", &status))
    }

    /// Restores a point of a disk from nothing but a vault and the recovery identity.
    ///
    /// # Errors
    /// If the restore fails.
    pub fn restore(&self, disk: &str, point: &str, target: &Path) -> Result<(), SiteError> {
        let (identity, target) = (self.identity().display().to_string(), target.display().to_string());
        let from = ["restore", "--vault", &self.vault_url, "--identity", &identity];
        self.run(&[&from[..], &["--disk", disk, "--point", point, "--to", &target]].concat()).map(drop)
    }
}

/// Runs `tidegate` to its end and returns its standard output.
///
/// # Errors
/// [`SiteError::Command`] if it fails.
pub fn run(program: &Path, arguments: &[&str]) -> Result<String, SiteError> {
    let failed = |status: String, code, text| SiteError::Command { command: arguments.join(" "), status, code, text };
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| failed("no start".into(), None, error.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(failed(output.status.to_string(), output.status.code(), text))
}

fn answer(command: &str, answer: &str) -> SiteError {
    SiteError::Answer { command: command.into(), answer: answer.chars().take(500).collect() }
}

fn field(json: &str, key: &str) -> Option<String> {
    let value: serde_json::Value = serde_json::from_str(json).ok()?;
    value.get(key)?.as_str().map(str::to_owned)
}

/// TOML of sections, each with its own lines and those of `extra`, which win where both set a key.
fn sections(own: &[(&str, &str)], extra: &[(&'static str, String)]) -> String {
    let key = |line: &str| line.split('=').next().unwrap_or_default().trim().to_owned();
    let mut names: Vec<&str> = own.iter().map(|(name, _)| *name).collect();
    names.extend(extra.iter().map(|(name, _)| *name).filter(|name| !own.iter().any(|(own, _)| own == name)));
    names.dedup();
    let mut text = String::new();
    for name in names {
        if !name.is_empty() {
            text += &format!("\n[{name}]\n");
        }
        let added: Vec<&str> = extra.iter().filter(|(section, _)| *section == name).map(|(_, line)| &**line).collect();
        let lines = own.iter().filter(|(section, _)| *section == name).flat_map(|(_, lines)| lines.lines());
        for line in lines.filter(|line| !added.iter().any(|added| key(added) == key(line))).chain(added.iter().copied())
        {
            text += line;
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn added_lines_win_over_own_ones_and_new_sections_come_last() {
        let own = [("", "id = \"a\"\nlisten = \"b\""), ("journal", "dir = \"j\"\ncapacity = \"2 GiB\"")];
        let extra = [("journal", "capacity = \"64 MiB\"".to_owned()), ("pipeline", "threads = 1".to_owned())];
        let text = sections(&own, &extra);
        assert_eq!(
            text,
            "id = \"a\"\nlisten = \"b\"\n\n[journal]\ndir = \"j\"\ncapacity = \"64 MiB\"\n\n[pipeline]\nthreads = 1\n"
        );
        assert!(text.parse::<toml::Table>().is_ok());
    }

    #[test]
    fn a_failed_command_says_what_it_said() {
        let error = run(Path::new("/bin/sh"), &["-c", "echo no key >&2; exit 3"]).unwrap_err();
        assert!(matches!(&error, SiteError::Command { code: Some(3), .. }));
        assert!(error.to_string().contains("no key"));
    }
}
