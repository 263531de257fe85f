//! One disk is destroyed for good, and the other in the same batches restores as ever.

use std::path::Path;

use serde_json::Value;

use crate::common::{Scene, Setting, empty, tidegate, turn};

/// A verb over the scene's vault.
fn run(scene: &Scene, verb: &[&str], rest: &[&str]) -> (i32, String, String) {
    let (vault, identity) = (scene.site.vault_url(), scene.site.identity().display().to_string());
    tidegate(&[verb, &["--vault", vault, "--identity", &identity][..], rest].concat())
}

fn json(scene: &Scene, verb: &[&str], rest: &[&str]) -> Value {
    let (code, out, err) = run(scene, verb, &[rest, &["--json"]].concat());
    assert_eq!(code, 0, "{verb:?} {rest:?}: {out}\n{err}");
    serde_json::from_str(&out).unwrap()
}

fn shred(scene: &Scene, rest: &[&str]) -> (i32, String, String) {
    run(scene, &["vault", "shred"], &[&["--disk", "disk1"], rest].concat())
}

fn empty_folder(folder: &Path) -> usize {
    let entries: Vec<_> = std::fs::read_dir(folder).unwrap().collect();
    entries.into_iter().map(|entry| std::fs::remove_file(entry.unwrap().path()).unwrap()).count()
}

#[test]
fn a_shredded_disk_comes_back_for_nobody_and_its_neighbour_is_whole() {
    let _turn = turn();
    let mut scene = Scene::new(Setting::default(), &["disk1", "disk2"], empty(16 << 20));
    for disk in ["disk1", "disk2"] {
        scene.wait_copied(disk);
        let load = scene.load(disk, 7, 4);
        scene.write_more(&load, 8 << 20);
        scene.keep(disk, "good", Some(&load));
    }
    scene.wait_vaulted();
    let yes = ["--yes-destroy", "disk1", "--reason", "contract ended"];
    // Nothing is done by mistake.
    let (code, _, err) = shred(&scene, &[]);
    assert!(code == 2 && err.contains("--yes-destroy disk1"), "{code}: {err}");
    let (code, _, err) = shred(&scene, &["--yes-destroy", "disk2"]);
    assert!(code == 2 && err.contains("nothing was done"), "{code}: {err}");
    let (code, _, err) = shred(&scene, &yes);
    assert!(code == 75 && err.contains("may be in use") && err.contains("restart that gateway"), "{code}: {err}");
    scene.stop();
    scene.assert_all_restore();
    json(&scene, &["vault", "hold"], &["--disk", "disk1", "--point", "good"]);
    let (code, _, err) = shred(&scene, &yes);
    assert!(code == 75 && err.contains("pinned until") && err.contains("hold"), "{code}: {err}");
    assert_eq!(empty_folder(&scene.dir().join("vault/m/p")), 1);
    assert!(!scene.dir().join("vault/d/disk1/shred").exists());

    // What a write leaves that is cut off.
    let routes = scene.dir().join("vault/d/disk1/r");
    let route = std::fs::read_dir(&routes).unwrap().next().unwrap().unwrap().path();
    let staged = route.with_file_name(format!("{}#1", route.file_name().unwrap().to_string_lossy()));
    std::fs::copy(&route, &staged).unwrap();

    let (code, out, err) = shred(&scene, &yes);
    assert_eq!(code, 0, "{out}\n{err}");
    assert!(!staged.exists(), "a key stands where no listing shows it");
    assert!(out.contains("none has a key") && out.contains("soft delete"), "{out}");
    let again = json(&scene, &["vault", "shred"], &["--disk", "disk1", "--yes-destroy", "disk1"]);
    assert_eq!(
        (again["keys_destroyed"].as_u64(), again["reason"].as_str()),
        (Some(0), Some("contract ended")),
        "{again}"
    );

    let target = scene.dir().join("back.img").display().to_string();
    let folder = scene.dir().display().to_string();
    let refused: [(&[&str], &[&str]); 3] = [
        (&["points"], &["--disk", "disk1"]),
        (&["restore"], &["--disk", "disk1", "--to", &target]),
        (&["drill"], &["--disk", "disk1", "--dir", &folder]),
    ];
    for (verb, rest) in refused {
        let (code, out, err) = run(&scene, verb, rest);
        let told = err.contains("d/disk1/shred") && err.contains("contract ended");
        assert!(code == 1 && told, "{verb:?}: {code}: {out}\n{err}");
    }
    assert!(!Path::new(&target).exists());
    scene.kept.retain(|kept| kept.disk == "disk2");
    scene.assert_all_restore();
    let status = json(&scene, &["vault", "status"], &[]);
    let disks: Vec<bool> =
        status["disks"].as_array().unwrap().iter().map(|disk| disk["shredded"].is_string()).collect();
    assert_eq!(disks, [true, false], "{status}");
    let verified = json(&scene, &["verify"], &["--level", "data"]);
    assert_eq!(verified["outcome"].as_str(), Some("ok"), "{verified}");
    assert!(verified["messages_shredded"].as_u64() > Some(0), "{verified}");
}
