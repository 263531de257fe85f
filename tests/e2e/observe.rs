//! What a gateway says of itself while things go well and while they do not.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use loadgen::sink::{Account, Limits, Sink, Weather};
use serde_json::Value;
use tidegate::cli::quickstart::child::{Child, Family, free_port, http_get, metric, wait_until};

use crate::common::{Scene, Setting, empty, tidegate, turn};

const DISK_BYTES: u64 = 64 << 20;

fn answer(scene: &Scene, path: &str) -> Value {
    serde_json::from_str(&scene.site.admin(path).unwrap_or_default()).unwrap_or_default()
}

fn rpo_max(scene: &Scene) -> f64 {
    metric(&scene.site.admin("/metrics").unwrap(), "tidegate_disks_rpo_max_seconds")
}

#[test]
fn disks_that_fall_behind_show_how_far_and_that_they_have_caught_up() {
    let _turn = turn();
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let sink = Sink::start(any, None, Account::default(), Limits::default(), Weather::default()).unwrap();
    let vault = Some(sink.vault_url("observed"));
    let mut scene = Scene::new(Setting { vault, ..Setting::default() }, &["disk1", "disk2"], empty(DISK_BYTES));
    scene.wait_copied("disk1");
    scene.wait_copied("disk2");
    let load = scene.load("disk1", 51, 4);
    scene.write_more(&load, 4 << 20);
    let protected = |scene: &Scene| {
        let disks = answer(scene, "/v1/disks");
        disks.as_array().is_some_and(|all| all.len() == 2 && all.iter().all(|disk| disk["condition"] == "protected"))
    };
    scene.wait("both disks to be told of as protected", protected);
    let agents = answer(&scene, "/v1/agents");
    assert_eq!(agents[0]["disks"].as_array().map(Vec::len), Some(2), "{agents}");

    sink.set(Weather { away: true, ..Weather::default() });
    scene.wait("the age of what is not vaulted to grow", |scene| rpo_max(scene) > 12.0);
    let status = answer(&scene, "/v1/status");
    assert_eq!(status["worst"][0], "disk1", "{status}");
    assert_eq!((&status["ready"], &status["agents"]), (&Value::Bool(true), &Value::from(1)), "{status}");
    let config = scene.site.path("gateway.toml");
    let (code, shown, _) = tidegate(&["status", "--config", config.to_str().unwrap()]);
    assert!(code == 0 && shown.contains("2 protected") && shown.contains("disk1"), "{code}: {shown}");
    let page = scene.site.admin("/metrics").unwrap();
    assert!(page.contains("tidegate_disk_rpo_seconds{disk=\"disk1\"}"), "{page}");
    assert!(metric(&page, "tidegate_disks_unvaulted_bytes") > 0.0, "{page}");
    for name in
        ["process_resident_memory_bytes", "process_cpu_seconds_total", "tidegate_certificate_ends_timestamp_seconds"]
    {
        assert!(metric(&page, name) > 0.0, "{name} in\n{page}");
    }

    sink.set(Weather::default());
    drop(load);
    scene.wait("everything to be vaulted and told", |scene| rpo_max(scene) == 0.0);
    let agent = scene.agent.take().unwrap();
    drop(agent);
    scene.wait("the disks to count as away", |scene| {
        answer(scene, "/v1/disks").as_array().is_some_and(|all| all.iter().all(|disk| disk["condition"] == "away"))
    });
}

/// Metrics that are there once something has happened, and states that this gateway is not in.
const EVENTS: [&str; 9] = [
    "tidegate_bandwidth_limit_bytes_per_second",
    "tidegate_conflicts_total",
    "tidegate_runs_retired_total",
    "tidegate_refused_total",
    "tidegate_redirects_total",
    "tidegate_blob_retries_total",
    "tidegate_pipeline_skipped_messages_total",
    "tidegate_journal_full_in_seconds",
    "tidegate_journal_drained_in_seconds",
];

/// A real Prometheus with the rules as they are delivered, but for the objective and the times, which would take an hour.
struct Prometheus {
    child: Child,
    address: SocketAddr,
}

