//! The trial of docs/OPERATING.md, line by line as it stands there: what a newcomer reads is what was run.

use std::os::unix::fs::symlink;
use std::path::Path;

use crate::common::{folder, output, program, turn};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// The lines wait for what they begin; on a busy machine that takes a while, and not for ever.
const PATIENCE_SECONDS: &str = "900";

/// All shell blocks of the section, in their order.
fn lines() -> String {
    let page = std::fs::read_to_string(Path::new(ROOT).join("docs/OPERATING.md")).unwrap();
    let (_, rest) = page.split_once("\n## A trial on one machine\n").unwrap();
    let (section, _) = rest.split_once("\n## ").unwrap();
    let blocks: Vec<&str> =
        section.split("\n```sh\n").skip(1).map(|block| block.split_once("\n```").unwrap().0).collect();
    assert!(blocks.len() >= 8, "{} blocks: {section}", blocks.len());
    blocks.join("\n")
}

#[test]
fn the_trial_of_the_operating_page_works_as_it_is_written() {
    let _turn = turn();
    let folder = folder();
    let place = |name: &str| folder.path().join(name);
    // The source's folder after a build.
    std::fs::create_dir_all(place("target/release")).unwrap();
    symlink(program(), place("target/release/tidegate")).unwrap();
    symlink(Path::new(ROOT).join("deploy"), place("deploy")).unwrap();
    // Not of the page: to stop at the first failure, and to leave nothing behind then.
    let script = format!("set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{}\n", lines());
    std::fs::write(place("lines"), script).unwrap();
    // The ports are the page's: where that can be had, in a network of its own.
    let alone = ["unshare", "--net", "sh", "-c", "ip link set lo up && exec \"$@\"", "sh"];
    let call =
        ["timeout", "--kill-after=20", PATIENCE_SECONDS, "env", "-C", folder.path().to_str().unwrap(), "bash", "lines"];
    let alone = if rustix::process::geteuid().is_root() { &alone[..] } else { &[] };
    let call = [alone, &call[..]].concat();
    let ended = output(call[0], &call[1..]);
    let (said, complained) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert!(ended.status.success(), "{}: {said}\n{complained}", ended.status);
    for word in ["gateway gw1", "gateway gw2", "protected", "connected to gateway gw2", "SUCCESS", "=> 3 "] {
        assert!(said.contains(word), "{word} is not in what was printed: {said}\n{complained}");
    }
    assert!(!place("trial").exists(), "the last lines leave nothing");
}
