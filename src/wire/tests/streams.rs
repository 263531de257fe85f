//! Records, acks, credit, and the life of disk streams.

use super::support::*;
use crate::limits::TOUCHED_RUNS_MAX;
use crate::wire::messages::{Message, OpenDisk, TOUCHED_RUNS_PER_FRAME};
use crate::wire::stream::{FrameReader, write_message};
use crate::wire::transport::SendHalf;
use crate::wire::*;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::flow::{Limiter, Pace, Rate, watch};
use crate::types::{Chain, Epoch, Seq};
use tokio::sync::Semaphore;
use tokio::time::timeout;

over_both! {
    records_arrive_whole_and_in_order_and_are_acknowledged,
    acks_come_as_watermarks_not_one_per_record,
    a_sender_stops_at_its_credit_and_goes_on_with_new_credit,
    a_closed_window_stops_the_agent_until_it_opens,
    a_limit_of_bandwidth_paces_a_disk_by_its_credit_and_counts_at_once,
    under_a_limit_of_all_a_light_disk_waits_for_little_of_what_heavy_ones_send,
    more_bytes_than_credit_are_refused,
    touched_chunks_come_with_the_answer_in_as_many_frames_as_it_takes,
    a_gateway_that_names_too_many_chunks_or_in_no_order_is_not_believed,
    a_disk_resumes_after_a_lost_connection_where_the_gateway_stands,
    a_refusal_at_open_says_what_to_do,
    a_fenced_disk_is_told_and_takes_nothing_more,
    a_stalled_disk_holds_up_no_other,
    a_finished_disk_is_acknowledged_to_its_end,
    a_drain_acknowledges_what_was_taken_and_then_closes,
    a_request_that_the_agent_takes_back_is_given_up_although_the_connection_lives,
    a_drain_does_not_wait_for_acks_that_cannot_come,
    asking_a_gateway_by_another_name_does_not_end_the_connection_that_is_there,
    a_newer_connection_of_an_agent_takes_the_place_of_the_older,
    a_send_that_was_dropped_half_way_cuts_the_stream_and_says_so,
    the_clock_offset_is_that_of_the_gateway_within_its_uncertainty,
}

async fn records_arrive_whole_and_in_order_and_are_acknowledged() {
    let (pki, host) = (Pki::new(), MemoryHost::with([("d1", MemoryDisk::new())]));
    let server = start(&pki.gateway(), &host, 0);
    let client = connect(&server, &pki.agent("a1", &["d1"])).await;
    let (mut sender, mut events, opened) = client.open_disk(fork("d1")).await.expect("opened");
    assert_eq!((opened.epoch, opened.next_seq), (Epoch(1), Seq(1)));
    let mut source = Source::new(&opened);
    let mut sent = Vec::new();
    for payload_bytes in (0..200).map(|i| 1 + i * 37).chain([1 << 20, 1, 1 << 20]) {
        let record = source.record(payload_bytes);
        sent.push(body(&record));
        sender.send(record).await.expect("sent");
    }
    acked(&mut events, sent.len() as u64).await;
    assert!(*host.disk("d1").records.lock() == sent, "the host holds other bytes than were sent");
}

async fn acks_come_as_watermarks_not_one_per_record() {
    let state = MemoryDisk { acks: false, ..MemoryDisk::new() };
    let (pki, host) = (Pki::new(), MemoryHost::with([("d1", state)]));
    let server = start(&pki.gateway(), &host, 0);
    let client = connect(&server, &pki.agent("a1", &["d1"])).await;
    let (mut sender, mut events, opened) = client.open_disk(fork("d1")).await.expect("opened");
    let mut source = Source::new(&opened);
    for _ in 0..100 {
        sender.send(source.record(10)).await.expect("sent");
    }
    host.disk("d1").journaled.advance(100);
    let event = timeout(PATIENCE, events.next()).await.expect("an ack");
    assert_eq!(event, DiskEvent::Ack { journaled: Seq(100), vaulted: Seq(0) });
    host.disk("d1").vaulted.advance(60);
    let event = timeout(PATIENCE, events.next()).await.expect("an ack");
    assert_eq!(event, DiskEvent::Ack { journaled: Seq(100), vaulted: Seq(60) });
}

