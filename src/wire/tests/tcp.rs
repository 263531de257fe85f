//! What only TLS over TCP has: connections that join a session, and one transport that steps in for the other.

use super::support::*;
use crate::wire::messages::{Join, JoinAs, Message};
use crate::wire::stream::{FrameReader, write_message};
use crate::wire::transport::Session;
use crate::wire::transport::tcp::Dialer;
use crate::wire::*;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

const DISKS: [&str; 3] = ["d1", "d2", "d3"];

fn over_tcp() {
    TRANSPORT.set(Transport::Tcp);
}

fn host() -> Arc<MemoryHost> {
    MemoryHost::with(DISKS.map(|name| (name, MemoryDisk::new())))
}

async fn goes_on(client: &Client, disk: &str) {
    let (mut sender, mut events, opened) = client.open_disk(fork(disk)).await.expect("opened");
    let mut source = Source::new(&opened);
    for bytes in [100, 1 << 20, 5000] {
        timeout(PATIENCE, sender.send(source.record(bytes))).await.expect("not held up").expect("sent");
    }
    acked(&mut events, opened.next_seq.0 + 2).await;
}

/// A connection whose handshake is done, with what it says first.
async fn begun(dialer: &Dialer, first: Option<Message>) -> tokio_rustls::client::TlsStream<TcpStream> {
    let socket = TcpStream::connect(dialer.remote).await.expect("connected");
    let connector = tokio_rustls::TlsConnector::from(Arc::clone(&dialer.tls));
    let mut stream = connector.connect(dialer.name.clone(), socket).await.expect("handshake");
    if let Some(first) = first {
        stream.write_all(&first.encode()).await.expect("sent");
    }
    stream
}

/// The message with which a connection is put out.
async fn put_out(stream: &mut tokio_rustls::client::TlsStream<TcpStream>) -> messages::Refused {
    let mut bytes = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("put out in time").expect("in order");
    let mut decoder = frame::Decoder::new();
    decoder.push(bytes.into());
    let frame = decoder.next_frame().expect("a frame").expect("a whole one");
    match Message::decode(frame).expect("a message") {
        Message::Refused(refused) => refused,
        other => panic!("{other:?}"),
    }
}

const fn join(session: crate::types::Id128, join_as: JoinAs) -> Message {
    Message::Join(Join { session, join_as })
}

#[tokio::test]
async fn a_connection_that_does_not_say_what_it_is_is_put_out() {
    let (pki, host) = (Pki::new(), host());
    let limits = ServerLimits { step_timeout: Duration::from_millis(300), ..ServerLimits::default() };
    let server = start_with(&pki.gateway(), &host, 0, &Tuning::default(), limits);
    let dialer = dialer(&server.addr, &pki.agent("a1", &DISKS), &Tuning::default(), &Net::system());
    let hello =
        messages::Hello { protocol_min: 1, protocol_max: 1, vault: VAULT, agent: "a1".into(), software: "test".into() };
    for (first, code) in [
        (None, Code::Timeout),
        (Some(Message::Hello(hello)), Code::Message),
        (Some(Message::OpenDisk(fork("d1"))), Code::Message),
        (Some(join(dialer.session, JoinAs::Control)), Code::Timeout),
    ] {
        let mut stream = begun(&dialer, first.clone()).await;
        assert_eq!(put_out_or_closed(&mut stream).await, code, "{first:?}");
    }
    let mut stream = begun(&dialer, None).await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: nowhere.invalid\r\n\r\n").await.expect("sent");
    assert_eq!(put_out(&mut stream).await.code, Code::Frame);
}

