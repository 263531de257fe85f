//! A UDP proxy between agents and a gateway that does to datagrams what bad networks do.
//!
//! Each client address gets a socket of its own towards the gateway, as behind an address translator; rebinding gives all
//! of them new ones, so that the gateway sees every connection come from somewhere else.
//!
//! Held datagrams are bounded; what comes beyond is lost, as in any router.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tidegate::cli::quickstart::load::Numbers;
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::chance::Share;
use crate::thread::Worker;

/// Largest datagram there is.
const DATAGRAM_BYTES_MAX: usize = 64 << 10;
/// Datagrams that are held for their delay: a tenth of a second of a fast line, 6 MiB at a usual MTU.
const HELD_MAX: usize = 4096;
/// Clients at the same time.
const CLIENTS_MAX: usize = 1024;
/// By how much a datagram is held back so that others overtake it.
const OVERTAKEN_BY: Duration = Duration::from_millis(15);

/// What is done to datagrams, in both directions alike.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct UdpFaults {
    /// Lost ones.
    pub loss: Share,
    /// Ones that come twice.
    pub duplicate: Share,
    /// Ones that are overtaken by those after them.
    pub reorder: Share,
    /// How long each takes.
    pub delay: Duration,
    /// How much longer some take, at most.
    pub jitter: Duration,
    /// Longer ones vanish without a word: an MTU black hole. Zero for no bound.
    pub datagram_bytes_max: usize,
    /// Nothing comes through at all.
    pub cut: bool,
}

/// What happened to datagrams so far.
#[derive(Debug, Default)]
pub struct UdpCounts {
    /// Passed on, duplicates too.
    pub passed: AtomicU64,
    /// Lost, whatever the reason.
    pub lost: AtomicU64,
    /// Passed on twice.
    pub duplicated: AtomicU64,
    /// Held back so that others overtook them.
    pub reordered: AtomicU64,
    /// Sockets towards the gateway that were made: clients and rebindings.
    pub bound: AtomicU64,
}

struct Shared {
    faults: Mutex<UdpFaults>,
    numbers: Mutex<Numbers>,
    counts: UdpCounts,
    held: Arc<Semaphore>,
    /// Raised by each rebinding.
    generation: AtomicU64,
}

/// A running proxy. Dropped, it ends.
pub struct UdpProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    _worker: Worker,
}

impl UdpProxy {
    /// Listens on `listen` and passes on to `target`. The seed decides which datagrams suffer.
    ///
    /// # Errors
    /// If the address cannot be bound.
    pub fn start(listen: SocketAddr, target: SocketAddr, faults: UdpFaults, seed: u64) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            faults: Mutex::new(faults),
            numbers: Mutex::new(Numbers::new(seed)),
            counts: UdpCounts::default(),
            held: Arc::new(Semaphore::new(HELD_MAX)),
            generation: AtomicU64::new(0),
        });
        let socket = std::net::UdpSocket::bind(listen)?;
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        let of_worker = Arc::clone(&shared);
        let (worker, ()) = Worker::start("proxy-udp", move || {
            let socket = Arc::new(UdpSocket::from_std(socket)?);
            Ok(((), serve(socket, target, of_worker)))
        })?;
        Ok(Self { address, shared, _worker: worker })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on this is done to datagrams.
    pub fn set(&self, faults: UdpFaults) {
        *self.shared.faults.lock() = faults;
    }

    /// From now on every client comes from another port.
    pub fn rebind(&self) {
        self.shared.generation.fetch_add(1, Ordering::Relaxed);
    }

    /// What happened so far.
    #[must_use]
    pub fn counts(&self) -> &UdpCounts {
        &self.shared.counts
    }
}

/// One client's way to the gateway.
struct Client {
    upstream: Arc<UdpSocket>,
    generation: u64,
    back: JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.back.abort();
    }
}

async fn serve(socket: Arc<UdpSocket>, target: SocketAddr, shared: Arc<Shared>) {
    let mut clients: HashMap<SocketAddr, Client> = HashMap::new();
    let mut buf = vec![0; DATAGRAM_BYTES_MAX];
    // Sending at once needs to know that the socket can.
    let _ = socket.writable().await;
    loop {
        // An error here is a client that is gone (port unreachable); the others go on.
        let Ok((length, client)) = socket.recv_from(&mut buf).await else { continue };
        let generation = shared.generation.load(Ordering::Relaxed);
        if clients.get(&client).is_none_or(|known| known.generation != generation) {
            if clients.len() >= CLIENTS_MAX {
                clients.clear();
            }
            match open(&socket, client, target, &shared, generation).await {
                Ok(opened) => drop(clients.insert(client, opened)),
                Err(_) => continue,
            }
        }
        if let Some(known) = clients.get(&client) {
            carry(&buf[..length], &shared, &known.upstream, None);
        }
    }
}

