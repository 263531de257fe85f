//! What the loopback tests share: certificates, clocks, a host in memory, records, and a client without manners.

use std::cell::Cell;
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;

use crate::flow::{Clock, Drain, DrainTrigger, Pace, SystemClock, Watermark, watch};
use crate::types::{
    Chain, DiskId, Epoch, Extent, ExtentKind, Id128, Micros, RecordHead, RecordKind, RecordView, Seq, encode_extents,
    record_digest,
};
use crate::wire::endpoint::{Tuning, client_endpoint};
use crate::wire::pki::{self, IssueOptions, Issued};
use crate::wire::stream::{FrameReader, write_message};
use crate::wire::tls::{Explanation, Material};
use crate::wire::transport::tcp::Dialer;
use crate::wire::transport::{RecvHalf, SendHalf, Session, SessionEnd, congestion};
use crate::wire::*;

pub const VAULT: Id128 = Id128([0xa1; 16]);
pub const DISK_BYTES: u64 = 1 << 30;
/// Longer than anything here takes; a test that hangs fails by it.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn disk(name: &str) -> DiskId {
    DiskId::new(name).expect("disk name")
}

/// The machine's clock, moved.
pub struct MovedClock(pub SystemClock, pub i64);

impl Clock for MovedClock {
    fn wall(&self) -> Micros {
        Micros(self.0.wall().0.saturating_add_signed(self.1))
    }

    fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }
}

pub fn clock(moved: i64) -> Arc<dyn Clock> {
    Arc::new(MovedClock(SystemClock::new(), moved))
}

pub const fn days(days: i64) -> i64 {
    days * 24 * 3600 * 1_000_000
}

thread_local! {
    /// What this test's connections go over: a test has a thread of its own.
    pub static TRANSPORT: Cell<Transport> = const { Cell::new(Transport::Quic) };
}

/// Makes each of these functions one test over QUIC and one over TCP.
macro_rules! over_both {
    ($($name:ident),* $(,)?) => {
        over_both!(over_quic Quic: $($name),*);
        over_both!(over_tcp Tcp: $($name),*);
    };
    ($module:ident $transport:ident: $($name:ident),*) => {
        mod $module {
            $(#[tokio::test]
            async fn $name() {
                crate::wire::tests::support::TRANSPORT.set(crate::wire::Transport::$transport);
                super::$name().await;
            })*
        }
    };
}
pub(super) use over_both;

/// The default, over this test's transport.
pub fn tuning() -> Tuning {
    Tuning { transport: TRANSPORT.get(), ..Tuning::default() }
}

/// A folder with an authority.
pub struct Pki {
    pub dir: tempfile::TempDir,
}

pub fn options() -> IssueOptions {
    IssueOptions { now: SystemClock::new().wall(), days: 30, force: false, keep_key: false }
}

pub fn files(issued: &Issued) -> TlsFiles {
    TlsFiles { ca: issued.ca.clone(), cert: issued.cert.clone(), key: issued.key.clone() }
}

impl Pki {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("folder");
        pki::init(dir.path(), VAULT, options()).expect("authority");
        Self { dir }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn agent(&self, id: &str, disks: &[&str]) -> TlsFiles {
        let disks: Vec<DiskId> = disks.iter().map(|name| disk(name)).collect();
        files(&pki::issue_agent(self.path(), id, &disks, options()).expect("agent certificate"))
    }

    pub fn gateway(&self) -> TlsFiles {
        files(&pki::issue_gateway(self.path(), "g1", &["127.0.0.1".into()], options()).expect("gateway certificate"))
    }

    /// A certificate for both TLS usages with these names, of URIs and hosts.
    pub fn any(&self, file: &str, names: &[String]) -> TlsFiles {
        files(&pki::issue_any(self.path(), file, names, options()).expect("certificate"))
    }
}

/// How the host in memory treats one disk.
pub struct MemoryDisk {
    pub epoch: Epoch,
    pub next_seq: Seq,
    pub chain: Option<Chain>,
    pub journaled: Arc<Watermark>,
    pub vaulted: Arc<Watermark>,
    pub window: watch::Sender<u64>,
    /// Limits of bandwidth.
    pub pace: Pace,
    /// 0, or 1 for disks that stand apart from the others.
    pub way: usize,
    pub fenced: watch::Sender<Option<Epoch>>,
    /// A permit per record that the sink may take.
    pub room: Semaphore,
    /// Whether taking a record is journaling and vaulting it.
    pub acks: bool,
    /// Chunks to compare.
    pub touched: Vec<std::ops::Range<u32>>,
    pub refusal: Mutex<Option<DiskRefusal>>,
    pub records: Mutex<Vec<Vec<u8>>>,
    pub opens: Mutex<Vec<OpenDisk>>,
    /// A permit per request to open that is answered.
    pub answers: Semaphore,
    /// Requests to open that wait for their answer.
    pub waiting: AtomicU64,
}

