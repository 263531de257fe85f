use super::super::facts::*;
use super::*;
use crate::journal::{Backend, Preflight};
use crate::types::{DiskId, Id128, Micros};
use crate::wire::{AgentIdentity, GatewayIdentity, Identity};

const DAY: u64 = 86_400_000_000;
const NOW: Micros = Micros(20_000 * DAY);

fn preflight() -> Preflight {
    Preflight { backend: Backend::Ring, direct: true, kernel: "6.1.0".into(), sync_micros: 100, remarks: Vec::new() }
}

/// A gateway's host on which everything is right.
fn healthy() -> Facts {
    Facts {
        role: Role::Gateway,
        id: "gw1".into(),
        now: NOW,
        demand: Demand {
            memory_bytes: 576 << 20,
            files: 41_024,
            memlock_bytes: 2 << 20,
            socket_buffer_bytes: 8 << 20,
            space_bytes: 16 << 30,
        },
        host: Host {
            kernel: "6.1.0-18-amd64".into(),
            memlock_bytes: Some(64 << 20),
            open_files: Some(65_536),
            udp: Ok(Udp { receive_bytes: 8 << 20, send_bytes: 8 << 20, send_segments: 64, receive_segments: 64 }),
            memory_limit_bytes: None,
            memory_total_bytes: Some(4 << 30),
            time: TimeService::Synchronised("systemd-timesyncd"),
        },
        place: Place {
            dir: "/j".into(),
            looked_at: "/j".into(),
            seen: Ok(PlaceSeen {
                file_system: 0xEF53,
                free_bytes: 10 << 30,
                own_bytes: 6 << 30,
                preflight: Some(preflight()),
                commit_micros: (1..=100).map(|n| n * 100).collect(),
                commit_bytes: 1 << 20,
            }),
        },
        tls: Ok(Tls {
            cert: "gw1.crt".into(),
            identity: Identity::Gateway(GatewayIdentity { vault: Id128([7; 16]), gateway: "gw1".into() }),
            not_after: Micros(NOW.0 + 300 * DAY),
            authority_not_after: Micros(NOW.0 + 3000 * DAY),
            names: vec!["gw1.example".into()],
            chain: Ok(()),
            disks_missing: Vec::new(),
        }),
        secrets: vec![SecretFile { what: "TLS key", path: "gw1.key".into(), mode: Ok(0o100_600) }],
        store: Some(Store {
            url: "az://a/c".into(),
            vault: Ok(Id128([7; 16]).to_string()),
            lists: Some(Ok(())),
            creates: Some(Ok(())),
            read_micros: vec![10_000, 11_000, 30_000],
            ahead_micros: Some(0),
        }),
        gateways: Vec::new(),
        disks: Vec::new(),
        ports: vec![Port { what: "listen (UDP)".into(), address: "[::]:9443".into(), state: PortState::Free }],
        daemon: Daemon::Away,
        traces: None,
    }
}

fn seen(facts: &mut Facts) -> &mut PlaceSeen {
    facts.place.seen.as_mut().expect("seen")
}

fn tls(facts: &mut Facts) -> &mut Tls {
    facts.tls.as_mut().expect("readable")
}

fn store(facts: &mut Facts) -> &mut Store {
    facts.store.as_mut().expect("a gateway has one")
}

fn udp(facts: &mut Facts) -> &mut Udp {
    facts.host.udp.as_mut().expect("a socket")
}

fn away(text: &str) -> Trouble {
    Trouble { text: text.into(), passing: true }
}

fn refused(text: &str) -> Trouble {
    Trouble { text: text.into(), passing: false }
}

/// Whatever stands outside of `check` must stay as it is on a healthy host.
fn changed(change: impl FnOnce(&mut Facts)) -> Vec<Finding> {
    let mut facts = healthy();
    let before = examine(&facts);
    change(&mut facts);
    examine(&facts).into_iter().filter(|finding| !before.contains(finding)).collect()
}

/// Asserts that a change is found by one check alone, with that grade and words, and with advice.
#[track_caller]
fn assert_found(check: &str, grade: Grade, words: &str, change: impl FnOnce(&mut Facts)) {
    let found = changed(change);
    let [finding] = found.as_slice() else { panic!("{check}: one finding expected, not {found:?}") };
    assert_eq!((finding.check, finding.grade), (check, grade), "{finding:?}");
    assert!(finding.measured.contains(words), "{words:?} is not in {finding:?}");
    assert_eq!(finding.advice.is_empty(), grade == Grade::Ok, "{finding:?}");
}

