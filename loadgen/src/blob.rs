//! An HTTP proxy in front of a blob endpoint that is as slow, busy, forgetful or absent as it is told.
//!
//! One request per connection: the answer always says `Connection: close`, which every client understands. Requests are
//! read whole before anything happens to them, so that a refusal comes as an answer and not as a broken pipe. Signatures of
//! Azure requests do not cover what is changed here.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tidegate::cli::quickstart::load::Numbers;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::chance::Share;
use crate::line::Line;
use crate::thread::Worker;

/// Requests at the same time; further ones wait to be accepted.
const REQUESTS_MAX: usize = 256;
/// Longest head of a request or answer.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Longest body that is taken: the largest batch, and room.
const BODY_BYTES_MAX: usize = 64 << 20;
/// Bytes that take their turn on the line together.
const PIECE_BYTES: usize = 32 << 10;

/// What is done to requests.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BlobFaults {
    /// How much longer each request takes.
    pub latency: Duration,
    /// What all requests and answers together may carry per second; zero for no bound.
    pub bytes_per_second: u64,
    /// Requests that are answered `503 Server Busy` and not passed on.
    pub busy: Share,
    /// Requests at the same time beyond which `503 Server Busy` is the answer; zero for no bound. A store's capacity.
    pub parallel_max: u64,
    /// Requests that are done, and whose answer never comes: the connection breaks instead.
    pub lost_answers: Share,
    /// Every connection is broken at once: the store is away.
    pub away: bool,
}

/// What happened to requests so far.
#[derive(Debug, Default)]
pub struct BlobCounts {
    /// Passed on.
    pub passed: AtomicU64,
    /// Answered `503 Server Busy`.
    pub busy: AtomicU64,
    /// Done, but the answer was dropped.
    pub lost_answers: AtomicU64,
    /// Broken because the store is away.
    pub broken: AtomicU64,
    /// Bytes of bodies that were passed on.
    pub sent_bytes: AtomicU64,
    /// Most requests that were passed on at the same time.
    pub parallel_peak: AtomicU64,
}

struct Shared {
    target: SocketAddr,
    faults: Mutex<BlobFaults>,
    numbers: Mutex<Numbers>,
    counts: BlobCounts,
    parallel: AtomicU64,
    line: Line,
}

/// A running proxy. Dropped, it ends.
pub struct BlobProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    _worker: Worker,
}

impl BlobProxy {
    /// Listens on `listen` and passes on to `target`. The seed decides which requests suffer.
    ///
    /// # Errors
    /// If the address cannot be bound.
    pub fn start(listen: SocketAddr, target: SocketAddr, faults: BlobFaults, seed: u64) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            target,
            faults: Mutex::new(faults),
            numbers: Mutex::new(Numbers::new(seed)),
            counts: BlobCounts::default(),
            parallel: AtomicU64::new(0),
            line: Line::default(),
        });
        let listener = std::net::TcpListener::bind(listen)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let of_worker = Arc::clone(&shared);
        let (worker, ()) = Worker::start("proxy-blob", move || {
            let listener = TcpListener::from_std(listener)?;
            Ok(((), serve(listener, of_worker)))
        })?;
        Ok(Self { address, shared, _worker: worker })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on this is done to requests.
    pub fn set(&self, faults: BlobFaults) {
        *self.shared.faults.lock() = faults;
    }

    /// What is done to requests now.
    #[must_use]
    pub fn faults(&self) -> BlobFaults {
        *self.shared.faults.lock()
    }

    /// What happened so far.
    #[must_use]
    pub fn counts(&self) -> &BlobCounts {
        &self.shared.counts
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let places = Arc::new(Semaphore::new(REQUESTS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        // An error here is a client that went before it was accepted.
        let Ok((client, _)) = listener.accept().await else { continue };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            // What breaks is seen by both sides; the proxy has nothing to add.
            let _ = carry(client, &shared).await;
            drop(place);
        });
    }
}

