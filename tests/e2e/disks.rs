//! Bad disks under the journal: full, read-only, damaged, and a journal that is full when the gateway starts.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use loadgen::blob::{BlobFaults, BlobProxy};
use tidegate::cli::quickstart::child::{Child, Family, metric, wait_until};
use tidegate::cli::quickstart::load::Load;

use crate::common::azurite::Azurite;
use crate::common::{PATIENCE, Scene, Setting, empty, program, tidegate, turn};
use crate::memory::{BASE_BYTES, peak_bytes};
use crate::mount::{self, Mount};

const DISK_BYTES: u64 = 256 << 20;

/// A scene, not yet started, whose store can be taken away.
fn with_store(azurite: &Azurite, container: &str, gateway: Vec<(&'static str, String)>) -> (Scene, BlobProxy) {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let proxy = BlobProxy::start(any, azurite.address(), BlobFaults::default(), 17).unwrap();
    let vault = Some(azurite.vault_url_at(proxy.address(), container));
    let scene = Scene::stopped(Setting { vault, gateway, ..Setting::default() }, &["disk1"], empty(DISK_BYTES));
    (scene, proxy)
}

fn away(proxy: &BlobProxy, away: bool) {
    proxy.set(BlobFaults { away, ..BlobFaults::default() });
}

fn start(scene: &mut Scene) {
    scene.gateway = Some(scene.site.start_gateway().unwrap());
    scene.agent = Some(scene.site.start_agent().unwrap());
    scene.wait_copied("disk1");
}

fn log(scene: &Scene, what: &str) -> String {
    std::fs::read_to_string(scene.site.path(&format!("logs/{what}.log"))).unwrap_or_default()
}

/// The guest writes on, second after second, for this long.
fn assert_progress(load: &Load, seconds: u64, when: &str) {
    for _ in 0..seconds {
        let before = load.done().written_bytes;
        let moved = wait_until(Duration::from_secs(10), || load.done().written_bytes > before);
        assert!(moved, "the guest stood still {when}");
        wait_until(Duration::from_secs(1), || false);
    }
}

/// Points after all is well again: made, vaulted, restored.
fn assert_recovers(scene: &mut Scene, load: Load) {
    scene.write_more(&load, 4 << 20);
    scene.wait_copied("disk1");
    scene.keep("disk1", "end", Some(&load));
    assert_eq!(load.done().interruptions, 0, "the guest noticed");
    drop(load);
    scene.wait_vaulted();
    scene.stop();
    scene.assert_all_restore();
}

#[test]
fn a_full_file_system_under_the_journal_is_ridden_out_without_a_restart() {
    if !mount::possible() {
        return;
    }
    let _turn = turn();
    let azurite = Azurite::start();
    // The journal believes that it has far more room than there is.
    let (mut scene, proxy) = with_store(&azurite, "full", vec![("journal", "segment = \"16 MiB\"".into())]);
    // Gone before the scene's directory is removed.
    let _mount = Mount::new(&scene.site.path("journal"), 128 << 20);
    start(&mut scene);
    let load = scene.load("disk1", 51, 32);
    scene.keep("disk1", "before", Some(&load));
    scene.wait_vaulted();
    away(&proxy, true);
    scene.wait("the file system's end", |scene| log(scene, "gateway").contains("No space left on device"));
    scene.wait("the dirty map", |scene| {
        scene.site.status("disk1").is_some_and(|status| status.dirty_bytes > 0 && status.state != "protected")
    });
    assert_progress(&load, 3, "while the journal was full");
    away(&proxy, false);
    // The same process goes on: `wait` fails if it ended.
    scene.wait_copied("disk1");
    assert_recovers(&mut scene, load);
}

#[test]
fn a_file_system_that_turns_read_only_stops_the_gateway_with_a_clear_word_and_a_restart_makes_all_good() {
    if !mount::possible() {
        return;
    }
    let _turn = turn();
    let azurite = Azurite::start();
    let (mut scene, proxy) = with_store(&azurite, "read-only", vec![("journal", "segment = \"16 MiB\"".into())]);
    let mut mount = Mount::new(&scene.site.path("journal"), 320 << 20);
    start(&mut scene);
    let load = scene.load("disk1", 52, 16);
    // What is journaled now is nowhere else.
    away(&proxy, true);
    scene.write_more(&load, 16 << 20);
    scene.keep("disk1", "journaled", Some(&load));
    let (epoch, seq) = crate::soak::parse(&scene.kept[0].made.id);
    scene.wait("the journal", |scene| {
        scene.site.status("disk1").is_some_and(|now| now.epoch == Some(epoch) && now.journaled >= seq)
    });
    mount.abort();
    // It tries to drain, which the absent store does not let it.
    away(&proxy, false);
    let gone = wait_until(PATIENCE, || scene.gateway.as_mut().unwrap().check().is_err());
    let said = log(&scene, "gateway");
    assert!(gone, "the gateway goes on without a journal:\n{said}");
    assert!(said.contains("journal failed"), "{said}");
    assert!(said.contains(scene.site.path("journal").to_str().unwrap()), "it does not say which file:\n{said}");
    assert!(said.contains("Read-only file system"), "it does not say why:\n{said}");
    scene.gateway = None;
    assert_progress(&load, 2, "without its gateway");
    mount.unmount();
    mount.repair();
    mount.mount();
    scene.gateway = Some(scene.site.start_gateway().unwrap());
    assert_recovers(&mut scene, load);
}

/// Flips a byte in a record that is not vaulted; the segment's name.
fn damage_journal(scene: &Scene) -> String {
    let dir = scene.site.path("journal");
    let look = || tidegate(&["journal", "inspect", "--dir", dir.to_str().unwrap(), "--json"]);
    let (code, out, err) = look();
    assert_eq!(code, 0, "{err}");
    let found: serde_json::Value = serde_json::from_str(&out).unwrap();
    let segments = found["segments"].as_array().unwrap();
    let needed = |one: &&serde_json::Value| one["state"] == "needed";
    let segment = segments.iter().filter(needed).max_by_key(|one| one["end_bytes"].as_u64()).expect("a segment");
    let file = std::fs::File::options().read(true).write(true).open(segment["file"].as_str().unwrap()).unwrap();
    let end = segment["end_bytes"].as_u64().unwrap();
    // Several places, so that at least one of them is neither padding nor already vaulted.
    for part in 2..6 {
        let at = end * part / 7 + 1000;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x20], at).unwrap();
    }
    let name = segment["file"].as_str().unwrap().to_owned();
    let (code, out, _) = tidegate(&["journal", "verify", "--dir", dir.to_str().unwrap()]);
    assert_eq!(code, 3, "the damage is not found:\n{out}");
    assert!(out.contains(&name) && out.contains("DAMAGED"), "{out}");
    name
}

