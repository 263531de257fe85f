//! Verifications that take turns: each opens a part of the data, together they find what is damaged anywhere.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use serde_json::Value;

use crate::common::{Scene, Setting, empty, tidegate, turn};
use crate::damage::batches;

/// Flips one byte in the midst of a file.
fn flip(path: &Path) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let at = path.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
}

#[test]
fn damage_in_a_part_that_a_run_left_out_is_found_within_the_runs_that_were_said() {
    let _turn = turn();
    let mut scene = Scene::new(Setting::default(), &["disk1", "disk2"], empty(32 << 20));
    for disk in ["disk1", "disk2"] {
        scene.wait_copied(disk);
        let load = scene.load(disk, 31, 16);
        scene.write_more(&load, 12 << 20);
        scene.keep(disk, "kept", Some(&load));
    }
    scene.wait_vaulted();
    scene.stop();
    let path = |name: &str| scene.dir().join(name).display().to_string();
    let (state, metrics) = (path("verify.state"), path("daily.prom"));
    let (vault, identity) = (scene.site.vault_url().to_owned(), scene.site.identity().display().to_string());
    let from = ["verify", "--vault", &vault, "--identity", &identity];
    let run = |rest: &[&str]| -> (i32, Value, String) {
        let (code, out, err) = tidegate(&[&from[..], rest, &["--json"]].concat());
        (code, serde_json::from_str(&out).unwrap_or_default(), err)
    };
    let turns = ["--sample", "15%", "--state", &state, "--metrics-file", &metrics];

    // A round over a sound vault.
    let (mut code, mut told, mut err) = run(&turns);
    let runs = 1 + told["round"]["runs_left"].as_u64().unwrap();
    assert!((2..=8).contains(&runs), "{told}");
    let mut opened = told["messages_checked"].as_u64().unwrap();
    for _ in 1..runs {
        assert_eq!(code, 0, "{told} {err}");
        (code, told, err) = run(&turns);
        opened += told["messages_checked"].as_u64().unwrap();
    }
    assert_eq!(
        (code, told["round"]["runs_left"].as_u64(), told["messages"].as_u64()),
        (0, Some(0), Some(opened)),
        "{err}"
    );

    // Damage: the round that begins now says how many runs it takes, and finds it.
    let batch =
        batches(&scene.dir().join("vault")).into_iter().max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    flip(&batch);
    let mut codes = Vec::new();
    for _ in 0..runs {
        (code, told, err) = run(&turns);
        codes.push(code);
    }
    assert!(codes.contains(&3), "{codes:?}: {told} {err}");
    assert_eq!(code, 3, "once found it stays found, whatever the samples are: {codes:?}");
    let page = std::fs::read_to_string(&metrics).unwrap();
    assert!(
        page.lines().any(|line| line.starts_with("tidegate_verify_disk_damage{") && line.ends_with(" 1")),
        "{page}"
    );
    assert!(page.contains("tidegate_verify_round_seen_ratio{run=\"daily\"} "), "{page}");
    flip(&batch);
    (code, told, err) = run(&turns);
    assert_eq!(code, 0, "mended: {told} {err}");

    // Other ways to say how much, and what is refused.
    let (code, told, err) = run(&["--budget", "1MiB", "--state", &state]);
    assert!(code == 0 && told["messages_checked"].as_u64() < told["messages"].as_u64(), "{code}: {told} {err}");
    let (code, told, _) = run(&["--sample", "1"]);
    assert_eq!((code, told["messages_checked"].as_u64(), told["round"].is_null()), (0, Some(1), true), "{told}");
    let (code, _, err) = run(&["--level", "index", "--state", &state]);
    assert!(code == 2 && err.contains("--level data"), "{code}: {err}");
    let foreign = path("gateway.toml");
    let (code, _, err) = run(&["--state", &foreign]);
    assert!(code == 1 && err.contains(&foreign) && err.contains("--state"), "{code}: {err}");
}
