//! A real Prometheus with the rules as they are delivered, in a hurry.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;

use serde_json::Value;
use tidegate::cli::quickstart::child::{Child, Family, free_port, http_get};

use crate::common::{Scene, Setting};

/// The rules as they are delivered.
pub const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/prometheus/tidegate.rules.yml");

/// What would take an hour, in seconds: objectives, waits and spans. The rest of the rules is as delivered.
const HURRIED: [(&str, &str); 10] = [
    ("[1h]", "[20s]"),
    ("tidegate_disks_rpo_max_seconds > 60", "tidegate_disks_rpo_max_seconds > 12"),
    ("tidegate_disks_rpo_max_seconds > 900", "tidegate_disks_rpo_max_seconds > 20"),
    ("tidegate_journal_drained_in_seconds > 1800", "tidegate_journal_drained_in_seconds > 8"),
    ("tidegate_journal_drained_in_seconds > 2700", "tidegate_journal_drained_in_seconds > 12"),
    ("[15m]", "[20s]"),
    ("[5m]", "[10s]"),
    ("[1h:1m]", "[40s:1s]"),
    // What a gateway that fills every bound of a small memory holds for sure; more than that would be a bug.
    ("tidegate:memory_used:ratio > 0.80", "tidegate:memory_used:ratio > 0.40"),
    ("tidegate:memory_used:ratio > 0.95", "tidegate:memory_used:ratio > 0.45"),
];

/// Shares of one processor in the place of shares of all: what a gateway that stands still does not use, and one that
/// carries a load does, however many processors the machine has.
const PROCESSORS: [(&str, f64); 2] = [("0.80", 0.10), ("0.95", 0.12)];

/// The rules, hurried.
fn rules() -> String {
    let processors = std::thread::available_parallelism().unwrap().get() as f64;
    let rules = std::fs::read_to_string(RULES).unwrap();
    let mut hurried = String::new();
    for line in rules.lines() {
        let waits = line.trim_start().starts_with("for: ");
        hurried += if waits { "        for: 2s" } else { line };
        hurried.push('\n');
    }
    for (as_delivered, in_a_hurry) in HURRIED {
        assert!(hurried.contains(as_delivered), "the rules have no {as_delivered} any more");
        hurried = hurried.replace(as_delivered, in_a_hurry);
    }
    for (of_all, of_one) in PROCESSORS {
        let as_delivered = format!("tidegate:processors_used:ratio > {of_all}");
        assert!(hurried.contains(&as_delivered), "the rules have no {as_delivered} any more");
        let in_a_hurry = format!("tidegate:processors_used:ratio > {:.5}", of_one / processors);
        hurried = hurried.replace(&as_delivered, &in_a_hurry);
    }
    hurried
}

/// Metrics that are there once something has happened, and states that nobody is in.
const EVENTS: [&str; 10] = [
    "tidegate_disk_anomaly_begin_timestamp_seconds",
    "tidegate_bandwidth_limit_bytes_per_second",
    "tidegate_runs_retired_total",
    "tidegate_refused_total",
    "tidegate_redirects_total",
    "tidegate_blob_retries_total",
    "tidegate_pipeline_skipped_messages_total",
    "tidegate_journal_full_in_seconds",
    "tidegate_journal_drained_in_seconds",
    "tidegate_nbd_errors_total",
];

/// Lines that give an agent a page, and its address.
pub fn agent_page() -> (Setting, SocketAddr) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port(false).unwrap()));
    let agent = vec![("", format!("metrics_listen = \"{address}\""))];
    (Setting { agent, ..Setting::default() }, address)
}

/// The running Prometheus.
pub struct Prometheus {
    pub child: Child,
    address: SocketAddr,
    agent: Option<SocketAddr>,
    /// Alerts that were seen quiet, and have not been waited for since.
    quiet: RefCell<BTreeSet<String>>,
    fired: RefCell<BTreeSet<String>>,
    ended: RefCell<BTreeSet<String>>,
}

