//! The doctor, the bundle and the plan on a real installation: sound, running, and broken in one place at a time.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::common::azurite::Azurite;
use crate::common::{Scene, Setting, empty, folder, program, tidegate, turn};

fn doctor(config: &Path) -> (i32, BTreeMap<String, Vec<Value>>) {
    let (code, out, err) = tidegate(&["doctor", "--config", config.to_str().unwrap(), "--json"]);
    let told: Value = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}\n{err}"));
    assert_eq!(told["exit_code"], code, "{out}");
    let mut checks: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for finding in told["findings"].as_array().unwrap() {
        checks.entry(finding["check"].as_str().unwrap().to_owned()).or_default().push(finding.clone());
    }
    (code, checks)
}

/// What failed, as check and measured text. That the folder for temporary files may be a tmpfs is no fault of a test's.
fn failed(checks: &BTreeMap<String, Vec<Value>>) -> Vec<(String, String)> {
    let all = checks.values().flatten().filter(|finding| finding["grade"] == "fail");
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
    let named = all.map(|finding| (text(finding, "check"), text(finding, "measured")));
    named.filter(|(_, measured)| !measured.ends_with("tmpfs")).collect()
}

/// Exit code and what failed, with a configuration changed from one text to another.
fn broken(scene: &Scene, from: &str, to: &str) -> (i32, Vec<(String, String)>) {
    let text = std::fs::read_to_string(scene.site.path("gateway.toml")).unwrap();
    assert!(text.contains(from), "{from} is not in {text}");
    let config = scene.site.path("broken.toml");
    std::fs::write(&config, text.replace(from, to)).unwrap();
    let (code, checks) = doctor(&config);
    (code, failed(&checks))
}

#[track_caller]
fn assert_only(found: &(i32, Vec<(String, String)>), code: i32, check: &str, words: &str) {
    assert_eq!(found.0, code, "{found:?}");
    assert!(found.1.len() == 1 && found.1[0].0 == check && found.1[0].1.contains(words), "{found:?}");
}

/// Files of the vault with their sizes.
fn vault_files(scene: &Scene) -> BTreeMap<std::path::PathBuf, u64> {
    let (mut folders, mut out) = (vec![scene.dir().join("vault")], BTreeMap::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                out.insert(entry.path(), entry.metadata().unwrap().len());
            }
        }
    }
    out
}

#[test]
fn the_doctor_passes_a_sound_gateway_and_names_each_thing_that_is_broken() {
    let _turn = turn();
    let mut scene = Scene::stopped(Setting::default(), &["disk1"], empty(8 << 20));
    let config = scene.site.path("gateway.toml");
    let before = vault_files(&scene);
    let (code, checks) = doctor(&config);
    assert_eq!((code, failed(&checks)), (0, Vec::new()), "{checks:?}");
    for check in [
        "io_uring",
        "journal-latency",
        "certificate-chain",
        "vault-read",
        "vault-list",
        "vault-create",
        "vault-latency",
    ] {
        assert!(checks.contains_key(check), "{check} is not in {checks:?}");
    }
    assert_eq!(vault_files(&scene), before, "nothing is left in the vault");
    assert_eq!(std::fs::read_dir(scene.site.path("journal")).unwrap().count(), 0, "nothing is left in the journal");

    assert_only(&broken(&scene, "gateway-gw1.key", "ca.key"), 1, "certificate", "cannot be used");
    assert_only(&broken(&scene, "id = \"gw1\"", "id = \"gw2\""), 1, "certificate", "gw2");
    assert_only(
        &broken(&scene, "capacity = \"2 GiB\"", "capacity = \"512 TiB\""),
        1,
        "journal-space",
        "512 TiB configured",
    );
    assert_only(&broken(&scene, "dir = \"journal\"", "dir = \"gateway.toml\""), 1, "journal-directory", "no directory");
    let (code, found) = broken(&scene, "/vault\"", "/nowhere\"");
    assert!(code == 1 && found.iter().all(|(check, _)| check == "vault-read"), "{found:?}");
    let (code, found) = broken(&scene, "catalog.key", "recovery.key");
    assert!(
        code == 1 && found.iter().any(|(check, text)| check == "vault-read" && text.contains("recovery.key")),
        "{found:?}"
    );
    // A name that leads nowhere passes by itself, as far as anybody can tell.
    let url = scene.site.vault_url().to_owned();
    let away = "http://127.0.0.1:9/devstoreaccount1/c";
    assert_only(&broken(&scene, &url, away), 75, "vault-read", "127.0.0.1:9");

    let (code, _, err) = tidegate(&["doctor", "agent", "--config", config.to_str().unwrap()]);
    assert!(code == 2 && err.contains("gateways"), "{err}");

    // Running: its ports are in use, and by whom is known. The agent reaches it over both transports.
    scene.gateway = Some(scene.site.start_gateway().unwrap());
    let (code, checks) = doctor(&config);
    assert_eq!((code, failed(&checks)), (0, Vec::new()), "{checks:?}");
    assert_eq!(checks["daemon"][0]["measured"], "runs, ready for agents");
    assert!(
        checks["port"].iter().all(|port| port["measured"].as_str().unwrap().contains("running daemon")),
        "{checks:?}"
    );
    let agent = scene.site.path("agent.toml");
    let (code, checks) = doctor(&agent);
    assert_eq!((code, failed(&checks)), (0, Vec::new()), "{checks:?}");
    assert!(checks["gateway"].len() == 2 && checks["gateway"].iter().all(|way| way["grade"] == "ok"), "{checks:?}");
    scene.gateway.take().unwrap().kill().unwrap();
    let (code, checks) = doctor(&agent);
    assert!(code == 75 && failed(&checks).iter().all(|(check, _)| check == "gateway"), "{checks:?}");
}

