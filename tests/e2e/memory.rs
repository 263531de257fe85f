//! Promise 8: memory is bounded by configuration, also when the vault takes half of what comes, or less.

use std::sync::atomic::Ordering;

use crate::common::azurite::Azurite;
use crate::common::proxy::Proxy;
use crate::common::{Scene, Setting, empty, turn_alone};

/// What each daemon needs besides its budget, as `--print-config` says.
pub const BASE_BYTES: u64 = 64 << 20;
pub const GATEWAY_BUDGET_BYTES: u64 = 128 << 20;
const AGENT_BUDGET_BYTES: u64 = 32 << 20;
/// What the vault takes, and what the workload writes: more than twice as much even after compression.
const VAULT_BYTES_PER_SECOND: u64 = 6 << 20;
const LOAD_MIB_PER_SECOND: u64 = 40;

/// The largest resident size that a process had so far.
pub fn peak_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
fn memory_stays_within_its_budget_when_more_than_twice_as_much_comes_as_the_vault_takes() {
    let _turn = turn_alone();
    let azurite = Azurite::start();
    let proxy = Proxy::start(azurite.address(), VAULT_BYTES_PER_SECOND);
    let setting = Setting {
        vault: Some(azurite.vault_url_at(proxy.address, "memory")),
        gateway: vec![
            ("", format!("memory = \"{} MiB\"", GATEWAY_BUDGET_BYTES >> 20)),
            ("journal", "capacity = \"512 MiB\"".into()),
            ("journal", "segment = \"16 MiB\"".into()),
        ],
        agent: vec![("", format!("memory = \"{} MiB\"", AGENT_BUDGET_BYTES >> 20))],
    };
    let mut scene = Scene::new(setting, &["disk1"], empty(1 << 30));
    let load = scene.load("disk1", 3, LOAD_MIB_PER_SECOND);
    // More than journal and queues hold together, so that every bound is reached.
    scene.write_more(&load, 1 << 30);
    let sent = proxy.sent_bytes.load(Ordering::Relaxed);
    let written = load.done().written_bytes;
    assert!(sent * 2 < written, "the vault was not slow enough to prove anything: {sent} of {written} bytes");
    let gateway = peak_bytes(scene.gateway.as_ref().unwrap().id());
    let agent = peak_bytes(scene.agent.as_ref().unwrap().id());
    let mib = |bytes: u64| bytes >> 20;
    println!("peak memory: gateway {} MiB, agent {} MiB", mib(gateway), mib(agent));
    assert!(gateway <= GATEWAY_BUDGET_BYTES + BASE_BYTES, "the gateway used {} MiB", mib(gateway));
    assert!(agent <= AGENT_BUDGET_BYTES + BASE_BYTES, "the agent used {} MiB", mib(agent));
    drop(load);
    scene.assert_alive();
}
