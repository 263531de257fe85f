//! The floor beneath a load: the primitives in a row, and nothing else.
//!
//! ```text
//!  writes ─QUIC─► a record is whole ─► copy into the commit ─► write + sync ─► reply
//!                                       (whatever waits shares it)
//! ```
//!
//! What comes of the same agents, disks and writes here is what receiving, storing and answering cost on this machine, with
//! its system calls and its waking of threads. There are no frames, checksums, order, books, credit, compression or uploads. Not a
//! replication of anything: it knows no fault and keeps nothing.

use std::collections::VecDeque;
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use parking_lot::{Condvar, Mutex};
use tidegate::flow::{Clock as _, SystemClock, Watermark};
use tidegate::journal::disk::AlignedBuf;
use tidegate::limits::{BLOCK_BYTES, COMMIT_BYTES_MAX, SEGMENT_BYTES_DEFAULT};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::bench::{BenchError, Plan, because};
use crate::limit::disk::{Scratch, segment};
use crate::limit::network::{self, CHUNKS_MAX, Failure, NAME};
use crate::payload::Pool;
use crate::process::threads_cpu_seconds;
use crate::run::Plan as RunPlan;
use crate::run::connect::orders;
use crate::run::disk::Orders;
use crate::run::tally::Latency;

/// Threads by which its processor time is told from the load's.
const NET: &str = "bare-net";
const DISK: &str = "bare-disk";
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

    /// Writes and syncs whatever waits, until it is closed.
    fn run(&self, file: &File) -> std::io::Result<()> {
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
            spare.filled_bytes = 0;
            self.commits.advance(self.commits.get() + 1);
        }
    }
}

/// A server with threads of its own; ends when dropped.
pub(crate) struct Bare {
    address: SocketAddr,
    client: quinn::ClientConfig,
    mtu_max_bytes: u16,
    journal: Arc<Journal>,
    net: Option<tokio::runtime::Runtime>,
    disk: Option<std::thread::JoinHandle<std::io::Result<()>>>,
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
    /// Starts it on this machine, with a file in the folder of the bench.
    pub(crate) async fn start(plan: &Plan) -> Result<Self, BenchError> {
        let (folder, mtu_max_bytes) = (plan.dir.clone(), plan.mtu_max_bytes);
        let started = tokio::task::spawn_blocking(move || Self::begin(&folder, mtu_max_bytes)).await;
        started.map_err(|error| because("the floor")(&error))?.map_err(|error| because("the floor")(&*error))
    }

    fn begin(folder: &Path, mtu_max_bytes: u16) -> Result<Self, Failure> {
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
            .thread_name(NET)
            .enable_all()
            .build()?;
        let config = network::server_config(server, mtu_max_bytes)?;
        let listener = net.block_on(async { network::endpoint(mtu_max_bytes, Some(config)) })?;
        let address = listener.local_addr()?;
        net.spawn(serve(listener, Arc::clone(&journal)));
        let writing = Arc::clone(&journal);
        let disk = std::thread::Builder::new().name(DISK.into()).spawn(move || writing.run(&file))?;
        let client = network::client_config(client, mtu_max_bytes)?;
        Ok(Self { address, client, mtu_max_bytes, journal, net: Some(net), disk: Some(disk), _scratch: scratch })
    }

    /// The writes of `plan`, which has a rate and a duration.
    pub(crate) async fn load(&self, plan: &RunPlan, pool: &Pool) -> Result<Outcome, BenchError> {
        self.drive(plan, pool).await.map_err(|error| because("the floor")(&*error))
    }

    async fn drive(&self, plan: &RunPlan, pool: &Pool) -> Result<Outcome, Failure> {
        let mut agents = Vec::with_capacity(plan.agents);
        for _ in 0..plan.agents {
            let endpoint = network::endpoint(self.mtu_max_bytes, None)?;
            let connection = endpoint.connect_with(self.client.clone(), self.address, NAME)?.await?;
            agents.push((endpoint, connection));
        }
        let micros = Arc::new(Mutex::new(Histogram::<u64>::new_with_bounds(1, MICROS_MAX, 3)?));
        let (cpu, commits) = (self.cpu_seconds()?, self.journal.commits.get());
        let clock = Arc::new(SystemClock::new());
        let mut disks = JoinSet::new();
        for number in 0..plan.agents * plan.disks {
            let (send, recv) = agents[number / plan.disks].1.open_bi().await?;
            let disk = Disk { pool: pool.clone(), clock: Arc::clone(&clock), due: Mutex::default() };
            let (orders, micros, duration) = (orders(plan, number), Arc::clone(&micros), plan.duration);
            disks.spawn(disk.run(send, recv, orders, duration.unwrap_or_default(), micros));
        }
        while let Some(done) = disks.join_next().await {
            done??;
        }
        let outcome = Outcome {
            ack_seconds: Latency::of(&micros.lock()),
            cpu_seconds: self.cpu_seconds()? - cpu,
            commits: self.journal.commits.get() - commits,
        };
        for (endpoint, connection) in agents {
            connection.close(0_u32.into(), b"");
            endpoint.wait_idle().await;
        }
        Ok(outcome)
    }

