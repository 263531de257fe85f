//! The floor beneath a load: the primitives in a row, and nothing else.
//!
//! ```text
//!  writes ─QUIC─► a record is whole ─► copy into the commit ─► write + sync ─► reply
//!                                       (whatever waits shares it)
//! ```
//!
//! What comes of the same agents, disks and writes here is what receiving, storing and answering cost on this machine, with
//! its system calls and its waking of threads. There are no frames, checksums, order, books and credit, and compression and
//! uploads only where they are asked for ([`onward`]). Not a replication of anything: it knows no fault and keeps nothing.

mod load;
mod onward;

use std::fs::File;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hdrhistogram::Histogram;
use parking_lot::{Condvar, Mutex};
use tidegate::flow::{Clock as _, SystemClock, Watermark};
use tidegate::journal::disk::AlignedBuf;
use tidegate::limits::{BLOCK_BYTES, COMMIT_BYTES_MAX, SEGMENT_BYTES_DEFAULT};
use tidegate::wire::Transport;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use self::load::{Disk, Tls};
use self::onward::{Onward, Progress};
use crate::bench::{BenchError, Plan, because};
use crate::limit::disk::{Scratch, segment};
use crate::limit::network::{self, CHUNKS_MAX, Failure, NAME, READ_BYTES};
use crate::payload::Pool;
use crate::process::threads_cpu_seconds;
use crate::run::Plan as RunPlan;
use crate::run::connect::orders;
use crate::run::tally::Latency;

/// Before each record: its bytes.
const LENGTH_BYTES: usize = 4;
/// Longest latency that is told apart, in microseconds: a minute.
const MICROS_MAX: u64 = 60_000_000;
/// The last replies have so long.
const TRAIL: Duration = Duration::from_secs(10);

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    /// From when a record was due until its reply came.
    pub ack_seconds: Latency,
    /// Processor time of the server's threads.
    pub cpu_seconds: f64,
    /// Writes and syncs.
    pub commits: u64,
    /// Bytes that were written.
    pub bytes: u64,
    /// From the first write until everything is stored, and packed and uploaded where it packs.
    pub duration: Duration,
}

/// The open commit.
struct Open {
    buf: AlignedBuf,
    filled_bytes: usize,
    pending: Vec<(Arc<Watermark>, u64)>,
    closing: bool,
}

impl Open {
    fn new() -> Self {
        Self { buf: AlignedBuf::zeroed(COMMIT_BYTES_MAX), filled_bytes: 0, pending: Vec::new(), closing: false }
    }
}

struct Journal {
    open: Mutex<Open>,
    work: Condvar,
    room: Notify,
    commits: Watermark,
}

impl Journal {
    async fn append(&self, record: &mut Vec<Bytes>, number: u64, stored: &Arc<Watermark>) {
        let bytes: usize = record.iter().map(Bytes::len).sum();
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            // Registered before the look, or room made in between would be missed.
            room.as_mut().enable();
            {
                let mut open = self.open.lock();
                if open.filled_bytes + bytes <= COMMIT_BYTES_MAX {
                    for chunk in record.drain(..) {
                        let (from, to) = (open.filled_bytes, open.filled_bytes + chunk.len());
                        open.buf[from..to].copy_from_slice(&chunk);
                        open.filled_bytes = to;
                    }
                    open.pending.push((Arc::clone(stored), number));
                    self.work.notify_one();
                    return;
                }
            }
            room.await;
        }
    }

    /// Writes and syncs whatever waits, until it is closed; hands it onward if somebody is there.
    fn run(&self, file: &File, onward: Option<&Onward>) -> Result<(), Failure> {
        let (mut spare, mut at) = (Open::new(), 0);
        loop {
            {
                let mut open = self.open.lock();
                while open.filled_bytes == 0 {
                    if open.closing {
                        return Ok(());
                    }
                    self.work.wait(&mut open);
                }
                spare.closing = open.closing;
                std::mem::swap(&mut *open, &mut spare);
            }
            self.room.notify_waiters();
            let commit_bytes = spare.filled_bytes.next_multiple_of(BLOCK_BYTES);
            if at + commit_bytes as u64 > SEGMENT_BYTES_DEFAULT {
                at = 0;
            }
            file.write_all_at(&spare.buf[..commit_bytes], at)?;
            file.sync_data()?;
            at += commit_bytes as u64;
            for (stored, number) in spare.pending.drain(..) {
                stored.advance(number);
            }
            self.commits.advance(self.commits.get() + 1);
            if let Some(onward) = onward {
                spare = onward.exchange(spare)?;
            }
            spare.filled_bytes = 0;
        }
    }
}