#[test]
fn a_healthy_host_has_nothing_but_ok_and_every_check_has_its_own_words() {
    let findings = examine(&healthy());
    assert!(findings.iter().all(|finding| finding.grade == Grade::Ok && finding.advice.is_empty()), "{findings:?}");
    assert_eq!(worst_code(&findings), exit::OK);
    let checks: std::collections::BTreeSet<_> = findings.iter().map(|finding| finding.check).collect();
    assert_eq!(checks.len(), findings.len(), "{findings:?}");
    assert_eq!(checks.len(), 20);
}

#[test]
fn the_machine_is_measured_against_what_is_asked_of_it() {
    assert_found("kernel", Grade::Warn, "5.4", |facts| facts.host.kernel = "5.4.0-1".into());
    assert_found("kernel", Grade::Warn, "no release", |facts| facts.host.kernel = String::new());
    assert_found("io_uring", Grade::Warn, "forbidden", |facts| {
        let remarks = vec!["io_uring is not possible: forbidden by a seccomp profile".into()];
        seen(facts).preflight = Some(Preflight { backend: Backend::Std, remarks, ..preflight() });
    });
    assert_found("io_uring", Grade::Ok, "is configured", |facts| {
        let remarks = vec!["backend = \"std\" is configured".into()];
        seen(facts).preflight = Some(Preflight { backend: Backend::Std, remarks, ..preflight() });
    });
    assert_found("memlock", Grade::Ok, "does not count", |facts| facts.host.memlock_bytes = Some(65_536));
    let found = changed(|facts| {
        facts.host.memlock_bytes = Some(65_536);
        facts.host.kernel = "6.18.2".into();
    });
    assert!(found.iter().any(|finding| finding.check == "memlock" && finding.grade == Grade::Warn), "{found:?}");
    assert_found("open-files", Grade::Warn, "hard limit 1024", |facts| facts.host.open_files = Some(1024));
    assert_found("open-files", Grade::Ok, "unlimited", |facts| facts.host.open_files = None);
    assert_found("memory", Grade::Fail, "control group", |facts| facts.host.memory_limit_bytes = Some(512 << 20));
    assert_found("memory", Grade::Warn, "control group", |facts| facts.host.memory_limit_bytes = Some(640 << 20));
    assert_found("memory", Grade::Fail, "of the machine", |facts| facts.host.memory_total_bytes = Some(256 << 20));
    assert_found("udp-buffers", Grade::Warn, "receive 208 KiB", |facts| udp(facts).receive_bytes = 208 << 10);
    assert_found("udp-offload", Grade::Warn, "1 datagrams per send", |facts| udp(facts).send_segments = 1);
    let found = changed(|facts| facts.host.udp = Err("not permitted".into()));
    assert!(found.iter().any(|finding| finding.grade == Grade::Fail && finding.check == "udp-buffers"), "{found:?}");
}

#[test]
fn a_clock_is_judged_by_the_store_where_there_is_one() {
    for (ahead, grade) in [(4_000_000, None), (-6_000_000, Some(Grade::Warn)), (1_000_000_000, Some(Grade::Fail))] {
        let found = changed(|facts| store(facts).ahead_micros = Some(ahead));
        let found = found.iter().map(|finding| finding.grade).find(|grade| *grade != Grade::Ok);
        assert_eq!(found, grade, "{ahead}");
    }
    assert_found("clock", Grade::Ok, "no time service", |facts| facts.host.time = TimeService::Unknown);
    assert_found("clock", Grade::Warn, "no time service", |facts| {
        facts.host.time = TimeService::Unknown;
        store(facts).ahead_micros = None;
    });
    assert_found("clock", Grade::Ok, "chrony runs", |facts| facts.host.time = TimeService::Running("chrony"));
}

