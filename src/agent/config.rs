//! `agent.toml`.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::carrier::Choice;
use super::link::LinkConfig;
use super::placement::{GATEWAYS_MAX, Gateway, WEIGHT_MAX};
use crate::config::{ConfigError, Reader, parse_size};
use crate::limits::DISKS_PER_AGENT_MAX;
use crate::nbd::Listen;
use crate::telemetry::traces::settings::Settings;
use crate::types::{DiskId, check_name};
use crate::wire::{TlsFiles, Transport};

/// The commented default file, as `tidegate agent --print-config` prints it.
pub const DEFAULT_FILE: &str = include_str!("../../deploy/agent.toml");

/// Queue of one disk: at 500 MiB/s it rides out an eighth of a second, at a usual 10 MiB/s six; a longer absence of the
/// gateway is the dirty map's business.
const QUEUE_BYTES_DEFAULT: u64 = 64 << 20;
/// Default of `lost_after` with other gateways to go to: one of them is asked 4 s after the loss at the latest, and has
/// a second left to carry the disks on within 5 s.
const LOST_AFTER_SEVERAL: Duration = Duration::from_millis(2500);
/// The same with one gateway.
const LOST_AFTER_ONE: Duration = Duration::from_secs(10);
/// A copy of 1 MiB must fit half of a queue.
const QUEUE_BYTES_MIN: u64 = 4 << 20;

/// One protected disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskConfig {
    /// Its name in the vault.
    pub id: DiskId,
    /// The image or device.
    pub path: PathBuf,
    /// Where the guest finds it.
    pub listen: Listen,
    /// Memory for records on their way.
    pub queue_bytes: u64,
}

/// The agent's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The agent's id; that of its certificate.
    pub id: String,
    /// Where it keeps state between runs.
    pub state_dir: PathBuf,
    /// Where its metrics are served, if they are.
    pub metrics_listen: Option<SocketAddr>,
    /// Gateways that may carry the disks.
    pub gateways: Vec<Gateway>,
    /// Silence after which a gateway counts as lost.
    pub lost_after: Duration,
    /// How long a better gateway must answer before the agent returns to it.
    pub return_after: Duration,
    /// What may carry the connection.
    pub transport: Choice,
    /// First pause before QUIC is tried again where TCP carries the connection.
    pub quic_retry: Duration,
    /// Certificate files.
    pub tls: TlsFiles,
    /// How often a disk makes a recovery point by itself.
    pub barrier_interval: Duration,
    /// Memory for records of all disks.
    pub memory_bytes: u64,
    /// How long a stop waits for the vault.
    pub drain_grace: Duration,
    /// Reads of one disk that an initial copy or resync has in flight.
    pub copy_parallel: usize,
    /// Bytes per second that copying one disk may read; 0 for no limit.
    pub copy_rate_bytes: u64,
    /// The disks.
    pub disks: Vec<DiskConfig>,
    /// Where traces go, and which.
    pub traces: Settings,
}

