//! Who can open a vault changes while a gateway and an agent work.

use std::path::Path;

use crate::common::{Kept, Scene, Setting, assert_same, empty, succeed, tidegate, turn};

const PASSPHRASE: &str = "tide and gate";

/// The identities of the scene, and what the verbs need to open them.
struct People {
    vault: String,
    old: String,
    new: String,
    passphrase: String,
}

impl People {
    fn arguments<'a>(&'a self, who: &'a str) -> Vec<&'a str> {
        let plain = vec!["--vault", &self.vault, "--identity", who];
        // The old identity is not locked.
        if who == self.old { plain } else { [&plain[..], &["--passphrase-file", &self.passphrase]].concat() }
    }

    fn run(&self, verb: &[&str], who: &str, rest: &[&str]) -> (i32, String, String) {
        tidegate(&[verb, &self.arguments(who)[..], rest].concat())
    }

    fn change(&self, verb: &str, who: &str, rest: &[&str]) -> serde_json::Value {
        let (code, out, err) = self.run(&["vault", "recipients", verb], who, &[rest, &["--json"]].concat());
        assert_eq!(code, 0, "{verb} {rest:?}: {out}\n{err}");
        serde_json::from_str(&out).unwrap()
    }

    fn restore(&self, scene: &Scene, kept: &Kept, who: &str) -> (i32, String) {
        let target = scene.dir().join("restored.img");
        let _ = std::fs::remove_file(&target);
        let to = target.display().to_string();
        let rest = ["--disk", &kept.disk, "--point", &kept.made.id, "--to", &to];
        let (code, _, err) = self.run(&["restore"], who, &rest);
        if code == 0 {
            assert_same(&kept.copy, &target, &kept.made.id);
        }
        (code, err)
    }
}

