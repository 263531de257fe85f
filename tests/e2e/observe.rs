//! What a gateway says of itself while things go well and while they do not.

mod alerts;
mod copies;
mod machine;
mod prometheus;
mod store;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use loadgen::sink::{Account, Limits, Sink, Weather};
use serde_json::Value;
use tidegate::cli::quickstart::child::{metric, wait_until};

use self::prometheus::{Prometheus, agent_page};
use crate::common::{Scene, Setting, empty, tidegate, turn};
use crate::export::Running;

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

#[test]
fn a_real_prometheus_has_data_for_every_query_fires_for_a_store_that_is_gone_and_clears_after() {
    let _turn = turn();
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let sink = Sink::start(any, None, Account::default(), Limits::default(), Weather::default()).unwrap();
    let vault = Some(sink.vault_url("alerted"));
    let (setting, page) = agent_page();
    let mut scene = Scene::new(Setting { vault, ..setting }, &["disk1"], empty(DISK_BYTES));
    scene.wait_copied("disk1");
    let mut prometheus = Prometheus::start(&scene, Some(page));
    scene.wait("Prometheus to scrape", |_| prometheus.sees());
    let load = scene.load("disk1", 52, 4);
    scene.write_more(&load, 4 << 20);
    scene.keep("disk1", "kept", Some(&load));
    scene.wait_vaulted();
    tell_runs(&scene);
    let export = tell_export(&scene);
    wait_until(Duration::from_secs(30), || prometheus.without_data(&scene).is_empty());
    assert_eq!(prometheus.without_data(&scene), Vec::<String>::new(), "every query of the boards has data");
    export.terminate(0);
    let mut firing = None;
    scene.wait("Prometheus to answer", |_| {
        firing = prometheus.firing();
        firing.is_some()
    });
    firing.iter_mut().for_each(|names| names.retain(|name| !name.contains("Processors")));
    assert_eq!(firing, Some(Vec::new()), "all is well");

    prometheus.cause(&mut scene, &["TidegateBehind"], |_| sink.set(Weather { away: true, ..Weather::default() }));
    sink.set(Weather::default());
    drop(load);
    prometheus.wait_clear(&mut scene, &["TidegateBehind"]);
    prometheus.child.kill().unwrap();
}

/// An export that keeps its file, with a copy, which is made at once.
fn tell_export(scene: &Scene) -> Running {
    let (file, target) = (Prometheus::file(scene, "export.prom"), scene.dir().join("copied.img").display().to_string());
    let listen = format!("unix:{}", scene.dir().join("export.sock").display());
    let arguments = ["--disk", "disk1", "--listen", &listen, "--hydrate", &target, "--metrics-file", &file];
    let mut running = Running::start(scene, scene.site.vault_url(), &arguments);
    running.event("whole");
    running
}

/// A verification, a restore, a drill and a run of the keeper that leave their files.
fn tell_runs(scene: &Scene) {
    let (vault, identity) = (scene.site.vault_url(), scene.site.identity().display().to_string());
    let from = ["--vault", vault, "--identity", &identity, "--metrics-file"];
    let (nightly, drill) = (Prometheus::file(scene, "nightly.prom"), Prometheus::file(scene, "drill.prom"));
    let target = scene.dir().join("drilled.img").display().to_string();
    let (rehearsed, rehearsal) = (Prometheus::file(scene, "rehearsal.prom"), scene.dir().display().to_string());
    let (config, retention) = (scene.dir().join("keeper.toml"), Prometheus::file(scene, "retention.prom"));
    let policy = format!("[vault]\nurl = {vault:?}\ncatalog_key = 'catalog.key'\n[policy]\nevery = '24 h'\n");
    std::fs::write(&config, policy).unwrap();
    let (config, state) = (config.display().to_string(), scene.dir().join("verify.state").display().to_string());
    let runs = [
        [&["drill"], &from[..], &[&rehearsed, "--disk", "disk1", "--dir", &rehearsal]].concat(),
        [&["keeper", "once", "--config", &config, "--metrics-file"], &[retention.as_str()][..]].concat(),
        [&["verify"], &from[..], &[&nightly, "--state", &state]].concat(),
        [&["restore"], &from[..], &[&drill, "--disk", "disk1", "--to", &target]].concat(),
    ];
    for run in runs {
        let (code, out, err) = tidegate(&run);
        assert_eq!(code, 0, "{run:?}: {out}{err}");
    }
}