impl Config {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// [`ConfigError`] with every mistake at once.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::read(Reader::load(path)?, path)
    }

    /// Reads a configuration from text; `path` names it and is what relative paths start from.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        Self::read(Reader::parse(path, text)?, path)
    }

    /// What the connection needs to know.
    #[must_use]
    pub fn link(&self) -> LinkConfig {
        LinkConfig {
            agent: self.id.clone(),
            gateways: self.gateways.clone(),
            lost_after: self.lost_after,
            return_after: self.return_after,
            transport: self.transport,
            quic_retry: self.quic_retry,
            tls: self.tls.clone(),
        }
    }

    /// The keys whose values count from a start only, and that are others in `new`: all but what the certificate files
    /// hold, which are read at every connect.
    #[must_use]
    pub fn needs_restart(&self, new: &Self) -> Vec<&'static str> {
        // Every field is named, so that nobody adds one without a decision.
        let Self {
            id,
            state_dir,
            gateways,
            lost_after,
            return_after,
            transport,
            quic_retry,
            tls,
            barrier_interval,
            memory_bytes,
            drain_grace,
            copy_parallel,
            copy_rate_bytes,
            metrics_listen,
            disks,
            traces,
        } = self;
        let changed = [
            ("id", *id != new.id),
            ("state_dir", *state_dir != new.state_dir),
            ("gateways", *gateways != new.gateways),
            ("lost_after", *lost_after != new.lost_after),
            ("return_after", *return_after != new.return_after),
            ("transport", *transport != new.transport),
            ("quic_retry", *quic_retry != new.quic_retry),
            ("[tls] (names of files)", *tls != new.tls),
            ("barrier_interval", *barrier_interval != new.barrier_interval),
            ("memory", *memory_bytes != new.memory_bytes),
            ("drain_grace", *drain_grace != new.drain_grace),
            ("copy.parallel", *copy_parallel != new.copy_parallel),
            ("copy.rate", *copy_rate_bytes != new.copy_rate_bytes),
            ("metrics_listen", *metrics_listen != new.metrics_listen),
            ("[[disk]]", *disks != new.disks),
            ("[telemetry]", *traces != new.traces),
        ];
        changed.into_iter().filter(|(_, changed)| *changed).map(|(key, _)| key).collect()
    }

    fn read(mut reader: Reader, path: &Path) -> Result<Self, ConfigError> {
        let seconds = Duration::from_secs;
        let id =
            reader.parsed("id", |text| check_name(text).map(|()| text.to_owned()).map_err(|error| error.to_string()));
        let id = reader.required("id", id);
        let state_dir = reader.required_path("state_dir");
        let metrics_listen = reader.parsed("metrics_listen", |text| {
            text.parse().map_err(|_| format!("{text:?} is no address: write for example \"127.0.0.1:9445\""))
        });
        let barrier_interval =
            reader.duration("barrier_interval", seconds(5), Duration::from_millis(100)..=seconds(3600));
        let memory_bytes = reader.size("memory", 256 << 20, QUEUE_BYTES_MIN..=1 << 40);
        let drain_grace = reader.duration("drain_grace", seconds(30), seconds(0)..=seconds(3600));
        let gateways = read_gateways(&mut reader);
        // Another gateway can take over, so it pays to notice soon; without one a short silence is best sat out.
        let lost_after = if gateways.len() > 1 { LOST_AFTER_SEVERAL } else { LOST_AFTER_ONE };
        let lost_after = reader.duration("lost_after", lost_after, seconds(1)..=seconds(60));
        let return_after = reader.duration("return_after", seconds(60), seconds(1)..=seconds(24 * 3600));
        let transport = reader.parsed("transport", |text| match text {
            "auto" => Ok(Choice::Auto),
            text => {
                let only = text.parse::<Transport>().map(Choice::Only);
                only.map_err(|_| format!("{text:?} is no transport: auto, quic or tcp"))
            }
        });
        let quic_retry = reader.duration("quic_retry", seconds(60), seconds(1)..=seconds(24 * 3600));
        let tls = reader.section("tls", read_tls);
        let (copy_parallel, copy_rate_bytes) = reader.section("copy", read_copy);
        let traces = Settings::read(&mut reader);
        let disks = reader.sections("disk", read_disk);
        let count = disks.len();
        let disks: Vec<DiskConfig> = disks.into_iter().flatten().collect();
        if count == 0 {
            reader.mistake("disk", "no disk: add a section [[disk]] with id, path and listen");
        }
        if count > DISKS_PER_AGENT_MAX {
            reader.mistake("disk", format_args!("{count} disks: one agent protects at most {DISKS_PER_AGENT_MAX}"));
        }
        check_disks(&mut reader, &disks);
        reader.finish(path)?;
        // Whatever is missing was reported by `finish`.
        match (id, state_dir, tls) {
            (Some(id), Some(state_dir), Some(tls)) => Ok(Self {
                id,
                state_dir,
                metrics_listen,
                gateways,
                lost_after,
                return_after,
                transport: transport.unwrap_or(Choice::Auto),
                quic_retry,
                tls,
                barrier_interval,
                memory_bytes,
                drain_grace,
                copy_parallel,
                copy_rate_bytes,
                disks,
                traces,
            }),
            _ => Err(ConfigError { path: path.to_owned(), mistakes: vec!["is incomplete".into()] }),
        }
    }
}