#[test]
fn a_journal_wants_a_durable_disk_with_room() {
    for (magic, grade, word) in [
        (0x0102_1994, Grade::Fail, "tmpfs"),
        (0x6969, Grade::Warn, "NFS"),
        (0x794C_7630, Grade::Warn, "overlay"),
        (0x12345, Grade::Warn, "0x12345"),
        (0x5846_5342, Grade::Ok, "XFS"),
    ] {
        assert_found("journal-directory", grade, word, |facts| seen(facts).file_system = magic);
    }
    // As a signed word of 32 bits, widened.
    assert_found("journal-directory", Grade::Warn, "SMB", |facts| seen(facts).file_system = 0xFFFF_FFFF_FF53_4D42);
    assert_found("journal-directory", Grade::Ok, "does not exist yet", |facts| facts.place.dir = "/j/new".into());
    assert_found("journal-space", Grade::Fail, "1 GiB free", |facts| seen(facts).free_bytes = 1 << 30);
    assert_found("journal-latency", Grade::Warn, "p99 150.0 ms", |facts| {
        seen(facts).commit_micros = [vec![1000; 98], vec![150_000; 2]].concat();
    });
    let found = changed(|facts| facts.place.seen = Err("cannot be written: Permission denied".into()));
    let failed: Vec<_> = found.iter().filter(|finding| finding.grade == Grade::Fail).collect();
    assert!(failed.len() == 1 && failed[0].measured.contains("Permission denied"), "{found:?}");
    let found = changed(|facts| seen(facts).preflight = Some(Preflight { direct: false, ..preflight() }));
    assert!(found.iter().any(|finding| finding.measured.contains("no O_DIRECT") && finding.grade == Grade::Warn));
}

#[test]
fn a_certificate_must_be_of_this_side_of_this_vault_and_of_today() {
    assert_found("certificate", Grade::Fail, "for another role", |facts| {
        tls(facts).identity = Identity::Authority(Id128([7; 16]));
    });
    assert_found("certificate", Grade::Fail, "id = \"gw2\"", |facts| facts.id = "gw2".into());
    assert_found("certificate-chain", Grade::Fail, "not by the authority", |facts| {
        tls(facts).chain = Err("was issued by \"x\", not by the authority".into());
    });
    assert_found("certificate-end", Grade::Warn, "in 29 days", |facts| tls(facts).not_after = Micros(NOW.0 + 29 * DAY));
    assert_found("certificate-end", Grade::Fail, "certificate ended", |facts| tls(facts).not_after = NOW);
    assert_found("certificate-end", Grade::Fail, "authority ended", |facts| {
        tls(facts).authority_not_after = Micros(NOW.0 - DAY);
    });
    let found = changed(|facts| {
        tls(facts).identity = Identity::Gateway(GatewayIdentity { vault: Id128([8; 16]), gateway: "gw1".into() })
    });
    assert!(found[0].measured.contains("the vault is 0707"), "{found:?}");
    let found = changed(|facts| facts.tls = Err("the key does not fit".into()));
    assert_eq!((found.len(), found[0].check, found[0].grade), (1, "certificate", Grade::Fail));
    assert_found("key-file", Grade::Warn, "mode 644", |facts| facts.secrets[0].mode = Ok(0o100_644));
    assert_found("key-file", Grade::Fail, "No such file", |facts| facts.secrets[0].mode = Err("No such file".into()));
}

#[test]
fn rights_in_the_vault_are_told_one_by_one_and_an_outage_once() {
    assert_found("vault-create", Grade::Fail, "403", |facts| store(facts).creates = Some(Err(refused("403"))));
    assert_found("vault-list", Grade::Fail, "403", |facts| store(facts).lists = Some(Err(refused("403"))));
    assert_found("vault-read", Grade::Fail, "another vault's key", |facts| {
        store(facts).vault = Err(refused("another vault's key"));
    });
    assert_found("vault-latency", Grade::Warn, "p50 300.0 ms", |facts| store(facts).read_micros = vec![300_000; 20]);
    assert_found("vault-latency", Grade::Warn, "longest 3.0 s", |facts| store(facts).read_micros[2] = 3_000_000);
    let found = changed(|facts| {
        let store = store(facts);
        store.vault = Err(away("no answer"));
        (store.lists, store.creates) = (None, None);
        store.read_micros.clear();
    });
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].passing && found[0].check == "vault-read", "{found:?}");
    assert_eq!(worst_code(&found), exit::TRY_AGAIN);
    let more = [found, changed(|facts| facts.host.memory_total_bytes = Some(1))].concat();
    assert_eq!(worst_code(&more), exit::ERROR, "what fails for good counts more");
}

