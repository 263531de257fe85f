//! Promises 8 and 9 against those who mean harm: an agent with a right certificate and no manners, and a vault that
//! holds anything at all.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tidegate::limits::{FRAME_BODY_BYTES_MAX, RECORD_BYTES_MAX};
use tidegate::types::{DiskId, Id128};
use tidegate::wire::frame::{HEADER_BYTES, Kind, encode_header};
use tidegate::wire::messages::{Ask, Hello, Message};
use tidegate::wire::{ALPN, ForkReason, OpenDisk, Want};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::alone::copy_tree;
use crate::common::{Scene, Setting, empty, program, turn};
use crate::damage::batches;
use crate::memory::{BASE_BYTES, GATEWAY_BUDGET_BYTES, peak_bytes};

/// Disks that the bad agent's certificate names.
const DISKS: usize = 256;
/// Connections that never say hello.
const SILENT: usize = 300;

/// A QUIC client with a certificate and nothing else.
fn client(scene: &Scene, id: &str) -> (quinn::Endpoint, quinn::ClientConfig) {
    let pki = scene.dir().join("pki");
    let ca = CertificateDer::from_pem_file(pki.join("ca.crt")).unwrap();
    let chain = CertificateDer::pem_file_iter(pki.join(format!("agent-{id}.crt"))).unwrap();
    let chain = chain.collect::<Result<Vec<_>, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_file(pki.join(format!("agent-{id}.key"))).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca).unwrap();
    let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .unwrap();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    (quinn::Endpoint::client("127.0.0.2:0".parse().unwrap()).unwrap(), config)
}

fn open_disk(disk: &str) -> Message {
    let want = Want::Fork { reason: ForkReason::NewDisk, floor: None };
    Message::OpenDisk(OpenDisk { disk: DiskId::new(disk).unwrap(), size_bytes: 1 << 30, nonce: Id128([7; 16]), want })
}