fn read_gateways(reader: &mut Reader) -> Vec<Gateway> {
    let missing = !reader.has("gateways");
    let listed = reader.sections_or_texts("gateways", "address", |gateway| {
        let address = gateway.parsed("address", |text| {
            let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
            match port {
                Some(Ok(port)) if port > 0 => Ok(text.to_owned()),
                _ => Err(format!("{text:?} is no host:port")),
            }
        });
        let address = gateway.required("address", address);
        let weight = gateway.number("weight", 1, 1..=u64::from(WEIGHT_MAX)) as u32;
        Some(Gateway { address: address?, weight })
    });
    if missing || listed.is_empty() {
        reader.mistake("gateways", "is missing: write for example gateways = [\"gateway.example:9443\"]");
    }
    if listed.len() > GATEWAYS_MAX {
        reader.mistake("gateways", format_args!("{} gateways: list at most {GATEWAYS_MAX}", listed.len()));
    }
    let gateways: Vec<Gateway> = listed.into_iter().flatten().collect();
    let mut seen = BTreeSet::new();
    for gateway in &gateways {
        if !seen.insert(gateway.address.as_str()) {
            reader.mistake("gateways", format_args!("{} stands twice", gateway.address));
        }
    }
    gateways
}

/// Reads in flight, and bytes per second.
fn read_copy(copy: &mut Reader) -> (usize, u64) {
    let parallel = copy.number("parallel", 2, 1..=32) as usize;
    // Zero has no unit.
    let rate = copy.parsed("rate", |text| match parse_size(text) {
        Some(0) => Ok(0),
        Some(bytes) if bytes >= 1 << 20 => Ok(bytes),
        _ => Err(format!(
            "{text:?} is no rate: write bytes per second such as \"50 MiB\", at least 1 MiB, or \"0\" for no limit"
        )),
    });
    (parallel, rate.unwrap_or(0))
}

fn read_tls(tls: &mut Reader) -> Option<TlsFiles> {
    let mut file = |key: &str| {
        let path = tls.required_path(key);
        if let Some(Err(error)) = path.as_ref().map(std::fs::metadata) {
            let shown = path.as_deref().unwrap_or(Path::new("")).display().to_string();
            tls.mistake(key, format_args!("{shown}: {error}"));
        }
        path
    };
    let (ca, cert, key) = (file("ca"), file("cert"), file("key"));
    Some(TlsFiles { ca: ca?, cert: cert?, key: key? })
}

fn read_disk(disk: &mut Reader) -> Option<DiskConfig> {
    let id = disk.parsed("id", |text| DiskId::new(text).map_err(|error| error.to_string()));
    let id = disk.required("id", id);
    let path = disk.required_path("path");
    let listen = disk.parsed("listen", |text| text.parse::<Listen>().map_err(|error| error.to_string()));
    let listen = disk.required("listen", listen);
    let queue_bytes = disk.size("queue", QUEUE_BYTES_DEFAULT, QUEUE_BYTES_MIN..=64 << 30);
    Some(DiskConfig { id: id?, path: path?, listen: listen?, queue_bytes })
}

