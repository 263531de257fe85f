//! A TCP proxy on loopback that is as slow as it is told, so that a fast store becomes a slow one.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tidegate::flow::{Clock as _, SystemClock};

/// A running proxy. Its threads end with the connections; the listener ends with the process.
pub struct Proxy {
    pub address: SocketAddr,
    /// Bytes that went to the target.
    pub sent_bytes: Arc<AtomicU64>,
    open: Arc<AtomicBool>,
}

impl Proxy {
    /// Forwards to `target`, all connections together at most `bytes_per_second` towards it.
    pub fn start(target: SocketAddr, bytes_per_second: u64) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let pace = Arc::new(Pace { clock: SystemClock::new(), bytes_per_second, free_at_nanos: AtomicU64::new(0) });
        let (sent_bytes, open) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(true)));
        let (count, accept) = (Arc::clone(&sent_bytes), Arc::clone(&open));
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if !accept.load(Ordering::Relaxed) {
                    continue;
                }
                let Ok(server) = TcpStream::connect(target) else { continue };
                let (pace, count) = (Arc::clone(&pace), Arc::clone(&count));
                let (Ok(client_back), Ok(server_back)) = (client.try_clone(), server.try_clone()) else { continue };
                std::thread::spawn(move || {
                    forward(client, server, |bytes| {
                        count.fetch_add(bytes, Ordering::Relaxed);
                        pace.wait(bytes);
                    })
                });
                std::thread::spawn(move || forward(server_back, client_back, |_| ()));
            }
        });
        Self { address, sent_bytes, open }
    }

    /// Refuses new connections, or takes them again.
    pub fn set_open(&self, open: bool) {
        self.open.store(open, Ordering::Relaxed);
    }
}

/// One bandwidth for all connections: each piece takes its turn on the same line.
struct Pace {
    clock: SystemClock,
    bytes_per_second: u64,
    free_at_nanos: AtomicU64,
}

impl Pace {
    fn wait(&self, bytes: u64) {
        let now = self.clock.monotonic().as_nanos() as u64;
        let takes = bytes * 1_000_000_000 / self.bytes_per_second;
        let advance = |free_at: u64| Some(free_at.max(now) + takes);
        let before = self.free_at_nanos.fetch_update(Ordering::Relaxed, Ordering::Relaxed, advance).unwrap();
        let until = before.max(now) + takes;
        std::thread::sleep(Duration::from_nanos(until.saturating_sub(now)));
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, each: impl Fn(u64)) {
    let mut piece = vec![0; 32 << 10];
    let outcome: io::Result<()> = (|| {
        loop {
            let length = from.read(&mut piece)?;
            if length == 0 {
                return to.shutdown(std::net::Shutdown::Write);
            }
            each(length as u64);
            to.write_all(&piece[..length])?;
        }
    })();
    if outcome.is_err() {
        // A broken side breaks the other, as a router's would.
        let _ = from.shutdown(std::net::Shutdown::Both);
        let _ = to.shutdown(std::net::Shutdown::Both);
    }
}
