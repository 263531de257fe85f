//! Peers that mean harm, with a right certificate or without one: what they take is bounded, and a good agent beside
//! them goes on.

use super::mute::{deaf, lossy};
use super::streams::open_raw;
use super::support::*;
use crate::limits::RECORD_BYTES_MAX;
use crate::wire::frame::{Kind, encode_header};
use crate::wire::messages::{Ask, CloseDisk, Message};
use crate::wire::stream::{FrameReader, write_message};
use crate::wire::transport::SendHalf;
use crate::wire::*;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};

const DISKS: [&str; 8] = ["e1", "e2", "e3", "e4", "e5", "e6", "e7", "e8"];

fn elsewhere() -> SocketAddr {
    "127.0.0.2:0".parse().expect("address")
}

/// A gateway, and a good agent whose disk `d1` must go on whatever else happens.
struct Site {
    _pki: Pki,
    enemy: TlsFiles,
    good: TlsFiles,
    host: Arc<MemoryHost>,
    server: TestServer,
}

impl Site {
    fn new(limits: ServerLimits) -> Self {
        Self::tuned(limits, &Tuning::default())
    }

    fn tuned(limits: ServerLimits, tuning: &Tuning) -> Self {
        let disks = DISKS.into_iter().chain(["d1"]).map(|name| (name, MemoryDisk::new()));
        let (pki, host) = (Pki::new(), MemoryHost::with(disks));
        let server = start_with(&pki.gateway(), &host, 0, tuning, limits);
        let (enemy, good) = (pki.agent("enemy", &DISKS), pki.agent("good", &["d1"]));
        Self { _pki: pki, enemy, good, host, server }
    }

    fn enemy(&self) -> TlsFiles {
        self.enemy.clone()
    }

    async fn good(&self) -> Good {
        let client = connect(&self.server, &self.good).await;
        let (sender, events, opened) = client.open_disk(fork("d1")).await.expect("opened");
        Good { _client: client, sender, events, source: Source::new(&opened), sent: opened.journaled.0 }
    }
}

struct Good {
    _client: Client,
    sender: DiskSender,
    events: DiskEvents,
    source: Source,
    sent: u64,
}

impl Good {
    /// Sends records, small and large, and waits for their acks.
    async fn goes_on(&mut self) {
        for bytes in [100, 1 << 20, 5000] {
            timeout(PATIENCE, self.sender.send(self.source.record(bytes))).await.expect("not held up").expect("sent");
            self.sent += 1;
        }
        acked(&mut self.events, self.sent).await;
    }
}

/// The header of a record frame of the largest size, with its first `bytes` bytes.
pub fn begun_record(bytes: usize) -> Vec<u8> {
    let mut out = encode_header(Kind::Record, RECORD_BYTES_MAX as u32, 0).to_vec();
    out.resize(out.len() + bytes, 7);
    out
}