/// Counts a request as long as it waits.
struct Waiting<'a>(&'a AtomicU64);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl MemoryDisk {
    pub fn new() -> Self {
        Self {
            epoch: Epoch(1),
            next_seq: Seq(1),
            chain: Some(Chain::GENESIS.fork(Epoch(1))),
            journaled: Arc::default(),
            vaulted: Arc::default(),
            window: watch::Sender::new(64 << 20),
            pace: Pace::default(),
            way: 0,
            fenced: watch::Sender::new(None),
            room: Semaphore::new(Semaphore::MAX_PERMITS),
            acks: true,
            touched: Vec::new(),
            refusal: Mutex::new(None),
            records: Mutex::default(),
            opens: Mutex::default(),
            answers: Semaphore::new(Semaphore::MAX_PERMITS),
            waiting: AtomicU64::new(0),
        }
    }

    pub fn seqs(&self) -> Vec<u64> {
        let records = self.records.lock();
        records.iter().map(|record| RecordView::split(record).expect("record").0.head.seq.0).collect()
    }
}

#[derive(Default)]
pub struct MemoryHost {
    pub disks: HashMap<DiskId, Arc<MemoryDisk>>,
    /// Notified when nothing more will be acknowledged.
    pub broken: Notify,
}

impl MemoryHost {
    pub fn with(disks: impl IntoIterator<Item = (&'static str, MemoryDisk)>) -> Arc<Self> {
        let disks = disks.into_iter().map(|(name, state)| (disk(name), Arc::new(state))).collect();
        Arc::new(Self { disks, broken: Notify::new() })
    }

    pub fn disk(&self, name: &str) -> &Arc<MemoryDisk> {
        &self.disks[&disk(name)]
    }
}

impl Host for MemoryHost {
    type Sink = MemorySink;

    fn hello(&self) -> HelloInfo {
        HelloInfo { gateway: "g1".into(), vault: VAULT }
    }

    fn ways(&self) -> usize {
        2
    }

    async fn broken(&self) {
        self.broken.notified().await;
    }

    async fn open_disk(&self, _agent: &AgentIdentity, open: OpenDisk) -> Result<OpenedDisk<MemorySink>, DiskRefusal> {
        let unknown = || DiskRefusal::refused(Code::UnknownDisk, "no such disk");
        let disk = Arc::clone(self.disks.get(&open.disk).ok_or_else(unknown)?);
        disk.opens.lock().push(open);
        let waiting = Waiting::new(&disk.waiting);
        disk.answers.acquire().await.expect("never closed").forget();
        drop(waiting);
        if let Some(refusal) = disk.refusal.lock().clone() {
            return Err(refusal);
        }
        let taken = disk.records.lock().last().map(|record| RecordView::split(record).expect("record").0.head);
        Ok(OpenedDisk {
            epoch: disk.epoch,
            next_seq: taken.map_or(disk.next_seq, |head| head.seq.next()),
            chain: taken.map_or(disk.chain, |head| Some(head.chain)),
            touched: disk.touched.clone(),
            journaled: Arc::clone(&disk.journaled),
            vaulted: Arc::clone(&disk.vaulted),
            window: disk.window.subscribe(),
            pace: disk.pace.clone(),
            way: disk.way,
            fenced: disk.fenced.subscribe(),
            must_fork: watch::channel(None).1,
            sink: MemorySink(disk),
        })
    }
}

pub struct MemorySink(Arc<MemoryDisk>);

impl RecordSink for MemorySink {
    async fn record(&mut self, head: RecordHead, crc: u32, chunks: Vec<Bytes>, _: Micros) -> Result<(), DiskRefusal> {
        self.0.room.acquire().await.expect("never closed").forget();
        let bytes = chunks.concat();
        assert_eq!(frame::crc32c([bytes.as_slice()]), crc);
        let (record, _) = RecordView::split(&bytes).expect("record");
        record.check_digest().expect("digest");
        self.0.records.lock().push(bytes);
        if self.0.acks {
            self.0.journaled.advance(head.seq.0);
            self.0.vaulted.advance(head.seq.0);
        }
        Ok(())
    }
}

/// A server of `host`, running.
pub struct TestServer {
    pub addr: String,
    pub credentials: Credentials,
    pub drain: DrainTrigger,
    pub task: JoinHandle<()>,
}

pub fn start(files: &TlsFiles, host: &Arc<impl Host>, moved: i64) -> TestServer {
    start_with(files, host, moved, &Tuning::default(), ServerLimits::default())
}

pub fn start_with(
    files: &TlsFiles,
    host: &Arc<impl Host>,
    moved: i64,
    tuning: &Tuning,
    limits: ServerLimits,
) -> TestServer {
    let clock = clock(moved);
    let any = "127.0.0.1:0".parse().expect("address");
    // The same number over TCP, as agents expect it. Somebody else may have it there: then another one.
    let both = || {
        let listener = Listener::bind(any, files, tuning, &clock, &Net::system()).expect("listening");
        listener.with_tcp_at_same(&Net::system()).ok()
    };
    let listener = (0..20).find_map(|_| both()).expect("a port that is free over UDP and TCP");
    let (addr, credentials) = (listener.local_addr().to_string(), listener.credentials().clone());
    let (drain, signal): (_, Drain) = DrainTrigger::new();
    let task = tokio::spawn(serve(listener, Arc::clone(host), limits, clock, signal));
    TestServer { addr, credentials, drain, task }
}

pub async fn connect(server: &TestServer, files: &TlsFiles) -> Client {
    try_connect(&server.addr, files, 0).await.expect("connected")
}

/// As an agent whose clock is `moved`.
pub async fn try_connect(addr: &str, files: &TlsFiles, moved: i64) -> Result<Client, ConnectError> {
    Client::connect_with(addr, files, &tuning(), clock(moved), &Net::system()).await
}

pub fn fork(name: &str) -> OpenDisk {
    let want = Want::Fork { reason: ForkReason::NewDisk, floor: None };
    OpenDisk { disk: disk(name), size_bytes: DISK_BYTES, nonce: Id128([5; 16]), want }
}

/// Makes records that follow each other.
pub struct Source {
    epoch: Epoch,
    next: Seq,
    chain: Chain,
}

impl Source {
    pub fn new(opened: &OpenedInfo) -> Self {
        let chain = opened.chain.expect("the host in memory knows its chain");
        Self { epoch: opened.epoch, next: opened.next_seq, chain }
    }

