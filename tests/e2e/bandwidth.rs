//! Limits of bandwidth against a real store: what is let through on average, what waits and where, and changes at once.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use loadgen::sink::{Account, Limits, Sink, Weather};
use serde_json::Value;
use tidegate::cli::quickstart::child::{free_port, metric, wait_until};
use tidegate::flow::{Clock as _, SystemClock};

use crate::common::proxy::Proxy;
use crate::common::{Scene, Setting, empty, succeed, tidegate, turn_alone};
use crate::memory::{BASE_BYTES, peak_bytes};

const MEMORY: u64 = 128 << 20;
const DISK_BYTES: u64 = 256 << 20;
/// More than the limits let through.
const MIB_PER_SECOND: u64 = 24;
const LIMIT: u64 = 4 << 20;
/// Batches between the first and the last of a measurement.
const BATCHES: u64 = 5;

fn limits(scene: &Scene) -> Value {
    serde_json::from_str(&scene.site.admin("/v1/bandwidth").unwrap_or_default()).unwrap_or_default()
}

/// Bytes per second that arrive at the store, from the arrival of one batch to that of a later one.
fn measured(scene: &mut Scene, sink: &Sink) -> f64 {
    let clock = SystemClock::new();
    let edge = |scene: &mut Scene, after: u64| {
        scene.wait("another batch at the store", |_| sink.counts().stored_bytes > after + (1 << 20));
        (sink.counts().stored_bytes, clock.monotonic())
    };
    let (first, began) = {
        let before = sink.counts().stored_bytes;
        edge(scene, before)
    };
    let (mut last, mut ended) = (first, began);
    for _ in 0..BATCHES {
        (last, ended) = edge(scene, last);
    }
    (last - first) as f64 / (ended - began).as_secs_f64()
}

