//! The gateway's configuration. Every bound of the daemon stands here or in `limits.rs`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::admin_names::{self, NAMES_MAX};
use super::bandwidth::calendar::Calendar;
use super::bandwidth::settings;
use crate::config::{ConfigError, Reader, show_size};
use crate::journal::{BackendChoice, JournalConfig};
use crate::limits;
use crate::pipeline::CodecChoice;
use crate::telemetry::traces::settings::Settings;
use crate::types::{check_name, parse_hex};
use crate::wire::endpoint::MTU_BYTES_DEFAULT;
use crate::wire::{REDIRECT_GATEWAYS_MAX, TlsFiles};

/// The commented default file, as `tidegate gateway --print-config` shows it.
pub const DEFAULT_FILE: &str = include_str!("../../deploy/gateway.toml");

const MIB: u64 = 1 << 20;
/// Pins of recipients: those that are, and those to come. More would be no pin.
const PINS_MAX: usize = 8;

/// Configuration of a gateway, checked.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// Name of this gateway.
    pub id: String,
    /// UDP address for agents.
    pub listen: SocketAddr,
    /// TCP address for agents that UDP does not reach, if there is one.
    pub listen_tcp: Option<SocketAddr>,
    /// Largest UDP payload that agents and this gateway may find out to fit the path.
    pub datagram_max_bytes: u16,
    /// TCP address for metrics and health.
    pub admin_listen: SocketAddr,
    /// Names by which it may be asked, beside those that the gateway knows by itself.
    pub admin_names: Vec<String>,
    /// Disks that have metrics of their own.
    pub disk_lines_max: u32,
    /// Bytes of data in flight that the process may hold.
    pub memory_bytes: u64,
    /// Time that a drain may take.
    pub drain_grace: Duration,
    /// Certificate authority, certificate and key.
    pub tls: TlsFiles,
    /// Where the vault is.
    pub vault_url: String,
    /// File of the catalog key.
    pub catalog_key: PathBuf,
    /// Age at which a batch is closed.
    pub batch_age: Duration,
    /// Pins of the recipients to whom lane keys may be wrapped; with none, whoever the vault names.
    pub recipients_pins: Vec<String>,
    /// Most batches in upload.
    pub upload_parallel_max: u16,
    /// Limit of one blob request.
    pub request_timeout: Duration,
    /// The journal.
    pub journal: JournalConfig,
    /// Compress and seal threads; 0 lets the feeder do their work, which a configuration file cannot ask for.
    pub pipeline_threads: u16,
    /// How messages are packed.
    pub codec: CodecChoice,
    /// Most agents connected.
    pub agents_max: u32,
    /// Disk streams above which agents are asked to go elsewhere.
    pub streams_target: u64,
    /// Largest credit window of one disk.
    pub window_bytes: u64,
    /// Gateways named to agents that are to leave.
    pub peers: Vec<String>,
    /// Limits of bandwidth, and when they count.
    pub bandwidth: Calendar,
    /// Where traces go, and which.
    pub traces: Settings,
}

