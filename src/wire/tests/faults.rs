//! Peers that break the protocol, and connections that break.

use super::streams::open_raw;
use super::support::*;
use crate::types::{Epoch, Id128};
use crate::wire::frame::{HEADER_BYTES, Kind, crc32c, encode_header};
use crate::wire::messages::{Hello, Message, Ping};
use crate::wire::stream::{FrameReader, write_message};
use crate::wire::*;

use std::time::Duration;

use tokio::time::timeout;

fn hello() -> Hello {
    Hello { protocol_min: 1, protocol_max: 1, vault: VAULT, agent: "a1".into(), software: "test".into() }
}

over_both! {
    a_hello_that_does_not_fit_is_refused_with_its_reason,
    bad_frames_on_the_control_stream_close_the_connection_with_their_reason,
    bad_frames_on_a_disk_stream_end_that_stream_only,
    more_disks_than_allowed_are_refused_and_the_others_stay,
    more_connections_than_allowed_are_refused_as_busy,
    a_peer_that_says_no_hello_is_put_out,
    a_gateway_that_vanishes_is_noticed_as_one_clear_event,
}

async fn a_hello_that_does_not_fit_is_refused_with_its_reason() {
    let pki = Pki::new();
    let server = start(&pki.gateway(), &MemoryHost::with([]), 0);
    let agent = pki.agent("a1", &["d1"]);
    let other_vault = Id128([0xb2; 16]);
    for (hello, code, word) in [
        (Hello { protocol_min: 3, protocol_max: 9, ..hello() }, Code::Protocol, "versions 3 to 9"),
        (Hello { protocol_min: 0, protocol_max: 0, ..hello() }, Code::Protocol, "update the older side"),
        (Hello { vault: other_vault, ..hello() }, Code::Vault, "b2b2"),
        (Hello { agent: "a2".into(), ..hello() }, Code::Identity, "certificate of agent a1"),
    ] {
        let raw = Raw::connect(&server.addr, &agent).await;
        let (mut send, recv) = raw.open().await;
        write_message(&mut send, &Message::Hello(hello)).await.expect("sent");
        let answer = timeout(PATIENCE, FrameReader::new(recv).next_message()).await.expect("in time");
        let Ok(Message::Refused(refused)) = answer else { panic!("{answer:?}") };
        assert_eq!(refused.code, code);
        assert!(refused.text.contains(word), "{}", refused.text);
    }
    // A range that overlaps is spoken.
    let raw = Raw::connect(&server.addr, &agent).await;
    let (mut send, recv) = raw.open().await;
    write_message(&mut send, &Message::Hello(Hello { protocol_max: 9, ..hello() })).await.expect("sent");
    let answer = FrameReader::new(recv).next_message().await;
    assert!(matches!(&answer, Ok(Message::HelloOk(ok)) if ok.protocol == PROTOCOL_MAX), "{answer:?}");
}

/// A header with a right checksum and any fields.
fn header(kind: u8, version: u8, body_bytes: u32) -> [u8; HEADER_BYTES] {
    let mut out = encode_header(Kind::Ping, body_bytes, 0);
    (out[0], out[1]) = (kind, version);
    let crc = crc32c([&out[..12]]);
    out[12..].copy_from_slice(&crc.to_le_bytes());
    out
}

async fn bad_frames_on_the_control_stream_close_the_connection_with_their_reason() {
    let pki = Pki::new();
    let server = start(&pki.gateway(), &MemoryHost::with([]), 0);
    let agent = pki.agent("a1", &["d1"]);
    let ack = Message::Ack(messages::Ack { journaled: crate::types::Seq(1), vaulted: crate::types::Seq(1) });
    for (bytes, code, word) in [
        (header(Kind::Ping as u8, 9, 0).to_vec(), Code::Frame, "frame version 9"),
        (header(99, 1, 0).to_vec(), Code::Frame, "frame type 99"),
        (header(Kind::Ping as u8, 1, u32::MAX).to_vec(), Code::Frame, "the limit is"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), Code::Frame, "CRC-32C"),
        (encode_header(Kind::Ping, 0, 0).to_vec(), Code::Message, "cut short in field token"),
        (ack.encode().to_vec(), Code::Message, "Ack frame"),
    ] {
        let raw = Raw::connect(&server.addr, &agent).await;
        let (mut send, mut reader) = raw.hello("a1").await;
        send.write(bytes.into()).await.expect("sent");
        let (closed, text) = raw.closed_on(&mut reader).await;
        assert_eq!(closed, code, "{text}");
        assert!(text.contains(word), "{text}");
    }
}