/// Counts a request while it is passed on.
struct Underway<'a>(&'a AtomicU64);

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn carry(mut client: TcpStream, shared: &Shared) -> io::Result<()> {
    let counts = &shared.counts;
    let faults = *shared.faults.lock();
    if faults.away {
        counts.broken.fetch_add(1, Ordering::Relaxed);
        return Ok(());
    }
    let Some((head, mut body)) = read_request(&mut client).await? else { return Ok(()) };
    while body.len() < body_bytes(&head)? {
        let mut piece = vec![0; (body_bytes(&head)? - body.len()).min(PIECE_BYTES)];
        let read = client.read(&mut piece).await?;
        if read == 0 {
            return Ok(());
        }
        shared.take_turn(read).await;
        body.extend_from_slice(&piece[..read]);
    }
    let parallel = shared.parallel.fetch_add(1, Ordering::Relaxed) + 1;
    let _underway = Underway(&shared.parallel);
    let (busy, lost) = {
        let mut numbers = shared.numbers.lock();
        (faults.busy.hits(&mut numbers), faults.lost_answers.hits(&mut numbers))
    };
    tokio::time::sleep(faults.latency).await;
    if busy || (faults.parallel_max > 0 && parallel > faults.parallel_max) {
        counts.busy.fetch_add(1, Ordering::Relaxed);
        let answer =
            "HTTP/1.1 503 Server Busy\r\nx-ms-error-code: ServerBusy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        return client.write_all(answer.as_bytes()).await;
    }
    counts.parallel_peak.fetch_max(parallel, Ordering::Relaxed);
    counts.passed.fetch_add(1, Ordering::Relaxed);
    counts.sent_bytes.fetch_add(body.len() as u64, Ordering::Relaxed);
    let mut server = TcpStream::connect(shared.target).await?;
    server.write_all(&closing(&head)).await?;
    server.write_all(&body).await?;
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let read = server.read(&mut piece).await?;
        if read == 0 {
            break;
        }
        if !lost {
            shared.take_turn(read).await;
            client.write_all(&piece[..read]).await?;
        }
    }
    counts.lost_answers.fetch_add(u64::from(lost), Ordering::Relaxed);
    client.shutdown().await
}

impl Shared {
    async fn take_turn(&self, bytes: usize) {
        let per_second = self.faults.lock().bytes_per_second;
        self.line.take_turn(bytes, per_second).await;
    }
}

/// Reads up to the end of a request's head; what came of the body with it. `None` if the client went away before.
async fn read_request(client: &mut TcpStream) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
    let mut head = Vec::new();
    let mut piece = vec![0; 4096];
    loop {
        let read = client.read(&mut piece).await?;
        if read == 0 {
            return Ok(None);
        }
        head.extend_from_slice(&piece[..read]);
        if let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") {
            let body = head.split_off(end + 4);
            return Ok(Some((head, body)));
        }
        if head.len() > HEAD_BYTES_MAX {
            return Err(io::Error::other("the head of a request has no end"));
        }
    }
}

fn field<'a>(line: &'a [u8], name: &str) -> Option<&'a str> {
    let (found, value) = std::str::from_utf8(line).ok()?.split_once(':')?;
    found.eq_ignore_ascii_case(name).then(|| value.trim())
}

fn lines(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line))
}

/// The length of a request's body.
fn body_bytes(head: &[u8]) -> io::Result<usize> {
    if lines(head).any(|line| field(line, "transfer-encoding").is_some()) {
        return Err(io::Error::other("a body without its length is not understood"));
    }
    let length = lines(head).find_map(|line| field(line, "content-length")?.parse().ok()).unwrap_or(0);
    if length > BODY_BYTES_MAX { Err(io::Error::other("a body is too long")) } else { Ok(length) }
}