impl GatewayConfig {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// [`ConfigError`] lists every mistake.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::read(Reader::load(path)?, path)
    }

    /// Reads a configuration from text; `path` names it and is what relative paths start from.
    ///
    /// # Errors
    /// As [`GatewayConfig::load`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        Self::read(Reader::parse(path, text)?, path)
    }

    fn read(mut reader: Reader, path: &Path) -> Result<Self, ConfigError> {
        let id = reader.parsed("id", |text| check_name(text).map(|()| text.to_owned()).map_err(|e| e.to_string()));
        let id = reader.required("id", id);
        let listen = address(&mut reader, "listen", "[::]:9443");
        let listen_tcp = read_listen_tcp(&mut reader, listen);
        let datagram_bytes = u64::from(MTU_BYTES_DEFAULT);
        let datagram_max_bytes = reader.number("datagram_max_bytes", datagram_bytes, 1200..=65_000) as u16;
        let admin_listen = address(&mut reader, "admin_listen", "127.0.0.1:9444");
        let admin_names = read_admin_names(&mut reader);
        let disk_lines_max = reader.number("disk_lines", 100, 0..=10_000) as u32;
        let memory_bytes = reader.size("memory", 512 * MIB, 128 * MIB..=1 << 40);
        let seconds = Duration::from_secs;
        let drain_grace = reader.duration("drain_grace", seconds(30), seconds(0)..=seconds(3600));
        let tls = reader.section("tls", read_tls);
        let vault = reader.section("vault", |vault| {
            let parallel = vault.number("upload_parallel_max", 8, 1..=256) as u16;
            let age = Duration::from_millis(limits::BATCH_AGE_MS_DEFAULT);
            let batch_age = vault.duration("batch_age", age, Duration::from_millis(50)..=seconds(60));
            let timeout = vault.duration("request_timeout", seconds(30), seconds(1)..=seconds(600));
            let pins = read_recipients_pins(vault);
            let (url, key) = (vault.required_text("url"), vault.required_path("catalog_key"));
            Some((url?, key?, batch_age, parallel, timeout, pins))
        });
        let journal = reader.section("journal", |journal| read_journal(journal, memory_bytes / 4));
        let (pipeline_threads, codec) = reader.section("pipeline", |pipeline| {
            let threads = pipeline.number("threads", 0, 0..=256) as u16;
            (threads, pipeline.parsed("codec", str::parse).unwrap_or_default())
        });
        let (agents_max, streams_target, window_bytes) = reader.section("session", |session| {
            let agents_max = session.number("agents_max", 20_000, 1..=1_000_000) as u32;
            let streams_target = session.number("streams_target", 20_000, 1..=1_000_000);
            (agents_max, streams_target, session.size("window", 4 * MIB, 2 * MIB..=64 * MIB))
        });
        let peers = read_peers(&mut reader);
        let bandwidth = reader.section("bandwidth", settings::read);
        let traces = Settings::read(&mut reader);
        reader.finish(path)?;
        let missing = || ConfigError { path: path.to_owned(), mistakes: vec!["a required value is missing".into()] };
        let (vault_url, catalog_key, batch_age, upload_parallel_max, request_timeout, recipients_pins) =
            vault.ok_or_else(missing)?;
        Ok(Self {
            id: id.ok_or_else(missing)?,
            listen,
            listen_tcp,
            datagram_max_bytes,
            admin_listen,
            admin_names,
            disk_lines_max,
            memory_bytes,
            drain_grace,
            tls: tls.ok_or_else(missing)?,
            vault_url,
            catalog_key,
            batch_age,
            recipients_pins,
            upload_parallel_max,
            request_timeout,
            journal: journal.ok_or_else(missing)?,
            pipeline_threads: if pipeline_threads == 0 { cores() } else { pipeline_threads },
            codec,
            agents_max,
            streams_target,
            window_bytes,
            peers,
            bandwidth,
            traces,
        })
    }

    /// The keys whose values count from a start only, and that are others in `new`. Those that are not named here are taken
    /// by [`super::live::Live`] or with the certificates.
    #[must_use]
    pub fn needs_restart(&self, new: &Self) -> Vec<&'static str> {
        // Every field is named, so that nobody adds one without a decision.
        let Self {
            id,
            listen,
            listen_tcp,
            datagram_max_bytes,
            admin_listen,
            admin_names: _,
            disk_lines_max,
            memory_bytes,
            drain_grace,
            tls: _,
            vault_url,
            catalog_key,
            batch_age,
            recipients_pins: _,
            upload_parallel_max,
            request_timeout,
            journal,
            pipeline_threads,
            codec,
            agents_max,
            streams_target: _,
            window_bytes: _,
            peers: _,
            bandwidth: _,
            traces,
        } = self;
        let changed = [
            ("id", *id != new.id),
            ("listen", *listen != new.listen),
            ("listen_tcp", *listen_tcp != new.listen_tcp),
            ("datagram_max_bytes", *datagram_max_bytes != new.datagram_max_bytes),
            ("admin_listen", *admin_listen != new.admin_listen),
            ("disk_lines", *disk_lines_max != new.disk_lines_max),
            ("memory", *memory_bytes != new.memory_bytes),
            ("drain_grace", *drain_grace != new.drain_grace),
            ("vault.url", *vault_url != new.vault_url),
            ("vault.catalog_key", *catalog_key != new.catalog_key),
            ("vault.batch_age", *batch_age != new.batch_age),
            ("vault.upload_parallel_max", *upload_parallel_max != new.upload_parallel_max),
            ("vault.request_timeout", *request_timeout != new.request_timeout),
            ("[journal]", JournalConfig { cache_bytes: new.journal.cache_bytes, ..journal.clone() } != new.journal),
            ("pipeline.threads", *pipeline_threads != new.pipeline_threads),
            ("pipeline.codec", *codec != new.codec),
            ("session.agents_max", *agents_max != new.agents_max),
            ("[telemetry]", *traces != new.traces),
        ];
        changed.into_iter().filter(|(_, changed)| *changed).map(|(key, _)| key).collect()
    }

    /// Takes what counts at once from `new`, and keeps the rest.
    pub fn take_live(&mut self, new: Self) {
        let Self { tls, admin_names, streams_target, window_bytes, peers, bandwidth, recipients_pins, .. } = new;
        self.recipients_pins = recipients_pins;
        (self.tls, self.streams_target, self.window_bytes) = (tls, streams_target, window_bytes);
        (self.admin_names, self.peers, self.bandwidth) = (admin_names, peers, bandwidth);
    }

    /// The quarter of the memory that each of journal cache, pipeline, uploads and sessions may hold.
    #[must_use]
    pub fn memory_quarter_bytes(&self) -> u64 {
        self.memory_bytes / 4
    }
}

