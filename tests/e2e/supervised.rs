//! What a service manager hears of the daemons: a test plays its socket.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use tidegate::cli::quickstart::child::{Child, Family, wait_until};

use crate::common::{PATIENCE, Scene, Setting, empty, program, turn};

/// The manager's socket and everything that was said on it.
struct Manager {
    socket: UnixDatagram,
    said: Vec<String>,
}

impl Manager {
    fn listen(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { socket, said: Vec::new() }
    }

    fn hear(&mut self) -> &[String] {
        let mut message = [0; 4096];
        while let Ok(bytes) = self.socket.recv(&mut message) {
            let text = std::str::from_utf8(&message[..bytes]).unwrap();
            self.said.extend(text.lines().map(str::to_owned));
        }
        &self.said
    }

    fn count(&mut self, line: &str) -> usize {
        self.hear().iter().filter(|said| said.starts_with(line)).count()
    }

    fn wait(&mut self, line: &str) {
        assert!(wait_until(PATIENCE, || self.count(line) > 0), "{line} was never said: {:?}", self.said);
    }
}

/// Starts a daemon as a manager does that gives it three seconds between two signs of life.
fn start(scene: &Scene, what: &'static str, socket: &Path) -> Child {
    let notify = format!("NOTIFY_SOCKET={}", socket.display());
    let config = scene.site.path(&format!("{what}.toml"));
    let log = scene.site.path(&format!("logs/{what}.log"));
    let (program, config) = (program().to_str().unwrap(), config.to_str().unwrap());
    let arguments = [&notify, "WATCHDOG_USEC=3000000", program, what, "--config", config];
    Child::start(what, &Family::default(), &log, Path::new("/usr/bin/env"), &arguments).unwrap()
}

#[test]
fn a_service_manager_hears_when_a_daemon_is_ready_that_it_lives_what_it_waits_for_and_that_it_stops() {
    let _turn = turn();
    let mut scene = Scene::stopped(Setting::default(), &["disk1"], empty(32 << 20));
    let (for_gateway, for_agent) = (scene.site.path("gateway.notify"), scene.site.path("agent.notify"));
    let (mut gateway, mut agent) = (Manager::listen(&for_gateway), Manager::listen(&for_agent));

    // An agent serves its guests without a gateway, and says that it has none.
    scene.agent = Some(start(&scene, "agent", &for_agent));
    agent.wait("READY=1");
    agent.wait("STATUS=not connected");
    scene.gateway = Some(start(&scene, "gateway", &for_gateway));
    gateway.wait("READY=1");
    gateway.wait("STATUS=ready for agents");
    agent.wait("STATUS=connected to gateway");
    let before = gateway.count("WATCHDOG=1");
    assert!(wait_until(PATIENCE, || gateway.count("WATCHDOG=1") > before + 3), "{:?}", gateway.said);

    // A process that is stopped has nothing to say: that is what the manager's limit is for.
    let pid = scene.gateway.as_ref().unwrap().id().to_string();
    crate::common::succeed("kill", &["-STOP", &pid]);
    std::thread::sleep(Duration::from_millis(500));
    let silent = gateway.count("WATCHDOG=1");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(gateway.count("WATCHDOG=1"), silent);
    crate::common::succeed("kill", &["-CONT", &pid]);
    assert!(wait_until(PATIENCE, || gateway.count("WATCHDOG=1") > silent), "{:?}", gateway.said);

    for (daemon, manager) in [(&mut scene.agent, &mut agent), (&mut scene.gateway, &mut gateway)] {
        daemon.take().unwrap().terminate(PATIENCE).unwrap();
        manager.hear();
        let at = |line: &str| manager.said.iter().position(|said| said.starts_with(line));
        assert!(at("READY=1") < at("STOPPING=1"), "{:?}", manager.said);
        // The drain's grace, which only the configuration knows, and a margin.
        assert!(at("EXTEND_TIMEOUT_USEC=").is_some() && at("STATUS=draining").is_some(), "{:?}", manager.said);
        for once in ["READY=1", "STOPPING=1"] {
            assert_eq!(manager.count(once), 1, "{:?}", manager.said);
        }
    }
}

#[test]
fn a_service_manager_hears_of_a_reload_and_of_its_end_whatever_came_of_it() {
    let _turn = turn();
    let mut scene = Scene::stopped(Setting::default(), &["disk1"], empty(32 << 20));
    let (for_gateway, for_agent) = (scene.site.path("gateway.notify"), scene.site.path("agent.notify"));
    let (mut gateway, mut agent) = (Manager::listen(&for_gateway), Manager::listen(&for_agent));
    scene.gateway = Some(start(&scene, "gateway", &for_gateway));
    scene.agent = Some(start(&scene, "agent", &for_agent));
    for (daemon, manager, config) in
        [(&scene.gateway, &mut gateway, "gateway.toml"), (&scene.agent, &mut agent, "agent.toml")]
    {
        manager.wait("READY=1");
        for reloads in 1..=2 {
            crate::common::succeed("kill", &["-HUP", &daemon.as_ref().unwrap().id().to_string()]);
            assert!(wait_until(PATIENCE, || manager.count("READY=1") == 1 + reloads), "{:?}", manager.said);
            assert_eq!(manager.count("RELOADING=1"), reloads, "{:?}", manager.said);
            assert_eq!(manager.count("MONOTONIC_USEC="), reloads, "{:?}", manager.said);
            let at = |line: &str| manager.said.iter().rposition(|said| said.starts_with(line));
            assert!(at("RELOADING=1") < at("READY=1"), "{:?}", manager.said);
            // The second one is refused.
            std::fs::write(scene.site.path(config), "broken").unwrap();
        }
    }
    for daemon in [&mut scene.agent, &mut scene.gateway] {
        assert!(daemon.take().unwrap().terminate(PATIENCE).unwrap().success());
    }
}

#[test]
fn a_daemon_whose_vault_is_away_is_not_ready_and_says_what_it_waits_for() {
    let _turn = turn();
    let vault = "http://127.0.0.1:9/devstoreaccount1/away".to_owned();
    let mut scene = Scene::stopped(Setting::default(), &["disk1"], empty(32 << 20));
    let config = scene.site.path("gateway.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let changed: Vec<_> = text
        .lines()
        .map(|line| if line.trim_start().starts_with("url =") { format!("url = {vault:?}") } else { line.to_owned() })
        .collect();
    std::fs::write(&config, changed.join("\n")).unwrap();
    let socket = scene.site.path("gateway.notify");
    let mut manager = Manager::listen(&socket);
    scene.gateway = Some(start(&scene, "gateway", &socket));
    manager.wait("STATUS=waiting for the vault");
    assert_eq!(manager.count("READY=1"), 0, "{:?}", manager.said);
    let status = scene.gateway.take().unwrap().terminate(PATIENCE).unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(manager.count("READY=1"), 0, "{:?}", manager.said);
}