#[test]
fn the_doctor_proves_the_rights_in_azurite_and_tells_an_outage_from_a_missing_container() {
    let _turn = turn();
    let mut azurite = Azurite::start();
    let vault = Some(azurite.vault_url("doctor"));
    let scene = Scene::stopped(Setting { vault, ..Setting::default() }, &["disk1"], empty(8 << 20));
    let config = scene.site.path("gateway.toml");
    let (code, checks) = doctor(&config);
    assert_eq!((code, failed(&checks)), (0, Vec::new()), "{checks:?}");
    assert_eq!(checks["vault-create"][0]["grade"], "ok", "{checks:?}");
    assert!(checks["clock"][0]["measured"].as_str().unwrap().contains("the store's clock"), "{checks:?}");
    let (code, found) = broken(&scene, "/doctor\"", "/another\"");
    assert!(code == 1 && found.iter().all(|(check, _)| check.starts_with("vault-")), "{found:?}");
    azurite.stop();
    let (code, checks) = doctor(&config);
    assert_eq!(code, 75, "{checks:?}");
    assert!(failed(&checks).iter().all(|(check, _)| check == "vault-read"), "{checks:?}");
}

const ACCOUNT_KEY: &str =
    "cGxhbnRlZCthY2NvdW50L2tleSt0aGF0K211c3Qvbm90K2JlK2luK3RoZS9idW5kbGU5ODc2NTQzMjEwQWJDZEVmMQ==";
const SAS: &str = "sv=2024-11-04&sp=rlc&se=2027-01-01T00%3A00%3A00Z&sig=pLaNtEd%2Bs4s%2Fsignature%3D";
const SAS_PART: &str = "pLaNtEd";

fn unpack(bundle: &Path, into: &Path) -> BTreeMap<String, String> {
    let tar = Command::new("tar").arg("-xzf").arg(bundle).arg("-C").arg(into).status().unwrap();
    assert!(tar.success());
    let (mut folders, mut out) = (vec![into.to_owned()], BTreeMap::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                let name = entry.path().strip_prefix(into).unwrap().display().to_string();
                out.insert(name, std::fs::read_to_string(entry.path()).unwrap());
            }
        }
    }
    out
}

