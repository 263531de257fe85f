//! A network in memory: datagrams arrive after a fixed time, none is lost.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use crate::wire::Net;
use crate::wire::net::{Network, Resolving};

#[derive(Debug, Default)]
struct Inbox {
    datagrams: VecDeque<(SocketAddr, Vec<u8>)>,
    reader: Option<Waker>,
}

#[derive(Debug, Default)]
struct Ports {
    inboxes: BTreeMap<SocketAddr, Arc<Mutex<Inbox>>>,
    next_port: u16,
}

/// The wires between all machines.
#[derive(Debug, Clone)]
pub struct Wires {
    ports: Arc<Mutex<Ports>>,
    delay: Duration,
}

impl Wires {
    pub fn new(delay: Duration) -> Self {
        Self { ports: Arc::new(Mutex::new(Ports { inboxes: BTreeMap::new(), next_port: 50_000 })), delay }
    }

    /// The network as the machine `ip` sees it.
    pub fn net(&self, ip: IpAddr) -> Net {
        Net::new(Machine { ip, wires: self.clone() })
    }

    fn send(&self, from: SocketAddr, to: SocketAddr, datagram: Vec<u8>) {
        let (ports, delay) = (Arc::clone(&self.ports), self.delay);
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            let Some(inbox) = ports.lock().inboxes.get(&to).cloned() else { return };
            let mut inbox = inbox.lock();
            inbox.datagrams.push_back((from, datagram));
            inbox.reader.take().into_iter().for_each(Waker::wake);
        });
    }
}

struct Machine {
    ip: IpAddr,
    wires: Wires,
}

impl Network for Machine {
    fn open(&self, listen: SocketAddr, _: u32) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let mut ports = self.wires.ports.lock();
        let port = if listen.port() == 0 { ports.next_port } else { listen.port() };
        ports.next_port += 1;
        let local = SocketAddr::new(self.ip, port);
        let inbox = Arc::new(Mutex::new(Inbox::default()));
        if ports.inboxes.insert(local, Arc::clone(&inbox)).is_some() {
            return Err(io::Error::from(io::ErrorKind::AddrInUse));
        }
        Ok(Arc::new(Socket { local, inbox, wires: self.wires.clone() }))
    }

    fn resolve<'a>(&'a self, addr: &'a str) -> Resolving<'a> {
        Box::pin(async move { addr.parse().map(|addr| vec![addr]).map_err(io::Error::other) })
    }
}

#[derive(Debug)]
struct Socket {
    local: SocketAddr,
    inbox: Arc<Mutex<Inbox>>,
    wires: Wires,
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.wires.ports.lock().inboxes.remove(&self.local);
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let segment_bytes = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for datagram in transmit.contents.chunks(segment_bytes) {
            self.wires.send(self.local, transmit.destination, datagram.to_vec());
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut inbox = self.inbox.lock();
        let Some((addr, datagram)) = inbox.datagrams.pop_front() else {
            inbox.reader = Some(cx.waker().clone());
            return Poll::Pending;
        };
        let len = datagram.len();
        bufs[0][..len].copy_from_slice(&datagram);
        meta[0] = RecvMeta { addr, len, stride: len, ecn: None, dst_ip: None };
        Poll::Ready(Ok(1))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}
