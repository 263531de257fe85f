//! The demonstration that the README promises.

use std::path::Path;

use crate::common::{assert_file_system, folder, output, program, tidegate, turn};

fn report(dir: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(dir.join("report.json")).unwrap()).unwrap()
}

#[test]
fn quickstart_restores_three_points_identically_though_gateway_and_agent_were_killed() {
    let _turn = turn();
    let folder = folder();
    let dir = folder.path().join("work");
    let (code, out, err) = tidegate(&["quickstart", "--dir", dir.to_str().unwrap(), "--size", "256 MiB", "--json"]);
    assert_eq!(code, 0, "{out}\n{err}");
    let report = report(&dir);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&out).unwrap(), report);
    let points = report["points"].as_array().unwrap();
    assert_eq!(points.len(), 3);
    for point in points {
        assert_eq!(point["sha256"], point["restored_sha256"]);
        assert!(point["id"].as_str().unwrap().starts_with('e') && point["time"].is_string());
        let name = point["name"].as_str().unwrap();
        assert_file_system(&dir.join(format!("restored/{name}.img")));
    }
    assert_eq!(report["size_bytes"], 256 << 20);
    let bytes = |key: &str| report[key].as_u64().unwrap();
    assert!(bytes("received_bytes") > bytes("stored_bytes") && bytes("stored_bytes") > 1 << 20, "{report}");
    let kills: Vec<_> = report["kills"].as_array().unwrap().iter().map(|kill| kill["what"].as_str().unwrap()).collect();
    assert!(kills.contains(&"gateway"), "{kills:?}");
    assert!(dir.join("vault").is_dir() && dir.join("recovery.key").is_file());
    // Nothing of it runs any more.
    let running = output("ps", &["-eo", "args"]);
    assert!(!String::from_utf8_lossy(&running.stdout).contains(dir.to_str().unwrap()), "a daemon was left behind");
    // The directory is not taken a second time unasked.
    let (code, _, err) = tidegate(&["quickstart", "--dir", dir.to_str().unwrap()]);
    assert_eq!(code, 2);
    assert!(err.contains("--force"), "{err}");
}

#[test]
fn quickstart_never_touches_a_foreign_directory_or_the_disk_it_is_given() {
    let _turn = turn();
    let folder = folder();
    std::fs::write(folder.path().join("thesis"), "mine").unwrap();
    for force in [&[][..], &["--force"]] {
        let all = [&["quickstart", "--dir", folder.path().to_str().unwrap()], force].concat();
        let (code, _, err) = tidegate(&all);
        assert_eq!(code, 2, "{err}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);

    let disk = folder.path().join("mine.img");
    let contents: Vec<u8> = (0..64_u32 << 18).flat_map(|number| (number / 1000).to_le_bytes()).collect();
    std::fs::write(&disk, &contents).unwrap();
    let dir = folder.path().join("work");
    let (code, out, err) = tidegate(&["quickstart", "--dir", dir.to_str().unwrap(), "--disk", disk.to_str().unwrap()]);
    assert_eq!(code, 0, "{out}\n{err}");
    assert!(std::fs::read(&disk).unwrap() == contents, "the disk that was given was changed");
    assert_eq!(report(&dir)["size_bytes"], contents.len());
}

#[test]
fn a_wrong_call_says_what_is_right() {
    let (code, _, err) = tidegate(&["quickstart", "--size", "1 MiB"]);
    assert_eq!(code, 2);
    assert!(err.contains("128 MiB"), "{err}");
    let gone = output(program(), &["quickstart", "--disk", "/nowhere/disk.img", "--dir", "/proc/nowhere"]);
    assert_eq!(gone.status.code(), Some(2));
}