async fn a_sender_stops_at_its_credit_and_goes_on_with_new_credit() {
    let state = MemoryDisk { window: watch::Sender::new(1), room: Semaphore::new(0), ..MemoryDisk::new() };
    let (pki, host) = (Pki::new(), MemoryHost::with([("d1", state)]));
    let server = start(&pki.gateway(), &host, 0);
    let client = connect(&server, &pki.agent("a1", &["d1"])).await;
    let (mut sender, mut events, opened) = client.open_disk(fork("d1")).await.expect("opened");
    assert_eq!(opened.credit_bytes, CREDIT_BASE_BYTES);
    let mut source = Source::new(&opened);
    let mut sent_bytes = 0;
    let mut count = 0;
    loop {
        let record = source.record(5_000);
        let bytes = body(&record).len() as u64;
        if sender.credit_bytes() < bytes {
            // No credit: the sink takes nothing, so none may come.
            let early = timeout(Duration::from_millis(100), sender.send(record.clone())).await;
            assert!(early.is_err(), "sent {sent_bytes} + {bytes} bytes against a credit of {}", opened.credit_bytes);
            host.disk("d1").room.add_permits(Semaphore::MAX_PERMITS / 2);
            timeout(PATIENCE, sender.send(record)).await.expect("credit came").expect("sent");
            count += 1;
            break;
        }
        sender.send(record).await.expect("sent");
        sent_bytes += bytes;
        count += 1;
    }
    assert!(sent_bytes <= opened.credit_bytes);
    acked(&mut events, count).await;
}

async fn a_limit_of_bandwidth_paces_a_disk_by_its_credit_and_counts_at_once() {
    const RATE: u64 = 4 << 20;
    let clock = clock(0);
    let rate = Rate::new(Arc::clone(&clock));
    rate.set(Some(RATE));
    let state = MemoryDisk { pace: Pace::new(vec![Limiter::new(&rate)]), ..MemoryDisk::new() };
    let (pki, host) = (Pki::new(), MemoryHost::with([("d1", state), ("d2", MemoryDisk::new())]));
    let server = start(&pki.gateway(), &host, 0);
    let client = connect(&server, &pki.agent("a1", &["d1", "d2"])).await;
    let (mut sender, mut events, opened) = client.open_disk(fork("d1")).await.expect("opened");
    let mut source = Source::new(&opened);
    let sending = tokio::spawn(async move {
        for _ in 0..1000 {
            sender.send(source.record(64 << 10)).await.expect("sent");
        }
        sender
    });
    let received = || host.disk("d1").records.lock().iter().map(|record| record.len() as u64).sum::<u64>();
    // From the first full stop on, so that what was in hand at the begin does not count.
    while rate.held_bytes() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (began, before) = (clock.monotonic(), received());
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (ratio, seconds) = {
        let seconds = (clock.monotonic() - began).as_secs_f64();
        ((received() - before) as f64 / (RATE as f64 * seconds), seconds)
    };
    // One opening more or less is what a window carries, a record of the largest size, of twelve MiB in all; and a busy machine
    // may not bring what it could.
    assert!((0.5..=1.12).contains(&ratio), "{ratio} of the limit over {seconds} s");
    assert!(rate.holds());
    // Another disk has nothing to do with it.
    let (mut other, mut other_events, opened) = client.open_disk(fork("d2")).await.expect("opened");
    let mut unlimited = Source::new(&opened);
    for _ in 0..20 {
        other.send(unlimited.record(1 << 20)).await.expect("sent");
    }
    acked(&mut other_events, 20).await;
    assert!(!sending.is_finished(), "it is held still");
    rate.set(None);
    let _sender = timeout(PATIENCE, sending).await.expect("at once").expect("no panic");
    acked(&mut events, 1000).await;
}

