//! The load generator against a real gateway over its own sink: what it says must be so, and what goes wrong must show.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use loadgen::chance::Share;
use loadgen::payload::{Pool, Source};
use loadgen::run::outcome::Outcome;
use loadgen::run::profile::Profile;
use loadgen::run::verify::{Restore, verify};
use loadgen::run::{Plan, run};
use loadgen::sink::{Account, Limits, Sink, Weather};
use tidegate::cli::quickstart::child::{Child, Family};
use tidegate::cli::quickstart::site::{self, Site};
use tidegate::flow::{Clock, SystemClock};
use tidegate::wire::Transport;

const PATIENCE: Duration = Duration::from_secs(240);
const DISK_BYTES: u64 = 8 << 20;
const STARTS_MAX: u32 = 5;

/// A gateway with a sink behind it.
struct Installation {
    gateway: Child,
    site: Site,
    sink: Sink,
    folder: tempfile::TempDir,
}

impl Installation {
    fn start() -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let sink = Sink::start(any, None, Account::default(), Limits::default(), Weather::default()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut failure = None;
        // The ports that a site finds free may be taken when it comes to use them.
        for number in 0..STARTS_MAX {
            let dir = folder.path().join(number.to_string());
            std::fs::create_dir(&dir).unwrap();
            let plan = site::Plan {
                dir,
                program: program(),
                vault: Some(sink.vault_url(&format!("vault-{number}"))),
                disks: vec![("none".to_owned(), PathBuf::from("/dev/null"))],
                gateway: vec![("journal", "capacity = \"256 MiB\"\nsegment = \"16 MiB\"".to_owned())],
                agent: Vec::new(),
            };
            let site = Site::create(plan, &Family::default()).unwrap();
            match site.start_gateway() {
                Ok(gateway) => return Self { gateway, site, sink, folder },
                Err(error) => failure = Some(error),
            }
        }
        panic!("no gateway: {}", failure.unwrap());
    }

    fn plan(&self, profile: Profile) -> Plan {
        Plan {
            gateway: self.site.gateway_address(),
            authority: self.site.path("pki"),
            agents: 3,
            disks: 2,
            disk_bytes: DISK_BYTES,
            profile,
            trace: Arc::new([]),
            zero: Share::percent(10.0),
            bytes_per_second: 0,
            ramp: Duration::ZERO,
            duration: None,
            bytes: Some(6 * DISK_BYTES),
            transport: Transport::Quic,
            mtu_max_bytes: 1452,
            seed: 7,
            settle: Duration::ZERO,
            patience: PATIENCE,
            admin: Some(self.site.admin_address()),
            gateway_pid: Some(self.gateway.id()),
            keep_images: true,
        }
    }

    fn restore(&self) -> Restore {
        Restore {
            program: program(),
            vault: self.site.vault_url().to_owned(),
            identity: self.site.identity(),
            folder: self.folder.path().to_owned(),
            disks_max: usize::MAX,
        }
    }
}

fn program() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_tidegate")).to_owned()
}

fn pool() -> Pool {
    Pool::fill(&Source::Ratio(2.5), 8 << 20, 3).unwrap()
}

fn assert_whole(outcome: &Outcome) {
    assert_eq!(outcome.failures, [] as [String; 0]);
    let gateway = outcome.gateway.unwrap();
    let counted = gateway.counted.unwrap();
    assert!(counted.received_records >= outcome.sent_records && counted.vaulted_records >= outcome.sent_records);
    assert!(outcome.sent_bytes > 0 && counted.blob_requests > 0 && counted.commits > 0);
    assert!(outcome.journaled_ack_seconds.count > 0 && outcome.rpo_seconds.p50 >= outcome.journaled_ack_seconds.p50);
    let last = outcome.samples.last().unwrap();
    assert_eq!((last.vaulted_bytes, last.oldest_seconds), (outcome.sent_bytes, 0.0));
    assert!(gateway.used.unwrap().memory_peak_bytes > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_agents_wrote_is_acked_at_every_level_and_comes_back_byte_for_byte() {
    let installation = Installation::start();
    let pool = pool();
    for profile in [Profile::Files, Profile::Copy, Profile::Oltp8] {
        let mut plan = installation.plan(profile);
        if profile == Profile::Oltp8 {
            plan.bytes = Some(4 << 20);
        }
        let done = run(&plan, pool.clone(), |_| ()).await.unwrap();
        assert_whole(&done.outcome);
        let (restore, of_task) = (installation.restore(), pool.clone());
        let verified = tokio::task::spawn_blocking(move || {
            let whole = verify(&restore, &of_task, &done.ended);
            // Only what is looked for is found: whatever was written differs from another payload.
            let other = Pool::fill(&Source::Ratio(2.5), 8 << 20, 4).unwrap();
            (whole, (profile == Profile::Files).then(|| verify(&restore, &other, &done.ended)))
        });
        let (whole, other) = verified.await.unwrap();
        assert_eq!((whole.disks, whole.differences.len()), (6, 0), "{:?}", whole.differences);
        assert!(other.is_none_or(|other| !other.differences.is_empty()), "{profile:?}");
    }
    assert!(installation.sink.counts().puts > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_loop_keeps_its_rate_and_counts_what_the_store_made_wait() {
    let installation = Installation::start();
    let rate: u64 = 2 << 20;
    let duration = Some(Duration::from_secs(4));
    let plan = Plan { bytes_per_second: rate, duration, bytes: None, ..installation.plan(Profile::Oltp16) };
    let clock = SystemClock::new();
    let away = Weather { away_seconds: 3.0, ..Weather::default() };
    let mut told = false;
    let done = run(&plan, pool(), |sample| {
        if sample.seconds >= 1.0 && !std::mem::replace(&mut told, true) {
            installation.sink.set(away);
        }
    });
    let done = done.await.unwrap();
    assert_whole(&done.outcome);
    assert!(clock.monotonic() >= Duration::from_secs(4));
    // A tenth of the writes is zeroes, which carry nothing.
    let wanted = (rate * 4) as f64 * 0.9;
    let sent = done.outcome.sent_bytes as f64;
    assert!(sent > wanted * 0.8 && sent < wanted * 1.2, "sent {sent}, wanted {wanted}");
    assert!(done.outcome.rpo_seconds.max > 1.5, "the outage shows: {:?}", done.outcome.rpo_seconds);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_dies_fails_the_run() {
    let mut installation = Installation::start();
    let plan = Plan { bytes: None, duration: Some(PATIENCE), ..installation.plan(Profile::Files) };
    let mut killed = false;
    let gateway = &mut installation.gateway;
    let done = run(&plan, pool(), |sample| {
        if sample.sent_bytes > 0 && !std::mem::replace(&mut killed, true) {
            gateway.kill().unwrap();
        }
    });
    let done = done.await.unwrap();
    assert!(killed && !done.outcome.failures.is_empty());
    assert!(done.outcome.seconds < PATIENCE.as_secs_f64(), "nobody waited for the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_is_drawn_of_what_a_run_told() {
    let installation = Installation::start();
    let done = run(&installation.plan(Profile::Log), pool(), |_| ()).await.unwrap();
    assert_whole(&done.outcome);
    let told = serde_json::to_string(&done.outcome).unwrap();
    let page = loadgen::report::page(&serde_json::from_str(&told).unwrap()).unwrap();
    assert!(page.contains("Until vaulted (RPO)") && page.contains("Memory of the gateway"), "{page}");
}