/// As [`put_out`], for a session that has begun too.
async fn put_out_or_closed(stream: &mut tokio_rustls::client::TlsStream<TcpStream>) -> Code {
    let mut bytes = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("put out in time").expect("in order");
    let mut decoder = frame::Decoder::new();
    decoder.push(bytes.into());
    match Message::decode(decoder.next_frame().expect("a frame").expect("a whole one")).expect("a message") {
        Message::Refused(refused) | Message::Close(refused) => refused.code,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_stream_joins_only_a_session_of_its_own_certificate() {
    over_tcp();
    let (pki, host) = (Pki::new(), host());
    let server = start(&pki.gateway(), &host, 0);
    let (agent, enemy) = (pki.agent("a1", &["d1"]), pki.agent("enemy", &["d2"]));
    let own = dialer(&server.addr, &agent, &tuning(), &Net::system());
    let name = own.session;
    let session = Session::Tcp(own.dial().await.expect("connected"));
    let raw = Raw { session };
    let _control = raw.hello("a1").await;
    let as_enemy = dialer(&server.addr, &enemy, &tuning(), &Net::system());
    let as_agent = dialer(&server.addr, &agent, &tuning(), &Net::system());
    // The right name with another certificate, the right certificate with another name.
    for (dialer, name) in [(&as_enemy, name), (&as_agent, as_agent.session)] {
        let mut stream = begun(dialer, Some(join(name, JoinAs::Stream))).await;
        let refused = put_out(&mut stream).await;
        assert_eq!(refused.code, Code::Unavailable, "{}", refused.text);
    }
    // The same name again is no other session.
    let mut stream = begun(&as_agent, Some(join(name, JoinAs::Control))).await;
    assert_eq!(put_out(&mut stream).await.code, Code::Message);
    let (mut send, recv) = raw.open().await;
    write_message(&mut send, &Message::OpenDisk(fork("d1"))).await.expect("sent");
    assert!(matches!(FrameReader::new(recv).next_message().await, Ok(Message::DiskOpened(_))));
}

#[tokio::test]
async fn a_session_has_no_more_connections_than_disks_and_few_to_spare() {
    over_tcp();
    let (pki, host) = (Pki::new(), host());
    let server = start(&pki.gateway(), &host, 0);
    let enemy = pki.agent("enemy", &["d2"]);
    let raw = Raw::connect(&server.addr, &enemy).await;
    let (control, recv) = raw.open().await;
    let stranger = begun_stream(&raw).await;
    assert_eq!(refused(stranger).await, Code::Unavailable, "a stranger has its control stream alone");
    drop((control, recv));
    let raw = Raw::connect(&server.addr, &enemy).await;
    let _control = raw.hello("enemy").await;
    let mut held = Vec::new();
    loop {
        let mut stream = begun_stream(&raw).await;
        match timeout(Duration::from_millis(300), stream.1.next_message()).await {
            Err(_) => held.push(stream),
            Ok(Ok(Message::Refused(refused))) => break assert_eq!(refused.code, Code::Busy),
            Ok(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(held.len(), 9, "twice its disk, and seven to spare");
    // One that ends makes room.
    held.pop();
    sleep(Duration::from_millis(200)).await;
    let mut stream = begun_stream(&raw).await;
    assert!(timeout(Duration::from_millis(300), stream.1.next_message()).await.is_err());
    goes_on(&connect(&server, &pki.agent("good", &["d1"])).await, "d1").await;
}

type RawStream = (transport::SendHalf, FrameReader);

/// A further connection, with the begin of its first frame.
async fn begun_stream(raw: &Raw) -> RawStream {
    let (mut send, recv) = raw.open().await;
    send.write(Bytes::from_static(&[16])).await.expect("sent");
    (send, FrameReader::new(recv))
}

async fn refused((_send, mut reader): RawStream) -> Code {
    match timeout(PATIENCE, reader.next_message()).await.expect("answered in time") {
        Ok(Message::Refused(refused)) => refused.code,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_close_frame_belongs_to_the_control_stream() {
    over_tcp();
    let (pki, host) = (Pki::new(), host());
    let server = start(&pki.gateway(), &host, 0);
    let raw = Raw::connect(&server.addr, &pki.agent("a1", &["d1"])).await;
    let _control = raw.hello("a1").await;
    let close = Message::Close(messages::Refused { code: Code::Done, text: String::new() });
    let (mut send, recv) = raw.open().await;
    write_message(&mut send, &close).await.expect("sent");
    let answer = timeout(PATIENCE, FrameReader::new(recv).next_message()).await.expect("in time");
    assert!(matches!(&answer, Ok(Message::DiskRefused(refused)) if refused.code == Code::Message), "{answer:?}");
}

#[tokio::test]
async fn handshakes_that_are_never_finished_keep_nobody_out() {
    over_tcp();
    let (pki, host) = (Pki::new(), host());
    let limits = ServerLimits { unfinished_max: 12, unfinished_per_network_max: 8, ..ServerLimits::default() };
    let server = start_with(&pki.gateway(), &host, 0, &tuning(), limits);
    let addr: SocketAddr = server.addr.parse().expect("address");
    let mut held = Vec::new();
    for number in 0..300 {
        let socket = TcpSocket::new_v4().expect("socket");
        socket.bind("127.0.0.2:0".parse().expect("address")).expect("bound");
        // Those that are put out may be so before they have said a word.
        let Ok(mut stream) = socket.connect(addr).await else { continue };
        if number % 3 > 0 {
            let noise: &[u8] = if number % 3 == 1 { &[0x16, 3, 1, 2, 0] } else { b"\0\0\0noise" };
            let _ = stream.write_all(noise).await;
        }
        held.push(stream);
    }
    goes_on(&connect(&server, &pki.agent("good", &["d1"])).await, "d1").await;
    TRANSPORT.set(Transport::Quic);
    goes_on(&connect(&server, &pki.agent("other", &["d2"])).await, "d2").await;
}

#[tokio::test]
async fn one_certificate_with_many_silent_connections_keeps_nobody_out() {
    over_tcp();
    let (pki, host) = (Pki::new(), host());
    // The places of silent ones last for this test.
    let step_timeout = Duration::from_secs(600);
    let limits = ServerLimits { unfinished_max: 12, unfinished_per_network_max: 8, step_timeout, ..Default::default() };
    let server = start_with(&pki.gateway(), &host, 0, &tuning(), limits);
    let dialer = dialer(&server.addr, &pki.agent("enemy", &["d2"]), &tuning(), &Net::system());
    let mut silent = Vec::new();
    // A stream for its disk, twice, eight to spare, and four sessions that have not said hello.
    for _ in 0..14 {
        silent.push(begun(&dialer, None).await);
    }
    for _ in 0..5 {
        let mut stream = begun(&dialer, None).await;
        assert_eq!(put_out(&mut stream).await.code, Code::Busy);
    }
    goes_on(&connect(&server, &pki.agent("good", &["d1"])).await, "d1").await;
    for stream in &mut silent {
        let there = timeout(Duration::from_millis(1), stream.read_u8()).await;
        assert!(there.is_err(), "they were there all the time: {there:?}");
    }
}

/// Between agent and gateway: connections that can be cut one by one, or fall silent.
struct Proxy {
    addr: String,
    connections: Arc<Mutex<Vec<AbortHandle>>>,
    silent: Arc<AtomicUsize>,
}

impl Proxy {
    /// The connection of number n goes to `targets(n)`.
    async fn start(targets: impl Fn(usize) -> String + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listening");
        let addr = listener.local_addr().expect("address").to_string();
        let (connections, silent) = (Arc::<Mutex<Vec<AbortHandle>>>::default(), Arc::new(AtomicUsize::new(0)));
        let (of_task, silent_too) = (Arc::clone(&connections), Arc::clone(&silent));
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let number = of_task.lock().len();
                let far = TcpStream::connect(targets(number)).await.expect("the gateway");
                let silent = Arc::clone(&silent_too);
                let carried = tokio::spawn(async move {
                    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                    tokio::join!(carry(near_in, far_out, Arc::clone(&silent)), carry(far_in, near_out, silent));
                });
                of_task.lock().push(carried.abort_handle());
            }
        });
        Self { addr, connections, silent }
    }

    fn cut(&self, number: usize) {
        self.connections.lock()[number].abort();
    }
}

async fn carry(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    silent: Arc<AtomicUsize>,
) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        if silent.load(Ordering::SeqCst) > 0 {
            std::future::pending::<()>().await;
        }
        if to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn a_session_ends_as_one_when_one_of_its_connections_breaks() {
    over_tcp();
    let (pki, host) = (Pki::new(), host());
    let server = start(&pki.gateway(), &host, 0);
    let agent = pki.agent("a1", &DISKS);
    for broken in [0, 1, 2] {
        let target = server.addr.clone();
        let proxy = Proxy::start(move |_| target.clone()).await;
        let client = try_connect(&proxy.addr, &agent, 0).await.expect("connected");
        let (_first, mut first_events, _) = client.open_disk(fork("d1")).await.expect("opened");
        let (_second, mut second_events, _) = client.open_disk(fork("d2")).await.expect("opened");
        proxy.cut(broken);
        for events in [&mut first_events, &mut second_events] {
            let DiskEvent::Closed(lost) = end(events).await else { panic!("not closed") };
            assert_eq!(lost.code, Code::Timeout, "{lost}");
        }
        let error = client.open_disk(fork("d3")).await.err().expect("no session");
        assert!(matches!(error, OpenDiskError::Connection(_)), "{error}");
        goes_on(&connect(&server, &agent).await, "d3").await;
    }
}

#[tokio::test]
async fn a_network_that_falls_silent_is_noticed_on_both_sides() {
    over_tcp();
    let (log, pki, host) = (Log::start(), Pki::new(), host());
    let tuning = Tuning { idle_timeout: Duration::from_millis(600), ..tuning() };
    let server = start_with(&pki.gateway(), &host, 0, &tuning, ServerLimits::default());
    let target = server.addr.clone();
    let proxy = Proxy::start(move |_| target.clone()).await;
    let files = pki.agent("a1", &["d1"]);
    let client = Client::connect_with(&proxy.addr, &files, &tuning, clock(0), &Net::system()).await.expect("connected");
    let (_sender, mut events, _) = client.open_disk(fork("d1")).await.expect("opened");
    // Pings keep it alive although no disk has anything to say.
    sleep(Duration::from_millis(1500)).await;
    assert!(!log.text().contains("disconnected"), "{}", log.text());
    proxy.silent.store(1, Ordering::SeqCst);
    let DiskEvent::Closed(lost) = end(&mut events).await else { panic!("not closed") };
    assert_eq!(lost.code, Code::Timeout);
    // On a busy machine one side may be so late that it hears of the other's end first.
    let noticed = |text: &str| text.contains("nothing came for 600ms");
    assert!(noticed(&lost.text) || lost.text.contains("cut off"), "{lost}");
    log.has(&["agent disconnected"]).await;
    assert!(noticed(&lost.text) || noticed(&log.text()), "neither side noticed: {}", log.text());
}

#[tokio::test]
async fn a_disks_data_go_to_the_gateway_that_said_hello_or_nowhere() {
    over_tcp();
    let (pki, first, second) = (Pki::new(), host(), host());
    let other = pki::issue_gateway(pki.path(), "g2", &["127.0.0.1".into()], options()).expect("certificate");
    let (one, two) = (start(&pki.gateway(), &first, 0), start(&files(&other), &second, 0));
    let targets = [one.addr.clone(), two.addr.clone()];
    let proxy = Proxy::start(move |number| targets[number.min(1)].clone()).await;
    let client = try_connect(&proxy.addr, &pki.agent("a1", &["d1"]), 0).await.expect("connected");
    let error = client.open_disk(fork("d1")).await.err().expect("refused");
    assert!(error.to_string().contains("another gateway answers at the same address"), "{error}");
    assert!(second.disk("d1").opens.lock().is_empty() && first.disk("d1").opens.lock().is_empty());
}

/// A gateway that is reached at `addr` over TCP, where UDP is silent.
fn without_udp(gateway: &TlsFiles, host: &Arc<MemoryHost>) -> (TestServer, std::net::UdpSocket) {
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").expect("socket");
    let local = silent.local_addr().expect("address");
    let any = "127.0.0.1:0".parse().expect("address");
    let (clock, net) = (clock(0), Net::system());
    let listener = Listener::bind(any, gateway, &Tuning::default(), &clock, &net).expect("listening");
    let listener = listener.with_tcp(local, &net).expect("listening");
    let credentials = listener.credentials().clone();
    let (drain, signal) = crate::flow::DrainTrigger::new();
    let task = tokio::spawn(serve(listener, Arc::clone(host), ServerLimits::default(), clock, signal));
    (TestServer { addr: local.to_string(), credentials, drain, task }, silent)
}

#[tokio::test]
async fn where_udp_is_silent_tcp_steps_in_and_where_it_is_not_quic_carries_on() {
    let (pki, host) = (Pki::new(), host());
    let gateway = pki.gateway();
    let (without, _silent) = without_udp(&gateway, &host);
    let with = start(&gateway, &host, 0);
    let agent = pki.agent("a1", &["d1"]);
    let either = Tuning { other_after: Some(Duration::from_millis(200)), ..Tuning::default() };
    for (server, expected) in [(&without, Transport::Tcp), (&with, Transport::Quic)] {
        let client = Client::connect_with(&server.addr, &agent, &either, clock(0), &Net::system()).await;
        let client = client.expect("connected");
        assert_eq!(client.transport(), expected);
        goes_on(&client, "d1").await;
    }
    // And the other way round.
    let tcp_first = Tuning { transport: Transport::Tcp, ..either.clone() };
    let quic_only = start_quic_only(&gateway, &host);
    let client = Client::connect_with(&quic_only.addr, &agent, &tcp_first, clock(0), &Net::system()).await;
    assert_eq!(client.expect("connected").transport(), Transport::Quic);
}

fn start_quic_only(gateway: &TlsFiles, host: &Arc<MemoryHost>) -> TestServer {
    let (clock, net) = (clock(0), Net::system());
    let any = "127.0.0.1:0".parse().expect("address");
    let listener = Listener::bind(any, gateway, &Tuning::default(), &clock, &net).expect("listening");
    let (addr, credentials) = (listener.local_addr().to_string(), listener.credentials().clone());
    let (drain, signal) = crate::flow::DrainTrigger::new();
    let task = tokio::spawn(serve(listener, Arc::clone(host), ServerLimits::default(), clock, signal));
    TestServer { addr, credentials, drain, task }
}

#[tokio::test]
async fn a_gateway_that_starts_again_is_reached_over_quic_although_tcp_answers_first() {
    let (pki, host) = (Pki::new(), host());
    let (gateway, agent) = (pki.gateway(), pki.agent("a1", &["d1"]));
    let free = std::net::UdpSocket::bind("127.0.0.1:0").expect("socket");
    let addr = free.local_addr().expect("address");
    drop(free);
    // QUIC's first datagram finds nobody, and the next one follows after a second only.
    let either = Tuning { other_after: Some(Duration::from_millis(300)), ..Tuning::default() };
    let (net, remote) = (Net::system(), addr.to_string());
    let connecting = Client::connect_with(&remote, &agent, &either, clock(0), &net);
    let starting = async {
        sleep(Duration::from_millis(150)).await;
        let listener = Listener::bind(addr, &gateway, &Tuning::default(), &clock(0), &net).expect("listening");
        let listener = listener.with_tcp_at_same(&net).expect("listening");
        let (drain, signal) = crate::flow::DrainTrigger::new();
        tokio::spawn(serve(listener, host, ServerLimits::default(), clock(0), signal));
        drain
    };
    let (client, _drain) = tokio::join!(connecting, starting);
    assert_eq!(client.expect("connected").transport(), Transport::Quic);
}

#[tokio::test]
async fn where_both_are_silent_both_are_named_and_a_refusal_is_an_answer() {
    let (pki, host) = (Pki::new(), host());
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").expect("socket");
    let addr = silent.local_addr().expect("address").to_string();
    let agent = pki.agent("a1", &["d1"]);
    let either = Tuning {
        other_after: Some(Duration::from_millis(200)),
        idle_timeout: Duration::from_secs(1),
        ..Tuning::default()
    };
    let attempt = Client::connect_with(&addr, &agent, &either, clock(0), &Net::system()).await;
    let text = attempt.err().expect("nobody is there").to_string();
    assert!(text.contains("UDP or TCP") && text.to_lowercase().contains("refused"), "{text}");
    let (without, _silent) = without_udp(&pki.gateway(), &host);
    let elsewhere = Pki::new();
    let stranger = TlsFiles { ca: pki.path().join("ca.crt"), ..elsewhere.agent("a1", &["d1"]) };
    let attempt = Client::connect_with(&without.addr, &stranger, &either, clock(0), &Net::system()).await;
    let error = attempt.err().expect("refused");
    assert!(matches!(error, ConnectError::AgentCertificate { .. }), "{error:?}");
}

#[tokio::test]
async fn a_look_whether_quic_works_leaves_the_connection_alone() {
    over_tcp();
    let (log, pki, host) = (Log::start(), Pki::new(), host());
    let gateway = pki.gateway();
    let server = start(&gateway, &host, 0);
    let agent = pki.agent("a1", &["d1"]);
    let client = connect(&server, &agent).await;
    let quic = Tuning::default();
    for _ in 0..3 {
        Client::probe(&server.addr, &agent, &quic, clock(0), &Net::system()).await.expect("it answers");
    }
    goes_on(&client, "d1").await;
    assert!(!log.text().contains("WARN"), "{}", log.text());
    let (without, _silent) = without_udp(&gateway, &host);
    let net = Net::system();
    let probe = Client::probe(&without.addr, &agent, &quic, clock(0), &net);
    assert!(timeout(Duration::from_millis(500), probe).await.is_err(), "nobody is there");
}

#[tokio::test]
async fn the_end_is_said_even_if_the_other_side_is_in_the_midst_of_a_flood() {
    over_tcp();
    let (pki, host) = (Pki::new(), host());
    // The journal has no room: the flood fills every buffer on the way.
    let room = &host.disk("d1").room;
    room.forget_permits(room.available_permits());
    let server = start(&pki.gateway(), &host, 0);
    let agent = pki.agent("a1", &["d1"]);
    let older = connect(&server, &agent).await;
    let (mut sender, mut events, opened) = older.open_disk(fork("d1")).await.expect("opened");
    let mut source = Source::new(&opened);
    let flood = tokio::spawn(async move { while sender.send(source.record(1 << 20)).await.is_ok() {} });
    sleep(Duration::from_millis(500)).await;
    let _newer = connect(&server, &agent).await;
    let DiskEvent::Closed(lost) = end(&mut events).await else { panic!("not closed") };
    assert_eq!(lost.code, Code::Superseded);
    timeout(PATIENCE, flood).await.expect("the flood ends").expect("no panic");
    assert_eq!(older.closed().await.code, Code::Superseded);
}

#[tokio::test]
async fn connections_above_the_limit_are_not_taken_and_a_freed_place_is() {
    let (pki, host) = (Pki::new(), host());
    let limits = ServerLimits { tcp_connections_max: 3, ..ServerLimits::default() };
    let server = start_with(&pki.gateway(), &host, 0, &Tuning::default(), limits);
    over_tcp();
    // Silent ones count, too.
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(TcpStream::connect(&server.addr).await.expect("connected"));
    }
    sleep(Duration::from_millis(100)).await;
    let mut surplus = TcpStream::connect(&server.addr).await.expect("connected");
    let mut byte = [0];
    let read = timeout(PATIENCE, surplus.read(&mut byte)).await.expect("put out");
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    drop(silent);
    let agent = pki.agent("a1", &["d1"]);
    let client = timeout(PATIENCE, connect(&server, &agent)).await.expect("in time");
    goes_on(&client, "d1").await;
}

/// The most that the kernel has unread of one connection at `port`.
#[cfg(target_os = "linux")]
fn unread_bytes(port: u16) -> u64 {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the kernel's table");
    let suffix = format!(":{port:04X}");
    let of_line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let received = fields.get(4)?.split(':').nth(1)?;
        (fields.get(1)?.ends_with(&suffix) && fields.get(3) == Some(&"01"))
            .then(|| u64::from_str_radix(received, 16).ok())
            .flatten()
    };
    table.lines().skip(1).filter_map(of_line).max().unwrap_or(0)
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn what_a_stalled_disk_leaves_in_the_kernel_is_bounded_however_quick_it_was() {
    const QUICK: usize = 96;
    let disk = MemoryDisk { room: Semaphore::new(QUICK), ..MemoryDisk::new() };
    let (pki, host) = (Pki::new(), MemoryHost::with([("d1", disk)]));
    let server = start(&pki.gateway(), &host, 0);
    over_tcp();
    // Each of so many disks has a small part of what the agent may leave unread.
    let names: Vec<String> = (1..=100).map(|number| format!("d{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let client = connect(&server, &pki.agent("a1", &names)).await;
    let (mut sender, mut events, opened) = client.open_disk(fork("d1")).await.expect("opened");
    let mut source = Source::new(&opened);
    // The kernel gives a quick reader a large buffer.
    for _ in 0..QUICK {
        sender.send(source.record(1 << 20)).await.expect("sent");
    }
    acked(&mut events, QUICK as u64).await;
    let port = server.addr.parse::<SocketAddr>().expect("an address").port();
    let stuffing = tokio::spawn(async move { while sender.send(source.record(1 << 20)).await.is_ok() {} });
    let mut most = 0;
    for _ in 0..20 {
        sleep(Duration::from_millis(50)).await;
        most = most.max(unread_bytes(port));
    }
    stuffing.abort();
    assert!(most > 0, "nothing was left unread: this shows nothing");
    assert!(most <= 512 << 10, "the kernel keeps {most} bytes of a stalled disk");
}