async fn under_a_limit_of_all_a_light_disk_waits_for_little_of_what_heavy_ones_send() {
    const RATE: u64 = 4 << 20;
    const HEAVY: [&str; 12] = ["h1", "h2", "h3", "h4", "h5", "h6", "h7", "h8", "h9", "h10", "h11", "h12"];
    let rate = Rate::new(clock(0));
    rate.set(Some(RATE));
    let all = Limiter::new(&rate);
    let names: Vec<&str> = HEAVY.into_iter().chain(["light"]).collect();
    let paced =
        |name: &&'static str| (*name, MemoryDisk { pace: Pace::new(vec![Arc::clone(&all)]), ..MemoryDisk::new() });
    let (pki, host) = (Pki::new(), MemoryHost::with(names.iter().map(paced)));
    let server = start(&pki.gateway(), &host, 0);
    let client = Arc::new(connect(&server, &pki.agent("a1", &names)).await);
    let mut heavy = Vec::new();
    for name in HEAVY {
        let (mut sender, events, opened) = client.open_disk(fork(name)).await.expect("opened");
        let mut source = Source::new(&opened);
        heavy.push(tokio::spawn(async move {
            let _events = events;
            loop {
                sender.send(source.record(64 << 10)).await.expect("sent");
            }
        }));
    }
    let received = || {
        let bytes = |name: &&str| host.disk(name).records.lock().iter().map(|record| record.len() as u64).sum::<u64>();
        HEAVY.iter().map(bytes).sum::<u64>()
    };
    let (mut sender, mut events, opened) = client.open_disk(fork("light")).await.expect("opened");
    let (mut source, mut most) = (Source::new(&opened), 0);
    for seq in 1..=12 {
        // More than a disk may always send, so that it needs a turn.
        let before = received();
        sender.send(source.record(40 << 10)).await.expect("sent");
        acked(&mut events, seq).await;
        most = most.max(received() - before);
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    println!("others brought at most {most} bytes while the light disk waited");
    assert!(most <= RATE, "others brought {most} bytes before it");
    heavy.iter().for_each(tokio::task::JoinHandle::abort);
}

async fn a_closed_window_stops_the_agent_until_it_opens() {
    let state = MemoryDisk { window: watch::Sender::new(0), ..MemoryDisk::new() };
    let (pki, host) = (Pki::new(), MemoryHost::with([("d1", state)]));
    let server = start(&pki.gateway(), &host, 0);
    let client = connect(&server, &pki.agent("a1", &["d1"])).await;
    let (mut sender, mut events, opened) = client.open_disk(fork("d1")).await.expect("opened");
    assert_eq!(opened.credit_bytes, 0);
    let record = Source::new(&opened).record(1);
    assert!(timeout(Duration::from_millis(50), sender.send(record.clone())).await.is_err());
    host.disk("d1").window.send_replace(1 << 20);
    sender.send(record).await.expect("sent");
    acked(&mut events, 1).await;
}

async fn more_bytes_than_credit_are_refused() {
    let state = MemoryDisk { window: watch::Sender::new(1), ..MemoryDisk::new() };
    let (pki, host) = (Pki::new(), MemoryHost::with([("d1", state)]));
    let server = start(&pki.gateway(), &host, 0);
    let raw = Raw::connect(&server.addr, &pki.agent("a1", &["d1"])).await;
    let _control = raw.hello("a1").await;
    let (mut send, mut reader, opened) = open_raw(&raw, fork("d1")).await;
    let mut source = Source::new(&opened);
    // The sink takes whatever comes, but no new credit is granted.
    host.disk("d1").window.send_replace(0);
    let refused = async {
        loop {
            match reader.next_message().await.expect("message") {
                Message::DiskRefused(refused) => return refused,
                Message::Ack(_) => {}
                other => panic!("{other:?}"),
            }
        }
    };
    let flood = async {
        // The gateway stops the stream at some point; that is the end of the flood.
        while send.write(record_frame(&body(&source.record(1 << 20)))).await.is_ok() {}
    };
    let (refused, ()) = timeout(PATIENCE, async { tokio::join!(refused, flood) }).await.expect("refused in time");
    assert_eq!(refused.code, Code::Credit, "{}", refused.text);
    let taken: usize = host.disk("d1").records.lock().iter().map(Vec::len).sum();
    assert!(taken as u64 <= opened.credit_bytes);
}

pub async fn open_raw(raw: &Raw, open: OpenDisk) -> (SendHalf, FrameReader, OpenedInfo) {
    let (mut send, recv) = raw.open().await;
    write_message(&mut send, &Message::OpenDisk(open)).await.expect("sent");
    let mut reader = FrameReader::new(recv);
    match reader.next_message().await.expect("answer") {
        Message::DiskOpened(opened) => (send, reader, OpenedInfo::new(opened, Vec::new())),
        other => panic!("{other:?}"),
    }
}

async fn touched_chunks_come_with_the_answer_in_as_many_frames_as_it_takes() {
    for runs in [0, 1, TOUCHED_RUNS_PER_FRAME, TOUCHED_RUNS_MAX] {
        let touched: Vec<_> = (0..runs as u32).map(|run| 3 * run..3 * run + 1).collect();
        let state = MemoryDisk { touched: touched.clone(), ..MemoryDisk::new() };
        let (pki, host) = (Pki::new(), MemoryHost::with([("d1", state)]));
        let server = start(&pki.gateway(), &host, 0);
        let client = connect(&server, &pki.agent("a1", &["d1"])).await;
        let (mut sender, mut events, opened) = client.open_disk(fork("d1")).await.expect("opened");
        assert!(opened.touched == touched, "{runs} runs");
        sender.send(Source::new(&opened).record(10)).await.expect("sent");
        acked(&mut events, 1).await;
    }
}

async fn a_gateway_that_names_too_many_chunks_or_in_no_order_is_not_believed() {
    let many: Vec<_> = (0..=TOUCHED_RUNS_MAX as u32).map(|run| 3 * run..3 * run + 1).collect();
    let mut mixed = many[..=TOUCHED_RUNS_PER_FRAME].to_vec();
    mixed[TOUCHED_RUNS_PER_FRAME] = 0..1;
    for (touched, what) in [(many, "more runs"), (mixed, "out of order")] {
        let (pki, host) = (Pki::new(), MemoryHost::with([("d1", MemoryDisk { touched, ..MemoryDisk::new() })]));
        let server = start(&pki.gateway(), &host, 0);
        let client = connect(&server, &pki.agent("a1", &["d1"])).await;
        let error = client.open_disk(fork("d1")).await.err().expect("refused");
        assert!(
            matches!(&error, OpenDiskError::Refused { code: Code::Message, text } if text.contains(what)),
            "{error}"
        );
    }
}

async fn a_disk_resumes_after_a_lost_connection_where_the_gateway_stands() {
    let (pki, host) = (Pki::new(), MemoryHost::with([("d1", MemoryDisk::new())]));
    let server = start(&pki.gateway(), &host, 0);
    let agent = pki.agent("a1", &["d1"]);
    let client = connect(&server, &agent).await;
    let (mut sender, mut events, opened) = client.open_disk(fork("d1")).await.expect("opened");
    let mut source = Source::new(&opened);
    for _ in 0..10 {
        sender.send(source.record(1000)).await.expect("sent");
    }
    acked(&mut events, 10).await;
    drop(client);
    assert!(matches!(end(&mut events).await, DiskEvent::Closed(lost) if lost.code == Code::Done));
    let client = connect(&server, &agent).await;
    let want = Want::Resume { epoch: Epoch(1), floor: Seq(10), floor_chain: Chain::GENESIS, first_held: Seq(11) };
    let open = OpenDisk { want, ..fork("d1") };
    let (mut sender, mut events, opened) = client.open_disk(open.clone()).await.expect("resumed");
    assert_eq!(
        (opened.epoch, opened.next_seq, opened.journaled, opened.vaulted),
        (Epoch(1), Seq(11), Seq(10), Seq(10))
    );
    sender.send(source.record(1000)).await.expect("sent");
    acked(&mut events, 11).await;
    assert_eq!(host.disk("d1").seqs(), (1..=11).collect::<Vec<_>>());
    assert_eq!(host.disk("d1").opens.lock().last(), Some(&open));
}

async fn a_refusal_at_open_says_what_to_do() {
    let (pki, host) = (Pki::new(), MemoryHost::with([("d1", MemoryDisk::new())]));
    let server = start(&pki.gateway(), &host, 0);
    let client = connect(&server, &pki.agent("a1", &["d1"])).await;
    let refuse = |refusal| *host.disk("d1").refusal.lock() = Some(refusal);
    refuse(DiskRefusal::MustFork { text: "nothing of epoch 1 here".into() });
    let error = client.open_disk(fork("d1")).await.err().expect("refused");
    assert!(matches!(&error, OpenDiskError::MustFork { text } if text.contains("epoch 1")), "{error:?}");
    refuse(DiskRefusal::Fenced { newest: Epoch(7) });
    let error = client.open_disk(fork("d1")).await.err().expect("refused");
    assert!(matches!(error, OpenDiskError::Fenced { newest: Epoch(7) }), "{error:?}");
    refuse(DiskRefusal::refused(Code::Size, "1 GiB, not 2"));
    let error = client.open_disk(fork("d1")).await.err().expect("refused");
    assert!(matches!(&error, OpenDiskError::Refused { code: Code::Size, text } if text == "1 GiB, not 2"), "{error:?}");
}

async fn a_fenced_disk_is_told_and_takes_nothing_more() {
    let (pki, host) = (Pki::new(), MemoryHost::with([("d1", MemoryDisk::new()), ("d2", MemoryDisk::new())]));
    let server = start(&pki.gateway(), &host, 0);
    let client = connect(&server, &pki.agent("a1", &["d1", "d2"])).await;
    let (mut sender, mut events, opened) = client.open_disk(fork("d1")).await.expect("opened");
    let (mut other, mut other_events, other_opened) = client.open_disk(fork("d2")).await.expect("opened");
    // The stream's own epoch is no news.
    host.disk("d1").fenced.send_replace(Some(Epoch(1)));
    let mut source = Source::new(&opened);
    sender.send(source.record(10)).await.expect("sent");
    acked(&mut events, 1).await;
    host.disk("d1").fenced.send_replace(Some(Epoch(2)));
    assert_eq!(end(&mut events).await, DiskEvent::Fenced { newest: Epoch(2) });
    assert_eq!(events.next().await, DiskEvent::Fenced { newest: Epoch(2) }, "the last event stays");
    let refused = async { while sender.send(source.record(10)).await.is_ok() {} };
    timeout(PATIENCE, refused).await.expect("sending ends");
    other.send(Source::new(&other_opened).record(10)).await.expect("the other disk goes on");
    acked(&mut other_events, 1).await;
}

async fn a_stalled_disk_holds_up_no_other() {
    let stalled = MemoryDisk { room: Semaphore::new(0), ..MemoryDisk::new() };
    let (pki, host) = (Pki::new(), MemoryHost::with([("slow", stalled), ("fast", MemoryDisk::new())]));
    let server = start(&pki.gateway(), &host, 0);
    let client = connect(&server, &pki.agent("a1", &["slow", "fast"])).await;
    let (mut slow, mut slow_events, slow_opened) = client.open_disk(fork("slow")).await.expect("opened");
    let (mut fast, mut fast_events, fast_opened) = client.open_disk(fork("fast")).await.expect("opened");
    let mut source = Source::new(&slow_opened);
    // Until QUIC's window of that stream is full, too.
    let stuffing = tokio::spawn(async move {
        for _ in 0..32 {
            slow.send(source.record(1 << 20)).await.expect("sent");
        }
        slow
    });
    let mut source = Source::new(&fast_opened);
    for _ in 0..64 {
        timeout(PATIENCE, fast.send(source.record(1 << 20))).await.expect("not held up").expect("sent");
    }
    acked(&mut fast_events, 64).await;
    assert!(host.disk("slow").records.lock().is_empty() && !stuffing.is_finished());
    host.disk("slow").room.add_permits(1000);
    acked(&mut slow_events, 32).await;
    stuffing.await.expect("sender");
}

async fn a_finished_disk_is_acknowledged_to_its_end() {
    let state = MemoryDisk { acks: false, ..MemoryDisk::new() };
    let (pki, host) = (Pki::new(), MemoryHost::with([("d1", state)]));
    let server = start(&pki.gateway(), &host, 0);
    let client = connect(&server, &pki.agent("a1", &["d1"])).await;
    let (mut sender, mut events, opened) = client.open_disk(fork("d1")).await.expect("opened");
    let mut source = Source::new(&opened);
    for _ in 0..3 {
        sender.send(source.record(100)).await.expect("sent");
    }
    sender.finish().await.expect("finished");
    host.disk("d1").journaled.advance(3);
    let event = timeout(PATIENCE, events.next()).await.expect("an ack");
    assert_eq!(event, DiskEvent::Ack { journaled: Seq(3), vaulted: Seq(0) });
    host.disk("d1").vaulted.advance(3);
    acked(&mut events, 3).await;
}

async fn a_drain_acknowledges_what_was_taken_and_then_closes() {
    let state = MemoryDisk { acks: false, ..MemoryDisk::new() };
    let (pki, host) = (Pki::new(), MemoryHost::with([("d1", state)]));
    let server = start(&pki.gateway(), &host, 0);
    let agent = pki.agent("a1", &["d1"]);
    let client = connect(&server, &agent).await;
    let (mut sender, mut events, opened) = client.open_disk(fork("d1")).await.expect("opened");
    let mut source = Source::new(&opened);
    for _ in 0..5 {
        sender.send(source.record(100)).await.expect("sent");
    }
    let taken = async {
        while host.disk("d1").records.lock().len() < 5 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, taken).await.expect("taken");
    server.drain.start();
    assert_eq!(end(&mut events).await, DiskEvent::Redirect { gateways: vec![] });
    // Not journaled yet, so the gateway still owes acks.
    assert!(!server.task.is_finished());
    host.disk("d1").journaled.advance(5);
    let event = timeout(PATIENCE, events.next()).await.expect("an ack");
    assert_eq!(event, DiskEvent::Ack { journaled: Seq(5), vaulted: Seq(0) });
    // Journaled only, so another gateway could not go on with the epoch yet.
    assert!(!server.task.is_finished());
    host.disk("d1").vaulted.advance(5);
    let event = timeout(PATIENCE, events.next()).await.expect("an ack");
    assert_eq!(event, DiskEvent::Ack { journaled: Seq(5), vaulted: Seq(5) });
    assert!(matches!(end(&mut events).await, DiskEvent::Refused { code: Code::Draining, .. }));
    assert_eq!(client.closed().await.code, Code::Draining);
    timeout(PATIENCE, server.task).await.expect("served to the end").expect("no panic");
}

async fn a_request_that_the_agent_takes_back_is_given_up_although_the_connection_lives() {
    let slow = MemoryDisk { answers: Semaphore::new(0), ..MemoryDisk::new() };
    let (pki, host) = (Pki::new(), MemoryHost::with([("slow", slow), ("d2", MemoryDisk::new())]));
    let server = start(&pki.gateway(), &host, 0);
    let client = connect(&server, &pki.agent("a1", &["slow", "d2"])).await;
    let requests_waiting = async |count| {
        while host.disk("slow").waiting.load(Ordering::SeqCst) != count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let seen = async {
        tokio::select! {
            opened = client.open_disk(fork("slow")) => panic!("answered: {:?}", opened.err()),
            () = requests_waiting(1) => {}
        }
    };
    timeout(PATIENCE, seen).await.expect("the gateway works on it");
    timeout(PATIENCE, requests_waiting(0)).await.expect("the gateway gives it up");
    client.open_disk(fork("d2")).await.expect("the connection goes on");
}

async fn a_drain_does_not_wait_for_acks_that_cannot_come() {
    let state = MemoryDisk { acks: false, ..MemoryDisk::new() };
    let (pki, host) = (Pki::new(), MemoryHost::with([("d1", state)]));
    let limits = ServerLimits { drain_grace: Duration::from_secs(3600), ..ServerLimits::default() };
    let server = start_with(&pki.gateway(), &host, 0, &Tuning::default(), limits);
    let client = connect(&server, &pki.agent("a1", &["d1"])).await;
    let (mut sender, mut events, opened) = client.open_disk(fork("d1")).await.expect("opened");
    sender.send(Source::new(&opened).record(100)).await.expect("sent");
    let taken = async {
        while host.disk("d1").records.lock().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, taken).await.expect("taken");
    server.drain.start();
    assert_eq!(end(&mut events).await, DiskEvent::Redirect { gateways: vec![] });
    assert!(!server.task.is_finished());
    host.broken.notify_one();
    assert!(matches!(end(&mut events).await, DiskEvent::Closed(lost) if lost.code == Code::Draining));
    timeout(PATIENCE, server.task).await.expect("served to the end").expect("no panic");
}

async fn asking_a_gateway_by_another_name_does_not_end_the_connection_that_is_there() {
    let (pki, host) = (Pki::new(), MemoryHost::with([("d1", MemoryDisk::new())]));
    let server = start(&pki.gateway(), &host, 0);
    let (agent, tuning) = (pki.agent("a1", &["d1"]), Tuning::default());
    let older = connect(&server, &agent).await;
    let (mut sender, mut events, opened) = older.open_disk(fork("d1")).await.expect("opened");
    let known = [older.gateway().gateway.clone()];
    let asked = Client::connect_elsewhere(&server.addr, &known, &agent, &tuning, clock(0), &Net::system()).await;
    assert!(matches!(asked, Err(ConnectError::Known { gateway, .. }) if gateway == known[0]));
    sender.send(Source::new(&opened).record(100)).await.expect("sent");
    acked(&mut events, 1).await;
    let others = ["g7".to_owned()];
    let asked = Client::connect_elsewhere(&server.addr, &others, &agent, &tuning, clock(0), &Net::system()).await;
    assert!(asked.is_ok());
    assert_eq!(older.closed().await.code, Code::Superseded);
}

async fn a_newer_connection_of_an_agent_takes_the_place_of_the_older() {
    let (pki, host) = (Pki::new(), MemoryHost::with([("d1", MemoryDisk::new())]));
    let server = start(&pki.gateway(), &host, 0);
    let agent = pki.agent("a1", &["d1"]);
    let older = connect(&server, &agent).await;
    let (_sender, mut events, _) = older.open_disk(fork("d1")).await.expect("opened");
    let newer = connect(&server, &agent).await;
    assert!(matches!(end(&mut events).await, DiskEvent::Closed(lost) if lost.code == Code::Superseded));
    let _ = newer.open_disk(fork("d1")).await.expect("opened");
    assert_eq!(older.closed().await.code, Code::Superseded);
}

async fn a_send_that_was_dropped_half_way_cuts_the_stream_and_says_so() {
    let state = MemoryDisk { room: Semaphore::new(0), ..MemoryDisk::new() };
    let (pki, host) = (Pki::new(), MemoryHost::with([("d1", state)]));
    let server = start(&pki.gateway(), &host, 0);
    let client = connect(&server, &pki.agent("a1", &["d1"])).await;
    let (mut sender, _events, opened) = client.open_disk(fork("d1")).await.expect("opened");
    let mut source = Source::new(&opened);
    let error = loop {
        // The sink takes nothing, so QUIC's window fills and some send is dropped while it writes.
        match timeout(Duration::from_millis(50), sender.send(source.record(1 << 20))).await {
            Err(_) | Ok(Ok(())) => {}
            Ok(Err(error)) => break error,
        }
    };
    assert_eq!(error, SendError::Interrupted);
}

async fn the_clock_offset_is_that_of_the_gateway_within_its_uncertainty() {
    let (pki, host) = (Pki::new(), MemoryHost::with([]));
    let hour: i64 = 3600 * 1_000_000;
    let server = start(&pki.gateway(), &host, hour);
    let client = connect(&server, &pki.agent("a1", &["d1"])).await;
    let offset = client.clock();
    let error = (offset.offset_micros - hour).unsigned_abs();
    assert!(error <= u64::from(offset.uncertainty_micros) + 1000, "off by {error} µs: {offset:?}");
    assert_eq!((client.gateway().gateway.as_str(), client.gateway().vault), ("g1", VAULT));
}

#[tokio::test]
async fn jumbo_datagrams_are_found_and_carry_records() {
    let (pki, host) = (Pki::new(), MemoryHost::with([("d1", MemoryDisk::new())]));
    let tuning = Tuning { mtu_max_bytes: 8952, ..Tuning::default() };
    let server = start_with(&pki.gateway(), &host, 0, &tuning, ServerLimits::default());
    let client = Client::connect_with(&server.addr, &pki.agent("a1", &["d1"]), &tuning, clock(0), &Net::system()).await;
    let client = client.expect("connected");
    let (mut sender, mut events, opened) = client.open_disk(fork("d1")).await.expect("opened");
    let mut source = Source::new(&opened);
    // At this size ten segments do not fit one transmit; unlimited, these bytes would take minutes.
    for _ in 0..128 {
        sender.send(source.record(1 << 20)).await.expect("sent");
    }
    acked(&mut events, 128).await;
    let mtu_bytes = client.path_mtu_bytes().expect("known over QUIC");
    assert!(mtu_bytes > 8000, "the path stayed at {mtu_bytes} bytes");
}
