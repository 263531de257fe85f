//! Datagrams of one burst in buffers of their own, while memory is short.
//!
//! The kernel hands over up to 64 KiB of datagrams of one sender at once, QUIC keeps them in one buffer, and each piece of
//! a stream that nobody could take yet keeps that whole buffer alive. Ordinary senders fill a burst with pieces of the
//! same streams, so nothing is lost by it. But a hostile one can put a single piece that waits into each burst, and 1 MiB
//! that its windows allow holds 45 MiB here, which no account of the streams sees.
//!
//! So the gateway looks at what its process really holds. Above its memory every datagram is copied into a buffer of its
//! own: what comes from then on holds no more than its accounts say. Below it, which is always but for such a sender,
//! nothing is copied.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use super::net::{Net, Network, Resolving};
use crate::telemetry::names;
use crate::telemetry::process::resident_bytes;

/// How often the process's memory is looked at: a line of 1 Gbit/s brings 30 MiB meanwhile.
const LOOK: Duration = Duration::from_millis(250);
/// Kept apart until memory is below the limit by this part of it, so that it does not go on and off.
const SLACK_DIVISOR: u64 = 16;

/// Whether datagrams are kept apart. Clones are the same switch.
#[derive(Debug, Clone, Default)]
pub(crate) struct Apart(Arc<AtomicBool>);

impl Apart {
    /// The network `net`, whose sockets heed this switch.
    pub(super) fn network(&self, net: &Net) -> Net {
        Net::new(ApartNetwork { inner: net.clone(), apart: self.clone() })
    }

    /// Keeps the switch as memory is, for ever. Without an account of the process it stays off.
    pub(crate) async fn watch(self, memory_bytes: u64) {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let Some(resident_bytes) = resident_bytes() else { return };
            self.look(resident_bytes, memory_bytes);
        }
    }

    fn look(&self, resident_bytes: u64, memory_bytes: u64) {
        let was = self.is_on();
        let limit_bytes = if was { memory_bytes - memory_bytes / SLACK_DIVISOR } else { memory_bytes };
        let on = resident_bytes > limit_bytes;
        if on == was {
            return;
        }
        self.0.store(on, Ordering::Relaxed);
        metrics::gauge!(names::RECEIVE_APART).set(f64::from(u8::from(on)));
        if on {
            tracing::warn!(
                resident_bytes,
                memory_bytes,
                "this process holds more than its memory: datagrams are copied one by one until it holds less"
            );
        } else {
            tracing::info!(resident_bytes, memory_bytes, "memory is within its limit again");
        }
    }

    fn is_on(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

struct ApartNetwork {
    inner: Net,
    apart: Apart,
}

impl Network for ApartNetwork {
    fn open(&self, listen: SocketAddr, socket_buffer_bytes: u32) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let inner = self.inner.open(listen, socket_buffer_bytes)?;
        Ok(Arc::new(ApartSocket { inner, apart: self.apart.clone(), held: Mutex::default() }))
    }

    fn resolve<'a>(&'a self, addr: &'a str) -> Resolving<'a> {
        Box::pin(self.inner.resolve(addr))
    }
}

#[derive(Debug)]
struct ApartSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    apart: Apart,
    held: Mutex<Held>,
}

/// Datagrams that were received and not yet handed over: at most as many bytes as one call receives.
#[derive(Debug, Default)]
struct Held {
    bytes: Vec<u8>,
    due: VecDeque<(Range<usize>, RecvMeta)>,
}

impl Held {
    fn take(&mut self, buf: &[u8], meta: RecvMeta) {
        let stride = meta.stride.max(1);
        for datagram in buf[..meta.len].chunks(stride) {
            let start = self.bytes.len();
            self.bytes.extend_from_slice(datagram);
            let meta = RecvMeta { len: datagram.len(), stride: datagram.len(), ..meta };
            self.due.push_back((start..self.bytes.len(), meta));
        }
    }

    /// One datagram to each buffer, and how many there were.
    fn give(&mut self, bufs: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]) -> usize {
        let mut count = 0;
        for (buf, meta) in bufs.iter_mut().zip(metas) {
            let Some((range, due)) = self.due.pop_front() else { break };
            buf[..range.len()].copy_from_slice(&self.bytes[range]);
            *meta = due;
            count += 1;
        }
        if self.due.is_empty() {
            // Memory is short: what is not needed is not kept.
            *self = Self::default();
        }
        count
    }
}

