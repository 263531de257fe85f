//! Bad blob stores: busy, forgetful, slow or small. Uploads adapt, nothing is lost, nothing is stored twice differently.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::Duration;

use loadgen::blob::{BlobFaults, BlobProxy};
use loadgen::chance::Share;
use loadgen::sink::{Account, Limits, Sink, Weather};
use tidegate::cli::quickstart::child::metric;

use crate::common::azurite::Azurite;
use crate::common::{Scene, Setting, empty, turn};

const DISK_BYTES: u64 = 128 << 20;

fn behind_proxy(azurite: &Azurite, container: &str) -> (Scene, BlobProxy) {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let proxy = BlobProxy::start(any, azurite.address(), BlobFaults::default(), 13).unwrap();
    let vault = Some(azurite.vault_url_at(proxy.address(), container));
    let mut scene = Scene::new(Setting { vault, ..Setting::default() }, &["disk1"], empty(DISK_BYTES));
    scene.wait_copied("disk1");
    (scene, proxy)
}

#[test]
fn busy_answers_and_answers_lost_after_the_deed_lose_nothing() {
    let _turn = turn();
    let azurite = Azurite::start();
    let (mut scene, proxy) = behind_proxy(&azurite, "busy");
    let load = scene.load("disk1", 41, 16);
    for (name, busy, lost) in [("busy", 40.0, 0.0), ("forgetful", 0.0, 40.0), ("both", 25.0, 25.0)] {
        let (busy, lost_answers) = (Share::percent(busy), Share::percent(lost));
        proxy.set(BlobFaults { busy, lost_answers, ..BlobFaults::default() });
        scene.write_more(&load, 24 << 20);
        scene.keep("disk1", name, Some(&load));
        // The looking goes through the proxy too: it need not see everything at the first try.
        scene.wait_vaulted();
    }
    let counts = proxy.counts();
    let (busy, lost) = (counts.busy.load(Ordering::Relaxed), counts.lost_answers.load(Ordering::Relaxed));
    assert!(busy >= 5 && lost >= 5, "{busy} busy, {lost} lost: the faults did not happen");
    proxy.set(BlobFaults::default());
    drop(load);
    scene.stop();
    scene.assert_all_restore();
}

#[test]
fn uploads_find_out_how_much_a_store_bears() {
    let _turn = turn();
    let azurite = Azurite::start();
    let (mut scene, proxy) = behind_proxy(&azurite, "small");
    let load = scene.load("disk1", 42, 48);
    // Two batches a second are less than what comes.
    let latency = Duration::from_secs(1);
    proxy.set(BlobFaults { latency, parallel_max: 2, ..BlobFaults::default() });
    scene.write_more(&load, 320 << 20);
    let page = scene.site.admin("/metrics").unwrap();
    let window = metric(&page, "tidegate_upload_window_batches");
    let counts = proxy.counts();
    let (passed, busy) = (counts.passed.load(Ordering::Relaxed), counts.busy.load(Ordering::Relaxed));
    println!("window {window}, {passed} requests passed, {busy} refused");
    assert!((1.0..=6.0).contains(&window), "a store that bears 2 requests got a window of {window}");
    assert!(busy > 0, "the store was never asked for more than it bears: nothing was proven");
    assert!(passed > busy, "{busy} of {} requests were in vain", busy + passed);
    proxy.set(BlobFaults::default());
    scene.keep("disk1", "end", Some(&load));
    drop(load);
    scene.wait_vaulted();
    scene.stop();
    scene.assert_all_restore();
}

/// A service may give fewer names at once than it was asked for, and above 5,000 it always does.
#[test]
fn listings_that_come_in_pages_of_two_names_hide_nothing() {
    let _turn = turn();
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let limits = Limits { page_names_max: 2, ..Limits::default() };
    let sink = Sink::start(any, None, Account::default(), limits, Weather::default()).unwrap();
    let vault = Some(sink.vault_url("paged"));
    let mut scene = Scene::new(Setting { vault, ..Setting::default() }, &["disk1"], empty(DISK_BYTES));
    scene.wait_copied("disk1");
    let load = scene.load("disk1", 43, 16);
    for life in 0..6 {
        scene.write_more(&load, 8 << 20);
        scene.keep("disk1", &format!("life {life}"), Some(&load));
        // Each life of a gateway has a lane of its own, and each of an agent an epoch: they come in pages, too.
        scene.kill_gateway();
    }
    scene.keep("disk1", "end", Some(&load));
    drop(load);
    scene.wait_vaulted();
    scene.stop();
    scene.assert_all_restore();
    let counts = sink.counts();
    println!("{} names, {} listings", counts.blobs, counts.lists);
    assert!(counts.blobs > 15, "{} names make few pages: nothing was proven", counts.blobs);
}
