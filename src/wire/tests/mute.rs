//! Networks of bad peers: one that hears nothing, one that loses much of what it sends.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, UdpPoller};

use crate::wire::net::{Net, Network, Resolving, TokioTime};

/// How a socket behaves.
#[derive(Clone, Copy, Debug)]
enum Manner {
    /// Nothing that comes is read.
    Deaf,
    /// Of what is sent, so many in a hundred are lost: by a fixed rule, so that every run is alike.
    Lossy(u64),
}

struct Bad {
    from: SocketAddr,
    manner: Manner,
}

/// A network from `from` that hears nothing: its handshakes are begun and never finished.
pub fn deaf(from: SocketAddr) -> Net {
    Net::new(Bad { from, manner: Manner::Deaf })
}

/// A network that loses so many in a hundred of the datagrams it sends: what arrives has gaps, and comes out of order.
pub fn lossy(from: SocketAddr, percent: u64) -> Net {
    Net::new(Bad { from, manner: Manner::Lossy(percent) })
}

impl Network for Bad {
    fn open(&self, _: SocketAddr, _: u32) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let socket = std::net::UdpSocket::bind(self.from)?;
        socket.set_nonblocking(true)?;
        let inner = TokioTime.wrap_udp_socket(socket)?;
        Ok(Arc::new(BadSocket { inner, manner: self.manner, sent: AtomicU64::new(1) }))
    }

    fn resolve<'a>(&'a self, addr: &'a str) -> Resolving<'a> {
        Box::pin(async move { addr.parse().map(|addr| vec![addr]).map_err(io::Error::other) })
    }
}

#[derive(Debug)]
struct BadSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    manner: Manner,
    sent: AtomicU64,
}

impl AsyncUdpSocket for BadSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if let Manner::Lossy(percent) = self.manner {
            let number = self.sent.fetch_add(1, Ordering::Relaxed);
            // The first few are the handshake, which is not what is tested.
            if number > 8 && number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32 & 0xffff < percent * 0xffff / 100 {
                return Ok(());
            }
        }
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        match self.manner {
            Manner::Deaf => Poll::Pending,
            Manner::Lossy(_) => self.inner.poll_recv(cx, bufs, meta),
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        1
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}