#[test]
fn a_journal_that_was_damaged_between_two_runs_costs_no_more_than_a_resync() {
    let _turn = turn();
    let azurite = Azurite::start();
    let (mut scene, proxy) = with_store(&azurite, "damaged", Vec::new());
    start(&mut scene);
    let load = scene.load("disk1", 53, 16);
    scene.write_more(&load, 8 << 20);
    scene.keep("disk1", "before", Some(&load));
    scene.wait_vaulted();
    away(&proxy, true);
    scene.write_more(&load, 32 << 20);
    scene.gateway.take().unwrap().kill().unwrap();
    let segment = damage_journal(&scene);
    away(&proxy, false);
    scene.gateway = Some(scene.site.start_gateway().unwrap());
    let said = log(&scene, "gateway");
    assert!(said.contains("journal damage") && said.contains(&segment), "the damage is not named:\n{said}");
    assert_recovers(&mut scene, load);
}

#[test]
fn a_salvaged_journal_sends_what_only_it_has() {
    let _turn = turn();
    let azurite = Azurite::start();
    let (mut scene, proxy) = with_store(&azurite, "salvage", Vec::new());
    start(&mut scene);
    let load = scene.load("disk1", 54, 16);
    away(&proxy, true);
    scene.write_more(&load, 16 << 20);
    scene.keep("disk1", "journaled", Some(&load));
    let (_, seq) = crate::soak::parse(&scene.kept[0].made.id);
    scene.wait("the journal", |scene| scene.site.status("disk1").is_some_and(|now| now.journaled >= seq));
    drop(load);
    // Machine and gateway are gone for good, and the journal has lost its name.
    scene.agent.take().unwrap().kill().unwrap();
    scene.gateway.take().unwrap().kill().unwrap();
    let (old, new) = (scene.site.path("journal"), scene.site.path("salvaged"));
    std::fs::remove_file(old.join("journal.json")).unwrap();
    away(&proxy, false);
    let (old, to) = (old.to_str().unwrap(), new.to_str().unwrap());
    let (code, _, err) = tidegate(&["journal", "salvage", "--dir", old, "--to", to]);
    assert!(code == 1 && err.contains("--gateway"), "{code}: {err}");
    let (code, out, err) = tidegate(&["journal", "salvage", "--dir", old, "--to", to, "--gateway", "gw1"]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("next:") && out.contains(to), "{out}");
    let config = scene.site.path("gateway.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replacen("dir = \"journal\"", "dir = \"salvaged\"", 1)).unwrap();
    scene.gateway = Some(scene.site.start_gateway().unwrap());
    scene.wait_vaulted();
    scene.stop();
    scene.assert_all_restore();
}