fn cores() -> u16 {
    std::thread::available_parallelism().map_or(1, |n| n.get().min(256) as u16)
}

fn address(reader: &mut Reader, key: &str, default: &str) -> SocketAddr {
    let parse = |text: &str| text.parse::<SocketAddr>().map_err(|_| format!("{text:?} is no address: write host:port"));
    let given = reader.parsed(key, parse);
    // A default that does not parse would be a bug of this file, and the unspecified address its mildest outcome.
    given.or_else(|| parse(default).ok()).unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)))
}

fn read_admin_names(reader: &mut Reader) -> Vec<String> {
    let mut names = Vec::new();
    for text in reader.texts("admin_names") {
        match admin_names::read(&text) {
            Ok(name) => names.push(name),
            Err(wrong) => reader.mistake("admin_names", wrong),
        }
    }
    if names.len() > NAMES_MAX {
        reader.mistake("admin_names", format_args!("{} names: list at most {NAMES_MAX}", names.len()));
    }
    names
}

fn read_tls(tls: &mut Reader) -> Option<TlsFiles> {
    let (ca, cert, key) = (tls.required_path("ca"), tls.required_path("cert"), tls.required_path("key"));
    Some(TlsFiles { ca: ca?, cert: cert?, key: key? })
}

fn read_recipients_pins(vault: &mut Reader) -> Vec<String> {
    let pins = vault.texts("recipients_pin");
    for pin in pins.iter().filter(|pin| parse_hex::<32>(pin).is_none()) {
        vault.mistake(
            "recipients_pin",
            format_args!("{pin:?} is no pin: `tidegate vault recipients list` shows it, 64 hexadecimal digits"),
        );
    }
    if pins.len() > PINS_MAX {
        vault.mistake("recipients_pin", format_args!("{} pins: list at most {PINS_MAX}", pins.len()));
    }
    pins.iter().map(|pin| pin.to_ascii_lowercase()).collect()
}

