//! What happens around agents and restores: a disk that changed its size, a target that fills up.

use std::fs::File;

use tidegate::cli::quickstart::child::{Child, Family};

use crate::common::{PATIENCE, Scene, Setting, empty, program, tidegate, turn};
use crate::mount::{self, Mount};

const DISK_BYTES: u64 = 96 << 20;

#[test]
fn a_disk_that_changed_its_size_is_refused_by_name_and_the_others_go_on() {
    let _turn = turn();
    let mut scene = Scene::new(Setting::default(), &["disk1", "disk2"], empty(DISK_BYTES));
    scene.wait_copied("disk1");
    scene.wait_copied("disk2");
    scene.agent.take().unwrap().terminate(PATIENCE).unwrap();
    let grown = scene.image("disk1").to_owned();
    let resize = |bytes: u64| File::options().write(true).open(&grown).unwrap().set_len(bytes).unwrap();
    resize(DISK_BYTES + (1 << 20));
    let (config, logs) = (scene.site.path("agent.toml"), scene.site.path("logs/agent.log"));
    let arguments = ["agent", "--config", config.to_str().unwrap()];
    scene.agent = Some(Child::start("agent", &Family::default(), &logs, program(), &arguments).unwrap());
    scene.wait("the other disk", |scene| scene.site.copied("disk2"));
    let refused = scene.site.status("disk1").unwrap();
    assert_eq!(refused.state, "refused", "{refused:?}");
    let why = refused.last_error.unwrap_or_default();
    assert!(why.contains("disk1") && why.contains("keep their size"), "{why}");
    let load = scene.load("disk2", 81, 8);
    scene.write_more(&load, 4 << 20);
    scene.keep("disk2", "meanwhile", Some(&load));
    drop(load);
    scene.wait_vaulted();
    // Undone, it is protected again, and compared because somebody touched it.
    scene.agent.take().unwrap().terminate(PATIENCE).unwrap();
    resize(DISK_BYTES);
    scene.agent = Some(scene.site.start_agent().unwrap());
    scene.wait_copied("disk1");
    scene.keep("disk1", "back", None);
    scene.wait_vaulted();
    scene.stop();
    scene.assert_all_restore();
}

#[test]
fn a_restore_whose_target_fills_up_says_so_and_goes_on_where_there_is_room() {
    if !mount::possible() {
        return;
    }
    let _turn = turn();
    let mut scene = Scene::new(Setting::default(), &["disk1"], empty(DISK_BYTES));
    let load = scene.load("disk1", 82, 48);
    scene.wait_copied("disk1");
    // All over the disk, so that it has far more data than the small target has room.
    scene.write_more(&load, 2 * DISK_BYTES);
    scene.keep("disk1", "full", Some(&load));
    drop(load);
    scene.wait_vaulted();
    scene.stop();
    let at = scene.dir().join("small");
    std::fs::create_dir(&at).unwrap();
    let _mount = Mount::new(&at, 24 << 20);
    let (target, identity) = (at.join("disk.img"), scene.site.identity());
    let restore = |to: &str| {
        let from = ["restore", "--vault", scene.site.vault_url(), "--identity", identity.to_str().unwrap()];
        tidegate(&[&from[..], &["--disk", "disk1", "--point", &scene.kept[0].made.id, "--to", to]].concat())
    };
    let (code, _, err) = restore(target.to_str().unwrap());
    assert_eq!(code, 1, "{err}");
    assert!(err.contains(target.to_str().unwrap()) && err.contains("no space left"), "{err}");
    assert!(!err.contains("panicked") && !target.exists(), "a half restore must not look like a whole one: {err}");
    scene.assert_all_restore();
}