/// A server with threads of its own; ends when dropped.
pub(crate) struct Bare {
    /// How the names of all its threads begin, by which their processor time is told from the load's and from another floor's.
    threads: String,
    address: SocketAddr,
    tcp_address: SocketAddr,
    client: quinn::ClientConfig,
    tcp_client: Arc<rustls::ClientConfig>,
    mtu_max_bytes: u16,
    journal: Arc<Journal>,
    net: Option<tokio::runtime::Runtime>,
    disk: Option<std::thread::JoinHandle<Result<(), Failure>>>,
    onward: Option<Arc<Progress>>,
    _scratch: Scratch,
}

impl Drop for Bare {
    fn drop(&mut self) {
        if let Some(net) = self.net.take() {
            net.shutdown_background();
        }
        self.journal.open.lock().closing = true;
        self.journal.work.notify_one();
        if let Some(disk) = self.disk.take() {
            // What it held is wanted by nobody.
            let _ = disk.join();
        }
    }
}

impl Bare {
    /// Starts it on this machine, with a file in the folder of the bench. With the URL of a store it packs and uploads, too.
    pub(crate) async fn start(plan: &Plan, store: Option<String>) -> Result<Self, BenchError> {
        let (folder, mtu_max_bytes) = (plan.dir.clone(), plan.mtu_max_bytes);
        let started = tokio::task::spawn_blocking(move || Self::begin(&folder, mtu_max_bytes, store.as_deref())).await;
        started.map_err(|error| because("the floor")(&error))?.map_err(|error| because("the floor")(&*error))
    }

    fn begin(folder: &Path, mtu_max_bytes: u16, store: Option<&str>) -> Result<Self, Failure> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let threads = format!("bare{}-", NUMBER.fetch_add(1, Ordering::Relaxed));
        let (server, client) = network::certificates()?;
        let (scratch, file) = segment(folder)?;
        let journal = Arc::new(Journal {
            open: Mutex::new(Open::new()),
            work: Condvar::new(),
            room: Notify::new(),
            commits: Watermark::default(),
        });
        let net = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(std::thread::available_parallelism().map_or(1, usize::from))
            .thread_name(format!("{threads}net"))
            .enable_all()
            .build()?;
        let config = network::server_config(server.clone(), mtu_max_bytes)?;
        let (listener, tcp) = net.block_on(async {
            let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            Ok::<_, Failure>((network::endpoint(mtu_max_bytes, Some(config))?, tcp))
        })?;
        let (address, tcp_address) = (listener.local_addr()?, tcp.local_addr()?);
        net.spawn(serve(listener, Arc::clone(&journal)));
        net.spawn(serve_tcp(tcp, TlsAcceptor::from(Arc::new(server)), Arc::clone(&journal)));
        let writing = Arc::clone(&journal);
        let onward = store.map(|store| Onward::start(store, &threads)).transpose()?;
        let progress = onward.as_ref().map(|onward| Arc::clone(onward.progress()));
        let disk = std::thread::Builder::new()
            .name(format!("{threads}disk"))
            .spawn(move || writing.run(&file, onward.as_ref()))?;
        let tcp_client = Arc::new(client.clone());
        let client = network::client_config(client, mtu_max_bytes)?;
        let (net, disk) = (Some(net), Some(disk));
        Ok(Self {
            threads,
            address,
            tcp_address,
            client,
            tcp_client,
            mtu_max_bytes,
            journal,
            net,
            disk,
            onward: progress,
            _scratch: scratch,
        })
    }

    /// The writes of `plan`, which has a rate and a duration, or bytes.
    pub(crate) async fn load(&self, plan: &RunPlan, pool: &Pool) -> Result<Outcome, BenchError> {
        self.drive(plan, pool).await.map_err(|error| because("the floor")(&*error))
    }

    async fn drive(&self, plan: &RunPlan, pool: &Pool) -> Result<Outcome, Failure> {
        let mut agents = Vec::with_capacity(plan.agents);
        if plan.transport == Transport::Quic {
            for _ in 0..plan.agents {
                let endpoint = network::endpoint(self.mtu_max_bytes, None)?;
                let connection = endpoint.connect_with(self.client.clone(), self.address, NAME)?.await?;
                agents.push((endpoint, connection));
            }
        }
        let mut tcp = Vec::new();
        if plan.transport == Transport::Tcp {
            // Each disk has a connection of its own: frames that share one are not the floor's.
            for _ in 0..plan.agents * plan.disks {
                let stream = TcpStream::connect(self.tcp_address).await?;
                stream.set_nodelay(true)?;
                let connector = TlsConnector::from(Arc::clone(&self.tcp_client));
                tcp.push(tokio::io::split(connector.connect(NAME.try_into()?, stream).await?));
            }
        }
        let micros = Arc::new(Mutex::new(Histogram::<u64>::new_with_bounds(1, MICROS_MAX, 3)?));
        let (cpu, commits) = (threads_cpu_seconds(&self.threads)?, self.journal.commits.get());
        let packed_bytes = self.onward.as_ref().map_or(0, |onward| onward.packed_bytes());
        let clock = Arc::new(SystemClock::new());
        let left_bytes = Arc::new(AtomicU64::new(plan.bytes.unwrap_or(u64::MAX)));
        let mut disks = JoinSet::new();
        for number in 0..plan.agents * plan.disks {
            let disk = Disk {
                pool: pool.clone(),
                clock: Arc::clone(&clock),
                left_bytes: Arc::clone(&left_bytes),
                due: Mutex::default(),
            };
            let (orders, micros) = (orders(plan, number), Arc::clone(&micros));
            let duration = plan.duration.unwrap_or(Duration::MAX);
            match tcp.pop() {
                Some((recv, send)) => disks.spawn(disk.run(Tls(send), recv, orders, duration, micros)),
                None => {
                    let (send, recv) = agents[number / plan.disks].1.open_bi().await?;
                    disks.spawn(disk.run(send, recv, orders, duration, micros))
                }
            };
        }
        let mut bytes = 0;
        while let Some(done) = disks.join_next().await {
            bytes += done??;
        }
        if let Some(onward) = &self.onward {
            tokio::time::timeout(TRAIL, onward.settle(packed_bytes + bytes)).await??;
        }
        let outcome = Outcome {
            ack_seconds: Latency::of(&micros.lock()),
            cpu_seconds: threads_cpu_seconds(&self.threads)? - cpu,
            commits: self.journal.commits.get() - commits,
            bytes,
            duration: clock.monotonic(),
        };
        for (endpoint, connection) in agents {
            connection.close(0_u32.into(), b"");
            endpoint.wait_idle().await;
        }
        Ok(outcome)
    }
}