    pub fn record(&mut self, payload_bytes: usize) -> WireRecord {
        let mut table = Vec::new();
        let length_bytes = payload_bytes as u32;
        encode_extents(&[Extent { offset_bytes: self.next.0 * 512, length_bytes, kind: ExtentKind::Data }], &mut table);
        let payload = vec![self.next.0 as u8; payload_bytes];
        let head = RecordHead {
            kind: RecordKind::Write,
            extent_count: 1,
            payload_bytes: length_bytes,
            epoch: self.epoch,
            seq: self.next,
            label: Micros(self.next.0),
            clock_uncertainty_micros: 0,
            group: Id128::NONE,
            digest: record_digest(&table, [payload.as_slice()]),
            chain: Chain::GENESIS,
        }
        .sealed_after(self.chain);
        self.next = self.next.next();
        self.chain = head.chain;
        let (front, back) = payload.split_at(payload_bytes / 3);
        let rest = [&table[..], front, back].into_iter().map(Bytes::copy_from_slice).collect();
        WireRecord { head: head.encode(), rest }
    }
}

pub fn body(record: &WireRecord) -> Vec<u8> {
    record.rest.iter().fold(record.head.to_vec(), |mut body, piece| {
        body.extend_from_slice(piece);
        body
    })
}

pub fn record_frame(body: &[u8]) -> Bytes {
    let header = frame::encode_header(frame::Kind::Record, body.len() as u32, frame::crc32c([body]));
    [&header[..], body].concat().into()
}

/// Waits for the ack that brings both watermarks to `seq`.
pub async fn acked(events: &mut DiskEvents, seq: u64) {
    let wait = async {
        loop {
            match events.next().await {
                DiskEvent::Ack { journaled, vaulted } if journaled.0 >= seq && vaulted.0 >= seq => return,
                DiskEvent::Ack { journaled, vaulted } => assert!(journaled >= vaulted),
                other => panic!("no ack of {seq}, but {other:?}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("acked in time");
}

/// The first event that is no ack.
pub async fn end(events: &mut DiskEvents) -> DiskEvent {
    let wait = async {
        loop {
            match events.next().await {
                DiskEvent::Ack { .. } => {}
                other => return other,
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("ended in time")
}

/// A handshake that has begun.
pub fn connecting(addr: &str, files: &TlsFiles, tuning: &Tuning, net: &Net) -> (quinn::Endpoint, quinn::Connecting) {
    let material = Material::load(files, &clock(0)).expect("files");
    let remote = addr.parse().expect("address");
    let (endpoint, config) =
        client_endpoint(remote, &material, tuning, &Explanation::default(), net).expect("endpoint");
    let connecting = endpoint.connect_with(config, remote, "127.0.0.1").expect("configured");
    (endpoint, connecting)
}

/// A session with a right certificate and no manners.
pub struct Raw {
    pub session: Session,
}

impl Raw {
    pub async fn connect(addr: &str, files: &TlsFiles) -> Self {
        Self::connect_over(addr, files, &tuning(), &Net::system()).await
    }

    pub async fn connect_over(addr: &str, files: &TlsFiles, tuning: &Tuning, net: &Net) -> Self {
        let session = match tuning.transport {
            Transport::Quic => {
                let (endpoint, connecting) = connecting(addr, files, tuning, net);
                Session::Quic(congestion::Connection::new(connecting.await.expect("connected")), Some(endpoint))
            }
            Transport::Tcp => Session::Tcp(dialer(addr, files, tuning, net).dial().await.expect("connected")),
        };
        Self { session }
    }

    /// What QUIC calls the session.
    pub fn quic(&self) -> &quinn::Connection {
        match &self.session {
            Session::Quic(connection, _) => connection,
            Session::Tcp(_) => panic!("this test is one of QUIC"),
        }
    }

    /// Opens a stream.
    pub async fn open(&self) -> (SendHalf, RecvHalf) {
        self.session.open_stream().await.expect("stream")
    }

    /// Opens the control stream properly.
    pub async fn hello(&self, agent: &str) -> (SendHalf, FrameReader) {
        let hello = messages::Hello {
            protocol_min: 1,
            protocol_max: 1,
            vault: VAULT,
            agent: agent.into(),
            software: "test".into(),
        };
        let (mut send, recv) = self.open().await;
        write_message(&mut send, &messages::Message::Hello(hello)).await.expect("sent");
        let mut reader = FrameReader::new(recv);
        let answer = reader.next_message().await.expect("answer");
        assert!(matches!(answer, messages::Message::HelloOk(_)), "{answer:?}");
        (send, reader)
    }

    /// The code and text with which the other side closed, or refused what has not begun.
    pub async fn closed(&self) -> (Code, String) {
        let (_send, recv) = match &self.session {
            // A stranger to QUIC is closed without a stream.
            Session::Quic(..) => return self.ended().await,
            Session::Tcp(_) => self.open().await,
        };
        self.closed_on(&mut FrameReader::new(recv)).await
    }

    /// The same, of which the control stream tells over TCP.
    pub async fn closed_on(&self, control: &mut FrameReader) -> (Code, String) {
        let told = async {
            loop {
                match control.next_message().await {
                    Ok(messages::Message::Refused(refused)) => return Some((refused.code, refused.text)),
                    Ok(_) => {}
                    Err(_) => return None,
                }
            }
        };
        match tokio::time::timeout(PATIENCE, told).await.expect("closed in time") {
            Some(refused) => refused,
            None => self.ended().await,
        }
    }

    async fn ended(&self) -> (Code, String) {
        match tokio::time::timeout(PATIENCE, self.session.closed()).await.expect("closed in time") {
            SessionEnd::Closed { code, text } => (code, text),
            other => panic!("closed by {other}"),
        }
    }
}

/// What makes the connections of a session over TCP.
pub fn dialer(addr: &str, files: &TlsFiles, tuning: &Tuning, net: &Net) -> Dialer {
    let material = Material::load(files, &clock(0)).expect("files");
    Dialer {
        remote: addr.parse().expect("address"),
        name: "127.0.0.1".try_into().expect("name"),
        tls: Arc::new(material.client_config(&Explanation::default()).expect("config")),
        net: net.clone(),
        session: Id128(crate::keys::random().expect("random")),
        idle_timeout: tuning.idle_timeout,
        step_timeout: PATIENCE,
        gateway: None,
    }
}

/// What this thread logs while it lives. Tests run on one thread each, servers included.
pub struct Log {
    lines: Lines,
    _guard: tracing::subscriber::DefaultGuard,
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    pub fn start() -> Self {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::INFO)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        Self { lines, _guard: tracing::subscriber::set_default(subscriber) }
    }

    /// What was logged so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.lines.0.lock()).into_owned()
    }

    /// Waits until the log holds a line with all of `words`.
    pub async fn has(&self, words: &[&str]) {
        assert!(self.has_within(PATIENCE, words).await, "no line with {words:?} in\n{}", self.text());
    }

    /// Whether the log holds a line with all of `words` before `patience` is over.
    pub async fn has_within(&self, patience: Duration, words: &[&str]) -> bool {
        let find = async {
            while !self.text().lines().any(|line| words.iter().all(|word| line.contains(word))) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(patience, find).await.is_ok()
    }
}
