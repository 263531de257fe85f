//! TLS over TCP: every stream of a session is a connection of its own.
//!
//! ```text
//!  agent                                                       gateway
//!  control stream ── TCP, TLS: join as control, hello, pings ──► session
//!  disk stream    ── TCP, TLS: join as a stream, open-disk … ──► attached to the session of that name
//! ```
//!
//! So the kernel's flow control is one per disk, as QUIC's is: a disk that waits holds up no other, and a lost packet
//! none but its own. A session's name is random and of the agent's choice; it is worth something only together with the
//! certificate that began the session.
//!
//! - A session lives and dies as one: with the control connection, and for the agent with any of them that breaks.
//! - The side that ends a session says why in a close frame, the last one on the control connection.
//! - Liveness is judged on the control connection, on which the agent's pings and their answers go back and forth; the
//!   kernel's probes judge the others.

mod conn;
mod dial;
mod gate;
mod tls;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use tokio::time::{Instant, sleep_until, timeout};

use self::conn::{Broken, Conn};
pub(in crate::wire) use self::dial::Dialer;
use self::gate::Gate;
pub(in crate::wire) use self::gate::{Arrival, JoinError, Sessions};
use super::{SessionEnd, StreamEnd};
use crate::flow::watch;
use crate::wire::code::Code;
use crate::wire::messages::{Message, Refused};

/// How long the other side of a connection that is over may take to have read its last frame.
const LAST_FRAME_PATIENCE: Duration = Duration::from_secs(2);

/// Bytes that are written at once where a write may be dropped half-way.
const SOME_BYTES_MAX: usize = 16 << 10;

/// How a session ended, if it has: shared by all its connections.
#[derive(Debug)]
struct Ending(watch::Sender<Option<SessionEnd>>);

impl Ending {
    fn new() -> Arc<Self> {
        Arc::new(Self(watch::Sender::new(None)))
    }

    /// Ends the session, unless it has ended. How it ended, and whether it was this call that ended it.
    fn end(&self, end: SessionEnd) -> (SessionEnd, bool) {
        let mut told = (end, false);
        self.0.send_modify(|state| {
            told.1 = state.is_none();
            told.0 = state.get_or_insert(told.0.clone()).clone();
        });
        told
    }

    /// How the session ended; waits for it.
    async fn ended(&self) -> SessionEnd {
        let mut state = self.0.subscribe();
        loop {
            if let Some(end) = &*state.borrow_and_update() {
                return end.clone();
            }
            if state.changed().await.is_err() {
                return SessionEnd::Local;
            }
        }
    }
}

/// Where further streams come from.
enum Side {
    Agent(Dialer),
    Gateway(Gate),
}

struct Inner {
    ending: Arc<Ending>,
    control: Arc<Stream>,
    /// The control stream, until it is opened or accepted.
    first: Mutex<Option<(SendHalf, RecvHalf)>>,
    side: Side,
}

/// One session over TCP. A clone is another handle to it.
#[derive(Clone)]
pub(in crate::wire) struct Session(Arc<Inner>);

impl Session {
    fn new(conn: Conn, ending: Arc<Ending>, idle_timeout: Duration, side: Side) -> Self {
        let control = Stream { conn, ending: Arc::clone(&ending), kind: Kind::Control { idle_timeout }, _open: None };
        let control = Arc::new(control);
        let first = Mutex::new(Some(halves(&control)));
        Self(Arc::new(Inner { ending, control, first, side }))
    }

    /// Opens a stream: the control stream first, later another connection each. One that fails ends the session.
    pub(in crate::wire) async fn open_stream(&self) -> Result<(SendHalf, RecvHalf), SessionEnd> {
        if let Some(first) = self.0.first.lock().take() {
            return Ok(first);
        }
        let ending = &self.0.ending;
        let Side::Agent(dialer) = &self.0.side else {
            return Err(SessionEnd::Lost("a gateway opens no streams".to_owned()));
        };
        let conn = tokio::select! {
            biased;
            end = ending.ended() => return Err(end),
            dialled = dialer.dial_stream() => dialled.map_err(|end| ending.end(end).0)?,
        };
        Ok(halves(&Arc::new(Stream { conn, ending: Arc::clone(ending), kind: Kind::OfAgent, _open: None })))
    }