#[test]
fn a_gateway_that_starts_with_a_full_journal_says_what_it_waits_for_and_needs_no_more_memory() {
    const MEMORY: u64 = 128 << 20;
    const CAPACITY: u64 = 512 << 20;
    let _turn = turn();
    let azurite = Azurite::start();
    let setting = vec![
        ("", format!("memory = \"{} MiB\"", MEMORY >> 20)),
        ("journal", format!("capacity = \"{} MiB\"", CAPACITY >> 20)),
        ("journal", "segment = \"16 MiB\"".into()),
    ];
    let (mut scene, proxy) = with_store(&azurite, "late", setting);
    start(&mut scene);
    let load = scene.load("disk1", 55, 64);
    away(&proxy, true);
    scene.wait("a journal as full as may be", |scene| {
        let page = scene.site.admin("/metrics").unwrap_or_default();
        metric(&page, "tidegate_journal_used_bytes") > 0.75 * CAPACITY as f64
    });
    scene.gateway.take().unwrap().kill().unwrap();

    let (config, logs) = (scene.site.path("gateway.toml"), scene.site.path("logs/gateway.log"));
    let arguments = ["gateway", "--config", config.to_str().unwrap()];
    scene.gateway = Some(Child::start("gateway", &Family::default(), &logs, program(), &arguments).unwrap());
    scene.wait("a word about the vault", |scene| {
        scene.site.admin("/readyz").is_some_and(|said| said.contains("waiting for the vault") && said.contains("false"))
    });
    let waiting = peak_bytes(scene.gateway.as_ref().unwrap().id());
    assert_progress(&load, 2, "while the gateway waited for the vault");
    away(&proxy, false);
    scene.wait("readiness", |scene| scene.site.admin("/readyz").is_some_and(|said| said.contains("true")));
    scene.write_more(&load, 16 << 20);
    scene.keep("disk1", "after", Some(&load));
    drop(load);
    scene.wait_vaulted();
    let drained = peak_bytes(scene.gateway.as_ref().unwrap().id());
    println!("peak memory: waiting {} MiB, drained {} MiB", waiting >> 20, drained >> 20);
    assert!(drained <= MEMORY + BASE_BYTES, "the gateway used {} MiB", drained >> 20);
    scene.stop();
    scene.assert_all_restore();
}
