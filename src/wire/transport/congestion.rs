//! Congestion control of a QUIC connection: CUBIC, with a first and a last word of our own.
//!
//! The first word. A connection begins with a window of ten of the smallest datagrams, which is little more than one of the
//! large ones that the path may turn out to carry. Then one datagram at a time is on its way, and since the other side acknowledges
//! every second one at once and a single one late, each costs 25 ms. So the window is ten datagrams of the size that the path
//! carries, until something is lost.
//!
//! The last word. QUIC's library holds a close frame back while the window is full, together with whatever else waits. But a
//! closed connection takes no acknowledgements any more, so nothing empties the window, the frame never goes out, and the
//! other side hears of the end by a reset or by silence. A probe for large datagrams and one other datagram suffice for it
//! on a young connection. So the window opens once this side parts: what still leaves is a close frame.

use std::any::Any;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn_proto::RttEstimator;

use crate::wire::code::Code;

/// Datagrams that may be on their way before anything is known of the path: RFC 9002, 7.2.
const INITIAL_DATAGRAMS: u64 = 10;

/// Makes the congestion control of a connection.
#[derive(Debug, Default)]
pub(in crate::wire) struct CongestionConfig(Arc<CubicConfig>);

impl ControllerFactory for CongestionConfig {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let inner = Arc::clone(&self.0).build(now, current_mtu);
        Box::new(Congestion { inner, least_bytes: INITIAL_DATAGRAMS * u64::from(current_mtu), parts: Arc::default() })
    }
}

struct Congestion {
    inner: Box<dyn Controller>,
    /// The window is at least this; nothing after the first loss.
    least_bytes: u64,
    /// Common to all copies: one is in the connection, others are taken of it.
    parts: Arc<AtomicBool>,
}

/// A handle to a connection. A clone is another handle to the same one; the last handle's drop closes it.
#[derive(Clone)]
pub(in crate::wire) struct Connection(Arc<Handle>);

struct Handle(quinn::Connection);

impl Connection {
    pub(in crate::wire) fn new(connection: quinn::Connection) -> Self {
        Self(Arc::new(Handle(connection)))
    }

    pub(super) fn close(&self, code: Code, text: &str) {
        self.0.close(code, text);
    }
}

impl Deref for Connection {
    type Target = quinn::Connection;
    fn deref(&self) -> &quinn::Connection {
        &self.0.0
    }
}

impl Handle {
    fn close(&self, code: Code, text: &str) {
        if let Ok(controller) = self.0.congestion_state().into_any().downcast::<Congestion>() {
            controller.parts.store(true, Ordering::Relaxed);
        }
        self.0.close(code.var_int(), text.as_bytes());
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.close(Code::Done, "");
    }
}

impl Controller for Congestion {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest_packet_num_acked: Option<u64>) {
        self.inner.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        self.least_bytes = 0;
        self.inner.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        if self.least_bytes > 0 {
            self.least_bytes = INITIAL_DATAGRAMS * u64::from(new_mtu);
        }
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        if self.parts.load(Ordering::Relaxed) { u64::MAX } else { self.inner.window().max(self.least_bytes) }
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { inner: self.inner.clone_box(), least_bytes: self.least_bytes, parts: Arc::clone(&self.parts) })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