async fn serve(listener: quinn::Endpoint, journal: Arc<Journal>) {
    while let Some(incoming) = listener.accept().await {
        let journal = Arc::clone(&journal);
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else { return };
            while let Ok((reply, stream)) = connection.accept_bi().await {
                tokio::spawn(carry(reply, stream, Arc::clone(&journal)));
            }
        });
    }
}

async fn serve_tcp(listener: TcpListener, acceptor: TlsAcceptor, journal: Arc<Journal>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, journal) = (acceptor.clone(), Arc::clone(&journal));
        tokio::spawn(async move {
            // A reply would wait for the one before to be acknowledged.
            if stream.set_nodelay(true).is_err() {
                return;
            }
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let (stream, reply) = tokio::io::split(stream);
            carry(reply, TlsInbound { stream, read: BytesMut::new() }, journal).await;
        });
    }
}

/// Where records come in.
trait Inbound: Send {
    /// The next pieces, and how many; `None` at the end.
    fn next(&mut self, chunks: &mut [Bytes; CHUNKS_MAX]) -> impl Future<Output = Option<usize>> + Send;
}

impl Inbound for quinn::RecvStream {
    async fn next(&mut self, chunks: &mut [Bytes; CHUNKS_MAX]) -> Option<usize> {
        self.read_chunks(chunks).await.ok().flatten()
    }
}

struct TlsInbound<R> {
    stream: R,
    read: BytesMut,
}

impl<R: AsyncRead + Unpin + Send> Inbound for TlsInbound<R> {
    async fn next(&mut self, chunks: &mut [Bytes; CHUNKS_MAX]) -> Option<usize> {
        self.read.reserve(READ_BYTES);
        let read_bytes = self.stream.read_buf(&mut self.read).await.ok()?;
        chunks[0] = self.read.split().freeze();
        (read_bytes > 0).then_some(1)
    }
}