    fn cpu_seconds(&self) -> std::io::Result<f64> {
        Ok(threads_cpu_seconds(NET)? + threads_cpu_seconds(DISK)?)
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

/// One disk at the server.
async fn carry(mut reply: quinn::SendStream, mut stream: quinn::RecvStream, journal: Arc<Journal>) {
    let stored = Arc::new(Watermark::default());
    let replies = async {
        let mut told = 0;
        loop {
            told = stored.beyond(told).await;
            if reply.write_all(&told.to_le_bytes()).await.is_err() {
                return;
            }
        }
    };
    let records = async {
        let mut chunks = [const { Bytes::new() }; CHUNKS_MAX];
        let (mut head, mut record, mut left, mut number) = (Vec::new(), Vec::new(), 0_usize, 0);
        while let Ok(Some(count)) = stream.read_chunks(&mut chunks).await {
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

/// One disk at the load's side.
struct Disk {
    pool: Pool,
    clock: Arc<SystemClock>,
    /// When the records were due whose replies are still to come.
    due: Mutex<VecDeque<Duration>>,
}

impl Disk {
    async fn run(
        self,
        mut send: quinn::SendStream,
        mut recv: quinn::RecvStream,
        orders: Orders,
        duration: Duration,
        micros: Arc<Mutex<Histogram<u64>>>,
    ) -> Result<(), Failure> {
        let last = Watermark::default();
        let writes = async {
            let sent = self.write_all(&mut send, orders, duration).await?;
            last.advance(sent);
            Ok::<_, Failure>(sent)
        };
        let replies = async {
            let (mut told, mut bytes) = (0, [0; 8]);
            loop {
                recv.read_exact(&mut bytes).await?;
                let (now, number) = (self.clock.monotonic(), u64::from_le_bytes(bytes));
                let mut due = self.due.lock();
                let mut micros = micros.lock();
                while told < number
                    && let Some(due) = due.pop_front()
                {
                    told += 1;
                    micros.saturating_record((now.saturating_sub(due).as_micros() as u64).clamp(1, MICROS_MAX));
                }
                drop((due, micros));
                if told == last.get() && told > 0 {
                    return Ok::<_, Failure>(());
                }
            }
        };
        tokio::pin!(replies);
        let early = tokio::select! {
            sent = writes => sent? == 0,
            ended = &mut replies => return ended,
        };
        if early || self.due.lock().is_empty() {
            return Ok(());
        }
        tokio::time::timeout(TRAIL, replies).await?
    }

    /// Returns how many there were.
    async fn write_all(
        &self,
        send: &mut quinn::SendStream,
        orders: Orders,
        duration: Duration,
    ) -> Result<u64, Failure> {
        let Orders { mut pattern, pace, .. } = orders;
        let (mut written_bytes, mut number) = (0, 0);
        while let Some(due) = pace.due(written_bytes).filter(|due| *due < duration) {
            let now = self.clock.monotonic();
            // As in a run: that a timer is late is this program's own fault, and no part of a latency.
            let due = if due > now {
                tokio::time::sleep(due - now).await;
                self.clock.monotonic().max(due)
            } else {
                due
            };
            let write = pattern.next_write();
            let (_, payload) = self.pool.slice(pattern.number(), write.length_bytes as usize);
            self.due.lock().push_back(due);
            let length = Bytes::copy_from_slice(&(payload.len() as u32).to_le_bytes());
            send.write_all_chunks(&mut [length, payload]).await?;
            written_bytes += u64::from(write.length_bytes);
            number += 1;
        }
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chance::Share;
    use crate::payload::Source;
    use crate::run::profile::Profile;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_write_is_stored_and_answered() {
        let folder = tempfile::tempdir().expect("a folder");
        let pool = Pool::fill(&Source::Ratio(2.0), 4 << 20, 1).expect("made");
        let path = folder.path().to_owned();
        let begun = tokio::task::spawn_blocking(move || Bare::begin(&path, 8952)).await;
        let bare = begun.expect("no panic").expect("started");
        let plan = RunPlan {
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
            transport: tidegate::wire::Transport::Quic,
            mtu_max_bytes: 8952,
            seed: 1,
            settle: Duration::ZERO,
            patience: Duration::from_secs(60),
            admin: None,
            gateway_pid: None,
            keep_images: false,
        };
        let outcome = bare.load(&plan, &pool).await.expect("all of them were answered");
        // 50 writes a second on four disks for two seconds, each less the phase at its begin.
        assert!((390..=400).contains(&outcome.ack_seconds.count), "{outcome:?}");
        assert!((1..=outcome.ack_seconds.count).contains(&outcome.commits), "{outcome:?}");
        assert!(outcome.cpu_seconds > 0.0 && outcome.ack_seconds.p99 >= outcome.ack_seconds.p50, "{outcome:?}");
        let written = std::fs::read_dir(folder.path()).expect("readable").count();
        drop(bare);
        let left = std::fs::read_dir(folder.path()).expect("readable").count();
        assert_eq!((written, left), (1, 0), "its file goes with it");
    }
}
