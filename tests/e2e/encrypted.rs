//! Somebody encrypts a disk: the gateway says since when, names the last point before, keeps it, and it comes back as it was.

use serde_json::Value;
use tidegate::nbd::Client;

use crate::common::{Scene, Setting, assert_same, empty, tidegate, turn};

const MIB: u64 = 1 << 20;

/// A quarter noise, the rest of which packs well.
pub fn text(seed: u64, data: &mut [u8]) {
    noise(seed, data);
    data.chunks_mut(4096).for_each(|block| block[1024..].fill(b't'));
}

/// Bytes that nothing packs.
pub fn noise(seed: u64, data: &mut [u8]) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for piece in data.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        piece.copy_from_slice(&state.to_le_bytes()[..piece.len()]);
    }
}

fn write(guest: &mut Client, mib: u64, fill: fn(u64, &mut [u8])) {
    let mut piece = vec![0; MIB as usize];
    for at in 0..mib {
        fill(at + 1, &mut piece);
        guest.write(at * MIB, &piece, false).unwrap();
    }
}

fn events(scene: &Scene) -> Vec<Value> {
    let disks: Value = serde_json::from_str(&scene.site.admin("/v1/disks").unwrap()).unwrap();
    disks[0]["events"].as_array().cloned().unwrap_or_default()
}

fn json(arguments: &[&str]) -> Value {
    let (code, out, err) = tidegate(arguments);
    assert_eq!(code, 0, "{arguments:?}: {out}{err}");
    serde_json::from_str(&out).unwrap()
}

#[test]
fn a_disk_that_somebody_encrypts_is_told_of_with_the_point_that_gives_it_back() {
    let _turn = turn();
    let mut scene = Scene::new(Setting::default(), &["disk1"], empty(256 * MIB));
    scene.wait_copied("disk1");
    let (vault, identity) = (scene.site.vault_url().to_owned(), scene.site.identity().display().to_string());
    let from = ["--vault", &vault, "--identity", &identity];
    let config = scene.dir().join("keeper.toml");
    let policy = format!("[vault]\nurl = {vault:?}\ncatalog_key = 'catalog.key'\n[policy]\nevery = '24 h'\n");
    std::fs::write(&config, policy).unwrap();

    let mut guest = Client::connect(&scene.site.nbd("disk1"), "disk1").unwrap();
    write(&mut guest, 200, text);
    guest.flush().unwrap();
    scene.keep("disk1", "good", None);
    scene.wait_vaulted();
    // Something of a keeper is here, so what nobody pins may go.
    json(&[&["vault", "hold"], &from[..], &["--disk", "disk1", "--point", "good", "--json"]].concat());
    assert_eq!(events(&scene), Vec::<Value>::new());
    write(&mut guest, 120, noise);
    guest.flush().unwrap();
    scene.wait("the event", |scene| !events(scene).is_empty());
    scene.wait("the point to be kept", |scene| events(scene)[0]["held_until"].is_string());

    let event = events(&scene).remove(0);
    let point = event["point"].as_str().unwrap().to_owned();
    let words = event["words"].as_str().unwrap();
    assert!(words.contains(&format!("tidegate restore --disk disk1 --point {point} --to FILE")), "{words}");
    assert!(event["worse_times"].as_f64().unwrap() > 2.0, "{event}");
    let admin = scene.site.admin_address().to_string();
    let (code, out, err) = tidegate(&["status", "--admin", &admin]);
    assert!(
        code == 0 && out.contains("CRITICAL disk1 packs ") && out.contains("TidegateAnomaly"),
        "{code}: {out}{err}"
    );
    let line = format!("tidegate_disk_anomaly_begin_timestamp_seconds{{disk=\"disk1\",point=\"{point}\"}} ");
    let metrics = scene.site.admin("/metrics").unwrap();
    assert!(metrics.contains(&line), "{line} is missing");
    let log = std::fs::read_to_string(scene.site.path("logs/gateway.log")).unwrap();
    assert!(log.contains("may be being encrypted") && log.contains(&point), "{log}");

    // The change, not the moment at which it was noticed: what the point gives is the disk as it was.
    scene.stop();
    let restored = scene.dir().join("restored.img");
    let to = ["--disk", "disk1", "--point", &point, "--to", restored.to_str().unwrap(), "--json"];
    json(&[&["restore"], &from[..], &to].concat());
    assert_same(&scene.kept[0].copy, &restored, "the last point before the change");

    // No gateway remembers, and the vault does.
    let found = json(&[&["points"], &from[..], &["--disk", "disk1", "--events", "--json"]].concat());
    assert_eq!((&found["events"][0]["point"], &found["events"][0]["since"]), (&event["point"], &event["since"]));
    let hold = ["--disk", "disk1", "--point", &point, "--for", "3 d", "--reason", "looked at", "--json"];
    let held = json(&[&["vault", "hold"], &from[..], &hold].concat());
    assert_eq!(held["point"]["id"].as_str(), Some(point.as_str()), "{held}");
    let plan = json(&["keeper", "plan", "--json", "--config", config.to_str().unwrap()]);
    assert!(plan.to_string().contains("\"pins\":4"), "the first, the gateway's, the restore's and this one: {plan}");
    let too_long = ["--disk", "disk1", "--point", &point, "--for", "8 d"];
    let (code, _, err) = tidegate(&[&["vault", "hold"], &from[..], &too_long].concat());
    assert!(code == 2 && err.contains("keeper.toml"), "{code}: {err}");
}