/// One disk at the server.
async fn carry(mut reply: impl AsyncWrite + Unpin + Send, mut stream: impl Inbound, journal: Arc<Journal>) {
    let stored = Arc::new(Watermark::default());
    let replies = async {
        let mut told = 0;
        loop {
            told = stored.beyond(told).await;
            if reply.write_all(&told.to_le_bytes()).await.is_err() || reply.flush().await.is_err() {
                return;
            }
        }
    };
    let records = async {
        let mut chunks = [const { Bytes::new() }; CHUNKS_MAX];
        let (mut head, mut record, mut left, mut number) = (Vec::new(), Vec::new(), 0_usize, 0);
        while let Some(count) = stream.next(&mut chunks).await {
            for chunk in chunks.iter_mut().take(count) {
                let mut chunk = std::mem::take(chunk);
                while !chunk.is_empty() {
                    if left == 0 {
                        head.extend_from_slice(&chunk.split_to(chunk.len().min(LENGTH_BYTES - head.len())));
                        if let Ok(length) = <[u8; LENGTH_BYTES]>::try_from(&head[..]) {
                            left = u32::from_le_bytes(length) as usize;
                            head.clear();
                        }
                        continue;
                    }
                    let piece = chunk.split_to(chunk.len().min(left));
                    left -= piece.len();
                    record.push(piece);
                    if left == 0 {
                        number += 1;
                        journal.append(&mut record, number, &stored).await;
                    }
                }
            }
        }
    };
    tokio::select! {
        () = replies => {}
        () = records => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chance::Share;
    use crate::payload::Source;
    use crate::run::profile::Profile;
    use crate::sink::{Account, Limits, Sink, Weather};

    fn plan(transport: Transport) -> RunPlan {
        RunPlan {
            gateway: String::new(),
            authority: std::path::PathBuf::new(),
            agents: 2,
            disks: 2,
            disk_bytes: 16 << 20,
            profile: Profile::Oltp8,
            trace: Arc::new([]),
            zero: Share::NONE,
            bytes_per_second: 4 * 50 * (8 << 10),
            ramp: Duration::ZERO,
            duration: Some(Duration::from_secs(2)),
            bytes: None,
            transport,
            mtu_max_bytes: 8952,
            seed: 1,
            settle: Duration::ZERO,
            patience: Duration::from_secs(60),
            admin: None,
            gateway_pid: None,
            keep_images: false,
        }
    }

    async fn begin(folder: &Path, store: Option<String>) -> Bare {
        let folder = folder.to_owned();
        let begun = tokio::task::spawn_blocking(move || Bare::begin(&folder, 8952, store.as_deref())).await;
        begun.expect("no panic").expect("started")
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_write_is_stored_and_answered() {
        let folder = tempfile::tempdir().expect("a folder");
        let pool = Pool::fill(&Source::Ratio(2.0), 4 << 20, 1).expect("made");
        let bare = begin(folder.path(), None).await;
        for transport in [Transport::Quic, Transport::Tcp] {
            let outcome = bare.load(&plan(transport), &pool).await.expect("all of them were answered");
            // 50 writes a second on four disks for two seconds, each less the phase at its begin.
            assert!((390..=400).contains(&outcome.ack_seconds.count), "{outcome:?}");
            assert_eq!(outcome.bytes, outcome.ack_seconds.count * (8 << 10));
            assert!((1..=outcome.ack_seconds.count).contains(&outcome.commits), "{outcome:?}");
            assert!(outcome.cpu_seconds > 0.0 && outcome.ack_seconds.p99 >= outcome.ack_seconds.p50, "{outcome:?}");
        }
        let written = std::fs::read_dir(folder.path()).expect("readable").count();
        drop(bare);
        let left = std::fs::read_dir(folder.path()).expect("readable").count();
        assert_eq!((written, left), (1, 0), "its file goes with it");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_stored_is_packed_and_uploaded_where_there_is_a_store() {
        let folder = tempfile::tempdir().expect("a folder");
        let pool = Pool::fill(&Source::Ratio(2.0), 4 << 20, 1).expect("made");
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let limits = Limits { discard_above_bytes: 0, ..Limits::default() };
        let sink = Sink::start(any, None, Account::default(), limits, Weather::default()).expect("a sink");
        let bare = begin(folder.path(), Some(sink.vault_url("floor"))).await;
        let all = RunPlan {
            profile: Profile::Files,
            bytes_per_second: 0,
            duration: None,
            bytes: Some(192 << 20),
            ..plan(Transport::Quic)
        };
        let outcome = bare.load(&all, &pool).await.expect("all of it was packed");
        // Of the last write there may be no room.
        assert!(((191 << 20)..=(192 << 20)).contains(&outcome.bytes), "{outcome:?}");
        let uploaded = sink.counts().stored_bytes;
        assert!((outcome.bytes / 3..outcome.bytes * 2 / 3).contains(&uploaded), "{uploaded} of {}", outcome.bytes);
    }
}
