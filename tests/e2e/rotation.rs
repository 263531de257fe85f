//! A vault's catalog key is replaced while a gateway and an agent work.

use serde_json::Value;

use crate::common::{PATIENCE, Scene, Setting, empty, tidegate, turn};

fn run(scene: &Scene, verb: &[&str], rest: &[&str]) -> (i32, String, String) {
    let identity = scene.site.identity().display().to_string();
    tidegate(&[verb, &["--vault", scene.site.vault_url(), "--identity", &identity], rest].concat())
}

fn rotate(scene: &Scene, verb: &str, rest: &[&str]) -> Value {
    let (code, out, err) = run(scene, &["vault", "rotate", verb], &[rest, &["--json"]].concat());
    assert_eq!(code, 0, "{verb} {rest:?}: {out}\n{err}");
    serde_json::from_str(&out).unwrap()
}

#[test]
fn a_catalog_key_is_replaced_under_load_and_everything_is_restored() {
    let _turn = turn();
    let mut scene = Scene::new(Setting::default(), &["disk1"], empty(64 << 20));
    scene.wait_copied("disk1");
    let load = scene.load("disk1", 7, 4);
    scene.write_more(&load, 4 << 20);
    scene.keep("disk1", "before", Some(&load));
    scene.wait_vaulted();
    // What a gateway leaves behind that was killed: a lane without an end.
    scene.kill_gateway();
    let (code, _, err) = run(&scene, &["vault", "rotate", "activate"], &[]);
    assert!(code == 1 && err.contains("rotate stage"), "nothing is staged: {code}: {err}");

    // Nothing changes for anybody yet; asked again, the same key's file is written.
    let shown = |name: &str| scene.site.path(name).display().to_string();
    let (file, old, next, again) = (shown("catalog.key"), shown("old.key"), shown("next.key"), shown("again.key"));
    let staged = rotate(&scene, "stage", &["--out", &next]);
    let (code, _, err) = run(&scene, &["vault", "rotate", "stage"], &["--out", &next]);
    assert!(code == 2 && err.contains("never overwritten"), "{code}: {err}");
    let same = rotate(&scene, "stage", &["--out", &again]);
    assert_eq!((&staged["staged_catalog_kid"], same["new"].as_bool()), (&same["staged_catalog_kid"], Some(false)));
    assert_eq!(std::fs::read(&next).unwrap(), std::fs::read(&again).unwrap());
    std::fs::rename(&file, &old).unwrap();
    std::fs::rename(&next, &file).unwrap();
    scene.gateway.take().unwrap().terminate(PATIENCE).unwrap();
    scene.gateway = Some(scene.site.start_gateway().unwrap());
    scene.write_more(&load, 4 << 20);
    scene.keep("disk1", "between", Some(&load));
    scene.wait_vaulted();

    let activated = rotate(&scene, "activate", &["--wait"]);
    assert_eq!(activated["catalog_kid"], staged["staged_catalog_kid"]);
    assert_eq!(activated["replaced_catalog_kid"], staged["catalog_kid"]);
    assert_eq!(activated["open_lanes"].as_array().map(Vec::len), Some(0), "{activated}");
    assert_eq!(activated["sealed_lanes"].as_array().map(Vec::len), Some(1), "of the one that was killed: {activated}");
    scene.write_more(&load, 8 << 20);
    scene.keep("disk1", "after", Some(&load));
    assert_eq!(load.done().interruptions, 0);
    drop(load);
    scene.wait_vaulted();
    assert_eq!(rotate(&scene, "activate", &[])["new"].as_bool(), Some(false), "asked again it is a look");
    scene.assert_all_restore();
    scene.stop();
    let (code, out, err) = run(&scene, &["verify"], &[]);
    assert_eq!(code, 0, "{out}\n{err}");

    let with = |key: &str| tidegate(&["vault", "status", "--vault", scene.site.vault_url(), "--catalog-key", key]);
    assert_eq!(with(&file).0, 0);
    let (code, _, err) = with(&old);
    assert!(code == 1 && err.contains("was replaced") && err.contains("tidegate vault catalog-key"), "{code}: {err}");
}
