//! Retention by the program itself: what no kept point needs goes, every kept point restores, and a clock that is off deletes nothing.
//!
//! Time passes by setting the dates of the vault's files back: the store's clock tells how old they are.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tidegate::cli::quickstart::child::{Child, Family};

use crate::common::{PATIENCE, Scene, Setting, empty, program, tidegate, turn};

const HOUR: Duration = Duration::from_secs(3600);

/// Sets the dates of all files below a folder back.
fn set_back(folder: &Path, by: Duration) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            set_back(&path, by);
        } else {
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            let modified = file.metadata().unwrap().modified().unwrap();
            file.set_modified(modified - by).unwrap();
        }
    }
}

fn keeper(verb: &str, config: &Path) -> (i32, Value, String) {
    let (code, out, err) = tidegate(&["keeper", verb, "--json", "--config", config.to_str().unwrap()]);
    (code, serde_json::from_str(&out).unwrap_or(Value::Null), err)
}

/// A disk that is written over and over, with two points that are kept: what lies between them is soon needed by none.
fn written_over() -> Scene {
    let mut scene = Scene::new(Setting::default(), &["disk1"], empty(8 << 20));
    scene.wait_copied("disk1");
    let load = scene.load("disk1", 7, 16);
    scene.write_more(&load, 32 << 20);
    scene.keep("disk1", "early", Some(&load));
    scene.write_more(&load, 256 << 20);
    scene.keep("disk1", "late", Some(&load));
    drop(load);
    scene.wait_vaulted();
    scene.stop();
    scene
}

/// A keeper's file for the named points of a disk, with more about how it works.
fn config_of(scene: &Scene, disk: &str, work: &str) -> String {
    let none = ["every", "minutes", "hours", "days", "months", "app"].map(|term| format!("{term} = '0 s'\n")).concat();
    let url = scene.site.vault_url();
    format!(
        "[vault]\nurl = {url:?}\ncatalog_key = 'catalog.key'\n[keeper]\n{work}[policy]\n{none}named = '365 d'\n[[disk]]\nname = {disk:?}\n"
    )
}

#[test]
fn what_no_kept_point_needs_is_deleted_and_every_kept_point_restores() {
    let _turn = turn();
    let scene = written_over();
    let vault = scene.dir().join("vault");
    let config = scene.dir().join("keeper.toml");
    std::fs::write(&config, config_of(&scene, "disk7", "")).unwrap();
    let (code, _, err) = keeper("once", &config);
    assert!(code == 2 && err.contains("disk7"), "a slip in a name: {code} {err}");
    std::fs::write(&config, config_of(&scene, "disk1", "")).unwrap();
    set_back(&vault, 2 * HOUR);
    let (code, plan, err) = keeper("plan", &config);
    assert_eq!(code, 0, "{err}");
    let foretold = plan["unneeded"]["batches"].as_u64().unwrap();
    assert!(foretold > 0 && plan["disks"][0]["going"]["count"].as_u64() > Some(0), "{plan}");
    let (code, run, err) = keeper("once", &config);
    assert_eq!(code, 75, "sealed, so there is more to do: {run} {err}");
    assert!(run["lanes_folded"].as_u64() > Some(0), "what has ended is folded, and restores read that: {run}");
    assert!(vault.join("d/disk1/f").is_dir());
    set_back(&vault, HOUR);
    let (code, run, err) = keeper("once", &config);
    assert_eq!(
        (code, run["newly_marked"]["batches"].as_u64(), run["deleted"]["batches"].as_u64()),
        (0, Some(foretold), Some(0)),
        "{err}"
    );
    set_back(&vault, 7 * HOUR);
    let (code, run, err) = keeper("once", &config);
    assert_eq!((code, run["deleted"]["batches"].as_u64()), (0, Some(foretold)), "{run} {err}");

    scene.assert_all_restore();
    let identity = scene.site.identity().display().to_string();
    let (code, out, err) = tidegate(&["verify", "--vault", scene.site.vault_url(), "--identity", &identity]);
    assert_eq!(code, 0, "{out}{err}");

    // The same again and again, until a signal ends it.
    let (told, log) = (scene.dir().join("retention.prom"), scene.site.path("logs/keeper.log"));
    let arguments = ["keeper", "run", "--config", config.to_str().unwrap(), "--metrics-file", told.to_str().unwrap()];
    let mut daemon = Child::start("keeper", &Family::default(), &log, program(), &arguments).unwrap();
    daemon.wait_for("a run", PATIENCE, || told.exists()).unwrap();
    let status = daemon.terminate(PATIENCE).unwrap();
    assert!(status.success(), "{status}");
    let page = std::fs::read_to_string(&told).unwrap();
    assert!(page.contains("tidegate_keeper_held_back{run=\"retention\"} 0"), "{page}");
}

#[test]
fn what_is_needed_of_sparse_batches_is_moved_and_restores_from_where_it_is_then() {
    let _turn = turn();
    let scene = written_over();
    let vault = scene.dir().join("vault");
    let config = scene.dir().join("keeper.toml");
    std::fs::write(&config, config_of(&scene, "disk1", "sparse = 90\n")).unwrap();
    let (code, _, err) = keeper("plan", &config);
    assert!(code == 2 && err.contains("move = true"), "{code} {err}");
    std::fs::write(&config, config_of(&scene, "disk1", "move = true\nsparse = 90\n")).unwrap();
    let (mut stored, mut moved, mut emptied) = (Vec::new(), 0, 0);
    // A tenth of the vault, or a batch, is moved at a time.
    for _ in 0..30 {
        set_back(&vault, 7 * HOUR);
        let (code, run, err) = keeper("once", &config);
        assert!([0, 75].contains(&code), "{run} {err}");
        moved += run["moved"]["bytes"].as_u64().unwrap();
        emptied += run["emptied_batches"].as_u64().unwrap();
        let (bytes, needed) = (run["stored"]["bytes"].as_u64().unwrap(), run["needed_bytes"].as_u64().unwrap());
        stored.push((bytes, needed));
        if bytes * 9 < needed * 11 {
            break;
        }
    }
    assert!(moved > 0 && emptied > 0, "{stored:?}");
    let (stored, needed) = stored[stored.len() - 1];
    assert!(stored * 9 < needed * 11, "{stored} bytes are stored, {needed} are needed");
    scene.assert_all_restore();
    let identity = scene.site.identity().display().to_string();
    let (code, out, err) = tidegate(&["verify", "--vault", scene.site.vault_url(), "--identity", &identity]);
    assert_eq!(code, 0, "{out}{err}");
}
