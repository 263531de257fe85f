//! Alerts of the gateway itself and of who administers it: files that are refused, too many disks, agents that are gone, a
//! machine that is too small.

use std::path::Path;

use loadgen::sink::Weather;
use tidegate::cli::quickstart::child::Child;

use super::DISK_BYTES;
use super::alerts::{restart_gateway, watched};
use super::prometheus::agent_page;
use super::store::sink;
use crate::common::{PATIENCE, Setting, turn};
use crate::reload::hang_up;

pub const RELOAD: [&str; 1] = ["TidegateReloadRefused"];
pub const OVERLOADED: [&str; 1] = ["TidegateOverloaded"];
pub const MISSING: [&str; 1] = ["TidegateAgentsMissing"];
pub const PROCESSORS: [&str; 2] = ["TidegateProcessorsBusy", "TidegateProcessorsExhausted"];
pub const MEMORY: [&str; 2] = ["TidegateMemoryHigh", "TidegateMemoryExhausted"];

#[test]
fn files_that_are_refused_more_disks_than_a_gateway_wants_and_an_agent_that_is_gone() {
    let _turn = turn();
    let (setting, page) = agent_page();
    let (mut scene, prometheus) = watched(setting, Some(page), &["disk1", "disk2"], DISK_BYTES);
    let (config, certificate) = (scene.site.path("gateway.toml"), scene.site.path("pki/agent-agent1.crt"));
    let [before, valid] = [&config, &certificate].map(|file| std::fs::read_to_string(file).unwrap());
    let reload = |daemon: &Option<Child>, file: &Path, text: &str| {
        std::fs::write(file, text).unwrap();
        hang_up(daemon.as_ref());
    };
    let mistake = format!("{before}\n[jurnal]\n");
    prometheus.cause(&mut scene, &RELOAD, |scene| reload(&scene.gateway, &config, &mistake));
    // Mended, and with a limit: of its agent's two disks one is too many, and there is no other gateway.
    let limit = format!("{before}\n[session]\nstreams_target = 1\n");
    prometheus.cause(&mut scene, &OVERLOADED, |scene| reload(&scene.gateway, &config, &limit));
    prometheus.wait_clear(&mut scene, &RELOAD);
    reload(&scene.gateway, &config, &before);
    prometheus.wait_clear(&mut scene, &OVERLOADED);

    prometheus.cause(&mut scene, &RELOAD, |scene| reload(&scene.agent, &certificate, "no certificate"));
    reload(&scene.agent, &certificate, &valid);
    prometheus.wait_clear(&mut scene, &RELOAD);

    prometheus.cause(&mut scene, &MISSING, |scene| scene.agent.take().unwrap().terminate(PATIENCE).unwrap());
    scene.agent = Some(scene.site.start_agent().unwrap());
    prometheus.wait_clear(&mut scene, &MISSING);
    prometheus.assert_seen(&[&RELOAD, &OVERLOADED, &MISSING]);
}

#[test]
fn a_gateway_that_is_too_small_for_what_comes() {
    let _turn = turn();
    let (store, url) = sink("small");
    let gateway =
        [("", "memory = \"128 MiB\""), ("journal", "capacity = \"256 MiB\""), ("journal", "segment = \"16 MiB\"")];
    let gateway = gateway.map(|(section, line)| (section, line.to_owned())).to_vec();
    let setting = Setting { vault: Some(url), gateway, ..Setting::default() };
    let (mut scene, prometheus) = watched(setting, None, &["disk1"], 4 * DISK_BYTES);
    prometheus.wait_quiet(&mut scene, &MEMORY);
    let load = prometheus.cause(&mut scene, &PROCESSORS, |scene| scene.load("disk1", 57, 96));
    // What cannot go to the vault fills all that it may hold.
    store.set(Weather { away: true, ..Weather::default() });
    prometheus.wait_firing(&mut scene, &MEMORY);
    drop(load);
    store.set(Weather::default());
    prometheus.wait_clear(&mut scene, &PROCESSORS);
    let config = scene.site.path("gateway.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("memory = \"128 MiB\"", "memory = \"1 GiB\"")).unwrap();
    restart_gateway(&mut scene);
    // Not only because the gateway that held it is gone.
    scene.wait("the new gateway to be looked at", |_| prometheus.has_data("tidegate:memory_used:ratio < 0.40"));
    prometheus.wait_clear(&mut scene, &MEMORY);
    prometheus.assert_seen(&[&PROCESSORS, &MEMORY]);
}