#[test]
fn a_gateway_wraps_nothing_to_recipients_that_are_not_pinned_and_goes_on_when_they_are() {
    let _turn = turn();
    let pins = |pin: &str| format!("recipients_pin = [\"{pin}\"]");
    let wrong = "5".repeat(64);
    let setting = Setting { gateway: vec![("vault", pins(&wrong))], ..Setting::default() };
    let mut scene = Scene::new(setting, &["disk1"], empty(16 << 20));
    let findings = |scene: &Scene| scene.site.admin("/v1/status").unwrap_or_default();
    scene.wait("the gateway to say so", |scene| findings(scene).contains("TidegateRecipientsChanged"));
    let said = findings(&scene);
    assert_eq!(files(&scene.dir().join("vault/lanes")), 0, "no lane was opened");
    let (vault, identity) = (scene.site.vault_url().to_owned(), scene.site.identity().display().to_string());
    let list = ["vault", "recipients", "list", "--vault", &vault, "--identity", &identity, "--json"];
    let list: serde_json::Value = serde_json::from_str(&succeed(crate::common::program(), &list)).unwrap();
    let pin = list["pin"].as_str().unwrap();
    assert!(said.contains(pin) && said.contains("recipients_pin"), "{said}");
    let admin = scene.site.admin_address().to_string();
    let (_, out, err) = tidegate(&["status", "--admin", &admin]);
    assert!(out.contains("CRITICAL") && out.contains(pin), "{out}{err}");

    let config = scene.site.path("gateway.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace(&wrong, pin)).unwrap();
    crate::reload::hang_up(scene.gateway.as_ref());
    scene.wait_copied("disk1");
    scene.keep("disk1", "pinned", None);
    scene.wait_vaulted();
    assert!(!findings(&scene).contains("TidegateRecipientsChanged"));
}

fn files(folder: &Path) -> usize {
    std::fs::read_dir(folder).map_or(0, |entries| entries.count())
}

#[test]
fn a_new_recipient_restores_everything_and_the_removed_one_only_what_was_written_before() {
    let _turn = turn();
    let mut scene = Scene::new(Setting::default(), &["disk1"], empty(64 << 20));
    scene.wait_copied("disk1");
    let load = scene.load("disk1", 7, 4);
    scene.write_more(&load, 4 << 20);
    scene.keep("disk1", "before", Some(&load));
    scene.wait_vaulted();
    let path = |name: &str| scene.site.path(name).display().to_string();
    let (old, new, passphrase) = (scene.site.identity().display().to_string(), path("new.key"), path("passphrase"));
    let people = People { vault: scene.site.vault_url().to_owned(), old, new, passphrase };
    std::fs::write(&people.passphrase, format!("{PASSPHRASE}\n")).unwrap();
    let vault = scene.dir().join("vault");

    // Only said, then done. The new identity is locked.
    let lock = ["--new-identity", &people.new, "--lock", "--new-passphrase-file", &people.passphrase];
    let said = people.change("add", &people.old, &[&lock[..], &["--dry-run"]].concat());
    assert_eq!((said["dry_run"].as_bool(), said["list"].as_u64()), (Some(true), Some(0)));
    assert!(!Path::new(&people.new).exists() && files(&vault.join("recipients")) == 0, "nothing was written");
    let added = people.change("add", &people.old, &lock);
    assert_eq!((added["list"].as_u64(), added["rewrapped_lanes"].as_u64()), (Some(1), Some(1)), "{added}");
    let locked = std::fs::read_to_string(&people.new).unwrap();
    assert!(locked.starts_with("-----BEGIN AGE ENCRYPTED FILE-----"), "{locked}");
    let list = people.change("list", &people.new, &[]);
    let closed: Vec<_> =
        list["recipients"].as_array().unwrap().iter().map(|one| one["lanes_closed"].as_u64()).collect();
    assert_eq!(closed, [Some(0), Some(0)], "{list}");
    assert_eq!(people.restore(&scene, &scene.kept[0], &people.new).0, 0);

    // The new one takes the old one off the list; the gateway, which runs, goes on with another lane.
    let gone = list["recipients"][0]["recipient"].as_str().unwrap();
    let removed = people.change("remove", &people.new, &["--recipient", gone]);
    assert_eq!((removed["list"].as_u64(), removed["recipients"].as_array().map(Vec::len)), (Some(2), Some(1)));
    let open = || people.change("list", &people.new, &[])["lanes_open_to_others"].as_array().map(Vec::len);
    scene.wait("the gateway's look at the list", |_| open() == Some(0));
    scene.write_more(&load, 8 << 20);
    scene.keep("disk1", "after", Some(&load));
    assert_eq!(load.done().interruptions, 0);
    drop(load);
    scene.wait_vaulted();
    for kept in &scene.kept {
        let (code, err) = people.restore(&scene, kept, &people.new);
        assert_eq!(code, 0, "{}: {err}", kept.made.id);
    }
    assert_eq!(people.restore(&scene, &scene.kept[0], &people.old).0, 0, "what was open to the old one stays open");
    let (code, err) = people.restore(&scene, &scene.kept[1], &people.old);
    assert!(code == 1 && err.contains("tidegate vault recipients add"), "{code}: {err}");
    let (code, _, err) = people.run(&["vault", "recipients", "add"], &people.old, &["--recipient", gone]);
    assert!(code == 1 && files(&vault.join("recipients")) == 2, "the removed one let itself in again: {code}: {err}");

    scene.stop();
    let (code, out, err) = people.run(&["verify"], &people.new, &[]);
    assert_eq!(code, 0, "{out}\n{err}");
    let (code, _, err) = people.run(&["verify"], &people.old, &[]);
    assert_eq!(code, 1, "what it cannot open is not damaged: {err}");
    succeed(crate::common::program(), &[&["vault", "rewrap"][..], &people.arguments(&people.new)].concat());
    refuses_without_the_passphrase(&scene, &people);
}

/// Nobody is asked where there is no terminal, and nothing hangs.
fn refuses_without_the_passphrase(scene: &Scene, people: &People) {
    let list = ["vault", "recipients", "list", "--vault", &people.vault, "--identity", &people.new];
    let (code, _, err) = tidegate(&list);
    assert!(code == 2 && err.contains("--passphrase-file"), "{code}: {err}");
    let wrong = scene.site.path("wrong").display().to_string();
    std::fs::write(&wrong, "gate and tide\n").unwrap();
    let (code, _, err) = tidegate(&[&list[..], &["--passphrase-file", &wrong]].concat());
    assert!(code == 1 && err.contains("does not open with this passphrase"), "{code}: {err}");
    std::fs::write(&wrong, "\n").unwrap();
    let (code, _, err) = tidegate(&[&list[..], &["--passphrase-file", &wrong]].concat());
    assert!(code == 2 && err.contains("first line"), "{code}: {err}");
}
