//! The drill as a real process: a sound disk passes, a broken one, a missed objective and a program that fails do not.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;

use crate::common::{Scene, Setting, ext4, tidegate, turn};

fn script(path: &Path, text: &str) -> String {
    std::fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

#[test]
fn a_drill_restores_looks_runs_the_users_program_and_reports() {
    let _turn = turn();
    let mut scene = Scene::new(Setting::default(), &["disk1"], ext4(128 << 20));
    let load = scene.load("disk1", 71, 40);
    scene.wait_copied("disk1");
    scene.write_more(&load, 8 << 20);
    scene.keep("disk1", "sound", Some(&load));
    drop(load);
    // The table of inodes is overwritten: no checker takes that for a file system.
    let mut client = tidegate::nbd::Client::connect(&scene.site.nbd("disk1"), "disk1").unwrap();
    client.write(4096, &vec![0x5a; 4 << 20], true).unwrap();
    drop(client);
    scene.keep("disk1", "broken", None);
    scene.wait_vaulted();
    scene.stop();
    let dir = scene.dir().join("drills");
    std::fs::create_dir(&dir).unwrap();
    let path = |name: &str| scene.dir().join(name).display().to_string();
    let (dir_text, report, metrics) = (dir.display().to_string(), path("drill.md"), path("drill.prom"));
    let look = script(&scene.dir().join("look"), "test -s \"$1\" && echo looked at $#");
    let refuse = script(&scene.dir().join("refuse"), "echo no database here; exit 4");
    let (vault, identity) = (scene.site.vault_url().to_owned(), scene.site.identity().display().to_string());
    let from = ["drill", "--vault", &vault, "--identity", &identity, "--disk", "disk1", "--dir", &dir_text, "--json"];
    let drill = |more: &[&str]| {
        let (code, out, err) = tidegate(&[&from[..], more].concat());
        assert!(std::fs::read_dir(&dir).unwrap().next().is_none(), "nothing is left: {err}");
        (code, serde_json::from_str::<Value>(&out).unwrap_or_else(|_| panic!("{code}: {out}{err}")))
    };
    let files = ["--report", &report, "--metrics-file", &metrics];

    let (code, told) = drill(&[&["--point", "sound", "--check", &look][..], &files].concat());
    assert_eq!((code, &told["failures"]), (0, &Value::Array(Vec::new())), "{told}");
    assert_eq!(told["disks"][0]["volumes"][0]["verdict"]["result"], "whole", "{told}");
    assert_eq!(told["program"]["said"], "looked at 1", "{told}");
    let page = std::fs::read_to_string(&report).unwrap();
    assert!(page.contains("# Recovery drill: passed") && page.contains("| disk1 |"), "{page}");
    let value = |name: &str| {
        let page = std::fs::read_to_string(&metrics).unwrap();
        let start = format!("{name}{{run=\"drill\"}} ");
        let line = page.lines().find_map(|line| line.strip_prefix(&start)?.parse::<f64>().ok());
        line.unwrap_or_else(|| panic!("{name} in\n{page}"))
    };
    let succeeded = value("tidegate_drill_last_success_timestamp_seconds");
    assert!(succeeded > 1.7e9 && value("tidegate_drill_rto_seconds") > 0.0);

    let (code, told) = drill(&[&["--latest"][..], &files].concat());
    assert_eq!((code, told["failures"].as_array().map(Vec::len)), (1, Some(1)), "{told}");
    assert_eq!(told["disks"][0]["volumes"].as_array().map(Vec::len), Some(1), "{told}");
    assert_eq!(value("tidegate_drill_last_success_timestamp_seconds"), succeeded, "the last one that passed");
    assert_eq!(value("tidegate_drill_failures"), 1.0);
    let (code, told) = drill(&["--point", "sound", "--check", &refuse]);
    assert!(code == 1 && told["failures"][0].as_str().unwrap().contains("no database here"), "{told}");
    let (code, told) = drill(&["--point", "sound", "--rpo", "1ms", "--rto", "1ms"]);
    assert_eq!((code, told["failures"].as_array().map(Vec::len)), (1, Some(2)), "{told}");
}
