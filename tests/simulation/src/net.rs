//! The network between the nodes: UDP datagrams that are late, lost, doubled, out of order, too large or cut off.
//!
//! A datagram sent in one window arrives at the start of a later one, so nodes that run one after the other never miss
//! any. Every client socket sits behind an address translation whose outer address can change at any time. All queues
//! are bounded; what does not fit is lost, as everywhere.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tidegate::wire::net::{Network, Resolving};

use crate::dice::Dice;
use crate::{LOOKAHEAD, NodeId};

/// Datagrams that may be on their way.
const FLYING_MAX: usize = 100_000;
/// Datagrams that a socket keeps for its reader: the size of a generous kernel buffer.
const INBOX_MAX: usize = 4_096;
/// UDP port of every gateway.
const GATEWAY_PORT: u16 = 9443;

/// How datagrams travel.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    /// Shortest way, in microseconds.
    pub latency: u64,
    /// What may come on top.
    pub jitter: u64,
    /// Lost datagrams of a thousand.
    pub loss: u32,
    /// Doubled ones of a thousand.
    pub doubled: u32,
    /// Ones of a thousand that take a much longer way, so that later ones overtake them.
    pub overtaken: u32,
    /// Largest datagram that passes.
    pub mtu: usize,
}

impl Default for Weather {
    fn default() -> Self {
        Self { latency: 1_000, jitter: 2_000, loss: 0, doubled: 0, overtaken: 0, mtu: 1_500 }
    }
}

/// The network. Clones share it.
#[derive(Clone)]
pub struct SimNet(Arc<Mutex<Inner>>);

struct Inner {
    now: u64,
    dice: Dice,
    weather: Weather,
    hosts: BTreeMap<String, SocketAddr>,
    /// Sockets by number.
    sockets: BTreeMap<u64, Bound>,
    /// Which socket an address leads to.
    routes: BTreeMap<SocketAddr, u64>,
    flying: BTreeMap<(u64, u64), Datagram>,
    /// Directions in which nothing passes.
    cut: BTreeSet<(NodeId, NodeId)>,
    number: u64,
    port: u16,
}

struct Bound {
    node: NodeId,
    /// The address that others see.
    outer: SocketAddr,
    inbox: VecDeque<(SocketAddr, Vec<u8>)>,
    waker: Option<Waker>,
}

struct Datagram {
    from: SocketAddr,
    to: u64,
    bytes: Vec<u8>,
}

impl SimNet {
    /// A network without hosts.
    #[must_use]
    pub fn new(dice: Dice) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            now: 0,
            dice,
            weather: Weather::default(),
            hosts: BTreeMap::new(),
            sockets: BTreeMap::new(),
            routes: BTreeMap::new(),
            flying: BTreeMap::new(),
            cut: BTreeSet::new(),
            number: 0,
            port: 20_000,
        })))
    }

    /// The address of a node.
    #[must_use]
    pub fn address(node: NodeId) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1 + node as u8)), GATEWAY_PORT)
    }

    /// Gives a node a name.
    pub fn name_host(&self, name: &str, node: NodeId) {
        self.0.lock().hosts.insert(name.to_owned(), Self::address(node));
    }

    /// Changes the weather.
    pub fn set_weather(&self, weather: Weather) {
        self.0.lock().weather = weather;
    }

    /// Stops or allows traffic from one node to another.
    pub fn set_cut(&self, from: NodeId, to: NodeId, cut: bool) {
        let mut inner = self.0.lock();
        if cut {
            inner.cut.insert((from, to))
        } else {
            inner.cut.remove(&(from, to))
        };
    }

    /// Lets everything pass again.
    pub fn heal(&self) {
        self.0.lock().cut.clear();
    }

    /// Gives the sockets of a node new outer addresses, as an address translation that forgot them.
    pub fn rebind(&self, node: NodeId) {
        let mut inner = self.0.lock();
        let numbers: Vec<u64> =
            inner.sockets.iter().filter(|(_, socket)| socket.node == node).map(|(number, _)| *number).collect();
        for number in numbers {
            inner.port = inner.port.wrapping_add(1).max(20_000);
            let port = inner.port;
            let Some(socket) = inner.sockets.get_mut(&number) else { continue };
            let before = socket.outer;
            socket.outer.set_port(port);
            let after = socket.outer;
            inner.routes.remove(&before);
            inner.routes.insert(after, number);
        }
    }

    /// Removes the sockets of a node that is gone: nothing that it still does reaches anybody.
    pub fn forget(&self, node: NodeId) {
        let mut inner = self.0.lock();
        inner.sockets.retain(|_, socket| socket.node != node);
        let Inner { routes, sockets, .. } = &mut *inner;
        routes.retain(|_, number| sockets.contains_key(number));
    }

    /// Begins a window: delivers what has arrived. Returns how many datagrams that were.
    pub fn deliver(&self, now: u64) -> usize {
        let mut inner = self.0.lock();
        inner.now = now;
        let rest = inner.flying.split_off(&(now + 1, 0));
        let due = std::mem::replace(&mut inner.flying, rest);
        let count = due.len();
        for Datagram { from, to, bytes } in due.into_values() {
            let Some(socket) = inner.sockets.get_mut(&to) else { continue };
            if socket.inbox.len() < INBOX_MAX {
                socket.inbox.push_back((from, bytes));
            }
            if let Some(waker) = socket.waker.take() {
                waker.wake();
            }
        }
        count
    }

    /// The way of a node into this network.
    #[must_use]
    pub fn of(&self, node: NodeId) -> NodeNet {
        NodeNet { net: self.clone(), node }
    }
}

