//! Promise 5: a gateway cannot read history. A thief takes all its files and its memory.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use tidegate::keys::{Identity, unwrap};

use crate::alone::copy_tree;
use crate::common::{Scene, Setting, ext4, folder, tidegate, turn};

/// The keys of all lanes, which only the recovery identity can tell.
fn lane_keys(scene: &Scene) -> Vec<(String, [u8; 32])> {
    let identity = Identity::read(&scene.site.identity()).unwrap();
    let mut found = Vec::new();
    for entry in std::fs::read_dir(scene.dir().join("vault/lanes")).unwrap().map(Result::unwrap) {
        let text = std::fs::read_to_string(entry.path()).unwrap();
        let lane: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        // Ends and seals of lanes stand in the same folder and wrap nothing.
        if let Some(wrapped) = lane["wrapped_key"].as_str() {
            let key = unwrap(&identity, wrapped).unwrap();
            found.push((lane["lane"].as_str().unwrap().to_owned(), *key));
        }
    }
    found
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() { files(&entry.path(), found) } else { found.push(entry.path()) }
    }
}

fn contains_key(bytes: &[u8], key: &[u8; 32]) -> bool {
    let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    [&key[..], hex.as_bytes(), hex.to_uppercase().as_bytes()].iter().any(|needle| find(bytes, needle))
}

fn find(bytes: &[u8], needle: &[u8]) -> bool {
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|&byte| byte == needle[0]) {
        rest = &rest[at..];
        if rest.starts_with(needle) {
            return true;
        }
        rest = &rest[1..];
    }
    false
}

/// Whether a key stands anywhere in the memory of a process.
fn memory_contains(pid: u32, key: &[u8; 32]) -> bool {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut read = 0;
    for line in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|mode| mode.starts_with("rw"))) {
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let (start, end) = (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap());
        let mut bytes = vec![0; (end - start) as usize];
        // Some regions (vvar and its like) cannot be read.
        if memory.read_exact_at(&mut bytes, start).is_ok() {
            read += bytes.len();
            if contains_key(&bytes, key) {
                return true;
            }
        }
    }
    assert!(read > 1 << 20, "only {read} bytes of memory could be read");
    false
}

#[test]
fn everything_that_a_gateway_has_after_a_restart_opens_no_batch_of_its_life_before() {
    let _turn = turn();
    let mut scene = Scene::new(Setting::default(), &["disk1"], ext4(128 << 20));
    let load = scene.load("disk1", 8, 20);
    scene.wait_copied("disk1");
    scene.write_more(&load, 8 << 20);
    scene.keep("disk1", "first-life", Some(&load));
    scene.wait_vaulted();
    let old = lane_keys(&scene);
    assert_eq!(old.len(), 1);
    // The search itself works: a living lane's key is where it must be.
    assert!(memory_contains(scene.gateway.as_ref().unwrap().id(), &old[0].1), "the search finds no key at all");

    scene.kill_gateway();
    scene.write_more(&load, 8 << 20);
    drop(load);
    scene.keep("disk1", "second-life", None);
    scene.wait_vaulted();
    let known: BTreeSet<_> = old.iter().map(|(lane, _)| lane.clone()).collect();
    assert!(lane_keys(&scene).iter().any(|(lane, _)| !known.contains(lane)), "a restart begins a lane of its own");

    assert!(!memory_contains(scene.gateway.as_ref().unwrap().id(), &old[0].1), "the memory holds the old lane's key");
    let loot = folder();
    for part in ["journal", "pki", "logs"] {
        copy_tree(&scene.dir().join(part), &loot.path().join(part));
    }
    for file in ["gateway.toml", "catalog.key"] {
        std::fs::copy(scene.dir().join(file), loot.path().join(file)).unwrap();
    }
    let mut stolen = Vec::new();
    files(loot.path(), &mut stolen);
    assert!(stolen.len() > 5, "{stolen:?}");
    copy_tree(&scene.dir().join("vault"), &loot.path().join("copy-of-vault"));
    let vault = format!("file://{}", loot.path().join("copy-of-vault").display());
    for file in &stolen {
        assert!(!contains_key(&std::fs::read(file).unwrap(), &old[0].1), "{} holds the old lane's key", file.display());
        // Journal segments are large and surely no identity; everything small is tried as one.
        if std::fs::metadata(file).unwrap().len() > 1 << 20 {
            continue;
        }
        let target = loot.path().join("target.img");
        let (code, _, err) = tidegate(&[
            "restore",
            "--vault",
            &vault,
            "--identity",
            file.to_str().unwrap(),
            "--disk",
            "disk1",
            "--point",
            &scene.kept[0].made.id,
            "--to",
            target.to_str().unwrap(),
        ]);
        assert!(code != 0, "{} opened the vault: {err}", file.display());
    }
    scene.stop();
    scene.assert_all_restore();
}
