//! What happens around agents and restores: a disk that changed its size, a target that fills up.

use std::fs::File;
use std::path::Path;

use tidegate::cli::quickstart::child::{Child, Family, metric};
use tidegate::flow::{Clock, SystemClock};

use crate::common::{PATIENCE, Scene, Setting, empty, program, tidegate, turn};
use crate::mount::{self, Mount};

const DISK_BYTES: u64 = 96 << 20;
/// Below a folder of /usr/lib: what Debian's libfaketime puts under a process that has threads.
const FAKETIME: &str = "faketime/libfaketimeMT.so.1";

/// The arguments with which `env` runs `tidegate` with a wall clock that is another one, as on a machine whose time service
/// died long ago. Its monotonic clock is the machine's.
pub fn faketime(offset: &str, arguments: &[&str]) -> Vec<String> {
    let library = std::fs::read_dir("/usr/lib").unwrap().flatten().map(|dir| dir.path().join(FAKETIME));
    let preload = format!("LD_PRELOAD={}", library.into_iter().find(|path| path.exists()).unwrap().display());
    let faked = [preload, format!("FAKETIME={offset}"), "FAKETIME_DONT_FAKE_MONOTONIC=1".into()];
    let program = [program().to_str().unwrap()];
    faked.into_iter().chain(program.iter().chain(arguments).map(|text| (*text).to_owned())).collect()
}

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

#[test]
fn a_clock_that_is_off_is_told_and_labels_are_right_all_the_same() {
    let _turn = turn();
    let mut scene = Scene::new(Setting::default(), &["disk1"], empty(DISK_BYTES));
    scene.wait_copied("disk1");
    let apart = |scene: &Scene| metric(&scene.site.admin("/metrics").unwrap(), "tidegate_agents_skewed");
    assert_eq!(apart(&scene), 0.0);
    scene.agent.take().unwrap().terminate(PATIENCE).unwrap();
    let (config, logs) = (scene.site.path("agent.toml"), scene.site.path("logs/agent.log"));
    let faked = faketime("+90s", &["agent", "--config", config.to_str().unwrap()]);
    let arguments: Vec<&str> = faked.iter().map(String::as_str).collect();
    scene.agent = Some(Child::start("agent", &Family::default(), &logs, Path::new("env"), &arguments).unwrap());
    let load = scene.load("disk1", 84, 8);
    scene.write_more(&load, 4 << 20);
    scene.wait("the gateway to notice the clock", |scene| apart(scene) == 1.0);
    let log = std::fs::read_to_string(scene.site.path("logs/gateway.log")).unwrap();
    let told = log.lines().find(|line| line.contains("clock is not this gateway's")).unwrap_or_default();
    assert!(told.contains("ahead_seconds") && told.contains("agent"), "{told}");
    let before = SystemClock::new().wall();
    scene.keep("disk1", "skewed", Some(&load));
    let after = SystemClock::new().wall();
    drop(load);
    scene.wait_vaulted();
    let label: jiff::Timestamp = scene.kept[0].made.time.parse().unwrap();
    let slack_micros = 2_000_000;
    let range = before.0 - slack_micros..=after.0 + slack_micros;
    let label_micros = label.as_microsecond() as u64;
    assert!(range.contains(&label_micros), "a point made from {before} to {after} is labelled {label}");
    scene.stop();
    scene.assert_all_restore();
}