    /// The next stream that the agent opened, the control stream first.
    pub(in crate::wire) async fn accept_stream(&self) -> Result<(SendHalf, RecvHalf), SessionEnd> {
        if let Some(first) = self.0.first.lock().take() {
            return Ok(first);
        }
        tokio::select! {
            biased;
            end = self.0.ending.ended() => Err(end),
            stream = self.arrival() => Ok(halves(&stream)),
        }
    }

    async fn arrival(&self) -> Arc<Stream> {
        match &self.0.side {
            Side::Gateway(gate) => gate.arrival().await,
            Side::Agent(_) => std::future::pending().await,
        }
    }

    /// Lets the agent open so many streams, the control stream among them, and leave about so many bytes unread on all of
    /// them together.
    pub(in crate::wire) fn widen(&self, streams_max: u32, window_bytes: u32) {
        if let Side::Gateway(gate) = &self.0.side {
            gate.widen(streams_max as usize, window_bytes as usize);
        }
    }

    /// Ends the session. The other side learns why from the last frame on the control connection.
    pub(in crate::wire) fn close(&self, code: Code, text: &str) {
        if !self.0.ending.end(SessionEnd::Local).1 {
            return;
        }
        let frame = Message::Close(Refused { code, text: text.to_owned() }).encode();
        if self.0.control.conn.write_last(frame).is_err() {
            return;
        }
        // A socket that is closed with something unread in it takes back what it has not sent. Without a runtime nobody
        // waits for that either.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let control = Arc::clone(&self.0.control);
            runtime.spawn(async move { timeout(LAST_FRAME_PATIENCE, control.conn.linger()).await });
        }
    }

    /// Waits until the session has ended and says how.
    pub(in crate::wire) async fn closed(&self) -> SessionEnd {
        self.0.ending.ended().await
    }

    /// Waits until the close frame has gone out.
    pub(in crate::wire) async fn close_sent(&self) {
        // A connection that is gone sends nothing any more.
        let _ = self.0.control.conn.flush().await;
    }

    /// The verified chain of the other side.
    pub(in crate::wire) fn peer_certificates(&self) -> Vec<CertificateDer<'static>> {
        self.0.control.conn.peer_certificates()
    }
}

/// What a connection is to its session.
#[derive(Clone, Copy)]
enum Kind {
    /// Its end is the session's. Nothing heard on it for so long is its end.
    Control { idle_timeout: Duration },
    /// A further one on the agent's side: if it breaks, the session is over, and the agent connects anew.
    OfAgent,
    /// A further one on the gateway's side: if it breaks, the agent is told nothing that it does not know.
    OfGateway,
}

/// One connection, as a stream of a session.
struct Stream {
    conn: Conn,
    ending: Arc<Ending>,
    kind: Kind,
    /// Counted while this lives.
    _open: Option<Open>,
}

/// Counts a stream as open while it lives.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn halves(stream: &Arc<Stream>) -> (SendHalf, RecvHalf) {
    let send = SendHalf { stream: Arc::clone(stream), ended: false, owed_bytes: 0 };
    (send, RecvHalf { stream: Arc::clone(stream), heard: Instant::now() })
}

impl Stream {
    /// What it means for stream and session that the connection broke.
    async fn broken(&self, broken: Broken) -> StreamEnd {
        match self.kind {
            Kind::Control { .. } => {}
            // A gateway that ends a session says why on another connection.
            Kind::OfAgent => drop(timeout(LAST_FRAME_PATIENCE, self.ending.ended()).await),
            Kind::OfGateway => return StreamEnd::Stream(broken.to_string()),
        }
        StreamEnd::Session(self.ending.end(broken.into()).0)
    }

    /// The outcome of `work`, unless the session ends before.
    async fn unless_ended<T>(&self, work: impl Future<Output = Result<T, Broken>>) -> Result<T, StreamEnd> {
        tokio::select! {
            biased;
            end = self.ending.ended() => Err(StreamEnd::Session(end)),
            done = work => match done {
                Ok(done) => Ok(done),
                Err(broken) => Err(self.broken(broken).await),
            },
        }
    }
}