#[test]
fn uploads_are_held_to_their_limit_on_average_as_backpressure_and_changes_count_at_once() {
    let _turn = turn_alone();
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let sink = Sink::start(any, None, Account::default(), Limits::default(), Weather::default()).unwrap();
    let gateway = vec![
        ("", format!("memory = \"{} MiB\"", MEMORY >> 20)),
        ("journal", "capacity = \"256 MiB\"\nsegment = \"16 MiB\"".into()),
        ("pipeline", "codec = \"none\"".into()),
        ("bandwidth", format!("upload_max = \"{} MiB/s\"", LIMIT >> 20)),
    ];
    let vault = Some(sink.vault_url("paced"));
    let mut scene = Scene::new(Setting { vault, gateway, ..Setting::default() }, &["disk1"], empty(DISK_BYTES));
    let config = scene.site.path("gateway.toml").display().to_string();
    let bandwidth = |more: &[&str]| tidegate(&[&["bandwidth"], more, &["--config", &config]].concat());
    let load = scene.load("disk1", 95, MIB_PER_SECOND);
    scene.wait("the limit to hold something up", |scene| limits(scene)[0]["holds"] == true);

    let ratio = measured(&mut scene, &sink) / LIMIT as f64;
    println!("at a limit of {} MiB/s: {ratio:.3} of it", LIMIT >> 20);
    assert!((0.9..=1.05).contains(&ratio), "{ratio} of the limit");
    // What waits stands in the journal, then with the agent; and it is told why.
    scene.wait("the journal to fill", |scene| {
        metric(&scene.site.admin("/metrics").unwrap_or_default(), "tidegate_journal_used_bytes")
            > 0.7 * (256 << 20) as f64
    });
    scene.wait("the agent to mark instead of sending", |scene| {
        scene.site.status("disk1").is_some_and(|status| status.dirty_bytes > 0)
    });
    let (code, shown, _) = tidegate(&["status", "--config", &config]);
    assert!(code == 0 && shown.contains("limit   uploads held to 4 MiB/s"), "{shown}");
    assert!(metric(&scene.site.admin("/metrics").unwrap(), "tidegate_bandwidth_held_bytes") > 0.0);

    // By hand, for a while: at once, not when the debt of the last batch is paid.
    let (code, shown, said) = bandwidth(&["set", "--upload", "12 MiB/s", "--for", "2 h"]);
    assert!(code == 0 && shown.contains("uploads held to 12 MiB/s by hand until"), "{shown}{said}");
    let ratio = measured(&mut scene, &sink) / (12 << 20) as f64;
    println!("at a limit of 12 MiB/s: {ratio:.3} of it");
    // The machine may not carry more than this; the bound above is the promise.
    assert!((0.5..=1.05).contains(&ratio), "{ratio} of the limit by hand");

    // A reload with another limit leaves what was set by hand; its end brings the reload's.
    let text = std::fs::read_to_string(&config).unwrap();
    let calendar = "upload_max = \"8 MiB/s\"\n[[bandwidth.calendar]]\nreceive_max = \"16 MiB/s\"";
    std::fs::write(&config, text.replace("upload_max = \"4 MiB/s\"", calendar)).unwrap();
    succeed("kill", &["-HUP", &scene.gateway.as_ref().unwrap().id().to_string()]);
    scene.wait("the calendar's limit", |scene| limits(scene)[1]["bytes_per_second"] == 16 << 20);
    assert_eq!((&limits(&scene)[0]["by"], &limits(&scene)[1]["by"]), (&"hand".into(), &"calendar".into()));
    let (code, shown, _) = bandwidth(&["reset", "--json"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((code, &shown[0]["bytes_per_second"]), (0, &Value::from(8 << 20)), "{shown}");

    assert_eq!(load.done().interruptions, 0, "the guest noticed");
    assert!(bandwidth(&["set", "--upload", "none", "--receive", "none", "--for", "1 h"]).0 == 0);
    drop(load);
    scene.wait_copied("disk1");
    scene.keep("disk1", "end", None);
    scene.wait_vaulted();
    assert!(wait_until(Duration::from_secs(30), || limits(&scene)[0]["holds"] == false), "{}", limits(&scene));
    let peak = peak_bytes(scene.gateway.as_ref().unwrap().id());
    println!("peak memory: {} MiB of {}", peak >> 20, (MEMORY + BASE_BYTES) >> 20);
    assert!(peak <= MEMORY + BASE_BYTES, "the gateway used {} MiB", peak >> 20);
    scene.stop();
    scene.assert_all_restore();
}

/// Record bytes per second that the gateway receives, over `span`.
fn received(scene: &Scene, span: Duration) -> f64 {
    let clock = SystemClock::new();
    let look = || {
        let page = scene.site.admin("/metrics").unwrap();
        (metric(&page, "tidegate_received_bytes_total"), clock.monotonic())
    };
    let (first, began) = look();
    std::thread::sleep(span);
    let (last, ended) = look();
    (last - first) / (ended - began).as_secs_f64()
}

fn behind_seconds(scene: &Scene, disk: &str) -> f64 {
    let disks: Value = serde_json::from_str(&scene.site.admin("/v1/disks").unwrap()).unwrap();
    let found = disks.as_array().unwrap().iter().find(|view| view["disk"] == disk);
    found.and_then(|view| view["rpo_seconds"].as_f64()).unwrap()
}

#[test]
fn what_comes_from_agents_is_held_to_its_limits_and_a_light_disk_stays_ahead_of_the_heavy_ones() {
    const MIB: f64 = (1 << 20) as f64;
    /// What the line to the gateway carries: more than the limits let through, less than the guests write.
    const LINE: u64 = 12 << 20;
    let _turn = turn_alone();
    let port = free_port(false).unwrap();
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let line = Proxy::start(at, LINE);
    let setting = Setting {
        gateway: vec![
            ("", format!("listen = \"{at}\"")),
            ("pipeline", "codec = \"none\"".into()),
            ("bandwidth", "receive_max = \"8 MiB/s\"".into()),
        ],
        agent: vec![("", format!("gateways = [\"{}\"]\ntransport = \"tcp\"", line.address))],
        ..Setting::default()
    };
    let mut scene = Scene::new(setting, &["heavy1", "heavy2", "light"], empty(DISK_BYTES / 2));
    for disk in ["heavy1", "heavy2", "light"] {
        scene.wait_copied(disk);
    }
    let config = scene.site.path("gateway.toml").display().to_string();
    let bandwidth = |more: &[&str]| tidegate(&[&["bandwidth"], more, &["--config", &config]].concat());
    let heavy = [scene.load("heavy1", 96, MIB_PER_SECOND), scene.load("heavy2", 97, MIB_PER_SECOND)];
    let light = scene.load("light", 98, 1);
    for disk in ["heavy1", "heavy2"] {
        scene.wait("the heavy disks to be marked instead of sent", |scene| {
            scene.site.status(disk).is_some_and(|status| status.dirty_bytes > 0)
        });
    }
    let span = Duration::from_secs(12);
    let ratio = received(&scene, span) / (8.0 * MIB);
    println!("all agents together: {ratio:.3} of 8 MiB/s");
    assert!((0.7..=1.06).contains(&ratio), "{ratio} of the limit of all");
    assert_eq!(limits(&scene)[1]["holds"], true, "{}", limits(&scene));
    let (ahead, behind) = (behind_seconds(&scene, "light"), behind_seconds(&scene, "heavy1"));
    println!("behind: the light disk {ahead:.1} s, a heavy one {behind:.1} s");
    assert!(2.0 * ahead < behind, "{ahead} s, {behind} s");
    assert_eq!(scene.site.status("light").unwrap().dirty_bytes, 0, "the light disk is marked like the heavy ones");

    assert_eq!(bandwidth(&["set", "--receive", "none", "--disk", "3 MiB/s", "--for", "1 h"]).0, 0);
    let ratio = received(&scene, span) / (7.0 * MIB);
    println!("each disk: {ratio:.3} of two at 3 MiB/s and one at 1 MiB/s");
    assert!((0.7..=1.06).contains(&ratio), "{ratio} of the limit of each");

    // Without a limit the line is the limit: so the limits were what was measured, and not the machine.
    assert_eq!(bandwidth(&["set", "--receive", "none", "--disk", "none", "--for", "1 h"]).0, 0);
    let ratio = received(&scene, span) / LINE as f64;
    println!("no limit: {ratio:.3} of the line");
    assert!((0.6..=1.06).contains(&ratio), "{ratio} of the line");

    for load in heavy.iter().chain([&light]) {
        assert_eq!(load.done().interruptions, 0, "a guest noticed");
    }
    drop((heavy, light));
    for disk in ["heavy1", "heavy2", "light"] {
        scene.wait_copied(disk);
        scene.keep(disk, "end", None);
    }
    scene.wait_vaulted();
    scene.stop();
    scene.assert_all_restore();
}

#[test]
fn a_limit_that_is_wrong_or_set_from_nowhere_is_refused() {
    let refuse = |arguments: &[&str]| tidegate(&[&["bandwidth"], arguments].concat());
    assert_eq!(refuse(&["set", "--upload", "fast", "--for", "1 h"]).0, 2);
    assert_eq!(refuse(&["set", "--upload", "1 MiB/s", "--for", "soon"]).0, 2);
    assert_eq!(refuse(&["set", "--for", "1 h"]).0, 2);
    let (code, _, said) = refuse(&["show", "--admin", "127.0.0.1:9"]);
    assert!(code == 1 && said.contains("is it running"), "{code}: {said}");
}
