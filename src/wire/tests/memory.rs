//! Memory for records on their way: bounded whatever agents do, and no disk or agent holds up another by what it has.

use super::hostile::{asked, begun_record, refused};
use super::streams::open_raw;
use super::support::*;
use crate::flow::watch;
use crate::limits::RECORD_BYTES_MAX;
use crate::wire::messages::Message;
use crate::wire::*;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// The smallest gateway: a quarter of 128 MiB for all, a quarter of that for one agent.
fn smallest() -> ServerLimits {
    ServerLimits { memory_bytes: 32 << 20, agent_memory_bytes: 8 << 20, ..ServerLimits::default() }
}

/// So many of the largest records fit an agent's memory, of which a quarter is kept for the host's other way.
const RECORDS_MAX: usize = (6 << 20) / RECORD_BYTES_MAX;

fn names(letter: char, count: usize) -> Vec<&'static str> {
    (0..count).map(|number| &*format!("{letter}{number}").leak()).collect()
}

struct Site {
    pki: Pki,
    host: Arc<MemoryHost>,
    server: TestServer,
}

/// Disks named by `names`; those of `stalled` go a way of their own, on which nothing moves.
fn site(limits: ServerLimits, names: &[&'static str], stalled: &[&'static str]) -> Site {
    let stand = |name: &&'static str| (*name, MemoryDisk { way: 1, room: Semaphore::new(0), ..MemoryDisk::new() });
    let disks = names.iter().map(|name| (*name, MemoryDisk::new())).chain(stalled.iter().map(stand));
    let (pki, host) = (Pki::new(), MemoryHost::with(disks));
    let server = start_with(&pki.gateway(), &host, 0, &Tuning::default(), limits);
    Site { pki, host, server }
}

/// Sends `count` records of `bytes` and waits for their acks.
async fn send(client: &Client, name: &str, count: u64, bytes: usize) {
    let (mut sender, mut events, opened) = client.open_disk(fork(name)).await.expect("opened");
    let mut source = Source::new(&opened);
    for _ in 0..count {
        sender.send(source.record(bytes)).await.expect("sent");
    }
    acked(&mut events, count).await;
}

over_both! {
    an_agent_begins_no_more_records_than_its_memory_holds_and_another_goes_on,
    a_disk_that_was_idle_while_nobody_else_wanted_memory_sends_large_records_again,
    more_stalled_disks_than_an_agents_memory_holds_hold_up_none_of_its_others,
    disks_that_all_send_their_largest_record_at_once_all_get_through,
    a_single_disk_has_a_window_of_several_mebibytes_at_the_smallest_memory,
    a_slow_record_gives_way_when_another_agent_needs_its_memory_and_comes_again,
    memory_that_an_idle_disk_had_is_anothers_and_the_disk_goes_on_when_it_wants,
}