impl Inner {
    fn send(&mut self, socket: u64, to: SocketAddr, bytes: &[u8]) {
        let Some((node, outer)) = self.sockets.get(&socket).map(|socket| (socket.node, socket.outer)) else { return };
        let Some(&target) = self.routes.get(&to) else { return };
        let target_node = self.sockets.get(&target).map_or(node, |socket| socket.node);
        let weather = self.weather;
        // Thrown whether needed or not, and never by size: sizes may differ by what is outside the seed.
        let (lost, doubled) = (self.dice.permille(weather.loss), self.dice.permille(weather.doubled));
        if lost || self.cut.contains(&(node, target_node)) || bytes.len() + 28 > weather.mtu {
            return;
        }
        for _ in 0..=u8::from(doubled) {
            let late = if self.dice.permille(weather.overtaken) { self.dice.below(300_000) } else { 0 };
            let way = (weather.latency + self.dice.below(weather.jitter + 1) + late).max(LOOKAHEAD);
            self.number += 1;
            if self.flying.len() < FLYING_MAX {
                let datagram = Datagram { from: outer, to: target, bytes: bytes.to_vec() };
                self.flying.insert((self.now + way, self.number), datagram);
            }
        }
    }
}

/// The network as one node sees it.
pub struct NodeNet {
    net: SimNet,
    node: NodeId,
}

impl Network for NodeNet {
    fn open(&self, listen: SocketAddr, _: u32) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let mut inner = self.net.0.lock();
        let mut outer = SimNet::address(self.node);
        if listen.port() == 0 {
            inner.port = inner.port.wrapping_add(1).max(20_000);
            outer.set_port(inner.port);
        }
        if inner.routes.contains_key(&outer) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        inner.number += 1;
        let number = inner.number;
        inner.routes.insert(outer, number);
        inner.sockets.insert(number, Bound { node: self.node, outer, inbox: VecDeque::new(), waker: None });
        drop(inner);
        Ok(Arc::new(Socket { net: self.net.clone(), number, local: outer }))
    }

    fn resolve<'a>(&'a self, addr: &'a str) -> Resolving<'a> {
        let host = addr.rsplit_once(':').map_or(addr, |(host, _)| host);
        let found = self.net.0.lock().hosts.get(host).copied();
        Box::pin(async move { found.map(|found| vec![found]).ok_or_else(|| io::ErrorKind::NotFound.into()) })
    }
}

struct Socket {
    net: SimNet,
    number: u64,
    local: SocketAddr,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Socket({})", self.local)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let mut inner = self.net.0.lock();
        if let Some(socket) = inner.sockets.remove(&self.number) {
            inner.routes.remove(&socket.outer);
        }
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        let mut inner = self.net.0.lock();
        transmit.contents.chunks(segment).for_each(|bytes| inner.send(self.number, transmit.destination, bytes));
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.net.0.lock();
        let Some(socket) = inner.sockets.get_mut(&self.number) else { return Poll::Pending };
        let mut count = 0;
        while count < bufs.len().min(meta.len()) {
            let Some((from, bytes)) = socket.inbox.pop_front() else { break };
            let length = bytes.len().min(bufs[count].len());
            bufs[count][..length].copy_from_slice(&bytes[..length]);
            meta[count] = RecvMeta { addr: from, len: length, stride: length, ecn: None, dst_ip: None };
            count += 1;
        }
        if count == 0 {
            socket.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
