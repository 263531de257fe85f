//! A history that somebody shortened: what agents signed, and what they were told, give it away to the commands of an operator.

use std::path::Path;

use crate::common::{Scene, Setting, empty, tidegate, turn};
use crate::damage::batches;

fn heads(scene: &Scene, file: &str) -> String {
    let config = scene.site.path("agent.toml");
    let (code, out, err) = tidegate(&["agent", "--config", config.to_str().unwrap(), "--heads"]);
    assert_eq!(code, 0, "{err}");
    let path = scene.site.path(file);
    std::fs::write(&path, &out).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Removes the newest batches, until none is left that is newer than any of `kept`, and what would tell of them.
fn shorten(vault: &Path, kept: &[std::path::PathBuf]) {
    for batch in batches(vault).into_iter().filter(|batch| !kept.contains(batch)) {
        std::fs::remove_file(batch).unwrap();
    }
    std::fs::remove_dir_all(vault.join("x")).unwrap();
    for lane in std::fs::read_dir(vault.join("lanes")).unwrap().map(|entry| entry.unwrap().path()) {
        if lane.extension().is_some_and(|ending| ending == "end") {
            std::fs::remove_file(lane).unwrap();
        }
    }
}

#[test]
fn a_history_that_was_shortened_is_found_by_what_its_agent_was_told_and_a_proven_point_is_restored() {
    let _turn = turn();
    // No barriers by themselves: what is vaulted is known.
    let agent = vec![("", "barrier_interval = \"1 h\"".to_owned())];
    let mut scene = Scene::new(Setting { agent, ..Setting::default() }, &["a"], empty(32 << 20));
    scene.wait_copied("a");
    let load = scene.load("a", 5, 20);
    scene.write_more(&load, 4 << 20);
    let first = scene.keep("a", "first", Some(&load));
    scene.write_more(&load, 4 << 20);
    drop(load);
    scene.keep("a", "second", None);
    scene.wait_vaulted();
    let vault = scene.dir().join("vault");
    let before = batches(&vault);
    let told = |scene: &Scene| {
        let file = heads(scene, "heads-running.json");
        let heads: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        heads["heads"][0]["seq"].as_u64()
    };
    let third = scene.keep("a", "third", None);
    let third: u64 = third.rsplit("-s").next().unwrap().parse().unwrap();
    scene.wait_vaulted();
    scene.wait("the agent to be told of the third point", |scene| told(scene) >= Some(third));
    let running = heads(&scene, "heads-running.json");
    scene.stop();
    let stopped = heads(&scene, "heads-stopped.json");

    let (ca, identity) = (scene.site.path("pki/ca.crt"), scene.site.identity());
    let (ca, identity) = (ca.to_str().unwrap(), identity.to_str().unwrap());
    let from = ["--vault", scene.site.vault_url(), "--identity", identity];
    let call = |verb: &[&str], more: &[&str]| {
        let (code, out, err) = tidegate(&[verb, &from[..], more].concat());
        (code, format!("{out}{err}"))
    };
    let verify = |more: &[&str]| call(&["verify"], more);
    let (code, said) = verify(&["--ca", ca, "--heads", &running, "--heads", &stopped]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("signed through e1-s") && !said.contains("nobody vouched"), "{said}");
    let (code, said) = verify(&[]);
    assert!(code == 0 && said.contains("nobody vouched for"), "{said}");

    let restore = |more: &[&str]| {
        let target = scene.dir().join("target.img");
        let _ = std::fs::remove_file(&target);
        call(&["restore", "--disk", "a", "--to", target.to_str().unwrap()], more)
    };
    let (code, said) = restore(&["--point", &first, "--ca", ca]);
    assert!(code == 0 && said.contains(&format!("proven by the signature of agent agent1 at {first}")), "{said}");
    let other = scene.dir().join("other");
    let vault_id = "ab".repeat(16);
    let (code, _, err) = tidegate(&["pki", "init", "--dir", other.to_str().unwrap(), "--vault-id", &vault_id]);
    assert_eq!(code, 0, "{err}");
    let foreign = other.join("ca.crt").display().to_string();
    let (dir, socket) = (scene.dir().display().to_string(), format!("unix:{}", scene.dir().join("x.sock").display()));
    let (drill, export) = (["drill", "--disk", "a", "--dir", &dir], ["export", "--disk", "a", "--listen", &socket]);
    let refused = [
        restore(&["--latest", "--ca", &foreign]),
        call(&drill, &["--ca", &foreign]),
        call(&export, &["--ca", &foreign]),
    ];
    for (code, said) in refused {
        assert!(code == 3 && said.contains("did not issue it") && said.contains("is not given back"), "{said}");
    }
    let (code, said) = call(&drill, &["--point", &first, "--ca", ca]);
    assert!(code == 0 && said.contains("proven by the signature of agent agent1"), "{said}");

    shorten(&vault, &before);
    let (code, said) = verify(&["--ca", ca]);
    assert_eq!(code, 0, "nothing in the vault tells of its end: {said}");
    for heads in [&running, &stopped] {
        let (code, said) = verify(&["--ca", ca, "--heads", heads]);
        let told = std::fs::read_to_string(heads).unwrap();
        assert_eq!(code, 3, "{said}\n{told}\nthird e1-s{third}, left {before:?}");
        assert!(said.contains("disk a, records e1-s") && said.contains("an agent was told that e1-s"), "{said}");
    }
    let (code, said) = restore(&["--latest", "--ca", ca]);
    assert_eq!(code, 0, "what is left is proven: {said}");
}