async fn open(
    socket: &Arc<UdpSocket>,
    client: SocketAddr,
    target: SocketAddr,
    shared: &Arc<Shared>,
    generation: u64,
) -> io::Result<Client> {
    let upstream = Arc::new(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?);
    upstream.connect(target).await?;
    upstream.writable().await?;
    shared.counts.bound.fetch_add(1, Ordering::Relaxed);
    let (from, socket, shared) = (Arc::clone(&upstream), Arc::clone(socket), Arc::clone(shared));
    let back = tokio::spawn(async move {
        let mut buf = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            match from.recv(&mut buf).await {
                Ok(length) => carry(&buf[..length], &shared, &socket, Some(client)),
                // The gateway is away for now.
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    });
    Ok(Client { upstream, generation, back })
}

/// Decides what happens to a datagram, and lets it happen.
fn carry(datagram: &[u8], shared: &Arc<Shared>, socket: &Arc<UdpSocket>, to: Option<SocketAddr>) {
    let counts = &shared.counts;
    let faults = *shared.faults.lock();
    let (lost, twice, late, jitter) = {
        let mut numbers = shared.numbers.lock();
        let jitter_nanos = numbers.below(faults.jitter.as_nanos() as u64 + 1);
        let hits = |share: Share, numbers: &mut Numbers| share.hits(numbers);
        (
            hits(faults.loss, &mut numbers),
            hits(faults.duplicate, &mut numbers),
            hits(faults.reorder, &mut numbers),
            Duration::from_nanos(jitter_nanos),
        )
    };
    let too_long = faults.datagram_bytes_max > 0 && datagram.len() > faults.datagram_bytes_max;
    if lost || too_long || faults.cut {
        counts.lost.fetch_add(1, Ordering::Relaxed);
        return;
    }
    let mut delay = faults.delay + jitter;
    if late {
        delay += OVERTAKEN_BY;
        counts.reordered.fetch_add(1, Ordering::Relaxed);
    }
    counts.duplicated.fetch_add(u64::from(twice), Ordering::Relaxed);
    for _ in 0..1 + u32::from(twice) {
        if delay.is_zero() {
            send(datagram, socket, to, counts);
            continue;
        }
        let Ok(place) = Arc::clone(&shared.held).try_acquire_owned() else {
            counts.lost.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let (datagram, socket, shared) = (datagram.to_vec(), Arc::clone(socket), Arc::clone(shared));
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            send(&datagram, &socket, to, &shared.counts);
            drop(place);
        });
    }
}

/// Sends at once or not at all: a full socket buffer loses datagrams too.
fn send(datagram: &[u8], socket: &UdpSocket, to: Option<SocketAddr>, counts: &UdpCounts) {
    let sent = match to {
        Some(client) => socket.try_send_to(datagram, client),
        None => socket.try_send(datagram),
    };
    let count = if sent.is_ok() { &counts.passed } else { &counts.lost };
    count.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket as Plain;

    /// An echo server, a client behind a proxy to it.
    fn echo(faults: UdpFaults) -> (UdpProxy, Plain) {
        let server = Plain::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        let target = server.local_addr().expect("its address");
        std::thread::spawn(move || {
            let mut buf = [0; 2048];
            // The last byte of an answer tells from which port the question came, as the server saw it.
            while let Ok((length, from)) = server.recv_from(&mut buf) {
                let _ = server.send_to(&[&buf[..length], &from.port().to_be_bytes()].concat(), from);
            }
        });
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let proxy = UdpProxy::start(any, target, faults, 7).expect("a proxy");
        let client = Plain::bind(any).expect("a socket");
        client.connect(proxy.address()).expect("connected");
        client.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
        (proxy, client)
    }

    /// Sends `count` datagrams of `length` bytes; numbers of those that came back, and the ports they were seen from.
    fn ask(client: &Plain, count: u16, length: usize) -> Vec<(u16, u16)> {
        let mut datagram = vec![0; length];
        for number in 0..count {
            datagram[..2].copy_from_slice(&number.to_be_bytes());
            client.send(&datagram).expect("sent");
            std::thread::sleep(Duration::from_micros(500));
        }
        let mut buf = [0; 2048];
        let mut back = Vec::new();
        while let Ok(length) = client.recv(&mut buf) {
            let number = |at: usize| u16::from_be_bytes([buf[at], buf[at + 1]]);
            back.push((number(0), number(length - 2)));
        }
        back
    }

    #[test]
    fn without_faults_everything_comes_back_once() {
        let (_proxy, client) = echo(UdpFaults::default());
        let back: Vec<u16> = ask(&client, 200, 100).iter().map(|(number, _)| *number).collect();
        assert_eq!(back, (0..200).collect::<Vec<_>>());
    }

    #[test]
    fn lost_duplicated_and_overtaken_datagrams_are_so_and_counted() {
        let half = Share::percent(50.0);
        let (proxy, client) = echo(UdpFaults { loss: half, ..UdpFaults::default() });
        let came = ask(&client, 400, 100).len();
        assert!((50..150).contains(&came), "a quarter survives both ways: {came}");
        assert!(proxy.counts().lost.load(Ordering::Relaxed) > 200);

        proxy.set(UdpFaults { duplicate: Share::percent(100.0), ..UdpFaults::default() });
        assert_eq!(ask(&client, 50, 100).len(), 200, "twice there, twice back");

        proxy.set(UdpFaults { reorder: half, ..UdpFaults::default() });
        let back: Vec<u16> = ask(&client, 100, 100).iter().map(|(number, _)| *number).collect();
        assert_eq!(back.len(), 100);
        assert!(!back.is_sorted(), "nothing overtook anything");
    }

    #[test]
    fn a_black_hole_swallows_what_is_too_long_and_a_cut_everything() {
        let (proxy, client) = echo(UdpFaults { datagram_bytes_max: 1000, ..UdpFaults::default() });
        assert_eq!(ask(&client, 10, 1200).len(), 0);
        assert_eq!(ask(&client, 10, 900).len(), 10);
        proxy.set(UdpFaults { cut: true, ..UdpFaults::default() });
        assert_eq!(ask(&client, 10, 900).len(), 0);
    }

    #[test]
    fn after_a_rebinding_the_server_sees_another_port() {
        let (proxy, client) = echo(UdpFaults::default());
        let before = ask(&client, 3, 100)[0].1;
        proxy.rebind();
        let after = ask(&client, 3, 100);
        assert!(after.len() == 3 && after.iter().all(|(_, port)| *port != before), "{before} {after:?}");
    }
}