async fn an_agent_begins_no_more_records_than_its_memory_holds_and_another_goes_on() {
    let bad = names('e', 256);
    let site = site(smallest(), &[&bad[..], &["d1"]].concat(), &[]);
    let raw = Raw::connect(&site.server.addr, &site.pki.agent("enemy", &bad)).await;
    let _control = raw.hello("enemy").await;
    let mut opened = Vec::new();
    for name in &bad {
        opened.push(open_raw(&raw, fork(name)).await);
    }
    let mut enemies = JoinSet::new();
    let (begun_now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    for (mut send, mut reader, _) in opened {
        let (begun_now, most) = (Arc::clone(&begun_now), Arc::clone(&most));
        enemies.spawn(async move {
            asked(&mut send, &mut reader).await?;
            most.fetch_max(begun_now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            send.write(begun_record(RECORD_BYTES_MAX - 1).into()).await.expect("sent");
            // The last byte never comes.
            let answer = reader.next_message().await;
            begun_now.fetch_sub(1, Ordering::SeqCst);
            let Ok(Message::DiskRefused(refused)) = answer else { panic!("{answer:?}") };
            Err::<(), _>(refused.code)
        });
    }
    let good = connect(&site.server, &site.pki.agent("good", &["d1"])).await;
    let begun = Instant::now();
    send(&good, "d1", 20, 1 << 20).await;
    assert!(begun.elapsed() < PATIENCE / 2, "it took {:?}", begun.elapsed());
    // Those that stand give way to those that wait.
    let gone = timeout(PATIENCE, enemies.join_next()).await.expect("in time").expect("one").expect("no panic");
    assert_eq!(gone, Err(Code::Busy));
    sleep(Duration::from_secs(2)).await;
    // One that must go may learn of it after the one in whose place it goes.
    let most = most.load(Ordering::SeqCst);
    assert!((RECORDS_MAX..=2 * RECORDS_MAX).contains(&most), "{most} were begun at once");
}

async fn a_disk_that_was_idle_while_nobody_else_wanted_memory_sends_large_records_again() {
    let site = site(ServerLimits::default(), &["d1"], &[]);
    let client = connect(&site.server, &site.pki.agent("a1", &["d1"])).await;
    let (mut sender, mut events, opened) = client.open_disk(fork("d1")).await.expect("opened");
    let mut source = Source::new(&opened);
    for round in 1..=3 {
        timeout(PATIENCE, sender.send(source.record(1 << 20))).await.expect("there is memory").expect("sent");
        acked(&mut events, round).await;
        sleep(CREDIT_LAPSE + CREDIT_LAPSE / 5).await;
    }
}

async fn more_stalled_disks_than_an_agents_memory_holds_hold_up_none_of_its_others() {
    let (stalled, others) = (names('s', 64), names('d', 4));
    let site = site(smallest(), &others, &stalled);
    let client = connect(&site.server, &site.pki.agent("a1", &[&stalled[..], &others[..]].concat())).await;
    let mut stuffing = JoinSet::new();
    for name in &stalled {
        let (mut sender, events, opened) = client.open_disk(fork(name)).await.expect("opened");
        stuffing.spawn(async move {
            let mut source = Source::new(&opened);
            // Small ones first, so that every disk has one that waits at its sink before the large ones come.
            while sender.send(source.record(1000)).await.is_ok() && sender.send(source.record(1 << 20)).await.is_ok() {}
            drop(events);
        });
    }
    sleep(Duration::from_millis(300)).await;
    for name in &others {
        timeout(PATIENCE, send(&client, name, 8, 1 << 20)).await.expect("not held up");
    }
    assert_eq!(stuffing.len(), 64);
    assert!(stalled.iter().all(|name| site.host.disk(name).records.lock().is_empty()));
    // The same with records that are large from the first on, when the way moves again and then stands for good.
    let (mut sender, mut events, opened) = client.open_disk(fork(others[0])).await.expect("opened");
    let mut source = Source::new(&opened);
    for name in &stalled {
        site.host.disk(name).room.add_permits(1);
    }
    sleep(Duration::from_millis(500)).await;
    for _ in 0..20 {
        timeout(Duration::from_secs(2), sender.send(source.record(1 << 20))).await.expect("at once").expect("sent");
    }
    acked(&mut events, 28).await;
    assert_eq!(stuffing.len(), 64, "nobody gives way because the gateway is slow");
    stuffing.abort_all();
}

async fn disks_that_all_send_their_largest_record_at_once_all_get_through() {
    let all = names('d', 256);
    let site = site(smallest(), &all, &[]);
    let client = Arc::new(connect(&site.server, &site.pki.agent("a1", &all)).await);
    let mut opened = Vec::new();
    for name in &all {
        opened.push(client.open_disk(fork(name)).await.expect("opened"));
    }
    let mut sending = JoinSet::new();
    for (mut sender, mut events, opened) in opened {
        sending.spawn(async move {
            let record = Source::new(&opened).record(1 << 20);
            sender.send(record).await.expect("sent");
            acked(&mut events, 1).await;
            sender
        });
    }
    while let Some(sent) = timeout(4 * PATIENCE, sending.join_next()).await.expect("no deadlock") {
        drop(sent.expect("acked"));
    }
    assert!(all.iter().all(|name| site.host.disk(name).records.lock().len() == 1));
}

async fn a_single_disk_has_a_window_of_several_mebibytes_at_the_smallest_memory() {
    let stalled = MemoryDisk { room: Semaphore::new(1), window: watch::Sender::new(4 << 20), ..MemoryDisk::new() };
    let (pki, host) = (Pki::new(), MemoryHost::with([("d1", stalled)]));
    let server = start_with(&pki.gateway(), &host, 0, &Tuning::default(), smallest());
    let client = connect(&server, &pki.agent("a1", &["d1"])).await;
    let (mut sender, _events, opened) = client.open_disk(fork("d1")).await.expect("opened");
    let mut source = Source::new(&opened);
    sender.send(source.record(1 << 20)).await.expect("sent");
    let mut ahead_bytes = 0;
    while timeout(Duration::from_millis(500), sender.send(source.record(100_000))).await.is_ok() {
        ahead_bytes += 100_000;
    }
    assert!(ahead_bytes >= 2_400_000, "{ahead_bytes} bytes ahead of a sink that has taken one record");
}

async fn a_slow_record_gives_way_when_another_agent_needs_its_memory_and_comes_again() {
    // Both agents together have the memory of two records.
    let limits = ServerLimits { memory_bytes: 1, agent_memory_bytes: 1, ..ServerLimits::default() };
    let slow = names('e', 8);
    let site = site(limits, &[&slow[..], &["d1"]].concat(), &[]);
    let raw = Raw::connect(&site.server.addr, &site.pki.agent("enemy", &slow)).await;
    let _control = raw.hello("enemy").await;
    let mut held = Vec::new();
    for name in &slow[..2] {
        let (mut send, mut reader, _) = open_raw(&raw, fork(name)).await;
        asked(&mut send, &mut reader).await.expect("granted");
        send.write(begun_record(1000).into()).await.expect("sent");
        held.push((send, reader));
    }
    sleep(Duration::from_secs(2)).await;
    let trickle = async {
        loop {
            for (send, _) in &mut held {
                // A byte now and then is no progress.
                let _ = send.write(bytes::Bytes::from_static(&[7])).await;
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    let good = connect(&site.server, &site.pki.agent("good", &["d1"])).await;
    let begun = Instant::now();
    tokio::select! {
        () = trickle => {}
        () = send(&good, "d1", 5, 1 << 20) => {}
    }
    assert!(begun.elapsed() < Duration::from_secs(8), "it took {:?}", begun.elapsed());
    assert_eq!(refused(&mut held[0].1).await, Code::Busy);
    // An honest one would open again and send the same record.
    let (mut again, mut reader, _) = open_raw(&raw, fork(slow[0])).await;
    timeout(PATIENCE, asked(&mut again, &mut reader)).await.expect("in its turn").expect("granted");
}

async fn memory_that_an_idle_disk_had_is_anothers_and_the_disk_goes_on_when_it_wants() {
    let limits = ServerLimits { memory_bytes: 1, agent_memory_bytes: 1, ..ServerLimits::default() };
    let all = names('d', 6);
    let site = site(limits, &all, &[]);
    let client = connect(&site.server, &site.pki.agent("a1", &all)).await;
    let mut open = Vec::new();
    for name in &all {
        let (sender, events, opened) = client.open_disk(fork(name)).await.expect("opened");
        open.push((sender, events, Source::new(&opened)));
    }
    for round in 1..=2 {
        for (sender, events, source) in &mut open {
            let sent = timeout(Duration::from_secs(4), sender.send(source.record(1 << 20)));
            sent.await.expect("idle ones let go").expect("sent");
            acked(events, round).await;
        }
        // Long enough for every credit to lapse.
        sleep(CREDIT_LAPSE * 2).await;
    }
}