fn check_disks(reader: &mut Reader, disks: &[DiskConfig]) {
    let (mut ids, mut paths) = (BTreeSet::new(), BTreeSet::new());
    for disk in disks {
        if !ids.insert(disk.id.as_str()) {
            reader.mistake("disk", format_args!("two disks have the id {}", disk.id));
        }
        let path = std::fs::canonicalize(&disk.path).unwrap_or_else(|_| disk.path.clone());
        if !paths.insert(path) {
            reader.mistake("disk", format_args!("two disks have the path {}", disk.path.display()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_file_is_valid_but_for_the_files_it_names() {
        let error = Config::parse(Path::new("/nowhere/agent.toml"), DEFAULT_FILE).expect_err("no certificates there");
        assert_eq!(error.mistakes.len(), 3, "{error}");
        assert!(error.mistakes.iter().all(|mistake| mistake.contains("No such file")), "{error}");
    }

    #[test]
    fn a_small_file_takes_the_defaults() {
        let folder = tempfile::tempdir().expect("folder");
        for file in ["ca", "cert", "key"] {
            std::fs::write(folder.path().join(file), "").expect("file");
        }
        let path = folder.path().join("agent.toml");
        let text = "id = 'a1'\nstate_dir = 'state'\ngateways = ['localhost:9443']\n[tls]\nca = 'ca'\ncert = 'cert'\nkey = 'key'\n\
            [[disk]]\nid = 'd1'\npath = 'd1.img'\nlisten = 'unix:/run/d1.sock'\n";
        let config = Config::parse(&path, text).expect("valid");
        assert_eq!(config.state_dir, folder.path().join("state"));
        assert_eq!(config.barrier_interval, Duration::from_secs(5));
        assert_eq!(config.disks[0].queue_bytes, 64 << 20);
        assert_eq!((config.copy_rate_bytes, config.metrics_listen), (0, None), "nothing is served unasked");
        assert_eq!((config.transport, config.quic_retry), (Choice::Auto, Duration::from_secs(60)));
        assert_eq!(config.gateways, [Gateway::new("localhost:9443")]);
        assert_eq!((config.lost_after, config.return_after), (LOST_AFTER_ONE, Duration::from_secs(60)));
        let several = text.replace("['localhost:9443']", "['a:1', { address = 'b:2', weight = 3 }]");
        let several = format!("metrics_listen = '127.0.0.1:9445'\n{several}");
        let config = Config::parse(&path, &several).expect("valid");
        assert_eq!(config.gateways, [Gateway::new("a:1"), Gateway { address: "b:2".into(), weight: 3 }]);
        assert_eq!(config.lost_after, LOST_AFTER_SEVERAL);
        assert_eq!(config.metrics_listen, Some(([127, 0, 0, 1], 9445).into()));
    }

    #[test]
    fn every_mistake_is_named() {
        let text = "id = 'A!'\nbarrier_intervall = '5 s'\nlost_after = '1 ms'\nreturn_after = 'soon'\nmetrics_listen = 'here'\n\
            gateways = ['nohost', 'a:1', { address = 'a:1', weight = 0 }, { weigth = 2 }, 7, 'b:0']\n[copy]\nrate = '7'\n\
            [[disk]]\nid = 'd'\npath = 'x'\nlisten = 'nowhere'\n[[disk]]\nid = 'e'\npath = 'y'\nlisten = '127.0.0.1:1'\nqueue = '1 KiB'\n\
            [[disk]]\nid = 'e'\npath = 'y'\nlisten = '127.0.0.1:1'\n";
        let error = Config::parse(Path::new("/nowhere/agent.toml"), text).expect_err("mistakes");
        let shown = error.to_string();
        for part in [
            "id: ",
            "state_dir: is missing",
            "did you mean barrier_interval",
            "nohost",
            "gateways[2].weight",
            "a:1 stands twice",
            "gateways[3].address: is missing",
            "gateways[3].weigth: is not known; did you mean weight",
            "gateways: item 4",
            "\"b:0\" is no host:port",
            "lost_after: ",
            "return_after: ",
            "metrics_listen: \"here\" is no address",
            "tls.ca: is missing",
            "tls.cert: is missing",
            "tls.key: is missing",
            "copy.rate",
            "disk[0].listen",
            "disk[1].queue",
            "two disks have the id e",
            "two disks have the path",
        ] {
            assert!(shown.contains(part), "{part} is not in:\n{shown}");
        }
    }
}
