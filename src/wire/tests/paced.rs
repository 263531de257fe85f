//! Limits of bandwidth on many streams: nothing is free, nothing is paid twice, and who waits for memory keeps nobody.

use super::streams::open_raw;
use super::support::*;
use crate::flow::{BURST, Clock as _, Limiter, Pace, Rate, SystemClock};
use crate::wire::messages::{Ask, Credit, Message};
use crate::wire::stream::{FrameReader, write_message};
use crate::wire::*;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

over_both! {
    streams_that_open_at_once_bring_no_more_than_the_limit_lets_through,
    what_is_paid_for_is_told_again_while_others_wait_for_their_turn,
    credit_that_was_due_with_an_ack_comes_in_its_turn_without_being_asked_for,
    records_that_waited_for_memory_come_no_faster_than_the_limit_lets_them,
}

fn names(letter: char, count: usize) -> Vec<&'static str> {
    (0..count).map(|number| &*format!("{letter}{number}").leak()).collect()
}

/// Disks that share one limit.
fn paced(names: &[&'static str], bytes_per_second: u64, room: usize) -> Arc<MemoryHost> {
    let rate = Rate::new(clock(0));
    rate.set(Some(bytes_per_second));
    let all = Limiter::new(&rate);
    MemoryHost::with(names.iter().map(|name| {
        let pace = Pace::new(vec![Arc::clone(&all)]);
        (*name, MemoryDisk { pace, room: Semaphore::new(room), ..MemoryDisk::new() })
    }))
}

fn received_bytes(host: &MemoryHost) -> u64 {
    host.disks.values().map(|disk| disk.records.lock().iter().map(|record| record.len() as u64).sum::<u64>()).sum()
}

/// Each of `names` opens and sends one record of `bytes`, all at once.
fn send_one_each(client: &Arc<Client>, names: &[&'static str], bytes: usize) -> JoinSet<()> {
    let mut sending = JoinSet::new();
    for name in names {
        let (client, name) = (Arc::clone(client), *name);
        sending.spawn(async move {
            let (mut sender, mut events, opened) = client.open_disk(fork(name)).await.expect("opened");
            sender.send(Source::new(&opened).record(bytes)).await.expect("sent");
            acked(&mut events, 1).await;
        });
    }
    sending
}

/// Waits for the next that is done, not for long.
async fn a_moment(sending: &mut JoinSet<()>) {
    if let Ok(Some(ended)) = timeout(Duration::from_millis(20), sending.join_next()).await {
        ended.expect("no panic");
    }
}

async fn streams_that_open_at_once_bring_no_more_than_the_limit_lets_through() {
    // Records within the base, and records for which memory is leased.
    for (record_bytes, rate) in [(12 << 10, 512 << 10), (256 << 10, 8 << 20)] {
        let names = names('d', 60);
        let (pki, host) = (Pki::new(), paced(&names, rate, Semaphore::MAX_PERMITS));
        let server = start(&pki.gateway(), &host, 0);
        let client = Arc::new(connect(&server, &pki.agent("a1", &names)).await);
        let clock = SystemClock::new();
        let began = clock.monotonic();
        let mut sending = send_one_each(&client, &names, record_bytes as usize);
        // What one has in hand: its record, the base, and a window.
        let in_hand = record_bytes + CREDIT_BASE_BYTES + rate / 4;
        while !sending.is_empty() {
            let received = received_bytes(&host);
            let seconds = (clock.monotonic() - began + BURST).as_secs_f64();
            let allowed = rate as f64 * seconds + in_hand as f64;
            assert!(received as f64 <= allowed, "{received} bytes after {seconds} s, at most {allowed}");
            a_moment(&mut sending).await;
        }
        assert!(host.disks.values().all(|disk| disk.records.lock().len() == 1));
    }
}

async fn what_is_paid_for_is_told_again_while_others_wait_for_their_turn() {
    const WANTED: u64 = 40 << 10;
    // Sixteen seconds for a large record.
    let (pki, host) = (Pki::new(), paced(&["light", "heavy"], 64 << 10, Semaphore::MAX_PERMITS));
    let server = start(&pki.gateway(), &host, 0);
    let raw = Raw::connect(&server.addr, &pki.agent("a1", &["light"])).await;
    let _control = raw.hello("a1").await;
    let (mut send, mut reader, opened) = open_raw(&raw, fork("light")).await;
    assert_eq!(opened.credit_bytes, 0, "under a limit a stream asks for its first credit");
    let mut ask = async || {
        write_message(&mut send, &Message::Ask(Ask { wanted_bytes: WANTED })).await.expect("sent");
        timeout(Duration::from_secs(5), reader.next_message()).await.expect("answered").expect("a frame")
    };
    let Message::Credit(Credit { granted_bytes }) = ask().await else { panic!("no credit") };
    assert!(granted_bytes >= WANTED);
    let heavy = Arc::new(connect(&server, &pki.agent("a2", &["heavy"])).await);
    let sending = send_one_each(&heavy, &["heavy"], 1 << 20);
    // It comes when the light disk's debt is paid, and leaves one of its own.
    while host.disk("heavy").records.lock().is_empty() {
        sleep(Duration::from_millis(10)).await;
    }
    sleep(CREDIT_LAPSE).await;
    let again = ask().await;
    assert_eq!(again, Message::Credit(Credit { granted_bytes }), "the same, for which it has paid");
    drop(sending);
}

/// Puts the limit into a debt of two seconds, by a record of the disk `heavy`.
async fn indebt(server: &TestServer, pki: &Pki, host: &MemoryHost) -> JoinSet<()> {
    let heavy = Arc::new(connect(server, &pki.agent("a2", &["heavy"])).await);
    let sending = send_one_each(&heavy, &["heavy"], 1 << 20);
    while host.disk("heavy").records.lock().is_empty() {
        sleep(Duration::from_millis(10)).await;
    }
    sending
}

/// The next credit that the gateway tells of.
async fn next_credit(reader: &mut FrameReader) -> u64 {
    loop {
        let message = timeout(Duration::from_secs(10), reader.next_message()).await.expect("credit in time");
        if let Message::Credit(Credit { granted_bytes }) = message.expect("a frame") {
            return granted_bytes;
        }
    }
}

async fn credit_that_was_due_with_an_ack_comes_in_its_turn_without_being_asked_for() {
    let (pki, host) = (Pki::new(), paced(&["light", "heavy"], 512 << 10, Semaphore::MAX_PERMITS));
    let server = start(&pki.gateway(), &host, 0);
    let raw = Raw::connect(&server.addr, &pki.agent("a1", &["light"])).await;
    let _control = raw.hello("a1").await;
    let (mut send, mut reader, opened) = open_raw(&raw, fork("light")).await;
    let record = record_frame(&body(&Source::new(&opened).record(8 << 10)));
    write_message(&mut send, &Message::Ask(Ask { wanted_bytes: 9 << 10 })).await.expect("sent");
    let first = next_credit(&mut reader).await;
    let sending = indebt(&server, &pki, &host).await;
    // Half of the base: little enough to wait for the turn, and none asks.
    send.write(record).await.expect("sent");
    // The first may be told once more before.
    while next_credit(&mut reader).await <= first {}
    drop(sending);
}

/// Over QUIC, where a window of some bytes holds back an ack.
#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_passed_while_an_ack_could_not_go_comes_again() {
    const WANTED: u64 = 40 << 10;
    let (pki, host) = (Pki::new(), paced(&["light", "heavy"], 512 << 10, Semaphore::MAX_PERMITS));
    let server = start(&pki.gateway(), &host, 0);
    // One ack of 32 bytes fits, and no second one.
    let tuning = Tuning { stream_window_bytes: 48, ..Tuning::default() };
    let raw = Raw::connect_over(&server.addr, &pki.agent("a1", &["light"]), &tuning, &Net::system()).await;
    let _control = raw.hello("a1").await;
    let (mut send, mut reader, _) = open_raw(&raw, fork("light")).await;
    let sending = indebt(&server, &pki, &host).await;
    let moment = || sleep(Duration::from_millis(200));
    host.disk("light").journaled.advance(1);
    moment().await;
    write_message(&mut send, &Message::Ask(Ask { wanted_bytes: WANTED })).await.expect("sent");
    moment().await;
    host.disk("light").journaled.advance(2);
    sleep(Duration::from_secs(4)).await;
    assert!(next_credit(&mut reader).await >= WANTED, "after both acks");
    drop(sending);
}

async fn records_that_waited_for_memory_come_no_faster_than_the_limit_lets_them() {
    const RATE: u64 = 4 << 20;
    const DISKS: usize = 30;
    /// Of an agent's memory at the smallest gateway, with what its other way keeps.
    const MEMORY: u64 = 6 << 20;
    let names = names('d', DISKS);
    let (pki, host) = (Pki::new(), paced(&names, RATE, 0));
    let limits = ServerLimits { memory_bytes: 32 << 20, agent_memory_bytes: 8 << 20, ..ServerLimits::default() };
    let server = start_with(&pki.gateway(), &host, 0, &Tuning::default(), limits);
    let client = Arc::new(connect(&server, &pki.agent("a1", &names)).await);
    let mut sending = send_one_each(&client, &names, 1 << 20);
    // The sinks take nothing, so memory is what all wait for in the end, long after the limit would have let them through.
    sleep(Duration::from_secs(5)).await;
    let clock = SystemClock::new();
    let began = clock.monotonic();
    for name in &names {
        host.disk(name).room.add_permits(1);
    }
    while !sending.is_empty() {
        let received = received_bytes(&host);
        let seconds = (clock.monotonic() - began + BURST).as_secs_f64();
        let allowed = RATE as f64 * seconds + (MEMORY + (2 << 20)) as f64;
        assert!(received as f64 <= allowed, "{received} bytes after {seconds} s, at most {allowed}");
        a_moment(&mut sending).await;
    }
}