/// The sending half of a stream.
pub(in crate::wire) struct SendHalf {
    stream: Arc<Stream>,
    /// Its end is said, or never will be.
    ended: bool,
    /// Bytes at the begin of what is written next that are encrypted already.
    owed_bytes: usize,
}

impl SendHalf {
    pub(in crate::wire) async fn write_all(&mut self, pieces: &mut [Bytes]) -> Result<(), StreamEnd> {
        let mut owed_bytes = std::mem::take(&mut self.owed_bytes);
        for piece in &mut *pieces {
            let bytes = owed_bytes.min(piece.len());
            piece.advance(bytes);
            owed_bytes -= bytes;
        }
        self.stream.unless_ended(self.stream.conn.write_all(pieces)).await
    }

    /// Writes the begin of `bytes` and takes it off them once it has gone out. If this is dropped before, it is to be
    /// called again with the same bytes, or they are to be written by [`SendHalf::write_all`].
    pub(in crate::wire) async fn write_some(&mut self, bytes: &mut Bytes) -> Result<(), StreamEnd> {
        let conn = &self.stream.conn;
        if self.owed_bytes == 0 {
            let begin = bytes.slice(..bytes.len().min(SOME_BYTES_MAX));
            self.owed_bytes = begin.len();
            conn.write_later(begin).map_err(|broken| StreamEnd::Stream(broken.to_string()))?;
        }
        self.stream.unless_ended(async { Ok(conn.flush().await?) }).await?;
        bytes.advance(std::mem::take(&mut self.owed_bytes));
        Ok(())
    }

    pub(in crate::wire) fn finish(&mut self) -> Result<(), StreamEnd> {
        self.ended = true;
        self.stream.conn.write_end().map_err(|broken| StreamEnd::Stream(broken.to_string()))
    }

    pub(in crate::wire) fn reset(&mut self) {
        self.ended = true;
        self.stream.conn.cut();
    }

    pub(in crate::wire) async fn stopped(&mut self) {
        let conn = &self.stream.conn;
        tokio::select! {
            biased;
            _ = self.stream.ending.ended() => {}
            () = async { if self.ended { conn.linger().await } else { conn.peer_ended(true).await } } => {}
        }
    }
}

impl Drop for SendHalf {
    fn drop(&mut self) {
        // On the control connection the close frame is still to come.
        if !self.ended && !matches!(self.stream.kind, Kind::Control { .. }) {
            // A connection that is gone needs no end.
            let _ = self.stream.conn.write_end();
        }
    }
}

/// The receiving half of a stream.
pub(in crate::wire) struct RecvHalf {
    stream: Arc<Stream>,
    /// When something last came.
    heard: Instant,
}

impl RecvHalf {
    /// The next bytes, about `bytes_max` at the most; `None` is the orderly end of a stream.
    pub(in crate::wire) async fn read(&mut self, bytes_max: usize) -> Result<Option<Bytes>, StreamEnd> {
        let stream = &*self.stream;
        let Kind::Control { idle_timeout } = stream.kind else {
            return stream.unless_ended(stream.conn.read(bytes_max)).await;
        };
        let read = tokio::select! {
            biased;
            read = stream.unless_ended(stream.conn.read(bytes_max)) => read?,
            () = sleep_until(self.heard + idle_timeout) => {
                let text = format!("nothing came for {idle_timeout:?}");
                return Err(StreamEnd::Session(stream.ending.end(SessionEnd::Lost(text)).0));
            }
        };
        self.heard = Instant::now();
        // The end of a session is said by a close frame.
        match read {
            Some(bytes) => Ok(Some(bytes)),
            None => Err(stream.broken(Broken::Cut).await),
        }
    }

    /// Notes a close frame, which only the control stream may bring.
    pub(in crate::wire) fn closed(&self, close: Refused) -> Option<StreamEnd> {
        let Kind::Control { .. } = self.stream.kind else { return None };
        let Refused { code, text } = close;
        Some(StreamEnd::Session(self.stream.ending.end(SessionEnd::Closed { code, text }).0))
    }
}