/// Asks for the credit of the largest record on a stream that has sent nothing, and waits for it.
pub async fn asked(send: &mut SendHalf, reader: &mut FrameReader) -> Result<(), Code> {
    let ask = Message::Ask(Ask { wanted_bytes: RECORD_BYTES_MAX as u64 });
    write_message(send, &ask).await.expect("sent");
    loop {
        match reader.next_message().await.expect("answer") {
            Message::Credit(credit) if credit.granted_bytes >= RECORD_BYTES_MAX as u64 => return Ok(()),
            Message::DiskRefused(refused) => return Err(refused.code),
            Message::Credit(_) | Message::Ack(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

async fn until(what: &str, met: impl Fn() -> bool) {
    let wait = async {
        while !met() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}"));
}

pub async fn refused(reader: &mut FrameReader) -> Code {
    let answer = timeout(PATIENCE, reader.next_message()).await.expect("answered in time");
    let Ok(Message::DiskRefused(refused)) = answer else { panic!("{answer:?}") };
    refused.code
}

#[tokio::test]
async fn handshakes_that_are_never_finished_keep_nobody_out() {
    let limits = ServerLimits { unfinished_max: 12, unfinished_per_network_max: 8, ..ServerLimits::default() };
    let site = Site::new(limits);
    let (enemy, net) = (site.enemy(), deaf(elsewhere()));
    let mut held = Vec::new();
    for _ in 0..40 {
        let (endpoint, connecting) = connecting(&site.server.addr, &enemy, &Tuning::default(), &net);
        held.push((endpoint, tokio::spawn(async move { drop(connecting.await) })));
    }
    sleep(Duration::from_millis(100)).await;
    let mut good = site.good().await;
    good.goes_on().await;
    for (_, task) in &held {
        task.abort();
    }
}

#[tokio::test]
async fn one_certificate_with_many_silent_connections_keeps_nobody_out() {
    // The places of silent ones last for this test.
    let step_timeout = Duration::from_secs(600);
    let limits = ServerLimits { unfinished_max: 12, unfinished_per_network_max: 8, step_timeout, ..Default::default() };
    let site = Site::new(limits);
    let enemy = site.enemy();
    let mut silent = Vec::new();
    for _ in 0..12 {
        silent.push(Raw::connect(&site.server.addr, &enemy).await);
        // Those above the bound are told at once.
        let put_out = || silent.iter().filter(|raw| raw.quic().close_reason().is_some()).count();
        let expected = silent.len().saturating_sub(4);
        until("the one too many is put out", || put_out() == expected).await;
    }
    site.good().await.goes_on().await;
    let left = silent.iter().filter(|raw| raw.quic().close_reason().is_none()).count();
    assert_eq!(left, 4, "they were there all the time");
}

#[tokio::test]
async fn a_connection_has_no_more_streams_than_disks_and_few_to_spare() {
    let site = Site::new(ServerLimits::default());
    let raw = Raw::connect(&site.server.addr, &site.enemy()).await;
    let first = raw.quic().open_bi().await.expect("the control stream");
    let second = timeout(Duration::from_millis(300), raw.quic().open_bi()).await;
    assert!(second.is_err(), "a stranger has one stream");
    drop(first);
    let raw = Raw::connect(&site.server.addr, &site.enemy()).await;
    let _control = raw.hello("enemy").await;
    let mut streams = Vec::new();
    for _ in DISKS {
        streams.push(timeout(PATIENCE, raw.quic().open_bi()).await.expect("one per disk").expect("stream"));
    }
    while let Ok(stream) = timeout(Duration::from_millis(500), raw.quic().open_bi()).await {
        streams.push(stream.expect("stream"));
        assert!(streams.len() < 100, "thousands of streams can be opened");
    }
    site.good().await.goes_on().await;
}

over_both! {
    a_disk_among_a_hundred_reopens_again_and_again,
    a_record_above_the_credit_is_refused_by_its_header,
    a_record_before_its_disk_is_open_is_refused_by_its_header,
    records_that_are_begun_and_not_finished_hold_up_nobody,
    frames_after_the_close_are_not_looked_at,
    a_storm_of_openings_is_slowed_down_and_other_disks_open_at_once,
    a_storm_of_pings_does_not_hold_up_the_disks,
}

async fn a_disk_among_a_hundred_reopens_again_and_again() {
    let names: Vec<&'static str> = (0..100).map(|number| &*format!("f{number}").leak()).collect();
    let (pki, host) = (Pki::new(), MemoryHost::with(names.iter().map(|name| (*name, MemoryDisk::new()))));
    let server = start_with(&pki.gateway(), &host, 0, &Tuning::default(), ServerLimits::default());
    let client = connect(&server, &pki.agent("many", &names)).await;
    let mut held = Vec::new();
    for name in &names {
        held.push(client.open_disk(fork(name)).await.expect("opened"));
    }
    for _ in 0..25 {
        drop(held.pop());
        let opened = timeout(PATIENCE, client.open_disk(fork(names[99]))).await;
        held.push(opened.expect("a stream is free").expect("opened"));
    }
}

async fn a_record_above_the_credit_is_refused_by_its_header() {
    let site = Site::new(ServerLimits::default());
    site.host.disk("e1").window.send_replace(0);
    let raw = Raw::connect(&site.server.addr, &site.enemy()).await;
    let _control = raw.hello("enemy").await;
    let (mut send, mut reader, opened) = open_raw(&raw, fork("e1")).await;
    assert_eq!(opened.credit_bytes, 0);
    send.write(begun_record(0).into()).await.expect("sent");
    assert_eq!(refused(&mut reader).await, Code::Credit);
}

async fn a_record_before_its_disk_is_open_is_refused_by_its_header() {
    let site = Site::new(ServerLimits::default());
    let raw = Raw::connect(&site.server.addr, &site.enemy()).await;
    let _control = raw.hello("enemy").await;
    let (mut send, recv) = raw.open().await;
    send.write(begun_record(0).into()).await.expect("sent");
    assert_eq!(refused(&mut FrameReader::new(recv)).await, Code::Message);
}

async fn records_that_are_begun_and_not_finished_hold_up_nobody() {
    let site = Site::new(ServerLimits::default());
    let raw = Raw::connect(&site.server.addr, &site.enemy()).await;
    let _control = raw.hello("enemy").await;
    let mut slow = Vec::new();
    for disk in DISKS {
        let (mut send, mut reader, _) = open_raw(&raw, fork(disk)).await;
        asked(&mut send, &mut reader).await.expect("granted");
        send.write(begun_record(100_000).into()).await.expect("sent");
        slow.push((send, reader));
    }
    let mut good = site.good().await;
    good.goes_on().await;
    for (send, _) in &mut slow {
        send.write(Bytes::from_static(&[7])).await.expect("a byte now and then");
    }
    good.goes_on().await;
    assert!(DISKS.iter().all(|disk| site.host.disk(disk).records.lock().is_empty()));
}

#[tokio::test]
async fn what_an_agent_may_leave_unread_is_the_window_of_its_connection() {
    // What the connection may have on its way, headers and spare included.
    const WINDOW_BYTES: u64 = 4 << 20;
    let site = Site::new(ServerLimits { agent_memory_bytes: 3 << 20, ..ServerLimits::default() });
    for disk in DISKS {
        // The journal has no room for this disk: its records wait.
        let room = &site.host.disk(disk).room;
        room.forget_permits(room.available_permits());
    }
    let raw = Raw::connect(&site.server.addr, &site.enemy()).await;
    let _control = raw.hello("enemy").await;
    // All are open before the first one takes the whole window.
    let mut opened = Vec::new();
    for disk in DISKS {
        opened.push(open_raw(&raw, fork(disk)).await);
    }
    let mut floods = Vec::new();
    for (mut send, reader, opened) in opened {
        let mut source = Source::new(&opened);
        floods.push(tokio::spawn(async move {
            // The first one waits at its sink, and behind it nothing more is read. Until nothing more goes out.
            while send.write(record_frame(&body(&source.record(10_000)))).await.is_ok() {}
            drop(reader);
        }));
    }
    let sent_bytes = || raw.quic().stats().udp_tx.bytes;
    until("the flood begins", || sent_bytes() > WINDOW_BYTES / 2).await;
    let mut before = 0;
    while sent_bytes() != before {
        before = sent_bytes();
        assert!(before < 2 * WINDOW_BYTES, "{before} bytes went out");
        sleep(Duration::from_millis(500)).await;
    }
    // The windows of the streams together are 32 MiB. Besides the connection's went out: a base per disk, and what the
    // network lost.
    assert!(before < 2 * WINDOW_BYTES, "{before} bytes went out");
    site.good().await.goes_on().await;
    floods.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn an_agent_that_never_reads_its_acks_stops_itself_only() {
    let site = Site::new(ServerLimits::default());
    let net = Net::system();
    let tuning = Tuning { stream_window_bytes: 256, ..Tuning::default() };
    let raw = Raw::connect_over(&site.server.addr, &site.enemy(), &tuning, &net).await;
    let _control = raw.hello("enemy").await;
    let (mut send, reader, opened) = open_raw(&raw, fork("e1")).await;
    let mut source = Source::new(&opened);
    let flood = tokio::spawn(async move {
        // It ends when the credit is exceeded.
        while send.write(record_frame(&body(&source.record(4 << 10)))).await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
    let mut good = site.good().await;
    for _ in 0..10 {
        good.goes_on().await;
        sleep(Duration::from_millis(20)).await;
    }
    flood.abort();
    // Acks of a few records fill 256 bytes, and without acks there is no credit, but for the grant whose frame waits: at
    // most half of the agent's memory.
    let taken = site.host.disk("e1").records.lock().len();
    assert!(taken * (4 << 10) <= 17 << 20, "{taken} records were taken without credit");
    drop(reader);
}

#[tokio::test]
async fn a_peer_that_opens_no_window_does_not_hold_up_the_end() {
    let site = Site::new(ServerLimits { drain_grace: Duration::from_millis(200), ..ServerLimits::default() });
    let tuning = Tuning { stream_window_bytes: 1, ..Tuning::default() };
    let raw = Raw::connect_over(&site.server.addr, &site.enemy(), &tuning, &Net::system()).await;
    let (mut send, recv) = raw.open().await;
    // The answer would be a refusal, for which there is no window.
    let hello = messages::Hello {
        protocol_min: PROTOCOL_MAX + 1,
        protocol_max: PROTOCOL_MAX + 1,
        vault: VAULT,
        agent: "enemy".into(),
        software: "test".into(),
    };
    write_message(&mut send, &Message::Hello(hello)).await.expect("sent");
    sleep(Duration::from_millis(200)).await;
    site.server.drain.start();
    timeout(PATIENCE, site.server.task).await.expect("the gateway stops").expect("without a panic");
    drop(recv);
}

async fn frames_after_the_close_are_not_looked_at() {
    let site = Site::new(ServerLimits::default());
    let raw = Raw::connect(&site.server.addr, &site.enemy()).await;
    let _control = raw.hello("enemy").await;
    let (mut send, _reader, opened) = open_raw(&raw, fork("e1")).await;
    let mut source = Source::new(&opened);
    let close = Message::CloseDisk(CloseDisk { last: opened.next_seq }).encode();
    send.write(record_frame(&body(&source.record(10)))).await.expect("sent");
    send.write(close).await.expect("sent");
    for _ in 0..50 {
        // The other side may have stopped reading.
        let _ = send.write(record_frame(&body(&source.record(10)))).await;
    }
    until("the first arrives", || !site.host.disk("e1").records.lock().is_empty()).await;
    site.good().await.goes_on().await;
    assert_eq!(site.host.disk("e1").seqs(), [1]);
}

async fn a_storm_of_openings_is_slowed_down_and_other_disks_open_at_once() {
    let site = Site::new(ServerLimits::default());
    let begun = Instant::now();
    let storm = {
        let (addr, enemy) = (site.server.addr.clone(), site.enemy());
        tokio::spawn(async move {
            let client = try_connect(&addr, &enemy, 0).await.expect("connected");
            for _ in 0..100 {
                drop(client.open_disk(fork("e1")).await.expect("opened"));
            }
        })
    };
    let mut good = site.good().await;
    let opens = || site.host.disk("e1").opens.lock().len();
    until("the storm has used up what it may at once", || opens() >= 32).await;
    for _ in 0..10 {
        good.goes_on().await;
    }
    let opened = opens();
    let elapsed = begun.elapsed().as_secs() as usize;
    assert!(opened <= 33 + elapsed / 2, "{opened} openings in {elapsed} s");
    storm.abort();
}

#[tokio::test]
async fn fragments_with_gaps_and_out_of_order_disturb_nobody_and_arrive_in_the_end() {
    let site = Site::new(ServerLimits::default());
    let net = lossy(elsewhere(), 10);
    let raw = Raw::connect_over(&site.server.addr, &site.enemy(), &Tuning::default(), &net).await;
    let _control = raw.hello("enemy").await;
    let mut senders = Vec::new();
    for disk in DISKS {
        let (mut send, mut reader, opened) = open_raw(&raw, fork(disk)).await;
        asked(&mut send, &mut reader).await.expect("granted");
        let mut source = Source::new(&opened);
        senders.push(tokio::spawn(async move {
            for _ in 0..20 {
                send.write(record_frame(&body(&source.record(3000)))).await.expect("sent");
            }
            (send, reader)
        }));
    }
    let mut good = site.good().await;
    let all_there = || DISKS.iter().all(|disk| site.host.disk(disk).records.lock().len() == 20);
    let wait = async {
        while !all_there() {
            good.goes_on().await;
        }
    };
    timeout(3 * PATIENCE, wait).await.expect("everything arrives");
    for sender in senders {
        sender.await.expect("no panic");
    }
}

#[tokio::test]
async fn datagrams_of_noise_are_nothing() {
    let site = Site::new(ServerLimits::default());
    let mut good = site.good().await;
    let socket = tokio::net::UdpSocket::bind(elsewhere()).await.expect("socket");
    let mut state = 0x9e37_79b9_u64;
    for round in 0..2000_usize {
        let noise: Vec<u8> = (0..1 + round % 1400)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 24) as u8
            })
            .collect();
        // Long and short headers, of this version and of others.
        let _ = socket.send_to(&noise, &site.server.addr).await;
        if round % 500 == 0 {
            good.goes_on().await;
        }
    }
    good.goes_on().await;
    site.good().await.goes_on().await;
}

async fn a_storm_of_pings_does_not_hold_up_the_disks() {
    let site = Site::new(ServerLimits::default());
    let raw = Raw::connect(&site.server.addr, &site.enemy()).await;
    let (mut send, reader) = raw.hello("enemy").await;
    let storm = async {
        loop {
            // The answers are never read: the storm ends when the gateway has had enough of it.
            let ping = Message::Ping(messages::Ping { token: 1, offset_micros: 0, uncertainty_micros: u32::MAX });
            if write_message(&mut send, &ping).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let mut good = site.good().await;
    let goes_on = async {
        for _ in 0..10 {
            good.goes_on().await;
        }
    };
    tokio::join!(async { drop(timeout(Duration::from_secs(2), storm).await) }, goes_on);
    drop(reader);
}
