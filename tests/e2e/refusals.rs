//! Wrong calls, wrong keys, wrong certificates: each is refused by name, with the next step, and harms nobody.

use std::path::Path;

use tidegate::cli::quickstart::child::wait_until;
use tidegate::keys::Identity;

use crate::alone::copy_tree;
use crate::common::{PATIENCE, Scene, Setting, empty, ext4, folder, succeed, tidegate, turn};

fn assert_refused(arguments: &[&str], codes: &[i32], words: &[&str]) {
    let (code, out, err) = tidegate(arguments);
    assert!(codes.contains(&code), "{arguments:?} ended with {code}\n{out}\n{err}");
    for word in words {
        assert!(err.contains(word), "{arguments:?} does not say {word:?}:\n{err}");
    }
    assert!(!err.contains("panicked"), "{err}");
}

#[test]
fn a_restore_refuses_wrong_keys_points_disks_and_targets_and_says_what_to_do() {
    let _turn = turn();
    let mut scene = Scene::new(Setting::default(), &["disk1"], ext4(128 << 20));
    scene.wait_copied("disk1");
    let point = scene.keep("disk1", "one", None);
    scene.wait_vaulted();
    scene.stop();
    let place = folder();
    let path = |name: &str| place.path().join(name).display().to_string();
    copy_tree(&scene.dir().join("vault"), Path::new(&path("deep/vault")));
    let vault = format!("file://{}", path("deep/vault"));
    let right = scene.site.identity().display().to_string();
    let restore = |identity: &[&str], disk: &str, at: &[&str], to: &str, codes: &[i32], words: &[&str]| {
        let all = [&["restore", "--vault", &vault], identity, &["--disk", disk], at, &["--to", to]].concat();
        assert_refused(&all, codes, words);
    };
    let point = ["--point", point.as_str()];
    let identity = ["--identity", right.as_str()];
    let target = path("target.img");

    Identity::generate().write(Path::new(&path("other.key"))).unwrap();
    restore(&["--identity", &path("other.key")], "disk1", &point, &target, &[1], &["identity"]);
    restore(&[], "disk1", &point, &target, &[1, 2], &["--identity"]);
    restore(&["--identity", &path("nowhere")], "disk1", &point, &target, &[1, 2], &["nowhere"]);
    restore(&identity, "disk7", &point, &target, &[1, 2], &["disk7"]);
    restore(&identity, "disk1", &["--point", "e9-s9"], &target, &[1, 2], &["e9-s9"]);
    restore(&identity, "disk1", &["--point", "monday"], &target, &[1, 2], &["monday"]);
    restore(&identity, "disk1", &["--at", "2001-01-01T00:00:00Z"], &target, &[1, 2], &["2001"]);
    assert!(!Path::new(&target).exists(), "a refused restore leaves no target");
    std::fs::write(&target, "precious").unwrap();
    restore(&identity, "disk1", &point, &target, &[1, 2], &["--force"]);
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "precious");
    restore(&identity, "disk1", &point, "/nowhere/target.img", &[1, 2], &["/nowhere"]);
    assert_refused(
        &["restore", "--vault", "file:///nowhere", "--identity", &right, "--disk", "disk1", "--to", &path("x")],
        &[1, 2],
        &["/nowhere"],
    );
    assert_refused(&["verify", "--vault", "ftp://x"], &[1, 2], &["ftp://x"]);

    // The vault's own description, changed by a hand that has no key.
    let head = path("deep/vault/vault");
    let text = std::fs::read_to_string(&head).unwrap();
    std::fs::write(&head, text.replacen("\"created_micros\":", "\"created_micros\":1", 1)).unwrap();
    restore(&identity, "disk1", &point, &path("y"), &[1, 3], &["vault"]);
}

#[test]
fn a_gateway_refuses_a_journal_or_key_that_is_not_its_own_and_a_vault_that_exists_is_not_made_again() {
    let _turn = turn();
    let mut scene = Scene::new(Setting::default(), &["disk1"], ext4(128 << 20));
    scene.wait_copied("disk1");
    scene.stop();
    let dir = scene.dir().to_owned();
    let path = |name: &str| dir.join(name).display().to_string();
    let config = std::fs::read_to_string(path("gateway.toml")).unwrap();
    let refused = |text: String, words: &[&str]| {
        std::fs::write(path("other.toml"), text).unwrap();
        assert_refused(&["gateway", "--config", &path("other.toml")], &[1, 2], words);
    };
    refused(config.replacen("id = \"gw1\"", "id = \"gw2\"", 1), &["gw1"]);
    let (code, _, err) = tidegate(&[
        "vault",
        "init",
        "--vault",
        &format!("file://{}", path("vault2")),
        "--new-identity",
        &path("key2"),
        "--catalog-key",
        &path("catalog2.key"),
    ]);
    assert_eq!(code, 0, "{err}");
    refused(config.replacen("catalog.key", "catalog2.key", 1), &["catalog"]);
    refused(config.replacen("listen =", "lisden =", 1), &["lisden", "listen"]);
    assert_refused(
        &[
            "vault",
            "init",
            "--vault",
            scene.site.vault_url(),
            "--new-identity",
            &path("key3"),
            "--catalog-key",
            &path("catalog3.key"),
        ],
        &[1, 2],
        &["vault"],
    );
    assert_refused(
        &["vault", "init", "--vault", &format!("file://{}", path("vault4")), "--catalog-key", &path("catalog4.key")],
        &[2],
        &["--recipient"],
    );
    scene.gateway = Some(scene.site.start_gateway().unwrap());
}

#[test]
fn an_agent_that_may_not_write_a_disk_is_refused_and_its_guest_goes_on() {
    let _turn = turn();
    let mut scene = Scene::stopped(Setting::default(), &["disk1"], empty(64 << 20));
    let pki = scene.dir().join("pki").display().to_string();
    let issue = |disk: &str| {
        let all = ["pki", "issue", "--dir", &pki, "--force", "agent", "--id", "agent1", "--disk", disk];
        succeed(crate::common::program(), &all);
    };
    issue("somebody-elses");
    scene.gateway = Some(scene.site.start_gateway().unwrap());
    scene.agent = Some(scene.site.start_agent().unwrap());
    let load = scene.load("disk1", 4, 16);
    let log = scene.site.path("logs/agent.log");
    let told = wait_until(PATIENCE, || {
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        log.contains("disk1") && (log.contains("may not") || log.contains("refused"))
    });
    assert!(told, "the agent does not say why:\n{}", std::fs::read_to_string(&log).unwrap());
    scene.write_more(&load, 8 << 20);
    assert_eq!(load.done().interruptions, 0);
    // With the right certificate everything is made up for.
    issue("disk1");
    scene.kill_agent();
    scene.wait_copied("disk1");
    scene.keep("disk1", "at-last", Some(&load));
    drop(load);
    scene.wait_vaulted();
    scene.stop();
    scene.assert_all_restore();
}