#[test]
fn a_port_in_use_is_right_only_for_the_daemon_that_runs() {
    let answers = |gateway: &str, ready, trouble: &str| Daemon::Answers {
        gateway: gateway.into(),
        ready,
        reason: "replaying the journal".into(),
        trouble: trouble.into(),
    };
    assert_found("port", Grade::Fail, "in use", |facts| facts.ports[0].state = PortState::InUse);
    assert_found("port", Grade::Fail, "cannot assign", |facts| {
        facts.ports[0].state = PortState::Refused("cannot assign".into());
    });
    let running = |daemon| {
        changed(move |facts| {
            facts.ports[0].state = PortState::InUse;
            facts.daemon = daemon;
        })
    };
    let grades = |found: &[Finding]| found.iter().map(|finding| (finding.check, finding.grade)).collect::<Vec<_>>();
    assert_eq!(grades(&running(answers("gw1", true, ""))), [("port", Grade::Ok), ("daemon", Grade::Ok)]);
    assert_eq!(grades(&running(answers("", false, ""))), [("port", Grade::Ok), ("daemon", Grade::Warn)]);
    assert_eq!(grades(&running(answers("gw1", true, "parked"))), [("port", Grade::Ok), ("daemon", Grade::Fail)]);
    assert_eq!(grades(&running(answers("gw2", true, ""))), [("port", Grade::Fail), ("daemon", Grade::Fail)]);
    let moved = changed(|facts| facts.daemon = answers("gw1", true, ""));
    assert_eq!(grades(&moved), [("port", Grade::Warn), ("daemon", Grade::Ok)], "it has another port than configured");
}

#[test]
fn an_agent_needs_its_disks_and_one_way_to_one_gateway() {
    let disk = DiskId::new("d1").expect("name");
    let vault = Id128([7; 16]);
    let mut facts = Facts { role: Role::Agent, id: "a1".into(), store: None, ..healthy() };
    tls(&mut facts).identity = Identity::Agent(AgentIdentity { vault, agent: "a1".into(), disks: vec![disk] });
    facts.disks = vec![DiskFile { disk: "d1".into(), path: "/d1".into(), size_bytes: Ok(1 << 30) }];
    let way = |transport, answer| Reached { address: "gw:9443".into(), transport, answer };
    facts.gateways = vec![way("quic", Ok(2_000)), way("tcp", Err(away("no answer over TCP")))];
    let findings = examine(&facts);
    assert!(findings.iter().any(|finding| finding.check == "state-directory"), "{findings:?}");
    let graded = |findings: &[Finding], grade| {
        findings.iter().filter(|finding| finding.grade == grade).map(|finding| finding.check).collect::<Vec<_>>()
    };
    assert_eq!(graded(&findings, Grade::Warn), ["gateway"], "one way is closed, the other open");
    assert_eq!(worst_code(&findings), exit::OK);
    facts.gateways[0].answer = Err(away("no answer over UDP"));
    assert_eq!(worst_code(&examine(&facts)), exit::TRY_AGAIN);
    facts.gateways[0].answer = Err(refused("this agent's certificate is refused"));
    assert_eq!(worst_code(&examine(&facts)), exit::ERROR);
    facts.gateways.remove(0);
    facts.gateways[0].answer = Ok(1);
    facts.disks[0].size_bytes = Err("No such file".into());
    tls(&mut facts).disks_missing = vec!["d1".into()];
    assert_eq!(graded(&examine(&facts), Grade::Fail), ["disk", "certificate"]);
}

#[test]
fn percentiles_and_times_are_what_they_say() {
    let sorted: Vec<u64> = (1..=100).collect();
    assert_eq!(
        (percentile(&sorted, 50), percentile(&sorted, 99), percentile(&[7], 99), percentile(&[], 50)),
        (50, 99, 7, 0)
    );
    assert_eq!([time(999), time(1_500), time(2_000_000)], ["999 µs", "1.5 ms", "2.0 s"]);
}

#[test]
fn a_receiver_of_traces_that_takes_none_is_told_and_fails_nothing() {
    let with = |answer: Result<(), String>| {
        let mut facts = healthy();
        facts.traces = Some(Receiver { endpoint: "http://c:4318/v1/traces".into(), answer });
        examine(&facts).into_iter().find(|finding| finding.check == "traces").expect("looked at")
    };
    assert_eq!(with(Ok(())).grade, Grade::Ok);
    let away = with(Err("it answered 401 Unauthorized".into()));
    assert!(away.grade == Grade::Warn && away.measured.contains("c:4318") && away.advice.contains("otlp_headers_file"));
}
