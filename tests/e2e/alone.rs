//! Promise 4: the vault is enough.

use std::path::Path;
use std::process::Command;

use crate::common::{Scene, Setting, assert_same, ext4, folder, program, turn};

/// Copies a folder with everything in it.
pub fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).unwrap();
        }
    }
}

#[test]
fn the_vault_and_the_identity_alone_restore_and_verify_in_another_place() {
    let _turn = turn();
    let mut scene = Scene::new(Setting::default(), &["disk1"], ext4(256 << 20));
    let load = scene.load("disk1", 1, 40);
    scene.wait_copied("disk1");
    scene.write_more(&load, 32 << 20);
    scene.keep("disk1", "one", Some(&load));
    scene.write_more(&load, 32 << 20);
    drop(load);
    scene.keep("disk1", "two", None);
    scene.wait_vaulted();
    scene.stop();

    let place = folder();
    copy_tree(&scene.dir().join("vault"), &place.path().join("somewhere/else"));
    std::fs::copy(scene.site.identity(), place.path().join("key")).unwrap();
    let copies: Vec<_> = scene
        .kept
        .iter()
        .map(|kept| {
            let copy = place.path().join(format!("{}.expected", kept.made.id));
            std::fs::copy(&kept.copy, &copy).unwrap();
            (kept.made.id.clone(), copy)
        })
        .collect();
    // Gateway, agent, journal, certificates and the original vault are gone.
    drop(scene);
    let run = |arguments: &[&str]| {
        let output = Command::new(program()).args(arguments).current_dir(place.path()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {}\n{text}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let vault = format!("file://{}", place.path().join("somewhere/else").display());
    let from = ["--vault", &vault, "--identity", "key"];
    let points = run(&[&["points"], &from[..], &["--disk", "disk1"]].concat());
    run(&[&["verify"], &from[..], &["--level", "data"]].concat());
    for (id, copy) in &copies {
        assert!(points.contains(id.as_str()), "{id} is not in\n{points}");
        run(&[&["restore"], &from[..], &["--disk", "disk1", "--point", id, "--to", id]].concat());
        assert_same(copy, &place.path().join(id), id);
    }
    run(&[&["restore"], &from[..], &["--disk", "disk1", "--to", "latest"]].concat());
    // Nothing was written since the second point.
    assert_same(&copies[1].1, &place.path().join("latest"), "latest");
}