/// Everything at once. Says when everything is there; what it opened stays open until `stop` is dropped.
async fn attack(
    (endpoint, config): (quinn::Endpoint, quinn::ClientConfig),
    (gateway, vault): (SocketAddr, Id128),
    there: oneshot::Sender<()>,
    stop: oneshot::Receiver<()>,
) {
    let connect = || endpoint.connect_with(config.clone(), gateway, "127.0.0.1").unwrap();
    let mut held = Vec::new();
    for _ in 0..SILENT {
        held.extend(tokio::time::timeout(Duration::from_secs(5), connect()).await.ok().and_then(Result::ok));
    }
    let (agent, software) = ("enemy".to_owned(), "none".to_owned());
    let hello = Message::Hello(Hello { protocol_min: 1, protocol_max: 1, vault, agent, software }).encode();
    let admitted = async || {
        let connection = connect().await.ok()?;
        let (mut send, mut recv) = connection.open_bi().await.ok()?;
        send.write_all(&hello).await.ok()?;
        recv.read_exact(&mut [0; HEADER_BYTES]).await.ok()?;
        Some((connection, send, recv))
    };
    // Its own silent connections stand in its way until their time is over.
    let (connection, control, answers) = loop {
        match admitted().await {
            Some(admitted) => break admitted,
            None => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    };
    let mut streams = Vec::new();
    for number in 0..DISKS {
        let Ok((mut send, mut recv)) = connection.open_bi().await else { break };
        let mut begun = encode_header(Kind::Record, FRAME_BODY_BYTES_MAX as u32, 0).to_vec();
        begun.resize(begun.len() + RECORD_BYTES_MAX - 1, 9);
        let ask = Message::Ask(Ask { wanted_bytes: RECORD_BYTES_MAX as u64 }).encode();
        // Of twelve: a huge record on a disk that is not open; nothing at all; another agent's disk; and nine times a disk
        // on which a huge record is begun, with or without leave.
        let (first, then) = match number % 12 {
            0 => (begun, Vec::new()),
            1 => (Vec::new(), Vec::new()),
            2 => (open_disk("disk1").encode().to_vec(), Vec::new()),
            3 => ([&open_disk(&format!("x{number}")).encode()[..], &begun].concat(), Vec::new()),
            _ => ([&open_disk(&format!("x{number}")).encode()[..], &ask].concat(), begun),
        };
        streams.push(tokio::spawn(async move {
            // Blocks for good where the gateway opens no window.
            let _ = send.write_all(&first).await;
            // The answers to the opening and to the question.
            for _ in 0..2 {
                let mut header = [0; HEADER_BYTES];
                let _ = recv.read_exact(&mut header).await;
                let body = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
                let _ = recv.read_exact(&mut vec![0; body]).await;
            }
            let _ = send.write_all(&then).await;
            let () = std::future::pending().await;
            drop((send, recv));
        }));
    }
    let _ = there.send(());
    let _ = stop.await;
    streams.iter().for_each(tokio::task::JoinHandle::abort);
    drop((held, control, answers));
}

#[test]
fn a_hostile_agent_takes_no_more_than_its_bound_and_disturbs_no_other() {
    let _turn = turn();
    let setting = Setting {
        gateway: vec![("", format!("memory = \"{} MiB\"", GATEWAY_BUDGET_BYTES >> 20))],
        ..Setting::default()
    };
    let mut scene = Scene::new(setting, &["disk1"], empty(64 << 20));
    let pki = scene.dir().join("pki").display().to_string();
    let names: Vec<String> = (0..DISKS).map(|number| format!("x{number}")).collect();
    let mut issue = vec!["pki", "issue", "--dir", &pki, "agent", "--id", "enemy"];
    issue.extend(names.iter().flat_map(|name| ["--disk", name]));
    scene.site.run(&issue).unwrap();
    scene.wait_copied("disk1");

    let config = fs::read_to_string(scene.dir().join("gateway.toml")).unwrap();
    let listen = config.lines().find_map(|line| line.strip_prefix("listen = ")).unwrap().trim_matches('"').to_owned();
    let object = fs::read_to_string(scene.dir().join("vault/vault")).unwrap();
    let object: serde_json::Value = serde_json::from_str(object.lines().next().unwrap()).unwrap();
    let vault = object["id"].as_str().unwrap().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let ((there, mut is_there), (stop, stopped)) = (oneshot::channel(), oneshot::channel());
    let enemy = {
        let _inside = runtime.enter();
        runtime.spawn(attack(client(&scene, "enemy"), (listen.parse().unwrap(), vault), there, stopped))
    };
    let load = scene.load("disk1", 5, 10);
    let begun = Instant::now();
    let (mut rounds, mut beside_all) = (0, 0);
    while beside_all < 3 {
        // A point in the vault is what the good agent is for.
        scene.write_more(&load, 4 << 20);
        scene.keep("disk1", &format!("round {rounds}"), Some(&load));
        scene.wait_vaulted();
        rounds += 1;
        if beside_all > 0 || is_there.try_recv().is_ok() {
            beside_all += 1;
        }
        assert!(!enemy.is_finished() && begun.elapsed() < Duration::from_secs(240), "the attack does not come about");
    }
    drop(stop);
    runtime.block_on(enemy).unwrap();
    drop(load);
    let peak = peak_bytes(scene.gateway.as_ref().unwrap().id());
    println!("peak memory of the gateway: {} MiB, {rounds} points meanwhile", peak >> 20);
    assert!(peak <= GATEWAY_BUDGET_BYTES + BASE_BYTES, "the gateway used {} MiB", peak >> 20);
    scene.assert_alive();
    let log = fs::read_to_string(scene.gateway.as_ref().unwrap().log()).unwrap();
    assert!(!log.contains("panicked"), "{log}");
    scene.stop();
    let last = scene.kept.len() - 1;
    scene.assert_restores(&scene.kept[last]);
}

/// `tidegate` with at most 4 GiB of address space, which is far less than the objects that it is given.
fn bounded(arguments: &[&str]) -> (i32, String) {
    let quoted: Vec<String> = arguments.iter().map(|argument| format!("'{argument}'")).collect();
    let line = format!("ulimit -v 4000000; exec '{}' {}", program().display(), quoted.join(" "));
    // Each arena of the allocator takes 64 MiB of address space, and there are as many as the machine has cores.
    let output = Command::new("bash").args(["-c", &line]).env("MALLOC_ARENA_MAX", "2").output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    (output.status.code().unwrap_or(-1), text)
}

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

fn garbage(path: &Path, bytes: usize) {
    let mut noise = vec![0; bytes];
    File::open("/dev/urandom").unwrap().read_exact(&mut noise).unwrap();
    File::create(path).unwrap().write_all(&noise).unwrap();
}

#[test]
fn a_vault_of_garbage_or_of_huge_objects_is_reported_within_bounded_memory() {
    let _turn = turn();
    let mut scene = Scene::new(Setting::default(), &["disk1"], empty(32 << 20));
    scene.wait_copied("disk1");
    let load = scene.load("disk1", 77, 16);
    scene.write_more(&load, 8 << 20);
    scene.keep("disk1", "end", Some(&load));
    drop(load);
    scene.wait_vaulted();
    scene.stop();
    let (vault, kept) = (scene.dir().join("vault"), scene.kept.pop().unwrap());
    let huge = |path: &Path| File::options().write(true).open(path).unwrap().set_len(9 << 30).unwrap();
    type Harm<'a> = (&'a str, Box<dyn Fn(&Path) + 'a>);
    let harms: [Harm<'_>; 5] = [
        ("garbage-batches", Box::new(|vault| batches(vault).iter().for_each(|path| garbage(path, 300_000)))),
        ("huge-batches", Box::new(|vault| batches(vault).iter().for_each(|path| huge(path)))),
        ("garbage-lanes", Box::new(|vault| files(&vault.join("lanes")).iter().for_each(|path| garbage(path, 700)))),
        ("huge-epochs", Box::new(|vault| files(&vault.join("d")).iter().for_each(|path| huge(path)))),
        ("all-garbage", Box::new(|vault| files(vault).iter().for_each(|path| garbage(path, 5000)))),
    ];
    let identity = scene.site.identity().display().to_string();
    let restore = |vault: &Path, target: &Path| {
        let (url, target) = (format!("file://{}", vault.display()), target.display().to_string());
        let from = ["restore", "--vault", &url, "--identity", &identity, "--disk", "disk1"];
        bounded(&[&from[..], &["--point", &kept.made.id, "--to", &target]].concat())
    };
    let whole = scene.dir().join("whole");
    assert_eq!(restore(&vault, &whole).0, 0);
    for (what, harm) in harms {
        let place = scene.dir().join(what);
        copy_tree(&vault, &place);
        harm(&place);
        let url = format!("file://{}", place.display());
        let target = place.join("image");
        let (code, text) = restore(&place, &target);
        // What only became longer still holds all: it is said, and restored.
        let right = code == 0 && fs::read(&target).unwrap() == fs::read(&whole).unwrap();
        assert!(right || code == 1 || code == 3, "{what}: restore ended with {code}: {text}");
        assert!(!text.contains("panicked") && !text.contains("allocation"), "{what}: {text}");
        let (code, text) = bounded(&["verify", "--vault", &url, "--identity", &identity, "--level", "data"]);
        assert!(code == 1 || code == 3, "{what}: verify ended with {code}: {text}");
        assert!(!text.contains("panicked") && !text.contains("allocation"), "{what}: {text}");
        fs::remove_dir_all(&place).unwrap();
    }
}
