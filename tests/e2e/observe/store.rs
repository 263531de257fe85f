//! Alerts of the way to the vault: a store that refuses, whose clock is off, that is away until the journal is full, and
//! that is slow after.

use std::net::{Ipv4Addr, SocketAddr};

use loadgen::sink::{Account, Limits, Sink, Weather};

use super::DISK_BYTES;
use super::alerts::watched;
use crate::common::{Scene, Setting, turn};

pub const REFUSED: [&str; 2] = ["TidegateUploadsParked", "TidegateStoreFails"];
pub const CLOCK: [&str; 2] = ["TidegateClockApart", "TidegateStoreClockFarApart"];
pub const AWAY: [&str; 6] = [
    "TidegateJournalFills",
    "TidegateJournalNearlyFull",
    "TidegateOverflowed",
    "TidegateStoreFails",
    "TidegateBehind",
    "TidegateFarBehind",
];
pub const SLOW: [&str; 2] = ["TidegateDrainsSlowly", "TidegateDrainsVerySlowly"];

/// A store in memory, and a vault's URL there.
pub fn sink(name: &str) -> (Sink, String) {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let sink = Sink::start(any, None, Account::default(), Limits::default(), Weather::default()).unwrap();
    let url = sink.vault_url(name);
    (sink, url)
}

#[test]
fn a_store_whose_key_was_changed_and_one_whose_clock_is_off() {
    let _turn = turn();
    let (store, url) = sink("refusing");
    let setting = Setting { vault: Some(url), ..Setting::default() };
    let (mut scene, prometheus) = watched(setting, None, &["disk1"], DISK_BYTES);
    let load = scene.load("disk1", 56, 4);
    prometheus.cause(&mut scene, &REFUSED, |_| store.set(Weather { refusing: true, ..Weather::default() }));
    store.set(Weather::default());
    prometheus.wait_clear(&mut scene, &REFUSED);
    drop(load);

    // Without a load the looks for newer epochs bring its answers.
    prometheus.cause(&mut scene, &CLOCK, |_| store.set(Weather { clock_ahead_seconds: 400.0, ..Weather::default() }));
    store.set(Weather::default());
    prometheus.wait_clear(&mut scene, &CLOCK);
    prometheus.assert_seen(&[&REFUSED, &CLOCK]);
}

#[test]
#[ignore = "long: tests/observe runs it"]
fn a_store_away_until_the_journal_is_full_and_a_slow_one_after() {
    let _turn = turn();
    let (store, url) = sink("filled");
    // Small, so that it is full soon; and many small batches, so that it drains in small steps and no upload takes long.
    let gateway = [
        ("journal", "capacity = \"128 MiB\""),
        ("journal", "segment = \"16 MiB\""),
        ("vault", "batch_age = \"100 ms\""),
        ("vault", "upload_parallel_max = 2"),
        ("vault", "request_timeout = \"5 min\""),
    ];
    let gateway = gateway.map(|(section, line)| (section, line.to_owned())).to_vec();
    // What the agent cannot send is the disk at the most: it comes into the journal when that drains.
    let agent = vec![("", "memory = \"16 MiB\"".to_owned())];
    let setting = Setting { vault: Some(url), gateway, agent };
    let (mut scene, prometheus) = watched(setting, None, &["disk1"], DISK_BYTES);
    let load = prometheus.cause(&mut scene, &AWAY, |scene| {
        store.set(Weather { away: true, ..Weather::default() });
        scene.load("disk1", 54, 24)
    });
    scene.wait("somebody to wait for credit", |_| {
        prometheus.has_data("tidegate_waiting{guard=~\"journal_full|record_memory|upload_pause\"} > 0")
    });
    drop(load);

    // Where the journal is heading is known by its last two minutes, which begin with its filling: a line so slow that the
    // backlog lasts for longer.
    let slow = Weather { bytes_per_second: 512 << 10, ..Weather::default() };
    prometheus.cause(&mut scene, &SLOW, |_| store.set(slow));
    store.set(Weather::default());
    prometheus.wait_clear(&mut scene, &SLOW);
    prometheus.wait_clear(&mut scene, &AWAY);
    scene.wait("everything to be vaulted", |scene: &Scene| super::rpo_max(scene) == 0.0);
    prometheus.assert_seen(&[&AWAY, &SLOW]);
}