fn read_listen_tcp(reader: &mut Reader, listen: SocketAddr) -> Option<SocketAddr> {
    let listen_tcp = reader.parsed("listen_tcp", |text| match text {
        "same" => Ok(Some(listen)),
        "off" => Ok(None),
        text => text
            .parse()
            .map(Some)
            .map_err(|_| format!("{text:?} is no address: write host:port, \"same\" for that of `listen`, or \"off\"")),
    });
    listen_tcp.unwrap_or(Some(listen))
}

fn read_peers(reader: &mut Reader) -> Vec<String> {
    let peers = reader.texts("peers");
    for peer in &peers {
        let port = peer.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
        if !matches!(port, Some(Ok(1..))) {
            reader.mistake("peers", format_args!("{peer:?} is no host:port"));
        }
    }
    if peers.len() > REDIRECT_GATEWAYS_MAX {
        reader.mistake("peers", format_args!("{} gateways: list at most {REDIRECT_GATEWAYS_MAX}", peers.len()));
    }
    peers
}

fn read_journal(journal: &mut Reader, cache_bytes: u64) -> Option<JournalConfig> {
    let dir = journal.required_path("dir");
    let shards = journal.number("shards", 1, 1..=64) as u16;
    let capacity_bytes = journal.size("capacity", 16 << 30, 64 * MIB..=1 << 50);
    let segment_bytes = journal.size("segment", limits::SEGMENT_BYTES_DEFAULT, 16 * MIB..=1 << 30);
    let high_water_percent = journal.number("high_water_percent", 80, 10..=95) as u8;
    let low_water_percent = journal.number("low_water_percent", 60, 5..=94) as u8;
    let backend = journal
        .parsed("backend", |text| match text {
            "auto" => Ok(BackendChoice::Auto),
            "ring" => Ok(BackendChoice::Ring),
            "std" => Ok(BackendChoice::Std),
            _ => Err(format!("{text:?} is no backend: auto, ring or std")),
        })
        .unwrap_or(BackendChoice::Auto);
    if low_water_percent >= high_water_percent {
        journal.mistake("low_water_percent", "must be less than high_water_percent");
    }
    if !segment_bytes.is_multiple_of(limits::BLOCK_BYTES as u64) {
        journal.mistake("segment", format_args!("must be a multiple of {} bytes", limits::BLOCK_BYTES));
    }
    if capacity_bytes < 4 * u64::from(shards) * segment_bytes {
        let least = show_size(4 * u64::from(shards) * segment_bytes);
        journal.mistake("capacity", format_args!("must hold four segments per shard: at least {least}"));
    }
    Some(JournalConfig {
        dir: dir?,
        shards,
        capacity_bytes,
        segment_bytes,
        high_water_percent,
        low_water_percent,
        cache_bytes,
        backend,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<GatewayConfig, ConfigError> {
        let path = Path::new("/etc/tidegate/gateway.toml");
        GatewayConfig::read(Reader::parse(path, text)?, path)
    }

    #[test]
    fn the_printed_default_file_is_valid_and_equals_the_defaults() {
        let config = read(DEFAULT_FILE).expect("default file is valid");
        let mut short = String::from("id = 'gw1'\n[tls]\nca='a'\ncert='b'\nkey='c'\n[vault]\nurl='file:///v'\n");
        short.push_str("catalog_key='k'\n[journal]\ndir='/j'\n");
        let bare = read(&short).expect("short file is valid");
        assert_eq!(config.listen, bare.listen);
        assert_eq!(config.listen_tcp, Some(config.listen));
        assert_eq!(config.listen_tcp, bare.listen_tcp);
        assert_eq!(config.datagram_max_bytes, bare.datagram_max_bytes);
        assert_eq!(config.memory_bytes, bare.memory_bytes);
        assert_eq!(config.drain_grace, bare.drain_grace);
        assert_eq!(config.batch_age, bare.batch_age);
        assert_eq!(config.upload_parallel_max, bare.upload_parallel_max);
        assert_eq!(config.request_timeout, bare.request_timeout);
        assert_eq!(config.journal.capacity_bytes, bare.journal.capacity_bytes);
        assert_eq!(config.journal.segment_bytes, bare.journal.segment_bytes);
        assert_eq!(config.agents_max, bare.agents_max);
        assert_eq!(config.streams_target, bare.streams_target);
        assert_eq!((config.peers, config.admin_names), (bare.peers, bare.admin_names));
        assert_eq!(config.window_bytes, bare.window_bytes);
        assert_eq!((config.codec, bare.codec), (CodecChoice::default(), CodecChoice::default()));
        assert_eq!((config.traces, bare.traces), (Settings::default(), Settings::default()));
    }

    #[test]
    fn what_needs_a_restart_is_named_and_what_does_not_is_taken() {
        let mut running = read(DEFAULT_FILE).expect("valid");
        let new = read(
            &DEFAULT_FILE
                .replace("memory = \"512 MiB\"", "memory = \"1 GiB\"")
                .replace("capacity = \"16 GiB\"", "capacity = \"32 GiB\"")
                .replace("window = \"4 MiB\"", "window = \"8 MiB\"")
                .replace("peers = []", "peers = [\"gw2:9443\"]")
                .replace("recipients_pin = []", &format!("recipients_pin = [{:?}]", "A5".repeat(32)))
                .replace("#upload_max = \"200 MiB/s\"", "upload_max = \"200 MiB/s\""),
        );
        let new = new.expect("valid");
        assert_eq!(running.needs_restart(&running.clone()), Vec::<&str>::new());
        // The journal's part of the memory is none of its keys.
        assert_eq!(running.needs_restart(&new), ["memory", "[journal]"]);
        let only_memory = read(&DEFAULT_FILE.replace("memory = \"512 MiB\"", "memory = \"1 GiB\"")).expect("valid");
        assert_eq!(running.needs_restart(&only_memory), ["memory"]);
        running.take_live(new.clone());
        assert_eq!((running.window_bytes, &running.peers, &running.bandwidth), (8 << 20, &new.peers, &new.bandwidth));
        assert_eq!(running.recipients_pins, ["a5".repeat(32)]);
        assert_ne!(running.bandwidth, Calendar::default());
        assert_eq!(running.needs_restart(&new), ["memory", "[journal]"], "told again as long as it is so");
    }

    #[test]
    fn tcp_is_off_or_elsewhere_if_the_file_says_so() {
        let with = |line: &str| read(&format!("{line}\n{DEFAULT_FILE}").replace("\nlisten_tcp = \"same\"", ""));
        assert_eq!(with("listen_tcp = 'off'").expect("valid").listen_tcp, None);
        let elsewhere = with("listen_tcp = '127.0.0.1:443'").expect("valid").listen_tcp;
        assert_eq!(elsewhere, Some(SocketAddr::from(([127, 0, 0, 1], 443))));
        assert!(with("listen_tcp = 'yes'").expect_err("a mistake").to_string().contains("listen_tcp"));
    }

    #[test]
    fn every_mistake_of_a_file_is_named_in_one_go() {
        let text = "id='Bad Name'\nlisten='nowhere'\nadmin_names=['gw1:9444']\ndatagram_max_bytes=900\nmemory='1 MiB'\npeers=['gw2:9443', 'gw3']\n[vault]\nrecipients_pin=['abc']\n[pipeline]\ncodec='zstd:20'\n\
                    [journal]\ncapacity='64 MiB'\nhigh_water_percent=50\n";
        let error = read(text).expect_err("many mistakes").to_string();
        for part in [
            "id:",
            "listen:",
            "admin_names: \"gw1:9444\" is no host name",
            "datagram_max_bytes: expected a whole number from 1200 to 65000",
            "memory:",
            "\"gw3\" is no host:port",
            "tls.ca",
            "tls.cert",
            "tls.key",
            "vault.url",
            "vault.recipients_pin: \"abc\" is no pin",
            "vault.catalog_key",
            "journal.dir",
            "journal.capacity",
            "journal.low_water_percent",
            "pipeline.codec: \"zstd:20\" is no codec",
        ] {
            assert!(error.contains(part), "{part} is not named in: {error}");
        }
    }
}