impl Prometheus {
    fn start(scene: &Scene) -> Self {
        let dir = scene.dir().join("prometheus");
        std::fs::create_dir(&dir).unwrap();
        let rules =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/prometheus/tidegate.rules.yml"));
        let hurried: String = (rules.unwrap().lines())
            .map(|line| match line.trim_start() {
                wait if wait.starts_with("for: ") => "        for: 2s\n".to_owned(),
                "expr: tidegate_disks_rpo_max_seconds > 60" => line.replace("60", "12") + "\n",
                _ => line.to_owned() + "\n",
            })
            .collect();
        std::fs::write(dir.join("rules.yml"), hurried).unwrap();
        let gateway = scene.site.admin_address();
        let config = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\nrule_files: [rules.yml]\nscrape_configs:\n  \
             - job_name: tidegate\n    static_configs: [{{ targets: [\"{gateway}\"] }}]\n"
        );
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
        Self { child, address }
    }

    /// The alerts that fire.
    fn firing(&self) -> Vec<String> {
        let page = http_get(self.address, "/api/v1/alerts").map(|(_, body)| body).unwrap_or_default();
        let answer: Value = serde_json::from_str(&page).unwrap_or_default();
        let alerts = answer["data"]["alerts"].as_array().cloned().unwrap_or_default();
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        firing.filter_map(|alert| Some(alert["labels"]["alertname"].as_str()?.to_owned())).collect()
    }

    fn fires(&self, name: &str) -> bool {
        self.firing().iter().any(|alert| alert == name)
    }

    /// The queries of the boards that give nothing, but for those of events that have not happened.
    fn without_data(&self, scene: &Scene) -> Vec<String> {
        let boards = Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboards/boards");
        let texts =
            std::fs::read_dir(boards).unwrap().flatten().map(|file| std::fs::read_to_string(file.path()).unwrap());
        let tables: Vec<toml::Table> = texts.map(|text| toml::from_str(&text).unwrap()).collect();
        let rows = tables.iter().flat_map(|board| board["row"].as_array().unwrap());
        let panels = rows.flat_map(|row| row["panel"].as_array().unwrap());
        let queries = panels.flat_map(|panel| panel["query"].as_array().unwrap());
        let expressions = queries.map(|query| query["expr"].as_str().unwrap());
        let instance = scene.site.admin_address().to_string();
        let wanted = expressions.filter(|expr| !EVENTS.iter().any(|event| expr.contains(event)));
        let asked = wanted.map(|expr| expr.replace("$instance", &instance));
        asked.filter(|expr| !self.has_data(expr)).collect()
    }

    fn has_data(&self, expr: &str) -> bool {
        let encoded: String = expr.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let page = http_get(self.address, &format!("/api/v1/query?query={encoded}")).unwrap_or_default().1;
        let answer: Value = serde_json::from_str(&page).unwrap_or_default();
        assert_ne!(answer["status"], "error", "{expr}: {page}");
        answer["data"]["result"].as_array().is_some_and(|result| !result.is_empty())
    }

    /// Whether it has scraped the gateway.
    fn sees(&self) -> bool {
        let query = "/api/v1/query?query=tidegate_build_info";
        http_get(self.address, query).is_ok_and(|(_, body)| body.contains("\"version\""))
    }
}

#[test]
fn a_real_prometheus_fires_for_a_store_and_a_gateway_that_are_gone_and_clears_after() {
    let _turn = turn();
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let sink = Sink::start(any, None, Account::default(), Limits::default(), Weather::default()).unwrap();
    let vault = Some(sink.vault_url("alerted"));
    let mut scene = Scene::new(Setting { vault, ..Setting::default() }, &["disk1"], empty(DISK_BYTES));
    scene.wait_copied("disk1");
    let mut prometheus = Prometheus::start(&scene);
    scene.wait("Prometheus to scrape", |_| prometheus.sees());
    let load = scene.load("disk1", 52, 4);
    scene.write_more(&load, 4 << 20);
    assert_eq!(prometheus.firing(), Vec::<String>::new(), "all is well");
    wait_until(Duration::from_secs(30), || prometheus.without_data(&scene).is_empty());
    assert_eq!(prometheus.without_data(&scene), Vec::<String>::new(), "every query of the boards has data");

    sink.set(Weather { away: true, ..Weather::default() });
    scene.wait("TidegateBehind to fire", |_| prometheus.fires("TidegateBehind"));
    sink.set(Weather::default());
    drop(load);
    scene.wait("TidegateBehind to clear", |_| !prometheus.fires("TidegateBehind"));

    scene.gateway.take().unwrap().kill().unwrap();
    scene.wait("TidegateGatewayDown to fire", |_| prometheus.fires("TidegateGatewayDown"));
    scene.gateway = Some(scene.site.start_gateway().unwrap());
    scene.wait("TidegateGatewayDown to clear", |_| !prometheus.fires("TidegateGatewayDown"));
    prometheus.child.kill().unwrap();
}