async fn bad_frames_on_a_disk_stream_end_that_stream_only() {
    let host = MemoryHost::with([("d1", MemoryDisk::new()), ("d2", MemoryDisk::new())]);
    let pki = Pki::new();
    let server = start(&pki.gateway(), &host, 0);
    let raw = Raw::connect(&server.addr, &pki.agent("a1", &["d1", "d2"])).await;
    let _control = raw.hello("a1").await;
    let (mut good, mut good_reader, good_opened) = open_raw(&raw, fork("d2")).await;
    let mut good_source = Source::new(&good_opened);
    let (_, _, opened) = open_raw(&raw, fork("d1")).await;
    let record = body(&Source::new(&opened).record(100));
    let mut flipped = record_frame(&record).to_vec();
    *flipped.last_mut().expect("not empty") ^= 1;
    let skipped = {
        let mut source = Source::new(&opened);
        let _ = source.record(1);
        body(&source.record(1))
    };
    let mut outside = opened.clone();
    outside.epoch = Epoch(2);
    let other_epoch = body(&Source::new(&outside).record(1));
    outside = opened;
    outside.chain = Some(crate::types::Chain([9; 32]));
    let other_history = body(&Source::new(&outside).record(1));
    for (bytes, code) in [
        (flipped, Code::Frame),
        (header(Kind::Record as u8, 1, u32::MAX).to_vec(), Code::Frame),
        (record_frame(&record[..200]).to_vec(), Code::Record),
        (record_frame(b"").to_vec(), Code::Record),
        (record_frame(&skipped).to_vec(), Code::Seq),
        (record_frame(&other_epoch).to_vec(), Code::Epoch),
        (record_frame(&other_history).to_vec(), Code::Chain),
        (Message::Ping(Ping { token: 1, offset_micros: 0, uncertainty_micros: 1 }).encode().to_vec(), Code::Message),
        (Message::CloseDisk(messages::CloseDisk { last: crate::types::Seq(9) }).encode().to_vec(), Code::Message),
    ] {
        let (mut send, mut reader, _) = open_raw(&raw, fork("d1")).await;
        send.write(bytes.into()).await.expect("sent");
        let answer = timeout(PATIENCE, reader.next_message()).await.expect("in time");
        let Ok(Message::DiskRefused(refused)) = answer else { panic!("{answer:?}") };
        assert_eq!(refused.code, code, "{}", refused.text);
        // The other disk goes on after each of them.
        good.write(record_frame(&body(&good_source.record(10)))).await.expect("sent");
        let ack = timeout(PATIENCE, good_reader.next_message()).await.expect("in time");
        assert!(matches!(ack, Ok(Message::Ack(_))), "{ack:?}");
    }
    assert!(host.disk("d1").records.lock().is_empty(), "something refused was taken");
}