/// The head with `Connection: close` in place of whatever it said about that.
fn closing(head: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(head.len() + 32);
    for line in lines(head).take_while(|line| !line.is_empty()).filter(|line| field(line, "connection").is_none()) {
        out.extend_from_slice(line);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"Connection: close\r\n\r\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::{Ipv4Addr, TcpListener as Listener, TcpStream as Stream};

    /// A store that answers every request with the number of requests so far, and a proxy to it.
    fn store(faults: BlobFaults) -> (BlobProxy, Arc<AtomicU64>) {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener = Listener::bind(any).expect("a port");
        let target = listener.local_addr().expect("its address");
        let done = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&done);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut got = Vec::new();
                let mut piece = [0; 4096];
                while !got.ends_with(b"END") {
                    let read = stream.read(&mut piece).expect("a request");
                    got.extend_from_slice(&piece[..read]);
                }
                assert!(String::from_utf8_lossy(&got).contains("Connection: close"));
                let number = count.fetch_add(1, Ordering::SeqCst) + 1;
                let _ = write!(stream, "HTTP/1.1 201 Created\r\nContent-Length: 8\r\n\r\n{number:08}");
            }
        });
        (BlobProxy::start(any, target, faults, 3).expect("a proxy"), done)
    }

    fn put(proxy: &BlobProxy) -> String {
        let mut stream = Stream::connect(proxy.address()).expect("connected");
        let request = "PUT /x HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\nContent-Length: 70000\r\n\r\n";
        let body = "x".repeat(70_000 - 3) + "END";
        // The proxy may be away.
        let _ = stream.write_all(request.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    #[test]
    fn requests_pass_are_refused_or_lose_their_answer_after_the_deed() {
        let all = Share::percent(100.0);
        let (proxy, done) = store(BlobFaults::default());
        assert!(put(&proxy).starts_with("HTTP/1.1 201") && done.load(Ordering::SeqCst) == 1);
        proxy.set(BlobFaults { busy: all, ..BlobFaults::default() });
        let answer = put(&proxy);
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("ServerBusy"), "{answer}");
        assert_eq!(done.load(Ordering::SeqCst), 1, "a refused request is not passed on");
        proxy.set(BlobFaults { lost_answers: all, ..BlobFaults::default() });
        assert_eq!(put(&proxy), "");
        assert_eq!(done.load(Ordering::SeqCst), 2, "it was done all the same");
        proxy.set(BlobFaults { away: true, ..BlobFaults::default() });
        assert_eq!(put(&proxy), "");
        assert_eq!(done.load(Ordering::SeqCst), 2);
        proxy.set(BlobFaults::default());
        assert!(put(&proxy).ends_with("00000003"));
    }

    #[test]
    fn more_requests_at_once_than_the_store_bears_are_refused() {
        let latency = Duration::from_millis(200);
        let (proxy, done) = store(BlobFaults { latency, parallel_max: 2, ..BlobFaults::default() });
        let answers: Vec<String> = std::thread::scope(|scope| {
            let all: Vec<_> = (0..6).map(|_| scope.spawn(|| put(&proxy))).collect();
            all.into_iter().map(|one| one.join().expect("an answer")).collect()
        });
        let busy = answers.iter().filter(|answer| answer.contains("503")).count() as u64;
        assert_eq!(busy + done.load(Ordering::SeqCst), 6);
        assert!(busy >= 1 && proxy.counts().parallel_peak.load(Ordering::Relaxed) <= 2, "{answers:?}");
    }

    #[test]
    fn a_narrow_line_takes_its_time() {
        let (proxy, _) = store(BlobFaults { bytes_per_second: 350_000, ..BlobFaults::default() });
        let clock = tidegate::flow::SystemClock::new();
        put(&proxy);
        let took = tidegate::flow::Clock::monotonic(&clock);
        assert!(took >= Duration::from_millis(150), "70 kB over 350 kB/s took {took:?}");
    }
}