#[test]
fn no_secret_that_is_planted_anywhere_comes_out_of_the_bundle() {
    let _turn = turn();
    let mut scene = Scene::stopped(Setting::default(), &["disk1"], empty(8 << 20));
    scene.gateway = Some(scene.site.start_gateway().unwrap());
    let read = |name: &str| std::fs::read_to_string(scene.site.path(name)).unwrap();
    let (pem, catalog, identity) = (read("pki/gateway-gw1.key"), read("catalog.key"), read("recovery.key"));
    let (ca, gateway_toml) = (read("pki/ca.key"), read("gateway.toml"));
    let commented = |text: &str| text.lines().map(|line| format!("# {line}\n")).collect::<String>();
    let planted = format!(
        "AccountKey={ACCOUNT_KEY};\nkey {ACCOUNT_KEY}\nhttps://a.blob.core.windows.net/c/b/000?{SAS}\n{pem}{ca}{catalog}{identity}\
         {{\"message\":{:?}}}\n",
        format!("{pem} {catalog} ?{SAS}")
    );
    let log = scene.site.path("planted.log");
    std::fs::write(&log, format!("an ordinary line\n{planted}")).unwrap();
    let config = scene.site.path("planted.toml");
    std::fs::write(&config, format!("{gateway_toml}\n{}", commented(&planted))).unwrap();

    let words = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.starts_with("-----") && !line.starts_with('#'));
        lines.map(|line| line.split_whitespace().last().unwrap().to_owned()).filter(|word| word.len() >= 12).collect()
    };
    let secrets: Vec<String> = [words(&pem), words(&ca), words(&catalog), words(&identity)].concat();
    assert!(secrets.len() >= 4, "{secrets:?}");
    let named = |text: &str| {
        let found = secrets.iter().map(String::as_str).chain([ACCOUNT_KEY, SAS_PART, "AGE-SECRET-KEY-1Q"]);
        found.filter(|secret| text.contains(*secret)).map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(named(&planted).len() >= secrets.len() + 2, "the search finds what is planted");

    for (name, config) in [("sound", &config), ("broken", &scene.site.path("mistaken.toml"))] {
        if name == "broken" {
            // A secret at the wrong place, in a file that is refused for it, and quoted by the refusal.
            std::fs::write(
                config,
                format!(
                    "listen = \"{ACCOUNT_KEY}\"\n[vault]\nurl = \"https://h/c?{SAS}\"\nkey = '''{pem}'''\n[journal]\n"
                ),
            )
            .unwrap();
        }
        let bundle = scene.dir().join(format!("{name}.tar.gz"));
        let output = Command::new(program())
            .args([
                "bundle",
                "--config",
                config.to_str().unwrap(),
                "--out",
                bundle.to_str().unwrap(),
                "--log",
                log.to_str().unwrap(),
            ])
            .env("AZURE_STORAGE_ACCOUNT_KEY", ACCOUNT_KEY)
            .env("AZURE_STORAGE_SAS_TOKEN", SAS)
            .output()
            .unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{out}{err}");
        assert_eq!((named(&out), named(&err)), (Vec::new(), Vec::new()), "the command's own words");
        let place = folder();
        let files = unpack(&bundle, place.path());
        for (file, text) in &files {
            assert_eq!(named(text), Vec::<String>::new(), "{name}: {file}");
        }
        let log = files.iter().find(|(file, _)| file.ends_with("planted.log")).unwrap();
        assert!(log.1.contains("an ordinary line") && log.1.contains("[secret]"), "{log:?}");
        assert!(files["tidegate-bundle/config.toml"].contains("[journal]"));
        if name == "sound" {
            assert!(files["tidegate-bundle/gateway/status.json"].contains("\"gw1\""), "{:?}", files.keys());
            assert!(files["tidegate-bundle/gateway/metrics.txt"].contains("tidegate_build_info"));
            assert!(files["tidegate-bundle/doctor.json"].contains("vault-create"));
            assert!(files["tidegate-bundle/journal.json"].contains("\"segments\""));
        } else {
            assert!(files["tidegate-bundle/config-mistakes.txt"].contains("listen"), "{:?}", files.keys());
        }
        let again = tidegate(&["bundle", "--config", config.to_str().unwrap(), "--out", bundle.to_str().unwrap()]);
        assert!(again.0 == 2 && again.2.contains("exists already"), "{again:?}");
        let mode = std::fs::metadata(&bundle).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[test]
fn a_plan_from_figures_from_a_watched_machine_and_from_a_trace() {
    let site = ["plan", "--churn", "2 TB/day", "--machines", "225", "--disks", "2", "--disk-size", "100 GiB"];
    let prices = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prices.example.toml");
    let (code, out, err) = tidegate(&[&site[..], &["--prices", prices.to_str().unwrap(), "--json"]].concat());
    assert_eq!(code, 0, "{err}");
    let told: Value = serde_json::from_str(&out).unwrap();
    let figure = |name: &str| told["figures"].as_array().unwrap().iter().find(|figure| figure["name"] == name).cloned();
    assert_eq!(figure("gateways").unwrap()["value"], 2.0, "{out}");
    assert!(figure("price_per_month").unwrap()["formula"].as_str().unwrap().contains("fictitious"), "{out}");
    let (code, out, _) = tidegate(&[&site[..], &["--uplink", "100 Mbit/s", "--explain"]].concat());
    assert!(code == 1 && out.contains("PROBLEM the uplink") && !out.contains("price"), "{out}");
    assert!(out.contains("= churn 23.1 MB/s x peak factor 4.00"), "{out}");
    assert_eq!(tidegate(&["plan"]).0, 2);

    let place = folder();
    let trace = place.path().join("trace");
    std::fs::write(&trace, "0,0,1048576\n30,0,8192\n59,0,8192,z\n").unwrap();
    let (code, out, err) = tidegate(&["plan", "--trace", trace.to_str().unwrap(), "--machines", "10", "--json"]);
    assert_eq!(code, 0, "{err}");
    let told: Value = serde_json::from_str(&out).unwrap();
    let churn = told["demand"]["churn_bytes_per_second"].as_f64().unwrap();
    assert!((churn - 1_056_768.0 / 60.0 * 10.0).abs() < 1.0, "{churn}");

    // A machine that has no device of its own says so; any other tells what it writes.
    let (code, out, err) = tidegate(&["plan", "--observe", "2 s", "--json"]);
    if code == 2 {
        assert!(err.contains("--device"), "{err}");
    } else {
        let told: Value = serde_json::from_str(&out).unwrap();
        assert!(code == 0 && told["demand"]["churn_bytes_per_second"].as_f64().unwrap() >= 0.0, "{out}{err}");
    }
}