async fn more_disks_than_allowed_are_refused_and_the_others_stay() {
    let names: [&'static str; 3] = ["d1", "d2", "d3"];
    let (pki, host) = (Pki::new(), MemoryHost::with(names.map(|name| (name, MemoryDisk::new()))));
    let limits = ServerLimits { disks_max: 2, ..ServerLimits::default() };
    let server = start_with(&pki.gateway(), &host, 0, &Tuning::default(), limits);
    let client = connect(&server, &pki.agent("a1", &names)).await;
    let (mut sender, mut events, opened) = client.open_disk(fork("d1")).await.expect("opened");
    let _second = client.open_disk(fork("d2")).await.expect("opened");
    let error = client.open_disk(fork("d3")).await.err().expect("refused");
    assert!(matches!(error, OpenDiskError::Refused { code: Code::Busy, .. }), "{error:?}");
    sender.send(Source::new(&opened).record(10)).await.expect("sent");
    acked(&mut events, 1).await;
}

async fn more_connections_than_allowed_are_refused_as_busy() {
    let pki = Pki::new();
    let limits = ServerLimits { connections_max: 1, handshakes_max: 0, ..ServerLimits::default() };
    let server = start_with(&pki.gateway(), &MemoryHost::with([]), 0, &Tuning::default(), limits);
    // No handshake is free at once, so this one goes through a stateless retry.
    let first = connect(&server, &pki.agent("a1", &["d1"])).await;
    let error = try_connect(&server.addr, &pki.agent("a2", &["d1"]), 0).await.err().expect("refused");
    assert!(matches!(error, ConnectError::Refused { code: Code::Busy, .. }), "{error:?}");
    first.close().await;
}

async fn a_peer_that_says_no_hello_is_put_out() {
    let pki = Pki::new();
    let limits = ServerLimits { step_timeout: Duration::from_millis(200), ..ServerLimits::default() };
    let server = start_with(&pki.gateway(), &MemoryHost::with([]), 0, &Tuning::default(), limits);
    let raw = Raw::connect(&server.addr, &pki.agent("a1", &["d1"])).await;
    assert_eq!(raw.closed().await.0, Code::Timeout);
}

async fn a_gateway_that_vanishes_is_noticed_as_one_clear_event() {
    let (pki, host) = (Pki::new(), MemoryHost::with([("d1", MemoryDisk::new())]));
    let gateway = pki.gateway();
    let (addr_sender, addr) = tokio::sync::oneshot::channel();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
    let serving = std::sync::Arc::clone(&host);
    runtime.spawn(async move {
        let server = start(&gateway, &serving, 0);
        let _ = addr_sender.send(server.addr.clone());
        // Held: a dropped trigger would be a drain.
        let _drain = server.drain;
        let _ = server.task.await;
    });
    let addr = addr.await.expect("listening");
    let tuning = Tuning { idle_timeout: Duration::from_millis(500), ..tuning() };
    let files = pki.agent("a1", &["d1"]);
    let client = Client::connect_with(&addr, &files, &tuning, clock(0), &Net::system()).await.expect("connected");
    let (mut sender, mut events, opened) = client.open_disk(fork("d1")).await.expect("opened");
    let mut source = Source::new(&opened);
    sender.send(source.record(10)).await.expect("sent");
    acked(&mut events, 1).await;
    // As if the machine lost its power: nothing says goodbye.
    runtime.shutdown_background();
    let DiskEvent::Closed(lost) = end(&mut events).await else { panic!("not closed") };
    assert_eq!((lost.code, lost.gateway.as_str()), (Code::Timeout, addr.as_str()));
    assert_eq!(events.next().await, DiskEvent::Closed(lost.clone()), "the last event stays");
    assert_eq!(sender.send(source.record(10)).await, Err(SendError::Ended));
    let error = client.open_disk(fork("d1")).await.err().expect("no connection");
    assert!(matches!(error, OpenDiskError::Connection(again) if again == lost));
}

#[tokio::test]
async fn an_agent_that_leaves_while_it_sends_is_heard() {
    let log = Log::start();
    let (pki, host) = (Pki::new(), MemoryHost::with([("d1", MemoryDisk::new())]));
    let server = start(&pki.gateway(), &host, 0);
    for number in 0..5 {
        let agent = format!("a{number}");
        let client = connect(&server, &pki.agent(&agent, &["d1"])).await;
        let (mut sender, _events, opened) = client.open_disk(fork("d1")).await.expect("opened");
        let mut source = Source::new(&opened);
        let sending = tokio::spawn(async move { while sender.send(source.record(1 << 20)).await.is_ok() {} });
        tokio::time::sleep(Duration::from_millis(20)).await;
        client.end();
        let words = ["agent disconnected", &format!("agent=\"{agent}\""), "code=done"];
        assert!(log.has_within(Duration::from_secs(3), &words).await, "{}", log.text());
        sending.await.expect("ended");
    }
}

#[tokio::test]
async fn nobody_there_is_told_as_that() {
    let pki = Pki::new();
    let files = pki.agent("a1", &["d1"]);
    for (addr, word) in [("no-port", "host:port"), ("name.invalid:9443", "name.invalid")] {
        let error = Client::connect(addr, &files, clock(0), &Net::system()).await.err().expect("no such address");
        assert!(matches!(error, ConnectError::Address { .. }) && error.to_string().contains(word), "{error}");
    }
}