impl AsyncUdpSocket for ApartSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut held = self.held.lock();
        if held.due.is_empty() {
            let received = match self.inner.poll_recv(cx, bufs, metas) {
                Poll::Ready(Ok(received)) if self.apart.is_on() => received,
                other => return other,
            };
            for (buf, meta) in bufs.iter().zip(metas.iter()).take(received) {
                held.take(buf, *meta);
            }
        }
        Poll::Ready(Ok(held.give(bufs, metas)))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives bursts: of each the datagrams' size and all bytes.
    #[derive(Debug)]
    struct Bursts(Mutex<VecDeque<(usize, Vec<u8>)>>);

    impl AsyncUdpSocket for Bursts {
        fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
            unreachable!("nothing is sent")
        }

        fn try_send(&self, _: &Transmit<'_>) -> io::Result<()> {
            unreachable!("nothing is sent")
        }

        fn poll_recv(
            &self,
            _: &mut Context<'_>,
            bufs: &mut [IoSliceMut<'_>],
            metas: &mut [RecvMeta],
        ) -> Poll<io::Result<usize>> {
            let mut bursts = self.0.lock();
            let mut count = 0;
            for (buf, meta) in bufs.iter_mut().zip(metas) {
                let Some((stride, bytes)) = bursts.pop_front() else { break };
                buf[..bytes.len()].copy_from_slice(&bytes);
                *meta = RecvMeta { len: bytes.len(), stride, ..RecvMeta::default() };
                count += 1;
            }
            if count == 0 { Poll::Pending } else { Poll::Ready(Ok(count)) }
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            Ok(([127, 0, 0, 1], 1).into())
        }
    }

    /// All that is received, as (length, stride, bytes), with four buffers at a time.
    fn receive(socket: &ApartSocket) -> Vec<(usize, usize, Vec<u8>)> {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut memory = vec![[0; 4096]; 4];
        let mut all = Vec::new();
        loop {
            let mut bufs: Vec<_> = memory.iter_mut().map(|buf| IoSliceMut::new(buf)).collect();
            let mut metas = [RecvMeta::default(); 4];
            let Poll::Ready(count) = socket.poll_recv(&mut cx, &mut bufs, &mut metas) else { return all };
            for (buf, meta) in bufs.iter().zip(metas).take(count.expect("received")) {
                all.push((meta.len, meta.stride, buf[..meta.len].to_vec()));
            }
        }
    }

    fn socket() -> (ApartSocket, Apart) {
        let bursts = (1..=3_u8).map(|number| (100, (0..950).map(|at| number * 16 + (at / 100) as u8).collect()));
        let apart = Apart::default();
        let inner = Arc::new(Bursts(Mutex::new(bursts.collect())));
        (ApartSocket { inner, apart: apart.clone(), held: Mutex::default() }, apart)
    }

    #[test]
    fn bursts_stay_whole_while_there_is_memory() {
        let (socket, _) = socket();
        let all: Vec<_> = receive(&socket).into_iter().map(|(length, stride, _)| (length, stride)).collect();
        assert_eq!(all, [(950, 100); 3]);
    }

    #[test]
    fn each_datagram_has_a_buffer_of_its_own_in_order_when_memory_is_short() {
        let (socket, apart) = socket();
        apart.look(101, 100);
        let all = receive(&socket);
        let expected: Vec<_> = (1..=3_u8)
            .flat_map(|number| (0..10_u8).map(move |at| (number * 16 + at, if at == 9 { 50 } else { 100 })))
            .map(|(byte, length)| (length, length, vec![byte; length]))
            .collect();
        assert_eq!(all, expected);
        assert_eq!(socket.held.lock().bytes.capacity(), 0, "nothing is kept");
    }

    #[test]
    fn what_was_taken_apart_is_handed_over_after_memory_is_well_again() {
        let (socket, apart) = socket();
        apart.look(101, 100);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut memory = vec![[0; 4096]; 4];
        let mut bufs: Vec<_> = memory.iter_mut().map(|buf| IoSliceMut::new(buf)).collect();
        let mut metas = [RecvMeta::default(); 4];
        let first = socket.poll_recv(&mut cx, &mut bufs, &mut metas);
        assert!(matches!(first, Poll::Ready(Ok(4))));
        apart.look(10, 100);
        assert_eq!(receive(&socket).iter().map(|(length, ..)| length).sum::<usize>(), 3 * 950 - 400);
    }

    #[test]
    fn the_switch_goes_on_above_the_memory_and_off_clearly_below_it() {
        let apart = Apart::default();
        for (resident_bytes, on) in [(1600, false), (1601, true), (1501, true), (1500, false), (1600, false)] {
            apart.look(resident_bytes, 1600);
            assert_eq!(apart.is_on(), on, "{resident_bytes}");
        }
        assert!(resident_bytes().is_none_or(|bytes| bytes > 1 << 20), "a process holds more than 1 MiB");
    }
}