impl Prometheus {
    /// Scrapes the gateway, the agent's page if it has one, and the files in `files` as node-exporter would show them.
    pub fn start(scene: &Scene, agent: Option<SocketAddr>) -> Self {
        let dir = scene.dir().join("prometheus");
        let files = dir.join("files");
        std::fs::create_dir_all(&files).unwrap();
        std::fs::write(dir.join("rules.yml"), rules()).unwrap();
        let mut config = String::from(
            "global: { scrape_interval: 1s, evaluation_interval: 1s }\nrule_files: [rules.yml]\nscrape_configs:\n",
        );
        let node = Some(("node", collector(files)));
        let gateway = Some(("tidegate", scene.site.admin_address()));
        let agents = agent.map(|address| ("tidegate-agent", address));
        for (job, address) in [gateway, agents, node].into_iter().flatten() {
            config += &format!("  - job_name: {job}\n    static_configs: [{{ targets: [\"{address}\"] }}]\n");
        }
        let file = dir.join("prometheus.yml");
        std::fs::write(&file, config).unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port(false).unwrap()));
        let arguments = [
            format!("--config.file={}", file.display()),
            format!("--storage.tsdb.path={}", dir.join("data").display()),
            format!("--web.listen-address={address}"),
        ];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let log = dir.join("log");
        let child = Child::start("prometheus", &Family::default(), &log, Path::new("prometheus"), &arguments).unwrap();
        let [quiet, fired, ended] = [const { RefCell::new(BTreeSet::new()) }; 3];
        Self { child, address, agent, quiet, fired, ended }
    }

    /// A file for the collector.
    pub fn file(scene: &Scene, name: &str) -> String {
        scene.dir().join("prometheus/files").join(name).display().to_string()
    }

    /// The alerts that fire; none if it does not answer in time, which says nothing of them.
    pub fn firing(&self) -> Option<Vec<String>> {
        self.alerts(|state| state == "firing")
    }

    fn alerts(&self, wanted: impl Fn(&str) -> bool) -> Option<Vec<String>> {
        let (_, page) = http_get(self.address, "/api/v1/alerts").ok()?;
        let answer: Value = serde_json::from_str(&page).ok()?;
        let alerts = answer["data"]["alerts"].as_array()?.iter();
        let alerts = alerts.filter(|alert| alert["state"].as_str().is_some_and(&wanted));
        Some(alerts.filter_map(|alert| Some(alert["labels"]["alertname"].as_str()?.to_owned())).collect())
    }

    fn fires(&self, name: &str) -> Option<bool> {
        Some(self.firing()?.iter().any(|alert| alert == name))
    }

    /// Makes `cause` when none of these fires or is about to, and waits until all do: so nothing else made them.
    pub fn cause<T>(&self, scene: &mut Scene, names: &[&str], cause: impl FnOnce(&mut Scene) -> T) -> T {
        self.wait_quiet(scene, names);
        let caused = cause(scene);
        self.wait_firing(scene, names);
        caused
    }

    /// Waits until none of these fires or is about to: before their cause is made.
    pub fn wait_quiet(&self, scene: &mut Scene, names: &[&str]) {
        for name in names {
            let stirs = || Some(self.alerts(|_| true)?.iter().any(|alert| alert == name));
            scene.wait(&format!("{name} to be quiet before its cause is made"), |_| stirs() == Some(false));
            self.quiet.borrow_mut().insert((*name).to_owned());
        }
    }

    /// Waits until all of these fire, which were quiet before their cause was made.
    pub fn wait_firing(&self, scene: &mut Scene, names: &[&str]) {
        for name in names {
            assert!(
                self.quiet.borrow_mut().remove(*name),
                "nobody knows whether {name} fired before its cause was made"
            );
            scene.wait(&format!("{name} to fire"), |_| self.fires(name) == Some(true));
            println!("{name} fires");
            self.fired.borrow_mut().insert((*name).to_owned());
        }
    }

    /// Waits until none of these fires any more.
    pub fn wait_clear(&self, scene: &mut Scene, names: &[&str]) {
        for name in names {
            assert!(self.fired.borrow().contains(*name), "{name} has not fired");
            scene.wait(&format!("{name} to clear"), |_| self.fires(name) == Some(false));
            println!("{name} is over");
            self.ended.borrow_mut().insert((*name).to_owned());
        }
    }

    /// Fails unless each alert of `lists`, and no other that was waited for, has fired and ended.
    pub fn assert_seen(&self, lists: &[&[&str]]) {
        let wanted: BTreeSet<String> =
            lists.iter().flat_map(|list| list.iter().map(|name| (*name).to_owned())).collect();
        assert_eq!(*self.fired.borrow(), wanted, "these were to fire");
        assert_eq!(*self.ended.borrow(), wanted, "these were to end");
    }

    /// The queries of the boards that give nothing, but for those of events that have not happened.
    pub fn without_data(&self, scene: &Scene) -> Vec<String> {
        let boards = Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboards/boards");
        let mut without = Vec::new();
        for file in std::fs::read_dir(boards).unwrap().flatten() {
            let board: toml::Table = toml::from_str(&std::fs::read_to_string(file.path()).unwrap()).unwrap();
            let of_agent = board.get("agent").is_some_and(|agent| agent.as_bool() == Some(true));
            let instance = if of_agent { self.agent.unwrap() } else { scene.site.admin_address() }.to_string();
            let rows = board["row"].as_array().unwrap();
            let panels = rows.iter().flat_map(|row| row["panel"].as_array().unwrap());
            let queries = panels.flat_map(|panel| panel["query"].as_array().unwrap());
            let expressions = queries.map(|query| query["expr"].as_str().unwrap());
            let wanted = expressions.filter(|expr| !EVENTS.iter().any(|event| expr.contains(event)));
            let asked = wanted.map(|expr| expr.replace("$instance", &instance));
            without.extend(asked.filter(|expr| !self.has_data(expr)));
        }
        without
    }

    /// Whether a query gives something.
    pub fn has_data(&self, expr: &str) -> bool {
        let encoded: String = expr.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let page = http_get(self.address, &format!("/api/v1/query?query={encoded}")).unwrap_or_default().1;
        let answer: Value = serde_json::from_str(&page).unwrap_or_default();
        assert_ne!(answer["status"], "error", "{expr}: {page}");
        answer["data"]["result"].as_array().is_some_and(|result| !result.is_empty())
    }

    /// Whether it has scraped the gateway.
    pub fn sees(&self) -> bool {
        self.has_data("tidegate_build_info")
    }
}

/// Shows the files of a folder as node-exporter's textfile collector does: all of them as one page. Ends with the process.
fn collector(folder: std::path::PathBuf) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let files = std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|file| file.path());
            let read = files.filter(|path| path.extension().is_some_and(|ending| ending == "prom"));
            let page: String = read.filter_map(|path| std::fs::read_to_string(path).ok()).collect();
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close\r\n";
            let _ = write!(stream, "{head}Content-Length: {}\r\n\r\n{page}", page.len());
        }
    });
    address
}
